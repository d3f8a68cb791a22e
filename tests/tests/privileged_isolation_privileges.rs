//! Containers that try to have more privileges than they were given: capabilities, system calls, set-user-id programs, leaked
//! descriptors, and the launcher itself.

use std::fs;
use std::os::fd::AsRawFd;
use std::time::Duration;

use agentd_api::status::ExitStatus;
use agentd_tests::arena::{Arena, field, tools};
use agentd_tests::images::{self, Config, Content, Entry};
use agentd_tests::{pods, privileged, until};
use serde_json::{Value, json};

/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, SYS_CHROOT, SETFCAP.
const CAPABILITIES: u64 =
    1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18 | 1 << 31;

#[test]
fn capabilities_are_exactly_the_default_set() {
    privileged!();
    let arena = Arena::new();
    let log = arena.attack("/opt/testbox caps");
    for name in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(u64::from_str_radix(field(&log, name), 16), Ok(CAPABILITIES), "{name}: {log}");
    }
    for name in ["CapInh", "CapAmb"] {
        assert_eq!(u64::from_str_radix(field(&log, name), 16), Ok(0), "{name}: {log}");
    }
    assert_eq!((field(&log, "NoNewPrivs"), field(&log, "Seccomp")), ("1", "2"), "{log}");
}

#[test]
fn a_user_other_than_root_has_no_capability() {
    privileged!();
    let arena = Arena::new();
    let pod =
        pods::with_container(tools(pods::argv("/user", &["/opt/testbox", "caps"])), |c| c["user"] = json!("1000:1000"));
    let (_, log) = arena.attack_with(pod);
    for name in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(u64::from_str_radix(field(&log, name), 16), Ok(0), "{name}: {log}");
    }
    assert_eq!(u64::from_str_radix(field(&log, "CapBnd"), 16), Ok(CAPABILITIES), "{log}");
}

/// Asserts that each of these calls is refused with EPERM or ENOSYS.
fn assert_refused(calls: &[&str]) {
    let arena = Arena::new();
    let log = arena.attack(&format!("/opt/testbox syscall {}", calls.join(" ")));
    let answers: Vec<(&str, &str)> = log.lines().filter_map(|line| line.split_once(' ')).collect();
    assert_eq!(answers.len(), calls.len(), "{log}");
    for (call, answer) in answers {
        assert!(matches!(answer, "EPERM" | "ENOSYS"), "{call}: {answer}");
    }
}

#[test]
fn mounts_cannot_be_made_moved_or_undone() {
    privileged!();
    assert_refused(&["mount", "umount", "pivot_root", "fsopen", "fsmount", "move_mount", "open_tree", "mount_setattr"]);
}

#[test]
fn namespaces_cannot_be_made_or_entered() {
    privileged!();
    assert_refused(&["unshare", "unshare_net", "unshare_user", "setns", "clone3_newuser"]);
}

#[test]
fn the_kernel_cannot_be_extended_replaced_or_restarted() {
    privileged!();
    assert_refused(&[
        "init_module",
        "finit_module",
        "delete_module",
        "kexec_load",
        "reboot",
        "swapon",
        "acct",
        "quotactl",
    ]);
}

#[test]
fn bpf_perf_io_uring_and_userfaultfd_are_closed() {
    privileged!();
    assert_refused(&["bpf", "perf_event_open", "io_uring_setup", "userfaultfd", "fanotify_init"]);
}

#[test]
fn keyrings_are_closed() {
    privileged!();
    assert_refused(&["keyctl", "add_key", "request_key"]);
}

#[test]
fn clocks_and_consoles_are_closed() {
    privileged!();
    assert_refused(&["clock_settime", "settimeofday", "syslog", "vhangup"]);
}

#[test]
fn file_handles_and_foreign_descriptors_are_closed() {
    privileged!();
    assert_refused(&["open_by_handle_at", "kcmp"]);
}

#[test]
fn raw_and_unusual_sockets_are_closed() {
    privileged!();
    assert_refused(&["socket_raw", "socket_packet", "socket_vsock"]);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn other_system_call_tables_are_closed() {
    privileged!();
    let arena = Arena::new();
    // a filter may also end the process for a foreign table; what it may not do is answer
    for call in ["x32_getpid", "i386_getpid", "iopl", "ioperm"] {
        let log = arena.attack(&format!("/opt/testbox syscall {call}"));
        assert!(!log.contains("ok"), "{call}: {log}");
    }
}

#[test]
fn a_set_user_id_program_gains_nothing() {
    privileged!();
    let arena = Arena::new();
    let program = fs::read(images::testbox()).expect("the program can be read");
    let layers = vec![vec![
        Entry::folder("suid/"),
        Entry { path: "suid/testbox".to_owned(), content: Content::File(0o6755, program) },
    ]];
    let config =
        Config { user: "1000".to_owned(), layers, ..Config::command(&["/suid/testbox", "syscall", "setuid_0"]) };
    let image = images::oci(&arena.daemon.dir().join("layout"), "suid", &config);
    let pod = pods::once("/suid", json!({"name": "main", "image": image, "resources": pods::resources()}));
    let (status, log) = arena.attack_with(pod);
    assert_eq!(log, "EPERM\n", "{status:?}");
}

#[test]
fn no_descriptor_leaks_into_a_container() {
    privileged!();
    let arena = Arena::new();
    let (_, log) = arena.attack_with(tools(pods::argv("/fds", &["/opt/hostile", "descriptors"])));
    assert_eq!(log, "open [0, 1, 2]\n");
    let (_, log) = arena.attack_with(tools(pods::argv("/fds", &["/opt/testbox", "fds"])));
    let targets: Vec<&str> = log.lines().filter_map(|line| line.split_once(' ')).map(|(_, to)| to).collect();
    assert_eq!(targets[0], "/dev/null", "{log}");
    assert!(targets[1..].iter().all(|to| to.starts_with("pipe:")), "{log}");
}

/// A pod that waits, with a command health check.
fn checked(id: &str, main: &[&str], check: &Value) -> Value {
    pods::with_container(tools(pods::argv(id, main)), |container| {
        container["resources"] = json!({"cpus": 0.5, "mem": 64, "disk": 32});
        container["lifecycle"] = json!({"killGracePeriodSeconds": 0.1});
        container["healthCheck"] = json!({
            "exec": {"command": check}, "gracePeriodSeconds": 0, "intervalSeconds": 0.3, "maxConsecutiveFailures": 0,
            "timeoutSeconds": 0.25, "delaySeconds": 0,
        });
    })
}

#[test]
fn no_descriptor_leaks_into_a_command_of_a_check() {
    privileged!();
    let arena = Arena::new();
    let check = json!({"shell": "/opt/hostile descriptors > /mnt/mesos/sandbox/new; /opt/testbox caps >> /mnt/mesos/sandbox/new; mv /mnt/mesos/sandbox/new /mnt/mesos/sandbox/seen"});
    let main = ["/bin/sh", "-c", "while ! cat seen 2>/dev/null; do sleep 0.1; done"];
    let (_, log) = arena.attack_with(checked("/check", &main, &check));
    assert!(log.starts_with("open [0, 1, 2]\n"), "{log}");
    assert_eq!(u64::from_str_radix(field(&log, "CapBnd"), 16), Ok(CAPABILITIES), "{log}");
    assert_eq!((field(&log, "NoNewPrivs"), field(&log, "Seccomp")), ("1", "2"), "{log}");
}

/// Resident memory of a process, KiB.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    field(&status, "VmRSS").trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn a_check_that_floods_its_output_fills_neither_memory_nor_log() {
    privileged!();
    let arena = Arena::new();
    let (memory, log) = (resident(arena.daemon.pid()), arena.daemon.log().len());
    let flood = json!({"shell": "while :; do echo 0123456789012345678901234567890123456789012345678901234567890123456789; done"});
    let pod = checked("/flood", &["/opt/testbox", "sleep", "5"], &flood);
    let (status, own) = arena.attack_with(pod);
    assert!(
        status.instances[0].containers[0].exit.is_some_and(ExitStatus::success) && own.is_empty(),
        "{own} {status:?}"
    );
    let (memory_after, log_after) = (resident(arena.daemon.pid()), arena.daemon.log().len());
    assert!(memory_after < memory + 32 * 1024, "the daemon grew from {memory} to {memory_after} KiB");
    assert!(log_after < log + 256 * 1024, "the daemon's log grew from {log} to {log_after} bytes");
}

#[test]
fn the_launcher_cannot_be_overwritten_through_proc_self_exe() {
    privileged!();
    let arena = Arena::new();
    let pod = checked("/catcher", &["/opt/hostile", "catch-exe", "5"], &json!({"argv": ["/proc/self/exe", "run"]}));
    let (status, log) = arena.attack_with(pod);
    println!("{log}");
    assert!(!log.contains("overwrite ok"), "{log} {status:?}");
    assert!(log.contains("overwrite E") || log.contains("caught nothing"), "{log}");
    // the same from an image's own command
    let (status, log) = arena.attack_with(tools(pods::argv("/self", &["/proc/self/exe", "--help"])));
    assert!(!status.instances[0].containers[0].exit.is_some_and(ExitStatus::success), "{status:?} {log}");
}

#[test]
fn the_launcher_runs_from_a_sealed_memory_file() {
    const SEALS: i32 = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    privileged!();
    let arena = Arena::new();
    let init = arena.client.instance("/neighbour").init_pid.expect("a pod has a pod-init");
    let exe = format!("/proc/{init}/exe");
    let link = fs::read_link(&exe).expect("root may read it").display().to_string();
    assert!(link.starts_with("/memfd:pod-init"), "{link}");
    let file = fs::File::open(&exe).expect("root may read it");
    // SAFETY: the descriptor is open; the call only asks.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) } & SEALS, SEALS);
}

#[test]
fn the_oom_score_is_not_the_daemons() {
    privileged!();
    let arena = Arena::new();
    let score: i32 = arena.attack("cat /proc/self/oom_score_adj").trim().parse().expect("a number");
    let own = fs::read_to_string(format!("/proc/{}/oom_score_adj", arena.daemon.pid())).expect("the daemon runs");
    assert!(
        (2..1000).contains(&score) && score > own.trim().parse().expect("a number"),
        "{score}, the daemon's: {own}"
    );
    // no container makes itself less likely to be chosen; the shell's own complaint comes on another stream, in any order
    let log = arena
        .attack("{ echo -1000 > /proc/self/oom_score_adj; } 2>/dev/null || echo refused; cat /proc/self/oom_score_adj");
    assert!(log.contains("refused") && log.lines().last() == Some(&score.to_string()), "{log}");
}

#[test]
fn root_of_a_user_namespace_is_nobody_outside() {
    privileged!();
    let arena = Arena::new();
    let mut pod = tools(pods::with_container(
        pods::shell("/mapped", "id -u; cat /proc/self/uid_map; echo ready; exec sleep 10000"),
        |c| {
            c["lifecycle"] = json!({"killGracePeriodSeconds": 0.1});
        },
    ));
    pod["agentd"]["userNamespace"] = json!(true);
    arena.client.run_pod(&pod);
    until("the container is ready", Duration::from_secs(10), || {
        arena.client.logs("/mapped", "main").contains("ready").then_some(())
    });
    let log = arena.client.logs("/mapped", "main");
    assert!(log.starts_with("0\n"), "{log}");
    let pid = arena.client.container("/mapped", "main").pid.expect("it runs");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    for name in ["Uid", "Gid"] {
        assert!(
            field(&status, name).split_whitespace().all(|id| id.parse::<u32>().is_ok_and(|id| id >= 65_536)),
            "{status}"
        );
    }
    let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).expect("it runs");
    assert_ne!(of(&pid.to_string()), of("self"));
    arena.unharmed();
    arena.client.rm("/mapped");
}

#[test]
fn a_working_directory_behind_a_descriptor_is_refused() {
    privileged!();
    let arena = Arena::new();
    for number in 3..24 {
        let pod =
            pods::with_container(tools(pods::shell("/cwd", "/opt/testbox cwd; ls; ls ../../../..")), |container| {
                container["agentd"] = json!({"workdir": format!("/proc/self/fd/{number}")});
            });
        let (status, log) = arena.client.run_to_end(&pod);
        let container = &status.instances[0].containers[0];
        assert!(container.exit.is_none_or(|exit| !exit.success()) && log.is_empty(), "{number}: {log} {container:?}");
    }
    arena.unharmed();
}
