//! Why a file cannot be had.

use hyper::StatusCode;
use rustix::io::Errno;

use crate::api::answer::Refusal;

/// Why a file cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilesError {
    /// There is no such file or directory.
    #[error("there is no such file or directory")]
    NotFound,
    /// It is there, or would be, but must not or cannot be had that way.
    #[error("{0}")]
    Refused(String),
    /// There is no room for it.
    #[error("{0}")]
    NoSpace(String),
    /// What was sent is no archive that can be taken.
    #[error("{0}")]
    Archive(String),
    /// The host failed.
    #[error("{0}")]
    Io(String),
}

impl FilesError {
    /// For an error of a call on the file that `subject` names.
    pub(crate) fn of(subject: &str, error: Errno) -> Self {
        let refused = |why: &str| Self::Refused(format!("{subject}: {why}"));
        match error {
            Errno::NOENT => Self::NotFound,
            Errno::XDEV => refused("leads out of the tree that it must stay in"),
            Errno::LOOP => refused("goes through a symbolic link that must not be followed, or through too many"),
            Errno::NOTDIR => refused("a part of the path is no directory"),
            Errno::ISDIR => refused("found a directory in its place (EISDIR)"),
            Errno::NAMETOOLONG => refused("the name is too long; the most is 255 bytes a part"),
            Errno::ACCESS | Errno::PERM => refused("permission denied: the container's user may not do this (EACCES)"),
            Errno::ROFS => refused("the filesystem is read-only (EROFS); write to a volume or /mnt/mesos/sandbox"),
            Errno::BUSY => refused("something is mounted there (EBUSY); write to another name"),
            Errno::NOTEMPTY | Errno::EXIST => refused("something else is in its place (EEXIST); remove it first"),
            Errno::NOSPC => Self::NoSpace(format!("{subject}: no space is left on its filesystem (ENOSPC)")),
            Errno::DQUOT => Self::NoSpace(format!("{subject}: the disk limit is reached (EDQUOT)")),
            Errno::SRCH => refused("the container has ended"),
            other => Self::Io(format!("{subject}: {}", std::io::Error::from(other))),
        }
    }
}

impl FilesError {
    /// The same with what it happened to before it, where it does not say so.
    pub(crate) fn at(self, subject: &str) -> Self {
        let placed = |line: String| if line.starts_with(subject) { line } else { format!("{subject}: {line}") };
        self.map(placed)
    }

    /// The same with a word more.
    pub(crate) fn after(self, more: &str) -> Self {
        self.map(|line| format!("{line}; {more}"))
    }

    fn map(self, change: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::NotFound => Self::NotFound,
            Self::Refused(line) => Self::Refused(change(line)),
            Self::NoSpace(line) => Self::NoSpace(change(line)),
            Self::Archive(line) => Self::Archive(change(line)),
            Self::Io(line) => Self::Io(change(line)),
        }
    }
}

impl From<FilesError> for Refusal {
    fn from(error: FilesError) -> Self {
        match error {
            FilesError::NotFound => Self::not_found(error.to_string()),
            FilesError::Refused(detail) => Self::new(StatusCode::FORBIDDEN, "file-refused", detail),
            FilesError::NoSpace(detail) => Self::new(StatusCode::INSUFFICIENT_STORAGE, "no-space", detail),
            FilesError::Archive(detail) => Self::new(StatusCode::BAD_REQUEST, "bad-archive", detail),
            FilesError::Io(detail) => Self::failed(detail),
        }
    }
}
