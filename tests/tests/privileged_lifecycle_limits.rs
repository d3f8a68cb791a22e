//! What each container may have and do, as the pod asks for it: cores, users, processes, limits, capabilities, system calls.

use std::fs;
use std::path::Path;
use std::time::Duration;

use agentd_api::status::{ContainerStatus, Reason, TaskState};
use agentd_tests::{Client, Daemon, eventually, pods, privileged, skip, until};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a line of shell with these settings of the container's `agentd` to its end and returns its log.
#[track_caller]
fn run_with(client: &Client, settings: Value, line: &str) -> String {
    let pod = pods::with_container(pods::shell("/limits", line), |container| container["agentd"] = settings);
    let (status, log) = client.run_to_end(&pod);
    let container = &status.instances[0].containers[0];
    assert_eq!(container.state, TaskState::TaskFinished, "{log}{container:?}");
    log
}

/// The value of a field of /proc/PID/status.
fn field(pid: u32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn running(client: &Client, id: &str) -> (u32, ContainerStatus) {
    let container = client.container(id, "main");
    (container.pid.unwrap_or_else(|| panic!("{id} does not run: {container:?}")), container)
}

#[test]
fn exclusive_cores_are_for_one_container_alone() {
    privileged!();
    let all = field(std::process::id(), "Cpus_allowed_list");
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    if cpus < 2 {
        skip!("this host has only one CPU");
    }
    let daemon = Daemon::with().set("reserved.cpus=0").start();
    let client = daemon.client();
    let sleeper = |id: &str, exclusive: bool| {
        pods::with_container(pods::sleeper(id), |container| {
            container["exec"]["command"]["shell"] = json!("env | grep NUM_THREADS | sort; exec sleep 1000000");
            if exclusive {
                container["resources"]["cpus"] = json!(1);
                container["agentd"] = json!({"exclusiveCores": true});
            }
        })
    };
    client.run_pod(&sleeper("/neighbour", false));
    let (neighbour, _) = running(&client, "/neighbour");
    assert_eq!(field(neighbour, "Cpus_allowed_list"), all);
    client.run_pod(&sleeper("/alone", true));
    let (alone, _) = running(&client, "/alone");
    let own = field(alone, "Cpus_allowed_list");
    assert!(!own.contains(',') || cpus > 2, "{own}");
    assert_ne!(own, all);
    until("libraries are told of one core", PATIENCE, || {
        client.logs("/alone", "main").contains("OMP_NUM_THREADS=1").then_some(())
    });
    // the neighbour is confined to the others, one that comes later too
    let confined = || field(neighbour, "Cpus_allowed_list");
    assert!(eventually(PATIENCE, || confined() != all && confined() != own), "{} beside {own}", confined());
    client.run_pod(&sleeper("/later", false));
    let (later, _) = running(&client, "/later");
    assert_eq!(field(later, "Cpus_allowed_list"), confined());
    // no second core can be given when all would be gone
    if cpus == 2 {
        let answer = client.post("/v1/pods", &sleeper("/second", true));
        let told = if answer.ok() {
            client.wait_finished("/second").instances[0].containers[0].message.clone().unwrap_or_default()
        } else {
            answer.text
        };
        assert!(told.contains("cpus") || told.contains("exclusiveCores"), "{told}");
    }
    client.rm("/alone");
    assert!(eventually(PATIENCE, || confined() == all && field(later, "Cpus_allowed_list") == all), "{}", confined());
}

#[test]
fn users_namespaces_and_shared_processes() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    let before = daemon.snapshot();

    // root inside is nobody outside, and the files of the pod are its own
    let mut pod = pods::sleeper("/mapped");
    pod["agentd"]["userNamespace"] = json!(true);
    pod["volumes"] = json!([{"name": "v"}]);
    let pod = pods::with_container(pod, |container| {
        container["exec"]["command"]["shell"] =
            json!("id -u; echo x > /v/file; echo y > mine; stat -c %u /v/file mine; exec sleep 1000000");
        container["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    });
    client.run_pod(&pod);
    let (pid, _) = running(&client, "/mapped");
    until("the container has written", PATIENCE, || (client.logs("/mapped", "main") == "0\n0\n0\n").then_some(()));
    let outside: u32 = field(pid, "Uid").split(' ').next().unwrap().parse().unwrap();
    assert!(outside >= 65_536, "root of the container is uid {outside} of the host");
    client.rm("/mapped");

    // users by number, with a group of their own
    let mut pod = pods::shell(
        "/user",
        "id -u; id -g; touch mine && stat -c '%u %g' mine; touch /etc/x 2>/dev/null || echo refused",
    );
    pod["user"] = json!("1234:4321");
    assert_eq!(client.run_to_end(&pod).1, "1234\n4321\n1234 4321\nrefused\n");

    // containers of one pod that see each other's processes: the end of one does not take the other along
    let container = |name: &str, line: &str| {
        json!({"name": name, "exec": {"command": {"shell": line}}, "resources": {"cpus": 0.1, "mem": 32, "disk": 8},
            "lifecycle": {"killGracePeriodSeconds": 0.1}})
    };
    let seen = "pgrep -xf 'sleep 77777' > /dev/null && echo seen || echo unseen";
    for (shared, says) in [(true, "seen\n"), (false, "unseen\n")] {
        let line = format!("sleep 0.3; {seen}");
        let pod = json!({
            "id": "/processes",
            "containers": [container("main", "exec sleep 77777"), container("looks", &line)],
            "agentd": {"sharePid": shared, "isolatedNetwork": true, "restart": "never", "restartScope": "container"},
        });
        client.run_pod(&pod);
        until("the second has looked", PATIENCE, || client.container("/processes", "looks").exit);
        assert_eq!(client.logs("/processes", "looks"), says, "sharePid {shared}");
        let main = client.container("/processes", "main");
        assert_eq!((main.state, main.attempt), (TaskState::TaskRunning, 1), "{main:?}");
        client.rm("/processes");
    }
    before.assert_same();
}

#[test]
fn limits_capabilities_and_profiles_are_as_asked() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();

    let line = "ulimit -n; ulimit -Hn; ulimit -c";
    let rlimits = json!({"rlimits": {"nofile": [300, 400], "core": [0, 0]}});
    assert_eq!(run_with(&client, rlimits, line), "300\n400\n0\n");

    let has = |settings: Value, number: u32| -> bool {
        let log = run_with(&client, settings, "grep CapEff /proc/self/status");
        let mask = u64::from_str_radix(log.split_whitespace().last().unwrap(), 16).unwrap();
        mask & (1 << number) != 0
    };
    let (chown, sys_time, net_admin) = (0, 25, 12);
    assert!(has(json!({}), chown) && !has(json!({}), net_admin));
    assert!(!has(json!({"capabilities": {"drop": ["CHOWN"]}}), chown));
    assert!(has(json!({"capabilities": {"add": ["CAP_NET_ADMIN"]}}), net_admin));
    assert!(!has(json!({"capabilities": {"drop": ["all"], "add": ["net_admin"]}}), chown));
    assert!(!has(json!({"capabilities": {"drop": ["ALL"]}}), sys_time));

    // the built-in filter, none, and one of the node's folder
    let mode = "grep ^Seccomp: /proc/self/status";
    assert_eq!(run_with(&client, json!({}), mode), "Seccomp:\t2\n");
    assert_eq!(run_with(&client, json!({"seccomp": "unconfined"}), mode), "Seccomp:\t0\n");
    let folder = daemon.dir().join("seccomp");
    fs::create_dir_all(&folder).unwrap();
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]});
    fs::write(folder.join("no-folders.json"), profile.to_string()).unwrap();
    for name in ["no-folders", "no-folders.json"] {
        let log = run_with(
            &client,
            json!({"seccomp": {"profile": name}}),
            "mkdir x 2>&1 || echo refused; touch y && echo fine",
        );
        assert!(log.contains("Operation not supported") && log.ends_with("refused\nfine\n"), "{log}");
    }

    // processes, root, folder to start in
    let line =
        "(for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24; do sleep 5 & done) 2>&1 | head -1";
    let log = run_with(&client, json!({"pids": 16}), line);
    assert!(log.contains("fork"), "{log}");
    let line = "{ echo x > /tmp/x; } 2>/dev/null && echo tmp; { echo x > mine; } 2>/dev/null && echo sandbox; \
                { mkdir /new; } 2>/dev/null || echo refused; pwd";
    assert_eq!(run_with(&client, json!({"readOnlyRoot": true, "workdir": "/usr"}), line).lines().last(), Some("/usr"));
    let log = run_with(&client, json!({"readOnlyRoot": true}), line);
    assert!(log.contains("sandbox\nrefused\n") && log.ends_with("/mnt/mesos/sandbox\n"), "{log}");
}

#[test]
fn a_disk_limit_holds() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    let before = daemon.snapshot();
    let pod = pods::with_container(
        pods::shell("/disk", "head -c 30000000 /dev/zero > big; echo $?; sleep 20"),
        |container| {
            container["resources"]["disk"] = json!(12);
        },
    );
    client.post("/v1/pods", &pod);
    // the write fails, or where the host can only measure, the container is ended and told why
    let mut refused = false;
    until("the limit is noticed", PATIENCE, || {
        let container = client.container("/disk", "main");
        refused = client.logs("/disk", "main").contains("No space left");
        (refused || container.reason == Some(Reason::ContainerLimitationDisk)).then_some(())
    });
    if !refused {
        let container = client.container("/disk", "main");
        assert!(container.message.as_ref().is_some_and(|message| message.contains("disk limit")), "{container:?}");
    }
    client.rm("/disk");
    before.assert_same();

    // measured: the limit is the pod's, its supervisor's part included
    let daemon = Daemon::with().set("pods.disk_enforcement=meter").start();
    let client = daemon.client();
    client.post("/v1/pods", &pod);
    let container = client.wait_finished("/disk").instances.remove(0).containers.remove(0);
    assert_eq!((container.state, container.reason), (TaskState::TaskFailed, Some(Reason::ContainerLimitationDisk)));
    let message = container.message.unwrap_or_default();
    assert!(message.contains("22.0 MiB") && message.contains("resources.disk") && !message.contains('\n'), "{message}");
}

#[test]
fn a_memory_limit_is_told_with_its_peak() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    let line = "head -c 200000000 /dev/zero | tail -c 150000000 | wc -c";
    let pod = pods::with_container(pods::shell("/memory", &format!("{line}; exit 1")), |container| {
        container["resources"]["mem"] = json!(32);
    });
    let (status, _) = client.run_to_end(&pod);
    let container = &status.instances[0].containers[0];
    assert_eq!(container.reason, Some(Reason::ContainerLimitationMemory), "{container:?}");
    let message = container.message.clone().unwrap_or_default();
    assert!(message.contains("32 MiB") && message.contains("resources.mem"), "{message}");
    assert!(container.memory_peak_bytes.is_none_or(|peak| peak > 16 << 20 && peak <= 33 << 20), "{container:?}");
    assert!(Path::new(&daemon.dir().join("daemon.log")).exists());
}
