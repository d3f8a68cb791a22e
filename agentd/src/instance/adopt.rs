//! Taking an instance back after the daemon was killed, restarted or replaced.
//!
//! The checkpoint says what was meant, pod-init (or, if it is dead, the exit statuses that it wrote) says what is. Each
//! difference becomes the input that the machine missed.

use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentd_isolators::IsolatorError;
use agentd_isolators::cgroup::ContainerCgroup;
use agentd_launcher::message::{FIRST_EXEC_KEY, ProcessEntry, ProcessState};
use agentd_launcher::plan::ContainerPlan;
use agentd_logging::Stream;

use super::actor::Actor;
use super::now_ms;
use crate::lifecycle::{Action, Input};
use crate::observe::Identity;

impl Actor {
    pub(super) async fn take_back(&mut self, processes: Vec<ProcessEntry>) {
        let started = self.record.machine.containers.iter().any(|c| c.attempt > 0);
        if self.record.released || self.record.machine.over() || self.sandbox.is_none() || !started {
            // there are no sessions
            self.settled.send_replace(true);
        }
        if self.record.released {
            return;
        }
        if self.record.machine.over() {
            self.act(Action::Release).await;
            return;
        }
        // a sandbox in which nothing was started may have been made anew and not set up yet; that may be repeated
        let used = |p: &ProcessEntry| p.key < FIRST_EXEC_KEY && p.state != ProcessState::Spare;
        self.ready = processes.iter().any(used);
        self.end_leftover_spares(&processes).await;
        if self.sandbox.is_none() {
            self.launcher_died().await;
        } else if self.record.machine.containers.iter().all(|c| c.attempt == 0) {
            // died between the checkpoint and the first launch: every step of the set-up may be repeated
            self.set_up().await;
            return;
        } else {
            self.take_back_processes(processes).await;
        }
        if self.record.released {
            return;
        }
        if let Err(error) = self.apply().await {
            tracing::warn!(instance = self.record.id, "resources could not be applied again: {error}");
        }
        for action in self.record.machine.resume() {
            if let Some(input) = self.act(action).await {
                self.input(input).await;
            }
        }
        // a step whose checkpoint was written and whose actions were not carried out
        self.input(Input::Begin).await;
    }

    /// Ends the spares beyond the pod's containers; the others are replaced by the launches that need them.
    async fn end_leftover_spares(&self, processes: &[ProcessEntry]) {
        let slots = self.spec.containers.len() as u32;
        let Some(sandbox) = &self.sandbox else { return };
        let beyond = |p: &&ProcessEntry| p.state == ProcessState::Spare && (slots..FIRST_EXEC_KEY).contains(&p.key);
        for spare in processes.iter().filter(beyond) {
            // a pod-init that is gone has taken them with it
            let _ = sandbox.init.forget(spare.key).await;
        }
    }

    pub(super) async fn take_back_processes(&mut self, processes: Vec<ProcessEntry>) {
        if let Some(sandbox) = &self.sandbox {
            let (init, exits) = (Arc::clone(&sandbox.init), Arc::clone(&self.exits));
            self.host.sessions.take_back(&self.host, &self.record.id, &init, &exits, &processes).await;
        }
        self.settled.send_replace(true);
        for entry in processes.iter().filter(|p| p.key >= FIRST_EXEC_KEY) {
            super::command::pass_key(entry.key);
            if !self.host.sessions.owns(&self.record.id, entry.key) {
                self.end_command(entry.key).await;
            }
        }
        for slot in 0..self.record.machine.containers.len() {
            let (alive, launching, attempt) = {
                let container = &self.record.machine.containers[slot];
                (container.alive(), container.launching, container.attempt)
            };
            // the end of an earlier slot may have launched this one just now
            if !alive || self.launches.contains_key(&slot) {
                continue;
            }
            let found = self.settled(slot, &processes).await;
            match found.map(|p| (p, p.state)) {
                Some((process, ProcessState::Running)) => {
                    self.take_back_container(slot, process).await;
                    if launching {
                        self.input(Input::Launched { slot, attempt, pid: process.pid }).await;
                    }
                }
                Some((process, ProcessState::Exited(ended))) if process.attempt == attempt => {
                    self.take_back_container(slot, process).await;
                    if launching {
                        self.input(Input::Launched { slot, attempt, pid: process.pid }).await;
                    }
                    self.exited(slot, attempt, Some(ended)).await;
                }
                _ if launching && self.written_exit(slot, attempt).is_none() => {
                    if let Some(input) = self.act(Action::Launch { slot, attempt }).await {
                        self.input(input).await;
                    }
                }
                _ => {
                    // pod-init was told to forget it, which does not mean that the rest of its cgroup had ended
                    let ended = self.written_exit(slot, attempt);
                    self.take_back_cgroup(slot, attempt).await;
                    self.exited(slot, attempt, ended).await;
                }
            }
        }
    }

    /// The entry of a slot once it is no longer between plan and exec.
    async fn settled(&self, slot: usize, processes: &[ProcessEntry]) -> Option<ProcessEntry> {
        let find = |list: &[ProcessEntry]| list.iter().find(|p| p.key == slot as u32).copied();
        let mut entry = find(processes);
        for _ in 0..250 {
            if entry.is_none_or(|e| e.state != ProcessState::Starting) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            let sandbox = self.sandbox.as_ref()?;
            entry = find(&sandbox.init.state().await.ok()?.processes);
        }
        entry
    }

    /// Its pipes go back to the capture, its health check goes on where it was.
    async fn take_back_container(&mut self, slot: usize, process: ProcessEntry) {
        let id = self.record.id.clone();
        let name = self.spec.containers[slot].name.clone();
        let kept = self.spec.containers[slot].agentd.log.max_bytes;
        let Some(sandbox) = &self.sandbox else { return };
        match sandbox.init.pipes(process.key).await {
            Ok([out, err]) => {
                for (stream, fd) in [(Stream::Stdout, out), (Stream::Stderr, err)] {
                    if let Err(error) = self.host.capture.add_limited(&id, &name, process.attempt, stream, fd, kept) {
                        tracing::error!(instance = id, container = name, "{error}");
                    }
                }
            }
            Err(error) => tracing::error!(instance = id, container = name, "its pipes: {error}"),
        }
        self.take_back_cgroup(slot, process.attempt).await;
    }

    async fn take_back_cgroup(&mut self, slot: usize, attempt: u32) {
        let id = self.record.id.clone();
        let name = self.spec.containers[slot].name.clone();
        let cgroup = match self.host.driver.container(&id, slot as u32) {
            Ok(cgroup) => Arc::new(cgroup),
            Err(error) => {
                tracing::error!(instance = id, container = name, "{error}");
                return;
            }
        };
        if let Some(identity) = Identity::of(&self.host.driver, &self.spec, &cgroup, attempt) {
            tokio::task::block_in_place(|| self.host.watcher.publish(identity));
        }
        self.end_leftover_commands(&cgroup).await;
        let plan = self.kept_plan(slot).await;
        let started = self.record.machine.containers[slot].started_ms;
        let age = started.map_or(0, |start| now_ms().saturating_sub(start));
        // kills before this moment that the dead daemon did not see still count for this start
        self.register(slot, attempt, cgroup, Arc::new(plan), 0, Duration::from_millis(age));
    }

    /// Kills what commands of health checks have left behind, and removes their cgroups: the next ones have the same names.
    async fn end_leftover_commands(&self, cgroup: &Arc<ContainerCgroup>) {
        let (driver, sessions, cgroup) =
            (Arc::clone(&self.host.driver), Arc::clone(&self.host.sessions), Arc::clone(cgroup));
        let Some(tree) = driver.layout().unified.clone() else { return };
        let ended = tokio::task::spawn_blocking(move || {
            let folder = tree.join(cgroup.cgroup_path().trim_start_matches('/'));
            let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
            for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
                let session = name.strip_prefix("exec-s").and_then(|key| key.parse().ok());
                if session.is_some_and(|key| sessions.owns(cgroup.instance(), key)) {
                    continue;
                }
                if let Some(command) = name.strip_prefix("exec-") {
                    driver.kill_exec(&cgroup, command)?;
                    driver.remove_exec(&cgroup, command, Instant::now() + Duration::from_secs(2))?;
                }
            }
            Ok::<_, IsolatorError>(())
        });
        if let Ok(Err(error)) = ended.await {
            tracing::warn!(instance = self.record.id, "a command of a health check: {error}");
        }
    }

    /// The plan that pod-init keeps for programs that join the container.
    async fn kept_plan(&self, slot: usize) -> ContainerPlan {
        let read = async {
            let sandbox = self.sandbox.as_ref().ok_or("its pod-init is gone")?;
            let memory = sandbox.init.plan(slot as u32).await.map_err(|error| error.to_string())?;
            let mut bytes = Vec::new();
            let mut file = std::fs::File::from(memory);
            // the offset is shared with whoever read it before
            file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes)).map_err(|e| e.to_string())?;
            ContainerPlan::decode(&bytes).map_err(|error| error.to_string())
        };
        match read.await {
            Ok(plan) => ContainerPlan { mounts: Vec::new(), ..plan },
            Err(error) => {
                tracing::error!(instance = self.record.id, slot, "nothing can join the container: its plan: {error}");
                ContainerPlan::default()
            }
        }
    }

    /// Ends a command of a health check that the dead daemon had started.
    async fn end_command(&self, key: u32) {
        let Some(sandbox) = &self.sandbox else { return };
        let _ = sandbox.init.signal(key, libc::SIGKILL).await;
        for _ in 0..100 {
            if sandbox.init.forget(key).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tracing::warn!(instance = self.record.id, key, "a command of a health check did not end");
    }
}
