//! Reading a log while it grows and rotates.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::capture::{Key, LogError, Progress};
use crate::file::log_path;
use crate::read::{LogReader, ReadOptions, open_both, read};
use crate::record::Entry;

/// Records read on the blocking thread at a time.
const BATCH: usize = 256;

/// What one read gives.
type Batch = Result<VecDeque<Entry>, LogError>;

/// The entries of a log, those there already and each new one. Made by [`crate::Capture::follow`].
#[derive(Debug)]
pub struct Follow {
    /// At rest between two reads,
    tailer: Option<Tailer>,
    /// or reading,
    reading: Option<JoinHandle<(Tailer, Batch)>>,
    /// or at the end of what is written.
    waiting: Option<Tailer>,
    ready: VecDeque<Entry>,
    progress: watch::Receiver<Progress>,
    open: bool,
    until_finished: bool,
    removed: bool,
}

impl Follow {
    pub(crate) fn new(dir: &Path, key: &Key, options: ReadOptions, progress: watch::Receiver<Progress>) -> Self {
        let tailer = Tailer {
            dir: dir.to_path_buf(),
            key: key.clone(),
            path: log_path(dir, &key.0, &key.1),
            options,
            start: true,
            files: VecDeque::new(),
            last: None,
        };
        Self {
            tailer: Some(tailer),
            reading: None,
            waiting: None,
            ready: VecDeque::new(),
            progress,
            open: true,
            until_finished: false,
            removed: false,
        }
    }

    /// Ends when no pipe of the container is read any more (its attempt has ended), instead of waiting for the next attempt.
    #[must_use]
    pub fn until_finished(mut self) -> Self {
        self.until_finished = true;
        self
    }

    /// The next entry; waits for it. None when the instance was removed, or with [`Self::until_finished`] when the
    /// container has ended and everything was told. Cancelling the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Entry, LogError>> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Some(Ok(entry));
            }
            if let Some(mut tailer) = self.tailer.take() {
                // Looked at before the files, so that what is written meanwhile wakes this again.
                self.open = self.progress.borrow_and_update().open;
                self.reading = Some(tokio::task::spawn_blocking(move || {
                    let batch = tailer.batch();
                    (tailer, batch)
                }));
            }
            if let Some(reading) = &mut self.reading {
                let read = reading.await;
                self.reading = None;
                let Ok((tailer, batch)) = read else {
                    return Some(Err(LogError::Stopped));
                };
                match batch {
                    Ok(batch) if batch.is_empty() => self.waiting = Some(tailer),
                    Ok(batch) => {
                        self.tailer = Some(tailer);
                        self.ready = batch;
                        continue;
                    }
                    Err(error) => {
                        self.tailer = Some(tailer);
                        return Some(Err(error));
                    }
                }
            }
            if self.waiting.is_none() || self.removed || (self.until_finished && !self.open) {
                return None;
            }
            // One more look after the removal: the files are gone, but those held open still have their end.
            self.removed = self.progress.changed().await.is_err();
            self.tailer = self.waiting.take();
        }
    }
}

/// Where a follower stands in the files.
#[derive(Debug)]
struct Tailer {
    dir: PathBuf,
    key: Key,
    path: PathBuf,
    options: ReadOptions,
    start: bool,
    /// Files still to be read, the first being read.
    files: VecDeque<LogReader>,
    /// The file read last, when `files` has run out.
    last: Option<(u64, u64)>,
}

impl Tailer {
    /// The next entries, none if there are no new ones.
    fn batch(&mut self) -> Batch {
        if self.start {
            let entries = read(&self.dir, &self.key.0, &self.key.1, &self.options)?;
            let (last, files) = entries.into_parts();
            self.files = files;
            self.start = false;
            if !last.is_empty() {
                return Ok(last);
            }
        }
        self.read_on().map_err(|error| LogError::io(format!("reading {}", self.path.display()), error))
    }

    fn read_on(&mut self) -> io::Result<VecDeque<Entry>> {
        let mut batch = VecDeque::new();
        loop {
            while !self.files.is_empty() {
                // Whether there is a later file must be known before the end of this one is seen: only then is the end final.
                let superseded = self.files.len() > 1 || self.superseded()?;
                let Some(file) = self.files.front_mut() else {
                    break;
                };
                while let Some(entry) = file.next_entry()? {
                    if self.options.wants(&entry) {
                        batch.push_back(entry);
                        if batch.len() >= BATCH {
                            return Ok(batch);
                        }
                    }
                }
                if !superseded {
                    return Ok(batch);
                }
                self.last = self.files.pop_front().map(|file| file.id);
            }
            let mut files = open_both(&self.path)?;
            if let Some(last) = self.last
                && let Some(at) = files.iter().position(|file| file.id == last)
            {
                files.drain(..=at);
            }
            if files.is_empty() {
                return Ok(batch);
            }
            self.files = files;
        }
    }

    /// Whether the file being read is no longer the newest.
    fn superseded(&self) -> io::Result<bool> {
        let Some(file) = self.files.front() else {
            return Ok(true);
        };
        Ok(LogReader::open(&self.path)?.is_some_and(|newest| newest.id != file.id))
    }
}
