//! The host's metrics beside those of Debian's prometheus-node-exporter, read at the same time on the same host.
//!
//! Names and label sets of the collectors that both have are the same but for the differences of docs/metrics-host.md, which
//! are the lists here: a difference that goes away fails the test, too. Each counter of node_exporter lies between two readings of
//! ours, one before and one after; what hardly changes is equal.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use agentd_metrics::encode::Format;
use agentd_metrics::model::{Batch, Scope};
use agentd_metrics::node::{HostSettings, HostSource};
use agentd_tests::skip;

const PROGRAM: &str = "prometheus-node-exporter";

/// The collectors that both have. hwmon and thermal_zone depend on the machine, and node_exporter names each file.
const COLLECTORS: &[&str] = &[
    "conntrack",
    "cpu",
    "diskstats",
    "entropy",
    "filefd",
    "filesystem",
    "loadavg",
    "meminfo",
    "netclass",
    "netdev",
    "netstat",
    "os",
    "pressure",
    "sockstat",
    "stat",
    "time",
    "uname",
    "vmstat",
];

/// Names that node_exporter has and we have not.
const THEIRS: &[&str] = &[
    "node_disk_info",
    "node_network_address_assign_type",
    "node_network_device_id",
    "node_network_iface_link_mode",
    "node_network_name_assign_type",
    "node_network_net_dev_group",
    "node_time_clocksource_available_info",
    "node_time_clocksource_current_info",
    "node_time_zone_offset_seconds",
];

/// Names of ours, of those that begin with `node_`, that node_exporter 1.5 may not have: it gained some of them later, and
/// others need a kernel or a machine that shows them.
const OURS: &[&str] = &[
    "node_hwmon_",
    "node_memory_GPU",
    "node_memory_Unaccepted",
    "node_netstat_TcpExt_TCPOFOQueue",
    "node_netstat_TcpExt_TCPRcvQDrop",
    "node_pressure_irq_stalled_seconds_total",
    "node_thermal_zone_temp",
];

/// Labels of ours that node_exporter 1.5 has not.
const OUR_LABELS: &[(&str, &str)] = &[("node_network_info", "adminstate")];

/// Gauges that are the same whenever they are read; those whose value depends on the moment are compared by name alone.
const STEADY: &[&str] = &[
    "node_boot_time_seconds",
    "node_entropy_pool_size_bits",
    "node_filefd_maximum",
    "node_filesystem_device_error",
    "node_filesystem_files",
    "node_filesystem_readonly",
    "node_filesystem_size_bytes",
    "node_memory_CommitLimit_bytes",
    "node_memory_HugePages_Total",
    "node_memory_Hugepagesize_bytes",
    "node_memory_MemTotal_bytes",
    "node_memory_SwapTotal_bytes",
    "node_memory_VmallocTotal_bytes",
    "node_network_flags",
    "node_network_iface_id",
    "node_network_iface_link",
    "node_network_info",
    "node_network_mtu_bytes",
    "node_network_protocol_type",
    "node_network_speed_bytes",
    "node_network_transmit_queue_length",
    "node_network_up",
    "node_nf_conntrack_entries_limit",
    "node_os_info",
    "node_os_version",
    "node_uname_info",
];

type Labels = BTreeMap<String, String>;
type Series = BTreeMap<(String, Labels), f64>;

/// Reads Prometheus's text format: series and types by name.
fn read(text: &str) -> (Series, BTreeMap<String, String>) {
    let (mut series, mut types) = (Series::new(), BTreeMap::new());
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(comment) = line.strip_prefix('#') {
            let words: Vec<&str> = comment.split_whitespace().collect();
            if let ["TYPE", name, kind] = words[..] {
                types.insert(name.to_owned(), kind.to_owned());
            }
            continue;
        }
        let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap_or_else(|| panic!("not a sample: {line}")));
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => read_labels(rest),
            None => (Labels::new(), rest),
        };
        let value = value.split_whitespace().next().and_then(|value| value.parse().ok());
        let value = value.unwrap_or_else(|| panic!("no value: {line}"));
        let before = series.insert((name.to_owned(), labels), value);
        assert_eq!(before, None, "stands twice: {line}");
    }
    (series, types)
}

/// Labels up to the closing brace, and what comes after.
fn read_labels(mut text: &str) -> (Labels, &str) {
    let mut labels = Labels::new();
    loop {
        text = text.trim_start_matches(',');
        if let Some(rest) = text.strip_prefix('}') {
            return (labels, rest);
        }
        let (name, rest) = text.split_once("=\"").unwrap_or_else(|| panic!("not a label: {text}"));
        let mut value = String::new();
        let mut letters = rest.char_indices();
        let end = loop {
            match letters.next() {
                Some((at, '"')) => break at,
                Some((_, '\\')) => match letters.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, letter)) => value.push(letter),
                    None => panic!("a label does not end: {text}"),
                },
                Some((_, letter)) => value.push(letter),
                None => panic!("a label does not end: {text}"),
            }
        };
        // for Prometheus a label without a value is none; node_exporter writes such, our encoder does not
        if !value.is_empty() {
            labels.insert(name.to_owned(), value);
        }
        text = &rest[end + 1..];
    }
}

/// A node_exporter of our own on a port of loopback.
struct Exporter {
    child: Child,
    address: String,
}

impl Exporter {
    fn start() -> Result<Self, String> {
        // what upstream leaves out by default today, which Debian and 1.5 do differently; and the pods' links
        let mounts = "^/(dev|proc|run/credentials/.+|sys|var/lib/docker/.+|var/lib/containers/storage/.+)($|/)";
        let disks = r"^(z?ram|loop|fd|(h|s|v|xv)d[a-z]|nvme\d+n\d+p)\d+$";
        let kinds = "^(autofs|binfmt_misc|bpf|cgroup2?|configfs|debugfs|devpts|devtmpfs|fusectl|hugetlbfs|iso9660|mqueue|nsfs|\
                     overlay|proc|procfs|pstore|rpc_pipefs|securityfs|selinuxfs|squashfs|erofs|sysfs|tracefs)$";
        let pods = "^ag[0-9a-f]{12}$";
        let mut command = Command::new(PROGRAM);
        command
            .args([
                "--web.listen-address=127.0.0.1:0",
                "--web.disable-exporter-metrics",
                "--collector.disable-defaults",
            ])
            .args(COLLECTORS.iter().map(|collector| format!("--collector.{collector}")))
            .arg(format!("--collector.filesystem.mount-points-exclude={mounts}"))
            .arg(format!("--collector.filesystem.fs-types-exclude={kinds}"))
            .arg(format!("--collector.diskstats.device-exclude={disks}"))
            .arg(format!("--collector.netdev.device-exclude={pods}"))
            .arg(format!("--collector.netclass.ignored-devices={pods}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("{PROGRAM} cannot be started: {e}"))?;
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut told = Vec::new();
        let address = loop {
            let Some(Ok(line)) = lines.next() else {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{PROGRAM} does not listen: {}", told.join(" / ")));
            };
            let address = line.split_once("address=").and_then(|(_, rest)| rest.split_whitespace().next());
            if let (true, Some(address)) = (line.contains("Listening on"), address) {
                break address.to_owned();
            }
            told.push(line);
        };
        // what else it tells is read until its end, so that it never waits for us
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self { child, address })
    }

    fn scrape(&self) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {answer}"));
        assert!(head.starts_with("HTTP/1.0 200"), "{head}");
        body.to_owned()
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ours(source: &HostSource) -> String {
    let mut batch = Batch::new(SystemTime::now());
    let scope = batch.scope(Scope::default());
    source.gather(&mut batch, scope);
    Format::Prometheus.write(&batch, |family| family.otel.is_none())
}

/// Series that are compared: the same labels on both sides.
fn compared(series: &Series) -> Series {
    let mut series = series.clone();
    series.retain(|(name, _), value| {
        name.starts_with("node_")
            && !name.starts_with("node_scrape_")
            && name != "node_exporter_build_info"
            // without `--collector.netclass.ignore-invalid-speed` node_exporter gives −125000 where the speed is not known
            && !(name == "node_network_speed_bytes" && *value < 0.0)
    });
    let mut series: Series = series;
    for (name, label) in OUR_LABELS {
        series = series
            .into_iter()
            .map(|((known, mut labels), value)| {
                if known == *name {
                    labels.remove(*label);
                }
                ((known, labels), value)
            })
            .collect();
    }
    series
}

/// All that differs, one line each.
fn differences(before: &str, theirs: &str, after: &str) -> Vec<String> {
    let ((before, our_types), (theirs, their_types), (after, _)) = (read(before), read(theirs), read(after));
    let (before, theirs, after) = (compared(&before), compared(&theirs), compared(&after));
    let mut found = Vec::new();
    let keys: BTreeSet<_> = theirs.keys().chain(after.keys()).collect();
    for (name, labels) in keys {
        let key = (name.clone(), labels.clone());
        match (theirs.contains_key(&key), after.contains_key(&key)) {
            (true, false) if !THEIRS.contains(&name.as_str()) => found.push(format!("only theirs: {name} {labels:?}")),
            (false, true) if !OURS.iter().any(|known| name.starts_with(known)) => {
                found.push(format!("only ours: {name} {labels:?}"));
            }
            (true, true) if THEIRS.contains(&name.as_str()) => found.push(format!("no longer only theirs: {name}")),
            _ => {}
        }
    }
    for ((name, labels), value) in &theirs {
        let key = (name.clone(), labels.clone());
        let (Some(first), Some(last)) = (before.get(&key), after.get(&key)) else { continue };
        let (our_type, their_type) = (our_types.get(name), their_types.get(name));
        // old names without `_total`: untyped there; connection tracking's are gauges there that only grow
        let untyped = our_type.is_some_and(|kind| kind == "untyped");
        if our_type != their_type && !(untyped && name.starts_with("node_nf_conntrack_stat_")) && !untyped_gauge(name) {
            found.push(format!("type of {name}: {our_type:?} here, {their_type:?} there"));
        }
        let grows = untyped || our_type.is_some_and(|kind| kind == "counter") || name == "node_time_seconds";
        // both round to some sixteen digits
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(b.abs());
        let within = (*first <= *value || close(*first, *value)) && (*value <= *last || close(*value, *last));
        if grows && !within {
            found.push(format!("{name} {labels:?}: {value} there, between {first} and {last} here"));
        }
        if STEADY.contains(&name.as_str()) && !(close(*value, *first) || close(*value, *last)) {
            found.push(format!("{name} {labels:?}: {value} there, {last} here"));
        }
    }
    for name in STEADY {
        let there = |series: &Series| series.keys().any(|(known, _)| known == name);
        if there(&theirs) && !there(&after) {
            found.push(format!("{name} is missing here"));
        }
    }
    found
}

/// Gauges that node_exporter leaves untyped with the counters of the same files.
fn untyped_gauge(name: &str) -> bool {
    matches!(name, "node_netstat_Ip_Forwarding" | "node_netstat_Tcp_CurrEstab")
}

#[test]
fn the_host_is_told_as_node_exporter_tells_it() {
    if Command::new(PROGRAM).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        skip!("{PROGRAM} is not installed (Debian package prometheus-node-exporter)");
    }
    let exporter = Exporter::start().unwrap();
    let source = HostSource::new(HostSettings { most: 10_000, ..HostSettings::default() });
    // other tests make and remove links and mounts meanwhile: a reading in which nothing changed is looked for
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        let before = ours(&source);
        let theirs = exporter.scrape();
        let after = ours(&source);
        let found = differences(&before, &theirs, &after);
        if found.is_empty() {
            let (series, _) = read(&theirs);
            assert!(compared(&series).len() > 200, "node_exporter gave {} series only", series.len());
            return;
        }
        assert!(Instant::now() < deadline, "{} differences:\n{}", found.len(), found.join("\n"));
    }
}

#[test]
fn a_difference_is_found() {
    let ours = "# TYPE node_intr_total counter\nnode_intr_total 5\n# TYPE node_load1 gauge\nnode_load1 1\n\
        # TYPE node_os_version gauge\nnode_os_version{id=\"a\\\"b\\\\n\\n\"} 12\n";
    let later = ours.replace("total 5", "total 9");
    assert_eq!(differences(ours, &ours.replace("total 5", "total 7"), &later), [] as [String; 0]);
    for (from, to, expected) in [
        ("total 5", "total 4", "node_intr_total {}: 4 there"),
        ("total 5", "total 10", "node_intr_total {}: 10 there"),
        ("counter", "gauge", "type of node_intr_total"),
        ("node_load1 1", "node_load5 1", "only theirs: node_load5"),
        ("id=", "ids=", "only ours: node_os_version"),
        ("} 12", "} 11", "node_os_version"),
        ("node_load1 1", "node_load1 1\nnode_disk_info{device=\"a\"} 1\nnode_new 1", "only theirs: node_new"),
    ] {
        let found = differences(ours, &ours.replace(from, to), &later);
        assert!(found.iter().any(|line| line.starts_with(expected)), "{from}: {found:?}");
        assert!(found.iter().all(|line| !line.contains("node_disk_info")), "{found:?}");
    }
}
