//! What a health check by command costs in CPU time: that of the daemon and that of everything below the pods' cgroups,
//! divided by the number of checks that were made, less what both use while no checks are made.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::harness::{Measured, Samples};
use super::ours::{self, Network};
use crate::daemon::Daemon;
use crate::mounts::hierarchies;

/// Pods that are checked; each as often as the daemon allows, ten times a second.
const PODS: usize = 4;
/// Length of one measurement.
const WINDOW: Duration = Duration::from_secs(4);
/// Time for what a start leaves to do.
const SETTLE: Duration = Duration::from_secs(1);

/// CPU milliseconds of each check, over some windows.
pub fn measure(daemon: &Daemon, windows: usize) -> Result<Measured, String> {
    let resting = Checked::start(daemon, false)?;
    std::thread::sleep(SETTLE);
    let idle = resting.window(daemon)?;
    resting.remove(daemon)?;

    let checked = Checked::start(daemon, true)?;
    std::thread::sleep(SETTLE);
    let (mut whole, mut own, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..windows {
        let used = checked.window(daemon)?;
        if used.checks == 0 {
            return Err("no check was made".to_owned());
        }
        let checks = used.checks as f64;
        let daemon_part = (used.daemon - idle.daemon).max(0.0) / checks;
        own.push(daemon_part);
        whole.push(daemon_part + (used.pods - idle.pods).max(0.0) / checks);
        rates.push(checks / WINDOW.as_secs_f64());
    }
    checked.remove(daemon)?;
    println!("  {:.0} checks a second", Samples(rates).median());
    Ok(Measured::from([
        ("CPU of one".to_owned(), Samples(whole)),
        ("CPU of one, the daemon's part".to_owned(), Samples(own)),
    ]))
}

/// CPU milliseconds, and the checks that they were used for.
#[derive(Debug, Clone, Copy)]
struct Used {
    daemon: f64,
    pods: f64,
    checks: u64,
}

/// The pods that are checked.
struct Checked {
    ids: Vec<String>,
    /// Files to which each check adds two bytes.
    counts: Vec<PathBuf>,
    /// `cpu.stat` of the pods' cgroups.
    cgroups: Vec<PathBuf>,
}

impl Checked {
    fn start(daemon: &Daemon, checks: bool) -> Result<Self, String> {
        let unified = hierarchies().unified.ok_or("no cgroup2 tree is mounted")?;
        let mut client = daemon.client();
        let mut started = Self { ids: Vec::new(), counts: Vec::new(), cgroups: Vec::new() };
        for number in 0..PODS {
            let id = format!("/check/{number}");
            let mut pod = ours::pod(&id, Network::Isolated, 1, &["/bin/testbox", "hold"]);
            if checks {
                pod["containers"][0]["healthCheck"] = json!({
                    "exec": {"command": {"argv": ["/bin/testbox", "append", "checks", "x"]}},
                    "delaySeconds": 0, "intervalSeconds": 0.1, "timeoutSeconds": 0.09, "maxConsecutiveFailures": 0,
                });
            }
            let answer = client.expect("POST", "/v1/pods?wait=running", pod.to_string().as_bytes(), &[201])?.json()?;
            let instance = &answer["instances"][0];
            let pid = instance["containers"][0]["pid"].as_u64();
            let pid = pid.ok_or_else(|| format!("{id} does not run: {answer}"))?;
            let name = instance["id"].as_str().ok_or_else(|| format!("{id} has no instance: {answer}"))?;
            started.counts.push(PathBuf::from(format!("/proc/{pid}/cwd/checks")));
            started.cgroups.push(unified.join(pod_cgroup(pid, name)?).join("cpu.stat"));
            started.ids.push(id);
        }
        Ok(started)
    }

    /// What is used in a window, and the checks that are made in it.
    fn window(&self, daemon: &Daemon) -> Result<Used, String> {
        let before = self.used(daemon)?;
        std::thread::sleep(WINDOW);
        let after = self.used(daemon)?;
        Ok(Used {
            daemon: after.daemon - before.daemon,
            pods: after.pods - before.pods,
            checks: after.checks - before.checks,
        })
    }

    fn checks(&self) -> u64 {
        // one that was not checked yet has no file
        self.counts.iter().map(|path| fs::metadata(path).map_or(0, |file| file.len() / 2)).sum()
    }

    fn used(&self, daemon: &Daemon) -> Result<Used, String> {
        let pods = self.cgroups.iter().map(|path| group(path)).sum::<Result<f64, String>>()?;
        Ok(Used { daemon: process(daemon.pid())?, pods, checks: self.checks() })
    }

    fn remove(self, daemon: &Daemon) -> Result<(), String> {
        let mut client = daemon.client();
        self.ids.iter().try_for_each(|id| ours::remove(&mut client, id))
    }
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// The cgroup of a whole pod, below which its pod-init is as well: that of its container up to the instance's id.
fn pod_cgroup(pid: u64, instance: &str) -> Result<PathBuf, String> {
    let text = read(Path::new(&format!("/proc/{pid}/cgroup")))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let pod = Path::new(path).ancestors().find(|path| path.ends_with(instance));
    pod.map(Path::to_path_buf).ok_or_else(|| format!("{instance} is not in the cgroup /{path}"))
}

/// CPU milliseconds of a process, its threads that have ended included.
fn process(pid: u32) -> Result<f64, String> {
    let path = PathBuf::from(format!("/proc/{pid}/stat"));
    let text = read(&path)?;
    let words: Vec<&str> = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |index: usize| words.get(index).and_then(|word| word.parse::<f64>().ok());
    let used = ticks(11).zip(ticks(12)).map(|(user, system)| user + system);
    // SAFETY: sysconf has no preconditions.
    let each = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    used.map(|used| used * 1e3 / each as f64).ok_or_else(|| format!("{}: no CPU time in it", path.display()))
}

/// CPU milliseconds of a cgroup and of all that was below it.
fn group(path: &Path) -> Result<f64, String> {
    let text = read(path)?;
    let micros = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse::<f64>().ok());
    micros.map(|micros| micros / 1e3).ok_or_else(|| format!("{}: no usage_usec in it", path.display()))
}
