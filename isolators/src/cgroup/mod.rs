//! Control groups: one driver for cgroup v2 and for hybrid hosts (v1 controllers beside a cgroup2 tree), and the
//! isolators that set limits through it.
//!
//! The cgroup2 tree is always there and gives a container its identity (`cgroup.kill`, `cgroup.freeze`,
//! `cgroup.events`, `CLONE_INTO_CGROUP`, pressure, eBPF); each controller is used where the host has it, see [`Layout`].
//! Files are written directly by directory descriptor: the cgroups-rs library knows neither hybrid mapping nor
//! dirfd-relative work nor `CLONE_INTO_CGROUP`.
//!
//! ```text
//! cgroup2:  <parent>/supervisor             agentd itself, under systemd's delegation
//!           <parent>/launchers              the zygote
//!           <parent>/pods/<id>/init         pod-init
//!           <parent>/pods/<id>/c0/init      processes of container 0; limits are on c0
//!           <parent>/pods/<id>/c0/exec-<n>  processes of one exec
//! v1:       <parent>/launchers              the zygote and every pod-init (inherited by fork)
//!           <parent>/pods/<id>/c0           processes of container 0; cpu, memory, pids always, others on demand
//! ```

mod allocator;
mod cpu;
mod cpuset;
mod driver;
mod files;
mod hierarchy;
mod hugetlb;
mod io;
mod lifecycle;
mod memory;
mod oom;
mod pids;
mod setup;

pub use allocator::{Allocator, Core, NotEnoughCores};
pub use cpu::Cpu;
pub use cpuset::{Cpuset, thread_count, thread_hints};
pub use driver::{ContainerCgroup, Driver, SandboxCgroup};
pub use hierarchy::{Controller, Layout, Mode, Placement};
pub use hugetlb::Hugetlb;
pub use io::Io;
pub use memory::Memory;
pub use oom::{OomReader, OomVictim};
pub use pids::Pids;
