//! What an instance's task does to get its containers running.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use agentd_api::status::{Reason, TaskState};
use agentd_checks::{HealthEvent, Probe, ProbeContext, Timing};
use agentd_isolators::ContainerContext;
use agentd_isolators::cgroup::ContainerCgroup;
use agentd_launcher::plan::ContainerPlan;
use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::actor::{Actor, Live, Signal};
use super::command::{Kept, Runner};
use super::ends::empty;
use super::launch::{self, Job, Started};
use super::setup;
use crate::launch::LaunchError;
use crate::lifecycle::{Ending, Input};
use crate::telemetry::spans;

/// How often a pod-init that dies before anything was started in it is replaced.
const NEW_SANDBOXES: usize = 2;

impl Actor {
    /// Sets the sandbox up and begins.
    pub(super) async fn set_up(&mut self) {
        let mut result = match &self.sandbox {
            Some(sandbox) => {
                let span = self.trace().step("sandbox.set_up");
                setup::run(&self.host, &self.spec, sandbox).instrument(span).await
            }
            None => Err("there is no sandbox".to_owned()),
        };
        for _ in 0..NEW_SANDBOXES {
            if result.is_ok() || !self.launcher_gone().await {
                break;
            }
            // it was killed while it waited, or just now; nothing has been started in it
            self.sandbox = None;
            result = self.ensure_sandbox().await;
        }
        match result {
            Ok(()) => {
                self.ready = true;
                self.input(Input::Begin).await;
                self.end_unused_spares();
            }
            Err(message) => self.input(Input::SetupFailed { message }).await,
        }
    }

    /// Spares of the pool beyond this pod's containers only cost memory.
    pub(super) fn end_unused_spares(&mut self) {
        let slots = self.spec.containers.len() as u32;
        let Some(sandbox) = self.sandbox.as_mut() else { return };
        let unused: Vec<_> = sandbox.spares.extract_if(.., |spare| spare.cgroup.slot() >= slots).collect();
        if unused.is_empty() {
            return;
        }
        let init = Arc::clone(&sandbox.init);
        tokio::spawn(async move {
            // pod-init has the starts of the others to do first
            tokio::time::sleep(Duration::from_secs(1)).await;
            for spare in unused {
                // a pod-init that is gone has taken them with it
                let _ = init.forget(spare.cgroup.slot()).await;
            }
        });
    }

    pub(super) async fn launcher_gone(&self) -> bool {
        match &self.sandbox {
            Some(sandbox) => matches!(sandbox.init.state().await, Err(LaunchError::Gone)),
            None => true,
        }
    }

    /// Takes back what the isolators gave to a start that came to nothing.
    pub(super) async fn clean_up_launch(&mut self, slot: usize, attempt: u32) {
        let (host, spec, id) = (Arc::clone(&self.host), Arc::clone(&self.spec), self.record.id.clone());
        let cores = std::mem::take(&mut self.record.cores[slot]);
        let cleaned = tokio::task::spawn_blocking(move || {
            host.cores.lock().unwrap_or_else(PoisonError::into_inner).release(&id, slot as u32);
            // without a cgroup it did not come far enough for the rest
            let Ok(cgroup) = host.driver.container(&id, slot as u32) else { return };
            if host.driver.populated(&cgroup).unwrap_or(true) {
                // a spare, or a program whose start could not be answered any more
                empty(&host, &cgroup);
            }
            host.watcher.ended(&cgroup);
            let pod_dir = host.layout.sandbox(&id);
            host.cleanup(&ContainerContext {
                pod: &spec,
                container: &spec.containers[slot],
                instance: &id,
                slot: slot as u32,
                attempt,
                cgroup: &cgroup,
                pod_dir: &pod_dir,
                image: None,
                exclusive_cpus: &cores,
            });
        });
        if let Err(error) = cleaned.await {
            tracing::error!(instance = self.record.id, slot, "clean-up: {error}");
        }
    }

    pub(super) async fn started(&mut self, slot: usize, attempt: u32, started: Started) {
        let Started { pid, cgroup, plan, oom_before, spec } = started;
        self.register(slot, attempt, cgroup, plan, oom_before, Duration::ZERO);
        self.input(Input::Launched { slot, attempt, pid }).await;
        if self.record.machine.containers[slot].pid != Some(pid) {
            // the machine had given it up; what it asked to be killed is not looked after any further
            if let Some(live) = self.live.remove(&slot) {
                live.health.cancel();
            }
        } else if !Arc::ptr_eq(&spec, &self.spec) {
            // updated between its preparation and now
            if let Err(error) = self.apply().await {
                tracing::error!(instance = self.record.id, slot, "an update came during the start: {error}");
            }
        }
        let early: Vec<_> = self.early.extract_if(.., |(s, a, _)| *s == slot && *a == attempt).collect();
        for (slot, attempt, ended) in early {
            self.exited(slot, attempt, Some(ended)).await;
        }
    }

    /// Notes a running container and starts its health check.
    pub(super) fn register(
        &mut self,
        slot: usize,
        attempt: u32,
        cgroup: Arc<ContainerCgroup>,
        plan: Arc<ContainerPlan>,
        oom_before: u64,
        age: Duration,
    ) {
        let health = CancellationToken::new();
        let replaced = self.live.insert(
            slot,
            Live { cgroup: Arc::clone(&cgroup), oom_before, plan: Arc::clone(&plan), health: health.clone() },
        );
        if let Some(replaced) = replaced {
            replaced.health.cancel();
        }
        let (Some(check), Some(sandbox)) = (&self.spec.containers[slot].health_check, &self.sandbox) else { return };
        let endpoints = self.host.network.pod_network(&self.record.id).map(|n| n.endpoints).unwrap_or_default();
        let name = self.spec.containers[slot].name.clone();
        let port = |endpoint: &str| {
            let found = endpoints.iter().find(|e| e.container == name && e.endpoint == endpoint)?;
            found.container_port.or(found.host_port)
        };
        let netns =
            if setup::uses_host_network(&self.spec) { None } else { sandbox.network_namespace().ok().map(Arc::new) };
        let runner = Arc::new(Runner {
            host: Arc::clone(&self.host),
            init: Arc::clone(&sandbox.init),
            cgroup,
            slot: slot as u32,
            plan,
            exits: Arc::clone(&self.exits),
            kept: Kept::default(),
        });
        let field = format!("containers[{slot}].healthCheck");
        let probe = match Probe::from_spec(check, ProbeContext { netns, port: &port, runner }, &field) {
            Ok(probe) => probe,
            Err(error) => {
                tracing::error!(instance = self.record.id, "{error}");
                return;
            }
        };
        let (sender, mut events) = mpsc::channel(4);
        tokio::spawn(agentd_checks::drive(Timing::from_spec(check), probe, age, health, sender));
        let signals = self.signals.clone();
        let mut first = self.start.as_ref().map(|start| start.parent().step("health.first_probe"));
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if let Some(span) = first.take()
                    && !matches!(event, HealthEvent::Healthy)
                {
                    spans::failed(&span, &"unhealthy");
                }
                let input = match event {
                    HealthEvent::Healthy => Input::Health { slot, attempt, healthy: true },
                    HealthEvent::Unhealthy { .. } => Input::Health { slot, attempt, healthy: false },
                    HealthEvent::Kill { message } => Input::End {
                        slot,
                        attempt,
                        ending: Ending {
                            state: TaskState::TaskFailed,
                            reason: Reason::TaskHealthCheckFailed,
                            message: format!("killed: {message}"),
                        },
                    },
                };
                if signals.send(Signal::Input(input)).is_err() {
                    return;
                }
            }
        });
    }

    pub(super) async fn launch(&mut self, slot: usize, attempt: u32) -> Option<Input> {
        if let Err(message) = self.ensure_sandbox().await {
            return Some(Input::LaunchFailed { slot, attempt, reason: Reason::ContainerLaunchFailed, message });
        }
        if let Err(message) = self.give_cores(slot) {
            return Some(Input::LaunchFailed { slot, attempt, reason: Reason::ContainerLaunchFailed, message });
        }
        let sandbox = self.sandbox.as_mut()?;
        let fits = attempt == 1 && !self.spec.agentd.share_pid;
        let waiting = sandbox.spares.iter().position(|spare| spare.cgroup.slot() == slot as u32);
        let spare = waiting.map(|at| sandbox.spares.swap_remove(at));
        let cancel = CancellationToken::new();
        let job = Job {
            host: Arc::clone(&self.host),
            spec: Arc::clone(&self.spec),
            instance: self.record.id.clone(),
            init: Arc::clone(&sandbox.init),
            slot,
            attempt,
            cores: self.record.cores[slot].clone(),
            spare: spare.filter(|_| fits),
            cancel: cancel.clone(),
            trace: self.trace(),
        };
        self.launches.insert(slot, cancel);
        let signals = self.signals.clone();
        tokio::spawn(async move {
            let launched = AssertUnwindSafe(launch::run(job)).catch_unwind().await;
            let result = launched.unwrap_or_else(|_panic| {
                let message = "agentd failed inside; its log says more. Please report it";
                Err((Reason::ContainerLaunchFailed, message.to_owned()))
            });
            // a daemon that ends has no use for the answer; the next one asks pod-init
            let _ = signals.send(Signal::Started { slot, attempt, result });
        });
        Some(Input::Starting { slot, attempt })
    }

    /// A sandbox that is set up, made anew after its pod-init died.
    pub(super) async fn ensure_sandbox(&mut self) -> Result<(), String> {
        if self.ready && self.sandbox.is_some() {
            return Ok(());
        }
        if self.sandbox.is_none() {
            setup::detach(&self.host, &self.record.id, None).await?;
            let (sandboxes, id) = (Arc::clone(&self.host.sandboxes), self.record.id.clone());
            tokio::task::spawn_blocking(move || sandboxes.release(&id)).await.map_err(|e| e.to_string())??;
            self.sandbox = Some(self.host.sandboxes.rebuild(&self.record.id).await?);
        }
        if let Some(sandbox) = &self.sandbox {
            let span = self.trace().step("sandbox.set_up");
            setup::run(&self.host, &self.spec, sandbox).instrument(span).await?;
        }
        self.ready = true;
        Ok(())
    }

    /// Gives a container its whole cores for one start; its end gives them back.
    pub(super) fn give_cores(&mut self, slot: usize) -> Result<(), String> {
        let container = &self.spec.containers[slot];
        if !container.agentd.exclusive_cores {
            return Ok(());
        }
        let mut allocator = self.host.cores.lock().unwrap_or_else(PoisonError::into_inner);
        let cpus = container.resources.cpus.round() as u32;
        let cores = allocator
            .allocate(&self.record.id, slot as u32, cpus)
            .map_err(|e| format!("containers[{slot}].agentd.exclusiveCores: {e}"))?;
        drop(allocator);
        self.record.cores[slot] = cores;
        self.persist();
        Ok(())
    }
}
