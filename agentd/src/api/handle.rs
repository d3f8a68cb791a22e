//! One request, from its route to its answer.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use hyper::header::{HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Request, Response, StatusCode};
use tokio_util::sync::CancellationToken;

use super::answer::{self, Answer, Body, Refusal, whole};
use super::backend::Pods;
use super::connection::Limits;
use super::query::Query;
use super::route::{self, Route};
use super::{body, event_calls, image_calls, log_calls, pod_calls};

/// Names a request in the daemon's log and in the answer.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What `GET /v1/version` answers.
const VERSION: &str = concat!("{\"version\":\"", env!("CARGO_PKG_VERSION"), "\",\"api\":\"v1\"}");

/// What all connections share.
#[derive(Debug)]
pub struct Api<P> {
    /// The pods.
    pub pods: Arc<P>,
    /// Set when the daemon stops.
    pub shutdown: CancellationToken,
    /// What connections are held to.
    pub limits: Limits,
    /// Tells the request ids of this run of the daemon from those of others.
    run: String,
    requests: AtomicU64,
}

/// Who has connected.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Process, where it lives in a pid namespace that the daemon sees.
    pub pid: Option<i32>,
}

impl<P: Pods> Api<P> {
    /// An API onto these pods.
    pub fn new(pods: Arc<P>, shutdown: CancellationToken, limits: Limits) -> Self {
        let mut run = uuid::Uuid::new_v4().simple().to_string();
        run.truncate(8);
        Self { pods, shutdown, limits, run, requests: AtomicU64::new(0) }
    }

    /// Reads the JSON that a request carries.
    pub async fn read(&self, headers: &HeaderMap, body: &mut Incoming) -> Result<Bytes, Refusal> {
        body::read(headers, body, self.limits.body).await
    }

    /// The client's name for a request where it is a sound one, else a new one.
    fn request_id(&self, headers: &HeaderMap) -> HeaderValue {
        let sound = |value: &&HeaderValue| {
            let bytes = value.as_bytes();
            let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
            (1..=64).contains(&bytes.len()) && bytes.iter().all(plain)
        };
        headers.get(REQUEST_ID).filter(sound).cloned().unwrap_or_else(|| {
            let number = self.requests.fetch_add(1, Ordering::Relaxed);
            HeaderValue::try_from(format!("{}-{number}", self.run)).unwrap_or(HeaderValue::from_static("unknown"))
        })
    }
}

/// Answers a request. Never fails and never panics on what a client sends.
pub async fn handle<P: Pods>(api: &Arc<Api<P>>, peer: Peer, request: Request<Incoming>) -> Response<Body> {
    let began = Instant::now();
    let (parts, mut body) = request.into_parts();
    let id = api.request_id(&parts.headers);
    let route = route::find(&parts.method, parts.uri.path());
    let mutates = route.as_ref().is_ok_and(Route::mutates);
    let answer = match route {
        Ok(route) => call(api, route, &parts, &mut body).await,
        Err(refusal) => Err(refusal),
    };
    let problem = answer.as_ref().err().map(|refusal| refusal.detail().to_owned());
    let mut response = answer.unwrap_or_else(Refusal::into_response);
    if !body.is_end_stream() {
        body::drain(&mut body, api.limits.unwanted).await;
    }
    let status = response.status().as_u16();
    let path: String = parts.uri.path().chars().take(300).collect();
    let shown = id.to_str().unwrap_or_default();
    let (method, micros) = (parts.method.as_str(), began.elapsed().as_micros() as u64);
    let Peer { uid, gid, pid } = peer;
    if mutates {
        tracing::info!(uid, gid, pid, method, path, status, request = shown, micros, problem, "API call");
    } else if status >= 500 {
        tracing::warn!(uid, gid, pid, method, path, status, request = shown, micros, problem, "API call failed");
    } else {
        tracing::debug!(uid, gid, pid, method, path, status, request = shown, micros, problem, "API call");
    }
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

async fn call<P: Pods>(api: &Arc<Api<P>>, route: Route, parts: &Parts, body: &mut Incoming) -> Answer {
    let query = Query::parse(parts.uri.query(), route.parameters());
    match route {
        Route::RunPod => pod_calls::run(api, query, &parts.headers, body).await,
        Route::WaitPod(id) => pod_calls::wait(api, &id, query).await,
        Route::Logs(id) => log_calls::logs(api, &id, query).await,
        Route::Events => event_calls::events(api, query, &parts.headers),
        plain => {
            // these take no parameters, so that any is at fault
            query.finish()?;
            match plain {
                Route::UpdatePod(id) => pod_calls::update(api, id, &parts.headers, body).await,
                Route::RemovePod(id) => pod_calls::remove(api, id).await,
                Route::PullImage => image_calls::pull(api, &parts.headers, body).await,
                Route::ImportImage => image_calls::import(api, &parts.headers, body).await,
                Route::RemoveImage(reference) => image_calls::remove(api, reference).await,
                Route::GetPod(id) => answer::json(StatusCode::OK, &api.pods.get(&id)?),
                Route::ListPods => answer::json(StatusCode::OK, &api.pods.list()),
                Route::ListImages => answer::json(StatusCode::OK, &api.pods.images().list()),
                Route::Node => answer::json(StatusCode::OK, &api.pods.info()),
                Route::Version => Ok(whole(StatusCode::OK, "application/json", VERSION)),
                _ => Ok(whole(StatusCode::OK, "text/plain; charset=utf-8", "ok\n")),
            }
        }
    }
}

/// Runs work in a task of its own, so that it goes on when the client goes away.
pub async fn apart<T, E>(work: impl Future<Output = Result<T, E>> + Send + 'static) -> Result<T, Refusal>
where
    T: Send + 'static,
    E: Into<Refusal> + Send + 'static,
{
    match tokio::spawn(work).await {
        Ok(result) => result.map_err(Into::into),
        Err(error) => {
            tracing::error!("the work of an API call ended: {error}");
            Err(Refusal::failed("the work ended before it was done; the daemon's log tells more"))
        }
    }
}
