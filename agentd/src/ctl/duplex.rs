//! This process attached to a session: its standard input, output and error on one side, a connection to the daemon on
//! the other.
//!
//! One task does it all; two threads ([`stdio`]) make the blocking calls on the process's own descriptors. A buffer of
//! output goes from the connection ([`link`]) through [`frames`] to the thread that writes, and comes back; while all of
//! them are there, nothing is read, so that a slow reader of agentctl holds the remote program back. Input goes through
//! [`window`], which keeps what the program was perhaps not given yet.
//!
//! When the connection breaks, [`again`] attaches anew, and both directions go on at the byte where they stopped.
//! [`local`] is what comes from this side: keys, signals, the window's size. Signals are passed on to the program; on a
//! terminal in raw mode they leave the session instead, because there the keys are the program's signals. [`ending`] makes an exit code of how it ended.

mod again;
pub mod ending;
mod frames;
mod link;
mod local;
mod signals;
mod stdio;
mod window;

use std::future::pending;
use std::io::Write;
use std::time::Duration;

use agentd_api::session::{ClientMessage, ServerMessage, SessionExit};
use hyper::upgrade::Upgraded;
use tokio::time::{Instant, sleep_until, timeout};

use super::client::Client;
use super::failure::{Failure, Result, clean};
use super::terminal::keys::Keys;
use super::terminal::modes::Modes;
use super::terminal::{self, Raw};
use ending::NO_SESSION;
use frames::{Decoder, Item, Span};
use link::Link;
use signals::Signals;
use stdio::{Fault, Input, Output, Read};
use window::Window;

/// How long the daemon has to let this client go, and a program that was told to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// How this process takes part in a session.
#[derive(Debug)]
pub struct Settings {
    /// Whether the session has a terminal.
    pub tty: bool,
    /// Whether standard input is passed on.
    pub input: bool,
    /// Whether nothing but the output is wanted: no signal is passed on either.
    pub watch: bool,
    /// Keys that leave; only of a terminal.
    pub keys: Keys,
    /// Whether the session knows the size of this terminal.
    pub sized: bool,
    /// The output before this offset is shown again: it was shown to somebody else before.
    pub past: u64,
}

/// How it came to an end.
#[derive(Debug)]
enum End {
    /// The program has ended.
    Exit(SessionExit),
    /// The user left.
    Left,
    /// A signal ended agentctl.
    Signal(i32),
    /// The daemon let this client go.
    LetGo(String),
    /// It cannot go on.
    Failed(Failure),
}

/// Why no more can be done on this connection.
enum Stop {
    End(End),
    Lost(String),
}

impl From<End> for Stop {
    fn from(end: End) -> Self {
        Self::End(end)
    }
}

struct Duplex {
    client: Client,
    settings: Settings,
    /// Id of the session; known from the first frame on.
    session: Option<String>,
    link: Link,
    decoder: Decoder,
    /// Offset of the next byte of output.
    offset: u64,
    /// Output that was thrown away and is in the offset already.
    skipped: bool,
    /// Whether the daemon has told on this connection where the input goes on. Before that nothing is sent.
    ready: bool,
    /// Since when there is no connection.
    lost: Option<Instant>,
    input: Option<Input>,
    window: Window,
    output: Output,
    signals: Signals,
    raw: Option<Raw>,
    /// Whether the program's terminal is shown on one here.
    screen: bool,
    /// Whether the last line shown there has not ended.
    open_line: bool,
    modes: Modes,
    /// Size of the terminal as the session was told.
    size: Option<(u16, u16)>,
    /// When keys that are held back go on.
    keys_until: Option<Instant>,
    /// Signals that were passed on.
    passed_on: Vec<i32>,
    /// The end that it comes to, at this time at the latest.
    leaving: Option<(Instant, Option<End>)>,
    /// Whether the daemon is still to be told that this client leaves, after the input.
    say_detach: bool,
    /// Since when nobody reads standard output or error any more, and whether the program was killed for it.
    unread: Option<(Instant, bool)>,
    /// Why standard output or error could not be written to, where it was not that nobody reads.
    fault: Option<Failure>,
    exit: Option<SessionExit>,
}

/// Takes part in a session over a connection that was just made, until it ends or is left.
pub async fn run(client: &Client, connection: Upgraded, settings: Settings) -> Result<()> {
    let failed = |failure| ending::with_code(failure, NO_SESSION);
    let raw =
        if settings.tty && settings.input && terminal::reads() { Some(Raw::enter().map_err(failed)?) } else { None };
    let size = if settings.sized { terminal::size() } else { None };
    let mut duplex = Duplex {
        client: client.clone(),
        session: None,
        link: Link::new(connection),
        decoder: Decoder::default(),
        offset: 0,
        skipped: false,
        ready: false,
        lost: None,
        input: None,
        window: Window::default(),
        output: Output::new(),
        signals: Signals::watch(settings.tty).map_err(failed)?,
        raw,
        screen: settings.tty && terminal::shows(),
        open_line: false,
        modes: Modes::default(),
        size,
        keys_until: None,
        passed_on: Vec::new(),
        leaving: None,
        say_detach: false,
        unread: None,
        fault: None,
        exit: None,
        settings,
    };
    if duplex.settings.input {
        let failed = |error| Failure::new(NO_SESSION, format!("standard input cannot be read: {error}"));
        duplex.input = Some(Input::start().map_err(failed)?);
    }
    let end = loop {
        let why = match duplex.attached().await {
            Stop::End(end) => break end,
            Stop::Lost(why) => why,
        };
        if let Err(end) = duplex.attach_again(&why).await {
            break end;
        }
    };
    duplex.finish(end).await
}

impl Duplex {
    /// Takes part until the connection breaks or it comes to an end.
    async fn attached(&mut self) -> Stop {
        loop {
            if let Some(stop) = self.due() {
                return stop;
            }
            let deadline =
                [self.keys_until, self.leaving.as_ref().map(|(until, _)| *until)].into_iter().flatten().min();
            let buffer = if self.exit.is_none() { self.output.buffer() } else { None };
            let reading = buffer.is_some();
            let mut buffer = buffer.unwrap_or_default();
            let mut done = Done::Nothing;
            tokio::select! {
                read = self.link.reader.read(&mut buffer), if reading => done = Done::Read(read),
                sent = self.link.sender.send(&mut self.window), if self.ready && self.link.sender.has_work(&self.window) => {
                    done = Done::Sent(sent);
                }
                read = next(&mut self.input), if self.window.has_room() => done = Done::Typed(read),
                faults = self.output.written() => done = Done::Written(faults),
                signal = self.signals.next() => done = Done::Signal(signal),
                () = at(deadline) => {}
            }
            let result = match done {
                Done::Read(Ok(0)) => Err(Stop::Lost("the daemon closed the connection".to_owned())),
                Done::Read(Ok(count)) => {
                    let result = self.received(buffer, count);
                    buffer = Vec::new();
                    result
                }
                Done::Read(Err(error)) | Done::Sent(Err(error)) => Err(Stop::Lost(error.to_string())),
                Done::Typed(read) => {
                    self.typed(read);
                    Ok(())
                }
                Done::Written(faults) => {
                    self.faults(faults);
                    Ok(())
                }
                Done::Signal(signal) => self.signal(signal).map_err(Stop::End),
                Done::Sent(Ok(())) | Done::Nothing => Ok(()),
            };
            if !buffer.is_empty() {
                self.output.give_back(buffer);
            }
            if let Err(stop) = result {
                return stop;
            }
        }
    }

    /// What is due without anything having happened.
    fn due(&mut self) -> Option<Stop> {
        if self.output.is_written()
            && let Some(exit) = self.exit.take()
        {
            return Some(Stop::End(End::Exit(exit)));
        }
        let now = Instant::now();
        if self.keys_until.is_some_and(|until| until <= now) {
            self.keys_until = None;
            let held = self.settings.keys.give_up();
            self.window.push(held);
        }
        if self.say_detach && self.window.next().is_none() {
            self.say_detach = false;
            self.link.sender.message(&ClientMessage::Detach);
        }
        if let Some((until, end)) = &mut self.leaving
            && *until <= now
        {
            return Some(Stop::End(end.take().unwrap_or(End::Left)));
        }
        None
    }

    /// Takes what was received.
    fn received(&mut self, buffer: Vec<u8>, count: usize) -> std::result::Result<(), Stop> {
        let mut spans: Vec<Span> = Vec::new();
        let mut messages = Vec::new();
        let mut length = 0;
        let decoded = self.decoder.decode(&buffer[..count], |item| match item {
            Item::Output(span) => {
                length += span.at.len() as u64;
                spans.push(span);
            }
            // the first message comes before any output, the last after all of it, and the others do not mind
            Item::Message(message) => messages.push(message),
        });
        for message in messages {
            self.told(message)?;
        }
        self.offset += length;
        if spans.is_empty() {
            self.output.give_back(buffer);
        } else {
            self.show(buffer, spans)?;
        }
        decoded.map_err(|fault| {
            let what =
                format!("the daemon's answer is not understood: {fault}; is it of another version than agentctl?");
            Stop::End(End::Failed(Failure::new(NO_SESSION, what)))
        })
    }

    /// Writes output.
    fn show(&mut self, mut buffer: Vec<u8>, mut spans: Vec<Span>) -> std::result::Result<(), End> {
        if let Some((since, killed)) = &mut self.unread
            && !*killed
            && since.elapsed() > PATIENCE
        {
            // it was told that nobody reads, and writes on
            *killed = true;
            self.link.sender.message(&ClientMessage::Signal { signal: "KILL".to_owned() });
        }
        if self.screen {
            let past = self.offset <= self.settings.past;
            let mut shown = Vec::new();
            if !past && self.settings.past > 0 {
                // a sequence that began in the past ends now
                self.settings.past = 0;
                shown.extend_from_slice(self.modes.held());
                for span in &spans {
                    shown.extend_from_slice(&buffer[span.at.clone()]);
                }
            }
            for span in &spans {
                if past {
                    shown.extend(self.modes.without_questions(&buffer[span.at.clone()]));
                } else {
                    self.modes.read(&buffer[span.at.clone()]);
                }
            }
            if past || !shown.is_empty() {
                // what is shown is never longer than what was kept of it and the buffer together
                spans = vec![Span { error: false, at: 0..shown.len() }];
                shown.resize(shown.len().max(buffer.len()), 0);
                buffer = shown;
            }
        }
        if let Some(last) = spans.iter().rev().find(|span| !span.at.is_empty()) {
            self.open_line = buffer[last.at.end - 1] != b'\n';
        }
        let failed = |error| Failure::new(NO_SESSION, format!("standard output cannot be written: {error}"));
        let faults = self.output.write(buffer, spans).map_err(|error| End::Failed(failed(error)))?;
        self.faults(faults);
        Ok(())
    }

    /// Takes a message of the daemon.
    fn told(&mut self, message: ServerMessage) -> std::result::Result<(), Stop> {
        match message {
            ServerMessage::Attached { session, stdin, output } => {
                if self.session.is_some() {
                    // what was thrown away meanwhile is told next
                    self.skipped = output > self.offset;
                } else {
                    self.session = Some(session);
                }
                self.offset = output;
                self.ready = true;
                if let Err(lost) = self.window.go_on_from(stdin) {
                    let message = format!("the daemon has lost {lost} bytes of the input");
                    if self.raw.is_none() {
                        return Err(End::Failed(Failure::new(NO_SESSION, message)).into());
                    }
                    terminal::tell(&format!("agentctl: {message}"));
                }
                if self.lost.take().is_some() {
                    terminal::tell("agentctl: attached again");
                }
                self.resize(false);
            }
            ServerMessage::Ack { stdin } => {
                if let (Some(free), Some(input)) = (self.window.given(stdin), &self.input) {
                    input.give_back(free);
                }
            }
            ServerMessage::Gap { bytes } => {
                if !std::mem::take(&mut self.skipped) {
                    self.offset += bytes;
                }
                say(&format!("{bytes} bytes of output are not kept any more and are left out"));
            }
            ServerMessage::Exit { exit } => self.exit = Some(exit),
            ServerMessage::Detached { message } => {
                let asked = self.leaving.take().and_then(|(_, end)| end);
                return Err(asked.unwrap_or(End::LetGo(message)).into());
            }
            ServerMessage::Error { problem } => say(&problem.detail),
            ServerMessage::Pong => {}
        }
        Ok(())
    }

    /// Waits until everything is written, puts the terminal back, and says how it ended.
    async fn finish(mut self, end: End) -> Result<()> {
        let written = async {
            while !self.output.is_written() {
                self.output.written().await;
            }
        };
        // only a terminal that is not read any more takes longer
        let _ = timeout(PATIENCE, written).await;
        self.raw = None;
        let undo = self.modes.undo();
        // a terminal that is gone needs no restoring
        let _ = std::io::stdout().write_all(&undo).and_then(|()| std::io::stdout().flush());
        let session = clean(self.session.as_deref().unwrap_or_default());
        let detached = || note(&format!("detached from session {session}; agentctl attach {session}"));
        let quiet = matches!(&end, End::Exit(exit) if ending::after(exit, &self.passed_on).is_ok());
        if self.screen && self.open_line && !quiet && terminal::tells() {
            // what is said now begins on a line of its own
            let _ = std::io::stderr().write_all(b"\n");
        }
        match end {
            End::Exit(exit) => self.fault.map_or_else(|| ending::after(&exit, &self.passed_on), Err),
            End::Left => {
                detached();
                Ok(())
            }
            End::Signal(signal) => {
                detached();
                Err(Failure::exit(ending::of_signal(signal)))
            }
            End::LetGo(why) => Err(Failure::new(
                NO_SESSION,
                format!("{why}; the session {session} goes on: agentctl attach {session}"),
            )),
            End::Failed(failure) => Err(failure),
        }
    }
}

/// What happened.
enum Done {
    Nothing,
    Read(std::io::Result<usize>),
    Sent(std::io::Result<()>),
    Typed(Read),
    Written(Vec<Fault>),
    Signal(i32),
}

/// What is read next of standard input, where it is read.
async fn next(input: &mut Option<Input>) -> Read {
    match input {
        Some(input) => input.next().await,
        None => pending().await,
    }
}

/// Waits until a time, where there is one.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

/// Says something on standard error while the terminal may be in raw mode.
fn say(line: &str) {
    let end = if terminal::tells() { "\r\n" } else { "\n" };
    // there is nowhere left to tell that standard error is closed
    let _ = std::io::stderr().write_all(format!("agentctl: {}{end}", clean(line)).as_bytes());
}

/// A last line on standard error.
fn note(line: &str) {
    let _ = std::io::stderr().write_all(format!("[{line}]\n").as_bytes());
}
