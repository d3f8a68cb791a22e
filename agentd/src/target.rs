//! Which running container is meant: of a pod, perhaps named by instance and container.

use agentd_api::status::{ContainerStatus, InstanceStatus, PodStatus, TaskState};

use crate::node::NodeError;

/// A running container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Id of the pod.
    pub pod: String,
    /// Id of the instance.
    pub instance: String,
    /// Name of the container.
    pub container: String,
    /// Its place in the pod.
    pub slot: usize,
    /// Number of its start.
    pub attempt: u32,
    /// Process id of its first process on the host.
    pub pid: u32,
}

/// Finds the running container that is meant. What is left out must not be ambiguous; the error names the choices.
pub fn find(status: &PodStatus, instance: Option<&str>, container: Option<&str>) -> Result<Target, NodeError> {
    let instance = one_instance(status, instance)?;
    let (slot, container) = one_container(status, instance, container)?;
    let running = matches!(container.state, TaskState::TaskRunning | TaskState::TaskKilling);
    match container.pid {
        Some(pid) if running => Ok(Target {
            pod: status.id.clone(),
            instance: instance.id.clone(),
            container: container.name.clone(),
            slot,
            attempt: container.attempt,
            pid,
        }),
        _ => Err(NodeError::Conflict(format!(
            "the container {} of {} does not run (it is {}); wait for it with `agentctl pod wait {}`",
            container.name,
            status.id,
            container.state.as_str(),
            status.id
        ))),
    }
}

/// The instance that is meant: the named one, or the only one, or the only one with a running container.
pub fn one_instance<'a>(status: &'a PodStatus, name: Option<&str>) -> Result<&'a InstanceStatus, NodeError> {
    let list = |all: &[&InstanceStatus]| all.iter().map(|i| i.id.as_str()).collect::<Vec<_>>().join(", ");
    let all: Vec<&InstanceStatus> = status.instances.iter().collect();
    if let Some(name) = name {
        return all.iter().find(|i| i.id == name).copied().ok_or_else(|| {
            NodeError::NotFound(format!("{} with the instance {name}; it has: {}", status.id, list(&all)))
        });
    }
    let running: Vec<&InstanceStatus> =
        all.iter().copied().filter(|i| i.containers.iter().any(|c| c.pid.is_some())).collect();
    match (all.as_slice(), running.as_slice()) {
        ([one], _) | (_, [one]) => Ok(one),
        ([], _) => Err(NodeError::Conflict(format!("the pod {} has no instance", status.id))),
        (_, []) => Err(NodeError::Conflict(format!("no instance of the pod {} runs", status.id))),
        (_, several) => Err(NodeError::Conflict(format!(
            "the pod {} has several instances; name one of them: {}",
            status.id,
            list(several)
        ))),
    }
}

/// The container that is meant and its place in the pod: the named one, or the only one.
pub fn one_container<'a>(
    status: &PodStatus,
    instance: &'a InstanceStatus,
    name: Option<&str>,
) -> Result<(usize, &'a ContainerStatus), NodeError> {
    let names = || instance.containers.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ");
    let mut containers = instance.containers.iter().enumerate();
    match name {
        Some(name) => containers.find(|(_, c)| c.name == name).ok_or_else(|| {
            NodeError::NotFound(format!("{} with the container {name}; it has: {}", status.id, names()))
        }),
        None if instance.containers.len() == 1 => {
            containers.next().ok_or_else(|| NodeError::Conflict(format!("the pod {} has no container", status.id)))
        }
        None => Err(NodeError::Conflict(format!(
            "the pod {} has several containers; name one of them: {}",
            status.id,
            names()
        ))),
    }
}
