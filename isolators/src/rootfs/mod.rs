//! Isolator `rootfs`: the root of a container, its sandbox, the kernel's file systems, and what its image says of its
//! command, environment, user and working directory.
//!
//! With an image the root is an overlay of the image's layers and a fresh upper layer for each start
//! (`upper/c<slot>.<attempt>` in the pod's folder). Without one it is [`host`]'s. The steps are pushed in the order:
//! root and host files, kernel file systems, sandbox, network files; volumes come after by their own isolator.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentd_api::pod::PodSpec;
use agentd_api::problem::Violation;
use agentd_launcher::plan::{MountStep, TargetKind};
use rustix::fs::{Dir, Mode, OFlags, ResolveFlags, openat2};

use crate::disk::{Disk, PodDirs, walk};
use crate::mounter::idmap::IdRange;
use crate::mounter::overlay::Overlay;
use crate::mounter::{Attributes, MountThread, Mounter, ensure_dir, ensure_path, open_dir};
use crate::{ContainerContext, ImageRoot, Isolator, IsolatorError, Launch};

pub mod config;
pub mod host;
pub mod user;

pub use config::{SANDBOX, merge_env};
pub use host::{DEFAULT_ETC, HostFiles};
use user::User;

const NAME: &str = "rootfs";
/// Size of `/dev`, which holds nodes and links only.
const DEV_SIZE: u64 = 1 << 20;

/// Settings of the isolator.
#[derive(Debug, Clone)]
pub struct RootfsSettings {
    /// Files of the host that containers without an image see.
    pub host_files: HostFiles,
    /// Size in bytes of the tmpfs that is the root of a container without an image.
    pub root_size: u64,
}

impl Default for RootfsSettings {
    fn default() -> Self {
        Self { host_files: HostFiles::default(), root_size: 16 << 20 }
    }
}

/// The isolator.
#[derive(Debug)]
pub struct Rootfs {
    mounter: Arc<Mounter>,
    disk: Arc<Disk>,
    ids: Option<Arc<IdRange>>,
    settings: RootfsSettings,
}

/// The part of a [`ContainerContext`] that matters for files.
#[derive(Debug, Clone, Copy)]
struct Request<'a> {
    pod: &'a PodSpec,
    index: usize,
    attempt: u32,
    image: Option<&'a ImageRoot>,
    /// Name of the folder of its writes; by container and attempt where absent.
    upper: Option<&'a str>,
}

impl Rootfs {
    /// The isolator. `ids` is the node's range for user namespaces; without one, pods that ask for them are refused.
    pub fn new(mounter: Arc<Mounter>, disk: Arc<Disk>, ids: Option<Arc<IdRange>>, settings: RootfsSettings) -> Self {
        Self { mounter, disk, ids, settings }
    }

    /// The work of [`Isolator::prepare`] for container `slot` of the pod. `launch.plan.env` holds what pod, container
    /// and agentd set (secrets resolved, the later of two wins); the image's environment is put below it.
    pub fn build(
        &self,
        pod: &PodSpec,
        slot: u32,
        attempt: u32,
        (instance, pod_dir): (&str, &Path),
        image: Option<&ImageRoot>,
        launch: &mut Launch,
    ) -> Result<(), IsolatorError> {
        self.build_in(Request { pod, index: slot as usize, attempt, image, upper: None }, (instance, pod_dir), launch)
    }

    /// The same for a debug container beside container `slot`: another image, and `name` for the folder of its writes, which
    /// [`Rootfs::remove_debug`] removes.
    pub fn build_debug(
        &self,
        pod: &PodSpec,
        slot: u32,
        name: &str,
        place: (&str, &Path),
        image: &ImageRoot,
        launch: &mut Launch,
    ) -> Result<(), IsolatorError> {
        let request = Request { pod, index: slot as usize, attempt: 0, image: Some(image), upper: Some(name) };
        self.build_in(request, place, launch)
    }

    /// Removes what a debug container wrote. One that is gone is fine.
    pub fn remove_debug(&self, name: &str, (instance, pod_dir): (&str, &Path)) -> Result<(), IsolatorError> {
        let failed = |e| IsolatorError::io(NAME, "cannot remove a debug container's upper layer", e);
        if !pod_dir.exists() {
            return Ok(());
        }
        let data = self.disk.open_pod_dir(instance, pod_dir)?;
        let gone = |e: std::io::Error| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) };
        let name = std::ffi::CString::new(name).map_err(|e| failed(e.into()))?;
        match crate::mounter::open_below(&data, "upper") {
            Err(e) => gone(e).map_err(failed),
            Ok(parent) => walk::remove_below(&parent, &name).or_else(gone).map_err(failed),
        }
    }

    fn build_in(
        &self,
        request: Request<'_>,
        (instance, pod_dir): (&str, &Path),
        launch: &mut Launch,
    ) -> Result<(), IsolatorError> {
        let Request { pod, index, image, .. } = request;
        let container = pod
            .containers
            .get(index)
            .ok_or_else(|| IsolatorError::new(NAME, format!("the pod has no container {index}")))?;
        launch.plan.argv = config::argv(container, image).ok_or_else(|| {
            let cure = "give the container exec.command or an image with an entrypoint";
            IsolatorError::new(NAME, format!("containers[{index}].exec: no command here and none in the image; {cure}"))
        })?;
        launch.plan.cwd = config::workdir(container, image).into_bytes();
        launch.plan.root_readonly = container.agentd.read_only_root;
        let idmap = match (pod.agentd.user_namespace, &self.ids) {
            (false, _) => None,
            (true, Some(ids)) => Some(ids.namespace(&self.mounter)?),
            (true, None) => return Err(IsolatorError::new(NAME, no_range())),
        };
        self.mounter.run(|thread| {
            self.disk.with_pod_dir(thread, instance, pod_dir, |dirs| {
                self.mounts(thread, dirs, &request, idmap.as_ref(), launch)
            })
        })?;
        if let Some(namespace) = idmap {
            launch.plan.user_namespace = Some(launch.push_fd(namespace));
        }
        Ok(())
    }

    fn mounts(
        &self,
        thread: &MountThread,
        dirs: &PodDirs,
        request: &Request<'_>,
        idmap: Option<&OwnedFd>,
        launch: &mut Launch,
    ) -> Result<(), IsolatorError> {
        let container = &request.pod.containers[request.index];
        let upper = fresh_upper(dirs, request)?;
        let idmap = idmap.map(AsFd::as_fd);
        let etc = network_files(dirs)?;
        let (root, user) = if let Some(image) = request.image {
            let root = self.overlay(thread, &upper, image, request, idmap)?;
            let user = resolve_user(&root, request, &image.user)?;
            (root, user)
        } else {
            let host_root = open_dir(Path::new("/")).map_err(|e| IsolatorError::io(NAME, "cannot open /", e))?;
            let user = resolve_user(&host_root, request, "")?;
            let owner = self.host_id(request, 0)?;
            let skip: Vec<&str> = etc.iter().map(|(name, _)| *name).collect();
            let settings = &self.settings;
            let root = host::root(thread, &settings.host_files, settings.root_size, owner, &skip, launch)?;
            (root, user)
        };
        // an id beyond the range could not be had inside the user namespace
        for id in [user.uid, user.gid].into_iter().chain(user.groups.iter().copied()) {
            self.host_id(request, id)?;
        }
        launch.plan.root = launch.push_fd(root);
        if request.image.is_none() {
            temporary(thread, &upper, idmap, launch)?;
        }
        launch.plan.mounts.extend([
            MountStep::Proc,
            MountStep::Sysfs,
            MountStep::Cgroup,
            MountStep::Dev { size: DEV_SIZE },
            MountStep::Devpts,
            MountStep::Shm,
            MountStep::Mqueue,
        ]);
        let sandbox = open_sandbox(dirs, &container.name, &user)?;
        // as pod-init could not make it in an idmapped mount; a path with a link is left to it
        if let Ok(Some(below)) = std::str::from_utf8(&launch.plan.cwd).map(|cwd| cwd.strip_prefix(SANDBOX)) {
            let _ = ensure_path(&sandbox, below, 0o755, (user.uid, user.gid));
        }
        let attributes = Attributes { nosuid: true, nodev: true, idmap, ..Attributes::default() };
        push_clone(thread, sandbox, SANDBOX, TargetKind::Directory, attributes, launch)?;
        for (name, file) in etc {
            let attributes =
                Attributes { read_only: true, nosuid: true, nodev: true, noexec: true, ..Attributes::default() };
            push_clone(thread, file, &format!("/etc/{name}"), TargetKind::File, attributes, launch)?;
        }
        let image_env = request.image.map(|image| image.env.as_slice()).unwrap_or_default();
        launch.plan.env = merge_env(image_env, &launch.plan.env);
        config::set_default(&mut launch.plan.env, "HOME", user.home.as_deref().unwrap_or("/"));
        launch.plan.uid = user.uid;
        launch.plan.gid = user.gid;
        launch.plan.groups = user.groups;
        Ok(())
    }

    /// The host's id of a container's id.
    fn host_id(&self, request: &Request<'_>, id: u32) -> Result<u32, IsolatorError> {
        match (&self.ids, request.pod.agentd.user_namespace) {
            (Some(ids), true) => ids.host_id(id).ok_or_else(|| {
                let range = crate::mounter::idmap::RANGE;
                IsolatorError::new(
                    NAME,
                    format!(
                        "containers[{}].user: id {id} is outside the user namespace; expected less than {range}, or \
                         switch agentd.userNamespace off",
                        request.index
                    ),
                )
            }),
            _ => Ok(id),
        }
    }

    fn overlay(
        &self,
        thread: &MountThread,
        folder: &OwnedFd,
        image: &ImageRoot,
        request: &Request<'_>,
        idmap: Option<BorrowedFd<'_>>,
    ) -> Result<OwnedFd, IsolatorError> {
        let failed = |e| IsolatorError::io(NAME, "cannot mount the image's layers", e);
        let top =
            image.layers.first().ok_or_else(|| IsolatorError::new(NAME, "the image has no layers; pull it again"))?;
        // the root directory that the container sees is the upper one
        let stat = open_dir(top).and_then(|top| Ok(rustix::fs::fstat(top)?)).map_err(failed)?;
        let (uid, gid) = (self.host_id(request, stat.st_uid)?, self.host_id(request, stat.st_gid)?);
        ensure_dir(folder, "upper", stat.st_mode & 0o7777, Some((uid, gid))).map_err(failed)?;
        ensure_dir(folder, "work", 0o700, None).map_err(failed)?;
        let lower: &[PathBuf] = &image.layers;
        let overlay = Overlay { lower, writable: Some(folder.as_fd()), volatile: true, idmap };
        thread.overlay(&overlay, Attributes { nodev: true, ..Attributes::default() }).map_err(failed)
    }
}

impl Isolator for Rootfs {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, pod: &PodSpec, violations: &mut Vec<Violation>) {
        if pod.agentd.user_namespace && self.ids.is_none() {
            violations.push(Violation::new("agentd.userNamespace", no_range()));
        }
    }

    fn prepare(&self, container: &ContainerContext<'_>, launch: &mut Launch) -> Result<(), IsolatorError> {
        let place = (container.instance, container.pod_dir);
        self.build(container.pod, container.slot, container.attempt, place, container.image, launch)
    }

    fn cleanup(&self, container: &ContainerContext<'_>) -> Result<(), IsolatorError> {
        let failed = |e| IsolatorError::io(NAME, "cannot remove the container's upper layer", e);
        if !container.pod_dir.exists() {
            return Ok(());
        }
        let data = match self.disk.open_pod_dir(container.instance, container.pod_dir) {
            Ok(data) => data,
            // the pod's loop file went before
            Err(e) if e.source.as_ref().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound) => return Ok(()),
            Err(e) => return Err(e),
        };
        match crate::mounter::open_below(&data, "upper") {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            parent => remove_uppers(&parent.map_err(failed)?, container.slot as usize, Some(container.attempt))
                .map_err(failed),
        }
    }
}

/// The folder of this attempt's writes, empty, and no older ones of the container beside it.
fn fresh_upper(dirs: &PodDirs, request: &Request<'_>) -> Result<OwnedFd, IsolatorError> {
    let failed = |e| IsolatorError::io(NAME, "cannot make the container's upper layer", e);
    let parent = ensure_dir(&dirs.data, "upper", 0o755, None).map_err(failed)?;
    if let Some(name) = request.upper {
        return ensure_dir(&parent, name, 0o755, None).map_err(failed);
    }
    remove_uppers(&parent, request.index, None).map_err(failed)?;
    let name = format!("c{}.{}", request.index, request.attempt);
    ensure_dir(&parent, &name, 0o755, None).map_err(failed)
}

/// `/tmp` and `/var/tmp` of a container without an image: on disk and within its limit, fresh for each start.
fn temporary(
    thread: &MountThread,
    folder: &OwnedFd,
    idmap: Option<BorrowedFd<'_>>,
    launch: &mut Launch,
) -> Result<(), IsolatorError> {
    for (name, target) in [("tmp", "/tmp"), ("var-tmp", "/var/tmp")] {
        let source = ensure_dir(folder, name, 0o1777, None)
            .map_err(|e| IsolatorError::io(NAME, format_args!("cannot make the container's {target}"), e))?;
        let attributes = Attributes { nosuid: true, nodev: true, idmap, ..Attributes::default() };
        push_clone(thread, source, target, TargetKind::Directory, attributes, launch)?;
    }
    Ok(())
}

fn no_range() -> String {
    "this node has no id range for user namespaces; set one in its configuration, or switch userNamespace off"
        .to_owned()
}

/// Removes the folders of a container's attempts up to `last`; all of them when none is given.
fn remove_uppers(parent: &OwnedFd, index: usize, last: Option<u32>) -> std::io::Result<()> {
    let prefix = format!("c{index}.");
    let mut old = Vec::new();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    for entry in Dir::new(rustix::fs::openat(parent, ".", flags, Mode::empty())?)? {
        let entry = entry?;
        let name = entry.file_name();
        let attempt =
            name.to_str().ok().and_then(|name| name.strip_prefix(&prefix)).and_then(|n| n.parse::<u32>().ok());
        if attempt.is_some_and(|attempt| last.is_none_or(|last| attempt <= last)) {
            old.push(name.to_owned());
        }
    }
    for name in old {
        walk::remove_below(parent, &name)?;
    }
    Ok(())
}

/// The files that the pod's network wrote for `/etc`.
fn network_files(dirs: &PodDirs) -> Result<Vec<(&'static str, OwnedFd)>, IsolatorError> {
    let mut found = Vec::new();
    for name in host::NETWORK_FILES {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match openat2(&dirs.host, format!("etc/{name}"), flags, Mode::empty(), resolve) {
            Ok(file) => found.push((name, file)),
            Err(rustix::io::Errno::NOENT) => {}
            Err(e) => {
                return Err(IsolatorError::io(NAME, format_args!("cannot open etc/{name} of the pod's folder"), e));
            }
        }
    }
    Ok(found)
}

/// The user that the container asks for, else its pod, else its image.
fn resolve_user(root: &OwnedFd, request: &Request<'_>, image: &str) -> Result<User, IsolatorError> {
    let own = request.pod.containers[request.index].user.as_deref();
    let field = match (own, request.pod.user.as_deref()) {
        (Some(_), _) => format!("containers[{}].user", request.index),
        (None, Some(_)) => "user".to_owned(),
        (None, None) => format!("containers[{}].user (from the image)", request.index),
    };
    user::resolve(root, own.or(request.pod.user.as_deref()).unwrap_or(image))
        .map_err(|message| IsolatorError::new(NAME, format!("{field}: {message}")))
}

/// The container's sandbox, made when missing, owned by its user.
fn open_sandbox(dirs: &PodDirs, name: &str, user: &User) -> Result<OwnedFd, IsolatorError> {
    let failed = |e| IsolatorError::io(NAME, format_args!("cannot make the sandbox of {name}"), e);
    let name_c = CString::new(name).map_err(|e| failed(e.into()))?;
    if name.contains('/') || name_c.as_bytes() == b".." || name_c.as_bytes() == b"." {
        return Err(IsolatorError::new(NAME, format!("{name:?} cannot be the name of a sandbox")));
    }
    let parent = ensure_dir(&dirs.data, "sandbox", 0o755, None).map_err(failed)?;
    ensure_dir(parent, name, 0o750, Some((user.uid, user.gid))).map_err(failed)
}

fn push_clone(
    thread: &MountThread,
    source: OwnedFd,
    target: &str,
    create: TargetKind,
    attributes: Attributes<'_>,
    launch: &mut Launch,
) -> Result<(), IsolatorError> {
    let clone = thread
        .clone_tree(source, Path::new(""), false, attributes)
        .map_err(|e| IsolatorError::io(NAME, format_args!("cannot clone what becomes {target}"), e))?;
    let fd = launch.push_fd(clone);
    launch.plan.mounts.push(MountStep::Attach { fd, target: target.as_bytes().to_vec(), create });
    Ok(())
}
