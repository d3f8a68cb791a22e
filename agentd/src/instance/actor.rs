//! The task of an instance.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use agentd_api::pod::PodSpec;
use agentd_api::resources::Resources;
use agentd_api::status::InstanceStatus;
use agentd_isolators::cgroup::ContainerCgroup;
use agentd_launcher::message::{Ended, FIRST_EXEC_KEY, ProcessEntry};
use agentd_launcher::plan::ContainerPlan;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::exits::Exits;
use super::launch::{self, Started};
use super::state::Record;
use super::{Command, Grant, Handle, now_ms};
use crate::events::Subject;
use crate::failpoint;
use crate::host::Host;
use crate::launch::pod_init::Notice;
use crate::lifecycle::{Action, Input};
use crate::pool::Haste;
use crate::sandbox::Sandbox;
use crate::session::Joinable;
use crate::telemetry::spans::Parent;
use crate::telemetry::start::Start;

/// How long beyond its grace period a launch that is given up may take before its processes are killed.
const OVERDUE: Duration = Duration::from_secs(5);

/// How often a disk limit that only measuring enforces is measured.
const METER: Duration = Duration::from_secs(5);

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
    /// The plan that it was started with, without its mounts.
    pub plan: Arc<ContainerPlan>,
    /// Ends its health check.
    pub health: CancellationToken,
}

/// When a disk was last measured: what is written by programs that have not run since is nothing.
#[derive(Debug, Default)]
pub(super) struct Metered {
    /// CPU that the containers had used until then, µs.
    pub used: Option<u64>,
    /// Times that it was left out since.
    pub left_out: u32,
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
    /// When its disk was last measured.
    pub metered: Metered,
    pub exits: Arc<Exits>,
    /// Launches under way.
    pub launches: HashMap<usize, CancellationToken>,
    /// Ends that arrived before the task learned of the start.
    pub early: Vec<(usize, u32, Ended)>,
    /// Notices that came while only those about sessions were wanted.
    pub stashed: VecDeque<Notice>,
    pub signals: mpsc::UnboundedSender<Signal>,
    pub status: watch::Sender<InstanceStatus>,
    /// Whether the sessions of an earlier daemon are known again.
    pub settled: watch::Sender<bool>,
    pub waiting: Vec<oneshot::Sender<()>>,
    /// Held until the first launches are through.
    pub haste: Option<Haste>,
    /// The start, until everything runs or has ended.
    pub start: Option<Start>,
}

/// Spawns the task of an instance: of a new one with its start, else of one that is taken back.
pub(super) fn spawn(
    host: &Arc<Host>,
    record: Record,
    sandbox: Option<Sandbox>,
    processes: Vec<ProcessEntry>,
    grant: Grant,
    start: Option<Start>,
) -> Handle {
    let adopted = start.is_none();
    let (commands, command_receiver) = mpsc::unbounded_channel();
    let (signals, signal_receiver) = mpsc::unbounded_channel();
    let init_pid = sandbox.as_ref().map(|s| s.init_pid);
    let (status, watcher) = watch::channel(record.status(host, init_pid));
    let (settled, settling) = watch::channel(!adopted);
    let handle =
        Handle { id: record.id.clone(), created_ms: record.created_ms, commands, status: watcher, settled: settling };
    let actor = Actor {
        host: Arc::clone(host),
        spec: Arc::new(record.spec.clone()),
        record,
        sandbox,
        ready: adopted,
        grant,
        live: HashMap::new(),
        metered: Metered::default(),
        exits: Arc::default(),
        launches: HashMap::new(),
        early: Vec::new(),
        stashed: VecDeque::new(),
        signals,
        status,
        settled,
        waiting: Vec::new(),
        haste: (!adopted).then(|| host.pool.haste()),
        start,
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
            self.settled.send_replace(true);
        } else {
            self.set_up().await;
        }
        let mut meter = tokio::time::interval(METER);
        meter.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !self.record.released {
            if let Some(notice) = self.stashed.pop_front() {
                self.notice(notice).await;
                continue;
            }
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
                    Some(Command::Join { slot, done }) => {
                        // the one who asked may have gone
                        let _ = done.send(self.joinable(slot));
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
                Command::Join { done, .. } => drop(done.send(Err("the instance has ended".to_owned()))),
                // nothing runs that could be changed, but its specification follows the pod's
                Command::Update { spec, done } => drop(done.send(self.update(*spec).await)),
            }
        }
    }

    /// What a session in a container needs.
    fn joinable(&self, slot: usize) -> Result<Joinable, String> {
        match (&self.sandbox, self.live.get(&slot)) {
            (Some(sandbox), Some(live)) => Ok(Joinable {
                init: Arc::clone(&sandbox.init),
                exits: Arc::clone(&self.exits),
                cgroup: Arc::clone(&live.cgroup),
                plan: Arc::clone(&live.plan),
                attempt: self.record.machine.containers[slot].attempt,
            }),
            _ => Err("the container does not run any more".to_owned()),
        }
    }

    pub(super) async fn signal(&mut self, signal: Signal) {
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

    pub(super) async fn notice(&mut self, notice: Notice) {
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

    /// One step of the machine: checkpoint, publish, act. Inputs that follow from actions are handled in turn. Nothing of an
    /// instance that is over runs any more, so whoever waits for that finds its resources free.
    pub(super) async fn input(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let exited = match &input {
                Input::Exited { slot, attempt, .. } => Some((*slot, *attempt)),
                _ => None,
            };
            // that a launch is under way stands in the checkpoint since it was decided; this only tells how far it is
            let only_tells = matches!(input, Input::Starting { .. });
            let actions = self.record.machine.step(input, now_ms());
            if self.record.machine.over() && self.grant.resize(Resources::ZERO).is_err() {
                tracing::error!(instance = self.record.id, "the grant could not be given back");
            }
            if only_tells && actions.is_empty() {
                self.publish();
            } else {
                self.persist();
            }
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

    pub(super) fn persist(&mut self) {
        if let Err(error) = self.record.write(&self.host.layout) {
            tracing::error!(instance = self.record.id, "{error}");
        }
        self.publish();
    }

    /// What steps of the start are put under, while it goes on.
    pub(super) fn trace(&self) -> Parent {
        self.start.as_ref().map(Start::parent).unwrap_or_default()
    }

    fn publish(&mut self) {
        let init_pid = self.sandbox.as_ref().map(|s| s.init_pid);
        let status = self.record.status(&self.host, init_pid);
        let phase = status.phase;
        let before = self.status.send_replace(status).phase;
        self.start.take_if(|start| !start.goes_on(phase));
        if phase != before {
            let subject = Subject { pod: Some(&self.spec.id), instance: Some(&self.record.id), container: None };
            let message = format!("{} (was {})", phase.as_str(), before.as_str());
            self.host.events.publish("instance-phase", subject, message);
        }
    }

    pub(super) fn later(&self, delay_ms: u64, input: Input) {
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
}
