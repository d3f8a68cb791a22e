//! Readers of the pod itself and of what it holds beside its containers.

use std::collections::BTreeMap;

use super::container::container;
use super::extension::{pod_extension, volume_extension};
use super::fields;
use super::format;
use super::network::network;
use super::reader::Place;
use crate::pod::{
    Backoff, Constraint, ConstraintOperator, DisabledWord, EnvValue, ExecutorResources, KillSelection, Placement,
    PodSpec, Scaling, Scheduling, SecretSource, UnreachableStrategy, Upgrade, Volume,
};

/// Bounds that no real pod meets; beyond them a number is a slip, and sums would lose exactness.
pub(super) mod most {
    /// CPUs.
    pub const CPUS: f64 = 65_536.0;
    /// MiB of memory or disk: 1 EiB.
    pub const MIB: f64 = (1_u64 << 40) as f64;
    /// Seconds: about 30 years.
    pub const SECONDS: f64 = 1e9;
    /// Instances, attempts, GPUs.
    pub const COUNT: i64 = 1_000_000;
}

/// The pod.
pub(super) fn pod(at: &Place) -> PodSpec {
    let o = at.object(&fields::POD);
    PodSpec {
        id: o.at("id").required("the id of the pod, such as \"/app\"").text(format::pod_id).unwrap_or_default(),
        labels: labels(&o.at("labels")),
        version: o.at("version").text(format::date_time),
        user: o.at("user").text(format::user),
        environment: environment(&o.at("environment")),
        secrets: o.at("secrets").map(format::filled, |secret| secret.optional(self::secret)),
        networks: o.at("networks").list(network),
        volumes: o.at("volumes").list(volume),
        scaling: scaling(&o.at("scaling")),
        scheduling: scheduling(&o.at("scheduling")),
        executor_resources: executor_resources(&o.at("executorResources")),
        containers: o.at("containers").required("a list of at least one container").list(container),
        agentd: pod_extension(&o.at("agentd")),
    }
}

/// Labels of anything.
pub(super) fn labels(at: &Place) -> BTreeMap<String, String> {
    at.map(format::filled, |label| label.text(format::any))
}

/// Environment of a pod or a container.
pub(super) fn environment(at: &Place) -> BTreeMap<String, EnvValue> {
    at.map(format::env_name, |value| {
        value.optional(|value| {
            if value.is_object() {
                let o = value.object(&fields::ENV_SECRET);
                let name = o.at("secret").required("the name of a secret of the pod").text(format::filled);
                EnvValue::Secret { secret: name.unwrap_or_default() }
            } else {
                EnvValue::Plain(value.text_or("a string (quote it) or {\"secret\": \"name\"}").unwrap_or_default())
            }
        })
    })
}

fn secret(at: &Place) -> SecretSource {
    let o = at.object(&fields::SECRET);
    let source = o.at("source").required("the name of a file in the secrets folder or of a systemd credential");
    SecretSource { source: source.text(format::file_name).unwrap_or_default() }
}

fn volume(at: &Place) -> Volume {
    let o = at.object(&fields::VOLUME);
    Volume {
        name: o.at("name").required("the name of the volume").text(format::name).unwrap_or_default(),
        host: o.at("host").text(format::absolute_path),
        agentd: volume_extension(&o.at("agentd")),
    }
}

fn scaling(at: &Place) -> Scaling {
    let o = at.object(&fields::SCALING);
    let default = Scaling::default();
    Scaling {
        kind: o.at("kind").word(&[("fixed", "fixed")]).map_or(default.kind, str::to_owned),
        instances: o.at("instances").whole(0..=most::COUNT).map_or(default.instances, |count| count as u32),
    }
}

fn scheduling(at: &Place) -> Scheduling {
    let o = at.object(&fields::SCHEDULING);
    Scheduling {
        backoff: backoff(&o.at("backoff")),
        upgrade: upgrade(&o.at("upgrade")),
        placement: placement(&o.at("placement")),
        kill_selection: o
            .at("killSelection")
            .word(&[("YOUNGEST_FIRST", KillSelection::YoungestFirst), ("OLDEST_FIRST", KillSelection::OldestFirst)])
            .unwrap_or_default(),
        unreachable_strategy: o.at("unreachableStrategy").optional(unreachable_strategy),
    }
}

fn backoff(at: &Place) -> Backoff {
    let o = at.object(&fields::BACKOFF);
    let default = Backoff::default();
    Backoff {
        backoff: o.at("backoff").number(0.0..=most::SECONDS).unwrap_or(default.backoff),
        backoff_factor: o.at("backoffFactor").number(1.0..=1000.0).unwrap_or(default.backoff_factor),
        max_launch_delay: o.at("maxLaunchDelay").number(0.0..=most::SECONDS).unwrap_or(default.max_launch_delay),
    }
}

fn upgrade(at: &Place) -> Upgrade {
    let o = at.object(&fields::UPGRADE);
    let default = Upgrade::default();
    let part = |name, default| o.at(name).number(0.0..=1.0).unwrap_or(default);
    Upgrade {
        minimum_health_capacity: part("minimumHealthCapacity", default.minimum_health_capacity),
        maximum_over_capacity: part("maximumOverCapacity", default.maximum_over_capacity),
    }
}

fn placement(at: &Place) -> Placement {
    let o = at.object(&fields::PLACEMENT);
    Placement {
        constraints: o.at("constraints").list_of(constraint),
        accepted_resource_roles: o.at("acceptedResourceRoles").set_of(|role| role.text(format::filled)),
    }
}

/// A constraint without a known operator is left out: no rule could say more about it.
fn constraint(at: &Place) -> Option<Constraint> {
    use ConstraintOperator as Op;
    let o = at.object(&fields::CONSTRAINT);
    let field_name = o.at("fieldName").required("the name of an attribute, or \"hostname\"").text(format::filled);
    let operator = o.at("operator").required("an operator, such as \"UNIQUE\"").word(&[
        ("UNIQUE", Op::Unique),
        ("CLUSTER", Op::Cluster),
        ("GROUP_BY", Op::GroupBy),
        ("LIKE", Op::Like),
        ("UNLIKE", Op::Unlike),
        ("MAX_PER", Op::MaxPer),
    ]);
    let value = o.at("value");
    let text = value.text(format::filled);
    match (operator?, &text) {
        (Op::Unique, Some(_)) => value.fault("UNIQUE takes no value; remove it"),
        (Op::Like | Op::Unlike, None) if !value.is_present() => {
            value.fault("missing; expected a regular expression");
        }
        (Op::MaxPer, None) if !value.is_present() => {
            value.fault("missing; expected a whole number as text, such as \"2\"");
        }
        (Op::MaxPer | Op::GroupBy, Some(text)) if !text.parse::<u32>().is_ok_and(|number| number > 0) => {
            value.fault(format!(
                "found {}, expected a whole number above 0 as text, such as \"2\"",
                format::quoted(text)
            ));
        }
        _ => {}
    }
    Some(Constraint { field_name: field_name.unwrap_or_default(), operator: operator?, value: text })
}

fn unreachable_strategy(at: &Place) -> UnreachableStrategy {
    if at.is_text() {
        at.word(&[("disabled", ())]);
        return UnreachableStrategy::Disabled(DisabledWord::Disabled);
    }
    let o = at.object(&fields::UNREACHABLE);
    let expunge = o.at("expungeAfterSeconds").number(0.0..=most::SECONDS);
    let inactive = o.at("inactiveAfterSeconds").number(0.0..=most::SECONDS);
    UnreachableStrategy::After {
        inactive_after_seconds: inactive.unwrap_or(0.0),
        expunge_after_seconds: expunge.unwrap_or(0.0),
    }
}

fn executor_resources(at: &Place) -> ExecutorResources {
    let o = at.object(&fields::EXECUTOR_RESOURCES);
    // The defaults are the least, too.
    let least = ExecutorResources::default();
    ExecutorResources {
        cpus: o.at("cpus").number(least.cpus..=most::CPUS).unwrap_or(least.cpus),
        mem: o.at("mem").number(least.mem..=most::MIB).unwrap_or(least.mem),
        disk: o.at("disk").number(least.disk..=most::MIB).unwrap_or(least.disk),
    }
}
