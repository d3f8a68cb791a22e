//! Metrics: `/metrics` for scrapers, `/v1/metrics` for one pod or container, `/v1/observe` for how signals are had.
//!
//! What is written is written on a thread that may block. Answers are compressed for clients on other hosts that accept it;
//! on this host that would only cost time.

use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;

use agentd_api::message::{Observation, ObservedMap, ObservedProgram, ObservedSignal};
use agentd_metrics::encode::{Format, json};
use agentd_metrics::model::Scope;
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, HeaderValue, VARY};
use hyper::{HeaderMap, StatusCode};

use super::answer::{self, Answer, Refusal, whole};
use super::backend::Pods;
use super::handle::{Api, Call};
use crate::access::Source;
use crate::access::policy::Verb;
use crate::observe::gather::{Gathered, Missed, part};
use crate::observe::watcher::Watcher;
use crate::profile::Figures;
use crate::target;

impl From<Missed> for Refusal {
    fn from(missed: Missed) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "metrics-late", missed.to_string())
    }
}

/// `GET /metrics`
pub async fn exposition<P: Pods>(api: &Arc<Api<P>>, call: Call<'_>) -> Answer {
    call.query.finish()?;
    let far = match &call.caller.source {
        Source::Unix { .. } => false,
        Source::Tls { address } | Source::Plain { address } => is_far(address.ip()),
    };
    let gathered = api.pods.gather().await?;
    written(gathered, &call.parts.headers, far, api.pods.compatible()).await
}

/// Whether compression is worth its time for a client with this address.
pub fn is_far(address: IpAddr) -> bool {
    !address.to_canonical().is_loopback()
}

/// All of a gathering, in the format and encoding that the client takes. `compatible`: with the names of other agents.
pub async fn written(gathered: Arc<Gathered>, headers: &HeaderMap, far: bool, compatible: bool) -> Answer {
    let format = Format::negotiate(text(headers, &ACCEPT));
    let zip = far && accepts_gzip(text(headers, &ACCEPT_ENCODING));
    let write = move || {
        gathered.read(|batch| {
            let text = format.write(batch, |family| compatible || family.otel.is_some());
            if zip { gzip(text.as_bytes()).map_err(|error| error.to_string()) } else { Ok(text.into_bytes()) }
        })
    };
    let bytes = tokio::task::spawn_blocking(write).await.map_err(|error| Refusal::failed(error.to_string()))?;
    let bytes = bytes.map_err(|error| Refusal::failed(format!("metrics cannot be compressed: {error}")))?;
    let mut response = whole(StatusCode::OK, format.content_type(), bytes);
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
    if zip {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Ok(response)
}

fn text<'a>(headers: &'a HeaderMap, name: &hyper::header::HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Whether a client that sends this header takes gzip: it is named, or everything is, and not with a weight of 0.
fn accepts_gzip(header: Option<&str>) -> bool {
    let mut any = false;
    for part in header.unwrap_or_default().split(',') {
        let mut words = part.split(';').map(str::trim);
        let name = words.next().unwrap_or_default();
        let refused = words.filter_map(|word| word.strip_prefix("q=")).any(|q| q.trim().parse() == Ok(0.0));
        if name.eq_ignore_ascii_case("gzip") {
            return !refused;
        }
        any |= name == "*" && !refused;
    }
    any
}

fn gzip(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 8), Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// `GET /v1/metrics`
pub async fn metrics<P: Pods>(api: &Arc<Api<P>>, call: Call<'_>) -> Answer {
    let mut query = call.query;
    let pod = query.text("pod").map(|id| if id.starts_with('/') { id } else { format!("/{id}") });
    let (instance, container) = (query.text("instance"), query.text("container"));
    let words = [("json", None), ("prometheus", Some(Format::Prometheus)), ("openmetrics", Some(Format::OpenMetrics))];
    let format = query.word("format", &words).flatten();
    query.finish()?;
    let status = pod.as_deref().map(|id| api.pods.get(id)).transpose()?;
    if let Some(status) = &status {
        api.authorize(call.caller, Verb::View, Some(&status.spec))?;
    }
    let gathered = api.pods.gather().await?;
    // who may see what is asked once for each pod, and outside of the thread that writes
    let shared = Arc::clone(&gathered);
    let scopes = tokio::task::spawn_blocking(move || shared.read(|batch| batch.scopes().to_vec())).await;
    let scopes: Vec<Scope> = scopes.map_err(|error| Refusal::failed(error.to_string()))?;
    let mut allowed: Vec<(Option<String>, bool)> = Vec::new();
    for scope in &scopes {
        if allowed.iter().all(|(known, _)| *known != scope.pod) {
            allowed.push((scope.pod.clone(), api.sees(call.caller, scope.pod.as_deref())));
        }
    }
    let label =
        |scope: &Scope, name: &str| scope.labels.iter().find(|(known, _)| *known == name).map(|(_, v)| v.clone());
    let named = |scope: &Scope| {
        let of = |name: &str| scope.resource.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str());
        (pod.is_none() || scope.pod == pod)
            && instance.as_deref().is_none_or(|wanted| of("service.instance.id") == Some(wanted))
            && container.as_deref().is_none_or(|wanted| label(scope, "container").as_deref() == Some(wanted))
    };
    let seen = |scope: &Scope| allowed.iter().any(|(pod, seen)| *seen && *pod == scope.pod);
    let keep: Vec<bool> = scopes.iter().map(|scope| seen(scope) && named(scope)).collect();
    if !keep.contains(&true) && (pod.is_some() || instance.is_some() || container.is_some()) {
        let named = |status| target::known(status, instance.as_deref(), container.as_deref());
        status.as_ref().map_or(Ok(()), named)?;
        return Err(nothing(status.as_ref().map(|status| status.id.as_str())));
    }
    let (media, body) = tokio::task::spawn_blocking(move || {
        gathered.read(|batch| {
            let chosen: Vec<&Scope> =
                batch.scopes().iter().zip(&keep).filter(|(_, keep)| **keep).map(|(s, _)| s).collect();
            let keep = |scope: &Scope| chosen.iter().any(|one| std::ptr::eq(*one, scope));
            match format {
                Some(format) => (format.content_type(), format.write(&part(batch, keep), |_| true)),
                None => ("application/json", json::write(batch, keep)),
            }
        })
    })
    .await
    .map_err(|error| Refusal::failed(error.to_string()))?;
    Ok(whole(StatusCode::OK, media, body))
}

/// Why there is nothing of what is named: of this pod, or of any that the caller may see.
fn nothing(pod: Option<&str>) -> Refusal {
    Refusal::not_found(match pod {
        Some(id) => format!(
            "nothing of {id} is measured now: what is asked for does not run; `agentctl pod inspect {id}` says why"
        ),
        None => "nothing that runs, or ended a short while ago, has this name; `agentctl top --once` lists what runs"
            .to_owned(),
    })
}

/// `GET /v1/observe`
pub async fn observe<P: Pods>(api: &Arc<Api<P>>) -> Answer {
    let found = api.pods.observation().await.map_err(Refusal::failed)?;
    answer::json(StatusCode::OK, &found)
}

/// How signals are had now. Blocking, microseconds.
pub fn observation(watcher: &Watcher, profiles: &Figures) -> Observation {
    let (containers, ended) = watcher.registry.count();
    Observation {
        signals: watcher.signals(profiles).into_iter().map(signal).collect(),
        programs: watcher
            .costs()
            .into_iter()
            .map(|cost| ObservedProgram {
                name: cost.name,
                group: cost.group.name().to_owned(),
                id: cost.id,
                runs: cost.runs,
                run_time_ns: cost.run_time,
                missed: cost.missed,
            })
            .collect(),
        maps: watcher
            .maps()
            .into_iter()
            .map(|map| ObservedMap { name: map.name, capacity: map.capacity, entries: map.entries, bytes: map.bytes })
            .collect(),
        containers: containers as u64,
        ended: ended as u64,
    }
}

/// A signal as it is told.
pub fn signal(state: agentd_ebpf::observe::SignalState) -> ObservedSignal {
    ObservedSignal {
        signal: state.signal.name().to_owned(),
        rung: state.rung.name().to_owned(),
        group: state.signal.group().name().to_owned(),
        why: state.why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_for_those_who_take_it() {
        for (header, accepted) in [
            (None, false),
            (Some(""), false),
            (Some("identity"), false),
            (Some("gzip"), true),
            (Some("br, GZIP;q=0.5"), true),
            (Some("gzip;q=0, *"), false),
            (Some("deflate, *;q=0.1"), true),
            (Some("*;q=0"), false),
        ] {
            assert_eq!(accepts_gzip(header), accepted, "{header:?}");
        }
        let mut read = String::new();
        let packed = gzip(b"a 1\n").unwrap();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&packed[..]), &mut read).unwrap();
        assert_eq!(read, "a 1\n");
    }

    #[test]
    fn only_other_hosts_are_far() {
        for (address, far) in [("127.0.0.1", false), ("::1", false), ("::ffff:127.0.0.1", false), ("192.0.2.1", true)] {
            assert_eq!(is_far(address.parse().unwrap()), far, "{address}");
        }
    }
}
