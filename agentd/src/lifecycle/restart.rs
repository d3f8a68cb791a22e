//! What follows from the end of a container: the end of others, restarts and their delays, and what the instance as a
//! whole is doing.

use agentd_api::pod::{RestartPolicy, RestartScope};
use agentd_api::status::{InstancePhase, Reason, TaskState};

use super::machine::{Outcome, event};
use super::{Action, Container, Ending, Machine, Rules, STABLE_MS, Worker};

impl Machine {
    /// Whether one that has ended so starts again.
    fn again(&self, failed: bool) -> bool {
        match self.rules.policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => failed,
            RestartPolicy::Never => false,
        }
    }

    /// Whether a container of this round has failed and takes the others with it.
    fn round_ends(&self) -> bool {
        self.round_failed && self.rules.scope == RestartScope::Pod
    }

    fn ready(&self, slot: usize) -> bool {
        let container = &self.containers[slot];
        // one that has finished its work with success counts as ready, as an init container would
        container.state == TaskState::TaskFinished
            || container.state == TaskState::TaskRunning
                && (!self.rules.containers[slot].checked || container.healthy == Some(true))
    }

    /// Launches every container whose turn has come.
    pub(super) fn launch_ready(&mut self, actions: &mut Vec<Action>) {
        if self.stopping || self.round_ends() {
            return;
        }
        for slot in 0..self.containers.len() {
            let waits = self.containers[slot].waits();
            if waits && self.rules.containers[slot].after.iter().all(|&other| self.ready(other)) {
                let container = &mut self.containers[slot];
                container.attempt += 1;
                container.pid = None;
                container.exit = None;
                container.reason = None;
                container.message = None;
                container.launching = true;
                container.worker = Worker::Present;
                container.ending = None;
                container.finished_ms = None;
                container.started_ms = None;
                container.memory_peak = None;
                let attempt = container.attempt;
                actions.push(Action::Launch { slot, attempt });
            }
        }
    }

    /// Ends those on paper that wait for a container which will never be ready, and those that wait for them.
    pub(super) fn give_up_dependents(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        let lost = |machine: &Self, slot: usize| {
            let container = &machine.containers[slot];
            container.done() && container.state != TaskState::TaskFinished
        };
        // in scope `pod` the failure has ended every other container already, and the next round starts all again
        while self.rules.scope == RestartScope::Container && !self.stopping {
            let found = (0..self.containers.len()).filter(|&slot| self.containers[slot].waits()).find_map(|slot| {
                let other = self.rules.containers[slot].after.iter().find(|&&other| lost(self, other))?;
                Some((slot, *other))
            });
            let Some((slot, other)) = found else { return };
            let (name, state) = (&self.rules.containers[other].name, self.containers[other].state.as_str());
            let outcome = Outcome {
                state: TaskState::TaskError,
                reason: Some(Reason::TaskGroupFailed),
                message: Some(format!("not started: it starts after {name}, which has ended for good as {state}")),
                exit: self.containers[slot].exit,
            };
            self.finish(slot, outcome, now_ms, actions);
        }
    }

    /// Notes that a container has ended in this attempt, or will not be started. Draws no conclusion yet.
    pub(super) fn finish(&mut self, slot: usize, outcome: Outcome, now_ms: u64, actions: &mut Vec<Action>) {
        let Outcome { state, reason, message, exit } = outcome;
        let container = &mut self.containers[slot];
        let ran_ms = match (container.pid, container.started_ms) {
            (Some(_), Some(start)) => now_ms.saturating_sub(start),
            _ => 0,
        };
        let text = match (&message, exit) {
            (Some(message), _) => message.clone(),
            (None, Some(exit)) => format!("ended with {exit}"),
            (None, None) => "ended".to_owned(),
        };
        container.launching = false;
        container.worker = Worker::Nobody;
        container.ending = None;
        container.state = state;
        container.reason = reason;
        container.message = message;
        container.exit = exit;
        container.pid = None;
        container.healthy = None;
        container.finished_ms = Some(now_ms);
        if ran_ms >= STABLE_MS {
            container.failures = 0;
            self.failures = 0;
        }
        actions.push(event(Some(slot), "container-ended", format!("{}: {text}", state.as_str())));
    }

    /// What the end of a container means for it and for the others.
    pub(super) fn conclude(&mut self, slot: usize, now_ms: u64, actions: &mut Vec<Action>) {
        if self.stopping {
            return;
        }
        let failed = self.containers[slot].state != TaskState::TaskFinished;
        match self.rules.scope {
            RestartScope::Container if self.again(failed) => {
                let delay_ms = delay_ms(&self.rules, self.containers[slot].failures);
                let container = &mut self.containers[slot];
                container.failures = container.failures.saturating_add(1);
                container.in_backoff = true;
                container.backoff_until_ms = now_ms.saturating_add(delay_ms);
                actions.push(Action::Backoff { slot: Some(slot), delay_ms });
            }
            RestartScope::Pod if failed && !self.round_failed => {
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
            RestartScope::Container | RestartScope::Pod => {}
        }
    }

    pub(super) fn backoff_over(&mut self, slot: Option<usize>, now_ms: u64, actions: &mut Vec<Action>) {
        let waits = match slot {
            Some(slot) => self.containers.get(slot).is_some_and(|c| c.in_backoff),
            None => self.phase == InstancePhase::Backoff,
        };
        if !waits {
            return;
        }
        let timer = self.timer(slot, now_ms);
        if matches!(timer, Action::Backoff { delay_ms: 1.., .. }) {
            // the timer of an earlier delay, or one set twice, or a clock that was set back
            actions.push(timer);
            return;
        }
        if let Some(slot) = slot {
            self.wait_again(slot);
        } else {
            self.round_failed = false;
            (0..self.containers.len()).for_each(|slot| self.wait_again(slot));
        }
    }

    fn wait_again(&mut self, slot: usize) {
        let container = &mut self.containers[slot];
        container.in_backoff = false;
        container.state = TaskState::TaskStaging;
        container.healthy = None;
    }

    /// The timer for what is left of a delay. The end of the delay is held in wall-clock time, so that it survives the
    /// daemon; a clock that was set back makes it no longer than it was at first.
    fn timer(&mut self, slot: Option<usize>, now_ms: u64) -> Action {
        let (failures, until) = match slot.map(|slot| &mut self.containers[slot]) {
            Some(container) => (container.failures, &mut container.backoff_until_ms),
            None => (self.failures, &mut self.backoff_until_ms),
        };
        let delay_ms = until.saturating_sub(now_ms).min(delay_ms(&self.rules, failures.saturating_sub(1)));
        *until = now_ms.saturating_add(delay_ms);
        Action::Backoff { slot, delay_ms }
    }

    /// Sets the timers of everything that waits for its restart. One that is set twice does no harm: see
    /// [`Machine::backoff_over`].
    pub(super) fn set_timers(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        for slot in 0..self.containers.len() {
            if self.containers[slot].in_backoff {
                actions.push(self.timer(Some(slot), now_ms));
            }
        }
        if self.phase == InstancePhase::Backoff {
            actions.push(self.timer(None, now_ms));
        }
    }

    /// Draws the conclusions for the instance as a whole.
    pub(super) fn settle(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        let failed = self.containers.iter().any(|c| c.state.is_terminal() && c.state != TaskState::TaskFinished);
        if !self.containers.iter().all(Container::done) {
            self.phase = self.going();
            return;
        }
        if !self.stopping && self.rules.scope == RestartScope::Pod && self.again(failed) {
            if self.phase != InstancePhase::Backoff {
                self.phase = InstancePhase::Backoff;
                let delay_ms = delay_ms(&self.rules, self.failures);
                self.failures = self.failures.saturating_add(1);
                self.backoff_until_ms = now_ms.saturating_add(delay_ms);
                actions.push(Action::Backoff { slot: None, delay_ms });
                actions.push(event(None, "pod-backoff", format!("starts again in {delay_ms} ms")));
            }
            return;
        }
        let as_asked = |state| matches!(state, TaskState::TaskFinished | TaskState::TaskKilled);
        let by_stop = self.stopping && self.containers.iter().all(|c| as_asked(c.state));
        self.phase = if failed && !by_stop { InstancePhase::Failed } else { InstancePhase::Finished };
        actions.push(event(None, "pod-ended", "every container has ended".to_owned()));
        actions.push(Action::Release);
    }

    /// The phase of an instance of which something still goes on.
    fn going(&self) -> InstancePhase {
        // one that is down, or on its way there; one that has finished its work is not
        let down = |c: &Container| {
            c.in_backoff
                || c.healthy == Some(false)
                || c.state == TaskState::TaskKilling
                || c.state.is_terminal() && c.state != TaskState::TaskFinished
        };
        if self.stopping || self.round_ends() {
            InstancePhase::Stopping
        } else if self.containers.iter().any(down) {
            InstancePhase::Degraded
        } else if (0..self.containers.len()).all(|slot| self.ready(slot)) {
            InstancePhase::Running
        } else {
            InstancePhase::Starting
        }
    }
}

/// `backoff * factor ^ failures`, at most `maxLaunchDelay`.
pub(super) fn delay_ms(rules: &Rules, failures: u32) -> u64 {
    let backoff = &rules.backoff;
    if backoff.backoff <= 0.0 {
        // 0 times a factor that has grown to infinity is not a number
        return 0;
    }
    let seconds = backoff.backoff * backoff.backoff_factor.powi(failures.min(10_000) as i32);
    (seconds.min(backoff.max_launch_delay).max(0.0) * 1000.0) as u64
}
