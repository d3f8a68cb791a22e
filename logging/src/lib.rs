//! Container log capture and the daemon's own tracing set-up.
//!
//! - [`init`]: the daemon's own log.
//! - [`Capture`]: one thread for the whole host that moves what containers print from their pipes into files.
//! - [`read`], [`Follow`]: reading those files, while they grow and rotate.
//!
//! A container's log is `<dir>/<instance>/<container>.log` in the CRI format, one record a line:
//! `<RFC 3339 time> <stdout|stderr> <F|P> <bytes>`, where `P` says that the line goes on in the next record of its stream.

pub mod capture;
mod file;
mod follow;
mod read;
mod record;
mod setup;
mod worker;

pub use capture::{Capture, LogError, Settings};
pub use follow::Follow;
pub use read::{Entries, ReadOptions, read};
pub use record::{Entry, MAX_LINE, Stream};
pub use setup::{Format, SetupError, TRACES, TraceLayer, init, valid_level};
