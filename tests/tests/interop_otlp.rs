//! rotel, an OpenTelemetry collector from Python's package index, receives what the daemon delivers by OTLP and passes it on
//! to a receiver of the test's (`tests/interop/otlp_receiver.py`), which decodes it with the messages of another package.
//! Metrics are held against `/metrics` of the same moment, traces against what was done.

#![allow(clippy::float_cmp, reason = "what is compared so are whole numbers")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agentd_tests::exposition::{Exposition, Labels};
use agentd_tests::images::Config;
use agentd_tests::peer::{Peer, free_port, get, python_environment};
use agentd_tests::{Daemon, Options, eventually, images, pods, privileged, skip, until, wire};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_mins(1);
const RECEIVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/interop/otlp_receiver.py");

/// A caller's trace and span, as in `traceparent` and as a receiver writes them.
const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const CALLERS_TRACE: &str = "S/kvNXezTaajzpKdDg5HNg==";
const CALLERS_SPAN: &str = "APBnqgupArc=";

/// A point of a metric as it was received.
#[derive(Debug, Clone)]
struct Point {
    /// Name as `/metrics` spells it, a counter's with `_total` and a histogram's with `_count`.
    name: String,
    kind: &'static str,
    resource: Labels,
    attributes: Labels,
    start: u64,
    value: f64,
    exemplars: Vec<Value>,
}

/// What tells a series from all others: name, container or instance or nothing, labels.
type Key = (String, String, Labels);

impl Point {
    fn scope(&self) -> String {
        let id = self.resource.get("container.id").or_else(|| self.resource.get("service.instance.id"));
        id.cloned().unwrap_or_default()
    }

    fn key(&self) -> Key {
        let labels = self.attributes.iter().map(|(name, value)| (spelt(name), value.clone())).collect();
        (self.name.clone(), self.scope(), labels)
    }
}

/// A name with `_` for what may not stand in one of Prometheus's.
fn spelt(name: &str) -> String {
    name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' }).collect()
}

/// The series that a metric of OpenTelemetry's is on `/metrics`, by OpenTelemetry's rules.
fn series(name: &str, unit: &str, kind: &str) -> String {
    let mut name = spelt(name);
    let word = match unit {
        "s" => "_seconds",
        "By" => "_bytes",
        "1" if kind == "gauge" => "_ratio",
        "Cel" => "_celsius",
        "W" => "_watts",
        other => {
            assert!(other == "1" || (other.starts_with('{') && other.ends_with('}')), "{name} has the unit {other:?}");
            ""
        }
    };
    if !name.ends_with(word) {
        name.push_str(word);
    }
    name + match kind {
        "counter" => "_total",
        "histogram" => "_count",
        _ => "",
    }
}

fn labels(attributes: &Value) -> Labels {
    let all = attributes.as_array().map(Vec::as_slice).unwrap_or_default();
    let value = |value: &Value| match value["stringValue"].as_str() {
        Some(text) => text.to_owned(),
        None => value.as_object().and_then(|kinds| kinds.values().next()).map(Value::to_string).unwrap_or_default(),
    };
    all.iter().map(|one| (one["key"].as_str().unwrap().to_owned(), value(&one["value"]))).collect()
}

/// Numbers of 64 bits come as text.
fn whole(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).or_else(|| value.as_u64()).unwrap_or(0)
}

/// What has been received so far.
#[derive(Debug, Default)]
struct Received {
    /// Points by the time of the reading that they are from.
    readings: BTreeMap<u64, Vec<Point>>,
    spans: Vec<Span>,
}

#[derive(Debug, Clone)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    name: String,
    start: u64,
    end: u64,
    attributes: Labels,
    resource: Labels,
    links: Vec<String>,
}

impl Received {
    fn take(&mut self, line: &Value) {
        assert!(line.get("error").is_none(), "a request cannot be decoded: {}", line["error"]);
        let request = &line["request"];
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        for resource in list(&request["resourceMetrics"]) {
            let of = labels(&resource["resource"]["attributes"]);
            for scope in list(&resource["scopeMetrics"]) {
                assert_eq!(scope["scope"]["name"], "agentd", "{scope:.200}");
                for metric in list(&scope["metrics"]) {
                    self.metric(&of, &metric);
                }
            }
        }
        for resource in list(&request["resourceSpans"]) {
            let of = labels(&resource["resource"]["attributes"]);
            for span in list(&resource["scopeSpans"]).iter().flat_map(|scope| list(&scope["spans"])) {
                let text = |name: &str| span[name].as_str().unwrap_or_default().to_owned();
                let links =
                    list(&span["links"]).iter().map(|link| link["spanId"].as_str().unwrap().to_owned()).collect();
                self.spans.push(Span {
                    trace: text("traceId"),
                    id: text("spanId"),
                    parent: text("parentSpanId"),
                    name: text("name"),
                    start: whole(&span["startTimeUnixNano"]),
                    end: whole(&span["endTimeUnixNano"]),
                    attributes: labels(&span["attributes"]),
                    resource: of.clone(),
                    links,
                });
            }
        }
    }

    fn metric(&mut self, resource: &Labels, metric: &Value) {
        let (data, kind) = if let Some(sum) = metric.get("sum") {
            assert_eq!(sum["isMonotonic"], true, "{}", metric["name"]);
            (sum, "counter")
        } else if let Some(histogram) = metric.get("histogram") {
            (histogram, "histogram")
        } else {
            (&metric["gauge"], "gauge")
        };
        let cumulative = data["aggregationTemporality"] == "AGGREGATION_TEMPORALITY_CUMULATIVE";
        assert!(kind == "gauge" || cumulative, "{metric:.300}");
        assert!(metric["description"].as_str().is_some_and(|text| !text.is_empty()), "{}", metric["name"]);
        let unit = metric["unit"].as_str().unwrap_or_default();
        let name = series(metric["name"].as_str().unwrap(), unit, kind);
        let points = data["dataPoints"].as_array().unwrap_or_else(|| panic!("no points: {metric:.300}"));
        for point in points {
            let value = match kind {
                "histogram" => {
                    let buckets = point["bucketCounts"].as_array().cloned().unwrap_or_default();
                    let bounds = point["explicitBounds"].as_array().map_or(0, Vec::len);
                    assert_eq!(buckets.len(), bounds + 1, "{name}");
                    assert_eq!(buckets.iter().map(whole).sum::<u64>(), whole(&point["count"]), "{name}");
                    whole(&point["count"]) as f64
                }
                _ => point["asDouble"].as_f64().unwrap_or_else(|| whole(&point["asInt"]) as f64),
            };
            let (start, time) = (whole(&point["startTimeUnixNano"]), whole(&point["timeUnixNano"]));
            assert!(time > 0 && start <= time && (start > 0) == (kind != "gauge"), "{name}: {point:.300}");
            self.readings.entry(time).or_default().push(Point {
                name: name.clone(),
                kind,
                resource: resource.clone(),
                attributes: labels(&point["attributes"]),
                start,
                value,
                exemplars: point["exemplars"].as_array().cloned().unwrap_or_default(),
            });
        }
    }
}

/// rotel and the receiver behind it.
struct Collector {
    rotel: Peer,
    port: u16,
    lines: BufReader<File>,
    partial: String,
    received: Received,
    _receiver: Peer,
    _folder: tempfile::TempDir,
}

impl Collector {
    /// Starts them; an error says what is missing.
    fn start() -> Result<Self, String> {
        let python = python_environment().join("bin/python");
        let asked = Command::new(&python)
            .args(["-c", "import opentelemetry.proto, rotel, os; print(os.path.dirname(rotel.__file__))"])
            .output();
        let program = match asked {
            Ok(output) if output.status.success() => {
                PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()).join("rotel-agent")
            }
            _ => {
                let folder = python_environment();
                return Err(format!(
                    "the Python packages rotel and opentelemetry-proto are not in {} (`cargo xtask test --with-peers` puts \
                     them there)",
                    folder.display()
                ));
            }
        };
        let folder = tempfile::Builder::new().prefix("agentd-test-otlp-").tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut command = Command::new(&python);
        command.arg("-B").arg(RECEIVER).arg(path("received.jsonl"));
        let mut receiver = Peer::start(command, &path("receiver.log"));
        let onward: u16 = until("the receiver listens", PATIENCE, || {
            assert!(receiver.alive(), "the receiver ended:\n{}", receiver.log());
            receiver.log().strip_prefix("listening on ")?.strip_suffix('\n')?.parse().ok()
        });
        loop {
            let (port, other) = (free_port(), free_port());
            let mut command = Command::new(&program);
            command
                .arg("start")
                .arg(format!("--otlp-http-endpoint=127.0.0.1:{port}"))
                .arg(format!("--otlp-grpc-endpoint=127.0.0.1:{other}"))
                .args(["--exporter=otlp", "--otlp-exporter-protocol=http"])
                .arg(format!("--otlp-exporter-endpoint=http://127.0.0.1:{onward}"))
                .env_remove("http_proxy")
                .env_remove("HTTP_PROXY");
            let mut rotel = Peer::start(command, &path("rotel.log"));
            let up = eventually(PATIENCE, || !rotel.alive() || get(port, "/", &[]).is_ok());
            if up && rotel.alive() {
                let lines = BufReader::new(File::open(path("received.jsonl")).unwrap());
                return Ok(Self {
                    rotel,
                    port,
                    lines,
                    partial: String::new(),
                    received: Received::default(),
                    _receiver: receiver,
                    _folder: folder,
                });
            }
            // another process may take the port between its choice and its use
            assert!(rotel.log().to_lowercase().contains("in use"), "rotel does not start:\n{}", rotel.log());
        }
    }

    /// What has been received by now.
    fn received(&mut self) -> &Received {
        // a line that is just being written is kept until it is whole
        while self.lines.read_line(&mut self.partial).unwrap() > 0 && self.partial.ends_with('\n') {
            self.received.take(&serde_json::from_str(&self.partial).unwrap());
            self.partial.clear();
        }
        &self.received
    }

    fn options(&self) -> Options {
        Daemon::with()
            .set(&format!("otlp.endpoint=http://127.0.0.1:{}", self.port))
            .set("otlp.interval_seconds=2")
            .set("hostname=node-of-the-test")
    }

    /// A whole reading that began after `time`: the next one has begun to arrive.
    fn reading_after(&mut self, time: u64) -> (u64, Vec<Point>) {
        until("a whole reading has been received", PATIENCE, || {
            std::thread::sleep(Duration::from_millis(50));
            let mut later = self.received().readings.range(time..);
            let (at, points) = later.next()?;
            later.next()?;
            Some((*at, points.clone()))
        })
    }
}

fn now() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

/// The series of a scrape by their keys, a histogram by its count alone, with the kind of each.
fn scrape(port: u16) -> BTreeMap<Key, (String, f64)> {
    let answer = get(port, "/metrics", &[]).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    let read = Exposition::read(&answer.body).unwrap();
    let mut found = BTreeMap::new();
    for sample in read.samples {
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| sample.name.strip_suffix(end));
        let histogram = family.filter(|family| read.kinds.get(*family).is_some_and(|kind| kind == "histogram"));
        if histogram.is_some() && !sample.name.ends_with("_count") {
            continue;
        }
        let kind = read.kinds.get(histogram.unwrap_or(&sample.name)).cloned().unwrap_or_default();
        let mut labels = sample.labels;
        let scope = labels.remove("id").unwrap_or_default();
        if !scope.is_empty() {
            for name in ["name", "image", "pod", "container", "namespace"] {
                labels.remove(name);
            }
        }
        found.insert((sample.name, scope, labels), (kind, sample.value));
    }
    found
}

/// All that a reading says otherwise than two scrapes, one before and one after it.
fn differences(
    before: &BTreeMap<Key, (String, f64)>,
    points: &[Point],
    after: &BTreeMap<Key, (String, f64)>,
) -> Vec<String> {
    let mut found = Vec::new();
    let mut pushed = BTreeMap::new();
    for point in points {
        if pushed.insert(point.key(), point).is_some() {
            found.push(format!("received twice: {:?}", point.key()));
        }
    }
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(b.abs());
    for (key, (kind, first)) in before {
        let Some((_, last)) = after.get(key) else { continue };
        match pushed.get(key) {
            None => found.push(format!("not received: {key:?}")),
            Some(point) if point.kind != kind => {
                found.push(format!("{key:?} is a {} there and a {kind} here", point.kind));
            }
            Some(point) if kind != "gauge" => {
                let value = point.value;
                if !((*first <= value || close(*first, value)) && (value <= *last || close(value, *last))) {
                    found.push(format!("{key:?}: {value} was received, between {first} and {last} here"));
                }
            }
            Some(point) if key.0.contains("_limit") && !close(point.value, *first) => {
                found.push(format!("{key:?}: {} was received, {first} here", point.value));
            }
            Some(_) => {}
        }
    }
    let only = pushed.keys().filter(|key| !before.contains_key(key) && !after.contains_key(key));
    found.extend(only.map(|key| format!("only received: {key:?}")));
    let names = |keys: Vec<&Key>| keys.into_iter().map(|key| key.0.clone()).collect::<BTreeSet<_>>();
    let (ours, theirs) = (names(before.keys().chain(after.keys()).collect()), names(pushed.keys().collect()));
    found.extend(ours.symmetric_difference(&theirs).map(|name| format!("{name} is on one side alone")));
    found
}

#[test]
fn a_collector_receives_what_a_scrape_tells() {
    privileged!();
    let mut collector = match Collector::start() {
        Ok(collector) => collector,
        Err(reason) => skip!("{reason}"),
    };
    let port = free_port();
    let daemon = collector
        .options()
        .set("metrics.compatible=false")
        .set(&format!("metrics.listen=[\"127.0.0.1:{port}\"]"))
        .start();
    let client = daemon.client();
    let layouts = tempfile::tempdir().unwrap();
    let image = images::oci(layouts.path(), "v1", &Config::command(&["hold"]));
    let container = json!({"name": "main", "image": image, "resources": pods::resources()});
    client.run_pod(&pods::once("/otlp/still", container));
    client.run_pod(&pods::shell("/otlp/busy", "while :; do /bin/true; sleep 0.1; done"));
    // what other tests do to this host meanwhile makes differences; a reading without is looked for
    let deadline = Instant::now() + PATIENCE;
    let (time, points) = loop {
        let before = scrape(port);
        let (time, points) = collector.reading_after(now());
        let after = scrape(port);
        let found = differences(&before, &points, &after);
        if found.is_empty() {
            println!("{} series of {} metrics, the same in both", points.len(), {
                points.iter().map(|point| &point.name).collect::<BTreeSet<_>>().len()
            });
            break (time, points);
        }
        assert!(Instant::now() < deadline, "{} differences:\n{:.4000}", found.len(), found.join("\n"));
    };
    assert!(points.len() > 500, "{} points only", points.len());
    resources_are_right(&points, &client);
    sums_grow(&mut collector, time, &points, &client.instance("/otlp/busy").id);
    let own = scrape(port);
    let delivered = |outcome: &str| {
        let labels = [("signal", "metrics"), ("outcome", outcome)].map(|(name, value)| (name.into(), value.into()));
        own.get(&("agentd_self_otlp_requests_total".into(), String::new(), labels.into())).map_or(0.0, |found| found.1)
    };
    assert!(delivered("sent") >= 2.0);
    assert_eq!((delivered("refused"), delivered("expired"), delivered("dropped")), (0.0, 0.0, 0.0));
    assert!(collector.rotel.alive(), "rotel ended:\n{}", collector.rotel.log());
    drop(daemon);
}

/// Each resource has the attributes of the conventions, and the right ones.
fn resources_are_right(points: &[Point], client: &agentd_tests::Client) {
    let mut host = Labels::from([("host.name".to_owned(), "node-of-the-test".to_owned())]);
    if let Ok(id) = std::fs::read_to_string("/etc/machine-id") {
        host.insert("host.id".to_owned(), id.trim().to_owned());
    }
    for point in points {
        for (name, value) in &host {
            assert_eq!(point.resource.get(name), Some(value), "{}: {:?}", point.name, point.resource);
        }
    }
    for pod in ["/otlp/still", "/otlp/busy"] {
        let instance = client.instance(pod).id;
        let service = pod.trim_start_matches('/');
        let mut expected = host.clone();
        for (name, value) in [
            ("container.id", format!("{instance}/main/1")),
            ("container.name", "main".to_owned()),
            ("container.runtime.name", "agentd".to_owned()),
            ("service.name", service.to_owned()),
            ("service.namespace", "default".to_owned()),
            ("service.instance.id", instance.clone()),
        ] {
            expected.insert(name.to_owned(), value);
        }
        let of_container: Vec<_> =
            points.iter().filter(|point| point.scope() == format!("{instance}/main/1")).collect();
        assert!(of_container.len() > 50, "{} points of {pod}", of_container.len());
        for point in &of_container {
            let mut found = point.resource.clone();
            let image = found.remove("container.image.name");
            let tags = found.remove("container.image.tags");
            assert_eq!(image.is_some(), pod == "/otlp/still", "{found:?}");
            if let Some(image) = image {
                assert!(!image.is_empty() && !image.ends_with(":v1"), "{image}");
                assert!(tags.as_deref().is_some_and(|tags| tags.contains("v1")), "{tags:?}");
            }
            assert_eq!(found, expected, "{}", point.name);
        }
        let of_pod: Vec<_> = points.iter().filter(|point| point.scope() == instance).collect();
        assert!(of_pod.iter().any(|point| point.name == "agentd_pod_containers" && point.value == 1.0), "{of_pod:?}");
        for point in of_pod {
            assert_eq!(point.resource.get("service.name").map(String::as_str), Some(service), "{}", point.name);
        }
    }
}

/// No sum steps back, their start stays, and those of a container that works grow.
fn sums_grow(collector: &mut Collector, time: u64, points: &[Point], busy: &str) {
    let (_, later) = collector.reading_after(time + 1);
    let later: BTreeMap<Key, Point> = later.into_iter().map(|point| (point.key(), point)).collect();
    let mut grown = BTreeSet::new();
    // other tests make links of the same names again
    let of_others = |point: &Point| point.name.starts_with("system_network_");
    for point in points.iter().filter(|point| point.kind != "gauge" && !of_others(point)) {
        let Some(then) = later.get(&point.key()) else { continue };
        assert!(then.value >= point.value, "{:?} fell from {} to {}", point.key(), point.value, then.value);
        assert_eq!(then.start, point.start, "the start of {:?}", point.key());
        if then.value > point.value && point.scope() == format!("{busy}/main/1") {
            grown.insert(point.name.clone());
        }
    }
    for name in ["container_cpu_time_seconds_total", "container_paging_faults_total"] {
        assert!(grown.contains(name), "{name} did not grow, but {grown:?}");
    }
    println!("grown meanwhile: {}", grown.len());
}

#[test]
fn the_trace_of_a_pods_start_arrives_whole() {
    privileged!();
    let mut collector = match Collector::start() {
        Ok(collector) => collector,
        Err(reason) => skip!("{reason}"),
    };
    let mut daemon = collector.options().start();
    let client = daemon.client();
    let layouts = tempfile::tempdir().unwrap();
    let image = images::oci(layouts.path(), "v1", &Config::command(&["hold"]));
    let mut pod = pods::sleeper("/otlp/traced");
    let imaged = json!({"name": "imaged", "image": image, "resources": pods::resources()});
    pod["containers"].as_array_mut().unwrap().push(imaged);
    client.run_pod(&pod);
    // one that a caller's trace goes on with
    let body = pods::sleeper("/otlp/called").to_string();
    let traceparent = format!("traceparent: {CALLER}");
    let headers = ["content-type: application/json", &traceparent];
    let call = wire::request("POST", "/v1/pods?wait=running&timeout=60", &headers, &body);
    assert_eq!(wire::exchange(&daemon.socket(), &call).unwrap().status, 201);
    let instance = client.instance("/otlp/traced").id;
    let spans = arrived(&mut collector, "pod.start", 2);
    let root = spans.iter().find(|span| span.attributes.get("agentd.pod").is_some_and(|pod| pod == "/otlp/traced"));
    let root = root.expect("the pod's start").clone();
    let attribute = |span: &Span, name: &str| span.attributes.get(name).cloned().unwrap_or_default();
    assert_eq!((attribute(&root, "agentd.instance"), root.parent.as_str()), (instance.clone(), ""));
    for (name, value) in
        [("service.name", "agentd"), ("host.name", "node-of-the-test"), ("service.instance.id", daemon.instance())]
    {
        assert_eq!(root.resource.get(name).map(String::as_str), Some(value), "{name}");
    }
    // children are told when they end, and the start's own last of all
    let below = |parent: &Span, name: &str| -> Vec<Span> {
        spans.iter().filter(|span| span.parent == parent.id && span.name == name).cloned().collect()
    };
    for span in spans.iter().filter(|span| span.trace == root.trace) {
        let parent = spans.iter().find(|parent| parent.id == span.parent);
        assert!(span.id == root.id || parent.is_some(), "{} hangs in the air", span.name);
        if let Some(parent) = parent {
            let within = parent.start <= span.start && span.end <= parent.end;
            assert!(within, "{} is not within {}: {span:?} {parent:?}", span.name, parent.name);
        }
    }
    assert_eq!(below(&root, "sandbox.claim").len(), 1, "{spans:#?}");
    let set_up = below(&root, "sandbox.set_up");
    assert_eq!(set_up.len(), 1);
    assert_eq!(below(&set_up[0], "network.attach").len(), 1);
    let containers = below(&root, "container.start");
    let names: BTreeSet<_> = containers.iter().map(|span| attribute(span, "container.name")).collect();
    assert_eq!(names, BTreeSet::from(["imaged".to_owned(), "main".to_owned()]));
    for container in &containers {
        let isolate = below(container, "launch.isolate");
        assert_eq!((isolate.len(), below(container, "launch.hand_over").len()), (1, 1), "{container:?}");
        let isolators: Vec<_> =
            below(&isolate[0], "isolator.prepare").iter().map(|span| attribute(span, "agentd.isolator")).collect();
        let distinct: BTreeSet<_> = isolators.iter().collect();
        assert!(isolators.len() > 5 && distinct.len() == isolators.len(), "{isolators:?}");
        let pulls = below(container, "image.pull");
        assert_eq!(pulls.len(), usize::from(attribute(container, "container.name") == "imaged"), "{pulls:?}");
    }
    // the request that began it is a trace of its own, with a link; that of a caller goes on with the caller's
    let requests: Vec<_> = spans.iter().filter(|span| span.name == "POST /v1/pods").collect();
    let linked: Vec<_> = requests.iter().filter(|request| root.links.contains(&request.id)).collect();
    assert!(linked.len() == 1 && linked[0].trace != root.trace, "{:?} {requests:?}", root.links);
    let called =
        spans.iter().find(|span| attribute(span, "agentd.pod") == "/otlp/called").expect("the other pod's start");
    let request = spans.iter().find(|span| span.id == called.parent).expect("its request");
    assert_eq!((called.trace.as_str(), request.trace.as_str()), (CALLERS_TRACE, CALLERS_TRACE));
    assert_eq!((request.name.as_str(), request.parent.as_str()), ("POST /v1/pods", CALLERS_SPAN));
    // the histogram of starts leads to the trace
    until("a point leads to the trace", PATIENCE, || {
        std::thread::sleep(Duration::from_millis(50));
        let (_, points) = collector.received().readings.last_key_value()?;
        let starts = points.iter().filter(|point| point.name == "agentd_pod_start_duration_seconds_count");
        let mut exemplars = starts.flat_map(|point| &point.exemplars);
        exemplars
            .any(|exemplar| [&root.trace, CALLERS_TRACE].iter().any(|id| exemplar["traceId"] == **id))
            .then_some(())
    });
    // what belongs to nothing makes no trace, after a restart neither
    daemon.kill9();
    daemon.restart();
    let spans = arrived(&mut collector, "recovery", 2);
    let known = |name: &str| {
        let request = name.split(' ').next().is_some_and(|method| ["GET", "POST", "PUT", "DELETE"].contains(&method));
        request || ["pod.start", "container.start", "recovery"].contains(&name)
    };
    let stray: Vec<_> = spans.iter().filter(|span| span.parent.is_empty() && !known(&span.name)).collect();
    assert!(stray.is_empty(), "{} traces of a lone step, the first {:?}", stray.len(), stray[0]);
    let ids: BTreeSet<_> = spans.iter().map(|span| &span.id).collect();
    assert_eq!(ids.len(), spans.len(), "a span was received twice");
}

/// All spans once there are so many of a name, and what was delivered with them.
fn arrived(collector: &mut Collector, name: &str, count: usize) -> Vec<Span> {
    until(&format!("{count} spans {name} have been received"), PATIENCE, || {
        std::thread::sleep(Duration::from_millis(50));
        let spans = &collector.received().spans;
        (spans.iter().filter(|span| span.name == name).count() >= count).then_some(())
    });
    // spans that ended before it were delivered before or with it; the collector may have passed them on in another request
    let mut seen = 0;
    let mut since = Instant::now();
    until("nothing more arrives", PATIENCE, || {
        std::thread::sleep(Duration::from_millis(100));
        let spans = &collector.received().spans;
        if spans.len() != seen {
            (seen, since) = (spans.len(), Instant::now());
        }
        (since.elapsed() > Duration::from_secs(1)).then(|| spans.clone())
    })
}
