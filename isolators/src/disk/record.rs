//! What the isolator keeps on disk: `disk.json` in the pod's folder, and the project id of an instance.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::{DiskKind, NAME};
use crate::IsolatorError;

/// What `disk.json` keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// What enforces the limit.
    pub(super) kind: DiskKind,
    /// The limit.
    pub(super) bytes: Option<u64>,
    /// The boot in which a loop file was last known to be sound.
    pub(super) boot: String,
}

/// Tells one boot of the host from the next.
pub(super) fn boot_id() -> String {
    static BOOT: OnceLock<String> = OnceLock::new();
    let read = || std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned());
    BOOT.get_or_init(|| read().unwrap_or_default()).clone()
}

/// The project id kept in a file, if it is there and whole.
pub(super) fn read_project(path: &Path) -> Option<u32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Writes a file so that it is either the old one or the new one, also after a crash of the host.
pub(super) fn write_file(path: &Path, content: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    let partial = path.with_extension("tmp");
    let mut file = File::create(&partial)?;
    file.write_all(content)?;
    file.sync_data()?;
    std::fs::rename(&partial, path)
}

/// What was chosen for a pod; none when nothing was yet.
pub(super) fn read_record(pod_dir: &Path) -> Result<Option<Record>, IsolatorError> {
    let path = pod_dir.join("disk.json");
    let failed = |e: io::Error| IsolatorError::io(NAME, format_args!("cannot read {}", path.display()), e);
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| failed(e.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// Keeps what was chosen for a pod. No sync: nothing in a pod's folder outlives the host, and a start waits for no disk.
pub(super) fn write_record(pod_dir: &Path, record: &Record) -> Result<(), IsolatorError> {
    let path = pod_dir.join("disk.json");
    serde_json::to_vec(record)
        .map_err(io::Error::from)
        .and_then(|bytes| {
            let partial = path.with_extension("tmp");
            std::fs::write(&partial, bytes)?;
            std::fs::rename(&partial, &path)
        })
        .map_err(|e| IsolatorError::io(NAME, format_args!("cannot write {}", path.display()), e))
}
