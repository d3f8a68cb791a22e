//! Developer tasks, called as `cargo xtask TASK`:
//!
//! - `demo`: runs the daemon from this tree and shows what it does;
//! - `test [--with-peers] [TIER…] [-- FILTER…]`: runs the tests, by default those of every tier;
//! - `bench NAME [--quick] [--agentd FILE] [--series NAMES]`: measures, beside what is installed of other engines;
//! - `image DIR`: writes the demo's image;
//! - `ebpf`: compiles the programs for the kernel into `ebpf/prebuilt`;
//! - `check-layers`: holds that the crates import each other only downwards.

mod bench;
mod daemon;
mod demo;
mod ebpf;
mod elevate;
mod http;
mod layers;
mod mounts;
mod test;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask TASK

  demo                                  run the daemon from this tree and show what it does (needs root)
  test [--with-peers] [TIER…] [-- ARG…] run tests; tiers: layers lint unit privileged interop; default all
                                        --with-peers first installs what the tests talk to (apt-get)
                                        ARG…: filters, given to the test runner
  bench NAME [--quick] [--agentd FILE] [--series NAMES]
                                        measure; names: pods exec observe (need root); series of exec: programs check pipe;
                                        of observe: maps pipe redis compile daemon
                                        --agentd FILE: another release build of the daemon
  image DIR                             write the demo's image as an OCI layout folder
  ebpf                                  compile the programs for the kernel into ebpf/prebuilt (nightly toolchain)
  check-layers                          hold that the crates import each other only downwards";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let root = workspace();
    let result = match arguments.split_first() {
        Some((task, rest)) => match task.as_str() {
            "demo" if rest.is_empty() => demo::run(&root),
            "test" => test::run(&root, rest),
            "bench" => bench::run(&root, rest),
            "image" if rest.len() == 1 => demo::write_image(&root, Path::new(&rest[0])).map(|()| ExitCode::SUCCESS),
            "ebpf" if rest.is_empty() => ebpf::run(&root),
            "check-layers" if rest.is_empty() => layers::run(&root),
            "help" | "--help" | "-h" => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            _ => return usage(),
        },
        None => return usage(),
    };
    match result {
        Ok(code) => code,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

/// The folder of the workspace: this crate lies in it.
fn workspace() -> PathBuf {
    let manifest =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest.parent().map_or(manifest.clone(), Path::to_path_buf)
}

/// Cargo, of the toolchain that runs this program.
fn cargo(root: &Path) -> std::process::Command {
    let mut cargo = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root);
    // `cargo run` tells this program about its own package; build scripts that watch these variables (ring's) would run
    // again each time a build is started from here and from a shell in turn
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            cargo.env_remove(name);
        }
    }
    if let Some(folder) = ebpf::FRESH.get() {
        cargo.env("AGENTD_EBPF_OBJECTS", folder);
    }
    cargo
}

/// Runs cargo and returns whether it succeeded.
fn build(root: &Path, arguments: &[&str]) -> Result<(), String> {
    println!("$ cargo {}", arguments.join(" "));
    let status = cargo(root).args(arguments).status().map_err(|error| format!("cargo cannot be started: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("cargo {} failed; its errors stand above", arguments.join(" "))) }
}

/// Whether a program is on the path (or where system programs are, which an ordinary user's path leaves out).
fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .any(|folder| folder.join(program).is_file())
}
