//! What a client has of a session: the output, and the right to give input.

use std::io::ErrorKind;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::ring::{At, Stream};
use super::stage::{PIPE, Way};
use super::{From, Output, Phase, Shared};
use crate::node::NodeError;

/// A client that follows the output. Dropping it detaches.
#[derive(Debug)]
pub struct Attachment {
    shared: Arc<Shared>,
    changed: watch::Receiver<u64>,
    id: u64,
    position: u64,
    offset: u64,
    /// Bytes of the record at the position that the client has already.
    skip: u64,
    /// Bytes that were thrown away before the client came and are not told yet.
    gap: u64,
}

impl Attachment {
    pub(super) fn new(shared: &Arc<Shared>, from: From) -> Self {
        let mut state = shared.lock();
        let (mut position, mut offset, mut skip, mut gap) = (0, state.output, 0, 0);
        if let Some(ring) = &mut state.ring {
            let kept = ring.kept_from();
            (position, offset) = match from {
                From::Kept => (ring.tail(), kept),
                From::Now => (ring.head(), ring.output()),
                From::Offset(wanted) => {
                    gap = kept.saturating_sub(wanted);
                    let offset = wanted.clamp(kept, ring.output().max(kept));
                    let found = ring.find(offset);
                    skip = found.1;
                    (found.0, offset)
                }
            };
        }
        let id = state.next_client;
        state.next_client += 1;
        state.positions.insert(id, position);
        state.was_attached = true;
        drop(state);
        shared.room.notify_one();
        Self { shared: Arc::clone(shared), changed: shared.changed.subscribe(), id, position, offset, skip, gap }
    }

    /// Offset of the next byte of output that [`Attachment::next`] gives.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the input for this client. One at a time has it: a second is refused with [`NodeError::Conflict`] unless
    /// `take_over`, which lets the client go that had it.
    pub fn input(&self, take_over: bool) -> Result<Input, NodeError> {
        Input::take(&self.shared, Some(self.id), take_over)
    }

    /// The client may not have got the exit that it was given: it is kept for one that comes back.
    pub fn not_delivered(&self) {
        self.shared.lock().delivered = false;
    }

    /// What comes next; waits for it. May be dropped and called again without loss.
    pub async fn next(&mut self) -> Output {
        if self.gap > 0 {
            return Output::Gap(std::mem::take(&mut self.gap));
        }
        loop {
            self.changed.borrow_and_update();
            if let Some(output) = self.ready() {
                return output;
            }
            if self.changed.changed().await.is_err() {
                return Output::LetGo("the daemon has let the session go".to_owned());
            }
        }
    }

    fn ready(&mut self) -> Option<Output> {
        let mut state = self.shared.lock();
        let state = &mut *state;
        if let Some(why) = state.let_go.remove(&self.id) {
            return Some(Output::LetGo(why));
        }
        if let Some(ring) = &mut state.ring {
            let tail = ring.tail();
            if self.position < tail {
                // only what no client was attached for gives way, so that this is rare
                let kept = ring.kept_from();
                let lost = kept.saturating_sub(self.offset);
                (self.position, self.offset, self.skip) = (tail, kept, 0);
                state.positions.insert(self.id, tail);
                if lost > 0 {
                    return Some(Output::Gap(lost));
                }
            }
            if let At::Output(stream, mut bytes, next) = ring.at(self.position) {
                self.position = next;
                state.positions.insert(self.id, next);
                let bytes: Bytes = bytes.split_off((std::mem::take(&mut self.skip) as usize).min(bytes.len()));
                self.offset += bytes.len() as u64;
                if std::mem::take(&mut state.starved) {
                    self.shared.room.notify_one();
                }
                return Some(match stream {
                    Stream::Stdout => Output::Stdout(bytes),
                    Stream::Stderr => Output::Stderr(bytes),
                });
            }
        }
        if let Phase::Ended(exit) = &state.phase {
            state.delivered = true;
            self.shared.room.notify_one();
            return Some(Output::Exit(exit.clone()));
        }
        None
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.positions.remove(&self.id);
        state.let_go.remove(&self.id);
        if state.positions.is_empty() {
            state.alone_since = tokio::time::Instant::now();
        }
        drop(state);
        self.shared.room.notify_one();
    }
}

/// The right to give input. Dropping it gives the right back and leaves the input open.
#[derive(Debug)]
pub struct Input {
    shared: Arc<Shared>,
    changed: watch::Receiver<u64>,
    id: u64,
}

impl Input {
    pub(super) fn take(shared: &Arc<Shared>, client: Option<u64>, take_over: bool) -> Result<Self, NodeError> {
        let mut state = shared.lock();
        if let Some((_, owner)) = state.input {
            if !take_over {
                return Err(NodeError::Conflict(format!(
                    "another client gives the session {} its input; attach without input, or take it over",
                    shared.record.id
                )));
            }
            if let Some(owner) = owner.filter(|owner| Some(*owner) != client && state.positions.contains_key(owner)) {
                state.let_go.insert(owner, "another client took over".to_owned());
            }
        }
        let id = state.next_input;
        state.next_input += 1;
        state.input = Some((id, client));
        drop(state);
        shared.tell();
        Ok(Self { shared: Arc::clone(shared), changed: shared.changed.subscribe(), id })
    }

    /// Bytes that the program was given so far (by all who had the input).
    pub fn written(&self) -> u64 {
        let mut state = self.shared.lock();
        let before = state.stdin;
        state.ring.as_mut().map_or(before, super::Ring::stdin)
    }

    /// Whether this still has the input, and the program may still take some.
    fn has_it(&self) -> bool {
        let state = self.shared.lock();
        state.phase == Phase::Running && state.input.is_some_and(|(id, _)| id == self.id)
    }

    /// Gives bytes; waits until some were taken, and says how many. 0 when the program has closed its input or ended, when it
    /// has none, and when another took the input over. May be dropped while it waits, without loss.
    pub async fn write(&mut self, bytes: &[u8]) -> usize {
        if bytes.is_empty() {
            return 0;
        }
        loop {
            self.changed.borrow_and_update();
            let Some(way) = self.shared.way().filter(|_| self.has_it()) else { return 0 };
            if way.stage.is_some() {
                match self.stage(&way, bytes) {
                    Some(count) => return count,
                    // the session's task empties the stage and tells
                    None if self.changed.changed().await.is_err() => return 0,
                    None => continue,
                }
            }
            let mut ready = tokio::select! {
                ready = way.to.writable() => match ready {
                    Ok(ready) => ready,
                    Err(_) => return 0,
                },
                changed = self.changed.changed() => {
                    if changed.is_err() {
                        return 0;
                    }
                    continue;
                }
            };
            let mut state = self.shared.lock();
            if state.input.is_none_or(|(id, _)| id != self.id) {
                return 0;
            }
            match rustix::io::write(way.to.get_ref(), bytes) {
                Ok(count) => {
                    state.gave(count);
                    return count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // a terminal that hung up
                Err(_) => return 0,
            }
        }
    }

    /// Puts bytes into the stage if that is empty, and moves on what goes. None when it is not empty.
    #[allow(clippy::similar_names, reason = "the state of a session and the stage of its streams are just that")]
    fn stage(&self, way: &Way, bytes: &[u8]) -> Option<usize> {
        let mut state = self.shared.lock();
        if state.input.is_none_or(|(id, _)| id != self.id) {
            return Some(0);
        }
        if way.staged() > 0 {
            return None;
        }
        let stage = way.stage.as_ref()?;
        let bytes = &bytes[..bytes.len().min(PIPE)];
        if let Some(ring) = &mut state.ring {
            ring.intend_stdin(bytes.len());
        }
        let Ok(count) = rustix::io::write(&stage.write, bytes) else { return Some(0) };
        if let Some(ring) = &mut state.ring {
            // a smaller pipe than was asked for takes less
            ring.intend_stdin(count);
        }
        state.gave(count);
        match way.hand_on() {
            Ok(0) => {}
            Ok(_) => self.shared.staged.notify_one(),
            // the program has closed its input: what was staged for it is of no use
            Err(_) => {
                drop(state);
                self.shared.drop_way();
                return Some(0);
            }
        }
        Some(count)
    }

    /// Closes the input (half-close), once the program has been given all of it. With a terminal nothing is closed.
    pub async fn close(&mut self) {
        if self.shared.terminal.is_some() {
            return;
        }
        loop {
            self.changed.borrow_and_update();
            let Some(way) = self.shared.way().filter(|_| self.has_it()) else { return };
            if way.staged() == 0 {
                break;
            }
            if self.changed.changed().await.is_err() {
                return;
            }
        }
        if let Some(ring) = &mut self.shared.lock().ring {
            ring.close_stdin();
        }
        // pod-init's copy first: the program sees the end once both are closed
        self.shared.program.close_stdin().await;
        self.shared.drop_way();
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if state.input.is_some_and(|(id, _)| id == self.id) {
            state.input = None;
        }
    }
}
