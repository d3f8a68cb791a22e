//! Commands of health checks on a real daemon: where they run, what becomes of what they leave behind, and that the pod
//! forks its containers as before in between.

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agentd_api::status::{ContainerStatus, TaskState};
use agentd_tests::exec::{self, Exec};
use agentd_tests::{Client, Daemon, eventually, host, marked, privileged, until};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

/// A container that stays, and is checked again and again by a line of shell.
fn checked(name: &str, line: &str, check: &str) -> Value {
    json!({"name": name, "exec": {"command": {"shell": line}}, "resources": {"cpus": 0.1, "mem": 32, "disk": 8},
        "lifecycle": {"killGracePeriodSeconds": 0.2},
        "healthCheck": {"exec": {"command": {"shell": check}}, "delaySeconds": 0, "intervalSeconds": 0.8,
            "timeoutSeconds": 0.75, "gracePeriodSeconds": 0, "maxConsecutiveFailures": 0}})
}

fn pod(id: &str, containers: &[Value], agentd: Value) -> Value {
    let mut settings = json!({"isolatedNetwork": true, "restartScope": "container"});
    let Value::Object(agentd) = agentd else { panic!("{agentd} is no object") };
    settings.as_object_mut().unwrap().extend(agentd);
    json!({"id": id, "containers": containers, "agentd": settings,
        "scheduling": {"backoff": {"backoff": 0.05, "backoffFactor": 1, "maxLaunchDelay": 0.05}}})
}

/// A container's folder, as seen from outside.
fn inside(container: &ContainerStatus, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/cwd/{name}", container.pid.unwrap()))
}

/// Waits for so many more checks than were made; each adds a line.
#[track_caller]
fn wait_checks(container: &ContainerStatus, more: usize) -> Vec<String> {
    let file = inside(container, "checks");
    let lines = || -> Vec<String> {
        // before the first check there is no such file
        fs::read_to_string(&file).unwrap_or_default().lines().map(str::to_owned).collect()
    };
    let before = lines().len();
    until("more checks are made", PATIENCE, || Some(lines()).filter(|now| now.len() >= before + more))
}

/// The cgroups of commands in a container.
fn places(container: &ContainerStatus) -> Vec<String> {
    let tree = host::unified().expect("a cgroup2 tree");
    let folder = tree.join(container.cgroup.as_deref().unwrap().trim_start_matches('/'));
    let names = fs::read_dir(folder).unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    names.filter(|name| name.starts_with("exec-")).collect()
}

#[track_caller]
fn wait_other_place(container: &ContainerStatus, before: &[String]) -> Vec<String> {
    until("the next commands have a cgroup of their own", PATIENCE, || {
        Some(places(container)).filter(|now| now.len() == 1 && now != before)
    })
}

fn running(client: &Client, id: &str, name: &str) -> ContainerStatus {
    until("the container is healthy", PATIENCE, || {
        Some(client.container(id, name)).filter(|c| c.state == TaskState::TaskRunning && c.healthy == Some(true))
    })
}

#[test]
fn what_a_command_leaves_behind_is_killed_and_checks_go_on() {
    privileged!();
    let mut daemon = Daemon::start();
    let client = daemon.client();
    let marker = format!("7{}", std::process::id());
    // a shell's own line in /proc tells where it was born
    let check = format!(
        "echo \"$$ $(readlink /proc/self/ns/pid) $(readlink /proc/1/ns/pid) $(grep PPid /proc/$$/status)\" >> checks; \
         if [ -e leaves ]; then rm leaves; sleep {marker} & fi; \
         if [ -e hangs ]; then rm hangs; sleep {marker}; fi; \
         ! [ -e fails ]"
    );
    let before = daemon.snapshot();
    client.run_pod(&pod("/check", &[checked("main", "exec sleep 100000", &check)], json!({})));
    let container = running(&client, "/check", "main");

    let lines = wait_checks(&container, 3);
    let first = places(&container);
    assert_eq!(first.len(), 1, "{first:?}");
    wait_checks(&container, 3);
    assert_eq!(places(&container), first, "commands that leave nothing behind share a cgroup");
    for line in &lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [pid, own, of_first, "PPid:", "0"] = words[..] else { panic!("{line:?}") };
        assert!(pid.parse::<u32>().unwrap() > 1 && own == of_first, "{line:?}");
    }

    // what one leaves behind is killed, and the next have another cgroup: none may be used that was once killed
    let mut last = first;
    for trouble in ["leaves", "hangs"] {
        fs::write(inside(&container, trouble), "").unwrap();
        until("the command has seen it", PATIENCE, || (!inside(&container, trouble).exists()).then_some(()));
        last = wait_other_place(&container, &last);
        until("what it left is killed", PATIENCE, || marked::processes(&marker).is_empty().then_some(()));
        wait_checks(&container, 2);
        running(&client, "/check", "main");
    }
    fs::write(inside(&container, "fails"), "").unwrap();
    until("it is unhealthy", PATIENCE, || (client.container("/check", "main").healthy == Some(false)).then_some(()));
    fs::remove_file(inside(&container, "fails")).unwrap();
    running(&client, "/check", "main");

    // a daemon that was killed leaves at most its last cgroup, which the next one removes
    daemon.kill9();
    daemon.restart();
    let client = daemon.client();
    let same = running(&client, "/check", "main");
    assert_eq!((same.pid, same.attempt), (container.pid, 1));
    wait_checks(&same, 2);
    wait_other_place(&same, &last);

    client.rm("/check");
    before.assert_same();
}

#[test]
fn containers_and_programs_are_forked_where_they_belong_between_checks() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    for shared in [false, true] {
        let check = "echo x >> checks; exec kill -0 1";
        let containers = [
            checked("main", "exec sleep 100000", check),
            json!({"name": "again", "exec": {"command": {"shell": "echo $$; readlink /proc/self/ns/pid; sleep 0.3; exit 1"}},
                "resources": {"cpus": 0.1, "mem": 32, "disk": 8}}),
        ];
        client.run_pod(&pod("/forks", &containers, json!({"sharePid": shared})));
        let main = running(&client, "/forks", "main");
        wait_checks(&main, 4);
        until("it was started again", PATIENCE, || (client.container("/forks", "again").attempt >= 4).then_some(()));
        assert_eq!(client.container("/forks", "main").attempt, 1);
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap().to_string_lossy().into_owned();
        let of_main = namespace(main.pid.unwrap());
        let log = client.logs("/forks", "again");
        let lines: Vec<&str> = log.lines().collect();
        assert!(lines.len() >= 6, "{log}");
        for pair in lines.chunks_exact(2) {
            assert_eq!(pair[0] == "1", !shared, "sharePid {shared}: {log}");
            assert_eq!(pair[1] == of_main, shared, "sharePid {shared}: {log}");
        }
        let mut asked = exec::shell("readlink /proc/self/ns/pid; kill -0 1", false);
        asked["container"] = json!("main");
        let ended = Exec::begin(&daemon.socket(), "/forks", &asked).finish();
        assert_eq!((ended.code(), ended.text().trim()), (0, of_main.as_str()), "sharePid {shared}");
        client.rm("/forks");
    }
}

#[test]
fn a_container_ends_while_its_command_runs() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    let marker = format!("6{}", std::process::id());
    let check = format!("touch began; sleep {marker}");
    let mut container = checked("main", "while ! [ -e began ]; do sleep 0.02; done; exit 3", &check);
    container["healthCheck"]["intervalSeconds"] = json!(61);
    container["healthCheck"]["timeoutSeconds"] = json!(60);
    client.run_pod(&pod("/ends", &[container], json!({"restart": "never"})));
    let began = Instant::now();
    let ended = client.wait_finished("/ends").instances.remove(0).containers.remove(0);
    assert_eq!(ended.exit, Some(agentd_api::status::ExitStatus::Code(3)), "{ended:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(eventually(PATIENCE, || marked::processes(&marker).is_empty()), "its command goes on");
    client.rm("/ends");
}

/// A connection to a pod-init, as the daemon has one.
struct Line(OwnedFd);

impl Line {
    fn connect(path: &Path) -> Self {
        let path = path.as_os_str().as_bytes();
        // SAFETY: a zeroed address is a value; the path is copied in within its bounds, with a NUL behind it; the descriptor
        // is new.
        unsafe {
            let fd = libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0);
            assert!(fd >= 0);
            let line = Self(OwnedFd::from_raw_fd(fd));
            let mut address: libc::sockaddr_un = std::mem::zeroed();
            address.sun_family = libc::AF_UNIX as libc::sa_family_t;
            assert!(path.len() < address.sun_path.len());
            for (to, from) in address.sun_path.iter_mut().zip(path) {
                *to = *from as libc::c_char;
            }
            let length = std::mem::size_of_val(&address) as libc::socklen_t;
            assert_eq!(libc::connect(fd, (&raw const address).cast(), length), 0, "{}", io::Error::last_os_error());
            line
        }
    }

    /// Asks for the state. Gives the length of the answer, and the numbers of what else has come.
    fn state(&self, sequence: u32) -> (usize, Vec<u32>) {
        // the request `Hello`
        let mut request = sequence.to_ne_bytes().to_vec();
        request.push(1);
        rustix::io::write(&self.0, &request).expect("pod-init listens");
        let mut others = Vec::new();
        loop {
            let mut answer = [0; 4096];
            let length = rustix::io::read(&self.0, &mut answer).expect("pod-init answers");
            assert!(length >= 5, "pod-init has ended the connection");
            match u32::from_ne_bytes(answer[..4].try_into().unwrap()) {
                number if number == sequence => return (length, others),
                other => others.push(other),
            }
        }
    }
}

#[test]
fn what_a_dead_daemon_asked_for_answers_nothing_of_the_next_one() {
    privileged!();
    let mut daemon = Daemon::start();
    let before = daemon.snapshot();
    let client = daemon.client();
    let marker = format!("8{}", std::process::id());
    let check = format!("if [ -e hangs ]; then exec sleep {marker}; fi");
    let mut container = checked("main", "exec sleep 100000", &check);
    // time enough for the daemon to be killed while the command runs; nobody ends it then
    container["healthCheck"]["intervalSeconds"] = json!(4);
    container["healthCheck"]["timeoutSeconds"] = json!(3.5);
    client.run_pod(&pod("/late", &[container], json!({})));
    fs::write(inside(&running(&client, "/late", "main"), "hangs"), "").unwrap();
    let command = until("a command runs", PATIENCE, || marked::processes(&marker).first().copied());
    let instance = client.pod("/late").instances.remove(0).id;
    daemon.kill9();

    let line = Line::connect(&daemon.run().join("pods").join(instance).join("init.sock"));
    let (whole, _) = line.state(1_000_000);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(command as i32).unwrap(),
        rustix::process::Signal::KILL,
    )
    .expect("it lives");
    let mut number = 1_000_000;
    until("pod-init has forgotten it", PATIENCE, || {
        number += 1;
        let (length, others) = line.state(number);
        assert!(others.is_empty(), "answers of another connection: {others:?}");
        (length < whole).then_some(())
    });
    drop(line);

    daemon.restart();
    let client = daemon.client();
    until("the container runs", PATIENCE, || {
        (client.container("/late", "main").state == TaskState::TaskRunning).then_some(())
    });
    client.rm("/late");
    before.assert_same();
}
