//! The life of pods on a real daemon: restarts and their delays, the order of starts, health checks, ends.

#![allow(clippy::needless_pass_by_value, reason = "JSON is written down where it is passed")]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use agentd_api::status::{ContainerStatus, ExitStatus, InstancePhase, Reason, TaskState};
use agentd_tests::{Client, Daemon, eventually, images, pods, privileged, until};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

/// A container without an image that runs a line of shell.
fn container(name: &str, line: &str) -> Value {
    json!({"name": name, "exec": {"command": {"shell": line}}, "resources": {"cpus": 0.05, "mem": 32, "disk": 8},
        "lifecycle": {"killGracePeriodSeconds": 0.2}})
}

/// A pod with these containers, settings of agentd and a short backoff.
fn pod(id: &str, containers: &[Value], agentd: Value) -> Value {
    let mut settings = json!({"isolatedNetwork": true});
    settings.as_object_mut().unwrap().extend(agentd.as_object().unwrap().clone());
    json!({"id": id, "containers": containers, "agentd": settings,
        "scheduling": {"backoff": {"backoff": 0.05, "backoffFactor": 2, "maxLaunchDelay": 0.4}}})
}

#[track_caller]
fn create(client: &Client, pod: &Value) {
    let answer = client.post("/v1/pods", pod);
    assert_eq!(answer.status, 201, "{}", answer.text);
}

/// Waits until a container is as wanted.
#[track_caller]
fn wait_container(client: &Client, id: &str, name: &str, wanted: impl Fn(&ContainerStatus) -> bool) -> ContainerStatus {
    let mut last = None;
    let found = eventually(PATIENCE, || {
        let now = client.container(id, name);
        let fits = wanted(&now);
        last = Some(now);
        fits
    });
    assert!(found, "{id}/{name} did not become as wanted: {last:?}");
    last.unwrap()
}

#[track_caller]
fn wait_phase(client: &Client, id: &str, phase: InstancePhase) {
    let mut last = None;
    let found = eventually(PATIENCE, || {
        let now = client.instance(id);
        let fits = now.phase == phase;
        last = Some(now);
        fits
    });
    assert!(found, "{id} did not become {phase:?}: {last:?}");
}

/// A time of the API in a form whose order as text is that of time: fractions are told without their last zeros.
fn moment(time: &str) -> String {
    let (seconds, fraction) = time.trim_end_matches('Z').split_once('.').unwrap_or((time.trim_end_matches('Z'), ""));
    format!("{seconds}.{fraction:0<9}")
}

/// Messages of the events of a kind about a pod.
fn events(client: &Client, kind: &str, id: &str) -> Vec<String> {
    let all = client.get("/v1/events").json;
    let of = |event: &&Value| event["kind"] == kind && event["pod"] == id;
    all.as_array().unwrap().iter().filter(of).map(|event| event["message"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn restarts_follow_the_policy_and_their_delays_grow() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();

    create(&client, &pod("/never", &[container("a", "exit 3")], json!({"restart": "never"})));
    let never = client.wait_finished("/never").instances.remove(0);
    assert_eq!((never.phase, never.containers[0].attempt), (InstancePhase::Failed, 1));
    assert_eq!(
        (never.containers[0].state, never.containers[0].exit),
        (TaskState::TaskFailed, Some(ExitStatus::Code(3)))
    );

    // the sandbox stays from start to start
    let line = "test -e marked && exit 0; : > marked; exit 1";
    create(&client, &pod("/on-failure", &[container("a", line)], json!({"restart": "on-failure"})));
    let on_failure = client.wait_finished("/on-failure").instances.remove(0);
    assert_eq!((on_failure.phase, on_failure.containers[0].attempt), (InstancePhase::Finished, 2), "{on_failure:?}");

    create(&client, &pod("/always", &[container("a", "exit 0")], json!({})));
    wait_container(&client, "/always", "a", |c| c.attempt >= 6);
    let delays = events(&client, "pod-backoff", "/always");
    let wanted = ["50", "100", "200", "400", "400"].map(|ms| format!("starts again in {ms} ms"));
    assert_eq!(delays[..5], wanted, "{delays:?}");
    client.rm("/always");

    // each by itself: the one that fails does not disturb the other
    let both = [container("fails", "sleep 0.05; exit 1"), container("stays", "exec sleep 1000")];
    create(&client, &pod("/apart", &both, json!({"restartScope": "container"})));
    let stays = wait_container(&client, "/apart", "stays", |c| c.pid.is_some());
    wait_container(&client, "/apart", "fails", |c| c.attempt >= 3);
    let now = client.container("/apart", "stays");
    assert_eq!((now.pid, now.attempt), (stays.pid, 1));
    client.rm("/apart");

    // together: the one that fails takes the other along, and both start again
    let both = [container("fails", "sleep 0.1; exit 1"), container("stays", "exec sleep 1000")];
    create(&client, &pod("/together", &both, json!({})));
    let again = wait_container(&client, "/together", "stays", |c| c.attempt >= 2);
    assert_eq!(again.exit, None, "{again:?}");
    client.rm("/together");
    let ends = events(&client, "container-ended", "/together");
    assert!(ends.iter().any(|end| end.contains("TASK_KILLED") && end.contains("fails")), "{ends:?}");

    let both = [container("fails", "sleep 0.1; exit 1"), container("stays", "exec sleep 1000")];
    create(&client, &pod("/down", &both, json!({"restart": "never"})));
    let down = client.wait_finished("/down").instances.remove(0);
    assert_eq!((down.containers[0].state, down.containers[1].state), (TaskState::TaskFailed, TaskState::TaskKilled));
    assert_eq!((down.phase, down.containers[1].reason), (InstancePhase::Failed, Some(Reason::TaskGroupFailed)));

    // a program that is not there is no reason to give up, but told each time
    let missing =
        json!({"name": "a", "exec": {"command": {"argv": ["/no/such/program"]}}, "resources": pods::resources()});
    create(&client, &pod("/missing", &[missing], json!({"restart": "never"})));
    let missing = client.wait_finished("/missing").instances.remove(0);
    let message = missing.containers[0].message.clone().unwrap_or_default();
    assert!(message.contains("/no/such/program") && !message.contains('\n'), "{missing:?}");
}

#[test]
fn containers_start_after_those_they_name() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    let shared = |mut container: Value, after: &[&str]| {
        container["volumeMounts"] = json!([{"name": "shared", "mountPath": "/shared"}]);
        container["agentd"] = json!({"startAfter": after});
        container
    };
    let mut store = shared(container("store", "sleep 0.5; echo 1 > /shared/ready; exec sleep 1000"), &["prepare"]);
    store["healthCheck"] = json!({"exec": {"command": {"shell": "test -e /shared/ready"}}, "delaySeconds": 0,
        "intervalSeconds": 0.3, "timeoutSeconds": 0.25, "gracePeriodSeconds": 30});
    // the order in the list is another than that of the starts
    let containers = [
        shared(container("web", "cat /shared/prepared /shared/ready && exec sleep 1000"), &["store"]),
        store,
        shared(container("prepare", "sleep 0.2; echo 0 > /shared/prepared"), &[]),
    ];
    let mut ordered = pod("/ordered", &containers, json!({"restart": "never"}));
    ordered["volumes"] = json!([{"name": "shared"}]);
    create(&client, &ordered);
    let staging = client.container("/ordered", "web");
    assert_eq!((staging.state, staging.attempt), (TaskState::TaskStaging, 0), "{staging:?}");
    let status = client.get("/v1/pods/ordered/wait?until=running&timeout=30");
    assert!(status.ok(), "{}", status.text);
    until("web has read both", PATIENCE, || (client.logs("/ordered", "web") == "0\n1\n").then_some(()));
    let instance = client.instance("/ordered");
    assert_eq!(instance.phase, InstancePhase::Running, "{instance:?}");
    assert_eq!(instance.containers[1].healthy, Some(true));
    assert_eq!(instance.containers[2].state, TaskState::TaskFinished);
    let started = |slot: usize| moment(instance.containers[slot].started_at.as_deref().unwrap());
    assert!(started(2) <= started(1) && started(1) < started(0), "{instance:?}");
    client.rm("/ordered");

    // what waits for a container that has failed for good does not start
    let mut late = container("late", "echo never");
    late["agentd"] = json!({"startAfter": ["first"]});
    let settings = json!({"restart": "never", "restartScope": "container"});
    let mut first = container("first", "");
    first["exec"] = json!({"command": {"argv": ["/no/such/program"]}});
    create(&client, &pod("/lost", &[first, late], settings));
    let lost = client.wait_finished("/lost").instances.remove(0);
    let late = &lost.containers[1];
    assert_eq!((late.state, late.attempt), (TaskState::TaskError, 0), "{lost:?}");
    assert!(late.message.as_ref().is_some_and(|message| message.contains("first")), "{late:?}");
}

/// A health check with a quick timing, of which the first success comes when it comes.
fn check(kind: Value) -> Value {
    let mut check = json!({"delaySeconds": 0, "intervalSeconds": 0.6, "timeoutSeconds": 0.55, "gracePeriodSeconds": 30,
        "maxConsecutiveFailures": 2});
    check.as_object_mut().unwrap().extend(kind.as_object().unwrap().clone());
    check
}

#[test]
fn health_checks_of_each_kind_pass_fail_and_restart() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    let program = |name: &str, words: &[&str], endpoint: Value, check: Value| {
        let mut container = container(name, "");
        let argv = [&["/opt/testbox"], words].concat();
        container["exec"] = json!({"command": {"argv": argv}});
        container["endpoints"] = json!([{"name": format!("port-{name}"), "containerPort": endpoint}]);
        container["volumeMounts"] = json!([{"name": "testbox", "mountPath": "/opt/testbox", "readOnly": true},
            {"name": "shared", "mountPath": "/shared"}]);
        container["healthCheck"] = check;
        container
    };
    let with_tools = |mut pod: Value| {
        pod["volumes"] = json!([{"name": "testbox", "host": images::testbox()}, {"name": "shared"}]);
        pod
    };
    let web = |path: &str| {
        let words = ["web", "--port", "80", "--cache", "127.0.0.1:81", "--dir", "/shared"];
        program("web", &words, json!(80), check(json!({"http": {"endpoint": "port-web", "path": path}})))
    };
    let cache = || {
        program(
            "cache",
            &["cache", "--port", "81", "--dir", "/shared"],
            json!(81),
            check(json!({"tcp": {"endpoint": "port-cache"}})),
        )
    };
    let exec = |line: &str| {
        let mut container = program("exec", &["hold"], json!(82), check(json!({"exec": {"command": {"shell": line}}})));
        container["agentd"] = json!({"log": {"maxBytes": 4096}});
        container
    };
    let well = [
        web("/health"),
        cache(),
        exec("test -d /shared && test \"$MARATHON_APP_ID\" = /well && ! test -e /shared/ill"),
    ];
    create(&client, &with_tools(pod("/well", &well, json!({"restartScope": "container"}))));
    for name in ["web", "cache", "exec"] {
        wait_container(&client, "/well", name, |c| c.healthy == Some(true));
    }
    wait_phase(&client, "/well", InstancePhase::Running);

    // a file in the shared volume makes the command fail: the container is killed, told so, and started again
    let before = client.container("/well", "exec");
    let volume = daemon.state().join("sandboxes").join(client.instance("/well").id).join("volumes/shared");
    let inside = PathBuf::from(format!("/proc/{}/root/shared/ill", client.container("/well", "cache").pid.unwrap()));
    fs::write(&inside, "").unwrap_or_else(|e| panic!("{}: {e} (the volume is {})", inside.display(), volume.display()));
    wait_container(&client, "/well", "exec", |c| c.attempt > before.attempt);
    fs::remove_file(&inside).unwrap();
    wait_container(&client, "/well", "exec", |c| c.healthy == Some(true));
    let ends = events(&client, "container-ended", "/well");
    assert!(
        ends.iter().any(|end| end.contains("TASK_FAILED") && end.contains("health check failed 2 of 2")),
        "{ends:?}"
    );
    assert_eq!(client.container("/well", "cache").attempt, 1);
    client.rm("/well");

    // each kind failing: killed with the reason of a health check
    let mut silent = cache();
    silent["endpoints"][0]["containerPort"] = json!(99);
    let mut slow = exec("sleep 5");
    slow["healthCheck"]["timeoutSeconds"] = json!(0.15);
    let ill = [
        ("http", web("/nowhere"), "404"),
        ("tcp", silent, "refused"),
        ("exec", exec("exit 7"), "7"),
        ("slow", slow, "150ms"),
    ];
    for (id, container, _) in &ill {
        let mut container = container.clone();
        container["healthCheck"]["gracePeriodSeconds"] = json!(0);
        create(&client, &with_tools(pod(&format!("/{id}"), &[container], json!({"restart": "never"}))));
    }
    for (id, _, says) in &ill {
        let instance = client.wait_finished(&format!("/{id}")).instances.remove(0);
        let container = &instance.containers[0];
        assert_eq!(
            (container.state, container.reason, container.attempt),
            (TaskState::TaskFailed, Some(Reason::TaskHealthCheckFailed), 1),
            "{id}: {container:?}"
        );
        let message = container.message.clone().unwrap_or_default();
        assert!(message.contains(says) && !message.contains('\n'), "{id}: {message}");
    }

    // 0 never kills: the pod is unhealthy, and goes on
    let mut patient = exec("exit 1");
    patient["healthCheck"]["gracePeriodSeconds"] = json!(0);
    patient["healthCheck"]["maxConsecutiveFailures"] = json!(0);
    create(&client, &with_tools(pod("/patient", &[patient], json!({}))));
    wait_container(&client, "/patient", "exec", |c| c.healthy == Some(false));
    wait_phase(&client, "/patient", InstancePhase::Degraded);
    assert_eq!(client.container("/patient", "exec").attempt, 1);
}

#[test]
fn an_end_is_asked_for_then_forced() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    let before = daemon.snapshot();
    let with_grace = |id: &str, line: &str, grace: f64| {
        pods::with_container(pods::shell(id, line), |container| {
            container["lifecycle"] = json!({"killGracePeriodSeconds": grace});
        })
    };
    let timed = |id: &str| {
        let since = Instant::now();
        client.rm(id);
        since.elapsed()
    };
    let ready = |id: &str| until("the trap is set", PATIENCE, || client.logs(id, "main").contains("set").then_some(()));

    // one that listens ends at once and well, long before its grace is over
    client.run_pod(&with_grace(
        "/listens",
        "trap 'echo bye; exit 0' TERM; echo set; while :; do sleep 0.05; done",
        60.0,
    ));
    ready("/listens");
    let took = timed("/listens");
    assert!(took < Duration::from_secs(20), "{took:?}");
    let ends = events(&client, "container-ended", "/listens");
    assert!(ends.len() == 1 && !ends[0].contains("TASK_FAILED"), "{ends:?}");

    // one that does not is killed after its grace, with all that it started
    let line = "trap '' TERM; setsid sleep 1000 & echo set; while :; do sleep 0.05; done";
    client.run_pod(&with_grace("/deaf", line, 0.7));
    ready("/deaf");
    let took = timed("/deaf");
    assert!(took >= Duration::from_millis(650) && took < Duration::from_secs(20), "{took:?}");

    // no grace at all
    client.run_pod(&with_grace("/none", "trap '' TERM; echo set; while :; do sleep 0.05; done", 0.0));
    ready("/none");
    assert!(timed("/none") < Duration::from_secs(20));

    // two that wait do so side by side
    let mut deaf = pod("/both", &[container("a", line), container("b", line)], json!({}));
    for container in deaf["containers"].as_array_mut().unwrap() {
        container["lifecycle"] = json!({"killGracePeriodSeconds": 1});
    }
    client.run_pod(&deaf);
    for name in ["a", "b"] {
        until("the trap is set", PATIENCE, || client.logs("/both", name).contains("set").then_some(()));
    }
    let (one, two) = (client.clone(), client.clone());
    let both = [
        std::thread::spawn(move || one.delete("/v1/pods/both").status),
        std::thread::spawn(move || two.delete("/v1/pods/both").status),
    ];
    let mut answers: Vec<u16> = both.map(|thread| thread.join().unwrap()).to_vec();
    answers.sort_unstable();
    assert!(answers == [204, 404] || answers == [204, 204], "{answers:?}");
    before.assert_same();
}
