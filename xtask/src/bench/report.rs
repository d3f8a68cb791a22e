//! What a benchmark found: rows with their references and targets, as a table and as JSON.

use std::fs;
use std::path::Path;

use serde::Serialize;

use super::harness::{Measured, Samples};

/// One measurement, or one comparison of it with a reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// Unit of `median` and `p95`.
    pub unit: &'static str,
    /// Number of samples.
    pub n: usize,
    /// Median.
    pub median: f64,
    /// 95th percentile.
    pub p95: f64,
    /// What it is compared with: another measurement of the same run, or a number.
    pub reference: Option<String>,
    /// The compared ratio, in the sense of the target.
    pub ratio: Option<f64>,
    /// The target in words.
    pub target: Option<String>,
    /// Whether it was met.
    pub met: Option<bool>,
}

/// How a measurement is held to a reference.
#[derive(Debug, Clone, Copy)]
pub enum Bound {
    /// At most so many times the reference.
    AtMost(f64),
    /// At least so many times smaller than the reference.
    Faster(f64),
    /// At least so many times the reference.
    AtLeast(f64),
}

/// The rows of one benchmark.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Report {
    /// Takes measurements.
    pub fn add(&mut self, prefix: &str, unit: &'static str, measured: &Measured) {
        for (name, samples) in measured {
            self.rows.push(row(&format!("{prefix}: {name}"), unit, samples));
        }
    }

    /// Something to be read beside the rows.
    pub fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        println!("  {text}");
        self.notes.push(text);
    }

    fn find(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name && row.target.is_none())
    }

    /// Holds one measurement to another of the same run. A reference that was not measured is named.
    pub fn compare(&mut self, name: &str, reference: &str, bound: Bound) {
        let (Some(ours), other) = (self.find(name).cloned(), self.find(reference)) else {
            return;
        };
        let Some(other) = other else {
            self.note(format!("{name} is not held to {reference}: that was not measured"));
            return;
        };
        let (ratio, target, met) = match bound {
            Bound::AtMost(most) => {
                let ratio = ours.median / other.median;
                (ratio, format!("<= {most} x"), ratio <= most)
            }
            Bound::Faster(least) => {
                let ratio = other.median / ours.median;
                (ratio, format!(">= {least} x faster"), ratio >= least)
            }
            Bound::AtLeast(least) => {
                let ratio = ours.median / other.median;
                (ratio, format!(">= {least} x"), ratio >= least)
            }
        };
        let reference = Some(format!("{} = {}", other.name, figure(other.median)));
        self.rows.push(Row { reference, ratio: Some(ratio), target: Some(target), met: Some(met), ..ours });
    }

    /// Holds a measurement to a number, which it may not exceed (`at_most`) or has to reach.
    pub fn hold(&mut self, name: &str, number: f64, at_most: bool) {
        let Some(ours) = self.find(name).cloned() else {
            return;
        };
        let ratio = ours.median / number;
        let (sign, met) = if at_most { ("<=", ours.median <= number) } else { (">=", ours.median >= number) };
        let target = Some(format!("{sign} {number} {}", ours.unit));
        self.rows.push(Row { reference: Some(figure(number)), ratio: Some(ratio), target, met: Some(met), ..ours });
    }

    /// Prints the table and writes the JSON file. Returns whether every target was met.
    pub fn finish(mut self, root: &Path, name: &str) -> Result<bool, String> {
        self.rows.sort_by_key(|a| a.target.is_some());
        println!("\n{}", table(&self.rows));
        for note in &self.notes {
            println!("note: {note}");
        }
        let folder = root.join("target/bench");
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let path = folder.join(format!("{name}.json"));
        let text = serde_json::to_string_pretty(&self.rows).map_err(|error| format!("rows as JSON: {error}"))?;
        fs::write(&path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))?;
        println!("written: {}", path.display());
        let missed = self.rows.iter().filter(|row| row.met == Some(false)).count();
        let held = self.rows.iter().filter(|row| row.met.is_some()).count();
        println!("{} of {held} targets met", held - missed);
        Ok(missed == 0)
    }
}

fn row(name: &str, unit: &'static str, samples: &Samples) -> Row {
    Row {
        name: name.to_owned(),
        unit,
        n: samples.0.len(),
        median: samples.median(),
        p95: samples.quantile(0.95),
        reference: None,
        ratio: None,
        target: None,
        met: None,
    }
}

/// A number with three or so figures.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn table(rows: &[Row]) -> String {
    let head = ["measurement", "unit", "n", "median", "p95", "reference", "ratio", "target", "met"];
    let mut lines = vec![head.map(ToOwned::to_owned)];
    for row in rows {
        lines.push([
            row.name.clone(),
            row.unit.to_owned(),
            row.n.to_string(),
            figure(row.median),
            figure(row.p95),
            row.reference.clone().unwrap_or_default(),
            row.ratio.map(figure).unwrap_or_default(),
            row.target.clone().unwrap_or_default(),
            row.met.map_or("", |met| if met { "yes" } else { "NO" }).to_owned(),
        ]);
    }
    let widths: Vec<usize> = (0..head.len())
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
        .collect();
    lines
        .iter()
        .map(|line| {
            let cells: Vec<String> =
                line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::default();
        let measured = [("agentd", 3.0), ("floor", 2.0), ("ctr", 30.0)]
            .map(|(name, value)| (name.to_owned(), Samples(vec![value; 3])))
            .into();
        report.add("run", "ms", &measured);
        report
    }

    #[test]
    fn ratios_have_the_sense_of_their_target() {
        let mut report = report();
        report.compare("run: agentd", "run: floor", Bound::AtMost(1.5));
        report.compare("run: agentd", "run: ctr", Bound::Faster(11.0));
        report.hold("run: agentd", 4.0, true);
        report.compare("run: agentd", "run: floor", Bound::AtLeast(1.6));
        let held: Vec<_> = report.rows.iter().filter_map(|row| Some((row.ratio?, row.met?))).collect();
        assert_eq!(held, [(1.5, true), (10.0, false), (0.75, true), (1.5, false)]);
    }

    #[test]
    fn a_reference_that_was_not_measured_is_a_note_and_no_target() {
        let mut report = report();
        report.compare("run: agentd", "run: podman", Bound::Faster(20.0));
        assert!(report.rows.iter().all(|row| row.met.is_none()));
        assert_eq!(report.notes, ["run: agentd is not held to run: podman: that was not measured"]);
    }
}
