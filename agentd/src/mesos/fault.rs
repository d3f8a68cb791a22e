//! Refusals and failures: a status and one line of plain text.

use agentd_api::problem::Violation;
use agentd_logging::LogError;
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Response, StatusCode};

use crate::api::answer::{Body, Refusal, whole};
use crate::files::FilesError;
use crate::node::NodeError;

/// A call that is refused or failed.
#[derive(Debug)]
pub(super) struct Fault {
    pub status: StatusCode,
    pub line: String,
    allow: Option<&'static str>,
}

impl Fault {
    pub fn new(status: StatusCode, line: impl Into<String>) -> Self {
        Self { status, line: line.into(), allow: None }
    }

    /// Something wrong with what was sent.
    pub fn bad(line: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, line)
    }

    pub fn not_found(line: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, line)
    }

    pub fn conflict(line: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, line)
    }

    pub fn failed(line: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, line)
    }

    pub fn wrong_method(method: &Method, allow: &'static str) -> Self {
        let method: String = method.as_str().chars().take(40).collect();
        let line = format!("found the method {method}, expected {allow}");
        Self { allow: Some(allow), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, line) }
    }

    pub fn into_response(self) -> Response<Body> {
        if self.status.is_server_error() && self.status != StatusCode::NOT_IMPLEMENTED {
            tracing::warn!(status = self.status.as_u16(), "Mesos agent API: {}", self.line);
        }
        let mut response = whole(self.status, "text/plain; charset=utf-8", self.line + "\n");
        if let Some(allow) = self.allow {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

impl From<Violation> for Fault {
    fn from(violation: Violation) -> Self {
        Self::bad(violation.to_string())
    }
}

impl From<NodeError> for Fault {
    fn from(error: NodeError) -> Self {
        let status = match &error {
            NodeError::Invalid(_) | NodeError::BadRequest(_) => StatusCode::BAD_REQUEST,
            NodeError::NotFound(_) | NodeError::NotInPod(_) => StatusCode::NOT_FOUND,
            NodeError::Conflict(_) | NodeError::Insufficient(_) | NodeError::Stale { .. } => StatusCode::CONFLICT,
            NodeError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl From<FilesError> for Fault {
    fn from(error: FilesError) -> Self {
        let status = match &error {
            FilesError::NotFound => StatusCode::NOT_FOUND,
            FilesError::Io(_) => StatusCode::INTERNAL_SERVER_ERROR,
            FilesError::Refused(_) | FilesError::NoSpace(_) | FilesError::Archive(_) => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.to_string())
    }
}

impl From<LogError> for Fault {
    fn from(error: LogError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let line = refusal.detail().to_owned();
        Self::new(refusal.into_response().status(), line)
    }
}
