//! Containers that use volumes to get at what is not theirs: paths of agentd and the kernel, links in sub-paths, links that
//! come and go, writes where reading was meant.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use agentd_api::status::Reason;
use agentd_tests::arena::{Arena, HostFolder, tools, with_host_volume};
use agentd_tests::{Daemon, pods, privileged};
use serde_json::{Value, json};

/// What the daemon says to a pod with this volume.
fn refusal(arena: &Arena, host: &Path) -> String {
    let pod = with_host_volume(pods::shell("/refused", "ls -lR /v"), "v", host, "/v", false);
    let response = arena.client.post("/v1/pods", &pod);
    assert_eq!(response.status, 400, "{}: {}", host.display(), response.text);
    assert!(response.text.contains("volumes[0].host"), "{}", response.text);
    response.text
}

#[test]
fn volumes_lead_neither_to_agentd_nor_to_the_kernel() {
    privileged!();
    let arena = Arena::new();
    let host = HostFolder::new();
    for path in ["/", "/proc", "/proc/1", "/sys", "/sys/fs/cgroup", "/dev", "/dev/shm", "/proc/self/root"] {
        refusal(&arena, Path::new(path));
    }
    for path in [
        arena.daemon.dir().to_path_buf(),
        arena.daemon.run(),
        arena.daemon.state(),
        arena.daemon.state().join("images"),
    ] {
        refusal(&arena, &path);
    }
    let link = host.path("link");
    symlink("/proc", &link).expect("a link can be made");
    refusal(&arena, &link);
    let _listener = UnixListener::bind(host.path("socket")).expect("a socket can be made");
    assert!(refusal(&arena, &host.path("socket")).contains("socket"));
    refusal(&arena, Path::new("/dev/null"));
    arena.unharmed();
}

#[test]
fn a_read_only_volume_stays_read_only() {
    privileged!();
    let arena = Arena::new();
    let host = HostFolder::new();
    let line = "/opt/hostile write /v/marker hacked; mkdir /v/new && echo made; mount -o remount,rw /v && echo remounted; \
                /opt/hostile write /v/marker hacked; cat /v/marker";
    let pod = with_host_volume(tools(pods::shell("/reader", line)), "v", &host.0, "/v", true);
    let (_, log) = arena.attack_with(pod);
    assert_eq!((log.matches("EROFS").count(), log.matches("Read-only file system").count()), (2, 1), "{log}");
    assert!(!log.contains("made") && !log.contains("remounted") && log.contains("of the host"), "{log}");
    assert_eq!(fs::read_to_string(host.path("marker")).ok().as_deref(), Some("of the host"));
}

fn with_sub_path(mut pod: Value, sub_path: &str) -> Value {
    let mounts = pod["containers"][0]["volumeMounts"].as_array_mut().expect("the pod has mounts");
    mounts.last_mut().expect("the pod has a mount")["agentd"] = json!({"subPath": sub_path});
    pod
}

#[test]
fn a_sub_path_through_a_link_is_refused() {
    privileged!();
    let arena = Arena::new();
    let (host, other) = (HostFolder::new(), HostFolder::new());
    fs::create_dir(host.path("folder")).expect("a folder can be made");
    symlink(&other.0, host.path("link")).expect("a link can be made");
    symlink("/etc", host.path("folder/etc")).expect("a link can be made");
    symlink("..", host.path("folder/up")).expect("a link can be made");
    for sub_path in ["link", "folder/etc", "folder/etc/ssl", "folder/up/link", "folder/up"] {
        let pod = with_sub_path(with_host_volume(pods::shell("/sub", "ls -R /v"), "v", &host.0, "/v", false), sub_path);
        let (status, log) = arena.attack_with(pod);
        let container = &status.instances[0].containers[0];
        assert_eq!(container.reason, Some(Reason::ContainerLaunchFailed), "{sub_path}: {container:?}");
        assert!(
            container.message.as_deref().is_some_and(|text| text.contains("subPath")) && log.is_empty(),
            "{container:?}"
        );
    }
    for sub_path in ["../x", "/etc", "folder/../../x"] {
        let pod = with_sub_path(with_host_volume(pods::shell("/sub", "ls -R /v"), "v", &host.0, "/v", false), sub_path);
        let response = arena.client.post("/v1/pods", &pod);
        assert_eq!(response.status, 400, "{sub_path}: {}", response.text);
    }
}

#[test]
fn a_sub_path_that_is_swapped_for_a_link_meanwhile_leads_nowhere() {
    privileged!();
    let arena = Arena::new();
    let (host, other) = (HostFolder::new(), HostFolder::new());
    fs::create_dir_all(host.path("x/inner")).expect("a folder can be made");
    fs::create_dir_all(other.path("inner/forbidden")).expect("a folder can be made");
    symlink(&other.0, host.path("y")).expect("a link can be made");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let (x, y) = (host.path("x"), host.path("y"));
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, &x, rustix::fs::CWD, &y, flags)
                    .expect("two names can be swapped");
            }
        });
        let mut started = 0;
        for _ in 0..30 {
            let pod = with_host_volume(pods::shell("/race", "ls /v; echo seen"), "v", &host.0, "/v", false);
            let (status, log) = arena.client.run_to_end(&with_sub_path(pod, "x/inner"));
            let refused = status.instances[0].containers[0].reason == Some(Reason::ContainerLaunchFailed);
            if log != "seen\n" && !(refused && log.is_empty()) {
                stop.store(true, Ordering::Relaxed);
                panic!("{log} {status:?}");
            }
            started += usize::from(!refused);
        }
        stop.store(true, Ordering::Relaxed);
        println!("{started} of 30 started");
    });
    arena.unharmed();
}

#[test]
fn a_shared_volume_does_not_bend_the_mounts_of_a_sibling() {
    privileged!();
    let arena = Arena::new();
    // the first container makes a link in the volume where the second, started after it, has a mount point
    let host = HostFolder::new();
    let mut pod = pods::shell("/bent", "rm -rf /shared/point; ln -s /etc /shared/point; echo bent; exec sleep 10000");
    pod["volumes"] = json!([{"name": "shared"}, {"name": "inner", "host": host.0}]);
    pod["containers"][0]["volumeMounts"] = json!([{"name": "shared", "mountPath": "/shared"}]);
    pod["containers"][0]["lifecycle"] = json!({"killGracePeriodSeconds": 0.1});
    let line =
        "sleep 1; ls -l /shared; ls /etc/marker /shared/point/marker; grep -c . /etc/passwd; ls /etc/ld.so.cache";
    pod["containers"].as_array_mut().expect("a list").push(json!({
        "name": "second", "exec": {"command": {"shell": line}}, "resources": pods::resources(),
        "volumeMounts": [{"name": "shared", "mountPath": "/shared"}, {"name": "inner", "mountPath": "/shared/point"}],
        "agentd": {"startAfter": ["main"]},
    }));
    let response = arena.client.post("/v1/pods?wait=running&timeout=20", &pod);
    assert!(response.ok() || response.status == 408, "{}", response.text);
    agentd_tests::until("the second container has ended", std::time::Duration::from_secs(20), || {
        arena.client.container("/bent", "second").finished_at
    });
    arena.unharmed();
    arena.client.rm("/bent");
    assert_eq!(fs::read_to_string(host.path("marker")).ok().as_deref(), Some("of the host"));
    assert!(!Path::new("/etc/marker").exists());
}

#[test]
fn secrets_are_seen_by_the_container_that_mounts_them_alone() {
    privileged!();
    let daemon = Daemon::start();
    let folder = daemon.dir().join("secrets");
    fs::create_dir_all(&folder).expect("a folder can be made");
    fs::write(folder.join("key"), "hunter2").expect("a file can be written");
    fs::set_permissions(folder.join("key"), fs::Permissions::from_mode(0o400)).expect("a mode can be set");
    let client = daemon.client();
    let mut pod = pods::shell(
        "/secret",
        "cat /s/key; stat -c ' %a' /s/key; echo x > /s/key || echo refused; grep ' /s ' /proc/self/mounts",
    );
    pod["secrets"] = json!({"mine": {"source": "key"}});
    pod["volumes"] = json!([{"name": "s", "agentd": {"secrets": {"key": "mine"}}}]);
    pod["containers"][0]["volumeMounts"] = json!([{"name": "s", "mountPath": "/s"}]);
    pod["containers"].as_array_mut().expect("a list").push(json!({
        "name": "other", "exec": {"command": {"shell": "find / -name key -path '*s/key' 2>/dev/null; env; echo done"}},
        "resources": pods::resources(),
    }));
    let response = client.post("/v1/pods", &pod);
    assert!(response.ok(), "{}", response.text);
    let status = client.wait_finished("/secret");
    let log = client.logs("/secret", "main");
    assert!(
        log.starts_with("hunter2 400\n") && log.contains("refused") && log.contains("tmpfs"),
        "{log} {:?}",
        status.instances
    );
    let other = client.logs("/secret", "other");
    assert!(!other.contains("hunter2") && !other.contains("/s/key") && other.ends_with("done\n"), "{other}");
    client.rm("/secret");
    assert!(!daemon.log().contains("hunter2"));
}
