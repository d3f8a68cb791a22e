//! Images from Debian's docker-registry, pushed by skopeo: pulled and run, and each way in which a pull can fail. Whatever
//! fails is told in one line, and the store stays sound.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use agentd_api::status::{PodStatus, Reason, TaskState};
use agentd_tests::images::{Config, Entry};
use agentd_tests::registry::{LOGIN_BASE64, Registry};
use agentd_tests::{Client, Daemon, Options, eventually, images, pods, privileged, skip, wire};
use serde_json::{Value, json};

/// Bytes that no compression makes smaller.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}

/// An image of two layers whose containers say hello; its second layer has so many bytes of noise.
fn layout(dir: &Path, tag: &str, bytes: usize) -> String {
    let layer =
        vec![Entry::folder("srv/"), Entry::file("srv/noise", noise(bytes)), Entry::file("srv/tag", format!("{tag}\n"))];
    let config = Config {
        layers: vec![layer],
        env: vec!["GREETING=hello".to_owned()],
        working_dir: "/srv".to_owned(),
        ..Config::command(&["cat", "tag"])
    };
    images::oci(dir, tag, &config);
    format!("oci:{}:{tag}", dir.display())
}

struct Scene {
    registry: Registry,
    folder: tempfile::TempDir,
    daemon: Daemon,
    client: Client,
}

impl Scene {
    fn new(registry: Registry, options: Options) -> Self {
        let folder = tempfile::Builder::new().prefix("agentd-test-images-").tempdir().unwrap();
        let daemon = options.start();
        let client = daemon.client();
        Self { registry, folder, daemon, client }
    }

    fn push(&self, name: &str, tag: &str, bytes: usize, options: &[&str]) -> String {
        let source = layout(&self.folder.path().join("layout"), tag, bytes);
        self.registry.push(&source, &format!("{name}:{tag}"), options)
    }

    /// Pulls and returns each line of the progress.
    fn pull(&self, reference: &str) -> Vec<Value> {
        pull(&self.daemon, reference, false)
    }

    fn store(&self) -> PathBuf {
        self.daemon.state().join("images")
    }

    /// A pull that must fail: the one line of why.
    #[track_caller]
    fn failure(&self, reference: &str) -> String {
        let lines = self.pull(reference);
        let last = lines.last().expect("a pull tells how it ended");
        let message = last["message"].as_str().unwrap_or_default().to_owned();
        assert!(last["type"] == "failed" && !message.is_empty() && !message.contains('\n'), "{lines:?}");
        let failed = lines.iter().filter(|line| line["type"] == "failed").count();
        assert_eq!(failed, 1, "told once: {lines:?}");
        assert!(self.daemon_images().iter().all(|known| known != reference), "a failed image is listed");
        message
    }

    fn daemon_images(&self) -> Vec<String> {
        let list = self.client.get("/v1/images").json;
        list.as_array().unwrap().iter().map(|image| image["reference"].as_str().unwrap().to_owned()).collect()
    }

    /// A good pull, and a container of the image: the store is sound, and nothing is left of what failed.
    #[track_caller]
    fn sound(&self, reference: &str, says: &str) {
        let lines = self.pull(reference);
        assert_eq!(lines.last().unwrap()["type"], "done", "{lines:?}");
        let (status, log) = self.client.run_to_end(&image_pod("/sound", reference));
        assert_eq!(log, says, "{status:?}");
        let left: Vec<_> = fs::read_dir(self.store().join("tmp")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.is_empty(), "left in tmp: {left:?}");
    }

    #[track_caller]
    fn remove(&self, reference: &str) {
        let name: String = reference.replace('%', "%25").replace('/', "%2F").replace(':', "%3A").replace('@', "%40");
        let response = self.client.delete(&format!("/v1/images/{name}"));
        assert!(response.ok(), "{}", response.text);
    }
}

fn pull(daemon: &Daemon, reference: &str, force: bool) -> Vec<Value> {
    let body = json!({"reference": reference, "force": force}).to_string();
    let headers = ["content-type: application/json"];
    let mut stream = wire::Stream::open(&daemon.socket(), "POST", "/v1/images/pull", &headers, &body);
    stream.rest().iter().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// A pod that runs an image's own command once.
fn image_pod(id: &str, reference: &str) -> Value {
    let image = json!({"kind": "DOCKER", "id": reference});
    pods::once(id, json!({"name": "main", "image": image, "resources": pods::resources()}))
}

fn only(status: &PodStatus) -> &agentd_api::status::ContainerStatus {
    &status.instances[0].containers[0]
}

#[test]
fn a_pod_runs_an_image_of_the_registry() {
    privileged!();
    if let Some(why) = Registry::missing() {
        skip!("{why}");
    }
    let scene = Scene::new(Registry::start(), Daemon::with());
    let reference = scene.push("team/app", "plain", 3 << 20, &[]);
    // as each of the tools writes it: OCI or docker, gzip or zstd
    let docker = scene.push("team/app", "docker", 1 << 20, &["--format", "v2s2"]);
    let zstd = scene.push("team/app", "zstd", 1 << 20, &["--format", "oci", "--dest-compress-format", "zstd"]);
    assert!(scene.registry.manifest("team/app", "docker").1["mediaType"].to_string().contains("docker"));

    // the pod pulls by itself
    let (status, log) = scene.client.run_to_end(&image_pod("/app", &reference));
    assert_eq!(log, "plain\n", "{status:?}");
    let events = scene.client.get("/v1/events").text;
    assert!(events.contains("image-pulling") && events.contains(&reference), "{events}");
    assert_eq!(scene.daemon_images(), std::slice::from_ref(&reference));
    for (reference, says) in [(&docker, "docker\n"), (&zstd, "zstd\n")] {
        scene.sound(reference, says);
    }

    // what the image says of itself, and what the pod puts in its place
    let mut pod = image_pod("/env", &reference);
    pod["containers"][0]["exec"] = json!({"command": {"argv": ["/bin/env"]}, "overrideEntrypoint": true});
    pod["containers"][0]["environment"] = json!({"OWN": "1"});
    let (_, log) = scene.client.run_to_end(&pod);
    for wanted in ["GREETING=hello", "PATH=/bin", "OWN=1", "MARATHON_APP_ID=/env"] {
        assert!(log.lines().any(|line| line == wanted), "{wanted} is not among\n{log}");
    }

    // progress is told: what is to come, the blobs, the layers, the end
    scene.remove(&reference);
    let lines = scene.pull(&reference);
    let of = |kind: &str| lines.iter().filter(|line| line["type"] == kind).collect::<Vec<_>>();
    let (digest, manifest) = scene.registry.manifest("team/app", "plain");
    assert_eq!(lines[0]["type"], "resolved", "{lines:?}");
    assert_eq!((&lines[0]["digest"], &lines[0]["layers"]), (&json!(digest), &json!(2)));
    let largest = scene.registry.largest_layer("team/app", "plain");
    let size = manifest["layers"].as_array().unwrap().iter().find(|l| l["digest"] == largest.as_str()).unwrap()["size"]
        .clone();
    let told: Vec<_> = of("blob").into_iter().filter(|line| line["digest"] == largest.as_str()).collect();
    assert!(told.iter().all(|line| line["total"] == size), "{told:?}");
    assert_eq!(told.last().map(|line| &line["done"]), Some(&size), "{lines:?}");
    assert!(!of("unpacked").is_empty(), "{lines:?}");
    assert_eq!((of("done").len(), lines.last().unwrap()["image"]["reference"].as_str()), (1, Some(reference.as_str())));

    // by digest; without force nothing is asked of the registry, with it only the manifest
    let by_digest = format!("{}/team/app@{digest}", scene.registry.host());
    scene.sound(&by_digest, "plain\n");
    let blobs = scene.registry.requests(&largest).len();
    let asked = scene.registry.requests("manifests/plain").len();
    scene.pull(&reference);
    assert_eq!(scene.registry.requests("manifests/plain").len(), asked);
    assert_eq!(pull(&scene.daemon, &reference, true).last().unwrap()["type"], "done");
    assert!(scene.registry.requests("manifests/plain").len() > asked);
    assert_eq!(scene.registry.requests(&largest).len(), blobs, "a layer that is there was fetched again");

    // an image in use is not removed, unless it has another name
    scene.remove(&by_digest);
    let mut holder = image_pod("/holder", &reference);
    holder["containers"][0]["exec"] = json!({"command": {"argv": ["/bin/hold"]}, "overrideEntrypoint": true});
    scene.client.run_pod(&holder);
    let path = format!("/v1/images/{}", reference.replace('/', "%2F").replace(':', "%3A"));
    let refused = scene.client.delete(&path);
    assert_eq!(refused.status, 409, "{}", refused.text);
    scene.client.rm("/holder");
    scene.remove(&reference);
}

#[test]
fn pulls_of_one_image_at_a_time_are_one() {
    privileged!();
    if let Some(why) = Registry::missing() {
        skip!("{why}");
    }
    let scene = Scene::new(Registry::start(), Daemon::with());
    let reference = scene.push("app", "shared", 6 << 20, &[]);
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..5).map(|_| scope.spawn(|| scene.pull(&reference))).collect();
        let pods: Vec<_> = (0..3)
            .map(|number| {
                let (client, reference) = (&scene.client, &reference);
                scope.spawn(move || client.run_to_end(&image_pod(&format!("/pod-{number}"), reference)).1)
            })
            .collect();
        for pull in pulls {
            let lines = pull.join().unwrap();
            assert_eq!(lines.last().unwrap()["type"], "done", "{lines:?}");
        }
        for pod in pods {
            assert_eq!(pod.join().unwrap(), "shared\n");
        }
    });
    let (_, manifest) = scene.registry.manifest("app", "shared");
    for layer in manifest["layers"].as_array().unwrap() {
        let digest = layer["digest"].as_str().unwrap();
        let fetched = scene.registry.requests(&format!("GET /v2/app/blobs/{digest}"));
        assert_eq!(fetched.len(), 1, "{digest} was fetched {} times: {fetched:?}", fetched.len());
    }
}

#[test]
fn damaged_images_are_refused_and_leave_the_store_sound() {
    privileged!();
    if let Some(why) = Registry::missing() {
        skip!("{why}");
    }
    let scene = Scene::new(Registry::start(), Daemon::with());
    let reference = scene.push("app", "good", 2 << 20, &[]);
    let other = scene.push("app", "other", 1 << 20, &[]);
    let layer = scene.registry.largest_layer("app", "good");
    let host = scene.registry.host();

    // one byte in the middle is another
    let flip = |bytes: &mut Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x40;
    };
    let message = scene.registry.with_blob(&layer, flip, || scene.failure(&reference));
    assert!(message.contains(&layer) && message.contains(&host) && message.contains("damaged"), "{message}");
    // the same told by a pod
    let status = scene.registry.with_blob(&layer, flip, || {
        scene.client.post("/v1/pods", &image_pod("/damaged", &reference));
        scene.client.wait_finished("/damaged")
    });
    let container = only(&status);
    assert_eq!((container.state, container.reason), (TaskState::TaskError, Some(Reason::ImagePullFailed)));
    let message = container.message.clone().unwrap_or_default();
    assert!(
        message.starts_with("containers[0].image: ") && message.contains(&layer) && !message.contains('\n'),
        "{message}"
    );
    scene.client.rm("/damaged");
    scene.sound(&reference, "good\n");

    // half of it is missing
    scene.remove(&reference);
    let message =
        scene.registry.with_blob(&layer, |bytes| bytes.truncate(bytes.len() / 2), || scene.failure(&reference));
    assert!(message.contains(&layer) && message.contains(&host), "{message}");
    scene.sound(&reference, "good\n");

    // a manifest that is not the one that its digest promises
    scene.remove(&reference);
    let (digest, _) = scene.registry.manifest("app", "good");
    let (foreign, _) = scene.registry.manifest("app", "other");
    let foreign = fs::read(scene.registry.blob(&foreign)).unwrap();
    let by_digest = format!("{host}/app@{digest}");
    let message = scene.registry.with_blob(&digest, |bytes| *bytes = foreign, || scene.failure(&by_digest));
    assert!(message.contains(&digest), "{message}");
    scene.sound(&by_digest, "good\n");

    // a configuration that is not the promised one
    let (_, manifest) = scene.registry.manifest("app", "other");
    let config = manifest["config"]["digest"].as_str().unwrap();
    let message = scene.registry.with_blob(config, flip, || scene.failure(&other));
    assert!(message.contains(config), "{message}");
    scene.sound(&other, "other\n");

    // no such tag, no such repository, no such registry
    for missing in [format!("{host}/app:none"), format!("{host}/nothing:here"), "127.0.0.1:1/app:x".to_owned()] {
        let message = scene.failure(&missing);
        assert!(message.contains(&missing), "{message}");
    }
    assert!(scene.daemon.log().lines().all(|line| !line.contains("panicked")));
}

#[test]
fn credentials_come_from_the_auth_file() {
    privileged!();
    if let Some(why) = Registry::missing() {
        skip!("{why}");
    }
    let folder = tempfile::Builder::new().prefix("agentd-test-auth-").tempdir().unwrap();
    let auth = folder.path().join("auth.json");
    let scene = Scene::new(Registry::with_login(), Daemon::with().set(&format!("images.auth_file={}", auth.display())));
    let reference = scene.push("team/secret", "v1", 1 << 20, &[]);
    let host = scene.registry.host();

    let message = scene.failure(&reference);
    assert!(message.contains("refuses access") && message.contains(auth.to_str().unwrap()), "{message}");
    // bm86bm8= is no:no
    fs::write(&auth, json!({"auths": {&host: {"auth": "bm86bm8="}}}).to_string()).unwrap();
    let message = scene.failure(&reference);
    assert!(message.contains("refuses access") && message.contains(&host), "{message}");
    fs::write(&auth, "{\"auths\": ").unwrap();
    let message = scene.failure(&reference);
    assert!(message.contains("auth.json") && message.contains("line 1"), "{message}");

    // the longest path counts, and the file is read anew
    let entries = json!({"auths": {&host: {"auth": "bm86bm8="}, format!("{host}/team"): {"auth": LOGIN_BASE64}}});
    fs::write(&auth, entries.to_string()).unwrap();
    scene.sound(&reference, "v1\n");
    let log = scene.daemon.log();
    assert!(!log.contains(LOGIN_BASE64) && !log.contains("user:secret"), "the log has the password");
}

#[test]
fn a_mirror_is_asked_first_and_passed_over_when_it_fails() {
    privileged!();
    if let Some(why) = Registry::missing() {
        skip!("{why}");
    }
    let (registry, mirror) = (Registry::start(), Registry::start());
    let config = format!("[[images.registry]]\nhost = \"{}\"\nmirrors = [\"{}\"]\n", registry.host(), mirror.host());
    let scene = Scene::new(registry, Daemon::with().config(&config));
    let reference = scene.push("app", "v1", 1 << 20, &[]);
    mirror.push(&format!("oci:{}:v1", scene.folder.path().join("layout").display()), "app:v1", &[]);
    let layer = mirror.largest_layer("app", "v1");
    let fetched = |registry: &Registry| registry.requests(&format!("GET /v2/app/blobs/{layer}")).len();
    scene.sound(&reference, "v1\n");
    let before = fetched(&scene.registry);
    assert!(fetched(&mirror) > 0 && before == 0, "the mirror was not asked first");
    // what the mirror sends is damaged: the registry itself serves
    scene.remove(&reference);
    mirror.with_blob(&layer, |bytes| bytes.reverse(), || scene.sound(&reference, "v1\n"));
    assert!(fetched(&scene.registry) > before);
}

#[test]
fn a_full_disk_is_told_and_costs_nothing_but_the_pull() {
    privileged!();
    if let Some(why) = Registry::missing() {
        skip!("{why}");
    }
    // a state folder of 24 MiB that the daemon alone sees
    let state = tempfile::Builder::new().prefix("agt-full-").tempdir_in("/dev/shm").unwrap();
    let script = format!("mount -t tmpfs -o size=24m,mode=0700 full {} && exec \"$@\"", state.path().display());
    let options = Daemon::with()
        .wrapped(&["unshare", "--mount", "--propagation", "private", "sh", "-c", &script, "sh"])
        .set(&format!("paths.state={}", state.path().display()))
        .set("pods.pool_size=1")
        .set("pods.disk_enforcement=meter")
        .set("resources.disk_mib=4096");
    let scene = Scene::new(Registry::start(), options);
    let small = scene.push("app", "small", 1 << 20, &[]);
    let large = scene.push("app", "large", 20 << 20, &[]);
    let seen = PathBuf::from(format!("/proc/{}/root{}/images/tmp", scene.daemon.pid(), state.path().display()));

    let message = scene.failure(&large);
    assert!(message.contains("no space left") && message.contains("agentctl image rm"), "{message}");
    let status = {
        scene.client.post("/v1/pods", &image_pod("/large", &large));
        scene.client.wait_finished("/large")
    };
    let told = only(&status).message.clone().unwrap_or_default();
    assert!(told.contains("no space left"), "{status:?}");
    scene.client.rm("/large");

    // the daemon lives and has room for what fits
    let lines = scene.pull(&small);
    assert_eq!(lines.last().unwrap()["type"], "done", "{lines:?}");
    assert_eq!(scene.client.run_to_end(&image_pod("/small", &small)).1, "small\n");
    let left: Vec<_> = fs::read_dir(&seen).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn archives_and_layouts_of_skopeo_are_imported() {
    privileged!();
    if let Some(why) = Registry::missing() {
        skip!("{why}");
    }
    let folder = tempfile::Builder::new().prefix("agentd-test-import-").tempdir().unwrap();
    let source = layout(&folder.path().join("layout"), "imported", 1 << 20);
    let daemon = Daemon::start();
    let client = daemon.client();
    for (kind, file) in [("docker-archive", "docker.tar"), ("oci-archive", "oci.tar"), ("oci", "folder")] {
        let path = folder.path().join(file);
        let target = format!("{kind}:{}:demo.example/{kind}:v1", path.display());
        let output =
            Command::new("skopeo").args(["--insecure-policy", "copy", "--quiet", &source, &target]).output().unwrap();
        assert!(output.status.success(), "skopeo: {}", String::from_utf8_lossy(&output.stderr));
        let reference = format!("demo.example/{kind}:v1");
        let body = json!({"path": path, "reference": reference}).to_string();
        let headers = ["content-type: application/json"];
        let mut stream = wire::Stream::open(&daemon.socket(), "POST", "/v1/images/import", &headers, &body);
        let lines = stream.rest();
        assert!(lines.last().is_some_and(|line| line.contains("\"done\"")), "{kind}: {lines:?}");
        assert_eq!(client.run_to_end(&image_pod("/imported", &reference)).1, "imported\n", "{kind}");
    }
    // a pod names a layout folder by its path
    let image = json!({"kind": "OCI", "id": format!("{}:imported", folder.path().join("layout").display())});
    let pod = pods::once("/layout", json!({"name": "main", "image": image, "resources": pods::resources()}));
    assert_eq!(client.run_to_end(&pod).1, "imported\n");
    let tmp = daemon.state().join("images/tmp");
    assert!(eventually(Duration::from_secs(5), || fs::read_dir(&tmp).unwrap().next().is_none()));
}
