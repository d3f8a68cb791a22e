//! What one instance of agentd has on the host, as lines that can be compared: processes, mounts, links, packet rules,
//! cgroups, loop devices and files. Nothing of other instances is in it, so tests run side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::host;
use crate::poll::eventually;

/// How long what goes by itself (network namespaces, the refill of the pool) may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A picture: lines, each with the number of its like. Sandboxes that wait in the pool come and go and have random ids, so
/// they all bear the id `ready` here: their number counts, not their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    instance: String,
    dir: PathBuf,
    lines: BTreeMap<String, u32>,
}

impl Snapshot {
    /// Takes a picture of an instance and its `--dev` folder.
    pub fn take(instance: &str, dir: &Path) -> Self {
        let mut lines = BTreeMap::new();
        let ready = ready_sandboxes(dir);
        let mut add = |line: String| *lines.entry(without_ids(&line, &ready)).or_insert(0) += 1;
        processes(instance, &mut add);
        mounts(instance, dir, &mut add);
        for link in host::links_of(instance) {
            add(format!("link {link}"));
        }
        let table = host::nft_table(instance);
        if host::has_nft_table(&table) {
            add(format!("nft table {table}"));
        }
        for tree in host::cgroup_trees() {
            for cgroup in host::cgroups_below(&tree.join(instance)) {
                add(format!("cgroup {}", cgroup.display()));
            }
        }
        for (_, backing) in host::loops_below(dir) {
            add(format!("loop device of {backing}"));
        }
        for folder in ["run", "state/sandboxes", "state/disks", "state/logs", "state/specs"] {
            files(&dir.join(folder), dir, &mut add);
        }
        Self { instance: instance.to_owned(), dir: dir.to_path_buf(), lines }
    }

    /// Number of sandboxes that wait in the pool.
    pub fn ready(&self) -> usize {
        self.lines.get("file run/pods/ready").map_or(0, |count| *count as usize)
    }

    /// The lines, for a test that asks for something particular.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.keys().map(String::as_str)
    }

    /// Lines that begin with `prefix`, e.g. `process `, `cgroup `, `link `, `loop `, `mount `, `file `.
    pub fn with_prefix(&self, prefix: &str) -> Vec<String> {
        self.lines.keys().filter(|line| line.starts_with(prefix)).cloned().collect()
    }

    /// What the second has more (`+`) or less (`-`) than the first; empty when they are alike.
    pub fn difference(&self, later: &Self) -> String {
        let mut text = String::new();
        let keys: BTreeSet<&String> = self.lines.keys().chain(later.lines.keys()).collect();
        for line in keys {
            let count = |snapshot: &Self| i64::from(snapshot.lines.get(line).copied().unwrap_or(0));
            let more = count(later) - count(self);
            if more != 0 {
                let _ = writeln!(text, "{more:+} {line}");
            }
        }
        text
    }

    /// Does something, then waits until the host is as it was in this picture; panics with the difference if it does not
    /// become so.
    #[track_caller]
    pub fn assert_same_after(&self, act: impl FnOnce()) {
        act();
        self.assert_same();
    }

    /// Waits until the host is as it was in this picture; panics with the difference if it does not become so.
    #[track_caller]
    pub fn assert_same(&self) {
        let mut difference = String::new();
        let same = eventually(PATIENCE, || {
            difference = self.difference(&Self::take(&self.instance, &self.dir));
            difference.is_empty()
        });
        assert!(same, "the host is not as it was before:\n{difference}");
    }

    /// Waits until nothing of the instance is left but what its daemon keeps in its state folder.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let mut left = Vec::new();
        let gone = eventually(PATIENCE, || {
            let now = Self::take(&self.instance, &self.dir);
            left = now.lines().filter(|line| !line.starts_with("file ")).map(str::to_owned).collect();
            left.is_empty()
        });
        assert!(gone, "left on the host:\n{}", left.join("\n"));
    }
}

/// Ids of the sandboxes that belong to no pod.
fn ready_sandboxes(dir: &Path) -> BTreeSet<String> {
    let mut ready = BTreeSet::new();
    for entry in fs::read_dir(dir.join("run/pods")).into_iter().flatten().flatten() {
        if !entry.path().join("instance.json").exists() {
            ready.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    ready
}

fn without_ids(line: &str, ready: &BTreeSet<String>) -> String {
    ready.iter().fold(line.to_owned(), |line, id| line.replace(id.as_str(), "ready"))
}

/// Processes in the instance's cgroups, by name and cgroup2 path. The daemon itself is not there unless systemd put it.
fn processes(instance: &str, add: &mut impl FnMut(String)) {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let path = entry.path();
        let is_process = entry.file_name().to_str().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()));
        let Some(cgroups) = is_process.then(|| fs::read_to_string(path.join("cgroup")).ok()).flatten() else {
            continue;
        };
        let within = |path: &str| {
            path.strip_prefix('/')
                .and_then(|path| path.strip_prefix(instance))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let paths: Vec<&str> = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).collect();
        let Some(cgroup) = paths.iter().rev().find(|path| within(path)) else { continue };
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        // the kernel removes the cgroup of a process that has ended, but lists it until it is reaped
        if !name.is_empty() {
            add(format!("process {} in {cgroup}", name.trim_end()));
        }
    }
}

/// Mounts in the namespaces of the test and of process 1 that have to do with the instance. There should be none, ever.
fn mounts(instance: &str, dir: &Path, add: &mut impl FnMut(String)) {
    let dir = format!("{}/", dir.display());
    for namespace in ["self", "1"] {
        let text = fs::read_to_string(format!("/proc/{namespace}/mountinfo")).unwrap_or_default();
        for line in text.lines().filter(|line| line.contains(&dir) || line.contains(instance)) {
            let point = line.split(' ').nth(4).unwrap_or(line);
            add(format!("mount {point} seen by process {namespace}"));
        }
    }
}

/// Names of everything below a folder, but what a daemon rewrites as it runs.
fn files(folder: &Path, base: &Path, add: &mut impl FnMut(String)) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let shown = path.strip_prefix(base).unwrap_or(&path).display().to_string();
        if matches!(shown.as_str(), "run/boot" | "run/lock" | "run/events/before" | "run/events/last") {
            continue;
        }
        add(format!("file {shown}"));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&path, base, add);
        }
    }
}
