//! The daemon dies between two steps and another goes on from the checkpoint.

use super::*;

impl Run {
    /// The daemon dies; the next reads the checkpoint.
    fn reread(&mut self) {
        let text = serde_json::to_string(&self.machine).unwrap();
        self.machine = serde_json::from_str(&text).unwrap();
    }

    /// What a restarted daemon does last: [`Machine::resume`], then [`Input::Begin`].
    fn resumed(&mut self) -> Vec<Action> {
        self.reread();
        let mut actions = self.machine.resume();
        actions.extend_from_slice(self.step(Input::Begin));
        actions
    }
}

#[test]
fn what_was_meant_to_begin_begins_once() {
    let mut run = Run::new(rules(Always, Pod, &[("a", &[]), ("b", &["a"])]));
    assert_eq!(run.resumed(), [launch(0, 1)]);
    // its launch is under way on paper: it is begun again by the one who asks pod-init
    assert_eq!(run.resumed(), []);
    assert_eq!(run.starting(0), []);
    assert_eq!(run.launched(0), [launch(1, 1)]);
    assert_eq!(run.resumed(), []);
}

#[test]
fn a_launch_that_was_given_up_is_given_up_again() {
    let mut run = Run::begun(Always, Pod, &[("a", &[])]);
    run.step(Input::Stop);
    run.reread();
    run.starting(0);
    assert_eq!(run.machine.resume(), [Action::CancelLaunch { slot: 0 }]);
    assert_eq!(run.launch_failed(0), [Action::Release]);
    // and where a program runs already, that is ended
    let mut run = Run::begun(Always, Pod, &[("a", &[])]);
    run.step(Input::Stop);
    run.reread();
    assert_eq!(run.launched(0), [terminate(0, 1)]);
    assert_eq!(run.resumed(), [terminate(0, 1)]);
}

#[test]
fn a_kill_is_done_again_and_comes_to_its_end() {
    let mut run = Run::running(Always, Pod, &[("a", &[])]);
    run.step(Input::Stop);
    assert_eq!(run.resumed(), [terminate(0, 1)]);
    assert_eq!(run.grace_over(0), [Action::Kill { slot: 0 }]);
    // the grace is over, but the kill may not have come to pass
    assert_eq!(run.resumed(), [terminate(0, 1)]);
    assert_eq!(run.grace_over(0), [Action::Kill { slot: 0 }]);
    assert_eq!(run.exited(0, NINE), [Action::Release]);
    assert_eq!(run.resumed(), [Action::Release]);

    let mut run = Run::running(Always, Pod, &[("a", &[])]);
    run.end(0, Reason::ContainerLimitationDisk);
    assert_eq!(run.resumed(), [Action::Kill { slot: 0 }]);
}

#[test]
fn a_delay_goes_on_where_it_was() {
    for scope in [Pod, Each] {
        let slot = (scope == Each).then_some(0);
        let mut run = Run::running(Always, scope, &[("a", &[])]);
        run.exited(0, BAD);
        run.now += 300;
        assert_eq!(run.resumed(), [backoff(slot, 700)]);
        run.now += 10_000;
        assert_eq!(run.resumed(), [backoff(slot, 0)]);
        assert_eq!(run.step(Input::BackoffOver { slot }), [launch(0, 2)]);
        assert_eq!(run.step(Input::BackoffOver { slot }), []);
    }
}

#[test]
fn a_delay_after_a_failed_set_up_goes_on_whether_the_next_set_up_fails_or_not() {
    let failed = || Input::SetupFailed { message: "no network".to_owned() };
    for scope in [Pod, Each] {
        let slot = (scope == Each).then_some(0);
        for fails in [false, true] {
            let mut run = Run::new(rules(Always, scope, &[("a", &[])]));
            run.step(failed());
            run.reread();
            run.now += 300;
            assert_eq!(run.step(if fails { failed() } else { Input::Begin }), [backoff(slot, 700)]);
            run.now += 700;
            assert_eq!(run.step(Input::BackoffOver { slot }), [launch(0, 1)]);
        }
    }
}

#[test]
fn a_launcher_that_died_with_the_daemon_has_nobody_left_to_answer() {
    for stop in [false, true] {
        let mut run = Run::begun(OnFailure, Each, &[("a", &[])]);
        run.starting(0);
        if stop {
            run.step(Input::Stop);
        }
        // twice: the first time the daemon still lived and waited for the answer
        run.step(Input::LauncherDied);
        run.reread();
        let expected = if stop { Action::Release } else { backoff(Some(0), 1000) };
        assert_eq!(run.step(Input::LauncherDied), [Action::NewSandbox, expected]);
        let why = if stop { Reason::TaskKilledByRequest } else { Reason::ContainerLauncherDied };
        assert_eq!((run.reason(0), run.states()[0]), (Some(why), if stop { TaskKilled } else { TaskFailed }));
    }
}

#[test]
fn an_exit_of_one_that_waits_for_its_next_turn_is_an_old_one() {
    // the second round; b waits with the number of its first start when the daemon dies
    let mut run = Run::running(Always, Pod, &[("a", &[]), ("b", &["a"])]);
    run.exited(0, BAD);
    run.exited(1, NINE);
    run.backoff_over(None);
    run.reread();
    assert_eq!(run.step(Input::Exited { slot: 1, attempt: 1, exit: NINE, cause: None, memory_peak: None }), []);
    assert_eq!(run.states(), [TaskStaging; 2]);
    assert_eq!(run.step(Input::LauncherDied), [Action::NewSandbox, backoff(None, 2000)]);
    assert_eq!([run.reason(0), run.reason(1)], [Some(Reason::ContainerLauncherDied), Some(Reason::TaskGroupFailed)]);
}
