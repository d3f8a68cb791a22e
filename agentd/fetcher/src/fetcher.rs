//! agentd's side of a fetch.

use std::ffi::OsString;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agentd_api::pod::Artifact;
use ipnet::IpNet;
use rustix::fs::{Mode, OFlags};
use tokio::sync::Semaphore;

use crate::cache::Cache;
use crate::error::{Failure, FetchError};
use crate::process;
use crate::protocol::{FILE, Limits, Outcome, Request, Source, Validators, Web};
use crate::staging::Staging;
use crate::uri::{self, Origin, Plan};
use crate::{place, roots};

/// The agent's artifact settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The program whose main function calls [`crate::child_main`].
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Absolute folders below which `file:` artifacts may lie; none switches `file:` off.
    pub file_roots: Vec<PathBuf>,
    /// Addresses that may be connected to although they are this host's own, link-local and so on.
    pub allowed_addresses: Vec<IpNet>,
    /// Most bytes of one file.
    pub max_bytes: u64,
    /// Most bytes that one archive may unpack to.
    pub max_extracted_bytes: u64,
    /// Most entries of one archive.
    pub max_entries: u64,
    /// Longest time for one artifact.
    pub timeout: Duration,
    /// User and group (of the host) that the child runs as; nothing else should run as this user.
    pub user: (u32, u32),
    /// Most fetches at a time; others wait, and their time does not run yet.
    pub parallel: usize,
    /// The cache of artifacts with `cache: true`; `None` downloads each time.
    pub cache: Option<CacheSettings>,
}

/// The cache of downloads.
#[derive(Debug, Clone)]
pub struct CacheSettings {
    /// Its folder, made when first needed, readable by root only.
    pub folder: PathBuf,
    /// Most bytes in it.
    pub max_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            program: PathBuf::from("/proc/self/exe"),
            arguments: vec![OsString::from("artifact-fetch")],
            file_roots: Vec::new(),
            allowed_addresses: Vec::new(),
            max_bytes: 4 << 30,
            max_extracted_bytes: 16 << 30,
            max_entries: 500_000,
            timeout: Duration::from_mins(10),
            user: (65534, 65534),
            parallel: 4,
            cache: None,
        }
    }
}

/// One artifact to fetch.
#[derive(Debug)]
pub struct FetchRequest {
    /// The artifact's place in the pod for errors, as in `containers[0].artifacts[1]`.
    pub field: String,
    /// The artifact.
    pub artifact: Artifact,
    /// The sandbox folder, opened for reading (not O_PATH).
    pub sandbox: OwnedFd,
    /// The user and group, as the host counts them, that own the files.
    pub owner: (u32, u32),
}

/// Fetches artifacts. One for each agentd; may be used by many tasks at a time.
pub struct Fetcher {
    settings: Settings,
    cache: Option<Arc<Cache>>,
    turns: Semaphore,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Fetcher {
    /// A fetcher with these settings. Does nothing yet.
    pub fn new(settings: Settings) -> Self {
        let cache = settings.cache.clone().map(|cache| Arc::new(Cache::new(cache.folder, cache.max_bytes)));
        Self { turns: Semaphore::new(settings.parallel.max(1)), cache, settings }
    }

    /// Fetches one artifact into its sandbox. When it fails, or is cancelled by dropping the future, the child is killed and
    /// nothing of a single file is in the sandbox (of an archive that was being moved into place, a part may be); when
    /// agentd dies, the next fetch into the sandbox clears up. Fetching again replaces what an earlier fetch made.
    pub async fn fetch(&self, request: FetchRequest) -> Result<(), FetchError> {
        let FetchRequest { field, artifact, sandbox, owner } = request;
        let result = match uri::plan(&artifact) {
            Ok(plan) => self.run(&artifact, plan, sandbox, owner).await,
            Err(failure) => Err(failure),
        };
        result.map_err(|failure| failure.of(&field, &uri::shown(&artifact.uri)))
    }

    async fn run(&self, artifact: &Artifact, plan: Plan, sandbox: OwnedFd, owner: (u32, u32)) -> Result<(), Failure> {
        let _turn = self.turns.acquire().await.map_err(|error| Failure::local("waiting for a turn", error))?;
        let cache = self.cache.clone().filter(|_| artifact.cache && matches!(plan.origin, Origin::Web(_)));
        let uri = artifact.uri.clone();
        let user = self.settings.user;
        let staging = blocking(move || {
            Staging::new(sandbox, user).map_err(|error| Failure::local("making a staging folder in the sandbox", error))
        })
        .await?;
        let mut staging = Guard(Some(staging));
        let result = self.staged(&uri, plan, cache, &mut staging, owner).await;
        if let Ok(left) = staging.take() {
            blocking(move || {
                drop(left);
                Ok(())
            })
            .await?;
        }
        result
    }

    async fn staged(
        &self,
        uri: &str,
        plan: Plan,
        cache: Option<Arc<Cache>>,
        staging: &mut Guard,
        owner: (u32, u32),
    ) -> Result<(), Failure> {
        let mut cached = match cache.clone() {
            Some(cache) => {
                let uri = uri.to_owned();
                blocking(move || Ok(cache.get(&uri))).await?
            }
            None => None,
        };
        let (source, file) = match &plan.origin {
            Origin::Web(url) => (self.web(url.to_string(), cached.as_ref().map(|(state, _)| state.clone()))?, None),
            Origin::File(path) => {
                let (roots, path) = (self.settings.file_roots.clone(), path.clone());
                (Source::File, Some(blocking(move || roots::open(&roots, &path)).await?))
            }
        };
        let mut outcome = self.child(&plan, source, file.as_ref(), staging).await?;
        if matches!(outcome, Outcome::NotModified) {
            let (_, file) = cached
                .take()
                .ok_or_else(|| Failure::local("the server answered 304", "but no cached copy was offered to it"))?;
            outcome = self.child(&plan, Source::File, Some(&file), staging).await?;
        } else if let (Outcome::Fetched(validators), Some(cache)) = (&outcome, cache) {
            let (validators, uri) = (validators.clone(), uri.to_owned());
            let held = staging.take()?;
            let held = blocking(move || {
                if let Err(error) = keep(&cache, &uri, &validators, &held) {
                    tracing::warn!(%error, "the artifact cache cannot keep a copy; the artifact itself is fine");
                }
                Ok(held)
            })
            .await?;
            staging.0 = Some(held);
        }
        match outcome {
            Outcome::Fetched(_) => {}
            Outcome::NotModified => return Err(Failure::local("the fetching process", "took a file for a download")),
            Outcome::Failed(failure) => return Err(failure),
        }
        let staging = staging.take()?;
        blocking(move || place::place(&staging, &plan, owner)).await
    }

    fn web(&self, url: String, cached: Option<Validators>) -> Result<Source, Failure> {
        let own = own_addresses().map_err(|error| Failure::local("listing this host's addresses", error))?;
        Ok(Source::Web(Web { url, allowed: self.settings.allowed_addresses.clone(), own, cached }))
    }

    async fn child(
        &self,
        plan: &Plan,
        source: Source,
        file: Option<&File>,
        staging: &Guard,
    ) -> Result<Outcome, Failure> {
        let settings = &self.settings;
        let request = Request {
            source,
            keep_file: plan.file.is_some(),
            extract: plan.extract,
            limits: Limits {
                max_bytes: settings.max_bytes,
                max_extracted_bytes: settings.max_extracted_bytes,
                max_entries: settings.max_entries,
                cpu_seconds: settings.timeout.as_secs().saturating_add(1),
            },
            user: settings.user,
        };
        let mut fds = vec![staging.get()?.folder()];
        fds.extend(file.map(AsFd::as_fd));
        let reply = process::run(settings, &request, &fds).await?;
        for lacking in reply.unconfined {
            tracing::debug!(%lacking, "the fetching process is confined less than it could be");
        }
        Ok(reply.outcome)
    }
}

/// Owns a staging folder in async code: removing it blocks, so that is left to a thread for such work.
struct Guard(Option<Staging>);

impl Guard {
    fn get(&self) -> Result<&Staging, Failure> {
        self.0.as_ref().ok_or_else(|| Failure::local("the staging folder", "is already gone"))
    }

    fn take(&mut self) -> Result<Staging, Failure> {
        self.0.take().ok_or_else(|| Failure::local("the staging folder", "is already gone"))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let (Some(staging), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn_blocking(move || drop(staging));
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Failure::local("a step of the fetch", error)),
    }
}

fn keep(cache: &Cache, uri: &str, validators: &Validators, staging: &Staging) -> std::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(staging.folder(), FILE, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("the fetching process left something else than a file"));
    }
    cache.put(uri, validators, &mut file)
}

/// The addresses of all interfaces of this host.
fn own_addresses() -> std::io::Result<Vec<IpAddr>> {
    let mut own = Vec::new();
    for interface in nix::ifaddrs::getifaddrs()? {
        let Some(address) = interface.address else {
            continue;
        };
        if let Some(v4) = address.as_sockaddr_in() {
            own.push(IpAddr::V4(v4.ip()));
        } else if let Some(v6) = address.as_sockaddr_in6() {
            own.push(IpAddr::V6(v6.ip()));
        }
    }
    Ok(own)
}
