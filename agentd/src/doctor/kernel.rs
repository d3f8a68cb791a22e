//! The kernel's means: namespaces, mounts, seccomp, Landlock, pidfds.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, move_mount, open_tree,
};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::clone::{Probe, last_errno};
use super::process::running;
use super::{Check, existing, read};
use crate::config::Config;

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let mut checks = namespaces();
    checks.extend(mounts(config));
    checks.extend([seccomp(&read("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default()), landlock()]);
    checks.extend(pidfds());
    checks
}

fn namespaces() -> Vec<Check> {
    let kinds = [
        ("mnt", libc::CLONE_NEWNS, "mnt"),
        ("pid", libc::CLONE_NEWPID, "pid"),
        ("net", libc::CLONE_NEWNET, "net"),
        ("ipc", libc::CLONE_NEWIPC, "ipc"),
        ("uts", libc::CLONE_NEWUTS, "uts"),
        ("cgroup", libc::CLONE_NEWCGROUP, "cgroup"),
        ("user", libc::CLONE_NEWUSER, "user"),
    ];
    kinds
        .into_iter()
        .map(|(name, flag, limit)| {
            let check = format!("namespace/{name}");
            let limit = format!("/proc/sys/user/max_{limit}_namespaces");
            let most = read(&limit).unwrap_or_default();
            match Probe::start(flag, None) {
                Ok(_) => {
                    Check::ok(check, format!("works, at most {}", if most.is_empty() { "unknown" } else { &most }))
                }
                Err(error) => {
                    let found = format!("{error}, at most {most}");
                    let cure = match error {
                        Errno::NOSPC | Errno::USERS => format!("raise {limit}"),
                        Errno::PERM => format!("run agentd with CAP_SYS_ADMIN, and see {limit}"),
                        _ => format!("use a kernel with {name} namespaces"),
                    };
                    if name == "user" {
                        Check::warn(check, found, "user namespaces of pods, idmapped mounts", cure)
                    } else {
                        Check::fail(check, found, "pods", cure)
                    }
                }
            }
        })
        .collect()
}

/// A detached mount: gone with its descriptor.
fn detached(path: &std::path::Path) -> Result<OwnedFd, Errno> {
    open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
}

fn tmpfs() -> Result<OwnedFd, Errno> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// A read-only overlay of two folders that every host has; its superblock goes with the descriptor.
fn overlay() -> Result<OwnedFd, Errno> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "lowerdir", "/usr:/etc")?;
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)
}

fn overlay_lowerdir_append() -> Result<(), Errno> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "lowerdir+", "/usr")
}

/// `struct mount_attr` of the kernel.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

fn mount_setattr(mount: &OwnedFd, attr: &MountAttr) -> Result<(), Errno> {
    // SAFETY: the path is an empty C string, the attributes a mount_attr of the size given; both live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

fn mounts(config: &Config) -> Vec<Check> {
    const NEW: &str = "use Linux 6.1 or later, and run agentd with CAP_SYS_ADMIN";
    let answer = |name: &str, result: Result<(), Errno>| match result {
        Ok(()) => Check::ok(name, "works"),
        Err(error) => Check::fail(name, error.to_string(), "pods: their mounts are made detached", NEW),
    };
    let clone = detached(std::path::Path::new("/usr"));
    let setattr = match &clone {
        Ok(clone) => mount_setattr(clone, &MountAttr { set: 1, ..MountAttr::default() }),
        Err(error) => Err(*error),
    };
    let mut checks = vec![
        answer("mount/open_tree", clone.map(drop)),
        answer("mount/fsopen", tmpfs().map(drop)),
        answer("mount/mount_setattr", setattr),
        answer("mount/move_mount", move_mount_present()),
    ];
    checks.push(match overlay() {
        Ok(_) => Check::ok("mount/overlay", "works"),
        Err(error) => Check::fail(
            "mount/overlay",
            error.to_string(),
            "pods with images",
            "load the overlay module (modprobe overlay), or use a kernel with CONFIG_OVERLAY_FS",
        ),
    });
    checks.push(match overlay_lowerdir_append() {
        Ok(()) => Check::ok("mount/overlay_lowerdir_append", "works"),
        Err(error) => Check::warn(
            "mount/overlay_lowerdir_append",
            error.to_string(),
            "images of so many layers that their paths fill a page",
            "use Linux 6.8 or later if you have such images",
        ),
    });
    checks.push(idmapped(config));
    checks
}

/// Asks for an impossible move: a kernel that knows the call says that the descriptor is none.
fn move_mount_present() -> Result<(), Errno> {
    let file = std::fs::File::open("/dev/null").map_err(|_| Errno::IO)?;
    match move_mount(
        &file,
        "",
        &file,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    ) {
        Err(Errno::NOSYS) => Err(Errno::NOSYS),
        Err(Errno::PERM) => Err(Errno::PERM),
        _ => Ok(()),
    }
}

/// Whether the state folder's file system can be mounted with other owners.
fn idmapped(config: &Config) -> Check {
    const IDMAP: u64 = 0x0010_0000;
    let path = existing(&config.paths.state);
    let attempt = || -> std::io::Result<()> {
        let probe = Probe::start(libc::CLONE_NEWUSER, None)?;
        let userns = probe.user_namespace()?;
        let mount = detached(path)?;
        let attr = MountAttr { set: IDMAP, userns: userns.as_fd().as_raw_fd() as u64, ..MountAttr::default() };
        Ok(mount_setattr(&mount, &attr)?)
    };
    match attempt() {
        Ok(()) => Check::ok("mount/idmapped", format!("works for {}", path.display())),
        Err(error) => Check::warn(
            "mount/idmapped",
            format!("{}: {error}", path.display()),
            "user namespaces of pods",
            "keep paths.state on ext4, xfs or btrfs",
        ),
    }
}

/// From `actions_avail`.
pub(super) fn seccomp(actions: &str) -> Check {
    let has = |action: &str| actions.split_whitespace().any(|word| word == action);
    let missing: Vec<&str> =
        ["kill_process", "errno", "log", "allow"].into_iter().filter(|action| !has(action)).collect();
    if missing.is_empty() {
        Check::ok("seccomp", actions)
    } else {
        Check::fail(
            "seccomp",
            format!("lacks {}", missing.join(", ")),
            "pods: their system calls are filtered",
            "use a kernel with CONFIG_SECCOMP_FILTER",
        )
    }
}

fn landlock() -> Check {
    const VERSION: u32 = 1;
    // SAFETY: with this flag the kernel takes no pointer and answers a number.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, VERSION) };
    if abi > 0 {
        Check::ok("landlock", format!("ABI {abi}"))
    } else {
        Check::warn(
            "landlock",
            last_errno().to_string(),
            "a second line of defence around agentd's own helpers",
            "boot with landlock among lsm=, on a kernel with CONFIG_SECURITY_LANDLOCK",
        )
    }
}

fn pidfds() -> Vec<Check> {
    // PIDFD_GET_INFO: _IOWR(0xFF, 11, struct pidfd_info), whose first version has 64 bytes. The first word says what is asked.
    const GET_INFO: libc::c_ulong = 0xC040_FF0B;
    let pidfd = match pidfd_open(getpid(), PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(error) => {
            return vec![Check::fail("pidfd", error.to_string(), "pods", "use Linux 6.1 or later")];
        }
    };
    let mut info = [0u64; 16];
    // SAFETY: the argument is a live, aligned buffer of 128 bytes; the request's number says that 64 are used.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), GET_INFO as _, info.as_mut_ptr()) };
    let exits = running() >= (6, 15);
    let info = if result == 0 && exits {
        Check::ok("pidfd/get_info", "works, with exit statuses")
    } else {
        let found = if result == 0 { "without exit statuses".to_owned() } else { last_errno().to_string() };
        Check::warn(
            "pidfd/get_info",
            found,
            "exit statuses of containers whose pod-init was killed; they are reported as unknown",
            "use Linux 6.15 or later",
        )
    };
    vec![Check::ok("pidfd", "works"), info]
}
