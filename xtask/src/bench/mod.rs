//! `bench`: whole-program measurements beside the other engines that are installed. See `docs/benchmarks.md`.

mod checks;
mod exec;
mod floor;
mod harness;
mod idle;
mod oci;
mod ours;
mod peers;
mod pipe;
mod pods;
mod report;
mod storm;
mod unpack;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::elevate;

/// Runs one benchmark by name.
pub fn run(root: &Path, arguments: &[String]) -> Result<ExitCode, String> {
    let quick = arguments.iter().any(|word| word == "--quick");
    let names: Vec<&str> = arguments.iter().map(String::as_str).filter(|word| *word != "--quick").collect();
    let measure = match names.as_slice() {
        ["pods"] => pods::run,
        ["exec"] => exec::run,
        _ => return Err("bench: expected one name of: pods, exec; and perhaps --quick".to_owned()),
    };
    let words: Vec<String> = std::iter::once("bench".to_owned()).chain(arguments.iter().cloned()).collect();
    if let Some(end) = elevate::require(root, &words) {
        return end;
    }
    if cfg!(debug_assertions) {
        // the harness is a client of what it measures: it is built as that is
        crate::build(root, &["build", "--release", "--package", "xtask", "--package", "agentd"])?;
        let status = std::process::Command::new(root.join("target/release/xtask"))
            .args(&words)
            .current_dir(root)
            .status()
            .map_err(|error| format!("target/release/xtask cannot be started: {error}"))?;
        return Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)));
    }
    measure(root, quick)
}

/// Where a benchmark keeps its files: memory where there is some, because a disk's mood is not what is measured.
fn scratch_parent() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}
