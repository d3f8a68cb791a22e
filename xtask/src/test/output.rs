//! Reads what test runners print: which tests passed, failed, and said that they were skipped.
//!
//! A test that lacks something prints `skipped because …` at the start of a line and returns. To the runner it has passed;
//! here it counts as skipped. The output of tests that passed is not passed on, but for parts that say they were left out.

use super::Outcome;

/// How a test says that it did not run.
const SKIPPED: &str = "skipped because ";

/// Reads the lines of `cargo nextest run --success-output immediate`.
#[derive(Debug, Default)]
pub struct Nextest {
    /// The test whose output is being read, and whether it passed.
    current: Option<(String, bool)>,
    summary: Option<Outcome>,
    /// Whether filters were given: what they leave out is not skipped.
    filtered: bool,
    ignored: u64,
    skipped: Vec<String>,
}

impl Nextest {
    /// A reader of a run, with filters or of all tests.
    pub fn new(filtered: bool) -> Self {
        Self { filtered, ..Self::default() }
    }

    /// Takes one line; returns whether it is to be shown.
    pub fn line(&mut self, line: &str) -> bool {
        if let Some((word, name)) = status(line) {
            if word == "SKIP" {
                self.current = None;
                if !self.filtered {
                    self.skipped.push(format!("{name}: it is marked #[ignore]"));
                    self.ignored += 1;
                }
                return !self.filtered;
            }
            let passed = matches!(word, "PASS" | "LEAK" | "FLAKY");
            self.current = Some((name, passed));
            return true;
        }
        let text = line.trim_start();
        if let Some(rest) = text.strip_prefix("Summary [") {
            self.current = None;
            self.summary = rest.split_once(']').and_then(|(_, counts)| Self::count(counts));
            return true;
        }
        let Some((name, true)) = &self.current else {
            return true;
        };
        if let Some(reason) = text.strip_prefix(SKIPPED) {
            let entry = format!("{name}: {reason}");
            if !self.skipped.iter().any(|other| other.starts_with(&format!("{name}: "))) {
                self.skipped.push(entry);
            }
            return true;
        }
        text.contains(SKIPPED)
    }

    /// ` 10 tests run: 8 passed (1 leaky), 1 failed, 1 timed out, 2 skipped`.
    fn count(counts: &str) -> Option<Outcome> {
        let (_, parts) = counts.split_once("run: ")?;
        let mut outcome = Outcome::default();
        // what stands in brackets is part of what stands before
        for part in without_brackets(parts).split(',') {
            let (number, what) = part.trim().split_once(' ')?;
            let number: u64 = number.parse().ok()?;
            match what.trim() {
                "passed" => outcome.passed += number,
                // named line by line, where they are not what a filter left out
                "skipped" => {}
                _ => outcome.failed += number,
            }
        }
        Some(outcome)
    }

    /// What became of the tests; `None` when the runner did not come to its end.
    pub fn outcome(self) -> Option<Outcome> {
        let mut outcome = self.summary?;
        let said_so = self.skipped.len() as u64 - self.ignored;
        outcome.passed = outcome.passed.saturating_sub(said_so);
        outcome.skipped = self.skipped;
        Some(outcome)
    }
}

/// `        PASS [   0.012s] (1/2) package::binary test`: the word and the test.
fn status(line: &str) -> Option<(&str, String)> {
    let text = line.trim_start();
    let (word, rest) = text.split_once(" [")?;
    let known = ["PASS", "SKIP", "LEAK", "FAIL", "ABORT", "SIGSEGV", "SIGKILL", "SIGABRT", "TIMEOUT", "XFAIL", "FLAKY"];
    let word = word.split_whitespace().next()?;
    if !known.contains(&word) && !word.starts_with("SIG") {
        return None;
    }
    let (_, name) = rest.split_once("] ")?;
    let name = name.trim_start();
    let name = match name.strip_prefix('(') {
        Some(numbered) => numbered.split_once(") ")?.1,
        None => name,
    };
    Some((word, name.trim().to_owned()))
}

fn without_brackets(text: &str) -> String {
    let mut depth = 0_u32;
    text.chars()
        .filter(|letter| {
            match letter {
                '(' => depth += 1,
                ')' => {
                    depth = depth.saturating_sub(1);
                    return false;
                }
                _ => {}
            }
            depth == 0
        })
        .collect()
}

/// Reads the lines of `cargo test -- --show-output`.
#[derive(Debug, Default)]
pub struct Libtest {
    outcome: Outcome,
    /// The test whose output is being read, while it is that of a test that passed.
    current: Option<String>,
    in_successes: bool,
    /// Test binaries that were started and said how they ended.
    started: u64,
    ended: u64,
}

impl Libtest {
    /// Takes one line; returns whether it is to be shown.
    pub fn line(&mut self, line: &str) -> bool {
        let text = line.trim();
        if text.starts_with("running ") && (text.ends_with(" tests") || text.ends_with(" test")) {
            self.started += 1;
            return true;
        }
        if let Some(counts) = text.strip_prefix("test result: ") {
            self.in_successes = false;
            self.current = None;
            self.ended += 1;
            self.count(counts);
            return true;
        }
        if text == "successes:" {
            self.in_successes = true;
            return false;
        }
        if text == "failures:" {
            self.in_successes = false;
            self.current = None;
            return true;
        }
        if let Some((name, reason)) = ignored(text) {
            self.outcome.skipped.push(format!("{name}: {reason}"));
            return true;
        }
        if !self.in_successes {
            return true;
        }
        if let Some(name) = text.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.current = Some(name.to_owned());
            return false;
        }
        if let (Some(reason), Some(name)) = (text.strip_prefix(SKIPPED), &self.current) {
            self.outcome.skipped.push(format!("{name}: {reason}"));
            self.outcome.passed = self.outcome.passed.wrapping_sub(1);
            self.current = None;
            return true;
        }
        false
    }

    /// `ok. 2 passed; 0 failed; 0 ignored; …`.
    fn count(&mut self, counts: &str) {
        for part in counts.split(['.', ';']) {
            let Some((number, what)) = part.trim().split_once(' ') else {
                continue;
            };
            let Ok(number) = number.parse::<u64>() else {
                continue;
            };
            match what {
                "passed" => self.outcome.passed = self.outcome.passed.wrapping_add(number),
                "failed" => self.outcome.failed += number,
                _ => {}
            }
        }
    }

    /// What became of the tests. A binary that was started and did not say how it ended has failed.
    pub fn outcome(mut self) -> Option<Outcome> {
        if self.started == 0 {
            return None;
        }
        self.outcome.failed += self.started.saturating_sub(self.ended);
        Some(self.outcome)
    }
}

/// `test a::b ... ignored, reason`.
fn ignored(text: &str) -> Option<(&str, &str)> {
    let (name, rest) = text.strip_prefix("test ")?.split_once(" ... ignored")?;
    let reason = rest.strip_prefix(", ").unwrap_or("it is marked #[ignore]");
    Some((name, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEXTEST: &str = "
    Starting 3 tests across 2 binaries
        PASS [   0.012s] (1/3) agentd-images::overlay upper_is_seen
  stdout ───

    running 1 test
    test upper_is_seen ... ok

  stderr ───
    skipped because overlayfs needs root
    skipped because it needs root twice

        PASS [   0.035s] (2/3) agentd-isolators::network addresses
  stderr ───
    IPv6 skipped because the host has none

        SKIP [         ] (───) agentd-testbox layout::tests::c
        FAIL [   0.035s] (3/3) agentd-testbox layout::tests::b
  stderr ───
    assertion failed: skipped because of nothing

────────────
     Summary [   0.035s] 3 tests run: 2 passed (1 slow, 1 leaky), 1 failed, 1 skipped
        FAIL [   0.035s] (3/3) agentd-testbox layout::tests::b
";

    #[test]
    fn nextest_tests_that_say_so_are_skipped_once() {
        let mut reader = Nextest::default();
        let shown: Vec<&str> = NEXTEST.lines().filter(|line| reader.line(line)).collect();
        assert!(!shown.iter().any(|line| line.contains("running 1 test")));
        assert!(shown.iter().any(|line| line.contains("IPv6 skipped")));
        assert!(shown.iter().any(|line| line.contains("assertion failed")));
        let outcome = reader.outcome().unwrap();
        assert_eq!((outcome.passed, outcome.failed), (1, 1));
        assert_eq!(
            outcome.skipped,
            [
                "agentd-images::overlay upper_is_seen: overlayfs needs root",
                "agentd-testbox layout::tests::c: it is marked #[ignore]"
            ]
        );
    }

    #[test]
    fn what_a_filter_leaves_out_is_not_skipped() {
        let mut reader = Nextest::new(true);
        for line in NEXTEST.lines() {
            reader.line(line);
        }
        assert_eq!(reader.outcome().unwrap().skipped, ["agentd-images::overlay upper_is_seen: overlayfs needs root"]);
    }

    #[test]
    fn nextest_timeouts_are_failures() {
        let mut reader = Nextest::default();
        reader.line("     Summary [  60.1s] 4 tests run: 1 passed, 2 timed out, 1 exec failed, 0 skipped");
        assert_eq!(reader.outcome(), Some(Outcome { passed: 1, failed: 3, skipped: Vec::new() }));
    }

    #[test]
    fn a_runner_that_did_not_end_has_no_outcome() {
        let mut reader = Nextest::default();
        reader.line("error: could not compile `agentd`");
        assert_eq!(reader.outcome(), None);
    }

    #[test]
    fn libtest_tests_that_say_so_are_skipped() {
        let text = "
running 3 tests
test a ... ok
test b ... ok
test c ... ignored, needs a GPU

successes:

---- a stdout ----
skipped because it needs root

---- b stdout ----
all is well


successes:
    a
    b

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s

running 1 test
";
        let mut reader = Libtest::default();
        let shown: Vec<&str> = text.lines().filter(|line| reader.line(line)).collect();
        assert!(!shown.contains(&"all is well"));
        let outcome = reader.outcome().unwrap();
        assert_eq!((outcome.passed, outcome.failed), (1, 1), "the second binary did not end");
        assert_eq!(outcome.skipped, ["c: needs a GPU", "a: it needs root"]);
    }
}
