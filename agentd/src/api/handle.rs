//! One request, from its route to its answer.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use agentd_api::session::SessionState;
use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use hyper::header::{ACCESS_CONTROL_ALLOW_ORIGIN, CONNECTION, HeaderName, HeaderValue, RETRY_AFTER, UPGRADE, VARY};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::answer::{self, Answer, Body, Refusal, whole};
use super::backend::Pods;
use super::connection::Limits;
use super::door::Door;
use super::idempotency::Idempotency;
use super::query::Query;
use super::route::{self, Route};
use super::{
    body, event_calls, exec_calls, file_calls, forward_calls, image_calls, log_calls, metric_calls, openapi, permit,
    pod_calls, profile_calls, session_calls, usage_calls,
};
use crate::access::audit::{Attempt, SessionAction, SessionEvent};
use crate::access::gate::Access;
use crate::access::{Caller, Source};
use crate::observe::latency::{self, LATENCIES};
use crate::session::Session;
use crate::telemetry::{self, spans};

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
    /// Who may do what, and the audit log.
    pub access: Arc<Access>,
    /// Tells the request ids of this run of the daemon from those of others.
    run: String,
    requests: AtomicU64,
    /// Calls that were made with an idempotency key.
    pub(super) idempotency: Idempotency,
}

/// Id of a request, among its extensions.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// Number of the record of a call in the audit log, among the extensions of its request.
#[derive(Debug, Clone, Copy)]
struct Attempted(u64);

/// One request of a caller, as the calls that need all of it get it.
#[derive(Debug)]
pub struct Call<'a> {
    /// Who calls.
    pub caller: &'a Caller,
    /// Head of the request. The upgrade of the connection is in its extensions ([`hyper::upgrade::OnUpgrade`]).
    pub parts: &'a mut Parts,
    /// What it carries.
    pub body: &'a mut Incoming,
    /// Its parameters.
    pub query: Query,
}

impl<P: Pods> Api<P> {
    /// An API onto these pods.
    pub fn new(pods: Arc<P>, access: Arc<Access>, shutdown: CancellationToken, limits: Limits) -> Self {
        let mut run = uuid::Uuid::new_v4().simple().to_string();
        run.truncate(8);
        let idempotency = Idempotency::new(pods.layout().idempotency());
        Self { pods, shutdown, limits, access, run, requests: AtomicU64::new(0), idempotency }
    }

    /// Notes a call that changes something in the audit log, before it is carried out. A log that cannot be written stops all
    /// but root on the Unix socket, who may have to make room for it.
    fn attempt(&self, attempt: Attempt<'_>) -> Result<Option<u64>, Refusal> {
        match (self.access.audit.attempt(attempt), &attempt.caller.source) {
            (Ok(number), _) => Ok(Some(number)),
            (Err(error), Source::Unix { uid: 0, .. }) => {
                tracing::error!("{error}");
                Ok(None)
            }
            (Err(error), _) => {
                tracing::error!("{error}");
                let detail = format!("the call is not carried out, because {error}");
                Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "audit-failed", detail))
            }
        }
    }

    /// The same for a call whose path does not tell what it does; what comes of it is noted with its answer.
    pub fn attempt_within(
        &self,
        caller: &Caller,
        parts: &mut Parts,
        method: &str,
        pod: Option<&str>,
    ) -> Result<(), Refusal> {
        let request = parts.extensions.get::<RequestId>().map_or("", |id| id.0.as_str());
        let number = self.attempt(Attempt { request, caller, method, path: parts.uri.path(), pod })?;
        if let Some(number) = number {
            parts.extensions.insert(Attempted(number));
        }
        Ok(())
    }

    /// Notes in the audit log that a client has come to a session, or left one. With one that has ended everybody has left,
    /// and its end is noted already.
    pub fn note(&self, action: SessionAction, session: &Session, by: &str) {
        let status = session.status();
        if action != SessionAction::Detach || status.state != SessionState::Exited {
            self.access.audit.session(SessionEvent { action, status: &status, by, request: None });
        }
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
pub async fn handle<P: Pods>(
    api: &Arc<Api<P>>,
    caller: &Caller,
    door: &Door,
    request: Request<Incoming>,
) -> Response<Body> {
    let began = Instant::now();
    let (mut parts, mut body) = request.into_parts();
    let id = api.request_id(&parts.headers);
    let shown = id.to_str().unwrap_or_default();
    parts.extensions.insert(RequestId(shown.to_owned()));
    api.access.refresh(api.pods.events());
    let route = route::find(&parts.method, parts.uri.path());
    let mutates = route.as_ref().is_ok_and(Route::mutates);
    let (verb, label) = (latency::method(&parts.method), route.as_ref().map_or(latency::NO_ROUTE, Route::label));
    let span = spans::request(verb, label, parts.uri.path(), &parts.headers);
    let mut headers = HeaderMap::new();
    let passed = pass(api, caller, door, &parts, route, shown, &mut headers);
    let noted = passed.is_err();
    let (answer, attempt) = match passed {
        Ok((route, attempt)) => {
            (call(api, caller, route, &mut parts, &mut body).instrument(span.clone()).await, attempt)
        }
        Err(refusal) => (Err(refusal), None),
    };
    let problem = answer.as_ref().err().map(|refusal| refusal.detail().to_owned());
    let mut response = answer.unwrap_or_else(|refusal| refusal.of_request(shown).into_response());
    response.headers_mut().extend(headers);
    let other_protocol = parts.headers.contains_key(UPGRADE) || parts.method == Method::CONNECT;
    if other_protocol && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        // what follows the request may be of the other protocol already
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if !body.is_end_stream() {
        body::drain(&mut body, api.limits.unwanted).await;
    }
    let status = response.status().as_u16();
    spans::answered(&span, status);
    LATENCIES.requests.of((label, verb, status)).observe_of(began.elapsed(), telemetry::trace_of(&span));
    if let Some(attempt) = attempt.or_else(|| parts.extensions.get::<Attempted>().map(|attempted| attempted.0)) {
        api.access.audit.outcome(attempt, shown, status, problem.as_deref());
    } else if status == StatusCode::FORBIDDEN && !noted {
        // a call whose body tells what it does, such as those of the Mesos agent API
        let (method, path) = (parts.method.as_str(), parts.uri.path());
        let attempt = Attempt { request: shown, caller, method, path, pod: None };
        api.access.audit.denied(attempt, problem.as_deref().unwrap_or("refused by the access list"));
    }
    let path: String = parts.uri.path().chars().take(300).collect();
    let (method, micros) = (parts.method.as_str(), began.elapsed().as_micros() as u64);
    let (uid, pid) = match caller.source {
        Source::Unix { uid, pid, .. } => (Some(uid), pid),
        Source::Tls { .. } | Source::Plain { .. } => (None, None),
    };
    let principal = caller.principal.as_str();
    if mutates {
        tracing::info!(principal, uid, pid, method, path, status, request = shown, micros, problem, "API call");
    } else if status >= 500 {
        tracing::warn!(principal, uid, pid, method, path, status, request = shown, micros, problem, "API call failed");
    } else {
        tracing::debug!(principal, uid, pid, method, path, status, request = shown, micros, problem, "API call");
    }
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// What every request passes before it is carried out: its way in, the rate of its caller, the access list, and, where it
/// changes something, the audit log. Gives its route and the number of its record. `headers` are those of the answer.
fn pass<P: Pods>(
    api: &Api<P>,
    caller: &Caller,
    door: &Door,
    parts: &Parts,
    route: Result<Route, Refusal>,
    id: &str,
    headers: &mut HeaderMap,
) -> Result<(Route, Option<u64>), Refusal> {
    if let Some(origin) = door.check(&api.access, parts)? {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(VARY, HeaderValue::from_static("origin"));
    }
    if let Err(wait) = api.access.take(caller) {
        let seconds = wait.as_secs() + 1;
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        let detail = format!(
            "{} makes more requests than api.requests_per_second allows; try again in {seconds} s",
            caller.principal
        );
        return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", detail));
    }
    let route = route?;
    let pod = permit::pod_of(&route);
    let attempt = Attempt { request: id, caller, method: parts.method.as_str(), path: parts.uri.path(), pod };
    if let Err(refusal) = api.admit(caller, &route) {
        api.access.audit.denied(attempt, refusal.detail());
        return Err(refusal);
    }
    let number = if route.mutates() { api.attempt(attempt)? } else { None };
    Ok((route, number))
}

async fn call<P: Pods>(
    api: &Arc<Api<P>>,
    caller: &Caller,
    route: Route,
    parts: &mut Parts,
    body: &mut Incoming,
) -> Answer {
    let query = Query::parse(parts.uri.query(), route.parameters());
    match route {
        Route::Exec(id) => exec_calls::exec(api, &id, Call { caller, parts, body, query }).await,
        Route::Attach(id) => exec_calls::attach(api, &id, Call { caller, parts, body, query }),
        Route::ReadFiles(id) => file_calls::read(api, &id, Call { caller, parts, body, query }).await,
        Route::WriteFiles(id) => file_calls::write(api, &id, Call { caller, parts, body, query }).await,
        Route::Forward(id) => forward_calls::forward(api, &id, Call { caller, parts, body, query }).await,
        Route::Usage => usage_calls::usage(api, Call { caller, parts, body, query }).await,
        Route::Profile => profile_calls::profile(api, Call { caller, parts, body, query }).await,
        Route::Exposition => metric_calls::exposition(api, Call { caller, parts, body, query }).await,
        Route::Metrics => metric_calls::metrics(api, Call { caller, parts, body, query }).await,
        Route::WaitSession(id) => session_calls::wait(api, &id, query).await,
        Route::Mesos(path) => crate::mesos::handle(api, &path, Call { caller, parts, body, query }).await,
        Route::RunPod => pod_calls::run(api, Call { caller, parts, body, query }).await,
        Route::UpdatePod(id) => pod_calls::update(api, id, Call { caller, parts, body, query }).await,
        Route::ListPods => pod_calls::list(api, Call { caller, parts, body, query }),
        Route::GetPod(id) => pod_calls::get(api, &id, Call { caller, parts, body, query }),
        Route::PullImage => image_calls::pull(api, Call { caller, parts, body, query }).await,
        Route::ImportImage => image_calls::import(api, Call { caller, parts, body, query }).await,
        Route::ListImages => image_calls::list(api, Call { caller, parts, body, query }),
        Route::ListSessions => session_calls::list(api, Call { caller, parts, body, query }),
        Route::WaitPod(id) => pod_calls::wait(api, &id, query).await,
        Route::Logs(id) => log_calls::logs(api, &id, query).await,
        Route::Events => event_calls::events(api, Call { caller, parts, body, query }),
        plain => {
            // these take no parameters, so that any is at fault
            query.finish()?;
            match plain {
                Route::RemovePod(id) => pod_calls::remove(api, id, &parts.headers).await,
                Route::RemoveImage(reference) => image_calls::remove(api, reference).await,
                Route::GetSession(id) => session_calls::get(api, &id),
                Route::EndSession(id) => session_calls::end(api, caller, &id).await,
                Route::SignalSession(id) => session_calls::signal(api, &id, &parts.headers, body).await,
                Route::ResizeSession(id) => session_calls::resize(api, &id, &parts.headers, body).await,
                Route::Recording(id) => session_calls::recording(api, &id).await,
                Route::OpenApi => Ok(openapi::document()),
                Route::Observe => metric_calls::observe(api).await,
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
    match tokio::spawn(work.in_current_span()).await {
        Ok(result) => result.map_err(Into::into),
        Err(error) => {
            tracing::error!("the work of an API call ended: {error}");
            Err(Refusal::failed("the work ended before it was done; the daemon's log tells more"))
        }
    }
}
