//! What a daemon tells of work whose answer is known, from its pods' first instruction to what a scraper and a reader of events
//! get: connections between pods and their peers, programs, bytes, page faults, memory, throttling, pressure, victims of
//! want of memory, ends and who brought them.

#![allow(clippy::float_cmp, reason = "the numbers that are compared are whole")]

mod watched;

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use agentd_api::status::InstanceStatus;
use agentd_tests::arena::{self, HostFolder, with_host_volume};
use agentd_tests::{Client, Daemon, attached, eventually, pods, privileged, skip, until};
use serde_json::{Value, json};
use watched::{PATIENCE, Scrape, events, sized};

/// A daemon that lets all events through.
fn daemon() -> Daemon {
    Daemon::with().set("observe.events_per_second=10000").set("observe.events_total_per_second=10000").start()
}

/// A pod on the bridge that runs a line of shell with the tools.
fn bridged(id: &str, line: &str) -> Value {
    let mut pod = arena::tools(sized(pods::shell(id, line), 0.2, 64));
    pod["networks"] = json!([{"mode": "container"}]);
    pod["agentd"] = json!({"restart": "never"});
    pod
}

fn v4(instance: &InstanceStatus) -> Ipv4Addr {
    let address = instance.addresses.iter().find_map(|address| address.parse().ok());
    address.unwrap_or_else(|| panic!("no IPv4 address: {instance:?}"))
}

/// The gateway of a pod, from its routes.
fn gateway(instance: &InstanceStatus) -> Ipv4Addr {
    let routes = fs::read_to_string(format!("/proc/{}/net/route", instance.containers[0].pid.unwrap())).unwrap();
    let route = routes.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.get(1) == Some(&"00000000")).then(|| words[2].to_owned())
    });
    Ipv4Addr::from(u32::from_str_radix(&route.unwrap(), 16).unwrap().swap_bytes())
}

/// Waits until a pod's log has a line.
#[track_caller]
fn said(client: &Client, pod: &str, word: &str) {
    until(&format!("{pod} says {word}"), PATIENCE, || client.logs(pod, "main").contains(word).then_some(()));
}

#[test]
fn connections_between_pods_are_edges_with_names() {
    privileged!();
    let daemon = daemon();
    let client = daemon.client();
    needs!(client, "connections");
    client.run_pod(&bridged("/e/server", "exec /opt/testbox listen 8080 hello"));
    said(&client, "/e/server", "listening");
    let server = client.instance("/e/server");
    let (address, outside) = (v4(&server), gateway(&server));
    let line = format!(
        "i=0; while [ $i -lt 7 ]; do bash -c 'cat </dev/tcp/{address}/8080'; i=$((i+1)); done; \
         i=0; while [ $i -lt 5 ]; do /opt/testbox connect {address} 8081; i=$((i+1)); done; \
         i=0; while [ $i -lt 3 ]; do /opt/testbox connect {outside} 9; i=$((i+1)); done; \
         echo done; exec sleep 1000000"
    );
    client.run_pod(&bridged("/e/client", &line));
    said(&client, "/e/client", "done");
    let log = client.logs("/e/client", "main");
    // what the client itself was told is the truth; the last port may be refused or dropped by the host
    assert_eq!(log.lines().filter(|line| *line == "hello").count(), 7, "{log}");
    let peer = outside.to_string();
    let edge = |scrape: &Scrape, what: &str, pod: &str, peer: &str, port: &str, direction: &str| {
        let labels = [("pod", pod), ("peer", peer), ("port", port), ("direction", direction)];
        scrape.sum(&format!("agentd_pod_edge_{what}_total"), &labels).unwrap_or_default()
    };
    let mut last = Scrape::of(&client);
    let settled = eventually(Duration::from_secs(10), || {
        last = Scrape::of(&client);
        edge(&last, "connections", "/e/server", "pod/e/client", "8080", "inbound") >= 7.0
            && last.main("agentd_container_tcp_connect_failures_total", "/e/client", &[]) >= 8.0
    });
    assert!(settled, "{:?}", last.with("agentd_pod_edge_connections_total", &[]));
    assert_eq!(edge(&last, "connections", "/e/client", "pod/e/server", "8080", "outbound"), 7.0);
    assert_eq!(edge(&last, "failures", "/e/client", "pod/e/server", "8080", "outbound"), 0.0);
    assert_eq!(edge(&last, "failures", "/e/client", "pod/e/server", "8081", "outbound"), 5.0);
    assert_eq!(edge(&last, "connections", "/e/client", "pod/e/server", "8081", "outbound"), 0.0);
    assert_eq!(edge(&last, "failures", "/e/client", &peer, "9", "outbound"), 3.0);
    assert_eq!(edge(&last, "connections", "/e/server", "pod/e/client", "8080", "inbound"), 7.0);
    // "hello\n" each time, counted at both ends
    assert_eq!(edge(&last, "received_bytes", "/e/client", "pod/e/server", "8080", "outbound"), 42.0);
    assert_eq!(edge(&last, "sent_bytes", "/e/server", "pod/e/client", "8080", "inbound"), 42.0);
    assert_eq!(last.main("agentd_container_tcp_connects_total", "/e/client", &[]), 7.0);
    assert_eq!(last.main("agentd_container_tcp_accepts_total", "/e/server", &[]), 7.0);
    let failures =
        |kind| last.main("agentd_container_tcp_connect_failures_total", "/e/client", &[("error_type", kind)]);
    assert!(failures("refused") >= 5.0 && failures("refused") + failures("timeout") + failures("unreachable") == 8.0);
    // each is an event that names the peer
    let wanted = format!("connect to {address}:8081 (pod/e/server) failed: Connection refused (testbox, process ");
    let told = events(&client, "/e/client", "container-connect-failed");
    assert_eq!(told.iter().filter(|line| line.starts_with(&wanted)).count(), 5, "{told:?}");
    let wanted = format!("connect to {outside}:9 failed: ");
    assert_eq!(told.iter().filter(|line| line.starts_with(&wanted)).count(), 3, "{told:?}");
    assert_eq!(told.len(), 8, "{told:?}");
    for pod in ["/e/client", "/e/server"] {
        client.rm(pod);
    }
}

#[test]
fn programs_of_a_moment_are_counted_for_the_container_that_began_them() {
    privileged!();
    let daemon = daemon();
    let client = daemon.client();
    needs!(client, "exec", "fork", "exit");
    let line = |count: u32| {
        format!("i=0; while [ $i -lt {count} ]; do /bin/true; i=$((i+1)); done; echo done; exec sleep 1000000")
    };
    let mut two = sized(pods::shell("/x/two", &line(500)), 0.5, 64);
    let mut second = two["containers"][0].clone();
    second["name"] = json!("side");
    second["exec"] = json!({"command": {"shell": line(300)}});
    two["containers"].as_array_mut().unwrap().push(second);
    client.run_pod(&two);
    said(&client, "/x/two", "done");
    until("the other has done its work", PATIENCE, || client.logs("/x/two", "side").contains("done").then_some(()));
    // a session is its container's
    let session = attached::begin_detached(
        &client,
        "/x/two",
        &json!({"container": "side", "command": ["/bin/false", "a b", "c"]}),
    );
    attached::wait_exited(&client, &session.id);
    let count = |scrape: &Scrape, name: &str, container: &str, more: &[(&str, &str)]| {
        let labels: Vec<_> = [("pod", "/x/two"), ("container", container)].iter().chain(more).copied().collect();
        scrape.sum(name, &labels).unwrap_or_default()
    };
    let mut last = Scrape::of(&client);
    eventually(Duration::from_secs(5), || {
        last = Scrape::of(&client);
        count(&last, "agentd_container_exits_total", "side", &[]) >= 301.0
    });
    // the shell and sleep, too
    assert_eq!(count(&last, "agentd_container_execs_total", "main", &[]), 502.0);
    assert_eq!(count(&last, "agentd_container_forks_total", "main", &[]), 500.0);
    assert_eq!(count(&last, "agentd_container_exits_total", "main", &[("outcome", "success")]), 500.0);
    assert_eq!(count(&last, "agentd_container_execs_total", "side", &[]), 303.0);
    assert_eq!(count(&last, "agentd_container_exits_total", "side", &[("outcome", "failure")]), 1.0);
    // with its arguments, and the same as JSON of this container alone
    let told = events(&client, "/x/two", "container-exec");
    assert_eq!(told.iter().filter(|line| line.starts_with("/bin/false a b c (process ")).count(), 1, "{told:?}");
    assert_eq!(told.iter().filter(|line| line.starts_with("/bin/true (process ")).count(), 800);
    let json = client.get("/v1/metrics?pod=x%2Ftwo&container=side").json;
    let metrics = json["scopes"][0]["metrics"].as_array().cloned().unwrap_or_default();
    let execs = metrics.iter().find(|one| one["prometheus"] == "agentd_container_execs_total");
    assert_eq!(execs.map(|one| one["points"][0]["value"].clone()), Some(json!(303)));
    client.rm("/x/two");
}

#[test]
fn bytes_written_past_the_cache_are_the_containers() {
    privileged!();
    let folder = HostFolder::new();
    if fs::metadata(&folder.0).is_ok_and(|meta| meta.dev() >> 8 == 0) {
        skip!("{} is on no block device", folder.0.display());
    }
    let daemon = daemon();
    let client = daemon.client();
    needs!(client, "block-io");
    let line = "dd if=/dev/zero of=/data/file bs=64k count=128 oflag=direct 2>&1 && echo done; exec sleep 1000000";
    client.run_pod(&with_host_volume(
        sized(pods::shell("/b/writer", line), 0.5, 64),
        "data",
        &folder.0,
        "/data",
        false,
    ));
    client.run_pod(&with_host_volume(pods::sleeper("/b/idle"), "data", &folder.0, "/data", false));
    said(&client, "/b/writer", "done");
    let bytes = 128.0 * 65536.0;
    let written = |scrape: &Scrape, pod: &str, name: &str| scrape.main(name, pod, &[("disk_io_direction", "write")]);
    let mut last = Scrape::of(&client);
    eventually(Duration::from_secs(10), || {
        last = Scrape::of(&client);
        written(&last, "/b/writer", "agentd_container_block_io_bytes_total") >= bytes
    });
    // the file system may write some of its own with it
    let found = written(&last, "/b/writer", "agentd_container_block_io_bytes_total");
    assert!((bytes..=bytes * 1.02).contains(&found), "{found} of {bytes}");
    let requests = written(&last, "/b/writer", "agentd_container_block_requests_total");
    assert!((128.0..=256.0).contains(&requests), "{requests}");
    let timed = written(&last, "/b/writer", "agentd_container_block_latency_seconds_count");
    assert_eq!(timed, requests);
    assert_eq!(last.main("agentd_container_block_in_flight", "/b/writer", &[]), 0.0);
    // by the name of cAdvisor, whichever source it has
    assert!((bytes..=bytes * 1.02).contains(&last.main("container_fs_writes_bytes_total", "/b/writer", &[])));
    assert_eq!(written(&last, "/b/idle", "agentd_container_block_io_bytes_total"), 0.0);
    for pod in ["/b/writer", "/b/idle"] {
        client.rm(pod);
    }
}

#[test]
fn memory_and_page_faults_are_those_of_a_known_allocation() {
    const MIB: f64 = 1_048_576.0;
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    let hog =
        |id: &str, mib: &str| arena::tools(sized(pods::argv(id, &["/opt/testbox", "hog", mib, "1000000"]), 0.5, 96));
    client.run_pod(&hog("/f/none", "0"));
    client.run_pod(&hog("/f/some", "24"));
    for pod in ["/f/none", "/f/some"] {
        said(&client, pod, "holding");
    }
    let scrape = Scrape::of(&client);
    let more = |name: &str, labels: &[(&str, &str)]| {
        scrape.main(name, "/f/some", labels) - scrape.main(name, "/f/none", labels)
    };
    // kernels keep counters of memory in portions for each CPU: within 1 MiB and 2 %
    for name in ["container_memory_working_set_bytes", "container_memory_usage_bytes", "container_memory_rss"] {
        let found = more(name, &[]) / MIB;
        assert!((23.0..25.5).contains(&found), "{name}: {found} MiB of 24");
    }
    let (pages, all) = (24.0 * 256.0, [("scope", "container"), ("failure_type", "pgfault")]);
    let found = more("container_memory_failures_total", &all);
    assert!((pages * 0.97..pages * 1.05).contains(&found), "{found} faults of {pages}");
    let minor = more("container_paging_faults_total", &[("system_paging_fault_type", "minor")]);
    assert!((pages * 0.97..pages * 1.05).contains(&minor), "{minor} faults of {pages}");
    for pod in ["/f/none", "/f/some"] {
        client.rm(pod);
    }
}

#[test]
fn a_loop_on_a_tenth_of_a_cpu_is_throttled() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    client.run_pod(&sized(pods::shell("/t/loop", "while :; do :; done"), 0.1, 64));
    let names = [
        "container_cpu_usage_seconds_total",
        "container_cpu_cfs_periods_total",
        "container_cpu_cfs_throttled_periods_total",
        "container_cpu_cfs_throttled_seconds_total",
    ];
    let read = || (Instant::now(), names.map(|name| Scrape::of(&client).main(name, "/t/loop", &[])));
    until("there have been periods", PATIENCE, || (read().1[1] > 5.0).then_some(()));
    let (began, before) = read();
    until("four seconds are over", PATIENCE, || (began.elapsed() > Duration::from_secs(4)).then_some(()));
    let (ended, after) = read();
    let took = (ended - began).as_secs_f64();
    let [used, periods, throttled, held] = [0, 1, 2, 3].map(|at| after[at] - before[at]);
    println!("{took:.2} s: {used:.3} s used, {throttled} of {periods} periods throttled, held back {held:.3} s");
    // two periods at the ends, and as much again for a busy host
    assert!(used <= took * 0.1 + 0.05 && used >= took * 0.05, "{used} s in {took} s");
    assert!(periods <= took * 10.0 + 2.0 && periods >= took * 5.0, "{periods} in {took} s");
    assert!(throttled >= periods * 0.85, "{throttled} of {periods}");
    assert!((took * 0.5..took * 1.1).contains(&held), "{held} s of {took} s");
    client.rm("/t/loop");
}

#[test]
fn pressure_is_told_once_when_it_comes_and_once_when_it_goes() {
    privileged!();
    let folder = HostFolder::new();
    let daemon = Daemon::with().set("observe.pressure_cpu=50").start();
    let client = daemon.client();
    // two loops on one CPU for as long as the file is there
    let line =
        "l() { while [ -e /data/marker ]; do :; done; }; taskset -pc 0 $$ >/dev/null; l & l; wait; exec sleep 1000000";
    let pod = with_host_volume(sized(pods::shell("/p/pair", line), 0.5, 64), "data", &folder.0, "/data", false);
    client.run_pod(&pod);
    client.run_pod(&pods::sleeper("/p/idle"));
    if !Scrape::of(&client).0.iter().any(|sample| sample.name == "container_pressure_cpu_waiting_seconds_total") {
        skip!("this kernel tells no pressure");
    }
    let told = || events(&client, "/p/pair", "container-pressure");
    until("pressure is told", PATIENCE, || (!told().is_empty()).then_some(()));
    fs::remove_file(folder.path("marker")).expect("it is there");
    until("it is told that it is over", PATIENCE, || (told().len() > 1).then_some(()));
    let told = told();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].starts_with("cpu pressure: some task waited for "), "{told:?}");
    assert!(told[0].ends_with(", more than 50 %"), "{told:?}");
    assert!(told[1].starts_with("cpu pressure is over: "), "{told:?}");
    assert_eq!(events(&client, "/p/idle", "container-pressure"), Vec::<String>::new());
    let waited = Scrape::of(&client).main("container_pressure_cpu_waiting_seconds_total", "/p/pair", &[]);
    assert!((5.0..60.0).contains(&waited), "{waited} s");
}

#[test]
fn a_victim_is_told_exactly_once_whichever_source_there_is() {
    privileged!();
    for (set, by) in [("observe.without=[]", "the ring"), ("observe.groups=[\"sched\"]", "the kernel's log")] {
        let daemon = Daemon::with().set(set).start();
        let client = daemon.client();
        let ring = watched::lacks(&client, &["oom"]).is_none();
        if by == "the kernel's log" {
            assert!(!ring, "the programs are there all the same");
            if fs::File::open("/dev/kmsg").is_err() {
                println!("{}", agentd_tests::skipped("the kernel's log cannot be read"));
                continue;
            }
        } else if !ring {
            println!("{}", agentd_tests::skipped("there is no program for victims"));
            continue;
        }
        client.run_pod(&pods::sleeper("/o/other"));
        client.run_pod(&arena::tools(sized(pods::argv("/o/hog", &["/opt/testbox", "hog", "256", "1000"]), 0.5, 48)));
        client.wait_finished("/o/hog");
        let told = || events(&client, "/o/hog", "container-oom");
        until(&format!("{by} tells of the victim"), PATIENCE, || (!told().is_empty()).then_some(()));
        let scrape = Scrape::of(&client);
        assert_eq!(scrape.main("container_oom_events_total", "/o/hog", &[]), 1.0, "{by}");
        assert_eq!(scrape.main("agentd_container_oom_kills_total", "/o/hog", &[]), 1.0, "{by}");
        let victims = if ring { Some(1.0) } else { None };
        assert_eq!(scrape.sum("agentd_container_oom_victims_total", &[("pod", "/o/hog")]), victims, "{by}");
        // a second one, so that a source that is late with the first has told it by then
        client.run_pod(&arena::tools(sized(pods::argv("/o/again", &["/opt/testbox", "hog", "256", "1000"]), 0.5, 48)));
        client.wait_finished("/o/again");
        until("the second is told", PATIENCE, || {
            (!events(&client, "/o/again", "container-oom").is_empty()).then_some(())
        });
        for pod in ["/o/hog", "/o/again"] {
            let told = events(&client, pod, "container-oom");
            assert_eq!(told.len(), 1, "{by}: {told:?}");
            assert!(told[0].starts_with("out of memory: the kernel killed testbox (process "), "{by}: {told:?}");
        }
        assert_eq!(events(&client, "/o/other", "container-oom"), Vec::<String>::new());
    }
}

#[test]
fn ends_name_who_brought_them() {
    privileged!();
    let daemon = daemon();
    let client = daemon.client();
    needs!(client, "exit", "signals");
    // one that ends on SIGTERM, one that does not, one that another of its container ends
    let ends = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    client.run_pod(&sized(pods::shell("/s/ends", ends), 0.2, 64));
    client.run_pod(&pods::sleeper("/s/stays"));
    client.run_pod(&pods::shell("/s/inside", "sleep 1000000 & c=; while [ \"$c\" != sleep ]; do read c </proc/$!/comm; done; kill -KILL $!; wait; echo ready; \
         exec sleep 1000000"));
    said(&client, "/s/ends", "ready");
    said(&client, "/s/inside", "ready");
    let pid = |pod: &str| client.instance(pod).containers[0].pid.expect("it runs");
    let (term, kill) = (pid("/s/ends"), pid("/s/stays"));
    let agents: BTreeSet<u32> =
        ["/s/stays"].iter().filter_map(|pod| client.instance(pod).init_pid).chain([daemon.pid()]).collect();
    for pod in ["/s/ends", "/s/stays"] {
        client.rm(pod);
    }
    let end_of = |pod: &str, pid: u32| {
        until(&format!("the end of process {pid} is told"), PATIENCE, || {
            let told = events(&client, pod, "container-exit");
            told.into_iter().find(|line| line.contains(&format!("(process {pid}) ")))
        })
    };
    let told = end_of("/s/ends", term);
    assert!(told.ends_with("exited with status 3"), "{told}");
    let told = end_of("/s/stays", kill);
    let (what, sender) = told.split_once(", sent by ").unwrap_or_else(|| panic!("no sender: {told}"));
    assert_eq!(what, format!("sleep (process {kill}) was ended by SIGKILL"));
    // threads of the daemon have names of their own; the process is it, or the pod's launcher
    let process = sender.split("(process ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a process");
    assert!(agents.contains(&process.parse().expect("a number")), "{told}, expected one of {agents:?}");
    assert!(sender.ends_with(" of the host)"), "{told}");
    let inside = until("the end inside is told", PATIENCE, || {
        let told = events(&client, "/s/inside", "container-exit");
        told.into_iter().find(|line| line.starts_with("sleep (process ") && line.contains("SIGKILL"))
    });
    assert!(inside.contains(", sent by sh (process ") && inside.ends_with(" of main in /s/inside)"), "{inside}");
    let signalled = |pod: &str| Scrape::of(&client).main("agentd_container_exits_total", pod, &[("outcome", "signal")]);
    assert_eq!(signalled("/s/inside"), 1.0);
    assert_eq!(signalled("/s/stays"), 1.0, "kept after its end");
}
