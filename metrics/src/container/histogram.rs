//! The kernel's histograms, of nanoseconds by powers of two, as histograms of seconds with fewer buckets.
//!
//! The bounds are powers of two as well, so buckets are merged whole, and the sum is the kernel's: nothing is estimated. A
//! value that lies exactly on a bound is in the bucket above it, not below.

use agentd_ebpf::observe::layout::{BUCKETS, Log2};

use crate::model::Histogram;

/// The first bound, as a power of two of nanoseconds: 1.024 µs.
const FIRST: usize = 10;
/// Powers of two from one bound to the next.
const STEP: usize = 2;
/// How many bounds there are; the last is 17.2 s.
const COUNT: usize = 13;

/// Upper bounds, seconds: 1.024 µs to 17.2 s, each four times the one before it.
pub static BOUNDS: [f64; COUNT] = {
    let mut bounds = [0.0; COUNT];
    let mut at = 0;
    while at < COUNT {
        bounds[at] = (1_u64 << (FIRST + STEP * at)) as f64 / 1e9;
        at += 1;
    }
    bounds
};

/// A histogram of seconds with [`BOUNDS`].
pub fn histogram(log2: &Log2) -> Histogram {
    let mut counts = vec![0_u64; COUNT + 1];
    for (power, observed) in log2.buckets.iter().enumerate() {
        // Bucket `power` holds values from 2^power to below 2^(power + 1).
        let at = if power < FIRST { 0 } else { ((power - FIRST) / STEP + 1).min(COUNT) };
        counts[at] = counts[at].wrapping_add(*observed);
    }
    Histogram { bounds: (&BOUNDS[..]).into(), counts, sum: seconds(log2.sum), exemplars: Vec::new() }
}

/// Whether anything was observed.
pub(super) fn observed(log2: &Log2) -> bool {
    log2.buckets.iter().any(|observed| *observed > 0)
}

/// Nanoseconds as seconds.
pub(super) fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

const _: () = assert!(FIRST + STEP * (COUNT - 1) < BUCKETS, "the last bound must separate buckets");

#[cfg(test)]
mod tests {
    use agentd_ebpf::observe::layout::bucket;

    use super::*;

    fn of(values: &[u64]) -> Log2 {
        let mut log2 = Log2 { buckets: [0; BUCKETS], sum: 0 };
        for value in values {
            log2.buckets[bucket(*value)] += 1;
            log2.sum += value;
        }
        log2
    }

    #[test]
    fn every_value_is_below_its_bound_and_not_below_the_one_before() {
        // on both sides of each power of two
        let values: Vec<u64> =
            (0..40).flat_map(|power| [1_u64 << power, (1 << power) + 1, (2 << power) - 1]).chain([0]).collect();
        for value in values {
            let histogram = histogram(&of(&[value]));
            let at = histogram.counts.iter().position(|count| *count == 1).unwrap();
            assert_eq!(histogram.counts.iter().sum::<u64>(), 1);
            assert!(BOUNDS.get(at).is_none_or(|bound| seconds(value) < *bound), "{value} in bucket {at}");
            assert!(at == 0 || seconds(value) >= BOUNDS[at - 1], "{value} in bucket {at}");
            assert!((histogram.sum - seconds(value)).abs() < 1e-12);
        }
    }

    #[test]
    fn nothing_is_lost_in_merging() {
        let mut log2 = Log2 { buckets: [0; BUCKETS], sum: 123_456_789_012 };
        for (power, count) in log2.buckets.iter_mut().enumerate() {
            *count = 1 << power;
        }
        let histogram = histogram(&log2);
        assert_eq!(histogram.counts.iter().sum::<u64>(), (1 << BUCKETS) - 1);
        assert_eq!(histogram.counts[..3], [(1 << 10) - 1, (1 << 10) + (1 << 11), (1 << 12) + (1 << 13)]);
        assert_eq!(histogram.counts[COUNT], (1 << 34) + (1 << 35));
        assert!((histogram.sum - 123.456_789_012).abs() < 1e-9);
        assert!(histogram.bounds.is_sorted() && histogram.bounds.len() + 1 == histogram.counts.len());
        assert!((BOUNDS[0] - 1.024e-6).abs() < 1e-18 && (BOUNDS[COUNT - 1] - 17.179_869_184).abs() < 1e-9);
        assert!(observed(&log2) && !observed(&of(&[])));
    }
}
