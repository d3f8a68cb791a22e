//! `GET /v1/pods/{id}/port-forward`: connections into a pod's network.

use std::num::NonZeroU16;
use std::sync::Arc;

use agentd_api::files::FORWARD_PROTOCOL;
use agentd_api::problem::Violation;
use hyper::header::{CONNECTION, HeaderName, HeaderValue, UPGRADE};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Response, StatusCode, Version};
use hyper_util::rt::TokioIo;

use super::answer::{self, Answer, Body, Refusal};
use super::backend::Pods;
use super::connection::Permit;
use super::handle::{Api, Call};
use crate::forward;
use crate::instance::uses_host_network;
use crate::node::NodeError;
use crate::target;

/// `GET /v1/pods/{id}/port-forward`
pub async fn forward<P: Pods>(api: &Arc<Api<P>>, id: &str, call: Call<'_>) -> Answer {
    let Call { parts, mut query, .. } = call;
    let instance = query.text("instance");
    let port = query.text("port");
    let number = port.as_deref().and_then(|text| text.parse::<NonZeroU16>().ok());
    if number.is_none() {
        let shown = port.map(|text| text.chars().take(20).collect::<String>());
        let found = shown.map_or_else(|| "missing".to_owned(), |text| format!("found {text:?}"));
        query.refuse("port", format!("{found}; expected a whole number from 1 to 65535"));
    }
    query.finish()?;
    let port = number.map_or(0, NonZeroU16::get);
    if !asks(parts) {
        return Ok(upgrade_required());
    }
    let status = api.pods.get(id)?;
    let instance = target::one_instance(&status, instance.as_deref())?;
    let running = instance.containers.iter().find_map(|container| container.pid);
    // a pod in the host's network has its pod-init elsewhere
    let holder =
        if uses_host_network(&status.spec) { running } else { instance.init_pid.filter(|_| running.is_some()) };
    let Some(holder) = holder else {
        let detail = format!("no container of the instance {} of {id} runs", instance.id);
        return Err(NodeError::Conflict(detail).into());
    };
    // the HTTP server no longer counts this connection
    let place = parts.extensions.get::<Permit>().cloned();
    let connected = forward::connect(holder, &instance.id, port).await;
    let connected = connected.map_err(|detail| Refusal::new(StatusCode::BAD_GATEWAY, "no-connection", detail))?;
    let Some(upgrade) = parts.extensions.remove::<OnUpgrade>() else {
        return Err(Refusal::failed("this connection cannot be upgraded"));
    };
    let mut response = answer::empty();
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(FORWARD_PROTOCOL));
    let shutdown = api.shutdown.clone();
    tokio::spawn(async move {
        let _place = place;
        match upgrade.await {
            Ok(upgraded) => connected.serve(TokioIo::new(upgraded), &shutdown).await,
            Err(error) => tracing::debug!("a client has gone before its connection was forwarded: {error}"),
        }
    });
    Ok(response)
}

/// Whether the connection is to become a forwarded one.
fn asks(parts: &Parts) -> bool {
    let has = |name: &HeaderName, wanted: &str| {
        let values = parts.headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case(wanted))
    };
    parts.version == Version::HTTP_11 && has(&CONNECTION, "upgrade") && has(&UPGRADE, FORWARD_PROTOCOL)
}

fn upgrade_required() -> Response<Body> {
    let message = format!("expected `Connection: Upgrade` and `Upgrade: {FORWARD_PROTOCOL}` over HTTP/1.1");
    let violation = Violation::new("upgrade", message);
    let refusal = Refusal::new(StatusCode::UPGRADE_REQUIRED, "upgrade-required", violation.to_string());
    let mut response = refusal.with(vec![violation]).into_response();
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(FORWARD_PROTOCOL));
    response
}
