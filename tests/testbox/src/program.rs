//! Building the static program: a cargo invocation of its own, because static linking is a property of a whole one.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Names under which an image has the program besides `/bin/testbox`: one for each applet that a pod starts by name.
pub const LINKS: &[&str] = &[
    "cache", "cat", "connect", "echo", "env", "exit", "false", "get", "hold", "ls", "sleep", "spin", "steps", "true",
    "web",
];

/// The flags of the static build, as the daemon's build script has them for pod-init.
const FLAGS: &str = "-Ctarget-feature=+crt-static\u{1f}-Crelocation-model=static\u{1f}-Cpanic=abort";

/// Builds `testbox` below `workspace/target/static` (or finds it up to date) and returns its path.
///
/// `AGENTD_TESTBOX` names a program that was built before; then nothing is built.
pub fn build(workspace: &Path) -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("AGENTD_TESTBOX") {
        let path = PathBuf::from(path);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(format!("AGENTD_TESTBOX is {}, which is no file; unset it to have the program built", path.display()))
        };
    }
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let folder = workspace.join("target/static");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for name in ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"] {
        cargo.env_remove(name);
    }
    let status = cargo
        .current_dir(workspace)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS)
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
        .args(["build", "--release", "--quiet", "--locked", "--package", "agentd-testbox", "--bin", "testbox"])
        .args(["--no-default-features", "--target", &target, "--target-dir"])
        .arg(&folder)
        .status()
        .map_err(|error| format!("cargo cannot be started to build testbox: {error}"))?;
    if !status.success() {
        return Err("the static build of testbox failed; cargo's errors stand above".to_owned());
    }
    Ok(folder.join(target).join("release/testbox"))
}
