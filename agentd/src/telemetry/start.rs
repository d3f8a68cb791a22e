//! The start of a pod's instance: one span, and one observation, from its acceptance until all of its containers run.

use std::time::Instant;

use agentd_api::status::InstancePhase;
use tracing::Span;
use tracing::field::Empty;

use super::spans::{self, Parent, TARGET};
use crate::observe::latency::LATENCIES;

/// A start that is under way. Dropped before it is done, it ends the span and observes nothing.
#[derive(Debug)]
pub struct Start {
    began: Instant,
    span: Span,
}

impl Start {
    /// Begins, now.
    pub fn begin(pod: &str, node: &str) -> Self {
        let span = tracing::info_span!(
            target: TARGET,
            parent: None,
            "pod.start",
            service.name = pod.trim_start_matches('/'),
            service.instance.id = Empty,
            agentd.pod = pod,
            agentd.instance = Empty,
            agentd.node = node,
            otel.status_code = Empty,
            otel.status_description = Empty,
        );
        Self { began: Instant::now(), span: Parent::current().begin(span) }
    }

    /// Notes the id of the instance, which is that of its sandbox.
    pub fn of_instance(&self, id: &str) {
        self.span.record("service.instance.id", id);
        self.span.record("agentd.instance", id);
    }

    /// What the steps of the start are put under.
    pub fn parent(&self) -> Parent {
        Parent::of(&self.span)
    }

    /// Whether the start goes on in this phase. It does not once everything runs, or has ended.
    pub fn goes_on(&self, phase: InstancePhase) -> bool {
        match phase {
            InstancePhase::Starting => return true,
            InstancePhase::Running => {
                LATENCIES.pod_start.observe_of(self.began.elapsed(), super::trace_of(&self.span));
            }
            phase => spans::failed(&self.span, &phase.as_str()),
        }
        false
    }
}
