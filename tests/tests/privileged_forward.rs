//! Connections into pods, and what containers have used.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use agentd_tests::arena::tools;
use agentd_tests::{Client, Daemon, eventually, pods, privileged, until};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_mins(1);

fn connect(daemon: &Daemon) -> UnixStream {
    let stream = UnixStream::connect(daemon.socket()).expect("the daemon listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
    stream.set_write_timeout(Some(PATIENCE)).expect("a time-out can be set");
    stream
}

/// Reads a head: the status and the fields.
fn head(reader: &mut impl BufRead) -> (u16, Vec<(String, String)>) {
    let mut line = String::new();
    reader.read_line(&mut line).expect("the daemon answers");
    let status = line.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{line:?}"));
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("the head is whole");
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.to_owned())),
            None => return (status, headers),
        }
    }
}

fn roomy(pod: Value) -> Value {
    pods::with_container(pod, |container| container["resources"] = json!({"cpus": 0.5, "mem": 256, "disk": 400}))
}

/// Bytes that do not repeat soon.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn forward(daemon: &Daemon, pod: &str, port: u16) -> (u16, Vec<(String, String)>, BufReader<UnixStream>) {
    let mut stream = connect(daemon);
    let path = format!("{}/port-forward?port={port}", Client::pod_path(pod));
    let head_text = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: agentd-tcp\r\n\r\n");
    stream.write_all(head_text.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let (status, headers) = head(&mut reader);
    (status, headers, reader)
}

#[test]
fn connections_are_forwarded_byte_for_byte_with_half_close() {
    privileged!();
    let pod = tools(roomy(pods::argv("/box", &["/opt/testbox", "repeat", "7000"])));
    let daemon = Daemon::start();
    daemon.client().run_pod(&pod);
    assert!(
        eventually(PATIENCE, || daemon.client().logs("/box", "main").contains("listening")),
        "{}",
        daemon.client().logs("/box", "main")
    );
    let sent = noise(8 << 20);
    let (status, headers, mut reader) = forward(&daemon, "/box", 7000);
    assert_eq!(status, 101);
    assert!(headers.iter().any(|(name, value)| name == "upgrade" && value == "agentd-tcp"), "{headers:?}");
    let mut stream = reader.get_ref().try_clone().unwrap();
    // the server answers only after it has seen the end of what was sent
    stream.write_all(&sent).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut back = Vec::new();
    reader.read_to_end(&mut back).unwrap();
    assert!(back == sent, "{} of {} bytes came back", back.len(), sent.len());

    let (status, _, mut reader) = forward(&daemon, "/box", 7001);
    assert_eq!(status, 502);
    let mut text = String::new();
    reader.get_ref().shutdown(Shutdown::Write).unwrap();
    let _ = reader.read_to_string(&mut text);
    assert!(text.contains("port 7001 of the pod: connection refused"), "{text}");
    let plain = daemon.client().get("/v1/pods/box/port-forward?port=7000");
    assert_eq!(plain.status, 426, "{}", plain.text);
    let bad = daemon.client().get("/v1/pods/box/port-forward?port=0");
    assert_eq!(bad.status, 400, "{}", bad.text);

    // a connection ends with its pod
    let (status, _, mut reader) = forward(&daemon, "/box", 7000);
    assert_eq!(status, 101);
    daemon.client().rm("/box");
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
    assert_eq!(forward(&daemon, "/box", 7000).0, 404);
}

#[test]
fn usage_tells_what_containers_do() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    client.run_pod(&tools(roomy(pods::argv("/busy", &["/opt/testbox", "spin", "600"]))));
    client.run_pod(&tools(roomy(pods::argv("/memory", &["/opt/testbox", "hog", "40", "600"]))));
    assert!(eventually(PATIENCE, || client.logs("/memory", "main").contains("holding 40")));
    let usage = |pod: &str| -> Value {
        let all = client.get(&format!("/v1/usage?pod={pod}"));
        assert!(all.ok(), "{}", all.text);
        all.json[0].clone()
    };
    let first = usage("/busy");
    let cpu = |usage: &Value| usage["cpuNs"].as_u64().unwrap();
    let grown = until("200 ms of CPU time", PATIENCE, || {
        Some(usage("/busy")).filter(|now| cpu(now) > cpu(&first) + 200_000_000)
    });
    assert_eq!((&grown["pod"], &grown["container"], &grown["attempt"]), (&json!("/busy"), &json!("main"), &json!(1)));
    assert_eq!((grown["cpuLimitMilli"].as_u64(), grown["memoryLimitBytes"].as_u64()), (Some(500), Some(256 << 20)));
    assert!((1..10).contains(&grown["pids"].as_u64().unwrap()), "{grown}");
    let memory = usage("/memory");
    assert!((40 << 20..100 << 20).contains(&memory["memoryBytes"].as_u64().unwrap()), "{memory}");
    assert!(memory["networkReceiveBytes"].is_u64() && memory["networkTransmitBytes"].is_u64(), "{memory}");
    let all = client.get("/v1/usage").json;
    let pods: Vec<&str> = all.as_array().unwrap().iter().map(|one| one["pod"].as_str().unwrap()).collect();
    assert_eq!(
        {
            let mut sorted = pods.clone();
            sorted.sort_unstable();
            sorted
        },
        ["/busy", "/memory"]
    );
    assert_eq!(client.get("/v1/usage?pod=/none").status, 404);
    client.rm("/busy");
    assert_eq!(client.get("/v1/usage").json.as_array().unwrap().len(), 1);
}
