//! Container log capture and the daemon's own tracing set-up.

mod setup;

pub use setup::{Format, SetupError, init, valid_level};
