//! System calls that a container should not be able to make, each tried in a way that does no harm where it is allowed:
//! with arguments that the kernel refuses after it has checked the permission, or on things of the process's own.
//!
//! `ok` means that it was carried out. `EPERM` and `ENOSYS` are what filters and missing capabilities answer; any other
//! error means that the call got as far as its arguments.

#![allow(clippy::cast_lossless, reason = "the call macro takes numbers of every width and pointers")]

use std::ffi::{CStr, c_long};
use std::io;
use std::ptr::null;

use super::usage;
use crate::errno;

type Try = fn() -> c_long;

/// A raw system call; pointers are given as numbers.
macro_rules! call {
    ($number:expr $(, $argument:expr)*) => {
        // SAFETY: each pointer given below is null or to a static or local that outlives the call, and the calls either
        // fail or change only this process, which ends right after.
        unsafe { libc::syscall($number as c_long $(, $argument as c_long)*) }
    };
}

fn pointer(text: &'static CStr) -> c_long {
    text.as_ptr() as c_long
}

const NULL: c_long = 0;
/// The x32 ABI's mark in a system call number.
#[cfg(target_arch = "x86_64")]
const X32: c_long = 0x4000_0000;

const CALLS: &[(&str, Try)] = &[
    ("acct", || call!(libc::SYS_acct, NULL)),
    ("add_key", || call!(libc::SYS_add_key, pointer(c"user"), pointer(c"testbox"), pointer(c"x"), 1, -3)),
    ("bpf", || call!(libc::SYS_bpf, 5, null::<u8>(), 0)),
    ("chroot", || call!(libc::SYS_chroot, pointer(c"/"))),
    ("clock_settime", || call!(libc::SYS_clock_settime, 0, NULL)),
    ("clone3_newuser", clone3_newuser),
    ("delete_module", || call!(libc::SYS_delete_module, pointer(c"no-such-module"), 0)),
    ("fanotify_init", || call!(libc::SYS_fanotify_init, 0, 0)),
    ("finit_module", || call!(libc::SYS_finit_module, -1, pointer(c""), 0)),
    ("fsmount", || call!(libc::SYS_fsmount, -1, 0, 0)),
    ("fsopen", || call!(libc::SYS_fsopen, pointer(c"tmpfs"), 0)),
    ("init_module", || call!(libc::SYS_init_module, NULL, 0, pointer(c""))),
    ("io_uring_setup", || call!(libc::SYS_io_uring_setup, 0, NULL)),
    #[cfg(target_arch = "x86_64")]
    ("ioperm", || call!(libc::SYS_ioperm, 0x80, 1, 1)),
    #[cfg(target_arch = "x86_64")]
    ("iopl", || call!(libc::SYS_iopl, 3)),
    #[cfg(target_arch = "x86_64")]
    ("i386_getpid", i386_getpid),
    ("kcmp", || call!(libc::SYS_kcmp, 1, 1, 0, 0, 0)),
    ("kexec_load", || call!(libc::SYS_kexec_load, 0, 0, NULL, 0)),
    ("keyctl", || call!(libc::SYS_keyctl, 0, -3, 0)),
    ("mknod", || call!(libc::SYS_mknodat, libc::AT_FDCWD, pointer(c"/tmp/testbox-mem"), libc::S_IFCHR | 0o600, 0x0101)),
    ("mknod_fifo", || {
        call!(libc::SYS_mknodat, libc::AT_FDCWD, pointer(c"/tmp/testbox-fifo"), libc::S_IFIFO | 0o600, 0)
    }),
    ("mount", || call!(libc::SYS_mount, pointer(c"none"), pointer(c"/tmp"), pointer(c"tmpfs"), 0, NULL)),
    ("mount_setattr", || call!(libc::SYS_mount_setattr, libc::AT_FDCWD, pointer(c"/"), 0, NULL, 0)),
    ("move_mount", || call!(libc::SYS_move_mount, -1, pointer(c""), -1, pointer(c""), 0)),
    ("name_to_handle_at", || call!(libc::SYS_name_to_handle_at, libc::AT_FDCWD, pointer(c"/"), NULL, NULL, 0)),
    ("open_by_handle_at", open_by_handle_at),
    ("open_tree", || call!(libc::SYS_open_tree, libc::AT_FDCWD, pointer(c"/"), 1)),
    ("perf_event_open", || call!(libc::SYS_perf_event_open, NULL, 0, -1, -1, 0)),
    ("personality", || call!(libc::SYS_personality, libc::ADDR_NO_RANDOMIZE)),
    ("pivot_root", || call!(libc::SYS_pivot_root, pointer(c"/"), pointer(c"/"))),
    ("process_vm_readv", || call!(libc::SYS_process_vm_readv, 1, NULL, 0, NULL, 0, 0)),
    ("ptrace", || call!(libc::SYS_ptrace, libc::PTRACE_SEIZE, 1, 0, 0)),
    ("ptrace_traceme", || call!(libc::SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0)),
    ("quotactl", || call!(libc::SYS_quotactl, -1, NULL, 0, NULL)),
    // wrong magic numbers: nothing is restarted even where the capability is there
    ("reboot", || call!(libc::SYS_reboot, 0, 0, 0, NULL)),
    ("request_key", || call!(libc::SYS_request_key, pointer(c"user"), pointer(c"testbox"), NULL, 0)),
    ("setns", setns),
    ("sethostname", || call!(libc::SYS_sethostname, pointer(c"testbox"), 7)),
    ("settimeofday", || call!(libc::SYS_settimeofday, NULL, NULL)),
    ("setuid_0", || call!(libc::SYS_setuid, 0)),
    ("socket_packet", || call!(libc::SYS_socket, libc::AF_PACKET, libc::SOCK_RAW, 0)),
    ("socket_raw", || call!(libc::SYS_socket, libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)),
    ("socket_vsock", || call!(libc::SYS_socket, libc::AF_VSOCK, libc::SOCK_STREAM, 0)),
    ("swapon", || call!(libc::SYS_swapon, pointer(c""), 0)),
    ("syslog", || call!(libc::SYS_syslog, 10, NULL, 0)),
    ("umount", || call!(libc::SYS_umount2, pointer(c"/proc"), libc::MNT_DETACH)),
    ("unshare", || call!(libc::SYS_unshare, libc::CLONE_NEWNS)),
    ("unshare_net", || call!(libc::SYS_unshare, libc::CLONE_NEWNET)),
    ("unshare_user", || call!(libc::SYS_unshare, libc::CLONE_NEWUSER)),
    ("userfaultfd", || call!(libc::SYS_userfaultfd, 0)),
    ("vhangup", || call!(libc::SYS_vhangup)),
    #[cfg(target_arch = "x86_64")]
    ("x32_getpid", || call!(X32 | libc::SYS_getpid)),
];

/// `syscall NAME…`: one result for each name, one to a line; more than one name prints the name too.
pub fn syscall(arguments: &[String]) -> u8 {
    let known = || CALLS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ");
    if arguments.is_empty() {
        return usage(&format!("syscall NAME…; names: {}", known()));
    }
    let mut code = 0;
    for name in arguments {
        let Some((_, attempt)) = CALLS.iter().find(|(other, _)| other == name) else {
            return usage(&format!("syscall NAME… ({name} is not one); names: {}", known()));
        };
        if arguments.len() > 1 {
            print!("{name} ");
        }
        let returned = attempt();
        code |= errno::report(if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) });
    }
    code
}

/// Joins the host name namespace that it is in.
fn setns() -> c_long {
    match std::fs::File::open("/proc/self/ns/uts") {
        Ok(file) => call!(libc::SYS_setns, std::os::fd::AsRawFd::as_raw_fd(&file), libc::CLONE_NEWUTS),
        Err(_) => -1,
    }
}

/// Opens an invented handle: with the capability the answer is ESTALE or EINVAL.
fn open_by_handle_at() -> c_long {
    match std::fs::File::open("/") {
        Ok(root) => {
            // struct file_handle: length, type, bytes
            let handle: [u32; 4] = [8, 1, 2, 0];
            call!(libc::SYS_open_by_handle_at, std::os::fd::AsRawFd::as_raw_fd(&root), handle.as_ptr(), libc::O_RDONLY)
        }
        Err(_) => -1,
    }
}

/// A child in a user namespace of its own, which ends at once.
fn clone3_newuser() -> c_long {
    // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls
    let arguments: [u64; 8] = [libc::CLONE_NEWUSER as u64, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0];
    let child = call!(libc::SYS_clone3, arguments.as_ptr(), size_of_val(&arguments));
    if child == 0 {
        // SAFETY: _exit ends the child without running anything else.
        unsafe { libc::_exit(0) }
    }
    child
}

/// The 32-bit entry into the kernel: its numbers are others, so a filter by 64-bit numbers would not see it.
#[cfg(target_arch = "x86_64")]
fn i386_getpid() -> c_long {
    const GETPID: u64 = 20;
    let mut result = GETPID;
    // SAFETY: getpid takes no argument; the 32-bit entry clobbers r8 to r11 on some kernels.
    unsafe {
        std::arch::asm!("int 0x80", inout("rax") result, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    let result = c_long::from(result as i32);
    if result < 0 {
        // SAFETY: the location of errno is valid for this thread.
        unsafe { *libc::__errno_location() = -result as i32 };
        return -1;
    }
    result
}
