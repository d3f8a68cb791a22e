//! Names that the network gives to things on the host. All derive from the instance name of the daemon, so that several
//! daemons on one host neither collide nor sweep away each other's links.

use std::net::Ipv4Addr;

use sha2::{Digest, Sha256};

/// Name of the instance that gets the short names.
const DEFAULT_INSTANCE: &str = "agentd";

/// Hash of several parts that cannot be confused with another split of the same text.
pub(super) fn digest(parts: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Name of the bridge: `agentd0` for the instance `agentd`, else `ag-<start of the name>-<hash>`, at most 15 characters.
pub(super) fn bridge(instance: &str) -> String {
    if instance == DEFAULT_INSTANCE {
        return "agentd0".to_owned();
    }
    let start: String = instance.chars().filter(char::is_ascii_alphanumeric).take(5).collect();
    format!("ag-{start}-{}", hex(&digest(&["bridge", instance])[..3]))
}

/// Name of the nft table.
pub(super) fn table(instance: &str) -> String {
    if instance == DEFAULT_INSTANCE { DEFAULT_INSTANCE.to_owned() } else { format!("agentd_{instance}") }
}

/// Name of the host's end of a pod's veth pair: 14 characters.
pub(super) fn veth(instance: &str, sandbox: &str) -> String {
    format!("ag{}", hex(&digest(&["veth", instance, sandbox])[..6]))
}

/// Start of the alias of every link of this instance.
pub(super) fn alias_prefix(instance: &str) -> String {
    format!("agentd:{instance}:")
}

/// Alias of the host's end of a pod's veth pair, for people and for the sweep.
pub(super) fn veth_alias(instance: &str, sandbox: &str) -> String {
    format!("{}{sandbox}", alias_prefix(instance))
}

/// Alias of the bridge.
pub(super) fn bridge_alias(instance: &str) -> String {
    format!("{}bridge", alias_prefix(instance))
}

/// Hardware address of the bridge. Fixed, because a bridge without one takes over that of its ports, and pods would
/// keep a stale neighbour entry for their gateway.
pub(super) fn bridge_mac(instance: &str) -> [u8; 6] {
    let hash = digest(&["mac", instance]);
    [0x02, hash[0], hash[1], hash[2], hash[3], hash[4]]
}

/// Hardware address of a pod. It follows the IPv4 address, so that neighbours that still remember the address from an
/// earlier pod reach the new one at once.
pub(super) fn pod_mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// Whether `name` can be part of file names and link aliases: 1 to 63 of `A-Za-z0-9._-`, not starting with a dot.
pub(super) fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 63
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel_and_differ() {
        for instance in ["agentd", "a", "agentd-test-12345-long-name-of-an-instance", "agentd_x"] {
            assert!(bridge(instance).len() <= 15, "{}", bridge(instance));
            assert!(veth(instance, "0123456789ab").len() <= 15);
        }
        assert_eq!(bridge("agentd"), "agentd0");
        assert_eq!(table("agentd"), "agentd");
        assert_ne!(table("agentd_x"), table("x"));
        assert_ne!(bridge("blue"), bridge("blues"));
        assert_ne!(veth("a", "bc"), veth("ab", "c"));
    }

    #[test]
    fn plain_names() {
        assert!(is_plain("0123456789ab"));
        for bad in ["", ".", "..", "a/b", "-x", "a b", "a:b"] {
            assert!(!is_plain(bad), "{bad}");
        }
    }
}
