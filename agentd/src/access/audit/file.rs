//! The files of the audit log.
//!
//! `audit.log` is appended to. Once it is large enough it is renamed to `audit.log.<number of its first record>` and a new one
//! goes on with the chain. `audit.log.head` holds number and hash of the last record, so that a cut end is noticed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::chain::{self, Entry, LONGEST_LINE, NO_LINE, Record};

/// How the log is kept.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Size at which a new file is begun, bytes.
    pub max_bytes: u64,
    /// Earlier files that are kept; 0 means all.
    pub files: usize,
    /// Whether each record is on disk before the call goes on.
    pub sync: bool,
}

/// The log, open for writing.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    settings: Settings,
    file: File,
    inode: u64,
    size: u64,
    /// Number of the first record of the file.
    first: u64,
    head: File,
    seq: u64,
    prev: String,
}

/// The end of a file.
#[derive(Debug, Default)]
struct Tail {
    /// Its last whole line.
    line: Option<String>,
    /// Bytes behind that.
    torn: u64,
}

impl Log {
    /// Opens the log and goes on with its chain.
    pub fn open(path: &Path, settings: Settings) -> Result<Self, String> {
        let fail = |error: io::Error| format!("the audit log {} cannot be opened: {error}", path.display());
        let folder = path.parent().ok_or_else(|| format!("the audit log {}: expected a file", path.display()))?;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(fail)?;
        let mut file = open(path).map_err(fail)?;
        let mut notes = Vec::new();
        let tail = tail(&mut file).map_err(fail)?;
        if tail.torn > 0 {
            let whole = file.metadata().map_err(fail)?.len() - tail.torn;
            file.set_len(whole).map_err(fail)?;
            notes.push(format!("{} bytes of a record that was not written whole were removed", tail.torn));
        }
        let mut last = tail.line;
        if last.is_none()
            && let Some(earlier) = earlier(path).map_err(fail)?.pop()
        {
            last = File::open(&earlier).and_then(|mut file| self::tail(&mut file)).map_err(fail)?.line;
        }
        let head_path = head_path(path);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let mut head = options.open(&head_path).map_err(fail)?;
        let mut text = String::new();
        let known =
            Read::by_ref(&mut head).take(200).read_to_string(&mut text).ok().and_then(|_| chain::read_head(&text));
        let noted_seq = known.as_ref().map_or(0, |(seq, _)| *seq);
        let mut seq = 0;
        let mut prev = NO_LINE.to_owned();
        if let Some(line) = last {
            prev = chain::digest(line.as_bytes());
            match chain::read(&line) {
                Ok(record) => seq = record.seq,
                Err(fault) => {
                    seq = noted_seq;
                    notes.push(format!("the last record found is at fault: {fault}"));
                }
            }
        }
        if noted_seq > seq {
            notes.push(format!("the records {} to {noted_seq} were missing when the log was opened", seq + 1));
            seq = noted_seq;
        }
        let metadata = file.metadata().map_err(fail)?;
        let mut log = Self {
            path: path.to_owned(),
            settings,
            inode: metadata.ino(),
            size: metadata.len(),
            first: first(&mut file).map_err(fail)?.unwrap_or(seq + 1),
            file,
            head,
            seq,
            prev,
        };
        let begin = format!("agentd {} begins, process {}", env!("CARGO_PKG_VERSION"), std::process::id());
        for note in std::iter::once(begin).chain(notes) {
            log.append(Entry::Note { note })?;
        }
        Ok(log)
    }

    /// Writes a record; gives its number.
    pub fn append(&mut self, entry: Entry) -> Result<u64, String> {
        let path = self.path.clone();
        self.try_append(entry).map_err(|error| {
            format!(
                "the audit log {} cannot be written: {error}; free its disk or choose another api.audit",
                path.display()
            )
        })
    }

    fn try_append(&mut self, entry: Entry) -> io::Result<u64> {
        let there = std::fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode);
        if !there {
            self.begin_file()?;
            self.write(Entry::Note { note: "the file of the log was moved or removed while in use".to_owned() })?;
        } else if self.size >= self.settings.max_bytes {
            let to = earlier_name(&self.path, self.first);
            std::fs::rename(&self.path, &to)?;
            self.begin_file()?;
            self.drop_oldest();
            let name = to.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            self.write(Entry::Note { note: format!("goes on from {name}") })?;
        }
        self.write(entry)
    }

    fn write(&mut self, entry: Entry) -> io::Result<u64> {
        let seq = self.seq + 1;
        let time = jiff::Timestamp::now().to_string();
        let record = Record { seq, time, prev: self.prev.clone(), entry };
        let mut line = chain::line(&record)?;
        let hash = chain::digest(line.as_bytes());
        line.push('\n');
        let written = self
            .file
            .write_all(line.as_bytes())
            .and_then(|()| if self.settings.sync { self.file.sync_data() } else { Ok(()) });
        if let Err(error) = written {
            // a part of a line would tie the next one to something that nobody knows
            self.file.set_len(self.size)?;
            return Err(error);
        }
        // the line is there: the next one follows it, whatever comes of the head
        self.size += line.len() as u64;
        let head = chain::head(seq, &hash);
        (self.seq, self.prev) = (seq, hash);
        self.head.write_all_at(head.as_bytes(), 0)?;
        Ok(seq)
    }

    fn begin_file(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        let metadata = self.file.metadata()?;
        (self.inode, self.size, self.first) = (metadata.ino(), metadata.len(), self.seq + 1);
        Ok(())
    }

    /// Removes the earlier files that are too many. One that cannot be removed is tried again the next time.
    fn drop_oldest(&self) {
        let Ok(files) = earlier(&self.path) else { return };
        let many = if self.settings.files == 0 { 0 } else { files.len().saturating_sub(self.settings.files) };
        for old in &files[..many] {
            if let Err(error) = std::fs::remove_file(old) {
                tracing::warn!("{}: {error}", old.display());
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// Where number and hash of the last record stand.
pub fn head_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".head");
    name.into()
}

fn earlier_name(path: &Path, first: u64) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{first:012}"));
    name.into()
}

/// The earlier files of a log, oldest first.
pub fn earlier(path: &Path) -> io::Result<Vec<PathBuf>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let file_name = entry?.file_name();
        let number =
            file_name.to_str().and_then(|text| text.strip_prefix(name)).and_then(|text| text.strip_prefix('.'));
        if let Some(number) = number.filter(|text| text.len() >= 12).and_then(|text| text.parse::<u64>().ok()) {
            found.push((number, folder.join(&file_name)));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Number of the first record of a file, where it has one that can be read.
fn first(file: &mut File) -> io::Result<Option<u64>> {
    let mut start = vec![0; LONGEST_LINE];
    let count = file.read_at(&mut start, 0)?;
    let line = start[..count].split(|byte| *byte == b'\n').next().unwrap_or_default();
    Ok(std::str::from_utf8(line).ok().and_then(|line| chain::read(line).ok()).map(|record| record.seq))
}

fn tail(file: &mut File) -> io::Result<Tail> {
    let length = file.metadata()?.len();
    let from = length.saturating_sub(2 * LONGEST_LINE as u64);
    file.seek(SeekFrom::Start(from))?;
    let mut end = Vec::new();
    file.take(2 * LONGEST_LINE as u64).read_to_end(&mut end)?;
    let Some(newline) = end.iter().rposition(|byte| *byte == b'\n') else {
        return Ok(Tail { line: None, torn: end.len() as u64 });
    };
    let torn = (end.len() - newline - 1) as u64;
    let start = end[..newline].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    Ok(Tail { line: Some(String::from_utf8_lossy(&end[start..newline]).into_owned()), torn })
}

#[cfg(test)]
mod tests {
    use std::io::BufRead;

    use super::super::chain::Verifier;
    use super::*;

    const SETTINGS: Settings = Settings { max_bytes: 1 << 20, files: 0, sync: false };

    fn note(text: &str) -> Entry {
        Entry::Note { note: text.to_owned() }
    }

    /// All lines of a log, oldest first; panics where the chain does not hold.
    fn verified(path: &Path) -> Vec<Record> {
        let mut verifier = Verifier::default();
        let mut records = Vec::new();
        for file in earlier(path).unwrap().into_iter().chain([path.to_owned()]) {
            for line in io::BufReader::new(File::open(file).unwrap()).lines() {
                records.push(verifier.line(&line.unwrap()).unwrap_or_else(|fault| panic!("{fault}")));
            }
        }
        verifier.end(chain::read_head(&std::fs::read_to_string(head_path(path)).unwrap())).unwrap();
        records
    }

    fn folder() -> tempfile::TempDir {
        tempfile::Builder::new().prefix("agentd-test-audit-").tempdir().unwrap()
    }

    #[test]
    fn the_chain_goes_on_over_files_and_starts() {
        let folder = folder();
        let path = folder.path().join("deep/audit.log");
        for round in 0..3 {
            let mut log = Log::open(&path, Settings { max_bytes: 2000, ..SETTINGS }).unwrap();
            for n in 0..20 {
                log.append(note(&format!("{round} {n}"))).unwrap();
            }
        }
        assert!(earlier(&path).unwrap().len() > 3);
        let records = verified(&path);
        assert_eq!(
            records.iter().filter(|r| !matches!(&r.entry, Entry::Note { note } if note.contains(['f', 'b']))).count(),
            60
        );
        // an open that finds no current file takes up the newest earlier one
        let count = earlier(&path).unwrap().len();
        std::fs::rename(&path, earlier_name(&path, 999_999)).unwrap();
        Log::open(&path, SETTINGS).unwrap();
        assert_eq!(earlier(&path).unwrap().len(), count + 1);
        verified(&path);
    }

    #[test]
    fn a_head_that_cannot_be_written_does_not_break_the_chain() {
        let folder = folder();
        let path = folder.path().join("audit.log");
        let mut log = Log::open(&path, SETTINGS).unwrap();
        let head = std::mem::replace(&mut log.head, File::open(head_path(&path)).unwrap());
        assert!(log.append(note("the head cannot be written")).is_err());
        log.head = head;
        log.append(note("after")).unwrap();
        assert_eq!(verified(&path).len(), 3);
    }

    #[test]
    fn old_files_are_removed_and_the_rest_verifies() {
        let folder = folder();
        let path = folder.path().join("audit.log");
        let mut log = Log::open(&path, Settings { max_bytes: 1000, files: 2, sync: true }).unwrap();
        for n in 0..60 {
            log.append(note(&n.to_string())).unwrap();
        }
        assert_eq!(earlier(&path).unwrap().len(), 2);
        assert!(verified(&path).len() < 60);
    }

    #[test]
    fn a_torn_end_is_removed_and_noted() {
        let folder = folder();
        let path = folder.path().join("audit.log");
        Log::open(&path, SETTINGS).unwrap().append(note("whole")).unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"seq\":3,\"ti").unwrap();
        Log::open(&path, SETTINGS).unwrap();
        let records = verified(&path);
        assert!(matches!(&records.last().unwrap().entry, Entry::Note { note } if note.starts_with("12 bytes")));
    }

    #[test]
    fn a_cut_end_is_noted_and_numbers_are_not_used_twice() {
        let folder = folder();
        let path = folder.path().join("audit.log");
        let mut log = Log::open(&path, SETTINGS).unwrap();
        (0..5).for_each(|n| assert!(log.append(note(&n.to_string())).is_ok()));
        drop(log);
        let text = std::fs::read_to_string(&path).unwrap();
        let kept: Vec<&str> = text.lines().take(3).collect();
        std::fs::write(&path, kept.join("\n") + "\n").unwrap();
        Log::open(&path, SETTINGS).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("the records 4 to 6 were missing"), "{text}");
        let mut verifier = Verifier::default();
        let faults: Vec<_> = text.lines().filter_map(|line| verifier.line(line).err()).collect();
        assert_eq!(faults, [chain::Fault::Missing { first: 4, last: 6 }]);
    }

    #[test]
    fn a_file_that_is_moved_away_is_begun_anew() {
        let folder = folder();
        let path = folder.path().join("audit.log");
        let mut log = Log::open(&path, SETTINGS).unwrap();
        std::fs::remove_file(&path).unwrap();
        log.append(note("after")).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.lines().count() == 2 && text.contains("moved or removed"), "{text}");
    }

    #[test]
    fn a_link_is_not_followed() {
        let folder = folder();
        let path = folder.path().join("audit.log");
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &path).unwrap();
        assert!(Log::open(&path, SETTINGS).unwrap_err().contains("audit.log"));
    }
}
