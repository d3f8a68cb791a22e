//! How a daemon serves what it knows: while pods come and go, to clients with certificates, and of its own profiles.

#![allow(clippy::float_cmp, reason = "the numbers that are compared are whole")]

mod remote;
mod watched;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use agentd_tests::{Client, Daemon, Options, binary, eventually, pods, privileged, skip, until};
use remote::{Answer, Pki, free_port};
use serde_json::{Value, json};
use watched::{Growing, PATIENCE, Scrape, signals, sized};

/// How long pods come and go, at least and at most: a busy host takes longer for the scrapes that are wanted.
const CHURN: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(30);
/// How many scrapes are wanted.
const SCRAPES: u32 = 80;
/// Between two scrapes.
const EACH: Duration = Duration::from_millis(50);
/// Each so many a scrape is read strictly.
const STRICT: u32 = 12;

/// Figures of the host that its kernel itself takes back now and then, and those of links whose name another pod gets.
fn may_fall(series: &str) -> bool {
    let time = series.starts_with("node_cpu_") || series.starts_with("system_cpu_");
    (time && (series.contains("=\"iowait\"") || series.contains("=\"idle\""))) || series.contains("=\"ag-")
}

#[test]
fn scrapes_while_pods_come_and_go_are_whole_and_nothing_falls() {
    privileged!();
    let daemon = Daemon::with().set("observe.tombstone_seconds=2").start();
    let client = daemon.client();
    let mut again = sized(pods::shell("/g/again", "/bin/true; sleep 0.3; exit 1"), 0.05, 32);
    again["agentd"] = json!({"restart": "always", "isolatedNetwork": true});
    again["scheduling"] = json!({"backoff": {"backoff": 0.1, "backoffFactor": 1.0, "maxLaunchDelay": 1}});
    client.run_pod(&again);
    client.run_pod(&sized(pods::shell("/g/stays", "while :; do /bin/true; sleep 0.01; done"), 0.1, 32));
    let over = AtomicBool::new(false);
    let (scrapes, runs) = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3)
            .map(|worker| {
                let (client, over) = (&client, &over);
                scope.spawn(move || {
                    let mut runs = 0;
                    while !over.load(Ordering::Relaxed) {
                        let id = format!("/g/w{worker}-{runs}");
                        let mut pod = sized(pods::shell(&id, "/bin/true; /bin/false; exit 0"), 0.05, 32);
                        if worker == 0 {
                            pod["networks"] = json!([{"mode": "container"}]);
                            pod["agentd"] = json!({"restart": "never"});
                        }
                        client.run_to_end(&pod);
                        runs += 1;
                    }
                    runs
                })
            })
            .collect();
        let (texts, taken_texts) = mpsc::channel();
        let asking = scope.spawn({
            let client = &client;
            move || {
                let (start, mut slowest) = (Instant::now(), Duration::ZERO);
                for number in 0_u32.. {
                    let begun = Instant::now();
                    let taken = taken(client, number, &mut slowest);
                    let enough = start.elapsed() > CHURN && number >= SCRAPES || start.elapsed() > LONGEST;
                    if texts.send(taken).is_err() || enough {
                        break;
                    }
                    std::thread::sleep(EACH.saturating_sub(begun.elapsed()));
                }
                slowest
            }
        });
        let (mut growing, mut scrapes, mut wrong) = (Growing::default(), 0, Vec::new());
        for taken in taken_texts {
            match taken {
                Ok(Some(text)) => {
                    wrong.extend(growing.step(&text).into_iter().filter(|series| !may_fall(series)));
                    // the strict reader takes longer than there is between two scrapes
                    if scrapes % STRICT == 0 {
                        wrong.extend(Scrape::read(&text, false).err());
                    }
                }
                Ok(None) => {}
                Err(error) => wrong.push(error),
            }
            scrapes += 1;
            if !wrong.is_empty() {
                break;
            }
        }
        let slowest = asking.join().expect("it scrapes");
        println!("the slowest scrape took {slowest:?}");
        over.store(true, Ordering::Relaxed);
        let runs: u32 = workers.into_iter().map(|worker| worker.join().expect("pods run")).sum();
        assert!(wrong.is_empty(), "scrape {scrapes}:\n{}", wrong.join("\n"));
        (scrapes, runs)
    });
    println!("{scrapes} scrapes while {runs} pods came and went");
    assert!(scrapes >= SCRAPES / 2 && runs >= 10, "{scrapes} scrapes, {runs} pods");
    let last = Scrape::of(&client);
    let own =
        |name: &str, labels: &[(&str, &str)]| last.sum(&format!("agentd_self_{name}"), labels).unwrap_or_default();
    let gatherings = own("scrapes_total", &[("outcome", "done")]).max(1.0);
    let (wall, cpu) = (own("scrape_time_seconds_total", &[]), own("scrape_cpu_time_seconds_total", &[]));
    println!("{:.1} ms and {:.1} ms of CPU for each", wall / gatherings * 1e3, cpu / gatherings * 1e3);
    assert_eq!(last.sum("agentd_self_scrapes_total", &[("outcome", "late")]), Some(0.0));
    assert_eq!(last.sum("agentd_self_unpublished_containers_total", &[]), Some(0.0));
    assert_eq!(last.sum("agentd_self_events_total", &[("outcome", "unknown")]), Some(0.0));
    for pod in ["/g/again", "/g/stays"] {
        client.rm(pod);
    }
}

/// One scrape: text of Prometheus mostly; the other forms, now and then, are looked at here.
fn taken(client: &Client, number: u32, slowest: &mut Duration) -> Result<Option<String>, String> {
    let path = match number % 25 {
        8 => "/v1/metrics?format=openmetrics",
        16 => "/v1/metrics",
        24 => "/metrics/snapshot",
        _ => "/metrics",
    };
    let begun = Instant::now();
    let answer = client.request("GET", path, None).map_err(|error| format!("{path}: {error}"))?;
    *slowest = begun.elapsed().max(*slowest);
    if answer.status != 200 {
        return Err(format!("{path}: {} {}", answer.status, answer.text));
    }
    match path {
        "/metrics" => Ok(Some(answer.text)),
        "/v1/metrics" | "/metrics/snapshot" if answer.json.is_object() => Ok(None),
        "/v1/metrics" | "/metrics/snapshot" => Err(format!("{path}: no JSON: {:.200}", answer.text)),
        _ => Scrape::read(&answer.text, true).map(|_| None),
    }
}

/// Asks a listener with TLS.
fn ask(pki: &Pki, port: u16, ca: &Path, client: Option<&str>, path: &str) -> std::io::Result<Answer> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let files = client.map(|name| (pki.file(&format!("{name}.crt")), pki.file(&format!("{name}.key"))));
    let files = files.as_ref().map(|(certificate, key)| (certificate.as_path(), key.as_path()));
    let stream = remote::connect(address, ca, files, true)?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n");
    let bytes = remote::raw(stream, request.as_bytes())?;
    Answer::read(&bytes).ok_or_else(|| std::io::Error::other("no answer"))
}

/// What a listener answers to a request in plain text.
fn plain(port: u16) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
    let request = format!("GET /metrics HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n");
    let mut bytes = Vec::new();
    // a reset is a refusal, too
    let _ = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_end(&mut bytes));
    bytes
}

#[test]
fn with_tls_metrics_are_for_clients_with_a_certificate() {
    privileged!();
    let pki = Pki::new();
    for name in ["scraper", "other"] {
        pki.client(name);
    }
    pki.odd_client("ended", "scraper", (2021, 1, 1));
    let strange = Pki::new();
    strange.client("scraper");
    let (api, metrics) = (free_port(), free_port());
    let listen =
        |options: Options| options.set(&format!("metrics.listen=[\"127.0.0.1:{metrics}\"]")).set("metrics.tls=true");
    let daemon = listen(pki.options(&format!("127.0.0.1:{api}"))).start();
    let ca = pki.file("ca.crt");
    let answer = ask(&pki, metrics, &ca, Some("scraper"), "/metrics").expect("it is served");
    assert_eq!(answer.status, 200, "{}", answer.text);
    // in pieces or whole, it is what the Unix socket serves
    assert!(answer.text.contains("agentd_build_info{"), "{:.300}", answer.text);
    assert_eq!(ask(&pki, metrics, &ca, Some("scraper"), "/v1/pods").expect("it is answered").status, 404);
    for (client, whose) in [(None, &pki), (Some("ended"), &pki), (Some("scraper"), &strange)] {
        let refused = ask(whose, metrics, &ca, client, "/metrics");
        assert!(refused.is_err(), "{client:?}: {refused:?}");
    }
    let certificate = (pki.file("scraper.crt"), pki.file("scraper.key"));
    let old = remote::connect(
        SocketAddr::from(([127, 0, 0, 1], metrics)),
        &ca,
        Some((&certificate.0, &certificate.1)),
        false,
    );
    assert!(old.is_err(), "TLS 1.2 is spoken");
    let bytes = plain(metrics);
    assert!(!bytes.starts_with(b"HTTP/"), "{}", String::from_utf8_lossy(&bytes));
    // as people would, where they can
    let curl = Command::new("curl")
        .args(["--silent", "--show-error", "--cacert"])
        .arg(&ca)
        .arg("--cert")
        .arg(&certificate.0)
        .arg("--key")
        .arg(&certificate.1)
        .arg(format!("https://127.0.0.1:{metrics}/metrics"))
        .output();
    match curl {
        Ok(output) => {
            let (text, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{told}");
            Scrape::read(&text, false).unwrap_or_else(|error| panic!("{error}"));
        }
        Err(error) => println!("curl was not tried: {error}"),
    }
    drop(daemon);

    // another authority for those who scrape: the API's clients are not among them
    let own = listen(pki.options(&format!("127.0.0.1:{api}")))
        .set(&format!("metrics.tls_client_ca={}", strange.file("ca.crt").display()))
        .start();
    assert_eq!(ask(&strange, metrics, &ca, Some("scraper"), "/metrics").expect("it is served").status, 200);
    let refused = ask(&pki, metrics, &ca, Some("scraper"), "/metrics");
    assert!(refused.is_err(), "{refused:?}");
    // and those who scrape have no way into the API
    let refused = ask(&strange, api, &ca, Some("scraper"), "/v1/version");
    assert!(refused.is_err(), "{refused:?}");
    drop(own);
}

fn stacks(client: &Client) -> (String, String) {
    let all = signals(client);
    let found: Vec<_> = all.into_iter().filter(|(signal, ..)| signal == "stacks").collect();
    assert_eq!(found.len(), 1, "{found:?}");
    (found[0].1.clone(), found[0].2.clone())
}

/// The row of `agentd doctor` about stacks: status and text.
fn doctor(daemon: &Daemon, set: &str) -> (String, String) {
    let mut command = Command::new(binary("agentd"));
    command.args(["doctor", "--output", "json", "--set", set, "--dev"]).arg(daemon.dir());
    let output = command.output().expect("agentd can be run");
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let checks = json["checks"].as_array().cloned().unwrap_or_default();
    let row = checks.into_iter().find(|one| one["name"] == "observe/stacks").expect("a row about stacks");
    let word = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
    (word("status"), word("found"))
}

#[test]
fn what_profiles_do_is_told_among_the_metrics() {
    privileged!();
    let nothing = "metrics.host=true";
    let daemon = Daemon::with().set(nothing).start();
    let client = daemon.client();
    client.run_pod(&sized(pods::shell("/q/loop", "while :; do :; done"), 0.5, 64));
    let figure = |name: &str| Scrape::of(&client).sum(&format!("agentd_self_profile_{name}"), &[]).expect("it is told");
    let (rung, why) = stacks(&client);
    assert!(rung == "off" && why.starts_with("nobody is profiled"), "{rung}: {why}");
    let (status, found) = doctor(&daemon, nothing);
    assert!(status == "ok" && found.starts_with("off (the daemon): nobody is profiled"), "{status}: {found}");
    for name in ["containers", "rate", "map_memory_bytes", "samples_total", "ticks_total"] {
        assert_eq!(figure(name), 0.0, "{name}");
    }
    let folded = std::thread::scope(|scope| {
        let asked = scope.spawn(|| client.get("/v1/profile?pod=q%2Floop&seconds=4&hz=99"));
        let seen = eventually(Duration::from_secs(4), || stacks(&client).0 == "perf_event");
        if seen {
            // a scrape within a tenth of a second of another may be the same
            until("the container is told", PATIENCE, || {
                (figure("containers") == 1.0 && figure("rate") == 99.0).then_some(())
            });
            assert!(figure("map_memory_bytes") > 100_000.0);
            let labels = [("signal", "stacks"), ("rung", "perf_event")];
            assert_eq!(Scrape::of(&client).sum("agentd_self_signal", &labels), Some(1.0));
            let (status, found) = doctor(&daemon, nothing);
            assert_eq!((status.as_str(), found.as_str()), ("ok", "perf_event (the daemon)"));
        }
        asked.join().expect("it is answered")
    });
    if folded.status == 503 {
        assert_eq!(doctor(&daemon, nothing).0, "warn", "what cannot be had is told");
        skip!("nothing can be profiled here: {}", folded.text);
    }
    assert!(folded.ok(), "{} {}", folded.status, folded.text);
    let samples = |line: &str| line.rsplit(' ').next().and_then(|count| count.parse::<f64>().ok()).unwrap_or_default();
    let total: f64 = folded.text.lines().map(samples).sum();
    until("sampling is over", PATIENCE, || (figure("rate") == 0.0).then_some(()));
    let (rung, why) = stacks(&client);
    assert!(why.starts_with("nobody is profiled"), "{rung}: {why}");
    assert_eq!((figure("containers"), figure("map_memory_bytes")), (0.0, 0.0));
    // those that come between the last reading and the clock's end are counted and in no profile
    let counted = figure("samples_total");
    assert!(counted >= total && counted <= total + 20.0, "{counted} counted, {total} told");
    assert!(total > 20.0 && figure("ticks_total") >= counted, "{total}");
    let lost = Scrape::of(&client);
    let lost = lost.with("agentd_self_profile_lost_total", &[]);
    assert_eq!(lost.len(), 6, "{lost:?}");
    client.rm("/q/loop");
}

#[test]
fn without_the_group_nobody_is_profiled() {
    privileged!();
    let set = "observe.groups=[\"process\"]";
    let daemon = Daemon::with().set(set).start();
    let client = daemon.client();
    let mut pod = sized(pods::shell("/q/labelled", "while :; do :; done"), 0.2, 64);
    pod["labels"] = json!({"agentd.profile": "true"});
    client.run_pod(&pod);
    let refused = client.get("/v1/profile?pod=q%2Flabelled&seconds=1");
    assert!(refused.status == 503 && refused.text.contains("observe.groups has not profile"), "{}", refused.text);
    let scrape = Scrape::of(&client);
    for name in ["containers", "rate", "ticks_total"] {
        assert_eq!(scrape.sum(&format!("agentd_self_profile_{name}"), &[]), Some(0.0), "{name}");
    }
    assert_eq!(stacks(&client), ("off".to_owned(), "observe.groups has not profile".to_owned()));
    // what was not asked for is no fault
    assert_eq!(doctor(&daemon, set).0, "ok");
    let all = signals(&client);
    let others =
        all.iter().filter(|(signal, ..)| !["exec", "fork", "exit", "signals", "oom"].contains(&signal.as_str()));
    assert!(others.clone().count() > 5);
    for (signal, rung, why) in others {
        assert!(rung == "off" || rung == "files", "{signal}: {rung}");
        assert!(why.starts_with("observe.groups has not "), "{signal}: {why}");
    }
    client.rm("/q/labelled");
}
