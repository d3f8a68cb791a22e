//! The entries of a tar stream, with everything that can make one large held within bounds.
//!
//! Headers are decoded by the `tar` crate; the walk from header to header is ours, for three reasons. Its own walk reads
//! long names and PAX records of any claimed size into memory; it splits PAX records at newlines, which breaks binary
//! values such as file capabilities; and a payload handed on as slices of the decompressor's buffers is written without
//! one more copy.

use std::io::BufRead;

use tar::{EntryType, Header};

use super::fault::Fault;
use super::pax::{self, Pax};

const BLOCK: u64 = 512;
/// Bound on the metadata (long names, PAX records, sparse maps) that precede one entry.
const METADATA_BOUND: u64 = 1 << 20;

/// One member of the archive.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Kind.
    pub kind: EntryType,
    /// Path as stored.
    pub path: Vec<u8>,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Size of the file that comes out.
    pub size: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits, with set-user-ID, set-group-ID and sticky.
    pub mode: u32,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Stretches of data `(offset, length)` of a sparse file.
    pub sparse: Option<Vec<(u64, u64)>>,
}

/// Walks a tar stream.
#[derive(Debug)]
pub(crate) struct Entries<R> {
    stream: R,
    /// Bytes of the current payload not yet read.
    payload: u64,
    /// Zeros after the payload up to the next block.
    padding: u64,
}

impl<R: BufRead> Entries<R> {
    pub(crate) fn new(stream: R) -> Self {
        Self { stream, payload: 0, padding: 0 }
    }

    /// The stream below.
    pub(crate) fn stream(&self) -> &R {
        &self.stream
    }

    /// The next entry, or none at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, Fault> {
        let mut pax = Pax::default();
        let mut long_path = None;
        let mut long_link = None;
        let mut metadata = 0u64;
        loop {
            self.skip_payload()?;
            let Some(header) = self.header()? else {
                if metadata > 0 {
                    return Err(Fault::Damaged("the archive ends after an extension header".into()));
                }
                return Ok(None);
            };
            let stored = header.entry_size().map_err(Fault::read)?;
            let kind = header.entry_type();
            match kind {
                EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader => {
                    metadata = metadata.saturating_add(stored).saturating_add(BLOCK);
                    if metadata > METADATA_BOUND {
                        return Err(Fault::Damaged(format!(
                            "extension headers of more than {METADATA_BOUND} bytes before one entry"
                        )));
                    }
                    self.begin(stored);
                    let mut bytes = self.read_payload(stored)?;
                    match kind {
                        EntryType::XHeader => pax = pax::parse(&bytes)?,
                        // Global records (git archive writes a comment) say nothing that a layer needs.
                        EntryType::XGlobalHeader => {}
                        _ => {
                            while bytes.last() == Some(&0) {
                                bytes.pop();
                            }
                            if kind == EntryType::GNULongName {
                                long_path = Some(bytes);
                            } else {
                                long_link = Some(bytes);
                            }
                        }
                    }
                }
                _ => return self.entry(&header, stored, pax, long_path, long_link).map(Some),
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        stored: u64,
        pax: Pax,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, Fault> {
        let mut kind = header.entry_type();
        let path = pax.sparse_name.or(pax.path).or(long_path).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = pax
            .link
            .or(long_link)
            .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
            .unwrap_or_default();
        // Archives from before 1988 mark a directory by the slash at its end alone.
        if matches!(kind, EntryType::Regular) && path.last() == Some(&b'/') {
            kind = EntryType::Directory;
        }
        let has_payload = matches!(kind, EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse);
        let mut size = pax.size.unwrap_or(stored);
        // As in the reader of Docker and containerd: what has no content has no payload, whatever size it claims.
        self.begin(if has_payload { size } else { 0 });

        let mut sparse = None;
        if kind == EntryType::GNUSparse {
            let (map, real) = self.old_sparse(header)?;
            sparse = Some(map);
            size = real;
        } else if has_payload && let Some(real) = pax.sparse_real {
            sparse = Some(if pax.sparse_major == Some(1) { self.map_in_payload()? } else { pax.sparse_map });
            size = real;
        }
        if let Some(map) = &sparse {
            check_map(map, size, self.payload).map_err(|reason| Fault::refused(&path, reason))?;
        }
        let id = |value: Option<u64>, field: std::io::Result<u64>, name: &str| -> Result<u32, Fault> {
            let found = match value {
                Some(value) => value,
                None => field.map_err(Fault::read)?,
            };
            u32::try_from(found).map_err(|_| Fault::refused(&path, format!("{name} {found} is above 4294967295")))
        };
        let uid = id(pax.uid, header.uid(), "user")?;
        let gid = id(pax.gid, header.gid(), "group")?;
        let mtime = match pax.mtime {
            Some(time) => time,
            None => (i64::try_from(header.mtime().map_err(Fault::read)?).unwrap_or(0), 0),
        };
        Ok(Entry {
            kind,
            link,
            size,
            uid,
            gid,
            mode: header.mode().map_err(Fault::read)? & 0o7777,
            mtime,
            xattrs: pax.xattrs,
            sparse,
            path,
        })
    }

    /// Gives the payload of the current entry to `sink`, slice by slice, at most `length` bytes of it.
    pub(crate) fn payload(
        &mut self,
        length: u64,
        mut sink: impl FnMut(&[u8]) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        if length > self.payload {
            return Err(Fault::Damaged("an entry holds fewer bytes than its map says".into()));
        }
        let mut left = length;
        while left > 0 {
            let slice = self.stream.fill_buf().map_err(Fault::read)?;
            if slice.is_empty() {
                return Err(Fault::Damaged("the archive is cut off within a file".into()));
            }
            let taken = usize::try_from(left).unwrap_or(usize::MAX).min(slice.len());
            sink(&slice[..taken])?;
            self.stream.consume(taken);
            left -= taken as u64;
            self.payload -= taken as u64;
        }
        Ok(())
    }

    /// Reads what follows the end of the archive, so that the digest covers it.
    pub(crate) fn drain(&mut self) -> Result<(), Fault> {
        loop {
            let found = self.stream.fill_buf().map_err(Fault::read)?.len();
            if found == 0 {
                return Ok(());
            }
            self.stream.consume(found);
        }
    }

    fn begin(&mut self, payload: u64) {
        self.payload = payload;
        self.padding = payload.wrapping_neg() % BLOCK;
    }

    fn skip_payload(&mut self) -> Result<(), Fault> {
        let mut left = self.payload.saturating_add(self.padding);
        while left > 0 {
            let found = self.stream.fill_buf().map_err(Fault::read)?.len();
            if found == 0 {
                return Err(Fault::Damaged("the archive is cut off within an entry".into()));
            }
            let taken = usize::try_from(left).unwrap_or(usize::MAX).min(found);
            self.stream.consume(taken);
            left -= taken as u64;
        }
        self.payload = 0;
        self.padding = 0;
        Ok(())
    }

    fn read_payload(&mut self, length: u64) -> Result<Vec<u8>, Fault> {
        let mut bytes = Vec::new();
        self.payload(length, |slice| {
            bytes.extend_from_slice(slice);
            Ok(())
        })?;
        Ok(bytes)
    }

    fn block(&mut self, block: &mut [u8; BLOCK as usize]) -> Result<(), Fault> {
        self.stream.read_exact(block).map_err(|error| {
            if error.kind() == std::io::ErrorKind::UnexpectedEof {
                Fault::Damaged("the archive is cut off within a header".into())
            } else {
                Fault::read(error)
            }
        })
    }

    fn header(&mut self) -> Result<Option<Header>, Fault> {
        // An archive without the two closing blocks of zeros is accepted, as tar and Docker do.
        if self.stream.fill_buf().map_err(Fault::read)?.is_empty() {
            return Ok(None);
        }
        let mut block = [0u8; BLOCK as usize];
        self.block(&mut block)?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum = block
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum::<u32>();
        if header.cksum().ok() != Some(sum) {
            return Err(Fault::Damaged(
                "a header's checksum is wrong; this is no tar archive, or it is damaged".into(),
            ));
        }
        Ok(Some(header))
    }

    /// The map of GNU tar's old sparse format, in the header and the blocks after it.
    fn old_sparse(&mut self, header: &Header) -> Result<(Vec<(u64, u64)>, u64), Fault> {
        let damaged = || Fault::Damaged("a sparse file has no GNU header".into());
        let gnu = header.as_gnu().ok_or_else(damaged)?;
        let mut map = Vec::new();
        let mut add = |piece: &tar::GnuSparseHeader| -> Result<(), Fault> {
            if !piece.is_empty() {
                map.push((piece.offset().map_err(Fault::read)?, piece.length().map_err(Fault::read)?));
            }
            Ok(())
        };
        for piece in &gnu.sparse {
            add(piece)?;
        }
        let mut more = gnu.is_extended();
        let mut read = 0;
        while more {
            read += BLOCK;
            if read > METADATA_BOUND {
                return Err(Fault::Damaged(format!("a sparse map of more than {METADATA_BOUND} bytes")));
            }
            let mut block = tar::GnuExtSparseHeader::new();
            self.stream.read_exact(block.as_mut_bytes()).map_err(Fault::read)?;
            for piece in &block.sparse {
                add(piece)?;
            }
            more = block.is_extended();
        }
        Ok((map, gnu.real_size().map_err(Fault::read)?))
    }

    /// The map of the PAX sparse format 1.0, which is the first part of the payload.
    fn map_in_payload(&mut self) -> Result<Vec<(u64, u64)>, Fault> {
        let mut text = Vec::new();
        loop {
            if text.len() as u64 >= METADATA_BOUND {
                return Err(Fault::Damaged(format!("a sparse map of more than {METADATA_BOUND} bytes")));
            }
            text.extend(self.read_payload(BLOCK)?);
            if let Some(map) = pax::whole_map(&text)? {
                return Ok(map);
            }
        }
    }
}

/// Whether a sparse map is in order, within the file, and covered by the payload.
fn check_map(map: &[(u64, u64)], size: u64, payload: u64) -> Result<(), String> {
    let mut end = 0u64;
    let mut data = 0u64;
    for (offset, length) in map {
        let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= size);
        end = next.ok_or_else(|| "its sparse map is out of order or reaches past its end".to_owned())?;
        data += length;
    }
    if data == payload { Ok(()) } else { Err(format!("its sparse map covers {data} bytes, but {payload} are stored")) }
}
