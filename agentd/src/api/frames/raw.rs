//! Frames on an upgraded HTTP/1.1 connection: a head of 8 bytes, then the payload.
//!
//! Standard input is passed on as it arrives, so that a frame is never held as a whole; only control messages are, and
//! they are small. Output is written as it comes from the session, head and payload in one call.

use std::io::{self, Cursor};

use agentd_api::session::{FrameKind, HEAD, MAX_PAYLOAD, ServerMessage, frame_head, read_head};
use bytes::{Buf, Bytes, BytesMut};
use hyper::upgrade::{Parts, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use super::{Broken, Closing, FrameReader, FrameWriter, MOST_CONTROL, Received, Violation};
use crate::api::strict::Strict;

/// Smallest and largest read buffer. It grows while reads fill it, so that a session in which somebody types costs little
/// and one that is fed a file needs few system calls.
const BUFFER: (usize, usize) = (4 << 10, 256 << 10);

/// A larger piece of a buffer is passed on without a copy. A smaller one is copied: it would keep the whole buffer.
const SHARED: usize = BUFFER.1 / 4;

/// Code of a WebSocket's close frame for a protocol error; told here in words only.
const PROTOCOL_ERROR: u16 = 1002;

/// A half of any connection.
pub type BoxedReader = Box<dyn AsyncRead + Send + Unpin>;
/// The other half.
pub type BoxedWriter = Box<dyn AsyncWrite + Send + Unpin>;

/// The halves of an upgraded connection. The local socket is taken out of its wrapping, so that its two directions are
/// independent of each other; the streams of TLS and TCP share one lock.
pub fn open(upgraded: Upgraded) -> (RawReader<BoxedReader>, RawWriter<BoxedWriter>) {
    match upgraded.downcast::<TokioIo<Strict<UnixStream>>>() {
        Ok(Parts { io, read_buf, .. }) => {
            let (reader, writer) = io.into_inner().into_inner().into_split();
            (RawReader::new(Box::new(reader), &read_buf), RawWriter::new(Box::new(writer)))
        }
        Err(upgraded) => {
            let (reader, writer) = tokio::io::split(TokioIo::new(upgraded));
            (RawReader::new(Box::new(reader), &[]), RawWriter::new(Box::new(writer)))
        }
    }
}

/// Reads frames.
#[derive(Debug)]
pub struct RawReader<R> {
    stream: R,
    buffer: BytesMut,
    /// How much the next read may bring.
    size: usize,
    /// What is missing of the payload of a stdin frame.
    left: usize,
}

impl<R: AsyncRead + Send + Unpin> RawReader<R> {
    /// Reads from `stream`, after what was read already.
    pub fn new(stream: R, read_already: &[u8]) -> Self {
        Self { stream, buffer: BytesMut::from(read_already), size: BUFFER.0, left: 0 }
    }

    /// Reads more. False at the end.
    async fn fill(&mut self) -> Result<bool, Broken> {
        if self.buffer.capacity() - self.buffer.len() < self.size / 2 {
            self.buffer.reserve(self.size);
        }
        let room = self.buffer.capacity() - self.buffer.len();
        let count = self.stream.read_buf(&mut self.buffer).await.map_err(Broken::Lost)?;
        if count == room {
            self.size = (self.size * 2).min(BUFFER.1);
        } else if count < self.size / 4 {
            self.size = (self.size / 2).max(BUFFER.0);
        }
        Ok(count > 0)
    }

    /// The next frame or piece of one, where the buffer holds one.
    fn parse(&mut self) -> Result<Option<Received>, Violation> {
        loop {
            if self.left > 0 {
                let count = self.left.min(self.buffer.len());
                if count == 0 {
                    return Ok(None);
                }
                self.left -= count;
                let piece = if count >= SHARED {
                    self.buffer.split_to(count).freeze()
                } else {
                    let piece = Bytes::copy_from_slice(&self.buffer[..count]);
                    self.buffer.advance(count);
                    piece
                };
                return Ok(Some(Received::Stdin(piece)));
            }
            let Some(head) = self.buffer.first_chunk::<HEAD>() else { return Ok(None) };
            let (kind, length) = read_head(*head).map_err(|line| Violation::new(PROTOCOL_ERROR, line))?;
            match kind {
                FrameKind::Stdin => {
                    self.buffer.advance(HEAD);
                    if length == 0 {
                        return Ok(Some(Received::CloseStdin));
                    }
                    self.left = length;
                }
                FrameKind::Control if length > MOST_CONTROL => {
                    let line = format!("a control frame of {length} bytes, expected at most {MOST_CONTROL}");
                    return Err(Violation::new(PROTOCOL_ERROR, line));
                }
                FrameKind::Control if self.buffer.len() < HEAD + length => return Ok(None),
                FrameKind::Control => {
                    self.buffer.advance(HEAD);
                    let text = Bytes::copy_from_slice(&self.buffer[..length]);
                    self.buffer.advance(length);
                    return Ok(Some(Received::Control(text)));
                }
                FrameKind::Stdout | FrameKind::Stderr => {
                    let line = format!("a frame of kind {}, expected 0 (stdin) or 3 (control)", kind as u8);
                    return Err(Violation::new(PROTOCOL_ERROR, line));
                }
            }
        }
    }
}

impl<R: AsyncRead + Send + Unpin + 'static> FrameReader for RawReader<R> {
    async fn next(&mut self) -> Result<Option<Received>, Broken> {
        loop {
            if let Some(received) = self.parse().map_err(Broken::Violation)? {
                return Ok(Some(received));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    async fn discard(mut self) {
        loop {
            self.buffer.clear();
            if !matches!(self.fill().await, Ok(true)) {
                return;
            }
        }
    }
}

/// Writes frames.
#[derive(Debug)]
pub struct RawWriter<W> {
    stream: W,
}

impl<W: AsyncWrite + Send + Unpin> RawWriter<W> {
    /// Writes to `stream`.
    pub fn new(stream: W) -> Self {
        Self { stream }
    }

    async fn frame(&mut self, kind: FrameKind, payload: Bytes) -> io::Result<()> {
        let head = Cursor::new(frame_head(kind, payload.len()));
        self.stream.write_all_buf(&mut Buf::chain(head, payload)).await
    }
}

impl<W: AsyncWrite + Send + Unpin> FrameWriter for RawWriter<W> {
    async fn output(&mut self, kind: FrameKind, mut payload: Bytes) -> io::Result<()> {
        while !payload.is_empty() {
            let piece = payload.split_to(payload.len().min(MAX_PAYLOAD));
            self.frame(kind, piece).await?;
        }
        self.stream.flush().await
    }

    async fn control(&mut self, message: &ServerMessage) -> io::Result<()> {
        self.frame(FrameKind::Control, super::json(message)?.into()).await?;
        self.stream.flush().await
    }

    async fn close(&mut self, _why: Closing) -> io::Result<()> {
        self.stream.shutdown().await
    }
}
