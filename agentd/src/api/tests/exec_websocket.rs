//! Attaching over WebSocket.

use std::time::Duration;

use agentd_api::session::ServerMessage;
use agentd_api::status::ExitStatus;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::Server;
use super::exec_client::{head, pattern, refused, server, shell};
use crate::api::Pods;

const PATIENCE: Duration = Duration::from_secs(20);

/// Begins a session by a plain call.
async fn begin(server: &Server, command: &str) -> String {
    let headers = [("content-type", "application/json")];
    let body = shell(command, true).to_string();
    let reply = server.call("POST", "/v1/pods/app/exec", &headers, body.as_bytes()).await;
    assert_eq!(reply.status, 201, "{}", reply.json());
    reply.json()["id"].as_str().unwrap().to_owned()
}

fn handshake(session: &str, fields: &str) -> String {
    format!(
        "GET /v1/sessions/{session}/attach HTTP/1.1\r\nhost: x\r\nconnection: keep-alive, Upgrade\r\nupgrade: WebSocket\r\n\
         {fields}\r\n"
    )
}

const GOOD: &str = "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

struct Client {
    socket: WebSocketStream<UnixStream>,
    head: String,
}

impl Client {
    async fn attach(server: &Server, session: &str) -> Self {
        let mut stream = server.connect().await;
        let fields = format!("{GOOD}sec-websocket-protocol: exec.agentd.v1\r\n");
        stream.write_all(handshake(session, &fields).as_bytes()).await.unwrap();
        let head = head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Self { socket: WebSocketStream::from_raw_socket(stream, Role::Client, None).await, head }
    }

    async fn next(&mut self) -> Option<Message> {
        let next = timeout(PATIENCE, self.socket.next()).await.expect("a message comes in time");
        next.map(|message| message.unwrap())
    }

    /// The next control message; output before it is added to `out`.
    async fn message(&mut self, out: &mut Vec<u8>) -> ServerMessage {
        loop {
            match self.next().await.expect("a message comes before the end") {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Binary(bytes) => {
                    assert!(matches!(bytes[0], 1 | 2), "kind {}", bytes[0]);
                    out.extend_from_slice(&bytes[1..]);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    async fn send(&mut self, message: Message) {
        self.socket.send(message).await.unwrap();
    }
}

#[tokio::test]
async fn a_session_is_driven_to_its_exit() {
    let server = server().await;
    let session = begin(&server, "cat; echo oops >&2; kill -9 $$").await;
    let mut client = Client::attach(&server, &session).await;
    let lower = client.head.to_ascii_lowercase();
    for field in ["upgrade: websocket", "connection: upgrade", "sec-websocket-protocol: exec.agentd.v1"] {
        assert!(lower.contains(&format!("{field}\r\n")), "{field}: {lower}");
    }
    assert!(client.head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{}", client.head);
    let mut out = Vec::new();
    let hello = client.message(&mut out).await;
    assert!(
        matches!(&hello, ServerMessage::Attached { session: id, stdin: 0, output: 0 } if *id == session),
        "{hello:?}"
    );
    client.send(Message::Binary(Bytes::from_static(b"\0typed"))).await;
    assert_eq!(client.message(&mut out).await, ServerMessage::Ack { stdin: 5 });
    client.send(Message::Text(json!({"type": "ping"}).to_string().into())).await;
    assert_eq!(client.message(&mut out).await, ServerMessage::Pong);
    client.send(Message::Binary(Bytes::from_static(b"\0"))).await;
    let ServerMessage::Exit { exit } = client.message(&mut out).await else { panic!("no exit") };
    assert_eq!((out.as_slice(), exit.exit), (b"typedoops\n".as_slice(), ExitStatus::Signal(9)));
    let closed = client.next().await;
    assert!(matches!(&closed, Some(Message::Close(Some(frame))) if u16::from(frame.code) == 1000), "{closed:?}");
    assert_eq!(client.next().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn megabytes_come_back_byte_for_byte() {
    let server = server().await;
    let session = begin(&server, "cat").await;
    let client = Client::attach(&server, &session).await;
    let input = pattern(10_000_019);
    let (mut sink, mut stream) = client.socket.split();
    let sent = input.clone();
    let sender = tokio::spawn(async move {
        for piece in sent.chunks(1 << 20) {
            sink.send(Message::Binary([b"\0", piece].concat().into())).await.unwrap();
        }
        sink.send(Message::Text(json!({"type": "close-stdin"}).to_string().into())).await.unwrap();
        sink
    });
    let (mut out, mut last) = (Vec::new(), None);
    while let Some(message) = timeout(PATIENCE, stream.next()).await.expect("a message comes in time") {
        match message.unwrap() {
            Message::Binary(bytes) => out.extend_from_slice(&bytes[1..]),
            Message::Text(text) => last = Some(serde_json::from_str::<ServerMessage>(&text).unwrap()),
            _ => {}
        }
    }
    drop(sender.await.unwrap());
    assert!(out == input, "{} of {} bytes", out.len(), input.len());
    assert!(matches!(last, Some(ServerMessage::Exit { .. })), "{last:?}");
}

#[tokio::test]
async fn detaching_closing_and_faults() {
    let server = server().await;
    let session = begin(&server, "cat").await;
    let live = server.fake.session(&session).unwrap();
    let mut out = Vec::new();
    // detach by message
    let mut client = Client::attach(&server, &session).await;
    client.message(&mut out).await;
    client.send(Message::Text(json!({"type": "detach"}).to_string().into())).await;
    let last = client.message(&mut out).await;
    assert!(matches!(last, ServerMessage::Detached { .. }), "{last:?}");
    assert!(matches!(client.next().await, Some(Message::Close(Some(frame))) if u16::from(frame.code) == 1000));
    // leave by the WebSocket's own close
    let mut client = Client::attach(&server, &session).await;
    client.message(&mut out).await;
    client.send(Message::Close(None)).await;
    while let Some(message) = client.next().await {
        assert!(message.is_close(), "{message:?}");
    }
    super::eventually("the client is gone", || live.status().clients == 0).await;
    // what is no message
    let mut client = Client::attach(&server, &session).await;
    client.message(&mut out).await;
    client.send(Message::Binary(Bytes::from_static(b"\x07what"))).await;
    let ServerMessage::Error { problem } = client.message(&mut out).await else { panic!("no error") };
    assert_eq!(problem.kind, "bad-frame");
    assert!(matches!(client.next().await, Some(Message::Close(Some(frame))) if u16::from(frame.code) == 1003));
    // the session is none the worse
    assert_eq!(live.status().exit, None);
    // the daemon stops
    let mut client = Client::attach(&server, &session).await;
    client.message(&mut out).await;
    server.shutdown.cancel();
    assert!(matches!(client.next().await, Some(Message::Close(Some(frame))) if u16::from(frame.code) == 1001));
    live.kill("enough").await;
}

#[tokio::test]
async fn a_client_that_never_reads_holds_its_session_back() {
    let server = server().await;
    let session = begin(&server, "yes").await;
    let live = server.fake.session(&session).unwrap();
    let client = Client::attach(&server, &session).await;
    let mut before = 0;
    let still = async {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = live.status().output_bytes;
            if now > 0 && now == before {
                return now;
            }
            before = now;
        }
    };
    let held = timeout(PATIENCE, still).await.expect("the program is held back");
    assert!(held < 4 << 20, "{held} bytes were read for a client that reads none");
    drop(client);
    super::eventually("the client is gone", || live.status().clients == 0).await;
    live.kill("enough").await;
}

#[tokio::test]
async fn handshakes_with_faults_are_refused() {
    let server = server().await;
    let session = begin(&server, "sleep 100").await;
    let live = server.fake.session(&session).unwrap();
    let version = GOOD.replace("13", "12");
    let key = GOOD.replace("dGhl", "!!!!");
    let protocol = format!("{GOOD}sec-websocket-protocol: chat\r\n");
    for (fields, field) in
        [(version, "sec-websocket-version"), (key, "sec-websocket-key"), (protocol, "sec-websocket-protocol")]
    {
        let (status, problem, _) = refused(&server, &handshake(&session, &fields)).await;
        assert_eq!((status, &problem["errors"][0]["path"]), (400, &field.into()), "{problem}");
    }
    assert_eq!(live.status().clients, 0);
    // no subprotocol is fine, and none is answered
    let mut stream = server.connect().await;
    stream.write_all(handshake(&session, GOOD).as_bytes()).await.unwrap();
    let head = head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 101 ") && !head.contains("sec-websocket-protocol"), "{head}");
    live.kill("enough").await;
}
