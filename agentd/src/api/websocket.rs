//! WebSocket (RFC 6455) for clients that cannot upgrade to anything else, such as browsers.
//!
//! The handshake is checked here and answered by the HTTP server; what comes after it is tokio-tungstenite's. A binary
//! message is a byte of kind and the payload, a text message is the JSON of a control frame.

use std::io;
use std::time::Duration;

use agentd_api::problem::Violation as Fault;
use agentd_api::session::{FrameKind, MAX_PAYLOAD, ServerMessage, WEBSOCKET_PROTOCOL};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hyper::header::{
    HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION,
};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::answer::Refusal;
use super::frames::{Broken, Closing, FrameReader, FrameWriter, MOST_CONTROL, Received, Violation};

/// The version that there is.
const VERSION: &str = "13";

/// Largest message of a client: a byte of kind and a payload.
const MOST_MESSAGE: usize = MAX_PAYLOAD + 1;

/// Output is sent in messages of at most so many bytes, each of which is copied once.
const PIECE: usize = 128 << 10;

/// What the WebSocket holds ready to be read.
const READ_BUFFER: usize = 16 << 10;

/// What may wait to be written: one message, and answers to pings.
const MOST_WAITING: usize = 4 * PIECE;

/// How long the answer to a client's close frame may take.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Codes of close frames.
const NORMAL: u16 = 1000;
const GOING_AWAY: u16 = 1001;
const PROTOCOL_ERROR: u16 = 1002;
const UNSUPPORTED: u16 = 1003;
const NOT_UTF8: u16 = 1007;
const TOO_BIG: u16 = 1009;

/// A handshake that is in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Handshake {
    accept: String,
    protocol: bool,
}

impl Handshake {
    /// Reads the header fields of a request that asks for a WebSocket.
    pub fn read(headers: &HeaderMap) -> Result<Self, Refusal> {
        let mut faults = Vec::new();
        let mut versions = headers.get_all(SEC_WEBSOCKET_VERSION).iter();
        if versions.next().map(HeaderValue::as_bytes) != Some(VERSION.as_bytes()) || versions.next().is_some() {
            faults.push(Fault::new("sec-websocket-version", format!("expected {VERSION}, once")));
        }
        let mut keys = headers.get_all(SEC_WEBSOCKET_KEY).iter();
        let key = keys.next().map(HeaderValue::as_bytes).unwrap_or_default();
        if !is_key(key) || keys.next().is_some() {
            faults.push(Fault::new("sec-websocket-key", "expected 16 bytes in base64, once"));
        }
        let offered: Vec<&str> = tokens(headers, &SEC_WEBSOCKET_PROTOCOL).collect();
        let protocol = offered.contains(&WEBSOCKET_PROTOCOL);
        if !protocol && headers.contains_key(SEC_WEBSOCKET_PROTOCOL) {
            let shown: String = offered.join(", ").chars().take(80).collect();
            let message = format!("found {shown:?}, expected {WEBSOCKET_PROTOCOL} among them, or no such field");
            faults.push(Fault::new("sec-websocket-protocol", message));
        }
        if faults.is_empty() {
            Ok(Self { accept: derive_accept_key(key), protocol })
        } else {
            Err(Refusal::bad_request(faults))
        }
    }

    /// Adds what the answer must carry beside the upgrade.
    pub fn answer(&self, headers: &mut HeaderMap) {
        if let Ok(accept) = HeaderValue::try_from(&self.accept) {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        }
        if self.protocol {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(WEBSOCKET_PROTOCOL));
        }
    }
}

/// Whether this is the base64 of 16 bytes.
fn is_key(key: &[u8]) -> bool {
    let digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    key.len() == 24 && key.ends_with(b"==") && key[..22].iter().all(digit)
}

/// The members of a comma-separated header field.
pub fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// The halves of a connection after the handshake.
pub async fn open(upgraded: Upgraded) -> (Reader<TokioIo<Upgraded>>, Writer<TokioIo<Upgraded>>) {
    over(TokioIo::new(upgraded)).await
}

/// The server's end of a WebSocket on any stream.
pub async fn over<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> (Reader<S>, Writer<S>) {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(MOST_WAITING)
        .max_message_size(Some(MOST_MESSAGE))
        .max_frame_size(Some(MOST_MESSAGE));
    let (sink, stream) = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await.split();
    (Reader(stream), Writer(sink))
}

/// Reads messages.
#[derive(Debug)]
pub struct Reader<S>(SplitStream<WebSocketStream<S>>);

/// Writes messages.
#[derive(Debug)]
pub struct Writer<S>(SplitSink<WebSocketStream<S>, Message>);

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> FrameReader for Reader<S> {
    async fn next(&mut self) -> Result<Option<Received>, Broken> {
        loop {
            let received = match self.0.next().await {
                // answered by the WebSocket itself
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Ok(Message::Close(_))) => {
                    // the answer is sent by the next read, unless the client takes nothing any more
                    let _ = timeout(LAST_WORD, self.0.next()).await;
                    return Ok(None);
                }
                None => return Ok(None),
                Some(Ok(Message::Binary(message))) => binary(message),
                Some(Ok(Message::Text(text))) => control(text.into()),
                Some(Err(error)) => return broken(error),
            };
            return received.map(Some).map_err(Broken::Violation);
        }
    }

    async fn discard(mut self) {
        // the client's close frame comes before the end
        while let Some(Ok(_)) = self.0.next().await {}
    }
}

/// What a binary message means.
fn binary(mut message: Bytes) -> Result<Received, Violation> {
    let kind = message.first().map(|byte| (*byte, FrameKind::from_byte(*byte)));
    let payload = message.split_off(message.len().min(1));
    match kind {
        Some((_, Some(FrameKind::Stdin))) if payload.is_empty() => Ok(Received::CloseStdin),
        Some((_, Some(FrameKind::Stdin))) => Ok(Received::Stdin(payload)),
        Some((_, Some(FrameKind::Control))) => control(payload),
        Some((byte, _)) => {
            let line = format!("a binary message of kind {byte}, expected 0 (stdin) or 3 (control) in its first byte");
            Err(Violation::new(UNSUPPORTED, line))
        }
        None => Err(Violation::new(UNSUPPORTED, "an empty binary message, expected a byte of kind and the payload")),
    }
}

fn control(text: Bytes) -> Result<Received, Violation> {
    if text.len() > MOST_CONTROL {
        let line = format!("a control message of {} bytes, expected at most {MOST_CONTROL}", text.len());
        return Err(Violation::new(TOO_BIG, line));
    }
    Ok(Received::Control(text))
}

/// What an error of the WebSocket means.
fn broken(error: Error) -> Result<Option<Received>, Broken> {
    match error {
        // also without the closing handshake: as an upgraded connection that ends
        Error::ConnectionClosed
        | Error::AlreadyClosed
        | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Ok(None),
        Error::Io(error) => Err(Broken::Lost(error)),
        Error::Capacity(CapacityError::MessageTooLong { size, .. }) => {
            let line = format!("a message of {size} bytes, expected at most {MOST_MESSAGE}");
            Err(Broken::Violation(Violation::new(TOO_BIG, line)))
        }
        Error::Utf8(error) => {
            Err(Broken::Violation(Violation::new(NOT_UTF8, format!("a text message that is no UTF-8: {error}"))))
        }
        error => Err(Broken::Violation(Violation::new(PROTOCOL_ERROR, format!("no WebSocket frame: {error}")))),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Writer<S> {
    async fn send(&mut self, message: Message) -> io::Result<()> {
        self.0.send(message).await.map_err(|error| match error {
            Error::Io(error) => error,
            error => io::Error::other(error),
        })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> FrameWriter for Writer<S> {
    async fn output(&mut self, kind: FrameKind, mut payload: Bytes) -> io::Result<()> {
        while !payload.is_empty() {
            let piece = payload.split_to(payload.len().min(PIECE));
            let mut message = BytesMut::with_capacity(1 + piece.len());
            message.put_u8(kind as u8);
            message.extend_from_slice(&piece);
            self.send(Message::Binary(message.freeze())).await?;
        }
        Ok(())
    }

    async fn control(&mut self, message: &ServerMessage) -> io::Result<()> {
        self.send(Message::Text(super::frames::json(message)?.into())).await
    }

    async fn close(&mut self, why: Closing) -> io::Result<()> {
        let code = match why {
            Closing::Done => NORMAL,
            Closing::Stopping => GOING_AWAY,
            Closing::Fault(code) => code,
        };
        self.send(Message::Close(Some(CloseFrame { code: code.into(), reason: "".into() }))).await
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    /// A client and the server's halves.
    async fn pair() -> (WebSocketStream<DuplexStream>, Reader<DuplexStream>, Writer<DuplexStream>) {
        let (client, server) = duplex(1 << 20);
        let (reader, writer) = over(server).await;
        (WebSocketStream::from_raw_socket(client, Role::Client, None).await, reader, writer)
    }

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let mut headers = HeaderMap::new();
        for (name, value) in fields.iter().map(field) {
            headers.append(name, value);
        }
        headers
    }

    const KEY: (&str, &str) = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    const THIRTEEN: (&str, &str) = ("sec-websocket-version", "13");

    #[test]
    fn the_handshake_is_that_of_the_standard() {
        let mut answer = HeaderMap::new();
        Handshake::read(&headers(&[KEY, THIRTEEN])).unwrap().answer(&mut answer);
        assert_eq!(answer, headers(&[("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")]));
        let offered = headers(&[KEY, THIRTEEN, ("sec-websocket-protocol", "chat, exec.agentd.v1")]);
        Handshake::read(&offered).unwrap().answer(&mut answer);
        assert_eq!(answer["sec-websocket-protocol"], "exec.agentd.v1");
    }

    #[test]
    fn handshakes_with_faults_name_all_of_them() {
        let paths = |fields: &[(&'static str, &'static str)]| {
            let problem = Handshake::read(&headers(fields)).unwrap_err().into_problem();
            assert_eq!(problem.status, 400);
            problem.errors.into_iter().map(|fault| fault.path).collect::<Vec<_>>()
        };
        assert_eq!(paths(&[]), ["sec-websocket-version", "sec-websocket-key"]);
        assert_eq!(paths(&[KEY, ("sec-websocket-version", "8")]), ["sec-websocket-version"]);
        assert_eq!(paths(&[KEY, THIRTEEN, THIRTEEN]), ["sec-websocket-version"]);
        assert_eq!(paths(&[KEY, KEY, THIRTEEN]), ["sec-websocket-key"]);
        for bad in ["", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZQ=a", "dGhlIHNhbXBsZSBub25j\u{21}Q=="] {
            assert_eq!(paths(&[("sec-websocket-key", bad), THIRTEEN]), ["sec-websocket-key"], "{bad}");
        }
        for bad in ["chat", "", "EXEC.AGENTD.V1", "exec.agentd.v2"] {
            assert_eq!(paths(&[KEY, THIRTEEN, ("sec-websocket-protocol", bad)]), ["sec-websocket-protocol"], "{bad}");
        }
    }

    #[tokio::test]
    async fn messages_are_frames() {
        let (mut client, mut reader, mut writer) = pair().await;
        for message in [
            Message::Binary(Bytes::from_static(b"\0typed")),
            Message::Ping(Bytes::from_static(b"there?")),
            Message::Text(r#"{"type":"ping"}"#.into()),
            Message::Binary(Bytes::from_static(b"\x03{}")),
            Message::Binary(Bytes::from_static(b"\0")),
            Message::Close(None),
        ] {
            client.send(message).await.unwrap();
        }
        let mut found = Vec::new();
        while let Ok(Some(received)) = reader.next().await {
            found.push(received);
            if found.len() == 1 {
                writer.output(FrameKind::Stderr, Bytes::from(vec![b'e'; PIECE + 1])).await.unwrap();
                writer.control(&ServerMessage::Pong).await.unwrap();
            }
        }
        let control = |text: &'static [u8]| Received::Control(Bytes::from_static(text));
        let stdin = Received::Stdin(Bytes::from_static(b"typed"));
        assert_eq!(found, [stdin, control(br#"{"type":"ping"}"#), control(b"{}"), Received::CloseStdin]);
        drop((reader, writer));
        let mut answers = Vec::new();
        while let Some(Ok(message)) = client.next().await {
            answers.push(message);
        }
        let first = answers.remove(0).into_data();
        assert_eq!((first.len(), first[0]), (PIECE + 1, 2));
        assert_eq!(answers[0], Message::Binary(Bytes::from_static(b"\x02e")));
        assert!(answers.contains(&Message::Text(r#"{"type":"pong"}"#.into())), "{answers:?}");
        assert!(answers.contains(&Message::Pong(Bytes::from_static(b"there?"))), "{answers:?}");
        assert!(answers.last().is_some_and(Message::is_close), "{answers:?}");
    }

    #[tokio::test]
    async fn what_is_no_message_ends_the_reading() {
        for (bad, code, word) in [
            (Message::Binary(Bytes::new()), 1003, "empty"),
            (Message::Binary(Bytes::from_static(b"\x01out")), 1003, "kind 1"),
            (Message::Binary(Bytes::from_static(b"\xffout")), 1003, "kind 255"),
            (Message::Binary(Bytes::from(vec![0; MOST_MESSAGE + 1])), 1009, "at most 1048577"),
            (Message::Text("x".repeat(MOST_CONTROL + 1).into()), 1009, "at most 4096"),
        ] {
            let (mut client, mut reader, _writer) = pair().await;
            let sent = tokio::spawn(async move { client.send(bad).await.map(|()| client) });
            let Err(Broken::Violation(violation)) = reader.next().await else { panic!("{word}: no violation") };
            assert!(violation.problem.detail.contains(word) && violation.code == code, "{word}: {violation:?}");
            drop(sent);
        }
        // a client that does not mask, and one that is cut off
        let (client, server) = duplex(1 << 10);
        let (mut reader, _writer) = over(server).await;
        let mut unmasked = WebSocketStream::from_raw_socket(client, Role::Server, None).await;
        unmasked.send(Message::Text("{}".into())).await.unwrap();
        let broken = reader.next().await.unwrap_err();
        assert!(matches!(&broken, Broken::Violation(violation) if violation.code == 1002), "{broken:?}");
        let (client, mut reader, _writer) = pair().await;
        drop(client);
        assert!(matches!(reader.next().await, Ok(None)));
    }

    #[tokio::test]
    async fn pings_of_a_client_that_does_not_read_cost_no_memory() {
        let (client, server) = duplex(4 << 10);
        let (mut reader, writer) = over(server).await;
        let (mut sink, mut stream) = WebSocketStream::from_raw_socket(client, Role::Client, None).await.split();
        let pings = 20_000;
        let sent = tokio::spawn(async move {
            for _ in 0..pings {
                sink.send(Message::Ping(Bytes::from_static(&[b'p'; 125]))).await?;
            }
            sink.send(Message::Text("{}".into())).await.map(|()| sink)
        });
        assert_eq!(reader.next().await.unwrap(), Some(Received::Control(Bytes::from_static(b"{}"))));
        drop((sent.await.unwrap().unwrap(), reader, writer));
        let mut kept = 0;
        while let Some(Ok(message)) = stream.next().await {
            assert!(message.is_pong(), "{message:?}");
            kept += message.len();
        }
        assert!(kept <= MOST_WAITING + (8 << 10), "{kept} bytes of pongs were kept");
    }
}
