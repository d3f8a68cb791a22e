//! A blob that is on its way: a file that grows, and the digest of what it holds so far.

use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

use crate::digest::Digest;
use crate::error::{ImageError, Result};

/// Bytes gathered before they are hashed and written.
const GATHER: usize = 1 << 20;

pub(super) struct Partial {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    waiting: Vec<u8>,
    /// Bytes that are there, also those that wait to be written.
    pub have: u64,
}

impl Partial {
    /// Goes on with the file at `path` if there is one and it is not longer than the blob.
    pub async fn open(path: PathBuf, size: u64) -> Result<Self> {
        let (file, hasher, have, path) = tokio::task::spawn_blocking(move || {
            let opened = open(&path, size);
            opened.map(|(file, hasher, have)| (file, hasher, have, path))
        })
        .await
        .map_err(|_| ImageError::Cancelled { reference: "blob".into() })??;
        Ok(Self { path, file: File::from_std(file), hasher, waiting: Vec::with_capacity(GATHER), have })
    }

    pub async fn add(&mut self, bytes: &[u8]) -> Result<()> {
        self.waiting.extend_from_slice(bytes);
        self.have += bytes.len() as u64;
        if self.waiting.len() >= GATHER { self.write().await } else { Ok(()) }
    }

    /// Brings all that arrived to the file.
    pub async fn flush(&mut self) -> Result<()> {
        self.write().await?;
        self.file.flush().await.map_err(|error| ImageError::io("write", &self.path, error))
    }

    async fn write(&mut self) -> Result<()> {
        self.hasher.update(&self.waiting);
        let result = self.file.write_all(&self.waiting).await;
        self.waiting.clear();
        result.map_err(|error| ImageError::io("write", &self.path, error))
    }

    /// Starts over.
    pub async fn reset(&mut self) -> Result<()> {
        self.waiting.clear();
        self.hasher = Sha256::new();
        self.have = 0;
        let failed = |error| ImageError::io("truncate", &self.path, error);
        self.file.flush().await.map_err(failed)?;
        self.file.set_len(0).await.map_err(failed)?;
        self.file.rewind().await.map(drop).map_err(failed)
    }

    /// Digest of all that is there. Call [`Self::flush`] before.
    pub fn digest(&self) -> Digest {
        Digest::finish(self.hasher.clone())
    }

    /// Removes the file; what fails is swept later.
    pub fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
    }

    /// Closes the file and returns where it is.
    pub async fn close(mut self) -> Result<PathBuf> {
        self.flush().await?;
        Ok(self.path)
    }
}

fn open(path: &Path, size: u64) -> Result<(std::fs::File, Sha256, u64)> {
    let failed = |error| ImageError::io("open", path, error);
    let mut file =
        std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
    let mut hasher = Sha256::new();
    let mut have = file.metadata().map_err(failed)?.len();
    if have > size {
        file.set_len(0).map_err(failed)?;
        have = 0;
    }
    let mut buffer = vec![0; GATHER];
    let mut read = 0;
    while read < have {
        let found = file.read(&mut buffer).map_err(failed)?;
        if found == 0 {
            break;
        }
        hasher.update(&buffer[..found]);
        read += found as u64;
    }
    Ok((file, hasher, read))
}
