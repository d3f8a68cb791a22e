//! The output of a session, and what must be known of it after the daemon's death, in one memory file.
//!
//! The file is a memfd that pod-init keeps for a daemon that comes back: the first page holds counters, the next pages the
//! session's record as JSON, and the rest is a ring of records. The program's output is read(2) straight into the ring,
//! and clients are given copies from there. A record is 8 bytes of head (stream, length), the bytes, and padding to 8; it
//! never straddles the end of the ring. A record counts once the head position is stored behind it, so that a daemon that
//! is killed between two instructions leaves a ring that is whole.
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
const MAGIC: u64 = 0x6167_656e_7464_0001;

/// Head of a record.
const HEAD: usize = 8;
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
    OutputTail = 5,
    Stdin = 6,
    StdinClosed = 7,
    RecordLength = 8,
    Told = 9,
    /// Standard input up to here is being staged.
    Intent = 10,
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

/// The ring. One writer; readers keep their own positions.
#[derive(Debug)]
pub struct Ring {
    map: MmapRaw,
    file: OwnedFd,
    capacity: usize,
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
        if tail > head || head - tail > ring.capacity as u64 || ring.get(Word::RecordLength) as usize > RECORD {
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
        self.get(Word::OutputTail)
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

    /// Reads from a descriptor into the ring: `read` gets the room and says how much it filled. Records before `floor` give
    /// way; none (and `read` is not called) when there is not enough room.
    pub fn fill(
        &mut self,
        stream: Stream,
        floor: u64,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Option<io::Result<usize>> {
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
        if free < HEAD + LEAST {
            return None;
        }
        let most = (free - HEAD).min(MOST) / 8 * 8;
        let data = DATA + at;
        let count = match read(&mut self.bytes()[data + HEAD..data + HEAD + most]) {
            Ok(count) => count.min(most),
            Err(error) => return Some(Err(error)),
        };
        if count > 0 {
            self.put_head(at, stream as u32, count);
            let (head, output) = (self.head(), self.output());
            self.set(Word::OutputHead, output + count as u64);
            self.set(Word::Head, head + record_size(count) as u64);
        }
        Some(Ok(count))
    }

    /// What is at a position, which is that of a record.
    pub fn at(&mut self, position: u64) -> At {
        let mut position = position.max(self.tail());
        loop {
            if position >= self.head() {
                return At::End;
            }
            let (kind, length) = self.head_at(position);
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
        let mut at = self.kept_from();
        let mut position = self.tail();
        while position < self.head() {
            let (kind, length) = self.head_at(position);
            let count = if kind == PADDING { 0 } else { length as u64 };
            if at + count > offset {
                return (position, offset.saturating_sub(at));
            }
            at += count;
            position += record_size(length) as u64;
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
            let (kind, length) = self.head_at(tail);
            if kind != PADDING {
                let output = self.kept_from();
                self.set(Word::OutputTail, output + length as u64);
            }
            self.set(Word::Tail, tail + record_size(length) as u64);
        }
        true
    }

    fn pad(&mut self, at: usize, to_end: usize) {
        self.put_head(at, PADDING, to_end - HEAD);
        let head = self.head();
        self.set(Word::Head, head + to_end as u64);
    }

    fn put_head(&mut self, at: usize, kind: u32, length: usize) {
        let at = DATA + at;
        self.bytes()[at..at + 4].copy_from_slice(&kind.to_ne_bytes());
        self.bytes()[at + 4..at + HEAD].copy_from_slice(&(length as u32).to_ne_bytes());
    }

    /// Kind and length of the record at a position; a length that cannot be is cut to what can.
    fn head_at(&mut self, position: u64) -> (u32, usize) {
        let at = (position % self.capacity as u64) as usize;
        let most = self.capacity - at - HEAD;
        let bytes = &self.bytes()[DATA + at..DATA + at + HEAD];
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        (word(0), (word(4) as usize).min(most))
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

fn record_size(length: usize) -> usize {
    HEAD + length.next_multiple_of(8)
}

impl AsFd for Ring {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(ring: &mut Ring, stream: Stream, floor: u64, bytes: &[u8]) -> Option<usize> {
        let result = ring.fill(stream, floor, |room| {
            let count = room.len().min(bytes.len());
            room[..count].copy_from_slice(&bytes[..count]);
            Ok(count)
        });
        result.map(|count| count.unwrap())
    }

    /// Reads everything from a position on.
    fn read(ring: &mut Ring, position: &mut u64) -> Vec<u8> {
        let mut all = Vec::new();
        while let At::Output(_, bytes, next) = ring.at(*position) {
            all.extend_from_slice(&bytes);
            *position = next;
        }
        all
    }

    #[test]
    fn what_goes_in_comes_out_however_often_the_end_is_passed() {
        let mut ring = Ring::new(128 << 10, b"{}").unwrap();
        let (mut position, mut sent, mut got) = (0, Vec::new(), Vec::new());
        for n in 0..4000_usize {
            let piece: Vec<u8> = (0..(n * 7919) % 3000 + 1).map(|m| (n * 31 + m) as u8).collect();
            let mut at = 0;
            while at < piece.len() {
                // short where the end of the ring is near
                at += write(&mut ring, Stream::Stdout, position, &piece[at..]).unwrap();
            }
            sent.extend_from_slice(&piece);
            if n % 9 == 0 {
                got.extend(read(&mut ring, &mut position));
            }
        }
        got.extend(read(&mut ring, &mut position));
        assert!(sent == got);
        assert_eq!(ring.output(), sent.len() as u64);
    }

    #[test]
    fn a_reader_holds_the_writer_back_and_without_one_the_oldest_gives_way() {
        let mut ring = Ring::new(128 << 10, b"{}").unwrap();
        let mut held = 0;
        while let Some(count) = write(&mut ring, Stream::Stdout, 0, &[7; 5000]) {
            held += count;
        }
        assert!(held > 120 << 10, "{held}");
        let head = ring.head();
        assert_eq!(write(&mut ring, Stream::Stderr, head, b"new"), Some(3));
        let lost = ring.kept_from();
        assert!(lost > 0 && lost < held as u64);
        let mut position = 0;
        let kept = read(&mut ring, &mut position);
        assert_eq!(kept.len() as u64, held as u64 + 3 - lost);
        assert!(kept.ends_with(b"new"));
    }

    #[test]
    fn input_is_counted_once_wherever_a_daemon_died() {
        let mut ring = Ring::new(128 << 10, b"{}").unwrap();
        // before the stage was filled
        ring.intend_stdin(10);
        ring.settle_stdin(0);
        assert_eq!(ring.stdin(), 0);
        // after, and before it was counted
        ring.intend_stdin(10);
        ring.settle_stdin(10);
        assert_eq!(ring.stdin(), 10);
        // after it was counted, with a part handed on
        ring.intend_stdin(5);
        ring.add_stdin(5);
        ring.settle_stdin(3);
        assert_eq!(ring.stdin(), 15);
    }

    #[test]
    fn an_offset_is_found_within_its_record() {
        let mut ring = Ring::new(128 << 10, b"{}").unwrap();
        write(&mut ring, Stream::Stdout, 0, b"hello");
        write(&mut ring, Stream::Stderr, 0, b"world");
        let (position, skip) = ring.find(7);
        let At::Output(stream, bytes, _) = ring.at(position) else { panic!("nothing there") };
        assert_eq!((stream, &bytes[skip as usize..]), (Stream::Stderr, &b"rld"[..]));
        assert_eq!(ring.find(10), (ring.head(), 0));
        assert_eq!(ring.find(99), (ring.head(), 0));
        assert_eq!(ring.find(0), (0, 0));
    }

    #[test]
    fn another_daemon_reads_on_and_damage_is_refused() {
        let mut ring = Ring::new(128 << 10, b"{\"a\":1}").unwrap();
        write(&mut ring, Stream::Stdout, 0, b"hello");
        ring.add_stdin(11);
        ring.close_stdin();
        let mut again = Ring::open(ring.file.try_clone().unwrap()).unwrap();
        assert_eq!((again.record(), again.stdin(), again.stdin_closed()), (b"{\"a\":1}".to_vec(), 11, true));
        assert_eq!(read(&mut again, &mut 0), b"hello");
        again.set(Word::Tail, 1 << 40);
        assert!(Ring::open(ring.file.try_clone().unwrap()).is_err());
        again.set(Word::Magic, 1);
        assert!(Ring::open(ring.file.try_clone().unwrap()).is_err());
        let short = memfd_create("short", MemfdFlags::CLOEXEC).unwrap();
        assert!(Ring::open(short).is_err());
    }
}
