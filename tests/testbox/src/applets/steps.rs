//! Several applets one after another, in place of a shell script.

use super::usage;
use crate::signals;

/// `steps open /etc/shadow r , syscall mount , exit 3`: each in a process of its own; the exit code is that of the last
/// that did not end with 0.
pub fn steps(arguments: &[String]) -> u8 {
    let mut code = 0;
    for step in arguments.split(|word| word == ",") {
        let Some((name, rest)) = step.split_first() else {
            return usage("steps APPLET [ARGUMENT…] [, APPLET [ARGUMENT…]]…");
        };
        let ended = signals::fork(|| super::run(name, rest)).and_then(signals::wait);
        match ended {
            Ok(0) => {}
            Ok(other) => code = other,
            Err(error) => {
                eprintln!("steps: {name} could not be run: {error}");
                return 1;
            }
        }
    }
    code
}
