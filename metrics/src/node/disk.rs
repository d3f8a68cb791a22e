//! `/proc/diskstats`: what block devices did.

use super::read::{Label, Points, Reason, shortened};
use crate::catalogue::{host, node};
use crate::model::Family;

/// Size of the sectors that are counted there, whatever the device's own are (iostats.rst of the kernel).
const SECTOR: u64 = 512;

/// A device's line: name and counters. Times are milliseconds.
#[derive(Debug, PartialEq, Eq)]
struct Disk<'a> {
    name: &'a str,
    /// In the kernel's order; 11 before Linux 4.18, 15 before 5.5, 17 since.
    counters: Vec<u64>,
}

/// The lines that can be read.
fn parse(text: &str) -> impl Iterator<Item = Disk<'_>> {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let name = words.nth(2)?;
        let counters: Option<Vec<u64>> = words.map(|word| word.parse().ok()).collect();
        // a partition's line of Linux 2.6.24 and before has four
        let counters = counters.filter(|counters| counters.len() >= 11)?;
        Some(Disk { name, counters })
    })
}

/// Whether node_exporter leaves a device out unless told otherwise: memory disks, loops, floppies and partitions. Its
/// pattern is `^(z?ram|loop|fd|(h|s|v|xv)d[a-z]|nvme\d+n\d+p)\d+$`.
fn left_out(name: &str) -> bool {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    if stem.len() == name.len() {
        return false;
    }
    let disk = |stem: &str| ["h", "s", "v", "xv"].iter().any(|kind| stem.strip_prefix(kind) == Some("d"));
    match stem {
        "ram" | "zram" | "loop" | "fd" => true,
        _ => {
            let mut letters = stem.chars();
            let last = letters.next_back().unwrap_or('-');
            (last.is_ascii_lowercase() && disk(letters.as_str())) || nvme_partition(stem)
        }
    }
}

/// `nvme0n1p`, without the partition's number.
fn nvme_partition(stem: &str) -> bool {
    let Some((controller, space)) =
        stem.strip_prefix("nvme").and_then(|rest| rest.strip_suffix('p')).and_then(|rest| rest.split_once('n'))
    else {
        return false;
    };
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    number(controller) && number(space)
}

/// How a counter becomes a value.
#[derive(Clone, Copy)]
enum As {
    Count,
    Sectors,
    Milliseconds,
}

/// Families by column. `in progress` is the only one that goes down.
static COLUMNS: [(&Family, As); 17] = [
    (&node::DISK_READS_COMPLETED, As::Count),
    (&node::DISK_READS_MERGED, As::Count),
    (&node::DISK_READ_BYTES, As::Sectors),
    (&node::DISK_READ_TIME, As::Milliseconds),
    (&node::DISK_WRITES_COMPLETED, As::Count),
    (&node::DISK_WRITES_MERGED, As::Count),
    (&node::DISK_WRITTEN_BYTES, As::Sectors),
    (&node::DISK_WRITE_TIME, As::Milliseconds),
    (&node::DISK_IO_NOW, As::Count),
    (&node::DISK_IO_TIME, As::Milliseconds),
    (&node::DISK_IO_TIME_WEIGHTED, As::Milliseconds),
    (&node::DISK_DISCARDS_COMPLETED, As::Count),
    (&node::DISK_DISCARDS_MERGED, As::Count),
    (&node::DISK_DISCARDED_SECTORS, As::Count),
    (&node::DISK_DISCARD_TIME, As::Milliseconds),
    (&node::DISK_FLUSH_REQUESTS, As::Count),
    (&node::DISK_FLUSH_REQUESTS_TIME, As::Milliseconds),
];

fn seconds(milliseconds: u64) -> f64 {
    milliseconds as f64 / 1000.0
}

/// Points of the first `most` devices.
pub(super) fn disks(text: &str, most: usize, points: &mut Points<'_>) -> Result<(), Reason> {
    let mut seen = 0;
    for disk in parse(text) {
        seen += 1;
        if left_out(disk.name) || seen > most {
            continue;
        }
        let device: Label = disk.name.to_owned().into();
        for (counter, (family, kind)) in disk.counters.iter().zip(COLUMNS) {
            match kind {
                As::Count => points.at(family, [device.clone()], *counter),
                As::Sectors => points.at(family, [device.clone()], counter.saturating_mul(SECTOR)),
                As::Milliseconds => points.at(family, [device.clone()], seconds(*counter)),
            }
        }
        for (direction, at) in [("read", 0), ("write", 4)] {
            let labels = || [device.clone(), Label::from(direction)];
            let of = |column: usize| disk.counters[at + column];
            points.at(&host::DISK_OPERATIONS, labels(), of(0));
            points.at(&host::DISK_MERGED, labels(), of(1));
            points.at(&host::DISK_IO, labels(), of(2).saturating_mul(SECTOR));
            points.at(&host::DISK_OPERATION_TIME, labels(), seconds(of(3)));
        }
        points.at(&host::DISK_IO_TIME, [device], seconds(disk.counters[9]));
    }
    // a host without block devices has an empty file
    if seen == 0 && !text.trim().is_empty() {
        let first = shortened(text.lines().next().unwrap_or_default());
        return Err(format!("found '{first}' in /proc/diskstats, expected numbers, a name and at least 11 counters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::read::tests::{filled, value};

    const SAMPLE: &str = "   7       0 loop0 88300 377 651558 10440 103574 54016 5768368 29734 0 20960 46771\n\
        \x20254       0 vda 3630749 110517 104175532 5373201 585696 567022 379702577 1568095 2 294704 7014538 514454 104 275257984 68749 64396 4491\n\
        \x20254       1 vda1 1 2 3 4 5 6 7 8 9 10 11\n\
        \x20259       0 nvme0n1 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19\n\
        \x20253       0 dm-0 1 2 3 4 5 6 7 8 9 10 18446744073709551615\n\
        \x208 1 sda1 1 2 3 4\n garbage\n8 0 sdb 1 2 3 4 5 6 x 8 9 10 11\n";

    #[test]
    fn columns_become_base_units_in_old_and_new_forms() {
        let (batch, answer) = filled(|points| disks(SAMPLE, 100, points));
        answer.unwrap();
        assert_eq!(value(&batch, &node::DISK_READ_BYTES, &["vda"]), Some(104_175_532.0 * 512.0));
        assert_eq!(value(&batch, &node::DISK_READ_TIME, &["vda"]), Some(5373.201));
        assert_eq!(value(&batch, &node::DISK_IO_NOW, &["vda"]), Some(2.0));
        assert_eq!(value(&batch, &node::DISK_FLUSH_REQUESTS_TIME, &["vda"]), Some(4.491));
        assert_eq!(value(&batch, &node::DISK_FLUSH_REQUESTS_TIME, &["nvme0n1"]), Some(0.017));
        assert_eq!(value(&batch, &node::DISK_DISCARDS_COMPLETED, &["dm-0"]), None);
        assert_eq!(value(&batch, &host::DISK_IO, &["vda", "write"]), Some(379_702_577.0 * 512.0));
        assert_eq!(value(&batch, &host::DISK_OPERATIONS, &["vda", "read"]), Some(3_630_749.0));
        assert_eq!(value(&batch, &host::DISK_IO_TIME, &["vda"]), Some(294.704));
        for device in ["loop0", "vda1", "sda1", "sdb"] {
            assert_eq!(value(&batch, &node::DISK_IO_NOW, &[device]), None, "{device}");
        }
    }

    #[test]
    fn what_node_exporter_leaves_out_is_left_out() {
        for name in ["ram0", "zram0", "loop12", "fd0", "sda1", "hdb12", "vda3", "xvdc1", "nvme0n1p1", "nvme10n2p13"] {
            assert!(left_out(name), "{name}");
        }
        for name in
            ["sda", "vda", "sdaa", "sdaa1", "nvme0n1", "dm-0", "md127", "mmcblk0", "mmcblk0p1", "sr0", "7", "x", ""]
        {
            assert!(!left_out(name), "{name}");
        }
    }

    #[test]
    fn garbage_gives_a_reason_and_many_devices_are_bounded() {
        assert!(filled(|points| disks("what is this\n", 9, points)).1.unwrap_err().contains("found 'what is this'"));
        assert_eq!(filled(|points| disks("", 9, points)).1, Ok(()));
        let many: Vec<String> = (0..50).map(|n| format!("253 {n} dm-{n} 1 2 3 4 5 6 7 8 9 10 11")).collect();
        let (batch, _) = filled(|points| disks(&many.join("\n"), 7, points));
        assert_eq!(batch.points(&node::DISK_IO_NOW).len(), 7);
    }
}
