//! The key table of `[observe]` and `[metrics]`.

use std::net::SocketAddr;

use super::keys::{Key, Kind, integer, key};
use super::observe::{EVENTS, GROUPS, RUNGS};
use super::types::Config;

/// Keys of observation and metrics, in the order in which they are printed.
pub(super) const OBSERVE_KEYS: &[Key] = &[
    key(
        "observe",
        "groups",
        Kind::List {
            expected: "one of all, sched, process, block, net, packets, profile",
            check: |text| GROUPS.contains(&text),
            field: |config| &mut config.observe.groups,
        },
    ),
    key("observe", "containers", integer(16, 65_536, |config| &mut config.observe.containers)),
    key("observe", "tasks", integer(256, 1 << 20, |config| &mut config.observe.tasks)),
    key("observe", "edges", integer(16, 1 << 20, |config| &mut config.observe.edges)),
    key(
        "observe",
        "events",
        Kind::List {
            expected: "one of all, exec, exit, oom, connect-failed, pressure",
            check: |text| EVENTS.contains(&text),
            field: |config| &mut config.observe.events,
        },
    ),
    key("observe", "events_per_second", integer(1, 100_000, |config| &mut config.observe.events_per_second)),
    key(
        "observe",
        "events_total_per_second",
        integer(1, 100_000, |config| &mut config.observe.events_total_per_second),
    ),
    key("observe", "tombstone_seconds", integer(0, 3600, |config| &mut config.observe.tombstone_seconds)),
    key("observe", "pressure_cpu", percent(|config| &mut config.observe.pressure_cpu)),
    key("observe", "pressure_memory", percent(|config| &mut config.observe.pressure_memory)),
    key("observe", "pressure_io", percent(|config| &mut config.observe.pressure_io)),
    key(
        "observe",
        "without",
        Kind::List {
            expected: "one of btf, tp_btf, raw_tp, tracepoint, cgroup, perf_event",
            check: |text| RUNGS.contains(&text),
            field: |config| &mut config.observe.without,
        },
    ),
    key(
        "metrics",
        "listen",
        Kind::List {
            expected: "an IP address with a port, e.g. \"127.0.0.1:9464\" or \"[::]:9464\"",
            check: |text| text.parse::<SocketAddr>().is_ok_and(|address| address.port() > 0),
            field: |config| &mut config.metrics.listen,
        },
    ),
    key("metrics", "tls", Kind::Bool(|config| &mut config.metrics.tls)),
    key("metrics", "insecure", Kind::Bool(|config| &mut config.metrics.insecure)),
    key("metrics", "tls_certificate", Kind::OptionalPath(|config| &mut config.metrics.tls_certificate)),
    key("metrics", "tls_key", Kind::OptionalPath(|config| &mut config.metrics.tls_key)),
    key("metrics", "tls_client_ca", Kind::OptionalPath(|config| &mut config.metrics.tls_client_ca)),
    key("metrics", "host", Kind::Bool(|config| &mut config.metrics.host)),
    key("metrics", "compatible", Kind::Bool(|config| &mut config.metrics.compatible)),
    key("metrics", "series_per_pod", integer(100, 10_000_000, |config| &mut config.metrics.series_per_pod)),
    key("metrics", "peers_per_pod", integer(0, 10_000, |config| &mut config.metrics.peers_per_pod)),
    key("metrics", "timeout_seconds", integer(1, 300, |config| &mut config.metrics.timeout_seconds)),
];

const fn percent(field: fn(&mut Config) -> &mut f64) -> Kind {
    Kind::Number { min: 0.0, max: 100.0, field }
}
