//! A daemon that is reached over TCP: an authority made by `agentctl cert`, and a TLS client that shares no code with agentctl.

#![allow(dead_code, reason = "each test file that uses this uses a part of it")]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use agentd_tests::{Daemon, Options, binary};
use serde_json::Value;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto, version};

pub const PATIENCE: Duration = Duration::from_secs(40);

/// A connection with TLS.
pub type Stream = StreamOwned<ClientConnection, TcpStream>;

/// Runs agentctl to its end.
pub fn agentctl(words: &[&str]) -> Output {
    Command::new(binary("agentctl")).args(words).output().expect("agentctl can be run")
}

/// Runs agentctl, which must succeed.
#[track_caller]
pub fn must(words: &[&str]) -> String {
    let output = agentctl(words);
    assert!(output.status.success(), "agentctl {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Files of an authority, a server and clients.
pub struct Pki {
    pub folder: tempfile::TempDir,
}

impl Pki {
    /// An authority and a certificate of a server on 127.0.0.1.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("agentd-test-pki-").tempdir().unwrap();
        let pki = Self { folder };
        must(&["cert", "init", "--folder", pki.at()]);
        must(&["cert", "issue", "server", "--folder", pki.at(), "--host", "127.0.0.1", "--host", "node.example"]);
        pki
    }

    pub fn at(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes a client's certificate.
    pub fn client(&self, name: &str) {
        must(&["cert", "issue", "client", "--folder", self.at(), "--principal", name]);
    }

    /// Makes a client's certificate that `agentctl` would not make: with any name, and with this end.
    pub fn odd_client(&self, file: &str, name: &str, not_after: (i32, u8, u8)) {
        let read = |name: &str| std::fs::read_to_string(self.file(name)).unwrap();
        let key = rcgen::KeyPair::from_pem(&read("ca.key")).unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_pem(&read("ca.crt"), key).unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(not_after.0, not_after.1, not_after.2);
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let own = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&own, &issuer).unwrap();
        std::fs::write(self.file(&format!("{file}.crt")), certificate.pem()).unwrap();
        std::fs::write(self.file(&format!("{file}.key")), own.serialize_pem()).unwrap();
    }

    /// The settings of a daemon that listens with this certificate.
    pub fn options(&self, address: &str) -> Options {
        let file = |name: &str| self.file(name).display().to_string();
        Daemon::with()
            .set(&format!("api.listen={address}"))
            .set(&format!("api.tls_certificate={}", file("server.crt")))
            .set(&format!("api.tls_key={}", file("server.key")))
            .set(&format!("api.tls_client_ca={}", file("ca.crt")))
    }
}

/// A port that nobody listens on.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A daemon with TLS on loopback.
pub struct Remote {
    pub daemon: Daemon,
    pub pki: Pki,
    pub port: u16,
}

impl Remote {
    /// Starts a daemon with an access list and the settings of `change`.
    #[track_caller]
    pub fn start(acl: &str, change: impl FnOnce(Options) -> Options) -> Self {
        let pki = Pki::new();
        let port = free_port();
        let file = pki.file("acl.toml");
        std::fs::write(&file, acl).unwrap();
        let options = pki.options(&format!("127.0.0.1:{port}")).set(&format!("api.acl={}", file.display()));
        let daemon = change(options).start();
        Self { daemon, pki, port }
    }

    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// Connects as the client whose files have this name, or without a certificate.
    pub fn connect(&self, client: Option<&str>) -> io::Result<Stream> {
        let files = client.map(|name| (self.pki.file(&format!("{name}.crt")), self.pki.file(&format!("{name}.key"))));
        connect(self.address(), &self.pki.file("ca.crt"), files.as_ref().map(|(c, k)| (c.as_path(), k.as_path())), true)
    }

    /// One call; status, head and body of the answer.
    pub fn try_call(&self, client: Option<&str>, method: &str, path: &str, body: &str) -> io::Result<Answer> {
        let host = format!("127.0.0.1:{}", self.port);
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let bytes = raw(self.connect(client)?, head.as_bytes())?;
        Answer::read(&bytes).ok_or_else(|| io::Error::other("no answer"))
    }

    /// One call that is answered.
    #[track_caller]
    pub fn call(&self, client: &str, method: &str, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.try_call(Some(client), method, path, &body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    #[track_caller]
    pub fn get(&self, client: &str, path: &str) -> Answer {
        self.call(client, "GET", path, &Value::Null)
    }

    /// Messages of events of a kind.
    pub fn events(&self, kind: &str) -> Vec<String> {
        let all = self.daemon.client().get("/v1/events").json;
        let of = all.as_array().unwrap().iter().filter(|event| event["kind"] == kind);
        of.map(|event| event["message"].as_str().unwrap().to_owned()).collect()
    }
}

/// Connects with TLS; the handshake is done as far as a client can tell.
pub fn connect(address: SocketAddr, ca: &Path, client: Option<(&Path, &Path)>, newest: bool) -> io::Result<Stream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(crypto::ring::default_provider());
    let version = if newest { &version::TLS13 } else { &version::TLS12 };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots);
    let config = match client {
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap()).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    let name = ServerName::from(address.ip());
    let mut connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(StreamOwned::new(connection, stream))
}

/// Sends bytes and reads until the server closes.
pub fn raw(mut stream: Stream, bytes: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(bytes)?;
    stream.flush()?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // a close without TLS's own end is one, too, where an answer came before
        Err(error) if answer.is_empty() => Err(error),
        _ => Ok(answer),
    }
}

/// An answer as it came.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub text: String,
    pub json: Value,
}

impl Answer {
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let json = serde_json::from_str(body).unwrap_or_default();
        Some(Self { status, head: head.to_ascii_lowercase(), text: body.to_owned(), json })
    }

    /// Paths of the fields at fault.
    pub fn fields(&self) -> Vec<String> {
        let errors = self.json["errors"].as_array().cloned().unwrap_or_default();
        errors.iter().map(|error| error["path"].as_str().unwrap().to_owned()).collect()
    }
}
