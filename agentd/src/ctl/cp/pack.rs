//! Files of this machine as a tar stream. Blocking; the pieces go through a bounded channel.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tar::EntryType;
use tokio::sync::mpsc::Sender;

use super::super::failure::{Failure, Result};
use crate::files::header::{self, Member};

/// Bytes of one piece of the stream.
const PIECE: usize = 128 << 10;

/// Deepest folder.
const DEEPEST: usize = 256;

/// What was packed.
#[derive(Debug, Default)]
pub struct Packed {
    /// What was left out, and why.
    pub notes: Vec<String>,
}

/// Where the pieces go.
pub type Pieces = Sender<io::Result<Bytes>>;

/// Packs what lies at `path` under a name; a folder without a name is packed as what lies in it. With `owners` the
/// numbers of users and groups go along, else everything belongs to root.
pub fn pack(
    path: &Path,
    metadata: &Metadata,
    name: Option<&[u8]>,
    owners: bool,
    pieces: &Pieces,
    count: &AtomicU64,
) -> Result<Packed> {
    let mut packer = Packer {
        owners,
        pieces,
        count,
        out: Vec::with_capacity(PIECE),
        links: HashMap::new(),
        done: Packed::default(),
    };
    let result = packer.object(path, metadata, name.unwrap_or(b".").to_vec(), 0).and_then(|()| {
        packer.put(&header::end(""))?;
        packer.flush()
    });
    match result {
        Ok(()) => Ok(packer.done),
        Err(Stopped::Unwanted) => Err(Failure::Enough),
        Err(Stopped::Failed(message)) => {
            // the daemon must not take half an archive for a whole one
            let _ = pieces.blocking_send(Err(io::Error::other(message.clone())));
            Err(Failure::failed(message))
        }
    }
}

enum Stopped {
    /// Nobody takes the pieces any more: the answer tells why.
    Unwanted,
    Failed(String),
}

struct Packer<'a> {
    owners: bool,
    pieces: &'a Pieces,
    count: &'a AtomicU64,
    out: Vec<u8>,
    /// First name of a file that has several, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    done: Packed,
}

type Step = std::result::Result<(), Stopped>;

impl Packer<'_> {
    fn flush(&mut self) -> Step {
        let piece = std::mem::replace(&mut self.out, Vec::with_capacity(PIECE));
        if piece.is_empty() {
            return Ok(());
        }
        self.pieces.blocking_send(Ok(piece.into())).map_err(|_| Stopped::Unwanted)
    }

    fn put(&mut self, bytes: &[u8]) -> Step {
        self.out.extend_from_slice(bytes);
        if self.out.len() >= PIECE { self.flush() } else { Ok(()) }
    }

    fn leave_out(&mut self, path: &Path, why: &dyn std::fmt::Display) {
        self.done.notes.push(format!("{}: {why}; it is left out", path.display()));
    }

    fn member(&mut self, name: &[u8], kind: EntryType, metadata: &Metadata, size: u64, link: &[u8]) -> Step {
        let (uid, gid) = if self.owners { (metadata.uid(), metadata.gid()) } else { (0, 0) };
        let member = Member { name, kind, mode: metadata.mode(), uid, gid, size, mtime: metadata.mtime(), link };
        self.put(&member.blocks())
    }

    fn object(&mut self, path: &Path, metadata: &Metadata, name: Vec<u8>, depth: usize) -> Step {
        let kind = metadata.file_type();
        if kind.is_dir() {
            return self.folder(path, metadata, &name, depth);
        }
        if kind.is_file() {
            return self.file(path, metadata, name, depth);
        }
        if kind.is_symlink() {
            return match fs::read_link(path) {
                Ok(link) => self.member(&name, EntryType::Symlink, metadata, 0, link.as_os_str().as_bytes()),
                Err(error) => {
                    self.leave_out(path, &error);
                    Ok(())
                }
            };
        }
        let what = if kind.is_socket() {
            "it is a socket"
        } else if kind.is_fifo() {
            "it is a FIFO"
        } else {
            "it is a device"
        };
        self.leave_out(path, &what);
        Ok(())
    }

    fn file(&mut self, path: &Path, metadata: &Metadata, name: Vec<u8>, depth: usize) -> Step {
        let identity = (metadata.dev(), metadata.ino());
        if metadata.nlink() > 1
            && let Some(first) = self.links.get(&identity)
        {
            let first = first.clone();
            return self.member(&name, EntryType::Link, metadata, 0, &first);
        }
        let failed = |error: io::Error| Stopped::Failed(format!("{}: {error}", path.display()));
        let mut file = match File::open(path) {
            Ok(file) => file,
            // somewhere in a folder it is left out; asked for by name it is a failure
            Err(error) if depth > 0 => {
                self.leave_out(path, &error);
                return Ok(());
            }
            Err(error) => return Err(failed(error)),
        };
        let size = metadata.len();
        self.member(&name, EntryType::Regular, metadata, size, b"")?;
        let mut left = size;
        while left > 0 {
            let at = self.out.len();
            let most = left.min(PIECE.saturating_sub(at).max(4096) as u64) as usize;
            self.out.resize(at + most, 0);
            let count = match file.read(&mut self.out[at..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => 0,
                Ok(0) => {
                    return Err(Stopped::Failed(format!("{}: it became shorter while it was read", path.display())));
                }
                result => result.map_err(failed)?,
            };
            self.out.truncate(at + count);
            self.count.fetch_add(count as u64, Ordering::Relaxed);
            left -= count as u64;
            if self.out.len() >= PIECE {
                self.flush()?;
            }
        }
        self.put(&[0; header::BLOCK][..header::padding(size)])?;
        if metadata.nlink() > 1 {
            self.links.insert(identity, name);
        }
        Ok(())
    }

    fn folder(&mut self, path: &Path, metadata: &Metadata, name: &[u8], depth: usize) -> Step {
        let prefix = [name, b"/"].concat();
        if depth == DEEPEST {
            self.leave_out(path, &format!("it lies {DEEPEST} folders deep, the most"));
            return Ok(());
        }
        let entries = match fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
            Ok(entries) => entries,
            Err(error) if depth > 0 => {
                self.leave_out(path, &error);
                return Ok(());
            }
            Err(error) => return Err(Stopped::Failed(format!("{}: {error}", path.display()))),
        };
        self.member(&prefix, EntryType::Directory, metadata, 0, b"")?;
        for entry in entries {
            let path = entry.path();
            match fs::symlink_metadata(&path) {
                Ok(metadata) => {
                    let name = [prefix.as_slice(), entry.file_name().as_bytes()].concat();
                    self.object(&path, &metadata, name, depth + 1)?;
                }
                // removed meanwhile
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => self.leave_out(&path, &error),
            }
        }
        Ok(())
    }
}
