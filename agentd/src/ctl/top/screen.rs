//! The terminal while `top` has it for itself: raw mode, the other screen, no cursor. It gets back what it was when a
//! [`Screen`] is dropped and when the process panics; signals that end the process are watched for by who holds it.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal};
use tokio::net::unix::pipe::Receiver;

use super::super::failure::{Failure, Result};
use super::super::terminal::{self, Raw};

/// To the other screen, without a cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[2J";
/// And back, in plain letters.
const LEAVE: &str = "\x1b[0m\x1b[?25h\x1b[?1049l";

/// Whether the other screen is shown.
static ENTERED: AtomicBool = AtomicBool::new(false);

/// Makes sure that the panic hook is set once.
static HOOK: Once = Once::new();

/// The terminal, until it is dropped.
#[derive(Debug)]
pub struct Screen {
    raw: Option<Raw>,
    input: Receiver,
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::failed(format!("the terminal: {error}"))
}

/// A description of the terminal of its own: that it does not block is nothing to other programs that share standard input.
fn open() -> rustix::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let open = |path| rustix::fs::open(path, flags, Mode::empty());
    open("/dev/tty").or_else(|_| open("/proc/self/fd/0")).map(File::from)
}

fn write(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
}

/// Leaves the other screen, where it is shown.
fn leave() {
    if ENTERED.swap(false, Ordering::AcqRel) {
        // a terminal that is gone needs no restoring
        let _ = write(LEAVE);
    }
}

impl Screen {
    /// Takes the terminal.
    pub fn enter() -> Result<Self> {
        // to tokio the terminal is like a pipe: readable or not
        let input = Receiver::from_file_unchecked(open().map_err(failed)?).map_err(failed)?;
        HOOK.call_once(|| {
            let next = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                leave();
                next(panic);
            }));
        });
        let raw = Raw::enter()?;
        ENTERED.store(true, Ordering::Release);
        let screen = Self { raw: Some(raw), input };
        write(ENTER).map_err(failed)?;
        Ok(screen)
    }

    /// Rows and columns.
    pub fn size(&self) -> (usize, usize) {
        let (rows, columns) = terminal::size().unwrap_or((24, 80));
        (usize::from(rows), usize::from(columns))
    }

    /// Draws these lines, and nothing else.
    pub fn draw(&mut self, lines: &[String]) -> Result<()> {
        let mut text = "\x1b[H".to_owned();
        for (n, line) in lines.iter().enumerate() {
            if n > 0 {
                text.push_str("\r\n");
            }
            text.push_str(line);
            text.push_str("\x1b[K");
        }
        text.push_str("\x1b[J");
        write(&text).map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => Failure::Enough,
            _ => failed(error),
        })
    }

    /// Empties the screen: after a change of size there may be remains.
    pub fn clear(&mut self) -> Result<()> {
        write("\x1b[2J").map_err(failed)
    }

    /// What the terminal sent; none once it is gone.
    pub async fn input(&self) -> Result<Option<Vec<u8>>> {
        let mut buffer = [0; 256];
        loop {
            self.input.readable().await.map_err(failed)?;
            match self.input.try_read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(count) => return Ok(Some(buffer[..count].to_vec())),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                // a terminal that hung up
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => return Ok(None),
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Gives the terminal back, and stops this process as any job of a shell is stopped. Returns once it goes on.
    pub fn suspend(&mut self) -> Result<()> {
        leave();
        self.raw = None;
        rustix::process::kill_process(own(), Signal::STOP).map_err(failed)?;
        self.again()
    }

    /// Takes the terminal again after this process was stopped.
    pub fn again(&mut self) -> Result<()> {
        if self.raw.is_none() {
            self.raw = Some(Raw::enter()?);
        } else if let Some(raw) = &self.raw {
            raw.again().map_err(failed)?;
        }
        ENTERED.store(true, Ordering::Release);
        write(ENTER).map_err(failed)
    }
}

fn own() -> Pid {
    rustix::process::getpid()
}

impl Drop for Screen {
    fn drop(&mut self) {
        leave();
        self.raw = None;
    }
}
