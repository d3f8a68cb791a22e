//! The zygote: prepares one empty root, then forks pod-inits on agentd's word. It ends when agentd closes the socket;
//! the pod-inits live on.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use agentd_launcher::message::{Reply, Request};
use agentd_launcher::socket::{self, MAX_MESSAGE};

use crate::sys::{self, Cloned, Failure, Step, failed, refused};

pub fn run() -> Step<()> {
    sys::close_all_but(3, &[]);
    // SAFETY: descriptor 0 is the socket that agentd left there; the copy is new.
    let socket = unsafe {
        let fd = libc::fcntl(0, libc::F_DUPFD_CLOEXEC, 3);
        sys::check(libc::c_long::from(fd), "dup the socket")?;
        OwnedFd::from_raw_fd(fd)
    };
    harden()?;
    empty_root()?;
    occupy_standard_streams()?;
    // SAFETY: signal(2) with SIG_IGN; ended children are reaped by the kernel.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        let (length, fds) = match socket::receive(socket.as_fd(), &mut buffer, true) {
            Ok((0, _)) | Err(_) => return Ok(()),
            Ok(message) => message,
        };
        let Ok((sequence, Request::Fork { own_network })) = Request::decode(&buffer[..length]) else {
            return Err(refused("the zygote got a message that it does not know"));
        };
        let reply = fork(own_network, fds);
        let (reply, pidfd) = match reply {
            Ok((pid, pidfd)) => (Reply::Process { pid }, Some(pidfd)),
            Err(Failure { stage, errno }) => (Reply::Failed { stage, errno }, None),
        };
        let fds: Vec<BorrowedFd<'_>> = pidfd.iter().map(AsFd::as_fd).collect();
        if socket::send(socket.as_fd(), &reply.encode(sequence), &fds, true).is_err() {
            return Ok(());
        }
    }
}

/// Nothing may look into the launcher's memory or stop it with a stray signal.
fn harden() -> Step<()> {
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0, "become non-dumpable")?;
    sys::prctl(libc::PR_SET_NAME, c"pod-init".as_ptr() as u64, 0, "set the name")?;
    // SAFETY: a zeroed sigset is filled before use; sigprocmask and setsid touch only this process.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE] {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        libc::setsid();
    }
    Ok(())
}

/// A private mount namespace whose root is a small tmpfs: `/root` to build containers on, `/mask` an empty read-only
/// directory, `/shm`, `/mqueue` and `/volumes` for each pod-init's own mounts.
fn empty_root() -> Step<()> {
    sys::unshare(libc::CLONE_NEWNS, "unshare the mount namespace")?;
    sys::set_propagation(libc::MS_PRIVATE, true)?;
    let root = sys::new_mount(
        c"tmpfs",
        &[(c"size", c"64k"), (c"nr_inodes", c"32"), (c"mode", c"0700")],
        &[],
        (sys::ATTR_NOSUID | sys::ATTR_NOEXEC) as u32,
    )?;
    sys::move_mount(root.as_fd(), libc::AT_FDCWD, c"/", "attach the empty root")?;
    for name in [c"root", c"mask", c"shm", c"mqueue", c"volumes"] {
        sys::mkdirat(root.as_fd(), name, 0o700).map_err(|_| failed("make the empty root"))?;
    }
    sys::pivot_to(root.as_fd())?;
    let mask = sys::new_mount(
        c"tmpfs",
        &[(c"size", c"4k"), (c"nr_inodes", c"2"), (c"mode", c"0555")],
        &[],
        (sys::ATTR_RDONLY | sys::ATTR_NOSUID | sys::ATTR_NODEV | sys::ATTR_NOEXEC) as u32,
    )?;
    sys::move_mount(mask.as_fd(), libc::AT_FDCWD, c"/mask", "attach the mask")
}

/// Puts a descriptor that can neither be read nor written at 0, 1 and 2, so that no socket ever gets these numbers.
fn occupy_standard_streams() -> Step<()> {
    // SAFETY: a NUL-terminated path and plain integers; 0–2 are this process's to replace.
    unsafe {
        let root = libc::open(c"/".as_ptr(), libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC);
        sys::check(libc::c_long::from(root), "open the empty root")?;
        for number in 0..3 {
            sys::check(libc::c_long::from(libc::dup2(root, number)), "occupy a standard stream")?;
        }
        libc::close(root);
    }
    Ok(())
}

fn fork(own_network: bool, fds: Vec<OwnedFd>) -> Step<(u32, OwnedFd)> {
    let Ok([listener, exits, cgroup]) = <[OwnedFd; 3]>::try_from(fds) else {
        return Err(refused("fork: expected three descriptors"));
    };
    match sys::clone3(libc::CLONE_NEWNS, Some(cgroup.as_fd()), "clone3 of pod-init into its cgroup")? {
        Cloned::Parent { pid, pidfd } => Ok((pid, pidfd)),
        Cloned::Child => {
            drop(cgroup);
            let mut keep = [listener.as_raw_fd(), exits.as_raw_fd()];
            keep.sort_unstable();
            sys::close_all_but(3, &keep);
            crate::init::run(listener, exits, own_network)
        }
    }
}
