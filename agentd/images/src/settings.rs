//! Settings of the store.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Settings of a [`crate::Store`].
#[derive(Debug, Clone)]
pub struct Settings {
    /// Mirrors of a registry host, asked in this order before the registry itself: `host[:port]`, with `http://` in
    /// front only for a host that may be spoken to without TLS.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// PEM files with certificate authorities to trust, by host (`registry.example.org` or `host:port`).
    pub certificate_authorities: BTreeMap<String, PathBuf>,
    /// Hosts (`host[:port]`) that are spoken to without TLS. Loopback needs no entry.
    pub insecure: Vec<String>,
    /// Credentials in the form of docker and podman (`auth.json`); the first file that has an entry for the host
    /// counts. Files that are not there are passed over; each pull reads them anew.
    pub auth_files: Vec<PathBuf>,
    /// Whether compressed blobs, manifests and configurations stay on disk after a pull.
    pub keep_blobs: bool,
    /// Layers that are fetched at the same time, for each pull.
    pub parallel_fetches: usize,
    /// Layers that are unpacked at the same time, in the whole store.
    pub parallel_unpacks: usize,
    /// How often a blob that broke off is asked for again within one pull.
    pub retries: u32,
    /// How long a registry may take to accept a connection.
    pub connect_timeout: Duration,
    /// How long a registry may be silent within an answer.
    pub read_timeout: Duration,
    /// Fraction of the disk in use (0 to 1) above which [`crate::Store::gc`] removes images.
    pub high_watermark: f64,
    /// Fraction of the disk in use at which it stops.
    pub low_watermark: f64,
    /// Bounds on what an image may hold.
    pub limits: Limits,
}

/// Bounds on what an image may hold. What exceeds one is refused.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a manifest, an index or a configuration.
    pub manifest_bytes: u64,
    /// Bytes of one layer, unpacked.
    pub layer_bytes: u64,
    /// Bytes of one layer, as stored in a registry.
    pub blob_bytes: u64,
    /// Entries of one layer.
    pub entries: u64,
    /// Bytes of one path.
    pub path_bytes: usize,
    /// Folders within each other.
    pub depth: usize,
    /// Layers of one image. overlayfs takes no more than 500.
    pub layers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest_bytes: 4 << 20,
            layer_bytes: 64 << 30,
            blob_bytes: 32 << 30,
            entries: 4_000_000,
            path_bytes: 4096,
            depth: 128,
            layers: 200,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self {
            mirrors: BTreeMap::new(),
            certificate_authorities: BTreeMap::new(),
            insecure: Vec::new(),
            auth_files: vec![PathBuf::from("/etc/agentd/auth.json")],
            keep_blobs: false,
            parallel_fetches: 3,
            parallel_unpacks: threads.clamp(1, 4),
            retries: 3,
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_mins(1),
            high_watermark: 0.85,
            low_watermark: 0.70,
            limits: Limits::default(),
        }
    }
}
