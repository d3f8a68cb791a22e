//! Manifests, indexes and configurations, as OCI and Docker write them.

use std::collections::BTreeMap;

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{ImageError, Result};
use crate::settings::Limits;

/// Media types asked for.
pub(crate) const ACCEPTED: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

const LAYER_TYPES: &[&str] = &[
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// What an image says of the processes that run in it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageConfig {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`, `NAME=value`.
    pub env: Vec<String>,
    /// `User`, possibly empty.
    pub user: String,
    /// `WorkingDir`, possibly empty.
    pub workdir: String,
    /// `ExposedPorts`, e.g. `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// `Volumes`.
    pub volumes: Vec<String>,
    /// `Labels`.
    pub labels: BTreeMap<String, String>,
    /// `StopSignal`.
    pub stop_signal: Option<String>,
}

/// A layer as a manifest names it.
#[derive(Debug, Clone)]
pub(crate) struct BlobRef {
    /// Of the blob as stored.
    pub digest: Digest,
    /// Bytes as stored.
    pub size: u64,
}

/// An index or a manifest.
pub(crate) enum Document {
    Index(Box<ImageIndex>),
    Manifest(Box<ImageManifest>),
}

/// Architecture of this host, as images name it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

fn wrong(reference: &str, message: impl Into<String>) -> ImageError {
    ImageError::Manifest { reference: reference.into(), message: message.into() }
}

/// Reads a manifest or an index.
pub(crate) fn parse(reference: &str, bytes: &[u8]) -> Result<Document> {
    let value: serde_json::Value = serde_json::from_slice(bytes)
        .map_err(|error| wrong(reference, format!("its manifest is no JSON ({error}); push it again")))?;
    let version = value.get("schemaVersion").and_then(serde_json::Value::as_u64);
    if version != Some(2) {
        return Err(wrong(
            reference,
            format!("its manifest has schema version {version:?}, expected 2; push it again with a current tool"),
        ));
    }
    let malformed =
        |error: serde_json::Error| wrong(reference, format!("its manifest is malformed ({error}); push it again"));
    if value.get("manifests").is_some() {
        serde_json::from_value(value).map(Box::new).map(Document::Index).map_err(malformed)
    } else {
        serde_json::from_value(value).map(Box::new).map(Document::Manifest).map_err(malformed)
    }
}

/// Picks the manifest for this host from an index.
pub(crate) fn choose(reference: &str, index: &ImageIndex) -> Result<BlobRef> {
    let wanted = format!("linux/{}", architecture());
    let mut offered = Vec::new();
    for variant_matters in [true, false] {
        for entry in index.manifests() {
            let Some(platform) = entry.platform() else { continue };
            let name = format!("{}/{}", platform.os(), platform.architecture());
            let variant = platform.variant().as_deref().unwrap_or_default();
            // Every arm64 host is v8; every amd64 host runs the plain variant.
            let plain = matches!((architecture(), variant), (_, "") | ("arm64", "v8") | ("amd64", "v1"));
            if name == wanted && (plain || !variant_matters) {
                return blob_ref(reference, entry);
            }
            if variant_matters && name != "unknown/unknown" {
                offered.push(if variant.is_empty() { name } else { format!("{name}/{variant}") });
            }
        }
    }
    // An index of one manifest without a platform means that one; its configuration is checked later.
    if let [only] = index.manifests().as_slice()
        && only.platform().is_none()
    {
        return blob_ref(reference, only);
    }
    let offered = if offered.is_empty() { "no platform".to_owned() } else { offered.join(", ") };
    Err(ImageError::Platform { reference: reference.into(), wanted, offered })
}

/// Digest and size of a descriptor, checked.
pub(crate) fn blob_ref(reference: &str, descriptor: &Descriptor) -> Result<BlobRef> {
    let digest = Digest::parse(descriptor.digest().as_ref()).map_err(|reason| wrong(reference, reason))?;
    Ok(BlobRef { digest, size: descriptor.size() })
}

/// Configuration and layers (lowest first) of a manifest.
pub(crate) fn parts(reference: &str, manifest: &ImageManifest, limits: &Limits) -> Result<(BlobRef, Vec<BlobRef>)> {
    let config = blob_ref(reference, manifest.config())?;
    if config.size > limits.manifest_bytes {
        return Err(wrong(
            reference,
            format!("its configuration has {} bytes, more than {}", config.size, limits.manifest_bytes),
        ));
    }
    let mut layers = Vec::with_capacity(manifest.layers().len());
    for layer in manifest.layers() {
        let kind = layer.media_type().to_string();
        if !LAYER_TYPES.contains(&kind.as_str()) {
            return Err(wrong(
                reference,
                format!("layer {} is of type {kind}, expected a tar archive (plain, gzip or zstd)", layer.digest()),
            ));
        }
        let layer = blob_ref(reference, layer)?;
        if layer.size > limits.blob_bytes {
            return Err(wrong(
                reference,
                format!("layer {} has {} bytes, more than {}", layer.digest, layer.size, limits.blob_bytes),
            ));
        }
        layers.push(layer);
    }
    Ok((config, layers))
}

/// Reads a configuration: what it says of processes, and the digests of the unpacked layers (lowest first).
pub(crate) fn configuration(
    reference: &str,
    bytes: &[u8],
    layers: usize,
    limits: &Limits,
) -> Result<(ImageConfig, Vec<Digest>)> {
    let parsed: ImageConfiguration = serde_json::from_slice(bytes)
        .map_err(|error| wrong(reference, format!("its configuration is malformed ({error}); push it again")))?;
    let offered = format!("{}/{}", parsed.os(), parsed.architecture());
    let wanted = format!("linux/{}", architecture());
    if offered != wanted {
        return Err(ImageError::Platform { reference: reference.into(), wanted, offered });
    }
    let diff_ids = parsed.rootfs().diff_ids();
    if diff_ids.len() != layers {
        return Err(wrong(
            reference,
            format!("its configuration names {} layers, its manifest {layers}; push it again", diff_ids.len()),
        ));
    }
    if layers > limits.layers {
        return Err(wrong(reference, format!("it has {layers} layers, more than {}; squash it", limits.layers)));
    }
    let diff_ids = diff_ids
        .iter()
        .map(|id| Digest::parse(id).map_err(|reason| wrong(reference, reason)))
        .collect::<Result<_>>()?;
    let mut config = ImageConfig::default();
    if let Some(found) = parsed.config() {
        let list = |value: &Option<Vec<String>>| value.clone().unwrap_or_default();
        config = ImageConfig {
            entrypoint: list(found.entrypoint()),
            cmd: list(found.cmd()),
            env: list(found.env()),
            user: found.user().clone().unwrap_or_default(),
            workdir: found.working_dir().clone().unwrap_or_default(),
            exposed_ports: list(found.exposed_ports()),
            volumes: list(found.volumes()),
            labels: found.labels().clone().unwrap_or_default().into_iter().collect(),
            stop_signal: found.stop_signal().clone().filter(|signal| !signal.is_empty()),
        };
    }
    Ok((config, diff_ids))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(entries: &str) -> ImageIndex {
        match parse("x", format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#).as_bytes()).unwrap() {
            Document::Index(index) => *index,
            Document::Manifest(_) => panic!("a manifest"),
        }
    }

    fn entry(digit: char, platform: &str) -> String {
        let digest = digit.to_string().repeat(64);
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{digest}","size":7{platform}}}"#
        )
    }

    #[test]
    fn the_platform_of_the_host_is_chosen() {
        let arch = architecture();
        let list = [
            entry('a', r#","platform":{"os":"linux","architecture":"s390x"}"#),
            entry('b', r#","platform":{"os":"windows","architecture":"amd64","os.version":"10.0"}"#),
            entry('c', &format!(r#","platform":{{"os":"linux","architecture":"{arch}"}}"#)),
            entry('d', r#","platform":{"os":"unknown","architecture":"unknown"}"#),
        ];
        assert!(choose("x", &index(&list.join(","))).unwrap().digest.hex().starts_with("ccc"));
        let error = choose("x", &index(&list[..2].join(","))).unwrap_err().to_string();
        assert!(error.contains("linux/s390x, windows/amd64") && error.contains(arch), "{error}");
        assert!(choose("x", &index(&entry('e', ""))).unwrap().digest.hex().starts_with("eee"));
    }

    #[test]
    fn docker_nulls_are_read() {
        let id = Digest::of(b"layer");
        let arch = architecture();
        let text = format!(
            r#"{{"architecture":"{arch}","os":"linux","config":{{"Hostname":"","User":"","ExposedPorts":{{"80/tcp":{{}}}},
            "Env":["A=b"],"Cmd":["x"],"Entrypoint":null,"Volumes":null,"WorkingDir":"/w","Labels":null,"OnBuild":null,
            "StopSignal":"SIGQUIT"}},"rootfs":{{"type":"layers","diff_ids":["{id}"]}},"history":[]}}"#
        );
        let (config, ids) = configuration("x", text.as_bytes(), 1, &Limits::default()).unwrap();
        assert_eq!(ids, [id]);
        assert_eq!(config.cmd, ["x"]);
        assert_eq!(config.exposed_ports, ["80/tcp"]);
        assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
        assert!(config.entrypoint.is_empty());
        assert!(configuration("x", text.as_bytes(), 2, &Limits::default()).is_err());
        let other = text.replace(arch, "s390x");
        assert!(matches!(
            configuration("x", other.as_bytes(), 1, &Limits::default()),
            Err(ImageError::Platform { .. })
        ));
    }

    #[test]
    fn foreign_documents_are_refused() {
        for bad in ["", "{}", "[]", r#"{"schemaVersion":1}"#, r#"{"schemaVersion":2}"#] {
            assert!(parse("x", bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
