//! The whole gathering: on this host, on one that has nothing, and on one that has only garbage.

use std::collections::HashSet;
use std::path::Path;

use super::read::tests::{value, write};
use super::*;
use crate::catalogue::host;
use crate::model::{Kind, Number, Scope, Value};

fn gathered(source: &HostSource) -> (Batch, Vec<Trouble>) {
    let mut batch = Batch::new(SystemTime::now());
    let scope = batch.scope(Scope::default());
    let troubles = source.gather(&mut batch, scope);
    (batch, troubles)
}

fn made_up(root: &Path) -> HostSource {
    HostSource::new(HostSettings {
        proc: root.join("proc"),
        sys: root.join("sys"),
        root: root.to_owned(),
        ..HostSettings::default()
    })
}

#[test]
fn this_host_has_points_each_once_and_all_finite() {
    let source = HostSource::new(HostSettings::default());
    let (batch, _) = gathered(&source);
    for collector in
        ["cpu", "stat", "meminfo", "vmstat", "netdev", "loadavg", "filefd", "uname", "time", "uptime", "sockstat"]
    {
        assert_eq!(value(&batch, &node::SCRAPE_COLLECTOR_SUCCESS, &[collector]), Some(1.0), "{collector}");
    }
    for (family, points) in batch.families() {
        let mut seen = HashSet::new();
        for point in points {
            assert!(seen.insert(&point.labels), "{} {:?} stands twice", family.name, point.labels);
            let Value::Number(number) = &point.value else { panic!("{} is no number", family.name) };
            let Number::Real(real) = number else { continue };
            assert!(real.is_finite() && (family.kind == Kind::Gauge || *real >= 0.0), "{}: {real}", family.name);
        }
    }
    let idle = |batch: &Batch| value(batch, &node::CPU_SECONDS, &["0", "idle"]);
    let (later, again) = gathered(&source);
    assert!(idle(&later) >= idle(&batch));
    assert_eq!(again, [], "troubles are told once");
}

#[test]
fn a_host_without_anything_gives_reasons_once() {
    let root = tempfile::tempdir().unwrap();
    let source = made_up(root.path());
    let (batch, troubles) = gathered(&source);
    let collectors: Vec<&str> = troubles.iter().map(|trouble| trouble.collector).collect();
    for collector in
        ["cpu", "stat", "meminfo", "vmstat", "netdev", "netclass", "diskstats", "filesystem", "hwmon", "os"]
    {
        assert!(collectors.contains(&collector), "{collectors:?}");
        assert_eq!(value(&batch, &node::SCRAPE_COLLECTOR_SUCCESS, &[collector]), Some(0.0), "{collector}");
    }
    for trouble in &troubles {
        assert!(!trouble.to_string().contains('\n'), "{trouble}");
    }
    assert_eq!(value(&batch, &node::SCRAPE_COLLECTOR_SUCCESS, &["time"]), Some(1.0));
    let (_, again) = gathered(&source);
    assert_eq!(again, []);
    assert_eq!(source.troubles().len(), troubles.len());
    // what comes later is no trouble any longer, and what changes is told
    write(root.path(), &[("proc/meminfo", "MemTotal: 8 kB\nMemFree: 4 kB\n"), ("proc/vmstat", "\n")]);
    let (batch, changed) = gathered(&source);
    assert_eq!(value(&batch, &host::MEMORY_USAGE, &["used"]), Some(4096.0));
    assert_eq!(changed.iter().map(|trouble| trouble.collector).collect::<Vec<_>>(), ["vmstat"]);
    assert!(source.troubles().iter().all(|trouble| trouble.collector != "meminfo"));
}

#[test]
fn garbage_is_never_a_panic() {
    let root = tempfile::tempdir().unwrap();
    let files = [
        "proc/stat",
        "proc/meminfo",
        "proc/swaps",
        "proc/vmstat",
        "proc/net/dev",
        "proc/net/netstat",
        "proc/net/snmp",
        "proc/net/snmp6",
        "proc/net/sockstat",
        "proc/net/sockstat6",
        "proc/net/stat/nf_conntrack",
        "proc/diskstats",
        "proc/1/mountinfo",
        "proc/self/mountinfo",
        "proc/loadavg",
        "proc/pressure/cpu",
        "proc/pressure/io",
        "proc/uptime",
        "proc/sys/fs/file-nr",
        "proc/sys/kernel/random/entropy_avail",
        "proc/sys/kernel/random/poolsize",
        "proc/sys/kernel/ostype",
        "proc/sys/kernel/osrelease",
        "proc/sys/kernel/version",
        "proc/sys/kernel/hostname",
        "proc/sys/kernel/domainname",
        "proc/sys/net/netfilter/nf_conntrack_count",
        "etc/os-release",
        "sys/class/hwmon/hwmon0/temp1_input",
        "sys/class/thermal/thermal_zone0/temp",
        "sys/class/net/a/operstate",
    ];
    let odd: [&[u8]; 9] = [
        b"",
        b"\n\n\n",
        b"\0\0\0",
        b"\xff\xfe: \xff",
        b"a: b: c | d\n|\n: 1\n",
        b"cpu0 \ncpu999999999999 1\n",
        b"18446744073709551616 99999999999999999999999 -1\n",
        b"- - - -\n 1 2 3 4 - 5 6",
        b"x\\ y\\0 z\\400 - \\ \\9",
    ];
    for content in odd {
        for file in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        gathered(&made_up(root.path()));
    }
}

#[test]
fn names_of_links_are_told_apart() {
    let names = HostSettings::default().pod_links.unwrap();
    for (name, have) in [
        ("ag0123456789ab", true),
        ("ag-devc3-6d83e3", false),
        ("ag0123456789a", false),
        ("ag0123456789aB", false),
        ("eth0", false),
    ] {
        assert_eq!(names.have(name), have, "{name}");
    }
}

/// Measures: `cargo test --release -p agentd-metrics node::tests::cost -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement; it needs a release build to mean something"]
fn cost() {
    let source = HostSource::new(HostSettings::default());
    gathered(&source);
    // of all threads, that of the mounts included; the first number there is nanoseconds
    let cpu = || -> Duration {
        let threads = std::fs::read_dir("/proc/self/task").unwrap();
        let of = |thread: std::fs::DirEntry| -> u64 {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).unwrap();
            text.split(' ').next().unwrap().parse().unwrap()
        };
        Duration::from_nanos(threads.flatten().map(of).sum())
    };
    let rounds = 200;
    let (before, started) = (cpu(), Instant::now());
    let mut series = 0;
    for _ in 0..rounds {
        series = gathered(&source).0.series();
    }
    let each = cpu().saturating_sub(before) / rounds;
    println!("gathering: {each:?} of CPU, {:?} by the clock, {series} series", started.elapsed() / rounds);
    let (batch, _) = gathered(&source);
    for point in batch.points(&node::SCRAPE_COLLECTOR_DURATION) {
        println!("{:>14} {:?}", point.labels[0], point.value);
    }
    assert!(each < Duration::from_millis(3), "{each:?} of CPU for a gathering");
}

#[test]
fn the_documentation_names_every_family() {
    let text = include_str!("../../../docs/metrics-host.md");
    for family in host::ALL {
        let name = family.otel.unwrap();
        assert!(text.contains(&format!("`{name}`")), "{name} is not in docs/metrics-host.md");
    }
    let known: HashSet<&str> = host::ALL.iter().filter_map(|family| family.otel).collect();
    let rows = text.lines().filter(|line| line.starts_with("| `system.") || line.starts_with("| `agentd.host."));
    for row in rows {
        let names = row.split('|').nth(1).unwrap_or_default();
        for name in names.split(',').map(|name| name.trim().trim_matches('`')) {
            assert!(known.contains(name), "docs/metrics-host.md names {name}, which does not exist");
        }
    }
}
