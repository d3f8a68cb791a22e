//! Cgroups: which hierarchy has which controller, and what the cgroup2 tree can do.

use std::path::{Path, PathBuf};

use super::clone::Probe;
use super::process::running;
use super::{Check, read};
use crate::config::Config;

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub path: PathBuf,
    pub unified: bool,
    pub read_only: bool,
    /// Options of the superblock: for v1 its controllers too.
    pub options: Vec<String>,
}

/// Controllers, their names on v1, and what is lost without them; the first three are needed.
const CONTROLLERS: [(&str, &str, &str); 6] = [
    ("cpu", "cpu", "pods: their CPU cannot be limited"),
    ("memory", "memory", "pods: their memory cannot be limited"),
    ("pids", "pids", "pods: their processes cannot be limited"),
    ("cpuset", "cpuset", "exclusive cores"),
    ("io", "blkio", "I/O limits and weights"),
    ("hugetlb", "hugetlb", "limits on huge pages"),
];

/// The hierarchies in a `mountinfo`.
pub(super) fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (mount, superblock) = line.split_once(" - ")?;
            let mut superblock = superblock.split(' ');
            let unified = match superblock.next()? {
                "cgroup" => false,
                "cgroup2" => true,
                _ => return None,
            };
            let options: Vec<String> = superblock.nth(1)?.split(',').map(str::to_owned).collect();
            let mut mount = mount.split(' ').skip(4);
            let path = PathBuf::from(mount.next()?.replace("\\040", " "));
            let read_only = mount.next()?.split(',').any(|option| option == "ro") || options.iter().any(|o| o == "ro");
            Some(Hierarchy { path, unified, read_only, options })
        })
        .collect()
}

pub(super) fn checks(_config: &Config) -> Vec<Check> {
    let hierarchies = hierarchies(&read("/proc/self/mountinfo").unwrap_or_default());
    let unified = hierarchies.iter().find(|hierarchy| hierarchy.unified);
    let available = unified.and_then(|unified| read(unified.path.join("cgroup.controllers"))).unwrap_or_default();
    let mut checks = mode(&hierarchies, &available);
    if let Some(unified) = unified {
        checks.extend(tree(unified));
    }
    checks.push(favordynmods(&hierarchies));
    checks
}

/// The mode, and where each controller is.
pub(super) fn mode(hierarchies: &[Hierarchy], available: &str) -> Vec<Check> {
    let unified = hierarchies.iter().find(|hierarchy| hierarchy.unified);
    let legacy = |name: &str| {
        hierarchies.iter().find(|hierarchy| !hierarchy.unified && hierarchy.options.iter().any(|option| option == name))
    };
    let any_legacy = CONTROLLERS.iter().any(|(_, name, _)| legacy(name).is_some());
    let mut checks = vec![match (unified, any_legacy) {
        (Some(unified), false) => Check::ok("cgroup", format!("v2 at {}", unified.path.display())),
        (Some(unified), true) => {
            Check::ok("cgroup", format!("hybrid: v1 controllers, cgroup2 tree at {}", unified.path.display()))
        }
        (None, true) => Check::fail(
            "cgroup",
            "v1 without a cgroup2 tree",
            "pods: identity, freezing and killing need the cgroup2 tree",
            "boot with systemd.unified_cgroup_hierarchy=1, or: mkdir /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified",
        ),
        (None, false) => Check::fail(
            "cgroup",
            "none mounted",
            "pods",
            "mount -t cgroup2 none /sys/fs/cgroup, and run agentd where it sees it",
        ),
    }];
    for (index, (name, legacy_name, lost)) in CONTROLLERS.iter().enumerate() {
        let check_name = format!("cgroup/{name}");
        let place = if available.split_whitespace().any(|word| word == *name) {
            unified.map(|unified| (unified, format!("v2 at {}", unified.path.display())))
        } else {
            legacy(legacy_name).map(|hierarchy| (hierarchy, format!("v1 at {}", hierarchy.path.display())))
        };
        checks.push(match place {
            Some((hierarchy, found)) if hierarchy.read_only => Check::fail(
                check_name,
                format!("{found}, read-only"),
                lost,
                format!("mount -o remount,rw {}", hierarchy.path.display()),
            ),
            Some((_, found)) => Check::ok(check_name, found),
            None => {
                let cure = format!(
                    "use a kernel with the {name} controller, and boot without cgroup_disable={name}{}",
                    if *name == "memory" { " (some need cgroup_enable=memory)" } else { "" }
                );
                if index < 3 {
                    Check::fail(check_name, "absent", lost, cure)
                } else {
                    Check::warn(check_name, "absent", lost, cure)
                }
            }
        });
    }
    checks
}

/// What the cgroup2 tree can do.
fn tree(unified: &Hierarchy) -> Vec<Check> {
    let own = read("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").trim_start_matches('/').to_owned();
    let own = unified.path.join(own);
    // The root lacks these files, so a cgroup below it is looked at: our own, or any other.
    let sample = if own == unified.path || !own.is_dir() { first_child(&unified.path) } else { Some(own.clone()) };
    let mut checks = Vec::new();
    for (file, since, lost) in
        [("cgroup.kill", (5, 14), "ending a pod in one step"), ("cgroup.freeze", (5, 2), "freezing pods")]
    {
        let there = sample.as_ref().map_or(running() >= since, |sample| sample.join(file).exists());
        checks.push(if there {
            Check::ok(file, if sample.is_some() { "present" } else { "expected by the kernel's version" })
        } else {
            Check::fail(file, "absent", lost, format!("use Linux {}.{} or later", since.0, since.1))
        });
    }
    checks.push(if std::fs::read("/proc/pressure/cpu").is_ok() {
        Check::ok("psi", "present")
    } else {
        Check::warn("psi", "absent", "pressure metrics of pods", "boot with psi=1, on a kernel with CONFIG_PSI")
    });
    let folder = std::fs::File::open(&own);
    checks.push(match folder {
        Ok(folder) => match Probe::start(0, Some(std::os::fd::AsFd::as_fd(&folder))) {
            Ok(_) => Check::ok("clone_into_cgroup", "works"),
            Err(error) => Check::fail(
                "clone_into_cgroup",
                error.to_string(),
                "pods: containers start inside their cgroup",
                "run agentd where it may write to the cgroup2 tree (Delegate=yes under systemd)",
            ),
        },
        Err(error) => Check::fail(
            "clone_into_cgroup",
            format!("{}: {error}", own.display()),
            "pods: containers start inside their cgroup",
            "run agentd in the host's cgroup namespace, with the cgroup2 tree mounted",
        ),
    });
    checks
}

fn first_child(path: &Path) -> Option<PathBuf> {
    std::fs::read_dir(path).ok()?.flatten().map(|entry| entry.path()).find(|path| path.join("cgroup.procs").exists())
}

/// Moving a process between cgroups waits for an RCU grace period, 4 to 22 ms on an idle host, unless the hierarchy was
/// mounted otherwise. On v2 containers are cloned into their cgroup and nothing is moved.
pub(super) fn favordynmods(hierarchies: &[Hierarchy]) -> Check {
    let slow: Vec<&Hierarchy> = hierarchies
        .iter()
        .filter(|hierarchy| !hierarchy.unified && !hierarchy.options.iter().any(|option| option == "favordynmods"))
        .filter(|hierarchy| ["cpu", "memory", "pids"].iter().any(|name| hierarchy.options.iter().any(|o| o == name)))
        .collect();
    if slow.is_empty() {
        return Check::ok("cgroup/favordynmods", "not needed");
    }
    let commands: Vec<String> =
        slow.iter().map(|hierarchy| format!("mount -o remount,favordynmods {}", hierarchy.path.display())).collect();
    Check::warn(
        "cgroup/favordynmods",
        format!("{} v1 hierarchies with slow moves (4 to 22 ms each on an idle host)", slow.len()),
        "nothing; starts and execs that no ready process serves take longer",
        format!(
            "if that matters: {} (forks become a little slower, and it lasts until the next boot)",
            commands.join("; ")
        ),
    )
}
