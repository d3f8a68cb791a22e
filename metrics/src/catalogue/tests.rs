//! What holds for every family of the catalogue.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::naming::{label_name, prometheus_name};
use super::{all, node};
use crate::model::{Kind, Unit};

/// All that is wrong, one line each, so that a new table is put right in one go.
fn report(problems: &[String]) {
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn names_follow_from_those_of_opentelemetry() {
    let mut problems = Vec::new();
    for family in all() {
        let Some(otel) = family.otel else { continue };
        let expected = prometheus_name(otel, family.unit, family.kind);
        if family.name != expected {
            problems.push(format!("{}: expected '{expected}' for {otel} in {}", family.name, family.unit.ucum()));
        }
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._".contains(&byte);
        if !otel.bytes().all(good) || !otel.contains('.') {
            problems.push(format!("{otel}: expected small letters and digits in parts with dots between them"));
        }
        if family.kind == Kind::Counter && !family.total {
            problems.push(format!("{otel}: a counter without _total, which only a common name may be"));
        }
    }
    report(&problems);
}

#[test]
fn names_and_labels_are_valid() {
    let is_name = |name: &str| {
        label_name(name) == name && !name.starts_with("__") && !name.starts_with(|c: char| c.is_ascii_digit())
    };
    let mut problems = Vec::new();
    for family in all() {
        let name = family.name;
        if !is_name(name) {
            problems.push(format!("{name}: expected letters, digits and _"));
        }
        let labels: Vec<String> = family.labels.iter().map(|label| label_name(label)).collect();
        if labels.iter().collect::<BTreeSet<_>>().len() != labels.len() {
            problems.push(format!("{name}: two labels of one name among {labels:?}"));
        }
        for (label, spelt) in family.labels.iter().zip(&labels) {
            let reserved = ["le", "quantile", "job", "instance"].contains(label);
            if !is_name(spelt) || label.starts_with(|c: char| c.is_ascii_digit()) || reserved {
                problems.push(format!("{name}: '{label}' is no label, or one that Prometheus has another use for"));
            }
        }
        for open in family.open.iter().filter(|open| !family.labels.contains(open)) {
            problems.push(format!("{name}: '{open}' is open and none of its labels"));
        }
    }
    report(&problems);
}

/// Also with what is appended to them: a counter `x` and a gauge `x_total` would be one series.
#[test]
fn names_are_unique() {
    let mut owners: BTreeMap<String, &str> = BTreeMap::new();
    let mut problems = Vec::new();
    for family in all() {
        let suffixes: &[&str] = match family.kind {
            Kind::Counter if family.total => &["", "_total", "_created"],
            Kind::Counter | Kind::Gauge => &[""],
            Kind::Histogram => &["", "_bucket", "_sum", "_count", "_created"],
        };
        for suffix in suffixes {
            if let Some(owner) = owners.insert(format!("{}{suffix}", family.name), family.name) {
                problems.push(format!("{}{suffix} is also a name of {owner}", family.name));
            }
        }
    }
    let mut otel = BTreeSet::new();
    problems.extend(
        all().filter_map(|family| family.otel).filter(|name| !otel.insert(*name)).map(|n| format!("{n} twice")),
    );
    report(&problems);
}

#[test]
fn help_is_one_line_without_a_full_stop() {
    let mut problems = Vec::new();
    for family in all() {
        let help = family.help;
        let begins =
            help.chars().next().is_some_and(|first| first.is_uppercase() || first.is_ascii_digit() || first == '`');
        if !begins || help.ends_with('.') || help.contains(['\n', '\r']) || help.trim() != help {
            problems.push(format!(
                "{}: '{help}': expected one line, a capital first, no full stop at the end",
                family.name
            ));
        }
    }
    report(&problems);
}

#[test]
fn kinds_and_units_fit() {
    let mut problems = Vec::new();
    for family in all() {
        let name = family.name;
        if family.total && family.kind != Kind::Counter {
            problems.push(format!("{name}: _total on what is no counter"));
        }
        if family.kind == Kind::Counter && name.ends_with("_total") {
            problems.push(format!("{name}: _total is put there by the encoders"));
        }
        if let Unit::Count(annotation) = family.unit {
            let inner = annotation.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or_default();
            if inner.is_empty() || inner.contains(['{', '}', ' ']) {
                problems.push(format!("{name}: unit '{annotation}', expected an annotation such as {{packet}}"));
            }
        }
        if family.unit == Unit::Ratio && family.kind == Kind::Counter {
            problems.push(format!("{name}: a ratio that only grows"));
        }
    }
    report(&problems);
}

/// What `promtool check metrics` complains of, for all names that are ours to choose: those of node_exporter and cAdvisor
/// are as they are.
#[test]
fn promtool_has_nothing_to_say() {
    // as in its linter: units that are none of the base, and their short forms
    let units = [
        "milliseconds",
        "microseconds",
        "nanoseconds",
        "minutes",
        "hours",
        "days",
        "weeks",
        "bits",
        "kilobytes",
        "megabytes",
        "kelvin",
        "fahrenheit",
        "percent",
    ];
    let short = ["s", "ms", "us", "ns", "sec", "b", "kb", "mb", "gb", "tb", "pb", "m", "h", "d"];
    let kinds = ["counter", "gauge", "histogram", "summary", "untyped"];
    let mut problems = Vec::new();
    for family in all().filter(|family| family.otel.is_some()) {
        let name = family.name;
        if let Some(part) =
            name.split('_').find(|part| units.contains(part) || short.contains(part) || kinds.contains(part))
        {
            problems.push(format!("{name}: '{part}' in a name"));
        }
        let reserved = ["_bucket", "_count", "_sum", "_total", "_created"];
        if let Some(end) = reserved.iter().find(|end| family.kind != Kind::Counter && name.ends_with(*end)) {
            problems.push(format!("{name}: ends in {end}, which is kept for what encoders append"));
        }
    }
    report(&problems);
}

/// A static beside the tables would be in no list.
#[test]
fn every_static_is_listed() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let this = std::fs::read_to_string(sources.join("catalogue/mod.rs")).unwrap();
    let (mut problems, mut folders, mut tables) = (Vec::new(), vec![sources.clone()], 0);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let (name, stem) = (path.display(), path.file_stem().unwrap().to_str().unwrap());
            if path.extension().is_none_or(|extension| extension != "rs") || stem == "tests" {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            if code.lines().any(|line| line.contains("static ") && line.contains("Family =") && !line.contains('$')) {
                problems.push(format!("{name}: a family outside of families! {{ … }}"));
            }
            let is_table = code.lines().any(|line| line.trim_start().starts_with("families! {"));
            if is_table && path.parent() == Some(&sources.join("catalogue")) {
                tables += 1;
                if !this.contains(&format!("{stem}::ALL")) {
                    problems.push(format!("{name}: its ALL is not part of catalogue::all()"));
                }
            } else if is_table {
                problems.push(format!("{name}: a table outside of the catalogue"));
            }
        }
    }
    report(&problems);
    assert!(tables >= 4, "{tables} tables found below {}", sources.display());
    assert_eq!(all().count(), all().map(std::ptr::from_ref).collect::<BTreeSet<_>>().len());
    assert!(all().any(|family| std::ptr::eq(family, node::ALL[0])));
}
