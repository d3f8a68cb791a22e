//! How a session's end becomes this process's: the exit code, and what people are told.

use agentd_api::problem::Problem;
use agentd_api::session::SessionExit;
use agentd_api::status::ExitStatus;
use nix::sys::signal::Signal;

use super::super::client::CallError;
use super::super::failure::{Failure, Result};

/// The session could not begin, or was lost.
pub const NO_SESSION: u8 = 125;
/// The program is there and cannot be run.
pub const NOT_EXECUTABLE: u8 = 126;
/// There is no such program.
pub const NO_PROGRAM: u8 = 127;

/// The session could not begin. A program's exit code is never mistaken for one of agentctl's: these have their own.
pub fn not_begun(error: CallError) -> Failure {
    match error {
        CallError::Problem(problem) => {
            let code = code_of(&problem);
            let mut faults = problem.errors.iter();
            match faults.next() {
                // what is at fault is all that there is to say
                Some(first) if problem.status == 400 => {
                    let lines = faults.map(|fault| format!("agentctl: {fault}")).collect();
                    Failure::Told { code, message: first.to_string(), lines }
                }
                _ => with_code(Failure::of(&problem), code),
            }
        }
        CallError::Failure(failure) => with_code(failure, NO_SESSION),
    }
}

/// The code for a refusal: what became of the program is told as a fault of the first word of the command.
fn code_of(problem: &Problem) -> u8 {
    let fault = problem.errors.iter().find(|fault| fault.path == "command[0]").map(|fault| fault.message.as_str());
    match fault {
        Some(fault) if fault.contains(": not found in the container") => NO_PROGRAM,
        Some(fault) if fault.contains(": may not be executed") || fault.contains(": no program that") => NOT_EXECUTABLE,
        _ => NO_SESSION,
    }
}

/// The same failure with another code.
pub fn with_code(failure: Failure, code: u8) -> Failure {
    match failure {
        Failure::Told { message, lines, .. } => Failure::Told { code, message, lines },
        other => other,
    }
}

/// The end of agentctl after that of a program. A signal that agentctl itself passed on is no news.
pub fn after(exit: &SessionExit, passed_on: &[i32]) -> Result<()> {
    let why = exit.message.as_deref();
    match exit.exit {
        ExitStatus::Code(code) => {
            // what there is to say of an exit code is why the program was not run, or was ended
            let code = (code & 0xff) as u8;
            match why {
                Some(why) => Err(Failure::new(code, why)),
                None if code == 0 => Ok(()),
                None => Err(Failure::exit(code)),
            }
        }
        ExitStatus::Signal(signal) => {
            let code = of_signal(signal);
            match why {
                None if passed_on.contains(&signal) => Err(Failure::exit(code)),
                None => Err(Failure::new(code, format!("the program was killed by {}", name(signal)))),
                Some(why) => Err(Failure::new(code, format!("the program was killed by {}: {why}", name(signal)))),
            }
        }
        ExitStatus::Unknown => {
            let why = why.unwrap_or("nobody was there to see it");
            Err(Failure::new(NO_SESSION, format!("how the program ended is not known: {why}")))
        }
    }
}

/// The exit code for a signal, as shells have it.
pub fn of_signal(signal: i32) -> u8 {
    128u8.saturating_add((signal & 0x7f) as u8)
}

/// Name of a signal.
pub fn name(signal: i32) -> String {
    Signal::try_from(signal).map_or_else(|_| format!("signal {signal}"), |signal| signal.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use agentd_api::problem::Violation;

    use super::*;

    fn end(exit: ExitStatus, message: Option<&str>) -> (u8, String) {
        let exit = SessionExit { exit, message: message.map(str::to_owned) };
        match after(&exit, &[2]) {
            Ok(()) => (0, String::new()),
            Err(Failure::Told { code, message, .. }) => (code, message),
            Err(other) => (other.code(), String::new()),
        }
    }

    #[test]
    fn the_programs_end_is_agentctls() {
        assert_eq!(end(ExitStatus::Code(0), None), (0, String::new()));
        assert_eq!(end(ExitStatus::Code(3), None), (3, String::new()));
        assert_eq!(end(ExitStatus::Code(255), None), (255, String::new()));
        assert_eq!(end(ExitStatus::Code(127), Some("no such program")), (127, "no such program".into()));
        assert_eq!(end(ExitStatus::Signal(2), None), (130, String::new()));
        assert_eq!(end(ExitStatus::Signal(11), None), (139, "the program was killed by SIGSEGV".into()));
        let killed = (137, "the program was killed by SIGKILL: out of memory".into());
        assert_eq!(end(ExitStatus::Signal(9), Some("out of memory")), killed);
        assert_eq!(end(ExitStatus::Signal(35), None), (163, "the program was killed by signal 35".into()));
        assert_eq!(end(ExitStatus::Unknown, None).0, NO_SESSION);
    }

    #[test]
    fn failures_of_agentctl_have_codes_of_their_own() {
        let problem = |errors: Vec<Violation>| {
            let detail = "it is so".to_owned();
            let problem = Problem { status: 400, kind: "bad-request".into(), detail, errors, request: None };
            not_begun(CallError::Problem(problem))
        };
        let command = |message: &str| vec![Violation::new("command[0]", message)];
        assert_eq!(problem(Vec::new()).code(), NO_SESSION);
        assert_eq!(problem(command("found no text, expected the program")).code(), NO_SESSION);
        assert_eq!(
            problem(command("x: may not be executed by the session's user; choose another")).code(),
            NOT_EXECUTABLE
        );
        let Failure::Told { code, message, lines } = problem(command("x: not found in the container main; name one"))
        else {
            panic!("a refusal is told");
        };
        assert_eq!((code, lines.len()), (NO_PROGRAM, 0));
        assert_eq!(message, "command[0]: x: not found in the container main; name one");
        assert_eq!(not_begun(CallError::Failure(Failure::new(5, "not reachable"))).code(), NO_SESSION);
    }
}
