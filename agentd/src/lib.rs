//! The agentd daemon and its command line.

pub mod config;
pub mod doctor;
pub mod secrets;
