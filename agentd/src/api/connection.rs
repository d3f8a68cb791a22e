//! Accepts connections and serves HTTP/1.1 on each, within bounds.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::answer::Refusal;
use super::backend::Pods;
use super::handle::{Api, Peer, handle};

/// What connections are held to.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time. One more is told so and closed.
    pub connections: usize,
    /// How long a request's head may take to arrive; a connection without a request is closed after this time, too.
    pub head: Duration,
    /// How long a whole body may take to arrive.
    pub body: Duration,
    /// How long an unwanted body is read, so that the client gets to read its answer.
    pub unwanted: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let patience = Duration::from_secs(20);
        Self { connections: 512, head: patience, body: patience, unwanted: Duration::from_secs(2) }
    }
}

/// Largest head of a request, bytes.
const LARGEST_HEAD: usize = 32 << 10;

/// Most header fields of a request.
const MOST_HEADERS: usize = 64;

/// How long requests under way may take once the daemon stops.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Serves the API until `shutdown`. Then followers are let go, and requests under way get a moment to be answered; work
/// that they have begun is not cut short by that.
pub async fn serve<P: Pods>(node: Arc<P>, listener: UnixListener, shutdown: CancellationToken) {
    serve_within(node, listener, shutdown, Limits::default()).await;
}

/// [`serve`] with limits of the caller's choice.
pub(super) async fn serve_within<P: Pods>(
    node: Arc<P>,
    listener: UnixListener,
    shutdown: CancellationToken,
    limits: Limits,
) {
    let api = Arc::new(Api::new(node, shutdown.clone(), limits));
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_headers(MOST_HEADERS)
        .max_header_size(LARGEST_HEAD)
        .max_buf_size(2 * LARGEST_HEAD);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < limits.connections => {
                    connections.spawn(connection(Arc::clone(&api), stream, builder.clone()));
                }
                Ok((stream, _)) => turn_away(&stream, limits.connections),
                Err(error) => {
                    tracing::warn!("the API's socket: accept: {error}; trying again");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_ANSWERS, ended).await.is_err() {
        tracing::info!("{} connections of the API were still open", connections.len());
    }
}

async fn connection<P: Pods>(api: Arc<Api<P>>, stream: UnixStream, builder: http1::Builder) {
    let peer = match stream.peer_cred() {
        Ok(peer) => Peer { uid: peer.uid(), gid: peer.gid(), pid: peer.pid() },
        Err(error) => {
            tracing::warn!("the API's socket: who has connected cannot be told: {error}; the connection is closed");
            return;
        }
    };
    let shutdown = api.shutdown.clone();
    let service = service_fn(move |request| {
        let api = Arc::clone(&api);
        async move { Ok::<_, Infallible>(handle(&api, peer, request).await) }
    });
    let mut served = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let result = tokio::select! {
        result = served.as_mut() => result,
        () = shutdown.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(uid = peer.uid, pid = peer.pid, "a connection of the API ended: {error}");
    }
}

/// Answers without reading the request.
fn turn_away(stream: &UnixStream, most: usize) {
    tracing::warn!("the API has {most} connections; another one is turned away");
    let detail = format!("the daemon serves {most} connections, its most; close some, or try again later");
    let problem = Refusal::new(hyper::StatusCode::SERVICE_UNAVAILABLE, "busy", detail).into_text();
    let head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nconnection: close";
    let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{problem}", problem.len());
    // the buffer of a new socket has room for this
    let _ = stream.try_write(answer.as_bytes());
}
