//! Ending, freezing, watching and removing cgroups.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::driver::{ContainerCgroup, Driver, NAME};
use super::files::{key_of, read_all};
use crate::IsolatorError;

impl Driver {
    /// Kills every process of a container, forks in progress included. Nothing there is fine.
    pub fn kill(&self, container: &ContainerCgroup) -> Result<(), IsolatorError> {
        self.kill_path(container.cgroup_path())
    }

    /// Kills every process of a pod, pod-init included. Nothing there is fine.
    pub fn kill_sandbox(&self, id: &str) -> Result<(), IsolatorError> {
        self.kill_path(&self.sandbox_path(id)?)
    }

    fn kill_path(&self, path: &str) -> Result<(), IsolatorError> {
        let file = format!("{path}/cgroup.kill");
        match self.unified.write(&file, "1") {
            Ok(()) | Err(Errno::NODEV) => Ok(()),
            Err(Errno::NOENT) if !self.unified.exists(path) => Ok(()),
            // Linux before 5.14
            Err(Errno::NOENT) => self.kill_each(path),
            Err(e) => Err(self.unified.error(NAME, "write 1 to", &file, e)),
        }
    }

    /// Kills the processes one by one, frozen so that none forks meanwhile.
    fn kill_each(&self, path: &str) -> Result<(), IsolatorError> {
        let freeze = format!("{path}/cgroup.freeze");
        let frozen = self.unified.write(&freeze, "1").is_ok();
        let pids = self.unified.processes(path).map_err(|e| self.unified.error(NAME, "list", path, e));
        let killed = pids.map(|pids| {
            for pid in pids.into_iter().filter_map(Pid::from_raw) {
                // Held by descriptor and looked up again: the number may belong to another process by now.
                let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { continue };
                let still = self.unified.processes(path).is_ok_and(|now| now.contains(&pid.as_raw_nonzero().get()));
                if still {
                    // an error can only mean that it has ended
                    let _ = rustix::process::pidfd_send_signal(&process, Signal::KILL);
                }
            }
        });
        if frozen {
            // a killed process leaves a frozen cgroup; thawing is for what a race left
            let _ = self.unified.write(&freeze, "0");
        }
        killed
    }

    /// Asks the kernel to stop the processes of a container; [`Driver::frozen`] tells when it has.
    pub fn freeze(&self, container: &ContainerCgroup) -> Result<(), IsolatorError> {
        self.set_frozen(container, "1")
    }

    /// Lets the processes of a container run again.
    pub fn thaw(&self, container: &ContainerCgroup) -> Result<(), IsolatorError> {
        self.set_frozen(container, "0")
    }

    fn set_frozen(&self, container: &ContainerCgroup, value: &str) -> Result<(), IsolatorError> {
        let file = format!("{}/cgroup.freeze", container.cgroup_path());
        self.unified.write(&file, value).map_err(|e| self.unified.error(NAME, &format!("write {value} to"), &file, e))
    }

    /// Whether every process of a container is stopped by [`Driver::freeze`].
    pub fn frozen(&self, container: &ContainerCgroup) -> Result<bool, IsolatorError> {
        self.event(container.cgroup_path(), "frozen")
    }

    /// Whether a container has a process that has not ended. False if its cgroup is gone.
    pub fn populated(&self, container: &ContainerCgroup) -> Result<bool, IsolatorError> {
        self.event(container.cgroup_path(), "populated")
    }

    /// Whether a pod has a process that has not ended, pod-init included. False if its cgroup is gone.
    pub fn sandbox_populated(&self, id: &str) -> Result<bool, IsolatorError> {
        self.event(&self.sandbox_path(id)?, "populated")
    }

    fn event(&self, path: &str, key: &str) -> Result<bool, IsolatorError> {
        let file = format!("{path}/cgroup.events");
        match self.unified.read_key(&file, key) {
            Ok(value) => Ok(value == Some(1)),
            Err(Errno::NOENT | Errno::NODEV) => Ok(false),
            Err(e) => Err(self.unified.error(NAME, "read", &file, e)),
        }
    }

    /// Host process ids of a container, in any cgroup below its own.
    pub fn processes(&self, container: &ContainerCgroup) -> Result<Vec<i32>, IsolatorError> {
        let path = container.cgroup_path();
        self.unified.processes(path).map_err(|e| self.unified.error(NAME, "list", path, e))
    }

    /// Waits until a container has no process left. False if it still has some at `deadline`.
    pub fn wait_empty(&self, container: &ContainerCgroup, deadline: Instant) -> Result<bool, IsolatorError> {
        self.wait_path(container.cgroup_path(), deadline)
    }

    /// Waits until a pod has no process left, pod-init included. False if it still has some at `deadline`.
    pub fn wait_sandbox_empty(&self, id: &str, deadline: Instant) -> Result<bool, IsolatorError> {
        self.wait_path(&self.sandbox_path(id)?, deadline)
    }

    fn wait_path(&self, path: &str, deadline: Instant) -> Result<bool, IsolatorError> {
        let file = format!("{path}/cgroup.events");
        let failed = |e| self.unified.error(NAME, "watch", &file, e);
        let events = match self.unified.open_file(&file) {
            Ok(events) => events,
            Err(Errno::NOENT | Errno::NODEV) => return Ok(true),
            Err(e) => return Err(failed(e)),
        };
        loop {
            match read_all(&events) {
                Ok(text) if key_of(&text, "populated") == Some(1) => {}
                Ok(_) | Err(Errno::NODEV | Errno::NOENT) => return Ok(true),
                Err(e) => return Err(failed(e)),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            // The kernel wakes POLLPRI on each change since the last read. A second at most, should a wake be lost.
            let wait = left.min(Duration::from_secs(1));
            let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
            let mut fds = [PollFd::new(&events, PollFlags::PRI)];
            match rustix::event::poll(&mut fds, Some(&wait)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(failed(e)),
            }
        }
    }

    /// Removes a container's cgroups in every tree, those included that it made itself, waiting until `deadline` for
    /// processes that are just ending. Kills nothing. What is gone already is fine.
    pub fn remove_container(&self, id: &str, slot: u32, deadline: Instant) -> Result<(), IsolatorError> {
        self.remove_path(&format!("{}/c{slot}", self.sandbox_path(id)?), deadline)
    }

    /// Removes the cgroups of a pod's instance and all below in every tree, see [`Driver::remove_container`].
    pub fn remove_sandbox(&self, id: &str, deadline: Instant) -> Result<(), IsolatorError> {
        let path = self.sandbox_path(id)?;
        // what every pod has goes by name; the walk below finds the rest
        for tree in self.always() {
            for name in ["c0/init", "c0", "init"] {
                let _ = tree.remove_empty(&format!("{path}/{name}"));
            }
        }
        self.remove_path(&path, deadline)
    }

    fn remove_path(&self, path: &str, deadline: Instant) -> Result<(), IsolatorError> {
        // Every tree gets its try, so that one that is stuck does not keep the rest.
        let mut first = None;
        for tree in self.trees() {
            if let Err(e) = tree.remove(path, deadline) {
                let what = match (e, tree.processes(path)) {
                    (Errno::BUSY, Ok(pids)) => format!("remove (processes {pids:?} are in it; kill them first)"),
                    _ => "remove".to_owned(),
                };
                first.get_or_insert(tree.error(NAME, &what, path, e));
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Ids of all pods' instances that have a cgroup in any tree, for the sweep after a crash.
    pub fn list_sandboxes(&self) -> Result<Vec<String>, IsolatorError> {
        let pods = self.pods();
        let mut ids = BTreeSet::new();
        for tree in self.trees() {
            ids.extend(tree.children(&pods).map_err(|e| tree.error(NAME, "list", &pods, e))?);
        }
        Ok(ids.into_iter().collect())
    }

    /// Slots of all containers of a pod's instance that have a cgroup in any tree.
    pub fn list_containers(&self, id: &str) -> Result<Vec<u32>, IsolatorError> {
        let pod = self.sandbox_path(id)?;
        let mut slots = BTreeSet::new();
        for tree in self.trees() {
            let names = tree.children(&pod).map_err(|e| tree.error(NAME, "list", &pod, e))?;
            slots.extend(names.iter().filter_map(|name| name.strip_prefix('c')?.parse::<u32>().ok()));
        }
        Ok(slots.into_iter().collect())
    }

    /// Removes agentd's own directories, once no pod is left: at the end of tests, and when agentd is removed from a
    /// host. A parent that others use (systemd's) stays. The driver is of no use afterwards.
    pub fn remove_parent(&self, deadline: Instant) -> Result<(), IsolatorError> {
        let left = self.list_sandboxes()?;
        if let Some(id) = left.first() {
            return Err(IsolatorError::new(
                NAME,
                format!("{} pods still have a cgroup below {}, first {id}; remove them first", left.len(), self.pods()),
            ));
        }
        for name in ["pods", "launchers"] {
            self.remove_path(&format!("{}/{name}", self.parent()), deadline)?;
        }
        if self.unified.exists(&format!("{}/supervisor", self.parent())) {
            return Ok(());
        }
        for tree in self.trees() {
            tree.remove_empty(self.parent()).map_err(|e| tree.error(NAME, "remove", self.parent(), e))?;
        }
        Ok(())
    }

    /// Makes the cgroup of one exec into a container and opens it (`CLONE_INTO_CGROUP`). The process also has to be
    /// [attached](Driver::attach) to the container's v1 cgroups.
    pub fn create_exec(&self, container: &ContainerCgroup, name: &str) -> Result<OwnedFd, IsolatorError> {
        let path = exec_path(container, name)?;
        self.unified.mkdir(&path).map_err(|e| self.unified.error(NAME, "make", &path, e))?;
        self.unified.open_dir(&path).map_err(|e| self.unified.error(NAME, "open", &path, e))
    }

    /// Kills what is left of one exec.
    pub fn kill_exec(&self, container: &ContainerCgroup, name: &str) -> Result<(), IsolatorError> {
        self.kill_path(&exec_path(container, name)?)
    }

    /// Removes the cgroup of one exec; see [`Driver::remove_container`].
    pub fn remove_exec(&self, container: &ContainerCgroup, name: &str, deadline: Instant) -> Result<(), IsolatorError> {
        let path = exec_path(container, name)?;
        self.unified.remove(&path, deadline).map_err(|e| self.unified.error(NAME, "remove", &path, e))
    }
}

fn exec_path(container: &ContainerCgroup, name: &str) -> Result<String, IsolatorError> {
    let fine = !name.is_empty()
        && name.len() <= 128
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if fine {
        Ok(format!("{}/exec-{name}", container.cgroup_path()))
    } else {
        Err(IsolatorError::new(
            NAME,
            format!("exec id '{name}' is not 1 to 128 letters, digits, hyphens and underscores"),
        ))
    }
}
