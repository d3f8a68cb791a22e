//! Writes a [`Batch`] for who reads it.
//!
//! [`prometheus`] and [`openmetrics`] are the text formats of `/metrics`, which share [`text`]; [`Format::negotiate`] says
//! which of them a scraper wants. [`otlp`] makes the requests that are pushed, [`json`] the objects of `/v1/metrics`,
//! [`snapshot`] the flat list of `/metrics/snapshot`. All are pure functions of the batch: no I/O, no clock.

pub mod json;
mod negotiate;
pub mod openmetrics;
pub mod otlp;
pub mod prometheus;
pub mod snapshot;
#[cfg(test)]
mod strict;
#[cfg(test)]
mod tests;
mod text;

use crate::model::{Batch, Family};

/// A text format of `/metrics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's text format 0.0.4, which every scraper reads and a person, too.
    Prometheus,
    /// OpenMetrics 1.0.0: with units, times of creation and exemplars.
    OpenMetrics,
}

impl Format {
    /// The format for a request with this `Accept` header: OpenMetrics 1.0.0 for who asks for it at least as much as for
    /// text, else text, whatever was asked for.
    pub fn negotiate(accept: Option<&str>) -> Self {
        negotiate::format(accept.unwrap_or_default())
    }

    /// Value of the answer's `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus::CONTENT_TYPE,
            Self::OpenMetrics => openmetrics::CONTENT_TYPE,
        }
    }

    /// The batch's families that `keep` chooses, in this format.
    pub fn write(self, batch: &Batch, keep: impl Fn(&Family) -> bool) -> String {
        match self {
            Self::Prometheus => prometheus::write(batch, keep),
            Self::OpenMetrics => openmetrics::write(batch, keep),
        }
    }
}
