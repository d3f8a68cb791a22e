//! Contexts over TLS and plain TCP: what reaches the daemon, and what is told where nothing does.

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use agentd_api::problem::Problem;
use hyper::Method;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::Memory;
use crate::ctl::arguments::Form;
use crate::ctl::client::{CallError, Client, Wanted};
use crate::ctl::contexts::store::Context;
use crate::ctl::doctor;
use crate::ctl::failure::Failure;
use crate::ctl::output::Output;
use crate::ctl::transport::Transport;

struct Authority {
    folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

/// From the year to the year in which a certificate is valid.
type Years = (i32, i32);
const NOW: Years = (2020, 2120);
const PAST: Years = (2000, 2001);

impl Authority {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority");
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(folder.path().join("ca.crt"), certificate.pem()).unwrap();
        Self { folder, certificate: certificate.der().clone(), issuer: Issuer::new(params, key) }
    }

    fn issue(&self, name: &str, hosts: &[&str], (from, until): Years) {
        let key = KeyPair::generate().unwrap();
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(until, 1, 1));
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.folder.path().join(format!("{name}.crt")), certificate.pem()).unwrap();
        std::fs::write(self.folder.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// A context with the certificate of a client of this authority.
    fn context(&self, port: u16, host: &str, client: &str) -> Context {
        Context {
            endpoint: format!("https://{host}:{port}"),
            ca: Some(self.file("ca.crt")),
            certificate: Some(self.file(&format!("{client}.crt"))),
            key: Some(self.file(&format!("{client}.key"))),
            insecure: false,
        }
    }

    /// Serves connections with the certificate of this name: any request is answered with its own path, an upgrade with
    /// what is sent. Clients need a certificate of `clients`.
    async fn serve(&self, name: &str, clients: &Authority) -> u16 {
        let mut roots = RootCertStore::empty();
        roots.add(clients.certificate.clone()).unwrap();
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider)).build().unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&tokio_rustls::rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![CertificateDer::from_pem_file(self.file(&format!("{name}.crt"))).unwrap()],
                PrivateKeyDer::from_pem_file(self.file(&format!("{name}.key"))).unwrap(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        echo(stream).await;
                    }
                });
            }
        });
        port
    }
}

async fn echo(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    if !head.contains("upgrade: x\r\n") {
        let host = head.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{host}", host.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
        return;
    }
    stream.write_all(b"HTTP/1.1 101 Now\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n").await.unwrap();
    let mut said = [0; 5];
    stream.read_exact(&mut said).await.unwrap();
    stream.write_all(&said).await.unwrap();
    stream.shutdown().await.unwrap();
}

fn client(context: &Context) -> Client {
    Client::through(Transport::context("far", context).unwrap())
}

async fn told(context: &Context) -> String {
    let call = client(context).call(Method::GET, "/v1/node", None).await;
    match call {
        Ok(body) => String::from_utf8(body.to_vec()).unwrap(),
        Err(CallError::Failure(failure)) => {
            assert_eq!(failure.code(), 5);
            failure.message()
        }
        Err(CallError::Problem(Problem { detail, .. })) => panic!("nobody refuses: {detail}"),
    }
}

async fn upgraded(client: &Client) -> hyper::upgrade::Upgraded {
    client.upgrade(Method::POST, "/", "x", None).await.unwrap()
}

async fn hello(stream: hyper::upgrade::Upgraded) {
    let mut stream = hyper_util::rt::TokioIo::new(stream);
    stream.write_all(b"hello").await.unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.unwrap();
    assert_eq!(said, b"hello");
}

#[tokio::test]
async fn calls_and_upgrades_go_over_tls() {
    let authority = Authority::new();
    authority.issue("server", &["localhost", "127.0.0.1"], NOW);
    authority.issue("ann", &[], NOW);
    let port = authority.serve("server", &authority).await;
    for host in ["localhost", "127.0.0.1"] {
        let context = authority.context(port, host, "ann");
        assert_eq!(told(&context).await, format!("{host}:{port}"), "the host is named as the context does");
        hello(upgraded(&client(&context)).await).await;
    }
}

#[tokio::test]
async fn an_upgrade_on_the_socket_gives_the_socket_back() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("x.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let serve = async { echo(listener.accept().await.unwrap().0).await };
    let client = Client::new(Wanted::Socket(socket));
    let use_it = async {
        let upgraded = upgraded(&client).await;
        let parts = upgraded.downcast::<hyper_util::rt::TokioIo<UnixStream>>().expect("it is the socket itself");
        let mut stream = parts.io.into_inner();
        stream.write_all(b"hello").await.unwrap();
        let mut said = parts.read_buf.to_vec();
        stream.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, b"hello");
    };
    tokio::join!(serve, use_it);
}

#[tokio::test]
async fn what_bars_the_way_is_told_with_its_cure() {
    let (authority, other) = (Authority::new(), Authority::new());
    authority.issue("server", &["localhost"], NOW);
    authority.issue("stale", &["localhost"], PAST);
    authority.issue("ann", &[], NOW);
    other.issue("eve", &[], NOW);
    let port = authority.serve("server", &authority).await;
    let stale = authority.serve("stale", &authority).await;
    let picky = authority.serve("server", &other).await;
    let plain = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let plain_port = plain.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = plain.accept().await.unwrap();
            // a client that hangs up first is no matter
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let closed = free.local_addr().unwrap().port();
    drop(free);
    let stranger = Context { ca: Some(other.file("ca.crt")), ..authority.context(port, "localhost", "ann") };
    let cases = [
        (authority.context(stale, "localhost", "ann"), "has expired", "agentctl cert issue"),
        (stranger, "another authority", "ca.crt"),
        (authority.context(port, "127.0.0.1", "ann"), "not for 127.0.0.1, but for", "one of its names"),
        (authority.context(closed, "localhost", "ann"), "refused", "has its configuration a listener"),
        (authority.context(plain_port, "localhost", "ann"), "does not speak TLS", "look at the port"),
    ];
    for (context, what, cure) in cases {
        let message = told(&context).await;
        assert!(message.contains(what) && message.contains(cure) && message.contains("(context far)"), "{message}");
    }
    // the server may be gone before its alert is read
    let message = told(&authority.context(picky, "localhost", "ann")).await;
    let heard = message.contains("does not know the authority") && message.contains("agentctl cert issue");
    assert!(heard || message.contains("agentctl doctor looks at the certificates"), "{message}");
    // an own certificate that is over is told without asking anybody
    authority.issue("old", &[], PAST);
    let failure = Transport::context("far", &authority.context(closed, "localhost", "old")).unwrap_err();
    let Failure::Told { code, message, .. } = failure else { panic!("it is told") };
    assert!(code == 2 && message.contains("has expired on 2001") && message.contains("old.crt"), "{message}");
}

#[tokio::test]
async fn doctor_looks_at_both_certificates_and_the_key() {
    let authority = Authority::new();
    authority.issue("server", &["localhost"], NOW);
    authority.issue("ann", &[], NOW);
    std::fs::set_permissions(authority.file("ann.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let port = authority.serve("server", &authority).await;
    let client = client(&authority.context(port, "localhost", "ann"));
    let memory = Memory::default();
    let mut output = Output::into(Form::Json, Box::new(memory.clone()));
    let words = doctor::Arguments { connection: false, config: None, dev: None };
    // this server answers with no version
    let failure = doctor::run(&client, &mut output, words).await.unwrap_err();
    assert_eq!(failure.code(), 1);
    let report: serde_json::Value = serde_json::from_slice(&memory.0.lock().unwrap()).unwrap();
    let found: Vec<(&str, &str)> = report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|check| (check["name"].as_str().unwrap(), check["status"].as_str().unwrap()))
        .collect();
    let expected = [
        ("daemon/endpoint", "ok"),
        ("daemon/ca", "ok"),
        ("daemon/client_certificate", "ok"),
        ("daemon/key", "warn"),
        ("daemon/certificate", "ok"),
        ("daemon/connection", "fail"),
        ("host", "ok"),
    ];
    assert_eq!(found, expected, "{report:#}");
}

#[tokio::test]
async fn plain_http_goes_to_loopback_only() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            echo(listener.accept().await.unwrap().0).await;
        }
    });
    let context = Context { endpoint: format!("http://127.0.0.1:{port}"), insecure: true, ..Context::default() };
    assert_eq!(told(&context).await, format!("127.0.0.1:{port}"));
    hello(upgraded(&client(&context)).await).await;
}
