//! Fetches a container's artifacts into its sandbox before the start.
//!
//! What comes over the network is read, parsed and unpacked by a child process without privileges; agentd itself only
//! moves the result into place.
//!
//! - [`Fetcher`] (in agentd) makes a staging folder in the sandbox, starts the child, and afterwards gives the files
//!   to the container's user and renames them into place.
//! - [`child_main`] (`agentd artifact-fetch`) confines itself, then fetches into the staging folder. It has no other
//!   way to the host's files than that folder's descriptor.
//!
//! The two talk over a socket pair that is the child's standard input; the staging folder and, for `file:`, the open
//! file come over it as descriptors. If agentd dies, the socket closes and the child ends.

mod address;
mod archive;
mod cache;
mod child;
mod client;
mod confine;
mod error;
mod fetcher;
mod landlock;
mod place;
mod process;
mod protocol;
mod roots;
mod staging;
mod tree;
mod uri;

pub use child::{child_main, confinement_report};
pub use error::{FailureKind, FetchError};
pub use fetcher::{CacheSettings, FetchRequest, Fetcher, Settings};
pub use staging::sweep;
