//! Sessions without a client: list, wait, signal, end, recordings.

use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use agentd_api::problem::Violation;
use agentd_api::session::{SessionKind, SessionState, SessionStatus};
use hyper::body::Incoming;
use hyper::{HeaderMap, StatusCode};
use serde_json::{Map, Value};
use tokio::fs::File;
use tokio::io::AsyncReadExt;

use super::answer::{self, Answer, Refusal};
use super::backend::Pods;
use super::frames::signal_number;
use super::handle::{Api, Call, apart};
use super::list::Page;
use super::query::Query;
use super::stream;
use crate::access::Caller;
use crate::node::NodeError;
use crate::session::Session;

/// What a recording is.
const ASCIICAST: &str = "application/x-asciicast";

/// Bytes of a recording in one piece of an answer.
const PIECE: usize = 64 << 10;

/// Longest id of a session.
const LONGEST_ID: usize = 64;

/// The session with an id.
pub fn find<P: Pods>(api: &Arc<Api<P>>, id: &str) -> Result<Session, Refusal> {
    api.pods.session(id).map_err(|error| match error {
        NodeError::NotFound(_) => {
            let shown: String = id.chars().take(LONGEST_ID).collect();
            let detail = format!(
                "there is no session {shown:?}; GET /v1/sessions lists those that there are, and one that has ended is \
                 forgotten after a while"
            );
            Refusal::not_found(detail)
        }
        error => error.into(),
    })
}

/// `GET /v1/sessions`
pub fn list<P: Pods>(api: &Arc<Api<P>>, call: Call<'_>) -> Answer {
    let Call { caller, parts, mut query, .. } = call;
    let page = Page::read(&mut query, "SessionStatus");
    let pod = query.text("pod");
    let instance = query.text("instance");
    let container = query.text("container");
    let state = query.word(
        "state",
        &[("starting", SessionState::Starting), ("running", SessionState::Running), ("exited", SessionState::Exited)],
    );
    let kind = query
        .word("kind", &[("exec", SessionKind::Exec), ("debug", SessionKind::Debug), ("nested", SessionKind::Nested)]);
    query.finish()?;
    let is = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
    let meant = |status: &SessionStatus| {
        // a pod's id may be written without its slash, as in a path
        pod.as_deref().is_none_or(|pod| status.pod == pod || status.pod.strip_prefix('/') == Some(pod))
            && is(&instance, &status.instance)
            && is(&container, &status.container)
            && state.is_none_or(|state| status.state == state)
            && kind.is_none_or(|kind| status.kind == kind)
            && api.sees(caller, Some(&status.pod))
    };
    let sessions = api.pods.sessions();
    let entries = sessions.iter().map(Session::status).filter(meant).map(|status| (status.id.clone(), status));
    page.answer(&parts.uri, entries.collect())
}

/// `GET /v1/sessions/{session}`
pub fn get<P: Pods>(api: &Arc<Api<P>>, id: &str) -> Answer {
    answer::json(StatusCode::OK, &find(api, id)?.status())
}

/// `DELETE /v1/sessions/{session}`
pub async fn end<P: Pods>(api: &Arc<Api<P>>, caller: &Caller, id: &str) -> Answer {
    let session = find(api, id)?;
    let why = format!("ended by {}", caller.principal);
    apart(async move {
        // one that has ended already is forgotten
        if session.status().state == SessionState::Exited {
            session.discard(&why).await;
        } else {
            session.kill(&why).await;
        }
        Ok::<_, Refusal>(())
    })
    .await?;
    Ok(answer::empty())
}

/// `GET /v1/sessions/{session}/wait`
pub async fn wait<P: Pods>(api: &Arc<Api<P>>, id: &str, mut query: Query) -> Answer {
    let timeout = query.seconds("timeout");
    query.finish()?;
    let session = find(api, id)?;
    let enough = async {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        // an end that has come already is told even with a time-out of 0
        biased;
        _ = session.wait() => answer::json(StatusCode::OK, &session.status()),
        () = enough => {
            let seconds = timeout.unwrap_or_default().as_secs_f64();
            Err(Refusal::timed_out(format!("the session {id} has not ended after {seconds} s; wait longer, or end it")))
        }
        () = api.shutdown.cancelled() => Err(Refusal::stopping()),
    }
}

/// `POST /v1/sessions/{session}/signal`
pub async fn signal<P: Pods>(api: &Arc<Api<P>>, id: &str, headers: &HeaderMap, body: &mut Incoming) -> Answer {
    let session = find(api, id)?;
    let mut fields = object(&api.read(headers, body).await?, &["signal"])?;
    let refuse = |message: String| Refusal::bad_request(vec![Violation::new("signal", message)]);
    let text = match fields.remove("signal") {
        Some(Value::String(text)) => text,
        Some(Value::Number(number)) => number.to_string(),
        Some(_) => return Err(refuse("found another type, expected a name such as SIGTERM or a number".to_owned())),
        None => return Err(refuse("missing; expected a name such as SIGTERM or a number".to_owned())),
    };
    let number = signal_number(&text).map_err(refuse)?;
    apart(async move { session.signal(number).await }).await?;
    Ok(answer::empty())
}

/// `POST /v1/sessions/{session}/resize`
pub async fn resize<P: Pods>(api: &Arc<Api<P>>, id: &str, headers: &HeaderMap, body: &mut Incoming) -> Answer {
    let session = find(api, id)?;
    let fields = object(&api.read(headers, body).await?, &["rows", "columns"])?;
    let mut faults = Vec::new();
    let mut size = |name: &str| {
        let number = fields.get(name).and_then(Value::as_u64).and_then(|number| u16::try_from(number).ok());
        let number = number.filter(|number| *number > 0);
        if number.is_none() {
            faults.push(Violation::new(name, format!("expected a whole number from 1 to {}", u16::MAX)));
        }
        number.unwrap_or_default()
    };
    let (rows, columns) = (size("rows"), size("columns"));
    if !faults.is_empty() {
        return Err(Refusal::bad_request(faults));
    }
    session.resize(rows, columns)?;
    Ok(answer::empty())
}

/// `GET /v1/sessions/{session}/recording`
pub async fn recording<P: Pods>(api: &Arc<Api<P>>, id: &str) -> Answer {
    let (mut file, length) =
        open_recording(&api.pods.layout().state, id).await.map_err(|error| match error.kind() {
            ErrorKind::NotFound if api.pods.session(id).is_ok_and(|session| session.status().recorded) => {
                Refusal::not_found(format!("the session {id} has no recording yet; ask again in a moment"))
            }
            ErrorKind::NotFound => Refusal::not_found(format!(
                "the session {id} has no recording; sessions are recorded from their start, by policy (docs/access.md)"
            )),
            _ => Refusal::failed(format!("the recording of the session {id} cannot be read: {error}")),
        })?;
    let (pieces, response) = stream::open(ASCIICAST, &api.shutdown);
    tokio::spawn(async move {
        // what is recorded from now on is not part of the answer: a line would be cut in two
        let mut left = length;
        while left > 0 {
            let mut piece = Vec::with_capacity(PIECE.min(left as usize));
            let count = match (&mut file).take(left.min(PIECE as u64)).read_to_end(&mut piece).await {
                Ok(0) => return,
                Ok(count) => count,
                Err(error) => return pieces.break_off(error).await,
            };
            left = left.saturating_sub(count as u64);
            if !pieces.give(piece).await {
                return;
            }
        }
    });
    Ok(response)
}

/// The recording of a session, and its length up to now. What is no id of a session has none.
async fn open_recording(state: &Path, id: &str) -> std::io::Result<(File, u64)> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !(1..=LONGEST_ID).contains(&id.len()) || !id.bytes().all(plain) {
        return Err(ErrorKind::NotFound.into());
    }
    let path = state.join("recordings").join(format!("{id}.cast"));
    let mut options = std::fs::OpenOptions::new();
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = File::from_std(tokio::task::spawn_blocking(move || options.open(path)).await??);
    let metadata = file.metadata().await?;
    if !metadata.is_file() {
        return Err(ErrorKind::NotFound.into());
    }
    Ok((file, metadata.len()))
}

/// A JSON object with these fields and no others.
fn object(text: &[u8], known: &[&str]) -> Result<Map<String, Value>, Refusal> {
    let fault = |path: &str, message: String| Refusal::bad_request(vec![Violation::new(path, message)]);
    let value = agentd_api::parse::json(text).map_err(Refusal::bad_request)?;
    let Value::Object(fields) = value else { return Err(fault("", "the body is no JSON object".to_owned())) };
    match fields.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(fields),
        Some(key) => {
            let key: String = key.chars().take(80).collect();
            Err(fault(&key, format!("unknown field; known here: {}", known.join(", "))))
        }
    }
}
