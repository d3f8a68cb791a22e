//! Input for a nested container: records of a request that may be open as long as the container runs.

use std::sync::Arc;

use agentd_api::mesos::recordio::Decoder;
use agentd_api::mesos::{self, Call, ContainerPath, Format, Input};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::http::request::Parts;

use super::access;
use super::fault::Fault;
use super::place::{self, Place};
use crate::access::Caller;
use crate::access::policy::Verb;
use crate::api::Pods;
use crate::api::handle::Api;
use crate::session::{self, Session};

/// The records of a request's body, each when it is there.
struct Records<'a> {
    body: &'a mut Incoming,
    decoder: Decoder,
    /// What has come and is not taken apart yet.
    rest: Bytes,
    format: Format,
}

impl Records<'_> {
    /// The next record; none at the end. May be dropped and called again without loss.
    async fn next(&mut self) -> Result<Option<Input>, Fault> {
        loop {
            let mut bytes = &self.rest[..];
            let record = self.decoder.feed(&mut bytes).map_err(|fault| Fault::bad(fault.to_string()))?;
            let left = bytes.len();
            drop(self.rest.split_to(self.rest.len() - left));
            if let Some(record) = record {
                return match mesos::decode(self.format, &record)? {
                    Call::AttachInput(input) => Ok(Some(input)),
                    _ => Err(not_input()),
                };
            }
            match self.body.frame().await {
                None => {
                    self.decoder.finish().map_err(|fault| Fault::bad(fault.to_string()))?;
                    return Ok(None);
                }
                Some(Err(error)) => return Err(Fault::bad(format!("the body broke off: {error}"))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.rest = data;
                    }
                }
            }
        }
    }
}

fn not_input() -> Fault {
    let line = "application/recordio is for ATTACH_CONTAINER_INPUT only; send other calls as application/json or \
                application/x-protobuf";
    Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, line)
}

/// Gives what a client sends to a nested container, until the client ends it or the container has ended.
pub(super) async fn attach<P: Pods>(
    api: &Arc<Api<P>>,
    caller: &Caller,
    parts: &mut Parts,
    body: &mut Incoming,
    format: Format,
) -> Result<(), Fault> {
    let mut records = Records { body, decoder: Decoder::default(), rest: Bytes::new(), format };
    let patience = api.limits.body;
    let first = tokio::time::timeout(patience, records.next()).await.map_err(|_| {
        let line = format!("the first record did not arrive within {} s; send it faster", patience.as_secs_f64());
        Fault::new(StatusCode::REQUEST_TIMEOUT, line)
    })??;
    let path = match first {
        Some(Input::Container(path)) => path,
        Some(_) => return Err(Fault::bad("attach_container_input.type: expected CONTAINER_ID in the first record")),
        None => return Err(Fault::bad("found no record, expected one with CONTAINER_ID first")),
    };
    let pod = place::pod_of(api, &path).map(|pod| pod.id);
    api.attempt_within(caller, parts, "ATTACH_CONTAINER_INPUT", pod.as_deref())?;
    let session = find(api, caller, &path)?;
    if session.status().exit.is_some() {
        return Ok(());
    }
    if !session.record().stdin && !session.record().tty {
        return Err(Fault::bad(format!(
            "the container {path} has no standard input: it was launched without a session and without a terminal"
        )));
    }
    let mut input = session.input(false)?;
    tokio::select! {
        // an input that ends the container is answered, not lost
        given = give(&session, &mut input, &mut records) => given,
        _ = session.wait() => Ok(()),
    }
}

fn find<P: Pods>(api: &Arc<Api<P>>, caller: &Caller, path: &ContainerPath) -> Result<Session, Fault> {
    match place::find(api, caller, Verb::Exec, path)? {
        Place::Nested { session, pod, .. } => {
            let session = place::session(api, path, &session)?;
            access::own(api, caller, &session, &pod)?;
            Ok(session)
        }
        Place::Instance { .. } | Place::Container { .. } => {
            Err(Fault::bad(format!("the container {path} has no standard input; launch a nested container in it")))
        }
    }
}

/// Gives record by record. While the container takes none, none is read: one is held at most.
async fn give(session: &Session, input: &mut session::Input, records: &mut Records<'_>) -> Result<(), Fault> {
    loop {
        match records.next().await? {
            // what was open stays open: a client that only wanted to see whether it may attach does no harm
            None => return Ok(()),
            Some(Input::Heartbeat) => {}
            Some(Input::Container(_)) => {
                return Err(Fault::bad(
                    "attach_container_input.type: found a second CONTAINER_ID, expected PROCESS_IO",
                ));
            }
            Some(Input::Resize { rows, columns }) => {
                session.resize(rows, columns).map_err(|error| Fault::bad(error.to_string()))?;
            }
            Some(Input::Stdin(bytes)) if bytes.is_empty() => input.close().await,
            Some(Input::Stdin(bytes)) => {
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    let taken = input.write(rest).await;
                    if taken == 0 {
                        // it takes no more; what else is sent has nowhere to go
                        break;
                    }
                    rest = &rest[taken..];
                }
            }
        }
    }
}
