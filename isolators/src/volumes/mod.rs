//! Isolator `volumes`: what a container mounts beside its root.
//!
//! - Ephemeral volumes are folders `volumes/<name>` of the pod's data, shared by its containers, within its disk limit.
//! - Volumes in memory and volumes of secrets are tmpfs that pod-init holds for the pod ([`Volumes::pod_mounts`]), so
//!   that they outlive agentd and restarts of a container.
//! - Host volumes are clones of one folder or file of the host ([`host`]), without what is mounted below it.
//!
//! A sub path is opened below the volume without following any link, and what was opened is what is cloned: a link
//! that another container plants or swaps meanwhile leads nowhere.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use agentd_api::pod::{PodSpec, Volume, VolumeMount};
use agentd_api::problem::Violation;
use agentd_launcher::plan::{MountStep, TargetKind};
use rustix::fs::{FileType, Mode, OFlags, openat2};

use crate::disk::{Disk, PodDirs};
use crate::mounter::idmap::IdRange;
use crate::mounter::{Attributes, BENEATH, MountThread, Mounter, ensure_dir, ensure_path, real_path};
use crate::rootfs::SANDBOX;
use crate::{ContainerContext, Isolator, IsolatorError, Launch};

pub mod host;
mod memory;

pub use host::HostPaths;
pub use memory::SecretVolume;

const NAME: &str = "volumes";
/// Places of a container that agentd itself fills.
const RESERVED: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The isolator.
#[derive(Debug)]
pub struct Volumes {
    mounter: Arc<Mounter>,
    disk: Arc<Disk>,
    ids: Option<Arc<IdRange>>,
    paths: HostPaths,
    /// See [`Volumes::close`].
    closed: RwLock<Vec<PathBuf>>,
}

/// What a volume is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind<'a> {
    Host(&'a str),
    /// A tmpfs of this many MiB.
    Memory(u64),
    Secrets,
    Ephemeral,
}

fn kind(volume: &Volume) -> Kind<'_> {
    if let Some(path) = &volume.host {
        Kind::Host(path)
    } else if !volume.agentd.secrets.is_empty() {
        Kind::Secrets
    } else if let Some(mib) = volume.agentd.tmpfs_mib {
        Kind::Memory(mib)
    } else {
        Kind::Ephemeral
    }
}

impl Volumes {
    /// The isolator. `ids` is the node's range for user namespaces.
    pub fn new(mounter: Arc<Mounter>, disk: Arc<Disk>, ids: Option<Arc<IdRange>>, paths: HostPaths) -> Self {
        Self { mounter, disk, ids, paths, closed: RwLock::default() }
    }

    /// Folders out of which no link leads: a volume whose path is written as one in them has to end up in them. They are
    /// those to which some may not add but through which their pods may write, so that a link that is put there between
    /// the check of a pod and a start of it, however late, gives no more. Takes effect with the next mount.
    pub fn close(&self, folders: Vec<PathBuf>) {
        *self.closed.write().unwrap_or_else(PoisonError::into_inner) = folders;
    }

    /// Opens a path of the host.
    fn open_host(&self, path: &str) -> Result<(OwnedFd, TargetKind), String> {
        let opened = self.paths.open(path)?;
        let closed = self.closed.read().unwrap_or_else(PoisonError::into_inner);
        for folder in closed.iter() {
            // the folder itself may be named by a path with links
            let real_folder = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.clone());
            if ![folder, &real_folder].iter().any(|folder| Path::new(path).starts_with(folder)) {
                continue;
            }
            let real = real_path(&opened.0).map_err(|error| format!("cannot open {path}: {error}"))?;
            if !real.starts_with(&real_folder) {
                let (real, folder) = (real.display(), folder.display());
                return Err(format!(
                    "{path} leads to {real}, out of {folder}, to which the access list limits somebody's pods; name \
                     {real} itself"
                ));
            }
        }
        Ok(opened)
    }

    /// The mounts that pod-init is to hold for the pod, by name, before its first container starts. `secrets` has the
    /// files of every volume of secrets.
    pub fn pod_mounts(&self, pod: &PodSpec, secrets: &[SecretVolume]) -> Result<Vec<(String, OwnedFd)>, IsolatorError> {
        let host_id = |id: u32| match (&self.ids, pod.agentd.user_namespace) {
            (Some(ids), true) => ids.host_id(id).unwrap_or(id),
            _ => id,
        };
        let wanted: Vec<(usize, &Volume)> = pod
            .volumes
            .iter()
            .enumerate()
            .filter(|(_, volume)| matches!(kind(volume), Kind::Memory(_) | Kind::Secrets))
            .collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        self.mounter.run(|thread| {
            let mut mounts = Vec::with_capacity(wanted.len());
            for (index, volume) in wanted {
                let failed = |e| IsolatorError::io(NAME, format_args!("volumes[{index}]: cannot make its tmpfs"), e);
                let mount = if let Kind::Memory(mib) = kind(volume) {
                    memory::scratch(thread, mib, host_id(0)).map_err(failed)?
                } else {
                    let content = secrets.iter().find(|content| content.name == volume.name).ok_or_else(|| {
                        IsolatorError::new(
                            NAME,
                            format!("volumes[{index}].agentd.secrets: their content was not given"),
                        )
                    })?;
                    memory::secrets(thread, content, host_id(content.uid), host_id(content.gid)).map_err(failed)?
                };
                mounts.push((volume.name.clone(), mount));
            }
            Ok(mounts)
        })
    }

    /// The work of [`Isolator::prepare`] for container `slot` of the pod.
    pub fn build(
        &self,
        pod: &PodSpec,
        slot: u32,
        instance: &str,
        pod_dir: &Path,
        launch: &mut Launch,
    ) -> Result<(), IsolatorError> {
        let slot = slot as usize;
        let Some(container) = pod.containers.get(slot).filter(|container| !container.volume_mounts.is_empty()) else {
            return Ok(());
        };
        let idmap = match (&self.ids, pod.agentd.user_namespace) {
            (Some(ids), true) => Some(ids.namespace(&self.mounter)?),
            _ => None,
        };
        // parents before what is mounted inside them
        let mut mounts = Vec::new();
        for (index, mount) in container.volume_mounts.iter().enumerate() {
            let field = format!("containers[{slot}].volumeMounts[{index}]");
            let target = target(&mount.mount_path)
                .map_err(|message| IsolatorError::new(NAME, format!("{field}.mountPath: {message}")))?;
            mounts.push((target, field, mount));
        }
        mounts.sort_by_key(|(target, ..)| target.matches('/').count());
        self.mounter.run(|thread| {
            self.disk.with_pod_dir(thread, instance, pod_dir, |dirs| {
                for (target, field, mount) in mounts {
                    let mount = (field.as_str(), mount, target);
                    self.mount(thread, dirs, (pod, &container.name), mount, idmap.as_ref().map(AsFd::as_fd), launch)?;
                }
                Ok(())
            })
        })
    }

    fn mount(
        &self,
        thread: &MountThread,
        dirs: &PodDirs,
        (pod, container): (&PodSpec, &str),
        (field, mount, target): (&str, &VolumeMount, String),
        idmap: Option<BorrowedFd<'_>>,
        launch: &mut Launch,
    ) -> Result<(), IsolatorError> {
        let refused = |place: &str, message: String| IsolatorError::new(NAME, format!("{place}: {message}"));
        let (index, volume) =
            pod.volumes.iter().enumerate().find(|(_, volume)| volume.name == mount.name).ok_or_else(|| {
                refused(
                    &format!("{field}.name"),
                    format!("the pod has no volume {:?}; declare it in volumes", mount.name),
                )
            })?;
        let sub_path = mount.agentd.sub_path.as_deref().unwrap_or_default();
        let sub_field = format!("{field}.agentd.subPath");
        check_sub_path(sub_path).map_err(|message| refused(&sub_field, message))?;
        let (source, create) = match kind(volume) {
            volume_kind @ (Kind::Memory(_) | Kind::Secrets) => {
                let one_file = volume_kind == Kind::Secrets && !sub_path.is_empty();
                let create = if one_file { TargetKind::File } else { TargetKind::Directory };
                place_in_sandbox(dirs, container, &target, create);
                launch.plan.mounts.push(MountStep::Held {
                    name: volume.name.clone().into_bytes(),
                    sub_path: sub_path.to_owned().into_bytes(),
                    target: target.into_bytes(),
                    read_only: mount.read_only || volume_kind == Kind::Secrets,
                });
                return Ok(());
            }
            Kind::Host(path) => {
                let (handle, create) =
                    self.open_host(path).map_err(|message| refused(&format!("volumes[{index}].host"), message))?;
                if sub_path.is_empty() {
                    (handle, create)
                } else {
                    let (handle, create) = open_sub_path(&handle, sub_path)
                        .map_err(|e| refused(&sub_field, sub_path_problem(sub_path, &e, "create it on the host")))?;
                    (handle, create)
                }
            }
            Kind::Ephemeral => {
                let failed = |e| IsolatorError::io(NAME, format_args!("volumes[{index}]: cannot make its folder"), e);
                let parent = ensure_dir(&dirs.data, "volumes", 0o755, None).map_err(failed)?;
                let folder = ensure_dir(parent, &volume.name, 0o777, None).map_err(failed)?;
                if sub_path.is_empty() {
                    (folder, TargetKind::Directory)
                } else {
                    ensure_path(&folder, sub_path, 0o777, (0, 0))
                        .and_then(|_| open_sub_path(&folder, sub_path))
                        .map_err(|e| refused(&sub_field, sub_path_problem(sub_path, &e, "correct the path")))?
                }
            }
        };
        place_in_sandbox(dirs, container, &target, create);
        let attributes = Attributes { read_only: mount.read_only, nosuid: true, nodev: true, noexec: false, idmap };
        let clone = thread
            .clone_tree(source, Path::new(""), false, attributes)
            .map_err(|e| IsolatorError::io(NAME, format_args!("{field}: cannot clone volume {:?}", mount.name), e))?;
        let fd = launch.push_fd(clone);
        launch.plan.mounts.push(MountStep::Attach { fd, target: target.into_bytes(), create });
        Ok(())
    }
}

impl Isolator for Volumes {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, pod: &PodSpec, violations: &mut Vec<Violation>) {
        for (index, volume) in pod.volumes.iter().enumerate() {
            if let Some(path) = &volume.host
                && let Err(message) = self.open_host(path)
            {
                violations.push(Violation::new(format!("volumes[{index}].host"), message));
            }
        }
        for (index, container) in pod.containers.iter().enumerate() {
            for (number, mount) in container.volume_mounts.iter().enumerate() {
                let field = format!("containers[{index}].volumeMounts[{number}]");
                if let Err(message) = target(&mount.mount_path) {
                    violations.push(Violation::new(format!("{field}.mountPath"), message));
                }
                if let Err(message) = check_sub_path(mount.agentd.sub_path.as_deref().unwrap_or_default()) {
                    violations.push(Violation::new(format!("{field}.agentd.subPath"), message));
                }
            }
        }
    }

    fn prepare(&self, container: &ContainerContext<'_>, launch: &mut Launch) -> Result<(), IsolatorError> {
        self.build(container.pod, container.slot, container.instance, container.pod_dir, launch)
    }
}

/// Where in the container a volume is mounted: relative paths are below the sandbox.
fn target(mount_path: &str) -> Result<String, String> {
    let full = if mount_path.starts_with('/') { mount_path.to_owned() } else { format!("{SANDBOX}/{mount_path}") };
    let mut parts = Vec::new();
    for part in full.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(format!("{mount_path:?} has a part ..; expected a path without")),
            part if part.contains('\0') => return Err("a zero byte; expected a path without".to_owned()),
            part => parts.push(part),
        }
    }
    let full = format!("/{}", parts.join("/"));
    if full == "/" || full == SANDBOX {
        return Err(format!("{mount_path:?} is the container's root or its sandbox; expected a path below"));
    }
    if RESERVED.iter().any(|reserved| Path::new(&full).starts_with(reserved)) {
        return Err(format!(
            "{mount_path:?} is in a part that agentd fills ({}); choose another path",
            RESERVED.join(", ")
        ));
    }
    Ok(full)
}

fn check_sub_path(path: &str) -> Result<(), String> {
    if path.starts_with('/') || path.contains('\0') || path.split('/').any(|part| part == "..") {
        return Err(format!("{path:?} leaves the volume; expected a relative path without .."));
    }
    Ok(())
}

fn sub_path_problem(path: &str, error: &io::Error, cure: &str) -> String {
    match error.raw_os_error() {
        Some(libc::ELOOP) => format!("{path:?} goes through a symbolic link, which is not followed; {cure}"),
        Some(libc::EXDEV) => format!("{path:?} leaves the volume or its file system; {cure}"),
        Some(libc::ENOENT) => format!("{path:?} does not exist in the volume; {cure}"),
        _ => format!("cannot open {path:?} in the volume: {error}; {cure}"),
    }
}

fn open_sub_path(volume: &OwnedFd, path: &str) -> io::Result<(OwnedFd, TargetKind)> {
    let handle = openat2(volume, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), BENEATH)?;
    match FileType::from_raw_mode(rustix::fs::fstat(&handle)?.st_mode) {
        FileType::Directory => Ok((handle, TargetKind::Directory)),
        FileType::RegularFile => Ok((handle, TargetKind::File)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a folder nor a regular file")),
    }
}

/// Makes the mount point of a volume inside the sandbox on disk, where pod-init could not: to the sandbox of a pod with a
/// user namespace the host's root is nobody. A path that a container has bent by a link is left to pod-init to judge.
fn place_in_sandbox(dirs: &PodDirs, container: &str, target: &str, create: TargetKind) {
    let Some(path) = target.strip_prefix(SANDBOX).and_then(|path| path.strip_prefix('/')) else { return };
    let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
    let made = ensure_path(&dirs.data, &format!("sandbox/{container}/{parents}"), 0o755, (0, 0));
    let Ok(parent) = made else { return };
    let _ = match create {
        TargetKind::Directory => ensure_dir(&parent, name, 0o755, None),
        TargetKind::File => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            openat2(&parent, name, flags, Mode::from_raw_mode(0o644), BENEATH).map_err(Into::into)
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_absolute_and_clean() {
        assert_eq!(target("/data//x/"), Ok("/data/x".to_owned()));
        assert_eq!(target("data"), Ok("/mnt/mesos/sandbox/data".to_owned()));
        for bad in
            ["/", "", ".", "/a/../b", "/proc", "/proc/self", "/sys/fs", "/dev/shm", "../x", "/mnt/mesos/sandbox/"]
        {
            assert!(target(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let volume =
            SecretVolume { name: "s".to_owned(), uid: 1, gid: 1, files: vec![("key".to_owned(), b"hunter2".to_vec())] };
        let shown = format!("{volume:?}");
        assert!(shown.contains("key") && !shown.contains("hunter2"), "{shown}");
        assert!(!shown.contains("104"), "bytes are shown: {shown}");
    }

    #[test]
    fn sub_paths_never_follow_links() {
        let folder = tempfile::tempdir().unwrap();
        let volume = crate::mounter::open_dir(folder.path()).unwrap();
        ensure_path(&volume, "a/b", 0o777, (0, 0)).unwrap();
        assert!(open_sub_path(&volume, "a/b").is_ok());
        std::os::unix::fs::symlink("/etc", folder.path().join("a/out")).unwrap();
        for path in ["a/out", "a/out/ssl", "a/out/new"] {
            assert!(
                ensure_path(&volume, path, 0o777, (0, 0)).and_then(|_| open_sub_path(&volume, path)).is_err(),
                "{path}"
            );
        }
        assert!(check_sub_path("a/../../b").is_err() && check_sub_path("/a").is_err());
        assert!(open_sub_path(&volume, "a/../../..").is_err());
    }
}
