//! A valid pod gets its defaults, and what it serializes to reads back as the same pod.

use agentd_api::parse;
use agentd_api::pod::{
    Command, EnvValue, KillSelection, NetworkMode, PodSpec, Protocol, RestartPolicy, RestartScope, SeccompChoice,
    UnreachableStrategy,
};
use agentd_api::resources::Resources;

const FULL: &str = include_str!("full-pod.json");
const MINIMAL: &str = r#"{"id":"/a","containers":[{"name":"a","resources":{},"exec":{"command":{"shell":"true"}}}]}"#;

fn read(json: &str) -> PodSpec {
    parse::pod(json.as_bytes()).unwrap_or_else(|violations| panic!("{violations:#?}"))
}

fn reads_back(spec: &PodSpec) {
    let value = serde_json::to_value(spec).unwrap();
    assert_eq!(parse::pod_value(&value).as_ref(), Ok(spec));
    assert_eq!(parse::pod(value.to_string().as_bytes()).as_ref(), Ok(spec));
    assert_eq!(parse::pod(&serde_json::to_vec_pretty(spec).unwrap()).as_ref(), Ok(spec));
    // Checkpoints are read without the rules.
    assert_eq!(&serde_json::from_value::<PodSpec>(value).unwrap(), spec);
}

#[test]
fn a_minimal_pod_gets_marathons_defaults() {
    let spec = read(MINIMAL);
    assert_eq!(spec.scaling.instances, 1);
    assert_eq!(spec.scaling.kind, "fixed");
    let scheduling = &spec.scheduling;
    assert_eq!(
        (scheduling.backoff.backoff, scheduling.backoff.backoff_factor, scheduling.backoff.max_launch_delay),
        (1.0, 1.15, 3600.0)
    );
    assert_eq!((scheduling.upgrade.minimum_health_capacity, scheduling.upgrade.maximum_over_capacity), (1.0, 1.0));
    assert_eq!(scheduling.kill_selection, KillSelection::YoungestFirst);
    assert_eq!(scheduling.unreachable_strategy, None);
    let executor = &spec.executor_resources;
    assert_eq!((executor.cpus, executor.mem, executor.disk), (0.1, 32.0, 10.0));
    let resources = &spec.containers[0].resources;
    assert_eq!((resources.cpus, resources.mem, resources.disk, resources.gpus), (1.0, 128.0, 0.0, 0));
    assert_eq!(spec.agentd, agentd_api::pod::PodExtension::default());
    assert_eq!(spec.containers[0].agentd, agentd_api::pod::ContainerExtension::default());
    assert!(spec.networks.is_empty());
    reads_back(&spec);
}

#[test]
fn defaults_within_objects_that_are_given() {
    let spec = read(
        r#"{"id":"/a","networks":[{}],"scheduling":{"unreachableStrategy":{},"backoff":{"backoff":7}},
            "containers":[{"name":"a","resources":{"mem":64},"image":{"kind":"DOCKER","id":"x"},
              "endpoints":[{"name":"p","containerPort":80}],"healthCheck":{"tcp":{"endpoint":"p"}}}]}"#,
    );
    assert_eq!(spec.networks[0].mode, NetworkMode::Container);
    assert_eq!((spec.scheduling.backoff.backoff, spec.scheduling.backoff.backoff_factor), (7.0, 1.15));
    assert_eq!(
        spec.scheduling.unreachable_strategy,
        Some(UnreachableStrategy::After { inactive_after_seconds: 0.0, expunge_after_seconds: 0.0 })
    );
    let container = &spec.containers[0];
    assert_eq!((container.resources.cpus, container.resources.mem), (1.0, 64.0));
    assert!(!container.image.as_ref().unwrap().force_pull);
    assert_eq!(container.endpoints[0].protocol, [Protocol::Tcp]);
    assert_eq!(container.endpoints[0].host_port, None);
    let check = container.health_check.as_ref().unwrap();
    assert_eq!(
        (check.grace_period_seconds, check.interval_seconds, check.timeout_seconds, check.delay_seconds),
        (300.0, 60.0, 20.0, 15.0)
    );
    assert_eq!(check.max_consecutive_failures, 3);
    reads_back(&spec);
}

#[test]
fn the_full_pod_keeps_every_field() {
    let spec = read(FULL);
    let web = &spec.containers[0];
    assert_eq!(spec.id, "/shop/web.front");
    assert_eq!(spec.user.as_deref(), Some("1000:100"));
    assert_eq!(spec.environment["_TOKEN"], EnvValue::Secret { secret: "token".into() });
    assert_eq!(spec.volumes[2].agentd.tmpfs_mib, Some(64));
    assert_eq!(spec.scheduling.placement.constraints.len(), 8);
    assert_eq!(spec.agentd.restart, RestartPolicy::OnFailure);
    assert_eq!(spec.agentd.restart_scope, RestartScope::Container);
    let argv = ["serve", "--port", "8080", ""].map(str::to_owned).to_vec();
    assert_eq!(web.exec.as_ref().unwrap().command, Command::Argv(argv));
    assert_eq!(web.endpoints[1].protocol, [Protocol::Udp, Protocol::Tcp]);
    assert_eq!(web.agentd.capabilities.add, ["NET_RAW", "SYS_PTRACE"]);
    assert_eq!(web.agentd.capabilities.drop, ["ALL"]);
    assert_eq!(web.agentd.seccomp, SeccompChoice::Profile("web.json".into()));
    assert_eq!(web.agentd.rlimits["core"], [0, -1]);
    assert_eq!(web.agentd.gpu.share, Some(0.25));
    assert_eq!(spec.containers[1].agentd.cpu.limit, Some(0.0));
    reads_back(&spec);

    // Everything that was written is there again, in the form that is kept.
    let mut written: serde_json::Value = serde_json::from_str(FULL).unwrap();
    let capabilities = &mut written["containers"][0]["agentd"]["capabilities"];
    *capabilities = serde_json::json!({"add": ["NET_RAW", "SYS_PTRACE"], "drop": ["ALL"]});
    contains(&serde_json::to_value(&spec).unwrap(), &written, "");
}

/// Every field of `written` is in `kept`, unless it says the default, which is left out.
fn contains(kept: &serde_json::Value, written: &serde_json::Value, path: &str) {
    use serde_json::Value;
    match (kept, written) {
        (Value::Object(kept), Value::Object(written)) => {
            for (key, value) in written {
                match kept.get(key) {
                    Some(other) => contains(other, value, &format!("{path}.{key}")),
                    None => assert!(value == false || value == "default", "{path}.{key} is lost"),
                }
            }
        }
        (Value::Array(kept), Value::Array(written)) => {
            assert_eq!(kept.len(), written.len(), "{path}");
            for (index, (kept, written)) in kept.iter().zip(written).enumerate() {
                contains(kept, written, &format!("{path}[{index}]"));
            }
        }
        (Value::Number(kept), Value::Number(written)) => {
            assert_eq!(kept.as_f64(), written.as_f64(), "{path}");
        }
        _ => assert_eq!(kept, written, "{path}"),
    }
}

#[test]
fn every_known_field_is_in_the_full_pod() {
    // So that the test above speaks for every field.
    for fields in parse::known_fields() {
        for name in fields.names {
            assert!(FULL.contains(&format!("\"{name}\"")), "{} {name} is not in full-pod.json", fields.object);
        }
    }
}

#[test]
fn explicit_nulls_are_absent() {
    let spec = read(
        r#"{"id":"/a","labels":null,"user":null,"environment":{"A":null},"networks":null,"scaling":null,
            "agentd":{"dns":null,"restart":null},
            "containers":[{"name":"a","image":null,"resources":{"cpus":null},"healthCheck":null,
              "exec":{"command":{"shell":"true","argv":null},"overrideEntrypoint":null}}]}"#,
    );
    assert_eq!(spec, read(MINIMAL));
}

#[test]
fn whole_numbers_may_be_written_with_a_point() {
    let spec = read(&MINIMAL.replace(r#""id":"/a""#, r#""id":"/a","scaling":{"instances":2.0}"#));
    assert_eq!(spec.scaling.instances, 2);
}

#[test]
fn modes_of_the_network() {
    for (networks, endpoint) in [
        ("", r#"{"name":"p","hostPort":8080}"#),
        (r#","networks":[]"#, r#"{"name":"p","hostPort":0}"#),
        (r#","networks":[{"mode":"host"}]"#, r#"{"name":"p","hostPort":0}"#),
        (r#","networks":[{"mode":"container"}]"#, r#"{"name":"p","containerPort":80,"hostPort":0}"#),
        (r#","networks":[{"name":"a"},{"name":"b"},{}]"#, r#"{"name":"p","containerPort":80}"#),
        (r#","agentd":{"isolatedNetwork":true}"#, r#"{"name":"p","containerPort":80}"#),
    ] {
        let json = MINIMAL.replace(r#""resources":{}"#, &format!(r#""resources":{{}},"endpoints":[{endpoint}]"#));
        let json = json.replace(r#""id":"/a""#, &format!(r#""id":"/a"{networks}"#));
        reads_back(&read(&json));
    }
}

#[test]
fn the_need_of_the_full_pod() {
    let need = Resources::of_pod(&read(FULL));
    assert_eq!(
        need,
        Resources {
            cpus_milli: 200 + 2000 + 100 + 1000,
            mem_kib: (64 + 128 + 128) * 1024 + 512 * 1024 + 512,
            disk_kib: (20 + 1024) * 1024,
            gpus_milli: 1250,
        }
    );
}
