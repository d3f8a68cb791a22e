//! Threads with a private mount namespace, in which every mount of a container is prepared as a detached descriptor.
//!
//! A mount can be cloned only by a task in whose mount namespace it lies, and agentd must not change the host's mount
//! table. So each thread of a [`Mounter`] has its own copy of the host's mount namespace, made recursively slave: what
//! the host mounts later still arrives, and nothing goes out. The threads serve closures ([`Mounter::run`]); what comes
//! out of them are descriptors of detached mounts that belong to no namespace until pod-init attaches them. When agentd
//! dies, the kernel drops the private namespaces and all that was mounted in them.
//!
//! The threads give up `CAP_SYS_RESOURCE`: overlayfs writes with the credentials of whoever mounted it, and that
//! capability passes over ext4's project quota and its reserved blocks.
//!
//! - [`MountThread`]: the primitives (clones, tmpfs, attaching for a while in the thread's own scratch folder).
//! - [`overlay`]: stacks of image layers.
//! - [`idmap`]: the user namespace that idmapped mounts need.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::IsolatorError;

pub mod idmap;
pub mod overlay;
mod thread;

pub use thread::{Attached, Attributes, MountThread, Tmpfs};
pub(crate) use thread::{BENEATH, ensure_dir, ensure_path, open_below, open_dir, real_path, set_attributes};

pub(crate) const NAME: &str = "mounter";

/// A closure on its way to a thread: `data` points to a [`Slot`] on the stack of the caller, who waits for `done`.
struct Job {
    call: unsafe fn(*mut (), &MountThread),
    data: *mut (),
    done: SyncSender<()>,
}

// SAFETY: `data` points to a `Slot<F, T>` whose `F` and `T` are `Send` (see `Mounter::run`), and the caller does not
// touch it until the thread has said `done` or has dropped the job.
unsafe impl Send for Job {}

struct Slot<F, T> {
    work: Option<F>,
    result: Option<Result<Result<T, IsolatorError>, Box<dyn Any + Send>>>,
}

/// The pool of threads. Dropping it ends the threads and with them their mount namespaces.
#[derive(Debug)]
pub struct Mounter {
    queue: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Mounter {
    /// Starts `threads` threads (at least one), each with its own mount namespace. Needs `CAP_SYS_ADMIN`.
    pub fn start(threads: usize) -> Result<Self, IsolatorError> {
        let (queue, jobs) = channel::<Job>();
        let jobs = Arc::new(Mutex::new(jobs));
        let mut pool = Self { queue: Some(queue), threads: Vec::new() };
        for index in 0..threads.max(1) {
            let (ready, started) = sync_channel(1);
            let jobs = Arc::clone(&jobs);
            let thread = std::thread::Builder::new()
                .name(format!("mounter-{index}"))
                .spawn(move || serve(&jobs, &ready))
                .map_err(|e| IsolatorError::io(NAME, "cannot start a thread for mounts", e))?;
            pool.threads.push(thread);
            started.recv().map_err(|_| IsolatorError::new(NAME, "a thread for mounts ended at its start"))??;
        }
        Ok(pool)
    }

    /// Runs `work` on one of the threads and waits for it: call it from a blocking thread, never from inside another
    /// `run`. A panic of `work` goes on in the caller; the thread lives on.
    pub fn run<T, F>(&self, work: F) -> Result<T, IsolatorError>
    where
        F: FnOnce(&MountThread) -> Result<T, IsolatorError> + Send,
        T: Send,
    {
        unsafe fn call<F, T>(data: *mut (), thread: &MountThread)
        where
            F: FnOnce(&MountThread) -> Result<T, IsolatorError>,
        {
            // SAFETY: `run` made `data` from its own `Slot<F, T>` and keeps that alive and untouched while it waits.
            let slot = unsafe { &mut *data.cast::<Slot<F, T>>() };
            if let Some(work) = slot.work.take() {
                slot.result = Some(catch_unwind(AssertUnwindSafe(|| work(thread))));
            }
        }
        let gone = || IsolatorError::new(NAME, "no thread for mounts is left; restart agentd");
        let mut slot = Slot { work: Some(work), result: None };
        let data = &raw mut slot;
        let (done, finished) = sync_channel(1);
        let queue = self.queue.as_ref().ok_or_else(gone)?;
        queue.send(Job { call: call::<F, T>, data: data.cast(), done }).map_err(|_| gone())?;
        // An error means that the job was dropped without being run, or after it: either way nobody uses `data` now.
        let _ = finished.recv();
        // SAFETY: the thread is done with the slot, which is still on this stack.
        let result = unsafe { (*data).result.take() };
        match result {
            Some(Ok(result)) => result,
            Some(Err(panic)) => resume_unwind(panic),
            None => Err(gone()),
        }
    }
}

impl Drop for Mounter {
    fn drop(&mut self) {
        drop(self.queue.take());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(jobs: &Mutex<Receiver<Job>>, ready: &SyncSender<Result<(), IsolatorError>>) {
    let thread = match MountThread::enter() {
        Ok(thread) => thread,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        // SAFETY: the sender of the job waits until `done` is sent or dropped, so its slot is alive.
        unsafe { (job.call)(job.data, &thread) };
        let _ = job.done.send(());
    }
}
