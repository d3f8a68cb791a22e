//! Delivery by OTLP, against a collector that fails in every way that a collector can.

mod collector;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentd_metrics::push::queue::{Figures, Limits, Reason};
use agentd_metrics::push::{Header, Pusher, Settings, Signal, TlsFiles};
use collector::{Act, Collector, until};
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::task::JoinHandle;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto::ring};
use tokio_util::sync::CancellationToken;

/// Stands for a body: `ExportMetricsServiceRequest` has nothing but a list of messages in its first field.
#[derive(Clone, PartialEq, Message)]
struct Body {
    #[prost(bytes = "vec", repeated, tag = "1")]
    parts: Vec<Vec<u8>>,
}

fn body(text: &str) -> Vec<u8> {
    Body { parts: vec![text.as_bytes().to_vec()] }.encode_to_vec()
}

fn text(body: &[u8]) -> String {
    let parts = Body::decode(body).unwrap().parts;
    String::from_utf8(parts.concat()).unwrap()
}

fn settings(endpoint: &str) -> Settings {
    let mut settings = Settings::new(endpoint.parse().unwrap());
    settings.limits.first_pause = Duration::from_millis(20);
    settings.limits.longest_pause = Duration::from_millis(100);
    settings.timeout = Duration::from_secs(10);
    settings
}

fn plain(collector: &Collector) -> Settings {
    settings(&format!("http://{}", collector.address))
}

/// A pusher that runs.
struct Running {
    pusher: Pusher,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn start(settings: Settings) -> Self {
        let (pusher, stop) = (Pusher::new(settings).unwrap(), CancellationToken::new());
        let (running, token) = (pusher.clone(), stop.clone());
        let task = tokio::spawn(async move { running.run(token).await });
        Self { pusher, stop, task }
    }

    fn figures(&self) -> Figures {
        self.pusher.figures(Signal::Metrics)
    }

    async fn settle(&self, what: &str) {
        until(what, || self.figures().queued == 0).await;
    }

    async fn end(self) -> Figures {
        self.stop.cancel();
        self.task.await.unwrap();
        self.pusher.figures(Signal::Metrics)
    }
}

fn failures(figures: Figures, reason: Reason) -> u64 {
    figures.failures[reason as usize]
}

#[tokio::test]
async fn both_signals_arrive_as_they_were_given_over_one_connection_each() {
    let collector = Collector::start([], None).await;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "Bearer s3cret\n").unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut wanted = settings(&format!("http://{}/otlp/", collector.address));
    wanted.headers = vec![
        Header::parse("x-tenant=blue", false).unwrap(),
        Header::parse(&format!("authorization={}", token.display()), true).unwrap(),
    ];
    let shown = format!("{wanted:?}");
    assert!(!shown.contains("blue") && !shown.contains("s3cret"), "{shown}");
    let running = Running::start(wanted);
    for n in 0..5 {
        running.pusher.offer(Signal::Metrics, body(&format!("m{n}")));
    }
    running.pusher.offer(Signal::Traces, body("t0"));
    running.settle("five requests of metrics").await;
    until("one of traces", || running.pusher.figures(Signal::Traces).sent == 1).await;
    // a token that is replaced is used from the next request on
    std::fs::write(&token, "Bearer other").unwrap();
    running.pusher.offer(Signal::Metrics, body("m5"));
    running.settle("the sixth").await;
    let figures = running.end().await;
    let seen = collector.seen();
    let metrics: Vec<_> = seen.iter().filter(|seen| seen.path == "/otlp/v1/metrics").collect();
    let texts: Vec<String> = metrics.iter().map(|seen| text(&seen.body)).collect();
    assert_eq!(texts, ["m0", "m1", "m2", "m3", "m4", "m5"]);
    assert!(metrics.iter().all(|seen| seen.connection == metrics[0].connection), "{metrics:?}");
    let traces: Vec<_> = seen.iter().filter(|seen| seen.path == "/otlp/v1/traces").collect();
    assert_eq!((traces.len(), text(&traces[0].body)), (1, "t0".to_owned()));
    let head = &metrics[0].headers;
    let values = ["content-type", "content-encoding", "x-tenant", "authorization", "host"].map(|name| &head[name]);
    let host = collector.address.to_string();
    assert_eq!(values, ["application/x-protobuf", "gzip", "blue", "Bearer s3cret", &host]);
    assert_eq!(metrics[5].headers["authorization"], "Bearer other");
    let wire: u64 =
        metrics.iter().map(|seen| seen.headers["content-length"].to_str().unwrap().parse::<u64>().unwrap()).sum();
    assert_eq!(figures, Figures { offered: 6, sent: 6, sent_bytes: wire, ..Figures::default() });
}

#[tokio::test]
async fn bodies_go_as_they_are_without_compression() {
    let collector = Collector::start([], None).await;
    let mut settings = plain(&collector);
    settings.gzip = false;
    let running = Running::start(settings);
    running.pusher.offer(Signal::Metrics, body("plain"));
    running.settle("one request").await;
    assert_eq!(running.end().await.sent_bytes, body("plain").len() as u64);
    let seen = collector.seen();
    assert!(!seen[0].headers.contains_key("content-encoding"));
    assert_eq!(text(&seen[0].body), "plain");
}

#[tokio::test]
async fn what_may_pass_is_tried_again_until_it_has() {
    let script = [
        Act::Status(503, None),
        Act::Status(502, None),
        Act::Status(504, None),
        Act::Status(429, None),
        Act::Hang,
        Act::Reset,
        Act::Accept,
    ];
    let collector = Collector::start(script, None).await;
    let running = Running::start(plain(&collector));
    running.pusher.offer(Signal::Metrics, body("a"));
    running.settle("delivery after six failures").await;
    let figures = running.end().await;
    // the one that hangs came over a kept connection, so that the reset was met at once, within the same attempt
    assert_eq!((figures.sent, figures.retried, figures.dropped), (1, 5, 0));
    let count = |reason| failures(figures, reason);
    assert_eq!((count(Reason::Unavailable), count(Reason::Throttled)), (3, 1), "{figures:?}");
    // a reset is met while connecting, or soon after
    assert_eq!(count(Reason::Connect) + count(Reason::Broken), 1, "{figures:?}");
    assert_eq!((collector.seen().len(), collector.resets()), (6, 1));
    assert!(collector.seen().iter().all(|seen| text(&seen.body) == "a"));
}

#[tokio::test]
async fn what_is_refused_is_given_up_and_the_next_goes_on() {
    let collector =
        Collector::start([Act::Status(400, None), Act::Status(500, None), Act::Status(302, None)], None).await;
    let running = Running::start(plain(&collector));
    for n in 0..4 {
        running.pusher.offer(Signal::Metrics, body(&n.to_string()));
    }
    running.settle("four requests").await;
    let figures = running.end().await;
    assert_eq!((figures.sent, figures.refused, figures.retried), (1, 3, 0));
    assert_eq!(failures(figures, Reason::Refused), 3);
    assert_eq!(text(&collector.seen()[3].body), "3");
}

#[tokio::test]
async fn the_collector_says_when_to_come_back() {
    let collector = Collector::start([Act::Status(429, Some("1"))], None).await;
    let running = Running::start(plain(&collector));
    running.pusher.offer(Signal::Metrics, body("a"));
    running.settle("delivery after the pause").await;
    let seen = collector.seen();
    let pause = seen[1].at - seen[0].at;
    assert!(pause >= Duration::from_secs(1), "{pause:?}");
    assert_eq!(running.end().await.retried, 1);
}

#[tokio::test]
async fn what_a_part_of_was_refused_is_counted_and_not_sent_again() {
    let collector = Collector::start([Act::Partial(12), Act::Accept, Act::Partial(0)], None).await;
    let running = Running::start(plain(&collector));
    for n in 0..3 {
        running.pusher.offer(Signal::Metrics, body(&n.to_string()));
    }
    running.settle("three requests").await;
    let figures = running.end().await;
    assert_eq!((figures.sent, figures.rejected, figures.retried, collector.seen().len()), (3, 12, 0, 3));
}

#[tokio::test]
async fn a_slow_collector_is_not_waited_for_longer_than_the_timeout() {
    let collector = Collector::start([Act::Late(Duration::from_mins(1))], None).await;
    let mut settings = plain(&collector);
    settings.timeout = Duration::from_millis(200);
    let running = Running::start(settings);
    running.pusher.offer(Signal::Metrics, body("a"));
    running.settle("delivery after a timeout").await;
    let figures = running.end().await;
    assert_eq!((figures.sent, figures.retried, failures(figures, Reason::Timeout)), (1, 1, 1));
    // an answer that was given up must not be taken for that of the next request
    assert_ne!(collector.seen()[0].connection, collector.seen()[1].connection);
}

#[tokio::test]
async fn a_connection_that_was_closed_meanwhile_costs_no_attempt() {
    let collector = Collector::start([Act::Close, Act::Accept, Act::Hang], None).await;
    let running = Running::start(plain(&collector));
    for n in 0..3 {
        running.pusher.offer(Signal::Metrics, body(&n.to_string()));
        running.settle("one request").await;
    }
    let figures = running.end().await;
    // the third went over the kept connection, which broke, and over a new one at once
    assert_eq!((figures.sent, figures.retried, figures.failures.iter().sum::<u64>()), (3, 0, 0));
    let seen: Vec<usize> = collector.seen().iter().map(|seen| seen.connection).collect();
    assert_eq!(seen, [0, 1, 1, 2]);
}

#[tokio::test]
async fn while_the_collector_is_away_the_newest_are_kept() {
    // a port that nobody listens on, for now
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let mut wanted = settings(&format!("http://{address}"));
    wanted.limits = Limits { requests: 4, ..wanted.limits };
    let running = Running::start(wanted);
    for n in 0..10 {
        running.pusher.offer(Signal::Metrics, body(&n.to_string()));
        running.pusher.offer(Signal::Traces, body("t"));
    }
    until("a failure to connect", || failures(running.figures(), Reason::Connect) > 1).await;
    let figures = running.figures();
    assert_eq!((figures.offered, figures.sent), (10, 0));
    assert!(figures.queued <= 5 && figures.queued as u64 + figures.dropped == 10, "{figures:?}");
    let collector = Collector::on(address, [], None).await;
    running.settle("delivery of what was kept").await;
    let figures = running.end().await;
    assert_eq!((figures.sent, figures.dropped), (4, 6), "{figures:?}");
    let metrics = collector.seen().into_iter().filter(|seen| seen.path == "/v1/metrics");
    assert_eq!(metrics.map(|seen| text(&seen.body)).collect::<Vec<_>>(), ["6", "7", "8", "9"]);
}

#[tokio::test]
async fn what_is_left_at_the_end_is_delivered_and_nobody_waits_for_a_dead_collector() {
    let collector = Collector::start([Act::Status(503, Some("600"))], None).await;
    let running = Running::start(plain(&collector));
    running.pusher.offer(Signal::Metrics, body("0"));
    until("the pause", || failures(running.figures(), Reason::Unavailable) == 1).await;
    running.pusher.offer(Signal::Metrics, body("1"));
    let began = Instant::now();
    let figures = running.end().await;
    assert_eq!((figures.sent, figures.dropped, figures.queued), (2, 0, 0));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());

    let collector = Collector::start([Act::Late(Duration::from_mins(1))], None).await;
    let mut settings = plain(&collector);
    settings.timeout = Duration::from_mins(1);
    settings.flush = Duration::from_millis(200);
    let running = Running::start(settings);
    running.pusher.offer(Signal::Metrics, body("0"));
    running.pusher.offer(Signal::Metrics, body("1"));
    until("the first under way", || collector.seen().len() == 1).await;
    let began = Instant::now();
    let figures = running.end().await;
    assert_eq!((figures.sent, figures.dropped, figures.queued), (0, 2, 0));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

/// Certificates of one authority: of the collector at 127.0.0.1 and of a client.
struct Certificates {
    folder: tempfile::TempDir,
}

impl Certificates {
    fn make() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(folder.path().join("ca.pem"), ca.pem()).unwrap();
        for (name, host) in [("server", "127.0.0.1"), ("client", "client.example")] {
            let key = KeyPair::generate().unwrap();
            let certificate = CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
            std::fs::write(folder.path().join(format!("{name}.pem")), certificate.pem()).unwrap();
            let path = folder.path().join(format!("{name}.key"));
            std::fs::write(&path, key.serialize_pem()).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn server(&self, clients: bool) -> ServerConfig {
        let read = |path: &Path| CertificateDer::from_pem_file(path).unwrap();
        let provider = Arc::new(ring::default_provider());
        let builder =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().unwrap();
        let builder = if clients {
            let mut roots = RootCertStore::empty();
            roots.add(read(&self.path("ca.pem"))).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::from_pem_file(self.path("server.key")).unwrap();
        builder.with_single_cert(vec![read(&self.path("server.pem"))], key).unwrap()
    }
}

#[tokio::test]
async fn tls_goes_by_the_given_authority_and_shows_the_own_certificate() {
    let certificates = Certificates::make();
    let collector = Collector::start([], Some(certificates.server(true))).await;
    let mut settings = settings(&format!("https://{}", collector.address));
    let identity = Some((certificates.path("client.pem"), certificates.path("client.key")));
    settings.tls = TlsFiles { ca: Some(certificates.path("ca.pem")), identity };
    let running = Running::start(settings);
    running.pusher.offer(Signal::Metrics, body("a"));
    running.settle("delivery by TLS").await;
    assert_eq!(running.end().await.sent, 1);
    assert!(collector.seen()[0].certified);
    assert_eq!(text(&collector.seen()[0].body), "a");
}

#[tokio::test]
async fn tls_with_another_authority_or_without_the_own_certificate_fails() {
    let (certificates, others) = (Certificates::make(), Certificates::make());
    for (clients, ca) in
        [(false, Some(others.path("ca.pem"))), (false, None), (true, Some(certificates.path("ca.pem")))]
    {
        let collector = Collector::start([], Some(certificates.server(clients))).await;
        let mut settings = settings(&format!("https://{}", collector.address));
        settings.tls.ca = ca;
        let running = Running::start(settings);
        running.pusher.offer(Signal::Metrics, body("a"));
        // TLS 1.3 tells a client only after its handshake that its certificate is missed
        until("a fault of TLS", || {
            let figures = running.figures();
            failures(figures, Reason::Tls) + failures(figures, Reason::Broken) > 0
        })
        .await;
        assert!(clients || failures(running.figures(), Reason::Tls) > 0);
        let figures = running.end().await;
        assert_eq!((figures.sent, figures.dropped), (0, 1));
        assert_eq!(collector.seen().len(), 0);
    }
}

#[test]
fn files_that_cannot_be_used_are_told_at_the_start() {
    let certificates = Certificates::make();
    let mut wanted = settings("https://127.0.0.1:1");
    wanted.tls.ca = Some(certificates.path("none.pem"));
    let error = Pusher::new(wanted.clone()).unwrap_err();
    assert!(error.starts_with("otlp.tls_ca: ") && error.contains("none.pem: cannot be read"), "{error}");
    let key = certificates.path("client.key");
    wanted.tls = TlsFiles { ca: None, identity: Some((certificates.path("server.pem"), key.clone())) };
    let error = Pusher::new(wanted.clone()).unwrap_err();
    assert!(error.contains("does not go with otlp.tls_key"), "{error}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = Pusher::new(wanted.clone()).unwrap_err();
    assert!(error.contains("mode 0644") && error.contains("chmod"), "{error}");
    wanted.tls = TlsFiles::default();
    wanted.headers = vec![Header::parse(&format!("authorization={}", key.display()), true).unwrap()];
    let error = Pusher::new(wanted.clone()).unwrap_err();
    assert!(error.starts_with("otlp.header_files: ") && error.contains("mode 0644"), "{error}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    // a key is many lines, which no header may be
    let error = Pusher::new(wanted).unwrap_err();
    assert!(error.contains("authorization") && !error.contains("PRIVATE"), "{error}");
}
