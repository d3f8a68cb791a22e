//! From method and path to the call that is meant.

use agentd_api::problem::Violation;
use hyper::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::answer::Refusal;

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
}

impl Route {
    /// Whether the call changes something.
    pub fn mutates(&self) -> bool {
        matches!(
            self,
            Self::RunPod
                | Self::UpdatePod(_)
                | Self::RemovePod(_)
                | Self::PullImage
                | Self::ImportImage
                | Self::RemoveImage(_)
        )
    }

    /// Names of the query parameters that the call takes.
    pub fn parameters(&self) -> &'static [&'static str] {
        match self {
            Self::RunPod => &["wait", "timeout"],
            Self::WaitPod(_) => &["until", "timeout"],
            Self::Logs(_) => &["container", "instance", "tail", "follow", "since", "stream", "timestamps", "format"],
            Self::Events => &["after", "follow"],
            _ => &[],
        }
    }
}

/// Finds the call for a method and a path.
pub fn find(method: &Method, path: &str) -> Result<Route, Refusal> {
    let unknown = || Refusal::unknown_path(path);
    let segments = split(path)?.ok_or_else(unknown)?;
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let is = |wanted: Method| *method == wanted;
    let get = is(Method::GET);
    let (route, allow) = match segments.as_slice() {
        ["healthz"] => (get.then_some(Route::Health), "GET"),
        ["v1", "version"] => (get.then_some(Route::Version), "GET"),
        ["v1", "node"] => (get.then_some(Route::Node), "GET"),
        ["v1", "events"] => (get.then_some(Route::Events), "GET"),
        ["v1", "pods"] if is(Method::POST) => (Some(Route::RunPod), ""),
        ["v1", "pods"] => (get.then_some(Route::ListPods), "GET, POST"),
        ["v1", "pods", id] if is(Method::PUT) => (Some(Route::UpdatePod(pod_id(id))), ""),
        ["v1", "pods", id] if is(Method::DELETE) => (Some(Route::RemovePod(pod_id(id))), ""),
        ["v1", "pods", id] => (get.then(|| Route::GetPod(pod_id(id))), "GET, PUT, DELETE"),
        ["v1", "pods", id, "wait"] => (get.then(|| Route::WaitPod(pod_id(id))), "GET"),
        ["v1", "pods", id, "logs"] => (get.then(|| Route::Logs(pod_id(id))), "GET"),
        ["v1", "images"] => (get.then_some(Route::ListImages), "GET"),
        ["v1", "images", "pull"] if is(Method::POST) => (Some(Route::PullImage), ""),
        ["v1", "images", "import"] if is(Method::POST) => (Some(Route::ImportImage), ""),
        ["v1", "images", reference] => {
            let allow = if matches!(*reference, "pull" | "import") { "POST, DELETE" } else { "DELETE" };
            (is(Method::DELETE).then(|| Route::RemoveImage((*reference).to_owned())), allow)
        }
        _ => return Err(unknown()),
    };
    route.ok_or_else(|| Refusal::wrong_method(method.as_str(), allow))
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

/// A pod's id has its leading slash left out in a path; one that is there does no harm.
fn pod_id(segment: &str) -> String {
    if segment.starts_with('/') { segment.to_owned() } else { format!("/{segment}") }
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
