//! Connections into a pod's network, made from the daemon: to a port on the pod's loopback addresses.
//!
//! A socket belongs for its whole life to the network namespace of the thread that made it. So a short-lived thread
//! enters the pod's namespace, makes the socket and ends; the daemon's own threads never leave theirs. The namespace is
//! that of the pod's init process, found through a descriptor of its `/proc` entry whose cgroup was seen to be the
//! pod's, so that a process id that went to somebody else is never followed.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, copy_bidirectional_with_sizes};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::files::container::process;

/// How long a connection may take to be made.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes held for each direction.
const BUFFER: usize = 64 << 10;

/// The addresses that are tried, in this order; the second only when the first refuses.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// A connection into a pod.
#[derive(Debug)]
pub struct Forward {
    stream: TcpStream,
    /// Readable once the pod's init process has ended.
    init: AsyncFd<OwnedFd>,
}

/// Connects to `port` on 127.0.0.1, or on `::1` if that refuses, in the network of the instance's process `pid`: its
/// pod-init, or a container's in the host's network. The error is a line for people.
pub async fn connect(pid: u32, instance: &str, port: u16) -> Result<Forward, String> {
    let (netns, init) = namespace(pid, instance)?;
    let attempt = tokio::time::timeout(PATIENCE, connect_in(netns, port)).await;
    let stream = attempt
        .map_err(|_| format!("port {port} of the pod did not answer within {} s", PATIENCE.as_secs()))?
        .map_err(|error| format!("port {port} of the pod: {error}"))?;
    // small pieces of a conversation are not held back
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!("TCP_NODELAY: {error}");
    }
    Ok(Forward { stream, init })
}

/// The network namespace of a pod, and what becomes readable when its init process ends.
fn namespace(pid: u32, instance: &str) -> Result<(OwnedFd, AsyncFd<OwnedFd>), String> {
    let ended = || format!("the instance {instance} has ended");
    let id = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(ended)?;
    let init = rustix::process::pidfd_open(id, PidfdFlags::NONBLOCK).map_err(|_| ended())?;
    // seen after the pidfd was opened: while this process is there, its id is not another's
    let proc = process(pid, instance, None).map_err(|error| error.to_string())?;
    let netns = rustix::fs::openat(&proc, "ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let netns = netns.map_err(|_| ended())?;
    // SAFETY: the AsyncFd owns this descriptor until it is dropped, and nothing takes it out or puts another in its place.
    let init = unsafe { AsyncFd::register_with_interest(init, Interest::READABLE) };
    let init = init.map_err(|error| format!("the instance {instance} cannot be watched: {error}"))?;
    Ok((netns, init))
}

async fn connect_in(netns: OwnedFd, port: u16) -> Result<TcpStream, String> {
    let mut refused = None;
    for address in LOOPBACK.map(|ip| SocketAddr::new(ip, port)) {
        let attempt = match socket(&netns, address).await {
            Ok(socket) => socket.connect(address).await,
            Err(error) => Err(error),
        };
        match attempt {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                refused.get_or_insert("connection refused; nothing listens on it at 127.0.0.1 or ::1".to_owned());
            }
            // a pod without IPv6 says so here; that 127.0.0.1 refused is then the better answer
            Err(error) => return Err(refused.unwrap_or_else(|| format!("cannot connect to {address}: {error}"))),
        }
    }
    Err(refused.unwrap_or_default())
}

async fn socket(netns: &OwnedFd, address: SocketAddr) -> io::Result<TcpSocket> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let netns = netns.try_clone()?;
    let (reply, answer) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("netns-socket".to_owned()).stack_size(64 << 10).spawn(move || {
        // a receiver that is gone belongs to a call that was given up; the socket is then closed here
        let _ = reply.send(socket_in(netns.as_fd(), family));
    })?;
    let fd = answer.await.map_err(|_| io::Error::other("the thread that makes the socket ended early"))??;
    Ok(TcpSocket::from_std_stream(std::net::TcpStream::from(fd)))
}

fn socket_in(netns: BorrowedFd<'_>, family: AddressFamily) -> io::Result<OwnedFd> {
    move_into_link_name_space(netns, Some(LinkNameSpaceType::Network)).map_err(|error| {
        io::Error::new(io::Error::from(error).kind(), format!("entering the pod's network namespace: {error}"))
    })?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
}

impl Forward {
    /// Copies bytes both ways until both directions have ended. One that ends first is closed on the other side while the
    /// other goes on. Ends, too, when the pod or the daemon does.
    pub async fn serve(self, mut client: impl AsyncRead + AsyncWrite + Unpin, shutdown: &CancellationToken) {
        let Self { mut stream, init } = self;
        let copied = tokio::select! {
            copied = copy_bidirectional_with_sizes(&mut client, &mut stream, BUFFER, BUFFER) => copied,
            _ = init.readable() => return,
            () = shutdown.cancelled() => return,
        };
        match copied {
            Ok((sent, received)) => tracing::debug!(sent, received, "a forwarded connection has ended"),
            Err(error) => tracing::debug!("a forwarded connection broke off: {error}"),
        }
    }
}
