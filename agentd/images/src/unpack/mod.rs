//! One layer, from a blob to a folder that overlayfs can use as it is.
//!
//! The blob's digest and the archive's digest (the layer's diff id) are computed on the way and returned; the caller
//! compares them before it gives the folder its name. Nothing here is durable: that is the caller's business too.

mod apply;
mod entries;
mod fault;
mod folder;
mod pax;
mod stream;

use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;

pub(crate) use apply::Applied;
pub(crate) use fault::Fault;
pub(crate) use stream::Compression;

use crate::settings::Limits;

/// A layer that has been unpacked.
#[derive(Debug)]
pub(crate) struct Unpacked {
    /// Digest of the blob as stored.
    pub blob: String,
    /// Digest of the archive.
    pub diff_id: String,
    /// What was written.
    pub applied: Applied,
}

/// Unpacks `blob` into the empty folder `into`. `passed` is told of the bytes of the blob as they are read.
pub(crate) fn unpack(
    blob: Box<dyn Read + Send>,
    into: OwnedFd,
    limits: &Limits,
    cancelled: &AtomicBool,
    passed: &(dyn Fn(u64) + Sync),
) -> Result<Unpacked, Fault> {
    std::thread::scope(|scope| {
        // Headers and padding come on top of the files' bytes: at most four blocks for each entry.
        let bound = limits.layer_bytes.saturating_add(limits.entries.saturating_mul(2048));
        let (chunks, inflating) = stream::inflate(scope, blob, bound, cancelled, passed)
            .map_err(|error| Fault::io("start a thread to unpack a layer", error))?;
        let mut entries = entries::Entries::new(chunks);
        let mut applier = apply::Applier::new(into, limits, cancelled);
        let result = applier.run(&mut entries).and_then(|()| entries.drain());
        let diff_id = entries.stream().diff_id();
        // Ends the thread in case it still waits to hand on a chunk.
        drop(entries);
        let blob = inflating.join();
        result?;
        let blob = match blob {
            Ok(Ok(blob)) => blob,
            Ok(Err(error)) => return Err(Fault::read(error)),
            Err(_) => return Err(Fault::Damaged("the decompressor failed".into())),
        };
        Ok(Unpacked { blob, diff_id, applied: applier.applied() })
    })
}

#[cfg(test)]
mod tests;
