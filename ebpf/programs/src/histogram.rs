//! Counting into histograms and counters of this CPU.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use agentd_ebpf_common::{BUCKETS, Log2};

/// Adds to a counter that another CPU, or an interrupt on this one, may change at the same time.
#[inline(always)]
pub fn add(counter: &mut u64, more: u64) {
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, more) };
}

/// The bucket of a duration. The highest bit that is set is found without a loop and without an instruction that BPF lacks.
#[inline(always)]
fn bucket(nanoseconds: u64) -> usize {
    let mut value = nanoseconds;
    let mut bucket = 0_u32;
    if value >> 32 != 0 {
        bucket += 32;
        value >>= 32;
    }
    if value >> 16 != 0 {
        bucket += 16;
        value >>= 16;
    }
    if value >> 8 != 0 {
        bucket += 8;
        value >>= 8;
    }
    if value >> 4 != 0 {
        bucket += 4;
        value >>= 4;
    }
    if value >> 2 != 0 {
        bucket += 2;
        value >>= 2;
    }
    if value >> 1 != 0 {
        bucket += 1;
    }
    let bucket = bucket as usize;
    if bucket < BUCKETS { bucket } else { BUCKETS - 1 }
}

/// Counts a duration, in a program that nothing interrupts which counts in the same histogram.
#[inline(always)]
pub fn observe(histogram: &mut Log2, nanoseconds: u64) {
    if let Some(count) = histogram.buckets.get_mut(bucket(nanoseconds)) {
        *count += 1;
    }
    histogram.sum += nanoseconds;
}

/// The same in a program that may be interrupted by itself.
#[inline(always)]
pub fn observe_shared(histogram: &mut Log2, nanoseconds: u64) {
    if let Some(count) = histogram.buckets.get_mut(bucket(nanoseconds)) {
        add(count, 1);
    }
    add(&mut histogram.sum, nanoseconds);
}
