//! Standard input on its way from the client to the program: bounded, and ahead of the program by at most [`WINDOW`].
//!
//! The half that reads frames pushes pieces; the half that feeds the program takes them. So a signal that comes after
//! input finds its way also when the program does not read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, watch};

use super::WINDOW;
use crate::session::Input;

/// Largest part of a piece that is counted, and given, at a time.
const PART: usize = 64 << 10;

/// What a piece costs beside its bytes, so that many small ones are bounded, too.
const OVERHEAD: usize = 64;

/// An acknowledgement is told at least after so many bytes.
const ACKNOWLEDGE: u64 = 64 << 10;

enum Piece {
    Data(Bytes),
    Close,
}

/// Where input is pushed. Dropping it ends the input, but does not close that of the program.
#[derive(Debug)]
pub struct Intake {
    pieces: mpsc::UnboundedSender<Piece>,
    room: Arc<Semaphore>,
}

/// What feeds the program.
#[derive(Debug)]
pub struct Feeder {
    pieces: mpsc::UnboundedReceiver<Piece>,
    room: Arc<Semaphore>,
    given: Arc<AtomicU64>,
    acks: watch::Sender<u64>,
}

impl std::fmt::Debug for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Data(bytes) => write!(f, "Data({} bytes)", bytes.len()),
            Self::Close => f.write_str("Close"),
        }
    }
}

/// Both ends, and a count of the calls in which the program took something. `acks` is told how much it was given.
pub fn channel(acks: watch::Sender<u64>) -> (Intake, Feeder, Arc<AtomicU64>) {
    let (sender, pieces) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(WINDOW));
    let given = Arc::new(AtomicU64::new(0));
    let feeder = Feeder { pieces, room: Arc::clone(&room), given: Arc::clone(&given), acks };
    (Intake { pieces: sender, room }, feeder, given)
}

impl Intake {
    /// Pushes input; waits while the program is behind. What a program that takes no more input is sent is thrown away.
    pub async fn push(&self, mut bytes: Bytes) {
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(PART));
            // a closed semaphore is a program that takes no more
            let Ok(permit) = self.room.acquire_many((part.len() + OVERHEAD) as u32).await else { return };
            permit.forget();
            if self.pieces.send(Piece::Data(part)).is_err() {
                return;
            }
        }
    }

    /// Closes the program's input after what was pushed.
    pub async fn close(&self) {
        let Ok(permit) = self.room.acquire_many(OVERHEAD as u32).await else { return };
        permit.forget();
        // a feeder that is gone has a program that takes no more
        let _ = self.pieces.send(Piece::Close);
    }
}

impl Feeder {
    /// Gives everything that is pushed, until the intake ends or the program takes no more.
    pub async fn run(mut self, input: &mut Input) {
        let mut told = input.written();
        while let Some(piece) = self.pieces.recv().await {
            let cost = match piece {
                Piece::Close => {
                    let written = input.written();
                    if written != told {
                        told = written;
                        self.acks.send_replace(written);
                    }
                    input.close().await;
                    OVERHEAD
                }
                Piece::Data(bytes) => {
                    let mut rest = &bytes[..];
                    while !rest.is_empty() {
                        let count = input.write(rest).await;
                        if count == 0 {
                            self.room.close();
                            return;
                        }
                        self.given.fetch_add(1, Ordering::Relaxed);
                        rest = rest.get(count..).unwrap_or_default();
                        let written = input.written();
                        let idle = rest.is_empty() && self.pieces.is_empty();
                        if idle || written.saturating_sub(told) >= ACKNOWLEDGE {
                            told = written;
                            self.acks.send_replace(written);
                        }
                    }
                    bytes.len() + OVERHEAD
                }
            };
            self.room.add_permits(cost);
        }
    }
}
