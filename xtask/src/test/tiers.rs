//! The tiers, and how each is run: `layers` and `lint` are checks, the others test binaries under `cargo nextest` where
//! that is installed and `cargo test` where not.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::Outcome;
use super::output::{Libtest, Nextest};
use crate::{elevate, installed, layers};

/// The package whose test binaries are told apart by the first word of their names.
const TESTS: &str = "agentd-tests";

/// How long the output may be still before it is asked whether the runner is there.
const QUIET: Duration = Duration::from_secs(2);

/// A set of tests that need the same things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// Crates import downwards only.
    Layers,
    /// rustfmt and clippy.
    Lint,
    /// Tests beside the code and of single crates, and what of the integration tests needs nothing of the host.
    Unit,
    /// The daemon on this host as root.
    Privileged,
    /// The daemon with other programs.
    Interop,
}

impl Tier {
    pub const ALL: &[Self] = &[Self::Layers, Self::Lint, Self::Unit, Self::Privileged, Self::Interop];

    pub fn name(self) -> &'static str {
        match self {
            Self::Layers => "layers",
            Self::Lint => "lint",
            Self::Unit => "unit",
            Self::Privileged => "privileged",
            Self::Interop => "interop",
        }
    }

    pub fn needs_root(self) -> bool {
        matches!(self, Self::Privileged | Self::Interop)
    }

    /// Whether its tests start the daemon and its command line.
    pub fn needs_programs(self) -> bool {
        matches!(self, Self::Unit | Self::Privileged | Self::Interop)
    }

    pub fn run(self, root: &Path, filters: &[String]) -> Outcome {
        match self {
            Self::Layers => Outcome::check(
                "check-layers",
                layers::run(root).is_ok_and(|code| code == std::process::ExitCode::SUCCESS),
            ),
            Self::Lint => lint(root),
            Self::Unit => {
                let mut outcome = tests(root, &["--workspace", "--exclude", TESTS], filters);
                let others = binaries(root, |name| !name.starts_with("privileged_") && !name.starts_with("interop_"));
                if !others.is_empty() {
                    outcome.add(suite(root, &others, filters));
                }
                outcome
            }
            Self::Privileged | Self::Interop => {
                let prefix = format!("{}_", self.name());
                let suites = binaries(root, |name| name.starts_with(&prefix));
                if !elevate::is_root() {
                    let mut outcome = Outcome::default();
                    for name in suites {
                        outcome.add(Outcome::skip(&name, "it needs root"));
                    }
                    return outcome;
                }
                if suites.is_empty() {
                    println!("no file of tests/tests is named {prefix}*.rs");
                    return Outcome::default();
                }
                suite(root, &suites, filters)
            }
        }
    }
}

/// Builds what the tests start: the daemon, its command line, and the static program for images.
pub fn prepare(root: &Path) -> Result<(), String> {
    crate::build(root, &["build", "--workspace"])?;
    agentd_testbox::program::build(root).map(|path| println!("testbox: {}", path.display()))
}

/// Names of the integration test binaries that are wanted.
fn binaries(root: &Path, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(root.join("tests/tests"))
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let named = path.extension().is_some_and(|end| end == "rs") || path.join("main.rs").is_file();
            named.then(|| path.file_stem()?.to_str().map(ToOwned::to_owned)).flatten()
        })
        .filter(|name| wanted(name))
        .collect();
    names.sort();
    names
}

/// Runs some of the integration test binaries.
fn suite(root: &Path, names: &[String], filters: &[String]) -> Outcome {
    let mut selection = vec!["--package", TESTS];
    for name in names {
        selection.extend(["--test", name]);
    }
    tests(root, &selection, filters)
}

fn lint(root: &Path) -> Outcome {
    let mut outcome = Outcome::default();
    let clippy = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
    for (tool, arguments) in [("fmt", ["fmt", "--check"].as_slice()), ("clippy", clippy.as_slice())] {
        let there = crate::cargo(root).args([tool, "--version"]).output().is_ok_and(|output| output.status.success());
        if !there {
            outcome.add(Outcome::skip(tool, "it is not installed (rustup component add rustfmt clippy)"));
            continue;
        }
        println!("$ cargo {}", arguments.join(" "));
        let passed = crate::cargo(root).args(arguments).status().is_ok_and(|status| status.success());
        outcome.add(Outcome::check(tool, passed));
    }
    outcome
}

fn tests(root: &Path, selection: &[&str], filters: &[String]) -> Outcome {
    let mut cargo = crate::cargo(root);
    let nextest = installed("cargo-nextest");
    if nextest {
        cargo.args(["nextest", "run", "--color", "never", "--no-fail-fast", "--no-tests", "pass"]);
        cargo.args(["--success-output", "immediate", "--failure-output", "immediate", "--status-level", "skip"]);
        cargo.args(selection).args(filters);
    } else {
        // two at a time at most: the tests of this tier start daemons and measure what they do
        let threads = if selection.contains(&TESTS) && !selection.contains(&"--exclude") { "2" } else { "4" };
        cargo.args(["test", "--no-fail-fast", "--color", "never"]).args(selection);
        cargo.args(["--", "--show-output", "--test-threads", threads]).args(filters);
    }
    println!("$ {}", shown(&cargo));
    let mut reader: Box<dyn Reader> =
        if nextest { Box::new(Nextest::new(!filters.is_empty())) } else { Box::new(Libtest::default()) };
    let succeeded = match follow(cargo, |line| reader.line(line)) {
        Ok(succeeded) => succeeded,
        Err(message) => {
            println!("{message}");
            return Outcome::check("the test runner", false);
        }
    };
    match reader.outcome() {
        Some(mut outcome) => {
            if !succeeded && outcome.failed == 0 {
                println!("the test runner failed for another reason than a test; its message stands above");
                outcome.failed = 1;
            }
            outcome
        }
        None if succeeded => Outcome::default(),
        None => Outcome::check("the build of the tests", false),
    }
}

trait Reader {
    fn line(&mut self, line: &str) -> bool;
    fn outcome(self: Box<Self>) -> Option<Outcome>;
}

impl Reader for Nextest {
    fn line(&mut self, line: &str) -> bool {
        Self::line(self, line)
    }
    fn outcome(self: Box<Self>) -> Option<Outcome> {
        Self::outcome(*self)
    }
}

impl Reader for Libtest {
    fn line(&mut self, line: &str) -> bool {
        Self::line(self, line)
    }
    fn outcome(self: Box<Self>) -> Option<Outcome> {
        Self::outcome(*self)
    }
}

/// The command as a person would type it.
fn shown(command: &Command) -> String {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    format!("cargo {}", words.join(" "))
}

/// Runs a command, gives each line of its output (both streams, in order) to `show`, and prints those it wants shown.
fn follow(mut command: Command, mut show: impl FnMut(&str) -> bool) -> Result<bool, String> {
    let (reader, writer) = std::io::pipe().map_err(|error| format!("a pipe cannot be made: {error}"))?;
    let second = writer.try_clone().map_err(|error| format!("a pipe cannot be copied: {error}"))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(second)
        .spawn()
        .map_err(|error| format!("cargo cannot be started: {error}"))?;
    // the command holds the writing ends, and the pipe ends only when they are closed
    drop(command);
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    loop {
        match lines.recv_timeout(QUIET) {
            Ok(line) => {
                let line = String::from_utf8_lossy(&line);
                if show(line.trim_end_matches('\r')) {
                    println!("{line}");
                }
            }
            // a process that a test left behind may hold the pipe open
            Err(mpsc::RecvTimeoutError::Timeout) if matches!(child.try_wait(), Ok(None)) => {}
            Err(_) => break,
        }
    }
    child.wait().map(|status| status.success()).map_err(|error| format!("the test runner cannot be awaited: {error}"))
}
