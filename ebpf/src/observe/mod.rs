//! Programs that watch: what the kernel does for each container, counted inside the kernel.
//!
//! The programs are written in Rust (`ebpf/programs`), compiled ahead (`cargo xtask ebpf`) and embedded. They are in
//! groups; a group has its programs, its maps, and for each program a *ladder* of ways to hang it into the kernel, the best
//! first. [`Observer::start`] climbs down until one holds. What cannot be had at all degrades its own signal and nothing
//! else: [`Observer::signals`] says which rung each signal stands on, and why.
//!
//! A container is known by the id (inode) of its cgroup2 directory. [`Observer::publish`] makes its entries in the maps
//! before its program runs; [`Observer::forget`] takes them out when it has been gone for a while.
//!
//! There is no thread here: reading the maps and the ring is the caller's. Programs, links and maps hang on descriptors of
//! this process alone, nothing is pinned: they go with it, however it ends.

mod attach;
mod figures;
mod kernel;
mod ladder;
mod maps;
mod observer;
pub mod profile;
mod signal;
mod tracefs;

pub use agentd_ebpf_common as layout;
pub use figures::{Figures, Snapshot};
pub use observer::{Observer, Settings};
pub use signal::{Group, MapUse, ProgramCost, Rung, Signal, SignalState};
