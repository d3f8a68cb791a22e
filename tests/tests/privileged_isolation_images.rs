//! Images that try to write outside their root while they are unpacked, or that bend what agentd mounts into containers.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use agentd_api::status::{ContainerStatus, ExitStatus, Reason};
use agentd_tests::Snapshot;
use agentd_tests::arena::Arena;
use agentd_tests::images::{self, Config, Content, Entry};
use agentd_tests::{pods, privileged};
use serde_json::json;

/// A name on the host that no image may bring into being.
fn target() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    PathBuf::from(format!("/tmp/agentd-test-{}-image-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)))
}

/// Runs a container of an image with these entries above the program's, and returns how it ended and what it wrote.
fn run(arena: &Arena, entries: Vec<Entry>, words: &[&str]) -> (ContainerStatus, String) {
    run_config(arena, &Config { layers: vec![entries], ..Config::command(words) })
}

fn run_config(arena: &Arena, config: &Config) -> (ContainerStatus, String) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let tag = format!("hostile-{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let image = images::oci(&arena.daemon.dir().join("layout"), &tag, config);
    let pod = pods::once("/hostile", json!({"name": "main", "image": image, "resources": pods::resources()}));
    let (mut status, log) = arena.attack_with(pod);
    (status.instances.remove(0).containers.remove(0), log)
}

fn assert_refused(container: &ContainerStatus) {
    assert_eq!(container.reason, Some(Reason::ImagePullFailed), "{container:?}");
    assert!(container.message.as_deref().is_some_and(|text| !text.is_empty()), "{container:?}");
}

/// The lines of a picture that are not the store's, which may keep the layers of a good image.
fn rest(snapshot: &Snapshot) -> Vec<String> {
    snapshot.lines().filter(|line| !line.contains("state/images")).map(str::to_owned).collect()
}

#[test]
fn an_entry_above_the_root_is_refused_or_stays_below() {
    privileged!();
    let arena = Arena::new();
    let up = "../".repeat(12);
    for make in [
        (|path: &Path, up: &str| format!("{up}{}", path.display().to_string().trim_start_matches('/')))
            as fn(&Path, &str) -> String,
        |path, up| format!("etc/{up}{}", path.display().to_string().trim_start_matches('/')),
        |path, _| path.display().to_string(),
        |path, _| format!("//{}", path.display()),
    ] {
        let path = target();
        let entry = make(&path, &up);
        let (container, log) = run(&arena, vec![Entry::file(&entry, "escaped")], &["cat", "/etc/group"]);
        assert!(!path.exists(), "{entry} was written to the host");
        if container.reason == Some(Reason::ImagePullFailed) {
            assert_refused(&container);
        } else {
            assert!(log.starts_with("root:"), "{entry}: {container:?} {log}");
        }
    }
}

#[test]
fn a_file_written_through_a_link_does_not_leave_the_root() {
    privileged!();
    let arena = Arena::new();
    for to in ["/tmp", "../../../../../../../../tmp", "/proc/self/root/tmp", "/proc/1/cwd/tmp"] {
        let path = target();
        let name = path.file_name().expect("a target has a name").to_string_lossy().into_owned();
        let entries = vec![Entry::link("out", to), Entry::file(&format!("out/{name}"), "escaped")];
        run(&arena, entries, &["ls", "/"]);
        assert!(!path.exists(), "an image wrote {} through a link to {to}", path.display());
    }
}

#[test]
fn a_link_replaced_by_a_folder_of_the_same_name_does_not_leave_the_root() {
    privileged!();
    let arena = Arena::new();
    let path = target();
    fs::create_dir(&path).expect("a folder can be made");
    fs::write(path.join("kept"), "of the host").expect("a file can be written");
    let shown = path.display().to_string();
    // folder entries over links, whiteouts behind links, an opaque mark behind a link
    let entries = vec![
        Entry::link("a", &shown),
        Entry { path: "a/".to_owned(), content: Content::Folder(0o777) },
        Entry::link("b", &shown),
        Entry::file("b/.wh.kept", ""),
        Entry::link("c", &shown),
        Entry::file("c/.wh..wh..opq", ""),
        Entry::file("a/new", "escaped"),
    ];
    let mode = fs::metadata(&path).expect("it is there").permissions();
    run(&arena, entries, &["ls", "/"]);
    let names: Vec<_> = fs::read_dir(&path).expect("it is there").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["kept"]);
    assert_eq!(fs::metadata(&path).expect("it is there").permissions(), mode);
    fs::remove_dir_all(&path).expect("it can be removed");
}

#[test]
fn a_hard_link_takes_no_file_of_the_host() {
    privileged!();
    let arena = Arena::new();
    let path = target();
    fs::write(&path, "of the host").expect("a file can be written");
    let up = "../".repeat(12);
    let relative = format!("{up}{}", path.display().to_string().trim_start_matches('/'));
    let absolute = path.display().to_string();
    for (entries, stolen) in [
        (vec![Entry { path: "stolen".to_owned(), content: Content::HardLink(relative.clone()) }], "/stolen"),
        (vec![Entry { path: "stolen".to_owned(), content: Content::HardLink(absolute.clone()) }], "/stolen"),
        (
            vec![
                Entry::link("tmp2", "/tmp"),
                Entry { path: "stolen".to_owned(), content: Content::HardLink(absolute.replacen("/tmp", "tmp2", 1)) },
            ],
            "/stolen",
        ),
    ] {
        let (container, log) = run(&arena, entries, &["cat", stolen]);
        assert!(!log.contains("of the host"), "{container:?} {log}");
        assert_eq!(fs::read_to_string(&path).ok().as_deref(), Some("of the host"));
    }
    fs::remove_file(&path).expect("it can be removed");
}

#[test]
fn a_device_node_of_an_image_opens_nothing() {
    privileged!();
    let arena = Arena::new();
    for (major, minor) in [(1, 1), (1, 11), (195, 0)] {
        let entries = vec![Entry { path: "node".to_owned(), content: Content::Device(major, minor) }];
        let (container, log) = run(&arena, entries, &["testbox", "open", "/node", "r"]);
        assert!(container.reason == Some(Reason::ImagePullFailed) || !log.contains("ok"), "{container:?} {log}");
    }
}

#[test]
fn names_of_users_come_from_the_images_own_files() {
    privileged!();
    let arena = Arena::new();
    let path = target();
    fs::write(&path, "evil:x:0:0::/:/bin/sh\n").expect("a file can be written");
    let config = Config {
        user: "evil".to_owned(),
        layers: vec![vec![Entry::link("etc/passwd", &path.display().to_string())]],
        ..Config::command(&["id"])
    };
    let (container, log) = run_config(&arena, &config);
    assert!(container.exit.is_none_or(|exit| !exit.success()) && log.is_empty(), "{container:?} {log}");
    assert!(container.message.as_deref().is_some_and(|text| text.contains("evil")), "{container:?}");
    fs::remove_file(&path).expect("it can be removed");
}

#[test]
fn links_at_proc_sys_and_dev_are_not_followed() {
    privileged!();
    let arena = Arena::new();
    let before = arena.daemon.snapshot();
    for name in ["proc", "sys", "dev", "sys/fs", "dev/shm", "dev/pts"] {
        for to in ["/elsewhere", "/tmp", "../../../../tmp", "/mnt/mesos/sandbox"] {
            let entries = vec![Entry::folder("elsewhere/"), Entry::link(name, to)];
            let (container, log) = run(&arena, entries, &["testbox", "mounts"]);
            if container.exit.is_some_and(ExitStatus::success) {
                // started: then what is mounted there is mounted there, and nowhere else
                for point in ["/proc", "/sys", "/dev", "/dev/shm", "/dev/pts"] {
                    let there = log.lines().any(|line| line.split(' ').nth(4) == Some(point));
                    assert!(there, "{name} -> {to}: {point} is not a mount:\n{log}");
                }
                assert!(!log.contains(" /elsewhere ") && !log.contains(" /tmp "), "{name} -> {to}:\n{log}");
            } else {
                assert_eq!(container.reason, Some(Reason::ContainerLaunchFailed), "{name} -> {to}: {container:?}");
                let message = container.message.as_deref().unwrap_or_default();
                let last = name.rsplit('/').next().unwrap_or(name);
                assert!(message.contains(&format!("{last} on the way to /")), "{name} -> {to}: {message}");
            }
        }
    }
    let after = arena.daemon.snapshot();
    assert_eq!(rest(&before), rest(&after));
}

#[test]
fn a_link_of_the_image_does_not_put_a_volume_over_proc() {
    privileged!();
    let arena = Arena::new();
    for to in ["/proc/sys", "/proc/1", "/sys/kernel", "../../proc/sys"] {
        let config = Config { layers: vec![vec![Entry::link("data", to)]], ..Config::command(&["testbox", "mounts"]) };
        let image = images::oci(&arena.daemon.dir().join("layout"), "over", &config);
        let mut pod = pods::once("/over", json!({"name": "main", "image": image, "resources": pods::resources()}));
        pod["volumes"] = json!([{"name": "v"}]);
        pod["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/data"}]);
        let (status, log) = arena.attack_with(pod);
        let container = &status.instances[0].containers[0];
        assert_eq!(container.reason, Some(Reason::ContainerLaunchFailed), "{to}: {container:?} {log}");
        assert!(container.message.as_deref().is_some_and(|text| text.contains("/data")), "{container:?}");
    }
}

#[test]
fn a_dev_of_the_image_does_not_show_through() {
    privileged!();
    let arena = Arena::new();
    let entries =
        vec![Entry::folder("dev/"), Entry::file("dev/null", "not the null device"), Entry::file("dev/extra", "x")];
    let (container, log) = run(&arena, entries.clone(), &["cat", "/dev/null"]);
    assert_eq!(log, "", "{container:?}");
    assert!(container.exit.is_some_and(ExitStatus::success), "{container:?}");
    let (_, log) = run(&arena, entries, &["ls", "/dev"]);
    assert!(!log.contains("extra") && log.contains("null"), "{log}");
}

#[test]
fn a_link_at_etc_hosts_does_not_touch_the_host() {
    privileged!();
    let arena = Arena::new();
    let path = target();
    fs::write(&path, "of the host").expect("a file can be written");
    for to in [path.display().to_string(), format!("../../../../..{}", path.display()), "/proc/self/environ".to_owned()]
    {
        let entries = ["hosts", "hostname", "resolv.conf"].map(|name| Entry::link(&format!("etc/{name}"), &to));
        let (container, log) = run(&arena, entries.to_vec(), &["cat", "/etc/hosts"]);
        assert!(!log.contains("of the host"), "{container:?} {log}");
        assert_eq!(fs::read_to_string(&path).ok().as_deref(), Some("of the host"));
    }
    fs::remove_file(&path).expect("it can be removed");
}

#[test]
fn a_working_directory_of_the_image_behind_a_descriptor_is_refused() {
    privileged!();
    let arena = Arena::new();
    for number in 3..20 {
        let config = Config {
            working_dir: "/way".to_owned(),
            layers: vec![vec![Entry::link("way", &format!("/proc/self/fd/{number}"))]],
            ..Config::command(&["ls", "."])
        };
        let (container, log) = run_config(&arena, &config);
        assert!(container.exit.is_none_or(|exit| !exit.success()) && log.is_empty(), "{number}: {container:?} {log}");
    }
}

#[test]
fn a_working_directory_behind_a_link_stays_in_the_root() {
    privileged!();
    let arena = Arena::new();
    for to in ["/etc", "../../../../../../etc", "/proc/1/root/etc"] {
        let config = Config {
            working_dir: "/way/deeper".to_owned(),
            layers: vec![vec![Entry::link("way", to)]],
            ..Config::command(&["cwd"])
        };
        let (container, log) = run_config(&arena, &config);
        assert!(log.is_empty() || log == "/etc/deeper\n", "{to}: {container:?} {log}");
        assert!(!Path::new("/etc/deeper").exists());
    }
}

#[test]
fn an_image_whose_command_is_the_launcher_itself_runs_nothing() {
    privileged!();
    let arena = Arena::new();
    for words in [&["/proc/self/exe", "--zygote"][..], &["/proc/self/fd/3"], &["/proc/1/exe"], &["/proc/self/fd/0"]] {
        let (container, log) = run(&arena, Vec::new(), words);
        assert!(container.exit.is_none_or(|exit| !exit.success()), "{words:?}: {container:?} {log}");
    }
    let (container, log) = run(&arena, vec![Entry::link("bin/init", "/proc/self/exe")], &["/bin/init", "--zygote"]);
    assert!(container.exit.is_none_or(|exit| !exit.success()), "{container:?} {log}");
}

#[test]
fn an_image_layer_is_not_changed_by_its_containers() {
    privileged!();
    let arena = Arena::new();
    let image = images::oci(
        &arena.daemon.dir().join("layout"),
        "shared",
        &Config { layers: vec![vec![Entry::file("value", "first")]], ..Config::default() },
    );
    let container = |words: &[&str]| {
        pods::once(
            "/writer",
            json!({
                "name": "main", "image": image, "resources": pods::resources(), "exec": {"command": {"argv": words}},
            }),
        )
    };
    assert_eq!(arena.attack_with(container(&["testbox", "write", "/value", "second"])).1, "ok\n");
    assert_eq!(arena.attack_with(container(&["cat", "/value"])).1, "first\n");
}
