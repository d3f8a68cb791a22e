//! Logs and events: read whole, in part, and followed.

use std::time::Duration;

use agentd_tests::wire::Stream;
use agentd_tests::{Daemon, pods, privileged, until};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

fn container(name: &str, line: &str) -> Value {
    json!({"name": name, "exec": {"command": {"shell": line}}, "resources": {"cpus": 0.1, "mem": 32, "disk": 8},
        "lifecycle": {"killGracePeriodSeconds": 0.1}})
}

#[test]
fn logs_are_read_whole_in_part_and_as_they_come() {
    privileged!();
    let mut daemon = Daemon::start();
    let client = daemon.client();
    let line = "for n in 1 2 3 4 5; do echo out $n; echo err $n >&2; done; \
                until test -e go; do sleep 0.02; done; echo more; printf unended; sleep 0.2; printf ' line\\n'; exit 0";
    let pod = json!({
        "id": "/logs",
        "containers": [container("first", line), container("second", "echo of the second; sleep 1000")],
        "agentd": {"restart": "never", "isolatedNetwork": true, "restartScope": "container"},
    });
    client.run_pod(&pod);
    let get = |query: &str| {
        let answer = client.get(&format!("/v1/pods/logs/logs?{query}"));
        assert!(answer.ok(), "{query}: {}", answer.text);
        answer.text
    };
    until("ten lines are there", PATIENCE, || (get("container=first").lines().count() == 10).then_some(()));
    let numbered = |word: &str| [1, 2, 3, 4, 5].map(|n| format!("{word} {n}\n")).concat();
    assert_eq!(get("container=first&stream=stdout"), numbered("out"));
    assert_eq!(get("container=first&stream=stderr"), numbered("err"));
    assert_eq!(get("container=first&stream=stdout&tail=2"), "out 4\nout 5\n");
    assert_eq!(get("container=first&tail=0"), "");
    // of several, each line says whose it is
    until("both have said something", PATIENCE, || get("").contains("second").then_some(()));
    let all = get("");
    assert_eq!(all.lines().filter(|line| line.contains("first")).count(), 10, "{all}");
    let json: Vec<Value> =
        get("format=json&stream=stdout").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(json.len(), 6, "{json:?}");
    let second = json.iter().find(|line| line["container"] == "second").unwrap();
    assert_eq!((second["line"].as_str(), second["stream"].as_str()), (Some("of the second"), Some("stdout")));
    let third = json.iter().find(|line| line["line"] == "out 3").unwrap();
    let since = third["time"].as_str().unwrap();
    let later = get(&format!("container=first&stream=stdout&format=json&since={}", since.replace(':', "%3A")));
    let later: Vec<Value> = later.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // lines that were read at once have one time; what is left out was there before
    assert!(
        later.contains(third) && later.last() == json.iter().rfind(|line| line["container"] == "first"),
        "{later:?}"
    );
    let before = json.iter().filter(|line| line["container"] == "first" && !later.contains(line));
    assert!(before.clone().all(|line| line["line"].as_str() < Some("out 3")), "{later:?}");
    assert_eq!(get("container=first&since=2999-01-01T00:00:00Z"), "");
    let stamped = get("container=first&timestamps=true&tail=1");
    assert!(stamped.starts_with("20") && stamped.contains('T'), "{stamped}");
    for query in ["container=third", "instance=000000000000"] {
        let answer = client.get(&format!("/v1/pods/logs/logs?{query}"));
        assert_eq!(answer.status, 404, "{query}: {}", answer.text);
    }

    // followed: what was there, then what comes, until the pod has ended for good
    let mut follow =
        Stream::open(&daemon.socket(), "GET", "/v1/pods/logs/logs?container=first&follow=true&tail=1", &[], "");
    assert!(follow.line(PATIENCE).is_some_and(|line| line.ends_with('5')));
    assert_eq!(follow.line(Duration::from_millis(200)), None);
    let pid = client.container("/logs", "first").pid.unwrap();
    std::fs::write(format!("/proc/{pid}/root/mnt/mesos/sandbox/go"), "").unwrap();
    assert_eq!(follow.line(PATIENCE).as_deref(), Some("more"));
    assert_eq!(follow.line(PATIENCE).as_deref(), Some("unended line"));

    // a daemon that ends takes no line with it: what was said meanwhile is there afterwards
    daemon.kill9();
    daemon.restart();
    assert_eq!(get("container=first&stream=stdout&tail=2"), "more\nunended line\n");
    assert_eq!(get("container=second"), "of the second\n");
    client.rm("/logs");
    assert_eq!(client.get("/v1/pods/logs/logs").status, 404);
    assert!(std::fs::read_dir(daemon.state().join("logs")).unwrap().next().is_none());
}

/// The fields of one event of a stream.
fn next(stream: &mut Stream) -> Option<(u64, String, Value)> {
    let (mut id, mut kind, mut data) = (0, String::new(), Value::Null);
    loop {
        let line = stream.line(PATIENCE)?;
        match line.split_once(':') {
            Some(("id", value)) => id = value.trim().parse().unwrap(),
            Some(("event", value)) => value.trim().clone_into(&mut kind),
            Some(("data", value)) => data = serde_json::from_str(value.trim()).unwrap(),
            _ if line.is_empty() && !kind.is_empty() => return Some((id, kind, data)),
            _ => {}
        }
    }
}

#[test]
fn events_are_followed_and_resumed_without_gap() {
    privileged!();
    // without those of the kernel, so that what is told is known beforehand
    let daemon = Daemon::with().set("observe.events=[]").start();
    let client = daemon.client();
    client.run_to_end(&pods::shell("/one", "true"));
    let all = client.get("/v1/events").json;
    let all = all.as_array().unwrap();
    let kinds = |pod: &str| {
        let of = all.iter().filter(|event| event["pod"] == pod);
        of.map(|event| event["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (instance, others): (Vec<_>, Vec<_>) =
        kinds("/one").into_iter().partition(|kind| kind.starts_with("instance-"));
    assert_eq!(others, ["pod-accepted", "container-started", "container-ended", "pod-ended", "pod-removed"]);
    assert_eq!(instance.first().map(String::as_str), Some("instance-created"));
    assert!(instance[1..instance.len() - 1].iter().all(|kind| kind == "instance-phase"), "{instance:?}");
    assert_eq!(instance.last().map(String::as_str), Some("instance-removed"));
    let ids: Vec<u64> = all.iter().map(|event| event["id"].as_u64().unwrap()).collect();
    assert!(ids.windows(2).all(|pair| pair[1] == pair[0] + 1), "{ids:?}");
    let middle = ids[ids.len() / 2];
    let rest = client.get(&format!("/v1/events?after={middle}")).json;
    assert_eq!(rest.as_array().unwrap().len() as u64, ids.last().unwrap() - middle);

    // a follower gets what is kept, then what comes
    let headers = ["accept: text/event-stream"];
    let mut stream = Stream::open(&daemon.socket(), "GET", "/v1/events", &headers, "");
    let mut seen = Vec::new();
    for _ in &ids {
        seen.push(next(&mut stream).unwrap().0);
    }
    assert_eq!(seen, ids);
    client.run_pod(&pods::sleeper("/two"));
    let (id, kind, data) = next(&mut stream).unwrap();
    assert_eq!((id, kind.as_str(), data["pod"].as_str()), (ids.last().unwrap() + 1, "pod-accepted", Some("/two")));
    assert_eq!(data["id"].as_u64(), Some(id));
    drop(stream);

    // one that comes back after a break misses nothing and gets nothing twice
    client.rm("/two");
    client.run_to_end(&pods::shell("/three", "true"));
    let resumed = [format!("last-event-id: {id}"), "accept: text/event-stream".to_owned()];
    let resumed: Vec<&str> = resumed.iter().map(String::as_str).collect();
    let mut stream = Stream::open(&daemon.socket(), "GET", "/v1/events", &resumed, "");
    let last = client.get("/v1/events").json.as_array().unwrap().last().unwrap()["id"].as_u64().unwrap();
    for wanted in id + 1..=last {
        assert_eq!(next(&mut stream).unwrap().0, wanted);
    }
    // as many followers as like
    let mut others: Vec<_> = (0..20)
        .map(|_| Stream::open(&daemon.socket(), "GET", &format!("/v1/events?after={last}&follow=true"), &[], ""))
        .collect();
    client.run_to_end(&pods::shell("/four", "true"));
    for stream in &mut others {
        assert_eq!(next(stream).unwrap().0, last + 1);
    }
}
