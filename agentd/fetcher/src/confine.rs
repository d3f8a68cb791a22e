//! The confinement of the fetching child. Each step is irreversible; any that fails ends the child before a byte of the
//! network is read.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::process::{DumpableBehavior, Gid, Resource, Rlimit, Uid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::landlock;
use crate::protocol::Limits;

/// What resolving a host name reads. The certificates are read before.
const READABLE: &[&str] = &[
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/nsswitch.conf",
    "/etc/services",
    "/etc/ld.so.cache",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/run/systemd/resolve",
    "/run/nscd",
];

/// Address space: enough for the widest zstd window and the thread that resolves names.
const ADDRESS_SPACE: u64 = 4 << 30;

/// Confines this process, which must have one thread only. Gives what this kernel lacks.
pub(crate) fn confine(staging: BorrowedFd<'_>, limits: Limits, user: (u32, u32)) -> io::Result<Vec<String>> {
    let step = |what: &'static str| move |error: io::Error| io::Error::other(format!("{what}: {error}"));
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("the process has several threads; artifact-fetch must run before any is started"));
    }
    set_limits(limits).map_err(step("setting resource limits"))?;
    // fails only for a process that already leads a session
    let _ = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    if rustix::process::geteuid().is_root() {
        become_user(user.0, user.1).map_err(step("becoming the unprivileged user"))?;
    }
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::thread::set_no_new_privs(true)?;
    let lacking = landlock::restrict(staging, READABLE).map_err(step("Landlock"))?;
    for program in filters().map_err(step("seccomp"))? {
        seccompiler::apply_filter(&program).map_err(|error| io::Error::other(format!("seccomp: {error}")))?;
    }
    Ok(lacking.into_iter().collect())
}

fn set_limits(limits: Limits) -> io::Result<()> {
    let file = limits.max_bytes.max(limits.max_extracted_bytes).saturating_add(1);
    for (resource, most) in [
        (Resource::Cpu, limits.cpu_seconds),
        (Resource::Fsize, file),
        (Resource::Nofile, 256),
        (Resource::As, ADDRESS_SPACE),
        (Resource::Core, 0),
    ] {
        // never above what the daemon itself has, which only a privileged process could set
        let most = rustix::process::getrlimit(resource).maximum.map_or(most, |now| now.min(most));
        rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    Ok(())
}

fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// Never needed by a program that fetches: starting programs, other processes, mounts, namespaces, the kernel's rarely
/// used parts, and making what is no plain file.
const DENIED: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    libc::SYS_fanotify_init,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_personality,
    libc::SYS_memfd_create,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_mknodat,
    libc::SYS_linkat,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
];

/// Two filters, because each has one answer: EPERM for what is denied, ENOSYS for clone3, whose flags a filter cannot
/// see; the C library then uses clone, of which only threads are let through.
fn filters() -> io::Result<Vec<BpfProgram>> {
    let condition = |argument, operator, value: u64| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value).map_err(io::Error::other)
    };
    let mut denied: BTreeMap<i64, Vec<SeccompRule>> = DENIED.iter().map(|call| (*call, Vec::new())).collect();
    let thread = libc::CLONE_THREAD as u64;
    let no_thread = SeccompRule::new(vec![condition(0, SeccompCmpOp::MaskedEq(thread), 0)?]);
    denied.insert(libc::SYS_clone, vec![no_thread.map_err(io::Error::other)?]);
    let mut other_family = Vec::new();
    // netlink: the C library asks for the host's addresses to sort those of a name
    for family in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK] {
        other_family.push(condition(0, SeccompCmpOp::Ne, family as u64)?);
    }
    denied.insert(libc::SYS_socket, vec![SeccompRule::new(other_family).map_err(io::Error::other)?]);
    let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let mut programs = Vec::new();
    for (rules, errno) in [(denied, libc::EPERM), (unknown, libc::ENOSYS)] {
        let arch = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno as u32), arch)
            .map_err(io::Error::other)?;
        programs.push(filter.try_into().map_err(io::Error::other)?);
    }
    Ok(programs)
}
