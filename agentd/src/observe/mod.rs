//! Watching containers: who is who, what the kernel counted and told of them, and the metrics of all of it.
//!
//! - [`registry`] knows which container a cgroup is, before its program begins and for a while after its end.
//! - [`watcher`] holds the eBPF programs ([`agentd_ebpf::observe`]) and tells them of each container.
//! - [`tasks`] has the tasks: one takes events from the kernel's ring, one looks every ten seconds after programs, pressure
//!   and tombstones. [`kernel_events`] and [`pressure`] are what they say, as pure functions and state machines.
//! - [`gather`] puts a [`agentd_metrics::model::Batch`] together, on a thread that may block, one at a time; [`own`] is the
//!   agent's own part of it, [`peers`] names who containers speak with.
//! - [`stacks`] says where the signal of [`crate::profile`] stands, whose programs are none of the watcher's.
//! - [`latency`] has the daemon's own latencies; [`push`] hands metrics to the OpenTelemetry collector's queue.
//! - [`listener`] serves metrics, and nothing else, on listeners of their own; `slow` lets go of who does not read them.

pub mod gather;
pub mod kernel_events;
pub mod latency;
pub mod listener;
mod own;
pub mod peers;
pub mod pressure;
pub mod push;
pub mod registry;
mod slow;
pub mod stacks;
pub mod tasks;
pub mod watcher;

pub use registry::Identity;
pub use watcher::Watcher;
