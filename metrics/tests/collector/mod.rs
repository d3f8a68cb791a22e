//! A collector in the test's own process, which does as it is told.

use std::collections::VecDeque;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flate2::read::GzDecoder;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

/// `PartialSuccess` of an answer.
#[derive(Clone, PartialEq, Message)]
pub struct Partial {
    #[prost(int64, tag = "1")]
    pub rejected: i64,
    #[prost(string, tag = "2")]
    pub message: String,
}

/// An answer of success.
#[derive(Clone, PartialEq, Message)]
pub struct Answer {
    #[prost(message, optional, tag = "1")]
    pub partial: Option<Partial>,
}

/// What the collector does with a request.
#[derive(Debug, Clone)]
pub enum Act {
    /// Takes it.
    Accept,
    /// Takes it but for some.
    Partial(i64),
    /// Answers with a status, and perhaps says when to come back.
    Status(u16, Option<&'static str>),
    /// Takes it after a while.
    Late(Duration),
    /// Reads it and closes the connection without an answer.
    Hang,
    /// Resets the connection before anything is read.
    Reset,
    /// Takes it and closes the connection.
    Close,
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub path: String,
    pub headers: HeaderMap,
    /// As it was before it was compressed.
    pub body: Vec<u8>,
    pub at: Instant,
    /// Number of its connection.
    pub connection: usize,
    /// Whether the client showed a certificate.
    pub certified: bool,
}

#[derive(Default)]
struct Inner {
    script: Mutex<VecDeque<Act>>,
    seen: Mutex<Vec<Seen>>,
    resets: Mutex<usize>,
}

/// A collector on loopback. Requests beyond its script are accepted.
#[derive(Clone)]
pub struct Collector {
    pub address: SocketAddr,
    inner: Arc<Inner>,
}

impl Collector {
    pub async fn start(script: impl IntoIterator<Item = Act>, tls: Option<ServerConfig>) -> Self {
        Self::on("127.0.0.1:0".parse().unwrap(), script, tls).await
    }

    pub async fn on(address: SocketAddr, script: impl IntoIterator<Item = Act>, tls: Option<ServerConfig>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let inner = Arc::new(Inner { script: Mutex::new(script.into_iter().collect()), ..Inner::default() });
        let collector = Self { address: listener.local_addr().unwrap(), inner };
        let tls = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        let shared = collector.clone();
        tokio::spawn(async move {
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                if shared.inner.script.lock().unwrap().pop_front_if(|act| matches!(act, Act::Reset)).is_some() {
                    // closed with unread data and no linger, which is a reset
                    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
                    drop(stream);
                    *shared.inner.resets.lock().unwrap() += 1;
                    continue;
                }
                let (shared, tls) = (shared.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        // a client that trusts nobody here goes away in the handshake
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                let certified = stream.get_ref().1.peer_certificates().is_some();
                                shared.serve(stream, connection, certified).await;
                            }
                        }
                        None => shared.serve(stream, connection, false).await,
                    }
                });
            }
        });
        collector
    }

    async fn serve(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        connection: usize,
        certified: bool,
    ) {
        let service = service_fn(|request| self.answer(request, connection, certified));
        // a connection that is closed in the midst of a request is the test's own doing
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        connection: usize,
        certified: bool,
    ) -> Result<Response<Full<Bytes>>, std::io::Error> {
        let (parts, body) = request.into_parts();
        let sent = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
        let mut body = sent.to_vec();
        if parts.headers.get("content-encoding").is_some_and(|encoding| encoding == "gzip") {
            body.clear();
            GzDecoder::new(&sent[..]).read_to_end(&mut body)?;
        }
        let path = parts.uri.path().to_owned();
        let seen = Seen { path, headers: parts.headers, body, at: Instant::now(), connection, certified };
        self.inner.seen.lock().unwrap().push(seen);
        let act = self.inner.script.lock().unwrap().pop_front().unwrap_or(Act::Accept);
        let success = |answer: Answer| Response::new(Full::new(Bytes::from(answer.encode_to_vec())));
        Ok(match act {
            Act::Accept => success(Answer::default()),
            Act::Partial(rejected) => {
                success(Answer { partial: Some(Partial { rejected, message: "too many labels".to_owned() }) })
            }
            Act::Status(status, retry_after) => {
                let mut response = success(Answer::default());
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
                if let Some(value) = retry_after {
                    response.headers_mut().insert("retry-after", value.parse().unwrap());
                }
                response
            }
            Act::Late(delay) => {
                tokio::time::sleep(delay).await;
                success(Answer::default())
            }
            Act::Hang => return Err(std::io::Error::other("closed by the script")),
            Act::Close => {
                let mut response = success(Answer::default());
                response.headers_mut().insert("connection", "close".parse().unwrap());
                response
            }
            Act::Reset => return Err(std::io::Error::other("a reset belongs before a new connection")),
        })
    }

    /// What came so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.inner.seen.lock().unwrap().clone()
    }

    /// Connections that were reset.
    pub fn resets(&self) -> usize {
        *self.inner.resets.lock().unwrap()
    }
}

/// Waits until something holds.
///
/// # Panics
/// If it does not within 20 s.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
