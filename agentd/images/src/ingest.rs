//! From a source to a record: layers are fetched and unpacked side by side, then the image is written down.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use agentd_api::message::Progress;
use futures_util::{StreamExt, TryStreamExt};

use crate::digest::Digest;
use crate::error::{ImageError, Result};
use crate::flight::{Alarm, Meter};
use crate::inner::Inner;
use crate::manifest::{BlobRef, ImageConfig};
use crate::record::{Image, LayerRecord, Record};
use crate::source::Blob;
use crate::source::registry::Session;
use crate::unpack::{self, Fault};
use crate::{ProgressSink, checkpoint, disk};

/// Where a layer's blob comes from.
#[derive(Clone)]
pub(crate) enum Origin {
    /// A registry.
    Registry(Arc<Session>),
    /// A stretch of a file.
    Local(Blob),
}

/// A layer that an image needs.
pub(crate) struct PlannedLayer {
    pub diff_id: Digest,
    /// Digest and size as stored; unknown in a docker-archive.
    pub blob: Option<BlobRef>,
    /// None if the source lacks it; then the store must have the layer.
    pub origin: Option<Origin>,
}

/// An image that a source offers.
pub(crate) struct Plan {
    /// References, written out.
    pub names: Vec<String>,
    /// Registry or path, for errors.
    pub place: String,
    pub digest: String,
    pub index: Option<String>,
    pub config: ImageConfig,
    /// The lowest first.
    pub layers: Vec<PlannedLayer>,
    /// Manifest and configuration, to be kept with the blobs.
    pub documents: Vec<(Digest, Vec<u8>)>,
}

/// One layer's work.
struct Job {
    reference: String,
    place: String,
    layer: PlannedLayer,
    progress: ProgressSink,
}

impl Job {
    /// How the layer is called in errors and in progress: by its blob if that is known.
    fn name(&self) -> String {
        self.layer.blob.as_ref().map_or(&self.layer.diff_id, |blob| &blob.digest).to_string()
    }

    fn wrong_digest(&self, what: String, expected: &str, found: &str) -> ImageError {
        ImageError::Digest {
            reference: self.reference.clone(),
            origin: self.place.clone(),
            what,
            expected: expected.to_owned(),
            found: found.to_owned(),
        }
    }
}

/// Brings an image into the store.
pub(crate) async fn ingest(
    store: &Arc<Inner>,
    mut plan: Plan,
    holder: Option<&str>,
    progress: &ProgressSink,
) -> Result<Image> {
    let reference = plan.names.first().cloned().unwrap_or_default();
    // The same layer twice in an image: the upper one alone has the same effect, and overlayfs wants each once.
    let mut seen = HashSet::new();
    let mut layers: Vec<_> = plan.layers.drain(..).rev().filter(|layer| seen.insert(layer.diff_id.clone())).collect();
    layers.reverse();
    let diff_ids: Vec<String> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
    let pins = store.pin(&diff_ids);

    let size_of = |layer: &PlannedLayer| match (&layer.blob, &layer.origin) {
        (Some(blob), _) => blob.size,
        (None, Some(Origin::Local(blob))) => blob.length,
        (None, _) => 0,
    };
    let absent: Vec<_> = layers.iter().filter(|layer| store.layer(layer.diff_id.as_str()).is_none()).collect();
    progress(Progress::Resolved {
        digest: plan.digest.clone(),
        layers: diff_ids.len() as u32,
        bytes: absent.iter().map(|layer| size_of(layer)).sum(),
    });
    checkpoint("pull.manifest");

    let mut kept: Vec<String> = plan.documents.iter().map(|(digest, _)| digest.to_string()).collect();
    if store.settings.keep_blobs {
        let from_registry = |layer: &&PlannedLayer| matches!(layer.origin, Some(Origin::Registry(_)));
        let blobs = layers.iter().filter(from_registry).filter_map(|layer| layer.blob.as_ref());
        kept.extend(blobs.map(|blob| blob.digest.to_string()));
    }

    let jobs = layers.into_iter().map(|layer| {
        let job =
            Job { reference: reference.clone(), place: plan.place.clone(), layer, progress: Arc::clone(progress) };
        let store = Arc::clone(store);
        async move { work(&store, job).await }
    });
    let side_by_side = store.settings.parallel_fetches.max(store.settings.parallel_unpacks).max(1);
    futures_util::stream::iter(jobs).buffer_unordered(side_by_side).try_for_each(|()| async { Ok(()) }).await?;

    let store_too = Arc::clone(store);
    let holder = holder.map(str::to_owned);
    // Runs to its end even if the caller has gone: it is short, and half of it would be of no use.
    let finish = tokio::task::spawn_blocking(move || {
        let pins = pins;
        let image = finish(&store_too, plan, &diff_ids, &kept, holder.as_deref());
        drop(pins);
        image
    });
    finish.await.map_err(|_| ImageError::Cancelled { reference })?
}

/// Makes the layers durable and writes the record.
fn finish(store: &Inner, plan: Plan, layers: &[String], blobs: &[String], holder: Option<&str>) -> Result<Image> {
    let folder = store.root.join("blobs/sha256");
    for (digest, bytes) in &plan.documents {
        let path = folder.join(digest.hex());
        if !path.exists() {
            disk::write_whole(&path, &store.temporary("document"), bytes)?;
        }
    }
    if !store.all_durable(layers) || !blobs.is_empty() {
        rustix::fs::syncfs(&store.folder).map_err(|error| ImageError::io("sync the disk of", &store.root, error))?;
        checkpoint("pull.synced");
    }
    let created_at = jiff::Timestamp::now().to_string();
    let mut first = None;
    for reference in plan.names {
        let record = Record {
            reference,
            digest: plan.digest.clone(),
            index: plan.index.clone(),
            layers: layers.to_vec(),
            config: plan.config.clone(),
            size: store.size_of(layers),
            created_at: created_at.clone(),
            blobs: blobs.to_vec(),
        };
        let image = store.put(record, holder)?;
        first.get_or_insert(image);
    }
    first.ok_or(ImageError::Unknown { reference: plan.digest })
}

/// Gets one layer into the store, unless it is there.
async fn work(store: &Arc<Inner>, job: Job) -> Result<()> {
    let diff_id = job.layer.diff_id.clone();
    let name = job.name();
    let flight = store.flight(diff_id.as_str());
    let turn = flight.turn(&job.progress).await;
    if store.layer(diff_id.as_str()).is_some() {
        // A crash after the layer got its place may have left its blob.
        if let Some(blob) = &job.layer.blob
            && !store.settings.keep_blobs
        {
            let path = store.blob_path(blob.digest.hex());
            if path.exists() {
                let _turn = store.flight(&format!("blob {}", blob.digest)).turn(&job.progress).await;
                disk::remove_file(&path)?;
            }
        }
        (job.progress)(Progress::Unpacked { digest: name });
        return Ok(());
    }
    let origin = job.layer.origin.clone().ok_or_else(|| ImageError::Source {
        path: PathBuf::from(&job.place),
        message: format!("it lacks layer {name}; export the image again"),
    })?;
    let (blob, fetched) = match origin {
        Origin::Local(blob) => (blob, None),
        Origin::Registry(session) => {
            let wanted = job.layer.blob.clone().ok_or_else(|| ImageError::Manifest {
                reference: job.reference.clone(),
                message: format!("layer {name} has no digest"),
            })?;
            // Two layers may claim the same blob: it is fetched by one at a time.
            let blob_flight = store.flight(&format!("blob {}", wanted.digest));
            let blob_turn = blob_flight.turn(&job.progress).await;
            let whole = store.blob_path(wanted.digest.hex());
            let blob = if whole.exists() {
                Blob::whole(&whole)?
            } else {
                let part = store.root.join("tmp").join(format!("partial-{}", wanted.digest.hex()));
                let meter = Meter::new(&name, wanted.size, Arc::clone(&flight), Arc::clone(&job.progress));
                let fetching = session.fetch(&wanted, part.clone(), whole.clone(), &meter).await;
                if matches!(fetching, Err(ImageError::DiskFull { .. })) {
                    // to be resumed it would have to lie on the disk that has no room, in the way of all others
                    let _ = disk::remove_file(&part);
                }
                fetching?
            };
            (blob, Some((whole, blob_turn)))
        }
    };
    let permit = Arc::clone(&store.unpacking).acquire_owned().await;
    let permit = permit.map_err(|_| ImageError::Cancelled { reference: job.reference.clone() })?;
    let (alarm, cancelled) = Alarm::new();
    let store = Arc::clone(store);
    let reference = job.reference.clone();
    let unpacking = tokio::task::spawn_blocking(move || {
        // Held until the thread is done, also if the caller has gone meanwhile.
        let _held = (turn, permit);
        let meter =
            fetched.is_none().then(|| Meter::new(&name, blob.length, Arc::clone(&flight), Arc::clone(&job.progress)));
        let result = unpack_layer(&store, &job, &blob, meter.as_ref(), &cancelled);
        let useless = matches!(result, Err(ImageError::Digest { .. } | ImageError::DiskFull { .. }));
        if let Some((whole, _turn)) = &fetched
            && (useless || (result.is_ok() && !store.settings.keep_blobs))
        {
            disk::remove_file(whole)?;
        }
        result?;
        (job.progress)(Progress::Unpacked { digest: name });
        Ok(())
    });
    let result = unpacking.await;
    alarm.disarm();
    result.map_err(|_| ImageError::Cancelled { reference })?
}

/// Unpacks a blob into a folder of its own, and gives the folder its place once its digests are right.
fn unpack_layer(store: &Inner, job: &Job, blob: &Blob, meter: Option<&Meter>, cancelled: &AtomicBool) -> Result<()> {
    let folder = store.temporary("layer");
    let result = unpack_into(store, job, blob, meter, cancelled, &folder);
    if result.is_err() {
        // What cannot be removed now is swept when the store is opened.
        let _ = disk::remove_tree(&folder);
    }
    result
}

fn unpack_into(
    store: &Inner,
    job: &Job,
    blob: &Blob,
    meter: Option<&Meter>,
    cancelled: &AtomicBool,
    folder: &Path,
) -> Result<()> {
    disk::make_folder(folder)?;
    let files = folder.join("fs");
    let name = job.name();
    let fault = |fault| ImageError::layer(&job.reference, &name, &store.root, fault);
    let opened = make_root(&files).map_err(|error| ImageError::io("make folder", &files, error))?;
    let passed = |bytes| {
        if let Some(meter) = meter {
            meter.add(bytes);
        }
    };
    let limits = &store.settings.limits;
    let result = unpack::unpack(Box::new(blob.reader()), opened, limits, cancelled, &passed);
    let unpacked = match result {
        Ok(unpacked) => unpacked,
        // A damaged stream is told by its digest, if that is known: "wrong digest" says more than "bad gzip".
        Err(Fault::Damaged(message)) => {
            if let Some(expected) = &job.layer.blob {
                let found = hash(blob)?;
                if found != expected.digest {
                    let what = format!("layer {name}");
                    return Err(job.wrong_digest(what, expected.digest.as_str(), found.as_str()));
                }
            }
            return Err(fault(Fault::Damaged(message)));
        }
        Err(other) => return Err(fault(other)),
    };
    if let Some(expected) = &job.layer.blob
        && expected.digest.as_str() != unpacked.blob
    {
        return Err(job.wrong_digest(format!("layer {name}"), expected.digest.as_str(), &unpacked.blob));
    }
    let diff_id = job.layer.diff_id.as_str();
    if diff_id != unpacked.diff_id {
        return Err(job.wrong_digest(format!("layer {name}, uncompressed,"), diff_id, &unpacked.diff_id));
    }
    let applied = unpacked.applied;
    if applied.devices > 0 || applied.xattrs > 0 {
        tracing::info!(
            image = %job.reference, layer = %name, devices = applied.devices, xattrs = applied.xattrs,
            "left out device nodes and extended attributes of a layer"
        );
    }
    let record = LayerRecord {
        diff_id: diff_id.to_owned(),
        bytes: applied.bytes,
        entries: applied.entries,
        boot_id: disk::boot_id(),
    };
    checkpoint("pull.layer.unpacked");
    store.adopt(folder, record)
}

/// The root of a layer that says nothing of it.
fn make_root(files: &Path) -> std::io::Result<OwnedFd> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir(files)?;
    std::fs::set_permissions(files, std::fs::Permissions::from_mode(0o755))?;
    std::fs::File::open(files).map(OwnedFd::from)
}

fn hash(blob: &Blob) -> Result<Digest> {
    use sha2::Digest as _;
    let mut hasher = sha2::Sha256::new();
    std::io::copy(&mut blob.reader(), &mut hasher).map_err(|error| ImageError::io("read", &blob.path, error))?;
    Ok(Digest::finish(hasher))
}
