//! What becomes of a daemon's eBPF programs when something is taken from them: the daemon killed or ended, the kernel lesser
//! than it might be, programs detached by hand, maps full, containers coming and going by the hundred. Each costs its own
//! signal and says so; pods run on, and nothing stays in the kernel.

#![allow(clippy::float_cmp, reason = "the numbers that are compared are whole")]

mod watched;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, SystemTime};

use agentd_tests::{Client, Daemon, arena, attached, binary, eventually, pods, privileged, until};
use serde_json::{Value, json};
use watched::{Held, Kind, PATIENCE, Scrape, events, guards, open, signals, sized};

/// A pod that begins programs all the time.
fn busy(id: &str) -> Value {
    sized(pods::shell(id, "while :; do /bin/true; sleep 0.05; done"), 0.2, 64)
}

fn execs(client: &Client, pod: &str) -> Option<f64> {
    Scrape::of(client).sum("agentd_container_execs_total", &[("pod", pod), ("container", "main")])
}

/// Since when a counter of a pod's container counts, as OpenMetrics has it, seconds since 1970.
#[track_caller]
fn counted_since(client: &Client, pod: &str, counter: &str) -> f64 {
    let query = format!("/v1/metrics?pod={}&format=openmetrics", pod.trim_start_matches('/'));
    let scrape = Scrape::read(&client.get(&query).text, true).unwrap_or_else(|error| panic!("{error}"));
    let all = scrape.with(&format!("{counter}_created"), &[("pod", pod), ("container", "main")]);
    all.first().expect("a counter says since when it counts").value
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

/// All that the daemon has in the kernel to observe with. What guards devices is none of it.
#[track_caller]
fn observing(daemon: &Daemon, guards: &BTreeSet<u32>) -> Held {
    let mut held = Held::by(daemon.pid());
    held.programs.retain(|id| !guards.contains(id));
    let told = daemon.client().get("/v1/observe").json;
    let told: BTreeSet<u32> =
        told["programs"].as_array().unwrap().iter().filter_map(|one| one["id"].as_u64()).map(|id| id as u32).collect();
    assert!(told.len() > 5 && told.is_subset(&held.programs), "{told:?} of {held:?}");
    assert!(held.maps.len() > 5 && !held.links.is_empty(), "{held:?}");
    assert_eq!(held.left(), held, "all of it is in the kernel");
    held
}

#[track_caller]
fn nothing_is_left(held: &Held) {
    let gone = eventually(PATIENCE, || held.left() == Held::default());
    assert!(gone, "left in the kernel: {:?}", held.left());
}

#[test]
fn nothing_stays_after_a_kill_or_an_end_but_the_guards_of_containers_that_run() {
    privileged!();
    let mut daemon = Daemon::start();
    let client = daemon.client();
    needs!(client, "exec");
    client.run_pod(&busy("/k/stays"));
    let instance = client.instance("/k/stays").id;
    let guarding = guards(&daemon, &instance);
    assert!(!guarding.is_empty(), "no program guards the devices");
    until("it is counted", PATIENCE, || execs(&client, "/k/stays").filter(|count| *count > 3.0));
    let id = |client: &Client| {
        let scrape = Scrape::of(client);
        let ids: Vec<String> = scrape
            .with("agentd_container_execs_total", &[("pod", "/k/stays")])
            .iter()
            .map(|sample| sample.label("id").to_owned())
            .collect();
        assert_eq!(ids.len(), 1, "{ids:?}");
        ids[0].clone()
    };
    let (before, since) = (id(&client), counted_since(&client, "/k/stays", "agentd_container_execs"));
    assert!((0.0..60.0).contains(&(now() - since)), "{since}");

    let held = observing(&daemon, &guarding);
    daemon.kill9();
    nothing_is_left(&held);
    assert_eq!(guards(&daemon, &instance), guarding, "guards of a container that runs stay");
    assert!(guarding.iter().all(|id| open(Kind::Program, *id).is_ok()));

    let restarted = now();
    daemon.restart();
    assert_eq!(id(&client), before, "it is the same container");
    let again = counted_since(&client, "/k/stays", "agentd_container_execs");
    assert!(again >= restarted - 1.0 && again <= now(), "{again}, restarted at {restarted}");
    // what the kernel's files tell goes on, and began with the container
    let files = counted_since(&client, "/k/stays", "container_cpu_time_seconds");
    assert!((files - since).abs() < 5.0 && files < restarted, "{files}, begun at {since}");
    let count = execs(&client, "/k/stays").unwrap_or_default();
    let most = (now() - restarted) * 2.0 / 0.05 + 10.0;
    assert!(count <= most, "{count}: the programs count from zero");
    until("it is counted again", PATIENCE, || execs(&client, "/k/stays").filter(|now| *now > count));
    assert_eq!(guards(&daemon, &instance), guarding);

    let held = observing(&daemon, &guarding);
    let status = daemon.terminate();
    assert!(status.success(), "{status}");
    nothing_is_left(&held);
    assert_eq!(guards(&daemon, &instance), guarding);
    daemon.restart();
    client.rm("/k/stays");
    let gone = eventually(PATIENCE, || guarding.iter().all(|id| open(Kind::Program, *id).is_err()));
    assert!(gone, "guards outlive their container: {guarding:?}");
}

/// What `agentd doctor` says of each signal: status and text.
#[track_caller]
fn doctor(daemon: &Daemon, set: &str) -> BTreeMap<String, (String, String)> {
    let output = Command::new(binary("agentd"))
        .args(["doctor", "--output", "json", "--set", set, "--dev"])
        .arg(daemon.dir())
        .output()
        .expect("agentd can be run");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let json: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let checks = json["checks"].as_array().cloned().unwrap_or_default();
    let rows = checks.iter().filter_map(|one| {
        let signal = one["name"].as_str()?.strip_prefix("observe/")?;
        Some((signal.to_owned(), (word(&one["status"]), word(&one["found"]))))
    });
    rows.collect()
}

#[test]
fn a_lesser_kernel_costs_signals_and_nothing_else() {
    privileged!();
    {
        let daemon = Daemon::with().set(ALL).start();
        needs!(daemon.client(), "exec", "packets");
    }
    let all = ["tp_btf", "raw_tp", "tracepoint", "cgroup", "perf_event"];
    let cases: [&[&str]; 5] = [&["btf"], &["tp_btf"], &["tp_btf", "raw_tp"], &["cgroup"], &all];
    for without in cases {
        let set = format!("observe.without={}", json!(without));
        let daemon = Daemon::with().set(&set).set(ALL).start();
        let client = daemon.client();
        let states = signals(&client);
        assert_eq!(states.len(), 13, "{states:?}");
        let scrape = Scrape::of(&client);
        let rows = doctor(&daemon, &set);
        for (signal, rung, why) in &states {
            assert!(!without.contains(&rung.as_str()), "{without:?}: {signal} stands on {rung}");
            assert!(without != all || ["files", "off"].contains(&rung.as_str()), "{signal} stands on {rung}");
            // the metric, and no other rung of that signal
            let told: Vec<&str> = scrape
                .with("agentd_self_signal", &[("signal", signal)])
                .iter()
                .map(|sample| sample.label("rung"))
                .collect();
            assert_eq!(told, [rung.as_str()], "{without:?}: {signal}");
            let (mark, found) = rows.get(signal).unwrap_or_else(|| panic!("doctor has no {signal}: {rows:?}"));
            assert!(found.starts_with(&format!("{rung} (the daemon)")) && found.contains(why), "{found}");
            let idle = why.starts_with("nobody is profiled");
            let missing = ["files", "off"].contains(&rung.as_str()) && !idle;
            assert_eq!(mark == "warn", missing, "{without:?}: {signal}: {mark} {found}");
            if missing {
                let words = ["left out by configuration", "types are not to be had"];
                assert!(words.iter().any(|word| why.contains(word)), "{without:?}: {signal}: {why}");
            }
        }
        let rung = |wanted: &str| {
            let state = states.iter().find(|(signal, ..)| signal == wanted).expect("every signal has a state");
            state.1.clone()
        };
        let expected = match without {
            ["btf"] => [("exec", "raw_tp"), ("exit", "tracepoint"), ("packets", "cgroup"), ("rtt", "off")],
            ["tp_btf"] => [("exec", "raw_tp"), ("exit", "raw_tp"), ("packets", "cgroup"), ("rtt", "cgroup")],
            ["tp_btf", "raw_tp"] => {
                [("exec", "tracepoint"), ("signals", "off"), ("packets", "cgroup"), ("rtt", "cgroup")]
            }
            ["cgroup"] => [("exec", "tp_btf"), ("exit", "tp_btf"), ("packets", "files"), ("rtt", "off")],
            _ => [("exec", "off"), ("run-queue", "files"), ("block-io", "files"), ("oom", "files")],
        };
        for (signal, wanted) in expected {
            assert_eq!(rung(signal), wanted, "{without:?}: {signal}");
        }
        // pods run, begin programs, print and end, and are measured by what there is
        let (pod, log) = client.run_to_end(&pods::shell("/l/once", "/bin/true; /bin/true; echo fine"));
        assert_eq!(log, "fine\n", "{without:?}: {pod:?}");
        // a scrape within a tenth of a second of another may be the same
        let scrape = until("what it used is told", PATIENCE, || {
            let scrape = Scrape::of(&client);
            (scrape.main("container_cpu_usage_seconds_total", "/l/once", &[]) > 0.0).then_some(scrape)
        });
        let counted = scrape.sum("agentd_container_execs_total", &[("pod", "/l/once"), ("container", "main")]);
        // what is off is missing, and not zero
        let there = (rung("exec") != "off").then_some(3.0);
        assert_eq!(counted, there, "{without:?}");
        let packets =
            scrape.sum("agentd_container_network_packets_total", &[("pod", "/l/once"), ("container", "main")]);
        // the group counts connections as long as any of its programs hangs
        assert!(without != all || packets.is_none(), "{packets:?}");
        if without == all {
            client.run_pod(&pods::sleeper("/l/sleeps"));
            let refused = client.get("/v1/profile?pod=l%2Fsleeps&seconds=1");
            assert_eq!(refused.status, 503, "{}", refused.text);
            assert!(refused.text.contains("observe.without"), "{}", refused.text);
            assert_eq!(Held::by(daemon.pid()).links, BTreeSet::new(), "nothing hangs");
        }
    }
}

#[test]
fn programs_detached_by_hand_are_hung_again_and_counted() {
    privileged!();
    let daemon = Daemon::with().set(ALL).start();
    let client = daemon.client();
    needs!(client, "packets", "rtt");
    // one that sends packets to itself all the time
    let line = "/opt/testbox listen 8080 x & while :; do /opt/testbox connect 127.0.0.1 8080; sleep 0.1; done";
    let mut pod = arena::tools(sized(pods::shell("/d/talks", line), 0.3, 64));
    pod["networks"] = json!([{"mode": "container"}]);
    pod["agentd"] = json!({"restart": "never"});
    client.run_pod(&pod);
    let packets = || {
        let labels = [("pod", "/d/talks"), ("container", "main")];
        Scrape::of(&client).sum("agentd_container_network_packets_total", &labels).unwrap_or_default()
    };
    until("packets are counted", PATIENCE, || (packets() > 10.0).then_some(()));
    let lost =
        || Scrape::of(&client).sum("agentd_self_programs_lost_total", &[]).expect("it is told from the start on");
    assert_eq!(lost(), 0.0);
    let before = Held::by(daemon.pid()).cgroup_links;
    assert_eq!(before.len(), 3, "{before:?}");
    for link in &before {
        watched::detach(*link);
    }
    let began = std::time::Instant::now();
    until("they are hung again", Duration::from_secs(15), || (lost() == 3.0).then_some(()));
    println!("hung again after {:?}", began.elapsed());
    let after = Held::by(daemon.pid()).cgroup_links;
    assert!(after.len() == 3 && after.is_disjoint(&before), "{before:?} and then {after:?}");
    let count = packets();
    until("packets are counted again", PATIENCE, || (packets() > count + 10.0).then_some(()));
    let told = client.get("/v1/events?kind=programs-reattached").json;
    let told = told.as_array().cloned().unwrap_or_default();
    assert_eq!(told.len(), 1, "{told:?}");
    let message = told[0]["message"].as_str().unwrap_or_default();
    for name in ["received_cg", "sent_cg", "rtt_cg"] {
        assert!(message.contains(name), "{message}");
    }
    assert!(daemon.log().contains("found detached"), "{}", daemon.log());
    assert!(signals(&client).iter().filter(|(_, rung, _)| rung == "cgroup").count() >= 2);
    client.rm("/d/talks");
}

/// Packets are counted only where somebody asks for it.
const ALL: &str = r#"observe.groups=["all"]"#;

/// The fewest that the configuration takes.
const ROOM: usize = 16;

#[test]
fn containers_beyond_the_room_of_the_maps_run_and_are_told_of() {
    privileged!();
    let daemon = Daemon::with().set(&format!("observe.containers={ROOM}")).start();
    let client = daemon.client();
    needs!(client, "exec");
    // four containers each, for every pod has its launcher's share of the node
    let id = |number: usize| format!("/r/p{number}");
    let all: Vec<String> = (0..=ROOM / 4).map(id).collect();
    for pod in &all {
        let mut pod = pods::sleeper(pod);
        pod["containers"][0]["resources"] = json!({"cpus": 0.01, "mem": 32, "disk": 1});
        let first = pod["containers"][0].clone();
        for name in ["second", "third", "fourth"] {
            let mut more = first.clone();
            more["name"] = json!(name);
            pod["containers"].as_array_mut().expect("a list").push(more);
        }
        client.run_pod(&pod);
    }
    let scrape = Scrape::of(&client);
    let known = scrape.pods("agentd_container_execs_total");
    assert_eq!(known, all[..ROOM / 4].iter().cloned().collect(), "those who came first have room");
    let measured = scrape.pods("container_memory_usage_bytes");
    assert_eq!(measured, all.iter().cloned().collect(), "files tell of all");
    assert_eq!(scrape.sum("agentd_self_unpublished_containers_total", &[]), Some(4.0));
    assert_eq!(scrape.sum("agentd_self_observed_containers", &[("state", "running")]), Some((ROOM + 4) as f64));
    // three entries are the host's, writeback's, and of what is unknown
    assert_eq!(scrape.sum("agentd_self_map_entries", &[("map", "known")]), Some(ROOM as f64));
    assert_eq!(scrape.sum("agentd_self_map_capacity", &[("map", "known")]), Some((ROOM + 3) as f64));
    let said = daemon.log().matches("cannot be told of a container").count();
    assert_eq!(said, 1, "once in the log, and not for each\n{}", daemon.log());
    // those without room are pods like others
    let last = all.last().expect("there are some");
    let session = attached::begin_detached(&client, last, &json!({"container": "main", "command": ["/bin/true"]}));
    assert_eq!(
        attached::wait_exited(&client, &session.id).exit.map(agentd_api::status::ExitStatus::success),
        Some(true)
    );

    // who ends gives way to who comes, and keeps its figures
    client.rm(&all[0]);
    let kept = Some(2.0);
    until("a tombstone has its figures", PATIENCE, || (execs(&client, &all[0]) == kept).then_some(()));
    client.run_pod(&pods::shell("/r/new", "/bin/true; /bin/true; echo done; exec sleep 1000000"));
    until("the new one has room", PATIENCE, || (execs(&client, "/r/new") == Some(4.0)).then_some(()));
    assert_eq!(execs(&client, &all[0]), kept, "what gave way is told still");
    let scrape = Scrape::of(&client);
    assert_eq!(scrape.sum("agentd_self_unpublished_containers_total", &[]), Some(4.0));
    assert_eq!(events(&client, "/r/new", "container-exec").len(), 4);
}

/// Entries in each map that has to return to what it was.
fn entries(client: &Client) -> BTreeMap<String, u64> {
    let seen = client.get("/v1/observe").json;
    let of = |map: &Value| Some((map["name"].as_str()?.to_owned(), map["entries"].as_u64()?));
    let maps: BTreeMap<String, u64> = seen["maps"].as_array().unwrap().iter().filter_map(of).collect();
    // who is followed, and where requests and sockets are, changes with the host
    let by_container = ["known", "sched", "processes", "block", "net"];
    let mut all: BTreeMap<_, _> = maps.into_iter().filter(|(name, _)| by_container.contains(&name.as_str())).collect();
    assert_eq!(all.len(), by_container.len(), "{all:?}");
    all.insert("containers".to_owned(), seen["containers"].as_u64().unwrap());
    all.insert("ended".to_owned(), seen["ended"].as_u64().unwrap());
    all
}

#[test]
fn three_hundred_pods_that_come_and_go_leave_nothing() {
    const PODS: usize = 300;
    const AT_ONCE: usize = 4;
    privileged!();
    // with room for few: an entry of any map that stays would be missed by those who come later
    let daemon = Daemon::with().set("observe.tombstone_seconds=1").set(&format!("observe.containers={ROOM}")).start();
    let client = daemon.client();
    needs!(client, "exec");
    let run = |range: std::ops::Range<usize>| {
        std::thread::scope(|scope| {
            for worker in 0..AT_ONCE {
                let (client, range) = (&client, range.clone());
                scope.spawn(move || {
                    for number in range.filter(|number| number % AT_ONCE == worker) {
                        let mut pod = pods::shell(&format!("/c/p{number}"), "/bin/true; exit 0");
                        pod["containers"][0]["resources"] = json!({"cpus": 0.05, "mem": 32, "disk": 1});
                        client.run_to_end(&pod);
                    }
                });
            }
        });
    };
    let begun = entries(&client);
    // what the first ones warm up is no growth
    run(0..20);
    let settle = || until("all are forgotten", PATIENCE, || (entries(&client) == begun).then_some(()));
    settle();
    drop(Scrape::of(&client));
    let (descriptors, memory) = (daemon.descriptors(), attached::memory(daemon.pid()));
    let before = Scrape::of(&client);
    run(20..PODS);
    settle();
    let after = Scrape::of(&client);
    assert_eq!(after.pods("container_cpu_usage_seconds_total"), BTreeSet::new());
    assert_eq!(after.sum("agentd_self_unpublished_containers_total", &[]), Some(0.0));
    // every event had its container: three of each, begun and ended
    let event = |scrape: &Scrape, outcome: &str| {
        scrape.sum("agentd_self_events_total", &[("outcome", outcome)]).unwrap_or_default()
    };
    assert_eq!(event(&after, "unknown"), 0.0);
    let all: f64 =
        ["published", "held", "limited", "dropped"].iter().map(|one| event(&after, one) - event(&before, one)).sum();
    assert_eq!(all, ((PODS - 20) * 4) as f64, "shell and true, begun and ended");
    until("descriptors are closed", PATIENCE, || (daemon.descriptors() <= descriptors + 16).then_some(()));
    let grown = attached::memory(daemon.pid()).saturating_sub(memory);
    println!("{grown} KiB more after {} pods", PODS - 20);
    assert!(grown < 16 << 10, "{grown} KiB more memory");
}
