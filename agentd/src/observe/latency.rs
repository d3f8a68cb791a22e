//! How long the daemon's own work takes: histograms with fixed bounds, recorded always, traces on or off.
//!
//! Recording is a few additions to atomics and takes no lock, but for labels that are new and, while traces are made, for the
//! exemplar. A bucket remembers the last trace that fell into it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use agentd_metrics::catalogue::agent;
use agentd_metrics::model::{Batch, Exemplar, Histogram, ScopeId};

use crate::telemetry;

/// Upper bounds, seconds: from half a millisecond, which an isolator takes, to minutes, which a pull takes.
pub const BOUNDS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

/// Buckets, the last without a bound.
const BUCKETS: usize = BOUNDS.len() + 1;

/// Most combinations of labels of one family; further ones are counted together.
const COMBINATIONS: usize = 512;

/// Label of what is counted together.
const OTHER: &str = "~other";

/// One histogram.
#[derive(Debug, Default)]
pub struct Latency {
    counts: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
    exemplars: Mutex<[Option<Exemplar>; BUCKETS]>,
}

impl Latency {
    /// Records a duration, with the trace that is current.
    pub fn observe(&self, duration: Duration) {
        self.observe_of(duration, telemetry::current_trace());
    }

    /// Records a duration, with a trace and a span that it is of.
    pub fn observe_of(&self, duration: Duration, of: Option<([u8; 16], [u8; 8])>) {
        let value = duration.as_secs_f64();
        let bucket = BOUNDS.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(duration.as_nanos() as u64, Ordering::Relaxed);
        if let Some((trace, span)) = of {
            let exemplar = Exemplar { value, time: SystemTime::now(), trace, span };
            self.exemplars.lock().unwrap_or_else(PoisonError::into_inner)[bucket] = Some(exemplar);
        }
    }

    /// Records the time since a moment, with the trace that is current.
    pub fn since(&self, began: Instant) {
        self.observe(began.elapsed());
    }

    /// What was recorded; none if nothing was. Counts and sum may differ by what is recorded at the same moment.
    pub fn read(&self) -> Option<Histogram> {
        let counts: Vec<u64> = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        if counts.iter().all(|count| *count == 0) {
            return None;
        }
        let sum = self.nanos.load(Ordering::Relaxed) as f64 / 1e9;
        let kept = self.exemplars.lock().unwrap_or_else(PoisonError::into_inner);
        let exemplars = kept.iter().enumerate().filter_map(|(n, kept)| Some((n, kept.clone()?))).collect();
        Some(Histogram { bounds: Cow::Borrowed(&BOUNDS), counts, sum, exemplars })
    }
}

/// One histogram for each combination of labels.
#[derive(Debug)]
pub struct Labelled<K> {
    other: K,
    known: RwLock<HashMap<K, Arc<Latency>>>,
}

impl<K: Hash + Eq + Copy> Labelled<K> {
    fn new(other: K) -> Self {
        Self { other, known: RwLock::default() }
    }

    /// The histogram of these labels.
    pub fn of(&self, labels: K) -> Arc<Latency> {
        if let Some(found) = self.known.read().unwrap_or_else(PoisonError::into_inner).get(&labels) {
            return Arc::clone(found);
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let labels = if known.len() < COMBINATIONS { labels } else { self.other };
        Arc::clone(known.entry(labels).or_default())
    }

    fn each(&self, mut take: impl FnMut(K, Histogram)) {
        for (labels, latency) in &*self.known.read().unwrap_or_else(PoisonError::into_inner) {
            if let Some(histogram) = latency.read() {
                take(*labels, histogram);
            }
        }
    }
}

/// Route, method and status of an API request. A route that is unknown is `~other`.
pub type Request = (&'static str, &'static str, u16);

/// All histograms of the daemon.
#[derive(Debug)]
pub struct Latencies {
    /// A pod's instance: from its acceptance until all of its containers run.
    pub pod_start: Latency,
    /// A container: from its launch, with its image, until its program runs.
    pub container_start: Latency,
    /// A session: from its request until its program runs.
    pub exec_begin: Latency,
    /// An image that was pulled.
    pub image_pull: Latency,
    /// API requests: until their answer begins.
    pub requests: Labelled<Request>,
    /// One isolator's step (`prepare`, `update`, `cleanup`) for one container.
    pub isolators: Labelled<(&'static str, &'static str)>,
}

/// The histograms of this process.
pub static LATENCIES: LazyLock<Latencies> = LazyLock::new(|| Latencies {
    pod_start: Latency::default(),
    container_start: Latency::default(),
    exec_begin: Latency::default(),
    image_pull: Latency::default(),
    requests: Labelled::new((OTHER, OTHER, 0)),
    isolators: Labelled::new((OTHER, OTHER)),
});

/// The method of a request as a label; those that the API does not know are counted together.
pub fn method(method: &hyper::Method) -> &'static str {
    ["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "CONNECT"]
        .into_iter()
        .find(|known| *known == method.as_str())
        .unwrap_or(OTHER)
}

/// The label of a route that is none.
pub const NO_ROUTE: &str = OTHER;

impl Latencies {
    /// Adds what was recorded.
    pub fn fill(&self, batch: &mut Batch, scope: ScopeId) {
        let plain = [
            (&agent::POD_START, &self.pod_start),
            (&agent::CONTAINER_START, &self.container_start),
            (&agent::EXEC_BEGIN, &self.exec_begin),
            (&agent::IMAGE_PULL, &self.image_pull),
        ];
        for (family, latency) in plain {
            if let Some(histogram) = latency.read() {
                batch.histogram(family, scope, &[], histogram);
            }
        }
        self.requests.each(|(route, method, status), histogram| {
            batch.histogram(&agent::API_REQUEST, scope, &[route, method, &status.to_string()], histogram);
        });
        self.isolators.each(|(isolator, step), histogram| {
            batch.histogram(&agent::ISOLATOR, scope, &[isolator, step], histogram);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_their_buckets_and_bounds_belong_to_the_lower() {
        let latency = Latency::default();
        assert_eq!(latency.read(), None);
        for micros in [0, 500, 501, 1000, 120_000_000, 120_000_001] {
            latency.observe_of(Duration::from_micros(micros), None);
        }
        let histogram = latency.read().unwrap();
        assert_eq!(histogram.counts.iter().sum::<u64>(), 6);
        assert_eq!((histogram.counts[0], histogram.counts[1]), (2, 2));
        assert_eq!(histogram.counts[BUCKETS - 2..], [1, 1]);
        assert!((histogram.sum - 240.002_002).abs() < 1e-6, "{}", histogram.sum);
        assert!(histogram.exemplars.is_empty());
    }

    #[test]
    fn a_bucket_keeps_the_last_trace() {
        let latency = Latency::default();
        for n in 1..=3 {
            latency.observe_of(Duration::from_millis(20), Some(([n; 16], [n; 8])));
        }
        latency.observe_of(Duration::from_millis(20), None);
        let histogram = latency.read().unwrap();
        let [(bucket, exemplar)] = &histogram.exemplars[..] else { panic!("{:?}", histogram.exemplars) };
        assert!(BOUNDS[*bucket] >= 0.02 && BOUNDS[bucket - 1] < 0.02);
        assert_eq!((exemplar.trace, exemplar.span), ([3; 16], [3; 8]));
        assert_eq!(histogram.counts[*bucket], 4);
    }

    #[test]
    fn too_many_labels_are_counted_together() {
        let labelled: Labelled<u32> = Labelled::new(u32::MAX);
        for n in 0..COMBINATIONS as u32 + 50 {
            labelled.of(n).observe_of(Duration::ZERO, None);
        }
        let mut seen = HashMap::new();
        labelled.each(|labels, histogram| {
            seen.insert(labels, histogram.counts[0]);
        });
        assert_eq!((seen.len(), seen[&u32::MAX], seen[&7]), (COMBINATIONS + 1, 50, 1));
    }

    #[test]
    fn recording_by_many_threads_loses_nothing() {
        let latency = Latency::default();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for n in 0..1000 {
                        latency.observe_of(Duration::from_micros(n), Some(([1; 16], [1; 8])));
                    }
                });
            }
        });
        assert_eq!(latency.read().unwrap().counts.iter().sum::<u64>(), 8000);
    }

    #[test]
    fn what_was_recorded_is_filled_in_with_its_labels() {
        let latencies = Latencies {
            pod_start: Latency::default(),
            container_start: Latency::default(),
            exec_begin: Latency::default(),
            image_pull: Latency::default(),
            requests: Labelled::new((OTHER, OTHER, 0)),
            isolators: Labelled::new((OTHER, OTHER)),
        };
        latencies.pod_start.observe_of(Duration::from_secs(1), None);
        latencies.requests.of(("/v1/pods", method(&hyper::Method::POST), 201)).observe_of(Duration::ZERO, None);
        latencies.isolators.of(("cpu", "prepare")).observe_of(Duration::ZERO, None);
        let mut batch = Batch::new(SystemTime::now());
        let scope = batch.scope(agentd_metrics::model::Scope::default());
        latencies.fill(&mut batch, scope);
        assert_eq!(batch.points(&agent::POD_START).len(), 1);
        assert!(batch.points(&agent::IMAGE_PULL).is_empty());
        assert_eq!(batch.points(&agent::API_REQUEST)[0].labels, ["/v1/pods", "POST", "201"]);
        assert_eq!(batch.points(&agent::ISOLATOR)[0].labels, ["cpu", "prepare"]);
        assert_eq!(method(&hyper::Method::from_bytes(b"BREW").unwrap()), OTHER);
    }
}
