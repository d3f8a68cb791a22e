//! `agentctl events`.

use std::time::Duration;

use agentd_api::message::Event;
use hyper::Method;
use tokio::time::Instant;

use super::arguments::Events;
use super::client::{Client, Stream, read};
use super::colour;
use super::failure::{Failure, Result, UNREACHABLE, clean};
use super::output::{self, Output};
use super::table::Columns;
use crate::api::route::encode;
use crate::events::KINDS;

/// First wait before a lost connection is made again; each further one is twice as long, ...
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// ... but no longer than this.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// `agentctl events`
pub async fn events(client: &Client, output: &mut Output, wanted: &Events) -> Result<()> {
    let query = query(wanted)?;
    if wanted.follow {
        let mut follower = Follower { client, wanted, query, last: None };
        return output::follow(follower.follow(output)).await;
    }
    let body = client.call(Method::GET, &format!("/v1/events?{query}follow=false"), None).await?;
    if output.json() {
        return output.body(&body);
    }
    let events: Vec<Event> = read(&body)?;
    if output.names() {
        return events.iter().try_for_each(|event| output.name(&event.id.to_string()));
    }
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
    columns.paint(2, colour::of_kind);
    output.table(columns)
}

/// What is asked for, as the beginning of a query.
fn query(wanted: &Events) -> Result<String> {
    let mut terms = Vec::new();
    terms.extend(wanted.after.map(|id| format!("after={id}&")));
    terms.extend(wanted.pod.as_ref().map(|pod| format!("pod={}&", encode(pod))));
    for kind in &wanted.kind {
        let Some(start) = kind.strip_suffix('*') else {
            terms.push(format!("kind={}&", encode(kind)));
            continue;
        };
        let known: Vec<&str> = KINDS.iter().map(|(kind, _)| *kind).filter(|kind| kind.starts_with(start)).collect();
        if known.is_empty() {
            return Err(Failure::bad_input(format!("--kind: no kind of event begins with {start:?}")));
        }
        terms.extend(known.iter().map(|kind| format!("kind={kind}&")));
    }
    Ok(terms.concat())
}

/// Follows events over lost connections and restarts of the daemon: ids go on over both.
struct Follower<'a> {
    client: &'a Client,
    wanted: &'a Events,
    query: String,
    /// Id of the last event that came, or that the daemon has passed over because it was not asked for.
    last: Option<String>,
}

impl Follower<'_> {
    async fn follow(&mut self, output: &mut Output) -> Result<()> {
        let patience = Duration::from_secs_f64(self.wanted.reconnect);
        // a daemon that cannot be reached at all is told at once
        let mut stream = Some(self.open().await?);
        let (mut lost, mut wait) = (Instant::now(), FIRST_WAIT);
        loop {
            let ended = match stream.take() {
                Some(mut opened) => {
                    let ended = self.tell(&mut opened, output).await;
                    (lost, wait) = (Instant::now(), FIRST_WAIT);
                    ended
                }
                None => self.open().await.map(|opened| stream = Some(opened)),
            };
            let failure = match ended {
                Ok(()) if stream.is_some() => continue,
                Ok(()) => Failure::new(UNREACHABLE, "the daemon has closed the stream of events: it is stopping"),
                Err(failure) => failure,
            };
            // what the daemon refuses now it refuses later, too
            if failure.code() != UNREACHABLE || lost.elapsed() + wait > patience {
                return Err(failure);
            }
            if wait == FIRST_WAIT {
                let place = self.client.transport()?.told();
                let seconds = self.wanted.reconnect;
                Failure::failed(format!("{place}: the stream of events broke off; trying again for {seconds} s"))
                    .tell();
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    async fn open(&self) -> Result<Stream> {
        let mut headers = vec![("accept", "text/event-stream")];
        // counts before `after`
        headers.extend(self.last.as_ref().map(|last| ("last-event-id", last.as_str())));
        let path = format!("/v1/events?{}follow=true", self.query);
        Ok(self.client.stream(Method::GET, &path, &headers, None).await?)
    }

    /// Tells what comes until the stream ends. An event is told once it is complete, which an empty line says.
    async fn tell(&mut self, stream: &mut Stream, output: &mut Output) -> Result<()> {
        let (mut kind, mut id, mut data) = (Vec::new(), None, None);
        while let Some(line) = stream.line().await? {
            if let Some(name) = line.strip_prefix(b"event: ") {
                kind = name.to_vec();
            } else if let Some(number) = line.strip_prefix(b"id: ") {
                let number = String::from_utf8_lossy(number);
                id = number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.into_owned());
            } else if let Some(text) = line.strip_prefix(b"data: ") {
                data = Some(text.to_vec());
            } else if line.is_empty() {
                match data.take() {
                    Some(data) if kind == b"lost" => {
                        let what = String::from_utf8_lossy(&data).into_owned();
                        Failure::failed(format!("events are missing, the daemon no longer has them: {what}")).tell();
                    }
                    Some(data) => show(&data, output)?,
                    None => {}
                }
                self.last = id.take().or(self.last.take());
                kind.clear();
            }
        }
        Ok(())
    }
}

fn show(data: &[u8], output: &mut Output) -> Result<()> {
    let event: Event = read(data)?;
    if output.json() {
        return output.body(&[data, b"\n"].concat());
    }
    if output.names() {
        return output.name(&event.id.to_string());
    }
    let kind = output.paint(&format!("{:<20}", clean(&event.kind)), colour::of_kind(&event.kind));
    let (id, time, subject, message) = (event.id, clean(&event.time), clean(&subject(&event)), clean(&event.message));
    output.line(&format!("{id:>6}  {time:<30}  {kind}  {subject}  {message}"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_in_the_query() {
        let wanted = |kinds: &[&str], pod: Option<&str>, after| Events {
            follow: false,
            after,
            kind: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
            pod: pod.map(str::to_owned),
            reconnect: 0.0,
        };
        assert_eq!(query(&wanted(&[], None, None)).unwrap(), "");
        let all = query(&wanted(&["pod-removed", "agent-*"], Some("/app/web"), Some(7))).unwrap();
        assert_eq!(all, "after=7&pod=%2Fapp%2Fweb&kind=pod-removed&kind=agent-recovered&");
        assert!(query(&wanted(&["container-*"], None, None)).unwrap().matches("kind=container-").count() > 3);
        assert_eq!(query(&wanted(&["nope-*"], None, None)).unwrap_err().code(), 2);
    }
}
