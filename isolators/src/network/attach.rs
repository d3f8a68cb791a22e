//! Joining a pod to its networks, and taking it out again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use agentd_api::pod::{PodSpec, Protocol};

use super::base::Base;
use super::cni::{self, Attachment, Target};
use super::files::{self, PodFiles};
use super::ledger::Record;
use super::link::{self, POD_LINK, PodLink};
use super::{AttachRequest, ISOLATOR, Network, PodMode, PodNetwork, Resolved, fail, lock, mode_of, names, ports};
use crate::IsolatorError;

/// Sockets that hold host ports.
type Sockets = HashMap<(Protocol, u16), Vec<OwnedFd>>;

/// The host ports of a pod.
fn host_ports(record: &Record) -> impl Iterator<Item = (Protocol, u16)> {
    record.endpoints.iter().flat_map(|endpoint| {
        let port = endpoint.host_port;
        endpoint.protocols.iter().filter_map(move |protocol| Some((*protocol, port?)))
    })
}

impl Network {
    /// Joins a pod to its networks, reserves its host ports, and writes its files below `<pod_dir>/etc`. Loopback in
    /// the pod's namespace is pod-init's affair.
    ///
    /// Idempotent: for a pod that is attached it puts right what is missing and gives the same addresses and ports. If
    /// the first attempt fails, everything is undone.
    pub fn attach(&self, request: &AttachRequest<'_>) -> Result<PodNetwork, IsolatorError> {
        if !names::is_plain(request.instance) {
            return Err(fail(format!(
                "instance id {:?} is not usable: expected 1 to 63 letters, digits, '.', '_' and '-'",
                request.instance
            )));
        }
        let mode = mode_of(request.pod);
        let resolved = match mode {
            PodMode::Container => self.resolve(request.pod).map_err(|violation| fail(violation.to_string()))?,
            PodMode::Host | PodMode::Isolated => Vec::new(),
        };
        if mode == PodMode::Container && request.netns.is_none() {
            return Err(fail(format!(
                "instance {} has no network namespace, and container networks need one",
                request.instance
            )));
        }
        let built_in = resolved.iter().position(|network| matches!(network, Resolved::BuiltIn));
        let base = match built_in {
            Some(_) => Some(self.ensure_base()?),
            None => None,
        };
        let (record, fresh) = self.reserve(request, mode, resolved, base.as_ref())?;
        match self.join(request, record, built_in, fresh) {
            Ok(record) => Ok(self.describe(&record)),
            Err(error) => {
                // What was attached before may well be running; only a first attempt is undone.
                if fresh && let Err(undo) = self.detach(request.instance, request.netns) {
                    tracing::warn!(instance = request.instance, %undo, "could not undo a failed attachment; it is tried again at the next start");
                }
                Err(error)
            }
        }
    }

    /// Writes down what the pod will hold; tells whether that is new.
    fn reserve(
        &self,
        request: &AttachRequest<'_>,
        mode: PodMode,
        resolved: Vec<Resolved>,
        base: Option<&Base>,
    ) -> Result<(Record, bool), IsolatorError> {
        let mut ledger = lock(&self.ledger);
        ledger.set_leaving(request.instance, false);
        if let Some(record) = ledger.get(request.instance) {
            return Ok((record.clone(), false));
        }
        let wanted = ports::wanted(request.pod);
        let mut sockets = Sockets::new();
        let endpoints = match mode {
            // Nothing of the host leads to it; the ports are those of its own namespace.
            PodMode::Isolated => ledger.pick_ports(&wanted, self.settings.port_range, &|_, _| Ok(()))?,
            PodMode::Host => {
                let usable = |protocol, port| self.usable(protocol, port);
                ledger.pick_ports(&wanted, self.settings.port_range, &usable)?
            }
            PodMode::Container => {
                let taken = RefCell::new(Sockets::new());
                let usable = |protocol, port| {
                    self.usable(protocol, port)?;
                    taken.borrow_mut().insert((protocol, port), ports::hold(protocol, port)?);
                    Ok(())
                };
                let endpoints = ledger.pick_ports(&wanted, self.settings.port_range, &usable)?;
                sockets = taken.into_inner();
                endpoints
            }
        };
        let mut address = None;
        let mut address_v6 = None;
        if let Some(base) = base {
            let picked = ledger.pick_address(&base.subnets)?;
            address = Some(picked);
            address_v6 = base.subnets.address_v6(picked);
        }
        let mut runtime = cni::runtime_config(&endpoints, request.pod.agentd.dns.as_ref());
        if base.is_some() {
            // The built-in network maps the ports; a plugin that did so too would take them away.
            runtime.remove("portMappings");
        }
        let mut attachments = Vec::new();
        for (index, network) in resolved.into_iter().enumerate() {
            let Resolved::Cni(network) = network else {
                continue;
            };
            let mut own = runtime.clone();
            if network.has_capability("portMappings") {
                // The first network that can map the ports does it, no other.
                runtime.remove("portMappings");
            } else {
                own.remove("portMappings");
            }
            attachments.push(Attachment {
                network,
                interface: format!("{POD_LINK}{index}"),
                runtime: own,
                result: None,
            });
        }
        let unmapped = mode == PodMode::Container && runtime.contains_key("portMappings");
        if let Some(want) = ports::wanted(request.pod).iter().find(|want| unmapped && want.endpoint.host_port.is_some())
        {
            return Err(fail(format!(
                "{}: no network of the pod can map host ports: join the network default too, or add a plugin with the capability portMappings",
                want.path
            )));
        }
        let record = Record {
            sequence: ledger.next_sequence(),
            sandbox: request.instance.to_owned(),
            pod: request.pod.id.clone(),
            mode,
            address,
            address_v6,
            endpoints,
            cni: attachments,
        };
        ledger.put(record.clone())?;
        self.keep_ports(&record, sockets);
        Ok((record, true))
    }

    /// Keeps the sockets of the ports that a record has, and lets go of the others.
    fn keep_ports(&self, record: &Record, mut sockets: Sockets) {
        let kept: Vec<OwnedFd> = host_ports(record).filter_map(|port| sockets.remove(&port)).flatten().collect();
        if !kept.is_empty() {
            lock(&self.held).insert(record.sandbox.clone(), kept);
        }
    }

    /// Takes the host ports of a pod again that an earlier run of the daemon has given to it.
    pub(super) fn hold_ports_again(&self, record: &Record) {
        if record.mode != PodMode::Container {
            return;
        }
        let mut sockets = Sockets::new();
        for (protocol, port) in host_ports(record) {
            match ports::hold(protocol, port) {
                Ok(held) => drop(sockets.insert((protocol, port), held)),
                Err(why) => tracing::warn!(
                    instance = record.sandbox,
                    "{} port {port} of the host, which leads to this pod, {why}; the other program gets nothing there",
                    ports::word(protocol)
                ),
            }
        }
        self.keep_ports(record, sockets);
    }

    /// Brings about what the record says.
    fn join(
        &self,
        request: &AttachRequest<'_>,
        mut record: Record,
        built_in: Option<usize>,
        fresh: bool,
    ) -> Result<Record, IsolatorError> {
        if let (Some(netns), Some(index)) = (request.netns, built_in) {
            self.join_bridge(&record, netns, index)?;
            if self.firewall.concerns(&record) {
                self.open_ports(&record)?;
            }
        }
        let target = Target { sandbox: request.instance, pod: &record.pod.clone(), netns: request.netns };
        for index in 0..record.cni.len() {
            if record.cni[index].result.is_some() {
                if let Err(error) = self.cni.check(target, &record.cni[index]) {
                    tracing::warn!(instance = request.instance, %error, "a CNI network is not as it should be");
                }
                continue;
            }
            if !fresh && let Err(error) = self.cni.delete(target, &record.cni[index]) {
                // An ADD that was cut short; the ADD that follows says whether anything is in its way.
                tracing::debug!(instance = request.instance, %error, "could not undo an unfinished CNI attachment");
            }
            self.cni.add(target, &mut record.cni[index])?;
            lock(&self.ledger).put(record.clone())?;
        }
        self.write_files(request, &record)?;
        Ok(record)
    }

    fn write_files(&self, request: &AttachRequest<'_>, record: &Record) -> Result<(), IsolatorError> {
        let from_cni = record.cni.iter().find_map(Attachment::dns);
        let pod: &PodSpec = request.pod;
        let addresses = record.addresses();
        let files = PodFiles {
            mode: record.mode,
            hostname: request.hostname,
            addresses: &addresses,
            dns: pod.agentd.dns.as_ref().or(from_cni.as_ref()),
            node_dns: &self.settings.dns,
            host: &self.settings.host_files,
        };
        files::write(request.pod_dir, &files)
    }

    /// Gives the pod its link on the bridge, or puts right the one it has.
    fn join_bridge(&self, record: &Record, netns: BorrowedFd<'_>, index: usize) -> Result<(), IsolatorError> {
        let failed = |error: io::Error| {
            let cause = if error.raw_os_error() == Some(libc::EXFULL) {
                " (a Linux bridge has room for 1023 pods; put some on a CNI network)"
            } else {
                ""
            };
            IsolatorError::io(
                ISOLATOR,
                format!("cannot join instance {} to the bridge {}{cause}", record.sandbox, self.bridge),
                error,
            )
        };
        let name = names::veth(&self.settings.instance, &record.sandbox);
        let alias = names::veth_alias(&self.settings.instance, &record.sandbox);
        let links = self.links()?;
        let mut base = self.ensure_base()?;
        let Some(address) = record.address else {
            return Ok(());
        };
        let spec = |base: &Base| PodLink {
            host_name: &name,
            alias: &alias,
            pod_name: format!("{POD_LINK}{index}"),
            bridge: base.bridge,
            mtu: base.mtu,
            mac: names::pod_mac(address),
            address: (address, base.subnets.v4.prefix_len()),
            gateway: base.subnets.gateway_v4(),
            v6: record
                .address_v6
                .and_then(|own| Some((own, base.subnets.v6?.prefix_len(), base.subnets.gateway_v6()?))),
            // The default route of the pod's first network counts.
            metric: (index * 100) as u32,
        };
        let mut made = links.make_pair(&spec(&base), netns);
        if let Err(error) = &made
            && !matches!(error.raw_os_error(), Some(libc::EEXIST | libc::EXFULL | libc::EPERM))
        {
            // Somebody may have deleted the bridge.
            self.forget_base();
            base = self.ensure_base()?;
            made = links.make_pair(&spec(&base), netns);
        }
        let present = matches!(&made, Err(error) if error.raw_os_error() == Some(libc::EEXIST));
        if !present {
            made.map_err(failed)?;
        }
        let mut configured = false;
        if present {
            // The pair is there from an earlier attempt. Its other end is where it should be, or the pair is of no use.
            let sound = links.find(&name).map_err(failed)?.is_some_and(|link| link.controller == base.bridge);
            configured = sound && link::configure(&spec(&base), netns).map_err(failed)?;
            if !configured {
                links.delete(&name).map_err(failed)?;
                links.make_pair(&spec(&base), netns).map_err(failed)?;
            }
        }
        if !configured && !link::configure(&spec(&base), netns).map_err(failed)? {
            return Err(failed(io::Error::other("the pod's end of the link is not in its namespace")));
        }
        // The port first: the bridge itself has a carrier only through its ports.
        for link in [&name, &self.bridge] {
            if !links.wait_up(link).map_err(failed)? {
                tracing::warn!(
                    instance = record.sandbox,
                    link,
                    "the link has no carrier after a second; the pod may not be reachable yet"
                );
            }
        }
        Ok(())
    }

    /// Maps the pod's host ports.
    fn open_ports(&self, record: &Record) -> Result<(), IsolatorError> {
        let added = {
            let _nft = lock(&self.nft);
            self.firewall.add_ports(record)
        };
        let Err(error) = added else { return Ok(()) };
        // Somebody flushed the rules, or an element of an earlier pod is in the way: the ledger knows what should be there.
        tracing::warn!(%error, "rebuilding the nft table");
        let base = self.ensure_base()?;
        self.rebuild_firewall(&base.subnets)
    }

    /// Takes a pod out of its networks and gives back what it holds. Idempotent. The namespace is passed where it still
    /// is; CNI plugins can do without.
    ///
    /// If a step fails, the pod keeps what it holds, and a later call or [`Network::recover`] tries again.
    pub fn detach(&self, instance: &str, netns: Option<BorrowedFd<'_>>) -> Result<(), IsolatorError> {
        let record = {
            let mut ledger = lock(&self.ledger);
            let Some(record) = ledger.get(instance).cloned() else {
                return Ok(());
            };
            ledger.set_leaving(instance, true);
            record
        };
        if self.firewall.concerns(&record) {
            let deleted = {
                let _nft = lock(&self.nft);
                self.firewall.delete_ports(&record)
            };
            if deleted.is_err()
                && let Some(subnets) = self.subnets()
            {
                // Some element was missing: it was never added, or somebody flushed the rules.
                self.rebuild_firewall(&subnets)?;
            }
        }
        if record.address.is_some() {
            let name = names::veth(&self.settings.instance, instance);
            self.links()?
                .delete(&name)
                .map_err(|error| IsolatorError::io(ISOLATOR, format!("cannot delete the link {name}"), error))?;
        }
        let target = Target { sandbox: instance, pod: &record.pod, netns };
        let mut outcome = Ok(());
        for attachment in record.cni.iter().rev() {
            let deleted = self.cni.delete(target, attachment);
            if outcome.is_ok() {
                outcome = deleted;
            }
        }
        outcome?;
        lock(&self.held).remove(instance);
        lock(&self.ledger).remove(instance)
    }
}
