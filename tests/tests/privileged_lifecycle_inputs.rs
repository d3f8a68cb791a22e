//! What containers are given: artifacts, secrets, facts in the environment, volumes.

#![allow(clippy::needless_pass_by_value, reason = "JSON is written down where it is passed")]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentd_api::status::{ContainerStatus, PodStatus, Reason, TaskState};
use agentd_tests::{Client, Daemon, arena, eventually, pods, privileged, skip};
use serde_json::{Value, json};

/// A web server on loopback that serves files of the test and counts who asks; it serves until the test ends.
struct Files {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Files {
    fn serve(files: HashMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // a client that goes away is its own affair
                let _ = answer(stream, &files, &log);
            }
        });
        Self { port, asked }
    }

    fn uri(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

fn answer(mut stream: TcpStream, files: &HashMap<String, Vec<u8>>, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        head.push(line.trim_end().to_owned());
    }
    let path = head.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
    log.lock().unwrap().push(path.clone());
    let current = head.iter().any(|line| line.eq_ignore_ascii_case("if-none-match: \"1\""));
    let (status, body): (&str, &[u8]) = match files.get(&path) {
        Some(_) if current => ("304 Not Modified", b""),
        Some(body) => ("200 OK", body),
        None => ("404 Not Found", b"no"),
    };
    write!(stream, "HTTP/1.1 {status}\r\netag: \"1\"\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len())?;
    stream.write_all(body)
}

/// An archive made by a tool of the host in a folder with these files.
fn archive(tool: &str, files: &[(&str, &str)]) -> Vec<u8> {
    let folder = tempfile::Builder::new().prefix("agentd-test-archive-").tempdir().unwrap();
    let inside = folder.path().join("in");
    for (name, text) in files {
        let path = inside.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let out = folder.path().join("out");
    let script = match tool {
        "tar" => "tar -czf \"$1\" *",
        "zip" => "zip -qr \"$1.zip\" * && mv \"$1.zip\" \"$1\"",
        "traversal" => "tar -cf \"$1\" --transform 's,^,../../,' -P *",
        other => panic!("no archive {other}"),
    };
    let status = Command::new("sh").args(["-c", script, "sh"]).arg(&out).current_dir(&inside).status().unwrap();
    assert!(status.success());
    fs::read(out).unwrap()
}

fn with_artifacts(pod: Value, artifacts: &Value) -> Value {
    pods::with_container(pod, |container| container["artifacts"] = artifacts.clone())
}

fn only(status: &PodStatus) -> &ContainerStatus {
    &status.instances[0].containers[0]
}

#[test]
fn artifacts_are_fetched_unpacked_and_refused() {
    privileged!();
    if Command::new("zip").arg("--version").output().is_err() {
        skip!("zip is not installed");
    }
    let served = Files::serve(HashMap::from([
        ("/plain.txt".to_owned(), b"plain\n".to_vec()),
        ("/tool".to_owned(), b"#!/bin/sh\necho a tool as $(id -u)\n".to_vec()),
        ("/app.tar.gz".to_owned(), archive("tar", &[("app/one", "1\n"), ("app/deep/two", "2\n")])),
        ("/app.zip".to_owned(), archive("zip", &[("zipped/three", "3\n")])),
        ("/evil.tar".to_owned(), archive("traversal", &[("evil", "x")])),
        ("/broken.tar.gz".to_owned(), b"\x1f\x8b\x08\x00broken".to_vec()),
        ("/cached".to_owned(), b"cached\n".to_vec()),
    ]));
    let roots = tempfile::Builder::new().prefix("agentd-test-root-").tempdir().unwrap();
    fs::write(roots.path().join("local"), "local\n").unwrap();
    std::os::unix::fs::symlink("/etc/shadow", roots.path().join("link")).unwrap();
    let daemon = Daemon::with()
        .set("artifacts.allow_loopback=true")
        .set(&format!("artifacts.file_roots={}", roots.path().display()))
        .start();
    let client = daemon.client();
    let local = |name: &str| format!("file://{}/{name}", roots.path().display());

    let artifacts = json!([
        {"uri": served.uri("/plain.txt")},
        {"uri": served.uri("/plain.txt"), "destPath": "sub/other"},
        {"uri": served.uri("/tool"), "executable": true},
        {"uri": served.uri("/app.tar.gz"), "extract": true},
        {"uri": served.uri("/app.zip"), "extract": true},
        {"uri": local("local")},
    ]);
    let line = "cat plain.txt sub/other app/one app/deep/two zipped/three local && ./tool && \
                stat -c '%a %u' tool plain.txt && ls";
    let mut pod = with_artifacts(pods::shell("/good", line), &artifacts);
    pod["user"] = json!("1234:1234");
    let (status, log) = client.run_to_end(&pod);
    let wanted =
        "plain\nplain\n1\n2\n3\nlocal\na tool as 1234\n755 1234\n644 1234\napp\nlocal\nplain.txt\nsub\ntool\nzipped\n";
    assert_eq!(log, wanted, "{status:?}");

    // a copy serves the second fetch when the server says that it is current
    let cached = json!([{"uri": served.uri("/cached"), "cache": true}]);
    for id in ["/cached-1", "/cached-2"] {
        assert_eq!(client.run_to_end(&with_artifacts(pods::shell(id, "cat cached"), &cached)).1, "cached\n");
    }
    assert_eq!(served.asked.lock().unwrap().iter().filter(|path| *path == "/cached").count(), 2);

    // each fault is told by its field, and the container does not start
    let faults = [
        (json!({"uri": served.uri("/nothing")}), "404"),
        (json!({"uri": served.uri("/evil.tar"), "extract": true}), ".."),
        (json!({"uri": served.uri("/broken.tar.gz"), "extract": true}), "broken.tar.gz"),
        (json!({"uri": served.uri("/plain.txt"), "extract": true}), "plain.txt"),
        (json!({"uri": local("nothing")}), "nothing"),
        (json!({"uri": local("link")}), "link"),
        (json!({"uri": "file:///etc/hostname"}), "file_roots"),
        (json!({"uri": "http://169.254.169.254/latest"}), "169.254.169.254"),
        (json!({"uri": "http://127.0.0.1:1/x"}), "127.0.0.1:1"),
    ];
    for (number, (fault, says)) in faults.iter().enumerate() {
        let pod =
            with_artifacts(pods::shell("/bad", "echo started"), &json!([{"uri": served.uri("/plain.txt")}, fault]));
        let (status, log) = client.run_to_end(&pod);
        let container = only(&status);
        assert_eq!(
            (container.state, container.reason, log.as_str()),
            (TaskState::TaskError, Some(Reason::ArtifactFetchFailed), ""),
            "{number}: {fault}: {container:?}"
        );
        let message = container.message.clone().unwrap_or_default();
        let named = message.contains("containers[0].artifacts[1]") && message.contains(says);
        assert!(named && !message.contains('\n'), "{fault}: {message}");
    }
    assert!(!Path::new("/evil").exists() && !daemon.state().join("evil").exists());
}

#[test]
fn loopback_and_files_are_refused_unless_configured() {
    privileged!();
    let served = Files::serve(HashMap::from([("/x".to_owned(), b"x".to_vec())]));
    let daemon = Daemon::start();
    let client = daemon.client();
    for (uri, says) in [(served.uri("/x"), "127.0.0.1"), ("file:///etc/hostname".to_owned(), "file_roots")] {
        let pod = with_artifacts(pods::shell("/refused", "echo started"), &json!([{"uri": uri}]));
        let (status, log) = client.run_to_end(&pod);
        let container = only(&status);
        assert_eq!((container.reason, log.as_str()), (Some(Reason::ArtifactFetchFailed), ""), "{container:?}");
        assert!(container.message.as_ref().unwrap().contains(says), "{container:?}");
    }
    assert!(served.asked.lock().unwrap().is_empty(), "the server was reached");
}

/// Names of files below `folder` that contain the text.
fn files_with(folder: &Path, text: &str) -> Vec<String> {
    let output = Command::new("grep").args(["-rlaF", "--devices=skip", text]).arg(folder).output().unwrap();
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// A secret that is to be found nowhere but in its container.
const VALUE: &str = "s3cr3t-value-of-the-test";

#[test]
fn secrets_reach_their_container_and_nothing_else() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();
    let folder = daemon.dir().join("secrets");
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    let write = |name: &str, mode: u32| {
        fs::write(folder.join(name), VALUE).unwrap();
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    write("db", 0o400);
    write("open", 0o644);

    // exec health check and a restart: whatever is kept for those must not have the secret either
    let line = "echo $PASSWORD | wc -c; wc -c < /run/secrets/db; stat -c '%a %u %F' /run/secrets/db; \
                stat -f -c %T /run/secrets; { echo > /run/secrets/new; } 2>/dev/null || echo read-only; env | grep -c PASS; exec sleep 1000";
    let mut pod = pods::shell("/secret", line);
    pod["secrets"] = json!({"password": {"source": "db"}});
    pod["environment"] = json!({"PASSWORD": {"secret": "password"}});
    pod["volumes"] = json!([{"name": "keys", "agentd": {"secrets": {"db": "password"}}}]);
    let pod = pods::with_container(pod, |container| {
        container["volumeMounts"] = json!([{"name": "keys", "mountPath": "/run/secrets"}]);
        container["healthCheck"] = json!({"exec": {"command": {"shell": "test -n \"$PASSWORD\""}}, "delaySeconds": 0,
            "intervalSeconds": 1, "timeoutSeconds": 0.9});
        container["lifecycle"] = json!({"killGracePeriodSeconds": 0.1});
    });
    let status = client.run_pod(&pod);
    let pid = only(&status).pid.unwrap();
    let length = VALUE.len();
    let wanted = format!("{}\n{length}\n400 0 regular file\ntmpfs\nread-only\n1\n", length + 1);
    let log = || client.logs("/secret", "main");
    assert!(eventually(Duration::from_secs(10), || log() == wanted), "{}", log());
    // it is there, and nowhere else
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(String::from_utf8_lossy(&environment).contains(VALUE));
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/root/run/secrets/db")).unwrap(), VALUE);
    let quiet = |when: &str| {
        for path in ["/v1/pods/secret", "/v1/pods", "/v1/events", "/v1/node", "/v1/pods/secret/logs"] {
            assert!(!client.get(path).text.contains(VALUE), "{when}: {path}");
        }
        for folder in [daemon.run(), daemon.state(), daemon.dir().join("daemon.log")] {
            assert!(files_with(&folder, VALUE).is_empty(), "{when}: {:?}", files_with(&folder, VALUE));
        }
        let command_lines = Command::new("pgrep").args(["-fa", VALUE]).output().unwrap();
        assert!(command_lines.stdout.is_empty(), "{when}: {}", String::from_utf8_lossy(&command_lines.stdout));
    };
    quiet("while it runs");
    client.rm("/secret");
    quiet("afterwards");

    // what cannot be had is told without a word of it
    for (source, says) in [("none", "none"), ("open", "0400"), ("../agentd.toml", "..")] {
        let mut pod = pods::shell("/bad-secret", "echo started");
        pod["secrets"] = json!({"password": {"source": source}});
        pod["environment"] = json!({"PASSWORD": {"secret": "password"}});
        let answer = client.post("/v1/pods", &pod);
        let told = if answer.ok() {
            let status = client.wait_finished("/bad-secret");
            client.rm("/bad-secret");
            assert_eq!(only(&status).state, TaskState::TaskError, "{status:?}");
            only(&status).message.clone().unwrap_or_default()
        } else {
            answer.text
        };
        assert!(told.contains(says) && told.contains("secrets.password.source") && !told.contains(VALUE), "{told}");
    }
}

#[test]
fn the_environment_tells_the_facts() {
    privileged!();
    let daemon = Daemon::with().set("hostname=host.example").start();
    let client = daemon.client();
    let container = |name: &str, endpoints: Value| {
        json!({"name": name, "exec": {"command": {"shell": "env"}}, "resources": pods::resources(),
            "endpoints": endpoints, "labels": {"tier": name}})
    };
    let pod = json!({
        "id": "/shop/web",
        "labels": {"team": "a b", "tier": "none"},
        "environment": {"SHARED": "pod", "OWN": "pod"},
        "networks": [{"mode": "container"}],
        "containers": [
            container("front", json!([{"name": "http-1", "containerPort": 8080, "hostPort": 0}])),
            container("back", json!([{"name": "rpc", "containerPort": 9090}])),
        ],
        "agentd": {"restart": "never"},
    });
    let mut pod = pod;
    pod["containers"][1]["environment"] = json!({"OWN": "container"});
    client.post("/v1/pods", &pod);
    let status = client.wait_finished("/shop/web");
    let instance = &status.instances[0];
    let variables = |name: &str| -> HashMap<String, String> {
        let log = client.logs("/shop/web", name);
        log.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    };
    let front = variables("front");
    let version = status.spec.version.clone().unwrap();
    let wanted = [
        ("MARATHON_APP_ID", "/shop/web".to_owned()),
        ("MARATHON_APP_VERSION", version),
        ("MARATHON_APP_LABELS", "TEAM TIER".to_owned()),
        ("MARATHON_APP_LABEL_TEAM", "a b".to_owned()),
        ("MARATHON_APP_LABEL_TIER", "front".to_owned()),
        ("HOST", "host.example".to_owned()),
        ("MESOS_SANDBOX", "/mnt/mesos/sandbox".to_owned()),
        ("PWD", "/mnt/mesos/sandbox".to_owned()),
        ("MESOS_TASK_ID", format!("shop_web.{}.front", instance.id)),
        ("ENDPOINT_HTTP_1", "8080".to_owned()),
        ("EP_CONTAINER_HTTP_1", "8080".to_owned()),
        ("SHARED", "pod".to_owned()),
        ("OWN", "pod".to_owned()),
    ];
    for (name, value) in wanted {
        assert_eq!(front.get(name), Some(&value), "{name} in {front:?}");
    }
    let port: u16 = front["EP_HOST_HTTP_1"].parse().unwrap();
    assert!(port >= 20_000, "{port}");
    assert!(!front.contains_key("ENDPOINT_RPC"), "{front:?}");
    let back = variables("back");
    assert_eq!((back["OWN"].as_str(), back["ENDPOINT_RPC"].as_str()), ("container", "9090"));
    assert!(!back.contains_key("EP_HOST_RPC"), "{back:?}");
}

fn volume_pod(id: &str, volumes: Value, containers: &[(&str, &str, Value)]) -> Value {
    let containers: Vec<Value> = containers
        .iter()
        .map(|(name, line, mounts)| {
            json!({"name": name, "exec": {"command": {"shell": line}}, "resources": pods::resources(),
                "volumeMounts": mounts, "lifecycle": {"killGracePeriodSeconds": 0.1}})
        })
        .collect();
    json!({"id": id, "volumes": volumes, "containers": containers,
        "agentd": {"restart": "never", "isolatedNetwork": true}})
}

#[track_caller]
fn log_of(client: &Client, pod: &Value) -> String {
    let (status, log) = client.run_to_end(pod);
    assert!(only(&status).exit.is_some_and(agentd_api::status::ExitStatus::success), "{log}{status:?}");
    log
}

#[test]
fn volumes_are_shared_sized_and_read_only_as_asked() {
    privileged!();
    let daemon = Daemon::start();
    let client = daemon.client();

    // ephemeral: shared between the containers of the pod, gone with it
    let mount = json!([{"name": "v", "mountPath": "/data"}]);
    let reads = json!([{"name": "v", "mountPath": "seen", "readOnly": true}]);
    let line = "until test -s seen/file; do sleep 0.02; done; cat seen/file; { echo > seen/mine; } 2>/dev/null || echo refused";
    let pod = volume_pod(
        "/shared",
        json!([{"name": "v"}]),
        &[("reads", line, reads), ("writes", "echo shared > /data/file", mount)],
    );
    let log = log_of(&client, &pod);
    assert!(log == "shared\nrefused\n", "{log}");
    assert!(fs::read_dir(daemon.state().join("sandboxes")).unwrap().next().is_none());

    // of the host: read-write, read-only, and a part of it
    let host = tempfile::Builder::new().prefix("agentd-test-volume-").tempdir().unwrap();
    fs::create_dir_all(host.path().join("part/deep")).unwrap();
    fs::write(host.path().join("part/file"), "of the host\n").unwrap();
    let volumes = json!([{"name": "v", "host": host.path()}]);
    let mounts = json!([
        {"name": "v", "mountPath": "/rw"},
        {"name": "v", "mountPath": "/ro", "readOnly": true},
        {"name": "v", "mountPath": "/part", "agentd": {"subPath": "part"}},
        {"name": "v", "mountPath": "/one-file", "readOnly": true, "agentd": {"subPath": "part/file"}},
    ]);
    let line = "cat /rw/part/file /ro/part/file /part/file /one-file; echo new > /rw/new; cat /ro/new; \
                { echo x > /ro/x; } 2>/dev/null || echo ro; { echo x > /one-file; } 2>/dev/null || echo ro; \
                echo deep > /part/deep/made; mount | grep -c ' /ro .*[(,]ro'";
    let log = log_of(&client, &volume_pod("/host", volumes.clone(), &[("main", line, mounts)]));
    assert_eq!(log, "of the host\nof the host\nof the host\nof the host\nnew\nro\nro\n1\n");
    assert_eq!(fs::read_to_string(host.path().join("new")).unwrap(), "new\n");
    assert_eq!(fs::read_to_string(host.path().join("part/deep/made")).unwrap(), "deep\n");
    assert!(!host.path().join("x").exists());

    // a part that is not there is told when the container starts
    let mounts = json!([{"name": "v", "mountPath": "/part", "agentd": {"subPath": "none"}}]);
    let (status, _) = client.run_to_end(&volume_pod("/none", volumes, &[("main", "true", mounts)]));
    let message = only(&status).message.clone().unwrap_or_default();
    assert!(message.contains("none") && message.contains("subPath"), "{message}");

    // in memory, with a size
    let line = "stat -f -c %T /mem; head -c 900000 /dev/zero > /mem/a && echo fits; \
                head -c 900000 /dev/zero > /mem/b || echo full; df -k /mem | tail -1 | awk '{print $2}'";
    let volumes = json!([{"name": "v", "agentd": {"tmpfsMib": 1}}]);
    let mounts = json!([{"name": "v", "mountPath": "/mem"}]);
    let log = log_of(&client, &volume_pod("/memory", volumes, &[("main", line, mounts)]));
    let said: Vec<&str> = log.lines().filter(|line| !line.contains("head:")).collect();
    assert_eq!(said, ["tmpfs", "fits", "full", "1024"], "{log}");

    // a volume outlives a restart of its containers
    let line = "echo x >> /data/count; cat /data/count | wc -l; test $(wc -l < /data/count) -ge 3";
    let mut pod =
        volume_pod("/again", json!([{"name": "v"}]), &[("main", line, json!([{"name": "v", "mountPath": "/data"}]))]);
    pod["agentd"]["restart"] = json!("on-failure");
    pod["scheduling"] = json!({"backoff": {"backoff": 0.01}});
    assert_eq!(log_of(&client, &pod), "1\n2\n3\n");

    // the tools of the tests come the same way
    let log = log_of(&client, &arena::tools(pods::argv("/tools", &["/opt/testbox", "echo", "from a volume"])));
    assert_eq!(log, "from a volume\n");
}
