//! Exec sessions as clients see them that nobody here wrote: a Python script with the package `websocket-client`, and curl.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use agentd_tests::{Daemon, pods, privileged, skip};
use serde_json::{Value, json};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/interop/exec_websocket.py");

const CASES: &[&str] = &[
    "streams_and_exit",
    "an_empty_message_closes_the_input",
    "a_terminal",
    "much_both_ways",
    "lost_and_attached_again",
    "detached",
    "one_gives_input",
    "signals_and_errors",
    "what_is_no_frame",
];

/// Whether a command can be run.
fn runs(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

#[test]
fn a_python_script_drives_sessions_over_websocket() {
    privileged!();
    // packages of the distribution are those of its own interpreter, which need not be the first in the path
    let pythons = ["python3", "/usr/bin/python3"];
    let python = pythons.into_iter().find(|python| runs(python, &["-c", "import websocket; websocket.ABNF"]));
    let Some(python) = python else {
        skip!("there is no python3 with the package websocket-client (Debian: python3-websocket)");
    };
    let daemon = Daemon::start();
    daemon.client().run_pod(&pods::sleeper("/shell"));
    let mut command = Command::new(python);
    command.arg("-B").arg(SCRIPT).arg("--socket").arg(daemon.socket()).args(["--pod", "/shell"]);
    let Output { status, stdout, stderr } = command.output().unwrap();
    let said = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "the script ended with {status}:\n{said}\n{}", String::from_utf8_lossy(&stderr));
    for case in CASES {
        assert!(said.contains(&format!("ok {case}\n")), "{case} was not run:\n{said}");
    }
    let running: Vec<Value> = daemon.client().get("/v1/sessions?state=running").read();
    assert!(running.is_empty(), "{running:?}");
}

/// Runs curl against a daemon, as in docs/exec.md; gives what it printed.
fn curl(socket: &Path, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--no-buffer", "--http1.1", "--max-time", "60", "--unix-socket"]);
    command.arg(socket).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "curl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Takes frames apart: kind and payload.
fn frames(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<8>() {
        assert_eq!(head[1..4], [0; 3], "no frame: {}", String::from_utf8_lossy(bytes));
        let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        frames.push((head[0], rest[..length].to_vec()));
        bytes = &rest[length..];
    }
    assert!(bytes.is_empty(), "{} bytes after the last frame", bytes.len());
    frames
}

/// What was shown on a stream.
fn shown(frames: &[(u8, Vec<u8>)], kind: u8) -> Vec<u8> {
    frames.iter().filter(|(found, _)| *found == kind).flat_map(|(_, payload)| payload.clone()).collect()
}

const UPGRADE: [&str; 4] = ["--header", "Connection: Upgrade", "--header", "Upgrade: agentd-exec"];

#[test]
fn curl_runs_a_program_and_reads_its_frames() {
    privileged!();
    if !runs("curl", &["--version"]) {
        skip!("curl is not installed");
    }
    let daemon = Daemon::start();
    daemon.client().run_pod(&pods::sleeper("/shell"));
    let socket = daemon.socket();
    let run = |body: &Value| {
        let body = body.to_string();
        let arguments = [UPGRADE.as_slice(), &["--json", &body, "http://localhost/v1/pods/shell/exec"]].concat();
        frames(&curl(&socket, &arguments, b""))
    };
    let found = run(&json!({"command": ["sh", "-c", "echo out; echo err >&2; exit 5"]}));
    let control: Vec<Value> =
        found.iter().filter(|(kind, _)| *kind == 3).map(|(_, text)| serde_json::from_slice(text).unwrap()).collect();
    assert_eq!((shown(&found, 1), shown(&found, 2)), (b"out\n".to_vec(), b"err\n".to_vec()));
    assert_eq!((&control[0]["type"], &found[0].0), (&json!("attached"), &3), "{control:?}");
    assert_eq!(control.last(), Some(&json!({"type": "exit", "exit": {"code": 5}})));
    let lines = run(&json!({"command": ["seq", "1", "300000"]}));
    let expected: String = (1..=300_000).fold(String::new(), |text, n| text + &format!("{n}\n"));
    assert!(shown(&lines, 1) == expected.as_bytes(), "{} of {} bytes", shown(&lines, 1).len(), expected.len());
    // in two steps: begin and attach
    let body = json!({"command": ["sh", "-c", "echo kept; exit 6"]}).to_string();
    let begun = curl(&socket, &["--json", &body, "http://localhost/v1/pods/shell/exec"], b"");
    let session: Value = serde_json::from_slice(&begun).unwrap();
    let id = session["id"].as_str().unwrap_or_else(|| panic!("{session}"));
    let attach = format!("http://localhost/v1/sessions/{id}/attach?input=false");
    let found = frames(&curl(&socket, &[UPGRADE.as_slice(), &[&attach]].concat(), b""));
    assert_eq!(shown(&found, 1), b"kept\n");
    assert!(found.last().is_some_and(|(_, text)| text.ends_with(br#""exit":{"code":6}}"#)), "{found:?}");
    // what is wrong is told as everywhere
    let body = json!({"command": ["sleep", "1000"]}).to_string();
    let session: Value =
        serde_json::from_slice(&curl(&socket, &["--json", &body, "http://localhost/v1/pods/shell/exec"], b"")).unwrap();
    let path = format!("http://localhost/v1/sessions/{}", session["id"].as_str().unwrap());
    let problem: Value = serde_json::from_slice(&curl(&socket, &[&format!("{path}/attach")], b"")).unwrap();
    assert_eq!((&problem["status"], &problem["type"]), (&json!(426), &json!("upgrade-required")));
    assert!(curl(&socket, &["--request", "DELETE", &path], b"").is_empty());
    let ended: Value = serde_json::from_slice(&curl(&socket, &[&format!("{path}/wait?timeout=30")], b"")).unwrap();
    assert_eq!((&ended["state"], &ended["exit"]), (&json!("exited"), &json!({"signal": 9})));
}
