//! The key table of `[api]` and `[sessions]`.

use std::net::{IpAddr, SocketAddr};

use super::api::Record;
use super::keys::{Key, Kind, integer, is_authority, is_group, is_hostname, key, store};

/// A day.
const DAY: u64 = 86_400;

/// Thirty days.
const MONTH: u64 = 30 * DAY;

/// Keys of the API and of sessions, in the order in which they are printed.
pub(super) const API_KEYS: &[Key] = &[
    key(
        "api",
        "socket_group",
        Kind::Text {
            expected: "the name of a group: at most 32 characters of a-z, A-Z, 0-9, '-' and '_'",
            set: |config, text| is_group(text) && store(&mut config.api.socket_group, text),
            get: |config| Some(config.api.socket_group.clone()),
        },
    ),
    key(
        "api",
        "socket_mode",
        Kind::Text {
            expected: "an octal mode as text, e.g. \"0660\", that gives others nothing and the owner read and write",
            set: |config, text| {
                u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8).is_ok_and(|mode| {
                    config.api.socket_mode = mode;
                    mode & !0o770 == 0 && mode & 0o600 == 0o600
                })
            },
            get: |config| Some(format!("0{:o}", config.api.socket_mode)),
        },
    ),
    key(
        "api",
        "listen",
        Kind::List {
            expected: "an IP address with a port, e.g. \"192.0.2.1:8443\" or \"[::]:8443\"",
            check: |text| text.parse::<SocketAddr>().is_ok_and(|address| address.port() > 0),
            field: |config| &mut config.api.listen,
        },
    ),
    key("api", "insecure", Kind::Bool(|config| &mut config.api.insecure)),
    key("api", "tls_certificate", Kind::OptionalPath(|config| &mut config.api.tls_certificate)),
    key("api", "tls_key", Kind::OptionalPath(|config| &mut config.api.tls_key)),
    key("api", "tls_client_ca", Kind::OptionalPath(|config| &mut config.api.tls_client_ca)),
    key(
        "api",
        "allowed_origins",
        Kind::List {
            expected: "an origin in small letters as browsers send it, e.g. \"https://console.example:8443\", without a path",
            check: is_origin,
            field: |config| &mut config.api.allowed_origins,
        },
    ),
    key(
        "api",
        "allowed_hosts",
        Kind::List {
            expected: "a host name or an IP address, without a port",
            check: |text| is_hostname(text) || text.parse::<IpAddr>().is_ok(),
            field: |config| &mut config.api.allowed_hosts,
        },
    ),
    key("api", "max_connections", integer(8, 65_536, |config| &mut config.api.max_connections)),
    key("api", "max_connections_per_peer", integer(1, 65_536, |config| &mut config.api.max_connections_per_peer)),
    key("api", "requests_per_second", integer(0, 1_000_000, |config| &mut config.api.requests_per_second)),
    key("api", "request_burst", integer(1, 1_000_000, |config| &mut config.api.request_burst)),
    key("api", "acl", Kind::Path(|config| &mut config.api.acl)),
    key("api", "audit", Kind::OptionalPath(|config| &mut config.api.audit)),
    key("api", "audit_sync", Kind::Bool(|config| &mut config.api.audit_sync)),
    key("api", "audit_max_mib", integer(1, 1 << 20, |config| &mut config.api.audit_max_mib)),
    key("api", "audit_files", integer(0, 10_000, |config| &mut config.api.audit_files)),
    key("api", "pods_may_connect", Kind::Bool(|config| &mut config.api.pods_may_connect)),
    key("sessions", "idle_seconds", integer(0, MONTH, |config| &mut config.sessions.idle_seconds)),
    key("sessions", "max_seconds", integer(0, MONTH, |config| &mut config.sessions.max_seconds)),
    key("sessions", "reattach_seconds", integer(1, DAY, |config| &mut config.sessions.reattach_seconds)),
    key("sessions", "nested_reattach_seconds", integer(1, DAY, |config| &mut config.sessions.nested_reattach_seconds)),
    key("sessions", "per_container", integer(1, 4096, |config| &mut config.sessions.per_container)),
    key("sessions", "total", integer(1, 65_536, |config| &mut config.sessions.total)),
    key("sessions", "keep_exited_seconds", integer(1, DAY, |config| &mut config.sessions.keep_exited_seconds)),
    key("sessions", "buffer_kib", integer(64, 16_384, |config| &mut config.sessions.buffer_kib)),
    key(
        "sessions",
        "record",
        Kind::Text {
            expected: "one of never, tty, always",
            set: |config, text| {
                Record::from_word(text).is_some_and(|value| {
                    config.sessions.record = value;
                    true
                })
            },
            get: |config| Some(config.sessions.record.word().to_owned()),
        },
    ),
    key("sessions", "record_max_mib", integer(1, 1 << 20, |config| &mut config.sessions.record_max_mib)),
    key("sessions", "debug_images", Kind::Bool(|config| &mut config.sessions.debug_images)),
];

/// Whether a text is an origin as browsers send it.
fn is_origin(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| is_authority(rest) && !rest.bytes().any(|byte| byte.is_ascii_uppercase()))
}
