//! TCP connections to a container's loopback addresses, made inside its network namespace.
//!
//! A socket belongs for its whole life to the network namespace of the thread that made it. So a short-lived thread
//! enters the namespace, makes the socket and ends; the daemon's own threads never leave their namespace, and the
//! rest of the check is ordinary non-blocking I/O.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::{TcpSocket, TcpStream};

/// The addresses that are tried, in this order; the second only when the first refuses.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Connects to `port` on 127.0.0.1, or on `::1` if that refuses, in `netns` (`None`: the daemon's own namespace).
/// Gives the address that answered.
pub(crate) async fn connect(netns: Option<BorrowedFd<'_>>, port: u16) -> Result<(TcpStream, SocketAddr), String> {
    let mut refused = None;
    for address in LOOPBACK.map(|ip| SocketAddr::new(ip, port)) {
        let attempt = match tcp_socket(netns, address).await {
            Ok(socket) => socket.connect(address).await,
            Err(error) => Err(error),
        };
        match attempt {
            Ok(stream) => return Ok((stream, address)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                refused.get_or_insert(format!("connection refused by {address}"));
            }
            // a host without IPv6 says so here; that 127.0.0.1 refused is then the better answer
            Err(error) => return Err(refused.unwrap_or_else(|| format!("cannot connect to {address}: {error}"))),
        }
    }
    Err(refused.unwrap_or_else(|| format!("no loopback address to connect to port {port}")))
}

async fn tcp_socket(netns: Option<BorrowedFd<'_>>, address: SocketAddr) -> io::Result<TcpSocket> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = match netns {
        None => new_socket(family)?,
        Some(netns) => {
            let netns = netns.try_clone_to_owned()?;
            let (reply, answer) = tokio::sync::oneshot::channel();
            std::thread::Builder::new().name("netns-socket".to_owned()).stack_size(64 * 1024).spawn(move || {
                // the receiver is gone when the check was cancelled; the socket is then closed here
                let _ = reply.send(socket_in(netns.as_fd(), family));
            })?;
            answer.await.map_err(|_| io::Error::other("the thread that makes the socket ended early"))??
        }
    };
    Ok(TcpSocket::from_std_stream(std::net::TcpStream::from(fd)))
}

fn socket_in(netns: BorrowedFd<'_>, family: AddressFamily) -> io::Result<OwnedFd> {
    move_into_link_name_space(netns, Some(LinkNameSpaceType::Network)).map_err(|error| {
        io::Error::new(io::Error::from(error).kind(), format!("entering the pod's network namespace: {error}"))
    })?;
    new_socket(family)
}

fn new_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
}
