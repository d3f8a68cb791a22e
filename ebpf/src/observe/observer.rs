//! The observer: loads, attaches, reads.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use agentd_ebpf_common::{
    Block, EdgeKey, Event, HOST, KNOWN_PROFILED, Known, Net, Processes, Sched, UNKNOWN, WRITEBACK,
};
use aya::maps::{Map, MapData, RingBuf};
use aya::{Ebpf, EbpfLoader};

use super::attach::{Attached, attach, descriptor};
use super::figures::{Figures, Snapshot, Sum};
use super::kernel::Kernel;
use super::ladder;
use super::maps::{self, Layout, PerCpu};
use super::signal::{Group, MapUse, ProgramCost, Rung, Signal, SignalState};
use crate::call;

/// The compiled programs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("AGENTD_EBPF_OBSERVE"));

/// Maps by container, beside [`KNOWN_MAP`]: the group whose programs count in them.
const BY_CONTAINER: [(Group, &str); 4] =
    [(Group::Sched, "SCHED"), (Group::Process, "PROCESSES"), (Group::Block, "BLOCK"), (Group::Net, "NET")];
const KNOWN_MAP: &str = "KNOWN";
const EDGES_MAP: &str = "EDGES";
const RING_MAP: &str = "EVENTS";
/// Maps whose room follows the settings or is told by [`Observer::maps`].
const MAPS: [&str; 11] =
    [KNOWN_MAP, "SCHED", "PROCESSES", "BLOCK", "NET", "TASKS", "REQUESTS", "SOCKETS", EDGES_MAP, "SENDERS", RING_MAP];

/// What is wanted, and on what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Directory of cgroup2 that holds every pod: programs of the rung `cgroup` hang on it.
    pub pods: PathBuf,
    /// Depth of a container's directory below the root of the cgroup2 tree; the root has 0.
    pub level: u32,
    /// Groups that are wanted.
    pub groups: BTreeSet<Group>,
    /// Most containers that are known at once, those that ended a while ago among them.
    pub containers: u32,
    /// Most tasks that are followed at once on the host.
    pub tasks: u32,
    /// Most edges.
    pub edges: u32,
    /// Events of one container that may go to the ring each second, on average.
    pub events_per_second: u32,
    /// Events of one container that may go to the ring at once.
    pub events_burst: u32,
    /// Whether block requests are attributed by the cgroup that the kernel charges (the controller `io` of cgroup v2);
    /// else by the task that submits them.
    pub charged_io: bool,
    /// Rungs that are left out, to see what a lesser kernel does.
    pub without: BTreeSet<Rung>,
    /// Behaves as on a kernel without BTF.
    pub without_btf: bool,
}

/// The programs, their maps and their links. Dropping it takes all out of the kernel.
pub struct Observer {
    settings: Settings,
    /// None if the object could not be loaded at all.
    object: Option<Ebpf>,
    attached: Vec<Attached>,
    states: Vec<SignalState>,
    ring: Option<RingBuf<MapData>>,
    /// Active groups.
    groups: BTreeSet<Group>,
    cpus: usize,
    published: Mutex<HashSet<u64>>,
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observer").field("states", &self.states).finish_non_exhaustive()
    }
}

impl Observer {
    /// Loads and attaches what can be. Never fails as a whole: [`Self::signals`] says what was not to be had.
    pub fn start(mut settings: Settings) -> Self {
        // packets count in the network's map
        if settings.groups.contains(&Group::Packets) {
            settings.groups.insert(Group::Net);
        }
        let mut observer = Self {
            cpus: possible_cpus(),
            settings,
            object: None,
            attached: Vec::new(),
            states: Vec::new(),
            ring: None,
            groups: BTreeSet::new(),
            published: Mutex::new(HashSet::new()),
        };
        if observer.settings.groups.is_empty() {
            observer.states = all_without("observe.groups is empty");
            return observer;
        }
        let kernel = Kernel::look(observer.settings.without_btf);
        match load(&observer.settings, &kernel) {
            Ok(object) => observer.object = Some(object),
            Err(why) => {
                observer.states = all_without(&why);
                return observer;
            }
        }
        observer.climb(&kernel);
        let wanted = observer.attached.iter().map(|one| group_of(one.function));
        observer.groups = wanted.flatten().collect();
        for key in [HOST, WRITEBACK, UNKNOWN] {
            if let Err(error) = observer.create_entries(key) {
                observer.degrade(&format!("the maps take no entry: {error}"));
                break;
            }
        }
        if let Some(object) = &mut observer.object {
            observer.ring = object.take_map(RING_MAP).and_then(|map| RingBuf::try_from(map).ok());
        }
        observer
    }

    /// Finds for each signal the highest step that holds.
    fn climb(&mut self, kernel: &Kernel) {
        let Some(object) = &mut self.object else { return };
        let types = if kernel.without_btf.is_none() { aya::Btf::from_sys_fs().ok() } else { None };
        for signal in Signal::ALL {
            if signal == Signal::Stacks {
                continue;
            }
            if !self.settings.groups.contains(&signal.group()) {
                let why = Some(format!("observe.groups has not {}", signal.group().name()));
                self.states.push(SignalState { signal, rung: Rung::Off, why });
                continue;
            }
            let mut reasons = Vec::new();
            let mut found = None;
            'steps: for step in ladder::steps(signal) {
                let rung = step.rung();
                if self.settings.without.contains(&rung) {
                    reasons.push(format!("{}: left out by configuration", rung.name()));
                    continue;
                }
                if let Some(missing) = kernel.missing(step.fields) {
                    reasons.push(format!("{}: {missing}", rung.name()));
                    continue;
                }
                let mut made: Vec<Attached> = Vec::new();
                for (function, hook) in step.programs {
                    if self.attached.iter().any(|one| one.function == *function) {
                        continue;
                    }
                    match attach(object, function, *hook, types.as_ref(), &self.settings.pods) {
                        Ok(one) => made.push(one),
                        Err(why) => {
                            reasons.push(format!("{}: {why}", rung.name()));
                            continue 'steps;
                        }
                    }
                }
                self.attached.append(&mut made);
                found = Some(rung);
                break;
            }
            let (rung, below) = found.map_or_else(|| ladder::below(signal), |rung| (rung, ""));
            if !below.is_empty() {
                reasons.push(format!("{}: {below}", rung.name()));
            }
            let why = (!reasons.is_empty()).then(|| reasons.join("; "));
            self.states.push(SignalState { signal, rung, why });
        }
    }

    fn degrade(&mut self, why: &str) {
        self.attached.clear();
        self.states = all_without(why);
    }

    fn map(&self, name: &str) -> Option<&Map> {
        self.object.as_ref()?.map(name)
    }

    fn per_cpu<V: Layout>(&self, name: &str) -> Option<PerCpu<'_>> {
        PerCpu::new::<V>(self.map(name)?, self.cpus)
    }

    fn create_entries(&self, key: u64) -> io::Result<()> {
        for (group, name) in BY_CONTAINER {
            if !self.groups.contains(&group) && group != Group::Process {
                continue;
            }
            match group {
                Group::Sched => self.create::<Sched>(name, key)?,
                // every event counts there, whichever group it comes from
                Group::Process => self.create::<Processes>(name, key)?,
                Group::Block => self.create::<Block>(name, key)?,
                Group::Net => self.create::<Net>(name, key)?,
                Group::Packets | Group::Profile => {}
            }
        }
        Ok(())
    }

    fn create<V: Layout + Sum>(&self, name: &str, key: u64) -> io::Result<()> {
        self.per_cpu::<V>(name).map_or(Ok(()), |map| map.create::<V>(key))
    }

    /// Makes a container known, before anything runs in it. `profiled`: its stacks may be sampled. Doing it again
    /// changes the flag alone.
    ///
    /// # Errors
    /// The maps are full: its figures count as unknown.
    pub fn publish(&self, cgroup: u64, profiled: bool) -> Result<(), String> {
        if self.object.is_none() {
            return Ok(());
        }
        let full = |error: io::Error| {
            format!("the maps hold {} containers and take no more: {error}", self.settings.containers)
        };
        let again = self.published().contains(&cgroup);
        if !again {
            let made = self.create_entries(cgroup);
            if let Err(error) = made {
                self.remove_entries(cgroup);
                return Err(full(error));
            }
        }
        let flags = if profiled { KNOWN_PROFILED } else { 0 };
        let known = Known { flags, padding: 0, tokens: u64::from(self.settings.events_burst), refilled: 0 };
        if let Some(data) = self.map(KNOWN_MAP).and_then(maps::data) {
            let written = maps::update(data.fd().as_fd(), &cgroup.to_ne_bytes(), maps::bytes(&known), false);
            if let Err(error) = written {
                self.remove_entries(cgroup);
                return Err(full(error));
            }
        }
        self.published().insert(cgroup);
        Ok(())
    }

    /// Takes a container out and says what was counted to the end.
    pub fn forget(&self, cgroup: u64) -> Figures {
        self.published().remove(&cgroup);
        if let Some(data) = self.map(KNOWN_MAP).and_then(maps::data) {
            let _ = call::map_delete(data.fd().as_fd(), &cgroup.to_ne_bytes());
        }
        let last = self.figures(cgroup);
        self.remove_entries(cgroup);
        last
    }

    fn remove_entries(&self, key: u64) {
        for (group, name) in BY_CONTAINER {
            let map = match group {
                Group::Sched => self.per_cpu::<Sched>(name),
                Group::Process => self.per_cpu::<Processes>(name),
                Group::Block => self.per_cpu::<Block>(name),
                Group::Net => self.per_cpu::<Net>(name),
                Group::Packets | Group::Profile => None,
            };
            if let Some(map) = map {
                map.remove(key);
            }
        }
    }

    /// What was counted for one container.
    pub fn figures(&self, cgroup: u64) -> Figures {
        let active = |group: Group| self.groups.contains(&group);
        Figures {
            sched: active(Group::Sched).then(|| self.per_cpu::<Sched>("SCHED")?.read(cgroup)).flatten(),
            processes: active(Group::Process).then(|| self.per_cpu::<Processes>("PROCESSES")?.read(cgroup)).flatten(),
            block: active(Group::Block).then(|| self.per_cpu::<Block>("BLOCK")?.read(cgroup)).flatten(),
            net: active(Group::Net).then(|| self.per_cpu::<Net>("NET")?.read(cgroup)).flatten(),
            packets: active(Group::Packets),
        }
    }

    /// Everything that was counted.
    pub fn snapshot(&self) -> Snapshot {
        let mut all: std::collections::HashMap<u64, Figures> = std::collections::HashMap::new();
        self.each::<Sched>(Group::Sched, "SCHED", |key, sched| all.entry(key).or_default().sched = Some(sched));
        self.each::<Processes>(Group::Process, "PROCESSES", |key, processes| {
            all.entry(key).or_default().processes = Some(processes);
        });
        self.each::<Block>(Group::Block, "BLOCK", |key, block| all.entry(key).or_default().block = Some(block));
        let packets = self.groups.contains(&Group::Packets);
        self.each::<Net>(Group::Net, "NET", |key, net| {
            let figures = all.entry(key).or_default();
            (figures.net, figures.packets) = (Some(net), packets);
        });
        let host = all.remove(&HOST).unwrap_or_default();
        let writeback = all.remove(&WRITEBACK).unwrap_or_default().block;
        let unknown = all.remove(&UNKNOWN).unwrap_or_default();
        let edges = match self.map(EDGES_MAP) {
            Some(map) if self.groups.contains(&Group::Net) => maps::edges(map).ok(),
            _ => Some(Vec::new()),
        };
        Snapshot { containers: all, host, writeback, unknown, edges }
    }

    fn each<V: Layout + Sum>(&self, group: Group, name: &str, with: impl FnMut(u64, V)) {
        if let (true, Some(map)) = (self.groups.contains(&group), self.per_cpu::<V>(name)) {
            // a map that cannot be read gives nothing: its signal is missing, nothing is invented
            let _ = map.each(with);
        }
    }

    /// Takes edges out, so that their places are free for others.
    pub fn forget_edges(&self, keys: &[EdgeKey]) {
        if let Some(map) = self.map(EDGES_MAP) {
            for key in keys {
                maps::remove_edge(map, key);
            }
        }
    }

    /// Takes the edges of these containers out.
    pub fn forget_edges_of(&self, containers: &[u64]) {
        if containers.is_empty() || !self.groups.contains(&Group::Net) {
            return;
        }
        let edges = self.map(EDGES_MAP).and_then(|map| maps::edges(map).ok()).unwrap_or_default();
        let of = edges.iter().map(|(key, _)| *key).filter(|key| containers.contains(&key.container));
        self.forget_edges(&of.collect::<Vec<_>>());
    }

    /// Where each signal stands, all of [`Signal::ALL`] but stacks, which are sampled on request.
    pub fn signals(&self) -> Vec<SignalState> {
        self.states.clone()
    }

    /// Looks whether every link still holds, and hangs again what somebody has taken away. Gives the names of programs
    /// that were found detached.
    pub fn mend(&mut self) -> Vec<String> {
        let (held, lost): (Vec<Attached>, Vec<Attached>) =
            std::mem::take(&mut self.attached).into_iter().partition(Attached::holds);
        self.attached = held;
        let Some(object) = &mut self.object else { return Vec::new() };
        let mut names = Vec::new();
        for one in lost {
            let (function, hook) = (one.function, one.hook);
            drop(one);
            names.push(function.to_owned());
            match attach(object, function, hook, None, &self.settings.pods) {
                Ok(again) => self.attached.push(again),
                Err(why) => {
                    for signal in Signal::ALL {
                        let needs = |step: &ladder::Step| step.programs.iter().any(|(name, _)| *name == function);
                        if ladder::steps(signal).iter().any(needs)
                            && let Some(state) = self.states.iter_mut().find(|state| state.signal == signal)
                        {
                            let (rung, below) = ladder::below(signal);
                            state.rung = rung;
                            state.why = Some(format!(
                                "{function} was detached and cannot be hung again: {why}; {}: {below}",
                                rung.name()
                            ));
                        }
                    }
                }
            }
        }
        names
    }

    /// What the programs cost.
    pub fn costs(&self) -> Vec<ProgramCost> {
        let Some(object) = &self.object else { return Vec::new() };
        let mut all = Vec::new();
        for one in &self.attached {
            let (Some(fd), Some(group)) = (descriptor(object, one.function), group_of(one.function)) else { continue };
            if let Ok(runs) = call::program_runs(fd) {
                let name = one.function.to_owned();
                all.push(ProgramCost {
                    name,
                    group,
                    id: runs.id,
                    runs: runs.runs,
                    run_time: runs.run_time,
                    missed: runs.missed,
                });
            }
        }
        all
    }

    /// How full the maps are.
    pub fn maps(&self) -> Vec<MapUse> {
        let published = self.published().len() as u64;
        let mut all = Vec::new();
        for name in MAPS {
            let data = match (&self.ring, name) {
                // the ring was taken out of the object
                (Some(ring), RING_MAP) => {
                    let bytes = ring_memory(ring.as_raw_fd());
                    all.push(MapUse { name: name.to_lowercase(), capacity: bytes, entries: None, bytes });
                    continue;
                }
                _ => self.map(name).and_then(maps::data),
            };
            let Some(data) = data else { continue };
            let capacity = data.info().map_or(0, |info| u64::from(info.max_entries()));
            let by_container = name == KNOWN_MAP || BY_CONTAINER.iter().any(|(_, map)| *map == name);
            all.push(MapUse {
                name: name.to_lowercase(),
                capacity,
                entries: by_container.then_some(published),
                bytes: maps::memory(data.fd().as_fd()),
            });
        }
        all
    }

    /// Asks the kernel to keep run-time statistics of programs as long as the descriptor is open (`BPF_ENABLE_STATS`).
    pub fn measure(&self) -> Result<OwnedFd, String> {
        call::enable_run_time_statistics().map_err(|error| format!("run-time statistics of programs: {error}"))
    }

    /// The ring's descriptor, readable when there are events.
    pub fn ring(&self) -> Option<BorrowedFd<'_>> {
        let ring = self.ring.as_ref()?;
        // SAFETY: the ring owns the descriptor, and is borrowed for as long as the result lives.
        Some(unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) })
    }

    /// Takes the events that are in the ring, at most `most`. Gives how many.
    pub fn events(&mut self, most: usize, each: &mut dyn FnMut(&Event)) -> usize {
        let Some(ring) = &mut self.ring else { return 0 };
        let mut taken = 0;
        while taken < most
            && let Some(item) = ring.next()
        {
            taken += 1;
            if let Some(event) = maps::value::<Event>(&item) {
                each(&event);
            }
        }
        taken
    }

    fn published(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn all_without(why: &str) -> Vec<SignalState> {
    Signal::ALL
        .into_iter()
        .filter(|signal| *signal != Signal::Stacks)
        .map(|signal| {
            let (rung, below) = ladder::below(signal);
            SignalState { signal, rung, why: Some(format!("{why}; {}: {below}", rung.name())) }
        })
        .collect()
}

/// The group of a function.
fn group_of(function: &str) -> Option<Group> {
    let names = |signal: &Signal| {
        ladder::steps(*signal).iter().any(|step| step.programs.iter().any(|(name, _)| *name == function))
    };
    Signal::ALL.iter().find(|signal| names(signal)).map(|signal| signal.group())
}

/// Parses the object, makes the maps, tells the programs about the kernel.
fn load(settings: &Settings, kernel: &Kernel) -> Result<Ebpf, String> {
    let pods = std::fs::metadata(&settings.pods)
        .map_err(|error| format!("{}: {error}: no cgroup to watch", settings.pods.display()))?;
    let offsets: BTreeMap<&str, u32> = kernel.offsets().collect();
    let (level, pods) = (settings.level, pods.ino());
    let (rate, burst) = (u64::from(settings.events_per_second), u64::from(settings.events_burst));
    let victim = u32::from(kernel.victim_is_task);
    let charged = u32::from(settings.charged_io);
    let mut loader = EbpfLoader::new();
    for (name, offset) in &offsets {
        // fields that no program of the object reads are not in it
        loader.override_global(name, offset, false);
    }
    loader.override_global("LEVEL", &level, false);
    loader.override_global("PODS", &pods, false);
    loader.override_global("EVENT_RATE", &rate, false);
    loader.override_global("EVENT_BURST", &burst, false);
    loader.override_global("VICTIM_IS_TASK", &victim, false);
    loader.override_global("CHARGED", &charged, false);
    // three entries more: the host, writeback, the unknown
    let containers = settings.containers.saturating_add(3);
    for name in [KNOWN_MAP, "SCHED", "PROCESSES", "BLOCK", "NET"] {
        loader.map_max_entries(name, containers);
    }
    loader.map_max_entries("TASKS", settings.tasks);
    loader.map_max_entries(EDGES_MAP, settings.edges);
    loader.load(OBJECT).map_err(|error| format!("the programs cannot be loaded: {error}"))
}

fn possible_cpus() -> usize {
    aya::util::nr_cpus().unwrap_or_else(|_| std::thread::available_parallelism().map_or(1, usize::from))
}

fn ring_memory(ring: i32) -> u64 {
    // SAFETY: the ring is open while this is called.
    maps::memory(unsafe { BorrowedFd::borrow_raw(ring) })
}
