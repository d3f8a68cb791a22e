//! The tasks that watch: one takes events from the kernel's ring, one makes rounds every ten seconds.
//!
//! The first waits for the ring to be readable and empties it in portions; it looks by itself, too, so that no wake-up that
//! was missed leaves events lying. The second hangs programs again that somebody has detached, reads the pressure of each
//! container, forgets tombstones that are over, and tells what was left out of containers' events. Both end with the daemon.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agentd_ebpf::observe::layout::Event;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::gather::addresses;
use super::kernel_events::{Bucket, Clock, Kind, Limits, address, tell};
use super::pressure::{self, Meter, Thresholds};
use super::watcher::Counts;
use crate::events::Subject;
use crate::host::Host;
use crate::node::Node;

/// How often rounds are made.
const ROUND: Duration = Duration::from_secs(10);

/// Rounds between two tellings of what was left out.
const TELL: u32 = 3;

/// Events taken at once, before others get their turn.
const PORTION: usize = 256;

/// How long the ring is not looked at without a wake-up.
const LOOK: Duration = Duration::from_secs(1);

/// Names of pods by address, kept for a moment: connections fail in swarms.
#[derive(Debug)]
struct Directory {
    read: Option<Instant>,
    pods: HashMap<IpAddr, String>,
}

impl Directory {
    fn pod(&mut self, node: &Node, peer: IpAddr) -> Option<String> {
        if self.read.is_none_or(|read| read.elapsed() > LOOK) {
            self.pods = addresses(&node.list());
            self.read = Some(Instant::now());
        }
        self.pods.get(&peer).map(|pod| format!("pod/{}", pod.trim_start_matches('/')))
    }
}

/// Starts both, to run until the daemon ends.
pub fn spawn(node: &Arc<Node>) -> Vec<tokio::task::JoinHandle<()>> {
    let limits: Arc<Mutex<Limits>> = Arc::default();
    let (listening, rounds) = (Arc::clone(node), Arc::clone(node));
    let shared = Arc::clone(&limits);
    vec![
        tokio::spawn(async move { listen(&listening, &shared).await }),
        tokio::spawn(async move { walk(&rounds, &limits).await }),
    ]
}

async fn listen(node: &Arc<Node>, limits: &Mutex<Limits>) {
    let Some(ring) = node.host.watcher.ring() else { return };
    // SAFETY: an owned descriptor stays open, and the same, until it is dropped with the `AsyncFd`.
    let ring = match unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) } {
        Ok(ring) => ring,
        Err(error) => return tracing::error!("the kernel's events cannot be waited for: {error}; none are told"),
    };
    let mut bucket = Bucket::new(node.host.config.observe.events_total_per_second, Instant::now());
    let mut directory = Directory { read: None, pods: HashMap::new() };
    loop {
        match tokio::time::timeout(LOOK, ring.readable()).await {
            // cleared before it is emptied: what comes in between wakes again
            Ok(Ok(mut ready)) => ready.clear_ready(),
            Ok(Err(error)) => return tracing::error!("the kernel's ring: {error}; its events are no longer told"),
            Err(_) => {}
        }
        let mut events = Vec::new();
        // a gathering that reads the maps is waited for
        while tokio::task::block_in_place(|| node.host.watcher.take(PORTION, &mut |event| events.push(*event))) > 0 {
            let clock = Clock::now();
            for event in events.drain(..) {
                told(node, &event, clock, &mut bucket, &mut directory, limits);
            }
            tokio::task::yield_now().await;
        }
    }
}

/// Publishes an event, or counts why not.
fn told(
    node: &Node,
    event: &Event,
    clock: Clock,
    bucket: &mut Bucket,
    directory: &mut Directory,
    limits: &Mutex<Limits>,
) {
    let (watcher, counts) = (&node.host.watcher, &node.host.watcher.counts);
    let Some(kind) = Kind::of(event) else { return Counts::add(&counts.unknown, 1) };
    let Some(identity) = watcher.registry.get(event.container) else { return Counts::add(&counts.unknown, 1) };
    if !watcher.settings.tells(kind.word()) {
        return Counts::add(&counts.unwanted, 1);
    }
    let mut limits = limits.lock().unwrap_or_else(PoisonError::into_inner);
    limits.heard(event.container);
    // a victim is rare, and never left out
    if kind != Kind::Oom && !bucket.take(Instant::now()) {
        limits.hold(event.container);
        return Counts::add(&counts.held, 1);
    }
    drop(limits);
    let sender = watcher.registry.get(event.sender_container);
    let peer = (kind == Kind::ConnectFailed).then(|| directory.pod(node, address(event.address))).flatten();
    let message = tell(kind, event, sender.as_deref(), peer.as_deref());
    let subject =
        Subject { pod: Some(&identity.pod), instance: Some(&identity.instance), container: Some(&identity.container) };
    node.host.events.publish_at(kind.name(), subject, clock.at(event.time), message);
    Counts::add(&counts.published, 1);
}

async fn walk(node: &Arc<Node>, limits: &Arc<Mutex<Limits>>) {
    let mut rounds = tokio::time::interval(ROUND);
    rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut meters: HashMap<u64, Meter> = HashMap::new();
    let mut number = 0_u32;
    loop {
        rounds.tick().await;
        number = number.wrapping_add(1);
        let (host, limits) = (Arc::clone(&node.host), Arc::clone(limits));
        let round = tokio::task::spawn_blocking(move || {
            mend(&host);
            measure(&host, &mut meters);
            if number.is_multiple_of(TELL) {
                tell_limits(&host, &limits);
            }
            let buried = host.watcher.bury(Instant::now());
            let mut limits = limits.lock().unwrap_or_else(PoisonError::into_inner);
            for cgroup in buried {
                limits.forget(cgroup);
            }
            meters
        });
        meters = match round.await {
            Ok(meters) => meters,
            Err(error) => {
                tracing::error!("a round of the watcher broke off: {error}");
                HashMap::new()
            }
        };
    }
}

fn mend(host: &Host) {
    let lost = host.watcher.mend();
    if !lost.is_empty() {
        let message = format!("found detached: {}; what happened in between was not counted", lost.join(", "));
        tracing::warn!("{message}");
        host.events.publish("programs-reattached", Subject::default(), message);
    }
}

fn measure(host: &Host, meters: &mut HashMap<u64, Meter>) {
    let settings = &host.watcher.settings;
    let thresholds: Thresholds = [settings.pressure_cpu, settings.pressure_memory, settings.pressure_io];
    if !settings.tells("pressure") || thresholds.iter().all(|threshold| *threshold <= 0.0) {
        return;
    }
    let entries = host.watcher.registry.all();
    meters.retain(|cgroup, _| entries.iter().any(|one| one.identity.cgroup == *cgroup && one.ended.is_none()));
    for entry in entries.iter().filter(|entry| entry.ended.is_none()) {
        let identity = &entry.identity;
        let shares = pressure::read(&identity.directories.unified);
        for crossing in meters.entry(identity.cgroup).or_default().step(shares, thresholds) {
            let subject = Subject {
                pod: Some(&identity.pod),
                instance: Some(&identity.instance),
                container: Some(&identity.container),
            };
            host.events.publish("container-pressure", subject, crossing.message());
        }
    }
}

fn tell_limits(host: &Host, limits: &Mutex<Limits>) {
    if !limits.lock().unwrap_or_else(PoisonError::into_inner).pending() {
        return;
    }
    let snapshot = host.watcher.snapshot();
    let counted = |cgroup| snapshot.containers.get(&cgroup).and_then(|figures| figures.processes);
    let due = limits.lock().unwrap_or_else(PoisonError::into_inner).due(counted);
    for (cgroup, missed) in due {
        let Some(identity) = host.watcher.registry.get(cgroup) else { continue };
        let subject = Subject {
            pod: Some(&identity.pod),
            instance: Some(&identity.instance),
            container: Some(&identity.container),
        };
        host.events.publish("container-events-limited", subject, missed.message(ROUND * TELL));
    }
}
