//! Container log capture and the daemon's own tracing set-up.
