//! Reading a log as it is.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use jiff::Timestamp;

use crate::capture::{LogError, key};
use crate::file::{log_path, older};
use crate::record::{Entry, Stream};

/// Which part of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOptions {
    /// Only the last so many lines (of what the other options leave).
    pub tail: Option<usize>,
    /// Only what was read at or after this time.
    pub since: Option<Timestamp>,
    /// Whether standard output is wanted.
    pub stdout: bool,
    /// Whether standard error is wanted.
    pub stderr: bool,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { tail: None, since: None, stdout: true, stderr: true }
    }
}

impl ReadOptions {
    pub(crate) fn wants(&self, entry: &Entry) -> bool {
        let stream = match entry.stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        };
        stream && self.since.is_none_or(|since| entry.time >= since)
    }
}

/// The entries of a log, oldest first.
#[derive(Debug)]
pub struct Entries {
    options: ReadOptions,
    files: VecDeque<LogReader>,
    /// The last entries, when only they are wanted.
    last: Option<VecDeque<Entry>>,
}

/// The entries of a container's log as it is now, oldest first. A container that has not printed anything has none. The
/// iterator reads files as it goes: use it on a thread that may block.
pub fn read(dir: &Path, instance: &str, container: &str, options: &ReadOptions) -> Result<Entries, LogError> {
    let key = key(instance, container)?;
    let path = log_path(dir, &key.0, &key.1);
    let files = open_both(&path).map_err(|error| LogError::io(format!("opening {}", path.display()), error))?;
    let mut entries = Entries { options: options.clone(), files, last: None };
    if let Some(count) = options.tail {
        entries.last = Some(last(&mut entries, count)?);
    }
    Ok(entries)
}

/// The last lines; a line told in several records counts once.
fn last(entries: &mut Entries, count: usize) -> Result<VecDeque<Entry>, LogError> {
    let mut kept: VecDeque<Entry> = VecDeque::new();
    let mut lines = 0;
    while let Some(entry) = entries.next_read() {
        let entry = entry?;
        lines += usize::from(!entry.partial);
        kept.push_back(entry);
        while lines > count || (lines == count && count == 0 && !kept.is_empty()) {
            if let Some(dropped) = kept.pop_front() {
                lines -= usize::from(!dropped.partial);
            }
        }
    }
    Ok(kept)
}

impl Entries {
    fn next_read(&mut self) -> Option<Result<Entry, LogError>> {
        loop {
            match self.files.front_mut()?.next_entry() {
                Ok(Some(entry)) if self.options.wants(&entry) => return Some(Ok(entry)),
                Ok(Some(_)) => {}
                // The newest file stays open, for a follower to go on in.
                Ok(None) if self.files.len() == 1 => return None,
                Ok(None) => {
                    self.files.pop_front();
                }
                Err(error) => {
                    self.files.clear();
                    return Some(Err(LogError::io("reading", error)));
                }
            }
        }
    }

    /// What `tail` left, and the files read to where the iterator has come: a follower goes on there.
    pub(crate) fn into_parts(self) -> (VecDeque<Entry>, VecDeque<LogReader>) {
        (self.last.unwrap_or_default(), self.files)
    }
}

impl Iterator for Entries {
    type Item = Result<Entry, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.last {
            Some(last) => last.pop_front().map(Ok),
            None => self.next_read(),
        }
    }
}

/// One file of a log, read record by record.
#[derive(Debug)]
pub(crate) struct LogReader {
    reader: BufReader<File>,
    /// Device and inode: tells files of one name apart.
    pub id: (u64, u64),
    /// The beginning of a record whose end is not yet there.
    torn: Vec<u8>,
}

impl LogReader {
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        let nofollow = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
        let file = match File::options().read(true).custom_flags(nofollow).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        Ok(Some(Self { reader: BufReader::new(file), id: (metadata.dev(), metadata.ino()), torn: Vec::new() }))
    }

    /// The next whole record; none at the end of what is written so far.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        loop {
            self.reader.read_until(b'\n', &mut self.torn)?;
            if self.torn.pop_if(|byte| *byte == b'\n').is_none() {
                return Ok(None);
            }
            let entry = Entry::parse(&self.torn);
            self.torn = Vec::new();
            // What is no record is what a killed daemon left of one.
            if entry.is_some() {
                return Ok(entry);
            }
        }
    }
}

/// Opens the older and the newer file of a log.
pub(crate) fn open_both(path: &Path) -> io::Result<VecDeque<LogReader>> {
    loop {
        // The newer first: a rotation in between then shows as the same file twice, and is looked at again.
        let newer = LogReader::open(path)?;
        let older = LogReader::open(&older(path))?;
        if let (Some(newer), Some(older)) = (&newer, &older)
            && newer.id == older.id
        {
            continue;
        }
        // Between a rotation and the next write there is only the older one, under its new name.
        return Ok(older.into_iter().chain(newer).collect());
    }
}
