//! Standard output: a reader that goes away is no failure.

use std::io::{ErrorKind, Write};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::arguments::Form;
use super::failure::{Failure, Result};

/// Where answers are written.
pub struct Output {
    form: Form,
    to: Box<dyn Write>,
}

impl Output {
    /// Standard output.
    pub fn new(form: Form) -> Self {
        Self::into(form, Box::new(std::io::stdout()))
    }

    /// Somewhere else.
    pub fn into(form: Form, to: Box<dyn Write>) -> Self {
        Self { form, to }
    }

    /// Whether JSON is wanted.
    pub fn json(&self) -> bool {
        self.form == Form::Json
    }

    /// Writes bytes as they are, at once.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.to.write_all(bytes).and_then(|()| self.to.flush()).map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => Failure::Enough,
            _ => Failure::failed(format!("standard output: {error}")),
        })
    }

    /// Writes a line.
    pub fn line(&mut self, text: &str) -> Result<()> {
        self.raw(format!("{text}\n").as_bytes())
    }

    /// Writes a body of the API unchanged, with a line break after it where it has none.
    pub fn body(&mut self, bytes: &[u8]) -> Result<()> {
        self.raw(bytes)?;
        if bytes.is_empty() || bytes.ends_with(b"\n") { Ok(()) } else { self.raw(b"\n") }
    }
}

/// Waits until nobody reads standard output any more. A stream may have nothing to write for long, so that a write does
/// not tell.
async fn unread() {
    let stdout = std::io::stdout();
    loop {
        let mut wanted = [PollFd::new(&stdout, PollFlags::empty())];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let gone = PollFlags::ERR | PollFlags::HUP;
        if poll(&mut wanted, Some(&at_once)).is_ok() && wanted.iter().any(|fd| fd.revents().intersects(gone)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Follows a stream until it ends, Ctrl-C, or nobody reads what is written.
pub async fn follow(stream: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::select! {
        result = stream => result,
        _ = tokio::signal::ctrl_c() => Err(Failure::Enough),
        () = unread() => Err(Failure::Enough),
    }
}
