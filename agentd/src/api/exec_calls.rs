//! Sessions with a client: exec and attach. `docs/exec.md` is the page for those who write one.
//!
//! Everything is checked, the session is begun or found and the client is attached before the connection is upgraded, so
//! that whatever is wrong is told as a problem with its status. The connection is then served by a task of its own
//! ([`super::frames::serve`]).

use std::sync::Arc;

use agentd_api::problem::Violation;
use agentd_api::session::{ExecRequest, PROTOCOL, SessionKind, SessionState, SessionStatus, WEBSOCKET_PROTOCOL};
use hyper::header::{CONNECTION, HeaderValue, LOCATION, UPGRADE};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, Method, Response, StatusCode, Version};
use tokio::sync::oneshot;

use super::answer::{self, Answer, Body, Refusal};
use super::backend::Pods;
use super::connection::Permit;
use super::frames::{self, Client};
use super::handle::{Api, Call, apart};
use super::idempotency::{self, Claim, Earlier, Kept};
use super::query::Query;
use super::route::encode;
use super::session_calls;
use super::websocket::{self, Handshake, tokens};
use crate::access::Caller;
use crate::access::audit::SessionAction;
use crate::events::Subject;
use crate::node::NodeError;
use crate::session::{Begin, From, Session};

/// Name of WebSocket in the `Upgrade` header.
const WEBSOCKET: &str = "websocket";

/// What a connection is to become.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Becomes {
    Frames,
    WebSocket(Handshake),
}

/// `POST /v1/pods/{id}/exec`
pub async fn exec<P: Pods>(api: &Arc<Api<P>>, id: &str, call: Call<'_>) -> Answer {
    let Call { caller, parts, body, query } = call;
    query.finish()?;
    let becomes = becomes(parts)?;
    if matches!(becomes, Some(Becomes::WebSocket(_))) {
        let message = format!(
            "a WebSocket cannot be begun by POST; POST without an upgrade, then GET the path in Location with /attach, or \
             upgrade to {PROTOCOL}"
        );
        return Err(Refusal::bad_request(vec![Violation::new("upgrade", message)]));
    }
    let key = idempotency::key(&parts.headers)?;
    if key.is_some() && becomes.is_some() {
        let message = "found with an upgrade, which cannot be repeated; POST without one, then attach";
        return Err(Refusal::bad_request(vec![Violation::new("idempotency-key", message)]));
    }
    let text = api.read(&parts.headers, body).await?;
    let request = ExecRequest::parse(&text).map_err(Refusal::bad_request)?;
    api.check_exec(caller, &request, &api.pods.get(id)?.spec)?;
    let mut begin = Begin {
        pod: id.to_owned(),
        kind: if request.image.is_some() { SessionKind::Debug } else { SessionKind::Exec },
        request,
        id: None,
        principal: caller.principal.clone(),
        record: false,
    };
    let Some(key) = key else {
        let waits = becomes.is_some() && !begin.request.detach;
        let session = begin_apart(api, begin, waits).await?;
        return match becomes {
            Some(becomes) => {
                let attachment = session.attach(From::Kept);
                let input = if session.record().stdin { Some(attachment.input(false)?) } else { None };
                let client = Client { session, attachment, input, watches: false };
                upgrade(api, caller, parts, becomes, client)
            }
            None => begun(&session.status()),
        };
    };
    // the same key always makes the same id, so that a session that was begun before the daemon died is found
    begin.id = Some(idempotency::name(&caller.principal, &key).chars().take(32).collect());
    let what = format!("POST {}", parts.uri.path());
    let ticket = match api.idempotency.claim(&caller.principal, &key, &what, &text).await? {
        Claim::Answered(answer) => return answer.into_response(true),
        Claim::Mine(ticket) => ticket,
    };
    if let Earlier::Made(answer) = ticket.earlier().clone() {
        let again = answer.clone();
        ticket.done(answer);
        return again.into_response(true);
    }
    let (begun_before, pods) = (*ticket.earlier() != Earlier::Nothing, Arc::clone(api));
    let kept = apart(async move {
        let found = begin.id.as_deref().filter(|_| begun_before).and_then(|id| pods.pods.session(id).ok());
        let session = match found {
            Some(session) => Ok(session),
            None => pods.pods.begin(begin).await,
        };
        match session {
            Ok(session) => {
                let status = session.status();
                let kept = Kept::new(StatusCode::CREATED, begun(&status)?.headers(), &written(&status)?);
                ticket.done(kept.clone());
                Ok(kept)
            }
            Err(error) => {
                ticket.forget();
                Err(Refusal::from(error))
            }
        }
    });
    kept.await?.into_response(false)
}

/// Begins a session also when its client goes away meanwhile; one that `waits` for that client is ended then.
async fn begin_apart<P: Pods>(api: &Arc<Api<P>>, begin: Begin, waits: bool) -> Result<Session, Refusal> {
    let pods = Arc::clone(&api.pods);
    let (sender, receiver) = oneshot::channel();
    apart(async move {
        let session = pods.begin(begin).await?;
        if let Err(unwanted) = sender.send(session)
            && waits
        {
            unwanted.kill("its client had gone before it began").await;
        }
        Ok::<_, NodeError>(())
    })
    .await?;
    receiver.await.map_err(|_| Refusal::failed("the session was begun and lost; the daemon's log tells more"))
}

/// `GET /v1/sessions/{session}/attach`
pub fn attach<P: Pods>(api: &Arc<Api<P>>, id: &str, call: Call<'_>) -> Answer {
    let Call { caller, parts, mut query, .. } = call;
    let from = from(&mut query);
    let watches = query.flag("input") == Some(false);
    let take_over = query.flag("take-over").unwrap_or_default();
    if watches && take_over {
        query.refuse("take-over", "found with input=false; leave one of them out");
    }
    query.finish()?;
    let session = session_calls::find(api, id)?;
    let Some(becomes) = becomes(parts)? else { return Ok(upgrade_required()) };
    let attachment = session.attach(from);
    let ended = session.status().state == SessionState::Exited;
    let input = if watches || ended || !session.record().stdin {
        None
    } else {
        Some(attachment.input(take_over).map_err(|error| match Refusal::from(error) {
            refusal if refusal.status() == StatusCode::CONFLICT => {
                let cure = "add take-over=true to take its place, or input=false to only watch";
                Refusal::new(StatusCode::CONFLICT, "input-taken", format!("{}; {cure}", refusal.detail()))
            }
            refusal => refusal,
        })?)
    };
    let status = session.status();
    let client = Client { session: session.clone(), attachment, input, watches };
    let answer = upgrade(api, caller, parts, becomes, client)?;
    api.note(SessionAction::Attach, &session, &caller.principal);
    let subject =
        Subject { pod: Some(&status.pod), instance: Some(&status.instance), container: Some(&status.container) };
    let message = format!("session {}: {} has attached", status.id, caller.principal);
    api.pods.events().publish("session-attached", subject, message);
    Ok(answer)
}

/// From where the output is wanted.
fn from(query: &mut Query) -> From {
    match query.text("from").as_deref() {
        None | Some("kept") => From::Kept,
        Some("now") => From::Now,
        Some(text) => {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| digits).map_or_else(
                || {
                    let shown: String = text.chars().take(80).collect();
                    query.refuse("from", format!("found {shown:?}, expected kept, now, or an offset in bytes"));
                    From::Kept
                },
                From::Offset,
            )
        }
    }
}

/// What the connection is asked to become; none where nothing is asked that is known here.
fn becomes(parts: &Parts) -> Result<Option<Becomes>, Refusal> {
    let wanted = |name: &str| tokens(&parts.headers, &UPGRADE).any(|token| token.eq_ignore_ascii_case(name));
    let upgrades = tokens(&parts.headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    // what came before HTTP/1.1 knows no upgrade and must not be answered with one
    if !upgrades || parts.version != Version::HTTP_11 {
        return Ok(None);
    }
    if wanted(PROTOCOL) {
        return Ok(Some(Becomes::Frames));
    }
    if !wanted(WEBSOCKET) {
        return Ok(None);
    }
    if parts.method != Method::GET {
        return Ok(Some(Becomes::WebSocket(Handshake::default())));
    }
    Handshake::read(&parts.headers).map(|handshake| Some(Becomes::WebSocket(handshake)))
}

/// Answers with the upgrade, and serves the client once it has been made.
fn upgrade<P: Pods>(api: &Arc<Api<P>>, caller: &Caller, parts: &mut Parts, becomes: Becomes, client: Client) -> Answer {
    let Some(upgrade) = parts.extensions.remove::<OnUpgrade>() else {
        return Err(Refusal::failed("this connection cannot be upgraded"));
    };
    let mut response = answer::empty();
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    location(headers, client.session.id());
    match &becomes {
        Becomes::Frames => headers.insert(UPGRADE, HeaderValue::from_static(PROTOCOL)),
        Becomes::WebSocket(handshake) => {
            handshake.answer(headers);
            headers.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET))
        }
    };
    // the HTTP server no longer counts this connection
    let permit = parts.extensions.get::<Permit>().cloned();
    let shutdown = api.shutdown.clone();
    let left = Left { api: Arc::clone(api), session: client.session.clone(), by: caller.principal.clone() };
    tokio::spawn(async move {
        let (_permit, _left) = (permit, left);
        let upgraded = match upgrade.await {
            Ok(upgraded) => upgraded,
            Err(error) => {
                let session = client.session.id();
                tracing::debug!(session, "a client of a session has gone before it was attached: {error}");
                return;
            }
        };
        match becomes {
            Becomes::Frames => {
                let (reader, writer) = frames::open(upgraded);
                frames::serve(reader, writer, client, shutdown).await;
            }
            Becomes::WebSocket(_) => {
                let (reader, writer) = websocket::open(upgraded).await;
                frames::serve(reader, writer, client, shutdown).await;
            }
        }
    });
    Ok(response)
}

/// Notes, once dropped, that a client has left a session that goes on.
struct Left<P: Pods> {
    api: Arc<Api<P>>,
    session: Session,
    by: String,
}

impl<P: Pods> Drop for Left<P> {
    fn drop(&mut self) {
        self.api.note(SessionAction::Detach, &self.session, &self.by);
    }
}

/// The answer to an attach that asks for no upgrade.
fn upgrade_required() -> Response<Body> {
    let detail = format!(
        "attaching needs an upgrade of the connection: send HTTP/1.1 with `Connection: Upgrade` and `Upgrade: {PROTOCOL}`, \
         or `Upgrade: {WEBSOCKET}` with the subprotocol {WEBSOCKET_PROTOCOL}"
    );
    let mut response = Refusal::new(StatusCode::UPGRADE_REQUIRED, "upgrade-required", detail).into_response();
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("agentd-exec, websocket"));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response
}

/// The answer that tells of a session that was begun.
fn begun(status: &SessionStatus) -> Result<Response<Body>, Refusal> {
    let mut response = answer::json(StatusCode::CREATED, status)?;
    location(response.headers_mut(), &status.id);
    Ok(response)
}

fn written(status: &SessionStatus) -> Result<String, Refusal> {
    serde_json::to_string(status).map_err(|error| Refusal::failed(format!("the answer cannot be written: {error}")))
}

fn location(headers: &mut HeaderMap, id: &str) {
    if let Ok(location) = HeaderValue::try_from(format!("/v1/sessions/{}", encode(id))) {
        headers.insert(LOCATION, location);
    }
}
