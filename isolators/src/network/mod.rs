//! Networks of pods.
//!
//! A pod is in one of three modes. *Host*: it uses the host's network namespace, and only its ports are kept account of.
//! *Isolated*: an own namespace with nothing but loopback. *Container*: an own namespace, joined to named networks: the
//! built-in bridge (`default`, and the names in [`NetworkSettings::aliases`]) and those that CNI plugins make.
//!
//! The built-in network is one Linux bridge with a veth pair for each pod, addresses from one IPv4 subnet (and one IPv6
//! /64 whose addresses follow the IPv4 ones), and one nft table (the module `firewall` says what is in it). Pods on the bridge reach each
//! other, the outside through the host's address, and the host except for what the firewall keeps from them. Bridge,
//! table and the host's forwarding settings are made when the first pod needs them.
//!
//! Forwarding (`net.ipv4.ip_forward`, `net.ipv6.conf.all.forwarding`) is one setting for the whole host: it is switched
//! on where it is off, said in the log, and never switched off again, because others may have come to rely on it.
//!
//! Every function here blocks, some until a CNI plugin or nft has ended, and must be called from a thread that is not
//! running async code (`spawn_blocking`). All of them may be called at the same time for different pods. Work for one
//! pod must not overlap.
//!
//! What a pod holds is written to `<state_dir>/pods/<instance>.json` before anything is done on the host. With a state
//! folder on tmpfs it goes with the kernel's own state on a reboot; CNI plugins that keep leases on disk then need one on disk.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agentd_api::pod::{NetworkMode, PodSpec, Protocol};
use agentd_api::problem::Violation;
use serde::{Deserialize, Serialize};

use crate::IsolatorError;

mod attach;
mod base;
mod cni;
mod exec;
mod files;
mod firewall;
mod ledger;
mod link;
mod names;
mod ports;
mod recover;
mod settings;
mod store;
mod subnet;
mod sysctl;

pub use files::HostFiles;
pub use ledger::PodMode;
pub use recover::Recovered;
pub use settings::{Ipv6, NetworkSettings};
pub use subnet::Subnets;

/// Name of the isolator.
const ISOLATOR: &str = "network";

/// Name of the built-in network.
pub const DEFAULT_NETWORK: &str = "default";

fn fail(message: impl Into<String>) -> IsolatorError {
    IsolatorError::new(ISOLATOR, message)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked has left nothing half-done that the next call would not find on disk or in the kernel.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An endpoint of a pod and where it is reachable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointPort {
    /// Container.
    pub container: String,
    /// Endpoint.
    pub endpoint: String,
    /// Port in the container (container mode).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_port: Option<u16>,
    /// Port on the host; a number even where the pod asked for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
    /// Protocols.
    pub protocols: Vec<Protocol>,
}

/// How a pod is joined to the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNetwork {
    /// Mode.
    pub mode: PodMode,
    /// Its addresses, the built-in network's first; empty in host and isolated mode.
    pub addresses: Vec<IpAddr>,
    /// Its gateway on the built-in network, else on the first CNI network that names one.
    pub gateway: Option<IpAddr>,
    /// Its endpoints.
    pub endpoints: Vec<EndpointPort>,
}

/// What [`Network::attach`] needs.
#[derive(Debug, Clone, Copy)]
pub struct AttachRequest<'a> {
    /// Id of the pod's instance.
    pub instance: &'a str,
    /// The pod.
    pub pod: &'a PodSpec,
    /// Host name of the pod (host mode: of the host).
    pub hostname: &'a str,
    /// The pod's network namespace; needed in container mode.
    pub netns: Option<BorrowedFd<'a>>,
    /// The pod's folder; the files for `/etc` are written to `etc` in it.
    pub pod_dir: &'a Path,
}

/// The networks of this host's pods.
#[derive(Debug)]
pub struct Network {
    settings: NetworkSettings,
    bridge: String,
    firewall: firewall::Firewall,
    cni: cni::Cni,
    ledger: Mutex<ledger::Ledger>,
    base: Mutex<Option<base::Base>>,
    links: Mutex<Option<Arc<link::Links>>>,
    /// Held while nft runs, so that a rebuild and a change of elements do not overtake each other.
    nft: Mutex<()>,
    /// Sockets that hold the host ports of pods in container mode, by instance.
    held: Mutex<HashMap<String, Vec<OwnedFd>>>,
}

/// What a name in `networks` stands for.
enum Resolved {
    BuiltIn,
    Cni(cni::config::NetworkConfig),
}

impl Network {
    /// Reads the state of an earlier run. Changes nothing on the host but the state folder; the calling thread's network
    /// namespace is the host's from now on.
    pub fn new(settings: NetworkSettings) -> Result<Self, IsolatorError> {
        settings.validate()?;
        let bridge = settings.bridge_name();
        let firewall = firewall::Firewall {
            table: names::table(&settings.instance),
            bridge: bridge.clone(),
            daemon_ports: if settings.daemon_access { Vec::new() } else { settings.daemon_ports.clone() },
            allow_metadata: settings.allow_metadata,
            allow_inbound: settings.allow_inbound,
            host_access: settings.host_access,
        };
        let cni = cni::Cni { bin_dirs: settings.cni_bin_dirs.clone(), time_limit: settings.cni_time_limit };
        let ledger = Mutex::new(ledger::Ledger::open(&settings.state_dir)?);
        Ok(Self {
            settings,
            bridge,
            firewall,
            cni,
            ledger,
            base: Mutex::new(None),
            links: Mutex::new(None),
            nft: Mutex::new(()),
            held: Mutex::default(),
        })
    }

    /// Names of the built-in network.
    fn built_in(&self) -> Vec<String> {
        std::iter::once(DEFAULT_NETWORK.to_owned()).chain(self.settings.aliases.iter().cloned()).collect()
    }

    /// What each of the pod's networks stands for; the error is the path and what is wrong.
    fn resolve(&self, pod: &PodSpec) -> Result<Vec<Resolved>, Violation> {
        let built_in = self.built_in();
        let mut resolved = Vec::with_capacity(pod.networks.len());
        for (index, network) in pod.networks.iter().enumerate() {
            let Some(name) = network.name.as_ref().filter(|name| !built_in.contains(name)) else {
                if resolved.iter().any(|other| matches!(other, Resolved::BuiltIn)) {
                    let message = "names the built-in network a second time: join it once";
                    return Err(Violation::new(format!("networks[{index}].name"), message));
                }
                resolved.push(Resolved::BuiltIn);
                continue;
            };
            let (mut networks, known) = cni::known(&self.settings.cni_conf_dir, &built_in);
            let Some(config) = networks.remove(name) else {
                let message = format!(
                    "no network {name:?} on this node: expected one of {known}; describe others in {}",
                    self.settings.cni_conf_dir.display()
                );
                return Err(Violation::new(format!("networks[{index}].name"), message));
            };
            resolved.push(Resolved::Cni(config));
        }
        Ok(resolved)
    }

    /// Names every field of the pod that this host's networks cannot honour. Changes nothing.
    pub fn check(&self, pod: &PodSpec, violations: &mut Vec<Violation>) {
        let mode = mode_of(pod);
        let wanted = ports::wanted(pod);
        if mode == PodMode::Container {
            match self.resolve(pod) {
                Ok(resolved) => self.check_networks(&resolved, &wanted, violations),
                Err(violation) => violations.push(violation),
            }
        }
        let ledger = lock(&self.ledger);
        for want in &wanted {
            let Some(port) = want.endpoint.host_port else {
                continue;
            };
            if mode == PodMode::Isolated {
                let message = "a pod with agentd.isolatedNetwork cannot be reached: remove the endpoint or the setting";
                violations.push(Violation::new(&want.path, message));
                continue;
            }
            for protocol in want.endpoint.protocol.iter().filter(|_| port != 0) {
                // An instance of the same pod: whether a second one has room is for the launch to say.
                if ledger.holder(*protocol, port).is_some_and(|holder| holder.pod == pod.id) {
                    continue;
                }
                if let Err(message) =
                    ledger.fixed_port(want, *protocol, port, &|protocol, port| self.usable(protocol, port))
                {
                    let message = message.strip_prefix(&format!("{}: ", want.path)).unwrap_or(&message).to_owned();
                    violations.push(Violation::new(&want.path, message));
                }
            }
        }
    }

    fn check_networks(&self, resolved: &[Resolved], wanted: &[ledger::Wanted<'_>], violations: &mut Vec<Violation>) {
        let mut maps_ports = false;
        for (index, network) in resolved.iter().enumerate() {
            let path = format!("networks[{index}]");
            match network {
                Resolved::BuiltIn => {
                    maps_ports = true;
                    if firewall::program().is_none() {
                        let message =
                            "the built-in network needs nft, which is not installed: install the package nftables";
                        violations.push(Violation::new(path, message));
                    }
                }
                Resolved::Cni(config) => {
                    maps_ports |= config.has_capability("portMappings");
                    for program in config.programs().filter(|program| self.cni.find(program).is_none()) {
                        let message = format!(
                            "network {} needs the CNI plugin {program}, which is in none of {}: install it (package containernetworking-plugins) or set network.cni_bin_dirs",
                            config.name,
                            self.cni.folders()
                        );
                        violations.push(Violation::new(&path, message));
                    }
                }
            }
        }
        if !maps_ports && let Some(want) = wanted.iter().find(|want| want.endpoint.host_port.is_some()) {
            let message = "no network of the pod can map host ports: join the network default too, or add a plugin with the capability portMappings";
            violations.push(Violation::new(&want.path, message));
        }
    }

    /// Whether a port of the host can be given to a pod; the error continues the sentence "tcp port 80 …".
    fn usable(&self, protocol: Protocol, port: u16) -> Result<(), String> {
        if self.settings.daemon_ports.contains(&port) {
            return Err("belongs to agentd".to_owned());
        }
        ports::probe(protocol, port)
    }

    /// The netlink connection; a new one where there is none or the old one has broken.
    fn links(&self) -> Result<Arc<link::Links>, IsolatorError> {
        let mut links = lock(&self.links);
        if let Some(open) = links.as_ref().filter(|open| open.is_open()) {
            return Ok(Arc::clone(open));
        }
        let open = link::Links::open();
        let open = Arc::new(open.map_err(|error| IsolatorError::io(ISOLATOR, "cannot open a netlink socket", error))?);
        *links = Some(Arc::clone(&open));
        Ok(open)
    }

    /// How a pod is joined; none for one that is not attached.
    pub fn pod_network(&self, instance: &str) -> Option<PodNetwork> {
        let record = lock(&self.ledger).get(instance).cloned();
        record.map(|record| self.describe(&record))
    }

    fn describe(&self, record: &ledger::Record) -> PodNetwork {
        let gateway = match record.address {
            Some(_) => self.subnets().map(|subnets| IpAddr::V4(subnets.gateway_v4())),
            None => record.cni.iter().find_map(cni::Attachment::gateway),
        };
        PodNetwork { mode: record.mode, addresses: record.addresses(), gateway, endpoints: record.endpoints.clone() }
    }

    /// The subnets of the built-in network; none before a pod needed it.
    pub fn subnets(&self) -> Option<Subnets> {
        let known = lock(&self.base).as_ref().map(|base| base.subnets);
        known.or_else(|| subnet::load(&self.settings.state_dir))
    }

    /// Rules of other programs that stand in the way of the built-in network: one line each, with the cure. Only what
    /// nft shows is found, not the rules of iptables-legacy.
    pub fn obstacles(&self) -> Result<Vec<String>, IsolatorError> {
        self.firewall.obstacles()
    }

    /// Name of the bridge of the built-in network.
    pub fn bridge(&self) -> &str {
        &self.bridge
    }

    /// Name of the nft table (family `inet`).
    pub fn table(&self) -> &str {
        &self.firewall.table
    }
}

/// The mode that a pod asks for.
pub fn mode_of(pod: &PodSpec) -> PodMode {
    match pod.networks.first() {
        None if pod.agentd.isolated_network => PodMode::Isolated,
        None => PodMode::Host,
        Some(network) if network.mode == NetworkMode::Host => PodMode::Host,
        Some(_) => PodMode::Container,
    }
}
