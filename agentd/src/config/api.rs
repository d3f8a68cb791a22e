//! The API's and the sessions' part of the configuration, as plain data with its defaults.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The local API: its socket, its TCP listeners, and who may do what there.
#[derive(Debug, Clone, PartialEq)]
pub struct Api {
    /// Group that may use the socket; ignored where the host has no such group.
    pub socket_group: String,
    /// Mode of the socket.
    pub socket_mode: u32,
    /// Addresses with port that are listened on with TCP; empty means none. [`Api::addresses`] gives them parsed.
    pub listen: Vec<String>,
    /// Whether TCP is plain text, on loopback only.
    pub insecure: bool,
    /// The server's certificate and those between it and its CA, PEM.
    pub tls_certificate: Option<PathBuf>,
    /// The key of the server's certificate, PEM.
    pub tls_key: Option<PathBuf>,
    /// CAs whose certificates clients must have, PEM.
    pub tls_client_ca: Option<PathBuf>,
    /// Origins of web pages that may call over TCP.
    pub allowed_origins: Vec<String>,
    /// Names in the `Host` field of requests over TCP, beside the listeners' addresses and the certificate's names.
    pub allowed_hosts: Vec<String>,
    /// Connections at a time, those of sessions included.
    pub max_connections: u64,
    /// TCP connections at a time from one address.
    pub max_connections_per_peer: u64,
    /// Requests of one principal each second, on average; 0 means no limit.
    pub requests_per_second: u64,
    /// Requests of one principal at once.
    pub request_burst: u64,
    /// The access list.
    pub acl: PathBuf,
    /// The audit log; absent means below the state folder.
    pub audit: Option<PathBuf>,
    /// Whether each record of the audit log is on disk before the call goes on.
    pub audit_sync: bool,
    /// Size at which a new file of the audit log is begun, MiB.
    pub audit_max_mib: u64,
    /// Earlier files of the audit log that are kept; 0 means all.
    pub audit_files: u64,
    /// Whether pods reach the TCP listeners.
    pub pods_may_connect: bool,
}

impl Api {
    /// The defaults; `etc` is the folder of agentd's settings.
    pub(super) fn defaults(etc: &Path) -> Self {
        Self {
            socket_group: "agentd".to_owned(),
            socket_mode: 0o660,
            listen: Vec::new(),
            insecure: false,
            tls_certificate: None,
            tls_key: None,
            tls_client_ca: None,
            allowed_origins: Vec::new(),
            allowed_hosts: Vec::new(),
            max_connections: 512,
            max_connections_per_peer: 128,
            requests_per_second: 100,
            request_burst: 200,
            acl: etc.join("acl.toml"),
            audit: None,
            audit_sync: false,
            audit_max_mib: 64,
            audit_files: 15,
            pods_may_connect: false,
        }
    }

    /// What is listened on with TCP.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listen.iter().filter_map(|text| text.parse().ok()).collect()
    }
}

/// Which sessions are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// None.
    Never,
    /// Those with a terminal.
    Tty,
    /// All.
    Always,
}

impl Record {
    /// Word in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Tty => "tty",
            Self::Always => "always",
        }
    }

    pub(super) fn from_word(word: &str) -> Option<Self> {
        [Self::Never, Self::Tty, Self::Always].into_iter().find(|value| value.word() == word)
    }

    /// Whether a session with or without a terminal is recorded.
    pub fn wants(self, tty: bool) -> bool {
        match self {
            Self::Never => false,
            Self::Tty => tty,
            Self::Always => true,
        }
    }
}

/// Sessions in containers.
#[derive(Debug, Clone, PartialEq)]
pub struct Sessions {
    /// Ends a session that had neither input nor output for so long, seconds; 0 means never.
    pub idle_seconds: u64,
    /// Ends a session after so long, seconds; 0 means never.
    pub max_seconds: u64,
    /// How long a session that is not detached waits for a client to come back, seconds.
    pub reattach_seconds: u64,
    /// The same for nested containers of the Mesos agent API after the daemon was started again, seconds.
    pub nested_reattach_seconds: u64,
    /// Sessions at a time in one container.
    pub per_container: u64,
    /// Sessions at a time in all.
    pub total: u64,
    /// How long an ended session's exit status and last output are kept, seconds.
    pub keep_exited_seconds: u64,
    /// Output kept for each session, KiB.
    pub buffer_kib: u64,
    /// Which sessions are recorded.
    pub record: Record,
    /// Size at which a recording stops, MiB.
    pub record_max_mib: u64,
    /// Whether a session may bring an image of its own (debug containers).
    pub debug_images: bool,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            idle_seconds: 0,
            max_seconds: 0,
            reattach_seconds: 300,
            nested_reattach_seconds: 30,
            per_container: 64,
            total: 1024,
            keep_exited_seconds: 300,
            buffer_kib: 256,
            record: Record::Never,
            record_max_mib: 64,
            debug_images: true,
        }
    }
}
