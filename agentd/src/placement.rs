//! What a pod asks of the place where it runs and what one host can promise: placement constraints, resource roles, GPUs.
//!
//! Every instance of a pod that is given to a daemon runs on its host. A constraint that cannot hold there is refused by
//! name instead of being passed over. The only attribute of a host is `hostname`; as for Marathon, a host without the
//! attribute that a constraint names satisfies `UNLIKE` alone.

use agentd_api::pod::{Constraint, ConstraintOperator, PodSpec};
use agentd_api::problem::Violation;
use regex::Regex;

/// The role that every host has.
const ANY_ROLE: &str = "*";

/// The attribute that every host has.
const HOSTNAME: &str = "hostname";

/// Names every field of the pod with which it cannot be placed on the host of this name.
pub fn check(pod: &PodSpec, hostname: &str, violations: &mut Vec<Violation>) {
    let placement = &pod.scheduling.placement;
    for (n, constraint) in placement.constraints.iter().enumerate() {
        let path = format!("scheduling.placement.constraints[{n}]");
        if let Err((field, message)) = holds(constraint, hostname, pod.scaling.instances) {
            violations.push(Violation::new(format!("{path}.{field}"), message));
        }
    }
    for (n, role) in placement.accepted_resource_roles.iter().enumerate() {
        if role != ANY_ROLE {
            let message =
                format!("found {role:?}, but this host's resources have the role \"*\" only; leave the others out");
            violations.push(Violation::new(format!("scheduling.placement.acceptedResourceRoles[{n}]"), message));
        }
    }
    for (n, container) in pod.containers.iter().enumerate() {
        let cure = "this agentd gives no GPUs to pods; leave it out, or run the pod on a host that does";
        if container.resources.gpus > 0 {
            let message = format!("found {}, but {cure}", container.resources.gpus);
            violations.push(Violation::new(format!("containers[{n}].resources.gpus"), message));
        }
        if let Some(share) = container.agentd.gpu.share {
            let message = format!("found {share}, but {cure}");
            violations.push(Violation::new(format!("containers[{n}].agentd.gpu.share"), message));
        }
    }
}

/// Whether a constraint holds with all instances on one host; else the field at fault and why.
fn holds(constraint: &Constraint, hostname: &str, instances: u32) -> Result<(), (&'static str, String)> {
    use ConstraintOperator as Operator;
    let field = &constraint.field_name;
    if field != HOSTNAME {
        if constraint.operator == Operator::Unlike {
            return Ok(());
        }
        let message = format!("found {field:?}, but this host has no attribute but hostname; leave the constraint out");
        return Err(("fieldName", message));
    }
    let value = constraint.value.as_deref();
    // the parser has seen to it that there is a number where one is needed
    let number = || value.and_then(|value| value.parse::<u32>().ok()).unwrap_or(u32::MAX);
    let crowded = |most: u32| {
        let message = format!(
            "all {instances} instances run on this one host, and the constraint allows {most}; \
             lower scaling.instances to {most} or leave the constraint out"
        );
        Err(("operator", message))
    };
    match constraint.operator {
        Operator::Unique if instances > 1 => crowded(1),
        Operator::MaxPer if instances > number() => crowded(number()),
        Operator::GroupBy if value.is_some() && number().min(instances) > 1 => crowded(1),
        Operator::Unique | Operator::MaxPer | Operator::GroupBy => Ok(()),
        Operator::Cluster => match value {
            Some(value) if value != hostname => Err((
                "value",
                format!("found {value:?}, but this host is {hostname:?}; name it or leave the value out"),
            )),
            _ => Ok(()),
        },
        Operator::Like | Operator::Unlike => {
            let text = value.unwrap_or_default();
            // the whole name must match, as for Marathon
            let expression = Regex::new(&format!("^(?:{text})$")).map_err(|error| {
                ("value", format!("found {text:?}, expected a regular expression: {}", reason(&error)))
            })?;
            if expression.is_match(hostname) == (constraint.operator == Operator::Like) {
                return Ok(());
            }
            let verb = if constraint.operator == Operator::Like { "does not match" } else { "matches" };
            Err((
                "value",
                format!("this host is {hostname:?}, which {verb} {text:?}; change the expression or the host"),
            ))
        }
    }
}

/// The last line of an error of the expression, which says what is wrong; those before it draw where.
fn reason(error: &regex::Error) -> String {
    let text = error.to_string();
    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(instances: u32, scheduling: &str, container: &str) -> Vec<String> {
        let json = format!(
            r#"{{"id":"/a","scaling":{{"instances":{instances}}},"scheduling":{{"placement":{scheduling}}},
                "containers":[{{"name":"c","exec":{{"command":{{"shell":"true"}}}},{container}}}]}}"#
        );
        let pod = agentd_api::parse::pod(json.as_bytes()).unwrap();
        let mut violations = Vec::new();
        check(&pod, "here", &mut violations);
        assert!(violations.iter().all(|violation| !violation.message.contains('\n')), "{violations:?}");
        violations.into_iter().map(|violation| violation.path).collect()
    }

    fn constraint(instances: u32, operator: &str, value: Option<&str>) -> Vec<String> {
        let value = value.map(|value| format!(r#","value":"{value}""#)).unwrap_or_default();
        let list = format!(r#"{{"constraints":[{{"fieldName":"hostname","operator":"{operator}"{value}}}]}}"#);
        let found = fields(instances, &list, r#""resources":{}"#);
        found.into_iter().map(|path| path.rsplit_once('.').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn constraints_hold_on_one_host_or_are_refused_by_field() {
        let holding = [
            (1, "UNIQUE", None),
            (0, "UNIQUE", None),
            (3, "CLUSTER", None),
            (3, "CLUSTER", Some("here")),
            (3, "GROUP_BY", None),
            (1, "GROUP_BY", Some("3")),
            (3, "LIKE", Some("h.*e")),
            (3, "UNLIKE", Some("her")),
            (2, "MAX_PER", Some("2")),
        ];
        for (instances, operator, value) in holding {
            assert!(constraint(instances, operator, value).is_empty(), "{instances} {operator} {value:?}");
        }
        let broken = [
            (2, "UNIQUE", None, "operator"),
            (1, "CLUSTER", Some("there"), "value"),
            (2, "GROUP_BY", Some("2"), "operator"),
            (1, "LIKE", Some("her"), "value"),
            (1, "LIKE", Some("("), "value"),
            (1, "UNLIKE", Some("here|there"), "value"),
            (3, "MAX_PER", Some("2"), "operator"),
        ];
        for (instances, operator, value, field) in broken {
            assert_eq!(constraint(instances, operator, value), [field], "{instances} {operator} {value:?}");
        }
    }

    #[test]
    fn attributes_roles_and_gpus_are_told_by_name() {
        let list = r#"{"constraints":[{"fieldName":"rack","operator":"UNIQUE"},
            {"fieldName":"rack","operator":"UNLIKE","value":"a"}],"acceptedResourceRoles":["*","public"]}"#;
        assert_eq!(
            fields(1, list, r#""resources":{"gpus":1}"#),
            [
                "scheduling.placement.constraints[0].fieldName",
                "scheduling.placement.acceptedResourceRoles[1]",
                "containers[0].resources.gpus"
            ]
        );
        assert_eq!(
            fields(1, "{}", r#""resources":{},"agentd":{"gpu":{"share":0.5}}"#),
            ["containers[0].agentd.gpu.share"]
        );
    }
}
