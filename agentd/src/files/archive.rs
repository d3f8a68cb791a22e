//! Reading a tar stream that a stranger sends: header by header, everything bounded, nothing held but one header.
//!
//! Known are ustar, the PAX keywords `path`, `linkpath`, `size`, `uid`, `gid` and `mtime`, and GNU long names. Sparse
//! files are refused by name: their content is not what follows.

use std::io::{self, Read};

use tar::{EntryType, Header, PaxExtensions};

use super::error::FilesError;
use super::header::{BLOCK, padding};
use super::tree::shown;

/// Longest path of an entry and longest target of a link.
const LONGEST_PATH: u64 = 4095;

/// Largest extended header.
const LARGEST_EXTENSION: u64 = 256 << 10;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Another name of a file that came before.
    HardLink,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name as it stands in the archive.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Where a link leads.
    pub link: Vec<u8>,
    /// Bytes that follow.
    pub size: u64,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change: seconds and nanoseconds.
    pub mtime: (i64, u32),
}

/// A tar stream.
#[derive(Debug)]
pub struct Archive<R> {
    source: R,
    /// Bytes of the present entry's content that were not read yet, and of its padding.
    content: u64,
    padding: usize,
    began: bool,
    /// The last extended header for all entries.
    comment: Vec<u8>,
}

/// What extended headers said about the entry that follows.
#[derive(Debug, Default)]
struct Said {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    headers: u32,
}

fn bad(message: impl Into<String>) -> FilesError {
    FilesError::Archive(message.into())
}

fn broken(error: &io::Error) -> FilesError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => bad("the archive ends in the middle; send it whole"),
        _ => bad(format!("the archive broke off: {error}")),
    }
}

impl<R: Read> Archive<R> {
    /// An archive from its first byte on.
    pub fn new(source: R) -> Self {
        Self { source, content: 0, padding: 0, began: false, comment: Vec::new() }
    }

    /// The next entry; what was not read of the one before is passed over. None at the end.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, FilesError> {
        let mut said = Said::default();
        loop {
            self.pass_over()?;
            let Some(header) = self.header()? else {
                return if said.headers == 0 {
                    Ok(None)
                } else {
                    Err(bad("the archive ends after an extended header"))
                };
            };
            let size = header.entry_size().map_err(|error| bad(format!("a header's size: {error}")))?;
            let kind = header.entry_type();
            let extension = matches!(
                kind,
                EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader
            );
            if !extension {
                return self.entry(&header, said, size).map(Some);
            }
            said.headers += 1;
            if said.headers > 8 {
                return Err(bad("more than 8 extended headers before one entry"));
            }
            self.begin(size);
            let text = self.extension(size)?;
            match kind {
                EntryType::GNULongName => said.name = Some(text),
                EntryType::GNULongLink => said.link = Some(text),
                EntryType::XHeader => said.read(&text)?,
                // defaults for all entries: comments only, in practice
                _ => {
                    self.comment = text;
                    said.headers -= 1;
                }
            }
        }
    }

    /// What whoever made the archive says of it in a PAX comment, line by line: what [`super::pack`] left out, for one.
    pub fn notes(&self) -> Vec<String> {
        let comment = PaxExtensions::new(&self.comment).flatten().find(|record| record.key_bytes() == b"comment");
        let text = comment.map(|record| String::from_utf8_lossy(record.value_bytes()).into_owned());
        text.unwrap_or_default().lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    /// Reads of the present entry's content; 0 bytes at its end.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, FilesError> {
        let most = self.content.min(buffer.len() as u64) as usize;
        if most == 0 {
            return Ok(0);
        }
        match self.source.read(&mut buffer[..most]) {
            Ok(0) => Err(broken(&io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => {
                self.content -= count as u64;
                Ok(count)
            }
            Err(error) => Err(broken(&error)),
        }
    }

    fn begin(&mut self, size: u64) {
        self.content = size;
        self.padding = padding(size);
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, FilesError> {
        if size > LARGEST_EXTENSION {
            return Err(bad(format!("an extended header of {size} bytes, expected at most {LARGEST_EXTENSION}")));
        }
        let mut bytes = vec![0; size as usize];
        self.source.read_exact(&mut bytes).map_err(|error| broken(&error))?;
        self.content = 0;
        while bytes.last() == Some(&0) {
            bytes.pop();
        }
        Ok(bytes)
    }

    fn pass_over(&mut self) -> Result<(), FilesError> {
        let mut piece = [0; 16 << 10];
        while self.content > 0 {
            self.read(&mut piece)?;
        }
        let rest = std::mem::take(&mut self.padding);
        self.source.read_exact(&mut piece[..rest]).map_err(|error| broken(&error))
    }

    /// The next header; none at the end, which a block of zeros marks. What follows it is read and thrown away.
    fn header(&mut self) -> Result<Option<Header>, FilesError> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match self.source.read(&mut block[filled..]) {
                Ok(0) if filled == 0 && !self.began => return Err(bad("the body is empty, expected a tar archive")),
                Ok(0) if filled == 0 => {
                    return Err(bad(
                        "the archive ends without its blocks of zeros, so it may be cut short; send it whole",
                    ));
                }
                Ok(0) => return Err(broken(&io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(&error)),
            }
            if !self.began && filled >= 4 {
                compressed(block)?;
            }
        }
        self.began = true;
        if block.iter().all(|byte| *byte == 0) {
            self.drain()?;
            return Ok(None);
        }
        let sum: u32 = block.iter().enumerate().map(|(at, byte)| checked(at, *byte)).sum();
        match header.cksum() {
            Ok(told) if told == sum => Ok(Some(header)),
            _ => Err(bad("a header's checksum is wrong; expected an uncompressed tar archive")),
        }
    }

    /// What comes after the end: padding to the size of a record. More than that is another archive behind the first.
    fn drain(&mut self) -> Result<(), FilesError> {
        let mut piece = [0; 4096];
        let mut seen = 0;
        loop {
            match self.source.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(count) => seen += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(&error)),
            }
            if seen > 1 << 20 {
                return Err(bad("more than 1 MiB follows the end of the archive; send one archive"));
            }
        }
    }

    fn entry(&mut self, header: &Header, said: Said, size: u64) -> Result<Entry, FilesError> {
        let name = said.name.unwrap_or_else(|| header.path_bytes().into_owned());
        let called = shown(&name);
        let fault = |what: &str| bad(format!("{called}: {what}"));
        let link = said.link.unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
        if name.len().max(link.len()) as u64 > LONGEST_PATH {
            return Err(fault("a path of more than 4095 bytes"));
        }
        let kind = match header.entry_type() {
            // archives older than ustar mark a directory by its name alone
            EntryType::Regular if header.as_ustar().is_none() && header.as_gnu().is_none() && name.ends_with(b"/") => {
                Kind::Directory
            }
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::HardLink,
            EntryType::Char | EntryType::Block => {
                return Err(FilesError::Refused(format!(
                    "{called}: it is a device, which is not copied; leave it out"
                )));
            }
            EntryType::Fifo => {
                return Err(FilesError::Refused(format!("{called}: it is a FIFO, which is not copied; leave it out")));
            }
            EntryType::GNUSparse => return Err(fault("a sparse file; make the archive without --sparse")),
            other => return Err(fault(&format!("an entry of the unknown type {:?}", char::from(other.as_byte())))),
        };
        // of the others, content is passed over
        let size = said.size.unwrap_or(size);
        self.begin(size);
        let id = |told: Option<u64>, field: io::Result<u64>, name: &str| {
            let id = told.or(field.ok()).ok_or_else(|| fault(&format!("its {name} is no number")))?;
            u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or_else(|| fault(&format!("its {name} is {id}")))
        };
        let mtime = match said.mtime {
            Some(mtime) => mtime,
            None => (header.mtime().ok().and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or(0), 0),
        };
        Ok(Entry {
            kind,
            size,
            mode: header.mode().map_err(|_| fault("its mode is no number"))?,
            uid: id(said.uid, header.uid(), "uid")?,
            gid: id(said.gid, header.gid(), "gid")?,
            mtime,
            link,
            name,
        })
    }
}

impl Said {
    fn read(&mut self, text: &[u8]) -> Result<(), FilesError> {
        for record in PaxExtensions::new(text) {
            let record = record.map_err(|_| bad("an extended header has a record that is none"))?;
            let value = record.value_bytes();
            let number = || {
                let number = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
                number.ok_or_else(|| bad(format!("an extended header has {:?} for a number", shown(value))))
            };
            match record.key_bytes() {
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(number()?),
                b"uid" => self.uid = Some(number()?),
                b"gid" => self.gid = Some(number()?),
                b"mtime" => self.mtime = time(value),
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(bad("the archive has a sparse file; make it without --sparse"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Seconds with a fraction, as PAX writes them.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: i64 = seconds.parse().ok()?;
    let digits: String = fraction.chars().take_while(char::is_ascii_digit).chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    if seconds.starts_with('-') && nanoseconds > 0 {
        return Some((whole.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((whole, nanoseconds))
}

/// A header's checksum counts its own field as spaces.
fn checked(at: usize, byte: u8) -> u32 {
    if (148..156).contains(&at) { u32::from(b' ') } else { u32::from(byte) }
}

fn compressed(block: &[u8]) -> Result<(), FilesError> {
    let known: [(&[u8], &str); 4] =
        [(b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2"), (b"\xfd7zX", "xz")];
    match known.iter().find(|(magic, _)| block.starts_with(magic)) {
        Some((_, name)) => Err(bad(format!("the body is compressed with {name}; send an uncompressed tar archive"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::header::{Member, end};
    use super::*;

    fn all(bytes: &[u8]) -> Result<Vec<Entry>, FilesError> {
        let mut archive = Archive::new(bytes);
        let mut entries = Vec::new();
        while let Some(entry) = archive.next_entry()? {
            entries.push(entry);
        }
        Ok(entries)
    }

    fn member<'a>(name: &'a [u8], kind: EntryType, size: u64, link: &'a [u8]) -> Vec<u8> {
        Member { name, kind, mode: 0o640, uid: 5, gid: 6, size, mtime: 7, link }.blocks()
    }

    #[test]
    fn what_is_written_is_read() {
        let long = vec![b'x'; 400];
        let mut bytes = member(b"d/", EntryType::Directory, 0, b"");
        bytes.extend(member(&long, EntryType::Regular, 513, b""));
        bytes.extend([1; 1024]);
        bytes.extend(member(b"s", EntryType::Symlink, 0, &long));
        bytes.extend(member(b"h", EntryType::Link, 0, b"d/x"));
        bytes.extend(end("note"));
        let entries = all(&bytes).unwrap();
        let kinds: Vec<Kind> = entries.iter().map(|entry| entry.kind).collect();
        assert_eq!(kinds, [Kind::Directory, Kind::File, Kind::Symlink, Kind::HardLink]);
        assert_eq!((&entries[1].name, entries[1].size, &entries[2].link), (&long, 513, &long));
        assert_eq!((entries[0].mode, entries[0].uid, entries[0].gid, entries[0].mtime), (0o640, 5, 6, (7, 0)));
        assert_eq!(entries[3].link, b"d/x");
    }

    #[test]
    fn archives_of_gnu_tar_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a".repeat(90)).join("b".repeat(90));
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("c".repeat(90)), "content").unwrap();
        for format in ["gnu", "posix", "ustar"] {
            let Ok(output) = std::process::Command::new("tar")
                .args(["-cf", "-", "--format", format, "-C"])
                .arg(folder.path())
                .arg(".")
                .output()
            else {
                eprintln!("skipped because there is no tar");
                return;
            };
            if format == "ustar" && !output.status.success() {
                continue;
            }
            let entries = all(&output.stdout).unwrap();
            let file = entries.iter().find(|entry| entry.kind == Kind::File).unwrap();
            assert!(file.name.ends_with("c".repeat(90).as_bytes()) && file.size == 7, "{format}");
        }
    }

    #[test]
    fn what_is_no_archive_is_told_in_a_line() {
        let told = |bytes: &[u8]| all(bytes).unwrap_err().to_string();
        assert!(told(b"").contains("empty"));
        assert!(told(b"\x1f\x8b\x08\0 and more").contains("gzip"));
        assert!(told(&[b'x'; 512]).contains("checksum"));
        assert!(told(&[b'x'; 100]).contains("in the middle"));
        let whole = member(b"f", EntryType::Regular, 3, b"");
        assert!(told(&whole).contains("in the middle"));
        let directory = member(b"d/", EntryType::Directory, 0, b"");
        assert!(told(&directory).contains("without its blocks of zeros"));
        let mut trailing = end("");
        trailing.resize(3 << 20, 0);
        assert!(told(&trailing).contains("follows the end"));
        for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo] {
            let error = all(&member(b"node", kind, 0, b"")).unwrap_err();
            assert!(matches!(error, FilesError::Refused(ref line) if line.starts_with("node: ")), "{error}");
        }
        assert!(told(&member(b"s", EntryType::GNUSparse, 0, b"")).contains("--sparse"));
        assert!(told(&member(b"x", EntryType::XHeader, 1 << 30, b"")).contains("at most"));
        assert!(told(&member(&vec![b'n'; 5000], EntryType::Regular, 0, b"")).contains("4095"));
    }

    #[test]
    fn times_have_fractions_and_signs() {
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!((time(b"7"), time(b"x")), (Some((7, 0)), None));
    }
}
