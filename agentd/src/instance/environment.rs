//! The variables that agentd provides to a container, in the words of Marathon and Mesos.

use agentd_api::pod::{Container, EnvValue, PodSpec};
use agentd_isolators::network::EndpointPort;
use agentd_isolators::rootfs::SANDBOX;

use crate::secrets::Secret;

/// What the variables are made of.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The pod.
    pub pod: &'a PodSpec,
    /// The container.
    pub container: &'a Container,
    /// Id of the instance.
    pub instance: &'a str,
    /// Host name of the host.
    pub host: &'a str,
    /// Endpoints of the pod with their ports.
    pub endpoints: &'a [EndpointPort],
}

/// agentd's variables, then the pod's, then the container's: of two with one name the later holds.
///
/// `secret` resolves a secret's name in the pod; its error names what is wrong with the secret.
pub fn build(facts: Facts<'_>, secret: &dyn Fn(&str) -> Result<Secret, String>) -> Result<Vec<Vec<u8>>, String> {
    let mut env = Vec::new();
    let mut set = |name: &str, value: &[u8]| {
        env.push([name.as_bytes(), b"=", value].concat());
    };
    let Facts { pod, container, instance, host, endpoints } = facts;
    set("HOST", host.as_bytes());
    set("MESOS_SANDBOX", SANDBOX.as_bytes());
    set("MESOS_TASK_ID", format!("{}.{instance}.{}", task_prefix(&pod.id), container.name).as_bytes());
    set("MARATHON_APP_ID", pod.id.as_bytes());
    if let Some(version) = &pod.version {
        set("MARATHON_APP_VERSION", version.as_bytes());
    }
    let mut labels = pod.labels.clone();
    labels.extend(container.labels.clone());
    let names: Vec<String> = labels.keys().map(|name| variable(name)).collect();
    set("MARATHON_APP_LABELS", names.join(" ").as_bytes());
    for (name, value) in &labels {
        set(&format!("MARATHON_APP_LABEL_{}", variable(name)), value.as_bytes());
    }
    for endpoint in endpoints.iter().filter(|e| e.container == container.name) {
        let name = variable(&endpoint.endpoint);
        if let Some(port) = endpoint.container_port {
            set(&format!("EP_CONTAINER_{name}"), port.to_string().as_bytes());
        }
        if let Some(port) = endpoint.host_port {
            set(&format!("EP_HOST_{name}"), port.to_string().as_bytes());
        }
        // the port on which the program is to listen: its own namespace's
        if let Some(port) = endpoint.container_port.or(endpoint.host_port) {
            set(&format!("ENDPOINT_{name}"), port.to_string().as_bytes());
        }
    }
    for (path, list) in [("environment", &pod.environment), ("environment of the container", &container.environment)] {
        for (name, value) in list {
            match value {
                EnvValue::Plain(text) => set(name, text.as_bytes()),
                EnvValue::Secret { secret: wanted } => {
                    let value = secret(wanted).map_err(|e| format!("{path}.{name}: {e}"))?;
                    set(name, value.env_value().map_err(|e| format!("{path}.{name}: {e}"))?.as_bytes());
                }
            }
        }
    }
    Ok(env)
}

/// `/a/b` as Mesos task ids spell it.
fn task_prefix(pod: &str) -> String {
    pod.trim_start_matches('/').replace('/', "_")
}

/// A name as part of a variable's: upper case, everything but letters and digits becomes `_`.
fn variable(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_containers_word_is_the_last_and_endpoints_are_named() {
        let pod = agentd_api::parse::pod(
            br#"{"id":"/a/b","labels":{"x-y":"1"},"environment":{"A":"pod","B":"pod"},
                "networks":[{"mode":"container"}],
                "containers":[{"name":"c","exec":{"command":{"shell":"true"}},"resources":{"cpus":0.1,"mem":32},
                  "environment":{"A":"container"},
                  "endpoints":[{"name":"web-1","containerPort":80,"hostPort":0}]}]}"#,
        )
        .unwrap();
        let endpoints = [EndpointPort {
            container: "c".into(),
            endpoint: "web-1".into(),
            container_port: Some(80),
            host_port: Some(31005),
            protocols: Vec::new(),
        }];
        let facts = Facts { pod: &pod, container: &pod.containers[0], instance: "i", host: "h", endpoints: &endpoints };
        let env = build(facts, &|_| Err("no secret is wanted".to_owned())).unwrap();
        let last = |name: &str| {
            let prefix = format!("{name}=");
            env.iter()
                .rev()
                .find_map(|e| e.strip_prefix(prefix.as_bytes()))
                .map(|v| String::from_utf8_lossy(v).into_owned())
        };
        assert_eq!(last("A").as_deref(), Some("container"));
        assert_eq!(last("B").as_deref(), Some("pod"));
        assert_eq!(last("ENDPOINT_WEB_1").as_deref(), Some("80"));
        assert_eq!(last("EP_HOST_WEB_1").as_deref(), Some("31005"));
        assert_eq!(last("MARATHON_APP_LABEL_X_Y").as_deref(), Some("1"));
        assert_eq!(last("MESOS_TASK_ID").as_deref(), Some("a_b.i.c"));
    }
}
