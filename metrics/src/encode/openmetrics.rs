//! OpenMetrics 1.0.0, the text form.

use std::fmt::Write;

use super::text::{self, Dialect};
use crate::model::{Batch, Exemplar, Family, Number};

/// The format's media type.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Writes the families that `keep` chooses. Counters and histograms of scopes with a start are followed by `_created`.
pub fn write(batch: &Batch, keep: impl Fn(&Family) -> bool) -> String {
    text::write(batch, &OpenMetrics { created: true }, keep)
}

/// The same without any `_created`, for readers that would store each of them as a series of its own.
pub fn write_without_created(batch: &Batch, keep: impl Fn(&Family) -> bool) -> String {
    text::write(batch, &OpenMetrics { created: false }, keep)
}

struct OpenMetrics {
    created: bool,
}

impl Dialect for OpenMetrics {
    /// The unit is told where it is the end of the name, as the format demands.
    fn head(&self, out: &mut String, family: &Family) {
        for part in ["# TYPE ", family.name, " ", text::kind_word(family, "unknown"), "\n"] {
            out.push_str(part);
        }
        if let Some(unit) = family.unit_in_name() {
            for part in ["# UNIT ", family.name, " ", unit, "\n"] {
                out.push_str(part);
            }
        }
        for part in ["# HELP ", family.name, " "] {
            out.push_str(part);
        }
        text::push_escaped(out, family.help, true);
        out.push('\n');
    }

    fn created(&self) -> bool {
        self.created
    }

    fn exemplar(&self, out: &mut String, exemplar: &Exemplar) {
        out.push_str(" # {trace_id=\"");
        push_hex(out, &exemplar.trace);
        out.push_str("\",span_id=\"");
        push_hex(out, &exemplar.span);
        out.push_str("\"} ");
        text::push_number(out, Number::Real(exemplar.value));
        out.push(' ');
        text::push_time(out, exemplar.time);
    }

    fn end(&self, out: &mut String) {
        out.push_str("# EOF\n");
    }
}

fn push_hex(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(out, "{byte:02x}");
    }
}
