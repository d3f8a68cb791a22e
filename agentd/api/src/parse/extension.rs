//! Readers of agentd's own settings: the key `agentd` of a pod, a volume, a container and a volume mount.

use std::collections::BTreeMap;

use super::fields;
use super::format;
use super::pod::most;
use super::reader::Place;
use crate::pod::{
    CapabilityChange, ContainerExtension, CpuExtension, Dns, GpuExtension, IoExtension, IoLimit, LogExtension,
    MemoryExtension, MountExtension, PodExtension, RestartPolicy, RestartScope, SeccompChoice, VolumeExtension,
};

/// The capabilities of Linux, by number, without `CAP_`.
#[rustfmt::skip]
const CAPABILITIES: [&str; 41] = [
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
];

/// The resource limits of Linux, as prlimit(1) names them.
#[rustfmt::skip]
const RLIMITS: [&str; 16] = [
    "as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
    "rttime", "sigpending", "stack",
];

/// `agentd` of the pod.
pub(super) fn pod_extension(at: &Place) -> PodExtension {
    let o = at.object(&fields::POD_AGENTD);
    PodExtension {
        restart: o
            .at("restart")
            .word(&[
                ("always", RestartPolicy::Always),
                ("on-failure", RestartPolicy::OnFailure),
                ("never", RestartPolicy::Never),
            ])
            .unwrap_or_default(),
        restart_scope: o
            .at("restartScope")
            .word(&[("pod", RestartScope::Pod), ("container", RestartScope::Container)])
            .unwrap_or_default(),
        persistent: o.at("persistent").flag().unwrap_or_default(),
        share_pid: o.at("sharePid").flag().unwrap_or_default(),
        user_namespace: o.at("userNamespace").flag().unwrap_or_default(),
        isolated_network: o.at("isolatedNetwork").flag().unwrap_or_default(),
        dns: o.at("dns").optional(dns),
    }
}

fn dns(at: &Place) -> Dns {
    let o = at.object(&fields::DNS);
    Dns {
        nameservers: o.at("nameservers").set_of(|server| server.text(format::ip)),
        search: o.at("search").set_of(|domain| domain.text(format::domain)),
        options: o.at("options").set_of(|option| option.text(format::resolver_option)),
    }
}

/// `agentd` of a volume.
pub(super) fn volume_extension(at: &Place) -> VolumeExtension {
    let o = at.object(&fields::VOLUME_AGENTD);
    VolumeExtension {
        tmpfs_mib: o.at("tmpfsMib").whole(1..=most::MIB as i64).map(|mib| mib as u64),
        secrets: o.at("secrets").map(format::file_name, |secret| secret.text(format::filled)),
    }
}

/// `agentd` of a volume mount.
pub(super) fn mount_extension(at: &Place) -> MountExtension {
    let o = at.object(&fields::MOUNT_AGENTD);
    MountExtension { sub_path: o.at("subPath").text(format::relative_path) }
}

/// `agentd` of a container.
pub(super) fn container_extension(at: &Place) -> ContainerExtension {
    let o = at.object(&fields::CONTAINER_AGENTD);
    ContainerExtension {
        // A name that cannot be read stays as an empty one, so that the others keep their places for the rules.
        start_after: o.at("startAfter").list(|name| name.text(format::filled).unwrap_or_default()),
        capabilities: capabilities(&o.at("capabilities")),
        seccomp: o.at("seccomp").optional(seccomp).unwrap_or_default(),
        exclusive_cores: o.at("exclusiveCores").flag().unwrap_or_default(),
        cpu: cpu(&o.at("cpu")),
        memory: memory(&o.at("memory")),
        pids: count(&o.at("pids")),
        io: io(&o.at("io")),
        hugepages: hugepages(&o.at("hugepages")),
        rlimits: o.at("rlimits").map(rlimit_name, rlimit),
        read_only_root: o.at("readOnlyRoot").flag().unwrap_or_default(),
        workdir: o.at("workdir").text(format::absolute_path),
        log: LogExtension { max_bytes: count(&o.at("log").object(&fields::LOG).at("maxBytes")) },
        gpu: gpu(&o.at("gpu")),
    }
}

/// A whole number of 1 or more.
fn count(at: &Place) -> Option<u64> {
    at.whole(1..=i64::MAX).map(|count| count as u64)
}

fn capabilities(at: &Place) -> CapabilityChange {
    let o = at.object(&fields::CAPABILITIES);
    CapabilityChange {
        add: o.at("add").set_of(|name| name.text_as(capability)),
        drop: o.at("drop").set_of(|name| {
            name.text_as(|text| if text.eq_ignore_ascii_case("all") { Ok("ALL".to_owned()) } else { capability(text) })
        }),
    }
}

/// The name of a capability in the one form in which it is kept: upper case, without `CAP_`.
fn capability(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if CAPABILITIES.contains(&name) {
        return Ok(name.to_owned());
    }
    let hint = fields::did_you_mean(name, &CAPABILITIES).map(|near| format!("; did you mean `{near}`?"));
    let all = if name == "ALL" { "; ALL can only be dropped, name those to add" } else { "" };
    Err(format!("a capability of Linux, such as \"NET_RAW\"{all}{}", hint.unwrap_or_default()))
}

fn seccomp(at: &Place) -> SeccompChoice {
    if at.is_object() {
        let profile = at.object(&fields::SECCOMP).at("profile").required("the name of a profile of this node");
        return SeccompChoice::Profile(profile.text(format::file_name).unwrap_or_default());
    }
    let read = |text: &str| match text {
        "default" => Ok(SeccompChoice::Default),
        "unconfined" => Ok(SeccompChoice::Unconfined),
        _ => Err("\"default\", \"unconfined\" or {\"profile\": \"name\"}".to_owned()),
    };
    at.text_as(read).unwrap_or_default()
}

fn cpu(at: &Place) -> CpuExtension {
    let o = at.object(&fields::CPU);
    CpuExtension {
        limit: o.at("limit").number(0.0..=most::CPUS),
        burst_ms: o.at("burstMs").whole(0..=most::COUNT).unwrap_or_default() as u64,
    }
}

fn memory(at: &Place) -> MemoryExtension {
    let o = at.object(&fields::MEMORY);
    MemoryExtension { low: o.at("low").number(0.0..=most::MIB), high: o.at("high").number(0.001..=most::MIB) }
}

fn io(at: &Place) -> IoExtension {
    let o = at.object(&fields::IO);
    IoExtension {
        weight: o.at("weight").whole(1..=10_000).map(|weight| weight as u32),
        limits: o.at("limits").list(io_limit),
    }
}

fn io_limit(at: &Place) -> IoLimit {
    let o = at.object(&fields::IO_LIMIT);
    let limit = IoLimit {
        device: o.at("device").required("the path of a block device").text(format::device).unwrap_or_default(),
        read_bps: count(&o.at("readBps")),
        write_bps: count(&o.at("writeBps")),
        read_iops: count(&o.at("readIops")),
        write_iops: count(&o.at("writeIops")),
    };
    if ["readBps", "writeBps", "readIops", "writeIops"].iter().all(|name| !o.at(name).is_present()) {
        o.fault("expected at least one of `readBps`, `writeBps`, `readIops` and `writeIops`");
    }
    limit
}

fn hugepages(at: &Place) -> BTreeMap<String, u64> {
    at.map(
        |size| match size {
            "2MB" | "1GB" => Ok(()),
            _ => Err("a size of huge pages: \"2MB\" or \"1GB\"".to_owned()),
        },
        |amount| amount.whole(0..=most::MIB as i64).map(|mib| mib as u64),
    )
}

fn rlimit_name(name: &str) -> Result<(), String> {
    if RLIMITS.contains(&name) {
        return Ok(());
    }
    let plain = name.to_ascii_lowercase();
    let plain = plain.strip_prefix("rlimit_").unwrap_or(&plain);
    let hint = fields::did_you_mean(plain, &RLIMITS).map(|near| format!("; did you mean `{near}`?"));
    Err(format!("one of {}{}", RLIMITS.join(", "), hint.unwrap_or_default()))
}

/// `[soft, hard]`, where -1 is infinity.
fn rlimit(at: &Place) -> Option<[i64; 2]> {
    if !at.is_present() {
        return None;
    }
    let pair = at.elements();
    let [soft, hard] = pair.as_slice() else {
        if at.is_list() {
            at.fault(format!("found {} values, expected two: [soft, hard]", pair.len()));
        }
        return None;
    };
    let (soft, hard) = (soft.whole(-1..=i64::MAX), hard.whole(-1..=i64::MAX));
    let (soft, hard) = (soft?, hard?);
    let above = hard != -1 && (soft == -1 || soft > hard);
    if above {
        at.fault(format!("the soft limit {soft} is above the hard limit {hard}; lower it (-1 is infinity)"));
    }
    Some([soft, hard])
}

fn gpu(at: &Place) -> GpuExtension {
    let o = at.object(&fields::GPU);
    let place = o.at("share");
    let share = place.number(0.0..=1.0);
    if share.is_some_and(|share| share <= 0.0 || share >= 1.0) {
        place.fault("expected a part of one GPU, above 0 and below 1; for whole GPUs use `resources.gpus`");
    }
    GpuExtension { share }
}
