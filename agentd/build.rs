//! Builds `pod-init` as a static release binary and hands its path to the crate, which embeds it: one binary to install.
//!
//! Static linking is a property of a whole cargo invocation, so this is a nested one, with a target folder of its own
//! below `OUT_DIR` (no lock is shared with the outer build). It compiles `agentd-launcher` and `libc` only.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    let launcher = PathBuf::from(env("CARGO_MANIFEST_DIR")).join("launcher");
    println!("cargo::rerun-if-changed={}", launcher.display());
    println!("cargo::rerun-if-changed=build.rs");
    let target_dir = PathBuf::from(env("OUT_DIR")).join("launcher");
    let target = env("TARGET");
    let mut cargo = Command::new(env("CARGO"));
    // the outer build's flags and wrappers (clippy, coverage) are not meant for this binary
    for name in ["CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"] {
        cargo.env_remove(name);
    }
    let flags = ["-Ctarget-feature=+crt-static", "-Crelocation-model=static", "-Cpanic=abort"].join("\u{1f}");
    let status = cargo
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .args(["build", "--release", "--quiet", "--locked", "--bin", "pod-init", "--target", &target])
        .arg("--target-dir")
        .arg(&target_dir)
        .arg("--manifest-path")
        .arg(launcher.join("Cargo.toml"))
        .status()
        .expect("cargo can be started for the nested build of pod-init");
    assert!(status.success(), "the nested build of pod-init failed; its errors stand above");
    let binary = target_dir.join(&target).join("release/pod-init");
    println!("cargo::rustc-env=AGENTD_POD_INIT={}", binary.display());
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}
