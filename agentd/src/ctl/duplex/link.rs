//! A connection to an attached session: one half is read from, the other sends messages and standard input.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use agentd_api::session::{ClientMessage, FrameKind, HEAD, frame_head};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use super::window::{Next, Window};

/// A connection.
pub struct Link {
    /// What is read from.
    pub reader: Reader,
    /// What is written to.
    pub sender: Sender,
}

impl Link {
    /// Of an upgraded connection. A Unix socket is used itself, without what was around it.
    pub fn new(upgraded: Upgraded) -> Self {
        match upgraded.downcast::<TokioIo<UnixStream>>() {
            Ok(parts) => {
                let (read, write) = parts.io.into_inner().into_split();
                Self::of(parts.read_buf.to_vec(), Box::new(read), Box::new(write))
            }
            Err(upgraded) => {
                let (read, write) = tokio::io::split(TokioIo::new(upgraded));
                Self::of(Vec::new(), Box::new(read), Box::new(write))
            }
        }
    }

    fn of(first: Vec<u8>, read: Box<dyn AsyncRead + Send + Unpin>, write: Box<dyn AsyncWrite + Send + Unpin>) -> Self {
        Self { reader: Reader { first, from: read }, sender: Sender::new(write) }
    }
}

/// The half that is read from.
pub struct Reader {
    /// What was read already.
    first: Vec<u8>,
    from: Box<dyn AsyncRead + Send + Unpin>,
}

impl Reader {
    /// Reads some bytes; none at the end. May be dropped and called again without loss.
    pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.first.is_empty() {
            return self.from.read(buffer).await;
        }
        let count = self.first.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.first[..count]);
        self.first.drain(..count);
        Ok(count)
    }
}

/// The half that is written to.
pub struct Sender {
    to: Box<dyn AsyncWrite + Send + Unpin>,
    messages: VecDeque<Vec<u8>>,
    /// The frame that is being sent, and how much of it was.
    frame: Option<(Frame, usize)>,
    /// Whether the connection may keep something that it was given.
    unflushed: bool,
}

enum Frame {
    Message(Vec<u8>),
    Input { head: [u8; HEAD], what: Next },
}

impl Sender {
    fn new(to: Box<dyn AsyncWrite + Send + Unpin>) -> Self {
        Self { to, messages: VecDeque::new(), frame: None, unflushed: false }
    }

    /// Sends a message, before any input that is not being sent yet.
    pub fn message(&mut self, message: &ClientMessage) {
        // the messages are plain enough for JSON
        if let Ok(text) = serde_json::to_vec(message) {
            self.messages.push_back([&frame_head(FrameKind::Control, text.len()), text.as_slice()].concat());
        }
    }

    /// Whether there is something to send.
    pub fn has_work(&self, window: &Window) -> bool {
        self.unflushed || self.frame.is_some() || !self.messages.is_empty() || window.next().is_some()
    }

    /// Sends some of what there is to send. May be dropped and called again without loss.
    pub async fn send(&mut self, window: &mut Window) -> io::Result<()> {
        if self.frame.is_none() {
            self.frame = self.messages.pop_front().map(|message| (Frame::Message(message), 0)).or_else(|| {
                let what = window.next()?;
                let length = if let Next::Bytes { length, .. } = what { length } else { 0 };
                Some((Frame::Input { head: frame_head(FrameKind::Stdin, length), what }, 0))
            });
        }
        let Some((frame, done)) = &mut self.frame else {
            // a connection that keeps what it is given, TLS for one, sends it now
            self.to.flush().await?;
            self.unflushed = false;
            return Ok(());
        };
        let (head, payload): (&[u8], &[u8]) = match frame {
            Frame::Message(bytes) => (bytes, &[]),
            Frame::Input { head, what: Next::Bytes { from, length } } => (&*head, &window.piece(*from)[..*length]),
            Frame::Input { head, what: Next::End } => (&*head, &[]),
        };
        let whole = head.len() + payload.len();
        let slices = [
            IoSlice::new(head.get(*done..).unwrap_or_default()),
            IoSlice::new(&payload[done.saturating_sub(head.len())..]),
        ];
        let count = self.to.write_vectored(&slices).await?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.unflushed = true;
        *done += count;
        if *done < whole {
            return Ok(());
        }
        if let Some((Frame::Input { what, .. }, _)) = self.frame.take() {
            window.sent(what);
        }
        Ok(())
    }
}
