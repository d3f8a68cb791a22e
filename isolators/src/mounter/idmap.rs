//! The user namespace that tells the kernel how an idmapped mount maps ids.
//!
//! A user namespace needs a process to be born with. It is made once for each mapping of the node, so its cost, a fork
//! of agentd, does not weigh on the start of pods; the process does nothing but wait and is ended at once.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};

use super::{Mounter, NAME};
use crate::IsolatorError;

/// How many ids a pod with a user namespace gets.
pub const RANGE: u32 = 65_536;

/// A range of host ids that stand for the ids 0 to 65535 of containers.
#[derive(Debug)]
pub struct IdRange {
    base: u32,
    namespace: Mutex<Option<OwnedFd>>,
}

impl IdRange {
    /// The range of [`RANGE`] host ids from `base` on. It must not overlap the ids of the host's own users.
    pub fn new(base: u32) -> Result<Self, IsolatorError> {
        if base < RANGE || base.checked_add(RANGE).is_none() {
            return Err(IsolatorError::new(
                NAME,
                format!(
                    "first host id {base} of user namespaces: expected {RANGE} to {}; choose a range that no user has",
                    u32::MAX - RANGE
                ),
            ));
        }
        Ok(Self { base, namespace: Mutex::new(None) })
    }

    /// The host's id of a container's id.
    pub fn host_id(&self, id: u32) -> Option<u32> {
        (id < RANGE).then(|| self.base + id)
    }

    /// A descriptor of a user namespace with this mapping; made at the first call, on one of the mounter's threads.
    pub fn namespace(&self, mounter: &Mounter) -> Result<OwnedFd, IsolatorError> {
        let copy = |fd: BorrowedFd<'_>| {
            fd.try_clone_to_owned().map_err(|e| IsolatorError::io(NAME, "cannot copy a user namespace's descriptor", e))
        };
        let mut kept = self.namespace.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(namespace) = kept.as_ref() {
            return copy(namespace.as_fd());
        }
        let base = self.base;
        let made = mounter.run(move |_| {
            make(base).map_err(|e| {
                let cure = "is user.max_user_namespaces above 0 (sysctl)?";
                IsolatorError::io(NAME, format_args!("cannot make a user namespace for ids from {base} ({cure})"), e)
            })
        })?;
        let result = copy(made.as_fd());
        *kept = Some(made);
        result
    }
}

fn make(base: u32) -> io::Result<OwnedFd> {
    let (wait, go) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: all-zero is a valid clone_args: a plain fork.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    // without an exit signal: nobody who watches SIGCHLD hears of it
    args.flags = libc::CLONE_NEWUSER as u64;
    let (wait_fd, go_fd) = (wait.as_raw_fd(), go.as_raw_fd());
    // SAFETY: `args` outlives the call and its size is passed along; the child, a copy of this thread alone, makes only
    // raw system calls and never returns.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    if pid == 0 {
        let mut byte = 0_u8;
        // SAFETY: async-signal-safe calls on descriptors of the child's own table; the buffer is one byte on its stack.
        // The write end is closed first, so that the read ends when agentd closes its own or dies.
        unsafe {
            libc::close(go_fd);
            libc::read(wait_fd, (&raw mut byte).cast(), 1);
            libc::_exit(0);
        }
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let map = format!("0 {base} {RANGE}\n");
    let result = ["uid_map", "gid_map"]
        .iter()
        .try_for_each(|file| std::fs::write(format!("/proc/{pid}/{file}"), &map))
        .and_then(|()| {
            let path = format!("/proc/{pid}/ns/user");
            Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
        });
    drop(go);
    loop {
        // SAFETY: waits for the child made above and nobody else's; no status is stored. __WALL, as it has no signal.
        let waited = unsafe { libc::waitpid(pid as libc::pid_t, std::ptr::null_mut(), libc::__WALL) };
        if waited >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return result;
        }
    }
}
