//! Lists and reads below a folder of the host that a container writes (its sandbox). Blocking.
//!
//! `below` is relative to that folder; an empty one is the folder itself. Symbolic links are not followed, and `..` does
//! not lead out: whatever the container puts there, nothing else of the host is reached.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use jiff::Timestamp;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::error::FilesError;
use super::tree::{self, BENEATH};

/// Most entries of a directory that are listed: all of them are held in memory.
pub const MOST_ENTRIES: usize = 100_000;

/// Most bytes of one [`read`].
pub const MOST_BYTES: usize = 8 << 20;

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path relative to the folder, that of the directory included.
    pub path: String,
    /// Type and permissions as `ls -l` shows them, e.g. `-rw-r--r--`.
    pub mode: String,
    /// Number of hard links.
    pub nlink: u64,
    /// Owner on the host.
    pub uid: u32,
    /// Group on the host.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Last change of the content.
    pub mtime: Timestamp,
}

/// The entries of the directory `below` the folder `root`, by name.
pub fn browse(root: &Path, below: &str) -> Result<Vec<Entry>, FilesError> {
    let shown = tree::shown(below.as_bytes());
    let held = find(root, below, &shown)?;
    let fault = |error| FilesError::of(&shown, error);
    let stat = rustix::fs::fstat(&held).map_err(fault)?;
    if tree::kind(&stat) != FileType::Directory {
        let kind = tree::word(tree::kind(&stat));
        return Err(FilesError::Refused(format!("{shown}: it is {kind}, expected a directory")));
    }
    let dir = tree::reopen(&held).map_err(fault)?;
    let prefix = match below.trim_matches('/') {
        "" => String::new(),
        path => format!("{path}/"),
    };
    let mut entries = Vec::new();
    for entry in Dir::read_from(&dir).map_err(fault)? {
        let entry = entry.map_err(fault)?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT) {
            Ok(stat) => stat,
            // removed meanwhile
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(fault(error)),
        };
        if entries.len() == MOST_ENTRIES {
            let message =
                format!("{shown}: the directory has more than {MOST_ENTRIES} entries, the most that is listed");
            return Err(FilesError::Refused(message));
        }
        entries.push(Entry {
            path: format!("{prefix}{}", name.to_string_lossy()),
            mode: mode_text(&stat),
            nlink: stat.st_nlink as u64,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: modified(&stat),
        });
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

/// Bytes of the regular file `below` the folder `root` from `offset` on, at most `length` and [`MOST_BYTES`], and the
/// file's size. At and behind its end there are none.
pub fn read(root: &Path, below: &str, offset: u64, length: usize) -> Result<(Vec<u8>, u64), FilesError> {
    let shown = tree::shown(below.as_bytes());
    let held = find(root, below, &shown)?;
    let fault = |error| FilesError::of(&shown, error);
    let stat = rustix::fs::fstat(&held).map_err(fault)?;
    if tree::kind(&stat) != FileType::RegularFile {
        let kind = tree::word(tree::kind(&stat));
        return Err(FilesError::Refused(format!("{shown}: it is {kind}, expected a regular file")));
    }
    let file = tree::reopen(&held).map_err(fault)?;
    let size = u64::try_from(rustix::fs::fstat(&file).map_err(fault)?.st_size).unwrap_or(0);
    let wanted = size.saturating_sub(offset).min(length.min(MOST_BYTES) as u64) as usize;
    let mut bytes = vec![0; wanted];
    let mut done = 0;
    while done < wanted {
        match rustix::io::pread(&file, &mut bytes[done..], offset + done as u64) {
            // cut short meanwhile
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(fault(error)),
        }
    }
    bytes.truncate(done);
    Ok((bytes, size))
}

/// A descriptor of what lies there, nothing of it opened yet.
fn find(root: &Path, below: &str, shown: &str) -> Result<OwnedFd, FilesError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(CWD, root.as_os_str().as_bytes(), flags, Mode::empty())
        .map_err(|error| FilesError::of(shown, error))?;
    if below.contains('\0') {
        return Err(FilesError::NotFound);
    }
    if below.split('/').any(|part| part == "..") {
        return Err(FilesError::Refused(format!("{shown}: found .. in the path; name the file from the folder down")));
    }
    let path = if below.is_empty() { b"." } else { below.as_bytes() };
    let held =
        tree::path_fd(folder.as_fd(), path, OFlags::NOFOLLOW, BENEATH).map_err(|error| FilesError::of(shown, error))?;
    tree::check_store(&held, shown)?;
    Ok(held)
}

fn modified(stat: &Stat) -> Timestamp {
    // no filesystem here holds a time that jiff cannot
    Timestamp::new(stat.st_mtime, stat.st_mtime_nsec as i32).unwrap_or_default()
}

/// Type and permissions as `ls -l` shows them.
pub(super) fn mode_text(stat: &Stat) -> String {
    let mode = stat.st_mode;
    let kind = match tree::kind(stat) {
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
        FileType::CharacterDevice => 'c',
        FileType::BlockDevice => 'b',
        FileType::RegularFile | FileType::Unknown => '-',
    };
    let mut text = String::with_capacity(10);
    text.push(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::Builder::new().prefix(&format!("agentd-test-{}-", std::process::id())).tempdir().unwrap()
    }

    #[test]
    fn directories_are_listed_by_name_with_what_ls_shows() {
        let folder = folder();
        let sub = folder.path().join("sub");
        std::fs::create_dir(&sub).unwrap();
        std::fs::write(sub.join("b"), "12345").unwrap();
        std::fs::set_permissions(sub.join("b"), std::fs::Permissions::from_mode(0o4640)).unwrap();
        std::fs::write(sub.join("a"), "").unwrap();
        symlink("/etc", sub.join("link")).unwrap();
        let entries = browse(folder.path(), "sub").unwrap();
        let seen: Vec<(&str, &str, u64)> = entries.iter().map(|e| (&*e.path, &*e.mode, e.size)).collect();
        assert_eq!(seen[1], ("sub/b", "-rwSr-----", 5));
        assert_eq!((seen[0].0, seen[2].0, &seen[2].1[..1]), ("sub/a", "sub/link", "l"));
        assert!(entries.iter().all(|e| e.nlink == 1 && e.mtime > Timestamp::UNIX_EPOCH));
        assert_eq!(browse(folder.path(), "").unwrap()[0].path, "sub");
        assert!(matches!(browse(folder.path(), "sub/a"), Err(FilesError::Refused(_))));
    }

    #[test]
    fn pieces_of_a_file_are_read() {
        let folder = folder();
        std::fs::write(folder.path().join("f"), "0123456789").unwrap();
        let piece = |offset, length| read(folder.path(), "f", offset, length).unwrap();
        assert_eq!(piece(0, 100), (b"0123456789".to_vec(), 10));
        assert_eq!(piece(8, 1), (b"8".to_vec(), 10));
        assert_eq!(piece(10, 5), (Vec::new(), 10));
        assert_eq!(piece(u64::MAX, usize::MAX), (Vec::new(), 10));
        assert_eq!(piece(0, 0), (Vec::new(), 10));
    }

    #[test]
    fn nothing_leads_out_of_the_folder() {
        let outer = folder();
        let root = outer.path().join("root");
        std::fs::create_dir_all(root.join("d")).unwrap();
        std::fs::write(outer.path().join("secret"), "secret").unwrap();
        symlink("../secret", root.join("up")).unwrap();
        symlink(outer.path().join("secret"), root.join("absolute")).unwrap();
        symlink("..", root.join("dir")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        symlink("d", root.join("inside")).unwrap();
        let bad = [
            "../secret",
            "d/../../secret",
            "/etc/passwd",
            "up",
            "absolute",
            "dir/secret",
            "dir",
            "magic/etc/passwd",
            "inside/x",
            "d/../up",
            "..",
            "./../secret",
            "//etc/passwd",
            "d/./../../secret",
        ];
        for path in bad {
            assert!(matches!(read(&root, path, 0, 10), Err(FilesError::Refused(_))), "{path}");
            assert!(matches!(browse(&root, path), Err(FilesError::Refused(_))), "{path}");
        }
        assert_eq!(read(&root, "missing", 0, 10), Err(FilesError::NotFound));
        assert_eq!(read(&root, "a\0b", 0, 10), Err(FilesError::NotFound));
        assert_eq!(browse(&root.join("gone"), ""), Err(FilesError::NotFound));
    }

    #[test]
    fn fifos_and_devices_are_not_read() {
        let folder = folder();
        rustix::fs::mknodat(CWD, folder.path().join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let error = read(folder.path(), "fifo", 0, 1).unwrap_err();
        assert!(error.to_string().contains("a FIFO"), "{error}");
        assert_eq!(&browse(folder.path(), "").unwrap()[0].mode[..1], "p");
        assert!(matches!(browse(Path::new("/proc"), "self"), Err(FilesError::Refused(_))));
    }
}
