//! `agentctl metrics`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use clap::ValueEnum;
use hyper::Method;
use serde::Deserialize;

use super::client::{Client, read};
use super::failure::{Result, clean};
use super::output::Output;
use super::table::{Columns, bytes, number};
use crate::api::route::encode;

/// What is to be shown.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only this pod and its containers.
    pub pod: Option<String>,
    /// Only its containers of this name.
    pub container: Option<String>,
    /// Only this instance.
    #[arg(long, value_name = "ID")]
    pub instance: Option<String>,
    /// What is asked for: figures that --output gives a form, or text for Prometheus.
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub format: Format,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table, or what --output says.
    Text,
    /// JSON, as the API gives it.
    Json,
    /// Prometheus's text format, whatever --output says.
    Prometheus,
}

#[derive(Debug, Deserialize)]
struct Measurements {
    scopes: Vec<Scope>,
}

#[derive(Debug, Deserialize)]
struct Scope {
    labels: BTreeMap<String, String>,
    metrics: Vec<Metric>,
}

#[derive(Debug, Deserialize)]
struct Metric {
    name: String,
    unit: String,
    points: Vec<Point>,
}

#[derive(Debug, Deserialize)]
struct Point {
    #[serde(default)]
    labels: BTreeMap<String, String>,
    value: Option<f64>,
    count: Option<u64>,
    sum: Option<f64>,
}

/// `agentctl metrics`
pub async fn run(client: &Client, output: &mut Output, arguments: Arguments) -> Result<()> {
    let prometheus = arguments.format == Format::Prometheus;
    let body = client.call(Method::GET, &path(&arguments), None).await?;
    if prometheus {
        return output.raw(&body);
    }
    if arguments.format == Format::Json || output.json() {
        return output.body(&body);
    }
    let found: Measurements = read(&body)?;
    if output.names() {
        return names(&found).into_iter().try_for_each(|name| output.name(name));
    }
    output.table(table(&found))
}

/// The names of what is measured, each once.
fn names(found: &Measurements) -> BTreeSet<&str> {
    found.scopes.iter().flat_map(|scope| &scope.metrics).map(|metric| metric.name.as_str()).collect()
}

fn path(arguments: &Arguments) -> String {
    let format = if arguments.format == Format::Prometheus { "prometheus" } else { "json" };
    let mut path = format!("/v1/metrics?format={format}");
    for (name, value) in
        [("pod", &arguments.pod), ("instance", &arguments.instance), ("container", &arguments.container)]
    {
        if let Some(value) = value {
            let _ = write!(path, "&{name}={}", encode(value));
        }
    }
    path
}

fn table(found: &Measurements) -> Columns {
    let mut columns = Columns::new(&["OF", "METRIC", "VALUE"]);
    for scope in &found.scopes {
        let label = |name: &str| scope.labels.get(name).map_or("", String::as_str);
        let of = match (label("pod"), label("container"), label("id")) {
            ("", _, "") => "node".to_owned(),
            ("", _, id) => id.to_owned(),
            (pod, "", id) => format!("{pod} {id}"),
            (pod, container, _) => format!("{pod} {container}"),
        };
        for metric in &scope.metrics {
            for point in &metric.points {
                let labels: Vec<String> = point.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
                let name = if labels.is_empty() {
                    metric.name.clone()
                } else {
                    format!("{}{{{}}}", metric.name, labels.join(","))
                };
                columns.row([clean(&of), clean(&name), clean(&shown(point, &metric.unit))]);
            }
        }
    }
    columns.right(&[2]);
    columns
}

/// A point for people: what was counted or found, of a histogram how often and what it came to on average.
fn shown(point: &Point, unit: &str) -> String {
    match (point.value, point.count, point.sum) {
        (Some(value), ..) => amount(value, unit),
        (None, Some(count), Some(sum)) if count > 0 => {
            format!("{count} times {} on average", amount(sum / count as f64, unit))
        }
        (None, Some(count), _) => count.to_string(),
        _ => "-".to_owned(),
    }
}

/// A value in its unit, as OpenTelemetry writes units. Counted things, in braces, are named by their metric already.
fn amount(value: f64, unit: &str) -> String {
    match unit {
        "By" if value >= 0.0 => bytes(value as u64),
        "s" if value > 0.0 && value < 1e-3 => format!("{} µs", number(value * 1e6)),
        "s" if value > 0.0 && value < 1.0 => format!("{} ms", number(value * 1e3)),
        "" | "1" => number(value),
        counted if counted.starts_with('{') => number(value),
        unit => format!("{} {unit}", number(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_one_query() {
        let arguments = Arguments {
            pod: Some("/app/web".into()),
            instance: None,
            container: Some("a&b".into()),
            format: Format::Text,
        };
        assert_eq!(path(&arguments), "/v1/metrics?format=json&pod=%2Fapp%2Fweb&container=a%26b");
        let all = Arguments { pod: None, instance: None, container: None, format: Format::Prometheus };
        assert_eq!(path(&all), "/v1/metrics?format=prometheus");
    }

    #[test]
    fn each_point_is_a_row() {
        let found: Measurements = serde_json::from_str(
            r#"{"time":null,"scopes":[{"labels":{"pod":"/web","container":"c","id":"i/c/1"},"resource":{},"metrics":[
                {"name":"container.cpu.time","prometheus":"x","unit":"s","kind":"counter","help":"h","points":[
                    {"labels":{"cpu.mode":"user"},"value":1.5},{"labels":{"cpu.mode":"system"},"value":null}]},
                {"name":"agentd.wait","prometheus":"y","unit":"s","kind":"histogram","help":"h","points":[
                    {"count":4,"sum":2.0,"buckets":[]}]}]}]}"#,
        )
        .unwrap();
        let text = table(&found).text();
        for words in
            ["/web c", "container.cpu.time{cpu.mode=user}", "1.5 s", "4 times 500 ms on average", "agentd.wait"]
        {
            assert!(text.contains(words), "{words}\n{text}");
        }
        assert_eq!(text.lines().count(), 4, "{text}");
        assert_eq!(names(&found).into_iter().collect::<Vec<_>>(), ["agentd.wait", "container.cpu.time"]);
    }

    #[test]
    fn values_are_read_without_counting_zeros() {
        for (value, unit, expected) in [
            (0.000_096, "s", "96 µs"),
            (0.019, "s", "19 ms"),
            (0.0, "s", "0 s"),
            (10.93, "s", "10.93 s"),
            (33_554_432.0, "By", "32.0 MiB"),
            (107.0, "{program}", "107"),
            (0.5, "{cpu}", "0.5"),
            (1.0, "1", "1"),
            (45.0, "Cel", "45 Cel"),
        ] {
            assert_eq!(amount(value, unit), expected);
        }
    }
}
