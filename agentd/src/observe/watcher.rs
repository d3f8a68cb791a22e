//! The eBPF programs and the table of identities, kept in step.
//!
//! The programs are loaded on a thread of their own while the daemon recovers ([`Watcher::start`]); whoever is known by then
//! is published as soon as they hang. Without programs (none are wanted, or the kernel has none to offer) the table serves
//! alone. No method fails: what cannot be had is counted and told.
//!
//! Locks: the table's is held for moments, that of readings while one container's files are read. The programs' is a readers' lock; reading the maps and publishing share it, taking
//! events and mending take it alone.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use agentd_ebpf::observe::layout::{EdgeKey, Event};
use agentd_ebpf::observe::{Group, MapUse, Observer, ProgramCost, Rung, Settings, Signal, SignalState, Snapshot};
use agentd_isolators::cgroup::{ContainerCgroup, Controller, Driver};
use agentd_metrics::container::{Bounds, Reader, Reading};

use super::registry::{Ended, Identity, Registry};
use super::stacks;
use crate::config;
use crate::profile::Figures;

/// How many events of a container may come at once, for each that may come in a second.
const BURST: u32 = 5;

/// What happened since the daemon's start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Events published.
    pub published: AtomicU64,
    /// Events of a kind that is not wanted.
    pub unwanted: AtomicU64,
    /// Events held back by the rate of all containers.
    pub held: AtomicU64,
    /// Events of no known container.
    pub unknown: AtomicU64,
    /// Events held back in the kernel, of containers that are forgotten.
    pub limited_before: AtomicU64,
    /// Events lost to a full ring, of containers that are forgotten.
    pub dropped_before: AtomicU64,
    /// Programs found detached.
    pub lost: AtomicU64,
    /// Containers that the programs could not be told of.
    pub unpublished: AtomicU64,
    /// Gatherings.
    pub gathered: AtomicU64,
    /// Gatherings that took too long.
    pub late: AtomicU64,
    /// Time of gatherings, ns.
    pub gather_time: AtomicU64,
    /// CPU time of gatherings, ns.
    pub gather_cpu: AtomicU64,
    /// CPU time of writing what was gathered, ns.
    pub encode_cpu: AtomicU64,
}

impl Counts {
    /// Adds to one of them.
    pub fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }

    /// Reads one of them.
    pub fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// Watches containers.
#[derive(Debug)]
pub struct Watcher {
    /// What is wanted.
    pub settings: config::Observe,
    /// Who is who.
    pub registry: Registry,
    /// What happened.
    pub counts: Counts,
    observer: OnceLock<RwLock<Observer>>,
    /// Held while a container's files are read, so that no reading that a gathering makes is later than the container's last.
    reading: Mutex<()>,
    /// When the programs began to count.
    begun: OnceLock<SystemTime>,
    /// Whether the kernel tells of victims of memory, so that nobody else needs to.
    tells_oom: AtomicBool,
    /// Whether it was said that containers cannot be made known.
    complained: AtomicBool,
}

impl Watcher {
    /// Without programs so far.
    pub fn new(settings: config::Observe) -> Self {
        Self {
            settings,
            registry: Registry::default(),
            counts: Counts::default(),
            observer: OnceLock::new(),
            reading: Mutex::new(()),
            begun: OnceLock::new(),
            tells_oom: AtomicBool::new(false),
            complained: AtomicBool::new(false),
        }
    }

    /// Loads the programs that are wanted, and makes them known who is there. Blocking: up to a second.
    pub fn start(&self, driver: &Driver) {
        let Some(settings) = Trees::of(driver).and_then(|trees| settings(&self.settings, trees)) else {
            tracing::info!("observe.groups is empty: containers are watched without eBPF");
            return;
        };
        let began = Instant::now();
        let observer = Observer::start(settings);
        let signals = observer.signals();
        let lower: Vec<String> = signals
            .iter()
            .filter_map(|state| state.why.as_ref().map(|why| format!("{} ({})", state.signal.name(), clip(why))))
            .collect();
        if lower.is_empty() {
            tracing::info!("containers are watched by eBPF, loaded in {:?}", began.elapsed());
        } else {
            tracing::warn!("containers are watched by eBPF but for: {}", lower.join("; "));
        }
        self.tells_oom.store(tells_oom(&self.settings, &signals), Ordering::Relaxed);
        if self.observer.set(RwLock::new(observer)).is_err() {
            return;
        }
        self.registry.begin(*self.begun.get_or_init(SystemTime::now));
        for entry in self.registry.all().into_iter().filter(|entry| entry.ended.is_none()) {
            self.make_known(&entry.identity);
        }
    }

    /// Whether programs are loaded.
    pub fn loaded(&self) -> bool {
        self.observer.get().is_some()
    }

    /// Since when the programs count; none without programs.
    pub fn begun(&self) -> Option<SystemTime> {
        self.begun.get().copied()
    }

    /// Whether the kernel tells of victims of memory through the ring, so that its log need not.
    pub fn tells_oom(&self) -> bool {
        self.tells_oom.load(Ordering::Relaxed)
    }

    fn read<T>(&self, with: impl FnOnce(&Observer) -> T) -> Option<T> {
        let observer = self.observer.get()?;
        Some(with(&observer.read().unwrap_or_else(PoisonError::into_inner)))
    }

    fn write<T>(&self, with: impl FnOnce(&mut Observer) -> T) -> Option<T> {
        let observer = self.observer.get()?;
        Some(with(&mut observer.write().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Makes a container known, before its program begins. Doing it again changes nothing. Blocking, microseconds.
    pub fn publish(&self, identity: Identity) {
        let cgroup = identity.cgroup;
        self.registry.enter(identity, SystemTime::now(), Instant::now());
        if let Some(identity) = self.registry.get(cgroup) {
            self.make_known(&identity);
        }
    }

    fn make_known(&self, identity: &Identity) {
        let publish = || self.read(|observer| observer.publish(identity.cgroup, identity.profiled));
        let mut result = publish();
        // tombstones give way to those who live
        while let Some(Err(_)) = &result
            && let Some(oldest) = self.registry.oldest()
        {
            self.empty(oldest);
            result = publish();
        }
        if let Some(Err(error)) = result {
            Counts::add(&self.counts.unpublished, 1);
            if !self.complained.swap(true, Ordering::Relaxed) {
                tracing::error!(
                    instance = identity.instance,
                    container = identity.container,
                    "the kernel's programs cannot be told of a container: {error}; its events and counters are missing; \
                     observe.containers is the most that are known at once. This is said once"
                );
            }
        }
    }

    /// Takes a tombstone out of the programs' maps and keeps its figures.
    fn empty(&self, cgroup: u64) {
        let figures = self.read(|observer| observer.forget(cgroup)).unwrap_or_default();
        if let Some(processes) = &figures.processes {
            Counts::add(&self.counts.limited_before, processes.events_limited);
            Counts::add(&self.counts.dropped_before, processes.events_dropped);
        }
        self.registry.keep(cgroup, figures);
    }

    /// Turns a container that has ended into a tombstone, with the last reading of its cgroup. Blocking, a millisecond.
    pub fn ended(&self, cgroup: &ContainerCgroup) {
        let id = cgroup.cgroup_id();
        let Some(identity) = self.registry.get(id) else { return };
        // descriptors of processes that are gone need no look
        let bounds = Bounds { cgroups: 0, processes: 0, descriptors: 0 };
        let mut reader = Reader::new(bounds);
        let _turn = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let last = reader.container(&identity.directories);
        self.registry.end(id, last, Instant::now());
    }

    /// Reads a container that runs, or gives what it left if it has ended: the kernel goes on counting periods of a quota after
    /// that, and what was told once must not fall. Blocking.
    pub fn live(&self, cgroup: u64, read: impl FnOnce() -> Reading) -> Result<Reading, Arc<Ended>> {
        let _turn = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        self.registry.ended(cgroup).map_or_else(|| Ok(read()), Err)
    }

    /// The same for whatever of an instance has not ended yet.
    pub fn instance_ended(&self, instance: &str) {
        self.registry.end_instance(instance, Instant::now());
    }

    /// Forgets the tombstones that are over. Gives their cgroups.
    pub fn bury(&self, now: Instant) -> Vec<u64> {
        let due = self.registry.due(Duration::from_secs(self.settings.tombstone_seconds), now);
        for cgroup in &due {
            self.empty(*cgroup);
            self.registry.remove(*cgroup);
        }
        self.read(|observer| observer.forget_edges_of(&due));
        due
    }

    /// Makes room for other edges: these are forgotten by the programs. Blocking, microseconds for each.
    pub fn forget_edges(&self, edges: &[EdgeKey]) {
        self.read(|observer| observer.forget_edges(edges));
    }

    /// Everything that the programs counted; empty without programs. Blocking, milliseconds.
    pub fn snapshot(&self) -> Snapshot {
        self.read(Observer::snapshot).unwrap_or_default()
    }

    /// Where each signal stands, all of [`Signal::ALL`]; `profiles` is what sampling has met with.
    pub fn signals(&self, profiles: &Figures) -> Vec<SignalState> {
        let none = || without_programs("observe.groups is empty");
        let mut signals = self.read(Observer::signals).unwrap_or_else(none);
        signals.retain(|state| state.signal != Signal::Stacks);
        signals.push(stacks::state(&self.settings, profiles));
        signals
    }

    /// What the programs cost.
    pub fn costs(&self) -> Vec<ProgramCost> {
        self.read(Observer::costs).unwrap_or_default()
    }

    /// How full the maps are.
    pub fn maps(&self) -> Vec<MapUse> {
        self.read(Observer::maps).unwrap_or_default()
    }

    /// Hangs again what somebody has detached, and gives the names.
    pub fn mend(&self) -> Vec<String> {
        let lost = self.write(Observer::mend).unwrap_or_default();
        Counts::add(&self.counts.lost, lost.len() as u64);
        lost
    }

    /// The ring, to wait on; none without one.
    pub fn ring(&self) -> Option<OwnedFd> {
        self.read(|observer| observer.ring().and_then(|ring| ring.try_clone_to_owned().ok())).flatten()
    }

    /// Takes events from the ring, at most `most`. Gives how many.
    pub fn take(&self, most: usize, each: &mut dyn FnMut(&Event)) -> usize {
        self.write(|observer| observer.events(most, each)).unwrap_or_default()
    }
}

/// The cgroups that are watched.
#[derive(Debug)]
pub struct Trees {
    /// Where the cgroup2 tree is mounted.
    pub unified: PathBuf,
    /// The daemon's directory below it.
    pub parent: String,
    /// The directory of all pods.
    pub pods: PathBuf,
    /// Whether the kernel charges block requests in that tree.
    pub charged_io: bool,
}

impl Trees {
    /// Those of this host.
    fn of(driver: &Driver) -> Option<Self> {
        let unified = driver.layout().unified.clone()?;
        let parent = driver.parent().trim_matches('/').to_owned();
        let pods = unified.join(&parent).join("pods");
        Some(Self { pods, unified, parent, charged_io: driver.is_v2(Controller::Io) })
    }
}

/// What the loader is told; none if no programs are wanted.
pub fn settings(config: &config::Observe, trees: Trees) -> Option<Settings> {
    // samples of stacks have a loader of their own
    let groups: BTreeSet<Group> =
        Group::ALL.into_iter().filter(|group| *group != Group::Profile && config.wants(group.name())).collect();
    // <parent>/pods/<id>/c<slot>
    let level = trees.parent.split('/').count() as u32 + 3;
    let rungs = [Rung::TpBtf, Rung::RawTp, Rung::Tracepoint, Rung::Cgroup, Rung::PerfEvent];
    let left_out = |word: &str| config.without.iter().any(|one| one == word);
    (!groups.is_empty()).then(|| Settings {
        pods: trees.pods,
        level,
        groups,
        containers: config.containers as u32,
        tasks: config.tasks as u32,
        edges: config.edges as u32,
        events_per_second: config.events_per_second as u32,
        events_burst: (config.events_per_second as u32).saturating_mul(BURST),
        charged_io: trees.charged_io,
        without: rungs.into_iter().filter(|rung| left_out(rung.name())).collect(),
        without_btf: left_out("btf"),
    })
}

/// Where each signal stands without any program.
pub fn without_programs(why: &str) -> Vec<SignalState> {
    let state = |signal| {
        // files tell of these, if less than programs
        let rung = match signal {
            Signal::BlockIo | Signal::Oom => Rung::Files,
            _ => Rung::Off,
        };
        SignalState { signal, rung, why: Some(why.to_owned()) }
    };
    Signal::ALL.into_iter().map(state).collect()
}

fn tells_oom(config: &config::Observe, signals: &[SignalState]) -> bool {
    let by_program = |state: &SignalState| !matches!(state.rung, Rung::Files | Rung::Off);
    config.tells("oom") && signals.iter().any(|state| state.signal == Signal::Oom && by_program(state))
}

/// The first line, at a length for a log.
fn clip(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_log_is_the_rung_below_the_ring() {
        let config = config::Observe::default();
        let on = |rung| vec![SignalState { signal: Signal::Oom, rung, why: None }];
        assert!(tells_oom(&config, &on(Rung::TpBtf)));
        assert!(tells_oom(&config, &on(Rung::Tracepoint)));
        assert!(!tells_oom(&config, &on(Rung::Files)));
        assert!(!tells_oom(&config, &without_programs("none are wanted")));
        let quiet = config::Observe { events: vec!["exec".to_owned()], ..config };
        assert!(!tells_oom(&quiet, &on(Rung::TpBtf)));
    }

    #[test]
    fn every_signal_has_a_place_without_programs() {
        let states = without_programs("off");
        assert_eq!(states.len(), Signal::ALL.len());
        assert!(states.iter().all(|state| matches!(state.rung, Rung::Files | Rung::Off) && state.why.is_some()));
    }
}
