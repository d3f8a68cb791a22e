//! A client of the exec protocol for tests: frames over an upgraded connection. Sessions are children of the test that run a
//! shell command; their pod exists on paper.

use std::time::Duration;

use agentd_api::session::{FrameKind, HEAD, ServerMessage, frame_head, read_head};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Server, parse, pod, start};

/// Longest wait for a frame.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the server sends.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    Out(FrameKind, Vec<u8>),
    Control(ServerMessage),
}

/// An attached client.
#[derive(Debug)]
pub struct Attached {
    pub stream: UnixStream,
    /// Head of the answer.
    pub head: String,
    /// The first frame.
    pub session: String,
    pub stdin: u64,
    pub output: u64,
}

/// A server with one pod.
pub async fn server() -> Server {
    let server = start();
    assert_eq!(server.run("/v1/pods", &pod("/app", "running")).await.status, 201);
    server
}

/// The head of a request that asks for frames.
pub fn request(method: &str, path: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: agentd-exec\r\ncontent-length: {}\r\n\r\n\
         {body}",
        body.len()
    )
}

/// Reads an answer's head, no byte more.
pub async fn head(stream: &mut UnixStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(PATIENCE, stream.read_u8()).await.expect("an answer comes in time");
        head.push(byte.expect("the answer has a whole head"));
    }
    String::from_utf8(head).unwrap()
}

/// The body of a request for a shell command.
pub fn shell(command: &str, stdin: bool) -> Value {
    json!({"command": [command], "stdin": stdin})
}

impl Attached {
    /// Runs a program; `ahead` is sent with the request, before the answer has come.
    pub async fn exec_ahead(server: &Server, body: &Value, ahead: &[u8]) -> Self {
        let request = request("POST", "/v1/pods/app/exec", &body.to_string());
        Self::upgrade(server, &[request.as_bytes(), ahead].concat()).await
    }

    /// Runs a program.
    pub async fn exec(server: &Server, body: &Value) -> Self {
        Self::exec_ahead(server, body, b"").await
    }

    /// Attaches to a session.
    pub async fn attach(server: &Server, session: &str, query: &str) -> Self {
        Self::upgrade(server, request("GET", &format!("/v1/sessions/{session}/attach?{query}"), "").as_bytes()).await
    }

    async fn upgrade(server: &Server, request: &[u8]) -> Self {
        let mut stream = server.connect().await;
        stream.write_all(request).await.unwrap();
        let head = head(&mut stream).await;
        if !head.starts_with("HTTP/1.1 101 ") {
            let mut body = vec![0; 4096];
            let count = timeout(PATIENCE, stream.read(&mut body)).await.unwrap().unwrap();
            panic!("{head}{}", String::from_utf8_lossy(&body[..count]));
        }
        let mut attached = Self { stream, head, session: String::new(), stdin: 0, output: 0 };
        match attached.next().await {
            Some(Frame::Control(ServerMessage::Attached { session, stdin, output })) => {
                (attached.session, attached.stdin, attached.output) = (session, stdin, output);
            }
            other => panic!("the first frame is {other:?}"),
        }
        attached
    }

    /// The next frame; none at the end of the connection.
    pub async fn next(&mut self) -> Option<Frame> {
        let read = async {
            let mut head = [0; HEAD];
            if self.stream.read(&mut head[..1]).await.unwrap() == 0 {
                return None;
            }
            self.stream.read_exact(&mut head[1..]).await.unwrap();
            let (kind, length) = read_head(head).unwrap();
            let mut payload = vec![0; length];
            self.stream.read_exact(&mut payload).await.unwrap();
            Some(match kind {
                FrameKind::Control => Frame::Control(serde_json::from_slice(&payload).unwrap()),
                kind => Frame::Out(kind, payload),
            })
        };
        timeout(PATIENCE, read).await.expect("a frame comes in time")
    }

    /// The next control message that is no acknowledgement. Output before it is dropped.
    pub async fn message(&mut self) -> ServerMessage {
        loop {
            match self.next().await.expect("a message comes before the end") {
                Frame::Out(..) | Frame::Control(ServerMessage::Ack { .. }) => {}
                Frame::Control(message) => return message,
            }
        }
    }

    /// Reads until the output so far holds `wanted`; gives it.
    pub async fn until(&mut self, wanted: &str) -> String {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(wanted) {
            match self.next().await {
                Some(Frame::Out(_, bytes)) => seen.extend(bytes),
                Some(Frame::Control(ServerMessage::Ack { .. })) => {}
                other => panic!("{other:?} before {wanted:?}: {}", String::from_utf8_lossy(&seen)),
            }
        }
        String::from_utf8(seen).unwrap()
    }

    /// Reads to the end: standard output, standard error, and the last message.
    pub async fn rest(&mut self) -> (Vec<u8>, Vec<u8>, Option<ServerMessage>) {
        let (mut out, mut err, mut last) = (Vec::new(), Vec::new(), None);
        while let Some(frame) = self.next().await {
            assert!(
                !matches!(last, Some(ServerMessage::Exit { .. } | ServerMessage::Detached { .. })),
                "{frame:?} follows the last frame"
            );
            match frame {
                Frame::Out(FrameKind::Stdout, bytes) => out.extend(bytes),
                Frame::Out(_, bytes) => err.extend(bytes),
                Frame::Control(message) => last = Some(message),
            }
        }
        (out, err, last)
    }

    /// Sends a frame.
    pub async fn send(&mut self, kind: FrameKind, payload: &[u8]) {
        self.stream.write_all(&frame(kind, payload)).await.unwrap();
    }

    /// Sends a control message.
    pub async fn control(&mut self, message: &Value) {
        self.send(FrameKind::Control, message.to_string().as_bytes()).await;
    }

    /// Sends all of some input in frames of a size and closes the input, while reading to the end.
    pub async fn exchange(self, input: Vec<u8>, size: usize) -> (Vec<u8>, Vec<u8>, Option<ServerMessage>) {
        let (reader, mut writer) = split(self.stream);
        let sender = tokio::spawn(async move {
            for piece in input.chunks(size) {
                writer.write_all(&frame(FrameKind::Stdin, piece)).await.unwrap();
            }
            writer.write_all(&frame(FrameKind::Stdin, b"")).await.unwrap();
            writer
        });
        let mut reader = tokio::io::BufReader::with_capacity(256 << 10, reader);
        let (mut out, mut err, mut last) = (Vec::new(), Vec::new(), None);
        loop {
            let mut head = [0; HEAD];
            match timeout(PATIENCE, reader.read_exact(&mut head)).await.expect("a frame comes in time") {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
                Err(error) => panic!("{error}"),
            }
            let (kind, length) = read_head(head).unwrap();
            let mut payload = vec![0; length];
            reader.read_exact(&mut payload).await.unwrap();
            match kind {
                FrameKind::Stdout => out.append(&mut payload),
                FrameKind::Stderr => err.append(&mut payload),
                _ => last = Some(serde_json::from_slice(&payload).unwrap()),
            }
        }
        drop(sender.await.unwrap());
        (out, err, last)
    }
}

/// A frame as bytes.
pub fn frame(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
    [frame_head(kind, payload.len()).as_slice(), payload].concat()
}

/// The problem of an answer that is no upgrade.
pub async fn refused(server: &Server, request: &str) -> (u16, Value, String) {
    let reply = parse(&server.raw(request.as_bytes()).await);
    (reply.status, reply.json(), reply.head)
}

/// Bytes in which each place can be told from others.
pub fn pattern(count: usize) -> Vec<u8> {
    (0..count as u64).map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}
