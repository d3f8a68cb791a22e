//! What no key can be checked for alone: paths that must differ, limits in order, the length of the socket's path.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use super::api::Api;
use super::observe::Metrics;
use super::problem::quoted;
use super::types::Config;
use super::{Origin, Problem};

/// Room for a path in a Unix socket address, with the NUL that ends it (`sun_path`).
const SUN_PATH: usize = 108;

/// Longest name of a socket that the daemon makes below its run folder: one for each pod-init.
const RUN_SOCKET: &str = "pods/0123456789ab/init.sock";

/// Adds what is wrong with the configuration as a whole.
pub(super) fn check(config: &Config, sources: &BTreeMap<String, Origin>, problems: &mut Vec<Problem>) {
    let mut fail = |field: &str, message: String| {
        let table = field.split('[').next().unwrap_or(field);
        let origin = sources.get(table).unwrap_or(&Origin::Default);
        problems.push(origin.problem(field, message));
    };
    let paths = &config.paths;

    let folders = [
        ("paths.run", &paths.run),
        ("paths.state", &paths.state),
        ("paths.secrets", &paths.secrets),
        ("paths.seccomp", &paths.seccomp),
    ];
    for (field, path) in folders {
        // Everything below them is made, owned and removed by the daemon.
        if path.components().count() < 2 {
            fail(field, format!("found {}; expected a folder of its own", quoted(&path.to_string_lossy())));
        }
    }
    // Each pair once; the fault is the later one's unless that has its default.
    for (index, (field, path)) in folders.iter().enumerate() {
        for (other, around) in &folders[..index] {
            let apart = !path.starts_with(around) && !around.starts_with(path);
            if !apart {
                let default = matches!(sources.get(*field), Some(Origin::Default | Origin::Dev));
                let (field, path, other, around) =
                    if default { (other, around, field, path) } else { (field, path, other, around) };
                fail(
                    field,
                    format!(
                        "found {}, which is, holds or is in {other} ({}); expected separate folders",
                        quoted(&path.to_string_lossy()),
                        around.display()
                    ),
                );
            }
        }
    }

    if too_long(&paths.socket) {
        let cure = if config.dev.is_some() {
            "use a shorter --dev folder, or set paths.socket"
        } else {
            "set a shorter paths.socket"
        };
        fail(
            "paths.socket",
            format!(
                "found a path of {} bytes ({}); expected at most {} (sun_path); {cure}",
                length(&paths.socket),
                paths.socket.display(),
                SUN_PATH - 1
            ),
        );
    }
    if too_long(&paths.run.join(RUN_SOCKET)) {
        let cure = if config.dev.is_some() { "use a shorter --dev folder" } else { "set a shorter paths.run" };
        fail(
            "paths.run",
            format!(
                "found a path of {} bytes ({}); expected at most {}, so that the sockets below it fit sun_path; {cure}",
                length(&paths.run),
                paths.run.display(),
                SUN_PATH - 2 - RUN_SOCKET.len()
            ),
        );
    }
    if paths.socket == paths.run || paths.socket == paths.state || paths.socket.file_name().is_none() {
        fail("paths.socket", format!("found {}; expected the path of a file", quoted(&paths.socket.to_string_lossy())));
    }

    for (index, path) in config.host_files.allowed_host_paths.iter().enumerate() {
        for (name, own) in [("paths.run", &paths.run), ("paths.state", &paths.state), ("paths.secrets", &paths.secrets)]
        {
            if path.starts_with(own) {
                fail(
                    &format!("host_files.allowed_host_paths[{index}]"),
                    format!(
                        "found {}; expected nothing below {name} ({})",
                        quoted(&path.to_string_lossy()),
                        own.display()
                    ),
                );
            }
        }
    }
    for (index, path) in config.artifacts.file_roots.iter().enumerate() {
        for (name, own) in [("paths.run", &paths.run), ("paths.state", &paths.state), ("paths.secrets", &paths.secrets)]
        {
            if path.starts_with(own) || own.starts_with(path) {
                fail(
                    &format!("artifacts.file_roots[{index}]"),
                    format!(
                        "found {}; expected a folder that does not hold {name} ({})",
                        quoted(&path.to_string_lossy()),
                        own.display()
                    ),
                );
            }
        }
    }

    listeners(&config.api, &mut fail);
    config.otlp.check(&mut fail);
    metrics_listeners(&config.metrics, &config.api, &mut fail);
    if config.sessions.per_container > config.sessions.total {
        let (one, all) = (config.sessions.per_container, config.sessions.total);
        let default = matches!(sources.get("sessions.per_container"), Some(Origin::Default));
        let field = if default { "sessions.total" } else { "sessions.per_container" };
        fail(field, format!("found per_container {one} and total {all}; expected the first not above the second"));
    }

    if config.images.low_watermark >= config.images.high_watermark {
        let field = match sources.get("images.low_watermark") {
            Some(Origin::Default) => "images.high_watermark",
            _ => "images.low_watermark",
        };
        fail(
            field,
            format!(
                "found low_watermark {} and high_watermark {}; expected the low one below the high one",
                config.images.low_watermark, config.images.high_watermark
            ),
        );
    }
    if (1..1280).contains(&config.network.mtu) {
        let message = format!("found {}; expected 0, or at least 1280 (IPv6 needs it)", config.network.mtu);
        fail("network.mtu", message);
    }
    if config.network.mtu > 9216 && config.network.mtu < 65_535 {
        // Nothing between jumbo frames and the loopback's size is an Ethernet MTU.
        fail("network.mtu", format!("found {}; expected at most 9216, or 65535", config.network.mtu));
    }
    for (total, kept, field) in [
        (config.resources.cpus, config.reserved.cpus, "reserved.cpus"),
        (config.resources.memory_mib.map(|v| v as f64), config.reserved.memory_mib as f64, "reserved.memory_mib"),
        (config.resources.disk_mib.map(|v| v as f64), config.reserved.disk_mib as f64, "reserved.disk_mib"),
    ] {
        if let Some(total) = total
            && kept >= total
        {
            let field = match (sources.get(field), field) {
                (Some(Origin::Default), "reserved.cpus") => "resources.cpus",
                (Some(Origin::Default), "reserved.memory_mib") => "resources.memory_mib",
                (Some(Origin::Default), "reserved.disk_mib") => "resources.disk_mib",
                _ => field,
            };
            fail(
                field,
                format!(
                    "found {kept} reserved of {total}; expected some left for pods; lower [reserved] or raise [resources]"
                ),
            );
        }
    }
}

/// TCP is served over TLS, or in plain text to this host alone.
fn listeners(api: &Api, fail: &mut impl FnMut(&str, String)) {
    let files = [
        ("api.tls_certificate", &api.tls_certificate),
        ("api.tls_key", &api.tls_key),
        ("api.tls_client_ca", &api.tls_client_ca),
    ];
    let given = files.iter().filter(|(_, file)| file.is_some()).count();
    for (index, text) in api.listen.iter().enumerate() {
        let field = format!("api.listen[{index}]");
        if api.listen[..index].contains(text) {
            fail(&field, format!("found {} a second time; keep one", quoted(text)));
        }
        let loopback = text.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback());
        if api.insecure && !loopback {
            fail(
                &field,
                format!(
                    "found {} with api.insecure = true, which serves plain text without certificates; expected an address \
                     of loopback (127.0.0.1 or [::1]), or TLS: remove insecure and set api.tls_certificate, api.tls_key \
                     and api.tls_client_ca",
                    quoted(text)
                ),
            );
        }
    }
    if api.insecure && given > 0 {
        let message = "found true beside TLS files; plain text and TLS exclude each other, remove one of them";
        fail("api.insecure", message.to_owned());
    } else if given < files.len() && (given > 0 || !api.listen.is_empty()) && !api.insecure {
        let missing: Vec<&str> = files.iter().filter(|(_, file)| file.is_none()).map(|(field, _)| *field).collect();
        let field =
            if api.listen.is_empty() { files.iter().find(|f| f.1.is_some()).map_or("", |f| f.0) } else { "api.listen" };
        fail(
            field,
            format!(
                "needs {} for TLS with client certificates; set them (`agentctl cert init` makes them), or set \
                 api.insecure = true for plain text on loopback",
                missing.join(", ")
            ),
        );
    }
}

/// Metrics are served in plain text to this host alone, elsewhere with TLS, or in plain text where that was asked for.
fn metrics_listeners(metrics: &Metrics, api: &Api, fail: &mut impl FnMut(&str, String)) {
    for (index, text) in metrics.listen.iter().enumerate() {
        let field = format!("metrics.listen[{index}]");
        if metrics.listen[..index].contains(text) {
            fail(&field, format!("found {} a second time; keep one", quoted(text)));
        }
        if api.listen.contains(text) {
            let message = format!("found {}, which is in api.listen, too; expected another port", quoted(text));
            fail(&field, message);
        }
        let loopback = text.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback());
        if !loopback && !metrics.tls && !metrics.insecure {
            fail(
                &field,
                format!(
                    "found {}, where other hosts could read metrics in plain text; expected an address of loopback \
                     (127.0.0.1 or [::1]), or metrics.tls = true, or metrics.insecure = true for a network that is trusted",
                    quoted(text)
                ),
            );
        }
    }
    if metrics.tls && metrics.insecure {
        let message = "found true beside metrics.tls; plain text and TLS exclude each other, remove one of them";
        fail("metrics.insecure", message.to_owned());
    }
    let missing: Vec<&str> = [
        ("tls_certificate", &metrics.tls_certificate, &api.tls_certificate),
        ("tls_key", &metrics.tls_key, &api.tls_key),
        ("tls_client_ca", &metrics.tls_client_ca, &api.tls_client_ca),
    ]
    .into_iter()
    .filter(|(_, own, shared)| own.is_none() && shared.is_none())
    .map(|(name, ..)| name)
    .collect();
    if metrics.tls && !missing.is_empty() {
        let message = format!(
            "needs {}; set them in [metrics] or [api] (`agentctl cert init` makes such files)",
            missing.join(", ")
        );
        fail("metrics.tls", message);
    }
}

fn length(path: &Path) -> usize {
    path.as_os_str().len()
}

fn too_long(path: &Path) -> bool {
    length(path) >= SUN_PATH
}
