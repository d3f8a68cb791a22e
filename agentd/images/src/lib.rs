//! Image store: registry, OCI layout and docker-archive sources, verified blobs, unpacked layers.
//!
//! ```text
//! <root>/lock                     flock of the one process that owns the store
//! <root>/images/<name>.json       one image: reference, digest, layers, configuration
//! <root>/layers/<name>/fs/        one unpacked layer, in overlayfs form
//! <root>/layers/<name>/layer.json its diff id and size
//! <root>/blobs/sha256/<hex>       blobs on their way to becoming layers, or kept by `keep_blobs`
//! <root>/tmp/partial-<hex>        part of a blob, resumed by the next pull
//! <root>/tmp/…                    everything else that is not whole yet; emptied by `Store::open`
//! ```
//!
//! A layer is known by its diff id (digest of the uncompressed archive), so that one content is unpacked once, however it
//! was compressed and whichever images share it. `<name>` is the start of that digest: overlayfs takes its layers as one
//! string of limited length.
//!
//! **Durability.** Whatever appears in `images/`, `layers/` and `blobs/` appears by rename, once it is whole and its
//! digest is verified. SIGKILL between any two system calls leaves a sound store. For a loss of power, one `syncfs` runs
//! before an image record is renamed into place; a layer that no record names and that an earlier boot unpacked is
//! removed by [`Store::open`], and a blob is hashed again whenever it is unpacked.
//!
//! **Concurrency.** [`Store`] is a handle to be cloned. Its async functions run on tokio and unpack on tokio's blocking
//! threads; dropping a future gives the work up at its next step, and whoever waits for the same layer takes over.

mod credentials;
mod digest;
mod disk;
mod error;
mod flight;
mod gc;
mod ingest;
mod inner;
mod manifest;
mod record;
mod reference;
mod settings;
mod source;
mod store;
mod unpack;

use std::sync::{Arc, OnceLock};

use agentd_api::message::Progress;

pub use error::{ImageError, Result};
pub use gc::Collected;
pub use manifest::ImageConfig;
pub use record::Image;
pub use reference::normalise;
pub use settings::{Limits, Settings};
pub use store::Store;

/// Is told how a pull or an import goes on. Called from several threads; must not block.
pub type ProgressSink = Arc<dyn Fn(Progress) + Send + Sync>;

/// A sink for callers who do not care.
pub fn quiet() -> ProgressSink {
    Arc::new(|_| {})
}

static CHECKPOINT: OnceLock<fn(&'static str)> = OnceLock::new();

/// Sets a function that is called after each durable step, for tests that kill the process there. Names:
/// `pull.manifest`, `pull.partial`, `pull.blob`, `pull.layer.unpacked`, `pull.layer.renamed`, `pull.synced`,
/// `pull.record`, `remove.record`, `gc.layer.renamed`, `gc.layer.removed`, `gc.blob`. Only the first call counts.
pub fn set_checkpoint_hook(hook: fn(&'static str)) {
    let _ = CHECKPOINT.set(hook);
}

fn checkpoint(name: &'static str) {
    if let Some(hook) = CHECKPOINT.get() {
        hook(name);
    }
}
