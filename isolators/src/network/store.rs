//! Small files that survive the daemon: each is written beside its name and renamed, so that a reader sees the old or
//! the new content and nothing between.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::ISOLATOR;
use crate::IsolatorError;

/// Ending of files that are being written; a crash can leave them behind.
const UNFINISHED: &str = ".new";

/// Writes `content` to `path`. With `durable`, it is on disk when this returns.
pub(super) fn write(path: &Path, content: &[u8], mode: u32, durable: bool) -> Result<(), IsolatorError> {
    let failed = |error: std::io::Error| {
        IsolatorError::io(ISOLATOR, format!("cannot write {}, check space and permissions", path.display()), error)
    };
    let mut name = path.as_os_str().to_owned();
    name.push(UNFINISHED);
    let unfinished = Path::new(&name);
    // A file left by a crash could have another mode or be a link; it is never opened.
    match fs::remove_file(unfinished) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(unfinished).map_err(failed)?;
    // The umask of the daemon must not decide who in the pod may read.
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed)?;
    file.write_all(content).map_err(failed)?;
    if durable {
        file.sync_all().map_err(failed)?;
    }
    fs::rename(unfinished, path).map_err(failed)?;
    if durable && let Some(folder) = path.parent() {
        fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    }
    Ok(())
}

/// Writes a value as JSON, readable by the daemon's user alone.
pub(super) fn write_json(path: &Path, value: &impl Serialize, durable: bool) -> Result<(), IsolatorError> {
    let content = serde_json::to_vec(value)
        .map_err(|error| IsolatorError::new(ISOLATOR, format!("cannot encode {}: {error}", path.display())))?;
    write(path, &content, 0o600, durable)
}

/// Reads a JSON file; none where it is absent. One that cannot be understood is set aside with a warning: a daemon that
/// refused to start would leave the host's other pods alone too.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "cannot read a file of the network's state");
            }
            return None;
        }
    };
    match serde_json::from_slice(&content) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "set aside a file of the network's state that cannot be understood");
            let mut aside = path.as_os_str().to_owned();
            aside.push(".unreadable");
            let _ = fs::rename(path, &aside);
            None
        }
    }
}

/// Removes a file; one that is already gone is fine.
pub(super) fn remove(path: &Path) -> Result<(), IsolatorError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(IsolatorError::io(ISOLATOR, format!("cannot remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// Removes files in `folder` that a crash left unfinished.
pub(super) fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().ends_with(UNFINISHED) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
