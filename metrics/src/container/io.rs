//! Block I/O by device: `io.stat` of cgroup v2, the throttling layer's files of v1.
//!
//! A container has them only where it, or its pod, asked for the controller: cgroups of `blkio` are made on demand. On v1 what
//! the kernel writes back from the page cache is on nobody's account.

use std::sync::Arc;

use super::devices::{Devices, numbers};
use super::files::{Buffer, Directory};

/// What a container read from and wrote to one block device since its cgroup was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceIo {
    /// The device's name without `/dev/`, e.g. `vda`; `major:minor` if the host does not tell.
    pub device: Arc<str>,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Requests to read.
    pub reads: u64,
    /// Requests to write.
    pub writes: u64,
}

/// The same by the device's number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Figures {
    device: (u32, u32),
    read_bytes: u64,
    written_bytes: u64,
    reads: u64,
    writes: u64,
}

/// Reads a directory of cgroup v2; none if the controller is not on there.
pub(super) fn read_v2(buffer: &mut Buffer, devices: &mut Devices, directory: &Directory) -> Option<Vec<DeviceIo>> {
    let figures = parse_v2(buffer.read(directory, c"io.stat")?);
    Some(named(buffer, devices, &figures))
}

/// Reads a directory of a v1 `blkio` tree; none if it does not tell.
pub(super) fn read_v1(buffer: &mut Buffer, devices: &mut Devices, directory: &Directory) -> Option<Vec<DeviceIo>> {
    let mut figures = Vec::new();
    take_v1(&mut figures, buffer.read(directory, c"blkio.throttle.io_service_bytes_recursive")?, true);
    if let Some(text) = buffer.read(directory, c"blkio.throttle.io_serviced_recursive") {
        take_v1(&mut figures, text, false);
    }
    Some(named(buffer, devices, &figures))
}

fn named(buffer: &mut Buffer, devices: &mut Devices, figures: &[Figures]) -> Vec<DeviceIo> {
    let name = |figures: &Figures| DeviceIo {
        device: devices.name(buffer, figures.device),
        read_bytes: figures.read_bytes,
        written_bytes: figures.written_bytes,
        reads: figures.reads,
        writes: figures.writes,
    };
    figures.iter().map(name).collect()
}

/// Lines `254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`; a device without I/O may have no figures.
fn parse_v2(text: &str) -> Vec<Figures> {
    let line = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let mut figures = Figures { device: numbers(words.next()?)?, ..Figures::default() };
        let mut any = false;
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let place = match key {
                "rbytes" => &mut figures.read_bytes,
                "wbytes" => &mut figures.written_bytes,
                "rios" => &mut figures.reads,
                "wios" => &mut figures.writes,
                _ => continue,
            };
            if let Ok(value) = value.parse() {
                *place = value;
                any = true;
            }
        }
        any.then_some(figures)
    };
    text.lines().filter_map(line).collect()
}

/// Lines `254:0 Read 4096`, of bytes or of requests.
fn take_v1(all: &mut Vec<Figures>, text: &str, bytes: bool) {
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(device) = words.next().and_then(numbers) else { continue };
        let (Some(kind), Some(value)) = (words.next(), words.next().and_then(|value| value.parse().ok())) else {
            continue;
        };
        if kind != "Read" && kind != "Write" {
            continue;
        }
        let at = all.iter().position(|figures| figures.device == device).unwrap_or_else(|| {
            all.push(Figures { device, ..Figures::default() });
            all.len() - 1
        });
        let place = match (kind, bytes) {
            ("Read", true) => &mut all[at].read_bytes,
            ("Read", false) => &mut all[at].reads,
            (_, true) => &mut all[at].written_bytes,
            (_, false) => &mut all[at].writes,
        };
        *place = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v2_is_understood() {
        let text = "254:0 rbytes=2703360 wbytes=2621440 rios=44 wios=40 dbytes=0 dios=0\n8:16 \n\
                    7:1 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0 cost.usage=12 cost.wait=9\n";
        let first =
            Figures { device: (254, 0), read_bytes: 2_703_360, written_bytes: 2_621_440, reads: 44, writes: 40 };
        let second = Figures { device: (7, 1), read_bytes: 4096, reads: 1, ..Figures::default() };
        assert_eq!(parse_v2(text), [first, second]);
    }

    #[test]
    fn v1_is_understood() {
        let mut all = Vec::new();
        let bytes = "254:0 Read 2703360\n254:0 Write 2621440\n254:0 Sync 5324800\n254:0 Async 0\n254:0 Discard 0\n\
                     254:0 Total 5324800\n8:0 Read 512\n8:0 Write 0\nTotal 5325312\n";
        take_v1(&mut all, bytes, true);
        take_v1(&mut all, "254:0 Read 44\n254:0 Write 40\n254:0 Total 84\n8:0 Read 1\nTotal 85\n", false);
        let first =
            Figures { device: (254, 0), read_bytes: 2_703_360, written_bytes: 2_621_440, reads: 44, writes: 40 };
        let second = Figures { device: (8, 0), read_bytes: 512, reads: 1, ..Figures::default() };
        assert_eq!(all, [first, second]);
    }

    #[test]
    fn garbage_is_nothing() {
        for text in
            ["", "Total 0\n", "254:0", "254:0 Read\n", "254:0 Read x\n", "x Read 1\n", "1:2 rbytes=a\n", "= =\n"]
        {
            let mut all = Vec::new();
            take_v1(&mut all, text, true);
            assert_eq!((all, parse_v2(text)), (Vec::new(), Vec::new()), "{text:?}");
        }
    }

    #[test]
    fn without_files_there_is_none_and_with_empty_ones_no_device() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open(folder.path()).unwrap();
        let (mut buffer, mut devices) = (Buffer::default(), Devices::default());
        assert_eq!(read_v2(&mut buffer, &mut devices, &directory), None);
        assert_eq!(read_v1(&mut buffer, &mut devices, &directory), None);
        std::fs::write(folder.path().join("io.stat"), "").unwrap();
        assert_eq!(read_v2(&mut buffer, &mut devices, &directory), Some(Vec::new()));
        std::fs::write(folder.path().join("io.stat"), "4000:77 rbytes=1 wbytes=2 rios=3 wios=4\n").unwrap();
        let read = read_v2(&mut buffer, &mut devices, &directory).unwrap();
        let device = DeviceIo { device: "4000:77".into(), read_bytes: 1, written_bytes: 2, reads: 3, writes: 4 };
        assert_eq!(read, [device]);
    }
}
