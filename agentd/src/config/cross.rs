//! What no key can be checked for alone: paths that must differ, limits in order, the length of the socket's path.

use std::collections::BTreeMap;
use std::path::Path;

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

fn length(path: &Path) -> usize {
    path.as_os_str().len()
}

fn too_long(path: &Path) -> bool {
    length(path) >= SUN_PATH
}
