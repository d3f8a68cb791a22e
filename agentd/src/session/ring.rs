//! The output of a session, and what must be known of it after the daemon's death, in one memory file.
//!
//! The file is a memfd that pod-init keeps for a daemon that comes back: the first page holds counters, the next pages the
//! session's record as JSON, and the rest is a ring of records. The program's output is read(2) straight into the ring,
//! and clients are given copies from there. A record is a head (stream, length, offset of its first byte), the bytes, and
//! padding to 8; it never straddles the end of the ring.
//!
//! A daemon may be killed between any two instructions. So output goes through a *stage*, a pipe that is parked like the
//! ring: it is moved into the empty stage by splice(2), the ring notes how much is about to be read from there and where
//! to, then it is read, and then the record counts. A daemon that finds such a note asks the stage how much is left in it,
//! and knows how much was read ([`Ring::settle_output`]). Nothing is lost and nothing is doubled.
//!
//! Positions count bytes of the ring and offsets bytes of output, both from the session's start and never reset.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use bytes::Bytes;
use memmap2::MmapRaw;
use rustix::fs::{MemfdFlags, memfd_create};

/// Page of counters.
const COUNTERS: usize = 4096;
/// Room for the record.
const RECORD: usize = 60 << 10;
const DATA: usize = COUNTERS + RECORD;
const MAGIC: u64 = 0x6167_656e_7464_0002;

/// Head of a record.
const HEAD: usize = 16;
/// Least room that is worth a read(2).
const LEAST: usize = 1024;
/// Most bytes of one record.
const MOST: usize = 64 << 10;

/// Words of the first page.
#[derive(Clone, Copy)]
enum Word {
    Magic = 0,
    Capacity = 1,
    Head = 2,
    Tail = 3,
    OutputHead = 4,
    /// Stream of what is in the stage.
    Staged = 5,
    Stdin = 6,
    StdinClosed = 7,
    RecordLength = 8,
    Told = 9,
    /// Standard input up to here is being staged.
    Intent = 10,
    /// Bytes that are about to be read from the stage, where the next three hold; 0 where nothing is.
    Pending = 11,
    /// Bytes in the stage before.
    PendingStaged = 12,
    /// Head position before.
    PendingHead = 13,
    /// Offset of output before.
    PendingOutput = 14,
}

/// Which stream a record is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or a terminal.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
}

const PADDING: u32 = 3;

/// Where output comes from: a program's pipe or terminal, and the stage behind it.
pub trait Source {
    /// Bytes in the stage.
    fn staged(&self) -> usize;
    /// Moves at most so many bytes into the empty stage; 0 at the end.
    fn load(&self, most: usize) -> io::Result<usize>;
    /// Reads from the stage.
    fn take(&self, room: &mut [u8]) -> io::Result<usize>;
}

/// The ring. One writer; readers keep their own positions.
#[derive(Debug)]
pub struct Ring {
    map: MmapRaw,
    file: OwnedFd,
    capacity: usize,
}

/// What stands before a record.
#[derive(Debug, Clone, Copy)]
struct RecordHead {
    kind: u32,
    length: usize,
    /// Offset of its first byte of output.
    offset: u64,
}

/// What is at a position.
#[derive(Debug, PartialEq, Eq)]
pub enum At {
    /// Output, and the position behind it.
    Output(Stream, Bytes, u64),
    /// Nothing yet.
    End,
}

impl Ring {
    /// A new ring for `capacity` bytes (rounded up to a page) that carries a session's record.
    pub fn new(capacity: usize, record: &[u8]) -> io::Result<Self> {
        let capacity = capacity.max(2 * MOST).next_multiple_of(4096);
        if record.len() > RECORD {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the record of a session is too long"));
        }
        let file = memfd_create("session", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, (DATA + capacity) as u64)?;
        let map = MmapRaw::map_raw(&file)?;
        let mut ring = Self { map, file, capacity };
        ring.bytes()[COUNTERS..COUNTERS + record.len()].copy_from_slice(record);
        ring.set(Word::RecordLength, record.len() as u64);
        ring.set(Word::Capacity, capacity as u64);
        ring.set(Word::Magic, MAGIC);
        Ok(ring)
    }

    /// A ring that an earlier daemon made. Everything in it is checked before it is used.
    pub fn open(file: OwnedFd) -> Result<Self, String> {
        let size = rustix::fs::fstat(&file).map_err(|e| e.to_string())?.st_size as usize;
        if size < DATA + 4096 {
            return Err(format!("a session's memory has {size} bytes, expected at least {}", DATA + 4096));
        }
        let map = MmapRaw::map_raw(&file).map_err(|e| e.to_string())?;
        let mut ring = Self { map, file, capacity: size - DATA };
        if ring.get(Word::Magic) != MAGIC || ring.get(Word::Capacity) != ring.capacity as u64 {
            return Err("a session's memory has another layout, expected the one of this version of agentd".to_owned());
        }
        let (head, tail) = (ring.head(), ring.tail());
        let aligned = head % HEAD as u64 == 0 && tail % HEAD as u64 == 0;
        if tail > head
            || !aligned
            || head - tail > ring.capacity as u64
            || ring.get(Word::RecordLength) as usize > RECORD
        {
            return Err(format!("a session's memory is damaged: it runs from {tail} to {head}"));
        }
        Ok(ring)
    }

    /// Bytes of the ring.
    pub fn capacity(&self) -> u64 {
        self.capacity as u64
    }

    /// The session's record.
    pub fn record(&mut self) -> Vec<u8> {
        let length = self.get(Word::RecordLength) as usize;
        self.bytes()[COUNTERS..COUNTERS + length].to_vec()
    }

    /// Replaces the session's record. One that is too long leaves the old one.
    pub fn set_record(&mut self, record: &[u8]) {
        if record.len() <= RECORD {
            self.bytes()[COUNTERS..COUNTERS + record.len()].copy_from_slice(record);
            self.set(Word::RecordLength, record.len() as u64);
        }
    }

    /// Position behind the last record.
    pub fn head(&mut self) -> u64 {
        self.get(Word::Head)
    }

    /// Position of the oldest record that is kept.
    pub fn tail(&mut self) -> u64 {
        self.get(Word::Tail)
    }

    /// Offset of the next byte of output.
    pub fn output(&mut self) -> u64 {
        self.get(Word::OutputHead)
    }

    /// Offset of the oldest byte of output that is kept.
    pub fn kept_from(&mut self) -> u64 {
        let mut position = self.tail();
        while position < self.head() {
            let record = self.head_at(position);
            if record.kind != PADDING {
                return record.offset;
            }
            position += record_size(record.length) as u64;
        }
        self.output()
    }

    /// Bytes of standard input that the program was given.
    pub fn stdin(&mut self) -> u64 {
        self.get(Word::Stdin)
    }

    /// Counts standard input.
    pub fn add_stdin(&mut self, bytes: usize) {
        let sum = self.stdin() + bytes as u64;
        self.set(Word::Stdin, sum);
    }

    /// Notes that so many bytes are about to be put into the empty stage of standard input.
    pub fn intend_stdin(&mut self, bytes: usize) {
        let sum = self.stdin() + bytes as u64;
        self.set(Word::Intent, sum);
    }

    /// After a daemon's death: counts what it had staged and not counted. `staged`: bytes in the stage. The stage is filled
    /// only when it is empty and emptied only once it is counted, so that this is exact.
    pub fn settle_stdin(&mut self, staged: usize) {
        if self.get(Word::Intent) > self.stdin() {
            self.add_stdin(staged);
            let counted = self.stdin();
            self.set(Word::Intent, counted);
        }
    }

    /// Notes that the end was told to events and audit log. True the first time.
    pub fn tell_end(&mut self) -> bool {
        let first = self.get(Word::Told) == 0;
        self.set(Word::Told, 1);
        first
    }

    /// Whether standard input was closed.
    pub fn stdin_closed(&mut self) -> bool {
        self.get(Word::StdinClosed) != 0
    }

    /// Notes that standard input is closed.
    pub fn close_stdin(&mut self) {
        self.set(Word::StdinClosed, 1);
    }

    /// Reads output into the ring. Records before `floor` give way; none (and nothing is moved) when there is not enough
    /// room. What is in the stage already comes first, whichever stream it is of.
    pub fn fill(&mut self, stream: Stream, floor: u64, source: &impl Source) -> Option<io::Result<usize>> {
        let (at, most) = self.room(floor)?;
        let mut staged = source.staged();
        if staged == 0 {
            self.set(Word::Staged, stream as u64);
            staged = match source.load(most) {
                Ok(0) => return Some(Ok(0)),
                Ok(count) => count,
                Err(error) => return Some(Err(error)),
            };
        }
        let length = staged.min(most);
        let (head, output) = (self.head(), self.output());
        self.set(Word::PendingOutput, output);
        self.set(Word::PendingHead, head);
        self.set(Word::PendingStaged, staged as u64);
        self.set(Word::Pending, length as u64);
        let data = DATA + at + HEAD;
        let taken = source.take(&mut self.bytes()[data..data + length]);
        if let Ok(count) = taken {
            self.append(count.min(length));
        }
        self.set(Word::Pending, 0);
        Some(taken)
    }

    /// After a daemon's death: counts what it had read from the stage and not counted. `staged`: bytes in the stage.
    pub fn settle_output(&mut self, staged: usize) {
        let pending = self.get(Word::Pending) as usize;
        if pending > 0 && self.head() == self.get(Word::PendingHead) {
            let before = self.get(Word::PendingOutput);
            self.set(Word::OutputHead, before);
            let taken = (self.get(Word::PendingStaged) as usize).saturating_sub(staged).min(pending);
            // the room that was found for it is there still
            let to_end = self.capacity - (self.head() % self.capacity as u64) as usize;
            if taken > 0 && HEAD + taken <= to_end {
                self.append(taken);
            }
        }
        self.set(Word::Pending, 0);
    }

    /// Makes a record of the bytes that lie behind the head.
    fn append(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        let (head, output) = (self.head(), self.output());
        let kind = self.get(Word::Staged) as u32;
        self.put_head((head % self.capacity as u64) as usize, RecordHead { kind, length: count, offset: output });
        self.set(Word::OutputHead, output + count as u64);
        self.set(Word::Head, head + record_size(count) as u64);
    }

    /// Finds room for a record: its place, and how many bytes it may have.
    fn room(&mut self, floor: u64) -> Option<(usize, usize)> {
        let mut at = (self.head() % self.capacity as u64) as usize;
        let to_end = self.capacity - at;
        if to_end < HEAD + LEAST {
            if !self.make_room(to_end, floor) {
                return None;
            }
            self.pad(at, to_end);
            at = 0;
        }
        let to_end = self.capacity - at;
        // as much as is free without throwing anything away, but at least what is worth a call
        let mut free = self.free().min(to_end);
        if free < HEAD + MOST {
            let wanted = (HEAD + MOST).min(to_end);
            self.make_room(wanted, floor);
            free = self.free().min(to_end);
        }
        (free >= HEAD + LEAST).then(|| (at, (free - HEAD).min(MOST) / HEAD * HEAD))
    }

    /// What is at a position, which is that of a record.
    pub fn at(&mut self, position: u64) -> At {
        let mut position = position.max(self.tail());
        loop {
            if position >= self.head() {
                return At::End;
            }
            let RecordHead { kind, length, .. } = self.head_at(position);
            let next = position + record_size(length) as u64;
            let at = DATA + (position % self.capacity as u64) as usize + HEAD;
            let stream = match kind {
                1 => Stream::Stdout,
                2 => Stream::Stderr,
                _ => {
                    position = next;
                    continue;
                }
            };
            let bytes = Bytes::copy_from_slice(&self.bytes()[at..at + length]);
            return At::Output(stream, bytes, next);
        }
    }

    /// Position of the record that holds an offset of output, and how far into it that is. An offset that is not kept any
    /// more is taken to the oldest that is.
    pub fn find(&mut self, offset: u64) -> (u64, u64) {
        let mut position = self.tail();
        while position < self.head() {
            let record = self.head_at(position);
            if record.kind != PADDING && record.offset + record.length as u64 > offset {
                return (position, offset.saturating_sub(record.offset));
            }
            position += record_size(record.length) as u64;
        }
        (position, 0)
    }

    fn free(&mut self) -> usize {
        self.capacity - (self.head() - self.tail()) as usize
    }

    /// Throws records before `floor` away until so many bytes are free.
    fn make_room(&mut self, wanted: usize, floor: u64) -> bool {
        while self.free() < wanted {
            let tail = self.tail();
            if tail >= floor.min(self.head()) {
                return false;
            }
            let length = self.head_at(tail).length;
            self.set(Word::Tail, tail + record_size(length) as u64);
        }
        true
    }

    fn pad(&mut self, at: usize, to_end: usize) {
        let (head, offset) = (self.head(), self.output());
        self.put_head(at, RecordHead { kind: PADDING, length: to_end - HEAD, offset });
        self.set(Word::Head, head + to_end as u64);
    }

    fn put_head(&mut self, at: usize, head: RecordHead) {
        let bytes = &mut self.bytes()[DATA + at..DATA + at + HEAD];
        bytes[..4].copy_from_slice(&head.kind.to_ne_bytes());
        bytes[4..8].copy_from_slice(&(head.length as u32).to_ne_bytes());
        bytes[8..].copy_from_slice(&head.offset.to_ne_bytes());
    }

    /// The head of the record at a position; a length that cannot be is cut to what can.
    fn head_at(&mut self, position: u64) -> RecordHead {
        let at = (position % self.capacity as u64) as usize;
        let to_end = self.capacity - at;
        let bytes = &self.bytes()[DATA + at..DATA + at + HEAD];
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mut offset = [0; 8];
        offset.copy_from_slice(&bytes[8..]);
        let offset = u64::from_ne_bytes(offset);
        RecordHead { kind: word(0), length: (word(4) as usize).min(to_end - HEAD), offset }
    }

    fn get(&mut self, word: Word) -> u64 {
        let at = word as usize * 8;
        let bytes = &self.bytes()[at..at + 8];
        u64::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]])
    }

    fn set(&mut self, word: Word, value: u64) {
        let at = word as usize * 8;
        // the order in which a killed daemon's stores are seen is the order of the program
        std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::Release);
        self.bytes()[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::Release);
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the map is `map.len()` bytes of a memfd that only the daemon and pod-init have; pod-init neither maps nor
        // writes it nor changes its size, and within the daemon `&mut self` is the only way to it.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr(), self.map.len()) }
    }
}

/// Bytes of a record in the ring. A multiple of the head's, so that there is room for a head wherever one may stand.
fn record_size(length: usize) -> usize {
    HEAD + length.next_multiple_of(HEAD)
}

impl AsFd for Ring {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests;
