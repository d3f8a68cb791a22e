//! A tar stream from a container, unpacked below a folder of this machine. Blocking.
//!
//! The container is not trusted: every folder on the way to an entry is opened beneath the one that was asked for and
//! through no symbolic link, whether that came with the archive or was there before; names that lead up or begin at the
//! root are refused, devices are, and files lose their set-user-id bits. What is written lies under a temporary name until
//! it is whole, so that nothing is written through what is in its place.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::super::failure::{Failure, Result, clean};
use crate::files::archive::{Archive, Entry, Kind};
use crate::files::tree::{self, BENEATH, shown};

/// Bytes that are written at once.
const PIECE: usize = 128 << 10;

/// Most parts of a name.
const DEEPEST: usize = 256;

/// How names in the archive become names here.
#[derive(Debug)]
pub struct Naming {
    /// Whether every name begins with that of what is copied, which is left out.
    pub strip: bool,
    /// What comes in its place.
    pub name: Option<Vec<u8>>,
}

/// What was written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// What the daemon left out, and why.
    pub notes: Vec<String>,
}

/// Unpacks below a folder. With `owners` files belong to whom the archive says, else to who runs this.
pub fn unpack(folder: &OwnedFd, naming: &Naming, owners: bool, source: impl Read) -> Result<Unpacked> {
    let mut unpacker =
        Unpacker { folder, naming, owners, open: Vec::new(), done: Unpacked::default(), buffer: vec![0; PIECE] };
    let mut archive = Archive::new(source);
    while let Some(entry) = archive.next_entry().map_err(|error| Failure::failed(error.to_string()))? {
        let called = shown(&entry.name);
        let parts = naming.parts(&entry.name).map_err(|what| fault(&called, what))?;
        unpacker.close_but(&parts.join(&b'/')).map_err(|error| fault(&called, error))?;
        unpacker.entry(&parts, &entry, &mut archive).map_err(|what| fault(&called, what))?;
        unpacker.done.entries += 1;
    }
    unpacker.close_but(b"").map_err(|error| fault("the folders", error))?;
    unpacker.done.notes = archive.notes();
    Ok(unpacker.done)
}

fn fault(called: &str, what: impl std::fmt::Display) -> Failure {
    Failure::failed(format!("{called}: {what}"))
}

impl Naming {
    /// The parts of a name here.
    fn parts<'a>(&'a self, name: &'a [u8]) -> std::result::Result<Vec<&'a [u8]>, &'static str> {
        if name.starts_with(b"/") {
            return Err("an absolute name in the archive");
        }
        if name.contains(&0) {
            return Err("a NUL byte in a name of the archive");
        }
        let parts = name.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
        let parts: Vec<&[u8]> = self.name.as_deref().into_iter().chain(parts.skip(usize::from(self.strip))).collect();
        if parts.contains(&b"..".as_slice()) || name.split(|byte| *byte == b'/').any(|part| part == b"..") {
            return Err(".. in a name of the archive");
        }
        if parts.len() > DEEPEST { Err("too many folders one in another") } else { Ok(parts) }
    }
}

struct Unpacker<'a> {
    folder: &'a OwnedFd,
    naming: &'a Naming,
    owners: bool,
    /// New folders that entries may still come for; they get their attributes when the first comes that is elsewhere.
    open: Vec<(Vec<u8>, Entry)>,
    done: Unpacked,
    buffer: Vec<u8>,
}

/// Why an entry cannot be written.
#[derive(Debug)]
struct Fault(String);

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Fault {
    fn from(what: &str) -> Self {
        Self(what.to_owned())
    }
}

impl From<Errno> for Fault {
    fn from(error: Errno) -> Self {
        Self(match error {
            Errno::LOOP => "a symbolic link is on the way there, which is not followed; remove it first".to_owned(),
            Errno::XDEV => "it leads out of the folder that is copied to".to_owned(),
            Errno::ISDIR => "a folder is in its place; remove it first".to_owned(),
            Errno::NOTDIR => "something that is no folder is on the way there; remove it first".to_owned(),
            other => io::Error::from(other).to_string(),
        })
    }
}

type Step = std::result::Result<(), Fault>;

impl Unpacker<'_> {
    fn entry(&mut self, parts: &[&[u8]], entry: &Entry, archive: &mut Archive<impl Read>) -> Step {
        let Some((name, above)) = parts.split_last() else {
            // the folder itself, which is there
            return if entry.kind == Kind::Directory { Ok(()) } else { Err("an entry without a name".into()) };
        };
        let parent = self.parent(above)?;
        match entry.kind {
            Kind::Directory => {
                if make_folder(parent.as_fd(), name)? {
                    self.open.push((parts.join(&b'/'), entry.clone()));
                }
                Ok(())
            }
            Kind::File => self.file(&parent, name, entry, archive),
            Kind::Symlink => {
                if entry.link.is_empty() {
                    return Err("a symbolic link without a target".into());
                }
                let temporary = Temporary::new(&parent);
                rustix::fs::symlinkat(entry.link.as_slice(), &parent, temporary.name.as_str())?;
                if self.owners {
                    let (uid, gid) = owner(entry);
                    rustix::fs::chownat(&parent, temporary.name.as_str(), uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
                }
                temporary.become_named(name)
            }
            Kind::HardLink => self.hard_link(&parent, name, entry),
        }
    }

    /// The folder of an entry, its missing parts made.
    fn parent(&self, above: &[&[u8]]) -> std::result::Result<OwnedFd, Fault> {
        let mut held = self.folder.try_clone().map_err(|error| Fault(error.to_string()))?;
        if above.is_empty() {
            return Ok(held);
        }
        match tree::path_fd(held.as_fd(), &above.join(&b'/'), OFlags::DIRECTORY | OFlags::NOFOLLOW, BENEATH) {
            Err(Errno::NOENT) => {}
            result => return Ok(result?),
        }
        for part in above {
            make_folder(held.as_fd(), part)?;
            held = tree::path_fd(held.as_fd(), part, OFlags::DIRECTORY | OFlags::NOFOLLOW, BENEATH)?;
        }
        Ok(held)
    }

    fn file(&mut self, parent: &OwnedFd, name: &[u8], entry: &Entry, archive: &mut Archive<impl Read>) -> Step {
        let temporary = Temporary::new(parent);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, temporary.name.as_str(), flags, Mode::RUSR | Mode::WUSR)?;
        loop {
            let count = archive.read(&mut self.buffer).map_err(|error| Fault(error.to_string()))?;
            if count == 0 {
                break;
            }
            let mut rest = &self.buffer[..count];
            while !rest.is_empty() {
                match rustix::io::write(&file, rest) {
                    Ok(written) => rest = &rest[written..],
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            self.done.bytes += count as u64;
        }
        if self.owners {
            let (uid, gid) = owner(entry);
            rustix::fs::fchown(&file, uid, gid)?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode & 0o777))?;
        rustix::fs::futimens(&file, &times(entry))?;
        temporary.become_named(name)
    }

    fn hard_link(&self, parent: &OwnedFd, name: &[u8], entry: &Entry) -> Step {
        let target = self.naming.parts(&entry.link)?;
        let Some((last, above)) = target.split_last() else { return Err("a hard link without a target".into()) };
        let folder = if above.is_empty() {
            self.folder.try_clone().map_err(|error| Fault(error.to_string()))?
        } else {
            tree::path_fd(self.folder.as_fd(), &above.join(&b'/'), OFlags::DIRECTORY | OFlags::NOFOLLOW, BENEATH)?
        };
        let held = tree::path_fd(folder.as_fd(), last, OFlags::NOFOLLOW, BENEATH)?;
        if !matches!(tree::kind(&rustix::fs::fstat(&held)?), FileType::RegularFile) {
            return Err("a hard link to something that is no file".into());
        }
        let temporary = Temporary::new(parent);
        // the last part is not followed
        rustix::fs::linkat(&folder, *last, parent, temporary.name.as_str(), AtFlags::empty())?;
        temporary.become_named(name)
    }

    /// Gives the new folders that `next` does not lie in their attributes.
    fn close_but(&mut self, next: &[u8]) -> Step {
        while let Some((path, _)) = self.open.last() {
            if next.strip_prefix(path.as_slice()).is_some_and(|rest| rest.starts_with(b"/")) {
                break;
            }
            let Some((path, entry)) = self.open.pop() else { break };
            let held = tree::path_fd(self.folder.as_fd(), &path, OFlags::DIRECTORY | OFlags::NOFOLLOW, BENEATH)?;
            // what is only held cannot be changed by its descriptor alone
            let itself = format!("/proc/self/fd/{}", held.as_raw_fd());
            if self.owners {
                let (uid, gid) = owner(&entry);
                rustix::fs::chownat(&held, "", uid, gid, AtFlags::EMPTY_PATH)?;
            }
            rustix::fs::chmodat(CWD, &itself, Mode::from_raw_mode(entry.mode & 0o1777), AtFlags::empty())?;
            rustix::fs::utimensat(CWD, &itself, &times(&entry), AtFlags::empty())?;
        }
        Ok(())
    }
}

/// Makes a folder; false where it is there already.
fn make_folder(parent: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<bool, Fault> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => {
            tree::path_fd(parent, name, OFlags::DIRECTORY | OFlags::NOFOLLOW, BENEATH)?;
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

fn times(entry: &Entry) -> Timestamps {
    let (seconds, nanoseconds) = entry.mtime;
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// A name in a folder that is removed unless it becomes another.
struct Temporary<'a> {
    parent: &'a OwnedFd,
    name: String,
}

impl<'a> Temporary<'a> {
    fn new(parent: &'a OwnedFd) -> Self {
        Self { parent, name: format!(".agentctl-cp-{}", uuid::Uuid::new_v4().simple()) }
    }

    /// Takes another name. A file or a link that had it gives way; anything else, a device for one, does not.
    fn become_named(self, name: &[u8]) -> Step {
        if let Ok(stat) = rustix::fs::statat(self.parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            let kind = tree::kind(&stat);
            if !matches!(kind, FileType::RegularFile | FileType::Symlink | FileType::Directory) {
                return Err(Fault(format!("{} is in its place; name another", tree::word(kind))));
            }
        }
        // when both are names of one file, this does nothing, and the drop removes the temporary one
        Ok(rustix::fs::renameat(self.parent, self.name.as_str(), self.parent, name)?)
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        // after a rename it is not there
        let _ = rustix::fs::unlinkat(self.parent, self.name.as_str(), AtFlags::empty());
    }
}

/// Lines of the daemon for people.
pub fn tell(notes: &[String]) {
    for note in notes {
        eprintln!("agentctl: {}", clean(note));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::Path;

    use tar::EntryType;

    use super::*;
    use crate::files::header::{Member, end, padding};

    fn folder() -> tempfile::TempDir {
        tempfile::Builder::new().prefix(&format!("agentd-test-{}-", std::process::id())).tempdir().unwrap()
    }

    /// An archive of entries: name, type, content or target.
    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, kind, text) in entries {
            let link = if matches!(kind, EntryType::Symlink | EntryType::Link) { text.as_bytes() } else { b"" };
            let content = if *kind == EntryType::Regular { text.as_bytes() } else { b"" };
            let size = content.len() as u64;
            let member =
                Member { name: name.as_bytes(), kind: *kind, mode: 0o4751, uid: 7, gid: 7, size, mtime: 1000, link };
            bytes.extend(member.blocks());
            bytes.extend_from_slice(content);
            bytes.resize(bytes.len() + padding(size), 0);
        }
        bytes.extend(end(""));
        bytes
    }

    fn into(folder: &Path, naming: &Naming, entries: &[(&str, EntryType, &str)]) -> Result<Unpacked> {
        let held = OwnedFd::from(std::fs::File::open(folder).unwrap());
        unpack(&held, naming, false, archive(entries).as_slice())
    }

    const AS_IT_IS: Naming = Naming { strip: false, name: None };

    #[test]
    fn a_tree_arrives_under_its_new_name() {
        let here = folder();
        let naming = Naming { strip: true, name: Some(b"copy".to_vec()) };
        let entries = [
            ("web/", EntryType::Directory, ""),
            ("web/deep/", EntryType::Directory, ""),
            ("web/deep/f", EntryType::Regular, "content"),
            ("web/l", EntryType::Symlink, "deep/f"),
            ("web/h", EntryType::Link, "web/deep/f"),
        ];
        let done = into(here.path(), &naming, &entries).unwrap();
        assert_eq!((done.entries, done.bytes), (5, 7));
        let file = here.path().join("copy/deep/f");
        assert_eq!(std::fs::read_to_string(here.path().join("copy/l")).unwrap(), "content");
        let metadata = std::fs::metadata(&file).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.mtime(), metadata.nlink()), (0o751, 1000, 2));
        assert_eq!(metadata.uid(), rustix::process::geteuid().as_raw());
        assert_eq!(std::fs::read_dir(here.path().join("copy")).unwrap().count(), 3, "nothing temporary is left");
    }

    #[test]
    fn a_hostile_archive_stays_below_the_folder() {
        let outside = folder();
        let victim = outside.path().join("victim");
        std::fs::write(&victim, "untouched").unwrap();
        let target = outside.path().to_str().unwrap();
        let here = folder();
        symlink(target, here.path().join("old")).unwrap();
        let hostile: [&[(&str, EntryType, &str)]; 9] = [
            &[("../victim", EntryType::Regular, "x")],
            &[("a/../../victim", EntryType::Regular, "x")],
            &[(victim.to_str().unwrap(), EntryType::Regular, "x")],
            &[("out", EntryType::Symlink, target), ("out/victim", EntryType::Regular, "x")],
            &[("out2", EntryType::Symlink, target), ("out2/new/", EntryType::Directory, "")],
            &[("old/victim", EntryType::Regular, "x")],
            &[("h", EntryType::Link, "old/victim")],
            &[("h", EntryType::Link, "../victim")],
            &[("node", EntryType::Char, "")],
        ];
        for entries in hostile {
            assert!(into(here.path(), &AS_IT_IS, entries).is_err(), "{entries:?}");
        }
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
        // with the first part left out too
        let naming = Naming { strip: true, name: None };
        assert!(into(here.path(), &naming, &[("../victim", EntryType::Regular, "x")]).is_err());
    }

    #[test]
    fn a_link_in_a_files_place_is_replaced_and_not_written_through() {
        let here = folder();
        let victim = here.path().join("victim");
        std::fs::write(&victim, "untouched").unwrap();
        symlink("victim", here.path().join("f")).unwrap();
        into(here.path(), &AS_IT_IS, &[("f", EntryType::Regular, "new")]).unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
        assert!(std::fs::symlink_metadata(here.path().join("f")).unwrap().is_file());
        assert!(into(here.path(), &AS_IT_IS, &[("f/g", EntryType::Regular, "x")]).is_err());
    }
}
