//! One copy out of or into a container: a thread that takes on the container's rights and ends, and a bounded channel of
//! pieces between it and the call's body.
//!
//! Out: the thread walks the tree and hands pieces over; it stops when nobody takes them any more. In: the call reads
//! the body and hands pieces over; the thread unpacks them. A call that goes away in between looks different from the
//! end of the body, so that nothing half sent counts as whole.

use std::io::{self, Read};

use agentd_api::files::{FileStat, FilesWritten};
use bytes::{Buf, Bytes};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot};

use super::container::ContainerTree;
use super::error::FilesError;
use super::pack::{self, Stopped};
use super::unpack;
use crate::target::Target;

/// Most copies at a time: each has a thread, descriptors and some pieces in memory.
const MOST: usize = 16;

/// Pieces of a body that wait for the thread.
const WAITING: usize = 16;

static TRANSFERS: Semaphore = Semaphore::const_new(MOST);

/// Leave to make a copy; none where as many are under way as may be.
pub fn permit() -> Option<SemaphorePermit<'static>> {
    TRANSFERS.try_acquire().ok()
}

/// How many copies may be under way.
pub fn most() -> usize {
    MOST
}

fn thread(work: impl FnOnce() + Send + 'static) -> Result<(), FilesError> {
    let builder = std::thread::Builder::new().name("container-files".to_owned()).stack_size(2 << 20);
    builder.spawn(work).map(drop).map_err(|error| FilesError::Io(format!("no thread for the copy: {error}")))
}

fn ended_early() -> FilesError {
    FilesError::Io("the thread of the copy ended early".to_owned())
}

/// Where the pieces of an archive go.
pub trait Taker: Send + 'static {
    /// Takes a piece; false when nobody wants more.
    fn take(&mut self, piece: Bytes) -> impl Future<Output = bool> + Send;
    /// The archive is whole, or is not.
    fn end(self, result: Result<(), Stopped>) -> impl Future<Output = ()> + Send;
}

/// Looks up a path and sends the archive of it to `taker`, if there is one. Returns once it is known what lies there.
pub async fn out(
    target: Target,
    path: Vec<u8>,
    taker: Option<impl Taker>,
    permit: SemaphorePermit<'static>,
) -> Result<FileStat, FilesError> {
    let (told, answer) = oneshot::channel();
    let runtime = Handle::current();
    thread(move || {
        let _permit = permit;
        let look = || {
            let tree = ContainerTree::open(&target)?;
            tree.enter()?;
            let found = pack::locate(&tree, &path)?;
            Ok((found.stat(&tree), tree, found))
        };
        let (stat, tree, found) = match look() {
            Ok(looked) => looked,
            Err(error) => return drop(told.send(Err(error))),
        };
        // a call that went away wants no archive either
        if told.send(Ok(stat)).is_err() {
            return;
        }
        let Some(mut taker) = taker else { return };
        let result = pack::pack(&tree, found, &mut |piece| runtime.block_on(taker.take(piece)));
        runtime.block_on(taker.end(result));
    })?;
    answer.await.map_err(|_| ended_early())?
}

/// What the call hands to the thread.
enum Piece {
    Bytes(Bytes),
    End,
}

/// Gives the thread the pieces of a body.
#[derive(Debug)]
pub struct Feed(mpsc::Sender<Piece>);

impl std::fmt::Debug for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Self::End => f.write_str("End"),
        }
    }
}

impl Feed {
    /// Hands a piece over; waits for the thread. False when the thread wants no more.
    pub async fn give(&self, bytes: Bytes) -> bool {
        self.0.send(Piece::Bytes(bytes)).await.is_ok()
    }

    /// The body is whole.
    pub async fn end(self) {
        // a thread that has failed needs no end
        let _ = self.0.send(Piece::End).await;
    }
}

/// The body as the thread reads it.
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
                None => return Err(io::Error::other("the connection was lost before the body was whole")),
            }
        }
        let count = self.present.len().min(buffer.len());
        self.present.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// Begins to unpack below `path`. The answer comes once all of the body is unpacked, or at the first fault.
pub fn into(
    target: Target,
    path: Vec<u8>,
    permit: SemaphorePermit<'static>,
) -> Result<(Feed, impl Future<Output = Result<FilesWritten, FilesError>>), FilesError> {
    let (feed, pieces) = mpsc::channel(WAITING);
    let (told, answer) = oneshot::channel();
    thread(move || {
        let _permit = permit;
        let work = || {
            let tree = ContainerTree::open(&target)?;
            tree.enter()?;
            unpack::unpack(&tree, &path, Body { pieces, present: Bytes::new(), ended: false })
        };
        // a call that went away is told nothing
        let _ = told.send(work());
    })?;
    Ok((Feed(feed), async move { answer.await.map_err(|_| ended_early())? }))
}
