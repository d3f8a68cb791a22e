//! Samples of stacks: an object of its own, whose maps exist only while somebody profiles.
//!
//! One event of the software clock (`PERF_COUNT_SW_CPU_CLOCK`, a high-resolution timer) for each CPU that is online, for
//! all processes; the program looks whether what runs is in a container that is to be sampled. All of it hangs on
//! descriptors of this process and goes with a [`Profiler`], or with the process.

use std::collections::HashMap as Collected;
use std::os::fd::{AsRawFd, BorrowedFd};

use agentd_ebpf_common::{COMM, ProfileSettings, ProfileTallies, STACK_DEPTH, Sampled, Stack, StackId, StackKey};
use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use aya::programs::PerfEvent;
use aya::programs::perf_event::{PerfEventConfig, PerfEventLinkId, PerfEventScope, SamplePolicy, SoftwareEvent};
use aya::util::online_cpus;
use aya::{Ebpf, EbpfLoader};

/// Fewest samples of a container each second and CPU.
pub const SLOWEST: u32 = 19;
/// Most samples of a container each second and CPU.
pub const FASTEST: u32 = 99;

/// The compiled programs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("AGENTD_EBPF_PROFILE"));

// Layouts of integers without padding (`agentd_ebpf_common` says so), for which any bytes are a value.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Plain<T: Copy>(T);

// SAFETY: `repr(transparent)` of the shared layouts, which are `repr(C)`, `'static`, and hold integers and arrays only.
unsafe impl<T: Copy + 'static> aya::Pod for Plain<T> {}

/// A stack that was counted, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// The container: id of its cgroup.
    pub container: u64,
    /// Process, in the first pid namespace.
    pub process: u32,
    /// Name of its command, without NUL.
    pub command: [u8; COMM],
    /// Addresses in user space, innermost first.
    pub user: Addresses,
    /// Addresses in the kernel.
    pub kernel: Addresses,
    /// Samples.
    pub count: u64,
}

/// A stack's addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addresses {
    /// There was no such stack: the process was not in the kernel, or its stack could not be read.
    None,
    /// There was one, and it found its map full.
    Lost,
    /// These.
    Some(std::rc::Rc<[u64]>),
}

/// What was counted up to a moment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// The stacks.
    pub counted: Vec<Counted>,
    /// Entries that could not be read or cleared, with why; they are not told again.
    pub faults: Vec<String>,
}

/// The attached program. Dropping it takes it, its clocks and its maps out of the kernel.
pub struct Profiler {
    ebpf: Ebpf,
    ring: RingBuf<MapData>,
    links: Vec<PerfEventLinkId>,
    settings: ProfileSettings,
    /// CPUs that the clock runs on.
    cpus: Vec<u32>,
}

impl std::fmt::Debug for Profiler {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Profiler").field("settings", &self.settings).field("cpus", &self.cpus).finish_non_exhaustive()
    }
}

impl Profiler {
    /// Loads the program; no clock runs yet. `level` is the depth of a container's directory in the cgroup2 tree, whose
    /// root has 0.
    pub fn load(level: u32) -> Result<Self, String> {
        let loaded = EbpfLoader::new().override_global("PROFILE_LEVEL", &level, true).load(OBJECT);
        let mut ebpf = loaded.map_err(|error| format!("the profile's program is not accepted: {}", chain(&error)))?;
        program(&mut ebpf)?.load().map_err(|error| {
            format!(
                "the kernel does not take the profile's program: {}; agentd needs CAP_PERFMON and CAP_BPF, or root",
                chain(&error)
            )
        })?;
        let ring = ebpf.take_map("NOTICES").ok_or("the profile's object has no map NOTICES")?;
        let ring = RingBuf::try_from(ring).map_err(|error| told("NOTICES", &error))?;
        Ok(Self { ebpf, ring, links: Vec::new(), settings: ProfileSettings { epoch: 1, hz: 0 }, cpus: Vec::new() })
    }

    /// Runs the clocks at this rate on the CPUs that are online now; 0 stops them. Also to be called now and then at the same
    /// rate: what has come online meanwhile gets a clock.
    pub fn run(&mut self, hz: u32) -> Result<(), String> {
        let mut cpus = match hz {
            0 => Vec::new(),
            _ => online_cpus().map_err(|(what, error)| format!("{what}: {error}"))?,
        };
        cpus.sort_unstable();
        if hz == self.settings.hz && cpus == self.cpus {
            return Ok(());
        }
        self.stop();
        self.settings.hz = hz;
        self.write_settings()?;
        for cpu in &cpus {
            let clock = PerfEventConfig::Software(SoftwareEvent::CpuClock);
            let scope = PerfEventScope::AllProcessesOneCpu { cpu: *cpu };
            let attached = program(&mut self.ebpf)?.attach(clock, scope, SamplePolicy::Frequency(u64::from(hz)), false);
            match attached {
                Ok(link) => self.links.push(link),
                // it went offline just now
                Err(error) if offline(&error) => {}
                Err(error) => {
                    self.stop();
                    return Err(format!("the profile's clock cannot be had on CPU {cpu}: {}", chain(&error)));
                }
            }
        }
        self.cpus = cpus;
        Ok(())
    }

    /// Samples each second and CPU; 0 while no clock runs.
    pub fn hz(&self) -> u32 {
        self.settings.hz
    }

    /// How many clocks run.
    pub fn clocks(&self) -> usize {
        self.links.len()
    }

    fn stop(&mut self) {
        for link in self.links.drain(..) {
            // a link that is gone needs no detaching
            let _ = program(&mut self.ebpf).map(|program| program.detach(link));
        }
        self.cpus.clear();
        self.settings.hz = 0;
    }

    /// Samples a container, at most so often each second and CPU.
    pub fn add(&mut self, container: u64, hz: u32) -> Result<(), String> {
        let mut map: HashMap<_, u64, u32> = self.map_mut("PROFILED")?;
        map.insert(container, hz, 0)
            .map_err(|error| format!("{}; at most 512 containers are profiled at a time", told("PROFILED", &error)))
    }

    /// Samples it no more.
    pub fn remove(&mut self, container: u64) -> Result<(), String> {
        let mut map: HashMap<_, u64, u32> = self.map_mut("PROFILED")?;
        match map.remove(&container) {
            Ok(()) | Err(aya::maps::MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(told("PROFILED", &error)),
        }
    }

    /// What was counted since the last time, and clears it. No sample is left out: those that come meanwhile are counted
    /// under the next epoch. One that was just being counted is told the next time.
    pub fn drain(&mut self) -> Result<Drained, String> {
        self.settings.epoch = self.settings.epoch.wrapping_add(1);
        self.write_settings()?;
        // programs that read the old epoch end within microseconds
        std::thread::sleep(std::time::Duration::from_millis(1));
        let epoch = self.settings.epoch;
        let mut drained = Drained::default();
        let mut stacks: HashMap<_, Plain<StackId>, Plain<Stack>> = self.map_mut("STACKS")?;
        let mut kept: Collected<StackId, std::rc::Rc<[u64]>> = Collected::new();
        let old: Vec<StackId> = stacks.keys().flatten().map(|key| key.0).filter(|key| key.epoch != epoch).collect();
        for id in old {
            match stacks.get(&Plain(id), 0) {
                Ok(Plain(stack)) => {
                    let length = (stack.length as usize).min(STACK_DEPTH);
                    kept.insert(id, stack.addresses[..length].into());
                }
                Err(error) => drained.faults.push(told("STACKS", &error)),
            }
            if let Err(error) = stacks.remove(&Plain(id)) {
                drained.faults.push(told("STACKS", &error));
            }
        }
        let mut counts: HashMap<_, Plain<StackKey>, u64> = self.map_mut("COUNTS")?;
        let old: Vec<StackKey> = counts.keys().flatten().map(|key| key.0).filter(|key| key.epoch != epoch).collect();
        for key in old {
            let find = |hash| match hash {
                0 => Addresses::None,
                hash => kept
                    .get(&StackId { hash, epoch: key.epoch, padding: 0 })
                    .map_or(Addresses::Lost, |addresses| Addresses::Some(std::rc::Rc::clone(addresses))),
            };
            let (user, kernel) = (find(key.user), find(key.kernel));
            match counts.get(&Plain(key), 0) {
                // one that came into being without a sample: the map of another CPU's was first
                Ok(0) => {}
                Ok(count) => {
                    let StackKey { container, process, command, .. } = key;
                    drained.counted.push(Counted { container, process, command, user, kernel, count });
                }
                Err(error) => drained.faults.push(told("COUNTS", &error)),
            }
            if let Err(error) = counts.remove(&Plain(key)) {
                drained.faults.push(told("COUNTS", &error));
            }
        }
        Ok(drained)
    }

    /// Takes the words about processes that were sampled for the first time.
    pub fn notices(&mut self) -> Vec<Sampled> {
        let mut notices = Vec::new();
        while let Some(item) = self.ring.next() {
            if item.len() == size_of::<Sampled>() {
                // SAFETY: as many bytes as the layout has, of integers, read without regard to alignment.
                notices.push(unsafe { std::ptr::read_unaligned(item.as_ptr().cast::<Sampled>()) });
            }
        }
        notices
    }

    /// Readable when there are such words.
    pub fn ring(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor lives as long as the ring, which `self` holds.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    /// What the program has met with since it was loaded, all CPUs together.
    pub fn tallies(&self) -> Result<ProfileTallies, String> {
        let map = self.ebpf.map("TALLIES").ok_or("the profile's object has no map TALLIES")?;
        let map = PerCpuArray::<_, Plain<ProfileTallies>>::try_from(map).map_err(|error| told("TALLIES", &error))?;
        let values = map.get(&0, 0).map_err(|error| told("TALLIES", &error))?;
        Ok(values.iter().fold(ProfileTallies::default(), |sum, Plain(one)| ProfileTallies {
            ticks: sum.ticks + one.ticks,
            samples: sum.samples + one.samples,
            thinned: sum.thinned + one.thinned,
            lost_samples: sum.lost_samples + one.lost_samples,
            lost_stacks: sum.lost_stacks + one.lost_stacks,
            lost_notices: sum.lost_notices + one.lost_notices,
        }))
    }

    /// The kernel's number of the program.
    pub fn program_id(&mut self) -> Result<u32, String> {
        let info = program(&mut self.ebpf)?.info();
        Ok(info.map_err(|error| chain(&error))?.id())
    }

    /// Memory of the kernel that the maps take, bytes, as it tells (`memlock` of each map's fdinfo).
    pub fn map_bytes(&self) -> u64 {
        let own = self.ebpf.maps().filter_map(|(_, map)| map_fd(map)).chain([self.ring.as_raw_fd()]);
        own.filter_map(|fd| {
            let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("memlock:"))?;
            line.trim().parse::<u64>().ok()
        })
        .sum()
    }

    fn write_settings(&mut self) -> Result<(), String> {
        let settings = self.settings;
        let map = self.ebpf.map_mut("SETTINGS").ok_or("the profile's object has no map SETTINGS")?;
        let mut map = Array::<_, Plain<ProfileSettings>>::try_from(map).map_err(|error| told("SETTINGS", &error))?;
        map.set(0, Plain(settings), 0).map_err(|error| told("SETTINGS", &error))
    }

    fn map_mut<K: aya::Pod, V: aya::Pod>(&mut self, name: &str) -> Result<HashMap<&mut MapData, K, V>, String> {
        let map = self.ebpf.map_mut(name).ok_or_else(|| format!("the profile's object has no map {name}"))?;
        HashMap::try_from(map).map_err(|error| told(name, &error))
    }
}

/// Whether stacks can be sampled: loads the program, runs the clocks for a moment, and takes all of it out again.
///
/// # Errors
/// Why not.
pub fn attempt() -> Result<(), String> {
    Profiler::load(0)?.run(SLOWEST)
}

/// Numbers of the profile's programs that are in the kernel, those of other processes included.
pub fn loaded() -> Result<std::collections::BTreeSet<u32>, String> {
    let mut found = std::collections::BTreeSet::new();
    for program in aya::programs::loaded_programs() {
        match program {
            Ok(program) if program.name() == b"profile" => {
                found.insert(program.id());
            }
            // one may go while they are listed
            Ok(_) | Err(aya::programs::ProgramError::SyscallError(_)) => {}
            Err(error) => return Err(chain(&error)),
        }
    }
    Ok(found)
}

fn program(ebpf: &mut Ebpf) -> Result<&mut PerfEvent, String> {
    let program = ebpf.program_mut("profile").ok_or("the profile's object has no program")?;
    program.try_into().map_err(|error: aya::programs::ProgramError| chain(&error))
}

fn map_fd(map: &aya::maps::Map) -> Option<i32> {
    use aya::maps::Map;
    use std::os::fd::{AsFd, AsRawFd};
    match map {
        Map::Array(map) | Map::HashMap(map) | Map::LruHashMap(map) | Map::PerCpuArray(map) | Map::RingBuf(map) => {
            Some(map.fd().as_fd().as_raw_fd())
        }
        _ => None,
    }
}

/// Whether a clock was refused because its CPU is not online.
fn offline(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return error.raw_os_error() == Some(libc::ENODEV);
        }
        next = error.source();
    }
    false
}

fn told(map: &str, error: &(dyn std::error::Error + 'static)) -> String {
    format!("the profile's map {map}: {}", chain(error))
}

/// An error with all that caused it, on one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let text = error.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        next = error.source();
    }
    line.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    /// The id of the root of the cgroup2 tree, in which everything is; none where that is not to be had.
    fn root() -> Option<u64> {
        use std::os::unix::fs::MetadataExt;
        // SAFETY: no arguments.
        if unsafe { libc::geteuid() } != 0 {
            return None;
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
        let mount = mounts.lines().find_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            (words.get(2) == Some(&"cgroup2")).then(|| words[1].to_owned())
        })?;
        std::fs::metadata(mount).ok().map(|meta| meta.ino())
    }

    fn burn(time: Duration) -> u64 {
        let began = Instant::now();
        let mut sum = 0_u64;
        while began.elapsed() < time {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        sum
    }

    #[test]
    fn this_process_is_sampled_and_nothing_is_lost() {
        let Some(root) = root() else {
            eprintln!("skipped because this needs root and a cgroup2 tree");
            return;
        };
        let mut profiler = match Profiler::load(0) {
            Ok(profiler) => profiler,
            Err(error) => {
                eprintln!("skipped because {error}");
                return;
            }
        };
        profiler.add(root, FASTEST).unwrap();
        profiler.run(FASTEST).unwrap();
        assert!(profiler.clocks() > 0);
        let bytes = profiler.map_bytes();
        assert!((1 << 20..=4 << 20).contains(&bytes), "{bytes}");
        let (mut own, mut all, mut words) = (0, 0, Vec::new());
        for _ in 0..4 {
            burn(Duration::from_millis(500));
            words.extend(profiler.notices());
            let drained = profiler.drain().unwrap();
            assert_eq!(drained.faults, Vec::<String>::new());
            for one in drained.counted {
                all += one.count;
                if one.process == std::process::id() {
                    own += one.count;
                    assert!(matches!(one.user, Addresses::Some(_)) || matches!(one.kernel, Addresses::Some(_)));
                }
            }
        }
        profiler.run(0).unwrap();
        all += profiler.drain().unwrap().counted.iter().map(|one| one.count).sum::<u64>();
        let tallies = profiler.tallies().unwrap();
        assert_eq!(tallies.samples, all, "{tallies:?}");
        assert!(words.iter().any(|word| word.process == std::process::id()), "{words:?}");
        // about 198; less where others want the CPU
        assert!((20..=260).contains(&own), "{own} of {tallies:?}");
        assert_eq!((profiler.clocks(), profiler.drain().unwrap().counted.len()), (0, 0));
    }

    /// Nanoseconds of a run, from the kernel's own statistics, while this process and what else runs is sampled, or not.
    fn cost(profiler: &mut Profiler) -> u64 {
        use std::os::fd::AsFd;
        let info = program(&mut profiler.ebpf).unwrap().info().unwrap();
        let fd = info.fd().unwrap();
        let before = crate::call::program_runs(fd.as_fd()).unwrap();
        profiler.run(FASTEST).unwrap();
        burn(Duration::from_secs(1));
        profiler.run(0).unwrap();
        let after = crate::call::program_runs(fd.as_fd()).unwrap();
        (after.run_time - before.run_time) / (after.runs - before.runs).max(1)
    }

    #[test]
    fn a_sample_costs_microseconds() {
        let (Some(root), Ok(mut profiler)) = (root(), Profiler::load(0)) else {
            eprintln!("skipped because this needs root, a cgroup2 tree, and a kernel that takes the program");
            return;
        };
        let Ok(_statistics) = crate::call::enable_run_time_statistics() else {
            eprintln!("skipped because the kernel keeps no statistics of programs");
            return;
        };
        let nobody = cost(&mut profiler);
        profiler.add(root, FASTEST).unwrap();
        let sample = cost(&mut profiler);
        eprintln!("{nobody} ns for a tick that samples nothing, {sample} ns for a sample");
        assert!((1..20_000).contains(&nobody) && (1..100_000).contains(&sample));
    }

    #[test]
    fn who_wants_less_gets_an_even_part() {
        let Some(root) = root() else {
            eprintln!("skipped because this needs root and a cgroup2 tree");
            return;
        };
        let Ok(mut profiler) = Profiler::load(0) else {
            eprintln!("skipped because the kernel does not take the program");
            return;
        };
        profiler.add(root, 33).unwrap();
        profiler.run(99).unwrap();
        burn(Duration::from_secs(1));
        profiler.run(0).unwrap();
        let tallies = profiler.tallies().unwrap();
        let taken = tallies.samples + tallies.lost_samples;
        assert_eq!(taken + tallies.thinned, tallies.ticks, "{tallies:?}");
        let third = tallies.ticks / 3;
        let off = u64::from(u32::try_from(online_cpus().unwrap().len()).unwrap());
        assert!(taken.abs_diff(third) <= off, "{tallies:?}");
    }
}
