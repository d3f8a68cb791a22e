//! Work that happens once: whoever comes second waits for the first, and is shown its progress.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use agentd_api::message::Progress;
use tokio::sync::{Mutex, OwnedMutexGuard, watch};

use crate::ProgressSink;

/// Bytes after which progress is told again.
const STEP: u64 = 1 << 20;

/// One piece of work, e.g. a layer.
#[derive(Debug)]
pub(crate) struct Flight {
    turn: Arc<Mutex<()>>,
    seen: watch::Sender<Option<(String, u64, u64)>>,
}

impl Flight {
    fn new() -> Arc<Self> {
        Arc::new(Self { turn: Arc::default(), seen: watch::channel(None).0 })
    }

    /// The flight of that name in `flights`, which forgets those that nobody holds.
    pub(crate) fn of(flights: &mut std::collections::HashMap<String, Weak<Flight>>, name: &str) -> Arc<Self> {
        if let Some(flight) = flights.get(name).and_then(Weak::upgrade) {
            return flight;
        }
        flights.retain(|_, flight| flight.strong_count() > 0);
        let flight = Self::new();
        flights.insert(name.to_owned(), Arc::downgrade(&flight));
        flight
    }

    /// Waits for its turn. If the one before has done the work, the caller sees that by looking at its result.
    pub(crate) async fn turn(&self, progress: &ProgressSink) -> OwnedMutexGuard<()> {
        let mut seen = self.seen.subscribe();
        let mut turn = std::pin::pin!(Arc::clone(&self.turn).lock_owned());
        loop {
            tokio::select! {
                biased;
                guard = &mut turn => return guard,
                Ok(()) = seen.changed() => {
                    if let Some((digest, done, total)) = seen.borrow_and_update().clone() {
                        progress(Progress::Blob { digest, done, total });
                    }
                }
            }
        }
    }
}

/// Tells the progress of one blob, not too often, to the one who does the work and to those who wait.
pub(crate) struct Meter {
    digest: String,
    total: u64,
    done: AtomicU64,
    told: AtomicU64,
    flight: Arc<Flight>,
    progress: ProgressSink,
}

impl Meter {
    pub(crate) fn new(digest: &str, total: u64, flight: Arc<Flight>, progress: ProgressSink) -> Self {
        Self { digest: digest.to_owned(), total, done: AtomicU64::new(0), told: AtomicU64::new(0), flight, progress }
    }

    /// More bytes have arrived.
    pub(crate) fn add(&self, bytes: u64) {
        self.set(self.done.load(Ordering::Relaxed) + bytes);
    }

    /// So many bytes are there.
    pub(crate) fn set(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
        let told = self.told.load(Ordering::Relaxed);
        if done == told || (done < self.total && done >= told && done - told < STEP) {
            return;
        }
        self.told.store(done, Ordering::Relaxed);
        self.flight.seen.send_replace(Some((self.digest.clone(), done, self.total)));
        (self.progress)(Progress::Blob { digest: self.digest.clone(), done, total: self.total });
    }
}

/// Raises a flag when it is dropped before [`Alarm::disarm`]: the caller no longer waits.
#[derive(Debug)]
pub(crate) struct Alarm(Option<Arc<AtomicBool>>);

impl Alarm {
    pub(crate) fn new() -> (Self, Arc<AtomicBool>) {
        let flag = Arc::new(AtomicBool::new(false));
        (Self(Some(Arc::clone(&flag))), flag)
    }

    pub(crate) fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if let Some(flag) = &self.0 {
            flag.store(true, Ordering::Relaxed);
        }
    }
}
