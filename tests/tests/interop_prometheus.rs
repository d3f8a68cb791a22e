//! Debian's Prometheus scrapes a daemon with a hundred containers, with the alert rules of `packaging/` loaded, once in
//! OpenMetrics and once in text; and promtool reads what is served.
//!
//! Twenty seconds of it, or five minutes with `AGENTD_TESTS_LONG` in the environment.

#![allow(clippy::float_cmp, reason = "what is compared so are whole numbers")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentd_tests::exposition::{Exposition, Sample};
use agentd_tests::peer::{Peer, escaped, free_port, get, header, installed};
use agentd_tests::{Client, Daemon, eventually, pods, privileged, skip, until};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_mins(1);
const TEXT: &str = "text/plain;version=0.0.4";
const PODS: usize = 50;
const CONTAINERS: [&str; 2] = ["main", "side"];

/// What a scraper asked for and what it got.
#[derive(Debug, Clone)]
struct Exchange {
    accept: String,
    content_type: String,
    answer: String,
}

/// A listener of the test's: what it hears is answered by `answer`, one request on each connection. It lasts as long as the
/// test's process.
fn serve(answer: impl Fn(&str, &[u8]) -> Vec<u8> + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).is_ok_and(|read| read > 0) {}
                let mut body = vec![0; header(&head, "content-length").parse().unwrap_or(0)];
                if reader.read_exact(&mut body).is_ok() {
                    // a scraper that has gone is its own affair
                    let _ = reader.get_mut().write_all(&answer(&head, &body));
                }
            });
        }
    });
    port
}

/// Passes scrapes on to the daemon's listener, asking for text whatever was asked for, and keeps what went on.
fn text_only(port: u16) -> (u16, Arc<Mutex<Vec<Exchange>>>) {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let exchanges = Arc::clone(&kept);
    let relay = serve(move |head, _| {
        let request =
            format!("GET /metrics HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\naccept: {TEXT}\r\nconnection: close\r\n\r\n");
        let mut bytes = Vec::new();
        if let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            let _ = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_end(&mut bytes));
        }
        let text = String::from_utf8_lossy(&bytes);
        let answered = text.split("\r\n\r\n").next().unwrap_or_default();
        exchanges.lock().unwrap().push(Exchange {
            accept: header(head, "accept").to_owned(),
            content_type: header(answered, "content-type").to_owned(),
            answer: answered.lines().next().unwrap_or_default().to_owned(),
        });
        bytes
    });
    (relay, kept)
}

/// A collector that takes everything and keeps nothing, so that traces are made and exemplars are there.
fn collector() -> u16 {
    serve(|_, _| {
        b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            .into()
    })
}

/// A Prometheus that scrapes every two seconds.
struct Prometheus {
    peer: Peer,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    fn start(jobs: &[(&str, u16)], rules: &Path) -> Self {
        let folder = tempfile::Builder::new().prefix("agentd-test-prometheus-").tempdir_in("/dev/shm");
        let folder = folder.or_else(|_| tempfile::tempdir()).unwrap();
        let mut config = format!(
            "global: {{scrape_interval: 2s, scrape_timeout: 2s, evaluation_interval: 2s}}\nrule_files: ['{}']\n\
             scrape_configs:\n",
            rules.display()
        );
        for (job, port) in jobs {
            let _ = writeln!(config, "- job_name: {job}\n  static_configs: [{{targets: ['127.0.0.1:{port}']}}]");
        }
        std::fs::write(folder.path().join("prometheus.yml"), config).unwrap();
        loop {
            let port = free_port();
            let mut command = Command::new("prometheus");
            command.current_dir(folder.path()).args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"]);
            command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
            command.arg("--enable-feature=exemplar-storage");
            let mut peer = Peer::start(command, &folder.path().join("prometheus.log"));
            let ready = || get(port, "/-/ready", &[]).is_ok_and(|answer| answer.status == 200);
            if eventually(PATIENCE, || !peer.alive() || ready()) && peer.alive() {
                return Self { peer, port, _folder: folder };
            }
            // another process may take the port between its choice and its use
            assert!(peer.log().contains("address already in use"), "Prometheus does not start:\n{}", peer.log());
        }
    }

    #[track_caller]
    fn api(&self, path: &str) -> Value {
        let answer = get(self.port, &format!("/api/v1/{path}"), &[]).unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.json()["data"].clone()
    }

    /// The samples that a query finds now: labels and value.
    #[track_caller]
    fn query(&self, query: &str) -> Vec<Sample> {
        let found = self.api(&format!("query?query={}", escaped(query)));
        let found = found["result"].as_array().unwrap_or_else(|| panic!("{query}: {found}"));
        found
            .iter()
            .map(|one| {
                let labels: BTreeMap<String, String> = serde_json::from_value(one["metric"].clone()).unwrap();
                Sample {
                    name: labels.get("__name__").cloned().unwrap_or_default(),
                    labels,
                    value: one["value"][1].as_str().unwrap().parse().unwrap(),
                    exemplar: None,
                }
            })
            .collect()
    }

    /// The one value that a query finds; none where it finds nothing.
    #[track_caller]
    fn value(&self, query: &str) -> Option<f64> {
        let found = self.query(query);
        assert!(found.len() < 2, "{query} found {found:?}");
        found.first().map(|sample| sample.value)
    }

    /// Lines of its log that are no mere information.
    fn complaints(&self) -> Vec<String> {
        self.peer.log().lines().filter(|line| !line.contains("level=info")).map(ToOwned::to_owned).collect()
    }
}

/// Starts the pods; every tenth does something each second, the others sleep.
fn start_pods(client: &Client) {
    for number in 0..PODS {
        let id = format!("/many/p{number:02}");
        let line = if number % 10 == 0 { "while :; do /bin/true; sleep 1; done" } else { "exec sleep 1000000" };
        let container = |name: &str| {
            json!({"name": name, "exec": {"command": {"shell": line}}, "resources": {"cpus": 0.01, "mem": 32, "disk": 10},
                "lifecycle": {"killGracePeriodSeconds": 0.1}})
        };
        let mut pod = pods::sleeper(&id);
        pod["containers"] = CONTAINERS.map(container).into();
        client.run_pod(&pod);
    }
}

/// A daemon with room for all pods that is scraped on the port.
fn daemon(port: u16) -> Daemon {
    Daemon::with()
        .set("resources.cpus=64")
        .set("resources.memory_mib=65536")
        .set("resources.disk_mib=65536")
        .set(&format!("metrics.listen=[\"127.0.0.1:{port}\"]"))
        .set(&format!("otlp.endpoint=http://127.0.0.1:{}", collector()))
        .start()
}

fn rules() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.join("packaging/prometheus/agentd-alerts.yml");
    path.is_file().then_some(path)
}

#[test]
fn a_hundred_containers_are_scraped_without_an_error() {
    privileged!();
    if !installed("prometheus") {
        skip!("prometheus is not installed (Debian package prometheus)");
    }
    let rules = rules().expect("the alert rules are in packaging/prometheus");
    let (wanted, limit) = match std::env::var_os("AGENTD_TESTS_LONG") {
        Some(_) => (150, Duration::from_mins(8)),
        None => (8, PATIENCE),
    };
    let port = free_port();
    let daemon = daemon(port);
    let client = daemon.client();
    start_pods(&client);
    let (relay, exchanges) = text_only(port);
    let prometheus = Prometheus::start(&[("agentd", port), ("agentd-text", relay)], &rules);
    // begin to count once every container has had its first second
    until("it has scraped twice", PATIENCE, || {
        let scrapes = prometheus.query("count_over_time(scrape_samples_scraped[1m])");
        (scrapes.len() == 2 && scrapes.iter().all(|job| job.value >= 2.0)).then_some(())
    });
    let begun = std::time::SystemTime::now();
    let window = || format!("[{}s]", begun.elapsed().unwrap().as_secs().max(1));
    let enough = until("it has scraped often enough", limit, || {
        std::thread::sleep(Duration::from_millis(500));
        let scrapes = prometheus.query(&format!("count_over_time(up{}) >= {wanted}", window()));
        (scrapes.len() == 2).then_some(scrapes)
    });
    println!("scrapes: {:?}", enough.iter().map(|job| (job.label("job"), job.value)).collect::<Vec<_>>());
    scrapes_were_good(&prometheus, &window());
    every_container_is_there(&prometheus, &client);
    both_formats_were_had(&prometheus, &exchanges, port);
    rules_are_sound(&prometheus);
    an_exemplar_leads_to_a_trace(&prometheus);
    // a container that goes and another of the same name are two, and no scrape is worse for it
    let old = client.instance("/many/p07").id;
    client.rm("/many/p07");
    client.run_pod(&pods::sleeper("/many/p07"));
    let new = client.instance("/many/p07").id;
    assert_ne!(old, new);
    until("the new container has been scraped", PATIENCE, || {
        let query = format!("container_memory_usage_bytes{{job=\"agentd\",id=\"{new}/main/1\"}}");
        (prometheus.query(&query).len() == 1).then_some(())
    });
    assert!(prometheus.query(&format!("min_over_time(up{}) < 1", window())).is_empty());
    assert_eq!(prometheus.complaints(), [] as [String; 0]);
    drop(prometheus);
    drop(daemon);
}

/// No scrape failed or came near its time-out, and each found what the others did.
fn scrapes_were_good(prometheus: &Prometheus, window: &str) {
    let over = |what: &str, of: &str, job: &str| {
        let query = format!("{what}_over_time({of}{{job=\"{job}\"}}{window})");
        prometheus.value(&query).unwrap_or_else(|| panic!("nothing by {query}"))
    };
    for job in ["agentd", "agentd-text"] {
        assert_eq!(over("min", "up", job), 1.0, "{job} was down:\n{}", prometheus.peer.log());
        let (least, most) = (over("min", "scrape_samples_scraped", job), over("max", "scrape_samples_scraped", job));
        println!("{job}: {least} to {most} samples in a scrape");
        // what other tests do to this host's interfaces and mounts is among them
        assert!(most - least <= 0.02 * most, "{job}: between {least} and {most} samples");
        let (average, longest) =
            (over("avg", "scrape_duration_seconds", job), over("max", "scrape_duration_seconds", job));
        println!("{job}: a scrape took {:.0} ms on average, {:.0} at most", average * 1e3, longest * 1e3);
        // one that times out is an error above; this is the daemon of a test, beside other tests
        assert!(average < 1.0, "{job}: a scrape took {average} s on average");
    }
    // of the containers alone: a histogram comes with its first observation, and nothing else may change
    let of_pods = "count({job=\"agentd\",pod=~\"/many/.+\"})";
    let range = |what: &str| {
        prometheus.value(&format!("{what}_over_time({of_pods}{}:2s])", window.trim_end_matches(']'))).unwrap()
    };
    let (least, most) = (range("min"), range("max"));
    println!("containers and pods: {least} to {most} series");
    assert!(most - least <= 0.02 * most, "containers: between {least} and {most} series");
    let targets = prometheus.api("targets");
    for target in targets["activeTargets"].as_array().unwrap() {
        assert_eq!((&target["health"], &target["lastError"]), (&json!("up"), &json!("")), "{target}");
    }
}

fn every_container_is_there(prometheus: &Prometheus, client: &Client) {
    let mut expected = BTreeSet::new();
    for number in 0..PODS {
        let pod = format!("/many/p{number:02}");
        let instance = client.instance(&pod).id;
        for container in CONTAINERS {
            let id = format!("{instance}/{container}/1");
            expected.insert([
                id,
                format!("{instance}/{container}"),
                pod.clone(),
                container.to_owned(),
                "default".into(),
            ]);
        }
    }
    for name in [
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "container_start_time_seconds",
        "container_spec_memory_limit_bytes",
        "container_threads",
        "agentd_container_memory_limit_bytes",
        "agentd_container_processes",
        "container_uptime_seconds",
    ] {
        let found = prometheus.query(&format!("{name}{{job=\"agentd\",container!=\"\"}}"));
        assert_eq!(found.len(), expected.len(), "{name}");
        let labels = ["id", "name", "pod", "container", "namespace"];
        let found: BTreeSet<_> =
            found.iter().map(|sample| labels.map(|label| sample.label(label).to_owned())).collect();
        assert_eq!(found, expected, "{name}");
    }
    let busy = prometheus.query("rate(container_cpu_usage_seconds_total{job=\"agentd\",pod=\"/many/p00\"}[15s]) > 0");
    assert_eq!(busy.len(), CONTAINERS.len(), "{busy:?}");
    let limits = prometheus.query("container_spec_memory_limit_bytes{job=\"agentd\",pod=\"/many/p01\"}");
    assert!(limits.iter().all(|sample| sample.value == 32.0 * 1_048_576.0), "{limits:?}");
}

/// Prometheus asks for OpenMetrics and gets it; who asks for text gets that, and the same series.
fn both_formats_were_had(prometheus: &Prometheus, exchanges: &Mutex<Vec<Exchange>>, port: u16) {
    let exchanges = exchanges.lock().unwrap().clone();
    for exchange in &exchanges {
        assert!(exchange.answer.contains(" 200 "), "{exchange:?}");
        assert!(
            exchange.content_type.starts_with("text/plain") && exchange.content_type.contains("version=0.0.4"),
            "{exchange:?}"
        );
    }
    let accept = exchanges.last().unwrap().accept.clone();
    let open = get(port, "/metrics", &[&format!("accept: {accept}")]).unwrap();
    assert!(open.header("content-type").starts_with("application/openmetrics-text"), "{accept}: {}", open.head);
    assert!(open.body.ends_with("# EOF\n"), "{accept}");
    Exposition::read(&open.body).unwrap();
    // only OpenMetrics has units, so Prometheus has read it
    let unit = |port: u16| {
        let target = escaped(&format!("{{instance=\"127.0.0.1:{port}\"}}"));
        prometheus.api(&format!("targets/metadata?match_target={target}&metric=container_cpu_time_seconds"))[0].clone()
    };
    let told = unit(port);
    assert_eq!((&told["unit"], &told["type"]), (&json!("seconds"), &json!("counter")), "{told}");
    // of the host other tests make and remove interfaces and mounts, and `_created` stands in OpenMetrics alone
    until("both formats have the same series", PATIENCE, || {
        let series = "__name__!~\".+_created|up|scrape_.+|node_.+|system_.+|agentd_host_.+|agentd:.+\"";
        let only = |one: &str, other: &str| {
            format!("{{job=\"{one}\",{series}}} unless ignoring(job,instance) {{job=\"{other}\",{series}}}")
        };
        let differ = |one: &str, other: &str| prometheus.query(&format!("count by (__name__) ({})", only(one, other)));
        (differ("agentd", "agentd-text").is_empty() && differ("agentd-text", "agentd").is_empty()).then_some(())
    });
}

fn rules_are_sound(prometheus: &Prometheus) {
    let rules = prometheus.api("rules");
    let mut names = Vec::new();
    for group in rules["groups"].as_array().unwrap() {
        for rule in group["rules"].as_array().unwrap() {
            assert_eq!(rule["health"], "ok", "{rule}");
            assert!(rule["lastError"].as_str().unwrap_or_default().is_empty(), "{rule}");
            names.push(rule["name"].as_str().unwrap().to_owned());
        }
    }
    assert!(names.len() > 10, "{names:?}");
    assert!(prometheus.query("agentd:container_memory_working_set:ratio{job=\"agentd\"}").len() >= 100);
    let firing: BTreeSet<String> = prometheus
        .query("ALERTS{alertstate=\"firing\"}")
        .iter()
        .map(|alert| format!("{} of {}", alert.label("alertname"), alert.label("pod")))
        .collect();
    println!("{} rules; firing: {firing:?}", names.len());
    assert!(firing.iter().all(|alert| !alert.starts_with("Agentd")), "the daemon is well: {firing:?}");
}

fn an_exemplar_leads_to_a_trace(prometheus: &Prometheus) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let query = "agentd_container_start_duration_seconds_bucket";
    let found = prometheus.api(&format!("query_exemplars?query={query}&start={}&end={}", now - 3600, now + 60));
    let found = found.as_array().unwrap();
    assert!(!found.is_empty(), "no exemplar");
    for exemplar in found.iter().flat_map(|series| series["exemplars"].as_array().unwrap()) {
        let id = exemplar["labels"]["trace_id"].as_str().unwrap_or_default();
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{exemplar}");
    }
}

/// What promtool finds fault with: name of the metric and the fault.
fn faults(text: &str) -> BTreeSet<(String, String)> {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let faults: BTreeSet<_> = said
        .lines()
        .map(|line| line.split_once(' ').unwrap_or_else(|| panic!("promtool says: {line}")))
        .map(|(name, fault)| (name.to_owned(), fault.to_owned()))
        .collect();
    // 3: read, and found fault with
    let expected = if faults.is_empty() { 0 } else { 3 };
    assert_eq!(output.status.code(), Some(expected), "{said}");
    faults
}

/// Whether a fault is one of a name that node_exporter has, or had later than Debian's: it takes the kernel's spelling, and
/// counts the bits of the entropy pool.
fn is_of_node_exporter(name: &str, fault: &str) -> bool {
    let spelling = fault == "metric names should be written in 'snake_case' not 'camelCase'";
    let kernel = ["node_memory_", "node_netstat_", "node_sockstat_"].iter().any(|prefix| name.starts_with(prefix));
    let bits = fault == "use base unit \"bytes\" instead of \"bits\"";
    (spelling && kernel) || (bits && name.starts_with("node_entropy_") && name.ends_with("_bits"))
}

/// What prometheus-node-exporter tells of this host.
fn node_exporter() -> Option<String> {
    installed("prometheus-node-exporter").then_some(())?;
    let folder = tempfile::tempdir().unwrap();
    loop {
        let port = free_port();
        let mut command = Command::new("prometheus-node-exporter");
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let mut peer = Peer::start(command, &folder.path().join("log"));
        let mut told = None;
        let answered = eventually(PATIENCE, || {
            told = get(port, "/metrics", &[]).ok().filter(|answer| answer.status == 200);
            told.is_some() || !peer.alive()
        });
        match told {
            Some(answer) if answered => return Some(answer.body),
            _ => assert!(peer.log().contains("address already in use"), "node_exporter: {}", peer.log()),
        }
    }
}

#[test]
fn promtool_finds_fault_with_names_of_node_exporter_alone() {
    privileged!();
    if !installed("promtool") {
        skip!("promtool is not installed (Debian package prometheus)");
    }
    let port = free_port();
    let daemon = daemon(port);
    let client = daemon.client();
    // something of everything: programs, disk, loopback, one that has ended
    let line = "i=0; while [ $i -lt 20 ]; do /bin/true; i=$((i+1)); done; exec sleep 1000000";
    client.run_pod(&pods::shell("/tool/busy", line));
    client.run_pod(&pods::shell(
        "/tool/disk",
        "dd if=/dev/zero of=file bs=4096 count=64 oflag=sync 2>&1; exec sleep 1000000",
    ));
    client.run_to_end(&pods::shell("/tool/gone", "exit 3"));
    // who asks right after another gets what that one got, which may be from before the pods
    let (text, read) = until("the pods are in the metrics", PATIENCE, || {
        let text = get(port, "/metrics", &[&format!("accept: {TEXT}")]).unwrap();
        assert_eq!(text.status, 200);
        let read = Exposition::read(&text.body).unwrap();
        let there = |pod: &str| read.of("container_cpu_usage_seconds_total", &[("pod", pod)]).next().is_some();
        ["/tool/busy", "/tool/disk", "/tool/gone"].into_iter().all(there).then_some((text, read))
    });
    for prefix in ["container_", "agentd_container_", "agentd_pod_", "agentd_self_", "system_", "node_", "machine_"] {
        assert!(read.kinds.keys().any(|name| name.starts_with(prefix)), "nothing begins with {prefix}");
    }
    let ours = faults(&text.body);
    println!("promtool: {} faults in {} metrics", ours.len(), read.kinds.len());
    let wrong: Vec<_> = ours.iter().filter(|(name, fault)| !is_of_node_exporter(name, fault)).collect();
    assert!(wrong.is_empty(), "promtool finds fault with other names than node_exporter's: {wrong:?}");
    match node_exporter() {
        None => println!("not held against node_exporter itself, which is not installed"),
        Some(theirs) => {
            let known = Exposition::read(&theirs).unwrap().kinds;
            let theirs = faults(&theirs);
            let more: Vec<_> =
                ours.iter().filter(|fault| known.contains_key(&fault.0) && !theirs.contains(fault)).collect();
            assert!(more.is_empty(), "node_exporter has these without a fault: {more:?}");
            // names of newer node_exporters: docs/metrics-host.md
            let newer = ["node_netstat_TcpExt_TCPOFOQueue", "node_netstat_TcpExt_TCPRcvQDrop"];
            let kernels =
                ["node_memory_Unaccepted_bytes", "node_memory_GPUActive_bytes", "node_memory_GPUReclaim_bytes"];
            for (name, _) in ours.difference(&theirs) {
                assert!(
                    newer.contains(&name.as_str()) || kernels.contains(&name.as_str()),
                    "{name} is not node_exporter's"
                );
            }
            println!("node_exporter itself: {} faults", theirs.len());
        }
    }
}

#[test]
fn faults_of_other_names_are_not_overlooked() {
    let spelling = "metric names should be written in 'snake_case' not 'camelCase'";
    assert!(is_of_node_exporter("node_memory_MemFree_bytes", spelling));
    assert!(is_of_node_exporter("node_entropy_available_bits", "use base unit \"bytes\" instead of \"bits\""));
    for (name, fault) in [
        ("agentd_memFree_bytes", spelling),
        ("node_memFree_bytes", spelling),
        ("node_memory_MemFree_bytes", "no help text"),
        ("agentd_entropy_bits", "use base unit \"bytes\" instead of \"bits\""),
    ] {
        assert!(!is_of_node_exporter(name, fault), "{name}");
    }
    if installed("promtool") {
        let found = faults(
            "# HELP good_bytes Good\n# TYPE good_bytes gauge\ngood_bytes 1\n# TYPE badName counter\nbadName 2\n",
        );
        assert!(found.iter().all(|(name, _)| name == "badName") && found.len() >= 2, "{found:?}");
    }
}

#[test]
fn promtool_reads_the_alert_rules() {
    if !installed("promtool") {
        skip!("promtool is not installed (Debian package prometheus)");
    }
    let output = Command::new("promtool").args(["check", "rules"]).arg(rules().unwrap()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}
