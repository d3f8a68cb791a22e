//! The terminal that agentctl runs on: its size, raw mode, and the way back from it.
//!
//! - `keys` finds the keys with which a user leaves a session.
//! - `modes` remembers what a remote program switched on, such as the alternate screen, so that it can be switched off.
//!
//! A [`Raw`] puts the terminal back when it is dropped, and so does a hook when the process panics. Signals that end the
//! process are watched for by who holds the [`Raw`] (see `duplex`), so that it is dropped then too.

pub mod keys;
pub mod modes;

use std::io::Write;
use std::sync::{Mutex, Once, PoisonError};

use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

use super::failure::{Failure, Result};

/// How the terminal was before; none while it is as it was.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Makes sure that the panic hook is set once.
static HOOK: Once = Once::new();

/// Whether standard input is a terminal.
pub fn reads() -> bool {
    isatty(stdin())
}

/// Whether standard output is a terminal.
pub fn shows() -> bool {
    isatty(stdout())
}

/// Whether standard error is a terminal.
pub fn tells() -> bool {
    isatty(stderr())
}

/// Rows and columns of the terminal, where there is one that knows.
pub fn size() -> Option<(u16, u16)> {
    let sizes = [tcgetwinsize(stdout()), tcgetwinsize(stdin())];
    sizes.into_iter().flatten().map(|size| (size.ws_row, size.ws_col)).find(|(rows, columns)| *rows > 0 && *columns > 0)
}

/// Raw mode of standard input's terminal, until it is dropped.
#[derive(Debug)]
pub struct Raw {
    raw: Termios,
}

impl Raw {
    /// Enters raw mode.
    pub fn enter() -> Result<Self> {
        let failed = |error| Failure::failed(format!("the terminal cannot be switched to raw mode: {error}"));
        let before = tcgetattr(stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        HOOK.call_once(|| {
            let next = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                next(panic);
            }));
        });
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let entered = Self { raw };
        entered.again().map_err(failed)?;
        Ok(entered)
    }

    /// Enters it again: a shell may have changed the terminal while this process was stopped.
    pub fn again(&self) -> rustix::io::Result<()> {
        tcsetattr(stdin(), OptionalActions::Drain, &self.raw)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back as it was. Does nothing when it is so already.
fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // a terminal that is gone needs no restoring
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &before);
    }
}

/// Tells people at the terminal something. Nothing is said where standard error is no terminal.
pub fn tell(line: &str) {
    if tells() {
        // in raw mode a line break alone does not return to the first column
        let _ = std::io::stderr().write_all(format!("\r\n[{line}]\r\n").as_bytes());
    }
}
