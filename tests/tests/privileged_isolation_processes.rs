//! Containers that look for other processes, their memory, their sockets and their names.

use std::fmt::Write;
use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use agentd_tests::arena::{Arena, field, tools};
use agentd_tests::{Daemon, pods, privileged, until};
use serde_json::json;

/// Starts a pod whose container holds something, and waits until it says so.
fn holder(arena: &Arena, id: &str, words: &[&str], says: &str) {
    arena.client.run_pod(&tools(pods::with_container(pods::argv(id, words), |container| {
        container["lifecycle"] = json!({"killGracePeriodSeconds": 0.1});
    })));
    until("the holder is ready", Duration::from_secs(10), || {
        arena.client.logs(id, "main").contains(says).then_some(())
    });
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
        write!(line, "/opt/testbox connect-unix {path}; ").expect("a text grows");
    }
    let log = arena.attack(&format!("{line} ls {of_pods}"));
    drop(listeners);
    for path in &paths {
        // one that is gone is as well
        let _ = fs::remove_file(path);
    }
    let (answers, rest): (Vec<&str>, Vec<&str>) = log.lines().partition(|line| *line == "ENOENT");
    assert_eq!(answers.len(), paths.len() + 1 + known.len(), "{log}");
    assert!(rest.iter().all(|line| line.contains("No such file")), "{log}");
}

#[test]
fn abstract_sockets_of_the_host_are_out_of_reach() {
    privileged!();
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
fn the_environment_holds_nothing_of_the_daemons() {
    privileged!();
    let arena = Arena::with(Daemon::with().env("SECRET_OF_THE_DAEMON", "hunter2"));
    let log = arena.attack("/opt/testbox env; cat /proc/1/environ");
    assert!(!log.contains("hunter2") && log.contains("MESOS_SANDBOX="), "{log}");
}
