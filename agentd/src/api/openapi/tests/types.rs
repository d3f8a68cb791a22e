//! Every schema has the fields, the required ones and the words of its type, and no others.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use agentd_api::files::{FileKind, FileStat, FilesWritten};
use agentd_api::message::{
    ContainerUsage, Event, ImageInfo, ImportRequest, NodeInfo, NodeResources, Observation, ObservedMap,
    ObservedProgram, ObservedSignal, PullRequest,
};
use agentd_api::problem::{Problem, Violation};
use agentd_api::session::{ExecRequest, SessionKind, SessionState, SessionStatus};
use agentd_api::status::{
    ContainerStatus, EndpointStatus, ExitStatus, InstancePhase, InstanceStatus, PodStatus, Reason, TaskState,
};
use agentd_api::{parse, pod};
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor, value};
use serde::forward_to_deserialize_any;
use serde_json::{Value, json};

use super::super::{SCHEMAS, field, fields, parts, schema};
use super::walk;

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
        ("Pod", names::<pod::PodSpec>()),
        ("Secret", names::<pod::SecretSource>()),
        ("Network", names::<pod::Network>()),
        ("Volume", names::<pod::Volume>()),
        ("VolumeExtension", names::<pod::VolumeExtension>()),
        ("Scaling", names::<pod::Scaling>()),
        ("Scheduling", names::<pod::Scheduling>()),
        ("Backoff", names::<pod::Backoff>()),
        ("Upgrade", names::<pod::Upgrade>()),
        ("Placement", names::<pod::Placement>()),
        ("Constraint", names::<pod::Constraint>()),
        ("ExecutorResources", names::<pod::ExecutorResources>()),
        ("PodExtension", names::<pod::PodExtension>()),
        ("Dns", names::<pod::Dns>()),
        ("Container", names::<pod::Container>()),
        ("Exec", names::<pod::Exec>()),
        ("Resources", names::<pod::ContainerResources>()),
        ("Endpoint", names::<pod::Endpoint>()),
        ("Image", names::<pod::Image>()),
        ("HealthCheck", names::<pod::HealthCheck>()),
        ("HttpCheck", names::<pod::HttpCheck>()),
        ("TcpCheck", names::<pod::TcpCheck>()),
        ("ExecCheck", names::<pod::ExecCheck>()),
        ("VolumeMount", names::<pod::VolumeMount>()),
        ("MountExtension", names::<pod::MountExtension>()),
        ("Artifact", names::<pod::Artifact>()),
        ("Lifecycle", names::<pod::Lifecycle>()),
        ("ContainerExtension", names::<pod::ContainerExtension>()),
        ("Capabilities", names::<pod::CapabilityChange>()),
        ("Cpu", names::<pod::CpuExtension>()),
        ("Memory", names::<pod::MemoryExtension>()),
        ("Io", names::<pod::IoExtension>()),
        ("IoLimit", names::<pod::IoLimit>()),
        ("Log", names::<pod::LogExtension>()),
        ("Gpu", names::<pod::GpuExtension>()),
        ("Command", names::<pod::Command>()),
        ("PodStatus", names::<PodStatus>()),
        ("InstanceStatus", names::<InstanceStatus>()),
        ("ContainerStatus", names::<ContainerStatus>()),
        ("EndpointStatus", names::<EndpointStatus>()),
        ("NodeInfo", names::<NodeInfo>()),
        ("NodeResources", names::<NodeResources>()),
        ("Event", names::<Event>()),
        ("ImageInfo", names::<ImageInfo>()),
        ("PullRequest", names::<PullRequest>()),
        ("ImportRequest", names::<ImportRequest>()),
        ("ContainerUsage", names::<ContainerUsage>()),
        ("Observation", names::<Observation>()),
        ("ObservedSignal", names::<ObservedSignal>()),
        ("ObservedProgram", names::<ObservedProgram>()),
        ("ObservedMap", names::<ObservedMap>()),
        ("ExecRequest", names::<ExecRequest>()),
        ("SessionStatus", names::<SessionStatus>()),
        ("Problem", names::<Problem>()),
        ("Violation", names::<Violation>()),
        ("FileStat", names::<FileStat>()),
        ("FilesWritten", names::<FilesWritten>()),
        // read or written without a type of their own; the calls' tests read and write them
        ("EnvironmentSecret", vec!["secret"]),
        ("Measurements", vec!["scopes", "time"]),
        ("MeasuredScope", vec!["labels", "metrics", "resource", "start"]),
        ("Metric", vec!["help", "kind", "name", "points", "prometheus", "unit"]),
        ("MetricPoint", vec!["buckets", "count", "labels", "sum", "value"]),
        ("MetricBucket", vec!["count", "le"]),
        ("SeccompProfile", vec!["profile"]),
        ("UnreachableTimes", vec!["expungeAfterSeconds", "inactiveAfterSeconds"]),
        ("Version", vec!["api", "version"]),
        ("LogLine", vec!["container", "instance", "line", "stream", "time"]),
        ("SignalRequest", vec!["signal"]),
        ("ResizeRequest", vec!["columns", "rows"]),
    ])
}

/// The schemas that are no objects with fields.
const OTHERS: [&str; 8] = [
    "EnvironmentValue",
    "UnreachableStrategy",
    "Seccomp",
    "InstancePhase",
    "TaskState",
    "Reason",
    "ExitStatus",
    "Progress",
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
        let mut found: Vec<&str> = SCHEMAS
            .pointer(path)
            .and_then(Value::as_array)
            .unwrap_or_else(|| panic!("{path}"))
            .iter()
            .map(|word| word.as_str().unwrap())
            .collect();
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
    // words without a type: seccomp's, the schemes, what can only be one thing, rungs and kinds of metrics
    let mut count = 0;
    walk(&SCHEMAS, &mut |value| count += usize::from(value["enum"].is_array()));
    assert_eq!(count, typed.len() + 13, "a list of words was added: say here which type has them");
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
            .flat_map(parts)
            .flat_map(|part| part["required"].as_array().into_iter().flatten())
            .map(|name| name.as_str().unwrap().to_owned())
            .collect();
        assert_eq!(required, missing, "{title}");
    }
}
