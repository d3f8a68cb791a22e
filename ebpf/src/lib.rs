//! eBPF programs of agentd and their loader.
//!
//! - [`device`]: the device guard, a `BPF_PROG_TYPE_CGROUP_DEVICE` program on a container's cgroup that lets its
//!   processes open and make only the devices of an allow-list. Its instructions are put together here, so that no
//!   compiler for BPF is needed to build or run agentd.
//!
//! [`call`] holds the few commands of `bpf(2)` that this takes.

pub mod btf;
pub mod call;
pub mod device;
pub mod observe;
