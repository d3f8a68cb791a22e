//! Listeners that serve metrics and nothing else: `/metrics` and `/metrics/snapshot`.
//!
//! On loopback in plain text, elsewhere with TLS for clients with a certificate, or in plain text where the configuration
//! says so. One task for each listener, one for each connection; both end with the daemon.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use agentd_metrics::encode::snapshot;
use hyper::header::{ALLOW, HOST, HeaderValue, ORIGIN};
use hyper::http::uri::Authority;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::slow::Slow;
use crate::access::tls::Tls;
use crate::api::answer::{Answer, Body, Refusal, whole};
use crate::api::{is_far, written};
use crate::node::Node;

/// Connections at a time of one listener. One more waits to be accepted.
const CONNECTIONS: usize = 32;

/// How long a handshake, or the head of a request, may take; a connection without a request is closed after this time, too. Some
/// scrapers come once a minute over one connection.
const PATIENCE: Duration = Duration::from_secs(75);

/// How long an answer may wait in all for its client to read it.
const READING: Duration = Duration::from_secs(30);

/// Longest handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What all connections share.
struct Shared {
    node: Arc<Node>,
    tls: Option<Arc<Tls>>,
    allowed_hosts: Vec<String>,
}

/// Serves until `shutdown`.
pub async fn serve(node: Arc<Node>, listeners: Vec<TcpListener>, tls: Option<Arc<Tls>>, shutdown: CancellationToken) {
    let allowed_hosts = node.host.config.api.allowed_hosts.clone();
    let shared = Arc::new(Shared { node, tls, allowed_hosts });
    let mut tasks = JoinSet::new();
    for listener in listeners {
        tasks.spawn(accept(Arc::clone(&shared), listener, shutdown.clone()));
    }
    while tasks.join_next().await.is_some() {}
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, shutdown: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let place = tokio::select! {
            () = shutdown.cancelled() => break,
            Ok(place) = Arc::clone(&places).acquire_owned() => place,
            else => break,
        };
        tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let (shared, shutdown) = (Arc::clone(&shared), shutdown.clone());
                    connections.spawn(async move {
                        connection(&shared, stream, peer, &shutdown).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!("a metrics listener: accept: {error}; trying again");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
        while connections.try_join_next().is_some() {}
    }
    connections.shutdown().await;
}

async fn connection(shared: &Arc<Shared>, stream: TcpStream, peer: SocketAddr, shutdown: &CancellationToken) {
    let Ok(local) = stream.local_addr() else { return };
    let stream = Slow::new(stream, READING);
    let Some(tls) = &shared.tls else { return http(shared, stream, local, peer, shutdown).await };
    let settings = tls.current(&shared.node.host.events);
    let accept = TlsAcceptor::from(Arc::clone(&settings.config)).accept(stream);
    match tokio::time::timeout(HANDSHAKE, accept).await {
        Ok(Ok(stream)) => http(shared, stream, local, peer, shutdown).await,
        Ok(Err(error)) => tracing::debug!(%peer, "a TLS handshake for metrics failed: {error}"),
        Err(_) => tracing::debug!(%peer, "a TLS handshake for metrics took too long"),
    }
}

async fn http<S>(shared: &Arc<Shared>, stream: S, local: SocketAddr, peer: SocketAddr, shutdown: &CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_headers(64).max_buf_size(32 << 10);
    let service = service_fn(|request| async move {
        let answer = answer(shared, local, peer, request).await;
        Ok::<_, Infallible>(answer.unwrap_or_else(Refusal::into_response))
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
        tracing::debug!(%peer, "a connection for metrics ended: {error}");
    }
}

async fn answer<B>(shared: &Shared, local: SocketAddr, peer: SocketAddr, request: Request<B>) -> Answer {
    check(request.headers(), local, shared.tls.is_some(), &shared.allowed_hosts)?;
    let path = request.uri().path();
    if !matches!(path, "/metrics" | "/metrics/snapshot") {
        let path: String = path.chars().take(200).collect();
        let detail = format!("there is nothing at {path}; this listener serves /metrics and /metrics/snapshot alone");
        return Err(Refusal::new(StatusCode::NOT_FOUND, "unknown-path", detail));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let method: String = request.method().as_str().chars().take(40).collect();
        let detail = format!("found the method {method}, expected one of: GET, HEAD");
        let refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail);
        return Err(refusal.with_header(ALLOW, HeaderValue::from_static("GET, HEAD")));
    }
    let gathered = shared.node.gather().await?;
    if path == "/metrics" {
        let compatible = shared.node.host.config.metrics.compatible;
        return written(gathered, request.headers(), is_far(peer.ip()), compatible).await;
    }
    let known = crate::mesos::known_figures(shared.node.as_ref());
    let write = move || gathered.read(|batch| snapshot::write(batch, known));
    let text = tokio::task::spawn_blocking(write).await.map_err(|error| Refusal::failed(error.to_string()))?;
    Ok(json(text))
}

fn json(text: String) -> Response<Body> {
    whole(StatusCode::OK, "application/json", text)
}

/// Refuses web pages: one that says so, and one whose name was rebound to an address of loopback, which sends its own name.
fn check(headers: &HeaderMap, local: SocketAddr, tls: bool, allowed: &[String]) -> Result<(), Refusal> {
    if headers.contains_key(ORIGIN) {
        let detail = "web pages may not read metrics here; ask the API, with api.allowed_origins";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "origin-refused", detail));
    }
    if tls || !local.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.parse::<Authority>().map(|authority| authority.host().to_ascii_lowercase()).unwrap_or_default();
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let known =
        name == "localhost" || name.parse::<std::net::IpAddr>().is_ok() || allowed.iter().any(|one| one == name);
    if known {
        return Ok(());
    }
    let detail = format!(
        "found the host {name:?}, which is no name of this daemon; use its address or localhost, or add the name to \
         api.allowed_hosts"
    );
    Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, "wrong-host", detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(headers: &[(&'static str, &'static str)], local: &str, tls: bool) -> u16 {
        let map = headers
            .iter()
            .map(|(name, value)| (hyper::header::HeaderName::from_static(name), HeaderValue::from_static(value)));
        let allowed = ["prom.example".to_owned()];
        check(&map.collect(), local.parse().unwrap(), tls, &allowed)
            .map_or_else(|refusal| refusal.status().as_u16(), |()| 200)
    }

    #[test]
    fn pages_are_kept_out() {
        let here = "127.0.0.1:9464";
        for (host, expected) in [
            ("127.0.0.1:9464", 200),
            ("localhost", 200),
            ("[::1]:9464", 200),
            ("PROM.example:1", 200),
            ("evil.example", 421),
            ("", 421),
        ] {
            assert_eq!(status(&[("host", host)], here, false), expected, "{host}");
        }
        assert_eq!(status(&[], here, false), 421);
        assert_eq!(status(&[("host", "localhost"), ("origin", "http://localhost")], here, false), 403);
        // elsewhere the name is the operator's
        assert_eq!(status(&[("host", "node7")], "192.0.2.1:9464", false), 200);
        assert_eq!(status(&[("host", "node7")], here, true), 200);
    }
}
