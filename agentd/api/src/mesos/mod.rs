//! Messages of the Mesos v1 agent API, as bytes come in and go out.
//!
//! - [`v1`]: types made of the description in `proto/`; names and numbers are the protocol's.
//! - [`decode_json`] and [`decode_protobuf`]: bytes to a [`Call`] that is whole; a fault names the field.
//! - [`ContainerPath`]: the chain of a container's parents and itself, checked.
//! - [`encode`]: an answer in one of the two [`Format`]s.
//! - [`recordio`]: streams of records; [`output`] and [`heartbeat`] make records of the streams that agentd sends.
//!
//! JSON is in the dialect of Mesos: names in `snake_case`, enums by name, bytes as base64, 64-bit numbers as numbers,
//! and only ASCII on a single line. On input null means absent, and numbers may be text. Nothing here panics on any
//! input; depth and size are bounded.

mod call;
mod container_path;
mod json;
pub mod recordio;
mod required;
mod schema;
mod stream;
#[cfg(test)]
mod tests;

pub use call::{Call, Input, decode, decode_json, decode_protobuf, window};
pub use container_path::ContainerPath;
pub use json::{JsonFault, to_ascii};
pub use schema::{MAX_CALL, encode};
pub use stream::{PIECE, heartbeat, output};

/// The two ways in which a message is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `application/json`.
    Json,
    /// `application/x-protobuf`.
    Protobuf,
}

impl Format {
    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => "application/x-protobuf",
        }
    }
}

/// Types made of `proto/`.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "made by prost-build")]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/mesos.v1.rs"));

    /// The agent API.
    pub mod agent {
        include!(concat!(env!("OUT_DIR"), "/mesos.v1.agent.rs"));
    }
}
