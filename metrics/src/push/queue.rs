//! What waits to be delivered, and when it is tried: a state machine without I/O, clock or randomness.
//!
//! Requests go out one at a time, the oldest first. One that fails for a reason that may pass stays at the head and is tried
//! again after a pause that doubles, or after the time that the collector asked for; one that is refused, or that has grown
//! too old, is given up. The bounds hold for what waits, beside the one request that is under way: above them the oldest
//! goes. Each request that was offered ends in exactly one counter.
//!
//! Times are given as what has passed since any one moment.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Bounds and pauses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests kept, at least 1.
    pub requests: usize,
    /// Bytes kept.
    pub bytes: usize,
    /// Pause after the first failure, before jitter.
    pub first_pause: Duration,
    /// Longest pause that is not asked for by the collector.
    pub longest_pause: Duration,
    /// Longest pause that a collector may ask for.
    pub longest_asked: Duration,
    /// Age at which a request is given up when it fails once more.
    pub longest_kept: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: 64,
            bytes: 16 << 20,
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(30),
            longest_asked: Duration::from_mins(10),
            longest_kept: Duration::from_hours(1),
        }
    }
}

/// Why one attempt came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// No connection: the name has no address, nobody listens, no route.
    Connect,
    /// The connection's TLS.
    Tls,
    /// No answer in time.
    Timeout,
    /// The connection broke before the answer was whole, or the answer was no HTTP.
    Broken,
    /// The collector is too busy: 429.
    Throttled,
    /// The collector, or what stands before it, is not there for now: 502, 503, 504.
    Unavailable,
    /// The collector does not want it: any other status.
    Refused,
    /// A file of a header or of TLS cannot be read.
    Local,
}

impl Reason {
    /// All, in the order of [`Figures::failures`].
    pub const ALL: [Self; 8] = [
        Self::Connect,
        Self::Tls,
        Self::Timeout,
        Self::Broken,
        Self::Throttled,
        Self::Unavailable,
        Self::Refused,
        Self::Local,
    ];

    /// The word for it in labels.
    pub fn word(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Refused => "refused",
            Self::Local => "local",
        }
    }

    /// Whether it may pass by itself. The statuses are those of the OTLP specification.
    pub fn passes(self) -> bool {
        self != Self::Refused
    }
}

/// What an attempt came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The collector has it.
    Accepted {
        /// Points or spans that it took apart from the rest and refused.
        rejected: u64,
    },
    /// It has not.
    Failed {
        /// Why.
        reason: Reason,
        /// After how long the collector wants to be asked again.
        retry_after: Option<Duration>,
    },
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Try this request, then call [`Queue::done`].
    Send(Arc<[u8]>),
    /// Nothing before this time.
    Wait(Duration),
    /// Nothing until something is offered.
    Idle,
    /// Nothing any more.
    Over,
}

/// Exact counts. `offered = sent + refused + expired + dropped + queued` at any time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Requests that were offered.
    pub offered: u64,
    /// Requests that the collector has.
    pub sent: u64,
    /// Their bytes, as they went over the wire, without heads.
    pub sent_bytes: u64,
    /// Requests that the collector does not want.
    pub refused: u64,
    /// Requests that failed until they were too old.
    pub expired: u64,
    /// Requests that had to make room for newer ones, were larger than the whole queue, or were left at the end.
    pub dropped: u64,
    /// Attempts after the first of a request.
    pub retried: u64,
    /// Attempts that failed, by [`Reason::ALL`].
    pub failures: [u64; Reason::ALL.len()],
    /// Points or spans that the collector refused of requests that it took.
    pub rejected: u64,
    /// Requests that wait or are under way.
    pub queued: usize,
    /// Their bytes.
    pub queued_bytes: usize,
}

#[derive(Debug)]
struct Request {
    body: Arc<[u8]>,
    offered: Duration,
    attempts: u32,
}

/// The requests of one signal.
#[derive(Debug)]
pub struct Queue {
    limits: Limits,
    waiting: VecDeque<Request>,
    under_way: Option<Request>,
    /// Nothing is tried before.
    pause: Option<Duration>,
    /// Failures since the last answer that was none.
    failures: u32,
    /// Set when nothing is waited for any more.
    ending: bool,
    figures: Figures,
}

impl Queue {
    /// An empty queue.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            waiting: VecDeque::new(),
            under_way: None,
            pause: None,
            failures: 0,
            ending: false,
            figures: Figures::default(),
        }
    }

    /// Takes a request. The oldest ones make room; what is larger than all room is dropped itself.
    pub fn offer(&mut self, now: Duration, body: Arc<[u8]>) {
        self.figures.offered += 1;
        if body.len() > self.limits.bytes || (self.ending && self.over()) {
            self.figures.dropped += 1;
            return;
        }
        self.waiting.push_back(Request { body, offered: now, attempts: 0 });
        self.make_room();
    }

    /// What to do now. After [`Step::Send`] nothing else is sent before [`Queue::done`].
    pub fn next(&mut self, now: Duration) -> Step {
        if self.under_way.is_some() {
            return Step::Idle;
        }
        if self.waiting.is_empty() {
            return if self.ending { Step::Over } else { Step::Idle };
        }
        if let Some(until) = self.pause
            && until > now
        {
            return Step::Wait(until);
        }
        self.pause = None;
        let Some(mut request) = self.waiting.pop_front() else { return Step::Idle };
        if request.attempts > 0 {
            self.figures.retried += 1;
        }
        request.attempts = request.attempts.saturating_add(1);
        let body = Arc::clone(&request.body);
        self.under_way = Some(request);
        Step::Send(body)
    }

    /// Takes what the attempt came to. `random` is from 0 to below 1.
    pub fn done(&mut self, now: Duration, outcome: Outcome, random: f64) {
        let Some(request) = self.under_way.take() else { return };
        let (reason, retry_after) = match outcome {
            Outcome::Accepted { rejected } => {
                self.figures.sent += 1;
                self.figures.sent_bytes += request.body.len() as u64;
                self.figures.rejected += rejected;
                self.failures = 0;
                return;
            }
            Outcome::Failed { reason, retry_after } => (reason, retry_after),
        };
        self.figures.failures[reason as usize] += 1;
        if !reason.passes() {
            // it answers, so that the next may go at once
            self.figures.refused += 1;
            self.failures = 0;
            return;
        }
        let pause = self.pause_after(retry_after, random);
        self.failures = self.failures.saturating_add(1);
        if self.ending {
            // there is no time for a pause, and what failed now would fail for the rest
            self.figures.dropped += 1 + self.waiting.len() as u64;
            self.waiting.clear();
            return;
        }
        self.pause = Some(now + pause);
        if now.saturating_sub(request.offered) >= self.limits.longest_kept {
            self.figures.expired += 1;
            return;
        }
        self.waiting.push_front(request);
        self.make_room();
    }

    /// From now on nothing is waited for: what is there is tried once more, up to the first failure that may pass.
    pub fn end(&mut self) {
        self.ending = true;
        self.pause = None;
    }

    /// Gives up all that is left.
    pub fn abandon(&mut self) {
        self.ending = true;
        self.figures.dropped += self.waiting.len() as u64 + u64::from(self.under_way.take().is_some());
        self.waiting.clear();
    }

    /// Whether nothing waits and nothing is under way.
    pub fn over(&self) -> bool {
        self.waiting.is_empty() && self.under_way.is_none()
    }

    /// The counts.
    pub fn figures(&self) -> Figures {
        let all = || self.waiting.iter().chain(&self.under_way);
        let queued_bytes = all().map(|request| request.body.len()).sum();
        Figures { queued: all().count(), queued_bytes, ..self.figures }
    }

    /// The pause doubles with each failure. Half of it is by chance, so that many nodes whose collector was away do not come
    /// back at once; what the collector asks for is a lower bound.
    fn pause_after(&self, retry_after: Option<Duration>, random: f64) -> Duration {
        let doubled = self.limits.first_pause.saturating_mul(1 << self.failures.min(16));
        let pause = doubled.min(self.limits.longest_pause).mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0);
        retry_after.map_or(pause, |asked| asked.min(self.limits.longest_asked).max(pause))
    }

    fn make_room(&mut self) {
        let mut bytes: usize = self.waiting.iter().map(|request| request.body.len()).sum();
        while self.waiting.len() > self.limits.requests.max(1) || bytes > self.limits.bytes {
            let Some(oldest) = self.waiting.pop_front() else { return };
            bytes -= oldest.body.len();
            self.figures.dropped += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCEPTED: Outcome = Outcome::Accepted { rejected: 0 };

    fn limits() -> Limits {
        Limits { requests: 3, bytes: 100, ..Limits::default() }
    }

    fn body(first: u8, length: usize) -> Arc<[u8]> {
        vec![first; length].into()
    }

    fn failed(reason: Reason) -> Outcome {
        Outcome::Failed { reason, retry_after: None }
    }

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// The first byte of what is sent.
    fn sent(step: &Step) -> u8 {
        match step {
            Step::Send(body) => body[0],
            other => panic!("expected a request, found {other:?}"),
        }
    }

    fn balanced(figures: Figures) -> bool {
        let ended = figures.sent + figures.refused + figures.expired + figures.dropped;
        figures.offered == ended + figures.queued as u64
    }

    #[test]
    fn the_oldest_goes_first_and_one_at_a_time() {
        let mut queue = Queue::new(limits());
        let now = Duration::ZERO;
        assert_eq!(queue.next(now), Step::Idle);
        queue.offer(now, body(1, 10));
        queue.offer(now, body(2, 10));
        assert_eq!(sent(&queue.next(now)), 1);
        assert_eq!(queue.next(now), Step::Idle);
        assert_eq!((queue.figures().queued, queue.figures().queued_bytes), (2, 20));
        queue.done(now, Outcome::Accepted { rejected: 7 }, 0.0);
        assert_eq!(sent(&queue.next(now)), 2);
        queue.done(now, ACCEPTED, 0.0);
        assert_eq!(queue.next(now), Step::Idle);
        let expected = Figures { offered: 2, sent: 2, sent_bytes: 20, rejected: 7, ..Figures::default() };
        assert_eq!(queue.figures(), expected);
    }

    #[test]
    fn pauses_double_with_jitter_up_to_the_longest_and_begin_anew_after_a_success() {
        let mut queue = Queue::new(limits());
        let mut now = Duration::ZERO;
        queue.offer(now, body(1, 1));
        for (random, pause) in [(0.0, 0.5), (0.5, 1.5), (0.0, 2.0), (0.999_999, 8.0), (0.0, 8.0), (0.0, 15.0)] {
            assert_eq!(sent(&queue.next(now)), 1);
            queue.done(now, failed(Reason::Unavailable), random);
            let Step::Wait(until) = queue.next(now) else { panic!("expected a pause") };
            let found = until.saturating_sub(now);
            assert!(found.abs_diff(seconds(pause)) < seconds(0.001), "{found:?}, expected {pause}");
            assert_eq!(queue.next(until.saturating_sub(Duration::from_nanos(1))), Step::Wait(until));
            now = until;
        }
        assert_eq!(sent(&queue.next(now)), 1);
        queue.done(now, ACCEPTED, 0.0);
        assert_eq!(queue.figures().retried, 6);
        queue.offer(now, body(2, 1));
        assert_eq!(sent(&queue.next(now)), 2);
        queue.done(now, failed(Reason::Timeout), 0.0);
        assert_eq!(queue.next(now), Step::Wait(now + seconds(0.5)));
    }

    #[test]
    fn the_collector_may_ask_for_more_time_but_not_for_less_nor_for_ever() {
        for (asked, pause) in [(20, 20.0), (0, 0.5), (86_400, 600.0)] {
            let mut queue = Queue::new(limits());
            queue.offer(Duration::ZERO, body(1, 1));
            queue.next(Duration::ZERO);
            let retry_after = Some(Duration::from_secs(asked));
            queue.done(Duration::ZERO, Outcome::Failed { reason: Reason::Throttled, retry_after }, 0.0);
            assert_eq!(queue.next(Duration::ZERO), Step::Wait(seconds(pause)), "{asked}");
        }
    }

    #[test]
    fn what_is_refused_is_not_tried_again_and_holds_nothing_up() {
        let mut queue = Queue::new(limits());
        queue.offer(Duration::ZERO, body(1, 1));
        queue.offer(Duration::ZERO, body(2, 1));
        queue.next(Duration::ZERO);
        queue.done(Duration::ZERO, failed(Reason::Refused), 0.0);
        assert_eq!(sent(&queue.next(Duration::ZERO)), 2);
        let figures = queue.figures();
        assert_eq!((figures.refused, figures.retried, figures.failures[Reason::Refused as usize]), (1, 0, 1));
    }

    #[test]
    fn the_oldest_make_room_by_number_and_by_bytes() {
        let mut queue = Queue::new(limits());
        let now = Duration::ZERO;
        for n in 1..=5 {
            queue.offer(now, body(n, 10));
        }
        assert_eq!((queue.figures().dropped, queue.figures().queued), (2, 3));
        assert_eq!(sent(&queue.next(now)), 3);
        queue.offer(now, body(6, 85));
        // 4 and 5 beside 6 would be 105 bytes; 3 is under way
        assert_eq!((queue.figures().dropped, queue.figures().queued), (3, 3));
        queue.offer(now, body(7, 101));
        assert_eq!((queue.figures().dropped, queue.figures().queued), (4, 3));
        // back from a failure it is the oldest
        queue.done(now, failed(Reason::Broken), 0.0);
        assert_eq!((queue.figures().dropped, queue.figures().queued), (5, 2));
        assert_eq!(sent(&queue.next(seconds(1.0))), 5);
        assert!(balanced(queue.figures()), "{:?}", queue.figures());
    }

    #[test]
    fn what_has_grown_too_old_is_given_up_after_one_more_failure() {
        let mut queue = Queue::new(limits());
        queue.offer(Duration::ZERO, body(1, 1));
        let old = Duration::from_hours(2);
        assert_eq!(sent(&queue.next(old)), 1);
        queue.done(old, failed(Reason::Connect), 0.0);
        assert_eq!((queue.figures().expired, queue.figures().queued), (1, 0));
        assert!(balanced(queue.figures()));
        // the pause holds for what comes next
        queue.offer(old, body(2, 1));
        assert_eq!(queue.next(old), Step::Wait(old + seconds(0.5)));
    }

    #[test]
    fn at_the_end_nothing_waits_for_a_pause() {
        let mut queue = Queue::new(limits());
        let now = Duration::ZERO;
        for n in 1..=3 {
            queue.offer(now, body(n, 1));
        }
        queue.next(now);
        queue.done(now, failed(Reason::Connect), 0.0);
        assert!(matches!(queue.next(now), Step::Wait(_)));
        queue.end();
        assert_eq!(sent(&queue.next(now)), 1);
        queue.done(now, ACCEPTED, 0.0);
        assert_eq!(sent(&queue.next(now)), 2);
        queue.done(now, failed(Reason::Connect), 0.0);
        assert_eq!(queue.next(now), Step::Over);
        queue.offer(now, body(4, 1));
        let figures = queue.figures();
        assert_eq!((figures.sent, figures.dropped, figures.queued), (1, 3, 0));
        assert!(balanced(figures), "{figures:?}");
    }

    #[test]
    fn what_is_abandoned_counts_as_dropped() {
        let mut queue = Queue::new(limits());
        queue.offer(Duration::ZERO, body(1, 1));
        queue.offer(Duration::ZERO, body(2, 1));
        queue.next(Duration::ZERO);
        queue.abandon();
        // an answer that comes late changes nothing
        queue.done(Duration::ZERO, ACCEPTED, 0.0);
        let figures = queue.figures();
        assert_eq!((figures.sent, figures.dropped, figures.queued), (0, 2, 0));
        assert_eq!(queue.next(Duration::ZERO), Step::Over);
    }

    #[test]
    fn every_request_ends_in_one_counter_whatever_happens() {
        // a generator with a fixed seed: the sequences are the same in each run
        let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut random = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        for _ in 0..200 {
            let mut queue = Queue::new(Limits { longest_kept: Duration::from_secs(40), ..limits() });
            let mut now = Duration::ZERO;
            for _ in 0..100 {
                now += Duration::from_millis(random(4000));
                match random(4) {
                    0 | 1 => queue.offer(now, body(0, random(120) as usize)),
                    2 => drop(queue.next(now)),
                    _ => {
                        let reason = Reason::ALL[random(8) as usize];
                        let retry_after = (random(3) == 0).then(|| Duration::from_secs(random(9)));
                        let failed = Outcome::Failed { reason, retry_after };
                        let outcome = if random(2) == 0 { ACCEPTED } else { failed };
                        queue.done(now, outcome, random(100) as f64 / 100.0);
                    }
                }
                let figures = queue.figures();
                assert!(balanced(figures), "{figures:?}");
                assert!(figures.queued <= 4 && figures.queued_bytes <= 200, "{figures:?}");
            }
            // what is under way, if anything is
            queue.done(now, ACCEPTED, 0.0);
            queue.end();
            while let Step::Send(_) = queue.next(now) {
                queue.done(now, if random(3) == 0 { failed(Reason::Timeout) } else { ACCEPTED }, 0.0);
            }
            let figures = queue.figures();
            assert!(figures.queued == 0 && balanced(figures), "{figures:?}");
        }
    }
}
