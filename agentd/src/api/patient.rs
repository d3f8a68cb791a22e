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
    interval: Duration,
    silence: Duration,
}

impl Patient {
    /// Takes a new connection: no delay for small packets, probes of quiet peers.
    pub fn new(stream: TcpStream) -> Self {
        Self::within(stream, INTERVAL, SILENCE)
    }

    fn within(stream: TcpStream, interval: Duration, silence: Duration) -> Self {
        // a refusal of one of these makes nothing wrong, only later
        let _ = stream.set_nodelay(true);
        let _ = setsockopt(&stream, sockopt::KeepAlive, &true);
        let _ = setsockopt(&stream, sockopt::TcpKeepIdle, &20);
        let _ = setsockopt(&stream, sockopt::TcpKeepInterval, &10);
        let _ = setsockopt(&stream, sockopt::TcpKeepCount, &3);
        Self { stream, check: Box::pin(sleep(interval)), interval, silence }
    }

    /// While waiting: fails once the peer is dead.
    fn peer_lives(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        use std::future::Future;
        while self.check.as_mut().poll(context).is_ready() {
            if silent(self.stream.as_raw_fd(), self.silence) {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the peer has not acknowledged anything for a minute",
                ));
            }
            let next = Instant::now() + self.interval;
            self.check.as_mut().reset(next);
        }
        Ok(())
    }
}

/// Whether data is under way of which nothing was acknowledged for so long.
fn silent(fd: RawFd, silence: Duration) -> bool {
    // SAFETY: all fields of `tcp_info` are plain numbers, for which zeros are valid
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: `info` is valid for writes of `length` bytes, and the kernel writes no more than that
    let result =
        unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length) };
    result == 0 && info.tcpi_unacked > 0 && Duration::from_millis(u64::from(info.tcpi_last_ack_recv)) > silence
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Pending => self.peer_lives(context).map_or_else(|error| Poll::Ready(Err(error)), |()| Poll::Pending),
            Poll::Ready(result) => Poll::Ready(result),
        }
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(context, bytes) {
            Poll::Pending => self.peer_lives(context).map_or_else(|error| Poll::Ready(Err(error)), |()| Poll::Pending),
            Poll::Ready(result) => Poll::Ready(result),
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
            Poll::Ready(result) => Poll::Ready(result),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A pair of connected streams on the loopback of a network namespace of this thread, the first watched closely.
    async fn pair() -> (Patient, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (interval, silence) = (Duration::from_millis(50), Duration::from_millis(600));
        (Patient::within(accepted.unwrap().0, interval, silence), client.unwrap())
    }

    fn loopback(state: &str) -> bool {
        Command::new("ip").args(["link", "set", "lo", state]).status().is_ok_and(|status| status.success())
    }

    /// Runs in a network namespace of its own, on a thread of its own; says so where there can be none.
    fn apart<F: Future<Output = ()>>(work: impl FnOnce() -> F + Send + 'static) {
        let thread = std::thread::spawn(|| {
            if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() || !loopback("up") {
                eprintln!("skipped because no network namespace can be made");
                return;
            }
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work());
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_peer_that_is_gone_is_noticed_with_data_under_way() {
        apart(|| async {
            let (mut server, _client) = pair().await;
            server.write_all(b"hello").await.unwrap();
            assert!(loopback("down"));
            server.write_all(b"is anybody there?").await.unwrap();
            let read = tokio::time::timeout(Duration::from_secs(20), server.read_u8()).await;
            let error = read.expect("it does not wait for ever").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        });
    }

    #[test]
    fn a_peer_that_reads_nothing_for_a_while_is_kept() {
        apart(|| async {
            let (mut server, mut client) = pair().await;
            let sent = 32 << 20;
            let write = async {
                server.write_all(&vec![7; sent]).await.unwrap();
                server.flush().await.unwrap();
            };
            let read = async {
                tokio::time::sleep(Duration::from_secs(2)).await;
                let mut got = 0;
                let mut buffer = vec![0; 1 << 20];
                while got < sent {
                    got += client.read(&mut buffer).await.unwrap();
                }
            };
            tokio::join!(write, read);
        });
    }
}
