//! Container images made of the `testbox` program: OCI image layouts (folders) and docker archives (tar files).
//!
//! Digests depend on the content only (times are 0, owners are root), so the same image is the same everywhere.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::program;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const REFERENCE: &str = "org.opencontainers.image.ref.name";

/// What the image says about its containers, and layers above the one that holds the program.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`, as `NAME=value`.
    pub env: Vec<String>,
    /// `User`; empty means root.
    pub user: String,
    /// `WorkingDir`; empty means `/`.
    pub working_dir: String,
    /// More layers, lowest first.
    pub layers: Vec<Vec<Entry>>,
}

impl Config {
    /// A configuration whose containers run `words` when nothing else is asked for.
    pub fn command(words: &[&str]) -> Self {
        Self { cmd: words.iter().map(|word| (*word).to_owned()).collect(), ..Self::default() }
    }
}

/// One entry of a layer.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Path in the image, without a leading slash. Written as it is: a hostile image may say `../x`.
    pub path: String,
    /// What is there.
    pub content: Content,
}

/// What an entry of a layer is.
#[derive(Debug, Clone)]
pub enum Content {
    /// A folder with this mode.
    Folder(u32),
    /// A file with this mode and these bytes. A whiteout is an empty one named `.wh.NAME`.
    File(u32, Vec<u8>),
    /// A symbolic link to this target.
    Link(String),
    /// A hard link to this path of the image.
    HardLink(String),
    /// A character device with this major and minor number.
    Device(u32, u32),
}

impl Entry {
    /// A file with mode 0644.
    pub fn file(path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        Self { path: path.to_owned(), content: Content::File(0o644, bytes.into()) }
    }

    /// A folder with mode 0755.
    pub fn folder(path: &str) -> Self {
        Self { path: path.to_owned(), content: Content::Folder(0o755) }
    }

    /// A symbolic link.
    pub fn link(path: &str, target: &str) -> Self {
        Self { path: path.to_owned(), content: Content::Link(target.to_owned()) }
    }
}

/// Writes the image into the OCI layout folder `dir` under the name `tag`, beside the images that are there already.
pub fn write(dir: &Path, tag: &str, binary: &Path, config: &Config) -> io::Result<()> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let image = Image::new(binary, config)?;
    let mut layers = Vec::new();
    for layer in &image.layers {
        layers.push(json!({"mediaType": LAYER, "digest": put(&blobs, &layer.packed)?, "size": layer.packed.len()}));
    }
    let config_bytes = image.config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": put(&blobs, &config_bytes)?, "size": config_bytes.len()},
        "layers": layers,
    })
    .to_string()
    .into_bytes();
    let entry = json!({
        "mediaType": MANIFEST,
        "digest": put(&blobs, &manifest)?,
        "size": manifest.len(),
        "platform": {"os": "linux", "architecture": architecture()},
        "annotations": {REFERENCE: tag},
    });
    let index = dir.join("index.json");
    let mut manifests: Vec<Value> = match fs::read(&index) {
        Ok(bytes) => match serde_json::from_slice::<Value>(&bytes)?.get_mut("manifests").map(Value::take) {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    manifests.retain(|other| other["annotations"][REFERENCE] != tag);
    manifests.push(entry);
    fs::write(index, json!({"schemaVersion": 2, "manifests": manifests}).to_string())
}

/// Writes the image as a docker archive (what `docker save` makes) with gzip layers, under the reference `tag`.
pub fn docker_archive(path: &Path, tag: &str, binary: &Path, config: &Config) -> io::Result<()> {
    let image = Image::new(binary, config)?;
    let mut archive = Builder::new(io::BufWriter::new(File::create(path)?));
    let config_bytes = image.config.to_string().into_bytes();
    let config_name = format!("{}.json", hex(&config_bytes));
    file(&mut archive, &config_name, 0o644, &config_bytes)?;
    let mut names = Vec::new();
    for layer in &image.layers {
        let name = format!("{}/layer.tar", layer.plain_digest);
        file(&mut archive, &name, 0o644, &layer.packed)?;
        names.push(name);
    }
    let manifest = json!([{"Config": config_name, "RepoTags": [tag], "Layers": names}]).to_string();
    file(&mut archive, "manifest.json", 0o644, manifest.as_bytes())?;
    archive.into_inner()?.flush()
}

struct Layer {
    packed: Vec<u8>,
    plain_digest: String,
}

struct Image {
    layers: Vec<Layer>,
    config: Value,
}

impl Image {
    fn new(binary: &Path, config: &Config) -> io::Result<Self> {
        let mut layers = vec![pack(&program_layer(binary)?)?];
        for entries in &config.layers {
            layers.push(pack(entries)?);
        }
        let ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", layer.plain_digest)).collect();
        let mut env = config.env.clone();
        if !env.iter().any(|variable| variable.starts_with("PATH=")) {
            env.insert(0, "PATH=/bin".to_owned());
        }
        let mut inner = json!({"Env": env});
        if !config.entrypoint.is_empty() {
            inner["Entrypoint"] = json!(config.entrypoint);
        }
        if !config.cmd.is_empty() {
            inner["Cmd"] = json!(config.cmd);
        }
        if !config.user.is_empty() {
            inner["User"] = json!(config.user);
        }
        if !config.working_dir.is_empty() {
            inner["WorkingDir"] = json!(config.working_dir);
        }
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": inner,
            "rootfs": {"type": "layers", "diff_ids": ids},
        });
        Ok(Self { layers, config })
    }
}

/// The lowest layer: the program, its links, users, and a place for temporary files.
fn program_layer(binary: &Path) -> io::Result<Vec<Entry>> {
    let mut program = Vec::new();
    File::open(binary)?.read_to_end(&mut program)?;
    let mut entries =
        vec![Entry::folder("bin/"), Entry { path: "bin/testbox".to_owned(), content: Content::File(0o755, program) }];
    entries.extend(program::LINKS.iter().map(|name| Entry::link(&format!("bin/{name}"), "testbox")));
    entries.extend([
        Entry::folder("etc/"),
        Entry::file("etc/passwd", "root:x:0:0:root:/:/bin/testbox\napp:x:1000:1000:app:/:/bin/testbox\n"),
        Entry::file("etc/group", "root:x:0:\napp:x:1000:\nextra:x:2000:app\n"),
        Entry { path: "tmp/".to_owned(), content: Content::Folder(0o1777) },
    ]);
    Ok(entries)
}

fn pack(entries: &[Entry]) -> io::Result<Layer> {
    let mut archive = Builder::new(Vec::new());
    for entry in entries {
        append(&mut archive, entry)?;
    }
    let plain = archive.into_inner()?;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&plain)?;
    Ok(Layer { packed: gzip.finish()?, plain_digest: hex(&plain) })
}

fn append<W: Write>(archive: &mut Builder<W>, entry: &Entry) -> io::Result<()> {
    let (kind, mode, bytes): (EntryType, u32, &[u8]) = match &entry.content {
        Content::File(mode, bytes) => return file(archive, &entry.path, *mode, bytes),
        Content::Folder(mode) => (EntryType::Directory, *mode, &[]),
        Content::Link(_) => (EntryType::Symlink, 0o777, &[]),
        Content::HardLink(_) => (EntryType::Link, 0o644, &[]),
        Content::Device(..) => (EntryType::Char, 0o666, &[]),
    };
    let mut header = header(&entry.path, kind, mode, bytes.len())?;
    match &entry.content {
        Content::Link(target) | Content::HardLink(target) => header.set_link_name_literal(target)?,
        Content::Device(major, minor) => {
            header.set_device_major(*major)?;
            header.set_device_minor(*minor)?;
        }
        Content::File(..) | Content::Folder(_) => {}
    }
    header.set_cksum();
    archive.append(&header, bytes)
}

fn file<W: Write>(archive: &mut Builder<W>, path: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let mut header = header(path, EntryType::Regular, mode, bytes.len())?;
    header.set_cksum();
    archive.append(&header, bytes)
}

/// A header with the path exactly as given: `Header::set_path` would refuse what a hostile image contains.
fn header(path: &str, kind: EntryType, mode: u32, size: usize) -> io::Result<Header> {
    let mut header = Header::new_gnu();
    let name = &mut header.as_gnu_mut().ok_or_else(|| io::Error::other("a new GNU header is a GNU header"))?.name;
    if path.len() >= name.len() {
        let problem =
            format!("{path} has {} bytes, at most {} fit in a test image's entry", path.len(), name.len() - 1);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    }
    name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    Ok(header)
}

fn put(blobs: &Path, bytes: &[u8]) -> io::Result<String> {
    let digest = hex(bytes);
    fs::write(blobs.join(&digest), bytes)?;
    Ok(format!("sha256:{digest}"))
}

fn hex(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// The architecture in the words of OCI.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> Value {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn a_layout_holds_both_images_and_every_blob_has_its_digest() {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("program");
        fs::write(&binary, b"not really a program").unwrap();
        let layout = dir.path().join("layout");
        write(&layout, "web", &binary, &Config::command(&["web"])).unwrap();
        write(&layout, "cache", &binary, &Config::command(&["cache"])).unwrap();
        write(&layout, "cache", &binary, &Config::command(&["cache", "--port", "1"])).unwrap();
        let index = read(&layout.join("index.json"));
        let names: Vec<_> =
            index["manifests"].as_array().unwrap().iter().map(|m| &m["annotations"][REFERENCE]).collect();
        assert_eq!(names, ["web", "cache"]);
        for blob in fs::read_dir(layout.join("blobs/sha256")).unwrap() {
            let blob = blob.unwrap();
            assert_eq!(blob.file_name().to_str().unwrap(), hex(&fs::read(blob.path()).unwrap()));
        }
        let digest = index["manifests"][1]["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
        let manifest = read(&layout.join("blobs/sha256").join(digest));
        let layer = manifest["layers"][0]["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
        let packed = File::open(layout.join("blobs/sha256").join(layer)).unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(packed));
        let paths: Vec<String> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
        assert!(paths.contains(&"bin/testbox".to_owned()) && paths.contains(&"bin/web".to_owned()), "{paths:?}");
    }

    #[test]
    fn an_archive_names_its_layers_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("program");
        fs::write(&binary, b"not really a program").unwrap();
        let path = dir.path().join("image.tar");
        let config = Config { layers: vec![vec![Entry::file("etc/upper", "1")]], ..Config::command(&["true"]) };
        docker_archive(&path, "demo/test:latest", &binary, &config).unwrap();
        let mut archive = tar::Archive::new(File::open(&path).unwrap());
        let mut manifest = Value::Null;
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            if name == "manifest.json" {
                manifest = serde_json::from_reader(&mut entry).unwrap();
            }
            names.push(name);
        }
        let layers = manifest[0]["Layers"].as_array().unwrap();
        assert_eq!(layers.len(), 2);
        assert!(layers.iter().all(|layer| names.contains(&layer.as_str().unwrap().to_owned())));
        assert_eq!(manifest[0]["RepoTags"][0], "demo/test:latest");
    }
}
