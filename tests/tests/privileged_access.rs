//! Who may do what over TCP: certificates, the access list with its verbs, labels and ceilings, pods' way to the daemon's
//! ports.

#![allow(clippy::needless_pass_by_value, reason = "JSON is written down where it is passed")]

mod remote;

use std::fs;
use std::net::Ipv4Addr;

use agentd_tests::{Daemon, arena, eventually, images, pods, privileged};
use remote::{PATIENCE, Pki, Remote, agentctl, connect, free_port, must};
use serde_json::{Value, json};

/// A rule for one principal on all pods.
fn rule(principal: &str, verbs: &str) -> String {
    format!("[[rule]]\nprincipals = [\"{principal}\"]\nverbs = [{verbs}]\n")
}

#[test]
fn only_valid_certificates_of_the_authority_get_in() {
    privileged!();
    let remote = Remote::start(&rule("alice", "\"view\""), |options| options.argument("--log-level").argument("debug"));
    remote.pki.client("alice");
    assert_eq!(remote.get("alice", "/healthz").status, 200);
    assert_eq!(remote.get("alice", "/v1/pods").status, 200);

    let other = Pki::new();
    other.client("alice");
    for name in ["alice.crt", "alice.key"] {
        fs::copy(other.file(name), remote.pki.file(&format!("wrong-{name}"))).unwrap();
    }
    fs::rename(remote.pki.file("wrong-alice.crt"), remote.pki.file("wrong.crt")).unwrap();
    fs::rename(remote.pki.file("wrong-alice.key"), remote.pki.file("wrong.key")).unwrap();
    remote.pki.odd_client("expired", "alice", (2021, 1, 1));
    remote.pki.odd_client("root", "uid:0", (2090, 1, 1));
    remote.pki.odd_client("word", "anonymous", (2090, 1, 1));
    for (client, reason) in [
        (None, "peer sent no certificates"),
        (Some("wrong"), "invalid peer certificate"),
        (Some("expired"), "certificate expired"),
        // a server's certificate is no client's
        (Some("server"), "invalid peer certificate"),
        (Some("root"), "cannot be a principal"),
        (Some("word"), "cannot be a principal"),
    ] {
        let before = remote.daemon.log().matches("a TLS handshake of the API failed").count();
        let answer = remote.try_call(client, "GET", "/healthz", "");
        assert!(answer.is_err(), "{client:?}: {answer:?}");
        let told = eventually(PATIENCE, || {
            let log = remote.daemon.log();
            let told = log.lines().filter(|line| line.contains("a TLS handshake of the API failed"));
            told.skip(before).any(|line| line.contains(reason))
        });
        assert!(told, "{client:?}: expected {reason:?} in\n{}", remote.daemon.log());
    }
    // an old version of TLS
    let (ca, certificate, key) =
        (remote.pki.file("ca.crt"), remote.pki.file("alice.crt"), remote.pki.file("alice.key"));
    assert!(connect(remote.address(), &ca, Some((&certificate, &key)), false).is_err());
    assert_eq!(remote.get("alice", "/healthz").status, 200);
}

#[test]
fn a_principal_does_what_its_verbs_and_labels_allow() {
    privileged!();
    let acl = "[[rule]]\nprincipals = [\"alice\"]\nverbs = [\"view\", \"run\"]\nlabels = { team = \"a\" }\n\
               [[ceiling]]\nprincipals = [\"alice\"]\neverything = true\n\
               [[rule]]\nprincipals = [\"boss\"]\nverbs = [\"admin\"]\n";
    let remote = Remote::start(acl, |options| options);
    for name in ["alice", "bob", "boss"] {
        remote.pki.client(name);
    }
    let client = remote.daemon.client();
    let labelled = |id: &str, team: &str| {
        let mut pod = pods::sleeper(id);
        pod["labels"] = json!({"team": team});
        pod
    };
    client.run_pod(&labelled("/a", "a"));
    client.run_pod(&labelled("/b", "b"));
    let ids = |principal: &str| -> Vec<String> {
        let answer = remote.get(principal, "/v1/pods");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json.as_array().unwrap().iter().map(|pod| pod["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids("alice"), ["/a"]);
    assert_eq!(ids("boss"), ["/a", "/b"]);
    // nothing is the default
    for path in
        ["/v1/pods", "/v1/pods/a", "/v1/node", "/v1/events", "/v1/usage", "/v1/images", "/state", "/v1/sessions"]
    {
        let answer = remote.get("bob", path);
        assert_eq!(answer.status, 403, "{path}: {answer:?}");
    }
    let refused = remote.get("bob", "/v1/pods/a");
    for word in ["bob", "view", "/a", "acl.toml"] {
        assert!(refused.text.contains(word), "{word} in {refused:?}");
    }
    assert_eq!(remote.get("alice", "/v1/pods/a").status, 200);
    assert_eq!(remote.get("alice", "/v1/pods/b").status, 403);
    assert_eq!(remote.get("alice", "/v1/pods/none").status, 404);
    assert_eq!(remote.get("alice", "/v1/pods/a/logs").status, 403);
    let events = remote.get("alice", "/v1/events");
    let of_a = |event: &Value| event["pod"] == "/a";
    let seen = events.json.as_array().unwrap_or_else(|| panic!("{events:?}"));
    assert!(!seen.is_empty() && seen.iter().all(of_a), "{events:?}");
    let usage = remote.get("alice", "/v1/usage");
    assert!(usage.json.as_array().is_some_and(|all| all.iter().all(of_a)), "{usage:?}");

    let exec = json!({"command": ["true"]});
    assert_eq!(remote.call("alice", "POST", "/v1/pods/a/exec", &exec).status, 403);
    for path in ["/v1/pods/a/files?path=/etc/passwd", "/v1/pods/a/port-forward?port=1"] {
        assert_eq!(remote.get("alice", path).status, 403, "{path}");
    }
    assert_eq!(remote.call("alice", "DELETE", "/v1/pods/b", &Value::Null).status, 403);
    assert_eq!(remote.call("alice", "POST", "/v1/images/pull", &json!({"reference": "x"})).status, 403);
    // neither a pod that would not be hers, nor one of hers that would no longer be
    assert_eq!(remote.call("alice", "POST", "/v1/pods", &labelled("/c", "b")).status, 403);
    assert_eq!(remote.call("alice", "PUT", "/v1/pods/a", &labelled("/a", "b")).status, 403);
    let made = remote.call("alice", "POST", "/v1/pods?wait=running", &labelled("/c", "a"));
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(remote.call("alice", "DELETE", "/v1/pods/c", &Value::Null).status, 204);

    // the list is read again: what is taken away is gone at once, also on the host's Unix socket for others than root
    fs::write(remote.pki.file("acl.toml"), rule("bob", "\"view\"")).unwrap();
    assert!(eventually(PATIENCE, || remote.get("bob", "/v1/pods").status == 200));
    assert_eq!(remote.get("alice", "/v1/pods").status, 403);
    fs::write(remote.pki.file("acl.toml"), "[[rule]]\nprincipals = [").unwrap();
    assert!(eventually(PATIENCE, || {
        remote.get("bob", "/healthz");
        !remote.events("acl-reload-failed").is_empty()
    }));
    assert_eq!(remote.get("bob", "/v1/pods").status, 200, "the last good list stays in use");
    for id in ["/a", "/b"] {
        client.rm(id);
    }
}

#[test]
fn figures_events_and_profiles_are_for_those_who_may_see_their_pod() {
    privileged!();
    let on_a = |principal: &str, verbs: &str| {
        format!("[[rule]]\nprincipals = [\"{principal}\"]\nverbs = [{verbs}]\nlabels = {{ team = \"a\" }}\n")
    };
    let acl = [
        on_a("viewer", "\"view\""),
        on_a("reader", "\"view\", \"logs\""),
        on_a("worker", "\"view\", \"logs\", \"exec\""),
        rule("boss", "\"admin\""),
        "[[ceiling]]\nprincipals = [\"worker\"]\neverything = true\n".to_owned(),
    ];
    let remote = Remote::start(&acl.concat(), |options| options);
    for name in ["viewer", "reader", "worker", "boss", "nobody"] {
        remote.pki.client(name);
    }
    let client = remote.daemon.client();
    for team in ["a", "b"] {
        let mut pod = pods::sleeper(&format!("/{team}"));
        pod["labels"] = json!({"team": team});
        client.run_pod(&pod);
    }
    let status = |principal: &str, path: &str| remote.get(principal, path).status;
    // of all pods and the host at once
    for path in ["/metrics", "/v1/observe"] {
        assert_eq!(["boss", "viewer", "nobody"].map(|who| status(who, path)), [200, 403, 403], "{path}");
    }
    let pods_told = |principal: &str, path: &str| -> Vec<String> {
        let answer = remote.get(principal, path);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        let scopes = answer.json["scopes"].as_array().cloned().unwrap_or_default();
        let mut pods: Vec<_> =
            scopes.iter().map(|scope| scope["labels"]["pod"].as_str().unwrap_or("-").to_owned()).collect();
        pods.sort();
        pods.dedup();
        pods
    };
    for path in ["/v1/metrics", "/v1/metrics?pod=a", "/v1/metrics?container=main"] {
        assert_eq!(pods_told("viewer", path), ["/a"], "{path}");
    }
    let all = pods_told("boss", "/v1/metrics");
    assert!(["-", "/a", "/b"].iter().all(|pod| all.iter().any(|told| told == pod)), "{all:?}");
    let text = remote.get("viewer", "/v1/metrics?format=prometheus").text;
    assert!(text.contains("pod=\"/a\"") && !text.contains("pod=\"/b\"") && !text.contains("node_"), "{text:.500}");
    assert_eq!(["b", "none"].map(|pod| status("viewer", &format!("/v1/metrics?pod={pod}"))), [403, 404]);
    assert_eq!(status("nobody", "/v1/metrics"), 403);
    // arguments of programs are in the events
    for pod in ["a", "b"] {
        let ran = client.post(&format!("/v1/pods/{pod}/exec"), &json!({"command": ["true", format!("word-of-{pod}")]}));
        assert_eq!(ran.status, 201, "{ran:?}");
    }
    let words = |principal: &str| {
        let text = remote.get(principal, "/v1/events?kind=container-exec").text;
        ["word-of-a", "word-of-b"].map(|word| text.contains(word))
    };
    let exec = client.get("/v1/observe").json["signals"].as_array().cloned().unwrap_or_default();
    if exec.iter().any(|signal| signal["signal"] == "exec" && signal["rung"] != "off") {
        assert!(eventually(PATIENCE, || words("boss") == [true, true]));
        assert_eq!(words("viewer"), [true, false]);
    }
    // to read what is kept is one right, to take the host's time for it another
    for (who, kept, sampled) in [("viewer", 403, 403), ("reader", 404, 403), ("nobody", 403, 403)] {
        assert_eq!(status(who, "/v1/profile?pod=a"), kept, "{who}");
        assert_eq!(status(who, "/v1/profile?pod=a&seconds=1"), sampled, "{who}");
    }
    let sampled = status("worker", "/v1/profile?pod=a&seconds=1");
    assert!(matches!(sampled, 200 | 503), "{sampled}");
    assert_eq!(status("worker", "/v1/profile?pod=b&seconds=1"), 403);
    for id in ["/a", "/b"] {
        client.rm(id);
    }
}

#[test]
fn a_broken_list_refuses_to_start() {
    privileged!();
    let pki = Pki::new();
    let file = pki.file("acl.toml");
    fs::write(&file, "[[rule]]\nprincipals = [\"a\"]\nverbs = [\"look\"]\n").unwrap();
    let mut daemon = Daemon::with().set(&format!("api.acl={}", file.display())).spawn();
    assert_eq!(daemon.wait_exit().code(), Some(1));
    assert!(daemon.log().contains("api.acl: ") && daemon.log().contains("acl.toml:3: unknown variant `look`"));
}

#[test]
fn pods_of_a_principal_stay_below_its_ceiling() {
    privileged!();
    let data = tempfile::Builder::new().prefix("agentd-test-data-").tempdir().unwrap();
    std::os::unix::fs::symlink("/etc", data.path().join("out")).unwrap();
    let rules = ["none", "raised"].map(|name| rule(name, "\"run\", \"view\", \"exec\"")).concat();
    let acl = format!(
        "{rules}[[ceiling]]\nprincipals = [\"raised\"]\nhost_paths = [\"{}\"]\nhost_network = true\n\
         capabilities = [\"NET_ADMIN\"]\nown_seccomp = true\nimage_less = true\nhost_root = true\n",
        data.path().display()
    );
    let remote = Remote::start(&acl, |options| options);
    for name in ["none", "raised"] {
        remote.pki.client(name);
    }
    // a pod that is below every ceiling, with an image of the store
    let layout = tempfile::Builder::new().prefix("agentd-test-image-").tempdir().unwrap();
    images::oci(layout.path(), "1", &images::Config::default());
    let import = json!({"path": layout.path(), "reference": "plain:1"});
    let imported = remote.daemon.client().post("/v1/images/import", &import);
    assert!(imported.ok(), "{}", imported.text);
    let plain = || {
        let mut pod = pods::argv("/p", &["/bin/testbox", "sleep", "1000"]);
        pod["user"] = json!("1000");
        pods::with_container(pod, |container| {
            container["image"] = json!({"kind": "DOCKER", "id": "plain:1"});
            container["lifecycle"] = json!({"killGracePeriodSeconds": 0.1});
        })
    };
    let cases: Vec<(&str, &str, Value)> = vec![
        ("networks", "/agentd/isolatedNetwork", json!(false)),
        ("containers[0].image", "/containers/0/image", Value::Null),
        (
            "containers[0].agentd.capabilities.add[0]",
            "/containers/0/agentd",
            json!({"capabilities": {"add": ["NET_ADMIN"]}}),
        ),
        ("containers[0].agentd.seccomp", "/containers/0/agentd", json!({"seccomp": "unconfined"})),
        ("containers[0].user", "/user", json!("0")),
        ("containers[0].user", "/user", json!("root")),
        ("containers[0].user", "/user", Value::Null),
        ("volumes[0].host", "/volumes", json!([{"name": "v", "host": data.path()}])),
        ("containers[0].image.id", "/containers/0/image", json!({"kind": "OCI", "id": data.path()})),
    ];
    for (field, pointer, value) in &cases {
        let mut pod = plain();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        pod.pointer_mut(parent).unwrap()[name] = value.clone();
        if name == "volumes" {
            pod["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "v"}]);
        }
        let answer = remote.call("none", "POST", "/v1/pods", &pod);
        assert_eq!((answer.status, answer.fields()), (403, vec![(*field).to_owned()]), "{answer:?}");
        // the raised ceiling lets it pass to what comes behind
        let answer = remote.call("raised", "POST", "/v1/pods", &pod);
        assert_ne!(answer.status, 403, "{field}: {answer:?}");
        remote.daemon.client().delete("/v1/pods/p");
    }
    // a capability that was not named, and a link that leads out of the folder
    let more = pods::with_container(plain(), |container| {
        container["agentd"] = json!({"capabilities": {"add": ["SYS_ADMIN"]}});
    });
    let answer = remote.call("raised", "POST", "/v1/pods", &more);
    assert_eq!((answer.status, answer.fields().len()), (403, 1), "{answer:?}");
    for host in [data.path().join("out"), data.path().join("out/ssh"), "/etc".into()] {
        let mut pod = plain();
        pod["volumes"] = json!([{"name": "v", "host": host}]);
        pod["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "v"}]);
        let answer = remote.call("raised", "POST", "/v1/pods", &pod);
        assert_eq!((answer.status, answer.fields()), (403, vec!["volumes[0].host".to_owned()]), "{answer:?}");
    }
    links_put_there_later_lead_nowhere(&remote, data.path());
    let answer = remote.call("none", "POST", "/v1/pods?wait=running", &plain());
    assert_eq!(answer.status, 201, "{answer:?}");
    // what one may not start, one may not enter either
    let ask = |principal: &str, request: Value| {
        let answer = remote.call(principal, "POST", "/v1/pods/p/exec", &request);
        (answer.status, answer.fields())
    };
    let command = json!(["/bin/testbox", "true"]);
    let root = json!({"command": command, "user": "0", "capabilities": ["CAP_NET_ADMIN"]});
    assert_eq!(ask("none", root), (403, vec!["capabilities[0]".to_owned(), "user".to_owned()]));
    // a debug container runs as the user of its image, which is root here
    let tools = json!({"kind": "DOCKER", "id": "plain:1"});
    assert_eq!(ask("none", json!({"command": command, "image": tools})), (403, vec!["user".to_owned()]));
    let files = || {
        let answer = remote.get("none", "/v1/pods/p/files?path=/&stat=true");
        (answer.status, answer.fields())
    };
    assert_eq!(files(), (200, Vec::new()));
    remote.daemon.client().rm("/p");
    // copies are made with the rights of the container's user
    let mut pod = plain();
    pod["user"] = Value::Null;
    remote.daemon.client().run_pod(&pod);
    assert_eq!(files(), (403, vec!["pod.containers[0].user".to_owned()]));
    remote.daemon.client().rm("/p");
    let mut pod = pods::sleeper("/p");
    pod["agentd"]["isolatedNetwork"] = json!(false);
    remote.daemon.client().run_pod(&pod);
    let (status, fields) = ask("none", json!({"command": ["true"], "user": "1000"}));
    assert_eq!((status, fields), (403, vec!["pod.networks".to_owned(), "pod.containers[0].image".to_owned()]));
    remote.daemon.client().rm("/p");
}

/// A folder that was in order when the pod was checked becomes a link out of the ceiling before a later start.
fn links_put_there_later_lead_nowhere(remote: &Remote, data: &std::path::Path) {
    let folder = data.join("later");
    fs::create_dir(&folder).unwrap();
    let line = "test -e v/passwd && echo leaked; echo started; sleep 0.3; exit 1";
    let mut pod = pods::with_container(pods::shell("/later", line), |container| {
        container["volumeMounts"] = json!([{"name": "v", "mountPath": "v"}]);
    });
    pod["volumes"] = json!([{"name": "v", "host": folder}]);
    pod["agentd"]["restart"] = json!("always");
    pod["scheduling"] = json!({"backoff": {"backoff": 0.05, "backoffFactor": 1, "maxLaunchDelay": 0.1}});
    let answer = remote.call("raised", "POST", "/v1/pods?wait=running", &pod);
    assert_eq!(answer.status, 201, "{answer:?}");
    fs::remove_dir(&folder).unwrap();
    std::os::unix::fs::symlink("/etc", &folder).unwrap();
    let client = remote.daemon.client();
    let refused = eventually(PATIENCE, || client.get("/v1/events").text.contains("later leads to /etc, out of "));
    assert!(refused, "{}", client.get("/v1/events").text);
    assert!(!client.logs("/later", "main").contains("leaked"));
    client.rm("/later");
}

#[test]
fn plain_text_is_for_loopback_and_gives_nothing_by_itself() {
    privileged!();
    let port = free_port();
    for address in [format!("0.0.0.0:{port}"), format!("[::]:{port}"), format!("192.0.2.1:{port}")] {
        let mut daemon = Daemon::with().set("api.insecure=true").set(&format!("api.listen=[\"{address}\"]")).spawn();
        assert_eq!(daemon.wait_exit().code(), Some(2), "{address}: {}", daemon.log());
        assert!(daemon.log().contains("an address of loopback"), "{}", daemon.log());
    }
    let mut daemon = Daemon::with().set(&format!("api.listen=127.0.0.1:{port}")).spawn();
    assert_eq!(daemon.wait_exit().code(), Some(2), "TCP without TLS: {}", daemon.log());

    let daemon = Daemon::with().set("api.insecure=true").set(&format!("api.listen=127.0.0.1:{port}")).start();
    let url = format!("http://127.0.0.1:{port}");
    let status = |path: &str| {
        let output = std::process::Command::new("curl")
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", &format!("{url}{path}")])
            .output()
            .expect("curl can be run");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(status("/healthz"), "200");
    assert_eq!(status("/v1/pods"), "403");
    fs::write(daemon.dir().join("acl.toml"), rule("*", "\"admin\"") + &rule("anonymous", "\"view\"")).unwrap();
    assert!(eventually(PATIENCE, || status("/v1/pods") == "200"), "{}", daemon.log());
    assert_eq!(status("/v1/pods/a/logs"), "403", "everybody does not mean those without a name");
}

#[test]
fn agentctl_reaches_a_daemon_afar_by_its_certificate() {
    privileged!();
    let remote = Remote::start(&rule("alice", "\"view\""), |options| options);
    remote.pki.client("alice");
    let home = tempfile::tempdir().unwrap();
    let run = |words: &[&str]| {
        let mut command = std::process::Command::new(agentd_tests::binary("agentctl"));
        command.args(words).env("HOME", home.path()).env_remove("XDG_CONFIG_HOME").env_remove("AGENTD_SOCKET");
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let url = format!("https://127.0.0.1:{}", remote.port);
    let added = run(&["context", "add", "there", &url, "--folder", remote.pki.at(), "--principal", "alice", "--use"]);
    assert_eq!(added.0, Some(0), "{}", added.1);
    remote.daemon.client().run_pod(&pods::sleeper("/far"));
    let listed = run(&["pod", "ls"]);
    assert!(listed.0 == Some(0) && listed.1.contains("/far"), "{listed:?}");
    let removed = run(&["pod", "rm", "/far"]);
    assert!(removed.0 != Some(0) && removed.1.contains("alice has no right to run"), "{removed:?}");
    remote.daemon.client().rm("/far");
    let shown = must(&["cert", "show", remote.pki.at()]);
    for word in ["authority", "alice", "127.0.0.1,node.example"] {
        assert!(shown.contains(word), "{word} in {shown}");
    }
    assert_eq!(agentctl(&["cert", "init", "--folder", remote.pki.at()]).status.code(), Some(4));
}

#[test]
fn pods_do_not_reach_the_daemons_ports() {
    privileged!();
    if std::process::Command::new("nft").arg("--version").output().is_err() {
        agentd_tests::skip!("there is no nft");
    }
    for (may, expected) in [("false", false), ("true", true)] {
        let pki = Pki::new();
        let (port, metrics) = (free_port(), free_port());
        let options = pki.options(&format!("0.0.0.0:{port}")).set(&format!("api.pods_may_connect={may}"));
        let options = options.set(&format!("metrics.listen=[\"0.0.0.0:{metrics}\"]")).set("metrics.insecure=true");
        let daemon = options.start();
        let client = daemon.client();
        let tool = |id: &str, words: &[&str]| {
            let mut pod = arena::tools(pods::argv(id, &[&["/opt/testbox"], words].concat()));
            pod["networks"] = json!([{"mode": "container"}]);
            pod["agentd"] = json!({"restart": "never"});
            pod
        };
        client.run_pod(&pods::with_container(tool("/stays", &["listen", "8080", "x"]), |container| {
            container["lifecycle"] = json!({"killGracePeriodSeconds": 0.1});
        }));
        let pid = client.container("/stays", "main").pid.unwrap();
        let routes = fs::read_to_string(format!("/proc/{pid}/net/route")).unwrap();
        let gateway = routes.lines().find_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words.get(1) == Some(&"00000000")).then(|| words[2].to_owned())
        });
        let gateway = Ipv4Addr::from(u32::from_str_radix(&gateway.unwrap(), 16).unwrap().swap_bytes());
        for (what, port) in [("api", port), ("metrics", metrics)] {
            let tool = tool(&format!("/asks-{what}"), &["connect", &gateway.to_string(), &port.to_string()]);
            let (status, _) = client.run_to_end(&tool);
            let exit = status.instances[0].containers[0].exit.unwrap();
            assert_eq!(exit.success(), expected, "{what}, pods_may_connect={may}: {exit:?}");
        }
        client.rm("/stays");
    }
}
