//! What running containers have used: from the isolators, their cgroups, and the counters of the pods' networks.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use agentd_api::message::ContainerUsage;
use agentd_api::pod::Container;
use agentd_api::status::{InstanceStatus, PodStatus};
use agentd_isolators::ContainerContext;
use agentd_isolators::cgroup::{Controller, Placement};

use crate::files::container::{process, read_small};
use crate::host::Host;

/// Largest cgroup file that is read.
const MOST: u64 = 1 << 20;

/// What the running containers of these pods have used, by pod, instance and container.
pub async fn of(host: &Arc<Host>, pods: Vec<PodStatus>) -> Result<Vec<ContainerUsage>, String> {
    let host = Arc::clone(host);
    let read = tokio::task::spawn_blocking(move || {
        let mut all: Vec<ContainerUsage> = pods
            .iter()
            .flat_map(|pod| pod.instances.iter().map(move |instance| (pod, instance)))
            .flat_map(|(pod, instance)| of_instance(&host, pod, instance))
            .collect();
        all.sort_by(|a, b| (&a.pod, &a.instance, &a.container).cmp(&(&b.pod, &b.instance, &b.container)));
        all
    });
    read.await.map_err(|error| format!("the usage could not be read: {error}"))
}

fn of_instance(host: &Host, pod: &PodStatus, instance: &InstanceStatus) -> Vec<ContainerUsage> {
    let running = instance.containers.iter().enumerate().filter(|(_, container)| container.pid.is_some());
    let mut network = None;
    running
        .filter_map(|(slot, status)| {
            let container = pod.spec.containers.iter().find(|container| container.name == status.name)?;
            let cgroup = match host.driver.container(&instance.id, slot as u32) {
                Ok(cgroup) => cgroup,
                // it has ended meanwhile
                Err(error) => {
                    tracing::debug!(instance = instance.id, slot, "usage: {error}");
                    return None;
                }
            };
            let used = host.usage(&ContainerContext {
                pod: &pod.spec,
                container,
                instance: &instance.id,
                slot: slot as u32,
                attempt: status.attempt,
                cgroup: &cgroup,
                pod_dir: &host.layout.sandbox(&instance.id),
                image: None,
                exclusive_cpus: &[],
            });
            let path = cgroup.cgroup_path().trim_start_matches('/');
            let layout = host.driver.layout();
            let unified = layout.unified.as_deref().map(|mount| mount.join(path));
            let io = match layout.placement(Controller::Io) {
                Placement::V2 => unified.as_deref().and_then(|dir| read(&dir.join("io.stat"))).map(|text| io_v2(&text)),
                Placement::V1(mount) => io_v1(&mount.join(path)),
                Placement::Absent => None,
            };
            // where the controller is not in use for a container, its threads are counted
            let pids = match used.pids {
                0 => unified.as_deref().map_or(0, threads),
                pids => pids,
            };
            let network = *network.get_or_insert_with(|| network_of(instance));
            Some(ContainerUsage {
                pod: pod.id.clone(),
                instance: instance.id.clone(),
                container: status.name.clone(),
                attempt: status.attempt,
                time: jiff::Timestamp::now().to_string(),
                cpu_ns: used.cpu_ns,
                cpu_limit_milli: cpu_limit(container),
                memory_bytes: used.memory_bytes,
                memory_limit_bytes: (container.resources.mem > 0.0)
                    .then_some((container.resources.mem * 1_048_576.0) as u64),
                pids,
                io_read_bytes: io.map(|(read, _)| read),
                io_write_bytes: io.map(|(_, written)| written),
                network_receive_bytes: network.map(|(received, _)| received),
                network_transmit_bytes: network.map(|(_, sent)| sent),
            })
        })
        .collect()
}

/// The quota as it is given to the kernel, thousandths of a CPU.
fn cpu_limit(container: &Container) -> Option<u64> {
    let limit = container.agentd.cpu.limit.unwrap_or(container.resources.cpus);
    (limit > 0.0).then_some((limit * 1000.0).round().max(1.0) as u64)
}

fn read(path: &Path) -> Option<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(MOST).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Threads in a cgroup and those below it (`init`, `exec-<n>`).
fn threads(cgroup: &Path) -> u64 {
    let own = read(&cgroup.join("cgroup.threads")).map_or(0, |text| text.lines().count() as u64);
    let children = std::fs::read_dir(cgroup).into_iter().flatten().flatten();
    own + children
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| threads(&entry.path()))
        .sum::<u64>()
}

/// Bytes read and written, from `io.stat`.
fn io_v2(text: &str) -> (u64, u64) {
    let sum = |key: &str| {
        let words = text.split_ascii_whitespace().filter_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        words.filter_map(|number| number.parse::<u64>().ok()).fold(0, u64::saturating_add)
    };
    (sum("rbytes"), sum("wbytes"))
}

/// The same of a v1 tree; none where the container has no cgroup there.
fn io_v1(cgroup: &Path) -> Option<(u64, u64)> {
    let names = ["blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"];
    let text = names.iter().find_map(|name| read(&cgroup.join(name)))?;
    Some(io_v1_sums(&text))
}

fn io_v1_sums(text: &str) -> (u64, u64) {
    let mut sums = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        if let [_, kind, number] = words.as_slice() {
            let number = number.parse::<u64>().unwrap_or(0);
            let sum: &mut u64 = sums.entry(*kind).or_default();
            *sum = sum.saturating_add(number);
        }
    }
    let sum = |kind| sums.get(kind).copied().unwrap_or(0);
    (sum("Read"), sum("Write"))
}

/// Bytes that a pod received and sent; none for one that shares the host's network, whose counters are not the pod's.
fn network_of(instance: &InstanceStatus) -> Option<(u64, u64)> {
    let process = process(instance.init_pid?, &instance.id, None).ok()?;
    let namespace = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let of_pod = rustix::fs::statat(&process, "ns/net", rustix::fs::AtFlags::empty()).ok()?;
    let own = rustix::fs::stat("/proc/self/ns/net").ok()?;
    if namespace(of_pod) == namespace(own) {
        return None;
    }
    Some(device_sums(&read_small(process.as_fd(), "net/dev")?))
}

/// Bytes received and sent, from `/proc/<pid>/net/dev`, without those of the loopback device.
fn device_sums(text: &str) -> (u64, u64) {
    let mut sums = (0_u64, 0_u64);
    for line in text.lines() {
        let Some((name, counters)) = line.split_once(':') else { continue };
        if name.trim() == "lo" {
            continue;
        }
        let counters: Vec<u64> = counters.split_ascii_whitespace().map(|word| word.parse().unwrap_or(0)).collect();
        if let (Some(received), Some(sent)) = (counters.first(), counters.get(8)) {
            sums = (sums.0.saturating_add(*received), sums.1.saturating_add(*sent));
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_summed() {
        let dev = "Inter-|   Receive                                                |  Transmit\n \
                   face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs\n    \
                   lo: 500 5 0 0 0 0 0 0 500 5 0 0 0 0 0 0\n  eth0: 1000 7 0 0 0 0 0 0 2000 8 0 0 0 0 0 0\n  \
                   eth1:1 1 0 0 0 0 0 0 2 8 0 0 0 0 0 0\n";
        assert_eq!(device_sums(dev), (1001, 2002));
        assert_eq!(io_v2("259:0 rbytes=10 wbytes=20 rios=1 wios=2\n8:0 rbytes=1 wbytes=2\n"), (11, 22));
        assert_eq!(io_v2(""), (0, 0));
        assert_eq!(io_v1_sums("8:0 Read 10\n8:0 Write 20\n8:0 Sync 30\n8:1 Read 1\nTotal 61\n"), (11, 20));
    }

    #[test]
    fn threads_below_a_cgroup_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in [("init", "1\n2\n"), ("exec-1", "3\n")] {
            std::fs::create_dir(folder.path().join(path)).unwrap();
            std::fs::write(folder.path().join(path).join("cgroup.threads"), text).unwrap();
        }
        assert_eq!(threads(folder.path()), 3);
        assert_eq!(threads(&folder.path().join("gone")), 0);
    }
}
