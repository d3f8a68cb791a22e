//! A small pool of ready sandboxes: making a network namespace and joining v1 cgroups are the longest steps of a pod's
//! start, so they are taken beforehand.
//!
//! One task refills; [`Pool::claim`] takes a ready one or, when there is none, makes one on the spot.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::mpsc::error::TryRecvError;

use crate::sandbox::{Sandbox, Sandboxes};

/// The pool.
#[derive(Debug)]
pub struct Pool {
    sandboxes: Arc<Sandboxes>,
    ready: Mutex<VecDeque<Sandbox>>,
    size: usize,
    spares: u32,
    taken: Notify,
    /// Whether the pool fills itself; not before recovery has swept, and not once the daemon ends.
    open: AtomicBool,
    /// Held while a sandbox is being made for the pool.
    filling: tokio::sync::Mutex<()>,
    /// Starts and ends of pods under way; the pool fills when there are none.
    busy: Arc<Busy>,
}

/// Counts what the filling of the pool gives way to: it takes the same locks of the kernel (namespaces, cgroups) and
/// CPU time as the starts that it is to speed up.
#[derive(Debug, Default)]
struct Busy {
    count: AtomicUsize,
    idle: Notify,
}

/// While it lives, the pool does not fill (for [`PATIENCE`] at most).
#[derive(Debug)]
pub struct Haste(Arc<Busy>);

impl Drop for Haste {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_one();
        }
    }
}

/// How long the filling gives way.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long it must be quiet before the pool fills.
const QUIET: Duration = Duration::from_millis(10);

impl Pool {
    /// A pool for `size` sandboxes with `spares` spares each, filled by a task of its own once it is open.
    pub fn start(sandboxes: Arc<Sandboxes>, size: usize, spares: u32) -> Arc<Self> {
        let pool = Arc::new(Self {
            sandboxes,
            ready: Mutex::new(VecDeque::new()),
            size,
            spares,
            taken: Notify::new(),
            open: AtomicBool::new(false),
            filling: tokio::sync::Mutex::default(),
            busy: Arc::default(),
        });
        tokio::spawn(refill(Arc::downgrade(&pool)));
        pool
    }

    /// A ready sandbox, or a new one.
    pub async fn claim(&self) -> Result<Sandbox, String> {
        loop {
            let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            self.taken.notify_one();
            let Some(mut sandbox) = ready else { return self.sandboxes.create(self.spares).await };
            if alive(&mut sandbox) {
                return Ok(sandbox);
            }
            self.discard(&sandbox).await;
        }
    }

    async fn discard(&self, sandbox: &Sandbox) {
        if let Err(error) = self.sandboxes.destroy(&sandbox.id).await {
            tracing::error!(sandbox = sandbox.id, "a dead sandbox could not be removed: {error}");
        }
    }

    /// Takes out those whose pod-init was killed while they waited.
    fn take_dead(&self) -> Vec<Sandbox> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let (living, dead) =
            ready.drain(..).map(|mut s| (alive(&mut s), s)).partition::<Vec<_>, _>(|(alive, _)| *alive);
        ready.extend(living.into_iter().map(|(_, sandbox)| sandbox));
        dead.into_iter().map(|(_, sandbox)| sandbox).collect()
    }

    /// Ids of the sandboxes that wait.
    pub fn ids(&self) -> Vec<String> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|s| s.id.clone()).collect()
    }

    /// Keeps the pool from filling while a pod is being started or ended.
    pub fn haste(&self) -> Haste {
        self.busy.count.fetch_add(1, Ordering::AcqRel);
        Haste(Arc::clone(&self.busy))
    }

    /// Waits until nothing has been under way for [`QUIET`], or [`PATIENCE`] is over.
    async fn give_way(&self) {
        let quiet = async {
            loop {
                while self.busy.count.load(Ordering::Acquire) > 0 {
                    self.busy.idle.notified().await;
                }
                tokio::time::sleep(QUIET).await;
                if self.busy.count.load(Ordering::Acquire) == 0 {
                    return;
                }
            }
        };
        // an elapsed patience is as good as quiet
        let _ = tokio::time::timeout(PATIENCE, quiet).await;
    }

    /// Begins to fill the pool.
    pub fn open(&self) {
        self.open.store(true, Ordering::Release);
        self.taken.notify_one();
    }

    /// Stops filling and destroys what waits; used at a clean end.
    pub async fn close(&self) {
        self.open.store(false, Ordering::Release);
        let _filling = self.filling.lock().await;
        loop {
            let sandbox = self.ready.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(sandbox) = sandbox else { return };
            if let Err(error) = self.sandboxes.destroy(&sandbox.id).await {
                tracing::warn!(sandbox = sandbox.id, "a ready sandbox could not be removed: {error}");
            }
        }
    }
}

/// Whether the pod-init of a sandbox that waits has told nothing: its end would be the first that it tells.
fn alive(sandbox: &mut Sandbox) -> bool {
    matches!(sandbox.notices.try_recv(), Err(TryRecvError::Empty))
}

async fn refill(pool: std::sync::Weak<Pool>) {
    loop {
        let Some(strong) = pool.upgrade() else { return };
        for dead in strong.take_dead() {
            strong.discard(&dead).await;
        }
        let missing = {
            let ready = strong.ready.lock().unwrap_or_else(PoisonError::into_inner);
            strong.size.saturating_sub(ready.len())
        };
        let filling = strong.filling.lock().await;
        let missing = if strong.open.load(Ordering::Acquire) { missing } else { 0 };
        if missing == 0 {
            drop(filling);
            // a claim wakes this task; the daemon's end is seen at the next claim's absence
            let _ = tokio::time::timeout(Duration::from_mins(1), strong.taken.notified()).await;
            continue;
        }
        // a pool that is nearly used up is filled at once: what would wait then is the next start
        if missing * 2 <= strong.size {
            strong.give_way().await;
        }
        match strong.sandboxes.create(strong.spares).await {
            Ok(sandbox) => strong.ready.lock().unwrap_or_else(PoisonError::into_inner).push_back(sandbox),
            Err(error) => {
                tracing::error!("a sandbox for the pool could not be made: {error}");
                drop(filling);
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        }
    }
}
