//! What holds between fields. The rules see the pod as the readers left it, with defaults in the place of what is
//! missing or wrong; `Report::rule` keeps them silent about fields that are at fault already.

mod container;
mod network;
mod order;
mod volume;

use std::collections::{BTreeMap, BTreeSet};

use super::format::quoted;
use super::report::{Report, join_key};
use crate::pod::{EnvValue, PodSpec, UnreachableStrategy};

/// Applies every rule.
pub(super) fn check(pod: &PodSpec, report: &Report) {
    pod_itself(pod, report);
    network::check(pod, report);
    volume::check(pod, report);
    container::check(pod, report);
    order::check(pod, report);
}

fn pod_itself(pod: &PodSpec, report: &Report) {
    if pod.containers.is_empty() {
        report.rule("containers", "found no container, expected at least one");
    }
    if let Some(UnreachableStrategy::After { inactive_after_seconds: inactive, expunge_after_seconds: expunge }) =
        &pod.scheduling.unreachable_strategy
        && inactive > expunge
        && !report.at_fault("scheduling.unreachableStrategy.expungeAfterSeconds")
    {
        report.rule(
            "scheduling.unreachableStrategy.inactiveAfterSeconds",
            format!("found {inactive}, expected no more than expungeAfterSeconds, which is {expunge}"),
        );
    }
    environment(pod, "environment", &pod.environment, report);
    if let Some(dns) = &pod.agentd.dns
        && dns.nameservers.len() > 3
    {
        let found = dns.nameservers.len();
        report.rule("agentd.dns.nameservers", format!("found {found}, expected 3 or less: resolvers use no more"));
    }
}

/// Secrets of the environment exist.
fn environment(pod: &PodSpec, path: &str, environment: &BTreeMap<String, EnvValue>, report: &Report) {
    for (name, value) in environment {
        if let EnvValue::Secret { secret } = value {
            let path = format!("{}.secret", join_key(path, name));
            secret_exists(pod, &path, secret, report);
        }
    }
}

fn secret_exists(pod: &PodSpec, path: &str, secret: &str, report: &Report) {
    if !pod.secrets.contains_key(secret) && !report.is_unreadable("secrets") {
        report.rule(path, format!("no secret named {}; declare it in the pod's `secrets`", quoted(secret)));
    }
}

/// Notes each name that an earlier entry has too. Empty names stand for missing ones.
fn unique<'a>(entries: impl Iterator<Item = (String, &'a str)>, of: &str, report: &Report) {
    let mut seen = BTreeSet::new();
    for (path, name) in entries {
        if !name.is_empty() && !seen.insert(name) {
            report.rule(&path, format!("found {} again, expected each only once among {of}", quoted(name)));
        }
    }
}
