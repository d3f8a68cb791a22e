//! Reads an `Accept` header (RFC 9110, 12.5.1) as far as the two text formats need it.

use super::Format;

/// What a header says of one of our formats: the weight in thousandths that the most exact of the ranges that match gives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Wish {
    /// 3: named with our version; 2: named; 1: by the main type; 0: by `*/*`, or not at all.
    exact: u8,
    weight: u16,
}

impl Wish {
    fn take(&mut self, exact: u8, weight: u16) {
        if exact > self.exact {
            *self = Self { exact, weight };
        } else if exact == self.exact {
            self.weight = self.weight.max(weight);
        }
    }
}

/// OpenMetrics if it is wanted more than text, or as much and by its name; text in every other case, also where neither is
/// acceptable: a scraper that reads neither can tell so better than with an empty answer.
pub(super) fn format(accept: &str) -> Format {
    let (mut text, mut open) = (Wish::default(), Wish::default());
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let (mut weight, mut version) = (1000, None);
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name.trim().to_ascii_lowercase().as_str() {
                // a weight that is none says nothing: the range is passed over
                "q" => weight = thousandths(value.trim()).unwrap_or(0),
                "version" => version = Some(value.trim().trim_matches('"')),
                _ => {}
            }
        }
        match (kind.as_str(), version) {
            ("application/openmetrics-text", Some("1.0.0")) => open.take(3, weight),
            ("application/openmetrics-text", None) => open.take(2, weight),
            ("application/*", None) => open.take(1, weight),
            ("text/plain", Some("0.0.4")) => text.take(3, weight),
            ("text/plain", None) => text.take(2, weight),
            ("text/*", None) => text.take(1, weight),
            ("*/*", None) => {
                open.take(0, weight);
                text.take(0, weight);
            }
            _ => {}
        }
    }
    let more = open.weight > text.weight;
    let same_by_name = open.weight == text.weight && open.exact >= 2 && open.weight > 0;
    if more || same_by_name { Format::OpenMetrics } else { Format::Prometheus }
}

/// A weight of 0 to 1 with at most three digits after the point, in thousandths.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let fraction: u16 = format!("{fraction:0<3}").parse().ok()?;
    match (whole, fraction) {
        ("0", _) => Some(fraction),
        ("1", 0) => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scrapers_get_what_they_ask_for() {
        for (accept, expected) in [
            // Prometheus 2.26, 2.42 and 3
            (
                "application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Format::Prometheus,
            ),
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                 text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Format::OpenMetrics,
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;\
                 version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,\
                 */*;q=0.1",
                Format::OpenMetrics,
            ),
            // with protobuf, which agentd does not write, before the others
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,\
                 application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
                Format::OpenMetrics,
            ),
            // Prometheus told to prefer text
            ("text/plain;version=0.0.4;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5", Format::Prometheus),
            // curl, a browser, nothing
            ("*/*", Format::Prometheus),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Format::Prometheus),
            ("", Format::Prometheus),
            // by hand
            ("application/openmetrics-text", Format::OpenMetrics),
            ("APPLICATION/OpenMetrics-Text; Version=\"1.0.0\" ; Q=1.000", Format::OpenMetrics),
            ("application/openmetrics-text, text/plain", Format::OpenMetrics),
            ("application/openmetrics-text;q=0, */*", Format::Prometheus),
            ("application/openmetrics-text;version=2.0.0", Format::Prometheus),
            ("application/openmetrics-text;q=0", Format::Prometheus),
            ("text/plain;q=0,*/*;q=0.1", Format::OpenMetrics),
            ("application/json", Format::Prometheus),
            // broken
            (";;,,=;q=,q", Format::Prometheus),
            ("application/openmetrics-text;q=2", Format::Prometheus),
            ("application/openmetrics-text;q=0.12345,text/plain;q=0.1", Format::Prometheus),
        ] {
            assert_eq!(format(accept), expected, "{accept}");
        }
    }

    #[test]
    fn weights() {
        for (text, expected) in [
            ("1", Some(1000)),
            ("1.", Some(1000)),
            ("0.5", Some(500)),
            ("0.05", Some(50)),
            ("0.999", Some(999)),
            ("0", Some(0)),
            ("1.1", None),
            ("-0", None),
            ("+1", None),
            ("0.+1", None),
            ("", None),
            ("ä", None),
        ] {
            assert_eq!(thousandths(text), expected, "{text}");
        }
    }
}
