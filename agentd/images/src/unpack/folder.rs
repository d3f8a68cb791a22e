//! Folders of a layer that is being written, by descriptor.
//!
//! A parent is opened below the layer's root by `openat2`; the kernel guarantees that nothing outside is reached. Where
//! the layer itself has made a parent a symbolic link, it is followed as a process with the layer as its root would
//! follow it. Every later operation names one component in such a descriptor and follows nothing.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;

use super::fault::Fault;

/// Open folders kept at most.
const KEPT: usize = 128;
const OPAQUE: &str = "trusted.overlay.opaque";

/// A path of a layer in its parts: no empty one, no `.`, no `..`.
#[derive(Debug, Clone)]
pub(super) struct LayerPath {
    /// The parts joined by slashes; empty for the root.
    joined: Vec<u8>,
    /// Where the last part starts.
    name: usize,
    /// Number of parts.
    pub depth: usize,
}

impl LayerPath {
    /// Takes a path apart. A leading slash means the layer's root; `..` is refused.
    pub fn parse(path: &[u8], longest: usize, deepest: usize) -> Result<Self, Fault> {
        if path.len() > longest {
            return Err(Fault::refused(path, format!("its path has {} bytes, more than {longest}", path.len())));
        }
        let mut parsed = Self { joined: Vec::with_capacity(path.len()), name: 0, depth: 0 };
        for part in path.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => continue,
                b".." => return Err(Fault::refused(path, "its path has a part `..`")),
                _ if part.len() > 255 => {
                    return Err(Fault::refused(path, "a part of its path has more than 255 bytes"));
                }
                _ if part.contains(&0) => return Err(Fault::refused(path, "its path has a zero byte")),
                _ => {}
            }
            if parsed.depth > 0 {
                parsed.joined.push(b'/');
            }
            parsed.name = parsed.joined.len();
            parsed.joined.extend_from_slice(part);
            parsed.depth += 1;
        }
        if parsed.depth > deepest {
            return Err(Fault::refused(path, format!("it lies {} folders deep, more than {deepest}", parsed.depth)));
        }
        Ok(parsed)
    }

    pub fn is_root(&self) -> bool {
        self.depth == 0
    }

    pub fn bytes(&self) -> &[u8] {
        &self.joined
    }

    pub fn name(&self) -> &[u8] {
        &self.joined[self.name..]
    }

    pub fn parent(&self) -> &[u8] {
        &self.joined[..self.name.saturating_sub(1)]
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

/// The layer's root and the folders below it that are open.
#[derive(Debug)]
pub(super) struct Folders {
    root: Rc<OwnedFd>,
    open: HashMap<Vec<u8>, Rc<OwnedFd>>,
    deepest: usize,
}

impl Folders {
    pub fn new(root: OwnedFd, deepest: usize) -> Self {
        Self { root: Rc::new(root), open: HashMap::new(), deepest }
    }

    /// Closes all folders but the root: one of them may have been replaced.
    pub fn forget(&mut self) {
        self.open.clear();
    }

    /// The folder at `path`, made if it is not there.
    pub fn folder(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, Fault> {
        if path.is_empty() {
            return Ok(Rc::clone(&self.root));
        }
        if let Some(folder) = self.open.get(path) {
            return Ok(Rc::clone(folder));
        }
        let folder = match self.resolve(path) {
            Ok(folder) => folder,
            Err(Errno::NOENT | Errno::NOTDIR) => {
                self.make(path)?;
                self.resolve(path).map_err(|error| Self::unreachable(path, error))?
            }
            Err(error) => return Err(Self::unreachable(path, error)),
        };
        if self.open.len() >= KEPT {
            self.open.clear();
        }
        let folder = Rc::new(folder);
        self.open.insert(path.to_vec(), Rc::clone(&folder));
        Ok(folder)
    }

    /// The folder at `path` if it is there.
    pub fn existing(&mut self, path: &[u8]) -> Result<Option<Rc<OwnedFd>>, Fault> {
        if path.is_empty() {
            return Ok(Some(Rc::clone(&self.root)));
        }
        if let Some(folder) = self.open.get(path) {
            return Ok(Some(Rc::clone(folder)));
        }
        match self.resolve(path) {
            Ok(folder) => Ok(Some(Rc::new(folder))),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(Self::unreachable(path, error)),
        }
    }

    fn unreachable(path: &[u8], error: Errno) -> Fault {
        match error {
            Errno::LOOP => Fault::refused(path, "a parent folder is a symbolic link that leads nowhere"),
            Errno::NAMETOOLONG => {
                Fault::refused(path, "it lies more than the allowed number of folders deep once links are followed")
            }
            Errno::NOSYS => Fault::io("open a folder of the layer by openat2 (Linux 5.6 or later is needed)", error),
            error => Fault::io(format!("open folder {} of the layer", super::fault::shown(path)), error),
        }
    }

    fn resolve(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let plain = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
        match rustix::fs::openat2(&*self.root, path, flags, Mode::empty(), plain) {
            Err(Errno::LOOP) => {}
            result => return result,
        }
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut tries = 0;
        let folder = loop {
            match rustix::fs::openat2(&*self.root, path, flags, Mode::empty(), inside) {
                // The kernel could not rule out that a rename elsewhere moved a `..` under it.
                Err(Errno::AGAIN) if tries < 64 => tries += 1,
                result => break result?,
            }
        };
        // Through links a layer can lie deeper than any of its paths is long; deleting it must stay possible.
        if depth(&folder)?.saturating_sub(depth(&self.root)?) > self.deepest {
            return Err(Errno::NAMETOOLONG);
        }
        Ok(folder)
    }

    /// Makes the folder at `path`, which no entry of the archive has named.
    fn make(&mut self, path: &[u8]) -> Result<(), Fault> {
        let (parent, name) = split(path);
        let parent = self.folder(parent)?;
        match rustix::fs::mkdirat(&*parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let found = rustix::fs::statat(&*parent, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|error| Fault::io("look at a folder of the layer", error))?;
                match FileType::from_raw_mode(found.st_mode) {
                    FileType::Directory => return Ok(()),
                    // A whiteout, then an entry below: the folder hides the one in the layers beneath.
                    FileType::CharacterDevice => return replace_whiteout(&parent, name, Mode::from_raw_mode(0o755)),
                    FileType::Symlink => {
                        return Err(Fault::refused(path, "a parent folder is a symbolic link that leads nowhere"));
                    }
                    _ => return Err(Fault::refused(path, "a parent folder is a file")),
                }
            }
            Err(error) => return Err(Fault::io(format!("make folder {}", super::fault::shown(path)), error)),
        }
        // The daemon's umask must not matter.
        rustix::fs::chmodat(&*parent, name, Mode::from_raw_mode(0o755), AtFlags::empty())
            .map_err(|error| Fault::io(format!("make folder {}", super::fault::shown(path)), error))
    }
}

/// Number of folders above, as the kernel tells it.
fn depth(folder: &OwnedFd) -> Result<usize, Errno> {
    let link = rustix::fs::readlink(format!("/proc/self/fd/{}", folder.as_raw_fd()), Vec::new())?;
    Ok(link.to_bytes().split(|byte| *byte == b'/').count())
}

/// Puts an opaque folder where a whiteout is.
pub(super) fn replace_whiteout(parent: &OwnedFd, name: &[u8], mode: Mode) -> Result<(), Fault> {
    let action = || format!("make folder {}", super::fault::shown(name));
    rustix::fs::unlinkat(parent, name, AtFlags::empty()).map_err(|error| Fault::io(action(), error))?;
    rustix::fs::mkdirat(parent, name, mode).map_err(|error| Fault::io(action(), error))?;
    rustix::fs::chmodat(parent, name, mode, AtFlags::empty()).map_err(|error| Fault::io(action(), error))?;
    opaque(parent, name)
}

/// Marks a folder as hiding what lies in the layers beneath.
pub(super) fn opaque(parent: &OwnedFd, name: &[u8]) -> Result<(), Fault> {
    rustix::fs::lsetxattr(below(parent, name), OPAQUE, b"y", XattrFlags::empty()).map_err(|error| {
        Fault::io(
            format!("set {OPAQUE} on {} (needs root and a disk with extended attributes)", super::fault::shown(name)),
            error,
        )
    })
}

/// A path to `name` in the folder of a descriptor; an empty name is the folder itself.
pub(super) fn below(parent: impl AsFd, name: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", parent.as_fd().as_raw_fd()));
    path.push(if name.is_empty() { std::ffi::OsStr::new(".") } else { std::ffi::OsStr::from_bytes(name) });
    path
}

/// Removes whatever is at `name`.
pub(super) fn remove(parent: &OwnedFd, name: &[u8]) -> Result<(), Fault> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => std::fs::remove_dir_all(below(parent, name))
            .map_err(|error| Fault::io(format!("replace folder {}", super::fault::shown(name)), error)),
        Err(error) => Err(Fault::io(format!("replace {}", super::fault::shown(name)), error)),
    }
}
