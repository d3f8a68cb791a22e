//! Which cgroup trees a host has and which controller lives in which, read from the text of `/proc/self/mountinfo`.

use std::path::{Path, PathBuf};

/// A controller that agentd sets limits with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Controller {
    /// CPU weight and quota.
    Cpu,
    /// Which CPUs.
    Cpuset,
    /// Memory limit.
    Memory,
    /// Number of processes and threads.
    Pids,
    /// Block I/O (`blkio` in v1).
    Io,
    /// Huge pages.
    Hugetlb,
}

impl Controller {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Cpu, Self::Cpuset, Self::Memory, Self::Pids, Self::Io, Self::Hugetlb];

    /// Its name in `cgroup.controllers`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuset => "cpuset",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Io => "io",
            Self::Hugetlb => "hugetlb",
        }
    }

    /// Its name among the options of a v1 mount.
    pub fn v1_name(self) -> &'static str {
        if self == Self::Io { "blkio" } else { self.name() }
    }

    /// Whether every container gets a cgroup of it, rather than only those that ask.
    pub fn always(self) -> bool {
        matches!(self, Self::Cpu | Self::Memory | Self::Pids)
    }
}

/// Where a controller lives on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// In the cgroup2 tree.
    V2,
    /// In the v1 hierarchy mounted here.
    V1(PathBuf),
    /// Nowhere.
    Absent,
}

/// What kind of host this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Only v1 hierarchies: agentd cannot run here.
    V1,
    /// A cgroup2 tree, and v1 hierarchies with controllers.
    Hybrid,
    /// Only a cgroup2 tree.
    V2,
}

impl Mode {
    /// The word for it: `v1`, `hybrid` or `v2`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::Hybrid => "hybrid",
            Self::V2 => "v2",
        }
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The cgroup trees of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Where the cgroup2 tree is mounted, if it is.
    pub unified: Option<PathBuf>,
    placements: [Placement; 6],
}

impl Layout {
    /// Reads this host's layout. Changes nothing.
    pub fn discover() -> std::io::Result<Self> {
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")?;
        Self::parse(&mountinfo, |unified| std::fs::read_to_string(unified.join("cgroup.controllers")))
    }

    /// Reads a layout from the text of a `mountinfo` file. `controllers` gives the content of `cgroup.controllers` in
    /// the cgroup2 tree mounted at a path.
    pub fn parse(mountinfo: &str, controllers: impl FnOnce(&Path) -> std::io::Result<String>) -> std::io::Result<Self> {
        let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
        // A bind mount of a part of a tree (root other than `/`) is only second choice.
        let pick = |wanted: &dyn Fn(&Mount) -> bool| {
            let mut found: Vec<&Mount> = mounts.iter().filter(|m| wanted(m)).collect();
            found.sort_by_key(|m| m.root != "/");
            found.first().map(|m| m.point.clone())
        };
        let unified = pick(&|m| m.kind == "cgroup2");
        let in_v2 = match &unified {
            Some(path) => controllers(path)?,
            None => String::new(),
        };
        let placements = Controller::ALL.map(|controller| {
            if in_v2.split_whitespace().any(|name| name == controller.name()) {
                return Placement::V2;
            }
            let v1 = pick(&|m| m.kind == "cgroup" && m.options.split(',').any(|o| o == controller.v1_name()));
            v1.map_or(Placement::Absent, Placement::V1)
        });
        Ok(Self { unified, placements })
    }

    /// Where `controller` lives.
    pub fn placement(&self, controller: Controller) -> &Placement {
        &self.placements[controller as usize]
    }

    /// What kind of host this is.
    pub fn mode(&self) -> Mode {
        if self.unified.is_none() {
            Mode::V1
        } else if self.placements.iter().any(|p| matches!(p, Placement::V1(_))) {
            Mode::Hybrid
        } else {
            Mode::V2
        }
    }
}

/// One line of `mountinfo`, of a cgroup file system.
struct Mount {
    root: String,
    point: PathBuf,
    kind: String,
    options: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut file_system = file_system.split(' ');
        let kind = file_system.next()?;
        if kind != "cgroup" && kind != "cgroup2" {
            return None;
        }
        let options = file_system.nth(1)?;
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (mount.next()?, mount.next()?);
        Some(Self {
            root: unescape(root),
            point: PathBuf::from(unescape(point)),
            kind: kind.to_owned(),
            options: options.to_owned(),
        })
    }
}

/// Undoes the octal escapes of `mountinfo` (space, tab, newline, backslash).
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_and_part_mounts_are_understood() {
        let text = "40 30 0:5 /docker/x /part rw - cgroup2 cgroup2 rw\n\
                    41 30 0:5 / /my\\040trees/two rw - cgroup2 cgroup2 rw\n\
                    42 30 0:6 / /a\\134b rw shared:1 master:2 - cgroup none rw,cpuset,cpu\n\
                    garbage\n";
        let layout = Layout::parse(text, |_| Ok(String::new())).unwrap();
        assert_eq!(layout.unified.as_deref(), Some(Path::new("/my trees/two")));
        assert_eq!(layout.placement(Controller::Cpu), &Placement::V1("/a\\b".into()));
        assert_eq!(layout.placement(Controller::Cpuset), &Placement::V1("/a\\b".into()));
        assert_eq!(layout.placement(Controller::Memory), &Placement::Absent);
        assert_eq!(layout.mode(), Mode::Hybrid);
    }
}
