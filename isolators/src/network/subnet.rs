//! The address ranges of the pods: chosen once for an instance, away from the routes that the host has, and written down
//! so that a restarted daemon goes on with the same.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::{fail, names, store};
use crate::IsolatorError;

/// Prefix length of a subnet that agentd chooses: room for four times the 1023 ports that a Linux bridge can have, so
/// that an address rests for long before it is used again.
const CHOSEN_PREFIX: u8 = 20;

/// Ranges searched for a free subnet, in this order.
const RANGES: [(Ipv4Addr, u8); 3] =
    [(Ipv4Addr::new(10, 64, 0, 0), 10), (Ipv4Addr::new(172, 16, 0, 0), 12), (Ipv4Addr::new(192, 168, 0, 0), 16)];

/// The subnets of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnets {
    /// IPv4.
    pub v4: Ipv4Net,
    /// IPv6, a /64, where the host has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<Ipv6Net>,
}

impl Subnets {
    /// The bridge's IPv4 address: the first of the subnet.
    pub fn gateway_v4(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.v4.network()) + 1)
    }

    /// The bridge's IPv6 address: it ends in the IPv4 address, as every pod's does.
    pub fn gateway_v6(&self) -> Option<Ipv6Addr> {
        self.address_v6(self.gateway_v4())
    }

    /// First and last address that pods get.
    pub fn pod_range(&self) -> (u32, u32) {
        (u32::from(self.v4.network()) + 2, u32::from(self.v4.broadcast()) - 1)
    }

    /// The IPv6 address that belongs to an IPv4 address: one ledger serves both.
    pub fn address_v6(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        self.v6.map(|net| Ipv6Addr::from(u128::from(net.network()) | u128::from(u32::from(address))))
    }
}

/// Checks a subnet from the configuration.
pub(super) fn check_v4(net: Ipv4Net) -> Result<Ipv4Net, IsolatorError> {
    if (8..=29).contains(&net.prefix_len()) && net.network() == net.addr() {
        return Ok(net);
    }
    Err(fail(format!(
        "subnet {net} is not usable: expected a network address with a prefix length from 8 to 29, such as {}/20",
        net.network()
    )))
}

/// Checks an IPv6 subnet from the configuration.
pub(super) fn check_v6(net: Ipv6Net) -> Result<Ipv6Net, IsolatorError> {
    if net.prefix_len() <= 96 && net.network() == net.addr() {
        return Ok(net);
    }
    Err(fail(format!(
        "IPv6 subnet {net} is not usable: expected a network address with a prefix length of at most 96, such as fd12:3456:789a:1::/64"
    )))
}

/// Finds a free IPv4 subnet for the instance: the search starts at a place given by its name, so that instances on one
/// host, and a fresh start after a reboot, come to the same answer without having to agree.
pub(super) fn choose_v4(instance: &str, taken: &[Ipv4Net]) -> Result<Ipv4Net, IsolatorError> {
    let hash = names::digest(&["subnet", instance]);
    let seed = u32::from_le_bytes([hash[0], hash[1], hash[2], hash[3]]);
    for (base, prefix) in RANGES {
        let count = 1u32 << (CHOSEN_PREFIX - prefix);
        for step in 0..count {
            let index = (seed.wrapping_add(step)) % count;
            let network = Ipv4Addr::from(u32::from(base) + (index << (32 - u32::from(CHOSEN_PREFIX))));
            let candidate = Ipv4Net::new_assert(network, CHOSEN_PREFIX);
            if !taken.iter().any(|net| net.contains(&candidate) || candidate.contains(net)) {
                return Ok(candidate);
            }
        }
    }
    Err(fail(
        "no /20 of 10.64.0.0/10, 172.16.0.0/12 and 192.168.0.0/16 is free of the host's routes: set network.subnet to a range that pods may use",
    ))
}

/// The unique local /64 of the instance on this host (RFC 4193: the 40 bits come from a hash).
pub(super) fn choose_v6(instance: &str, host: &str) -> Ipv6Net {
    let hash = names::digest(&["ula", host, instance]);
    let mut bytes = [0u8; 16];
    bytes[0] = 0xfd;
    bytes[1..8].copy_from_slice(&hash[..7]);
    Ipv6Net::new_assert(Ipv6Addr::from(bytes), 64)
}

/// Reads what was chosen before; none where nothing was, or where it cannot be read.
pub(super) fn load(state_dir: &Path) -> Option<Subnets> {
    store::read_json(&state_dir.join("subnets.json"))
        .filter(|subnets: &Subnets| check_v4(subnets.v4).is_ok() && subnets.v6.is_none_or(|net| check_v6(net).is_ok()))
}

/// Writes down what was chosen.
pub(super) fn save(state_dir: &Path, subnets: &Subnets) -> Result<(), IsolatorError> {
    store::write_json(&state_dir.join("subnets.json"), subnets, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().expect("the test's own network")
    }

    #[test]
    fn the_choice_is_stable_and_avoids_routes() {
        let first = choose_v4("agentd", &[]).unwrap();
        assert_eq!(first, choose_v4("agentd", &[]).unwrap());
        assert!(net("10.64.0.0/10").contains(&first));
        let second = choose_v4("agentd", &[first]).unwrap();
        assert_ne!(first, second);
        assert!(net("172.16.0.0/12").contains(&choose_v4("agentd", &[net("10.0.0.0/8")]).unwrap()));
        let none = choose_v4("agentd", &[net("10.0.0.0/8"), net("172.16.0.0/12"), net("192.168.0.0/16")]);
        assert!(none.unwrap_err().message.contains("network.subnet"));
    }

    #[test]
    fn addresses_of_both_families_correspond() {
        let subnets = Subnets { v4: net("10.64.16.0/20"), v6: Some(choose_v6("agentd", "host")) };
        assert_eq!(subnets.gateway_v4(), Ipv4Addr::new(10, 64, 16, 1));
        let v6 = subnets.address_v6(Ipv4Addr::new(10, 64, 17, 5)).unwrap();
        assert!(v6.to_string().starts_with("fd"));
        assert!(v6.to_string().ends_with("a40:1105"), "{v6}");
        assert!(subnets.v6.unwrap().contains(&v6));
    }

    #[test]
    fn configured_subnets_are_checked() {
        assert!(check_v4(net("10.1.0.0/16")).is_ok());
        assert!(check_v4(net("10.1.0.1/16")).is_err());
        assert!(check_v4(net("10.1.0.0/30")).is_err());
        assert!(check_v6("fd00:1::/64".parse().unwrap()).is_ok());
        assert!(check_v6("fd00:1::/112".parse().unwrap()).is_err());
    }
}
