//! Limits how many requests each principal makes: a bucket of tokens for each, refilled at a steady rate.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Principals that are kept track of. Beyond that, those whose bucket is full again are forgotten.
const MOST: usize = 4096;

/// The buckets.
#[derive(Debug)]
pub struct Rates {
    per_second: f64,
    burst: f64,
    buckets: Mutex<HashMap<String, Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Rates {
    /// So many requests each second on average, so many at once. 0 each second means no limit.
    pub fn new(per_second: u64, burst: u64) -> Self {
        Self { per_second: per_second as f64, burst: burst.max(1) as f64, buckets: Mutex::default() }
    }

    /// Takes a token of a principal; or says how long it takes until there is one.
    pub fn take(&self, principal: &str) -> Result<(), Duration> {
        self.take_at(principal, Instant::now())
    }

    fn take_at(&self, principal: &str, now: Instant) -> Result<(), Duration> {
        if self.per_second <= 0.0 {
            return Ok(());
        }
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let filled = |bucket: &Bucket| {
            (bucket.tokens + now.duration_since(bucket.at).as_secs_f64() * self.per_second).min(self.burst)
        };
        if buckets.len() >= MOST && !buckets.contains_key(principal) {
            buckets.retain(|_, bucket| filled(bucket) < self.burst);
            if buckets.len() >= MOST {
                buckets.clear();
            }
        }
        let bucket = match buckets.get_mut(principal) {
            Some(bucket) => bucket,
            None => buckets.entry(principal.to_owned()).or_insert(Bucket { tokens: self.burst, at: now }),
        };
        bucket.tokens = filled(bucket);
        bucket.at = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - bucket.tokens) / self.per_second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_the_rate_holds_for_each_by_itself() {
        let rates = Rates::new(10, 5);
        let start = Instant::now();
        for _ in 0..5 {
            rates.take_at("a", start).unwrap();
        }
        let wait = rates.take_at("a", start).unwrap_err();
        assert!(wait > Duration::from_millis(90) && wait <= Duration::from_millis(100), "{wait:?}");
        rates.take_at("b", start).unwrap();
        rates.take_at("a", start + Duration::from_millis(110)).unwrap();
        rates.take_at("a", start + Duration::from_millis(120)).unwrap_err();
        assert!((0..100).all(|_| Rates::new(0, 1).take("a").is_ok()));
    }

    #[test]
    fn the_number_of_buckets_is_bounded() {
        let rates = Rates::new(1, 2);
        let now = Instant::now();
        for n in 0..3 * MOST {
            rates.take_at(&n.to_string(), now).unwrap();
        }
        assert!(rates.buckets.lock().unwrap().len() <= MOST);
    }
}
