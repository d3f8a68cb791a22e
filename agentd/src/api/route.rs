//! From method and path to the call that is meant, by the table of [`super::operations`].

use agentd_api::problem::Violation;
use hyper::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::answer::Refusal;
use super::operations::{OPERATIONS, Operation, Parameter};

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `GET /v1/node`
    Node,
    /// `GET /v1/pods`
    ListPods,
    /// `POST /v1/pods`
    RunPod,
    /// `GET /v1/pods/{id}`
    GetPod(String),
    /// `PUT /v1/pods/{id}`
    UpdatePod(String),
    /// `DELETE /v1/pods/{id}`
    RemovePod(String),
    /// `GET /v1/pods/{id}/wait`
    WaitPod(String),
    /// `GET /v1/pods/{id}/logs`
    Logs(String),
    /// `GET /v1/events`
    Events,
    /// `GET /v1/images`
    ListImages,
    /// `POST /v1/images/pull`
    PullImage,
    /// `POST /v1/images/import`
    ImportImage,
    /// `DELETE /v1/images/{reference}`
    RemoveImage(String),
    /// `GET /v1/version`
    Version,
    /// `GET /healthz`
    Health,
    /// `GET /v1/openapi.json`
    OpenApi,
    /// `GET /v1/usage`
    Usage,
    /// `GET /metrics`
    Exposition,
    /// `GET /v1/metrics`
    Metrics,
    /// `GET /v1/observe`
    Observe,
    /// `GET /v1/profile`
    Profile,
    /// `POST /v1/pods/{id}/exec`
    Exec(String),
    /// `GET /v1/pods/{id}/files`
    ReadFiles(String),
    /// `PUT /v1/pods/{id}/files`
    WriteFiles(String),
    /// `GET /v1/pods/{id}/port-forward`
    Forward(String),
    /// `GET /v1/sessions`
    ListSessions,
    /// `GET /v1/sessions/{session}`
    GetSession(String),
    /// `DELETE /v1/sessions/{session}`
    EndSession(String),
    /// `GET /v1/sessions/{session}/attach`
    Attach(String),
    /// `GET /v1/sessions/{session}/wait`
    WaitSession(String),
    /// `POST /v1/sessions/{session}/signal`
    SignalSession(String),
    /// `POST /v1/sessions/{session}/resize`
    ResizeSession(String),
    /// `GET /v1/sessions/{session}/recording`
    Recording(String),
    /// A path of the Mesos agent API, without leading slash and without a `slave(1)/` before it.
    Mesos(String),
}

impl Route {
    /// Whether the call changes something.
    pub fn mutates(&self) -> bool {
        Operation::of(self).is_some_and(|operation| operation.mutates)
    }

    /// Its path with the places of ids, for metrics and traces.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Mesos(_) => "/slave(1)/{call}",
            route => Operation::of(route).map_or("/", |operation| operation.path),
        }
    }

    /// The query parameters that the call takes.
    pub fn parameters(&self) -> &'static [Parameter] {
        Operation::of(self).map_or(&[], |operation| operation.parameters)
    }
}

/// Finds the call for a method and a path.
pub fn find(method: &Method, path: &str) -> Result<Route, Refusal> {
    let unknown = || Refusal::unknown_path(path);
    let segments = split(path)?.ok_or_else(unknown)?;
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    let words = words.strip_prefix(&["slave(1)"]).unwrap_or(&words);
    if crate::mesos::serves(words) {
        return Ok(Route::Mesos(words.join("/")));
    }
    let mut allowed = Vec::new();
    for operation in OPERATIONS.iter().filter(|operation| operation.has(&segments)) {
        if operation.method == method.as_str() {
            return Ok(operation.route(&segments));
        }
        allowed.push(operation.method);
    }
    if allowed.is_empty() { Err(unknown()) } else { Err(Refusal::wrong_method(method.as_str(), &allowed.join(", "))) }
}

/// The decoded segments of a path; none where it has an empty one.
fn split(path: &str) -> Result<Option<Vec<String>>, Refusal> {
    let Some(path) = path.strip_prefix('/') else { return Ok(None) };
    let mut segments = Vec::with_capacity(4);
    for segment in path.split('/') {
        if segment.is_empty() {
            return Ok(None);
        }
        let decoded = decode(segment).map_err(|fault| Refusal::bad_request(vec![Violation::new("path", fault)]))?;
        segments.push(decoded);
    }
    Ok(Some(segments))
}

/// Undoes percent-encoding; says what is wrong where it is none.
pub fn decode(text: &str) -> Result<String, String> {
    let shown = || text.chars().take(80).collect::<String>();
    let bytes = text.as_bytes();
    for (at, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%') {
        if !bytes.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            return Err(format!("found {:?}, expected two hexadecimal digits after each %", shown()));
        }
    }
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| format!("found {:?}, expected percent-encoded UTF-8", shown()))?;
    if decoded.contains('\0') {
        return Err(format!("found {:?} with a NUL byte, expected text without one", shown()));
    }
    Ok(decoded.into_owned())
}

/// What stays as it is within one segment.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Makes one segment of any text.
pub fn encode(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// The path of a pod.
pub fn pod_path(id: &str) -> String {
    format!("/v1/pods/{}", encode(id.strip_prefix('/').unwrap_or(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_id_is_one_segment_and_comes_back() {
        for id in ["/app/web", "/a", "/sp ace/%2F", "/übung"] {
            let path = pod_path(id);
            assert_eq!(path.matches('/').count(), 3, "{path}");
            assert_eq!(find(&Method::GET, &path).unwrap(), Route::GetPod(id.to_owned()));
            assert_eq!(find(&Method::GET, &format!("{path}/wait")).unwrap(), Route::WaitPod(id.to_owned()));
        }
        assert_eq!(find(&Method::GET, "/v1/pods/%2Fapp").unwrap(), Route::GetPod("/app".to_owned()));
    }

    #[test]
    fn images_named_like_calls_can_be_removed() {
        assert_eq!(find(&Method::POST, "/v1/images/pull").unwrap(), Route::PullImage);
        assert_eq!(find(&Method::DELETE, "/v1/images/pull").unwrap(), Route::RemoveImage("pull".to_owned()));
        let reference = "localhost:5000/a/b@sha256:00";
        let path = format!("/v1/images/{}", encode(reference));
        assert_eq!(find(&Method::DELETE, &path).unwrap(), Route::RemoveImage(reference.to_owned()));
    }

    #[test]
    fn escapes_are_undone_or_refused() {
        assert_eq!(decode("a%2Fb+c%C3%A9").unwrap(), "a/b+c\u{e9}");
        for bad in ["%", "%2", "%2g", "%%41", "%ff", "a%00"] {
            assert!(decode(bad).is_err(), "{bad}");
        }
    }
}
