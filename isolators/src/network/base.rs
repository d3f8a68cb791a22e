//! What all pods of the built-in network share: subnets, bridge, forwarding, nft table. Made when the first pod needs it.

use std::net::IpAddr;

use super::link::BridgeSpec;
use super::subnet::{self, Subnets};
use super::{ISOLATOR, Ipv6, Network, fail, firewall, lock, names, sysctl};
use crate::IsolatorError;

/// The shared part as it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Base {
    /// Subnets.
    pub subnets: Subnets,
    /// Index of the bridge.
    pub bridge: u32,
    /// Largest packet.
    pub mtu: u32,
}

/// MTU where neither the settings nor a default route tell one.
const USUAL_MTU: u32 = 1500;

impl Network {
    /// Makes what is missing; later calls return what was made.
    pub(super) fn ensure_base(&self) -> Result<Base, IsolatorError> {
        let mut base = lock(&self.base);
        if let Some(base) = *base {
            return Ok(base);
        }
        let made = self.make_base()?;
        *base = Some(made);
        Ok(made)
    }

    /// Forgets what was made, so that the next pod makes what is missing.
    pub(super) fn forget_base(&self) {
        *lock(&self.base) = None;
    }

    fn make_base(&self) -> Result<Base, IsolatorError> {
        // Said before anything is touched: a bridge without rules would be a network without protection.
        if firewall::program().is_none() {
            return Err(fail("the built-in network needs nft, which is not installed: install the package nftables"));
        }
        let links = self.links()?;
        let (routes, uplink_mtu) = links
            .routes(&self.bridge)
            .map_err(|error| IsolatorError::io(ISOLATOR, "cannot read the host's routes", error))?;
        let subnets = self.choose_subnets(&routes)?;
        subnet::save(&self.settings.state_dir, &subnets)?;

        let mtu = if self.settings.mtu == 0 { uplink_mtu.unwrap_or(USUAL_MTU) } else { self.settings.mtu };
        let mut addresses = vec![(IpAddr::V4(subnets.gateway_v4()), subnets.v4.prefix_len())];
        if let (Some(net), Some(gateway)) = (subnets.v6, subnets.gateway_v6()) {
            addresses.push((IpAddr::V6(gateway), net.prefix_len()));
        }
        // The rules come before the bridge: no pod is ever on it without them.
        self.rebuild_firewall(&subnets)?;
        let alias = names::bridge_alias(&self.settings.instance);
        let spec = BridgeSpec {
            name: &self.bridge,
            alias: &alias,
            mac: names::bridge_mac(&self.settings.instance),
            mtu,
            addresses,
        };
        let bridge = links
            .ensure_bridge(&spec)
            .map_err(|error| IsolatorError::io(ISOLATOR, format!("cannot make the bridge {}", self.bridge), error))?;
        self.set_kernel(&subnets).map_err(|error| {
            IsolatorError::io(ISOLATOR, "cannot set up forwarding, check that /proc/sys is writable", error)
        })?;
        for obstacle in self.obstacles()? {
            tracing::warn!("{obstacle}");
        }
        tracing::info!(bridge = self.bridge, subnet = %subnets.v4, subnet_v6 = ?subnets.v6, mtu, "made the built-in network");
        Ok(Base { subnets, bridge, mtu })
    }

    fn set_kernel(&self, subnets: &Subnets) -> std::io::Result<()> {
        // For 127.0.0.1:<host port> on the host; the firewall keeps pods from the loopback addresses that this opens.
        sysctl::set(&format!("net/ipv4/conf/{}/route_localnet", self.bridge), "1")?;
        sysctl::forward_v4()?;
        if subnets.v6.is_some() {
            sysctl::set(&format!("net/ipv6/conf/{}/accept_ra", self.bridge), "0")?;
            sysctl::forward_v6()?;
        }
        Ok(())
    }

    /// The subnets to use: those in use as long as a pod has an address in them, else the configured ones, else those
    /// chosen before if they are still free of routes, else new ones.
    fn choose_subnets(&self, routes: &[ipnet::Ipv4Net]) -> Result<Subnets, IsolatorError> {
        let saved = subnet::load(&self.settings.state_dir);
        let in_use = lock(&self.ledger).records().any(|record| record.address.is_some());
        if in_use && let Some(saved) = saved {
            if self.settings.subnet_v4.is_some_and(|configured| configured != saved.v4) {
                tracing::warn!(
                    in_use = %saved.v4,
                    "network.subnet was changed while pods have addresses in the old one; it counts once no pod is left"
                );
            }
            return Ok(saved);
        }
        let v4 = match self.settings.subnet_v4 {
            Some(configured) => configured,
            None => subnet::choose_v4(&self.settings.instance, routes)?,
        };
        let v6 = match (self.settings.ipv6, sysctl::has_ipv6()) {
            (Ipv6::Off, _) | (Ipv6::Auto, false) => None,
            (Ipv6::Subnet(net), true) => Some(net),
            (Ipv6::Subnet(net), false) => {
                return Err(fail(format!(
                    "IPv6 subnet {net} is configured but the host has IPv6 switched off: switch it on, or remove network.subnet6"
                )));
            }
            (Ipv6::Auto, true) => {
                let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
                let host = rustix::system::uname();
                let host = format!("{}/{}", machine.trim(), host.nodename().to_string_lossy());
                Some(subnet::choose_v6(&self.settings.instance, &host))
            }
        };
        Ok(Subnets { v4, v6 })
    }

    /// Replaces the whole table by one with the elements of every pod that is not about to leave.
    pub(super) fn rebuild_firewall(&self, subnets: &Subnets) -> Result<(), IsolatorError> {
        let _nft = lock(&self.nft);
        let records: Vec<_> = lock(&self.ledger).staying().cloned().collect();
        self.firewall.rebuild(subnets, records.iter())
    }
}
