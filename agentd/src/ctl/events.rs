//! `agentctl events`.

use agentd_api::message::Event;
use hyper::Method;

use super::client::{Client, read};
use super::failure::{Failure, Result, UNREACHABLE, clean};
use super::output::{self, Output};
use super::table::Columns;

/// `agentctl events`
pub async fn events(client: &Client, output: &mut Output, follow: bool, after: Option<u64>) -> Result<()> {
    let after = after.map(|id| format!("after={id}&")).unwrap_or_default();
    if follow {
        return output::follow(follow_on(client, output, &after)).await;
    }
    let body = client.call(Method::GET, &format!("/v1/events?{after}follow=false"), None).await?;
    if output.json() {
        return output.body(&body);
    }
    let events: Vec<Event> = read(&body)?;
    let mut columns = Columns::new(&["ID", "TIME", "KIND", "SUBJECT", "MESSAGE"]);
    for event in &events {
        columns.row([
            event.id.to_string(),
            event.time.clone(),
            event.kind.clone(),
            subject(event),
            event.message.clone(),
        ]);
    }
    columns.right(&[0]);
    output.line(&columns.text())
}

async fn follow_on(client: &Client, output: &mut Output, after: &str) -> Result<()> {
    let accept = [("accept", "text/event-stream")];
    let mut stream = client.stream(Method::GET, &format!("/v1/events?{after}follow=true"), &accept, None).await?;
    let mut kind = Vec::new();
    while let Some(line) = stream.line().await? {
        if let Some(name) = line.strip_prefix(b"event: ") {
            kind = name.to_vec();
        } else if let Some(data) = line.strip_prefix(b"data: ") {
            if kind == b"lost" {
                let message = String::from_utf8_lossy(data).into_owned();
                Failure::failed(format!("events are missing, the daemon no longer has them: {message}")).tell();
                continue;
            }
            if output.json() {
                output.body(&[data, b"\n"].concat())?;
                continue;
            }
            let event: Event = read(data)?;
            let subject = subject(&event);
            let Event { id, time, kind, message, .. } = &event;
            output.line(&clean(&format!("{id:>6}  {time:<30}  {kind:<20}  {subject}  {message}")))?;
        }
    }
    Err(Failure::new(UNREACHABLE, "the daemon has closed the stream of events: it is stopping"))
}

/// `/pod instance/container`, as far as the event names them.
fn subject(event: &Event) -> String {
    let instance = match (&event.instance, &event.container) {
        (Some(instance), Some(container)) => Some(format!("{instance}/{container}")),
        (Some(name), None) | (None, Some(name)) => Some(name.clone()),
        (None, None) => None,
    };
    event.pod.clone().into_iter().chain(instance).collect::<Vec<_>>().join(" ")
}
