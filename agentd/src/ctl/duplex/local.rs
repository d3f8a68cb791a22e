//! What comes from this side of a session: what is typed, signals, the window's size, and that nobody reads any more.

use std::time::Duration;

use agentd_api::session::ClientMessage;
use rustix::io::Errno;
use tokio::time::Instant;

use super::ending::{self, NO_SESSION};
use super::stdio::{Fault, Read};
use super::{Duplex, End, PATIENCE, say, terminal};
use crate::ctl::failure::Failure;

/// How long the first keys of the sequence that leaves wait for the next.
const KEY_WAIT: Duration = Duration::from_millis(500);

/// How often a program is asked to end before it is killed.
const ASK: usize = 3;

impl Duplex {
    /// Takes what was read of standard input.
    pub(super) fn typed(&mut self, read: Read) {
        match read {
            Read::Bytes(bytes) if self.raw.is_some() => {
                let typed = self.settings.keys.take(bytes);
                self.window.push(typed.bytes);
                self.keys_until = self.settings.keys.waiting().then(|| Instant::now() + KEY_WAIT);
                if typed.leave {
                    self.leave(End::Left);
                }
            }
            Read::Bytes(bytes) => self.window.push(bytes),
            Read::End(why) => {
                self.input = None;
                if self.raw.is_some() {
                    // the terminal is gone
                    self.hang_up();
                    return;
                }
                if let Some(why) = why {
                    say(&format!("standard input: {why}"));
                }
                self.window.close();
            }
        }
    }

    /// Leaves once the daemon has the input.
    pub(super) fn leave(&mut self, end: End) {
        if self.leaving.is_none() {
            self.input = None;
            self.keys_until = None;
            self.say_detach = true;
            self.leaving = Some((Instant::now() + PATIENCE, Some(end)));
        }
    }

    /// The terminal is gone: the program is told as programs are, and this process ends.
    fn hang_up(&mut self) {
        if self.leaving.is_none() {
            self.pass_on(libc::SIGHUP);
            self.leave(End::Signal(libc::SIGHUP));
        }
    }

    /// Takes a signal that this process got.
    pub(super) fn signal(&mut self, signal: i32) -> std::result::Result<(), End> {
        match signal {
            libc::SIGWINCH => self.resize(false),
            libc::SIGCONT => {
                if let Some(raw) = &self.raw {
                    // a terminal that cannot be switched any more is gone, which shows when it is read
                    let _ = raw.again();
                }
                self.resize(true);
            }
            // what it tells has been written: nobody waits for the rest
            _ if self.exit.is_some() => return Err(End::Signal(signal)),
            libc::SIGHUP if self.raw.is_some() => self.hang_up(),
            libc::SIGINT if self.settings.watch => self.leave(End::Left),
            _ if self.raw.is_some() || self.settings.watch => self.leave(End::Signal(signal)),
            _ => {
                let asked = self.passed_on.iter().filter(|one| !matches!(**one, libc::SIGUSR1 | libc::SIGUSR2)).count();
                if asked + 1 >= ASK && !matches!(signal, libc::SIGUSR1 | libc::SIGUSR2) {
                    self.pass_on(libc::SIGKILL);
                    self.leaving.get_or_insert((Instant::now() + PATIENCE, Some(End::Signal(signal))));
                } else {
                    self.pass_on(signal);
                }
            }
        }
        Ok(())
    }

    /// Sends a signal to the program.
    pub(super) fn pass_on(&mut self, signal: i32) {
        self.passed_on.push(signal);
        self.link.sender.message(&ClientMessage::Signal { signal: ending::name(signal) });
    }

    /// Tells the session the size of the terminal, where it is another or must be told.
    pub(super) fn resize(&mut self, always: bool) {
        let size = if self.settings.tty && !self.settings.watch { terminal::size() } else { None };
        if let Some((rows, columns)) = size.filter(|size| always || self.size != Some(*size)) {
            self.size = size;
            self.link.sender.message(&ClientMessage::Resize { rows, columns });
        }
    }

    /// Takes that standard output or error cannot be written to.
    pub(super) fn faults(&mut self, faults: Vec<Fault>) {
        for fault in faults {
            if self.raw.is_some() {
                self.hang_up();
                continue;
            }
            if fault.why != Errno::PIPE {
                let name = if fault.error { "standard error" } else { "standard output" };
                self.fault = Some(Failure::new(NO_SESSION, format!("{name}: {}", fault.why)));
            }
            if self.settings.watch {
                self.leave(End::Signal(libc::SIGPIPE));
            } else if self.unread.is_none() {
                // as a program here would be told at its next write
                self.unread = Some((Instant::now(), false));
                self.pass_on(libc::SIGPIPE);
            }
        }
    }
}
