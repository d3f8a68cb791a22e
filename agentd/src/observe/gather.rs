//! Gathering: everything that is known of the host, its pods, its containers and the agent, at one moment, as a [`Batch`].
//!
//! One gathering runs at a time, on a thread that may block. Whoever asks while one runs waits for it and takes the next; who
//! asks within a moment of the last shares it. Who has waited too long is told so, and the gathering goes on for the next.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use agentd_api::message::NodeInfo;
use agentd_api::pod::Container;
use agentd_api::session::SessionState;
use agentd_api::status::{ContainerStatus, InstanceStatus, PodStatus};
use agentd_ebpf::observe::Snapshot;
use agentd_metrics::budget::Budget;
use agentd_metrics::catalogue::agent;
use agentd_metrics::container::{
    Facts, PodFacts, PodReading, PodSource, Reader, Totals, report, report_block, report_figures, report_pod,
};
use agentd_metrics::model::{Batch, Point, Scope, ScopeId};
use agentd_metrics::node::{HostSettings, HostSource};

use super::own;
use super::peers::{self, Book, Peers};
use super::registry::{Entry, Identity, namespace, shown};
use super::watcher::{Counts, Watcher};
use crate::host::Host;
use crate::layout::Layout;

/// How long a gathering serves those who ask after it.
const FRESH: Duration = Duration::from_millis(100);

/// Length of a period of the CPU quota that containers get, µs.
const PERIOD: u64 = 100_000;

/// A source of further points about the agent, e.g. the daemon's own latencies.
pub type Source = Box<dyn Fn(&mut Batch, ScopeId) + Send + Sync>;

/// Who runs, as the daemon knows it when it is asked.
#[derive(Debug)]
pub struct Picture {
    /// Pods with their instances.
    pub pods: Vec<PodStatus>,
    /// The node.
    pub info: NodeInfo,
    /// Sessions.
    pub sessions: Vec<SessionState>,
}

/// What one gathering gave.
#[derive(Debug)]
pub struct Gathered {
    batch: Mutex<Batch>,
    began: Instant,
    done: Instant,
    /// CPU time of those who wrote it for somebody, ns.
    written: AtomicU64,
}

impl Gathered {
    /// Holds what a test or another source has put together.
    pub fn new(batch: Batch) -> Self {
        let now = Instant::now();
        Self { batch: Mutex::new(batch), began: now, done: now, written: AtomicU64::new(0) }
    }

    /// Reads it, to write it for somebody. Blocking, and one reader at a time: writing a large batch takes milliseconds.
    pub fn read<T>(&self, with: impl FnOnce(&Batch) -> T) -> T {
        let batch = self.batch.lock().unwrap_or_else(PoisonError::into_inner);
        let before = thread_time();
        let result = with(&batch);
        self.written.fetch_add(thread_time().saturating_sub(before), Ordering::Relaxed);
        result
    }
}

/// The points of a batch that are about the scopes that `keep` chooses.
pub fn part(batch: &Batch, keep: impl Fn(&Scope) -> bool) -> Batch {
    let mut part = Batch::new(batch.time);
    let places: Vec<Option<ScopeId>> =
        batch.scopes().iter().map(|scope| keep(scope).then(|| part.scope(scope.clone()))).collect();
    for (family, points) in batch.families() {
        for point in points {
            if let Some(Some(scope)) = places.get(point.scope.index()) {
                part.push(family, Point { scope: *scope, ..point.clone() });
            }
        }
    }
    part
}

/// Why there is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missed {
    /// It took too long.
    #[error(
        "metrics were not gathered within {0} s (metrics.timeout_seconds); the host is short of CPU, or too much is watched"
    )]
    Late(u64),
    /// It broke off.
    #[error("gathering metrics failed; the daemon's log tells more")]
    Failed,
}

/// What is kept between gatherings.
struct State {
    reader: Reader,
    host: HostSource,
    book: Book,
    budget: Budget,
}

/// Gathers.
pub struct Gatherer {
    state: Mutex<State>,
    last: Arc<tokio::sync::Mutex<Option<Arc<Gathered>>>>,
    sources: Mutex<Vec<Source>>,
    limit: Duration,
    /// The daemon's start.
    start: SystemTime,
}

impl std::fmt::Debug for Gatherer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gatherer").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl Gatherer {
    /// One that has gathered nothing.
    pub fn new(config: &crate::config::Metrics, layout: &Layout) -> Self {
        let mounts_left_out = vec![layout.run.clone(), layout.state.clone()];
        let state = State {
            reader: Reader::default(),
            host: HostSource::new(HostSettings { mounts_left_out, ..HostSettings::default() }),
            book: Book::default(),
            budget: Budget::new(config.series_per_pod as usize),
        };
        Self {
            state: Mutex::new(state),
            last: Arc::default(),
            sources: Mutex::default(),
            limit: Duration::from_secs(config.timeout_seconds),
            start: SystemTime::now(),
        }
    }

    /// Adds a source of points about the agent, asked at each gathering on the thread that gathers.
    pub fn add(&self, source: Source) {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).push(source);
    }

    /// Gathers, or shares what was gathered just now.
    pub async fn gather(host: &Arc<Host>, picture: impl FnOnce() -> Picture) -> Result<Arc<Gathered>, Missed> {
        let this = &host.gatherer;
        let asked = Instant::now();
        let deadline = tokio::time::Instant::from_std(asked + this.limit);
        let late = || {
            Counts::add(&host.watcher.counts.late, 1);
            Missed::Late(this.limit.as_secs())
        };
        let turn = tokio::time::timeout_at(deadline, Arc::clone(&this.last).lock_owned());
        let mut turn = turn.await.map_err(|_| late())?;
        if let Some(last) = turn.as_ref().filter(|last| last.began >= asked || last.done.elapsed() < FRESH) {
            return Ok(Arc::clone(last));
        }
        if let Some(last) = turn.take() {
            Counts::add(&host.watcher.counts.encode_cpu, last.written.load(Ordering::Relaxed));
        }
        let (picture, host_for_work) = (picture(), Arc::clone(host));
        // the turn goes with the work: who comes next waits for its end, also when nobody waits for this one any more
        let work = tokio::task::spawn_blocking(move || {
            let gathered = Arc::new(host_for_work.gatherer.run(&host_for_work, &picture));
            *turn = Some(Arc::clone(&gathered));
            gathered
        });
        match tokio::time::timeout_at(deadline, work).await {
            Ok(Ok(gathered)) => Ok(gathered),
            Ok(Err(error)) => {
                tracing::error!("gathering metrics: {error}");
                Err(Missed::Failed)
            }
            Err(_) => Err(late()),
        }
    }

    fn run(&self, host: &Host, picture: &Picture) -> Gathered {
        let (began, cpu) = (Instant::now(), thread_time());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        let mut batch = Batch::new(SystemTime::now());
        let node = batch.scope(Scope::default());
        let snapshot = host.watcher.snapshot();
        if host.config.metrics.host {
            for trouble in state.host.gather(&mut batch, node) {
                tracing::warn!("metrics of the host: {trouble}");
            }
        }
        report_rest(&mut batch, &snapshot, host.watcher.begun());
        let entries = host.watcher.registry.all();
        let totals = report_containers(&mut batch, &mut state.reader, &host.watcher, picture, &entries, &snapshot);
        let peers = peers(&mut state.book, host, picture, &entries, &snapshot);
        report_pods(&mut batch, &mut state.reader, host, picture, &totals, &peers);
        own::report_node(&mut batch, node, &picture.info, &picture.pods, &picture.sessions);
        // what the daemon counts it counts since its start, and not since the host's
        let daemon = batch.scope(Scope { start: Some(self.start), ..Scope::default() });
        own::report_programs(&mut batch, daemon, &host.watcher, &snapshot, &host.profiles.figures());
        own::report_process(&mut batch, daemon);
        own::report_gathering(&mut batch, daemon, &host.watcher.counts);
        for source in self.sources.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            source(&mut batch, daemon);
        }
        let series = batch.series() as u64;
        state.budget.apply(&mut batch, node);
        batch.put(&agent::SERIES, node, &[], series);
        let done = Instant::now();
        batch.put(&agent::SCRAPE_DURATION, node, &[], (done - began).as_secs_f64());
        let counts = &host.watcher.counts;
        Counts::add(&counts.gathered, 1);
        Counts::add(&counts.gather_time, (done - began).as_nanos() as u64);
        Counts::add(&counts.gather_cpu, thread_time().saturating_sub(cpu));
        Gathered { batch: Mutex::new(batch), began, done, written: AtomicU64::new(0) }
    }
}

/// CPU time of this thread, ns.
pub fn thread_time() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// What the programs counted outside of known containers. The names begin with `~`, which no container's can.
fn report_rest(batch: &mut Batch, snapshot: &Snapshot, begun: Option<SystemTime>) {
    let mut scope = |name: &str| {
        let resource = vec![("container.id", name.to_owned())];
        batch.scope(Scope { labels: vec![("id", name.to_owned())], resource, start: begun, ..Scope::default() })
    };
    let (host, unknown, writeback) = (scope("~host"), scope("~unknown"), scope("~writeback"));
    report_figures(batch, host, &snapshot.host);
    report_figures(batch, unknown, &snapshot.unknown);
    if let Some(block) = &snapshot.writeback {
        report_block(batch, writeback, block);
    }
}

/// Adds every container, and gives the sums of each instance.
fn report_containers(
    batch: &mut Batch,
    reader: &mut Reader,
    watcher: &Watcher,
    picture: &Picture,
    entries: &[Entry],
    snapshot: &Snapshot,
) -> HashMap<String, Totals> {
    let mut statuses: HashMap<(&str, u32), (&Container, &ContainerStatus)> = HashMap::new();
    for pod in &picture.pods {
        for instance in &pod.instances {
            for (slot, (spec, status)) in pod.spec.containers.iter().zip(&instance.containers).enumerate() {
                statuses.insert((&instance.id, slot as u32), (spec, status));
            }
        }
    }
    let mut totals: HashMap<String, Totals> = HashMap::new();
    reader.begin_round();
    for entry in shown(entries) {
        let identity = &*entry.identity;
        let known = statuses.get(&(identity.instance.as_str(), identity.slot));
        let known = known.filter(|(_, status)| status.attempt == identity.attempt);
        let facts = known.map_or_else(Facts::default, |(spec, status)| facts(spec, status, entry.ended.is_none()));
        let started = known.and_then(|(_, status)| time(status.started_at.as_deref()?));
        // of a container that was taken back the kernel's files go on counting, and the programs begin anew
        let begun = started.map_or(entry.since, |at| at.min(entry.since));
        let scope = batch.scope(container_scope(identity, begun));
        let reading = match &entry.ended {
            Some(ended) => Err(Arc::clone(ended)),
            None => watcher.live(identity.cgroup, || reader.container(&identity.directories)),
        };
        let ended = reading.as_ref().err();
        let figures = snapshot.containers.get(&identity.cgroup);
        let figures = figures.or_else(|| ended.and_then(|ended| ended.figures.as_deref()));
        let figures = figures.map(|figures| {
            let same = begun == entry.since;
            (if same { scope } else { batch.scope(container_scope(identity, entry.since)) }, figures)
        });
        match &reading {
            Ok(reading) => {
                totals.entry(identity.instance.clone()).or_default().add(reading);
                report(batch, scope, reading, &facts, figures);
            }
            Err(ended) => report(batch, scope, &ended.last, &facts, figures),
        }
    }
    totals
}

/// What a container's specification and status say.
fn facts(spec: &Container, status: &ContainerStatus, runs: bool) -> Facts {
    let bytes = |mib: f64| (mib * 1_048_576.0) as u64;
    let limit = spec.agentd.cpu.limit.unwrap_or(spec.resources.cpus);
    let memory = (spec.resources.mem > 0.0).then(|| bytes(spec.resources.mem));
    Facts {
        started: status.started_at.as_deref().filter(|_| runs).and_then(time),
        restarts: Some(u64::from(status.attempt.saturating_sub(1))),
        cpu_quota: (limit > 0.0).then(|| ((limit * PERIOD as f64).round() as u64).max(1000)),
        cpu_period: (limit > 0.0).then_some(PERIOD),
        cpu_shares: Some(((spec.resources.cpus * 1024.0).round() as u64).max(2)),
        memory_limit: memory,
        // containers have no swap
        memory_swap_limit: memory,
        memory_reservation: spec.agentd.memory.low.map(bytes),
        tasks_limit: spec.agentd.pids,
        filesystem: None,
    }
}

fn time(text: &str) -> Option<SystemTime> {
    text.parse::<jiff::Timestamp>().ok().map(SystemTime::from)
}

/// The labels are cAdvisor's, the attributes OpenTelemetry's. `since`: when what it is for began to count.
fn container_scope(identity: &Identity, since: SystemTime) -> Scope {
    let image = identity.image.clone().unwrap_or_default();
    let (name, tag) = split_image(&image);
    let mut resource = vec![
        ("container.id", identity.id()),
        ("container.name", identity.container.clone()),
        ("container.runtime.name", "agentd".to_owned()),
        ("service.name", identity.pod.trim_start_matches('/').to_owned()),
        ("service.instance.id", identity.instance.clone()),
        ("service.namespace", identity.namespace.clone()),
    ];
    if !name.is_empty() {
        resource.push(("container.image.name", name.to_owned()));
        resource.push(("container.image.tags", tag.to_owned()));
    }
    Scope {
        labels: vec![
            ("id", identity.id()),
            ("name", format!("{}/{}", identity.instance, identity.container)),
            ("image", image),
            ("pod", identity.pod.clone()),
            ("container", identity.container.clone()),
            ("namespace", identity.namespace.clone()),
        ],
        resource,
        start: Some(since),
        pod: Some(identity.pod.clone()),
    }
}

/// Name and tag of an image's reference; a digest is no tag.
fn split_image(reference: &str) -> (&str, &str) {
    let name = reference.split('@').next().unwrap_or(reference);
    match name.rsplit_once(':') {
        // a port is before a slash
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (name, "latest"),
    }
}

fn peers(
    book: &mut Book,
    host: &Host,
    picture: &Picture,
    entries: &[Entry],
    snapshot: &Snapshot,
) -> HashMap<Arc<str>, Peers> {
    let mut names: HashMap<&str, Arc<str>> = HashMap::new();
    let mut instances: HashMap<u64, Arc<str>> = HashMap::new();
    for entry in entries {
        let name = names.entry(&entry.identity.instance).or_insert_with(|| entry.identity.instance.as_str().into());
        instances.insert(entry.identity.cgroup, Arc::clone(name));
    }
    let mut known: HashSet<&str> = names.keys().copied().collect();
    known.extend(picture.pods.iter().flat_map(|pod| &pod.instances).map(|instance| instance.id.as_str()));
    let most = host.config.metrics.peers_per_pod as usize;
    let pods = addresses(&picture.pods);
    // what could not be read has not gone
    let edges = snapshot.edges.as_deref().map_or_else(|| Cow::Owned(book.last()), Cow::Borrowed);
    let peers = book.update(&edges, |cgroup| instances.get(&cgroup).cloned(), &pods, most);
    let oldest = peers::oldest(&edges, host.config.observe.edges as usize);
    if !oldest.is_empty() {
        host.watcher.forget_edges(&oldest);
        book.release(&oldest, &pods, most);
    }
    book.retain(&known);
    peers
}

/// Which pod has which address of its own. Those on the host's network share its addresses, and have none here.
pub fn addresses(pods: &[PodStatus]) -> HashMap<IpAddr, String> {
    let mut addresses = HashMap::new();
    for pod in pods {
        for address in pod.instances.iter().flat_map(|instance| &instance.addresses) {
            if let Ok(address) = address.parse::<IpAddr>() {
                addresses.insert(address, pod.id.clone());
            }
        }
    }
    addresses
}

fn report_pods(
    batch: &mut Batch,
    reader: &mut Reader,
    host: &Host,
    picture: &Picture,
    totals: &HashMap<String, Totals>,
    peers: &HashMap<Arc<str>, Peers>,
) {
    let (layout, parent) = (host.driver.layout(), host.driver.parent().trim_matches('/'));
    let pods = layout.unified.as_deref().map(|mount| mount.join(parent).join("pods"));
    for pod in &picture.pods {
        let own_network = !crate::instance::uses_host_network(&pod.spec);
        for instance in &pod.instances {
            let source = PodSource {
                unified: pods.as_deref().map(|pods| pods.join(&instance.id)),
                pressure: instance.containers.len() > 1,
                network: instance.init_pid.filter(|_| own_network),
            };
            let started = instance.containers.iter().filter_map(|one| time(one.started_at.as_deref()?)).min();
            let scope = batch.scope(pod_scope(pod, instance, started));
            // an instance that has ended has neither cgroup nor network
            let reading = if instance.init_pid.is_some() { reader.pod(&source) } else { PodReading::default() };
            let edges = peers.get(instance.id.as_str()).map(Peers::edges).unwrap_or_default();
            let totals = totals.get(&instance.id).copied().unwrap_or_default();
            // of a pod that was taken back the kernel's files go on counting, and the programs begin anew
            let anew = host.watcher.begun().filter(|begun| started.is_some_and(|at| at < *begun) && !edges.is_empty());
            let counted = anew.map_or(scope, |begun| batch.scope(pod_scope(pod, instance, Some(begun))));
            report_pod(batch, scope, &reading, &PodFacts { started }, &totals, (counted, &edges));
        }
    }
}

fn pod_scope(pod: &PodStatus, instance: &InstanceStatus, started: Option<SystemTime>) -> Scope {
    let namespace = namespace(&pod.spec);
    Scope {
        labels: vec![
            ("id", instance.id.clone()),
            ("name", instance.id.clone()),
            ("pod", pod.id.clone()),
            ("namespace", namespace.clone()),
        ],
        resource: vec![
            ("service.name", pod.id.trim_start_matches('/').to_owned()),
            ("service.instance.id", instance.id.clone()),
            ("service.namespace", namespace),
        ],
        start: started,
        pod: Some(pod.id.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_taken_apart() {
        for (reference, name, tag) in [
            ("nginx", "nginx", "latest"),
            ("nginx:1.27", "nginx", "1.27"),
            ("registry.example:5000/a/b", "registry.example:5000/a/b", "latest"),
            ("registry.example:5000/a/b:v1@sha256:00", "registry.example:5000/a/b", "v1"),
            ("a@sha256:00", "a", "latest"),
        ] {
            assert_eq!(split_image(reference), (name, tag));
        }
    }

    #[test]
    fn a_containers_scope_says_who_and_since_when() {
        let identity = Identity {
            cgroup: 7,
            pod: "/app/web".into(),
            instance: "abc".into(),
            container: "c".into(),
            slot: 0,
            attempt: 2,
            image: Some("nginx:1.27".into()),
            namespace: "prod".into(),
            profiled: false,
            directories: agentd_metrics::container::Directories::default(),
        };
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let scope = container_scope(&identity, at(50));
        assert_eq!(scope.start, Some(at(50)));
        let label = |name: &str| scope.labels.iter().find(|(label, _)| *label == name).unwrap().1.as_str();
        assert_eq!((label("id"), label("pod"), label("namespace")), ("abc/c/2", "/app/web", "prod"));
        let attribute = |name: &str| scope.resource.iter().find(|(label, _)| *label == name).unwrap().1.as_str();
        assert_eq!((attribute("service.name"), attribute("container.image.tags")), ("app/web", "1.27"));
        assert_eq!(scope.pod.as_deref(), Some("/app/web"));
    }
}
