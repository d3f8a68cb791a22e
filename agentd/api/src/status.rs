//! What pods, instances and containers are doing, in Mesos's words.

use serde::{Deserialize, Serialize};

use crate::pod::PodSpec;

/// State of a container (a Mesos task).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TaskState {
    /// Accepted; image, artifacts or dependencies are awaited.
    TaskStaging,
    /// Being launched.
    TaskStarting,
    /// Its program runs.
    TaskRunning,
    /// Being ended.
    TaskKilling,
    /// Ended with exit code 0.
    TaskFinished,
    /// Ended otherwise by itself.
    TaskFailed,
    /// Ended by agentd on request.
    TaskKilled,
    /// Could not be launched.
    TaskError,
    /// Its fate is unknown: it ended, and nobody saw how.
    TaskLost,
}

impl TaskState {
    /// Whether the container has ended for good in this attempt.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::TaskFinished | Self::TaskFailed | Self::TaskKilled | Self::TaskError | Self::TaskLost)
    }

    /// The word as Mesos spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TaskStaging => "TASK_STAGING",
            Self::TaskStarting => "TASK_STARTING",
            Self::TaskRunning => "TASK_RUNNING",
            Self::TaskKilling => "TASK_KILLING",
            Self::TaskFinished => "TASK_FINISHED",
            Self::TaskFailed => "TASK_FAILED",
            Self::TaskKilled => "TASK_KILLED",
            Self::TaskError => "TASK_ERROR",
            Self::TaskLost => "TASK_LOST",
        }
    }
}

/// Why a container is in its state (`TaskStatus.Reason` of Mesos without the prefix `REASON_`, and agentd's `DISK`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Reason {
    /// Its program ended by itself.
    CommandExecutorFailed,
    /// Killed for want of memory.
    ContainerLimitationMemory,
    /// Killed for writing more than its disk limit (agentd's word is DISK).
    ContainerLimitationDisk,
    /// Could not be launched.
    ContainerLaunchFailed,
    /// Its pod-init died.
    ContainerLauncherDied,
    /// Its health check failed too often.
    TaskHealthCheckFailed,
    /// Its image could not be had.
    ImagePullFailed,
    /// An artifact could not be fetched.
    ArtifactFetchFailed,
    /// Another container of the pod failed.
    TaskGroupFailed,
    /// Ended on request.
    TaskKilledByRequest,
    /// It ended while agentd was away, and its exit status is lost.
    AgentRestarted,
}

/// What became of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ExitStatus {
    /// Exit code.
    Code(i32),
    /// Number of the signal that ended it.
    Signal(i32),
    /// Not known: nobody was there to see it.
    Unknown,
}

impl ExitStatus {
    /// Whether it is exit code 0.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("exit status unknown"),
        }
    }
}

/// One container of an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerStatus {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: TaskState,
    /// Why, where there is more to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// One line for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Process id of its first process on the host, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// How the last attempt ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitStatus>,
    /// Number of starts so far.
    pub attempt: u32,
    /// Whether it is healthy; absent without a health check or before its first result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy: Option<bool>,
    /// Start of the running or last attempt, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// End of the last attempt, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// Highest memory use of the last attempt, bytes, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<u64>,
    /// The container's cgroup below each hierarchy's mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// Ports of its endpoints on the host, by endpoint name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<EndpointStatus>,
}

/// Where an endpoint is reachable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStatus {
    /// Its name.
    pub name: String,
    /// Port in the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_port: Option<u16>,
    /// Port on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
}

/// What an instance is doing as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InstancePhase {
    /// Images, artifacts, network and containers are being readied.
    Starting,
    /// Every container runs (and is healthy where it says how).
    Running,
    /// Some container is down or unhealthy.
    Degraded,
    /// Waiting for the next restart.
    Backoff,
    /// Being ended.
    Stopping,
    /// All containers ended with 0 and none starts again.
    Finished,
    /// Ended otherwise, and none starts again.
    Failed,
}

impl InstancePhase {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Degraded => "degraded",
            Self::Backoff => "backoff",
            Self::Stopping => "stopping",
            Self::Finished => "finished",
            Self::Failed => "failed",
        }
    }
}

/// One running copy of a pod on this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceStatus {
    /// Its id.
    pub id: String,
    /// What it is doing.
    pub phase: InstancePhase,
    /// One line for people, where there is something to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Addresses in its networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Process id of its pod-init.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_pid: Option<u32>,
    /// Its containers.
    pub containers: Vec<ContainerStatus>,
}

/// A pod and its instances.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// Its id.
    pub id: String,
    /// Its specification.
    pub spec: PodSpec,
    /// Its instances.
    pub instances: Vec<InstanceStatus>,
}
