//! Calls about images.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agentd_api::message::Progress;
use agentd_api::problem::Violation;
use agentd_images::{Image, ImageError, ProgressSink};
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{HeaderMap, StatusCode};

use super::answer::{self, Answer, Refusal};
use super::backend::Pods;
use super::body::{self, Kind};
use super::handle::{Api, apart};
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

/// `POST /v1/images/pull`
pub async fn pull<P: Pods>(api: &Arc<Api<P>>, headers: &HeaderMap, body: &mut Incoming) -> Answer {
    let text = api.read(headers, body).await?;
    let fields = body::object(&text, &[("reference", Kind::Text), ("force", Kind::Flag)])?;
    let reference = fields.get("reference").and_then(|value| value.as_str()).unwrap_or_default().to_owned();
    let force = fields.get("force").and_then(serde_json::Value::as_bool).unwrap_or_default();
    if agentd_images::normalise(&reference)?.starts_with('/') {
        let message = "found a path, expected [registry/]name[:tag][@sha256:…]; import a folder or an archive instead";
        return Err(Refusal::bad_request(vec![Violation::new("reference", message)]));
    }
    let store = api.pods.images().clone();
    Ok(progress(api, "image-pulled", |sink| async move { store.pull(&reference, force, sink).await }))
}

/// `POST /v1/images/import`
pub async fn import<P: Pods>(api: &Arc<Api<P>>, headers: &HeaderMap, body: &mut Incoming) -> Answer {
    let text = api.read(headers, body).await?;
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
    if let Err(error) = tokio::fs::metadata(&path).await {
        let cure = "expected an OCI layout folder or an archive that the daemon can read";
        return Err(refuse(format!("{path:?} cannot be looked at: {error}; {cure}")));
    }
    let store = api.pods.images().clone();
    let work = |sink| async move { store.import(Path::new(&path), reference.as_deref(), sink).await };
    Ok(progress(api, "image-imported", work))
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

/// Runs the work in a task of its own and streams its progress as JSON lines. The last line is always told.
fn progress<P: Pods, W>(
    api: &Arc<Api<P>>,
    kind: &'static str,
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
        pieces.give(line(&end)).await;
    });
    response
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
