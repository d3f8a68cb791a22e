//! Networks of pods: nft, forwarding, IPv6, CNI. And the library that GPUs are seen by.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Check, program, read};
use crate::config::Config;

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let mut checks = vec![nft(), forwarding(), ipv6()];
    checks.extend(cni(config));
    checks.push(nvml());
    checks
}

fn nft() -> Check {
    const LOST: &str = "container networks: addresses are translated and ports mapped by nftables";
    let Some(program) = program("nft") else {
        return Check::warn("network/nft", "not installed", LOST, "install nftables");
    };
    let listed = Command::new(&program)
        .args(["list", "tables"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output();
    match listed {
        Ok(output) if output.status.success() => Check::ok("network/nft", format!("{} works", program.display())),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            let found = format!("{}: {}", program.display(), text.lines().next().unwrap_or("failed"));
            Check::warn("network/nft", found, LOST, "use a kernel with nf_tables, and run agentd with CAP_NET_ADMIN")
        }
        Err(error) => Check::warn("network/nft", format!("{}: {error}", program.display()), LOST, "reinstall nftables"),
    }
}

fn forwarding() -> Check {
    match read("/proc/sys/net/ipv4/ip_forward").as_deref() {
        Some("1") => Check::ok("network/ip_forward", "on"),
        Some(_) => Check::ok("network/ip_forward", "off; switched on with the first pod network"),
        None => Check::fail("network/ip_forward", "no IPv4", "container networks", "use a kernel with IPv4"),
    }
}

fn ipv6() -> Check {
    if !Path::new("/proc/net/if_inet6").exists() {
        return Check::warn("network/ipv6", "absent", "IPv6 of pods", "boot without ipv6.disable=1");
    }
    let value = |name: &str| read(format!("/proc/sys/net/ipv6/conf/{name}")).unwrap_or_default();
    if value("all/disable_ipv6") == "1" {
        let cure = "sysctl -w net.ipv6.conf.all.disable_ipv6=0";
        return Check::warn("network/ipv6", "switched off", "IPv6 of pods", cure);
    }
    if value("all/forwarding") == "1" {
        Check::ok("network/ipv6", "on, forwarding")
    } else {
        Check::ok("network/ipv6", "on; forwarding is off, switched on with the first pod network")
    }
}

fn cni(config: &Config) -> Vec<Check> {
    let folder = &config.paths.cni_config;
    let mut configs: Vec<PathBuf> = std::fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    configs.retain(|path| {
        path.extension().is_some_and(|extension| ["conf", "conflist", "json"].iter().any(|known| extension == *known))
    });
    if configs.is_empty() {
        return vec![Check::ok("network/cni", format!("no networks in {}", folder.display()))];
    }
    configs.sort();
    let mut missing = Vec::new();
    let mut unreadable = Vec::new();
    for path in &configs {
        let parsed = read(path).and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
        let Some(parsed) = parsed else {
            unreadable.push(path.display().to_string());
            continue;
        };
        for kind in plugin_types(&parsed) {
            let there =
                !kind.contains('/') && config.paths.cni_plugins.iter().any(|folder| folder.join(&kind).is_file());
            if !there && !missing.contains(&kind) {
                missing.push(kind);
            }
        }
    }
    let found = format!("{} networks in {}", configs.len(), folder.display());
    let mut checks = Vec::new();
    if !unreadable.is_empty() {
        checks.push(Check::warn(
            "network/cni_config",
            format!("{} cannot be read as JSON", unreadable.join(", ")),
            "those networks",
            "mend or remove them",
        ));
    }
    checks.push(if missing.is_empty() {
        Check::ok("network/cni", format!("{found}, all plugins present"))
    } else {
        let folders: Vec<String> = config.paths.cni_plugins.iter().map(|path| path.display().to_string()).collect();
        Check::warn(
            "network/cni",
            format!("{found}; plugins {} are missing", missing.join(", ")),
            "those networks",
            format!("install them (package containernetworking-plugins) in {}", folders.join(" or ")),
        )
    });
    checks
}

/// The plugins that a network configuration or list names, those of address management too.
pub(super) fn plugin_types(config: &serde_json::Value) -> Vec<String> {
    let plugins: Vec<&serde_json::Value> = match config.get("plugins").and_then(serde_json::Value::as_array) {
        Some(plugins) => plugins.iter().collect(),
        None => vec![config],
    };
    plugins
        .into_iter()
        .flat_map(|plugin| [plugin.get("type"), plugin.get("ipam").and_then(|ipam| ipam.get("type"))])
        .flatten()
        .filter_map(|kind| kind.as_str().map(str::to_owned))
        .collect()
}

fn nvml() -> Check {
    const LIBRARY: &str = "libnvidia-ml.so.1";
    let mut folders: Vec<PathBuf> = std::env::var_os("LD_LIBRARY_PATH")
        .map(|path| std::env::split_paths(&path).filter(|folder| folder.is_absolute()).collect())
        .unwrap_or_default();
    folders.extend(
        ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/lib64", "/lib"]
            .map(PathBuf::from),
    );
    folders.extend(
        ["/usr/local/nvidia/lib64", "/usr/local/cuda/compat", "/run/nvidia/driver/usr/lib64"].map(PathBuf::from),
    );
    for entry in std::fs::read_dir("/etc/ld.so.conf.d").into_iter().flatten().flatten() {
        let text = read(entry.path()).unwrap_or_default();
        folders.extend(text.lines().map(str::trim).filter(|line| line.starts_with('/')).map(PathBuf::from));
    }
    let library = folders.iter().map(|folder| folder.join(LIBRARY)).find(|file| file.exists());
    let device = Path::new("/dev/nvidiactl").exists();
    match (library, device) {
        (Some(library), true) => Check::ok("gpu/nvml", library.display().to_string()),
        (None, false) => Check::ok("gpu/nvml", "no NVIDIA driver: this host offers no GPUs"),
        (Some(library), false) => Check::warn(
            "gpu/nvml",
            format!("{} without /dev/nvidiactl", library.display()),
            "GPUs",
            "load the driver (modprobe nvidia; nvidia-modprobe -c 0), or remove its library",
        ),
        (None, true) => Check::warn(
            "gpu/nvml",
            format!("/dev/nvidiactl without {LIBRARY}"),
            "GPUs",
            "install the driver's management library (package libnvidia-ml1)",
        ),
    }
}
