//! Settings of the pods' networks.

use std::path::PathBuf;
use std::time::Duration;

use agentd_api::pod::Dns;
use ipnet::{Ipv4Net, Ipv6Net};

use super::{HostFiles, fail, names, subnet};
use crate::IsolatorError;

/// Whether pods on the built-in network have IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ipv6 {
    /// Where the host has it, with a unique local /64 derived from host and instance.
    #[default]
    Auto,
    /// Never.
    Off,
    /// With this subnet, of prefix length 96 or less.
    Subnet(Ipv6Net),
}

/// Settings of the pods' networks. [`NetworkSettings::new`] fills in the defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSettings {
    /// Instance name of the daemon: 1 to 63 of `A-Za-z0-9._-`.
    pub instance: String,
    /// Folder for what must survive the daemon.
    pub state_dir: PathBuf,
    /// Name of the bridge, at most 15 characters; none derives it from the instance (`agentd0` for `agentd`).
    pub bridge: Option<String>,
    /// IPv4 subnet of the pods; none chooses a /20 of 10.64.0.0/10 that is free of the host's routes.
    pub subnet_v4: Option<Ipv4Net>,
    /// IPv6 of the pods.
    pub ipv6: Ipv6,
    /// Largest packet; 0 means that of the link with the host's default route, else 1500.
    pub mtu: u32,
    /// First and last host port given out for `hostPort: 0`.
    pub port_range: (u16, u16),
    /// Ports of the daemon: pods neither get them nor, unless `daemon_access` is set, reach them.
    pub daemon_ports: Vec<u16>,
    /// Whether pods reach the daemon's ports.
    pub daemon_access: bool,
    /// Further names of the built-in network, e.g. `dcos`.
    pub aliases: Vec<String>,
    /// Whether pods reach the host's services in general; if not, only ICMP and DNS.
    pub host_access: bool,
    /// Whether pods reach link-local addresses (cloud metadata services).
    pub allow_metadata: bool,
    /// Whether machines outside reach pods' addresses (with a route to them), not only host ports.
    pub allow_inbound: bool,
    /// Folder with CNI network configurations.
    pub cni_conf_dir: PathBuf,
    /// Folders with CNI plugins.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// Longest run of a CNI plugin.
    pub cni_time_limit: Duration,
    /// DNS settings for pods in container mode; empty lists mean the host's.
    pub dns: Dns,
    /// The host's files that pods' files are made from.
    pub host_files: HostFiles,
}

impl NetworkSettings {
    /// The defaults for an instance.
    pub fn new(instance: impl Into<String>, state_dir: impl Into<PathBuf>) -> Self {
        Self {
            instance: instance.into(),
            state_dir: state_dir.into(),
            bridge: None,
            subnet_v4: None,
            ipv6: Ipv6::Auto,
            mtu: 0,
            port_range: (31000, 32000),
            daemon_ports: Vec::new(),
            daemon_access: false,
            aliases: Vec::new(),
            host_access: true,
            allow_metadata: false,
            allow_inbound: false,
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cni_time_limit: Duration::from_mins(1),
            dns: Dns::default(),
            host_files: HostFiles::default(),
        }
    }

    /// Name of the bridge.
    pub(super) fn bridge_name(&self) -> String {
        self.bridge.clone().unwrap_or_else(|| names::bridge(&self.instance))
    }

    /// Checks every setting.
    pub(super) fn validate(&self) -> Result<(), IsolatorError> {
        if !names::is_plain(&self.instance) {
            return Err(fail(format!(
                "instance name {:?} is not usable: expected 1 to 63 letters, digits, '.', '_' and '-', starting with a letter or digit",
                self.instance
            )));
        }
        let bridge = self.bridge_name();
        if bridge.len() > 15 || !names::is_plain(&bridge) {
            return Err(fail(format!(
                "bridge name {bridge:?} is not usable: expected 1 to 15 letters, digits, '.', '_' and '-'"
            )));
        }
        let (low, high) = self.port_range;
        if low == 0 || low > high {
            return Err(fail(format!("port_range {low} to {high} is not usable: expected two ports, the lower first")));
        }
        if self.mtu != 0 && !(1280..=65535).contains(&self.mtu) {
            return Err(fail(format!("mtu {} is not usable: expected 0, or 1280 to 65535", self.mtu)));
        }
        if let Some(net) = self.subnet_v4 {
            subnet::check_v4(net)?;
        }
        if let Ipv6::Subnet(net) = self.ipv6 {
            subnet::check_v6(net)?;
        }
        Ok(())
    }
}
