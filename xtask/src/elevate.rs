//! Root: what needs it is run again through `sudo`, and says so.

use std::path::Path;
use std::process::{Command, ExitCode};

use crate::installed;

/// Whether this process is root.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Runs `xtask` with these arguments through sudo. `None`: there is no sudo.
pub fn again(root: &Path, arguments: &[String]) -> Option<Result<ExitCode, String>> {
    if !installed("sudo") {
        return None;
    }
    let program = match std::env::current_exe() {
        Ok(path) => path,
        Err(error) => return Some(Err(format!("own path cannot be read: {error}"))),
    };
    println!("this needs root: running it again as  sudo -E {} {}", program.display(), arguments.join(" "));
    // sudo sets its own PATH, which has no cargo
    let path = format!("PATH={}", std::env::var("PATH").unwrap_or_default());
    let status =
        Command::new("sudo").args(["-E", "env"]).arg(path).arg(program).args(arguments).current_dir(root).status();
    Some(match status {
        Ok(status) => Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))),
        Err(error) => Err(format!("sudo cannot be started: {error}")),
    })
}

/// For a task that is nothing without root: `Some` is the end of it.
pub fn require(root: &Path, arguments: &[String]) -> Option<Result<ExitCode, String>> {
    if is_root() {
        return None;
    }
    Some(again(root, arguments).unwrap_or_else(|| {
        Err("this task makes namespaces and cgroups: it needs root, and sudo is not installed; run it as root"
            .to_owned())
    }))
}
