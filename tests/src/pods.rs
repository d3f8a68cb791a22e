//! Pods for tests, as the JSON that a user would send.

use serde_json::{Value, json};

/// A pod of one container `main` without an image that runs a line of shell once, in a network namespace of its own.
pub fn shell(id: &str, line: &str) -> Value {
    once(id, json!({"name": "main", "exec": {"command": {"shell": line}}, "resources": resources()}))
}

/// The same with a program and its arguments.
pub fn argv(id: &str, words: &[&str]) -> Value {
    once(id, json!({"name": "main", "exec": {"command": {"argv": words}}, "resources": resources()}))
}

/// A pod of one container, given whole, that runs once in a network namespace of its own.
#[allow(clippy::needless_pass_by_value, reason = "callers write the container in place")]
pub fn once(id: &str, container: Value) -> Value {
    json!({"id": id, "containers": [container], "agentd": {"restart": "never", "isolatedNetwork": true}})
}

/// A pod that sleeps until it is removed, which it is at once: process 1 has no handler for SIGTERM.
pub fn sleeper(id: &str) -> Value {
    with_container(shell(id, "exec sleep 1000000"), |container| {
        container["lifecycle"] = json!({"killGracePeriodSeconds": 0.1});
    })
}

/// A tenth of a CPU, 64 MiB of memory, 32 MiB of disk.
pub fn resources() -> Value {
    json!({"cpus": 0.1, "mem": 64, "disk": 32})
}

/// Changes a pod: `change(pod, |container| …)` on its first container.
#[must_use]
pub fn with_container(mut pod: Value, change: impl FnOnce(&mut Value)) -> Value {
    change(&mut pod["containers"][0]);
    pod
}
