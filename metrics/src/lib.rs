//! Facts about the host, and the metrics of everything on it.
//!
//! Sources ([`node`] for the host, [`container`] for what runs on it) fill a [`model::Batch`] with points of the families
//! that the [`catalogue`] lists; [`encode`] writes a batch in the text formats of Prometheus and OpenMetrics, as JSON, or as
//! an OTLP request, which [`push`] delivers. Nothing here keeps state between two gatherings but the push queue and the
//! [`budget`] of series.

pub mod budget;
pub mod catalogue;
pub mod container;
pub mod encode;
mod filesystem;
pub mod host;
pub mod model;
pub mod node;
pub mod push;
mod topology;
