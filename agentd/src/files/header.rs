//! Writing tar headers: ustar, with a PAX extended header before it for what does not fit.

use tar::{EntryType, Header};

/// Bytes of a tar block.
pub const BLOCK: usize = 512;

/// Longest name, and longest target of a link, that a ustar header holds.
const NAME: usize = 100;

/// From here on a size or a time does not fit into a header's octal digits.
const OCTAL: u64 = 1 << 33;

/// From here on an id does not.
const OCTAL_ID: u32 = 1 << 21;

/// What a header tells.
#[derive(Debug)]
pub struct Member<'a> {
    /// Name; of a directory with a slash at its end.
    pub name: &'a [u8],
    /// Type.
    pub kind: EntryType,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes that follow.
    pub size: u64,
    /// Last change, seconds.
    pub mtime: i64,
    /// Where a link leads.
    pub link: &'a [u8],
}

impl Member<'_> {
    /// The blocks before its content.
    pub fn blocks(&self) -> Vec<u8> {
        let mut records = Vec::new();
        if self.name.len() > NAME {
            record(&mut records, "path", self.name);
        }
        if self.link.len() > NAME {
            record(&mut records, "linkpath", self.link);
        }
        if self.size >= OCTAL {
            record(&mut records, "size", self.size.to_string().as_bytes());
        }
        let mtime = u64::try_from(self.mtime).ok().filter(|seconds| *seconds < OCTAL);
        if mtime.is_none() {
            record(&mut records, "mtime", self.mtime.to_string().as_bytes());
        }
        for (key, id) in [("uid", self.uid), ("gid", self.gid)] {
            if id >= OCTAL_ID {
                record(&mut records, key, id.to_string().as_bytes());
            }
        }
        let mut blocks = Vec::with_capacity(3 * BLOCK);
        if !records.is_empty() {
            extended(&mut blocks, EntryType::XHeader, &records);
        }
        let mut header = Header::new_ustar();
        header.set_mode(self.mode & 0o7777);
        header.set_uid(self.uid.into());
        header.set_gid(self.gid.into());
        header.set_mtime(mtime.unwrap_or(0));
        header.set_size(self.size);
        header.set_entry_type(self.kind);
        put(&mut header.as_old_mut().name, self.name);
        put(&mut header.as_old_mut().linkname, self.link);
        header.set_cksum();
        blocks.extend_from_slice(header.as_bytes());
        blocks
    }
}

/// The end of an archive: a comment for people, where there is something to say, and two blocks of zeros.
pub fn end(comment: &str) -> Vec<u8> {
    let mut blocks = Vec::new();
    if !comment.is_empty() {
        let mut records = Vec::new();
        record(&mut records, "comment", comment.as_bytes());
        extended(&mut blocks, EntryType::XGlobalHeader, &records);
    }
    blocks.resize(blocks.len() + 2 * BLOCK, 0);
    blocks
}

/// Bytes between the end of content and the next block.
pub fn padding(size: u64) -> usize {
    ((BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64) as usize
}

fn put(field: &mut [u8], text: &[u8]) {
    let length = field.len().min(text.len());
    field[..length].copy_from_slice(&text[..length]);
}

/// `<length> <key>=<value>\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn extended(blocks: &mut Vec<u8>, kind: EntryType, records: &[u8]) {
    let mut header = Header::new_ustar();
    put(&mut header.as_old_mut().name, b"././@PaxHeader");
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(records.len() as u64);
    header.set_entry_type(kind);
    header.set_cksum();
    blocks.extend_from_slice(header.as_bytes());
    blocks.extend_from_slice(records);
    blocks.resize(blocks.len() + padding(records.len() as u64), 0);
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// Whether the `tar` crate reads back what was written.
    #[test]
    fn another_reader_sees_the_same() {
        let long = "n".repeat(300);
        let member = Member {
            name: long.as_bytes(),
            kind: EntryType::Regular,
            mode: 0o4751,
            uid: 3_000_000_000,
            gid: 7,
            size: 3,
            mtime: 1_700_000_000,
            link: b"",
        };
        let mut bytes = member.blocks();
        bytes.extend_from_slice(b"abc");
        bytes.resize(bytes.len() + padding(3), 0);
        let target = "t".repeat(101);
        let link =
            Member { name: b"l", kind: EntryType::Symlink, link: target.as_bytes(), size: 0, mtime: -5, ..member };
        bytes.extend(link.blocks());
        bytes.extend(end("one was left out"));
        assert_eq!(bytes.len() % BLOCK, 0);
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut entries = archive.entries().unwrap();
        let mut first = entries.next().unwrap().unwrap();
        assert_eq!(first.path_bytes(), long.as_bytes());
        assert_eq!(first.header().mode().unwrap(), 0o4751);
        assert_eq!(first.header().uid().unwrap(), 3_000_000_000);
        let mut content = String::new();
        first.read_to_string(&mut content).unwrap();
        assert_eq!(content, "abc");
        let second = entries.next().unwrap().unwrap();
        assert_eq!(second.link_name_bytes().unwrap(), target.as_bytes());
        assert!(entries.next().unwrap().unwrap().header().entry_type().is_pax_global_extensions());
        assert!(entries.next().is_none());
    }

    #[test]
    fn a_record_counts_its_own_length() {
        for length in [1, 80, 88, 89, 90, 91, 92, 980, 990, 995, 1000] {
            let mut records = Vec::new();
            record(&mut records, "path", "x".repeat(length).as_bytes());
            let told: usize = String::from_utf8_lossy(&records).split(' ').next().unwrap().parse().unwrap();
            assert_eq!(told, records.len());
        }
    }
}
