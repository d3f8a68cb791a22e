//! The system calls that pod-init needs, as thin safe functions. Errors carry the name of the step that failed.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A failed step: its name and the error number.
#[derive(Debug)]
pub struct Failure {
    pub stage: String,
    pub errno: i32,
}

pub type Step<T> = Result<T, Failure>;

/// The failure of the system call that was just made.
pub fn failed(stage: impl Into<String>) -> Failure {
    Failure { stage: stage.into(), errno: io::Error::last_os_error().raw_os_error().unwrap_or(0) }
}

/// A failure without an error number.
pub fn refused(stage: impl Into<String>) -> Failure {
    Failure { stage: stage.into(), errno: 0 }
}

pub fn check(result: libc::c_long, stage: &str) -> Step<libc::c_long> {
    if result < 0 { Err(failed(stage)) } else { Ok(result) }
}

fn owned(result: libc::c_long, stage: &str) -> Step<OwnedFd> {
    let fd = check(result, stage)? as RawFd;
    // SAFETY: the kernel just made this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A path as the kernel takes it.
pub fn c(bytes: &[u8]) -> Step<CString> {
    CString::new(bytes).map_err(|_| refused("a path holds a NUL byte"))
}

pub const EMPTY: &CStr = c"";

pub fn open_tree(dir: RawFd, path: &CStr, flags: u32) -> Step<OwnedFd> {
    // SAFETY: path is NUL-terminated and outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, dir, path.as_ptr(), flags) }, "open_tree")
}

pub fn move_mount(from: BorrowedFd<'_>, dir: RawFd, path: &CStr, stage: &str) -> Step<()> {
    const FROM_EMPTY: u32 = 0x4;
    const TO_EMPTY: u32 = 0x40;
    let flags = FROM_EMPTY | if path.is_empty() { TO_EMPTY } else { 0 };
    // SAFETY: both paths are NUL-terminated and outlive the call.
    let r = unsafe { libc::syscall(libc::SYS_move_mount, from.as_raw_fd(), EMPTY.as_ptr(), dir, path.as_ptr(), flags) };
    check(r, stage).map(drop)
}

/// A new detached mount of file system `kind` with string options and mount attributes.
pub fn new_mount(kind: &CStr, options: &[(&CStr, &CStr)], flags: &[&CStr], attributes: u32) -> Step<OwnedFd> {
    let stage = || format!("mount {}", kind.to_string_lossy());
    // SAFETY: kind is NUL-terminated and outlives the call.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), 1u32) }, &stage())?;
    let null = std::ptr::null::<libc::c_char>();
    for flag in flags {
        // SAFETY: strings are NUL-terminated and outlive the call; command 0 is FSCONFIG_SET_FLAG.
        let r = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), 0u32, flag.as_ptr(), null, 0) };
        check(r, &stage())?;
    }
    for (key, value) in options {
        // SAFETY: strings are NUL-terminated and outlive the call; command 1 is FSCONFIG_SET_STRING.
        let r =
            unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), 1u32, key.as_ptr(), value.as_ptr(), 0) };
        check(r, &stage())?;
    }
    // SAFETY: command 6 is FSCONFIG_CMD_CREATE and takes no strings.
    let r = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), 6u32, null, null, 0) };
    check(r, &stage())?;
    // SAFETY: plain integers.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1u32, attributes) }, &stage())
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

pub const ATTR_RDONLY: u64 = 0x1;
pub const ATTR_NOSUID: u64 = 0x2;
pub const ATTR_NODEV: u64 = 0x4;
pub const ATTR_NOEXEC: u64 = 0x8;

pub fn set_attributes(mount: BorrowedFd<'_>, set: u64, recursive: bool) -> Step<()> {
    let attr = MountAttr { set, clear: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { 0x8000 } else { 0 };
    // SAFETY: attr is a live MountAttr of the stated size.
    let r = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            EMPTY.as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    check(r, "mount_setattr").map(drop)
}

/// Sets how the mount at `/`, and with `recursive` all below it, passes on what is mounted there (`MS_PRIVATE` and the like).
pub fn set_propagation(propagation: u64, recursive: bool) -> Step<()> {
    const AT_RECURSIVE: i32 = 0x8000;
    let attr = MountAttr { set: 0, clear: 0, propagation, userns_fd: 0 };
    // SAFETY: attr is a live MountAttr of the stated size; the path is NUL-terminated.
    let r = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            c"/".as_ptr(),
            if recursive { AT_RECURSIVE } else { 0 },
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    check(r, "set the propagation of mounts").map(drop)
}

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
const RESOLVE_NO_SYMLINKS: u64 = 0x04;
pub const RESOLVE_BENEATH: u64 = 0x08;
pub const RESOLVE_IN_ROOT: u64 = 0x10;

fn openat2(dir: RawFd, path: &CStr, flags: i32, mode: u32, resolve: u64) -> io::Result<OwnedFd> {
    let how = OpenHow { flags: (flags | libc::O_CLOEXEC) as u64, mode: u64::from(mode), resolve };
    loop {
        // SAFETY: how is a live OpenHow of the stated size; path is NUL-terminated.
        let r = unsafe { libc::syscall(libc::SYS_openat2, dir, path.as_ptr(), &raw const how, size_of::<OpenHow>()) };
        if r >= 0 {
            // SAFETY: the kernel just made this descriptor.
            return Ok(unsafe { OwnedFd::from_raw_fd(r as RawFd) });
        }
        let error = io::Error::last_os_error();
        // EAGAIN: a rename raced with the walk; the kernel asks to try again
        if !matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) {
            return Err(error);
        }
    }
}

/// Opens `path` with `root` as its root: links cannot lead outside, magic links (`/proc/self/fd/…`) are not followed.
pub fn open_in(root: BorrowedFd<'_>, path: &[u8], flags: i32) -> Step<OwnedFd> {
    openat2(root.as_raw_fd(), &c(path)?, flags, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS).map_err(|e| Failure {
        stage: format!("open {}", String::from_utf8_lossy(path)),
        errno: e.raw_os_error().unwrap_or(0),
    })
}

/// Opens one name directly below `dir`, never through a link.
pub fn open_below(dir: BorrowedFd<'_>, name: &CStr, flags: i32, mode: u32) -> Step<OwnedFd> {
    openat2(dir.as_raw_fd(), name, flags, mode, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS).map_err(
        |e| Failure { stage: format!("open {}", name.to_string_lossy()), errno: e.raw_os_error().unwrap_or(0) },
    )
}

pub fn mkdirat(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> io::Result<()> {
    // SAFETY: name is NUL-terminated.
    if unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}

pub fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8], stage: &str) -> Step<()> {
    while !bytes.is_empty() {
        // SAFETY: bytes is a live slice.
        let n = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
        if n > 0 {
            bytes = &bytes[n as usize..];
        } else if n < 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
        } else {
            return Err(failed(stage));
        }
    }
    Ok(())
}

/// What `clone3` made.
pub enum Cloned {
    Child,
    Parent { pid: u32, pidfd: OwnedFd },
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks with namespaces `flags`, directly into `cgroup` when given.
pub fn clone3(flags: i32, cgroup: Option<BorrowedFd<'_>>, stage: &str) -> Step<Cloned> {
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: u64::from(flags as u32) | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child gets a copy of this single-threaded process, as fork(2) does; args is live and of
    // the stated size.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match pid {
        0 => Ok(Cloned::Child),
        pid if pid > 0 => {
            // SAFETY: the kernel wrote a new descriptor into pidfd.
            Ok(Cloned::Parent { pid: pid as u32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
        }
        _ => Err(failed(stage)),
    }
}

pub fn unshare(flags: i32, stage: &str) -> Step<()> {
    // SAFETY: plain integer.
    check(libc::c_long::from(unsafe { libc::unshare(flags) }), stage).map(drop)
}

pub fn setns(fd: BorrowedFd<'_>, flags: i32, stage: &str) -> Step<()> {
    // SAFETY: plain integers.
    check(libc::c_long::from(unsafe { libc::setns(fd.as_raw_fd(), flags) }), stage).map(drop)
}

pub fn prctl(option: i32, a: u64, b: u64, stage: &str) -> Step<()> {
    // SAFETY: the options used here take integers only, or a pointer that the caller keeps alive.
    check(libc::c_long::from(unsafe { libc::prctl(option, a, b, 0u64, 0u64) }), stage).map(drop)
}

/// Makes the new root the root of this mount namespace and lets go of the old one.
pub fn pivot_to(root: BorrowedFd<'_>) -> Step<()> {
    // SAFETY: plain integer and NUL-terminated strings throughout.
    unsafe {
        check(libc::c_long::from(libc::fchdir(root.as_raw_fd())), "enter the new root")?;
        check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()), "pivot_root")?;
        check(libc::c_long::from(libc::umount2(c".".as_ptr(), libc::MNT_DETACH)), "release the old root")?;
        check(libc::c_long::from(libc::chdir(c"/".as_ptr())), "enter /")?;
    }
    Ok(())
}

/// Ends this process at once, without running anything at exit.
pub fn exit(code: i32) -> ! {
    // SAFETY: _exit never returns and touches nothing.
    unsafe { libc::_exit(code) }
}

pub fn pipe() -> Step<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: fds has room for two descriptors.
    check(libc::c_long::from(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }), "pipe")?;
    // SAFETY: both were just made.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// Closes every descriptor from `first` on, except `keep` (in ascending order).
pub fn close_all_but(first: u32, keep: &[RawFd]) {
    let mut low = first;
    for &fd in keep {
        let fd = fd as u32;
        if fd > low {
            // SAFETY: closes descriptors whose owners this forked process will never use again.
            unsafe { libc::syscall(libc::SYS_close_range, low, fd - 1, 0) };
        }
        low = low.max(fd + 1);
    }
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_close_range, low, u32::MAX, 0) };
}
