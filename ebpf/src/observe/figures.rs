//! What was read from the maps, summed over the CPUs.

use std::collections::HashMap;

use agentd_ebpf_common::{BLOCK_KINDS, BUCKETS, Block, Edge, EdgeKey, FAILURES, Log2, Net, Processes, Sched};

/// What the kernel counted for one container since it was published; none where the group is not attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Scheduler.
    pub sched: Option<Sched>,
    /// Processes.
    pub processes: Option<Processes>,
    /// Block I/O.
    pub block: Option<Block>,
    /// Network.
    pub net: Option<Net>,
    /// Whether bytes and packets of [`Self::net`] are counted: the group `packets`.
    pub packets: bool,
}

/// Everything at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// By cgroup id, those that are published.
    pub containers: HashMap<u64, Figures>,
    /// All that is in no container: the rest of the host.
    pub host: Figures,
    /// Block requests that writeback made for nobody that it names (cgroup v1).
    pub writeback: Option<Block>,
    /// What ran below the pods' cgroup in a directory that was not published.
    pub unknown: Figures,
    /// Who spoke with whom; none where the map could not be read this time.
    pub edges: Option<Vec<(EdgeKey, Edge)>>,
}

/// Figures that can be summed over CPUs.
pub trait Sum: Copy {
    /// Nothing counted.
    const ZERO: Self;

    /// Adds another CPU's.
    fn add(&mut self, other: &Self);
}

impl Sum for Log2 {
    const ZERO: Self = Self { buckets: [0; BUCKETS], sum: 0 };

    fn add(&mut self, other: &Self) {
        for (to, from) in self.buckets.iter_mut().zip(other.buckets) {
            *to = to.wrapping_add(from);
        }
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

impl Sum for Sched {
    const ZERO: Self =
        Self { queued: Log2::ZERO, off_cpu: Log2::ZERO, voluntary: 0, involuntary: 0, migrations: 0, untracked: 0 };

    fn add(&mut self, other: &Self) {
        self.queued.add(&other.queued);
        self.off_cpu.add(&other.off_cpu);
        self.voluntary += other.voluntary;
        self.involuntary += other.involuntary;
        self.migrations += other.migrations;
        self.untracked += other.untracked;
    }
}

impl Sum for Processes {
    const ZERO: Self = Self {
        execs: 0,
        forks: 0,
        threads: 0,
        exits_success: 0,
        exits_failure: 0,
        exits_signal: 0,
        exits_unknown: 0,
        oom_kills: 0,
        signals: 0,
        events: 0,
        events_limited: 0,
        events_dropped: 0,
    };

    fn add(&mut self, other: &Self) {
        self.execs += other.execs;
        self.forks += other.forks;
        self.threads += other.threads;
        self.exits_success += other.exits_success;
        self.exits_failure += other.exits_failure;
        self.exits_signal += other.exits_signal;
        self.exits_unknown += other.exits_unknown;
        self.oom_kills += other.oom_kills;
        self.signals += other.signals;
        self.events += other.events;
        self.events_limited += other.events_limited;
        self.events_dropped += other.events_dropped;
    }
}

impl Sum for Block {
    const ZERO: Self = Self {
        latency: [Log2::ZERO; BLOCK_KINDS],
        bytes: [0; BLOCK_KINDS],
        requests: [0; BLOCK_KINDS],
        errors: 0,
        begun: 0,
        merged: 0,
        untracked: 0,
    };

    fn add(&mut self, other: &Self) {
        for kind in 0..BLOCK_KINDS {
            self.latency[kind].add(&other.latency[kind]);
            self.bytes[kind] += other.bytes[kind];
            self.requests[kind] += other.requests[kind];
        }
        self.errors += other.errors;
        self.begun += other.begun;
        self.merged += other.merged;
        self.untracked += other.untracked;
    }
}

impl Sum for Net {
    const ZERO: Self = Self {
        rtt: Log2::ZERO,
        connect_latency: Log2::ZERO,
        received_bytes: 0,
        sent_bytes: 0,
        received_packets: 0,
        sent_packets: 0,
        connects: 0,
        accepts: 0,
        closes: 0,
        failures: [0; FAILURES],
        retransmits: 0,
        resets_received: 0,
        resets_sent: 0,
        edges_dropped: 0,
        untracked: 0,
    };

    fn add(&mut self, other: &Self) {
        self.rtt.add(&other.rtt);
        self.connect_latency.add(&other.connect_latency);
        self.received_bytes += other.received_bytes;
        self.sent_bytes += other.sent_bytes;
        self.received_packets += other.received_packets;
        self.sent_packets += other.sent_packets;
        self.connects += other.connects;
        self.accepts += other.accepts;
        self.closes += other.closes;
        for (to, from) in self.failures.iter_mut().zip(other.failures) {
            *to += from;
        }
        self.retransmits += other.retransmits;
        self.resets_received += other.resets_received;
        self.resets_sent += other.resets_sent;
        self.edges_dropped += other.edges_dropped;
        self.untracked += other.untracked;
    }
}
