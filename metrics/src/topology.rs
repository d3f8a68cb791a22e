//! Online CPUs, their cores and NUMA nodes, from `/sys/devices/system`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::host::{FactsError, line};

/// A core of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Core {
    /// Online CPUs (hardware threads) of the core, ascending.
    pub cpus: Vec<u32>,
    /// NUMA node; 0 on a host that has no nodes.
    pub node: u32,
    /// Package (socket); 0 where the host does not tell.
    pub package: u32,
}

/// A NUMA node of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub id: u32,
    /// Its online CPUs, ascending; empty for a node of memory only.
    pub cpus: Vec<u32>,
    /// Its memory, bytes; 0 where the host does not tell.
    pub memory_total: u64,
}

/// Online CPUs of a host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Topology {
    /// Cores by their lowest CPU.
    pub cores: Vec<Core>,
    /// NUMA nodes by number; empty on a host without.
    pub nodes: Vec<Node>,
}

impl Topology {
    /// Reads it from the `sys` below `root`.
    pub fn read_from(root: &Path) -> Result<Self, FactsError> {
        let devices = root.join("sys/devices/system");
        let online_file = devices.join("cpu/online");
        let online: BTreeSet<u32> = list(&online_file)?.into_iter().collect();
        if online.is_empty() {
            return Err(FactsError::new(online_file, "no CPU is online"));
        }
        let nodes = nodes(&devices.join("node"), &online)?;
        let node_of: BTreeMap<u32, u32> =
            nodes.iter().flat_map(|node| node.cpus.iter().map(|cpu| (*cpu, node.id))).collect();
        let mut seen = BTreeSet::new();
        let mut cores = Vec::new();
        for cpu in &online {
            if seen.contains(cpu) {
                continue;
            }
            let topology = devices.join(format!("cpu/cpu{cpu}/topology"));
            // `core_cpus_list` is the name since Linux 5.3. A virtual machine may tell nothing: one core each then.
            let siblings = ["core_cpus_list", "thread_siblings_list"]
                .iter()
                .find_map(|name| list(&topology.join(name)).ok())
                .unwrap_or_default();
            let mut cpus: BTreeSet<u32> =
                siblings.into_iter().filter(|cpu| online.contains(cpu) && !seen.contains(cpu)).collect();
            cpus.insert(*cpu);
            seen.extend(cpus.iter().copied());
            cores.push(Core {
                cpus: cpus.into_iter().collect(),
                node: node_of.get(cpu).copied().unwrap_or(0),
                // -1 where it is unknown
                package: line(&topology.join("physical_package_id")).ok().and_then(|t| t.parse().ok()).unwrap_or(0),
            });
        }
        Ok(Self { cores, nodes })
    }

    /// All online CPUs, ascending.
    pub fn cpus(&self) -> Vec<u32> {
        let all: BTreeSet<u32> = self.cores.iter().flat_map(|core| core.cpus.iter().copied()).collect();
        all.into_iter().collect()
    }
}

/// NUMA nodes, none on a kernel without.
fn nodes(dir: &Path, online: &BTreeSet<u32>) -> Result<Vec<Node>, FactsError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(FactsError::new(dir, e)),
    };
    let mut nodes = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| FactsError::new(dir, e))?;
        let name = entry.file_name();
        let Some(id) = name.to_str().and_then(|n| n.strip_prefix("node")?.parse().ok()) else { continue };
        let mut cpus = list(&entry.path().join("cpulist"))?;
        cpus.retain(|cpu| online.contains(cpu));
        nodes.push(Node { id, cpus, memory_total: memory(&entry.path().join("meminfo")) });
    }
    nodes.sort_by_key(|node| node.id);
    Ok(nodes)
}

/// `MemTotal` of a node's `meminfo`, whose lines begin with `Node 0 `.
fn memory(path: &Path) -> u64 {
    let text = line(path).unwrap_or_default();
    let total = text.lines().find_map(|l| l.split_once(" MemTotal:")?.1.trim().strip_suffix("kB")?.trim().parse().ok());
    total.map_or(0, |kib: u64| kib.saturating_mul(1024))
}

/// A list such as `0-3,8`, ascending.
fn list(path: &Path) -> Result<Vec<u32>, FactsError> {
    let text = line(path)?;
    let wrong = || FactsError::new(path, format!("found '{text}', expected a list such as 0-3,8"));
    let mut numbers = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: u32 = first.parse().map_err(|_| wrong())?;
        let last: u32 = last.parse().map_err(|_| wrong())?;
        // more than any kernel is built for
        if last < first || last > 65_535 {
            return Err(wrong());
        }
        numbers.extend(first..=last);
    }
    Ok(numbers.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, files: &[(String, &str)]) {
        for (path, content) in files {
            let path = root.join("sys/devices/system").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
    }

    #[test]
    fn two_nodes_with_threads_and_an_offline_cpu() {
        let root = tempfile::tempdir().unwrap();
        let mut files = vec![
            ("cpu/online".to_owned(), "0-6\n"),
            ("node/possible".to_owned(), "0-1\n"),
            ("node/node0/cpulist".to_owned(), "0-1,4-5\n"),
            ("node/node0/meminfo".to_owned(), "Node 0 MemTotal:       1024 kB\nNode 0 MemFree: 1 kB\n"),
            ("node/node1/cpulist".to_owned(), "2-3,6-7\n"),
            ("node/node1/meminfo".to_owned(), "Node 1 MemTotal:       2048 kB\n"),
        ];
        for (cpu, siblings, package) in
            [(0, "0,4", "0"), (4, "0,4", "0"), (1, "1,5", "0"), (5, "1,5", "0"), (2, "2,6", "1"), (6, "2,6", "1")]
        {
            files.push((format!("cpu/cpu{cpu}/topology/core_cpus_list"), siblings));
            files.push((format!("cpu/cpu{cpu}/topology/physical_package_id"), package));
        }
        // an old name, and a sibling that is offline
        files.push(("cpu/cpu3/topology/thread_siblings_list".to_owned(), "3,7"));
        files.push(("cpu/cpu3/topology/physical_package_id".to_owned(), "-1"));
        write(root.path(), &files);
        let topology = Topology::read_from(root.path()).unwrap();
        assert_eq!(
            topology.cores,
            [
                Core { cpus: vec![0, 4], node: 0, package: 0 },
                Core { cpus: vec![1, 5], node: 0, package: 0 },
                Core { cpus: vec![2, 6], node: 1, package: 1 },
                Core { cpus: vec![3], node: 1, package: 0 },
            ]
        );
        assert_eq!(
            topology.nodes,
            [
                Node { id: 0, cpus: vec![0, 1, 4, 5], memory_total: 1 << 20 },
                Node { id: 1, cpus: vec![2, 3, 6], memory_total: 2 << 20 },
            ]
        );
        assert_eq!(topology.cpus(), [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn a_bare_virtual_machine_has_a_core_for_each_cpu() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &[("cpu/online".to_owned(), "0-1")]);
        let topology = Topology::read_from(root.path()).unwrap();
        assert_eq!(topology.cores.len(), 2);
        assert_eq!(topology.nodes, []);
    }

    #[test]
    fn broken_lists_are_errors() {
        for text in ["", "x", "3-1", "0-", "0-4294967295"] {
            let root = tempfile::tempdir().unwrap();
            write(root.path(), &[("cpu/online".to_owned(), text)]);
            let error = Topology::read_from(root.path()).unwrap_err().to_string();
            assert!(error.contains("cpu/online"), "{error}");
        }
    }
}
