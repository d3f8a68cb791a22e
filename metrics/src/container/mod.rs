//! What a container and a pod use: read from cgroups and procfs, put together with what the kernel's programs counted, and
//! reported as points.
//!
//! [`Reader::container`] reads the files of one container, [`Reader::pod`] those of a pod; neither fails as a whole: what a
//! host does not have is none in the [`Reading`]. [`report`] and [`report_pod`] turn readings into points of the families in
//! [`crate::catalogue::container`] and [`crate::catalogue::compat`]. Which family comes from which file is in
//! `docs/metrics-containers.md`.
//!
//! There is no task and no thread here. Between two readings are kept a buffer, the names of block devices, and the last
//! [`Reading`] of each container: one in which nothing has run since is not read again, for [`AT_REST`] at most, as its
//! counters stand still. Everything blocks for as long as the kernel takes for its small files: microseconds.

mod cpu;
mod devices;
mod files;
mod histogram;
mod hugetlb;
mod io;
mod kernel;
mod memory;
mod network;
mod pod;
mod pressure;
mod report;
mod tasks;

use std::collections::HashMap;
use std::ffi::CString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use files::Directory;

pub use cpu::Cpu;
pub use devices::Devices;
pub use histogram::{BOUNDS, histogram};
pub use hugetlb::HugePages;
pub use io::DeviceIo;
pub use kernel::{report_block, report_figures};
pub use memory::Memory;
pub use network::{Interface, Sockets};
pub use pod::{Direction, Edge, PodFacts, PodReading, PodSource, Totals, report_pod};
pub use pressure::{Pressure, Stall};
pub use report::{Facts, Filesystem, report};
pub use tasks::{Bounds, Tasks};

/// Where a container has the files of one controller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Place {
    /// In its cgroup2 directory.
    Unified,
    /// In this directory of a v1 tree. It may be missing: then the container has no limits there and the reading lacks it.
    V1(PathBuf),
    /// Nowhere on this host.
    #[default]
    Absent,
}

/// The directories of one container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directories {
    /// Its cgroup2 directory, e.g. `/sys/fs/cgroup/agentd/pods/<id>/c0`. Every container has one, on hybrid hosts, too:
    /// CPU time, pressure and processes are read here wherever the controllers are.
    pub unified: PathBuf,
    /// CPU bandwidth: periods and throttling.
    pub cpu: Place,
    /// A directory of the container in a v1 `cpuacct` tree, used if the cgroup2 tree does not tell CPU time. None on
    /// cgroup v2, and where the tree is not one that containers are moved into.
    pub cpuacct: Option<PathBuf>,
    /// Memory.
    pub memory: Place,
    /// Number of tasks.
    pub pids: Place,
    /// Block I/O, `blkio` on v1.
    pub io: Place,
    /// Huge pages.
    pub hugetlb: Place,
}

impl Directories {
    /// Those of a host with cgroup v2 alone.
    pub fn on_v2(unified: PathBuf) -> Self {
        Self {
            unified,
            cpu: Place::Unified,
            cpuacct: None,
            memory: Place::Unified,
            pids: Place::Unified,
            io: Place::Unified,
            hugetlb: Place::Unified,
        }
    }
}

/// What was read of one container at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// CPU time and throttling.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Pressure stall information.
    pub pressure: Pressure,
    /// Processes, threads, descriptors.
    pub tasks: Tasks,
    /// Block I/O by device; none where the container has no `io` controller: then [`report`] takes the programs' figures.
    pub io: Option<Vec<DeviceIo>>,
    /// Huge pages by size.
    pub huge_pages: Vec<HugePages>,
}

/// How long a container in which nothing runs is not read again. What may change of it is its memory, by reclaim.
pub const AT_REST: Duration = Duration::from_secs(30);

/// The last reading of a container.
#[derive(Debug)]
struct Last {
    reading: Reading,
    read: Instant,
    /// Inode of its directory: another container may come to the same path.
    inode: Option<u64>,
    /// Number of the round that it was last asked for in.
    round: u64,
}

/// Reads containers and pods, one after the other.
#[derive(Debug)]
pub struct Reader {
    last: HashMap<PathBuf, Last>,
    round: u64,
    buffer: files::Buffer,
    scratch: tasks::Scratch,
    devices: Devices,
    sizes: hugetlb::Sizes,
    bounds: Bounds,
}

impl Default for Reader {
    fn default() -> Self {
        Self::new(Bounds::default())
    }
}

impl Reader {
    /// With bounds on what is looked at of one container. Reads which sizes of huge pages the host has.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            last: HashMap::new(),
            round: 0,
            buffer: files::Buffer::default(),
            scratch: tasks::Scratch::default(),
            devices: Devices::default(),
            sizes: hugetlb::Sizes::discover(),
            bounds,
        }
    }

    /// Begins a round of readings: what was not asked for in the round before is forgotten.
    pub fn begin_round(&mut self) {
        let round = self.round;
        self.last.retain(|_, last| last.round == round);
        self.round += 1;
    }

    /// Reads a container. Its cgroup may be gone or go meanwhile: then the reading lacks what was gone.
    pub fn container(&mut self, directories: &Directories) -> Reading {
        let mut reading = Reading::default();
        let Self { last, round, buffer, scratch, devices, sizes, bounds } = self;
        let Some(unified) = Directory::open(&directories.unified) else { return reading };
        let inode = unified.inode();
        if let Some(text) = buffer.read(&unified, c"cpu.stat") {
            reading.cpu.take_stat(text);
        }
        if let Some(last) = last.get_mut(&directories.unified) {
            last.round = *round;
            let same = inode.is_some() && last.inode == inode;
            let at_rest = reading.cpu.usage.is_some() && last.reading.cpu.usage == reading.cpu.usage;
            if same && at_rest && last.read.elapsed() < AT_REST {
                return last.reading.clone();
            }
        }
        if let (None, Some(directory)) = (reading.cpu.usage, directories.cpuacct.as_deref().and_then(Directory::open)) {
            reading.cpu.read_cpuacct(buffer, &directory);
        }
        if let Place::V1(path) = &directories.cpu
            && let Some(text) = only(buffer, path, "cpu.stat")
        {
            reading.cpu.take_stat(text);
        }
        match open(&directories.memory, &unified) {
            Some(Opened::V2(directory)) => reading.memory.read_v2(buffer, directory),
            Some(Opened::V1(directory)) => reading.memory.read_v1(buffer, &directory),
            None => {}
        }
        reading.pressure = Pressure::read(buffer, &unified);
        reading.tasks = Tasks::read(buffer, scratch, &unified, *bounds);
        let threads = match &directories.pids {
            Place::Unified => buffer.read(&unified, c"pids.current"),
            Place::V1(path) => only(buffer, path, "pids.current"),
            Place::Absent => None,
        };
        reading.tasks.threads = threads.and_then(files::number);
        reading.io = match open(&directories.io, &unified) {
            Some(Opened::V2(directory)) => io::read_v2(buffer, devices, directory),
            Some(Opened::V1(directory)) => io::read_v1(buffer, devices, &directory),
            None => None,
        };
        if let Some(directory) = open(&directories.hugetlb, &unified) {
            let v2 = matches!(directory, Opened::V2(_));
            reading.huge_pages = sizes.read(buffer, directory.as_ref(), v2);
        }
        last.insert(
            directories.unified.clone(),
            Last { reading: reading.clone(), read: Instant::now(), inode, round: *round },
        );
        reading
    }

    /// Reads a pod. It may be gone or go meanwhile, as a container may.
    pub fn pod(&mut self, source: &PodSource) -> PodReading {
        let mut reading = PodReading::default();
        if let Some(directory) = source.unified.as_deref().and_then(Directory::open) {
            if let Some(text) = self.buffer.read(&directory, c"cpu.stat") {
                reading.cpu.take_stat(text);
            }
            if source.pressure {
                reading.pressure = Pressure::read(&mut self.buffer, &directory);
            }
        }
        if let Some(process) = source.network {
            (reading.interfaces, reading.sockets) = network::read(&mut self.buffer, process);
        }
        reading
    }
}

/// Reads the only file that is wanted of a directory, without opening that.
fn only<'a>(buffer: &'a mut files::Buffer, directory: &std::path::Path, name: &str) -> Option<&'a str> {
    let path = CString::new(directory.join(name).into_os_string().into_vec()).ok()?;
    buffer.read(rustix::fs::CWD, &path)
}

/// The directory of a controller.
enum Opened<'a> {
    V2(&'a Directory),
    V1(Directory),
}

impl AsRef<Directory> for Opened<'_> {
    fn as_ref(&self) -> &Directory {
        match self {
            Self::V2(directory) => directory,
            Self::V1(directory) => directory,
        }
    }
}

/// Opens the directory of a controller; none if the container has none.
fn open<'a>(place: &Place, unified: &'a Directory) -> Option<Opened<'a>> {
    match place {
        Place::Unified => Some(Opened::V2(unified)),
        Place::V1(path) => Directory::open(path).map(Opened::V1),
        Place::Absent => None,
    }
}
