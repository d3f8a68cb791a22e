//! Signals: process 1 of a pid namespace gets only those that it has a handler for, so each applet ends on SIGTERM by one.

use std::io;
use std::time::Duration;

/// Exit code on SIGTERM, as a shell reports it.
const TERMINATED: i32 = 128 + libc::SIGTERM;

extern "C" fn end(_: libc::c_int) {
    // SAFETY: _exit is async-signal-safe.
    unsafe { libc::_exit(TERMINATED) }
}

extern "C" fn end_well(_: libc::c_int) {
    // SAFETY: _exit is async-signal-safe.
    unsafe { libc::_exit(0) }
}

fn set(signal: libc::c_int, handler: libc::sighandler_t) {
    // SAFETY: the handlers set here only call _exit, or are SIG_IGN or SIG_DFL.
    unsafe { libc::signal(signal, handler) };
}

/// SIGTERM and SIGINT end the process with 143.
pub fn end_on_term() {
    let handler = end as extern "C" fn(libc::c_int);
    set(libc::SIGTERM, handler as libc::sighandler_t);
    set(libc::SIGINT, handler as libc::sighandler_t);
}

/// SIGTERM ends the process with 0: what a server does that stops in good order.
pub fn end_well_on_term() {
    let handler = end_well as extern "C" fn(libc::c_int);
    set(libc::SIGTERM, handler as libc::sighandler_t);
}

/// SIGTERM does nothing.
pub fn ignore_term() {
    set(libc::SIGTERM, libc::SIG_IGN);
}

/// A closed pipe ends the process (Rust ignores the signal), so that a failed `println!` never panics.
pub fn default_pipe() {
    set(libc::SIGPIPE, libc::SIG_DFL);
}

/// Sleeps for ever.
pub fn hold() -> ! {
    loop {
        std::thread::sleep(Duration::from_hours(1));
    }
}

/// Forks; the child runs `body` and exits with what it returns. The process must be single-threaded.
pub fn fork(body: impl FnOnce() -> u8) -> io::Result<libc::pid_t> {
    // SAFETY: the callers have one thread, so the child may run any code.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => std::process::exit(i32::from(body())),
        child => Ok(child),
    }
}

/// Waits for a child and returns its exit code, or 128 and the number of its signal.
pub fn wait(child: libc::pid_t) -> io::Result<u8> {
    let mut status = 0;
    loop {
        // SAFETY: status is a valid place for the result.
        if unsafe { libc::waitpid(child, &raw mut status, 0) } == child {
            let code = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) };
            return Ok(code as u8);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
