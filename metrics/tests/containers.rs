//! Reading of real cgroups, made for the test alone in every tree that the host has, with processes whose use is known.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use agentd_ebpf::observe::Figures;
use agentd_ebpf::observe::layout::{BLOCK_KINDS, BUCKETS, Block, FAILURES, Log2, Net, Processes, Sched};
use agentd_metrics::container::{
    Bounds, Directories, Facts, Place, PodFacts, PodReading, PodSource, Reader, Reading, Totals, report, report_pod,
};
use agentd_metrics::model::{Batch, Scope};

/// Controllers with a directory for each container on v1, as the daemon makes them; others are made on demand.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Directories of one pod in every tree; they are removed, and what is in them killed, at the end.
struct Pod {
    unified: PathBuf,
    /// Mounts of v1 trees by controller.
    v1: Vec<(&'static str, PathBuf)>,
    name: String,
    children: Vec<Child>,
}

/// Where cgroup2, and each controller of v1, is mounted.
fn mounts() -> (Option<PathBuf>, Vec<(&'static str, PathBuf)>) {
    let text = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mounts = || text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let unified = mounts().find(|mount| mount[2] == "cgroup2").map(|mount| PathBuf::from(mount[1]));
    let of = |controller: &&'static str| {
        let mount = mounts().find(|m| m[2] == "cgroup" && m[3].split(',').any(|option| option == *controller))?;
        Some((*controller, PathBuf::from(mount[1])))
    };
    (unified, CONTROLLERS.iter().filter_map(of).collect())
}

impl Pod {
    /// Makes the directories of a pod with `containers` containers; a sentence if this host does not let us.
    fn new(name: &str, containers: usize) -> Result<Self, String> {
        let (Some(mount), v1) = mounts() else { return Err("this host has no cgroup2 tree".into()) };
        let name = format!("agentd-metrics-{name}-{}", std::process::id());
        let pod = Self { unified: mount.join(&name), v1, name, children: Vec::new() };
        for container in 0..containers {
            for folder in pod.folders(container) {
                std::fs::create_dir_all(&folder).map_err(|e| format!("cannot make {}: {e}", folder.display()))?;
            }
        }
        if pod.v1.is_empty() {
            // fails where the host has not turned them on above, which is not ours to do
            let controllers = CONTROLLERS.map(|controller| format!("+{controller}")).join(" ");
            let file = pod.unified.join("cgroup.subtree_control");
            std::fs::write(&file, &controllers).map_err(|e| format!("cannot write {}: {e}", file.display()))?;
        }
        Ok(pod)
    }

    fn container(&self, container: usize) -> PathBuf {
        self.unified.join(format!("c{container}"))
    }

    /// The folders of a container, in which its processes are.
    fn folders(&self, container: usize) -> Vec<PathBuf> {
        let v1 = self.v1.iter().map(|(_, mount)| mount.join(&self.name).join(format!("c{container}")));
        std::iter::once(self.container(container).join("init")).chain(v1).collect()
    }

    fn directories(&self, container: usize) -> Directories {
        let place = |controller: &str| match self.v1.iter().find(|(name, _)| *name == controller) {
            Some((_, mount)) => Place::V1(mount.join(&self.name).join(format!("c{container}"))),
            None if self.v1.is_empty() => Place::Unified,
            None => Place::Absent,
        };
        Directories {
            unified: self.container(container),
            cpu: place("cpu"),
            cpuacct: None,
            memory: place("memory"),
            pids: place("pids"),
            // made on demand: here, as for most containers, it is not there
            io: if self.v1.is_empty() { Place::Unified } else { Place::V1("/sys/fs/cgroup/blkio/none/c0".into()) },
            hugetlb: Place::Unified,
        }
    }

    /// Runs a script in a container.
    fn run(&mut self, container: usize, script: &str) {
        let join = |folder: &PathBuf| format!("echo $$ > {}/cgroup.procs || exit 1", folder.display());
        let joins = self.folders(container).iter().map(join).collect::<Vec<_>>().join("\n");
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{joins}\n{script}")).stdin(Stdio::null()).stdout(Stdio::null());
        self.children.push(command.spawn().unwrap());
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = std::fs::write(self.unified.join("cgroup.kill"), "1");
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let roots = self.v1.iter().map(|(_, mount)| mount.join(&self.name)).chain([self.unified.clone()]);
        for root in roots {
            let deadline = Instant::now() + Duration::from_secs(10);
            while remove(&root).is_err() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// Removes a cgroup and those below it.
fn remove(folder: &Path) -> std::io::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(folder)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    std::fs::remove_dir(folder)
}

/// Reads a container until `wanted` holds.
fn until(reader: &mut Reader, directories: &Directories, wanted: impl Fn(&Reading) -> bool) -> Reading {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let reading = reader.container(directories);
        if wanted(&reading) {
            return reading;
        }
        assert!(Instant::now() < deadline, "{reading:#?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_container_is_read_as_it_is() {
    let mut pod = match Pod::new("read", 1) {
        Ok(pod) => pod,
        Err(why) => return println!("skipped because {why}"),
    };
    let directories = pod.directories(0);
    let mut reader = Reader::new(Bounds { descriptors: 64, ..Bounds::default() });
    let before = reader.container(&directories);
    assert_eq!((before.tasks.processes, before.tasks.descriptors), (Some(0), Some(0)), "{before:#?}");
    // `tail` keeps the last line, all of 32 MiB, and cannot be rid of it, because `sleep` does not read
    let size = 32 << 20;
    pod.run(0, &format!("head -c {size} /dev/zero | tail | sleep 600; exit"));
    let reading = until(&mut reader, &directories, |reading| {
        reading.tasks.processes == Some(3) && reading.memory.anonymous.is_none_or(|bytes| bytes >= size)
    });
    let Reading { cpu, memory, tasks, .. } = reading;
    assert!(cpu.usage.unwrap() > before.cpu.usage.unwrap() && cpu.user.is_some() && cpu.system.is_some(), "{cpu:?}");
    assert_eq!(tasks.threads.unwrap_or(3), 3);
    assert!(tasks.descriptors.unwrap() >= 9 && tasks.unseen == 0, "{tasks:?}");
    assert_eq!(tasks.sockets, Some(0));
    if directories.memory == Place::Absent {
        println!("memory is left out because this host has no memory controller");
    } else {
        let (usage, anonymous) = (memory.usage.unwrap(), memory.anonymous.unwrap());
        assert!((size..2 * size).contains(&anonymous), "{memory:?}");
        assert!(usage >= anonymous / 2 && memory.working_set().unwrap() <= usage, "{memory:?}");
        assert!(memory.faults.unwrap() > 16 && memory.oom_kills == Some(0), "{memory:?}");
        assert!(memory.peak.is_none_or(|peak| peak >= size), "{memory:?}");
    }
    let pod_reading = reader.pod(&PodSource {
        unified: Some(pod.unified.clone()),
        pressure: true,
        network: Some(std::process::id()),
    });
    assert!(pod_reading.cpu.usage >= cpu.usage, "the pod's cgroup is above its container's");
    assert_eq!(pod_reading.pressure.cpu.is_some(), reading.pressure.cpu.is_some());

    // a session beside it, and a cgroup that the container made inside its own
    let session = pod.container(0).join("exec-s1/inner");
    std::fs::create_dir_all(&session).unwrap();
    let mut command = Command::new("sh");
    let script = format!("echo $$ > {}/cgroup.procs && exec sleep 600", session.display());
    pod.children.push(command.args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap());
    until(&mut reader, &directories, |reading| reading.tasks.processes == Some(4));

    drop(pod);
    assert_eq!(reader.container(&directories), Reading::default(), "a container that is gone has nothing");
}

/// CPU time of this thread so far.
fn own_time() -> Duration {
    // by which the kernel brings the figure up to date
    std::thread::yield_now();
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

fn figures() -> Figures {
    let mut log2 = Log2 { buckets: [3; BUCKETS], sum: 1 << 40 };
    log2.buckets[35] = 0;
    Figures {
        sched: Some(Sched { queued: log2, off_cpu: log2, voluntary: 1, involuntary: 2, migrations: 3, untracked: 0 }),
        processes: Some(Processes::default()),
        block: Some(Block {
            latency: [log2; BLOCK_KINDS],
            bytes: [1; BLOCK_KINDS],
            requests: [1; BLOCK_KINDS],
            errors: 0,
            begun: 4,
            merged: 0,
            untracked: 0,
        }),
        net: Some(Net {
            rtt: log2,
            connect_latency: log2,
            received_bytes: 1,
            sent_bytes: 2,
            received_packets: 3,
            sent_packets: 4,
            connects: 5,
            accepts: 6,
            closes: 7,
            failures: [0; FAILURES],
            retransmits: 8,
            resets_received: 9,
            resets_sent: 10,
            edges_dropped: 0,
            untracked: 0,
        }),
        packets: true,
    }
}

/// Prints what reading and reporting costs: `cargo test --release -p agentd-metrics --test containers -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, of a release build"]
fn cost_of_a_container() {
    const CONTAINERS: usize = 100;
    const ROUNDS: usize = 20;
    let mut pod = match Pod::new("cost", CONTAINERS) {
        Ok(pod) => pod,
        Err(why) => return println!("skipped because {why}"),
    };
    for container in 0..CONTAINERS {
        pod.run(container, "exec sleep 600");
    }
    let directories: Vec<_> = (0..CONTAINERS).map(|container| pod.directories(container)).collect();
    let mut reader = Reader::default();
    for directories in &directories {
        until(&mut reader, directories, |reading| reading.tasks.processes == Some(1));
    }
    let (figures, facts) = (figures(), Facts { started: Some(SystemTime::now()), ..Facts::default() });
    let mut costs = Vec::new();
    let mut points = 0;
    for _ in 0..ROUNDS {
        let begun = own_time();
        let readings: Vec<_> = directories.iter().map(|directories| reader.container(directories)).collect();
        let read = own_time();
        let mut batch = Batch::new(SystemTime::now());
        for reading in &readings {
            let scope = batch.scope(Scope::default());
            report(&mut batch, scope, reading, &facts, Some((scope, &figures)));
        }
        let reported = own_time();
        points = batch.series() / CONTAINERS;
        let source =
            PodSource { unified: Some(pod.unified.clone()), pressure: true, network: Some(std::process::id()) };
        let pods: Vec<PodReading> = directories.iter().map(|_| reader.pod(&source)).collect();
        for pod in &pods {
            let scope = batch.scope(Scope::default());
            report_pod(&mut batch, scope, pod, &PodFacts::default(), &Totals::default(), (scope, &[]));
        }
        let since = |later: Duration, earlier| later.saturating_sub(earlier);
        costs.push((since(read, begun), since(reported, read), since(own_time(), reported)));
    }
    let median = |of: fn(&(Duration, Duration, Duration)) -> Duration| {
        let mut times: Vec<_> = costs.iter().map(of).collect();
        times.sort();
        times[ROUNDS / 2] / CONTAINERS as u32
    };
    let (read, told, of_pod) = (median(|c| c.0), median(|c| c.1), median(|c| c.2));
    println!("container: read {read:?}, report {told:?}, {points} series; pod: read and report {of_pod:?}");
    let most = Duration::from_micros(120);
    assert!(read + told <= most, "expected at most {most:?} of CPU time for a container, took {:?}", read + told);
}
