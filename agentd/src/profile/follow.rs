//! The task that learns from events which containers start and end.

use std::sync::Arc;

use agentd_api::message::Event;
use agentd_api::pod::PodSpec;
use agentd_api::status::{PodStatus, TaskState};
use tokio::sync::broadcast::error::RecvError;

use super::kept::Subject;
use super::{Profiles, wanted};
use crate::node::{Node, NodeError};

/// Profiles the containers of pods that are labelled so, for as long as they run. Ends with the daemon.
pub async fn follow(node: Arc<Node>) {
    let profiles = Arc::clone(&node.host.profiles);
    // what comes after this is heard, so that nothing is missed in between
    let mut events = node.host.events.since(u64::MAX).channel;
    for pod in node.list() {
        begin_all(&profiles, &pod);
    }
    loop {
        match events.recv().await {
            Ok(event) => heard(&node, &profiles, &event),
            Err(RecvError::Lagged(_)) => {
                // ends may be among what was missed
                profiles.leave_all();
                for pod in node.list() {
                    begin_all(&profiles, &pod);
                }
            }
            Err(RecvError::Closed) => return,
        }
    }
}

fn heard(node: &Arc<Node>, profiles: &Arc<Profiles>, event: &Event) {
    let (instance, container) = (event.instance.as_deref(), event.container.as_deref());
    match (event.kind.as_str(), event.pod.as_deref(), instance, container) {
        ("container-started", Some(pod), Some(instance), Some(container)) => match node.get(pod) {
            // its status may not have the container's state yet
            Ok(pod) => begin(profiles, &Arc::new(pod.spec), instance, container),
            // it has ended meanwhile
            Err(NodeError::NotFound(_)) => {}
            Err(error) => tracing::debug!("profiles: {error}"),
        },
        ("container-ended", _, Some(instance), _) => profiles.leave(instance, container),
        ("instance-removed", _, Some(instance), _) => profiles.leave(instance, None),
        _ => {}
    }
}

/// Samples the running containers of a pod, if it is labelled so.
fn begin_all(profiles: &Arc<Profiles>, pod: &PodStatus) {
    let spec = Arc::new(pod.spec.clone());
    for instance in &pod.instances {
        for container in &instance.containers {
            if matches!(container.state, TaskState::TaskRunning | TaskState::TaskKilling) {
                begin(profiles, &spec, &instance.id, &container.name);
            }
        }
    }
}

/// Samples a container, if its pod is labelled so.
fn begin(profiles: &Arc<Profiles>, spec: &Arc<PodSpec>, instance: &str, container: &str) {
    let Some(hz) = wanted::of_pod(spec) else { return };
    let Some(slot) = spec.containers.iter().position(|one| one.name == container) else { return };
    match profiles.place(instance, slot) {
        Ok(place) => {
            let (instance, container) = (instance.to_owned(), container.to_owned());
            profiles.want(place, Subject { spec: Arc::clone(spec), instance, container, slot }, hz);
        }
        // it has ended meanwhile
        Err(error) => tracing::debug!(instance, slot, "profiles: {error}"),
    }
}
