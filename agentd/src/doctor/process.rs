//! The daemon's own standing: kernel, architecture, root, capabilities, limits, systemd.

use rustix::process::{Resource, getrlimit};

use super::{Check, read};
use crate::config::Config;

/// Capabilities without which no pod runs: number and name.
const NEEDED: [(u32, &str); 13] = [
    (0, "CHOWN"),
    (1, "DAC_OVERRIDE"),
    (3, "FOWNER"),
    (5, "KILL"),
    (6, "SETGID"),
    (7, "SETUID"),
    (8, "SETPCAP"),
    (12, "NET_ADMIN"),
    (18, "SYS_CHROOT"),
    (19, "SYS_PTRACE"),
    (21, "SYS_ADMIN"),
    (27, "MKNOD"),
    (31, "SETFCAP"),
];

/// Number of CAP_SYS_RESOURCE.
const SYS_RESOURCE: u32 = 24;

/// Descriptors for a few hundred containers: two pipes, a pidfd and sockets for each.
const DESCRIPTORS: u64 = 16_384;

pub(super) fn checks(_config: &Config) -> Vec<Check> {
    let mut checks = vec![kernel_version(), architecture(), root()];
    checks.extend(capabilities(&read("/proc/self/status").unwrap_or_default()));
    checks.extend([descriptors(), processes(), systemd()]);
    checks
}

/// Major and minor version of a release such as `6.1.0-13-amd64`.
pub(super) fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Version of the running kernel.
pub(super) fn running() -> (u32, u32) {
    version(&rustix::system::uname().release().to_string_lossy())
}

fn kernel_version() -> Check {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    if version(&release) >= (6, 1) {
        Check::ok("kernel", format!("Linux {release}"))
    } else {
        Check::fail("kernel", format!("Linux {release}"), "pods", "install Linux 6.1 or later (Debian 12 has it)")
    }
}

fn architecture() -> Check {
    let machine = rustix::system::uname().machine().to_string_lossy().into_owned();
    if ["x86_64", "aarch64"].contains(&machine.as_str()) {
        Check::ok("architecture", machine)
    } else {
        Check::fail(
            "architecture",
            machine,
            "pods: there is no seccomp profile for it",
            "use an x86_64 or aarch64 host",
        )
    }
}

fn root() -> Check {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        Check::ok("root", "effective uid 0")
    } else {
        Check::fail("root", format!("effective uid {}", uid.as_raw()), "pods", "run agentd as root")
    }
}

/// From `/proc/self/status`.
pub(super) fn capabilities(status: &str) -> Vec<Check> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let has = |number: u32| effective >> number & 1 == 1;
    let missing: Vec<String> =
        NEEDED.iter().filter(|(number, _)| !has(*number)).map(|(_, name)| format!("CAP_{name}")).collect();
    let needed = if missing.is_empty() {
        Check::ok("capabilities", "all that are needed")
    } else {
        Check::fail(
            "capabilities",
            format!("lacks {}", missing.join(", ")),
            "pods",
            "start agentd with them: remove them from CapabilityBoundingSet= or the container's drop list",
        )
    };
    let resource = if has(SYS_RESOURCE) {
        Check::ok("capabilities/sys_resource", "CAP_SYS_RESOURCE")
    } else {
        Check::warn(
            "capabilities/sys_resource",
            "lacks CAP_SYS_RESOURCE",
            "resource limits of pods above the daemon's own hard limits, and protecting the daemon from the OOM killer",
            "start agentd with CAP_SYS_RESOURCE, or raise its hard limits where it is started",
        )
    };
    vec![needed, resource]
}

fn descriptors() -> Check {
    let limit = getrlimit(Resource::Nofile).maximum;
    let found = limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    if limit.is_none_or(|limit| limit >= DESCRIPTORS) {
        Check::ok("limit/nofile", found)
    } else {
        Check::warn(
            "limit/nofile",
            found,
            "more than some hundred containers",
            format!("set LimitNOFILE={DESCRIPTORS} or more where agentd is started"),
        )
    }
}

fn processes() -> Check {
    let limit = getrlimit(Resource::Nproc).maximum;
    let found = limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    // Root is not bound by it, but containers that run as other users are.
    if limit.is_none_or(|limit| limit >= 4096) {
        Check::ok("limit/nproc", found)
    } else {
        Check::warn(
            "limit/nproc",
            found,
            "containers of other users than root with many processes",
            "set LimitNPROC=infinity where agentd is started",
        )
    }
}

fn systemd() -> Check {
    if !std::path::Path::new("/run/systemd/system").is_dir() {
        return Check::ok("systemd", "not running: agentd keeps its cgroups below the root of each hierarchy");
    }
    let own = read("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    Check::ok("systemd", format!("running; this command is in {own}"))
}
