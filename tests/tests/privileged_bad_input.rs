//! Bad input of every kind: each is answered by a refusal that names the field, and nothing of it touches the host.

use std::process::{Command, Output};

use agentd_tests::{Client, Daemon, Response, binary, pods, privileged, wire};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct BadPod {
    name: String,
    body: String,
    paths: Vec<String>,
    says: String,
}

#[derive(Deserialize)]
struct BadCall {
    name: String,
    method: String,
    path: String,
    #[serde(default)]
    headers: Vec<String>,
    #[serde(default)]
    body: String,
    status: u16,
    field: Option<String>,
    says: String,
}

/// Fields that a refusal names.
fn fields(response: &Response) -> Vec<String> {
    let errors = response.json["errors"].as_array().cloned().unwrap_or_default();
    errors.iter().map(|error| error["path"].as_str().unwrap_or("?").to_owned()).collect()
}

/// What is wrong with the form of a refusal, if something is.
fn misshapen(response: &Response) -> Option<String> {
    let detail = response.json["detail"].as_str().unwrap_or_default();
    let kind = response.json["type"].as_str().unwrap_or_default();
    let told = response.json["status"].as_u64();
    if detail.is_empty() || detail.contains('\n') || kind.is_empty() || told != Some(u64::from(response.status)) {
        return Some(format!("no problem details: {} {}", response.status, response.text));
    }
    None
}

#[test]
fn malformed_pods_and_calls_are_refused_by_field_and_change_nothing() {
    privileged!();
    let mut daemon = Daemon::start();
    let client = daemon.client();
    client.run_pod(&pods::sleeper("/bystander"));
    let pid = client.container("/bystander", "main").pid;
    let before = daemon.snapshot();
    let mut failures = Vec::new();

    let cases: Vec<BadPod> = serde_json::from_str(include_str!("data/malformed-pods.json")).unwrap();
    assert!(cases.len() >= 40, "{} pods", cases.len());
    for case in &cases {
        let bytes = wire::request("POST", "/v1/pods", &["content-type: application/json"], &case.body);
        let answer = wire::exchange(&daemon.socket(), &bytes).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let (mut found, mut wanted) = (fields(&answer), case.paths.clone());
        found.sort();
        wanted.sort();
        let refused = (400..500).contains(&answer.status) && misshapen(&answer).is_none();
        if !refused || found != wanted || !answer.text.contains(&case.says.replace('"', "\\\"")) {
            failures.push(format!("{}: {} {}", case.name, answer.status, answer.text));
        }
    }

    let cases: Vec<BadCall> = serde_json::from_str(include_str!("data/malformed-calls.json")).unwrap();
    assert!(cases.len() >= 40, "{} calls", cases.len());
    for case in &cases {
        let mut headers: Vec<&str> = case.headers.iter().map(String::as_str).collect();
        if !case.body.is_empty() && headers.iter().all(|header| !header.starts_with("content-type")) {
            headers.push("content-type: application/json");
        }
        let bytes = wire::request(&case.method, &case.path, &headers, &case.body);
        let answer = wire::exchange(&daemon.socket(), &bytes).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let named = case.field.as_ref().is_none_or(|field| fields(&answer).contains(field));
        let wrong = misshapen(&answer).is_some();
        if answer.status != case.status || !named || wrong || !answer.text.contains(&case.says) {
            failures.push(format!("{}: {} {}", case.name, answer.status, answer.text));
        }
    }

    // what is not even HTTP, is cut short or far too large
    let large = format!(r#"{{"id":"/a","labels":{{"x":"{}"}}}}"#, "x".repeat(2 << 20));
    // sent whole and answered: a client that hangs up before the answer counts as gone, and may get none
    match wire::exchange(&daemon.socket(), &wire::request("POST", "/v1/pods", &[], &large)) {
        Ok(answer) if answer.status == 413 => {}
        other => failures.push(format!("a body that is too large: {other:?}")),
    }
    let heads: [(&str, Vec<u8>, &[u16]); 4] = [
        ("noise", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(), &[400]),
        ("a header without end", [b"GET / HTTP/1.1\r\nx: ".as_slice(), &vec![b'x'; 1 << 20]].concat(), &[431, 400]),
        ("a body cut short", b"POST /v1/pods HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{".to_vec(), &[400]),
        (
            "two lengths",
            b"POST /v1/pods HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}".to_vec(),
            &[400],
        ),
    ];
    for (name, bytes, statuses) in heads {
        match wire::break_off(&daemon.socket(), &bytes) {
            Ok(answer) if statuses.contains(&answer.status) => {}
            // a server may hang up on what is no request
            Err(_) if name == "noise" || name.starts_with("a header") || name == "a body cut short" => {}
            other => failures.push(format!("{name}: {other:?}")),
        }
    }
    assert!(failures.is_empty(), "{} answers are not as they should be:\n{}", failures.len(), failures.join("\n"));

    assert_eq!(client.get("/v1/pods").json.as_array().map(Vec::len), Some(1), "a refused pod is listed");
    before.assert_same();
    assert!(daemon.alive());
    assert_eq!(client.container("/bystander", "main").pid, pid);
    assert_eq!(client.run_to_end(&pods::shell("/after", "echo fine")).1, "fine\n");
}

/// Pods that are well formed, but ask for what this host cannot do: each is refused by the field.
#[test]
fn what_the_host_cannot_honour_is_refused_by_name() {
    privileged!();
    let mut daemon = Daemon::start();
    let client = daemon.client();
    let before = daemon.snapshot();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut pod = pods::shell("/asks", "true");
        change(&mut pod);
        pod
    };
    let constraint = |fields: Value| {
        move |pod: &mut Value| pod["scheduling"] = json!({"placement": {"constraints": [fields.clone()]}})
    };
    let volume = |host: String| {
        move |pod: &mut Value| {
            pod["volumes"] = json!([{"name": "v", "host": host}]);
            pod["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        }
    };
    let own = daemon.state().join("specs").display().to_string();
    let mut cases: Vec<(Value, &str, &str)> = vec![
        (with(&|pod| pod["containers"][0]["resources"]["gpus"] = json!(1)), "containers[0].resources.gpus", "GPU"),
        (
            with(&|pod| pod["containers"][0]["agentd"] = json!({"gpu": {"share": 0.5}})),
            "containers[0].agentd.gpu.share",
            "GPU",
        ),
        (
            with(&constraint(json!({"fieldName": "hostname", "operator": "CLUSTER", "value": "elsewhere"}))),
            "scheduling.placement.constraints[0].value",
            "elsewhere",
        ),
        (
            with(&constraint(json!({"fieldName": "rack", "operator": "GROUP_BY"}))),
            "scheduling.placement.constraints[0].fieldName",
            "rack",
        ),
        (
            with(&|pod| {
                pod["scaling"] = json!({"instances": 2});
                constraint(json!({"fieldName": "hostname", "operator": "UNIQUE"}))(pod);
            }),
            "scheduling.placement.constraints[0].operator",
            "instances",
        ),
        (
            with(&|pod| pod["scheduling"] = json!({"placement": {"acceptedResourceRoles": ["slave_public"]}})),
            "scheduling.placement.acceptedResourceRoles[0]",
            "slave_public",
        ),
        (
            with(&|pod| pod["containers"][0]["agentd"] = json!({"seccomp": {"profile": "none.json"}})),
            "containers[0].agentd.seccomp.profile",
            "none.json",
        ),
        (
            with(&|pod| {
                pod["containers"][0]["agentd"] = json!({"io": {"limits": [{"device": "/dev/none", "readBps": 1}]}});
            }),
            "containers[0].agentd.io.limits[0].device",
            "/dev/none",
        ),
        (
            with(&|pod| pod["containers"][0]["agentd"] = json!({"rlimits": {"nofile": [-1, -1]}})),
            "containers[0].agentd.rlimits.nofile",
            "nofile",
        ),
        (with(&volume("/proc".to_owned())), "volumes[0].host", "/proc"),
        (with(&volume(own.clone())), "volumes[0].host", &own),
        (
            with(&|pod| {
                pod["networks"] = json!([{"name": "no-such-network"}]);
                pod["agentd"]["isolatedNetwork"] = json!(false);
            }),
            "networks[0].name",
            "no-such-network",
        ),
    ];
    let node = client.get("/v1/node").json;
    if node["cgroups"] != "v2" {
        let high = with(&|pod| pod["containers"][0]["agentd"] = json!({"memory": {"high": 32}}));
        cases.push((high, "containers[0].agentd.memory.high", "high"));
    }
    let mut failures = Vec::new();
    for (pod, field, says) in &cases {
        let answer = client.post("/v1/pods", pod);
        let refused = (400..500).contains(&answer.status) && misshapen(&answer).is_none();
        if !refused || fields(&answer) != [*field] || !answer.text.contains(says) {
            failures.push(format!("{field}: {} {}", answer.status, answer.text));
        }
    }
    assert!(failures.is_empty(), "{} answers are not as they should be:\n{}", failures.len(), failures.join("\n"));

    // what holds on one host is not in the way
    let mut content = with(&constraint(json!({"fieldName": "hostname", "operator": "MAX_PER", "value": "1"})));
    content["scheduling"]["placement"]["acceptedResourceRoles"] = json!(["*"]);
    content["scheduling"]["unreachableStrategy"] = json!("disabled");
    client.run_to_end(&content);
    before.assert_same();
    assert!(daemon.alive());
}

fn agentd(verb: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("agentd"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AGENTD_")) {
        command.env_remove(name);
    }
    command.arg(verb).args(arguments).output().expect("agentd can be run")
}

/// Each line of a wrong configuration is named by file, line and field, by `check-config` and by `run`, with exit code 2.
#[test]
fn malformed_configurations_end_the_daemon_before_it_touches_the_host() {
    let cases: &[(&str, usize, &str)] = &[
        ("instance = \"Big\"", 1, "instance"),
        ("hostname = \"a..b\"", 1, "hostname"),
        ("[netwrok]\nmtu = 1500", 1, "netwrok"),
        ("[network]\nmut = 1500", 2, "network.mut"),
        ("[network]\nmtu = \"big\"", 2, "network.mtu"),
        ("[network]\nsubnet = \"10.0.0.1/24\"", 2, "network.subnet"),
        ("[network]\nport_range = \"9-1\"", 2, "network.port_range"),
        ("[network]\ndns_servers = [\"192.0.2.1\",\n\"x\"]", 3, "network.dns_servers[1]"),
        ("[paths]\nstate = \"state\"", 2, "paths.state"),
        ("[paths]\nrun = \"/a\"\nstate = \"/a\"", 3, "paths.state"),
        ("[reserved]\ncpus = nan", 2, "reserved.cpus"),
        ("[resources]\nmemory_mib = 1", 2, "resources.memory_mib"),
        ("[pods]\npool_size = 100", 2, "pods.pool_size"),
        ("[pods]\ndisk_enforcement = \"qouta\"", 2, "pods.disk_enforcement"),
        ("[host_files]\netc = [\"shadow\"]", 2, "host_files.etc[0]"),
        ("[images]\nlow_watermark = 90", 2, "images.low_watermark"),
        ("[[images.registry]]\nmirrors = []", 1, "images.registry[0].host"),
        ("[logs]\nlevel = \"inof\"", 2, "logs.level"),
        ("[api]\nsocket_mode = \"0666\"", 2, "api.socket_mode"),
        ("[api\nx = 1", 1, ""),
    ];
    let folder = tempfile::Builder::new().prefix("agentd-test-config-").tempdir().unwrap();
    let file = folder.path().join("agentd.toml");
    let name = file.to_str().unwrap();
    for (text, line, field) in cases {
        std::fs::write(&file, text).unwrap();
        for verb in ["check-config", "run"] {
            let output = agentd(verb, &["--dev", folder.path().to_str().unwrap()]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let named = said.lines().any(|told| told.starts_with(&format!("{name}:{line}:")) && told.contains(field));
            assert!(named && output.status.code() == Some(2), "{verb} of {text:?}: {:?}\n{said}", output.status);
        }
    }
    std::fs::write(&file, "").unwrap();
    let dev = folder.path().to_str().unwrap();
    for (arguments, field) in [
        (vec!["--set", "network.mtu=big"], "network.mtu"),
        (vec!["--set", "nothing"], "nothing"),
        (vec!["--set", "pods.pool=1"], "pods.pool"),
        (vec!["--instance", "Big"], "instance"),
        (vec!["--config", "/nowhere/agentd.toml"], "/nowhere/agentd.toml"),
        (vec!["--colour"], "--colour"),
    ] {
        for verb in ["check-config", "run"] {
            let output = agentd(verb, &[&["--dev", dev], arguments.as_slice()].concat());
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(
                output.status.code() == Some(2) && said.contains(field),
                "{verb} {arguments:?}: {:?}\n{said}",
                output.status
            );
        }
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["agentd.toml"], "a refused configuration has left something");
}

fn agentctl(daemon: &Daemon, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("agentctl"));
    command.arg("--socket").arg(daemon.socket()).args(arguments).env_remove("AGENTD_SOCKET");
    command.output().expect("agentctl can be run")
}

#[test]
fn agentctl_refuses_wrong_use_with_exit_code_2() {
    privileged!();
    let mut daemon = Daemon::start();
    let client: Client = daemon.client();
    let before = daemon.snapshot();
    let write = |name: &str, text: &str| {
        let path = daemon.dir().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let slip = write(
        "slip.json",
        r#"{"id":"/a","containers":[{"name":"a","exec":{"command":{"shell":"true"}},"resources":{"cpu":1}}]}"#,
    );
    let noise = write("noise.json", "{\"id\": ");
    let gpu = write(
        "gpu.json",
        r#"{"id":"/a","containers":[{"name":"a","exec":{"command":{"shell":"true"}},"resources":{"gpus":1}}]}"#,
    );
    let cases: Vec<(Vec<&str>, &str)> = vec![
        (vec![], "Usage"),
        (vec!["pods"], "pods"),
        (vec!["pod"], "Usage"),
        (vec!["pod", "start", "x"], "start"),
        (vec!["pod", "run"], "<FILE>"),
        (vec!["pod", "run", "/nowhere.json"], "/nowhere.json"),
        (vec!["pod", "run", &slip], "containers[0].resources.cpu"),
        (vec!["pod", "run", &noise], "line 1"),
        (vec!["pod", "run", &gpu], "containers[0].resources.gpus"),
        (vec!["pod", "run", &slip, "--wait", "forever"], "--wait"),
        (vec!["pod", "run", &slip, "--timeout", "soon"], "--timeout"),
        (vec!["pod", "update", &slip], "containers[0].resources.cpu"),
        (vec!["pod", "rm"], "<ID>"),
        (vec!["pod", "wait", "/a", "--until", "happy"], "--until"),
        (vec!["pod", "wait", "/a", "--timeout=-1"], "--timeout"),
        (vec!["logs"], "<POD>"),
        (vec!["logs", "/a", "--tail", "many"], "--tail"),
        (vec!["logs", "/a", "--stream", "stdlog"], "--stream"),
        (vec!["events", "--after", "x"], "--after"),
        (vec!["image", "pull", "UPPER/Case"], "reference"),
        (vec!["image", "pull", "/a/path"], "reference"),
        (vec!["image", "import", "/nowhere.tar"], "path"),
        (vec!["--output", "xml", "pod", "ls"], "--output"),
    ];
    for (arguments, says) in &cases {
        let output = agentctl(&daemon, arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains(says), "{arguments:?}: {:?}\n{said}", output.status);
    }
    for arguments in [["pod", "inspect", "/nobody"], ["pod", "rm", "/nobody"], ["pod", "wait", "/nobody"]] {
        let output = agentctl(&daemon, &arguments);
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let absent =
        Command::new(binary("agentctl")).args(["--socket", "/nowhere/agentd.sock", "pod", "ls"]).output().unwrap();
    assert_eq!(absent.status.code(), Some(5), "{}", String::from_utf8_lossy(&absent.stderr));
    for name in [&slip, &noise, &gpu] {
        std::fs::remove_file(name).unwrap();
    }
    assert_eq!(client.get("/v1/pods").text.trim(), "[]");
    before.assert_same();
    assert!(daemon.alive());
}
