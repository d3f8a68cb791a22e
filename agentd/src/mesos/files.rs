//! The virtual tree of files: what the state tells as directories, and what is below.
//!
//! ```text
//! /<instance>/<container>/…                      the container's sandbox, and its output as `stdout` and `stderr`
//! /<instance>/tasks/<instance>.<container>/…     the same, where tools look for tasks of a pod
//! /frameworks/local/executors/<instance>/runs/latest/…   the same as /<instance>/…
//! ```

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use agentd_api::mesos::v1;
use agentd_api::status::{InstanceStatus, PodStatus};
use agentd_logging::{Capture, Stream};
use tokio::sync::Semaphore;

use super::fault::Fault;
use super::log_file::{self, LogFile};
use super::{access, picture};
use crate::access::Caller;
use crate::access::policy::Verb;
use crate::api::Pods;
use crate::api::handle::Api;
use crate::api::stream::Pieces;
use crate::files::FilesError;
use crate::files::sandbox::{self, Entry};

/// Most bytes of one read: 16 pages, as Mesos.
pub(super) const MOST: usize = 16 * 4096;

/// Readers at a time: each may go through a whole log.
static READERS: Semaphore = Semaphore::const_new(4);

/// What a virtual path means.
#[derive(Debug)]
enum Place {
    Root(Vec<PodStatus>),
    Instance(Box<InstanceStatus>),
    /// The folder of tasks of an instance.
    Tasks(Box<InstanceStatus>),
    /// What lies below a container's sandbox.
    Sandbox {
        pod: Box<PodStatus>,
        instance: String,
        container: String,
        below: String,
    },
    /// What a container has printed.
    Printed {
        instance: String,
        container: String,
        stream: Stream,
    },
}

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub path: String,
    /// As `ls -l` shows it.
    pub mode: String,
    pub nlink: u64,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: jiff::Timestamp,
}

impl Listed {
    fn folder(path: String) -> Self {
        let mtime = jiff::Timestamp::UNIX_EPOCH;
        Self { path, mode: "drwxr-xr-x".into(), nlink: 2, uid: 0, gid: 0, size: 0, mtime }
    }

    fn of(entry: Entry, folder: &str, below: &str) -> Self {
        let Entry { path, mode, nlink, uid, gid, size, mtime } = entry;
        let name = path.strip_prefix(below.trim_matches('/')).unwrap_or(&path).trim_start_matches('/');
        Self { path: format!("{folder}/{name}"), mode, nlink, uid, gid, size, mtime }
    }

    /// As a message.
    pub fn info(&self) -> v1::FileInfo {
        v1::FileInfo {
            path: self.path.clone(),
            nlink: i32::try_from(self.nlink).ok(),
            size: Some(self.size),
            mtime: i64::try_from(self.mtime.as_nanosecond()).ok().map(|nanoseconds| v1::TimeInfo { nanoseconds }),
            mode: Some(bits(&self.mode)),
            uid: Some(self.uid.to_string()),
            gid: Some(self.gid.to_string()),
        }
    }
}

/// The bits of a mode, of the text that `ls -l` shows.
fn bits(text: &str) -> u32 {
    let mut bits = match text.as_bytes().first() {
        Some(b'd') => 0o040_000,
        Some(b'l') => 0o120_000,
        Some(b'p') => 0o010_000,
        Some(b's') => 0o140_000,
        Some(b'c') => 0o020_000,
        Some(b'b') => 0o060_000,
        _ => 0o100_000,
    };
    for (n, letter) in text.bytes().skip(1).take(9).enumerate() {
        // set-user-id, set-group-id and sticky stand in the place of x
        let special = 0o4000 >> (n / 3);
        bits |= match letter {
            b'r' | b'w' | b'x' => 0o400 >> n,
            b's' | b't' => 0o400 >> n | special,
            b'S' | b'T' => special,
            _ => 0,
        };
    }
    bits
}

/// What a path means to a caller.
fn find<P: Pods>(api: &Arc<Api<P>>, caller: &Caller, path: &str) -> Result<Place, Fault> {
    if path.contains('\0') || path.split('/').any(|part| part == "..") {
        let shown: String = path.chars().take(200).collect();
        return Err(Fault::bad(format!("path: found {shown:?}, expected a path from the root down, without '..'")));
    }
    let unknown = || {
        let shown: String = path.chars().take(200).collect();
        Fault::not_found(format!("there is nothing at {shown}; see the `directory` of an executor in /state"))
    };
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let parts = match parts.as_slice() {
        ["frameworks", picture::FRAMEWORK, "executors", instance, "runs", run, rest @ ..]
            if *run == "latest" || run == instance =>
        {
            [&[*instance], rest].concat()
        }
        parts => parts.to_vec(),
    };
    let visible = access::visible(api, caller, Verb::Logs);
    let Some((name, parts)) = parts.split_first() else { return Ok(Place::Root(visible)) };
    let found = picture::instances(&visible).find(|(_, instance)| instance.id == **name);
    let (pod, instance) = found.map(|(pod, instance)| (pod.clone(), instance.clone())).ok_or_else(unknown)?;
    let is_container = |name: &str| instance.containers.iter().any(|container| container.name == name);
    let (container, below) = match parts {
        [] => return Ok(Place::Instance(Box::new(instance))),
        ["tasks", task, below @ ..] if task.starts_with(&format!("{}.", instance.id)) => {
            let container = &task[instance.id.len() + 1..];
            (container, below)
        }
        ["tasks"] if !is_container("tasks") => return Ok(Place::Tasks(Box::new(instance))),
        [container, below @ ..] => (*container, below),
    };
    if !is_container(container) {
        return Err(unknown());
    }
    let (instance, container) = (instance.id, container.to_owned());
    Ok(match below {
        ["stdout"] => Place::Printed { instance, container, stream: Stream::Stdout },
        ["stderr"] => Place::Printed { instance, container, stream: Stream::Stderr },
        below => Place::Sandbox { pod: Box::new(pod), instance, container, below: below.join("/") },
    })
}

/// A container's sandbox. Reached through a descriptor, since a disk limit may keep it in a file of its own, which is
/// mounted where only descriptors lead.
#[derive(Debug)]
pub(super) struct Sandbox {
    root: PathBuf,
    _data: OwnedFd,
}

impl Sandbox {
    /// Opens it; none where there is none. Blocking.
    fn open(pods: &impl Pods, instance: &str, container: &str) -> Result<Option<Self>, Fault> {
        if !pods.layout().sandbox(instance).is_dir() {
            return Ok(None);
        }
        let data = pods.open_data(instance).map_err(Fault::failed)?;
        let root = PathBuf::from(format!("/proc/self/fd/{}/sandbox/{container}", data.as_raw_fd()));
        Ok(Some(Self { root, _data: data }))
    }

    /// The same where it must be there.
    fn must(pods: &impl Pods, instance: &str, container: &str) -> Result<Self, Fault> {
        Self::open(pods, instance, container)?.ok_or_else(|| FilesError::NotFound.into())
    }
}

/// Work that may take its time, on a thread where it may.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> Result<T, Fault> + Send + 'static) -> Result<T, Fault> {
    let _permit = READERS.acquire().await.map_err(|_| Fault::failed("the daemon is stopping"))?;
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Fault::failed(format!("reading ended early: {error}"))),
    }
}

/// What lies in a folder.
pub(super) async fn list<P: Pods>(api: &Arc<Api<P>>, caller: &Caller, path: &str) -> Result<Vec<Listed>, Fault> {
    let folder = path.trim_end_matches('/').to_owned();
    let folders =
        |names: Vec<String>| names.into_iter().map(|name| Listed::folder(format!("{folder}/{name}"))).collect();
    match find(api, caller, path)? {
        Place::Root(pods) => Ok(folders(picture::instances(&pods).map(|(_, instance)| instance.id.clone()).collect())),
        Place::Instance(instance) => {
            let names = instance.containers.into_iter().map(|container| container.name);
            let mut names: Vec<String> = names.chain(["tasks".to_owned()]).collect();
            names.sort();
            names.dedup();
            Ok(folders(names))
        }
        Place::Tasks(instance) => {
            let names = instance.containers.iter().map(|container| picture::task_id(&instance.id, &container.name));
            Ok(folders(names.collect()))
        }
        Place::Printed { .. } => Err(Fault::bad(format!("{path}: it is a file, expected a directory"))),
        Place::Sandbox { instance, container, below, .. } => {
            let pods = Arc::clone(&api.pods);
            apart(move || {
                let folder_of = Sandbox::open(pods.as_ref(), &instance, &container)?;
                let entries =
                    folder_of.map_or(Err(FilesError::NotFound), |folder| sandbox::browse(&folder.root, &below));
                let entries = match entries {
                    Ok(entries) => entries,
                    // a container that has not begun yet has printed nothing and written nothing
                    Err(FilesError::NotFound) if below.is_empty() => Vec::new(),
                    Err(error) => return Err(error.into()),
                };
                let mut listed: Vec<Listed> =
                    entries.into_iter().map(|entry| Listed::of(entry, &folder, &below)).collect();
                if below.is_empty() {
                    let printed = printed(pods.capture(), &instance, &container, &folder)?;
                    listed.retain(|entry| printed.iter().all(|file| file.path != entry.path));
                    listed.extend(printed);
                    listed.sort_by(|a, b| a.path.cmp(&b.path));
                }
                Ok(listed)
            })
            .await
        }
    }
}

/// The files of what a container has printed.
fn printed(capture: &Capture, instance: &str, container: &str, folder: &str) -> Result<Vec<Listed>, Fault> {
    let sizes = log_file::sizes(capture, instance, container).map_err(Fault::from)?;
    let log = capture.dir().join(instance).join(format!("{container}.log"));
    let written = std::fs::metadata(log).and_then(|log| log.modified()).unwrap_or(UNIX_EPOCH);
    let mtime = jiff::Timestamp::try_from(written).unwrap_or_default();
    let file = |name: &str, size| Listed {
        path: format!("{folder}/{name}"),
        mode: "-rw-r--r--".into(),
        nlink: 1,
        uid: 0,
        gid: 0,
        size,
        mtime,
    };
    Ok(vec![file("stderr", sizes.stderr), file("stdout", sizes.stdout)])
}

/// Bytes of a file from `offset` on, at most `length` and [`MOST`], and its size.
pub(super) async fn read<P: Pods>(
    api: &Arc<Api<P>>,
    caller: &Caller,
    path: &str,
    offset: u64,
    length: Option<u64>,
) -> Result<(Vec<u8>, u64), Fault> {
    let length = usize::try_from(length.unwrap_or(u64::MAX)).unwrap_or(usize::MAX).min(MOST);
    match find(api, caller, path)? {
        Place::Root(_) | Place::Instance(_) | Place::Tasks(_) => {
            Err(Fault::bad(format!("{path}: it is a directory, expected a file")))
        }
        Place::Sandbox { pod, instance, container, below } => {
            access::files(api, caller, &pod, &container)?;
            let pods = Arc::clone(&api.pods);
            apart(move || {
                let folder = Sandbox::must(pods.as_ref(), &instance, &container)?;
                Ok(sandbox::read(&folder.root, &below, offset, length)?)
            })
            .await
        }
        Place::Printed { instance, container, stream } => {
            let capture = api.pods.capture().clone();
            apart(move || log_file::read(&capture, &instance, &container, stream, offset, length).map_err(Fault::from))
                .await
        }
    }
}

/// Most bytes of one piece of a download.
const PIECE: usize = 1 << 20;

/// Pieces of a download that may wait for a slow client.
pub(super) const WAITING: usize = 2;

/// A file that is read from its beginning to its end. Nothing of a sandbox is held open between two pieces: a slow
/// client must not keep a pod from being removed.
pub(super) enum Download<P> {
    Sandbox { pods: Arc<P>, instance: String, container: String, below: String, offset: u64 },
    Printed(LogFile),
}

impl<P: Pods> Download<P> {
    /// Opens a file. What is wrong is found before anything is sent.
    pub async fn open(api: &Arc<Api<P>>, caller: &Caller, path: &str) -> Result<Self, Fault> {
        match find(api, caller, path)? {
            Place::Root(_) | Place::Instance(_) | Place::Tasks(_) => {
                Err(Fault::bad(format!("{path}: it is a directory, expected a file")))
            }
            Place::Sandbox { pod, instance, container, below } => {
                access::files(api, caller, &pod, &container)?;
                let pods = Arc::clone(&api.pods);
                apart(move || {
                    let folder = Sandbox::must(pods.as_ref(), &instance, &container)?;
                    sandbox::read(&folder.root, &below, 0, 0)?;
                    Ok(Self::Sandbox { pods, instance, container, below, offset: 0 })
                })
                .await
            }
            Place::Printed { instance, container, stream } => {
                let capture = api.pods.capture().clone();
                apart(move || {
                    LogFile::open(&capture, &instance, &container, stream, 0).map(Self::Printed).map_err(Fault::from)
                })
                .await
            }
        }
    }

    fn piece(&mut self) -> Result<Vec<u8>, Fault> {
        match self {
            Self::Printed(log) => log.piece(PIECE).map_err(Fault::from),
            Self::Sandbox { pods, instance, container, below, offset } => {
                let folder = Sandbox::must(pods.as_ref(), instance, container)?;
                let (bytes, _) = sandbox::read(&folder.root, below, *offset, PIECE)?;
                *offset += bytes.len() as u64;
                Ok(bytes)
            }
        }
    }

    /// Sends it. No thread is held while the client is slow.
    pub async fn send(self, pieces: Pieces) {
        let mut file = self;
        loop {
            let read = apart(move || {
                let piece = file.piece()?;
                Ok((file, piece))
            });
            match read.await {
                Ok((_, piece)) if piece.is_empty() => return,
                Ok((rest, piece)) => {
                    if !pieces.give(piece).await {
                        return;
                    }
                    file = rest;
                }
                Err(fault) => return pieces.break_off(fault.line).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_come_back_from_their_text() {
        for (text, mode) in [
            ("-rw-r--r--", 0o100_644),
            ("drwxr-xr-x", 0o040_755),
            ("lrwxrwxrwx", 0o120_777),
            ("-rwsr-Sr-t", 0o107_745),
            ("prw-------", 0o010_600),
            ("", 0o100_000),
        ] {
            assert_eq!(bits(text), mode, "{text}: {:o}", bits(text));
        }
    }
}
