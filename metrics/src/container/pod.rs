//! A pod: its network, its sums, and whom it speaks with.
//!
//! Sums over containers are those of gauges alone. A sum of counters would fall when a container's cgroup is made anew, and
//! every query of its rate be wrong then; CPU time and pressure are read from the pod's own cgroup instead, and everything
//! else can be summed in queries, after the rate.

use std::path::PathBuf;
use std::time::SystemTime;

use agentd_ebpf::observe::layout;

use super::histogram::seconds;
use super::report::Points;
use super::{Cpu, Interface, Pressure, Reading, Sockets};
use crate::budget::OTHER;
use crate::catalogue::{compat, container as families};
use crate::model::{Batch, ScopeId};

/// Where a pod is read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodSource {
    /// Its cgroup2 directory, above those of its containers; none: CPU time and pressure of the pod are left out.
    pub unified: Option<PathBuf>,
    /// Whether pressure is read, too. Of a pod with one container it is that container's, and not worth three files.
    pub pressure: bool,
    /// A process in the pod's network namespace, its pod-init; none if it has the host's network, which is not its own.
    pub network: Option<u32>,
}

/// What was read of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodReading {
    /// CPU time of all that ran in the pod, containers that are gone and its pod-init included.
    pub cpu: Cpu,
    /// Pressure on the pod as a whole.
    pub pressure: Pressure,
    /// Interfaces, without loopback.
    pub interfaces: Vec<Interface>,
    /// Sockets.
    pub sockets: Sockets,
}

/// Sums over a pod's containers, of what can be summed at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Containers that were added.
    pub containers: u64,
    /// Memory, bytes.
    pub memory: Option<u64>,
    /// Working set, bytes.
    pub working_set: Option<u64>,
    /// Processes.
    pub processes: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
    /// Open descriptors.
    pub descriptors: Option<u64>,
}

impl Totals {
    /// Adds a container that runs.
    pub fn add(&mut self, reading: &Reading) {
        self.containers += 1;
        for (sum, value) in [
            (&mut self.memory, reading.memory.usage),
            (&mut self.working_set, reading.memory.working_set()),
            (&mut self.processes, reading.tasks.processes),
            (&mut self.threads, reading.tasks.threads),
            (&mut self.descriptors, reading.tasks.descriptors),
        ] {
            if let Some(value) = value {
                *sum = Some(sum.unwrap_or(0).saturating_add(value));
            }
        }
    }
}

/// What the caller knows of a pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// When this instance was started.
    pub started: Option<SystemTime>,
}

/// Who opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// The pod.
    Outbound,
    /// The peer.
    Inbound,
}

impl Direction {
    /// That of an edge's key; none for a number that the programs do not write.
    pub fn of(number: u8) -> Option<Self> {
        match number {
            layout::OPENED => Some(Self::Outbound),
            layout::ACCEPTED => Some(Self::Inbound),
            _ => None,
        }
    }

    /// Value of the label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// Traffic of a pod with one peer on one port of the server. Edges with the same peer, port and direction must have been
/// merged, and their number bounded, by the caller.
#[derive(Debug, Clone, Copy)]
pub struct Edge<'a> {
    /// The peer's name: a pod's, or what the caller calls those outside.
    pub peer: &'a str,
    /// The server's port; none for edges of several ports that were put together.
    pub port: Option<u16>,
    /// Who opened it.
    pub direction: Direction,
    /// Counts.
    pub counts: layout::Edge,
}

/// Adds the points of a pod. `edges` come with the scope that they go to: where the programs began later than the pod, that is
/// another one, with a start of its own.
pub fn report_pod(
    batch: &mut Batch,
    scope: ScopeId,
    reading: &PodReading,
    facts: &PodFacts,
    totals: &Totals,
    edges: (ScopeId, &[Edge<'_>]),
) {
    let mut points = Points { batch, scope };
    points.put(&families::POD_CONTAINERS, &[], Some(totals.containers));
    let up = facts.started.map(|started| points.batch.time.duration_since(started).unwrap_or_default().as_secs_f64());
    points.put(&families::POD_UPTIME, &[], up);
    points.put(&families::POD_CPU_TIME, &["user"], reading.cpu.user.map(seconds));
    points.put(&families::POD_CPU_TIME, &["system"], reading.cpu.system.map(seconds));
    points.pressure_of(&families::POD_PRESSURE, &reading.pressure);
    points.put(&families::POD_MEMORY_USAGE, &[], totals.memory);
    points.put(&families::POD_MEMORY_WORKING_SET, &[], totals.working_set);
    points.put(&families::POD_PROCESSES, &[], totals.processes);
    points.put(&families::POD_THREADS, &[], totals.threads);
    points.put(&families::POD_DESCRIPTORS, &[], totals.descriptors);
    points.put(&families::POD_SOCKETS, &["all"], reading.sockets.used);
    points.put(&families::POD_SOCKETS, &["tcp"], reading.sockets.tcp);
    points.put(&families::POD_SOCKETS, &["tcp_time_wait"], reading.sockets.tcp_time_wait);
    points.put(&families::POD_SOCKETS, &["tcp_orphan"], reading.sockets.tcp_orphans);
    points.put(&families::POD_SOCKETS, &["udp"], reading.sockets.udp);
    for interface in &reading.interfaces {
        points.interface(interface);
    }
    let (counted, edges) = edges;
    points.scope = counted;
    for edge in edges {
        points.edge(edge);
    }
}

impl Points<'_> {
    fn interface(&mut self, interface: &Interface) {
        let Interface { name, .. } = interface;
        for (family, received, sent) in [
            (&families::NETWORK_IO, interface.received_bytes, interface.sent_bytes),
            (&families::POD_PACKETS, interface.received_packets, interface.sent_packets),
            (&families::POD_NETWORK_ERRORS, interface.received_errors, interface.sent_errors),
            (&families::POD_NETWORK_DROPS, interface.received_drops, interface.sent_drops),
        ] {
            self.batch.add(family, self.scope, &["receive", name], received);
            self.batch.add(family, self.scope, &["transmit", name], sent);
        }
        for (family, value) in [
            (&compat::NETWORK_RECEIVE_BYTES, interface.received_bytes),
            (&compat::NETWORK_TRANSMIT_BYTES, interface.sent_bytes),
            (&compat::NETWORK_RECEIVE_PACKETS, interface.received_packets),
            (&compat::NETWORK_TRANSMIT_PACKETS, interface.sent_packets),
            (&compat::NETWORK_RECEIVE_ERRORS, interface.received_errors),
            (&compat::NETWORK_TRANSMIT_ERRORS, interface.sent_errors),
            (&compat::NETWORK_RECEIVE_DROPPED, interface.received_drops),
            (&compat::NETWORK_TRANSMIT_DROPPED, interface.sent_drops),
        ] {
            self.batch.add(family, self.scope, &[name], value);
        }
    }

    fn edge(&mut self, edge: &Edge<'_>) {
        let port = edge.port.map_or_else(|| OTHER.to_owned(), |port| port.to_string());
        for (family, value) in [
            (&families::EDGE_CONNECTIONS, edge.counts.connections),
            (&families::EDGE_FAILURES, edge.counts.failures),
            (&families::EDGE_RETRANSMITS, edge.counts.retransmits),
            (&families::EDGE_RECEIVED, edge.counts.received_bytes),
            (&families::EDGE_SENT, edge.counts.sent_bytes),
        ] {
            self.batch.add(family, self.scope, &[edge.peer, &port, edge.direction.as_str()], value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::container::{Memory, Stall, Tasks};
    use crate::model::{Family, Number, Point, Scope, Value};

    fn told(batch: &Batch, family: &'static Family) -> Vec<(String, f64)> {
        let value = |point: &Point| match &point.value {
            Value::Number(Number::Whole(number)) => *number as f64,
            Value::Number(Number::Real(number)) => *number,
            Value::Histogram(_) => panic!("{} is no histogram", family.name),
        };
        batch.points(family).iter().map(|point| (point.labels.join(","), value(point))).collect()
    }

    fn one(label: &str, value: f64) -> (String, f64) {
        (label.to_owned(), value)
    }

    #[test]
    fn only_what_some_container_told_is_summed() {
        let mut totals = Totals::default();
        let memory = Memory { usage: Some(100), inactive_file: Some(30), ..Memory::default() };
        let tasks = Tasks { processes: Some(2), threads: Some(3), ..Tasks::default() };
        totals.add(&Reading { memory, tasks, ..Reading::default() });
        totals.add(&Reading { memory, ..Reading::default() });
        totals.add(&Reading::default());
        let expected = Totals {
            containers: 3,
            memory: Some(200),
            working_set: Some(140),
            processes: Some(2),
            threads: Some(3),
            descriptors: None,
        };
        assert_eq!(totals, expected);
    }

    #[test]
    fn a_pod_is_told_with_its_interfaces_and_edges() {
        let mut batch = Batch::new(UNIX_EPOCH + Duration::from_secs(100));
        let scope = batch.scope(Scope::default());
        let eth0 = Interface {
            name: "eth0".into(),
            received_bytes: 1,
            received_packets: 2,
            received_errors: 3,
            received_drops: 4,
            sent_bytes: 5,
            sent_packets: 6,
            sent_errors: 7,
            sent_drops: 8,
        };
        let reading = PodReading {
            cpu: Cpu { user: Some(2_000_000_000), system: Some(500_000_000), ..Cpu::default() },
            pressure: Pressure { memory: Some(Stall { some: 1_000_000, full: None }), ..Pressure::default() },
            interfaces: vec![eth0],
            sockets: Sockets { used: Some(9), udp: Some(1), ..Sockets::default() },
        };
        let counts =
            layout::Edge { connections: 10, failures: 1, retransmits: 2, received_bytes: 3, sent_bytes: 4, last: 5 };
        let edges = [
            Edge { peer: "/db", port: Some(5432), direction: Direction::Outbound, counts },
            Edge { peer: OTHER, port: None, direction: Direction::Inbound, counts },
        ];
        let facts = PodFacts { started: Some(UNIX_EPOCH + Duration::from_secs(90)) };
        report_pod(
            &mut batch,
            scope,
            &reading,
            &facts,
            &Totals { containers: 2, ..Totals::default() },
            (scope, &edges),
        );
        assert_eq!(told(&batch, &families::POD_CONTAINERS), [one("", 2.0)]);
        assert_eq!(told(&batch, &families::POD_UPTIME), [one("", 10.0)]);
        assert_eq!(told(&batch, &families::POD_CPU_TIME), [one("user", 2.0), one("system", 0.5)]);
        assert_eq!(told(&batch, &families::POD_PRESSURE), [one("memory,some", 1.0)]);
        assert_eq!(told(&batch, &families::POD_SOCKETS), [one("all", 9.0), one("udp", 1.0)]);
        assert_eq!(told(&batch, &families::POD_MEMORY_USAGE), []);
        assert_eq!(told(&batch, &families::NETWORK_IO), [one("receive,eth0", 1.0), one("transmit,eth0", 5.0)]);
        assert_eq!(told(&batch, &families::POD_PACKETS), [one("receive,eth0", 2.0), one("transmit,eth0", 6.0)]);
        for (family, value) in [
            (&compat::NETWORK_RECEIVE_BYTES, 1.0),
            (&compat::NETWORK_RECEIVE_PACKETS, 2.0),
            (&compat::NETWORK_RECEIVE_ERRORS, 3.0),
            (&compat::NETWORK_RECEIVE_DROPPED, 4.0),
            (&compat::NETWORK_TRANSMIT_BYTES, 5.0),
            (&compat::NETWORK_TRANSMIT_PACKETS, 6.0),
            (&compat::NETWORK_TRANSMIT_ERRORS, 7.0),
            (&compat::NETWORK_TRANSMIT_DROPPED, 8.0),
        ] {
            assert_eq!(told(&batch, family), [one("eth0", value)], "{}", family.name);
        }
        let labels = ["/db,5432,outbound", "~other,~other,inbound"];
        for (family, value) in [
            (&families::EDGE_CONNECTIONS, 10.0),
            (&families::EDGE_FAILURES, 1.0),
            (&families::EDGE_RETRANSMITS, 2.0),
            (&families::EDGE_RECEIVED, 3.0),
            (&families::EDGE_SENT, 4.0),
        ] {
            assert_eq!(told(&batch, family), labels.map(|label| one(label, value)), "{}", family.name);
        }
    }

    #[test]
    fn directions_are_those_of_the_programs() {
        assert_eq!(Direction::of(layout::OPENED), Some(Direction::Outbound));
        assert_eq!(Direction::of(layout::ACCEPTED), Some(Direction::Inbound));
        assert_eq!((Direction::of(0), Direction::of(3)), (None, None));
    }
}
