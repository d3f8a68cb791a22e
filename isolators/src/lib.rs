//! Isolators: what stands between a container, its neighbours and the host.
//!
//! One module for each isolator, one trait ([`Isolator`]) with the verbs of Mesos. `prepare` runs before the first
//! instruction of the container: it writes limits into the container's (already made) cgroup and adds to the
//! [`Launch`] that pod-init's spare process will carry out. Nothing here is async and nothing here spawns tasks; the
//! daemon calls these functions from its blocking threads.
//!
//! - [`cgroup`]: the driver for v1, v2 and hybrid trees, and the controllers (cpu, cpuset, memory, pids, io, hugetlb).
//! - [`mounter`]: threads with a private mount namespace, in which every mount is prepared as a detached descriptor.
//! - [`rootfs`], [`volumes`], [`disk`]: the container's files and the limit on what it writes.
//! - [`seccomp`], [`capabilities`], [`rlimits`], [`namespaces`], [`devices`]: what its processes may do.
//! - [`network`]: host, bridge and CNI networks of a pod.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use agentd_api::pod::{Container, PodSpec};
use agentd_api::problem::Violation;
use agentd_launcher::plan::ContainerPlan;

pub mod capabilities;
pub mod cgroup;
pub mod devices;
pub mod disk;
pub mod mounter;
pub mod namespaces;
pub mod network;
pub mod rlimits;
pub mod rootfs;
pub mod seccomp;
pub mod volumes;

/// Why an isolator could not do its work: one line that names the isolator, what was found and the cure.
#[derive(Debug, thiserror::Error)]
#[error("isolator {isolator}: {message}")]
pub struct IsolatorError {
    /// Name of the isolator, e.g. `cgroup/memory`.
    pub isolator: &'static str,
    /// What was found, what was expected, and the cure.
    pub message: String,
    /// The error of the operating system, if one caused it.
    #[source]
    pub source: Option<std::io::Error>,
}

impl IsolatorError {
    /// An error without a cause in the operating system.
    pub fn new(isolator: &'static str, message: impl Into<String>) -> Self {
        Self { isolator, message: message.into(), source: None }
    }

    /// An error caused by a failed system call; its text is appended to `message`.
    pub fn io(isolator: &'static str, message: impl std::fmt::Display, source: impl Into<std::io::Error>) -> Self {
        let source = source.into();
        Self { isolator, message: format!("{message}: {source}"), source: Some(source) }
    }
}

/// The launch that isolators fill in: the plan and the descriptors that it names by index.
#[derive(Debug, Default)]
pub struct Launch {
    /// What the container's first process does.
    pub plan: ContainerPlan,
    /// Descriptors sent along.
    pub fds: Vec<OwnedFd>,
}

impl Launch {
    /// Adds a descriptor and returns its index.
    pub fn push_fd(&mut self, fd: OwnedFd) -> u32 {
        self.fds.push(fd);
        (self.fds.len() - 1) as u32
    }
}

/// The image of a container, unpacked.
#[derive(Debug, Clone, Default)]
pub struct ImageRoot {
    /// Unpacked layers on disk, the **topmost first** (overlayfs order).
    pub layers: Vec<PathBuf>,
    /// `Entrypoint` of the image.
    pub entrypoint: Vec<String>,
    /// `Cmd` of the image.
    pub cmd: Vec<String>,
    /// `Env` of the image, `NAME=value`.
    pub env: Vec<String>,
    /// `User` of the image, possibly empty.
    pub user: String,
    /// `WorkingDir` of the image, possibly empty.
    pub workdir: String,
}

/// What an isolator knows of the container at hand.
#[derive(Debug, Clone, Copy)]
pub struct ContainerContext<'a> {
    /// The pod.
    pub pod: &'a PodSpec,
    /// The container.
    pub container: &'a Container,
    /// Id of the pod's instance on this host (also the name of its cgroup and folders).
    pub instance: &'a str,
    /// Index of the container in the pod.
    pub slot: u32,
    /// Number of this start of the container, from 1.
    pub attempt: u32,
    /// Its cgroup.
    pub cgroup: &'a cgroup::ContainerCgroup,
    /// The pod's folder on the host's disk, below the state folder: holds `sandbox/`, `volumes/`, `upper/`.
    pub pod_dir: &'a Path,
    /// The container's image; none for the host's own files.
    pub image: Option<&'a ImageRoot>,
    /// CPUs given to this container alone (`agentd.exclusiveCores`), else empty.
    pub exclusive_cpus: &'a [u32],
}

/// What a container has used.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// CPU time, nanoseconds.
    pub cpu_ns: u64,
    /// Memory in use, bytes.
    pub memory_bytes: u64,
    /// Highest memory use, bytes, where the host tells it.
    pub memory_peak_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
    /// Number of processes killed for want of memory.
    pub oom_kills: u64,
    /// Periods in which the container was held back by its CPU quota.
    pub throttled_periods: u64,
}

/// One kind of isolation. Each verb is idempotent: after a crash agentd calls it again.
pub trait Isolator: Send + Sync + std::fmt::Debug {
    /// Name, e.g. `cgroup/memory`.
    fn name(&self) -> &'static str;

    /// Names every field of the pod that this host cannot honour. Changes nothing.
    fn check(&self, _pod: &PodSpec, _violations: &mut Vec<Violation>) {}

    /// Readies the host for one start of the container and adds to its launch.
    fn prepare(&self, _container: &ContainerContext<'_>, _launch: &mut Launch) -> Result<(), IsolatorError> {
        Ok(())
    }

    /// Applies changed resources of a running container.
    fn update(&self, _container: &ContainerContext<'_>) -> Result<(), IsolatorError> {
        Ok(())
    }

    /// Adds what the container has used.
    fn usage(&self, _container: &ContainerContext<'_>, _usage: &mut Usage) -> Result<(), IsolatorError> {
        Ok(())
    }

    /// Removes what `prepare` left on the host for this container.
    fn cleanup(&self, _container: &ContainerContext<'_>) -> Result<(), IsolatorError> {
        Ok(())
    }
}
