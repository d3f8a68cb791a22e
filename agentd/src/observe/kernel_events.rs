//! Events of the kernel's ring, in words: what a person reads of them, and how many were held back.
//!
//! [`tell`] is a pure function. [`Limits`] counts, for each container, the events that did not come through: held back in the
//! kernel by the container's rate, lost because the ring was full, or held back here by the rate of all containers together
//! ([`Bucket`]). [`Clock`] gives the time of day of the kernel's monotonic one.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use agentd_ebpf::observe::layout::{
    ARGUMENTS, EVENT_CONNECT_FAILED, EVENT_EXEC, EVENT_EXIT, EVENT_OOM, Event, HOST, Processes,
};

use super::registry::Identity;

/// A kind of event of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A program began.
    Exec,
    /// A process ended.
    Exit,
    /// The kernel chose a victim.
    Oom,
    /// A connect failed.
    ConnectFailed,
}

impl Kind {
    /// That of an event; none for a number that no program writes.
    pub fn of(event: &Event) -> Option<Self> {
        match event.kind {
            EVENT_EXEC => Some(Self::Exec),
            EVENT_EXIT => Some(Self::Exit),
            EVENT_OOM => Some(Self::Oom),
            EVENT_CONNECT_FAILED => Some(Self::ConnectFailed),
            _ => None,
        }
    }

    /// Its kind on `/v1/events`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exec => "container-exec",
            Self::Exit => "container-exit",
            Self::Oom => "container-oom",
            Self::ConnectFailed => "container-connect-failed",
        }
    }

    /// Its word in `observe.events`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Exit => "exit",
            Self::Oom => "oom",
            Self::ConnectFailed => "connect-failed",
        }
    }
}

/// One line for people. `sender` is the container of who sent a signal, `peer` the pod of an address, where they are known.
pub fn tell(kind: Kind, event: &Event, sender: Option<&Identity>, peer: Option<&str>) -> String {
    let (command, pid) = (name(&event.command), event.pid);
    match kind {
        Kind::Exec => {
            let path = name(&event.path);
            let path = if path.is_empty() { command } else { path };
            let rest = rest(&event.arguments[..usize::from(event.length).min(ARGUMENTS)]);
            format!("{path}{rest} (process {pid}, child of {})", event.parent)
        }
        Kind::Exit => {
            let mut text = format!("{command} (process {pid}) ");
            let signal = event.code & 0x7f;
            if signal == 0 {
                let _ = write!(text, "exited with status {}", event.code >> 8 & 0xff);
                return text;
            }
            let _ = write!(text, "was ended by {}", signal_name(signal));
            if event.code & 0x80 != 0 {
                text.push_str(", with a core dump");
            }
            if event.sender != 0 {
                let _ = write!(text, ", sent by {} (process {}", name(&event.sender_command), event.sender);
                match sender {
                    Some(who) => drop(write!(text, " of {} in {})", who.container, who.pod)),
                    None if event.sender_container == HOST => text.push_str(" of the host)"),
                    None => text.push(')'),
                }
            }
            text
        }
        Kind::Oom => format!("out of memory: the kernel killed {command} (process {pid})"),
        Kind::ConnectFailed => {
            let address = address(event.address);
            let why = std::io::Error::from_raw_os_error(event.code as i32).to_string();
            let why = why.split(" (os error").next().unwrap_or_default();
            let pod = peer.map_or_else(String::new, |pod| format!(" ({pod})"));
            let port = event.port;
            let target = if address.is_ipv6() { format!("[{address}]:{port}") } else { format!("{address}:{port}") };
            format!("connect to {target}{pod} failed: {why} ({command}, process {pid})")
        }
    }
}

/// The address of an edge or event.
pub fn address(bytes: [u8; 16]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
}

fn signal_name(signal: u32) -> String {
    match nix::sys::signal::Signal::try_from(signal as i32) {
        Ok(known) => known.as_str().to_owned(),
        Err(_) => format!("signal {signal}"),
    }
}

/// A command's name as the kernel keeps it.
fn name(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    clean(&String::from_utf8_lossy(&bytes[..end]))
}

/// The arguments behind the first, which have a NUL behind each, with a space before each; what was cut off is shown by dots.
fn rest(bytes: &[u8]) -> String {
    let cut = bytes.len() == ARGUMENTS && bytes.last() != Some(&0);
    let parts = bytes.strip_suffix(&[0]).unwrap_or(bytes).split(|byte| *byte == 0).skip(1);
    let mut text = String::new();
    for part in parts {
        text.push(' ');
        text.push_str(&clean(&String::from_utf8_lossy(part)));
    }
    if cut {
        text.push('…');
    }
    text
}

/// Without what moves a terminal's cursor.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The time of day of moments of CLOCK_MONOTONIC, at the time of asking: the clock of the day may be set in between.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Time of day less monotonic time, ns.
    offset: i128,
}

impl Clock {
    /// Reads both clocks. The monotonic one is read before and after, so that the offset is right to half of the time between.
    pub fn now() -> Self {
        use rustix::time::{ClockId, clock_gettime};
        let ns = |clock| {
            let time = clock_gettime(clock);
            i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
        };
        let (before, day, after) = (ns(ClockId::Monotonic), ns(ClockId::Realtime), ns(ClockId::Monotonic));
        Self { offset: day - i128::midpoint(before, after) }
    }

    /// When that was.
    pub fn at(self, monotonic: u64) -> jiff::Timestamp {
        let since = self.offset + i128::from(monotonic);
        jiff::Timestamp::from_nanosecond(since).unwrap_or_else(|_| jiff::Timestamp::now())
    }
}

/// A rate with a burst.
#[derive(Debug)]
pub struct Bucket {
    rate: f64,
    most: f64,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// So many each second on average, twice as many at once.
    pub fn new(rate: u64, now: Instant) -> Self {
        let most = rate as f64 * 2.0;
        Self { rate: rate as f64, most, tokens: most, filled: now }
    }

    /// Whether there is room for one more now.
    pub fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * self.rate).min(self.most);
        self.filled = now;
        let room = self.tokens >= 1.0;
        if room {
            self.tokens -= 1.0;
        }
        room
    }
}

/// Events of one container that did not come through, since they were first counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Missed {
    /// Held back in the kernel by the container's rate.
    pub limited: u64,
    /// Lost because the ring was full.
    pub dropped: u64,
    /// Held back here by the rate of all containers.
    pub held: u64,
}

impl Missed {
    fn less(self, told: Self) -> Self {
        Self {
            limited: self.limited.saturating_sub(told.limited),
            dropped: self.dropped.saturating_sub(told.dropped),
            held: self.held.saturating_sub(told.held),
        }
    }

    /// How many.
    pub fn total(self) -> u64 {
        self.limited + self.dropped + self.held
    }

    /// One line for people.
    pub fn message(self, over: Duration) -> String {
        let Self { limited, dropped, held } = self;
        format!(
            "{} events were left out in {} s: {limited} above the container's rate (observe.events_per_second), {held} above \
             that of all (observe.events_total_per_second), {dropped} because the kernel's ring was full",
            self.total(),
            over.as_secs().max(1)
        )
    }
}

/// What was left out of each container's events, and what of that has been told.
#[derive(Debug, Default)]
pub struct Limits {
    held: HashMap<u64, u64>,
    told: HashMap<u64, Missed>,
    active: std::collections::HashSet<u64>,
}

impl Limits {
    /// An event of this container came through the ring. Only such a container can have been limited in the kernel.
    pub fn heard(&mut self, cgroup: u64) {
        self.active.insert(cgroup);
    }

    /// One was held back here.
    pub fn hold(&mut self, cgroup: u64) {
        *self.held.entry(cgroup).or_default() += 1;
        self.active.insert(cgroup);
    }

    /// Whether there may be something to tell.
    pub fn pending(&self) -> bool {
        !self.active.is_empty()
    }

    /// How many were held back here of a container.
    pub fn held(&self, cgroup: u64) -> u64 {
        self.held.get(&cgroup).copied().unwrap_or_default()
    }

    /// What is to be told now, by container: exactly what was left out since it was told last.
    pub fn due(&mut self, counted: impl Fn(u64) -> Option<Processes>) -> Vec<(u64, Missed)> {
        let mut due: Vec<(u64, Missed)> = Vec::new();
        for cgroup in std::mem::take(&mut self.active) {
            let counts = counted(cgroup).unwrap_or_default();
            let all =
                Missed { limited: counts.events_limited, dropped: counts.events_dropped, held: self.held(cgroup) };
            let missed = all.less(self.told.insert(cgroup, all).unwrap_or_default());
            if missed.total() > 0 {
                due.push((cgroup, missed));
            }
        }
        due.sort_by_key(|(cgroup, _)| *cgroup);
        due
    }

    /// Forgets a container.
    pub fn forget(&mut self, cgroup: u64) {
        self.held.remove(&cgroup);
        self.told.remove(&cgroup);
        self.active.remove(&cgroup);
    }
}

#[cfg(test)]
mod tests {
    use agentd_ebpf::observe::layout;

    use super::*;

    fn event(kind: u32) -> Event {
        let mut event = Event {
            kind,
            pid: 42,
            time: 0,
            container: 7,
            parent: 1,
            code: 0,
            sender: 0,
            port: 0,
            length: 0,
            sender_container: HOST,
            address: [0; 16],
            command: [0; 16],
            sender_command: [0; 16],
            path: [0; layout::PATH],
            arguments: [0; ARGUMENTS],
        };
        event.command[..4].copy_from_slice(b"true");
        event
    }

    fn line(event: &Event, sender: Option<&Identity>, peer: Option<&str>) -> String {
        tell(Kind::of(event).unwrap(), event, sender, peer)
    }

    #[test]
    fn a_program_is_told_with_its_arguments() {
        let mut exec = event(EVENT_EXEC);
        assert_eq!(line(&exec, None, None), "true (process 42, child of 1)");
        exec.path[..9].copy_from_slice(b"/bin/echo");
        let text = b"echo\0a b\0\x1b[2J\0";
        exec.arguments[..text.len()].copy_from_slice(text);
        exec.length = text.len() as u16;
        assert_eq!(line(&exec, None, None), "/bin/echo a b \u{fffd}[2J (process 42, child of 1)");
        exec.length = 0;
        assert_eq!(line(&exec, None, None), "/bin/echo (process 42, child of 1)");
        exec.path = [b'p'; layout::PATH];
        exec.arguments = [b'x'; ARGUMENTS];
        exec.arguments[1] = 0;
        exec.length = u16::MAX;
        assert!(line(&exec, None, None).contains("xx… (process"), "it was cut off");
        assert!(Kind::of(&event(99)).is_none());
    }

    #[test]
    fn an_end_is_told_with_code_signal_and_sender() {
        let mut exit = event(EVENT_EXIT);
        exit.code = 3 << 8;
        assert_eq!(line(&exit, None, None), "true (process 42) exited with status 3");
        exit.code = 0x8b;
        assert_eq!(line(&exit, None, None), "true (process 42) was ended by SIGSEGV, with a core dump");
        exit.code = 9;
        exit.sender = 5;
        exit.sender_command[..4].copy_from_slice(b"kill");
        assert_eq!(
            line(&exit, None, None),
            "true (process 42) was ended by SIGKILL, sent by kill (process 5 of the host)"
        );
        exit.sender_container = 8;
        assert!(line(&exit, None, None).ends_with("sent by kill (process 5)"));
        let who = Identity {
            cgroup: 8,
            pod: "/app".into(),
            instance: "i".into(),
            container: "side".into(),
            slot: 0,
            attempt: 1,
            image: None,
            namespace: "default".into(),
            profiled: false,
            directories: agentd_metrics::container::Directories::default(),
        };
        assert!(line(&exit, Some(&who), None).ends_with("(process 5 of side in /app)"));
        exit.code = 64;
        assert!(line(&exit, None, None).contains("ended by signal 64"));
    }

    #[test]
    fn a_failed_connect_names_peer_and_cause() {
        let mut failed = event(EVENT_CONNECT_FAILED);
        failed.code = libc::ECONNREFUSED as u32;
        failed.port = 80;
        failed.address = std::net::Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped().octets();
        assert_eq!(
            line(&failed, None, Some("pod/db")),
            "connect to 192.0.2.7:80 (pod/db) failed: Connection refused (true, process 42)"
        );
        failed.address = Ipv6Addr::LOCALHOST.octets();
        assert!(line(&failed, None, None).starts_with("connect to [::1]:80 failed: "));
        assert_eq!(line(&event(EVENT_OOM), None, None), "out of memory: the kernel killed true (process 42)");
    }

    #[test]
    fn moments_of_the_kernel_are_told_by_the_clock_of_the_day() {
        let clock = Clock::now();
        let monotonic = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now = monotonic.tv_sec as u64 * 1_000_000_000 + monotonic.tv_nsec as u64;
        let ago = clock.at(now - 5_000_000_000);
        let difference = jiff::Timestamp::now().as_millisecond() - ago.as_millisecond();
        assert!((4_900..6_000).contains(&difference), "{difference} ms");
    }

    #[test]
    fn a_bucket_lets_a_burst_and_then_the_rate_through() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, start);
        let taken = |bucket: &mut Bucket, now| (0..100).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, start), 20);
        assert_eq!(taken(&mut bucket, start + Duration::from_millis(500)), 5);
        assert_eq!(taken(&mut bucket, start + Duration::from_mins(1)), 20);
        // a clock that is read late by another thread takes nothing away
        assert_eq!(taken(&mut bucket, start), 0);
    }

    #[test]
    fn what_was_left_out_is_told_once_and_exactly() {
        let mut limits = Limits::default();
        let counts = |limited, dropped| {
            move |_| Some(Processes { events_limited: limited, events_dropped: dropped, ..Processes::default() })
        };
        assert!(!limits.pending());
        limits.heard(7);
        limits.hold(7);
        limits.hold(7);
        let due = limits.due(counts(10, 1));
        assert_eq!(due, [(7, Missed { limited: 10, dropped: 1, held: 2 })]);
        assert!(due[0].1.message(Duration::from_secs(30)).starts_with("13 events were left out in 30 s: 10 above"));
        assert!(!limits.pending());
        limits.heard(7);
        assert_eq!(limits.due(counts(10, 1)), []);
        limits.hold(7);
        assert_eq!(limits.due(counts(12, 1)), [(7, Missed { limited: 2, dropped: 0, held: 1 })]);
        limits.forget(7);
        limits.heard(7);
        // a cgroup of the same number is another container
        assert_eq!(limits.due(|_| None), []);
    }
}
