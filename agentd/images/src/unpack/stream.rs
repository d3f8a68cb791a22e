//! From a compressed blob to the bytes of its tar archive, in a thread of its own.
//!
//! The thread reads and hashes the blob and inflates it; the caller hashes what comes out and writes the files. With one
//! layer at a time this keeps two CPUs busy; inflating is the slower half.

use std::io::{self, BufRead, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::ScopedJoinHandle;

use sha2::{Digest as _, Sha256};

/// Small enough for a second-level cache, large enough that the hand-over costs nothing.
const CHUNK: usize = 256 * 1024;
/// Chunks under way between the threads.
const CHUNKS: usize = 8;

/// Compression of a blob, by its first bytes: media types lie more often than magic numbers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub(crate) fn of(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame comes first in a seekable zstd stream.
            [low, 0x2a, 0x4d, 0x18, ..] if (0x50..=0x5f).contains(low) => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// A reader that hashes and counts what passes.
pub(crate) struct Hashing<'a, R> {
    inner: R,
    hasher: Sha256,
    cancelled: &'a AtomicBool,
    passed: &'a (dyn Fn(u64) + Sync),
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other("cancelled"));
        }
        let found = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..found]);
        (self.passed)(found as u64);
        Ok(found)
    }
}

fn hex(hasher: Sha256) -> String {
    format!("sha256:{:x}", hasher.finalize())
}

/// Bytes of a tar archive as they come out of the decompressor.
#[derive(Debug)]
pub(crate) struct Chunks {
    incoming: Receiver<io::Result<Vec<u8>>>,
    used: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    hasher: Sha256,
    total: u64,
    bound: u64,
}

impl Chunks {
    /// Digest of all bytes so far.
    pub(crate) fn diff_id(&self) -> String {
        hex(self.hasher.clone())
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.current.len() {
            let used = std::mem::take(&mut self.current);
            self.at = 0;
            if used.capacity() > 0 {
                match self.used.try_send(used) {
                    Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
                }
            }
            if let Ok(next) = self.incoming.recv() {
                self.current = next?;
                self.hasher.update(&self.current);
                self.total += self.current.len() as u64;
                if self.total > self.bound {
                    return Err(io::Error::other(format!("it unpacks to more than {} bytes", self.bound)));
                }
            }
        }
        Ok(&self.current[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at = (self.at + amount).min(self.current.len());
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let found = self.fill_buf()?;
        let taken = found.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&found[..taken]);
        self.consume(taken);
        Ok(taken)
    }
}

/// Starts the thread. It returns the digest of the blob as stored.
pub(crate) fn inflate<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    blob: Box<dyn Read + Send + 'scope>,
    bound: u64,
    cancelled: &'scope AtomicBool,
    passed: &'scope (dyn Fn(u64) + Sync),
) -> io::Result<(Chunks, ScopedJoinHandle<'scope, io::Result<String>>)> {
    let (sender, incoming) = sync_channel(CHUNKS);
    let (used, recycled) = sync_channel(CHUNKS);
    let thread = std::thread::Builder::new().name("image-inflate".into()).spawn_scoped(scope, move || {
        let hashing = Hashing { inner: blob, hasher: Sha256::new(), cancelled, passed };
        match pump(hashing, &sender, &recycled) {
            Ok(digest) => Ok(digest),
            Err(error) => {
                // The writer's error is the one that is reported; this thread's own copy only ends it.
                let copy = io::Error::new(error.kind(), error.to_string());
                let _ = sender.send(Err(error));
                Err(copy)
            }
        }
    })?;
    let stream = Chunks { incoming, used, current: Vec::new(), at: 0, hasher: Sha256::new(), total: 0, bound };
    Ok((stream, thread))
}

fn pump<R: Read>(
    mut blob: Hashing<'_, R>,
    sender: &SyncSender<io::Result<Vec<u8>>>,
    recycled: &Receiver<Vec<u8>>,
) -> io::Result<String> {
    let mut first = [0u8; 4];
    let mut have = 0;
    while have < first.len() {
        let found = blob.read(&mut first[have..])?;
        if found == 0 {
            break;
        }
        have += found;
    }
    let first = &first[..have];
    let whole = first.chain(&mut blob);
    match Compression::of(first) {
        Compression::None => copy(whole, sender, recycled)?,
        Compression::Gzip => {
            let buffered = io::BufReader::with_capacity(CHUNK, whole);
            // Several members in a row are one stream (pigz, eStargz).
            copy(flate2::bufread::MultiGzDecoder::new(buffered), sender, recycled)?;
        }
        Compression::Zstd => copy(zstd::stream::read::Decoder::new(whole)?, sender, recycled)?,
    }
    // Anything after the compressed stream is part of the blob and of its digest.
    io::copy(&mut blob, &mut io::sink())?;
    Ok(hex(blob.hasher))
}

fn copy(mut from: impl Read, sender: &SyncSender<io::Result<Vec<u8>>>, recycled: &Receiver<Vec<u8>>) -> io::Result<()> {
    loop {
        let mut chunk = recycled.try_recv().unwrap_or_default();
        chunk.resize(CHUNK, 0);
        let mut filled = 0;
        while filled < CHUNK {
            match from.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(found) => filled += found,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if filled == 0 {
            return Ok(());
        }
        chunk.truncate(filled);
        if sender.send(Ok(chunk)).is_err() {
            return Err(io::Error::other("the writer has given up"));
        }
        if filled < CHUNK {
            return Ok(());
        }
    }
}
