//! The audit log of a real daemon: what is in it, that it goes on over rotation and SIGKILL, and that nothing in it can be changed
//! unnoticed.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use agentd_tests::exec::Exec;
use agentd_tests::{Daemon, binary, eventually, pods, privileged};
use serde_json::{Value, json};

fn log(daemon: &Daemon) -> PathBuf {
    daemon.state().join("audit/audit.log")
}

/// Exit code and output of `agentctl audit verify`.
fn verify(path: &Path) -> (Option<i32>, String) {
    let output = Command::new(binary("agentctl")).args(["audit", "verify"]).arg(path).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

fn records(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_change_and_every_session_is_noted() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    client.run_pod(&pods::sleeper("/a"));
    client.get("/v1/pods");
    let secret = json!({"command": ["sh", "-c", "exit 7"], "detach": true, "environment": {"TOKEN": "hunter2"}});
    let session = client.post("/v1/pods/a/exec", &secret);
    assert!(session.ok(), "{}", session.text);
    let id = session.json["id"].as_str().unwrap().to_owned();
    let ended = client.get(&format!("/v1/sessions/{id}/wait?timeout=30"));
    assert!(ended.ok(), "{}", ended.text);
    // a client that attaches and leaves again, while its session goes on
    let long = client.post("/v1/pods/a/exec", &json!({"command": ["sleep", "1000"], "detach": true}));
    let long = long.json["id"].as_str().unwrap().to_owned();
    drop(Exec::attach(&daemon.socket(), &long, ""));
    let noted = |action: &str| {
        let all = records(&log(&daemon));
        all.into_iter().find(|r| r["kind"] == "session" && r["action"] == action && r["session"] == long.as_str())
    };
    assert!(eventually(Duration::from_secs(20), || noted("detach").is_some()));
    assert_eq!(noted("attach").expect("the client is noted")["by"], "uid:0");
    client.rm("/a");
    assert_eq!(client.delete("/v1/pods/none").status, 404);

    let of_session = |all: &[Value], action: &str| {
        all.iter().find(|r| r["kind"] == "session" && r["action"] == action && r["session"] == id.as_str()).cloned()
    };
    assert!(eventually(Duration::from_secs(20), || of_session(&records(&log(&daemon)), "end").is_some()));
    let all = records(&log(&daemon));
    let begin = of_session(&all, "begin").expect("the begin of the session is noted");
    assert_eq!((&begin["by"], &begin["pod"]), (&json!("uid:0"), &json!("/a")));
    assert_eq!(begin["command"], json!(["sh", "-c", "exit 7"]));
    assert_eq!(of_session(&all, "end").unwrap()["exit"], json!({"code": 7}));
    let text = fs::read_to_string(log(&daemon)).unwrap();
    assert!(!text.contains("hunter2"), "values of variables are not written");
    let attempts: Vec<&Value> = all.iter().filter(|record| record["kind"] == "attempt").collect();
    let calls: Vec<(&str, &str)> =
        attempts.iter().map(|r| (r["method"].as_str().unwrap(), r["path"].as_str().unwrap())).collect();
    let attach = format!("/v1/sessions/{long}/attach");
    let expected = [
        ("POST", "/v1/pods"),
        ("POST", "/v1/pods/a/exec"),
        ("POST", "/v1/pods/a/exec"),
        ("GET", attach.as_str()),
        ("DELETE", "/v1/pods/a"),
        ("DELETE", "/v1/pods/none"),
    ];
    assert_eq!(calls, expected);
    for attempt in attempts {
        assert_eq!(attempt["principal"], "uid:0");
        assert!(attempt["source"].as_str().unwrap().starts_with("unix uid=0 "), "{attempt}");
        let outcome = all.iter().find(|r| r["kind"] == "outcome" && r["attempt"] == attempt["seq"]);
        let outcome = outcome.unwrap_or_else(|| panic!("{attempt} has no outcome"));
        assert!(outcome["seq"].as_u64() > attempt["seq"].as_u64() && outcome["request"] == attempt["request"]);
        assert_eq!(outcome["status"] == 404, attempt["path"] == "/v1/pods/none");
    }
    assert_eq!(verify(&log(&daemon)).0, Some(0));
    let shown = Command::new(binary("agentctl")).args(["audit", "show"]).arg(log(&daemon)).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("DELETE /v1/pods/a") && shown.contains("exit 7"), "{shown}");
}

/// Sends many calls that change nothing but are noted, one after the other over one connection, until it breaks.
fn flood(socket: &Path, count: usize) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let mut answers = stream.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let mut sink = [0; 8192];
        while answers.read(&mut sink).is_ok_and(|count| count > 0) {}
    });
    let call = format!("DELETE /v1/pods/{} HTTP/1.1\r\nhost: x\r\n\r\n", "n".repeat(250));
    for _ in 0..count {
        if stream.write_all(call.as_bytes()).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(std::net::Shutdown::Write);
    reader.join().unwrap();
}

#[test]
fn the_chain_holds_over_rotation_and_sigkill_and_nothing_is_changed_unnoticed() {
    privileged!();
    let mut daemon = Daemon::with().set("api.audit_max_mib=1").start();
    let path = log(&daemon);
    flood(&daemon.socket(), 1500);
    // killed in the middle of writing
    for _ in 0..3 {
        let socket = daemon.socket();
        let writer = std::thread::spawn(move || flood(&socket, 100_000));
        let before = fs::metadata(&path).unwrap().len();
        assert!(eventually(Duration::from_secs(20), || fs::metadata(&path).is_ok_and(|now| now.len() != before)));
        daemon.kill9();
        writer.join().unwrap();
        daemon.restart();
    }
    daemon.client().delete("/v1/pods/last");
    assert!(daemon.terminate().success());
    let (code, text) = verify(&path);
    assert_eq!(code, Some(0), "{text}");
    let folder = path.parent().unwrap();
    let earlier = || {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<PathBuf> =
            names.filter(|file| file.extension().is_some_and(|end| end.len() == 12)).collect();
        files.sort();
        files
    };
    assert!(!earlier().is_empty(), "a new file was begun");

    // each kind of change, in an earlier file and in the last one
    let files = [earlier()[0].clone(), path.clone()];
    for file in &files {
        let good = fs::read_to_string(file).unwrap();
        let lines: Vec<&str> = good.lines().collect();
        assert!(lines.len() > 6, "{}", file.display());
        let changed = lines[3].replacen("\"time\":\"2", "\"time\":\"1", 1);
        let swapped = [&lines[..3], &[lines[4], lines[3]], &lines[5..]].concat();
        let removed = [&lines[..3], &lines[4..]].concat();
        let twice = [&lines[..4], &lines[3..]].concat();
        let mut other = lines.clone();
        other[3] = &changed;
        for (what, lines, line, words) in [
            ("changed", &other, 4, "was changed"),
            ("removed", &removed, 4, "is missing before this one"),
            ("swapped", &swapped, 5, "out of order"),
            ("twice", &twice, 5, "out of order"),
        ] {
            fs::write(file, lines.join("\n") + "\n").unwrap();
            let (code, text) = verify(&path);
            assert_eq!(code, Some(10), "{what} in {}: {text}", file.display());
            let place = format!("{}:{line}: ", file.display());
            let told = text.lines().any(|line| line.contains(&place) && line.contains(words));
            assert!(told, "{what} in {}: expected {place}… {words} in\n{text}", file.display());
        }
        fs::write(file, &good).unwrap();
        assert_eq!(verify(&path).0, Some(0));
    }
    // a cut end, and a whole file that is gone from the middle
    let good = fs::read_to_string(&path).unwrap();
    let cut: Vec<&str> = good.lines().collect();
    fs::write(&path, cut[..cut.len() - 2].join("\n") + "\n").unwrap();
    let (code, text) = verify(&path);
    assert!(code == Some(10) && text.contains("at the end are missing"), "{text}");
    // the daemon notices, too, and does not use a number twice
    daemon.restart();
    assert!(daemon.terminate().success());
    let (code, text) = verify(&path);
    assert!(code == Some(10) && text.contains("are missing before this one"), "{text}");
    let noted = records(&path).iter().any(|r| r["note"].as_str().is_some_and(|n| n.contains("were missing when")));
    assert!(noted, "the gap is noted in the log itself");
}

#[test]
fn a_log_that_cannot_be_written_refuses_to_start() {
    privileged!();
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::with().set(&format!("api.audit={}", folder.path().display())).spawn();
    assert_eq!(daemon.wait_exit().code(), Some(1));
    assert!(daemon.log().contains("the audit log"), "{}", daemon.log());
}
