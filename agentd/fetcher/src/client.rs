//! The HTTP client: GET by HTTP/1.1, redirects, TLS, a limit on bytes. No proxy, no cookies, no compression.
//!
//! It resolves names and connects by itself, so that the address that is checked is the address that is connected to.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
use url::{Host, Url};

use crate::address::AddressRule;
use crate::error::{Failure, FailureKind};
use crate::protocol::{Validators, Web};

/// Most redirects.
const REDIRECTS: usize = 10;
/// For a connection to one address, with TLS.
const CONNECT: Duration = Duration::from_secs(15);
/// For a name.
const RESOLVE: Duration = Duration::from_secs(30);
/// Without a single byte.
const STALL: Duration = Duration::from_mins(1);
/// Most bytes of a response's head.
const HEAD_LIMIT: usize = 64 * 1024;
/// Longest ETag and Last-Modified that are kept.
const VALIDATOR_LIMIT: usize = 1024;

/// A certificate that the host trusts.
pub(crate) type Root = CertificateDer<'static>;

/// Where hosts keep the certificates that they trust: Debian, Red Hat, SUSE.
const BUNDLES: &[&str] =
    &["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// The certificates that this host trusts; none if it has no bundle (the built-in ones then serve).
pub(crate) fn host_roots() -> Vec<Root> {
    BUNDLES.iter().find_map(|bundle| read_bundle(Path::new(bundle))).unwrap_or_default()
}

fn read_bundle(path: &Path) -> Option<Vec<Root>> {
    let roots: Vec<Root> = CertificateDer::pem_file_iter(path).ok()?.filter_map(Result::ok).collect();
    (!roots.is_empty()).then_some(roots)
}

/// What a download came to.
pub(crate) enum Download {
    /// The file is complete.
    Done(Validators),
    /// The cached copy is current.
    NotModified,
}

/// The failure of a file above the limit.
pub(crate) fn too_large(most: u64) -> Failure {
    Failure::uri(
        FailureKind::TooLarge,
        format!("larger than {most} bytes; raise artifacts.max_bytes in agentd's configuration, or use a smaller file"),
    )
}

fn unreachable(reason: String) -> Failure {
    Failure::uri(FailureKind::Unreachable, reason)
}

fn stalled(what: &str) -> Failure {
    Failure::uri(FailureKind::TimedOut, format!("the server {what} for {} s", STALL.as_secs()))
}

/// Downloads one file.
pub(crate) struct Client {
    rule: AddressRule,
    max_bytes: u64,
    tls: TlsConnector,
}

/// Either kind of connection.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Client {
    pub fn new(rule: AddressRule, max_bytes: u64, roots: Vec<Root>) -> Result<Self, Failure> {
        let mut store = RootCertStore::empty();
        if store.add_parsable_certificates(roots).0 == 0 {
            store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| Failure::local("TLS set-up", error))?
            .with_root_certificates(store)
            .with_no_client_auth();
        Ok(Self { rule, max_bytes, tls: TlsConnector::from(Arc::new(config)) })
    }

    /// Fetches into `file`, which is empty.
    pub async fn download(&self, web: &Web, file: &mut File) -> Result<Download, Failure> {
        let mut url = Url::parse(&web.url).map_err(|error| Failure::uri(FailureKind::Invalid, error.to_string()))?;
        // user and password are for the server that the pod names, not for one that it redirects to
        let authorization = credentials(&url);
        let first = url.origin();
        for _ in 0..=REDIRECTS {
            let mine = if url.origin() == first { authorization.as_deref() } else { None };
            let response = self.get(&url, mine, web.cached.as_ref()).await?;
            let status = response.status();
            let result = match status {
                StatusCode::OK => {
                    let validators = validators(response.headers());
                    self.body(response, file).await?;
                    return Ok(Download::Done(validators));
                }
                StatusCode::NOT_MODIFIED if web.cached.is_some() => return Ok(Download::NotModified),
                StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT => redirect(&url, response.headers()),
                _ => Err(status_failure(&url, status)),
            };
            url = result?;
        }
        Err(Failure::uri(
            FailureKind::Refused,
            format!("more than {REDIRECTS} redirects (a loop?); name the final URI"),
        ))
    }

    /// One request, up to the head of the answer.
    async fn get(
        &self,
        url: &Url,
        authorization: Option<&str>,
        cached: Option<&Validators>,
    ) -> Result<Response<Incoming>, Failure> {
        let stream = self.connect(url).await?;
        let failed = |error: hyper::Error| unreachable(format!("HTTP with {}: {error}", place(url)));
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(HEAD_LIMIT)
            .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        // ends with its connection; that it broke is seen on the answer or its body
        tokio::spawn(connection);
        let target = &url[url::Position::BeforePath..url::Position::AfterQuery];
        let mut request = Request::get(target)
            .header(header::HOST, &url[url::Position::BeforeHost..url::Position::AfterPort])
            .header(header::USER_AGENT, concat!("agentd/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT, "*/*")
            .header(header::ACCEPT_ENCODING, "identity")
            .header(header::CONNECTION, "close");
        for (name, value) in [
            (header::AUTHORIZATION, authorization),
            (header::IF_NONE_MATCH, cached.and_then(|cached| cached.etag.as_deref())),
            (header::IF_MODIFIED_SINCE, cached.and_then(|cached| cached.last_modified.as_deref())),
        ] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let request = request
            .body(Empty::new())
            .map_err(|error| Failure::uri(FailureKind::Invalid, format!("cannot be requested: {error}")))?;
        let response = timeout(STALL, sender.send_request(request)).await.map_err(|_| stalled("did not answer"))?;
        response.map_err(failed)
    }

    async fn body(&self, response: Response<Incoming>, file: &mut File) -> Result<(), Failure> {
        let mut body = response.into_body();
        let announced = hyper::body::Body::size_hint(&body).exact();
        if announced.is_some_and(|bytes| bytes > self.max_bytes) {
            return Err(too_large(self.max_bytes));
        }
        let mut received: u64 = 0;
        loop {
            let frame = timeout(STALL, body.frame()).await.map_err(|_| stalled("sent nothing"))?;
            let Some(frame) = frame else {
                return Ok(());
            };
            let frame =
                frame.map_err(|error| unreachable(format!("the server broke off after {received} bytes: {error}")))?;
            let Some(data) = frame.data_ref() else {
                continue;
            };
            received += data.len() as u64;
            if received > self.max_bytes {
                return Err(too_large(self.max_bytes));
            }
            file.write_all(data).map_err(|error| Failure::local("writing the file into the sandbox", error))?;
        }
    }

    async fn connect(&self, url: &Url) -> Result<Box<dyn Stream>, Failure> {
        let host =
            url.host().ok_or_else(|| Failure::uri(FailureKind::Invalid, "no host; expected http://host/path"))?;
        let port = url.port_or_known_default().unwrap_or(80);
        let mut last = None;
        let mut refused = None;
        for ip in resolve(&host, port).await? {
            // checked here, on the very address of the next line
            if let Some(reason) = self.rule.refusal(ip) {
                refused = Some((ip, reason));
                continue;
            }
            match timeout(CONNECT, self.open(url, SocketAddr::new(ip, port))).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(reason)) => last = Some(unreachable(reason)),
                Err(_) => {
                    let reason = format!("no connection to {ip} port {port} within {} s", CONNECT.as_secs());
                    last = Some(Failure::uri(FailureKind::TimedOut, reason));
                }
            }
        }
        if let Some(failure) = last {
            return Err(failure);
        }
        let Some((ip, reason)) = refused else {
            return Err(unreachable(format!("{host} has no address")));
        };
        let of = if matches!(host, Host::Domain(_)) { format!(" (of {host})") } else { String::new() };
        let also = if ip.is_loopback() { ", or set artifacts.allow_loopback in agentd's configuration" } else { "" };
        Err(Failure::uri(
            FailureKind::Refused,
            format!("address {ip}{of} is refused: {reason}; use a server on another host{also}"),
        ))
    }

    async fn open(&self, url: &Url, address: SocketAddr) -> Result<Box<dyn Stream>, String> {
        let stream =
            TcpStream::connect(address).await.map_err(|error| format!("cannot connect to {address}: {error}"))?;
        if url.scheme() != "https" {
            return Ok(Box::new(stream));
        }
        let name = match url.host() {
            Some(Host::Domain(name)) => ServerName::try_from(name.to_owned()).map_err(|error| error.to_string())?,
            _ => ServerName::from(address.ip()),
        };
        let stream = self.tls.connect(name, stream).await;
        Ok(Box::new(stream.map_err(|error| {
            format!("TLS with {address}: {error}; a private authority belongs into the host's certificate bundle")
        })?))
    }
}

async fn resolve(host: &Host<&str>, port: u16) -> Result<Vec<IpAddr>, Failure> {
    let name = match host {
        Host::Ipv4(ip) => return Ok(vec![IpAddr::V4(*ip)]),
        Host::Ipv6(ip) => return Ok(vec![IpAddr::V6(*ip)]),
        Host::Domain(name) => *name,
    };
    let found = timeout(RESOLVE, tokio::net::lookup_host((name, port))).await.map_err(|_| {
        Failure::uri(FailureKind::TimedOut, format!("the name {name} was not resolved within {} s", RESOLVE.as_secs()))
    })?;
    let found = found.map_err(|error| unreachable(format!("the name {name} cannot be resolved: {error}")))?;
    Ok(found.map(|address| address.ip()).collect())
}

fn redirect(from: &Url, headers: &HeaderMap) -> Result<Url, Failure> {
    let location = header_text(headers, &header::LOCATION)
        .ok_or_else(|| unreachable("the server redirects without saying where to".to_owned()))?;
    let to = from
        .join(&location)
        .map_err(|error| unreachable(format!("the server redirects to {location:?}, which is no URI: {error}")))?;
    let refused = |reason: &str| {
        Err(Failure::uri(FailureKind::Refused, format!("redirected to {}, {reason}", crate::uri::shown(to.as_str()))))
    };
    match (from.scheme(), to.scheme()) {
        ("https", "http") => refused("from https to plain http; name the http: URI if that is meant"),
        (_, "http" | "https") => Ok(to),
        _ => refused("which is neither http nor https"),
    }
}

fn status_failure(url: &Url, status: StatusCode) -> Failure {
    let cure = match status.as_u16() {
        401 | 403 => "; user and password can be given as user:password@host in the URI",
        404 | 410 => "; check the path",
        500.. => "; the server has a fault, try again later",
        _ => "",
    };
    let reason = format!("{} answered HTTP {status}, expected 200{cure}", place(url));
    Failure::uri(FailureKind::Status(status.as_u16()), reason)
}

fn place(url: &Url) -> String {
    url[url::Position::BeforeHost..url::Position::AfterPort].to_owned()
}

fn credentials(url: &Url) -> Option<String> {
    let decoded = |part: &str| percent_encoding::percent_decode_str(part).collect::<Vec<u8>>();
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let mut text = decoded(url.username());
    text.push(b':');
    text.extend(decoded(url.password().unwrap_or_default()));
    Some(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text)))
}

fn validators(headers: &HeaderMap) -> Validators {
    let short = |name| header_text(headers, name).filter(|value| value.len() <= VALIDATOR_LIMIT);
    Validators { etag: short(&header::ETAG), last_modified: short(&header::LAST_MODIFIED) }
}

fn header_text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_decoded() {
        let url = Url::parse("http://Aladdin:open%20sesame@h/x").unwrap();
        assert_eq!(credentials(&url).unwrap(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(credentials(&Url::parse("http://h/x").unwrap()), None);
    }

    #[test]
    fn redirects_stay_on_the_web_and_on_tls() {
        let from = Url::parse("https://h/a/b").unwrap();
        for (location, expected) in [
            ("c", Some("https://h/a/c")),
            ("//other/x", Some("https://other/x")),
            ("http://h/a", None),
            ("file:///etc/passwd", None),
            ("ftp://h/x", None),
        ] {
            let headers = HeaderMap::from_iter([(header::LOCATION, location.parse().unwrap())]);
            let found = redirect(&from, &headers).ok();
            assert_eq!(found.as_ref().map(Url::as_str), expected, "{location}");
        }
        assert!(redirect(&from, &HeaderMap::new()).is_err());
    }

    /// Serves one TLS connection after the other with a certificate of the test authority for 127.0.0.1 and localhost.
    async fn tls_server(address: &str) -> u16 {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        use tokio_rustls::rustls::ServerConfig;
        use tokio_rustls::rustls::pki_types::PrivateKeyDer;

        let certificate = CertificateDer::from_pem_slice(include_bytes!("../tests/data/server.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_slice(include_bytes!("../tests/data/server-key.pem")).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind((address, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret").await;
                let _ = stream.shutdown().await;
            }
        });
        port
    }

    #[tokio::test]
    async fn certificates_are_verified() {
        use std::io::{Read, Seek};

        let authority = CertificateDer::from_pem_slice(include_bytes!("../tests/data/ca.pem")).unwrap();
        let get = async |host: &str, roots: Vec<Root>| {
            let port = tls_server(if host == "127.0.0.2" { host } else { "127.0.0.1" }).await;
            let rule = AddressRule { allowed: vec!["127.0.0.0/8".parse().unwrap()], own: Vec::new() };
            let mut file = tempfile::tempfile().unwrap();
            let web =
                Web { url: format!("https://{host}:{port}/x"), allowed: Vec::new(), own: Vec::new(), cached: None };
            let client = Client::new(rule, 100, roots).unwrap_or_else(|failure| panic!("{failure:?}"));
            client.download(&web, &mut file).await.map(|_| {
                let mut text = String::new();
                file.rewind().unwrap();
                file.read_to_string(&mut text).unwrap();
                text
            })
        };
        for host in ["127.0.0.1", "localhost"] {
            assert_eq!(get(host, vec![authority.clone()]).await.unwrap(), "secret");
        }
        let unknown = get("127.0.0.1", Vec::new()).await.unwrap_err();
        assert!(unknown.kind == FailureKind::Unreachable && unknown.reason.contains("UnknownIssuer"), "{unknown:?}");
        assert!(unknown.reason.contains("certificate bundle"), "{unknown:?}");
        let misnamed = get("127.0.0.2", vec![authority]).await.unwrap_err();
        assert!(misnamed.reason.contains("not valid for name"), "{misnamed:?}");
    }
}
