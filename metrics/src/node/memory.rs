//! `/proc/meminfo`, `/proc/swaps` and `/proc/vmstat`.

use super::read::{Points, Reason, shortened};
use crate::catalogue::{host, node};

/// A line of `/proc/meminfo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Field<'a> {
    /// As the kernel spells it, e.g. `Active(anon)`.
    name: &'a str,
    /// Bytes where the kernel says `kB`, else a count.
    value: u64,
    bytes: bool,
}

/// The lines that can be read.
fn fields(text: &str) -> impl Iterator<Item = Field<'_>> {
    text.lines().filter_map(|line| {
        let (name, rest) = line.split_once(':')?;
        let mut words = rest.split_ascii_whitespace();
        let value: u64 = words.next()?.parse().ok()?;
        let bytes = words.next() == Some("kB");
        Some(Field { name, value: if bytes { value.saturating_mul(1024) } else { value }, bytes })
    })
}

/// Points of `/proc/meminfo`.
pub(super) fn meminfo(text: &str, points: &mut Points<'_>) -> Result<(), Reason> {
    let mut name = String::new();
    for field in fields(text) {
        // Active(anon) is Active_anon there
        name.clear();
        name.push_str("node_memory_");
        name.extend(field.name.chars().filter(|c| *c != ')').map(|c| if c == '(' { '_' } else { c }));
        if field.bytes {
            name.push_str("_bytes");
        }
        if let Some(family) = node::find(&name) {
            points.set(family, field.value);
        }
    }
    let get = |name: &str| fields(text).find(|field| field.name == name).map(|field| field.value);
    let (Some(total), Some(free)) = (get("MemTotal"), get("MemFree")) else {
        let first = shortened(text.lines().next().unwrap_or_default());
        return Err(format!("found '{first}' in /proc/meminfo, expected lines with MemTotal and MemFree"));
    };
    let or_none = |name: &str| get(name).unwrap_or(0);
    let reclaimable = or_none("SReclaimable");
    let cached = or_none("Cached").saturating_add(reclaimable);
    let buffers = or_none("Buffers");
    let used = total.saturating_sub(free).saturating_sub(buffers).saturating_sub(cached);
    for (state, value) in [("used", used), ("free", free), ("cached", cached), ("buffers", buffers)] {
        points.at(&host::MEMORY_USAGE, [state.into()], value);
    }
    points.set(&host::MEMORY_LIMIT, total);
    points.set(&node::MACHINE_MEMORY_BYTES, total);
    if let Some(available) = get("MemAvailable") {
        points.set(&host::MEMORY_AVAILABLE, available);
    }
    if let Some(shared) = get("Shmem") {
        points.set(&host::MEMORY_SHARED, shared);
    }
    if let Some(unreclaimable) = get("SUnreclaim") {
        points.at(&host::MEMORY_SLAB, ["reclaimable".into()], reclaimable);
        points.at(&host::MEMORY_SLAB, ["unreclaimable".into()], unreclaimable);
    }
    if let (Some(pages), Some(unused)) = (get("HugePages_Total"), get("HugePages_Free")) {
        points.set(&host::HUGE_PAGES_LIMIT, pages);
        points.at(&host::HUGE_PAGES_USAGE, ["used".into()], pages.saturating_sub(unused));
        points.at(&host::HUGE_PAGES_USAGE, ["free".into()], unused);
    }
    Ok(())
}

/// Points of `/proc/swaps`: name, kind, size and use in KiB, priority. A host without swap has only the heading.
pub(super) fn swaps(text: &str, points: &mut Points<'_>) {
    for line in text.lines().skip(1) {
        // a name has its spaces escaped
        let mut words = line.split_ascii_whitespace();
        let (Some(device), Some(size), Some(used)) = (words.next(), words.nth(1), words.next()) else { continue };
        let (Ok(size), Ok(used)) = (size.parse::<u64>(), used.parse::<u64>()) else { continue };
        let free = size.saturating_sub(used).saturating_mul(1024);
        let device = super::mounts::unescape(device);
        points.at(&host::PAGING_USAGE, [device.clone().into(), "used".into()], used.saturating_mul(1024));
        points.at(&host::PAGING_USAGE, [device.into(), "free".into()], free);
    }
}

/// Points of `/proc/vmstat`.
pub(super) fn vmstat(text: &str, points: &mut Points<'_>) -> Result<(), Reason> {
    let mut name = String::new();
    let (mut faults, mut major) = (None, None);
    for line in text.lines() {
        let Some((field, value)) = line.split_once(' ') else { continue };
        // of more than a hundred fields these alone are of use here
        if !field.starts_with("pg") && !field.starts_with("psw") && field != "oom_kill" {
            continue;
        }
        let Ok(value) = value.trim().parse::<u64>() else { continue };
        name.clear();
        name.push_str("node_vmstat_");
        name.push_str(field);
        if let Some(family) = node::find(&name) {
            points.set(family, value);
        }
        match field {
            "pgfault" => faults = Some(value),
            "pgmajfault" => major = Some(value),
            "oom_kill" => points.set(&host::OOM_KILLS, value),
            // one operation for each page; `pgpgin` and `pgpgout` count KiB, not operations
            "pswpin" => points.at(&host::PAGING_OPERATIONS, ["major".into(), "in".into()], value),
            "pswpout" => points.at(&host::PAGING_OPERATIONS, ["major".into(), "out".into()], value),
            _ => {}
        }
    }
    let (Some(faults), Some(major)) = (faults, major) else {
        let first = shortened(text.lines().next().unwrap_or_default());
        return Err(format!("found '{first}' in /proc/vmstat, expected lines with pgfault and pgmajfault"));
    };
    points.at(&host::PAGING_FAULTS, ["major".into()], major);
    points.at(&host::PAGING_FAULTS, ["minor".into()], faults.saturating_sub(major));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::read::tests::{filled, value};

    const MEMINFO: &str = "MemTotal:       24684092 kB\nMemFree:        20918356 kB\nMemAvailable:   24003652 kB\n\
        Buffers:          122296 kB\nCached:          2525792 kB\nActive(anon):       3612 kB\nShmem:             10900 kB\n\
        SReclaimable:     829200 kB\nSUnreclaim:       127300 kB\nHugePages_Total:       8\nHugePages_Free:        3\n\
        Hugepagesize:       2048 kB\nVmallocTotal:   34359738367 kB\nDirectMap1G:    25165824 kB\n\
        Novelty:              12 kB\nExtra: 1 kB of something\n";

    #[test]
    fn memory_has_the_names_of_node_exporter_and_states_that_add_up() {
        let (batch, answer) = filled(|points| meminfo(MEMINFO, points));
        answer.unwrap();
        assert_eq!(value(&batch, &node::MEMORY_ACTIVE_ANON, &[]), Some(3612.0 * 1024.0));
        assert_eq!(value(&batch, &node::MEMORY_HUGE_PAGES_TOTAL, &[]), Some(8.0));
        assert_eq!(value(&batch, &node::MEMORY_DIRECT_MAP_1G, &[]), Some(25_165_824.0 * 1024.0));
        let sum: f64 = ["used", "free", "cached", "buffers"]
            .iter()
            .map(|state| value(&batch, &host::MEMORY_USAGE, &[state]).unwrap())
            .sum();
        assert_eq!(Some(sum), value(&batch, &host::MEMORY_LIMIT, &[]));
        assert_eq!(value(&batch, &node::MACHINE_MEMORY_BYTES, &[]), Some(24_684_092.0 * 1024.0));
        assert_eq!(value(&batch, &host::HUGE_PAGES_USAGE, &["used"]), Some(5.0));
        assert_eq!(batch.families().filter(|(family, _)| family.name.contains("Novelty")).count(), 0);
    }

    #[test]
    fn odd_memory_is_no_panic() {
        let huge = "MemTotal: 18446744073709551615 kB\nMemFree: 18446744073709551615 kB\nCached: 18446744073709551615 kB\n\
            SReclaimable: 18446744073709551615 kB\n";
        let (batch, answer) = filled(|points| meminfo(huge, points));
        answer.unwrap();
        assert_eq!(value(&batch, &host::MEMORY_USAGE, &["used"]), Some(0.0));
        for garbage in ["", ":", "MemTotal 5", "MemTotal: kB\nMemFree: -1 kB", "(((:1 kB", "\u{fffd}: 1"] {
            let (_, answer) = filled(|points| meminfo(garbage, points));
            assert!(answer.unwrap_err().contains("expected lines with MemTotal"), "{garbage}");
        }
    }

    #[test]
    fn swap_is_told_by_device() {
        let text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/dm-1 partition\t2048\t\t512\t\t-2\n\
            /swap\\040file file 100 200 -3\nshort\n/x file much 0 1\n";
        let (batch, ()) = filled(|points| swaps(text, points));
        assert_eq!(value(&batch, &host::PAGING_USAGE, &["/dev/dm-1", "used"]), Some(512.0 * 1024.0));
        assert_eq!(value(&batch, &host::PAGING_USAGE, &["/dev/dm-1", "free"]), Some(1536.0 * 1024.0));
        assert_eq!(value(&batch, &host::PAGING_USAGE, &["/swap file", "free"]), Some(0.0));
        assert_eq!(batch.series(), 4);
        let (batch, ()) = filled(|points| swaps("", points));
        assert_eq!(batch.series(), 0);
    }

    #[test]
    fn faults_and_paging_are_taken_from_vmstat() {
        let text =
            "nr_free_pages 5\npgpgin 10\npswpin 3\npswpout 4\npgfault 100\npgmajfault 30\noom_kill 2\npgnew x\npg\n";
        let (batch, answer) = filled(|points| vmstat(text, points));
        answer.unwrap();
        assert_eq!(value(&batch, &node::VMSTAT_PGFAULT, &[]), Some(100.0));
        assert_eq!(value(&batch, &host::PAGING_FAULTS, &["minor"]), Some(70.0));
        assert_eq!(value(&batch, &host::PAGING_OPERATIONS, &["major", "out"]), Some(4.0));
        assert_eq!(value(&batch, &host::OOM_KILLS, &[]), Some(2.0));
        assert_eq!(value(&batch, &node::VMSTAT_OOM_KILL, &[]), Some(2.0));
        let (_, answer) = filled(|points| vmstat("pgfault\npgmajfault 1\n", points));
        assert!(answer.unwrap_err().contains("found 'pgfault'"));
    }
}
