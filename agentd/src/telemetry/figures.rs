//! What delivery counts, as metrics.

use agentd_metrics::catalogue::agent;
use agentd_metrics::model::{Batch, ScopeId};
use agentd_metrics::push::queue::{Figures, Reason};

use super::export::Counts;

pub fn of_signal(batch: &mut Batch, scope: ScopeId, signal: &'static str, figures: &Figures) {
    for (outcome, count) in [
        ("sent", figures.sent),
        ("refused", figures.refused),
        ("expired", figures.expired),
        ("dropped", figures.dropped),
    ] {
        batch.put(&agent::OTLP_REQUESTS, scope, &[signal, outcome], count);
    }
    for (reason, count) in Reason::ALL.iter().zip(figures.failures) {
        batch.put(&agent::OTLP_FAILURES, scope, &[signal, reason.word()], count);
    }
    for (family, count) in [
        (&agent::OTLP_RETRIES, figures.retried),
        (&agent::OTLP_BYTES, figures.sent_bytes),
        (&agent::OTLP_REJECTED, figures.rejected),
        (&agent::OTLP_QUEUE, figures.queued as u64),
        (&agent::OTLP_QUEUE_SIZE, figures.queued_bytes as u64),
    ] {
        batch.put(family, scope, &[signal], count);
    }
}

pub fn of_spans(batch: &mut Batch, scope: ScopeId, counts: Counts) {
    batch.put(&agent::SPANS, scope, &["delivered"], counts.delivered);
    batch.put(&agent::SPANS, scope, &["dropped"], counts.dropped);
}
