//! What a session's program may do, where it is, and what is left of it: it is confined as its container is, it ends with its
//! container, and nothing of it stays on the host.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use agentd_api::session::SessionState;
use agentd_api::status::ExitStatus;
use agentd_tests::attached::{self, begin_detached, field, status, wait_exited};
use agentd_tests::exec::{self, Exec, shell};
use agentd_tests::{Client, Daemon, eventually, host, marked, pods, privileged, until};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(30);

fn proc(pid: u32, name: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_else(|error| panic!("/proc/{pid}/{name}: {error}"))
}

/// Waits until a session's program runs under its own name, and returns its process id on the host.
fn program_of(client: &Client, session: &str, name: &str) -> u32 {
    until(&format!("{name} runs"), PATIENCE, || {
        let pid = status(client, session).pid?;
        (fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end() == name).then_some(pid)
    })
}

/// The path of a process in the cgroup2 tree.
fn unified(pid: u32) -> String {
    let cgroups = proc(pid, "cgroup");
    cgroups.lines().find_map(|line| line.strip_prefix("0::")).expect("a process is in the cgroup2 tree").to_owned()
}

#[test]
fn a_session_is_confined_as_its_container_is() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    client.run_pod(&attached::pod("/s"));
    let container = client.container("/s", "main").pid.expect("the container runs");
    until("the container sleeps", PATIENCE, || (proc(container, "comm").trim_end() == "sleep").then_some(()));

    for tty in [false, true] {
        let asked = json!({"command": ["sleep", "1000"], "tty": tty});
        let mut session = Exec::begin(&daemon.socket(), "/s", &asked);
        let pid = program_of(&client, &session.session, "sleep");
        let (ours, theirs) = (proc(pid, "status"), proc(container, "status"));
        for name in [
            "CapInh",
            "CapPrm",
            "CapEff",
            "CapBnd",
            "CapAmb",
            "NoNewPrivs",
            "Seccomp",
            "Seccomp_filters",
            "Uid",
            "Gid",
            "Groups",
            "Cpus_allowed",
            "Mems_allowed",
            "Umask",
        ] {
            assert_eq!(field(&ours, name), field(&theirs, name), "{name}, tty {tty}");
        }
        assert_eq!((field(&ours, "NoNewPrivs"), field(&ours, "Seccomp")), ("1".to_owned(), "2".to_owned()));
        assert_eq!(field(&ours, "CapInh"), "0000000000000000");
        assert_eq!(field(&ours, "TracerPid"), "0");
        assert_eq!(proc(pid, "limits"), proc(container, "limits"));
        assert_eq!(proc(pid, "oom_score_adj"), proc(container, "oom_score_adj"));
        for space in ["mnt", "pid", "net", "ipc", "uts", "user", "cgroup"] {
            let of = |pid| fs::read_link(format!("/proc/{pid}/ns/{space}")).expect("a process has namespaces");
            assert_eq!(of(pid), of(container), "namespace {space}");
        }
        assert_eq!(
            fs::read_link(format!("/proc/{pid}/root")).unwrap(),
            fs::read_link(format!("/proc/{container}/root")).unwrap()
        );

        // its cgroup is its own, beside that of the container; in the older hierarchies it is where the container is
        let (own, beside) = (PathBuf::from(unified(pid)), PathBuf::from(unified(container)));
        assert_eq!((own.parent(), beside.file_name()), (beside.parent(), Some("init".as_ref())), "{own:?} {beside:?}");
        let name = own.file_name().unwrap().to_string_lossy().into_owned();
        assert!(name.starts_with("exec-"), "{own:?}");
        let older = |pid| {
            let cgroups = proc(pid, "cgroup");
            cgroups.lines().filter(|line| !line.starts_with("0::")).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(older(pid), older(container));

        // no descriptors but its own three, and none of the host's
        let descriptors: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        assert_eq!(descriptors.len(), 3, "{descriptors:?}");
        assert!(client.delete(&format!("/v1/sessions/{}", session.session)).ok());
        assert_eq!(session.finish().signal(), 9);
        drop(session);
        let tree = host::unified().unwrap().join(own.strip_prefix("/").unwrap());
        assert!(eventually(PATIENCE, || !tree.exists()), "{} is left", tree.display());
    }
}

#[test]
fn the_environment_is_that_of_the_container() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    let pod = pods::with_container(pods::shell("/e", "env | sort > env; exec sleep 1000000"), |container| {
        container["environment"] = json!({"COLOUR": "green", "SHAPE": "round"});
        container["lifecycle"] = json!({"killGracePeriodSeconds": 0.1});
    });
    client.run_pod(&pod);
    let mut asked = shell("env | sort", false);
    asked["environment"] = json!({"SHAPE": "square"});
    let of_session = Exec::begin(&daemon.socket(), "/e", &asked).finish().text();
    let of_container = until("the container has written its environment", PATIENCE, || {
        let text = exec::run_shell(&daemon.socket(), "/e", "cat env").text();
        text.contains("COLOUR").then_some(text)
    });
    let plain = |text: &str| -> Vec<String> {
        // what each shell sets by itself
        let own = |line: &&str| !["_=", "OLDPWD=", "SHLVL=", "PWD="].iter().any(|name| line.starts_with(name));
        text.lines().filter(own).map(|line| line.replace("SHAPE=square", "SHAPE=round")).collect()
    };
    assert!(of_session.contains("SHAPE=square"));
    assert_eq!(plain(&of_session), plain(&of_container));
}

#[test]
fn sessions_end_with_their_container_and_say_so() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    let line = "until test -e go; do sleep 0.02; done; exit 5";
    let ending = pods::with_container(pods::shell("/ends", line), |container| {
        container["lifecycle"] = json!({"killGracePeriodSeconds": 0.1});
    });
    client.run_pod(&ending);
    let mut session = Exec::begin(&daemon.socket(), "/ends", &shell("touch go; exec sleep 1000", false));
    let ended = session.finish();
    assert_eq!(ended.signal(), 9);
    assert!(ended.message().contains("container"), "{:?}", ended.message());
    let gone = Exec::try_begin(&daemon.socket(), "/ends", &exec::program(&["true"])).expect_err("nothing runs there");
    assert!(matches!(gone.status, 404 | 409), "{gone:?}");

    client.run_pod(&pods::sleeper("/removed"));
    let mut session = Exec::begin(&daemon.socket(), "/removed", &exec::program(&["sleep", "1000"]));
    client.rm("/removed");
    let ended = session.finish();
    assert_eq!(ended.signal(), 9);
    assert!(!ended.message().is_empty(), "{ended:?}");
}

#[test]
fn a_session_that_is_killed_for_its_memory_says_so() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    let pod = pods::with_container(pods::sleeper("/oom"), |container| {
        container["resources"] = json!({"cpus": 1, "mem": 48, "disk": 16});
    });
    client.run_pod(&pod);
    // a line without end is kept whole
    let ended = exec::run(&daemon.socket(), "/oom", &["tail", "-n", "1", "/dev/zero"]);
    assert_eq!(ended.signal(), 9);
    let message = ended.message().to_lowercase();
    assert!(message.contains("memory") || message.contains("oom"), "{ended:?}");
}

#[test]
fn nothing_is_left_of_sessions() {
    privileged!();
    let daemon = Daemon::with().set("sessions.keep_exited_seconds=1").set("api.requests_per_second=0").start();
    let client = daemon.client();
    // process 1 waits for whatever is left to it, as that of a container should
    let reaper = pods::with_container(pods::shell("/s", "while :; do sleep 0.2; done"), |container| {
        container["resources"] = json!({"cpus": 1, "mem": 256, "disk": 64});
        container["lifecycle"] = json!({"killGracePeriodSeconds": 0.1});
    });
    client.run_pod(&reaper);
    let socket = daemon.socket();
    // the first makes what is made once
    exec::run(&socket, "/s", &["true"]);
    until("the first is forgotten", PATIENCE, || {
        client.get("/v1/sessions").json.as_array().is_some_and(Vec::is_empty).then_some(())
    });
    let before = daemon.snapshot();
    let descriptors = daemon.descriptors();
    let marker = format!("left-{}", std::process::id());

    before.assert_same_after(|| {
        for round in 0..10 {
            exec::run_shell(&socket, "/s", "echo out; echo err >&2");
            let tty = json!({"command": ["sh", "-c", "exit 3"], "tty": true, "rows": 10, "columns": 20});
            assert_eq!(Exec::begin(&socket, "/s", &tty).finish().code(), 3);
            // one whose client goes, one that is killed, one that was never attached to
            let lost = Exec::begin(&socket, "/s", &shell("cat; exit 1", true));
            let killed = Exec::begin(&socket, "/s", &exec::program(&["sleep", "1000"]));
            let lone = begin_detached(&client, "/s", &exec::program(&["sleep", "1000"]));
            // one that leaves others behind: they are ended with it
            let behind = format!("setsid sh -c 'sleep 1000 & exec sleep 1000' {marker} >/dev/null 2>&1 & echo begun");
            exec::run_shell(&socket, "/s", &behind);
            let (lost_id, killed_id) = (lost.session.clone(), killed.session.clone());
            drop(lost);
            for id in [&lost_id, &killed_id, &lone.id] {
                let answer = client.delete(&format!("/v1/sessions/{id}"));
                assert!(answer.ok(), "round {round}: {} {}", answer.status, answer.text);
            }
            assert!(Exec::try_begin(&socket, "/s", &json!({"command": [""]})).is_err());
        }
        until("all are forgotten", PATIENCE, || {
            let all = client.get("/v1/sessions").json;
            all.as_array().is_some_and(Vec::is_empty).then_some(())
        });
    });
    assert!(eventually(PATIENCE, || marked::processes(&marker).is_empty()), "{:?}", marked::processes(&marker));
    assert!(
        eventually(PATIENCE, || daemon.descriptors() <= descriptors),
        "{} descriptors, {descriptors} before",
        daemon.descriptors()
    );
    let container = client.container("/s", "main");
    assert!(container.exit.is_none() && container.pid.is_some());
    client.rm("/s");
}

#[test]
fn one_pod_never_sees_the_sessions_of_another() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    for id in ["/a", "/b"] {
        client.run_pod(&pods::sleeper(id));
    }
    let socket = daemon.socket();
    let marker = format!("seen-{}", std::process::id());
    let session = Exec::begin(&socket, "/a", &exec::program(&["sh", "-c", "sleep 1000; true", &marker]));
    program_of(&client, &session.session, "sh");
    let look = format!(
        "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done 2>/dev/null | grep -c '[{}]{}'",
        &marker[..1],
        &marker[1..]
    );
    assert_eq!(exec::run_shell(&socket, "/b", &look).text().trim(), "0");
    assert_ne!(exec::run_shell(&socket, "/a", &look).text().trim(), "0");
    assert_eq!(status(&client, &session.session).state, SessionState::Running);
    assert!(client.delete(&format!("/v1/sessions/{}", session.session)).ok());
    assert_eq!(wait_exited(&client, &session.session).exit, Some(ExitStatus::Signal(9)));
}
