//! The series that a Prometheus has which scrapes agentd, with the labels of each, as the code says.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use agentd_metrics::catalogue::{self, compat, container, naming};
use agentd_metrics::container::{Direction, Edge, Interface, PodFacts, PodReading, Totals, report_pod};
use agentd_metrics::model::{Batch, Family, Kind, Scope};

use super::promql::{Known, Labels};

/// What Prometheus itself adds to each series.
const TARGET: [&str; 2] = ["job", "instance"];

/// Series that Prometheus makes for each target.
const OF_PROMETHEUS: [&str; 3] = ["up", "scrape_duration_seconds", "scrape_samples_scraped"];

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every series by name.
pub fn known() -> Known {
    let (of_pods, of_containers) = (scope_labels("pod_scope"), scope_labels("container_scope"));
    let pods = families_of_pods();
    let mut known: Known = OF_PROMETHEUS.map(|name| (name.to_owned(), TARGET.map(str::to_owned).into())).into();
    for family in catalogue::all() {
        let mut labels: Labels = family.labels.iter().map(|label| naming::label_name(label)).collect();
        labels.extend(TARGET.map(str::to_owned));
        let is_of_containers = container::ALL.iter().chain(compat::ALL).any(|one| std::ptr::eq(*one, family));
        if pods.contains(family.name) {
            labels.extend(of_pods.clone());
        } else if is_of_containers {
            labels.extend(of_containers.clone());
        }
        for name in family.series_names() {
            let mut labels = labels.clone();
            if family.kind == Kind::Histogram && name.ends_with("_bucket") {
                labels.insert("le".to_owned());
            }
            known.insert(name, labels);
        }
    }
    known
}

/// The families that are about a pod as a whole, as the function tells that reports one.
fn families_of_pods() -> BTreeSet<&'static str> {
    let mut batch = Batch::new(SystemTime::now());
    let scope = batch.scope(Scope::default());
    let interface = Interface {
        name: "eth0".into(),
        received_bytes: 0,
        received_packets: 0,
        received_errors: 0,
        received_drops: 0,
        sent_bytes: 0,
        sent_packets: 0,
        sent_errors: 0,
        sent_drops: 0,
    };
    let reading = PodReading { interfaces: vec![interface], ..PodReading::default() };
    let edge = Edge {
        peer: "a",
        port: None,
        direction: Direction::Outbound,
        counts: agentd_ebpf::observe::layout::Edge::default(),
    };
    report_pod(&mut batch, scope, &reading, &PodFacts::default(), &Totals::default(), (scope, &[edge]));
    let told: BTreeSet<&str> = batch.families().map(|(family, _)| family.name).collect();
    assert!(told.len() > 15, "{told:?}");
    // those whose source this reading lacks have the word in their names
    let named = |family: &&&'static Family| family.name.starts_with("agentd_pod_");
    told.into_iter().chain(container::ALL.iter().filter(named).map(|family| family.name)).collect()
}

/// The labels that a function of the daemon gives to all points of its scope.
fn scope_labels(function: &str) -> Labels {
    let path = root().join("agentd/src/observe/gather.rs");
    let source = std::fs::read_to_string(&path).unwrap();
    let body = source.split(&format!("fn {function}(")).nth(1).and_then(|rest| rest.split("\n}\n").next());
    let list = body.and_then(|body| body.split("labels: vec![").nth(1)?.split("\n        ],").next());
    let list = list.unwrap_or_else(|| panic!("{}: no labels in fn {function}", path.display()));
    let labels: Labels = list.split("(\"").skip(1).map(|part| part.split('"').next().unwrap().to_owned()).collect();
    assert!(labels.contains("pod") && labels.len() >= 4, "fn {function}: {labels:?}");
    labels
}

/// The sources in which values of labels are written.
pub fn sources() -> String {
    let mut folders =
        ["metrics/src", "agentd/src", "agentd/api/src", "ebpf/src"].map(|name| root().join(name)).to_vec();
    let mut text = String::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let source = std::fs::read_to_string(&path).unwrap();
                text.push_str(source.split("#[cfg(test)]\nmod tests {").next().unwrap());
            }
        }
    }
    text
}
