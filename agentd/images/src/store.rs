//! The store: what is there, who uses it, and the calls of the daemon.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentd_api::message::{ImageInfo, Progress};
use agentd_api::pod::{Image as PodImage, ImageKind};

use crate::error::{ImageError, Result};
use crate::ingest::{self, Origin, Plan, PlannedLayer};
use crate::inner::Inner;
use crate::manifest::{self, Document};
use crate::record::Image;
use crate::settings::Settings;
use crate::source::archive::Archive;
use crate::source::layout;
use crate::source::registry::{self, Endpoint, Session};
use crate::{ProgressSink, reference};

/// The image store. A handle: clones are the same store.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

impl Store {
    /// Opens the store at `root`, makes it if it is not there, and clears what a crash has left. Blocks; refuses a store
    /// that another process has open.
    pub fn open(root: &Path, settings: Settings) -> Result<Self> {
        Inner::open(root, settings).map(|inner| Self { inner: Arc::new(inner) })
    }

    /// The image for a container: of a registry or an OCI layout, pulled unless it is there, and held for `holder` from
    /// the moment it is.
    pub async fn obtain(&self, image: &PodImage, holder: &str, progress: ProgressSink) -> Result<Image> {
        match image.kind {
            ImageKind::Docker => self.pull_for(&image.id, image.force_pull, Some(holder), progress).await,
            ImageKind::Oci => self.layout_for(&image.id, image.force_pull, Some(holder), progress).await,
        }
    }

    /// Pulls an image. Without `force` an image that is there is returned as it is. The last progress told is `Done` or
    /// `Failed`.
    pub async fn pull(&self, reference: &str, force: bool, progress: ProgressSink) -> Result<Image> {
        self.pull_for(reference, force, None, progress).await
    }

    async fn pull_for(
        &self,
        reference: &str,
        force: bool,
        holder: Option<&str>,
        progress: ProgressSink,
    ) -> Result<Image> {
        let result = self.pull_quietly(reference, force, holder, &progress).await;
        self.tell(result, &progress)
    }

    async fn pull_quietly(
        &self,
        reference: &str,
        force: bool,
        holder: Option<&str>,
        progress: &ProgressSink,
    ) -> Result<Image> {
        let name = reference::normalise(reference)?;
        if name.starts_with('/') {
            return Err(ImageError::Reference {
                reference: name,
                reason: "a path is an OCI layout, not an image of a registry".into(),
            });
        }
        if !force && let Some(image) = self.inner.get(&name, holder) {
            return Ok(image);
        }
        let parsed = reference::parse(reference)?;
        let mut last = None;
        for endpoint in registry::endpoints(&parsed, &self.inner.settings) {
            match self.pull_from(&parsed, &name, &endpoint, holder, progress).await {
                Ok(image) => return Ok(image),
                // Another endpoint can cure what a registry did, but not what this host lacks.
                Err(
                    error @ (ImageError::Registry { .. }
                    | ImageError::NotFound { .. }
                    | ImageError::Unauthorized { .. }
                    | ImageError::Truncated { .. }
                    | ImageError::Settings { .. }
                    | ImageError::Digest { .. }),
                ) => {
                    tracing::warn!(image = %name, endpoint = %endpoint.host, %error, "pull failed");
                    last = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or(ImageError::Unknown { reference: name }))
    }

    async fn pull_from(
        &self,
        parsed: &oci_client::Reference,
        name: &str,
        endpoint: &Endpoint,
        holder: Option<&str>,
        progress: &ProgressSink,
    ) -> Result<Image> {
        let settings = &self.inner.settings;
        let limits = &settings.limits;
        let session = Arc::new(Session::open(parsed, endpoint, settings).await?);
        let (mut bytes, mut digest) = session.manifest(None, limits.manifest_bytes).await?;
        let mut index = None;
        let manifest = match manifest::parse(name, &bytes)? {
            Document::Manifest(manifest) => manifest,
            Document::Index(found) => {
                let chosen = manifest::choose(name, &found)?;
                index = Some(digest.to_string());
                (bytes, digest) = session.manifest(Some(&chosen.digest), limits.manifest_bytes).await?;
                match manifest::parse(name, &bytes)? {
                    Document::Manifest(manifest) => manifest,
                    Document::Index(_) => {
                        return Err(ImageError::Manifest {
                            reference: name.to_owned(),
                            message: "its index leads to another index; push it again".into(),
                        });
                    }
                }
            }
        };
        let (config_ref, layers) = manifest::parts(name, &manifest, limits)?;
        let config_bytes = session.small(&config_ref, "the configuration").await?;
        let (config, diff_ids) = manifest::configuration(name, &config_bytes, layers.len(), limits)?;
        let layers = layers.into_iter().zip(diff_ids).map(|(blob, diff_id)| PlannedLayer {
            diff_id,
            blob: Some(blob),
            origin: Some(Origin::Registry(Arc::clone(&session))),
        });
        let mut plan = Plan {
            names: vec![name.to_owned()],
            place: session.origin(),
            digest: digest.to_string(),
            index,
            config,
            layers: layers.collect(),
            documents: Vec::new(),
        };
        if settings.keep_blobs {
            plan.documents = vec![(digest, bytes), (config_ref.digest, config_bytes)];
        }
        ingest::ingest(&self.inner, plan, holder, progress).await
    }

    /// The image of an OCI layout folder, `/path[:tag]`, which is also its reference. Without `force` an image that is
    /// there is returned as it is.
    pub async fn layout(&self, id: &str, force: bool, progress: ProgressSink) -> Result<Image> {
        self.layout_for(id, force, None, progress).await
    }

    async fn layout_for(&self, id: &str, force: bool, holder: Option<&str>, progress: ProgressSink) -> Result<Image> {
        let result = async {
            if !id.starts_with('/') {
                return Err(ImageError::Source {
                    path: id.into(),
                    message: "not an absolute path; expected /path[:tag] of an OCI layout".into(),
                });
            }
            if !force && let Some(image) = self.inner.get(id, holder) {
                return Ok(image);
            }
            let (path, tag) = reference::split_layout(id);
            let (path, tag, id) = (PathBuf::from(path), tag.map(str::to_owned), id.to_owned());
            self.ingest_local(holder, &progress, move |store| {
                let limits = &store.settings.limits;
                layout::plan(&layout::Folder(path), tag.as_deref(), Some(&id), limits)
            })
            .await
        };
        let result = result.await;
        self.tell(result, &progress)
    }

    /// Imports an image from an OCI layout folder, a docker-archive or an OCI layout in a tar (both also compressed),
    /// under `reference` or the name it carries. The source is read anew each time.
    pub async fn import(&self, path: &Path, reference: Option<&str>, progress: ProgressSink) -> Result<Image> {
        let path = path.to_owned();
        let wanted = reference.map(str::to_owned);
        let result = self
            .ingest_local(None, &progress, move |store| {
                let limits = &store.settings.limits;
                if path.is_dir() {
                    layout::plan(&layout::Folder(path), None, wanted.as_deref(), limits)
                } else {
                    Archive::open(&path, &store.temporary("archive"), limits)?.plan(wanted.as_deref(), limits)
                }
            })
            .await;
        self.tell(result, &progress)
    }

    async fn ingest_local(
        &self,
        holder: Option<&str>,
        progress: &ProgressSink,
        plan: impl FnOnce(&Inner) -> Result<Plan> + Send + 'static,
    ) -> Result<Image> {
        let store = Arc::clone(&self.inner);
        let plan = tokio::task::spawn_blocking(move || plan(&store)).await;
        let plan = plan.map_err(|_| ImageError::Cancelled { reference: "import".into() })??;
        ingest::ingest(&self.inner, plan, holder, progress).await
    }

    fn tell(&self, result: Result<Image>, progress: &ProgressSink) -> Result<Image> {
        match &result {
            Ok(image) => progress(Progress::Done { image: self.info(image) }),
            Err(error) => progress(Progress::Failed { message: error.to_string() }),
        }
        result
    }

    fn info(&self, image: &Image) -> ImageInfo {
        ImageInfo {
            reference: image.reference.clone(),
            digest: image.digest.clone(),
            size: image.size,
            layers: image.layers.len() as u32,
            created_at: image.created_at.clone(),
            in_use: self.inner.state().holder_of(&image.digest).is_some(),
        }
    }

    /// An image that is there, by reference or by digest (`sha256:…`).
    pub fn image(&self, reference: &str) -> Option<Image> {
        let name =
            if reference.starts_with("sha256:") { Ok(reference.to_owned()) } else { reference::normalise(reference) };
        self.inner.get(&name.ok()?, None)
    }

    /// All images, by reference.
    pub fn list(&self) -> Vec<ImageInfo> {
        let images: Vec<Image> = {
            let state = self.inner.state();
            state.images.values().filter_map(|record| self.inner.image_of(&state, record)).collect()
        };
        images.iter().map(|image| self.info(image)).collect()
    }

    /// Declares that `holder` (e.g. an instance) uses an image, by reference or digest. What is held is neither removed nor
    /// collected. Holders live in memory: the daemon declares them again after a restart, before it calls
    /// [`Self::gc`] or [`Self::remove`].
    pub fn hold(&self, reference: &str, holder: &str) -> Result<Image> {
        let unknown = || ImageError::Unknown { reference: reference.to_owned() };
        let name =
            if reference.starts_with("sha256:") { reference.to_owned() } else { reference::normalise(reference)? };
        self.inner.get(&name, Some(holder)).ok_or_else(unknown)
    }

    /// `holder` uses nothing any more.
    pub fn release(&self, holder: &str) {
        let mut state = self.inner.state();
        for digest in state.holds.remove(holder).unwrap_or_default() {
            for record in state.images.values().filter(|record| record.digest == digest) {
                self.inner.touch(record);
            }
        }
    }

    /// Removes an image, by reference, and the layers that only it used. Refuses one that is in use unless another
    /// reference has the same content.
    pub async fn remove(&self, reference: &str) -> Result<()> {
        let name = reference::normalise(reference)?;
        let store = Arc::clone(&self.inner);
        let cancelled = ImageError::Cancelled { reference: name.clone() };
        let work = move || {
            let mut state = store.state();
            let record =
                state.images.get(&name).ok_or_else(|| ImageError::Unknown { reference: name.clone() })?.clone();
            let others = state.images.values().any(|other| other.digest == record.digest && other.reference != name);
            if !others && let Some(holder) = state.holder_of(&record.digest) {
                return Err(ImageError::InUse { reference: name, holder: holder.to_owned() });
            }
            store.forget(&mut state, &name)?;
            let orphans = store.orphans(&mut state, Some(&record))?;
            drop(state);
            orphans.delete().map(drop)
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| cancelled)?
    }

    /// Where the store is.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }
}
