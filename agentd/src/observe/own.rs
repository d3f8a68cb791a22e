//! The agent's own part of a batch: what it runs, what it costs, and how the programs do.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agentd_api::message::NodeInfo;
use agentd_api::session::SessionState;
use agentd_api::status::{InstancePhase, PodStatus, TaskState};
use agentd_ebpf::observe::Snapshot;
use agentd_metrics::catalogue::agent;
use agentd_metrics::model::{Batch, ScopeId};

use super::stacks;
use super::watcher::{Counts, Watcher};
use crate::profile::Figures;

const MIB: f64 = 1_048_576.0;

/// Pods, instances, containers, sessions and resources.
pub(super) fn report_node(
    batch: &mut Batch,
    scope: ScopeId,
    info: &NodeInfo,
    pods: &[PodStatus],
    sessions: &[SessionState],
) {
    batch.add(&agent::BUILD, scope, &[&info.version, &info.kernel, &info.cgroups], 1_u64);
    let kinds = [("total", &info.total), ("reserved", &info.reserved), ("used", &info.used), ("free", &info.free)];
    for (kind, amounts) in kinds {
        batch.put(&agent::CPUS, scope, &[kind], amounts.cpus);
        batch.put(&agent::MEMORY, scope, &[kind], amounts.mem * MIB);
        batch.put(&agent::DISK, scope, &[kind], amounts.disk * MIB);
        batch.put(&agent::GPUS, scope, &[kind], amounts.gpus);
    }
    batch.put(&agent::PODS, scope, &[], pods.len() as u64);
    // each word is there, with 0 too, so that a rule finds it
    let mut phases: BTreeMap<&'static str, u64> = PHASES.iter().map(|phase| (phase.as_str(), 0)).collect();
    let mut states: BTreeMap<&'static str, u64> = STATES.iter().map(|state| (state.as_str(), 0)).collect();
    for instance in pods.iter().flat_map(|pod| &pod.instances) {
        *phases.entry(instance.phase.as_str()).or_default() += 1;
        for container in &instance.containers {
            *states.entry(container.state.as_str()).or_default() += 1;
        }
    }
    for (phase, count) in phases {
        batch.put(&agent::INSTANCES, scope, &[phase], count);
    }
    for (state, count) in states {
        batch.put(&agent::CONTAINERS, scope, &[state], count);
    }
    for (word, state) in
        [("starting", SessionState::Starting), ("running", SessionState::Running), ("exited", SessionState::Exited)]
    {
        let count = sessions.iter().filter(|one| **one == state).count();
        batch.put(&agent::SESSIONS, scope, &[word], count as u64);
    }
}

const PHASES: [InstancePhase; 7] = [
    InstancePhase::Starting,
    InstancePhase::Running,
    InstancePhase::Degraded,
    InstancePhase::Backoff,
    InstancePhase::Stopping,
    InstancePhase::Finished,
    InstancePhase::Failed,
];

const STATES: [TaskState; 9] = [
    TaskState::TaskStaging,
    TaskState::TaskStarting,
    TaskState::TaskRunning,
    TaskState::TaskKilling,
    TaskState::TaskFinished,
    TaskState::TaskFailed,
    TaskState::TaskKilled,
    TaskState::TaskError,
    TaskState::TaskLost,
];

/// Signals, programs, maps and events.
pub(super) fn report_programs(
    batch: &mut Batch,
    scope: ScopeId,
    watcher: &Watcher,
    snapshot: &Snapshot,
    profiles: &Figures,
) {
    for state in watcher.signals(profiles) {
        batch.put(&agent::SIGNAL, scope, &[state.signal.name(), state.rung.name()], 1_u64);
    }
    stacks::report(batch, scope, profiles);
    let counts = &watcher.counts;
    let get = Counts::get;
    batch.put(&agent::PROGRAMS_LOST, scope, &[], get(&counts.lost));
    batch.put(&agent::UNPUBLISHED, scope, &[], get(&counts.unpublished));
    let (running, ended) = watcher.registry.count();
    batch.put(&agent::OBSERVED, scope, &["running"], running as u64);
    batch.put(&agent::OBSERVED, scope, &["ended"], ended as u64);
    let sum = |field: fn(&agentd_ebpf::observe::layout::Processes) -> u64| -> u64 {
        snapshot.containers.values().filter_map(|figures| figures.processes.as_ref()).map(field).sum()
    };
    for (outcome, count) in [
        ("published", get(&counts.published)),
        ("unwanted", get(&counts.unwanted)),
        ("held", get(&counts.held)),
        ("limited", get(&counts.limited_before) + sum(|processes| processes.events_limited)),
        ("dropped", get(&counts.dropped_before) + sum(|processes| processes.events_dropped)),
        ("unknown", get(&counts.unknown)),
    ] {
        batch.put(&agent::EVENTS, scope, &[outcome], count);
    }
    for cost in watcher.costs() {
        let labels = [cost.name.as_str(), cost.group.name()];
        batch.add(&agent::PROGRAM_TIME, scope, &labels, seconds(cost.run_time));
        batch.add(&agent::PROGRAM_RUNS, scope, &labels, cost.runs);
        batch.add(&agent::PROGRAM_MISSED, scope, &labels, cost.missed);
    }
    for map in watcher.maps() {
        let labels = [map.name.as_str()];
        if let Some(entries) = map.entries {
            batch.add(&agent::MAP_ENTRIES, scope, &labels, entries);
        }
        batch.add(&agent::MAP_CAPACITY, scope, &labels, map.capacity);
        batch.add(&agent::MAP_MEMORY, scope, &labels, map.bytes);
    }
}

/// What earlier gatherings cost.
pub(super) fn report_gathering(batch: &mut Batch, scope: ScopeId, counts: &Counts) {
    let get = Counts::get;
    batch.put(&agent::SCRAPES, scope, &["done"], get(&counts.gathered));
    batch.put(&agent::SCRAPES, scope, &["late"], get(&counts.late));
    batch.put(&agent::SCRAPE_TIME, scope, &[], seconds(get(&counts.gather_time)));
    batch.put(&agent::SCRAPE_CPU_TIME, scope, &["gather"], seconds(get(&counts.gather_cpu)));
    batch.put(&agent::SCRAPE_CPU_TIME, scope, &["write"], seconds(get(&counts.encode_cpu)));
}

/// Start of the daemon, seconds since 1970. Found once: its age is told in steps, and a start that moved would look like
/// another process.
static STARTED: OnceLock<f64> = OnceLock::new();

/// The daemon as a process. Blocking.
pub(super) fn report_process(batch: &mut Batch, scope: ScopeId) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let page = rustix::param::page_size() as u64;
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    if let Some(stat) = Stat::parse(&read("/proc/self/stat")) {
        let (user, system) = (stat.user as f64 / ticks, stat.system as f64 / ticks);
        batch.put(&agent::CPU_TIME, scope, &["user"], user);
        batch.put(&agent::CPU_TIME, scope, &["system"], system);
        batch.put(&agent::PROCESS_CPU, scope, &[], user + system);
        batch.put(&agent::THREADS, scope, &[], stat.threads);
        batch.put(&agent::RESIDENT, scope, &[], stat.resident * page);
        batch.put(&agent::PROCESS_RESIDENT, scope, &[], stat.resident * page);
        batch.put(&agent::PROCESS_VIRTUAL, scope, &[], stat.virtual_bytes);
        let uptime: Option<f64> = read("/proc/uptime").split(' ').next().and_then(|text| text.parse().ok());
        if let Some(host) = uptime {
            let age = (host - stat.start as f64 / ticks).max(0.0);
            batch.put(&agent::UPTIME, scope, &[], age);
            let started = STARTED.get_or_init(|| {
                let start = SystemTime::now().checked_sub(Duration::from_secs_f64(age)).unwrap_or(UNIX_EPOCH);
                start.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
            });
            batch.put(&agent::PROCESS_START, scope, &[], *started);
        }
    }
    // the descriptor that lists them is one of them
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1)) as u64;
    batch.put(&agent::DESCRIPTORS, scope, &[], open);
    batch.put(&agent::PROCESS_OPEN_FDS, scope, &[], open);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if let Some(most) = limit.current {
        batch.put(&agent::PROCESS_MAX_FDS, scope, &[], most);
    }
}

/// What `/proc/<pid>/stat` tells.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// Ticks of the clock.
    user: u64,
    system: u64,
    threads: u64,
    /// Ticks since the host's start.
    start: u64,
    virtual_bytes: u64,
    /// Pages.
    resident: u64,
}

impl Stat {
    /// The name in brackets may hold anything; what counts comes after it.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // field 3 of proc(5) is the first here
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            user: field(14)?,
            system: field(15)?,
            threads: field(20)?,
            start: field(22)?,
            virtual_bytes: field(23)?,
            resident: field(24)?,
        })
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentd_metrics::model::Scope;

    #[test]
    fn a_stat_line_is_read_behind_the_name() {
        let line = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 5 6 20 0 9 0 1234 99999 321 18446744073709551615 1";
        let stat = Stat { user: 150, system: 50, threads: 9, start: 1234, virtual_bytes: 99_999, resident: 321 };
        assert_eq!(Stat::parse(line), Some(stat));
        assert_eq!(Stat::parse("7 (a) S 1"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn this_process_is_told_of() {
        let mut batch = Batch::new(SystemTime::now());
        let scope = batch.scope(Scope::default());
        report_process(&mut batch, scope);
        for family in [&agent::RESIDENT, &agent::THREADS, &agent::DESCRIPTORS, &agent::PROCESS_START, &agent::UPTIME] {
            assert_eq!(batch.points(family).len(), 1, "{}", family.name);
        }
        assert_eq!(batch.points(&agent::CPU_TIME).len(), 2);
        assert_eq!(batch.faults(), Vec::<String>::new());
    }

    #[test]
    fn a_node_without_pods_has_every_word() {
        let mut batch = Batch::new(SystemTime::now());
        let scope = batch.scope(Scope::default());
        let amounts = agentd_api::message::NodeResources::default();
        let info = NodeInfo {
            instance: "a".into(),
            hostname: "h".into(),
            version: "1".into(),
            kernel: "6".into(),
            boot_id: "b".into(),
            cgroups: "v2".into(),
            total: amounts,
            reserved: amounts,
            used: amounts,
            free: amounts,
            instances: 0,
        };
        report_node(&mut batch, scope, &info, &[], &[SessionState::Running]);
        let watcher = Watcher::new(crate::config::Observe::default());
        report_programs(&mut batch, scope, &watcher, &Snapshot::default(), &Figures::default());
        report_gathering(&mut batch, scope, &watcher.counts);
        assert_eq!(batch.points(&agent::INSTANCES).len(), PHASES.len());
        assert_eq!(batch.points(&agent::CONTAINERS).len(), STATES.len());
        assert_eq!(batch.points(&agent::SIGNAL).len(), agentd_ebpf::observe::Signal::ALL.len());
        assert_eq!(batch.faults(), Vec::<String>::new());
    }
}
