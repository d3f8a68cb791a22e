//! Group `sched`: how long tasks wait for a CPU, how long they are off it, how often they switch and move.
//!
//! One program does it on the rungs `tp_btf` and `raw_tp`, when a task leaves its CPU. The kernel itself keeps in each task
//! how long it has been queued and how long it ran; the difference to what it was when the task left last time is the wait
//! before the stretch that ends now. Wake-ups, which are as many as switches, need no program.
//!
//! On the rung `tracepoint` no field of a task can be read, and times of wake-ups are remembered by task instead.

use agentd_ebpf_common::fields::{TASK_FORCED, TASK_MIGRATIONS, TASK_QUEUED, TASK_RAN, TASK_YIELDED};
use agentd_ebpf_common::{Sched, TaskTimes};
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint, tracepoint};
use aya_ebpf::maps::{HashMap, PerCpuHashMap};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext, TracePointContext};

use crate::histogram::observe;
use crate::{global, kernel};

/// By container, and of what is in none.
#[map]
pub static SCHED: PerCpuHashMap<u64, Sched> = PerCpuHashMap::with_max_entries(2048, BPF_F_NO_PREALLOC);

/// Tasks that are off their CPU, by number.
#[map]
pub static TASKS: HashMap<u32, TaskTimes> = HashMap::with_max_entries(16_384, 0);

/// The task will not run again (`TASK_DEAD`).
const DEAD: u64 = 0x80;
/// The same in the record of the tracepoint, which tells of a dead task whether its parent still has to hear of it
/// (`EXIT_DEAD`, `EXIT_ZOMBIE`).
const DEAD_IN_RECORD: u64 = DEAD | 0x10 | 0x20;

/// Where to count what the current task does, and the key of that.
#[inline(always)]
fn counters() -> Option<(u64, &'static mut Sched)> {
    let container = kernel::current();
    if let Some(found) = SCHED.get_ptr_mut(container) {
        return Some((container, unsafe { &mut *found }));
    }
    let container = kernel::unpublished();
    Some((container, unsafe { &mut *SCHED.get_ptr_mut(container)? }))
}

/// The task `prev`, which is the current one, leaves its CPU in `state`.
#[inline(always)]
fn leave(prev: *const u8, read: impl Fn(*const u8, u32) -> Option<u64>, preempted: bool, state: u64) -> Option<()> {
    let task = bpf_get_current_pid_tgid() as u32;
    if task == 0 {
        return None;
    }
    let (_, counters) = counters()?;
    if preempted || state == 0 {
        counters.involuntary += 1;
    } else {
        counters.voluntary += 1;
    }
    let now = unsafe { bpf_ktime_get_ns() };
    let ran = read(prev, global!(TASK_RAN))?;
    let queued = read(prev, global!(TASK_QUEUED))?;
    let migrations = read(prev, global!(TASK_MIGRATIONS)).unwrap_or(0);
    // a thread that execs takes the number of its process: an entry may be of another task
    let known = TASKS.get_ptr_mut(task);
    let before = known.filter(|before| unsafe { (**before).task } == prev as u64 && unsafe { (**before).ran } <= ran);
    if let Some(before) = before {
        let before = unsafe { &mut *before };
        observe(&mut counters.queued, queued.wrapping_sub(before.queued));
        let away = now.wrapping_sub(before.left);
        let here = ran.wrapping_sub(before.ran);
        observe(&mut counters.off_cpu, if away > here { away - here } else { 0 });
        counters.migrations += migrations.wrapping_sub(before.migrations);
        if state & DEAD != 0 {
            let _ = TASKS.remove(task);
        } else {
            before.left = now;
            before.ran = ran;
            before.queued = queued;
            before.migrations = migrations;
        }
        return Some(());
    }
    // a task that leaves for the first time has waited just once; of another one nothing is known yet
    let switches = read(prev, global!(TASK_YIELDED))?.wrapping_add(read(prev, global!(TASK_FORCED))?);
    if switches == 1 {
        observe(&mut counters.queued, queued);
        counters.migrations += migrations;
    }
    if state & DEAD != 0 {
        if known.is_some() {
            let _ = TASKS.remove(task);
        }
    } else {
        let times = TaskTimes { left: now, ran, queued, migrations, container: 0, task: prev as u64 };
        if TASKS.insert(task, times, 0).is_err() {
            counters.untracked += 1;
        }
    }
    Some(())
}

/// `sched_switch(preempt, prev, next, prev_state)`, with types.
#[btf_tracepoint(function = "sched_switch")]
pub fn switch_btf(ctx: BtfTracePointContext) -> i32 {
    leave(ctx.arg(1), kernel::typed, ctx.arg::<u64>(0) & 1 != 0, ctx.arg::<u64>(3) & 0xffff_ffff);
    0
}

/// The same, raw.
#[raw_tracepoint(tracepoint = "sched_switch")]
pub fn switch_raw(ctx: RawTracePointContext) -> i32 {
    leave(
        ctx.arg(1),
        |task, offset| kernel::at(task as u64, offset),
        ctx.arg::<u64>(0) & 1 != 0,
        ctx.arg::<u64>(3) & 0xffff_ffff,
    );
    0
}

/// The current task has begun a program and had the number `old` before: a thread that does so takes the number of its
/// process, and would leave an entry under its own for ever.
#[inline(always)]
fn renumber(old: u32) -> Option<()> {
    let new = bpf_get_current_pid_tgid() as u32;
    if old == new {
        return None;
    }
    let times = unsafe { *TASKS.get(old)? };
    let _ = TASKS.remove(old);
    TASKS.insert(new, times, 0).ok()
}

/// `sched_process_exec(task, old_pid, bprm)`.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn renumber_btf(ctx: BtfTracePointContext) -> i32 {
    let _ = renumber(ctx.arg(1));
    0
}

/// The same, raw.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn renumber_raw(ctx: RawTracePointContext) -> i32 {
    let _ = renumber(ctx.arg(1));
    0
}

/// Where the number before lies in the record of `sched_process_exec`.
const OLD_PID: usize = 16;

/// `sched:sched_process_exec`.
#[tracepoint(category = "sched", name = "sched_process_exec")]
pub fn renumber_tp(ctx: TracePointContext) -> i32 {
    if let Ok(old) = unsafe { ctx.read_at::<u32>(OLD_PID) } {
        let _ = renumber(old);
    }
    0
}

/// Where fields lie in the record of `sched_switch`: stable since the tracepoint exists on 64-bit kernels.
const PREV_STATE: usize = 32;
const NEXT_PID: usize = 56;
/// Where the number of the task lies in the records of `sched_wakeup` and `sched_wakeup_new`.
const WAKEUP_PID: usize = 24;

/// `sched:sched_switch`.
#[tracepoint(category = "sched", name = "sched_switch")]
pub fn switch_tp(ctx: TracePointContext) -> i32 {
    let _ = switch_without_fields(&ctx);
    0
}

#[inline(always)]
fn switch_without_fields(ctx: &TracePointContext) -> Option<()> {
    let now = unsafe { bpf_ktime_get_ns() };
    let state = unsafe { ctx.read_at::<u64>(PREV_STATE) }.ok()?;
    let task = bpf_get_current_pid_tgid() as u32;
    if task != 0 {
        if let Some((container, counters)) = counters() {
            // bit 8 or 10 is set for a task that could run on, by the kernel's age
            let runnable = state & 0xff == 0;
            if runnable {
                counters.involuntary += 1;
            } else {
                counters.voluntary += 1;
            }
            let queued = if runnable { now } else { 0 };
            let times = TaskTimes { left: now, ran: 0, queued, migrations: 0, container, task: 0 };
            if state & DEAD_IN_RECORD != 0 {
                let _ = TASKS.remove(task);
            } else if TASKS.insert(task, times, 0).is_err() {
                counters.untracked += 1;
            }
        }
    }
    let next = unsafe { ctx.read_at::<u32>(NEXT_PID) }.ok()?;
    let times = unsafe { &mut *TASKS.get_ptr_mut(next)? };
    // a task that was never seen to leave has no container yet: its first wait is not counted on this rung
    let found = SCHED.get_ptr_mut(times.container)?;
    let counters = unsafe { &mut *found };
    if times.queued != 0 {
        observe(&mut counters.queued, now.wrapping_sub(times.queued));
        times.queued = 0;
    }
    if times.left != 0 {
        observe(&mut counters.off_cpu, now.wrapping_sub(times.left));
    }
    Some(())
}

#[inline(always)]
fn woken(ctx: &TracePointContext) -> Option<()> {
    let task = unsafe { ctx.read_at::<u32>(WAKEUP_PID) }.ok()?;
    let times = unsafe { &mut *TASKS.get_ptr_mut(task)? };
    times.queued = unsafe { bpf_ktime_get_ns() };
    Some(())
}

/// `sched:sched_wakeup`.
#[tracepoint(category = "sched", name = "sched_wakeup")]
pub fn wakeup_tp(ctx: TracePointContext) -> i32 {
    let _ = woken(&ctx);
    0
}

/// `sched:sched_wakeup_new`.
#[tracepoint(category = "sched", name = "sched_wakeup_new")]
pub fn wakeup_new_tp(ctx: TracePointContext) -> i32 {
    let _ = woken(&ctx);
    0
}
