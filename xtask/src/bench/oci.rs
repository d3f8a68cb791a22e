//! What the peers run: an unpacked root file system with the static program, and OCI bundles of it.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// Limits of each contestant's container, the same for all.
pub const MEMORY_MIB: u64 = 64;
pub const CPUS: f64 = 0.5;
pub const PIDS: u64 = 512;
const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Unpacks by hand what the image holds, and the folders on which a runtime mounts.
pub fn root_file_system(dir: &Path, program: &Path) -> Result<(), String> {
    for folder in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(dir.join(folder)).map_err(|error| format!("{}: {error}", dir.display()))?;
    }
    fs::copy(program, dir.join("bin/testbox")).map_err(|error| format!("{}: {error}", program.display()))?;
    Ok(())
}

/// Writes a bundle whose container runs `words` in its own cgroup and namespaces.
pub fn bundle(dir: &Path, root: &Path, cgroup: &str, words: &[&str]) -> Result<(), String> {
    fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let path = dir.join("config.json");
    fs::write(&path, configuration(root, cgroup, words).to_string())
        .map_err(|error| format!("{}: {error}", path.display()))
}

fn configuration(root: &Path, cgroup: &str, words: &[&str]) -> Value {
    let plain = ["nosuid", "noexec", "nodev"];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": words,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
        },
        "root": {"path": root, "readonly": true},
        "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": plain},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": plain},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": plain},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}],
                "memory": {"limit": MEMORY_MIB << 20},
                "cpu": {"shares": (CPUS * 1024.0) as u64, "quota": (CPUS * 100_000.0) as u64, "period": 100_000},
                "pids": {"limit": PIDS},
            },
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"},
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
