//! Commands of health checks: run by pod-init inside the container's namespaces and cgroup, with its limits on what
//! a process may do, and killed with all that they start.
//!
//! A check is one request to pod-init, answered when the command has ended. What does not change between the checks of a
//! container is made once: the plan, and the cgroup, which is used again for as long as each command leaves it empty. A
//! pod-init of an older version is asked in steps. There is no task: a command is the future of whoever checks.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agentd_checks::{CommandExit, CommandProbe};
use agentd_isolators::cgroup::ContainerCgroup;
use agentd_launcher::message::{Ended, FIRST_EXEC_KEY, SpareKind};
use agentd_launcher::plan::ContainerPlan;
use futures_util::future::BoxFuture;
use rustix::fs::{Mode, OFlags};

use super::exits::Exits;
use crate::host::Host;
use crate::launch::pod_init::PodInit;
use crate::launch::{LaunchError, binary};

static NEXT: AtomicU32 = AtomicU32::new(FIRST_EXEC_KEY);

/// A key that an earlier daemon gave out is not given out again.
pub fn pass_key(key: u32) {
    NEXT.fetch_max(key.saturating_add(1), Ordering::Relaxed);
}

/// A key that no process that joins has had.
pub fn next_key() -> u32 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Runs commands in one container.
pub struct Runner {
    /// The host.
    pub host: Arc<Host>,
    /// The pod's pod-init.
    pub init: Arc<PodInit>,
    /// The container's cgroup.
    pub cgroup: Arc<ContainerCgroup>,
    /// Key of the container's process.
    pub slot: u32,
    /// The plan that the container was started with; namespaces and mounts of it are not used.
    pub plan: Arc<ContainerPlan>,
    /// Ends of joined processes.
    pub exits: Arc<Exits>,
    /// What the last command left for the next one.
    pub kept: Kept,
}

/// What one command leaves for the next one of the same container.
pub type Kept = Arc<Mutex<Option<Place>>>;

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").field("slot", &self.slot).finish_non_exhaustive()
    }
}

/// Kills and removes a cgroup of commands when it is dropped, however that comes about. None is used again after a kill: Linux
/// from 6.14 kills what is cloned into a cgroup that was once killed.
struct Removal {
    host: Arc<Host>,
    cgroup: Arc<ContainerCgroup>,
    name: String,
    runtime: tokio::runtime::Handle,
}

impl Drop for Removal {
    fn drop(&mut self) {
        let (host, cgroup, name) = (Arc::clone(&self.host), Arc::clone(&self.cgroup), std::mem::take(&mut self.name));
        self.runtime.spawn_blocking(move || {
            let removed = host
                .driver
                .kill_exec(&cgroup, &name)
                .and_then(|()| host.driver.remove_exec(&cgroup, &name, Instant::now() + Duration::from_secs(5)));
            if let Err(error) = removed {
                tracing::debug!("the cgroup of a command: {error}");
            }
        });
    }
}

/// Where a container's commands run, one after the other, and what they are.
pub struct Place {
    directory: OwnedFd,
    /// Its `cgroup.events`.
    events: OwnedFd,
    /// The plan, in memory that pod-init reads.
    plan: OwnedFd,
    argv: Vec<String>,
    null: OwnedFd,
    /// Last: the cgroup goes when its descriptors are closed.
    _removal: Removal,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("argv", &self.argv).finish_non_exhaustive()
    }
}

impl Place {
    fn make(
        host: &Arc<Host>,
        cgroup: &Arc<ContainerCgroup>,
        plan: &ContainerPlan,
        argv: &[String],
    ) -> Result<Self, String> {
        let name = format!("check-{}", next_key());
        let removal = Removal {
            host: Arc::clone(host),
            cgroup: Arc::clone(cgroup),
            name,
            runtime: tokio::runtime::Handle::current(),
        };
        let directory = host.driver.create_exec(cgroup, &removal.name).map_err(|error| error.to_string())?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let events = rustix::fs::openat(&directory, "cgroup.events", flags, Mode::empty())
            .map_err(|error| format!("cgroup.events of the command: {error}"))?;
        let plan = ContainerPlan {
            argv: argv.iter().map(|word| word.clone().into_bytes()).collect(),
            mounts: Vec::new(),
            ..plan.clone()
        };
        let plan = binary::memory_file("plan", &plan.encode()).map_err(|error| error.to_string())?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| format!("/dev/null: {error}"))?;
        Ok(Self { directory, events, plan, argv: argv.to_vec(), null, _removal: removal })
    }

    /// Whether nothing runs there.
    fn is_empty(&self) -> bool {
        let mut text = [0; 128];
        let read = rustix::io::pread(&self.events, &mut text[..], 0).map(|length| &text[..length]);
        read.is_ok_and(|text| text.split(|byte| *byte == b'\n').any(|line| line == b"populated 0"))
    }
}

impl CommandProbe for Runner {
    fn run(&self, argv: Vec<String>, timeout: Duration) -> BoxFuture<'static, Result<CommandExit, String>> {
        let (host, init, cgroup) = (Arc::clone(&self.host), Arc::clone(&self.init), Arc::clone(&self.cgroup));
        let (slot, exits) = (self.slot, Arc::clone(&self.exits));
        let (plan, kept) = (Arc::clone(&self.plan), Arc::clone(&self.kept));
        Box::pin(async move {
            let last = kept.lock().unwrap_or_else(PoisonError::into_inner).take();
            let place = match last.filter(|place| place.argv == argv) {
                Some(place) => place,
                None => Place::make(&host, &cgroup, &plan, &argv)?,
            };
            let tasks = host.driver.task_files(&cgroup).map_err(|error| error.to_string())?;
            let Ok(ended) = tokio::time::timeout(timeout, run(&init, slot, &place, &tasks, &exits)).await else {
                // the place goes, and with it what runs there
                return Ok(CommandExit::TimedOut);
            };
            let ended = ended.map_err(|error| match error {
                LaunchError::Gone => "the container ended while the command ran".to_owned(),
                error => format!("the command could not be started: {error}"),
            })?;
            if place.is_empty() {
                *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
            }
            Ok(match ended {
                Ended::Code(code) => CommandExit::Code(code),
                Ended::Signal(signal) => CommandExit::Signal(signal),
            })
        })
    }
}

/// Runs a command to its end.
async fn run(
    init: &Arc<PodInit>,
    slot: u32,
    place: &Place,
    tasks: &[OwnedFd],
    exits: &Arc<Exits>,
) -> Result<Ended, LaunchError> {
    let key = next_key();
    let null = place.null.as_fd();
    let (directory, plan, streams) = (place.directory.as_fd(), place.plan.as_fd(), [null, null, null]);
    if init.can_run().await? {
        return init.run((key, slot), directory, tasks, plan, streams).await;
    }
    let mut ended = exits.wait_for(key);
    let runtime = tokio::runtime::Handle::current();
    let _forgotten = Forgotten { init: Arc::clone(init), key, exits: Arc::clone(exits), runtime };
    init.spare(key, SpareKind::Join { key: slot }, directory, tasks).await?;
    init.start_with(key, plan, streams).await?;
    ended.recv().await.ok_or(LaunchError::Gone)
}

/// Has a pod-init of an older version forget a command when it is dropped.
struct Forgotten {
    init: Arc<PodInit>,
    key: u32,
    exits: Arc<Exits>,
    runtime: tokio::runtime::Handle,
}

impl Drop for Forgotten {
    fn drop(&mut self) {
        let (init, key, exits) = (Arc::clone(&self.init), self.key, Arc::clone(&self.exits));
        self.runtime.spawn(async move {
            // its end may arrive after the kill; forgetting is refused until then
            for _ in 0..50 {
                if init.forget(key).await.is_ok() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            exits.drop_key(key);
        });
    }
}
