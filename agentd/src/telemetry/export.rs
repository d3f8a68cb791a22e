//! Finished spans: kept in a list with a bound, encoded as `ExportTraceServiceRequest`, handed to the pusher.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentd_metrics::push::{Pusher, Signal};
use opentelemetry::Context;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use prost::Message;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Spans in one request.
const REQUEST: usize = 512;

/// Spans that wait to be encoded; further ones are dropped.
const MOST: usize = 8 * REQUEST;

/// How long a span waits for others to go with.
const LINGER: Duration = Duration::from_secs(5);

/// Spans that were handed on and dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Handed to the pusher.
    pub delivered: u64,
    /// Came while too many waited.
    pub dropped: u64,
}

/// The spans that have ended. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Finished {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    list: Mutex<List>,
    /// Told of the first span of a list, and when there are enough for a request.
    news: Notify,
}

#[derive(Debug, Default)]
struct List {
    spans: Vec<SpanData>,
    resource: ResourceAttributesWithSchema,
    counts: Counts,
}

impl Finished {
    fn list(&self) -> MutexGuard<'_, List> {
        self.shared.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What became of spans so far.
    pub fn counts(&self) -> Counts {
        self.list().counts
    }

    /// Encodes spans as they come, until `stop`, and then those that are left. Sleeps while there are none.
    pub async fn run(&self, pusher: &Pusher, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.shared.news.notified() => {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = self.enough() => {}
                        () = tokio::time::sleep(LINGER) => {}
                    }
                }
            }
            while let Some(body) = self.encode() {
                pusher.offer(Signal::Traces, body);
            }
            if stop.is_cancelled() {
                return;
            }
        }
    }

    async fn enough(&self) {
        while self.list().spans.len() < REQUEST {
            self.shared.news.notified().await;
        }
    }

    /// The next request; none where no span waits.
    fn encode(&self) -> Option<Vec<u8>> {
        let mut list = self.list();
        let count = list.spans.len().min(REQUEST);
        if count == 0 {
            return None;
        }
        list.counts.delivered += count as u64;
        let spans: Vec<SpanData> = list.spans.drain(..count).collect();
        let resource_spans = group_spans_by_resource_and_scope(spans, &list.resource);
        drop(list);
        Some(ExportTraceServiceRequest { resource_spans }.encode_to_vec())
    }
}

impl SpanProcessor for Finished {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        let mut list = self.list();
        if list.spans.len() >= MOST {
            list.counts.dropped += 1;
            return;
        }
        list.spans.push(span);
        let count = list.spans.len();
        drop(list);
        if count == 1 || count == REQUEST {
            self.shared.news.notify_one();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.list().resource = resource.into();
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::time::SystemTime;

    use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
    use opentelemetry_sdk::trace::{SpanEvents, SpanLinks};

    use super::*;

    fn span(number: u64, flags: TraceFlags) -> SpanData {
        let ids = (TraceId::from(u128::from(number) + 1), SpanId::from(number + 1));
        SpanData {
            span_context: SpanContext::new(ids.0, ids.1, flags, false, TraceState::NONE),
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: Cow::Borrowed("work"),
            start_time: SystemTime::UNIX_EPOCH,
            end_time: SystemTime::UNIX_EPOCH,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: opentelemetry::InstrumentationScope::default(),
        }
    }

    fn spans(body: &[u8]) -> usize {
        let request = ExportTraceServiceRequest::decode(body).unwrap();
        request.resource_spans.iter().flat_map(|of| &of.scope_spans).map(|of| of.spans.len()).sum()
    }

    #[test]
    fn requests_have_a_bound_and_so_has_what_waits() {
        let finished = Finished::default();
        for n in 0..MOST as u64 + 7 {
            finished.on_end(span(n, TraceFlags::SAMPLED));
            finished.on_end(span(n, TraceFlags::NOT_SAMPLED));
        }
        assert_eq!(finished.counts(), Counts { delivered: 0, dropped: 7 });
        let mut total = 0;
        while let Some(body) = finished.encode() {
            assert_eq!(spans(&body), REQUEST);
            total += REQUEST;
        }
        assert_eq!(total, MOST);
        assert_eq!(finished.counts(), Counts { delivered: MOST as u64, dropped: 7 });
    }
}
