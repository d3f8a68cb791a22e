//! Commands of health checks: run by pod-init inside the container's namespaces and cgroup, with its limits on what
//! a process may do, and killed with all that they start.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use agentd_checks::{CommandExit, CommandProbe};
use agentd_isolators::cgroup::ContainerCgroup;
use agentd_launcher::message::{Ended, FIRST_EXEC_KEY, SpareKind};
use agentd_launcher::plan::ContainerPlan;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::exits::Exits;
use crate::host::Host;
use crate::launch::pod_init::PodInit;

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
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").field("slot", &self.slot).finish_non_exhaustive()
    }
}

/// Kills and removes the command's cgroup however its run ends, also when the future is dropped.
struct Cleanup {
    host: Arc<Host>,
    init: Arc<PodInit>,
    cgroup: Arc<ContainerCgroup>,
    name: String,
    key: u32,
    exits: Arc<Exits>,
    runtime: tokio::runtime::Handle,
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        let (host, cgroup, name) = (Arc::clone(&self.host), Arc::clone(&self.cgroup), self.name.clone());
        let (init, key, exits) = (Arc::clone(&self.init), self.key, Arc::clone(&self.exits));
        self.runtime.spawn(async move {
            let cleaned = tokio::task::spawn_blocking(move || {
                host.driver.kill_exec(&cgroup, &name)?;
                host.driver.remove_exec(&cgroup, &name, Instant::now() + Duration::from_secs(5))
            })
            .await;
            if let Ok(Err(error)) = cleaned {
                tracing::debug!("the cgroup of a command: {error}");
            }
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

impl CommandProbe for Runner {
    fn run(&self, argv: Vec<String>, timeout: Duration) -> BoxFuture<'static, Result<CommandExit, String>> {
        let (host, init, cgroup) = (Arc::clone(&self.host), Arc::clone(&self.init), Arc::clone(&self.cgroup));
        let (slot, exits) = (self.slot, Arc::clone(&self.exits));
        let mut plan = (*self.plan).clone();
        Box::pin(async move {
            plan.argv = argv.into_iter().map(String::into_bytes).collect();
            plan.mounts.clear();
            let key = next_key();
            let name = format!("check-{key}");
            let ended = exits.wait_for(key);
            let cleanup = Cleanup {
                host: Arc::clone(&host),
                init: Arc::clone(&init),
                cgroup: Arc::clone(&cgroup),
                name: name.clone(),
                key,
                exits,
                runtime: tokio::runtime::Handle::current(),
            };
            let result =
                tokio::time::timeout(timeout, run(&host, &init, &cgroup, slot, key, &name, &plan, ended)).await;
            drop(cleanup);
            match result {
                Ok(result) => result,
                Err(_elapsed) => Ok(CommandExit::TimedOut),
            }
        })
    }
}

#[allow(clippy::too_many_arguments, reason = "the parts of one command; they have no life of their own as a struct")]
async fn run(
    host: &Arc<Host>,
    init: &PodInit,
    cgroup: &Arc<ContainerCgroup>,
    slot: u32,
    key: u32,
    name: &str,
    plan: &ContainerPlan,
    mut ended: mpsc::UnboundedReceiver<Ended>,
) -> Result<CommandExit, String> {
    let directory = host.driver.create_exec(cgroup, name).map_err(|e| e.to_string())?;
    let tasks = host.driver.task_files(cgroup).map_err(|e| e.to_string())?;
    init.spare(key, SpareKind::Join { key: slot }, directory.as_fd(), &tasks)
        .await
        .map_err(|e| format!("the command could not be started: {e}"))?;
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map_err(|e| e.to_string())?;
    init.start_with(key, &plan.encode(), [null.as_fd(), null.as_fd(), null.as_fd()])
        .await
        .map_err(|e| format!("the command could not be started: {e}"))?;
    match ended.recv().await {
        Some(Ended::Code(code)) => Ok(CommandExit::Code(code)),
        Some(Ended::Signal(signal)) => Ok(CommandExit::Signal(signal)),
        None => Err("the container ended while the command ran".to_owned()),
    }
}
