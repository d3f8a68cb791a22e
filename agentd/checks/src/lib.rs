//! Health checks of containers, as Mesos and Marathon define them.
//!
//! - [`checker`]: the rules (delay, interval, grace period, failures in a row) as a state machine without I/O or clock.
//! - [`probe`]: HTTP, TCP and command checks. The sockets are made inside the container's network namespace.
//! - [`driver`]: the task that runs a checker for one container and reports what it finds.

pub mod checker;
pub mod driver;
mod http;
pub mod probe;
mod socket;
mod tls;

pub use checker::{Action, Checker, Timing};
pub use driver::{HealthEvent, drive};
pub use probe::{CommandExit, CommandProbe, HttpScheme, Probe, ProbeContext};
