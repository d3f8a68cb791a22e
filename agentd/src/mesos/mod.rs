//! The Mesos v1 agent API, so that tools written for Mesos agents open shells and read sandboxes here. Its page is
//! `docs/mesos-agent-api.md`.
//!
//! Each pod is shown as tasks of one framework, `local`: an instance is an executor whose container is the instance,
//! and each of its containers is a task. A nested container is an exec session of the kind `nested`.
//!
//! - [`handle`] takes a request by its path; `negotiate` says in which format it is read and answered; `fault` is
//!   what is answered otherwise, one line of plain text, as Mesos does.
//! - `calls` takes one call of `POST /api/v1`; `place` finds the container that it names.
//! - `launch`, `output`, `input` and `ends` are the life of a nested container. A stream of output is a task of its
//!   own, which ends the container when its client goes; input is read within the request.
//! - `picture` is what the agent tells of itself as messages, `pages` the same as the older JSON pages, `figures` are
//!   metrics, flags and version.
//! - `files` and `log_file` are the virtual tree of sandboxes.
//! - `access` is where callers are told no.

mod access;
mod calls;
mod ends;
mod fault;
mod figures;
mod files;
mod input;
mod launch;
mod log_file;
mod negotiate;
mod output;
mod pages;
mod picture;
mod place;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use hyper::Method;

use crate::api::Pods;
use crate::api::answer::Answer;
use crate::api::handle::{Api, Call};
use fault::Fault;

/// Figures by the names of a Mesos agent, those that agentd has.
pub fn known_figures(pods: &impl Pods) -> std::collections::BTreeMap<&'static str, f64> {
    figures::metrics(pods)
}

/// Whether a path (decoded segments, without a leading `slave(1)`) belongs to the Mesos agent API.
pub fn serves(segments: &[&str]) -> bool {
    match segments {
        ["api", "v1"] | ["metrics", "snapshot"] => true,
        [page] => PAGES.contains(&page.strip_suffix(".json").unwrap_or(page)),
        ["files", page] => FILES.contains(&page.strip_suffix(".json").unwrap_or(page)),
        _ => false,
    }
}

const PAGES: &[&str] = &["state", "containers", "flags", "version", "health"];
const FILES: &[&str] = &["browse", "read", "download"];

/// Answers a request of the Mesos agent API.
pub async fn handle<P: Pods>(api: &Arc<Api<P>>, path: &str, call: Call<'_>) -> Answer {
    let page = path.strip_suffix(".json").unwrap_or(path);
    let answer = if page == "api/v1" {
        match call.parts.method {
            Method::POST => calls::answer(api, call).await,
            _ => Err(Fault::wrong_method(&call.parts.method, "POST")),
        }
    } else if matches!(call.parts.method, Method::GET | Method::HEAD) {
        pages::answer(api, page, call).await
    } else {
        Err(Fault::wrong_method(&call.parts.method, "GET"))
    };
    Ok(answer.unwrap_or_else(Fault::into_response))
}
