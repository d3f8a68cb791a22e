//! The driver: which trees there are, the directories of pods and containers in them, and who is moved into which.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::io::Errno;

use super::files::Tree;
use super::hierarchy::{Controller, Layout, Mode, Placement};
use crate::IsolatorError;

/// Name of this module in errors.
pub(super) const NAME: &str = "cgroup";

/// Where a controller is, by index of the v1 tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    V2,
    V1(usize),
    Absent,
}

/// A v1 hierarchy.
#[derive(Debug)]
pub(super) struct V1 {
    pub(super) tree: Tree,
    /// Whether every container has a cgroup here.
    pub(super) always: bool,
}

/// The host's cgroup trees with agentd's part of them. Each method blocks for as long as the kernel does; a write to
/// `cgroup.procs` ([`Driver::attach`]) may stall for 4–22 ms on an idle host.
#[derive(Debug)]
pub struct Driver {
    layout: Layout,
    parent: String,
    pub(super) unified: Tree,
    pub(super) v1: Vec<V1>,
    places: [Place; 6],
    /// Held while sums over several cgroups are formed and written.
    pub(super) sums: Mutex<()>,
}

/// The cgroup of a pod's instance.
#[derive(Debug)]
pub struct SandboxCgroup {
    /// Id of the instance.
    pub id: String,
    /// The cgroup2 directory that pod-init starts in (`CLONE_INTO_CGROUP`).
    pub init_dir: OwnedFd,
}

/// The cgroup of a container.
#[derive(Debug)]
pub struct ContainerCgroup {
    instance: String,
    slot: u32,
    path: String,
    init: OwnedFd,
    id: u64,
    init_id: u64,
    /// Bit n: has a cgroup in the on-demand v1 tree n.
    on_demand: AtomicU8,
}

impl ContainerCgroup {
    /// Id of the pod's instance.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Index of the container in its pod.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// Its path below each tree's mount, e.g. `agentd/pods/<id>/c0`.
    pub fn cgroup_path(&self) -> &str {
        &self.path
    }

    /// The cgroup2 directory that its processes start in (`CLONE_INTO_CGROUP`).
    pub fn init_dir(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.init)
    }

    /// Id (inode) of the container's cgroup2 directory, the ancestor of all its processes' cgroups.
    pub fn cgroup_id(&self) -> u64 {
        self.id
    }

    /// Id (inode) of the cgroup2 directory below it in which its processes are; what
    /// `bpf_get_current_cgroup_id` gives for them.
    pub fn init_cgroup_id(&self) -> u64 {
        self.init_id
    }
}

impl Driver {
    /// Finds the host's trees and readies agentd's directories below `parent` (relative to each tree's mount): the
    /// instance's name, or the cgroup that systemd delegated. If agentd itself sits directly in `parent`, everything
    /// there is moved into `<parent>/supervisor` first.
    pub fn detect(parent: &str) -> Result<Self, IsolatorError> {
        let parent = parent.trim_matches('/');
        if parent.is_empty() || parent.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return Err(IsolatorError::new(
                NAME,
                format!("cgroup parent '{parent}' is not a path of names below the root; expected e.g. 'agentd'"),
            ));
        }
        let layout =
            Layout::discover().map_err(|e| IsolatorError::io(NAME, "cannot read /proc/self/mountinfo", e))?;
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
                    let index = match v1.iter().position(|known| known.tree.mount() == mount) {
                        Some(index) => index,
                        None => {
                            v1.push(V1 { tree: open(mount)?, always: false });
                            v1.len() - 1
                        }
                    };
                    v1[index].always |= controller.always();
                    Place::V1(index)
                }
            };
        }
        let driver = Self { layout, parent: parent.to_owned(), unified, v1, places, sums: Mutex::new(()) };
        driver.ready_parent()?;
        Ok(driver)
    }

    /// What kind of host this is.
    pub fn mode(&self) -> Mode {
        self.layout.mode()
    }

    /// The host's trees.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The directory that all of agentd's cgroups are below, relative to each tree's mount.
    pub fn parent(&self) -> &str {
        &self.parent
    }

    /// Whether the host has `controller` at all.
    pub fn has(&self, controller: Controller) -> bool {
        self.places[controller as usize] != Place::Absent
    }

    /// Whether `controller` is used in the cgroup2 tree.
    pub fn is_v2(&self, controller: Controller) -> bool {
        self.places[controller as usize] == Place::V2
    }

    /// Trees in which every container has a directory, cgroup2 first.
    fn always(&self) -> impl Iterator<Item = &Tree> {
        std::iter::once(&self.unified).chain(self.v1.iter().filter(|v1| v1.always).map(|v1| &v1.tree))
    }

    /// Every tree, cgroup2 first.
    pub(super) fn trees(&self) -> impl Iterator<Item = &Tree> {
        std::iter::once(&self.unified).chain(self.v1.iter().map(|v1| &v1.tree))
    }

    /// The tree of a controller, none if the host lacks it.
    pub(super) fn tree(&self, controller: Controller) -> Option<&Tree> {
        match self.places[controller as usize] {
            Place::V2 => Some(&self.unified),
            Place::V1(index) => Some(&self.v1[index].tree),
            Place::Absent => None,
        }
    }

    /// `<parent>/pods`.
    pub(super) fn pods(&self) -> String {
        format!("{}/pods", self.parent)
    }

    /// The path of a pod, after a look at its id.
    pub(super) fn sandbox_path(&self, id: &str) -> Result<String, IsolatorError> {
        let fine = !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if fine {
            Ok(format!("{}/pods/{id}", self.parent))
        } else {
            Err(IsolatorError::new(NAME, format!("instance id '{id}' is not 1 to 64 letters, digits and hyphens")))
        }
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
                Place::V2 => self
                    .unified
                    .write(&format!("{path}/cpu.weight"), &(100 * cpus).clamp(1, 10_000).to_string()),
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

    /// Makes the directories of a pod's instance; existing ones are fine.
    pub fn create_sandbox(&self, id: &str) -> Result<SandboxCgroup, IsolatorError> {
        let path = self.sandbox_path(id)?;
        for tree in self.always() {
            tree.mkdir_all(&path).map_err(|e| tree.error(NAME, "make", &path, e))?;
        }
        // Before pod-init is there: with processes below, turning a controller on waits for an RCU grace period.
        let wanted: Vec<&str> = Controller::ALL
            .into_iter()
            .filter(|c| c.always() && self.is_v2(*c))
            .map(Controller::name)
            .collect();
        if !wanted.is_empty() {
            let value = wanted.iter().map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ");
            let file = format!("{path}/cgroup.subtree_control");
            self.unified
                .write(&file, &value)
                .map_err(|e| self.unified.error(NAME, &format!("write '{value}' to"), &file, e))?;
        }
        let init = format!("{path}/init");
        self.unified.mkdir(&init).map_err(|e| self.unified.error(NAME, "make", &init, e))?;
        let init_dir = self.unified.open_dir(&init).map_err(|e| self.unified.error(NAME, "open", &init, e))?;
        Ok(SandboxCgroup { id: id.to_owned(), init_dir })
    }

    /// Makes the directories of a container below those of its pod; existing ones are fine.
    pub fn create_container(&self, id: &str, slot: u32) -> Result<ContainerCgroup, IsolatorError> {
        let path = format!("{}/c{slot}", self.sandbox_path(id)?);
        for tree in self.always() {
            tree.mkdir(&path).map_err(|e| tree.error(NAME, "make", &path, e))?;
        }
        let init = format!("{path}/init");
        self.unified.mkdir(&init).map_err(|e| self.unified.error(NAME, "make", &init, e))?;
        self.opened(id, slot, path, 0)
    }

    /// Opens the directories of a container that was made before; an error if they are gone.
    pub fn container(&self, id: &str, slot: u32) -> Result<ContainerCgroup, IsolatorError> {
        let path = format!("{}/c{slot}", self.sandbox_path(id)?);
        let on_demand = self
            .v1
            .iter()
            .enumerate()
            .filter(|(_, v1)| !v1.always && v1.tree.exists(&path))
            .fold(0, |bits, (index, _)| bits | 1 << index);
        self.opened(id, slot, path, on_demand)
    }

    fn opened(&self, id: &str, slot: u32, path: String, on_demand: u8) -> Result<ContainerCgroup, IsolatorError> {
        let leaf = format!("{path}/init");
        let init = self.unified.open_dir(&leaf).map_err(|e| self.unified.error(NAME, "open", &leaf, e))?;
        let stat = |path: &str| self.unified.inode(path).map_err(|e| self.unified.error(NAME, "stat", path, e));
        let (cgroup_id, init_id) = (stat(&path)?, stat(&leaf)?);
        Ok(ContainerCgroup {
            instance: id.to_owned(),
            slot,
            path,
            init,
            id: cgroup_id,
            init_id,
            on_demand: AtomicU8::new(on_demand),
        })
    }

    /// Moves a process into the container's cgroups of the v1 trees: those that every container has, and those on
    /// demand that it has so far. Does nothing on a host with cgroup v2 only. May stall for 4–22 ms.
    pub fn attach(&self, container: &ContainerCgroup, pid: i32) -> Result<(), IsolatorError> {
        for v1 in self.v1.iter().filter(|v1| v1.always) {
            Self::attach_in(&v1.tree, container, pid)?;
        }
        self.attach_on_demand(container, pid)
    }

    /// Moves a process into the cgroups that `prepare` of an isolator made on demand (cpuset, blkio, hugetlb of v1).
    /// To be called once more after all `prepare`s for a process that was attached before; free if there are none.
    pub fn attach_on_demand(&self, container: &ContainerCgroup, pid: i32) -> Result<(), IsolatorError> {
        let bits = container.on_demand.load(Ordering::Acquire);
        for (index, v1) in self.v1.iter().enumerate() {
            if bits & (1 << index) != 0 {
                Self::attach_in(&v1.tree, container, pid)?;
            }
        }
        Ok(())
    }

    pub(super) fn attach_in(tree: &Tree, container: &ContainerCgroup, pid: i32) -> Result<(), IsolatorError> {
        let file = format!("{}/cgroup.procs", container.path);
        tree.write(&file, &pid.to_string())
            .map_err(|e| tree.error(NAME, &format!("write process {pid} to"), &file, e))
    }

    /// Readies a controller that containers use on demand for this one, and gives its tree. Turning it on in the
    /// cgroup2 tree, the first time for a pod that runs, may stall for some milliseconds.
    pub(super) fn demand(
        &self,
        isolator: &'static str,
        container: &ContainerCgroup,
        controller: Controller,
    ) -> Result<&Tree, IsolatorError> {
        match self.places[controller as usize] {
            Place::Absent => Err(self.absent(isolator, controller)),
            Place::V2 => {
                let pod = self.sandbox_path(&container.instance)?;
                self.enable(controller, &pod)?;
                Ok(&self.unified)
            }
            Place::V1(index) => {
                let V1 { tree, always } = &self.v1[index];
                if !always {
                    tree.mkdir_all(&container.path).map_err(|e| tree.error(isolator, "make", &container.path, e))?;
                    container.on_demand.fetch_or(1 << index, Ordering::AcqRel);
                }
                Ok(tree)
            }
        }
    }

    /// The tree of a controller, or an error that says what to do.
    pub(super) fn need(&self, isolator: &'static str, controller: Controller) -> Result<&Tree, IsolatorError> {
        self.tree(controller).ok_or_else(|| self.absent(isolator, controller))
    }

    /// The sentence for a controller that the host lacks.
    pub(super) fn absent_message(&self, controller: Controller) -> String {
        let kernel = if controller == Controller::Memory { "; boot without cgroup_disable=memory" } else { "" };
        format!(
            "this host has no {name} controller; mount the v1 hierarchy ('mount -t cgroup -o {v1} cgroup DIR') or \
             leave it to cgroup2{kernel}",
            name = controller.name(),
            v1 = controller.v1_name(),
        )
    }

    fn absent(&self, isolator: &'static str, controller: Controller) -> IsolatorError {
        IsolatorError::new(isolator, self.absent_message(controller))
    }
}
