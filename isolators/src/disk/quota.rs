//! Project quotas of ext4 and xfs: a number on a folder that all below it inherits, and a limit on that number.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// `PRJQUOTA` of `linux/quota.h`.
const PROJECT: libc::c_int = 2;
/// `Q_XGETQSTAT` of `linux/dqblk_xfs.h`.
const Q_XGETQSTAT: libc::c_int = (b'X' as libc::c_int) << 8 | 5;
/// `FS_QUOTA_PDQ_ENFD`: limits of projects are enforced.
const PROJECT_ENFORCED: u16 = 1 << 5;
/// `QIF_LIMITS`: both limits are set.
const QIF_LIMITS: u32 = 1 | 4;
/// `FS_XFLAG_PROJINHERIT`.
const INHERIT: u32 = 0x200;
/// Project ids that agentd gives start here, above those that people write into `/etc/projid`.
const FIRST_ID: u32 = 1 << 24;

/// `struct fsxattr` of `linux/fs.h`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

mod call {
    #![allow(missing_docs, clippy::missing_safety_doc)]
    nix::ioctl_read!(fs_get_xattr, b'X', 31, super::FsXattr);
    nix::ioctl_write_ptr!(fs_set_xattr, b'X', 32, super::FsXattr);
}

fn quotactl(dir: impl AsFd, command: libc::c_int, id: u32, data: *mut libc::c_void) -> io::Result<()> {
    // SAFETY: every caller passes the structure that the command reads or fills, alive for the call.
    let status = unsafe {
        libc::syscall(libc::SYS_quotactl_fd, dir.as_fd().as_raw_fd(), libc::QCMD(command, PROJECT), id, data)
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the file system of `dir` enforces limits on projects.
pub fn enforced(dir: impl AsFd) -> bool {
    // struct fs_quota_stat: version (i8), flags (u16 at 2), then what we do not read; 80 bytes, room for more
    let mut state = [0_u64; 32];
    if quotactl(dir, Q_XGETQSTAT, 0, state.as_mut_ptr().cast()).is_err() {
        return false;
    }
    let bytes = state[0].to_ne_bytes();
    u16::from_ne_bytes([bytes[2], bytes[3]]) & PROJECT_ENFORCED != 0
}

/// Gives `dir` (open for reading) the project `id`, inherited by all that is made below it from now on.
pub fn assign(dir: &OwnedFd, id: u32) -> io::Result<()> {
    let mut attributes = FsXattr::default();
    // SAFETY: the structure is the one that the ioctl fills, alive for the call.
    unsafe { call::fs_get_xattr(dir.as_raw_fd(), &raw mut attributes) }?;
    if attributes.projid == id && attributes.xflags & INHERIT != 0 {
        return Ok(());
    }
    attributes.projid = id;
    attributes.xflags |= INHERIT;
    // SAFETY: the structure is the one that the ioctl reads, alive for the call.
    unsafe { call::fs_set_xattr(dir.as_raw_fd(), &raw const attributes) }?;
    Ok(())
}

/// Sets the limits of a project; zeros take them away.
pub fn limit(dir: impl AsFd, id: u32, bytes: u64, inodes: u64) -> io::Result<()> {
    // SAFETY: all-zero is a valid dqblk.
    let mut block: libc::dqblk = unsafe { std::mem::zeroed() };
    // in KiB, rounded up so that a limit never becomes 0, which would mean none
    block.dqb_bhardlimit = bytes.div_ceil(1024);
    block.dqb_bsoftlimit = block.dqb_bhardlimit;
    block.dqb_ihardlimit = inodes;
    block.dqb_isoftlimit = inodes;
    block.dqb_valid = QIF_LIMITS;
    quotactl(dir, libc::Q_SETQUOTA, id, (&raw mut block).cast())
}

/// What a project uses: bytes and inodes.
pub fn usage(dir: impl AsFd, id: u32) -> io::Result<(u64, u64)> {
    // SAFETY: all-zero is a valid dqblk.
    let mut block: libc::dqblk = unsafe { std::mem::zeroed() };
    quotactl(dir, libc::Q_GETQUOTA, id, (&raw mut block).cast())?;
    Ok((block.dqb_curspace, block.dqb_curinodes))
}

/// The project id of an instance: derived from its name, or the next that `taken` does not have.
pub fn project_id(instance: &str, taken: &[u32]) -> u32 {
    use sha2::{Digest as _, Sha256};
    let digest = Sha256::digest(instance.as_bytes());
    let mut id = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) >> 2 | FIRST_ID;
    while taken.contains(&id) {
        id += 1;
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn project_ids_are_stable_high_and_not_taken() {
        let id = project_id("0123456789ab", &[]);
        assert_eq!(id, project_id("0123456789ab", &[]));
        assert!(id >= FIRST_ID);
        assert_eq!(project_id("0123456789ab", &[id, id + 1]), id + 2);
    }

    #[test]
    fn the_ioctl_structure_has_the_kernel_s_size() {
        assert_eq!(size_of::<FsXattr>(), 28);
    }
}
