//! What becomes of a pod when its launcher or its container is killed, and whether the daemon itself stays small.

use std::fs;
use std::path::Path;
use std::time::Duration;

use agentd_api::status::{ContainerStatus, ExitStatus, InstancePhase, Reason, TaskState};
use agentd_tests::{Client, Daemon, host, marked, pods, privileged, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(20);

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

/// A pod on the bridge that runs until it is ended.
fn lasting(id: &str, mark: &str, restart: &str) -> Value {
    json!({
        "id": id,
        "containers": [{
            "name": "main",
            "exec": {"command": {"argv": ["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done", mark]}},
            "resources": {"cpus": 0.05, "mem": 32},
            "endpoints": [{"name": "web", "containerPort": 80, "hostPort": 0}],
            "volumeMounts": [{"name": "quick", "mountPath": "/quick"}],
        }],
        "volumes": [{"name": "quick", "agentd": {"tmpfsMib": 1}}],
        "networks": [{"mode": "container"}],
        "agentd": {"restart": restart},
        "scheduling": {"backoff": {"backoff": 0.2}},
    })
}

fn runs_again(client: &Client, id: &str, attempt: u32) -> ContainerStatus {
    until(&format!("{id} runs for the {attempt}. time"), DEADLINE, || {
        let container = client.container(id, "main");
        (container.state == TaskState::TaskRunning && container.attempt >= attempt).then_some(container)
    })
}

/// Whether a container's network is set up: its end of the link has an address.
fn has_address(pid: u32) -> bool {
    // the routes of the process's own network namespace
    fs::read_to_string(format!("/proc/{pid}/net/route")).is_ok_and(|routes| routes.lines().count() > 1)
}

fn mounted(pid: u32, point: &str) -> bool {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(4) == Some(point))
}

#[test]
fn a_dead_launcher_takes_its_pod_along_which_starts_again_elsewhere() {
    privileged!();
    let mut daemon = Daemon::start();
    let client = daemon.client();
    client.run_pod(&pods::sleeper("/beside"));
    let beside = client.container("/beside", "main").pid;
    let before = daemon.snapshot();
    let mark = format!("{}-launcher", daemon.instance());
    client.run_pod(&lasting("/app", &mark, "always"));
    client.run_pod(&lasting("/never", &format!("{mark}-never"), "never"));
    for (round, attempt) in [(0, 2), (1, 3), (2, 4)] {
        let (init, old) = (client.instance("/app").init_pid.unwrap(), client.container("/app", "main").pid.unwrap());
        assert_eq!(marked::processes(&mark), [old]);
        // the second time nobody is there to see it; the third time the daemon is killed right after
        if round == 1 {
            daemon.kill9();
        }
        kill(init);
        if round == 2 {
            daemon.kill9();
        }
        if round > 0 {
            daemon.restart();
        }
        let now = runs_again(&client, "/app", attempt);
        assert_eq!(now.attempt, attempt, "{now:?}");
        assert_ne!(client.instance("/app").init_pid, Some(init));
        assert_eq!(marked::processes(&mark), [now.pid.unwrap()]);
        assert!(has_address(now.pid.unwrap()), "the new sandbox is not on the network");
        assert!(mounted(now.pid.unwrap(), "/quick"), "the new sandbox lacks a volume");
    }
    kill(client.instance("/never").init_pid.unwrap());
    let never = client.wait_finished("/never");
    let container = &never.instances[0].containers[0];
    assert_eq!(never.instances[0].phase, InstancePhase::Failed);
    assert_eq!(
        (container.reason, container.exit, container.attempt),
        (Some(Reason::ContainerLauncherDied), Some(ExitStatus::Unknown), 1),
        "{container:?}"
    );
    assert!(marked::processes(&format!("{mark}-never")).is_empty());
    assert_eq!(client.container("/beside", "main").pid, beside);
    client.rm("/app");
    client.rm("/never");
    before.assert_same();
}

#[test]
fn a_launcher_killed_before_it_is_used_is_replaced() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    let before = daemon.snapshot();
    for id in sandboxes(&daemon) {
        for pid in processes_of(&daemon, &id) {
            kill(pid);
        }
    }
    client.run_pod(&pods::sleeper("/first"));
    assert_eq!(client.container("/first", "main").attempt, 1);
    client.rm("/first");
    before.assert_same();
}

fn sandboxes(daemon: &Daemon) -> Vec<String> {
    let entries = fs::read_dir(daemon.run().join("pods")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// Processes of a sandbox that are its pod-init.
fn processes_of(daemon: &Daemon, sandbox: &str) -> Vec<u32> {
    let path = host::unified().unwrap().join(daemon.instance()).join("pods").join(sandbox).join("init/cgroup.procs");
    fs::read_to_string(path).unwrap_or_default().lines().filter_map(|line| line.parse().ok()).collect()
}

#[test]
fn a_dead_zygote_is_replaced() {
    privileged!();
    let daemon = Daemon::with().set("pods.pool_size=0").start();
    let client = daemon.client();
    client.run_pod(&pods::sleeper("/first"));
    let first = client.container("/first", "main").pid;
    for round in 0..3 {
        let zygotes: Vec<u32> = children(daemon.pid());
        assert_eq!(zygotes.len(), 1, "{zygotes:?}");
        if round == 1 {
            // not dead, but deaf: the next fork waits until it has died
            signal(zygotes[0], Signal::STOP);
            let client = client.clone();
            let second = std::thread::spawn(move || client.run_pod(&pods::sleeper("/second")));
            std::thread::sleep(Duration::from_millis(300));
            kill(zygotes[0]);
            second.join().unwrap();
        } else {
            kill(zygotes[0]);
            client.run_pod(&pods::sleeper("/second"));
        }
        let sandbox = client.instance("/second").id;
        assert_eq!(processes_of(&daemon, &sandbox).len(), 1, "a sandbox has one pod-init");
        client.rm("/second");
        assert_eq!(client.container("/first", "main").pid, first);
    }
}

/// Children of the daemon that are pod-init.
fn children(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let zygote = |pid: &u32| {
        marked::parent(*pid) == Some(parent)
            && fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "pod-init\n")
    };
    pids.filter(zygote).collect()
}

#[test]
fn a_killed_container_is_told_with_its_signal() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    let before = daemon.snapshot();
    let mark = format!("{}-container", daemon.instance());
    client.run_pod(&lasting("/never", &mark, "never"));
    kill(client.container("/never", "main").pid.unwrap());
    let status = client.wait_finished("/never");
    let container = &status.instances[0].containers[0];
    assert_eq!(
        (container.state, container.exit),
        (TaskState::TaskFailed, Some(ExitStatus::Signal(9))),
        "{container:?}"
    );
    client.rm("/never");
    client.run_pod(&lasting("/always", &mark, "always"));
    let init = client.instance("/always").init_pid;
    kill(client.container("/always", "main").pid.unwrap());
    let again = runs_again(&client, "/always", 2);
    assert_eq!(client.instance("/always").init_pid, init, "its sandbox stays");
    assert_eq!(marked::processes(&mark), [again.pid.unwrap()]);
    client.rm("/always");
    before.assert_same();
}

#[test]
fn the_rest_of_a_container_dies_with_its_first_process_whoever_is_watching() {
    privileged!();
    let mut daemon = Daemon::start();
    let client = daemon.client();
    let before = daemon.snapshot();
    let mark = format!("{}-rest", daemon.instance());
    // with a shared pid namespace the kernel does not end the others
    let mut pod = lasting("/shared", "first", "never");
    let line = "sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' \"$0\" & exec sleep 1000000";
    pod["containers"][0]["exec"]["command"]["argv"] = json!(["/bin/sh", "-c", line, mark]);
    pod["agentd"]["sharePid"] = json!(true);
    client.run_pod(&pod);
    until("the child runs", DEADLINE, || (marked::processes(&mark).len() == 1).then_some(()));
    let first = client.container("/shared", "main").pid.unwrap();
    until("the first process is asleep", DEADLINE, || {
        fs::read_to_string(format!("/proc/{first}/comm")).is_ok_and(|name| name == "sleep\n").then_some(())
    });
    daemon.kill9();
    kill(first);
    daemon.restart();
    let status = client.wait_finished("/shared");
    assert_eq!(status.instances[0].containers[0].exit, Some(ExitStatus::Signal(9)));
    until("the rest has been killed", DEADLINE, || marked::processes(&mark).is_empty().then_some(()));
    client.rm("/shared");
    before.assert_same();
}

/// Linux from 6.14 kills what is cloned into a cgroup that was once killed as a whole.
#[test]
fn a_container_whose_cgroup_was_killed_starts_again() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    let before = daemon.snapshot();
    let mark = format!("{}-again", daemon.instance());
    let mut pod = lasting("/again", &mark, "always");
    pod["containers"][0]["exec"]["command"]["argv"][2] = json!("trap '' TERM; while :; do sleep 0.1; done");
    pod["containers"][0]["lifecycle"] = json!({"killGracePeriodSeconds": 0});
    let mut other = pods::shell("/x", "exec sleep 1000000")["containers"][0].clone();
    other["name"] = json!("other");
    pod["containers"].as_array_mut().unwrap().push(other);
    client.run_pod(&pod);
    for attempt in 2..5 {
        let old = client.container("/again", "main").pid.unwrap();
        kill(client.container("/again", "other").pid.unwrap());
        let now = runs_again(&client, "/again", attempt);
        assert_eq!(now.attempt, attempt, "{now:?}");
        assert_eq!(client.container("/again", "other").attempt, attempt);
        assert!(marked::processes(&mark) == [now.pid.unwrap()] && now.pid != Some(old));
        until("both run", DEADLINE, || (client.instance("/again").phase == InstancePhase::Running).then_some(()));
    }
    client.rm("/again");
    before.assert_same();
}

/// Exit statuses are kept on tmpfs only until the checkpoint has them.
#[test]
fn a_container_that_restarts_for_ever_leaves_no_trail() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    let mut pod = pods::shell("/flapping", "exit 3");
    pod["agentd"]["restart"] = json!("always");
    pod["scheduling"] = json!({"backoff": {"backoff": 0.01, "backoffFactor": 1}});
    client.run_pod(&pod);
    until("it has restarted twenty times", DEADLINE, || {
        (client.container("/flapping", "main").attempt > 20).then_some(())
    });
    let id = client.instance("/flapping").id;
    let count = |folder: &Path| fs::read_dir(folder).map_or(0, Iterator::count);
    assert!(count(&daemon.run().join("pods").join(&id).join("exits")) <= 2);
    assert!(count(&daemon.state().join("sandboxes").join(&id).join("upper")) <= 2);
    client.rm("/flapping");
}

#[test]
fn a_daemon_that_has_run_many_pods_holds_no_more_than_before() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    let before = daemon.snapshot();
    let round = |count: usize| {
        for n in 0..count {
            let mut pod = pods::shell("/brief", "exit 0");
            if n % 10 == 0 {
                pod["agentd"] = json!({"restart": "never"});
                pod["networks"] = json!([{"mode": "container"}]);
            }
            if n % 4 != 0 {
                pod["containers"][0]["resources"] = json!({"cpus": 0.1, "mem": 32});
            }
            client.run_to_end(&pod);
        }
        before.assert_same();
    };
    // what is kept for good is there after the first
    round(40);
    let (descriptors, memory, threads) = (daemon.descriptors(), resident_kib(daemon.pid()), threads(daemon.pid()));
    round(200);
    let now = (daemon.descriptors(), resident_kib(daemon.pid()), self::threads(daemon.pid()));
    println!("descriptors {descriptors} → {}, resident {memory} → {} KiB, threads {threads} → {}", now.0, now.1, now.2);
    assert!(now.0 <= descriptors + 5, "descriptors: {descriptors} before, {} after", now.0);
    assert!(now.1 <= memory + 16 * 1024, "resident KiB: {memory} before, {} after", now.1);
}

fn resident_kib(pid: u32) -> u64 {
    field(pid, "VmRSS:")
}

fn threads(pid: u32) -> u64 {
    field(pid, "Threads:")
}

fn field(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
