//! What the text formats of Prometheus and OpenMetrics share: labels, escapes, numbers, and the order of lines.
//!
//! Labels of a scope are rendered once for the whole batch, those of a family by name once for the family. The scope's
//! labels come first, then the family's own, then `le`; an empty value is left out, which means the same in both formats.
//! Points that no reader would take are left out: see [`Point::is_sound`].

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::catalogue::naming::label_name;
use crate::model::{Batch, Exemplar, Family, Histogram, Kind, Number, Point, Value};

/// In what the formats differ.
pub(super) trait Dialect {
    /// Lines before a family's first sample.
    fn head(&self, out: &mut String, family: &Family);
    /// Whether counters and histograms are followed by when they began.
    fn created(&self) -> bool;
    /// What follows a bucket's value.
    fn exemplar(&self, out: &mut String, exemplar: &Exemplar);
    /// The last line.
    fn end(&self, out: &mut String);
}

/// What each format calls a family's kind. A counter without `_total` is none to OpenMetrics, nor to `promtool`: it goes as
/// what each has for a family of which it knows nothing.
pub(super) fn kind_word(family: &Family, unknown: &'static str) -> &'static str {
    match family.kind {
        Kind::Counter if family.total => "counter",
        Kind::Counter => unknown,
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    }
}

/// Writes all families that `keep` chooses.
pub(super) fn write(batch: &Batch, dialect: &impl Dialect, keep: impl Fn(&Family) -> bool) -> String {
    let scopes: Vec<RenderedScope> = batch.scopes().iter().map(RenderedScope::new).collect();
    let mut out = String::with_capacity(estimate(batch, &scopes));
    let mut labels = String::new();
    let mut bounds = RenderedBounds::default();
    for (family, points) in batch.families().filter(|(family, _)| keep(family)) {
        dialect.head(&mut out, family);
        let names: Vec<String> = family.labels.iter().map(|name| label_name(name)).collect();
        let suffix = if family.kind == Kind::Counter && family.total { "_total" } else { "" };
        for point in points.iter().filter(|point| point.is_sound(family)) {
            let Some(scope) = scopes.get(point.scope.index()) else { continue };
            labels.clear();
            labels.push_str(&scope.labels);
            for (name, value) in names.iter().zip(&point.labels) {
                push_label(&mut labels, name, value);
            }
            match &point.value {
                Value::Number(value) => {
                    push_name(&mut out, family, suffix, &labels, None);
                    push_number(&mut out, *value);
                    out.push('\n');
                }
                Value::Histogram(histogram) => {
                    bounds.hold(&histogram.bounds);
                    push_histogram(&mut out, dialect, family, &labels, histogram, &bounds.texts);
                }
            }
            if let Some(created) = &scope.created
                && dialect.created()
                && (family.kind == Kind::Histogram || !suffix.is_empty())
            {
                push_name(&mut out, family, "_created", &labels, None);
                out.push_str(created);
                out.push('\n');
            }
        }
    }
    dialect.end(&mut out);
    out
}

fn push_histogram(
    out: &mut String,
    dialect: &impl Dialect,
    family: &Family,
    labels: &str,
    histogram: &Histogram,
    bounds: &[String],
) {
    let mut total = 0_u64;
    for (at, count) in histogram.counts.iter().enumerate() {
        total = total.saturating_add(*count);
        push_name(out, family, "_bucket", labels, Some(bounds.get(at).map_or("+Inf", String::as_str)));
        push_number(out, Number::Whole(total));
        let exemplar = histogram.exemplars.iter().find(|(bucket, _)| *bucket == at);
        if let Some((_, exemplar)) = exemplar
            && histogram.bounds.get(at).is_none_or(|bound| exemplar.value <= *bound)
        {
            dialect.exemplar(out, exemplar);
        }
        out.push('\n');
    }
    push_name(out, family, "_sum", labels, None);
    push_number(out, Number::Real(histogram.sum));
    out.push('\n');
    push_name(out, family, "_count", labels, None);
    push_number(out, Number::Whole(total));
    out.push('\n');
}

/// A sample's name and labels, and the space before its value. `labels` begin with a comma or are empty.
fn push_name(out: &mut String, family: &Family, suffix: &str, labels: &str, bound: Option<&str>) {
    out.push_str(family.name);
    out.push_str(suffix);
    match (labels.strip_prefix(','), bound) {
        (None, None) => {}
        (Some(labels), None) => {
            out.push('{');
            out.push_str(labels);
            out.push('}');
        }
        (labels, Some(bound)) => {
            out.push('{');
            if let Some(labels) = labels {
                out.push_str(labels);
                out.push(',');
            }
            out.push_str("le=\"");
            out.push_str(bound);
            out.push_str("\"}");
        }
    }
    out.push(' ');
}

/// `,name="value"`, nothing for an empty value.
fn push_label(out: &mut String, name: &str, value: &str) {
    if value.is_empty() {
        return;
    }
    out.push(',');
    out.push_str(name);
    out.push_str("=\"");
    push_escaped(out, value, true);
    out.push('"');
}

/// With `\` before `\`, with `\n` for the end of a line and, where `quotes` is set, `\` before `"`.
pub(super) fn push_escaped(out: &mut String, text: &str, quotes: bool) {
    let mut rest = text;
    while let Some(at) = rest.bytes().position(|b| b == b'\\' || b == b'\n' || (quotes && b == b'"')) {
        out.push_str(&rest[..at]);
        out.push_str(match rest.as_bytes()[at] {
            b'\n' => "\\n",
            b'"' => "\\\"",
            _ => "\\\\",
        });
        rest = &rest[at + 1..];
    }
    out.push_str(rest);
}

/// A value: whole numbers exactly, others with as many digits as it takes to read back the same.
pub(super) fn push_number(out: &mut String, number: Number) {
    // Writing to a string does not fail.
    let _ = match number {
        Number::Whole(value) => write!(out, "{value}"),
        Number::Real(value) if value.is_nan() => out.write_str("NaN"),
        Number::Real(value) if value.is_infinite() => out.write_str(if value > 0.0 { "+Inf" } else { "-Inf" }),
        Number::Real(value) => write!(out, "{value:?}"),
    };
}

/// Seconds since 1970 with milliseconds.
pub(super) fn push_time(out: &mut String, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let _ = write!(out, "{}.{:03}", since.as_secs(), since.subsec_millis());
}

/// A bucket's bound as Go prints numbers: OpenMetrics wants it so, and then it is the same label value in both formats and
/// as other exporters write it.
fn bound_text(bound: f64) -> String {
    if bound.is_infinite() {
        return if bound > 0.0 { "+Inf".to_owned() } else { "-Inf".to_owned() };
    }
    let scientific = format!("{bound:e}");
    match scientific.split_once('e').and_then(|(digits, power)| Some((digits, power.parse::<i32>().ok()?))) {
        Some((digits, power)) if bound != 0.0 && !(-4..6).contains(&power) => {
            format!("{digits}e{}{:02}", if power < 0 { '-' } else { '+' }, power.abs())
        }
        // `Display` never writes an exponent.
        _ if bound.fract() == 0.0 => format!("{bound:.1}"),
        _ => format!("{bound}"),
    }
}

/// How long the text will be, somewhat more rather than less: it is large, and growing it copies it.
fn estimate(batch: &Batch, scopes: &[RenderedScope]) -> usize {
    let of = |family: &Family, point: &Point| {
        let labels: usize =
            family.labels.iter().zip(&point.labels).map(|(name, value)| name.len() + value.len() + 4).sum();
        let scope = scopes.get(point.scope.index()).map_or(0, |scope| scope.labels.len());
        (family.name.len() + scope + labels + 32) * point.series()
    };
    batch.families().map(|(family, points)| 256 + points.iter().map(|point| of(family, point)).sum::<usize>()).sum()
}

/// What all lines about a scope have in common.
struct RenderedScope {
    /// Each label after a comma.
    labels: String,
    created: Option<String>,
}

impl RenderedScope {
    fn new(scope: &crate::model::Scope) -> Self {
        let mut labels = String::new();
        for (name, value) in &scope.labels {
            push_label(&mut labels, &label_name(name), value);
        }
        let created = scope.start.map(|start| {
            let mut text = String::new();
            push_time(&mut text, start);
            text
        });
        Self { labels, created }
    }
}

/// The bounds of the histogram that was written last; the next one mostly has the same.
#[derive(Default)]
struct RenderedBounds {
    bounds: Vec<f64>,
    texts: Vec<String>,
}

impl RenderedBounds {
    fn hold(&mut self, bounds: &[f64]) {
        if self.bounds != bounds {
            self.texts = bounds.iter().map(|bound| bound_text(*bound)).collect();
            self.bounds = bounds.to_vec();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_back_the_same() {
        let text = |number| {
            let mut out = String::new();
            push_number(&mut out, number);
            out
        };
        assert_eq!(text(Number::Whole(u64::MAX)), "18446744073709551615");
        for value in [0.0, -1.5, 0.1 + 0.2, 1e-9, 1e300, f64::MIN_POSITIVE, 123_456_789.125] {
            assert_eq!(text(Number::Real(value)).parse::<f64>().unwrap().to_bits(), value.to_bits());
        }
        let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(|value| text(Number::Real(value)));
        assert_eq!(odd, ["NaN", "+Inf", "-Inf"]);
    }

    #[test]
    fn bounds_are_written_as_go_does() {
        for (bound, expected) in [
            (1.0, "1.0"),
            (0.0, "0.0"),
            (10.0, "10.0"),
            (0.001, "0.001"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (0.000_001_024, "1.024e-06"),
            (0.000_262_144, "0.000262144"),
            (17.179_869_184, "17.179869184"),
            (100_000.0, "100000.0"),
            (1_000_000.0, "1e+06"),
            (16_777_216.0, "1.6777216e+07"),
            (-2.5, "-2.5"),
            (1e100, "1e+100"),
            (f64::INFINITY, "+Inf"),
        ] {
            assert_eq!(bound_text(bound), expected);
            assert_eq!(bound_text(bound).parse::<f64>().unwrap().to_bits(), bound.to_bits());
        }
    }

    #[test]
    fn escapes() {
        let mut out = String::new();
        push_escaped(&mut out, "a\\b\"c\nd\u{e9}", true);
        out.push('|');
        push_escaped(&mut out, "\"\\\n", false);
        assert_eq!(out, "a\\\\b\\\"c\\nd\u{e9}|\"\\\\\\n");
    }
}
