//! Readying a host: finding its trees, agentd's own directories in them, and turning controllers on.

use std::os::fd::OwnedFd;
use std::sync::Mutex;

use rustix::io::Errno;

use super::driver::{Driver, NAME, Place, V1};
use super::files::Tree;
use super::hierarchy::{Controller, Layout, Placement};
use crate::IsolatorError;

impl Driver {
    /// Finds the host's trees and readies agentd's directories below `parent` (relative to each tree's mount): the
    /// instance's name, or the cgroup that systemd delegated, in whose `supervisor` agentd is then. If whoever started
    /// agentd put it directly into `parent`, everything there is moved into `<parent>/supervisor` first.
    pub fn detect(parent: &str) -> Result<Self, IsolatorError> {
        let parent = parent.trim_matches('/');
        if parent.is_empty() || parent.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return Err(IsolatorError::new(
                NAME,
                format!("cgroup parent '{parent}' is not a path of names below the root; expected e.g. 'agentd'"),
            ));
        }
        let layout = Layout::discover().map_err(|e| IsolatorError::io(NAME, "cannot read /proc/self/mountinfo", e))?;
        let Some(mount) = &layout.unified else {
            return Err(IsolatorError::new(
                NAME,
                "no cgroup2 file system is mounted; mount one beside the v1 hierarchies with \
                 'mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified', \
                 or boot with systemd.unified_cgroup_hierarchy=1",
            ));
        };
        let open = |mount: &std::path::Path| {
            Tree::open(mount)
                .map_err(|e| IsolatorError::io(NAME, format!("cannot open the cgroup tree {}", mount.display()), e))
        };
        let unified = open(mount)?;
        let mut v1: Vec<V1> = Vec::new();
        let mut places = [Place::Absent; 6];
        for controller in Controller::ALL {
            places[controller as usize] = match layout.placement(controller) {
                Placement::V2 => Place::V2,
                Placement::Absent => Place::Absent,
                Placement::V1(mount) => {
                    let known = v1.iter().position(|known| known.tree.mount() == mount);
                    let index = known.unwrap_or(v1.len());
                    if known.is_none() {
                        v1.push(V1 { tree: open(mount)?, always: false });
                    }
                    v1[index].always |= controller.always();
                    Place::V1(index)
                }
            };
        }
        let driver = Self { layout, parent: parent.to_owned(), unified, v1, places, sums: Mutex::new(()) };
        driver.ready_parent()?;
        Ok(driver)
    }

    /// Makes `<parent>/pods` everywhere it is needed and turns controllers on.
    fn ready_parent(&self) -> Result<(), IsolatorError> {
        let pods = self.pods();
        for tree in self.always() {
            tree.mkdir_all(&pods).map_err(|e| tree.error(NAME, "make", &pods, e))?;
        }
        self.leave_parent()?;
        for controller in Controller::ALL {
            if controller.always() && self.is_v2(controller) {
                self.enable(controller, &pods)?;
            }
        }
        self.weigh_parent();
        Ok(())
    }

    /// Moves every process that is directly in `parent` of the cgroup2 tree into `<parent>/supervisor`, if agentd is
    /// one of them: a cgroup with processes cannot hand controllers to those below it.
    fn leave_parent(&self) -> Result<(), IsolatorError> {
        let own = std::fs::read_to_string("/proc/self/cgroup")
            .map_err(|e| IsolatorError::io(NAME, "cannot read /proc/self/cgroup", e))?;
        let inside = own.lines().any(|line| line.strip_prefix("0::/") == Some(self.parent.as_str()));
        if !inside {
            return Ok(());
        }
        let supervisor = format!("{}/supervisor", self.parent);
        self.unified.mkdir(&supervisor).map_err(|e| self.unified.error(NAME, "make", &supervisor, e))?;
        let from = format!("{}/cgroup.procs", self.parent);
        let to = format!("{supervisor}/cgroup.procs");
        let listed = self.unified.read(&from).map_err(|e| self.unified.error(NAME, "read", &from, e))?;
        for pid in listed.lines() {
            match self.unified.write(&to, pid) {
                // a process that has just ended
                Ok(()) | Err(Errno::SRCH) => {}
                Err(e) => return Err(self.unified.error(NAME, &format!("write process {pid} to"), &to, e)),
            }
        }
        Ok(())
    }

    /// Without systemd nobody else sets the weight of `<parent>`: pods together weigh as much as one busy process on
    /// each CPU, rather than one process in all. Only a matter of fairness, so a refusal is passed over.
    fn weigh_parent(&self) {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
        let own = !self.parent.contains('/');
        for path in [own.then(|| self.parent.clone()), Some(self.pods())].into_iter().flatten() {
            let result = match self.places[Controller::Cpu as usize] {
                Place::V2 => {
                    self.unified.write(&format!("{path}/cpu.weight"), &(100 * cpus).clamp(1, 10_000).to_string())
                }
                Place::V1(index) => self.v1[index]
                    .tree
                    .write(&format!("{path}/cpu.shares"), &(1024 * cpus).clamp(2, 262_144).to_string()),
                Place::Absent => Ok(()),
            };
            if let Err(error) = result {
                tracing::debug!(path, %error, "cannot set the CPU weight of the pods together");
            }
        }
    }

    /// Turns a controller on in the cgroup2 tree from the root down to `path`, so that what is directly below `path`
    /// has its files.
    pub(super) fn enable(&self, controller: Controller, path: &str) -> Result<(), IsolatorError> {
        let name = controller.name();
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for dir in std::iter::once("").chain(ends.map(|end| &path[..end])) {
            let file = if dir.is_empty() {
                "cgroup.subtree_control".to_owned()
            } else {
                format!("{dir}/cgroup.subtree_control")
            };
            let on = self.unified.read(&file).map_err(|e| self.unified.error(NAME, "read", &file, e))?;
            if on.split_whitespace().any(|word| word == name) {
                continue;
            }
            self.unified.write(&file, &format!("+{name}")).map_err(|e| {
                let why = match e {
                    Errno::BUSY => {
                        " (processes sit in that cgroup itself; start agentd in a cgroup of its own, or under systemd \
                         with Delegate=yes)"
                    }
                    Errno::NOENT => " (the cgroup above does not hand this controller down; enable it there)",
                    _ => "",
                };
                self.unified.error(NAME, &format!("enable controller {name}{why} in"), &file, e)
            })?;
        }
        Ok(())
    }

    /// Makes `<parent>/launchers` for the zygote in each tree that containers always use, and opens the cgroup2 one.
    pub fn launcher_cgroup(&self) -> Result<OwnedFd, IsolatorError> {
        let path = format!("{}/launchers", self.parent);
        for tree in self.always() {
            tree.mkdir_all(&path).map_err(|e| tree.error(NAME, "make", &path, e))?;
        }
        self.unified.open_dir(&path).map_err(|e| self.unified.error(NAME, "open", &path, e))
    }

    /// Moves the zygote into `<parent>/launchers` of each tree that containers always use. Pod-inits inherit its v1
    /// cgroups by fork.
    pub fn attach_launcher(&self, pid: i32) -> Result<(), IsolatorError> {
        let file = format!("{}/launchers/cgroup.procs", self.parent);
        for tree in self.always() {
            tree.write(&file, &pid.to_string())
                .map_err(|e| tree.error(NAME, &format!("write process {pid} to"), &file, e))?;
        }
        Ok(())
    }
}
