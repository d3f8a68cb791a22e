//! Kills at random moments under load: four clients run, change and remove pods while the daemon, its zygote, pod-inits and
//! containers are killed again and again. No pod is lost or doubled, every end is known, and in the end nothing is left.
//!
//! `AGENTD_KILLS` says how often the daemon is killed (100 unless told), `AGENTD_SEED` repeats a run's choices as far as
//! the scheduler lets it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agentd_api::status::{ExitStatus, InstancePhase, PodStatus, Reason};
use agentd_tests::{Client, Daemon, Response, eventually, marked, pods, privileged};
use serde_json::{Value, json};

const CLIENTS: usize = 4;
/// Pods that one client has at a time.
const MOST: usize = 4;
/// How long the daemon may take to come back and answer.
const BACK: Duration = Duration::from_mins(1);
/// How long everything may take to settle once the kills have ended.
const SETTLED: Duration = Duration::from_mins(1);

/// A small generator of numbers (xorshift), so that a run can be repeated from its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pause(&mut self, longest_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.below(longest_ms)));
    }
}

/// What a pod is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Runs until it is removed, and is started again when it is killed.
    Lasting,
    /// Ends with this code and stays ended.
    Once(i32),
    /// Ends again and again and is started again.
    Flapping,
}

#[derive(Debug, Clone)]
struct Pod {
    id: String,
    kind: Kind,
    spec: Value,
}

/// What all threads share.
struct World {
    client: Client,
    instance: String,
    shared: PathBuf,
    over: AtomicBool,
    /// Ids of pods whose launcher or container was killed by the test, noted before the kill.
    harmed: Mutex<BTreeSet<String>>,
    faults: Mutex<Vec<String>>,
}

impl World {
    fn mark(&self, id: &str) -> String {
        format!("{}{}", self.instance, id.replace('/', "-"))
    }

    fn fault(&self, text: String) {
        eprintln!("fault: {text}");
        self.faults.lock().unwrap().push(text);
    }

    fn harmed(&self, id: &str) -> bool {
        self.harmed.lock().unwrap().contains(id)
    }

    /// Asks until the daemon is there and answers.
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Response {
        let deadline = Instant::now() + BACK;
        loop {
            match self.client.request(method, path, body) {
                Ok(response) => return response,
                Err(error) => assert!(Instant::now() < deadline, "{method} {path}: no answer for {BACK:?}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn starts(&self, id: &str) -> usize {
        fs::read_to_string(self.shared.join(self.mark(id))).unwrap_or_default().lines().count()
    }

    /// What can be said of a pod at any time: it is there, and not doubled.
    fn look(&self, pod: &Pod) {
        let response = self.ask("GET", &Client::pod_path(&pod.id), None);
        if response.status != 200 {
            self.fault(format!("{} is lost: {} {}", pod.id, response.status, response.text));
            return;
        }
        let found = marked::processes(&self.mark(&pod.id));
        if found.len() > 1 {
            self.fault(format!("{} runs {} times: {found:?}", pod.id, found.len()));
        }
        if matches!(pod.kind, Kind::Once(_)) && self.starts(&pod.id) > 1 {
            self.fault(format!("{} was started {} times", pod.id, self.starts(&pod.id)));
        }
    }

    /// Whether a pod is as it should be in the end; else what it is.
    fn settled(&self, pod: &Pod) -> Result<(), String> {
        let response = self.ask("GET", &Client::pod_path(&pod.id), None);
        if response.status != 200 {
            return Err(response.text);
        }
        let status: PodStatus = response.read();
        let [instance] = &status.instances[..] else { return Err(response.text) };
        let main = &instance.containers[0];
        let found = marked::processes(&self.mark(&pod.id));
        let limit = status.spec.containers[0].resources.mem;
        let fine = match pod.kind {
            Kind::Lasting => {
                let started = main.attempt == 1 || self.harmed(&pod.id);
                instance.phase == InstancePhase::Running
                    && found == main.pid.into_iter().collect::<Vec<_>>()
                    && started
                    && memory_limit(main.cgroup.as_deref()) == Some(limit as u64)
            }
            Kind::Flapping => found.len() <= 1,
            Kind::Once(code) => {
                let killed = main.reason == Some(Reason::ContainerLauncherDied)
                    || main.exit == Some(ExitStatus::Signal(9))
                    || main.reason == Some(Reason::ContainerLaunchFailed);
                let as_meant = main.exit == Some(ExitStatus::Code(code)) && self.starts(&pod.id) == 1;
                matches!(instance.phase, InstancePhase::Finished | InstancePhase::Failed)
                    && found.is_empty()
                    && (as_meant || killed && self.harmed(&pod.id))
            }
        };
        if fine {
            Ok(())
        } else {
            Err(format!("processes {found:?}, starts {}, {}", self.starts(&pod.id), response.text))
        }
    }
}

/// The limit in force, in MiB.
fn memory_limit(cgroup: Option<&str>) -> Option<u64> {
    let read = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    agentd_tests::host::cgroup_trees().iter().find_map(|tree| {
        let folder = tree.join(cgroup?);
        read(folder.join("memory.max")).or_else(|| read(folder.join("memory.limit_in_bytes"))).map(|bytes| bytes >> 20)
    })
}

fn new_pod(world: &World, dice: &mut Dice, id: String) -> Pod {
    let mark = world.mark(&id);
    let note = format!("echo started >> /shared/{mark}");
    let (kind, line, restart) = match dice.below(10) {
        0..=4 => (Kind::Lasting, "trap 'exit 0' TERM; while :; do sleep 0.2; done".to_owned(), "always"),
        5..=8 => {
            let code = i32::try_from(dice.below(5)).unwrap();
            let pause = dice.below(12) as f64 / 10.0;
            (Kind::Once(code), format!("sleep {pause}; exit {code}"), "never")
        }
        _ => (Kind::Flapping, "sleep 0.3; exit 1".to_owned(), "always"),
    };
    let mut spec = json!({
        "id": id,
        "containers": [{
            "name": "main",
            "exec": {"command": {"argv": ["/bin/sh", "-c", format!("{note}; {line}"), mark]}},
            "resources": {"cpus": 0.02, "mem": 32},
            "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
            "lifecycle": {"killGracePeriodSeconds": 1},
        }],
        "volumes": [{"name": "shared", "host": world.shared}],
        "agentd": {"restart": restart},
        "scheduling": {"backoff": {"backoff": 0.2, "maxLaunchDelay": 1}},
    });
    if dice.chance(30) {
        spec["networks"] = json!([{"mode": "container"}]);
        spec["containers"][0]["endpoints"] = json!([{"name": "web", "containerPort": 80, "hostPort": 0}]);
    } else {
        spec["agentd"]["isolatedNetwork"] = json!(true);
    }
    if dice.chance(25) {
        spec["containers"][0]["resources"]["disk"] = json!(8);
    }
    if dice.chance(25) {
        let second = json!({
            "name": "second",
            "exec": {"command": {"argv": ["/bin/sh", "-c", if restart == "never" { "true" } else { "exec sleep 1000000" }]}},
            "resources": {"cpus": 0.02, "mem": 32},
            "lifecycle": {"killGracePeriodSeconds": 0.2},
        });
        spec["containers"].as_array_mut().unwrap().push(second);
    }
    Pod { id, kind, spec }
}

/// One client: runs, changes, looks at and removes pods of its own. Returns those it has in the end.
fn client(world: &World, number: usize, mut dice: Dice) -> BTreeMap<String, Pod> {
    let mut own: BTreeMap<String, Pod> = BTreeMap::new();
    let mut count = 0;
    while !world.over.load(Ordering::Relaxed) {
        dice.pause(150);
        let any = own.values().nth(dice.below(own.len().max(1) as u64) as usize).cloned();
        match (dice.below(10), any) {
            (0..=3, _) if own.len() < MOST => {
                count += 1;
                let pod = new_pod(world, &mut dice, format!("/load{number}-{count}"));
                if run(world, &pod) {
                    own.insert(pod.id.clone(), pod);
                }
            }
            (4..=5, Some(mut pod)) => {
                pod.spec["containers"][0]["resources"]["mem"] = json!(32 + 8 * dice.below(4));
                let changed = world.client.request("PUT", &Client::pod_path(&pod.id), Some(&pod.spec));
                if let Ok(response) = changed
                    && !response.ok()
                    && response.status < 500
                    && response.status != 409
                {
                    world.fault(format!("{}: an update was refused: {}", pod.id, response.text));
                }
                own.insert(pod.id.clone(), pod);
            }
            (6..=7, Some(pod)) => {
                remove(world, &pod);
                own.remove(&pod.id);
            }
            (_, Some(pod)) => world.look(&pod),
            (_, None) => {}
        }
    }
    own
}

/// Runs a pod. Whether it is there then.
fn run(world: &World, pod: &Pod) -> bool {
    match world.client.request("POST", "/v1/pods", Some(&pod.spec)) {
        Ok(response) if response.status == 201 => true,
        Ok(response) => {
            world.fault(format!("{} was refused: {} {}", pod.id, response.status, response.text));
            false
        }
        // not answered: it may be there or not
        Err(_) => {
            let there = world.ask("GET", &Client::pod_path(&pod.id), None).status == 200;
            if !there && (world.starts(&pod.id) > 0 || !marked::processes(&world.mark(&pod.id)).is_empty()) {
                world.fault(format!("{} is not there, but was started", pod.id));
            }
            there
        }
    }
}

fn remove(world: &World, pod: &Pod) {
    let path = Client::pod_path(&pod.id);
    let deadline = Instant::now() + BACK;
    loop {
        match world.client.request("DELETE", &path, None) {
            Ok(response) if response.ok() || response.status == 404 => break,
            Ok(response) => world.fault(format!("{} cannot be removed: {}", pod.id, response.text)),
            Err(_) => {}
        }
        assert!(Instant::now() < deadline, "{} cannot be removed", pod.id);
        std::thread::sleep(Duration::from_millis(20));
    }
    let left = marked::processes(&world.mark(&pod.id));
    if !left.is_empty() {
        world.fault(format!("{} is removed, but runs: {left:?}", pod.id));
    }
}

fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        // it may have ended by itself
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Kills a pod-init or a container's first process of some pod of the clients.
fn harm(world: &World, dice: &mut Dice) {
    let Ok(response) = world.client.request("GET", "/v1/pods", None) else { return };
    let all: Vec<PodStatus> = serde_json::from_value(response.json).unwrap_or_default();
    let ours: Vec<&PodStatus> = all.iter().filter(|pod| pod.id.starts_with("/load")).collect();
    let Some(pod) = ours.get(dice.below(ours.len().max(1) as u64) as usize) else { return };
    let Some(instance) = pod.instances.first() else { return };
    let pid = if dice.chance(50) { instance.init_pid } else { instance.containers[0].pid };
    let Some(pid) = pid else { return };
    // the number may have gone to another process since: only one in the instance's cgroup is meant
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    if cgroup.contains(&format!("/pods/{}/", instance.id)) {
        world.harmed.lock().unwrap().insert(pod.id.clone());
        kill(pid);
    }
}

/// Kills the daemon's zygote.
fn harm_zygote(daemon: &Daemon) {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if marked::parent(pid) == Some(daemon.pid())
            && fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.trim_end() == "pod-init")
        {
            kill(pid);
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn kills_at_random_moments_lose_and_double_nothing() {
    privileged!();
    let kills = number("AGENTD_KILLS").unwrap_or(100);
    let seed = number("AGENTD_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        now.as_nanos() as u64 | 1
    });
    println!("{kills} kills; repeat with AGENTD_SEED={seed}");
    let mut dice = Dice(seed);
    // room for all, so that none is refused
    let mut daemon = Daemon::with().set("resources.cpus=64").start();
    let shared = tempfile::Builder::new().prefix("agentd-test-load-").tempdir().unwrap();
    daemon.client().run_pod(&pods::argv("/bystander", &["/bin/sh", "-c", "while :; do sleep 1; done"]));
    let bystander = daemon.client().container("/bystander", "main");
    let before = daemon.snapshot();
    let used = daemon.client().get("/v1/node").json["used"].clone();
    let world = Arc::new(World {
        client: daemon.client(),
        instance: daemon.instance().to_owned(),
        shared: shared.path().to_path_buf(),
        over: AtomicBool::new(false),
        harmed: Mutex::default(),
        faults: Mutex::default(),
    });
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (world, dice) = (Arc::clone(&world), Dice(seed.wrapping_mul(number as u64 * 2 + 3) | 1));
            std::thread::spawn(move || client(&world, number, dice))
        })
        .collect();
    for _ in 0..kills {
        dice.pause(1000);
        if dice.chance(40) {
            harm(&world, &mut dice);
        }
        if dice.chance(10) {
            harm_zygote(&daemon);
        }
        daemon.kill9();
        if dice.chance(20) {
            // once more in the midst of its recovery
            daemon.respawn();
            dice.pause(200);
            daemon.kill9();
        }
        daemon.restart();
        let response = world.ask("GET", &Client::pod_path("/bystander"), None);
        let now = response.read::<PodStatus>().instances[0].containers[0].clone();
        assert_eq!((now.pid, now.attempt), (bystander.pid, 1), "the bystander was disturbed");
    }
    world.over.store(true, Ordering::Relaxed);
    let own: Vec<Pod> = clients.into_iter().flat_map(|client| client.join().unwrap().into_values()).collect();
    println!("{} pods are left to look at", own.len());
    for pod in &own {
        let mut last = Ok(());
        let settled = eventually(SETTLED, || {
            last = world.settled(pod);
            last.is_ok()
        });
        if !settled {
            world.fault(format!(
                "{} ({:?}, harmed: {}): {}",
                pod.id,
                pod.kind,
                world.harmed(&pod.id),
                last.unwrap_err()
            ));
        }
    }
    let listed: Vec<PodStatus> = world.client.get("/v1/pods").read();
    let listed: BTreeSet<&str> = listed.iter().map(|pod| pod.id.as_str()).collect();
    let wanted: BTreeSet<&str> = own.iter().map(|pod| pod.id.as_str()).chain(["/bystander"]).collect();
    assert_eq!(listed, wanted, "pods that nobody has, or that are lost");
    for pod in &own {
        remove(&world, pod);
    }
    let faults = world.faults.lock().unwrap();
    assert!(faults.is_empty(), "{} faults with seed {seed}:\n{}", faults.len(), faults.join("\n"));
    before.assert_same();
    assert_eq!(world.client.get("/v1/node").json["used"], used, "amounts that nobody holds");
    let after = daemon.client().container("/bystander", "main");
    assert_eq!((after.pid, after.attempt), (bystander.pid, 1), "the bystander was disturbed");
}
