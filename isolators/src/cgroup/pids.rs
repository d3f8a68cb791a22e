//! `cgroup/pids`: how many processes and threads a container may have.

use std::sync::Arc;

use agentd_api::pod::PodSpec;
use agentd_api::problem::Violation;

use super::driver::{Driver, absent_message};
use super::hierarchy::Controller;
use crate::{ContainerContext, Isolator, IsolatorError, Launch, Usage};

const NAME: &str = "cgroup/pids";

/// Most that the kernel takes (`PID_MAX_LIMIT` of 64-bit hosts).
const MOST: u64 = 4 * 1024 * 1024;

/// The isolator `cgroup/pids`.
#[derive(Debug)]
pub struct Pids {
    driver: Arc<Driver>,
    default_limit: Option<u64>,
}

impl Pids {
    /// With the host's driver and the node's limit for containers that name none; none means no limit for those.
    pub fn new(driver: Arc<Driver>, default_limit: Option<u64>) -> Self {
        Self { driver, default_limit }
    }

    fn apply(&self, context: &ContainerContext<'_>) -> Result<(), IsolatorError> {
        let limit = context.container.agentd.pids.or(self.default_limit);
        if limit.is_none() && !self.driver.has(Controller::Pids) {
            return Ok(());
        }
        let tree = self.driver.need(NAME, Controller::Pids)?;
        let file = format!("{}/pids.max", context.cgroup.cgroup_path());
        let value = limit.filter(|n| *n <= MOST).map_or_else(|| "max".to_owned(), |n| n.to_string());
        tree.write(&file, &value).map_err(|e| tree.error(NAME, &format!("write '{value}' to"), &file, e))
    }
}

impl Isolator for Pids {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, pod: &PodSpec, violations: &mut Vec<Violation>) {
        for (i, container) in pod.containers.iter().enumerate() {
            let path = format!("containers[{i}].agentd.pids");
            let limit = container.agentd.pids;
            if limit == Some(0) {
                let message = format!("{NAME}: 0 lets nothing start; expected at least 1, or no value for the default");
                violations.push(Violation::new(path, message));
            } else if limit.or(self.default_limit).is_some() && !self.driver.has(Controller::Pids) {
                let message = format!("{NAME}: {}", absent_message(Controller::Pids));
                violations.push(Violation::new(path, message));
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
        let Some(tree) = self.driver.tree(Controller::Pids) else { return Ok(()) };
        let file = format!("{}/pids.current", container.cgroup.cgroup_path());
        usage.pids = tree.read_number(&file).map_err(|e| tree.error(NAME, "read", &file, e))?;
        Ok(())
    }
}
