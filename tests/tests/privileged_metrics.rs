//! Metrics of the whole daemon: what `/metrics` has of containers before, during and after their life, over a restart of the
//! daemon, above a budget; the listener that serves nothing else; events of the kernel with their containers.

#![allow(clippy::float_cmp, reason = "the numbers that are compared are whole")]

use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use agentd_tests::{Client, Daemon, binary, pods, privileged, until};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_mins(1);

/// A sample: its labels and its value.
#[derive(Debug, Clone)]
struct Sample {
    labels: BTreeMap<String, String>,
    value: f64,
}

/// The samples of Prometheus's text format by name. Panics on what is no such text, and on a series that is there twice.
#[track_caller]
fn parse(text: &str) -> BTreeMap<String, Vec<Sample>> {
    let mut samples: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
    let mut series = HashSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
        assert!(series.insert(name.to_owned()), "twice: {name}");
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
        let (name, rest) = name.split_once('{').unwrap_or((name, ""));
        let mut labels = BTreeMap::new();
        // no value here has a quote or a backslash in it
        for pair in rest.trim_end_matches('}').split("\",").filter(|pair| !pair.is_empty()) {
            let (label, value) = pair.split_once("=\"").unwrap_or_else(|| panic!("no label: {pair} in {line}"));
            labels.insert(label.to_owned(), value.trim_end_matches('"').to_owned());
        }
        samples.entry(name.to_owned()).or_default().push(Sample { labels, value });
    }
    samples
}

fn scrape(client: &Client) -> BTreeMap<String, Vec<Sample>> {
    let answer = client.get("/metrics");
    assert_eq!(answer.status, 200, "{}", answer.text);
    parse(&answer.text)
}

/// The samples of a name that are about a pod.
fn of_pod(samples: &BTreeMap<String, Vec<Sample>>, name: &str, pod: &str) -> Vec<Sample> {
    let all = samples.get(name).map(Vec::as_slice).unwrap_or_default();
    all.iter().filter(|sample| sample.labels.get("pod").is_some_and(|found| found == pod)).cloned().collect()
}

fn total(samples: &BTreeMap<String, Vec<Sample>>, name: &str, labels: &[(&str, &str)]) -> f64 {
    let all = samples.get(name).map(Vec::as_slice).unwrap_or_default();
    let fits =
        |sample: &&Sample| labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|v| v == value));
    all.iter().filter(fits).map(|sample| sample.value).sum()
}

/// Whether the programs of a signal are in the kernel.
fn has(client: &Client, signal: &str) -> bool {
    let signals = client.get("/v1/observe").json["signals"].as_array().cloned().unwrap_or_default();
    signals.iter().any(|one| one["signal"] == signal && one["rung"] != "off" && one["rung"] != "files")
}

fn events(client: &Client, pod: &str, kind: &str) -> Vec<String> {
    let all = client.get(&format!("/v1/events?pod={}", pod.trim_start_matches('/')));
    let all = all.json.as_array().cloned().unwrap_or_default();
    let these = all.iter().filter(|event| event["kind"] == kind && event["pod"] == pod);
    these.map(|event| event["message"].as_str().unwrap_or_default().to_owned()).collect()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("it has an address").port()
}

#[test]
fn a_container_is_there_with_both_families_of_names() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    client.run_pod(&pods::sleeper("/m/here"));
    let instance = client.instance("/m/here").id;
    let samples = scrape(&client);
    for name in [
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "container_start_time_seconds",
        "container_spec_memory_limit_bytes",
        "container_cpu_time_seconds_total",
        "container_memory_usage_bytes",
    ] {
        let found = of_pod(&samples, name, "/m/here");
        assert!(!found.is_empty(), "{name} is missing");
        for sample in found.iter().filter(|sample| sample.labels.contains_key("container")) {
            let label = |name: &str| sample.labels.get(name).map_or("", String::as_str);
            assert_eq!((label("container"), label("namespace")), ("main", "default"), "{name}");
            assert_eq!(label("id"), format!("{instance}/main/1"), "{name}");
            assert_eq!(label("name"), format!("{instance}/main"), "{name}");
        }
    }
    assert_eq!(total(&samples, "container_spec_memory_limit_bytes", &[("pod", "/m/here")]), 64.0 * 1_048_576.0);
    assert_eq!(total(&samples, "agentd_containers", &[("state", "TASK_RUNNING")]), 1.0);
    assert_eq!(total(&samples, "agentd_self_observed_containers", &[("state", "running")]), 1.0);
    assert!(total(&samples, "node_memory_MemTotal_bytes", &[]) > 0.0, "the host is missing");
    // the same as JSON, of this container alone
    let one = client.get("/v1/metrics?pod=m%2Fhere&container=main");
    let scopes = one.json["scopes"].as_array().cloned().unwrap_or_default();
    assert_eq!(scopes.len(), 1, "{}", one.text);
    assert_eq!(scopes[0]["resource"]["service.name"], "m/here");
    let text = client.get("/v1/metrics?pod=m%2Fhere&format=prometheus");
    assert!(
        parse(&text.text).values().flatten().all(|sample| sample.labels.get("pod").is_some_and(|p| p == "/m/here"))
    );
    assert_eq!(client.get("/v1/metrics?pod=m%2Fnone").status, 404);
    assert_eq!(client.get("/v1/metrics?container=none").status, 404);
    assert_eq!(client.get("/v1/metrics?format=xml").status, 400);
    let snapshot = client.get("/metrics/snapshot").json;
    assert!(snapshot["slave/cpus_total"].is_f64() && snapshot["agentd/self/threads"].is_f64(), "{snapshot}");
}

#[test]
fn an_ended_container_is_told_of_once_more_and_then_forgotten() {
    privileged!();
    let daemon = Daemon::with().set("observe.tombstone_seconds=5").start();
    let client = daemon.client();
    let line = "i=0; while [ $i -lt 7 ]; do /bin/true; i=$((i+1)); done";
    client.run_to_end(&pods::shell("/m/gone", line));
    let samples = scrape(&client);
    assert!(total(&samples, "container_cpu_usage_seconds_total", &[("pod", "/m/gone")]) > 0.0, "its total is lost");
    assert!(
        of_pod(&samples, "container_memory_usage_bytes", "/m/gone").iter().all(|s| !s.labels.contains_key("container"))
    );
    if has(&client, "exec") {
        // the shell and seven more
        assert_eq!(total(&samples, "agentd_container_execs_total", &[("pod", "/m/gone")]), 8.0);
    }
    assert_eq!(total(&samples, "agentd_self_observed_containers", &[("state", "ended")]), 1.0);
    until("the tombstone is over", PATIENCE, || {
        let samples = scrape(&client);
        of_pod(&samples, "container_cpu_usage_seconds_total", "/m/gone").is_empty().then_some(())
    });
}

#[test]
fn a_restart_of_the_daemon_keeps_identities() {
    privileged!();
    let mut daemon = Daemon::start();
    let client = daemon.client();
    let line = "while :; do /bin/true; sleep 0.05; done";
    client.run_pod(&pods::shell("/m/stays", line));
    let id = |client: &Client| {
        let found = of_pod(&scrape(client), "container_cpu_usage_seconds_total", "/m/stays");
        found.iter().find_map(|sample| sample.labels.get("id").filter(|id| id.contains('/')).cloned())
    };
    let before = id(&client).expect("it is measured");
    let used = total(&scrape(&client), "container_cpu_usage_seconds_total", &[("id", &before)]);
    daemon.kill9();
    daemon.restart();
    assert_eq!(id(&client).as_deref(), Some(before.as_str()));
    assert!(total(&scrape(&client), "container_cpu_usage_seconds_total", &[("id", &before)]) >= used);
    if has(&client, "exec") {
        until("programs count for it again", PATIENCE, || {
            (total(&scrape(&client), "agentd_container_execs_total", &[("id", &before)]) > 2.0).then_some(())
        });
        let unknown = total(&scrape(&client), "agentd_self_unpublished_containers_total", &[]);
        assert_eq!(unknown, 0.0);
    }
    client.rm("/m/stays");
}

#[test]
fn another_start_of_a_container_is_another_series() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    let mut pod = pods::shell("/m/again", "sleep 0.2; exit 1");
    pod["agentd"] = serde_json::json!({"restart": "always"});
    pod["scheduling"] = serde_json::json!({"backoff": {"backoff": 0.1, "backoffFactor": 1.0, "maxLaunchDelay": 1}});
    client.run_pod(&pod);
    let ids = until("it has been started three times", PATIENCE, || {
        let found = of_pod(&scrape(&client), "container_cpu_usage_seconds_total", "/m/again");
        let ids: HashSet<String> = found.iter().filter_map(|sample| sample.labels.get("id").cloned()).collect();
        let attempts = ids.iter().filter(|id| id.contains('/')).count();
        (attempts >= 3).then_some(ids)
    });
    let instance = client.instance("/m/again").id;
    assert!((1..=3).all(|attempt| ids.contains(&format!("{instance}/main/{attempt}"))), "{ids:?}");
    client.rm("/m/again");
}

#[test]
fn a_pod_above_its_budget_is_cut_and_says_so() {
    privileged!();
    let daemon = Daemon::with().set("metrics.series_per_pod=100").start();
    let client = daemon.client();
    client.run_pod(&pods::sleeper("/m/many"));
    let samples = scrape(&client);
    let series: usize = samples
        .values()
        .flatten()
        .filter(|sample| {
            sample.labels.get("pod").is_some_and(|pod| pod == "/m/many") && sample.labels.contains_key("id")
        })
        .count();
    assert!((20..=100).contains(&series), "{series} series");
    let cut = ["agentd_self_series_folded", "agentd_self_series_dropped"];
    assert!(cut.iter().map(|name| total(&samples, name, &[("pod", "/m/many")])).sum::<f64>() > 0.0);
}

/// What a listener answers to a request.
fn ask(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("it answers");
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn the_metrics_listener_serves_nothing_else() {
    privileged!();
    let port = free_port();
    let daemon = Daemon::with().set(&format!("metrics.listen=[\"127.0.0.1:{port}\"]")).start();
    let rest = format!("host: 127.0.0.1:{port}\r\nconnection: close\r\n");
    let status = |request: &str| ask(port, &format!("{request} HTTP/1.1\r\n{rest}\r\n"))[9..12].to_owned();
    assert_eq!(status("GET /metrics"), "200");
    assert_eq!(status("GET /metrics/snapshot"), "200");
    for path in ["/", "/v1/pods", "/v1/metrics", "/v1/events", "/api/v1", "/metrics/", "/healthz"] {
        assert_eq!(status(&format!("GET {path}")), "404", "{path}");
    }
    for method in ["POST", "DELETE", "PUT"] {
        assert_eq!(status(&format!("{method} /metrics")), "405", "{method}");
    }
    let page = ask(port, "GET /metrics HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n");
    assert!(page.starts_with("HTTP/1.1 421 "), "{page}");
    let page = ask(port, &format!("GET /metrics HTTP/1.1\r\norigin: https://evil.example\r\n{rest}\r\n"));
    assert!(page.starts_with("HTTP/1.1 403 "), "{page}");
    let open = ask(port, &format!("GET /metrics HTTP/1.1\r\naccept: application/openmetrics-text\r\n{rest}\r\n"));
    assert!(open.contains("application/openmetrics-text") && open.trim_end().ends_with("# EOF"), "{open:.300}");
    drop(daemon);
}

#[test]
fn listeners_that_would_tell_strangers_are_refused() {
    let check = |set: &str| {
        let output = Command::new(binary("agentd")).args(["check-config", "--set", set]).output().expect("agentd runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, told) = check("metrics.listen=[\"0.0.0.0:9464\"]");
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("metrics.listen[0]") && told.contains("metrics.tls = true"), "{told}");
    assert_eq!(check("metrics.tls=true").0, Some(2));
    assert_eq!(check("observe.groups=disk").0, Some(2));
    assert_eq!(check("metrics.listen=[\"127.0.0.1:9464\"]").0, Some(0));
}

#[test]
fn the_kernels_events_name_their_container() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    if !has(&client, "exit") {
        println!("skipped because this kernel tells of no exits: {}", client.get("/v1/observe").text);
        return;
    }
    client.run_pod(&pods::shell("/m/told", "/bin/true; /bin/false; sh -c 'kill -TERM $$'; exec sleep 1000000"));
    let ends = until("the three ends are told", PATIENCE, || {
        let ends = events(&client, "/m/told", "container-exit");
        (ends.len() >= 3).then_some(ends)
    });
    assert!(
        ends.iter().any(|end| end.starts_with("false (process ") && end.ends_with("exited with status 1")),
        "{ends:?}"
    );
    assert!(ends.iter().any(|end| end.contains("was ended by SIGTERM")), "{ends:?}");
    let begun = events(&client, "/m/told", "container-exec");
    assert!(begun.iter().any(|line| line.contains("/bin/true (process ")), "{begun:?}");
    // far more than the rate: what is left out is told, exactly
    let line = "i=0; while [ $i -lt 300 ]; do /bin/true; i=$((i+1)); done; exec sleep 1000000";
    client.run_pod(&pods::shell("/m/loud", line));
    let told = until("it is told that events were left out", PATIENCE, || {
        events(&client, "/m/loud", "container-events-limited").pop()
    });
    let left: u64 = told.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or_default();
    let came = events(&client, "/m/loud", "container-exec").len() + events(&client, "/m/loud", "container-exit").len();
    // the shell, sleep and 300 programs that began, of which 300 ended
    assert_eq!(left + came as u64, 602, "{told}");
    for pod in ["/m/told", "/m/loud"] {
        client.rm(pod);
    }
}

#[test]
fn without_programs_files_serve() {
    privileged!();
    let daemon = Daemon::with().set("observe.groups=[]").start();
    let client = daemon.client();
    client.run_pod(&pods::sleeper("/m/plain"));
    let samples = scrape(&client);
    assert!(!of_pod(&samples, "container_memory_working_set_bytes", "/m/plain").is_empty());
    assert!(of_pod(&samples, "agentd_container_execs_total", "/m/plain").is_empty());
    let seen = client.get("/v1/observe").json;
    assert_eq!(seen["programs"], Value::Array(Vec::new()));
    assert!(seen["signals"].as_array().is_some_and(|all| all.iter().all(|one| one["why"].is_string())), "{seen}");
}
