//! What the integration tests stand on: a daemon of their own ([`Daemon`]), a client of its API ([`Client`]), a picture of
//! what it has on the host ([`Snapshot`]), and pods to run ([`pods`]).
//!
//! A test starts with [`privileged!`], which ends it early, with a word of why, where it cannot run:
//!
//! ```no_run
//! # use agentd_tests::{Daemon, pods, privileged};
//! # fn test() {
//! privileged!();
//! let daemon = Daemon::start();
//! let client = daemon.client();
//! client.run_pod(&pods::shell("/hello", "echo hello"));
//! client.wait_finished("/hello");
//! assert_eq!(client.logs("/hello", "main"), "hello\n");
//! # }
//! ```
//!
//! Each daemon has a folder and thus an instance name of its own, so tests run side by side. Dropping it removes
//! everything of that instance from the host, also after a test that failed or a daemon that was killed.

pub mod arena;
pub mod attached;
mod client;
mod daemon;
pub mod exec;
pub mod exposition;
pub mod host;
pub mod images;
pub mod layout_server;
pub mod marked;
pub mod mutate;
pub mod peer;
pub mod pods;
mod poll;
pub mod registry;
pub mod relay;
mod snapshot;
pub mod terminal;
pub mod wire;

pub use arena::Arena;
pub use client::{Client, Response};
pub use daemon::{Daemon, Options, binary};
pub use poll::{eventually, until};
pub use snapshot::Snapshot;

/// Whether what a test asks for can be had; else why not.
///
/// With `AGENTD_TESTS_REQUIRE=1` in the environment nothing may be skipped: there the answer is a panic.
pub fn skipped(reason: &str) -> String {
    assert!(
        std::env::var_os("AGENTD_TESTS_REQUIRE").is_none(),
        "AGENTD_TESTS_REQUIRE is set, and this test cannot run: {reason}"
    );
    format!("skipped because {reason}")
}

/// Ends the test early and says why.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)+) => {{
        eprintln!("{}", $crate::skipped(&format!($($reason)+)));
        return;
    }};
}

/// Ends the test early unless it runs as root on a host that agentd can run pods on.
#[macro_export]
macro_rules! privileged {
    () => {
        if let Err(reason) = $crate::host::privileged() {
            $crate::skip!("{reason}");
        }
    };
}
