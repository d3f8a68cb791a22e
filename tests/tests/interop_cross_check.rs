//! The same containers read by others and by us: perf, bpftrace, `/proc`, the host's end of a pod's link, `podman stats`.
//! Each figure stands beside ours with the difference that is allowed, and why is in docs/observability.md, "Cross-check".
//! The host's own figures are held against node_exporter in `interop_node_exporter.rs`.

mod readers;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentd_tests::arena::{self, HostFolder};
use agentd_tests::exposition::Exposition;
use agentd_tests::peer::installed;
use agentd_tests::{Client, Daemon, host, pods, privileged, skip, until};
use readers::{Bpftrace, Figures, Perf, Podman, fifo};
use serde_json::json;

const PATIENCE: Duration = Duration::from_mins(1);
/// Debian's own interpreter, which containers without an image see, too.
const PYTHON: &str = "/usr/bin/python3";
const WORK: &str = include_str!("../interop/cross_check.py");

/// What the work does, as in the script.
const PROGRAMS: f64 = 200.0;
const SLEEPS: f64 = 1000.0;
const PAGES: f64 = 8192.0;
const BLOCKS: f64 = 128.0 * 65536.0;
const SENT: u32 = 1 << 20;
const ANSWER: u32 = 2 << 20;

/// A figure of ours beside that of another.
struct Pair {
    what: &'static str,
    reader: &'static str,
    ours: f64,
    theirs: f64,
    /// By how much ours may be more.
    allowed: RangeInclusive<f64>,
}

/// Prints all pairs as a table and fails where a difference is too large.
#[track_caller]
fn hold(pairs: &[Pair]) {
    let mut table = String::new();
    for Pair { what, reader, ours, theirs, allowed } in pairs {
        let more = ours - theirs;
        let _ = writeln!(
            table,
            "{what:<22} {ours:>16.3}   {reader:<22} {theirs:>16.3} {more:>+14.3}   ({:+.3} to {:+.3} allowed)",
            allowed.start(),
            allowed.end()
        );
    }
    println!("{table}");
    let wrong: Vec<_> =
        pairs.iter().filter(|pair| !pair.allowed.contains(&(pair.ours - pair.theirs))).map(|pair| pair.what).collect();
    assert!(wrong.is_empty(), "{wrong:?} differ by too much:\n{table}");
}

/// Figures of a process by procfs, those of its children that have ended among them where the kernel adds them up.
fn procfs(pid: u32) -> Figures {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    let mut found = Figures::new();
    let (status, io) = (read("status"), read("io"));
    for (text, name) in [
        (&status, "voluntary_ctxt_switches"),
        (&status, "nonvoluntary_ctxt_switches"),
        (&io, "read_bytes"),
        (&io, "write_bytes"),
    ] {
        found.insert(name.to_owned(), arena::field(text, name).parse().unwrap());
    }
    let stat = read("stat");
    let words: Vec<f64> =
        stat.rsplit_once(')').unwrap().1.split_whitespace().map(|word| word.parse().unwrap_or(0.0)).collect();
    // minflt, cminflt, majflt, cmajflt; utime, stime, cutime, cstime
    found.insert("faults".to_owned(), words[7..11].iter().sum());
    // the kernel tells these in hundredths of a second on every architecture that agentd runs on
    found.insert("cpu".to_owned(), words[11..15].iter().sum::<f64>() / 100.0);
    found
}

/// Bytes of each link of an instance of agentd, at the host's end.
fn links(instance: &str) -> BTreeMap<String, (f64, f64)> {
    let count = |link: &str, name: &str| -> f64 {
        let text = fs::read_to_string(format!("/sys/class/net/{link}/statistics/{name}")).unwrap_or_default();
        text.trim().parse().unwrap_or(0.0)
    };
    let all = host::links_of(instance).into_iter();
    all.map(|link| (link.clone(), (count(&link, "rx_bytes"), count(&link, "tx_bytes")))).collect()
}

/// A scrape of a pod that no gathering from before this call answers.
fn scrape(client: &Client) -> Exposition {
    let gathered = || {
        let read = Exposition::read(&client.get("/metrics").text).unwrap();
        (read.sum("agentd_self_scrapes_total", &[]), read)
    };
    let (before, _) = gathered();
    until("metrics are gathered anew", PATIENCE, || {
        let (now, read) = gathered();
        // the first may have begun before this call
        (now >= before + 2.0).then_some(read)
    })
}

/// What a container has done between two scrapes, by the name of the series, and by name and value of one label.
fn done(before: &Exposition, after: &Exposition, pod: &str) -> Figures {
    let sums = |read: &Exposition| {
        let mut sums = Figures::new();
        for sample in read.samples.iter().filter(|sample| sample.label("pod") == pod) {
            *sums.entry(sample.name.clone()).or_default() += sample.value;
            for (name, value) in &sample.labels {
                *sums.entry(format!("{}{{{name}={value}}}", sample.name)).or_default() += sample.value;
            }
        }
        sums
    };
    let (before, after) = (sums(before), sums(after));
    after.into_iter().map(|(name, value)| (name.clone(), value - before.get(&name).copied().unwrap_or(0.0))).collect()
}

fn has(client: &Client, signal: &str) -> bool {
    let signals = client.get("/v1/observe").json["signals"].as_array().cloned().unwrap_or_default();
    signals.iter().any(|one| one["signal"] == signal && one["rung"] != "off" && one["rung"] != "files")
}

#[test]
fn a_container_is_told_as_perf_bpftrace_and_procfs_tell_it() {
    privileged!();
    if !Path::new(PYTHON).exists() {
        skip!("{PYTHON} is not installed (Debian package python3)");
    }
    let Some(unified) = host::unified() else {
        skip!("there is no cgroup2 tree");
    };
    // packets are counted only where somebody asks for it
    let daemon = Daemon::with().set(r#"observe.groups=["all"]"#).start();
    let client = daemon.client();
    let folder = HostFolder::new();
    fs::write(folder.path("work.py"), WORK).unwrap();
    fifo(&folder.path("go"));
    fifo(&folder.path("end"));
    let mut pod = pods::argv("/cross/work", &[PYTHON, "-B", "/mnt/work.py", "/mnt"]);
    pod["agentd"] = json!({"restart": "never"});
    pod["networks"] = json!([{"mode": "container"}]);
    let pod = pods::with_container(arena::with_host_volume(pod, "work", &folder.0, "/mnt", false), |container| {
        container["resources"] = json!({"cpus": 1.0, "mem": 128, "disk": 32});
    });
    client.run_pod(&pod);
    until("the work is ready", PATIENCE, || client.logs("/cross/work", "main").contains("ready").then_some(()));
    let instance = client.instance("/cross/work");
    let pid = instance.containers[0].pid.unwrap();
    let cgroup = PathBuf::from(daemon.instance()).join("pods").join(&instance.id).join("c0");
    assert!(unified.join(&cgroup).is_dir(), "{} is no cgroup", cgroup.display());
    let tell = |reason: String| println!("not read by this one, because {reason}");
    let perf = Perf::start(&folder.0, cgroup.to_str().unwrap()).map_err(tell).ok();
    let bpftrace = Bpftrace::start(&folder.0, &unified.join(&cgroup).join("init"), pid).map_err(tell).ok();

    let (before, by_procfs, by_links) = (scrape(&client), procfs(pid), links(daemon.instance()));
    drop(File::options().write(true).open(folder.path("go")).unwrap());
    let address = instance.addresses.iter().find(|address| !address.contains(':')).expect("an IPv4 address");
    talk(address);
    until("the work is finished", PATIENCE, || client.logs("/cross/work", "main").contains("finished").then_some(()));
    let (after, then_by_procfs, then_by_links) = (scrape(&client), procfs(pid), links(daemon.instance()));
    let ours = done(&before, &after, "/cross/work");
    let by_perf = perf.map(Perf::end);
    let by_bpftrace = bpftrace.map(Bpftrace::end);
    drop(File::options().write(true).open(folder.path("end")).unwrap());
    client.wait_finished("/cross/work");

    let our = |name: &str| ours.get(name).copied().unwrap_or_else(|| panic!("we do not tell {name}"));
    let their = |name: &str| then_by_procfs[name] - by_procfs[name];
    let mut pairs = Vec::new();
    let mut pair = |what, reader, ours, theirs, allowed| pairs.push(Pair { what, reader, ours, theirs, allowed });
    let within = |most: f64| -most..=most;
    let cpu = our("container_cpu_usage_seconds_total");
    let faults = our("container_memory_failures_total{failure_type=pgfault}") / 2.0;
    pair("CPU seconds", "/proc/PID/stat", cpu, their("cpu"), within(0.06 + 0.05 * cpu));
    pair("page faults", "the work", faults, PAGES, 0.0..=4.0 * PAGES);
    pair("page faults", "/proc/PID/stat", faults, their("faults"), within(256.0));
    if has(&client, "run-queue") {
        let switches = our("agentd_container_context_switches_total");
        let waits = our("agentd_container_context_switches_total{switch_type=voluntary}");
        let main = their("voluntary_ctxt_switches") + their("nonvoluntary_ctxt_switches");
        pair("voluntary switches", "the work", waits, SLEEPS, 0.0..=20.0 * PROGRAMS);
        // a program that ends gives up its CPU once more, and /proc tells of one process alone
        let children = 0.9 * PROGRAMS..=10.0 * PROGRAMS;
        pair("voluntary switches", "/proc/PID/status", waits, their("voluntary_ctxt_switches"), children.clone());
        pair("switches", "/proc/PID/status", switches, main, children);
        if let Some(perf) = &by_perf {
            let migrations = our("agentd_container_cpu_migrations_total");
            pair("switches", "perf", switches, perf["context-switches"], within(0.005 * switches));
            pair("migrations", "perf", migrations, perf["cpu-migrations"], within(3.0 + 0.05 * migrations));
        }
        if let Some(bpftrace) = &by_bpftrace {
            pair("switches", "bpftrace", switches, bpftrace["switches"], within(0.005 * switches));
            let name = "agentd_container_runqueue_latency_seconds";
            let (waits, waited) = (our(&format!("{name}_count")), our(&format!("{name}_sum")));
            // a program on a tracepoint is left out where it interrupts another, so that bpftrace misses some
            pair("waits for a CPU", "bpftrace", waits, bpftrace["waits"], -0.01 * waits..=0.1 * waits);
            pair("seconds waited", "bpftrace", waited, bpftrace["waited"] / 1e9, within(0.1 * waited + 0.01));
        }
    }
    if let Some(perf) = &by_perf {
        pair("CPU seconds", "perf", cpu, perf["task-clock"] / 1e3, within(0.03 + 0.1 * cpu));
        // the kernel writes the arguments of each program itself
        pair("page faults", "perf", faults, perf["page-faults"], -256.0..=2.0 * PROGRAMS + 256.0);
    }
    if let Some(bpftrace) = &by_bpftrace {
        pair("page faults", "bpftrace, user mode", faults, bpftrace["faults"], -256.0..=0.2 * faults);
    }
    if has(&client, "exec") {
        let execs = our("agentd_container_execs_total");
        let forks = our("agentd_container_forks_total") + our("agentd_container_threads_made_total");
        let exact = 0.0..=0.0;
        pair("programs begun", "the work", execs, PROGRAMS, exact.clone());
        if let Some(perf) = &by_perf {
            pair("programs begun", "perf", execs, perf["sched:sched_process_exec"], exact.clone());
            pair("processes made", "perf", forks, perf["sched:sched_process_fork"], exact.clone());
        }
        if let Some(bpftrace) = &by_bpftrace {
            let exits = our("agentd_container_exits_total");
            pair("programs begun", "bpftrace", execs, bpftrace["execs"], exact.clone());
            pair("processes made", "bpftrace", forks, bpftrace["forks"], exact.clone());
            pair("processes ended", "bpftrace", exits, bpftrace["exits"], exact);
        }
    }
    if !on_a_disk(&folder.0) {
        println!("block I/O is not compared: {} is on no block device", folder.0.display());
    } else if has(&client, "block-io") {
        for (direction, what, file, letter) in
            [("write", "bytes written", "write_bytes", 'W'), ("read", "bytes read", "read_bytes", 'R')]
        {
            let bytes = our(&format!("agentd_container_block_io_bytes_total{{disk_io_direction={direction}}}"));
            // an end that interrupts another on its CPU is counted when the request's place is used again, so that a
            // request or two may be missing for a while; a program or library that was not in memory is read, too
            let late = 4.0 * 65536.0;
            pair(what, "the work", bytes, BLOCKS, -late..=BLOCKS);
            pair(what, "/proc/PID/io", bytes, their(file), within(late));
            if let Some(bpftrace) = &by_bpftrace {
                let kinds = bpftrace.iter().filter(|(kind, _)| kind.starts_with(&format!("bytes[{letter}")));
                pair(what, "bpftrace", bytes, kinds.map(|(_, bytes)| bytes).sum(), within(late));
            }
        }
    }
    let (received, sent) =
        (our("container_network_receive_bytes_total"), our("container_network_transmit_bytes_total"));
    // the pod's link is the one that has carried its answer
    let carried = then_by_links.iter().filter_map(|(link, (rx, tx))| {
        let (first_rx, first_tx) = by_links.get(link).copied().unwrap_or_default();
        (!Path::new(&format!("/sys/class/net/{link}/bridge")).exists()).then_some((rx - first_rx, tx - first_tx))
    });
    let (up, down) = carried.max_by(|one, other| one.0.total_cmp(&other.0)).expect("a link of the pod");
    // a neighbour may be asked for between the two readings
    pair("bytes of eth0, in", "host's end of the link", received, down, within(2000.0));
    pair("bytes of eth0, out", "host's end of the link", sent, up, within(2000.0));
    if has(&client, "packets") {
        let bytes = |way: &str| our(&format!("agentd_container_network_io_bytes_total{{network_io_direction={way}}}"));
        let (received, sent) = (bytes("receive"), bytes("transmit"));
        let (payload, answer) = (f64::from(SENT), f64::from(ANSWER));
        // heads of Ethernet are the link's, heads of IP and TCP are not the work's
        pair("bytes of sockets, in", "host's end of the link", received, down, -0.02 * down - 2000.0..=0.0);
        pair("bytes of sockets, out", "host's end of the link", sent, up, -0.02 * up - 2000.0..=0.0);
        pair("bytes of sockets, in", "the work", received, payload, 0.0..=0.05 * payload);
        pair("bytes of sockets, out", "the work", sent, answer, 0.0..=0.05 * answer);
    }
    if has(&client, "connections") {
        pair("connections accepted", "the work", our("agentd_container_tcp_accepts_total"), 1.0, 0.0..=0.0);
    }
    hold(&pairs);
}

/// Whether a folder is on a file system of one block device, so that direct I/O in it is I/O of that.
fn on_a_disk(folder: &Path) -> bool {
    rustix::fs::major(fs::metadata(folder).unwrap().dev()) != 0
}

/// Sends the work what it waits for and reads its answer.
fn talk(address: &str) {
    let mut stream = until("the work listens", PATIENCE, || TcpStream::connect((address, 8080)).ok());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&vec![b'x'; SENT as usize]).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer.len(), ANSWER as usize);
}

/// Work of one second of CPU and 64 MiB of memory, which stays.
const FIXED: &str = "import time\nwhile time.process_time() < 1.0: pass\nmemory = bytearray(64 << 20)\n\
                     for at in range(0, len(memory), 4096): memory[at] = 1\nprint('finished', flush=True)\ntime.sleep(1000)\n";

#[test]
fn a_container_is_told_as_podman_tells_its_own() {
    privileged!();
    if !installed("podman") || !Path::new(PYTHON).exists() {
        skip!("podman or {PYTHON} is not installed (Debian packages podman and python3)");
    }
    let podman = Podman::new();
    if let Err(reason) = podman.start(&[PYTHON, "-c", FIXED]) {
        skip!("podman runs no container here: {reason}");
    }
    let daemon = Daemon::start();
    let client = daemon.client();
    let pod = pods::with_container(pods::argv("/cross/fixed", &[PYTHON, "-c", FIXED]), |container| {
        container["resources"] = json!({"cpus": 1.0, "mem": 256, "disk": 32});
        container["lifecycle"] = json!({"killGracePeriodSeconds": 0.1});
    });
    client.run_pod(&pod);
    until("our work is finished", PATIENCE, || client.logs("/cross/fixed", "main").contains("finished").then_some(()));
    until("podman's work is finished", PATIENCE, || {
        podman.run(&["logs", "work"]).unwrap().contains("finished").then_some(())
    });
    let (cpu, memory) = podman.stats();
    let read = scrape(&client);
    let our = |name: &str| read.sum(name, &[("pod", "/cross/fixed"), ("container", "main")]);
    hold(&[
        // the interpreter's start and the touching of memory are in both; those of runc's own start in podman's
        Pair {
            what: "CPU seconds",
            reader: "podman stats",
            ours: our("container_cpu_usage_seconds_total"),
            theirs: cpu,
            allowed: -0.25..=0.25,
        },
        Pair {
            what: "memory, usage",
            reader: "podman stats",
            ours: our("container_memory_usage_bytes"),
            theirs: memory,
            allowed: -16e6..=16e6,
        },
        Pair {
            what: "memory, working set",
            reader: "podman stats",
            ours: our("container_memory_working_set_bytes"),
            theirs: memory,
            allowed: -16e6..=16e6,
        },
        Pair {
            what: "memory, rss",
            reader: "podman stats",
            ours: our("container_memory_rss"),
            theirs: memory,
            allowed: -16e6..=16e6,
        },
    ]);
    client.rm("/cross/fixed");
}

#[test]
fn a_difference_that_is_too_large_is_found() {
    let pair = |ours, most: f64| Pair { what: "a", reader: "b", ours, theirs: 100.0, allowed: -most..=most };
    hold(&[pair(100.0, 0.0), pair(101.0, 1.0), pair(99.0, 1.0)]);
    for ours in [98.9, 101.1] {
        let held = std::panic::catch_unwind(|| hold(&[pair(100.0, 0.0), pair(ours, 1.0)]));
        assert!(held.is_err(), "{ours}");
    }
}
