//! Start-up after whatever happened before: a clean end, a SIGKILL at any instruction, a new version, a reboot.
//!
//! 1. A run folder of another boot is emptied: nothing that it names exists any more.
//! 2. Every sandbox with a checkpoint is taken back, with or without a living pod-init; the others (ready ones of the
//!    pool, half-made ones) are destroyed.
//! 3. What belongs to nobody is swept: cgroups, network, disk limits, folders, logs.
//! 4. Every wanted pod gets the instances that it lacks. What takes its time (a removal that was under way, an update to
//!    undo, instances too many) goes on beside the API. Persistent pods of an earlier boot start anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use agentd_api::pod::Image;
use agentd_api::resources::Resources;
use tracing::Instrument;

use crate::checkpoint::{self, Durability};
use crate::events::Subject;
use crate::instance::{self, Handle, Record};
use crate::node::{Node, NodeError, Wanted};
use crate::telemetry::spans;

/// What was found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// Instances taken back.
    pub adopted: usize,
    /// Of these, those whose pod-init was dead.
    pub without_init: usize,
    /// Sandboxes removed in which no pod had been started: ready ones of the pool, half-made ones.
    pub unused: usize,
    /// Other sandboxes and cgroups that belonged to nobody.
    pub swept: usize,
    /// Instances started because their pod lacked them.
    pub started: usize,
}

impl Report {
    /// One line for people. What there was none of is left out, but for instances.
    fn text(&self) -> String {
        let count = |count: usize, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
        let mut text = format!("{} taken back", count(self.adopted, "instance", "instances"));
        if self.without_init > 0 {
            let _ = write!(text, " ({} without a living pod-init)", self.without_init);
        }
        if self.unused > 0 {
            let _ = write!(text, ", {} removed", count(self.unused, "unused sandbox", "unused sandboxes"));
        }
        if self.swept > 0 {
            let _ = write!(text, ", {} removed", count(self.swept, "leftover", "leftovers"));
        }
        if self.started > 0 {
            let _ = write!(text, ", {} started", count(self.started, "instance", "instances"));
        }
        text
    }
}

/// Recovers. To be called once, before the API serves and before the pool fills.
pub async fn run(node: &Arc<Node>) -> Result<Report, String> {
    let span = spans::recovery();
    let result = recover(node).instrument(span.clone()).await;
    result.inspect_err(|error| spans::failed(&span, error))
}

async fn recover(node: &Arc<Node>) -> Result<Report, String> {
    let host = &node.host;
    let mut report = Report::default();
    forget_other_boot(node)?;
    let wanted = read_wanted(node)?;
    let mut records = BTreeMap::new();
    let (mut orphans, mut unused) = (BTreeSet::new(), BTreeSet::new());
    for name in names(&host.layout.pods())? {
        match checkpoint::read::<Record>(&host.layout.checkpoint(&name)) {
            Ok(Some(record)) if wanted.contains_key(&record.spec.id) => {
                records.insert(name, record);
            }
            Ok(None) => {
                unused.insert(name.clone());
                orphans.insert(name);
            }
            Ok(Some(_)) => {
                orphans.insert(name);
            }
            Err(error) => {
                tracing::error!("{error}; the instance is ended");
                orphans.insert(name);
            }
        }
    }
    let driver = Arc::clone(&host.driver);
    let sandboxes = blocking(move || driver.list_sandboxes().map_err(|e| e.to_string())).await?;
    orphans.extend(sandboxes.into_iter().filter(|id| !records.contains_key(id)));
    for id in &orphans {
        match host.sandboxes.destroy(id).await {
            Ok(()) if unused.contains(id) => report.unused += 1,
            Ok(()) => report.swept += 1,
            // one that cannot be ended now must not keep the others from being taken back
            Err(error) => {
                tracing::error!(sandbox = id, "a leftover cannot be removed, tried again at the next start: {error}");
            }
        }
    }
    hold_images(node, records.values());
    sweep(node, records.iter().filter(|(_, r)| !r.released).map(|(id, _)| id.clone()).collect()).await?;
    let known: BTreeSet<String> = records.keys().cloned().collect();
    for id in names(&host.layout.logs())?.into_iter().filter(|id| !known.contains(id)) {
        if let Err(error) = host.capture.remove(&id).await {
            tracing::warn!("{error}");
        }
    }
    restore_cores(node, records.values());
    let mut handles: BTreeMap<String, Vec<Handle>> = BTreeMap::new();
    let mut differing = BTreeSet::new();
    for (id, record) in records {
        let sandbox = if record.released { None } else { host.sandboxes.adopt(&id).await };
        report.adopted += 1;
        report.without_init += usize::from(sandbox.is_none() && !record.released);
        let amount = if record.machine.over() { Resources::ZERO } else { instance::needs(&record.spec) };
        let grant = node.ledger().adopt(amount);
        let pod = record.spec.id.clone();
        if wanted.get(&pod).is_some_and(|w| w.spec != record.spec) {
            differing.insert(pod.clone());
        }
        handles.entry(pod).or_default().push(instance::adopt(host, record, sandbox, grant));
    }
    // whoever asks for a session finds it from the first answer on
    futures_util::future::join_all(handles.values().flatten().map(Handle::settled)).await;
    for (pod, wanted) in &wanted {
        node.adopt(wanted, handles.remove(pod).unwrap_or_default());
    }
    for (pod, wanted) in &wanted {
        report.started += settle(node, pod, wanted, differing.contains(pod)).await;
    }
    checkpoint::write_text(&host.layout.boot(), &host.facts.boot_id).map_err(|e| e.to_string())?;
    host.events.publish("agent-recovered", Subject::default(), report.text());
    Ok(report)
}

/// Finishes what was under way for one pod, beside everything else where that may take long; returns the number of
/// instances started. `differs` says that an instance has another specification than the pod.
async fn settle(node: &Arc<Node>, pod: &str, wanted: &Wanted, differs: bool) -> usize {
    let (shared, name) = (Arc::clone(node), pod.to_owned());
    if wanted.removing {
        // its containers may take their grace periods
        tokio::spawn(async move {
            match shared.remove(&name).await {
                // a client that asked again may have been first
                Ok(()) | Err(NodeError::NotFound(_)) => {}
                Err(error) => tracing::error!(pod = name, "its removal could not be finished: {error}"),
            }
        });
        return 0;
    }
    let have = node.get(pod).map_or(0, |status| status.instances.len() as u32);
    let want = wanted.spec.scaling.instances;
    let mut grants = Vec::new();
    for _ in have..want {
        match node.ledger().take(instance::needs(&wanted.spec)) {
            Ok(grant) => grants.push(grant),
            Err(short) => {
                tracing::error!(pod, "an instance cannot be started again: {}", short.one_line());
                break;
            }
        }
    }
    let started = grants.len();
    if let Err(error) = node.add_instances(&wanted.spec, grants).await {
        tracing::error!(pod, "an instance cannot be started again: {error}");
    }
    if have > want || differs {
        tokio::spawn(async move {
            if let Err(error) = shared.align(&name).await {
                tracing::error!(pod = name, "an update that was cut short could not be put right: {error}");
            }
        });
    }
    started
}

fn forget_other_boot(node: &Node) -> Result<(), String> {
    let layout = &node.host.layout;
    let last = std::fs::read_to_string(layout.boot()).unwrap_or_default();
    if last.is_empty() || last == node.host.facts.boot_id {
        return Ok(());
    }
    for folder in [layout.pods(), layout.specs()] {
        for name in names(&folder)? {
            let path = folder.join(name);
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.map_err(|e| format!("{} of an earlier boot: {e}", path.display()))?;
        }
    }
    Ok(())
}

fn read_wanted(node: &Node) -> Result<BTreeMap<String, Wanted>, String> {
    let layout = &node.host.layout;
    let mut wanted: BTreeMap<String, Wanted> = BTreeMap::new();
    // of the two copies of a persistent pod the one on disk is written first, so it is never the older one
    for folder in [layout.specs(), layout.persistent_specs()] {
        for name in names(&folder)? {
            let path = folder.join(&name);
            if path.extension().is_none_or(|extension| extension != "json") {
                // a temporary file whose rename never came
                std::fs::remove_file(&path).map_err(|e| format!("{}: {e}", path.display()))?;
                continue;
            }
            match checkpoint::read::<Wanted>(&path) {
                Ok(Some(found)) => {
                    let known = wanted.get(&found.spec.id);
                    let same = known.is_some_and(|known| known.spec == found.spec && known.removing == found.removing);
                    if folder != layout.specs() && !same {
                        checkpoint::write(&layout.specs().join(&name), &found, Durability::Daemon)
                            .map_err(|e| e.to_string())?;
                    }
                    wanted.insert(found.spec.id.clone(), found);
                }
                Ok(None) => {}
                Err(error) => return Err(format!("{error}; move the file away to start without this pod")),
            }
        }
    }
    Ok(wanted)
}

/// Exclusive cores are claimed again before any container is prepared.
fn restore_cores<'a>(node: &Node, records: impl Iterator<Item = &'a Record>) {
    let mut allocator = node.host.cores.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for record in records.filter(|r| !r.released) {
        for (slot, cores) in record.cores.iter().enumerate().filter(|(_, cores)| !cores.is_empty()) {
            if let Err((holder, cpu)) = allocator.restore(&record.id, slot as u32, cores) {
                tracing::error!(instance = record.id, slot, "core {cpu} is held by {holder} too");
            }
        }
    }
}

fn hold_images<'a>(node: &Node, records: impl Iterator<Item = &'a Record>) {
    for record in records.filter(|r| !r.released) {
        for container in &record.spec.containers {
            let Some(image) = container.image.clone() else { continue };
            let image = Image { force_pull: false, ..image };
            // a pull that had not come to its end goes on with the container's launch
            if let Some(found) = node.host.images.image(&image.id)
                && let Err(error) = node.host.images.hold(&found.digest, &record.id)
            {
                tracing::warn!(instance = record.id, "{error}");
            }
        }
    }
}

async fn sweep(node: &Arc<Node>, known: Vec<String>) -> Result<(), String> {
    let host = Arc::clone(&node.host);
    blocking(move || {
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        host.network.recover(&known).map_err(|e| e.to_string())?;
        for id in names(&host.layout.sandboxes())? {
            if !known.contains(&id.as_str()) {
                let dir = host.layout.sandbox(&id);
                host.disk.cleanup_pod(&id, &dir).map_err(|e| e.to_string())?;
                agentd_isolators::disk::remove_tree(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
            }
        }
        host.disk.sweep(&known).map_err(|e| e.to_string())
    })
    .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())?
}

/// Names in a folder; none if it does not exist.
fn names(folder: &Path) -> Result<Vec<String>, String> {
    match std::fs::read_dir(folder) {
        Ok(entries) => Ok(entries.filter_map(|e| e.ok().and_then(|e| e.file_name().into_string().ok())).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(format!("{}: {error}", folder.display())),
    }
}
