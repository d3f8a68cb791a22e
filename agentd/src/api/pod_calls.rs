//! Calls about pods.

use std::sync::Arc;
use std::time::Duration;

use agentd_api::parse;
use agentd_api::problem::Violation;
use agentd_api::status::{InstancePhase, PodStatus};
use hyper::body::Incoming;
use hyper::header::{HeaderValue, LOCATION};
use hyper::{HeaderMap, StatusCode};

use super::answer::{self, Answer, Refusal};
use super::backend::Pods;
use super::handle::{Api, apart};
use super::query::Query;
use super::route::pod_path;
use crate::node::Until;

const UNTIL: [(&str, Until); 2] = [("running", Until::Running), ("finished", Until::Finished)];

/// `POST /v1/pods`
pub async fn run<P: Pods>(api: &Arc<Api<P>>, mut query: Query, headers: &HeaderMap, body: &mut Incoming) -> Answer {
    let until = query.word("wait", &UNTIL);
    let timeout = query.seconds("timeout");
    if timeout.is_some() && until.is_none() {
        query.refuse("timeout", "found without `wait`; add wait=running or wait=finished");
    }
    query.finish()?;
    let text = api.read(headers, body).await?;
    let spec = parse::pod(&text).map_err(Refusal::invalid_pod)?;
    let id = spec.id.clone();
    let pods = Arc::clone(&api.pods);
    let mut status = apart(async move { pods.run(spec).await }).await?;
    if let Some(until) = until {
        status = wait_for(api, &id, until, timeout).await?;
    }
    let mut response = answer::json(StatusCode::CREATED, &status)?;
    if let Ok(location) = HeaderValue::try_from(pod_path(&id)) {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

/// `PUT /v1/pods/{id}`
pub async fn update<P: Pods>(api: &Arc<Api<P>>, id: String, headers: &HeaderMap, body: &mut Incoming) -> Answer {
    let text = api.read(headers, body).await?;
    let spec = parse::pod(&text).map_err(Refusal::invalid_pod)?;
    if spec.id != id {
        let message = format!("found {:?}, expected {id:?}, the id in the path", spec.id);
        return Err(Refusal::invalid_pod(vec![Violation::new("id", message)]));
    }
    let pods = Arc::clone(&api.pods);
    let status = apart(async move { pods.update(spec).await }).await?;
    answer::json(StatusCode::OK, &status)
}

/// `DELETE /v1/pods/{id}`
pub async fn remove<P: Pods>(api: &Arc<Api<P>>, id: String) -> Answer {
    let pods = Arc::clone(&api.pods);
    apart(async move { pods.remove(&id).await }).await?;
    Ok(answer::empty())
}

/// `GET /v1/pods/{id}/wait`
pub async fn wait<P: Pods>(api: &Arc<Api<P>>, id: &str, mut query: Query) -> Answer {
    let until = query.word("until", &UNTIL).unwrap_or(Until::Running);
    let timeout = query.seconds("timeout");
    query.finish()?;
    let status = wait_for(api, id, until, timeout).await?;
    answer::json(StatusCode::OK, &status)
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
        format!("instance {} is {}{message}", instance.id, phase(instance.phase))
    });
    let instances = instances.collect::<Vec<_>>().join(", ");
    let found = if instances.is_empty() { "it has no instance".to_owned() } else { instances };
    Refusal::timed_out(format!("the pod {} is not {wanted} after {} s: {found}", status.id, timeout.as_secs_f64()))
}

/// The word for a phase.
pub fn phase(phase: InstancePhase) -> &'static str {
    match phase {
        InstancePhase::Starting => "starting",
        InstancePhase::Running => "running",
        InstancePhase::Degraded => "degraded",
        InstancePhase::Backoff => "backoff",
        InstancePhase::Stopping => "stopping",
        InstancePhase::Finished => "finished",
        InstancePhase::Failed => "failed",
    }
}
