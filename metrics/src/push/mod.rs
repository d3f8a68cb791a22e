//! Delivery by OTLP over HTTP: protobuf bodies, made elsewhere, are posted to a collector.
//!
//! A [`Pusher`] has one lane for each [`Signal`]: a bounded [`queue`] and, while [`Pusher::run`] runs, one loop that takes
//! requests from it and posts them over a connection that it keeps open. The lanes share nothing, so that a collector that
//! does not want traces holds up no metrics. Whoever offers never waits. What the collector could not be told stays in the
//! queue until there is no more room; everything is counted ([`queue::Figures`]).

mod answer;
mod connection;
pub mod queue;
mod settings;

use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use settings::{Endpoint, Header, HeaderValue, Settings, TlsFiles};

use connection::{Fault, Way};
use queue::{Figures, Outcome, Queue, Step};

/// What is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Bodies are `ExportMetricsServiceRequest`, posted to `<endpoint>/v1/metrics`.
    Metrics,
    /// Bodies are `ExportTraceServiceRequest`, posted to `<endpoint>/v1/traces`.
    Traces,
}

impl Signal {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Metrics, Self::Traces];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Traces => "traces",
        }
    }
}

/// Delivers to one collector. Clones are the same.
#[derive(Debug, Clone)]
pub struct Pusher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    settings: Settings,
    lanes: [Lane; Signal::ALL.len()],
    /// What the queue's times are counted from.
    began: Instant,
}

#[derive(Debug)]
struct Lane {
    queue: Mutex<Queue>,
    offered: Notify,
}

impl Lane {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pusher {
    /// A pusher with empty queues. Reads the files that the settings name once, so that what is wrong with them is told at
    /// the start; later they are read when they are needed, and may have changed.
    ///
    /// # Errors
    /// One line about the first file that cannot be used.
    pub fn new(settings: Settings) -> Result<Self, String> {
        connection::check(&settings)?;
        let lane = || Lane { queue: Mutex::new(Queue::new(settings.limits)), offered: Notify::new() };
        let lanes = [lane(), lane()];
        Ok(Self { shared: Arc::new(Shared { lanes, settings, began: Instant::now() }) })
    }

    /// Queues a body. Never waits; compresses, which takes some milliseconds for each MiB.
    pub fn offer(&self, signal: Signal, body: Vec<u8>) {
        let body = if self.shared.settings.gzip { gzip(&body) } else { body };
        let lane = self.lane(signal);
        lane.queue().offer(self.shared.began.elapsed(), body.into());
        lane.offered.notify_one();
    }

    /// The counts of a signal.
    pub fn figures(&self, signal: Signal) -> Figures {
        self.lane(signal).queue().figures()
    }

    /// Delivers until `stop`, then tries what is left within [`Settings::flush`]. To be called once.
    pub async fn run(&self, stop: CancellationToken) {
        tokio::join!(self.deliver(Signal::Metrics, &stop), self.deliver(Signal::Traces, &stop));
    }

    fn lane(&self, signal: Signal) -> &Lane {
        &self.shared.lanes[signal as usize]
    }

    async fn deliver(&self, signal: Signal, stop: &CancellationToken) {
        let (lane, settings) = (self.lane(signal), &self.shared.settings);
        let mut way = Way::new(settings, signal);
        let mut told = Told { signal, endpoint: settings.endpoint.to_string(), away: false, partly: false, dropped: 0 };
        let work = async {
            loop {
                let now = self.shared.began.elapsed();
                let next = lane.queue().next(now);
                match next {
                    Step::Send(body) => {
                        let answer = way.post(Bytes::from_owner(body)).await;
                        let outcome = match &answer {
                            Ok(answer) => Outcome::Accepted { rejected: answer.rejected },
                            Err(fault) => Outcome::Failed { reason: fault.reason, retry_after: fault.retry_after },
                        };
                        let now = self.shared.began.elapsed();
                        lane.queue().done(now, outcome, random());
                        told.tell(answer, self.figures(signal));
                    }
                    Step::Wait(until) => tokio::select! {
                        () = tokio::time::sleep(until.saturating_sub(now)) => {}
                        () = stop.cancelled(), if !stop.is_cancelled() => lane.queue().end(),
                    },
                    Step::Idle => tokio::select! {
                        biased;
                        () = stop.cancelled() => lane.queue().end(),
                        () = lane.offered.notified() => {}
                    },
                    Step::Over => return,
                }
            }
        };
        let too_late = async {
            stop.cancelled().await;
            lane.queue().end();
            tokio::time::sleep(settings.flush).await;
        };
        tokio::select! {
            () = work => {}
            () = too_late => {
                let before = self.figures(signal).dropped;
                lane.queue().abandon();
                let left = self.figures(signal).dropped - before;
                tracing::warn!(
                    "OTLP: {left} requests of {} could not be delivered within {:?} at the end",
                    signal.word(),
                    settings.flush
                );
            }
        }
    }
}

/// What the daemon's log was told: each change once, not each attempt.
struct Told {
    signal: Signal,
    endpoint: String,
    away: bool,
    /// The last request was taken, and not all of it.
    partly: bool,
    dropped: u64,
}

impl Told {
    fn tell(&mut self, answer: Result<answer::Accepted, Fault>, figures: Figures) {
        let (word, endpoint) = (self.signal.word(), &self.endpoint);
        match answer {
            Ok(accepted) => {
                let partly = accepted.rejected > 0 || !accepted.message.is_empty();
                if partly && !self.partly {
                    let (rejected, message) = (accepted.rejected, accepted.message);
                    tracing::warn!("OTLP: {endpoint} took {word} but {rejected} of them; it says {message:?}");
                }
                self.partly = partly;
                if self.away {
                    let lost = figures.dropped + figures.expired - self.dropped;
                    tracing::info!("OTLP: {endpoint} takes {word} again; {lost} requests were lost meanwhile");
                }
                (self.away, self.dropped) = (false, figures.dropped + figures.expired);
            }
            Err(fault) if !self.away => {
                self.away = true;
                let follows = if fault.reason.passes() { "kept and tried again" } else { "given up" };
                tracing::warn!("OTLP: {word} are not delivered to {endpoint}: {}; {follows}", fault.message);
            }
            Err(fault) => tracing::debug!("OTLP: {word} are not delivered to {endpoint}: {}", fault.message),
        }
    }
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4 + 64), Compression::fast());
    // a Vec takes everything
    let _ = encoder.write_all(body);
    encoder.finish().unwrap_or_default()
}

/// From 0 to below 1, for jitter: the keys of std's hash maps are random for each process and differ for each map.
fn random() -> f64 {
    let bits = RandomState::new().hash_one(0_u8) >> 11;
    bits as f64 / (1_u64 << 53) as f64
}
