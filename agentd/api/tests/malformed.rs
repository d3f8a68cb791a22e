//! Malformed pods: each is refused at the right path with a message that says why, and all faults at once.

use std::collections::BTreeSet;

use agentd_api::parse::{self, MAX_BYTES, MAX_VIOLATIONS};
use agentd_api::problem::Violation;

const EXEC: &str = r#""exec":{"command":{"shell":"true"}}"#;

/// A valid pod with further fields of the pod.
fn pod(fields: &str) -> String {
    format!(r#"{{"id":"/a","containers":[{{"name":"a","resources":{{}},{EXEC}}}],{fields}}}"#)
}

/// A pod of one container with a command and these further fields.
fn container(fields: &str) -> String {
    bare(&format!(r#""resources":{{}},{EXEC},{fields}"#))
}

/// A pod of one container with a name and just these fields.
fn bare(fields: &str) -> String {
    format!(r#"{{"id":"/a","containers":[{{"name":"a",{fields}}}]}}"#)
}

/// A pod of one container with these settings of agentd.
fn agentd(fields: &str) -> String {
    container(&format!(r#""agentd":{{{fields}}}"#))
}

/// A pod with a container network and an endpoint, with these further fields of the container.
fn networked(fields: &str) -> String {
    format!(
        r#"{{"id":"/a","networks":[{{}}],"containers":[{{"name":"a","resources":{{}},{EXEC},
            "endpoints":[{{"name":"p","containerPort":80}},{{"name":"u","containerPort":53,"protocol":["udp"]}}],{fields}}}]}}"#
    )
}

/// A pod with these volumes and with these mounts in its container.
fn volumes(volumes: &str, mounts: &str) -> String {
    format!(
        r#"{{"id":"/a","secrets":{{"s":{{"source":"s"}}}},"volumes":[{volumes}],
            "containers":[{{"name":"a","resources":{{}},{EXEC},"volumeMounts":[{mounts}]}}]}}"#
    )
}

/// A pod of containers `a`, `b`, … of which each starts after those named.
fn ordered(start_after: &[&[&str]]) -> String {
    let containers: Vec<_> = start_after
        .iter()
        .zip("abcdefgh".chars())
        .map(|(after, name)| {
            format!(r#"{{"name":"{name}","resources":{{}},{EXEC},"agentd":{{"startAfter":{after:?}}}}}"#)
        })
        .collect();
    format!(r#"{{"id":"/a","containers":[{}]}}"#, containers.join(","))
}

fn constraint(fields: &str) -> String {
    pod(&format!(r#""scheduling":{{"placement":{{"constraints":[{{"fieldName":"rack",{fields}}}]}}}}"#))
}

fn refused(name: &str, json: &[u8]) -> Vec<Violation> {
    let violations = parse::pod(json).err().unwrap_or_else(|| panic!("{name} is accepted"));
    assert!(!violations.is_empty(), "{name}");
    for violation in &violations {
        assert!(!violation.message.contains('\n'), "{name}: {violation}");
        assert!(violation.message.len() < 1000, "{name}: {violation}");
    }
    violations
}

/// Name, document, every path that is reported, a word of one of the messages.
#[rustfmt::skip]
fn table() -> Vec<(&'static str, String, Vec<&'static str>, &'static str)> {
    vec![
        // The document.
        ("empty", String::new(), vec![""], "line 1 column 0"),
        ("not JSON", "{\"id\":\n/a}".into(), vec![""], "line 2 column 1"),
        ("cut short", r#"{"id":"/a""#.into(), vec![""], "line 1 column 10"),
        ("more after the end", format!("{} x", pod(r#""labels":{}"#)), vec![""], "trailing"),
        ("nested too deep", format!("{}{}", "[".repeat(1000), "]".repeat(1000)), vec![""], "recursion limit"),
        ("too large", " ".repeat(MAX_BYTES + 1), vec![""], "1048576"),
        ("a number too large", pod(r#""scaling":{"instances":1e999}"#), vec![""], "out of range"),
        ("null", "null".into(), vec![""], "expected an object"),
        ("a list", "[]".into(), vec![""], "found a list, expected an object"),
        ("a repeated key", pod(r#""id":"/b""#), vec!["id"], "more than once"),
        ("a repeated key deep within", agentd(r#""log":{"maxBytes":1,"maxBytes":2}"#), vec!["containers[0].agentd.log.maxBytes"], "more than once"),
        ("repeated labels", pod(r#""labels":{"a.b":"1","a.b":"1"}"#), vec![r#"labels["a.b"]"#], "keep one"),
        ("nothing", "{}".into(), vec!["id", "containers"], "missing"),
        // The pod.
        ("unknown field", pod(r#""lables":{}"#), vec!["lables"], "did you mean `labels`?"),
        ("unknown field like none", pod(r#""colour":1"#), vec!["colour"], "known here: id, labels"),
        ("unknown setting", pod(r#""agentd":{"restrat":"never"}"#), vec!["agentd.restrat"], "did you mean `restart`?"),
        ("id without slash", r#"{"id":"a","containers":[{"name":"a","resources":{},"image":{"kind":"DOCKER","id":"x"}}]}"#.into(), vec!["id"], "absolute"),
        ("id with an empty segment", pod(r#""labels":{}"#).replace("/a", "/a//b"), vec!["id"], "empty"),
        ("id that leads up", pod(r#""labels":{}"#).replace("/a", "/a/../b"), vec!["id"], "segments"),
        ("id that is a number", pod(r#""labels":{}"#).replace(r#""/a""#, "7"), vec!["id"], "found the number 7, expected a string"),
        ("label of a number", pod(r#""labels":{"a":1}"#), vec!["labels.a"], "expected a string"),
        ("label with NUL", pod(r#""labels":{"a":"x\u0000"}"#), vec!["labels.a"], "NUL"),
        ("version", pod(r#""version":"latest""#), vec!["version"], "RFC 3339"),
        ("empty user", pod(r#""user":"""#), vec!["user"], "uid"),
        ("user with the largest id", pod(r#""user":"4294967295""#), vec!["user"], "uid"),
        ("environment name", pod(r#""environment":{"1A":"x"}"#), vec!["environment.1A"], "no digit first"),
        ("environment name with =", pod(r#""environment":{"A=B":"x"}"#), vec![r#"environment["A=B"]"#], "letters"),
        ("environment of a number", pod(r#""environment":{"FOO":1}"#), vec!["environment.FOO"], "quote it"),
        ("environment with NUL", pod(r#""environment":{"FOO":"a\u0000b"}"#), vec!["environment.FOO"], "NUL"),
        ("environment of an unknown secret", pod(r#""environment":{"FOO":{"secret":"x"}}"#), vec!["environment.FOO.secret"], "no secret named \"x\""),
        ("environment of a secret without name", pod(r#""environment":{"FOO":{}}"#), vec!["environment.FOO.secret"], "missing"),
        ("secret without source", pod(r#""secrets":{"s":{}}"#), vec!["secrets.s.source"], "missing"),
        ("secret that leads up", pod(r#""secrets":{"s":{"source":".."}}"#), vec!["secrets.s.source"], "found \"..\""),
        ("secret in a folder below", pod(r#""secrets":{"s":{"source":"shop/token"}}"#), vec!["secrets.s.source"], "without a slash"),
        ("secret that is a string", pod(r#""secrets":{"s":"x"}"#), vec!["secrets.s"], "expected an object"),
        ("scaling kind", pod(r#""scaling":{"kind":"auto"}"#), vec!["scaling.kind"], "fixed"),
        ("negative instances", pod(r#""scaling":{"instances":-1}"#), vec!["scaling.instances"], "0 or more"),
        ("half an instance", pod(r#""scaling":{"instances":1.5}"#), vec!["scaling.instances"], "whole"),
        ("instances beyond 64 bits", pod(r#""scaling":{"instances":18446744073709551615}"#), vec!["scaling.instances"], "or less"),
        ("shrinking backoff", pod(r#""scheduling":{"backoff":{"backoffFactor":0.5}}"#), vec!["scheduling.backoff.backoffFactor"], "1 or more"),
        ("upgrade above 1", pod(r#""scheduling":{"upgrade":{"minimumHealthCapacity":1.1}}"#), vec!["scheduling.upgrade.minimumHealthCapacity"], "1 or less"),
        ("kill selection", pod(r#""scheduling":{"killSelection":"YOUNGEST"}"#), vec!["scheduling.killSelection"], "YOUNGEST_FIRST"),
        ("unreachable word", pod(r#""scheduling":{"unreachableStrategy":"disable"}"#), vec!["scheduling.unreachableStrategy"], "did you mean `disabled`?"),
        ("unreachable number", pod(r#""scheduling":{"unreachableStrategy":3}"#), vec!["scheduling.unreachableStrategy"], "object"),
        ("expunged before inactive", pod(r#""scheduling":{"unreachableStrategy":{"inactiveAfterSeconds":5,"expungeAfterSeconds":4}}"#), vec!["scheduling.unreachableStrategy.inactiveAfterSeconds"], "no more than expungeAfterSeconds"),
        ("unknown operator", constraint(r#""operator":"UNIQ""#), vec!["scheduling.placement.constraints[0].operator"], "UNIQUE"),
        ("no operator", constraint(r#""value":"a""#), vec!["scheduling.placement.constraints[0].operator"], "missing"),
        ("UNIQUE with a value", constraint(r#""operator":"UNIQUE","value":"a""#), vec!["scheduling.placement.constraints[0].value"], "no value"),
        ("LIKE without a value", constraint(r#""operator":"LIKE""#), vec!["scheduling.placement.constraints[0].value"], "regular expression"),
        ("MAX_PER without a value", constraint(r#""operator":"MAX_PER""#), vec!["scheduling.placement.constraints[0].value"], "whole number"),
        ("MAX_PER of a word", constraint(r#""operator":"MAX_PER","value":"two""#), vec!["scheduling.placement.constraints[0].value"], "whole number"),
        ("MAX_PER of a JSON number", constraint(r#""operator":"MAX_PER","value":2"#), vec!["scheduling.placement.constraints[0].value"], "expected a string"),
        ("a role twice", pod(r#""scheduling":{"placement":{"acceptedResourceRoles":["*","*"]}}"#), vec!["scheduling.placement.acceptedResourceRoles[1]"], "more than once"),
        ("supervisor below the least", pod(r#""executorResources":{"cpus":0.05,"mem":16,"disk":1}"#), vec!["executorResources.cpus", "executorResources.mem", "executorResources.disk"], "32 or more"),
        ("restart", pod(r#""agentd":{"restart":"sometimes"}"#), vec!["agentd.restart"], "on-failure"),
        ("a switch that is text", pod(r#""agentd":{"persistent":"yes"}"#), vec!["agentd.persistent"], "true or false"),
        ("name server by name", pod(r#""agentd":{"dns":{"nameservers":["dns.example.org"]}}"#), vec!["agentd.dns.nameservers[0]"], "IPv4"),
        ("four name servers", pod(r#""agentd":{"dns":{"nameservers":["1.1.1.1","1.1.1.2","1.1.1.3","1.1.1.4"]}}"#), vec!["agentd.dns.nameservers"], "3 or less"),
        ("a line break in resolv.conf", pod(r#""agentd":{"dns":{"search":["a\nnameserver 6.6.6.6"],"options":["a b"]}}"#), vec!["agentd.dns.search[0]", "agentd.dns.options[0]"], "domain"),
        // Networks and endpoints.
        ("network mode", pod(r#""networks":[{"mode":"bridge"}]"#), vec!["networks[0].mode"], "container, host"),
        ("networks that are an object", pod(r#""networks":{"mode":"host"}"#), vec!["networks"], "a list"),
        ("null among networks", pod(r#""networks":[null]"#), vec!["networks[0]"], "remove it"),
        ("host and container", pod(r#""networks":[{"mode":"host"},{"name":"a"}]"#), vec!["networks"], "one host network"),
        ("two hosts", pod(r#""networks":[{"mode":"host"},{"mode":"host"}]"#), vec!["networks[1]"], "joined already"),
        ("a network twice", pod(r#""networks":[{"name":"a"},{"name":"b"},{"name":"a"}]"#), vec!["networks[2]"], "\"a\" is joined already"),
        ("the default network twice", pod(r#""networks":[{},{}]"#), vec!["networks[1]"], "default network"),
        ("host with name and labels", pod(r#""networks":[{"mode":"host","name":"a","labels":{"a":"b"}}]"#), vec!["networks[0].name", "networks[0].labels"], "no labels"),
        ("isolated and joined", pod(r#""networks":[{}],"agentd":{"isolatedNetwork":true}"#), vec!["agentd.isolatedNetwork"], "joins no network"),
        ("container port in host mode", container(r#""endpoints":[{"name":"p","containerPort":80,"hostPort":0}]"#), vec!["containers[0].endpoints[0].containerPort"], "host mode"),
        ("no host port in host mode", container(r#""endpoints":[{"name":"p"}]"#), vec!["containers[0].endpoints[0].hostPort"], "0 for a free one"),
        ("no container port", container(r#""endpoints":[{"name":"p","hostPort":0}]"#).replace(r#""id""#, r#""networks":[{}],"id""#), vec!["containers[0].endpoints[0].containerPort"], "missing"),
        ("host port of an isolated pod", container(r#""endpoints":[{"name":"p","containerPort":80,"hostPort":0}]"#).replace(r#""id""#, r#""agentd":{"isolatedNetwork":true},"id""#), vec!["containers[0].endpoints[0].hostPort"], "isolated"),
        ("port 0 in the container", networked(r#""user":"a""#).replace("53", "0"), vec!["containers[0].endpoints[1].containerPort"], "1 or more"),
        ("port too large", container(r#""endpoints":[{"name":"p","hostPort":65536}]"#), vec!["containers[0].endpoints[0].hostPort"], "65535 or less"),
        ("container port twice", networked(r#""user":"a""#).replace("53", "80"), vec!["containers[0].endpoints[1].containerPort"], "port 80 is taken by containers[0].endpoints[0].containerPort"),
        ("host port twice", container(r#""endpoints":[{"name":"p","hostPort":80},{"name":"q","hostPort":80},{"name":"r","hostPort":0},{"name":"s","hostPort":0}]"#), vec!["containers[0].endpoints[1].hostPort"], "taken"),
        ("endpoint name twice", container(r#""endpoints":[{"name":"p","hostPort":0},{"name":"p","hostPort":0}]"#), vec!["containers[0].endpoints[1].name"], "again"),
        ("protocol", container(r#""endpoints":[{"name":"p","hostPort":0,"protocol":["sctp"]}]"#), vec!["containers[0].endpoints[0].protocol[0]"], "tcp, udp"),
        ("host and container, and a port for either", container(r#""endpoints":[{"name":"p","containerPort":80,"hostPort":0}]"#).replace(r#""id""#, r#""networks":[{"mode":"host","name":"a"},{}],"id""#), vec!["networks", "networks[0].name", "containers[0].endpoints[0].containerPort"], "host mode"),
        ("an unreadable mode and a port for either", container(r#""endpoints":[{"name":"p","containerPort":80,"hostPort":0}]"#).replace(r#""id""#, r#""networks":[{"mode":1}],"id""#), vec!["networks[0].mode"], "a string"),
        ("settings that are a list", pod(r#""agentd":[]"#), vec!["agentd"], "an object"),
        ("protocol that is text", container(r#""endpoints":[{"name":"p","hostPort":0,"protocol":"tcp"}]"#), vec!["containers[0].endpoints[0].protocol"], "a list"),
        ("protocol twice", container(r#""endpoints":[{"name":"p","hostPort":0,"protocol":["tcp","tcp"]}]"#), vec!["containers[0].endpoints[0].protocol[1]"], "more than once"),
        // Volumes.
        ("volume twice", volumes(r#"{"name":"v"},{"name":"v"}"#, r#"{"name":"v","mountPath":"/v"}"#), vec!["volumes[1].name"], "again"),
        ("volume that nobody mounts", volumes(r#"{"name":"v"}"#, ""), vec!["volumes[0].name"], "mount it"),
        ("mount of no volume", volumes("", r#"{"name":"v","mountPath":"/v"}"#), vec!["containers[0].volumeMounts[0].name"], "declare it"),
        ("mount without name", volumes(r#"{"name":"v"}"#, r#"{"mountPath":"/v"}"#), vec!["containers[0].volumeMounts[0].name"], "missing"),
        ("mount without path", volumes(r#"{"name":"v"}"#, r#"{"name":"v"}"#), vec!["containers[0].volumeMounts[0].mountPath"], "missing"),
        ("mount over the root", volumes(r#"{"name":"v"}"#, r#"{"name":"v","mountPath":"//."}"#), vec!["containers[0].volumeMounts[0].mountPath"], "below `/`"),
        ("mount over /proc", volumes(r#"{"name":"v"}"#, r#"{"name":"v","mountPath":"/./proc"}"#), vec!["containers[0].volumeMounts[0].mountPath"], "/proc"),
        ("mount below /sys", volumes(r#"{"name":"v"}"#, r#"{"name":"v","mountPath":"/sys/fs/cgroup"}"#), vec!["containers[0].volumeMounts[0].mountPath"], "/sys"),
        ("mount below /dev", volumes(r#"{"name":"v"}"#, r#"{"name":"v","mountPath":"/dev/shm"}"#), vec!["containers[0].volumeMounts[0].mountPath"], "/dev"),
        ("mount path that leads up", volumes(r#"{"name":"v"}"#, r#"{"name":"v","mountPath":"/a/../proc"}"#), vec!["containers[0].volumeMounts[0].mountPath"], ".."),
        ("mount path too long", volumes(r#"{"name":"v"}"#, &format!(r#"{{"name":"v","mountPath":"/{}"}}"#, "x".repeat(1024))), vec!["containers[0].volumeMounts[0].mountPath"], "1024"),
        ("mount path twice", volumes(r#"{"name":"v"}"#, r#"{"name":"v","mountPath":"/v"},{"name":"v","mountPath":"//v/."}"#), vec!["containers[0].volumeMounts[1].mountPath"], "that of containers[0].volumeMounts[0].mountPath"),
        ("sub path that leads up", volumes(r#"{"name":"v"}"#, r#"{"name":"v","mountPath":"/v","agentd":{"subPath":"../x"}}"#), vec!["containers[0].volumeMounts[0].agentd.subPath"], "relative"),
        ("relative host path", volumes(r#"{"name":"v","host":"data"}"#, r#"{"name":"v","mountPath":"/v"}"#), vec!["volumes[0].host"], "absolute"),
        ("host in memory", volumes(r#"{"name":"v","host":"/d","agentd":{"tmpfsMib":1}}"#, r#"{"name":"v","mountPath":"/v"}"#), vec!["volumes[0].agentd.tmpfsMib"], "`host`"),
        ("host of secrets", volumes(r#"{"name":"v","host":"/d","agentd":{"secrets":{"f":"s"}}}"#, r#"{"name":"v","mountPath":"/v"}"#), vec!["volumes[0].agentd.secrets"], "`host`"),
        ("secrets in sized memory", volumes(r#"{"name":"v","agentd":{"tmpfsMib":1,"secrets":{"f":"s"}}}"#, r#"{"name":"v","mountPath":"/v"}"#), vec!["volumes[0].agentd.tmpfsMib"], "sized"),
        ("file of an unknown secret", volumes(r#"{"name":"v","agentd":{"secrets":{"f":"t"}}}"#, r#"{"name":"v","mountPath":"/v"}"#), vec!["volumes[0].agentd.secrets.f"], "no secret"),
        ("secret in a folder", volumes(r#"{"name":"v","agentd":{"secrets":{"a/f":"s"}}}"#, r#"{"name":"v","mountPath":"/v"}"#), vec![r#"volumes[0].agentd.secrets["a/f"]"#], "slash"),
        ("volume in memory of no size", volumes(r#"{"name":"v","agentd":{"tmpfsMib":0}}"#, r#"{"name":"v","mountPath":"/v"}"#), vec!["volumes[0].agentd.tmpfsMib"], "1 or more"),
        ("a volume of too many kinds", volumes(r#"{"name":"v","host":"/d","agentd":{"tmpfsMib":1,"secrets":{"f":"s"}}}"#, r#"{"name":"v","mountPath":"/v"}"#), vec!["volumes[0].agentd.tmpfsMib", "volumes[0].agentd.tmpfsMib", "volumes[0].agentd.secrets"], "sized"),
        ("mounts that are unreadable", container(r#""volumeMounts":{}"#).replace(r#""id""#, r#""volumes":[{"name":"v"}],"id""#), vec!["containers[0].volumeMounts"], "a list"),
        ("a volume without name", volumes("{}", r#"{"name":"v","mountPath":"/v"}"#), vec!["volumes[0].name"], "missing"),
        ("volumes that are unreadable", volumes("", r#"{"name":"v","mountPath":"/v"}"#).replace(r#""volumes":[]"#, r#""volumes":{}"#), vec!["volumes"], "a list"),
        // Containers.
        ("no containers", r#"{"id":"/a","containers":[]}"#.into(), vec!["containers"], "at least one"),
        ("containers without end", format!(r#"{{"id":"/a","containers":[{}0]}}"#, "0,".repeat(10_000)), vec!["containers"], "10000 or less"),
        ("a container that is text", r#"{"id":"/a","containers":["a"]}"#.into(), vec!["containers[0]"], "expected an object"),
        ("an empty container", r#"{"id":"/a","containers":[{}]}"#.into(), vec!["containers[0].name", "containers[0].resources", "containers[0].exec"], "missing"),
        ("neither image nor command", bare(r#""resources":{}"#), vec!["containers[0].exec"], "give `image` or `exec.command`"),
        ("container name", container(r#""user":"a""#).replace(r#""name":"a""#, r#""name":"A_""#), vec!["containers[0].name"], "lower-case"),
        ("container name twice", ordered(&[&[], &[]]).replace(r#""name":"b""#, r#""name":"a""#), vec!["containers[1].name"], "only once among the containers"),
        ("no resources", bare(EXEC), vec!["containers[0].resources"], "missing"),
        ("too little of everything", bare(&format!(r#""resources":{{"cpus":0,"mem":0,"disk":-1,"gpus":-1}},{EXEC}"#)), vec!["containers[0].resources.cpus", "containers[0].resources.mem", "containers[0].resources.disk", "containers[0].resources.gpus"], "0.001 or more"),
        ("cpus as text", bare(&format!(r#""resources":{{"cpus":"1"}},{EXEC}"#)), vec!["containers[0].resources.cpus"], "found the string \"1\", expected a number"),
        ("absurd memory", bare(&format!(r#""resources":{{"mem":1e300}},{EXEC}"#)), vec!["containers[0].resources.mem"], "or less"),
        ("part of a GPU as resource", bare(&format!(r#""resources":{{"gpus":0.5}},{EXEC}"#)), vec!["containers[0].resources.gpus"], "whole"),
        ("a slip in resources", bare(&format!(r#""resources":{{"memory":64}},{EXEC}"#)), vec!["containers[0].resources.memory"], "known here: cpus, mem"),
        ("no command", bare(r#""resources":{},"exec":{}"#), vec!["containers[0].exec.command"], "missing"),
        ("shell and argv", bare(r#""resources":{},"exec":{"command":{"shell":"a","argv":["b"]}}"#), vec!["containers[0].exec.command"], "exactly one"),
        ("neither shell nor argv", bare(r#""resources":{},"exec":{"command":{}}"#), vec!["containers[0].exec.command"], "exactly one"),
        ("command as text", bare(r#""resources":{},"exec":{"command":"true"}"#), vec!["containers[0].exec.command"], "an object"),
        ("empty shell command", bare(r#""resources":{},"exec":{"command":{"shell":""}}"#), vec!["containers[0].exec.command.shell"], "at least one"),
        ("empty argv", bare(r#""resources":{},"exec":{"command":{"argv":[]}}"#), vec!["containers[0].exec.command.argv"], "program"),
        ("argv with a number and NUL", bare(r#""resources":{},"exec":{"command":{"argv":["a",1,"\u0000"]}}"#), vec!["containers[0].exec.command.argv[1]", "containers[0].exec.command.argv[2]"], "NUL"),
        ("shell with the entrypoint kept", bare(r#""resources":{},"exec":{"command":{"shell":"a"},"overrideEntrypoint":false}"#), vec!["containers[0].exec.overrideEntrypoint"], "argv"),
        ("image kind", bare(r#""resources":{},"image":{"kind":"APPC","id":"a"}"#), vec!["containers[0].image.kind"], "DOCKER, OCI"),
        ("image without id", bare(r#""resources":{},"image":{"kind":"DOCKER"}"#), vec!["containers[0].image.id"], "missing"),
        ("image with an empty id", bare(r#""resources":{},"image":{"kind":"DOCKER","id":""}"#), vec!["containers[0].image.id"], "1 to 1024"),
        ("layout without a path", bare(r#""resources":{},"image":{"kind":"OCI","id":"nginx"}"#), vec!["containers[0].image.id"], "layout"),
        ("container environment", container(r#""environment":{"A-B":"x","C":{"secret":"nope"}}"#), vec!["containers[0].environment.A-B", "containers[0].environment.C.secret"], "no secret"),
        ("negative grace", container(r#""lifecycle":{"killGracePeriodSeconds":-1}"#), vec!["containers[0].lifecycle.killGracePeriodSeconds"], "0 or more"),
        ("artifact without uri", container(r#""artifacts":[{}]"#), vec!["containers[0].artifacts[0].uri"], "missing"),
        ("artifact by ftp", container(r#""artifacts":[{"uri":"ftp://h/x"}]"#), vec!["containers[0].artifacts[0].uri"], "http"),
        ("artifact outside of the sandbox", container(r#""artifacts":[{"uri":"http://h/x","destPath":"/etc/x"},{"uri":"http://h/x","destPath":"a/../../x"}]"#), vec!["containers[0].artifacts[0].destPath", "containers[0].artifacts[1].destPath"], "relative"),
        ("artifact without a name", container(r#""artifacts":[{"uri":"http://h/"}]"#), vec!["containers[0].artifacts[0].destPath"], "file name"),
        // Health checks.
        ("no kind of check", networked(r#""healthCheck":{}"#), vec!["containers[0].healthCheck"], "found 0 kinds"),
        ("two kinds of check", networked(r#""healthCheck":{"tcp":{"endpoint":"p"},"http":{"endpoint":"p"}}"#), vec!["containers[0].healthCheck"], "found 2 kinds"),
        ("check of no endpoint", networked(r#""healthCheck":{"http":{"endpoint":"q"}}"#), vec!["containers[0].healthCheck.http.endpoint"], "no endpoint named \"q\""),
        ("two kinds of check and a slip in one", networked(r#""healthCheck":{"tcp":{"endpoint":"p"},"http":{"endpoint":"p","paht":"/"}}"#), vec!["containers[0].healthCheck", "containers[0].healthCheck.http.paht"], "found 2 kinds"),
        ("check of an unreadable endpoint", container(r#""endpoints":[{"hostPort":0}],"healthCheck":{"tcp":{"endpoint":"p"}}"#), vec!["containers[0].endpoints[0].name"], "missing"),
        ("check with an unreadable interval", networked(r#""healthCheck":{"tcp":{"endpoint":"p"},"intervalSeconds":"1","timeoutSeconds":100}"#), vec!["containers[0].healthCheck.intervalSeconds"], "a number"),
        ("check of UDP", networked(r#""healthCheck":{"tcp":{"endpoint":"u"}}"#), vec!["containers[0].healthCheck.tcp.endpoint"], "UDP"),
        ("timeout not below interval", networked(r#""healthCheck":{"tcp":{"endpoint":"p"},"intervalSeconds":10}"#), vec!["containers[0].healthCheck.timeoutSeconds"], "less than intervalSeconds"),
        ("interval of nothing", networked(r#""healthCheck":{"tcp":{"endpoint":"p"},"intervalSeconds":0}"#), vec!["containers[0].healthCheck.intervalSeconds"], "0.001 or more"),
        ("check path", networked(r#""healthCheck":{"http":{"endpoint":"p","path":"x","scheme":"http"}}"#), vec!["containers[0].healthCheck.http.path", "containers[0].healthCheck.http.scheme"], "did you mean `HTTP`?"),
        ("check without command", networked(r#""healthCheck":{"exec":{}}"#), vec!["containers[0].healthCheck.exec.command"], "missing"),
        // agentd's settings of a container.
        ("after itself", ordered(&[&["a"]]), vec!["containers[0].agentd.startAfter[0]"], "itself"),
        ("after one of its peers twice", ordered(&[&["b", "b"], &[]]), vec!["containers[0].agentd.startAfter[1]"], "only once"),
        ("after nobody", ordered(&[&["z", "b", "y"], &[]]), vec!["containers[0].agentd.startAfter[0]", "containers[0].agentd.startAfter[2]"], "no container named \"z\""),
        ("in a circle", ordered(&[&[], &["d"], &["b", "a"], &["c"]]), vec!["containers[1].agentd.startAfter"], "(b → d → c → b)"),
        ("in two circles", ordered(&[&["b"], &["a"], &["d"], &["c"], &["a", "c"]]), vec!["containers[0].agentd.startAfter", "containers[2].agentd.startAfter"], "(c → d → c)"),
        ("parts of exclusive cores", bare(&format!(r#""resources":{{"cpus":1.5}},{EXEC},"agentd":{{"exclusiveCores":true}}"#)), vec!["containers[0].agentd.exclusiveCores"], "whole number"),
        ("unknown capability", agentd(r#""capabilities":{"add":["NET_RAWW"],"drop":["CAP_ALL_OF_THEM"]}"#), vec!["containers[0].agentd.capabilities.add[0]", "containers[0].agentd.capabilities.drop[0]"], "did you mean `NET_RAW`?"),
        ("all capabilities", agentd(r#""capabilities":{"add":["ALL"]}"#), vec!["containers[0].agentd.capabilities.add[0]"], "only be dropped"),
        ("a capability by both its names", agentd(r#""capabilities":{"add":["CHOWN","CAP_CHOWN"]}"#), vec!["containers[0].agentd.capabilities.add[1]"], "more than once"),
        ("seccomp word", agentd(r#""seccomp":"none""#), vec!["containers[0].agentd.seccomp"], "unconfined"),
        ("seccomp number", agentd(r#""seccomp":1"#), vec!["containers[0].agentd.seccomp"], "a string"),
        ("seccomp path", agentd(r#""seccomp":{"profile":"../x"}"#), vec!["containers[0].agentd.seccomp.profile"], "without a slash"),
        ("unknown limit", agentd(r#""rlimits":{"RLIMIT_NOFILE":[1,1]}"#), vec!["containers[0].agentd.rlimits.RLIMIT_NOFILE"], "did you mean `nofile`?"),
        ("soft above hard", agentd(r#""rlimits":{"nofile":[2,1],"core":[-1,5]}"#), vec!["containers[0].agentd.rlimits.nofile", "containers[0].agentd.rlimits.core"], "above the hard limit"),
        ("one value of a limit", agentd(r#""rlimits":{"nofile":[2],"core":3,"cpu":[-2,1]}"#), vec!["containers[0].agentd.rlimits.nofile", "containers[0].agentd.rlimits.core", "containers[0].agentd.rlimits.cpu[0]"], "two: [soft, hard]"),
        ("size of huge pages", agentd(r#""hugepages":{"4KB":1}"#), vec!["containers[0].agentd.hugepages.4KB"], "2MB"),
        ("part of a huge page", agentd(r#""hugepages":{"1GB":1000,"2MB":3}"#), vec!["containers[0].agentd.hugepages.1GB", "containers[0].agentd.hugepages.2MB"], "multiple of 1024"),
        ("I/O weight", agentd(r#""io":{"weight":10001}"#), vec!["containers[0].agentd.io.weight"], "10000 or less"),
        ("device outside of /dev", agentd(r#""io":{"limits":[{"device":"/dev/../etc","readBps":1}]}"#), vec!["containers[0].agentd.io.limits[0].device"], "below /dev"),
        ("limits that limit nothing", agentd(r#""io":{"limits":[{"device":"/dev/vda"}]}"#), vec!["containers[0].agentd.io.limits[0]"], "at least one of `readBps`"),
        ("a device twice", agentd(r#""io":{"limits":[{"device":"/dev/vda","readBps":1},{"device":"/dev/vda","writeBps":1}]}"#), vec!["containers[0].agentd.io.limits[1].device"], "again"),
        ("a whole GPU as share", agentd(r#""gpu":{"share":1}"#), vec!["containers[0].agentd.gpu.share"], "below 1"),
        ("no part of a GPU", agentd(r#""gpu":{"share":0}"#), vec!["containers[0].agentd.gpu.share"], "above 0"),
        ("share and whole GPUs", bare(&format!(r#""resources":{{"gpus":1}},{EXEC},"agentd":{{"gpu":{{"share":0.5}}}}"#)), vec!["containers[0].agentd.gpu.share"], "whole ones"),
        ("memory protected above the limit", agentd(r#""memory":{"low":129}"#), vec!["containers[0].agentd.memory.low"], "resources.mem"),
        ("memory low above high", agentd(r#""memory":{"low":100,"high":50}"#), vec!["containers[0].agentd.memory.low"], "memory.high"),
        ("no processes", agentd(r#""pids":0"#), vec!["containers[0].agentd.pids"], "1 or more"),
        ("relative workdir", agentd(r#""workdir":"srv""#), vec!["containers[0].agentd.workdir"], "absolute"),
        ("negative limit and burst", agentd(r#""cpu":{"limit":-1,"burstMs":-1}"#), vec!["containers[0].agentd.cpu.limit", "containers[0].agentd.cpu.burstMs"], "0 or more"),
        ("no log", agentd(r#""log":{"maxBytes":0}"#), vec!["containers[0].agentd.log.maxBytes"], "1 or more"),
    ]
}

#[test]
fn each_is_refused_at_its_path() {
    let table = table();
    assert!(table.len() >= 60);
    let mut failures = Vec::new();
    for (name, json, paths, word) in table {
        let violations = refused(name, json.as_bytes());
        let mut found: Vec<_> = violations.iter().map(|violation| violation.path.as_str()).collect();
        let mut expected = paths;
        found.sort_unstable();
        expected.sort_unstable();
        let said = violations.iter().any(|violation| violation.message.contains(word));
        if found != expected || !said {
            failures.push(format!("{name}: expected {expected:?} and {word:?}, found {violations:#?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn names_in_the_table_are_distinct() {
    let table = table();
    let names: BTreeSet<_> = table.iter().map(|entry| entry.0).collect();
    assert_eq!(names.len(), table.len());
}

#[test]
fn ten_faults_are_reported_at_once() {
    let json = r#"{
        "id": "shop",
        "environment": {"FOO": 1},
        "networks": [{"mode": "host", "name": "front"}],
        "volumes": [{"name": "unused"}],
        "scaling": {"instances": -2},
        "agentd": {"restrat": "never"},
        "containers": [
            {
                "name": "web",
                "resources": {"cpus": "two"},
                "endpoints": [{"name": "http", "containerPort": 80, "hostPort": 80}],
                "healthCheck": {"tcp": {"endpoint": "https"}}
            }
        ]
    }"#;
    let violations = refused("ten", json.as_bytes());
    let found: BTreeSet<_> = violations.iter().map(|violation| violation.path.as_str()).collect();
    let expected = BTreeSet::from([
        "id",
        "environment.FOO",
        "networks[0].name",
        "volumes[0].name",
        "scaling.instances",
        "agentd.restrat",
        "containers[0].resources.cpus",
        "containers[0].endpoints[0].containerPort",
        "containers[0].healthCheck.tcp.endpoint",
        "containers[0].exec",
    ]);
    assert_eq!(found, expected);
    assert_eq!(violations.len(), 10);
}

#[test]
fn a_flood_of_faults_is_counted_not_listed() {
    let entries: Vec<_> = (0..50_000).map(|index| format!(r#""x{index}":0"#)).collect();
    let violations = refused("flood", pod(&entries.join(",")).as_bytes());
    assert_eq!(violations.len(), MAX_VIOLATIONS + 1);
    let last = violations.last().unwrap();
    assert!(last.message.contains(&format!("{} more", 50_000 - MAX_VIOLATIONS)), "{last}");
}

#[test]
fn the_talks_example_is_refused_for_its_second_container() {
    let json = r#"{"id":"/app",
     "containers":[
      {"name":"nginx","resources":{"cpus":0.1,"mem":128},
       "endpoints":[{"name":"web","containerPort":8080,"hostPort":0,"protocol":["tcp"],"labels":{"VIP_0":"/app:8080"}}],
       "image":{"id":"nginx","kind":"DOCKER"}},
      {"name":"memcached","resources":{"cpus":0.1,"mem":128}}],
     "scaling":{"kind":"fixed","instances":1},
     "networks":[{"name":"dcos","mode":"container"}]}"#;
    let violations = refused("talk", json.as_bytes());
    assert_eq!(violations.len(), 1);
    assert_eq!(violations[0].path, "containers[1].exec");
}
