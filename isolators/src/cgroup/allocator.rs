//! Which cores belong to one container alone. Pure bookkeeping: [`super::Cpuset`] writes the result to cgroups.
//!
//! Cores are given whole (with all their hardware threads) and from one NUMA node where one has enough, the fullest
//! that still fits. The core of CPU 0, where interrupts gather, goes last, and one core always stays shared: a cpuset
//! cannot be empty.

use std::collections::{BTreeMap, BTreeSet};

/// A core of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Core {
    /// NUMA node.
    pub node: u32,
    /// Numbers of its CPUs (hardware threads).
    pub cpus: Vec<u32>,
}

/// Why cores could not be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} exclusive CPUs wanted, {free} can be given ({shared_core} more stay shared by the other containers)")]
pub struct NotEnoughCores {
    /// CPUs asked for.
    pub wanted: u32,
    /// CPUs on cores that could be given.
    pub free: u32,
    /// CPUs on the core that stays shared.
    pub shared_core: u32,
}

/// The cores of a host and who has them.
#[derive(Debug, Clone, Default)]
pub struct Allocator {
    cores: Vec<Core>,
    taken: BTreeMap<(String, u32), BTreeSet<u32>>,
}

impl Allocator {
    /// With every online core of the host.
    pub fn new(mut cores: Vec<Core>) -> Self {
        cores.retain(|core| !core.cpus.is_empty());
        for core in &mut cores {
            core.cpus.sort_unstable();
            core.cpus.dedup();
        }
        cores.sort_by_key(|core| core.cpus[0]);
        Self { cores, taken: BTreeMap::new() }
    }

    /// Gives at least `cpus` CPUs on whole cores to a container, and gives the CPUs' numbers. A container that has cores
    /// already keeps those.
    pub fn allocate(&mut self, instance: &str, slot: u32, cpus: u32) -> Result<Vec<u32>, NotEnoughCores> {
        if let Some(own) = self.get(instance, slot) {
            return Ok(own);
        }
        let free = self.free_cores();
        // The shared core is the first free one, that of CPU 0 as long as it is free.
        let (shared_core, given) = match free.split_first() {
            Some((first, rest)) => (first.cpus.len() as u32, rest),
            None => (0, &[][..]),
        };
        let count = |cores: &[&Core]| cores.iter().map(|core| core.cpus.len() as u32).sum::<u32>();
        let total = count(given);
        if cpus == 0 || total < cpus {
            return Err(NotEnoughCores { wanted: cpus, free: total, shared_core });
        }
        let mut nodes: BTreeMap<u32, Vec<&Core>> = BTreeMap::new();
        for core in given {
            nodes.entry(core.node).or_default().push(core);
        }
        let mut nodes: Vec<Vec<&Core>> = nodes.into_values().collect();
        // One node that fits, the fullest first; else over several, the emptiest first, so that they are few.
        nodes.sort_by_key(|cores| count(cores));
        let order: Vec<&Core> = match nodes.iter().find(|cores| count(cores) >= cpus) {
            Some(cores) => cores.iter().rev().copied().collect(),
            None => nodes.iter().rev().flat_map(|cores| cores.iter().rev().copied()).collect(),
        };
        let mut own = BTreeSet::new();
        for core in order {
            if own.len() as u32 >= cpus {
                break;
            }
            own.extend(core.cpus.iter().copied());
        }
        let numbers = own.iter().copied().collect();
        self.taken.insert((instance.to_owned(), slot), own);
        Ok(numbers)
    }

    /// Notes what a container was given before, e.g. after a restart of agentd. Repeating it is fine. The error is the
    /// container that has one of these CPUs already.
    pub fn restore(&mut self, instance: &str, slot: u32, cpus: &[u32]) -> Result<(), (String, u32)> {
        let key = (instance.to_owned(), slot);
        let other = self.taken.iter().find(|(k, own)| **k != key && cpus.iter().any(|cpu| own.contains(cpu)));
        if let Some((holder, _)) = other {
            return Err(holder.clone());
        }
        if !cpus.is_empty() {
            self.taken.insert(key, cpus.iter().copied().collect());
        }
        Ok(())
    }

    /// Takes back the cores of a container. False if it had none.
    pub fn release(&mut self, instance: &str, slot: u32) -> bool {
        self.taken.remove(&(instance.to_owned(), slot)).is_some()
    }

    /// The CPUs that a container has alone.
    pub fn get(&self, instance: &str, slot: u32) -> Option<Vec<u32>> {
        self.taken.get(&(instance.to_owned(), slot)).map(|own| own.iter().copied().collect())
    }

    /// Whether any container has cores alone.
    pub fn any_taken(&self) -> bool {
        !self.taken.is_empty()
    }

    /// CPUs that all other containers share; never empty unless the host has no CPUs.
    pub fn shared(&self) -> Vec<u32> {
        let shared: BTreeSet<u32> = self.free_cores().iter().flat_map(|core| core.cpus.iter().copied()).collect();
        shared.into_iter().collect()
    }

    /// Cores without a single taken CPU, by their lowest CPU. Should all be taken, as a restored state may say, the
    /// first core is shared all the same.
    fn free_cores(&self) -> Vec<&Core> {
        let taken: BTreeSet<u32> = self.taken.values().flatten().copied().collect();
        let free: Vec<&Core> =
            self.cores.iter().filter(|core| core.cpus.iter().all(|cpu| !taken.contains(cpu))).collect();
        if free.is_empty() { self.cores.first().into_iter().collect() } else { free }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two nodes of four cores with two threads each, numbered as on ordinary servers: 0,8 1,9 … 7,15.
    fn server() -> Allocator {
        Allocator::new((0..8).map(|n| Core { node: n / 4, cpus: vec![n, n + 8] }).collect())
    }

    #[test]
    fn cores_are_whole_local_and_never_shared() {
        let mut a = server();
        assert!(!a.any_taken());
        // node 0 has three to give (core 0 stays shared) and is the fullest that fits
        assert_eq!(a.allocate("p", 0, 4), Ok(vec![2, 3, 10, 11]));
        assert_eq!(a.allocate("p", 0, 4), Ok(vec![2, 3, 10, 11]), "again: the same");
        // an odd number still takes the whole core
        assert_eq!(a.allocate("q", 1, 1), Ok(vec![1, 9]));
        assert_eq!(a.allocate("r", 0, 8), Ok(vec![4, 5, 6, 7, 12, 13, 14, 15]));
        assert_eq!(a.shared(), vec![0, 8]);
        assert_eq!(a.allocate("s", 0, 1), Err(NotEnoughCores { wanted: 1, free: 0, shared_core: 2 }));
        assert!(a.release("q", 1));
        assert!(!a.release("q", 1));
        assert_eq!(a.shared(), vec![0, 1, 8, 9]);
        assert_eq!(a.allocate("s", 0, 2), Ok(vec![1, 9]));
    }

    #[test]
    fn more_than_a_node_spreads_over_as_few_as_possible() {
        let mut a = server();
        let own = a.allocate("p", 0, 10).unwrap();
        assert_eq!(own.len(), 10);
        assert!([4, 5, 6, 7].iter().all(|cpu| own.contains(cpu)), "{own:?}: all of the emptiest node");
        assert_eq!(a.allocate("p", 1, 6), Err(NotEnoughCores { wanted: 6, free: 4, shared_core: 2 }));
        assert_eq!(a.allocate("p", 1, 0).unwrap_err().wanted, 0);
    }

    #[test]
    fn a_restart_rebuilds_and_conflicts_are_named() {
        let mut a = server();
        a.restore("p", 0, &[2, 10]).unwrap();
        a.restore("p", 0, &[2, 10]).unwrap();
        assert_eq!(a.restore("q", 0, &[10, 11]), Err(("p".to_owned(), 0)));
        assert_eq!(a.get("p", 0), Some(vec![2, 10]));
        let own = a.allocate("q", 0, 4).unwrap();
        assert!(!own.contains(&2) && !own.contains(&10));
        // a core that was restored in part is not given to another
        let mut b = server();
        b.restore("p", 0, &[3]).unwrap();
        assert!(!b.shared().contains(&11));
    }

    #[test]
    fn one_core_hosts_give_nothing() {
        let mut a = Allocator::new(vec![Core { node: 0, cpus: vec![0, 1] }]);
        assert!(a.allocate("p", 0, 1).is_err());
        assert_eq!(a.shared(), vec![0, 1]);
        assert!(Allocator::new(Vec::new()).allocate("p", 0, 1).is_err());
    }
}
