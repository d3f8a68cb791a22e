//! Values of every type, as large and as small as they can be, are as their schemas say.

use agentd_api::files::{FileKind, FileStat, FilesWritten};
use agentd_api::message::{
    ContainerUsage, Event, ImageInfo, ImportRequest, NodeInfo, NodeResources, Progress, PullRequest,
};
use agentd_api::parse;
use agentd_api::problem::{Problem, Violation};
use agentd_api::session::{ExecRequest, SessionKind, SessionState, SessionStatus};
use agentd_api::status::{
    ContainerStatus, EndpointStatus, ExitStatus, InstancePhase, InstanceStatus, PodStatus, Reason, TaskState,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::super::schema;
use super::validator::faults;

fn sound(name: &str, value: &Value) {
    let faults = faults(schema(name), value, name);
    assert!(faults.is_empty(), "{faults:#?}\n{value:#}");
}

/// A value of a type as small as it can be: nothing in it may be left out.
fn least(name: &str, value: &Value) {
    sound(name, value);
    let mut required: Vec<&str> =
        schema(name)["required"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    required.sort_unstable();
    let written: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(written, required, "{name}");
}

const FULL_POD: &str = include_str!("../../../../api/tests/full-pod.json");

#[test]
fn pods_are_as_they_are_described() {
    let full: Value = serde_json::from_str(FULL_POD).unwrap();
    sound("Pod", &full);
    let spec = parse::pod(FULL_POD.as_bytes()).unwrap();
    sound("Pod", &serde_json::to_value(&spec).unwrap());
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    for entry in std::fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let text = std::fs::read(&path).unwrap();
            sound("Pod", &serde_json::from_slice(&text).unwrap());
            sound("Pod", &serde_json::to_value(parse::pod(&text).unwrap()).unwrap());
        }
    }
    // and what is no pod is not described as one
    for bad in [
        json!({"id": "/a"}),
        json!({"id": "/a", "containers": []}),
        json!({"id": "/a", "containers": [{"name": "A", "resources": {}}]}),
        json!({"id": "/a", "containers": [{"name": "a", "resources": {"cpus": 0}}]}),
        json!({"id": "/a", "containers": [{"name": "a", "resources": {}, "exec": {"command": {}}}]}),
        json!({"id": "/a", "containers": [{"name": "a", "resources": {}}], "surprise": 1}),
        json!({"id": "/a", "containers": [{"name": "a", "resources": {}, "agentd": {"seccomp": "none"}}]}),
    ] {
        assert!(!faults(schema("Pod"), &bad, "").is_empty(), "{bad}");
        assert!(parse::pod(bad.to_string().as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn answers_are_as_they_are_described() {
    let time = || "2026-01-31T12:00:00Z".to_owned();
    let endpoint = EndpointStatus { name: "web".into(), container_port: Some(80), host_port: Some(8080) };
    let small = ContainerStatus {
        name: "main".into(),
        state: TaskState::TaskStaging,
        reason: None,
        message: None,
        pid: None,
        exit: None,
        attempt: 0,
        healthy: None,
        started_at: None,
        finished_at: None,
        memory_peak_bytes: None,
        cgroup: None,
        endpoints: vec![],
    };
    let full = ContainerStatus {
        reason: Some(Reason::TaskGroupFailed),
        message: Some("m".into()),
        pid: Some(1),
        exit: Some(ExitStatus::Signal(9)),
        healthy: Some(true),
        started_at: Some(time()),
        finished_at: Some(time()),
        memory_peak_bytes: Some(1),
        cgroup: Some("/c".into()),
        endpoints: vec![endpoint.clone()],
        ..small.clone()
    };
    let instance = InstanceStatus {
        id: "0123456789ab".into(),
        phase: InstancePhase::Starting,
        message: None,
        addresses: vec![],
        init_pid: None,
        containers: vec![small.clone(), full.clone()],
    };
    let spec = parse::pod(FULL_POD.as_bytes()).unwrap();
    let text = |value: &dyn erased::Json| value.json();
    least("ContainerStatus", &text(&small));
    sound("ContainerStatus", &text(&full));
    for exit in [ExitStatus::Code(-1), ExitStatus::Signal(9), ExitStatus::Unknown] {
        sound("ExitStatus", &text(&exit));
    }
    least("InstanceStatus", &text(&instance));
    let more = InstanceStatus {
        message: Some("m".into()),
        addresses: vec!["a".into()],
        init_pid: Some(1),
        ..instance.clone()
    };
    sound("InstanceStatus", &text(&more));
    least("EndpointStatus", &text(&EndpointStatus { container_port: None, host_port: None, ..endpoint }));
    least("PodStatus", &text(&PodStatus { id: "/a".into(), spec, instances: vec![instance, more] }));
    let amounts = NodeResources::default();
    least("NodeResources", &text(&amounts));
    least(
        "NodeInfo",
        &text(&NodeInfo {
            instance: "agentd".into(),
            hostname: "h".into(),
            version: "0".into(),
            kernel: "6".into(),
            boot_id: "b".into(),
            cgroups: "v2".into(),
            total: amounts,
            reserved: amounts,
            used: amounts,
            free: amounts,
            instances: 0,
        }),
    );
    let event = Event {
        id: 1,
        time: time(),
        kind: "k".into(),
        pod: None,
        instance: None,
        container: None,
        message: "m".into(),
    };
    least("Event", &text(&event));
    let whole = Event { pod: Some("/a".into()), instance: Some("i".into()), container: Some("c".into()), ..event };
    sound("Event", &text(&whole));
    let image =
        ImageInfo { reference: "r".into(), digest: "d".into(), size: 1, layers: 1, created_at: time(), in_use: true };
    least("ImageInfo", &text(&image));
    let message = || "m".to_owned();
    for progress in [
        Progress::Resolved { digest: "d".into(), layers: 1, bytes: 1 },
        Progress::Blob { digest: "d".into(), done: 1, total: 2 },
        Progress::Unpacked { digest: "d".into() },
        Progress::Done { image },
        Progress::Failed { message: message() },
    ] {
        sound("Progress", &text(&progress));
        match progress {
            // one that is added is added to the list above and to the schema
            Progress::Resolved { .. }
            | Progress::Blob { .. }
            | Progress::Unpacked { .. }
            | Progress::Done { .. }
            | Progress::Failed { .. } => {}
        }
    }
    let usage = ContainerUsage { time: time(), ..ContainerUsage::default() };
    least("ContainerUsage", &text(&usage));
    sound(
        "ContainerUsage",
        &text(&ContainerUsage {
            cpu_limit_milli: Some(1),
            memory_limit_bytes: Some(1),
            io_read_bytes: Some(1),
            io_write_bytes: Some(1),
            network_receive_bytes: Some(1),
            network_transmit_bytes: Some(1),
            ..usage
        }),
    );
    let session = SessionStatus {
        id: "s".into(),
        kind: SessionKind::Exec,
        pod: "/a".into(),
        instance: "i".into(),
        container: "c".into(),
        command: vec!["sh".into()],
        tty: true,
        state: SessionState::Running,
        pid: None,
        exit: None,
        message: None,
        principal: "uid:0".into(),
        started_at: time(),
        finished_at: None,
        clients: 0,
        detach: false,
        stdin_bytes: 0,
        output_bytes: 0,
        recorded: false,
    };
    least("SessionStatus", &text(&session));
    sound(
        "SessionStatus",
        &text(&SessionStatus {
            pid: Some(1),
            exit: Some(ExitStatus::Code(0)),
            message: Some(message()),
            finished_at: Some(time()),
            ..session
        }),
    );
    let violation = Violation::new("a", "b");
    least("Violation", &text(&violation));
    let problem = Problem { status: 400, kind: "k".into(), detail: "d".into(), errors: vec![], request: None };
    least("Problem", &text(&problem));
    sound("Problem", &text(&Problem { errors: vec![violation], request: Some("r".into()), ..problem }));
    let stat = FileStat {
        name: "a".into(),
        kind: FileKind::File,
        size: 1,
        mode: 0o100_644,
        mtime: time(),
        uid: 0,
        gid: 0,
        link_target: None,
    };
    least("FileStat", &text(&stat));
    sound("FileStat", &text(&FileStat { link_target: Some("b".into()), ..stat }));
    least("FilesWritten", &text(&FilesWritten::default()));
}

/// Anything that is written as JSON.
mod erased {
    pub trait Json {
        fn json(&self) -> serde_json::Value;
    }

    impl<T: serde::Serialize> Json for T {
        fn json(&self) -> serde_json::Value {
            serde_json::to_value(self).unwrap()
        }
    }
}

#[test]
fn requests_are_as_they_are_described() {
    /// What is required is missed, and no more.
    fn needs<T: DeserializeOwned>(name: &str, least: &Value) {
        sound(name, least);
        assert!(serde_json::from_value::<T>(least.clone()).is_ok(), "{least}");
        for field in least.as_object().unwrap().keys() {
            let mut less = least.clone();
            less.as_object_mut().unwrap().remove(field);
            assert!(serde_json::from_value::<T>(less.clone()).is_err(), "{name} is read without {field}");
            assert!(!faults(schema(name), &less, name).is_empty(), "{name} is described without {field}");
        }
        let mut more = least.clone();
        more["surprise"] = 1.into();
        assert!(serde_json::from_value::<T>(more).is_err(), "{name}");
    }
    needs::<PullRequest>("PullRequest", &json!({"reference": "a"}));
    needs::<ImportRequest>("ImportRequest", &json!({"path": "/a"}));
    sound("PullRequest", &json!({"reference": "a", "force": true}));
    sound("ImportRequest", &json!({"path": "/a", "reference": "b"}));
    let full = json!({
        "container": "c", "instance": "i", "command": ["sh"], "tty": true, "rows": 24, "columns": 80, "stdin": true,
        "environment": {"A": "b"}, "user": "0", "workdir": "/", "capabilities": ["CAP_SYS_PTRACE"], "detach": true,
        "idleSeconds": 1, "maxSeconds": 1, "image": {"kind": "DOCKER", "id": "busybox"},
    });
    sound("ExecRequest", &full);
    let read = ExecRequest::parse(full.to_string().as_bytes()).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap().as_object().unwrap().len(), full.as_object().unwrap().len());
    sound("ExecRequest", &serde_json::to_value(&read).unwrap());
    sound(
        "ExecRequest",
        &serde_json::to_value(ExecRequest { command: vec!["a".into()], ..ExecRequest::default() }).unwrap(),
    );
    sound("SignalRequest", &json!({"signal": "TERM"}));
    sound("SignalRequest", &json!({"signal": 15}));
    sound("ResizeRequest", &json!({"rows": 1, "columns": 1}));
}
