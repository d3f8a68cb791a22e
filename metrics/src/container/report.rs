//! A container's reading, facts and figures as points, by both families of names.

use std::time::{SystemTime, UNIX_EPOCH};

use agentd_ebpf::observe::Figures;
use agentd_ebpf::observe::layout::{BLOCK_READ, BLOCK_WRITE, Block};

use super::histogram::seconds;
use super::kernel::report_figures;
use super::{Cpu, DeviceIo, HugePages, Memory, Pressure, Reading, Stall, Tasks};
use crate::catalogue::{compat, container as families};
use crate::model::{Batch, Family, Number, ScopeId};

/// What the caller knows of a container without reading; what is none is not reported.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Facts {
    /// When its present attempt was started; none if it does not run.
    pub started: Option<SystemTime>,
    /// Times that it was started again.
    pub restarts: Option<u64>,
    /// Quota of CPU time in each period, µs; none if it has no limit.
    pub cpu_quota: Option<u64>,
    /// Length of a period, µs.
    pub cpu_period: Option<u64>,
    /// CPU shares, as cgroup v1 counts them: 1024 for one CPU.
    pub cpu_shares: Option<u64>,
    /// Memory limit, bytes.
    pub memory_limit: Option<u64>,
    /// Limit of memory and swap together, bytes.
    pub memory_swap_limit: Option<u64>,
    /// Memory that is left to it when the host is short, bytes.
    pub memory_reservation: Option<u64>,
    /// Most tasks that it may have.
    pub tasks_limit: Option<u64>,
    /// Its writable layer, if somebody measured it.
    pub filesystem: Option<Filesystem>,
}

/// A container's writable layer, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filesystem {
    /// Used.
    pub usage: u64,
    /// Limit; none if there is none.
    pub capacity: Option<u64>,
}

/// Adds the points of a container. `figures`: what the programs counted for it, with the scope that it goes to: where the
/// programs began later than the container, that is another one, with a start of its own. A container that has ended is
/// reported with an empty reading and the figures that it left.
pub fn report(
    batch: &mut Batch,
    scope: ScopeId,
    reading: &Reading,
    facts: &Facts,
    figures: Option<(ScopeId, &Figures)>,
) {
    let mut points = Points { batch, scope };
    points.facts(facts);
    points.cpu(&reading.cpu, facts);
    points.memory(&reading.memory, facts);
    points.pressure(&reading.pressure);
    points.tasks(&reading.tasks, facts);
    points.huge_pages(&reading.huge_pages);
    match (&reading.io, figures.and_then(|(counted, figures)| Some((counted, figures.block.as_ref()?)))) {
        (Some(devices), _) => points.devices(devices),
        // A container that runs without the `io` controller. One that has ended keeps the series that it had.
        (None, Some((counted, block))) if reading.cpu.usage.is_some() => {
            Points { batch: &mut *batch, scope: counted }.block(block);
        }
        (None, _) => {}
    }
    if let Some((counted, figures)) = figures {
        report_figures(batch, counted, figures);
    }
}

/// Seconds since 1970; none for a clock before that.
fn since_1970(time: SystemTime) -> Option<f64> {
    time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs_f64())
}

/// Where points of one scope go.
pub(super) struct Points<'a> {
    pub(super) batch: &'a mut Batch,
    pub(super) scope: ScopeId,
}

impl Points<'_> {
    /// Adds a value if there is one.
    pub(super) fn put(&mut self, family: &'static Family, labels: &[&'static str], value: Option<impl Into<Number>>) {
        if let Some(value) = value {
            self.batch.put(family, self.scope, labels, value);
        }
    }

    fn facts(&mut self, facts: &Facts) {
        if let Some(started) = facts.started {
            let up = self.batch.time.duration_since(started).unwrap_or_default();
            self.put(&families::UPTIME, &[], Some(up.as_secs_f64()));
            self.put(&compat::START_TIME, &[], since_1970(started));
            self.put(&compat::LAST_SEEN, &[], since_1970(self.batch.time));
        }
        self.put(&families::RESTARTS, &[], facts.restarts);
        if let (Some(quota), Some(period)) = (facts.cpu_quota, facts.cpu_period.filter(|period| *period > 0)) {
            self.put(&families::CPU_LIMIT, &[], Some(quota as f64 / period as f64));
        }
        self.put(&families::MEMORY_LIMIT, &[], facts.memory_limit);
        self.put(&compat::SPEC_CPU_QUOTA, &[], facts.cpu_quota);
        self.put(&compat::SPEC_CPU_PERIOD, &[], facts.cpu_period);
        self.put(&compat::SPEC_CPU_SHARES, &[], facts.cpu_shares);
        self.put(&compat::SPEC_MEMORY_LIMIT, &[], facts.memory_limit);
        self.put(&compat::SPEC_MEMORY_SWAP_LIMIT, &[], facts.memory_swap_limit);
        self.put(&compat::SPEC_MEMORY_RESERVATION, &[], facts.memory_reservation);
        if let Some(filesystem) = facts.filesystem {
            let available = filesystem.capacity.map(|capacity| capacity.saturating_sub(filesystem.usage));
            self.put(&families::FILESYSTEM_USAGE, &[], Some(filesystem.usage));
            self.put(&families::FILESYSTEM_CAPACITY, &[], filesystem.capacity);
            self.put(&families::FILESYSTEM_AVAILABLE, &[], available);
            self.put(&compat::FS_USAGE, &[""], Some(filesystem.usage));
            self.put(&compat::FS_LIMIT, &[""], filesystem.capacity);
        }
    }

    fn cpu(&mut self, cpu: &Cpu, facts: &Facts) {
        let (user, system) = (cpu.user.map(seconds), cpu.system.map(seconds));
        self.put(&families::CPU_TIME, &["user"], user);
        self.put(&families::CPU_TIME, &["system"], system);
        self.put(&compat::CPU_USAGE, &["total"], cpu.usage.map(seconds));
        self.put(&compat::CPU_USER, &[], user);
        self.put(&compat::CPU_SYSTEM, &[], system);
        // Kernels count periods without a quota, too: as none.
        if facts.cpu_quota.is_some() || cpu.limited() {
            let (throttled, burst) = (cpu.throttled.map(seconds), cpu.burst.map(seconds));
            self.put(&families::CPU_PERIODS, &[], cpu.periods);
            self.put(&families::CPU_THROTTLED_PERIODS, &[], cpu.throttled_periods);
            self.put(&families::CPU_THROTTLED_TIME, &[], throttled);
            self.put(&compat::CFS_PERIODS, &[], cpu.periods);
            self.put(&compat::CFS_THROTTLED_PERIODS, &[], cpu.throttled_periods);
            self.put(&compat::CFS_THROTTLED, &[], throttled);
            self.put(&compat::CFS_BURST_PERIODS, &[], cpu.burst_periods);
            self.put(&compat::CFS_BURST, &[], burst);
        }
    }

    fn memory(&mut self, memory: &Memory, facts: &Facts) {
        let working_set = memory.working_set();
        let available = facts.memory_limit.zip(working_set).map(|(limit, used)| limit.saturating_sub(used));
        self.put(&families::MEMORY_USAGE, &[], memory.usage);
        self.put(&families::MEMORY_WORKING_SET, &[], working_set);
        self.put(&families::MEMORY_AVAILABLE, &[], available);
        self.put(&families::MEMORY_RSS, &[], memory.anonymous);
        self.put(&families::MEMORY_PEAK, &[], memory.peak);
        self.put(&families::MEMORY_SWAP, &[], memory.swap);
        self.put(&families::PAGING_FAULTS, &["minor"], memory.minor_faults());
        self.put(&families::PAGING_FAULTS, &["major"], memory.major_faults);
        self.put(&families::MEMORY_EVENTS, &["max"], memory.limit_hits);
        self.put(&families::MEMORY_EVENTS, &["high"], memory.high_hits);
        self.put(&families::MEMORY_EVENTS, &["oom"], memory.oom);
        self.put(&families::OOM_KILLS, &[], memory.oom_kills);
        for (kind, bytes) in [
            ("anonymous", memory.anonymous),
            ("cache", memory.cache),
            ("mapped", memory.mapped),
            ("shared", memory.shared),
            ("dirty", memory.dirty),
            ("writeback", memory.writeback),
            ("active_file", memory.active_file),
            ("inactive_file", memory.inactive_file),
            ("kernel", memory.kernel),
            ("slab", memory.slab),
            ("stacks", memory.stacks),
            ("sockets", memory.sockets),
        ] {
            self.put(&families::MEMORY_DETAIL, &[kind], bytes);
        }
        self.put(&compat::MEMORY_RSS, &[], memory.anonymous);
        self.put(&compat::MEMORY_CACHE, &[], memory.cache);
        self.put(&compat::MEMORY_SWAP, &[], memory.swap);
        self.put(&compat::MEMORY_MAPPED_FILE, &[], memory.mapped);
        self.put(&compat::MEMORY_KERNEL, &[], memory.kernel);
        self.put(&compat::MEMORY_MAX_USAGE, &[], memory.peak);
        self.put(&compat::MEMORY_ACTIVE_FILE, &[], memory.active_file);
        self.put(&compat::MEMORY_INACTIVE_FILE, &[], memory.inactive_file);
        self.put(&compat::MEMORY_FAILCNT, &[], memory.limit_hits);
        // cAdvisor tells what is below a container once more; nothing is below ours, or it is the container's own.
        for scope in ["container", "hierarchy"] {
            self.put(&compat::MEMORY_FAILURES, &["pgfault", scope], memory.faults);
            self.put(&compat::MEMORY_FAILURES, &["pgmajfault", scope], memory.major_faults);
        }
        self.put(&compat::OOM_EVENTS, &[], memory.oom_kills);
    }

    fn pressure(&mut self, pressure: &Pressure) {
        self.pressure_of(&families::PRESSURE, pressure);
        for (stall, waiting, stalled) in [
            (pressure.cpu, &compat::PRESSURE_CPU_WAITING, &compat::PRESSURE_CPU_STALLED),
            (pressure.memory, &compat::PRESSURE_MEMORY_WAITING, &compat::PRESSURE_MEMORY_STALLED),
            (pressure.io, &compat::PRESSURE_IO_WAITING, &compat::PRESSURE_IO_STALLED),
        ] {
            let (some, full) = times(stall);
            self.put(waiting, &[], some);
            self.put(stalled, &[], full);
        }
    }

    /// Pressure with the labels `resource` and `stall`.
    pub(super) fn pressure_of(&mut self, family: &'static Family, pressure: &Pressure) {
        for (resource, stall) in [("cpu", pressure.cpu), ("memory", pressure.memory), ("io", pressure.io)] {
            let (some, full) = times(stall);
            self.put(family, &[resource, "some"], some);
            self.put(family, &[resource, "full"], full);
        }
    }

    fn tasks(&mut self, tasks: &Tasks, facts: &Facts) {
        self.put(&families::PROCESSES, &[], tasks.processes);
        self.put(&families::THREADS, &[], tasks.threads);
        self.put(&families::DESCRIPTORS, &[], tasks.descriptors);
        self.put(&families::SOCKETS, &[], tasks.sockets);
        self.put(&families::PROCESSES_UNSEEN, &[], tasks.processes.map(|_| tasks.unseen));
        self.put(&compat::PROCESSES, &[], tasks.processes);
        self.put(&compat::THREADS, &[], tasks.threads);
        self.put(&compat::THREADS_MAX, &[], tasks.threads.map(|_| facts.tasks_limit.unwrap_or(0)));
        self.put(&compat::FILE_DESCRIPTORS, &[], tasks.descriptors);
        self.put(&compat::SOCKETS, &[], tasks.sockets);
    }

    fn huge_pages(&mut self, pages: &[HugePages]) {
        for HugePages { size, usage, limit_hits } in pages {
            self.batch.add(&families::HUGE_PAGES, self.scope, &[size], *usage);
            self.batch.add(&compat::HUGETLB_USAGE, self.scope, &[size], *usage);
            if let Some(hits) = limit_hits {
                self.batch.add(&compat::HUGETLB_FAILCNT, self.scope, &[size], *hits);
            }
        }
    }

    fn devices(&mut self, devices: &[DeviceIo]) {
        for io in devices {
            let (batch, device) = (&mut *self.batch, &*io.device);
            batch.add(&families::DISK_IO, self.scope, &["read", device], io.read_bytes);
            batch.add(&families::DISK_IO, self.scope, &["write", device], io.written_bytes);
            batch.add(&families::DISK_OPERATIONS, self.scope, &["read", device], io.reads);
            batch.add(&families::DISK_OPERATIONS, self.scope, &["write", device], io.writes);
            let path = format!("/dev/{device}");
            batch.add(&compat::FS_READS_BYTES, self.scope, &[&path], io.read_bytes);
            batch.add(&compat::FS_WRITES_BYTES, self.scope, &[&path], io.written_bytes);
            batch.add(&compat::FS_READS, self.scope, &[&path], io.reads);
            batch.add(&compat::FS_WRITES, self.scope, &[&path], io.writes);
        }
    }

    /// The programs' figures in place of the controller's: of all devices together.
    fn block(&mut self, block: &Block) {
        for (direction, kind, bytes, requests) in [
            ("read", BLOCK_READ, &compat::FS_READS_BYTES, &compat::FS_READS),
            ("write", BLOCK_WRITE, &compat::FS_WRITES_BYTES, &compat::FS_WRITES),
        ] {
            self.put(&families::DISK_IO, &[direction, ""], Some(block.bytes[kind]));
            self.put(&families::DISK_OPERATIONS, &[direction, ""], Some(block.requests[kind]));
            self.put(bytes, &[""], Some(block.bytes[kind]));
            self.put(requests, &[""], Some(block.requests[kind]));
        }
    }
}

/// Times of a stall, seconds.
fn times(stall: Option<Stall>) -> (Option<f64>, Option<f64>) {
    let time = |microseconds: u64| microseconds as f64 / 1e6;
    (stall.map(|stall| time(stall.some)), stall.and_then(|stall| stall.full).map(time))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use agentd_ebpf::observe::layout::{BLOCK_KINDS, BUCKETS, Log2};

    use super::*;
    use crate::model::{Point, Scope, Value};

    const STARTED: Duration = Duration::from_secs(1_700_000_000);

    fn facts() -> Facts {
        Facts {
            started: Some(UNIX_EPOCH + STARTED),
            restarts: Some(3),
            cpu_quota: Some(150_000),
            cpu_period: Some(100_000),
            cpu_shares: Some(1536),
            memory_limit: Some(1000),
            memory_swap_limit: Some(1001),
            memory_reservation: Some(500),
            tasks_limit: Some(64),
            filesystem: Some(Filesystem { usage: 7, capacity: Some(10) }),
        }
    }

    fn reading() -> Reading {
        let stall = |some| Some(Stall { some, full: Some(some / 2) });
        Reading {
            cpu: Cpu {
                usage: Some(3_000_000_000),
                user: Some(2_000_000_000),
                system: Some(1_000_000_000),
                periods: Some(10),
                throttled_periods: Some(4),
                throttled: Some(500_000_000),
                burst_periods: Some(0),
                burst: Some(0),
            },
            memory: Memory {
                usage: Some(900),
                inactive_file: Some(100),
                anonymous: Some(600),
                faults: Some(50),
                major_faults: Some(8),
                limit_hits: Some(2),
                oom_kills: Some(1),
                ..Memory::default()
            },
            pressure: Pressure { cpu: stall(2_000_000), memory: None, io: stall(4_000_000) },
            tasks: Tasks { processes: Some(2), threads: Some(5), descriptors: Some(9), sockets: Some(1), unseen: 0 },
            io: Some(vec![DeviceIo {
                device: "vda".into(),
                read_bytes: 4096,
                written_bytes: 8192,
                reads: 1,
                writes: 2,
            }]),
            huge_pages: vec![HugePages { size: "2MB".into(), usage: 2_097_152, limit_hits: Some(0) }],
        }
    }

    fn figures() -> Figures {
        let none = Log2 { buckets: [0; BUCKETS], sum: 0 };
        let block = Block {
            latency: [none; BLOCK_KINDS],
            bytes: [512, 1024, 0, 0],
            requests: [1, 2, 0, 0],
            errors: 0,
            begun: 3,
            merged: 0,
            untracked: 0,
        };
        Figures { block: Some(block), ..Figures::default() }
    }

    fn reported(reading: &Reading, facts: &Facts, figures: Option<&Figures>) -> Batch {
        let mut batch = Batch::new(UNIX_EPOCH + STARTED + Duration::from_millis(2500));
        let scope = batch.scope(Scope::default());
        report(&mut batch, scope, reading, facts, figures.map(|figures| (scope, figures)));
        batch
    }

    /// The points of a family as text.
    fn told(batch: &Batch, family: &'static Family) -> String {
        let text = |point: &Point| {
            let number = match &point.value {
                Value::Number(Number::Whole(number)) => number.to_string(),
                Value::Number(Number::Real(number)) => number.to_string(),
                Value::Histogram(_) => "histogram".to_owned(),
            };
            [point.labels.join(","), number].join("=")
        };
        batch.points(family).iter().map(text).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_figure_is_told_by_both_names() {
        let batch = reported(&reading(), &facts(), None);
        for (family, expected) in [
            (&families::CPU_TIME, "user=2 system=1"),
            (&compat::CPU_USAGE, "total=3"),
            (&compat::CPU_USER, "=2"),
            (&compat::CPU_SYSTEM, "=1"),
            (&families::CPU_LIMIT, "=1.5"),
            (&families::CPU_THROTTLED_TIME, "=0.5"),
            (&compat::CFS_PERIODS, "=10"),
            (&compat::CFS_THROTTLED_PERIODS, "=4"),
            (&compat::CFS_THROTTLED, "=0.5"),
            (&families::MEMORY_USAGE, "=900"),
            (&families::MEMORY_WORKING_SET, "=800"),
            (&families::MEMORY_AVAILABLE, "=200"),
            (&families::MEMORY_RSS, "=600"),
            (&compat::MEMORY_RSS, "=600"),
            (&families::PAGING_FAULTS, "minor=42 major=8"),
            (
                &compat::MEMORY_FAILURES,
                "pgfault,container=50 pgmajfault,container=8 pgfault,hierarchy=50 pgmajfault,hierarchy=8",
            ),
            (&families::MEMORY_EVENTS, "max=2"),
            (&compat::MEMORY_FAILCNT, "=2"),
            (&families::OOM_KILLS, "=1"),
            (&compat::OOM_EVENTS, "=1"),
            (&families::MEMORY_DETAIL, "anonymous=600 inactive_file=100"),
            (&families::PRESSURE, "cpu,some=2 cpu,full=1 io,some=4 io,full=2"),
            (&compat::PRESSURE_CPU_WAITING, "=2"),
            (&compat::PRESSURE_IO_STALLED, "=2"),
            (&compat::PRESSURE_MEMORY_WAITING, ""),
            (&compat::PROCESSES, "=2"),
            (&compat::THREADS, "=5"),
            (&compat::THREADS_MAX, "=64"),
            (&compat::FILE_DESCRIPTORS, "=9"),
            (&compat::SOCKETS, "=1"),
            (&families::DISK_IO, "read,vda=4096 write,vda=8192"),
            (&families::DISK_OPERATIONS, "read,vda=1 write,vda=2"),
            (&compat::FS_READS_BYTES, "/dev/vda=4096"),
            (&compat::FS_WRITES, "/dev/vda=2"),
            (&families::HUGE_PAGES, "2MB=2097152"),
            (&compat::HUGETLB_FAILCNT, "2MB=0"),
            (&families::UPTIME, "=2.5"),
            (&compat::START_TIME, "=1700000000"),
            (&compat::LAST_SEEN, "=1700000002.5"),
            (&families::RESTARTS, "=3"),
            (&compat::SPEC_CPU_QUOTA, "=150000"),
            (&compat::SPEC_CPU_SHARES, "=1536"),
            (&compat::SPEC_MEMORY_SWAP_LIMIT, "=1001"),
            (&families::FILESYSTEM_AVAILABLE, "=3"),
            (&compat::FS_LIMIT, "=10"),
        ] {
            assert_eq!(told(&batch, family), expected, "{}", family.name);
        }
    }

    #[test]
    fn what_was_not_read_is_not_told() {
        let batch = reported(&Reading::default(), &Facts::default(), None);
        assert_eq!(batch.families().map(|(family, _)| family.name).collect::<Vec<_>>(), [""; 0]);
        // no quota, none was ever at work: nothing about throttling
        let idle = Cpu { periods: Some(0), throttled: Some(0), ..reading().cpu };
        let batch = reported(&Reading { cpu: idle, ..Reading::default() }, &Facts::default(), None);
        assert_eq!(
            (told(&batch, &compat::CFS_PERIODS), told(&batch, &compat::CPU_USAGE)),
            (String::new(), "total=3".into())
        );
        // the quota was taken away: its counters stay
        let batch = reported(&reading(), &Facts::default(), None);
        assert_eq!(told(&batch, &compat::CFS_PERIODS), "=10");
    }

    #[test]
    fn the_programs_figures_stand_in_for_a_controller_that_is_off() {
        let without = Reading { io: None, ..reading() };
        let batch = reported(&without, &facts(), Some(&figures()));
        assert_eq!(told(&batch, &families::DISK_IO), "read,=512 write,=1024");
        assert_eq!(
            (told(&batch, &compat::FS_READS), told(&batch, &compat::FS_WRITES_BYTES)),
            ("=1".into(), "=1024".into())
        );
        let batch = reported(&reading(), &facts(), Some(&figures()));
        assert_eq!(told(&batch, &families::DISK_IO), "read,vda=4096 write,vda=8192", "the controller knows the device");
        assert_eq!(told(&batch, &families::BLOCK_IO), "read=512 write=1024");
        let batch = reported(&Reading::default(), &Facts::default(), Some(&figures()));
        assert_eq!(told(&batch, &families::DISK_IO), "", "an ended container must not change its series");
        assert_eq!(told(&batch, &families::BLOCK_IO), "read=512 write=1024");
    }
}
