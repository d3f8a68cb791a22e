//! BPF: type information, and which kinds of programs load. A program that only returns 0 is loaded and dropped again.

use std::ffi::CStr;

use rustix::io::Errno;

use super::clone::last_errno;
use super::{Check, read};
use crate::config::Config;

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// `union bpf_attr` for BPF_PROG_LOAD, as far as it is used.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
    btf_fd: u32,
    func_info_size: u32,
    func_info: u64,
    func_info_count: u32,
    line_info_size: u32,
    line_info: u64,
    line_info_count: u32,
    attach_btf_id: u32,
}

/// Loads `return 0` as a program of this kind.
fn load(kind: u32, attach_type: u32, btf_id: u32) -> Result<(), Errno> {
    const PROG_LOAD: libc::c_int = 5;
    const LICENSE: &CStr = c"GPL";
    // r0 = 0; exit
    let program: [u64; 2] = [0x0000_0000_0000_00b7, 0x0000_0000_0000_0095];
    let attr = LoadAttr {
        kind,
        instruction_count: 2,
        instructions: program.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        expected_attach_type: attach_type,
        attach_btf_id: btf_id,
        ..LoadAttr::default()
    };
    // SAFETY: the attributes and what they point to live through the call, and the size given is theirs.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attr, size_of::<LoadAttr>()) };
    if fd < 0 {
        return Err(last_errno());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nothing else has it.
    drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd as i32) });
    Ok(())
}

pub(super) fn checks(_config: &Config) -> Vec<Check> {
    let btf = std::fs::read(BTF);
    let mut checks = vec![match &btf {
        Ok(btf) => Check::ok("bpf/btf", format!("{BTF}, {} KiB", btf.len() / 1024)),
        Err(error) => Check::warn(
            "bpf/btf",
            format!("{BTF}: {error}"),
            "run-queue, block and TCP signals of pods, which read the kernel's structures",
            "use a kernel with CONFIG_DEBUG_INFO_BTF",
        ),
    }];
    let kinds = [
        ("bpf/cgroup_device", 15, 0, "the allow-list of devices in the cgroup2 tree"),
        ("bpf/cgroup_skb", 8, 0, "network counters of pods by BPF"),
        ("bpf/sock_ops", 13, 3, "TCP round-trip times of pods"),
        ("bpf/tracepoint", 5, 0, "signals of pods from tracepoints"),
        ("bpf/raw_tracepoint", 17, 0, "signals of pods from raw tracepoints"),
    ];
    for (name, kind, attach_type, lost) in kinds {
        checks.push(match load(kind, attach_type, 0) {
            Ok(()) => Check::ok(name, "loads"),
            Err(error) => refused(name, error, lost),
        });
    }
    checks.push(tp_btf(btf.as_deref().ok()));
    checks.push(kprobe());
    checks
}

fn refused(name: &str, error: Errno, lost: &str) -> Check {
    let cure = match error {
        Errno::PERM => "run agentd with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, or CAP_SYS_ADMIN",
        Errno::NOSYS => "use a kernel with CONFIG_BPF_SYSCALL",
        _ => "use a kernel with CONFIG_CGROUP_BPF and CONFIG_BPF_EVENTS",
    };
    Check::warn(name, error.to_string(), lost, cure)
}

fn tp_btf(btf: Option<&[u8]>) -> Check {
    const TRACING: u32 = 26;
    const TRACE_RAW_TP: u32 = 23;
    const LOST: &str = "typed tracepoints; raw tracepoints serve in their place, at some cost";
    let Some(id) = btf.and_then(|btf| typedef(btf, b"btf_trace_sched_switch")) else {
        return Check::warn("bpf/tp_btf", "no type information", LOST, "use a kernel with CONFIG_DEBUG_INFO_BTF");
    };
    match load(TRACING, TRACE_RAW_TP, id) {
        Ok(()) => Check::ok("bpf/tp_btf", "loads"),
        Err(error) => refused("bpf/tp_btf", error, LOST),
    }
}

/// Number of the typedef of this name in the kernel's type information (BTF).
pub(super) fn typedef(btf: &[u8], name: &[u8]) -> Option<u32> {
    const TYPEDEF: u32 = 8;
    let word =
        |at: usize| -> Option<u32> { Some(u32::from_ne_bytes(btf.get(at..at.checked_add(4)?)?.try_into().ok()?)) };
    if word(0)? & 0xFFFF != 0xEB9F {
        return None;
    }
    let header = word(4)? as usize;
    let types = header.checked_add(word(8)? as usize)?;
    let types_end = types.checked_add(word(12)? as usize)?;
    let strings = header.checked_add(word(16)? as usize)?;
    let mut at = types;
    let mut id = 0;
    while at < types_end {
        id += 1;
        let (name_at, info) = (word(at)?, word(at + 4)?);
        let (kind, count) = (info >> 24 & 0x1F, (info & 0xFFFF) as usize);
        if kind == TYPEDEF {
            let text = btf.get(strings.checked_add(name_at as usize)?..)?;
            if text.strip_prefix(name).is_some_and(|rest| rest.first() == Some(&0)) {
                return Some(id);
            }
        }
        // What follows the three words depends on the kind.
        at += 12
            + match kind {
                1 | 14 | 17 => 4,
                3 => 12,
                4 | 5 | 15 | 19 => 12 * count,
                6 | 13 => 8 * count,
                _ => 0,
            };
    }
    None
}

fn kprobe() -> Check {
    // Loading says little: what matters is whether the kernel can place the probe.
    const SOURCE: &str = "/sys/bus/event_source/devices/kprobe/type";
    const LOST: &str = "nothing that agentd needs; signals of your own that stand on kprobes";
    match (read(SOURCE), load(2, 0, 0)) {
        (Some(_), Ok(())) => Check::ok("bpf/kprobe", "loads"),
        (None, _) => Check::ok("bpf/kprobe", "the kernel has no kprobes; not needed"),
        (Some(_), Err(error)) => Check::warn("bpf/kprobe", error.to_string(), LOST, "run agentd with CAP_PERFMON"),
    }
}
