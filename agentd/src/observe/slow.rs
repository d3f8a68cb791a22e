//! A connection whose client may not take for ever to read an answer: whoever asks and does not read would hold one of the
//! few places of a listener.
//!
//! The time for which writing waits is added up from one request to the next; what a client reads in small pieces does not
//! buy it more. Between requests nothing waits, and the limit of the request's head holds.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// A stream that fails when writing an answer has waited for too long.
#[derive(Debug)]
pub struct Slow<S> {
    stream: S,
    limit: Duration,
    /// What earlier waits for this answer have taken.
    spent: Duration,
    /// The present wait: since when, and when it is over.
    wait: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl<S> Slow<S> {
    /// Lets each answer wait for `limit` in all.
    pub fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, spent: Duration::ZERO, wait: None }
    }

    /// Counts the time of a write that has come to this.
    fn within<T>(&mut self, context: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            if let Some((since, _)) = self.wait.take() {
                self.spent += since.elapsed();
            }
            return result;
        }
        let left = self.limit.saturating_sub(self.spent);
        let (_, over) = self.wait.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(left))));
        ready!(over.as_mut().poll(context));
        let fault = format!("the client has not read its answer within {} s", self.limit.as_secs());
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, fault)))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Slow<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        // a client that sends requests and reads nothing is not let off: its answer waits meanwhile
        if buffer.filled().len() > before && self.wait.is_none() {
            self.spent = Duration::ZERO;
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Slow<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.within(context, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.within(context, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // of a TCP stream this never waits, and says nothing of what could not be written
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn who_reads_nothing_is_let_go() {
        let (ours, mut client) = duplex(8);
        let limit = Duration::from_millis(200);
        let mut slow = Slow::new(ours, limit);
        client.write_all(b"GET").await.unwrap();
        slow.read_exact(&mut [0; 3]).await.unwrap();
        let begun = Instant::now();
        let error = slow.write_all(&[0; 9]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= limit);
    }

    #[tokio::test]
    async fn who_reads_drop_by_drop_has_no_longer() {
        let (ours, mut client) = duplex(1);
        let mut slow = Slow::new(ours, Duration::from_millis(300));
        let reader = tokio::spawn(async move {
            let mut taken = 0;
            while client.read_exact(&mut [0]).await.is_ok() {
                taken += 1;
                sleep(Duration::from_millis(50)).await;
            }
            taken
        });
        assert!(slow.write_all(&[0; 100]).await.is_err());
        drop(slow);
        assert!(reader.await.unwrap() < 20);
    }

    #[tokio::test]
    async fn each_answer_has_its_own_time() {
        let (ours, mut client) = duplex(4);
        let mut slow = Slow::new(ours, Duration::from_secs(2));
        for _ in 0..2 {
            client.write_all(b"GET").await.unwrap();
            slow.read_exact(&mut [0; 3]).await.unwrap();
            let reads = async {
                sleep(Duration::from_millis(1100)).await;
                client.read_exact(&mut [0; 8]).await.unwrap();
            };
            let (written, ()) = tokio::join!(slow.write_all(&[0; 8]), reads);
            written.expect("in time");
        }
    }
}
