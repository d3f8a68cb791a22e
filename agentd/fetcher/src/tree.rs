//! Writes the content of an archive below one folder, and nowhere else.
//!
//! The names in an archive are an attacker's. Each is cleaned and then resolved from the folder's descriptor by the
//! kernel (openat2 with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS), so that neither `..` nor a link that an earlier entry made
//! leads elsewhere. Bytes and entries are counted.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::error::{Failure, FailureKind};
use crate::protocol::{Limits, TREE};
use crate::uri;

/// Folders and files: others may read but not write, and there is no set-user-id.
const MODE_MASK: u32 = 0o755;

/// The folder that an archive is unpacked into.
pub(crate) struct Tree {
    root: OwnedFd,
    limits: Limits,
    bytes: u64,
    entries: u64,
}

impl Tree {
    /// Makes the folder in the staging folder.
    pub fn new(staging: BorrowedFd<'_>, limits: Limits) -> Result<Self, Failure> {
        let failed = |error: Errno| Failure::local("making the folder to unpack into", error);
        rustix::fs::mkdirat(staging, TREE, Mode::from_raw_mode(0o755)).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::openat(staging, TREE, flags, Mode::empty()).map_err(failed)?;
        Ok(Self { root, limits, bytes: 0, entries: 0 })
    }

    /// Makes a folder.
    pub fn folder(&mut self, name: &[u8], mode: u32) -> Result<(), Failure> {
        self.count_entry()?;
        let Some(path) = clean(name)? else {
            return Ok(());
        };
        let folder = self.open_folder(&path, name)?;
        // stays writable for its owner, or the entries below it could not be made
        let mode = Mode::from_raw_mode(mode & MODE_MASK | 0o700);
        rustix::fs::fchmod(&folder, mode).map_err(|error| unwritable(name, error))
    }

    /// Makes a file with what `content` gives.
    pub fn file(&mut self, name: &[u8], mode: u32, modified: Option<u64>, content: impl Read) -> Result<(), Failure> {
        self.count_entry()?;
        let (parent, base) = self.place(name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parent, &base, flags, Mode::from_raw_mode(0o600));
        let mut file = File::from(fd.map_err(|error| unwritable(name, error))?);
        self.copy(name, content, &mut file)?;
        let mode = Mode::from_raw_mode(mode & MODE_MASK | 0o400);
        rustix::fs::fchmod(&file, mode).map_err(|error| unwritable(name, error))?;
        if let Some(seconds) = modified.and_then(|seconds| i64::try_from(seconds).ok()) {
            let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
            // a time that the file system cannot hold is not worth a failure
            let _ = rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time });
        }
        Ok(())
    }

    /// Makes a symbolic link, which must stay below the folder wherever it is followed.
    pub fn symlink(&mut self, name: &[u8], target: &[u8]) -> Result<(), Failure> {
        self.count_entry()?;
        let depth = clean(name)?.map_or(0, |path| path.components().count().saturating_sub(1));
        if let Some(reason) = escapes(depth, target) {
            return Err(refused(name, &format!("is a link to {} that {reason}", show(target))));
        }
        let (parent, base) = self.place(name)?;
        rustix::fs::symlinkat(OsStr::from_bytes(target), &parent, &base).map_err(|error| unwritable(name, error))
    }

    /// Makes what is a hard link in the archive: a copy, so that no file of the sandbox has a second name.
    pub fn hard_link(&mut self, name: &[u8], target: &[u8]) -> Result<(), Failure> {
        let missing = |reason: &str| refused(name, &format!("is a hard link to {}, {reason}", show(target)));
        let Some(path) = clean(target)? else {
            return Err(missing("which is a folder"));
        };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let source = self.resolve(&path, flags).map_err(|_| missing("which is no earlier file of the archive"))?;
        let stat = rustix::fs::fstat(&source).map_err(|error| unwritable(name, error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(missing("which is no file"));
        }
        if clean(name)?.as_deref() == Some(&path) {
            return self.count_entry();
        }
        let modified = u64::try_from(stat.st_mtime).ok();
        self.file(name, stat.st_mode, modified, File::from(source))
    }

    fn count_entry(&mut self) -> Result<(), Failure> {
        self.entries += 1;
        if self.entries <= self.limits.max_entries {
            return Ok(());
        }
        let most = self.limits.max_entries;
        Err(Failure::extract(
            FailureKind::TooLarge,
            format!("the archive has more than {most} entries; use a smaller one, or unpack it in the container"),
        ))
    }

    fn copy(&mut self, name: &[u8], mut content: impl Read, file: &mut File) -> Result<(), Failure> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = match content.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(damaged(format!("entry {}: {error}", show(name)))),
            };
            self.bytes += count as u64;
            if self.bytes > self.limits.max_extracted_bytes {
                return Err(too_large(self.limits.max_extracted_bytes));
            }
            file.write_all(&buffer[..count]).map_err(|error| unwritable(name, error))?;
        }
    }

    /// The folder of an entry and its name in it; what stood there before (not a folder) is removed.
    fn place(&self, name: &[u8]) -> Result<(OwnedFd, PathBuf), Failure> {
        let Some(path) = clean(name)? else {
            return Err(refused(name, "is the folder itself, not a file in it"));
        };
        let base = path.file_name().map(PathBuf::from).unwrap_or_default();
        let parent = self.open_folder(path.parent().unwrap_or(Path::new("")), name)?;
        match rustix::fs::unlinkat(&parent, &base, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok((parent, base)),
            Err(Errno::ISDIR) => Err(refused(name, "stands where an earlier entry made a folder")),
            Err(error) => Err(unwritable(name, error)),
        }
    }

    /// Opens a folder for `name`, making what is missing.
    fn open_folder(&self, path: &Path, name: &[u8]) -> Result<OwnedFd, Failure> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if path.as_os_str().is_empty() {
            return self.root.try_clone().map_err(|error| unwritable(name, error));
        }
        match self.resolve(path, flags) {
            Err(Errno::NOENT) => {}
            Err(Errno::LOOP) => return Err(refused(name, "goes through a symbolic link of the archive")),
            Err(Errno::NOTDIR) => return Err(refused(name, "is below an entry that is no folder")),
            other => return other.map_err(|error| unwritable(name, error)),
        }
        let parent = self.open_folder(path.parent().unwrap_or(Path::new("")), name)?;
        let base = path.file_name().unwrap_or_default();
        match rustix::fs::mkdirat(&parent, base, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(unwritable(name, error)),
        }
        self.resolve(path, flags).map_err(|error| unwritable(name, error))
    }

    fn resolve(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        loop {
            match rustix::fs::openat2(self.root.as_fd(), path, flags, Mode::empty(), resolve) {
                // the kernel could not be sure because of a rename somewhere; it says to try again
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }
}

/// The clean relative path of an entry; `None` for the folder itself (`./`).
fn clean(name: &[u8]) -> Result<Option<PathBuf>, Failure> {
    let path = Path::new(OsStr::from_bytes(name));
    if !name.is_empty() && path.components().all(|part| part == Component::CurDir) {
        return Ok(None);
    }
    uri::below_sandbox(path).map(Some).map_err(|reason| refused(name, reason))
}

/// Why a link in a folder `depth` folders deep leads out of the tree.
///
/// `..` may only come first: the folders above the link are real ones, so each `..` there goes up by exactly one. After a
/// name it could follow another link and go up from somewhere else.
fn escapes(depth: usize, target: &[u8]) -> Option<&'static str> {
    if target.is_empty() || target.len() > uri::PATH_LIMIT || CStr::from_bytes_until_nul(target).is_ok() {
        return Some("is no path");
    }
    let mut up = 0;
    let mut named = false;
    for part in Path::new(OsStr::from_bytes(target)).components() {
        match part {
            Component::RootDir | Component::Prefix(_) => return Some("is absolute"),
            Component::ParentDir if named => return Some("has a '..' after a name"),
            Component::ParentDir => up += 1,
            Component::Normal(_) => named = true,
            Component::CurDir => {}
        }
    }
    (up > depth).then_some("leads out of the archive's folder")
}

fn show(name: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(name).chars().take(200).collect();
    format!("{text:?}")
}

fn refused(name: &[u8], reason: &str) -> Failure {
    Failure::extract(FailureKind::Refused, format!("entry {} of the archive {reason}", show(name)))
}

fn unwritable(name: &[u8], error: impl std::fmt::Display) -> Failure {
    Failure::extract(FailureKind::Local, format!("entry {} of the archive cannot be written: {error}", show(name)))
}

/// The failure of an archive that is damaged.
pub(crate) fn damaged(reason: impl std::fmt::Display) -> Failure {
    Failure::extract(FailureKind::Archive, format!("the archive is damaged or cut off: {reason}"))
}

/// The failure of an archive that unpacks to too much.
pub(crate) fn too_large(most: u64) -> Failure {
    let reason =
        format!("the archive unpacks to more than {most} bytes; use a smaller one, or unpack it in the container");
    Failure::extract(FailureKind::TooLarge, reason)
}

/// The failure of an entry that is neither file, folder nor link.
pub(crate) fn odd_entry(name: &[u8], kind: &str) -> Failure {
    refused(name, &format!("is {kind}; only files, folders and links are unpacked"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_inside() {
        for (depth, target, stays) in [
            (0, "a", true),
            (0, "a/b", true),
            (0, "./a", true),
            (1, "../a", true),
            (2, "../../a/b", true),
            (0, "..", false),
            (0, "../a", false),
            (1, "../../a", false),
            (3, "/etc/passwd", false),
            (3, "a/../b", false),
            (0, "", false),
            (0, "a\0b", false),
        ] {
            assert_eq!(escapes(depth, target.as_bytes()).is_none(), stays, "{depth} {target:?}");
        }
    }
}
