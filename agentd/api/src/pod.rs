//! The pod specification: the Marathon 1.4 pod, complete, with agentd's own settings under the key `agentd` of the pod,
//! a container, or a volume.
//!
//! Values of these types are always valid: they are made by [`crate::parse`], which fills in the defaults. They
//! serialize to the same JSON names that are read (camelCase).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A pod: containers that share network, IPC and volumes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    /// Absolute path of non-empty segments, e.g. `/app`.
    pub id: String,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Version, set by the server (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// User that the containers run as unless they name their own: a name or `uid[:gid]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Environment of every container.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, EnvValue>,
    /// Secrets by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, SecretSource>,
    /// Networks: none (host), one host network, or one or more container networks.
    #[serde(default)]
    pub networks: Vec<Network>,
    /// Volumes that containers mount.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// How many instances.
    #[serde(default)]
    pub scaling: Scaling,
    /// Backoff, upgrade, placement and kill selection.
    #[serde(default)]
    pub scheduling: Scheduling,
    /// Resources of the pod's own supervisor.
    #[serde(default)]
    pub executor_resources: ExecutorResources,
    /// The containers; at least one.
    pub containers: Vec<Container>,
    /// agentd's own settings.
    #[serde(default, skip_serializing_if = "is_default")]
    pub agentd: PodExtension,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The value of an environment variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EnvValue {
    /// The text itself.
    Plain(String),
    /// The content of a secret of the pod.
    Secret {
        /// Name in [`PodSpec::secrets`].
        secret: String,
    },
}

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretSource {
    /// Name of a file below the secrets folder or of a systemd credential.
    pub source: String,
}

/// Kind of network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// Own network namespace, joined to a named network.
    #[default]
    Container,
    /// The host's network namespace.
    Host,
}

/// A network that the pod joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Name of a network that this node has; absent means the node's default network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Mode.
    #[serde(default)]
    pub mode: NetworkMode,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A volume of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Name that mounts refer to.
    pub name: String,
    /// Path on the host; absent for an ephemeral volume shared in the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// agentd's own settings.
    #[serde(default, skip_serializing_if = "is_default")]
    pub agentd: VolumeExtension,
}

/// agentd's settings of a volume, under its key `agentd`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeExtension {
    /// Backs an ephemeral volume by memory, with this size limit in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs_mib: Option<u64>,
    /// Makes the volume the files of these secrets (0400, on tmpfs): file name → secret name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, String>,
}

/// Number of instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scaling {
    /// Always `fixed`.
    pub kind: String,
    /// Instances, 0 or more.
    pub instances: u32,
}

impl Default for Scaling {
    fn default() -> Self {
        Self { kind: "fixed".to_owned(), instances: 1 }
    }
}

/// Backoff, upgrade, placement, kill selection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct Scheduling {
    /// Delay between restarts.
    pub backoff: Backoff,
    /// Limits during an upgrade.
    pub upgrade: Upgrade,
    /// Placement constraints.
    pub placement: Placement,
    /// Which instance goes first when scaling down.
    pub kill_selection: KillSelection,
    /// What happens to unreachable instances.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreachable_strategy: Option<UnreachableStrategy>,
}

/// Exponential backoff, in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Backoff {
    /// First delay, seconds.
    pub backoff: f64,
    /// Growth factor, at least 1.
    pub backoff_factor: f64,
    /// Longest delay, seconds.
    pub max_launch_delay: f64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { backoff: 1.0, backoff_factor: 1.15, max_launch_delay: 3600.0 }
    }
}

/// Limits during an upgrade, each 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Upgrade {
    /// Part of the instances that stays healthy.
    pub minimum_health_capacity: f64,
    /// Part of the instances that may run in addition.
    pub maximum_over_capacity: f64,
}

impl Default for Upgrade {
    fn default() -> Self {
        Self { minimum_health_capacity: 1.0, maximum_over_capacity: 1.0 }
    }
}

/// Placement rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct Placement {
    /// Constraints.
    pub constraints: Vec<Constraint>,
    /// Roles whose resources may be used.
    pub accepted_resource_roles: Vec<String>,
}

/// One placement constraint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Constraint {
    /// Attribute, or `hostname`.
    pub field_name: String,
    /// Operator.
    pub operator: ConstraintOperator,
    /// Operand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// Operator of a placement constraint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ConstraintOperator {
    /// Each instance on another value.
    Unique,
    /// All on one value.
    Cluster,
    /// Spread over values.
    GroupBy,
    /// Value matches the regular expression.
    Like,
    /// Value does not match.
    Unlike,
    /// At most this many on one value.
    MaxPer,
}

/// Which instance ends first when scaling down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum KillSelection {
    /// The youngest.
    #[default]
    YoungestFirst,
    /// The oldest.
    OldestFirst,
}

/// What happens to instances on unreachable hosts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum UnreachableStrategy {
    /// The word `disabled`.
    Disabled(DisabledWord),
    /// Times in seconds.
    After {
        /// Seconds until replaced.
        #[serde(rename = "inactiveAfterSeconds", default)]
        inactive_after_seconds: f64,
        /// Seconds until forgotten.
        #[serde(rename = "expungeAfterSeconds", default)]
        expunge_after_seconds: f64,
    },
}

/// The word `disabled`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DisabledWord {
    /// `disabled`.
    Disabled,
}

/// Resources of the pod's own supervisor; the defaults are also the least.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecutorResources {
    /// CPUs.
    pub cpus: f64,
    /// Memory, MiB.
    pub mem: f64,
    /// Disk, MiB.
    pub disk: f64,
}

impl Default for ExecutorResources {
    fn default() -> Self {
        Self { cpus: 0.1, mem: 32.0, disk: 10.0 }
    }
}

/// A container of the pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// Name, unique in the pod; `^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`, 1–63 characters.
    pub name: String,
    /// The command; absent when the image's own runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<Exec>,
    /// Resources.
    pub resources: ContainerResources,
    /// Endpoints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// Image; absent for a container on the host's own files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// Environment; overrides the pod's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, EnvValue>,
    /// User; overrides the pod's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Labels; override the pod's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Health check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// Mounts of the pod's volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volume_mounts: Vec<VolumeMount>,
    /// Files fetched before the start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<Artifact>,
    /// Kill grace period.
    #[serde(default, skip_serializing_if = "is_default")]
    pub lifecycle: Lifecycle,
    /// agentd's own settings.
    #[serde(default, skip_serializing_if = "is_default")]
    pub agentd: ContainerExtension,
}

/// The command of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exec {
    /// The command.
    pub command: Command,
    /// Whether the image's entrypoint is replaced (true) or gets the command as arguments (false).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub override_entrypoint: Option<bool>,
}

/// A command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// `{"shell": "…"}`: run by `/bin/sh -c`.
    Shell(String),
    /// `{"argv": ["…", …]}`: run as it is.
    Argv(Vec<String>),
}

/// Resources of a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerResources {
    /// CPUs; weight and, unless switched off, quota.
    pub cpus: f64,
    /// Memory limit, MiB.
    pub mem: f64,
    /// Disk, MiB; 0 means the node's default limit.
    pub disk: f64,
    /// Whole GPUs.
    pub gpus: u32,
}

impl Default for ContainerResources {
    fn default() -> Self {
        Self { cpus: 1.0, mem: 128.0, disk: 0.0, gpus: 0 }
    }
}

/// A named port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Name, unique in the pod.
    pub name: String,
    /// Port inside the container (container mode only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_port: Option<u16>,
    /// Port on the host; 0 asks for a free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
    /// Protocols: `tcp`, `udp`. Never empty after parsing (default tcp).
    pub protocol: Vec<Protocol>,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Kind of image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ImageKind {
    /// A reference of a Docker/OCI registry, or of an imported image.
    Docker,
    /// A local OCI layout folder: `/path[:tag]`.
    Oci,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Kind.
    pub kind: ImageKind,
    /// Reference, 1–1024 characters.
    pub id: String,
    /// Whether the registry is asked even when the image is present.
    #[serde(default)]
    pub force_pull: bool,
}

/// A health check. Exactly one of `http`, `tcp`, `exec`. Times in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    /// HTTP GET to an endpoint; 200–399 passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    /// TCP connect to an endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpCheck>,
    /// A command that exits 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecCheck>,
    /// After start, failures in this time do not count until the first success.
    pub grace_period_seconds: f64,
    /// Time between checks.
    pub interval_seconds: f64,
    /// Failures in a row after which the container is killed; 0 never kills.
    pub max_consecutive_failures: u32,
    /// A check that takes longer is killed and failed.
    pub timeout_seconds: f64,
    /// Delay before the first check.
    pub delay_seconds: f64,
}

/// HTTP health check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpCheck {
    /// Endpoint of this container.
    pub endpoint: String,
    /// Path, default `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// `HTTP` or `HTTPS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
}

/// TCP health check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpCheck {
    /// Endpoint of this container.
    pub endpoint: String,
}

/// Command health check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecCheck {
    /// The command.
    pub command: Command,
}

/// A mount of a pod's volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeMount {
    /// Name of the volume.
    pub name: String,
    /// Absolute path in the container, or a path relative to the sandbox.
    pub mount_path: String,
    /// Whether the container may not write.
    #[serde(default)]
    pub read_only: bool,
    /// agentd's own settings.
    #[serde(default, skip_serializing_if = "is_default")]
    pub agentd: MountExtension,
}

/// agentd's settings of a volume mount, under its key `agentd`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct MountExtension {
    /// Relative path below the volume that is mounted instead of its root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub_path: Option<String>,
}

/// A file fetched into the sandbox before the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Artifact {
    /// `http:`, `https:` or `file:` URI, at most 1024 characters.
    pub uri: String,
    /// Whether a tar or zip is unpacked.
    #[serde(default)]
    pub extract: bool,
    /// Whether the file is made executable.
    #[serde(default)]
    pub executable: bool,
    /// Whether a cached copy may serve.
    #[serde(default)]
    pub cache: bool,
    /// Name in the sandbox; default the URI's last segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dest_path: Option<String>,
}

/// Kill policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct Lifecycle {
    /// Seconds between SIGTERM and SIGKILL; absent means 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kill_grace_period_seconds: Option<f64>,
}

/// agentd's settings of a pod, under its key `agentd`. The defaults leave a plain Marathon pod unchanged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct PodExtension {
    /// When ended containers start again.
    pub restart: RestartPolicy,
    /// Whether a failed container takes its pod with it.
    pub restart_scope: RestartScope,
    /// Whether the pod starts again after a reboot.
    pub persistent: bool,
    /// Whether the containers see each other's processes.
    pub share_pid: bool,
    /// Maps the containers' users to unprivileged ones of the host.
    pub user_namespace: bool,
    /// With no `networks`: an own network namespace with only loopback instead of the host's network.
    pub isolated_network: bool,
    /// DNS settings; absent means the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
}

/// When ended containers start again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Always, as Marathon does.
    #[default]
    Always,
    /// Only after a failure.
    OnFailure,
    /// Never.
    Never,
}

/// What restarts together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum RestartScope {
    /// A container that fails ends the others; when all have ended, all start again (Mesos's task group).
    #[default]
    Pod,
    /// Each container by itself (kubelet's way).
    Container,
}

/// DNS settings of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Dns {
    /// Name servers (IP addresses).
    pub nameservers: Vec<String>,
    /// Search domains.
    pub search: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

/// agentd's settings of a container, under its key `agentd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerExtension {
    /// Containers of the pod that must be ready (running, and healthy where they have a health check) first.
    pub start_after: Vec<String>,
    /// Capabilities beyond or below the default set, without `CAP_`.
    pub capabilities: CapabilityChange,
    /// Seccomp profile.
    pub seccomp: SeccompChoice,
    /// Whole cores for this container alone; `resources.cpus` must be a whole number.
    pub exclusive_cores: bool,
    /// CPU limits beyond `resources.cpus`.
    pub cpu: CpuExtension,
    /// Memory protection and throttling.
    pub memory: MemoryExtension,
    /// Most processes and threads; absent means the node's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Block I/O.
    pub io: IoExtension,
    /// Huge pages by size (`2MB`, `1GB`): MiB allowed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub hugepages: BTreeMap<String, u64>,
    /// Resource limits by name (`nofile`, `core`, …): [soft, hard]; -1 is infinity.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rlimits: BTreeMap<String, [i64; 2]>,
    /// Whether the root file system is read-only.
    pub read_only_root: bool,
    /// Working directory; overrides the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Log policy.
    pub log: LogExtension,
    /// GPU share.
    pub gpu: GpuExtension,
}

/// Change of the capability set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct CapabilityChange {
    /// Added, e.g. `NET_RAW`.
    pub add: Vec<String>,
    /// Removed; `ALL` removes all (before `add`).
    pub drop: Vec<String>,
}

/// Seccomp profile of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum SeccompChoice {
    /// The built-in profile.
    #[default]
    Default,
    /// No filter.
    Unconfined,
    /// `{"profile": "name"}`: a file of this name in the node's seccomp folder (OCI/Docker JSON).
    Profile(String),
}

/// CPU settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct CpuExtension {
    /// Hard limit in CPUs; absent means `resources.cpus`; 0 means none (weight only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<f64>,
    /// Unused quota that may be saved up, in milliseconds of CPU.
    pub burst_ms: u64,
}

/// Memory settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct MemoryExtension {
    /// Protected from reclaim, MiB (cgroup v2 `memory.low`, v1 `soft_limit`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low: Option<f64>,
    /// Throttled above, MiB (cgroup v2 `memory.high`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
}

/// Block I/O settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct IoExtension {
    /// Weight, 1–10000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Limits by device path.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<IoLimit>,
}

/// Limits for one block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct IoLimit {
    /// Device path, e.g. `/dev/vda`.
    pub device: String,
    /// Bytes read per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_bps: Option<u64>,
    /// Bytes written per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_bps: Option<u64>,
    /// Reads per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_iops: Option<u64>,
    /// Writes per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_iops: Option<u64>,
}

/// Log policy of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct LogExtension {
    /// Bytes of log kept for the container; absent means the node's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
}

/// GPU share of a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct GpuExtension {
    /// Part of one GPU, above 0 and below 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
}
