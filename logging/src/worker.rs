//! The thread that reads all pipes. One epoll, one buffer: an idle pipe costs its table entry and nothing else.
//!
//! A thread of its own and not tasks of the runtime, because writing to a slow disk blocks, and then only logs should wait.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::event::Timespec;
use rustix::event::epoll;
use rustix::io::Errno;
use tokio::sync::{oneshot, watch};

use crate::capture::{Key, LogError, Progress, Shared};
use crate::file::{LogFile, log_path};
use crate::record::{Splitter, Stream};

/// Bytes taken from one pipe at a time, so that a busy container does not keep the others waiting.
const BUFFER: usize = 64 * 1024;

/// How long the beginning of a line is held back for its end, and a full disk is left alone.
const TICK: Duration = Duration::from_secs(1);

/// A pipe holds at most this much (`/proc/sys/fs/pipe-max-size` is 1 MiB unless raised); with all its processes dead, more
/// than this cannot be left in it.
const MAX_DRAIN: usize = 64 << 20;

const WAKE: u64 = 0;

type Reply = oneshot::Sender<Result<(), LogError>>;

/// What the thread is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    Add { key: Key, attempt: u32, stream: Stream, fd: OwnedFd, max_bytes: Option<u64> },
    Finish { key: Key, reply: Reply },
    Remove { instance: String, reply: Reply },
    Stop,
}

/// A pipe being read.
#[derive(Debug)]
struct Pipe {
    token: u64,
    attempt: u32,
    stream: Stream,
    fd: OwnedFd,
    splitter: Splitter,
}

/// A container being logged.
#[derive(Debug)]
struct Log {
    file: LogFile,
    channel: watch::Sender<Progress>,
    pipes: Vec<Pipe>,
    /// Records that could not be written; while there are any, its pipes are not read.
    unwritten: Vec<u8>,
}

pub(crate) struct Worker {
    shared: Arc<Shared>,
    epoll: OwnedFd,
    logs: HashMap<Key, Log>,
    tokens: HashMap<u64, Key>,
    last_token: u64,
    buffer: Vec<u8>,
    next_tick: Instant,
    /// Whether some log has something for the next tick.
    due: bool,
}

/// What reading a pipe once came to.
enum Got {
    Bytes(usize),
    Empty,
    End,
}

impl Worker {
    pub fn new(shared: Arc<Shared>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &shared.wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        Ok(Self {
            shared,
            epoll,
            logs: HashMap::new(),
            tokens: HashMap::new(),
            last_token: WAKE,
            buffer: vec![0; BUFFER],
            next_tick: Instant::now(),
            due: false,
        })
    }

    /// Works until it is told to stop.
    pub fn run(mut self) {
        let mut events = Vec::with_capacity(64);
        loop {
            events.clear();
            let timeout = self.due.then(|| {
                let left = self.next_tick.saturating_duration_since(Instant::now());
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
            });
            let waited = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref());
            match waited {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    // Nothing but a defect of ours leads here; without a pause it would fill the daemon's own log.
                    tracing::error!(%error, "log: waiting for pipes failed; trying again");
                    std::thread::sleep(TICK);
                }
            }
            let mut woken = false;
            for event in &events {
                let token = event.data.u64();
                if token == WAKE {
                    woken = true;
                } else {
                    self.read_ready(token);
                }
            }
            if woken {
                let _ = rustix::io::read(&self.shared.wake, &mut [0u8; 8]);
                for command in self.shared.take_commands() {
                    match command {
                        Command::Add { key, attempt, stream, fd, max_bytes } => {
                            self.add(&key, attempt, stream, fd, max_bytes);
                        }
                        Command::Finish { key, reply } => {
                            let _ = reply.send(self.finish(&key));
                        }
                        Command::Remove { instance, reply } => {
                            let _ = reply.send(self.remove(&instance));
                        }
                        Command::Stop => {
                            self.stop();
                            return;
                        }
                    }
                }
            }
            if self.due && Instant::now() >= self.next_tick {
                self.tick();
            }
        }
    }

    fn set_due(&mut self) {
        if !self.due {
            self.due = true;
            self.next_tick = Instant::now() + TICK;
        }
    }

    fn add(&mut self, key: &Key, attempt: u32, stream: Stream, fd: OwnedFd, max_bytes: Option<u64>) {
        self.last_token += 1;
        let token = self.last_token;
        if !self.logs.contains_key(key) {
            let path = log_path(&self.shared.dir, &key.0, &key.1);
            let log = Log {
                file: LogFile::new(path, max_bytes.unwrap_or(self.shared.settings.max_bytes)),
                channel: self.shared.channel(key),
                pipes: Vec::new(),
                unwritten: Vec::new(),
            };
            self.logs.insert(key.clone(), log);
        }
        let Some(log) = self.logs.get_mut(key) else {
            return;
        };
        log.channel.send_modify(|progress| progress.open = true);
        let before: Vec<Pipe> = log.pipes.extract_if(.., |pipe| pipe.stream == stream).collect();
        for mut pipe in before {
            tracing::debug!(
                instance = key.0,
                container = key.1,
                from = pipe.attempt,
                to = attempt,
                "log: pipe replaced"
            );
            drain(&mut pipe, log, &mut self.buffer);
            forget(&self.epoll, &mut self.tokens, &pipe);
        }
        // A log that waits for its disk reads the new pipe when it has written the old.
        if log.unwritten.is_empty()
            && let Err(error) = watch_pipe(&self.epoll, &fd, token)
        {
            tracing::error!(instance = key.0, container = key.1, %error, "log: a pipe cannot be read; its output is lost");
            return;
        }
        self.tokens.insert(token, key.clone());
        log.pipes.push(Pipe { token, attempt, stream, fd, splitter: Splitter::new(stream) });
        if !log.unwritten.is_empty() {
            self.set_due();
        }
    }

    fn read_ready(&mut self, token: u64) {
        let Some(key) = self.tokens.get(&token) else {
            return;
        };
        let Some(log) = self.logs.get_mut(key) else {
            return;
        };
        let Some(at) = log.pipes.iter().position(|pipe| pipe.token == token) else {
            return;
        };
        let mut records = Vec::new();
        let got = read_once(&log.pipes[at], &mut self.buffer);
        let mut ended = None;
        match got {
            Got::Bytes(count) => log.pipes[at].splitter.feed(&self.buffer[..count], Timestamp::now(), &mut records),
            Got::Empty => {}
            Got::End => {
                let mut pipe = log.pipes.swap_remove(at);
                pipe.splitter.end(Timestamp::now(), &mut records);
                ended = Some(pipe);
            }
        }
        log.unwritten.append(&mut records);
        let key = key.clone();
        if let Some(pipe) = ended {
            forget(&self.epoll, &mut self.tokens, &pipe);
        }
        let Some(log) = self.logs.get_mut(&key) else {
            return;
        };
        let holds = log.pipes.iter().any(|pipe| pipe.splitter.holds());
        if let Err(error) = write_out(log) {
            // The container waits with its disk, as it would if it wrote to it by itself.
            for pipe in &log.pipes {
                let _ = epoll::delete(&self.epoll, &pipe.fd);
            }
            tracing::warn!(instance = key.0, container = key.1, %error, "log: cannot be written; its container's output waits");
            self.set_due();
        }
        if holds {
            self.set_due();
        }
    }

    /// Tries again what could not be written, and writes out the beginnings of lines.
    fn tick(&mut self) {
        let mut due = false;
        for (key, log) in &mut self.logs {
            let waited = !log.unwritten.is_empty();
            let Log { pipes, unwritten, .. } = log;
            for pipe in pipes.iter_mut().filter(|pipe| pipe.splitter.holds()) {
                pipe.splitter.flush_partial(unwritten);
            }
            match write_out(log) {
                Ok(()) if waited => {
                    for pipe in &log.pipes {
                        if let Err(error) = watch_pipe(&self.epoll, &pipe.fd, pipe.token) {
                            tracing::error!(instance = key.0, container = key.1, %error, "log: a pipe cannot be read");
                        }
                    }
                    tracing::info!(instance = key.0, container = key.1, "log: is written again");
                }
                Ok(()) => {}
                Err(error) => {
                    if !waited {
                        for pipe in &log.pipes {
                            let _ = epoll::delete(&self.epoll, &pipe.fd);
                        }
                        tracing::warn!(instance = key.0, container = key.1, %error, "log: cannot be written");
                    }
                    due = true;
                }
            }
        }
        self.due = due;
        self.next_tick = Instant::now() + TICK;
    }

    fn finish(&mut self, key: &Key) -> Result<(), LogError> {
        let Some(mut log) = self.logs.remove(key) else {
            self.shared.channel(key).send_modify(|progress| progress.open = false);
            return Ok(());
        };
        for mut pipe in std::mem::take(&mut log.pipes) {
            drain(&mut pipe, &mut log, &mut self.buffer);
            forget(&self.epoll, &mut self.tokens, &pipe);
        }
        let result = write_out(&mut log);
        log.channel.send_modify(|progress| progress.open = false);
        result.map_err(|error| {
            let lost = log.unwritten.len();
            LogError::io(format!("{}/{}: the last {lost} bytes are lost; free disk space", key.0, key.1), error)
        })
    }

    fn remove(&mut self, instance: &str) -> Result<(), LogError> {
        let keys: Vec<Key> = self.logs.keys().filter(|key| key.0 == instance).cloned().collect();
        for key in keys {
            if let Some(log) = self.logs.remove(&key) {
                for pipe in &log.pipes {
                    forget(&self.epoll, &mut self.tokens, pipe);
                }
            }
        }
        let folder = self.shared.dir.join(instance);
        let result = match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(LogError::io(format!("removing {}", folder.display()), error))
            }
            _ => Ok(()),
        };
        self.shared.drop_channels(instance);
        result
    }

    /// Leaves the pipes as they are for the next daemon, and what was taken from them in the files.
    fn stop(&mut self) {
        for log in self.logs.values_mut() {
            let Log { pipes, unwritten, .. } = log;
            for pipe in pipes.iter_mut() {
                pipe.splitter.flush_partial(unwritten);
            }
            if let Err(error) = write_out(log) {
                tracing::error!(%error, lost = log.unwritten.len(), "log: cannot be written at the end");
            }
        }
    }
}

fn watch_pipe(epoll: &OwnedFd, fd: &OwnedFd, token: u64) -> io::Result<()> {
    match epoll::add(epoll, fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Takes a pipe out of the epoll. Closing it would not do: the description lives on in pod-init.
fn forget(epoll: &OwnedFd, tokens: &mut HashMap<u64, Key>, pipe: &Pipe) {
    let _ = epoll::delete(epoll, &pipe.fd);
    tokens.remove(&pipe.token);
}

fn read_once(pipe: &Pipe, buffer: &mut [u8]) -> Got {
    loop {
        return match rustix::io::read(&pipe.fd, &mut *buffer) {
            Ok(0) => Got::End,
            Ok(count) => Got::Bytes(count),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => Got::Empty,
            Err(error) => {
                tracing::error!(%error, "log: reading a pipe failed; it is given up");
                Got::End
            }
        };
    }
}

/// Reads a pipe until it is empty. Its other end is also held by pod-init, so there is no end of file to wait for.
fn drain(pipe: &mut Pipe, log: &mut Log, buffer: &mut [u8]) {
    let mut total = 0;
    while let Got::Bytes(count) = read_once(pipe, buffer) {
        pipe.splitter.feed(&buffer[..count], Timestamp::now(), &mut log.unwritten);
        // A failure is found again, and told, by the write that follows the drain.
        let _ = write_out(log);
        total += count;
        if total > MAX_DRAIN {
            break;
        }
    }
    pipe.splitter.end(Timestamp::now(), &mut log.unwritten);
    let _ = write_out(log);
}

/// Writes what there is and tells the followers.
fn write_out(log: &mut Log) -> io::Result<()> {
    if log.unwritten.is_empty() {
        return Ok(());
    }
    let result = log.file.write(&mut log.unwritten);
    if log.unwritten.is_empty() {
        log.unwritten = Vec::new();
    }
    log.channel.send_modify(|progress| progress.writes += 1);
    result
}
