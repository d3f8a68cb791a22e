//! What a host is: [`HostFacts`], and the room on one of its file systems, [`filesystem`].

use std::path::{Path, PathBuf};

use procfs::FromRead;

pub use crate::filesystem::{FileSystem, filesystem};
pub use crate::topology::{Core, Node, Topology};

/// Why a fact could not be had: one line that names the file.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {message}")]
pub struct FactsError {
    /// The file or directory.
    pub path: PathBuf,
    /// What went wrong there.
    pub message: String,
}

impl FactsError {
    pub(crate) fn new(path: impl Into<PathBuf>, message: impl std::fmt::Display) -> Self {
        Self { path: path.into(), message: message.to_string() }
    }
}

/// What a host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// Online CPUs, their cores and NUMA nodes.
    pub topology: Topology,
    /// Memory of the host, bytes.
    pub memory_total: u64,
    /// Memory that programs can have without swapping, bytes, at this moment.
    pub memory_available: u64,
    /// Swap, bytes.
    pub swap_total: u64,
    /// Release of the kernel, e.g. `6.1.0-21-amd64`.
    pub kernel: String,
    /// Name of the host.
    pub hostname: String,
    /// Random id of this boot.
    pub boot_id: String,
    /// Id of this installation (`/etc/machine-id`), if it has one.
    pub machine_id: Option<String>,
    /// Size of a page of memory, bytes.
    pub page_size: u64,
    /// Huge pages by size, the smallest first.
    pub huge_pages: Vec<HugePages>,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HugePages {
    /// Size of one, bytes.
    pub size: u64,
    /// How many the host has set aside.
    pub total: u64,
    /// How many of those nobody uses.
    pub free: u64,
}

impl HostFacts {
    /// Reads this host's facts.
    pub fn read() -> Result<Self, FactsError> {
        Self::read_from(Path::new("/"))
    }

    /// Reads facts from the `proc`, `sys` and `etc` below `root`.
    pub fn read_from(root: &Path) -> Result<Self, FactsError> {
        let path = root.join("proc/meminfo");
        let memory = procfs::Meminfo::from_file(&path).map_err(|e| FactsError::new(&path, e))?;
        Ok(Self {
            topology: Topology::read_from(root)?,
            memory_total: memory.mem_total,
            // Always there since Linux 3.14.
            memory_available: memory.mem_available.unwrap_or(memory.mem_free),
            swap_total: memory.swap_total,
            kernel: line(&root.join("proc/sys/kernel/osrelease"))?,
            hostname: line(&root.join("proc/sys/kernel/hostname"))?,
            boot_id: line(&root.join("proc/sys/kernel/random/boot_id"))?,
            machine_id: machine_id(root),
            page_size: procfs::page_size(),
            huge_pages: huge_pages(&root.join("sys/kernel/mm/hugepages"))?,
        })
    }
}

/// A file of one line.
pub(crate) fn line(path: &Path) -> Result<String, FactsError> {
    let text = std::fs::read_to_string(path).map_err(|e| FactsError::new(path, e))?;
    Ok(text.trim().to_owned())
}

/// A file that holds one number.
fn number(path: &Path) -> Result<u64, FactsError> {
    let text = line(path)?;
    text.parse().map_err(|_| FactsError::new(path, format!("found '{text}', expected a number")))
}

fn machine_id(root: &Path) -> Option<String> {
    ["etc/machine-id", "var/lib/dbus/machine-id"]
        .iter()
        .filter_map(|path| line(&root.join(path)).ok())
        // systemd writes `uninitialized` into images that have not been booted
        .find(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Sizes of huge pages, none on a kernel without them.
fn huge_pages(dir: &Path) -> Result<Vec<HugePages>, FactsError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(FactsError::new(dir, e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| FactsError::new(dir, e))?;
        let name = entry.file_name();
        let size = name.to_str().and_then(|n| n.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok());
        if let Some(kib) = size {
            let at = entry.path();
            let (total, free) = (number(&at.join("nr_hugepages"))?, number(&at.join("free_hugepages"))?);
            found.push(HugePages { size: kib.saturating_mul(1024), total, free });
        }
    }
    found.sort_by_key(|pages| pages.size);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn write(root: &Path, files: &[(&str, &str)]) {
        for (path, content) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
    }

    fn fixture(root: &Path) {
        write(
            root,
            &[
                (
                    "proc/meminfo",
                    "MemTotal:       24684316 kB\nMemFree:        1000 kB\nMemAvailable:   23000000 kB\n\
              Buffers: 1 kB\nCached: 1 kB\nSwapCached: 0 kB\nActive: 1 kB\nInactive: 1 kB\nSwapTotal: 2048 kB\n\
              SwapFree: 0 kB\nDirty: 0 kB\nWriteback: 0 kB\nMapped: 1 kB\nSlab: 1 kB\nCommitted_AS: 1 kB\nVmallocTotal: 1 kB\n\
              VmallocUsed: 1 kB\nVmallocChunk: 0 kB\n",
                ),
                ("proc/sys/kernel/osrelease", "6.1.0-21-amd64\n"),
                ("proc/sys/kernel/hostname", "node7\n"),
                ("proc/sys/kernel/random/boot_id", "b6c2e2c0-8a07-4a0e-9a4c-0a6c1c9a7d11\n"),
                ("etc/machine-id", "uninitialized\n"),
                ("var/lib/dbus/machine-id", "0123456789abcdef0123456789abcdef\n"),
                ("sys/devices/system/cpu/online", "0\n"),
                ("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "0\n"),
                ("sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages", "0\n"),
                ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "8\n"),
                ("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "3\n"),
            ],
        );
    }

    #[test]
    fn a_recorded_host_is_read() {
        let root = tempfile::tempdir().unwrap();
        fixture(root.path());
        let facts = HostFacts::read_from(root.path()).unwrap();
        assert_eq!((facts.memory_total, facts.memory_available), (24_684_316 * 1024, 23_000_000 * 1024));
        assert_eq!(facts.swap_total, 2048 * 1024);
        assert_eq!((facts.kernel.as_str(), facts.hostname.as_str()), ("6.1.0-21-amd64", "node7"));
        assert_eq!(facts.boot_id, "b6c2e2c0-8a07-4a0e-9a4c-0a6c1c9a7d11");
        assert_eq!(facts.machine_id.as_deref(), Some("0123456789abcdef0123456789abcdef"));
        assert_eq!(
            facts.huge_pages,
            [HugePages { size: 2 << 20, total: 8, free: 3 }, HugePages { size: 1 << 30, total: 0, free: 0 }]
        );
        assert_eq!(facts.topology.cpus(), [0]);
    }

    #[test]
    fn what_is_missing_or_odd_is_named() {
        let root = tempfile::tempdir().unwrap();
        fixture(root.path());
        std::fs::remove_file(root.path().join("proc/sys/kernel/random/boot_id")).unwrap();
        let error = HostFacts::read_from(root.path()).unwrap_err().to_string();
        assert!(error.contains("proc/sys/kernel/random/boot_id: "), "{error}");
        fixture(root.path());
        write(root.path(), &[("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "many")]);
        let error = HostFacts::read_from(root.path()).unwrap_err().to_string();
        assert!(error.contains("found 'many', expected a number"), "{error}");
        assert!(HostFacts::read_from(&root.path().join("nowhere")).is_err());
    }

    #[test]
    fn this_host_is_read() {
        let facts = HostFacts::read().unwrap();
        assert!(!facts.topology.cpus().is_empty());
        assert!(facts.memory_total >= facts.memory_available && facts.memory_available > 0);
        assert!(facts.page_size.is_power_of_two() && facts.page_size >= 4096);
        assert_eq!(facts.boot_id.len(), 36);
    }
}
