//! Reading what a request carries: of the right type, bounded in size and in time.

use std::time::Duration;

use agentd_api::problem::Violation;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::StatusCode;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE};
use serde_json::{Map, Value};

use super::answer::Refusal;

/// Largest body that is taken.
pub const MOST: usize = agentd_api::parse::MAX_BYTES;

/// How much of an unwanted body is read and thrown away, so that the client gets to read its answer.
const DRAIN: usize = 8 << 20;

/// Reads a JSON body that arrives within `patience`.
pub async fn read(headers: &HeaderMap, body: &mut Incoming, patience: Duration) -> Result<Bytes, Refusal> {
    check_type(headers)?;
    if body.size_hint().lower() > MOST as u64 {
        return Err(too_large());
    }
    let collect = async {
        let mut pieces: Vec<u8> = Vec::with_capacity(body.size_hint().lower() as usize);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                let detail = format!("the body broke off: {error}; send it whole");
                Refusal::new(StatusCode::BAD_REQUEST, "bad-request", detail)
            })?;
            let Ok(data) = frame.into_data() else { continue };
            if pieces.len() + data.len() > MOST {
                return Err(too_large());
            }
            pieces.extend_from_slice(&data);
        }
        Ok(Bytes::from(pieces))
    };
    let slow =
        || Refusal::timed_out(format!("the body did not arrive within {} s; send it faster", patience.as_secs_f64()));
    tokio::time::timeout(patience, collect).await.map_err(|_| slow())?
}

/// Reads on in a body that the call did not want, within bounds.
pub async fn drain(body: &mut Incoming, patience: Duration) {
    let discard = async {
        let mut seen = 0;
        while let Some(Ok(frame)) = body.frame().await {
            seen += frame.data_ref().map_or(0, Bytes::len);
            if seen > DRAIN {
                return;
            }
        }
    };
    // hyper closes the connection when anything is left unread
    let _ = tokio::time::timeout(patience, discard).await;
}

fn too_large() -> Refusal {
    let detail = format!("the body has more than {MOST} bytes; shorten it");
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail)
}

fn check_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let refuse = |name: &str, found: &[u8], expected: &str| {
        let found: String = String::from_utf8_lossy(found).chars().take(80).collect();
        let message = format!("found {found:?}, expected {expected}");
        let violation = Violation::new(name, message);
        Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", violation.to_string())
            .with(vec![violation])
    };
    if let Some(value) = headers.get(CONTENT_TYPE) {
        let essence = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        if !essence.eq_ignore_ascii_case(b"application/json") {
            return Err(refuse("content-type", value.as_bytes(), "application/json"));
        }
    }
    match headers.get(CONTENT_ENCODING) {
        Some(value) if !value.as_bytes().eq_ignore_ascii_case(b"identity") => {
            Err(refuse("content-encoding", value.as_bytes(), "a body that is not compressed"))
        }
        _ => Ok(()),
    }
}

/// A field of a small JSON object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text that must be there and not be empty.
    Text,
    /// Text that may be absent.
    OptionalText,
    /// A flag that may be absent.
    Flag,
}

/// Reads a JSON object with the given fields and no others; names every fault at once.
pub fn object(bytes: &[u8], fields: &[(&str, Kind)]) -> Result<Map<String, Value>, Refusal> {
    let document = |message: String| Refusal::bad_request(vec![Violation::new("", message)]);
    let value = agentd_api::parse::json(bytes).map_err(Refusal::bad_request)?;
    let Value::Object(map) = value else {
        return Err(document("the body is no JSON object".to_owned()));
    };
    let names = fields.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let mut faults = Vec::new();
    for key in map.keys().filter(|key| fields.iter().all(|(name, _)| name != key)).take(20) {
        let key: String = key.chars().take(80).collect();
        faults.push(Violation::new(key, format!("unknown field; known here: {names}")));
    }
    for (name, kind) in fields {
        let fault = match (kind, map.get(*name)) {
            (Kind::Text, None | Some(Value::Null)) => "missing; expected text",
            (Kind::Text, Some(Value::String(text))) if text.is_empty() => "found no text, expected some",
            (Kind::Text | Kind::OptionalText, Some(Value::String(text))) if text.contains('\0') => {
                "found a NUL byte, expected text without one"
            }
            (Kind::Text | Kind::OptionalText, Some(Value::String(_)))
            | (Kind::OptionalText | Kind::Flag, None | Some(Value::Null))
            | (Kind::Flag, Some(Value::Bool(_))) => continue,
            (Kind::Text | Kind::OptionalText, Some(_)) => "found another type, expected text",
            (Kind::Flag, Some(_)) => "found another type, expected true or false",
        };
        faults.push(Violation::new(*name, fault));
    }
    if faults.is_empty() { Ok(map) } else { Err(Refusal::bad_request(faults)) }
}
