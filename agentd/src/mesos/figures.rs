//! Metrics, flags and version.

use std::collections::BTreeMap;

use agentd_api::mesos::v1;
use agentd_api::mesos::v1::agent::response;
use agentd_api::status::TaskState;

use super::picture;
use crate::api::Pods;

/// The version of Mesos whose protocol is spoken. Clients read it as numbers, and choose by it what they ask for.
pub(super) const MESOS: &str = "1.11.0";

pub(super) fn version() -> response::GetVersion {
    let info = v1::VersionInfo {
        version: MESOS.into(),
        git_tag: Some(concat!("agentd-", env!("CARGO_PKG_VERSION")).into()),
        ..v1::VersionInfo::default()
    };
    response::GetVersion { version_info: info }
}

/// The level of verbose logging, which agentd does not have.
pub(super) fn logging_level() -> u32 {
    0
}

/// What the daemon was started with, as far as a Mesos agent has words for it.
pub(super) fn flag_list(pods: &impl Pods) -> Vec<(&'static str, String)> {
    let (info, layout) = (pods.info(), pods.layout());
    vec![
        ("containerizers", "agentd".into()),
        ("hostname", info.hostname),
        ("launcher", "linux".into()),
        ("runtime_dir", layout.run.display().to_string()),
        ("sandbox_directory", "/mnt/mesos/sandbox".into()),
        ("work_dir", layout.state.display().to_string()),
    ]
}

pub(super) fn flags(pods: &impl Pods) -> response::GetFlags {
    let flag = |(name, value): (&str, String)| v1::Flag { name: name.into(), value: Some(value) };
    response::GetFlags { flags: flag_list(pods).into_iter().map(flag).collect() }
}

/// Figures by name, those of a Mesos agent that agentd has.
pub(super) fn metrics(pods: &impl Pods) -> BTreeMap<&'static str, f64> {
    let info = pods.info();
    let all = pods.list();
    let mut figures = BTreeMap::new();
    let total = |whole: f64, reserved: f64| whole - reserved;
    for (names, total, used) in [
        (
            ["slave/cpus_total", "slave/cpus_used", "slave/cpus_percent"],
            total(info.total.cpus, info.reserved.cpus),
            info.used.cpus,
        ),
        (
            ["slave/mem_total", "slave/mem_used", "slave/mem_percent"],
            total(info.total.mem, info.reserved.mem),
            info.used.mem,
        ),
        (
            ["slave/disk_total", "slave/disk_used", "slave/disk_percent"],
            total(info.total.disk, info.reserved.disk),
            info.used.disk,
        ),
        (
            ["slave/gpus_total", "slave/gpus_used", "slave/gpus_percent"],
            total(info.total.gpus, info.reserved.gpus),
            info.used.gpus,
        ),
    ] {
        let share = if total > 0.0 { used / total } else { 0.0 };
        figures.extend(names.into_iter().zip([total, used, share]));
    }
    for (name, state) in [
        ("slave/tasks_staging", TaskState::TaskStaging),
        ("slave/tasks_starting", TaskState::TaskStarting),
        ("slave/tasks_running", TaskState::TaskRunning),
        ("slave/tasks_killing", TaskState::TaskKilling),
        ("slave/tasks_finished", TaskState::TaskFinished),
        ("slave/tasks_failed", TaskState::TaskFailed),
        ("slave/tasks_killed", TaskState::TaskKilled),
        ("slave/tasks_lost", TaskState::TaskLost),
    ] {
        let containers = picture::instances(&all).flat_map(|(_, instance)| &instance.containers);
        figures.insert(name, containers.filter(|container| container.state == state).count() as f64);
    }
    figures.insert("slave/executors_running", f64::from(info.instances));
    figures.insert("slave/frameworks_active", 1.0);
    figures.insert("slave/registered", 0.0);
    if let Some(seconds) = uptime() {
        figures.insert("slave/uptime_secs", seconds);
    }
    if let Ok(facts) = agentd_metrics::host::HostFacts::read() {
        figures.insert("system/cpus_total", facts.topology.cpus().len() as f64);
        figures.insert("system/mem_total_bytes", facts.memory_total as f64);
        figures.insert("system/mem_free_bytes", facts.memory_available as f64);
    }
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let loads = load.split(' ').map_while(|number| number.parse().ok());
    figures.extend(["system/load_1min", "system/load_5min", "system/load_15min"].into_iter().zip(loads));
    figures
}

/// Seconds since the daemon's start.
fn uptime() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let ticks: f64 = after_name.split_ascii_whitespace().nth(19)?.parse().ok()?;
    let host: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split(' ').next()?.parse().ok()?;
    Some((host - ticks / rustix::param::clock_ticks_per_second() as f64).max(0.0))
}

pub(super) fn as_message(figures: &BTreeMap<&'static str, f64>) -> response::GetMetrics {
    let metric = |(name, value): (&&str, &f64)| v1::Metric { name: (*name).into(), value: Some(*value) };
    response::GetMetrics { metrics: figures.iter().map(metric).collect() }
}
