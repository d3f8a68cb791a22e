//! `cgroup/cpu`: CPU weight from `resources.cpus`, and a hard limit (quota) with an optional burst.
//!
//! The pod's cgroup weighs as much as its containers and its executor resources together; without that, a pod of one
//! small container would get as much as a pod of ten large ones.

use std::sync::Arc;

use agentd_api::pod::{Container, PodSpec};
use agentd_api::problem::Violation;

use super::driver::{Driver, absent_message};
use super::files::{Tree, key_of};
use super::hierarchy::Controller;
use crate::{ContainerContext, Isolator, IsolatorError, Launch, Usage};

const NAME: &str = "cgroup/cpu";

/// Length of a quota period, microseconds.
const PERIOD_US: u64 = 100_000;

/// The kernel takes no smaller quota, microseconds.
const MIN_QUOTA_US: u64 = 1_000;

/// The isolator `cgroup/cpu`.
#[derive(Debug)]
pub struct Cpu {
    driver: Arc<Driver>,
}

impl Cpu {
    /// With the host's driver.
    pub fn new(driver: Arc<Driver>) -> Self {
        Self { driver }
    }

    /// Writes the weights and the quota.
    fn apply(&self, context: &ContainerContext<'_>) -> Result<(), IsolatorError> {
        let tree = self.driver.need(NAME, Controller::Cpu)?;
        let path = context.cgroup.cgroup_path();
        let pod = self.driver.sandbox_path(context.instance)?;
        let total = pod_cpus(context.pod);
        let own = context.container.resources.cpus;
        let quota = quota_us(context.container);
        let burst = context.container.agentd.cpu.burst_ms.saturating_mul(1000).min(quota.unwrap_or(0));
        if self.driver.is_v2(Controller::Cpu) {
            write(tree, &format!("{pod}/cpu.weight"), &weight(total).to_string())?;
            write(tree, &format!("{path}/cpu.weight"), &weight(own).to_string())?;
            // A burst may not exceed the quota at any moment: it is taken away first and given last.
            let burst_file = format!("{path}/cpu.max.burst");
            clear_burst(tree, &burst_file)?;
            let max = quota.map_or_else(|| format!("max {PERIOD_US}"), |us| format!("{us} {PERIOD_US}"));
            let max_file = format!("{path}/cpu.max");
            if quota.is_some() || tree.exists(&max_file) {
                write(tree, &max_file, &max)?;
            }
            if burst > 0 {
                write(tree, &burst_file, &burst.to_string())?;
            }
        } else {
            write(tree, &format!("{pod}/cpu.shares"), &shares(total).to_string())?;
            write(tree, &format!("{path}/cpu.shares"), &shares(own).to_string())?;
            let burst_file = format!("{path}/cpu.cfs_burst_us");
            clear_burst(tree, &burst_file)?;
            let quota_file = format!("{path}/cpu.cfs_quota_us");
            if quota.is_some() || tree.exists(&quota_file) {
                write(tree, &format!("{path}/cpu.cfs_period_us"), &PERIOD_US.to_string())?;
                write(tree, &quota_file, &quota.map_or_else(|| "-1".to_owned(), |us| us.to_string()))?;
            }
            if burst > 0 {
                write(tree, &burst_file, &burst.to_string())?;
            }
        }
        Ok(())
    }
}

impl Isolator for Cpu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, pod: &PodSpec, violations: &mut Vec<Violation>) {
        let pods = self.driver.pods();
        let (quota_file, burst_file) = if self.driver.is_v2(Controller::Cpu) {
            ("cpu.max", "cpu.max.burst")
        } else {
            ("cpu.cfs_quota_us", "cpu.cfs_burst_us")
        };
        for (i, container) in pod.containers.iter().enumerate() {
            let Some(tree) = self.driver.tree(Controller::Cpu) else {
                let message = format!("{NAME}: {}", absent_message(Controller::Cpu));
                violations.push(Violation::new(format!("containers[{i}].resources.cpus"), message));
                continue;
            };
            let quota = quota_us(container);
            if quota.is_some() && !tree.exists(&format!("{pods}/{quota_file}")) {
                let field = if container.agentd.cpu.limit.is_some() { "agentd.cpu.limit" } else { "resources.cpus" };
                violations.push(Violation::new(
                    format!("containers[{i}].{field}"),
                    format!(
                        "{NAME}: this kernel has no CPU quota ({quota_file}, CONFIG_CFS_BANDWIDTH); set \
                         agentd.cpu.limit to 0 for weight only"
                    ),
                ));
            }
            let burst = container.agentd.cpu.burst_ms;
            if burst == 0 {
                continue;
            }
            let path = format!("containers[{i}].agentd.cpu.burstMs");
            match quota {
                None => violations.push(Violation::new(
                    path,
                    format!("{NAME}: {burst} ms of burst without a CPU limit; set agentd.cpu.limit or leave burst out"),
                )),
                Some(us) if burst.saturating_mul(1000) > us => violations.push(Violation::new(
                    path,
                    format!(
                        "{NAME}: burst of {burst} ms is above the quota of {} ms in each {} ms; the kernel takes at \
                         most the quota",
                        us / 1000,
                        PERIOD_US / 1000
                    ),
                )),
                Some(_) if !tree.exists(&format!("{pods}/{burst_file}")) => violations.push(Violation::new(
                    path,
                    format!("{NAME}: this kernel has no CPU burst ({burst_file}); Linux 5.14 or later has"),
                )),
                Some(_) => {}
            }
        }
    }

    fn prepare(&self, container: &ContainerContext<'_>, _launch: &mut Launch) -> Result<(), IsolatorError> {
        self.apply(container)
    }

    fn update(&self, container: &ContainerContext<'_>) -> Result<(), IsolatorError> {
        self.apply(container)
    }

    fn usage(&self, container: &ContainerContext<'_>, usage: &mut Usage) -> Result<(), IsolatorError> {
        let file = format!("{}/cpu.stat", container.cgroup.cgroup_path());
        // The cgroup2 tree counts CPU time even where the controller is elsewhere.
        let unified = &self.driver.unified;
        let stat = unified.read(&file).map_err(|e| unified.error(NAME, "read", &file, e))?;
        usage.cpu_ns = key_of(&stat, "usage_usec").unwrap_or(0).saturating_mul(1000);
        usage.throttled_periods = if self.driver.is_v2(Controller::Cpu) {
            key_of(&stat, "nr_throttled").unwrap_or(0)
        } else if let Some(tree) = self.driver.tree(Controller::Cpu) {
            tree.read_key(&file, "nr_throttled").map_err(|e| tree.error(NAME, "read", &file, e))?.unwrap_or(0)
        } else {
            0
        };
        Ok(())
    }
}

fn write(tree: &Tree, file: &str, value: &str) -> Result<(), IsolatorError> {
    tree.write(file, value).map_err(|e| tree.error(NAME, &format!("write '{value}' to"), file, e))
}

fn clear_burst(tree: &Tree, file: &str) -> Result<(), IsolatorError> {
    match tree.write(file, "0") {
        // no such file before Linux 5.14
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(e) => Err(tree.error(NAME, "write '0' to", file, e)),
    }
}

/// CPUs of a pod as a whole.
fn pod_cpus(pod: &PodSpec) -> f64 {
    pod.executor_resources.cpus + pod.containers.iter().map(|c| c.resources.cpus).sum::<f64>()
}

/// `cpu.shares` for a number of CPUs: 1024 for one.
fn shares(cpus: f64) -> u64 {
    ((cpus * 1024.0).round() as u64).clamp(2, 262_144)
}

/// `cpu.weight` for a number of CPUs: 100, the kernel's default, for one.
fn weight(cpus: f64) -> u64 {
    ((cpus * 100.0).round() as u64).clamp(1, 10_000)
}

/// CPU time in each period, microseconds; none without a limit.
fn quota_us(container: &Container) -> Option<u64> {
    let limit = container.agentd.cpu.limit.unwrap_or(container.resources.cpus);
    (limit > 0.0).then(|| ((limit * PERIOD_US as f64).round() as u64).max(MIN_QUOTA_US))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_and_quotas_stay_in_what_the_kernel_takes() {
        assert_eq!((shares(0.0), shares(0.5), shares(1.0), shares(1e9)), (2, 512, 1024, 262_144));
        assert_eq!((weight(0.001), weight(0.5), weight(1.0), weight(1e9)), (1, 50, 100, 10_000));
    }
}
