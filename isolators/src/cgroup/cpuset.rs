//! `cgroup/cpuset`: whole cores for containers with `agentd.exclusiveCores`, and a hint at the number of threads.
//!
//! What exclusive means: no other container of this agentd runs on those cores. To that end, from the first exclusive
//! container on, every other container is held to the shared cores: new ones as they are prepared, running ones at the
//! moment when cores are given or taken back. A host without exclusive containers pays nothing. The price for the
//! others is one write for each running container on v2; on v1 the first time also a move of each of its processes
//! (4–22 ms for the first one on an idle host, 0.1 ms for each further). Programs outside of agentd (and pod-inits,
//! which sleep) are not held back: for those the administrator has `isolcpus=`, `CPUAffinity=` or `AllowedCPUs=`.
//! Memory is not bound to a node: the kernel takes it from the node of the CPU that first touches it.

use std::sync::{Arc, Mutex, PoisonError};

use agentd_api::pod::{Container, PodSpec};
use agentd_api::problem::Violation;
use agentd_launcher::plan::ContainerPlan;
use rustix::io::Errno;

use super::allocator::Allocator;
use super::driver::{ContainerCgroup, Driver, absent_message};
use super::files::Tree;
use super::hierarchy::Controller;
use crate::{ContainerContext, Isolator, IsolatorError, Launch};

const NAME: &str = "cgroup/cpuset";

/// What libraries read to learn how many threads to start.
const THREAD_VARIABLES: [&str; 6] = [
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "GOMAXPROCS",
    "RAYON_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
];

/// The isolator `cgroup/cpuset`.
#[derive(Debug)]
pub struct Cpuset {
    driver: Arc<Driver>,
    allocator: Arc<Mutex<Allocator>>,
    /// Held while cpusets are written, so that no container slips through between a look and a write.
    writing: Mutex<()>,
}

impl Cpuset {
    /// With the host's driver, and the allocator that the daemon takes `exclusive_cpus` from.
    pub fn new(driver: Arc<Driver>, allocator: Arc<Mutex<Allocator>>) -> Self {
        Self { driver, allocator, writing: Mutex::new(()) }
    }

    fn with_allocator<T>(&self, act: impl FnOnce(&mut Allocator) -> T) -> T {
        act(&mut self.allocator.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes a container's CPUs, and on v1 moves the processes that it has already.
    fn confine(&self, container: &ContainerCgroup, cpus: &[u32]) -> Result<(), IsolatorError> {
        let tree = self.driver.demand(NAME, container, Controller::Cpuset)?;
        let path = container.cgroup_path();
        let v2 = self.driver.is_v2(Controller::Cpuset);
        if !v2 {
            fill_v1(tree, path)?;
        }
        let file = format!("{path}/cpuset.cpus");
        let list = cpu_list(cpus);
        tree.write(&file, &list).map_err(|e| tree.error(NAME, &format!("write '{list}' to"), &file, e))?;
        if v2 { Ok(()) } else { self.move_v1(tree, container) }
    }

    /// Moves all of a container's processes into its v1 cpuset, until a look finds none outside.
    fn move_v1(&self, tree: &Tree, container: &ContainerCgroup) -> Result<(), IsolatorError> {
        let path = container.cgroup_path();
        for _ in 0..32 {
            let inside = tree.processes(path).map_err(|e| tree.error(NAME, "list", path, e))?;
            let outside: Vec<i32> = self
                .driver
                .processes(container)?
                .into_iter()
                .filter(|pid| inside.binary_search(pid).is_err())
                .collect();
            if outside.is_empty() {
                return Ok(());
            }
            let file = format!("{path}/cgroup.procs");
            for pid in outside {
                match tree.write(&file, &pid.to_string()) {
                    // ended meanwhile
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(e) => return Err(tree.error(NAME, &format!("write process {pid} to"), &file, e)),
                }
            }
        }
        Err(IsolatorError::new(
            NAME,
            format!(
                "processes of {path} fork faster than they can be moved off exclusive cores; restart the container"
            ),
        ))
    }

    /// Holds every container without exclusive cores to the shared ones. `all`: also those that have no cpuset yet.
    fn apply_shared(&self, all: bool) -> Result<(), IsolatorError> {
        let shared = self.with_allocator(|a| a.shared());
        let mut first = None;
        for id in self.driver.list_sandboxes()? {
            for slot in self.driver.list_containers(&id)? {
                if self.with_allocator(|a| a.get(&id, slot)).is_some() {
                    continue;
                }
                // one that is half made or half removed has no process to hold back, and is prepared later if at all
                let Ok(container) = self.driver.container(&id, slot) else { continue };
                let managed = self.driver.tree(Controller::Cpuset).is_some_and(|tree| {
                    tree.read(&format!("{}/cpuset.cpus", container.cgroup_path())).is_ok_and(|t| !t.trim().is_empty())
                });
                if !(all || managed) {
                    continue;
                }
                if let Err(e) = self.confine(&container, &shared)
                    && self.driver.populated(&container).unwrap_or(true)
                {
                    first.get_or_insert(e);
                }
            }
        }
        first.map_or(Ok(()), Err)
    }
}

impl Isolator for Cpuset {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, pod: &PodSpec, violations: &mut Vec<Violation>) {
        if self.driver.has(Controller::Cpuset) {
            return;
        }
        for (i, container) in pod.containers.iter().enumerate() {
            if container.agentd.exclusive_cores {
                violations.push(Violation::new(
                    format!("containers[{i}].agentd.exclusiveCores"),
                    format!("{NAME}: {}", absent_message(Controller::Cpuset)),
                ));
            }
        }
    }

    fn prepare(&self, context: &ContainerContext<'_>, launch: &mut Launch) -> Result<(), IsolatorError> {
        thread_hints(thread_count(context.container, context.exclusive_cpus), &mut launch.plan);
        let own = context.exclusive_cpus;
        if own.is_empty() && !self.with_allocator(|a| a.any_taken()) {
            return Ok(());
        }
        let _held = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if own.is_empty() {
            let shared = self.with_allocator(|a| a.shared());
            return self.confine(context.cgroup, &shared);
        }
        self.with_allocator(|a| a.restore(context.instance, context.slot, own)).map_err(|(instance, slot)| {
            IsolatorError::new(
                NAME,
                format!("CPUs {} belong to container {slot} of {instance} already, wholly or in part", cpu_list(own)),
            )
        })?;
        self.confine(context.cgroup, own)?;
        self.apply_shared(true)
    }

    /// Called after the daemon has released the container's cores in the allocator (if it has not, that is done here).
    fn cleanup(&self, context: &ContainerContext<'_>) -> Result<(), IsolatorError> {
        let had = self.with_allocator(|a| a.release(context.instance, context.slot));
        if !had && context.exclusive_cpus.is_empty() {
            return Ok(());
        }
        let _held = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.apply_shared(false)
    }
}

/// Gives a v1 cpuset and those above it CPUs and memory nodes, without which no process can be moved in.
fn fill_v1(tree: &Tree, path: &str) -> Result<(), IsolatorError> {
    let mut above = String::new();
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    for dir in ends.map(|end| &path[..end]) {
        for name in ["cpuset.cpus", "cpuset.mems"] {
            let file = format!("{dir}/{name}");
            let now = tree.read(&file).map_err(|e| tree.error(NAME, "read", &file, e))?;
            if now.trim().is_empty() {
                let from = if above.is_empty() { name.to_owned() } else { format!("{above}/{name}") };
                let value = tree.read(&from).map_err(|e| tree.error(NAME, "read", &from, e))?;
                let value = value.trim();
                tree.write(&file, value).map_err(|e| tree.error(NAME, &format!("write '{value}' to"), &file, e))?;
            }
        }
        dir.clone_into(&mut above);
    }
    Ok(())
}

/// CPU numbers as the kernel writes them: `0-2,5`.
fn cpu_list(cpus: &[u32]) -> String {
    let mut sorted = cpus.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for cpu in sorted {
        match parts.last_mut() {
            Some((_, end)) if *end + 1 == cpu => *end = cpu,
            _ => parts.push((cpu, cpu)),
        }
    }
    let words: Vec<String> =
        parts.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect();
    words.join(",")
}

/// How many threads a container should start: its exclusive CPUs, else `resources.cpus` rounded up, but no more than
/// its hard limit can run.
pub fn thread_count(container: &Container, exclusive_cpus: &[u32]) -> u32 {
    if !exclusive_cpus.is_empty() {
        return exclusive_cpus.len() as u32;
    }
    let up = |cpus: f64| cpus.ceil().clamp(1.0, 65_536.0) as u32;
    let own = up(container.resources.cpus);
    match container.agentd.cpu.limit {
        Some(limit) if limit > 0.0 => own.min(up(limit)),
        _ => own,
    }
}

/// Tells the common libraries how many threads to start, where the environment does not say so yet. To be called when
/// the plan's environment is otherwise complete.
pub fn thread_hints(threads: u32, plan: &mut ContainerPlan) {
    for name in THREAD_VARIABLES {
        let set =
            plan.env.iter().any(|v| v.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'=')));
        if !set {
            plan.env.push(format!("{name}={threads}").into_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_written_as_the_kernel_reads_them() {
        assert_eq!(cpu_list(&[3, 0, 1, 2, 7, 7]), "0-3,7");
        assert_eq!(cpu_list(&[]), "");
        assert_eq!(cpu_list(&[5]), "5");
    }

    #[test]
    fn hints_leave_alone_what_is_set() {
        let mut plan =
            ContainerPlan { env: vec![b"GOMAXPROCS=9".to_vec(), b"OMP_NUM_THREADSX=1".to_vec()], ..Default::default() };
        thread_hints(3, &mut plan);
        let has = |text: &str| plan.env.iter().any(|v| v == text.as_bytes());
        assert!(has("GOMAXPROCS=9") && !has("GOMAXPROCS=3") && has("OMP_NUM_THREADS=3") && has("RAYON_NUM_THREADS=3"));
        assert_eq!(plan.env.len(), 7);
    }
}
