//! Parts of `/proc` and `/sys` that would show or change the host are hidden or read-only, and the check that the host
//! can make the namespaces that a pod asks for. The namespaces themselves are made by the launcher.

use agentd_api::pod::PodSpec;
use agentd_api::problem::Violation;

use crate::{ContainerContext, Isolator, IsolatorError, Launch};

const NAME: &str = "namespaces";

/// Hidden: they tell of the host's memory, keys, timers and hardware, which no namespace covers.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Read-only: writing there configures the host.
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Sets the hidden and read-only paths of the plan.
#[derive(Debug, Clone)]
pub struct Namespaces {
    /// Why user namespaces cannot be made, if they cannot.
    no_user_namespaces: Option<String>,
}

impl Namespaces {
    /// The isolator; looks at what the host's kernel offers.
    pub fn new() -> Self {
        let limit_path = "/proc/sys/user/max_user_namespaces";
        let limit = std::fs::read_to_string(limit_path).unwrap_or_default();
        let no_user_namespaces = if !std::path::Path::new("/proc/self/ns/user").exists() {
            Some("this host's kernel has no user namespaces: use one with CONFIG_USER_NS or leave it false".to_owned())
        } else if limit.trim() == "0" {
            Some(format!(
                "user namespaces are switched off on this host ({limit_path} is 0): raise sysctl \
                 user.max_user_namespaces or leave it false"
            ))
        } else {
            None
        };
        Self { no_user_namespaces }
    }
}

impl Default for Namespaces {
    fn default() -> Self {
        Self::new()
    }
}

impl Isolator for Namespaces {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, pod: &PodSpec, violations: &mut Vec<Violation>) {
        if pod.agentd.user_namespace
            && let Some(reason) = &self.no_user_namespaces
        {
            violations.push(Violation::new("agentd.userNamespace", reason));
        }
    }

    fn prepare(&self, _context: &ContainerContext<'_>, launch: &mut Launch) -> Result<(), IsolatorError> {
        let owned = |paths: &[&str]| paths.iter().map(|path| path.as_bytes().to_vec()).collect();
        launch.plan.masked = owned(MASKED);
        launch.plan.readonly = owned(READ_ONLY);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_namespaces_are_refused_only_where_asked_for_and_missing() {
        let isolator = Namespaces { no_user_namespaces: Some("switched off".to_owned()) };
        let mut pod = crate::seccomp::sample_pod();
        let mut found = Vec::new();
        isolator.check(&pod, &mut found);
        assert_eq!(found, []);
        pod.agentd.user_namespace = true;
        isolator.check(&pod, &mut found);
        assert_eq!(found[0].path, "agentd.userNamespace");
        let mut found = Vec::new();
        Namespaces { no_user_namespaces: None }.check(&pod, &mut found);
        assert_eq!(found, []);
    }
}
