//! agentd as a contestant: pods through the local API.

use std::time::Instant;

use serde_json::{Value, json};

use super::harness::{Sample, milliseconds};
use super::oci;
use crate::http::{Client, segment};

/// The image of every contestant's containers.
pub const IMAGE: &str = "localhost/bench/true:latest";

/// A pod's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// A namespace with its loopback only, as the peers' containers have.
    Isolated,
    /// The daemon's bridge, with an address and firewall rules.
    Bridge,
}

/// A pod that ends by itself, or stays.
pub fn pod(id: &str, network: Network, containers: usize, words: &[&str]) -> Value {
    let containers: Vec<Value> = (0..containers)
        .map(|index| {
            json!({
                "name": format!("c{index}"),
                "image": {"kind": "DOCKER", "id": IMAGE},
                "exec": {"command": {"argv": words}},
                "resources": {"cpus": oci::CPUS, "mem": oci::MEMORY_MIB},
                "lifecycle": {"killGracePeriodSeconds": 2},
            })
        })
        .collect();
    let mut pod = json!({"id": id, "containers": containers, "agentd": {"restart": "never"}});
    match network {
        Network::Isolated => pod["agentd"]["isolatedNetwork"] = json!(true),
        Network::Bridge => pod["networks"] = json!([{"mode": "container"}]),
    }
    pod
}

/// Runs a pod to its end and removes it: milliseconds until its end is told, and of the whole.
pub fn run_to_end(client: &mut Client, id: &str, network: Network) -> Result<Sample, String> {
    let body = pod(id, network, 1, &["/bin/testbox", "true"]).to_string();
    let start = Instant::now();
    let answer = client.expect("POST", "/v1/pods?wait=finished", body.as_bytes(), &[201])?;
    let finished = milliseconds(start);
    remove(client, id)?;
    let whole = milliseconds(start);
    has_phase(&answer.json()?, "finished")?;
    Ok(vec![("finished", finished), ("whole", whole)])
}

/// Starts a pod of two containers that stay, and removes it.
pub fn start_and_remove(client: &mut Client, id: &str) -> Result<Sample, String> {
    let body = pod(id, Network::Isolated, 2, &["/bin/testbox", "hold"]).to_string();
    let start = Instant::now();
    let answer = client.expect("POST", "/v1/pods?wait=running", body.as_bytes(), &[201])?;
    let running = milliseconds(start);
    remove(client, id)?;
    let whole = milliseconds(start);
    has_phase(&answer.json()?, "running")?;
    Ok(vec![("running", running), ("whole", whole)])
}

/// Removes a pod and waits until it is gone.
pub fn remove(client: &mut Client, id: &str) -> Result<(), String> {
    client.expect("DELETE", &format!("/v1/pods/{}", segment(id)), b"", &[200, 202, 204]).map(|_| ())
}

/// Imports an archive; fails unless the last line of the stream says that it is done.
pub fn import(client: &mut Client, archive: &std::path::Path, reference: &str) -> Result<(), String> {
    let body = json!({"path": archive, "reference": reference}).to_string();
    let answer = client.expect("POST", "/v1/images/import", body.as_bytes(), &[200])?;
    let text = String::from_utf8_lossy(&answer.body);
    let last = text.lines().last().unwrap_or_default();
    let told: Value = serde_json::from_str(last).map_err(|error| format!("progress line '{last}': {error}"))?;
    if told["type"] == "done" { Ok(()) } else { Err(format!("import of {}: {last}", archive.display())) }
}

/// A pod that did not do what was measured is no measurement.
fn has_phase(status: &Value, expected: &str) -> Result<(), String> {
    let phase = status["instances"][0]["phase"].as_str().unwrap_or_default();
    if phase == expected { Ok(()) } else { Err(format!("the pod is '{phase}', expected '{expected}': {status}")) }
}
