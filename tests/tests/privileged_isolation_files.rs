//! Containers that look for files that are not theirs, write where they may not, and use volumes to get at the host.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use agentd_api::status::Reason;
use agentd_tests::arena::{Arena, tools, with_host_volume};
use agentd_tests::images::{self, Config};
use agentd_tests::{Daemon, pods, privileged};
use serde_json::{Value, json};

/// A folder on the host's disk, which pods may have as a volume (those of `/dev` they may not), with a file that tells the
/// host from the inside of a container.
struct HostFolder(PathBuf);

impl HostFolder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/tmp/agentd-test-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a folder can be made");
        fs::write(path.join("marker"), "of the host").expect("a file can be written");
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for HostFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn secrets_of_the_host_are_not_even_there() {
    privileged!();
    let arena = Arena::new();
    let dir = arena.daemon.dir().display().to_string();
    let paths = [
        "/etc/shadow",
        "/etc/shadow-",
        "/etc/gshadow",
        "/etc/sudoers",
        "/etc/ssh",
        "/etc/ssl/private",
        "/etc/agentd",
        "/root/.ssh",
        "/root/.bashrc",
        "/home/*",
        "/var/lib",
        "/var/log",
        "/run/*",
        "/boot",
        "/srv",
        "/tmp/*",
        "/mnt/mesos/[!s]*",
        "/dev/kmsg",
        "/dev/mem",
        "/dev/vda",
        "/dev/sda",
        "/dev/kvm",
        "/dev/fuse",
        "/dev/net",
        "/dev/loop-control",
        &dir,
    ];
    let log = arena.attack(&format!("for p in {}; do [ -e \"$p\" ] && echo \"there is $p\"; done", paths.join(" ")));
    assert_eq!(log, "");
}

#[test]
fn programs_and_settings_of_the_host_cannot_be_written() {
    privileged!();
    let arena = Arena::new();
    let before = fs::metadata("/etc/passwd").expect("the host has users");
    let line = "for p in /usr/bin/agentd-test /usr/lib/agentd-test /etc/passwd /etc/ld.so.cache /etc/hosts; do \
                echo x >> $p && echo \"wrote $p\"; done; chmod 777 /etc/passwd /usr/bin && echo changed; \
                rm -f /etc/passwd && echo removed; mv /usr /tmp/usr && echo moved";
    let log = arena.attack(line);
    for word in ["wrote", "changed", "removed", "moved"] {
        assert!(!log.lines().any(|line| line.starts_with(word)), "{log}");
    }
    let after = fs::metadata("/etc/passwd").expect("the host has users");
    assert_eq!((before.len(), before.mode(), before.ino()), (after.len(), after.mode(), after.ino()));
    assert!(!Path::new("/usr/bin/agentd-test").exists() && !Path::new("/usr/lib/agentd-test").exists());
}

#[test]
fn proc_leads_to_no_other_root() {
    privileged!();
    let arena = Arena::new();
    let host = HostFolder::new();
    let marker = host.path("marker").display().to_string();
    let pids = ["1", "self", "thread-self", "$$"];
    let mut line = String::new();
    for pid in pids {
        for up in ["root", "cwd", "root/../../..", "cwd/../../../../../.."] {
            line.push_str(&format!("cat /proc/{pid}/{up}{marker}; cat /proc/{pid}/{up}/etc/shadow; "));
        }
    }
    line.push_str("for fd in /proc/[0-9]*/fd/*; do cat $fd/etc/shadow; done; ");
    let log = arena.attack(&line);
    assert!(!log.contains("of the host") && !log.contains("root:"), "{log}");
    assert!(log.lines().all(|line| line.contains("No such file") || line.contains("Not a directory")), "{log}");
}

#[test]
fn the_kernels_settings_cannot_be_written() {
    privileged!();
    let arena = Arena::new();
    let before = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("the host has /proc");
    let paths = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/vm/panic_on_oom",
        "/proc/sys/fs/file-max",
        "/proc/sys/kernel/hostname",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity",
        "/sys/kernel/uevent_helper",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/power/state",
        "/sys/fs/cgroup/cgroup.procs",
        "/sys/fs/cgroup/cgroup.subtree_control",
        "/sys/class/net/lo/mtu",
    ];
    for path in paths {
        let log = arena.attack(&format!("/opt/testbox open {path} w"));
        assert!(matches!(log.trim_end(), "EROFS" | "ENOENT"), "{path}: {log}");
    }
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").ok(), Some(before));
    let log = arena.attack("mkdir /sys/fs/cgroup/agentd-test && echo made; ls /sys/fs/cgroup/agentd-test");
    assert!(!log.contains("made"), "{log}");
}

#[test]
fn masked_parts_of_proc_and_sys_are_empty() {
    privileged!();
    let arena = Arena::new();
    let files = ["kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug"]
        .map(|name| format!("/proc/{name}"));
    let folders = ["/proc/acpi", "/proc/asound", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"];
    let line = format!(
        "for f in {}; do [ -e $f ] && head -c 64 $f | grep -q . && echo \"$f has content\"; done; \
         for d in {}; do [ -e $d ] && [ -n \"$(ls -A $d)\" ] && echo \"$d has content\"; echo x 2>/dev/null >$d/x && echo wrote; done; true",
        files.join(" "),
        folders.join(" ")
    );
    let log = arena.attack(&line);
    assert!(!log.contains("has content") && !log.contains("wrote"), "{log}");
    // what is masked is there on this host, else this would show nothing
    assert!(Path::new("/proc/kcore").exists() || Path::new("/proc/timer_list").exists());
}

#[test]
fn device_nodes_cannot_be_made() {
    privileged!();
    let arena = Arena::new();
    let line = "cd /tmp; for d in 'c 1 1' 'c 1 11' 'c 195 0' 'c 10 232' 'b 7 0' 'b 254 0' 'c 5 0'; do /opt/hostile mknod node $d; done";
    let log = arena.attack(line);
    assert_eq!(log, "EPERM\n".repeat(7));
}

#[test]
fn the_device_guard_holds_even_with_the_capability_to_make_nodes() {
    privileged!();
    let arena = Arena::new();
    let pod = |line: &str| {
        pods::with_container(tools(pods::shell("/maker", line)), |c| {
            c["agentd"] = json!({"capabilities": {"add": ["MKNOD"]}})
        })
    };
    let line = "cd /dev; /opt/hostile mknod null2 c 1 3; echo x > null2 && echo written; \
                for d in 'c 1 1' 'c 1 11' 'c 195 0' 'c 10 232' 'b 7 0' 'b 254 0'; do /opt/hostile mknod node $d; done";
    let (status, log) = arena.attack_with(pod(line));
    assert_eq!(log, format!("ok\nwritten\n{}", "EPERM\n".repeat(6)), "{status:?}");
}

#[test]
fn the_device_guard_denies_opening_what_is_not_listed() {
    privileged!();
    let arena = Arena::new();
    let host = HostFolder::new();
    // made where nobody's guard forbids it; a helper of the test then tries them from within the neighbour's cgroup
    for (name, kind, major, minor) in
        [("mem", "c", 1, 1), ("gpu", "c", 195, 0), ("loop", "b", 7, 0), ("null", "c", 1, 3)]
    {
        let path = host.path(name);
        let made = std::process::Command::new("mknod")
            .arg(&path)
            .args([kind, &major.to_string(), &minor.to_string()])
            .status();
        assert!(made.is_ok_and(|status| status.success()), "mknod {}", path.display());
    }
    let cgroup = arena.client.container("/neighbour", "main").cgroup.expect("a running container has a cgroup");
    let unified = agentd_tests::host::unified().expect("there is a cgroup2 tree");
    let procs = unified.join(cgroup.trim_start_matches('/')).join("init/cgroup.procs");
    let script = format!(
        "echo $$ > {} || exit 1; cd {}; for n in mem gpu loop null; do {} open $n r; done",
        procs.display(),
        host.0.display(),
        images::testbox().display()
    );
    let output = std::process::Command::new("sh").args(["-c", &script]).output().expect("a shell can be run");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "EPERM\nEPERM\nEPERM\nok\n", "{output:?}");
    arena.unharmed();
    // a volume brings no devices either
    let pod = with_host_volume(
        tools(pods::shell("/volume", "/opt/testbox open /v/null r; /opt/testbox open /v/mem r")),
        "v",
        &host.0,
        "/v",
        false,
    );
    assert_eq!(arena.attack_with(pod).1, "EACCES\nEACCES\n");
}

#[test]
fn the_nodes_of_dev_are_what_they_seem() {
    privileged!();
    let arena = Arena::new();
    let log = arena
        .attack("cd /dev; for n in *; do [ -L $n ] || { [ -c $n ] || [ -b $n ]; } && stat -c '%n %F %t:%T' $n; done");
    let mut lines: Vec<&str> = log.lines().filter(|line| !line.contains("symbolic link")).collect();
    lines.sort_unstable();
    let kind = "character special file";
    let expected = ["full 1:7", "null 1:3", "random 1:8", "tty 5:0", "urandom 1:9", "zero 1:5"];
    let expected: Vec<String> = expected.iter().map(|e| e.replacen(' ', &format!(" {kind} "), 1)).collect();
    assert_eq!(lines, expected);
}

#[test]
fn a_double_chroot_ends_at_the_same_root() {
    privileged!();
    let arena = Arena::new();
    let host = HostFolder::new();
    let log = arena.attack(&format!("/opt/hostile chroot-escape {}", host.path("marker").display()));
    assert_eq!(log, "same root: true\nmarker: ENOENT\nshadow: ENOENT\nok\n");
}

#[test]
fn files_of_other_pods_cannot_be_found() {
    privileged!();
    let arena = Arena::new();
    let name = format!("secret-of-{}", std::process::id());
    let line = format!("echo top secret > {name}; echo > /tmp/{name}; echo ready; exec sleep 10000");
    arena.client.run_pod(&pods::with_container(pods::shell("/owner", &line), |c| {
        c["lifecycle"] = json!({"killGracePeriodSeconds": 0.1});
    }));
    agentd_tests::until("the secret is written", std::time::Duration::from_secs(10), || {
        arena.client.logs("/owner", "main").contains("ready").then_some(())
    });
    let log = arena.attack(&format!(
        "find / -name '{name}' 2>/dev/null; grep -r '{name}' /proc/self/mountinfo; ls /mnt/mesos; ls -A"
    ));
    assert_eq!(log, "sandbox\n");
    arena.client.rm("/owner");
}

#[test]
fn mounts_and_cgroups_show_nothing_of_other_pods() {
    privileged!();
    let arena = Arena::new();
    let log = arena.attack("cat /proc/self/mountinfo; cat /proc/self/mounts; cat /proc/self/cgroup");
    let neighbour = arena.client.instance("/neighbour").id;
    assert!(!log.contains("pods/") && !log.contains(arena.daemon.instance()) && !log.contains(&neighbour), "{log}");
    assert!(log.lines().any(|line| line == "0::/" || line == "0::/init"), "{log}");
    // a v1 path may be seen where a v1 hierarchy is in use, but is no way to it
    assert!(!log.contains(" - cgroup cgroup"), "{log}");
}

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
    assert_eq!((log.matches("EROFS").count(), log.matches("Read-only file system").count()), (1, 1), "{log}");
    assert!(!log.contains("made") && !log.contains("remounted") && log.ends_with("of the host\n"), "{log}");
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
fn a_read_only_root_cannot_be_written() {
    privileged!();
    let arena = Arena::new();
    let image =
        images::oci(&arena.daemon.dir().join("layout"), "ro", &Config::command(&["testbox", "write", "/x", "y"]));
    let container =
        json!({"name": "main", "image": image, "resources": pods::resources(), "agentd": {"readOnlyRoot": true}});
    assert_eq!(arena.attack_with(pods::once("/ro", container)).1, "EROFS\n");
    let pod = pods::with_container(tools(pods::shell("/ro", "/opt/testbox write /x y; /opt/testbox write x y")), |c| {
        c["agentd"] = json!({"readOnlyRoot": true});
    });
    assert_eq!(arena.attack_with(pod).1, "EROFS\nok\n");
}

#[test]
fn secrets_are_seen_by_the_container_that_mounts_them_alone() {
    privileged!();
    use std::os::unix::fs::PermissionsExt;
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
