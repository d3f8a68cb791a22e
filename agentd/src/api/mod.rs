//! The local API: HTTP/1.1 on the daemon's Unix socket and, with TLS, over TCP. `docs/api.md` is the page for those who call it.
//!
//! - [`serve`] (in `connection`) accepts connections, one task for each, and bounds their number, headers and times.
//!   `strict` and `patient` are what lies between it and HTTP: requests that can be read in two ways are broken off, dead
//!   peers noticed.
//! - `door` and `permit` say who may not come in, and who may not do what ([`crate::access`]).
//! - `handle` takes one request from its route to its answer, and logs who changed what.
//! - `operations` is the table of all calls. By it `route` and `query` take a request's path and parameters apart, and
//!   `openapi` describes the API to programs; `body` reads what a request carries; `answer` makes what goes back,
//!   [`agentd_api::problem::Problem`] included.
//! - `list` chooses entries and fields and makes pages; `entity_tag` makes changes depend on what the client has read;
//!   `idempotency` makes a call that is sent twice do its work once.
//! - `pod_calls`, `image_calls`, `event_calls`, `log_calls` and `metric_calls` do the work, on what [`Pods`] gives them; `stream` carries
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
mod idempotency;
mod image_calls;
pub(crate) mod list;
mod log_calls;
mod log_lines;
mod metric_calls;
mod openapi;
pub(crate) mod operations;
mod patient;
mod permit;
mod pod_calls;
mod profile_calls;
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
pub(crate) use metric_calls::{is_far, signal as observed, written};
