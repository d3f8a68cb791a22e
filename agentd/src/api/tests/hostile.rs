//! What is no HTTP, too much of it, or too slow.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{pod, read_all, start, start_within};
use crate::api::connection::Limits;

#[tokio::test]
async fn bytes_that_are_no_request_close_the_connection_and_nothing_else() {
    let server = start();
    let long_path = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(100_000));
    let many = format!("GET /healthz HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(500));
    let large = format!("GET /healthz HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(200_000));
    let cases: Vec<(&str, &[u8])> = vec![
        ("zeros", &[0; 4096]),
        ("ones", &[0xff; 4096]),
        ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("no version", b"GET /healthz\r\n\r\n"),
        ("a version from the future", b"GET /healthz HTTP/9.9\r\n\r\n"),
        ("no path", b"GET  HTTP/1.1\r\n\r\n"),
        ("a header without a name", b"GET /healthz HTTP/1.1\r\n: x\r\n\r\n"),
        ("a header with a NUL", b"GET /healthz HTTP/1.1\r\na: \0\r\n\r\n"),
        ("two lengths", b"POST /v1/pods HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx"),
        ("a length that is none", b"POST /v1/pods HTTP/1.1\r\ncontent-length: -1\r\n\r\n"),
        ("a length beyond numbers", b"POST /v1/pods HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n"),
        ("a chunk without a size", b"POST /v1/pods HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"),
        (
            "a chunk beyond numbers",
            b"POST /v1/pods HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        ),
        ("a path too long", long_path.as_bytes()),
        ("too many headers", many.as_bytes()),
        ("headers too large", large.as_bytes()),
    ];
    for (name, bytes) in cases {
        let answer = String::from_utf8_lossy(&server.raw(bytes).await).into_owned();
        let refused = answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.0 4");
        assert!(refused, "{name}: {answer}");
        assert_eq!(server.get("/healthz").await.status, 200, "after {name}");
    }
}

#[tokio::test]
async fn unusual_targets_are_answered() {
    let server = start();
    for (target, status) in [("OPTIONS *", 404), ("GET http://agentd/healthz", 200), ("CONNECT agentd:80", 404)] {
        let request = format!("{target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let answer = String::from_utf8_lossy(&server.raw(request.as_bytes()).await).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{target}: {answer}");
    }
}

#[tokio::test]
async fn a_body_in_chunks_is_bounded_as_well() {
    let server = start();
    let mut stream = server.connect().await;
    stream.write_all(b"POST /v1/pods HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
    let chunk = [format!("{:x}\r\n", 65536).as_bytes(), &vec![b' '; 65536], b"\r\n"].concat();
    for _ in 0..20 {
        stream.write_all(&chunk).await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 413");
}

#[tokio::test]
async fn slow_clients_are_let_go() {
    let patience = Duration::from_millis(200);
    let server = start_within(Limits { head: patience, body: patience, ..Limits::default() });
    for (sent, answer) in [
        (&b""[..], ""),
        (b"GET /healthz HTT", ""),
        (b"POST /v1/pods HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{", "HTTP/1.1 408"),
    ] {
        let began = Instant::now();
        let got = String::from_utf8_lossy(&server.raw(sent).await).into_owned();
        assert!(got.starts_with(answer), "{got}");
        assert!(began.elapsed() >= patience && began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_connection_too_many_is_told_so() {
    let server = start_within(Limits { connections: 2, ..Limits::default() });
    let held = [server.connect().await, server.connect().await];
    let mut third = server.connect().await;
    let answer = super::parse(&read_all(&mut third).await);
    assert_eq!((answer.status, answer.json()["type"].as_str()), (503, Some("busy")));
    drop(held);
    for _ in 0..100 {
        let mut stream = server.connect().await;
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        if read_all(&mut stream).await.starts_with(b"HTTP/1.1 200") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("connections that were closed still count");
}

/// The same numbers each time, so that a failure can be looked at again.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % most
    }
}

#[tokio::test]
async fn damaged_requests_do_no_harm() {
    let patience = Duration::from_millis(20);
    let server = start_within(Limits { head: patience, body: patience, unwanted: patience, ..Limits::default() });
    let body = pod("/damaged", "running");
    let whole = format!(
        "POST /v1/pods?wait=running&timeout=0 HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut numbers = Numbers(1);
    let mut damaged = || {
        let mut bytes = whole.clone().into_bytes();
        for _ in 0..=numbers.below(4) {
            let at = numbers.below(bytes.len());
            match numbers.below(4) {
                0 => bytes[at] = numbers.below(256) as u8,
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, b"\r\n\0%/{\"0:"[numbers.below(9)]),
                _ => bytes.truncate(at.max(1)),
            }
        }
        bytes
    };
    for _ in 0..20 {
        let batch: Vec<_> = (0..100).map(|_| damaged()).collect();
        futures_util::future::join_all(batch.iter().map(|bytes| server.raw(bytes))).await;
    }
    assert_eq!(server.get("/healthz").await.status, 200);
    assert!(!server.served.is_finished());
}
