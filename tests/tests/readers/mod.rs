//! Others that read containers: perf and bpftrace on a cgroup, podman its own.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use agentd_tests::peer::installed;
use agentd_tests::{eventually, host, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_mins(1);

/// Figures by name.
pub type Figures = BTreeMap<String, f64>;

/// `perf stat` on a cgroup, which counts from its start to [`Perf::end`].
pub struct Perf {
    child: Child,
    control: File,
    answers: File,
    out: PathBuf,
}

impl Perf {
    const EVENTS: &str = "task-clock,context-switches,cpu-migrations,page-faults,major-faults,sched:sched_process_exec,\
                          sched:sched_process_fork";

    /// Begins to count. `cgroup` is below the cgroup2 tree. An error says why it cannot.
    pub fn start(folder: &Path, cgroup: &str) -> Result<Self, String> {
        if !installed("perf") {
            return Err("perf is not installed (Debian package linux-perf)".to_owned());
        }
        let (control, answers) = (pipe(&folder.join("perf-control")), pipe(&folder.join("perf-answers")));
        let (out, log) = (folder.join("perf-out"), folder.join("perf-log"));
        let child = Command::new("perf")
            .args(["stat", "--all-cpus", "-x,", "--delay=-1", "--event", Self::EVENTS, "--for-each-cgroup", cgroup])
            .arg(format!(
                "--control=fifo:{},{}",
                folder.join("perf-control").display(),
                folder.join("perf-answers").display()
            ))
            .arg("--output")
            .arg(&out)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .map_err(|error| format!("perf cannot be started: {error}"))?;
        let mut perf = Self { child, control, answers, out };
        match perf.say("enable") {
            Ok(()) => Ok(perf),
            Err(error) => {
                let said = fs::read_to_string(&log).unwrap_or_default();
                Err(format!(
                    "perf does not count here ({error}): {}",
                    said.split_whitespace().collect::<Vec<_>>().join(" ")
                ))
            }
        }
    }

    fn say(&mut self, word: &str) -> Result<(), String> {
        self.control.write_all(format!("{word}\n").as_bytes()).map_err(|error| error.to_string())?;
        let mut answer = [0; 16];
        let mut ended = false;
        let heard = eventually(Duration::from_secs(10), || {
            ended = !matches!(self.child.try_wait(), Ok(None));
            ended || self.answers.read(&mut answer).is_ok_and(|read| read > 0)
        });
        if heard && !ended { Ok(()) } else { Err(format!("no answer to {word}")) }
    }

    /// Ends it: what it has counted, by event.
    pub fn end(mut self) -> Figures {
        self.say("disable").unwrap();
        interrupt(&mut self.child);
        let text = fs::read_to_string(&self.out).unwrap();
        let lines = text.lines().map(|line| line.split(',').collect::<Vec<_>>()).filter(|words| words.len() > 3);
        lines.filter_map(|words| Some((words[2].to_owned(), words[0].parse().ok()?))).collect()
    }
}

impl Drop for Perf {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A named pipe that is made here, open at both ends so that neither opening nor reading waits.
fn pipe(path: &Path) -> File {
    fifo(path);
    File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap()
}

pub fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").args(["-m", "600"]).arg(path).status().unwrap().success());
}

/// Sends what Ctrl-C sends, and waits for the end.
fn interrupt(child: &mut Child) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    until("it ends", PATIENCE, || child.try_wait().unwrap());
}

/// A program of bpftrace on a cgroup.
pub struct Bpftrace {
    child: Child,
    log: PathBuf,
}

impl Bpftrace {
    /// Begins to count; an error says why it cannot. `pid` is the process that is in the cgroup already.
    pub fn start(folder: &Path, cgroup: &Path, pid: u32) -> Result<Self, String> {
        if !installed("bpftrace") {
            return Err("bpftrace is not installed".to_owned());
        }
        let only = format!("/cgroup == cgroupid(\"{}\")/", cgroup.display());
        let mut program = String::new();
        for (probe, action) in [
            ("sched:sched_switch", "@switches = count();"),
            ("sched:sched_process_exec", "@execs = count();"),
            ("sched:sched_process_fork", "@forks = count();"),
            ("sched:sched_process_exit", "@exits = count();"),
            ("exceptions:page_fault_user", "@faults = count();"),
            // where a request is asked for: who hands it to the device may be somebody else
            ("block:block_bio_queue", "@bytes[args->rwbs] = sum(args->nr_sector * 512);"),
        ] {
            let _ = write!(program, "tracepoint:{probe} {only} {{ {action} }} ");
        }
        // waits for a CPU of the work and of what it makes: from being woken or put off until it runs
        let waits = "tracepoint:sched:sched_process_fork ONLY { @mine[args->child_pid] = 1; } \
            tracepoint:sched:sched_wakeup,tracepoint:sched:sched_wakeup_new \
            /args->pid == PID || @mine[args->pid]/ { @since[args->pid] = nsecs; } \
            tracepoint:sched:sched_switch { \
            if ((args->prev_pid == PID || @mine[args->prev_pid]) && (args->prev_state == 0 || args->prev_state == 256)) \
            { @since[args->prev_pid] = nsecs; } \
            if (@since[args->next_pid]) { @waited = sum(nsecs - @since[args->next_pid]); @waits = count(); \
            delete(@since[args->next_pid]); } } \
            END { clear(@mine); clear(@since); } ";
        program.push_str(&waits.replace("ONLY", &only).replace("PID", &pid.to_string()));
        // output is looked at once every probe is in place
        program.push_str("interval:ms:100 { printf(\"counting\\n\"); }");
        let log = folder.join("bpftrace-log");
        let file = File::create(&log).unwrap();
        let child = Command::new("bpftrace")
            .args(["-B", "line", "-e", &program])
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .map_err(|error| format!("bpftrace cannot be started: {error}"))?;
        let mut bpftrace = Self { child, log };
        let ended = |bpftrace: &mut Self| !matches!(bpftrace.child.try_wait(), Ok(None));
        let counts =
            eventually(Duration::from_secs(30), || bpftrace.told().contains("counting\n") || ended(&mut bpftrace));
        if counts && !ended(&mut bpftrace) {
            return Ok(bpftrace);
        }
        Err(format!("bpftrace does not run here: {}", bpftrace.told().split_whitespace().collect::<Vec<_>>().join(" ")))
    }

    fn told(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends it: what it has counted, by name.
    pub fn end(mut self) -> Figures {
        interrupt(&mut self.child);
        let told = self.told();
        let mut found = Figures::new();
        for (name, value) in told.lines().filter_map(|line| line.strip_prefix('@')?.split_once(": ")) {
            // keys that differ only in what comes after the end of their text are shown alike
            *found.entry(name.to_owned()).or_default() += value.parse().unwrap_or(0.0);
        }
        found
    }
}

impl Drop for Bpftrace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// podman with storage and cgroups of its own.
pub struct Podman {
    folder: tempfile::TempDir,
    cgroup: String,
}

impl Podman {
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("agentd-test-podman-").tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        // no limit is above what this process may have, and no lock is shared with other users of podman
        let config = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n\
                      [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nlock_type = \"file\"\n";
        fs::write(path("containers.conf"), config).unwrap();
        for name in ["proc", "sys", "dev", "usr", "etc", "tmp", "run"] {
            fs::create_dir_all(path("rootfs").join(name)).unwrap();
        }
        for name in ["bin", "lib", "lib64"] {
            std::os::unix::fs::symlink(format!("usr/{name}"), path("rootfs").join(name)).unwrap();
        }
        let cgroup = format!("agentd-test-podman-{}", std::process::id());
        Self { folder, cgroup }
    }

    pub fn run(&self, words: &[&str]) -> Result<String, String> {
        let path = |name: &str| self.folder.path().join(name);
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", path("containers.conf"));
        for (flag, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(flag).arg(path(name));
        }
        // crun, which may be the default, refuses hosts with both kinds of cgroups
        if installed("runc") {
            command.args(["--runtime", "runc"]);
        }
        let output = command.args(["--storage-driver", "vfs"]).args(words).stdin(Stdio::null()).output();
        let output = output.map_err(|error| format!("podman cannot be started: {error}"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(String::from_utf8_lossy(&output.stderr).split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// Starts a program of the host's `/usr` in a container; an error says why podman cannot.
    pub fn start(&self, program: &[&str]) -> Result<(), String> {
        let parent = format!("--cgroup-parent=/{}", self.cgroup);
        let root = self.folder.path().join("rootfs").display().to_string();
        let words = ["run", "--detach", "--name", "work", "--network", "none", &parent, "--cgroups=no-conmon"];
        let rest = ["--volume", "/usr:/usr:ro", "--rootfs", &root];
        self.run(&[&words[..], &rest, program].concat()).map(drop)
    }

    /// Seconds of CPU and bytes of memory, as it tells them to people.
    pub fn stats(&self) -> (f64, f64) {
        let told = self.run(&["stats", "--no-stream", "--format", "json", "work"]).unwrap();
        let told: Value = serde_json::from_str(&told).unwrap();
        let text = |name: &str| told[0][name].as_str().unwrap_or_else(|| panic!("no {name}: {told}")).to_owned();
        let used = text("mem_usage");
        (number(&text("cpu_time"), &[("ms", 1e-3), ("s", 1.0)]), number(used.split(' ').next().unwrap(), UNITS))
    }
}

const UNITS: &[(&str, f64)] = &[("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("B", 1.0)];

/// A number with one of these units.
fn number(text: &str, units: &[(&str, f64)]) -> f64 {
    let found = units.iter().find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor));
    found.unwrap_or_else(|| panic!("podman says {text}"))
}

impl Drop for Podman {
    fn drop(&mut self) {
        if let Err(error) = self.run(&["rm", "--force", "--time", "0", "--all"]) {
            eprintln!("podman rm: {error}");
        }
        let gone = eventually(Duration::from_secs(10), || {
            let left =
                || host::cgroup_trees().into_iter().map(|tree| tree.join(&self.cgroup)).filter(|path| path.is_dir());
            left().flat_map(|path| host::cgroups_below(&path)).for_each(|path| drop(fs::remove_dir(path)));
            left().next().is_none()
        });
        if !gone {
            eprintln!("cgroups {} are left", self.cgroup);
        }
    }
}

#[test]
fn what_podman_tells_people_is_read() {
    assert_eq!(
        (number("74.5MB", UNITS), number("12B", UNITS), number("900ms", &[("ms", 1e-3), ("s", 1.0)])),
        (74.5e6, 12.0, 0.9)
    );
}
