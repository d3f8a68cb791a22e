//! The built-in profile: what a container may ask of the kernel unless its pod says otherwise.
//!
//! Everything that is not listed here fails with EPERM. The list has the extent that other container engines settled
//! on, so that images which run there run here: calls on the process's own files, memory, threads, sockets and clocks.
//! Left out are calls that reach past the container (kernel keys, modules, kexec, mounts, namespaces, swap, quota),
//! that widen the kernel's exposed surface far beyond their use in containers (bpf, perf events, io_uring,
//! userfaultfd), or that other calls have replaced (uselib, ustat, sysfs, nfsservctl, _sysctl).

use super::rules::{Action, Arch, Compare, Condition, Policy, Rule, Width};
use crate::capabilities::bit;

/// Calls that are always allowed, by subject, each group with the reason.
#[rustfmt::skip]
const ALWAYS: &[(&str, &[&str])] = &[
    ("bytes move through descriptors that the process already holds", &[
        "read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2", "lseek",
        "sendfile", "splice", "tee", "vmsplice", "copy_file_range", "close", "close_range", "dup", "dup2", "dup3",
        "fcntl", "flock", "fsync", "fdatasync", "sync", "syncfs", "sync_file_range", "readahead", "fadvise64", "ftruncate",
        "fallocate", "pipe", "pipe2", "cachestat",
    ]),
    ("files are guarded by their permissions and by the container's mounts", &[
        "open", "openat", "openat2", "creat", "access", "faccessat", "faccessat2", "stat", "lstat", "fstat", "newfstatat",
        "statx", "statfs", "fstatfs", "getdents", "getdents64", "getcwd", "chdir", "fchdir", "mkdir", "mkdirat", "rmdir",
        "link", "linkat", "symlink", "symlinkat", "unlink", "unlinkat", "rename", "renameat", "renameat2", "readlink",
        "readlinkat", "truncate", "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat",
        "umask", "utime", "utimes", "futimesat", "utimensat", "file_getattr", "file_setattr", "name_to_handle_at",
        "statmount", "listmount",
    ]),
    ("nodes need CAP_MKNOD and the device guard's leave; FIFOs and sockets are ordinary files", &["mknod", "mknodat"]),
    ("extended attributes follow the file's permissions", &[
        "getxattr", "lgetxattr", "fgetxattr", "getxattrat", "setxattr", "lsetxattr", "fsetxattr", "setxattrat",
        "listxattr", "llistxattr", "flistxattr", "listxattrat", "removexattr", "lremovexattr", "fremovexattr",
        "removexattrat",
    ]),
    ("a process manages its own memory", &[
        "brk", "mmap", "munmap", "mremap", "mprotect", "msync", "madvise", "mincore", "mlock", "mlock2", "mlockall",
        "munlock", "munlockall", "remap_file_pages", "membarrier", "memfd_create", "memfd_secret", "mseal", "pkey_alloc",
        "pkey_free", "pkey_mprotect", "map_shadow_stack",
    ]),
    ("processes and threads of the container's own pid namespace; clone has rules of its own", &[
        "fork", "vfork", "execve", "execveat", "exit", "exit_group", "wait4", "waitid", "kill", "tkill", "tgkill",
        "getpid", "getppid", "gettid", "getpgid", "getpgrp", "setpgid", "getsid", "setsid", "set_tid_address",
        "set_robust_list", "get_robust_list", "rseq", "pidfd_open", "pidfd_send_signal", "process_mrelease", "prctl",
        "restart_syscall", "pause", "times", "getrusage", "set_thread_area", "get_thread_area",
    ]),
    ("tracing is bounded by the pid namespace, and the kernel checks the filter again after a tracer's changes (4.8)", &[
        "ptrace", "process_vm_readv", "process_vm_writev",
    ]),
    ("identity and capabilities only go down without capabilities, and no_new_privs is set", &[
        "getuid", "geteuid", "getgid", "getegid", "getresuid", "getresgid", "getgroups", "setuid", "setgid", "setreuid",
        "setregid", "setresuid", "setresgid", "setgroups", "setfsuid", "setfsgid", "capget", "capset",
    ]),
    ("a process may narrow itself further", &[
        "seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self",
    ]),
    ("signals within the container", &[
        "rt_sigaction", "rt_sigprocmask", "rt_sigpending", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "rt_sigreturn",
        "rt_sigsuspend", "rt_sigtimedwait", "sigaltstack", "signalfd", "signalfd4", "uretprobe",
    ]),
    ("waiting on and waking each other", &[
        "poll", "ppoll", "select", "pselect6", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old",
        "epoll_wait", "epoll_wait_old", "epoll_pwait", "epoll_pwait2", "eventfd", "eventfd2", "futex", "futex_waitv",
        "futex_wait", "futex_wake", "futex_requeue",
    ]),
    ("file notification; making a fanotify group needs CAP_SYS_ADMIN", &[
        "inotify_init", "inotify_init1", "inotify_add_watch", "inotify_rm_watch", "fanotify_mark",
    ]),
    ("reading clocks and own timers; setting a clock needs CAP_SYS_TIME, which the kernel checks for adjtimex", &[
        "time", "gettimeofday", "clock_gettime", "clock_getres", "clock_nanosleep", "clock_adjtime", "adjtimex",
        "nanosleep", "alarm", "getitimer", "setitimer", "timer_create", "timer_settime", "timer_gettime",
        "timer_getoverrun", "timer_delete", "timerfd_create", "timerfd_settime", "timerfd_gettime",
    ]),
    ("sockets of the pod's network namespace; socket has rules of its own", &[
        "socketpair", "bind", "connect", "listen", "accept", "accept4", "shutdown", "getsockname", "getpeername",
        "getsockopt", "setsockopt", "sendto", "sendmsg", "sendmmsg", "recvfrom", "recvmsg", "recvmmsg",
    ]),
    ("the pod's ipc namespace", &[
        "shmget", "shmat", "shmdt", "shmctl", "semget", "semop", "semtimedop", "semctl", "msgget", "msgsnd", "msgrcv",
        "msgctl", "mq_open", "mq_unlink", "mq_timedsend", "mq_timedreceive", "mq_notify", "mq_getsetattr",
    ]),
    ("scheduling of its own threads, within the cgroup's share", &[
        "sched_yield", "sched_getaffinity", "sched_setaffinity", "sched_getattr", "sched_setattr", "sched_getparam",
        "sched_setparam", "sched_getscheduler", "sched_setscheduler", "sched_get_priority_max",
        "sched_get_priority_min", "sched_rr_get_interval", "getpriority", "setpriority", "ioprio_get", "ioprio_set",
        "getcpu",
    ]),
    ("limits can be lowered, and raised only up to the hard limit", &["getrlimit", "setrlimit", "prlimit64"]),
    ("what the system is", &["uname", "sysinfo", "getrandom"]),
    ("the older asynchronous I/O, which databases use", &[
        "io_setup", "io_destroy", "io_submit", "io_cancel", "io_getevents", "io_pgetevents",
    ]),
    ("registers and segments of the thread itself (x86)", &["arch_prctl", "modify_ldt"]),
];

/// Calls that come with a capability: the kernel checks the capability again, in the namespaces that it is about.
#[rustfmt::skip]
const WITH_CAPABILITY: &[(&str, &[&str])] = &[
    ("DAC_READ_SEARCH", &["open_by_handle_at"]),
    ("SYS_ADMIN", &[
        "bpf", "clone", "clone3", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick", "lookup_dcookie",
        "lsm_get_self_attr", "lsm_list_modules", "lsm_set_self_attr", "mount", "mount_setattr", "move_mount", "open_tree",
        "open_tree_attr", "perf_event_open", "quotactl", "quotactl_fd", "setdomainname", "sethostname", "setns", "syslog",
        "umount2", "unshare",
    ]),
    ("SYS_BOOT", &["reboot"]),
    ("SYS_CHROOT", &["chroot"]),
    ("SYS_MODULE", &["delete_module", "init_module", "finit_module"]),
    ("SYS_PACCT", &["acct"]),
    ("SYS_PTRACE", &["kcmp", "pidfd_getfd", "process_madvise"]),
    ("SYS_RAWIO", &["iopl", "ioperm"]),
    ("SYS_TIME", &["settimeofday", "clock_settime"]),
    ("SYS_TTY_CONFIG", &["vhangup"]),
    ("SYS_NICE", &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    ("SYSLOG", &["syslog"]),
    ("BPF", &["bpf"]),
    ("PERFMON", &["perf_event_open"]),
];

/// Flags of `clone` that make a namespace. (CLONE_NEWTIME is none of them: its bit is part of the exit signal here.)
const NAMESPACE_FLAGS: u64 = 0x7E02_0000;
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;
/// First address family that no kernel knew when this was written.
const AF_UNKNOWN: u64 = 46;
/// Puts a byte into the input of a terminal: with a terminal shared with the host this types commands there.
const TIOCSTI: u64 = 0x5412;
/// Pastes the selection of a virtual console, to the same end.
const TIOCLINUX: u64 = 0x541C;

/// Capabilities that change the profile; others need no filter of their own.
pub fn relevant_capabilities() -> u64 {
    WITH_CAPABILITY.iter().filter_map(|(name, _)| bit(name)).fold(0, |mask, one| mask | one)
}

/// The profile for a container with these capabilities.
pub fn policy(arch: Arch, capabilities: u64) -> Policy {
    let mut policy = Policy::new(arch, Action::Errno(libc::EPERM as u16));
    for (_reason, names) in ALWAYS {
        for name in *names {
            policy.add(name, always(Action::Allow));
        }
    }
    for (capability, names) in WITH_CAPABILITY {
        if bit(capability).is_some_and(|bit| capabilities & bit != 0) {
            for name in *names {
                policy.add(name, always(Action::Allow));
            }
        }
    }
    // Rules that follow an unconditional one, made above for CAP_SYS_ADMIN, have no effect: the first that fits decides.
    policy.add("clone", when(0, Compare::MaskedEqual(NAMESPACE_FLAGS), 0));
    // The flags of clone3 lie in memory, where a filter cannot look; on ENOSYS C libraries fall back to clone.
    policy.add("clone3", always(Action::Errno(libc::ENOSYS as u16)));
    // Lists namespaces of the host; new enough that programs must expect its absence.
    policy.add("listns", always(Action::Errno(libc::ENOSYS as u16)));
    // The kernel's crypto sockets have been a way to root (CVE-2026-31431), and vsock knows no network namespaces.
    policy.add("socket", when(0, Compare::Less, AF_ALG));
    policy.add("socket", when(0, Compare::Equal, AF_ALG + 1));
    policy.add(
        "socket",
        Rule {
            conditions: vec![int(0, Compare::Greater, AF_VSOCK), int(0, Compare::Less, AF_UNKNOWN)],
            action: Action::Allow,
        },
    );
    let refuse = Action::Errno(libc::EPERM as u16);
    for command in [TIOCSTI, TIOCLINUX] {
        policy.add("ioctl", Rule { conditions: vec![int(1, Compare::Equal, command)], action: refuse });
    }
    policy.add("ioctl", always(Action::Allow));
    // Linux, Linux with 32 bits, the same two with the old uname, and the question which one it is; the others switch
    // off address randomisation or make memory executable.
    for persona in [0, 0x8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF] {
        policy.add("personality", when(0, Compare::Equal, persona));
    }
    policy
}

fn always(action: Action) -> Rule {
    Rule { conditions: Vec::new(), action }
}

fn when(argument: u8, compare: Compare, value: u64) -> Rule {
    Rule { conditions: vec![int(argument, compare, value)], action: Action::Allow }
}

/// All arguments that this profile looks at are 32 bits wide in the kernel.
fn int(argument: u8, compare: Compare, value: u64) -> Condition {
    Condition { argument, width: Width::Int, compare, value }
}

#[cfg(test)]
mod tests {
    use super::super::compile::machine::run;
    use super::super::{compile, syscalls};
    use super::*;

    const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

    fn answer(arch: Arch, capabilities: u64, name: &str, arguments: [u64; 6]) -> u32 {
        let code = compile::compile(&policy(arch, capabilities)).expect("compiles");
        let number = syscalls::number(arch, name).unwrap_or_else(|| panic!("{name}"));
        run(&code, arch.audit(), number, arguments).0
    }

    #[test]
    fn every_listed_name_exists_on_some_architecture_and_is_listed_once() {
        let mut seen = std::collections::BTreeSet::new();
        for (_, names) in ALWAYS {
            for name in *names {
                let known = [Arch::X86_64, Arch::Aarch64].iter().any(|a| syscalls::number(*a, name).is_some());
                assert!(known, "{name} is no system call");
                assert!(seen.insert(*name), "{name} is listed twice");
            }
        }
        for (capability, names) in WITH_CAPABILITY {
            assert!(bit(capability).is_some(), "{capability}");
            for name in *names {
                assert!(syscalls::number(Arch::X86_64, name).is_some(), "{name}");
                assert!(!seen.contains(name), "{name} is allowed without {capability} as well");
            }
        }
        assert!(seen.len() > 280, "{}", seen.len());
    }

    #[test]
    fn what_reaches_past_the_container_is_denied() {
        for arch in [Arch::X86_64, Arch::Aarch64] {
            for name in [
                "mount",
                "umount2",
                "unshare",
                "setns",
                "bpf",
                "perf_event_open",
                "keyctl",
                "add_key",
                "request_key",
                "kexec_load",
                "init_module",
                "finit_module",
                "delete_module",
                "open_by_handle_at",
                "userfaultfd",
                "io_uring_setup",
                "io_uring_enter",
                "io_uring_register",
                "reboot",
                "swapon",
                "pivot_root",
                "acct",
                "quotactl",
                "syslog",
                "settimeofday",
                "clock_settime",
                "pidfd_getfd",
                "kcmp",
                "fsopen",
                "move_mount",
            ] {
                assert_eq!(answer(arch, 0, name, [0; 6]), EPERM, "{name}");
            }
            for name in ["read", "openat", "mmap", "execve", "futex", "ptrace", "exit_group"] {
                assert_eq!(answer(arch, 0, name, [0; 6]), ALLOW, "{name}");
            }
            assert_eq!(answer(arch, 0, "clone3", [0; 6]), ENOSYS);
        }
        assert_eq!(answer(Arch::X86_64, 0, "chroot", [0; 6]), EPERM);
    }

    #[test]
    fn arguments_decide_and_high_bits_do_not_get_past() {
        let first = |name, value: u64| answer(Arch::X86_64, 0, name, [value, 0, 0, 0, 0, 0]);
        assert_eq!(first("clone", 0x3D_0F00), ALLOW);
        for flag in [0x0002_0000u64, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
            assert_eq!(first("clone", flag + 17), EPERM, "{flag:#x}");
        }
        for (family, expected) in [(1, ALLOW), (2, ALLOW), (10, ALLOW), (16, ALLOW), (38, EPERM), (39, ALLOW)] {
            assert_eq!(first("socket", family), expected, "family {family}");
        }
        for family in [40, 0x1_0000_0028, 46, 0xFFFF_FFFF] {
            assert_eq!(first("socket", family), EPERM, "family {family:#x}");
        }
        assert_eq!(first("socket", 44), ALLOW);
        assert_eq!(first("personality", 0xFFFF_FFFF), ALLOW);
        assert_eq!(first("personality", 0x0004_0000), EPERM);
        let ioctl = |command| answer(Arch::X86_64, 0, "ioctl", [0, command, 0, 0, 0, 0]);
        assert_eq!(ioctl(0x5413), ALLOW);
        assert_eq!(ioctl(TIOCSTI), EPERM);
        assert_eq!(ioctl(0xFFFF_FFFF_0000_5412), EPERM);
        assert_eq!(ioctl(TIOCLINUX), EPERM);
    }

    #[test]
    fn capabilities_open_their_calls_and_no_others() {
        let admin = bit("SYS_ADMIN").expect("known");
        assert_eq!(answer(Arch::X86_64, admin, "mount", [0; 6]), ALLOW);
        assert_eq!(answer(Arch::X86_64, admin, "clone3", [0; 6]), ALLOW);
        assert_eq!(answer(Arch::X86_64, admin, "clone", [0x1000_0000, 0, 0, 0, 0, 0]), ALLOW);
        assert_eq!(answer(Arch::X86_64, admin, "kexec_load", [0; 6]), EPERM);
        let tracer = bit("SYS_PTRACE").expect("known");
        assert_eq!(answer(Arch::X86_64, tracer, "pidfd_getfd", [0; 6]), ALLOW);
        assert_eq!(answer(Arch::X86_64, tracer, "mount", [0; 6]), EPERM);
        assert_ne!(relevant_capabilities() & admin, 0);
        assert_eq!(relevant_capabilities() & bit("CHOWN").expect("known"), 0);
    }

    #[test]
    fn a_call_is_decided_in_few_instructions() {
        let code = compile::compile(&policy(Arch::X86_64, 0)).expect("compiles");
        let steps = |number| run(&code, Arch::X86_64.audit(), number, [0; 6]).1;
        let worst = (0..480).map(steps).max().unwrap_or(0);
        assert!(code.len() < 300, "{} instructions", code.len());
        assert!(worst <= 24, "{worst} steps of {}", code.len());
        println!("{} instructions, {worst} steps at most", code.len());
    }
}
