//! Processes that were sampled: what each has mapped, read when it was first seen, so that the stacks of a process that has
//! ended meanwhile still have names.

use std::collections::HashMap;
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use agentd_ebpf::observe::profile::{Addresses, Counted};
use rustix::fs::{Mode, OFlags};

use super::gathered::{File, Frame, Kind};
use super::kept::Subject;
use super::kernel::Kernel;
use super::modules::{ModuleId, Modules};
use super::perf_map::PerfMap;
use crate::files::container;

/// Longest `/proc/<pid>/maps` that is read, in bytes.
const MOST: u64 = 8 << 20;
/// Most mappings of a process that are kept.
const MOST_MAPPINGS: usize = 2000;
/// Most processes.
const MOST_PROCESSES: usize = 512;

/// What a process is known by: an exec changes its command's name, and what it has mapped.
type Key = (u64, u32, [u8; 16]);

/// Something that a process may run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    offset: u64,
    what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    /// A file.
    Module(ModuleId),
    /// The kernel's code that every process has (`[vdso]`).
    Named(Arc<str>),
    /// Made at run time.
    Anonymous,
}

/// A line of `/proc/<pid>/maps` that is executable.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    start: u64,
    end: u64,
    offset: u64,
    inode: u64,
    path: &'a str,
}

#[derive(Debug)]
struct Process {
    mappings: Vec<Mapping>,
    /// Turn in which it was read.
    read: u64,
    used: u64,
    /// Names of code made at run time, of this turn only.
    perf_map: Option<PerfMap>,
}

/// Makes names of addresses.
#[derive(Debug, Default)]
pub struct Resolver {
    modules: Modules,
    processes: HashMap<Key, Process>,
    kernel: Option<Kernel>,
    /// Grows with each reading of counts.
    turn: u64,
    clock: u64,
}

impl Resolver {
    /// Begins to resolve what was read at once.
    pub fn begin(&mut self) {
        self.turn += 1;
        for process in self.processes.values_mut() {
            process.perf_map = None;
        }
    }

    /// Reads what a process has mapped, if it is still there and in its container.
    pub fn learn(&mut self, container: u64, subject: &Subject, process: u32, command: [u8; 16]) {
        let key = (container, process, command);
        self.clock += 1;
        let Some(mappings) = self.mappings(subject, process) else { return };
        let entry = Process { mappings, read: self.turn, used: self.clock, perf_map: None };
        self.processes.insert(key, entry);
        if self.processes.len() > MOST_PROCESSES
            && let Some(oldest) = self.processes.iter().min_by_key(|(_, process)| process.used).map(|(key, _)| *key)
        {
            self.processes.remove(&oldest);
        }
    }

    fn mappings(&mut self, subject: &Subject, process: u32) -> Option<Vec<Mapping>> {
        let process = container::process(process, &subject.instance, Some(subject.slot)).ok()?;
        let text = maps(&process)?;
        let lines = text.lines().filter_map(line).take(MOST_MAPPINGS);
        let mapping = |line: Line<'_>| {
            let what = match line {
                Line { inode: 0, path, .. } if path.starts_with('[') && !path.starts_with("[anon") => {
                    What::Named(path.into())
                }
                Line { inode: 0, .. } => What::Anonymous,
                Line { start, end, path, .. } => What::Module(self.modules.mapped(&process, (start, end), path)),
            };
            Mapping { start: line.start, end: line.end, offset: line.offset, what }
        };
        Some(lines.map(mapping).collect())
    }

    /// The frames of a stack, outermost first, below the name of its command.
    pub fn frames(&mut self, subject: &Subject, one: &Counted) -> Vec<Frame> {
        let end = one.command.iter().position(|byte| *byte == 0).unwrap_or(one.command.len());
        let command = crate::files::tree::shown(&one.command[..end]);
        let mut frames = vec![Frame::command(if command.is_empty() { "[unknown]" } else { &command })];
        match &one.user {
            Addresses::None => {}
            Addresses::Lost => frames.push(unknown("[lost stack]")),
            Addresses::Some(addresses) => {
                for (number, address) in addresses.iter().enumerate().rev() {
                    frames.push(self.user(subject, one, at(number, *address)));
                }
            }
        }
        match &one.kernel {
            Addresses::None => {}
            Addresses::Lost => frames.push(unknown("[lost stack]")),
            Addresses::Some(addresses) => {
                let kernel = self.kernel.get_or_insert_with(Kernel::read);
                frames.extend(
                    addresses.iter().enumerate().rev().map(|(number, address)| kernel.frame(at(number, *address))),
                );
            }
        }
        frames
    }

    fn user(&mut self, subject: &Subject, one: &Counted, address: u64) -> Frame {
        let key = (one.container, one.process, one.command);
        let mut found = self.mapping(&key, address);
        let stale = found.as_ref().is_none_or(|(_, what)| match what {
            What::Module(id) => !self.modules.has(*id),
            _ => false,
        });
        // it may have mapped something since, or have been sampled before anybody was told; once in a turn is enough
        if stale && self.processes.get(&key).is_none_or(|process| process.read < self.turn) {
            self.learn(one.container, subject, one.process, one.command);
            if let Some(process) = self.processes.get_mut(&key) {
                process.read = self.turn;
            } else {
                // it is gone: not looked for again with each of its addresses
                let gone = Process { mappings: Vec::new(), read: self.turn, used: self.clock, perf_map: None };
                self.processes.insert(key, gone);
            }
            found = self.mapping(&key, address);
        }
        match found {
            Some((offset, What::Module(id))) => self.modules.frame(id, offset).unwrap_or_else(|| unknown("[unknown]")),
            Some((_, What::Named(name))) => unknown(&name),
            Some((_, What::Anonymous)) => self.made(subject, &key, address),
            None => unknown("[unknown]"),
        }
    }

    /// Where an address lies: its byte in what is mapped there, and what that is.
    fn mapping(&mut self, key: &Key, address: u64) -> Option<(u64, What)> {
        self.clock += 1;
        let process = self.processes.get_mut(key)?;
        process.used = self.clock;
        let at = process.mappings.partition_point(|mapping| mapping.start <= address).checked_sub(1)?;
        let mapping = process.mappings.get(at).filter(|mapping| address < mapping.end)?;
        Some(((address - mapping.start).saturating_add(mapping.offset), mapping.what.clone()))
    }

    /// Code that was made at run time.
    fn made(&mut self, subject: &Subject, key: &Key, address: u64) -> Frame {
        let Some(process) = self.processes.get_mut(key) else { return unknown("[unknown]") };
        let map = process.perf_map.get_or_insert_with(|| {
            container::process(key.1, &subject.instance, Some(subject.slot))
                .map(|process| PerfMap::read(&process))
                .unwrap_or_default()
        });
        match map.find(address) {
            Some((begin, name)) => Frame { name, address: begin, file: Arc::new(anonymous("[jit]")) },
            None => unknown("[unknown]"),
        }
    }
}

/// The address to look at: that of a caller is where it goes on, which may be behind the end of the function that calls.
fn at(number: usize, address: u64) -> u64 {
    if number == 0 { address } else { address.saturating_sub(1) }
}

fn anonymous(name: &str) -> File {
    File { name: name.to_owned(), build_id: String::new(), kind: Kind::Anonymous }
}

fn unknown(name: &str) -> Frame {
    Frame { name: name.into(), address: 0, file: Arc::new(anonymous(name)) }
}

fn maps(process: &OwnedFd) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(process.as_fd(), "maps", flags, Mode::empty()).ok()?;
    let mut bytes = Vec::new();
    std::fs::File::from(file).take(MOST).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Reads a line of `/proc/<pid>/maps`: `start-end perms offset dev inode  path`. None for one that is not executable.
fn line(text: &str) -> Option<Line<'_>> {
    let mut rest = text;
    let mut word = || {
        rest = rest.trim_start_matches(' ');
        let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = after;
        word
    };
    let (range, rights, offset, _device, inode) = (word(), word(), word(), word(), word());
    let (start, end) = range.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    if rights.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let path = rest.trim_start_matches(' ');
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    Some(Line { start: hex(start)?, end: hex(end)?, offset: hex(offset)?, inode: inode.parse().ok()?, path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_maps_are_read() {
        let text = "55e4a0c00000-55e4a0c14000 r-xp 00003000 fd:01 1311 /usr/bin/my prog (deleted)";
        let expected = Line {
            start: 0x55e4_a0c0_0000,
            end: 0x55e4_a0c1_4000,
            offset: 0x3000,
            inode: 1311,
            path: "/usr/bin/my prog",
        };
        assert_eq!(line(text), Some(expected));
        let text = "7ffd1-7ffd2 r-xp 00000000 00:00 0                          [vdso]";
        assert!(matches!(line(text), Some(Line { inode: 0, path: "[vdso]", .. })));
        assert!(matches!(line("1-2 rwxp 0 00:00 0"), Some(Line { inode: 0, path: "", .. })));
        for other in ["1-2 rw-p 0 00:00 0 [heap]", "", "x", "1-2", "1-2 r-xp zz 00:00 0", "g-2 r-xp 0 00:00 0"] {
            assert_eq!(line(other), None, "{other}");
        }
    }

    #[test]
    fn a_process_that_is_gone_is_unknown_and_asked_for_once_in_a_turn() {
        let mut resolver = Resolver::default();
        resolver.begin();
        let spec = serde_json::from_value(serde_json::json!({ "id": "/a", "containers": [] })).unwrap();
        let subject = Subject { spec: Arc::new(spec), instance: "none".into(), container: "c".into(), slot: 0 };
        let one = Counted {
            container: 1,
            process: u32::MAX,
            command: *b"app\0\0\0\0\0\0\0\0\0\0\0\0\0",
            user: Addresses::Some([1, 2].into()),
            kernel: Addresses::Lost,
            count: 1,
        };
        let frames = resolver.frames(&subject, &one);
        let names: Vec<&str> = frames.iter().map(|frame| &*frame.name).collect();
        assert_eq!(names, ["app", "[unknown]", "[unknown]", "[lost stack]"]);
        assert_eq!(resolver.processes.len(), 1);
    }
}
