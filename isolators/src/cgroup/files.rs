//! Files and directories of one cgroup tree, by a descriptor of its root and a path relative to it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::{Errno, Result, retry_on_intr};

use crate::IsolatorError;

/// One mounted cgroup tree.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    mount: PathBuf,
}

impl Tree {
    /// Opens the tree mounted at `mount`.
    pub(super) fn open(mount: &Path) -> Result<Self> {
        let root = rustix::fs::open(mount, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { root, mount: mount.to_owned() })
    }

    /// Where it is mounted.
    pub(super) fn mount(&self) -> &Path {
        &self.mount
    }

    /// An error about `path` in this tree.
    pub(super) fn error(&self, isolator: &'static str, what: &str, path: &str, cause: Errno) -> IsolatorError {
        let cure = match cause {
            Errno::ROFS => " (the cgroup tree is mounted read-only; remount it writable for agentd)",
            Errno::ACCESS | Errno::PERM => " (agentd needs root and, under systemd, Delegate=yes)",
            Errno::NOSPC => " (too many cgroups on this host, or cgroup.max.descendants of an ancestor is reached)",
            _ => "",
        };
        IsolatorError::io(isolator, format!("cannot {what} {}/{path}{cure}", self.mount.display()), cause)
    }

    /// Makes a directory; an existing one is fine. Tells whether it is new.
    pub(super) fn mkdir(&self, path: &str) -> Result<bool> {
        match rustix::fs::mkdirat(&self.root, path, Mode::from_raw_mode(0o755)) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Makes a directory and those above it.
    pub(super) fn mkdir_all(&self, path: &str) -> Result<()> {
        match self.mkdir(path) {
            Err(Errno::NOENT) => {
                let Some((above, _)) = path.rsplit_once('/') else { return Err(Errno::NOENT) };
                self.mkdir_all(above)?;
                self.mkdir(path).map(drop)
            }
            other => other.map(drop),
        }
    }

    /// Whether a file or directory is there.
    pub(super) fn exists(&self, path: &str) -> bool {
        rustix::fs::accessat(&self.root, path, rustix::fs::Access::EXISTS, AtFlags::empty()).is_ok()
    }

    /// Opens a directory.
    pub(super) fn open_dir(&self, path: &str) -> Result<OwnedFd> {
        let path = if path.is_empty() { "." } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(&self.root, path, flags, Mode::empty())
    }

    /// Opens a file for reading.
    pub(super) fn open_file(&self, path: &str) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(&self.root, path, flags, Mode::empty())
    }

    /// Opens a file for writing.
    pub(super) fn open_for_write(&self, path: &str) -> Result<OwnedFd> {
        rustix::fs::openat(&self.root, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
    }

    /// Inode number of a directory, which is the cgroup's id.
    pub(super) fn inode(&self, path: &str) -> Result<u64> {
        Ok(rustix::fs::statat(&self.root, path, AtFlags::SYMLINK_NOFOLLOW)?.st_ino)
    }

    /// Writes a value in one `write(2)`, as the kernel demands.
    pub(super) fn write(&self, path: &str, value: &str) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.root, path, flags, Mode::empty())?;
        retry_on_intr(|| rustix::io::write(&file, value.as_bytes())).map(drop)
    }

    /// Reads a whole file.
    pub(super) fn read(&self, path: &str) -> Result<String> {
        read_all(&self.open_file(path)?)
    }

    /// Reads a file that holds one number; `max` is `u64::MAX`.
    pub(super) fn read_number(&self, path: &str) -> Result<u64> {
        let text = self.read(path)?;
        match text.trim() {
            "max" => Ok(u64::MAX),
            number => number.parse().map_err(|_| Errno::INVAL),
        }
    }

    /// Reads one number of a file of lines `key number`.
    pub(super) fn read_key(&self, path: &str, key: &str) -> Result<Option<u64>> {
        Ok(key_of(&self.read(path)?, key))
    }

    /// Names of the directories in a directory; none if it is gone.
    pub(super) fn children(&self, path: &str) -> Result<Vec<String>> {
        let dir = match self.open_dir(path) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut names = Vec::new();
        for entry in Dir::new(dir)? {
            let entry = match entry {
                Ok(entry) => entry,
                // the directory went away while it was read
                Err(Errno::NOENT) => break,
                Err(e) => return Err(e),
            };
            if entry.file_type() != FileType::Directory {
                continue;
            }
            if let Ok(name) = entry.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Process ids in a cgroup and all below it; what is gone counts as empty.
    pub(super) fn processes(&self, path: &str) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        let mut open = vec![path.to_owned()];
        while let Some(dir) = open.pop() {
            match self.read(&format!("{dir}/cgroup.procs")) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
                // EOPNOTSUPP: a threaded cgroup, whose processes are listed in the one above
                Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => {}
                Err(e) => return Err(e),
            }
            open.extend(self.children(&dir)?.into_iter().map(|name| format!("{dir}/{name}")));
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Removes a directory unless something is in it.
    pub(super) fn remove_empty(&self, path: &str) -> Result<()> {
        match rustix::fs::unlinkat(&self.root, path, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::BUSY | Errno::NOTEMPTY) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Removes a directory and all below it, the deepest first. While the kernel says busy (processes that are just
    /// ending), tries again until `deadline`.
    pub(super) fn remove(&self, path: &str, deadline: Instant) -> Result<()> {
        let mut pause = Duration::from_micros(500);
        loop {
            match rustix::fs::unlinkat(&self.root, path, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::BUSY | Errno::NOTEMPTY) => {}
                Err(e) => return Err(e),
            }
            let children = self.children(path)?;
            let leaf = children.is_empty();
            for name in children {
                self.remove(&format!("{path}/{name}"), deadline)?;
            }
            if leaf {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(Errno::BUSY);
                }
                std::thread::sleep(pause.min(left));
                pause = (pause * 2).min(Duration::from_millis(20));
            }
        }
    }
}

/// Reads from the start of a descriptor to its end.
pub(super) fn read_all(file: &OwnedFd) -> Result<String> {
    let mut bytes = Vec::new();
    let mut buffer = [0_u8; 4096];
    loop {
        match retry_on_intr(|| rustix::io::pread(file, &mut buffer[..], bytes.len() as u64))? {
            0 => return String::from_utf8(bytes).map_err(|_| Errno::ILSEQ),
            n => bytes.extend_from_slice(&buffer[..n]),
        }
    }
}

/// One number of a text of lines `key number`.
pub(super) fn key_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}
