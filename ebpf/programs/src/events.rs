//! Rare events: into the ring, within each container's rate.

use agentd_ebpf_common::fields::{EVENT_BURST, EVENT_RATE};
use agentd_ebpf_common::{Event, Processes};
use aya_ebpf::helpers::bpf_ktime_get_ns;

use crate::global;
use crate::histogram::add;
use crate::maps::{EVENTS, KNOWN};
use crate::process::PROCESSES;

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// Whether one more event of the container may go out. Two CPUs may take the same token; nothing is lost by that. Tokens
/// are whole: the time since the last whole one stays on the account.
#[inline(always)]
fn allowed(container: u64, now: u64) -> Option<bool> {
    let known = unsafe { &mut *KNOWN.get_ptr_mut(container)? };
    let rate = global!(EVENT_RATE);
    let burst = global!(EVENT_BURST);
    let passed = now.saturating_sub(known.refilled);
    let mut tokens = known.tokens;
    if passed > 60 * SECOND || rate == 0 {
        tokens = burst;
        known.refilled = now;
    } else {
        let more = passed * rate / SECOND;
        tokens += more;
        if tokens >= burst {
            tokens = burst;
            known.refilled = now;
        } else if more != 0 {
            known.refilled += more * SECOND / rate;
        }
    }
    if tokens == 0 {
        known.tokens = 0;
        return Some(false);
    }
    known.tokens = tokens - 1;
    Some(true)
}

/// Sends an event of a published container, which `fill` completes; its other fields are zero. What does not go out is
/// counted.
#[inline(always)]
pub fn send(container: u64, kind: u32, fill: impl FnOnce(&mut Event)) -> Option<()> {
    let now = unsafe { bpf_ktime_get_ns() };
    let counters: &mut Processes = unsafe { &mut *PROCESSES.get_ptr_mut(container)? };
    if !allowed(container, now)? {
        add(&mut counters.events_limited, 1);
        return None;
    }
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        add(&mut counters.events_dropped, 1);
        return None;
    };
    let event = entry.as_mut_ptr();
    unsafe {
        core::ptr::write_bytes(event.cast::<u64>(), 0, core::mem::size_of::<Event>() / 8);
        let event = &mut *event;
        event.kind = kind;
        event.time = now;
        event.container = container;
        fill(event);
    }
    entry.submit(0);
    // programs in interrupts send, too
    add(&mut counters.events, 1);
    Some(())
}
