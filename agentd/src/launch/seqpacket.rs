//! A `SOCK_SEQPACKET` socket on tokio.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use agentd_launcher::socket;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;

/// One end of a connection.
#[derive(Debug)]
pub struct Seqpacket(AsyncFd<OwnedFd>);

impl Seqpacket {
    /// Takes a connected socket; makes it non-blocking.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        // SAFETY: an OwnedFd names the same open file from its making to its drop, as `register` demands.
        Ok(Self(unsafe { AsyncFd::register(fd) }?))
    }

    /// Connects to the listening socket at `path`.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let fd = new_socket()?;
        rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)?;
        Self::new(fd)
    }

    /// Sends one message, waiting for room.
    pub async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            match socket::send(self.0.get_ref().as_fd(), bytes, fds, false) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
            self.0.writable().await?.clear_ready();
        }
    }

    /// Receives one message; length 0 means that the peer has closed.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| socket::receive(fd.get_ref().as_fd(), buffer, false)) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// A listening socket at `path`; an old one there is replaced.
pub fn listen(path: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let fd = new_socket()?;
    rustix::net::bind(&fd, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&fd, 8)?;
    Ok(fd)
}
