//! `cgroup/hugetlb`: how many huge pages of each size a container may have.
//!
//! Only containers that name a size in `agentd.hugepages` get a cgroup of this controller; the sizes that they leave
//! out are then closed to them.

use std::sync::Arc;

use agentd_api::pod::PodSpec;
use agentd_api::problem::Violation;
use rustix::io::Errno;

use super::driver::{Driver, absent_message};
use super::hierarchy::Controller;
use crate::{ContainerContext, Isolator, IsolatorError, Launch};

const NAME: &str = "cgroup/hugetlb";

/// The isolator `cgroup/hugetlb`.
#[derive(Debug)]
pub struct Hugetlb {
    driver: Arc<Driver>,
    sizes: Vec<String>,
}

impl Hugetlb {
    /// With the host's driver; reads the page sizes that the kernel has.
    pub fn new(driver: Arc<Driver>) -> Self {
        let sizes = std::fs::read_dir("/sys/kernel/mm/hugepages")
            .into_iter()
            .flatten()
            .filter_map(|entry| size_of(entry.ok()?.file_name().to_str()?))
            .collect();
        Self { driver, sizes }
    }

    fn apply(&self, context: &ContainerContext<'_>) -> Result<(), IsolatorError> {
        let wanted = &context.container.agentd.hugepages;
        if wanted.is_empty() {
            return Ok(());
        }
        let tree = self.driver.demand(NAME, context.cgroup, Controller::Hugetlb)?;
        let word = if self.driver.is_v2(Controller::Hugetlb) { "max" } else { "limit_in_bytes" };
        for size in &self.sizes {
            let bytes = wanted.get(size).copied().unwrap_or(0).saturating_mul(1024 * 1024).to_string();
            let file = format!("{}/hugetlb.{size}.{word}", context.cgroup.cgroup_path());
            tree.write(&file, &bytes).map_err(|e| tree.error(NAME, &format!("write '{bytes}' to"), &file, e))?;
            // The limit on reservations makes mmap fail rather than the first touch (SIGBUS); Linux 5.7.
            let file = format!("{}/hugetlb.{size}.rsvd.{word}", context.cgroup.cgroup_path());
            match tree.write(&file, &bytes) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(tree.error(NAME, &format!("write '{bytes}' to"), &file, e)),
            }
        }
        Ok(())
    }
}

impl Isolator for Hugetlb {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, pod: &PodSpec, violations: &mut Vec<Violation>) {
        for (i, container) in pod.containers.iter().enumerate() {
            for size in container.agentd.hugepages.keys() {
                let path = format!("containers[{i}].agentd.hugepages.{size}");
                if !self.driver.has(Controller::Hugetlb) {
                    let message = format!("{NAME}: {}", absent_message(Controller::Hugetlb));
                    violations.push(Violation::new(path, message));
                } else if !self.sizes.contains(size) {
                    let has = if self.sizes.is_empty() { "none".to_owned() } else { self.sizes.join(", ") };
                    let message = format!("{NAME}: this host has no huge pages of this size; it has {has}");
                    violations.push(Violation::new(path, message));
                }
            }
        }
    }

    fn prepare(&self, container: &ContainerContext<'_>, _launch: &mut Launch) -> Result<(), IsolatorError> {
        self.apply(container)
    }

    fn update(&self, container: &ContainerContext<'_>) -> Result<(), IsolatorError> {
        self.apply(container)
    }
}

/// The controller's word for a folder such as `hugepages-2048kB`: `2MB`.
fn size_of(folder: &str) -> Option<String> {
    let kib: u64 = folder.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    Some(match kib {
        0..1024 => format!("{kib}KB"),
        1024..1_048_576 => format!("{}MB", kib / 1024),
        _ => format!("{}GB", kib / 1_048_576),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_named_as_the_kernel_names_them() {
        assert_eq!(size_of("hugepages-64kB").as_deref(), Some("64KB"));
        assert_eq!(size_of("hugepages-2048kB").as_deref(), Some("2MB"));
        assert_eq!(size_of("hugepages-1048576kB").as_deref(), Some("1GB"));
        assert_eq!(size_of("demote"), None);
    }
}
