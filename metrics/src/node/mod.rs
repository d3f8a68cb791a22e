//! The host's metrics, as node_exporter names them and as OpenTelemetry does (`system.*`).
//!
//! [`HostSource`] reads files of the kernel when it is asked to and gives their points: there is one module for each subject,
//! in which reading of a text is a pure function. What dashboards need is what is read; docs/metrics-host.md lists it. A source
//! that is missing or odd gives no points, one reason ([`Trouble`]) and `node_scrape_collector_success` 0; nothing else suffers.
//!
//! Between two gatherings it keeps the last times of CPUs (so that no counter steps back), which mounts do not answer, and the
//! reasons. It has one thread, `mount-room`, and one more for each mount that does not answer: see [`room`]. Reading blocks
//! as the kernel's files do, some microseconds each, and for [`HostSettings::patience`] for a mount that stops answering.

mod cpu;
mod disk;
mod filesystem;
mod kernel;
mod memory;
mod mounts;
mod network;
mod protocols;
mod read;
mod room;
mod sensors;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::catalogue::node;
use crate::model::{Batch, ScopeId};
use read::{Points, Reason, optional, text};
use room::Rooms;

/// Names of links: a prefix and so many lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkNames {
    /// What all begin with.
    pub prefix: String,
    /// How many digits follow.
    pub digits: usize,
}

impl LinkNames {
    /// Whether `name` is one of them.
    pub fn have(&self, name: &str) -> bool {
        let digits = name.strip_prefix(self.prefix.as_str());
        digits.is_some_and(|digits| {
            digits.len() == self.digits && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        })
    }
}

/// Where the host is read, and what is left out.
#[derive(Debug, Clone)]
pub struct HostSettings {
    /// The kernel's process file system.
    pub proc: PathBuf,
    /// The kernel's device file system.
    pub sys: PathBuf,
    /// The host's root: os-release and the places of mounts are below.
    pub root: PathBuf,
    /// Links without points: the host's ends of the pods' links.
    pub pod_links: Option<LinkNames>,
    /// Folders below which mounts have no points, such as those of pods.
    pub mounts_left_out: Vec<PathBuf>,
    /// Most interfaces, disks and file systems with points, each.
    pub most: usize,
    /// How long a file system may take to tell its room.
    pub patience: Duration,
}

impl Default for HostSettings {
    /// This host, without the links that agentd makes for pods (`ag` and 12 digits), at most 128 of a kind, 250 ms for a
    /// file system.
    fn default() -> Self {
        Self {
            proc: PathBuf::from("/proc"),
            sys: PathBuf::from("/sys"),
            root: PathBuf::from("/"),
            pod_links: Some(LinkNames { prefix: "ag".to_owned(), digits: 12 }),
            mounts_left_out: Vec::new(),
            most: 128,
            patience: Duration::from_millis(250),
        }
    }
}

/// Why a collector gives no points, or not all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{collector}: {reason}")]
pub struct Trouble {
    /// The collector, by node_exporter's name.
    pub collector: &'static str,
    /// One line: what was found, what was expected, where it is known the cure.
    pub reason: String,
}

/// Gathers the host's metrics.
pub struct HostSource {
    settings: HostSettings,
    rooms: Rooms,
    cpus: Mutex<BTreeMap<u32, [u64; 10]>>,
    troubles: Mutex<BTreeMap<&'static str, String>>,
}

impl HostSource {
    /// A source; nothing is read yet.
    pub fn new(settings: HostSettings) -> Self {
        Self { rooms: Rooms::new(settings.patience), settings, cpus: Mutex::default(), troubles: Mutex::default() }
    }

    /// Adds the host's points to `batch`, about `scope`. Gives the troubles that are new, or have another reason than at
    /// the last gathering: each is worth one line in the log.
    pub fn gather(&self, batch: &mut Batch, scope: ScopeId) -> Vec<Trouble> {
        let time = batch.time;
        let mut collection = Collection { points: Points { batch, scope }, results: Vec::with_capacity(24) };
        self.processor(&mut collection);
        self.memory(&mut collection);
        self.network(&mut collection);
        let HostSettings { proc, sys, root, most, .. } = &self.settings;
        collection.run("diskstats", |points| disk::disks(&text(&proc.join("diskstats"))?, *most, points));
        collection.run("filesystem", |points| {
            let wants = filesystem::Wanted { proc, root, folders: &self.settings.mounts_left_out, most: *most };
            filesystem::filesystems(&wants, &self.rooms, points)
        });
        collection.run("loadavg", |points| kernel::load(proc, points));
        collection.run("pressure", |points| kernel::pressure(proc, points));
        collection.run("entropy", |points| kernel::entropy(proc, points));
        collection.run("filefd", |points| kernel::files(proc, points));
        collection.run("conntrack", |points| kernel::conntrack(proc, points));
        collection.run("uptime", |points| kernel::host(proc, points));
        collection.run("uname", |points| kernel::uname(proc, points));
        collection.run("os", |points| kernel::os(root, points));
        collection.run("hwmon", |points| sensors::chips(&sys.join("class/hwmon"), points));
        collection.run("thermal_zone", |points| {
            sensors::zones(&sys.join("class/thermal"), points);
            Ok(())
        });
        collection.run("time", |points| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH);
            let since = since.map_err(|_| "found a clock before 1970, expected one that is set".to_owned())?;
            points.set(&node::TIME_SECONDS, since.as_secs_f64());
            Ok(())
        });
        self.remember(collection.results)
    }

    /// What is wrong since the last gathering, by collector.
    pub fn troubles(&self) -> Vec<Trouble> {
        let known = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().map(|(collector, reason)| Trouble { collector, reason: reason.clone() }).collect()
    }

    fn processor(&self, collection: &mut Collection<'_>) {
        let started = Instant::now();
        let found = text(&self.settings.proc.join("stat"));
        let mut stat = found.as_ref().map(|text| cpu::parse(text)).map_err(Reason::clone);
        let reading = started.elapsed();
        collection.run_since("cpu", reading, |points| {
            let stat = stat.as_mut().map_err(|reason| reason.clone())?;
            let ticks = procfs::ticks_per_second();
            let mut last = self.cpus.lock().unwrap_or_else(PoisonError::into_inner);
            cpu::steady(&mut last, &mut stat.cpus, ticks);
            cpu::cpus(stat, ticks, points)
        });
        collection.run("stat", |points| {
            cpu::rest(stat.as_ref().map_err(Reason::clone)?, found.as_deref().unwrap_or_default(), points)
        });
    }

    fn memory(&self, collection: &mut Collection<'_>) {
        let proc = &self.settings.proc;
        collection.run("meminfo", |points| {
            memory::meminfo(&text(&proc.join("meminfo"))?, points)?;
            // a kernel without swap has no such file
            memory::swaps(&optional(&proc.join("swaps"))?.unwrap_or_default(), points);
            Ok(())
        });
        collection.run("vmstat", |points| memory::vmstat(&text(&proc.join("vmstat"))?, points));
    }

    fn network(&self, collection: &mut Collection<'_>) {
        let HostSettings { proc, sys, pod_links, most, .. } = &self.settings;
        let net = proc.join("net");
        let class = sys.join("class/net");
        let started = Instant::now();
        let table = text(&net.join("dev"));
        let chosen = match &table {
            Ok(table) => network::choose(table, pod_links.as_ref(), *most),
            Err(reason) => Err(reason.clone()),
        };
        collection.run_since("netdev", started.elapsed(), |points| {
            network::traffic(chosen.as_ref().map_err(Reason::clone)?, &class, points);
            Ok(())
        });
        collection
            .run("netclass", |points| network::properties(chosen.as_ref().map_err(Reason::clone)?, &class, points));
        collection.run("netstat", |points| {
            let file = |name: &str| optional(&net.join(name));
            let (netstat, snmp, snmp6) = (file("netstat")?, file("snmp")?, file("snmp6")?);
            protocols::netstat(netstat.as_deref(), snmp.as_deref(), snmp6.as_deref(), points)
        });
        collection.run("sockstat", |points| {
            let (v4, v6) = (optional(&net.join("sockstat"))?, optional(&net.join("sockstat6"))?);
            protocols::sockstat(v4.as_deref(), v6.as_deref(), procfs::page_size(), points)
        });
    }

    /// Keeps what went wrong, and gives what is new of it.
    fn remember(&self, results: Vec<(&'static str, Result<(), Reason>)>) -> Vec<Trouble> {
        let mut known = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = Vec::new();
        for (collector, result) in results {
            match result {
                Ok(()) => {
                    known.remove(collector);
                }
                Err(reason) => {
                    if known.insert(collector, reason.clone()).as_ref() != Some(&reason) {
                        new.push(Trouble { collector, reason });
                    }
                }
            }
        }
        new
    }
}

/// A gathering under way.
struct Collection<'a> {
    points: Points<'a>,
    results: Vec<(&'static str, Result<(), Reason>)>,
}

impl Collection<'_> {
    fn run(&mut self, collector: &'static str, collect: impl FnOnce(&mut Points<'_>) -> Result<(), Reason>) {
        self.run_since(collector, Duration::ZERO, collect);
    }

    /// The same where part of the work, which took `already`, was done before.
    fn run_since(
        &mut self,
        collector: &'static str,
        already: Duration,
        collect: impl FnOnce(&mut Points<'_>) -> Result<(), Reason>,
    ) {
        let started = Instant::now();
        let result = collect(&mut self.points);
        let took = already + started.elapsed();
        self.points.at(&node::SCRAPE_COLLECTOR_DURATION, [collector.into()], took.as_secs_f64());
        self.points.at(&node::SCRAPE_COLLECTOR_SUCCESS, [collector.into()], u64::from(result.is_ok()));
        self.results.push((collector, result));
    }
}

#[cfg(test)]
mod tests;
