//! Copies of files out of and into containers, and connections into their networks: `docs/files.md`.

use serde::{Deserialize, Serialize};

/// Header of the answer to `GET /v1/pods/{id}/files`: a [`FileStat`] as JSON in ASCII.
pub const STAT_HEADER: &str = "x-agentd-path-stat";

/// Name of the protocol in the `Upgrade` header of a port-forward: bytes as they are.
pub const FORWARD_PROTOCOL: &str = "agentd-tcp";

/// What something in a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
}

/// What lies at a path in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileStat {
    /// Last part of the path, with which the names in the archive begin; `.` for `/` and for a path that ends in `/.`.
    pub name: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: FileKind,
    /// Bytes of a file, else 0.
    pub size: u64,
    /// Type and permissions, as in `st_mode`.
    pub mode: u32,
    /// Last change, RFC 3339.
    pub mtime: String,
    /// Owner, as the container counts.
    pub uid: u32,
    /// Group, as the container counts.
    pub gid: u32,
    /// Where a symbolic link leads, as it stands in the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_target: Option<String>,
}

/// Answer to `PUT /v1/pods/{id}/files`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FilesWritten {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
}
