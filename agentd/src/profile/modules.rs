//! Mapped files, known by identity: each is read once, however many processes have it mapped. Bounded; what was not used
//! for the longest time goes first.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, Stat};

use super::elf::Elf;
use super::gathered::{File, Frame, Kind};
use super::names::demangle;
use crate::files::tree;

/// Memory for symbols of all files, in bytes.
const MOST: usize = 64 << 20;
/// Most files.
const MOST_FILES: usize = 512;
/// Most names of one file that are kept demangled.
const MOST_NAMES: usize = 8192;

/// What a file is known by: device, inode, size, time of its last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Identity(u64, u64, i64, i64, i64);

/// Number of a file in [`Modules`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ModuleId(u64);

#[derive(Debug)]
struct Module {
    elf: Elf,
    file: Arc<File>,
    /// The last part of the path, for frames without a symbol.
    short: String,
    names: HashMap<usize, Arc<str>>,
    used: u64,
}

/// The files.
#[derive(Debug, Default)]
pub struct Modules {
    files: HashMap<ModuleId, Module>,
    /// The same file may have several paths.
    known: HashMap<(Identity, String), ModuleId>,
    next: u64,
    clock: u64,
}

impl Modules {
    /// The file that a process has mapped at `range`; `process` is its `/proc/<pid>`, `path` what it is called there.
    ///
    /// It is opened through `map_files`, which leads to what is mapped and to nothing else: no path of the container is
    /// resolved. A file that cannot be had, or lies where another program would answer for it, has no symbols.
    pub fn mapped(&mut self, process: &OwnedFd, range: (u64, u64), path: &str) -> ModuleId {
        self.clock += 1;
        let path: String = tree::shown(path.as_bytes());
        let held = held(process, range);
        let identity = held.as_ref().map(|(_, stat)| identity(stat));
        if let Some(identity) = identity
            && let Some(id) = self.known.get(&(identity, path.clone()))
            && let Some(module) = self.files.get_mut(id)
        {
            module.used = self.clock;
            return *id;
        }
        let opened = held.and_then(|(held, _)| tree::reopen(&held).ok());
        let elf = opened.map(|file| Elf::read(&std::fs::File::from(file))).unwrap_or_default();
        self.insert(identity, elf, path)
    }

    fn insert(&mut self, identity: Option<Identity>, elf: Elf, path: String) -> ModuleId {
        let id = ModuleId(self.next);
        self.next += 1;
        let short = path.rsplit('/').next().unwrap_or_default().to_owned();
        let file = File { name: path.clone(), build_id: elf.build_id.clone(), kind: Kind::Mapped };
        if let Some(identity) = identity {
            self.known.insert((identity, path), id);
        }
        let module = Module { elf, file: Arc::new(file), short, names: HashMap::new(), used: self.clock };
        self.files.insert(id, module);
        self.bound(id);
        id
    }

    fn bound(&mut self, keep: ModuleId) {
        loop {
            let bytes: usize = self.files.values().map(|module| module.elf.bytes()).sum();
            if bytes <= MOST && self.files.len() <= MOST_FILES {
                return;
            }
            let others = self.files.iter().filter(|(id, _)| **id != keep);
            let Some(oldest) = others.min_by_key(|(_, module)| module.used).map(|(id, _)| *id) else { return };
            self.files.remove(&oldest);
            self.known.retain(|_, id| *id != oldest);
        }
    }

    /// Whether a file is still known.
    pub fn has(&self, id: ModuleId) -> bool {
        self.files.contains_key(&id)
    }

    /// The function at a byte of a file; none where the file is not known any more.
    pub fn frame(&mut self, id: ModuleId, offset: u64) -> Option<Frame> {
        self.clock += 1;
        let module = self.files.get_mut(&id)?;
        module.used = self.clock;
        let file = Arc::clone(&module.file);
        // without headers an offset in the file says as much
        let address = module.elf.address(offset).unwrap_or(offset);
        let Some((number, begin, name)) = module.elf.find(address) else {
            return Some(Frame { name: format!("[{}+{address:#x}]", module.short).into(), address, file });
        };
        let name = if let Some(name) = module.names.get(&number) {
            Arc::clone(name)
        } else {
            let name: Arc<str> = demangle(&String::from_utf8_lossy(name)).into();
            if module.names.len() < MOST_NAMES {
                module.names.insert(number, Arc::clone(&name));
            }
            name
        };
        Some(Frame { name, address: begin, file })
    }
}

fn identity(stat: &Stat) -> Identity {
    Identity(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime, stat.st_mtime_nsec as i64)
}

/// What is mapped at a range, not opened yet, if it is a regular file on a filesystem that no other program answers for.
fn held(process: &OwnedFd, (from, to): (u64, u64)) -> Option<(OwnedFd, Stat)> {
    let link = format!("map_files/{from:x}-{to:x}");
    let held = rustix::fs::openat(process.as_fd(), link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&held).ok()?;
    let store = tree::kind(&stat) == FileType::RegularFile && tree::pseudo(&held).ok()?.is_none();
    store.then_some((held, stat))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_bounded_in_number() {
        let mut modules = Modules::default();
        let first = modules.insert(Some(Identity(0, 0, 0, 0, 0)), Elf::default(), "/bin/first".to_owned());
        for number in 1..=MOST_FILES as u64 {
            modules.clock += 1;
            modules.insert(Some(Identity(0, number, 0, 0, 0)), Elf::default(), "/bin/x".to_owned());
        }
        assert!(!modules.has(first) && modules.frame(first, 0).is_none());
        assert_eq!((modules.files.len(), modules.known.len()), (MOST_FILES, MOST_FILES));
    }

    #[test]
    fn a_file_without_symbols_gives_its_name_and_the_address() {
        let mut modules = Modules::default();
        let id = modules.insert(None, Elf::default(), "/usr/bin/app".to_owned());
        let frame = modules.frame(id, 0x1234).unwrap();
        assert_eq!((&*frame.name, frame.address, frame.file.name.as_str()), ("[app+0x1234]", 0x1234, "/usr/bin/app"));
    }
}
