//! Who may do what: principals, the access list, the audit log.

pub mod audit;
pub mod ceiling;
pub mod follow;
pub mod gate;
pub mod policy;
pub mod rate;
pub mod tls;

use std::fmt;
use std::net::SocketAddr;

/// Principal of plain text over TCP.
pub const ANONYMOUS: &str = "anonymous";

/// Whether a certificate's common name can be a principal: it must not look like a user of the Unix socket, nor like a word
/// of the access list.
pub fn is_principal(name: &str) -> bool {
    let sound = |c: char| c.is_alphanumeric() || " ._@-/+=".contains(c);
    (1..=64).contains(&name.chars().count()) && name.trim() == name && name.chars().all(sound) && name != ANONYMOUS
}

/// How a caller reached the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The Unix socket; the kernel vouches for these.
    Unix {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
        /// Process, where it lives in a pid namespace that the daemon sees.
        pid: Option<i32>,
    },
    /// TCP with a client certificate.
    Tls {
        /// Address of the peer.
        address: SocketAddr,
    },
    /// Plain TCP on loopback (`insecure = true`).
    Plain {
        /// Address of the peer.
        address: SocketAddr,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { uid, gid, pid: Some(pid) } => write!(f, "unix uid={uid} gid={gid} pid={pid}"),
            Self::Unix { uid, gid, pid: None } => write!(f, "unix uid={uid} gid={gid}"),
            Self::Tls { address } => write!(f, "tls {address}"),
            Self::Plain { address } => write!(f, "plain {address}"),
        }
    }
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Name in the access list, the audit log and the status of sessions: `uid:<n>` on the Unix socket, the certificate's
    /// common name over TLS, `anonymous` over plain TCP.
    pub principal: String,
    /// How the call came.
    pub source: Source,
}

impl Caller {
    /// A caller on the Unix socket.
    pub fn unix(uid: u32, gid: u32, pid: Option<i32>) -> Self {
        Self { principal: format!("uid:{uid}"), source: Source::Unix { uid, gid, pid } }
    }
}
