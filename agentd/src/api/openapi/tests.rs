//! The document against the code: the routes, and every type that is read or written, both ways.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use agentd_api::files::{FileKind, FileStat, FilesWritten};
use agentd_api::message::{ContainerUsage, Event, ImageInfo, ImportRequest, NodeInfo, NodeResources, Progress, PullRequest};
use agentd_api::parse;
use agentd_api::pod;
use agentd_api::problem::{Problem, Violation};
use agentd_api::session::{ExecRequest, SessionKind, SessionState, SessionStatus};
use agentd_api::status::{
    ContainerStatus, EndpointStatus, ExitStatus, InstancePhase, InstanceStatus, PodStatus, Reason, TaskState,
};
use hyper::Method;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor, value};
use serde::forward_to_deserialize_any;
use serde_json::{Value, json};

use super::super::operations::{Holds, OPERATIONS, Operation};
use super::super::route::{Route, find};
use super::{SCHEMAS, field, fields, schema};

mod validator;
use validator::faults;

fn document() -> Value {
    serde_json::from_slice(&super::DOCUMENT).unwrap()
}

/// Every route; the match makes one that is added be added here.
fn routes() -> Vec<Route> {
    let id = || "/app".to_owned();
    let all = vec![
        Route::Node, Route::ListPods, Route::RunPod, Route::GetPod(id()), Route::UpdatePod(id()), Route::RemovePod(id()),
        Route::WaitPod(id()), Route::Logs(id()), Route::Events, Route::ListImages, Route::PullImage, Route::ImportImage,
        Route::RemoveImage(id()), Route::Version, Route::Health, Route::OpenApi, Route::Usage, Route::Exec(id()),
        Route::ReadFiles(id()), Route::WriteFiles(id()), Route::Forward(id()), Route::ListSessions,
        Route::GetSession(id()), Route::EndSession(id()), Route::Attach(id()), Route::WaitSession(id()),
        Route::SignalSession(id()), Route::ResizeSession(id()), Route::Recording(id()),
    ];
    for route in &all {
        match route {
            Route::Node | Route::ListPods | Route::RunPod | Route::GetPod(_) | Route::UpdatePod(_)
            | Route::RemovePod(_) | Route::WaitPod(_) | Route::Logs(_) | Route::Events | Route::ListImages
            | Route::PullImage | Route::ImportImage | Route::RemoveImage(_) | Route::Version | Route::Health
            | Route::OpenApi | Route::Usage | Route::Exec(_) | Route::ReadFiles(_) | Route::WriteFiles(_)
            | Route::Forward(_) | Route::ListSessions | Route::GetSession(_) | Route::EndSession(_)
            | Route::Attach(_) | Route::WaitSession(_) | Route::SignalSession(_) | Route::ResizeSession(_)
            | Route::Recording(_) => {}
            // not described here, see the tag
            Route::Mesos(_) => unreachable!(),
        }
    }
    all
}

#[test]
fn every_route_is_described_and_every_description_is_routed() {
    let document = document();
    let mut described = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let concrete = path.replace("{id}", "app").replace("{reference}", "%2Fapp").replace("{session}", "%2Fapp");
            let route = find(&method.to_ascii_uppercase().parse::<Method>().unwrap(), &concrete).unwrap();
            let of = Operation::of(&route).unwrap();
            assert_eq!((of.path, of.method.to_ascii_lowercase().as_str()), (path.as_str(), method.as_str()));
            let parameters = operation["parameters"].as_array().unwrap();
            let named = |place: &str| -> Vec<&str> {
                let those = parameters.iter().filter(|parameter| parameter["in"] == place);
                those.map(|parameter| parameter["name"].as_str().unwrap()).collect()
            };
            let taken: Vec<&str> = route.parameters().iter().map(|parameter| parameter.name).collect();
            assert_eq!(named("query"), taken, "{method} {path}");
            let braces: Vec<&str> = path.split('/').filter_map(|s| s.strip_prefix('{')?.strip_suffix('}')).collect();
            assert_eq!(named("path"), braces, "{method} {path}");
            assert_eq!(operation["requestBody"].is_object(), of.request.is_some());
            described.push(route);
        }
    }
    for route in routes() {
        assert!(described.contains(&route), "{route:?} is not described");
    }
    assert_eq!(described.len(), routes().len());
    assert!(document["tags"].as_array().unwrap().iter().any(|tag| {
        tag["name"] == "mesos" && tag["description"].as_str().unwrap().contains("docs/mesos-agent-api.md")
    }));
}

#[test]
fn the_document_is_sound() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    assert!(document["info"]["title"].is_string() && document["info"]["version"].is_string());
    let tags: BTreeSet<&str> =
        document["tags"].as_array().unwrap().iter().map(|tag| tag["name"].as_str().unwrap()).collect();
    let mut ids = BTreeSet::new();
    for methods in document["paths"].as_object().unwrap().values() {
        for operation in methods.as_object().unwrap().values() {
            assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{}", operation["operationId"]);
            assert!(tags.contains(operation["tags"][0].as_str().unwrap()), "{operation}");
            assert!(operation["summary"].as_str().is_some_and(|summary| !summary.is_empty()));
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.values().all(|response| response["description"].is_string()));
            assert!(responses.keys().any(|status| status.starts_with(['1', '2'])));
        }
    }
    let mut referred = BTreeSet::new();
    walk(&document, &mut |value| {
        if let Some(path) = value["$ref"].as_str() {
            let found = document.pointer(path.strip_prefix('#').unwrap());
            assert!(found.is_some(), "{path} leads nowhere");
            referred.insert(path.to_owned());
        }
    });
    for name in SCHEMAS.as_object().unwrap().keys() {
        assert!(referred.contains(&format!("#/components/schemas/{name}")), "nothing refers to {name}");
    }
    for operation in OPERATIONS {
        for content in operation.request.iter().chain(operation.answers.iter().flat_map(|answer| answer.content)) {
            if let Holds::One(name) | Holds::List(name) = content.holds {
                assert!(schema(name).is_object(), "{name}");
            }
        }
        for status in operation.refusals {
            assert_ne!(super::refused(*status), super::refused(400), "{status} has no line of its own");
        }
    }
}

fn walk(value: &Value, see: &mut impl FnMut(&Value)) {
    see(value);
    match value {
        Value::Object(object) => object.values().for_each(|value| walk(value, see)),
        Value::Array(items) => items.iter().for_each(|value| walk(value, see)),
        _ => {}
    }
}

/// Learns the names that a type is read with, which serde tells to whoever it reads from.
struct Probe<'a>(&'a RefCell<Vec<&'static str>>);

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, value::Error> {
        Err(value::Error::custom("not asked for"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, value::Error> {
        *self.0.borrow_mut() = fields.to_vec();
        self.deserialize_any(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, value::Error> {
        *self.0.borrow_mut() = variants.to_vec();
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map identifier ignored_any
    }
}

/// The fields of a struct, or the words of an enum, in alphabetical order.
fn names<T: DeserializeOwned>() -> Vec<&'static str> {
    let names = RefCell::default();
    assert!(T::deserialize(Probe(&names)).is_err());
    let mut names = names.into_inner();
    assert!(!names.is_empty(), "{} has no names", std::any::type_name::<T>());
    names.sort_unstable();
    names
}

/// The schemas of structs, each with the fields of its type.
fn structs() -> BTreeMap<&'static str, Vec<&'static str>> {
    BTreeMap::from([
        ("Pod", names::<pod::PodSpec>()), ("Secret", names::<pod::SecretSource>()), ("Network", names::<pod::Network>()),
        ("Volume", names::<pod::Volume>()), ("VolumeExtension", names::<pod::VolumeExtension>()),
        ("Scaling", names::<pod::Scaling>()), ("Scheduling", names::<pod::Scheduling>()),
        ("Backoff", names::<pod::Backoff>()), ("Upgrade", names::<pod::Upgrade>()),
        ("Placement", names::<pod::Placement>()), ("Constraint", names::<pod::Constraint>()),
        ("ExecutorResources", names::<pod::ExecutorResources>()), ("PodExtension", names::<pod::PodExtension>()),
        ("Dns", names::<pod::Dns>()), ("Container", names::<pod::Container>()), ("Exec", names::<pod::Exec>()),
        ("Resources", names::<pod::ContainerResources>()), ("Endpoint", names::<pod::Endpoint>()),
        ("Image", names::<pod::Image>()), ("HealthCheck", names::<pod::HealthCheck>()),
        ("HttpCheck", names::<pod::HttpCheck>()), ("TcpCheck", names::<pod::TcpCheck>()),
        ("ExecCheck", names::<pod::ExecCheck>()), ("VolumeMount", names::<pod::VolumeMount>()),
        ("MountExtension", names::<pod::MountExtension>()), ("Artifact", names::<pod::Artifact>()),
        ("Lifecycle", names::<pod::Lifecycle>()), ("ContainerExtension", names::<pod::ContainerExtension>()),
        ("Capabilities", names::<pod::CapabilityChange>()), ("Cpu", names::<pod::CpuExtension>()),
        ("Memory", names::<pod::MemoryExtension>()), ("Io", names::<pod::IoExtension>()),
        ("IoLimit", names::<pod::IoLimit>()), ("Log", names::<pod::LogExtension>()),
        ("Gpu", names::<pod::GpuExtension>()), ("Command", names::<pod::Command>()),
        ("PodStatus", names::<PodStatus>()), ("InstanceStatus", names::<InstanceStatus>()),
        ("ContainerStatus", names::<ContainerStatus>()), ("EndpointStatus", names::<EndpointStatus>()),
        ("NodeInfo", names::<NodeInfo>()), ("NodeResources", names::<NodeResources>()), ("Event", names::<Event>()),
        ("ImageInfo", names::<ImageInfo>()), ("PullRequest", names::<PullRequest>()),
        ("ImportRequest", names::<ImportRequest>()), ("ContainerUsage", names::<ContainerUsage>()),
        ("ExecRequest", names::<ExecRequest>()), ("SessionStatus", names::<SessionStatus>()),
        ("Problem", names::<Problem>()), ("Violation", names::<Violation>()), ("FileStat", names::<FileStat>()),
        ("FilesWritten", names::<FilesWritten>()),
        // read or written without a type of their own; the calls' tests read and write them
        ("EnvironmentSecret", vec!["secret"]), ("SeccompProfile", vec!["profile"]),
        ("UnreachableTimes", vec!["expungeAfterSeconds", "inactiveAfterSeconds"]), ("Version", vec!["api", "version"]),
        ("LogLine", vec!["container", "instance", "line", "stream", "time"]), ("SignalRequest", vec!["signal"]),
        ("ResizeRequest", vec!["columns", "rows"]),
    ])
}

/// The schemas that are no objects with fields.
const OTHERS: [&str; 8] = [
    "EnvironmentValue", "UnreachableStrategy", "Seccomp", "InstancePhase", "TaskState", "Reason", "ExitStatus", "Progress",
];

#[test]
fn every_schema_has_the_fields_of_its_type() {
    let structs = structs();
    for (name, found) in SCHEMAS.as_object().unwrap() {
        if OTHERS.contains(&name.as_str()) {
            continue;
        }
        let wanted = structs.get(name.as_str()).unwrap_or_else(|| panic!("no type is known for the schema {name}"));
        let properties: Vec<&str> = found["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(&properties, wanted, "{name}");
        assert_eq!(found["additionalProperties"], false, "{name}");
        for required in found["required"].as_array().into_iter().flatten() {
            assert!(properties.contains(&required.as_str().unwrap()), "{name} requires {required}, which it has not");
        }
    }
    assert_eq!(SCHEMAS.as_object().unwrap().len(), structs.len() + OTHERS.len());
}

#[test]
fn every_word_is_one_of_its_type() {
    let words = |path: &str| {
        let mut found: Vec<&str> =
            SCHEMAS.pointer(path).and_then(Value::as_array).unwrap_or_else(|| panic!("{path}")).iter()
                .map(|word| word.as_str().unwrap()).collect();
        found.sort_unstable();
        found
    };
    let typed = [
        ("/Network/properties/mode/enum", names::<pod::NetworkMode>()),
        ("/Scheduling/properties/killSelection/enum", names::<pod::KillSelection>()),
        ("/Constraint/properties/operator/enum", names::<pod::ConstraintOperator>()),
        ("/PodExtension/properties/restart/enum", names::<pod::RestartPolicy>()),
        ("/PodExtension/properties/restartScope/enum", names::<pod::RestartScope>()),
        ("/UnreachableStrategy/oneOf/0/enum", names::<pod::DisabledWord>()),
        ("/Endpoint/properties/protocol/items/enum", names::<pod::Protocol>()),
        ("/Image/properties/kind/enum", names::<pod::ImageKind>()),
        ("/InstancePhase/enum", names::<InstancePhase>()),
        ("/TaskState/enum", names::<TaskState>()),
        ("/Reason/enum", names::<Reason>()),
        ("/SessionStatus/properties/kind/enum", names::<SessionKind>()),
        ("/SessionStatus/properties/state/enum", names::<SessionState>()),
        ("/FileStat/properties/type/enum", names::<FileKind>()),
    ];
    for (path, wanted) in &typed {
        assert_eq!(&words(path), wanted, "{path}");
    }
    assert_eq!(names::<pod::SeccompChoice>(), ["default", "profile", "unconfined"]);
    assert_eq!(names::<ExitStatus>(), ["code", "signal", "unknown"]);
    // words without a type: seccomp's, the schemes, and what can only be one thing
    let mut count = 0;
    walk(&SCHEMAS, &mut |value| count += usize::from(value["enum"].is_array()));
    assert_eq!(count, typed.len() + 11, "a list of words was added: say here which type has them");
}

/// The schemas of one kind of object of a pod, by the title that the reference gives it.
fn of_pod(title: &str) -> Vec<&'static Value> {
    let mut here = vec![schema("Pod")];
    if title != "the pod" {
        for step in title.split('.') {
            let name = step.trim_end_matches("[]");
            here = here.into_iter().flat_map(|schema| field(schema, name)).collect();
        }
    }
    here
}

/// An empty object of this kind within a pod.
fn empty(title: &str) -> Value {
    let mut value = json!({});
    for step in title.split('.').rev().filter(|_| title != "the pod") {
        value = match step.strip_suffix("[]") {
            Some(name) => json!({name: [value]}),
            None => json!({if step == "*" { "A" } else { step }: value}),
        };
    }
    // which network it is decides what endpoints need; unreadable, it decides nothing
    if !title.starts_with("networks") {
        value["networks"] = json!([{"mode": 0}]);
    }
    value
}

#[test]
fn a_pod_is_described_as_it_is_read() {
    for object in parse::known_fields() {
        let title = object.object;
        let found: BTreeSet<&str> = of_pod(title).into_iter().flat_map(fields).collect();
        let known: BTreeSet<&str> = object.names.iter().copied().collect();
        assert_eq!(found, known, "{title}");
        if title == "containers[]" {
            // its rules between fields find more missing than is required
            continue;
        }
        let violations = parse::pod(empty(title).to_string().as_bytes()).err().unwrap_or_default();
        let missing = violations.iter().filter(|violation| violation.message.starts_with("missing; "));
        let missing: BTreeSet<String> = missing
            .filter_map(|violation| {
                let (parent, field) = violation.path.rsplit_once('.').unwrap_or(("the pod", &violation.path));
                let parent = parent.replace("[0]", "[]").replace(".A", ".*");
                (parent == title).then(|| field.to_owned())
            })
            .collect();
        let required: BTreeSet<String> = of_pod(title)
            .into_iter()
            .flat_map(super::parts)
            .flat_map(|part| part["required"].as_array().into_iter().flatten())
            .map(|name| name.as_str().unwrap().to_owned())
            .collect();
        assert_eq!(required, missing, "{title}");
    }
}

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

const FULL_POD: &str = include_str!("../../../api/tests/full-pod.json");

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
        name: "main".into(), state: TaskState::TaskStaging, reason: None, message: None, pid: None, exit: None, attempt: 0,
        healthy: None, started_at: None, finished_at: None, memory_peak_bytes: None, cgroup: None, endpoints: vec![],
    };
    let full = ContainerStatus {
        reason: Some(Reason::TaskGroupFailed), message: Some("m".into()), pid: Some(1), exit: Some(ExitStatus::Signal(9)),
        healthy: Some(true), started_at: Some(time()), finished_at: Some(time()), memory_peak_bytes: Some(1),
        cgroup: Some("/c".into()), endpoints: vec![endpoint.clone()], ..small.clone()
    };
    let instance = InstanceStatus {
        id: "0123456789ab".into(), phase: InstancePhase::Starting, message: None, addresses: vec![], init_pid: None,
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
    let more = InstanceStatus { message: Some("m".into()), addresses: vec!["a".into()], init_pid: Some(1), ..instance.clone() };
    sound("InstanceStatus", &text(&more));
    least("EndpointStatus", &text(&EndpointStatus { container_port: None, host_port: None, ..endpoint }));
    least("PodStatus", &text(&PodStatus { id: "/a".into(), spec, instances: vec![instance, more] }));
    let amounts = NodeResources::default();
    least("NodeResources", &text(&amounts));
    least("NodeInfo", &text(&NodeInfo {
        instance: "agentd".into(), hostname: "h".into(), version: "0".into(), kernel: "6".into(), boot_id: "b".into(),
        cgroups: "v2".into(), total: amounts, reserved: amounts, used: amounts, free: amounts, instances: 0,
    }));
    let event =
        Event { id: 1, time: time(), kind: "k".into(), pod: None, instance: None, container: None, message: "m".into() };
    least("Event", &text(&event));
    let whole = Event { pod: Some("/a".into()), instance: Some("i".into()), container: Some("c".into()), ..event };
    sound("Event", &text(&whole));
    let image = ImageInfo {
        reference: "r".into(), digest: "d".into(), size: 1, layers: 1, created_at: time(), in_use: true,
    };
    least("ImageInfo", &text(&image));
    let message = || "m".to_owned();
    for progress in [
        Progress::Resolved { digest: "d".into(), layers: 1, bytes: 1 }, Progress::Blob { digest: "d".into(), done: 1, total: 2 },
        Progress::Unpacked { digest: "d".into() }, Progress::Done { image }, Progress::Failed { message: message() },
    ] {
        sound("Progress", &text(&progress));
        match progress {
            // one that is added is added to the list above and to the schema
            Progress::Resolved { .. } | Progress::Blob { .. } | Progress::Unpacked { .. } | Progress::Done { .. }
            | Progress::Failed { .. } => {}
        }
    }
    let usage = ContainerUsage { time: time(), ..ContainerUsage::default() };
    least("ContainerUsage", &text(&usage));
    sound("ContainerUsage", &text(&ContainerUsage {
        cpu_limit_milli: Some(1), memory_limit_bytes: Some(1), io_read_bytes: Some(1), io_write_bytes: Some(1),
        network_receive_bytes: Some(1), network_transmit_bytes: Some(1), ..usage
    }));
    let session = SessionStatus {
        id: "s".into(), kind: SessionKind::Exec, pod: "/a".into(), instance: "i".into(), container: "c".into(),
        command: vec!["sh".into()], tty: true, state: SessionState::Running, pid: None, exit: None, message: None,
        principal: "uid:0".into(), started_at: time(), finished_at: None, clients: 0, detach: false, stdin_bytes: 0,
        output_bytes: 0, recorded: false,
    };
    least("SessionStatus", &text(&session));
    sound("SessionStatus", &text(&SessionStatus {
        pid: Some(1), exit: Some(ExitStatus::Code(0)), message: Some(message()), finished_at: Some(time()), ..session
    }));
    let violation = Violation::new("a", "b");
    least("Violation", &text(&violation));
    let problem =
        Problem { status: 400, kind: "k".into(), detail: "d".into(), errors: vec![], request: None };
    least("Problem", &text(&problem));
    sound("Problem", &text(&Problem { errors: vec![violation], request: Some("r".into()), ..problem }));
    let stat = FileStat {
        name: "a".into(), kind: FileKind::File, size: 1, mode: 0o100_644, mtime: time(), uid: 0, gid: 0, link_target: None,
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
    sound("ExecRequest", &serde_json::to_value(ExecRequest { command: vec!["a".into()], ..ExecRequest::default() }).unwrap());
    sound("SignalRequest", &json!({"signal": "TERM"}));
    sound("SignalRequest", &json!({"signal": 15}));
    sound("ResizeRequest", &json!({"rows": 1, "columns": 1}));
}
