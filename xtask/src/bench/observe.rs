//! `bench observe`: what watching costs. The programs in the kernel, paired with the same work without them; a scrape;
//! and the daemon when nothing happens.
//!
//! The programs are loaded by this process with the daemon's default settings, so that taking them out and putting them
//! back is all that differs between the two sides of a pair. Work runs in a cgroup of a container that is published.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use agentd_ebpf::observe::{Group, Observer, Settings};
use agentd_testbox::layout::{self, Config};

use super::harness::{Measured, Samples, milliseconds};
use super::report::Report;
use super::{Options, idle, oci, ours, pods, scratch_parent};
use crate::daemon::{Daemon, Scratch};
use crate::installed;

/// Operations of one run of `perf bench sched pipe`.
const PIPE_OPERATIONS: u32 = 100_000;
/// Requests of one run of `redis-benchmark`, for each of two commands.
const REDIS_REQUESTS: u32 = 100_000;
/// Source files of one compilation.
const FILES: usize = 12;
/// How long the idle daemon is watched.
const IDLE: Duration = Duration::from_secs(20);

/// What may be taken from a watched operation, microseconds.
const PIPE_MOST: f64 = 1.5;
/// Most of the CPU that the programs may take of what work takes, percent, and where the interval of the paired
/// difference may begin.
const SHARE_MOST: f64 = 2.0;
const PAIRED_MOST: f64 = 1.0;

/// What can be asked for by itself.
pub const SERIES: [&str; 5] = ["maps", "pipe", "redis", "compile", "daemon"];

/// Runs the benchmark. The exit code is 1 when a target was missed.
pub fn run(root: &Path, options: &Options) -> Result<ExitCode, String> {
    let mut report = Report::default();
    let result = measure(root, options, &mut report);
    let met = report.finish(root, "observe")?;
    result?;
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(root: &Path, options: &Options, report: &mut Report) -> Result<(), String> {
    let rounds = if options.quick { 6 } else { 20 };
    let place = Place::new()?;
    if options.wants("maps") {
        programs(&place, report)?;
    }
    if options.wants("pipe") {
        pipe(&place, rounds, report)?;
    }
    if options.wants("redis") {
        redis(&place, rounds.min(12), report)?;
    }
    if options.wants("compile") {
        compile(&place, rounds.min(12), report)?;
    }
    drop(place);
    if options.wants("daemon") { daemon(root, options, report) } else { Ok(()) }
}

/// A container's cgroup that this benchmark made, in the tree that programs find containers in.
struct Place {
    root: PathBuf,
    container: PathBuf,
}

impl Place {
    fn new() -> Result<Self, String> {
        let candidates = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
        let tree = candidates.iter().find(|path| Path::new(path).join("cgroup.controllers").exists());
        let tree = tree.ok_or("this host has no cgroup2 tree")?;
        let root = Path::new(tree).join(format!("agentd-bench-{}", std::process::id()));
        let container = root.join("pods/p/c0");
        fs::create_dir_all(&container).map_err(|error| format!("{}: {error}", container.display()))?;
        Ok(Self { root, container })
    }

    /// The programs, with this container published.
    fn watch(&self) -> Result<Observer, String> {
        let observer = Observer::start(Settings {
            pods: self.root.join("pods"),
            level: 4,
            // the daemon's default: packets are counted where somebody asks for it
            groups: [Group::Sched, Group::Process, Group::Block, Group::Net].into_iter().collect(),
            containers: 1024,
            tasks: 16_384,
            edges: 4096,
            events_per_second: 10,
            events_burst: 50,
            charged_io: false,
            without: BTreeSet::new(),
            without_btf: false,
        });
        let id = fs::metadata(&self.container).map_err(|error| error.to_string())?.ino();
        observer.publish(id, false)?;
        Ok(observer)
    }

    /// A command whose process begins in the container.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("echo 0 > '{}/cgroup.procs' && {line}", self.container.display())]);
        command
    }

    /// CPU that the container has used, microseconds.
    fn used(&self) -> Result<f64, String> {
        let path = self.container.join("cpu.stat");
        let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        line.and_then(|number| number.parse().ok()).ok_or_else(|| format!("{} has no usage_usec", path.display()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::write(self.root.join("cgroup.kill"), "1");
        let end = Instant::now() + Duration::from_secs(5);
        while self.root.exists() && Instant::now() < end {
            for path in ["pods/p/c0", "pods/p", "pods", ""] {
                let _ = fs::remove_dir(self.root.join(path));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Runs a command and gives its output.
fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// What the maps take, and how long loading takes.
fn programs(place: &Place, report: &mut Report) -> Result<(), String> {
    let begun = Instant::now();
    let observer = place.watch()?;
    let loaded = milliseconds(begun);
    let bytes: u64 = observer.maps().iter().map(|map| map.bytes).sum();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    for state in observer.signals() {
        if let Some(why) = &state.why {
            report.note(format!("{} stands on {}: {why}", state.signal.name(), state.rung.name()));
        }
    }
    // as full as they can be by containers
    let id = u64::MAX / 2;
    for number in 0..1023 {
        observer.publish(id + number, false)?;
    }
    let full: u64 = observer.maps().iter().map(|map| map.bytes).sum();
    let mebibytes = |bytes: u64| Samples(vec![bytes as f64 / 1_048_576.0]);
    let measured = Measured::from([
        (format!("maps on {cpus} CPUs with 1 container"), mebibytes(bytes)),
        (format!("maps on {cpus} CPUs with 1024 containers"), mebibytes(full)),
    ]);
    report.add("programs", "MiB", &measured);
    report.hold(&format!("programs: maps on {cpus} CPUs with 1024 containers"), 16.0, true);
    report.add("programs", "ms", &Measured::from([("load and attach".to_owned(), Samples(vec![loaded]))]));
    Ok(())
}

/// Pairs of runs without and with the programs.
struct Pairs {
    without: Vec<f64>,
    with: Vec<f64>,
}

impl Pairs {
    /// Runs the work `rounds` times on each side, in turns, after one that is not counted.
    fn take(place: &Place, rounds: usize, mut work: impl FnMut() -> Result<f64, String>) -> Result<Self, String> {
        let mut pairs = Self { without: Vec::new(), with: Vec::new() };
        work()?;
        for round in 0..rounds {
            // who goes first changes, so that what grows in time falls on both
            for side in [round % 2 == 0, round % 2 != 0] {
                let observer = if side { Some(place.watch()?) } else { None };
                let value = work()?;
                drop(observer);
                if side { pairs.with.push(value) } else { pairs.without.push(value) }
            }
        }
        Ok(pairs)
    }

    /// Differences of the pairs, each in percent of its run without.
    fn percent(&self) -> Samples {
        Samples(self.with.iter().zip(&self.without).map(|(with, without)| (with / without - 1.0) * 100.0).collect())
    }

    /// Differences of the pairs.
    fn differences(&self) -> Samples {
        Samples(self.with.iter().zip(&self.without).map(|(with, without)| with - without).collect())
    }
}

/// The interval that holds the median with 95 % (by ranks, without assuming a distribution).
fn interval(samples: &Samples) -> (f64, f64) {
    let mut sorted = samples.0.clone();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    // the largest k for which fewer than k of n fall below the median with at most 2.5 %
    let mut below = 0.0;
    let mut chance = 0.5_f64.powi(n as i32);
    let mut k = 0;
    while k < n / 2 && below + chance <= 0.025 {
        below += chance;
        k += 1;
        chance *= (n - k + 1) as f64 / k as f64;
    }
    let low = k.saturating_sub(1);
    match (sorted.get(low), sorted.get(n.saturating_sub(1 + low))) {
        (Some(low), Some(high)) => (*low, *high),
        _ => (f64::NAN, f64::NAN),
    }
}

/// Time in programs and their runs since the statistics were turned on.
fn spent(observer: &Observer) -> (f64, f64) {
    observer
        .costs()
        .iter()
        .fold((0.0, 0.0), |(time, runs), cost| (time + cost.run_time as f64 / 1e3, runs + cost.runs as f64))
}

/// Prints each program's own time.
fn each_program(observer: &Observer, of: &str, report: &mut Report) {
    let mut words = Vec::new();
    for cost in observer.costs() {
        if cost.runs > 0 {
            words.push(format!("{} {:.0} ns × {}", cost.name, cost.run_time as f64 / cost.runs as f64, cost.runs));
        }
    }
    report.note(format!("programs during {of}, by the kernel's statistics: {}", words.join(", ")));
}

/// Two processes that hand a byte to and fro on one CPU: two switches an operation.
fn pipe(place: &Place, rounds: usize, report: &mut Report) -> Result<(), String> {
    if !installed("perf") || !installed("taskset") {
        report.note("perf bench sched pipe is skipped because perf (linux-perf) or taskset is not installed");
        return Ok(());
    }
    let line = format!("exec taskset -c 0 perf bench -f simple sched pipe -l {PIPE_OPERATIONS}");
    let work = || {
        let text = output(&mut place.command(&line))?;
        let seconds: f64 = text.trim().parse().map_err(|_| format!("perf bench says {text:?}"))?;
        Ok(seconds * 1e6 / f64::from(PIPE_OPERATIONS))
    };
    let pairs = Pairs::take(place, rounds, work)?;
    let differences = pairs.differences();
    let (low, high) = interval(&differences);
    let measured = Measured::from([
        ("an operation without the programs".to_owned(), Samples(pairs.without)),
        ("an operation with them".to_owned(), Samples(pairs.with)),
        ("added to an operation, paired".to_owned(), differences),
    ]);
    report.add("sched pipe", "µs", &measured);
    report.hold("sched pipe: added to an operation, paired", PIPE_MOST, true);
    report.note(format!("sched pipe: the median of what is added lies in [{low:.2}, {high:.2}] µs (95 %)"));
    let observer = place.watch()?;
    let _statistics = observer.measure()?;
    output(&mut place.command(&line))?;
    each_program(&observer, "sched pipe", report);
    Ok(())
}

/// The programs' share of work's CPU, and what the same work takes with and without them.
fn share(
    place: &Place,
    name: &str,
    rounds: usize,
    report: &mut Report,
    mut work: impl FnMut() -> Result<(), String>,
) -> Result<(), String> {
    let mut shares = Vec::new();
    {
        let observer = place.watch()?;
        let _statistics = observer.measure()?;
        for _ in 0..rounds.div_ceil(2) {
            let (used, (before, _)) = (place.used()?, spent(&observer));
            work()?;
            let (used, (after, _)) = (place.used()? - used, spent(&observer));
            shares.push((after - before) / used * 100.0);
        }
        each_program(&observer, name, report);
    }
    let pairs = Pairs::take(place, rounds, || {
        let used = place.used()?;
        work()?;
        Ok((place.used()? - used) / 1e3)
    })?;
    let percent = pairs.percent();
    let (low, high) = interval(&percent);
    let measured = Measured::from([
        ("run time of the programs, of the CPU used".to_owned(), Samples(shares)),
        ("CPU with the programs over without, paired".to_owned(), percent),
        ("the same, where its 95 % interval begins".to_owned(), Samples(vec![low])),
    ]);
    report.add(name, "%", &measured);
    report.hold(&format!("{name}: run time of the programs, of the CPU used"), SHARE_MOST, true);
    report.hold(&format!("{name}: the same, where its 95 % interval begins"), PAIRED_MOST, true);
    report.note(format!("{name}: the paired median lies in [{low:.2}, {high:.2}] % (95 %)"));
    let measured = Measured::from([
        ("CPU without the programs".to_owned(), Samples(pairs.without)),
        ("CPU with them".to_owned(), Samples(pairs.with)),
    ]);
    report.add(name, "ms", &measured);
    Ok(())
}

/// A server that was started for a benchmark; ended by its process id.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn redis(place: &Place, rounds: usize, report: &mut Report) -> Result<(), String> {
    if !installed("redis-server") || !installed("redis-benchmark") {
        report.note("redis-benchmark is skipped because redis-server or redis-tools is not installed");
        return Ok(());
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map_err(|error| format!("a free port: {error}"))?
        .port();
    let line = format!("exec redis-server --port {port} --bind 127.0.0.1 --save '' --appendonly no");
    let server = place.command(&line).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let _server = Server(server.map_err(|error| format!("redis-server: {error}"))?);
    let end = Instant::now() + Duration::from_secs(10);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        if Instant::now() > end {
            return Err("redis-server does not answer".to_owned());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let line = format!("exec redis-benchmark -p {port} -t set,get -n {REDIS_REQUESTS} -c 50 -q");
    share(place, "redis-benchmark", rounds, report, || output(&mut place.command(&line)).map(drop))
}

fn compile(place: &Place, rounds: usize, report: &mut Report) -> Result<(), String> {
    let scratch = Scratch::new(&scratch_parent(), "bench")?;
    for file in 0..FILES {
        let mut text = "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n".to_owned();
        for number in 0..120 {
            let _ = writeln!(
                text,
                "int f{number}(const char *s, int n) {{ int r = {number}; for (int i = 0; i < n; i++) r = r * 31 + s[i] % \
                 ({number} + 7); char b[64]; snprintf(b, sizeof b, \"%d\", r); return atoi(b) + (int) strlen(s); }}"
            );
        }
        let path = scratch.path().join(format!("{file}.c"));
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let line = format!("cd '{}' && for f in *.c; do cc -O1 -c $f || exit 1; done", scratch.path().display());
    share(place, "compile", rounds, report, || output(&mut place.command(&line)).map(drop))
}

/// CPU time of a process, all of its threads that live, ns.
fn process_time(pid: u32) -> Result<u64, String> {
    let folder = format!("/proc/{pid}/task");
    let mut total = 0;
    for entry in fs::read_dir(&folder).map_err(|error| format!("{folder}: {error}"))?.flatten() {
        // a thread that ends meanwhile has no file any more
        let text = fs::read_to_string(entry.path().join("schedstat")).unwrap_or_default();
        total += text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(total)
}

/// Scrapes, and the daemon when nothing happens.
fn daemon(root: &Path, options: &Options, report: &mut Report) -> Result<(), String> {
    let program = agentd_testbox::program::build(root)?;
    let scratch = Scratch::new(&scratch_parent(), "bench")?;
    let home = scratch.path().join("home");
    fs::create_dir_all(&home).map_err(|error| format!("{}: {error}", home.display()))?;
    let archive = scratch.path().join("true.tar");
    layout::docker_archive(&archive, ours::IMAGE, &program, &Config::command(&["/bin/true"]))
        .map_err(|error| format!("{}: {error}", archive.display()))?;
    oci::root_file_system(&scratch.path().join("lower"), &program)?;
    let arguments = [pods::PLENTY, &["--set", "api.requests_per_second=0"]].concat();
    let daemon = Daemon::start(&options.agentd(root), &home, &arguments)?;
    ours::import(&mut daemon.client(), &archive, ours::IMAGE)?;
    let counts: &[(usize, f64)] = if options.quick { &[(100, 25.0)] } else { &[(100, 25.0), (500, 100.0)] };
    for (count, most) in counts {
        idle::with_pods(&daemon, *count, || {
            scrape(&daemon, *count, *most, report)?;
            if *count == 100 {
                at_rest(&daemon, *count, report)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn scrape(daemon: &Daemon, count: usize, most: f64, report: &mut Report) -> Result<(), String> {
    let mut client = daemon.client();
    let (mut cpu, mut wall, mut size) = (Vec::new(), Vec::new(), 0);
    for round in 0..23 {
        // the task that shares one gathering among scrapers that come at once must not serve this one from the last
        std::thread::sleep(Duration::from_millis(300));
        let (before, begun) = (process_time(daemon.pid())?, Instant::now());
        let answer = client.expect("GET", "/metrics", b"", &[200])?;
        let (took, used) = (milliseconds(begun), process_time(daemon.pid())? - before);
        size = answer.body.len();
        if round >= 3 {
            cpu.push(used as f64 / 1e6);
            wall.push(took);
        }
    }
    let prefix = format!("scrape of {count} containers");
    let measured = Measured::from([
        ("CPU of the daemon".to_owned(), Samples(cpu)),
        ("until the last byte".to_owned(), Samples(wall)),
    ]);
    report.add(&prefix, "ms", &measured);
    report.hold(&format!("{prefix}: CPU of the daemon"), most, true);
    report.note(format!("{prefix}: {} KiB", size / 1024));
    Ok(())
}

fn at_rest(daemon: &Daemon, count: usize, report: &mut Report) -> Result<(), String> {
    std::thread::sleep(Duration::from_secs(3));
    let (before, begun) = (process_time(daemon.pid())?, Instant::now());
    std::thread::sleep(IDLE);
    let used = process_time(daemon.pid())? - before;
    let share = used as f64 / begun.elapsed().as_nanos() as f64 * 100.0;
    let resident = idle::kib(&format!("/proc/{}/status", daemon.pid()), "VmRSS")? / 1024.0;
    let prefix = format!("at rest with {count} containers");
    report.add(&prefix, "%", &Measured::from([("of one CPU".to_owned(), Samples(vec![share]))]));
    report.hold(&format!("{prefix}: of one CPU"), 0.5, true);
    report.add(&prefix, "MiB", &Measured::from([("resident".to_owned(), Samples(vec![resident]))]));
    report.hold(&format!("{prefix}: resident"), 50.0, true);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_that_of_the_ranks() {
        // for 20 samples the ranks are 6 and 15, for 6 the least and the greatest
        let (low, high) = interval(&Samples((1..=20).map(f64::from).collect()));
        assert_eq!((low, high), (6.0, 15.0));
        assert_eq!(interval(&Samples((1..=6).map(f64::from).collect())), (1.0, 6.0));
        assert_eq!(interval(&Samples((1..=3).map(f64::from).collect())), (1.0, 3.0));
        assert!(interval(&Samples::default()).0.is_nan());
    }

    #[test]
    fn pairs_are_compared_one_by_one() {
        let pairs = Pairs { without: vec![100.0, 200.0], with: vec![101.0, 206.0] };
        let percent = pairs.percent().0;
        assert!((percent[0] - 1.0).abs() < 1e-9 && (percent[1] - 3.0).abs() < 1e-9);
        assert_eq!(pairs.differences().0, [1.0, 6.0]);
    }
}
