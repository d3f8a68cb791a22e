//! One thread with a private mount namespace, and what it can make there.

use std::cell::Cell;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, unmount,
};

use super::{NAME, overlay};
use crate::IsolatorError;

/// Where a thread keeps its scratch folder (a tmpfs): a directory that every Linux has, that no pod may mount, and over
/// which a mount in a private namespace hides nothing that agentd reads.
const SCRATCH: &str = "/proc/fs";

/// What a mount allows. The default allows everything and maps no ids.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes<'a> {
    /// No writing.
    pub read_only: bool,
    /// Set-user-id bits and file capabilities are ignored.
    pub nosuid: bool,
    /// Device nodes cannot be opened.
    pub nodev: bool,
    /// Programs cannot be run.
    pub noexec: bool,
    /// User namespace by which ids on the file system are mapped.
    pub idmap: Option<BorrowedFd<'a>>,
}

impl Attributes<'_> {
    fn flags(self) -> MountAttrFlags {
        let mut flags = MountAttrFlags::empty();
        flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, self.read_only);
        flags.set(MountAttrFlags::MOUNT_ATTR_NOSUID, self.nosuid);
        flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, self.nodev);
        flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, self.noexec);
        flags
    }
}

/// A tmpfs to make.
#[derive(Debug, Clone, Copy)]
pub struct Tmpfs {
    /// Size limit in bytes.
    pub size: u64,
    /// Limit of files and directories.
    pub inodes: u64,
    /// Mode of its root.
    pub mode: u32,
    /// Owner of its root.
    pub uid: u32,
    /// Group of its root.
    pub gid: u32,
    /// Keeps its pages out of swap where the kernel can (Linux 6.4).
    pub noswap: bool,
}

impl Tmpfs {
    /// A tmpfs of `size` bytes owned by root, with one inode for every 4 KiB.
    pub fn new(size: u64, mode: u32) -> Self {
        Self { size, inodes: (size / 4096).max(64), mode, uid: 0, gid: 0, noswap: false }
    }
}

/// A thread of the pool, as the closures see it. Paths given to it are resolved in its own mount namespace, which
/// looks like the host's.
#[derive(Debug)]
pub struct MountThread {
    scratch: OwnedFd,
    next: Cell<u64>,
}

impl MountThread {
    /// Gives the calling thread its own mount namespace and scratch folder.
    pub(super) fn enter() -> Result<Self, IsolatorError> {
        // SAFETY: `unshare` takes no pointers; the thread was started for this and shares nothing by path with others.
        if unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) } != 0 {
            return Err(IsolatorError::io(
                NAME,
                "cannot make a private mount namespace (unshare); run agentd with CAP_SYS_ADMIN",
                io::Error::last_os_error(),
            ));
        }
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
            .map_err(|e| IsolatorError::io(NAME, "cannot make the private mount namespace a slave of the host's", e))?;
        // modes given to mkdirat and openat are meant as they are; the umask belongs to this thread alone now
        rustix::process::umask(Mode::empty());
        for set in [caps::CapSet::Effective, caps::CapSet::Permitted] {
            caps::drop(None, set, caps::Capability::CAP_SYS_RESOURCE)
                .map_err(|e| IsolatorError::new(NAME, format!("cannot drop CAP_SYS_RESOURCE: {e}")))?;
        }
        let scratch = new_tmpfs(&Tmpfs::new(1 << 20, 0o700), Attributes::default())
            .map_err(|e| IsolatorError::io(NAME, "cannot make a tmpfs for the scratch folder", e))?;
        move_mount(&scratch, "", CWD, SCRATCH, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|e| IsolatorError::io(NAME, format_args!("cannot attach the scratch folder at {SCRATCH}"), e))?;
        Ok(Self { scratch, next: Cell::new(0) })
    }

    /// A detached clone of the tree at `path` (relative to `dir`; empty for `dir` itself), private, with `attributes`.
    /// The last component is followed when it is a symbolic link only if `dir` resolves it, so pass descriptors opened
    /// with the rules you need and an empty path. The mount of `dir` must lie in this thread's namespace: open it in
    /// the same closure.
    pub fn clone_tree(
        &self,
        dir: impl AsFd,
        path: &Path,
        recursive: bool,
        attributes: Attributes<'_>,
    ) -> io::Result<OwnedFd> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH
            | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
        flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
        let tree = rustix::mount::open_tree(dir, path, flags)?;
        set_attributes(&tree, recursive, attributes)?;
        Ok(tree)
    }

    /// A detached tmpfs.
    pub fn tmpfs(&self, tmpfs: &Tmpfs, attributes: Attributes<'_>) -> io::Result<OwnedFd> {
        new_tmpfs(tmpfs, attributes)
    }

    /// A detached mount of the block device `device` with file system `kind`; `options` are flags and `name=value`.
    pub fn block(
        &self,
        kind: &str,
        device: &Path,
        options: &[&str],
        attributes: Attributes<'_>,
    ) -> io::Result<OwnedFd> {
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", device)?;
        for option in options {
            match option.split_once('=') {
                Some((key, value)) => fsconfig_set_string(&context, key, value)?,
                None => fsconfig_set_flag(&context, *option)?,
            }
        }
        fsconfig_create(&context)?;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes.flags())?;
        set_attributes(&mount, false, attributes)?;
        Ok(mount)
    }

    /// Attaches a detached mount in the scratch folder until the guard is dropped. From then on clones of `mount` can be
    /// made, also on kernels that refuse to clone detached mounts (before Linux 6.15).
    pub fn attach(&self, mount: &OwnedFd) -> io::Result<Attached<'_>> {
        let attached = self.place()?;
        move_mount(mount, "", &self.scratch, &attached.name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        Ok(attached)
    }

    /// A new empty directory of the scratch folder to mount on, removed with what lies on it when dropped.
    pub(super) fn place(&self) -> io::Result<Attached<'_>> {
        let number = self.next.get();
        self.next.set(number + 1);
        let name = format!("m{number}");
        rustix::fs::mkdirat(&self.scratch, &name, Mode::RWXU)?;
        Ok(Attached { thread: self, name })
    }

    /// Whether overlayfs takes its lower layers one by one (`lowerdir+`, Linux 6.7). Tried once for the process.
    pub fn appends_layers(&self) -> bool {
        static APPENDS: OnceLock<bool> = OnceLock::new();
        *APPENDS.get_or_init(|| overlay::probe_append(self).is_ok())
    }
}

/// A mount in a thread's scratch folder; dropping it detaches the mount. Descriptors opened below stay usable.
#[derive(Debug)]
pub struct Attached<'a> {
    thread: &'a MountThread,
    name: String,
}

impl Attached<'_> {
    /// Its path in the thread's own mount namespace.
    pub fn path(&self) -> PathBuf {
        Path::new(SCRATCH).join(&self.name)
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        // EINVAL: nothing was mounted here
        let _ = unmount(self.path(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        let _ = rustix::fs::unlinkat(&self.thread.scratch, &self.name, AtFlags::REMOVEDIR);
    }
}

fn new_tmpfs(tmpfs: &Tmpfs, attributes: Attributes<'_>) -> io::Result<OwnedFd> {
    let make = |noswap: bool| -> rustix::io::Result<OwnedFd> {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", "tmpfs")?;
        fsconfig_set_string(&context, "size", tmpfs.size.to_string())?;
        fsconfig_set_string(&context, "nr_inodes", tmpfs.inodes.to_string())?;
        fsconfig_set_string(&context, "mode", format!("{:o}", tmpfs.mode))?;
        if tmpfs.uid != 0 {
            fsconfig_set_string(&context, "uid", tmpfs.uid.to_string())?;
        }
        if tmpfs.gid != 0 {
            fsconfig_set_string(&context, "gid", tmpfs.gid.to_string())?;
        }
        if noswap {
            fsconfig_set_flag(&context, "noswap")?;
        }
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes.flags())
    };
    let mount = match make(tmpfs.noswap) {
        Err(rustix::io::Errno::INVAL) if tmpfs.noswap => make(false)?,
        other => other?,
    };
    set_attributes(&mount, false, attributes)?;
    Ok(mount)
}

/// Makes a detached mount private and gives it its attributes in one step, before anybody can see it.
pub(crate) fn set_attributes(mount: &OwnedFd, recursive: bool, attributes: Attributes<'_>) -> io::Result<()> {
    let mut attr = libc::mount_attr {
        attr_set: u64::from(attributes.flags().bits()),
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    if let Some(namespace) = attributes.idmap {
        attr.attr_set |= libc::MOUNT_ATTR_IDMAP;
        attr.userns_fd = namespace.as_raw_fd() as u64;
    }
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a static C string, `attr` outlives the call and its size is passed along.
    let status = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if status == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if attributes.idmap.is_some() && error.raw_os_error() == Some(libc::EINVAL) {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this file system cannot map ids (mount_setattr MOUNT_ATTR_IDMAP: EINVAL); keep it on ext4, xfs, btrfs (or \
             tmpfs from Linux 6.3), or run the pod without agentd.userNamespace",
        ));
    }
    Err(error)
}

/// Opens a directory as a handle for paths below it.
pub(crate) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Another descriptor of the directory below `dir`, not following a symbolic link.
pub(crate) fn open_below(dir: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

/// Opens the directory `name` below `dir` as a handle, made with this mode when it is missing (exactly so on a mounter's
/// thread, whose umask is zero), and gives it its owner, if one is named. A symbolic link or anything else than a
/// directory under that name is an error.
pub(crate) fn ensure_dir(dir: impl AsFd, name: &str, mode: u32, owner: Option<(u32, u32)>) -> io::Result<OwnedFd> {
    let handle = match open_below(&dir, name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(mode)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => open_below(&dir, name)?,
                Err(error) => return Err(error.into()),
            }
        }
        other => other?,
    };
    if let Some((uid, gid)) = owner {
        let stat = rustix::fs::fstat(&handle)?;
        if (stat.st_uid, stat.st_gid) != (uid, gid) {
            let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
            rustix::fs::chownat(&handle, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        }
    }
    Ok(handle)
}

/// How a path below a folder that containers write to is opened: no link is followed and no mount crossed.
pub(crate) const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Makes what is missing of a path of directories below `dir`, each part below the descriptor of the one before; new
/// ones get the owner. Returns the last as a handle (which may be a file, if it was there).
pub(crate) fn ensure_path(dir: impl AsFd, path: &str, mode: u32, owner: (u32, u32)) -> io::Result<OwnedFd> {
    let mut at = dir.as_fd().try_clone_to_owned()?;
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        at = match openat2(&at, part, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), BENEATH) {
            Err(rustix::io::Errno::NOENT) => ensure_dir(&at, part, mode, Some(owner))?,
            other => other?,
        };
    }
    Ok(at)
}

/// A path to what a descriptor of this process names: short, and without characters that mount options give a meaning.
pub(crate) fn descriptor_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// The path by which a descriptor is known now, with symbolic links resolved.
pub(crate) fn real_path(fd: impl AsFd) -> io::Result<PathBuf> {
    use std::os::unix::ffi::OsStringExt as _;
    let target: CString = rustix::fs::readlink(descriptor_path(fd), Vec::new())?;
    Ok(PathBuf::from(std::ffi::OsString::from_vec(target.into_bytes())))
}
