//! The daemon's events: a bounded ring that keeps the last ones, and a channel for those who follow.
//!
//! Each event has an id, one above that of the event before it, also when a daemon has died in between: every event is a
//! line of a file below the run folder before anybody is told of it, and a new daemon goes on after the last line. Those
//! lines are lost with the host; then ids go on above a mark in the state folder that is moved before an id reaches it. A
//! client that comes back with the id of the last event that it saw therefore never sees one twice, and is told what it
//! has missed and cannot be told any more.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use agentd_api::message::Event;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::checkpoint::{self, Durability};
use crate::layout::Layout;

/// Events kept for those who ask later.
const KEPT: usize = 4096;

/// Kinds of which one container can cause many, and how many of these are kept at most once the ring is full: they give way
/// to each other, and not what tells of pods, sessions, images and the daemon itself to them.
const FREQUENT: &[&str] = &["container-exec", "container-exit", "container-connect-failed"];
const FREQUENT_KEPT: usize = KEPT / 2;

/// Lines of one file, and most bytes of it. Two files are kept, so that the last events are always in them.
const LINES: usize = KEPT;
const BYTES: u64 = 4 << 20;

/// So many ids are reserved at a time.
const RESERVED: u64 = 4096;

/// Every kind of event, and what it tells. `docs/api.md` has this table, too.
pub const KINDS: &[(&str, &str)] = &[
    ("agent-recovered", "The daemon has started and taken back what it found."),
    ("pod-accepted", "A pod is to be run."),
    ("pod-setup-failed", "An instance could not be set up."),
    ("pod-updated", "A pod was changed in place."),
    ("pod-backoff", "An instance waits for its next start."),
    ("pod-launcher-died", "The process that holds an instance's namespaces has died."),
    ("pod-ended", "Every container of an instance has ended, and none starts again."),
    ("pod-removed", "A pod has ended, and nothing of it is left."),
    ("instance-created", "A pod has a new instance."),
    ("instance-phase", "An instance is in another phase; the message begins with it."),
    ("instance-removed", "An instance has ended, and nothing of it is left."),
    ("container-started", "The program of a container runs."),
    ("container-healthy", "A container passes its health check."),
    ("container-unhealthy", "A container fails its health check."),
    ("container-killing", "A container is being ended."),
    ("container-ended", "A container has ended; the message has its state and the reason."),
    ("container-oom", "The kernel killed a process for want of memory."),
    ("container-exec", "A program began in a container."),
    (
        "container-exit",
        "A process of a container has ended; the message has its status, or the signal and who sent it.",
    ),
    ("container-connect-failed", "A container could not connect to a TCP peer."),
    ("container-pressure", "A container crossed a threshold of waiting for CPU, memory or I/O, or is below it again."),
    ("container-events-limited", "Events of a container were left out; the message has how many, and why."),
    ("session-started", "A program was started in a container for somebody."),
    ("session-attached", "Somebody has attached to a session that runs, or has ended a short while ago."),
    ("session-ended", "A session has ended; the message has how."),
    ("image-pulling", "The image of a container is being pulled."),
    ("image-pulled", "An image was pulled, for a container or on request."),
    ("image-imported", "An image was imported."),
    ("image-removed", "An image was removed on request."),
    ("images-collected", "Unused images were removed because the disk was full."),
    ("acl-reloaded", "A new access list is in use."),
    ("acl-reload-failed", "The changed access list is at fault; the one before stays in use."),
    ("tls-reloaded", "New TLS files of the API are in use."),
    ("programs-reattached", "Programs that watch containers were detached by somebody, and hang in the kernel again."),
    ("tls-reload-failed", "Changed TLS files of the API are at fault; those before stay in use."),
];

/// What is kept of ids on disk.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    /// Every id that was given is below it.
    below: u64,
}

/// Where events are written.
#[derive(Debug)]
struct Disk {
    /// Folder of the lines.
    folder: PathBuf,
    /// File of the mark.
    mark: PathBuf,
    /// The file that is written; none after a failure.
    file: Option<File>,
    lines: usize,
    bytes: u64,
    /// The mark as it is written.
    below: u64,
}

#[derive(Debug)]
struct Ring {
    next: u64,
    events: VecDeque<Event>,
    /// How many of them are of [`FREQUENT`] kinds.
    frequent: usize,
    /// The highest id that gave way though older events are kept.
    gave_way: u64,
    disk: Option<Disk>,
}

fn is_frequent(event: &Event) -> bool {
    FREQUENT.contains(&event.kind.as_str())
}

impl Ring {
    fn new(next: u64, disk: Option<Disk>) -> Self {
        Self { next, events: VecDeque::new(), frequent: 0, gave_way: 0, disk }
    }

    /// Takes the newest event; when the ring is full, another one gives way.
    fn keep(&mut self, event: Event) {
        if self.events.len() == KEPT {
            let crowded = self.frequent > FREQUENT_KEPT;
            let place = if crowded { self.events.iter().position(is_frequent).unwrap_or(0) } else { 0 };
            if let Some(gone) = self.events.remove(place) {
                self.frequent -= usize::from(is_frequent(&gone));
                if place > 0 {
                    self.gave_way = gone.id;
                }
            }
        }
        self.frequent += usize::from(is_frequent(&event));
        self.events.push_back(event);
    }
}

/// The events of this daemon.
#[derive(Debug)]
pub struct Events {
    ring: Mutex<Ring>,
    sender: broadcast::Sender<Event>,
}

impl Default for Events {
    /// Events that are only in memory, with ids from 1 on.
    fn default() -> Self {
        Self { ring: Mutex::new(Ring::new(1, None)), sender: broadcast::channel(1024).0 }
    }
}

/// Of what an event tells.
#[derive(Debug, Clone, Copy, Default)]
pub struct Subject<'a> {
    /// Pod.
    pub pod: Option<&'a str>,
    /// Instance.
    pub instance: Option<&'a str>,
    /// Container.
    pub container: Option<&'a str>,
}

/// What a client that knows all events up to an id has to be told.
#[derive(Debug)]
pub struct Since {
    /// First and last id of the events after it of which some, or all, can no longer be told.
    pub lost: Option<(u64, u64)>,
    /// The kept events after it.
    pub events: Vec<Event>,
    /// The id of the newest event of all; what follows comes after it.
    pub newest: u64,
    /// What follows, without a gap.
    pub channel: broadcast::Receiver<Event>,
}

impl Events {
    /// The events of this host, with those that an earlier daemon has left.
    pub fn open(layout: &Layout) -> Result<Self, String> {
        let (folder, path) = (layout.events(), layout.event_mark());
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|error| format!("{}: {error}", folder.display()))?;
        let mark =
            checkpoint::read::<Mark>(&path).map_err(|error| format!("{error}; remove the file to start anew"))?;
        let below = mark.map_or(1, |mark| mark.below);
        let mut ring = Ring::new(1, None);
        let (mut whole, mut lines, mut last) = (true, 0, 0);
        for name in ["before", "last"] {
            let (read, intact) =
                read_lines(&folder.join(name)).map_err(|error| format!("{}: {error}", folder.display()))?;
            (whole, lines) = (intact, read.len());
            for event in read {
                // a daemon that was killed while it turned to a new file has left some lines twice
                if event.id > last {
                    if last > 0 && event.id > last + 1 {
                        ring.gave_way = event.id - 1;
                    }
                    last = event.id;
                    ring.keep(event);
                }
            }
        }
        if last >= below {
            tracing::warn!("{}: these events are not those of this host's mark; left out", folder.display());
            ring = Ring::new(1, None);
            (whole, last) = (false, 0);
        }
        let next = if last == 0 { below } else { last + 1 };
        let mut disk = Disk { folder, mark: path, file: None, lines, bytes: 0, below };
        // the first event finds its id reserved
        disk.reserve(next)?;
        if !(whole && disk.append()) {
            disk.begin(&ring.events).map_err(|error| format!("{}: {error}", disk.folder.display()))?;
        }
        (ring.next, ring.disk) = (next, Some(disk));
        Ok(Self { ring: Mutex::new(ring), sender: broadcast::channel(1024).0 })
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes an event. Its kind is one of [`KINDS`].
    pub fn publish(&self, kind: &str, subject: Subject<'_>, message: impl Into<String>) {
        let message = message.into();
        tracing::info!(
            kind,
            pod = subject.pod,
            instance = subject.instance,
            container = subject.container,
            "{message}"
        );
        self.enter(kind, subject, jiff::Timestamp::now(), message);
    }

    /// The same of something that the kernel saw at a time a moment ago. There may be many of these, and the daemon's log has
    /// them at the level `debug`.
    pub fn publish_at(&self, kind: &str, subject: Subject<'_>, time: jiff::Timestamp, message: String) {
        tracing::debug!(
            kind,
            pod = subject.pod,
            instance = subject.instance,
            container = subject.container,
            "{message}"
        );
        self.enter(kind, subject, time, message);
    }

    fn enter(&self, kind: &str, subject: Subject<'_>, time: jiff::Timestamp, message: String) {
        let mut guard = self.ring();
        let ring = &mut *guard;
        let event = Event {
            id: ring.next,
            time: time.to_string(),
            kind: kind.to_owned(),
            pod: subject.pod.map(str::to_owned),
            instance: subject.instance.map(str::to_owned),
            container: subject.container.map(str::to_owned),
            message,
        };
        ring.next += 1;
        if let Some(disk) = &mut ring.disk {
            disk.write(&event);
        }
        ring.keep(event.clone());
        if let Some(disk) = &mut ring.disk {
            disk.turn_if_full(&ring.events);
        }
        // nobody following is fine; sent under the lock, so that ids arrive in order
        let _ = self.sender.send(event);
    }

    /// What comes after the event with this id; 0 asks for all that are kept. An id that is higher than any is of another
    /// history (a state folder that is no more): all that is kept comes after it, and what was lost cannot be said.
    pub fn since(&self, id: u64) -> Since {
        let ring = self.ring();
        let newest = ring.next - 1;
        let first = ring.events.front().map_or(ring.next, |event| event.id);
        let foreign = id > newest;
        let gone = ring.gave_way.max(first - 1);
        let lost = match id {
            0 => None,
            _ if foreign => Some((0, gone)),
            _ => Some((id + 1, gone)).filter(|(from, to)| from <= to),
        };
        let events = ring.events.iter().filter(|event| foreign || event.id > id).cloned().collect();
        Since { lost, events, newest, channel: self.sender.subscribe() }
    }
}

/// The events in a file of lines, and whether its last line is whole.
fn read_lines(path: &Path) -> io::Result<(Vec<Event>, bool)> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), true)),
        Err(error) => return Err(error),
    };
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let events: Vec<Option<Event>> = lines.map(|line| serde_json::from_slice(line).ok()).collect();
    let whole = bytes.is_empty() || bytes.ends_with(b"\n");
    Ok((events.into_iter().map_while(|event| event).collect(), whole))
}

impl Disk {
    /// Moves the mark above an id that is about to be given.
    fn reserve(&mut self, id: u64) -> Result<(), String> {
        if id < self.below {
            return Ok(());
        }
        let below = id + RESERVED;
        checkpoint::write(&self.mark, &Mark { below }, Durability::Host).map_err(|error| error.to_string())?;
        self.below = below;
        Ok(())
    }

    fn open(&self, name: &str, new: bool) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.create(true).append(true).mode(0o600);
        let file = options.open(self.folder.join(name))?;
        if new {
            file.set_len(0)?;
        }
        Ok(file)
    }

    /// Goes on in the file that an earlier daemon wrote; false when that cannot be.
    fn append(&mut self) -> bool {
        let Ok(file) = self.open("last", false) else { return false };
        self.bytes = file.metadata().map_or(BYTES, |file| file.len());
        self.file = Some(file);
        true
    }

    /// Writes these events anew, and goes on after them.
    fn begin(&mut self, events: &VecDeque<Event>) -> io::Result<()> {
        match std::fs::remove_file(self.folder.join("before")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = self.open("last", true)?;
        let mut text = Vec::new();
        for event in events {
            line(event, &mut text);
        }
        file.write_all(&text)?;
        (self.lines, self.bytes, self.file) = (events.len(), text.len() as u64, Some(file));
        Ok(())
    }

    /// Writes an event before anybody is told of it. A failure is told once; from then on a new daemon goes on above the
    /// mark, and not after the last line.
    fn write(&mut self, event: &Event) {
        if let Err(error) = self.reserve(event.id) {
            tracing::error!("{error}; after a restart events may have the ids of others");
        }
        let Some(file) = &mut self.file else { return };
        let mut text = Vec::new();
        line(event, &mut text);
        let written = file.write_all(&text);
        self.lines += 1;
        self.bytes += text.len() as u64;
        self.go_on(written);
    }

    /// Turns to a new file when this one has all the lines that one may have.
    fn turn_if_full(&mut self, kept: &VecDeque<Event>) {
        if self.file.is_some() && (self.lines >= LINES || self.bytes >= BYTES) {
            let turned = self.turn(kept);
            self.go_on(turned);
        }
    }

    /// After a failure events are kept in memory only.
    fn go_on(&mut self, written: io::Result<()>) {
        let Err(error) = written else { return };
        tracing::error!("{}: {error}; events are kept in memory only", self.folder.display());
        self.file = None;
        for name in ["before", "last"] {
            // lines that end too early would make ids be given twice
            let _ = std::fs::remove_file(self.folder.join(name));
        }
    }

    /// Writes what is kept as the file before, so that rare events outlast many frequent ones, and begins a new one.
    fn turn(&mut self, kept: &VecDeque<Event>) -> io::Result<()> {
        let mut text = Vec::new();
        for event in kept {
            line(event, &mut text);
        }
        self.open("next", true)?.write_all(&text)?;
        std::fs::rename(self.folder.join("next"), self.folder.join("before"))?;
        self.file = Some(self.open("last", true)?);
        (self.lines, self.bytes) = (0, 0);
        Ok(())
    }
}

fn line(event: &Event, text: &mut Vec<u8>) {
    // an event is text and numbers only, which serialise; JSON has no line breaks of its own
    text.extend(serde_json::to_vec(event).unwrap_or_default());
    text.push(b'\n');
}

#[cfg(test)]
mod tests;
