//! The audit log: every call that changes something, before it is carried out and after; every call that was denied; the
//! begin, the end and the clients of every session.
//!
//! [`chain`] is the form of its lines, [`file`](self::file) the files. An [`Audit`] is shared by the API and the sessions. A
//! record is one `write` to a file that is opened for appending, under a lock; no task or thread of its own.

pub mod chain;
pub mod file;

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use agentd_api::session::{ExecRequest, SessionKind, SessionStatus};

use self::chain::Entry;
use self::file::{Log, Settings};
use super::Caller;

/// Most characters kept of one text.
const LONGEST_TEXT: usize = 300;

/// Most words kept of a command.
const MOST_WORDS: usize = 32;

/// The audit log.
#[derive(Debug)]
pub struct Audit {
    log: Option<Mutex<Log>>,
    sync: bool,
}

/// What happened to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionAction {
    /// It was begun.
    Begin,
    /// A client attached.
    Attach,
    /// A client left.
    Detach,
    /// It ended.
    End,
}

/// What is told of a session.
#[derive(Debug, Clone, Copy)]
pub struct SessionEvent<'a> {
    /// What happened.
    pub action: SessionAction,
    /// The session as it stands.
    pub status: &'a SessionStatus,
    /// Who did it: the principal that began, attached or left; at the end whoever began it.
    pub by: &'a str,
    /// What was asked for, at the begin. Values of variables are not written.
    pub request: Option<&'a ExecRequest>,
}

/// A call that changes something.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// Id of the request.
    pub request: &'a str,
    /// Who calls.
    pub caller: &'a Caller,
    /// Method, or the name of the call where the path does not tell it.
    pub method: &'a str,
    /// Path.
    pub path: &'a str,
    /// The pod that it is about.
    pub pod: Option<&'a str>,
}

impl Audit {
    /// Opens the log, makes it where it is not there, and goes on with its chain. What a crash of the host left behind half
    /// written is removed and noted.
    pub fn open(path: &Path, settings: Settings) -> Result<Self, String> {
        Ok(Self { sync: settings.sync, log: Some(Mutex::new(Log::open(path, settings)?)) })
    }

    /// A log that keeps nothing.
    pub fn disabled() -> Self {
        Self { log: None, sync: false }
    }

    /// Notes a call before it is carried out; gives the number of the record.
    pub fn attempt(&self, attempt: Attempt<'_>) -> Result<u64, String> {
        self.write(Entry::Attempt {
            request: attempt.request.to_owned(),
            principal: attempt.caller.principal.clone(),
            source: attempt.caller.source.to_string(),
            method: short(attempt.method),
            path: short(attempt.path),
            pod: attempt.pod.map(short),
        })
    }

    /// Notes what came of a call. A failure to write is logged: the call is done.
    pub fn outcome(&self, attempt: u64, request: &str, status: u16, problem: Option<&str>) {
        let entry = Entry::Outcome { request: request.to_owned(), attempt, status, problem: problem.map(short) };
        self.write_or_log(entry);
    }

    /// Notes a call that its caller may not make.
    pub fn denied(&self, attempt: Attempt<'_>, problem: &str) {
        self.write_or_log(Entry::Denied {
            request: attempt.request.to_owned(),
            principal: attempt.caller.principal.clone(),
            source: attempt.caller.source.to_string(),
            method: short(attempt.method),
            path: short(attempt.path),
            problem: short(problem),
        });
    }

    /// Notes what happened to a session. A failure to write is logged.
    pub fn session(&self, event: SessionEvent<'_>) {
        let status = event.status;
        let begins = event.action == SessionAction::Begin;
        let command = if begins { status.command.as_slice() } else { &[] };
        self.write_or_log(Entry::Session {
            action: match event.action {
                SessionAction::Begin => "begin",
                SessionAction::Attach => "attach",
                SessionAction::Detach => "detach",
                SessionAction::End => "end",
            }
            .to_owned(),
            by: short(event.by),
            session: short(&status.id),
            what: match status.kind {
                SessionKind::Exec => "exec",
                SessionKind::Debug => "debug",
                SessionKind::Nested => "nested",
            }
            .to_owned(),
            pod: short(&status.pod),
            instance: short(&status.instance),
            container: short(&status.container),
            command: command.iter().take(MOST_WORDS).map(|word| short(word)).collect(),
            tty: status.tty,
            recorded: status.recorded,
            user: event.request.and_then(|request| request.user.as_deref()).map(short),
            capabilities: event
                .request
                .map(|request| request.capabilities.iter().take(MOST_WORDS).map(|name| short(name)).collect())
                .unwrap_or_default(),
            image: event.request.and_then(|request| request.image.as_ref()).map(|image| short(&image.id)),
            exit: status.exit,
            message: status.message.as_deref().map(short),
            bytes: [status.stdin_bytes, status.output_bytes],
        });
    }

    fn write_or_log(&self, entry: Entry) {
        if let Err(error) = self.write(entry) {
            tracing::error!("{error}");
        }
    }

    fn write(&self, entry: Entry) -> Result<u64, String> {
        let Some(log) = &self.log else { return Ok(0) };
        let append = || log.lock().unwrap_or_else(PoisonError::into_inner).append(entry);
        if self.sync { blocking(append) } else { append() }
    }
}

/// Waits for the disk without keeping the runtime's other tasks from running.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    let many = Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
    if many { tokio::task::block_in_place(work) } else { work() }
}

/// A text of bounded length.
fn short(text: &str) -> String {
    let mut kept: String = text.chars().take(LONGEST_TEXT).collect();
    if kept.len() < text.len() {
        kept.push('…');
    }
    kept
}
