//! The page on metrics of containers says what the catalogue has: each family is a row, and each row a family.

use std::collections::BTreeSet;

use agentd_metrics::catalogue::{compat, container};
use agentd_metrics::model::{Family, Kind};

const PAGE: &str = include_str!("../../docs/metrics-containers.md");

/// The cells of the rows of a table below a heading that begin with a name in code.
fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let from = PAGE.find(heading).unwrap_or_else(|| panic!("docs/metrics-containers.md has no heading '{heading}'"));
    let section = &PAGE[from + heading.len()..];
    let section = section.split("\n## ").next().unwrap();
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim).collect();
    section.lines().filter(|line| line.starts_with("| `")).map(cells).collect()
}

/// A family as a row begins: name, name of OpenTelemetry's if it has one, kind, unit, labels.
fn row(family: &Family) -> Vec<String> {
    let (kind, name) = match family.kind {
        Kind::Counter => ("counter", family.series_names()[0].clone()),
        Kind::Gauge => ("gauge", family.name.to_owned()),
        Kind::Histogram => ("histogram", family.name.to_owned()),
    };
    let labels: Vec<_> = family.labels.iter().map(|label| format!("`{label}`")).collect();
    let labels = if labels.is_empty() { "—".to_owned() } else { labels.join(", ") };
    let mut row = vec![format!("`{name}`")];
    row.extend(family.otel.map(|otel| format!("`{otel}`")));
    row.extend([kind.to_owned(), format!("`{}`", family.unit.ucum()), labels]);
    row
}

fn compare(heading: &str, families: &[&'static Family], columns: usize) {
    let rows = rows(heading);
    let expected: BTreeSet<_> = families.iter().map(|family| row(family)).collect();
    let width = expected.first().unwrap().len();
    assert!(expected.iter().all(|row| row.len() == width), "one table, one kind of names");
    let mut found = BTreeSet::new();
    for row in &rows {
        assert_eq!(row.len(), columns, "{row:?}");
        assert!(row[width..].iter().any(|source| *source != "—" && !source.is_empty()), "{row:?} names no source");
        let begin: Vec<_> = row[..width].iter().map(|cell| (*cell).to_owned()).collect();
        assert!(found.insert(begin), "{} is there twice", row[0]);
    }
    let missing: Vec<_> = expected.difference(&found).collect();
    let surplus: Vec<_> = found.difference(&expected).collect();
    assert!(
        missing.is_empty() && surplus.is_empty(),
        "docs/metrics-containers.md, '{heading}': no row for {missing:#?}; rows of no family: {surplus:#?}"
    );
}

#[test]
fn every_family_is_a_row_and_every_row_a_family() {
    compare("## By OpenTelemetry's names, and ours", container::ALL, 8);
    compare("## By cAdvisor's names", compat::ALL, 5);
}
