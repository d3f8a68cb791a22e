//! Recordings of sessions in asciicast v2 (<https://docs.asciinema.org/manual/asciicast/v2/>): a line of JSON as header,
//! then one line for each piece of output.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::record::Record;

/// Writes a recording. Output that is not UTF-8 is written with replacement characters; a character that is split over two
/// pieces is written with the second.
#[derive(Debug)]
pub struct Recorder {
    file: File,
    began: Instant,
    /// Seconds that had passed before this daemon took the session over.
    before: f64,
    carried: Vec<u8>,
    left: u64,
    failed: bool,
    tty: bool,
}

/// Where the recording of a session is.
pub fn path(state: &Path, id: &str) -> PathBuf {
    state.join("recordings").join(format!("{id}.cast"))
}

impl Recorder {
    /// Begins a recording. That of an earlier session with the same id stays, under a name with the time of its last change.
    pub fn begin(state: &Path, record: &Record, size: Option<(u16, u16)>, most: u64, now_ms: u64) -> io::Result<Self> {
        let path = path(state, &record.id);
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            Ok(earlier) => {
                let at = earlier.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis();
                std::fs::rename(&path, path.with_extension(format!("{at}.cast")))?;
            }
        }
        Self::go_on(state, record, size, most, now_ms)
    }

    /// Goes on with a recording after a restart. `size`: rows and columns. At most `most` bytes are written.
    pub fn go_on(state: &Path, record: &Record, size: Option<(u16, u16)>, most: u64, now_ms: u64) -> io::Result<Self> {
        let path = path(state, &record.id);
        if let Some(folder) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let mut file = File::options().create(true).append(true).mode(0o600).open(&path)?;
        let length = file.metadata()?.len();
        if length == 0 {
            let (rows, columns) = size.unwrap_or((24, 80));
            let header = serde_json::json!({
                "version": 2, "width": columns, "height": rows, "timestamp": record.started_ms / 1000,
                "title": format!("{} {}/{}: {}", record.principal, record.pod, record.container, record.command.join(" ")),
            });
            file.write_all(format!("{header}\n").as_bytes())?;
        }
        let before = now_ms.saturating_sub(record.started_ms) as f64 / 1000.0;
        Ok(Self {
            file,
            began: Instant::now(),
            before,
            carried: Vec::new(),
            left: most.saturating_sub(length),
            failed: false,
            tty: record.tty,
        })
    }

    /// Adds output.
    pub fn output(&mut self, bytes: &[u8]) {
        if self.failed || bytes.is_empty() {
            return;
        }
        let mut all = std::mem::take(&mut self.carried);
        all.extend_from_slice(bytes);
        let whole = all.len() - unfinished(&all);
        self.carried = all.split_off(whole);
        self.write(&all);
    }

    fn write(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let seconds = self.before + self.began.elapsed().as_secs_f64();
        let mut text = String::from_utf8_lossy(bytes).into_owned();
        if !self.tty {
            // a player shows a terminal, where only this begins a line
            text = text.replace('\n', "\r\n");
        }
        let line = format!("[{seconds:.6}, \"o\", {}]\n", serde_json::Value::String(text));
        if line.len() as u64 > self.left {
            self.failed = true;
            tracing::warn!("a recording has reached its largest size and ends here");
            return;
        }
        self.left -= line.len() as u64;
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            self.failed = true;
            tracing::error!("a recording cannot be written and ends here: {error}");
        }
    }

    /// Writes what is left.
    pub fn finish(mut self) {
        let rest = std::mem::take(&mut self.carried);
        if !self.failed {
            self.write(&rest);
        }
    }
}

/// Bytes at the end that begin a character and do not finish it.
fn unfinished(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let byte = bytes[bytes.len() - back];
        let needs = match byte {
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf7 => 4,
            0x80..=0xbf => continue,
            _ => return 0,
        };
        return if needs > back { back } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_unfinished_is_carried() {
        assert_eq!(unfinished("aü".as_bytes()), 0);
        assert_eq!(unfinished(&"aü".as_bytes()[..2]), 1);
        assert_eq!(unfinished(&"€".as_bytes()[..2]), 2);
        assert_eq!(unfinished(&"😀".as_bytes()[..3]), 3);
        assert_eq!(unfinished(&[0x80, 0x80, 0x80]), 0);
        assert_eq!(unfinished(b""), 0);
    }
}
