//! The local API: HTTP/1.1 on the daemon's Unix socket. `docs/api.md` is the page for those who call it.
//!
//! - [`serve`] (in `connection`) accepts connections, one task for each, and bounds their number, headers and times.
//! - `handle` takes one request from its route to its answer, and logs who changed what.
//! - `route` and `query` take a request's path and parameters apart; `body` reads what it carries; `answer` makes what
//!   goes back, [`agentd_api::problem::Problem`] included.
//! - `pod_calls`, `image_calls`, `event_calls` and `log_calls` do the work, on what [`Pods`] gives them; `stream` carries
//!   answers that have no end yet, and `log_lines` makes lines of log records.
//!
//! Work that changes something runs in a task of its own: a client that goes away does not leave it half done.

pub(crate) mod answer;
mod backend;
pub(crate) mod body;
mod connection;
mod door;
mod entity_tag;
mod event_calls;
mod exec_calls;
mod file_calls;
mod forward_calls;
mod frames;
pub(crate) mod handle;
mod image_calls;
mod log_calls;
mod idempotency;
pub(crate) mod list;
mod log_lines;
mod openapi;
mod patient;
mod permit;
pub(crate) mod operations;
mod pod_calls;
pub(crate) mod query;
pub(crate) mod route;
mod session_calls;
pub(crate) mod stream;
mod strict;
#[cfg(test)]
pub(crate) mod tests;
mod usage_calls;
mod websocket;

pub use backend::Pods;
pub use connection::{Limits, Listeners, serve};
