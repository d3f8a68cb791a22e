//! Group `process`: programs begun, processes made and ended, by whom they were ended, and victims of want of memory.
//!
//! Counters count every one. Events tell of single ones, within the rate of their container.

use agentd_ebpf_common::fields::{
    BPRM_FILENAME, MM_ARG_END, MM_ARG_START, SIGNAL_EXIT_CODE, SIGNAL_FLAGS, SIGNAL_LIVE, SIGNAL_THREADS, TASK_COMM,
    TASK_EXIT_CODE, TASK_LEADER, TASK_MM, TASK_PARENT, TASK_PID, TASK_SIGNAL, TASK_START, TASK_TGID, VICTIM_IS_TASK,
};
use agentd_ebpf_common::{ARGUMENTS, COMM, EVENT_EXEC, EVENT_EXIT, EVENT_OOM, HOST, PATH, Processes, Sender};
use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::helpers::generated::{bpf_probe_read_kernel_str, bpf_probe_read_user};
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid};
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint, tracepoint};
use aya_ebpf::maps::{LruHashMap, PerCpuHashMap};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext, TracePointContext};

use crate::maps::{KNOWN, SENDERS};
use crate::{events, global, kernel, read};

/// By container, and of what is in none.
#[map]
pub static PROCESSES: PerCpuHashMap<u64, Processes> = PerCpuHashMap::with_max_entries(2048, BPF_F_NO_PREALLOC);

/// Processes of several threads whose end was counted a moment ago: when their first thread began, by number.
#[map]
pub static ENDED: LruHashMap<u32, u64> = LruHashMap::with_max_entries(1024, 0);

/// All threads of the process end with one status (`SIGNAL_GROUP_EXIT`).
const GROUP_EXIT: u32 = 4;
/// The signals that never end a process: SIGCHLD, SIGCONT, SIGURG, SIGWINCH.
const HARMLESS: u64 = 1 << 17 | 1 << 18 | 1 << 23 | 1 << 28;
/// `info` of a signal that a process sent without more, and of one that the kernel sent.
const INFO_NONE: u64 = 0;
const INFO_KERNEL: u64 = 1;

#[inline(always)]
fn counters(container: u64) -> Option<&'static mut Processes> {
    let found = match PROCESSES.get_ptr_mut(container) {
        Some(found) => found,
        None => PROCESSES.get_ptr_mut(kernel::unpublished())?,
    };
    Some(unsafe { &mut *found })
}

/// Number of the parent's process.
#[inline(always)]
fn parent(task: u64) -> u32 {
    let parent = read!(task, TASK_PARENT, u64).unwrap_or(0);
    read!(parent, TASK_TGID, u32).unwrap_or(0)
}

/// The current task, `task`, has begun the program of `bprm`.
#[inline(always)]
fn exec(task: u64, bprm: u64) -> Option<()> {
    let container = kernel::current();
    counters(container)?.execs += 1;
    events::send(container, EVENT_EXEC, |event| {
        event.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        event.parent = parent(task);
        event.command = bpf_get_current_comm().unwrap_or([0; COMM]);
        if let Some(path) = read!(bprm, BPRM_FILENAME, u64) {
            unsafe { bpf_probe_read_kernel_str(event.path.as_mut_ptr().cast(), PATH as u32, path as *const _) };
        }
        let mm = read!(task, TASK_MM, u64).unwrap_or(0);
        let begin = read!(mm, MM_ARG_START, u64).unwrap_or(0);
        let end = read!(mm, MM_ARG_END, u64).unwrap_or(0);
        let length = end.wrapping_sub(begin);
        let length = if length < ARGUMENTS as u64 { length as u32 } else { ARGUMENTS as u32 };
        if begin != 0
            && length != 0
            && unsafe { bpf_probe_read_user(event.arguments.as_mut_ptr().cast(), length, begin as *const _) } == 0
        {
            event.length = length as u16;
        }
    })
}

/// The current task has made `child`.
#[inline(always)]
fn fork(child: u64) -> Option<()> {
    let counters = counters(kernel::current())?;
    let process = read!(child, TASK_TGID, u32)?;
    if read!(child, TASK_PID, u32)? == process {
        counters.forks += 1;
    } else {
        counters.threads += 1;
    }
    Some(())
}

/// Whether the end of a process, which began at `begun`, is to be counted: threads that end at the same time are all the
/// last one to the kernel's count of those that live.
#[inline(always)]
fn first(process: u32, begun: u64, threads: u32) -> bool {
    if let Some(known) = unsafe { ENDED.get(process) } {
        if *known == begun {
            return false;
        }
        let _ = ENDED.remove(process);
    }
    threads <= 1 || ENDED.insert(process, begun, u64::from(BPF_NOEXIST)).is_ok()
}

/// The current task, `task`, ends.
#[inline(always)]
fn exit(task: u64) -> Option<()> {
    let signal = read!(task, TASK_SIGNAL, u64)?;
    // other threads of the process go on
    if read!(signal, SIGNAL_LIVE, i32)? != 0 {
        return None;
    }
    let leader = read!(task, TASK_LEADER, u64)?;
    let process = (bpf_get_current_pid_tgid() >> 32) as u32;
    if !first(process, read!(leader, TASK_START, u64)?, read!(signal, SIGNAL_THREADS, u32)?) {
        return None;
    }
    let container = kernel::current();
    let counters = counters(container)?;
    let status = if read!(signal, SIGNAL_FLAGS, u32)? & GROUP_EXIT != 0 {
        read!(signal, SIGNAL_EXIT_CODE, u32)?
    } else {
        read!(leader, TASK_EXIT_CODE, u32)?
    };
    if status & 0x7f != 0 {
        counters.exits_signal += 1;
    } else if status == 0 {
        counters.exits_success += 1;
    } else {
        counters.exits_failure += 1;
    }
    events::send(container, EVENT_EXIT, |event| {
        event.pid = process;
        event.parent = parent(task);
        event.code = status;
        event.command = bpf_get_current_comm().unwrap_or([0; COMM]);
        if let Some(sender) = unsafe { SENDERS.get(process) } {
            if sender.signal == status & 0x7f {
                event.sender = sender.pid;
                event.sender_container = sender.container;
                event.sender_command = sender.command;
            }
        }
    });
    let _ = SENDERS.remove(process);
    Some(())
}

/// A signal is sent to `task` by the current task, or by the kernel.
#[inline(always)]
fn signal(signal: u32, info: u64, task: u64, delivered: bool) -> Option<()> {
    if !delivered || signal == 0 || signal >= 32 || (HARMLESS >> signal) & 1 != 0 {
        return None;
    }
    let container = kernel::of_task(task)?;
    if container == HOST || KNOWN.get_ptr(container).is_none() {
        return None;
    }
    let counters = unsafe { &mut *PROCESSES.get_ptr_mut(container)? };
    counters.signals += 1;
    let process = read!(task, TASK_TGID, u32)?;
    // si_code stands behind si_signo and si_errno; what processes send has none above 0
    let by_kernel = match info {
        INFO_NONE => false,
        INFO_KERNEL => true,
        info => kernel::at::<i32>(info, 8)? > 0,
    };
    let sender = if by_kernel {
        Sender { pid: 0, signal, container: HOST, command: [0; COMM] }
    } else {
        let own = kernel::current();
        Sender {
            pid: (bpf_get_current_pid_tgid() >> 32) as u32,
            signal,
            container: if KNOWN.get_ptr(own).is_some() { own } else { HOST },
            command: bpf_get_current_comm().unwrap_or([0; COMM]),
        }
    };
    SENDERS.insert(process, sender, 0).ok()
}

/// The kernel has chosen a victim: `victim` is a task, or on older kernels its number.
#[inline(always)]
fn victim(victim: u64) -> Option<()> {
    let is_task = global!(VICTIM_IS_TASK) != 0;
    let container = if is_task { kernel::of_task(victim)? } else { kernel::current() };
    counters(container)?.oom_kills += 1;
    events::send(container, EVENT_OOM, |event| {
        if is_task {
            event.pid = read!(victim, TASK_TGID, u32).unwrap_or(0);
            event.command = read!(victim, TASK_COMM, [u8; COMM]).unwrap_or([0; COMM]);
        } else {
            event.pid = victim as u32;
        }
    })
}

/// `sched_process_exec(task, old_pid, bprm)`.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn exec_btf(ctx: BtfTracePointContext) -> i32 {
    exec(ctx.arg(0), ctx.arg(2));
    0
}

/// The same, raw.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn exec_raw(ctx: RawTracePointContext) -> i32 {
    exec(ctx.arg(0), ctx.arg(2));
    0
}

/// `sched:sched_process_exec`: counts alone.
#[tracepoint(category = "sched", name = "sched_process_exec")]
pub fn exec_tp(_: TracePointContext) -> i32 {
    if let Some(counters) = counters(kernel::current()) {
        counters.execs += 1;
    }
    0
}

/// `sched_process_fork(parent, child)`.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn fork_btf(ctx: BtfTracePointContext) -> i32 {
    fork(ctx.arg(1));
    0
}

/// The same, raw.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn fork_raw(ctx: RawTracePointContext) -> i32 {
    fork(ctx.arg(1));
    0
}

/// `sched:sched_process_fork`: threads are not told from processes.
#[tracepoint(category = "sched", name = "sched_process_fork")]
pub fn fork_tp(_: TracePointContext) -> i32 {
    if let Some(counters) = counters(kernel::current()) {
        counters.forks += 1;
    }
    0
}

/// `sched_process_exit(task, …)`.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn exit_btf(ctx: BtfTracePointContext) -> i32 {
    exit(ctx.arg(0));
    0
}

/// The same, raw.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn exit_raw(ctx: RawTracePointContext) -> i32 {
    exit(ctx.arg(0));
    0
}

/// `sched:sched_process_exit`: counts first threads; how they ended is not known.
#[tracepoint(category = "sched", name = "sched_process_exit")]
pub fn exit_tp(_: TracePointContext) -> i32 {
    let both = bpf_get_current_pid_tgid();
    if both as u32 == (both >> 32) as u32 {
        if let Some(counters) = counters(kernel::current()) {
            counters.exits_unknown += 1;
        }
    }
    0
}

/// `signal_generate(signal, info, task, group, result)`.
#[btf_tracepoint(function = "signal_generate")]
pub fn signal_btf(ctx: BtfTracePointContext) -> i32 {
    signal(ctx.arg(0), ctx.arg(1), ctx.arg(2), ctx.arg::<u32>(4) == 0);
    0
}

/// The same, raw.
#[raw_tracepoint(tracepoint = "signal_generate")]
pub fn signal_raw(ctx: RawTracePointContext) -> i32 {
    signal(ctx.arg(0), ctx.arg(1), ctx.arg(2), ctx.arg::<u32>(4) == 0);
    0
}

/// `mark_victim(task, uid)`, before Linux 6.9 `mark_victim(pid)`.
#[btf_tracepoint(function = "mark_victim")]
pub fn victim_btf(ctx: BtfTracePointContext) -> i32 {
    victim(ctx.arg(0));
    0
}

/// The same, raw.
#[raw_tracepoint(tracepoint = "mark_victim")]
pub fn victim_raw(ctx: RawTracePointContext) -> i32 {
    victim(ctx.arg(0));
    0
}

/// `oom:mark_victim`: counted for the container whose task wanted the memory, which is the victim's.
#[tracepoint(category = "oom", name = "mark_victim")]
pub fn victim_tp(_: TracePointContext) -> i32 {
    if let Some(counters) = counters(kernel::current()) {
        counters.oom_kills += 1;
    }
    0
}
