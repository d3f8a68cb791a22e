//! The life of one instance of a pod, as a state machine without I/O, clock or randomness.
//!
//! [`Machine::step`] takes an [`Input`] and the time and returns [`Action`]s; the instance's task ([`crate::instance`])
//! does the I/O and feeds the results back. The machine is the checkpoint: it is written to disk before the actions of a
//! step are carried out, and every action may be carried out again after a crash.
//!
//! Rules:
//! - A container starts when each one that it names in `startAfter` is ready: running, and healthy where it has a
//!   health check, or finished with success. One that waits for a container which has ended for good otherwise is not
//!   started and ends with it.
//! - With restart scope `pod`, a container that fails takes the others with it; when all have ended, all start again if
//!   the policy says so. With scope `container` each starts again by itself.
//! - A container is ended by SIGTERM, then, after its grace period, by killing its cgroup; one that is over its disk limit
//!   is killed at once.
//! - Delays between restarts grow by the pod's backoff and fall back to the first one after the pod has run for
//!   [`STABLE_MS`].
//! - Each [`Action::Launch`] is answered by [`Input::Launched`] or [`Input::LaunchFailed`], also one that was given up, also
//!   when the launcher has died. Until then nothing is given back and the container is not launched again.
//! - An instance that cannot be set up counts as one whose containers could not be launched: the policy decides.

mod machine;
mod restart;
#[cfg(test)]
mod tests;

use agentd_api::pod::{Backoff, PodSpec, RestartPolicy, RestartScope};
use agentd_api::status::{ExitStatus, InstancePhase, Reason, TaskState};
use serde::{Deserialize, Serialize};

/// Milliseconds of running after which the backoff starts anew.
pub const STABLE_MS: u64 = 10 * 60 * 1000;

/// Kill grace period where the pod names none, milliseconds (Mesos's default).
pub const DEFAULT_GRACE_MS: u64 = 3000;

/// What the machine knows of a container beforehand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerRule {
    /// Its name.
    pub name: String,
    /// Slots that must be ready first.
    pub after: Vec<usize>,
    /// Whether it has a health check.
    pub checked: bool,
    /// Time between SIGTERM and SIGKILL, milliseconds.
    pub grace_ms: u64,
}

/// What the machine knows of the pod beforehand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rules {
    /// Containers in the pod's order; the index is the slot.
    pub containers: Vec<ContainerRule>,
    /// When ended containers start again.
    pub policy: RestartPolicy,
    /// What restarts together.
    pub scope: RestartScope,
    /// Delays between restarts.
    pub backoff: Backoff,
}

impl Rules {
    /// The rules of a pod.
    pub fn of(pod: &PodSpec, default_grace_ms: u64) -> Self {
        let slot = |name: &String| pod.containers.iter().position(|c| c.name == *name);
        Self {
            containers: pod
                .containers
                .iter()
                .map(|container| ContainerRule {
                    name: container.name.clone(),
                    after: container.agentd.start_after.iter().filter_map(slot).collect(),
                    checked: container.health_check.is_some(),
                    grace_ms: container
                        .lifecycle
                        .kill_grace_period_seconds
                        .map_or(default_grace_ms, |s| (s * 1000.0) as u64),
                })
                .collect(),
            policy: pod.agentd.restart,
            scope: pod.agentd.restart_scope,
            backoff: pod.scheduling.backoff.clone(),
        }
    }
}

/// One container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// Its state.
    pub state: TaskState,
    /// Why.
    pub reason: Option<Reason>,
    /// One line for people.
    pub message: Option<String>,
    /// Number of starts.
    pub attempt: u32,
    /// Process id while it runs.
    pub pid: Option<u32>,
    /// How the last attempt ended.
    pub exit: Option<ExitStatus>,
    /// Result of its health check.
    pub healthy: Option<bool>,
    /// Start of the last attempt, Unix milliseconds.
    pub started_ms: Option<u64>,
    /// End of the last attempt, Unix milliseconds.
    pub finished_ms: Option<u64>,
    /// Highest memory use of the last attempt.
    pub memory_peak: Option<u64>,
    /// Restarts in a row without a stable run between them.
    pub failures: u32,
    /// Why it is being ended, once agentd has decided so.
    pub ending: Option<Ending>,
    /// Whether it waits for its own restart timer (scope `container`).
    pub in_backoff: bool,
    /// When that timer is due, Unix milliseconds.
    #[serde(default)]
    pub backoff_until_ms: u64,
    /// Whether a launch is under way: from [`Action::Launch`] to its result.
    pub launching: bool,
    /// Who works on the launch. Not kept: after a restart of the daemon nobody does until [`Input::Starting`] says so.
    #[serde(skip)]
    pub worker: Worker,
}

/// Who works on a launch in this run of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Worker {
    /// Nobody, and so nobody will answer it.
    #[default]
    Nobody,
    /// A task with the present launcher.
    Present,
    /// A task with a launcher that has died since: a program that it still reports is dead.
    Dead,
}

/// Why agentd ends a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ending {
    /// State it will have.
    pub state: TaskState,
    /// Reason it will have.
    pub reason: Reason,
    /// One line for people.
    pub message: String,
}

/// The state machine of an instance. See the module's prose.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The rules.
    pub rules: Rules,
    /// The containers, by slot.
    pub containers: Vec<Container>,
    /// What the instance is doing.
    pub phase: InstancePhase,
    /// Whether a stop was asked for.
    pub stopping: bool,
    /// Restarts of the pod in a row (scope `pod`).
    pub failures: u32,
    /// Whether the current round of the pod has failed (scope `pod`).
    pub round_failed: bool,
    /// When the pod's restart timer is due, Unix milliseconds (phase `backoff`).
    #[serde(default)]
    pub backoff_until_ms: u64,
    /// One line for people.
    pub message: Option<String>,
}

/// What happens to an instance.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// It was accepted and set up, or a restarted daemon goes on with it: what may start is launched, and the timers of
    /// what waits for its restart are set.
    Begin,
    /// Work on a launch has begun; after a restart of the daemon, once more.
    Starting {
        /// Slot.
        slot: usize,
        /// Number of the start.
        attempt: u32,
    },
    /// Its program runs.
    Launched {
        /// Slot.
        slot: usize,
        /// Number of the start.
        attempt: u32,
        /// Process id.
        pid: u32,
    },
    /// It could not be launched.
    LaunchFailed {
        /// Slot.
        slot: usize,
        /// Number of the start.
        attempt: u32,
        /// Why.
        reason: Reason,
        /// One line for people.
        message: String,
    },
    /// Its first process ended, and with it the container.
    Exited {
        /// Slot.
        slot: usize,
        /// Number of the start.
        attempt: u32,
        /// How.
        exit: ExitStatus,
        /// Why, if agentd's isolators know more (memory).
        cause: Option<(Reason, String)>,
        /// Highest memory use.
        memory_peak: Option<u64>,
    },
    /// Result of a health check changed.
    Health {
        /// Slot.
        slot: usize,
        /// Number of the start.
        attempt: u32,
        /// Whether it is healthy.
        healthy: bool,
    },
    /// Agentd must end a container: health check, disk limit.
    End {
        /// Slot.
        slot: usize,
        /// Number of the start.
        attempt: u32,
        /// Why.
        ending: Ending,
    },
    /// The grace period of a container ran out.
    GraceOver {
        /// Slot.
        slot: usize,
        /// Number of the start.
        attempt: u32,
    },
    /// A restart delay ran out: of a container, or of the pod. One that comes early (of an earlier delay, or of a timer
    /// that was set twice) sets a timer for the rest.
    BackoffOver {
        /// Slot, or none for the pod.
        slot: Option<usize>,
    },
    /// Somebody asked for the end.
    Stop,
    /// The pod-init died; its containers have been killed.
    LauncherDied,
    /// The instance cannot be set up (network, sandbox). Comes in place of [`Input::Begin`].
    SetupFailed {
        /// One line for people.
        message: String,
    },
}

/// What the instance's task does.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Ready and start a container.
    Launch {
        /// Slot.
        slot: usize,
        /// Number of the start.
        attempt: u32,
    },
    /// Give up a launch under way; it is still answered.
    CancelLaunch {
        /// Slot.
        slot: usize,
    },
    /// Send SIGTERM and set a timer for the grace period.
    Terminate {
        /// Slot.
        slot: usize,
        /// Number of the start.
        attempt: u32,
        /// Milliseconds.
        grace_ms: u64,
    },
    /// Kill the container's cgroup.
    Kill {
        /// Slot.
        slot: usize,
    },
    /// Set a timer for [`Input::BackoffOver`].
    Backoff {
        /// Slot, or none for the pod.
        slot: Option<usize>,
        /// Milliseconds.
        delay_ms: u64,
    },
    /// Replace the sandbox (its pod-init died) before the next launch.
    NewSandbox,
    /// Everything has ended for good: give the host's resources back.
    Release,
    /// Tell the world.
    Event {
        /// Slot, if a container is concerned.
        slot: Option<usize>,
        /// Kind.
        kind: &'static str,
        /// One line for people.
        message: String,
    },
}
