//! The life of pods on a real daemon: restarts and their delays, the order of starts, health checks, ends, changes in
//! place, numbers of instances, reboots, admission.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use agentd_api::status::{ContainerStatus, ExitStatus, InstancePhase, Reason, TaskState};
use agentd_tests::{Client, Daemon, arena, binary, eventually, host, images, pods, privileged, until};
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
    assert!(instance.containers[2].started_at <= instance.containers[1].started_at);
    assert!(instance.containers[1].started_at < instance.containers[0].started_at);
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

/// A limit as the kernel has it, from whichever hierarchy has the controller.
fn limit(cgroup: &str, controller: &str, file_v1: &str, file_v2: &str) -> String {
    for tree in host::cgroup_trees() {
        let of_controller =
            tree.file_name().is_some_and(|name| name.to_string_lossy().split(',').any(|part| part == controller));
        let path = tree.join(cgroup).join(if of_controller { file_v1 } else { file_v2 });
        if let Ok(text) = fs::read_to_string(path) {
            return text.trim().to_owned();
        }
    }
    panic!("no {controller} limit of {cgroup}");
}

#[test]
fn resources_change_in_place() {
    privileged!();
    let daemon = Daemon::with().set("resources.cpus=2").set("reserved.cpus=0").start();
    let client = daemon.client();
    let mut wanted = pods::sleeper("/grows");
    client.run_pod(&wanted);
    let before = client.container("/grows", "main");
    let cgroup = before.cgroup.clone().unwrap();
    let memory = || limit(&cgroup, "memory", "memory.limit_in_bytes", "memory.max");
    let quota = || {
        let text = limit(&cgroup, "cpu", "cpu.cfs_quota_us", "cpu.max");
        let period = limit(&cgroup, "cpu", "cpu.cfs_period_us", "cpu.max");
        let number = |text: &str, at: usize| text.split(' ').nth(at).unwrap_or(text).parse::<f64>().unwrap();
        number(&text, 0) / number(&period, period.split(' ').count() - 1)
    };
    assert_eq!(memory(), (64 << 20).to_string());
    assert!((quota() - 0.1).abs() < 0.001, "{}", quota());
    let used = || client.get("/v1/node").json["used"].clone();
    assert_eq!((used()["cpus"].as_f64(), used()["mem"].as_f64()), (Some(0.2), Some(96.0)), "{}", used());

    wanted["containers"][0]["resources"]["cpus"] = json!(0.5);
    wanted["containers"][0]["resources"]["mem"] = json!(96);
    let answer = client.put("/v1/pods/grows", &wanted);
    assert!(answer.ok(), "{}", answer.text);
    assert_eq!(memory(), (96 << 20).to_string());
    assert!((quota() - 0.5).abs() < 0.001, "{}", quota());
    let after = client.container("/grows", "main");
    assert_eq!((after.pid, after.attempt), (before.pid, 1), "it was restarted");
    assert_eq!((used()["cpus"].as_f64(), used()["mem"].as_f64()), (Some(0.6), Some(128.0)), "{}", used());

    // down again, in one call with another number of instances
    wanted["containers"][0]["resources"]["mem"] = json!(48);
    assert!(client.put("/v1/pods/grows", &wanted).ok());
    assert_eq!(memory(), (48 << 20).to_string());

    // anything else is refused by its field, and nothing changes
    let refusals: [(&str, Value, &str); 4] = [
        ("/containers/0/exec/command/shell", json!("exec sleep 1"), "containers[0].exec.command.shell"),
        ("/containers/0/resources/disk", json!(64), "containers[0].resources.disk"),
        ("/agentd/restart", json!("always"), "agentd.restart"),
        ("/containers/0/name", json!("other"), "containers[0].name"),
    ];
    for (pointer, value, field) in refusals {
        let mut other = wanted.clone();
        *other.pointer_mut(pointer).unwrap() = value;
        other["containers"][0]["resources"]["mem"] = json!(80);
        let answer = client.put("/v1/pods/grows", &other);
        assert_eq!((answer.status, answer.json["errors"][0]["path"].as_str()), (400, Some(field)), "{}", answer.text);
    }
    let mut huge = wanted.clone();
    huge["containers"][0]["resources"]["cpus"] = json!(3);
    let answer = client.put("/v1/pods/grows", &huge);
    assert_eq!((answer.status, answer.json["type"].as_str()), (409, Some("insufficient-resources")), "{}", answer.text);
    assert_eq!(memory(), (48 << 20).to_string());
    assert_eq!(client.container("/grows", "main").pid, before.pid);
    assert_eq!(client.pod("/grows").spec.containers[0].resources.mem, 48.0);
    client.rm("/grows");
    assert_eq!((used()["cpus"].as_f64(), used()["mem"].as_f64()), (Some(0.0), Some(0.0)));
}

#[test]
fn instances_are_as_many_as_asked_for() {
    privileged!();
    let daemon = Daemon::with().set("resources.cpus=8").start();
    let client = daemon.client();
    let before = daemon.snapshot();
    let scaled = |instances: u32| {
        let mut pod = pods::sleeper("/scaled");
        pod["scaling"] = json!({"instances": instances});
        pod
    };
    let ids = || client.pod("/scaled").instances.into_iter().map(|i| i.id).collect::<Vec<_>>();
    let running = |count: usize| {
        until("the instances run", PATIENCE, || {
            let instances = client.pod("/scaled").instances;
            (instances.len() == count && instances.iter().all(|i| i.phase == InstancePhase::Running)).then_some(())
        });
    };
    create(&client, &scaled(0));
    assert!(ids().is_empty());
    assert!(client.put("/v1/pods/scaled", &scaled(1)).ok());
    running(1);
    let first = ids();
    assert!(client.put("/v1/pods/scaled", &scaled(3)).ok());
    running(3);
    let all = ids();
    assert_eq!((all.iter().collect::<BTreeSet<_>>().len(), &all[..1]), (3, &first[..]));
    let pids: BTreeSet<_> = client.pod("/scaled").instances.iter().map(|i| i.containers[0].pid).collect();
    assert_eq!(pids.len(), 3);
    // the youngest go first
    assert!(client.put("/v1/pods/scaled", &scaled(1)).ok());
    assert_eq!(ids(), first);
    assert!(client.put("/v1/pods/scaled", &scaled(0)).ok());
    assert!(ids().is_empty());
    client.rm("/scaled");
    before.assert_same();
}

#[test]
fn persistent_pods_start_again_after_a_reboot() {
    privileged!();
    let mut daemon = Daemon::start();
    let client = daemon.client();
    let mut persistent = pods::sleeper("/persistent");
    persistent["agentd"]["persistent"] = json!(true);
    persistent["containers"][0]["exec"]["command"]["shell"] = json!("echo started; exec sleep 1000000");
    client.run_pod(&persistent);
    client.run_pod(&pods::sleeper("/fleeting"));
    let old = client.instance("/persistent").id;
    assert!(daemon.terminate().success());

    // what a reboot does: every process and cgroup and the run folder are gone, and the boot is another
    for tree in host::cgroup_trees() {
        let _ = fs::write(tree.join(daemon.instance()).join("cgroup.kill"), "1");
    }
    let empty = eventually(PATIENCE, || {
        let mut left = 0;
        for cgroup in host::cgroup_trees().iter().flat_map(|tree| host::cgroups_below(&tree.join(daemon.instance()))) {
            left += usize::from(fs::remove_dir(cgroup).is_err());
        }
        left == 0
    });
    assert!(empty, "the pods' cgroups could not be removed");
    let boot = daemon.run().join("boot");
    for entry in fs::read_dir(daemon.run()).unwrap() {
        let path = entry.unwrap().path();
        // half of the run folder stays, as where it is on a disk: the boot id tells that it is stale
        if path != boot && path != daemon.run().join("pods") {
            if path.is_dir() { fs::remove_dir_all(&path).unwrap() } else { fs::remove_file(&path).unwrap() }
        }
    }
    fs::write(&boot, "00000000-0000-0000-0000-000000000000\n").unwrap();

    daemon.restart();
    wait_phase(&client, "/persistent", InstancePhase::Running);
    let instance = client.instance("/persistent");
    assert_ne!(instance.id, old, "an instance of before the reboot is told of");
    assert_eq!(client.logs("/persistent", "main"), "started\n");
    assert_eq!(client.get("/v1/pods/fleeting").status, 404);
    assert!(!daemon.run().join("pods").join(&old).exists());
    client.rm("/persistent");
    assert!(daemon.terminate().success());
    daemon.snapshot().assert_nothing_left();

    // once removed it stays away
    fs::write(&boot, "00000000-0000-0000-0000-000000000001\n").unwrap();
    daemon.restart();
    assert_eq!(client.get("/v1/pods").text.trim(), "[]");
}

#[test]
fn what_does_not_fit_is_refused_with_what_is_short() {
    privileged!();
    let daemon = Daemon::with()
        .set("resources.cpus=1")
        .set("resources.memory_mib=1024")
        .set("reserved.memory_mib=0")
        .set("reserved.cpus=0")
        .start();
    let client = daemon.client();
    let before = daemon.snapshot();
    let sized = |id: &str, cpus: f64, mem: u32| {
        pods::with_container(pods::sleeper(id), |container| {
            container["resources"] = json!({"cpus": cpus, "mem": mem, "disk": 16});
        })
    };
    let answer = client.post("/v1/pods", &sized("/large", 2.0, 2048));
    assert_eq!((answer.status, answer.json["type"].as_str()), (409, Some("insufficient-resources")), "{}", answer.text);
    let errors = answer.json["errors"].as_array().unwrap();
    let short: Vec<&str> = errors.iter().map(|error| error["path"].as_str().unwrap()).collect();
    assert_eq!(short, ["resources.cpus", "resources.mem"], "{}", answer.text);
    assert!(
        errors
            .iter()
            .all(|e| ["needed", "free", "short"].iter().all(|word| e["message"].as_str().unwrap().contains(word)))
    );
    // agentctl shows the table
    let file = daemon.dir().join("large.json");
    fs::write(&file, sized("/large", 2.0, 2048).to_string()).unwrap();
    let mut command = std::process::Command::new(binary("agentctl"));
    let output = command.arg("--socket").arg(daemon.socket()).args(["pod", "run"]).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(4) && said.contains("cpus") && said.contains("2.1"), "{output:?}");
    fs::remove_file(&file).unwrap();

    client.run_pod(&sized("/one", 0.4, 100));
    client.run_pod(&sized("/two", 0.3, 100));
    let answer = client.post("/v1/pods", &sized("/three", 0.3, 100));
    assert_eq!(answer.status, 409, "{}", answer.text);
    assert_eq!(client.get("/v1/pods/three").status, 404);
    // of two that fit only together with nobody, one gets it
    client.rm("/two");
    let mut statuses: Vec<u16> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|number| {
                let (client, pod) = (client.clone(), sized(&format!("/race-{number}"), 0.3, 100));
                scope.spawn(move || client.post("/v1/pods", &pod).status)
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409, 409, 409]);
    for status in client.get("/v1/pods").json.as_array().unwrap().clone() {
        client.rm(status["id"].as_str().unwrap());
    }
    assert_eq!(client.get("/v1/node").json["used"]["cpus"], json!(0.0));
    before.assert_same();
}

#[test]
fn two_daemons_live_side_by_side() {
    privileged!();
    let (mut one, two) = (Daemon::start(), Daemon::start());
    let (first, second) = (one.client(), two.client());
    for client in [&first, &second] {
        let mut pod = arena::tools(pods::argv("/same", &["/opt/testbox", "listen", "7000"]));
        pod["networks"] = json!([{"mode": "container"}]);
        pod["agentd"] = json!({"restart": "never"});
        pod["containers"][0]["endpoints"] = json!([{"name": "port", "containerPort": 7000, "hostPort": 0}]);
        client.run_pod(&pod);
    }
    let (a, b) = (first.instance("/same"), second.instance("/same"));
    assert_ne!((&a.id, &a.addresses, a.containers[0].pid), (&b.id, &b.addresses, b.containers[0].pid));
    assert_ne!(a.containers[0].endpoints[0].host_port, b.containers[0].endpoints[0].host_port);
    // a second one for the same folder is refused with an exit code of its own
    let output = std::process::Command::new(binary("agentd")).args(["run", "--dev"]).arg(two.dir()).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let other = two.snapshot();
    first.rm("/same");
    assert!(one.terminate().success());
    one.snapshot().assert_nothing_left();
    other.assert_same();
    let port = b.containers[0].endpoints[0].host_port.unwrap();
    until("the other pod still answers", PATIENCE, || {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut std::net::TcpStream::connect(("127.0.0.1", port)).ok()?, &mut text).ok()?;
        (text == "hello\n").then_some(())
    });
    assert_eq!(second.container("/same", "main").pid, b.containers[0].pid);
}
