//! A stand-in for the node: pods that only exist on paper, with real events, images and logs around them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentd_api::message::{ContainerUsage, NodeInfo, NodeResources, Observation};
use agentd_api::pod::PodSpec;
use agentd_api::resources::{Resource, Short, Shortfall};
use agentd_api::session::ExecRequest;
use agentd_api::status::{ContainerStatus, ExitStatus, InstancePhase, InstanceStatus, PodStatus, TaskState};
use agentd_images::Store;
use agentd_logging::Capture;
use agentd_metrics::catalogue::agent;
use agentd_metrics::model::{Batch, Scope};
use tokio::sync::watch;

use crate::api::Pods;
use crate::events::{Events, Subject};
use crate::layout::Layout;
use crate::node::{NodeError, Until};
use crate::observe::gather::{Gathered, Missed};
use crate::session::tests::Setting;
use crate::session::{Begin, Session};

pub(crate) struct Fake {
    pods: Mutex<BTreeMap<String, PodStatus>>,
    changed: watch::Sender<u64>,
    /// Sessions that were begun: children of the test.
    live: Mutex<Vec<Session>>,
    events: Events,
    images: Store,
    capture: Capture,
    layout: Layout,
    pub folder: tempfile::TempDir,
}

/// A pod with two containers. Its label `fake` says what becomes of it: the phase, `slow`, `insufficient` or `panic`.
pub(crate) fn pod(id: &str, fate: &str) -> String {
    let container = |name: &str| {
        serde_json::json!({
            "name": name, "resources": {"cpus": 0.1, "mem": 32}, "exec": {"command": {"shell": "true"}}
        })
    };
    serde_json::json!({"id": id, "labels": {"fake": fate}, "containers": [container("web"), container("log")]})
        .to_string()
}

impl Fake {
    pub fn new() -> Self {
        let folder =
            tempfile::Builder::new().prefix(&format!("agentd-test-{}-", std::process::id())).tempdir().unwrap();
        Self {
            pods: Mutex::default(),
            changed: watch::channel(0).0,
            live: Mutex::default(),
            events: Events::default(),
            images: Store::open(&folder.path().join("images"), agentd_images::Settings::default()).unwrap(),
            capture: Capture::start(folder.path().join("logs"), agentd_logging::Settings::default()).unwrap(),
            layout: Layout { run: folder.path().join("run"), state: folder.path().to_owned() },
            folder,
        }
    }

    pub fn knows(&self, id: &str) -> bool {
        self.pods.lock().unwrap().contains_key(id)
    }

    pub fn set_phase(&self, id: &str, phase: InstancePhase) {
        let mut pods = self.pods.lock().unwrap();
        pods.get_mut(id).unwrap().instances.iter_mut().for_each(|instance| instance.phase = phase);
        self.changed.send_modify(|count| *count += 1);
    }

    fn expect(&self, id: &str, expected: Option<&[String]>) -> Result<(), NodeError> {
        let found = self.get(id)?.spec.version.unwrap_or_default();
        match expected {
            Some(expected) if !expected.contains(&found) => {
                Err(NodeError::Stale { pod: id.to_owned(), found, expected: expected.to_vec() })
            }
            _ => Ok(()),
        }
    }

    fn enter(&self, mut spec: PodSpec, phase: InstancePhase) -> PodStatus {
        spec.version = Some(jiff::Timestamp::now().to_string());
        let failed = phase == InstancePhase::Failed;
        let container = |name: &str| ContainerStatus {
            name: name.to_owned(),
            state: if failed { TaskState::TaskFailed } else { TaskState::TaskRunning },
            reason: None,
            message: None,
            pid: (!failed).then_some(4711),
            exit: failed.then_some(ExitStatus::Code(7)),
            attempt: 1,
            healthy: None,
            started_at: None,
            finished_at: None,
            memory_peak_bytes: Some(1 << 20),
            cgroup: None,
            endpoints: Vec::new(),
        };
        let instance = InstanceStatus {
            id: format!("00000000000{}", self.pods.lock().unwrap().len()),
            phase,
            message: None,
            addresses: vec!["10.88.0.2".to_owned()],
            init_pid: Some(4710),
            containers: spec.containers.iter().map(|c| container(&c.name)).collect(),
        };
        let status = PodStatus { id: spec.id.clone(), spec, instances: vec![instance] };
        self.pods.lock().unwrap().insert(status.id.clone(), status.clone());
        self.changed.send_modify(|count| *count += 1);
        status
    }
}

impl Pods for Fake {
    async fn run(&self, spec: PodSpec) -> Result<PodStatus, NodeError> {
        if self.knows(&spec.id) {
            return Err(NodeError::Conflict(format!("the pod {} exists already", spec.id)));
        }
        let phase = match spec.labels.get("fake").map_or("running", String::as_str) {
            "insufficient" => {
                let short = Short { resource: Resource::Cpus, need: 4000, free: 1500, executor: 0 };
                return Err(NodeError::Insufficient(Shortfall(vec![short])));
            }
            "panic" => panic!("the label says so"),
            "slow" => {
                tokio::time::sleep(Duration::from_millis(300)).await;
                InstancePhase::Running
            }
            "starting" => InstancePhase::Starting,
            "finished" => InstancePhase::Finished,
            "failed" => InstancePhase::Failed,
            _ => InstancePhase::Running,
        };
        self.events.publish("pod-accepted", Subject { pod: Some(&spec.id), ..Subject::default() }, "accepted");
        Ok(self.enter(spec, phase))
    }

    async fn update(&self, spec: PodSpec, expected: Option<&[String]>) -> Result<PodStatus, NodeError> {
        self.expect(&spec.id, expected)?;
        Ok(self.enter(spec, InstancePhase::Running))
    }

    async fn remove(&self, id: &str, expected: Option<&[String]>) -> Result<(), NodeError> {
        self.expect(id, expected)?;
        self.pods.lock().unwrap().remove(id);
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    async fn wait(&self, id: &str, until: Until) -> Result<PodStatus, NodeError> {
        let mut changed = self.changed.subscribe();
        loop {
            let status = self.get(id)?;
            let ended = |phase| matches!(phase, InstancePhase::Finished | InstancePhase::Failed);
            let reached = |phase| ended(phase) || (until == Until::Running && phase == InstancePhase::Running);
            if status.instances.iter().all(|instance| reached(instance.phase)) {
                return Ok(status);
            }
            let _ = changed.changed().await;
        }
    }

    fn list(&self) -> Vec<PodStatus> {
        self.pods.lock().unwrap().values().cloned().collect()
    }

    fn get(&self, id: &str) -> Result<PodStatus, NodeError> {
        self.pods.lock().unwrap().get(id).cloned().ok_or_else(|| NodeError::NotFound(id.to_owned()))
    }

    fn info(&self) -> NodeInfo {
        let amounts = NodeResources { cpus: 4.0, mem: 1024.0, disk: 10.0, gpus: 0.0 };
        NodeInfo {
            instance: "agentd".to_owned(),
            hostname: "here".to_owned(),
            version: "0".to_owned(),
            kernel: "6.1".to_owned(),
            boot_id: "b".to_owned(),
            cgroups: "v2".to_owned(),
            total: amounts,
            reserved: NodeResources::default(),
            used: NodeResources::default(),
            free: amounts,
            instances: 0,
        }
    }

    fn events(&self) -> &Events {
        &self.events
    }

    fn images(&self) -> &Store {
        &self.images
    }

    fn capture(&self) -> &Capture {
        &self.capture
    }

    async fn begin(&self, begin: Begin) -> Result<Session, NodeError> {
        self.get(&begin.pod)?;
        let ExecRequest { command, tty, stdin, detach, .. } = begin.request;
        let setting = Setting { tty, stdin: stdin || tty, detach, ..Setting::default() };
        let shell = command.join(" ");
        if shell.starts_with("# slow") {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        let session = crate::session::tests::over(&shell, setting);
        self.live.lock().unwrap().push(session.clone());
        Ok(session)
    }

    fn sessions(&self) -> Vec<Session> {
        self.live.lock().unwrap().clone()
    }

    fn session(&self, id: &str) -> Result<Session, NodeError> {
        let live = self.live.lock().unwrap();
        live.iter().find(|session| session.id() == id).cloned().ok_or_else(|| NodeError::NotFound(id.to_owned()))
    }

    async fn gather(&self) -> Result<Arc<Gathered>, Missed> {
        let mut batch = Batch::new(std::time::SystemTime::now());
        let host = batch.scope(Scope::default());
        batch.put(&agent::PODS, host, &[], self.list().len() as u64);
        for pod in self.list() {
            for instance in &pod.instances {
                let scope = batch.scope(Scope {
                    labels: vec![("id", instance.id.clone()), ("pod", pod.id.clone()), ("container", "c".to_owned())],
                    resource: vec![("service.instance.id", instance.id.clone())],
                    start: None,
                    pod: Some(pod.id.clone()),
                });
                batch.put(&agent::THREADS, scope, &[], 7_u64);
            }
        }
        Ok(Arc::new(Gathered::new(batch)))
    }

    fn compatible(&self) -> bool {
        true
    }

    async fn observation(&self) -> Result<Observation, String> {
        let watcher = crate::observe::Watcher::new(crate::config::Observe::default());
        Ok(super::super::metric_calls::observation(&watcher, &crate::profile::Figures::default()))
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn open_data(&self, instance: &str) -> Result<std::os::fd::OwnedFd, String> {
        let folder = std::fs::File::open(self.layout.sandbox(instance));
        folder.map(Into::into).map_err(|error| error.to_string())
    }

    async fn usage(&self, _pod: Option<&str>) -> Result<Vec<ContainerUsage>, NodeError> {
        Ok(Vec::new())
    }
}
