//! The Mesos agent API over a socket, against a stand-in for the node: what it tells, files, and what it refuses.
//! Nested containers run in `tests/tests/interop_mesos_agent.rs`, against a daemon.

use std::io::Write;

use agentd_api::mesos::recordio;
use agentd_api::mesos::v1::agent::call::Type;
use agentd_logging::Stream;
use serde_json::{Value, json};

use crate::api::tests::{Reply, Server, pod, start};

const JSON: (&str, &str) = ("content-type", "application/json");
const INSTANCE: &str = "000000000000";

async fn with_pod() -> Server {
    let server = start();
    assert_eq!(server.run("/v1/pods", &pod("/app", "running")).await.status, 201);
    server
}

async fn post(server: &Server, call: &Value) -> Reply {
    server.call("POST", "/api/v1", &[JSON], call.to_string().as_bytes()).await
}

/// The message of an answer that is a success.
async fn told(server: &Server, call: &Value) -> Value {
    let reply = post(server, call).await;
    assert_eq!(reply.status, 200, "{call}: {:?}", String::from_utf8_lossy(&reply.body));
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert!(reply.body.is_ascii() && !reply.body.contains(&b'\n'));
    reply.json()
}

/// The line of an answer that is none.
fn line(reply: &Reply, status: u16) -> String {
    let text = String::from_utf8(reply.body.clone()).unwrap();
    assert_eq!(reply.status, status, "{text}");
    assert_eq!(reply.header("content-type"), Some("text/plain; charset=utf-8"));
    assert!(text.ends_with('\n') && text.matches('\n').count() == 1, "{text:?}");
    text
}

#[tokio::test]
async fn the_state_shows_an_instance_as_an_executor_and_its_containers_as_tasks() {
    let server = with_pod().await;
    for path in ["/state", "/state.json", "/slave(1)/state", "/slave(1)/state.json?_=1&jsonp="] {
        let state = server.get(path).await.json();
        assert_eq!(state["hostname"], "here", "{path}");
        let executor = &state["frameworks"][0]["executors"][0];
        assert_eq!((&executor["id"], &executor["type"]), (&INSTANCE.into(), &"DEFAULT".into()));
        assert_eq!(executor["directory"], format!("/{INSTANCE}"));
        let task = &executor["tasks"][0];
        assert_eq!((&task["id"], &task["state"]), (&format!("{INSTANCE}.web").into(), &"TASK_RUNNING".into()));
        assert_eq!((&task["executor_id"], &task["slave_id"]), (&INSTANCE.into(), &state["id"]));
        assert_eq!(task["resources"], json!({"cpus": 0.1, "mem": 32.0, "disk": 0.0, "gpus": 0.0}));
        let status = &task["statuses"][0]["container_status"];
        assert_eq!(status["container_id"], json!({"value": "web", "parent": {"value": INSTANCE}}));
        assert_eq!(status["network_infos"][0]["ip_addresses"][0]["ip_address"], "10.88.0.2");
        assert_eq!(executor["tasks"].as_array().unwrap().len(), 2);
    }
    let state = told(&server, &json!({"type": "GET_STATE"})).await;
    let task = &state["get_state"]["get_tasks"]["launched_tasks"][1];
    assert_eq!(
        (&task["task_id"]["value"], &task["state"]),
        (&format!("{INSTANCE}.log").into(), &"TASK_RUNNING".into())
    );
    assert_eq!(task["statuses"][0]["container_status"]["executor_pid"], 4711);
    assert_eq!(task["labels"]["labels"], json!([{"key": "fake", "value": "running"}]));
    let executors = told(&server, &json!({"type": "GET_EXECUTORS"})).await;
    assert_eq!(executors["get_executors"]["executors"][0]["executor_info"]["executor_id"]["value"], INSTANCE);
    let frameworks = told(&server, &json!({"type": "GET_FRAMEWORKS"})).await;
    assert_eq!(frameworks["get_frameworks"]["frameworks"][0]["framework_info"]["name"], "local");
    let tasks = told(&server, &json!({"type": "GET_TASKS"})).await;
    assert_eq!(tasks["get_tasks"]["launched_tasks"].as_array().unwrap().len(), 2);
    let agent = told(&server, &json!({"type": "GET_AGENT"})).await;
    assert_eq!(agent["get_agent"]["agent_info"]["hostname"], "here");
    let containers = told(&server, &json!({"type": "GET_CONTAINERS"})).await;
    assert_eq!(containers["get_containers"]["containers"].as_array().unwrap().len(), 1);
    let nested = json!({"type": "GET_CONTAINERS", "get_containers": {"show_nested": true}});
    let containers = told(&server, &nested).await;
    let second = &containers["get_containers"]["containers"][1]["container_id"];
    assert_eq!(*second, json!({"value": "web", "parent": {"value": INSTANCE}}));
    let page = server.get("/containers?show_nested=true").await.json();
    assert_eq!((&page[0]["executor_id"], &page[2]["container_id"]), (&INSTANCE.into(), &"log".into()));
    // a pod whose containers have ended has completed tasks
    server.run("/v1/pods", &pod("/over", "failed")).await;
    let tasks = told(&server, &json!({"type": "GET_TASKS"})).await;
    assert_eq!(tasks["get_tasks"]["completed_tasks"][0]["state"], "TASK_FAILED");
    let wait = json!({"type": "WAIT_CONTAINER", "wait_container": {"container_id":
        {"value": "web", "parent": {"value": "000000000001"}}}});
    let end = told(&server, &wait).await;
    assert_eq!(end["wait_container"], json!({"exit_status": 7 << 8, "state": "TASK_FAILED"}));
    let wait =
        json!({"type": "WAIT_NESTED_CONTAINER", "wait_nested_container": {"container_id": {"value": "000000000001"}}});
    assert_eq!(told(&server, &wait).await["wait_nested_container"]["state"], "TASK_FAILED");
}

#[tokio::test]
async fn what_the_agent_tells_of_itself() {
    let server = with_pod().await;
    let version = server.get("/version").await.json();
    let told_version = told(&server, &json!({"type": "GET_VERSION"})).await;
    assert_eq!(version["version"], told_version["get_version"]["version_info"]["version"]);
    assert!(version["version"].as_str().unwrap().split('.').all(|part| part.parse::<u32>().is_ok()));
    assert_eq!(told(&server, &json!({"type": "GET_HEALTH"})).await["get_health"], json!({"healthy": true}));
    assert_eq!((server.get("/health").await.status, server.get("/slave(1)/health").await.status), (200, 200));
    let work = server.folder_of_state();
    assert_eq!(server.get("/flags").await.json()["flags"]["work_dir"], work);
    let flags = told(&server, &json!({"type": "GET_FLAGS"})).await;
    assert!(flags["get_flags"]["flags"].as_array().unwrap().contains(&json!({"name": "work_dir", "value": work})));
    let figures = server.get("/metrics/snapshot").await.json();
    assert_eq!((&figures["slave/cpus_total"], &figures["slave/tasks_running"]), (&4.0.into(), &2.0.into()));
    assert!(figures["slave/uptime_secs"].as_f64().unwrap() >= 0.0 && figures["system/load_1min"].is_f64());
    let metrics = told(&server, &json!({"type": "GET_METRICS", "get_metrics": {}})).await;
    assert!(
        metrics["get_metrics"]["metrics"]
            .as_array()
            .unwrap()
            .contains(&json!({"name": "slave/mem_total", "value": 1024.0}))
    );
    assert_eq!(told(&server, &json!({"type": "GET_OPERATIONS"})).await["get_operations"], json!({}));
    assert_eq!(told(&server, &json!({"type": "GET_LOGGING_LEVEL"})).await["get_logging_level"]["level"], 0);
}

impl Server {
    fn folder_of_state(&self) -> String {
        self.fake.folder.path().display().to_string()
    }

    fn sandbox(&self) -> std::path::PathBuf {
        let sandbox = self.fake.folder.path().join(format!("sandboxes/{INSTANCE}/sandbox/web"));
        std::fs::create_dir_all(sandbox.join("sub")).unwrap();
        sandbox
    }

    /// What a container has printed.
    async fn print(&self, stream: Stream, text: &str) {
        use crate::api::Pods as _;
        let (read, write) = rustix::pipe::pipe().unwrap();
        self.fake.capture().add(INSTANCE, "web", 1, stream, read).unwrap();
        std::fs::File::from(write).write_all(text.as_bytes()).unwrap();
        self.fake.capture().finish(INSTANCE, "web").await.unwrap();
    }
}

#[tokio::test]
async fn files_are_listed_and_read_where_the_state_says() {
    let server = with_pod().await;
    let sandbox = server.sandbox();
    std::fs::write(sandbox.join("sub/data"), "0123456789").unwrap();
    std::fs::write(sandbox.join("stdout"), "hidden by what was printed").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", sandbox.join("link")).unwrap();
    server.print(Stream::Stdout, "one\ntwo \u{e9}\nunended").await;
    server.print(Stream::Stderr, "problem\n").await;
    for base in [
        format!("/{INSTANCE}/web"),
        format!("/{INSTANCE}/tasks/{INSTANCE}.web"),
        format!("/frameworks/local/executors/{INSTANCE}/runs/latest/tasks/{INSTANCE}.web"),
    ] {
        let listed = server.get(&format!("/files/browse?path={base}")).await.json();
        let paths: Vec<&str> = listed.as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap()).collect();
        assert_eq!(paths, ["link", "stderr", "stdout", "sub"].map(|name| format!("{base}/{name}")), "{listed}");
        assert_eq!((&listed[1]["size"], &listed[1]["mode"]), (&8.into(), &"-rw-r--r--".into()));
        let below = server.get(&format!("/slave(1)/files/browse.json?path={base}/sub/")).await.json();
        assert_eq!((&below[0]["path"], &below[0]["size"]), (&format!("{base}/sub/data").into(), &10.into()));
        let read = async |query: &str| server.get(&format!("/files/read?path={base}/{query}")).await.json();
        assert_eq!(read("stdout&offset=-1").await, json!({"data": "", "offset": 19}));
        assert_eq!(read("stdout&offset=0&length=-1").await, json!({"data": "one\ntwo \u{e9}\nunended\n", "offset": 0}));
        assert_eq!(read("stdout&offset=2&length=4").await, json!({"data": "e\ntw", "offset": 2}));
        // a character is not cut in two
        assert_eq!(read("stdout&offset=4&length=5").await, json!({"data": "two ", "offset": 4}));
        assert_eq!(read("stdout&offset=100&length=5").await, json!({"data": "", "offset": 100}));
        assert_eq!(read("stderr&offset=0").await["data"], "problem\n");
        assert_eq!(read("sub/data&offset=4&length=3").await, json!({"data": "456", "offset": 4}));
        assert_eq!(read("sub/data").await, json!({"data": "", "offset": 10}));
        let whole = server.get(&format!("/files/download?path={base}/stdout")).await;
        assert_eq!(whole.body, "one\ntwo \u{e9}\nunended\n".as_bytes());
        assert!(whole.header("content-disposition").unwrap().ends_with("stdout"));
        assert_eq!(server.get(&format!("/files/download?path={base}/sub/data")).await.body, b"0123456789");
        let file =
            json!({"type": "READ_FILE", "read_file": {"path": format!("{base}/stdout"), "offset": "4", "length": 3}});
        assert_eq!(told(&server, &file).await["read_file"], json!({"size": 19, "data": "dHdv"}));
    }
    let list = json!({"type": "LIST_FILES", "list_files": {"path": format!("/{INSTANCE}")}});
    let files = told(&server, &list).await;
    let names: Vec<&str> =
        files["list_files"]["file_infos"].as_array().unwrap().iter().map(|f| f["path"].as_str().unwrap()).collect();
    assert_eq!(names, ["log", "tasks", "web"].map(|name| format!("/{INSTANCE}/{name}")));
    assert_eq!(files["list_files"]["file_infos"][0]["mode"], 0o040_755);
    assert_eq!(server.get("/files/browse?path=/").await.json()[0]["path"], format!("/{INSTANCE}"));
    // one that has not begun has empty files
    let listed = server.get(&format!("/files/browse?path=/{INSTANCE}/log")).await.json();
    assert_eq!(listed.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn no_path_leads_out_of_a_sandbox() {
    let server = with_pod().await;
    let sandbox = server.sandbox();
    std::os::unix::fs::symlink("/etc", sandbox.join("etc")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", sandbox.join("link")).unwrap();
    for (path, status) in [
        (format!("/{INSTANCE}/web/../../../../etc/passwd"), 400),
        (format!("/{INSTANCE}/web/%2e%2e/%2e%2e/x"), 400),
        (format!("/{INSTANCE}/web/..%2f..%2fx"), 400),
        (format!("/{INSTANCE}/web/a%00b"), 400),
        (format!("/{INSTANCE}/web/%ff"), 400),
        (format!("/{INSTANCE}/web/etc/passwd"), 400),
        (format!("/{INSTANCE}/web/link"), 400),
        (format!("/{INSTANCE}/web"), 400),
        (format!("/{INSTANCE}"), 400),
        (format!("/{INSTANCE}/web/missing"), 404),
        (format!("/{INSTANCE}/nobody/stdout"), 404),
        (format!("/{INSTANCE}/tasks/{INSTANCE}.nobody/stdout"), 404),
        ("/etc/passwd".to_owned(), 404),
        ("etc/passwd".to_owned(), 404),
        ("/000000000009/web/stdout".to_owned(), 404),
    ] {
        for page in ["files/read", "files/download"] {
            line(&server.get(&format!("/{page}?path={path}&offset=0")).await, status);
        }
        let call = json!({"type": "READ_FILE", "read_file": {"path": path, "offset": 0}});
        let reply = post(&server, &call).await;
        assert!(matches!(reply.status, 400 | 404), "{path}: {}", reply.status);
    }
    line(&server.get("/files/read").await, 400);
    line(&server.get(&format!("/files/read?path=/{INSTANCE}/web/stdout&offset=-2")).await, 400);
    line(&server.get("/files/browse?path=").await, 400);
}

#[tokio::test]
async fn refusals_are_one_line_of_plain_text() {
    let server = with_pod().await;
    let health = br#"{"type":"GET_HEALTH"}"#;
    let call =
        async |method: &str, headers: &[(&str, &str)], body: &[u8]| server.call(method, "/api/v1", headers, body).await;
    let get = call("GET", &[], b"").await;
    assert_eq!(get.header("allow"), Some("POST"));
    line(&get, 405);
    line(&server.call("POST", "/state", &[JSON], b"").await, 405);
    line(&call("POST", &[], health).await, 400);
    line(&call("POST", &[("content-type", "text/plain")], health).await, 415);
    line(&call("POST", &[JSON, ("content-encoding", "gzip")], health).await, 415);
    line(&call("POST", &[JSON, ("accept", "text/html, application/json;q=0")], health).await, 406);
    line(&call("POST", &[JSON, ("accept", "application/recordio")], health).await, 406);
    assert_eq!(call("POST", &[JSON, ("accept", "text/html, */*;q=0.1")], health).await.status, 200);
    let protobuf = call("POST", &[JSON, ("accept", "application/x-protobuf")], health).await;
    assert_eq!(protobuf.body, [0x08, 1, 0x12, 2, 0x08, 1]);
    let sent = call("POST", &[("content-type", "application/x-protobuf")], &[0x08, 1]).await;
    assert_eq!(sent.json(), json!({"type": "GET_HEALTH", "get_health": {"healthy": true}}));
    assert!(line(&post(&server, &json!({"type": "LAUNCH_ROCKET"})).await, 400).starts_with("type: found"));
    assert!(line(&post(&server, &json!({"type": "PRUNE_IMAGES"})).await, 501).starts_with("PRUNE_IMAGES"));
    line(&post(&server, &json!({"type": "SET_LOGGING_LEVEL"})).await, 501);
    line(&call("POST", &[JSON], &vec![b' '; (1 << 20) + 1]).await, 413);
    let launch = |id: Value| {
        json!({"type": "LAUNCH_NESTED_CONTAINER_SESSION", "launch_nested_container_session":
            {"container_id": id, "command": {"value": "true"}}})
    };
    // two containers: which one is meant must be said
    let said = line(&post(&server, &launch(json!({"value": "x", "parent": {"value": INSTANCE}}))).await, 400);
    assert!(said.contains("web, log"), "{said}");
    line(&post(&server, &launch(json!({"value": "x", "parent": {"value": "nobody"}}))).await, 404);
    line(&post(&server, &launch(json!({"value": "web", "parent": {"value": INSTANCE}}))).await, 409);
    let web = json!({"value": "web", "parent": {"value": INSTANCE}});
    line(
        &post(&server, &launch(json!({"value": "x", "parent": {"value": "y", "parent": {"value": INSTANCE}}}))).await,
        404,
    );
    line(&post(&server, &launch(json!({"value": "x", "parent": {"value": "y", "parent": web}}))).await, 400);
    let of = |kind: &str, field: &str, id: &Value| json!({"type": kind, field: {"container_id": id}});
    line(&post(&server, &of("KILL_CONTAINER", "kill_container", &web)).await, 501);
    line(&post(&server, &of("REMOVE_CONTAINER", "remove_container", &json!({"value": INSTANCE}))).await, 501);
    let nested = json!({"value": "x", "parent": web});
    for (kind, field) in [
        ("WAIT_NESTED_CONTAINER", "wait_nested_container"),
        ("KILL_NESTED_CONTAINER", "kill_nested_container"),
        ("REMOVE_NESTED_CONTAINER", "remove_nested_container"),
        ("ATTACH_CONTAINER_OUTPUT", "attach_container_output"),
    ] {
        line(&post(&server, &of(kind, field, &nested)).await, 404);
    }
    let input = json!({"type": "ATTACH_CONTAINER_INPUT", "attach_container_input":
        {"type": "CONTAINER_ID", "container_id": nested}});
    line(&post(&server, &input).await, 415);
    let records = [("content-type", "application/recordio"), ("message-content-type", "application/json")];
    line(&call("POST", &records, &recordio::encode(input.to_string().as_bytes())).await, 404);
    line(&call("POST", &records, &recordio::encode(health)).await, 415);
    line(&call("POST", &records, b"").await, 400);
    line(&call("POST", &records, b"7\n{").await, 400);
    line(&call("POST", &records, b"-1\n").await, 400);
    line(&call("POST", &records[..1], b"").await, 400);
    line(&call("POST", &[records[0], ("message-content-type", "x/y")], b"").await, 415);
}

#[tokio::test]
async fn a_container_of_a_pod_is_followed() {
    let server = with_pod().await;
    let web = json!({"value": "web", "parent": {"value": "000000000001"}});
    server.run("/v1/pods", &pod("/over", "failed")).await;
    let call = json!({"type": "ATTACH_CONTAINER_OUTPUT", "attach_container_output": {"container_id": web}}).to_string();
    let headers = [JSON, ("accept", "application/recordio"), ("message-accept", "application/json")];
    // it has ended, so that the stream ends at once
    let reply = server.call("POST", "/api/v1", &headers, call.as_bytes()).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/recordio")));
    assert_eq!(reply.header("message-content-type"), Some("application/json"));
    assert_eq!(reply.body, b"");
}

#[test]
fn every_call_and_every_page_is_in_the_documentation() {
    let page = include_str!("../../../docs/mesos-agent-api.md");
    let calls: Vec<&str> = (0..100).filter_map(|n| Type::try_from(n).ok()).map(|kind| kind.as_str_name()).collect();
    assert!(calls.len() > 30, "{calls:?}");
    for call in calls {
        assert!(page.contains(&format!("`{call}`")), "{call}");
    }
    let pages = super::PAGES.iter().map(|name| format!("`/{name}`"));
    let files = super::FILES.iter().map(|name| format!("`/files/{name}?"));
    for path in pages.chain(files).chain(["`/metrics/snapshot`".into(), "`POST /api/v1`".into()]) {
        assert!(page.contains(&path), "{path}");
    }
    assert!(super::serves(&["state"]) && super::serves(&["files", "read.json"]) && !super::serves(&["v1", "pods"]));
    assert!(!super::serves(&["files"]) && !super::serves(&["healthz"]) && !super::serves(&[]));
}
