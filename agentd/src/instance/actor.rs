//! The task of an instance.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use agentd_api::pod::PodSpec;
use agentd_api::resources::Resources;
use agentd_api::status::{ExitStatus, InstanceStatus, Reason, TaskState};
use agentd_checks::{HealthEvent, Probe, ProbeContext, Timing};
use agentd_isolators::ContainerContext;
use agentd_isolators::cgroup::ContainerCgroup;
use agentd_launcher::message::{Ended, FIRST_EXEC_KEY, ProcessEntry};
use agentd_launcher::plan::ContainerPlan;
use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::command::Runner;
use super::exits::Exits;
use super::launch::{self, Job, Started};
use super::state::Record;
use super::{Command, Grant, Handle, now_ms, setup};
use crate::events::Subject;
use crate::failpoint;
use crate::host::Host;
use crate::launch::LaunchError;
use crate::launch::pod_init::Notice;
use crate::lifecycle::{Action, Ending, Input};
use crate::pool::Haste;
use crate::sandbox::Sandbox;

/// How long beyond its grace period a launch that is given up may take before its processes are killed.
const OVERDUE: Duration = Duration::from_secs(5);

/// How often a disk limit that only measuring enforces is measured.
const METER: Duration = Duration::from_secs(5);

/// How often a pod-init that dies before anything was started in it is replaced.
const NEW_SANDBOXES: usize = 2;

/// What the helpers of the task send it.
pub(super) enum Signal {
    Input(Input),
    Started {
        slot: usize,
        attempt: u32,
        result: Result<Started, launch::Failure>,
    },
    /// A launch that was to be given up has not ended by itself.
    Overdue {
        slot: usize,
        attempt: u32,
    },
}

/// What the task keeps of a container that runs.
pub(super) struct Live {
    pub cgroup: Arc<ContainerCgroup>,
    pub oom_before: u64,
    /// Ends its health check.
    pub health: CancellationToken,
}

pub(super) struct Actor {
    pub host: Arc<Host>,
    pub record: Record,
    pub spec: Arc<PodSpec>,
    pub sandbox: Option<Sandbox>,
    /// Whether the sandbox has been set up for this pod.
    pub ready: bool,
    pub grant: Grant,
    pub live: HashMap<usize, Live>,
    pub exits: Arc<Exits>,
    /// Launches under way.
    pub launches: HashMap<usize, CancellationToken>,
    /// Ends that arrived before the task learned of the start.
    pub early: Vec<(usize, u32, Ended)>,
    pub signals: mpsc::UnboundedSender<Signal>,
    pub status: watch::Sender<InstanceStatus>,
    pub waiting: Vec<oneshot::Sender<()>>,
    /// Held until the first launches are through.
    pub haste: Option<Haste>,
}

/// Spawns the task of an instance.
pub(super) fn spawn(
    host: &Arc<Host>,
    record: Record,
    sandbox: Option<Sandbox>,
    processes: Vec<ProcessEntry>,
    grant: Grant,
    adopted: bool,
) -> Handle {
    let (commands, command_receiver) = mpsc::unbounded_channel();
    let (signals, signal_receiver) = mpsc::unbounded_channel();
    let init_pid = sandbox.as_ref().map(|s| s.init_pid);
    let (status, watcher) = watch::channel(record.status(host, init_pid));
    let handle = Handle { id: record.id.clone(), created_ms: record.created_ms, commands, status: watcher };
    let actor = Actor {
        host: Arc::clone(host),
        spec: Arc::new(record.spec.clone()),
        record,
        sandbox,
        ready: adopted,
        grant,
        live: HashMap::new(),
        exits: Arc::default(),
        launches: HashMap::new(),
        early: Vec::new(),
        signals,
        status,
        waiting: Vec::new(),
        haste: (!adopted).then(|| host.pool.haste()),
    };
    tokio::spawn(actor.run(command_receiver, signal_receiver, processes, adopted));
    handle
}

impl Actor {
    async fn run(
        mut self,
        mut commands: mpsc::UnboundedReceiver<Command>,
        mut signals: mpsc::UnboundedReceiver<Signal>,
        processes: Vec<ProcessEntry>,
        adopted: bool,
    ) {
        if adopted {
            self.take_back(processes).await;
        } else {
            self.set_up().await;
        }
        let mut meter = tokio::time::interval(METER);
        meter.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !self.record.released {
            let notice = async {
                match self.sandbox.as_mut() {
                    Some(sandbox) => sandbox.notices.recv().await.unwrap_or(Notice::Gone),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(signal) = signals.recv() => self.signal(signal).await,
                notice = notice => self.notice(notice).await,
                _ = meter.tick() => self.measure_disk().await,
                command = commands.recv() => match command {
                    Some(Command::Stop { done }) => {
                        self.waiting.push(done);
                        self.input(Input::Stop).await;
                    }
                    Some(Command::Update { spec, done }) => {
                        // the one who asked may have gone
                        let _ = done.send(self.update(*spec).await);
                    }
                    // every handle is gone: the daemon ends, the pod lives on
                    None => return,
                },
            }
        }
        for done in self.waiting.drain(..) {
            let _ = done.send(());
        }
        // answer what still comes, so that nobody waits in vain
        while let Some(command) = commands.recv().await {
            match command {
                Command::Stop { done } => drop(done.send(())),
                // nothing runs that could be changed, but its specification follows the pod's
                Command::Update { spec, done } => drop(done.send(self.update(*spec).await)),
            }
        }
    }

    /// Ends every container of a pod that is over a disk limit which only measuring enforces.
    async fn measure_disk(&mut self) {
        if self.live.is_empty() {
            return;
        }
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

    /// Sets the sandbox up and begins.
    pub(super) async fn set_up(&mut self) {
        let mut result = match &self.sandbox {
            Some(sandbox) => setup::run(&self.host, &self.spec, sandbox).await,
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

    async fn launcher_gone(&self) -> bool {
        match &self.sandbox {
            Some(sandbox) => matches!(sandbox.init.state().await, Err(LaunchError::Gone)),
            None => true,
        }
    }

    /// Spares of the pool beyond this pod's containers only cost memory.
    fn end_unused_spares(&mut self) {
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

    async fn signal(&mut self, signal: Signal) {
        match signal {
            Signal::Input(input) => self.input(input).await,
            Signal::Overdue { slot, attempt } => {
                if self.launches.contains_key(&slot) && self.record.machine.containers[slot].attempt == attempt {
                    self.kill_slot(slot).await;
                }
            }
            Signal::Started { slot, attempt, result } => {
                self.launches.remove(&slot);
                if self.launches.is_empty() {
                    self.haste = None;
                }
                match result {
                    Ok(started) => self.started(slot, attempt, started).await,
                    Err((reason, message)) => {
                        if let Some(ended) = self.written_exit(slot, attempt) {
                            // it ran and ended before the launcher died, and only the answer was lost
                            self.exited(slot, attempt, Some(ended)).await;
                        } else {
                            self.early.retain(|(s, a, _)| (*s, *a) != (slot, attempt));
                            self.clean_up_launch(slot, attempt).await;
                            self.forget(slot).await;
                            self.input(Input::LaunchFailed { slot, attempt, reason, message }).await;
                        }
                    }
                }
            }
        }
    }

    /// Takes back what the isolators gave to a start that came to nothing.
    async fn clean_up_launch(&mut self, slot: usize, attempt: u32) {
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

    async fn started(&mut self, slot: usize, attempt: u32, started: Started) {
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
        let replaced = self.live.insert(slot, Live { cgroup: Arc::clone(&cgroup), oom_before, health: health.clone() });
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
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
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

    async fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Exited { key, ended, .. } if key >= FIRST_EXEC_KEY => self.exits.ended(key, ended),
            Notice::Exited { key, attempt, ended } => {
                let slot = key as usize;
                if self.launches.contains_key(&slot) {
                    self.early.push((slot, attempt, ended));
                } else {
                    self.exited(slot, attempt, Some(ended)).await;
                }
            }
            Notice::Gone => self.reconnect().await,
        }
    }

    /// The connection to pod-init is gone: either it died, or it gave up on a daemon that did not read.
    async fn reconnect(&mut self) {
        match self.host.sandboxes.adopt(&self.record.id).await {
            Some((sandbox, processes)) => {
                self.sandbox = Some(sandbox);
                self.take_back_processes(processes).await;
            }
            None => self.launcher_died().await,
        }
    }

    /// Kills a container's cgroup, whether it is known as running or not.
    async fn kill_slot(&self, slot: usize) {
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
    fn drop_written_exit(&self, slot: usize, attempt: u32) {
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
        let exit = match ended {
            Some(Ended::Code(code)) => ExitStatus::Code(code),
            Some(Ended::Signal(signal)) => ExitStatus::Signal(signal),
            None => ExitStatus::Unknown,
        };
        self.take_cores(slot);
        // only an end by SIGKILL (or one that nobody saw) can be the kernel's doing
        let cause = cause.filter(|_| !exit.success());
        let whole_cores = self.spec.containers[slot].agentd.exclusive_cores;
        if let Some(cgroup) = ended_in.take_if(|_| whole_cores) {
            // the others may use its cores before anything else of the pod starts
            self.clean_up(slot, attempt, &cgroup);
        }
        self.input(Input::Exited { slot, attempt, exit, cause, memory_peak }).await;
        // told first: nobody waits for the removal of what it wrote. A released instance has nothing left to remove
        if let Some(cgroup) = ended_in.filter(|_| !self.record.released) {
            self.clean_up(slot, attempt, &cgroup);
        }
    }

    /// Has the isolators remove what a start of a container left.
    fn clean_up(&self, slot: usize, attempt: u32, cgroup: &ContainerCgroup) {
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

    async fn close_log(&self, slot: usize) {
        let name = &self.spec.containers[slot].name;
        if let Err(error) = self.host.capture.finish(&self.record.id, name).await {
            tracing::error!(instance = self.record.id, container = name, "{error}");
        }
    }

    async fn forget(&self, slot: usize) {
        if let Some(sandbox) = &self.sandbox
            && let Err(error) = sandbox.init.forget(slot as u32).await
        {
            tracing::debug!(instance = self.record.id, slot, "{error}");
        }
    }

    /// One step of the machine: checkpoint, publish, act. Inputs that follow from actions are handled in turn. Nothing of an
    /// instance that is over runs any more, so whoever waits for that finds its resources free.
    pub(super) async fn input(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let exited = match &input {
                Input::Exited { slot, attempt, .. } => Some((*slot, *attempt)),
                _ => None,
            };
            let actions = self.record.machine.step(input, now_ms());
            if self.record.machine.over() && self.grant.resize(Resources::ZERO).is_err() {
                tracing::error!(instance = self.record.id, "the grant could not be given back");
            }
            self.persist();
            if let Some((slot, attempt)) = exited {
                failpoint::pass("exit.checkpointed");
                self.drop_written_exit(slot, attempt);
            }
            for action in actions {
                if let Some(next) = self.act(action).await {
                    inputs.push_back(next);
                }
            }
        }
    }

    pub(super) fn persist(&self) {
        if let Err(error) = self.record.write(&self.host.layout) {
            tracing::error!(instance = self.record.id, "{error}");
        }
        let init_pid = self.sandbox.as_ref().map(|s| s.init_pid);
        self.status.send_replace(self.record.status(&self.host, init_pid));
    }

    fn later(&self, delay_ms: u64, input: Input) {
        let signals = self.signals.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            // an instance that has ended hears no timers
            let _ = signals.send(Signal::Input(input));
        });
    }

    pub(super) async fn act(&mut self, action: Action) -> Option<Input> {
        match action {
            Action::Launch { slot, attempt } => self.launch(slot, attempt).await,
            Action::CancelLaunch { slot } => {
                if let Some(cancel) = self.launches.get(&slot) {
                    cancel.cancel();
                    let (signals, attempt) = (self.signals.clone(), self.record.machine.containers[slot].attempt);
                    let grace = Duration::from_millis(self.record.machine.rules.containers[slot].grace_ms) + OVERDUE;
                    tokio::spawn(async move {
                        tokio::time::sleep(grace).await;
                        // an instance that has ended has no launches
                        let _ = signals.send(Signal::Overdue { slot, attempt });
                    });
                }
                None
            }
            Action::Terminate { slot, attempt, grace_ms } => {
                if let Some(sandbox) = &self.sandbox
                    && let Err(error) = sandbox.init.signal(slot as u32, libc::SIGTERM).await
                {
                    tracing::warn!(instance = self.record.id, slot, "SIGTERM: {error}");
                }
                failpoint::pass("stop.terminated");
                self.later(grace_ms, Input::GraceOver { slot, attempt });
                None
            }
            Action::Kill { slot } => {
                self.kill_slot(slot).await;
                failpoint::pass("stop.killed");
                None
            }
            Action::Backoff { slot, delay_ms } => {
                self.later(delay_ms, Input::BackoffOver { slot });
                None
            }
            Action::NewSandbox => {
                self.sandbox = None;
                self.ready = false;
                None
            }
            Action::Release => {
                self.release().await;
                None
            }
            Action::Event { slot, kind, message } => {
                let container = slot.map(|slot| self.spec.containers[slot].name.as_str());
                let subject = Subject { pod: Some(&self.spec.id), instance: Some(&self.record.id), container };
                self.host.events.publish(kind, subject, message);
                None
            }
        }
    }

    async fn launch(&mut self, slot: usize, attempt: u32) -> Option<Input> {
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
    async fn ensure_sandbox(&mut self) -> Result<(), String> {
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
            setup::run(&self.host, &self.spec, sandbox).await?;
        }
        self.ready = true;
        Ok(())
    }

    /// Gives a container its whole cores for one start; its end gives them back.
    fn give_cores(&mut self, slot: usize) -> Result<(), String> {
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

    /// Takes a container's whole cores back after its end, in the allocator and in the checkpoint.
    fn take_cores(&mut self, slot: usize) {
        if !std::mem::take(&mut self.record.cores[slot]).is_empty() {
            let mut allocator = self.host.cores.lock().unwrap_or_else(PoisonError::into_inner);
            allocator.release(&self.record.id, slot as u32);
        }
    }

    async fn release(&mut self) {
        let _haste = self.host.pool.haste();
        self.haste = None;
        for live in std::mem::take(&mut self.live).into_values() {
            live.health.cancel();
        }
        let id = self.record.id.clone();
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

    async fn update(&mut self, spec: PodSpec) -> Result<(), String> {
        if self.record.machine.over() {
            self.record.spec = spec.clone();
            self.spec = Arc::new(spec);
            self.persist();
            return Ok(());
        }
        let before = self.grant.amount();
        self.grant.resize(super::needs(&spec)).map_err(|short| short.one_line())?;
        let old = std::mem::replace(&mut self.record.spec, spec.clone());
        self.spec = Arc::new(spec);
        self.persist();
        failpoint::pass("update.spec-written");
        if let Err(error) = self.apply().await {
            // back to what was, as far as the kernel lets us
            self.record.spec = old.clone();
            self.spec = Arc::new(old);
            self.persist();
            let undone = self.apply().await;
            if self.grant.resize(before).is_err() || undone.is_err() {
                tracing::error!(instance = self.record.id, "an update failed and could not be undone wholly");
            }
            return Err(error);
        }
        failpoint::pass("update.applied");
        Ok(())
    }

    /// Writes the specification's resources into the cgroups of the running containers.
    pub(super) async fn apply(&self) -> Result<(), String> {
        for (&slot, live) in &self.live {
            let (host, spec, id) = (Arc::clone(&self.host), Arc::clone(&self.spec), self.record.id.clone());
            let (cgroup, cores) = (Arc::clone(&live.cgroup), self.record.cores[slot].clone());
            let attempt = self.record.machine.containers[slot].attempt;
            tokio::task::spawn_blocking(move || {
                let pod_dir = host.layout.sandbox(&id);
                let context = ContainerContext {
                    pod: &spec,
                    container: &spec.containers[slot],
                    instance: &id,
                    slot: slot as u32,
                    attempt,
                    cgroup: &cgroup,
                    pod_dir: &pod_dir,
                    image: None,
                    exclusive_cpus: &cores,
                };
                host.update(&context).map_err(|e| format!("containers[{slot}].resources: {e}"))
            })
            .await
            .map_err(|e| e.to_string())??;
        }
        Ok(())
    }
}

/// Kills what is in a cgroup and waits until it is gone. Blocking.
fn empty(host: &Host, cgroup: &ContainerCgroup) {
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
