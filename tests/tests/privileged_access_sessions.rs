//! Sessions over TCP: exec by certificate, the places that they hold, whose they are, and the Mesos agent API under the same
//! access list.

mod remote;

use std::io::{Read, Write};
use std::process::Command;

use agentd_tests::{binary, eventually, pods, privileged, until};
use remote::{PATIENCE, Remote, Stream};
use serde_json::{Value, json};

/// Alice runs programs in her team's pods, carl sees them, boss does everything.
const ACL: &str = "[[rule]]\nprincipals = [\"alice\", \"bert\"]\nverbs = [\"view\", \"exec\"]\nlabels = { team = \"a\" }\n\
                   [[rule]]\nprincipals = [\"carl\"]\nverbs = [\"view\"]\nlabels = { team = \"a\" }\n\
                   [[rule]]\nprincipals = [\"boss\"]\nverbs = [\"admin\"]\n\
                   [[ceiling]]\nprincipals = [\"alice\", \"bert\", \"boss\"]\nimage_less = true\nhost_root = true\n";

fn start(sets: &[&str]) -> Remote {
    let remote = Remote::start(ACL, |options| sets.iter().fold(options, |options, set| options.set(set)));
    for name in ["alice", "bert", "carl", "boss"] {
        remote.pki.client(name);
    }
    for (id, team) in [("/a", "a"), ("/b", "b")] {
        let mut pod = pods::sleeper(id);
        pod["labels"] = json!({"team": team});
        remote.daemon.client().run_pod(&pod);
    }
    remote
}

/// Begins a session and takes the connection over; none where it is not let in.
fn attached(remote: &Remote, who: &str, command: &[&str]) -> Option<Stream> {
    let mut stream = remote.connect(Some(who)).ok()?;
    let body = json!({"command": command}).to_string();
    let head = format!(
        "POST /v1/pods/a/exec HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: agentd-exec\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) => answer.push(byte[0]),
            _ => return None,
        }
    }
    let text = String::from_utf8_lossy(&answer).into_owned();
    assert!(text.starts_with("HTTP/1.1 101 "), "{text}");
    Some(stream)
}

#[test]
fn a_session_over_tls_gives_output_and_exit_code() {
    privileged!();
    let remote = start(&[]);
    let mut stream = attached(&remote, "alice", &["sh", "-c", "head -c 300000 /dev/zero; exit 5"]).unwrap();
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let (mut at, mut output, mut told) = (0, 0, Vec::new());
    while at + 8 <= all.len() {
        let length = u32::from_be_bytes(all[at + 4..at + 8].try_into().unwrap()) as usize;
        match all[at] {
            1 => output += length,
            3 => told.push(serde_json::from_slice::<Value>(&all[at + 8..at + 8 + length]).unwrap()),
            kind => panic!("a frame of the kind {kind}"),
        }
        at += 8 + length;
    }
    assert_eq!(output, 300_000);
    let last = told.last().unwrap();
    assert_eq!((&last["type"], &last["exit"]), (&json!("exit"), &json!({"code": 5})), "{told:?}");

    // and by agentctl, from a machine afar
    let home = tempfile::tempdir().unwrap();
    let run = |words: &[&str]| {
        let mut command = Command::new(binary("agentctl"));
        command.args(words).env("HOME", home.path()).env_remove("XDG_CONFIG_HOME").env_remove("AGENTD_SOCKET");
        let output = command.stdin(std::process::Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let url = format!("https://127.0.0.1:{}", remote.port);
    for name in ["alice", "carl"] {
        let added = run(&["context", "add", name, &url, "--folder", remote.pki.at(), "--principal", name]);
        assert_eq!(added.0, Some(0), "{}", added.1);
    }
    let done = run(&["--context", "alice", "exec", "a", "--", "sh", "-c", "echo hello; exit 3"]);
    assert_eq!(done, (Some(3), "hello\n".to_owned()));
    let refused = run(&["--context", "carl", "exec", "a", "--", "true"]);
    assert!(refused.0 != Some(0) && refused.1.contains("carl has no right to exec on the pod /a"), "{refused:?}");
    for id in ["/a", "/b"] {
        remote.daemon.client().rm(id);
    }
}

#[test]
fn a_session_holds_the_place_of_its_connection() {
    privileged!();
    let remote = start(&["api.max_connections_per_peer=2"]);
    let first = attached(&remote, "alice", &["sleep", "1000"]).unwrap();
    let second = until("there is a second place", PATIENCE, || attached(&remote, "alice", &["sleep", "1000"]));
    assert!(remote.try_call(Some("alice"), "GET", "/healthz", "").is_err(), "a third one gets in");
    assert_eq!(remote.daemon.client().get("/healthz").status, 200);
    drop(first);
    let again = eventually(PATIENCE, || remote.try_call(Some("alice"), "GET", "/healthz", "").is_ok());
    assert!(again, "the place was not given back");
    drop(second);
    for id in ["/a", "/b"] {
        remote.daemon.client().rm(id);
    }
}

#[test]
fn sessions_belong_to_who_began_them() {
    privileged!();
    let remote = start(&[]);
    let request = json!({"command": ["sleep", "1000"], "detach": true});
    let made = remote.call("alice", "POST", "/v1/pods/a/exec", &request);
    assert!((200..300).contains(&made.status), "{made:?}");
    let path = format!("/v1/sessions/{}", made.json["id"].as_str().unwrap());
    assert_eq!(made.json["principal"], "alice");
    assert_eq!(remote.call("alice", "POST", "/v1/pods/b/exec", &request).status, 403);
    let status = |who: &str, method: &str, path: &str, body: Value| remote.call(who, method, path, &body).status;
    // seen by who sees the pod, touched by its own
    for (who, expected) in [("alice", 200), ("bert", 200), ("carl", 200), ("boss", 200)] {
        assert_eq!(status(who, "GET", &path, Value::Null), expected, "{who}");
    }
    let resize = format!("{path}/resize");
    let signal = format!("{path}/signal");
    for who in ["bert", "carl"] {
        assert_eq!(status(who, "POST", &signal, json!({"signal": "SIGTERM"})), 403, "{who}");
        assert_eq!(status(who, "POST", &resize, json!({"rows": 1, "columns": 1})), 403, "{who}");
        assert_eq!(status(who, "GET", &format!("{path}/attach"), Value::Null), 403, "{who}");
        assert_eq!(status(who, "GET", &format!("{path}/recording"), Value::Null), 403, "{who}");
        assert_eq!(status(who, "DELETE", &path, Value::Null), 403, "{who}");
    }
    assert_eq!(status("alice", "POST", &signal, json!({"signal": "SIGCONT"})), 204);
    assert_eq!(status("boss", "DELETE", &path, Value::Null), 204);
    for id in ["/a", "/b"] {
        remote.daemon.client().rm(id);
    }
}

#[test]
fn the_mesos_api_is_under_the_same_list() {
    privileged!();
    let remote = start(&[]);
    let instance = |id: &str| remote.daemon.client().instance(id).id;
    let (a, b) = (instance("/a"), instance("/b"));
    let ask = |who: &str, call: &Value| remote.call(who, "POST", "/api/v1", call);
    let launch = |instance: &str| {
        let id = json!({"parent": {"parent": {"value": instance}, "value": "main"}, "value": "nested-of-a-test"});
        json!({"type": "LAUNCH_NESTED_CONTAINER", "launch_nested_container": {
            "container_id": id, "command": {"value": "true"}}})
    };
    for (who, instance, expected) in [("carl", &a, 403), ("alice", &b, 403), ("bert", &b, 403), ("alice", &a, 200)] {
        let answer = ask(who, &launch(instance));
        assert_eq!(answer.status, expected, "{who}: {answer:?}");
    }
    let state = |who: &str| ask(who, &json!({"type": "GET_CONTAINERS"})).text;
    assert!(state("carl").contains(&a) && !state("carl").contains(&b));
    assert!(state("boss").contains(&a) && state("boss").contains(&b));
    let pages = remote.get("carl", "/state");
    assert!(pages.status == 200 && pages.text.contains(&a) && !pages.text.contains(&b), "{pages:?}");
    // what was done and what was not is in the audit log
    let log = std::fs::read_to_string(remote.daemon.state().join("audit/audit.log")).unwrap();
    let noted = |kind: &str, who: &str| {
        let records = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        records.filter(|r| r["kind"] == kind && r["principal"] == who && r["path"] == "/api/v1").count()
    };
    assert!(noted("attempt", "alice") >= 1, "{log}");
    for who in ["carl", "bert"] {
        let outcome = noted("denied", who) + noted("attempt", who);
        assert!(outcome >= 1, "{who}: {log}");
    }
    for id in ["/a", "/b"] {
        remote.daemon.client().rm(id);
    }
}
