//! Asks file systems for their room without waiting for one that does not answer.
//!
//! statvfs(2) on a mount whose server is gone (NFS, FUSE) blocks until the server comes back, and no signal ends it. So
//! one thread, `mount-room`, asks for all mounts, one after the other. Where an answer takes too long, the mount is remembered as stuck and
//! the thread is left to it; the next mount gets a new thread. A stuck mount is not asked again: its thread forgets it when the
//! answer comes after all, and ends. So there is one thread for each stuck mount, [`MOST_STUCK`] at most, and one more.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most mounts that a thread waits for at a time. With as many, no file system is asked until one answers.
pub(super) const MOST_STUCK: usize = 16;

/// Room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// Bytes.
    pub(super) size: u64,
    /// Bytes not used, what only root may use included.
    pub(super) free: u64,
    /// Bytes that anybody may use.
    pub(super) available: u64,
    /// Files and folders at most; 0 where there is no such limit.
    pub(super) files: u64,
    /// Files and folders that can still be made.
    pub(super) files_free: u64,
}

/// statvfs(2) by path.
pub(super) fn of(path: &std::path::Path) -> io::Result<Room> {
    let found = rustix::fs::statvfs(path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(Room {
        size: bytes(found.f_blocks),
        free: bytes(found.f_bfree),
        available: bytes(found.f_bavail),
        files: found.f_files,
        files_free: found.f_ffree,
    })
}

/// What asking a mount came to.
#[derive(Debug)]
pub(super) enum Answer {
    /// It answered.
    Known(io::Result<Room>),
    /// It does not answer, now or since an earlier time.
    Stuck,
    /// It was not asked: as many mounts as threads are left for do not answer.
    NotAsked,
}

/// How a mount is asked.
type Ask = Arc<dyn Fn(&std::path::Path) -> io::Result<Room> + Send + Sync>;

/// Where the thread is sent what it is to ask.
type Thread = Sender<(PathBuf, Arc<Question>)>;

/// A question under way.
#[derive(Default)]
struct Question {
    state: Mutex<State>,
    answered: Condvar,
}

#[derive(Default)]
enum State {
    #[default]
    Open,
    Answered(io::Result<Room>),
    /// Nobody waits any longer.
    Left,
}

/// Asks mounts.
pub(super) struct Rooms {
    ask: Ask,
    patience: Duration,
    stuck: Arc<Mutex<HashSet<PathBuf>>>,
    thread: Mutex<Option<Thread>>,
}

/// A thread that panicked with a lock held has left nothing half done here: every change is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Rooms {
    /// Asks by statvfs(2) and waits `patience` for each answer.
    pub(super) fn new(patience: Duration) -> Self {
        Self::asking(patience, Arc::new(of))
    }

    fn asking(patience: Duration, ask: Ask) -> Self {
        Self { ask, patience, stuck: Arc::default(), thread: Mutex::default() }
    }

    /// The room at `path`.
    pub(super) fn ask(&self, path: PathBuf) -> Answer {
        // held until the end: mounts are asked one after the other, by whoever gathers
        let mut thread = lock(&self.thread);
        {
            let stuck = lock(&self.stuck);
            if stuck.contains(&path) {
                return Answer::Stuck;
            }
            if stuck.len() >= MOST_STUCK {
                return Answer::NotAsked;
            }
        }
        let question = Arc::new(Question::default());
        let mut message = (path.clone(), Arc::clone(&question));
        if let Some(sender) = thread.as_ref() {
            match sender.send(message) {
                Ok(()) => return self.wait(path, &question, &mut thread),
                Err(back) => message = back.0,
            }
        }
        let (sender, questions) = mpsc::channel::<(PathBuf, Arc<Question>)>();
        let (ask, stuck) = (Arc::clone(&self.ask), Arc::clone(&self.stuck));
        let started =
            std::thread::Builder::new().name("mount-room".to_owned()).stack_size(128 << 10).spawn(move || {
                while let Ok((path, question)) = questions.recv() {
                    if !answer(&ask, &stuck, &path, &question) {
                        return;
                    }
                }
            });
        if let Err(e) = started {
            return Answer::Known(Err(e));
        }
        // the thread that takes it was just made
        let _ = sender.send(message);
        *thread = Some(sender);
        self.wait(path, &question, &mut thread)
    }

    fn wait(&self, path: PathBuf, question: &Question, thread: &mut Option<Thread>) -> Answer {
        let state = lock(&question.state);
        let (mut state, _) = question
            .answered
            .wait_timeout_while(state, self.patience, |state| matches!(state, State::Open))
            .unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, State::Left) {
            State::Answered(room) => Answer::Known(room),
            State::Open | State::Left => {
                // still under the question's lock, so that the thread finds it here when it comes back
                lock(&self.stuck).insert(path);
                *thread = None;
                Answer::Stuck
            }
        }
    }

    /// How many mounts do not answer.
    #[cfg(test)]
    fn stuck(&self) -> usize {
        lock(&self.stuck).len()
    }
}

/// Answers a question; whether there was still somebody to answer.
fn answer(ask: &Ask, stuck: &Mutex<HashSet<PathBuf>>, path: &PathBuf, question: &Question) -> bool {
    let room = ask(path);
    let mut state = lock(&question.state);
    if matches!(*state, State::Left) {
        lock(stuck).remove(path);
        return false;
    }
    *state = State::Answered(room);
    question.answered.notify_one();
    true
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    use super::*;

    const ROOM: Room = Room { size: 5, free: 4, available: 3, files: 2, files_free: 1 };

    type Gate = (Mutex<bool>, Condvar);

    /// Mounts whose path begins with `/dead` answer once the gate is open. Also counts the questions.
    fn made_up(patience: Duration) -> (Rooms, Arc<Gate>, Arc<AtomicUsize>) {
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let asked = Arc::new(AtomicUsize::new(0));
        let (at, count) = (Arc::clone(&gate), Arc::clone(&asked));
        let rooms = Rooms::asking(
            patience,
            Arc::new(move |path: &Path| {
                count.fetch_add(1, Ordering::SeqCst);
                if path.to_string_lossy().starts_with("/dead") {
                    let open = lock(&at.0);
                    drop(at.1.wait_while(open, |open| !*open));
                }
                Ok(ROOM)
            }),
        );
        (rooms, gate, asked)
    }

    fn open(gate: &Gate) {
        *lock(&gate.0) = true;
        gate.1.notify_all();
    }

    #[test]
    fn a_dead_mount_costs_one_wait_and_one_thread_until_it_answers() {
        let (rooms, gate, asked) = made_up(Duration::from_millis(50));
        assert!(matches!(rooms.ask("/dead".into()), Answer::Stuck));
        for _ in 0..100 {
            assert!(matches!(rooms.ask("/dead".into()), Answer::Stuck));
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1, "a stuck mount is not asked again");
        assert!(matches!(rooms.ask("/alive".into()), Answer::Known(Ok(ROOM))));
        open(&gate);
        let end = Instant::now() + Duration::from_secs(10);
        while rooms.stuck() > 0 {
            assert!(Instant::now() < end, "the mount is stuck though it answered");
            std::thread::yield_now();
        }
        assert!(matches!(rooms.ask("/dead".into()), Answer::Known(Ok(ROOM))));
    }

    #[test]
    fn the_threads_are_bounded() {
        let (rooms, gate, asked) = made_up(Duration::from_millis(5));
        for number in 0..MOST_STUCK {
            assert!(matches!(rooms.ask(format!("/dead/{number}").into()), Answer::Stuck));
        }
        assert!(matches!(rooms.ask("/dead/more".into()), Answer::NotAsked));
        assert!(matches!(rooms.ask("/alive".into()), Answer::NotAsked));
        assert!(asked.load(Ordering::SeqCst) <= MOST_STUCK);
        open(&gate);
        let end = Instant::now() + Duration::from_secs(10);
        while rooms.stuck() > 0 {
            assert!(Instant::now() < end, "{} mounts are stuck though they answered", rooms.stuck());
            std::thread::yield_now();
        }
    }

    #[test]
    fn one_thread_answers_many_and_errors_come_back() {
        let rooms = Rooms::new(Duration::from_secs(10));
        for _ in 0..50 {
            let Answer::Known(Ok(room)) = rooms.ask("/".into()) else { panic!("/ has no room") };
            assert!(room.size >= room.free && room.free >= room.available, "{room:?}");
        }
        let Answer::Known(Err(error)) = rooms.ask("/nowhere/at/all".into()) else { panic!("it exists") };
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
