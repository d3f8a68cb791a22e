//! Failures, the lines that tell them, and their exit codes.

use std::io::Write;

use agentd_api::problem::{Problem, Violation};

/// Result of a command.
pub type Result<T> = std::result::Result<T, Failure>;

/// The operation failed.
pub const FAILED: u8 = 1;
/// Wrong command line, file or request.
pub const BAD_INPUT: u8 = 2;
/// There is no such thing.
pub const NOT_FOUND: u8 = 3;
/// It contradicts what there is, or not enough is left.
pub const CONFLICT: u8 = 4;
/// The daemon cannot be reached.
pub const UNREACHABLE: u8 = 5;
/// The time-out passed.
pub const TIMED_OUT: u8 = 6;
/// The caller may not do that.
pub const NOT_PERMITTED: u8 = 7;
/// The pod failed.
pub const POD_FAILED: u8 = 10;

/// Why a command ends before it is done.
#[derive(Debug)]
pub enum Failure {
    /// With a line for people, and an exit code.
    Told {
        /// The exit code.
        code: u8,
        /// The line.
        message: String,
        /// More lines, as they stand.
        lines: Vec<String>,
    },
    /// Nobody reads the output any more (`| head`), or Ctrl-C ended a stream: no failure.
    Enough,
    /// All is said already, or there is nothing to say: agentctl ends with this code, that of a remote program for one.
    Exit(u8),
}

impl Failure {
    /// A failure with a code of its own.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self::Told { code, message: message.into(), lines: Vec::new() }
    }

    /// Ends agentctl with this exit code and prints nothing, as `exec` does with the code of the program it ran.
    pub fn exit(code: u8) -> Self {
        Self::Exit(code)
    }

    /// The operation failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(FAILED, message)
    }

    /// What the user gave cannot be used.
    pub fn bad_input(message: impl Into<String>) -> Self {
        Self::new(BAD_INPUT, message)
    }

    /// What the daemon answered.
    pub fn of(problem: &Problem) -> Self {
        // most kinds of problem have it all in their detail
        let said = |error: &Violation| problem.detail.contains(&error.message);
        let lines = problem.errors.iter().filter(|error| !said(error)).map(|error| format!("  {error}")).collect();
        Self::Told { code: code_of(problem), message: problem.detail.clone(), lines }
    }

    /// What the daemon answered about a file: one line for each fault, beginning with the file's name.
    pub fn of_file(problem: &Problem, file: &str) -> Self {
        if problem.kind != "invalid-pod" || problem.errors.is_empty() {
            return Self::of(problem);
        }
        Self::violations(&problem.errors, file)
    }

    /// Faults of a file.
    pub fn violations(errors: &[Violation], file: &str) -> Self {
        let lines = errors.iter().map(|error| format!("{file}: {error}")).collect();
        Self::Told { code: BAD_INPUT, message: String::new(), lines }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Told { code, .. } | Self::Exit(code) => *code,
            Self::Enough => 0,
        }
    }

    /// What it tells, in one line.
    pub fn message(&self) -> String {
        match self {
            Self::Told { message, lines, .. } => {
                let all = std::iter::once(message).chain(lines).map(|line| line.trim()).filter(|line| !line.is_empty());
                all.collect::<Vec<_>>().join("; ")
            }
            Self::Enough | Self::Exit(_) => String::new(),
        }
    }

    /// Writes it to standard error.
    pub fn tell(&self) {
        let Self::Told { message, lines, .. } = self else { return };
        let mut text = String::new();
        if !message.is_empty() {
            text = format!("agentctl: {}\n", clean(message));
        }
        for line in lines {
            text.push_str(&clean(line));
            text.push('\n');
        }
        // there is nowhere left to tell that standard error is closed
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

/// The exit code for an answer of the daemon.
fn code_of(problem: &Problem) -> u8 {
    match problem.status {
        401 | 403 => NOT_PERMITTED,
        404 => NOT_FOUND,
        408 => TIMED_OUT,
        409 | 412 => CONFLICT,
        429 | 503 => UNREACHABLE,
        400..=499 => BAD_INPUT,
        _ => FAILED,
    }
}

/// Text of containers and registries without what a terminal would obey.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(status: u16, kind: &str, errors: Vec<Violation>) -> Problem {
        Problem { status, kind: kind.into(), detail: "it is so".into(), errors, request: None }
    }

    #[test]
    fn each_status_has_its_exit_code() {
        let codes = [
            (400, BAD_INPUT),
            (401, NOT_PERMITTED),
            (403, NOT_PERMITTED),
            (404, NOT_FOUND),
            (405, BAD_INPUT),
            (408, TIMED_OUT),
            (409, CONFLICT),
            (412, CONFLICT),
            (413, BAD_INPUT),
            (415, BAD_INPUT),
            (429, UNREACHABLE),
            (500, FAILED),
            (503, UNREACHABLE),
            (599, FAILED),
        ];
        for (status, code) in codes {
            assert_eq!(Failure::of(&problem(status, "x", Vec::new())).code(), code, "{status}");
        }
    }

    #[test]
    fn faults_of_a_file_are_one_line_each() {
        let errors = vec![Violation::new("containers[0].resources.cpus", "found 0, expected 0.001 or more")];
        let Failure::Told { code, message, lines } = Failure::of_file(&problem(400, "invalid-pod", errors), "p.json")
        else {
            panic!("a refusal is told");
        };
        assert_eq!((code, message.as_str()), (BAD_INPUT, ""));
        assert_eq!(lines, ["p.json: containers[0].resources.cpus: found 0, expected 0.001 or more"]);
    }

    #[test]
    fn a_terminal_is_told_nothing_to_obey() {
        assert_eq!(clean("a\x1b[2Jb\nc\td"), "a\u{fffd}[2Jb\u{fffd}c\td");
    }
}
