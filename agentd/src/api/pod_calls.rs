//! Calls about pods.

use std::sync::Arc;
use std::time::Duration;

use agentd_api::parse;
use agentd_api::pod::PodSpec;
use agentd_api::problem::Violation;
use agentd_api::status::{InstancePhase, PodStatus};
use hyper::header::{CONTENT_TYPE, HeaderValue, IF_MATCH, IF_NONE_MATCH, LOCATION};
use hyper::{HeaderMap, Response, StatusCode};
use jiff::Timestamp;

use super::answer::{self, Answer, Body, Refusal};
use super::backend::Pods;
use super::entity_tag::{Tags, entity_tag, entity_tags, insert_tag};
use super::handle::{Api, Call, apart};
use super::idempotency::{self, Claim, Earlier, Kept, Ticket};
use super::list::{Fields, Page, Pattern, Selector};
use super::query::Query;
use super::route::pod_path;
use crate::node::Until;

const UNTIL: [(&str, Until); 2] = [("running", Until::Running), ("finished", Until::Finished)];

/// `GET /v1/pods`
pub fn list<P: Pods>(api: &Arc<Api<P>>, call: Call<'_>) -> Answer {
    let mut query = call.query;
    let mut labels = Vec::new();
    for text in query.all("label") {
        match Selector::parse(&text) {
            Ok(selector) => labels.push(selector),
            Err(fault) => query.refuse("label", fault),
        }
    }
    let phase = query.word("phase", &PHASES.map(|phase| (phase.as_str(), phase)));
    let id = Pattern::read(&mut query, "id").map(Pattern::of_pod);
    let page = Page::read(&mut query, "PodStatus");
    query.finish()?;
    let wanted = |pod: &PodStatus| {
        api.sees_spec(call.caller, &pod.spec)
            && labels.iter().all(|selector| selector.matches(&pod.spec.labels))
            && id.as_ref().is_none_or(|id| id.matches(&pod.id))
            && phase.is_none_or(|phase| pod.instances.iter().any(|instance| instance.phase == phase))
    };
    let pods = api.pods.list().into_iter().filter(wanted);
    page.answer(&call.parts.uri, pods.map(|pod| (pod.id.clone(), pod)).collect())
}

/// `GET /v1/pods/{id}`
pub fn get<P: Pods>(api: &Arc<Api<P>>, id: &str, call: Call<'_>) -> Answer {
    let mut query = call.query;
    let fields = Fields::read(&mut query, "PodStatus");
    query.finish()?;
    let known = entity_tags(&call.parts.headers, &IF_NONE_MATCH)?;
    let status = api.pods.get(id)?;
    let tag = entity_tag(&status);
    let has = |known: &[String]| known.iter().any(|known| known.strip_prefix("W/").unwrap_or(known) == tag);
    let mut response = match (&known, &fields) {
        (Tags::Any, _) => not_modified(),
        (Tags::Some(known), _) if has(known) => not_modified(),
        (_, Some(fields)) => answer::json(StatusCode::OK, &fields.of(&status)?)?,
        (_, None) => answer::json(StatusCode::OK, &status)?,
    };
    insert_tag(&tag, response.headers_mut());
    Ok(response)
}

fn not_modified() -> Response<Body> {
    let mut response = answer::empty();
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response
}

/// `POST /v1/pods`
pub async fn run<P: Pods>(api: &Arc<Api<P>>, call: Call<'_>) -> Answer {
    let mut query = call.query;
    let until = query.word("wait", &UNTIL);
    let timeout = query.seconds("timeout");
    if timeout.is_some() && until.is_none() {
        query.refuse("timeout", "found without `wait`; add wait=running or wait=finished");
    }
    query.finish()?;
    let key = idempotency::key(&call.parts.headers)?;
    let text = api.read(&call.parts.headers, call.body).await?;
    let spec = parse::pod(&text).map_err(Refusal::invalid_pod)?;
    api.check_run(call.caller, &spec)?;
    if let Some(key) = key {
        let ticket = match idempotency::claim(api, call.caller, &key, call.parts, &text).await? {
            Claim::Answered(answer) => return answer.into_response(true),
            Claim::Mine(ticket) => ticket,
        };
        let shared = Arc::clone(api);
        let work = async move { run_with_key(&shared, ticket, spec, until, timeout).await };
        return apart(work).await?.into_response(false);
    }
    let id = spec.id.clone();
    let pods = Arc::clone(&api.pods);
    let mut status = apart(async move { pods.run(spec).await }).await?;
    if let Some(until) = until {
        status = wait_for(api, &id, until, timeout).await?;
    }
    created(&status)?.into_response(false)
}

/// Runs a pod for a claimed key: once, whatever happens to the daemon and to the client meanwhile. The wait is no part of
/// it: one that ended without its pod being so is done again for the next call with the key.
async fn run_with_key<P: Pods>(
    api: &Arc<Api<P>>,
    mut ticket: Ticket,
    spec: PodSpec,
    until: Option<Until>,
    timeout: Option<Duration>,
) -> Result<Kept, Refusal> {
    let id = spec.id.clone();
    let mut answer = match ticket.earlier().clone() {
        Earlier::Made(answer) => answer,
        earlier => {
            let found = match earlier {
                Earlier::Begun(at) => made_since(api, &spec, at),
                _ => None,
            };
            let status = match found {
                Some(status) => status,
                None => match api.pods.run(spec).await {
                    Ok(status) => status,
                    Err(error) => {
                        ticket.forget();
                        return Err(error.into());
                    }
                },
            };
            let answer = created(&status)?;
            ticket.made(answer.clone());
            answer
        }
    };
    if let Some(until) = until {
        answer = created(&wait_for(api, &id, until, timeout).await?)?;
    }
    ticket.done(answer.clone());
    Ok(answer)
}

/// The pod that a daemon which is no more has made of this specification since then.
fn made_since<P: Pods>(api: &Arc<Api<P>>, spec: &PodSpec, since: Timestamp) -> Option<PodStatus> {
    let status = api.pods.get(&spec.id).ok()?;
    let version = status.spec.version.as_ref()?;
    let alike = PodSpec { version: None, ..status.spec.clone() } == PodSpec { version: None, ..spec.clone() };
    let later = version.parse::<Timestamp>().is_ok_and(|version| version >= since);
    (alike && later).then_some(status)
}

/// The answer to the creation of a pod.
fn created(status: &PodStatus) -> Result<Kept, Refusal> {
    let text = serde_json::to_string(status);
    let text = text.map_err(|error| Refusal::failed(format!("the answer cannot be written: {error}")))?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    insert_tag(&entity_tag(status), &mut headers);
    if let Ok(location) = HeaderValue::try_from(pod_path(&status.id)) {
        headers.insert(LOCATION, location);
    }
    Ok(Kept::new(StatusCode::CREATED, &headers, &text))
}

/// `PUT /v1/pods/{id}`
pub async fn update<P: Pods>(api: &Arc<Api<P>>, id: String, call: Call<'_>) -> Answer {
    call.query.finish()?;
    let expected = entity_tags(&call.parts.headers, &IF_MATCH)?.versions();
    let text = api.read(&call.parts.headers, call.body).await?;
    let spec = parse::pod(&text).map_err(Refusal::invalid_pod)?;
    if spec.id != id {
        let message = format!("found {:?}, expected {id:?}, the id in the path", spec.id);
        return Err(Refusal::invalid_pod(vec![Violation::new("id", message)]));
    }
    api.check_run(call.caller, &spec)?;
    let pods = Arc::clone(&api.pods);
    let status = apart(async move { pods.update(spec, expected.as_deref()).await }).await?;
    let mut response = answer::json(StatusCode::OK, &status)?;
    insert_tag(&entity_tag(&status), response.headers_mut());
    Ok(response)
}

/// `DELETE /v1/pods/{id}`
pub async fn remove<P: Pods>(api: &Arc<Api<P>>, id: String, headers: &HeaderMap) -> Answer {
    let expected = entity_tags(headers, &IF_MATCH)?.versions();
    let pods = Arc::clone(&api.pods);
    apart(async move { pods.remove(&id, expected.as_deref()).await }).await?;
    Ok(answer::empty())
}

/// `GET /v1/pods/{id}/wait`
pub async fn wait<P: Pods>(api: &Arc<Api<P>>, id: &str, mut query: Query) -> Answer {
    let until = query.word("until", &UNTIL).unwrap_or(Until::Running);
    let timeout = query.seconds("timeout");
    query.finish()?;
    let status = wait_for(api, id, until, timeout).await?;
    let mut response = answer::json(StatusCode::OK, &status)?;
    insert_tag(&entity_tag(&status), response.headers_mut());
    Ok(response)
}

async fn wait_for<P: Pods>(
    api: &Arc<Api<P>>,
    id: &str,
    until: Until,
    timeout: Option<Duration>,
) -> Result<PodStatus, Refusal> {
    let enough = async {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        // what is reached already is told even with a time-out of 0
        biased;
        status = api.pods.wait(id, until) => Ok(status?),
        () = enough => Err(late(&api.pods.get(id)?, until, timeout.unwrap_or_default())),
        () = api.shutdown.cancelled() => Err(Refusal::stopping()),
    }
}

/// Says what a pod is doing instead of what was waited for.
fn late(status: &PodStatus, until: Until, timeout: Duration) -> Refusal {
    let wanted = match until {
        Until::Running => "running",
        Until::Finished => "finished",
    };
    let instances = status.instances.iter().take(10).map(|instance| {
        let message = instance.message.as_deref().map(|message| format!(" ({message})")).unwrap_or_default();
        format!("instance {} is {}{message}", instance.id, instance.phase.as_str())
    });
    let instances = instances.collect::<Vec<_>>().join(", ");
    let found = if instances.is_empty() { "it has no instance".to_owned() } else { instances };
    Refusal::timed_out(format!("the pod {} is not {wanted} after {} s: {found}", status.id, timeout.as_secs_f64()))
}

/// Every phase.
const PHASES: [InstancePhase; 7] = [
    InstancePhase::Starting,
    InstancePhase::Running,
    InstancePhase::Degraded,
    InstancePhase::Backoff,
    InstancePhase::Stopping,
    InstancePhase::Finished,
    InstancePhase::Failed,
];
