//! The part of the configuration that is about watching containers and serving metrics, as plain data with its defaults.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Groups of programs that `observe.groups` may name.
pub(super) const GROUPS: [&str; 7] = ["all", "sched", "process", "block", "net", "packets", "profile"];

/// Those that are wanted by default: all but `packets`, which costs a run of a program for each packet.
const DEFAULT_GROUPS: [&str; 5] = ["sched", "process", "block", "net", "profile"];

/// Kinds of events that `observe.events` may name, without the `container-` before them.
pub(super) const EVENTS: [&str; 6] = ["all", "exec", "exit", "oom", "connect-failed", "pressure"];

/// Rungs that `observe.without` may name, and `btf`.
pub(super) const RUNGS: [&str; 6] = ["btf", "tp_btf", "raw_tp", "tracepoint", "cgroup", "perf_event"];

/// How containers are watched.
#[derive(Debug, Clone, PartialEq)]
pub struct Observe {
    /// Groups of eBPF programs: `sched`, `process`, `block`, `net`, `packets`, `profile`, or `all`; empty means none.
    pub groups: Vec<String>,
    /// Most containers known to the programs at once, those that ended a while ago among them.
    pub containers: u64,
    /// Most tasks of the host that are followed at once.
    pub tasks: u64,
    /// Most pairs of a container and a peer that are counted.
    pub edges: u64,
    /// What becomes an event: `exec`, `exit`, `oom`, `connect-failed`, `pressure`, or `all`; empty means none.
    pub events: Vec<String>,
    /// Events of one container that the kernel lets through each second on average; five times as many at once.
    pub events_per_second: u64,
    /// Events of all containers together that are published each second on average; twice as many at once.
    pub events_total_per_second: u64,
    /// How long the figures of a container that has ended are kept, seconds.
    pub tombstone_seconds: u64,
    /// Share of ten seconds, percent, that some task waited for a CPU, above which an event is published; 0 means never.
    pub pressure_cpu: f64,
    /// The same that all tasks waited for memory.
    pub pressure_memory: f64,
    /// The same that all tasks waited for I/O.
    pub pressure_io: f64,
    /// Rungs, and `btf`, that are left out, to see what a lesser kernel does.
    pub without: Vec<String>,
}

impl Default for Observe {
    fn default() -> Self {
        Self {
            groups: DEFAULT_GROUPS.map(str::to_owned).to_vec(),
            containers: 1024,
            tasks: 16_384,
            edges: 4096,
            events: vec!["all".to_owned()],
            events_per_second: 10,
            events_total_per_second: 200,
            tombstone_seconds: 60,
            pressure_cpu: 60.0,
            pressure_memory: 10.0,
            pressure_io: 40.0,
            without: Vec::new(),
        }
    }
}

impl Observe {
    /// Whether a group of programs is wanted.
    pub fn wants(&self, group: &str) -> bool {
        self.groups.iter().any(|one| one == "all" || one == group)
    }

    /// Whether a kind of event is wanted.
    pub fn tells(&self, event: &str) -> bool {
        self.events.iter().any(|one| one == "all" || one == event)
    }
}

/// What metrics are gathered, and where they are served beside the API.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics {
    /// Addresses with port on which `/metrics` and `/metrics/snapshot` alone are served; empty means none.
    /// [`Metrics::addresses`] gives them parsed.
    pub listen: Vec<String>,
    /// Whether they are served with TLS, for clients with a certificate of the API's CAs.
    pub tls: bool,
    /// Whether they are served in plain text to other hosts, too.
    pub insecure: bool,
    /// The server's certificate for `tls`; absent means the API's.
    pub tls_certificate: Option<PathBuf>,
    /// Its key; absent means the API's.
    pub tls_key: Option<PathBuf>,
    /// CAs whose certificates clients must have; absent means the API's.
    pub tls_client_ca: Option<PathBuf>,
    /// Whether the host's own figures are among them.
    pub host: bool,
    /// Whether the names of cAdvisor and node_exporter are served beside those of OpenTelemetry.
    pub compatible: bool,
    /// Most series of one pod.
    pub series_per_pod: u64,
    /// Most peers outside of this host's pods that are named for one pod; the others are `~other`.
    pub peers_per_pod: u64,
    /// Longest time for one gathering, seconds.
    pub timeout_seconds: u64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            tls: false,
            insecure: false,
            tls_certificate: None,
            tls_key: None,
            tls_client_ca: None,
            host: true,
            compatible: true,
            series_per_pod: 5000,
            peers_per_pod: 20,
            timeout_seconds: 8,
        }
    }
}

impl Metrics {
    /// What is listened on.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listen.iter().filter_map(|text| text.parse().ok()).collect()
    }
}
