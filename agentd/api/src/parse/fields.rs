//! The names of all fields, object by object. The reader refuses names that are not here, and a test holds that the
//! reference (`docs/pod.md`) describes each one.

/// One kind of JSON object and its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fields {
    /// Where it stands, as the reference titles it, e.g. `containers[].exec`.
    pub object: &'static str,
    /// Its fields.
    pub names: &'static [&'static str],
}

/// Every kind of object with its fields.
pub fn known_fields() -> &'static [&'static Fields] {
    ALL
}

/// Declares each table and the list of all tables in one go, so that none is forgotten.
macro_rules! tables {
    ($($table:ident: $object:literal = [$($name:literal),* $(,)?];)*) => {
        $(pub(super) static $table: Fields = Fields { object: $object, names: &[$($name),*] };)*
        static ALL: &[&Fields] = &[$(&$table),*];
    };
}

tables! {
    POD: "the pod" = [
        "id", "labels", "version", "user", "environment", "secrets", "networks", "volumes", "scaling", "scheduling",
        "executorResources", "containers", "agentd",
    ];
    ENV_SECRET: "environment.*" = ["secret"];
    SECRET: "secrets.*" = ["source"];
    NETWORK: "networks[]" = ["name", "mode", "labels"];
    VOLUME: "volumes[]" = ["name", "host", "agentd"];
    VOLUME_AGENTD: "volumes[].agentd" = ["tmpfsMib", "secrets"];
    SCALING: "scaling" = ["kind", "instances"];
    SCHEDULING: "scheduling" = ["backoff", "upgrade", "placement", "killSelection", "unreachableStrategy"];
    BACKOFF: "scheduling.backoff" = ["backoff", "backoffFactor", "maxLaunchDelay"];
    UPGRADE: "scheduling.upgrade" = ["minimumHealthCapacity", "maximumOverCapacity"];
    PLACEMENT: "scheduling.placement" = ["constraints", "acceptedResourceRoles"];
    CONSTRAINT: "scheduling.placement.constraints[]" = ["fieldName", "operator", "value"];
    UNREACHABLE: "scheduling.unreachableStrategy" = ["inactiveAfterSeconds", "expungeAfterSeconds"];
    EXECUTOR_RESOURCES: "executorResources" = ["cpus", "mem", "disk"];
    POD_AGENTD: "agentd" = [
        "restart", "restartScope", "persistent", "sharePid", "userNamespace", "isolatedNetwork", "dns",
    ];
    DNS: "agentd.dns" = ["nameservers", "search", "options"];
    CONTAINER: "containers[]" = [
        "name", "exec", "resources", "endpoints", "image", "environment", "user", "labels", "healthCheck",
        "volumeMounts", "artifacts", "lifecycle", "agentd",
    ];
    EXEC: "containers[].exec" = ["command", "overrideEntrypoint"];
    COMMAND: "containers[].exec.command" = ["shell", "argv"];
    RESOURCES: "containers[].resources" = ["cpus", "mem", "disk", "gpus"];
    ENDPOINT: "containers[].endpoints[]" = ["name", "containerPort", "hostPort", "protocol", "labels"];
    IMAGE: "containers[].image" = ["kind", "id", "forcePull"];
    HEALTH_CHECK: "containers[].healthCheck" = [
        "http", "tcp", "exec", "gracePeriodSeconds", "intervalSeconds", "maxConsecutiveFailures", "timeoutSeconds",
        "delaySeconds",
    ];
    HTTP_CHECK: "containers[].healthCheck.http" = ["endpoint", "path", "scheme"];
    TCP_CHECK: "containers[].healthCheck.tcp" = ["endpoint"];
    EXEC_CHECK: "containers[].healthCheck.exec" = ["command"];
    VOLUME_MOUNT: "containers[].volumeMounts[]" = ["name", "mountPath", "readOnly", "agentd"];
    MOUNT_AGENTD: "containers[].volumeMounts[].agentd" = ["subPath"];
    ARTIFACT: "containers[].artifacts[]" = ["uri", "extract", "executable", "cache", "destPath"];
    LIFECYCLE: "containers[].lifecycle" = ["killGracePeriodSeconds"];
    CONTAINER_AGENTD: "containers[].agentd" = [
        "startAfter", "capabilities", "seccomp", "exclusiveCores", "cpu", "memory", "pids", "io", "hugepages",
        "rlimits", "readOnlyRoot", "workdir", "log", "gpu",
    ];
    CAPABILITIES: "containers[].agentd.capabilities" = ["add", "drop"];
    SECCOMP: "containers[].agentd.seccomp" = ["profile"];
    CPU: "containers[].agentd.cpu" = ["limit", "burstMs"];
    MEMORY: "containers[].agentd.memory" = ["low", "high"];
    IO: "containers[].agentd.io" = ["weight", "limits"];
    IO_LIMIT: "containers[].agentd.io.limits[]" = ["device", "readBps", "writeBps", "readIops", "writeIops"];
    LOG: "containers[].agentd.log" = ["maxBytes"];
    GPU: "containers[].agentd.gpu" = ["share"];
}

/// The body of an exec call, which is no part of a pod.
pub(super) static EXEC_REQUEST: Fields = Fields {
    object: "the exec request",
    names: &[
        "container",
        "instance",
        "command",
        "tty",
        "rows",
        "columns",
        "stdin",
        "environment",
        "user",
        "workdir",
        "capabilities",
        "detach",
        "idleSeconds",
        "maxSeconds",
        "image",
    ],
};

/// The name that was most likely meant: one that differs only in case or by a few letters.
pub(super) fn did_you_mean<'a>(written: &str, names: &[&'a str]) -> Option<&'a str> {
    /// A longer word cannot be near any name.
    const LONGEST: usize = 40;
    let written: Vec<char> = written.chars().take(LONGEST + 1).flat_map(char::to_lowercase).collect();
    if written.len() > LONGEST {
        return None;
    }
    names
        .iter()
        .map(|name| (distance(&written, &name.chars().flat_map(char::to_lowercase).collect::<Vec<_>>()), *name))
        // Up to a third of the letters may be wrong, and one in any word.
        .filter(|(distance, name)| *distance <= (name.chars().count() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// How many letters must be inserted, removed, replaced, or swapped with their neighbour to get from one word to the
/// other.
fn distance(from: &[char], to: &[char]) -> usize {
    let mut table = vec![vec![0; to.len() + 1]; from.len() + 1];
    for row in 0..=from.len() {
        for column in 0..=to.len() {
            table[row][column] = if row == 0 || column == 0 {
                row + column
            } else {
                let replaced = usize::from(from[row - 1] != to[column - 1]);
                let mut least = (table[row - 1][column] + 1)
                    .min(table[row][column - 1] + 1)
                    .min(table[row - 1][column - 1] + replaced);
                let swapped =
                    row > 1 && column > 1 && from[row - 1] == to[column - 2] && from[row - 2] == to[column - 1];
                if swapped {
                    least = least.min(table[row - 2][column - 2] + 1);
                }
                least
            };
        }
    }
    table[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_finds_its_name() {
        for (written, meant) in [
            ("restrat", Some("restart")),
            ("RESTART", Some("restart")),
            ("restartscope", Some("restartScope")),
            ("share_pid", Some("sharePid")),
            ("dsn", Some("dns")),
            ("dn", Some("dns")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(did_you_mean(written, POD_AGENTD.names), meant, "{written}");
        }
        assert_eq!(did_you_mean(&"x".repeat(1_000_000), POD.names), None);
    }

    #[test]
    fn no_object_lists_a_field_twice() {
        for fields in known_fields() {
            let distinct: std::collections::BTreeSet<_> = fields.names.iter().collect();
            assert_eq!(distinct.len(), fields.names.len(), "{}", fields.object);
        }
    }
}
