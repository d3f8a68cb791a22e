//! Containers that look for other processes, their memory, their sockets and their names, and that try to have more
//! privileges than they were given.

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use agentd_tests::arena::{Arena, tools};
use agentd_tests::images::{self, Config, Content, Entry};
use agentd_tests::{Daemon, pods, privileged, until};
use serde_json::{Value, json};

/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, SYS_CHROOT, SETFCAP.
const CAPABILITIES: u64 =
    1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18 | 1 << 31;

/// Starts a pod whose container holds something, and waits until it says so.
fn holder(arena: &Arena, id: &str, words: &[&str], says: &str) {
    arena.client.run_pod(&tools(pods::with_container(pods::argv(id, words), |container| {
        container["lifecycle"] = json!({"killGracePeriodSeconds": 0.1});
    })));
    until("the holder is ready", Duration::from_secs(10), || {
        arena.client.logs(id, "main").contains(says).then_some(())
    });
}

/// The value of a line `Name: value` or `Name:\tvalue`.
fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).trim()
}

#[test]
fn only_its_own_processes_are_visible() {
    privileged!();
    let arena = Arena::new();
    let log = arena.attack("/opt/testbox pids");
    let names: Vec<&str> = log.lines().filter_map(|line| line.split_once(' ')).map(|(_, name)| name).collect();
    assert_eq!(names, ["sh", "testbox"], "{log}");
    assert!(log.starts_with("1 sh\n"), "{log}");
}

#[test]
fn processes_of_others_cannot_be_signalled() {
    privileged!();
    let arena = Arena::new();
    let last = arena.neighbour_pid() + 1000;
    assert_eq!(arena.attack(&format!("/opt/hostile kill-range {last}")), "reached []\n");
    // the number of a process of the host means another one inside, or none
    let log = arena.attack(&format!("kill -9 {} {} && echo killed", arena.neighbour_pid(), arena.daemon.pid()));
    assert!(!log.contains("killed"), "{log}");
}

#[test]
fn processes_of_a_sibling_container_are_invisible() {
    privileged!();
    let arena = Arena::new();
    let mut pod = tools(pods::argv("/pair", &["/opt/testbox", "pids"]));
    let sibling =
        json!({"name": "sibling", "exec": {"command": {"argv": ["/bin/true"]}}, "resources": pods::resources()});
    pod["containers"].as_array_mut().expect("a list").push(sibling);
    let (_, log) = arena.attack_with(pod);
    assert_eq!(log, "1 testbox\n");
}

#[test]
fn pod_init_and_the_daemon_are_not_in_sight() {
    privileged!();
    let arena = Arena::new();
    let log = arena.attack("cat /proc/1/status; for p in /proc/[0-9]*; do cat $p/comm; done");
    assert_eq!(field(&log, "PPid"), "0", "{log}");
    assert!(!log.contains("pod-init") && !log.contains("agentd"), "{log}");
}

#[test]
fn what_a_container_leaves_behind_ends_with_it() {
    privileged!();
    let arena = Arena::new();
    let before = arena.daemon.snapshot();
    let log = arena.attack(
        "(setsid sleep 10000 </dev/null >/dev/null 2>&1 &) ; (setsid sh -c 'trap \"\" TERM; sleep 9999' &); echo gone",
    );
    assert!(log.starts_with("gone"), "{log}");
    before.assert_same();
}

#[test]
fn every_namespace_is_its_own() {
    privileged!();
    let arena = Arena::new();
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];
    let log = arena.attack(&format!("cd /proc/self/ns; for k in {}; do readlink $k; done", kinds.join(" ")));
    let neighbour = format!("/proc/{}/ns", arena.neighbour_pid());
    for (kind, inside) in kinds.iter().zip(log.lines()) {
        for other in ["/proc/self/ns", &neighbour] {
            let other = fs::read_link(Path::new(other).join(kind)).expect("a namespace has a name");
            assert_ne!(Path::new(inside), other, "{kind}");
        }
    }
    assert_eq!(log.lines().count(), kinds.len(), "{log}");
}

#[test]
fn shared_memory_segments_of_other_pods_cannot_be_attached() {
    privileged!();
    let arena = Arena::new();
    holder(&arena, "/holder", &["/opt/hostile", "shm-put", "4711"], "ok");
    assert_eq!(arena.attack("/opt/hostile shm-get 4711"), "ENOENT\n");
    assert_eq!(arena.attack("/opt/hostile shm-put 4712 & sleep 0.3; /opt/hostile shm-get 4712"), "ok\nok\n");
    // SAFETY: plain integers; asks whether the host has the segment.
    assert!(unsafe { libc::shmget(4711, 4096, 0) } < 0, "the segment is the host's");
    arena.client.rm("/holder");
}

#[test]
fn message_queues_of_other_pods_cannot_be_opened() {
    privileged!();
    let arena = Arena::new();
    holder(&arena, "/holder", &["/bin/sh", "-c", "/opt/hostile mq-put /queue; sleep 10000"], "ok");
    assert_eq!(arena.attack("/opt/hostile mq-get /queue; ls /dev/mqueue"), "ENOENT\n");
    assert_eq!(arena.attack("/opt/hostile mq-put /own; /opt/hostile mq-get /own; ls /dev/mqueue"), "ok\nok\nown\n");
    arena.client.rm("/holder");
}

#[test]
fn loopback_services_of_another_pod_and_of_the_host_are_out_of_reach() {
    privileged!();
    let arena = Arena::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let of_host = listener.local_addr().expect("a listener has an address").port();
    holder(&arena, "/server", &["/opt/testbox", "listen", "8099"], "listening");
    let log = arena.attack(&format!("/opt/testbox connect 127.0.0.1 8099; /opt/testbox connect 127.0.0.1 {of_host}"));
    assert_eq!(log, "ECONNREFUSED\nECONNREFUSED\n");
    let log = arena.attack("/opt/testbox listen 8098 & sleep 0.3; /opt/testbox connect 127.0.0.1 8098; kill %1");
    assert!(log.contains("ok"), "its own loopback works: {log}");
    arena.client.rm("/server");
}

#[test]
fn unix_sockets_of_the_host_are_out_of_reach() {
    privileged!();
    let arena = Arena::new();
    let name = format!("agentd-test-{}.sock", std::process::id());
    let paths = [format!("/run/{name}"), format!("/tmp/{name}"), format!("/dev/shm/{name}")];
    let listeners: Vec<_> = paths.iter().map(|path| UnixListener::bind(path).expect("a socket can be made")).collect();
    let own = arena.daemon.socket().display().to_string();
    let of_pods = arena.daemon.run().join("pods").display().to_string();
    let known =
        ["/run/agentd/agentd.sock", "/run/systemd/notify", "/run/dbus/system_bus_socket", "/var/run/docker.sock"];
    let mut line = String::new();
    for path in paths.iter().map(String::as_str).chain([own.as_str()]).chain(known) {
        line.push_str(&format!("/opt/testbox connect-unix {path}; "));
    }
    let log = arena.attack(&format!("{line} ls {of_pods}"));
    drop(listeners);
    paths.iter().for_each(|path| drop(fs::remove_file(path)));
    let (answers, rest): (Vec<&str>, Vec<&str>) = log.lines().partition(|line| *line == "ENOENT");
    assert_eq!(answers.len(), paths.len() + 1 + known.len(), "{log}");
    assert!(rest.iter().all(|line| line.contains("No such file")), "{log}");
}

#[test]
fn abstract_sockets_of_the_host_are_out_of_reach() {
    privileged!();
    use std::os::linux::net::SocketAddrExt;
    let arena = Arena::new();
    let name = format!("agentd-test-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("a name");
    let _listener = UnixListener::bind_addr(&address).expect("a socket can be made");
    assert_eq!(arena.attack(&format!("/opt/hostile abstract {name}")), "ECONNREFUSED\n");
}

#[test]
fn the_host_name_is_its_own_and_fixed() {
    privileged!();
    let arena = Arena::new();
    let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let log = arena.attack("/opt/testbox hostname; /opt/testbox syscall sethostname; /opt/testbox hostname");
    let lines: Vec<&str> = log.lines().collect();
    assert!(lines[0].starts_with("hostile-") && lines[0] == lines[2] && lines[1] == "EPERM", "{log}");
    assert_eq!(rustix::system::uname().nodename().to_string_lossy(), own);
}

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
fn tracing_reaches_no_other_user_and_no_other_container() {
    privileged!();
    let arena = Arena::new();
    // process 1 is root's here, the tracer is not
    let log = arena.attack("setpriv --reuid 1000 --regid 1000 --clear-groups /opt/testbox syscall ptrace");
    assert_eq!(log, "EPERM\n");
    let log = arena.attack(&format!("cat /proc/{}/mem /proc/{}/environ", arena.neighbour_pid(), arena.daemon.pid()));
    assert_eq!(log.matches("No such file").count(), 2, "{log}");
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

#[test]
fn the_launcher_cannot_be_overwritten_through_proc_self_exe() {
    privileged!();
    let arena = Arena::new();
    let pod = checked("/catcher", &["/opt/hostile", "catch-exe", "5"], &json!({"argv": ["/proc/self/exe", "run"]}));
    let (status, log) = arena.attack_with(pod);
    assert!(!log.contains("overwrite ok"), "{log} {status:?}");
    assert!(log.contains("overwrite E") || log.contains("caught nothing"), "{log}");
    // the same from an image's own command
    let (status, log) = arena.attack_with(tools(pods::argv("/self", &["/proc/self/exe", "--help"])));
    assert!(!status.instances[0].containers[0].exit.is_some_and(|exit| exit.success()), "{status:?} {log}");
}

#[test]
fn the_launcher_runs_from_a_sealed_memory_file() {
    privileged!();
    use std::os::fd::AsRawFd;
    const SEALS: i32 = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
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
    // no container makes itself less likely to be chosen
    let log = arena.attack("echo -1000 > /proc/self/oom_score_adj || echo refused; cat /proc/self/oom_score_adj");
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
fn the_environment_holds_nothing_of_the_daemons() {
    privileged!();
    let arena = Arena::with(Daemon::with().env("SECRET_OF_THE_DAEMON", "hunter2"));
    let log = arena.attack("/opt/testbox env; cat /proc/1/environ");
    assert!(!log.contains("hunter2") && log.contains("MESOS_SANDBOX="), "{log}");
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
