//! What a daemon may have left on the host: cgroups, mounts, network links and nftables tables.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::mounts;

/// Things on the host that a daemon could have made, each as one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftovers(BTreeSet<String>);

impl Leftovers {
    /// What is there now: all links, mounts and tables, and the cgroups named after an instance.
    pub fn now(instance: &str) -> Self {
        let mut found = BTreeSet::new();
        if !instance.is_empty() {
            for hierarchy in mounts::hierarchies().all() {
                let path = hierarchy.join(instance);
                if path.exists() {
                    found.insert(format!("cgroup {}", path.display()));
                }
            }
        }
        for link in fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
            found.insert(format!("link {}", link.file_name().to_string_lossy()));
        }
        for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
            if let Some(point) = line.split(' ').nth(4) {
                found.insert(format!("mount {point}"));
            }
        }
        if let Ok(output) = Command::new("nft").args(["list", "tables"]).output() {
            for table in String::from_utf8_lossy(&output.stdout).lines() {
                found.insert(format!("nftables {table}"));
            }
        }
        Self(found)
    }

    /// What is here and was not there before.
    fn since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

/// Waits until nothing is left (the kernel takes network namespaces apart a little later) and returns what still is.
pub fn wait_for_none(instance: &str, before: &Leftovers, patience: Duration) -> Vec<String> {
    let end = Instant::now() + patience;
    loop {
        let left = Leftovers::now(instance).since(before);
        if left.is_empty() || Instant::now() > end {
            return left;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
