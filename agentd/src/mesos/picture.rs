//! What the agent tells of its pods, as messages: one framework, an executor for each instance, a task for each
//! container.

use agentd_api::mesos::ContainerPath;
use agentd_api::mesos::v1::agent::response::{
    GetAgent, GetContainers, GetExecutors, GetFrameworks, GetTasks, get_containers, get_executors, get_frameworks,
};
use agentd_api::mesos::v1::{self, executor_info, network_info, task_status, value};
use agentd_api::message::{ContainerUsage, NodeInfo, NodeResources};
use agentd_api::pod::{Container, PodSpec};
use agentd_api::session::SessionStatus;
use agentd_api::status::{ContainerStatus, InstanceStatus, PodStatus, Reason, TaskState};

use super::place;

/// Name and id of the framework that pods of this host belong to.
pub(super) const FRAMEWORK: &str = "local";

/// Who tells.
#[derive(Debug)]
pub(super) struct Here {
    /// Id of this agent.
    pub agent: String,
    pub hostname: String,
    pub total: NodeResources,
}

impl Here {
    pub fn of(info: &NodeInfo) -> Self {
        Self {
            agent: format!("{}-{}", info.instance, info.hostname),
            hostname: info.hostname.clone(),
            total: NodeResources {
                cpus: info.total.cpus - info.reserved.cpus,
                mem: info.total.mem - info.reserved.mem,
                disk: info.total.disk - info.reserved.disk,
                gpus: info.total.gpus - info.reserved.gpus,
            },
        }
    }

    pub fn agent(&self) -> GetAgent {
        let info = v1::AgentInfo {
            hostname: self.hostname.clone(),
            resources: resources(self.total),
            attributes: Vec::new(),
            id: Some(self.agent_id()),
            // what a coordinator would dial; there is none yet
            port: None,
        };
        GetAgent { agent_info: Some(info) }
    }

    fn agent_id(&self) -> v1::AgentId {
        v1::AgentId { value: self.agent.clone() }
    }

    pub fn frameworks(&self) -> GetFrameworks {
        let info = v1::FrameworkInfo {
            user: "root".into(),
            name: FRAMEWORK.into(),
            id: Some(framework()),
            failover_timeout: None,
            checkpoint: Some(true),
            role: Some(FRAMEWORK.into()),
            hostname: Some(self.hostname.clone()),
            principal: None,
            webui_url: None,
            capabilities: Vec::new(),
            labels: None,
            roles: Vec::new(),
        };
        let framework = get_frameworks::Framework { framework_info: info };
        GetFrameworks { frameworks: vec![framework], completed_frameworks: Vec::new() }
    }

    pub fn executors(pods: &[PodStatus]) -> GetExecutors {
        let executors = instances(pods).map(|(pod, instance)| {
            let own = &pod.spec.executor_resources;
            let own = NodeResources { cpus: own.cpus, mem: own.mem, disk: own.disk, gpus: 0.0 };
            let info = v1::ExecutorInfo {
                executor_id: executor_id(&instance.id),
                resources: resources(own),
                command: None,
                framework_id: Some(framework()),
                name: Some(pod.id.clone()),
                source: Some(pod.id.clone()),
                container: None,
                labels: labels(pod.spec.labels.iter()),
                r#type: Some(executor_info::Type::Default as i32),
            };
            get_executors::Executor { executor_info: info }
        });
        GetExecutors { executors: executors.collect(), completed_executors: Vec::new() }
    }

    pub fn tasks(&self, pods: &[PodStatus]) -> GetTasks {
        let mut tasks = GetTasks::default();
        for (pod, instance) in instances(pods) {
            for container in &instance.containers {
                let task = self.task(pod, instance, container);
                if container.state.is_terminal() {
                    tasks.completed_tasks.push(task);
                } else {
                    tasks.launched_tasks.push(task);
                }
            }
        }
        tasks
    }

    fn task(&self, pod: &PodStatus, instance: &InstanceStatus, container: &ContainerStatus) -> v1::Task {
        let spec = container_spec(&pod.spec, &container.name);
        let id = v1::TaskId { value: task_id(&instance.id, &container.name) };
        let state = self::state(container.state) as i32;
        let status = v1::TaskStatus {
            task_id: id.clone(),
            state,
            message: container.message.clone(),
            agent_id: Some(self.agent_id()),
            timestamp: since(container),
            executor_id: Some(executor_id(&instance.id)),
            healthy: container.healthy,
            source: Some(task_status::Source::Executor as i32),
            reason: container.reason.and_then(reason).map(|reason| reason as i32),
            labels: None,
            container_status: Some(container_status(instance, &[&instance.id, &container.name], container.pid)),
        };
        let user = spec.and_then(|spec| spec.user.clone()).or_else(|| pod.spec.user.clone());
        v1::Task {
            name: container.name.clone(),
            task_id: id,
            framework_id: framework(),
            executor_id: Some(executor_id(&instance.id)),
            agent_id: self.agent_id(),
            state,
            resources: spec.map(|spec| resources(wanted(spec))).unwrap_or_default(),
            statuses: vec![status],
            status_update_state: Some(state),
            labels: task_labels(pod, spec),
            user,
        }
    }

    /// The instances, and with `nested` what is in them: the pods' containers and sessions of this API.
    pub fn containers(
        pods: &[PodStatus],
        usage: &[ContainerUsage],
        sessions: &[SessionStatus],
        nested: bool,
    ) -> GetContainers {
        let mut containers = Vec::new();
        for (pod, instance) in instances(pods) {
            let entry = |names: &[&str], pid: Option<u32>, statistics| get_containers::Container {
                framework_id: Some(framework()),
                executor_id: Some(executor_id(&instance.id)),
                executor_name: Some(pod.id.clone()),
                container_id: container_id(names),
                container_status: Some(container_status(instance, names, pid)),
                resource_statistics: statistics,
            };
            let own: Vec<&ContainerUsage> = usage.iter().filter(|usage| usage.instance == instance.id).collect();
            containers.push(entry(&[&instance.id], instance.init_pid, statistics(&own)));
            if !nested {
                continue;
            }
            for container in instance.containers.iter().filter(|container| !container.state.is_terminal()) {
                let own: Vec<&ContainerUsage> =
                    own.iter().copied().filter(|usage| usage.container == container.name).collect();
                containers.push(entry(&[&instance.id, &container.name], container.pid, statistics(&own)));
            }
            for session in sessions.iter().filter(|session| session.instance == instance.id && session.exit.is_none()) {
                if let Some(path) = place::path_of(session) {
                    containers.push(entry(&path.names(), session.pid, None));
                }
            }
        }
        GetContainers { containers }
    }
}

pub(super) fn instances(pods: &[PodStatus]) -> impl Iterator<Item = (&PodStatus, &InstanceStatus)> {
    pods.iter().flat_map(|pod| pod.instances.iter().map(move |instance| (pod, instance)))
}

pub(super) fn container_spec<'a>(spec: &'a PodSpec, name: &str) -> Option<&'a Container> {
    spec.containers.iter().find(|container| container.name == name)
}

/// The id of the task that a container is.
pub(super) fn task_id(instance: &str, container: &str) -> String {
    format!("{instance}.{container}")
}

fn framework() -> v1::FrameworkId {
    v1::FrameworkId { value: FRAMEWORK.into() }
}

fn executor_id(instance: &str) -> v1::ExecutorId {
    v1::ExecutorId { value: instance.to_owned() }
}

fn container_id(names: &[&str]) -> v1::ContainerId {
    ContainerPath::of(names.iter().copied()).map(|path| path.id()).unwrap_or_default()
}

fn container_status(instance: &InstanceStatus, names: &[&str], pid: Option<u32>) -> v1::ContainerStatus {
    let addresses = instance.addresses.iter().map(|address| v1::NetworkInfo {
        ip_addresses: vec![v1::network_info::IpAddress {
            protocol: Some(if address.contains(':') {
                network_info::Protocol::IPv6 as i32
            } else {
                network_info::Protocol::IPv4 as i32
            }),
            ip_address: Some(address.clone()),
        }],
        ..v1::NetworkInfo::default()
    });
    v1::ContainerStatus {
        network_infos: addresses.collect(),
        executor_pid: pid,
        container_id: Some(container_id(names)),
    }
}

fn statistics(usage: &[&ContainerUsage]) -> Option<v1::ResourceStatistics> {
    let first = usage.first()?;
    let sum = |of: fn(&ContainerUsage) -> u64| usage.iter().map(|usage| of(usage)).sum::<u64>();
    // a container without a limit leaves the whole without one
    let limit = |of: fn(&ContainerUsage) -> Option<u64>| usage.iter().map(|usage| of(usage)).sum::<Option<u64>>();
    Some(v1::ResourceStatistics {
        timestamp: usage.iter().filter_map(|usage| seconds(&usage.time)).fold(0.0, f64::max),
        // what is known is the time as a whole
        cpus_user_time_secs: Some(sum(|usage| usage.cpu_ns) as f64 / 1e9),
        cpus_system_time_secs: Some(0.0),
        cpus_limit: limit(|usage| usage.cpu_limit_milli).map(|milli| milli as f64 / 1e3),
        mem_limit_bytes: limit(|usage| usage.memory_limit_bytes),
        // the containers of an instance share its network
        net_rx_bytes: first.network_receive_bytes,
        net_tx_bytes: first.network_transmit_bytes,
        processes: None,
        threads: u32::try_from(sum(|usage| usage.pids)).ok(),
        mem_total_bytes: Some(sum(|usage| usage.memory_bytes)),
    })
}

fn wanted(spec: &Container) -> NodeResources {
    let resources = &spec.resources;
    NodeResources { cpus: resources.cpus, mem: resources.mem, disk: resources.disk, gpus: f64::from(resources.gpus) }
}

fn resources(amounts: NodeResources) -> Vec<v1::Resource> {
    let all = [("cpus", amounts.cpus), ("mem", amounts.mem), ("disk", amounts.disk), ("gpus", amounts.gpus)];
    let there = all.into_iter().filter(|(_, amount)| *amount > 0.0);
    let scalar = |(name, amount): (&str, f64)| v1::Resource {
        name: name.into(),
        r#type: value::Type::Scalar as i32,
        scalar: Some(value::Scalar { value: amount }),
        role: Some("*".into()),
        allocation_info: Some(v1::resource::AllocationInfo { role: Some(FRAMEWORK.into()) }),
        ..v1::Resource::default()
    };
    there.map(scalar).collect()
}

/// The labels of a pod, and those of a container, which come after.
fn task_labels(pod: &PodStatus, spec: Option<&Container>) -> Option<v1::Labels> {
    let mut all = pod.spec.labels.clone();
    all.extend(spec.iter().flat_map(|spec| spec.labels.clone()));
    labels(all.iter())
}

fn labels<'a>(pairs: impl Iterator<Item = (&'a String, &'a String)>) -> Option<v1::Labels> {
    let labels: Vec<v1::Label> =
        pairs.map(|(key, value)| v1::Label { key: key.clone(), value: Some(value.clone()) }).collect();
    (!labels.is_empty()).then_some(v1::Labels { labels })
}

/// Since when a container is in its state, as seconds since 1970.
pub(super) fn since(container: &ContainerStatus) -> Option<f64> {
    let time = if container.state.is_terminal() { &container.finished_at } else { &container.started_at };
    time.as_deref().and_then(seconds)
}

fn seconds(time: &str) -> Option<f64> {
    let time: jiff::Timestamp = time.parse().ok()?;
    Some(time.as_millisecond() as f64 / 1e3)
}

pub(super) fn state(state: TaskState) -> v1::TaskState {
    match state {
        TaskState::TaskStaging => v1::TaskState::TaskStaging,
        TaskState::TaskStarting => v1::TaskState::TaskStarting,
        TaskState::TaskRunning => v1::TaskState::TaskRunning,
        TaskState::TaskKilling => v1::TaskState::TaskKilling,
        TaskState::TaskFinished => v1::TaskState::TaskFinished,
        TaskState::TaskFailed => v1::TaskState::TaskFailed,
        TaskState::TaskKilled => v1::TaskState::TaskKilled,
        TaskState::TaskError => v1::TaskState::TaskError,
        TaskState::TaskLost => v1::TaskState::TaskLost,
    }
}

/// The protocol's word for a reason; it has none for what was asked for.
pub(super) fn reason(reason: Reason) -> Option<task_status::Reason> {
    Some(match reason {
        Reason::CommandExecutorFailed => task_status::Reason::CommandExecutorFailed,
        Reason::ContainerLimitationMemory => task_status::Reason::ContainerLimitationMemory,
        Reason::ContainerLimitationDisk => task_status::Reason::ContainerLimitationDisk,
        Reason::ContainerLaunchFailed | Reason::ImagePullFailed | Reason::ArtifactFetchFailed => {
            task_status::Reason::ContainerLaunchFailed
        }
        Reason::ContainerLauncherDied | Reason::TaskGroupFailed => task_status::Reason::ExecutorTerminated,
        Reason::TaskHealthCheckFailed => task_status::Reason::TaskHealthCheckStatusUpdated,
        Reason::AgentRestarted => task_status::Reason::AgentRestarted,
        Reason::TaskKilledByRequest => return None,
    })
}
