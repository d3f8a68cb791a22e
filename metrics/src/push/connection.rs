//! One attempt: connection, TLS, request, answer.
//!
//! Connections are HTTP/1.1 and kept open between requests. One that was kept may have been closed by the collector
//! meanwhile; a request that finds it so goes over a new one at once. Files of TLS are read for each new connection and files
//! of headers for each request, so that replaced ones need no restart.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{self, HeaderMap};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::Signal;
use super::answer::{self, Accepted};
use super::queue::Reason;
use super::settings::{HeaderValue, Settings, TlsFiles};

/// Most bytes of an answer that are read.
const ANSWER: usize = 64 << 10;

/// Largest file of a header, bytes.
const HEADER: u64 = 16 << 10;

/// Largest file of certificates, bytes.
const LARGEST: u64 = 4 << 20;

/// Where hosts keep the certificates that they trust: Debian, Red Hat, SUSE.
const BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// Why an attempt came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Kind.
    pub reason: Reason,
    /// For a person; holds no value of a header.
    pub message: String,
    /// When the collector wants to be asked again.
    pub retry_after: Option<Duration>,
}

impl Fault {
    fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), retry_after: None }
    }
}

/// Either kind of connection.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// The way to where one signal is posted.
pub struct Way<'a> {
    settings: &'a Settings,
    path: String,
    open: Option<SendRequest<Full<Bytes>>>,
}

impl<'a> Way<'a> {
    pub fn new(settings: &'a Settings, signal: Signal) -> Self {
        Self { settings, path: settings.endpoint.path(signal), open: None }
    }

    /// Posts a body that is compressed already, if it is to be.
    pub async fn post(&mut self, body: Bytes) -> Result<Accepted, Fault> {
        let timeout = self.settings.timeout;
        // cut in its midst, the attempt takes its connection with it
        tokio::time::timeout(timeout, self.attempt(body)).await.unwrap_or_else(|_| {
            Err(Fault::new(Reason::Timeout, format!("no answer within {timeout:?} (otlp.timeout_seconds)")))
        })
    }

    async fn attempt(&mut self, body: Bytes) -> Result<Accepted, Fault> {
        let headers = headers(self.settings)?;
        let mut kept = self.open.take();
        if let Some(sender) = &mut kept
            && sender.ready().await.is_err()
        {
            kept = None;
        }
        let answered = match kept {
            // an error: closed by the collector while the request was on its way
            Some(mut kept) => kept.send_request(self.request(&headers, &body)).await.ok().map(|answer| (kept, answer)),
            None => None,
        };
        let (mut sender, response) = match answered {
            Some(answered) => answered,
            None => self.anew(&headers, &body).await?,
        };
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, ANSWER).collect().await.map(http_body_util::Collected::to_bytes);
        if body.is_ok() && sender.ready().await.is_ok() {
            self.open = Some(sender);
        }
        let body = body.unwrap_or_default();
        if parts.status.is_success() {
            // the status counts, also where the rest was lost
            return Ok(answer::accepted(&body));
        }
        let (reason, message) = answer::refusal(parts.status, &body);
        Err(Fault { reason, message, retry_after: answer::retry_after(&parts.headers, jiff::Timestamp::now()) })
    }

    fn request(&self, headers: &HeaderMap, body: &Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body.clone()));
        *request.method_mut() = hyper::Method::POST;
        // a path of an endpoint that was read as a URI
        *request.uri_mut() = self.path.parse().unwrap_or_default();
        *request.headers_mut() = headers.clone();
        request
    }

    /// Connects and posts.
    async fn anew(
        &self,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<(SendRequest<Full<Bytes>>, Response<Incoming>), Fault> {
        let broken =
            |error: hyper::Error| Fault::new(Reason::Broken, format!("the connection broke: {}", causes(&error)));
        let stream = connect(self.settings).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // ends with its sender; that it broke is seen on the answer
        tokio::spawn(connection);
        let response = sender.send_request(self.request(headers, body)).await.map_err(broken)?;
        Ok((sender, response))
    }
}

/// An error with what it came from.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

async fn connect(settings: &Settings) -> Result<Box<dyn Stream>, Fault> {
    let endpoint = &settings.endpoint;
    let (host, port) = (endpoint.host(), endpoint.port());
    // tries each address of the name
    let stream = TcpStream::connect((host, port))
        .await
        .map_err(|error| Fault::new(Reason::Connect, format!("cannot connect to {host} port {port}: {error}")))?;
    // a request is written as a whole
    let _ = stream.set_nodelay(true);
    if !endpoint.tls() {
        return Ok(Box::new(stream));
    }
    let files = settings.tls.clone();
    let config = tokio::task::spawn_blocking(move || tls(&files)).await.map_err(|error| error.to_string());
    let config = config.flatten().map_err(|error| Fault::new(Reason::Local, error))?;
    let name = match host.parse::<IpAddr>() {
        Ok(address) => ServerName::from(address),
        Err(_) => ServerName::try_from(host.to_owned())
            .map_err(|error| Fault::new(Reason::Tls, format!("{host}: {error}")))?,
    };
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let stream = stream.map_err(|error| Fault::new(Reason::Tls, format!("TLS with {host} port {port}: {error}")))?;
    Ok(Box::new(stream))
}

/// Whether the files can be used, as they are now.
pub fn check(settings: &Settings) -> Result<(), String> {
    headers(settings).map_err(|fault| fault.message)?;
    if settings.endpoint.tls() { tls(&settings.tls).map(drop) } else { Ok(()) }
}

/// The head of each request. Its files are a few bytes in the page cache.
fn headers(settings: &Settings) -> Result<HeaderMap, Fault> {
    let local = |message: String| Fault::new(Reason::Local, message);
    let mut headers = HeaderMap::new();
    headers.insert(header::USER_AGENT, header::HeaderValue::from_static(concat!("agentd/", env!("CARGO_PKG_VERSION"))));
    for wanted in &settings.headers {
        let text = match &wanted.value {
            HeaderValue::Text(text) => text.clone(),
            HeaderValue::File(path) => secret(path).map_err(local)?,
        };
        let mut value = header::HeaderValue::from_str(&text).map_err(|_| {
            let place = match &wanted.value {
                HeaderValue::Text(_) => "otlp.headers".to_owned(),
                HeaderValue::File(path) => format!("otlp.header_files: {}", path.display()),
            };
            local(format!("{place}: the value of {} has several lines or is no text, expected one line", wanted.name))
        })?;
        value.set_sensitive(true);
        headers.append(&wanted.name, value);
    }
    let host = header::HeaderValue::from_str(settings.endpoint.authority());
    headers.insert(header::HOST, host.map_err(|error| local(error.to_string()))?);
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/x-protobuf"));
    if settings.gzip {
        headers.insert(header::CONTENT_ENCODING, header::HeaderValue::from_static("gzip"));
    }
    Ok(headers)
}

fn secret(path: &Path) -> Result<String, String> {
    let text = read("otlp.header_files", path, HEADER, true)?;
    let text = String::from_utf8(text).map_err(|_| format!("otlp.header_files: {}: is no text", path.display()))?;
    let text = text.trim();
    if text.is_empty() {
        return Err(format!("otlp.header_files: {}: is empty, expected the header's value", path.display()));
    }
    Ok(text.to_owned())
}

fn read(field: &str, path: &Path, largest: u64, private: bool) -> Result<Vec<u8>, String> {
    let fail = |why: String| format!("{field}: {}: {why}", path.display());
    let found = fs::metadata(path).map_err(|error| fail(format!("cannot be read: {error}")))?;
    if !found.is_file() || found.len() > largest {
        return Err(fail(format!("expected a file of at most {largest} bytes")));
    }
    let mode = found.permissions().mode() & 0o777;
    if private && mode & 0o007 != 0 {
        return Err(fail(format!("has mode {mode:04o}, expected a file that others cannot read; chmod it to 0600")));
    }
    fs::read(path).map_err(|error| fail(format!("cannot be read: {error}")))
}

fn certificates(field: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read(field, path, LARGEST, false)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| format!("{field}: {}: {error}; expected PEM", path.display()))?;
    if found.is_empty() {
        return Err(format!("{field}: {}: found no certificate, expected some in PEM", path.display()));
    }
    Ok(found)
}

/// TLS as a client. Blocking.
fn tls(files: &TlsFiles) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    if let Some(ca) = &files.ca {
        for certificate in certificates("otlp.tls_ca", ca)? {
            roots.add(certificate).map_err(|error| format!("otlp.tls_ca: {}: {error}", ca.display()))?;
        }
    } else {
        // a bundle may hold certificates that rustls does not take; the others count
        let of_host = BUNDLES.iter().find_map(|bundle| certificates("", Path::new(bundle)).ok()).unwrap_or_default();
        if roots.add_parsable_certificates(of_host).0 == 0 {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?
        .with_root_certificates(roots);
    let mut config = match &files.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates("otlp.tls_certificate", certificate)?;
            let key = PrivateKeyDer::from_pem_slice(&read("otlp.tls_key", key, LARGEST, true)?)
                .map_err(|error| format!("otlp.tls_key: {}: {error}; expected a key in PEM", key.display()))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                format!("otlp.tls_certificate: {} does not go with otlp.tls_key: {error}", certificate.display())
            })?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
