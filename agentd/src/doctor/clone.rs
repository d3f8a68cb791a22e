//! A process for probing: cloned with the flags in question, it waits to be killed and does nothing else.

use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// Clone into the cgroup given; the libc crate's constant does not fit its own type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of the kernel.
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

/// A waiting process; ended and reaped when dropped.
pub(super) struct Probe {
    pid: i32,
    pidfd: OwnedFd,
}

impl Probe {
    /// Clones with `flags` (CLONE_NEW…), into a cgroup of the cgroup2 tree if one is given.
    pub fn start(flags: i32, cgroup: Option<BorrowedFd<'_>>) -> Result<Self, Errno> {
        let mut pidfd: i32 = -1;
        let mut args = CloneArgs {
            flags: u64::from(flags as u32) | libc::CLONE_PIDFD as u64,
            pidfd: &raw mut pidfd as u64,
            exit_signal: libc::SIGCHLD as u64,
            ..CloneArgs::default()
        };
        if let Some(cgroup) = cgroup {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = cgroup.as_raw_fd() as u64;
        }
        // SAFETY: without CLONE_VM the child has its own copy of memory; the argument is a clone_args of the size given, and
        // its pointer is to a live integer. The child does nothing but the system calls below: it takes no lock that another
        // thread held, allocates nothing and never returns.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
        if pid == 0 {
            // SAFETY: plain system calls with integers. The parent's death ends the child too, so that it never stays; if
            // the parent has died already, it ends at once.
            unsafe {
                libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
                for _ in 0..100 {
                    let second = libc::timespec { tv_sec: 0, tv_nsec: 100_000_000 };
                    libc::syscall(libc::SYS_nanosleep, &raw const second, 0);
                }
                libc::syscall(libc::SYS_exit_group, 0);
            }
        }
        if pid < 0 {
            return Err(last_errno());
        }
        // SAFETY: the kernel has just made this descriptor for us, and nothing else has it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Self { pid: pid as i32, pidfd })
    }

    /// Its user namespace with one range of ids mapped.
    pub fn user_namespace(&self) -> std::io::Result<OwnedFd> {
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{}/{map}", self.pid), "0 100000 65536")?;
        }
        Ok(fs::File::open(format!("/proc/{}/ns/user", self.pid))?.into())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
        let options = rustix::process::WaitIdOptions::EXITED;
        while let Err(Errno::INTR) =
            rustix::process::waitid(rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&self.pidfd)), options)
        {
        }
    }
}

/// The error of the system call that this thread made last.
pub(super) fn last_errno() -> Errno {
    let code = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    Errno::from_raw_os_error(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_gone_when_dropped() {
        let probe = Probe::start(0, None).unwrap();
        let folder = format!("/proc/{}", probe.pid);
        assert!(fs::metadata(&folder).is_ok());
        drop(probe);
        assert!(fs::metadata(&folder).is_err());
    }

    #[test]
    fn impossible_flags_are_an_error() {
        assert_eq!(Probe::start(libc::CLONE_SIGHAND, None).err(), Some(Errno::INVAL));
    }
}
