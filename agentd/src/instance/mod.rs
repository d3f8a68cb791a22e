//! One instance of a pod on this host.
//!
//! Each instance has one task ([`actor`]) that owns its [`crate::lifecycle::Machine`]. It takes commands (stop, update)
//! from an mpsc channel, inputs from its own helpers (launches, timers, health checks) from a second, and notices of its
//! pod-init from a third. After each step the checkpoint is written, the status published through a watch channel,
//! and only then are the actions carried out.
//!
//! - [`actor`], [`starts`], [`ends`], [`resources`]: the task; [`adopt`]: taking an instance back after a restart.
//! - [`setup`]: sandbox, disk limit, network, held volumes: once for each sandbox, and their release.
//! - [`launch`]: image, artifacts, secrets, isolators, start: for each start of a container.
//! - [`environment`]: the variables that agentd provides.
//! - [`command`]: commands of health checks, run by pod-init inside the container.

mod actor;
mod adopt;
pub mod command;
mod ends;
pub mod environment;
pub mod exits;
mod launch;
mod resources;
mod setup;
mod starts;
mod state;

use std::sync::Arc;

use agentd_api::pod::PodSpec;
use agentd_api::resources::Resources;
use agentd_api::status::{InstancePhase, InstanceStatus};
use tokio::sync::{mpsc, oneshot, watch};

pub use setup::uses_host_network;
pub use state::Record;

use crate::host::Host;
use crate::sandbox::Sandbox;
use crate::session::Joinable;
use crate::telemetry::start::Start;

/// What others ask of an instance.
#[derive(Debug)]
pub enum Command {
    /// End it. Answered when everything of it but its checkpoint is gone.
    Stop {
        /// Where the answer goes.
        done: oneshot::Sender<()>,
    },
    /// Give what a session in a running container needs.
    Join {
        /// The container's place in the pod.
        slot: usize,
        /// Where the answer goes.
        done: oneshot::Sender<Result<Joinable, String>>,
    },
    /// Change the resources of its running containers to those of this specification.
    Update {
        /// The new specification; differs in resources only.
        spec: Box<PodSpec>,
        /// Where the answer goes.
        done: oneshot::Sender<Result<(), String>>,
    },
}

/// A handle on an instance's task.
#[derive(Debug, Clone)]
pub struct Handle {
    /// Id of the instance.
    pub id: String,
    /// Unix milliseconds of its birth.
    pub created_ms: u64,
    commands: mpsc::UnboundedSender<Command>,
    status: watch::Receiver<InstanceStatus>,
    settled: watch::Receiver<bool>,
}

impl Handle {
    /// Its status now.
    pub fn status(&self) -> InstanceStatus {
        self.status.borrow().clone()
    }

    /// Its phase now.
    pub fn phase(&self) -> InstancePhase {
        self.status.borrow().phase
    }

    /// Watches its status.
    pub fn watch(&self) -> watch::Receiver<InstanceStatus> {
        self.status.clone()
    }

    /// Ends it and waits until nothing but its checkpoint is left.
    pub async fn stop(&self) {
        let (done, waiting) = oneshot::channel();
        if self.commands.send(Command::Stop { done }).is_ok() {
            // an error means that the task has ended already
            let _ = waiting.await;
        }
    }

    /// Waits until the sessions of an instance that was taken back are known again.
    pub async fn settled(&self) {
        // an error means that its task has ended, and with it all there was to settle
        let _ = self.settled.clone().wait_for(|settled| *settled).await;
    }

    /// What a session in a running container needs.
    pub async fn join(&self, slot: usize) -> Result<Joinable, String> {
        let (done, waiting) = oneshot::channel();
        let gone = || "the instance has ended".to_owned();
        self.commands.send(Command::Join { slot, done }).map_err(|_| gone())?;
        waiting.await.map_err(|_| gone())?
    }

    /// Changes resources in place.
    pub async fn update(&self, spec: PodSpec) -> Result<(), String> {
        let (done, waiting) = oneshot::channel();
        let gone = || "the instance has ended".to_owned();
        self.commands.send(Command::Update { spec: Box::new(spec), done }).map_err(|_| gone())?;
        waiting.await.map_err(|_| gone())?
    }
}

/// Resources of one instance, held until it is released.
pub type Grant = crate::admission::Grant;

/// Starts a new instance in a sandbox. Its checkpoint is written before this returns.
pub fn begin(host: &Arc<Host>, spec: PodSpec, sandbox: Sandbox, grant: Grant, start: Start) -> Result<Handle, String> {
    let record = Record::new(&sandbox.id, spec, host.config.pods.kill_grace_seconds);
    record.write(&host.layout)?;
    crate::failpoint::pass("instance.checkpointed");
    Ok(actor::spawn(host, record, Some(sandbox), Vec::new(), grant, Some(start)))
}

/// Takes back an instance found on disk. `sandbox` is none when its pod-init is dead.
pub fn adopt(
    host: &Arc<Host>,
    record: Record,
    sandbox: Option<(Sandbox, Vec<agentd_launcher::message::ProcessEntry>)>,
    grant: Grant,
) -> Handle {
    let (sandbox, processes) = match sandbox {
        Some((sandbox, processes)) => (Some(sandbox), processes),
        None => (None, Vec::new()),
    };
    actor::spawn(host, record, sandbox, processes, grant, None)
}

/// What one instance of a pod needs.
pub fn needs(spec: &PodSpec) -> Resources {
    Resources::of_pod(spec)
}

/// Now, in Unix milliseconds.
pub fn now_ms() -> u64 {
    jiff::Timestamp::now().as_millisecond().max(0) as u64
}
