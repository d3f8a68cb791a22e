//! TCP as hostile clients use it: names and origins, smuggled requests, floods and slow ones; and certificates that change
//! while the daemon runs.

mod remote;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use agentd_tests::{eventually, pods, privileged, until};
use remote::{Answer, PATIENCE, Pki, Remote, Stream, must, raw};
use serde_json::Value;

const VIEW: &str = "[[rule]]\nprincipals = [\"alice\"]\nverbs = [\"view\"]\n";

fn start(change: impl FnOnce(agentd_tests::Options) -> agentd_tests::Options) -> Remote {
    let remote = Remote::start(VIEW, change);
    remote.pki.client("alice");
    remote
}

#[track_caller]
fn alice(remote: &Remote) -> Stream {
    remote.connect(Some("alice")).expect("alice gets in")
}

/// What is answered to these bytes until the server closes.
#[track_caller]
fn answers(remote: &Remote, bytes: &str) -> String {
    let bytes = raw(alice(remote), bytes.as_bytes()).expect("the server answers before it closes");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn host_and_origin_are_checked() {
    privileged!();
    let sets = ["api.allowed_hosts=other.example", "api.allowed_origins=https://console.example"];
    let remote = start(|options| options.set(sets[0]).set(sets[1]));
    let port = remote.port;
    let ask = |fields: &str| {
        let text = answers(&remote, &format!("GET /v1/pods HTTP/1.1\r\n{fields}connection: close\r\n\r\n"));
        Answer::read(text.as_bytes()).unwrap()
    };
    for (host, status) in [
        (format!("127.0.0.1:{port}"), 200),
        (format!("localhost:{port}"), 200),
        ("node.example".to_owned(), 200),
        ("other.example:1".to_owned(), 200),
        ("evil.example".to_owned(), 421),
        (format!("192.0.2.1:{port}"), 421),
        ("node.example.evil.example".to_owned(), 421),
    ] {
        assert_eq!(ask(&format!("host: {host}\r\n")).status, status, "{host}");
    }
    assert_eq!(ask("").status, 400);
    assert_eq!(ask("host: localhost\r\nhost: localhost\r\n").status, 400);
    for origin in ["https://evil.example", "null", "https://console.example:444", "http://console.example"] {
        assert_eq!(ask(&format!("host: localhost\r\norigin: {origin}\r\n")).status, 403, "{origin}");
    }
    let allowed = ask("host: localhost\r\norigin: https://console.example\r\n");
    assert_eq!(allowed.status, 200);
    assert!(allowed.head.contains("access-control-allow-origin: https://console.example"), "{allowed:?}");
    // a WebSocket that a web page opens
    let page = "host: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\norigin: https://evil.example\r\n";
    assert_eq!(ask(page).status, 403);
}

#[test]
fn requests_that_can_be_read_in_two_ways_are_refused_and_end_the_connection() {
    privileged!();
    let remote = start(|options| options);
    // with the right to run pods, so that bodies are read
    fs::write(remote.pki.file("acl.toml"), VIEW.replace("\"view\"", "\"view\", \"run\"")).unwrap();
    assert!(eventually(PATIENCE, || remote.call("alice", "POST", "/v1/pods", &Value::Null).status == 400));
    let hidden = "GET /v1/version HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let post = "POST /v1/pods HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    let chunked = format!("{post}transfer-encoding: chunked\r\n");
    for request in [
        format!("{post}content-length: {}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{hidden}", hidden.len() + 5),
        format!("{chunked}content-length: {}\r\n\r\n0\r\n\r\n{hidden}", hidden.len() + 5),
        format!("{post}content-length: 0\r\ncontent-length: {}\r\n\r\n{hidden}", hidden.len()),
        format!("{post}content-length: 2\r\ncontent-length: 2\r\n\r\n{{}}{hidden}"),
        format!("{post}content-length: 0, {}\r\n\r\n{hidden}", hidden.len()),
        format!("{post}content-length: +0\r\n\r\n{hidden}"),
        format!("{post}content-length : 0\r\n\r\n{hidden}"),
        format!("{post}transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n{hidden}"),
        format!("{post}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("{post}transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n{hidden}"),
        format!("{post}transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("{post}x: a\r\n content-length: 5\r\ncontent-length: 0\r\n\r\n{hidden}"),
        format!("{post}x: a\ncontent-length: 5\r\ncontent-length: 0\r\n\r\n{hidden}"),
        format!("{post}x: a\rcontent-length: 5\r\ncontent-length: 0\r\n\r\n{hidden}"),
        format!("GET /v1/version HTTP/1.1\nhost: localhost\n\n{hidden}"),
        format!("POST /v1/pods HTTP/1.0\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("{chunked}\r\n0x0\r\n\r\n{hidden}"),
        format!("{chunked}\r\n-1\r\n\r\n{hidden}"),
        format!("{chunked}\r\n2\r\n{{}}x\r\n0\r\n\r\n{hidden}"),
        format!("{chunked}\r\n2;a\n{{}}\r\n0\r\n\r\n{hidden}"),
        format!("{chunked}\r\n2\r\n{{}}\r\n0\r\nx: y\n\r\n{hidden}"),
        format!("{chunked}\r\n10000000000000000\r\n{{}}\r\n0\r\n\r\n{hidden}"),
    ] {
        let began = Instant::now();
        let text = answers(&remote, &request);
        assert!(began.elapsed() < Duration::from_secs(5), "{request:?} took {:?}", began.elapsed());
        assert!(text.starts_with("HTTP/1.1 400 "), "{request:?}\n{text}");
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "the hidden request was answered: {request:?}\n{text}");
    }
    // what is strict is served, one request after the other
    let text = answers(&remote, &format!("{hidden}{}", hidden.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n")));
    assert_eq!(text.matches("HTTP/1.1 200 ").count(), 2, "{text}");
    // behind a tunnel or a protocol that was refused nothing is served
    for first in [
        "CONNECT localhost:80 HTTP/1.1\r\nhost: localhost:80",
        "GET /v1/version HTTP/1.1\r\nhost: localhost\r\nupgrade: x",
    ] {
        let text = answers(&remote, &format!("{first}\r\n\r\n{hidden}"));
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{first}\n{text}");
    }
    // a head and a body that are too large
    let head = format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "v".repeat(100_000));
    assert!(answers(&remote, &head).starts_with("HTTP/1.1 431 "));
    let body = format!("{post}content-length: 100000000\r\n\r\n{{");
    let text = answers(&remote, &body);
    assert!(text.starts_with("HTTP/1.1 413 "), "{text}");
}

#[test]
fn floods_and_slow_clients_are_cut_off() {
    privileged!();
    let remote = start(|options| {
        options.set("api.requests_per_second=5").set("api.request_burst=10").set("api.max_connections_per_peer=6")
    });
    let began = Instant::now();
    let ask = || remote.get("alice", "/healthz");
    let limited = until("the rate is limited", PATIENCE, || Some(ask()).filter(|answer| answer.status != 200));
    assert_eq!(limited.status, 429, "{limited:?}");
    let wait = limited.head.lines().find_map(|line| line.strip_prefix("retry-after: ")).expect("it says how long");
    assert!(wait.parse::<u64>().is_ok_and(|seconds| (1..=2).contains(&seconds)), "{wait}");
    for _ in 0..60 {
        assert_eq!(remote.daemon.client().get("/healthz").status, 200, "root on the socket is not limited");
    }
    assert!(eventually(PATIENCE, || ask().status == 200));
    assert!(began.elapsed() < PATIENCE);

    // silent ones hold all places that an address may have, but only for a while
    let mut silent: Vec<TcpStream> = (0..6).map(|_| TcpStream::connect(remote.address()).unwrap()).collect();
    assert!(eventually(PATIENCE, || remote.connect(Some("alice")).is_err()), "one address has more than its places");
    assert_eq!(remote.daemon.client().get("/healthz").status, 200);
    let closed = Instant::now();
    for stream in &mut silent {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0, "without a handshake the connection is closed");
    }
    assert!(closed.elapsed() < Duration::from_secs(15), "{:?}", closed.elapsed());

    // one that sends its head byte by byte, and one its body
    let slow = [
        "GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: ".to_owned(),
        "DELETE /v1/pods/x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n".to_owned(),
    ];
    let slow = slow.map(|start| {
        let mut stream = until("there is a place again", PATIENCE, || remote.connect(Some("alice")).ok());
        stream.write_all(start.as_bytes()).unwrap();
        std::thread::spawn(move || {
            let began = Instant::now();
            stream.sock.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            let mut answer = Vec::new();
            loop {
                let mut piece = [0; 1024];
                match stream.read(&mut piece) {
                    Ok(0) => break,
                    Ok(count) => answer.extend_from_slice(&piece[..count]),
                    Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock) => {
                        if stream.write_all(b"v").is_err() {
                            break;
                        }
                    }
                    Err(_) => break,
                }
                assert!(began.elapsed() < PATIENCE, "a slow client is served for ever");
            }
            began.elapsed()
        })
    });
    for thread in slow {
        let lasted = thread.join().unwrap();
        assert!(lasted < Duration::from_secs(30), "{lasted:?}");
    }
    assert_eq!(remote.daemon.client().get("/healthz").status, 200);
}

#[test]
fn certificates_change_without_a_restart() {
    privileged!();
    let remote = start(|options| options);
    let pid = remote.daemon.pid();
    let shown = || {
        let stream = remote.connect(Some("alice")).ok()?;
        stream.conn.peer_certificates().map(|chain| chain[0].to_vec())
    };
    let first = shown().unwrap();
    let held = alice(&remote);
    let at = remote.pki.at();
    must(&["cert", "issue", "server", "--folder", at, "--host", "127.0.0.1", "--host", "new.example", "--renew"]);
    assert!(eventually(PATIENCE, || shown().is_some_and(|now| now != first)), "the new certificate is shown");
    let second = shown().unwrap();
    assert!(!remote.events("tls-reloaded").is_empty());
    // a connection from before goes on
    let text = raw(held, b"GET /healthz HTTP/1.1\r\nhost: node.example\r\nconnection: close\r\n\r\n").unwrap();
    assert!(text.starts_with(b"HTTP/1.1 200 "));
    let ask = |host: &str| {
        let request = format!("GET /healthz HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        Answer::read(answers(&remote, &request).as_bytes()).unwrap().status
    };
    assert_eq!((ask("new.example"), ask("node.example")), (200, 421));

    // a broken file changes nothing, and is told
    let good = fs::read(remote.pki.file("server.crt")).unwrap();
    fs::write(remote.pki.file("server.crt"), "-----BEGIN CERTIFICATE-----\nrubbish\n").unwrap();
    assert!(eventually(PATIENCE, || {
        assert_eq!(shown().as_ref(), Some(&second), "the certificate before stays in use");
        !remote.events("tls-reload-failed").is_empty()
    }));
    fs::write(remote.pki.file("server.crt"), good).unwrap();

    // another authority of clients: its clients get in, those of the old one do not. At once, by SIGHUP
    let other = Pki::new();
    other.client("alice");
    fs::copy(other.file("ca.crt"), remote.pki.file("ca-new.crt")).unwrap();
    let server_ca = fs::read(remote.pki.file("ca.crt")).unwrap();
    fs::rename(remote.pki.file("ca-new.crt"), remote.pki.file("ca.crt")).unwrap();
    remote.daemon.signal(rustix::process::Signal::HUP);
    let client = (other.file("alice.crt"), other.file("alice.key"));
    let trusted = other.file("server-ca.crt");
    fs::write(&trusted, server_ca).unwrap();
    let in_by = |certificate: &std::path::Path, key: &std::path::Path| {
        remote::connect(remote.address(), &trusted, Some((certificate, key)), true)
            .and_then(|stream| raw(stream, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"))
            .is_ok_and(|answer| answer.starts_with(b"HTTP/1.1 200 "))
    };
    assert!(eventually(PATIENCE, || in_by(&client.0, &client.1)), "{}", remote.daemon.log());
    assert!(!in_by(&remote.pki.file("alice.crt"), &remote.pki.file("alice.key")));
    assert_eq!(remote.daemon.pid(), pid);
}

#[test]
fn a_connection_holds_its_place_as_long_as_it_lives_and_gives_it_back() {
    privileged!();
    let remote = start(|options| options.set("api.max_connections_per_peer=3"));
    remote.daemon.client().run_pod(&pods::sleeper("/p"));
    for _ in 0..20 {
        assert_eq!(remote.get("alice", "/v1/pods").json.as_array().map(Vec::len), Some(1));
    }
    let held: Vec<Stream> = (0..3).map(|_| alice(&remote)).collect();
    assert!(remote.try_call(Some("alice"), "GET", "/healthz", "").is_err());
    drop(held);
    assert!(eventually(PATIENCE, || remote.try_call(Some("alice"), "GET", "/healthz", "").is_ok()));
    assert_eq!(remote.call("alice", "GET", "/v1/pods", &Value::Null).status, 200);
    remote.daemon.client().rm("/p");
}
