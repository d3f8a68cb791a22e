//! The task of a session: output from its program into the ring, its limits, its end.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use agentd_api::session::SessionExit;
use agentd_api::status::ExitStatus;
use agentd_launcher::message::Ended;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::recording::Recorder;
use super::ring::{Ring, Source, Stream};
use super::stage::{Stage, Through};
use super::{Phase, Session, Shared, State, ends_with_client};
use crate::instance::now_ms;

/// How often the ring is filled before others get their turn.
const TURNS: usize = 8;

/// The same once its program has ended: enough for what a pipe holds.
const DRAIN_TURNS: usize = 64;

/// What the task reads from.
pub(super) struct Ends {
    /// Read ends of its program's output; non-blocking.
    pub output: Vec<(Stream, AsyncFd<OwnedFd>)>,
    /// Where output is on its way into the ring.
    pub stage: Stage,
    /// Its end, once; a closed channel means that nobody will ever know.
    pub ended: mpsc::UnboundedReceiver<Ended>,
}

/// What it is held to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub idle: Option<Duration>,
    pub max: Option<Duration>,
    /// How long it waits for a client, unless it is detached.
    pub alone: Duration,
    /// How long its exit is kept.
    pub keep: Duration,
}

/// Whether a stream is worth waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Open,
    /// The ring is full.
    Starved,
    Closed,
}

/// Runs the session until nothing of it is left but its status. `over` is called once when its program has ended and its
/// output was read.
pub(super) async fn run(
    session: Session,
    ends: Ends,
    limits: Limits,
    mut recorder: Option<Recorder>,
    over: impl FnOnce(&Session) + Send,
) {
    let Ends { output, stage, mut ended } = ends;
    let shared = Arc::clone(&session.shared);
    let mut streams: Vec<(Stream, AsyncFd<OwnedFd>, Flow)> =
        output.into_iter().map(|(stream, fd)| (stream, fd, Flow::Open)).collect();
    let began = Instant::now();
    let mut left_behind = false;
    // where its output stood when its program ended
    let mut last_words: Option<LastWords> = None;
    while shared.lock().exit().is_none() || streams.iter().any(|(_, _, flow)| *flow != Flow::Closed) {
        let running = shared.lock().exit().is_none();
        let open = streams.iter().any(|(_, _, flow)| *flow == Flow::Open);
        tokio::select! {
            biased;
            end = ended.recv(), if running => {
                note_end(&shared, end);
                last_words = Some(LastWords::begin(&shared));
                for (stream, fd, flow) in streams.iter_mut().filter(|(_, _, flow)| *flow != Flow::Closed) {
                    *flow = drain(&shared, *stream, (fd, &stage), &mut recorder);
                }
                shared.tell();
                left_behind = streams.iter().any(|(_, _, flow)| *flow != Flow::Closed);
                if left_behind {
                    // what its program started and left behind ends with it
                    shared.program.kill().await;
                }
            }
            (at, flow) = next_flow(&shared, &streams, &stage, &mut recorder) => streams[at].2 = flow,
            () = hand_on(&shared), if running => {}
            () = shared.room.notified() => {
                for (_, _, flow) in streams.iter_mut().filter(|(_, _, flow)| *flow == Flow::Starved) {
                    *flow = Flow::Open;
                }
                if running && ends_with_client(&shared.record) && left_alone(&shared) {
                    session.kill("its client went away").await;
                }
            }
            () = LastWords::over(last_words.as_ref(), &shared), if open => {
                for (_, _, flow) in streams.iter_mut().filter(|(_, _, flow)| *flow == Flow::Open) {
                    *flow = Flow::Closed;
                }
            }
            why = overdue(&shared, limits, began, running) => {
                session.kill(&why).await;
                if !running {
                    // nobody came for the rest of its output
                    break;
                }
            }
        }
        if last_words.as_ref().is_some_and(|words| words.too_many(&shared)) {
            break;
        }
        let discarded = shared.lock().discard;
        if discarded && !running && left_behind {
            break;
        }
    }
    {
        let mut state = shared.lock();
        let exit = state.exit().cloned().unwrap_or(SessionExit { exit: ExitStatus::Unknown, message: None });
        state.phase = Phase::Ended(exit);
    }
    drop(streams);
    if let Some(recorder) = recorder.take() {
        recorder.finish();
    }
    over(&session);
    crate::failpoint::pass("session.ended");
    shared.tell();
    shared.program.clear().await;
    wait_for_delivery(&shared, limits).await;
    shared.program.forget().await;
    shared.drop_way();
    {
        let mut state = shared.lock();
        if let Some(mut ring) = state.ring.take() {
            (state.stdin, state.output) = (ring.stdin(), ring.output());
        }
    }
    shared.tell();
    // its status stays for those who ask
    let forgotten = Instant::now() + limits.keep;
    while !shared.lock().discard && Instant::now() < forgotten {
        tokio::select! {
            () = tokio::time::sleep_until(forgotten) => {}
            () = shared.room.notified() => {}
        }
    }
}

/// Moves staged input on as the program takes it, and tells when the stage is empty.
async fn hand_on(shared: &Shared) {
    loop {
        let Some(way) = shared.way().filter(|way| way.stage.is_some()) else { return std::future::pending().await };
        if way.staged() == 0 {
            // kept, it would hold the input open that is being closed
            drop(way);
            shared.staged.notified().await;
            continue;
        }
        let Ok(mut ready) = way.to.writable().await else { return shared.drop_way() };
        let _state = shared.lock();
        match way.hand_on() {
            Ok(0) => return shared.tell(),
            Ok(_) => ready.clear_ready(),
            Err(_) => return shared.drop_way(),
        }
    }
}

/// How long output may be silent after the end of a program, all processes of which were killed, before it counts as over.
/// Something else of the container may have opened it (`/proc/<pid>/fd/1`), and may never close it.
const SILENCE: Duration = Duration::from_secs(2);

/// More than what any pipe holds.
const MOST_LAST_WORDS: u64 = 4 << 20;

/// What is still read after the program's end.
struct LastWords {
    ended: Instant,
    output: u64,
}

impl LastWords {
    fn begin(shared: &Shared) -> Self {
        let output = shared.lock().ring.as_mut().map_or(0, Ring::output);
        Self { ended: Instant::now(), output }
    }

    /// Waits until the output has been silent for long enough.
    async fn over(words: Option<&Self>, shared: &Shared) {
        let Some(words) = words else { return std::future::pending().await };
        loop {
            let silent = shared.lock().active.max(words.ended) + SILENCE;
            if Instant::now() >= silent {
                return;
            }
            tokio::time::sleep_until(silent).await;
        }
    }

    /// Whether this cannot be what the program itself left in its pipes.
    fn too_many(&self, shared: &Shared) -> bool {
        shared.lock().ring.as_mut().map_or(0, Ring::output).saturating_sub(self.output) > MOST_LAST_WORDS
    }
}

fn left_alone(shared: &Shared) -> bool {
    let state = shared.lock();
    state.was_attached && state.positions.is_empty()
}

/// Notes how the program ended.
fn note_end(shared: &Shared, end: Option<Ended>) {
    let exit = match end {
        Some(Ended::Code(code)) => ExitStatus::Code(code),
        Some(Ended::Signal(signal)) => ExitStatus::Signal(signal),
        None => ExitStatus::Unknown,
    };
    let by_force = !matches!(exit, ExitStatus::Code(_));
    let kernel = if exit == ExitStatus::Signal(libc::SIGKILL) { shared.program.why() } else { None };
    let mut state = shared.lock();
    let why = state.why.clone().filter(|_| by_force);
    let message = why.or(kernel).or_else(|| {
        (exit == ExitStatus::Unknown).then(|| "the pod's launcher ended, and nobody saw how the program did".to_owned())
    });
    state.finished_ms = Some(now_ms());
    state.phase = Phase::Draining(SessionExit { exit, message });
}

/// Waits until a stream has given something, and says how it stands then.
async fn next_flow(
    shared: &Shared,
    streams: &[(Stream, AsyncFd<OwnedFd>, Flow)],
    stage: &Stage,
    recorder: &mut Option<Recorder>,
) -> (usize, Flow) {
    let waiting = streams.iter().enumerate().filter(|(_, (_, _, flow))| *flow == Flow::Open);
    let readable = waiting.map(|(at, (_, fd, _))| Box::pin(async move { (at, fd.readable().await) }));
    let readable: Vec<_> = readable.collect();
    if readable.is_empty() {
        return std::future::pending().await;
    }
    if stage.left() > 0 {
        // an earlier daemon was on its way with it
        drop(readable);
        let at = streams.iter().position(|(_, _, flow)| *flow == Flow::Open).unwrap_or_default();
        let (stream, fd, _) = &streams[at];
        let (flow, _) = read(shared, *stream, (fd, stage), recorder, 1);
        shared.tell();
        return (at, flow);
    }
    let ((at, ready), _, _) = futures_util::future::select_all(readable).await;
    let (stream, fd, _) = &streams[at];
    let Ok(mut ready) = ready else { return (at, Flow::Closed) };
    let (flow, blocked) = read(shared, *stream, (fd, stage), recorder, TURNS);
    if blocked {
        ready.clear_ready();
    }
    shared.tell();
    (at, flow)
}

/// Reads what is there now.
fn drain(shared: &Shared, stream: Stream, ends: (&AsyncFd<OwnedFd>, &Stage), recorder: &mut Option<Recorder>) -> Flow {
    read(shared, stream, ends, recorder, DRAIN_TURNS).0
}

/// Output that is recorded on its way.
struct Recorded<'a> {
    through: Through<'a>,
    recorder: RefCell<&'a mut Option<Recorder>>,
}

impl Source for Recorded<'_> {
    fn staged(&self) -> usize {
        self.through.staged()
    }

    fn load(&self, most: usize) -> io::Result<usize> {
        self.through.load(most)
    }

    fn take(&self, room: &mut [u8]) -> io::Result<usize> {
        let count = self.through.take(room)?;
        if let Some(recorder) = self.recorder.borrow_mut().as_mut() {
            recorder.output(&room[..count]);
        }
        Ok(count)
    }
}

/// Reads into the ring, so often at most. Says how the stream stands, and whether there is nothing more for now.
#[allow(clippy::similar_names, reason = "the state of a session and the stage of its streams are just that")]
fn read(
    shared: &Shared,
    stream: Stream,
    (fd, stage): (&AsyncFd<OwnedFd>, &Stage),
    recorder: &mut Option<Recorder>,
    turns: usize,
) -> (Flow, bool) {
    let mut state = shared.lock();
    let state = &mut *state;
    let floor = floor(shared, state);
    let Some(ring) = &mut state.ring else { return (Flow::Closed, false) };
    for _ in 0..turns {
        let source =
            Recorded { through: Through { from: fd.get_ref().as_fd(), stage }, recorder: RefCell::new(recorder) };
        let filled = ring.fill(stream, floor, &source);
        match filled {
            None => {
                state.starved = true;
                return (Flow::Starved, false);
            }
            Some(Ok(0)) => return (Flow::Closed, false),
            Some(Ok(_)) => state.active = Instant::now(),
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => return (Flow::Open, true),
            Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            // a terminal that nobody has open any more says EIO
            Some(Err(_)) => return (Flow::Closed, false),
        }
    }
    (Flow::Open, false)
}

/// Records before this position may give way to new ones. Half of the ring is kept behind the slowest client, for one that
/// lost its connection and comes back.
fn floor(shared: &Shared, state: &mut State) -> u64 {
    let slowest = state.positions.values().copied().min();
    let Some(ring) = &mut state.ring else { return 0 };
    match slowest {
        Some(position) => position.saturating_sub(ring.capacity() / 2),
        None if shared.record.detach || shared.record.tty => u64::MAX,
        None => 0,
    }
}

/// Waits until the session has to be ended; says why.
async fn overdue(shared: &Shared, limits: Limits, began: Instant, running: bool) -> String {
    loop {
        let (deadline, why) = {
            let state = shared.lock();
            let mut deadlines = Vec::with_capacity(3);
            if running {
                deadlines.extend(
                    limits.max.map(|max| (began + max, format!("it ran for {} s, its longest", max.as_secs()))),
                );
                deadlines.extend(
                    limits
                        .idle
                        .map(|idle| (state.active + idle, format!("no input and no output for {} s", idle.as_secs()))),
                );
            }
            if state.positions.is_empty() && (!shared.record.detach || !running) {
                let (patience, what) =
                    if running { (limits.alone, "no client attached for") } else { (limits.keep, "kept for") };
                deadlines.push((state.alone_since + patience, format!("{what} {} s", patience.as_secs())));
            }
            match deadlines.into_iter().min_by_key(|(deadline, _)| *deadline) {
                Some(first) => first,
                // a client that comes or goes wakes the task
                None => (Instant::now() + Duration::from_hours(1), String::new()),
            }
        };
        if Instant::now() >= deadline {
            return why;
        }
        tokio::time::sleep_until(deadline).await;
    }
}

/// Waits until a client was given the exit, or long enough.
async fn wait_for_delivery(shared: &Shared, limits: Limits) {
    loop {
        let left = {
            let state = shared.lock();
            if state.discard || (state.delivered && state.positions.is_empty()) {
                return;
            }
            if state.positions.is_empty() {
                (state.alone_since.max(ended_at(&state)) + limits.keep).saturating_duration_since(Instant::now())
            } else {
                Duration::from_hours(1)
            }
        };
        if left.is_zero() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(left) => {}
            () = shared.room.notified() => {}
        }
    }
}

fn ended_at(state: &State) -> Instant {
    let ago = now_ms().saturating_sub(state.finished_ms.unwrap_or_default());
    Instant::now().checked_sub(Duration::from_millis(ago)).unwrap_or(state.active)
}
