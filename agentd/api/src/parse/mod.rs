//! JSON to [`PodSpec`], and to [`ExecRequest`] by the same means: fills in Marathon's defaults and refuses what breaks a rule, naming every violation at once by
//! field path.
//!
//! Three passes, each in its own file:
//! - `document`: bytes to a JSON value; size, syntax and repeated keys. A fault here ends the parse, for there is no
//!   document to read further.
//! - the readers `pod`, `container`, `network`, `extension` and `exec`: one function for each JSON object, written with the
//!   cursor of `reader` into `report`. They judge one field at a time (`format` holds the formats of strings, `fields` the known
//!   names) and put the default in the place of what is missing or wrong, so that reading goes on.
//! - `rules`: what holds between fields. A rule stays silent about a field that is already at fault.

mod container;
mod document;
mod exec;
mod extension;
mod fields;
mod format;
mod network;
mod pod;
mod reader;
mod report;
mod rules;

use serde_json::Value;

use crate::pod::PodSpec;
use crate::problem::Violation;
use crate::session::ExecRequest;
use reader::Place;
use report::Report;

pub use fields::{Fields, known_fields};

/// Longest document that is read, in bytes.
pub const MAX_BYTES: usize = 1024 * 1024;

/// Longest list that is read, in elements: two bytes of JSON must not become a whole container in memory without end.
pub const MAX_ELEMENTS: usize = 10_000;

/// Most violations that are listed one by one; a last entry tells how many more there are.
pub const MAX_VIOLATIONS: usize = 500;

/// Reads a pod from JSON. On failure the list is never empty and holds every violation, up to [`MAX_VIOLATIONS`].
pub fn pod(json: &[u8]) -> Result<PodSpec, Vec<Violation>> {
    let report = Report::default();
    let value = document::read(json, &report);
    match value {
        Some(value) => pod_from(&value, report),
        None => Err(report.into_violations()),
    }
}

/// Reads a pod from a JSON value that is already in memory, by the same rules as [`pod`].
pub fn pod_value(value: &Value) -> Result<PodSpec, Vec<Violation>> {
    pod_from(value, Report::default())
}

/// Reads any JSON. Faults of its syntax and keys that an object has twice are refused, as in a pod.
pub fn json(json: &[u8]) -> Result<Value, Vec<Violation>> {
    let report = Report::default();
    document::read(json, &report).ok_or_else(|| report.into_violations())
}

/// Reads a request to run a program in a container. On failure the list is never empty and holds every violation, up to
/// [`MAX_VIOLATIONS`].
pub fn exec(json: &[u8]) -> Result<ExecRequest, Vec<Violation>> {
    let report = Report::default();
    let Some(value) = document::read(json, &report) else { return Err(report.into_violations()) };
    let request = exec::exec_request(&Place::root(&value, &report));
    report.begin_rules();
    for Violation { path, message } in request.faults() {
        report.rule(&path, message);
    }
    if report.is_empty() { Ok(request) } else { Err(report.into_violations()) }
}

fn pod_from(value: &Value, report: Report) -> Result<PodSpec, Vec<Violation>> {
    let spec = pod::pod(&Place::root(value, &report));
    report.begin_rules();
    rules::check(&spec, &report);
    if report.is_empty() { Ok(spec) } else { Err(report.into_violations()) }
}
