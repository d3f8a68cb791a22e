//! OCI layouts: `oci-layout`, `index.json`, `blobs/sha256/…`, in a folder or in a tar archive.

use oci_spec::image::{Descriptor, ImageIndex};

use super::Blob;
use crate::digest::Digest;
use crate::error::{ImageError, Result};
use crate::ingest::{Origin, Plan, PlannedLayer};
use crate::manifest::{self, BlobRef, Document};
use crate::settings::Limits;

const TAG: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// Files of a layout, by name below its root.
pub(crate) trait Files {
    /// Opens `name`; none if it is not there.
    fn open(&self, name: &str) -> Result<Option<Blob>>;
    /// Where the layout is, for errors.
    fn place(&self) -> &std::path::Path;
}

/// A layout in a folder.
#[derive(Debug)]
pub(crate) struct Folder(pub std::path::PathBuf);

impl Files for Folder {
    fn open(&self, name: &str) -> Result<Option<Blob>> {
        match Blob::whole(&self.0.join(name)) {
            Ok(blob) => Ok(Some(blob)),
            Err(ImageError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn place(&self) -> &std::path::Path {
        &self.0
    }
}

/// Full name of a descriptor, if it carries one.
fn full_name(descriptor: &Descriptor) -> Option<String> {
    let annotations = descriptor.annotations().as_ref()?;
    let name = annotations.get(CONTAINERD_NAME).or_else(|| annotations.get(TAG))?;
    // A bare tag is no name: `v1` would become docker.io/library/v1.
    (name.contains('/') || annotations.contains_key(CONTAINERD_NAME)).then(|| name.clone())
}

fn has_tag(descriptor: &Descriptor, wanted: &str) -> bool {
    let Some(annotations) = descriptor.annotations() else { return false };
    let whole = crate::reference::normalise(wanted).ok();
    [TAG, CONTAINERD_NAME]
        .iter()
        .filter_map(|key| annotations.get(*key))
        .any(|name| name == wanted || (whole.is_some() && crate::reference::normalise(name).ok() == whole))
}

/// Finds the image in a layout. `tag` selects among several; `reference` is the name to store it under.
pub(crate) fn plan(files: &dyn Files, tag: Option<&str>, reference: Option<&str>, limits: &Limits) -> Result<Plan> {
    let wrong = |message: String| ImageError::Source { path: files.place().into(), message };
    if files.open("oci-layout")?.is_none() {
        return Err(wrong("it has no file oci-layout; expected an OCI layout or a docker-archive".into()));
    }
    let index = files.open("index.json")?.ok_or_else(|| wrong("the OCI layout has no index.json".into()))?;
    let index: ImageIndex = serde_json::from_slice(&index.bytes(limits.manifest_bytes)?)
        .map_err(|error| wrong(format!("index.json is malformed: {error}")))?;
    let images: Vec<&Descriptor> = index.manifests().iter().collect();
    let selected = |wanted: &str| images.iter().copied().find(|image| has_tag(image, wanted));
    let tags = || {
        let names = images.iter().filter_map(|image| image.annotations().as_ref()?.get(TAG).cloned());
        names.collect::<Vec<_>>().join(", ")
    };
    let image = match (tag, reference) {
        (Some(tag), _) => selected(tag)
            .ok_or_else(|| wrong(format!("the OCI layout has no image tagged {tag}; it has: {}", tags())))?,
        (None, Some(reference)) if selected(reference).is_some() => {
            selected(reference).ok_or_else(|| wrong("no image".into()))?
        }
        (None, _) => match images.as_slice() {
            [only] => *only,
            [] => return Err(wrong("the OCI layout has no image".into())),
            _ => match of_one_platform(&index) {
                Some(image) => image,
                None => {
                    return Err(wrong(format!(
                        "the OCI layout has {} images; name one by its tag: {}",
                        images.len(),
                        tags()
                    )));
                }
            },
        },
    };
    let name = match reference {
        Some(reference) => crate::reference::normalise(reference)?,
        None => full_name(image).map(|name| crate::reference::normalise(&name)).transpose()?.ok_or_else(|| {
            wrong("the image carries no name (annotation io.containerd.image.name); give a reference".into())
        })?,
    };
    resolve(files, image, name, limits)
}

/// The image for this host, when `index.json` itself is the index of one image for several platforms.
fn of_one_platform(index: &ImageIndex) -> Option<&Descriptor> {
    let all = index.manifests();
    if all.iter().any(|image| image.platform().is_none()) {
        return None;
    }
    let chosen = manifest::choose("", index).ok()?;
    all.iter().find(|image| image.digest().to_string() == chosen.digest.as_str())
}

fn resolve(files: &dyn Files, image: &Descriptor, name: String, limits: &Limits) -> Result<Plan> {
    let mut at = manifest::blob_ref(&name, image)?;
    let mut index = None;
    let (manifest, digest) = loop {
        let bytes = document(files, &name, &at, "manifest", limits)?;
        match manifest::parse(&name, &bytes)? {
            Document::Manifest(manifest) => break (manifest, at.digest),
            Document::Index(_) if index.is_some() => {
                return Err(ImageError::Manifest {
                    reference: name,
                    message: "its index leads to another index; export it again".into(),
                });
            }
            Document::Index(found) => {
                let chosen = manifest::choose(&name, &found)?;
                index = Some(std::mem::replace(&mut at, chosen).digest);
            }
        }
    };
    let (config, layers) = manifest::parts(&name, &manifest, limits)?;
    let config = document(files, &name, &config, "configuration", limits)?;
    let (config, diff_ids) = manifest::configuration(&name, &config, layers.len(), limits)?;
    let mut planned = Vec::with_capacity(layers.len());
    for (blob, diff_id) in layers.into_iter().zip(diff_ids) {
        let found = files.open(&path_of(&blob.digest))?;
        planned.push(PlannedLayer { diff_id, origin: found.map(Origin::Local), blob: Some(blob) });
    }
    Ok(Plan {
        names: vec![name],
        place: files.place().display().to_string(),
        digest: digest.to_string(),
        index: index.map(|digest| digest.to_string()),
        config,
        layers: planned,
        documents: Vec::new(),
    })
}

fn path_of(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A verified manifest, index or configuration.
fn document(files: &dyn Files, name: &str, blob: &BlobRef, what: &str, limits: &Limits) -> Result<Vec<u8>> {
    let found = files.open(&path_of(&blob.digest))?.ok_or_else(|| ImageError::Source {
        path: files.place().into(),
        message: format!("the OCI layout lacks {what} {}; export the image again", blob.digest),
    })?;
    let bytes = found.bytes(limits.manifest_bytes)?;
    let digest = Digest::of(&bytes);
    if digest == blob.digest {
        return Ok(bytes);
    }
    Err(ImageError::Digest {
        reference: name.to_owned(),
        origin: files.place().display().to_string(),
        what: format!("the {what}"),
        expected: blob.digest.to_string(),
        found: digest.to_string(),
    })
}
