//! Debug containers: a program from another image beside a container that has none, which sees that container's processes,
//! network and files.

use std::time::Duration;

use agentd_tests::exec::Exec;
use agentd_tests::images::{self, Config, Entry};
use agentd_tests::{Client, Daemon, eventually, pods, privileged};
use serde_json::{Value, json};

fn start(sets: &[&str]) -> (Daemon, Client) {
    let daemon = sets.iter().fold(Daemon::with(), |options, set| options.set(set)).start();
    let client = daemon.client();
    let line = "echo mine > /mnt/mesos/sandbox/file; hostname > /tmp/name; while :; do sleep 1; done";
    client.run_pod(&pods::argv("/app", &["/bin/sh", "-c", line]));
    (daemon, client)
}

/// An image with nothing but the test programs and a file.
fn image(daemon: &Daemon) -> Value {
    let layer = vec![Entry::file("etc/only-here", "from the image\n")];
    let config = Config { layers: vec![layer], ..Config::command(&["/bin/testbox", "cat", "/etc/only-here"]) };
    images::oci(&daemon.dir().join("layout"), "tools", &config)
}

fn debug(image: &Value, words: &[&str]) -> Value {
    json!({"image": image, "command": words})
}

#[test]
fn another_image_stands_beside_a_container_and_sees_it() {
    privileged!();
    let (daemon, client) = start(&[]);
    let image = image(&daemon);
    let before = daemon.snapshot();
    let run = |words: &[&str]| {
        let ended = Exec::begin(&daemon.socket(), "/app", &debug(&image, words)).finish();
        (
            ended.code(),
            String::from_utf8_lossy(&ended.stdout).into_owned(),
            String::from_utf8_lossy(&ended.stderr).into_owned(),
        )
    };
    // its own root, the container's files below /target, the container's processes
    assert_eq!(run(&["/bin/testbox", "cat", "/etc/only-here"]), (0, "from the image\n".into(), String::new()));
    assert_eq!(run(&["/bin/testbox", "cat", "/target/mnt/mesos/sandbox/file"]).1, "mine\n");
    let name = run(&["/bin/testbox", "cat", "/target/tmp/name"]).1;
    assert_eq!(run(&["/bin/testbox", "cat", "/proc/sys/kernel/hostname"]).1, name);
    assert!(run(&["/bin/testbox", "cat", "/proc/1/cmdline"]).1.contains("/bin/sh"));
    assert_ne!(run(&["/bin/testbox", "cat", "/bin/sh"]).0, 0, "the root is not that of the container");
    // the image's own command, where none is given
    assert_eq!(run(&[]).1, "from the image\n");

    // the same namespaces but for the mounts, and the same confinement
    let pid = client.container("/app", "main").pid.unwrap();
    let status = run(&["/bin/testbox", "cat", "/proc/self/status"]).1;
    let theirs = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for field in ["CapBnd", "CapPrm", "NoNewPrivs", "Seccomp"] {
        let value = |text: &str| text.lines().find(|l| l.starts_with(field)).unwrap_or_default().to_owned();
        assert_eq!(value(&status), value(&theirs));
    }
    let mut long = Exec::begin(
        &daemon.socket(),
        "/app",
        &json!({"image": image, "command": ["/bin/testbox", "cat"], "stdin": true}),
    );
    let id = long.session.clone();
    let host_pid = client.get(&format!("/v1/sessions/{id}")).json["pid"].as_u64().unwrap();
    assert_eq!(client.get(&format!("/v1/sessions/{id}")).json["kind"], "debug");
    for (namespace, same) in [("net", true), ("ipc", true), ("uts", true), ("pid", true), ("mnt", false)] {
        let link = |pid: u64| std::fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_eq!(link(host_pid) == link(u64::from(pid)), same, "{namespace}");
    }
    long.close_input();
    assert_eq!(long.finish().code(), 0);

    // nothing of it is left, neither on the host nor in the pod's folder
    for session in client.get("/v1/sessions").json.as_array().unwrap() {
        let path = format!("/v1/sessions/{}", session["id"].as_str().unwrap());
        client.request("DELETE", &path, None).unwrap();
    }
    let upper = || {
        let sandboxes = std::fs::read_dir(daemon.state().join("sandboxes")).unwrap().flatten();
        let uppers = sandboxes.filter_map(|sandbox| std::fs::read_dir(sandbox.path().join("upper")).ok()).flatten();
        uppers.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with('d')).count()
    };
    assert!(eventually(Duration::from_secs(10), || upper() == 0), "a debug container's writes are left");
    before.assert_same();
}

#[test]
fn a_terminal_and_a_restart_of_the_daemon_are_no_different_there() {
    privileged!();
    let (mut daemon, _) = start(&[]);
    let asked = json!({"image": image(&daemon), "command": ["/bin/testbox", "cat"], "tty": true});
    let session = Exec::begin(&daemon.socket(), "/app", &asked).session;
    daemon.kill9();
    daemon.restart();
    let mut again = Exec::attach(&daemon.socket(), &session, "");
    again.write(b"hello\n\x04");
    let ended = again.finish();
    assert_eq!((ended.code(), ended.text().replace('\r', "")), (0, "hello\nhello\n".to_owned()));
}

#[test]
fn what_cannot_be_is_refused_by_field() {
    privileged!();
    let (daemon, client) = start(&["sessions.debug_images=false"]);
    let refused = |asked: &Value| {
        let answer = Exec::try_begin(&daemon.socket(), "/app", asked).unwrap_err();
        assert_eq!(answer.status, 400, "{}", answer.text);
        answer.json["errors"][0]["path"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(refused(&debug(&image(&daemon), &[])), "image");
    assert_eq!(refused(&debug(&json!({"kind": "OCI", "id": "/nowhere:at-all"}), &["x"])), "image");
    drop(client);
}
