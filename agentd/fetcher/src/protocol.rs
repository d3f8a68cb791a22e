//! What agentd and its fetching child say to each other over the socket pair: one request with descriptors, one reply.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use ipnet::IpNet;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

use crate::error::Failure;

/// Longest request and reply, bytes; a host with tens of thousands of addresses stays below.
pub(crate) const MESSAGE_LIMIT: u32 = 4 << 20;

/// Name of the fetched file in the staging folder.
pub(crate) const FILE: &str = "file";

/// Name of the unpacked tree in the staging folder.
pub(crate) const TREE: &str = "tree";

/// What the child is to do. The first descriptor is the staging folder, the second the open file of
/// [`Source::File`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub source: Source,
    /// Whether the file itself is wanted in the staging folder (a download always is).
    pub keep_file: bool,
    pub extract: bool,
    pub limits: Limits,
    /// User and group that the child becomes when it starts as root.
    pub user: (u32, u32),
}

/// Where the bytes come from.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Source {
    /// A download.
    Web(Web),
    /// The second descriptor.
    File,
}

/// A download.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Web {
    pub url: String,
    pub allowed: Vec<IpNet>,
    pub own: Vec<IpAddr>,
    /// The state that a cached copy has.
    pub cached: Option<Validators>,
}

/// What tells one state of a file on a server from another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Validators {
    pub etag: Option<String>,
    pub last_modified: Option<String>,
}

impl Validators {
    /// Whether there is any.
    pub fn any(&self) -> bool {
        self.etag.is_some() || self.last_modified.is_some()
    }
}

/// What the child may use.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Limits {
    pub max_bytes: u64,
    pub max_extracted_bytes: u64,
    pub max_entries: u64,
    /// CPU seconds.
    pub cpu_seconds: u64,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reply {
    pub outcome: Outcome,
    /// Restrictions that this kernel does not have.
    pub unconfined: Vec<String>,
}

/// What came of a request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// It is in the staging folder.
    Fetched(Validators),
    /// The cached copy is still current.
    NotModified,
    /// It failed.
    Failed(Failure),
}

/// Sends the length of a message together with descriptors. The message itself follows by plain writes.
pub(crate) fn send_head(socket: BorrowedFd<'_>, length: u32, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("more descriptors than a request has"));
    }
    let head = length.to_le_bytes();
    // four bytes always fit into an empty socket
    if rustix::net::sendmsg(socket, &[IoSlice::new(&head)], &mut control, SendFlags::NOSIGNAL)? != head.len() {
        return Err(io::Error::other("short write on the socket of the fetching process"));
    }
    Ok(())
}

/// Receives a request and its descriptors.
pub(crate) fn receive(socket: &UnixStream) -> io::Result<(Request, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut head = [0; 4];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    let received = rustix::net::recvmsg(socket.as_fd(), &mut [IoSliceMut::new(&mut head)], &mut control, flags)?;
    if received.bytes != head.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let length = u32::from_le_bytes(head);
    if length > MESSAGE_LIMIT {
        return Err(io::Error::other(format!("a request of {length} bytes, expected at most {MESSAGE_LIMIT}")));
    }
    let mut body = Vec::new();
    socket.take(u64::from(length)).read_to_end(&mut body)?;
    let request = serde_json::from_slice(&body)
        .map_err(|error| io::Error::other(format!("a request that cannot be read: {error}")))?;
    Ok((request, fds))
}
