//! Names of block devices by their numbers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::files::Buffer;

/// How long names are kept: a number may be given to another device.
const KEPT: Duration = Duration::from_mins(1);

/// Names of block devices by number, kept between readings for a minute.
#[derive(Debug, Default)]
pub struct Devices {
    names: HashMap<(u32, u32), Arc<str>>,
    read: Option<Instant>,
}

impl Devices {
    /// The name of a device without `/dev/`; `major:minor` if the host does not tell.
    pub(super) fn name(&mut self, buffer: &mut Buffer, device: (u32, u32)) -> Arc<str> {
        if self.read.is_none_or(|read| read.elapsed() > KEPT) {
            self.names.clear();
            if let Some(text) = buffer.read(rustix::fs::CWD, c"/proc/partitions") {
                self.names.extend(partitions(text));
            }
            self.read = Some(Instant::now());
        }
        let (major, minor) = device;
        Arc::clone(self.names.entry(device).or_insert_with(|| {
            // Devices that are hidden or of no size are not in the list.
            let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok();
            link.as_deref()
                .and_then(|link| link.file_name()?.to_str())
                .map_or_else(|| format!("{major}:{minor}").into(), Arc::from)
        }))
    }
}

/// Numbers and names in the text of `/proc/partitions`.
fn partitions(text: &str) -> impl Iterator<Item = ((u32, u32), Arc<str>)> {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (major, minor) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(((major, minor), words.nth(1)?.into()))
    })
}

/// The numbers in a text such as `254:0`.
pub(super) fn numbers(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_understood() {
        let text =
            "major minor  #blocks  name\n\n 254        0  268435456 vda\n   8       17    1047552 sdb1\nbad\n 1 2\n";
        let names: Vec<_> = partitions(text).collect();
        assert_eq!(names, [((254, 0), Arc::from("vda")), ((8, 17), Arc::from("sdb1"))]);
    }

    #[test]
    fn numbers_are_two() {
        assert_eq!(numbers("254:0"), Some((254, 0)));
        for text in ["", ":", "1", "a:b", "1:-1", "1:2:3", "99999999999:1"] {
            assert_eq!(numbers(text), None, "{text:?}");
        }
    }

    #[test]
    fn unknown_devices_are_told_by_number() {
        let mut devices = Devices::default();
        let mut buffer = Buffer::default();
        assert_eq!(&*devices.name(&mut buffer, (4000, 77)), "4000:77");
        for line in std::fs::read_to_string("/proc/partitions").unwrap().lines().skip(2) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let device = (words[0].parse().unwrap(), words[1].parse().unwrap());
            assert_eq!(&*devices.name(&mut buffer, device), words[3]);
        }
    }
}
