//! `GET` and `PUT /v1/pods/{id}/files`: files of containers, as tar streams.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use agentd_api::files::{FileStat, STAT_HEADER};
use agentd_api::problem::Violation;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{HeaderMap, StatusCode};

use super::answer::{self, Answer, Refusal};
use super::backend::Pods;
use super::handle::{Api, Call};
use super::query::Query;
use super::stream::{self, Pieces};
use crate::access::Caller;
use crate::files::FilesError;
use crate::files::pack::Stopped;
use crate::files::transfer::{self, Feed, Taker};
use crate::target::{self, Target};

/// How long a client may send nothing of an archive, and how long an archive may wait for its first byte.
const SILENCE: Duration = Duration::from_secs(30);

/// How long a client may take nothing of an archive: it holds a place that others wait for.
const STANDSTILL: Duration = Duration::from_mins(1);

/// Longest path, as in the kernel.
const LONGEST_PATH: usize = 4095;

/// `GET /v1/pods/{id}/files`
pub async fn read<P: Pods>(api: &Arc<Api<P>>, id: &str, mut call: Call<'_>) -> Answer {
    let stat_only = call.query.flag("stat").unwrap_or_default();
    let (target, path) = place(api, call.caller, id, call.query)?;
    let permit = transfer::permit().ok_or_else(busy)?;
    let failed = |error| told(error, &path);
    if stat_only {
        let stat = transfer::out(target, path.clone().into_bytes(), None::<Pieces>, permit).await.map_err(failed)?;
        return answer::json(StatusCode::OK, &stat);
    }
    let (pieces, mut response) = stream::open("application/x-tar", &api.shutdown);
    let stat = transfer::out(target, path.clone().into_bytes(), Some(pieces), permit).await.map_err(failed)?;
    response.headers_mut().insert(HeaderName::from_static(STAT_HEADER), header(&stat)?);
    Ok(response)
}

/// `PUT /v1/pods/{id}/files`
pub async fn write<P: Pods>(api: &Arc<Api<P>>, id: &str, call: Call<'_>) -> Answer {
    let (target, path) = place(api, call.caller, id, call.query)?;
    check_type(&call.parts.headers)?;
    let permit = transfer::permit().ok_or_else(busy)?;
    let (feed, done) = transfer::into(target, path.clone().into_bytes(), permit)?;
    let mut done = std::pin::pin!(done);
    // whichever ends first: the thread ends early when an entry is refused
    let sent = tokio::select! {
        sent = send(call.body, feed) => sent,
        done = &mut done => return answer::json(StatusCode::OK, &done.map_err(|error| told(error, &path))?),
        () = api.shutdown.cancelled() => Err(Refusal::stopping()),
    };
    // a feed that is dropped early ends the thread, which removes what is half written
    let done = done.await;
    match (sent, done) {
        (Err(refusal), _) => Err(refusal),
        (Ok(()), Ok(written)) => answer::json(StatusCode::OK, &written),
        (Ok(()), Err(error)) => Err(told(error, &path)),
    }
}

/// The running container that is meant, and the path in it.
fn place<P: Pods>(api: &Arc<Api<P>>, caller: &Caller, id: &str, mut query: Query) -> Result<(Target, String), Refusal> {
    let container = query.text("container");
    let instance = query.text("instance");
    let path = query.text("path");
    match &path {
        None => query.refuse("path", "missing; expected an absolute path in the container"),
        Some(path) if !path.starts_with('/') => {
            query.refuse("path", "found a relative path, expected an absolute one in the container");
        }
        Some(path) if path.len() > LONGEST_PATH => {
            query.refuse("path", format!("found {} bytes, expected at most {LONGEST_PATH}", path.len()));
        }
        Some(_) => {}
    }
    query.finish()?;
    let pod = api.pods.get(id)?;
    let target = target::find(&pod, instance.as_deref(), container.as_deref())?;
    api.check_files(caller, &pod.spec, &target.container)?;
    // a query without a path did not finish
    Ok((target, path.unwrap_or_default()))
}

fn told(error: FilesError, path: &str) -> Refusal {
    match error {
        FilesError::NotFound => {
            let path: String = path.chars().take(300).collect();
            Refusal::not_found(format!("{path}: there is no such file or directory in the container"))
        }
        other => other.into(),
    }
}

fn busy() -> Refusal {
    let detail = format!("{} copies are under way, the most at a time; try again later", transfer::most());
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail)
}

/// JSON in ASCII, so that any name can stand in a header.
fn header(stat: &FileStat) -> Result<HeaderValue, Refusal> {
    let failed = |error: &dyn std::fmt::Display| Refusal::failed(format!("the answer cannot be written: {error}"));
    let text = serde_json::to_string(stat).map_err(|error| failed(&error))?;
    let mut plain = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_ascii() && letter != '\x7f' {
            plain.push(letter);
        } else {
            let mut units = [0; 2];
            for unit in letter.encode_utf16(&mut units) {
                // writing to a string cannot fail
                let _ = write!(plain, "\\u{unit:04x}");
            }
        }
    }
    HeaderValue::from_str(&plain).map_err(|error| failed(&error))
}

fn check_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let refuse = |name: &str, found: &HeaderValue, expected: &str| {
        let found: String = String::from_utf8_lossy(found.as_bytes()).chars().take(80).collect();
        let violation = Violation::new(name, format!("found {found:?}, expected {expected}"));
        Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", violation.to_string())
            .with(vec![violation])
    };
    if let Some(value) = headers.get(CONTENT_TYPE) {
        let essence = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let known = [&b"application/x-tar"[..], b"application/tar", b"application/octet-stream"];
        if !known.iter().any(|known| essence.eq_ignore_ascii_case(known)) {
            return Err(refuse("content-type", value, "application/x-tar"));
        }
    }
    match headers.get(CONTENT_ENCODING) {
        Some(value) if !value.as_bytes().eq_ignore_ascii_case(b"identity") => {
            Err(refuse("content-encoding", value, "a body that is not compressed"))
        }
        _ => Ok(()),
    }
}

/// Hands the body over as it arrives. Ends with an error when nothing of it does for a while.
async fn send(body: &mut Incoming, feed: Feed) -> Result<(), Refusal> {
    loop {
        let frame = tokio::time::timeout(SILENCE, body.frame()).await.map_err(|_| {
            let detail = format!("nothing of the archive arrived for {} s; send it faster", SILENCE.as_secs());
            Refusal::timed_out(detail)
        })?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| {
            let detail = format!("the body broke off: {error}; send it whole");
            Refusal::new(StatusCode::BAD_REQUEST, "bad-request", detail)
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if !feed.give(data).await {
            // the thread has ended; its answer tells why
            return Ok(());
        }
    }
    feed.end().await;
    Ok(())
}

impl Taker for Pieces {
    async fn take(&mut self, piece: Bytes) -> bool {
        tokio::time::timeout(STANDSTILL, self.give(piece)).await.unwrap_or(false)
    }

    async fn end(self, result: Result<(), Stopped>) {
        match result {
            Ok(()) => {}
            // the client is gone or sleeps, or the daemon stops
            Err(Stopped::Unwanted) => self.break_off("nobody takes it any more, or the daemon is stopping").await,
            Err(Stopped::Failed(error)) => {
                tracing::warn!("a copy out of a container broke off: {error}");
                self.break_off(error).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use agentd_api::files::FileKind;

    use super::*;

    #[test]
    fn any_name_can_stand_in_the_header() {
        let name = "a\n\"\u{7f}é😀".to_owned();
        let (size, mode, mtime) = (1, 0o100_644, "2026-01-01T00:00:00Z".to_owned());
        let stat = FileStat { name, kind: FileKind::File, size, mode, mtime, uid: 0, gid: 0, link_target: None };
        let header = header(&stat).unwrap();
        let text = header.to_str().unwrap();
        assert!(text.is_ascii() && !text.contains('\n'), "{text}");
        assert_eq!(serde_json::from_str::<FileStat>(text).unwrap(), stat);
    }
}
