//! Writes the entries of a layer into its folder, in the form that overlayfs reads.
//!
//! - `.wh.name` becomes a character device 0:0, `.wh..wh..opq` the attribute `trusted.overlay.opaque`. Both speak of the
//!   layers beneath: a file of the same layer stays.
//! - Device nodes are left out and counted: a container's root is mounted `nodev`, they would be of no use.
//! - Of the extended attributes `user.*`, `security.capability` and POSIX ACLs are kept. `trusted.*` is refused, since
//!   overlayfs takes its orders from there. The rest (labels of the host's security module) is left out and counted.
//! - A hard link must lead to a file of the same layer. Layers are unpacked independently of each other, so that an image
//!   cannot link to a file of a layer beneath; no builder makes such layers.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use tar::EntryType;

use super::entries::{Entries, Entry};
use super::fault::{Fault, shown};
use super::folder::{self, Folders, LayerPath};
use crate::settings::Limits;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Device nodes left out.
    pub devices: u64,
    /// Extended attributes left out.
    pub xattrs: u64,
}

/// Writes one layer.
#[derive(Debug)]
pub(super) struct Applier<'a> {
    folders: Folders,
    limits: &'a Limits,
    cancelled: &'a AtomicBool,
    applied: Applied,
    /// Times of folders, set at the end: writing into a folder changes its time.
    times: BTreeMap<Vec<u8>, (i64, i64)>,
    privileged: bool,
}

impl<'a> Applier<'a> {
    pub fn new(root: OwnedFd, limits: &'a Limits, cancelled: &'a AtomicBool) -> Self {
        Self {
            folders: Folders::new(root, limits.depth),
            limits,
            cancelled,
            applied: Applied::default(),
            times: BTreeMap::new(),
            privileged: rustix::process::geteuid().is_root(),
        }
    }

    pub fn applied(&self) -> Applied {
        self.applied
    }

    /// Writes all entries.
    pub fn run<R: BufRead>(&mut self, entries: &mut Entries<R>) -> Result<(), Fault> {
        while let Some(entry) = entries.next()? {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(Fault::Cancelled);
            }
            self.applied.entries += 1;
            if self.applied.entries > self.limits.entries {
                return Err(Fault::Damaged(format!("it has more than {} entries", self.limits.entries)));
            }
            let path = LayerPath::parse(&entry.path, self.limits.path_bytes, self.limits.depth)?;
            if path.is_root() {
                if entry.kind != EntryType::Directory {
                    return Err(Fault::refused(&entry.path, "the layer's root is no folder"));
                }
                let root = self.folders.folder(&[])?;
                self.attributes(&root, b"", &entry, true)?;
                self.times.insert(Vec::new(), entry.mtime);
            } else if path.name().starts_with(WHITEOUT) {
                self.whiteout(&path)?;
            } else {
                self.write(&path, &entry, entries)?;
            }
        }
        self.set_times();
        Ok(())
    }

    fn write<R: BufRead>(&mut self, path: &LayerPath, entry: &Entry, entries: &mut Entries<R>) -> Result<(), Fault> {
        match entry.kind {
            EntryType::Directory => self.directory(path, entry),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => self.file(path, entry, entries),
            EntryType::Symlink => {
                if entry.link.is_empty() || entry.link.len() > self.limits.path_bytes || entry.link.contains(&0) {
                    return Err(Fault::refused(&entry.path, "its link target is empty, too long or has a zero byte"));
                }
                let parent = self.create(path, |parent| rustix::fs::symlinkat(&*entry.link, parent, path.name()))?;
                self.attributes(&parent, path.name(), entry, false)
            }
            EntryType::Link => self.hard_link(path, entry),
            EntryType::Fifo => {
                let mode = Mode::from_raw_mode(entry.mode);
                let parent =
                    self.create(path, |parent| rustix::fs::mknodat(parent, path.name(), FileType::Fifo, mode, 0))?;
                self.attributes(&parent, path.name(), entry, true)
            }
            EntryType::Char | EntryType::Block => {
                self.applied.devices += 1;
                Ok(())
            }
            other => Err(Fault::refused(&entry.path, format!("its type {:?} is unknown", other.as_byte() as char))),
        }
    }

    /// Creates something, in the place of what an earlier entry has put there.
    fn create(&mut self, path: &LayerPath, make: impl Fn(&OwnedFd) -> Result<(), Errno>) -> Result<Rc<OwnedFd>, Fault> {
        let parent = self.folders.folder(path.parent())?;
        let result = match make(&parent) {
            Err(Errno::EXIST) => {
                folder::remove(&parent, path.name())?;
                self.folders.forget();
                make(&parent)
            }
            result => result,
        };
        result.map_err(|error| Fault::io(format!("create {}", shown(path.bytes())), error))?;
        Ok(parent)
    }

    fn directory(&mut self, path: &LayerPath, entry: &Entry) -> Result<(), Fault> {
        let parent = self.folders.folder(path.parent())?;
        let mode = Mode::from_raw_mode(entry.mode | 0o700);
        match rustix::fs::mkdirat(&*parent, path.name(), mode) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let found = rustix::fs::statat(&*parent, path.name(), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|error| Fault::io(format!("look at {}", shown(path.bytes())), error))?;
                match FileType::from_raw_mode(found.st_mode) {
                    FileType::Directory => {}
                    FileType::CharacterDevice => {
                        self.folders.forget();
                        folder::replace_whiteout(&parent, path.name(), mode)?;
                    }
                    _ => {
                        self.folders.forget();
                        folder::remove(&parent, path.name())?;
                        rustix::fs::mkdirat(&*parent, path.name(), mode)
                            .map_err(|error| Fault::io(format!("create {}", shown(path.bytes())), error))?;
                    }
                }
            }
            Err(error) => return Err(Fault::io(format!("create {}", shown(path.bytes())), error)),
        }
        self.attributes(&parent, path.name(), entry, true)?;
        self.times.insert(path.bytes().to_vec(), entry.mtime);
        Ok(())
    }

    fn file<R: BufRead>(&mut self, path: &LayerPath, entry: &Entry, entries: &mut Entries<R>) -> Result<(), Fault> {
        self.applied.bytes = self.applied.bytes.saturating_add(entry.size);
        if self.applied.bytes > self.limits.layer_bytes {
            return Err(Fault::refused(
                &entry.path,
                format!("with its {} bytes the layer has more than {}", entry.size, self.limits.layer_bytes),
            ));
        }
        let parent = self.folders.folder(path.parent())?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&*parent, path.name(), flags, Mode::from_raw_mode(0o600));
        let opened = match open() {
            Err(Errno::EXIST) => {
                folder::remove(&parent, path.name())?;
                self.folders.forget();
                open()
            }
            result => result,
        };
        let mut file = File::from(opened.map_err(|error| Fault::io(format!("create {}", shown(path.bytes())), error))?);
        let failed = |error: std::io::Error| Fault::io(format!("write {}", shown(path.bytes())), error);
        if let Some(map) = &entry.sparse {
            for (offset, length) in map {
                file.seek(SeekFrom::Start(*offset)).map_err(failed)?;
                entries.payload(*length, |slice| file.write_all(slice).map_err(failed))?;
            }
            file.set_len(entry.size).map_err(failed)?;
        } else {
            entries.payload(entry.size, |slice| file.write_all(slice).map_err(failed))?;
        }
        let failed = |error: Errno| Fault::io(format!("set the attributes of {}", shown(path.bytes())), error);
        let mode = Mode::from_raw_mode(entry.mode);
        let (uid, gid) = owner(entry)?;
        if !self.privileged || entry.uid != 0 || entry.gid != 0 {
            rustix::fs::fchown(&file, Some(uid), Some(gid)).map_err(failed)?;
        }
        rustix::fs::fchmod(&file, mode).map_err(failed)?;
        for (name, value) in &entry.xattrs {
            if self.keeps(name, entry)? {
                let result = rustix::fs::fsetxattr(&file, &**name, value, XattrFlags::empty());
                self.xattr_set(name, path.bytes(), result)?;
            }
        }
        rustix::fs::futimens(&file, &stamps(entry.mtime)).map_err(failed)
    }

    fn hard_link(&mut self, path: &LayerPath, entry: &Entry) -> Result<(), Fault> {
        let target = LayerPath::parse(&entry.link, self.limits.path_bytes, self.limits.depth)?;
        let missing = || {
            Fault::refused(
                &entry.path,
                format!(
                    "it is a hard link to {}, which is no file of this layer; rebuild the image so that both are in one \
                     layer",
                    shown(&entry.link)
                ),
            )
        };
        if target.is_root() {
            return Err(missing());
        }
        if target.bytes() == path.bytes() {
            return Err(Fault::refused(&entry.path, "it is a hard link to itself"));
        }
        let from = self.folders.existing(target.parent())?.ok_or_else(missing)?;
        let found = match rustix::fs::statat(&*from, target.name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Err(missing()),
            Err(error) => return Err(Fault::io(format!("look at {}", shown(target.bytes())), error)),
        };
        match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile | FileType::Symlink | FileType::Fifo => {}
            _ => return Err(missing()),
        }
        self.create(path, |parent| rustix::fs::linkat(&*from, target.name(), parent, path.name(), AtFlags::empty()))
            .map(drop)
    }

    fn whiteout(&mut self, path: &LayerPath) -> Result<(), Fault> {
        if path.name() == OPAQUE {
            // Makes the folder if its own entry comes later.
            let folder = self.folders.folder(path.parent())?;
            return folder::opaque(&folder, b"");
        }
        let name = &path.name()[WHITEOUT.len()..];
        // `.wh..wh.plnk` and the like are bookkeeping of aufs.
        if name.starts_with(WHITEOUT) {
            return Ok(());
        }
        if matches!(name, b"" | b"." | b"..") {
            return Err(Fault::refused(path.bytes(), "it is a whiteout of no name"));
        }
        let parent = self.folders.folder(path.parent())?;
        match rustix::fs::mknodat(&*parent, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => {
                let found = rustix::fs::statat(&*parent, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|error| Fault::io(format!("look at {}", shown(path.bytes())), error))?;
                // The layer's own folder stays; the one beneath is hidden.
                if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
                    folder::opaque(&parent, name)
                } else {
                    Ok(())
                }
            }
            Err(error) => Err(Fault::io(format!("make a whiteout for {}", shown(path.bytes())), error)),
        }
    }

    /// Owner, mode, extended attributes and time of what is not a regular file. An empty name is the folder itself.
    fn attributes(&mut self, parent: &OwnedFd, name: &[u8], entry: &Entry, mode: bool) -> Result<(), Fault> {
        let failed = |error: Errno| Fault::io(format!("set the attributes of {}", shown(&entry.path)), error);
        let at: &[u8] = if name.is_empty() { b"." } else { name };
        let (uid, gid) = owner(entry)?;
        if !self.privileged || entry.uid != 0 || entry.gid != 0 || entry.kind == EntryType::Directory {
            rustix::fs::chownat(parent, at, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        }
        if mode {
            // Follows links, but this is none: it was made or looked at above, and only this thread writes here.
            rustix::fs::chmodat(parent, at, Mode::from_raw_mode(entry.mode), AtFlags::empty()).map_err(failed)?;
        }
        for (key, value) in &entry.xattrs {
            if self.keeps(key, entry)? {
                let result =
                    rustix::fs::lsetxattr(folder::below(parent.as_fd(), name), &**key, value, XattrFlags::empty());
                self.xattr_set(key, &entry.path, result)?;
            }
        }
        if entry.kind == EntryType::Directory {
            return Ok(());
        }
        rustix::fs::utimensat(parent, at, &stamps(entry.mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
    }

    /// Whether an extended attribute is kept; counts it if it is left out.
    fn keeps(&mut self, name: &[u8], entry: &Entry) -> Result<bool, Fault> {
        if name.starts_with(b"trusted.") {
            return Err(Fault::refused(
                &entry.path,
                format!("it has the extended attribute {}, which no image may set", shown(name)),
            ));
        }
        let kept = (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
            || name == b"security.capability"
            || name.starts_with(b"system.posix_acl_");
        self.applied.xattrs += u64::from(!kept);
        Ok(kept)
    }

    fn xattr_set(&mut self, name: &[u8], path: &[u8], result: Result<(), Errno>) -> Result<(), Fault> {
        match result {
            Ok(()) => Ok(()),
            // Links and pipes take no attributes of users, and some disks none at all.
            Err(Errno::OPNOTSUPP | Errno::PERM) if name != b"security.capability" => {
                self.applied.xattrs += 1;
                Ok(())
            }
            Err(error) => {
                Err(Fault::io(format!("set the extended attribute {} of {}", shown(name), shown(path)), error))
            }
        }
    }

    fn set_times(&mut self) {
        for (path, time) in std::mem::take(&mut self.times) {
            // A folder that a later entry replaced has no time to set.
            if let Ok(Some(folder)) = self.folders.existing(&path) {
                let _ = rustix::fs::utimensat(&*folder, ".", &stamps(time), AtFlags::empty());
            }
        }
    }
}

fn owner(entry: &Entry) -> Result<(Uid, Gid), Fault> {
    // The kernel takes this number as "leave it".
    if entry.uid == u32::MAX || entry.gid == u32::MAX {
        return Err(Fault::refused(&entry.path, "its owner 4294967295 is no id"));
    }
    Ok((Uid::from_raw(entry.uid), Gid::from_raw(entry.gid)))
}

fn stamps((seconds, nanoseconds): (i64, i64)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    Timestamps { last_access: time, last_modification: time }
}
