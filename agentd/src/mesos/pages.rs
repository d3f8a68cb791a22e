//! The pages that Mesos agents had before the calls: JSON of its own shape, and files.

use std::sync::Arc;

use agentd_api::mesos::{self, v1};
use agentd_api::session::SessionStatus;
use agentd_metrics::encode::snapshot;
use hyper::header::{CONTENT_DISPOSITION, HOST, HeaderValue};
use hyper::{HeaderMap, Response, StatusCode};
use serde_json::{Map, Value, json};

use super::fault::Fault;
use super::files::{self, Download};
use super::{access, figures, picture};
use crate::access::policy::Verb;
use crate::api::Pods;
use crate::api::answer::{Body, whole};
use crate::api::handle::{Api, Call};
use crate::api::route::{decode, encode};
use crate::api::stream;

/// Answers a page.
pub(super) async fn answer<P: Pods>(api: &Arc<Api<P>>, page: &str, call: Call<'_>) -> Result<Response<Body>, Fault> {
    let Call { caller, parts, .. } = call;
    let query = Parameters::read(parts.uri.query())?;
    match page {
        // as /healthz and /v1/version, they tell nothing of pods
        "health" | "version" => {}
        _ if page.starts_with("files/") => access::authorize(api, caller, Verb::Logs, None)?,
        _ => access::authorize(api, caller, Verb::View, None)?,
    }
    match page {
        "health" => Ok(whole(StatusCode::OK, "text/plain; charset=utf-8", "")),
        "version" => {
            let version = figures::version().version_info;
            json(&json!({"version": version.version, "git_tag": version.git_tag}))
        }
        "flags" => json(&json!({"flags": flags(api.as_ref())})),
        "metrics/snapshot" => {
            let known = figures::metrics(api.pods.as_ref());
            // what is about the host is for who may see the host; a host too slow to be measured still has its own figures
            let gathered = if api.sees(caller, None) { api.pods.gather().await.ok() } else { None };
            match gathered {
                Some(gathered) => json(&gathered.read(|batch| snapshot::figures(batch, known))),
                None => json(&known),
            }
        }
        "state" => json(&state(api, &access::visible(api, caller, Verb::View), &parts.headers)),
        "containers" => {
            let nested = query.get("show_nested") == Some("true");
            let usage = api.pods.usage(None).await.unwrap_or_default();
            let sessions: Vec<SessionStatus> =
                api.pods.sessions().iter().map(crate::session::Session::status).collect();
            let pods = access::visible(api, caller, Verb::View);
            let containers = picture::Here::containers(&pods, &usage, &sessions, nested).containers;
            json(&containers.iter().map(container).collect::<Vec<_>>())
        }
        "files/browse" => {
            let listed = files::list(api, caller, query.path()?).await?;
            let entry = |file: &files::Listed| {
                json!({"path": file.path, "mode": file.mode, "nlink": file.nlink, "size": file.size,
                    "mtime": file.mtime.as_second(), "uid": file.uid.to_string(), "gid": file.gid.to_string()})
            };
            json(&listed.iter().map(entry).collect::<Vec<_>>())
        }
        "files/read" => {
            let (offset, length) = (query.number("offset")?, query.number("length")?);
            let path = query.path()?;
            // without an offset the size is asked for
            let Some(offset) = offset else {
                let (_, size) = files::read(api, caller, path, 0, Some(0)).await?;
                return json(&json!({"data": "", "offset": size}));
            };
            let (bytes, _) = files::read(api, caller, path, offset, length).await?;
            json(&json!({"data": text(&bytes), "offset": offset}))
        }
        "files/download" => {
            let path = query.path()?;
            let file = Download::open(api, caller, path).await?;
            let (pieces, mut response) = stream::open_for("application/octet-stream", &api.shutdown, files::WAITING);
            let name = path.rsplit('/').next().unwrap_or_default();
            let disposition = format!("attachment; filename*=UTF-8''{}", encode(name));
            if let Ok(value) = HeaderValue::try_from(disposition) {
                response.headers_mut().insert(CONTENT_DISPOSITION, value);
            }
            tokio::spawn(file.send(pieces));
            Ok(response)
        }
        _ => Err(Fault::not_found(format!("there is no page {page}"))),
    }
}

fn json(value: &impl serde::Serialize) -> Result<Response<Body>, Fault> {
    let text =
        mesos::to_ascii(value).map_err(|error| Fault::failed(format!("the answer cannot be written: {error}")))?;
    Ok(whole(StatusCode::OK, "application/json", text))
}

/// Bytes as text. A character that the end cuts in two is left for the next read.
fn text(bytes: &[u8]) -> String {
    let whole = match std::str::from_utf8(bytes) {
        Err(fault) if fault.error_len().is_none() && fault.valid_up_to() > 0 => &bytes[..fault.valid_up_to()],
        _ => bytes,
    };
    String::from_utf8_lossy(whole).into_owned()
}

fn flags<P: Pods>(api: &Api<P>) -> Value {
    let flags = figures::flag_list(api.pods.as_ref()).into_iter();
    Value::Object(flags.map(|(name, value)| (name.to_owned(), Value::String(value))).collect())
}

/// `GET /state`.
fn state<P: Pods>(api: &Arc<Api<P>>, pods: &[agentd_api::status::PodStatus], headers: &HeaderMap) -> Value {
    let info = api.pods.info();
    let here = picture::Here::of(&info);
    let tasks = here.tasks(pods);
    let executors = picture::Here::executors(pods).executors;
    let executors: Vec<Value> = executors.iter().map(|one| executor(&one.executor_info, &tasks)).collect();
    let resources =
        json!({"cpus": here.total.cpus, "mem": here.total.mem, "disk": here.total.disk, "gpus": here.total.gpus});
    let used = json!({"cpus": info.used.cpus, "mem": info.used.mem, "disk": info.used.disk, "gpus": info.used.gpus});
    json!({
        "version": figures::MESOS,
        "git_tag": concat!("agentd-", env!("CARGO_PKG_VERSION")),
        "id": here.agent,
        "pid": format!("slave(1)@{}", authority(headers, &here.hostname)),
        "hostname": here.hostname,
        "capabilities": [],
        "resources": resources,
        "unreserved_resources": resources,
        "unreserved_resources_allocated": used,
        "reserved_resources": {},
        "attributes": {},
        "flags": flags(api.as_ref()),
        "frameworks": [{
            "id": picture::FRAMEWORK, "name": picture::FRAMEWORK, "user": "root", "role": picture::FRAMEWORK,
            "checkpoint": true, "failover_timeout": 0.0, "hostname": here.hostname, "active": true,
            "executors": executors, "completed_executors": [],
        }],
        "completed_frameworks": [],
    })
}

/// Where the client reached this agent, for those who read it out of `pid`.
fn authority(headers: &HeaderMap, hostname: &str) -> String {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let with_port = host
        .filter(|host| host.parse::<hyper::http::uri::Authority>().is_ok_and(|authority| authority.port().is_some()));
    with_port.map_or_else(|| format!("{hostname}:5051"), str::to_owned)
}

fn executor(info: &v1::ExecutorInfo, tasks: &v1::agent::response::GetTasks) -> Value {
    let id = &info.executor_id.value;
    let own = |tasks: &[v1::Task]| -> Vec<Value> {
        tasks.iter().filter(|task| task.executor_id.as_ref().is_some_and(|of| of.value == *id)).map(task).collect()
    };
    json!({
        "id": id,
        "name": info.name,
        "source": info.source,
        "container": id,
        "directory": format!("/{id}"),
        "type": "DEFAULT",
        "resources": amounts(&info.resources),
        "labels": labels(info.labels.as_ref()),
        "tasks": own(&tasks.launched_tasks),
        "queued_tasks": [],
        "completed_tasks": own(&tasks.completed_tasks),
    })
}

fn task(task: &v1::Task) -> Value {
    let status = |status: &v1::TaskStatus| {
        let mut object = Map::new();
        object.insert("state".into(), status.state().as_str_name().into());
        object.insert("timestamp".into(), json!(status.timestamp.unwrap_or_default()));
        if let Some(healthy) = status.healthy {
            object.insert("healthy".into(), healthy.into());
        }
        if let Some(container) = &status.container_status {
            object.insert("container_status".into(), container_status(container));
        }
        Value::Object(object)
    };
    let id = |id: &Option<v1::ExecutorId>| id.as_ref().map(|id| id.value.clone());
    json!({
        "id": task.task_id.value,
        "name": task.name,
        "framework_id": task.framework_id.value,
        "executor_id": id(&task.executor_id),
        "slave_id": task.agent_id.value,
        "state": task.state().as_str_name(),
        "resources": amounts(&task.resources),
        "role": picture::FRAMEWORK,
        "statuses": task.statuses.iter().map(status).collect::<Vec<_>>(),
        "user": task.user,
        "labels": labels(task.labels.as_ref()),
    })
}

fn container(container: &v1::agent::response::get_containers::Container) -> Value {
    let statistics = container.resource_statistics.as_ref().map(|statistics| {
        json!({
            "timestamp": statistics.timestamp,
            "cpus_user_time_secs": statistics.cpus_user_time_secs,
            "cpus_system_time_secs": statistics.cpus_system_time_secs,
            "cpus_limit": statistics.cpus_limit,
            "mem_limit_bytes": statistics.mem_limit_bytes,
            "mem_total_bytes": statistics.mem_total_bytes,
            "threads": statistics.threads,
            "net_rx_bytes": statistics.net_rx_bytes,
            "net_tx_bytes": statistics.net_tx_bytes,
        })
    });
    let id = container_id(&container.container_id);
    json!({
        "container_id": id["value"],
        "container": id,
        "framework_id": container.framework_id.as_ref().map(|id| &id.value),
        "executor_id": container.executor_id.as_ref().map(|id| &id.value),
        "executor_name": container.executor_name,
        "source": container.executor_name,
        "statistics": statistics.map(without_nulls),
        "status": container.container_status.as_ref().map(container_status),
    })
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(map.into_iter().filter(|(_, value)| !value.is_null()).collect()),
        other => other,
    }
}

fn container_status(status: &v1::ContainerStatus) -> Value {
    let address = |address: &v1::network_info::IpAddress| -> Value {
        json!({"protocol": address.protocol().as_str_name(), "ip_address": address.ip_address})
    };
    let network = |network: &v1::NetworkInfo| -> Value {
        json!({"ip_addresses": network.ip_addresses.iter().map(address).collect::<Vec<_>>()})
    };
    let mut object = Map::new();
    if let Some(id) = &status.container_id {
        object.insert("container_id".into(), container_id(id));
    }
    let networks: Vec<Value> = status.network_infos.iter().map(network).collect();
    object.insert("network_infos".into(), networks.into());
    if let Some(pid) = status.executor_pid {
        object.insert("executor_pid".into(), pid.into());
    }
    Value::Object(object)
}

fn container_id(id: &v1::ContainerId) -> Value {
    match &id.parent {
        Some(parent) => json!({"value": id.value, "parent": container_id(parent)}),
        None => json!({"value": id.value}),
    }
}

fn amounts(resources: &[v1::Resource]) -> Value {
    let mut amounts = Map::new();
    for name in ["cpus", "mem", "disk", "gpus"] {
        let scalar = resources.iter().find(|resource| resource.name == name).and_then(|resource| resource.scalar);
        amounts.insert(name.into(), json!(scalar.map_or(0.0, |scalar| scalar.value)));
    }
    Value::Object(amounts)
}

fn labels(labels: Option<&v1::Labels>) -> Value {
    let labels = labels.map(|labels| labels.labels.as_slice()).unwrap_or_default();
    labels.iter().map(|label| json!({"key": label.key, "value": label.value})).collect()
}

/// The parameters of a page. Unknown ones are left alone, as by Mesos: clients add some against caches.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn read(query: Option<&str>) -> Result<Self, Fault> {
        let fault = |fault: String| Fault::bad(format!("query: {fault}"));
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).take(64);
        let pairs = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            // forms write a space as +, and a plus as %2B
            Ok((decode(name).map_err(fault)?, decode(&value.replace('+', " ")).map_err(fault)?))
        });
        pairs.collect::<Result<_, Fault>>().map(Self)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn path(&self) -> Result<&str, Fault> {
        let missing = || Fault::bad("path: missing; expected path=VALUE in the query");
        self.get("path").filter(|path| !path.is_empty()).ok_or_else(missing)
    }

    /// A whole number; none where it is absent or -1.
    fn number(&self, name: &str) -> Result<Option<u64>, Fault> {
        match self.get(name) {
            None | Some("-1") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                let shown: String = text.chars().take(80).collect();
                Fault::bad(format!("{name}: found {shown:?}, expected a whole number, or -1"))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_not_cut_in_two() {
        assert_eq!(text("a\u{e9}".as_bytes()), "a\u{e9}");
        assert_eq!(text(b"a\xc3"), "a");
        assert_eq!(text(b"\xc3"), "\u{fffd}");
        assert_eq!(text(b"a\xffb"), "a\u{fffd}b");
    }

    #[test]
    fn an_address_is_that_of_the_request() {
        let mut headers = HeaderMap::new();
        assert_eq!(authority(&headers, "box"), "box:5051");
        headers.insert(HOST, HeaderValue::from_static("10.0.0.1:5051"));
        assert_eq!(authority(&headers, "box"), "10.0.0.1:5051");
        headers.insert(HOST, HeaderValue::from_static("agentd"));
        assert_eq!(authority(&headers, "box"), "box:5051");
    }
}
