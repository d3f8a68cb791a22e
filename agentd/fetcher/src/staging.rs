//! The staging folder: where the child writes, inside the sandbox so that the result is moved by rename.
//!
//! It is locked (flock) as long as agentd or the child has it open. A folder without a lock is the rest of a fetch that
//! was cut off, and the next fetch into the same sandbox removes it.

use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Mutex;

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

const PREFIX: &str = ".agentd-fetch-";

/// How a folder of a sandbox is opened: never through a link.
pub(crate) const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Held from the making of a staging folder to its lock, and while sweeping, so that none is swept in between.
static MAKING: Mutex<()> = Mutex::new(());

/// Whether a name in a sandbox is one of ours.
pub(crate) fn is_staging_name(name: &OsStr) -> bool {
    name.as_bytes().starts_with(PREFIX.as_bytes())
}

/// A staging folder, removed with its content when dropped.
pub(crate) struct Staging {
    sandbox: OwnedFd,
    name: OsString,
    folder: OwnedFd,
}

impl Staging {
    /// Sweeps the sandbox and makes a staging folder that `user` may write into.
    pub fn new(sandbox: OwnedFd, user: (u32, u32)) -> io::Result<Self> {
        let guard = MAKING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        sweep_locked(sandbox.as_fd())?;
        let name = OsString::from(format!("{PREFIX}{}", uuid::Uuid::new_v4().simple()));
        rustix::fs::mkdirat(&sandbox, &name, Mode::RWXU)?;
        let folder = rustix::fs::openat(&sandbox, &name, FOLDER, Mode::empty())?;
        let staging = Self { sandbox, name, folder };
        rustix::fs::flock(&staging.folder, FlockOperation::NonBlockingLockExclusive)?;
        drop(guard);
        if rustix::process::geteuid().is_root() {
            rustix::fs::fchown(&staging.folder, Some(Uid::from_raw(user.0)), Some(Gid::from_raw(user.1)))?;
        }
        Ok(staging)
    }

    pub fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    pub fn sandbox(&self) -> BorrowedFd<'_> {
        self.sandbox.as_fd()
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = remove(self.sandbox.as_fd(), &self.name) {
            tracing::warn!(name = %self.name.display(), %error, "a staging folder stays until the next fetch into its sandbox");
        }
    }
}

/// Removes what cut-off fetches left in a sandbox; gives how many staging folders that were. Running fetches keep theirs.
/// Blocks on the file system.
pub fn sweep(sandbox: BorrowedFd<'_>) -> io::Result<usize> {
    let _guard = MAKING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    sweep_locked(sandbox)
}

fn sweep_locked(sandbox: BorrowedFd<'_>) -> io::Result<usize> {
    let mut count = 0;
    for name in names(sandbox)? {
        if !is_staging_name(&name) {
            continue;
        }
        if let Ok(folder) = rustix::fs::openat(sandbox, &name, FOLDER, Mode::empty())
            && rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive).is_err()
        {
            continue;
        }
        remove(sandbox, &name)?;
        count += 1;
    }
    Ok(count)
}

/// The names in a folder.
pub(crate) fn names(folder: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    let mut all = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if name != c"." && name != c".." {
            all.push(OsString::from_vec(name.to_bytes().to_vec()));
        }
    }
    Ok(all)
}

/// Removes `name` in `parent` with all below; follows no link, and takes what is already gone for removed.
fn remove(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    // a path of open folders instead of recursion: what a hostile process nested deeply must not exhaust the stack
    let mut open: Vec<(OwnedFd, OsString)> = Vec::new();
    let mut todo = vec![(0, name.to_owned())];
    while let Some((depth, name)) = todo.pop() {
        while open.len() > depth {
            if let Some((_, done)) = open.pop() {
                let above = open.last().map_or(parent, |(fd, _)| fd.as_fd());
                tolerate_gone(rustix::fs::unlinkat(above, &done, AtFlags::REMOVEDIR))?;
            }
        }
        let above = open.last().map_or(parent, |(fd, _)| fd.as_fd());
        match rustix::fs::unlinkat(above, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
        let folder = match rustix::fs::openat(above, &name, FOLDER, Mode::empty()) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        if open.len() >= 4 * crate::uri::DEPTH_LIMIT {
            return Err(io::Error::other("folders nested deeper than any fetch makes"));
        }
        let depth = depth + 1;
        todo.extend(names(folder.as_fd())?.into_iter().map(|name| (depth, name)));
        open.push((folder, name));
    }
    while let Some((_, done)) = open.pop() {
        let above = open.last().map_or(parent, |(fd, _)| fd.as_fd());
        tolerate_gone(rustix::fs::unlinkat(above, &done, AtFlags::REMOVEDIR))?;
    }
    Ok(())
}

fn tolerate_gone(result: Result<(), Errno>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The kind of what stands at `name`, without following a link; `None` when there is nothing.
pub(crate) fn kind(folder: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<rustix::fs::Stat>> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether a stat is that of a folder.
pub(crate) fn is_folder(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        (dir, fd)
    }

    #[test]
    fn sweeps_only_what_nobody_holds() {
        let (dir, fd) = sandbox();
        let left = dir.path().join(".agentd-fetch-old/tree/a/b/c");
        std::fs::create_dir_all(&left).unwrap();
        std::fs::write(left.join("file"), "x").unwrap();
        std::fs::write(dir.path().join(".agentd-fetch-old/tree/f"), "x").unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join(".agentd-fetch-old/link")).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join(".agentd-fetch-link")).unwrap();
        std::fs::write(dir.path().join("mine"), "x").unwrap();
        let user = (65534, 65534);
        let staging = Staging::new(fd.try_clone().unwrap(), user).unwrap();
        assert!(!dir.path().join(".agentd-fetch-old").exists());
        assert!(std::path::Path::new("/etc/passwd").exists());
        // a second fetch, and a sweep, leave the first one's folder alone
        let second = Staging::new(fd.try_clone().unwrap(), user).unwrap();
        assert_eq!(sweep(fd.as_fd()).unwrap(), 0);
        assert_eq!(names(fd.as_fd()).unwrap().len(), 3);
        rustix::fs::mkdirat(staging.folder(), "tree", Mode::RWXU).unwrap();
        drop(staging);
        drop(second);
        assert_eq!(names(fd.as_fd()).unwrap(), ["mine"]);
    }
}
