//! Volumes in memory: one tmpfs for the whole pod, held by pod-init, from which each container gets a clone.

use std::io::{self, Write as _};
use std::os::fd::OwnedFd;

use rustix::fs::{Gid, Mode, OFlags, Uid};

use crate::mounter::{Attributes, MountThread, Tmpfs, set_attributes};

/// A volume whose files are secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretVolume {
    /// Name of the pod's volume.
    pub name: String,
    /// User who may read the files: an id inside the containers.
    pub uid: u32,
    /// Group of the files: an id inside the containers.
    pub gid: u32,
    /// Names and contents.
    pub files: Vec<(String, Vec<u8>)>,
}

impl std::fmt::Debug for SecretVolume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.files.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("SecretVolume").field("name", &self.name).field("files", &names).finish_non_exhaustive()
    }
}

/// A tmpfs of `mib` MiB that everybody in the pod may write to.
pub(super) fn scratch(thread: &MountThread, mib: u64, owner: u32) -> io::Result<OwnedFd> {
    let size = mib.checked_mul(1 << 20).ok_or(io::ErrorKind::InvalidInput)?;
    let tmpfs = Tmpfs { uid: owner, gid: owner, ..Tmpfs::new(size, 0o777) };
    thread.tmpfs(&tmpfs, Attributes { nosuid: true, nodev: true, ..Attributes::default() })
}

/// A read-only tmpfs with the files, 0400; `uid` and `gid` are the host's ids.
pub(super) fn secrets(thread: &MountThread, volume: &SecretVolume, uid: u32, gid: u32) -> io::Result<OwnedFd> {
    let pages: u64 = volume.files.iter().map(|(_, content)| (content.len() as u64).div_ceil(4096) + 1).sum();
    let size = (pages + 4) * 4096;
    let inodes = volume.files.len() as u64 + 4;
    let tmpfs = Tmpfs { size, inodes, mode: 0o500, uid, gid, noswap: true };
    let attributes = Attributes { nosuid: true, nodev: true, noexec: true, ..Attributes::default() };
    let mount = thread.tmpfs(&tmpfs, attributes)?;
    for (name, content) in &volume.files {
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} cannot be a file's name")));
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&mount, name.as_str(), flags, Mode::from_raw_mode(0o400))?;
        let mut file = std::fs::File::from(file);
        file.write_all(content)?;
        rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    set_attributes(&mount, false, Attributes { read_only: true, ..attributes })?;
    Ok(mount)
}
