//! The driver: the directories of pods and containers in each tree, and who is moved into which.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};

use super::files::Tree;
use super::hierarchy::{Controller, Layout, Mode};
use crate::IsolatorError;

/// Name of this module in errors.
pub(super) const NAME: &str = "cgroup";

/// Where a controller is, by index of the v1 tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
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
    pub(super) layout: Layout,
    pub(super) parent: String,
    pub(super) unified: Tree,
    pub(super) v1: Vec<V1>,
    pub(super) places: [Place; 6],
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
    pub(super) fn always(&self) -> impl Iterator<Item = &Tree> {
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

    /// Makes the directories of a pod's instance; existing ones are fine.
    pub fn create_sandbox(&self, id: &str) -> Result<SandboxCgroup, IsolatorError> {
        let path = self.sandbox_path(id)?;
        for tree in self.always() {
            tree.mkdir_all(&path).map_err(|e| tree.error(NAME, "make", &path, e))?;
        }
        // Before pod-init is there: with processes below, turning a controller on waits for an RCU grace period.
        let wanted: Vec<&str> =
            Controller::ALL.into_iter().filter(|c| c.always() && self.is_v2(*c)).map(Controller::name).collect();
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

    /// The `tasks` files of the container's cgroups in the v1 trees, open for writing, for a single-threaded process that
    /// joins by itself: writing "0" there moves the writing thread alone, for which the kernel takes no lock of all
    /// thread groups and so waits for no RCU grace period (`cgroup_procs_write_start` in kernel/cgroup/cgroup.c), unlike
    /// [`Driver::attach`]. Empty on a host with cgroup v2 only.
    pub fn task_files(&self, container: &ContainerCgroup) -> Result<Vec<OwnedFd>, IsolatorError> {
        let bits = container.on_demand.load(Ordering::Acquire);
        let wanted = self.v1.iter().enumerate().filter(|(index, v1)| v1.always || bits & (1 << index) != 0);
        wanted
            .map(|(_, V1 { tree, .. })| {
                let file = format!("{}/tasks", container.path);
                tree.open_for_write(&file).map_err(|e| tree.error(NAME, "open", &file, e))
            })
            .collect()
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
        tree.write(&file, &pid.to_string()).map_err(|e| tree.error(NAME, &format!("write process {pid} to"), &file, e))
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
            Place::Absent => Err(absent(isolator, controller)),
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
        self.tree(controller).ok_or_else(|| absent(isolator, controller))
    }
}

/// The sentence for a controller that the host lacks.
pub(super) fn absent_message(controller: Controller) -> String {
    let kernel = if controller == Controller::Memory { "; boot without cgroup_disable=memory" } else { "" };
    format!(
        "this host has no {name} controller; mount the v1 hierarchy ('mount -t cgroup -o {v1} cgroup DIR') or \
         leave it to cgroup2{kernel}",
        name = controller.name(),
        v1 = controller.v1_name(),
    )
}

fn absent(isolator: &'static str, controller: Controller) -> IsolatorError {
    IsolatorError::new(isolator, absent_message(controller))
}
