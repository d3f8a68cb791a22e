//! From counters to rates: what each container used between two looks at it.

use std::collections::{HashMap, VecDeque};

use agentd_api::message::ContainerUsage;
use jiff::Timestamp;

/// Samples that are kept of each container.
pub const KEPT: usize = 60;

/// Which container: pod, instance, name.
type Key = (String, String, String);

/// A container and what it uses. Rates are per second, and absent until there are two looks at one attempt.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Row {
    /// What was read last.
    pub now: ContainerUsage,
    /// CPUs.
    pub cpu: Option<f64>,
    /// Bytes read from block devices.
    pub read: Option<f64>,
    /// Bytes written to block devices.
    pub written: Option<f64>,
    /// Bytes that the pod received.
    pub received: Option<f64>,
    /// Bytes that the pod sent.
    pub sent: Option<f64>,
    /// CPUs of the last looks, oldest first.
    pub cpu_history: VecDeque<f64>,
    /// Bytes of memory of the last looks, oldest first.
    pub memory_history: VecDeque<f64>,
}

impl Row {
    /// CPU as a share of its limit.
    pub fn cpu_share(&self) -> Option<f64> {
        let limit = self.now.cpu_limit_milli.filter(|limit| *limit > 0)? as f64 / 1000.0;
        Some(self.cpu? / limit)
    }

    /// Memory as a share of its limit.
    pub fn memory_share(&self) -> Option<f64> {
        let limit = self.now.memory_limit_bytes.filter(|limit| *limit > 0)?;
        Some(self.now.memory_bytes as f64 / limit as f64)
    }

    /// Bytes read and written.
    pub fn io(&self) -> Option<f64> {
        sum(self.read, self.written)
    }

    /// Bytes received and sent.
    pub fn network(&self) -> Option<f64> {
        sum(self.received, self.sent)
    }
}

fn sum(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    one.map_or(other, |one| Some(one + other.unwrap_or_default()))
}

/// What was seen last of each container.
#[derive(Debug, Default)]
pub struct Rates {
    last: HashMap<Key, Row>,
}

impl Rates {
    /// Takes what was read now, and gives it with its rates. Containers that are not in it are forgotten.
    pub fn take(&mut self, usages: Vec<ContainerUsage>) -> Vec<Row> {
        let mut rows = HashMap::with_capacity(usages.len());
        for now in usages {
            let key = (now.pod.clone(), now.instance.clone(), now.container.clone());
            let before = self.last.remove(&key);
            rows.insert(key, next(before, now));
        }
        self.last = rows;
        self.last.values().cloned().collect()
    }
}

/// A container after one more look at it.
fn next(before: Option<Row>, now: ContainerUsage) -> Row {
    // another start is another program: its counters begin anew, and so does its history
    let before = before.filter(|before| before.now.attempt == now.attempt);
    let Some(before) = before else {
        return Row { memory_history: [now.memory_bytes as f64].into(), now, ..Row::default() };
    };
    let seconds = seconds(&before.now.time, &now.time);
    let rate = |old: u64, new: u64| {
        let grown = new.checked_sub(old)?;
        seconds.map(|seconds| grown as f64 / seconds)
    };
    let optional = |old: Option<u64>, new: Option<u64>| rate(old?, new?);
    let cpu = rate(before.now.cpu_ns, now.cpu_ns).map(|nanoseconds| nanoseconds / 1e9);
    let mut row = Row {
        cpu,
        read: optional(before.now.io_read_bytes, now.io_read_bytes),
        written: optional(before.now.io_write_bytes, now.io_write_bytes),
        received: optional(before.now.network_receive_bytes, now.network_receive_bytes),
        sent: optional(before.now.network_transmit_bytes, now.network_transmit_bytes),
        cpu_history: before.cpu_history,
        memory_history: before.memory_history,
        now,
    };
    if let Some(cpu) = cpu {
        keep(&mut row.cpu_history, cpu);
    }
    keep(&mut row.memory_history, row.now.memory_bytes as f64);
    row
}

fn keep(history: &mut VecDeque<f64>, sample: f64) {
    if history.len() == KEPT {
        history.pop_front();
    }
    history.push_back(sample);
}

/// Seconds between two times; none where they do not follow each other.
fn seconds(before: &str, now: &str) -> Option<f64> {
    let (before, now): (Timestamp, Timestamp) = (before.parse().ok()?, now.parse().ok()?);
    let seconds = now.duration_since(before).as_secs_f64();
    (seconds > 0.0).then_some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(second: u32, attempt: u32, cpu_ns: u64) -> ContainerUsage {
        ContainerUsage {
            pod: "/app".into(),
            instance: "000000000000".into(),
            container: "web".into(),
            attempt,
            time: format!("2026-01-31T12:00:{second:02}Z"),
            cpu_ns,
            cpu_limit_milli: Some(500),
            memory_bytes: 50,
            memory_limit_bytes: Some(200),
            pids: 3,
            io_read_bytes: Some(cpu_ns / 1000),
            io_write_bytes: None,
            ..ContainerUsage::default()
        }
    }

    #[test]
    fn rates_are_differences_over_the_time_between() {
        let mut rates = Rates::default();
        let first = rates.take(vec![usage(0, 1, 1_000_000_000)]).remove(0);
        assert_eq!((first.cpu, first.read, first.memory_share()), (None, None, Some(0.25)));
        let second = rates.take(vec![usage(4, 1, 2_000_000_000)]).remove(0);
        assert_eq!((second.cpu, second.cpu_share()), (Some(0.25), Some(0.5)));
        assert_eq!((second.read, second.written, second.io()), (Some(250_000.0), None, Some(250_000.0)));
        assert_eq!((second.received, second.network()), (None, None));
        assert_eq!((second.cpu_history.len(), second.memory_history.len()), (1, 2));
    }

    #[test]
    fn another_attempt_and_a_counter_that_falls_give_no_rate() {
        let mut rates = Rates::default();
        rates.take(vec![usage(0, 1, 500)]);
        rates.take(vec![usage(1, 1, 900)]);
        let restarted = rates.take(vec![usage(2, 2, 100_000)]).remove(0);
        assert_eq!((restarted.cpu, restarted.cpu_history.len(), restarted.memory_history.len()), (None, 0, 1));
        let fallen = rates.take(vec![usage(3, 2, 99_999)]).remove(0);
        assert_eq!(fallen.cpu, None);
        let same_time = rates.take(vec![usage(3, 2, 199_999)]).remove(0);
        assert_eq!(same_time.cpu, None);
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_gone_is_forgotten() {
        let mut rates = Rates::default();
        for second in 0..KEPT as u32 + 5 {
            let time = format!("2026-01-31T12:{:02}:{:02}Z", second / 60, second % 60);
            rates.take(vec![ContainerUsage { time, ..usage(0, 1, u64::from(second)) }]);
        }
        let row = &rates.last.values().next().unwrap();
        assert_eq!((row.cpu_history.len(), row.memory_history.len()), (KEPT, KEPT));
        assert!(rates.take(Vec::new()).is_empty() && rates.last.is_empty());
    }
}
