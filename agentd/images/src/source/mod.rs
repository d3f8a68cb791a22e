//! Where images come from.

pub(crate) mod archive;
pub(crate) mod layout;
pub(crate) mod registry;

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{ImageError, Result};

/// A stretch of a file. Several can be read at the same time from one descriptor.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub path: PathBuf,
    file: Arc<File>,
    offset: u64,
    pub length: u64,
}

impl Blob {
    /// A whole file, which must be a regular one: a pipe would block for ever.
    pub(crate) fn whole(path: &Path) -> Result<Self> {
        let failed = |error: io::Error| ImageError::io("open", path, error);
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        if !found.is_file() {
            return Err(ImageError::Source { path: path.into(), message: "not a regular file".into() });
        }
        Ok(Self { path: path.into(), file: Arc::new(file), offset: 0, length: found.len() })
    }

    /// A stretch of this one.
    pub(crate) fn part(&self, offset: u64, length: u64) -> Self {
        Self { path: self.path.clone(), file: Arc::clone(&self.file), offset: self.offset + offset, length }
    }

    /// All of it, if it is not larger than `most`.
    pub(crate) fn bytes(&self, most: u64) -> Result<Vec<u8>> {
        if self.length > most {
            let message = format!("{} bytes where at most {most} are expected", self.length);
            return Err(ImageError::Source { path: self.path.clone(), message });
        }
        let mut bytes = Vec::new();
        self.reader().read_to_end(&mut bytes).map_err(|error| ImageError::io("read", &self.path, error))?;
        Ok(bytes)
    }

    /// Reads it from its start.
    pub(crate) fn reader(&self) -> BlobReader {
        BlobReader { file: Arc::clone(&self.file), at: self.offset, left: self.length }
    }
}

/// Reads a [`Blob`].
#[derive(Debug)]
pub(crate) struct BlobReader {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let found = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += found as u64;
        self.left -= found as u64;
        Ok(found)
    }
}

impl io::Seek for BlobReader {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        // Only the archive's index seeks, and only forward.
        let io::SeekFrom::Current(by) = to else {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        };
        let by = u64::try_from(by).map_err(|_| io::Error::from(io::ErrorKind::Unsupported))?;
        let by = by.min(self.left);
        self.at += by;
        self.left -= by;
        Ok(self.at)
    }
}
