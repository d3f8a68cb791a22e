//! The agentd daemon and its command line.
//!
//! Tasks and how they are joined:
//!
//! - [`daemon`] wires everything once, recovers ([`recovery`]), serves the API ([`api`]) and ends on a signal.
//! - [`node`] knows the pods; each instance of a pod has one task ([`instance`]) that owns its state machine
//!   ([`lifecycle`]) and writes its checkpoint ([`checkpoint`]) before it acts.
//! - [`pool`] has one task that keeps sandboxes ([`sandbox`]) ready; [`launch`] has one reader task for each pod-init.
//! - [`observe`] watches containers: identities, eBPF programs, the kernel's events, metrics.
//! - [`host`] holds what instances share: isolators, image store, log capture, events; one thread reads the kernel's log
//!   for victims of memory limits.

pub mod access;
pub mod admission;
pub mod api;
pub mod checkpoint;
pub mod config;
pub mod ctl;
pub mod daemon;
pub mod doctor;
#[cfg(test)]
mod documents;
pub mod events;
pub mod failpoint;
pub mod files;
pub mod forward;
pub mod host;
pub mod instance;
pub mod launch;
pub mod layout;
pub mod lifecycle;
pub mod mesos;
pub mod node;
pub mod observe;
pub mod placement;
pub mod pool;
pub mod profile;
pub mod recovery;
pub mod sandbox;
pub mod secrets;
pub mod session;
pub mod target;
pub mod telemetry;
pub mod usage;
