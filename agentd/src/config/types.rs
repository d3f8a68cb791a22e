//! The configuration as plain data, and its defaults.

use std::path::{Path, PathBuf};

use agentd_isolators::rootfs::DEFAULT_ETC;
use ipnet::{Ipv4Net, Ipv6Net};
use sha2::{Digest, Sha256};

use super::api::{Api, Sessions};
use super::observe::{Metrics, Observe};
use super::otlp::Otlp;

/// Everything that the daemon can be told. Values are always valid: they come from [`super::load`].
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Name from which all that agentd makes on a host is named: `[a-z0-9-]`, at most 20 characters.
    pub instance: String,
    /// Name of the host in what agentd reports; absent means the host's own.
    pub hostname: Option<String>,
    /// Folder of `--dev`, when given.
    pub dev: Option<PathBuf>,
    /// Where things are.
    pub paths: Paths,
    /// What pods never get.
    pub reserved: Reserved,
    /// What the host has, where it is not to be measured.
    pub resources: Resources,
    /// How pods are run.
    pub pods: Pods,
    /// Which files of the host pods see.
    pub host_files: HostFiles,
    /// Images and registries.
    pub images: Images,
    /// Networks of pods.
    pub network: Network,
    /// Fetching of artifacts.
    pub artifacts: Artifacts,
    /// Logs of containers and of the daemon.
    pub logs: Logs,
    /// The local API.
    pub api: Api,
    /// Sessions in containers.
    pub sessions: Sessions,
    /// Delivery to an OpenTelemetry collector.
    pub otlp: Otlp,
    /// How containers are watched.
    pub observe: Observe,
    /// What metrics are gathered and where they are served.
    pub metrics: Metrics,
}

/// Where things are.
#[derive(Debug, Clone, PartialEq)]
pub struct Paths {
    /// What must survive the daemon, but not the host: on tmpfs.
    pub run: PathBuf,
    /// What must survive the host.
    pub state: PathBuf,
    /// The API's socket.
    pub socket: PathBuf,
    /// Files with secrets.
    pub secrets: PathBuf,
    /// Seccomp profiles that pods may name.
    pub seccomp: PathBuf,
    /// CNI network configurations.
    pub cni_config: PathBuf,
    /// Folders of CNI plugins.
    pub cni_plugins: Vec<PathBuf>,
}

/// What is kept back for the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Reserved {
    /// CPUs.
    pub cpus: f64,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Disk, MiB.
    pub disk_mib: u64,
}

/// What the host has; each absent value is measured.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Resources {
    /// CPUs.
    pub cpus: Option<f64>,
    /// Memory, MiB.
    pub memory_mib: Option<u64>,
    /// Disk, MiB.
    pub disk_mib: Option<u64>,
}

/// How the limit on a container's disk use is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskEnforcement {
    /// The first of quota, loop, meter that the host can do.
    Auto,
    /// Project quota of the state folder's file system.
    Quota,
    /// A file system of its own in a file.
    Loop,
    /// Measured now and then; a container above its limit is killed.
    Meter,
}

impl DiskEnforcement {
    /// Word in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Quota => "quota",
            Self::Loop => "loop",
            Self::Meter => "meter",
        }
    }

    pub(super) fn from_word(word: &str) -> Option<Self> {
        [Self::Auto, Self::Quota, Self::Loop, Self::Meter].into_iter().find(|value| value.word() == word)
    }
}

/// How pods are run.
#[derive(Debug, Clone, PartialEq)]
pub struct Pods {
    /// Sandboxes kept ready.
    pub pool_size: u64,
    /// Container processes kept ready in each of them.
    pub pool_containers: u64,
    /// Limit on processes and threads of a container that names none.
    pub default_pids: u64,
    /// Limit on the disk use of a container that names none, MiB.
    pub default_disk_mib: u64,
    /// How that limit is kept.
    pub disk_enforcement: DiskEnforcement,
    /// Time from SIGTERM to SIGKILL where the pod names none, seconds.
    pub kill_grace_seconds: f64,
}

/// Which files of the host pods see.
#[derive(Debug, Clone, PartialEq)]
pub struct HostFiles {
    /// Files and folders that containers without an image see, read-only: paths relative to `/etc`, and a `*` may end
    /// the last component.
    pub etc: Vec<PathBuf>,
    /// Folders at or below which a volume's host path must be.
    pub allowed_host_paths: Vec<PathBuf>,
}

/// Images.
#[derive(Debug, Clone, PartialEq)]
pub struct Images {
    /// Credentials for registries, in the format of Docker's `config.json`.
    pub auth_file: Option<PathBuf>,
    /// Use of the state folder's file system, in percent, at which unused images are removed.
    pub high_watermark: u64,
    /// Use in percent at which removing stops.
    pub low_watermark: u64,
    /// Whether compressed layers are kept once they are unpacked.
    pub keep_blobs: bool,
    /// Registries that need other than the ordinary treatment.
    pub registries: Vec<Registry>,
}

/// One registry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Registry {
    /// Host, with the port where it is not 443.
    pub host: String,
    /// Hosts asked first, in this order.
    pub mirrors: Vec<String>,
    /// File of further trusted certificates, PEM.
    pub ca: Option<PathBuf>,
    /// Whether plain HTTP is used.
    pub insecure: bool,
}

/// A range of ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// Lowest.
    pub first: u16,
    /// Highest.
    pub last: u16,
}

impl std::fmt::Display for PortRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl PortRange {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-')?;
        let range = Self { first: first.trim().parse().ok()?, last: last.trim().parse().ok()? };
        (range.first > 0 && range.first <= range.last).then_some(range)
    }
}

/// IPv6 of the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subnet6 {
    /// A unique local /64 of the host's own, where the host has IPv6.
    Auto,
    /// None.
    Off,
    /// This one.
    Net(Ipv6Net),
}

impl std::fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::Net(net) => net.fmt(f),
        }
    }
}

impl Subnet6 {
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "off" => Some(Self::Off),
            _ => text
                .parse::<Ipv6Net>()
                .ok()
                .filter(|net| net.trunc() == *net && (8..=96).contains(&net.prefix_len()))
                .map(Self::Net),
        }
    }
}

/// Networks of pods.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// Name of the bridge; absent means one from the instance's name.
    pub bridge: Option<String>,
    /// IPv4 subnet of the bridge; absent means one that is free of the host's routes.
    pub subnet: Option<Ipv4Net>,
    /// IPv6 subnet of the bridge.
    pub subnet6: Subnet6,
    /// Largest packet; 0 means that of the link with the host's default route.
    pub mtu: u64,
    /// Host ports for endpoints that ask for any.
    pub port_range: PortRange,
    /// Name servers of pods; empty means those of the host.
    pub dns_servers: Vec<String>,
    /// Search domains of pods; empty means those of the host.
    pub dns_search: Vec<String>,
    /// Further names of the bridge's network.
    pub aliases: Vec<String>,
    /// Whether pods reach the host's services in general, not only name servers.
    pub host_access: bool,
    /// Whether pods reach link-local addresses, where clouds keep credentials.
    pub allow_metadata: bool,
    /// Whether machines outside reach pods' own addresses, not only host ports.
    pub allow_inbound: bool,
}

/// Fetching of artifacts.
#[derive(Debug, Clone, PartialEq)]
pub struct Artifacts {
    /// Folders below which `file://` artifacts may be.
    pub file_roots: Vec<PathBuf>,
    /// Largest artifact, bytes.
    pub max_bytes: u64,
    /// Longest time for one artifact, seconds.
    pub timeout_seconds: u64,
    /// Whether an artifact may come from this host's loopback addresses.
    pub allow_loopback: bool,
}

/// Format of the daemon's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object for each line.
    Json,
}

impl LogFormat {
    /// Word in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// Logs.
#[derive(Debug, Clone, PartialEq)]
pub struct Logs {
    /// Bytes kept of one container's output.
    pub max_bytes_per_container: u64,
    /// What the daemon logs: a level, or directives such as `info,agentd::network=debug`.
    pub level: String,
    /// How it logs.
    pub format: LogFormat,
}

impl Config {
    /// The defaults of an instance. With `dev`, everything that is made or read lies below that folder.
    pub fn defaults(instance: &str, dev: Option<&Path>) -> Self {
        let run = dev.map_or_else(|| Path::new("/run").join(instance), |dev| dev.join("run"));
        let state = dev.map_or_else(|| Path::new("/var/lib").join(instance), |dev| dev.join("state"));
        let etc = dev.unwrap_or(Path::new("/etc/agentd"));
        let socket = dev.map_or_else(|| run.join("agentd.sock"), |dev| dev.join("agentd.sock"));
        Self {
            instance: instance.to_owned(),
            hostname: None,
            dev: dev.map(Path::to_path_buf),
            paths: Paths {
                run,
                state,
                socket,
                secrets: etc.join("secrets"),
                seccomp: etc.join("seccomp"),
                cni_config: dev.map_or_else(|| PathBuf::from("/etc/cni/net.d"), |dev| dev.join("cni")),
                cni_plugins: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            },
            reserved: Reserved { cpus: 0.1, memory_mib: 256, disk_mib: 1024 },
            resources: Resources::default(),
            pods: Pods {
                pool_size: 8,
                pool_containers: 1,
                default_pids: 4096,
                default_disk_mib: 10240,
                disk_enforcement: DiskEnforcement::Auto,
                kill_grace_seconds: 3.0,
            },
            host_files: HostFiles {
                etc: DEFAULT_ETC.iter().map(PathBuf::from).collect(),
                allowed_host_paths: vec!["/".into()],
            },
            images: Images {
                auth_file: None,
                high_watermark: 85,
                low_watermark: 70,
                keep_blobs: false,
                registries: Vec::new(),
            },
            network: Network {
                bridge: None,
                subnet: None,
                subnet6: Subnet6::Auto,
                mtu: 0,
                port_range: default_ports(instance),
                dns_servers: Vec::new(),
                dns_search: Vec::new(),
                aliases: Vec::new(),
                host_access: true,
                allow_metadata: false,
                allow_inbound: false,
            },
            artifacts: Artifacts {
                file_roots: Vec::new(),
                max_bytes: 4 << 30,
                timeout_seconds: 600,
                allow_loopback: false,
            },
            logs: Logs { max_bytes_per_container: 20 << 20, level: "info".to_owned(), format: LogFormat::Text },
            api: Api::defaults(etc),
            sessions: Sessions::default(),
            otlp: Otlp::default(),
            observe: Observe::default(),
            metrics: Metrics::default(),
        }
    }
}

/// Instance of a `--dev` folder that names none: from the folder, so that it is the same at every start.
pub(super) fn dev_instance(dev: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let digest = Sha256::digest(dev.as_os_str().as_bytes());
    format!("dev-{:02x}{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2], digest[3])
}

/// Ports of an instance. Ranges of 1,000 end below Linux's ephemeral ports; the ordinary instance has a fixed one, the others
/// one of eleven by a hash of the name. Two that come to share one get its ports first come, first served.
fn default_ports(instance: &str) -> PortRange {
    let slot =
        if instance == super::DEFAULT_INSTANCE { 11 } else { u16::from(Sha256::digest(instance.as_bytes())[0]) % 11 };
    let first = 20_000 + slot * 1000;
    PortRange { first, last: first + 999 }
}
