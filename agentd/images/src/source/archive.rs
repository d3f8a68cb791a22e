//! Tar archives that hold images: those of `docker save` (`manifest.json`) and OCI layouts in a tar.
//!
//! The archive is not unpacked: its members are found by their headers, and layers are read from where they lie, several
//! at a time. A compressed archive is first decompressed into the store's `tmp/`.

use std::cell::Cell;
use std::collections::HashMap;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::Deserialize;

use super::Blob;
use super::layout::{self, Files};
use crate::digest::Digest;
use crate::error::{ImageError, Result};
use crate::ingest::{Origin, Plan, PlannedLayer};
use crate::manifest;
use crate::settings::Limits;
use crate::unpack::Compression;

/// Bytes of headers before one member.
const BUDGET: u64 = 1 << 20;
/// Members an archive may have.
const MEMBERS: usize = 100_000;

/// An archive and where its members lie.
#[derive(Debug)]
pub(crate) struct Archive {
    path: PathBuf,
    members: HashMap<String, Member>,
    blob: Blob,
}

#[derive(Debug)]
enum Member {
    File {
        offset: u64,
        length: u64,
    },
    /// Older versions of docker save store a repeated layer once and link to it.
    Link(String),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Files for Archive {
    fn open(&self, name: &str) -> Result<Option<Blob>> {
        let mut name = clean(name);
        for _ in 0..8 {
            match self.members.get(&name) {
                Some(Member::File { offset, length }) => return Ok(Some(self.blob.part(*offset, *length))),
                Some(Member::Link(target)) => {
                    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
                    name = clean(&format!("{folder}/{target}"));
                }
                None => return Ok(None),
            }
        }
        Ok(None)
    }

    fn place(&self) -> &Path {
        &self.path
    }
}

/// A member's name without `./` and with `..` resolved within the archive.
fn clean(name: &str) -> String {
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

impl Archive {
    /// Finds the members of the archive at `path`. `spool` is where a compressed one is decompressed to; the file is
    /// removed as soon as it is open.
    pub(crate) fn open(path: &Path, spool: &Path, limits: &Limits) -> Result<Self> {
        let mut blob = Blob::whole(path)?;
        let mut first = Vec::new();
        blob.reader().take(4).read_to_end(&mut first).map_err(|error| ImageError::io("read", path, error))?;
        match Compression::of(&first) {
            Compression::None => {}
            Compression::Gzip => {
                let from = io::BufReader::with_capacity(1 << 18, blob.reader());
                blob = decompress(path, flate2::bufread::MultiGzDecoder::new(from), spool, limits)?;
            }
            Compression::Zstd => {
                let from = zstd::stream::read::Decoder::new(blob.reader());
                let from = from.map_err(|error| ImageError::io("decompress", path, error))?;
                blob = decompress(path, from, spool, limits)?;
            }
        }
        let members = members(path, &blob)?;
        Ok(Self { path: path.to_owned(), members, blob })
    }

    /// Finds the image in the archive.
    pub(crate) fn plan(&self, reference: Option<&str>, limits: &Limits) -> Result<Plan> {
        if let Some(saved) = self.open("manifest.json")? {
            return self.saved(&saved, reference, limits);
        }
        if self.members.contains_key("oci-layout") {
            return layout::plan(self, None, reference, limits);
        }
        Err(self
            .wrong("it has neither manifest.json nor oci-layout; expected the output of docker save or an OCI layout"))
    }

    fn wrong(&self, message: impl Into<String>) -> ImageError {
        ImageError::Source { path: self.path.clone(), message: message.into() }
    }

    fn saved(&self, list: &Blob, reference: Option<&str>, limits: &Limits) -> Result<Plan> {
        let list: Vec<Saved> = serde_json::from_slice(&list.bytes(limits.manifest_bytes)?)
            .map_err(|error| self.wrong(format!("manifest.json is malformed: {error}")))?;
        let wanted = reference.map(crate::reference::normalise).transpose()?;
        let carries = |image: &&Saved| {
            let mut tags = image.repo_tags.iter().flatten();
            tags.any(|tag| wanted.is_some() && crate::reference::normalise(tag).ok() == wanted)
        };
        let image = match (list.iter().find(carries), list.as_slice()) {
            (Some(image), _) | (None, [image]) => image,
            (None, []) => return Err(self.wrong("manifest.json names no image")),
            (None, several) => {
                let tags: Vec<_> = several.iter().flat_map(|image| image.repo_tags.iter().flatten()).cloned().collect();
                return Err(self.wrong(format!(
                    "the archive has {} images; name one: {}",
                    several.len(),
                    tags.join(", ")
                )));
            }
        };
        let names = if let Some(name) = wanted {
            vec![name]
        } else {
            let tags = image.repo_tags.iter().flatten();
            tags.map(|tag| crate::reference::normalise(tag)).collect::<Result<Vec<_>>>()?
        };
        let Some(name) = names.first().cloned() else {
            return Err(self.wrong("the image carries no name; give a reference"));
        };
        let member = |path: &str, what: &str| {
            self.open(path)?.ok_or_else(|| self.wrong(format!("the archive lacks {what} {path}; save the image again")))
        };
        let bytes = member(&image.config, "configuration")?.bytes(limits.manifest_bytes)?;
        let digest = Digest::of(&bytes);
        // Docker names the configuration by its digest: `<hex>.json`, or `blobs/sha256/<hex>`.
        let stem = image.config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
        if stem.len() == 64 && stem.bytes().all(|byte| byte.is_ascii_hexdigit()) && stem != digest.hex() {
            return Err(ImageError::Digest {
                reference: name,
                origin: self.path.display().to_string(),
                what: "the configuration".into(),
                expected: format!("sha256:{stem}"),
                found: digest.to_string(),
            });
        }
        let (config, diff_ids) = manifest::configuration(&name, &bytes, image.layers.len(), limits)?;
        let mut layers = Vec::with_capacity(diff_ids.len());
        for (path, diff_id) in image.layers.iter().zip(diff_ids) {
            let origin = Some(Origin::Local(member(path, "layer")?));
            layers.push(PlannedLayer { diff_id, origin, blob: None });
        }
        Ok(Plan {
            names,
            place: self.path.display().to_string(),
            digest: digest.to_string(),
            index: None,
            config,
            layers,
            documents: Vec::new(),
        })
    }
}

/// Reads no more than a budget, which whoever looks on renews.
struct Metered {
    inner: super::BlobReader,
    budget: Rc<Cell<u64>>,
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let found = self.inner.read(buffer)? as u64;
        let left = self.budget.get().checked_sub(found);
        self.budget.set(left.ok_or_else(|| io::Error::other(format!("more than {BUDGET} bytes of headers")))?);
        Ok(found as usize)
    }
}

impl Seek for Metered {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

fn members(path: &Path, blob: &Blob) -> Result<HashMap<String, Member>> {
    let wrong = |error: io::Error| ImageError::Source {
        path: path.to_owned(),
        message: format!("no readable tar archive ({error}); expected the output of docker save or an OCI layout"),
    };
    let mut members = HashMap::new();
    // Long names and extension headers are read into memory: bounded between one member and the next.
    let budget = Rc::new(Cell::new(BUDGET));
    let mut archive = tar::Archive::new(Metered { inner: blob.reader(), budget: Rc::clone(&budget) });
    for entry in archive.entries_with_seek().map_err(wrong)? {
        let entry = entry.map_err(wrong)?;
        budget.set(BUDGET);
        let name = clean(&String::from_utf8_lossy(&entry.path_bytes()));
        let member = match entry.header().entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                Member::File { offset: entry.raw_file_position(), length: entry.size() }
            }
            tar::EntryType::Symlink => Member::Link(
                entry.link_name_bytes().map(|link| String::from_utf8_lossy(&link).into_owned()).unwrap_or_default(),
            ),
            // Seen from the archive's root rather than from the link.
            tar::EntryType::Link => {
                let target = entry.link_name_bytes().map(|link| String::from_utf8_lossy(&link).into_owned());
                let up = "../".repeat(name.matches('/').count());
                Member::Link(format!("{up}{}", target.unwrap_or_default()))
            }
            _ => continue,
        };
        if let Member::File { offset, length } = &member
            && offset.checked_add(*length).is_none_or(|end| end > blob.length)
        {
            return Err(ImageError::Source {
                path: path.to_owned(),
                message: format!("the archive is cut off within {name}; save the image again"),
            });
        }
        members.insert(name, member);
        if members.len() > MEMBERS {
            let message = format!("the archive has more than {MEMBERS} members");
            return Err(ImageError::Source { path: path.to_owned(), message });
        }
    }
    Ok(members)
}

fn decompress(path: &Path, from: impl Read, spool: &Path, limits: &Limits) -> Result<Blob> {
    let most = limits.layer_bytes;
    let mut file = std::fs::File::create_new(spool).map_err(|error| ImageError::io("create", spool, error))?;
    let opened = Blob::whole(spool);
    // The name is no longer needed, and a crash must not leave gigabytes behind.
    let _ = std::fs::remove_file(spool);
    let mut opened = opened?;
    let mut from = from.take(most);
    let mut buffer = vec![0; 1 << 18];
    loop {
        let found = from.read(&mut buffer).map_err(|error| ImageError::Source {
            path: path.to_owned(),
            message: format!("the compressed archive is damaged: {error}"),
        })?;
        if found == 0 {
            break;
        }
        io::Write::write_all(&mut file, &buffer[..found]).map_err(|error| ImageError::io("write", spool, error))?;
    }
    opened.length = file.stream_position().map_err(|error| ImageError::io("write", spool, error))?;
    if opened.length >= most {
        let message = format!("the archive has more than {most} bytes, decompressed");
        return Err(ImageError::Source { path: path.to_owned(), message });
    }
    Ok(opened)
}
