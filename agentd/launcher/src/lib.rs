//! The process that holds a pod, and the protocol that agentd speaks to it.
//!
//! agentd starts one **zygote** from a sealed copy of the `pod-init` binary. For each pod the zygote forks one
//! **pod-init**, which makes the pod's namespaces (net, ipc, uts, a private mount namespace with an empty root) and
//! then obeys agentd over a `SOCK_SEQPACKET` Unix socket on which it listens for ever, so that a restarted agentd finds
//! it again. For each container pod-init forks a **spare**: a process that already sits in the container's cgroups
//! and pid namespace and waits for its [`plan::ContainerPlan`]; on receipt it builds the root, drops what it must not
//! keep, and execs the container's program.
//!
//! - [`plan`]: what a container is, as data: argv, mounts, capabilities, seccomp, limits.
//! - [`wire`]: the length-checked binary encoding of everything here.
//! - [`message`]: requests, replies and notifications between agentd, zygote and pod-init.
//! - [`socket`]: sending and receiving one message with its descriptors.
//!
//! The library has no state and no tasks; the binary is single-threaded and allocates little.

pub mod message;
pub mod plan;
pub mod socket;
pub mod wire;
