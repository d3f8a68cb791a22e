//! `cgroup/memory`: the limit from `resources.mem` without swap, protection (`low`) and throttling (`high`).
//!
//! On v1, `low` is `soft_limit_in_bytes`, which counts only when the host as a whole is short, and `high` does not
//! exist. On v2 protection works only as far as every cgroup above has it too, so `low` is summed up to `<parent>`;
//! under systemd's delegation the unit and its slice need `MemoryLow=` of their own, as their limits are the
//! administrator's.

use std::sync::Arc;

use agentd_api::pod::{Container, PodSpec};
use agentd_api::problem::Violation;
use rustix::io::Errno;

use super::driver::{ContainerCgroup, Driver, absent_message};
use super::files::Tree;
use super::hierarchy::Controller;
use crate::{ContainerContext, Isolator, IsolatorError, Launch, Usage};

const NAME: &str = "cgroup/memory";

/// The isolator `cgroup/memory`.
#[derive(Debug)]
pub struct Memory {
    driver: Arc<Driver>,
}

impl Memory {
    /// With the host's driver.
    pub fn new(driver: Arc<Driver>) -> Self {
        Self { driver }
    }

    fn apply(&self, context: &ContainerContext<'_>) -> Result<(), IsolatorError> {
        let tree = self.driver.need(NAME, Controller::Memory)?;
        let container = context.container;
        let limit = limit_bytes(container);
        if self.driver.is_v2(Controller::Memory) {
            self.apply_v2(tree, context.cgroup, container, limit)
        } else {
            apply_v1(tree, context.cgroup, container, limit)
        }
    }

    fn apply_v2(
        &self,
        tree: &Tree,
        cgroup: &ContainerCgroup,
        container: &Container,
        limit: u64,
    ) -> Result<(), IsolatorError> {
        let path = cgroup.cgroup_path();
        // The kernel would kill to get below a new limit; agentd refuses instead, after asking for what can be freed.
        let current = format!("{path}/memory.current");
        let used = || tree.read_number(&current).map_err(|e| tree.error(NAME, "read", &current, e));
        let over = used()?.saturating_sub(limit);
        if over > 0 {
            // EAGAIN: not all of it could be freed; ENOENT: Linux before 5.19. What counts is the next reading.
            let _ = tree.write(&format!("{path}/memory.reclaim"), &over.to_string());
            if used()? > limit {
                return Err(above(tree, path, "memory.current", limit));
            }
        }
        write(tree, &format!("{path}/memory.max"), &limit.to_string())?;
        write_if_there(tree, &format!("{path}/memory.swap.max"), "0")?;
        write_if_there(tree, &format!("{path}/memory.oom.group"), "1")?;
        let high = container.agentd.memory.high.map_or_else(|| "max".to_owned(), |high| bytes(high).to_string());
        write(tree, &format!("{path}/memory.high"), &high)?;
        let low = container.agentd.memory.low.map_or(0, bytes);
        let low_file = format!("{path}/memory.low");
        let before = tree.read_number(&low_file).map_err(|e| tree.error(NAME, "read", &low_file, e))?;
        if before != low {
            write(tree, &low_file, &low.to_string())?;
        }
        if before != low || low != 0 {
            self.sum_low(tree)?;
        }
        Ok(())
    }

    /// Sets `memory.low` of each pod, of `pods` and of an own `<parent>` to the sum of what is below.
    fn sum_low(&self, tree: &Tree) -> Result<(), IsolatorError> {
        let _held = self.driver.sums.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let pods = self.driver.pods();
        let list = |path: &str| tree.children(path).map_err(|e| tree.error(NAME, "list", path, e));
        let mut all = 0_u64;
        for id in list(&pods)? {
            let pod = format!("{pods}/{id}");
            let sum = list(&pod)?
                .iter()
                .filter(|name| name.starts_with('c'))
                .filter_map(|name| tree.read_number(&format!("{pod}/{name}/memory.low")).ok())
                .fold(0, u64::saturating_add);
            // a pod that goes away meanwhile needs none
            write_if_there(tree, &format!("{pod}/memory.low"), &sum.to_string())?;
            all = all.saturating_add(sum);
        }
        write(tree, &format!("{pods}/memory.low"), &all.to_string())?;
        if !self.driver.parent().contains('/') {
            write(tree, &format!("{}/memory.low", self.driver.parent()), &all.to_string())?;
        }
        Ok(())
    }

    /// How many processes of a container were killed for want of memory, since its cgroup was made.
    pub fn oom_kills(&self, container: &ContainerCgroup) -> Result<u64, IsolatorError> {
        let Some(tree) = self.driver.tree(Controller::Memory) else { return Ok(0) };
        let name = if self.driver.is_v2(Controller::Memory) { "memory.events" } else { "memory.oom_control" };
        let file = format!("{}/{name}", container.cgroup_path());
        Ok(tree.read_key(&file, "oom_kill").map_err(|e| tree.error(NAME, "read", &file, e))?.unwrap_or(0))
    }

    /// Highest memory use of a container, bytes; none where the host does not tell (v2 before Linux 5.19).
    pub fn peak(&self, container: &ContainerCgroup) -> Result<Option<u64>, IsolatorError> {
        let Some(tree) = self.driver.tree(Controller::Memory) else { return Ok(None) };
        let name = if self.driver.is_v2(Controller::Memory) { "memory.peak" } else { "memory.max_usage_in_bytes" };
        let file = format!("{}/{name}", container.cgroup_path());
        match tree.read_number(&file) {
            Ok(peak) => Ok(Some(peak)),
            Err(Errno::NOENT) if tree.exists(container.cgroup_path()) => Ok(None),
            Err(e) => Err(tree.error(NAME, "read", &file, e)),
        }
    }
}

impl Isolator for Memory {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, pod: &PodSpec, violations: &mut Vec<Violation>) {
        for (i, container) in pod.containers.iter().enumerate() {
            if !self.driver.has(Controller::Memory) {
                let message = format!("{NAME}: {}", absent_message(Controller::Memory));
                violations.push(Violation::new(format!("containers[{i}].resources.mem"), message));
                continue;
            }
            let (low, v2) = if self.driver.is_v2(Controller::Memory) {
                ("memory.low", true)
            } else {
                ("memory.soft_limit_in_bytes", false)
            };
            let lacks = |tree: &Tree| !tree.exists(&format!("{}/{low}", self.driver.pods()));
            if container.agentd.memory.low.is_some() && self.driver.tree(Controller::Memory).is_some_and(lacks) {
                violations.push(Violation::new(
                    format!("containers[{i}].agentd.memory.low"),
                    format!("{NAME}: this kernel cannot protect memory ({low} is missing); leave low out"),
                ));
            }
            if container.agentd.memory.high.is_some() && !v2 {
                violations.push(Violation::new(
                    format!("containers[{i}].agentd.memory.high"),
                    format!(
                        "{NAME}: the memory controller of this host is in a v1 hierarchy, which cannot throttle; \
                         leave high out, or boot with systemd.unified_cgroup_hierarchy=1"
                    ),
                ));
            }
        }
    }

    fn prepare(&self, container: &ContainerContext<'_>, _launch: &mut Launch) -> Result<(), IsolatorError> {
        self.apply(container)
    }

    fn update(&self, container: &ContainerContext<'_>) -> Result<(), IsolatorError> {
        self.apply(container)
    }

    fn usage(&self, container: &ContainerContext<'_>, usage: &mut Usage) -> Result<(), IsolatorError> {
        let Some(tree) = self.driver.tree(Controller::Memory) else { return Ok(()) };
        let name = if self.driver.is_v2(Controller::Memory) { "memory.current" } else { "memory.usage_in_bytes" };
        let file = format!("{}/{name}", container.cgroup.cgroup_path());
        usage.memory_bytes = tree.read_number(&file).map_err(|e| tree.error(NAME, "read", &file, e))?;
        usage.memory_peak_bytes = self.peak(container.cgroup)?;
        usage.oom_kills = self.oom_kills(container.cgroup)?;
        Ok(())
    }

    fn cleanup(&self, container: &ContainerContext<'_>) -> Result<(), IsolatorError> {
        if container.container.agentd.memory.low.is_none() || !self.driver.is_v2(Controller::Memory) {
            return Ok(());
        }
        // so that the sums above no longer hold what it claimed
        let tree = self.driver.need(NAME, Controller::Memory)?;
        write_if_there(tree, &format!("{}/memory.low", container.cgroup.cgroup_path()), "0")?;
        self.sum_low(tree)
    }
}

fn apply_v1(tree: &Tree, cgroup: &ContainerCgroup, container: &Container, limit: u64) -> Result<(), IsolatorError> {
    let path = cgroup.cgroup_path();
    let memory = format!("{path}/memory.limit_in_bytes");
    let with_swap = format!("{path}/memory.memsw.limit_in_bytes");
    // memory <= memory and swap must hold at each step: when growing, the sum goes first.
    let before = tree.read_number(&with_swap).ok();
    let growing = before.is_some_and(|before| limit > before);
    let order: [(&str, bool); 2] =
        if growing { [(&with_swap, true), (&memory, false)] } else { [(&memory, false), (&with_swap, true)] };
    for (file, may_lack) in order {
        match tree.write(file, &limit.to_string()) {
            Ok(()) => {}
            Err(Errno::NOENT) if may_lack => {}
            Err(Errno::BUSY) => return Err(above(tree, path, "memory.usage_in_bytes", limit)),
            Err(e) => return Err(tree.error(NAME, &format!("write '{limit}' to"), file, e)),
        }
    }
    write_if_there(tree, &format!("{path}/memory.swappiness"), "0")?;
    let soft = container.agentd.memory.low.map_or_else(|| "-1".to_owned(), |low| bytes(low).to_string());
    write_if_there(tree, &format!("{path}/memory.soft_limit_in_bytes"), &soft)
}

fn write(tree: &Tree, file: &str, value: &str) -> Result<(), IsolatorError> {
    tree.write(file, value).map_err(|e| tree.error(NAME, &format!("write '{value}' to"), file, e))
}

/// Like `write`, for files that not every kernel has.
fn write_if_there(tree: &Tree, file: &str, value: &str) -> Result<(), IsolatorError> {
    match tree.write(file, value) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(tree.error(NAME, &format!("write '{value}' to"), file, e)),
    }
}

/// The error for a new limit below what is used.
fn above(tree: &Tree, path: &str, file: &str, limit: u64) -> IsolatorError {
    let used = tree.read_number(&format!("{path}/{file}")).unwrap_or(0);
    IsolatorError::new(
        NAME,
        format!(
            "resources.mem of {:.1} MiB is below the {:.1} MiB that {path} uses and that cannot be freed; the old \
             limit stays; ask for more, or restart the container",
            limit as f64 / MIB,
            used as f64 / MIB
        ),
    )
}

const MIB: f64 = 1024.0 * 1024.0;

/// MiB as bytes, a page at least.
fn bytes(mib: f64) -> u64 {
    ((mib * MIB) as u64).max(4096)
}

/// The limit of a container.
fn limit_bytes(container: &Container) -> u64 {
    bytes(container.resources.mem)
}
