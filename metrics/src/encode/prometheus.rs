//! Prometheus's text format 0.0.4.

use super::text::{self, Dialect};
use crate::model::{Batch, Exemplar, Family};

/// The format's media type.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Writes the families that `keep` chooses.
pub fn write(batch: &Batch, keep: impl Fn(&Family) -> bool) -> String {
    text::write(batch, &Text, keep)
}

struct Text;

impl Dialect for Text {
    /// Here a counter is announced by the name that its samples have.
    fn head(&self, out: &mut String, family: &Family) {
        let kind = text::kind_word(family, "untyped");
        let suffix = if kind == "counter" { "_total " } else { " " };
        for part in ["# HELP ", family.name, suffix] {
            out.push_str(part);
        }
        text::push_escaped(out, family.help, false);
        for part in ["\n# TYPE ", family.name, suffix, kind, "\n"] {
            out.push_str(part);
        }
    }

    fn created(&self) -> bool {
        false
    }

    /// The format has none.
    fn exemplar(&self, _: &mut String, _: &Exemplar) {}

    fn end(&self, _: &mut String) {}
}
