//! `GET /v1/events`: what has happened, once or as it happens.

use std::sync::Arc;
use std::time::Duration;

use agentd_api::message::Event;
use agentd_api::problem::Violation;
use hyper::header::{ACCEPT, HeaderName};
use hyper::{HeaderMap, StatusCode};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::answer::{self, Answer, Refusal};
use super::backend::Pods;
use super::handle::Api;
use super::query::Query;
use super::stream::{self, Pieces};
use crate::events::Events;

/// Where a follower that comes back left off.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// A comment is sent after this much silence, so that both sides see whether the other is there.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// `GET /v1/events`
pub fn events<P: Pods>(api: &Arc<Api<P>>, mut query: Query, headers: &HeaderMap) -> Answer {
    let after = query.number("after", u64::MAX);
    let follow = query.flag("follow");
    query.finish()?;
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let wants_stream =
        accept.split(',').any(|kind| kind.split(';').next().unwrap_or_default().trim() == "text/event-stream");
    let resumed = match headers.get(LAST_EVENT_ID) {
        None => None,
        Some(value) => {
            let id = value.to_str().ok().and_then(|text| text.trim().parse::<u64>().ok());
            Some(id.ok_or_else(|| {
                let message = "expected the whole number that the last event had as its id";
                Refusal::bad_request(vec![Violation::new("last-event-id", message)])
            })?)
        }
    };
    // a browser's EventSource repeats the query when it comes back, so that the header is the newer
    let after = resumed.or(after).unwrap_or_default();
    if !follow.unwrap_or(wants_stream) {
        return answer::json(StatusCode::OK, &since(api.pods.events(), after).0);
    }
    let (pieces, response) = stream::open("text/event-stream", &api.shutdown);
    tokio::spawn(follow_on(Arc::clone(&api.pods), after, pieces));
    Ok(response)
}

/// The kept events after an id, the id to go on after, and what follows. An id that is higher than any is from an earlier
/// run of the daemon: all events are newer then.
fn since(events: &Events, after: u64) -> (Vec<Event>, u64, broadcast::Receiver<Event>) {
    let (kept, receiver) = events.after(after);
    if let Some(last) = kept.last() {
        let last = last.id;
        return (kept, last, receiver);
    }
    let (all, receiver) = events.after(0);
    let newest = all.last().map_or(0, |event| event.id);
    let kept = all.into_iter().filter(|event| event.id > after || newest < after).collect();
    (kept, newest, receiver)
}

async fn follow_on<P: Pods>(pods: Arc<P>, mut last: u64, pieces: Pieces) {
    loop {
        let (kept, newest, mut channel) = since(pods.events(), last);
        let mut text = Vec::new();
        if let Some(first) = kept.first()
            && last > 0
            && first.id > last + 1
        {
            let (from, to) = (last + 1, first.id - 1);
            text.extend_from_slice(format!("event: lost\ndata: {{\"from\":{from},\"to\":{to}}}\n\n").as_bytes());
        }
        last = newest;
        for event in &kept {
            write(event, &mut text);
        }
        if !text.is_empty() && !pieces.give(text).await {
            return;
        }
        loop {
            let mut text = Vec::new();
            tokio::select! {
                () = pieces.unwanted() => return,
                () = tokio::time::sleep(HEARTBEAT) => text.extend_from_slice(b":\n\n"),
                received = channel.recv() => match received {
                    Ok(event) if event.id > last => {
                        last = event.id;
                        write(&event, &mut text);
                    }
                    Ok(_) => continue,
                    // too slow for the channel: the ring has more
                    Err(RecvError::Lagged(_)) => break,
                    Err(RecvError::Closed) => return,
                },
            }
            if !pieces.give(text).await {
                return;
            }
        }
    }
}

fn write(event: &Event, text: &mut Vec<u8>) {
    // an event is text and numbers only, which serialise; JSON has no line breaks of its own
    let data = serde_json::to_string(event).unwrap_or_default();
    let kind: String = event.kind.chars().filter(|c| !c.is_control()).collect();
    text.extend_from_slice(format!("id: {}\nevent: {kind}\ndata: {data}\n\n", event.id).as_bytes());
}
