//! `/proc/stat`: time of CPUs, interrupts, context switches, processes.

use std::collections::BTreeMap;

use super::read::{Label, Points, Reason, shortened};
use crate::catalogue::{host, node};

/// Columns of a CPU's line, in clock ticks: see [`MODES`], then the two of guests.
type Columns = [u64; 10];

/// Modes by their column, as node_exporter names them.
const MODES: [&str; 8] = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"];
const IDLE: usize = 3;
const IRQ: usize = 5;
const SOFTIRQ: usize = 6;

/// What `/proc/stat` tells. What is missing there is missing here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Stat {
    /// Online CPUs by number.
    pub(super) cpus: BTreeMap<u32, Columns>,
    context_switches: Option<u64>,
    interrupts: Option<u64>,
    forks: Option<u64>,
    boot_time: Option<u64>,
    running: Option<u64>,
    blocked: Option<u64>,
}

/// Reads what can be read; lines that cannot are left out.
pub(super) fn parse(text: &str) -> Stat {
    let mut stat = Stat::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(key) = words.next() else { continue };
        let mut first = || words.next().and_then(|word| word.parse().ok());
        match key {
            "ctxt" => stat.context_switches = first(),
            "intr" => stat.interrupts = first(),
            "processes" => stat.forks = first(),
            "btime" => stat.boot_time = first(),
            "procs_running" => stat.running = first(),
            "procs_blocked" => stat.blocked = first(),
            _ => {
                let Some(cpu) = key.strip_prefix("cpu").and_then(|number| number.parse().ok()) else { continue };
                let mut columns = Columns::default();
                // kernels before 2.6.33 have fewer columns, later ones may have more
                for (column, word) in columns.iter_mut().zip(words) {
                    *column = word.parse().unwrap_or(0);
                }
                stat.cpus.insert(cpu, columns);
            }
        }
    }
    stat
}

/// Keeps counters from going back.
///
/// The kernel's `iowait` and `idle` of a CPU may step back a little (proc(5)); for Prometheus that would be a counter
/// that began anew, and a rate as high as all that was counted since the host's start. Where a CPU's idle time goes back by more
/// than three seconds, it was taken off and came back: all of its counters begin anew.
pub(super) fn steady(last: &mut BTreeMap<u32, Columns>, now: &mut BTreeMap<u32, Columns>, ticks: u64) {
    for (cpu, columns) in now.iter_mut() {
        let Some(before) = last.get(cpu) else { continue };
        if before[IDLE].saturating_sub(columns[IDLE]) > 3 * ticks {
            continue;
        }
        for (column, before) in columns.iter_mut().zip(before) {
            *column = (*column).max(*before);
        }
    }
    last.clone_from(now);
}

/// Points of the CPUs. `ticks` is how many make a second.
pub(super) fn cpus(stat: &Stat, ticks: u64, points: &mut Points<'_>) -> Result<(), Reason> {
    if stat.cpus.is_empty() {
        return Err("found no line 'cpu0 …' in /proc/stat, expected one for each CPU".to_owned());
    }
    let seconds = |count: u64| count as f64 / ticks as f64;
    for (cpu, columns) in &stat.cpus {
        let cpu: Label = cpu.to_string().into();
        for (mode, column) in MODES.into_iter().zip(columns) {
            points.at(&node::CPU_SECONDS, [cpu.clone(), mode.into()], seconds(*column));
        }
        for (mode, column) in ["user", "nice"].into_iter().zip(&columns[MODES.len()..]) {
            points.at(&node::CPU_GUEST_SECONDS, [cpu.clone(), mode.into()], seconds(*column));
        }
        for (place, mode) in MODES.into_iter().enumerate().filter(|(place, _)| !matches!(*place, IRQ | SOFTIRQ)) {
            points.at(&host::CPU_TIME, [mode.into(), cpu.clone()], seconds(columns[place]));
        }
        let interrupt = columns[IRQ].saturating_add(columns[SOFTIRQ]);
        points.at(&host::CPU_TIME, ["interrupt".into(), cpu], seconds(interrupt));
    }
    points.set(&node::MACHINE_CPU_CORES, stat.cpus.len() as u64);
    Ok(())
}

/// Points of everything else in `/proc/stat`.
pub(super) fn rest(stat: &Stat, text: &str, points: &mut Points<'_>) -> Result<(), Reason> {
    let found = [
        (&node::CONTEXT_SWITCHES, stat.context_switches),
        (&node::INTR, stat.interrupts),
        (&node::FORKS, stat.forks),
        (&node::BOOT_TIME, stat.boot_time),
        (&node::PROCS_RUNNING, stat.running),
        (&node::PROCS_BLOCKED, stat.blocked),
        (&host::PROCESS_CREATED, stat.forks),
    ];
    if found.iter().all(|(_, value)| value.is_none()) {
        let first = shortened(text.lines().next().unwrap_or_default());
        return Err(format!("found '{first}' in /proc/stat, expected lines such as 'ctxt 1234'"));
    }
    for (family, value) in found {
        if let Some(value) = value {
            points.set(family, value);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::read::tests::{filled, value};

    const SAMPLE: &str = "cpu  1778548 96409 473296 2263234 12290 0 3227 1053 200 50\n\
        cpu0 847419 48432 229124 1183642 3693 7 777 531 100 50 99 98\n\
        cpu11 931129 47977 244171\n\
        intr 29272331 0 0 1\nctxt 80677493\nbtime 1795157617\nprocesses 1491650\nprocs_running 2\nprocs_blocked 0\n\
        softirq 22014328 0 1786479\n";

    #[test]
    fn times_are_seconds_and_short_or_long_lines_are_read() {
        let (batch, answer) = filled(|points| cpus(&parse(SAMPLE), 100, points));
        answer.unwrap();
        assert_eq!(value(&batch, &node::CPU_SECONDS, &["0", "user"]), Some(8474.19));
        assert_eq!(value(&batch, &node::CPU_SECONDS, &["0", "steal"]), Some(5.31));
        assert_eq!(value(&batch, &node::CPU_SECONDS, &["11", "idle"]), Some(0.0));
        assert_eq!(value(&batch, &node::CPU_GUEST_SECONDS, &["0", "user"]), Some(1.0));
        assert_eq!(value(&batch, &node::CPU_GUEST_SECONDS, &["0", "nice"]), Some(0.5));
        assert_eq!(value(&batch, &host::CPU_TIME, &["interrupt", "0"]), Some(7.84));
        assert_eq!(value(&batch, &host::CPU_TIME, &["irq", "0"]), None);
        assert_eq!(value(&batch, &node::MACHINE_CPU_CORES, &[]), Some(2.0));
        let (batch, answer) = filled(|points| rest(&parse(SAMPLE), SAMPLE, points));
        answer.unwrap();
        assert_eq!(value(&batch, &node::BOOT_TIME, &[]), Some(1_795_157_617.0));
        assert_eq!(value(&batch, &node::INTR, &[]), Some(29_272_331.0));
    }

    #[test]
    fn garbage_gives_a_reason() {
        for garbage in ["", "\n\n", "cpu\ncpux 1 2\ncpu-1 3", "ctxt many\nintr\n", "\u{fffd}\u{fffd}"] {
            let (batch, answer) = filled(|points| {
                (cpus(&parse(garbage), 100, points).is_err(), rest(&parse(garbage), garbage, points).is_err())
            });
            assert_eq!((answer, batch.series()), ((true, true), 0), "{garbage}");
        }
        let odd = parse("cpu0 99999999999999999999 -1 5\n");
        assert_eq!(odd.cpus[&0], [0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
        filled(|points| cpus(&parse("cpu0 18446744073709551615 0 0 0 0 18446744073709551615 1"), 100, points).unwrap());
    }

    #[test]
    fn counters_never_step_back_but_for_a_cpu_that_came_back() {
        let mut last = BTreeMap::new();
        let columns = |idle, iowait| [10, 0, 5, idle, iowait, 0, 0, 0, 0, 0];
        let mut now = BTreeMap::from([(0, columns(1000, 50)), (1, columns(5000, 60))]);
        steady(&mut last, &mut now, 100);
        // 0: both step back a little; 1: was offline and begins anew
        let mut now = BTreeMap::from([(0, columns(999, 40)), (1, columns(3, 0))]);
        steady(&mut last, &mut now, 100);
        assert_eq!((now[&0], now[&1]), (columns(1000, 50), columns(3, 0)));
        // 1 went offline: what is remembered of it is forgotten
        let mut now = BTreeMap::from([(0, columns(1001, 50))]);
        steady(&mut last, &mut now, 100);
        assert_eq!(last, now);
    }
}
