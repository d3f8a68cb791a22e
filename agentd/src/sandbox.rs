//! Sandboxes: a pod-init with its cgroups, its folder on tmpfs and the spares that wait in it.
//!
//! The folder is made first, so that whatever follows has an owner on disk; [`Sandboxes::destroy`] undoes everything,
//! in any state, and may be repeated. The pool of ready ones is kept by [`crate::pool`].

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentd_isolators::cgroup::{ContainerCgroup, Driver};
use agentd_launcher::message::SpareKind;
use tokio::sync::mpsc;

use crate::failpoint;
use crate::launch::LaunchError;
use crate::launch::pod_init::{Notice, PodInit};
use crate::launch::seqpacket;
use crate::launch::zygote::Zygote;
use crate::layout::Layout;

/// How long the processes of a killed sandbox may take to go.
const DRAIN: Duration = Duration::from_secs(20);

/// How long one try at removing a sandbox takes before its processes are killed once more.
const DRAIN_TRY: Duration = Duration::from_secs(2);

/// How long a pod-init that is there may take to answer before it counts as dead.
const ANSWER: Duration = Duration::from_secs(30);

/// A pod-init that runs, and what belongs to it.
#[derive(Debug)]
pub struct Sandbox {
    /// Id of the sandbox, and of the instance that gets it.
    pub id: String,
    /// Its pod-init.
    pub init: Arc<PodInit>,
    /// Process id of its pod-init.
    pub init_pid: u32,
    /// Notices of its pod-init.
    pub notices: mpsc::UnboundedReceiver<Notice>,
    /// Spares that wait.
    pub spares: Vec<Spare>,
}

/// A process that waits for its plan in a container's cgroup.
#[derive(Debug, Clone)]
pub struct Spare {
    /// The container's cgroup.
    pub cgroup: Arc<ContainerCgroup>,
    /// Its process id.
    pub pid: u32,
}

impl Sandbox {
    /// Its network namespace.
    pub fn network_namespace(&self) -> std::io::Result<OwnedFd> {
        std::fs::File::open(format!("/proc/{}/ns/net", self.init_pid)).map(OwnedFd::from)
    }
}

/// Makes and destroys sandboxes.
#[derive(Debug)]
pub struct Sandboxes {
    layout: Layout,
    driver: Arc<Driver>,
    zygote: Zygote,
}

/// A new random id: 12 hexadecimal digits.
pub fn new_id() -> String {
    let mut id = uuid::Uuid::new_v4().simple().to_string();
    id.truncate(12);
    id
}

impl Sandboxes {
    /// With a zygote that starts at the first fork.
    pub fn new(layout: Layout, driver: Arc<Driver>) -> Result<Self, String> {
        driver.launcher_cgroup().map_err(|e| e.to_string())?;
        let place = Arc::clone(&driver);
        let zygote = Zygote::new(move |pid| place.attach_launcher(pid as i32).map_err(|e| e.to_string()))
            .map_err(|e| e.to_string())?;
        Ok(Self { layout, driver, zygote })
    }

    /// Makes a sandbox with `spares` spares.
    pub async fn create(self: &Arc<Self>, spares: u32) -> Result<Sandbox, String> {
        let id = new_id();
        match self.build(&id, spares).await {
            Ok(sandbox) => Ok(sandbox),
            Err(error) => {
                self.destroy(&id).await.ok();
                Err(error)
            }
        }
    }

    /// Makes the sandbox of an instance anew, after [`Sandboxes::release`].
    pub async fn rebuild(&self, id: &str) -> Result<Sandbox, String> {
        self.build(id, 0).await
    }

    async fn build(&self, id: &str, spares: u32) -> Result<Sandbox, String> {
        use std::os::unix::fs::DirBuilderExt;
        let folder = |path: std::path::PathBuf| {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(|e| format!("{}: {e}", path.display()))
        };
        folder(self.layout.pod(id))?;
        folder(self.layout.exits(id))?;
        failpoint::pass("sandbox.folder-made");
        let mut cgroup = self.driver.create_sandbox(id).map_err(|e| e.to_string())?;
        failpoint::pass("sandbox.cgroup-made");
        let path = self.layout.init_socket(id);
        let listener = seqpacket::listen(&path).map_err(|e| format!("listen on {}: {e}", path.display()))?;
        let exits = std::fs::File::open(self.layout.exits(id)).map_err(|e| format!("exits folder: {e}"))?;
        let mut forked = self.zygote.fork(listener.as_fd(), exits.as_fd(), cgroup.init_dir.as_fd(), true).await;
        if matches!(forked, Err(LaunchError::Gone)) {
            // A zygote that died may have forked first: two pod-inits must never listen on one socket. Nor may anything be
            // cloned into a cgroup that was once killed: Linux from 6.14 kills it at its birth.
            let (driver, name) = (Arc::clone(&self.driver), id.to_owned());
            cgroup = tokio::task::spawn_blocking(move || {
                remove_cgroups(&driver, &name)?;
                driver.create_sandbox(&name).map_err(|e| e.to_string())
            })
            .await
            .map_err(|e| e.to_string())??;
            forked = self.zygote.fork(listener.as_fd(), exits.as_fd(), cgroup.init_dir.as_fd(), true).await;
        }
        let forked = forked.map_err(|e| format!("fork a pod-init: {e}"))?;
        failpoint::pass("sandbox.forked");
        drop((listener, exits));
        let (sender, notices) = mpsc::unbounded_channel();
        let init = PodInit::connect(&path, sender).map_err(|e| format!("connect to the pod-init: {e}"))?;
        // the socket takes connections before the pod-init serves them: until it has answered, its namespaces may still be
        // the host's
        if spares == 0 {
            init.state().await.map_err(|e| format!("the pod-init did not start: {e}"))?;
        }
        let mut sandbox =
            Sandbox { id: id.to_owned(), init: Arc::new(init), init_pid: forked.pid, notices, spares: Vec::new() };
        for slot in 0..spares {
            let spare = self.spare(id, &sandbox.init, slot, SpareKind::Own).await?;
            sandbox.spares.push(spare);
        }
        failpoint::pass("sandbox.spare-made");
        Ok(sandbox)
    }

    /// Makes the cgroup of a container (or finds it) and a spare in it.
    pub async fn spare(&self, id: &str, init: &PodInit, slot: u32, kind: SpareKind) -> Result<Spare, String> {
        let cgroup = Arc::new(self.driver.create_container(id, slot).map_err(|e| e.to_string())?);
        let tasks = self.driver.task_files(&cgroup).map_err(|e| e.to_string())?;
        let pid = init.spare(slot, kind, cgroup.init_dir(), &tasks).await.map_err(|e| format!("fork a spare: {e}"))?;
        Ok(Spare { cgroup, pid })
    }

    /// Connects again to a sandbox found on disk. None if its pod-init is dead.
    pub async fn adopt(&self, id: &str) -> Option<(Sandbox, Vec<agentd_launcher::message::ProcessEntry>)> {
        // slow is not dead, nor is a daemon short of descriptors: what counts as dead is killed with its containers
        let deadline = Instant::now() + ANSWER;
        let (init, state, notices) = loop {
            let (sender, notices) = mpsc::unbounded_channel();
            let error = match PodInit::connect(&self.layout.init_socket(id), sender) {
                Ok(init) => match init.state().await {
                    Ok(state) => break (init, state, notices),
                    Err(error) => error,
                },
                Err(LaunchError::Gone) => return None,
                Err(error) => error,
            };
            if Instant::now() > deadline {
                tracing::error!(instance = id, "its pod-init does not answer and counts as dead: {error}");
                return None;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let sandbox =
            Sandbox { id: id.to_owned(), init: Arc::new(init), init_pid: state.pid, notices, spares: Vec::new() };
        Some((sandbox, state.processes))
    }

    /// Kills every process of a sandbox, removes its cgroups and its folder, except the checkpoint when `keep`. Blocking.
    fn clear(&self, id: &str, keep: bool) -> Result<(), String> {
        remove_cgroups(&self.driver, id)?;
        if keep {
            remove_any(&self.layout.init_socket(id))?;
            remove_any(&self.layout.exits(id))
        } else {
            self.remove_folder(id)
        }
    }

    fn remove_folder(&self, id: &str) -> Result<(), String> {
        remove_any(&self.layout.pod(id))
    }

    /// Ends the zygote; the next fork would start another.
    pub async fn close(&self) {
        self.zygote.close().await;
    }

    /// Removes everything of a sandbox but the instance's checkpoint. Blocking.
    pub fn release(&self, id: &str) -> Result<(), String> {
        self.clear(id, true)
    }

    /// Removes everything of a sandbox; of a released one only the checkpoint is left to remove.
    pub async fn destroy(self: &Arc<Self>, id: &str) -> Result<(), String> {
        if self.layout.checkpoint(id).exists()
            && !self.layout.init_socket(id).exists()
            && !self.layout.exits(id).exists()
        {
            return self.remove_folder(id);
        }
        let (this, id) = (Arc::clone(self), id.to_owned());
        tokio::task::spawn_blocking(move || this.clear(&id, false)).await.map_err(|e| e.to_string())?
    }
}

/// Removes a file or a folder; one that is not there is fine.
fn remove_any(path: &std::path::Path) -> Result<(), String> {
    let result = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match result {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(format!("{}: {e}", path.display())),
        _ => Ok(()),
    }
}

/// Kills every process of a sandbox and removes its cgroups. Blocking.
fn remove_cgroups(driver: &Driver, id: &str) -> Result<(), String> {
    let deadline = Instant::now() + DRAIN;
    loop {
        // the zygote of a daemon that was killed may fork once more after the first kill
        let this = deadline.min(Instant::now() + DRAIN_TRY);
        driver.kill_sandbox(id).map_err(|e| e.to_string())?;
        driver.wait_sandbox_empty(id, this).map_err(|e| e.to_string())?;
        match driver.remove_sandbox(id, this) {
            Err(_) if Instant::now() < deadline => {}
            result => return result.map_err(|e| e.to_string()),
        }
    }
}
