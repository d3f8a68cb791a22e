//! Landlock: what the fetching child may reach in the file system, whatever its user may.
//!
//! Three system calls without a wrapper in libc. A kernel without Landlock (or with less of it) is no error: the child
//! then relies on its user and its seccomp filter, and says so.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

const CREATE_VERSION: libc::c_uint = 1;
const RULE_PATH_BENEATH: libc::c_int = 1;

const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const REMOVE_DIR: u64 = 1 << 4;
const REMOVE_FILE: u64 = 1 << 5;
const MAKE_DIR: u64 = 1 << 7;
const MAKE_REG: u64 = 1 << 8;
const MAKE_SYM: u64 = 1 << 12;
const TRUNCATE: u64 = 1 << 14;
/// All rights of the first version.
const FIRST_RIGHTS: u64 = (1 << 13) - 1;
/// Version 2: renames and links between folders.
const REFER: u64 = 1 << 13;
/// Version 5: ioctl on devices.
const IOCTL_DEV: u64 = 1 << 15;
/// Version 4: TCP servers.
const BIND_TCP: u64 = 1;
/// Version 6: abstract sockets and signals of processes outside.
const SCOPES: u64 = 3;

#[repr(C)]
struct RulesetAttr {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

#[repr(C, packed)]
struct PathBeneathAttr {
    allowed_access: u64,
    parent_fd: i32,
}

/// Restricts this thread, and all that it starts, to `staging` for writing and to `readable` for reading; it may no
/// longer accept TCP connections. The thread must have set no_new_privs. `Ok(Some(…))` says what this kernel lacks.
pub(crate) fn restrict(staging: BorrowedFd<'_>, readable: &[&str]) -> io::Result<Option<String>> {
    // SAFETY: with the version flag the kernel takes no pointer and makes no descriptor.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<RulesetAttr>(), 0usize, CREATE_VERSION)
    };
    if version < 1 {
        let error = io::Error::last_os_error();
        return Ok(Some(format!("this kernel has no Landlock ({error}); enable it by lsm=…,landlock")));
    }
    let mut fs = FIRST_RIGHTS;
    for (since, right) in [(2, REFER), (3, TRUNCATE), (5, IOCTL_DEV)] {
        if version >= since {
            fs |= right;
        }
    }
    let attr = RulesetAttr {
        handled_access_fs: fs,
        handled_access_net: if version >= 4 { BIND_TCP } else { 0 },
        scoped: if version >= 6 { SCOPES } else { 0 },
    };
    let size: usize = match version {
        1..=3 => 8,
        4..=5 => 16,
        _ => 24,
    };
    let flags: libc::c_uint = 0;
    // SAFETY: `attr` lives through the call and is at least `size` bytes long.
    let fd = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attr, size, flags) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just made this descriptor for us.
    let ruleset = unsafe { OwnedFd::from_raw_fd(fd) };
    let writable =
        WRITE_FILE | READ_FILE | READ_DIR | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM | TRUNCATE;
    allow(&ruleset, staging, writable & fs)?;
    for path in readable {
        // follows links such as /etc/resolv.conf to what they mean now; what is absent needs no rule
        let Ok(found) = rustix::fs::open(*path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) else {
            continue;
        };
        let is_folder = rustix::fs::fstat(&found)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
        allow(&ruleset, found.as_fd(), if is_folder { READ_FILE | READ_DIR } else { READ_FILE })?;
    }
    // SAFETY: takes a descriptor and flags, no pointer.
    if unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), flags) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((version < 4).then(|| format!("this kernel's Landlock (version {version}) does not cover the network")))
}

fn allow(ruleset: &OwnedFd, target: BorrowedFd<'_>, rights: u64) -> io::Result<()> {
    let attr = PathBeneathAttr { allowed_access: rights, parent_fd: target.as_raw_fd() };
    let flags: libc::c_uint = 0;
    // SAFETY: `attr` lives through the call and has the layout that the kernel expects for this rule type.
    let rc = unsafe {
        libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), RULE_PATH_BENEATH, &raw const attr, flags)
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
