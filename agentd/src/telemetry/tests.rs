use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agentd_api::status::InstancePhase;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span as Made, span::SpanKind};
use prost::Message;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::layer::SubscriberExt;

use super::spans::{self, Parent};
use super::start::Start;
use super::*;
use crate::config::Config;

/// A collector in the test's own process.
struct Collector {
    address: std::net::SocketAddr,
    bodies: Arc<Mutex<Vec<(String, Bytes)>>>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&bodies);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let kept = Arc::clone(&kept);
                let service = service_fn(move |request: Request<Incoming>| {
                    let kept = Arc::clone(&kept);
                    async move {
                        let path = request.uri().path().to_owned();
                        let body = request.into_body().collect().await?.to_bytes();
                        kept.lock().unwrap().push((path, body));
                        Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::new())))
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { address, bodies }
    }

    /// What came, with the resources.
    fn resources(&self) -> Vec<ResourceSpans> {
        let bodies = self.bodies.lock().unwrap();
        assert!(bodies.iter().all(|(path, _)| path == "/v1/traces"), "{bodies:?}");
        bodies
            .iter()
            .flat_map(|(_, body)| ExportTraceServiceRequest::decode(body.clone()).unwrap().resource_spans)
            .collect()
    }

    fn spans(&self) -> Vec<Made> {
        self.resources().into_iter().flat_map(|of| of.scope_spans).flat_map(|of| of.spans).collect()
    }

    fn config(&self, ratio: f64) -> Config {
        let mut config = Config::defaults("agentd-test", None);
        config.otlp.endpoint = Some(format!("http://{}", self.address));
        config.otlp.compression = crate::config::Compression::None;
        config.otlp.trace_ratio = ratio;
        config
    }
}

/// Traces of this thread.
struct Traced {
    collector: Collector,
    telemetry: Telemetry,
    guard: DefaultGuard,
}

impl Traced {
    async fn start(ratio: f64) -> Self {
        let collector = Collector::start().await;
        let telemetry = Telemetry::open(&collector.config(ratio)).unwrap();
        let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(telemetry.layer()));
        Self { collector, telemetry, guard }
    }

    /// Ends, and gives the spans that arrived.
    async fn end(self) -> Vec<Made> {
        drop(self.guard);
        let stop = CancellationToken::new();
        stop.cancel();
        self.telemetry.run(stop).await;
        self.collector.spans()
    }
}

fn named<'a>(spans: &'a [Made], name: &str) -> &'a Made {
    let mut found = spans.iter().filter(|span| span.name == name);
    let one = found.next().unwrap_or_else(|| panic!("no span {name} in {spans:#?}"));
    assert!(found.next().is_none(), "several spans {name}");
    one
}

fn attribute(span: &Made, name: &str) -> Option<String> {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    let found = span.attributes.iter().find(|attribute| attribute.key == name)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        Value::BoolValue(truth) => Some(truth.to_string()),
        other => panic!("{name} is {other:?}"),
    }
}

fn headers(traceparent: &str) -> HeaderMap {
    HeaderMap::from_iter([(hyper::header::HeaderName::from_static("traceparent"), traceparent.parse().unwrap())])
}

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test]
async fn a_start_is_one_span_with_its_steps_as_children() {
    let traced = Traced::start(1.0).await;
    let start = Start::begin("/shop/web", "node-1");
    start.of_instance("0123456789ab");
    async { tokio::task::yield_now().await }.instrument(start.parent().step("sandbox.claim")).await;
    let probe = start.parent().step("health.first_probe");
    let container = start.parent().adopt(spans::container_start("/shop/web", "0123456789ab", "web", 1));
    async {
        assert!(
            spans::step("launch.isolate")
                .in_scope(|| spans::isolator("cpu", "prepare").in_scope(current_trace))
                .is_some()
        );
    }
    .instrument(container.clone())
    .await;
    drop(container);
    assert!(start.goes_on(InstancePhase::Starting));
    assert!(!start.goes_on(InstancePhase::Running));
    drop(start);
    // a child that is still open does not hold the start open
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop(probe);
    let made = traced.end().await;
    assert_eq!(made.len(), 6, "{made:#?}");
    let root = named(&made, "pod.start");
    assert!(root.parent_span_id.is_empty(), "{root:#?}");
    for (name, value) in [
        ("service.name", "shop/web"),
        ("agentd.pod", "/shop/web"),
        ("agentd.instance", "0123456789ab"),
        ("service.instance.id", "0123456789ab"),
        ("agentd.node", "node-1"),
    ] {
        assert_eq!(attribute(root, name).as_deref(), Some(value), "{name}");
    }
    assert!(made.iter().all(|span| span.trace_id == root.trace_id));
    for name in ["sandbox.claim", "health.first_probe", "container.start"] {
        assert_eq!(named(&made, name).parent_span_id, root.span_id, "{name}");
    }
    let isolate = named(&made, "launch.isolate");
    assert_eq!(isolate.parent_span_id, named(&made, "container.start").span_id);
    let isolator = named(&made, "isolator.prepare");
    assert_eq!(isolator.parent_span_id, isolate.span_id);
    assert_eq!(attribute(isolator, "agentd.isolator").as_deref(), Some("cpu"));
    assert!(named(&made, "health.first_probe").end_time_unix_nano >= root.end_time_unix_nano + 20_000_000);
    // nothing of how spans are made is told as what was done
    assert!(
        made.iter()
            .flat_map(|span| &span.attributes)
            .all(|a| !a.key.starts_with("code.") && !a.key.starts_with("thread."))
    );
}

#[tokio::test]
async fn a_request_goes_on_with_the_callers_trace_and_what_it_begins_too() {
    let traced = Traced::start(0.0).await;
    let span = spans::request("POST", "/v1/pods", "/v1/pods", &headers(CALLER));
    let start = async { Start::begin("/a", "n") }.instrument(span.clone()).await;
    let ids = trace_of(&span).unwrap();
    spans::answered(&span, 503);
    drop(span);
    assert!(!start.goes_on(InstancePhase::Failed));
    drop(start);
    // without a caller's decision the share of 0 holds
    let other = spans::request("GET", "/v1/node", "/v1/node", &HeaderMap::new());
    assert_eq!(trace_of(&other), None);
    drop(other);
    let made = traced.end().await;
    assert_eq!(made.len(), 2, "{made:#?}");
    let request = named(&made, "POST /v1/pods");
    assert_eq!((&request.trace_id[..], &request.span_id[..]), (&ids.0[..], &ids.1[..]));
    assert_eq!(format!("{:032x}", u128::from_be_bytes(ids.0)), &CALLER[3..35]);
    assert_eq!(request.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    assert_eq!(request.kind, SpanKind::Server as i32);
    assert_eq!(attribute(request, "http.response.status_code").as_deref(), Some("503"));
    assert_eq!(attribute(request, "http.route").as_deref(), Some("/v1/pods"));
    let start = named(&made, "pod.start");
    assert_eq!((&start.trace_id, &start.parent_span_id), (&request.trace_id, &request.span_id));
    for span in [request, start] {
        assert_eq!(span.status.as_ref().unwrap().code, 2, "{span:#?}");
    }
}

#[tokio::test]
async fn a_start_without_a_callers_trace_is_a_root_with_a_link_to_the_request() {
    let traced = Traced::start(1.0).await;
    // neither is a trace of a caller
    for nonsense in ["00-00000000000000000000000000000000-b7ad6b7169203331-01", "nonsense"] {
        drop(spans::request("GET", "/v1/node", "/v1/node", &headers(nonsense)));
    }
    let span = spans::request("POST", "/v1/pods", "/v1/pods", &HeaderMap::new());
    let start = async { Start::begin("/a", "n") }.instrument(span.clone()).await;
    drop((span, start));
    let made = traced.end().await;
    let (request, start) = (named(&made, "POST /v1/pods"), named(&made, "pod.start"));
    assert!(start.parent_span_id.is_empty() && start.trace_id != request.trace_id);
    assert_eq!(start.links.iter().map(|link| &link.span_id).collect::<Vec<_>>(), [&request.span_id]);
    let others: Vec<_> = made.iter().filter(|span| span.name == "GET /v1/node").collect();
    assert!(others.len() == 2 && others.iter().all(|span| span.parent_span_id.is_empty()), "{others:#?}");
}

#[tokio::test]
async fn a_step_of_an_isolator_alone_is_no_trace() {
    let traced = Traced::start(1.0).await;
    assert_eq!(spans::isolator("cpu", "update").in_scope(current_trace), None);
    spans::step("launch.isolate").in_scope(|| drop(spans::isolator("cpu", "update")));
    let made = traced.end().await;
    assert_eq!(made.len(), 2, "{made:#?}");
    assert_eq!(named(&made, "isolator.update").parent_span_id, named(&made, "launch.isolate").span_id);
}

#[tokio::test]
async fn a_caller_that_keeps_no_trace_gets_none() {
    let traced = Traced::start(1.0).await;
    let span = spans::request("GET", "/v1/node", "/v1/node", &headers(&CALLER.replace("-01", "-00")));
    assert_eq!(span.in_scope(current_trace), None);
    drop(span);
    assert_eq!(traced.end().await, []);
}

#[tokio::test]
async fn the_resource_is_this_daemon_and_other_spans_stay_out() {
    let traced = Traced::start(1.0).await;
    drop(tracing::info_span!("of the log alone").entered());
    let span = spans::recovery();
    span.in_scope(|| tracing::info!("an entry of the log"));
    spans::failed(&span, &"x".repeat(1000));
    drop(span);
    drop(traced.guard);
    let stop = CancellationToken::new();
    let (telemetry, token) = (traced.telemetry.clone(), stop.clone());
    let running = tokio::spawn(async move { telemetry.run(token).await });
    // goes out by itself after a while
    let deadline = Instant::now() + Duration::from_secs(30);
    while traced.collector.bodies.lock().unwrap().is_empty() {
        assert!(Instant::now() < deadline, "nothing arrived");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    running.await.unwrap();
    let resources = traced.collector.resources();
    let resource = resources[0].resource.clone().unwrap();
    let keys: Vec<&str> = resource.attributes.iter().map(|attribute| attribute.key.as_str()).collect();
    for key in ["service.name", "service.instance.id", "service.version", "host.name"] {
        assert!(keys.contains(&key), "{keys:?}");
    }
    let made = traced.collector.spans();
    assert_eq!(made.len(), 1, "{made:#?}");
    assert!(made[0].events.is_empty());
    let status = made[0].status.clone().unwrap();
    assert_eq!((status.code, status.message.len()), (2, 200));
    let counts = traced.telemetry.traces.unwrap().finished.counts();
    assert_eq!((counts.delivered, counts.dropped), (1, 0));
}

#[test]
fn without_an_endpoint_there_is_nothing() {
    let telemetry = Telemetry::open(&Config::defaults("agentd-test", None)).unwrap();
    assert!(telemetry.layer::<tracing_subscriber::Registry>().is_none());
    assert!(telemetry.metrics().is_none());
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(LevelFilter::OFF));
    let span = spans::request("GET", "/v1/node", "/v1/node", &headers(CALLER));
    assert!(span.is_disabled());
    assert_eq!((span.in_scope(current_trace), trace_of(&span)), (None, None));
    assert!(Parent::of(&span).step("x").is_disabled());
    let start = Start::begin("/a", "n");
    start.of_instance("i");
    assert!(!start.goes_on(InstancePhase::Running));
}
