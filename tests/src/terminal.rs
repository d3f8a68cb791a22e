//! A terminal that a test sits at: a real PTY with a program on it, a thread that reads what the program shows into the
//! screen of a terminal emulator, and the keys and sizes that the test gives.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, SpecialCodeIndex, Termios, Winsize, tcgetattr, tcsetwinsize};

/// Longest wait for something to be shown, and for the program to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often the reader looks whether it is to end.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Most bytes kept of what was shown.
const KEPT: usize = 4 << 20;

/// What the reader fills.
struct Shown {
    parser: vt100::Parser,
    bytes: Vec<u8>,
}

/// A terminal with a program on it. Dropping it ends the program.
pub struct Terminal {
    master: OwnedFd,
    // held, so that the terminal outlives the program and its attributes can still be asked for
    slave: OwnedFd,
    child: Child,
    shown: Arc<Mutex<Shown>>,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
    /// What it was set to before the program was started.
    pub initial: Attributes,
}

impl Terminal {
    /// Starts a program with a new terminal of this size as its controlling one.
    #[track_caller]
    pub fn start(mut command: Command, rows: u16, columns: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a PTY can be made");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("a PTY can be unlocked");
        let name = ptsname(&master, Vec::new()).expect("a PTY has a name");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(name.as_c_str(), flags, Mode::empty()).expect("a PTY can be opened");
        tcsetwinsize(&master, size(rows, columns)).expect("a PTY has a size");
        let initial = Attributes::of(&tcgetattr(&slave).expect("a terminal has attributes"));
        let end = || Stdio::from(slave.try_clone().expect("a descriptor can be shared"));
        command.stdin(end()).stdout(end()).stderr(end()).env("TERM", "xterm-256color");
        // SAFETY: both calls are plain system calls, which are allowed between fork and exec; nothing is allocated.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
                Ok(())
            });
        }
        let child = command.spawn().expect("the program can be started");
        drop(command);
        let shown = Arc::new(Mutex::new(Shown { parser: vt100::Parser::new(rows, columns, 0), bytes: Vec::new() }));
        let stop = Arc::new(AtomicBool::new(false));
        let from = master.try_clone().expect("a descriptor can be shared");
        let reader = std::thread::spawn({
            let (shown, stop) = (Arc::clone(&shown), Arc::clone(&stop));
            move || read(&from, &shown, &stop)
        });
        Self { master, slave, child, shown, stop, reader: Some(reader), initial }
    }

    /// Types these bytes. Returns when the terminal has taken them all.
    #[track_caller]
    pub fn keys(&self, bytes: impl AsRef<[u8]>) {
        self.keyboard().write_all(bytes.as_ref()).expect("a terminal takes what is typed");
    }

    /// A handle for typing from another thread.
    #[track_caller]
    pub fn keyboard(&self) -> std::fs::File {
        std::fs::File::from(self.master.try_clone().expect("a descriptor can be shared"))
    }

    /// Gives the terminal another size; the program on it is told by SIGWINCH.
    #[track_caller]
    pub fn resize(&self, rows: u16, columns: u16) {
        lock(&self.shown).parser.screen_mut().set_size(rows, columns);
        tcsetwinsize(&self.master, size(rows, columns)).expect("a PTY has a size");
    }

    /// What the screen shows, its lines without the blanks at their ends.
    pub fn screen(&self) -> String {
        let contents = lock(&self.shown).parser.screen().contents();
        contents.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
    }

    /// Whether the program has switched to the alternate screen, as editors do.
    pub fn is_full_screen(&self) -> bool {
        lock(&self.shown).parser.screen().alternate_screen()
    }

    /// Everything that was shown so far, the last 4 MiB of it, as plain lines: without control sequences and returns.
    pub fn transcript(&self) -> String {
        plain(&String::from_utf8_lossy(&lock(&self.shown).bytes))
    }

    /// Forgets the transcript, so that what was shown before is not taken for what comes.
    pub fn forget(&self) {
        lock(&self.shown).bytes.clear();
    }

    /// Waits until the transcript holds `text`.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        self.wait_until(&format!("{text:?} is shown"), |terminal| terminal.transcript().contains(text));
    }

    /// Waits until the screen is as asked; panics with the screen and the transcript if it does not become so.
    #[track_caller]
    pub fn wait_until(&self, what: &str, ask: impl Fn(&Self) -> bool) {
        if !crate::poll::eventually(PATIENCE, || ask(self)) {
            let transcript = self.transcript();
            let tail: String = transcript.chars().rev().take(2000).collect::<Vec<_>>().into_iter().rev().collect();
            panic!("waited in vain until {what}; the screen:\n{}\n--- transcript:\n{tail:?}", self.screen());
        }
    }

    /// Types a line of shell that ends with a word of its own, and returns what it shows before that word.
    #[track_caller]
    pub fn line(&self, line: &str) -> String {
        self.forget();
        // the word is put together by the shell, so that the echo of the line is not taken for it
        self.keys(format!("{line}; echo END\"\"MARK\n"));
        self.wait_for("ENDMARK");
        let transcript = self.transcript();
        let shown = transcript.split("ENDMARK").next().unwrap_or_default();
        let echoed = shown.split_once('\n').map_or(shown, |(_, rest)| rest);
        echoed.to_owned()
    }

    /// What the terminal is set to.
    #[track_caller]
    pub fn attributes(&self) -> Attributes {
        Attributes::of(&tcgetattr(&self.slave).expect("a terminal has attributes"))
    }

    /// Process id of the program.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends the program a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("a process id fits")).expect("a process id is not 0");
        kill_process(pid, signal).expect("the program can be signalled");
    }

    /// Whether the program runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until the program has ended.
    #[track_caller]
    pub fn wait_exit(&mut self) -> ExitStatus {
        self.wait_exit_within(PATIENCE)
    }

    /// The same with another limit.
    #[track_caller]
    pub fn wait_exit_within(&mut self, limit: Duration) -> ExitStatus {
        let mut ended = None;
        crate::poll::eventually(limit, || {
            ended = self.child.try_wait().expect("a child can be waited for");
            ended.is_some()
        });
        ended.unwrap_or_else(|| panic!("the program does not end; the screen:\n{}", self.screen()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// What a program may change of a terminal, as one value that can be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    input: u32,
    output: u32,
    control: u32,
    local: u32,
    special: Vec<u8>,
}

impl Attributes {
    fn of(termios: &Termios) -> Self {
        let special = [
            SpecialCodeIndex::VINTR,
            SpecialCodeIndex::VQUIT,
            SpecialCodeIndex::VERASE,
            SpecialCodeIndex::VKILL,
            SpecialCodeIndex::VEOF,
            SpecialCodeIndex::VMIN,
            SpecialCodeIndex::VTIME,
            SpecialCodeIndex::VSUSP,
        ];
        Self {
            input: termios.input_modes.bits(),
            output: termios.output_modes.bits(),
            control: termios.control_modes.bits(),
            local: termios.local_modes.bits(),
            special: special.into_iter().map(|index| termios.special_codes[index]).collect(),
        }
    }

    /// Whether keys are passed on as they are: no lines, no echo, no signals.
    pub fn is_raw(&self) -> bool {
        let cooked = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        self.local & cooked.bits() == 0
    }
}

/// A text without returns and without the sequences that begin with ESC [ and end with a letter.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.next() {
        if next == '\x1b' && rest.next_if_eq(&'[').is_some() {
            while rest.next().is_some_and(|within| !('@'..='~').contains(&within)) {}
        } else if next != '\r' {
            plain.push(next);
        }
    }
    plain
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn lock(shown: &Mutex<Shown>) -> std::sync::MutexGuard<'_, Shown> {
    shown.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read(from: &OwnedFd, shown: &Mutex<Shown>, stop: &AtomicBool) {
    let mut buffer = vec![0; 64 << 10];
    while !stop.load(Ordering::Relaxed) {
        let mut wanted = [PollFd::from_borrowed_fd(from.as_fd(), PollFlags::IN)];
        match poll(&mut wanted, Some(&TICK)) {
            Ok(0) => continue,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        }
        match rustix::io::read(from, &mut buffer) {
            Ok(0) | Err(rustix::io::Errno::IO) => return,
            Ok(count) => {
                let mut shown = lock(shown);
                shown.parser.process(&buffer[..count]);
                shown.bytes.extend_from_slice(&buffer[..count]);
                let over = shown.bytes.len().saturating_sub(KEPT);
                shown.bytes.drain(..over);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_sequences_are_left_out() {
        assert_eq!(plain("a\x1b[?2004l\rb\x1b[1;31mc\x1b[m\r\n\x1b"), "abc\n\x1b");
    }

    #[test]
    fn a_shell_is_typed_to_and_its_end_is_seen() {
        let mut command = Command::new("/bin/sh");
        command.arg("-i").env("PS1", "> ");
        let mut terminal = Terminal::start(command, 24, 80);
        assert!(!terminal.initial.is_raw());
        terminal.wait_for("> ");
        assert_eq!(terminal.line("stty size").trim(), "24 80");
        terminal.resize(30, 100);
        assert_eq!(terminal.line("stty size").trim(), "30 100");
        terminal.line("stty raw -echo");
        assert!(terminal.attributes().is_raw() && terminal.attributes() != terminal.initial);
        terminal.keys("exit 7\n");
        assert_eq!(terminal.wait_exit().code(), Some(7));
    }
}
