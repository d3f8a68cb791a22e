//! The API against a small stand-in for the node, over a real socket.

mod calls;
mod exec;
mod exec_client;
mod exec_sessions;
mod exec_websocket;
mod fake;
mod hostile;
mod rest;
mod streams;

pub(crate) use fake::{Fake, pod};

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::connection::{Limits, serve_within};

/// A server in this process.
pub(crate) struct Server {
    pub fake: Arc<Fake>,
    pub socket: PathBuf,
    pub shutdown: CancellationToken,
    pub served: JoinHandle<()>,
}

/// Starts a server with these limits.
pub(crate) fn start_within(limits: Limits) -> Server {
    let fake = Arc::new(Fake::new());
    let socket = fake.folder.path().join("api.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let shutdown = CancellationToken::new();
    let served = tokio::spawn(serve_within(Arc::clone(&fake), listener, shutdown.clone(), limits));
    Server { fake, socket, shutdown, served }
}

/// Starts a server.
pub(crate) fn start() -> Server {
    start_within(Limits::default())
}

/// An answer as it came.
#[derive(Debug)]
pub(crate) struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().filter_map(|line| line.split_once(": ")).find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

impl Server {
    /// Another server onto the same node, as after a restart of the daemon.
    pub fn again(&self) -> Self {
        let socket = self.fake.folder.path().join("again.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let shutdown = CancellationToken::new();
        let served = serve_within(Arc::clone(&self.fake), listener, shutdown.clone(), Limits::default());
        Self { fake: Arc::clone(&self.fake), socket, shutdown, served: tokio::spawn(served) }
    }

    pub async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.unwrap()
    }

    /// Sends bytes and reads until the server closes, or a moment has passed.
    pub async fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect().await;
        // the server may have had enough before all is sent
        let _ = stream.write_all(bytes).await;
        read_all(&mut stream).await
    }

    /// Makes one call.
    pub async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
        for (name, value) in headers {
            request.extend([name, ": ", value, "\r\n"]);
        }
        request.extend(["content-length: ", &body.len().to_string(), "\r\n\r\n"]);
        let answer = self.raw(&[request.as_bytes(), body].concat()).await;
        parse(&answer)
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.call("GET", path, &[], b"").await
    }

    pub async fn run(&self, path: &str, spec: &str) -> Reply {
        self.call("POST", path, &[("content-type", "application/json")], spec.as_bytes()).await
    }
}

pub(crate) async fn read_all(stream: &mut UnixStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    // a reset after the answer is how a server closes with bytes left unread
    let _ = tokio::time::timeout(Duration::from_secs(10), read).await.expect("the server closes");
    answer
}

/// Takes an answer apart.
pub(crate) fn parse(answer: &[u8]) -> Reply {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no head in {:?}", String::from_utf8_lossy(answer)));
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut body = answer[end + 4..].to_vec();
    if head.contains("transfer-encoding: chunked") {
        body = unchunk(&body);
    }
    Reply { status, head, body }
}

fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(at) = rest.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..at]).unwrap(), 16).unwrap();
        if size == 0 {
            break;
        }
        body.extend_from_slice(&rest[at + 2..at + 2 + size]);
        rest = &rest[at + 4 + size..];
    }
    body
}

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 5 s: {what}");
}
