//! What the programs in the kernel counted, as points.

use std::borrow::Cow;

use agentd_ebpf::observe::Figures;
use agentd_ebpf::observe::layout::{
    BLOCK_DISCARD, BLOCK_KINDS, BLOCK_OTHER, BLOCK_READ, BLOCK_WRITE, Block, FAILURE_ABORTED, FAILURE_OTHER,
    FAILURE_REFUSED, FAILURE_RESET, FAILURE_TIMEOUT, FAILURE_UNREACHABLE, FAILURES, Log2, Net, Processes, Sched,
};

use super::histogram::{histogram, observed};
use crate::catalogue::container as families;
use crate::model::{Batch, Family, Point, ScopeId, Value};

/// Names of the kinds of block requests.
const KINDS: [&str; BLOCK_KINDS] = {
    let mut names = [""; BLOCK_KINDS];
    names[BLOCK_READ] = "read";
    names[BLOCK_WRITE] = "write";
    names[BLOCK_DISCARD] = "discard";
    names[BLOCK_OTHER] = "other";
    names
};

/// Values of `error.type` by cause; the last as OpenTelemetry has it.
const CAUSES: [&str; FAILURES] = {
    let mut names = [""; FAILURES];
    names[FAILURE_REFUSED] = "refused";
    names[FAILURE_TIMEOUT] = "timeout";
    names[FAILURE_UNREACHABLE] = "unreachable";
    names[FAILURE_RESET] = "reset";
    names[FAILURE_ABORTED] = "aborted";
    names[FAILURE_OTHER] = "_OTHER";
    names
};

/// Reports all figures of a container, of what runs outside containers, or of an ended container.
pub fn report_figures(batch: &mut Batch, scope: ScopeId, figures: &Figures) {
    if let Some(sched) = &figures.sched {
        report_sched(batch, scope, sched);
    }
    if let Some(processes) = &figures.processes {
        report_processes(batch, scope, processes);
    }
    if let Some(block) = &figures.block {
        report_block(batch, scope, block);
    }
    if let Some(net) = &figures.net {
        report_net(batch, scope, net);
        if figures.packets {
            report_packets(batch, scope, net);
        }
    }
}

/// Adds a histogram; one that has nothing in it is left out.
fn distribution(batch: &mut Batch, family: &'static Family, scope: ScopeId, label: Option<&'static str>, log2: &Log2) {
    if observed(log2) {
        let labels = label.map(Cow::Borrowed).into_iter().collect();
        batch.push(family, Point { scope, labels, value: Value::Histogram(Box::new(histogram(log2))) });
    }
}

fn report_sched(batch: &mut Batch, scope: ScopeId, sched: &Sched) {
    distribution(batch, &families::RUNQUEUE_LATENCY, scope, None, &sched.queued);
    distribution(batch, &families::OFF_CPU, scope, None, &sched.off_cpu);
    batch.put(&families::SWITCHES, scope, &["voluntary"], sched.voluntary);
    batch.put(&families::SWITCHES, scope, &["involuntary"], sched.involuntary);
    batch.put(&families::MIGRATIONS, scope, &[], sched.migrations);
    batch.put(&families::MISSED, scope, &["tasks_full"], sched.untracked);
}

fn report_processes(batch: &mut Batch, scope: ScopeId, processes: &Processes) {
    batch.put(&families::EXECS, scope, &[], processes.execs);
    batch.put(&families::FORKS, scope, &[], processes.forks);
    batch.put(&families::THREADS_MADE, scope, &[], processes.threads);
    batch.put(&families::EXITS, scope, &["success"], processes.exits_success);
    batch.put(&families::EXITS, scope, &["failure"], processes.exits_failure);
    batch.put(&families::EXITS, scope, &["signal"], processes.exits_signal);
    if processes.exits_unknown > 0 {
        batch.put(&families::EXITS, scope, &["unknown"], processes.exits_unknown);
    }
    batch.put(&families::OOM_VICTIMS, scope, &[], processes.oom_kills);
    batch.put(&families::SIGNALS, scope, &[], processes.signals);
    batch.put(&families::EVENTS, scope, &[], processes.events);
    batch.put(&families::MISSED, scope, &["events_limited"], processes.events_limited);
    batch.put(&families::MISSED, scope, &["ring_full"], processes.events_dropped);
}

/// Reports block I/O alone, e.g. that of writeback which the kernel attributes to nobody.
///
/// Reads and writes are always told, discards and the rest once there was one.
pub fn report_block(batch: &mut Batch, scope: ScopeId, block: &Block) {
    for (kind, name) in KINDS.iter().enumerate() {
        distribution(batch, &families::BLOCK_LATENCY, scope, Some(name), &block.latency[kind]);
        if kind == BLOCK_READ || kind == BLOCK_WRITE || block.requests[kind] > 0 {
            batch.put(&families::BLOCK_IO, scope, &[name], block.bytes[kind]);
            batch.put(&families::BLOCK_REQUESTS, scope, &[name], block.requests[kind]);
        }
    }
    batch.put(&families::BLOCK_ERRORS, scope, &[], block.errors);
    batch.put(&families::BLOCK_IN_FLIGHT, scope, &[], in_flight(block));
    batch.put(&families::MISSED, scope, &["requests_full"], block.untracked);
}

/// Requests on their way. The CPUs' figures are read one after the other, so a request may have been seen to complete and
/// not to begin.
fn in_flight(block: &Block) -> u64 {
    block
        .requests
        .iter()
        .fold(block.begun, |left, completed| left.saturating_sub(*completed))
        .saturating_sub(block.merged)
}

fn report_packets(batch: &mut Batch, scope: ScopeId, net: &Net) {
    batch.put(&families::SOCKET_IO, scope, &["receive"], net.received_bytes);
    batch.put(&families::SOCKET_IO, scope, &["transmit"], net.sent_bytes);
    batch.put(&families::SOCKET_PACKETS, scope, &["receive"], net.received_packets);
    batch.put(&families::SOCKET_PACKETS, scope, &["transmit"], net.sent_packets);
}

fn report_net(batch: &mut Batch, scope: ScopeId, net: &Net) {
    batch.put(&families::TCP_CONNECTS, scope, &[], net.connects);
    batch.put(&families::TCP_ACCEPTS, scope, &[], net.accepts);
    batch.put(&families::TCP_CLOSES, scope, &[], net.closes);
    for (cause, failed) in CAUSES.iter().zip(net.failures) {
        batch.put(&families::TCP_FAILURES, scope, &[cause], failed);
    }
    batch.put(&families::TCP_RETRANSMITS, scope, &[], net.retransmits);
    batch.put(&families::TCP_RESETS, scope, &["receive"], net.resets_received);
    batch.put(&families::TCP_RESETS, scope, &["transmit"], net.resets_sent);
    batch.put(&families::MISSED, scope, &["edges_full"], net.edges_dropped);
    batch.put(&families::MISSED, scope, &["connections_full"], net.untracked);
    distribution(batch, &families::TCP_RTT, scope, None, &net.rtt);
    distribution(batch, &families::TCP_CONNECT_LATENCY, scope, None, &net.connect_latency);
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use agentd_ebpf::observe::layout::BUCKETS;

    use super::*;
    use crate::model::{Number, Scope};

    const NONE: Log2 = Log2 { buckets: [0; BUCKETS], sum: 0 };

    fn log2(observed: u64) -> Log2 {
        let mut log2 = NONE;
        log2.buckets[20] = observed;
        log2.sum = observed << 20;
        log2
    }

    fn block() -> Block {
        Block {
            latency: [log2(3), NONE, NONE, NONE],
            bytes: [4096, 0, 0, 0],
            requests: [3, 0, 0, 1],
            errors: 1,
            begun: 8,
            merged: 2,
            untracked: 9,
        }
    }

    fn batch() -> (Batch, ScopeId) {
        let mut batch = Batch::new(SystemTime::UNIX_EPOCH);
        let scope = batch.scope(Scope::default());
        (batch, scope)
    }

    /// The values of a family's points with their labels.
    fn points(batch: &Batch, family: &'static Family) -> Vec<(String, u64)> {
        let value = |point: &Point| match &point.value {
            Value::Number(Number::Whole(value)) => *value,
            Value::Number(Number::Real(value)) => panic!("{value} is not whole"),
            Value::Histogram(histogram) => histogram.counts.iter().sum(),
        };
        batch.points(family).iter().map(|point| (point.labels.join(","), value(point))).collect()
    }

    fn one(label: &str, value: u64) -> (String, u64) {
        (label.to_owned(), value)
    }

    #[test]
    fn block_figures_are_told_by_kind() {
        let (mut batch, scope) = batch();
        report_block(&mut batch, scope, &block());
        assert_eq!(points(&batch, &families::BLOCK_IO), [one("read", 4096), one("write", 0), one("other", 0)]);
        assert_eq!(points(&batch, &families::BLOCK_REQUESTS), [one("read", 3), one("write", 0), one("other", 1)]);
        assert_eq!(points(&batch, &families::BLOCK_LATENCY), [one("read", 3)]);
        assert_eq!(points(&batch, &families::BLOCK_IN_FLIGHT), [one("", 2)]);
        assert_eq!(points(&batch, &families::MISSED), [one("requests_full", 9)]);
        assert_eq!(in_flight(&Block { begun: 1, ..block() }), 0, "read at two moments");
    }

    #[test]
    fn a_group_that_is_not_attached_is_not_told() {
        let (mut batch, scope) = batch();
        report_figures(&mut batch, scope, &Figures::default());
        assert_eq!(batch.families().count(), 0);
        let processes =
            Processes { execs: 7, exits_signal: 2, oom_kills: 1, events_limited: 5, ..Processes::default() };
        report_figures(&mut batch, scope, &Figures { processes: Some(processes), ..Figures::default() });
        assert_eq!(points(&batch, &families::EXECS), [one("", 7)]);
        assert_eq!(points(&batch, &families::EXITS), [one("success", 0), one("failure", 0), one("signal", 2)]);
        let unknown = Processes { exits_unknown: 3, ..Processes::default() };
        report_processes(&mut batch, scope, &unknown);
        assert_eq!(points(&batch, &families::EXITS)[6], one("unknown", 3));
        assert_eq!(points(&batch, &families::OOM_VICTIMS), [one("", 1), one("", 0)]);
        assert_eq!(points(&batch, &families::MISSED)[..2], [one("events_limited", 5), one("ring_full", 0)]);
        assert!(batch.points(&families::SWITCHES).is_empty());
    }

    #[test]
    fn network_and_scheduler_figures_keep_their_places() {
        let (mut batch, scope) = batch();
        let net = Net {
            rtt: log2(4),
            connect_latency: NONE,
            received_bytes: 1,
            sent_bytes: 2,
            received_packets: 3,
            sent_packets: 4,
            connects: 5,
            accepts: 6,
            closes: 7,
            failures: [10, 11, 12, 13, 14, 15],
            retransmits: 8,
            resets_received: 16,
            resets_sent: 17,
            edges_dropped: 18,
            untracked: 19,
        };
        let sched =
            Sched { queued: log2(1), off_cpu: log2(2), voluntary: 3, involuntary: 4, migrations: 5, untracked: 6 };
        let figures = Figures { net: Some(net), packets: true, sched: Some(sched), ..Figures::default() };
        report_figures(&mut batch, scope, &figures);
        assert_eq!(points(&batch, &families::SOCKET_IO), [one("receive", 1), one("transmit", 2)]);
        assert_eq!(points(&batch, &families::SOCKET_PACKETS), [one("receive", 3), one("transmit", 4)]);
        let failures = ["refused", "timeout", "unreachable", "reset", "aborted", "_OTHER"];
        let failures: Vec<_> = failures.into_iter().zip(10..).map(|(cause, failed)| one(cause, failed)).collect();
        assert_eq!(points(&batch, &families::TCP_FAILURES), failures);
        assert_eq!(points(&batch, &families::TCP_RESETS), [one("receive", 16), one("transmit", 17)]);
        assert_eq!(points(&batch, &families::TCP_RTT), [one("", 4)]);
        assert_eq!(points(&batch, &families::TCP_CONNECT_LATENCY), []);
        assert_eq!(points(&batch, &families::RUNQUEUE_LATENCY), [one("", 1)]);
        assert_eq!(points(&batch, &families::OFF_CPU), [one("", 2)]);
        assert_eq!(points(&batch, &families::SWITCHES), [one("voluntary", 3), one("involuntary", 4)]);
        let missed = [one("tasks_full", 6), one("edges_full", 18), one("connections_full", 19)];
        assert_eq!(points(&batch, &families::MISSED), missed);
    }
}
