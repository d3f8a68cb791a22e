//! Where the cgroup hierarchies are mounted on this host.

use std::fs;
use std::path::{Path, PathBuf};

/// The mounted hierarchies.
#[derive(Debug, Clone, Default)]
pub struct Hierarchies {
    /// The cgroup2 tree.
    pub unified: Option<PathBuf>,
    /// Controllers of version 1, with their mounts.
    pub v1: Vec<(String, PathBuf)>,
    /// Mounts of version 1 without a controller known here, such as systemd's.
    pub other: Vec<PathBuf>,
}

/// Reads them from the mount table.
pub fn hierarchies() -> Hierarchies {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    parse(&table)
}

fn parse(table: &str) -> Hierarchies {
    let mut found = Hierarchies::default();
    for line in table.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let Some(point) = left.split(' ').nth(4).map(PathBuf::from) else {
            continue;
        };
        let mut right = right.split(' ');
        let kind = right.next();
        let options = right.nth(1).unwrap_or_default();
        match kind {
            Some("cgroup2") => found.unified = found.unified.or(Some(point)),
            Some("cgroup") => {
                let controller = options.split(',').find(|word| CONTROLLERS.contains(word));
                match controller {
                    Some(controller) => found.v1.push((controller.to_owned(), point)),
                    None => found.other.push(point),
                }
            }
            _ => {}
        }
    }
    found
}

const CONTROLLERS: &[&str] = &["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids"];

impl Hierarchies {
    /// Every mount.
    pub fn all(&self) -> impl Iterator<Item = &Path> {
        let v1 = self.v1.iter().map(|(_, path)| path);
        self.unified.iter().chain(v1).chain(&self.other).map(PathBuf::as_path)
    }
}

/// Removes a cgroup and those below it, from the leaves up, or folders that hold only folders. What is already gone is no
/// error.
pub fn remove_empty(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    // a cgroup with processes, or a folder with files, stays, and is found by whoever looks for what was left
    let _ = fs::remove_dir(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_found() {
        let table = "\
30 28 0:26 / /sys/fs/cgroup/cpu rw,relatime shared:1 - cgroup cgroup rw,cpu
31 28 0:27 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
32 28 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
33 28 0:29 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
";
        let found = parse(table);
        assert_eq!(found.unified.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        let names: Vec<_> = found.v1.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["cpu", "memory"]);
        assert_eq!(found.other, [Path::new("/sys/fs/cgroup/systemd")]);
    }
}
