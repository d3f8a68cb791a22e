//! What a container has printed, as if each stream were a file. Blocking.
//!
//! The capture keeps both streams in one log, line by line, so that a place in such a file is found by reading the log
//! from its beginning. Where the log has given up its older half, the file begins later, and is shorter than it was.

use agentd_logging::{Capture, Entries, LogError, ReadOptions, Stream};

/// One of the two files, read from a place on.
#[derive(Debug)]
pub(super) struct LogFile {
    entries: Entries,
    /// Bytes that come before what is wanted.
    skip: u64,
}

/// Sizes of both files.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub stdout: u64,
    pub stderr: u64,
}

pub(super) fn sizes(capture: &Capture, instance: &str, container: &str) -> Result<Sizes, LogError> {
    let mut sizes = Sizes::default();
    for entry in capture.read(instance, container, &ReadOptions::default())? {
        let entry = entry?;
        let length = entry.line.len() as u64 + u64::from(!entry.partial);
        match entry.stream {
            Stream::Stdout => sizes.stdout += length,
            Stream::Stderr => sizes.stderr += length,
        }
    }
    Ok(sizes)
}

impl LogFile {
    /// The file of one stream, from `offset` on.
    pub fn open(
        capture: &Capture,
        instance: &str,
        container: &str,
        stream: Stream,
        offset: u64,
    ) -> Result<Self, LogError> {
        let options = ReadOptions {
            stdout: stream == Stream::Stdout,
            stderr: stream == Stream::Stderr,
            ..ReadOptions::default()
        };
        Ok(Self { entries: capture.read(instance, container, &options)?, skip: offset })
    }

    /// What comes next, at least `wanted` bytes where there are so many, and no more than a line beyond. None at the
    /// end.
    pub fn piece(&mut self, wanted: usize) -> Result<Vec<u8>, LogError> {
        let mut bytes = Vec::new();
        while bytes.len() < wanted {
            let Some(entry) = self.entries.next() else { break };
            let entry = entry?;
            let mut line = entry.line;
            if !entry.partial {
                line.push(b'\n');
            }
            let skipped = self.skip.min(line.len() as u64);
            self.skip -= skipped;
            bytes.extend_from_slice(&line[skipped as usize..]);
        }
        Ok(bytes)
    }

    /// Reads on to the end: how many bytes are left.
    pub fn rest(&mut self) -> Result<u64, LogError> {
        let mut rest = 0;
        for entry in self.entries.by_ref() {
            let entry = entry?;
            rest += entry.line.len() as u64 + u64::from(!entry.partial);
        }
        Ok(rest)
    }

    /// Bytes of the offset that there were none for.
    pub fn beyond(&self) -> u64 {
        self.skip
    }
}

/// Bytes of a stream from `offset` on, at most `length`, and the size of all.
pub(super) fn read(
    capture: &Capture,
    instance: &str,
    container: &str,
    stream: Stream,
    offset: u64,
    length: usize,
) -> Result<(Vec<u8>, u64), LogError> {
    let mut file = LogFile::open(capture, instance, container, stream, offset)?;
    let mut bytes = file.piece(length)?;
    let found = bytes.len() as u64;
    let size = file.rest()? + found + (offset - file.beyond());
    bytes.truncate(length);
    Ok((bytes, size))
}
