//! `agentd doctor`: what this host can do for pods, what it lacks, what that disables, and the cure.
//!
//! Each check looks, and changes nothing: mounts are only made detached and dropped, namespaces die with the process that
//! was cloned into them, BPF programs are loaded and never attached. Only those that watch containers are attached, for a
//! moment, and only where no daemon runs that could be asked. The checks run on threads of their own.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use comfy_table::{Cell, Color, ContentArrangement, Table};
use serde::Serialize;

use crate::config::Config;

mod access;
mod bpf;
mod cgroups;
mod clone;
mod kernel;
mod network;
mod observe;
mod process;
mod storage;
#[cfg(test)]
mod tests;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Pods run, but something is disabled.
    Warn,
    /// Pods do not run.
    Fail,
}

impl Status {
    /// Word in tables and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name, stable for programs, e.g. `cgroup/memory`.
    pub name: String,
    /// How it came out.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What does not work because of it; empty when all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub disables: String,
    /// What to do about it; empty when all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cure: String,
}

impl Check {
    fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            status: Status::Ok,
            found: found.into(),
            disables: String::new(),
            cure: String::new(),
        }
    }

    fn warn(name: impl Into<String>, found: impl Into<String>, disables: &str, cure: impl Into<String>) -> Self {
        Self { status: Status::Warn, disables: disables.to_owned(), cure: cure.into(), ..Self::ok(name, found) }
    }

    fn fail(name: impl Into<String>, found: impl Into<String>, disables: &str, cure: impl Into<String>) -> Self {
        Self { status: Status::Fail, ..Self::warn(name, found, disables, cure) }
    }
}

/// Looks at the host. Blocking: a few hundred milliseconds.
pub fn run(config: &Config) -> Vec<Check> {
    let groups: [fn(&Config) -> Vec<Check>; 8] = [
        process::checks,
        cgroups::checks,
        kernel::checks,
        storage::checks,
        network::checks,
        bpf::checks,
        observe::checks,
        access::checks,
    ];
    std::thread::scope(|scope| {
        let threads: Vec<_> = groups.iter().map(|group| scope.spawn(move || group(config))).collect();
        threads
            .into_iter()
            .flat_map(|thread| {
                thread.join().unwrap_or_else(|_| {
                    vec![Check::warn(
                        "doctor",
                        "a group of checks broke off",
                        "knowing what this host can do",
                        "report this as a defect of agentd, with the output above",
                    )]
                })
            })
            .collect()
    })
}

/// The worst of all.
pub fn worst(checks: &[Check]) -> Status {
    checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok)
}

/// Fewest columns into which the table is folded.
const NARROWEST: u16 = 60;

/// Exit code of the command: 1 if any check failed, else 0.
pub fn exit_code(checks: &[Check]) -> u8 {
    u8::from(worst(checks) == Status::Fail)
}

/// The checks as a table for people, and a line that sums up.
pub fn render_table(checks: &[Check], colours: bool) -> String {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    if !colours {
        table.force_no_tty();
    }
    // a terminal that does not know its width says 0, and text in a few columns is worse than long lines
    let fits = table.width().is_some_and(|width| width >= NARROWEST);
    table.set_content_arrangement(if fits { ContentArrangement::Dynamic } else { ContentArrangement::Disabled });
    table.set_header(["CHECK", "STATUS", "FOUND"]);
    for check in checks {
        let mut found = check.found.clone();
        if !check.disables.is_empty() {
            let _ = write!(found, "\n  disables: {}", check.disables);
        }
        if !check.cure.is_empty() {
            let _ = write!(found, "\n  cure: {}", check.cure);
        }
        let colour = match check.status {
            Status::Ok => Color::Green,
            Status::Warn => Color::Yellow,
            Status::Fail => Color::Red,
        };
        let status = Cell::new(check.status.word());
        let status = if colours { status.fg(colour) } else { status };
        table.add_row([Cell::new(&check.name), status, Cell::new(found)]);
    }
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    format!(
        "{}\n\n{} ok, {} warn, {} fail\n",
        lines.join("\n"),
        count(Status::Ok),
        count(Status::Warn),
        count(Status::Fail)
    )
}

/// The checks as JSON.
pub fn render_json(checks: &[Check]) -> String {
    let document = serde_json::json!({ "status": worst(checks), "checks": checks });
    format!("{document:#}\n")
}

/// A kernel file's text without the newline.
fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned())
}

/// A program on the daemon's `PATH`, or where system programs are.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file())
}

/// The path itself, or the nearest folder above it that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}
