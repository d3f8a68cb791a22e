//! Unpacks tar (plain, gzip, zstd) and zip. What it is, is told by its first bytes, not by its name.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::os::fd::BorrowedFd;

use flate2::read::MultiGzDecoder;
use tar::EntryType;

use crate::error::{Failure, FailureKind};
use crate::protocol::Limits;
use crate::tree::{self, Tree};

/// Longest target of a symbolic link in a zip.
const LINK_LIMIT: u64 = 4096;

/// Unpacks `file` into a new folder in the staging folder.
pub(crate) fn unpack(mut file: File, staging: BorrowedFd<'_>, limits: Limits) -> Result<(), Failure> {
    let mut head = [0; 512];
    let length = read_up_to(&mut file, &mut head).map_err(tree::damaged)?;
    file.rewind().map_err(tree::damaged)?;
    let head = &head[..length];
    let mut tree = Tree::new(staging, limits)?;
    // headers and padding come on top of the content
    let stream_limit = limits.max_extracted_bytes.saturating_add(limits.max_entries.saturating_mul(4096));
    if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
        return unpack_zip(file, &mut tree, limits);
    }
    if head.starts_with(&[0x1f, 0x8b]) {
        return unpack_tar(MultiGzDecoder::new(BufReader::new(file)), stream_limit, limits, &mut tree);
    }
    if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let decoder = zstd::stream::read::Decoder::new(file).map_err(tree::damaged)?;
        return unpack_tar(decoder, stream_limit, limits, &mut tree);
    }
    if is_tar(head) {
        return unpack_tar(BufReader::new(file), stream_limit, limits, &mut tree);
    }
    Err(Failure::extract(
        FailureKind::Archive,
        "of unknown kind; tar, tar.gz, tar.zst and zip are unpacked; pack it so, or set extract to false",
    ))
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Whether a block is a tar header: its checksum holds. An archive without entries begins with zeros.
fn is_tar(block: &[u8]) -> bool {
    let Ok(block) = <&[u8; 512]>::try_from(block) else {
        return false;
    };
    if block.iter().all(|byte| *byte == 0) {
        return true;
    }
    let header = tar::Header::from_byte_slice(block);
    let sum: u32 =
        block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
    header.cksum().is_ok_and(|stated| stated == sum)
}

/// Ends with an error instead of the end when the limit is passed, so that a cut is not taken for the whole.
struct Bounded<R> {
    inner: R,
    left: u64,
    passed: bool,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let Some(left) = self.left.checked_sub(count as u64) else {
            self.passed = true;
            return Err(io::Error::other("more than the limit"));
        };
        self.left = left;
        Ok(count)
    }
}

fn unpack_tar(stream: impl Read, stream_limit: u64, limits: Limits, tree: &mut Tree) -> Result<(), Failure> {
    let mut archive = tar::Archive::new(Bounded { inner: stream, left: stream_limit, passed: false });
    let result = tar_entries(&mut archive, tree);
    let stream = archive.into_inner();
    if stream.passed { Err(tree::too_large(limits.max_extracted_bytes)) } else { result }
}

fn tar_entries(archive: &mut tar::Archive<impl Read>, tree: &mut Tree) -> Result<(), Failure> {
    for entry in archive.entries().map_err(tree::damaged)? {
        let mut entry = entry.map_err(|error| {
            // a gzip or zstd file that holds no tar also ends here
            tree::damaged(format!("{error} (or what is compressed is no tar)"))
        })?;
        let name = entry.path_bytes().into_owned();
        let mode = entry.header().mode().map_err(tree::damaged)?;
        let modified = entry.header().mtime().ok();
        let link = entry.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default();
        match entry.header().entry_type() {
            EntryType::Directory => tree.folder(&name, mode)?,
            // the oldest tars mark folders by the slash alone
            EntryType::Regular if name.ends_with(b"/") => tree.folder(&name, mode)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                tree.file(&name, mode, modified, &mut entry)?;
            }
            EntryType::Symlink => tree.symlink(&name, &link)?,
            EntryType::Link => tree.hard_link(&name, &link)?,
            EntryType::XGlobalHeader => {}
            EntryType::Char | EntryType::Block => return Err(tree::odd_entry(&name, "a device")),
            EntryType::Fifo => return Err(tree::odd_entry(&name, "a pipe")),
            other => return Err(tree::odd_entry(&name, &format!("of tar type {:?}", char::from(other.as_byte())))),
        }
    }
    Ok(())
}

fn unpack_zip(file: File, tree: &mut Tree, limits: Limits) -> Result<(), Failure> {
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(tree::damaged)?;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|error| match error {
            zip::result::ZipError::UnsupportedArchive(what) => Failure::extract(
                FailureKind::Archive,
                format!(
                    "entry {index} of the zip cannot be unpacked ({what}); pack it with deflate and without a password"
                ),
            ),
            other => tree::damaged(other),
        })?;
        if entry.size() > limits.max_extracted_bytes {
            return Err(tree::too_large(limits.max_extracted_bytes));
        }
        let name = entry.name_raw().to_vec();
        let mode = entry.unix_mode();
        let kind = mode.map_or(0, |mode| mode & libc::S_IFMT);
        if entry.is_dir() {
            tree.folder(&name, mode.unwrap_or(0o755))?;
        } else if kind == libc::S_IFLNK {
            let mut target = Vec::new();
            (&mut entry).take(LINK_LIMIT).read_to_end(&mut target).map_err(tree::damaged)?;
            tree.symlink(&name, &target)?;
        } else if kind == 0 || kind == libc::S_IFREG {
            tree.file(&name, mode.unwrap_or(0o644), None, &mut entry)?;
        } else {
            return Err(tree::odd_entry(&name, "a special file"));
        }
    }
    Ok(())
}
