//! Errors of the store: one line each, with the registry, reference or digest, and the cure.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use crate::unpack::Fault;

/// Result of the store.
pub type Result<T> = std::result::Result<T, ImageError>;

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A reference that names no image.
    #[error("image reference {reference:?}: {reason}; expected [registry/]name[:tag][@sha256:…]")]
    Reference {
        /// As given.
        reference: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process owns the store.
    #[error("image store {}: another agentd holds its lock; stop it, or give this one another state folder", .path.display())]
    Locked {
        /// The store.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("image store: could not {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: String,
        /// On what.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// The disk is full.
    #[error("{subject}: no space left on the disk of {}; remove images (agentctl image rm) or enlarge it, then try again", .path.display())]
    DiskFull {
        /// Image, and layer or blob.
        subject: String,
        /// Where.
        path: PathBuf,
    },
    /// The registry refuses these credentials, or wants some.
    #[error(
        "image {reference}: registry {registry} refuses access: {message}; add credentials for {registry} to {auth_files}, or check the name"
    )]
    Unauthorized {
        /// Host.
        registry: String,
        /// Image.
        reference: String,
        /// Its answer.
        message: String,
        /// Where credentials are looked for.
        auth_files: String,
    },
    /// The registry has no such image.
    #[error("image {reference}: registry {registry} has no such image; check the name and the tag")]
    NotFound {
        /// Host.
        registry: String,
        /// Image.
        reference: String,
    },
    /// The registry cannot be reached, or answers with an error.
    #[error(
        "image {reference}: registry {registry}: {message}; check that the host is reachable and serves this image, then pull again"
    )]
    Registry {
        /// Host.
        registry: String,
        /// Image.
        reference: String,
        /// What happened.
        message: String,
    },
    /// Settings or credentials that cannot be used.
    #[error("image registry {registry}: {}: {message}", .path.display())]
    Settings {
        /// Host.
        registry: String,
        /// File.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A blob broke off, also when asked for again.
    #[error(
        "image {reference}: registry {registry}: blob {digest} broke off at {received} of {expected} bytes ({message}); pull again to resume it"
    )]
    Truncated {
        /// Host.
        registry: String,
        /// Image.
        reference: String,
        /// Blob.
        digest: String,
        /// Bytes that are there.
        received: u64,
        /// Bytes that should be.
        expected: u64,
        /// The last failure.
        message: String,
    },
    /// Content that is not what its digest promises.
    #[error(
        "image {reference}: {origin}: {what} should have digest {expected}, but has {found}; it was damaged or altered: fetch or export the image again, or rebuild it"
    )]
    Digest {
        /// Image.
        reference: String,
        /// Registry or path.
        origin: String,
        /// Manifest, configuration, blob or layer.
        what: String,
        /// Promised.
        expected: String,
        /// Computed.
        found: String,
    },
    /// A manifest, index or configuration that cannot be used.
    #[error("image {reference}: {message}")]
    Manifest {
        /// Image.
        reference: String,
        /// What is wrong, and the cure.
        message: String,
    },
    /// The image is not made for this host.
    #[error("image {reference}: made for {offered}, but this host needs {wanted}; build or pull it for {wanted}")]
    Platform {
        /// Image.
        reference: String,
        /// `os/architecture` of this host.
        wanted: String,
        /// What there is.
        offered: String,
    },
    /// A layer that cannot be unpacked.
    #[error(
        "image {reference}: layer {digest}: {message}; rebuild the image, or pull it again if it was damaged on the way"
    )]
    Layer {
        /// Image.
        reference: String,
        /// Layer.
        digest: String,
        /// Entry and reason.
        message: String,
    },
    /// A folder or an archive that holds no image, or not the one asked for.
    #[error("image source {}: {message}", .path.display())]
    Source {
        /// Where.
        path: PathBuf,
        /// What was found and expected.
        message: String,
    },
    /// The store has no such image.
    #[error("image {reference}: not in the store; pull or import it first")]
    Unknown {
        /// Reference or digest.
        reference: String,
    },
    /// The image is in use.
    #[error("image {reference}: in use by {holder}; stop it first")]
    InUse {
        /// Reference.
        reference: String,
        /// Who uses it.
        holder: String,
    },
    /// The work was given up, since nobody waits for it or the daemon stops.
    #[error("image {reference}: given up before it was complete; ask again")]
    Cancelled {
        /// Reference.
        reference: String,
    },
}

/// Whether an error says that the disk, or the quota on it, is full.
fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

impl ImageError {
    /// A failed operation on a file.
    pub(crate) fn io(action: impl Display, path: &Path, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let action = action.to_string();
        if is_full(&source) {
            Self::DiskFull { subject: format!("image store: could not {action}"), path: path.into() }
        } else {
            Self::Io { action, path: path.into(), source }
        }
    }

    /// A layer that could not be unpacked into `path`.
    pub(crate) fn layer(reference: &str, digest: &str, path: &Path, fault: Fault) -> Self {
        let layer = |message| Self::Layer { reference: reference.into(), digest: digest.into(), message };
        match fault {
            Fault::Io { source, .. } if is_full(&source) => {
                Self::DiskFull { subject: format!("image {reference}: layer {digest}"), path: path.into() }
            }
            Fault::Io { action, source } => layer(format!("could not {action}: {source}")),
            Fault::Refused { entry, reason } => layer(format!("entry {entry}: {reason}")),
            Fault::Damaged(message) => layer(message),
            Fault::Cancelled => Self::Cancelled { reference: reference.into() },
        }
    }
}
