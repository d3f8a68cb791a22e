//! Networks, and the ports of endpoints in each mode.

use std::collections::{BTreeMap, BTreeSet};

use super::unique;
use crate::parse::format::quoted;
use crate::parse::report::Report;
use crate::pod::{NetworkMode, PodSpec};

/// Where the pod's ports are.
#[derive(Clone, Copy, PartialEq)]
enum Ports {
    /// In the host's network namespace.
    Host,
    /// In the pod's own, joined to networks.
    Container,
    /// In the pod's own, which has only loopback.
    Isolated,
}

pub(super) fn check(pod: &PodSpec, report: &Report) {
    networks(pod, report);
    endpoints(pod, report);
}

fn networks(pod: &PodSpec, report: &Report) {
    let mut modes = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for (index, network) in pod.networks.iter().enumerate() {
        let path = format!("networks[{index}]");
        let name = format!("{path}.name");
        if report.at_fault(&format!("{path}.mode")) {
            continue;
        }
        let host = network.mode == NetworkMode::Host;
        modes.insert(host);
        if host {
            if network.name.is_some() {
                report.rule(&name, "the host network has no name; remove it, or use mode container");
            }
            if !network.labels.is_empty() {
                let labels = format!("{path}.labels");
                report.rule(&labels, "the host network has no labels; remove them");
            }
        }
        let key = (host, if host { None } else { network.name.as_deref() });
        if (host || !report.at_fault(&name)) && !seen.insert(key) {
            let what = match key {
                (true, _) => "the host network".to_owned(),
                (false, Some(name)) => format!("the network {}", quoted(name)),
                (false, None) => "the default network".to_owned(),
            };
            report.rule(&path, format!("{what} is joined already; remove one of the two"));
        }
    }
    if modes.len() > 1 {
        report.rule("networks", "found host and container networks, expected one host network or only container ones");
    }
    if pod.agentd.isolated_network && !pod.networks.is_empty() {
        report.rule("agentd.isolatedNetwork", "an isolated pod joins no network; remove `networks` or this setting");
    }
}

fn endpoints(pod: &PodSpec, report: &Report) {
    let ports = match pod.networks.first() {
        Some(network) if network.mode == NetworkMode::Container => Ports::Container,
        None if pod.agentd.isolated_network => Ports::Isolated,
        Some(_) | None => Ports::Host,
    };
    // The first network, or without one the switch, says what the mode is: unless it is unreadable.
    let mode_known = match pod.networks.first() {
        Some(_) => !report.at_fault("networks[0].mode"),
        None => !report.is_unreadable("networks") && !report.at_fault("agentd.isolatedNetwork"),
    };
    let mut container_ports: BTreeMap<u16, String> = BTreeMap::new();
    let mut host_ports: BTreeMap<u16, String> = BTreeMap::new();
    let mut names = Vec::new();
    for (container, spec) in pod.containers.iter().enumerate() {
        for (index, endpoint) in spec.endpoints.iter().enumerate() {
            let path = format!("containers[{container}].endpoints[{index}]");
            let (container_port, host_port) = (format!("{path}.containerPort"), format!("{path}.hostPort"));
            if mode_known {
                match (ports, endpoint.container_port) {
                    (Ports::Host, Some(_)) => report.rule(
                        &container_port,
                        "not allowed in host mode; use `hostPort`, or join a container network in `networks`",
                    ),
                    (Ports::Container | Ports::Isolated, None) => report.rule(
                        &container_port,
                        "missing; the pod has its own network, so say the port in the container",
                    ),
                    _ => {}
                }
                match (ports, endpoint.host_port) {
                    (Ports::Host, None) => {
                        report
                            .rule(&host_port, "missing; expected a port of the host, or 0 for a free one (host mode)");
                    }
                    (Ports::Isolated, Some(_)) => {
                        report.rule(&host_port, "not allowed: the pod's network is isolated from the host; remove it");
                    }
                    _ => {}
                }
            }
            for (port, path, taken) in [
                (endpoint.container_port, container_port, &mut container_ports),
                (endpoint.host_port.filter(|port| *port != 0), host_port, &mut host_ports),
            ] {
                let Some(port) = port else { continue };
                match taken.get(&port) {
                    Some(first) => report.rule(&path, format!("port {port} is taken by {first}; choose another")),
                    None => {
                        taken.insert(port, path);
                    }
                }
            }
            names.push((format!("{path}.name"), endpoint.name.as_str()));
        }
    }
    unique(names.into_iter(), "the pod's endpoints", report);
}
