//! In which format a request is read and answered.

use agentd_api::mesos::Format;
use hyper::header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE, HeaderName};
use hyper::{HeaderMap, StatusCode};

use super::fault::Fault;

pub(super) const RECORDIO: &str = "application/recordio";
pub(super) const MESSAGE_ACCEPT: HeaderName = HeaderName::from_static("message-accept");
pub(super) const MESSAGE_CONTENT_TYPE: HeaderName = HeaderName::from_static("message-content-type");

/// How a request's body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// One message.
    Whole(Format),
    /// Records, each a message of this format.
    Records(Format),
}

/// How an answer that is a stream is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stream {
    /// Its media type.
    pub media_type: &'static str,
    /// That of each record.
    pub format: Format,
}

/// What the headers say of the body.
pub(super) fn sent(headers: &HeaderMap) -> Result<Sent, Fault> {
    if let Some(coding) = headers.get(CONTENT_ENCODING)
        && !coding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return Err(unsupported("content-encoding", coding.as_bytes(), "a body that is not compressed"));
    }
    let expected = "application/json, application/x-protobuf or application/recordio";
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return Err(Fault::bad(format!("content-type: missing; expected {expected}")));
    };
    if let Some(format) = format_of(value.as_bytes()) {
        return Ok(Sent::Whole(format));
    }
    if !essence(value.as_bytes()).eq_ignore_ascii_case(RECORDIO.as_bytes()) {
        return Err(unsupported("content-type", value.as_bytes(), expected));
    }
    let expected = "application/json or application/x-protobuf";
    let Some(value) = headers.get(MESSAGE_CONTENT_TYPE) else {
        return Err(Fault::bad(format!(
            "message-content-type: missing beside application/recordio; expected {expected}"
        )));
    };
    format_of(value.as_bytes())
        .map(Sent::Records)
        .ok_or_else(|| unsupported("message-content-type", value.as_bytes(), expected))
}

/// The format of an answer that is one message.
pub(super) fn answer(headers: &HeaderMap) -> Result<Format, Fault> {
    preferred(headers, &ACCEPT)
}

/// How a stream is answered. Clients that do not ask for records get them all the same, under the media type of the
/// message, as from Mesos.
pub(super) fn stream(headers: &HeaderMap) -> Result<Stream, Fault> {
    if asks_for_records(headers) {
        return Ok(Stream { media_type: RECORDIO, format: preferred(headers, &MESSAGE_ACCEPT)? });
    }
    let format = preferred(headers, &ACCEPT)?;
    Ok(Stream { media_type: format.media_type(), format })
}

/// Whether the client names records as what it takes.
pub(super) fn asks_for_records(headers: &HeaderMap) -> bool {
    listed(headers, &ACCEPT).iter().any(|range| range.eq_ignore_ascii_case(RECORDIO))
}

fn preferred(headers: &HeaderMap, name: &HeaderName) -> Result<Format, Fault> {
    let ranges = listed(headers, name);
    if ranges.is_empty() {
        return Ok(Format::Json);
    }
    [Format::Json, Format::Protobuf]
        .into_iter()
        .find(|format| ranges.iter().any(|range| takes(range, *format)))
        .ok_or_else(|| {
            let shown: String = ranges.join(", ").chars().take(80).collect();
            let line = format!("{name}: found {shown:?}, expected application/json or application/x-protobuf");
            Fault::new(StatusCode::NOT_ACCEPTABLE, line)
        })
}

/// The media ranges of a header, without those that are ruled out by `q=0`.
fn listed(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let ranges = values.flat_map(|value| value.split(','));
    let wanted = ranges.filter_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let range = parts.next().filter(|range| !range.is_empty())?;
        let ruled_out = parts.any(|part| {
            part.strip_prefix("q=").and_then(|weight| weight.parse::<f64>().ok()).is_some_and(|weight| weight == 0.0)
        });
        (!ruled_out).then(|| range.to_owned())
    });
    wanted.collect()
}

fn takes(range: &str, format: Format) -> bool {
    matches!(range, "*/*" | "application/*") || range.eq_ignore_ascii_case(format.media_type())
}

fn essence(value: &[u8]) -> &[u8] {
    value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii()
}

fn format_of(value: &[u8]) -> Option<Format> {
    let essence = essence(value);
    [Format::Json, Format::Protobuf]
        .into_iter()
        .find(|format| essence.eq_ignore_ascii_case(format.media_type().as_bytes()))
}

fn unsupported(name: &str, found: &[u8], expected: &str) -> Fault {
    let found: String = String::from_utf8_lossy(found).chars().take(80).collect();
    Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, format!("{name}: found {found:?}, expected {expected}"))
}
