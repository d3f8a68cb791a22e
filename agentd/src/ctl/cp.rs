//! `agentctl cp`: copies files into and out of containers, as tar streams.
//!
//! A thread does the blocking half (`pack` or `unpack`), this task the connection (`wire`); a bounded channel lies between
//! them. `place` knows the rules of where a copy ends up.

mod pack;
mod place;
mod progress;
mod unpack;
mod wire;

use std::fs::Metadata;
use std::io::{self, IsTerminal, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agentd_api::files::{FileKind, FileStat, FilesWritten, STAT_HEADER};
use bytes::{Buf, Bytes};
use clap::Args;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Method, Response};
use tokio::sync::{mpsc, oneshot};

use super::client::{CallError, Client, read};
use super::failure::{Failure, Result, clean};
use super::output::Output;
use super::pods::path_of;
use super::table::bytes as amount;
use crate::api::route::encode;
use place::{Goal, Kind, Place};
use progress::Progress;
use unpack::{Naming, Unpacked};

/// Pieces between the connection and the thread.
const WAITING: usize = 4;

/// Most symbolic links that `-L` follows.
const MOST_LINKS: usize = 16;

/// What the daemon says where the pod is there and the file is not.
const NO_FILE: &str = "there is no such file or directory in the container";

/// How often the progress is shown.
const BEAT: Duration = Duration::from_millis(100);

/// Its command line.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Name of the container; may be left out where the pod has one.
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// Id of the instance; may be left out where one runs.
    #[arg(long, value_name = "ID")]
    pub instance: Option<String>,
    /// Keep owners and groups by number (on this machine: only as root).
    #[arg(short, long)]
    pub archive: bool,
    /// Copy what SOURCE leads to where it is a symbolic link.
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// No progress and no result, only failures.
    #[arg(short, long)]
    pub quiet: bool,
    /// POD:PATH, a file or folder of this machine, or - for a tar stream on standard input.
    #[arg(value_name = "SOURCE", value_parser = Place::parse)]
    pub source: Place,
    /// POD:PATH, a file or folder of this machine, or - for a tar stream on standard output.
    #[arg(value_name = "TARGET", value_parser = Place::parse)]
    pub target: Place,
}

/// Bytes of an archive of one file: a head of one block, the file in whole blocks, and two empty ones.
fn archive_size(file: u64) -> u64 {
    512 + file.next_multiple_of(512) + 1024
}

/// Carries it out.
pub async fn run(client: &Client, output: &mut Output, arguments: Arguments) -> Result<()> {
    let copy = Copy { client, arguments: &arguments, progress: Progress::new(!arguments.quiet && !output.json()) };
    let done = match (&arguments.source, &arguments.target) {
        (Place::Remote { pod, path }, Place::Local(target)) => copy.receive(pod, path, target).await?,
        (Place::Remote { pod, path }, Place::Stream) => return copy.receive_stream(pod, path, output).await,
        (Place::Local(source), Place::Remote { pod, path }) => copy.send(source, pod, path).await?,
        (Place::Stream, Place::Remote { pod, path }) => copy.send_stream(pod, path).await?,
        (Place::Remote { .. }, Place::Remote { .. }) => {
            let cure = "copy here first, or: agentctl cp POD:PATH - | agentctl cp - POD:PATH";
            return Err(Failure::bad_input(format!("both ends are in containers; {cure}")));
        }
        _ => return Err(Failure::bad_input("neither end is in a container; write POD:/PATH for one of them")),
    };
    copy.progress.clear();
    if output.json() {
        let body = serde_json::to_vec(&done).map_err(|error| Failure::failed(error.to_string()))?;
        return output.body(&body);
    }
    if !arguments.quiet && io::stderr().is_terminal() {
        let entries = if done.entries == 1 { "entry" } else { "entries" };
        eprintln!("copied {} {entries}, {}", done.entries, amount(done.bytes));
    }
    Ok(())
}

struct Copy<'a> {
    client: &'a Client,
    arguments: &'a Arguments,
    progress: Progress,
}

type Called<T> = std::result::Result<T, CallError>;

impl Copy<'_> {
    /// The path of the call for a path of a container.
    fn at(&self, pod: &str, path: &[u8]) -> Result<String> {
        let mut at = format!(
            "{}/files?path={}",
            path_of(pod)?,
            percent_encoding::percent_encode(path, percent_encoding::NON_ALPHANUMERIC)
        );
        for (name, value) in [("container", &self.arguments.container), ("instance", &self.arguments.instance)] {
            if let Some(value) = value {
                at = format!("{at}&{name}={}", encode(value));
            }
        }
        Ok(at)
    }

    /// Asks for an archive of what lies at a path; with `-L` of what it leads to.
    async fn open(&self, pod: &str, path: &str) -> Result<(Response<Incoming>, FileStat)> {
        let mut path = path.to_owned();
        for _ in 0..MOST_LINKS {
            let at = self.at(pod, path.as_bytes())?;
            let response = wire::call(self.client, Method::GET, &at, Empty::new()).await?;
            let text = response.headers().get(STAT_HEADER).map_or(&b""[..], |value| value.as_bytes());
            let stat: FileStat = read(text)?;
            match &stat.link_target {
                Some(target) if self.arguments.follow_link => path = leads_to(&path, target),
                _ => return Ok((response, stat)),
            }
        }
        Err(Failure::failed(format!("{}: more than {MOST_LINKS} symbolic links one after another", clean(&path))))
    }

    /// What lies at a path of a container, symbolic links followed.
    async fn look(&self, pod: &str, path: &str) -> Called<Kind> {
        let mut asked = vec![path.to_owned()];
        while let Some(path) = asked.pop() {
            let at = format!("{}&stat=true", self.at(pod, path.as_bytes())?);
            match self.client.call(Method::GET, &at, None).await {
                Ok(body) => match read::<FileStat>(&body)?.kind {
                    FileKind::Directory => return Ok(Kind::Folder),
                    FileKind::File => return Ok(Kind::File),
                    FileKind::Symlink => asked.push(format!("{path}/.")),
                },
                // a link that leads to a file, or nowhere, is replaced
                Err(CallError::Problem(_)) if path.ends_with("/.") => return Ok(Kind::File),
                Err(CallError::Problem(problem)) if problem.detail.contains(NO_FILE) => return Ok(Kind::Nothing),
                Err(error) => return Err(error),
            }
        }
        Ok(Kind::Nothing)
    }

    async fn receive(&self, pod: &str, path: &str, target: &Path) -> Result<FilesWritten> {
        let (response, stat) = self.open(pod, path).await?;
        let there = local_kind(target)?;
        let source = PathBuf::from(path);
        let folder = stat.kind == FileKind::Directory;
        let goal = place::goal(&source, folder, target, there).map_err(Failure::bad_input)?;
        let naming = Naming { strip: stat.name != ".", name: goal.name.clone() };
        let opened = open_folder(&goal)?;
        self.progress.expect((stat.kind == FileKind::File).then(|| archive_size(stat.size)));
        let owners = self.arguments.archive && rustix::process::geteuid().is_root();
        let (give, pieces) = mpsc::channel(WAITING);
        let work = in_thread(move || {
            unpack::unpack(&opened, &naming, owners, Body { pieces, present: Bytes::new(), ended: false })
        });
        let fetch = async {
            let mut body = response.into_body();
            while let Some(frame) = body.frame().await {
                let frame =
                    frame.map_err(|error| Failure::failed(format!("the archive broke off: {error}; copy again")))?;
                let Ok(data) = frame.into_data() else { continue };
                self.progress.add(data.len() as u64);
                if give.send(Piece::Bytes(data)).await.is_err() {
                    // the thread says why
                    return Ok(());
                }
            }
            let _ = give.send(Piece::End).await;
            Ok(())
        };
        let fetched: Result<()> = until_interrupted(fetch).await;
        // without its end the thread removes what is half written
        drop(give);
        let unpacked: Result<Unpacked> = work?.await;
        fetched?;
        let unpacked = unpacked?;
        self.progress.clear();
        unpack::tell(&unpacked.notes);
        Ok(FilesWritten { entries: unpacked.entries, bytes: unpacked.bytes })
    }

    async fn receive_stream(&self, pod: &str, path: &str, output: &mut Output) -> Result<()> {
        if io::stdout().is_terminal() {
            return Err(Failure::bad_input(
                "a tar stream would be shown on the terminal; send it into a file or a pipe",
            ));
        }
        let (response, stat) = self.open(pod, path).await?;
        self.progress.expect((stat.kind == FileKind::File).then(|| archive_size(stat.size)));
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|error| Failure::failed(format!("the archive broke off: {error}; copy again")))?;
            if let Ok(data) = frame.into_data() {
                self.progress.add(data.len() as u64);
                output.raw(&data)?;
            }
        }
        self.progress.clear();
        Ok(())
    }

    async fn send(&self, source: &Path, pod: &str, path: &str) -> Result<FilesWritten> {
        let failed = |error: io::Error| Failure::bad_input(format!("{}: {error}", source.display()));
        let bytes = source.as_os_str().as_bytes();
        let follow = self.arguments.follow_link || bytes.ends_with(b"/") || bytes.ends_with(b"/.");
        let metadata = if follow { std::fs::metadata(source) } else { std::fs::symlink_metadata(source) };
        let metadata = metadata.map_err(failed)?;
        let there = self.look(pod, path).await?;
        let goal = place::goal(source, metadata.is_dir(), Path::new(path), there).map_err(Failure::bad_input)?;
        // a new folder comes with the archive
        let goal = if goal.make {
            let parent = goal.folder.parent().unwrap_or(Path::new("/")).to_path_buf();
            Goal { name: place::base_name(&goal.folder), folder: parent, make: false }
        } else {
            goal
        };
        self.progress.expect(metadata.is_file().then_some(metadata.len()));
        let at = self.at(pod, goal.folder.as_os_str().as_bytes())?;
        let packing =
            Packing { source: source.to_path_buf(), metadata, name: goal.name, owners: self.arguments.archive };
        self.put(&at, move |pieces, count| packing.run(pieces, count)).await
    }

    async fn send_stream(&self, pod: &str, path: &str) -> Result<FilesWritten> {
        if io::stdin().is_terminal() {
            return Err(Failure::bad_input("a tar stream is expected on standard input, which is a terminal"));
        }
        let at = self.at(pod, path.as_bytes())?;
        self.progress.expect(None);
        self.put(&at, |pieces, count| {
            let mut stdin = io::stdin().lock();
            let mut piece = vec![0; 128 << 10];
            loop {
                let read = match stdin.read(&mut piece) {
                    Ok(0) => return Ok(Vec::new()),
                    Ok(read) => read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => {
                        let message = format!("standard input: {error}");
                        let _ = pieces.blocking_send(Err(error));
                        return Err(Failure::failed(message));
                    }
                };
                count.fetch_add(read as u64, Ordering::Relaxed);
                if pieces.blocking_send(Ok(Bytes::copy_from_slice(&piece[..read]))).is_err() {
                    return Err(Failure::Enough);
                }
            }
        })
        .await
    }

    /// Sends what a thread makes.
    async fn put(
        &self,
        at: &str,
        make: impl FnOnce(&pack::Pieces, &AtomicU64) -> Result<Vec<String>> + Send + 'static,
    ) -> Result<FilesWritten> {
        let (give, mut pieces) = mpsc::channel::<io::Result<Bytes>>(WAITING);
        let count = self.progress.counter();
        let work = in_thread(move || make(&give, &count))?;
        let body = futures_util::stream::poll_fn(move |context| {
            pieces.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
        });
        let call = async {
            let response = wire::call(self.client, Method::PUT, at, StreamBody::new(body)).await?;
            read(&wire::collect(response).await?)
        };
        let shown = async {
            loop {
                tokio::time::sleep(BEAT).await;
                self.progress.show();
            }
        };
        let written: Result<FilesWritten> = tokio::select! {
            written = until_interrupted(call) => written,
            () = shown => Err(Failure::Enough),
        };
        self.progress.clear();
        match (work.await, written) {
            // what is wrong here is why the daemon was not content
            (Err(failure @ Failure::Told { .. }), _) | (_, Err(failure)) => Err(failure),
            (notes, Ok(written)) => {
                unpack::tell(&notes.unwrap_or_default());
                Ok(written)
            }
        }
    }
}

struct Packing {
    source: PathBuf,
    metadata: Metadata,
    name: Option<Vec<u8>>,
    owners: bool,
}

impl Packing {
    fn run(self, pieces: &pack::Pieces, count: &AtomicU64) -> Result<Vec<String>> {
        let Self { source, metadata, name, owners } = self;
        pack::pack(&source, &metadata, name.as_deref(), owners, pieces, count).map(|packed| packed.notes)
    }
}

/// Where a symbolic link at a path leads.
fn leads_to(path: &str, target: &str) -> String {
    if target.starts_with('/') {
        return target.to_owned();
    }
    let parent = path.trim_end_matches('/').rsplit_once('/').map_or("", |(parent, _)| parent);
    format!("{parent}/{target}")
}

/// What lies at a path of this machine. Over a device or the like nothing is copied.
fn local_kind(path: &Path) -> Result<Kind> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(Kind::Folder),
        Ok(metadata) => {
            let kind = metadata.file_type();
            if kind.is_char_device() || kind.is_block_device() || kind.is_fifo() || kind.is_socket() {
                let cure = "name a file or a folder, or - for a tar stream";
                return Err(Failure::bad_input(format!("{}: it is no regular file; {cure}", path.display())));
            }
            Ok(Kind::File)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Kind::Nothing),
        Err(error) => Err(Failure::bad_input(format!("{}: {error}", path.display()))),
    }
}

/// The folder to unpack in.
fn open_folder(goal: &Goal) -> Result<OwnedFd> {
    let failed = |error: io::Error| Failure::bad_input(format!("{}: {error}", goal.folder.display()));
    if goal.make {
        std::fs::create_dir(&goal.folder).map_err(failed)?;
    }
    let folder = std::fs::File::open(&goal.folder).map_err(failed)?;
    if !folder.metadata().map_err(failed)?.is_dir() {
        return Err(Failure::bad_input(format!("{}: it is no folder", goal.folder.display())));
    }
    Ok(folder.into())
}

/// Runs blocking work in a thread.
fn in_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<impl Future<Output = Result<T>>> {
    let (told, answer) = oneshot::channel();
    let started = std::thread::Builder::new().name("files".into()).spawn(move || drop(told.send(work())));
    started.map_err(|error| Failure::failed(format!("no thread for the copy: {error}")))?;
    Ok(async move { answer.await.unwrap_or_else(|_| Err(Failure::failed("the thread of the copy ended early"))) })
}

/// Does something until it is done or Ctrl-C: what is half written is removed then.
async fn until_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        result = work => result,
        _ = tokio::signal::ctrl_c() => Err(Failure::exit(130)),
    }
}

/// What the connection hands to the thread.
enum Piece {
    Bytes(Bytes),
    End,
}

/// The archive as the thread reads it.
struct Body {
    pieces: mpsc::Receiver<Piece>,
    present: Bytes,
    ended: bool,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.present.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.present = bytes,
                Some(Piece::End) => self.ended = true,
                None => return Err(io::Error::other("the copy was broken off")),
            }
        }
        let count = self.present.len().min(buffer.len());
        self.present.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_where_they_lead_in_the_container() {
        assert_eq!(leads_to("/a/b", "c"), "/a/c");
        assert_eq!(leads_to("/a/b/", "../c"), "/a/../c");
        assert_eq!(leads_to("/b", "c"), "/c");
        assert_eq!(leads_to("/a/b", "/c"), "/c");
    }

    #[test]
    fn what_comes_of_a_connection_that_broke_is_no_end() {
        let mut buffer = [0; 8];
        let (give, pieces) = mpsc::channel(4);
        give.try_send(Piece::Bytes(Bytes::from_static(b"abc"))).unwrap();
        drop(give);
        let mut body = Body { pieces, present: Bytes::new(), ended: false };
        assert_eq!(body.read(&mut buffer).unwrap(), 3);
        assert!(body.read(&mut buffer).is_err());
        let (give, pieces) = mpsc::channel(4);
        give.try_send(Piece::End).unwrap();
        let mut body = Body { pieces, present: Bytes::new(), ended: false };
        assert_eq!((body.read(&mut buffer).unwrap(), body.read(&mut buffer).unwrap()), (0, 0));
        drop(give);
    }
}
