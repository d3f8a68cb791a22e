//! Why an artifact could not be fetched.

use serde::{Deserialize, Serialize};

/// What kind of failure it was; tells whether trying again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The artifact's own words are wrong.
    Invalid,
    /// An address, path or archive entry is refused for safety.
    Refused,
    /// The server answered with this HTTP status.
    Status(u16),
    /// A limit on bytes or entries is reached.
    TooLarge,
    /// It took too long.
    TimedOut,
    /// The server could not be reached or broke off.
    Unreachable,
    /// The archive is damaged or of an unknown kind.
    Archive,
    /// This host could not do its part, such as a full disk.
    Local,
}

/// Which part of the artifact a failure is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Part {
    /// `uri`.
    Uri,
    /// `destPath`.
    DestPath,
    /// `extract`.
    Extract,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Uri => "uri",
            Self::DestPath => "destPath",
            Self::Extract => "extract",
        }
    }
}

/// A failure before it is known which artifact it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub kind: FailureKind,
    pub part: Part,
    pub reason: String,
}

impl Failure {
    pub fn new(kind: FailureKind, part: Part, reason: impl Into<String>) -> Self {
        Self { kind, part, reason: reason.into() }
    }

    pub fn uri(kind: FailureKind, reason: impl Into<String>) -> Self {
        Self::new(kind, Part::Uri, reason)
    }

    pub fn extract(kind: FailureKind, reason: impl Into<String>) -> Self {
        Self::new(kind, Part::Extract, reason)
    }

    /// A step of this host's own that failed.
    pub fn local(step: &str, error: impl std::fmt::Display) -> Self {
        Self::uri(FailureKind::Local, format!("{step}: {error}"))
    }

    /// Says which artifact failed: `field` as in `containers[0].artifacts[1]`, `uri` without its password.
    pub fn of(self, field: &str, uri: &str) -> FetchError {
        FetchError {
            kind: self.kind,
            field: format!("{field}.{}", self.part.name()),
            uri: uri.to_owned(),
            reason: self.reason,
        }
    }
}

/// Why an artifact could not be fetched: one line with the field, the URI (without password), the reason and the cure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {uri}: {reason}")]
pub struct FetchError {
    /// What kind of failure.
    pub kind: FailureKind,
    /// The field of the pod, as in `containers[0].artifacts[1].uri`.
    pub field: String,
    /// The URI, without password and query.
    pub uri: String,
    /// The reason and the cure.
    pub reason: String,
}

impl FetchError {
    /// Whether a later try can succeed without a change of the pod, the agent's settings or the server's files.
    pub fn may_pass(&self) -> bool {
        match self.kind {
            FailureKind::Status(status) => status >= 500 || status == 408 || status == 429,
            FailureKind::TimedOut | FailureKind::Unreachable | FailureKind::Local => true,
            FailureKind::Invalid | FailureKind::Refused | FailureKind::TooLarge | FailureKind::Archive => false,
        }
    }
}
