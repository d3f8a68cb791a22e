//! Writing and reading checkpoints: a temporary file, then rename, so that a name only ever has a whole content.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// How far a checkpoint must reach before it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Survives the daemon (tmpfs): rename is enough.
    Daemon,
    /// Survives the host: the file and its folder are fsync'd.
    Host,
}

/// A checkpoint that could not be written or read.
#[derive(Debug, thiserror::Error)]
#[error("checkpoint {path}: {source}")]
pub struct CheckpointError {
    path: String,
    source: io::Error,
}

impl CheckpointError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self { path, source }
    }
}

/// Writes `value` as JSON to `path`.
pub fn write<T: Serialize>(path: &Path, value: &T, durability: Durability) -> Result<(), CheckpointError> {
    let bytes = serde_json::to_vec(value).map_err(io::Error::other).map_err(CheckpointError::at(path))?;
    write_bytes(path, &bytes, durability).map_err(CheckpointError::at(path))
}

/// Writes a line of text to `path`, which survives the daemon.
pub fn write_text(path: &Path, text: &str) -> Result<(), CheckpointError> {
    write_bytes(path, text.as_bytes(), Durability::Daemon).map_err(CheckpointError::at(path))
}

fn write_bytes(path: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let temporary = path.with_extension("json.new");
    // specifications may hold what is nobody else's business
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    if durability == Durability::Host {
        file.sync_all()?;
    }
    drop(file);
    std::fs::rename(&temporary, path)?;
    if durability == Durability::Host
        && let Some(folder) = path.parent()
    {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Reads a checkpoint; none if it does not exist.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, CheckpointError> {
    match std::fs::read(path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from).map_err(CheckpointError::at(path))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CheckpointError::at(path)(error)),
    }
}

/// Removes a checkpoint; one that is not there is fine.
pub fn remove(path: &Path, durability: Durability) -> Result<(), CheckpointError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(CheckpointError::at(path)(error)),
        _ => {}
    }
    if durability == Durability::Host
        && let Some(folder) = path.parent()
    {
        File::open(folder).and_then(|f| f.sync_all()).map_err(CheckpointError::at(path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_whole_or_absent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), None);
        write(&path, &vec![1, 2], Durability::Host).unwrap();
        write(&path, &vec![3], Durability::Daemon).unwrap();
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), Some(vec![3]));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        std::fs::write(&path, "[1,").unwrap();
        assert!(read::<Vec<u32>>(&path).unwrap_err().to_string().contains("a.json"));
        remove(&path, Durability::Host).unwrap();
        remove(&path, Durability::Host).unwrap();
    }
}
