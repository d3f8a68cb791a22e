//! What the store writes down of images and layers.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::manifest::ImageConfig;

/// An image, ready to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Reference, written out.
    pub reference: String,
    /// Digest of its manifest; of its configuration if it came from a docker-archive, which has no manifest.
    pub digest: String,
    /// Folders of its unpacked layers, the topmost first (overlayfs order), none twice.
    pub layers: Vec<PathBuf>,
    /// What it says of its processes.
    pub config: ImageConfig,
    /// Bytes of its unpacked layers.
    pub size: u64,
    /// RFC 3339 time of the pull or import.
    pub created_at: String,
}

/// `images/<…>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub reference: String,
    pub digest: String,
    /// Digest of the index that led to the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<String>,
    /// Diff ids, the lowest first, none twice.
    pub layers: Vec<String>,
    pub config: ImageConfig,
    pub size: u64,
    pub created_at: String,
    /// Blobs that were kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blobs: Vec<String>,
}

impl Record {
    /// Name of its file: references hold slashes and colons, and may be long.
    pub fn file_name(reference: &str) -> String {
        format!("{}.json", &Digest::of(reference.as_bytes()).hex()[..32])
    }
}

/// `layers/<…>/layer.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LayerRecord {
    pub diff_id: String,
    /// Bytes of its files.
    pub bytes: u64,
    /// Entries of its archive.
    pub entries: u64,
    /// Boot in which it was unpacked. Until an image record names a layer, its content may not have reached the disk;
    /// after another boot such a layer is not trusted.
    pub boot_id: String,
}

/// A layer on disk.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    /// Name of its folder in `layers/`.
    pub folder: String,
    pub record: LayerRecord,
}

impl Layer {
    pub fn files(&self, root: &Path) -> PathBuf {
        root.join("layers").join(&self.folder).join("fs")
    }
}
