//! The checkpoint of an instance, and the status that is made of it.

use agentd_api::pod::PodSpec;
use agentd_api::status::{ContainerStatus, EndpointStatus, InstanceStatus};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{self, Durability};
use crate::host::Host;
use crate::layout::Layout;
use crate::lifecycle::{Machine, Rules};

/// What is written to `instance.json` before each step acts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Id of the instance, also of its sandbox.
    pub id: String,
    /// Its specification.
    pub spec: PodSpec,
    /// Its life so far.
    pub machine: Machine,
    /// Unix milliseconds of its birth.
    pub created_ms: u64,
    /// Whole cores given to each container, by slot.
    pub cores: Vec<Vec<u32>>,
    /// Whether everything but this record has been given back.
    pub released: bool,
}

impl Record {
    /// Of an instance that has not begun.
    pub fn new(id: &str, spec: PodSpec, grace_seconds: f64) -> Self {
        let machine = Machine::new(Rules::of(&spec, (grace_seconds * 1000.0) as u64));
        Self {
            id: id.to_owned(),
            cores: vec![Vec::new(); spec.containers.len()],
            spec,
            machine,
            created_ms: super::now_ms(),
            released: false,
        }
    }

    /// Writes the checkpoint.
    pub fn write(&self, layout: &Layout) -> Result<(), String> {
        checkpoint::write(&layout.checkpoint(&self.id), self, Durability::Daemon).map_err(|e| e.to_string())
    }

    /// The status for the API.
    pub fn status(&self, host: &Host, init_pid: Option<u32>) -> InstanceStatus {
        let network = host.network.pod_network(&self.id);
        let endpoints = |container: &str| -> Vec<EndpointStatus> {
            network
                .iter()
                .flat_map(|n| &n.endpoints)
                .filter(|e| e.container == container)
                .map(|e| EndpointStatus {
                    name: e.endpoint.clone(),
                    container_port: e.container_port,
                    host_port: e.host_port,
                })
                .collect()
        };
        let time = |ms: Option<u64>| {
            ms.and_then(|ms| jiff::Timestamp::from_millisecond(ms as i64).ok()).map(|t| t.to_string())
        };
        let parent = host.driver.parent().trim_matches('/');
        let containers = self
            .spec
            .containers
            .iter()
            .zip(&self.machine.containers)
            .enumerate()
            .map(|(slot, (spec, state))| ContainerStatus {
                name: spec.name.clone(),
                state: state.state,
                reason: state.reason,
                message: state.message.clone(),
                pid: state.pid,
                exit: state.exit,
                attempt: state.attempt,
                healthy: state.healthy,
                started_at: time(state.started_ms),
                finished_at: time(state.finished_ms),
                memory_peak_bytes: state.memory_peak,
                cgroup: (!self.released).then(|| format!("{parent}/pods/{}/c{slot}", self.id)),
                endpoints: endpoints(&spec.name),
            })
            .collect();
        InstanceStatus {
            id: self.id.clone(),
            phase: self.machine.phase,
            message: self.machine.message.clone(),
            addresses: network.iter().flat_map(|n| &n.addresses).map(ToString::to_string).collect(),
            init_pid,
            containers,
        }
    }
}
