//! A file or a tree of a container as a tar stream. Blocking.
//!
//! Entry names begin with the last part of the path, as with `docker cp`; those of `/` and of a path that ends in `/.`
//! with `./`. What cannot be copied (sockets, FIFOs, devices, pseudo filesystems, what may not be read) is left out and
//! told in a PAX comment at the end; a file that changes its length meanwhile is cut or filled up with zeros.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use agentd_api::files::{FileKind, FileStat};
use bytes::Bytes;
use jiff::Timestamp;
use rustix::fs::{Dir, FileType, OFlags, Stat};
use rustix::io::Errno;
use tar::EntryType;

use super::container::ContainerTree;
use super::error::FilesError;
use super::header::{self, Member};
use super::tree::{self, BENEATH};

/// Bytes of one piece of the stream.
const PIECE: usize = 64 << 10;

/// Deepest directory: each level holds a descriptor.
const DEEPEST: usize = 256;

/// Most files with several names that are remembered; further ones are copied once for each name.
const MOST_LINKS: usize = 65_536;

/// Most lines of the comment.
const MOST_NOTES: usize = 100;

/// The user of a file that the container's user namespace does not have, as the kernel shows it inside.
const NOBODY: u32 = 65534;

/// What lies at a path.
#[derive(Debug)]
pub struct Found {
    held: OwnedFd,
    stat: Stat,
    name: Vec<u8>,
    link: Option<Vec<u8>>,
}

/// Why a stream is not whole.
#[derive(Debug)]
pub enum Stopped {
    /// Nobody takes it any more.
    Unwanted,
    /// Something failed after it had begun.
    Failed(FilesError),
}

/// Looks up what lies at a path. What is no file, directory or symbolic link is refused.
pub fn locate(tree: &ContainerTree, path: &[u8]) -> Result<Found, FilesError> {
    let shown = tree::shown(path);
    let (held, stat) = tree.find(path, false)?;
    let kind = tree::kind(&stat);
    if !matches!(kind, FileType::RegularFile | FileType::Directory | FileType::Symlink) {
        let message = format!("{shown}: it is {}; files, directories and symbolic links are copied", tree::word(kind));
        return Err(FilesError::Refused(message));
    }
    if kind != FileType::Symlink {
        let opened = if tree.permits(&stat, 0o4) { tree::reopen(&held) } else { Err(Errno::ACCESS) };
        opened.map_err(|error| FilesError::of(&shown, error))?;
    }
    let link = if kind == FileType::Symlink { Some(target(&held, &shown)?) } else { None };
    Ok(Found { held, stat, name: base_name(path), link })
}

impl Found {
    /// What a client is told of it.
    pub fn stat(&self, tree: &ContainerTree) -> FileStat {
        let mtime = Timestamp::new(self.stat.st_mtime, self.stat.st_mtime_nsec as i32).unwrap_or_default();
        let (kind, size) = match tree::kind(&self.stat) {
            FileType::Directory => (FileKind::Directory, 0),
            FileType::Symlink => (FileKind::Symlink, 0),
            _ => (FileKind::File, u64::try_from(self.stat.st_size).unwrap_or(0)),
        };
        FileStat {
            name: String::from_utf8_lossy(&self.name).into_owned(),
            kind,
            size,
            mode: self.stat.st_mode,
            mtime: mtime.to_string(),
            uid: tree.ids.users.inside(self.stat.st_uid).unwrap_or(NOBODY),
            gid: tree.ids.groups.inside(self.stat.st_gid).unwrap_or(NOBODY),
            link_target: self.link.as_ref().map(|link| String::from_utf8_lossy(link).into_owned()),
        }
    }
}

/// The last part of a path; `.` where it has none.
fn base_name(path: &[u8]) -> Vec<u8> {
    let mut trimmed = path;
    while let Some(rest) = trimmed.strip_suffix(b"/") {
        trimmed = rest;
    }
    match trimmed.rsplit(|byte| *byte == b'/').next() {
        None | Some(b"" | b"." | b"..") => b".".to_vec(),
        Some(name) => name.to_vec(),
    }
}

fn target(held: &OwnedFd, shown: &str) -> Result<Vec<u8>, FilesError> {
    let target = rustix::fs::readlinkat(held, "", Vec::new()).map_err(|error| FilesError::of(shown, error))?;
    Ok(target.into_bytes())
}

/// Sends what was found as a tar stream, piece by piece, until `give` says that nobody wants it any more.
pub fn pack(tree: &ContainerTree, found: Found, give: &mut dyn FnMut(Bytes) -> bool) -> Result<(), Stopped> {
    let mut packer = Packer { tree, give, out: Vec::new(), links: HashMap::new(), notes: Vec::new(), omitted: 0 };
    packer.object(found.held, &found.stat, found.name, 0)?;
    if packer.omitted > MOST_NOTES {
        packer.notes.push(format!("and {} more", packer.omitted - MOST_NOTES));
    }
    let end = header::end(&packer.notes.join("\n"));
    packer.put(&end)?;
    packer.flush()
}

struct Packer<'a> {
    tree: &'a ContainerTree,
    give: &'a mut dyn FnMut(Bytes) -> bool,
    out: Vec<u8>,
    /// First name of a file that has several, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    notes: Vec<String>,
    omitted: usize,
}

impl Packer<'_> {
    fn flush(&mut self) -> Result<(), Stopped> {
        let piece = std::mem::take(&mut self.out);
        if piece.is_empty() || (self.give)(Bytes::from(piece)) { Ok(()) } else { Err(Stopped::Unwanted) }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Stopped> {
        self.out.extend_from_slice(bytes);
        if self.out.len() >= PIECE { self.flush() } else { Ok(()) }
    }

    fn leave_out(&mut self, name: &[u8], why: &str) {
        self.omitted += 1;
        if self.notes.len() < MOST_NOTES {
            self.notes.push(format!("left out: {}: {why}", tree::shown(name)));
        }
    }

    fn member(&mut self, name: &[u8], kind: EntryType, stat: &Stat, size: u64, link: &[u8]) -> Result<(), Stopped> {
        let member = Member {
            name,
            kind,
            mode: stat.st_mode,
            uid: self.tree.ids.users.inside(stat.st_uid).unwrap_or(NOBODY),
            gid: self.tree.ids.groups.inside(stat.st_gid).unwrap_or(NOBODY),
            size,
            mtime: stat.st_mtime,
            link,
        };
        self.put(&member.blocks())
    }

    fn object(&mut self, held: OwnedFd, stat: &Stat, name: Vec<u8>, depth: usize) -> Result<(), Stopped> {
        let kind = tree::kind(stat);
        match kind {
            FileType::RegularFile => self.file(&held, stat, name),
            FileType::Directory => self.directory(held, stat, &name, depth),
            FileType::Symlink => match rustix::fs::readlinkat(&held, "", Vec::new()) {
                Ok(target) => self.member(&name, EntryType::Symlink, stat, 0, target.as_bytes()),
                Err(error) => {
                    self.leave_out(&name, &error.to_string());
                    Ok(())
                }
            },
            _ => {
                self.leave_out(&name, tree::word(kind));
                Ok(())
            }
        }
    }

    /// Opens what was seen to be a file or a directory; notes why it cannot be had.
    fn open(&mut self, held: &OwnedFd, stat: &Stat, name: &[u8]) -> Option<OwnedFd> {
        let opened = match tree::pseudo(held) {
            Ok(Some(filesystem)) => Err(format!("it lies on {filesystem}")),
            Ok(None) if self.tree.permits(stat, 0o4) => tree::reopen(held).map_err(|error| error.to_string()),
            Ok(None) => Err(Errno::ACCESS.to_string()),
            Err(error) => Err(error.to_string()),
        };
        opened.map_err(|why| self.leave_out(name, &why)).ok()
    }

    fn file(&mut self, held: &OwnedFd, stat: &Stat, name: Vec<u8>) -> Result<(), Stopped> {
        let identity = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1
            && let Some(first) = self.links.get(&identity)
        {
            let first = first.clone();
            return self.member(&name, EntryType::Link, stat, 0, &first);
        }
        let Some(file) = self.open(held, stat, &name) else { return Ok(()) };
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.member(&name, EntryType::Regular, stat, size, b"")?;
        self.content(&file, size, &name)?;
        if stat.st_nlink > 1 && self.links.len() < MOST_LINKS {
            self.links.insert(identity, name);
        }
        Ok(())
    }

    /// Exactly `size` bytes and what fills the last block.
    fn content(&mut self, file: &OwnedFd, size: u64, name: &[u8]) -> Result<(), Stopped> {
        let mut left = size;
        while left > 0 {
            let at = self.out.len();
            // small files share a piece, large ones fill whole pieces
            let most = left.min(PIECE.saturating_sub(at).max(4096) as u64) as usize;
            self.out.resize(at + most, 0);
            let count = match rustix::io::read(file, &mut self.out[at..]) {
                Err(Errno::INTR) => 0,
                Ok(0) => {
                    self.leave_out(name, &format!("its last {left} bytes: it became shorter while it was read"));
                    self.out.truncate(at);
                    return self.zeros(left + header::padding(size) as u64);
                }
                Ok(count) => count,
                Err(error) => {
                    let failed = FilesError::of(&tree::shown(name), error);
                    return Err(Stopped::Failed(FilesError::Io(failed.to_string())));
                }
            };
            self.out.truncate(at + count);
            left -= count as u64;
            if self.out.len() >= PIECE {
                self.flush()?;
            }
        }
        self.zeros(header::padding(size) as u64)
    }

    fn zeros(&mut self, mut count: u64) -> Result<(), Stopped> {
        while count > 0 {
            let now = count.min(PIECE as u64) as usize;
            self.out.resize(self.out.len() + now, 0);
            count -= now as u64;
            if self.out.len() >= PIECE {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn directory(&mut self, held: OwnedFd, stat: &Stat, name: &[u8], depth: usize) -> Result<(), Stopped> {
        let mut prefix = name.to_vec();
        prefix.push(b'/');
        self.member(&prefix, EntryType::Directory, stat, 0, b"")?;
        if depth == DEEPEST {
            self.leave_out(name, &format!("its content: it lies {DEEPEST} directories deep, the most"));
            return Ok(());
        }
        let Some(directory) = self.open(&held, stat, name) else { return Ok(()) };
        drop(held);
        let entries = match Dir::read_from(&directory) {
            Ok(entries) => entries,
            Err(error) => {
                self.leave_out(name, &error.to_string());
                return Ok(());
            }
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.leave_out(name, &format!("some of its content: {error}"));
                    return Ok(());
                }
            };
            let part = entry.file_name().to_bytes();
            if matches!(part, b"." | b"..") {
                continue;
            }
            let path = [prefix.as_slice(), part].concat();
            let child = tree::path_fd(directory.as_fd(), part, OFlags::NOFOLLOW, BENEATH)
                .and_then(|child| rustix::fs::fstat(&child).map(|stat| (child, stat)));
            match child {
                Ok((child, stat)) => self.object(child, &stat, path, depth + 1)?,
                // removed meanwhile
                Err(Errno::NOENT) => {}
                Err(error) => self.leave_out(&path, &error.to_string()),
            }
        }
        Ok(())
    }
}
