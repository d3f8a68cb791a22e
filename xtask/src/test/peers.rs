//! `--with-peers`: installs what the tests talk to. What cannot be installed is reported; its tests skip with a reason.

use std::path::Path;
use std::process::{Command, Stdio};

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
    ("prometheus", "promtool"),
    ("prometheus-node-exporter", "prometheus-node-exporter"),
    ("linux-perf", "perf"),
    ("bpftrace", "bpftrace"),
];

/// Packages of Python's index, with what pip is told about each: an OpenTelemetry collector, of which there are only early
/// releases, and the messages of its protocol.
const PYTHON: &[&[&str]] = &[&["--pre", "rotel"], &["opentelemetry-proto"]];

/// Where they are, below the repository: a virtual environment.
const ENVIRONMENT: &str = "target/peers-python";

fn present(mark: &str) -> bool {
    if mark.starts_with('/') { std::path::Path::new(mark).exists() } else { installed(mark) }
}

/// Installs what is missing, packages of Python below the repository at `root`.
pub fn install(root: &Path) {
    install_packages();
    install_python(&root.join(ENVIRONMENT));
}

/// Installs Debian packages, one at a time where all at once does not work.
fn install_packages() {
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

/// Puts the packages of Python into an environment of their own, which is made where there is none.
fn install_python(environment: &Path) {
    let python = environment.join("bin/python");
    let complete = || quietly(Command::new(&python).args(["-c", "import rotel, opentelemetry.proto"]));
    if complete() {
        return;
    }
    // Debian's own interpreter need not be the first in the path, and makes environments with this package alone
    let make = |python: &&str| quietly(Command::new(python).args(["-m", "venv", "--clear"]).arg(environment));
    let pythons = ["python3", "/usr/bin/python3"];
    let can = pythons.iter().any(make) || (apt_install(&["python3-venv"]) && pythons.iter().any(make));
    if !can {
        println!("peers: no virtual environment of Python can be made; tests that need its packages are skipped");
        return;
    }
    for words in PYTHON {
        let pip = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet"];
        if !quietly(Command::new(&python).args(pip).args(*words)) {
            println!("peers: pip cannot install {}; tests that need it are skipped", words.join(" "));
        }
    }
}

/// Whether a command succeeds. What it says is left out.
fn quietly(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn apt_install(packages: &[&str]) -> bool {
    // services of the packages (containerd, the registry) are not to be started: the tests start their own
    let words = ["install", "--yes", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0"];
    apt(&[&words, packages].concat())
}

/// Debian's word for whether services may be started by their installation. Where there is none, one that forbids it is
/// there as long as this lives.
struct NoServices(bool);

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn new() -> Self {
        use std::os::unix::fs::OpenOptionsExt;
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(POLICY);
        let written = file.and_then(|mut file| std::io::Write::write_all(&mut file, b"#!/bin/sh\nexit 101\n"));
        Self(written.is_ok())
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.0 {
            let _ = std::fs::remove_file(POLICY);
        }
    }
}

fn apt(arguments: &[&str]) -> bool {
    let _no_services = NoServices::new();
    Command::new("apt-get")
        .arg("-qq")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("RUNLEVEL", "1")
        .stdin(std::process::Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
