//! `bench`: whole-program measurements beside the other engines that are installed. See `docs/benchmarks.md`.

mod checks;
mod exec;
mod floor;
mod harness;
mod idle;
mod observe;
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

/// What is measured, and how.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    /// The benchmark.
    name: String,
    /// Fewer samples.
    quick: bool,
    /// The series that are wanted; none names all.
    series: Vec<String>,
    /// The daemon that is measured instead of the one that was just built.
    agentd: Option<PathBuf>,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        const USAGE: &str = "expected one name of: pods, exec, observe; and perhaps --quick, --agentd FILE, and --series NAMES \
                             with commas (of exec: programs, check, pipe; of observe: maps, pipe, redis, compile, daemon)";
        let mut options = Self::default();
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("bench: {word} has no value; {USAGE}"));
            match word.as_str() {
                "--quick" => options.quick = true,
                "--agentd" => options.agentd = Some(PathBuf::from(value()?)),
                "--series" => options.series = value()?.split(',').map(str::to_owned).collect(),
                "pods" | "exec" | "observe" if options.name.is_empty() => options.name.clone_from(word),
                other => return Err(format!("bench: found {other:?}, {USAGE}")),
            }
        }
        let known = |series: &String| match options.name.as_str() {
            "exec" => exec::SERIES.contains(&series.as_str()),
            "observe" => observe::SERIES.contains(&series.as_str()),
            _ => false,
        };
        if let Some(strange) = options.series.iter().find(|series| !known(series)) {
            return Err(format!("bench: found the series {strange:?}, {USAGE}"));
        }
        if options.name.is_empty() { Err(format!("bench: {USAGE}")) } else { Ok(options) }
    }

    /// Whether a series is wanted.
    fn wants(&self, series: &str) -> bool {
        self.series.is_empty() || self.series.iter().any(|name| name == series)
    }

    /// The daemon that is measured.
    fn agentd(&self, root: &Path) -> PathBuf {
        self.agentd.clone().unwrap_or_else(|| root.join("target/release/agentd"))
    }
}

/// Runs one benchmark by name.
pub fn run(root: &Path, arguments: &[String]) -> Result<ExitCode, String> {
    let options = Options::parse(arguments)?;
    let measure = match options.name.as_str() {
        "pods" => pods::run,
        "observe" => observe::run,
        _ => exec::run,
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
    measure(root, &options)
}

/// Where a benchmark keeps its files: memory where there is some, because a disk's mood is not what is measured.
fn scratch_parent() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn arguments_name_one_benchmark_and_known_series() {
        let options = parse("exec --quick --series check,pipe --agentd /a").unwrap();
        assert!(options.quick && options.wants("check") && options.wants("pipe") && !options.wants("programs"));
        assert_eq!(options.agentd(Path::new("/r")), Path::new("/a"));
        let plain = parse("pods").unwrap();
        assert!(!plain.quick && plain.wants("check"));
        assert_eq!(plain.agentd(Path::new("/r")), Path::new("/r/target/release/agentd"));
        for wrong in
            ["", "--quick", "pods exec", "exec --series", "exec --series checks", "pods --series check", "exec -q"]
        {
            assert!(parse(wrong).is_err(), "{wrong} was taken");
        }
    }
}
