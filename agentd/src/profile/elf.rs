//! Function symbols of an ELF file, read with bounds: the file is a container's, and may be made to harm.
//!
//! Only 64-bit little-endian files are read. Nothing is mapped (a file that is cut under a mapping kills its reader); the
//! headers and tables are read by `pread`, no table is read that is longer than its limit, and every offset is checked.
//! What does not hold gives a file without symbols, never a failure.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Most program and section headers that are looked at.
const MOST_HEADERS: usize = 1024;
/// Longest symbol table, in bytes: 700,000 symbols.
const MOST_SYMBOLS: u64 = 16 << 20;
/// Longest table of names, in bytes.
const MOST_NAMES: u64 = 48 << 20;
/// Longest name that is kept, in bytes.
const LONGEST_NAME: usize = 1024;
/// Longest section of notes that is searched for the build id.
const MOST_NOTES: u64 = 64 << 10;

/// `SHT_SYMTAB`, `SHT_NOTE`, `SHT_DYNSYM` and `PT_LOAD` of elf.h; `STT_FUNC` and `STT_GNU_IFUNC` below.
const SYMTAB: u32 = 2;
const NOTE: u32 = 7;
const DYNSYM: u32 = 11;
const LOAD: u32 = 1;

/// What is known of an ELF file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Elf {
    /// Its segments: place in the file, length there, address.
    segments: Vec<(u64, u64, u64)>,
    /// GNU build id in hexadecimal digits.
    pub build_id: String,
    /// Functions by address: address, size, place and length of the name in `names`.
    symbols: Vec<Symbol>,
    names: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Symbol {
    address: u64,
    size: u64,
    name: u32,
    length: u32,
}

/// A section header, as much of it as is used.
struct Section {
    kind: u32,
    offset: u64,
    size: u64,
    link: u32,
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}

/// So many bytes of a file, or none where it has fewer or they are more than may be read.
fn piece(file: &File, offset: u64, size: u64, most: u64) -> Option<Vec<u8>> {
    let length = file.metadata().ok()?.len();
    if size > most || offset.checked_add(size)? > length {
        return None;
    }
    let mut bytes = vec![0; usize::try_from(size).ok()?];
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

impl Elf {
    /// Reads a file. One that is no ELF file of this kind, or is broken, has no symbols.
    pub fn read(file: &File) -> Self {
        let mut elf = Self::default();
        // what was read before something did not hold stays
        let _ = elf.fill(file);
        elf
    }

    fn fill(&mut self, file: &File) -> Option<()> {
        let head = piece(file, 0, 64, 64)?;
        // 64 bits, little-endian
        if head.get(..6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let (programs, count) = (u64_at(&head, 32)?, usize::from(u16_at(&head, 56)?).min(MOST_HEADERS));
        if u16_at(&head, 54)? == 56 {
            let table = piece(file, programs, count as u64 * 56, MOST_HEADERS as u64 * 56)?;
            for header in table.chunks_exact(56).filter(|header| u32_at(header, 0) == Some(LOAD)) {
                self.segments.push((u64_at(header, 8)?, u64_at(header, 32)?, u64_at(header, 16)?));
            }
        }
        let (sections, count) = (u64_at(&head, 40)?, usize::from(u16_at(&head, 60)?).min(MOST_HEADERS));
        if u16_at(&head, 58)? != 64 {
            return None;
        }
        let table = piece(file, sections, count as u64 * 64, MOST_HEADERS as u64 * 64)?;
        let sections: Vec<Section> = table
            .chunks_exact(64)
            .filter_map(|header| {
                Some(Section {
                    kind: u32_at(header, 4)?,
                    offset: u64_at(header, 24)?,
                    size: u64_at(header, 32)?,
                    link: u32_at(header, 40)?,
                })
            })
            .collect();
        let mut notes = sections.iter().filter(|section| section.kind == NOTE);
        let build_id = notes.find_map(|note| build_id(&piece(file, note.offset, note.size, MOST_NOTES)?));
        self.build_id = build_id.unwrap_or_default();
        // the dynamic table holds no more than the whole one, where there is that
        let found = [SYMTAB, DYNSYM].iter().find_map(|kind| sections.iter().find(|section| section.kind == *kind))?;
        let names = sections.get(found.link as usize)?;
        let symbols = piece(file, found.offset, found.size, MOST_SYMBOLS)?;
        let names = piece(file, names.offset, names.size, MOST_NAMES)?;
        self.take(&symbols, &names);
        Some(())
    }

    /// Takes the functions of a symbol table.
    fn take(&mut self, symbols: &[u8], names: &[u8]) {
        for entry in symbols.chunks_exact(24) {
            let (Some(name), Some(address), Some(size)) = (u32_at(entry, 0), u64_at(entry, 8), u64_at(entry, 16))
            else {
                continue;
            };
            let (kind, section) = (entry[4] & 15, u16_at(entry, 6).unwrap_or(0));
            // a function that is defined here
            if !matches!(kind, 2 | 10) || section == 0 || address == 0 {
                continue;
            }
            let Some(rest) = names.get(name as usize..) else { continue };
            let window = &rest[..rest.len().min(LONGEST_NAME)];
            let length = window.iter().position(|byte| *byte == 0).unwrap_or(window.len());
            if length == 0 || self.names.len() + length > MOST_NAMES as usize {
                continue;
            }
            let at = self.names.len() as u32;
            self.names.extend_from_slice(&window[..length]);
            self.symbols.push(Symbol { address, size, name: at, length: length as u32 });
        }
        // of several names at one address the one with a size is the better
        self.symbols.sort_by_key(|symbol| (symbol.address, std::cmp::Reverse(symbol.size)));
        self.symbols.dedup_by_key(|symbol| symbol.address);
        self.symbols.shrink_to_fit();
        self.names.shrink_to_fit();
    }

    /// The address, as the file counts them, of a byte of the file.
    pub fn address(&self, offset: u64) -> Option<u64> {
        let holds = |(start, length, _): &&(u64, u64, u64)| offset >= *start && offset - start < *length;
        let (start, _, address) = self.segments.iter().find(holds)?;
        address.checked_add(offset - start)
    }

    /// The function that holds an address: its number, where it begins, and its name as it stands in the file.
    pub fn find(&self, address: u64) -> Option<(usize, u64, &[u8])> {
        let number = self.symbols.partition_point(|symbol| symbol.address <= address).checked_sub(1)?;
        let symbol = self.symbols.get(number)?;
        // one without a size goes on to the next: assembly is often so
        if symbol.size > 0 && address - symbol.address >= symbol.size {
            return None;
        }
        let name = self.names.get(symbol.name as usize..)?.get(..symbol.length as usize)?;
        Some((number, symbol.address, name))
    }

    /// Whether it has no symbol of a function.
    #[cfg(test)]
    fn is_stripped(&self) -> bool {
        self.symbols.is_empty()
    }

    /// Memory that it takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.symbols.capacity() * size_of::<Symbol>() + self.names.capacity() + self.segments.capacity() * 24 + 256
    }
}

/// The build id in a section of notes.
fn build_id(notes: &[u8]) -> Option<String> {
    use std::fmt::Write as _;
    let mut at = 0_usize;
    loop {
        let (name, size, kind) = (u32_at(notes, at)?, u32_at(notes, at + 4)?, u32_at(notes, at + 8)?);
        let named = at + 12;
        let begin = named.checked_add(name as usize)?.checked_next_multiple_of(4)?;
        let end = begin.checked_add(size as usize)?;
        let owner = notes.get(named..named.checked_add(name as usize)?)?;
        let value = notes.get(begin..end)?;
        if kind == 3 && owner == b"GNU\0" && (1..=64).contains(&value.len()) {
            return Some(value.iter().fold(String::new(), |mut text, byte| {
                // writing to a string cannot fail
                let _ = write!(text, "{byte:02x}");
                text
            }));
        }
        at = end.checked_next_multiple_of(4)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[inline(never)]
    extern "C" fn a_function_with_this_name() {}

    #[test]
    fn own_functions_are_found() {
        let own = File::open("/proc/self/exe").unwrap();
        let elf = Elf::read(&own);
        assert!(!elf.is_stripped() && elf.build_id.len() >= 16, "{}", elf.build_id);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let place = a_function_with_this_name as *const () as u64;
        let (start, offset) = maps
            .lines()
            .find_map(|line| {
                let (start, rest) = line.split_once('-')?;
                let (end, rest) = rest.split_once(' ')?;
                let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
                let offset = u64::from_str_radix(rest.split(' ').nth(1)?, 16).ok()?;
                (start <= place && place < end).then_some((start, offset))
            })
            .unwrap();
        let address = elf.address(place - start + offset).unwrap();
        let (_, begin, name) = elf.find(address).unwrap();
        let name = String::from_utf8_lossy(name);
        assert!(begin == address && name.contains("a_function_with_this_name"), "{name}");
    }

    #[test]
    fn broken_files_have_no_symbols_and_break_nothing() {
        let whole = std::fs::read("/proc/self/exe").unwrap();
        let head: Vec<u8> = whole[..whole.len().min(8192)].to_vec();
        assert!(Elf::read(&file(b"")).is_stripped());
        assert!(Elf::read(&file(b"#!/bin/sh\n")).is_stripped());
        assert!(Elf::read(&file(&head)).is_stripped());
        // each field of the header at its extremes, on a file with real tables behind it
        let small = std::fs::read("/bin/true").unwrap();
        for at in 0..64 {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = small.clone();
                bytes[at] = value;
                let elf = Elf::read(&file(&bytes));
                let _ = (elf.find(u64::MAX), elf.find(0), elf.address(u64::MAX));
            }
        }
        // and each field of the section headers
        let sections = u64_at(&small, 40).unwrap() as usize;
        for at in sections..small.len() {
            let mut bytes = small.clone();
            bytes[at] = 0xff;
            let _ = Elf::read(&file(&bytes)).find(0x1000);
        }
    }

    #[test]
    fn a_table_that_claims_too_much_is_not_read() {
        let sparse = tempfile::tempfile().unwrap();
        sparse.set_len(1 << 40).unwrap();
        assert!(piece(&sparse, 0, MOST_SYMBOLS + 1, MOST_SYMBOLS).is_none());
        assert!(piece(&sparse, u64::MAX, 2, 16).is_none());
        assert!(Elf::read(&sparse).is_stripped());
    }

    #[test]
    fn a_symbol_ends_where_its_size_says() {
        let mut symbols = Vec::new();
        for (name, address, size) in [(1_u32, 0x100_u64, 0x10_u64), (3, 0x200, 0), (99, 0x300, 1)] {
            symbols.extend_from_slice(&name.to_le_bytes());
            symbols.extend_from_slice(&[2, 0, 1, 0]);
            symbols.extend_from_slice(&address.to_le_bytes());
            symbols.extend_from_slice(&size.to_le_bytes());
        }
        let mut elf = Elf::default();
        elf.take(&symbols, b"\0a\0b\0");
        let name = |address| elf.find(address).map(|(_, begin, name)| (begin, name.to_vec()));
        assert_eq!(name(0x10f), Some((0x100, b"a".to_vec())));
        assert_eq!((name(0x110), name(0xff)), (None, None));
        assert_eq!(name(0x5000), Some((0x200, b"b".to_vec())));
    }
}
