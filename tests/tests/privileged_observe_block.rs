//! Ground truth of the group `block`: known numbers of bytes read and written in containers of the test's own, and a disk
//! that is slow by a known time, compared with what the observer counted.

mod observed;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use agentd_ebpf::observe::layout::{BLOCK_KINDS, BLOCK_READ, BLOCK_WRITE, Block, Log2};
use agentd_ebpf::observe::{Group, Observer, Rung, Signal};
use agentd_tests::{eventually, host, privileged, skip};

use observed::{Network, PATIENCE, Place, Work, say, settled, stands, wait};

const PIECE: usize = 64 << 10;
const PIECES: u64 = 48;
/// Reads of the slow device, and how many of them it does in a second.
const SLOW: u64 = 12;
const RATE: u64 = 20;
/// What direct I/O must be aligned to on any device.
const ALIGNMENT: usize = 4096;
/// Names the file that the work is about.
const FILE: &str = "AGENTD_TESTS_FILE";

/// A buffer that direct I/O takes, and where in it.
fn buffer(length: usize) -> (Vec<u8>, usize) {
    let bytes = vec![7; length + ALIGNMENT];
    let at = bytes.as_ptr().align_offset(ALIGNMENT);
    (bytes, at)
}

fn direct(path: &Path) -> File {
    let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path);
    opened.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Writes pieces and reads them again. Gives how long each half took, ns.
fn write_and_read(path: &Path) -> (u128, u128) {
    let mut file = direct(path);
    let (mut bytes, at) = buffer(PIECE);
    let begun = Instant::now();
    for _ in 0..PIECES {
        file.write_all(&bytes[at..at + PIECE]).expect("it is written");
    }
    let written = begun.elapsed().as_nanos();
    file.seek(SeekFrom::Start(0)).expect("a file");
    let begun = Instant::now();
    for _ in 0..PIECES {
        file.read_exact(&mut bytes[at..at + PIECE]).expect("it is read");
    }
    (written, begun.elapsed().as_nanos())
}

/// What processes in containers do; nothing when it is run as a test.
#[test]
#[ignore = "is run by the tests of this file, in the cgroup of a container"]
fn work() {
    let Some(name) = observed::wanted() else { return };
    let path = PathBuf::from(std::env::var_os(FILE).expect("a file is named"));
    // the way that is taken is there before anything counts
    drop(direct(&path));
    say("ready");
    wait();
    match name.as_str() {
        "direct" => {
            let (written, read) = write_and_read(&path);
            say(&format!("done {written} {read}"));
        }
        "buffered" | "synchronous" => {
            let mut file = OpenOptions::new().write(true).open(&path).expect("it is there");
            for _ in 0..PIECES {
                file.write_all(&vec![9; PIECE]).expect("it is written");
            }
            if name == "synchronous" {
                file.sync_data().expect("it is synchronised");
            }
            say("done");
        }
        "slow" => {
            let mut file = direct(&path);
            let (mut bytes, at) = buffer(ALIGNMENT);
            for _ in 0..SLOW {
                file.read_exact(&mut bytes[at..at + ALIGNMENT]).expect("it is read");
            }
            say("done");
        }
        other => panic!("no such work: {other}"),
    }
    wait();
}

/// A file of the test's own on a disk, with all of its blocks.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new() -> Result<Self, String> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let path = folder.join(format!("block-{}-{number}", std::process::id()));
        let scratch = Self { path };
        let mut file = File::create(&scratch.path).map_err(|error| format!("{}: {error}", folder.display()))?;
        file.write_all(&vec![1; PIECE * PIECES as usize])
            .and_then(|()| file.sync_all())
            .map_err(|error| error.to_string())?;
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&scratch.path);
        opened.map_err(|error| format!("{} takes no direct I/O: {error}", folder.display()))?;
        let device = fs::metadata(&scratch.path).expect("it is there").dev();
        if !Path::new(&format!("/sys/dev/block/{}", numbers(device))).exists() {
            return Err(format!("{} is on no disk (device {})", folder.display(), numbers(device)));
        }
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A device as the kernel writes it.
fn numbers(device: u64) -> String {
    format!("{}:{}", libc::major(device), libc::minor(device))
}

struct Watched {
    _place: Place,
    observer: Observer,
    cgroup: PathBuf,
    id: u64,
    scratch: Scratch,
}

fn watched(without: &[Rung]) -> Result<Watched, String> {
    let place = Place::new().ok_or("no cgroup2 tree can be written")?;
    let observer = place.observer(&[Group::Block], without);
    stands(&observer, Signal::BlockIo)?;
    let (cgroup, id) = place.container("x", "c0");
    observer.publish(id, false).expect("there is room");
    Ok(Watched { _place: place, observer, cgroup, id, scratch: Scratch::new()? })
}

macro_rules! watched {
    ($without:expr) => {
        match watched($without) {
            Ok(all) => all,
            Err(why) => skip!("{why}"),
        }
    };
}

impl Watched {
    fn begin(&self, name: &str, path: &Path, also: &[&Path]) -> Work {
        Work::begin_with(name, &self.cgroup, also, Network::Host, &[(FILE, path.as_os_str())])
    }

    fn block(&self) -> Block {
        self.observer.figures(self.id).block.expect("the group is attached")
    }

    fn writeback(&self) -> Block {
        self.observer.snapshot().writeback.expect("the group is attached")
    }
}

fn count(histogram: &Log2) -> u64 {
    histogram.buckets.iter().sum()
}

fn in_flight(block: &Block) -> u64 {
    block.begun - block.merged - block.requests.iter().sum::<u64>()
}

#[test]
fn direct_reads_and_writes_are_counted_to_the_byte_on_every_rung() {
    privileged!();
    for without in [&[][..], &[Rung::TpBtf], &[Rung::TpBtf, Rung::RawTp]] {
        let watched = watched!(without);
        let mut work = watched.begin("direct", &watched.scratch.path, &[]);
        let before = watched.block();
        let took = work.done();
        let took: Vec<u64> = took.split(' ').map(|word| word.parse().expect("a number")).collect();
        let all = PIECES * PIECE as u64;
        let block = settled(&watched.observer, watched.id, |figures| {
            figures.block.is_some_and(|block| block.bytes[BLOCK_READ] - before.bytes[BLOCK_READ] >= all)
        });
        let block = block.block.expect("the group is attached");
        for (kind, took) in [(BLOCK_WRITE, took[0]), (BLOCK_READ, took[1])] {
            let bytes = block.bytes[kind] - before.bytes[kind];
            // a program on a tracepoint of tracefs is left out while another such program runs on its CPU; the kernel
            // counts how often, and only that may be missing
            let missed: u64 = watched.observer.costs().iter().map(|cost| cost.missed).sum();
            let most = if without.len() == 2 { missed * PIECE as u64 } else { 0 };
            assert!(
                bytes <= all && bytes + most >= all,
                "kind {kind}, without {without:?}: {bytes} of {all}, {missed} missed"
            );
            let requests = block.requests[kind] - before.requests[kind];
            // a piece that lies in two places of the disk is two requests
            let least = PIECES - most / PIECE as u64;
            assert!((least..2 * PIECES).contains(&requests), "{requests} requests");
            let timed = count(&block.latency[kind]) - count(&before.latency[kind]);
            assert!(timed == requests, "{timed} of {requests} have a time");
            // one after the other: they cannot take longer than whoever waits for them; with pieces split in two, which
            // run side by side, at most twice as long
            let sum = block.latency[kind].sum - before.latency[kind].sum;
            assert!(sum > took / 10 && sum < took * requests / PIECES + took / 10, "{sum} ns of {took} ns");
        }
        assert_eq!((block.errors, block.untracked, in_flight(&block)), (0, 0, 0), "{block:?}");
        work.end();
    }
}

#[test]
fn what_is_synchronised_is_the_containers_and_what_is_written_back_is_not() {
    privileged!();
    let watched = watched!(&[]);
    let all = PIECES * PIECE as u64;
    let mut work = watched.begin("synchronous", &watched.scratch.path, &[]);
    let before = watched.block();
    work.done();
    let after = settled(&watched.observer, watched.id, |figures| {
        figures.block.is_some_and(|block| block.bytes[BLOCK_WRITE] - before.bytes[BLOCK_WRITE] >= all)
    });
    let synchronised = after.block.expect("attached").bytes[BLOCK_WRITE] - before.bytes[BLOCK_WRITE];
    // the file system may write of its own with it, and a writeback may have been first
    assert!(synchronised >= all / 2 && synchronised < all + (1 << 20), "{synchronised} of {all}");
    work.end();

    let mut work = watched.begin("buffered", &watched.scratch.path, &[]);
    let (before, kernel) = (watched.block(), watched.writeback());
    work.done();
    work.end();
    let status = Command::new("sync").arg("--file-system").arg(&watched.scratch.path).status();
    assert!(status.expect("sync can be run").success());
    let written = || watched.writeback().bytes[BLOCK_WRITE] - kernel.bytes[BLOCK_WRITE];
    assert!(eventually(PATIENCE, || written() >= all), "{} of {all}", written());
    assert_eq!(watched.block().bytes[BLOCK_WRITE], before.bytes[BLOCK_WRITE]);
}

/// A loop device over a file, which reads the disk itself.
struct Loop {
    device: PathBuf,
}

impl Loop {
    fn new(file: &Path) -> Result<Self, String> {
        let output = Command::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(file).output();
        let output = output.map_err(|error| format!("losetup: {error}"))?;
        if !output.status.success() {
            return Err(format!("losetup: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        Ok(Self { device: String::from_utf8_lossy(&output.stdout).trim().into() })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}

/// A directory of the hierarchy `blkio` of cgroup v1.
struct Throttle {
    path: PathBuf,
}

impl Throttle {
    fn new(disk: &str) -> Result<Self, String> {
        let tree = host::cgroup_trees().into_iter().find(|tree| tree.join("blkio.throttle.read_iops_device").exists());
        let tree = tree.ok_or("there is no hierarchy blkio of cgroup v1 with limits")?;
        let path = tree.join(format!("agentd-observed-{}", std::process::id()));
        fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let throttle = Self { path };
        fs::write(throttle.path.join("blkio.throttle.read_iops_device"), format!("{disk} {RATE}"))
            .map_err(|error| format!("reads of {disk} cannot be limited: {error}"))?;
        Ok(throttle)
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        if !eventually(PATIENCE, || fs::remove_dir(&self.path).is_ok()) {
            eprintln!("{} is left", self.path.display());
        }
    }
}

#[test]
fn a_disk_that_is_slow_by_a_known_time_shows_it() {
    privileged!();
    let watched = watched!(&[]);
    let disk = numbers(fs::metadata(&watched.scratch.path).expect("it is there").dev());
    let made = Throttle::new(&disk).and_then(|throttle| Ok((throttle, Loop::new(&watched.scratch.path)?)));
    let (throttle, device) = match made {
        Ok(made) => made,
        Err(why) => skip!("{why}"),
    };
    // what waits for the disk waits inside the loop device's requests
    let mut work = watched.begin("slow", &device.device, &[&throttle.path]);
    let before = watched.block();
    work.done();
    let block = watched.block();
    let reads = block.requests[BLOCK_READ] - before.requests[BLOCK_READ];
    assert_eq!(reads, SLOW);
    assert_eq!(block.bytes[BLOCK_READ] - before.bytes[BLOCK_READ], SLOW * ALIGNMENT as u64);
    let sum = block.latency[BLOCK_READ].sum - before.latency[BLOCK_READ].sum;
    // the first ones of a slice may pass without waiting
    let expected = 1_000_000_000 / RATE * SLOW;
    assert!(sum > expected / 2 && sum < expected * 2, "{sum} ns, expected about {expected}");
    assert_eq!(in_flight(&block), 0, "{block:?}");
    assert_eq!(block.latency.len(), BLOCK_KINDS);
    work.end();
}
