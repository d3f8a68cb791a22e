//! The key table of `[otlp]`.

use agentd_metrics::push::{Endpoint, Header};

use super::keys::{Key, Kind, integer, key};
use super::otlp::Compression;

/// Keys of the delivery by OTLP, in the order in which they are printed.
pub(super) const OTLP_KEYS: &[Key] = &[
    key(
        "otlp",
        "endpoint",
        Kind::Text {
            expected: "the address of a collector, http://HOST:PORT or https://HOST:PORT, with a path before /v1/metrics where \
                       there is one, and without user, password and query",
            set: |config, text| {
                text.parse::<Endpoint>().is_ok_and(|endpoint| {
                    config.otlp.endpoint = Some(endpoint.to_string());
                    true
                })
            },
            get: |config| config.otlp.endpoint.clone(),
        },
    ),
    key(
        "otlp",
        "headers",
        Kind::List {
            expected: "a header and its value, e.g. \"x-tenant=blue\", none that HTTP or OTLP sets itself",
            check: |text| Header::parse(text, false).is_some(),
            field: |config| &mut config.otlp.headers,
        },
    ),
    key(
        "otlp",
        "header_files",
        Kind::List {
            expected: "a header and the absolute path of a file with its value, e.g. \"authorization=/etc/agentd/otlp-token\"",
            check: |text| Header::parse(text, true).is_some(),
            field: |config| &mut config.otlp.header_files,
        },
    ),
    key("otlp", "tls_ca", Kind::OptionalPath(|config| &mut config.otlp.tls_ca)),
    key("otlp", "tls_certificate", Kind::OptionalPath(|config| &mut config.otlp.tls_certificate)),
    key("otlp", "tls_key", Kind::OptionalPath(|config| &mut config.otlp.tls_key)),
    key(
        "otlp",
        "compression",
        Kind::Text {
            expected: "one of gzip, none",
            set: |config, text| {
                Compression::from_word(text).is_some_and(|value| {
                    config.otlp.compression = value;
                    true
                })
            },
            get: |config| Some(config.otlp.compression.word().to_owned()),
        },
    ),
    key("otlp", "interval_seconds", integer(1, 3600, |config| &mut config.otlp.interval_seconds)),
    key("otlp", "timeout_seconds", integer(1, 300, |config| &mut config.otlp.timeout_seconds)),
    key("otlp", "queue_requests", integer(1, 4096, |config| &mut config.otlp.queue_requests)),
    key("otlp", "queue_mib", integer(1, 1024, |config| &mut config.otlp.queue_mib)),
    key("otlp", "metrics", Kind::Bool(|config| &mut config.otlp.metrics)),
    key("otlp", "traces", Kind::Bool(|config| &mut config.otlp.traces)),
    key("otlp", "trace_ratio", Kind::Number { min: 0.0, max: 1.0, field: |config| &mut config.otlp.trace_ratio }),
];
