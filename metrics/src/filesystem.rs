//! Room on a file system, what kind it is, and whether project quotas are enforced on it.

use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags};

use crate::host::FactsError;

/// The file system that a path is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystem {
    /// Its kind, e.g. `ext4`.
    pub kind: String,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Its size, bytes.
    pub total_bytes: u64,
    /// Bytes that programs without privilege can still write.
    pub available_bytes: u64,
    /// Most files and folders it can hold; 0 where there is no such limit (btrfs).
    pub total_inodes: u64,
    /// Files and folders that can still be made.
    pub available_inodes: u64,
    /// Whether project quotas are enforced (`prjquota`).
    pub project_quota: bool,
    /// Whether it is mounted read-only.
    pub read_only: bool,
}

/// Reads about the file system that `path` is on.
pub fn filesystem(path: &Path) -> Result<FileSystem, FactsError> {
    let room = rustix::fs::statvfs(path).map_err(|e| FactsError::new(path, e))?;
    let stat =
        rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).map_err(|e| FactsError::new(path, e))?;
    let table = Path::new("/proc/self/mountinfo");
    let text = std::fs::read_to_string(table).map_err(|e| FactsError::new(table, e))?;
    // By the mount's number: device numbers in the table differ from those of files on btrfs and overlayfs.
    let mount = Mount::find(&text, stat.stx_mnt_id)
        .ok_or_else(|| FactsError::new(path, format!("its mount {} is not in {}", stat.stx_mnt_id, table.display())))?;
    Ok(FileSystem {
        project_quota: mount.project_quota(),
        kind: mount.kind,
        mount_point: mount.point,
        total_bytes: room.f_blocks.saturating_mul(room.f_frsize),
        available_bytes: room.f_bavail.saturating_mul(room.f_frsize),
        total_inodes: room.f_files,
        available_inodes: room.f_favail,
        read_only: room.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
    })
}

/// One line of `mountinfo`.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    kind: String,
    options: String,
}

impl Mount {
    fn find(table: &str, id: u64) -> Option<Self> {
        table.lines().find_map(|line| {
            let (mount, file_system) = line.split_once(" - ")?;
            let mut mount = mount.split(' ');
            if mount.next()?.parse() != Ok(id) {
                return None;
            }
            let point = mount.nth(3)?;
            let mut file_system = file_system.split(' ');
            Some(Self {
                point: unescape(point),
                kind: file_system.next()?.to_owned(),
                options: file_system.nth(1)?.to_owned(),
            })
        })
    }

    /// `prjquota` on ext4, xfs and f2fs; xfs shows `pqnoenforce` where it only counts.
    fn project_quota(&self) -> bool {
        let mut options = self.options.split(',');
        options.any(|option| matches!(option, "prjquota" | "pquota"))
    }
}

/// Undoes the octal escapes of `mountinfo`.
fn unescape(text: &str) -> PathBuf {
    let text = text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\");
    PathBuf::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_number_and_quota_is_told_apart() {
        let table = "21 1 254:0 / / rw,relatime - ext4 /dev/vda rw,prjquota\n\
                     22 21 254:1 / /my\\040data rw shared:1 master:2 - xfs /dev/vdb rw,attr2,inode64,prjquota\n\
                     23 21 254:2 / /c rw - xfs /dev/vdc rw,pqnoenforce\n\
                     24 21 0:30 /sub /d rw - btrfs /dev/vdd rw,space_cache=v2,subvol=/sub\n";
        let quota = |id| Mount::find(table, id).unwrap().project_quota();
        assert!(quota(21) && quota(22) && !quota(23) && !quota(24));
        let data = Mount::find(table, 22).unwrap();
        assert_eq!((data.point.as_path(), data.kind.as_str()), (Path::new("/my data"), "xfs"));
        assert_eq!(Mount::find(table, 2), None);
        assert_eq!(Mount::find("garbage\n", 1), None);
    }

    #[test]
    fn this_host_has_room_and_a_missing_path_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let found = filesystem(dir.path()).unwrap();
        assert!(found.total_bytes >= found.available_bytes && found.available_bytes > 0);
        assert!(dir.path().canonicalize().unwrap().starts_with(&found.mount_point), "{found:?}");
        assert!(!found.kind.is_empty() && !found.read_only);
        assert_eq!(filesystem(Path::new("/proc")).unwrap().kind, "proc");
        let error = filesystem(&dir.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("none: "), "{error}");
    }
}
