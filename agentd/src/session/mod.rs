//! Exec sessions: programs that are run inside containers for people and programs outside.
//!
//! A [`Session`] is a handle that is shared by everybody who has to do with it. The session itself is one task ([`task`])
//! that reads its program's output into a ring ([`ring`]), watches its limits and ends it. Clients are [`Attachment`]s,
//! which follow the output from the ring, and at most one [`Input`]. A `watch` channel tells all of them of every change;
//! a `Notify` tells the task that there is room again.
//!
//! - [`begin`]: making a session in a container, or from another image beside it ([`debug`]); [`record`]: what is known of it after the daemon's death.
//! - [`registry`]: all sessions of the host, their limits, taking them back after a restart.
//! - [`program`]: what a session needs of the program that it runs; a container's, or any child in tests.
//! - [`stage`]: the way of standard input; [`recording`]: asciicast files.
//!
//! What must outlive the daemon is parked in pod-init: the ends of the pipes or the terminal's master, and the ring. A
//! session whose client is gone waits for it; its program is held back by a full ring, or, with a terminal or where it
//! was asked for, old output gives way to new.

mod begin;
mod client;
mod debug;
mod program;
mod record;
mod recording;
mod registry;
mod ring;
mod stage;
mod task;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agentd_api::session::{ExecRequest, SessionExit, SessionKind, SessionState, SessionStatus};
use agentd_api::status::ExitStatus;
use bytes::Bytes;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};

pub use begin::Joinable;
pub use client::{Attachment, Input};
pub use record::Record;
pub use registry::Registry;

use crate::node::NodeError;
use program::Program;
use ring::Ring;
use stage::Way;

/// What a session is begun with.
#[derive(Debug, Clone)]
pub struct Begin {
    /// Id of the pod.
    pub pod: String,
    /// What to run.
    pub request: ExecRequest,
    /// Kind; a [`SessionKind::Nested`] one that is not detached ends when its last client goes.
    pub kind: SessionKind,
    /// Id; a new one where absent. Letters, digits, `-` and `_`, at most 64.
    pub id: Option<String>,
    /// Who begins it, for status and audit.
    pub principal: String,
    /// Whether it is recorded (asciicast v2 below the state folder).
    pub record: bool,
}

/// From where an attached client wants the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// Everything that is still kept.
    Kept,
    /// What comes from now on.
    Now,
    /// This offset; what is not kept any more is told as a gap.
    Offset(u64),
}

/// A piece of output, or what else an attached client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Standard output, or what the terminal shows.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// So many bytes were thrown away.
    Gap(u64),
    /// The program has ended, and everything was given. The last.
    Exit(SessionExit),
    /// The client is let go: another took its place, or the session was ended. The last. One line for people.
    LetGo(String),
}

/// How far a session is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// Its program runs.
    Running,
    /// Its program has ended; its output is still being read.
    Draining(SessionExit),
    /// Everything was read. Unix milliseconds of the end.
    Ended(SessionExit),
}

/// What changes while a session lives.
#[derive(Debug)]
struct State {
    phase: Phase,
    /// None once what it held was given back.
    ring: Option<Ring>,
    /// Counters as they stood when the ring was given back.
    stdin: u64,
    output: u64,
    /// Positions of the attached clients.
    positions: HashMap<u64, u64>,
    /// Clients that are let go, and why.
    let_go: HashMap<u64, String>,
    next_client: u64,
    /// Who has the input, and which client it belongs to.
    input: Option<(u64, Option<u64>)>,
    next_input: u64,
    /// Whether any client was attached ever.
    was_attached: bool,
    /// Whether a client was given the exit.
    delivered: bool,
    /// Whether it was asked to end at once, also its record.
    discard: bool,
    why: Option<String>,
    pid: Option<u32>,
    finished_ms: Option<u64>,
    /// Monotonic times.
    active: tokio::time::Instant,
    alone_since: tokio::time::Instant,
    /// Whether the task waits for room in the ring.
    starved: bool,
}

#[derive(Debug)]
struct Shared {
    record: Record,
    program: Box<dyn Program>,
    state: Mutex<State>,
    /// Counts changes of the state: output, exit, clients let go.
    changed: watch::Sender<u64>,
    /// There is room in the ring again, or a client came or went.
    room: Notify,
    /// Something was staged that did not go on at once.
    staged: Notify,
    /// Where input goes. None without an input and after it was closed.
    input: Mutex<Option<Arc<Way>>>,
    /// The terminal's master.
    terminal: Option<Arc<AsyncFd<OwnedFd>>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where input goes.
    fn way(&self) -> Option<Arc<Way>> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Closes the daemon's end of standard input.
    fn drop_way(&self) {
        *self.input.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.tell();
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

impl State {
    /// Counts input that was given.
    fn gave(&mut self, count: usize) {
        self.active = tokio::time::Instant::now();
        self.stdin += count as u64;
        if let Some(ring) = &mut self.ring {
            ring.add_stdin(count);
        }
    }

    fn exit(&self) -> Option<&SessionExit> {
        match &self.phase {
            Phase::Running => None,
            Phase::Draining(exit) | Phase::Ended(exit) => Some(exit),
        }
    }
}

/// A session. Clones are handles on the same one.
#[derive(Debug, Clone)]
pub struct Session {
    shared: Arc<Shared>,
}

impl Session {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.shared.record.id
    }

    /// The facts of it that do not change.
    pub fn record(&self) -> &Record {
        &self.shared.record
    }

    /// How it stands now.
    pub fn status(&self) -> SessionStatus {
        let record = &self.shared.record;
        let mut state = self.shared.lock();
        let (mut stdin, mut output) = (state.stdin, state.output);
        if let Some(ring) = &mut state.ring {
            (stdin, output) = (ring.stdin(), ring.output());
        }
        let exit = state.exit().cloned();
        SessionStatus {
            id: record.id.clone(),
            kind: record.kind,
            pod: record.pod.clone(),
            instance: record.instance.clone(),
            container: record.container.clone(),
            command: record.command.clone(),
            tty: record.tty,
            state: if exit.is_some() { SessionState::Exited } else { SessionState::Running },
            pid: state.pid.filter(|_| exit.is_none()),
            exit: exit.as_ref().map(|exit| exit.exit),
            message: exit.and_then(|exit| exit.message),
            principal: record.principal.clone(),
            started_at: time(record.started_ms),
            finished_at: state.finished_ms.map(time),
            clients: state.positions.len() as u32,
            detach: record.detach,
            stdin_bytes: stdin,
            output_bytes: output,
            recorded: record.recorded,
        }
    }

    /// Attaches a client that follows the output. While it is attached, output that it has not taken holds the program back.
    pub fn attach(&self, from: From) -> Attachment {
        Attachment::new(&self.shared, from)
    }

    /// Takes the input. One at a time has it: a second is refused with [`NodeError::Conflict`] unless `take_over`. A client
    /// that also follows the output rather takes it by [`Attachment::input`].
    pub fn input(&self, take_over: bool) -> Result<Input, NodeError> {
        Input::take(&self.shared, None, take_over)
    }

    /// Sends a signal to its program. One that has ended is fine.
    pub async fn signal(&self, signal: i32) -> Result<(), NodeError> {
        if self.shared.lock().exit().is_some() {
            return Ok(());
        }
        self.shared.program.signal(signal).await.map_err(NodeError::Failed)
    }

    /// Sets the size of its terminal; refused without one.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<(), NodeError> {
        let Some(terminal) = &self.shared.terminal else {
            return Err(NodeError::Conflict(format!("the session {} has no terminal", self.id())));
        };
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(terminal.get_ref(), size)
            .map_err(|error| NodeError::Failed(format!("the terminal's size cannot be set: {error}")))
    }

    /// Kills everything that it runs. `why` is told as the reason.
    pub async fn kill(&self, why: &str) {
        self.note_why(why);
        self.shared.program.kill().await;
    }

    /// Kills it if it runs, and forgets it whether anybody has heard of its end or not.
    pub async fn discard(&self, why: &str) {
        self.shared.lock().discard = true;
        self.kill(why).await;
        self.shared.room.notify_one();
    }

    /// The first reason for its end is the one that is told.
    fn note_why(&self, why: &str) {
        let mut state = self.shared.lock();
        if state.why.is_none() && state.exit().is_none() {
            state.why = Some(why.to_owned());
            let mut record = self.shared.record.clone();
            record.why.clone_from(&state.why);
            if let Some(ring) = &mut state.ring {
                ring.set_record(&record.encode());
            }
        }
    }

    /// Waits until its program has ended.
    pub async fn wait(&self) -> SessionExit {
        let mut changed = self.shared.changed.subscribe();
        loop {
            changed.borrow_and_update();
            if let Some(exit) = self.shared.lock().exit() {
                return exit.clone();
            }
            if changed.changed().await.is_err() {
                return SessionExit { exit: ExitStatus::Unknown, message: None };
            }
        }
    }
}

fn time(ms: u64) -> String {
    jiff::Timestamp::from_millisecond(ms as i64).unwrap_or_default().to_string()
}

/// Kinds that end with their client.
fn ends_with_client(record: &Record) -> bool {
    record.kind == SessionKind::Nested && !record.detach
}
