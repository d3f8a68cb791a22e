//! Garbage collection: by the disk's watermarks, never what is held.
//!
//! Orphans (layers and blobs that no image names, parts of blobs) go first: they cost nobody anything but, at worst, the
//! resumption of a pull. Then images that nobody holds, the least recently used first, until the low watermark is reached.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{ImageError, Result};
use crate::inner::{Inner, State};
use crate::record::Record;
use crate::store::Store;
use crate::{checkpoint, disk};

/// What a collection has removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// References of images.
    pub images: Vec<String>,
    /// Number of layers.
    pub layers: usize,
    /// Bytes of files that were removed.
    pub bytes: u64,
}

/// What has been taken out of the store and is still to be deleted.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    folders: Vec<PathBuf>,
    blobs: Vec<PathBuf>,
    bytes: u64,
}

impl Orphans {
    /// Deletes what was taken out; returns the number of bytes.
    pub(crate) fn delete(self) -> Result<u64> {
        for folder in self.folders {
            disk::remove_tree(&folder)?;
            checkpoint("gc.layer.removed");
        }
        Ok(self.bytes)
    }
}

impl Store {
    /// Frees space if the disk is fuller than the high watermark. `used` is the fraction of the disk in use, 0 to 1; see
    /// [`Self::disk_used`]. Holders must have been declared before.
    pub async fn gc(&self, used: f64) -> Result<Collected> {
        let store = Arc::clone(&self.inner);
        let work = tokio::task::spawn_blocking(move || store.collect(used));
        work.await.map_err(|_| ImageError::Cancelled { reference: "garbage collection".into() })?
    }

    /// Fraction of the store's disk that is in use, as `df` tells it.
    pub fn disk_used(&self) -> Result<f64> {
        self.inner.disk().map(|(total, free)| 1.0 - free as f64 / total as f64)
    }
}

impl Inner {
    /// Bytes in all and free, of what an unprivileged process could use.
    fn disk(&self) -> Result<(u64, u64)> {
        let found = rustix::fs::fstatvfs(&self.folder)
            .map_err(|error| ImageError::io("look at the disk of", &self.root, error))?;
        let total = (found.f_blocks - found.f_bfree + found.f_bavail).max(1);
        Ok((total.saturating_mul(found.f_frsize), found.f_bavail.saturating_mul(found.f_frsize)))
    }

    fn collect(&self, used: f64) -> Result<Collected> {
        let mut collected = Collected::default();
        if used < self.settings.high_watermark {
            return Ok(collected);
        }
        let (total, _) = self.disk()?;
        let surplus = ((used - self.settings.low_watermark) * total as f64).max(0.0) as u64;
        let orphans = {
            let mut state = self.state();
            self.orphans(&mut state, None)?
        };
        collected.layers += orphans.folders.len();
        collected.bytes += orphans.delete()?;
        collected.bytes += self.partials()?;
        while collected.bytes < surplus {
            let mut state = self.state();
            let unheld = state.images.values().filter(|record| state.holder_of(&record.digest).is_none());
            let Some(victim) = unheld.min_by_key(|record| self.last_used(record)).cloned() else { break };
            self.forget(&mut state, &victim.reference)?;
            let orphans = self.orphans(&mut state, Some(&victim))?;
            drop(state);
            collected.images.push(victim.reference);
            collected.layers += orphans.folders.len();
            collected.bytes += orphans.delete()?;
        }
        Ok(collected)
    }

    /// Takes layers and blobs out that no image names and no pull needs: those of `of`, or all.
    pub(crate) fn orphans(&self, state: &mut State, of: Option<&Record>) -> Result<Orphans> {
        let mut orphans = Orphans::default();
        let named: HashSet<&str> =
            state.images.values().flat_map(|record| &record.layers).map(String::as_str).collect();
        let candidates: Vec<String> = match of {
            Some(record) => record.layers.clone(),
            None => state.layers.keys().cloned().collect(),
        };
        let gone: Vec<String> =
            candidates.into_iter().filter(|id| !named.contains(id.as_str()) && !state.pins.contains_key(id)).collect();
        for id in gone {
            let Some(layer) = state.layers.get(&id) else { continue };
            let place = self.root.join("layers").join(&layer.folder);
            let out = self.temporary("gone");
            match std::fs::rename(&place, &out) {
                Ok(()) => orphans.folders.push(out),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(ImageError::io("rename", &place, error)),
            }
            orphans.bytes += layer.record.bytes;
            state.layers.remove(&id);
            checkpoint("gc.layer.renamed");
        }
        // Blobs of pulls that are under way are not told apart from others: none is removed meanwhile.
        if state.pins.is_empty() {
            let named: HashSet<&str> =
                state.images.values().flat_map(|record| &record.blobs).map(String::as_str).collect();
            for hex in disk::names(&self.root.join("blobs/sha256"))? {
                let candidate = of.is_none_or(|record| record.blobs.iter().any(|blob| blob.ends_with(&hex)));
                if candidate && !named.contains(format!("sha256:{hex}").as_str()) {
                    orphans.blobs.push(self.blob_path(&hex));
                }
            }
            for path in &orphans.blobs {
                orphans.bytes += std::fs::metadata(path).map_or(0, |found| found.len());
                disk::remove_file(path)?;
                checkpoint("gc.blob");
            }
        }
        Ok(orphans)
    }

    /// Removes parts of blobs when no pull is under way.
    fn partials(&self) -> Result<u64> {
        let state = self.state();
        let mut bytes = 0;
        if state.pins.is_empty() {
            for name in disk::names(&self.root.join("tmp"))? {
                if name.starts_with("partial-") {
                    let path = self.root.join("tmp").join(name);
                    bytes += std::fs::metadata(&path).map_or(0, |found| found.len());
                    disk::remove_file(&path)?;
                }
            }
        }
        Ok(bytes)
    }
}
