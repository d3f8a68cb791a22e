//! Output of a container as a stream of records.

use std::sync::Arc;
use std::time::Duration;

use agentd_api::mesos::{Format, PIECE, heartbeat, output};
use agentd_logging::{Entry, Follow, ReadOptions, Stream as Side};
use bytes::Bytes;
use hyper::Response;
use hyper::header::HeaderValue;
use tokio_util::sync::CancellationToken;

use super::ends;
use super::fault::Fault;
use super::negotiate::{MESSAGE_CONTENT_TYPE, RECORDIO, Stream};
use crate::access::audit::SessionAction;
use crate::api::Pods;
use crate::api::answer::Body;
use crate::api::handle::Api;
use crate::api::stream::{self, Pieces};
use crate::session::{Attachment, From, Output, Session};

/// Silence after which a sign of life is sent: some clients give up after 10 s without one.
const SILENCE: Duration = Duration::from_secs(5);

/// Records that may wait for a slow client: what more there is stays with the container, which is held back by it.
const WAITING: usize = 4;

/// Who follows a nested container's output.
#[derive(Debug)]
pub(super) enum Follower {
    /// The client that it lives with.
    Owner,
    /// Somebody who has attached to it.
    Attached(String),
}

/// Streams a nested container's output, what is kept of it first.
pub(super) fn nested<P: Pods>(api: &Arc<Api<P>>, session: Session, how: Stream, follower: Follower) -> Response<Body> {
    let attachment = session.attach(From::Kept);
    let (pieces, response) = open(api, how);
    let api = Arc::clone(api);
    if let Follower::Attached(by) = &follower {
        api.note(SessionAction::Attach, &session, by);
    }
    tokio::spawn(async move {
        let owner = matches!(follower, Follower::Owner);
        follow(session.clone(), attachment, pieces, how.format, owner, api.shutdown.clone()).await;
        if let Follower::Attached(by) = &follower {
            api.note(SessionAction::Detach, &session, by);
        }
    });
    response
}

fn open<P: Pods>(api: &Arc<Api<P>>, how: Stream) -> (Pieces, Response<Body>) {
    let (pieces, mut response) = stream::open_for(how.media_type, &api.shutdown, WAITING);
    if how.media_type == RECORDIO {
        response.headers_mut().insert(MESSAGE_CONTENT_TYPE, HeaderValue::from_static(how.format.media_type()));
    }
    (pieces, response)
}

async fn follow(
    session: Session,
    mut attachment: Attachment,
    pieces: Pieces,
    format: Format,
    owner: bool,
    shutdown: CancellationToken,
) {
    loop {
        let next = tokio::select! {
            next = attachment.next() => next,
            () = pieces.unwanted() => break,
            () = tokio::time::sleep(SILENCE) => {
                if !pieces.give(heartbeat(format, SILENCE)).await {
                    break;
                }
                continue;
            }
        };
        let (error, bytes) = match next {
            Output::Stdout(bytes) => (false, bytes),
            Output::Stderr(bytes) => (true, bytes),
            Output::Gap(bytes) => {
                tracing::debug!(session = session.id(), bytes, "output that nobody was attached for is lost");
                continue;
            }
            Output::Exit(_) => return,
            Output::LetGo(why) => return pieces.break_off(why).await,
        };
        if !give(&pieces, format, error, &bytes).await {
            break;
        }
    }
    if shutdown.is_cancelled() {
        // the session outlives the daemon: it must not seem as if its client had gone
        pieces.break_off("the daemon is stopping").await;
        drop(pieces);
        std::future::pending::<()>().await;
    } else if owner {
        session.kill("its client disconnected").await;
    }
}

/// Sends output in records that are not too large, and none that is empty. False when the client is gone.
async fn give(pieces: &Pieces, format: Format, error: bool, bytes: &Bytes) -> bool {
    for piece in bytes.chunks(PIECE) {
        if !pieces.give(output(format, error, piece)).await {
            return false;
        }
    }
    true
}

/// Streams what a pod's container prints from now on, until it ends.
pub(super) fn container<P: Pods>(
    api: &Arc<Api<P>>,
    pod: &str,
    instance: &str,
    container: &str,
    how: Stream,
) -> Result<Response<Body>, Fault> {
    let options = ReadOptions { tail: Some(0), ..ReadOptions::default() };
    let follow = api.pods.capture().follow(instance, container, &options);
    let follow = follow.map_err(|error| Fault::failed(error.to_string()))?;
    let (pieces, response) = open(api, how);
    let ended = CancellationToken::new();
    let (api, names) = (Arc::clone(api), [pod, instance, container].map(str::to_owned));
    let token = ended.clone();
    tokio::spawn(async move {
        let _ended = token.drop_guard();
        let _ = ends::container(&api, &names[0], &names[1], &names[2]).await;
    });
    tokio::spawn(follow_log(follow, ended, pieces, how.format));
    Ok(response)
}

async fn follow_log(mut follow: Follow, ended: CancellationToken, pieces: Pieces, format: Format) {
    let mut ending = false;
    loop {
        let next = tokio::select! {
            next = follow.next() => next,
            () = ended.cancelled(), if !ending => {
                ending = true;
                follow = follow.until_finished();
                continue;
            }
            () = pieces.unwanted() => return pieces.break_off("the daemon is stopping").await,
            () = tokio::time::sleep(SILENCE) => {
                if !pieces.give(heartbeat(format, SILENCE)).await {
                    return;
                }
                continue;
            }
        };
        match next {
            Some(Ok(Entry { stream, mut line, partial, .. })) => {
                if !partial {
                    line.push(b'\n');
                }
                if !give(&pieces, format, stream == Side::Stderr, &line.into()).await {
                    return;
                }
            }
            Some(Err(error)) => return pieces.break_off(error).await,
            None => return,
        }
    }
}
