//! Bodies of the local API that are not pods.

use serde::{Deserialize, Serialize};

/// `GET /v1/node`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInfo {
    /// Instance name of this daemon.
    pub instance: String,
    /// Host name.
    pub hostname: String,
    /// Version of agentd.
    pub version: String,
    /// Kernel release.
    pub kernel: String,
    /// Boot id.
    pub boot_id: String,
    /// `v1`, `hybrid` or `v2`.
    pub cgroups: String,
    /// What the host has.
    pub total: NodeResources,
    /// What is kept for the host.
    pub reserved: NodeResources,
    /// What pods hold.
    pub used: NodeResources,
    /// What is left.
    pub free: NodeResources,
    /// Number of instances.
    pub instances: u32,
}

/// Amounts of a node.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct NodeResources {
    /// CPUs.
    pub cpus: f64,
    /// Memory, MiB.
    pub mem: f64,
    /// Disk, MiB.
    pub disk: f64,
    /// GPUs.
    pub gpus: f64,
}

/// `GET /v1/observe`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Observation {
    /// How each signal of the kernel is had.
    pub signals: Vec<ObservedSignal>,
    /// Programs in the kernel.
    pub programs: Vec<ObservedProgram>,
    /// Their maps.
    pub maps: Vec<ObservedMap>,
    /// Containers that run and are known.
    pub containers: u64,
    /// Containers that ended a while ago and whose figures are kept.
    pub ended: u64,
}

/// How a signal of the kernel is had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObservedSignal {
    /// Its name, e.g. `run-queue`.
    pub signal: String,
    /// `tp_btf`, `raw_tp`, `tracepoint`, `cgroup`, `perf_event`, `files` or `off`.
    pub rung: String,
    /// The group of programs that gives it.
    pub group: String,
    /// Why it stands no higher; absent on the best rung.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// A program in the kernel. Its runs are counted while the kernel keeps run-time statistics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObservedProgram {
    /// Its name.
    pub name: String,
    /// Its group.
    pub group: String,
    /// The kernel's number of it.
    pub id: u32,
    /// Runs.
    pub runs: u64,
    /// Time in it, ns.
    pub run_time_ns: u64,
    /// Runs that the kernel left out.
    pub missed: u64,
}

/// A map of the programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObservedMap {
    /// Its name.
    pub name: String,
    /// Entries that it has room for.
    pub capacity: u64,
    /// Entries in it, where that is cheap to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// Memory of the kernel that it takes, bytes.
    pub bytes: u64,
}

/// One entry of `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// One above that of the event before it, also over restarts of the daemon; after one of the host there is a gap.
    pub id: u64,
    /// RFC 3339.
    pub time: String,
    /// Kind, e.g. `container-started`, `container-ended`, `pod-removed`, `image-pulling`.
    pub kind: String,
    /// Pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// One line for people.
    pub message: String,
}

/// One image of `GET /v1/images`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageInfo {
    /// Reference, e.g. `docker.io/library/nginx:latest`.
    pub reference: String,
    /// Digest of its manifest, `sha256:…`.
    pub digest: String,
    /// Bytes of its unpacked layers.
    pub size: u64,
    /// Number of layers.
    pub layers: u32,
    /// RFC 3339 time of the pull or import.
    pub created_at: String,
    /// Whether an instance uses it.
    pub in_use: bool,
}

/// `POST /v1/images/pull`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullRequest {
    /// Reference.
    pub reference: String,
    /// Whether the registry is asked even when the image is present.
    #[serde(default)]
    pub force: bool,
}

/// `POST /v1/images/import`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportRequest {
    /// Absolute path on the host of an OCI layout folder or a docker-archive tar.
    pub path: String,
    /// Reference to store it under; default the one it carries.
    #[serde(default)]
    pub reference: Option<String>,
}

/// One line of the progress stream of a pull or an import (JSON lines).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum Progress {
    /// The manifest is known.
    Resolved {
        /// Digest of the manifest.
        digest: String,
        /// Number of layers.
        layers: u32,
        /// Bytes to fetch in all (compressed).
        bytes: u64,
    },
    /// More of a blob has arrived.
    Blob {
        /// Digest.
        digest: String,
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A layer is unpacked.
    Unpacked {
        /// Digest.
        digest: String,
    },
    /// The image is ready. Always the last line of a pull that succeeded.
    Done {
        /// The image.
        image: ImageInfo,
    },
    /// The pull failed. Always the last line of a pull that failed.
    Failed {
        /// One line for people.
        message: String,
    },
}

/// One container of `GET /v1/usage`. Counters only grow while the container runs its attempt.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerUsage {
    /// Pod.
    pub pod: String,
    /// Instance.
    pub instance: String,
    /// Container.
    pub container: String,
    /// Number of its start.
    pub attempt: u32,
    /// When this was read, RFC 3339.
    pub time: String,
    /// CPU time, nanoseconds.
    pub cpu_ns: u64,
    /// Its CPU limit, thousandths of a CPU; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_limit_milli: Option<u64>,
    /// Memory in use now, bytes.
    pub memory_bytes: u64,
    /// Its memory limit, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes read from and written to block devices, where the host counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_read_bytes: Option<u64>,
    /// Bytes written to block devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_write_bytes: Option<u64>,
    /// Bytes that the pod received; its containers share the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_receive_bytes: Option<u64>,
    /// Bytes that the pod sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_transmit_bytes: Option<u64>,
}
