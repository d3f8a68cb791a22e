//! An attached connection: frames between a client and a session, both ways, with back-pressure.
//!
//! - [`FrameReader`] and [`FrameWriter`] are the two halves of a connection. `raw` makes them of an upgraded HTTP/1.1
//!   connection; `websocket`, beside this folder, makes them of a WebSocket.
//! - `pump` serves one connection with two tasks. One follows the output ([`crate::session::Attachment`]) and is the only
//!   one that writes to the client. The other reads the client's frames, obeys control messages (`control`) and hands
//!   standard input on (`stdin`); what it has to tell goes to the first through a bounded channel, and how much input the
//!   program was given through a watch, in which a newer number takes the place of an older one.
//!
//! What a connection holds in memory is bounded: [`WINDOW`] bytes of input that the program has not taken yet, the read
//! buffer, and the piece of output that is being written. A client that does not read holds its session back, and a
//! program that does not read holds its client back; neither costs memory.

mod control;
mod pump;
mod raw;
mod stdin;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;

use agentd_api::problem::Problem;
use agentd_api::session::{FrameKind, ServerMessage};
use bytes::Bytes;
use hyper::StatusCode;

use super::answer::Refusal;

pub use control::signal_number;
pub use pump::{Client, serve};
pub use raw::open;

/// Bytes of standard input that are taken from a client before its program has taken them. A client that has no more than
/// this unacknowledged never has a control message wait behind its input.
pub const WINDOW: usize = 256 << 10;

/// Largest control message of a client.
pub const MOST_CONTROL: usize = 4 << 10;

/// What a client has sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// A piece of standard input, never empty and not always a whole frame.
    Stdin(Bytes),
    /// Standard input is to be closed.
    CloseStdin,
    /// JSON that is to be a [`agentd_api::session::ClientMessage`].
    Control(Bytes),
}

/// Why nothing more can be read from a client.
#[derive(Debug)]
pub enum Broken {
    /// The connection failed.
    Lost(io::Error),
    /// It has sent something that is no frame.
    Violation(Violation),
}

/// Something that is no frame: the connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// What the client is told.
    pub problem: Problem,
    /// Code of the WebSocket's close frame.
    pub code: u16,
}

impl Violation {
    /// A violation with a line for people. `code` is that of RFC 6455.
    pub fn new(code: u16, detail: impl Into<String>) -> Self {
        let problem = Refusal::new(StatusCode::BAD_REQUEST, "bad-frame", detail).into_problem();
        Self { problem, code }
    }
}

/// Why the server closes a connection; the code of a WebSocket's close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// The last frame was sent.
    Done,
    /// The daemon stops.
    Stopping,
    /// The client has sent something that is no frame.
    Fault(u16),
}

/// The half of a connection that frames come from.
pub trait FrameReader: Send + 'static {
    /// Waits for what comes next; none once the client has ended the connection. Not to be called again after that or
    /// after an error.
    fn next(&mut self) -> impl Future<Output = Result<Option<Received>, Broken>> + Send;

    /// Throws away what still comes until the client ends the connection.
    fn discard(self) -> impl Future<Output = ()> + Send;
}

/// The half of a connection that frames are written to. A frame is complete only once its future is done: after one that
/// was dropped nothing but [`FrameWriter::close`] may be called.
pub trait FrameWriter: Send {
    /// Sends output; waits while the client does not read.
    fn output(&mut self, kind: FrameKind, payload: Bytes) -> impl Future<Output = io::Result<()>> + Send;

    /// Sends a control message.
    fn control(&mut self, message: &ServerMessage) -> impl Future<Output = io::Result<()>> + Send;

    /// Ends the connection.
    fn close(&mut self, why: Closing) -> impl Future<Output = io::Result<()>> + Send;
}

/// A control message as JSON.
pub fn json(message: &ServerMessage) -> io::Result<String> {
    serde_json::to_string(message).map_err(io::Error::other)
}
