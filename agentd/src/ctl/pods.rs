//! `agentctl pod`.

use std::io::Read;
use std::path::Path;

use agentd_api::parse;
use agentd_api::status::{ContainerStatus, InstancePhase, InstanceStatus, PodStatus, Reason};
use bytes::Bytes;
use hyper::Method;
use serde::Serialize;

use super::arguments::{Pods, Until, Wait};
use super::client::{CallError, Client, read};
use super::colour;
use super::failure::{Failure, POD_FAILED, Result, clean};
use super::output::Output;
use super::table::{Columns, bytes};
use crate::api::route::{encode, pod_path};

/// The path of a pod that the user names with or without its leading slash.
pub fn path_of(id: &str) -> Result<String> {
    if id.trim_start_matches('/').is_empty() {
        return Err(Failure::bad_input(format!("found the pod id {id:?}, expected one such as /app/web")));
    }
    Ok(pod_path(id))
}

/// Reads a pod's file, and gives the name that its faults are told under.
fn load(file: &Path) -> Result<(Bytes, String)> {
    let name = if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() };
    // one byte more than the daemon takes lets the daemon say that it is too much
    let most = parse::MAX_BYTES as u64 + 1;
    let mut text = Vec::new();
    let result = if file == Path::new("-") {
        std::io::stdin().lock().take(most).read_to_end(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(most).read_to_end(&mut text))
    };
    match result {
        Ok(_) => Ok((text.into(), name)),
        Err(error) => Err(Failure::bad_input(format!("{name}: {error}; expected a file with the JSON of a pod"))),
    }
}

/// `agentctl pod run`
pub async fn run(client: &Client, output: &mut Output, file: &Path, wait: Wait, timeout: Option<f64>) -> Result<()> {
    let (text, name) = load(file)?;
    let wait = match wait {
        Wait::Running => Some("running"),
        Wait::Finished => Some("finished"),
        Wait::None => None,
    };
    let mut path = "/v1/pods".to_owned();
    if let Some(wait) = wait {
        path = format!("{path}?wait={wait}");
        if let Some(timeout) = timeout {
            path = format!("{path}&timeout={timeout}");
        }
    }
    let body = client.call(Method::POST, &path, Some(text)).await.map_err(|error| error.of_file(&name))?;
    show(output, &body)?;
    judge(&body, wait.is_some())
}

/// `agentctl pod update`
pub async fn update(client: &Client, output: &mut Output, file: &Path) -> Result<()> {
    let (text, name) = load(file)?;
    // read here for its id, which is part of the path
    let spec = parse::pod(&text).map_err(|errors| Failure::violations(&errors, &name))?;
    let call = client.call(Method::PUT, &pod_path(&spec.id), Some(text)).await;
    let body = call.map_err(|error| error.of_file(&name))?;
    show(output, &body)
}

/// `agentctl pod wait`
pub async fn wait(client: &Client, output: &mut Output, id: &str, until: Until, timeout: Option<f64>) -> Result<()> {
    let until = match until {
        Until::Running => "running",
        Until::Finished => "finished",
    };
    let mut path = format!("{}/wait?until={until}", path_of(id)?);
    if let Some(timeout) = timeout {
        path = format!("{path}&timeout={timeout}");
    }
    let body = client.call(Method::GET, &path, None).await?;
    show(output, &body)?;
    judge(&body, true)
}

/// Fails when an instance has failed for good.
fn judge(body: &[u8], waited: bool) -> Result<()> {
    let status: PodStatus = read(body)?;
    let failed = status.instances.iter().find(|instance| instance.phase == InstancePhase::Failed);
    match failed {
        Some(instance) if waited => {
            let message = format!("the pod {} has failed (instance {}): {}", status.id, instance.id, why(instance));
            Err(Failure::new(POD_FAILED, message))
        }
        _ => Ok(()),
    }
}

/// Why an instance is as it is: its own message, else its first container's that has one.
fn why(instance: &InstanceStatus) -> String {
    let fallback = || fault(instance).unwrap_or_else(|| "agentctl logs may tell why".to_owned());
    instance.message.clone().unwrap_or_else(fallback)
}

/// What the container says that ended badly; of several not one that ended because of another.
fn fault(instance: &InstanceStatus) -> Option<String> {
    let mut failed: Vec<&ContainerStatus> =
        instance.containers.iter().filter(|container| container.exit.is_none_or(|exit| !exit.success())).collect();
    failed.sort_by_key(|container| container.reason == Some(Reason::TaskGroupFailed));
    failed.into_iter().find_map(|container| {
        let message = container.message.clone().or_else(|| container.exit.map(|exit| exit.to_string()))?;
        // a message that begins with a field names the container already
        let named = message.starts_with("containers[");
        Some(if named { message } else { format!("container {}: {message}", container.name) })
    })
}

/// The message of an instance in a list: its own, or of one that is not well that of the container at fault.
fn summary(instance: &InstanceStatus) -> String {
    let unwell = matches!(instance.phase, InstancePhase::Failed | InstancePhase::Degraded | InstancePhase::Backoff);
    instance.message.clone().or_else(|| fault(instance).filter(|_| unwell)).unwrap_or_default()
}

/// `agentctl pod ls`
pub async fn list(client: &Client, output: &mut Output, wanted: &Pods) -> Result<()> {
    let mut terms: Vec<String> = wanted.label.iter().map(|label| format!("label={}", encode(label))).collect();
    terms.extend(wanted.phase.map(|phase| format!("phase={}", phase.word())));
    terms.extend(wanted.id.as_ref().map(|id| format!("id={}", encode(id))));
    let mark = if terms.is_empty() { "" } else { "?" };
    let body = client.call(Method::GET, &format!("/v1/pods{mark}{}", terms.join("&")), None).await?;
    if output.json() {
        return output.body(&body);
    }
    let pods: Vec<PodStatus> = read(&body)?;
    if output.names() {
        return pods.iter().try_for_each(|pod| output.name(&pod.id));
    }
    let mut columns = Columns::new(&["POD", "INSTANCE", "PHASE", "RUNNING", "STARTS", "ADDRESSES", "MESSAGE"]);
    for pod in &pods {
        if pod.instances.is_empty() {
            columns.row([pod.id.as_str(), "", "", "0/0", "0", "", "no instance"]);
        }
        for instance in &pod.instances {
            let running = instance.containers.iter().filter(|container| container.pid.is_some()).count();
            let starts: u32 = instance.containers.iter().map(|container| container.attempt).sum();
            columns.row([
                pod.id.clone(),
                instance.id.clone(),
                word(instance.phase),
                format!("{running}/{}", instance.containers.len()),
                starts.to_string(),
                instance.addresses.join(","),
                summary(instance),
            ]);
        }
    }
    columns.right(&[3, 4]);
    columns.paint(2, colour::of_state);
    output.table(columns)
}

/// `agentctl pod inspect`
pub async fn inspect(client: &Client, output: &mut Output, id: &str) -> Result<()> {
    let body = client.call(Method::GET, &path_of(id)?, None).await?;
    if output.json() {
        return output.body(&body);
    }
    let pod: PodStatus = read(&body)?;
    if output.names() {
        return output.name(&pod.id);
    }
    output.line(&format!("Pod       {}", clean(&pod.id)))?;
    output.line(&format!("Version   {}", pod.spec.version.as_deref().unwrap_or("-")))?;
    for (name, value) in &pod.spec.labels {
        output.line(&format!("Label     {}={}", clean(name), clean(value)))?;
    }
    for instance in &pod.instances {
        output.line(&format!("\nInstance  {}", clean(&instance.id)))?;
        let phase = word(instance.phase);
        output.line(&format!("Phase     {}", output.paint(&phase, colour::of_state(&phase))))?;
        if let Some(message) = &instance.message {
            output.line(&format!("Message   {}", clean(message)))?;
        }
        if !instance.addresses.is_empty() {
            output.line(&format!("Addresses {}", clean(&instance.addresses.join(", "))))?;
        }
        if let Some(pid) = instance.init_pid {
            output.line(&format!("pod-init  {pid}"))?;
        }
        let heads = [
            "CONTAINER",
            "STATE",
            "PID",
            "HEALTHY",
            "STARTS",
            "LAST EXIT",
            "PEAK MEMORY",
            "STARTED",
            "CGROUP",
            "MESSAGE",
        ];
        let mut columns = Columns::new(&heads);
        for container in &instance.containers {
            let healthy = container.healthy.map(|healthy| if healthy { "yes" } else { "no" });
            columns.row([
                container.name.clone(),
                state(container),
                container.pid.map(|pid| pid.to_string()).unwrap_or_default(),
                healthy.unwrap_or_default().to_owned(),
                container.attempt.to_string(),
                container.exit.map(|exit| exit.to_string()).unwrap_or_default(),
                container.memory_peak_bytes.map(bytes).unwrap_or_default(),
                container.started_at.clone().unwrap_or_default(),
                container.cgroup.clone().unwrap_or_default(),
                message(container),
            ]);
        }
        columns.right(&[2, 4, 6]);
        columns.paint(1, colour::of_state);
        output.table(columns)?;
    }
    Ok(())
}

/// Shows where each container of a pod is.
fn show(output: &mut Output, body: &[u8]) -> Result<()> {
    if output.json() {
        return output.body(body);
    }
    let pod: PodStatus = read(body)?;
    if output.names() {
        return output.name(&pod.id);
    }
    let heads = ["POD", "INSTANCE", "PHASE", "CONTAINER", "STATE", "PID", "ADDRESSES", "PORTS", "MESSAGE"];
    let mut columns = Columns::new(&heads);
    for instance in &pod.instances {
        for container in &instance.containers {
            columns.row([
                pod.id.clone(),
                instance.id.clone(),
                word(instance.phase),
                container.name.clone(),
                container.state.as_str().to_owned(),
                container.pid.map(|pid| pid.to_string()).unwrap_or_default(),
                instance.addresses.join(","),
                ports(container),
                message(container),
            ]);
        }
    }
    columns.right(&[5]);
    columns.paint(2, colour::of_state);
    columns.paint(4, colour::of_state);
    output.table(columns)
}

fn message(container: &ContainerStatus) -> String {
    container.message.clone().unwrap_or_default()
}

/// `name=host->container` of each endpoint.
fn ports(container: &ContainerStatus) -> String {
    let endpoints = container.endpoints.iter().map(|endpoint| {
        let ports = match (endpoint.host_port, endpoint.container_port) {
            (Some(host), Some(inside)) => format!("{host}->{inside}"),
            (Some(port), None) | (None, Some(port)) => port.to_string(),
            (None, None) => "?".to_owned(),
        };
        format!("{}={ports}", endpoint.name)
    });
    endpoints.collect::<Vec<_>>().join(",")
}

/// Its state, and why where there is a reason.
fn state(container: &ContainerStatus) -> String {
    let state = container.state.as_str();
    container.reason.map_or_else(|| state.to_owned(), |reason| format!("{state} ({})", word(reason)))
}

/// The word that a phase or a reason has in JSON.
fn word(value: impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

/// `agentctl pod rm`. Goes on after a failure; the first one counts.
pub async fn remove(client: &Client, output: &mut Output, ids: &[String], ignore_missing: bool) -> Result<()> {
    let mut first = Ok(());
    for id in ids {
        let path = path_of(id)?;
        match client.call(Method::DELETE, &path, None).await {
            Ok(body) if output.json() => output.body(&body)?,
            Ok(_) if output.names() => output.name(id)?,
            Ok(_) => output.line(&format!("{} removed", clean(id)))?,
            Err(CallError::Problem(problem)) if ignore_missing && problem.status == 404 => {}
            Err(error) => first = first.and(tell_now(Failure::from(error), ids.len())),
        }
    }
    first
}

/// With several things to do each failure is told as it comes, and the last word is only the exit code.
pub fn tell_now(failure: Failure, count: usize) -> Result<()> {
    if count > 1 {
        failure.tell();
        return Err(Failure::exit(failure.code()));
    }
    Err(failure)
}
