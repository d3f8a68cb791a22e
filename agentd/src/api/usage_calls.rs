//! What containers have used.

use std::sync::Arc;

use super::answer::Answer;
use super::backend::Pods;
use super::handle::{Api, Call};
use super::list::Page;

/// `GET /v1/usage`
pub async fn usage<P: Pods>(api: &Arc<Api<P>>, call: Call<'_>) -> Answer {
    let mut query = call.query;
    let pod = query.text("pod").map(|id| if id.starts_with('/') { id } else { format!("/{id}") });
    let page = Page::read(&mut query, "ContainerUsage");
    query.finish()?;
    let all = api.pods.usage(pod.as_deref()).await?;
    let seen = all.into_iter().filter(|one| api.sees(call.caller, Some(&one.pod)));
    page.answer(&call.parts.uri, seen.map(|one| (format!("{}/{}", one.instance, one.container), one)).collect())
}
