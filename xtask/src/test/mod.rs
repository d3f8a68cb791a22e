//! `test`: runs the tiers one after another and counts what passed, failed and was skipped, with each reason.
//!
//! The last line of output that a program needs is the total, alone on a line: `N passed, N failed, N skipped`.

mod output;
mod peers;
mod tiers;

use std::path::Path;
use std::process::ExitCode;

use crate::elevate;
use tiers::Tier;

/// What became of the tests of a tier.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub passed: u64,
    pub failed: u64,
    /// What was skipped, as `test: reason`.
    pub skipped: Vec<String>,
}

impl Outcome {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend(other.skipped);
    }

    /// One test of its own name, such as a lint.
    fn check(name: &str, passed: bool) -> Self {
        println!("        {} {name}", if passed { "PASS" } else { "FAIL" });
        Self { passed: u64::from(passed), failed: u64::from(!passed), skipped: Vec::new() }
    }

    fn skip(name: &str, reason: &str) -> Self {
        Self { skipped: vec![format!("{name}: {reason}")], ..Self::default() }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped.len())
    }
}

/// What was asked for on the command line.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    with_peers: bool,
    tiers: Vec<Tier>,
    filters: Vec<String>,
}

fn parse(arguments: &[String]) -> Result<Request, String> {
    let mut request = Request { with_peers: false, tiers: Vec::new(), filters: Vec::new() };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--with-peers" => request.with_peers = true,
            "--" => request.filters.extend(words.by_ref().cloned()),
            name => {
                if let Some(tier) = Tier::ALL.iter().find(|tier| tier.name() == name) {
                    request.tiers.push(*tier);
                } else {
                    let known: Vec<_> = Tier::ALL.iter().map(|tier| tier.name()).collect();
                    return Err(format!("test: '{name}' is no tier; expected some of {}", known.join(", ")));
                }
            }
        }
    }
    if request.tiers.is_empty() {
        request.tiers = Tier::ALL.to_vec();
    }
    Ok(request)
}

/// Runs the tiers. The exit code is 1 when anything failed.
pub fn run(root: &Path, arguments: &[String]) -> Result<ExitCode, String> {
    let request = parse(arguments)?;
    let root_wanted = request.with_peers || request.tiers.iter().any(|tier| tier.needs_root());
    if root_wanted && !elevate::is_root() {
        let words: Vec<String> = std::iter::once("test".to_owned()).chain(arguments.iter().cloned()).collect();
        match elevate::again(root, &words) {
            Some(result) => return result,
            None => println!("not root, and sudo is not installed: the tiers that need root are skipped"),
        }
    }
    if request.with_peers {
        peers::install(root);
        crate::ebpf::rebuild(root);
    }
    let mut total = Outcome::default();
    let mut lines = Vec::new();
    let mut prepared = None;
    for tier in request.tiers {
        println!("\n== {} ==", tier.name());
        let outcome = if tier.needs_programs() {
            match prepared.get_or_insert_with(|| tiers::prepare(root)) {
                Ok(()) => tier.run(root, &request.filters),
                Err(message) => {
                    println!("{message}");
                    Outcome::check("the build of what the tests run", false)
                }
            }
        } else {
            tier.run(root, &request.filters)
        };
        println!("{}: {outcome}", tier.name());
        for reason in &outcome.skipped {
            println!("  skipped {reason}");
        }
        lines.push(format!("{:>10}: {outcome}", tier.name()));
        total.add(outcome);
    }
    println!("\n{}", lines.join("\n"));
    println!("{total}");
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(ToOwned::to_owned).collect()
    }

    #[test]
    fn no_tier_means_all_and_filters_follow_the_dashes() {
        let request = parse(&words("--with-peers -- privileged_memory")).unwrap();
        assert_eq!(
            request,
            Request { with_peers: true, tiers: Tier::ALL.to_vec(), filters: words("privileged_memory") }
        );
        assert_eq!(parse(&words("unit layers")).unwrap().tiers, [Tier::Unit, Tier::Layers]);
    }

    #[test]
    fn an_unknown_tier_is_named_with_the_known_ones() {
        let error = parse(&words("unti")).unwrap_err();
        assert!(error.contains("'unti'") && error.contains("unit"), "{error}");
    }

    #[test]
    fn a_sum_is_one_plain_line() {
        let mut total = Outcome { passed: 1, failed: 0, skipped: vec!["a: b".to_owned()] };
        total.add(Outcome { passed: 2, failed: 3, skipped: Vec::new() });
        assert_eq!(total.to_string(), "3 passed, 3 failed, 1 skipped");
    }
}
