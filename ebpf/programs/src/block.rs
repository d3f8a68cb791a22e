//! Group `block`: how long block requests take, how many bytes they move, and who asked for them.
//!
//! A request begins when the kernel has made it, in the context of who submits it, and ends with its last completed byte.
//! Where the kernel has no tracepoint for the begin (before Linux 6.5), it begins when it is queued or given to its driver.
//! A device that is made of others (loop, device mapper) has requests of its own: both are counted, as `io.stat` does.
//!
//! A request belongs to the container that the kernel charges for it (pure cgroup v2: that holds for writeback, too), or to
//! the one whose task submits it. What the kernel's own threads write for nobody that it names is writeback.
//!
//! Ends come in interrupts, into what begins and other ends on the same CPU: counters are added to atomically.

use agentd_ebpf_common::fields::{
    BIO_BLKG, BLKCG_CGROUP, BLKG_BLKCG, CHARGED, REQUEST_BIO, REQUEST_BYTES, REQUEST_FLAGS, TASK_FLAGS,
};
use agentd_ebpf_common::{
    BLOCK_DISCARD, BLOCK_KINDS, BLOCK_OTHER, BLOCK_READ, BLOCK_WRITE, Block, HOST, Request, WRITEBACK,
};
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_task, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_tracepoint, map, raw_tracepoint, tracepoint};
use aya_ebpf::maps::{HashMap, PerCpuHashMap};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext, TracePointContext};

use crate::histogram::{add, observe_shared};
use crate::net::unpublished_of;
use crate::{global, kernel, read};

/// By container, of what is in none, and of writeback.
#[map]
pub static BLOCK: PerCpuHashMap<u64, Block> = PerCpuHashMap::with_max_entries(2048, BPF_F_NO_PREALLOC);

/// Requests on their way, by address; on the rung `tracepoint` by device and sector.
#[map]
pub static REQUESTS: HashMap<u64, Request> = HashMap::with_max_entries(8192, 0);

/// Bits of a request's flags that are its operation (`REQ_OP_MASK`).
const OPERATION: u32 = 0xff;
/// Operations (`REQ_OP_…`).
const READ: u32 = 0;
const WRITE: u32 = 1;
const DISCARD: u32 = 3;
const SECURE_ERASE: u32 = 5;
const ZONE_APPEND: u32 = 7;
/// Flag of the kernel's own threads (`PF_KTHREAD`).
const KERNEL_THREAD: u32 = 0x0020_0000;

/// Where the begin of a request is seen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begin {
    /// Once: an older entry at its address is of a request that has ended.
    Once,
    /// When it is queued and each time it goes to its driver: the first one holds.
    Repeated,
}

#[inline(always)]
fn of_key(key: u64) -> Option<&'static mut Block> {
    Some(unsafe { &mut *BLOCK.get_ptr_mut(key)? })
}

/// Whether the current task is a thread of the kernel.
#[inline(always)]
fn by_kernel() -> bool {
    let task = unsafe { bpf_get_current_task() };
    match read!(task, TASK_FLAGS, u32) {
        Some(flags) => flags & KERNEL_THREAD != 0,
        // without offsets, the name tells the threads that write back
        None => matches!(bpf_get_current_comm(), Ok([b'k', b'w', b'o', b'r', b'k', b'e', b'r', b'/', ..])),
    }
}

/// The cgroup that the kernel charges for a request.
#[inline(always)]
fn charged(request: u64) -> Option<u64> {
    let bio = read!(request, REQUEST_BIO, u64)?;
    let group = read!(bio, BIO_BLKG, u64)?;
    let owner = read!(group, BLKG_BLKCG, u64)?;
    read!(owner, BLKCG_CGROUP, u64)
}

/// Under which key to count a request, and its figures. `request` is 0 where it is not at hand.
#[inline(always)]
fn owner(request: u64, writes: bool) -> Option<(u64, &'static mut Block)> {
    let mut cgroup = 0;
    let mut key = None;
    if request != 0 && global!(CHARGED) != 0 {
        cgroup = charged(request).unwrap_or(0);
        key = kernel::of_cgroup(cgroup);
    }
    let mut key = match key {
        Some(key) => key,
        None => {
            cgroup = 0;
            kernel::current()
        }
    };
    if key == HOST {
        if writes && by_kernel() {
            key = WRITEBACK;
        }
    } else if BLOCK.get_ptr_mut(key).is_none() {
        key = if cgroup == 0 { kernel::unpublished() } else { unpublished_of(cgroup) };
    }
    Some((key, of_key(key)?))
}

#[inline(always)]
fn kind(operation: u32, bytes: u64) -> usize {
    match operation {
        READ => BLOCK_READ,
        // a write of nothing is a flush
        WRITE | ZONE_APPEND if bytes != 0 => BLOCK_WRITE,
        DISCARD | SECURE_ERASE => BLOCK_DISCARD,
        _ => BLOCK_OTHER,
    }
}

/// The kind of a request on its way. The mask changes nothing; with a comparison instead, the verifier of Linux 6.1 forgets
/// the bound of a copy that lies on the stack, and refuses the program.
#[inline(always)]
fn bounded(kind: u32) -> usize {
    const { assert!(BLOCK_KINDS.is_power_of_two()) };
    kind as usize & (BLOCK_KINDS - 1)
}

/// A request whose address is used again has ended, and the program was not called for it: it is counted with what it
/// began with, and without a time.
#[inline(always)]
fn unseen(old: &Request) -> Option<()> {
    let counters = of_key(old.container)?;
    let kind = bounded(old.kind);
    add(counters.requests.get_mut(kind)?, 1);
    add(counters.bytes.get_mut(kind)?, old.bytes);
    Some(())
}

/// Keeps the begin of a request under `at`.
#[inline(always)]
fn keep(at: u64, request: u64, bytes: u64, kind: usize, begin: Begin) -> Option<()> {
    if let Some(old) = unsafe { REQUESTS.get(at) } {
        if begin == Begin::Repeated {
            return None;
        }
        unseen(old);
    }
    let (container, counters) = owner(request, kind == BLOCK_WRITE)?;
    let begun = unsafe { bpf_ktime_get_ns() };
    let entry = Request { begun, container, bytes, kind: kind as u32, failed: 0 };
    if REQUESTS.insert(at, entry, 0).is_ok() {
        add(&mut counters.begun, 1);
    } else {
        add(&mut counters.untracked, 1);
    }
    Some(())
}

/// The request has been made.
#[inline(always)]
fn start(request: u64, begin: Begin) -> Option<()> {
    let bytes = u64::from(read!(request, REQUEST_BYTES, u32)?);
    let operation = read!(request, REQUEST_FLAGS, u32)? & OPERATION;
    keep(request, request, bytes, kind(operation, bytes), begin)
}

/// Counts an end, or a part that is not the last.
#[inline(always)]
fn count(entry: &Request, bytes: u64, failed: bool, last: bool) -> Option<()> {
    let counters = of_key(entry.container)?;
    let kind = bounded(entry.kind);
    if !failed {
        add(counters.bytes.get_mut(kind)?, bytes);
    }
    if last {
        if failed || entry.failed != 0 {
            add(&mut counters.errors, 1);
        }
        add(counters.requests.get_mut(kind)?, 1);
        let took = unsafe { bpf_ktime_get_ns() }.wrapping_sub(entry.begun);
        observe_shared(counters.latency.get_mut(kind)?, took);
    }
    Some(())
}

/// `bytes` of the request are completed.
#[inline(always)]
fn complete(request: u64, failed: bool, bytes: u64) -> Option<()> {
    let entry = unsafe { &mut *REQUESTS.get_ptr_mut(request)? };
    // the kernel has not yet taken off what is completed now
    let last = bytes >= u64::from(read!(request, REQUEST_BYTES, u32)?);
    count(entry, bytes, failed, last);
    if last {
        let _ = REQUESTS.remove(request);
    } else if failed {
        entry.failed = 1;
    }
    Some(())
}

/// The request becomes part of another one.
#[inline(always)]
fn merge(request: u64) -> Option<()> {
    let container = unsafe { REQUESTS.get(request)? }.container;
    let _ = REQUESTS.remove(request);
    add(&mut of_key(container)?.merged, 1);
    Some(())
}

/// `block_io_start(request)`.
#[btf_tracepoint(function = "block_io_start")]
pub fn io_start_btf(ctx: BtfTracePointContext) -> i32 {
    start(ctx.arg(0), Begin::Once);
    0
}

/// The same, raw.
#[raw_tracepoint(tracepoint = "block_io_start")]
pub fn io_start_raw(ctx: RawTracePointContext) -> i32 {
    start(ctx.arg(0), Begin::Once);
    0
}

/// `block_rq_insert(request)`: queued, mostly by who submits it.
#[btf_tracepoint(function = "block_rq_insert")]
pub fn io_insert_btf(ctx: BtfTracePointContext) -> i32 {
    start(ctx.arg(0), Begin::Repeated);
    0
}

/// The same, raw.
#[raw_tracepoint(tracepoint = "block_rq_insert")]
pub fn io_insert_raw(ctx: RawTracePointContext) -> i32 {
    start(ctx.arg(0), Begin::Repeated);
    0
}

/// `block_rq_issue(request)`: given to its driver, without having been queued or by a thread of the kernel.
#[btf_tracepoint(function = "block_rq_issue")]
pub fn io_issue_btf(ctx: BtfTracePointContext) -> i32 {
    start(ctx.arg(0), Begin::Repeated);
    0
}

/// The same, raw.
#[raw_tracepoint(tracepoint = "block_rq_issue")]
pub fn io_issue_raw(ctx: RawTracePointContext) -> i32 {
    start(ctx.arg(0), Begin::Repeated);
    0
}

/// `block_rq_complete(request, error, bytes)`.
#[btf_tracepoint(function = "block_rq_complete")]
pub fn io_complete_btf(ctx: BtfTracePointContext) -> i32 {
    complete(ctx.arg(0), ctx.arg::<u64>(1) & 0xff != 0, ctx.arg::<u64>(2) & 0xffff_ffff);
    0
}

/// The same, raw.
#[raw_tracepoint(tracepoint = "block_rq_complete")]
pub fn io_complete_raw(ctx: RawTracePointContext) -> i32 {
    complete(ctx.arg(0), ctx.arg::<u64>(1) & 0xff != 0, ctx.arg::<u64>(2) & 0xffff_ffff);
    0
}

/// `block_rq_merge(request)`.
#[btf_tracepoint(function = "block_rq_merge")]
pub fn io_merge_btf(ctx: BtfTracePointContext) -> i32 {
    merge(ctx.arg(0));
    0
}

/// The same, raw.
#[raw_tracepoint(tracepoint = "block_rq_merge")]
pub fn io_merge_raw(ctx: RawTracePointContext) -> i32 {
    merge(ctx.arg(0));
    0
}

/// Where fields lie in the records of `block_rq_issue` and `block_rq_complete`.
const DEVICE: usize = 8;
const SECTOR: usize = 16;
const SECTORS: usize = 24;
/// Bytes of a request that is issued.
const ISSUED_BYTES: usize = 28;
/// Error of a completed one.
const ERROR: usize = 28;
/// Letters for the operation, behind two bytes of a priority since Linux 6.7.
const LETTERS: usize = 32;

/// Key of a request where its address is not at hand. The odd factor spreads devices over the whole range.
#[inline(always)]
fn place(device: u32, sector: u64) -> u64 {
    u64::from(device).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(sector)
}

#[inline(always)]
fn issue_record(ctx: &TracePointContext) -> Option<()> {
    let (device, sector, bytes, letters) = unsafe {
        (
            ctx.read_at::<u32>(DEVICE).ok()?,
            ctx.read_at::<u64>(SECTOR).ok()?,
            ctx.read_at::<u32>(ISSUED_BYTES).ok()?,
            ctx.read_at::<[u8; 4]>(LETTERS).ok()?,
        )
    };
    // flushes all stand at sector 0: they cannot be told apart here
    if bytes == 0 {
        return None;
    }
    // no priority is as large as a letter
    let (first, second) = if letters[0] >= b'A' { (letters[0], letters[1]) } else { (letters[2], letters[3]) };
    // a flush before the write stands in front of it
    let kind = match (first, second) {
        (b'R', _) => BLOCK_READ,
        (b'W', _) | (b'F', b'W') => BLOCK_WRITE,
        (b'D', _) => BLOCK_DISCARD,
        _ => BLOCK_OTHER,
    };
    keep(place(device, sector), 0, u64::from(bytes), kind, Begin::Repeated)
}

#[inline(always)]
fn complete_record(ctx: &TracePointContext) -> Option<()> {
    let (device, sector, sectors, error) = unsafe {
        (
            ctx.read_at::<u32>(DEVICE).ok()?,
            ctx.read_at::<u64>(SECTOR).ok()?,
            ctx.read_at::<u32>(SECTORS).ok()?,
            ctx.read_at::<i32>(ERROR).ok()?,
        )
    };
    let at = place(device, sector);
    let mut entry = unsafe { *REQUESTS.get(at)? };
    let bytes = u64::from(sectors) << 9;
    let last = bytes >= entry.bytes;
    let failed = error != 0;
    count(&entry, bytes, failed, last);
    let _ = REQUESTS.remove(at);
    if !last {
        // the rest of it is completed from where it begins
        entry.bytes -= bytes;
        entry.failed |= u32::from(failed);
        let _ = REQUESTS.insert(place(device, sector + u64::from(sectors)), entry, 0);
    }
    Some(())
}

/// `block:block_rq_issue`.
#[tracepoint(category = "block", name = "block_rq_issue")]
pub fn io_issue_tp(ctx: TracePointContext) -> i32 {
    let _ = issue_record(&ctx);
    0
}

/// `block:block_rq_complete`.
#[tracepoint(category = "block", name = "block_rq_complete")]
pub fn io_complete_tp(ctx: TracePointContext) -> i32 {
    let _ = complete_record(&ctx);
    0
}
