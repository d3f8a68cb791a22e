//! The ledger: which pod holds which addresses, host ports and CNI attachments. One file for each pod, written before
//! anything is done on the host, so that whatever a crash leaves behind can be found and undone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use agentd_api::pod::Protocol;
use serde::{Deserialize, Serialize};

use super::cni::Attachment;
use super::subnet::Subnets;
use super::{EndpointPort, fail, names, store};
use crate::IsolatorError;

/// How a pod is joined to the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodMode {
    /// The host's network namespace.
    Host,
    /// An own namespace with nothing but loopback.
    Isolated,
    /// An own namespace, joined to networks.
    Container,
}

/// What one pod holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    /// Increases from record to record; the highest tells where the search for the next address goes on.
    pub sequence: u64,
    /// Id of the pod's instance.
    pub sandbox: String,
    /// Id of the pod.
    pub pod: String,
    /// Mode.
    pub mode: PodMode,
    /// Address on the built-in bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// The same for IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_v6: Option<std::net::Ipv6Addr>,
    /// Endpoints, with the host ports given to them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<EndpointPort>,
    /// Attachments to CNI networks, in the order in which they are made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cni: Vec<Attachment>,
}

impl Record {
    /// Every address of the pod.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let built_in = self.address.map(IpAddr::V4).into_iter().chain(self.address_v6.map(IpAddr::V6));
        built_in.chain(self.cni.iter().flat_map(Attachment::addresses)).collect()
    }
}

/// A host port that an endpoint asks for.
#[derive(Debug, Clone)]
pub(super) struct Wanted<'a> {
    /// Path of the field, for errors.
    pub path: String,
    /// Container.
    pub container: &'a str,
    /// Endpoint.
    pub endpoint: &'a agentd_api::pod::Endpoint,
}

/// All records, in memory and on disk.
#[derive(Debug)]
pub(super) struct Ledger {
    folder: PathBuf,
    records: BTreeMap<String, Record>,
    addresses: HashSet<Ipv4Addr>,
    ports: HashMap<(Protocol, u16), String>,
    /// Pods being detached: they still hold what they hold, but nothing is made for them any more.
    leaving: HashSet<String>,
    /// Where the search for an address goes on.
    cursor: u32,
    /// Where the search for a port goes on.
    port_cursor: u16,
    sequence: u64,
}

impl Ledger {
    /// Reads the records below `state_dir`.
    pub fn open(state_dir: &Path) -> Result<Self, IsolatorError> {
        let folder = state_dir.join("pods");
        let failed = |error| {
            IsolatorError::io(
                super::ISOLATOR,
                format!("cannot use the state folder {}, check that it can be made and written", folder.display()),
                error,
            )
        };
        std::fs::create_dir_all(&folder).map_err(failed)?;
        store::sweep(&folder);
        store::sweep(state_dir);
        let mut ledger = Self {
            folder: folder.clone(),
            records: BTreeMap::new(),
            addresses: HashSet::new(),
            ports: HashMap::new(),
            leaving: HashSet::new(),
            cursor: 0,
            port_cursor: 0,
            sequence: 0,
        };
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            if let Some(record) = store::read_json::<Record>(&path)
                && path.file_stem().is_some_and(|stem| stem == record.sandbox.as_str())
            {
                ledger.index(&record);
                ledger.records.insert(record.sandbox.clone(), record);
            }
        }
        if let Some(latest) = ledger.records.values().max_by_key(|record| record.sequence) {
            ledger.sequence = latest.sequence;
            ledger.cursor = latest.address.map_or(0, |address| u32::from(address) + 1);
        }
        Ok(ledger)
    }

    fn index(&mut self, record: &Record) {
        self.addresses.extend(record.address);
        for endpoint in &record.endpoints {
            if let Some(port) = endpoint.host_port {
                for protocol in &endpoint.protocols {
                    self.ports.insert((*protocol, port), record.sandbox.clone());
                }
            }
        }
    }

    fn path(&self, sandbox: &str) -> PathBuf {
        self.folder.join(format!("{sandbox}.json"))
    }

    /// The record of a pod.
    pub fn get(&self, sandbox: &str) -> Option<&Record> {
        self.records.get(sandbox)
    }

    /// Every record.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// Every record but those of pods being detached.
    pub fn staying(&self) -> impl Iterator<Item = &Record> {
        self.records.values().filter(|record| !self.leaving.contains(&record.sandbox))
    }

    /// Notes whether a pod is being detached.
    pub fn set_leaving(&mut self, sandbox: &str, leaving: bool) {
        if leaving {
            self.leaving.insert(sandbox.to_owned());
        } else {
            self.leaving.remove(sandbox);
        }
    }

    /// The record that holds a port.
    pub fn holder(&self, protocol: Protocol, port: u16) -> Option<&Record> {
        self.ports.get(&(protocol, port)).and_then(|sandbox| self.records.get(sandbox))
    }

    /// Finds a free address. The search goes round the subnet, so the address that rested longest comes first.
    pub fn pick_address(&self, subnets: &Subnets) -> Result<Ipv4Addr, IsolatorError> {
        let (first, last) = subnets.pod_range();
        let start = self.cursor.clamp(first, last.saturating_add(1));
        (start..=last).chain(first..start).map(Ipv4Addr::from).find(|address| !self.addresses.contains(address)).ok_or_else(
            || {
                fail(format!(
                    "subnet {} is exhausted: all {} addresses for pods are in use; end pods, or set network.subnet to a larger range and restart with no pod left",
                    subnets.v4,
                    last - first + 1
                ))
            },
        )
    }

    /// Finds host ports for the endpoints of a pod. `usable` tells whether a port is free on the host itself.
    pub fn pick_ports(
        &self,
        wanted: &[Wanted<'_>],
        range: (u16, u16),
        usable: &dyn Fn(Protocol, u16) -> Result<(), String>,
    ) -> Result<Vec<EndpointPort>, IsolatorError> {
        let mut taken: HashSet<(Protocol, u16)> = HashSet::new();
        let mut found: Vec<EndpointPort> = Vec::with_capacity(wanted.len());
        // Fixed ports first: a dynamic one must not take a port that a later endpoint names.
        for want in wanted {
            if let Some(port) = want.endpoint.host_port.filter(|port| *port != 0) {
                for protocol in &want.endpoint.protocol {
                    self.fixed_port(want, *protocol, port, usable).map_err(fail)?;
                    taken.insert((*protocol, port));
                }
            }
        }
        let (low, high) = range;
        let mut cursor = self.port_cursor.clamp(low, high);
        for want in wanted {
            let mut host_port = want.endpoint.host_port;
            if host_port == Some(0) {
                let port = (cursor..=high).chain(low..cursor).find(|port| {
                    want.endpoint.protocol.iter().all(|protocol| {
                        !taken.contains(&(*protocol, *port))
                            && !self.ports.contains_key(&(*protocol, *port))
                            && usable(*protocol, *port).is_ok()
                    })
                });
                let Some(port) = port else {
                    return Err(fail(format!(
                        "{}: found no free host port from {low} to {high}; end pods or widen network.port_range",
                        want.path
                    )));
                };
                taken.extend(want.endpoint.protocol.iter().map(|protocol| (*protocol, port)));
                cursor = if port >= high { low } else { port + 1 };
                host_port = Some(port);
            }
            found.push(EndpointPort {
                container: want.container.to_owned(),
                endpoint: want.endpoint.name.clone(),
                container_port: want.endpoint.container_port,
                host_port,
                protocols: want.endpoint.protocol.clone(),
            });
        }
        Ok(found)
    }

    /// Checks one fixed port; the error names the field, the port and its holder.
    pub fn fixed_port(
        &self,
        want: &Wanted<'_>,
        protocol: Protocol,
        port: u16,
        usable: &dyn Fn(Protocol, u16) -> Result<(), String>,
    ) -> Result<(), String> {
        let word = super::ports::word(protocol);
        if let Some(holder) = self.holder(protocol, port) {
            return Err(format!(
                "{}: {word} port {port} is held by pod {} (instance {}); choose another port, or 0 for a free one",
                want.path, holder.pod, holder.sandbox
            ));
        }
        usable(protocol, port)
            .map_err(|why| format!("{}: {word} port {port} {why}; choose another port, or 0 for a free one", want.path))
    }

    /// Number for the next record.
    pub fn next_sequence(&self) -> u64 {
        self.sequence + 1
    }

    /// Writes a record, then takes note of it.
    pub fn put(&mut self, record: Record) -> Result<(), IsolatorError> {
        debug_assert!(names::is_plain(&record.sandbox));
        // What a CNI plugin holds (its own leases) can be on disk and outlive a power failure; then so must the record.
        store::write_json(&self.path(&record.sandbox), &record, !record.cni.is_empty())?;
        if record.sequence > self.sequence {
            self.sequence = record.sequence;
            if let Some(address) = record.address {
                self.cursor = u32::from(address).wrapping_add(1);
            }
            if let Some(port) = record.endpoints.iter().filter_map(|endpoint| endpoint.host_port).next_back() {
                self.port_cursor = port.wrapping_add(1);
            }
        }
        self.index(&record);
        self.records.insert(record.sandbox.clone(), record);
        Ok(())
    }

    /// Removes a record; the addresses and ports are free then.
    pub fn remove(&mut self, sandbox: &str) -> Result<(), IsolatorError> {
        store::remove(&self.path(sandbox))?;
        self.leaving.remove(sandbox);
        if let Some(record) = self.records.remove(sandbox) {
            if let Some(address) = record.address {
                self.addresses.remove(&address);
            }
            self.ports.retain(|_, holder| *holder != sandbox);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
