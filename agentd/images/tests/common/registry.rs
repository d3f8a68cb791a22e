//! A registry on loopback that can misbehave.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

use super::TestImage;

/// How blobs are served.
#[derive(Default)]
pub struct Manners {
    /// Blobs break off after so many bytes of each answer; the number of answers that do is in `cuts`.
    pub cut_after: Option<usize>,
    pub cuts: AtomicUsize,
    /// Whether `Range` is honoured.
    pub no_range: bool,
    /// Whether one byte of each layer is changed.
    pub corrupt: bool,
    /// Wait before each piece of 64 KiB.
    pub slow: Option<Duration>,
    /// `user:password` in base64 that the token service wants.
    pub login: Option<String>,
    /// Whether the token service refuses all.
    pub locked: bool,
}

pub struct Registry {
    pub host: String,
    pub manners: Manners,
    manifests: Mutex<HashMap<String, (String, Vec<u8>)>>,
    blobs: Mutex<HashMap<String, Vec<u8>>>,
    /// Requests for blobs: digest and `Range`.
    pub requests: Mutex<Vec<(String, Option<String>)>>,
    pub manifest_requests: AtomicUsize,
}

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

fn body(bytes: impl Into<Bytes>) -> Body {
    http_body_util::Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

impl Registry {
    pub async fn start(manners: Manners) -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
        let registry = Arc::new(Self {
            host,
            manners,
            manifests: Mutex::default(),
            blobs: Mutex::default(),
            requests: Mutex::default(),
            manifest_requests: AtomicUsize::new(0),
        });
        let serving = Arc::clone(&registry);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let registry = Arc::clone(&serving);
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        let registry = Arc::clone(&registry);
                        async move { Ok::<_, Infallible>(registry.answer(&request)) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        registry
    }

    /// Publishes an image as `name:tag`; returns its reference.
    pub fn publish(&self, name: &str, tag: &str, image: &TestImage) -> String {
        let kind = serde_json::from_slice::<serde_json::Value>(&image.manifest).unwrap()["mediaType"].clone();
        self.document(name, tag, kind.as_str().unwrap(), image.manifest.clone());
        self.document(name, &image.digest(), kind.as_str().unwrap(), image.manifest.clone());
        let mut blobs = self.blobs.lock().unwrap();
        for blob in image.blobs() {
            blobs.insert(super::digest(blob), blob.to_vec());
        }
        format!("{}/{name}:{tag}", self.host)
    }

    pub fn document(&self, name: &str, tag: &str, kind: &str, bytes: Vec<u8>) {
        self.manifests.lock().unwrap().insert(format!("{name}/manifests/{tag}"), (kind.to_owned(), bytes));
    }

    /// Replaces the content of a blob.
    pub fn forge(&self, digest: &str, bytes: Vec<u8>) {
        self.blobs.lock().unwrap().insert(digest.to_owned(), bytes);
    }

    pub fn blob_requests(&self, digest: &str) -> Vec<Option<String>> {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|(asked, _)| asked == digest).map(|(_, range)| range.clone()).collect()
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let plain =
            |status: StatusCode, text: &'static str| Response::builder().status(status).body(body(text)).unwrap();
        if path == "/token" {
            if self.manners.locked
                || self.manners.login.clone().map(|login| format!("Basic {login}")) != header("authorization")
            {
                return plain(StatusCode::UNAUTHORIZED, "bad\ncredentials");
            }
            return plain(StatusCode::OK, r#"{"token":"let-me-in"}"#);
        }
        let guarded = self.manners.locked || self.manners.login.is_some();
        if guarded && header("authorization").as_deref() != Some("Bearer let-me-in") {
            let challenge = format!(r#"Bearer realm="http://{}/token",service="test""#, self.host);
            return Response::builder()
                .status(StatusCode::UNAUTHORIZED)
                .header("www-authenticate", challenge)
                .body(body("{}"))
                .unwrap();
        }
        if path == "/v2/" {
            return plain(StatusCode::OK, "{}");
        }
        let path = path.trim_start_matches("/v2/");
        if path.contains("/manifests/") {
            self.manifest_requests.fetch_add(1, Ordering::Relaxed);
            return match self.manifests.lock().unwrap().get(path) {
                Some((kind, bytes)) => {
                    Response::builder().header("content-type", kind).body(body(bytes.clone())).unwrap()
                }
                None => plain(
                    StatusCode::NOT_FOUND,
                    r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#,
                ),
            };
        }
        let Some((_, digest)) = path.split_once("/blobs/") else { return plain(StatusCode::NOT_FOUND, "") };
        let range = header("range");
        self.requests.lock().unwrap().push((digest.to_owned(), range.clone()));
        let Some(bytes) = self.blobs.lock().unwrap().get(digest).cloned() else {
            return plain(StatusCode::NOT_FOUND, r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}"#);
        };
        self.blob(bytes, range.as_deref())
    }

    fn blob(&self, mut bytes: Vec<u8>, range: Option<&str>) -> Response<Body> {
        let is_layer = bytes.first() != Some(&b'{');
        if self.manners.corrupt && is_layer {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        let mut response = Response::builder();
        let start = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        if let Some(start) = start
            && !self.manners.no_range
        {
            if start >= bytes.len() {
                return response.status(StatusCode::RANGE_NOT_SATISFIABLE).body(body("")).unwrap();
            }
            let whole = bytes.len();
            bytes.drain(..start);
            response = response
                .status(StatusCode::PARTIAL_CONTENT)
                .header("content-range", format!("bytes {start}-{}/{whole}", whole - 1));
        }
        let length = bytes.len();
        let mut cut = None;
        if is_layer && let Some(after) = self.manners.cut_after {
            let left = self.manners.cuts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            if left.is_ok() && after < bytes.len() {
                bytes.truncate(after);
                cut = Some(std::io::Error::other("cut"));
            }
        }
        let slow = self.manners.slow.filter(|_| is_layer);
        let pieces: Vec<Bytes> = bytes.chunks(64 * 1024).map(Bytes::copy_from_slice).collect();
        let state = (pieces.into_iter(), cut);
        let stream = futures_util::stream::unfold(state, move |(mut pieces, mut cut)| async move {
            if let Some(slow) = slow {
                tokio::time::sleep(slow).await;
            }
            if let Some(piece) = pieces.next() {
                return Some((Ok(Frame::data(piece)), (pieces, cut)));
            }
            // Lets what was sent arrive before the connection breaks.
            let error = cut.take()?;
            tokio::time::sleep(Duration::from_millis(50)).await;
            Some((Err(error), (pieces, None)))
        });
        response.header("content-length", length).body(BodyExt::boxed_unsync(StreamBody::new(stream))).unwrap()
    }
}
