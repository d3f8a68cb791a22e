//! Reading small files of the kernel, by directory descriptor, into one buffer that is used again and again.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::retry_on_intr;

/// Files are cut at this many bytes: a list of more than half a million processes.
const MOST: usize = 4 * 1024 * 1024;

/// A read that gives fewer bytes has come to the end, and need not be followed by one that gives none: the kernel makes such
/// files by the page (`seq_read_iter` in fs/seq_file.c) and ends a page only where the next line does not fit.
const WHOLE: usize = 2048;

/// An open directory.
#[derive(Debug)]
pub(super) struct Directory(OwnedFd);

impl Directory {
    /// Opens a directory; none if it is gone, or may not be opened.
    pub(super) fn open(path: &Path) -> Option<Self> {
        rustix::fs::open(path, Self::FLAGS, Mode::empty()).ok().map(Self)
    }

    /// Opens a directory in this one.
    pub(super) fn child(&self, name: impl rustix::path::Arg) -> Option<Self> {
        rustix::fs::openat(&self.0, name, Self::FLAGS | OFlags::NOFOLLOW, Mode::empty()).ok().map(Self)
    }

    /// Its inode.
    pub(super) fn inode(&self) -> Option<u64> {
        rustix::fs::fstat(&self.0).ok().map(|stat| stat.st_ino)
    }

    /// How many directories it has, on cgroupfs, which keeps the number of links right.
    pub(super) fn children(&self) -> Option<u64> {
        rustix::fs::fstat(&self.0).ok().map(|stat| stat.st_nlink.saturating_sub(2))
    }

    const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A buffer for the text of one file at a time.
#[derive(Debug)]
pub(super) struct Buffer(Vec<u8>);

impl Default for Buffer {
    fn default() -> Self {
        Self(vec![0; 16 * 1024])
    }
}

impl Buffer {
    /// Reads a file to its end; none if it cannot be opened or read (missing, turned off, its cgroup gone), or is no text.
    pub(super) fn read(&mut self, directory: impl AsFd, name: &CStr) -> Option<&str> {
        std::str::from_utf8(self.read_bytes(directory, name)?).ok()
    }

    /// The same of a file that need not be text.
    pub(super) fn read_bytes(&mut self, directory: impl AsFd, name: &CStr) -> Option<&[u8]> {
        let file = rustix::fs::openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut length = 0;
        loop {
            if length == self.0.len() {
                if length >= MOST {
                    break;
                }
                self.0.resize(length * 2, 0);
            }
            match retry_on_intr(|| rustix::io::read(&file, &mut self.0[length..])).ok()? {
                0 => break,
                read => {
                    length += read;
                    if read < WHOLE {
                        break;
                    }
                }
            }
        }
        Some(&self.0[..length])
    }
}

/// The numbers of a text of lines `key number`; lines that are not such are left out.
pub(super) fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, number) = line.split_once(' ')?;
        Some((key, number.trim_ascii().parse().ok()?))
    })
}

/// The number that a text is; none for `max` and whatever else is no number.
pub(super) fn number(text: &str) -> Option<u64> {
    text.trim_ascii().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_leave_out_what_is_none() {
        let text = "usage_usec 12\n\nTotal\nnegative -1\nlong 99999999999999999999\nspaced 7 \nthree 1 2\nlast 3";
        assert_eq!(pairs(text).collect::<Vec<_>>(), [("usage_usec", 12), ("spaced", 7), ("last", 3)]);
        assert_eq!(
            (number("42\n"), number("max\n"), number(""), number("18446744073709551615")),
            (Some(42), None, None, Some(u64::MAX))
        );
    }

    #[test]
    fn files_larger_than_the_buffer_are_read_whole_and_missing_ones_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let text = "0123456789\n".repeat(10_000);
        std::fs::write(folder.path().join("long"), &text).unwrap();
        std::fs::write(folder.path().join("short"), "x").unwrap();
        std::fs::write(folder.path().join("binary"), [0xff, 0xfe]).unwrap();
        let directory = Directory::open(folder.path()).unwrap();
        let mut buffer = Buffer::default();
        assert_eq!(buffer.read(&directory, c"long"), Some(&*text));
        assert_eq!(buffer.read(&directory, c"short"), Some("x"));
        assert_eq!(buffer.read(&directory, c"binary"), None);
        assert_eq!(buffer.read(&directory, c"none"), None);
        assert!(Directory::open(&folder.path().join("none")).is_none());
        assert!(directory.child("short").is_none(), "a file is no directory");
    }
}
