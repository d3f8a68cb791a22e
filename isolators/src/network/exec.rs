//! One run of a helper program (nft, a CNI plugin): with a clean environment, bounded output and limited time.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// Most output that is kept; more than this fails the run.
const MAX_OUTPUT: usize = 1 << 20;

/// Most of the error output that is kept; what comes after is read and dropped.
const MAX_ERROR_OUTPUT: usize = 16 << 10;

/// What a program answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub success: bool,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

/// Runs a program. The error is one line that continues "X …".
pub(super) fn run(
    program: &Path,
    arguments: &[&str],
    environment: &[(&str, String)],
    input: &[u8],
    limit: Duration,
) -> Result<Answer, String> {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(environment.iter().map(|(name, value)| (name, value)));
    // A group of its own: when the time is up, what the program has started goes with it.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("cannot be run: {error}"))?;
    let outcome = converse(&mut child, input, limit);
    if outcome.is_err() {
        kill_group(&child);
    }
    // The process has ended or was killed, so this does not wait for long; and it leaves no zombie.
    let status = child.wait().map_err(|error| format!("cannot be waited for: {error}"))?;
    let (stdout, stderr) = outcome?;
    Ok(Answer { success: status.success(), stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() })
}

fn kill_group(child: &Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// One pipe of the program; none once it is closed.
struct Pipe(Option<File>);

impl Pipe {
    fn new(pipe: impl Into<OwnedFd>) -> Result<Self, String> {
        let pipe: OwnedFd = pipe.into();
        let flags = fcntl_getfl(&pipe).and_then(|flags| fcntl_setfl(&pipe, flags | OFlags::NONBLOCK));
        flags.map_err(|error| format!("has a pipe that cannot be used: {error}"))?;
        Ok(Self(Some(File::from(pipe))))
    }

    /// Reads what is there; true if there was anything.
    fn drain(&mut self, into: &mut Vec<u8>, most: usize) -> bool {
        let mut buffer = [0u8; 8192];
        let mut any = false;
        while let Some(file) = &mut self.0 {
            match file.read(&mut buffer) {
                Ok(0) => self.0 = None,
                Ok(count) => {
                    any = true;
                    let room = most.saturating_sub(into.len()).min(count);
                    into.extend_from_slice(&buffer[..room]);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.0 = None,
            }
        }
        any
    }

    /// Writes what fits and closes the pipe when all is written, or when the program does not want it.
    fn feed(&mut self, input: &mut &[u8]) {
        while let Some(file) = &mut self.0 {
            if input.is_empty() {
                self.0 = None;
                return;
            }
            match file.write(input) {
                Ok(count) => *input = &input[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.0 = None,
            }
        }
    }
}

/// Feeds the program and listens to it until it has ended.
fn converse(child: &mut Child, mut input: &[u8], limit: Duration) -> Result<(Vec<u8>, Vec<u8>), String> {
    let missing = || "has no pipe".to_owned();
    let mut stdin = Pipe::new(child.stdin.take().ok_or_else(missing)?)?;
    let mut stdout = Pipe::new(child.stdout.take().ok_or_else(missing)?)?;
    let mut stderr = Pipe::new(child.stderr.take().ok_or_else(missing)?)?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or("has no process id")?;
    let ended = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| format!("cannot be watched: {error}"))?;
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let deadline = Instant::now() + limit;
    loop {
        stdin.feed(&mut input);
        let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
            return Err(format!("did not end within {} s and was killed", limit.as_secs_f32()));
        };
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let (mut over, mut readable) = (false, false);
        {
            let mut fds = vec![PollFd::new(&ended, PollFlags::IN)];
            fds.extend(stdin.0.iter().map(|file| PollFd::from_borrowed_fd(file.as_fd(), PollFlags::OUT)));
            for pipe in [&stdout, &stderr] {
                fds.extend(pipe.0.iter().map(|file| PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN)));
            }
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) => over = !fds[0].revents().is_empty(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(format!("cannot be watched: {error}")),
            }
        }
        // One byte more than allowed tells an output that is too long.
        readable |= stdout.drain(&mut output, MAX_OUTPUT + 1);
        readable |= stderr.drain(&mut errors, MAX_ERROR_OUTPUT);
        if output.len() > MAX_OUTPUT {
            return Err(format!("wrote more than {MAX_OUTPUT} bytes and was killed"));
        }
        // What it started may hold the pipes open for ever; its own words are all here once it has ended.
        if over && !readable {
            return Ok((output, errors));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Result<Answer, String> {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let environment = [("WORD", "hello".to_owned()), ("PATH", "/usr/bin:/bin".to_owned())];
        run(&program, &[], &environment, b"input", limit)
    }

    #[test]
    fn input_output_and_environment() {
        let answer =
            shell("cat; echo \" $WORD ${HOME-none}\"; echo oops >&2; exit 3", Duration::from_secs(20)).unwrap();
        assert!(!answer.success);
        assert_eq!(answer.stdout, b"input hello none\n");
        assert_eq!(answer.stderr, "oops\n");
    }

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let start = Instant::now();
        let error = shell("sleep 60 & sleep 60", Duration::from_millis(200)).unwrap_err();
        assert!(error.contains("did not end"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_program_that_leaves_a_process_behind_or_floods() {
        let answer = shell("sleep 3 & echo done", Duration::from_secs(20)).unwrap();
        assert_eq!(answer.stdout, b"done\n");
        assert!(shell("cat /dev/zero", Duration::from_secs(20)).unwrap_err().contains("more than"));
    }
}
