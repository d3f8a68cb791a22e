//! Which addresses an artifact may be fetched from.
//!
//! A pod's author chooses the URI, and a server the redirects; the fetch itself runs in the host's network. So addresses
//! that only this host can reach (its loopback, its own services, a cloud's metadata service) are refused, checked on
//! each address that is really connected to: after DNS and after every redirect.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The rule of one fetch.
#[derive(Debug, Clone, Default)]
pub(crate) struct AddressRule {
    /// The operator's exceptions.
    pub allowed: Vec<IpNet>,
    /// The addresses of this host's interfaces.
    pub own: Vec<IpAddr>,
}

/// Metadata services of clouds outside the link-local range.
const METADATA: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254))];

impl AddressRule {
    /// Why `address` is refused; `None` when it may be connected to.
    pub fn refusal(&self, address: IpAddr) -> Option<&'static str> {
        let inner = unwrap(address);
        if self.allowed.iter().any(|net| net.contains(&address) || net.contains(&inner)) {
            return None;
        }
        for candidate in [address, inner] {
            if let Some(reason) = special(candidate) {
                return Some(reason);
            }
            if self.own.iter().any(|own| *own == candidate || unwrap(*own) == candidate) {
                return Some("an address of this host");
            }
        }
        None
    }
}

fn special(address: IpAddr) -> Option<&'static str> {
    if METADATA.contains(&address) {
        return Some("the metadata service of a cloud");
    }
    match address {
        IpAddr::V4(v4) if v4.is_loopback() => Some("loopback"),
        // all of 0.0.0.0/8 means 'this host'
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("unspecified"),
        IpAddr::V4(v4) if v4.is_link_local() => Some("link-local"),
        IpAddr::V4(v4) if v4.is_multicast() => Some("multicast"),
        IpAddr::V4(v4) if v4.octets()[0] >= 240 => Some("broadcast or reserved"),
        IpAddr::V6(v6) if v6.is_loopback() => Some("loopback"),
        IpAddr::V6(v6) if v6.is_unspecified() => Some("unspecified"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("link-local"),
        IpAddr::V6(v6) if v6.is_multicast() => Some("multicast"),
        _ => None,
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped (`::ffff:a.b.c.d`), compatible (`::a.b.c.d`), NAT64
/// (`64:ff9b::/96`) and 6to4 (`2002::/16`).
fn unwrap(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    let part = v6.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match part {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            v4(high, low)
        }
        // `::` and `::1` are themselves
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 || low > 1 => v4(high, low),
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_other_hosts_pass() {
        let rule = AddressRule {
            allowed: Vec::new(),
            own: vec!["192.168.7.1".parse().unwrap(), "2001:db8::7".parse().unwrap()],
        };
        for (address, expected) in [
            ("127.0.0.1", Some("loopback")),
            ("127.9.9.9", Some("loopback")),
            ("0.0.0.0", Some("unspecified")),
            ("0.1.2.3", Some("unspecified")),
            ("169.254.169.254", Some("link-local")),
            ("224.0.0.1", Some("multicast")),
            ("255.255.255.255", Some("broadcast or reserved")),
            ("100.100.100.200", Some("the metadata service of a cloud")),
            ("192.168.7.1", Some("an address of this host")),
            ("::1", Some("loopback")),
            ("::", Some("unspecified")),
            ("fe80::1", Some("link-local")),
            ("ff02::1", Some("multicast")),
            ("2001:db8::7", Some("an address of this host")),
            ("fd00:ec2::254", Some("the metadata service of a cloud")),
            ("::ffff:127.0.0.1", Some("loopback")),
            ("::ffff:169.254.169.254", Some("link-local")),
            ("::ffff:192.168.7.1", Some("an address of this host")),
            ("::7f00:1", Some("loopback")),
            ("64:ff9b::a9fe:a9fe", Some("link-local")),
            ("2002:7f00:1::", Some("loopback")),
            ("192.168.7.2", None),
            ("10.0.0.1", None),
            ("8.8.8.8", None),
            ("2001:db8::8", None),
            ("::ffff:8.8.8.8", None),
        ] {
            assert_eq!(rule.refusal(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn the_operators_exceptions_pass() {
        let rule = AddressRule {
            allowed: vec!["127.0.0.1/32".parse().unwrap(), "fe80::/10".parse().unwrap()],
            own: Vec::new(),
        };
        for (address, passes) in
            [("127.0.0.1", true), ("::ffff:127.0.0.1", true), ("fe80::5", true), ("127.0.0.2", false), ("::1", false)]
        {
            assert_eq!(rule.refusal(address.parse().unwrap()).is_none(), passes, "{address}");
        }
    }
}
