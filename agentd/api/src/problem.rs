//! Errors of the API: RFC 9457 problem details with one entry for each violated field.

use serde::{Deserialize, Serialize};

/// One thing wrong with an input, by field path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// Path of the field, e.g. `containers[0].resources.cpus`; empty for the document as a whole.
    pub path: String,
    /// What was found, what was expected, and the cure, in one line.
    pub message: String,
}

impl Violation {
    /// A violation at `path`.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.path.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.path, self.message) }
    }
}

/// Body of every answer with a status of 400 or above.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// HTTP status code.
    pub status: u16,
    /// Short name of the kind of problem, stable for programs, e.g. `invalid-pod`, `not-found`, `insufficient-resources`.
    #[serde(rename = "type")]
    pub kind: String,
    /// One line for people.
    pub detail: String,
    /// Each violated field; empty where no field is at fault.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Violation>,
    /// Id of the request, as in the header `X-Request-Id` of the answer and in the daemon's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
}
