//! `/tmp/perf-<pid>.map`: what programs that make code at run time (Java, Node, Python) tell of it, if they are asked to. A
//! line for each piece: its address and its size in hexadecimal digits, and a name. The file is the container's: it is found
//! inside of its root, and read with bounds.

use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use crate::files::container::read_small;
use crate::files::tree;

/// Longest file that is read, in bytes.
const MOST: u64 = 16 << 20;
/// Most pieces of code.
const MOST_PIECES: usize = 200_000;
/// Longest name, in characters.
const LONGEST_NAME: usize = 500;

/// Pieces of code by address.
#[derive(Debug, Default)]
pub struct PerfMap {
    /// Address, end, name.
    pieces: Vec<(u64, u64, Arc<str>)>,
}

impl PerfMap {
    /// Reads the file of a process; `process` is its `/proc/<pid>`. Without one, nothing is known.
    pub fn read(process: &OwnedFd) -> Self {
        text(process).map(|text| Self::parse(&text)).unwrap_or_default()
    }

    fn parse(text: &str) -> Self {
        let mut pieces: Vec<(u64, u64, Arc<str>)> = text
            .lines()
            .take(MOST_PIECES)
            .filter_map(|line| {
                let mut words = line.splitn(3, ' ');
                let hex = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok();
                let (start, size, name) = (hex(words.next()?)?, hex(words.next()?)?, words.next()?.trim());
                let name: String = name.chars().take(LONGEST_NAME).collect();
                (size > 0 && !name.is_empty()).then_some((start, start.checked_add(size)?, name.into()))
            })
            .collect();
        // code that was thrown away may have made room for other code: what was told last counts
        pieces.reverse();
        pieces.sort_by_key(|(start, ..)| *start);
        pieces.dedup_by_key(|(start, ..)| *start);
        Self { pieces }
    }

    /// The piece that holds an address: where it begins, and its name.
    pub fn find(&self, address: u64) -> Option<(u64, Arc<str>)> {
        let at = self.pieces.partition_point(|(start, ..)| *start <= address).checked_sub(1)?;
        let (start, end, name) = self.pieces.get(at)?;
        (address < *end).then(|| (*start, Arc::clone(name)))
    }
}

fn text(process: &OwnedFd) -> Option<String> {
    let status = read_small(process.as_fd(), "status")?;
    // the number that the process knows itself by
    let own: u32 =
        status.lines().find_map(|line| line.strip_prefix("NSpid:")?.split_whitespace().last()?.parse().ok())?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(process, "root", flags, Mode::empty()).ok()?;
    let path = format!("/tmp/perf-{own}.map");
    let held = tree::path_fd(root.as_fd(), path.as_bytes(), OFlags::NOFOLLOW, ResolveFlags::IN_ROOT).ok()?;
    let stat = rustix::fs::fstat(&held).ok()?;
    if tree::kind(&stat) != FileType::RegularFile || tree::pseudo(&held).ok()?.is_some() {
        return None;
    }
    let mut bytes = Vec::new();
    std::fs::File::from(tree::reopen(&held).ok()?).take(MOST).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_about_an_address_counts() {
        let map =
            PerfMap::parse("1000 10 old\n2000 20 Lfoo;bar with spaces\n1000 8 new\nx y z\n3000 0 empty\n4000 1\n");
        let name = |address| map.find(address).map(|(start, name)| (start, name.to_string()));
        assert_eq!(name(0x1007), Some((0x1000, "new".to_owned())));
        assert_eq!((name(0x1008), name(0x3000), name(0)), (None, None, None));
        assert_eq!(name(0x201f), Some((0x2000, "Lfoo;bar with spaces".to_owned())));
        assert!(PerfMap::parse("ffffffffffffffff 10 wraps\n").find(u64::MAX).is_none());
    }

    #[test]
    fn lines_and_names_are_bounded() {
        let long = format!("1000 10 {}\n", "x".repeat(10_000));
        assert_eq!(PerfMap::parse(&long).find(0x1000).unwrap().1.len(), LONGEST_NAME);
        let many: Vec<String> = (0..MOST_PIECES + 10).map(|n| format!("{:x} 1 f", n * 16)).collect();
        assert_eq!(PerfMap::parse(&many.join("\n")).pieces.len(), MOST_PIECES);
    }
}
