//! Isolator `disk`: a limit on what a pod writes to disk: sandboxes, ephemeral volumes and the writable layers of its
//! containers together.
//!
//! The strongest means that the host has is used: a project quota where the file system enforces them, else, for pods
//! that set a limit themselves, a file system of the limit's size in a file ([`loopback`]), else the meter: agentd
//! measures every few seconds ([`Disk::measure`]) and ends the pod that is over its limit. What was chosen is kept in
//! `disk.json` in the pod's folder.
//!
//! With a loop file the pod's data is not visible below its folder in the host's mount namespace; everything that
//! reads or writes it goes through [`Disk::with_pod_dir`] or [`Disk::open_pod_dir`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use agentd_api::pod::PodSpec;
use agentd_api::problem::Violation;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::mounter::{MountThread, Mounter, ensure_dir, open_dir};
use crate::{ContainerContext, Isolator, IsolatorError, Launch};

pub mod loopback;
pub mod quota;
mod record;
pub mod walk;

use record::{Record, boot_id, read_project, read_record, write_file, write_record};
pub use walk::{DiskUse, remove_tree};

const NAME: &str = "disk";
const MIB: f64 = 1024.0 * 1024.0;
/// Folders of the pod's data.
const FOLDERS: [&str; 3] = ["sandbox", "volumes", "upper"];

/// How limits are enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// The strongest that the host has.
    #[default]
    Auto,
    /// Project quota; pods with a limit are refused where the file system has none.
    Quota,
    /// Loop files; pods with a limit are refused where they cannot be made.
    Loop,
    /// Measuring only.
    Meter,
}

/// Settings of the isolator.
#[derive(Debug, Clone)]
pub struct DiskSettings {
    /// How limits are enforced.
    pub enforcement: Enforcement,
    /// Limit in bytes for pods that set none.
    pub default_limit: Option<u64>,
    /// Folder for loop files and project ids, on the same disk as the pods' folders.
    pub folder: PathBuf,
}

/// A pod's limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Bytes.
    pub bytes: u64,
    /// Whether the pod asked for it (else it is the node's default).
    pub explicit: bool,
}

/// What enforces a pod's limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskKind {
    /// Nothing: there is no limit.
    Unlimited,
    /// The kernel, by a project quota with this id.
    Quota(u32),
    /// The kernel, by the size of a loop file.
    Loop,
    /// agentd, by measuring.
    Meter,
}

/// The pod's folders, opened in the mount namespace of one of the mounter's threads.
#[derive(Debug)]
pub struct PodDirs {
    /// The folder with `sandbox/`, `volumes/` and `upper/`.
    pub data: OwnedFd,
    /// The pod's folder on the host's disk, with `etc/`. The same as `data` unless the pod has a loop file.
    pub host: OwnedFd,
}

/// The isolator.
#[derive(Debug)]
pub struct Disk {
    mounter: Arc<Mounter>,
    settings: DiskSettings,
    /// Held while a project id is chosen and written down.
    projects: Mutex<()>,
}

impl Disk {
    /// The isolator; makes its folder.
    pub fn new(mounter: Arc<Mounter>, settings: DiskSettings) -> Result<Self, IsolatorError> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&settings.folder).map_err(|e| {
            IsolatorError::io(NAME, format_args!("cannot make the folder {}", settings.folder.display()), e)
        })?;
        Ok(Self { mounter, settings, projects: Mutex::new(()) })
    }

    /// The limit of a pod: the sum over its containers and its executor when any container sets one, else the node's
    /// default.
    pub fn limit(&self, pod: &PodSpec) -> Option<Limit> {
        let containers: f64 = pod.containers.iter().map(|container| container.resources.disk).sum();
        if containers > 0.0 {
            let bytes = ((containers + pod.executor_resources.disk) * MIB) as u64;
            return Some(Limit { bytes, explicit: true });
        }
        self.settings.default_limit.map(|bytes| Limit { bytes, explicit: false })
    }

    /// Sets up the limit of an instance whose folder exists. To be called before anything is written into the pod's
    /// folders; calling it again changes nothing.
    pub fn prepare_pod(&self, instance: &str, pod: &PodSpec, pod_dir: &Path) -> Result<DiskKind, IsolatorError> {
        let kept = read_record(pod_dir)?;
        let boot = boot_id();
        let record = if let Some(record) = kept {
            record
        } else {
            let limit = self.limit(pod);
            let record = Record { kind: self.choose(instance, pod_dir, limit)?, bytes: limit.map(|l| l.bytes), boot };
            write_record(pod_dir, &record)?;
            record
        };
        match (record.kind, record.bytes) {
            (DiskKind::Quota(id), Some(bytes)) => set_quota(pod_dir, id, bytes)?,
            (DiskKind::Loop, Some(bytes)) => self.ready_image(instance, pod_dir, &record, bytes)?,
            _ => {}
        }
        if record.kind == DiskKind::Loop {
            // reached only where the loop file is mounted
            self.mounter
                .run(|thread| self.with_pod_dir(thread, instance, pod_dir, |dirs| make_folders(dirs.data.as_fd())))?;
        } else {
            let dir = open_dir(pod_dir)
                .map_err(|e| IsolatorError::io(NAME, format_args!("cannot open {}", pod_dir.display()), e))?;
            make_folders(dir.as_fd())?;
        }
        Ok(record.kind)
    }

    fn choose(&self, instance: &str, pod_dir: &Path, limit: Option<Limit>) -> Result<DiskKind, IsolatorError> {
        let Some(limit) = limit else { return Ok(DiskKind::Unlimited) };
        let wanted = self.settings.enforcement;
        if matches!(wanted, Enforcement::Auto | Enforcement::Quota) {
            if open_for_reading(pod_dir).is_ok_and(|dir| quota::enforced(&dir)) {
                return Ok(DiskKind::Quota(self.claim_project(instance)?));
            }
            if wanted == Enforcement::Quota {
                return Err(IsolatorError::new(NAME, no_quota(pod_dir)));
            }
        }
        if wanted == Enforcement::Loop || (wanted == Enforcement::Auto && limit.explicit) {
            match loopback::missing() {
                None => return Ok(DiskKind::Loop),
                Some(missing) if wanted == Enforcement::Loop => {
                    return Err(IsolatorError::new(
                        NAME,
                        format!("loop files were asked for, but {missing}; or set the enforcement to auto"),
                    ));
                }
                Some(missing) => {
                    tracing::warn!(instance, "disk limit is enforced by measuring only, as {missing}");
                }
            }
        }
        Ok(DiskKind::Meter)
    }

    fn ready_image(&self, instance: &str, pod_dir: &Path, record: &Record, bytes: u64) -> Result<(), IsolatorError> {
        let image = self.image(instance);
        loopback::create(&image, bytes)
            .map_err(|e| IsolatorError::io(NAME, format_args!("cannot make the loop file {}", image.display()), e))?;
        let boot = boot_id();
        if record.boot == boot {
            return Ok(());
        }
        loopback::repair(&image).map_err(|e| {
            let cure = "remove the instance to start it with an empty disk";
            IsolatorError::io(NAME, format_args!("cannot repair the loop file {} ({cure})", image.display()), e)
        })?;
        write_record(pod_dir, &Record { boot, ..record.clone() })
    }

    /// Chooses a project id and writes it down before it is used, so that it can be given back after a crash.
    fn claim_project(&self, instance: &str) -> Result<u32, IsolatorError> {
        let _held = self.projects.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = self.settings.folder.display();
        let failed = |e| IsolatorError::io(NAME, format_args!("cannot keep a project id in {folder}"), e);
        let mut taken = Vec::new();
        for entry in std::fs::read_dir(&self.settings.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "project")
                && let Some(id) = read_project(&path)
            {
                if path.file_stem().is_some_and(|stem| stem == instance) {
                    return Ok(id);
                }
                taken.push(id);
            }
        }
        let id = quota::project_id(instance, &taken);
        write_file(&self.project(instance), id.to_string().as_bytes()).map_err(failed)?;
        Ok(id)
    }

    fn image(&self, instance: &str) -> PathBuf {
        self.settings.folder.join(format!("{instance}.img"))
    }

    fn project(&self, instance: &str) -> PathBuf {
        self.settings.folder.join(format!("{instance}.project"))
    }

    /// Calls `work` with the pod's folders opened in the thread's mount namespace; a loop file is mounted for the time
    /// of the call. What `work` cloned or opened keeps it mounted as long as it lives.
    pub fn with_pod_dir<T>(
        &self,
        thread: &MountThread,
        instance: &str,
        pod_dir: &Path,
        work: impl FnOnce(&PodDirs) -> Result<T, IsolatorError>,
    ) -> Result<T, IsolatorError> {
        let failed = |e| IsolatorError::io(NAME, format_args!("cannot open the pod's folder {}", pod_dir.display()), e);
        let host = open_dir(pod_dir).map_err(failed)?;
        if read_record(pod_dir)?.is_none_or(|record| record.kind != DiskKind::Loop) {
            let data = host.try_clone().map_err(failed)?;
            return work(&PodDirs { data, host });
        }
        let image = self.image(instance);
        let failed = |e| IsolatorError::io(NAME, format_args!("cannot mount the loop file {}", image.display()), e);
        let mount = loopback::mount(thread, &image).map_err(failed)?;
        let _attached = thread.attach(&mount).map_err(failed)?;
        work(&PodDirs { data: mount, host })
    }

    /// The folder with the pod's `sandbox/`, `volumes/` and `upper/`. Reach what lies below through
    /// `/proc/self/fd/<n>/…` or with the `*at` calls; while it is open, a loop file stays mounted.
    pub fn open_pod_dir(&self, instance: &str, pod_dir: &Path) -> Result<OwnedFd, IsolatorError> {
        self.mounter.run(|thread| {
            self.with_pod_dir(thread, instance, pod_dir, |dirs| {
                reopen(&dirs.data).map_err(|e| IsolatorError::io(NAME, "cannot open the pod's data", e))
            })
        })
    }

    /// What the pod uses of its limit. The meter stops counting once it is above the limit.
    pub fn measure(&self, instance: &str, pod_dir: &Path) -> Result<DiskUse, IsolatorError> {
        let failed = |e| IsolatorError::io(NAME, format_args!("cannot measure {}", pod_dir.display()), e);
        let record = read_record(pod_dir)?;
        let limit = record.as_ref().and_then(|record| record.bytes);
        match record.map(|record| record.kind) {
            Some(DiskKind::Quota(id)) => {
                let dir = open_for_reading(pod_dir).map_err(failed)?;
                let (bytes, inodes) = quota::usage(&dir, id).map_err(failed)?;
                Ok(DiskUse { bytes, inodes })
            }
            Some(DiskKind::Loop) => {
                let data = self.open_pod_dir(instance, pod_dir)?;
                let stat = rustix::fs::fstatfs(&data).map_err(|e| failed(e.into()))?;
                Ok(DiskUse {
                    bytes: (stat.f_blocks - stat.f_bfree) * stat.f_bsize as u64,
                    inodes: stat.f_files - stat.f_ffree,
                })
            }
            _ => measure_folders(pod_dir, limit.unwrap_or(u64::MAX)).map_err(failed),
        }
    }

    /// Whether the pod is above the limit that only the meter enforces; then what it uses and the limit.
    pub fn over_limit(&self, instance: &str, pod_dir: &Path) -> Result<Option<(DiskUse, u64)>, IsolatorError> {
        match read_record(pod_dir)? {
            Some(Record { kind: DiskKind::Meter, bytes: Some(limit), .. }) => {
                let used = self.measure(instance, pod_dir)?;
                Ok((used.bytes > limit).then_some((used, limit)))
            }
            _ => Ok(None),
        }
    }

    /// Gives back what enforces the limit. The pod's folder itself is removed by [`remove_tree`] before or after.
    pub fn cleanup_pod(&self, instance: &str, pod_dir: &Path) -> Result<(), IsolatorError> {
        self.release(instance, Some(pod_dir))
    }

    /// Removes what instances other than `known` left.
    pub fn sweep(&self, known: &[&str]) -> Result<(), IsolatorError> {
        let failed = |e| IsolatorError::io(NAME, format_args!("cannot sweep {}", self.settings.folder.display()), e);
        for entry in std::fs::read_dir(&self.settings.folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some((instance, kind)) = name.to_str().and_then(|name| name.split_once('.')) else { continue };
            if matches!(kind, "img" | "img.tmp" | "project" | "tmp") && !known.contains(&instance) {
                self.release(instance, None)?;
            }
        }
        Ok(())
    }

    fn release(&self, instance: &str, pod_dir: Option<&Path>) -> Result<(), IsolatorError> {
        let project = self.project(instance);
        if let Some(id) = read_project(&project) {
            // the quota is of the whole file system: any folder of it will do when the pod's is gone
            let place = pod_dir.filter(|dir| dir.exists()).unwrap_or(&self.settings.folder);
            let cleared = open_for_reading(place).and_then(|dir| quota::limit(&dir, id, 0, 0));
            match cleared.as_ref().map_err(io::Error::raw_os_error) {
                // quotas were switched off meanwhile
                Ok(()) | Err(Some(libc::ESRCH | libc::ENOSYS | libc::ENOTTY)) => {}
                Err(_) => {
                    return cleared
                        .map_err(|e| IsolatorError::io(NAME, format_args!("cannot give back project quota {id}"), e));
                }
            }
        }
        for file in [
            project.clone(),
            project.with_extension("tmp"),
            self.image(instance),
            self.image(instance).with_extension("img.tmp"),
        ] {
            match std::fs::remove_file(&file) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(IsolatorError::io(NAME, format_args!("cannot remove {}", file.display()), e));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Isolator for Disk {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, pod: &PodSpec, violations: &mut Vec<Violation>) {
        if self.limit(pod).is_none_or(|limit| !limit.explicit) {
            return;
        }
        let problem = match self.settings.enforcement {
            Enforcement::Quota => match open_for_reading(&self.settings.folder) {
                Ok(folder) if quota::enforced(&folder) => None,
                _ => Some(no_quota(&self.settings.folder)),
            },
            Enforcement::Loop => loopback::missing(),
            Enforcement::Auto | Enforcement::Meter => None,
        };
        let Some(problem) = problem else { return };
        for (index, container) in pod.containers.iter().enumerate() {
            if container.resources.disk > 0.0 {
                violations.push(Violation::new(format!("containers[{index}].resources.disk"), problem.clone()));
            }
        }
    }

    fn prepare(&self, container: &ContainerContext<'_>, _launch: &mut Launch) -> Result<(), IsolatorError> {
        self.prepare_pod(container.instance, container.pod, container.pod_dir).map(drop)
    }
}

/// Counts `sandbox/`, `volumes/` and `upper/` of a pod without a loop file, up to a little more than `enough` bytes.
pub fn measure_folders(pod_dir: &Path, enough: u64) -> io::Result<DiskUse> {
    let dir = open_dir(pod_dir)?;
    let mut total = DiskUse::default();
    for folder in FOLDERS {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = match rustix::fs::openat(&dir, folder, flags, Mode::empty()) {
            Ok(folder) => folder,
            Err(rustix::io::Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        let used = walk::measure(&folder, enough.saturating_sub(total.bytes))?;
        total = DiskUse { bytes: total.bytes + used.bytes, inodes: total.inodes + used.inodes };
    }
    Ok(total)
}

fn set_quota(pod_dir: &Path, id: u32, bytes: u64) -> Result<(), IsolatorError> {
    let failed = |e: io::Error| {
        IsolatorError::io(NAME, format_args!("cannot set project quota {id} on {}", pod_dir.display()), e)
    };
    let dir = open_for_reading(pod_dir).map_err(failed)?;
    quota::limit(&dir, id, bytes, (bytes / 4096).max(4096)).map_err(failed)?;
    for folder in FOLDERS {
        drop(ensure_dir(&dir, folder, 0o755, None).map_err(failed)?);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(&dir, folder, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        quota::assign(&folder, id).map_err(failed)?;
    }
    Ok(())
}

fn make_folders(data: BorrowedFd<'_>) -> Result<(), IsolatorError> {
    for folder in FOLDERS {
        ensure_dir(data, folder, 0o755, None)
            .map_err(|e| IsolatorError::io(NAME, format_args!("cannot make the pod's folder {folder}"), e))?;
    }
    Ok(())
}

fn no_quota(path: &Path) -> String {
    format!(
        "the file system of {} does not enforce project quotas; mount it with prjquota (ext4: after tune2fs -O \
         project,quota) or set the enforcement to auto",
        path.display()
    )
}

fn open_for_reading(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn reopen(dir: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}
