//! What the store knows and what it has on disk; both change under one lock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Semaphore;

use crate::digest::Digest;
use crate::error::{ImageError, Result};
use crate::flight::Flight;
use crate::record::{Image, Layer, LayerRecord, Record};
use crate::settings::Settings;
use crate::{checkpoint, disk};

/// How long the lock on the store may take. A program that a killed daemon was just starting holds it until it is exec'd.
const LOCK_PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Inner {
    pub root: PathBuf,
    /// The root, open, for `syncfs` and `statvfs`.
    pub folder: File,
    pub settings: Settings,
    pub unpacking: Arc<Semaphore>,
    state: Mutex<State>,
    counter: AtomicU64,
    /// Holds the lock on the store.
    _lock: File,
}

/// What is known of the store; the disk is changed under the same lock.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// By reference.
    pub images: BTreeMap<String, Record>,
    /// By diff id.
    pub layers: HashMap<String, Layer>,
    /// Digests of images by holder.
    pub holds: BTreeMap<String, BTreeSet<String>>,
    /// Layers of pulls that are under way, by diff id.
    pub pins: HashMap<String, usize>,
    flights: HashMap<String, Weak<Flight>>,
}

impl State {
    /// Who holds an image.
    pub fn holder_of(&self, digest: &str) -> Option<&str> {
        self.holds.iter().find(|(_, digests)| digests.contains(digest)).map(|(holder, _)| holder.as_str())
    }

    fn find(&self, reference: &str) -> Option<&Record> {
        self.images.get(reference).or_else(|| {
            self.images.values().find(|record| record.digest == reference || record.index.as_deref() == Some(reference))
        })
    }
}

/// Keeps layers from being collected while a pull is under way.
#[derive(Debug)]
pub(crate) struct Pins {
    store: Arc<Inner>,
    layers: Vec<String>,
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut state = self.store.state();
        for layer in &self.layers {
            if let Some(count) = state.pins.get_mut(layer) {
                *count -= 1;
                if *count == 0 {
                    state.pins.remove(layer);
                }
            }
        }
    }
}

impl Inner {
    /// See [`crate::Store::open`].
    pub fn open(root: &Path, settings: Settings) -> Result<Self> {
        for folder in ["images", "layers", "blobs/sha256", "tmp"] {
            disk::make_folder(&root.join(folder))?;
        }
        let path = root.join("lock");
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| ImageError::io("open", &path, error))?;
        let deadline = std::time::Instant::now() + LOCK_PATIENCE;
        loop {
            match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if std::time::Instant::now() < deadline => {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(ImageError::Locked { path: root.into() }),
                Err(error) => return Err(ImageError::io("lock", &path, error)),
            }
        }
        let folder = File::open(root).map_err(|error| ImageError::io("open", root, error))?;
        let inner = Self {
            root: root.to_owned(),
            folder,
            unpacking: Arc::new(Semaphore::new(settings.parallel_unpacks.max(1))),
            settings,
            state: Mutex::default(),
            counter: AtomicU64::new(0),
            _lock: lock,
        };
        inner.recover()?;
        Ok(inner)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        // No code path leaves the state half changed, so that a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new name in `tmp/`.
    pub fn temporary(&self, kind: &str) -> PathBuf {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        self.root.join("tmp").join(format!("{kind}-{number}"))
    }

    pub fn blob_path(&self, hex: &str) -> PathBuf {
        self.root.join("blobs/sha256").join(hex)
    }

    pub fn flight(&self, name: &str) -> Arc<Flight> {
        Flight::of(&mut self.state().flights, name)
    }

    pub fn pin(self: &Arc<Self>, layers: &[String]) -> Pins {
        let mut state = self.state();
        for layer in layers {
            *state.pins.entry(layer.clone()).or_default() += 1;
        }
        Pins { store: Arc::clone(self), layers: layers.to_vec() }
    }

    pub fn layer(&self, diff_id: &str) -> Option<Layer> {
        self.state().layers.get(diff_id).cloned()
    }

    pub fn size_of(&self, layers: &[String]) -> u64 {
        let state = self.state();
        layers.iter().filter_map(|id| state.layers.get(id)).map(|layer| layer.record.bytes).sum()
    }

    /// Whether an image record names each of these layers, so that they are known to be on disk.
    pub fn all_durable(&self, layers: &[String]) -> bool {
        let state = self.state();
        layers.iter().all(|id| state.images.values().any(|record| record.layers.contains(id)))
    }

    pub fn get(&self, name: &str, holder: Option<&str>) -> Option<Image> {
        let mut state = self.state();
        let record = state.find(name)?.clone();
        let image = self.image_of(&state, &record)?;
        if let Some(holder) = holder {
            state.holds.entry(holder.to_owned()).or_default().insert(record.digest.clone());
            self.touch(&record);
        }
        Some(image)
    }

    pub fn image_of(&self, state: &State, record: &Record) -> Option<Image> {
        let folders = record.layers.iter().rev().map(|id| Some(state.layers.get(id)?.files(&self.root)));
        Some(Image {
            reference: record.reference.clone(),
            digest: record.digest.clone(),
            layers: folders.collect::<Option<Vec<_>>>()?,
            config: record.config.clone(),
            size: record.size,
            created_at: record.created_at.clone(),
        })
    }

    fn record_path(&self, reference: &str) -> PathBuf {
        self.root.join("images").join(Record::file_name(reference))
    }

    /// When the image was last used, which is the time of its record's file. Losing it costs nothing but order.
    pub fn touch(&self, record: &Record) {
        if let Ok(file) = File::open(self.record_path(&record.reference)) {
            let _ = file.set_modified(std::time::SystemTime::now());
        }
    }

    pub fn last_used(&self, record: &Record) -> std::time::SystemTime {
        let found = std::fs::metadata(self.record_path(&record.reference)).and_then(|found| found.modified());
        found.unwrap_or(std::time::UNIX_EPOCH)
    }

    /// Gives an unpacked layer its place.
    pub fn adopt(&self, folder: &Path, record: LayerRecord) -> Result<()> {
        let text = serde_json::to_vec_pretty(&record).map_err(|error| ImageError::io("write", folder, error))?;
        let path = folder.join("layer.json");
        std::fs::write(&path, text).map_err(|error| ImageError::io("write", &path, error))?;
        let mut state = self.state();
        if state.layers.contains_key(&record.diff_id) {
            drop(state);
            return disk::remove_tree(folder);
        }
        let hex = record.diff_id.trim_start_matches("sha256:").to_owned();
        let short = hex.get(..16).unwrap_or(&hex).to_owned();
        let taken = state.layers.values().any(|layer| layer.folder == short);
        let name = if taken { hex } else { short };
        let place = self.root.join("layers").join(&name);
        std::fs::rename(folder, &place).map_err(|error| ImageError::io("rename into place", &place, error))?;
        state.layers.insert(record.diff_id.clone(), Layer { folder: name, record });
        drop(state);
        checkpoint("pull.layer.renamed");
        Ok(())
    }

    /// Writes an image down. An image in use whose reference moves on stays, under its digest.
    pub fn put(&self, record: Record, holder: Option<&str>) -> Result<Image> {
        let mut state = self.state();
        if let Some(old) = state.images.get(&record.reference)
            && old.digest != record.digest
            && state.holder_of(&old.digest).is_some()
            && !state.images.values().any(|image| image.digest == old.digest && image.reference != old.reference)
        {
            let mut kept = old.clone();
            let repository = match kept.reference.rsplit_once(':') {
                _ if kept.reference.contains('@') => kept.reference.split('@').next().unwrap_or_default(),
                Some((repository, tag)) if !tag.contains('/') => repository,
                _ => &kept.reference,
            };
            kept.reference = format!("{repository}@{}", kept.digest);
            self.write(&kept)?;
            state.images.insert(kept.reference.clone(), kept);
        }
        self.write(&record)?;
        checkpoint("pull.record");
        let image = self.image_of(&state, &record);
        if let Some(holder) = holder {
            state.holds.entry(holder.to_owned()).or_default().insert(record.digest.clone());
        }
        let missing = ImageError::Unknown { reference: record.reference.clone() };
        state.images.insert(record.reference.clone(), record);
        image.ok_or(missing)
    }

    fn write(&self, record: &Record) -> Result<()> {
        let path = self.record_path(&record.reference);
        let text = serde_json::to_vec_pretty(record).map_err(|error| ImageError::io("write", &path, error))?;
        disk::write_whole(&path, &self.temporary("record"), &text)
    }

    /// Removes the record of an image.
    pub fn forget(&self, state: &mut State, reference: &str) -> Result<()> {
        disk::remove_file(&self.record_path(reference))?;
        disk::sync_folder(&self.root.join("images"))?;
        state.images.remove(reference);
        checkpoint("remove.record");
        Ok(())
    }

    /// Reads what is on disk and removes what is not whole.
    fn recover(&self) -> Result<()> {
        for name in disk::names(&self.root.join("tmp"))? {
            let partial =
                name.strip_prefix("partial-").is_some_and(|hex| Digest::parse(&format!("sha256:{hex}")).is_ok());
            if !partial {
                disk::remove_tree(&self.root.join("tmp").join(name))?;
            }
        }
        let mut state = self.state();
        let layers = self.root.join("layers");
        for folder in disk::names(&layers)? {
            let text = std::fs::read(layers.join(&folder).join("layer.json")).ok();
            match text.and_then(|text| serde_json::from_slice::<LayerRecord>(&text).ok()) {
                Some(record) => {
                    state.layers.insert(record.diff_id.clone(), Layer { folder, record });
                }
                None => self.discard(&layers.join(folder))?,
            }
        }
        let images = self.root.join("images");
        for name in disk::names(&images)? {
            let path = images.join(&name);
            let text = std::fs::read(&path).map_err(|error| ImageError::io("read", &path, error))?;
            match serde_json::from_slice::<Record>(&text) {
                Ok(record)
                    if Record::file_name(&record.reference) == name
                        && record.layers.iter().all(|id| state.layers.contains_key(id)) =>
                {
                    state.images.insert(record.reference.clone(), record);
                }
                other => {
                    let reason = other.map_or_else(|error| error.to_string(), |_| "layers are missing".into());
                    tracing::warn!(path = %path.display(), reason, "removed an image record that cannot be used");
                    disk::remove_file(&path)?;
                }
            }
        }
        // No record names them, so no syncfs has run: after a loss of power they may be hollow.
        let boot = disk::boot_id();
        let named: BTreeSet<String> = state.images.values().flat_map(|record| record.layers.clone()).collect();
        let hollow: Vec<Layer> = state
            .layers
            .values()
            .filter(|layer| !named.contains(&layer.record.diff_id) && layer.record.boot_id != boot)
            .cloned()
            .collect();
        for layer in hollow {
            self.discard(&layers.join(&layer.folder))?;
            state.layers.remove(&layer.record.diff_id);
        }
        Ok(())
    }

    /// Removes a folder by way of `tmp/`, so that a crash does not leave half of it in place.
    fn discard(&self, folder: &Path) -> Result<()> {
        let gone = self.temporary("gone");
        std::fs::rename(folder, &gone).map_err(|error| ImageError::io("rename", folder, error))?;
        disk::remove_tree(&gone)
    }
}
