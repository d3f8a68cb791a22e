//! What a session needs of the program that it runs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agentd_isolators::cgroup::ContainerCgroup;
use futures_util::future::BoxFuture;

use crate::host::Host;
use crate::instance::exits::Exits;
use crate::launch::pod_init::PodInit;

/// A program that runs, from outside.
pub trait Program: std::fmt::Debug + Send + Sync {
    /// Sends a signal to its first process.
    fn signal(&self, signal: i32) -> BoxFuture<'_, Result<(), String>>;
    /// Kills all of its processes.
    fn kill(&self) -> BoxFuture<'_, ()>;
    /// Has whoever keeps a copy of the write end of its standard input close that.
    fn close_stdin(&self) -> BoxFuture<'_, ()>;
    /// Removes what it had, once its first process has ended; what still runs of it is killed.
    fn clear(&self) -> BoxFuture<'_, ()>;
    /// Has what is parked for it given back.
    fn forget(&self) -> BoxFuture<'_, ()>;
    /// Why the kernel or agentd ended it with a signal, where that can be told.
    fn why(&self) -> Option<String>;
    /// The connection to the pod-init was made anew.
    fn reconnect(&self, _init: &Arc<PodInit>, _exits: &Arc<Exits>) {}
}

/// Whether a process has ended or is about to.
pub(super) fn is_over(pid: u32) -> bool {
    const EXITING: u64 = 4;
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    // the name may hold anything, so that fields count from behind it
    let Some((_, fields)) = stat.rsplit_once(')') else { return true };
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let flags: u64 = fields.get(6).and_then(|flags| flags.parse().ok()).unwrap_or_default();
    matches!(fields.first(), Some(&("Z" | "X"))) || flags & EXITING != 0
}

/// A program in a container.
pub(super) struct Joined {
    pub host: Arc<Host>,
    pub init: Mutex<(Arc<PodInit>, Arc<Exits>)>,
    pub cgroup: Arc<ContainerCgroup>,
    pub key: u32,
    /// Name of its cgroup, without `exec-`.
    pub name: String,
    /// Whether it has a root of its own.
    pub debug: bool,
    /// Process id of the container's first process.
    pub container: u32,
    /// Kills for want of memory in the container before it began.
    pub oom_before: u64,
}

impl std::fmt::Debug for Joined {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Joined").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Joined {
    fn init(&self) -> (Arc<PodInit>, Arc<Exits>) {
        self.init.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Program for Joined {
    fn signal(&self, signal: i32) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move { self.init().0.signal(self.key, signal).await.map_err(|e| e.to_string()) })
    }

    fn kill(&self) -> BoxFuture<'_, ()> {
        let (host, cgroup, name) = (Arc::clone(&self.host), Arc::clone(&self.cgroup), self.name.clone());
        Box::pin(async move {
            let killed = tokio::task::spawn_blocking(move || host.driver.kill_exec(&cgroup, &name)).await;
            if let Ok(Err(error)) = killed {
                tracing::warn!(key = self.key, "a session's kill: {error}");
            }
        })
    }

    fn close_stdin(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Err(error) = self.init().0.unpark(self.key).await {
                tracing::debug!(key = self.key, "closing a session's input: {error}");
            }
        })
    }

    fn clear(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let (host, cgroup, name) = (Arc::clone(&self.host), Arc::clone(&self.cgroup), self.name.clone());
            let removed = tokio::task::spawn_blocking(move || {
                // empty as a rule, and then gone at once
                if host.driver.remove_exec(&cgroup, &name, Instant::now()).is_err() {
                    host.driver.kill_exec(&cgroup, &name)?;
                    host.driver.remove_exec(&cgroup, &name, Instant::now() + Duration::from_secs(5))?;
                }
                Ok::<_, agentd_isolators::IsolatorError>(())
            });
            if let Ok(Err(error)) = removed.await {
                tracing::warn!(key = self.key, "a session's cgroup: {error}");
            }
            if self.debug {
                super::debug::remove(&self.host, self.cgroup.instance(), self.key).await;
            }
        })
    }

    fn forget(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let (init, exits) = self.init();
            if let Err(error) = init.forget(self.key).await {
                tracing::debug!(key = self.key, "{error}");
            }
            exits.drop_key(self.key);
        })
    }

    fn why(&self) -> Option<String> {
        let kills = self.host.memory.oom_kills(&self.cgroup).unwrap_or(0);
        if kills > self.oom_before {
            let message = "out of memory: the kernel killed a process at the container's memory limit; raise resources.mem \
                           or use less";
            return Some(message.to_owned());
        }
        // with process 1 of their pid namespace the kernel kills all others first
        is_over(self.container).then(|| "its container ended".to_owned())
    }

    fn reconnect(&self, init: &Arc<PodInit>, exits: &Arc<Exits>) {
        *self.init.lock().unwrap_or_else(PoisonError::into_inner) = (Arc::clone(init), Arc::clone(exits));
    }
}
