//! Delivery to an OpenTelemetry collector, and traces of the daemon's own work.
//!
//! Off until `otlp.endpoint` is set: then nothing is made of spans, which cost a branch each, and nothing is delivered.
//!
//! - [`Telemetry`] is made before the daemon's log is set up, because the layer that makes traces of spans is part of it. Its
//!   one task, [`Telemetry::run`], delivers; who gathers metrics offers them to [`Telemetry::metrics`].
//! - [`spans`] has the spans of the daemon's work; [`start`] that of a pod's start, which many tasks have a part in.
//! - [`export`] keeps finished spans until they are encoded.
//!
//! Spans of traces have a target of their own, so that they are no part of the daemon's log.

mod export;
mod figures;
pub mod spans;
pub mod start;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agentd_metrics::host::HostFacts;
use agentd_metrics::model::{Batch, ScopeId};
use agentd_metrics::push::{Pusher, Signal};
use opentelemetry::KeyValue;
use opentelemetry::trace::{TraceContextExt, TracerProvider as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tokio_util::sync::CancellationToken;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use crate::config::Config;
use export::Finished;

/// Whether traces are made in this process.
static TRACING: AtomicBool = AtomicBool::new(false);

/// A trace and a span of it.
pub type TraceAndSpan = ([u8; 16], [u8; 8]);

/// The trace and span of what is done now, if it is one that is delivered: for exemplars.
pub fn current_trace() -> Option<TraceAndSpan> {
    if !TRACING.load(Ordering::Relaxed) {
        return None;
    }
    trace_of(&tracing::Span::current())
}

/// The trace and span of a span, if it is one that is delivered.
pub fn trace_of(span: &tracing::Span) -> Option<TraceAndSpan> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context();
    let found = context.span().span_context().clone();
    (found.is_valid() && found.is_sampled()).then(|| (found.trace_id().to_bytes(), found.span_id().to_bytes()))
}

/// What is delivered, and where to.
#[derive(Debug, Clone, Default)]
pub struct Telemetry {
    pusher: Option<Pusher>,
    metrics: bool,
    interval: Duration,
    traces: Option<Traces>,
}

#[derive(Debug, Clone)]
struct Traces {
    finished: Finished,
    provider: SdkTracerProvider,
}

impl Telemetry {
    /// Reads the files that `[otlp]` names. Nothing is delivered before [`Telemetry::run`].
    ///
    /// # Errors
    /// One line about what cannot be used.
    pub fn open(config: &Config) -> Result<Self, String> {
        let Some(settings) = config.otlp.settings() else { return Ok(Self::default()) };
        let pusher = Pusher::new(settings)?;
        let traces = config.otlp.traces.then(|| Traces::new(config.otlp.trace_ratio, &attributes(config)));
        let interval = Duration::from_secs(config.otlp.interval_seconds);
        Ok(Self { pusher: Some(pusher), metrics: config.otlp.metrics, interval, traces })
    }

    /// The layer that makes traces; none where they are off.
    pub fn layer<S>(&self) -> Option<Box<dyn Layer<S> + Send + Sync>>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let tracer = self.traces.as_ref()?.provider.tracer("agentd");
        TRACING.store(true, Ordering::Relaxed);
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_level(false)
            .with_target(false);
        Some(layer.with_filter(Targets::new().with_target(spans::TARGET, LevelFilter::INFO)).boxed())
    }

    /// Where bodies of metrics go and how often; none where metrics are not delivered.
    pub fn metrics(&self) -> Option<(Pusher, Duration)> {
        self.pusher.clone().filter(|_| self.metrics).map(|pusher| (pusher, self.interval))
    }

    /// Delivers until `stop`, and then what is left, within a few seconds. To be called once. Metrics that are to go out
    /// still are offered before `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let Some(pusher) = &self.pusher else { return };
        let last = CancellationToken::new();
        let spans = async {
            match &self.traces {
                Some(traces) => traces.finished.run(pusher, &stop).await,
                None => stop.cancelled().await,
            }
            last.cancel();
        };
        tokio::join!(spans, pusher.run(last.clone()));
    }

    /// Adds what is known of delivery to the daemon's own metrics.
    pub fn fill(&self, batch: &mut Batch, scope: ScopeId) {
        let Some(pusher) = &self.pusher else { return };
        for (signal, on) in [(Signal::Metrics, self.metrics), (Signal::Traces, self.traces.is_some())] {
            if on {
                figures::of_signal(batch, scope, signal.word(), &pusher.figures(signal));
            }
        }
        if let Some(traces) = &self.traces {
            figures::of_spans(batch, scope, traces.finished.counts());
        }
    }
}

impl Traces {
    fn new(ratio: f64, attributes: &[(&'static str, String)]) -> Self {
        let attributes = attributes.iter().map(|(name, value)| KeyValue::new(*name, value.clone()));
        let resource = Resource::builder_empty().with_attributes(attributes).build();
        let finished = Finished::default();
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio))))
            .with_resource(resource)
            .with_span_processor(finished.clone())
            .build();
        Self { finished, provider }
    }
}

/// What the spans' resource is: this daemon on this host.
fn attributes(config: &Config) -> Vec<(&'static str, String)> {
    let mut attributes = vec![
        ("service.name", "agentd".to_owned()),
        ("service.instance.id", config.instance.clone()),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    // facts that cannot be read are told by the daemon's start, which cannot do without them
    let facts = HostFacts::read().ok();
    let name = config.hostname.clone().or_else(|| facts.as_ref().map(|facts| facts.hostname.clone()));
    attributes.extend(name.map(|name| ("host.name", name)));
    attributes.extend(facts.and_then(|facts| facts.machine_id).map(|id| ("host.id", id)));
    attributes
}
