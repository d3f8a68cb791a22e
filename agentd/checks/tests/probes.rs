//! The probes and the driver against real sockets: on loopback, and inside a network namespace of the test's own.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use agentd_api::pod::{Command, ExecCheck, HealthCheck, HttpCheck, TcpCheck};
use agentd_checks::probe::{self, ProbeContext};
use agentd_checks::{CommandExit, CommandProbe, HealthEvent, HttpScheme, Probe, Timing, drive};
use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(300);

async fn request<S: AsyncReadExt + Unpin>(stream: &mut S) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// Serves each connection with `answer`; gives the port.
async fn serve<F, Fut>(bind: &str, answer: F) -> io::Result<u16>
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(bind).await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    Ok(port)
}

async fn serve_status(status: &'static str) -> u16 {
    serve("127.0.0.1:0", move |mut stream| async move {
        request(&mut stream).await;
        let answer = format!("HTTP/1.1 {status}\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 5\r\n\r\nhello");
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await
    .unwrap()
}

/// A port on which nothing listens.
async fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn http_passes_for_200_to_399_only() {
    for (status, passes) in [
        ("200 OK", true),
        ("204 No Content", true),
        ("302 Found", true),
        ("399 Odd", true),
        ("400 Bad Request", false),
        ("404 Not Found", false),
        ("503 Service Unavailable", false),
    ] {
        let port = serve_status(status).await;
        let result = probe::http(None, port, "/ready", HttpScheme::Http, LONG).await;
        assert_eq!(result.is_ok(), passes, "{status}: {result:?}");
        if let Err(message) = result {
            assert!(message.contains(&status[..3]) && message.contains("/ready"), "{message}");
        }
    }
}

#[tokio::test]
async fn http_asks_for_the_path_and_reads_no_body() {
    let (heads, mut seen) = mpsc::channel(1);
    let port = serve("127.0.0.1:0", move |mut stream| {
        let heads = heads.clone();
        async move {
            let _ = heads.send(request(&mut stream).await).await;
            // a body that never ends must not hold the check up
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n").await;
            tokio::time::sleep(LONG).await;
        }
    })
    .await
    .unwrap();
    let before = Instant::now();
    probe::http(None, port, "/health?deep=1", HttpScheme::Http, LONG).await.unwrap();
    assert!(before.elapsed() < Duration::from_secs(5));
    let head = seen.recv().await.unwrap().to_lowercase();
    assert!(head.starts_with("get /health?deep=1 http/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("host: 127.0.0.1:{port}\r\n")), "{head}");
}

#[tokio::test]
async fn ipv6_loopback_is_tried_when_ipv4_refuses() {
    let answer = |mut stream: TcpStream| async move {
        request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    };
    let Ok(port) = serve("[::1]:0", answer).await else {
        eprintln!("skipped because this host has no IPv6 loopback address");
        return;
    };
    probe::http(None, port, "/", HttpScheme::Http, LONG).await.unwrap();
    probe::tcp(None, port, LONG).await.unwrap();
}

#[tokio::test]
async fn refused_says_so() {
    let port = closed_port().await;
    for result in [probe::tcp(None, port, LONG).await, probe::http(None, port, "/", HttpScheme::Http, LONG).await] {
        assert_eq!(result.unwrap_err(), format!("connection refused by 127.0.0.1:{port}"));
    }
}

#[tokio::test]
async fn servers_that_hang_or_drip_time_out() {
    let hole = serve("127.0.0.1:0", |stream| async move {
        tokio::time::sleep(LONG).await;
        drop(stream);
    });
    let drip = serve("127.0.0.1:0", |mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX: ").await;
        while stream.write_all(b"a").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    for port in [hole.await.unwrap(), drip.await.unwrap()] {
        for scheme in [HttpScheme::Http, HttpScheme::Https] {
            let before = Instant::now();
            let result = probe::http(None, port, "/", scheme, SHORT).await;
            assert!(result.is_err() && before.elapsed() < Duration::from_secs(4), "{result:?}");
        }
        let message = probe::http(None, port, "/", HttpScheme::Http, SHORT).await.unwrap_err();
        assert!(message.contains("took longer than 300ms"), "{message}");
        // a TCP check asks no more than the connection
        probe::tcp(None, port, LONG).await.unwrap();
    }
}

#[tokio::test]
async fn nonsense_and_endless_heads_fail() {
    let nonsense = serve("127.0.0.1:0", |mut stream| async move {
        let _ = stream.write_all(b"SSH-2.0-OpenSSH\r\n").await;
        request(&mut stream).await;
    });
    let endless = serve("127.0.0.1:0", |mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX: ").await;
        while stream.write_all(&[b'a'; 4096]).await.is_ok() {}
    });
    let closes = serve("127.0.0.1:0", |stream| async move { drop(stream) });
    for port in [nonsense.await.unwrap(), endless.await.unwrap(), closes.await.unwrap()] {
        let message = probe::http(None, port, "/", HttpScheme::Http, LONG).await.unwrap_err();
        assert!(!message.contains("took longer"), "{message}");
    }
}

#[tokio::test]
async fn https_takes_any_certificate() {
    let certificate = CertificateDer::from_pem_slice(include_bytes!("data/test-cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("data/test-key.pem")).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = tokio_rustls::rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let port = serve("127.0.0.1:0", move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            request(&mut stream).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            let _ = stream.shutdown().await;
        }
    })
    .await
    .unwrap();
    probe::http(None, port, "/", HttpScheme::Https, LONG).await.unwrap();
    assert!(probe::http(None, port, "/", HttpScheme::Http, LONG).await.is_err());
}

/// A network namespace of this test's own with its loopback interface up, and a server in it that answers 200.
fn namespace_with_server() -> Option<(OwnedFd, u16)> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped because a network namespace can only be made by root");
        return None;
    }
    std::thread::spawn(|| {
        // SAFETY: only this thread leaves the namespace, it shares no file descriptor table or file system state away.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.expect("unshare(CLONE_NEWNET)");
        raise_loopback();
        let netns = OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").unwrap());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let mut head = [0; 1024];
                let _ = io::Read::read(&mut stream, &mut head);
                let _ = io::Write::write_all(&mut stream, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            }
        });
        (netns, port)
    })
    .join()
    .ok()
}

fn raise_loopback() {
    // struct ifreq: the name, then a union that starts with the flags
    let mut request = [0u8; 40];
    request[..2].copy_from_slice(b"lo");
    request[16..18].copy_from_slice(&(libc::IFF_UP as u16).to_ne_bytes());
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
    // SAFETY: the request is as long as struct ifreq and lives through the call.
    let rc = unsafe { libc::ioctl(fd, libc::SIOCSIFFLAGS, request.as_mut_ptr()) };
    assert_eq!(rc, 0, "raising lo: {}", io::Error::last_os_error());
}

#[tokio::test]
async fn sockets_are_made_in_the_network_namespace() {
    let Some((netns, port)) = namespace_with_server() else { return };
    probe::http(Some(netns.as_fd()), port, "/", HttpScheme::Http, LONG).await.unwrap();
    probe::tcp(Some(netns.as_fd()), port, LONG).await.unwrap();
    // what listens here is not seen from there, and this process is still where it was
    let here = serve_status("200 OK").await;
    if here != port {
        let message = probe::tcp(Some(netns.as_fd()), here, LONG).await.unwrap_err();
        assert!(message.contains("refused"), "{message}");
    }
    probe::tcp(None, here, LONG).await.unwrap();
}

#[tokio::test]
async fn something_else_than_a_namespace_is_refused() {
    let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let message = probe::tcp(Some(file.as_fd()), 1, LONG).await.unwrap_err();
    assert!(message.contains("network namespace"), "{message}");
}

/// Answers with what the test set, and counts how many run at once.
struct Script {
    exits: std::sync::Mutex<Vec<Result<CommandExit, String>>>,
    running: Arc<AtomicUsize>,
    seen: std::sync::Mutex<Vec<Vec<String>>>,
}

impl Script {
    fn new(mut exits: Vec<Result<CommandExit, String>>) -> Arc<Self> {
        exits.reverse();
        Arc::new(Self {
            exits: std::sync::Mutex::new(exits),
            running: Arc::default(),
            seen: std::sync::Mutex::default(),
        })
    }
}

impl CommandProbe for Script {
    fn run(&self, argv: Vec<String>, _timeout: Duration) -> BoxFuture<'static, Result<CommandExit, String>> {
        self.seen.lock().unwrap().push(argv);
        let exit = self.exits.lock().unwrap().pop();
        let running = Arc::clone(&self.running);
        Box::pin(async move {
            assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0, "two checks at once");
            tokio::time::sleep(Duration::from_millis(20)).await;
            running.fetch_sub(1, Ordering::SeqCst);
            match exit {
                Some(exit) => exit,
                None => std::future::pending().await,
            }
        })
    }
}

fn quick(max_failures: u32) -> Timing {
    Timing {
        grace: Duration::ZERO,
        interval: Duration::from_millis(10),
        timeout: LONG,
        delay: Duration::from_millis(10),
        max_failures,
    }
}

#[tokio::test]
async fn driver_reports_transitions_and_ends_with_the_kill() {
    let script = Script::new(vec![
        Ok(CommandExit::Code(0)),
        Ok(CommandExit::Code(0)),
        Ok(CommandExit::Code(3)),
        Ok(CommandExit::Code(0)),
        Ok(CommandExit::Signal(11)),
        Ok(CommandExit::TimedOut),
        Err("no such file".to_owned()),
    ]);
    let probe = Probe::Command { argv: vec!["check".to_owned()], runner: script.clone() };
    let (events, mut received) = mpsc::channel(16);
    drive(quick(3), probe, Duration::ZERO, CancellationToken::new(), events).await;
    let mut all = Vec::new();
    while let Some(event) = received.recv().await {
        all.push(event);
    }
    let texts: Vec<String> = all.iter().map(|event| format!("{event:?}")).collect();
    assert_eq!(all.len(), 6, "{texts:?}");
    assert_eq!((&all[0], &all[2]), (&HealthEvent::Healthy, &HealthEvent::Healthy));
    assert!(texts[1].contains("exited with 3"), "{texts:?}");
    assert!(texts[3].contains("signal 11"), "{texts:?}");
    assert!(texts[4].contains("2 of 3") && texts[4].contains("was killed"), "{texts:?}");
    assert!(matches!(&all[5], HealthEvent::Kill { message } if message.contains("no such file")), "{texts:?}");
}

#[tokio::test]
async fn driver_ends_when_cancelled_or_unheard() {
    // a check that hangs is running when the cancellation comes
    let probe = Probe::Command { argv: vec!["hang".to_owned()], runner: Script::new(Vec::new()) };
    let (events, _received) = mpsc::channel(1);
    let cancel = CancellationToken::new();
    let task = tokio::spawn(drive(quick(3), probe, Duration::ZERO, cancel.clone(), events));
    tokio::time::sleep(Duration::from_millis(100)).await;
    cancel.cancel();
    tokio::time::timeout(LONG, task).await.unwrap().unwrap();

    let probe = Probe::Tcp { netns: None, port: closed_port().await };
    let (events, received) = mpsc::channel(1);
    drop(received);
    let timing = Timing { delay: Duration::from_hours(1), ..quick(3) };
    tokio::time::timeout(LONG, drive(timing, probe, Duration::ZERO, CancellationToken::new(), events)).await.unwrap();
}

#[tokio::test]
async fn driver_takes_back_an_old_container_without_a_new_delay_or_grace_period() {
    let probe = Probe::Tcp { netns: None, port: closed_port().await };
    let timing = Timing { delay: Duration::from_secs(15), grace: Duration::from_mins(5), ..quick(1) };
    let (events, mut received) = mpsc::channel(1);
    let age = Duration::from_secs(301);
    tokio::time::timeout(LONG, drive(timing, probe, age, CancellationToken::new(), events)).await.unwrap();
    assert!(matches!(received.recv().await, Some(HealthEvent::Kill { .. })));
}

#[tokio::test]
async fn probes_come_from_the_pods_words() {
    let base = HealthCheck {
        http: None,
        tcp: None,
        exec: None,
        grace_period_seconds: 300.0,
        interval_seconds: 60.0,
        max_consecutive_failures: 3,
        timeout_seconds: 20.0,
        delay_seconds: 15.0,
    };
    let port = |name: &str| (name == "web").then_some(8080);
    let script = Script::new(Vec::new());
    let make = |check: &HealthCheck| {
        let context = ProbeContext { netns: None, port: &port, runner: script.clone() };
        Probe::from_spec(check, context, "containers[0].healthCheck")
    };
    let http = |endpoint: &str, path: Option<&str>, scheme: Option<&str>| HealthCheck {
        http: Some(HttpCheck {
            endpoint: endpoint.to_owned(),
            path: path.map(str::to_owned),
            scheme: scheme.map(str::to_owned),
        }),
        ..base.clone()
    };
    let probe = make(&http("web", None, Some("HTTPS"))).unwrap_or_else(|message| panic!("{message}"));
    assert!(matches!(probe, Probe::Http { port: 8080, ref path, scheme: HttpScheme::Https, .. } if path == "/"));
    let probe = make(&http("web", Some("ready"), None)).unwrap_or_else(|message| panic!("{message}"));
    assert!(matches!(probe, Probe::Http { ref path, scheme: HttpScheme::Http, .. } if path == "/ready"));
    let tcp = HealthCheck { tcp: Some(TcpCheck { endpoint: "web".to_owned() }), ..base.clone() };
    assert!(matches!(make(&tcp), Ok(Probe::Tcp { port: 8080, .. })));
    let shell = Command::Shell("test -e /ready".to_owned());
    let exec = HealthCheck { exec: Some(ExecCheck { command: shell }), ..base.clone() };
    assert!(matches!(make(&exec), Ok(Probe::Command { ref argv, .. }) if *argv == ["/bin/sh", "-c", "test -e /ready"]));
    for (check, word) in
        [(http("db", None, None), "endpoint"), (http("web", None, Some("FTP")), "scheme"), (base, "exactly one")]
    {
        let message = make(&check).err().unwrap();
        assert!(message.starts_with("containers[0].healthCheck") && message.contains(word), "{message}");
    }
}
