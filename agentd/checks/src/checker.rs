//! When a container is checked, and what the results mean: a state machine without I/O and without a clock.
//!
//! Time is a [`Duration`] since any fixed moment that the caller chooses; it never goes back. The machine asks for
//! a check with [`Action::RunCheck`] and asks for no other one until that one's result is in, so that checks of a
//! container that hangs do not pile up. The rules are those of Mesos:
//!
//! - The first check comes `delay` after the start, each other one `interval` after the result before it.
//! - Until the first success, a failure within `grace` of the start is forgotten.
//! - `max_failures` failures in a row kill the container; 0 never kills.

use std::time::Duration;

use agentd_api::pod::HealthCheck;

/// The times and the limit of a health check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// After the start, failures in this time do not count until the first success.
    pub grace: Duration,
    /// Time from a result to the next check.
    pub interval: Duration,
    /// A check that takes longer has failed.
    pub timeout: Duration,
    /// Time from the start to the first check.
    pub delay: Duration,
    /// Failures in a row after which the container is killed; 0 never kills.
    pub max_failures: u32,
}

/// The shortest interval and time-out: a pod that asks for less (or for 0) would keep a core busy with checks.
pub const SHORTEST: Duration = Duration::from_millis(100);

impl Timing {
    /// The timing of a health check of a pod.
    ///
    /// Values that are no time (negative, infinite) are refused where pods are parsed; here they count as 0. The
    /// interval and the time-out are at least [`SHORTEST`].
    pub fn from_spec(check: &HealthCheck) -> Self {
        let seconds = |value: f64| Duration::try_from_secs_f64(value).unwrap_or_default();
        Self {
            grace: seconds(check.grace_period_seconds),
            interval: seconds(check.interval_seconds).max(SHORTEST),
            timeout: seconds(check.timeout_seconds).max(SHORTEST),
            delay: seconds(check.delay_seconds),
            max_failures: check.max_consecutive_failures,
        }
    }
}

/// What the caller does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Run a check and hand its result to [`Checker::result`] with this id.
    RunCheck {
        /// Tells this check's result from one that a restart made stale.
        id: u64,
    },
    /// The container passed a check and was not known as healthy.
    Healthy,
    /// A check failed and counts.
    Unhealthy {
        /// One line for people.
        message: String,
    },
    /// The limit is reached: end the container. No check follows until the next [`Checker::started`].
    Kill {
        /// One line for people.
        message: String,
    },
}

/// Where the machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Not started, or killed.
    Idle,
    /// The next check is due at this time.
    Waiting(Duration),
    /// This check is running.
    Running(u64),
}

/// The state of one container's health check.
#[derive(Debug, Clone)]
pub struct Checker {
    timing: Timing,
    phase: Phase,
    started: Duration,
    /// No success since the start.
    initializing: bool,
    healthy: Option<bool>,
    failures: u32,
    next_id: u64,
}

impl Checker {
    /// A machine that waits for [`Checker::started`].
    pub fn new(timing: Timing) -> Self {
        Self {
            timing,
            phase: Phase::Idle,
            started: Duration::ZERO,
            initializing: true,
            healthy: None,
            failures: 0,
            next_id: 0,
        }
    }

    /// The container has (re)started: forgets everything before. A check that still runs is stale.
    pub fn started(&mut self, now: Duration) {
        self.started = now;
        self.initializing = true;
        self.healthy = None;
        self.failures = 0;
        self.phase = Phase::Waiting(now.saturating_add(self.timing.delay));
    }

    /// When [`Checker::tick`] is to be called; `None` while a check runs and when there is nothing to wait for.
    pub fn next_tick(&self) -> Option<Duration> {
        match self.phase {
            Phase::Waiting(due) => Some(due),
            Phase::Idle | Phase::Running(_) => None,
        }
    }

    /// Failures in a row that counted.
    pub fn consecutive_failures(&self) -> u32 {
        self.failures
    }

    /// Whether the container is healthy; `None` before the first result that counts.
    pub fn healthy(&self) -> Option<bool> {
        self.healthy
    }

    /// The time is now `now`. Calls that come too early do nothing.
    pub fn tick(&mut self, now: Duration) -> Option<Action> {
        match self.phase {
            Phase::Waiting(due) if due <= now => {
                let id = self.next_id;
                self.next_id += 1;
                self.phase = Phase::Running(id);
                Some(Action::RunCheck { id })
            }
            _ => None,
        }
    }

    /// The check `id` has passed, or failed for the given reason.
    pub fn result(&mut self, now: Duration, id: u64, result: Result<(), &str>) -> Option<Action> {
        if self.phase != Phase::Running(id) {
            return None;
        }
        self.phase = Phase::Waiting(now.saturating_add(self.timing.interval));
        match result {
            Ok(()) => {
                self.initializing = false;
                self.failures = 0;
                let was = self.healthy.replace(true);
                (was != Some(true)).then_some(Action::Healthy)
            }
            Err(reason) => self.failed(now, reason),
        }
    }

    fn failed(&mut self, now: Duration, reason: &str) -> Option<Action> {
        if self.initializing && now.saturating_sub(self.started) < self.timing.grace {
            return None;
        }
        self.failures = self.failures.saturating_add(1);
        self.healthy = Some(false);
        let count = self.failures;
        let limit = self.timing.max_failures;
        if limit == 0 {
            let message =
                format!("health check failed {count} in a row (maxConsecutiveFailures 0 never kills): {reason}");
            return Some(Action::Unhealthy { message });
        }
        let message = format!("health check failed {count} of {limit} allowed in a row: {reason}");
        if count < limit {
            return Some(Action::Unhealthy { message });
        }
        self.phase = Phase::Idle;
        Some(Action::Kill { message })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(value: u64) -> Duration {
        Duration::from_secs(value)
    }

    fn timing(grace: u64, max_failures: u32) -> Timing {
        Timing { grace: seconds(grace), interval: seconds(60), timeout: seconds(20), delay: seconds(15), max_failures }
    }

    /// Runs the checks of `results`, each answered at once, and writes what came of each as one letter.
    fn letters(timing: Timing, results: &[bool]) -> String {
        let mut checker = Checker::new(timing);
        checker.started(seconds(1000));
        let mut out = String::new();
        for passed in results {
            let Some(now) = checker.next_tick() else {
                out.push('x');
                break;
            };
            let Some(Action::RunCheck { id }) = checker.tick(now) else { panic!("no check at {now:?}") };
            out.push(match checker.result(now, id, if *passed { Ok(()) } else { Err("refused") }) {
                None => '.',
                Some(Action::Healthy) => 'H',
                Some(Action::Unhealthy { .. }) => 'u',
                Some(Action::Kill { .. }) => 'K',
                Some(Action::RunCheck { .. }) => panic!("a result starts no check"),
            });
        }
        out
    }

    #[test]
    fn table() {
        let (t, f) = (true, false);
        // checks come at 15, 75, 135, 195, 255, 315, … after the start
        for (grace, max, results, expected) in [
            (300, 3, vec![t, t, t], "H.."),
            (300, 3, vec![t, f, f, t, f, f, f, t], "HuuHuuKx"),
            // the grace period ends with the first success
            (300, 3, vec![f, t, f, f, f], ".HuuK"),
            // and forgives only what lies in it: 315 is the first that counts
            (300, 3, vec![f, f, f, f, f, f, f, f], ".....uuK"),
            (0, 3, vec![f, f, f, f], "uuKx"),
            (0, 1, vec![f, f], "Kx"),
            (0, 0, vec![f, f, f, f, f, t, f], "uuuuuHu"),
            // a check exactly at the end of the grace period counts
            (15, 2, vec![f, f], "uK"),
            (16, 2, vec![f, f, f], ".uK"),
        ] {
            assert_eq!(letters(timing(grace, max), &results), expected, "grace {grace} max {max} {results:?}");
        }
    }

    #[test]
    fn times_and_messages() {
        let mut checker = Checker::new(timing(0, 2));
        assert_eq!(checker.next_tick(), None);
        assert_eq!(checker.tick(seconds(5)), None);
        checker.started(seconds(100));
        assert_eq!(checker.next_tick(), Some(seconds(115)));
        assert_eq!(checker.tick(seconds(114)), None);
        assert_eq!(checker.tick(seconds(115)), Some(Action::RunCheck { id: 0 }));
        assert_eq!(checker.next_tick(), None);
        assert_eq!(checker.tick(seconds(900)), None, "one check at a time");
        let message = "health check failed 1 of 2 allowed in a row: connection refused".to_owned();
        assert_eq!(checker.result(seconds(130), 0, Err("connection refused")), Some(Action::Unhealthy { message }));
        // the interval counts from the result, so that slow checks do not run back to back
        assert_eq!(checker.next_tick(), Some(seconds(190)));
        assert_eq!(checker.result(seconds(131), 0, Ok(())), None, "a result counts once");
    }

    #[test]
    fn a_restart_makes_a_running_check_stale() {
        let mut checker = Checker::new(timing(0, 1));
        checker.started(seconds(0));
        assert_eq!(checker.tick(seconds(15)), Some(Action::RunCheck { id: 0 }));
        checker.started(seconds(16));
        assert_eq!(checker.result(seconds(17), 0, Err("old")), None);
        assert_eq!(checker.next_tick(), Some(seconds(31)));
        assert_eq!(checker.tick(seconds(31)), Some(Action::RunCheck { id: 1 }));
        assert!(matches!(checker.result(seconds(32), 1, Err("new")), Some(Action::Kill { .. })));
        // and a start after a kill begins anew
        checker.started(seconds(40));
        assert_eq!((checker.consecutive_failures(), checker.healthy()), (0, None));
        assert_eq!(checker.next_tick(), Some(seconds(55)));
    }

    #[test]
    fn odd_numbers_of_a_pod_are_tamed() {
        let check = HealthCheck {
            http: None,
            tcp: None,
            exec: None,
            grace_period_seconds: -1.0,
            interval_seconds: 0.0,
            max_consecutive_failures: 3,
            timeout_seconds: f64::NAN,
            delay_seconds: 1e300,
        };
        let timing = Timing::from_spec(&check);
        assert_eq!((timing.grace, timing.interval, timing.timeout), (Duration::ZERO, SHORTEST, SHORTEST));
        assert_eq!(timing.delay, Duration::ZERO);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Wait(u64),
        Pass,
        Fail,
        Start,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0u64..90).prop_map(Step::Wait),
            3 => Just(Step::Pass),
            5 => Just(Step::Fail),
            1 => Just(Step::Start),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        /// Against a plain re-reading of the rules: one check at a time, never early, kills exactly when due.
        #[test]
        fn any_history(
            grace in 0u64..400, interval in 1u64..90, delay in 0u64..60, max_failures in 0u32..5, steps in steps(),
        ) {
            let timing = Timing {
                grace: seconds(grace), interval: seconds(interval), timeout: seconds(20), delay: seconds(delay),
                max_failures,
            };
            let mut checker = Checker::new(timing);
            let mut now = seconds(0);
            checker.started(now);
            let (mut start, mut earliest, mut running, mut row, mut passed, mut dead) = (now, seconds(delay), None, 0, false, false);
            for step in steps {
                match step {
                    Step::Wait(span) => {
                        now += seconds(span);
                        match checker.tick(now) {
                            Some(Action::RunCheck { id }) => {
                                prop_assert!(running.is_none() && now >= earliest && !dead);
                                running = Some(id);
                            }
                            Some(other) => prop_assert!(false, "tick gave {:?}", other),
                            None => prop_assert!(running.is_some() || dead || now < earliest),
                        }
                    }
                    Step::Start => {
                        checker.started(now);
                        (start, earliest, running, row, passed, dead) = (now, now + seconds(delay), None, 0, false, false);
                    }
                    Step::Pass | Step::Fail => {
                        let Some(id) = running.take() else {
                            prop_assert_eq!(checker.result(now, 0, Ok(())), None);
                            continue;
                        };
                        earliest = now + seconds(interval);
                        if matches!(step, Step::Pass) {
                            let first = !passed || row > 0;
                            (passed, row) = (true, 0);
                            prop_assert_eq!(checker.result(now, id, Ok(())), first.then_some(Action::Healthy));
                            continue;
                        }
                        let action = checker.result(now, id, Err("no"));
                        if !passed && now.saturating_sub(start) < seconds(grace) {
                            prop_assert_eq!(action, None);
                            continue;
                        }
                        row += 1;
                        dead = max_failures > 0 && row >= max_failures;
                        match action {
                            Some(Action::Kill { .. }) => prop_assert!(dead),
                            Some(Action::Unhealthy { .. }) => prop_assert!(!dead),
                            other => prop_assert!(false, "failure gave {:?}", other),
                        }
                        prop_assert_eq!(checker.consecutive_failures(), row);
                    }
                }
            }
        }
    }
}
