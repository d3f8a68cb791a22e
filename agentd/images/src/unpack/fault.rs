//! What can go wrong while a layer is unpacked, before the image and the layer are known by name.

use std::fmt::Display;
use std::io;

/// Why a layer could not be unpacked. [`crate::ImageError`] adds the reference and the digest.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The operating system refused.
    Io {
        /// What was tried.
        action: String,
        /// Its answer.
        source: io::Error,
    },
    /// An entry that no sound image holds.
    Refused {
        /// Path of the entry, as far as it can be shown.
        entry: String,
        /// Why.
        reason: String,
    },
    /// The stream is no tar archive, or is damaged or cut off.
    Damaged(String),
    /// Nobody waits for the layer any more.
    Cancelled,
}

impl Fault {
    /// A failed system call.
    pub(crate) fn io(action: impl Display, source: impl Into<io::Error>) -> Self {
        Self::Io { action: action.to_string(), source: source.into() }
    }

    /// A failed read of the layer: damage, unless the operating system itself failed.
    pub(crate) fn read(source: io::Error) -> Self {
        if source.raw_os_error().is_some() {
            Self::io("read the layer", source)
        } else {
            Self::Damaged(source.to_string())
        }
    }

    /// A refused entry.
    pub(crate) fn refused(path: &[u8], reason: impl Into<String>) -> Self {
        Self::Refused { entry: shown(path), reason: reason.into() }
    }
}

/// A path from a layer in a form that is safe in a log line.
pub(crate) fn shown(path: &[u8]) -> String {
    let mut text: String = String::from_utf8_lossy(path).escape_debug().take(200).collect();
    if path.len() > 200 {
        text.push('…');
    }
    text
}
