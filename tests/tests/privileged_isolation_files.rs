//! Containers that look for files that are not theirs and write where they may not.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use agentd_tests::arena::{Arena, HostFolder, tools, with_host_volume};
use agentd_tests::images::{self, Config};
use agentd_tests::{pods, privileged};
use serde_json::json;

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
            write!(line, "cat /proc/{pid}/{up}{marker}; cat /proc/{pid}/{up}/etc/shadow; ").expect("a text grows");
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
            c["agentd"] = json!({"capabilities": {"add": ["MKNOD"]}});
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

#[test]
fn folders_of_agentd_are_closed_to_other_users() {
    privileged!();
    let arena = Arena::new();
    let image = images::oci(&arena.daemon.dir().join("layout"), "any", &Config::command(&["true"]));
    arena.attack_with(pods::once("/any", json!({"name": "main", "image": image, "resources": pods::resources()})));
    for folder in [arena.daemon.run(), arena.daemon.state()] {
        for path in std::iter::once(folder.clone())
            .chain(fs::read_dir(&folder).expect("it is there").flatten().map(|e| e.path()))
        {
            let mode = fs::symlink_metadata(&path).expect("it is there").permissions().mode();
            // the run folder may be passed through, to the API's socket
            let open = if path == arena.daemon.run() { 0o011 } else { 0 };
            let others = if path == arena.daemon.socket() { 0o007 } else { 0o077 };
            assert_eq!(mode & others, open, "{}", path.display());
        }
    }
    let mode = fs::metadata(arena.daemon.socket()).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o007, 0, "the API's socket has mode {mode:o}");
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
