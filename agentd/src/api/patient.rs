//! A TCP stream that notices a dead peer within about a minute.
//!
//! Keep-alive probes find the peer of a quiet connection dead. While data is under way the kernel sends none, and tries again for a
//! quarter of an hour; `TCP_USER_TIMEOUT` would shorten that, but ends connections of clients, too, that live and merely read
//! nothing for a while, such as a stopped terminal. So [`Patient`] asks the kernel now and then, while it waits: data that was
//! sent and that nothing has been acknowledged of for a minute means that nobody is there.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

/// How often the kernel is asked.
const INTERVAL: Duration = Duration::from_secs(15);

/// How long data may stay without any acknowledgement.
const SILENCE: Duration = Duration::from_secs(45);

/// A TCP stream that does not wait for ever.
#[derive(Debug)]
pub struct Patient {
    stream: TcpStream,
    check: Pin<Box<Sleep>>,
}

impl Patient {
    /// Takes a new connection: no delay for small packets, probes of quiet peers.
    pub fn new(stream: TcpStream) -> Self {
        // a refusal of one of these makes nothing wrong, only later
        let _ = stream.set_nodelay(true);
        let _ = setsockopt(&stream, sockopt::KeepAlive, &true);
        let _ = setsockopt(&stream, sockopt::TcpKeepIdle, &20);
        let _ = setsockopt(&stream, sockopt::TcpKeepInterval, &10);
        let _ = setsockopt(&stream, sockopt::TcpKeepCount, &3);
        Self { stream, check: Box::pin(sleep(INTERVAL)) }
    }

    /// While waiting: fails once the peer is dead.
    fn peer_lives(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        use std::future::Future;
        while self.check.as_mut().poll(context).is_ready() {
            if silent(self.stream.as_raw_fd()) {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the peer has not acknowledged anything for a minute",
                ));
            }
            self.check.as_mut().reset(Instant::now() + INTERVAL);
        }
        Ok(())
    }
}

/// Whether data is under way of which nothing was acknowledged for long.
fn silent(fd: RawFd) -> bool {
    // SAFETY: all fields of `tcp_info` are plain numbers, for which zeros are valid
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: `info` is valid for writes of `length` bytes, and the kernel writes no more than that
    let result =
        unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length) };
    result == 0 && info.tcpi_unacked > 0 && Duration::from_millis(u64::from(info.tcpi_last_ack_recv)) > SILENCE
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Pending => self.peer_lives(context).map_or_else(|error| Poll::Ready(Err(error)), |()| Poll::Pending),
            ready => ready,
        }
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(context, bytes) {
            Poll::Pending => self.peer_lives(context).map_or_else(|error| Poll::Ready(Err(error)), |()| Poll::Pending),
            ready => ready,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write_vectored(context, slices) {
            Poll::Pending => self.peer_lives(context).map_or_else(|error| Poll::Ready(Err(error)), |()| Poll::Pending),
            ready => ready,
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
