//! The steps of [`Machine`]: what each input changes.

use agentd_api::status::{ExitStatus, InstancePhase, Reason, TaskState};

use super::{Action, Container, Ending, Input, Machine, Rules, Worker};

/// How an attempt ended.
pub(super) struct Outcome {
    pub state: TaskState,
    pub reason: Option<Reason>,
    pub message: Option<String>,
    pub exit: Option<ExitStatus>,
}

impl Outcome {
    pub fn of(ending: Ending, exit: Option<ExitStatus>) -> Self {
        Self { state: ending.state, reason: Some(ending.reason), message: Some(ending.message), exit }
    }
}

impl Container {
    fn new() -> Self {
        Self {
            state: TaskState::TaskStaging,
            reason: None,
            message: None,
            attempt: 0,
            pid: None,
            exit: None,
            healthy: None,
            started_ms: None,
            finished_ms: None,
            memory_peak: None,
            failures: 0,
            ending: None,
            in_backoff: false,
            backoff_until_ms: 0,
            launching: false,
            worker: Worker::Nobody,
        }
    }

    /// Whether a process of its present attempt may exist: from the order to launch it to its end. One that waits for
    /// its next turn is not alive, although it keeps the number of its last attempt.
    pub fn alive(&self) -> bool {
        self.launching || matches!(self.state, TaskState::TaskRunning | TaskState::TaskKilling)
    }

    /// Whether it waits for its turn.
    pub(super) fn waits(&self) -> bool {
        self.state == TaskState::TaskStaging && !self.launching && !self.in_backoff
    }

    /// Whether it has ended and does not start again by itself.
    pub(super) fn done(&self) -> bool {
        self.state.is_terminal() && !self.in_backoff
    }
}

impl Machine {
    /// An instance that has not begun.
    pub fn new(rules: Rules) -> Self {
        let containers = rules.containers.iter().map(|_| Container::new()).collect();
        Self {
            rules,
            containers,
            phase: InstancePhase::Starting,
            stopping: false,
            failures: 0,
            round_failed: false,
            backoff_until_ms: 0,
            message: None,
        }
    }

    /// Whether it has ended for good.
    pub fn over(&self) -> bool {
        matches!(self.phase, InstancePhase::Finished | InstancePhase::Failed)
    }

    /// One step.
    pub fn step(&mut self, input: Input, now_ms: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.over() {
            return actions;
        }
        match input {
            Input::Begin => self.set_timers(now_ms, &mut actions),
            Input::Starting { slot, attempt } => {
                if let Some(container) = self.current(slot, attempt).filter(|c| c.launching) {
                    container.state = TaskState::TaskStarting;
                    if container.worker == Worker::Nobody {
                        container.worker = Worker::Present;
                    }
                }
            }
            Input::Launched { slot, attempt, pid } => self.launched(slot, attempt, pid, now_ms, &mut actions),
            Input::LaunchFailed { slot, attempt, reason, message } => {
                if let Some(container) = self.current(slot, attempt).filter(|c| c.launching) {
                    let ending =
                        container.ending.take().unwrap_or(Ending { state: TaskState::TaskError, reason, message });
                    self.finish(slot, Outcome::of(ending, None), now_ms, &mut actions);
                    self.conclude(slot, now_ms, &mut actions);
                }
            }
            Input::Exited { slot, attempt, exit, cause, memory_peak } => {
                if let Some(container) = self.current(slot, attempt).filter(|c| c.alive()) {
                    container.memory_peak = memory_peak;
                    let outcome = outcome(container.ending.take(), cause, exit);
                    self.finish(slot, outcome, now_ms, &mut actions);
                    self.conclude(slot, now_ms, &mut actions);
                }
            }
            Input::Health { slot, attempt, healthy } => {
                let changes = |c: &&mut Container| c.state == TaskState::TaskRunning && c.healthy != Some(healthy);
                if let Some(container) = self.current(slot, attempt).filter(changes) {
                    container.healthy = Some(healthy);
                    let (kind, text) = if healthy {
                        ("container-healthy", "its health check passes")
                    } else {
                        ("container-unhealthy", "its health check fails")
                    };
                    actions.push(event(Some(slot), kind, text.to_owned()));
                }
            }
            Input::End { slot, attempt, ending } => match self.current(slot, attempt).map(|c| c.state) {
                Some(TaskState::TaskRunning) => self.end(slot, ending, &mut actions),
                // it keeps the reason of its end, but a grace period is no leave to fill the disk
                Some(TaskState::TaskKilling) if ending.reason == Reason::ContainerLimitationDisk => {
                    actions.push(Action::Kill { slot });
                }
                _ => {}
            },
            Input::GraceOver { slot, attempt } => {
                if self.current(slot, attempt).is_some_and(|c| c.state == TaskState::TaskKilling) {
                    actions.push(Action::Kill { slot });
                }
            }
            Input::BackoffOver { slot } => self.backoff_over(slot, now_ms, &mut actions),
            Input::Stop => self.stop(now_ms, &mut actions),
            Input::LauncherDied => self.launcher_died(now_ms, &mut actions),
            Input::SetupFailed { message } => self.setup_failed(&message, now_ms, &mut actions),
        }
        self.launch_ready(&mut actions);
        self.give_up_dependents(now_ms, &mut actions);
        self.settle(now_ms, &mut actions);
        actions
    }

    /// The container of a slot, if it is in this attempt.
    fn current(&mut self, slot: usize, attempt: u32) -> Option<&mut Container> {
        self.containers.get_mut(slot).filter(|c| c.attempt == attempt)
    }

    fn launched(&mut self, slot: usize, attempt: u32, pid: u32, now_ms: u64, actions: &mut Vec<Action>) {
        let Some(container) = self.current(slot, attempt).filter(|c| c.launching) else { return };
        container.pid = Some(pid);
        container.launching = false;
        let worker = std::mem::take(&mut container.worker);
        container.started_ms = Some(now_ms);
        container.state = TaskState::TaskRunning;
        let ending = container.ending.take();
        self.message = None;
        actions.push(event(Some(slot), "container-started", format!("started as process {pid} (start {attempt})")));
        match ending {
            // nobody will tell of its end
            Some(ending) if worker == Worker::Dead => {
                actions.push(Action::Kill { slot });
                self.finish(slot, Outcome::of(ending, Some(ExitStatus::Unknown)), now_ms, actions);
                self.conclude(slot, now_ms, actions);
            }
            Some(ending) => self.end(slot, ending, actions),
            None => {}
        }
    }

    /// Ends a running container.
    fn end(&mut self, slot: usize, ending: Ending, actions: &mut Vec<Action>) {
        let container = &mut self.containers[slot];
        container.state = TaskState::TaskKilling;
        let message = match ending.reason {
            Reason::TaskKilledByRequest => "being ended on request".to_owned(),
            _ => ending.message.clone(),
        };
        actions.push(event(Some(slot), "container-killing", message));
        container.ending = Some(ending);
        actions.push(self.killing(slot));
    }

    /// What ends a container that is being killed.
    fn killing(&self, slot: usize) -> Action {
        let grace_ms = self.rules.containers[slot].grace_ms;
        let container = &self.containers[slot];
        let disk = container.ending.as_ref().is_some_and(|e| e.reason == Reason::ContainerLimitationDisk);
        if disk || grace_ms == 0 {
            Action::Kill { slot }
        } else {
            Action::Terminate { slot, attempt: container.attempt, grace_ms }
        }
    }

    /// Ends a container whatever it is doing; one whose turn has not come is ended on paper.
    pub(super) fn end_or_cancel(&mut self, slot: usize, ending: Ending, now_ms: u64, actions: &mut Vec<Action>) {
        let container = &mut self.containers[slot];
        if container.state == TaskState::TaskRunning {
            self.end(slot, ending, actions);
        } else if container.launching {
            // what ended it first is why it ended
            if container.ending.is_none() {
                container.ending = Some(ending);
                actions.push(Action::CancelLaunch { slot });
            }
        } else if container.waits() {
            let exit = container.exit;
            self.finish(slot, Outcome::of(ending, exit), now_ms, actions);
        } else {
            container.in_backoff = false;
        }
    }

    fn stop(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        if self.stopping {
            return;
        }
        self.stopping = true;
        for slot in 0..self.containers.len() {
            let ending = Ending {
                state: TaskState::TaskKilled,
                reason: Reason::TaskKilledByRequest,
                message: "ended on request".to_owned(),
            };
            self.end_or_cancel(slot, ending, now_ms, actions);
        }
    }

    fn launcher_died(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        const MESSAGE: &str = "the pod's launcher (pod-init) died and the container was killed with it";
        actions.push(event(None, "pod-launcher-died", MESSAGE.to_owned()));
        actions.push(Action::NewSandbox);
        let alive: Vec<usize> = (0..self.containers.len()).filter(|&slot| self.containers[slot].alive()).collect();
        let mut ended = Vec::new();
        for slot in alive {
            let container = &mut self.containers[slot];
            let ending = container.ending.take().unwrap_or(Ending {
                state: TaskState::TaskFailed,
                reason: Reason::ContainerLauncherDied,
                message: MESSAGE.to_owned(),
            });
            if container.worker == Worker::Nobody {
                self.finish(slot, Outcome::of(ending, Some(ExitStatus::Unknown)), now_ms, actions);
                ended.push(slot);
            } else {
                // whoever works on the launch still answers; until then nothing may be given back or started again
                container.worker = Worker::Dead;
                container.ending = Some(ending);
                actions.push(Action::CancelLaunch { slot });
            }
        }
        // only now: the end of one is no reason to kill another that is dead already
        for slot in ended {
            self.conclude(slot, now_ms, actions);
        }
    }

    fn setup_failed(&mut self, message: &str, now_ms: u64, actions: &mut Vec<Action>) {
        self.message = Some(message.to_owned());
        actions.push(event(None, "pod-setup-failed", message.to_owned()));
        // a restarted daemon sets up again before it goes on: what waits for its restart keeps waiting
        self.set_timers(now_ms, actions);
        let waiting: Vec<usize> = (0..self.containers.len()).filter(|&slot| self.containers[slot].waits()).collect();
        for &slot in &waiting {
            let outcome = Outcome {
                state: TaskState::TaskError,
                reason: Some(Reason::ContainerLaunchFailed),
                message: Some(message.to_owned()),
                exit: self.containers[slot].exit,
            };
            self.finish(slot, outcome, now_ms, actions);
        }
        for slot in waiting {
            self.conclude(slot, now_ms, actions);
        }
    }

    /// The actions with which a restarted daemon goes on, before [`Input::Begin`]: launches to give up, kills, the
    /// release. Launches that were under way are begun again by the one who asks pod-init which of them came to a process;
    /// restart timers are set by [`Input::Begin`].
    pub fn resume(&self) -> Vec<Action> {
        if self.over() {
            return vec![Action::Release];
        }
        let mut actions = Vec::new();
        for (slot, container) in self.containers.iter().enumerate() {
            if container.launching && container.ending.is_some() {
                actions.push(Action::CancelLaunch { slot });
            }
            if container.state == TaskState::TaskKilling {
                actions.push(self.killing(slot));
            }
        }
        actions
    }
}

/// How a container ended whose process has ended.
fn outcome(ending: Option<Ending>, cause: Option<(Reason, String)>, exit: ExitStatus) -> Outcome {
    // of a launch whose launcher has died, the exit status that it wrote first says more than its death
    let unseen = |e: &Ending| e.reason != Reason::ContainerLauncherDied || exit == ExitStatus::Unknown;
    match (ending.filter(unseen), cause) {
        // also when it answers SIGTERM with success, as Mesos has it
        (Some(ending), _) => Outcome::of(ending, Some(exit)),
        (None, Some((reason, message))) => {
            Outcome { state: TaskState::TaskFailed, reason: Some(reason), message: Some(message), exit: Some(exit) }
        }
        _ if exit.success() => {
            Outcome { state: TaskState::TaskFinished, reason: None, message: None, exit: Some(exit) }
        }
        _ if exit == ExitStatus::Unknown => Outcome {
            state: TaskState::TaskLost,
            reason: Some(Reason::AgentRestarted),
            message: Some("ended while agentd was away, and nobody saw how".to_owned()),
            exit: Some(exit),
        },
        _ => Outcome {
            state: TaskState::TaskFailed,
            reason: Some(Reason::CommandExecutorFailed),
            message: Some(format!("ended with {exit}")),
            exit: Some(exit),
        },
    }
}

pub(super) fn event(slot: Option<usize>, kind: &'static str, message: String) -> Action {
    Action::Event { slot, kind, message }
}
