//! Volumes that are a path of the host: which paths may be given to pods, and opening them without a race.
//!
//! The path is opened first and judged by where the descriptor ended up, so a symbolic link that changes meanwhile
//! cannot lead elsewhere.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use agentd_launcher::plan::TargetKind;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, openat2};

use crate::mounter::real_path;

/// The kernel's own file systems: no pod may mount any part of them.
const KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Which paths of the host pods may mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPaths {
    /// Folders of which everything may be mounted, save what is refused.
    pub allowed: Vec<PathBuf>,
    /// agentd's state, run and configuration folders: neither they, nor what is in them, nor a folder that holds them.
    pub refused: Vec<PathBuf>,
}

impl HostPaths {
    /// All of the host but `refused` and the kernel's own file systems.
    pub fn all_but(refused: Vec<PathBuf>) -> Self {
        Self { allowed: vec![PathBuf::from("/")], refused }
    }

    /// Judges a path with all links resolved. The error says what is wrong and the cure.
    fn judge(&self, path: &Path) -> Result<(), String> {
        let shown = path.display();
        // a folder may have been configured by a path with links
        let real = |folder: &PathBuf| std::fs::canonicalize(folder).unwrap_or_else(|_| folder.clone());
        if KERNEL.iter().any(|folder| path.starts_with(folder)) {
            return Err(format!(
                "{shown} is of the kernel's own file systems, which pods do not mount; remove the volume"
            ));
        }
        for folder in self.refused.iter().map(real) {
            if path.starts_with(&folder) {
                return Err(format!("{shown} belongs to agentd; choose another path"));
            }
            if folder.starts_with(path) {
                let folder = folder.display();
                return Err(format!("{shown} holds agentd's folder {folder}; choose a path that does not"));
            }
        }
        if !self.allowed.iter().map(real).any(|folder| path.starts_with(folder)) {
            return Err(format!(
                "{shown} is not in this node's list of allowed host paths ({:?}); add it there",
                self.allowed
            ));
        }
        Ok(())
    }

    /// Opens a path as a handle in the mount namespace of the calling thread.
    pub fn open(&self, path: &str) -> Result<(OwnedFd, TargetKind), String> {
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => format!("{path} does not exist on this host; create it, or correct the path"),
            _ => format!("cannot open {path}: {e}"),
        };
        if !path.starts_with('/') {
            return Err(format!("{path:?} is not absolute; expected a path from / on"));
        }
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let handle =
            openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS).map_err(|e| failed(e.into()))?;
        self.judge(&real_path(&handle).map_err(failed)?)?;
        let stat = rustix::fs::fstat(&handle).map_err(|e| failed(e.into()))?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => TargetKind::Directory,
            FileType::RegularFile => TargetKind::File,
            FileType::Socket => {
                return Err(format!(
                    "{path} is a socket, behind which a pod could act as the host; pods do not get it"
                ));
            }
            _ => return Err(format!("{path} is neither a folder nor a regular file; expected one of them")),
        };
        Ok((handle, kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_allowed_paths_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let base = std::fs::canonicalize(folder.path()).unwrap();
        for name in ["data", "state/secrets", "other"] {
            std::fs::create_dir_all(base.join(name)).unwrap();
        }
        std::fs::write(base.join("file"), "x").unwrap();
        std::os::unix::fs::symlink(base.join("state"), base.join("data/link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(base.join("socket")).unwrap();
        let paths = HostPaths::all_but(vec![base.join("state")]);
        let open = |name: &str| paths.open(base.join(name).to_str().unwrap()).map(|(_, kind)| kind);
        assert_eq!(open("data"), Ok(TargetKind::Directory));
        assert_eq!(open("file"), Ok(TargetKind::File));
        assert!(open("socket").unwrap_err().contains("is a socket"));
        assert!(open("absent").unwrap_err().contains("does not exist"));
        assert!(open("state").unwrap_err().contains("belongs to agentd"));
        assert!(open("state/secrets").unwrap_err().contains("belongs to agentd"));
        assert!(open("data/link/secrets").unwrap_err().contains("belongs to agentd"));
        assert!(open("").unwrap_err().contains("holds agentd's folder"));
        assert!(paths.open("/").unwrap_err().contains("holds agentd's folder"));
        assert!(paths.open("/dev/null").unwrap_err().contains("kernel's own"));
        assert!(paths.open("/proc/self/root/etc").is_err());
        assert!(paths.open("etc").unwrap_err().contains("not absolute"));
        let narrow = HostPaths { allowed: vec![base.join("data")], refused: Vec::new() };
        assert!(narrow.open(base.join("data").to_str().unwrap()).is_ok());
        assert!(narrow.open(base.join("other").to_str().unwrap()).unwrap_err().contains("allowed host paths"));
    }
}
