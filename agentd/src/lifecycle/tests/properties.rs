//! Random histories: a pod drawn at random lives in a model of the daemon and its launcher ([`World`]) that starts
//! processes, lets them end, fails, stops, dies and comes back. After every step the machine and the world must agree, and
//! something must be under way that moves the instance on; at the end a fair world must bring it to rest.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::lifecycle::Worker;

/// What may happen next. `pick` chooses among what there is to choose from.
#[derive(Debug, Clone, Copy)]
enum Op {
    Answer {
        pick: usize,
        succeeds: bool,
    },
    Exit {
        pick: usize,
        exit: ExitStatus,
        oom: bool,
    },
    Health {
        pick: usize,
        healthy: bool,
    },
    End {
        pick: usize,
        disk: bool,
    },
    Timer,
    Wait {
        ms: u64,
    },
    Stop,
    LauncherDies,
    /// From now on launches fail at once, or no longer.
    SetUpFails {
        fails: bool,
    },
    /// An input that belongs to no present attempt.
    Stale {
        slot: usize,
        back: u32,
        kind: u8,
    },
    Crash(Crash),
    /// The next step is written down, `acted` of its actions are carried out, then the daemon dies.
    CrashInStep {
        acted: usize,
        crash: Crash,
    },
}

/// What the next daemon finds.
#[derive(Debug, Clone, Copy)]
struct Crash {
    /// Launches had come to a process.
    started: bool,
    /// Processes have ended meanwhile.
    exited: bool,
    /// The launcher died too.
    launcher_dead: bool,
    /// The set-up is to be done again, and fails.
    set_up_fails: bool,
}

#[derive(Debug)]
struct Job {
    attempt: u32,
    cancelled: bool,
    /// Which launcher it talks to.
    epoch: u32,
}

#[derive(Debug)]
struct Process {
    attempt: u32,
    pid: u32,
    killed: bool,
}

/// The daemon's task, its timers, its launches, and the launcher with its processes.
struct World {
    machine: Machine,
    now: u64,
    jobs: BTreeMap<usize, Job>,
    processes: BTreeMap<usize, Process>,
    timers: Vec<(u64, Input)>,
    epoch: u32,
    launcher_alive: bool,
    set_up_fails: bool,
    stopped: bool,
    released: u32,
    attempts: Vec<u32>,
    crash_in_step: Option<(usize, Crash)>,
}

impl World {
    fn new(rules: Rules) -> Self {
        let attempts = vec![0; rules.containers.len()];
        Self {
            machine: Machine::new(rules),
            now: 1_000_000,
            jobs: BTreeMap::new(),
            processes: BTreeMap::new(),
            timers: Vec::new(),
            epoch: 0,
            launcher_alive: true,
            set_up_fails: false,
            stopped: false,
            released: 0,
            attempts,
            crash_in_step: None,
        }
    }

    /// Steps until no input follows from an action, as the instance's task does.
    fn feed(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            if matches!(input, Input::Stop) {
                self.stopped = true;
            }
            let mut actions = self.machine.step(input, self.now);
            actions.retain(|a| !matches!(a, Action::Event { .. }));
            for action in &actions {
                if let Action::Launch { slot, attempt } = *action {
                    assert!(!self.stopped, "a launch after the stop");
                    self.attempts[slot] += 1;
                    assert_eq!(attempt, self.attempts[slot], "attempts go up by one");
                }
            }
            if let Some((acted, crash)) = self.crash_in_step.take() {
                for action in actions.iter().take(acted) {
                    self.act(action);
                }
                return self.crash(crash);
            }
            for action in &actions {
                inputs.extend(self.act(action));
            }
        }
        self.check();
    }

    fn act(&mut self, action: &Action) -> Option<Input> {
        match *action {
            Action::Launch { slot, attempt } => {
                assert!(!self.jobs.contains_key(&slot), "two launches of slot {slot}");
                assert!(!self.processes.contains_key(&slot), "slot {slot} is launched while it runs");
                if self.set_up_fails {
                    let (reason, message) = (Reason::ContainerLaunchFailed, "no network".to_owned());
                    return Some(Input::LaunchFailed { slot, attempt, reason, message });
                }
                self.launcher_alive = true;
                self.jobs.insert(slot, Job { attempt, cancelled: false, epoch: self.epoch });
                return Some(Input::Starting { slot, attempt });
            }
            Action::CancelLaunch { slot } => {
                if let Some(job) = self.jobs.get_mut(&slot) {
                    job.cancelled = true;
                }
            }
            Action::Terminate { slot, attempt, grace_ms } => {
                assert!(grace_ms > 0);
                self.timers.push((self.now + grace_ms, Input::GraceOver { slot, attempt }));
            }
            Action::Kill { slot } => {
                if let Some(process) = self.processes.get_mut(&slot) {
                    process.killed = true;
                }
            }
            Action::Backoff { slot, delay_ms } => {
                self.timers.push((self.now + delay_ms, Input::BackoffOver { slot }));
            }
            Action::NewSandbox => self.launcher_alive = false,
            Action::Release => {
                assert!(self.machine.containers.iter().all(|c| c.state.is_terminal()));
                assert!(self.jobs.is_empty() && self.processes.is_empty(), "released while something is under way");
                self.released += 1;
                assert_eq!(self.released, 1, "released twice");
            }
            Action::Event { .. } => {}
        }
        None
    }

    /// The machine and the world agree, and something is under way.
    fn check(&self) {
        let timer = |wanted: &Input| self.timers.iter().any(|(_, input)| input == wanted);
        for (slot, container) in self.machine.containers.iter().enumerate() {
            let job = self.jobs.get(&slot).map(|job| job.attempt);
            assert_eq!(container.launching.then_some(container.attempt), job, "launch of slot {slot}");
            assert_eq!(container.worker != Worker::Nobody, container.launching, "slot {slot}");
            assert!(!container.launching || matches!(container.state, TaskStaging | TaskStarting), "slot {slot}");
            let process = self.processes.get(&slot).map(|process| (process.attempt, process.pid));
            assert_eq!(container.pid.map(|pid| (container.attempt, pid)), process, "process of slot {slot}");
            assert_eq!(matches!(container.state, TaskRunning | TaskKilling), process.is_some(), "slot {slot}");
            assert!(container.ending.is_none() || container.alive(), "slot {slot} is dead and to be ended");
            if container.in_backoff {
                assert!(container.state.is_terminal() && !self.stopped, "slot {slot}");
                assert!(timer(&Input::BackoffOver { slot: Some(slot) }), "slot {slot} waits for no timer");
            }
            if container.state == TaskKilling {
                let grace = timer(&Input::GraceOver { slot, attempt: container.attempt });
                assert!(grace || self.processes[&slot].killed, "slot {slot} is never killed");
            }
        }
        if self.machine.over() {
            assert_eq!(self.released, 1, "over and not released");
        } else {
            assert_eq!(self.released, 0, "released and not over");
            let pod_waits = self.machine.phase == Phase::Backoff;
            assert!(!pod_waits || timer(&Input::BackoffOver { slot: None }), "the pod waits for no timer");
            let waits = pod_waits || self.machine.containers.iter().any(|c| c.in_backoff);
            assert!(waits || !self.jobs.is_empty() || !self.processes.is_empty(), "nothing is under way");
        }
    }

    fn nth<T>(map: &BTreeMap<usize, T>, pick: usize) -> Option<usize> {
        (!map.is_empty()).then(|| map.keys().copied().nth(pick % map.len()))?
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Answer { pick, succeeds } => {
                if let Some(slot) = Self::nth(&self.jobs, pick) {
                    self.answer(slot, succeeds);
                }
            }
            Op::Exit { pick, exit, oom } => {
                if let Some(slot) = Self::nth(&self.processes, pick) {
                    self.exit(slot, exit, oom);
                }
            }
            Op::Health { pick, healthy } => {
                let slot = Self::nth(&self.processes, pick).filter(|&slot| self.machine.rules.containers[slot].checked);
                if let Some(slot) = slot {
                    self.feed(Input::Health { slot, attempt: self.processes[&slot].attempt, healthy });
                }
            }
            Op::End { pick, disk } => {
                if let Some(slot) = Self::nth(&self.processes, pick) {
                    let reason = if disk { Reason::ContainerLimitationDisk } else { Reason::TaskHealthCheckFailed };
                    let ending = Ending { state: TaskFailed, reason, message: "killed".to_owned() };
                    // the next daemon measures again
                    let acts = self.crash_in_step.is_none();
                    self.feed(Input::End { slot, attempt: self.processes[&slot].attempt, ending });
                    assert!(!(disk && acts) || self.processes[&slot].killed, "slot {slot} goes on writing");
                }
            }
            Op::Timer => self.fire(),
            Op::Wait { ms } => self.now += ms,
            Op::Stop => self.feed(Input::Stop),
            Op::LauncherDies => self.launcher_dies(),
            Op::SetUpFails { fails } => self.set_up_fails = fails,
            Op::Stale { slot, back, kind } => self.stale(slot % self.attempts.len(), back, kind),
            Op::Crash(crash) => self.crash(crash),
            Op::CrashInStep { acted, crash } => self.crash_in_step = Some((acted, crash)),
        }
    }

    fn answer(&mut self, slot: usize, succeeds: bool) {
        let Some(Job { attempt, epoch, .. }) = self.jobs.remove(&slot) else { return };
        if succeeds {
            if epoch != self.epoch && attempt % 2 == 0 {
                // it ran and ended, and the dead launcher has written how
                return self.feed(Input::Exited { slot, attempt, exit: OK, cause: None, memory_peak: None });
            }
            let pid = self.now as u32 ^ (attempt << 8) ^ slot as u32;
            // the answer of a launcher that is dead now: there is no process
            if epoch == self.epoch {
                self.processes.insert(slot, Process { attempt, pid, killed: false });
            }
            self.feed(Input::Launched { slot, attempt, pid });
        } else {
            let (reason, message) = (Reason::ImagePullFailed, "no image".to_owned());
            self.feed(Input::LaunchFailed { slot, attempt, reason, message });
        }
    }

    fn exit(&mut self, slot: usize, exit: ExitStatus, oom: bool) {
        let Some(Process { attempt, .. }) = self.processes.remove(&slot) else { return };
        let cause = (oom && exit != OK).then(|| (Reason::ContainerLimitationMemory, "out of memory".to_owned()));
        self.feed(Input::Exited { slot, attempt, exit, cause, memory_peak: None });
    }

    /// The clock goes to the next timer.
    fn fire(&mut self) {
        let Some(next) = (0..self.timers.len()).min_by_key(|&n| self.timers[n].0) else { return };
        let (due, input) = self.timers.remove(next);
        self.now = self.now.max(due);
        self.feed(input);
    }

    fn launcher_dies(&mut self) {
        if !self.launcher_alive || self.machine.over() {
            return;
        }
        self.processes.clear();
        self.epoch += 1;
        self.launcher_alive = false;
        self.feed(Input::LauncherDied);
    }

    /// Nothing may follow from an input of an earlier attempt, or from a second one of the present.
    fn stale(&mut self, slot: usize, back: u32, kind: u8) {
        let container = &self.machine.containers[slot];
        let Some(attempt) = container.attempt.checked_sub(back) else { return };
        let running = container.state == TaskRunning;
        let (past, text) = (back > 0, || "stale".to_owned());
        let input = match kind % 7 {
            0 if past || !container.launching => Input::Starting { slot, attempt },
            1 if past || !container.launching => Input::Launched { slot, attempt, pid: 1 },
            2 if past || !container.launching => {
                Input::LaunchFailed { slot, attempt, reason: Reason::ImagePullFailed, message: text() }
            }
            3 if past || !container.alive() => {
                Input::Exited { slot, attempt, exit: BAD, cause: None, memory_peak: None }
            }
            4 if past || !running => Input::Health { slot, attempt, healthy: true },
            5 if past || !container.alive() => {
                let ending = Ending { state: TaskFailed, reason: Reason::TaskHealthCheckFailed, message: text() };
                Input::End { slot, attempt, ending }
            }
            6 if past || !container.alive() => Input::GraceOver { slot, attempt },
            _ => return,
        };
        let before = self.machine.clone();
        assert_eq!(self.machine.step(input.clone(), self.now), [], "{input:?}");
        assert_eq!(self.machine, before, "{input:?}");
    }

    /// The daemon dies, and the next one takes the instance back as `instance::adopt` does.
    fn crash(&mut self, crash: Crash) {
        let text = serde_json::to_string(&self.machine).unwrap();
        self.machine = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&self.machine).unwrap(), text);
        self.timers.clear();
        self.released = 0;
        let had = self.launcher_alive && !crash.launcher_dead;
        for (slot, job) in std::mem::take(&mut self.jobs) {
            if crash.started && !job.cancelled && had && job.epoch == self.epoch {
                self.processes.insert(slot, Process { attempt: job.attempt, pid: 77, killed: false });
            }
        }
        if self.machine.over() {
            assert_eq!(self.machine.resume(), [Action::Release]);
            self.act(&Action::Release);
            return self.check();
        }
        if !had {
            self.take_back_without_launcher(crash);
        } else if self.machine.containers.iter().all(|c| c.attempt == 0) {
            let failed = Input::SetupFailed { message: "no network".to_owned() };
            return self.feed(if crash.set_up_fails { failed } else { Input::Begin });
        } else {
            self.take_back(crash);
        }
        // what was found may have been its end
        if self.machine.over() {
            return self.check();
        }
        for action in self.machine.resume() {
            assert_eq!(self.act(&action), None);
        }
        self.feed(Input::Begin);
    }

    fn take_back_without_launcher(&mut self, crash: Crash) {
        let written: Vec<(usize, u32)> = std::mem::take(&mut self.processes)
            .into_iter()
            .filter(|(slot, _)| crash.exited && self.machine.containers[*slot].pid.is_some())
            .map(|(slot, process)| (slot, process.attempt))
            .collect();
        for (slot, attempt) in written {
            self.unchecked(Input::Exited { slot, attempt, exit: OK, cause: None, memory_peak: None });
        }
        self.epoch += 1;
        self.launcher_alive = false;
        self.unchecked(Input::LauncherDied);
    }

    fn take_back(&mut self, crash: Crash) {
        for slot in 0..self.attempts.len() {
            let container = &self.machine.containers[slot];
            let (attempt, launching) = (container.attempt, container.launching);
            // a launch that followed from the end of another just now is no longer a question
            if attempt == 0 || container.state.is_terminal() || self.jobs.contains_key(&slot) {
                continue;
            }
            match self.processes.get(&slot).map(|process| process.pid) {
                Some(pid) => {
                    if launching {
                        self.unchecked(Input::Launched { slot, attempt, pid });
                    }
                    if crash.exited {
                        self.processes.remove(&slot);
                        self.unchecked(Input::Exited { slot, attempt, exit: BAD, cause: None, memory_peak: None });
                    }
                }
                None if launching => {
                    if let Some(input) = self.act(&Action::Launch { slot, attempt }) {
                        self.unchecked(input);
                    }
                }
                None => {
                    let exit = ExitStatus::Unknown;
                    self.unchecked(Input::Exited { slot, attempt, exit, cause: None, memory_peak: None });
                }
            }
        }
    }

    /// A step while the daemon still learns what there is, so that machine and world need not agree yet.
    fn unchecked(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for action in self.machine.step(input, self.now) {
                if let Action::Launch { slot, attempt } = action {
                    self.attempts[slot] += 1;
                    assert_eq!(attempt, self.attempts[slot], "attempts go up by one");
                }
                inputs.extend(self.act(&action));
            }
        }
    }

    /// Answers everything that is under way once: launches succeed unless they were given up, what is killed ends, the next
    /// timer fires. Those that merely run get healthy, or with `exit` end.
    fn fair(&mut self, exit: bool) {
        for slot in self.jobs.keys().copied().collect::<Vec<_>>() {
            let given_up = self.jobs.get(&slot).is_some_and(|job| job.cancelled || job.epoch != self.epoch);
            self.answer(slot, !given_up);
        }
        for slot in self.processes.keys().copied().collect::<Vec<_>>() {
            let Some(process) = self.processes.get(&slot) else { continue };
            if self.machine.containers[slot].state == TaskKilling {
                self.exit(slot, NINE, false);
            } else if exit {
                self.exit(slot, OK, false);
            } else {
                self.feed(Input::Health { slot, attempt: process.attempt, healthy: true });
            }
        }
        self.fire();
    }

    fn settles(&mut self, exit: bool, rest: impl Fn(&Self) -> bool) -> bool {
        for _ in 0..100 {
            if rest(self) {
                return true;
            }
            self.fair(exit);
        }
        false
    }
}

fn pods() -> impl Strategy<Value = Rules> {
    let policy = prop_oneof![Just(Always), Just(OnFailure), Just(Never)];
    let scope = prop_oneof![Just(Pod), Just(Each)];
    let container = (any::<u8>(), prop::bool::weighted(0.3), prop::bool::weighted(0.2));
    (policy, scope, prop::collection::vec(container, 1..5), any::<bool>()).prop_map(|(policy, scope, list, back)| {
        let last = list.len() - 1;
        let mut containers: Vec<ContainerRule> = list
            .into_iter()
            .enumerate()
            .map(|(slot, (after, checked, at_once))| ContainerRule {
                name: format!("c{slot}"),
                // each only waits for earlier ones, so that there is no circle
                after: (0..slot).filter(|n| after >> n & 1 == 1).collect(),
                checked,
                grace_ms: if at_once { 0 } else { GRACE },
            })
            .collect();
        if back {
            containers.reverse();
            for container in &mut containers {
                container.after.iter_mut().for_each(|n| *n = last - *n);
            }
        }
        let backoff = Backoff { backoff: 1.0, backoff_factor: 2.0, max_launch_delay: 10.0 };
        Rules { containers, policy, scope, backoff }
    })
}

fn crashes() -> impl Strategy<Value = Crash> {
    let flags = (any::<bool>(), any::<bool>(), prop::bool::weighted(0.25), any::<bool>());
    flags.prop_map(|(started, exited, launcher_dead, set_up_fails)| Crash {
        started,
        exited,
        launcher_dead,
        set_up_fails,
    })
}

fn ops() -> impl Strategy<Value = Op> {
    let exits = prop_oneof![Just(OK), Just(BAD), Just(NINE), Just(ExitStatus::Unknown)];
    prop_oneof![
        12 => (0..8usize, prop::bool::weighted(0.8)).prop_map(|(pick, succeeds)| Op::Answer { pick, succeeds }),
        6 => (0..8usize, exits, any::<bool>()).prop_map(|(pick, exit, oom)| Op::Exit { pick, exit, oom }),
        6 => (0..8usize, prop::bool::weighted(0.7)).prop_map(|(pick, healthy)| Op::Health { pick, healthy }),
        2 => (0..8usize, any::<bool>()).prop_map(|(pick, disk)| Op::End { pick, disk }),
        8 => Just(Op::Timer),
        2 => (0..2 * STABLE_MS).prop_map(|ms| Op::Wait { ms }),
        1 => Just(Op::Stop),
        2 => Just(Op::LauncherDies),
        1 => prop::bool::weighted(0.3).prop_map(|fails| Op::SetUpFails { fails }),
        4 => (0..8usize, 0..3u32, any::<u8>()).prop_map(|(slot, back, kind)| Op::Stale { slot, back, kind }),
        2 => crashes().prop_map(Op::Crash),
        3 => (0..4usize, crashes()).prop_map(|(acted, crash)| Op::CrashInStep { acted, crash }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_is_consistent_and_comes_to_rest(
        rules in pods(),
        set_up in prop::bool::weighted(0.9),
        history in prop::collection::vec(ops(), 0..60),
        stop in any::<bool>(),
    ) {
        let mut world = World::new(rules);
        world.feed(if set_up { Input::Begin } else { Input::SetupFailed { message: "no network".to_owned() } });
        for op in history {
            world.apply(op);
        }
        world.crash_in_step = None;
        world.set_up_fails = false;
        if !world.stopped {
            // left alone, a pod runs; one whose containers have ended and do not start again is over
            let rest = |world: &World| {
                let never = world.machine.rules.policy == Never;
                matches!(world.machine.phase, Phase::Running | Phase::Finished | Phase::Failed)
                    || never && world.machine.phase == Phase::Degraded && world.jobs.is_empty()
            };
            prop_assert!(world.settles(false, rest), "does not come to run: {:?}", world.machine);
        }
        if stop || world.stopped {
            world.feed(Input::Stop);
            prop_assert!(world.settles(false, |w| w.machine.over()), "does not stop: {:?}", world.machine);
        } else if world.machine.rules.policy != Always {
            prop_assert!(world.settles(true, |w| w.machine.over()), "does not finish: {:?}", world.machine);
        }
    }
}
