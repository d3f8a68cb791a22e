//! `--with-peers`: installs what the tests talk to. What cannot be installed is reported; its tests skip with a reason.

use std::process::Command;

use crate::installed;

/// Debian packages and a file or program by which each is known to be there.
const PACKAGES: &[(&str, &str)] = &[
    ("nftables", "nft"),
    ("iproute2", "ip"),
    ("e2fsprogs", "mkfs.ext4"),
    ("crun", "crun"),
    ("runc", "runc"),
    ("podman", "podman"),
    ("containerd", "containerd"),
    ("skopeo", "skopeo"),
    ("docker-registry", "docker-registry"),
    ("containernetworking-plugins", "/usr/lib/cni/bridge"),
    ("busybox-static", "busybox"),
    ("curl", "curl"),
    ("python3", "/usr/bin/python3"),
    ("python3-websocket", "/usr/lib/python3/dist-packages/websocket/__init__.py"),
    ("vim", "vim"),
    ("procps", "top"),
];

fn present(mark: &str) -> bool {
    if mark.starts_with('/') { std::path::Path::new(mark).exists() } else { installed(mark) }
}

/// Installs what is missing, one package at a time where all at once does not work.
pub fn install() {
    let missing: Vec<&str> = PACKAGES.iter().filter(|(_, mark)| !present(mark)).map(|(package, _)| *package).collect();
    if missing.is_empty() {
        println!("peers: all installed");
        return;
    }
    if !installed("apt-get") {
        println!("peers: not installed, for want of apt-get: {}", missing.join(" "));
        return;
    }
    println!("peers: installing {}", missing.join(" "));
    if !apt(&["update"]) {
        println!("peers: apt-get update failed; trying with the lists that are there");
    }
    if apt_install(&missing) {
        return;
    }
    for package in missing {
        if !apt_install(&[package]) {
            println!("peers: {package} cannot be installed; tests that need it are skipped");
        }
    }
}

fn apt_install(packages: &[&str]) -> bool {
    // services of the packages (containerd, the registry) are not to be started: the tests start their own
    let words = ["install", "--yes", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0"];
    apt(&[&words, packages].concat())
}

fn apt(arguments: &[&str]) -> bool {
    Command::new("apt-get")
        .arg("-qq")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("RUNLEVEL", "1")
        .stdin(std::process::Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
