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

/// Whether a pod has what is named, running or not; the error names the choices.
pub fn known(status: &PodStatus, instance: Option<&str>, container: Option<&str>) -> Result<(), NodeError> {
    if let Some(name) = instance {
        one_instance(status, Some(name))?;
    }
    let names: Vec<&str> = status.spec.containers.iter().map(|one| one.name.as_str()).collect();
    match container {
        Some(name) if !names.contains(&name) => {
            let name: String = name.chars().take(200).collect();
            Err(NodeError::NotInPod(format!(
                "the pod {} has no container {name}; it has: {}",
                status.id,
                names.join(", ")
            )))
        }
        _ => Ok(()),
    }
}

/// The instance that is meant: the named one, or the only one, or the only one with a running container.
pub fn one_instance<'a>(status: &'a PodStatus, name: Option<&str>) -> Result<&'a InstanceStatus, NodeError> {
    let list = |all: &[&InstanceStatus]| all.iter().map(|i| i.id.as_str()).collect::<Vec<_>>().join(", ");
    let all: Vec<&InstanceStatus> = status.instances.iter().collect();
    if let Some(name) = name {
        return all.iter().find(|i| i.id == name).copied().ok_or_else(|| {
            let message = match all.as_slice() {
                [] => format!("the pod {} has no instance {name}; it has none", status.id),
                all => format!("the pod {} has no instance {name}; it has: {}", status.id, list(all)),
            };
            NodeError::NotInPod(message)
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
            NodeError::NotInPod(format!("the pod {} has no container {name}; it has: {}", status.id, names()))
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

#[cfg(test)]
mod tests {
    use agentd_api::status::PodStatus;
    use serde_json::json;

    use super::*;

    fn pod() -> PodStatus {
        let spec = json!({"id": "/app", "containers": [{"name": "main", "resources": {"cpus": 1, "mem": 32, "disk": 8, "gpus": 0}}]});
        let container = json!({"name": "main", "state": "TASK_RUNNING", "pid": 7, "attempt": 1});
        let instance = json!({"id": "i1", "phase": "running", "addresses": [], "containers": [container]});
        serde_json::from_value(json!({"id": "/app", "spec": spec, "instances": [instance]})).unwrap()
    }

    #[test]
    fn what_is_not_there_is_named_beside_what_is() {
        let error = |instance, container| find(&pod(), instance, container).unwrap_err();
        assert_eq!(error(None, Some("wrong")).to_string(), "the pod /app has no container wrong; it has: main");
        assert_eq!(error(Some("i9"), None).to_string(), "the pod /app has no instance i9; it has: i1");
        assert!(matches!(error(None, Some("wrong")), NodeError::NotInPod(_)));
        assert_eq!(find(&pod(), Some("i1"), Some("main")).map(|target| target.pid).unwrap(), 7);
    }
}
