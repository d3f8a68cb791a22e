//! Answers: JSON, and problems with their status.

use std::io;

use agentd_api::problem::{Problem, Violation};
use agentd_api::resources::Shortfall;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::node::NodeError;

/// Body of an answer. An error breaks the answer off, so that the client sees that it is not whole.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What a call gives.
pub type Answer = Result<Response<Body>, Refusal>;

/// A call that is refused or failed.
#[derive(Debug)]
pub struct Refusal {
    problem: Box<Problem>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refusal {
    /// A refusal with a status, a stable name of its kind, and a line for people.
    pub fn new(status: StatusCode, kind: &str, detail: impl Into<String>) -> Self {
        let problem = Problem {
            status: status.as_u16(),
            kind: kind.to_owned(),
            detail: detail.into(),
            errors: Vec::new(),
            request: None,
        };
        Self { problem: Box::new(problem), headers: Vec::new() }
    }

    /// The same, with the fields at fault.
    pub fn with(mut self, errors: Vec<Violation>) -> Self {
        self.problem.errors = errors;
        self
    }

    /// The same, with a header in its answer.
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The same, with the id of the request that it refuses.
    pub fn of_request(mut self, id: &str) -> Self {
        self.problem.request = Some(id.to_owned());
        self
    }

    /// A pod with faults.
    pub fn invalid_pod(errors: Vec<Violation>) -> Self {
        let detail = match errors.len() {
            1 => "the pod is refused: one field is at fault".to_owned(),
            count => format!("the pod is refused: {count} fields are at fault"),
        };
        Self::new(StatusCode::BAD_REQUEST, "invalid-pod", detail).with(errors)
    }

    /// A request with faults in its path, its parameters or a body that is no pod.
    pub fn bad_request(errors: Vec<Violation>) -> Self {
        let detail = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        Self::new(StatusCode::BAD_REQUEST, "bad-request", detail).with(errors)
    }

    /// Something that is not there.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", detail)
    }

    /// A path that leads nowhere.
    pub fn unknown_path(path: &str) -> Self {
        let path: String = path.chars().take(200).collect();
        let detail =
            format!("there is nothing at {path}; docs/api.md lists the paths, and a pod id is one segment (app%2Fweb)");
        Self::new(StatusCode::NOT_FOUND, "unknown-path", detail)
    }

    /// A path that does not take this method.
    pub fn wrong_method(method: &str, allow: &str) -> Self {
        let method: String = method.chars().take(40).collect();
        let detail = format!("found the method {method}, expected one of: {allow}");
        let refusal = Self::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail);
        match HeaderValue::try_from(allow) {
            Ok(allow) => refusal.with_header(ALLOW, allow),
            Err(_) => refusal,
        }
    }

    /// What the client made its request depend on does not hold.
    pub fn precondition_failed(errors: Vec<Violation>) -> Self {
        let detail = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        Self::new(StatusCode::PRECONDITION_FAILED, "precondition-failed", detail).with(errors)
    }

    /// What was waited for did not come in time.
    pub fn timed_out(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "timed-out", detail)
    }

    /// The daemon is stopping.
    pub fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the daemon is stopping; ask again once it is back")
    }

    /// The host failed.
    pub fn failed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", detail)
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// Its line for people.
    pub fn detail(&self) -> &str {
        &self.problem.detail
    }

    /// What is told of it.
    pub fn into_problem(self) -> Problem {
        *self.problem
    }

    /// Its problem, as JSON.
    pub fn into_text(self) -> String {
        // a problem is text and numbers only, which serialise
        serde_json::to_string(&self.problem).unwrap_or_default()
    }

    /// As an answer.
    pub fn into_response(self) -> Response<Body> {
        let status = StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut refusal = self;
        let headers = std::mem::take(&mut refusal.headers);
        let mut response = whole(status, "application/problem+json", refusal.into_text());
        response.headers_mut().extend(headers);
        response
    }
}

impl From<NodeError> for Refusal {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::Invalid(errors) => Self::invalid_pod(errors),
            NodeError::BadRequest(errors) => Self::bad_request(errors),
            NodeError::NotFound(_) | NodeError::NotInPod(_) => Self::not_found(error.to_string()),
            NodeError::Conflict(detail) => Self::new(StatusCode::CONFLICT, "conflict", detail),
            NodeError::Insufficient(shortfall) => {
                let detail = "not enough is free on this host";
                Self::new(StatusCode::CONFLICT, "insufficient-resources", detail).with(short(&shortfall))
            }
            NodeError::Stale { found, expected, .. } => {
                let shown: String = expected.join(" or ").chars().take(300).collect();
                let cure = "read the pod again, and change what it is now";
                let message = format!("found the version {found}, expected {shown}; {cure}");
                Self::precondition_failed(vec![Violation::new("if-match", message)])
            }
            NodeError::Failed(detail) => Self::failed(detail),
        }
    }
}

fn short(shortfall: &Shortfall) -> Vec<Violation> {
    let entry = |short: &agentd_api::resources::Short| {
        let line = short.to_string();
        let name = short.resource.as_str();
        let message = line.strip_prefix(name).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&line);
        Violation::new(format!("resources.{name}"), message)
    };
    shortfall.0.iter().map(entry).collect()
}

/// An answer whose body is all there.
pub fn whole(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// An answer in JSON.
pub fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    let text =
        serde_json::to_vec(value).map_err(|error| Refusal::failed(format!("the answer cannot be written: {error}")))?;
    Ok(whole(status, "application/json", text))
}

/// An answer without a body.
pub fn empty() -> Response<Body> {
    let mut response = Response::new(Full::default().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}
