//! Kernel settings of a network namespace. `/proc/sys/net` shows the namespace of the thread that opens it.

use std::io;
use std::path::PathBuf;

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name)
}

/// Value of a setting, e.g. `net/ipv4/ip_forward`; none where the kernel has no such setting.
pub(super) fn get(name: &str) -> Option<String> {
    std::fs::read_to_string(path(name)).ok().map(|text| text.trim().to_owned())
}

/// Writes a setting unless it has the value already. Returns whether it was changed.
pub(super) fn set(name: &str, value: &str) -> io::Result<bool> {
    if get(name).as_deref() == Some(value) {
        return Ok(false);
    }
    let written = std::fs::write(path(name), value);
    written.map_err(|error| {
        io::Error::new(error.kind(), format!("cannot set {} to {value}: {error}", name.replace('/', ".")))
    })?;
    Ok(true)
}

/// Whether the host uses IPv6.
pub(super) fn has_ipv6() -> bool {
    ["all", "default"].iter().all(|which| get(&format!("net/ipv6/conf/{which}/disable_ipv6")).as_deref() == Some("0"))
}

/// Lets the host forward IPv4 packets. The setting is one for the whole host and is left on.
pub(super) fn forward_v4() -> io::Result<()> {
    if set("net/ipv4/ip_forward", "1")? {
        tracing::info!(
            "set net.ipv4.ip_forward to 1: the host now forwards packets, also between its other interfaces"
        );
    }
    Ok(())
}

/// Lets the host forward IPv6 packets. A host that forwards stops listening to router advertisements and drops the
/// default routes that it has from them, unless an interface says `accept_ra = 2`; so those that listen are set to 2 first.
pub(super) fn forward_v6() -> io::Result<()> {
    if get("net/ipv6/conf/all/forwarding").as_deref() == Some("1") {
        return Ok(());
    }
    for entry in std::fs::read_dir(path("net/ipv6/conf"))?.flatten() {
        let name = entry.file_name();
        let setting = format!("net/ipv6/conf/{}/accept_ra", name.to_string_lossy());
        if name != "all" && get(&setting).as_deref() == Some("1") {
            set(&setting, "2")?;
        }
    }
    if set("net/ipv6/conf/all/forwarding", "1")? {
        tracing::info!(
            "set net.ipv6.conf.all.forwarding to 1 (and accept_ra from 1 to 2, so that routers are still listened to)"
        );
    }
    Ok(())
}
