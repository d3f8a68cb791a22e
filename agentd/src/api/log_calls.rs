//! `GET /v1/pods/{id}/logs`: what containers have printed, once or as they print it.

use std::iter::Peekable;
use std::sync::Arc;

use agentd_api::problem::Violation;
use agentd_api::status::PodStatus;
use agentd_logging::{Entries, Entry, Follow, LogError, ReadOptions, Stream};
use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use super::answer::{Answer, Refusal};
use super::backend::Pods;
use super::handle::Api;
use super::log_lines::{Lines, Source, Style};
use super::query::Query;
use super::stream::{self, Pieces};
use crate::node::Until;

/// Bytes of lines in one piece of an answer.
const PIECE: usize = 32 << 10;

/// Most logs told in one answer: each holds files open.
const MOST_SOURCES: usize = 128;

/// Most lines that `tail` may ask for: they are held in memory.
const MOST_TAIL: u64 = 1_000_000;

/// `GET /v1/pods/{id}/logs`
pub async fn logs<P: Pods>(api: &Arc<Api<P>>, id: &str, mut query: Query) -> Answer {
    let container = query.text("container");
    let instance = query.text("instance");
    let only = query.word("stream", &[("stdout", Stream::Stdout), ("stderr", Stream::Stderr)]);
    let options = ReadOptions {
        tail: query.number("tail", MOST_TAIL).map(|lines| lines as usize),
        since: query.time("since"),
        stdout: only != Some(Stream::Stderr),
        stderr: only != Some(Stream::Stdout),
    };
    let follow = query.flag("follow").unwrap_or_default();
    let style = Style {
        timestamps: query.flag("timestamps").unwrap_or_default(),
        json: query.word("format", &[("text", false), ("json", true)]).unwrap_or_default(),
    };
    query.finish()?;
    let sources = sources(&api.pods.get(id)?, container.as_deref(), instance.as_deref())?;
    let content_type = if style.json { "application/x-ndjson" } else { "text/plain; charset=utf-8" };
    let failed = |error: LogError| Refusal::failed(error.to_string());
    if follow {
        let followers = sources.into_iter().map(|source| {
            let follow = api.pods.capture().follow(&source.instance, &source.container, &options)?;
            Ok((follow, Lines::new(source, style)))
        });
        let followers = followers.collect::<Result<Vec<_>, LogError>>().map_err(failed)?;
        let (pieces, response) = stream::open(content_type, &api.shutdown);
        follow_all(api, id, followers, &pieces);
        return Ok(response);
    }
    let capture = api.pods.capture().clone();
    let open = move || {
        let sources = sources.into_iter().map(|source| {
            let entries = capture.read(&source.instance, &source.container, &options)?;
            Ok((entries.peekable(), Lines::new(source, style)))
        });
        let mut merged = Merged { sources: sources.collect::<Result<_, LogError>>()?, flushed: false };
        let first = merged.piece()?;
        Ok((merged, first))
    };
    let opened = tokio::task::spawn_blocking(open).await;
    let (merged, first) = opened.map_err(|_| failed(LogError::Stopped))?.map_err(failed)?;
    let (pieces, response) = stream::open(content_type, &api.shutdown);
    tokio::spawn(send_merged(merged, first, pieces));
    Ok(response)
}

/// The logs that are asked for.
fn sources(status: &PodStatus, container: Option<&str>, instance: Option<&str>) -> Result<Vec<Source>, Refusal> {
    let missing = |name: &str, known: String| {
        let known = if known.is_empty() { "it has none".to_owned() } else { format!("it has {known}") };
        let detail = format!("the pod {} has no such {name}; {known}", status.id);
        Refusal::not_found(detail).with(vec![Violation::new(name, known)])
    };
    let names: Vec<&str> = status.spec.containers.iter().map(|container| container.name.as_str()).collect();
    if let Some(wanted) = container
        && !names.contains(&wanted)
    {
        return Err(missing("container", names.join(", ")));
    }
    let instances: Vec<&str> = status.instances.iter().map(|instance| instance.id.as_str()).collect();
    if let Some(wanted) = instance
        && !instances.contains(&wanted)
    {
        return Err(missing("instance", instances.join(", ")));
    }
    let instances: Vec<&str> = instances.into_iter().filter(|id| instance.is_none_or(|wanted| wanted == *id)).collect();
    let names: Vec<&str> = names.into_iter().filter(|name| container.is_none_or(|wanted| wanted == *name)).collect();
    if instances.len() * names.len() > MOST_SOURCES {
        let message = format!("found more than {MOST_SOURCES} logs; choose an instance or a container");
        return Err(Refusal::bad_request(vec![Violation::new("instance", message)]));
    }
    let source = |id: &&str, name: &&str| Source {
        instance: (*id).to_owned(),
        container: (*name).to_owned(),
        label: match (instances.len() > 1, names.len() > 1) {
            (true, true) => Some(format!("{id}/{name}")),
            (true, false) => Some((*id).to_owned()),
            (false, true) => Some((*name).to_owned()),
            (false, false) => None,
        },
    };
    Ok(instances.iter().flat_map(|id| names.iter().map(move |name| source(id, name))).collect())
}

/// Several logs as one, in the order of time.
struct Merged {
    sources: Vec<(Peekable<Entries>, Lines)>,
    flushed: bool,
}

impl Merged {
    /// The next lines; empty at the end. Blocking.
    fn piece(&mut self) -> Result<Vec<u8>, LogError> {
        let mut out = Vec::new();
        while out.len() < PIECE && !self.flushed {
            let mut next: Option<(jiff::Timestamp, usize)> = None;
            for (index, (entries, _)) in self.sources.iter_mut().enumerate() {
                // an error comes first, so that it is told
                let time = match entries.peek() {
                    Some(Ok(entry)) => entry.time,
                    Some(Err(_)) => jiff::Timestamp::MIN,
                    None => continue,
                };
                if next.is_none_or(|(first, _)| time < first) {
                    next = Some((time, index));
                }
            }
            let source = next.and_then(|(_, index)| self.sources.get_mut(index));
            if let Some((entries, lines)) = source {
                if let Some(entry) = entries.next() {
                    lines.push(entry?, &mut out);
                }
            } else {
                self.sources.iter_mut().for_each(|(_, lines)| lines.flush(&mut out));
                self.flushed = true;
            }
        }
        Ok(out)
    }
}

/// Reads on while the client takes what is read. No thread is held meanwhile.
async fn send_merged(mut merged: Merged, mut piece: Vec<u8>, pieces: Pieces) {
    while !piece.is_empty() {
        if !pieces.give(piece).await {
            return;
        }
        let read = tokio::task::spawn_blocking(move || {
            let piece = merged.piece();
            (merged, piece)
        });
        match read.await {
            Ok((rest, Ok(next))) => (merged, piece) = (rest, next),
            Ok((_, Err(error))) => return pieces.break_off(error).await,
            Err(error) => return pieces.break_off(error).await,
        }
    }
}

/// One task for each log; all end when the pod has ended for good and everything is told.
fn follow_all<P: Pods>(api: &Arc<Api<P>>, id: &str, followers: Vec<(Follow, Lines)>, pieces: &Pieces) {
    let ended = CancellationToken::new();
    for (follow, lines) in followers {
        tokio::spawn(follow_one(follow, lines, ended.clone(), pieces.clone()));
    }
    let (pods, id, pieces) = (Arc::clone(&api.pods), id.to_owned(), pieces.clone());
    tokio::spawn(async move {
        tokio::select! {
            // a pod that is gone has ended, too
            _ = pods.wait(&id, Until::Finished) => ended.cancel(),
            () = pieces.unwanted() => {}
        }
    });
}

async fn follow_one(mut follow: Follow, mut lines: Lines, ended: CancellationToken, pieces: Pieces) {
    let mut ending = false;
    loop {
        let next: Option<Result<Entry, LogError>> = tokio::select! {
            next = follow.next() => next,
            () = ended.cancelled(), if !ending => {
                ending = true;
                follow = follow.until_finished();
                continue;
            }
            () = pieces.unwanted() => return pieces.break_off("the daemon is stopping").await,
        };
        let mut out = Vec::new();
        let mut next = Some(next);
        // what is there already goes into the same piece
        while let Some(entry) = next {
            match entry {
                Some(Ok(entry)) => lines.push(entry, &mut out),
                Some(Err(error)) => return pieces.break_off(error).await,
                None => {
                    lines.flush(&mut out);
                    pieces.give(out).await;
                    return;
                }
            }
            next = if out.len() < PIECE { follow.next().now_or_never() } else { None };
        }
        if !out.is_empty() && !pieces.give(out).await {
            return;
        }
    }
}
