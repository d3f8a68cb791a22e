//! The key table: every key of the configuration, what values it takes, and where in [`Config`] the value goes. Reading,
//! printing, `--set`, the environment and the check of the documentation all go by this table.

use std::net::IpAddr;
use std::path::PathBuf;

use super::api_keys::API_KEYS;
use super::observe_keys::OBSERVE_KEYS;
use super::otlp_keys::OTLP_KEYS;
use super::types::{Config, DiskEnforcement, LogFormat, PortRange, Registry, Subnet6};

/// One key.
pub(super) struct Key {
    /// Its table; empty for the keys above all tables.
    pub table: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
}

impl Key {
    /// Name with the table, e.g. `network.mtu`.
    pub fn field(&self) -> String {
        if self.table.is_empty() { self.name.to_owned() } else { format!("{}.{}", self.table, self.name) }
    }

    /// Name of its variable, e.g. `AGENTD_NETWORK_MTU`.
    pub fn variable(&self) -> String {
        format!("AGENTD_{}", self.field().replace('.', "_").to_uppercase())
    }
}

/// What values a key takes, and the place of the value in the configuration.
pub(super) enum Kind {
    /// A text that `set` understands; it says false where it does not.
    Text { expected: &'static str, set: fn(&mut Config, &str) -> bool, get: fn(&Config) -> Option<String> },
    /// An absolute path.
    Path(fn(&mut Config) -> &mut PathBuf),
    /// An absolute path, or nothing.
    OptionalPath(fn(&mut Config) -> &mut Option<PathBuf>),
    /// A list of paths relative to `/etc`.
    EtcNames(fn(&mut Config) -> &mut Vec<PathBuf>),
    /// A list of absolute paths.
    Paths(fn(&mut Config) -> &mut Vec<PathBuf>),
    /// A list of texts, each checked.
    List { expected: &'static str, check: fn(&str) -> bool, field: fn(&mut Config) -> &mut Vec<String> },
    /// A whole number.
    Integer { min: u64, max: u64, field: fn(&mut Config) -> &mut u64 },
    /// A whole number, or nothing.
    OptionalInteger { min: u64, max: u64, field: fn(&mut Config) -> &mut Option<u64> },
    /// A number.
    Number { min: f64, max: f64, field: fn(&mut Config) -> &mut f64 },
    /// A number, or nothing.
    OptionalNumber { min: f64, max: f64, field: fn(&mut Config) -> &mut Option<f64> },
    /// `true` or `false`.
    Bool(fn(&mut Config) -> &mut bool),
    /// The list of registries.
    Registries(fn(&mut Config) -> &mut Vec<Registry>),
}

/// Keys of one registry.
pub(super) const REGISTRY_KEYS: [&str; 4] = ["host", "mirrors", "ca", "insecure"];

const MIB_MAX: u64 = 1 << 40;

/// Every key, in the order in which it is printed.
pub(super) fn keys() -> impl Iterator<Item = &'static Key> {
    HOST_KEYS.iter().chain(API_KEYS).chain(OBSERVE_KEYS).chain(OTLP_KEYS)
}

/// The keys of all but the API.
const HOST_KEYS: &[Key] = &[
    key(
        "",
        "instance",
        Kind::Text {
            expected: "1 to 20 characters of a-z, 0-9 and '-', the first a letter",
            set: |config, text| is_instance(text) && store(&mut config.instance, text),
            get: |config| Some(config.instance.clone()),
        },
    ),
    key(
        "",
        "hostname",
        Kind::Text {
            expected: "a host name: labels of letters, digits and '-' joined by dots, at most 253 characters",
            set: |config, text| is_hostname(text) && store_some(&mut config.hostname, text),
            get: |config| config.hostname.clone(),
        },
    ),
    key("paths", "run", Kind::Path(|config| &mut config.paths.run)),
    key("paths", "state", Kind::Path(|config| &mut config.paths.state)),
    key("paths", "socket", Kind::Path(|config| &mut config.paths.socket)),
    key("paths", "secrets", Kind::Path(|config| &mut config.paths.secrets)),
    key("paths", "seccomp", Kind::Path(|config| &mut config.paths.seccomp)),
    key("paths", "cni_config", Kind::Path(|config| &mut config.paths.cni_config)),
    key("paths", "cni_plugins", Kind::Paths(|config| &mut config.paths.cni_plugins)),
    key("reserved", "cpus", Kind::Number { min: 0.0, max: 8192.0, field: |config| &mut config.reserved.cpus }),
    key("reserved", "memory_mib", integer(0, MIB_MAX, |config| &mut config.reserved.memory_mib)),
    key("reserved", "disk_mib", integer(0, MIB_MAX, |config| &mut config.reserved.disk_mib)),
    key(
        "resources",
        "cpus",
        Kind::OptionalNumber { min: 0.01, max: 8192.0, field: |config| &mut config.resources.cpus },
    ),
    key(
        "resources",
        "memory_mib",
        Kind::OptionalInteger { min: 1, max: MIB_MAX, field: |config| &mut config.resources.memory_mib },
    ),
    key(
        "resources",
        "disk_mib",
        Kind::OptionalInteger { min: 1, max: MIB_MAX, field: |config| &mut config.resources.disk_mib },
    ),
    key("pods", "pool_size", integer(0, 64, |config| &mut config.pods.pool_size)),
    key("pods", "pool_containers", integer(0, 16, |config| &mut config.pods.pool_containers)),
    key("pods", "default_pids", integer(16, 4_194_304, |config| &mut config.pods.default_pids)),
    key("pods", "default_disk_mib", integer(1, MIB_MAX, |config| &mut config.pods.default_disk_mib)),
    key(
        "pods",
        "disk_enforcement",
        Kind::Text {
            expected: "one of auto, quota, loop, meter",
            set: |config, text| {
                DiskEnforcement::from_word(text).is_some_and(|value| {
                    config.pods.disk_enforcement = value;
                    true
                })
            },
            get: |config| Some(config.pods.disk_enforcement.word().to_owned()),
        },
    ),
    key(
        "pods",
        "kill_grace_seconds",
        Kind::Number { min: 0.0, max: 86_400.0, field: |config| &mut config.pods.kill_grace_seconds },
    ),
    key("host_files", "etc", Kind::EtcNames(|config| &mut config.host_files.etc)),
    key("host_files", "allowed_host_paths", Kind::Paths(|config| &mut config.host_files.allowed_host_paths)),
    key("images", "auth_file", Kind::OptionalPath(|config| &mut config.images.auth_file)),
    key("images", "high_watermark", integer(1, 100, |config| &mut config.images.high_watermark)),
    key("images", "low_watermark", integer(0, 99, |config| &mut config.images.low_watermark)),
    key("images", "keep_blobs", Kind::Bool(|config| &mut config.images.keep_blobs)),
    key("images", "registry", Kind::Registries(|config| &mut config.images.registries)),
    key(
        "network",
        "bridge",
        Kind::Text {
            expected: "the name of an interface: 1 to 15 characters of a-z, A-Z, 0-9, '-', '_' and '.', the first a letter",
            set: |config, text| is_interface(text) && store_some(&mut config.network.bridge, text),
            get: |config| config.network.bridge.clone(),
        },
    ),
    key(
        "network",
        "subnet",
        Kind::Text {
            expected: "an IPv4 network with its prefix, /8 to /29, e.g. \"10.192.0.0/20\", with no bits beyond the prefix",
            set: |config, text| {
                text.parse::<ipnet::Ipv4Net>().is_ok_and(|net| {
                    config.network.subnet = Some(net);
                    net.trunc() == net && (8..=29).contains(&net.prefix_len()) && !net.addr().is_loopback()
                })
            },
            get: |config| config.network.subnet.map(|net| net.to_string()),
        },
    ),
    key(
        "network",
        "subnet6",
        Kind::Text {
            expected: "auto, off, or an IPv6 network with its prefix, /8 to /96, e.g. \"fd00:1:2::/64\", with no bits beyond the prefix",
            set: |config, text| {
                Subnet6::parse(text).is_some_and(|subnet| {
                    config.network.subnet6 = subnet;
                    true
                })
            },
            get: |config| Some(config.network.subnet6.to_string()),
        },
    ),
    key("network", "mtu", integer(0, 65_535, |config| &mut config.network.mtu)),
    key(
        "network",
        "port_range",
        Kind::Text {
            expected: "the first and last port with a '-' between, e.g. \"31000-31999\", the first not above the last",
            set: |config, text| {
                PortRange::parse(text).is_some_and(|range| {
                    config.network.port_range = range;
                    true
                })
            },
            get: |config| Some(config.network.port_range.to_string()),
        },
    ),
    key(
        "network",
        "dns_servers",
        Kind::List {
            expected: "an IP address",
            check: |text| text.parse::<IpAddr>().is_ok(),
            field: |config| &mut config.network.dns_servers,
        },
    ),
    key(
        "network",
        "dns_search",
        Kind::List { expected: "a domain name", check: is_hostname, field: |config| &mut config.network.dns_search },
    ),
    key(
        "network",
        "aliases",
        Kind::List {
            expected: "the name of a network: 1 to 63 characters of a-z, A-Z, 0-9, '-', '_' and '.', the first a letter or digit",
            check: is_network_name,
            field: |config| &mut config.network.aliases,
        },
    ),
    key("network", "host_access", Kind::Bool(|config| &mut config.network.host_access)),
    key("network", "allow_metadata", Kind::Bool(|config| &mut config.network.allow_metadata)),
    key("network", "allow_inbound", Kind::Bool(|config| &mut config.network.allow_inbound)),
    key("artifacts", "file_roots", Kind::Paths(|config| &mut config.artifacts.file_roots)),
    key("artifacts", "max_bytes", integer(1, 1 << 50, |config| &mut config.artifacts.max_bytes)),
    key("artifacts", "timeout_seconds", integer(1, 86_400, |config| &mut config.artifacts.timeout_seconds)),
    key("artifacts", "allow_loopback", Kind::Bool(|config| &mut config.artifacts.allow_loopback)),
    key("logs", "max_bytes_per_container", integer(65_536, 1 << 40, |config| &mut config.logs.max_bytes_per_container)),
    key(
        "logs",
        "level",
        Kind::Text {
            expected: "trace, debug, info, warn, error, off, or directives such as \"info,agentd::pods=debug\"",
            set: |config, text| agentd_logging::valid_level(text) && store(&mut config.logs.level, text),
            get: |config| Some(config.logs.level.clone()),
        },
    ),
    key(
        "logs",
        "format",
        Kind::Text {
            expected: "one of text, json",
            set: |config, text| {
                [LogFormat::Text, LogFormat::Json].into_iter().find(|format| format.word() == text).is_some_and(
                    |format| {
                        config.logs.format = format;
                        true
                    },
                )
            },
            get: |config| Some(config.logs.format.word().to_owned()),
        },
    ),
];

pub(super) const fn key(table: &'static str, name: &'static str, kind: Kind) -> Key {
    Key { table, name, kind }
}

pub(super) const fn integer(min: u64, max: u64, field: fn(&mut Config) -> &mut u64) -> Kind {
    Kind::Integer { min, max, field }
}

pub(super) fn store(field: &mut String, text: &str) -> bool {
    text.clone_into(field);
    true
}

fn store_some(field: &mut Option<String>, text: &str) -> bool {
    *field = Some(text.to_owned());
    true
}

/// Whether a text can be an instance's name.
pub(super) fn is_instance(text: &str) -> bool {
    (1..=20).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

pub(super) fn is_hostname(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

fn is_interface(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn is_network_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

pub(super) fn is_group(text: &str) -> bool {
    (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Whether a text is `host` or `host:port`, with an IPv6 address in brackets.
pub(super) fn is_authority(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let host_valid = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => is_hostname(host),
    };
    host_valid && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}
