//! The file of one container's log: appended to, and rotated so that a bounded number of bytes is kept.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Path of a container's log.
pub(crate) fn log_path(dir: &Path, instance: &str, container: &str) -> PathBuf {
    dir.join(instance).join(format!("{container}.log"))
}

/// Path of the older half of a log.
pub(crate) fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

/// A log that is written.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    /// Bytes at which the file becomes the older half.
    half: u64,
    open: Option<(File, u64)>,
}

impl LogFile {
    pub fn new(path: PathBuf, max_bytes: u64) -> Self {
        Self { path, half: (max_bytes / 2).max(1), open: None }
    }

    /// Writes whole records and takes what was written out of `records`. After an error the rest is still there, and the
    /// next call goes on at the very byte.
    pub fn write(&mut self, records: &mut Vec<u8>) -> io::Result<()> {
        let mut start = 0;
        let result = self.write_from(records, &mut start);
        records.drain(..start);
        result
    }

    fn write_from(&mut self, records: &[u8], start: &mut usize) -> io::Result<()> {
        while *start < records.len() {
            let rest = &records[*start..];
            let half = self.half;
            let (mut file, size) = self.opened()?;
            let room = usize::try_from(half.saturating_sub(size)).unwrap_or(usize::MAX);
            let take = if rest.len() <= room {
                rest.len()
            } else if let Some(at) = rest[..room].iter().rposition(|byte| *byte == b'\n') {
                at + 1
            } else if size == 0 {
                // A record longer than half of all: only with a tiny limit, and never cut.
                rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |at| at + 1)
            } else {
                std::fs::rename(&self.path, older(&self.path))?;
                self.open = None;
                continue;
            };
            let written = match file.write(&rest[..take]) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero)),
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            *start += written;
            if let Some((_, size)) = &mut self.open {
                *size += written as u64;
            }
        }
        Ok(())
    }

    fn opened(&mut self) -> io::Result<(&File, u64)> {
        if self.open.is_none() {
            if let Some(folder) = self.path.parent() {
                DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            }
            let mut file = OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .mode(0o600)
                .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
                .open(&self.path)?;
            let mut size = file.metadata()?.len();
            // A daemon killed in the middle of a write leaves a torn record: end it, so that it does not spoil the next.
            if size > 0 {
                let mut last = [0];
                file.seek(SeekFrom::Start(size - 1))?;
                file.read_exact(&mut last)?;
                if last != *b"\n" {
                    file.write_all(b"\n")?;
                    size += 1;
                }
            }
            self.open = Some((file, size));
        }
        match &self.open {
            Some((file, size)) => Ok((file, *size)),
            None => Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }
}
