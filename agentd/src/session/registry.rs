//! All sessions of this host.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentd_api::pod::PodSpec;
use agentd_api::problem::Violation;
use agentd_api::session::{SessionExit, SessionKind};
use agentd_api::status::ExitStatus;
use agentd_isolators::cgroup::ContainerCgroup;
use agentd_launcher::message::{FIRST_EXEC_KEY, ProcessEntry, ProcessState};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::begin::{Joinable, Made, asynchronous, make, new_id, terminal_ends};
use super::program::{Joined, Program};
use super::recording::Recorder;
use super::ring::{Ring, Stream};
use super::stage::{Stage, Way};
use super::task::{Ends, Limits};
use super::{Begin, Phase, Record, Session, Shared, State, task};
use crate::access::audit::{SessionAction, SessionEvent};
use crate::events::Subject;
use crate::host::Host;
use crate::instance::exits::Exits;
use crate::instance::{command, now_ms};
use crate::launch::pod_init::PodInit;
use crate::node::NodeError;
use crate::target::Target;

/// Characters of an id that is made here.
pub(super) const ID_LENGTH: usize = 12;

/// Longest id.
const LONGEST_ID: usize = 64;

/// Ended sessions whose status is kept; the oldest give way.
const ENDED: usize = 1000;

#[derive(Debug, Default)]
struct Entries {
    sessions: BTreeMap<String, Session>,
    /// Sessions that are being made: their ids, with instance and slot.
    making: HashMap<String, (String, usize)>,
}

/// All sessions of this host. One task for each; it takes itself out when its status need not be kept any longer.
#[derive(Debug, Default)]
pub struct Registry {
    entries: Mutex<Entries>,
}

/// A place in the registry that is given back unless it is filled.
struct Place<'a> {
    registry: &'a Registry,
    id: String,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.registry.lock().making.remove(&self.id);
    }
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All sessions, by id.
    pub fn list(&self) -> Vec<Session> {
        self.lock().sessions.values().cloned().collect()
    }

    /// One session.
    pub fn get(&self, id: &str) -> Result<Session, NodeError> {
        let found = self.lock().sessions.get(id).cloned();
        found.ok_or_else(|| NodeError::NotFound(format!("session {}", id.chars().take(80).collect::<String>())))
    }

    /// Begins a session in a running container.
    pub async fn begin(
        &self,
        host: &Arc<Host>,
        spec: &PodSpec,
        target: &Target,
        joinable: Joinable,
        mut begin: Begin,
    ) -> Result<Session, NodeError> {
        begin.record |= host.config.sessions.record.wants(begin.request.tty);
        let (request, principal) = (begin.request.clone(), begin.principal.clone());
        let id = begin.id.clone().unwrap_or_else(new_id);
        let place = self.reserve(host, &id, target)?;
        let made = make(host, spec, target, joinable, begin, id).await?;
        let recorder = if made.record.recorded {
            let most = host.config.sessions.record_max_mib << 20;
            match Recorder::begin(&host.layout.state, &made.record, made.size, most, now_ms()) {
                Ok(recorder) => Some(recorder),
                Err(error) => {
                    // what policy wants recorded does not run unrecorded
                    made.program.kill().await;
                    made.program.clear().await;
                    made.program.forget().await;
                    return Err(NodeError::Failed(format!("the session cannot be recorded, as policy wants: {error}")));
                }
            }
        } else {
            None
        };
        let subject =
            Subject { pod: Some(&target.pod), instance: Some(&target.instance), container: Some(&target.container) };
        let message = format!("session {} of {}: {}", made.record.id, made.record.principal, shown(&made.record));
        host.events.publish("session-started", subject, message);
        let session = self.enter(host, made, Phase::Running, recorder);
        drop(place);
        host.audit.session(SessionEvent {
            action: SessionAction::Begin,
            status: &session.status(),
            by: &principal,
            request: Some(&request),
        });
        Ok(session)
    }

    fn reserve<'a>(&'a self, host: &Host, id: &str, target: &Target) -> Result<Place<'a>, NodeError> {
        let fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if id.is_empty() || id.len() > LONGEST_ID || !id.bytes().all(fine) {
            let message = format!("found {:?}, expected 1 to {LONGEST_ID} letters, digits, - and _", cut(id));
            return Err(NodeError::BadRequest(vec![Violation::new("id", message)]));
        }
        let limits = &host.config.sessions;
        let mut entries = self.lock();
        if entries.sessions.contains_key(id) || entries.making.contains_key(id) {
            return Err(NodeError::Conflict(format!("there is a session {id} already; choose another id")));
        }
        let running = || entries.sessions.values().filter(|session| session.shared.lock().exit().is_none());
        let all = running().count() + entries.making.len();
        if all as u64 >= limits.total {
            return Err(NodeError::Conflict(format!(
                "{all} sessions run on this host, its most; end some, or raise sessions.total"
            )));
        }
        let here = |instance: &str, slot: usize| instance == target.instance && slot == target.slot;
        let same = running().filter(|s| here(&s.record().instance, s.record().slot as usize)).count()
            + entries.making.values().filter(|(instance, slot)| here(instance, *slot)).count();
        if same as u64 >= limits.per_container {
            return Err(NodeError::Conflict(format!(
                "{same} sessions run in the container {}, its most; end some, or raise sessions.per_container",
                target.container
            )));
        }
        entries.making.insert(id.to_owned(), (target.instance.clone(), target.slot));
        Ok(Place { registry: self, id: id.to_owned() })
    }

    /// Enters a session and spawns its task.
    fn enter(&self, host: &Arc<Host>, made: Made, phase: Phase, recorder: Option<Recorder>) -> Session {
        let Made { record, program, ring, ends, input, terminal, pid, .. } = made;
        let limits = limits(host, &record);
        let session = assemble(record, Box::new(program), ring, input, terminal, Some(pid), phase);
        let mut entries = self.lock();
        entries.sessions.insert(session.id().to_owned(), session.clone());
        drop(entries);
        let (host, handle) = (Arc::clone(host), session.clone());
        tokio::spawn(async move {
            let told = Arc::clone(&host);
            task::run(handle.clone(), ends, limits, recorder, move |session| ended(&told, session)).await;
            host.sessions.lock().sessions.remove(handle.id());
        });
        session
    }

    /// Ended sessions beyond those that are kept are let go, the oldest first.
    fn prune(&self) {
        let mut ended: Vec<(u64, Session)> = self
            .list()
            .into_iter()
            .filter_map(|session| session.shared.lock().finished_ms.map(|ms| (ms, session.clone())))
            .collect();
        if ended.len() <= ENDED {
            return;
        }
        ended.sort_by_key(|(ms, _)| *ms);
        let over = ended.len() - ENDED;
        for (_, session) in ended.into_iter().take(over) {
            session.shared.lock().discard = true;
            session.shared.room.notify_one();
        }
    }

    /// Sessions of a container that run.
    fn running_in(&self, instance: &str, slot: usize) -> Vec<Session> {
        let all = self.list();
        let here = |s: &Session| s.record().instance == instance && s.record().slot as usize == slot;
        all.into_iter().filter(|s| here(s) && s.shared.lock().exit().is_none()).collect()
    }

    /// A container has ended; what is left of its sessions is about to be killed. True when there are any.
    pub fn container_ended(&self, instance: &str, slot: usize) -> bool {
        let sessions = self.running_in(instance, slot);
        for session in &sessions {
            session.note_why("its container ended");
        }
        !sessions.is_empty()
    }

    /// Whether any session of a container runs.
    pub fn any_running(&self, instance: &str, slot: usize) -> bool {
        !self.running_in(instance, slot).is_empty()
    }

    /// Whether a session that is not over for good has this key in an instance.
    pub fn owns(&self, instance: &str, key: u32) -> bool {
        self.list()
            .iter()
            .any(|s| s.record().instance == instance && s.record().key == key && s.shared.lock().ring.is_some())
    }

    /// Waits until the sessions of an instance have given everything back, within bounds; their output that nobody has
    /// read is let go.
    pub async fn instance_released(&self, instance: &str) {
        let sessions: Vec<Session> = self.list().into_iter().filter(|s| s.record().instance == instance).collect();
        for session in sessions {
            let _ = tokio::time::timeout(Duration::from_secs(2), session.wait()).await;
        }
    }

    /// Takes the sessions of an instance back after the connection to its pod-init was made anew. Joined processes that
    /// belong to no session are left to the caller.
    pub async fn take_back(
        &self,
        host: &Arc<Host>,
        instance: &str,
        init: &Arc<PodInit>,
        exits: &Arc<Exits>,
        processes: &[ProcessEntry],
    ) {
        for entry in processes.iter().filter(|entry| entry.key >= FIRST_EXEC_KEY) {
            let known =
                self.list().into_iter().find(|s| s.record().instance == instance && s.record().key == entry.key);
            if let Some(session) = known {
                session.shared.program.reconnect(init, exits);
                if let ProcessState::Exited(ended) = entry.state {
                    exits.ended(entry.key, ended);
                }
                continue;
            }
            if !matches!(entry.state, ProcessState::Running | ProcessState::Exited(_)) {
                continue;
            }
            match take_back(host, instance, (init, exits), entry, processes).await {
                Ok(Some(made)) => {
                    command::pass_key(entry.key);
                    let recorder = made.record.recorded.then(|| {
                        let most = host.config.sessions.record_max_mib << 20;
                        Recorder::go_on(&host.layout.state, &made.record, None, most, now_ms())
                    });
                    let recorder = recorder.and_then(|opened| {
                        opened.inspect_err(|error| tracing::error!("a session's recording cannot go on: {error}")).ok()
                    });
                    self.enter(host, made, Phase::Running, recorder);
                    if let ProcessState::Exited(ended) = entry.state {
                        exits.ended(entry.key, ended);
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::error!(instance, key = entry.key, "a session cannot be taken back: {error}"),
            }
        }
        // what pod-init does not know any more has ended unseen
        for session in self.list().into_iter().filter(|s| s.record().instance == instance) {
            if !processes.iter().any(|entry| entry.key == session.record().key) {
                exits.drop_key(session.record().key);
            }
        }
    }
}

/// What pod-init keeps of a session that an earlier daemon began; none where it is no session.
async fn take_back(
    host: &Arc<Host>,
    instance: &str,
    (init, exits): (&Arc<PodInit>, &Arc<Exits>),
    entry: &ProcessEntry,
    processes: &[ProcessEntry],
) -> Result<Option<Made>, String> {
    // commands of health checks have nothing parked
    let Ok(mut fds) = init.parked(entry.key).await else { return Ok(None) };
    // standard input's write end unless it was closed, output, error, ring, stage of output, stage of input; with a terminal
    // ring, stage of output, the terminal's master
    let terminal = fds.len() == 4;
    let input_stage = if fds.len() >= 7 { Some(stage_of(fds.split_off(fds.len() - 2))?) } else { None };
    let master = if terminal { fds.pop() } else { None };
    if fds.len() < 3 {
        return Err(format!("{} descriptors are parked for it", fds.len()));
    }
    let stage = stage_of(fds.split_off(fds.len() - 2))?;
    let mut ring = Ring::open(fds.pop().ok_or("its memory is missing")?)?;
    ring.settle_output(stage.left());
    let record = Record::decode(&ring.record())?;
    if record.instance != instance || record.key != entry.key {
        return Err(format!("its record is that of session {} in {}", record.id, record.instance));
    }
    let cgroup: Arc<ContainerCgroup> =
        Arc::new(host.driver.container(instance, record.slot).map_err(|error| error.to_string())?);
    let ended = exits.wait_for(entry.key);
    let registered = |fd: OwnedFd| asynchronous(fd).map_err(|error| error.to_string());
    let (output, input, terminal): (Vec<(Stream, AsyncFd<OwnedFd>)>, Option<Way>, _) = if terminal {
        let master = master.ok_or("its terminal is missing")?;
        let (input, output, terminal) = terminal_ends(master).map_err(|error| error.to_string())?;
        (vec![(Stream::Stdout, output)], Some(Way { to: input, stage: None }), Some(terminal))
    } else {
        let err = fds.pop().ok_or("its standard error is missing")?;
        let out = fds.pop().ok_or("its standard output is missing")?;
        let mut input = match (fds.pop(), input_stage) {
            (Some(write), Some(stage)) => Some(Way { to: registered(write)?, stage: Some(stage) }),
            _ => None,
        };
        if let Some(way) = &input {
            ring.settle_stdin(way.staged());
        }
        if input.is_some() && ring.stdin_closed() {
            // the daemon was killed between the note and the deed
            input = None;
            init.unpark(entry.key).await.map_err(|error| error.to_string())?;
        }
        let output = vec![(Stream::Stdout, registered(out)?), (Stream::Stderr, registered(err)?)];
        (output, input, None)
    };
    let container = processes.iter().find(|process| process.key == record.slot).map_or(0, |process| process.pid);
    let program = Joined {
        host: Arc::clone(host),
        init: Mutex::new((Arc::clone(init), Arc::clone(exits))),
        oom_before: host.memory.oom_kills(&cgroup).unwrap_or(0),
        cgroup,
        key: entry.key,
        name: record.cgroup(),
        debug: record.debug,
        container,
    };
    let ends = Ends { output, stage, ended };
    Ok(Some(Made { record, program, ring, ends, input, terminal, pid: entry.pid, size: None }))
}

/// A stage from its parked ends.
fn stage_of(ends: Vec<OwnedFd>) -> Result<Stage, String> {
    let [read, write] = <[OwnedFd; 2]>::try_from(ends).map_err(|_| "an end of its stage is missing")?;
    Ok(Stage { read, write })
}

/// Puts a session together.
pub(super) fn assemble(
    record: Record,
    program: Box<dyn Program>,
    mut ring: Ring,
    input: Option<Way>,
    terminal: Option<AsyncFd<OwnedFd>>,
    pid: Option<u32>,
    phase: Phase,
) -> Session {
    let now = Instant::now();
    let state = State {
        phase,
        stdin: ring.stdin(),
        output: ring.output(),
        why: record.why.clone(),
        ring: Some(ring),
        positions: HashMap::new(),
        let_go: HashMap::new(),
        next_client: 0,
        input: None,
        next_input: 0,
        was_attached: false,
        delivered: false,
        discard: false,
        pid,
        finished_ms: None,
        active: now,
        alone_since: now,
        starved: false,
    };
    let shared = Shared {
        record,
        program,
        state: Mutex::new(state),
        changed: watch::channel(0).0,
        room: Notify::new(),
        staged: Notify::new(),
        input: Mutex::new(input.map(Arc::new)),
        terminal: terminal.map(Arc::new),
    };
    Session { shared: Arc::new(shared) }
}

fn limits(host: &Host, record: &Record) -> Limits {
    let settings = &host.config.sessions;
    let smaller = |asked: Option<u64>, most: u64| match (asked, most) {
        (None, 0) => None,
        (Some(asked), 0) => Some(Duration::from_secs(asked)),
        (asked, most) => Some(Duration::from_secs(asked.map_or(most, |asked| asked.min(most)))),
    };
    let alone = match record.kind {
        SessionKind::Nested => settings.nested_reattach_seconds,
        SessionKind::Exec | SessionKind::Debug => settings.reattach_seconds,
    };
    Limits {
        idle: smaller(record.idle_seconds, settings.idle_seconds),
        max: smaller(record.max_seconds, settings.max_seconds),
        alone: Duration::from_secs(alone),
        keep: Duration::from_secs(settings.keep_exited_seconds),
    }
}

/// Tells of the end of a session.
fn ended(host: &Host, session: &Session) {
    let record = session.record();
    // an earlier daemon may have told it
    if !session.shared.lock().ring.as_mut().is_none_or(super::ring::Ring::tell_end) {
        return;
    }
    let exit = session.shared.lock().exit().cloned();
    let exit = exit.unwrap_or(SessionExit { exit: ExitStatus::Unknown, message: None });
    let subject =
        Subject { pod: Some(&record.pod), instance: Some(&record.instance), container: Some(&record.container) };
    let why = exit.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
    host.events.publish("session-ended", subject, format!("session {}: {}{why}", record.id, exit.exit));
    let status = session.status();
    host.audit.session(SessionEvent {
        action: SessionAction::End,
        status: &status,
        by: &record.principal,
        request: None,
    });
    host.sessions.prune();
}

/// The command of a session, for people.
fn shown(record: &Record) -> String {
    cut(&record.command.join(" "))
}

fn cut(text: &str) -> String {
    text.chars().take(200).collect()
}
