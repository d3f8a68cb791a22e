//! Volumes and their mounts.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::{secret_exists, unique};
use crate::parse::format::{quoted, segments};
use crate::parse::report::{Report, join_key};
use crate::pod::{Container, PodSpec, Volume};

pub(super) fn check(pod: &PodSpec, report: &Report) {
    let names = pod.volumes.iter().enumerate();
    unique(
        names.map(|(index, volume)| (format!("volumes[{index}].name"), volume.name.as_str())),
        "the volumes",
        report,
    );
    let declared: BTreeSet<&str> = pod.volumes.iter().map(|volume| volume.name.as_str()).collect();
    for (index, container) in pod.containers.iter().enumerate() {
        mounts(&format!("containers[{index}].volumeMounts"), container, &declared, report);
    }
    // A mount that cannot be read, or has no readable name (it reads as empty), may be the one that is missed.
    let mounted: BTreeSet<&str> =
        pod.containers.iter().flat_map(|container| &container.volume_mounts).map(|mount| mount.name.as_str()).collect();
    let mounts_known = !pod.containers.is_empty()
        && !mounted.contains("")
        && !(0..pod.containers.len()).any(|index| report.is_unreadable(&format!("containers[{index}].volumeMounts")));
    for (index, volume) in pod.volumes.iter().enumerate() {
        let path = format!("volumes[{index}]");
        if mounts_known && !mounted.contains(volume.name.as_str()) {
            report.rule(&format!("{path}.name"), "no container mounts this volume; mount it or remove it");
        }
        source(pod, &path, volume, report);
    }
}

/// A volume has one source: the host, memory, secrets, or else the sandbox.
fn source(pod: &PodSpec, path: &str, volume: &Volume, report: &Report) {
    let extension = &volume.agentd;
    let (tmpfs, secrets) = (format!("{path}.agentd.tmpfsMib"), format!("{path}.agentd.secrets"));
    if volume.host.is_some() && extension.tmpfs_mib.is_some() {
        report.rule(&tmpfs, "a volume of the host cannot be in memory as well; remove this or `host`");
    }
    if volume.host.is_some() && !extension.secrets.is_empty() {
        report.rule(&secrets, "a volume of the host cannot hold secrets; remove them or `host`");
    }
    if extension.tmpfs_mib.is_some() && !extension.secrets.is_empty() {
        report.rule(&tmpfs, "a volume of secrets is in memory already and sized by them; remove this");
    }
    for (file, secret) in &extension.secrets {
        secret_exists(pod, &join_key(&secrets, file), secret, report);
    }
}

fn mounts(path: &str, container: &Container, declared: &BTreeSet<&str>, report: &Report) {
    let volumes_known = !declared.contains("") && !report.is_unreadable("volumes");
    let mut taken: BTreeMap<String, String> = BTreeMap::new();
    for (index, mount) in container.volume_mounts.iter().enumerate() {
        let path = format!("{path}[{index}]");
        if volumes_known && !mount.name.is_empty() && !declared.contains(mount.name.as_str()) {
            report.rule(
                &format!("{path}.name"),
                format!("no volume named {}; declare it in the pod's `volumes`", quoted(&mount.name)),
            );
        }
        if mount.mount_path.is_empty() {
            continue;
        }
        let path = format!("{path}.mountPath");
        let plain: Vec<_> = segments(&mount.mount_path).collect();
        let root = if mount.mount_path.starts_with('/') { "/" } else { "" };
        match taken.entry(format!("{root}{}", plain.join("/"))) {
            Entry::Occupied(first) => {
                report.rule(&path, format!("the path is that of {} already; choose another", first.get()));
            }
            Entry::Vacant(entry) => {
                entry.insert(path);
            }
        }
    }
}
