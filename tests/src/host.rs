//! What tests need to know of the host, and how everything of one instance of agentd is removed from it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::poll::eventually;

/// Why pods cannot be run here, if they cannot.
pub fn privileged() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err(format!("it needs root, and this is uid {}", rustix::process::geteuid().as_raw()));
    }
    if cgroup_trees().iter().all(|tree| !tree.join("cgroup.procs").exists()) {
        return Err("no cgroup tree is mounted".to_owned());
    }
    let probe =
        cgroup_trees().into_iter().next().unwrap_or_default().join(format!("agentd-probe-{}", std::process::id()));
    match fs::create_dir(&probe) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(format!("cgroups cannot be made here ({}: {error})", probe.display()))
        }
        _ => {
            // another thread of this process may have been first
            let _ = fs::remove_dir(&probe);
            Ok(())
        }
    }
}

/// Mount points of every cgroup hierarchy, of both versions.
pub fn cgroup_trees() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut trees = Vec::new();
    for line in mounts.lines() {
        let Some((front, back)) = line.split_once(" - ") else { continue };
        if matches!(back.split(' ').next(), Some("cgroup" | "cgroup2"))
            && let Some(point) = front.split(' ').nth(4)
        {
            trees.push(PathBuf::from(point));
        }
    }
    trees
}

/// The cgroup2 tree.
pub fn unified() -> Option<PathBuf> {
    cgroup_trees().into_iter().find(|tree| tree.join("cgroup.controllers").exists())
}

/// Every cgroup at or below `path`, the deepest first.
pub fn cgroups_below(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(cgroups_below(&entry.path()));
        }
    }
    if path.is_dir() {
        found.push(path.to_path_buf());
    }
    found
}

/// Names of the links of this network namespace whose alias says that `instance` made them.
pub fn links_of(instance: &str) -> Vec<String> {
    let prefix = format!("agentd:{instance}:");
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
        let alias = fs::read_to_string(entry.path().join("ifalias")).unwrap_or_default();
        if alias.starts_with(&prefix) {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found.sort();
    found
}

/// Name of the nft table of an instance.
pub fn nft_table(instance: &str) -> String {
    if instance == "agentd" { instance.to_owned() } else { format!("agentd_{instance}") }
}

/// Whether the host has that nft table.
pub fn has_nft_table(table: &str) -> bool {
    let listed = Command::new("nft").args(["list", "tables", "inet"]).stderr(Stdio::null()).output();
    let wanted = format!("table inet {table}");
    listed.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).lines().any(|line| line == wanted))
}

/// Loop devices backed by files below `dir`, with those files. The kernel shows a file by the mounts of the one who opened
/// it: once that daemon has ended, the path begins at the root of the file system. The folder's own name tells it then.
pub fn loops_below(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let Some(name) = dir.file_name() else { return found };
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        let parts: Vec<_> = Path::new(backing.trim_end()).iter().collect();
        if let Some(at) = parts.iter().position(|part| *part == name) {
            let file = parts[at + 1..].iter().fold(dir.to_path_buf(), |path, part| path.join(part));
            found.push((Path::new("/dev").join(entry.file_name()), file.display().to_string()));
        }
    }
    found.sort();
    found
}

/// Removes everything of an instance of agentd whose daemon has ended: processes, cgroups, links, rules, loop devices,
/// mounts, and its folder. Each step tolerates that there is nothing.
pub fn purge(instance: &str, dir: &Path) {
    let trees = cgroup_trees();
    let all = || trees.iter().flat_map(|tree| cgroups_below(&tree.join(instance))).collect::<Vec<_>>();
    if let Some(unified) = unified() {
        let _ = fs::write(unified.join(instance).join("cgroup.kill"), "1");
    }
    let empty = eventually(Duration::from_secs(20), || {
        for cgroup in all() {
            let _ = fs::remove_dir(cgroup);
        }
        all().is_empty()
    });
    if !empty {
        eprintln!("cgroups of {instance} are left: {:?}", all());
    }
    for link in links_of(instance) {
        let _ = Command::new("ip").args(["link", "delete", &link]).stderr(Stdio::null()).status();
    }
    let table = nft_table(instance);
    if has_nft_table(&table) {
        let _ = Command::new("nft").args(["delete", "table", "inet", &table]).status();
    }
    for point in mounts_below(dir) {
        let _ = rustix::mount::unmount(&point, rustix::mount::UnmountFlags::DETACH);
    }
    for (device, _) in loops_below(dir) {
        let _ = Command::new("losetup").arg("--detach").arg(device).stderr(Stdio::null()).status();
    }
    let gone = eventually(Duration::from_secs(5), || match fs::remove_dir_all(dir) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    });
    if !gone {
        eprintln!("the folder {} could not be removed", dir.display());
    }
}

/// Mount points at or below `dir` in this mount namespace, the last mounted first.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut found: Vec<PathBuf> = points.filter(|point| point.starts_with(dir)).collect();
    found.reverse();
    found
}
