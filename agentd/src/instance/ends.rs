//! What an instance's task does when something ends: a container, its pod-init, the instance itself.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use agentd_api::status::{ExitStatus, Reason, TaskState};
use agentd_isolators::ContainerContext;
use agentd_isolators::cgroup::ContainerCgroup;
use agentd_launcher::message::{Ended, FIRST_EXEC_KEY};

use super::actor::{Actor, Live, Metered};
use super::setup;
use crate::failpoint;
use crate::host::Host;
use crate::launch::pod_init::Notice;
use crate::lifecycle::{Ending, Input};

/// A disk is measured at the latest after so many times that it was left out.
const MOST_LEFT_OUT: u32 = 5;

impl Actor {
    /// Ends every container of a pod that is over a disk limit which only measuring enforces.
    pub(super) async fn measure_disk(&mut self) {
        if self.live.is_empty() {
            return;
        }
        // where nothing has run since nothing was written; files that were copied in from outside are found a while later
        let used = self.cpu_used();
        if used.is_some() && used == self.metered.used && self.metered.left_out < MOST_LEFT_OUT {
            self.metered.left_out += 1;
            return;
        }
        self.metered = Metered { used, left_out: 0 };
        let (host, id) = (Arc::clone(&self.host), self.record.id.clone());
        let over = tokio::task::spawn_blocking(move || host.disk.over_limit(&id, &host.layout.sandbox(&id))).await;
        let (used, limit) = match over {
            Ok(Ok(Some(over))) => over,
            Ok(Err(error)) => {
                tracing::warn!(instance = self.record.id, "{error}");
                return;
            }
            _ => return,
        };
        let message = format!(
            "killed: the pod has written {:.1} MiB, its disk limit is {:.1} MiB; raise resources.disk or write less",
            used.bytes as f64 / 1_048_576.0,
            limit as f64 / 1_048_576.0
        );
        let running: Vec<usize> = self.live.keys().copied().collect();
        for slot in running {
            let attempt = self.record.machine.containers[slot].attempt;
            let ending = Ending {
                state: TaskState::TaskFailed,
                reason: Reason::ContainerLimitationDisk,
                message: message.clone(),
            };
            self.input(Input::End { slot, attempt, ending }).await;
        }
    }

    /// CPU that the containers that run have used, µs; none where the kernel does not tell.
    fn cpu_used(&self) -> Option<u64> {
        let unified = self.host.driver.layout().unified.as_deref()?;
        let of = |live: &Live| -> Option<u64> {
            let path = unified.join(live.cgroup.cgroup_path().trim_start_matches('/')).join("cpu.stat");
            let text = std::fs::read_to_string(path).ok()?;
            text.lines().find_map(|line| line.strip_prefix("usage_usec "))?.parse().ok()
        };
        self.live.values().map(of).sum()
    }

    /// The connection to pod-init is gone: either it died, or it gave up on a daemon that did not read.
    pub(super) async fn reconnect(&mut self) {
        match self.host.sandboxes.adopt(&self.record.id).await {
            Some((sandbox, processes)) => {
                self.sandbox = Some(sandbox);
                self.take_back_processes(processes).await;
            }
            None => self.launcher_died().await,
        }
    }

    /// Kills a container's cgroup, whether it is known as running or not.
    pub(super) async fn kill_slot(&self, slot: usize) {
        let (host, id) = (Arc::clone(&self.host), self.record.id.clone());
        let live = self.live.get(&slot).map(|live| Arc::clone(&live.cgroup));
        let killed = tokio::task::spawn_blocking(move || match live {
            Some(cgroup) => host.driver.kill(&cgroup),
            None => host.driver.container(&id, slot as u32).and_then(|cgroup| host.driver.kill(&cgroup)),
        })
        .await;
        let error = match killed {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::error!(instance = self.record.id, slot, "a kill failed and is tried again: {error}");
        let attempt = self.record.machine.containers[slot].attempt;
        self.later(1000, Input::GraceOver { slot, attempt });
    }

    /// The pod-init is dead: statuses that it still wrote count, everything else of the pod is killed.
    pub(super) async fn launcher_died(&mut self) {
        self.sandbox = None;
        self.ready = false;
        self.exits.close();
        let (driver, id) = (Arc::clone(&self.host.driver), self.record.id.clone());
        let killed = tokio::task::spawn_blocking(move || {
            driver.kill_sandbox(&id)?;
            driver.wait_sandbox_empty(&id, Instant::now() + Duration::from_secs(20))
        })
        .await;
        if let Ok(Err(error)) = killed {
            tracing::error!(instance = self.record.id, "the rest of a pod whose pod-init died: {error}");
        }
        let running: Vec<(usize, u32)> = self
            .record
            .machine
            .containers
            .iter()
            .enumerate()
            // a launch under way is answered by the one who works on it
            .filter(|(slot, c)| c.alive() && !self.launches.contains_key(slot))
            .map(|(slot, c)| (slot, c.attempt))
            .collect();
        // read before anything is done with them: a launch that follows from one of them clears the folder
        let running: Vec<_> = running.into_iter().map(|(slot, a)| (slot, a, self.written_exit(slot, a))).collect();
        for (slot, attempt, ended) in running {
            if let Some(ended) = ended {
                self.exited(slot, attempt, Some(ended)).await;
            } else {
                self.close_log(slot).await;
            }
        }
        self.input(Input::LauncherDied).await;
        for live in std::mem::take(&mut self.live).into_values() {
            live.health.cancel();
        }
    }

    /// The exit status that pod-init wrote for a start.
    pub(super) fn written_exit(&self, slot: usize, attempt: u32) -> Option<Ended> {
        let name = agentd_launcher::message::exit_file(slot as u32, attempt);
        let line = std::fs::read_to_string(self.host.layout.exits(&self.record.id).join(name)).ok()?;
        Ended::from_line(&line)
    }

    /// Removes an exit status that the checkpoint has taken over: a container that restarts for ever leaves no trail.
    pub(super) fn drop_written_exit(&self, slot: usize, attempt: u32) {
        let name = agentd_launcher::message::exit_file(slot as u32, attempt);
        // it is not there where nobody saw the end, or the launcher died
        let _ = std::fs::remove_file(self.host.layout.exits(&self.record.id).join(name));
    }

    /// A container's first process has ended: its cgroup is emptied, its log closed, its cause looked up. Pod-init keeps
    /// the entry until the next start or its own end.
    pub(super) async fn exited(&mut self, slot: usize, attempt: u32, ended: Option<Ended>) {
        failpoint::pass("exit.noticed");
        let present = &self.record.machine.containers[slot];
        if present.attempt != attempt || !present.alive() {
            // told twice, by the state of pod-init and by a notice that was on its way
            return;
        }
        let live = self.live.remove(&slot);
        let sessions = self.host.sessions.container_ended(&self.record.id, slot);
        let (mut cause, mut memory_peak, mut ended_in) = (None, None, None);
        if let Some(live) = live {
            live.health.cancel();
            let finish = || finish(&self.host, &live.cgroup, live.oom_before, self.spec.containers[slot].resources.mem);
            // the capture's thread empties the pipes meanwhile
            let finish = async { tokio::task::block_in_place(finish) };
            ((), (cause, memory_peak)) = tokio::join!(self.close_log(slot), finish);
            ended_in = Some(live.cgroup);
        } else {
            self.close_log(slot).await;
        }
        if sessions {
            self.hear_sessions(slot).await;
        }
        let exit = match ended {
            Some(Ended::Code(code)) => ExitStatus::Code(code),
            Some(Ended::Signal(signal)) => ExitStatus::Signal(signal),
            None => ExitStatus::Unknown,
        };
        // only an end by SIGKILL (or one that nobody saw) can be the kernel's doing
        let cause = cause.filter(|_| !exit.success());
        let whole_cores = self.spec.containers[slot].agentd.exclusive_cores;
        if let Some(cgroup) = ended_in.take_if(|_| whole_cores) {
            // the others may use its cores before anything else of the pod starts
            self.clean_up(slot, attempt, &cgroup);
        }
        self.take_cores(slot);
        self.input(Input::Exited { slot, attempt, exit, cause, memory_peak }).await;
        // told first: nobody waits for the removal of what it wrote. A released instance has nothing left to remove
        if let Some(cgroup) = ended_in.filter(|_| !self.record.released) {
            self.clean_up(slot, attempt, &cgroup);
        }
    }

    /// Hears the ends of a container's sessions, which were killed with it, before anything else is done: the pod-init may
    /// be gone then.
    async fn hear_sessions(&mut self, slot: usize) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(2);
        while self.host.sessions.any_running(&self.record.id, slot) {
            let Some(sandbox) = self.sandbox.as_mut() else { return };
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => return,
                // the session's own task has to take it in
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
                notice = sandbox.notices.recv() => match notice {
                    Some(Notice::Exited { key, ended, .. }) if key >= FIRST_EXEC_KEY => self.exits.ended(key, ended),
                    Some(Notice::Gone) | None => {
                        self.stashed.push_back(Notice::Gone);
                        return;
                    }
                    Some(other) => self.stashed.push_back(other),
                },
            }
        }
    }

    /// Has the isolators remove what a start of a container left.
    pub(super) fn clean_up(&self, slot: usize, attempt: u32, cgroup: &ContainerCgroup) {
        tokio::task::block_in_place(|| {
            self.host.cleanup(&ContainerContext {
                pod: &self.spec,
                container: &self.spec.containers[slot],
                instance: &self.record.id,
                slot: slot as u32,
                attempt,
                cgroup,
                pod_dir: &self.host.layout.sandbox(&self.record.id),
                image: None,
                exclusive_cpus: &[],
            });
        });
    }

    pub(super) async fn close_log(&self, slot: usize) {
        let name = &self.spec.containers[slot].name;
        if let Err(error) = self.host.capture.finish(&self.record.id, name).await {
            tracing::error!(instance = self.record.id, container = name, "{error}");
        }
    }

    pub(super) async fn forget(&self, slot: usize) {
        if let Some(sandbox) = &self.sandbox
            && let Err(error) = sandbox.init.forget(slot as u32).await
        {
            tracing::debug!(instance = self.record.id, slot, "{error}");
        }
    }

    /// Takes a container's whole cores back after its end, in the allocator and in the checkpoint.
    pub(super) fn take_cores(&mut self, slot: usize) {
        if !std::mem::take(&mut self.record.cores[slot]).is_empty() {
            let mut allocator = self.host.cores.lock().unwrap_or_else(PoisonError::into_inner);
            allocator.release(&self.record.id, slot as u32);
        }
    }

    pub(super) async fn release(&mut self) {
        let _haste = self.host.pool.haste();
        self.haste = None;
        for live in std::mem::take(&mut self.live).into_values() {
            live.health.cancel();
        }
        let id = self.record.id.clone();
        self.host.watcher.instance_ended(&id);
        let mut sandbox = self.sandbox.take();
        // the folder on disk names what is left to do, so a failed release is tried again, here or after a restart
        while let Err(error) = setup::release(&self.host, &id, sandbox.take()) {
            tracing::error!(instance = id, "not everything could be given back, trying again: {error}");
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        let pods = format!("{}/pods/{id}/", self.host.driver.parent().trim_matches('/'));
        self.host.victims.lock().unwrap_or_else(PoisonError::into_inner).retain(|path, _| !path.starts_with(&pods));
        let mut allocator = self.host.cores.lock().unwrap_or_else(PoisonError::into_inner);
        for slot in 0..self.record.cores.len() {
            allocator.release(&id, slot as u32);
        }
        drop(allocator);
        self.record.released = true;
        self.persist();
    }
}

/// Kills what is in a cgroup and waits until it is gone. Blocking.
pub(super) fn empty(host: &Host, cgroup: &ContainerCgroup) {
    let emptied = host
        .driver
        .kill(cgroup)
        .and_then(|()| host.driver.wait_empty(cgroup, Instant::now() + Duration::from_secs(10)));
    if let Err(error) = emptied {
        tracing::error!("{error}");
    }
}

/// Empties the cgroup of a container whose first process has ended, and asks why it ended.
fn finish(
    host: &Host,
    cgroup: &ContainerCgroup,
    oom_before: u64,
    limit_mib: f64,
) -> (Option<(Reason, String)>, Option<u64>) {
    if host.driver.populated(cgroup).unwrap_or(true) {
        empty(host, cgroup);
    }
    host.watcher.ended(cgroup);
    let peak = host.memory.peak(cgroup).ok().flatten();
    let kills = host.memory.oom_kills(cgroup).unwrap_or(0);
    if kills <= oom_before {
        return (None, peak);
    }
    let path = cgroup.cgroup_path().trim_matches('/').to_owned();
    let victim = host.victims.lock().unwrap_or_else(PoisonError::into_inner).remove(&path);
    let killed = kills - oom_before;
    let victim = victim.map_or_else(String::new, |v| format!("; the kernel chose {} (process {})", v.task, v.pid));
    let message = format!(
        "out of memory: {killed} {} killed at the limit of {limit_mib} MiB, peak {:.1} MiB{victim}; raise resources.mem or \
         use less",
        if killed == 1 { "process" } else { "processes" },
        peak.unwrap_or(0) as f64 / 1_048_576.0,
    );
    (Some((Reason::ContainerLimitationMemory, message)), peak)
}
