//! The Mesos agent API as clients see it that nobody here wrote: a Python script made from the facts of the protocol alone
//! drives nested containers, and curl reads state and files.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use agentd_tests::{Daemon, pods, privileged, skip, until, wire};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/interop/mesos_session.py");

/// Whether a program can be run that a test asks for.
fn there(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Runs the script against a daemon; panics with what it said where a case does not hold.
#[track_caller]
fn script(daemon: &Daemon, instance: &str, container: Option<&str>, format: &str, cases: &[&str]) -> String {
    let socket = daemon.socket();
    script_at(["--socket", socket.to_str().expect("a test's folder is text")], instance, container, format, cases)
}

#[track_caller]
fn script_at(place: [&str; 2], instance: &str, container: Option<&str>, format: &str, cases: &[&str]) -> String {
    let mut command = Command::new("python3");
    command.arg("-B").arg(SCRIPT).args(place).args(["--instance", instance, "--format", format]);
    if let Some(container) = container {
        command.args(["--container", container]);
    }
    let Output { status, stdout, stderr } = command.args(cases).output().expect("python3 can be run");
    let said = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "the script ended with {status}:\n{said}\n{}", String::from_utf8_lossy(&stderr));
    said
}

const CASES: &[&str] = &[
    "without_tty",
    "input_is_answered_at_the_end",
    "with_tty",
    "much",
    "disconnect_destroys",
    "without_session",
    "told",
    "refusals",
];

fn all_cases(format: &str) {
    privileged!();
    if !there("python3") {
        skip!("python3 is not installed");
    }
    let daemon = Daemon::start();
    let client = daemon.client();
    client.run_pod(&pods::shell("/one", "echo from the pod; exec sleep 1000000"));
    let instance = client.instance("/one").id;
    let said = script(&daemon, &instance, None, format, &[]);
    for case in CASES {
        assert!(said.contains(&format!("ok {case}\n")), "{case} was not run:\n{said}");
    }
    client.rm("/one");
    let left: Vec<Value> = client.get("/v1/sessions?state=running").read();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_script_drives_nested_containers_in_json() {
    all_cases("json");
}

#[test]
fn a_script_drives_nested_containers_in_protobuf() {
    all_cases("protobuf");
}

#[test]
fn a_container_is_named_where_an_instance_has_several() {
    privileged!();
    if !there("python3") {
        skip!("python3 is not installed");
    }
    let daemon = Daemon::start();
    let client = daemon.client();
    let container = |name: &str| {
        json!({"name": name, "exec": {"command": {"shell": format!("echo {name}; exec sleep 1000000")}},
            "resources": pods::resources(), "environment": {"NAME": name}, "lifecycle": {"killGracePeriodSeconds": 0.1}})
    };
    client.run_pod(&json!({"id": "/two", "containers": [container("web"), container("log")],
        "agentd": {"isolatedNetwork": true}}));
    let instance = client.instance("/two").id;
    script(&daemon, &instance, Some("log"), "json", &["without_tty", "with_tty", "told", "refusals"]);
    // it has what its parent has, and its parent is named by nobody where there are two
    let launch = |parent: Value, value: &str| {
        json!({"type": "LAUNCH_NESTED_CONTAINER_SESSION", "launch_nested_container_session":
            {"container_id": {"value": value, "parent": parent}, "command": {"value": "echo $NAME in $PWD"}}})
    };
    let parent = json!({"value": "log", "parent": {"value": instance}});
    let answer = client.post("/api/v1", &launch(parent, "a"));
    assert!(answer.ok(), "{}", answer.text);
    // "log in /…" in base64 begins so
    assert!(answer.text.contains(r#""data":"bG9nIGlu"#), "{}", answer.text);
    let answer = client.post("/api/v1", &launch(json!({"value": instance}), "b"));
    assert_eq!((answer.status, answer.text.contains("web, log")), (400, true), "{}", answer.text);
}

/// What curl gets from a path.
#[track_caller]
fn curl(socket: &Path, arguments: &[&str], path: &str) -> (u16, String) {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "20", "--write-out", "\n%{http_code}", "--unix-socket"])
        .arg(socket)
        .args(arguments)
        .arg(format!("http://agentd{path}"))
        .output()
        .expect("curl can be run");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or_else(|| panic!("{output:?}"));
    (status.parse().unwrap_or_else(|_| panic!("{output:?}")), body.to_owned())
}

#[track_caller]
fn json_of(socket: &Path, path: &str) -> Value {
    let (status, body) = curl(socket, &[], path);
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error} in {body}"))
}

#[test]
fn curl_reads_state_containers_and_files() {
    privileged!();
    if !there("curl") {
        skip!("curl is not installed");
    }
    let daemon = Daemon::start();
    let client = daemon.client();
    let line = "echo printed; echo problem >&2; echo written > notes; mkdir sub; printf 0123456789 > sub/data; \
                ln -s /etc/passwd link; exec sleep 1000000";
    client.run_pod(&pods::shell("/files", line));
    let socket = daemon.socket();
    let instance = client.instance("/files").id;
    let state = json_of(&socket, "/state");
    assert_eq!(state, json_of(&socket, "/slave(1)/state.json"));
    let executor = &state["frameworks"][0]["executors"][0];
    assert_eq!((&executor["id"], &executor["type"]), (&instance.as_str().into(), &"DEFAULT".into()));
    let task = &executor["tasks"][0];
    assert_eq!(task["state"], "TASK_RUNNING");
    let id = &task["statuses"][0]["container_status"]["container_id"];
    assert_eq!(*id, json!({"value": "main", "parent": {"value": instance}}));

    // where tools look: the executor's directory, `tasks`, the task's id
    let folder = format!("{}/tasks/{}", executor["directory"].as_str().unwrap(), task["id"].as_str().unwrap());
    let names = || -> Vec<String> {
        let listed = json_of(&socket, &format!("/files/browse?path={folder}"));
        let paths = listed.as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap());
        paths.map(|path| path.strip_prefix(&format!("{folder}/")).unwrap().to_owned()).collect()
    };
    until("the container has written all", PATIENCE, || names().contains(&"link".to_owned()).then_some(()));
    assert_eq!(names(), ["link", "notes", "stderr", "stdout", "sub"]);
    let read = |query: &str| json_of(&socket, &format!("/files/read?path={folder}/{query}"));
    until("its output was read", PATIENCE, || (read("stdout&offset=-1")["offset"] == 8).then_some(()));
    assert_eq!(read("stdout&offset=0&length=100"), json!({"data": "printed\n", "offset": 0}));
    assert_eq!(read("stderr&offset=3&length=4")["data"], "blem");
    assert_eq!(read("notes&offset=0")["data"], "written\n");
    assert_eq!(read("sub/data&offset=7"), json!({"data": "789", "offset": 7}));
    assert_eq!(read("sub/data&offset=-1"), json!({"data": "", "offset": 10}));
    let (status, body) = curl(&socket, &[], &format!("/files/download.json?path={folder}/sub/data"));
    assert_eq!((status, body.as_str()), (200, "0123456789"));
    for bad in ["link", "../../../../../etc/passwd", "sub/../../x", "..%2f..%2fetc/passwd"] {
        for page in ["read", "download", "browse"] {
            let (status, body) =
                curl(&socket, &["--path-as-is"], &format!("/files/{page}?path={folder}/{bad}&offset=0"));
            assert!(status == 400 || status == 404, "{page} of {bad}: {status} {body}");
            assert!(!body.contains("root:"), "{body}");
        }
    }

    let containers = json_of(&socket, "/containers?show_nested=true");
    let main = &containers[1];
    assert_eq!((&containers[0]["container_id"], &main["container_id"]), (&instance.as_str().into(), &"main".into()));
    let pid = client.container("/files", "main").pid.unwrap();
    assert_eq!(main["status"]["executor_pid"], pid);
    assert!(main["statistics"]["mem_total_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{main}");
    let figures = json_of(&socket, "/metrics/snapshot");
    assert_eq!(figures["slave/tasks_running"], 1.0);
    assert!(json_of(&socket, "/version")["version"].as_str().is_some());
    assert_eq!(json_of(&socket, "/flags")["flags"]["work_dir"], daemon.state().display().to_string());
    assert_eq!(curl(&socket, &[], "/health").0, 200);

    // a call, as curl sends it; it tells the same whether the container ends before or while somebody waits
    let wait = json!({"type": "WAIT_CONTAINER", "wait_container": {"container_id": id}}).to_string();
    let headers = ["--header", "content-type: application/json", "--data", &wait];
    let ended = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| curl(&socket, &headers, "/api/v1"));
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        waiting.join().unwrap()
    });
    let end: Value = serde_json::from_str(&ended.1).unwrap_or_else(|error| panic!("{error} in {ended:?}"));
    assert_eq!((ended.0, &end["wait_container"]["exit_status"]), (200, &9.into()), "{end}");
    assert_eq!(end["wait_container"]["state"], "TASK_FAILED");
}

#[test]
fn over_tcp_the_access_list_decides() {
    privileged!();
    if !there("python3") || !there("curl") {
        skip!("python3 or curl is not installed");
    }
    let folder = tempfile::Builder::new().prefix(&format!("agentd-test-{}-", std::process::id())).tempdir().unwrap();
    let acl = folder.path().join("acl.toml");
    let list = "[[rule]]\nprincipals = [\"anonymous\"]\nverbs = [\"view\", \"exec\"]\nlabels = {team = \"a\"}\n\
                [[ceiling]]\nprincipals = [\"anonymous\"]\neverything = true\n";
    std::fs::write(&acl, list).unwrap();
    // nobody else takes the port in the meantime that the kernel has just given
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let config = format!("[api]\nlisten = [\"{address}\"]\ninsecure = true\nacl = {acl:?}\n");
    let daemon = Daemon::with().config(&config).start();
    let client = daemon.client();
    for (id, team) in [("/mine", "a"), ("/theirs", "b")] {
        let mut pod = pods::shell(id, "echo secret of $MARATHON_APP_ID; exec sleep 1000000");
        pod["labels"] = json!({"team": team});
        client.run_pod(&pod);
    }
    let (mine, theirs) = (client.instance("/mine").id, client.instance("/theirs").id);
    for format in ["json", "protobuf"] {
        script_at(["--address", &address], &mine, None, format, &["without_tty", "with_tty", "disconnect_destroys"]);
    }
    let call = |body: Value| {
        let body = body.to_string();
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "20", "--write-out", "\n%{http_code}"])
            .args(["--header", "content-type: application/json", "--data", &body])
            .arg(format!("http://{address}/api/v1"))
            .output()
            .expect("curl can be run");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').unwrap_or_else(|| panic!("{output:?}"));
        (status.parse::<u16>().unwrap_or_else(|_| panic!("{output:?}")), body.to_owned())
    };
    let (status, state) = call(json!({"type": "GET_STATE"}));
    assert!(status == 200 && state.contains(&mine) && !state.contains(&theirs), "{status} {state}");
    let launch = |instance: &str| {
        json!({"type": "LAUNCH_NESTED_CONTAINER", "launch_nested_container":
            {"container_id": {"value": "x", "parent": {"value": instance}}, "command": {"value": "true"}}})
    };
    let (status, line) = call(launch(&theirs));
    assert!(status == 403 && line.contains("anonymous has no right to exec on the pod /theirs"), "{status} {line}");
    assert_eq!(call(launch(&mine)), (200, String::new()));
    // what containers print is another right, and another's pod is not there at all
    for instance in [&mine, &theirs] {
        let path = format!("/{instance}/main/stdout");
        let (status, line) = call(json!({"type": "READ_FILE", "read_file": {"path": path, "offset": 0}}));
        assert!(status == 403 || status == 404, "{status} {line}");
    }
    // a session of another is not one's own
    let of_root = json!({"value": "root", "parent": {"value": mine}});
    let begun = client.post(
        "/api/v1",
        &json!({"type": "LAUNCH_NESTED_CONTAINER", "launch_nested_container":
        {"container_id": of_root, "command": {"value": "sleep 1000"}}}),
    );
    assert!(begun.ok(), "{}", begun.text);
    let kill = json!({"type": "KILL_NESTED_CONTAINER", "kill_nested_container": {"container_id": of_root}});
    let (status, line) = call(kill.clone());
    assert!(status == 403 && line.contains("no right to admin"), "{status} {line}");
    assert!(client.post("/api/v1", &kill).ok());
    let audit = Command::new("sh")
        .args(["-c", "grep -rhs NESTED_CONTAINER \"$1\" | head -50", "sh"])
        .arg(daemon.state())
        .output()
        .expect("sh can be run");
    let audit = String::from_utf8_lossy(&audit.stdout).into_owned();
    assert!(audit.contains("LAUNCH_NESTED_CONTAINER_SESSION") && audit.contains("/theirs"), "{audit}");
}

/// A connection on which a nested container's output comes, as far as it came.
struct Streamed(UnixStream, Vec<u8>);

impl Streamed {
    fn of(daemon: &Daemon, call: &Value) -> Self {
        let mut connection = UnixStream::connect(daemon.socket()).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        let headers = ["content-type: application/json", "accept: application/recordio"];
        connection.write_all(&wire::request("POST", "/api/v1", &headers, &call.to_string())).unwrap();
        Self(connection, Vec::new())
    }

    /// Reads until this text has come, or to the end where there is none.
    fn until(&mut self, text: Option<&str>) -> String {
        let mut buffer = [0; 4096];
        loop {
            let seen = String::from_utf8_lossy(&self.1).into_owned();
            if text.is_some_and(|text| seen.contains(text)) {
                return seen;
            }
            match self.0.read(&mut buffer) {
                Ok(count) if count > 0 => self.1.extend_from_slice(&buffer[..count]),
                _ if text.is_none() => return seen,
                other => panic!("{text:?} did not come: {other:?} after {seen}"),
            }
        }
    }
}

#[test]
fn a_daemon_that_is_stopped_in_order_takes_no_session_with_it() {
    privileged!();
    let mut daemon = Daemon::start();
    let client = daemon.client();
    client.run_pod(&pods::sleeper("/stay"));
    let id = json!({"value": "a", "parent": {"value": client.instance("/stay").id}});
    let line = "echo begun; until test -e go; do sleep 0.05; done; echo ended; exit 6";
    let launch = json!({"type": "LAUNCH_NESTED_CONTAINER_SESSION", "launch_nested_container_session":
        {"container_id": id, "command": {"value": line}}});
    let mut output = Streamed::of(&daemon, &launch);
    // `begun` and a line feed
    output.until(Some("YmVndW4K"));
    assert!(daemon.terminate().success());
    let seen = output.until(None);
    assert!(!seen.ends_with("0\r\n\r\n"), "the stream is broken off, not ended: {seen}");
    daemon.restart();
    let attach = json!({"type": "ATTACH_CONTAINER_OUTPUT", "attach_container_output": {"container_id": id}});
    let mut output = Streamed::of(&daemon, &attach);
    output.until(Some("YmVndW4K"));
    let pid = client.container("/stay", "main").pid.unwrap();
    std::fs::write(format!("/proc/{pid}/root/mnt/mesos/sandbox/go"), "").unwrap();
    let seen = output.until(None);
    assert!(seen.contains("ZW5kZWQK") && seen.ends_with("0\r\n\r\n"), "{seen}");
    let wait = json!({"type": "WAIT_NESTED_CONTAINER", "wait_nested_container": {"container_id": id}});
    let end = client.post("/api/v1", &wait);
    assert_eq!(end.json["wait_nested_container"]["exit_status"], 6 << 8, "{}", end.text);
}
