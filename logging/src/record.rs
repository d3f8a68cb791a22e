//! Records of a log file: made from the bytes that a pipe gave, and parsed back.

use std::io::Write;

use jiff::Timestamp;

/// Longest line in one record, bytes; a longer one is told in several, all but the last marked `P`.
pub const MAX_LINE: usize = 16 * 1024;

/// Which of a container's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// `stdout` or `stderr`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// One record of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When its first byte was read.
    pub time: Timestamp,
    /// Where it was printed.
    pub stream: Stream,
    /// Whether the line goes on in the next record of this stream.
    pub partial: bool,
    /// Its bytes, without the newline; not necessarily UTF-8.
    pub line: Vec<u8>,
}

impl Entry {
    /// Parses a record without its newline; none if it is torn or none of ours.
    pub(crate) fn parse(record: &[u8]) -> Option<Self> {
        let mut parts = record.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
        let stream = match parts.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        let partial = match parts.next()? {
            b"F" => false,
            b"P" => true,
            _ => return None,
        };
        Some(Self { time, stream, partial, line: parts.next()?.to_vec() })
    }
}

/// Adds a record to a buffer.
fn push(out: &mut Vec<u8>, time: Timestamp, stream: Stream, partial: bool, start: &[u8], end: &[u8]) {
    let mark = if partial { 'P' } else { 'F' };
    // Writing to a vector cannot fail.
    let _ = write!(out, "{time:.9} {} {mark} ", stream.word());
    out.extend_from_slice(start);
    out.extend_from_slice(end);
    out.push(b'\n');
}

/// Makes records of one stream's bytes. Between reads it holds no more than the beginning of an unfinished line.
#[derive(Debug)]
pub(crate) struct Splitter {
    stream: Stream,
    tail: Vec<u8>,
    tail_time: Timestamp,
    /// Whether the line in hand has already begun in a `P` record.
    continued: bool,
}

impl Splitter {
    pub fn new(stream: Stream) -> Self {
        Self { stream, tail: Vec::new(), tail_time: Timestamp::UNIX_EPOCH, continued: false }
    }

    /// Whether an unfinished line is held.
    pub fn holds(&self) -> bool {
        !self.tail.is_empty()
    }

    /// Takes bytes read at `now` and adds the records that they complete.
    pub fn feed(&mut self, mut bytes: &[u8], now: Timestamp, out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let room = MAX_LINE - self.tail.len();
            let window = &bytes[..bytes.len().min(room + 1)];
            let time = if self.tail.is_empty() { now } else { self.tail_time };
            if let Some(at) = window.iter().position(|byte| *byte == b'\n') {
                push(out, time, self.stream, false, &self.tail, &bytes[..at]);
                bytes = &bytes[at + 1..];
                self.continued = false;
            } else if window.len() > room {
                push(out, time, self.stream, true, &self.tail, &bytes[..room]);
                bytes = &bytes[room..];
                self.continued = true;
            } else {
                self.tail_time = time;
                self.tail.extend_from_slice(bytes);
                return;
            }
            // An idle stream must not keep the memory of its longest line.
            self.tail = Vec::new();
        }
    }

    /// Adds the unfinished line as a partial record, so that a prompt is seen and a crash does not lose it.
    pub fn flush_partial(&mut self, out: &mut Vec<u8>) {
        if !self.tail.is_empty() {
            push(out, self.tail_time, self.stream, true, &self.tail, &[]);
            self.tail = Vec::new();
            self.continued = true;
        }
    }

    /// Ends the stream: the unfinished line is finished.
    pub fn end(&mut self, now: Timestamp, out: &mut Vec<u8>) {
        if !self.tail.is_empty() || self.continued {
            let time = if self.tail.is_empty() { now } else { self.tail_time };
            push(out, time, self.stream, false, &self.tail, &[]);
            self.tail = Vec::new();
            self.continued = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(chunks: &[&[u8]]) -> Vec<(bool, Vec<u8>)> {
        let mut splitter = Splitter::new(Stream::Stdout);
        let mut out = Vec::new();
        for chunk in chunks {
            splitter.feed(chunk, Timestamp::now(), &mut out);
        }
        splitter.end(Timestamp::now(), &mut out);
        out.split_inclusive(|byte| *byte == b'\n')
            .map(|record| Entry::parse(&record[..record.len() - 1]).unwrap())
            .map(|entry| (entry.partial, entry.line))
            .collect()
    }

    #[test]
    fn lines_are_not_split_at_reads() {
        let lines = run(&[b"on", b"e\ntwo", b"\n\nfo", b"ur"]);
        let expected: Vec<(bool, Vec<u8>)> =
            ["one", "two", "", "four"].iter().map(|line| (false, line.as_bytes().to_vec())).collect();
        assert_eq!(lines, expected);
    }

    #[test]
    fn long_lines_are_flagged_and_lose_nothing() {
        for length in [MAX_LINE - 1, MAX_LINE, MAX_LINE + 1, 3 * MAX_LINE, 3 * MAX_LINE + 7] {
            let mut text: Vec<u8> = (0..length).map(|i| b'a' + (i % 26) as u8).collect();
            text.push(b'\n');
            for size in [text.len(), 1000, 4096] {
                let chunks: Vec<&[u8]> = text.chunks(size).collect();
                let lines = run(&chunks);
                let joined: Vec<u8> = lines.iter().flat_map(|(_, line)| line.clone()).collect();
                assert_eq!(joined, text[..length], "{length} {size}");
                assert!(lines.iter().all(|(_, line)| line.len() <= MAX_LINE));
                let partial: Vec<bool> = lines.iter().map(|(partial, _)| *partial).collect();
                assert_eq!(partial.iter().filter(|p| !**p).count(), 1, "{length} {size}: {partial:?}");
                assert!(!partial[partial.len() - 1]);
                assert_eq!(partial.len(), length.div_ceil(MAX_LINE), "{length} {size}");
            }
        }
    }

    #[test]
    fn a_flushed_beginning_is_finished_by_the_rest() {
        let mut splitter = Splitter::new(Stream::Stderr);
        let mut out = Vec::new();
        splitter.feed(b"password: ", Timestamp::now(), &mut out);
        splitter.flush_partial(&mut out);
        assert!(!splitter.holds());
        splitter.feed(b"\n", Timestamp::now(), &mut out);
        splitter.end(Timestamp::now(), &mut out);
        let entries: Vec<Entry> = out.split(|byte| *byte == b'\n').filter_map(Entry::parse).collect();
        assert_eq!(entries.len(), 2);
        assert!(entries[0].partial && entries[0].line == b"password: ");
        assert!(!entries[1].partial && entries[1].line.is_empty());
        assert_eq!(entries[1].stream, Stream::Stderr);
    }

    #[test]
    fn bytes_that_are_no_text_are_kept() {
        let all: Vec<u8> = (0..=255).filter(|byte| *byte != b'\n').collect();
        assert_eq!(run(&[&all, b"\n"]), [(false, all)]);
    }

    #[test]
    fn torn_records_are_none() {
        let whole = b"2026-11-20T07:00:00.000000001Z stdout F hello";
        assert_eq!(Entry::parse(whole).unwrap().line, b"hello");
        for length in 0..whole.len() - b"hello".len() {
            assert_eq!(Entry::parse(&whole[..length]), None, "{length}");
        }
        assert_eq!(Entry::parse(b"2026-11-20T07:00:00Z stdin F x"), None);
    }
}
