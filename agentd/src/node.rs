//! The pods of this host: which are wanted, which instances they have, and what may be asked of them.
//!
//! A pod's specification is written before anything is done for it and removed after everything of it is gone, so that
//! a daemon that dies anywhere in between finishes the step when it is back ([`crate::recovery`]). Changes of one pod
//! are made one after the other, under its own lock; different pods do not wait for each other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use agentd_api::message::{NodeInfo, NodeResources};
use agentd_api::pod::{KillSelection, PodSpec};
use agentd_api::problem::Violation;
use agentd_api::resources::{Resources, Shortfall, shortfall};
use agentd_api::status::{InstancePhase, PodStatus};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::Instrument;

use crate::admission::Ledger;
use crate::checkpoint::{self, Durability};
use crate::events::Subject;
use crate::failpoint;
use crate::host::Host;
use crate::instance::{self, Handle};
use crate::layout::Layout;
use crate::observe::latency::LATENCIES;
use crate::session::{Begin, Session};
use crate::target;
use crate::telemetry::start::Start;
use crate::telemetry::{self, spans};

/// Why something could not be done for a pod.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The specification is wrong, or this host cannot honour it.
    #[error("the pod is refused: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Violation>),
    /// A request about a pod is wrong, or this host cannot honour it.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    BadRequest(Vec<Violation>),
    /// There is no such pod.
    #[error("there is no pod {0}; `agentctl pod ls` lists those that there are")]
    NotFound(String),
    /// There is the pod, and what was named of it is not there. One line that says what it has.
    #[error("{0}")]
    NotInPod(String),
    /// The request contradicts what there is.
    #[error("{0}")]
    Conflict(String),
    /// The pod has another version than the request was made for.
    #[error("the pod {pod} has the version {found}, expected {}; read it again, and change what it is now", .expected.join(" or "))]
    Stale {
        /// The pod.
        pod: String,
        /// The version that it has.
        found: String,
        /// The versions of which it was to have one.
        expected: Vec<String>,
    },
    /// The host has not enough left.
    #[error("not enough is free on this host: {}", .0.one_line())]
    Insufficient(Shortfall),
    /// The host failed.
    #[error("{0}")]
    Failed(String),
}

/// What is written of a wanted pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Wanted {
    /// The specification.
    pub spec: PodSpec,
    /// Whether it is being removed.
    pub removing: bool,
}

#[derive(Debug)]
struct Entry {
    spec: PodSpec,
    instances: Vec<Handle>,
    removing: bool,
    /// Counts changes, for those who wait.
    changed: watch::Sender<u64>,
    /// Held while the pod is changed.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// Until when [`Node::wait`] waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Every instance runs (and is healthy), or has ended.
    Running,
    /// Every instance has ended for good.
    Finished,
}

/// The pods of this host.
#[derive(Debug)]
pub struct Node {
    /// What instances share.
    pub host: Arc<Host>,
    ledger: Arc<Ledger>,
    pods: Mutex<BTreeMap<String, Entry>>,
}

impl Node {
    /// A node without pods.
    pub fn new(host: Arc<Host>) -> Arc<Self> {
        let (total, reserved) = capacity(&host);
        let ledger = Ledger::new(Resources::capacity(&total), Resources::capacity(&reserved));
        Arc::new(Self { host, ledger, pods: Mutex::default() })
    }

    /// The ledger of what pods hold.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Entry>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a new pod. Refuses it before anything is changed if it is wrong, known already, or does not fit.
    pub async fn run(&self, mut spec: PodSpec) -> Result<PodStatus, NodeError> {
        let violations = self.host.check(&spec);
        if !violations.is_empty() {
            return Err(NodeError::Invalid(violations));
        }
        let id = spec.id.clone();
        let turn = Arc::new(tokio::sync::Mutex::new(()));
        let _turn = Arc::clone(&turn).lock_owned().await;
        refuse_known(&self.lock(), &id)?;
        let grants = self.grants(&spec, spec.scaling.instances)?;
        {
            let mut pods = self.lock();
            refuse_known(&pods, &id)?;
            spec.version = Some(jiff::Timestamp::now().to_string());
            let (changed, _) = watch::channel(0);
            let spec = spec.clone();
            pods.insert(id.clone(), Entry { spec, instances: Vec::new(), removing: false, changed, turn });
        }
        if let Err(error) = self.write(&Wanted { spec: spec.clone(), removing: false }) {
            self.lock().remove(&id);
            return Err(NodeError::Failed(error));
        }
        failpoint::pass("admit.spec-written");
        self.host.events.publish("pod-accepted", Subject { pod: Some(&id), ..Subject::default() }, "accepted");
        if let Err(error) = self.add_instances(&spec, grants).await {
            self.take_down(&id).await?;
            return Err(NodeError::Failed(error));
        }
        self.get(&id)
    }

    fn grants(&self, spec: &PodSpec, instances: u32) -> Result<Vec<instance::Grant>, NodeError> {
        let short = |short: Shortfall| {
            NodeError::Insufficient(short.with_executor(Resources::of_executor(&spec.executor_resources)))
        };
        (0..instances).map(|_| self.ledger.take(instance::needs(spec)).map_err(short)).collect()
    }

    /// Whether the running instances may grow to what a changed specification needs. Told beforehand, so that the answer
    /// names what is short; each instance takes its own part later.
    fn room_for_update(&self, old: &PodSpec, new: &PodSpec, handles: &[Handle]) -> Result<(), NodeError> {
        let over = |handle: &&Handle| matches!(handle.phase(), InstancePhase::Finished | InstancePhase::Failed);
        let running = handles.iter().filter(|handle| !over(handle)).count() as u32;
        let all = |spec: &PodSpec| instance::needs(spec).checked_mul(running);
        let (Some(have), Some(need)) = (all(old), all(new)) else {
            return Err(NodeError::Conflict(format!("{running} instances of this size are more than can be counted")));
        };
        let short = shortfall(need, self.ledger.free().saturating_add(have));
        if short.is_empty() {
            return Ok(());
        }
        let executor = Resources::of_executor(&new.executor_resources).checked_mul(running).unwrap_or_default();
        Err(NodeError::Insufficient(short.with_executor(executor)))
    }

    /// Begins one instance for each grant.
    pub(crate) async fn add_instances(&self, spec: &PodSpec, grants: Vec<instance::Grant>) -> Result<(), String> {
        for grant in grants {
            let start = Start::begin(&spec.id, self.host.hostname());
            let sandbox = self.host.pool.claim().instrument(start.parent().step("sandbox.claim")).await?;
            let id = sandbox.id.clone();
            start.of_instance(&id);
            match instance::begin(&self.host, spec.clone(), sandbox, grant, start) {
                Ok(handle) => self.enter(&spec.id, handle),
                Err(error) => {
                    self.host.sandboxes.destroy(&id).await?;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn enter(&self, pod: &str, handle: Handle) {
        let subject = Subject { pod: Some(pod), instance: Some(&handle.id), container: None };
        self.host.events.publish("instance-created", subject, "created");
        if let Some(entry) = self.lock().get_mut(pod) {
            entry.instances.push(handle);
            entry.changed.send_modify(|n| *n += 1);
        }
    }

    /// Takes back a pod found on disk.
    pub(crate) fn adopt(&self, wanted: &Wanted, instances: Vec<Handle>) {
        let (changed, _) = watch::channel(0);
        let entry =
            Entry { spec: wanted.spec.clone(), instances, removing: wanted.removing, changed, turn: Arc::default() };
        self.lock().insert(wanted.spec.id.clone(), entry);
    }

    /// All pods.
    pub fn list(&self) -> Vec<PodStatus> {
        self.lock().values().map(Entry::status).collect()
    }

    /// One pod.
    pub fn get(&self, id: &str) -> Result<PodStatus, NodeError> {
        self.lock().get(id).map(Entry::status).ok_or_else(|| NodeError::NotFound(id.to_owned()))
    }

    fn turn(&self, id: &str) -> Result<Arc<tokio::sync::Mutex<()>>, NodeError> {
        self.lock().get(id).map(|e| Arc::clone(&e.turn)).ok_or_else(|| NodeError::NotFound(id.to_owned()))
    }

    /// Changes cpus and memory of a pod's containers, and its number of instances, in place. Other changes are refused
    /// by name, and all where the pod has none of the `expected` versions.
    pub async fn update(&self, spec: PodSpec, expected: Option<&[String]>) -> Result<PodStatus, NodeError> {
        let id = spec.id.clone();
        let turn = self.turn(&id)?;
        let _turn = turn.lock().await;
        let (old, removing, handles) = {
            let pods = self.lock();
            let entry = pods.get(&id).ok_or_else(|| NodeError::NotFound(id.clone()))?;
            (entry.spec.clone(), entry.removing, entry.instances.clone())
        };
        if removing {
            return Err(NodeError::Conflict(format!("the pod {id} is being removed")));
        }
        refuse_stale(&old, expected)?;
        let mut spec = spec;
        spec.version.clone_from(&old.version);
        let fields = changed_elsewhere(&old, &spec);
        if !fields.is_empty() {
            let violations = fields
                .into_iter()
                .map(|field| {
                    let cure = "only resources.cpus, resources.mem, agentd.cpu, agentd.memory and scaling.instances \
                                change in place; remove the pod and run the new one for the rest";
                    Violation::new(field, format!("differs from the running pod; {cure}"))
                })
                .collect();
            return Err(NodeError::Invalid(violations));
        }
        let violations = self.host.check(&spec);
        if !violations.is_empty() {
            return Err(NodeError::Invalid(violations));
        }
        spec.version = Some(jiff::Timestamp::now().to_string());
        let have = handles.len() as u32;
        let want = spec.scaling.instances;
        let grants = self.grants(&spec, want.saturating_sub(have))?;
        self.room_for_update(&old, &spec, &handles)?;
        let mut done: Vec<&Handle> = Vec::new();
        for handle in &handles {
            if let Err(error) = handle.update(spec.clone()).await {
                for handle in done {
                    if let Err(error) = handle.update(old.clone()).await {
                        tracing::error!(pod = id, instance = handle.id, "an update could not be undone: {error}");
                    }
                }
                return Err(NodeError::Conflict(format!("the update is refused and undone: {error}")));
            }
            done.push(handle);
        }
        self.write(&Wanted { spec: spec.clone(), removing: false }).map_err(NodeError::Failed)?;
        failpoint::pass("update.recorded");
        if let Some(entry) = self.lock().get_mut(&id) {
            entry.spec = spec.clone();
            entry.changed.send_modify(|n| *n += 1);
        }
        self.add_instances(&spec, grants).await.map_err(NodeError::Failed)?;
        if want < have {
            self.scale_down(&id, &spec, (have - want) as usize).await?;
        }
        self.host.events.publish("pod-updated", Subject { pod: Some(&id), ..Subject::default() }, "updated in place");
        self.get(&id)
    }

    /// Gives every instance of a pod the pod's specification, and ends those beyond the number it wants: what an update
    /// that the daemon did not survive has left. Nobody was told that it was done, so the specification on disk counts.
    pub(crate) async fn align(&self, id: &str) -> Result<(), NodeError> {
        let turn = self.turn(id)?;
        let _turn = turn.lock().await;
        let (spec, handles) = {
            let pods = self.lock();
            let entry = pods.get(id).ok_or_else(|| NodeError::NotFound(id.to_owned()))?;
            (entry.spec.clone(), entry.instances.clone())
        };
        for handle in &handles {
            handle.update(spec.clone()).await.map_err(NodeError::Failed)?;
        }
        let extra = handles.len().saturating_sub(spec.scaling.instances as usize);
        self.scale_down(id, &spec, extra).await
    }

    async fn scale_down(&self, id: &str, spec: &PodSpec, count: usize) -> Result<(), NodeError> {
        let mut handles = self.lock().get(id).map(|e| e.instances.clone()).unwrap_or_default();
        handles.sort_by_key(|h| h.created_ms);
        if spec.scheduling.kill_selection == KillSelection::YoungestFirst {
            handles.reverse();
        }
        for handle in handles.into_iter().take(count) {
            self.discard(id, &handle).await?;
            if let Some(entry) = self.lock().get_mut(id) {
                entry.instances.retain(|h| h.id != handle.id);
                entry.changed.send_modify(|n| *n += 1);
            }
        }
        Ok(())
    }

    /// Ends an instance and removes what is left of it: logs, checkpoint, folder.
    async fn discard(&self, pod: &str, handle: &Handle) -> Result<(), NodeError> {
        handle.stop().await;
        failpoint::pass("remove.instance-ended");
        if let Err(error) = self.host.capture.remove(&handle.id).await {
            tracing::warn!(instance = handle.id, "{error}");
        }
        self.host.sandboxes.destroy(&handle.id).await.map_err(NodeError::Failed)?;
        let subject = Subject { pod: Some(pod), instance: Some(&handle.id), container: None };
        self.host.events.publish("instance-removed", subject, "removed");
        Ok(())
    }

    /// Ends a pod and removes everything of it. Returns when nothing is left.
    pub async fn remove(&self, id: &str) -> Result<(), NodeError> {
        self.remove_if(id, None).await
    }

    /// The same, unless the pod has none of the `expected` versions.
    pub async fn remove_if(&self, id: &str, expected: Option<&[String]>) -> Result<(), NodeError> {
        let turn = self.turn(id)?;
        let _turn = turn.lock().await;
        // another remove may have been first
        refuse_stale(&self.get(id)?.spec, expected)?;
        self.take_down(id).await
    }

    async fn take_down(&self, id: &str) -> Result<(), NodeError> {
        let (spec, handles) = {
            let mut pods = self.lock();
            let entry = pods.get_mut(id).ok_or_else(|| NodeError::NotFound(id.to_owned()))?;
            entry.removing = true;
            (entry.spec.clone(), entry.instances.clone())
        };
        self.write(&Wanted { spec: spec.clone(), removing: true }).map_err(NodeError::Failed)?;
        failpoint::pass("remove.marked");
        let ends = handles.iter().map(|handle| self.discard(id, handle));
        for result in futures_util::future::join_all(ends).await {
            result?;
        }
        self.unwrite(&spec).map_err(NodeError::Failed)?;
        failpoint::pass("remove.spec-removed");
        if let Some(entry) = self.lock().remove(id) {
            entry.changed.send_modify(|n| *n += 1);
        }
        self.host.events.publish("pod-removed", Subject { pod: Some(id), ..Subject::default() }, "removed");
        Ok(())
    }

    fn write(&self, wanted: &Wanted) -> Result<(), String> {
        let name = Layout::spec_name(&wanted.spec.id);
        if wanted.spec.agentd.persistent {
            let path = self.host.layout.persistent_specs().join(&name);
            checkpoint::write(&path, wanted, Durability::Host).map_err(|e| e.to_string())?;
        }
        checkpoint::write(&self.host.layout.specs().join(name), wanted, Durability::Daemon).map_err(|e| e.to_string())
    }

    fn unwrite(&self, spec: &PodSpec) -> Result<(), String> {
        let name = Layout::spec_name(&spec.id);
        if spec.agentd.persistent {
            let path = self.host.layout.persistent_specs().join(&name);
            checkpoint::remove(&path, Durability::Host).map_err(|e| e.to_string())?;
        }
        checkpoint::remove(&self.host.layout.specs().join(name), Durability::Daemon).map_err(|e| e.to_string())
    }

    /// Waits until every instance of a pod is as asked; returns its status then. Fails when the pod is removed.
    pub async fn wait(&self, id: &str, until: Until) -> Result<PodStatus, NodeError> {
        loop {
            let (mut changed, handles) = {
                let pods = self.lock();
                let entry = pods.get(id).ok_or_else(|| NodeError::NotFound(id.to_owned()))?;
                (entry.changed.subscribe(), entry.instances.clone())
            };
            let reached = |phase: InstancePhase| match until {
                Until::Running => {
                    matches!(phase, InstancePhase::Running | InstancePhase::Finished | InstancePhase::Failed)
                }
                Until::Finished => matches!(phase, InstancePhase::Finished | InstancePhase::Failed),
            };
            let all = async {
                for handle in &handles {
                    let mut watch = handle.watch();
                    // an error means that the task has ended; its last status stands
                    let _ = watch.wait_for(|status| reached(status.phase)).await;
                }
            };
            tokio::select! {
                () = all => {}
                result = changed.changed() => {
                    if result.is_err() {
                        return Err(NodeError::NotFound(id.to_owned()));
                    }
                    continue;
                }
            }
            let status = self.get(id)?;
            if status.instances.iter().all(|i| reached(i.phase)) {
                return Ok(status);
            }
        }
    }

    /// Begins a session in a running container.
    pub async fn begin_session(&self, begin: Begin) -> Result<Session, NodeError> {
        let (since, span) = (Instant::now(), spans::exec_begin(&begin.pod));
        let result = self.begin_session_within(begin).instrument(span.clone()).await;
        match &result {
            Ok(_) => LATENCIES.exec_begin.observe_of(since.elapsed(), telemetry::trace_of(&span)),
            Err(error) => spans::failed(&span, error),
        }
        result
    }

    async fn begin_session_within(&self, begin: Begin) -> Result<Session, NodeError> {
        let status = self.get(&begin.pod)?;
        let request = &begin.request;
        let target = target::find(&status, request.instance.as_deref(), request.container.as_deref())?;
        let handle = {
            let pods = self.lock();
            let entry = pods.get(&begin.pod).ok_or_else(|| NodeError::NotFound(begin.pod.clone()))?;
            entry.instances.iter().find(|handle| handle.id == target.instance).cloned()
        };
        let handle =
            handle.ok_or_else(|| NodeError::Conflict(format!("the instance {} has ended", target.instance)))?;
        let joinable = handle.join(target.slot).await.map_err(NodeError::Conflict)?;
        let (host, spec) = (Arc::clone(&self.host), status.spec);
        // a client that goes away does not leave it half made
        let work = tokio::spawn(async move { host.sessions.begin(&host, &spec, &target, joinable, begin).await });
        work.await.map_err(|error| NodeError::Failed(format!("the session cannot be begun: {error}")))?
    }

    /// All sessions.
    pub fn sessions(&self) -> Vec<Session> {
        self.host.sessions.list()
    }

    /// One session.
    pub fn session(&self, id: &str) -> Result<Session, NodeError> {
        self.host.sessions.get(id)
    }

    /// What containers have used.
    pub async fn usage(&self, pod: Option<&str>) -> Result<Vec<agentd_api::message::ContainerUsage>, NodeError> {
        let pods = match pod {
            Some(id) => vec![self.get(id)?],
            None => self.list(),
        };
        crate::usage::of(&self.host, pods).await.map_err(NodeError::Failed)
    }

    /// Metrics of everything, gathered now or a moment ago.
    pub async fn gather(&self) -> Result<Arc<crate::observe::gather::Gathered>, crate::observe::gather::Missed> {
        let picture = || crate::observe::gather::Picture {
            pods: self.list(),
            info: self.info(),
            sessions: self.sessions().iter().map(|session| session.status().state).collect(),
        };
        crate::observe::gather::Gatherer::gather(&self.host, picture).await
    }

    /// The node as a whole.
    pub fn info(&self) -> NodeInfo {
        let free: NodeResources = self.ledger.free().into();
        NodeInfo {
            instance: self.host.config.instance.clone(),
            hostname: self.host.hostname().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: self.host.facts.kernel.clone(),
            boot_id: self.host.facts.boot_id.clone(),
            cgroups: self.host.driver.mode().as_str().to_owned(),
            total: self.ledger.total().into(),
            reserved: self.ledger.reserved().into(),
            used: self.ledger.used().into(),
            free,
            instances: self.lock().values().map(|e| e.instances.len() as u32).sum(),
        }
    }
}

fn refuse_known(pods: &BTreeMap<String, Entry>, id: &str) -> Result<(), NodeError> {
    if pods.contains_key(id) {
        return Err(NodeError::Conflict(format!(
            "the pod {id} exists already; change it with `agentctl pod update` or remove it first"
        )));
    }
    Ok(())
}

/// Refuses a change that was made for another version. To be asked while the pod's turn is held.
fn refuse_stale(spec: &PodSpec, expected: Option<&[String]>) -> Result<(), NodeError> {
    let found = spec.version.as_deref().unwrap_or_default();
    match expected {
        Some(expected) if expected.iter().all(|version| version != found) => {
            Err(NodeError::Stale { pod: spec.id.clone(), found: found.to_owned(), expected: expected.to_vec() })
        }
        _ => Ok(()),
    }
}

impl Entry {
    fn status(&self) -> PodStatus {
        PodStatus {
            id: self.spec.id.clone(),
            spec: self.spec.clone(),
            instances: self.instances.iter().map(Handle::status).collect(),
        }
    }
}

/// Paths of the fields in which two specifications differ, other than those that change in place.
fn changed_elsewhere(old: &PodSpec, new: &PodSpec) -> Vec<String> {
    let mut aligned = new.clone();
    aligned.scaling.instances = old.scaling.instances;
    for (new, old) in aligned.containers.iter_mut().zip(&old.containers) {
        if !old.agentd.exclusive_cores {
            new.resources.cpus = old.resources.cpus;
        }
        new.resources.mem = old.resources.mem;
        new.agentd.cpu = old.agentd.cpu.clone();
        new.agentd.memory = old.agentd.memory.clone();
    }
    let (Ok(old), Ok(new)) = (serde_json::to_value(old), serde_json::to_value(&aligned)) else {
        return vec![String::new()];
    };
    let mut fields = Vec::new();
    differences("", &old, &new, &mut fields);
    fields
}

fn differences(path: &str, old: &serde_json::Value, new: &serde_json::Value, fields: &mut Vec<String>) {
    use serde_json::Value;
    match (old, new) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match (a.get(key), b.get(key)) {
                    (Some(a), Some(b)) => differences(&path, a, b, fields),
                    _ => fields.push(path),
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (n, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}[{n}]"), a, b, fields);
            }
        }
        (a, b) if a != b => fields.push(path.to_owned()),
        _ => {}
    }
}

/// What the host has and what is kept for it.
fn capacity(host: &Host) -> (NodeResources, NodeResources) {
    let config = &host.config;
    let disk =
        agentd_metrics::host::filesystem(&host.layout.state).map_or(0.0, |fs| fs.total_bytes as f64 / 1_048_576.0);
    let total = NodeResources {
        cpus: config.resources.cpus.unwrap_or(host.facts.topology.cpus().len() as f64),
        mem: host.memory_total() as f64 / 1_048_576.0,
        disk: config.resources.disk_mib.map_or(disk, |mib| mib as f64),
        gpus: 0.0,
    };
    let reserved = NodeResources {
        cpus: config.reserved.cpus,
        mem: config.reserved.memory_mib as f64,
        disk: config.reserved.disk_mib as f64,
        gpus: 0.0,
    };
    (total, reserved)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> serde_json::Value {
        serde_json::json!({
            "id": "/a", "labels": {"k": "v"}, "scaling": {"kind": "fixed", "instances": 2},
            "volumes": [{"name": "data"}],
            "containers": [
                {"name": "c", "exec": {"command": {"shell": "true"}}, "resources": {"cpus": 1, "mem": 64, "disk": 10},
                 "environment": {"A": "1"}, "volumeMounts": [{"name": "data", "mountPath": "/data"}]},
                {"name": "d", "exec": {"command": {"argv": ["true"]}}, "resources": {"cpus": 2, "mem": 64},
                 "agentd": {"exclusiveCores": true}},
            ],
        })
    }

    /// Fields that count as changed elsewhere when `change` is made.
    fn changed(change: impl FnOnce(&mut serde_json::Value)) -> Vec<String> {
        let parse = |value: &serde_json::Value| agentd_api::parse::pod(value.to_string().as_bytes()).unwrap();
        let mut new = pod();
        change(&mut new);
        changed_elsewhere(&parse(&pod()), &parse(&new))
    }

    #[test]
    fn resources_and_the_number_of_instances_change_in_place() {
        assert_eq!(changed(|_| {}), [""; 0]);
        assert_eq!(changed(|p| p["scaling"]["instances"] = 5.into()), [""; 0]);
        assert_eq!(changed(|p| p["containers"][0]["resources"]["cpus"] = 0.5.into()), [""; 0]);
        assert_eq!(changed(|p| p["containers"][1]["resources"]["mem"] = 128.into()), [""; 0]);
        assert_eq!(changed(|p| p["containers"][0]["agentd"] = serde_json::json!({"cpu": {"limit": 2}})), [""; 0]);
        assert_eq!(changed(|p| p["containers"][0]["agentd"] = serde_json::json!({"memory": {"low": 8}})), [""; 0]);
        // a default that is spelt out is no change
        assert_eq!(changed(|p| p["containers"][0]["resources"]["gpus"] = 0.into()), [""; 0]);
    }

    #[test]
    fn every_other_change_is_named_by_its_path() {
        assert_eq!(changed(|p| p["labels"]["k"] = "w".into()), ["labels.k"]);
        assert_eq!(changed(|p| p["labels"]["l"] = "w".into()), ["labels.l"]);
        assert_eq!(changed(|p| drop(p.as_object_mut().unwrap().remove("labels"))), ["labels"]);
        assert_eq!(changed(|p| p["containers"][0]["environment"]["A"] = "2".into()), ["containers[0].environment.A"]);
        assert_eq!(changed(|p| p["containers"][0]["resources"]["disk"] = 20.into()), ["containers[0].resources.disk"]);
        assert_eq!(
            changed(|p| p["containers"][0]["agentd"] = serde_json::json!({"pids": 9})),
            ["containers[0].agentd"]
        );
        // whole cores are given at a start
        assert_eq!(changed(|p| p["containers"][1]["resources"]["cpus"] = 1.into()), ["containers[1].resources.cpus"]);
        assert_eq!(
            changed(|p| p["containers"][1]["exec"]["command"] = serde_json::json!({"shell": "true"})),
            ["containers[1].exec.command.argv", "containers[1].exec.command.shell"]
        );
        assert_eq!(
            changed(|p| p["containers"][0]["volumeMounts"][0]["mountPath"] = "/x".into()),
            ["containers[0].volumeMounts[0].mountPath"]
        );
        assert_eq!(changed(|p| p["agentd"] = serde_json::json!({"restart": "never"})), ["agentd"]);
    }

    #[test]
    fn containers_that_come_or_go_or_change_places_are_a_change() {
        assert_eq!(changed(|p| drop(p["containers"].as_array_mut().unwrap().pop())), ["containers"]);
        let more = |p: &mut serde_json::Value| {
            let mut another = p["containers"][0].clone();
            another["name"] = "e".into();
            p["containers"].as_array_mut().unwrap().push(another);
        };
        assert_eq!(changed(more), ["containers"]);
        let fields = changed(|p| p["containers"].as_array_mut().unwrap().reverse());
        assert!(fields.contains(&"containers[0].name".to_owned()), "{fields:?}");
        // several changes are all named, also beside one that is allowed
        let fields = changed(|p| {
            p["scaling"]["instances"] = 3.into();
            p["id"] = "/b".into();
            p["containers"][1]["resources"]["disk"] = 1.into();
        });
        assert_eq!(fields, ["containers[1].resources.disk", "id"]);
    }
}
