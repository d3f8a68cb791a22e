//! Images made by the tests, as layouts, archives and answers of a registry.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use agentd_api::message::Progress;
use agentd_images::{ProgressSink, Settings};
use sha2::{Digest as _, Sha256};

pub mod registry;

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

pub fn hex(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A tar archive of files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        builder.append_data(&mut header, path, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that do not compress.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(length)
    .collect()
}

/// How a layer is stored.
#[derive(Clone, Copy, PartialEq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// An image of which all parts are at hand.
#[derive(Clone)]
pub struct TestImage {
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
    /// The lowest first: archive, and blob as stored.
    pub layers: Vec<(Vec<u8>, Vec<u8>)>,
}

impl TestImage {
    pub fn new(layers: &[(Vec<u8>, Packing)]) -> Self {
        Self::with(layers, architecture(), false)
    }

    pub fn with(layers: &[(Vec<u8>, Packing)], architecture: &str, docker: bool) -> Self {
        let layers: Vec<_> = layers
            .iter()
            .map(|(archive, packing)| {
                let blob = match packing {
                    Packing::Plain => archive.clone(),
                    Packing::Gzip => gzip(archive),
                    Packing::Zstd => zstd::encode_all(&archive[..], 1).unwrap(),
                };
                (archive.clone(), blob, *packing)
            })
            .collect();
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux",
            "config": {"Entrypoint": ["/bin/run"], "Cmd": ["a", "b"], "Env": ["A=1"], "User": "7:8", "WorkingDir": "/w",
                "ExposedPorts": {"80/tcp": {}}, "Labels": {"k": "v"}, "StopSignal": "SIGINT"},
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| digest(&layer.0)).collect::<Vec<_>>()},
        });
        let config = serde_json::to_vec(&config).unwrap();
        let kind = |packing| match (docker, packing) {
            (false, Packing::Plain) => "application/vnd.oci.image.layer.v1.tar",
            (false, Packing::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (_, Packing::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (true, Packing::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
            (true, Packing::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        };
        let (manifest_type, config_type) =
            if docker { (DOCKER_MANIFEST, DOCKER_CONFIG) } else { (OCI_MANIFEST, OCI_CONFIG) };
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": manifest_type,
            "config": {"mediaType": config_type, "digest": digest(&config), "size": config.len()},
            "layers": layers.iter().map(|(_, blob, packing)| serde_json::json!({
                "mediaType": kind(*packing), "digest": digest(blob), "size": blob.len()})).collect::<Vec<_>>(),
        });
        let layers = layers.into_iter().map(|(archive, blob, _)| (archive, blob)).collect();
        Self { config, manifest: serde_json::to_vec(&manifest).unwrap(), layers }
    }

    /// One layer with one file.
    pub fn small(content: &str) -> Self {
        Self::new(&[(tar(&[("file", content.as_bytes())]), Packing::Gzip)])
    }

    pub fn digest(&self) -> String {
        digest(&self.manifest)
    }

    pub fn blobs(&self) -> Vec<&[u8]> {
        let layers = self.layers.iter().map(|layer| &layer.1[..]);
        [&self.config[..], &self.manifest[..]].into_iter().chain(layers).collect()
    }

    /// Descriptor in an index.
    pub fn descriptor(&self, extra: &serde_json::Value) -> serde_json::Value {
        let mut descriptor =
            serde_json::json!({"mediaType": OCI_MANIFEST, "digest": self.digest(), "size": self.manifest.len()});
        for (key, value) in extra.as_object().unwrap() {
            descriptor[key] = value.clone();
        }
        descriptor
    }

    /// The files of a `docker save` archive, with layers as stored.
    pub fn saved(&self, tag: &str) -> Vec<u8> {
        let config = format!("{}.json", hex(&self.config));
        let names: Vec<String> = self.layers.iter().map(|layer| format!("{}/layer.tar", hex(&layer.0))).collect();
        let list = serde_json::json!([{"Config": config, "RepoTags": [tag], "Layers": names}]);
        let list = serde_json::to_vec(&list).unwrap();
        let mut files: Vec<(&str, &[u8])> = vec![(&config, &self.config)];
        files.extend(names.iter().zip(&self.layers).map(|(name, layer)| (name.as_str(), &layer.1[..])));
        files.push(("manifest.json", &list));
        tar(&files)
    }
}

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Files of an OCI layout with images and the annotations of each.
pub fn layout_files(images: &[(&TestImage, serde_json::Value)]) -> Vec<(String, Vec<u8>)> {
    let manifests: Vec<_> = images.iter().map(|(image, extra)| image.descriptor(extra)).collect();
    let index = serde_json::json!({"schemaVersion": 2, "manifests": manifests});
    let mut files = vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), serde_json::to_vec(&index).unwrap()),
    ];
    for (image, _) in images {
        for blob in image.blobs() {
            files.push((format!("blobs/sha256/{}", hex(blob)), blob.to_vec()));
        }
    }
    files
}

pub fn write_layout(folder: &Path, images: &[(&TestImage, serde_json::Value)]) {
    for (name, content) in layout_files(images) {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}

pub fn tagged(tag: &str) -> serde_json::Value {
    serde_json::json!({"annotations": {"org.opencontainers.image.ref.name": tag}})
}

/// Settings that touch nothing of the host and do not wait.
pub fn settings() -> Settings {
    Settings { auth_files: Vec::new(), retries: 2, ..Settings::default() }
}

/// A sink that remembers.
pub fn remember() -> (ProgressSink, Arc<Mutex<Vec<Progress>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let copy = Arc::clone(&seen);
    (Arc::new(move |progress| copy.lock().unwrap().push(progress)), seen)
}

/// What a store has on disk: images, layers, blobs, and leftovers in `tmp/`.
pub fn counts(root: &Path) -> (usize, usize, usize, usize) {
    let count = |name: &str| std::fs::read_dir(root.join(name)).unwrap().count();
    (count("images"), count("layers"), count("blobs/sha256"), count("tmp"))
}
