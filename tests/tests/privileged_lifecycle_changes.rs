//! What changes a pod from outside on a real daemon: resources and numbers of instances in place, reboots, admission, and
//! another daemon beside it.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use agentd_api::status::InstancePhase;
use agentd_tests::{Client, Daemon, arena, binary, eventually, host, pods, privileged, until};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

#[track_caller]
fn create(client: &Client, pod: &Value) {
    let answer = client.post("/v1/pods", pod);
    assert_eq!(answer.status, 201, "{}", answer.text);
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
    assert_eq!(client.get("/v1/pods/grows").json["spec"]["containers"][0]["resources"]["mem"].as_f64(), Some(48.0));
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
