//! Fail points: named places between two durable steps at which a test can have the daemon killed.
//!
//! `AGENTD_FAILPOINT=name` or `name:n` makes the n-th pass of `name` a SIGKILL of the daemon by itself: no destructor
//! runs, as in a power cut of the process. Without the variable a pass costs one atomic load. The names are listed by
//! [`NAMES`], which the kill tests walk through.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Every fail point of the daemon and the image store.
pub const NAMES: &[&str] = &[
    "admit.spec-written",
    "sandbox.folder-made",
    "sandbox.cgroup-made",
    "sandbox.forked",
    "sandbox.spare-made",
    "instance.checkpointed",
    "setup.disk-ready",
    "setup.network-attached",
    "setup.done",
    "launch.image-ready",
    "launch.artifacts-ready",
    "launch.prepared",
    "launch.started",
    "launch.captured",
    "exit.noticed",
    "exit.checkpointed",
    "stop.terminated",
    "stop.killed",
    "release.begun",
    "release.network-detached",
    "release.sandbox-destroyed",
    "release.done",
    "update.spec-written",
    "update.applied",
    "update.recorded",
    "remove.marked",
    "remove.instance-ended",
    "remove.spec-removed",
    "session.cgroup-made",
    "session.spare-forked",
    "session.started",
    "session.ended",
    "pull.manifest",
    "pull.partial",
    "pull.blob",
    "pull.layer.unpacked",
    "pull.layer.renamed",
    "pull.synced",
    "pull.record",
    "remove.record",
    "gc.layer.renamed",
    "gc.layer.removed",
    "gc.blob",
];

struct Armed {
    name: String,
    left: AtomicU64,
}

static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

/// Reads the environment once and arms the image store's own points.
pub fn arm() {
    let armed = std::env::var("AGENTD_FAILPOINT").ok().map(|text| {
        let (name, n) = text.split_once(':').map_or((text.as_str(), 1), |(name, n)| (name, n.parse().unwrap_or(1)));
        Armed { name: name.to_owned(), left: AtomicU64::new(n) }
    });
    if ARMED.set(armed).is_ok() {
        agentd_images::set_checkpoint_hook(pass);
    }
}

/// Passes the point `name`; does not return if it is the one that is armed.
pub fn pass(name: &'static str) {
    debug_assert!(NAMES.contains(&name), "{name} is not listed");
    let Some(Some(armed)) = ARMED.get() else { return };
    if armed.name == name && armed.left.fetch_sub(1, Ordering::SeqCst) == 1 {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
