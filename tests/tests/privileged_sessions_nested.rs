//! Nested containers of the Mesos agent API live by their client: they are destroyed when it disconnects, and after a restart
//! of the daemon when nobody attaches in time.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use agentd_api::session::{SessionKind, SessionState, SessionStatus};
use agentd_tests::{Client, Daemon, attached, eventually, marked, privileged, until};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of a call whose answer is a stream of records of JSON.
fn call(body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let head = "POST /api/v1 HTTP/1.1\r\nhost: agentd\r\ncontent-type: application/json\r\naccept: application/recordio\r\n\
                message-accept: application/json";
    format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// A connection on which a nested container's output comes.
struct Stream {
    connection: UnixStream,
    seen: Vec<u8>,
}

impl Stream {
    fn open(daemon: &Daemon, body: &Value) -> Self {
        let mut connection = UnixStream::connect(daemon.socket()).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        connection.write_all(&call(body)).unwrap();
        let mut stream = Self { connection, seen: Vec::new() };
        stream.read_until("\r\n\r\n");
        let head = String::from_utf8_lossy(&stream.seen).into_owned();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        stream
    }

    /// Reads until the answer holds this text.
    fn read_until(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.seen).contains(text) {
            let mut buffer = [0; 4096];
            let count = self.connection.read(&mut buffer).unwrap();
            assert!(count > 0, "{text:?} did not come: {:?}", String::from_utf8_lossy(&self.seen));
            self.seen.extend_from_slice(&buffer[..count]);
        }
    }
}

fn launch(id: &Value, line: &str) -> Value {
    json!({"type": "LAUNCH_NESTED_CONTAINER_SESSION", "launch_nested_container_session":
        {"container_id": id, "command": {"value": line}}})
}

/// The only session, which is a nested one; none when there is no session.
fn nested(client: &Client) -> Option<SessionStatus> {
    let mut all: Vec<SessionStatus> = client.get("/v1/sessions?state=running").read();
    assert!(all.len() <= 1 && all.iter().all(|session| session.kind == SessionKind::Nested), "{all:?}");
    all.pop()
}

#[test]
fn a_nested_session_ends_with_its_connection() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    client.run_pod(&attached::pod("/n"));
    let instance = client.instance("/n").id;
    for (number, half) in [false, true].into_iter().enumerate() {
        let marker = format!("nested-{}-{number}", std::process::id());
        let id = json!({"value": format!("debug-{number}"), "parent": {"value": instance}});
        let line = format!("echo up; exec sh -c 'sleep 1000; true' {marker}");
        let mut stream = Stream::open(&daemon, &launch(&id, &line));
        // "up\n" in base64
        stream.read_until("dXAK");
        let session = nested(&client).expect("the nested container runs");
        assert!(eventually(PATIENCE, || !marked::processes(&marker).is_empty()));
        if half {
            stream.connection.shutdown(Shutdown::Both).unwrap();
        } else {
            drop(stream);
        }
        until("it is destroyed", PATIENCE, || nested(&client).is_none().then_some(()));
        assert!(eventually(PATIENCE, || marked::processes(&marker).is_empty()), "{session:?}");
    }
    assert!(client.container("/n", "main").pid.is_some());
}

#[test]
fn after_a_restart_a_nested_session_ends_unless_somebody_attaches() {
    privileged!();
    let mut daemon = Daemon::with().set("sessions.nested_reattach_seconds=3").start();
    let client = daemon.client();
    client.run_pod(&attached::pod("/n"));
    let instance = client.instance("/n").id;
    let id = |name: &str| json!({"value": name, "parent": {"value": instance}});
    let ticks = "n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.1; done";

    // nobody attaches
    let stream = Stream::open(&daemon, &launch(&id("lonely"), "sleep 1000"));
    let session = nested(&client).expect("the nested container runs");
    daemon.kill9();
    drop(stream);
    let began = Instant::now();
    daemon.restart();
    assert_eq!(attached::status(&client, &session.id).state, SessionState::Running, "it goes on for a while");
    until("it is destroyed", PATIENCE, || nested(&client).is_none().then_some(()));
    assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());

    // somebody does
    let mut stream = Stream::open(&daemon, &launch(&id("kept"), ticks));
    stream.read_until("\n");
    daemon.kill9();
    drop(stream);
    daemon.restart();
    let attach = json!({"type": "ATTACH_CONTAINER_OUTPUT", "attach_container_output": {"container_id": id("kept")}});
    let mut again = Stream::open(&daemon, &attach);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        again.seen.clear();
        again.read_until("DATA");
    }
    assert!(nested(&client).is_some(), "an attached one goes on");
    drop(again);
    until("it is destroyed", PATIENCE, || nested(&client).is_none().then_some(()));
}
