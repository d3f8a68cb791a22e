//! The spans of the daemon's own work.
//!
//! A span that outlives the one that it belongs to, or is made in another task, gets its parent through a [`Parent`], which
//! holds ids alone. A parent by `tracing`'s own means would stay open until its last child has ended.

use hyper::HeaderMap;
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::TraceContextExt;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Target of the spans that traces are made of. The daemon's log leaves it out.
pub const TARGET: &str = agentd_logging::TRACES;

/// Most characters of a text from outside that a span keeps.
const SHOWN: usize = 200;

/// What further spans can be put under, in any task and at any time.
#[derive(Debug, Clone, Default)]
pub struct Parent(Option<Context>);

impl Parent {
    /// This span.
    pub fn of(span: &Span) -> Self {
        Self((!span.is_disabled()).then(|| span.context()))
    }

    /// The span of what is done now.
    pub fn current() -> Self {
        Self::of(&Span::current())
    }

    /// Puts a new span under it. Without a parent the span begins a trace.
    pub fn adopt(&self, span: Span) -> Span {
        if let Some(context) = &self.0
            && !span.is_disabled()
        {
            // refused for spans that are under way already, which new ones are not
            let _ = span.set_parent(context.clone());
        }
        span
    }

    /// A span for a step, under it.
    pub fn step(&self, name: &'static str) -> Span {
        self.adopt(tracing::info_span!(target: TARGET, parent: None, "step", otel.name = name, otel.status_code = Empty, otel.status_description = Empty))
    }

    /// Puts a span under it if the work began with a caller's trace; else the span begins a trace of its own, with a link
    /// to this one.
    pub fn begin(&self, span: Span) -> Span {
        match &self.0 {
            Some(context) if context.get::<CallersTrace>().is_none() => {
                span.add_link(context.span().span_context().clone());
                span
            }
            _ => self.adopt(span),
        }
    }
}

/// Marks what was asked for by somebody who makes traces.
#[derive(Debug)]
struct CallersTrace;

/// A span for a step of what is done now, which it must not outlive.
pub fn step(name: &'static str) -> Span {
    tracing::info_span!(target: TARGET, "step", otel.name = name, otel.status_code = Empty, otel.status_description = Empty)
}

/// A step of one isolator. None where it is part of nothing that has a span, such as the look at the limits of every
/// container after a restart: each would be a trace of its own.
pub fn isolator(isolator: &'static str, step: &'static str) -> Span {
    if Span::current().is_disabled() {
        return Span::none();
    }
    tracing::info_span!(
        target: TARGET,
        "isolator",
        otel.name = %format_args!("isolator.{step}"),
        agentd.isolator = isolator,
        otel.status_code = Empty,
        otel.status_description = Empty,
    )
}

/// An image is pulled, or found to be there.
pub fn image_pull(reference: &str) -> Span {
    tracing::info_span!(
        target: TARGET,
        "image.pull",
        container.image.name = reference,
        agentd.image.pulled = Empty,
        otel.status_code = Empty,
        otel.status_description = Empty,
    )
}

/// A container is started.
pub fn container_start(pod: &str, instance: &str, container: &str, attempt: u32) -> Span {
    tracing::info_span!(
        target: TARGET,
        parent: None,
        "container.start",
        service.name = pod.trim_start_matches('/'),
        service.instance.id = instance,
        container.name = container,
        agentd.attempt = attempt,
        otel.status_code = Empty,
        otel.status_description = Empty,
    )
}

/// A session is begun.
pub fn exec_begin(pod: &str) -> Span {
    tracing::info_span!(
        target: TARGET,
        "exec.begin",
        service.name = pod.trim_start_matches('/'),
        otel.status_code = Empty,
        otel.status_description = Empty,
    )
}

/// The daemon finds what was there before it.
pub fn recovery() -> Span {
    tracing::info_span!(target: TARGET, parent: None, "recovery", otel.status_code = Empty, otel.status_description = Empty)
}

/// An API request, under the trace that its headers name, if they name one.
pub fn request(method: &'static str, route: &'static str, path: &str, headers: &HeaderMap) -> Span {
    let span = tracing::info_span!(
        target: TARGET,
        parent: None,
        "request",
        otel.name = %format_args!("{method} {route}"),
        otel.kind = "server",
        http.request.method = method,
        http.route = route,
        url.path = cut(path),
        http.response.status_code = Empty,
        otel.status_code = Empty,
        otel.status_description = Empty,
    );
    if !span.is_disabled() && headers.contains_key("traceparent") {
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
        if context.span().span_context().is_valid() {
            // the span is new
            let _ = span.set_parent(context.with_value(CallersTrace));
        }
    }
    span
}

/// Notes how a request was answered.
pub fn answered(span: &Span, status: u16) {
    span.record("http.response.status_code", status);
    if status >= 500 {
        span.record("otel.status_code", "ERROR");
    }
}

/// Notes that what the span is of has failed.
pub fn failed(span: &Span, why: &impl std::fmt::Display) {
    if !span.is_disabled() {
        span.record("otel.status_code", "ERROR");
        span.record("otel.status_description", cut(&why.to_string()));
    }
}

fn cut(text: &str) -> &str {
    text.char_indices().nth(SHOWN).map_or(text, |(end, _)| &text[..end])
}

/// Headers that appear once.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let mut values = self.0.get_all(key).iter();
        let first = values.next()?.to_str().ok();
        first.filter(|_| values.next().is_none())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(hyper::header::HeaderName::as_str).collect()
    }
}
