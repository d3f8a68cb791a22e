//! `GET /v1/events`: what has happened, once or as it happens.

use std::sync::Arc;
use std::time::Duration;

use agentd_api::message::Event;
use agentd_api::problem::Violation;
use hyper::header::{ACCEPT, HeaderName, HeaderValue, LINK};
use hyper::{StatusCode, Uri};
use tokio::sync::broadcast::error::RecvError;

use super::answer::{self, Answer, Refusal};
use super::backend::Pods;
use super::handle::{Api, Call};
use super::list::{self, Fields};
use super::query::Query;
use super::stream::{self, Pieces};
use crate::access::Caller;
use crate::events::{KINDS, Since};

/// Where a follower that comes back left off.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// First and last id of the events that a list leaves out because they are gone.
const EVENTS_LOST: HeaderName = HeaderName::from_static("events-lost");

/// A comment is sent after this much silence, so that both sides see whether the other is there.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Which events are asked for.
#[derive(Debug, Default)]
struct Wanted {
    kinds: Vec<String>,
    pod: Option<String>,
    instance: Option<String>,
    container: Option<String>,
    fields: Option<Fields>,
}

impl Wanted {
    fn read(query: &mut Query) -> Self {
        let kinds = query.all("kind");
        for kind in kinds.iter().filter(|kind| KINDS.iter().all(|(known, _)| known != kind)) {
            let known: Vec<&str> = KINDS.iter().map(|(known, _)| *known).collect();
            let shown: String = kind.chars().take(80).collect();
            query.refuse("kind", format!("found {shown:?}, expected one of: {}", known.join(", ")));
        }
        // a pod's id has its leading slash left out in paths, and may have here
        let pod = query.text("pod").map(|id| if id.starts_with('/') { id } else { format!("/{id}") });
        let [instance, container] = ["instance", "container"].map(|name| query.text(name));
        Self { kinds, pod, instance, container, fields: Fields::read(query, "Event") }
    }

    fn has(&self, event: &Event) -> bool {
        let same = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        (self.kinds.is_empty() || self.kinds.contains(&event.kind))
            && same(&self.pod, &event.pod)
            && same(&self.instance, &event.instance)
            && same(&self.container, &event.container)
    }
}

/// `GET /v1/events`
pub fn events<P: Pods>(api: &Arc<Api<P>>, call: Call<'_>) -> Answer {
    let (mut query, headers) = (call.query, &call.parts.headers);
    let after = query.number("after", u64::MAX);
    let follow = query.flag("follow");
    let wanted = Wanted::read(&mut query);
    let limit = list::limit(&mut query);
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let wants_stream =
        accept.split(',').any(|kind| kind.split(';').next().unwrap_or_default().trim() == "text/event-stream");
    let follow = follow.unwrap_or(wants_stream);
    if follow && limit.is_some() {
        query.refuse("limit", "found with `follow`, which has no end; leave one of them out");
    }
    query.finish()?;
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
    let wanted = For { api: Arc::clone(api), caller: call.caller.clone(), wanted };
    if !follow {
        return once(api.pods.events().since(after), &wanted, limit, &call.parts.uri);
    }
    let (pieces, response) = stream::open("text/event-stream", &api.shutdown);
    tokio::spawn(follow_on(after, wanted, pieces));
    Ok(response)
}

/// The events that a caller asks for and may see.
struct For<P> {
    api: Arc<Api<P>>,
    caller: Caller,
    wanted: Wanted,
}

impl<P: Pods> For<P> {
    fn has(&self, event: &Event) -> bool {
        self.wanted.has(event) && self.api.sees(&self.caller, event.pod.as_deref())
    }
}

/// The events as a list.
fn once<P: Pods>(since: Since, wanted: &For<P>, limit: Option<usize>, uri: &Uri) -> Answer {
    let mut events = since.events;
    events.retain(|event| wanted.has(event));
    let more = limit.is_some_and(|limit| events.len() > limit);
    events.truncate(limit.unwrap_or(usize::MAX));
    let mut response = match &wanted.wanted.fields {
        None => answer::json(StatusCode::OK, &events)?,
        Some(fields) => answer::json(StatusCode::OK, &fields.of_all(&events)?)?,
    };
    let next = events.last().filter(|_| more).map(|last| list::next_page(uri, &last.id.to_string()));
    let lost = since.lost.map(|(from, to)| format!("{from}-{to}"));
    for (name, value) in [(LINK, next), (EVENTS_LOST, lost)] {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}

async fn follow_on<P: Pods>(mut last: u64, wanted: For<P>, pieces: Pieces) {
    loop {
        let Since { lost, events, newest, mut channel } = wanted.api.pods.events().since(last);
        let mut text = Vec::new();
        if let Some((from, to)) = lost {
            text.extend_from_slice(format!("event: lost\ndata: {{\"from\":{from},\"to\":{to}}}\n\n").as_bytes());
        }
        last = newest;
        // the newest id that the client knows of
        let mut told = 0;
        for event in events.iter().filter(|event| wanted.has(event)) {
            told = event.id;
            write(event, &wanted.wanted, &mut text);
        }
        if !text.is_empty() && !pieces.give(text).await {
            return;
        }
        loop {
            let mut text = Vec::new();
            tokio::select! {
                () = pieces.unwanted() => return,
                () = tokio::time::sleep(HEARTBEAT) => {
                    text.extend_from_slice(b":\n");
                    // of events that were not asked for the client learns the id, so that it does not come back with one
                    // that is no longer kept
                    if last > told {
                        told = last;
                        text.extend_from_slice(format!("id: {last}\n").as_bytes());
                    }
                    text.push(b'\n');
                }
                received = channel.recv() => match received {
                    Ok(event) if event.id > last => {
                        last = event.id;
                        if !wanted.has(&event) {
                            continue;
                        }
                        told = last;
                        write(&event, &wanted.wanted, &mut text);
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

fn write(event: &Event, wanted: &Wanted, text: &mut Vec<u8>) {
    // an event is text and numbers only, which serialise; JSON has no line breaks of its own
    let data = match &wanted.fields {
        None => serde_json::to_string(event).unwrap_or_default(),
        Some(fields) => fields.of(event).unwrap_or_default().to_string(),
    };
    let kind: String = event.kind.chars().filter(|c| !c.is_control()).collect();
    text.extend_from_slice(format!("id: {}\nevent: {kind}\ndata: {data}\n\n", event.id).as_bytes());
}
