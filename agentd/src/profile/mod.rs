//! Profiles of containers: which functions their time on CPUs goes to.
//!
//! `docs/profiling.md` is the page for those who use it. A container is sampled while its pod's label ([`wanted::LABEL`]) asks
//! for it, or while somebody waits for a profile ([`Profiles::sample`]).
//!
//! - [`follow`] is one task. It learns from the daemon's events which containers start and end.
//! - `sampler` is one thread, `profiler`, which runs only while something is sampled. It owns the program in the kernel
//!   ([`agentd_ebpf::observe::profile`]): it hears of each new process, reads what that has mapped (`process`), reads the counts
//!   each ten seconds, makes names of addresses (`modules` with `elf` and `names`, `kernel`, `perf_map`), and puts them into
//!   what is kept (`kept`). It ends, and takes all out of the kernel, when nobody profiles any more.
//! - [`gathered`] is a profile; it tells itself as folded text, [`pprof`] and [`svg`] as what they say.
//!
//! Everything that is read of a container (its files, its processes' names and mappings) may be made to harm: no path of it is
//! followed out of its root, nothing of it is mapped, and every reading has a limit.

mod elf;
pub mod gathered;
pub mod kept;
mod kernel;
mod modules;
mod names;
mod perf_map;
pub mod pprof;
mod process;
mod sampler;
pub mod svg;
pub mod wanted;

mod follow;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agentd_api::pod::PodSpec;
use agentd_ebpf::observe::layout::ProfileTallies;
use agentd_isolators::cgroup::Driver;
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::oneshot;

pub use follow::follow;
use gathered::Gathered;
use kept::{Kept, Subject, Which};

/// Most profiles that are made on request at a time.
const MOST_REQUESTS: usize = 16;

/// A container in the cgroup2 tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// Id of its directory.
    pub cgroup: u64,
    /// Depth of that.
    pub level: u32,
}

/// The profiles of this daemon's containers.
#[derive(Debug)]
pub struct Profiles {
    driver: Arc<Driver>,
    /// Why nobody may be sampled, where the configuration leaves it out.
    refused: Option<String>,
    state: Mutex<State>,
    /// Wakes the thread.
    wake: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    /// Samples each second of the containers that are sampled all the time, by cgroup.
    labelled: HashMap<u64, u32>,
    requests: Vec<Request>,
    kept: Kept,
    /// Whether the thread runs.
    running: bool,
    /// Depth of containers in the cgroup2 tree.
    level: u32,
    figures: Figures,
}

/// A profile that somebody waits for.
#[derive(Debug)]
struct Request {
    cgroup: u64,
    hz: u32,
    length: Duration,
    /// When it ends; none until it has begun.
    until: Option<Instant>,
    gathered: Gathered,
    done: oneshot::Sender<Result<Gathered, String>>,
}

/// What profiling has met with since the daemon's start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    /// What the program in the kernel counted.
    pub tallies: ProfileTallies,
    /// Samples that were counted and could not be read back.
    pub unread: u64,
    /// Samples of stacks that nobody waited for any more.
    pub unclaimed: u64,
    /// Minutes of profiles that went for want of memory.
    pub dropped_minutes: u64,
    /// Samples each second and CPU, now; 0 while nothing is sampled.
    pub hz: u32,
    /// Containers that are sampled now.
    pub containers: u64,
    /// Memory of the kernel for the maps, now, in bytes.
    pub map_bytes: u64,
    /// Why nothing can be sampled, where that is so.
    pub fault: Option<String>,
}

impl Profiles {
    /// Profiles of the containers of this driver. `refused` says why nobody may be sampled, where the configuration leaves it
    /// out.
    pub fn new(driver: Arc<Driver>, refused: Option<String>) -> Result<Self, String> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wake = wake.map_err(|error| format!("eventfd for profiles: {error}"))?;
        Ok(Self { driver, refused, state: Mutex::default(), wake })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // a counter that is full wakes as well
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Where a running container is. Blocking, for a moment.
    pub fn place(&self, instance: &str, slot: usize) -> Result<Place, String> {
        let cgroup = self.driver.container(instance, slot as u32).map_err(|error| error.to_string())?;
        let level = cgroup.cgroup_path().split('/').filter(|part| !part.is_empty()).count();
        Ok(Place { cgroup: cgroup.cgroup_id(), level: level as u32 })
    }

    /// Samples a container until [`Self::leave`].
    fn want(self: &Arc<Self>, place: Place, subject: Subject, hz: u32) {
        if let Some(why) = &self.refused {
            return tracing::debug!("{} is labelled and not profiled: {why}", subject.spec.id);
        }
        let mut state = self.state();
        state.kept.know(place.cgroup, subject);
        state.labelled.insert(place.cgroup, hz);
        self.run(&mut state, place.level);
    }

    /// Samples the containers of an instance no more: that with this name, or all. What was sampled is kept for a while.
    fn leave(&self, instance: &str, container: Option<&str>) {
        let mut state = self.state();
        let State { labelled, kept, .. } = &mut *state;
        let before = labelled.len();
        labelled.retain(|cgroup, _| {
            let subject = kept.subject(*cgroup);
            subject.is_none_or(|one| one.instance != instance || container.is_some_and(|name| name != one.container))
        });
        if labelled.len() != before {
            self.wake();
        }
    }

    /// Samples no container for its label any more.
    fn leave_all(&self) {
        self.state().labelled.clear();
        self.wake();
    }

    /// Samples a container for a while. Dropping the future ends it.
    pub async fn sample(
        self: &Arc<Self>,
        place: Place,
        subject: Subject,
        hz: u32,
        length: Duration,
    ) -> Result<Gathered, String> {
        /// Has the thread look for requests that nobody waits for.
        struct Left<'a>(&'a Profiles);
        impl Drop for Left<'_> {
            fn drop(&mut self) {
                self.0.wake();
            }
        }
        if let Some(why) = &self.refused {
            return Err(format!("nothing is profiled here: {why}"));
        }
        let (done, answer) = oneshot::channel();
        {
            let mut state = self.state();
            state.requests.retain(|request| !request.done.is_closed());
            if state.requests.len() >= MOST_REQUESTS {
                return Err(format!("{MOST_REQUESTS} profiles are being made, the most at a time; try again later"));
            }
            state.kept.know(place.cgroup, subject);
            let (cgroup, gathered) = (place.cgroup, Gathered::default());
            state.requests.push(Request { cgroup, hz, length, until: None, gathered, done });
            self.run(&mut state, place.level);
        }
        let left = Left(self);
        let result = answer.await.unwrap_or_else(|_| Err("sampling ended early".to_owned()));
        drop(left);
        result
    }

    /// Has the thread run, and look at what is wanted now.
    fn run(self: &Arc<Self>, state: &mut State, level: u32) {
        state.level = level;
        if !state.running {
            let profiles = Arc::clone(self);
            let thread = std::thread::Builder::new().name("profiler".to_owned());
            match thread.spawn(move || sampler::run(&profiles)) {
                Ok(_) => state.running = true,
                Err(error) => fail(state, &format!("the thread for profiles cannot be started: {error}")),
            }
        }
        self.wake();
    }

    /// The specification of a pod of which profiles are kept, also when the pod is gone.
    pub fn spec(&self, pod: &str) -> Option<Arc<PodSpec>> {
        self.state().kept.spec(pod)
    }

    /// What is kept of the last minutes, as of the last reading (at most ten seconds ago).
    pub fn kept(&self, which: Which<'_>, minutes: u64) -> Option<Gathered> {
        self.state().kept.read(which, now(), minutes)
    }

    /// What profiling has met with.
    pub fn figures(&self) -> Figures {
        let state = self.state();
        Figures { dropped_minutes: state.kept.dropped, ..state.figures.clone() }
    }
}

/// Tells everybody who waits that nothing can be sampled.
fn fail(state: &mut State, fault: &str) {
    tracing::warn!("{fault}; nothing is profiled");
    state.figures =
        Figures { hz: 0, containers: 0, map_bytes: 0, fault: Some(fault.to_owned()), ..state.figures.clone() };
    for request in state.requests.drain(..) {
        // whoever has gone needs no word
        let _ = request.done.send(Err(fault.to_owned()));
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
