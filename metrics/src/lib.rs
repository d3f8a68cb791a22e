//! Facts about the host: its CPUs, memory, kernel and file systems.
//!
//! What a container has used comes from its cgroup, through the isolators.

mod filesystem;
pub mod host;
mod topology;
