//! The devices of a container: the few nodes that every program expects, and a guard that denies all others.
//!
//! The guard is an eBPF program on the container's cgroup2 directory (see [`agentd_ebpf::device`]), put there before the
//! container's first instruction and gone with the directory. It covers processes started in the container later, too.
//! It allows the nodes of the plan, those of an isolator that ran before (such as GPUs) included, and terminals; so this
//! isolator comes after all that add nodes. Nodes of the plan may also be made, because the launcher makes them from
//! within the container's cgroup; no other node can be made, even with CAP_MKNOD.
//!
//! The devices controller of cgroup v1 is not used: it would need another attachment of every process for the same rules.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use agentd_api::pod::PodSpec;
use agentd_api::problem::Violation;
use agentd_ebpf::device::{self, Access, Program, Rule};
use agentd_launcher::plan::DeviceNode;

use crate::{ContainerContext, Isolator, IsolatorError, Launch};

const NAME: &str = "devices";

/// Name, major and minor number of the nodes that every container has.
const NODES: &[(&str, u32, u32)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Devices without a node in the plan: the console, and the pseudo-terminals of the container's own devpts.
const TERMINALS: &[Rule] = &[
    Rule::character(5, Some(1), Access::READ_WRITE),
    Rule::character(5, Some(2), Access::READ_WRITE),
    Rule::character(136, None, Access::READ_WRITE),
];

/// Most programs kept; more come only from ever new sets of devices.
const MOST_KEPT: usize = 64;

/// Adds the default nodes and attaches the guard.
#[derive(Debug)]
pub struct Devices {
    /// Why no guard can be used on this host, if so.
    unusable: Option<String>,
    kept: Mutex<HashMap<Vec<Rule>, Arc<Program>>>,
}

impl Devices {
    /// The isolator. Loads the guard for the default nodes, and asks on `cgroup`, any cgroup2 directory, whether guards
    /// can be attached.
    pub fn new(cgroup: BorrowedFd<'_>) -> Self {
        let mut isolator = Self { unusable: None, kept: Mutex::new(HashMap::new()) };
        let probe = isolator.program(&default_nodes()).map(drop).and_then(|()| device::query(cgroup).map(drop));
        isolator.unusable = probe.err().map(|e| e.to_string());
        isolator
    }

    /// The guard that allows these nodes and terminals; loaded when it is needed for the first time.
    fn program(&self, nodes: &[DeviceNode]) -> Result<Arc<Program>, device::Error> {
        let rules = rules(nodes);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = kept.get(&rules) {
            return Ok(Arc::clone(program));
        }
        let program = Arc::new(Program::load(&rules)?);
        if kept.len() >= MOST_KEPT {
            kept.clear();
        }
        kept.insert(rules, Arc::clone(&program));
        Ok(program)
    }

    /// Attaches the guard for these nodes to a container's cgroup2 directory, in the place of an older one.
    pub fn guard(&self, cgroup: BorrowedFd<'_>, nodes: &[DeviceNode]) -> Result<(), device::Error> {
        self.program(nodes)?.attach(cgroup)
    }
}

fn default_nodes() -> Vec<DeviceNode> {
    NODES
        .iter()
        .map(|(name, major, minor)| DeviceNode { name: (*name).to_owned(), major: *major, minor: *minor, mode: 0o666 })
        .collect()
}

/// The rules for these nodes, in an order that depends on nothing else.
fn rules(nodes: &[DeviceNode]) -> Vec<Rule> {
    let mut rules = TERMINALS.to_vec();
    rules.extend(nodes.iter().map(|node| Rule::character(node.major, Some(node.minor), Access::ALL)));
    rules.sort_unstable();
    rules.dedup();
    rules
}

/// The container's cgroup2 directory, the parent of the one in which its first process starts.
fn container_directory(start: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    Ok(rustix::fs::openat(start, "..", OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

impl Isolator for Devices {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, _pod: &PodSpec, violations: &mut Vec<Violation>) {
        if let Some(reason) = &self.unusable {
            violations.push(Violation::new("", format!("isolator {NAME}: containers cannot run here: {reason}")));
        }
    }

    fn prepare(&self, context: &ContainerContext<'_>, launch: &mut Launch) -> Result<(), IsolatorError> {
        for node in default_nodes() {
            if launch.plan.devices.iter().all(|present| present.name != node.name) {
                launch.plan.devices.push(node);
            }
        }
        let container = &context.container.name;
        let cgroup = container_directory(context.cgroup.init_dir())
            .map_err(|e| IsolatorError::io(NAME, format!("the cgroup of container {container} cannot be opened"), e))?;
        self.guard(cgroup.as_fd(), &launch.plan.devices)
            .map_err(|e| IsolatorError::new(NAME, format!("container {container}: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_follow_the_nodes_whatever_their_order() {
        let mut nodes = default_nodes();
        let first = rules(&nodes);
        nodes.reverse();
        nodes.push(nodes[0].clone());
        assert_eq!(rules(&nodes), first);
        assert_eq!(first.len(), NODES.len() + TERMINALS.len());
        nodes.push(DeviceNode { name: "nvidia0".to_owned(), major: 195, minor: 0, mode: 0o666 });
        assert!(rules(&nodes).contains(&Rule::character(195, Some(0), Access::ALL)));
    }

    #[test]
    fn a_host_without_guards_is_told_for_the_whole_pod() {
        let isolator = Devices { unusable: Some("no BPF".to_owned()), kept: Mutex::default() };
        let mut found = Vec::new();
        isolator.check(&crate::seccomp::sample_pod(), &mut found);
        assert_eq!(found[0].path, "");
        assert!(found[0].message.contains("no BPF"), "{}", found[0]);
    }
}
