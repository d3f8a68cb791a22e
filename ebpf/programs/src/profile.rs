//! Samples of stacks: one program on a software clock of each CPU, in an object of its own.
//!
//! The clock ticks at the highest rate that any container wants; a container that wants less gets an even part of the ticks.
//! A stack is kept once in each epoch, under a hash of all its addresses, and counted by container, process and both
//! stacks. The loader reads an epoch after it has begun the next one, so that nothing is counted between reading and
//! clearing.

#![no_std]
#![no_main]
// `AtomicU64::fetch_add` is not there for this target, which has no other atomic operation than this in its first versions
#![feature(core_intrinsics)]
#![allow(internal_features)]

use core::intrinsics::{atomic_xadd, AtomicOrdering};
use core::ptr::addr_of_mut;

use agentd_ebpf_common::{
    ProfileSettings, ProfileTallies, Sampled, Stack, StackId, StackKey, COMM, STACK_DEPTH, STACK_LOST,
};
use aya_ebpf::bindings::{BPF_F_USER_STACK, BPF_NOEXIST};
use aya_ebpf::helpers::{
    bpf_get_current_comm, bpf_get_current_pid_tgid, generated::bpf_get_current_ancestor_cgroup_id,
    generated::bpf_get_stack,
};
use aya_ebpf::macros::{map, perf_event};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::programs::PerfEventContext;
use aya_ebpf::EbpfContext;

/// Depth of a container's directory in the cgroup2 tree; the loader sets it.
#[unsafe(no_mangle)]
static PROFILE_LEVEL: u32 = 0;

/// Containers whose stacks are sampled, by the id of their cgroup, and how often in a second.
#[map]
static PROFILED: HashMap<u64, u32> = HashMap::with_max_entries(512, 0);

/// Counts. With [`STACKS`] the largest map.
#[map]
static COUNTS: HashMap<StackKey, u64> = HashMap::with_max_entries(4096, 0);

/// Stacks.
#[map]
static STACKS: HashMap<StackId, Stack> = HashMap::with_max_entries(2048, 0);

/// Processes of which the loader has been told.
#[map]
static SEEN: LruHashMap<Sampled, u8> = LruHashMap::with_max_entries(1024, 0);

/// Words about new processes.
#[map]
static NOTICES: RingBuf = RingBuf::with_byte_size(32 << 10, 0);

#[map]
static SETTINGS: Array<ProfileSettings> = Array::with_max_entries(1, 0);

#[map]
static TALLIES: PerCpuArray<ProfileTallies> = PerCpuArray::with_max_entries(1, 0);

/// Where a stack is read to: too large for the program's own stack.
#[map]
static SCRATCH: PerCpuArray<Stack> = PerCpuArray::with_max_entries(1, 0);

#[perf_event]
pub fn profile(ctx: PerfEventContext) -> u32 {
    let _ = sample(&ctx);
    0
}

#[inline(always)]
fn sample(ctx: &PerfEventContext) -> Option<()> {
    // SAFETY: the map gives a valid pointer; a clock's program does not interrupt itself on its CPU.
    let tallies = unsafe { &mut *TALLIES.get_ptr_mut(0)? };
    let tick = tallies.ticks;
    tallies.ticks = tick + 1;
    // SAFETY: reads a static that the loader has set.
    let level = unsafe { core::ptr::read_volatile(&raw const PROFILE_LEVEL) };
    // SAFETY: no pointers; 0 where the current cgroup is not so deep, which no container has.
    let container = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
    // SAFETY: an integer that is read once.
    let wanted = u64::from(unsafe { *PROFILED.get(container)? });
    let settings = SETTINGS.get(0)?;
    let hz = u64::from(settings.hz);
    // an even part of the ticks: those at which `tick * wanted / hz` grows
    if wanted < hz && (tick + 1) * wanted / hz == tick * wanted / hz {
        tallies.thinned += 1;
        return None;
    }
    let epoch = settings.epoch;
    let process = (bpf_get_current_pid_tgid() >> 32) as u32;
    let command: [u8; COMM] = bpf_get_current_comm().unwrap_or_default();
    let seen = Sampled { container, process, padding: 0, command };
    // SAFETY: the value is not read.
    if unsafe { SEEN.get(&seen) }.is_none() {
        match NOTICES.reserve::<Sampled>(0) {
            Some(mut entry) => {
                entry.write(seen);
                entry.submit(0);
                let _ = SEEN.insert(&seen, &1, 0);
            }
            // tried again with its next sample
            None => tallies.lost_notices += 1,
        }
    }
    let user = keep(ctx, epoch, u64::from(BPF_F_USER_STACK), tallies);
    let kernel = keep(ctx, epoch, 0, tallies);
    let key = StackKey { container, user, kernel, process, epoch, command };
    if COUNTS.get_ptr(&key).is_none() {
        // another CPU may be first: then its entry counts this sample, too
        let _ = COUNTS.insert(&key, &0, u64::from(BPF_NOEXIST));
    }
    match COUNTS.get_ptr_mut(&key) {
        Some(count) => {
            // SAFETY: a valid pointer into the map; changed atomically, because all CPUs share it.
            unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(count, 1) };
            tallies.samples += 1;
        }
        None => tallies.lost_samples += 1,
    }
    Some(())
}

/// Keeps a stack and gives the hash that it is kept under; 0 where there is none.
#[inline(always)]
fn keep(ctx: &PerfEventContext, epoch: u32, flags: u64, tallies: &mut ProfileTallies) -> u64 {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: the helper writes at most as many bytes as it is told, and clears what it does not use.
    let bytes = unsafe {
        let addresses = addr_of_mut!((*scratch).addresses);
        bpf_get_stack(ctx.as_ptr(), addresses.cast(), (STACK_DEPTH * 8) as u32, flags)
    };
    if bytes < 8 {
        return 0;
    }
    // SAFETY: the map's value, which only this CPU uses, and only in this program.
    let stack = unsafe { &mut *scratch };
    stack.length = bytes as u64 / 8;
    // FNV-1a by words, with a shift that brings high bits down
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut at = 0;
    while at < STACK_DEPTH {
        if at as u64 >= stack.length {
            break;
        }
        hash = (hash ^ stack.addresses[at]).wrapping_mul(0x0000_0100_0000_01b3);
        hash ^= hash >> 29;
        at += 1;
    }
    let hash = hash | 2;
    let id = StackId { hash, epoch, padding: 0 };
    if STACKS.get_ptr(&id).is_none() && STACKS.insert(&id, &*stack, 0).is_err() {
        tallies.lost_stacks += 1;
        return STACK_LOST;
    }
    hash
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
