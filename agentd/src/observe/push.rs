//! Metrics for the OpenTelemetry collector: one task gathers at each interval, once more when the daemon ends, and hands the
//! requests to the queue of [`agentd_metrics::push`], which delivers.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use agentd_metrics::encode::otlp::{self, Limits, Origin};
use agentd_metrics::push::{Pusher, Signal};
use tokio_util::sync::CancellationToken;

use crate::node::Node;

/// Offers what is gathered at each interval until `stop`, and then once more.
pub async fn run(node: Arc<Node>, pusher: Pusher, interval: Duration, stop: CancellationToken) {
    let origin = Arc::new(origin(&node));
    let mut turns = tokio::time::interval(interval);
    turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        let last = tokio::select! {
            _ = turns.tick() => false,
            () = stop.cancelled() => true,
        };
        offer(&node, &pusher, &origin).await;
        if last {
            return;
        }
    }
}

async fn offer(node: &Node, pusher: &Pusher, origin: &Arc<Origin>) {
    let gathered = match node.gather().await {
        Ok(gathered) => gathered,
        Err(missed) => return tracing::warn!("nothing is told to the OpenTelemetry collector this time: {missed}"),
    };
    let (pusher, origin) = (pusher.clone(), Arc::clone(origin));
    let offered = tokio::task::spawn_blocking(move || {
        gathered.read(|batch| {
            for request in otlp::requests(batch, &origin, Limits::default(), |_| true) {
                pusher.offer(Signal::Metrics, otlp::encode(&request));
            }
        });
    });
    if let Err(error) = offered.await {
        tracing::error!("metrics for the OpenTelemetry collector: {error}");
    }
}

fn origin(node: &Node) -> Origin {
    let mut attributes = vec![("host.name".to_owned(), node.host.hostname().to_owned())];
    attributes.extend(node.host.facts.machine_id.clone().map(|id| ("host.id".to_owned(), id)));
    Origin { attributes, version: env!("CARGO_PKG_VERSION").to_owned(), host_start: host_start() }
}

/// When the host started, as its clock has it now; the present where that cannot be read.
fn host_start() -> SystemTime {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let uptime = text.split(' ').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0.0);
    let now = SystemTime::now();
    now.checked_sub(Duration::try_from_secs_f64(uptime).unwrap_or_default()).unwrap_or(now)
}
