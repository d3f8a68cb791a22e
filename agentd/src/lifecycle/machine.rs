//! The steps of [`Machine`].

use agentd_api::pod::{RestartPolicy, RestartScope};
use agentd_api::status::{ExitStatus, InstancePhase, Reason, TaskState};

use super::{Action, Container, Ending, Input, Machine, Rules, STABLE_MS};

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
            launching: false,
        }
    }

    /// Whether a process of it may exist.
    fn alive(&self) -> bool {
        self.attempt > 0 && !self.state.is_terminal()
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
            Input::Begin => self.launch_ready(&mut actions),
            Input::Starting { slot, attempt } => {
                if let Some(container) = self.current(slot, attempt) {
                    if container.state == TaskState::TaskStaging {
                        container.state = TaskState::TaskStarting;
                    }
                }
            }
            Input::Launched { slot, attempt, pid } => self.launched(slot, attempt, pid, now_ms, &mut actions),
            Input::LaunchFailed { slot, attempt, reason, message } => {
                if self.current(slot, attempt).is_some_and(|c| c.alive()) {
                    let ending = self.containers[slot].ending.take();
                    let (state, reason, message) = match ending {
                        Some(ending) => (ending.state, ending.reason, ending.message),
                        None => (TaskState::TaskError, reason, message),
                    };
                    self.ended(slot, state, Some(reason), Some(message), None, now_ms, &mut actions);
                }
            }
            Input::Exited { slot, attempt, exit, cause, memory_peak } => {
                if self.current(slot, attempt).is_some_and(|c| c.alive()) {
                    let container = &mut self.containers[slot];
                    container.memory_peak = memory_peak;
                    let (state, reason, message) = match (container.ending.take(), cause) {
                        (Some(e), _) if e.reason != Reason::TaskKilledByRequest || exit != ExitStatus::Code(0) => {
                            (e.state, Some(e.reason), Some(e.message))
                        }
                        (None, Some((reason, message))) => (TaskState::TaskFailed, Some(reason), Some(message)),
                        (_, _) if exit.success() => (TaskState::TaskFinished, None, None),
                        (_, _) => (
                            TaskState::TaskFailed,
                            Some(Reason::CommandExecutorFailed),
                            Some(format!("ended with {exit}")),
                        ),
                    };
                    self.ended(slot, state, reason, message, Some(exit), now_ms, &mut actions);
                }
            }
            Input::Health { slot, attempt, healthy } => {
                if let Some(container) = self.current(slot, attempt).filter(|c| c.state == TaskState::TaskRunning) {
                    if container.healthy != Some(healthy) {
                        container.healthy = Some(healthy);
                        let (kind, text) = if healthy {
                            ("container-healthy", "its health check passes")
                        } else {
                            ("container-unhealthy", "its health check fails")
                        };
                        actions.push(event(Some(slot), kind, text.to_owned()));
                        self.launch_ready(&mut actions);
                    }
                }
            }
            Input::End { slot, attempt, ending } => {
                if self.current(slot, attempt).is_some_and(|c| c.state == TaskState::TaskRunning) {
                    self.end(slot, ending, &mut actions);
                }
            }
            Input::GraceOver { slot, attempt } => {
                if self.current(slot, attempt).is_some_and(|c| c.state == TaskState::TaskKilling) {
                    actions.push(Action::Kill { slot });
                }
            }
            Input::BackoffOver { slot: Some(slot) } => {
                if let Some(container) = self.containers.get_mut(slot).filter(|c| c.in_backoff) {
                    container.in_backoff = false;
                    container.state = TaskState::TaskStaging;
                    container.healthy = None;
                    self.launch_ready(&mut actions);
                }
            }
            Input::BackoffOver { slot: None } => {
                if self.phase == InstancePhase::Backoff && !self.stopping {
                    self.round_failed = false;
                    for container in &mut self.containers {
                        container.state = TaskState::TaskStaging;
                        container.healthy = None;
                    }
                    self.launch_ready(&mut actions);
                }
            }
            Input::Stop => self.stop(now_ms, &mut actions),
            Input::LauncherDied => self.launcher_died(now_ms, &mut actions),
            Input::SetupFailed { message } => {
                self.message = Some(message.clone());
                for slot in 0..self.containers.len() {
                    if !self.containers[slot].state.is_terminal() {
                        let container = &mut self.containers[slot];
                        container.state = TaskState::TaskError;
                        container.reason = Some(Reason::ContainerLaunchFailed);
                        container.message = Some(message.clone());
                        container.finished_ms = Some(now_ms);
                    }
                }
                self.round_failed = true;
                actions.push(event(None, "pod-setup-failed", message));
            }
        }
        self.settle(&mut actions);
        actions
    }

    /// The container of a slot, if it is in this attempt.
    fn current(&mut self, slot: usize, attempt: u32) -> Option<&mut Container> {
        self.containers.get_mut(slot).filter(|c| c.attempt == attempt)
    }

    fn ready(&self, slot: usize) -> bool {
        let container = &self.containers[slot];
        let rule = &self.rules.containers[slot];
        // one that has finished its work with success counts as ready, as an init container would
        container.state == TaskState::TaskFinished
            || container.state == TaskState::TaskRunning && (!rule.checked || container.healthy == Some(true))
    }

    /// Launches every container whose turn has come.
    fn launch_ready(&mut self, actions: &mut Vec<Action>) {
        if self.stopping || self.round_failed && self.rules.scope == RestartScope::Pod {
            return;
        }
        for slot in 0..self.containers.len() {
            let waits = self.containers[slot].state == TaskState::TaskStaging
                && !self.containers[slot].in_backoff
                && !self.containers[slot].launching;
            if waits && self.rules.containers[slot].after.iter().all(|&other| self.ready(other)) {
                let container = &mut self.containers[slot];
                container.attempt += 1;
                container.pid = None;
                container.exit = None;
                container.reason = None;
                container.message = None;
                container.launching = true;
                container.ending = None;
                container.finished_ms = None;
                container.started_ms = None;
                container.memory_peak = None;
                let attempt = container.attempt;
                actions.push(Action::Launch { slot, attempt });
            }
        }
    }

    fn launched(&mut self, slot: usize, attempt: u32, pid: u32, now_ms: u64, actions: &mut Vec<Action>) {
        let stopping = self.stopping;
        let Some(container) = self.current(slot, attempt).filter(|c| c.alive() && c.pid.is_none()) else { return };
        container.pid = Some(pid);
        container.launching = false;
        container.started_ms = Some(now_ms);
        let ending = container.ending.take();
        container.state = TaskState::TaskRunning;
        actions.push(event(Some(slot), "container-started", format!("started as process {pid} (start {attempt})")));
        if let Some(ending) = ending {
            self.end(slot, ending, actions);
        } else if stopping {
            self.end(slot, by_request(), actions);
        } else {
            self.launch_ready(actions);
        }
    }

    /// Ends a running container.
    fn end(&mut self, slot: usize, ending: Ending, actions: &mut Vec<Action>) {
        let grace_ms = self.rules.containers[slot].grace_ms;
        let container = &mut self.containers[slot];
        container.state = TaskState::TaskKilling;
        actions.push(event(Some(slot), "container-killing", ending.message.clone()));
        let at_once = ending.reason == Reason::ContainerLimitationDisk || grace_ms == 0;
        container.ending = Some(ending);
        if at_once {
            actions.push(Action::Kill { slot });
        } else {
            actions.push(Action::Terminate { slot, attempt: container.attempt, grace_ms });
        }
    }

    /// A container has ended in this attempt.
    #[allow(clippy::too_many_arguments, reason = "the facts of an end; a struct would be built at each of the two calls")]
    fn ended(
        &mut self,
        slot: usize,
        state: TaskState,
        reason: Option<Reason>,
        message: Option<String>,
        exit: Option<ExitStatus>,
        now_ms: u64,
        actions: &mut Vec<Action>,
    ) {
        let container = &mut self.containers[slot];
        let ran_ms = container.started_ms.map_or(0, |start| now_ms.saturating_sub(start));
        container.launching = false;
        container.state = state;
        container.reason = reason;
        container.message.clone_from(&message);
        container.exit = exit;
        container.pid = None;
        container.healthy = None;
        container.finished_ms = Some(now_ms);
        if ran_ms >= STABLE_MS {
            container.failures = 0;
            self.failures = 0;
        }
        let text = match (&message, exit) {
            (Some(message), _) => message.clone(),
            (None, Some(exit)) => format!("ended with {exit}"),
            (None, None) => "ended".to_owned(),
        };
        actions.push(event(Some(slot), "container-ended", format!("{}: {text}", state.as_str())));
        if self.stopping {
            return;
        }
        let failed = state != TaskState::TaskFinished;
        match self.rules.scope {
            RestartScope::Container => {
                let again = match self.rules.policy {
                    RestartPolicy::Always => true,
                    RestartPolicy::OnFailure => failed,
                    RestartPolicy::Never => false,
                };
                if again {
                    let container = &mut self.containers[slot];
                    let delay_ms = delay_ms(&self.rules, container.failures);
                    container.failures = container.failures.saturating_add(1);
                    container.in_backoff = true;
                    actions.push(Action::Backoff { slot: Some(slot), delay_ms });
                } else {
                    self.launch_ready(actions);
                }
            }
            RestartScope::Pod if failed => {
                self.round_failed = true;
                let name = self.rules.containers[slot].name.clone();
                for other in 0..self.containers.len() {
                    let ending = Ending {
                        state: TaskState::TaskKilled,
                        reason: Reason::TaskGroupFailed,
                        message: format!("container {name} of the pod failed"),
                    };
                    self.end_or_cancel(other, ending, now_ms, actions);
                }
            }
            RestartScope::Pod => self.launch_ready(actions),
        }
    }

    /// Ends a container whatever it is doing; one whose turn has not come is ended on paper.
    fn end_or_cancel(&mut self, slot: usize, ending: Ending, now_ms: u64, actions: &mut Vec<Action>) {
        let container = &mut self.containers[slot];
        match container.state {
            TaskState::TaskRunning => self.end(slot, ending, actions),
            TaskState::TaskStaging | TaskState::TaskStarting => {
                if container.launching {
                    container.ending = Some(ending);
                    actions.push(Action::CancelLaunch { slot });
                } else {
                    container.state = ending.state;
                    container.reason = Some(ending.reason);
                    container.message = Some(ending.message);
                    container.in_backoff = false;
                    container.finished_ms = Some(now_ms);
                }
            }
            _ => container.in_backoff = false,
        }
    }

    fn stop(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        if self.stopping {
            return;
        }
        self.stopping = true;
        for slot in 0..self.containers.len() {
            self.end_or_cancel(slot, by_request(), now_ms, actions);
        }
    }

    fn launcher_died(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        const MESSAGE: &str = "the pod's launcher (pod-init) died and the container was killed with it";
        actions.push(event(None, "pod-launcher-died", MESSAGE.to_owned()));
        actions.push(Action::NewSandbox);
        for slot in 0..self.containers.len() {
            if self.containers[slot].state.is_terminal() || !self.containers[slot].alive() {
                continue;
            }
            if self.containers[slot].launching {
                actions.push(Action::CancelLaunch { slot });
            }
            let (state, reason) = if self.containers[slot].ending.take().is_some() {
                (TaskState::TaskKilled, Reason::TaskKilledByRequest)
            } else {
                (TaskState::TaskFailed, Reason::ContainerLauncherDied)
            };
            let exit = Some(ExitStatus::Unknown);
            self.ended(slot, state, Some(reason), Some(MESSAGE.to_owned()), exit, now_ms, actions);
        }
    }

    /// Draws the conclusions for the instance as a whole.
    fn settle(&mut self, actions: &mut Vec<Action>) {
        let all_ended = self.containers.iter().all(|c| c.state.is_terminal() && !c.in_backoff);
        let failed = self.containers.iter().any(|c| c.state.is_terminal() && c.state != TaskState::TaskFinished);
        if all_ended {
            let again = !self.stopping
                && self.rules.scope == RestartScope::Pod
                && match self.rules.policy {
                    RestartPolicy::Always => true,
                    RestartPolicy::OnFailure => failed,
                    RestartPolicy::Never => false,
                };
            if again {
                if self.phase != InstancePhase::Backoff {
                    self.phase = InstancePhase::Backoff;
                    let delay_ms = delay_ms(&self.rules, self.failures);
                    self.failures = self.failures.saturating_add(1);
                    actions.push(Action::Backoff { slot: None, delay_ms });
                    actions.push(event(None, "pod-backoff", format!("starts again in {delay_ms} ms")));
                }
                return;
            }
            let by_stop = self.stopping
                && self.containers.iter().all(|c| {
                    matches!(c.state, TaskState::TaskFinished | TaskState::TaskKilled)
                });
            self.phase = if failed && !by_stop { InstancePhase::Failed } else { InstancePhase::Finished };
            actions.push(event(None, "pod-ended", "every container has ended".to_owned()));
            actions.push(Action::Release);
            return;
        }
        self.phase = if self.stopping || self.round_failed && self.rules.scope == RestartScope::Pod {
            InstancePhase::Stopping
        } else if self.containers.iter().any(|c| c.in_backoff || c.healthy == Some(false)) {
            InstancePhase::Degraded
        } else if self.containers.iter().any(|c| !c.state.is_terminal() && c.state != TaskState::TaskRunning) {
            InstancePhase::Starting
        } else {
            let settled = (0..self.containers.len())
                .all(|slot| self.containers[slot].state.is_terminal() || self.ready(slot));
            if settled { InstancePhase::Running } else { InstancePhase::Starting }
        };
    }

    /// The inputs with which a restarted daemon resumes: launches that were under way, timers, kills.
    pub fn resume(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.over() {
            actions.push(Action::Release);
            return actions;
        }
        for (slot, container) in self.containers.iter().enumerate() {
            if container.in_backoff {
                let delay_ms = delay_ms(&self.rules, container.failures.saturating_sub(1));
                actions.push(Action::Backoff { slot: Some(slot), delay_ms });
            }
            if container.state == TaskState::TaskKilling {
                let grace_ms = self.rules.containers[slot].grace_ms;
                actions.push(Action::Terminate { slot, attempt: container.attempt, grace_ms });
            }
        }
        if self.phase == InstancePhase::Backoff {
            let delay_ms = delay_ms(&self.rules, self.failures.saturating_sub(1));
            actions.push(Action::Backoff { slot: None, delay_ms });
        }
        actions
    }
}

fn by_request() -> Ending {
    Ending {
        state: TaskState::TaskKilled,
        reason: Reason::TaskKilledByRequest,
        message: "ended on request".to_owned(),
    }
}

fn event(slot: Option<usize>, kind: &'static str, message: String) -> Action {
    Action::Event { slot, kind, message }
}

/// `backoff * factor ^ failures`, at most `maxLaunchDelay`.
fn delay_ms(rules: &Rules, failures: u32) -> u64 {
    let backoff = &rules.backoff;
    let seconds = backoff.backoff * backoff.backoff_factor.powi(failures.min(10_000) as i32);
    (seconds.min(backoff.max_launch_delay).max(0.0) * 1000.0) as u64
}
