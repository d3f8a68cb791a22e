//! A tar stream unpacked below a directory of a container. Blocking.
//!
//! Each entry's directory is resolved anew, beneath the one that was asked for and through no symbolic link; what is
//! written lies under a temporary name there and is renamed once it is whole, so that neither a symbolic link in an
//! entry's place is written through nor a file left half written. Existing directories stay as they are.

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use agentd_api::files::FilesWritten;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::archive::{Archive, Entry, Kind};
use super::container::ContainerTree;
use super::error::FilesError;
use super::tree::{self, BENEATH, shown};

/// Most entries of one archive.
const MOST_ENTRIES: u64 = 1_000_000;

/// Bytes that are written at once.
const PIECE: usize = 128 << 10;

/// Most parts of an entry's name.
const DEEPEST: usize = 256;

/// Unpacks a tar stream below the directory `path`. The error names the entry; those before it are there.
pub fn unpack(tree: &ContainerTree, path: &[u8], source: impl Read) -> Result<FilesWritten, FilesError> {
    let called = shown(path);
    let (base, stat) = tree.find(path, true)?;
    if tree::kind(&stat) != FileType::Directory {
        let kind = tree::word(tree::kind(&stat));
        return Err(FilesError::Refused(format!("{called}: it is {kind}, expected a directory to unpack in")));
    }
    let mut unpacker = Unpacker { tree, base, open: Vec::new(), done: FilesWritten::default(), buffer: vec![0; PIECE] };
    let mut archive = Archive::new(source);
    let result = unpacker.all(&mut archive);
    let done = unpacker.done;
    result.map(|()| done).map_err(|error| match done.entries {
        0 => error,
        1 => error.after("1 entry before it was written"),
        count => error.after(&format!("{count} entries before it were written")),
    })
}

struct Unpacker<'a> {
    tree: &'a ContainerTree,
    base: OwnedFd,
    /// New directories that entries may still come for; they get their attributes when the first comes that is elsewhere.
    open: Vec<(Vec<u8>, Entry)>,
    done: FilesWritten,
    buffer: Vec<u8>,
}

impl Unpacker<'_> {
    fn all(&mut self, archive: &mut Archive<impl Read>) -> Result<(), FilesError> {
        while let Some(entry) = archive.next_entry()? {
            let called = shown(&entry.name);
            if self.done.entries == MOST_ENTRIES {
                let line = format!("{called}: it is entry {}, the most is {MOST_ENTRIES}", MOST_ENTRIES + 1);
                return Err(FilesError::Refused(line));
            }
            let parts = parts(&entry.name)?;
            self.close_but(&parts.join(&b'/'))?;
            self.entry(&parts, &entry, archive).map_err(|error| match error {
                FilesError::NotFound => FilesError::Refused(format!("{called}: its directory is gone")),
                other => other,
            })?;
            self.done.entries += 1;
        }
        self.close_but(b"")
    }

    fn entry(&mut self, parts: &[&[u8]], entry: &Entry, archive: &mut Archive<impl Read>) -> Result<(), FilesError> {
        let called = shown(&entry.name);
        let Some((name, above)) = parts.split_last() else {
            // the directory itself, which is there
            return match entry.kind {
                Kind::Directory => Ok(()),
                _ => Err(FilesError::Archive(format!("{called:?}: found no name, expected one below the directory"))),
            };
        };
        let parent = self.directory(above, &called)?;
        match entry.kind {
            Kind::Directory => {
                if Self::make_directory(parent.as_fd(), name, &called)? {
                    self.open.push((parts.join(&b'/'), entry.clone()));
                }
                Ok(())
            }
            Kind::File => self.file(&parent, name, entry, archive),
            Kind::Symlink => self.symlink(&parent, name, entry),
            Kind::HardLink => self.hard_link(&parent, name, entry),
        }
    }

    /// The directory of an entry, its missing parts made.
    fn directory(&self, above: &[&[u8]], called: &str) -> Result<OwnedFd, FilesError> {
        let fault = |error| FilesError::of(called, error);
        let held = if above.is_empty() {
            self.base.try_clone().map_err(|error| FilesError::Io(format!("{called}: {error}")))?
        } else {
            let path = above.join(&b'/');
            match tree::path_fd(self.base.as_fd(), &path, OFlags::DIRECTORY | OFlags::NOFOLLOW, BENEATH) {
                Ok(held) => held,
                Err(Errno::NOENT) => self.make_all(above, called)?,
                Err(error) => return Err(fault(error)),
            }
        };
        tree::check_store(&held, called)?;
        let stat = rustix::fs::fstat(&held).map_err(fault)?;
        if self.tree.permits(&stat, 0o3) { Ok(held) } else { Err(fault(Errno::ACCESS)) }
    }

    fn make_all(&self, above: &[&[u8]], called: &str) -> Result<OwnedFd, FilesError> {
        let mut held = self.base.try_clone().map_err(|error| FilesError::Io(format!("{called}: {error}")))?;
        for part in above {
            if Self::make_directory(held.as_fd(), part, called)? {
                let made = child_directory(held.as_fd(), part).map_err(|error| FilesError::of(called, error))?;
                chmod(&made, 0o755).map_err(|error| FilesError::of(called, error))?;
                held = made;
            } else {
                held = child_directory(held.as_fd(), part).map_err(|error| FilesError::of(called, error))?;
            }
        }
        Ok(held)
    }

    /// Makes a directory; false where it is there already.
    fn make_directory(parent: BorrowedFd<'_>, name: &[u8], called: &str) -> Result<bool, FilesError> {
        match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => match child_directory(parent, name) {
                Ok(_) => Ok(false),
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let line = format!("{called}: something that is no directory is in its place; remove it first");
                    Err(FilesError::Refused(line))
                }
                Err(error) => Err(FilesError::of(called, error)),
            },
            Err(error) => Err(FilesError::of(called, error)),
        }
    }

    /// Gives the directories that `next` does not lie in their attributes.
    fn close_but(&mut self, next: &[u8]) -> Result<(), FilesError> {
        while let Some((path, _)) = self.open.last() {
            if next.strip_prefix(path.as_slice()).is_some_and(|rest| rest.starts_with(b"/")) {
                break;
            }
            let Some((path, entry)) = self.open.pop() else { break };
            let fault = |error| FilesError::of(&shown(&entry.name), error);
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
            match tree::path_fd(self.base.as_fd(), &path, flags, BENEATH) {
                Ok(held) => {
                    self.own(held.as_fd(), &entry)?;
                    chmod(&held, entry.mode & 0o1777).map_err(fault)?;
                    touch(&held, &entry).map_err(fault)?;
                }
                // the container has removed or replaced it meanwhile
                Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {}
                Err(error) => return Err(fault(error)),
            }
        }
        Ok(())
    }

    fn file(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        archive: &mut Archive<impl Read>,
    ) -> Result<(), FilesError> {
        let called = shown(&entry.name);
        let fault = |error| FilesError::of(&called, error);
        let temporary = Temporary::new(parent);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            rustix::fs::openat(parent, temporary.name.as_str(), flags, Mode::RUSR | Mode::WUSR).map_err(fault)?;
        let mut left = entry.size;
        while left > 0 {
            let count = archive.read(&mut self.buffer).map_err(|error| error.at(&called))?;
            let mut piece = &self.buffer[..count];
            while !piece.is_empty() {
                match rustix::io::write(&file, piece) {
                    Ok(written) => piece = &piece[written..],
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(fault(error)),
                }
            }
            left -= count as u64;
            self.done.bytes += count as u64;
        }
        self.own(file.as_fd(), entry)?;
        // neither set-user-id nor set-group-id comes in this way
        rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode & 0o777)).map_err(fault)?;
        rustix::fs::futimens(&file, &times(entry)).map_err(fault)?;
        temporary.become_named(name).map_err(fault)
    }

    fn symlink(&self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), FilesError> {
        let called = shown(&entry.name);
        let fault = |error| FilesError::of(&called, error);
        if entry.link.is_empty() {
            return Err(FilesError::Archive(format!("{called}: a symbolic link without a target")));
        }
        let temporary = Temporary::new(parent);
        rustix::fs::symlinkat(entry.link.as_slice(), parent, temporary.name.as_str()).map_err(fault)?;
        let made = tree::path_fd(parent.as_fd(), temporary.name.as_bytes(), OFlags::NOFOLLOW, ResolveFlags::BENEATH);
        let made = made.map_err(fault)?;
        if tree::kind(&rustix::fs::fstat(&made).map_err(fault)?) == FileType::Symlink {
            self.own(made.as_fd(), entry)?;
        }
        temporary.become_named(name).map_err(fault)
    }

    fn hard_link(&self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), FilesError> {
        let called = shown(&entry.name);
        let fault = |error| FilesError::of(&called, error);
        let target = parts(&entry.link).map_err(|error| error.at(&called))?;
        let Some((last, above)) = target.split_last() else {
            return Err(FilesError::Archive(format!("{called}: a hard link without a target")));
        };
        let folder = match above {
            [] => self.base.try_clone().map_err(|error| FilesError::Io(format!("{called}: {error}")))?,
            above => {
                let path = above.join(&b'/');
                tree::path_fd(self.base.as_fd(), &path, OFlags::DIRECTORY | OFlags::NOFOLLOW, BENEATH).map_err(fault)?
            }
        };
        let held = tree::path_fd(folder.as_fd(), last, OFlags::NOFOLLOW, BENEATH).map_err(fault)?;
        let kind = tree::kind(&rustix::fs::fstat(&held).map_err(fault)?);
        if !matches!(kind, FileType::RegularFile | FileType::Symlink) {
            let line = format!("{called}: a hard link to {}, expected a file", tree::word(kind));
            return Err(FilesError::Refused(line));
        }
        let temporary = Temporary::new(parent);
        // the last part is not followed
        rustix::fs::linkat(&folder, *last, parent, temporary.name.as_str(), AtFlags::empty()).map_err(|error| {
            match error {
                Errno::XDEV => FilesError::Refused(format!("{called}: a hard link to a file on another filesystem")),
                error => fault(error),
            }
        })?;
        temporary.become_named(name).map_err(fault)
    }

    /// Gives the owner of the archive, as the container counts. Where the container's user may not do that, new files are
    /// its own, as with `tar` there.
    fn own(&self, fd: BorrowedFd<'_>, entry: &Entry) -> Result<(), FilesError> {
        let called = shown(&entry.name);
        let unknown = |what: &str, id: u32| {
            let line = format!("{called}: the {what} {id} does not exist in the container's user namespace");
            FilesError::Refused(line)
        };
        let uid = self.tree.ids.users.outside(entry.uid).ok_or_else(|| unknown("user", entry.uid))?;
        let gid = self.tree.ids.groups.outside(entry.gid).ok_or_else(|| unknown("group", entry.gid))?;
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        match rustix::fs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH) {
            Ok(()) | Err(Errno::PERM) => Ok(()),
            Err(error) => Err(FilesError::of(&called, error)),
        }
    }
}

/// A name in a directory that is removed unless it becomes another.
struct Temporary<'a> {
    parent: &'a OwnedFd,
    name: String,
}

impl<'a> Temporary<'a> {
    fn new(parent: &'a OwnedFd) -> Self {
        Self { parent, name: format!(".agentd-cp-{}", uuid::Uuid::new_v4().simple()) }
    }

    fn become_named(self, name: &[u8]) -> Result<(), Errno> {
        // when both are names of one file, this does nothing, and the drop removes the temporary one
        rustix::fs::renameat(self.parent, self.name.as_str(), self.parent, name)
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        // after a rename it is not there
        let _ = rustix::fs::unlinkat(self.parent, self.name.as_str(), AtFlags::empty());
    }
}

fn child_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    tree::path_fd(parent, name, OFlags::DIRECTORY | OFlags::NOFOLLOW, BENEATH)
}

/// The parts of an entry's name. One that leads up or begins at the root is refused.
fn parts(name: &[u8]) -> Result<Vec<&[u8]>, FilesError> {
    let called = shown(name);
    let bad = |what: &str| Err(FilesError::Refused(format!("{called}: {what}")));
    if name.starts_with(b"/") {
        return bad("an absolute name; expected one below the directory to unpack in");
    }
    if name.contains(&0) {
        return bad("a NUL byte in its name");
    }
    let parts: Vec<&[u8]> = name.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&b"..".as_slice()) {
        return bad(".. in its name; expected one below the directory to unpack in");
    }
    if parts.len() > DEEPEST {
        return bad(&format!("it lies {} directories deep, the most is {DEEPEST}", parts.len()));
    }
    Ok(parts)
}

/// The object itself by its descriptor, also where that may only be asked and resolved from.
fn itself(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn chmod(fd: &OwnedFd, mode: u32) -> Result<(), Errno> {
    rustix::fs::chmodat(CWD, itself(fd), Mode::from_raw_mode(mode), AtFlags::empty())
}

fn touch(fd: &OwnedFd, entry: &Entry) -> Result<(), Errno> {
    rustix::fs::utimensat(CWD, itself(fd), &times(entry), AtFlags::empty())
}

fn times(entry: &Entry) -> Timestamps {
    let (seconds, nanoseconds) = entry.mtime;
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}
