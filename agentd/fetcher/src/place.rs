//! Gives what the child fetched to the container's user and moves it into the sandbox.
//!
//! Both sides are untrusted: the child may have been taken over by what it parsed, and the sandbox may already be in a
//! container's hands. So every step is one name below an open folder and follows no link.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid};
use rustix::io::Errno;

use crate::error::{Failure, FailureKind, Part};
use crate::protocol::{FILE, TREE};
use crate::staging::{FOLDER, Staging, is_folder, kind, names};
use crate::uri::{DEPTH_LIMIT, Plan};

/// Moves the result of a fetch from the staging folder to where the plan says, owned by `owner` (uid, gid).
pub(crate) fn place(staging: &Staging, plan: &Plan, owner: (u32, u32)) -> Result<(), Failure> {
    let owner = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
    let local = |error: io::Error| Failure::local("moving the artifact into the sandbox", error);
    if plan.extract {
        give(staging.folder(), OsStr::new(TREE), owner, 0).map_err(local)?;
        let tree = open_folder(staging.folder(), OsStr::new(TREE)).map_err(local)?;
        merge(tree.as_fd(), staging.sandbox(), Path::new(""))?;
    }
    if let Some(path) = &plan.file {
        let file = OsStr::new(FILE);
        give(staging.folder(), file, owner, 0).map_err(local)?;
        let mode = Mode::from_raw_mode(if plan.executable { 0o755 } else { 0o644 });
        // a regular file, as `give` has just seen, in a folder that no live process but us can write to
        rustix::fs::chmodat(staging.folder(), file, mode, AtFlags::empty()).map_err(|error| local(error.into()))?;
        let (parent, base) = parent(staging.sandbox(), path, owner)?;
        if kind(parent.as_fd(), &base).map_err(local)?.is_some_and(|stat| is_folder(&stat)) {
            return Err(occupied(path, "is a folder in the sandbox"));
        }
        rustix::fs::renameat(staging.folder(), file, &parent, &base).map_err(|error| local(error.into()))?;
    }
    Ok(())
}

fn open_folder(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(parent, name, FOLDER, Mode::empty())?)
}

/// Changes the owner of `name` and all below. Refuses what a fetch never makes.
fn give(parent: BorrowedFd<'_>, name: &OsStr, owner: (Uid, Gid), depth: usize) -> io::Result<()> {
    let stat = kind(parent, name)?.ok_or(io::ErrorKind::NotFound)?;
    let odd = |what: &str| {
        Err(io::Error::other(format!("the fetching process left {what} ({}); nothing of it is used", name.display())))
    };
    match FileType::from_raw_mode(stat.st_mode) {
        // a second name could be that of any file which that user can link
        FileType::RegularFile if stat.st_nlink != 1 => return odd("a file with several names"),
        FileType::RegularFile | FileType::Symlink => {}
        FileType::Directory => {
            if depth > DEPTH_LIMIT {
                return odd("folders nested too deeply");
            }
            let folder = open_folder(parent, name)?;
            for child in names(folder.as_fd())? {
                give(folder.as_fd(), &child, owner, depth + 1)?;
            }
        }
        _ => return odd("a special file"),
    }
    if stat.st_mode & 0o6000 != 0 {
        return odd("a set-user-id file");
    }
    Ok(rustix::fs::chownat(parent, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Moves what is in `from` into `to`, folder by folder where both have one.
fn merge(from: BorrowedFd<'_>, to: BorrowedFd<'_>, at: &Path) -> Result<(), Failure> {
    let local = |error: io::Error| Failure::local("moving the unpacked archive into the sandbox", error);
    for name in names(from).map_err(local)? {
        let path = at.join(&name);
        let Some(source) = kind(from, &name).map_err(local)? else {
            continue;
        };
        let target = kind(to, &name).map_err(local)?;
        match (is_folder(&source), target.as_ref().map(is_folder)) {
            (true, Some(true)) => {
                let (from, to) = (open_folder(from, &name).map_err(local)?, open_folder(to, &name).map_err(local)?);
                merge(from.as_fd(), to.as_fd(), &path)?;
            }
            (true, Some(false)) => return Err(occupied(&path, "is no folder in the sandbox, but one in the archive")),
            (false, Some(true)) => return Err(occupied(&path, "is a folder in the sandbox, but none in the archive")),
            (_, None) | (false, Some(false)) => {
                rustix::fs::renameat(from, &name, to, &name).map_err(|error| local(error.into()))?;
            }
        }
    }
    Ok(())
}

/// The folder that `path` lies in, made where missing, and its last name.
fn parent(sandbox: BorrowedFd<'_>, path: &Path, owner: (Uid, Gid)) -> Result<(OwnedFd, std::ffi::OsString), Failure> {
    let local = |error: io::Error| Failure::local("opening the artifact's folder in the sandbox", error);
    let base = path.file_name().unwrap_or_default().to_owned();
    let mut folder = sandbox.try_clone_to_owned().map_err(local)?;
    for name in path.parent().into_iter().flat_map(Path::components) {
        let name = name.as_os_str();
        let made = match rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(local(error.into())),
        };
        let next = match open_folder(folder.as_fd(), name) {
            Ok(next) => next,
            Err(_) if !made => return Err(occupied(Path::new(name), "is no folder in the sandbox (perhaps a link)")),
            Err(error) => return Err(local(error)),
        };
        if made {
            // the daemon's umask may be narrower
            rustix::fs::fchmod(&next, Mode::from_raw_mode(0o755)).map_err(|error| local(error.into()))?;
            rustix::fs::fchown(&next, Some(owner.0), Some(owner.1)).map_err(|error| local(error.into()))?;
        }
        folder = next;
    }
    Ok((folder, base))
}

fn occupied(path: &Path, reason: &str) -> Failure {
    let reason = format!("{:?} {reason}; choose another name", path.display().to_string());
    Failure::new(FailureKind::Invalid, Part::DestPath, reason)
}
