//! What holds within one container, and between it and the pod's secrets.

use super::{environment, unique};
use crate::parse::format::quoted;
use crate::parse::report::{Report, join_key};
use crate::pod::{Container, Endpoint, HealthCheck, PodSpec, Protocol};

pub(super) fn check(pod: &PodSpec, report: &Report) {
    let names = pod.containers.iter().enumerate();
    unique(
        names.map(|(index, container)| (format!("containers[{index}].name"), container.name.as_str())),
        "the containers",
        report,
    );
    for (index, container) in pod.containers.iter().enumerate() {
        let path = format!("containers[{index}]");
        if container.exec.is_none() && container.image.is_none() {
            report
                .rule(&format!("{path}.exec"), "found neither an image nor a command; give `image` or `exec.command`");
        }
        environment(pod, &format!("{path}.environment"), &container.environment, report);
        if let Some(check) = &container.health_check {
            health_check(&format!("{path}.healthCheck"), check, report);
            if !report.is_unreadable(&format!("{path}.endpoints")) {
                checked_endpoint(&format!("{path}.healthCheck"), check, &container.endpoints, report);
            }
        }
        resources(&path, container, report);
        devices(&path, container, report);
    }
}

fn health_check(path: &str, check: &HealthCheck, report: &Report) {
    let kinds = [check.http.is_some(), check.tcp.is_some(), check.exec.is_some()];
    let kinds = kinds.iter().filter(|present| **present).count();
    if kinds != 1 {
        report.rule(path, format!("found {kinds} kinds of check, expected exactly one of `http`, `tcp` and `exec`"));
    }
    let (timeout, interval) = (check.timeout_seconds, check.interval_seconds);
    if timeout >= interval && !report.at_fault(&format!("{path}.intervalSeconds")) {
        report.rule(
            &format!("{path}.timeoutSeconds"),
            format!("found {timeout} (20 unless given), expected less than intervalSeconds, which is {interval}"),
        );
    }
}

/// The check's endpoint is one of the container's, and speaks TCP.
fn checked_endpoint(path: &str, check: &HealthCheck, endpoints: &[Endpoint], report: &Report) {
    // An endpoint without a readable name may be the one that is missed.
    let names_known = endpoints.iter().all(|endpoint| !endpoint.name.is_empty());
    let named = [
        ("http", check.http.as_ref().map(|http| &http.endpoint)),
        ("tcp", check.tcp.as_ref().map(|tcp| &tcp.endpoint)),
    ];
    for (kind, name) in named {
        let Some(name) = name else { continue };
        let path = format!("{path}.{kind}.endpoint");
        match endpoints.iter().find(|endpoint| endpoint.name == *name) {
            None if !names_known => {}
            None => {
                report.rule(
                    &path,
                    format!("no endpoint named {}; declare it in this container's `endpoints`", quoted(name)),
                );
            }
            Some(endpoint) if !endpoint.protocol.contains(&Protocol::Tcp) => {
                report.rule(
                    &path,
                    "the endpoint is UDP only, which this check cannot reach; add tcp, or use an exec check",
                );
            }
            Some(_) => {}
        }
    }
}

fn resources(path: &str, container: &Container, report: &Report) {
    let (resources, extension) = (&container.resources, &container.agentd);
    let cpus_known = !report.at_fault(&format!("{path}.resources.cpus"));
    if extension.exclusive_cores && cpus_known && (resources.cpus.fract() != 0.0 || resources.cpus < 1.0) {
        report.rule(
            &format!("{path}.agentd.exclusiveCores"),
            format!(
                "resources.cpus is {}, expected a whole number of 1 or more: cores are given whole",
                resources.cpus
            ),
        );
    }
    if !report.at_fault(&format!("{path}.resources.mem")) {
        for (name, amount) in [("low", extension.memory.low), ("high", extension.memory.high)] {
            if let Some(amount) = amount.filter(|amount| *amount > resources.mem) {
                report.rule(
                    &format!("{path}.agentd.memory.{name}"),
                    format!("found {amount}, expected no more than resources.mem, which is {}", resources.mem),
                );
            }
        }
    }
    if let (Some(low), Some(high)) = (extension.memory.low, extension.memory.high)
        && low > high
    {
        let path = format!("{path}.agentd.memory.low");
        report.rule(&path, format!("found {low}, expected no more than memory.high, which is {high}"));
    }
    if extension.gpu.share.is_some() && resources.gpus > 0 {
        report.rule(
            &format!("{path}.agentd.gpu.share"),
            format!("resources.gpus asks for {} whole ones; ask for a share or for whole GPUs", resources.gpus),
        );
    }
    for (size, mib) in &extension.hugepages {
        let page = if size == "1GB" { 1024 } else { 2 };
        if mib % page != 0 {
            report.rule(
                &join_key(&format!("{path}.agentd.hugepages"), size),
                format!("found {mib} MiB, expected a multiple of {page}, the size of a page"),
            );
        }
    }
}

/// Each device is limited in one place.
fn devices(path: &str, container: &Container, report: &Report) {
    let limits = container.agentd.io.limits.iter().enumerate();
    unique(
        limits.map(|(index, limit)| (format!("{path}.agentd.io.limits[{index}].device"), limit.device.as_str())),
        "the limited devices",
        report,
    );
}
