//! The API over restarts of the daemon: idempotency keys, the ids of events, and changes that depend on a version.

use std::collections::BTreeSet;
use std::time::Duration;

use agentd_tests::wire::{self, Stream};
use agentd_tests::{Client, Daemon, Response, marked, pods, privileged, until};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

/// A pod whose process can be found by a word among its arguments.
fn marked_pod(id: &str, mark: &str) -> Value {
    let mut pod = pods::argv(id, &["sh", "-c", "sleep 1000000; true", mark]);
    pod["containers"][0]["lifecycle"] = json!({"killGracePeriodSeconds": 0.1});
    pod
}

fn post(daemon: &Daemon, path: &str, key: &str, pod: &Value) -> std::io::Result<Response> {
    let key = format!("idempotency-key: {key}");
    let bytes = wire::request("POST", path, &["content-type: application/json", &key], &pod.to_string());
    wire::exchange(&daemon.socket(), &bytes)
}

#[test]
fn a_pod_is_made_once_however_often_the_daemon_dies() {
    privileged!();
    for point in ["admit.spec-written", "instance.checkpointed", "launch.prepared", "launch.started"] {
        let mut daemon = Daemon::with().env("AGENTD_FAILPOINT", point).start();
        let mark = format!("{}-{point}", daemon.instance());
        let pod = marked_pod("/once", &mark);
        let path = "/v1/pods?wait=running&timeout=60";
        let died = post(&daemon, path, "key", &pod);
        assert!(died.is_err(), "{point}: {died:?}");
        daemon.wait_exit();
        daemon.set_env("AGENTD_FAILPOINT", None);
        daemon.restart();
        let answer = post(&daemon, path, "key", &pod).unwrap();
        assert_eq!(answer.status, 201, "{point}: {}", answer.text);
        assert_eq!(answer.json["instances"].as_array().map(Vec::len), Some(1), "{point}: {}", answer.text);
        // once more, over a daemon that is killed after it answered
        daemon.kill9();
        daemon.restart();
        let again = post(&daemon, path, "key", &pod).unwrap();
        assert_eq!((again.status, &again.text), (201, &answer.text), "{point}");
        let client = daemon.client();
        assert_eq!(client.get("/v1/pods").json.as_array().map(Vec::len), Some(1), "{point}");
        assert_eq!(marked::processes(&mark), [client.container("/once", "main").pid.unwrap()], "{point}");
        assert_eq!(client.container("/once", "main").attempt, 1, "{point}");
        // another body is another request, and another key is another pod, which is there already
        let other = post(&daemon, path, "key", &marked_pod("/other", &mark)).unwrap();
        assert_eq!(
            (other.status, other.json["type"].as_str()),
            (422, Some("idempotency-key-reused")),
            "{}",
            other.text
        );
        assert_eq!(post(&daemon, path, "another", &pod).unwrap().status, 409);
        client.rm("/once");
    }
}

/// Id and kind of the next event of a stream.
fn next(stream: &mut Stream) -> (u64, String) {
    let (mut id, mut kind) = (0, String::new());
    loop {
        let line = stream.line(PATIENCE).expect("the stream goes on");
        match line.split_once(':') {
            Some(("id", value)) => id = value.trim().parse().unwrap(),
            Some(("event", value)) => value.trim().clone_into(&mut kind),
            _ if line.is_empty() && !kind.is_empty() => return (id, kind),
            _ => {}
        }
    }
}

fn follow(daemon: &Daemon, after: u64) -> Stream {
    let header = format!("last-event-id: {after}");
    Stream::open(&daemon.socket(), "GET", "/v1/events?follow=true", &[&header], "")
}

fn newest(client: &Client) -> u64 {
    client.get("/v1/events").json.as_array().unwrap().last().unwrap()["id"].as_u64().unwrap()
}

#[test]
fn a_follower_misses_nothing_over_a_killed_daemon() {
    privileged!();
    let mut daemon = Daemon::start();
    let client = daemon.client();
    client.run_pod(&pods::sleeper("/before"));
    let seen = newest(&client);
    // more happens that the follower does not see before the daemon dies
    client.run_pod(&pods::sleeper("/meanwhile"));
    let last = newest(&client);
    daemon.kill9();
    daemon.restart();
    let client = daemon.client();
    let mut stream = follow(&daemon, seen);
    let mut kinds = BTreeSet::new();
    for wanted in seen + 1..=last + 1 {
        let (id, kind) = next(&mut stream);
        assert_eq!(id, wanted, "{kind}");
        kinds.insert(kind);
    }
    assert!(kinds.contains("pod-accepted") && kinds.contains("agent-recovered"), "{kinds:?}");
    client.rm("/before");
    let mut wanted = last + 1;
    let removed = until("the removal is told", PATIENCE, || {
        let (id, kind) = next(&mut stream);
        wanted += 1;
        assert_eq!(id, wanted);
        (kind == "pod-removed").then_some(id)
    });
    let listed = client.get(&format!("/v1/events?kind=pod-removed&pod=before&after={seen}")).json;
    assert_eq!(listed.as_array().map(Vec::len), Some(1));
    assert_eq!(listed[0]["id"].as_u64(), Some(removed));
    // the run folder goes with the host: ids go on above, and the client is told what it cannot be told
    client.rm("/meanwhile");
    let known = newest(&client);
    daemon.terminate();
    std::fs::remove_dir_all(daemon.run().join("events")).unwrap();
    daemon.restart();
    let mut stream = follow(&daemon, known);
    assert_eq!(next(&mut stream), (0, "lost".to_owned()));
    let (id, kind) = next(&mut stream);
    assert!(id > known && kind == "agent-recovered", "{id} {kind}");
}

#[test]
fn of_two_changes_of_one_version_one_is_refused() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    client.run_pod(&pods::sleeper("/app"));
    for round in 1..=10_u32 {
        let version = client.pod("/app").spec.version.unwrap();
        let change = |cpus: f64| {
            let mut pod = pods::sleeper("/app");
            pod["containers"][0]["resources"]["cpus"] = cpus.into();
            let tag = format!("if-match: \"{version}\"");
            let bytes =
                wire::request("PUT", "/v1/pods/app", &["content-type: application/json", &tag], &pod.to_string());
            wire::exchange(&daemon.socket(), &bytes).unwrap()
        };
        let base = f64::from(round);
        let (one, other) = std::thread::scope(|scope| {
            let one = scope.spawn(|| change(0.1 + base / 1000.0));
            let other = scope.spawn(|| change(0.2 + base / 1000.0));
            (one.join().unwrap(), other.join().unwrap())
        });
        let mut statuses = [one.status, other.status];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 412], "{} {}", one.text, other.text);
        let (won, lost) = if one.status == 200 { (one, other) } else { (other, one) };
        let now = client.pod("/app").spec;
        assert_eq!(won.json["spec"]["version"].as_str(), now.version.as_deref());
        assert!(lost.json["errors"][0]["message"].as_str().unwrap().contains(&version), "{}", lost.text);
    }
    let stale = wire::request("DELETE", "/v1/pods/app", &["if-match: \"2026-01-31T12:00:00Z\""], "");
    assert_eq!(wire::exchange(&daemon.socket(), &stale).unwrap().status, 412);
    assert!(client.get("/v1/pods/app").ok());
    client.rm("/app");
}
