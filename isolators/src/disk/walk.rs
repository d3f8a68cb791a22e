//! Walking a tree that containers write to: counting it and removing it.
//!
//! Containers can nest folders without end, rename them while we look and plant symbolic links, so the walk holds one
//! descriptor at a time, never follows a link, never crosses a mount (`RESOLVE_NO_XDEV`), and after climbing by `..`
//! checks that it arrived where it came from.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat, openat2, statat, unlinkat};
use rustix::io::Errno;

/// What a tree takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskUse {
    /// Bytes on disk (blocks, not lengths).
    pub bytes: u64,
    /// Files and directories; a file with several names counts once.
    pub inodes: u64,
}

type Identity = (u64, u64);

#[derive(Debug)]
struct Level {
    name: CString,
    identity: Identity,
    pending: Vec<CString>,
}

fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

fn open_folder(dir: impl AsFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(dir, name, flags, Mode::empty(), resolve)
}

/// Calls `each` for every entry of the directory but `.` and `..`.
fn entries(dir: &OwnedFd, mut each: impl FnMut(&CStr, FileType) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 16 << 10];
    let mut reader = RawDir::new(dir, &mut buffer);
    while let Some(entry) = reader.next() {
        let entry = match entry {
            Ok(entry) => entry,
            // removed meanwhile
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let name = entry.file_name();
        if name != c"." && name != c".." {
            each(name, entry.file_type())?;
        }
    }
    Ok(())
}

/// Opens the directory at the end of `levels` (whose first is `root` itself) after a climb that went astray.
fn reopen(root: &OwnedFd, levels: &[Level]) -> rustix::io::Result<OwnedFd> {
    let mut at = open_folder(root, c".")?;
    for level in &levels[1..] {
        at = open_folder(&at, &level.name)?;
        if identity(&rustix::fs::fstat(&at)?) != level.identity {
            return Err(Errno::NOENT);
        }
    }
    Ok(at)
}

/// Leaves a finished directory for the one above it, the last of `levels`.
fn climb(root: &OwnedFd, from: &OwnedFd, levels: &mut Vec<Level>) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if let (Some(level), Ok(up)) = (levels.last(), openat2(from, c"..", flags, Mode::empty(), resolve))
        && identity(&rustix::fs::fstat(&up)?) == level.identity
    {
        return Ok(up);
    }
    loop {
        match reopen(root, levels) {
            Ok(up) => return Ok(up),
            // a folder above was moved or removed: go on above it; the first level is the root itself
            Err(_) if levels.len() > 1 => drop(levels.pop()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Counts what lies in the tree below `root` (opened for reading). Stops once more than `enough` bytes are counted.
pub fn measure(root: &OwnedFd, enough: u64) -> io::Result<DiskUse> {
    let mut used = DiskUse::default();
    let mut linked = HashSet::new();
    let mut count = |dir: &OwnedFd, pending: &mut Vec<CString>, used: &mut DiskUse| {
        entries(dir, |name, _| {
            let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if !folder && stat.st_nlink > 1 && !linked.insert(identity(&stat)) {
                return Ok(());
            }
            used.bytes += stat.st_blocks as u64 * 512;
            used.inodes += 1;
            if folder {
                pending.push(name.to_owned());
            }
            Ok(())
        })
    };
    let mut at = open_folder(root, c".")?;
    let mut levels =
        vec![Level { name: c"".to_owned(), identity: identity(&rustix::fs::fstat(&at)?), pending: Vec::new() }];
    count(&at, &mut levels[0].pending, &mut used)?;
    while let Some(level) = levels.last_mut() {
        if used.bytes > enough {
            break;
        }
        if let Some(name) = level.pending.pop() {
            // gone, replaced, or a mount: not of this tree
            let Ok(below) = open_folder(&at, &name) else { continue };
            let mut level = Level { name, identity: identity(&rustix::fs::fstat(&below)?), pending: Vec::new() };
            count(&below, &mut level.pending, &mut used)?;
            levels.push(level);
            at = below;
        } else {
            levels.pop();
            if !levels.is_empty() {
                at = climb(root, &at, &mut levels)?;
            }
        }
    }
    Ok(used)
}

/// Removes the file or tree `name` below `parent`. Nothing there is success; a mount inside is an error (`EXDEV`).
pub fn remove_below(parent: impl AsFd, name: &CStr) -> io::Result<()> {
    match unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let root = match open_folder(&parent, name) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let sweep = |dir: &OwnedFd, pending: &mut Vec<CString>| {
        entries(dir, |name, kind| {
            if kind != FileType::Directory {
                match unlinkat(dir, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => return Ok(()),
                    // the file system does not tell kinds in its listings
                    Err(Errno::ISDIR | Errno::PERM) if kind == FileType::Unknown => {}
                    Err(error) => return Err(error.into()),
                }
            }
            pending.push(name.to_owned());
            Ok(())
        })
    };
    let mut at = open_folder(&root, c".")?;
    let mut levels =
        vec![Level { name: c"".to_owned(), identity: identity(&rustix::fs::fstat(&at)?), pending: Vec::new() }];
    sweep(&at, &mut levels[0].pending)?;
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.pending.pop() {
            let below = match open_folder(&at, &name) {
                Ok(below) => below,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            let mut level = Level { name, identity: identity(&rustix::fs::fstat(&below)?), pending: Vec::new() };
            sweep(&below, &mut level.pending)?;
            levels.push(level);
            at = below;
        } else {
            let done = levels.pop();
            if let (Some(done), false) = (done, levels.is_empty()) {
                at = climb(&root, &at, &mut levels)?;
                match unlinkat(&at, &done.name, AtFlags::REMOVEDIR) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    match unlinkat(&parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes the file or tree at `path`, whose parent folders are trusted.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the path of a file or folder"));
    };
    let parent = match crate::mounter::open_dir(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    remove_below(parent, &CString::new(name.as_bytes()).map_err(io::Error::other)?)
}
