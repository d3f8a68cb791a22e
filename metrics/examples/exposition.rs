//! Prints points of every family of the catalogue, in the format that is named (also `otlp`), for the checkers of others:
//! `cargo run -p agentd-metrics --example exposition prometheus | promtool check metrics`. With `time`, says instead how long
//! it takes to write so many containers, each with every family about containers.

use std::borrow::Cow;
use std::io::Write;
use std::time::{Duration, Instant, SystemTime};

use agentd_metrics::budget::Budget;
use agentd_metrics::catalogue;
use agentd_metrics::encode::{Format, json, openmetrics, otlp};
use agentd_metrics::model::{Batch, Exemplar, Family, Histogram, Kind, Scope, ScopeId};

/// As thin as those of the kernel's histograms: 1 µs to 16 s.
const BOUNDS: [f64; 13] = [
    0.000_001_024,
    0.000_004_096,
    0.000_016_384,
    0.000_065_536,
    0.000_262_144,
    0.001_048_576,
    0.004_194_304,
    0.016_777_216,
    0.067_108_864,
    0.268_435_456,
    1.073_741_824,
    4.294_967_296,
    17.179_869_184,
];

fn main() {
    let mut words = std::env::args().skip(1);
    match (words.next().as_deref(), words.next().and_then(|count| count.parse().ok())) {
        (Some("prometheus"), _) => print!("{}", Format::Prometheus.write(&sample(1, 1), |_| true)),
        (Some("openmetrics"), _) => print!("{}", Format::OpenMetrics.write(&sample(1, 1), |_| true)),
        (Some("otlp"), _) => {
            let batch = sample(1, 1);
            let request = otlp::requests(&batch, &origin(), otlp::Limits::default(), |_| true).next();
            let bytes = request.map(|request| otlp::encode(&request)).unwrap_or_default();
            if let Err(error) = std::io::stdout().write_all(&bytes) {
                eprintln!("{error}");
            }
        }
        (Some("time"), Some(containers)) => time(containers),
        _ => eprintln!("expected prometheus, openmetrics, otlp, or time and a number of containers"),
    }
}

/// A batch of the host and so many containers, in pods of ten, each with `times` points of every family.
fn sample(containers: usize, times: u64) -> Batch {
    let mut batch = Batch::new(SystemTime::now());
    let host = batch.scope(Scope::default());
    for family in catalogue::all().filter(|family| !is_of_container(family)) {
        point(&mut batch, family, host, 0);
    }
    for at in 0..containers {
        let pod = format!("/shop/backend-{}", at / 10);
        let id = format!("shop_backend-{}.3f2a9c1e77aa/c{}", at / 10, at % 10);
        let labels = vec![
            ("id", id.clone()),
            // with everything in it that has to be escaped
            ("name", format!("c{at} \\ \"é\" \n{{,}}")),
            ("image", "registry.example.com/shop/backend:1.27.3".to_owned()),
            ("pod", pod.clone()),
            ("container", format!("c{}", at % 10)),
            ("namespace", "default".to_owned()),
        ];
        let resource = vec![("container.id", id), ("service.name", pod.clone())];
        let start = Some(SystemTime::now() - Duration::from_hours(1));
        let scope = batch.scope(Scope { labels, resource, start, pod: Some(pod) });
        for family in catalogue::all().filter(|family| is_of_container(family)) {
            for time in 0..times {
                point(&mut batch, family, scope, time);
            }
        }
    }
    batch
}

fn is_of_container(family: &Family) -> bool {
    family.name.starts_with("container_") || family.name.starts_with("agentd_container_")
}

fn point(batch: &mut Batch, family: &'static Family, scope: ScopeId, at: u64) {
    let text = at.to_string();
    let labels = vec![text.as_str(); family.labels.len()];
    match family.kind {
        Kind::Counter => batch.add(family, scope, &labels, 12_345_678_u64 + at),
        Kind::Gauge => batch.add(family, scope, &labels, 0.125 + at as f64 / 3.0),
        Kind::Histogram => {
            let exemplar = Exemplar { value: 0.000_002, time: batch.time, trace: [7; 16], span: [9; 8] };
            let counts = vec![1000; BOUNDS.len() + 1];
            batch.histogram(
                family,
                scope,
                &labels,
                Histogram { bounds: Cow::Borrowed(&BOUNDS), counts, sum: 1.5, exemplars: vec![(1, exemplar)] },
            );
        }
    }
}

fn origin() -> otlp::Origin {
    let attributes = vec![("host.name".to_owned(), "node7".to_owned())];
    otlp::Origin { attributes, version: env!("CARGO_PKG_VERSION").into(), host_start: SystemTime::UNIX_EPOCH }
}

fn time(containers: usize) {
    let report = |what: &str, began: Instant, bytes: usize| {
        println!("{what}: {:.1} ms, {bytes} bytes", began.elapsed().as_secs_f64() * 1e3);
    };
    for _ in 0..3 {
        let began = Instant::now();
        let mut batch = sample(containers, 1);
        report(&format!("{containers} containers, {} series, made", batch.series()), began, 0);
        let agent = batch.scope(Scope::default());
        let began = Instant::now();
        let cut = Budget::default().apply(&mut batch, agent);
        report(&format!("budget, {} pods above", cut.len()), began, 0);
        let began = Instant::now();
        report("prometheus", began, Format::Prometheus.write(&batch, |_| true).len());
        let began = Instant::now();
        report("openmetrics", began, Format::OpenMetrics.write(&batch, |_| true).len());
        let began = Instant::now();
        report("openmetrics without _created", began, openmetrics::write_without_created(&batch, |_| true).len());
        let began = Instant::now();
        report("json", began, json::write(&batch, |_| true).len());
        let origin = origin();
        let began = Instant::now();
        let bytes = otlp::requests(&batch, &origin, otlp::Limits::default(), |_| true).map(|r| otlp::encode(&r).len());
        let bytes: Vec<usize> = bytes.collect();
        report(&format!("otlp, {} requests", bytes.len()), began, bytes.iter().sum());
    }
}
