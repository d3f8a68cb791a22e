//! Builds a container's mount tree from its plan, by descriptor.
//!
//! The root is attached on `/root` of the spare's private mount namespace (a copy of the pod-init's nearly empty one), each
//! step's target is resolved with the new root as its root, and the pivot lets go of everything else.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use agentd_launcher::plan::{ContainerPlan, MountStep, TargetKind};

use crate::sys::{self, Failure, Step, c, check, failed, refused};

const TREE_CLONE: u32 = 1;
const TREE_CLOEXEC: u32 = libc::O_CLOEXEC as u32;
const EMPTY_PATH: u32 = libc::AT_EMPTY_PATH as u32;
const NO_EXEC_SUID_DEV: u32 = (sys::ATTR_NOSUID | sys::ATTR_NODEV | sys::ATTR_NOEXEC) as u32;

/// Carries out the plan's mounts and makes the result the root. `target` is attached where the plan says.
pub fn build(plan: &ContainerPlan, fds: &[OwnedFd], target: Option<&OwnedFd>) -> Step<()> {
    let mount = fds.get(plan.root as usize).ok_or_else(|| refused("the plan names no root"))?;
    sys::move_mount(mount.as_fd(), libc::AT_FDCWD, c"/root", "attach the root")?;
    // the detached mount's own descriptor now names the attached root
    let root = mount.as_fd();
    for step in &plan.mounts {
        run(step, plan, fds, root)
            .map_err(|failure| Failure { stage: format!("{}: {}", name(step), failure.stage), errno: failure.errno })?;
    }
    if let (Some(tree), Some(path)) = (target, &plan.target) {
        attach_own(root, tree.as_fd(), path).map_err(|failure| Failure {
            stage: format!("mount the container's files: {}", failure.stage),
            errno: failure.errno,
        })?;
    }
    for path in &plan.masked {
        mask(root, path)?;
    }
    for path in &plan.readonly {
        bind_readonly(root, path)?;
    }
    sys::pivot_to(root)
}

fn name(step: &MountStep) -> String {
    let path = match step {
        MountStep::Attach { target, .. }
        | MountStep::Tmpfs { target, .. }
        | MountStep::Held { target, .. }
        | MountStep::ReadOnly { target } => target,
        MountStep::Symlink { path, .. } | MountStep::Directory { path, .. } | MountStep::File { path, .. } => path,
        MountStep::Proc => return "mount /proc".to_owned(),
        MountStep::Sysfs => return "mount /sys".to_owned(),
        MountStep::Cgroup => return "mount /sys/fs/cgroup".to_owned(),
        MountStep::Dev { .. } => return "mount /dev".to_owned(),
        MountStep::Devpts => return "mount /dev/pts".to_owned(),
        MountStep::Shm => return "mount /dev/shm".to_owned(),
        MountStep::Mqueue => return "mount /dev/mqueue".to_owned(),
    };
    format!("mount {}", String::from_utf8_lossy(path))
}

fn run(step: &MountStep, plan: &ContainerPlan, fds: &[OwnedFd], root: BorrowedFd<'_>) -> Step<()> {
    match step {
        MountStep::Attach { fd, target, create } => {
            let mount = fds.get(*fd as usize).ok_or_else(|| refused("a descriptor was not sent"))?;
            attach(root, mount.as_fd(), target, *create)
        }
        MountStep::Proc => {
            let proc = sys::new_mount(c"proc", &[], &[], NO_EXEC_SUID_DEV)?;
            attach_own(root, proc.as_fd(), b"/proc")
        }
        MountStep::Sysfs => {
            let sysfs = sys::new_mount(c"sysfs", &[], &[], NO_EXEC_SUID_DEV | sys::ATTR_RDONLY as u32)?;
            attach_own(root, sysfs.as_fd(), b"/sys")
        }
        MountStep::Cgroup => {
            let cgroup = sys::new_mount(c"cgroup2", &[], &[], NO_EXEC_SUID_DEV | sys::ATTR_RDONLY as u32)?;
            attach_own(root, cgroup.as_fd(), b"/sys/fs/cgroup")
        }
        MountStep::Dev { size } => dev(root, *size, plan),
        MountStep::Devpts => {
            let options = [(c"ptmxmode", c"0666"), (c"mode", c"0620"), (c"gid", c"5")];
            let devpts = sys::new_mount(c"devpts", &options, &[], (sys::ATTR_NOSUID | sys::ATTR_NOEXEC) as u32)?;
            attach_own(root, devpts.as_fd(), b"/dev/pts")
        }
        MountStep::Shm => {
            let shm = sys::open_tree(libc::AT_FDCWD, c"/shm", TREE_CLONE | TREE_CLOEXEC)?;
            attach_own(root, shm.as_fd(), b"/dev/shm")
        }
        MountStep::Mqueue => {
            let mqueue = sys::open_tree(libc::AT_FDCWD, c"/mqueue", TREE_CLONE | TREE_CLOEXEC)?;
            attach_own(root, mqueue.as_fd(), b"/dev/mqueue")
        }
        MountStep::Tmpfs { target, size, mode } => {
            let size = c(size.to_string().as_bytes())?;
            let mode = c(format!("{mode:o}").as_bytes())?;
            let options: [(&CStr, &CStr); 2] = [(c"size", &size), (c"mode", &mode)];
            let tmpfs = sys::new_mount(c"tmpfs", &options, &[], (sys::ATTR_NOSUID | sys::ATTR_NODEV) as u32)?;
            attach(root, tmpfs.as_fd(), target, TargetKind::Directory)
        }
        MountStep::Held { name, sub_path, target, read_only } => held(root, name, sub_path, target, *read_only),
        MountStep::Symlink { path, to } => {
            let (parent, last) = parent(root, path)?;
            let to = c(to)?;
            // SAFETY: both strings are NUL-terminated.
            if unsafe { libc::symlinkat(to.as_ptr(), parent.as_raw_fd(), last.as_ptr()) } != 0
                && io::Error::last_os_error().kind() != io::ErrorKind::AlreadyExists
            {
                return Err(failed("symlink"));
            }
            Ok(())
        }
        MountStep::Directory { path, mode, uid, gid } => {
            let (parent, last) = parent(root, path)?;
            // SAFETY: the name is NUL-terminated.
            if unsafe { libc::mkdirat(parent.as_raw_fd(), last.as_ptr(), 0o700) } != 0 {
                if io::Error::last_os_error().kind() == io::ErrorKind::AlreadyExists {
                    return Ok(());
                }
                return Err(failed("mkdir"));
            }
            let made = sys::open_below(parent.as_fd(), &last, libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
            own(made.as_fd(), *mode, *uid, *gid)
        }
        MountStep::File { path, content, mode, uid, gid } => {
            let (parent, last) = parent(root, path)?;
            let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
            let file = sys::open_below(parent.as_fd(), &last, flags, 0o600)?;
            sys::write_all(file.as_fd(), content, "write")?;
            own(file.as_fd(), *mode, *uid, *gid)
        }
        MountStep::ReadOnly { target } => {
            let mount = sys::open_in(root, target, libc::O_PATH)?;
            sys::set_attributes(mount.as_fd(), sys::ATTR_RDONLY, false)
        }
    }
}

fn own(file: BorrowedFd<'_>, mode: u32, uid: u32, gid: u32) -> Step<()> {
    // SAFETY: plain integers.
    unsafe {
        check(libc::c_long::from(libc::fchown(file.as_raw_fd(), uid, gid)), "chown")?;
        check(libc::c_long::from(libc::fchmod(file.as_raw_fd(), mode)), "chmod").map(drop)
    }
}

/// Splits a path into its parent, opened (and made) below the root, and its last name.
fn parent(root: BorrowedFd<'_>, path: &[u8]) -> Step<(OwnedFd, std::ffi::CString)> {
    let trimmed = path.strip_suffix(b"/").unwrap_or(path);
    let at = trimmed.iter().rposition(|b| *b == b'/').ok_or_else(|| refused("the path is not absolute"))?;
    let last = &trimmed[at + 1..];
    if last.is_empty() || last == b".." || last == b"." {
        return Err(refused("the path has no file name"));
    }
    Ok((make_directories(root, &trimmed[..=at])?, c(last)?))
}

/// Opens a directory below the root, making what is missing. Each component is resolved with the root as its root, so
/// a link of the image leads to where the container would see it lead, and nowhere else.
pub fn make_directories(root: BorrowedFd<'_>, path: &[u8]) -> Step<OwnedFd> {
    if let Ok(found) = sys::open_in(root, path, libc::O_PATH | libc::O_DIRECTORY) {
        return Ok(found);
    }
    let mut so_far: Vec<u8> = vec![b'/'];
    let mut current = sys::open_in(root, b"/", libc::O_PATH | libc::O_DIRECTORY)?;
    for component in path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".") {
        if component == b".." {
            return Err(refused("the path holds .."));
        }
        so_far.extend_from_slice(component);
        current = match sys::open_in(root, &so_far, libc::O_PATH | libc::O_DIRECTORY) {
            Ok(next) => next,
            Err(Failure { errno: libc::ENOENT, .. }) => {
                sys::mkdirat(current.as_fd(), &c(component)?, 0o755).map_err(|error| Failure {
                    stage: format!("mkdir {}", String::from_utf8_lossy(&so_far)),
                    errno: error.raw_os_error().unwrap_or(0),
                })?;
                sys::open_in(root, &so_far, libc::O_PATH | libc::O_DIRECTORY)?
            }
            Err(failure) => return Err(failure),
        };
        so_far.push(b'/');
    }
    Ok(current)
}

/// The mount point itself, made when missing.
fn mount_point(root: BorrowedFd<'_>, target: &[u8], kind: TargetKind) -> Step<OwnedFd> {
    match kind {
        TargetKind::Directory => make_directories(root, target),
        TargetKind::File => {
            if let Ok(found) = sys::open_in(root, target, libc::O_PATH) {
                return Ok(found);
            }
            let (parent, last) = parent(root, target)?;
            drop(sys::open_below(parent.as_fd(), &last, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL, 0o644)?);
            sys::open_below(parent.as_fd(), &last, libc::O_PATH, 0)
        }
    }
}

fn attach(root: BorrowedFd<'_>, mount: BorrowedFd<'_>, target: &[u8], kind: TargetKind) -> Step<()> {
    let point = mount_point(root, target, kind)?;
    // a link of the image may not put a volume where the kernel's files are looked for
    let named = target.starts_with(b"/proc/") || target.starts_with(b"/sys/");
    if !named && is_kernels(point.as_fd())? {
        return Err(refused("a link of the image leads into /proc or /sys; make it a folder"));
    }
    sys::move_mount(mount, point.as_raw_fd(), sys::EMPTY, "attach")
}

/// Attaches one of agentd's own mounts. No link of the image is followed on the way, so that what later steps look for
/// at these paths is what was mounted.
fn attach_own(root: BorrowedFd<'_>, mount: BorrowedFd<'_>, target: &[u8]) -> Step<()> {
    const FLAGS: i32 = libc::O_PATH | libc::O_DIRECTORY;
    let mut point = sys::open_in(root, b"/", FLAGS)?;
    for component in target.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
        let name = c(component)?;
        let opened = match sys::open_below(point.as_fd(), &name, FLAGS, 0) {
            Err(Failure { errno: libc::ENOENT, .. }) => {
                sys::mkdirat(point.as_fd(), &name, 0o755).map_err(|_| failed("mkdir"))?;
                sys::open_below(point.as_fd(), &name, FLAGS, 0)
            }
            opened => opened,
        };
        point = opened.map_err(|failure| match failure.errno {
            libc::ELOOP | libc::ENOTDIR => {
                let shown = String::from_utf8_lossy(target);
                refused(format!(
                    "{} on the way to {shown} is a link or a file of the image; expected a folder",
                    String::from_utf8_lossy(component)
                ))
            }
            _ => failure,
        })?;
    }
    sys::move_mount(mount, point.as_raw_fd(), sys::EMPTY, "attach")
}

/// Whether a file is on proc, sysfs or cgroup2.
fn is_kernels(file: BorrowedFd<'_>) -> Step<bool> {
    const MAGIC: [libc::c_long; 3] = [0x9fa0, 0x6265_6572, 0x6367_7270];
    // SAFETY: a zeroed statfs is filled by fstatfs.
    let kind = unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        check(libc::c_long::from(libc::fstatfs(file.as_raw_fd(), &raw mut stat)), "statfs")?;
        stat.f_type as libc::c_long
    };
    Ok(MAGIC.contains(&kind))
}

/// A private `/dev`: nothing of the image's shows through, and its nodes are made here.
fn dev(root: BorrowedFd<'_>, size: u64, plan: &ContainerPlan) -> Step<()> {
    const LINKS: [(&CStr, &CStr); 5] = [
        (c"fd", c"/proc/self/fd"),
        (c"stdin", c"/proc/self/fd/0"),
        (c"stdout", c"/proc/self/fd/1"),
        (c"stderr", c"/proc/self/fd/2"),
        (c"ptmx", c"pts/ptmx"),
    ];
    let size = c(size.to_string().as_bytes())?;
    let options: [(&CStr, &CStr); 2] = [(c"size", &size), (c"mode", c"0755")];
    let dev = sys::new_mount(c"tmpfs", &options, &[], (sys::ATTR_NOSUID | sys::ATTR_NOEXEC) as u32)?;
    attach_own(root, dev.as_fd(), b"/dev")?;
    for name in [c"pts", c"shm", c"mqueue"] {
        sys::mkdirat(dev.as_fd(), name, 0o755).map_err(|_| failed("mkdir in /dev"))?;
    }
    for (name, to) in LINKS {
        // SAFETY: both strings are NUL-terminated.
        let r = unsafe { libc::symlinkat(to.as_ptr(), dev.as_raw_fd(), name.as_ptr()) };
        check(libc::c_long::from(r), "symlink in /dev")?;
    }
    for node in &plan.devices {
        let path = format!("/{}", node.name);
        let (parent, last) = parent(dev.as_fd(), path.as_bytes())?;
        let device = libc::makedev(node.major, node.minor);
        let mode = libc::S_IFCHR | node.mode;
        // SAFETY: the name is NUL-terminated; the rest are integers.
        unsafe {
            let r = libc::mknodat(parent.as_raw_fd(), last.as_ptr(), mode, device);
            check(libc::c_long::from(r), &format!("make /dev/{}", node.name))?;
            // past the umask
            let r = libc::fchmodat(parent.as_raw_fd(), last.as_ptr(), node.mode, 0);
            check(libc::c_long::from(r), &format!("chmod /dev/{}", node.name))?;
        }
    }
    Ok(())
}

fn held(root: BorrowedFd<'_>, name: &[u8], sub_path: &[u8], target: &[u8], read_only: bool) -> Step<()> {
    if name.is_empty() || name.contains(&b'/') {
        return Err(refused("the held volume's name is not a file name"));
    }
    let path = c(&[b"/volumes/", name].concat())?;
    let mut kind = TargetKind::Directory;
    let tree = if sub_path.is_empty() {
        sys::open_tree(libc::AT_FDCWD, &path, TREE_CLONE | TREE_CLOEXEC)?
    } else {
        let volume = sys::open_tree(libc::AT_FDCWD, &path, TREE_CLOEXEC)?;
        let mut current = volume;
        for component in sub_path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".") {
            let component = c(component)?;
            sys::mkdirat(current.as_fd(), &component, 0o755).map_err(|_| failed("make the sub-path"))?;
            current = sys::open_below(current.as_fd(), &component, libc::O_PATH, 0)?;
        }
        if !is_directory(current.as_fd())? {
            kind = TargetKind::File;
        }
        sys::open_tree(current.as_raw_fd(), sys::EMPTY, TREE_CLONE | TREE_CLOEXEC | EMPTY_PATH)?
    };
    if read_only {
        sys::set_attributes(tree.as_fd(), sys::ATTR_RDONLY, false)?;
    }
    attach(root, tree.as_fd(), target, kind)
}

fn mask(root: BorrowedFd<'_>, path: &[u8]) -> Step<()> {
    let Some(point) = present(root, path)? else { return Ok(()) };
    let cover = if is_directory(point.as_fd())? {
        sys::open_tree(libc::AT_FDCWD, c"/mask", TREE_CLONE | TREE_CLOEXEC)?
    } else {
        let null = sys::open_in(root, b"/dev/null", libc::O_PATH)?;
        sys::open_tree(null.as_raw_fd(), sys::EMPTY, TREE_CLONE | TREE_CLOEXEC | EMPTY_PATH)?
    };
    sys::move_mount(cover.as_fd(), point.as_raw_fd(), sys::EMPTY, "mask")
}

fn bind_readonly(root: BorrowedFd<'_>, path: &[u8]) -> Step<()> {
    let Some(point) = present(root, path)? else { return Ok(()) };
    let tree = sys::open_tree(point.as_raw_fd(), sys::EMPTY, TREE_CLONE | TREE_CLOEXEC | EMPTY_PATH)?;
    sys::set_attributes(tree.as_fd(), sys::ATTR_RDONLY, false)?;
    sys::move_mount(tree.as_fd(), point.as_raw_fd(), sys::EMPTY, "make read-only")
}

fn present(root: BorrowedFd<'_>, path: &[u8]) -> Step<Option<OwnedFd>> {
    match sys::open_in(root, path, libc::O_PATH | libc::O_NOFOLLOW) {
        Ok(fd) => Ok(Some(fd)),
        Err(Failure { errno: libc::ENOENT, .. }) => Ok(None),
        Err(failure) => Err(failure),
    }
}

fn is_directory(fd: BorrowedFd<'_>) -> Step<bool> {
    // SAFETY: a zeroed stat is filled by fstat.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        check(libc::c_long::from(libc::fstat(fd.as_raw_fd(), &raw mut stat)), "stat")?;
        Ok(stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
    }
}
