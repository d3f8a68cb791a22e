//! The daemon is killed at every checkpoint of a start, a stop, an update and a pull, and started again. Whatever was under
//! way is then finished or undone, every container has run once, every end is known, and a pod beside it never notices.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentd_api::status::{ExitStatus, InstancePhase, PodStatus, TaskState};
use agentd_tests::images::{Config, Entry};
use agentd_tests::layout_server::LayoutServer;
use agentd_tests::{Client, Daemon, Options, Snapshot, eventually, host, images, marked, pods, privileged, until};
use serde_json::{Value, json};

const BYSTANDER: &str = "/bystander";

/// How long the daemon may take to put things right once it is back.
const DEADLINE: Duration = Duration::from_secs(30);

/// Points passed when a sandbox is made.
const SANDBOX: &[&str] = &["sandbox.folder-made", "sandbox.cgroup-made", "sandbox.forked", "sandbox.spare-made"];
/// Points passed between the acceptance of a pod and its running.
const START: &[&str] = &[
    "admit.spec-written",
    "instance.checkpointed",
    "setup.disk-ready",
    "setup.network-attached",
    "setup.done",
    "launch.image-ready",
    "launch.prepared",
    "launch.artifacts-ready",
    "launch.started",
    "launch.captured",
];
/// Points passed when a container ends by itself.
const EXIT: &[&str] = &["exit.noticed", "exit.checkpointed"];
/// Points passed when everything of an instance is given back.
const RELEASE: &[&str] = &["release.begun", "release.network-detached", "release.sandbox-destroyed", "release.done"];
/// Further points passed when a running pod is removed.
const REMOVE: &[&str] =
    &["remove.marked", "stop.terminated", "stop.killed", "remove.instance-ended", "remove.spec-removed"];
/// Points passed when a pod's resources are changed.
const UPDATE: &[&str] = &["update.spec-written", "update.applied", "update.recorded"];
/// Points passed when a session is begun, and before anything of it lasts.
const SESSION_BEGIN: &[&str] = &["session.cgroup-made", "session.spare-forked"];
/// Points passed when a session runs, and when it has ended.
const SESSION: &[&str] = &["session.started", "session.ended"];
/// Points passed when an image is imported.
const IMPORT: &[&str] = &["pull.manifest", "pull.layer.unpacked", "pull.layer.renamed", "pull.synced", "pull.record"];
/// Further points passed when it comes from a registry.
const PULL: &[&str] = &["pull.partial", "pull.blob"];
/// Points passed when an image is removed, blobs and all.
const FORGET: &[&str] = &["remove.record", "gc.layer.renamed", "gc.layer.removed", "gc.blob"];

/// A daemon that is killed again and again, with a pod on it that must not notice.
struct Scene {
    daemon: Daemon,
    client: Client,
    before: Snapshot,
    used: Value,
    shared: tempfile::TempDir,
    bystander: (u32, Option<u64>),
}

impl Scene {
    fn new(options: Options) -> Self {
        let daemon = options.start();
        let client = daemon.client();
        let shared = tempfile::Builder::new().prefix("agentd-test-kill-").tempdir().unwrap();
        let mark = format!("{}-bystander", daemon.instance());
        let line = "trap 'exit 0' TERM; while :; do echo beat; sleep 0.2; done";
        client.run_pod(&pods::argv(BYSTANDER, &["/bin/sh", "-c", line, &mark]));
        let pid = client.container(BYSTANDER, "main").pid.unwrap();
        let before = daemon.snapshot();
        let used = client.get("/v1/node").json["used"].clone();
        Self { used, bystander: (pid, marked::started(pid)), daemon, client, before, shared }
    }

    /// A word for the arguments of a container of this test and no other.
    fn mark(&self, name: &str) -> String {
        format!("{}-{name}", self.daemon.instance())
    }

    /// A file in the folder that the containers share with the test.
    fn file(&self, name: &str) -> PathBuf {
        self.shared.path().join(name)
    }

    /// Restarts the daemon so that it kills itself at a point.
    fn arm(&mut self, point: &str) {
        self.daemon.kill9();
        self.daemon.set_env("AGENTD_FAILPOINT", Some(point));
        self.daemon.restart();
    }

    /// Sends a request that the daemon need not survive.
    fn provoke(&self, method: &'static str, path: &str, body: Option<Value>) -> std::thread::JoinHandle<()> {
        let (client, path) = (self.client.clone(), path.to_owned());
        std::thread::spawn(move || drop(client.request(method, &path, body.as_ref())))
    }

    /// Waits until the daemon has died at the point, and starts it again without.
    fn revive(&mut self, point: &str) {
        let status = self.daemon.wait_exit();
        assert_eq!(status.signal(), Some(9), "{point}: the daemon did not die there: {status}");
        self.daemon.set_env("AGENTD_FAILPOINT", None);
        self.daemon.restart();
        self.bystander_is_untouched(point);
    }

    fn bystander_is_untouched(&self, point: &str) {
        let now = self.client.container(BYSTANDER, "main");
        assert_eq!((now.pid, now.attempt, now.state), (Some(self.bystander.0), 1, TaskState::TaskRunning), "{point}");
        assert_eq!(marked::started(self.bystander.0), self.bystander.1, "{point}");
        assert_eq!(marked::processes(&self.mark("bystander")), [self.bystander.0], "{point}");
    }

    /// The host is as it was before the pod of this round.
    fn nothing_left(&self, point: &str) {
        self.bystander_is_untouched(point);
        println!("{point}: checked");
        self.before.assert_same();
        assert_eq!(self.client.get("/v1/node").json["used"], self.used, "{point}: amounts that nobody holds");
    }

    /// Lines that a container has written to a shared file, one for each start.
    fn starts(&self, file: &str) -> usize {
        fs::read_to_string(self.file(file)).unwrap_or_default().lines().count()
    }

    /// Waits until a pod runs as it should: every container once, and never more than once.
    fn runs_once(&self, point: &str, id: &str, marks: &[&str]) -> PodStatus {
        let mut seen = String::new();
        let running = eventually(DEADLINE, || {
            let response = self.client.get(&Client::pod_path(id));
            seen.clone_from(&response.text);
            response.status == 200
                && response.read::<PodStatus>().instances.iter().all(|i| i.phase == InstancePhase::Running)
        });
        assert!(running, "{point}: {id} does not run: {seen}");
        let pod = self.client.pod(id);
        for mark in marks {
            let found = marked::processes(&self.mark(mark));
            assert_eq!(found.len(), pod.instances.len(), "{point}: processes of {mark}: {found:?}");
        }
        pod
    }
}

/// Two containers: one of the host's programs that notes each start, one of an image that answers on a port; on the bridge, with
/// volumes and a port of the host.
fn app(scene: &Scene, image: &Value, name: &str) -> Value {
    let (first, second) = (scene.mark("first"), scene.mark("second"));
    let note = format!("echo started >> /shared/{name}; trap 'exit 0' TERM; while :; do sleep 0.1; done");
    json!({
        "id": format!("/{name}"),
        "containers": [
            {
                "name": "first",
                "exec": {"command": {"argv": ["/bin/sh", "-c", note, first]}},
                "resources": {"cpus": 0.1, "mem": 64, "disk": 16},
                "volumeMounts": [{"name": "shared", "mountPath": "/shared"}, {"name": "data", "mountPath": "/data"}],
                "lifecycle": {"killGracePeriodSeconds": 2},
            },
            {
                "name": "second",
                "image": image,
                "exec": {"command": {"argv": ["/bin/cache", "--port", "8080", "--dir", "/data", second]}},
                "resources": {"cpus": 0.1, "mem": 64, "disk": 16},
                "endpoints": [{"name": "web", "containerPort": 8080, "hostPort": 0}],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "quick", "mountPath": "/quick"}],
                "lifecycle": {"killGracePeriodSeconds": 2},
            },
        ],
        "volumes": [
            {"name": "shared", "host": scene.shared.path()},
            {"name": "data"},
            {"name": "quick", "agentd": {"tmpfsMib": 1}},
        ],
        "networks": [{"mode": "container"}],
        "scheduling": {"backoff": {"backoff": 0.2}},
    })
}

/// Whether the server of [`app`] answers on its port of the host.
fn answers(pod: &PodStatus) -> bool {
    let port = pod.instances[0].containers[1].endpoints[0].host_port.unwrap();
    eventually(Duration::from_secs(5), || {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
        let mut text = [0; 5];
        stream.write_all(b"get greeting\n").is_ok() && stream.read_exact(&mut text).is_ok() && text == *b"hello"
    })
}

fn image(scene: &Scene, tag: &str) -> Value {
    let layer = vec![Entry::file("etc/tag", format!("{tag} {}\n", scene.daemon.instance()))];
    images::oci(&scene.file("layout"), tag, &Config { layers: vec![layer], ..Config::command(&["true"]) })
}

fn name_of(point: &str) -> String {
    point.replace('.', "-")
}

fn start_through(options: Options, points: &[&str]) {
    let mut scene = Scene::new(options);
    let image = image(&scene, "app");
    for point in points {
        let name = name_of(point);
        let pod = app(&scene, &image, &name);
        scene.arm(point);
        let request = scene.provoke("POST", "/v1/pods", Some(pod));
        scene.revive(point);
        request.join().unwrap();
        // its specification was written, so it is wanted
        let status = scene.runs_once(point, &format!("/{name}"), &["first", "second"]);
        let containers = &status.instances[0].containers;
        assert!(containers.iter().all(|c| c.attempt == 1), "{point}: {containers:?}");
        assert!(answers(&status), "{point}: its port of the host does not answer");
        assert_eq!(scene.starts(&name), 1, "{point}: starts");
        scene.client.rm(&format!("/{name}"));
        scene.nothing_left(point);
    }
}

#[test]
fn a_start_cut_short_is_finished_once() {
    privileged!();
    start_through(Daemon::with(), START);
}

#[test]
fn a_sandbox_half_made_for_a_pod_is_made_anew() {
    privileged!();
    start_through(Daemon::with().set("pods.pool_size=0"), SANDBOX);
}

#[test]
fn a_sandbox_half_made_for_the_pool_is_swept() {
    privileged!();
    let mut scene = Scene::new(Daemon::with());
    for point in SANDBOX {
        scene.daemon.kill9();
        scene.daemon.set_env("AGENTD_FAILPOINT", Some(point));
        // the pool fills by itself
        scene.daemon.respawn();
        scene.revive(point);
        scene.nothing_left(point);
    }
}

#[test]
fn a_sandbox_cut_short_while_it_replaces_a_dead_one_is_whole_in_the_end() {
    privileged!();
    let mut scene = Scene::new(Daemon::with().set("pods.pool_size=0"));
    let image = image(&scene, "app");
    for point in SANDBOX.iter().chain(&["setup.disk-ready", "setup.network-attached", "setup.done", "launch.started"]) {
        let name = name_of(point);
        let id = format!("/{name}");
        scene.client.run_pod(&app(&scene, &image, &name));
        scene.arm(point);
        kill(scene.client.instance(&id).init_pid.unwrap());
        scene.revive(point);
        let status = until(&format!("{point}: {id} runs again"), DEADLINE, || {
            let status = scene.client.pod(&id);
            let instance = &status.instances[0];
            let again = instance.containers.iter().all(|c| c.attempt > 1);
            (again && instance.phase == InstancePhase::Running).then_some(status)
        });
        let status = scene.runs_once(point, &status.id, &["first", "second"]);
        assert!(answers(&status), "{point}: its port of the host does not answer");
        scene.client.rm(&id);
        // without a pool the zygote starts with the first pod
        scene.client.run_pod(&pods::sleeper("/last"));
        scene.client.rm("/last");
        scene.nothing_left(point);
    }
}

/// A pod that ends by itself with code 7 when a file appears.
fn ending(scene: &Scene, name: &str, restart: &str) -> Value {
    let line = format!("echo started >> /shared/{name}; until [ -e /shared/go-{name} ]; do sleep 0.05; done; exit 7");
    json!({
        "id": format!("/{name}"),
        "containers": [{
            "name": "main",
            "exec": {"command": {"argv": ["/bin/sh", "-c", line, scene.mark(name)]}},
            "resources": pods::resources(),
            "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
        }],
        "volumes": [{"name": "shared", "host": scene.shared.path()}],
        "networks": [{"mode": "container"}],
        "agentd": {"restart": restart},
        "scheduling": {"backoff": {"backoff": 0.5}},
    })
}

fn ended_with_7(scene: &Scene, point: &str, id: &str) {
    let status = scene.client.wait_finished(id);
    let container = &status.instances[0].containers[0];
    assert_eq!(status.instances[0].phase, InstancePhase::Failed, "{point}: {status:?}");
    assert_eq!((container.exit, container.attempt), (Some(ExitStatus::Code(7)), 1), "{point}: {status:?}");
}

#[test]
fn an_end_cut_short_is_known_and_not_repeated() {
    privileged!();
    let mut scene = Scene::new(Daemon::with());
    for point in EXIT.iter().chain(RELEASE) {
        let name = name_of(point);
        scene.arm(point);
        scene.client.run_pod(&ending(&scene, &name, "never"));
        fs::write(scene.file(&format!("go-{name}")), "").unwrap();
        scene.revive(point);
        ended_with_7(&scene, point, &format!("/{name}"));
        assert_eq!(scene.starts(&name), 1, "{point}: starts");
        scene.client.rm(&format!("/{name}"));
        scene.nothing_left(point);
    }
}

#[test]
fn an_end_while_the_daemon_is_away_is_known() {
    privileged!();
    let mut scene = Scene::new(Daemon::with());
    scene.client.run_pod(&ending(&scene, "once", "never"));
    scene.client.run_pod(&ending(&scene, "again", "always"));
    scene.client.run_pod(&ending(&scene, "shot", "never"));
    let shot = scene.client.container("/shot", "main").pid.unwrap();
    scene.daemon.kill9();
    for name in ["once", "again"] {
        fs::write(scene.file(&format!("go-{name}")), "").unwrap();
    }
    kill(shot);
    for name in ["once", "again", "shot"] {
        until("it has ended", DEADLINE, || marked::processes(&scene.mark(name)).is_empty().then_some(()));
    }
    fs::remove_file(scene.file("go-again")).unwrap();
    scene.daemon.restart();
    ended_with_7(&scene, "away", "/once");
    let status = scene.client.wait_finished("/shot");
    assert_eq!(status.instances[0].containers[0].exit, Some(ExitStatus::Signal(9)), "{status:?}");
    let again = scene.runs_once("away", "/again", &["again"]);
    assert_eq!(again.instances[0].containers[0].attempt, 2, "{again:?}");
    assert_eq!((scene.starts("once"), scene.starts("again"), scene.starts("shot")), (1, 2, 1));
    for name in ["once", "again", "shot"] {
        scene.client.rm(&format!("/{name}"));
    }
    scene.nothing_left("away");
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn a_removal_cut_short_is_finished() {
    privileged!();
    let mut scene = Scene::new(Daemon::with());
    let image = image(&scene, "app");
    for point in REMOVE.iter().chain(RELEASE) {
        let name = name_of(point);
        let mut pod = app(&scene, &image, &name);
        // one that does not heed SIGTERM
        pod["containers"][0]["exec"]["command"]["argv"][2] = json!("trap '' TERM; while :; do sleep 0.1; done");
        pod["containers"][0]["lifecycle"]["killGracePeriodSeconds"] = json!(0.3);
        scene.arm(point);
        scene.client.run_pod(&pod);
        let path = Client::pod_path(&format!("/{name}"));
        let request = scene.provoke("DELETE", &path, None);
        scene.revive(point);
        request.join().unwrap();
        until("the removal is finished", DEADLINE, || (scene.client.get(&path).status == 404).then_some(()));
        for mark in ["first", "second"] {
            assert!(marked::processes(&scene.mark(mark)).is_empty(), "{point}");
        }
        scene.nothing_left(point);
    }
}

/// The memory limits in force of the containers of a pod's first instance, in MiB.
fn limits(pod: &PodStatus) -> Vec<u64> {
    let of = |cgroup: &str| {
        host::cgroup_trees().iter().find_map(|tree| {
            ["memory.max", "memory.limit_in_bytes"]
                .iter()
                .find_map(|file| fs::read_to_string(tree.join(cgroup).join(file)).ok()?.trim().parse::<u64>().ok())
        })
    };
    let containers = &pod.instances[0].containers;
    containers.iter().map(|c| of(c.cgroup.as_ref().unwrap()).unwrap() >> 20).collect()
}

#[test]
fn an_update_cut_short_is_whole_or_undone() {
    privileged!();
    let mut scene = Scene::new(Daemon::with());
    let image = image(&scene, "app");
    for (point, done) in UPDATE.iter().map(|point| (*point, *point == "update.recorded")) {
        let name = name_of(point);
        let pod = app(&scene, &image, &name);
        let mut changed = pod.clone();
        for container in 0..2 {
            changed["containers"][container]["resources"]["mem"] = json!(96);
            changed["containers"][container]["resources"]["cpus"] = json!(0.2);
        }
        scene.arm(point);
        let first = scene.client.run_pod(&pod);
        assert_eq!(limits(&first), [64, 64]);
        let request = scene.provoke("PUT", &Client::pod_path(&format!("/{name}")), Some(changed));
        scene.revive(point);
        request.join().unwrap();
        let wanted = if done { 96 } else { 64 };
        until(&format!("{point}: the update is whole or undone"), DEADLINE, || {
            let status = scene.client.pod(&format!("/{name}"));
            (limits(&status) == [wanted, wanted]).then_some(())
        });
        let status = scene.runs_once(point, &format!("/{name}"), &["first", "second"]);
        let spec: Vec<(f64, f64)> =
            status.spec.containers.iter().map(|c| (c.resources.cpus, c.resources.mem)).collect();
        let cpus = if done { 0.2 } else { 0.1 };
        assert_eq!(spec, [(cpus, wanted as f64); 2], "{point}");
        assert_eq!(status.instances[0].containers[0].pid, first.instances[0].containers[0].pid, "{point}: restarted");
        scene.client.rm(&format!("/{name}"));
        scene.nothing_left(point);
    }
}

#[test]
fn a_change_of_the_number_of_instances_cut_short_is_finished() {
    privileged!();
    let mut scene = Scene::new(Daemon::with());
    let sleeper = |count: u32, mark: &str| {
        json!({
            "id": "/many",
            "containers": [{
                "name": "main",
                "exec": {"command": {"argv": ["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done", mark]}},
                "resources": {"cpus": 0.05, "mem": 32},
            }],
            "agentd": {"isolatedNetwork": true},
            "scaling": {"kind": "fixed", "instances": count},
        })
    };
    let mark = scene.mark("many");
    for (point, from, to) in [
        ("update.recorded", 1, 3),
        ("instance.checkpointed:2", 1, 3),
        ("update.recorded", 3, 1),
        ("remove.instance-ended:1", 3, 1),
        ("release.sandbox-destroyed", 3, 1),
    ] {
        scene.client.run_pod(&sleeper(from, &mark));
        scene.arm(point);
        let request = scene.provoke("PUT", "/v1/pods/many", Some(sleeper(to, &mark)));
        scene.revive(point);
        request.join().unwrap();
        until(&format!("{point}: there are {to} instances"), DEADLINE, || {
            let status = scene.client.pod("/many");
            let running = status.instances.iter().all(|i| i.phase == InstancePhase::Running);
            (running && status.instances.len() == to as usize).then_some(())
        });
        assert_eq!(marked::processes(&mark).len(), to as usize, "{point}");
        scene.client.rm("/many");
        scene.nothing_left(point);
    }
}

/// Names in a folder of the image store.
fn store(scene: &Scene, folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(scene.daemon.state().join("images").join(folder)).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn listed(scene: &Scene, reference: &str) -> bool {
    let images = scene.client.get("/v1/images").json;
    images
        .as_array()
        .unwrap()
        .iter()
        .any(|image| image["reference"].as_str().is_some_and(|found| found.contains(reference)))
}

/// Asks for an image and waits until it is there.
fn brought(scene: &Scene, path: &str, body: &Value) {
    let response = scene.client.post(path, body);
    let last = response.text.lines().last().unwrap_or_default().to_owned();
    assert!(response.ok() && last.contains("\"done\"") && !last.contains("failed"), "{path} {body}: {}", response.text);
}

/// Runs an image, removes it, and sees that the store is as it was.
fn runs_and_goes(scene: &Scene, point: &str, reference: &str, before: &[BTreeSet<String>; 2]) {
    assert!(listed(scene, reference), "{point}");
    let mut pod = pods::argv("/user", &["/bin/testbox", "cat", "/etc/tag"]);
    pod["containers"][0]["image"] = json!({"kind": "DOCKER", "id": reference});
    let (status, log) = scene.client.run_to_end(&pod);
    assert!(log.ends_with(&format!("{}\n", scene.daemon.instance())), "{point}: {log} {status:?}");
    let removed = scene.client.delete(&image_path(reference));
    assert!(removed.ok(), "{point}: {} {}", removed.status, removed.text);
    assert_eq!(
        [store(scene, "layers"), store(scene, "blobs/sha256")],
        *before,
        "{point}: something is left in the store"
    );
    assert!(store(scene, "tmp").iter().all(|name| name.starts_with("partial-")), "{point}: {:?}", store(scene, "tmp"));
    scene.nothing_left(point);
}

fn image_path(reference: &str) -> String {
    format!("/v1/images/{}", reference.replace('/', "%2F").replace(':', "%3A"))
}

#[test]
fn an_import_cut_short_leaves_no_half_image() {
    privileged!();
    let mut scene = Scene::new(Daemon::with());
    for point in IMPORT {
        let tag = name_of(point);
        let folder = layout_of(&scene, &tag);
        let reference = format!("test.example/import:{tag}");
        let before = [store(&scene, "layers"), store(&scene, "blobs/sha256")];
        scene.arm(point);
        let body = json!({"path": folder, "reference": reference});
        let request = scene.provoke("POST", "/v1/images/import", Some(body.clone()));
        scene.revive(point);
        request.join().unwrap();
        brought(&scene, "/v1/images/import", &body);
        runs_and_goes(&scene, point, &reference, &before);
    }
}

#[test]
fn a_pull_cut_short_goes_on() {
    privileged!();
    let registry = LayoutServer::start();
    let mut scene = Scene::new(Daemon::with());
    for point in PULL.iter().chain(IMPORT) {
        let tag = name_of(point);
        let reference = registry.publish(&tag, &layout_of(&scene, &tag), &tag);
        let before = [store(&scene, "layers"), store(&scene, "blobs/sha256")];
        // by a pod that needs it: the pod is wanted, so its pull goes on by itself
        let mut pod = pods::argv("/puller", &["/bin/testbox", "cat", "/etc/tag"]);
        pod["containers"][0]["image"] = json!({"kind": "DOCKER", "id": reference});
        scene.arm(point);
        let request = scene.provoke("POST", "/v1/pods", Some(pod));
        scene.revive(point);
        request.join().unwrap();
        let status = scene.client.wait_finished("/puller");
        assert_eq!(status.instances[0].containers[0].exit, Some(ExitStatus::Code(0)), "{point}: {status:?}");
        scene.client.rm("/puller");
        runs_and_goes(&scene, point, &reference, &before);
    }
}

#[test]
fn the_removal_of_an_image_cut_short_leaves_no_half_image() {
    privileged!();
    let registry = LayoutServer::start();
    let mut scene = Scene::new(Daemon::with().set("images.keep_blobs=true"));
    for point in FORGET {
        let tag = name_of(point);
        let reference = registry.publish(&tag, &layout_of(&scene, &tag), &tag);
        let before = [store(&scene, "layers"), store(&scene, "blobs/sha256")];
        scene.arm(point);
        let body = json!({"reference": reference});
        brought(&scene, "/v1/images/pull", &body);
        let request = scene.provoke("DELETE", &image_path(&reference), None);
        scene.revive(point);
        request.join().unwrap();
        assert!(!listed(&scene, &reference), "{point}: what is not listed any more stays removed");
        brought(&scene, "/v1/images/pull", &body);
        runs_and_goes(&scene, point, &reference, &before);
    }
}

/// An image layout of its own, with a layer that no other image has.
fn layout_of(scene: &Scene, tag: &str) -> PathBuf {
    let folder = scene.file(&format!("layout-{tag}"));
    let layer = vec![Entry::file("etc/tag", format!("{tag} {}\n", scene.daemon.instance()))];
    images::oci(&folder, tag, &Config { layers: vec![layer], ..Config::command(&["true"]) });
    folder
}

/// The list in the daemon's source is the list here, so that no point goes untested.
/// The sessions that the daemon knows.
fn sessions(scene: &Scene) -> Vec<Value> {
    scene.client.get("/v1/sessions").json.as_array().cloned().unwrap_or_default()
}

/// Begins a session in the bystander and lets the daemon die at a point of that.
fn begin_and_die(scene: &mut Scene, point: &str, command: &Value) {
    scene.arm(point);
    let path = format!("{}/exec", Client::pod_path(BYSTANDER));
    let asking = scene.provoke("POST", &path, Some(json!({"command": command})));
    scene.revive(point);
    asking.join().unwrap();
}

#[test]
fn a_session_cut_short_before_its_program_ran_leaves_nothing() {
    privileged!();
    let mut scene = Scene::new(Options::default());
    for point in SESSION_BEGIN {
        let mark = scene.mark(&name_of(point));
        begin_and_die(&mut scene, point, &json!(["/bin/sh", "-c", "sleep 60", mark]));
        assert_eq!(sessions(&scene), [] as [Value; 0], "{point}");
        assert!(marked::processes(&mark).is_empty(), "{point}: its program runs");
        scene.nothing_left(point);
    }
}

#[test]
fn a_session_goes_on_without_its_daemon_and_its_end_is_known() {
    privileged!();
    let mut scene = Scene::new(Options::default());
    for point in SESSION {
        let mark = scene.mark(&name_of(point));
        begin_and_die(&mut scene, point, &json!(["/bin/sh", "-c", "echo said; sleep 0.5; exit 9", mark]));
        let found = sessions(&scene);
        assert_eq!(found.len(), 1, "{point}: {found:?}");
        let id = found[0]["id"].as_str().unwrap().to_owned();
        let waited = scene.client.get(&format!("/v1/sessions/{id}/wait?timeout=20"));
        assert_eq!(waited.json["exit"], json!({"code": 9}), "{point}: {}", waited.text);
        assert_eq!(waited.json["outputBytes"], 5, "{point}: {}", waited.text);
        assert_eq!(scene.client.request("DELETE", &format!("/v1/sessions/{id}"), None).unwrap().status, 204, "{point}");
        assert!(eventually(DEADLINE, || sessions(&scene).is_empty()), "{point}: {:?}", sessions(&scene));
        scene.nothing_left(point);
    }
}

#[test]
fn every_fail_point_is_tested() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agentd/src/failpoint.rs");
    let source = fs::read_to_string(path).unwrap();
    let list = source.split_once("NAMES: &[&str] = &[").unwrap().1.split_once("];").unwrap().0;
    let listed: BTreeSet<&str> = list.split('"').skip(1).step_by(2).collect();
    let groups = [SANDBOX, START, EXIT, RELEASE, REMOVE, UPDATE, IMPORT, PULL, FORGET, SESSION_BEGIN, SESSION];
    let tested: BTreeSet<&str> = groups.into_iter().flatten().copied().collect();
    assert_eq!(listed, tested);
}
