//! The rules of the module's prose, one by one; [`properties`] tries them against random histories.

mod crash;
mod properties;

use agentd_api::pod::{Backoff, RestartPolicy, RestartScope};
use agentd_api::status::{ExitStatus, InstancePhase, Reason, TaskState};

use super::{Action, ContainerRule, Ending, Input, Machine, Rules, STABLE_MS};

use InstancePhase as Phase;
use RestartPolicy::{Always, Never, OnFailure};
use RestartScope::{Container as Each, Pod};
use TaskState::*;

pub(super) const GRACE: u64 = 5000;

/// Containers by name; `after` by name; a `?` behind the name gives it a health check.
pub(super) fn rules(policy: RestartPolicy, scope: RestartScope, containers: &[(&str, &[&str])]) -> Rules {
    let plain = |name: &str| name.trim_end_matches('?').to_owned();
    let slot = |name: &&str| containers.iter().position(|(n, _)| plain(n) == **name).unwrap();
    Rules {
        containers: containers
            .iter()
            .map(|(name, after)| ContainerRule {
                name: plain(name),
                after: after.iter().map(slot).collect(),
                checked: name.ends_with('?'),
                grace_ms: GRACE,
            })
            .collect(),
        policy,
        scope,
        backoff: Backoff { backoff: 1.0, backoff_factor: 2.0, max_launch_delay: 10.0 },
    }
}

/// A machine with a clock; remembers the actions of the last step, without events.
pub(super) struct Run {
    pub machine: Machine,
    pub now: u64,
    pub actions: Vec<Action>,
}

impl Run {
    pub fn new(rules: Rules) -> Self {
        Self { machine: Machine::new(rules), now: 1_000_000_000, actions: Vec::new() }
    }

    fn begun(policy: RestartPolicy, scope: RestartScope, containers: &[(&str, &[&str])]) -> Self {
        let mut run = Self::new(rules(policy, scope, containers));
        run.step(Input::Begin);
        run
    }

    /// Begun, and every container that may start has been started.
    fn running(policy: RestartPolicy, scope: RestartScope, containers: &[(&str, &[&str])]) -> Self {
        let mut run = Self::begun(policy, scope, containers);
        while let Some(slot) = (0..containers.len()).find(|&slot| run.machine.containers[slot].launching) {
            run.launched(slot);
        }
        run
    }

    pub fn step(&mut self, input: Input) -> &[Action] {
        self.actions = self.machine.step(input, self.now);
        self.actions.retain(|a| !matches!(a, Action::Event { .. }));
        &self.actions
    }

    fn attempt(&self, slot: usize) -> u32 {
        self.machine.containers[slot].attempt
    }

    fn starting(&mut self, slot: usize) -> &[Action] {
        self.step(Input::Starting { slot, attempt: self.attempt(slot) })
    }

    fn launched(&mut self, slot: usize) -> &[Action] {
        self.step(Input::Launched { slot, attempt: self.attempt(slot), pid: 100 + slot as u32 })
    }

    fn launch_failed(&mut self, slot: usize) -> &[Action] {
        let (reason, message) = (Reason::ImagePullFailed, "no image".to_owned());
        self.step(Input::LaunchFailed { slot, attempt: self.attempt(slot), reason, message })
    }

    fn exited(&mut self, slot: usize, exit: ExitStatus) -> &[Action] {
        self.step(Input::Exited { slot, attempt: self.attempt(slot), exit, cause: None, memory_peak: Some(7) })
    }

    fn health(&mut self, slot: usize, healthy: bool) -> &[Action] {
        self.step(Input::Health { slot, attempt: self.attempt(slot), healthy })
    }

    fn end(&mut self, slot: usize, reason: Reason) -> &[Action] {
        let ending = Ending { state: TaskFailed, reason, message: format!("killed for {reason:?}") };
        self.step(Input::End { slot, attempt: self.attempt(slot), ending })
    }

    fn grace_over(&mut self, slot: usize) -> &[Action] {
        self.step(Input::GraceOver { slot, attempt: self.attempt(slot) })
    }

    fn backoff_over(&mut self, slot: Option<usize>) -> &[Action] {
        self.now = match slot {
            Some(slot) => self.machine.containers[slot].backoff_until_ms,
            None => self.machine.backoff_until_ms,
        };
        self.step(Input::BackoffOver { slot })
    }

    fn states(&self) -> Vec<TaskState> {
        self.machine.containers.iter().map(|c| c.state).collect()
    }

    fn reason(&self, slot: usize) -> Option<Reason> {
        self.machine.containers[slot].reason
    }

    fn message(&self, slot: usize) -> &str {
        self.machine.containers[slot].message.as_deref().unwrap_or("")
    }
}

const OK: ExitStatus = ExitStatus::Code(0);
const BAD: ExitStatus = ExitStatus::Code(3);
const NINE: ExitStatus = ExitStatus::Signal(9);

fn launch(slot: usize, attempt: u32) -> Action {
    Action::Launch { slot, attempt }
}
fn terminate(slot: usize, attempt: u32) -> Action {
    Action::Terminate { slot, attempt, grace_ms: GRACE }
}
fn backoff(slot: Option<usize>, delay_ms: u64) -> Action {
    Action::Backoff { slot, delay_ms }
}

#[test]
fn containers_start_in_the_order_of_start_after() {
    let mut run = Run::begun(Always, Pod, &[("web", &["db", "cache"]), ("db", &[]), ("cache", &["db"])]);
    assert_eq!(run.actions, [launch(1, 1)]);
    assert_eq!(run.starting(1), []);
    assert_eq!(run.states(), [TaskStaging, TaskStarting, TaskStaging]);
    assert_eq!(run.machine.phase, Phase::Starting);
    assert_eq!(run.launched(1), [launch(2, 1)]);
    assert_eq!(run.launched(2), [launch(0, 1)]);
    assert_eq!(run.machine.phase, Phase::Starting);
    assert_eq!(run.launched(0), []);
    assert_eq!(run.states(), [TaskRunning; 3]);
    assert_eq!(run.machine.phase, Phase::Running);
    assert_eq!((run.machine.containers[0].pid, run.machine.containers[0].started_ms), (Some(100), Some(run.now)));
}

#[test]
fn a_checked_container_is_ready_when_it_is_healthy() {
    let mut run = Run::begun(Always, Pod, &[("db?", &[]), ("web", &["db"])]);
    assert_eq!(run.launched(0), []);
    assert_eq!(run.machine.phase, Phase::Starting);
    assert_eq!(run.health(0, false), []);
    assert_eq!(run.machine.phase, Phase::Degraded);
    assert_eq!(run.health(0, true), [launch(1, 1)]);
    assert_eq!(run.health(0, true), []);
    run.launched(1);
    assert_eq!(run.machine.phase, Phase::Running);
    // what has started stays when its dependency turns unhealthy
    assert_eq!(run.health(0, false), []);
    assert_eq!((run.states(), run.machine.phase), (vec![TaskRunning; 2], Phase::Degraded));
}

#[test]
fn an_init_container_that_finished_is_ready_whether_checked_or_not() {
    for scope in [Pod, Each] {
        for policy in [Always, OnFailure, Never] {
            let mut run = Run::begun(policy, scope, &[("init?", &[]), ("main", &["init"])]);
            run.launched(0);
            let actions = run.exited(0, OK).to_vec();
            assert!(actions.contains(&launch(1, 1)), "{scope:?} {policy:?}: {actions:?}");
            run.launched(1);
            // with scope `container` and policy `always` it waits for its next run, else it has done its work
            let expected = if scope == Each && policy == Always { Phase::Degraded } else { Phase::Running };
            assert_eq!((run.states(), run.machine.phase), (vec![TaskFinished, TaskRunning], expected));
        }
    }
}

#[test]
fn policy_and_scope_decide_what_starts_again() {
    // policy, scope, exit of the first of two containers, whether anything starts again once both have ended with it
    let table = [
        (Always, Pod, OK, true),
        (Always, Pod, BAD, true),
        (OnFailure, Pod, OK, false),
        (OnFailure, Pod, BAD, true),
        (Never, Pod, OK, false),
        (Never, Pod, BAD, false),
        (Always, Each, OK, true),
        (Always, Each, BAD, true),
        (OnFailure, Each, OK, false),
        (OnFailure, Each, BAD, true),
        (Never, Each, OK, false),
        (Never, Each, BAD, false),
    ];
    for (policy, scope, exit, again) in table {
        let what = format!("{policy:?} {scope:?} {exit}");
        let mut run = Run::running(policy, scope, &[("a", &[]), ("b", &[])]);
        let first = run.exited(0, exit).to_vec();
        let second = run.exited(1, exit).to_vec();
        let failed = exit != OK;
        match (scope, again) {
            (Pod, _) if failed => assert_eq!(first, [terminate(1, 1)], "{what}"),
            (Each, true) => {
                assert_eq!((first, &second), (vec![backoff(Some(0), 1000)], &vec![backoff(Some(1), 1000)]), "{what}");
            }
            _ => assert_eq!(first, [], "{what}"),
        }
        if again {
            assert!(!run.machine.over(), "{what}");
            if scope == Pod {
                assert_eq!((second, run.machine.phase), (vec![backoff(None, 1000)], Phase::Backoff), "{what}");
                assert_eq!(run.backoff_over(None), [launch(0, 2), launch(1, 2)], "{what}");
                assert_eq!(run.machine.phase, Phase::Starting, "{what}");
            } else {
                assert_eq!(run.machine.phase, Phase::Degraded, "{what}");
                assert_eq!(run.backoff_over(Some(0)), [launch(0, 2)], "{what}");
            }
        } else {
            assert_eq!(second, [Action::Release], "{what}");
            assert_eq!(run.machine.phase, if failed { Phase::Failed } else { Phase::Finished }, "{what}");
        }
    }
}

#[test]
fn the_failure_of_one_takes_the_group_with_it() {
    let mut run = Run::begun(OnFailure, Pod, &[("a", &[]), ("b", &[]), ("c", &[]), ("d", &["c"])]);
    run.launched(0);
    run.launched(1);
    run.starting(2);
    // b runs, c is being launched, d waits for it
    assert_eq!(run.exited(0, BAD), [terminate(1, 1), Action::CancelLaunch { slot: 2 }]);
    assert_eq!(run.states(), [TaskFailed, TaskKilling, TaskStarting, TaskKilled]);
    assert_eq!((run.machine.phase, run.reason(0)), (Phase::Stopping, Some(Reason::CommandExecutorFailed)));
    assert_eq!((run.reason(3), run.attempt(3)), (Some(Reason::TaskGroupFailed), 0));
    // what ended it first is why it ended
    let mut stopped = Run { machine: run.machine.clone(), ..Run::new(run.machine.rules.clone()) };
    assert_eq!(stopped.step(Input::Stop), []);
    stopped.launch_failed(2);
    assert_eq!(stopped.reason(2), Some(Reason::TaskGroupFailed));
    assert_eq!(run.launch_failed(2), []);
    assert_eq!((run.states()[2], run.reason(2)), (TaskKilled, Some(Reason::TaskGroupFailed)));
    assert_eq!(run.message(2), "container a of the pod failed");
    // that it ends with 0 does not make it a success: it was not done
    assert_eq!(run.exited(1, OK), [backoff(None, 1000)]);
    assert_eq!(run.states(), [TaskFailed, TaskKilled, TaskKilled, TaskKilled]);
    assert_eq!(run.message(1), "container a of the pod failed");
    assert_eq!(run.backoff_over(None), [launch(0, 2), launch(1, 2), launch(2, 2)]);
}

#[test]
fn a_launch_that_succeeds_after_it_was_given_up_is_ended() {
    let mut run = Run::begun(Never, Pod, &[("a", &[]), ("b", &[])]);
    run.launched(0);
    assert_eq!(run.exited(0, BAD), [Action::CancelLaunch { slot: 1 }]);
    assert_eq!(run.launched(1), [terminate(1, 1)]);
    assert_eq!(run.exited(1, NINE), [Action::Release]);
    assert_eq!((run.states(), run.machine.phase), (vec![TaskFailed, TaskKilled], Phase::Failed));
}

#[test]
fn delays_grow_are_capped_and_begin_anew_after_a_stable_run() {
    for scope in [Pod, Each] {
        let slot = (scope == Each).then_some(0);
        let mut run = Run::running(Always, scope, &[("a", &[])]);
        for delay in [1000, 2000, 4000, 8000, 10_000, 10_000] {
            assert_eq!(run.exited(0, BAD), [backoff(slot, delay)], "{scope:?}");
            run.backoff_over(slot);
            run.launched(0);
        }
        run.now += STABLE_MS - 1;
        assert_eq!(run.exited(0, BAD), [backoff(slot, 10_000)], "{scope:?}");
        run.backoff_over(slot);
        run.launched(0);
        run.now += STABLE_MS;
        assert_eq!(run.exited(0, BAD), [backoff(slot, 1000)], "{scope:?}");
        // the time between the start of one attempt and the failed launch of the next is no stable run
        run.now += 2 * STABLE_MS;
        run.step(Input::BackoffOver { slot });
        assert_eq!(run.launch_failed(0), [backoff(slot, 2000)], "{scope:?}");
    }
}

#[test]
fn one_that_is_ended_on_paper_has_not_run() {
    let mut run = Run::running(Always, Pod, &[("a", &[]), ("b", &["a"])]);
    run.exited(0, BAD);
    assert_eq!(run.exited(1, NINE), [backoff(None, 1000)]);
    run.now += 2 * STABLE_MS;
    assert_eq!(run.step(Input::BackoffOver { slot: None }), [launch(0, 2)]);
    assert_eq!(run.launch_failed(0), [backoff(None, 2000)]);
    // it keeps the end of its last attempt
    assert_eq!((run.states()[1], run.machine.containers[1].exit), (TaskKilled, Some(NINE)));
}

#[test]
fn delays_are_numbers_at_the_ends_of_the_range() {
    let mut rules = rules(Always, Pod, &[("a", &[])]);
    for (backoff, factor, most, failures, expected) in [
        (0.0, 1000.0, 3600.0, u32::MAX, 0),
        (1.0, 1.0, 3600.0, u32::MAX, 1000),
        (1.0, 1000.0, 3600.0, u32::MAX, 3_600_000),
        (5.0, 2.0, 0.0, 0, 0),
        (0.001, 1.15, 1.0, 0, 1),
    ] {
        rules.backoff = Backoff { backoff, backoff_factor: factor, max_launch_delay: most };
        assert_eq!(super::restart::delay_ms(&rules, failures), expected, "{backoff} {factor} {most} {failures}");
    }
}

#[test]
fn a_restart_timer_that_comes_early_is_set_for_the_rest() {
    let mut run = Run::running(Always, Each, &[("a", &[])]);
    assert_eq!(run.exited(0, BAD), [backoff(Some(0), 1000)]);
    run.now += 400;
    assert_eq!(run.step(Input::BackoffOver { slot: Some(0) }), [backoff(Some(0), 600)]);
    assert_eq!(run.step(Input::BackoffOver { slot: None }), []);
    assert_eq!(run.step(Input::BackoffOver { slot: Some(9) }), []);
    // the clock is set back by a day: not longer than the delay
    run.now -= 86_400_000;
    assert_eq!(run.step(Input::BackoffOver { slot: Some(0) }), [backoff(Some(0), 1000)]);
    run.now += 1000;
    assert_eq!(run.step(Input::BackoffOver { slot: Some(0) }), [launch(0, 2)]);
    assert_eq!(run.step(Input::BackoffOver { slot: Some(0) }), []);
}

#[test]
fn stop_while_waiting_launching_running_killing_and_in_backoff() {
    let mut run =
        Run::begun(Always, Each, &[("waits", &["launches"]), ("launches", &[]), ("runs", &[]), ("down", &[])]);
    run.launched(2);
    run.launched(3);
    run.exited(3, BAD);
    assert_eq!(run.step(Input::Stop), [Action::CancelLaunch { slot: 1 }, terminate(2, 1)]);
    assert_eq!(run.states(), [TaskKilled, TaskStaging, TaskKilling, TaskFailed]);
    assert_eq!((run.machine.phase, run.reason(0)), (Phase::Stopping, Some(Reason::TaskKilledByRequest)));
    assert_eq!(run.step(Input::Stop), []);
    assert_eq!(run.step(Input::BackoffOver { slot: Some(3) }), []);
    assert_eq!(run.launch_failed(1), []);
    assert_eq!(run.states()[1], TaskKilled);
    assert_eq!(run.grace_over(2), [Action::Kill { slot: 2 }]);
    assert_eq!(run.exited(2, NINE), [Action::Release]);
    assert_eq!((run.states()[2], run.machine.containers[2].exit), (TaskKilled, Some(NINE)));
    assert!(run.machine.over());
    assert_eq!(run.step(Input::Begin), []);
}

#[test]
fn stop_before_the_beginning_in_pod_backoff_and_when_sigterm_is_answered_with_success() {
    let mut run = Run::new(rules(Always, Pod, &[("a", &[])]));
    assert_eq!(run.step(Input::Stop), [Action::Release]);
    assert_eq!((run.states(), run.machine.phase), (vec![TaskKilled], Phase::Finished));

    let mut run = Run::running(Always, Pod, &[("a", &[])]);
    run.exited(0, BAD);
    assert_eq!(run.step(Input::Stop), [Action::Release]);
    assert_eq!((run.states(), run.machine.phase), (vec![TaskFailed], Phase::Failed));
    assert_eq!(run.step(Input::BackoffOver { slot: None }), []);

    let mut run = Run::running(Always, Pod, &[("a", &[])]);
    run.step(Input::Stop);
    assert_eq!(run.exited(0, OK), [Action::Release]);
    assert_eq!((run.states(), run.machine.phase), (vec![TaskKilled], Phase::Finished));

    // a launch that was given up and came through all the same
    let mut run = Run::begun(Always, Pod, &[("a", &[])]);
    assert_eq!(run.step(Input::Stop), [Action::CancelLaunch { slot: 0 }]);
    assert_eq!(run.launched(0), [terminate(0, 1)]);
    assert_eq!(run.exited(0, ExitStatus::Signal(15)), [Action::Release]);
    assert_eq!((run.states(), run.machine.phase), (vec![TaskKilled], Phase::Finished));
}

#[test]
fn without_a_grace_period_the_kill_comes_at_once() {
    let mut rules = rules(Always, Pod, &[("a", &[])]);
    rules.containers[0].grace_ms = 0;
    let mut run = Run::new(rules);
    run.step(Input::Begin);
    run.launched(0);
    assert_eq!(run.step(Input::Stop), [Action::Kill { slot: 0 }]);
}

#[test]
fn a_failed_health_check_ends_its_container_with_grace() {
    let mut run = Run::running(Always, Each, &[("a?", &[]), ("b", &[])]);
    run.health(0, true);
    run.launched(1);
    assert_eq!(run.end(0, Reason::TaskHealthCheckFailed), [terminate(0, 1)]);
    assert_eq!(run.machine.phase, Phase::Degraded);
    assert_eq!(run.end(0, Reason::TaskHealthCheckFailed), []);
    assert_eq!(run.health(0, false), []);
    // ending well does not undo why it was ended
    assert_eq!(run.exited(0, OK), [backoff(Some(0), 1000)]);
    assert_eq!((run.states()[0], run.reason(0)), (TaskFailed, Some(Reason::TaskHealthCheckFailed)));
    assert_eq!(run.machine.containers[0].memory_peak, Some(7));
    // with scope `pod` the others follow once it has ended
    let mut run = Run::running(Always, Pod, &[("a?", &[]), ("b", &[])]);
    assert_eq!(run.end(0, Reason::TaskHealthCheckFailed), [terminate(0, 1)]);
    assert_eq!(run.machine.phase, Phase::Degraded);
    assert_eq!(run.exited(0, NINE), [terminate(1, 1)]);
}

#[test]
fn a_container_over_its_disk_limit_is_killed_at_once() {
    let mut run = Run::running(OnFailure, Pod, &[("a", &[])]);
    assert_eq!(run.end(0, Reason::ContainerLimitationDisk), [Action::Kill { slot: 0 }]);
    assert_eq!(run.exited(0, NINE), [backoff(None, 1000)]);
    assert_eq!((run.states()[0], run.reason(0)), (TaskFailed, Some(Reason::ContainerLimitationDisk)));
    // also in its grace period, and it keeps the reason of its end
    let mut run = Run::running(OnFailure, Pod, &[("a", &[])]);
    run.step(Input::Stop);
    assert_eq!(run.end(0, Reason::ContainerLimitationDisk), [Action::Kill { slot: 0 }]);
    run.exited(0, NINE);
    assert_eq!((run.states()[0], run.reason(0)), (TaskKilled, Some(Reason::TaskKilledByRequest)));
}

#[test]
fn what_the_isolators_know_of_an_end_is_its_reason() {
    let mut run = Run::running(Never, Pod, &[("a", &[])]);
    let cause = Some((Reason::ContainerLimitationMemory, "out of memory".to_owned()));
    run.step(Input::Exited { slot: 0, attempt: 1, exit: NINE, cause, memory_peak: None });
    assert_eq!((run.states()[0], run.reason(0)), (TaskFailed, Some(Reason::ContainerLimitationMemory)));
    assert_eq!(run.message(0), "out of memory");
}

#[test]
fn an_end_that_nobody_saw_is_lost_and_counts_as_a_failure() {
    let mut run = Run::running(OnFailure, Pod, &[("a", &[])]);
    assert_eq!(run.exited(0, ExitStatus::Unknown), [backoff(None, 1000)]);
    assert_eq!((run.states()[0], run.reason(0)), (TaskLost, Some(Reason::AgentRestarted)));
    assert_eq!(run.machine.containers[0].exit, Some(ExitStatus::Unknown));
    let mut run = Run::running(Never, Pod, &[("a", &[])]);
    assert_eq!(run.exited(0, ExitStatus::Unknown), [Action::Release]);
    assert_eq!(run.machine.phase, Phase::Failed);
    // what was being ended is not lost, nor what the kernel is known to have killed
    let mut run = Run::running(Never, Pod, &[("a", &[])]);
    run.step(Input::Stop);
    run.exited(0, ExitStatus::Unknown);
    assert_eq!((run.states()[0], run.machine.phase), (TaskKilled, Phase::Finished));
    let mut run = Run::running(Never, Pod, &[("a", &[])]);
    let cause = Some((Reason::ContainerLimitationMemory, "out of memory".to_owned()));
    run.step(Input::Exited { slot: 0, attempt: 1, exit: ExitStatus::Unknown, cause, memory_peak: None });
    assert_eq!(run.states()[0], TaskFailed);
}

#[test]
fn a_failed_launch_follows_the_policy() {
    let mut run = Run::begun(Never, Pod, &[("a", &[]), ("b", &["a"])]);
    assert_eq!(run.launch_failed(0), [Action::Release]);
    assert_eq!((run.states(), run.machine.phase), (vec![TaskError, TaskKilled], Phase::Failed));
    assert_eq!((run.reason(0), run.message(0)), (Some(Reason::ImagePullFailed), "no image"));

    let mut run = Run::begun(OnFailure, Pod, &[("a", &[]), ("b", &["a"])]);
    assert_eq!(run.launch_failed(0), [backoff(None, 1000)]);
    assert_eq!(run.backoff_over(None), [launch(0, 2)]);
    run.launched(0);
    // b's first start is the second round's
    assert_eq!(run.actions, [launch(1, 1)]);

    let mut run = Run::begun(OnFailure, Each, &[("a", &[]), ("b", &["a"])]);
    assert_eq!(run.launch_failed(0), [backoff(Some(0), 1000)]);
    assert_eq!((run.states(), run.machine.phase), (vec![TaskError, TaskStaging], Phase::Degraded));
    assert_eq!(run.backoff_over(Some(0)), [launch(0, 2)]);
    assert_eq!(run.launched(0), [launch(1, 1)]);
}

#[test]
fn who_waits_for_one_that_has_ended_for_good_ends_with_it() {
    let pod: &[(&str, &[&str])] = &[("a", &[]), ("b", &["a"]), ("c", &["b"]), ("free", &[])];
    let mut run = Run::begun(Never, Each, pod);
    run.launched(3);
    assert_eq!(run.launch_failed(0), []);
    assert_eq!(run.states(), [TaskError, TaskError, TaskError, TaskRunning]);
    assert_eq!(run.machine.phase, Phase::Degraded);
    assert_eq!(run.message(1), "not started: it starts after a, which has ended for good as TASK_ERROR");
    assert_eq!(run.message(2), "not started: it starts after b, which has ended for good as TASK_ERROR");
    assert_eq!(run.reason(2), Some(Reason::TaskGroupFailed));
    assert_eq!(run.exited(3, OK), [Action::Release]);
    assert_eq!(run.machine.phase, Phase::Failed);
    // the same when it ran and failed before it was healthy
    let mut run = Run::running(Never, Each, &[("a?", &[]), ("b", &["a"])]);
    assert_eq!(run.exited(0, BAD), [Action::Release]);
    assert_eq!(run.states(), [TaskFailed, TaskError]);
    // one that already runs stays
    let mut run = Run::running(Never, Each, &[("a", &[]), ("b", &["a"])]);
    run.exited(0, BAD);
    assert_eq!((run.states(), run.machine.phase), (vec![TaskFailed, TaskRunning], Phase::Degraded));
}

#[test]
fn a_set_up_that_fails_is_tried_again_as_the_policy_says() {
    let message = || "no network".to_owned();
    for policy in [Always, OnFailure] {
        let mut run = Run::new(rules(policy, Pod, &[("a", &[]), ("b", &["a"])]));
        assert_eq!(run.step(Input::SetupFailed { message: message() }), [backoff(None, 1000)]);
        assert_eq!((run.states(), run.machine.phase), (vec![TaskError; 2], Phase::Backoff));
        assert_eq!(run.machine.message.as_deref(), Some("no network"));
        assert_eq!(run.backoff_over(None), [launch(0, 1)]);
        run.launched(0);
        assert_eq!(run.machine.message, None);

        let mut run = Run::new(rules(policy, Each, &[("a", &[]), ("b", &["a"])]));
        let both = [backoff(Some(0), 1000), backoff(Some(1), 1000)];
        assert_eq!(run.step(Input::SetupFailed { message: message() }), both);
        assert_eq!(run.machine.phase, Phase::Degraded);
        assert_eq!(run.backoff_over(Some(1)), []);
        assert_eq!(run.step(Input::BackoffOver { slot: Some(0) }), [launch(0, 1)]);
        assert_eq!(run.launched(0), [launch(1, 1)]);
    }
    for scope in [Pod, Each] {
        let mut run = Run::new(rules(Never, scope, &[("a", &[]), ("b", &["a"])]));
        assert_eq!(run.step(Input::SetupFailed { message: message() }), [Action::Release]);
        assert_eq!((run.states(), run.machine.phase), (vec![TaskError; 2], Phase::Failed));
        assert_eq!(run.message(1), "no network");
    }
}

#[test]
fn a_dead_launcher_ends_all_with_its_own_reason() {
    for scope in [Pod, Each] {
        let mut run = Run::running(OnFailure, scope, &[("a", &[]), ("b", &[]), ("done", &[])]);
        run.exited(2, OK);
        let timers = match scope {
            Pod => vec![backoff(None, 1000)],
            Each => vec![backoff(Some(0), 1000), backoff(Some(1), 1000)],
        };
        assert_eq!(run.step(Input::LauncherDied), [vec![Action::NewSandbox], timers].concat());
        assert_eq!(run.states(), [TaskFailed, TaskFailed, TaskFinished]);
        assert_eq!([run.reason(0), run.reason(1)], [Some(Reason::ContainerLauncherDied); 2]);
        assert_eq!(run.machine.containers[1].exit, Some(ExitStatus::Unknown));
        // once more: nothing lives
        assert_eq!(run.step(Input::LauncherDied), [Action::NewSandbox]);
    }
}

#[test]
fn a_dead_launcher_while_launching_waits_for_the_answer() {
    for late in [false, true] {
        let mut run = Run::begun(OnFailure, Pod, &[("a", &[]), ("b", &["a"])]);
        run.starting(0);
        assert_eq!(run.step(Input::LauncherDied), [Action::NewSandbox, Action::CancelLaunch { slot: 0 }]);
        assert!(!run.machine.over());
        // an answer that the launcher gave before it died counts as an end
        let kill = if late { vec![Action::Kill { slot: 0 }] } else { vec![] };
        let actions = if late { run.launched(0).to_vec() } else { run.launch_failed(0).to_vec() };
        assert_eq!(actions, [kill, vec![backoff(None, 1000)]].concat());
        assert_eq!((run.states(), run.reason(0)), (vec![TaskFailed, TaskKilled], Some(Reason::ContainerLauncherDied)));
    }
}

#[test]
fn an_exit_status_that_the_dead_launcher_wrote_counts() {
    let mut run = Run::begun(OnFailure, Pod, &[("a", &[]), ("b", &[])]);
    run.step(Input::LauncherDied);
    assert_eq!(run.exited(0, OK), []);
    assert_eq!(run.exited(1, BAD), [backoff(None, 1000)]);
    assert_eq!((run.states(), run.reason(1)), (vec![TaskFinished, TaskFailed], Some(Reason::CommandExecutorFailed)));
}

#[test]
fn a_dead_launcher_while_killing_stopping_and_in_backoff() {
    // killing for its health: that is why it ends
    let mut run = Run::running(Never, Each, &[("a?", &[]), ("b", &[])]);
    run.end(0, Reason::TaskHealthCheckFailed);
    run.launched(1);
    assert_eq!(run.step(Input::LauncherDied), [Action::NewSandbox, Action::Release]);
    assert_eq!(
        [run.reason(0), run.reason(1)],
        [Some(Reason::TaskHealthCheckFailed), Some(Reason::ContainerLauncherDied)]
    );

    let mut run = Run::running(Always, Pod, &[("a", &[])]);
    run.step(Input::Stop);
    assert_eq!(run.step(Input::LauncherDied), [Action::NewSandbox, Action::Release]);
    assert_eq!((run.states(), run.machine.phase), (vec![TaskKilled], Phase::Finished));

    let mut run = Run::begun(Always, Pod, &[("a", &[])]);
    run.step(Input::Stop);
    run.step(Input::LauncherDied);
    assert!(!run.machine.over());
    assert_eq!(run.launch_failed(0), [Action::Release]);
    assert_eq!((run.states(), run.machine.phase), (vec![TaskKilled], Phase::Finished));

    let mut run = Run::running(Always, Pod, &[("a", &[])]);
    run.exited(0, BAD);
    assert_eq!(run.step(Input::LauncherDied), [Action::NewSandbox]);
    assert_eq!(run.backoff_over(None), [launch(0, 2)]);
}

#[test]
fn inputs_of_another_attempt_change_nothing() {
    let stale = |slot: usize, attempt: u32| {
        let ending = Ending { state: TaskFailed, reason: Reason::TaskHealthCheckFailed, message: "stale".to_owned() };
        [
            Input::Starting { slot, attempt },
            Input::Launched { slot, attempt, pid: 4 },
            Input::LaunchFailed { slot, attempt, reason: Reason::ImagePullFailed, message: "stale".to_owned() },
            Input::Exited { slot, attempt, exit: BAD, cause: None, memory_peak: None },
            Input::Health { slot, attempt, healthy: true },
            Input::End { slot, attempt, ending },
            Input::GraceOver { slot, attempt },
        ]
    };
    // the second round: a runs for the second time, b waits for its second turn with the number of its first
    let mut run = Run::running(Always, Pod, &[("a?", &[]), ("b", &["a"])]);
    run.health(0, true);
    run.launched(1);
    run.exited(0, BAD);
    run.exited(1, NINE);
    assert_eq!(run.backoff_over(None), [launch(0, 2)]);
    run.launched(0);
    let before = run.machine.clone();
    assert_eq!((run.states(), run.attempt(1)), (vec![TaskRunning, TaskStaging], 1));
    for input in [stale(0, 1), stale(1, 1), stale(1, 0), stale(7, 1)].concat() {
        assert_eq!(run.step(input.clone()), [], "{input:?}");
        assert_eq!(run.machine, before, "{input:?}");
    }
}
