//! Calls about images.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agentd_api::message::{ImageInfo, Progress};
use agentd_api::problem::Violation;
use agentd_images::{Image, ImageError, ProgressSink};
use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, StatusCode};

use super::answer::{self, Answer, Refusal};
use super::backend::Pods;
use super::body::{self, Kind};
use super::handle::{Api, Call, apart};
use super::idempotency::{self, Claim, Kept, Ticket};
use super::list::{Page, Pattern};
use super::stream::{self, Pieces};
use crate::events::Subject;

/// Progress of one blob is told this often, and when it is there.
const PACE: Duration = Duration::from_millis(100);

impl From<ImageError> for Refusal {
    fn from(error: ImageError) -> Self {
        let detail = error.to_string();
        match error {
            ImageError::Reference { .. } => Self::bad_request(vec![Violation::new("reference", detail)]),
            ImageError::Unknown { .. } => Self::not_found(detail),
            ImageError::InUse { .. } => Self::new(StatusCode::CONFLICT, "conflict", detail),
            _ => Self::failed(detail),
        }
    }
}

/// `GET /v1/images`
pub fn list<P: Pods>(api: &Arc<Api<P>>, call: Call<'_>) -> Answer {
    let mut query = call.query;
    let reference = Pattern::read(&mut query, "reference");
    let in_use = query.flag("in-use");
    let page = Page::read(&mut query, "ImageInfo");
    query.finish()?;
    let wanted = |image: &ImageInfo| {
        reference.as_ref().is_none_or(|reference| reference.matches(&image.reference))
            && in_use.is_none_or(|in_use| in_use == image.in_use)
    };
    let images = api.pods.images().list().into_iter().filter(wanted);
    page.answer(&call.parts.uri, images.map(|image| (image.reference.clone(), image)).collect())
}

/// `POST /v1/images/pull`
pub async fn pull<P: Pods>(api: &Arc<Api<P>>, call: Call<'_>) -> Answer {
    call.query.finish()?;
    let key = idempotency::key(&call.parts.headers)?;
    let text = api.read(&call.parts.headers, call.body).await?;
    let fields = body::object(&text, &[("reference", Kind::Text), ("force", Kind::Flag)])?;
    let reference = fields.get("reference").and_then(|value| value.as_str()).unwrap_or_default().to_owned();
    let force = fields.get("force").and_then(serde_json::Value::as_bool).unwrap_or_default();
    if agentd_images::normalise(&reference)?.starts_with('/') {
        let message = "found a path, expected [registry/]name[:tag][@sha256:…]; import a folder or an archive instead";
        return Err(Refusal::bad_request(vec![Violation::new("reference", message)]));
    }
    let ticket = match key {
        None => None,
        Some(key) => match idempotency::claim(api, call.caller, &key, call.parts, &text).await? {
            Claim::Answered(answer) => return answer.into_response(true),
            Claim::Mine(ticket) => Some(ticket),
        },
    };
    let store = api.pods.images().clone();
    Ok(progress(api, "image-pulled", ticket, |sink| async move { store.pull(&reference, force, sink).await }))
}

/// `POST /v1/images/import`
pub async fn import<P: Pods>(api: &Arc<Api<P>>, call: Call<'_>) -> Answer {
    call.query.finish()?;
    let key = idempotency::key(&call.parts.headers)?;
    let text = api.read(&call.parts.headers, call.body).await?;
    let fields = body::object(&text, &[("path", Kind::Text), ("reference", Kind::OptionalText)])?;
    let path = fields.get("path").and_then(|value| value.as_str()).unwrap_or_default().to_owned();
    let reference = fields.get("reference").and_then(|value| value.as_str()).map(str::to_owned);
    let refuse = |message: String| Refusal::bad_request(vec![Violation::new("path", message)]);
    if !path.starts_with('/') {
        let shown: String = path.chars().take(200).collect();
        return Err(refuse(format!("found {shown:?}, expected an absolute path on the host")));
    }
    if let Some(reference) = &reference {
        agentd_images::normalise(reference)?;
    }
    api.check_path(call.caller, &path)?;
    if let Err(error) = tokio::fs::metadata(&path).await {
        let cure = "expected an OCI layout folder or an archive that the daemon can read";
        return Err(refuse(format!("{path:?} cannot be looked at: {error}; {cure}")));
    }
    let ticket = match key {
        None => None,
        Some(key) => match idempotency::claim(api, call.caller, &key, call.parts, &text).await? {
            Claim::Answered(answer) => return answer.into_response(true),
            Claim::Mine(ticket) => Some(ticket),
        },
    };
    let store = api.pods.images().clone();
    let work = |sink| async move { store.import(Path::new(&path), reference.as_deref(), sink).await };
    Ok(progress(api, "image-imported", ticket, work))
}

/// `DELETE /v1/images/{reference}`
pub async fn remove<P: Pods>(api: &Arc<Api<P>>, reference: String) -> Answer {
    let pods = Arc::clone(&api.pods);
    let work = async move {
        pods.images().remove(&reference).await?;
        pods.events().publish("image-removed", Subject::default(), format!("removed the image {reference}"));
        Ok::<_, ImageError>(())
    };
    apart(work).await?;
    Ok(answer::empty())
}

/// Runs the work in a task of its own and streams its progress as JSON lines. The last line is always told, and is what
/// an idempotency key is answered with again.
fn progress<P: Pods, W>(
    api: &Arc<Api<P>>,
    kind: &'static str,
    ticket: Option<Ticket>,
    work: impl FnOnce(ProgressSink) -> W,
) -> hyper::Response<answer::Body>
where
    W: Future<Output = Result<Image, ImageError>> + Send + 'static,
{
    let (pieces, response) = stream::open("application/x-ndjson", &api.shutdown);
    let last = Arc::new(Mutex::new(None));
    let work = work(sink(&pieces, Arc::clone(&last)));
    let pods = Arc::clone(&api.pods);
    tokio::spawn(async move {
        let result = work.await;
        let told = last.lock().unwrap_or_else(PoisonError::into_inner).take();
        let end = match (told, result) {
            (Some(end @ Progress::Done { .. }), Ok(image)) => {
                let message = format!("{} is {}", image.reference, image.digest);
                pods.events().publish(kind, Subject::default(), message);
                end
            }
            (_, Err(error)) => Progress::Failed { message: error.to_string() },
            (_, Ok(_)) => Progress::Failed { message: "the image store did not tell how it ended".to_owned() },
        };
        if let Some(ticket) = ticket {
            match &end {
                Progress::Done { .. } => ticket.done(last_line(&end)),
                _ => ticket.forget(),
            }
        }
        pieces.give(line(&end)).await;
    });
    response
}

/// The answer that has nothing but its last line.
fn last_line(end: &Progress) -> Kept {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"))]);
    Kept::new(StatusCode::OK, &headers, &String::from_utf8_lossy(&line(end)))
}

/// A sink that never blocks: what a slow client has no room for is left out, but for the end, which goes to `last`.
fn sink(pieces: &Pieces, last: Arc<Mutex<Option<Progress>>>) -> ProgressSink {
    let sender = pieces.downgrade();
    let told: Mutex<HashMap<String, Instant>> = Mutex::default();
    Arc::new(move |progress| {
        match &progress {
            Progress::Done { .. } | Progress::Failed { .. } => {
                *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(progress);
                return;
            }
            Progress::Blob { digest, done, total } if done < total => {
                let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                match told.get_mut(digest) {
                    Some(at) if at.elapsed() < PACE => return,
                    Some(at) => *at = Instant::now(),
                    None => drop(told.insert(digest.clone(), Instant::now())),
                }
            }
            _ => {}
        }
        if let Some(sender) = sender.upgrade() {
            // full or closed: see above
            let _ = sender.try_send(Ok(line(&progress)));
        }
    })
}

fn line(progress: &Progress) -> Bytes {
    // progress is text and numbers only, which serialise
    let mut line = serde_json::to_vec(progress).unwrap_or_default();
    line.push(b'\n');
    line.into()
}
