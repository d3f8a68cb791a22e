//! Answers that are sent piece by piece while something goes on.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::answer::Body;

/// Pieces that may wait for a slow client.
const WAITING: usize = 64;

/// Where the pieces of an answer go. Clones feed the same answer, which ends when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    shutdown: CancellationToken,
}

impl Pieces {
    /// Sends a piece; waits for a slow client. False when the client is gone or the daemon stops.
    pub async fn give(&self, piece: impl Into<Bytes>) -> bool {
        tokio::select! {
            sent = self.sender.send(Ok(piece.into())) => sent.is_ok(),
            () = self.shutdown.cancelled() => false,
        }
    }

    /// Breaks the answer off, so that the client sees that it is not whole.
    pub async fn break_off(&self, reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) {
        let piece = Err(io::Error::other(reason));
        // a client that is gone needs no word
        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), self.sender.send(piece)).await;
    }

    /// Waits until the client is gone or the daemon stops.
    pub async fn unwanted(&self) {
        tokio::select! {
            () = self.sender.closed() => {}
            () = self.shutdown.cancelled() => {}
        }
    }

    /// A sender that does not keep the answer open.
    pub fn downgrade(&self) -> mpsc::WeakSender<io::Result<Bytes>> {
        self.sender.downgrade()
    }
}

/// An answer to be sent in pieces, and where they go. `shutdown` ends them.
pub fn open(content_type: &'static str, shutdown: &CancellationToken) -> (Pieces, Response<Body>) {
    open_for(content_type, shutdown, WAITING)
}

/// The same where so many pieces may wait for a slow client: fewer where pieces are large.
pub fn open_for(content_type: &'static str, shutdown: &CancellationToken, waiting: usize) -> (Pieces, Response<Body>) {
    let (sender, receiver) = mpsc::channel(waiting);
    let mut response = Response::new(Piped(receiver).boxed_unsync());
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    (Pieces { sender, shutdown: shutdown.clone() }, response)
}

struct Piped(mpsc::Receiver<io::Result<Bytes>>);

impl hyper::body::Body for Piped {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}
