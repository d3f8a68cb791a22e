//! Descriptors in a tree that somebody else changes meanwhile: confined opening, and what must not be opened.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::error::FilesError;

/// How often a resolution is tried that the kernel gave up because of a rename at the same time.
const TRIES: usize = 64;

/// Filesystems that are no store of files: reading and writing there is talking to the kernel or to another program.
const PSEUDO: [(u64, &str); 22] = [
    (0x9fa0, "procfs"),
    (0x6265_6572, "sysfs"),
    (0x0027_e0eb, "a cgroup filesystem"),
    (0x6367_7270, "a cgroup filesystem"),
    (0x1cd1, "devpts"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x7363_6673, "securityfs"),
    (0xcafe_4a11, "bpffs"),
    (0xf97c_ff8c, "selinuxfs"),
    (0x4341_5d53, "smackfs"),
    (0x1980_0202, "mqueue"),
    (0x6e73_6673, "nsfs"),
    (0x5346_544e, "a filesystem of the kernel"),
    (0xde5e_81e4, "efivarfs"),
    (0x6165_676c, "pstore"),
    (0x6265_6570, "configfs"),
    (0x4249_4e4d, "binfmt_misc"),
    (0x6573_5543, "fusectl"),
    (0x6573_5546, "FUSE, which another program answers for"),
    (0x0187, "autofs"),
    (0x0765_5821, "resctrl"),
];

/// Opens without the object being touched: a descriptor to ask and to resolve from. Retries what a rename disturbed.
pub fn path_fd(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
    for _ in 0..TRIES {
        match rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve | ResolveFlags::NO_MAGICLINKS) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// Below `dir`, through directories only: neither symbolic links nor `..` lead out.
pub const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

/// The name of the filesystem of a descriptor, where that is none to work on.
pub fn pseudo(fd: impl AsFd) -> Result<Option<&'static str>, Errno> {
    // the type's width and sign differ between architectures; the magic numbers have 32 bits
    let magic = rustix::fs::fstatfs(fd)?.f_type as u64 & 0xffff_ffff;
    Ok(PSEUDO.iter().find(|(number, _)| *number == magic).map(|(_, name)| *name))
}

/// Refuses a filesystem that is none to work on.
pub fn check_store(fd: impl AsFd, shown: &str) -> Result<(), FilesError> {
    match pseudo(fd).map_err(|error| FilesError::of(shown, error))? {
        Some(name) => Err(FilesError::Refused(format!("{shown}: it lies on {name}, which is not copied"))),
        None => Ok(()),
    }
}

/// The type of what a descriptor holds.
pub fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// What a type is called.
pub fn word(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Unknown => "of a type that is not known",
    }
}

/// Opens for reading what an `O_PATH` descriptor holds, which was seen to be a regular file or a directory: no name is
/// resolved again, so that nothing else can be there.
pub fn reopen(held: &OwnedFd) -> Result<OwnedFd, Errno> {
    let link = format!("/proc/self/fd/{}", held.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, link, flags, Mode::empty())
}

/// A path or a name from a container, for people: no control characters, not long.
pub fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(300).flat_map(char::escape_debug).collect()
}
