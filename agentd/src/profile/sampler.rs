//! The thread that owns the program in the kernel, while somebody profiles.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentd_ebpf::observe::layout::ProfileTallies;
use agentd_ebpf::observe::profile::{Counted, Drained, FASTEST, Profiler, SLOWEST};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::gathered::{Frame, Weight};
use super::kept::Subject;
use super::process::Resolver;
use super::{Profiles, State, fail, now};

/// How often counts are read where nobody waits for them.
const INTERVAL: Duration = Duration::from_secs(10);

/// Samples until nobody wants it any more.
pub fn run(profiles: &Arc<Profiles>) {
    let level = profiles.state().level;
    let mut sampler = match Profiler::load(level) {
        Ok(loaded) => Sampler::new(loaded, profiles.figures().tallies),
        Err(fault) => {
            let mut state = profiles.state();
            fail(&mut state, &fault);
            // tried again with the next container or request
            state.running = false;
            return;
        }
    };
    loop {
        match sampler.turn(profiles) {
            Ok(Some(wait)) => sampler.wait(profiles, wait),
            Ok(None) => return,
            Err(fault) => {
                let mut state = profiles.state();
                fail(&mut state, &fault);
                state.running = false;
                return;
            }
        }
    }
}

struct Sampler {
    profiler: Profiler,
    resolver: Resolver,
    /// Containers in the program's map, with their rates.
    attached: HashMap<u64, u32>,
    /// When counts are read next.
    next: Instant,
    /// Tallies of programs before this one.
    before: ProfileTallies,
}

/// What is to be done, as the state has it.
struct Plan {
    wanted: HashMap<u64, u32>,
    /// Whether counts must be read now.
    drain: bool,
}

impl Sampler {
    fn new(profiler: Profiler, before: ProfileTallies) -> Self {
        let (resolver, attached) = (Resolver::default(), HashMap::new());
        Self { profiler, resolver, attached, next: Instant::now() + INTERVAL, before }
    }

    /// Does what is due. Gives how long nothing will be; none when nobody profiles any more.
    fn turn(&mut self, profiles: &Arc<Profiles>) -> Result<Option<Duration>, String> {
        self.learn(profiles);
        let now = Instant::now();
        let plan = self.plan(&mut profiles.state(), now);
        let drained = if plan.drain { Some(self.read()?) } else { None };
        // before names are looked up, which may take a while: nobody wants what comes meanwhile
        for container in self.attached.keys().filter(|container| !plan.wanted.contains_key(*container)) {
            self.profiler.remove(*container)?;
        }
        for (container, hz) in plan.wanted.iter().filter(|(container, hz)| self.attached.get(container) != Some(hz)) {
            self.profiler.add(*container, *hz)?;
        }
        self.profiler.run(plan.wanted.values().copied().max().unwrap_or(0))?;
        let before = std::mem::replace(&mut self.attached, plan.wanted);
        let begun = Instant::now();
        if let Some((end, drained)) = drained {
            self.tell(profiles, &before, end, &drained);
        }
        let mut state = profiles.state();
        for request in state.requests.iter_mut().filter(|request| request.until.is_none()) {
            if self.attached.contains_key(&request.cgroup) {
                request.until = Some(begun + request.length);
            }
        }
        self.figures(&mut state);
        if self.attached.is_empty() && state.requests.is_empty() && state.labelled.is_empty() {
            state.running = false;
            return Ok(None);
        }
        let ends = state.requests.iter().map(|request| request.until.unwrap_or(begun));
        let due = ends.chain([self.next]).min().unwrap_or(self.next);
        Ok(Some(due.saturating_duration_since(begun)))
    }

    fn plan(&self, state: &mut State, now: Instant) -> Plan {
        state.requests.retain(|request| !request.done.is_closed());
        let mut wanted: HashMap<u64, u32> = HashMap::new();
        let ended = |until: Option<Instant>| until.is_some_and(|until| until <= now);
        let asked = state.requests.iter().filter(|request| !ended(request.until));
        let asked = asked.map(|request| (request.cgroup, request.hz));
        for (container, hz) in state.labelled.iter().map(|(container, hz)| (*container, *hz)).chain(asked) {
            let most = wanted.entry(container).or_insert(0);
            *most = hz.clamp(SLOWEST, FASTEST).max(*most);
        }
        // samples stand for as much time as their rate says: what was taken at another rate is read before
        let changed = self.attached.iter().any(|(container, hz)| wanted.get(container) != Some(hz));
        let new = state.requests.iter().any(|request| request.until.is_none());
        let over = state.requests.iter().any(|request| ended(request.until));
        Plan { wanted, drain: changed || new || over || now >= self.next }
    }

    /// Hears of new processes.
    fn learn(&mut self, profiles: &Arc<Profiles>) {
        for notice in self.profiler.notices() {
            let subject = profiles.state().kept.subject(notice.container).cloned();
            if let Some(subject) = subject {
                self.resolver.learn(notice.container, &subject, notice.process, notice.command);
            }
        }
    }

    /// Reads the counts. Gives until when they count, too.
    fn read(&mut self) -> Result<(Instant, Drained), String> {
        let end = Instant::now();
        let drained = self.profiler.drain()?;
        self.next = end + INTERVAL;
        Ok((end, drained))
    }

    /// Gives the counts to whom they belong. `rates`: those that they were taken at, by container.
    fn tell(&mut self, profiles: &Arc<Profiles>, rates: &HashMap<u64, u32>, end: Instant, drained: &Drained) {
        for fault in &drained.faults {
            tracing::warn!("{fault}");
        }
        self.learn(profiles);
        self.resolver.begin();
        let mut subjects: HashMap<u64, Option<Subject>> = HashMap::new();
        let mut stacks: Vec<(&Counted, Vec<Frame>)> = Vec::with_capacity(drained.counted.len());
        for one in &drained.counted {
            let subject =
                subjects.entry(one.container).or_insert_with(|| profiles.state().kept.subject(one.container).cloned());
            if let Some(subject) = subject {
                stacks.push((one, self.resolver.frames(subject, one)));
            }
        }
        let second = now();
        let mut state = profiles.state();
        let State { requests, kept, labelled, figures, .. } = &mut *state;
        figures.unread += drained.faults.len() as u64;
        for (one, frames) in &stacks {
            // those of a container that has just ended were taken at the rate that it had
            let Some(hz) = rates.get(&one.container) else {
                figures.unclaimed += one.count;
                continue;
            };
            let weight = Weight::of(one.count, *hz);
            kept.add(one.container, second, frames, weight);
            let waiting = requests.iter_mut().filter(|request| request.until.is_some());
            for request in waiting.filter(|request| request.cgroup == one.container) {
                request.gathered.add(frames, weight);
            }
        }
        kept.prune(second, |container| {
            labelled.contains_key(&container) || requests.iter().any(|request| request.cgroup == container)
        });
        let (over, rest) = requests.drain(..).partition(|request| request.until.is_some_and(|until| until <= end));
        *requests = rest;
        let over: Vec<super::Request> = over;
        for request in over {
            // whoever has gone needs no word
            let _ = request.done.send(Ok(request.gathered));
        }
    }

    fn figures(&self, state: &mut State) {
        let figures = &mut state.figures;
        if let Ok(now) = self.profiler.tallies() {
            figures.tallies = sum(self.before, now);
        }
        (figures.hz, figures.containers) = (self.profiler.hz(), self.attached.len() as u64);
        figures.map_bytes = if self.attached.is_empty() { 0 } else { self.profiler.map_bytes() };
        figures.fault = None;
    }

    /// Waits for new processes, for a word from the daemon, or for the time to pass.
    fn wait(&self, profiles: &Profiles, time: Duration) {
        let ring = self.profiler.ring();
        let mut fds = [PollFd::new(&ring, PollFlags::IN), PollFd::new(&profiles.wake, PollFlags::IN)];
        // rounded up, so that it is over when it is looked at
        let time = Timespec::try_from(time + Duration::from_millis(1)).ok();
        // interrupted or not: what is due is looked at
        let _ = poll(&mut fds, time.as_ref());
        let mut counter = [0; 8];
        let _ = rustix::io::read(&profiles.wake, &mut counter);
    }
}

fn sum(one: ProfileTallies, other: ProfileTallies) -> ProfileTallies {
    ProfileTallies {
        ticks: one.ticks + other.ticks,
        samples: one.samples + other.samples,
        thinned: one.thinned + other.thinned,
        lost_samples: one.lost_samples + other.lost_samples,
        lost_stacks: one.lost_stacks + other.lost_stacks,
        lost_notices: one.lost_notices + other.lost_notices,
    }
}
