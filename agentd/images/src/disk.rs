//! Files of the store: writes that are whole or not there, and removals that tolerate "already gone".

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::error::{ImageError, Result};

/// Makes a folder that only its owner may enter, unless it is there.
pub(crate) fn make_folder(path: &Path) -> Result<()> {
    let result = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    result.map_err(|error| ImageError::io("make folder", path, error))
}

/// Makes entries of a folder (new names, renames) survive a loss of power.
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    let result = File::open(path).and_then(|folder| folder.sync_all());
    result.map_err(|error| ImageError::io("sync folder", path, error))
}

/// Writes a file by way of `temporary`: after a crash at any point `path` has the old content or the new.
pub(crate) fn write_whole(path: &Path, temporary: &Path, content: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(temporary)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(|error| {
        let _ = fs::remove_file(temporary);
        ImageError::io("write", temporary, error)
    })?;
    fs::rename(temporary, path).map_err(|error| ImageError::io("rename into place", path, error))?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// Removes a file that may be gone already; whether it was there.
pub(crate) fn remove_file(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(ImageError::io("remove", path, error)),
    }
}

/// Removes a folder, or a file, that may be gone already.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_dir() => return remove_file(path).map(drop),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(ImageError::io("look at", path, error)),
    }
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(ImageError::io("remove", path, error)),
    }
}

/// Names in a folder that are valid UTF-8; the store makes no other.
pub(crate) fn names(path: &Path) -> Result<Vec<String>> {
    let read = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    };
    read().map_err(|error| ImageError::io("list folder", path, error))
}

/// Id of this boot of the host; empty where the kernel does not tell.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}
