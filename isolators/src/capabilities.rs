//! The capabilities of a container: a small default set, changed by `agentd.capabilities`.
//!
//! The inheritable and ambient sets are always empty (the launcher sees to it), and `no_new_privs` is always set, so that
//! no program in the container gains a capability by being executed.

use agentd_api::pod::{CapabilityChange, Container, PodSpec};
use agentd_api::problem::Violation;
use agentd_launcher::plan::CapabilitySets;

use crate::{ContainerContext, Isolator, IsolatorError, Launch};

const NAME: &str = "capabilities";

/// All capabilities, in the order of their numbers.
const NAMES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has unless its pod says otherwise: enough for package managers and servers that start as root and
/// drop to a user, nothing that configures the host.
const DEFAULT: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// The bit of a capability by its name, with or without `CAP_`, in any case; none for an unknown name.
pub fn bit(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|known| *known == short).map(|number| 1 << number)
}

fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("ALL") || name.eq_ignore_ascii_case("CAP_ALL")
}

/// The default set as a mask.
pub fn default_mask() -> u64 {
    DEFAULT.iter().filter_map(|name| bit(name)).fold(0, |mask, one| mask | one)
}

/// What this daemon can hand on, and what the kernel knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostCapabilities {
    /// Capabilities both permitted to the daemon and in its bounding set.
    pub grantable: u64,
    /// Capabilities that the kernel knows.
    pub known: u64,
}

impl HostCapabilities {
    /// Reads the capabilities of this process.
    pub fn read() -> Result<Self, IsolatorError> {
        let set = |set: caps::CapSet| -> Result<u64, IsolatorError> {
            let held = caps::read(None, set).map_err(|e| {
                IsolatorError::new(
                    NAME,
                    format!("agentd's own capabilities cannot be read ({e}): a kernel from 6.1 is needed"),
                )
            })?;
            Ok(held.iter().fold(0, |mask, one| mask | (1u64 << one.index())))
        };
        let grantable = set(caps::CapSet::Permitted)? & set(caps::CapSet::Bounding)?;
        let path = "/proc/sys/kernel/cap_last_cap";
        let last = std::fs::read_to_string(path)
            .map_err(|e| IsolatorError::io(NAME, format!("{path} cannot be read, is /proc mounted?"), e))?;
        let last: u32 = last.trim().parse().map_err(|_| {
            IsolatorError::new(NAME, format!("{path} holds {:?}, expected the number of a capability", last.trim()))
        })?;
        Ok(Self { grantable, known: u64::MAX >> (63 - last.min(63)) })
    }

    /// The capabilities of a container of this pod. In a user namespace of its own all that the kernel knows can be
    /// handed out, because they count only inside.
    pub fn of(&self, pod: &PodSpec, container: &Container) -> u64 {
        let available = if pod.agentd.user_namespace { self.known } else { self.grantable };
        apply(&container.agentd.capabilities, available)
    }
}

/// Default set, less `drop`, plus `add`, within what is available.
fn apply(change: &CapabilityChange, available: u64) -> u64 {
    let named = |names: &[String]| names.iter().filter_map(|name| bit(name)).fold(0, |mask, one| mask | one);
    let mut mask = default_mask();
    if change.drop.iter().any(|name| is_all(name)) {
        mask = 0;
    }
    if change.add.iter().any(|name| is_all(name)) {
        mask = available;
    }
    (mask & !named(&change.drop) | named(&change.add)) & available
}

/// Sets the capability masks of the plan.
#[derive(Debug, Clone, Copy)]
pub struct Capabilities {
    host: HostCapabilities,
}

impl Capabilities {
    /// The isolator on a host with these capabilities.
    pub fn new(host: HostCapabilities) -> Self {
        Self { host }
    }
}

impl Isolator for Capabilities {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, pod: &PodSpec, violations: &mut Vec<Violation>) {
        let own_users = pod.agentd.user_namespace;
        let available = if own_users { self.host.known } else { self.host.grantable };
        for (index, container) in pod.containers.iter().enumerate() {
            let change = &container.agentd.capabilities;
            let path = format!("containers[{index}].agentd.capabilities");
            for (field, names) in [("add", &change.add), ("drop", &change.drop)] {
                for (at, name) in names.iter().enumerate().filter(|(_, name)| !is_all(name)) {
                    let message = match bit(name) {
                        None => format!(
                            "{name:?} is no capability: expected a name such as NET_RAW (see capabilities(7)) or ALL"
                        ),
                        Some(one) if field == "drop" || available & one != 0 => continue,
                        Some(one) if self.host.known & one == 0 => {
                            format!("{name} is not known to this host's kernel: leave it out or use a newer kernel")
                        }
                        Some(_) => format!(
                            "{name} cannot be given because agentd itself does not have it on this host: \
                             start agentd with CAP_{short} (CapabilityBoundingSet= of its unit) or leave it out",
                            short = name.to_ascii_uppercase().trim_start_matches("CAP_"),
                        ),
                    };
                    violations.push(Violation::new(format!("{path}.{field}[{at}]"), message));
                }
            }
            let dropped = apply(&CapabilityChange { add: Vec::new(), drop: change.drop.clone() }, u64::MAX);
            for name in DEFAULT.iter().filter(|name| bit(name).is_some_and(|one| dropped & !available & one != 0)) {
                violations.push(Violation::new(
                    format!("{path}.drop"),
                    format!(
                        "{name} belongs to the default set, but agentd itself does not have it on this host: start \
                         agentd with CAP_{name} (CapabilityBoundingSet= of its unit) or add {name} to this list"
                    ),
                ));
            }
        }
    }

    fn prepare(&self, context: &ContainerContext<'_>, launch: &mut Launch) -> Result<(), IsolatorError> {
        let mask = self.host.of(context.pod, context.container);
        launch.plan.capabilities = CapabilitySets { bounding: mask, permitted: mask };
        launch.plan.no_new_privs = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(names: &[&str]) -> u64 {
        names.iter().map(|name| bit(name).expect("known name")).fold(0, |mask, one| mask | one)
    }

    fn change(add: &[&str], drop: &[&str]) -> CapabilityChange {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        CapabilityChange { add: own(add), drop: own(drop) }
    }

    #[test]
    fn numbers_are_those_of_the_kernel() {
        for (name, number) in [("CHOWN", 0), ("SETPCAP", 8), ("SYS_ADMIN", 21), ("CHECKPOINT_RESTORE", 40)] {
            assert_eq!(bit(name), Some(1 << number), "{name}");
        }
        assert_eq!(bit("cap_net_raw"), bit("NET_RAW"));
        assert_eq!(bit("NO_SUCH"), None);
        assert_eq!(NAMES.len(), caps::all().len());
        for capability in caps::all() {
            assert_eq!(bit(&capability.to_string()), Some(1 << capability.index()), "{capability}");
        }
    }

    #[test]
    fn drop_comes_before_add_and_all_is_everything() {
        let all = u64::MAX >> 23;
        assert_eq!(apply(&change(&[], &[]), all), default_mask());
        assert_eq!(
            apply(&change(&["NET_RAW"], &["CHOWN"]), all),
            default_mask() & !mask(&["CHOWN"]) | mask(&["NET_RAW"])
        );
        assert_eq!(apply(&change(&[], &["ALL"]), all), 0);
        assert_eq!(apply(&change(&["KILL"], &["all"]), all), mask(&["KILL"]));
        assert_eq!(apply(&change(&["ALL"], &["SYS_ADMIN"]), all), all & !mask(&["SYS_ADMIN"]));
        assert_eq!(apply(&change(&["ALL"], &[]), all & !mask(&["SYS_RESOURCE"])), all & !mask(&["SYS_RESOURCE"]));
    }

    #[test]
    fn what_agentd_lacks_is_refused_by_field() {
        let all = u64::MAX >> 23;
        let host = HostCapabilities { grantable: all & !mask(&["SYS_RESOURCE", "SETFCAP"]), known: all };
        let isolator = Capabilities::new(host);
        let mut pod = crate::seccomp::sample_pod();
        pod.containers[0].agentd.capabilities =
            change(&["NET_RAW", "CAP_SYS_RESOURCE", "NONSENSE"], &["ALSO_NONSENSE"]);
        let mut found = Vec::new();
        isolator.check(&pod, &mut found);
        let paths: Vec<&str> = found.iter().map(|v| v.path.as_str()).collect();
        let at = |field: &str| format!("containers[0].agentd.capabilities.{field}");
        assert_eq!(paths, [at("add[1]"), at("add[2]"), at("drop[0]"), at("drop")], "{found:?}");
        assert!(found[0].message.contains("CAP_SYS_RESOURCE"), "{}", found[0]);
        assert!(found[3].message.contains("SETFCAP"), "{}", found[3]);

        pod.agentd.user_namespace = true;
        pod.containers[0].agentd.capabilities = change(&["SYS_RESOURCE"], &[]);
        let mut found = Vec::new();
        isolator.check(&pod, &mut found);
        assert_eq!(found, []);
        assert_ne!(host.of(&pod, &pod.containers[0]) & mask(&["SYS_RESOURCE"]), 0);
    }

    #[test]
    fn the_host_is_read() {
        let host = HostCapabilities::read().expect("readable");
        assert_eq!(host.grantable & !host.known, 0);
        assert!(host.known >= mask(&["CHECKPOINT_RESTORE"]), "a kernel from 6.1 knows 41 capabilities");
    }
}
