//! Idempotency keys: a call that creates something may be repeated safely when it carries the header `Idempotency-Key`.
//!
//! The first call with a key claims it ([`Idempotency::claim`]); others with the same key wait for it and are answered
//! with its answer. Each key is a file below the run folder, written before the work begins (`begun`), when the thing is
//! there (`made`) and with the final answer (`done`), each time under a temporary name that is then renamed. A daemon that
//! was killed in between leaves `begun`: whoever claims such a key is told, and looks whether the work was done.
//!
//! Keys are those of a principal, so that nobody gets the answer of another. They are bounded in number, in bytes and in
//! age; the oldest go first. What was refused is not kept: it changed nothing, and the next call may fare better.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentd_api::problem::Violation;
use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, ETAG, HeaderName, HeaderValue, LOCATION};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Response, StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::answer::{Answer, Body, Refusal, whole};
use super::backend::Pods;
use super::handle::Api;
use crate::access::Caller;
use crate::checkpoint::{self, Durability};

/// The header that carries a key.
const KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Tells that an answer was given before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Longest key.
const LONGEST: usize = 255;

/// Most keys, and most bytes of their files.
const MOST: usize = 10_000;
const MOST_BYTES: u64 = 32 << 20;

/// How long a key is remembered.
const KEPT: Duration = Duration::from_hours(24);

/// Headers of an answer that are given again.
const HEADERS: [HeaderName; 3] = [CONTENT_TYPE, LOCATION, ETAG];

/// An answer as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Kept {
    /// An answer in text.
    pub fn new(status: StatusCode, headers: &HeaderMap, body: &str) -> Self {
        let value = |name: &HeaderName| {
            let value = headers.get(name)?.to_str().ok()?;
            Some((name.as_str().to_owned(), value.to_owned()))
        };
        Self { status: status.as_u16(), headers: HEADERS.iter().filter_map(value).collect(), body: body.to_owned() }
    }

    /// As an answer; `again` where another got it before.
    pub fn into_response(self, again: bool) -> Answer {
        let status = StatusCode::from_u16(self.status).map_err(|error| Refusal::failed(error.to_string()))?;
        let mut response: Response<Body> = whole(status, "application/json", Bytes::from(self.body));
        for (name, value) in self.headers {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                response.headers_mut().insert(name, value);
            }
        }
        if again {
            response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        }
        Ok(response)
    }
}

/// How far the work of a key has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "state")]
enum State {
    /// It was about to begin.
    Begun,
    /// What was to be created is there; the call had not come to its end.
    Made {
        /// What would be answered.
        answer: Kept,
    },
    /// The call was answered.
    Done {
        /// Its answer.
        answer: Kept,
    },
}

/// The file of a key.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    /// When it was claimed first.
    at: Timestamp,
    /// What tells the request from others: SHA-256 of call and body, in hexadecimal.
    request: String,
    #[serde(flatten)]
    state: State,
}

/// What an earlier claim of a key has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Earlier {
    /// There was none.
    Nothing,
    /// The work was about to begin at that time. Whether it was done has to be looked up.
    Begun(Timestamp),
    /// What was to be created was made; this was to be answered.
    Made(Kept),
}

/// A claim on a key.
#[derive(Debug)]
pub enum Claim {
    /// It was answered before.
    Answered(Kept),
    /// The work is the claimant's.
    Mine(Ticket),
}

#[derive(Debug, Default)]
struct Known {
    /// The keys that have a file, by age: file name and size.
    by_age: BTreeMap<(Timestamp, String), u64>,
    bytes: u64,
    /// The keys whose work is under way; the channel closes when it is over.
    under_way: HashMap<String, watch::Receiver<()>>,
    /// Whether the folder was read.
    read: bool,
}

/// The keys of a daemon.
#[derive(Debug, Clone)]
pub struct Idempotency {
    folder: PathBuf,
    /// Most keys.
    most: usize,
    known: Arc<Mutex<Known>>,
}

/// A claimed key: dropped, the work counts as over.
#[derive(Debug)]
pub struct Ticket {
    store: Idempotency,
    name: String,
    record: Record,
    earlier: Earlier,
    _under_way: watch::Sender<()>,
}

/// The key of a request, if it has one.
pub fn key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(value) = headers.get(KEY) else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| (1..=LONGEST).contains(&text.len()));
    if headers.get_all(KEY).iter().count() > 1 || text.is_none() {
        let message = format!("expected one key of 1 to {LONGEST} visible ASCII characters, a UUID for one");
        return Err(Refusal::bad_request(vec![Violation::new(KEY.as_str(), message)]));
    }
    Ok(text.map(str::to_owned))
}

fn hexadecimal(parts: &[&[u8]]) -> String {
    use std::fmt::Write as _;
    let mut hash = Sha256::new();
    for part in parts {
        // the length keeps two parts from being read as two others
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Name of a key of a principal, which tells it from all others: 64 hexadecimal digits.
pub fn name(principal: &str, key: &str) -> String {
    hexadecimal(&[principal.as_bytes(), key.as_bytes()])
}

/// Claims the key of a request; waits while another request with the same key is under way.
pub async fn claim<P: Pods>(
    api: &Arc<Api<P>>,
    caller: &Caller,
    key: &str,
    parts: &Parts,
    body: &[u8],
) -> Result<Claim, Refusal> {
    let call = format!("{} {}", parts.method, parts.uri.path_and_query().map_or("", |path| path.as_str()));
    tokio::select! {
        claim = api.idempotency.claim(&caller.principal, key, &call, body) => claim,
        () = api.shutdown.cancelled() => Err(Refusal::stopping()),
    }
}

impl Idempotency {
    /// The keys whose files are in this folder, which is made when the first is claimed.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, most: MOST, known: Arc::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }

    /// Claims a key for a request. Waits while another request with the same key is under way. `call` says what is asked
    /// for besides the body: method, path and query.
    pub async fn claim(&self, principal: &str, key: &str, call: &str, body: &[u8]) -> Result<Claim, Refusal> {
        let name = name(principal, key);
        let request = hexadecimal(&[call.as_bytes(), body]);
        loop {
            let (store, name, request, key) = (self.clone(), name.clone(), request.clone(), key.to_owned());
            // the first claim of a run reads the files of all keys
            let tried = tokio::task::spawn_blocking(move || store.try_claim(&name, &request, &key)).await;
            let tried =
                tried.map_err(|error| Refusal::failed(format!("the idempotency key cannot be kept: {error}")))?;
            let mut other = match tried? {
                Ok(claim) => return Ok(claim),
                Err(other) => other,
            };
            // an error is what is waited for: the ticket is dropped
            let _ = other.changed().await;
        }
    }

    /// The claim, or what closes when the work that is under way is over.
    fn try_claim(&self, name: &str, request: &str, key: &str) -> Result<Result<Claim, watch::Receiver<()>>, Refusal> {
        let mut known = self.known();
        let failed = |error: String| Refusal::failed(format!("the idempotency key cannot be kept: {error}"));
        if !known.read {
            known.read = true;
            read_folder(&self.folder, &mut known).map_err(|error| {
                known.read = false;
                failed(error)
            })?;
        }
        self.forget_old(&mut known);
        let found = checkpoint::read::<Record>(&self.path(name)).unwrap_or_else(|error| {
            // it holds nothing that could be answered; the work is looked up by its like
            tracing::warn!("{error}; the key counts as new");
            None
        });
        if let Some(found) = &found
            && found.request != request
        {
            let detail = format!(
                "the idempotency key {key:?} was used at {} for another request; use a new key for each request",
                found.at
            );
            let violation = Violation::new(KEY.as_str(), "used before for another request; use a new one");
            return Err(
                Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency-key-reused", detail).with(vec![violation])
            );
        }
        if let Some(under_way) = known.under_way.get(name) {
            return Ok(Err(under_way.clone()));
        }
        let (record, earlier) = match found {
            Some(Record { state: State::Done { answer }, .. }) => return Ok(Ok(Claim::Answered(answer))),
            Some(record) => {
                let earlier = match &record.state {
                    State::Made { answer } => Earlier::Made(answer.clone()),
                    _ => Earlier::Begun(record.at),
                };
                (record, earlier)
            }
            None => {
                let record = Record { at: Timestamp::now(), request: request.to_owned(), state: State::Begun };
                (record, Earlier::Nothing)
            }
        };
        if earlier == Earlier::Nothing {
            self.write(&mut known, name, &record).map_err(failed)?;
        }
        let (sender, receiver) = watch::channel(());
        known.under_way.insert(name.to_owned(), receiver);
        let ticket = Ticket { store: self.clone(), name: name.to_owned(), record, earlier, _under_way: sender };
        Ok(Ok(Claim::Mine(ticket)))
    }

    fn write(&self, known: &mut Known, name: &str, record: &Record) -> Result<(), String> {
        use std::os::unix::fs::DirBuilderExt;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        made.map_err(|error| format!("{}: {error}", self.folder.display()))?;
        let path = self.path(name);
        checkpoint::write(&path, record, Durability::Daemon).map_err(|error| error.to_string())?;
        let size = std::fs::metadata(&path).map_or(0, |file| file.len());
        let before = known.by_age.insert((record.at, name.to_owned()), size).unwrap_or(0);
        known.bytes = known.bytes + size - before;
        Ok(())
    }

    fn remove(&self, known: &mut Known, age: &(Timestamp, String)) {
        if let Some(size) = known.by_age.remove(age) {
            known.bytes = known.bytes.saturating_sub(size);
        }
        if let Err(error) = checkpoint::remove(&self.path(&age.1), Durability::Daemon) {
            tracing::warn!("{error}");
        }
    }

    /// Makes room for one more.
    fn forget_old(&self, known: &mut Known) {
        let oldest = Timestamp::now().checked_sub(KEPT).unwrap_or(Timestamp::MIN);
        while let Some((age, _)) = known.by_age.first_key_value() {
            if age.0 > oldest && known.by_age.len() < self.most && known.bytes < MOST_BYTES {
                return;
            }
            let age = age.clone();
            self.remove(known, &age);
        }
    }
}

/// The files that an earlier run has left.
fn read_folder(folder: &Path, known: &mut Known) -> Result<(), String> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("{}: {error}", folder.display())),
    };
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".json"));
        let record = name.and_then(|_| checkpoint::read::<Record>(&path).ok().flatten());
        let (Some(name), Some(record)) = (name, record) else {
            // a temporary file whose rename never came, or what no version of agentd wrote
            let _ = std::fs::remove_file(&path);
            continue;
        };
        let size = entry.metadata().map_or(0, |file| file.len());
        known.bytes += size;
        known.by_age.insert((record.at, name.to_owned()), size);
    }
    Ok(())
}

impl Ticket {
    /// What an earlier claim has left.
    pub fn earlier(&self) -> &Earlier {
        &self.earlier
    }

    /// What was to be created is there, and this would be answered.
    pub fn made(&mut self, answer: Kept) {
        self.put(State::Made { answer });
    }

    /// The call is over with this answer.
    pub fn done(mut self, answer: Kept) {
        self.put(State::Done { answer });
    }

    /// Nothing was created: the key is free again.
    pub fn forget(self) {
        let store = self.store.clone();
        store.remove(&mut store.known(), &(self.record.at, self.name.clone()));
    }

    fn put(&mut self, state: State) {
        self.record.state = state;
        let store = self.store.clone();
        // the work is done: that it can be repeated less safely must not make it fail
        if let Err(error) = store.write(&mut store.known(), &self.name, &self.record) {
            tracing::error!("an answer cannot be kept for its idempotency key: {error}");
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.store.known().under_way.remove(&self.name);
    }
}

#[cfg(test)]
mod tests;
