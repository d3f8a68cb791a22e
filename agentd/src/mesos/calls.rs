//! One call of `POST /api/v1`.

use std::sync::Arc;
use std::time::Duration;

use agentd_api::mesos::v1::agent::{Response as Message, response};
use agentd_api::mesos::v1::{CommandInfo, ContainerInfo};
use agentd_api::mesos::{self, Call, ContainerPath, Format, MAX_CALL};
use agentd_api::session::SessionKind;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::{HeaderMap, Response, StatusCode};

use super::fault::Fault;
use super::negotiate::{self, Sent};
use super::output::Follower;
use super::place::{self, Place};
use super::{access, ends, figures, files, input, launch, output, picture};
use crate::access::Caller;
use crate::access::policy::Verb;
use crate::api::Pods;
use crate::api::answer::{Body, whole};
use crate::api::handle::{self, Api};
use crate::session::Begin;

/// Answers a call.
pub(super) async fn answer<P: Pods>(api: &Arc<Api<P>>, call: handle::Call<'_>) -> Result<Response<Body>, Fault> {
    let handle::Call { caller, parts, body, .. } = call;
    let headers = &parts.headers.clone();
    let format = match negotiate::sent(headers)? {
        Sent::Records(format) => {
            input::attach(api, caller, parts, body, format).await?;
            return Ok(ok());
        }
        Sent::Whole(format) => format,
    };
    let bytes = read(body, api.limits.body).await?;
    let call = mesos::decode(format, &bytes)?;
    drop(bytes);
    let streams = matches!(call, Call::Launch { session: true, .. } | Call::AttachOutput { .. });
    if !streams && negotiate::asks_for_records(headers) && negotiate::answer(headers).is_err() {
        let line = "accept: application/recordio is for LAUNCH_NESTED_CONTAINER_SESSION and ATTACH_CONTAINER_OUTPUT \
                    only; accept application/json or application/x-protobuf";
        return Err(Fault::new(StatusCode::NOT_ACCEPTABLE, line));
    }
    if let Some((name, path)) = changes(&call) {
        let pod = place::pod_of(api, path).map(|pod| pod.id);
        api.attempt_within(caller, parts, name, pod.as_deref())?;
    }
    let verb = access::verb(call.verb());
    match call {
        Call::Launch { field, container, command, info, session } => {
            launch(api, caller, headers, Launch { field, container, command, info, session }).await
        }
        Call::AttachOutput { container } => {
            let how = negotiate::stream(headers)?;
            match place::find(api, caller, verb, &container)? {
                Place::Nested { session, pod, .. } => {
                    let session = place::session(api, &container, &session)?;
                    access::own(api, caller, &session, &pod)?;
                    Ok(output::nested(api, session, how, Follower::Attached(caller.principal.clone())))
                }
                Place::Container { pod, instance, container } => {
                    // it is what the log has, and so under its right
                    access::authorize(api, caller, Verb::Logs, Some(&pod))?;
                    output::container(api, &pod.id, &instance, &container, how)
                }
                Place::Instance { instance, .. } => Err(Fault::bad(format!(
                    "the container {instance} holds others and prints nothing; name one of them"
                ))),
            }
        }
        Call::AttachInput(_) => {
            let line =
                "ATTACH_CONTAINER_INPUT: send it as application/recordio, with message-content-type for the records";
            Err(Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, line))
        }
        Call::Kill { container, signal } => {
            let session = nested(api, caller, verb, &container, "only nested containers are killed by this call")?;
            ends::kill(&session, signal).await?;
            Ok(ok())
        }
        Call::Remove { container } => {
            let session = nested(api, caller, verb, &container, "only nested containers are removed by this call")?;
            ends::remove(&session).await?;
            Ok(ok())
        }
        Call::Wait { container, nested } => {
            let format = negotiate::answer(headers)?;
            let end = match place::find(api, caller, verb, &container)? {
                Place::Nested { session, .. } => {
                    ends::of_session(&place::session(api, &container, &session)?.wait().await)
                }
                Place::Container { pod, instance, container } => {
                    ends::container(api, &pod.id, &instance, &container).await?
                }
                Place::Instance { pod, instance } => ends::instance(api, &pod.id, &instance).await?,
            };
            Ok(message(format, &end.answer(nested)))
        }
        Call::Unsupported(name) => {
            Err(Fault::new(StatusCode::NOT_IMPLEMENTED, format!("{name}: agentd does not have this call")))
        }
        asked => {
            let format = negotiate::answer(headers)?;
            told(api, caller, verb, asked).await.map(|answer| message(format, &answer))
        }
    }
}

/// What is noted in the audit log: the name of a call that changes something, and the container that it names.
fn changes(call: &Call) -> Option<(&'static str, &ContainerPath)> {
    match call {
        Call::Launch { container, session: true, .. } => Some(("LAUNCH_NESTED_CONTAINER_SESSION", container)),
        Call::Launch { container, .. } => Some(("LAUNCH_NESTED_CONTAINER", container)),
        Call::AttachOutput { container } => Some(("ATTACH_CONTAINER_OUTPUT", container)),
        Call::Kill { container, .. } => Some(("KILL_NESTED_CONTAINER", container)),
        Call::Remove { container } => Some(("REMOVE_NESTED_CONTAINER", container)),
        _ => None,
    }
}

/// A nested container, or word that a pod is ended in another way.
fn nested<P: Pods>(
    api: &Arc<Api<P>>,
    caller: &Caller,
    verb: Verb,
    path: &ContainerPath,
    only: &str,
) -> Result<crate::session::Session, Fault> {
    match place::find(api, caller, verb, path)? {
        Place::Nested { session, pod, .. } => {
            let session = place::session(api, path, &session)?;
            access::own(api, caller, &session, &pod)?;
            Ok(session)
        }
        Place::Instance { pod, .. } | Place::Container { pod, .. } => Err(Fault::new(
            StatusCode::NOT_IMPLEMENTED,
            format!(
                "the container {path} belongs to the pod {0}: {only}; end the pod with `agentctl pod rm {0}`",
                pod.id
            ),
        )),
    }
}

/// What a launch is made of.
struct Launch {
    field: &'static str,
    container: ContainerPath,
    command: Box<CommandInfo>,
    info: Option<Box<ContainerInfo>>,
    session: bool,
}

async fn launch<P: Pods>(
    api: &Arc<Api<P>>,
    caller: &Caller,
    headers: &HeaderMap,
    launch: Launch,
) -> Result<Response<Body>, Fault> {
    let Launch { field, container: path, command, info, session } = launch;
    // everything that may be wrong is found before anything runs
    let how = if session { Some(negotiate::stream(headers)?) } else { None };
    let mut request = launch::request(field, &command, info.as_deref(), session)?;
    let (pod, instance, container, id) = match place::find(api, caller, Verb::Exec, &path)? {
        Place::Nested { pod, instance, container, session } => (pod, instance, container, session),
        Place::Instance { .. } | Place::Container { .. } => {
            return Err(Fault::conflict(format!(
                "the container {path} is one of a pod; choose another value, e.g. a UUID"
            )));
        }
    };
    access::launch(api, caller, &request, &pod)?;
    if api.pods.session(&id).is_ok() {
        // as Mesos: to launch again what is launched is fine, but there is no second session of it
        return match how {
            None => Ok(whole(StatusCode::ACCEPTED, "text/plain; charset=utf-8", "")),
            Some(_) => Err(Fault::conflict(format!("the container {path} was launched already; choose another value"))),
        };
    }
    request.instance = Some(instance);
    request.container = Some(container);
    let begin = Begin {
        pod: pod.id,
        request,
        kind: SessionKind::Nested,
        id: Some(id),
        principal: caller.principal.clone(),
        record: false,
    };
    let pods = Arc::clone(&api.pods);
    // a client that goes away meanwhile must not leave it half done: its own task goes on, and finds no client
    let session = handle::apart(async move { pods.begin(begin).await }).await?;
    Ok(match how {
        Some(how) => output::nested(api, session, how, Follower::Owner),
        None => ok(),
    })
}

/// What the agent tells of itself.
async fn told<P: Pods>(api: &Arc<Api<P>>, caller: &Caller, verb: Verb, call: Call) -> Result<Message, Fault> {
    use response::Type;
    let of = |kind: Type| Message { r#type: Some(kind as i32), ..Message::default() };
    if !matches!(call, Call::Health | Call::Version) {
        access::authorize(api, caller, verb, None)?;
    }
    let pods = || access::visible(api, caller, verb);
    let here = || picture::Here::of(&api.pods.info());
    Ok(match call {
        Call::Health => Message { get_health: Some(response::GetHealth { healthy: true }), ..of(Type::GetHealth) },
        Call::Flags => Message { get_flags: Some(figures::flags(api.pods.as_ref())), ..of(Type::GetFlags) },
        Call::Version => Message { get_version: Some(figures::version()), ..of(Type::GetVersion) },
        Call::Metrics => {
            let metrics = figures::metrics(api.pods.as_ref());
            Message { get_metrics: Some(figures::as_message(&metrics)), ..of(Type::GetMetrics) }
        }
        Call::LoggingLevel => Message {
            get_logging_level: Some(response::GetLoggingLevel { level: figures::logging_level() }),
            ..of(Type::GetLoggingLevel)
        },
        Call::Tasks => Message { get_tasks: Some(here().tasks(&pods())), ..of(Type::GetTasks) },
        Call::Executors => Message { get_executors: Some(picture::Here::executors(&pods())), ..of(Type::GetExecutors) },
        Call::Frameworks => Message { get_frameworks: Some(here().frameworks()), ..of(Type::GetFrameworks) },
        Call::Agent => Message { get_agent: Some(here().agent()), ..of(Type::GetAgent) },
        Call::Operations => Message { get_operations: Some(response::GetOperations {}), ..of(Type::GetOperations) },
        Call::ResourceProviders => Message {
            get_resource_providers: Some(response::GetResourceProviders {}),
            ..of(Type::GetResourceProviders)
        },
        Call::State => {
            let (here, pods) = (here(), pods());
            let state = response::GetState {
                get_tasks: Some(here.tasks(&pods)),
                get_executors: Some(picture::Here::executors(&pods)),
                get_frameworks: Some(here.frameworks()),
            };
            Message { get_state: Some(state), ..of(Type::GetState) }
        }
        Call::Containers { nested } => {
            let usage = api.pods.usage(None).await.unwrap_or_default();
            let sessions: Vec<_> = api.pods.sessions().iter().map(crate::session::Session::status).collect();
            let containers = picture::Here::containers(&pods(), &usage, &sessions, nested);
            Message { get_containers: Some(containers), ..of(Type::GetContainers) }
        }
        Call::ListFiles { path } => {
            let file_infos = files::list(api, caller, &path).await?.iter().map(files::Listed::info).collect();
            Message { list_files: Some(response::ListFiles { file_infos }), ..of(Type::ListFiles) }
        }
        Call::ReadFile { path, offset, length } => {
            let (data, size) = files::read(api, caller, &path, offset, length).await?;
            Message { read_file: Some(response::ReadFile { size, data }), ..of(Type::ReadFile) }
        }
        // each of the others was taken before
        _ => return Err(Fault::failed("the call was not understood")),
    })
}

fn message(format: Format, message: &Message) -> Response<Body> {
    whole(StatusCode::OK, format.media_type(), mesos::encode(format, message))
}

/// Success without anything to tell.
fn ok() -> Response<Body> {
    whole(StatusCode::OK, "text/plain; charset=utf-8", "")
}

/// Reads a whole body, bounded in size and time.
async fn read(body: &mut Incoming, patience: Duration) -> Result<Vec<u8>, Fault> {
    let large = || {
        let line = format!("the body has more than {MAX_CALL} bytes; shorten it");
        Fault::new(StatusCode::PAYLOAD_TOO_LARGE, line)
    };
    if body.size_hint().lower() > MAX_CALL as u64 {
        return Err(large());
    }
    let collect = async {
        let mut bytes = Vec::with_capacity(body.size_hint().lower() as usize);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Fault::bad(format!("the body broke off: {error}; send it whole")))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > MAX_CALL {
                return Err(large());
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    };
    let slow = || {
        let line = format!("the body did not arrive within {} s; send it faster", patience.as_secs_f64());
        Fault::new(StatusCode::REQUEST_TIMEOUT, line)
    };
    tokio::time::timeout(patience, collect).await.map_err(|_| slow())?
}
