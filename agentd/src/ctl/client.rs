//! HTTP to the daemon. One connection for each call: that is a few microseconds on a Unix socket.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use agentd_api::problem::Problem;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};

use super::contexts;
use super::failure::{Failure, Result};
use super::transport::{Connection, Transport};

/// Where the daemon's socket is unless somebody says otherwise.
pub const USUAL_SOCKET: &str = "/run/agentd/agentd.sock";

/// Largest answer that is read as a whole.
const MOST: usize = 256 << 20;

/// Longest line of a stream.
const LONGEST_LINE: usize = 16 << 20;

/// Which daemon is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The one behind this socket.
    Socket(PathBuf),
    /// The one of this context.
    Context(String),
    /// The one of the current context, else the one behind the usual socket.
    Current,
}

/// The daemon. Nothing is read or connected before the first call, so that commands that call nobody start at once.
#[derive(Debug, Clone)]
pub struct Client {
    wanted: Wanted,
    transport: Arc<OnceLock<Transport>>,
}

/// A refusal of the daemon, or a failure on the way to it.
#[derive(Debug)]
pub enum CallError {
    /// The daemon answered with a problem.
    Problem(Problem),
    /// Anything else.
    Failure(Failure),
}

impl From<Failure> for CallError {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Problem(problem) => Self::of(&problem),
            CallError::Failure(failure) => failure,
        }
    }
}

impl CallError {
    /// As a failure that is about a file.
    pub fn of_file(self, file: &str) -> Failure {
        match self {
            Self::Problem(problem) => Failure::of_file(&problem, file),
            Self::Failure(failure) => failure,
        }
    }
}

impl Client {
    /// The daemon that is meant.
    pub fn new(wanted: Wanted) -> Self {
        Self { wanted, transport: Arc::default() }
    }

    /// The daemon at the end of this way.
    #[cfg(test)]
    pub fn through(transport: Transport) -> Self {
        Self { wanted: Wanted::Current, transport: Arc::new(OnceLock::from(transport)) }
    }

    /// The way to the daemon. Reads the contexts and certificates where it takes them.
    pub fn transport(&self) -> Result<&Transport> {
        if let Some(transport) = self.transport.get() {
            return Ok(transport);
        }
        let found = match &self.wanted {
            Wanted::Socket(path) => Transport::socket(path.clone()),
            Wanted::Context(name) => contexts::named(name)?,
            Wanted::Current => contexts::current()?.unwrap_or_else(|| Transport::socket(USUAL_SOCKET.into())),
        };
        Ok(self.transport.get_or_init(|| found))
    }

    fn lost(&self, error: &(dyn std::error::Error + 'static)) -> Failure {
        match self.transport() {
            Ok(transport) => transport.lost(error),
            Err(failure) => failure,
        }
    }

    async fn sender(&self, transport: &Transport) -> Result<SendRequest<Full<Bytes>>> {
        // one type of connection for each transport, so that an upgrade gives the socket itself back
        match transport.connect().await? {
            Connection::Unix(stream) => self.handshake(stream).await,
            Connection::Plain(stream) => self.handshake(stream).await,
            Connection::Tls(stream) => self.handshake(*stream).await,
        }
    }

    async fn handshake<S>(&self, stream: S) -> Result<SendRequest<Full<Bytes>>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|error| self.lost(&error))?;
        tokio::spawn(async move {
            // what goes wrong shows in the answer
            let _ = connection.with_upgrades().await;
        });
        Ok(sender)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, &str)],
        body: Option<Bytes>,
    ) -> std::result::Result<Response<Incoming>, CallError> {
        let transport = self.transport()?;
        let mut sender = self.sender(transport).await?;
        let mut request = Request::builder().method(method).uri(path).header(HOST, transport.endpoint().authority());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(body.unwrap_or_default()))
            .map_err(|error| Failure::bad_input(format!("the request cannot be made: {error}")))?;
        let response = sender.send_request(request).await.map_err(|error| self.lost(&error))?;
        if response.status().is_success() || response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let status = response.status();
        let text = self.collect(response).await?;
        Err(CallError::Problem(problem(status, &text)))
    }

    async fn collect(&self, response: Response<Incoming>) -> Result<Bytes> {
        let collected = Limited::new(response.into_body(), MOST).collect().await;
        collected.map(http_body_util::Collected::to_bytes).map_err(|error| self.lost(error.as_ref()))
    }

    /// Makes a call and reads its answer as a whole.
    pub async fn call(&self, method: Method, path: &str, body: Option<Bytes>) -> std::result::Result<Bytes, CallError> {
        let response = self.send(method, path, &[], body).await?;
        Ok(self.collect(response).await?)
    }

    /// Makes a call that turns the connection into another protocol: sends `Upgrade: <protocol>`, expects 101.
    pub async fn upgrade(
        &self,
        method: Method,
        path: &str,
        protocol: &str,
        body: Option<Bytes>,
    ) -> std::result::Result<hyper::upgrade::Upgraded, CallError> {
        let headers = [("connection", "upgrade"), ("upgrade", protocol)];
        let response = self.send(method, path, &headers, body).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(Failure::failed(format!("the daemon answered {}, expected 101", response.status())).into());
        }
        Ok(hyper::upgrade::on(response).await.map_err(|error| self.lost(&error))?)
    }

    /// Makes a call whose answer comes bit by bit.
    pub async fn stream(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, &str)],
        body: Option<Bytes>,
    ) -> std::result::Result<Stream, CallError> {
        let response = self.send(method, path, headers, body).await?;
        Ok(Stream { client: self.clone(), body: response.into_body(), rest: Vec::new(), scanned: 0 })
    }
}

/// What the daemon says is wrong, also when it is not said as a problem.
fn problem(status: StatusCode, text: &[u8]) -> Problem {
    if let Ok(problem) = serde_json::from_slice::<Problem>(text) {
        return Problem { status: status.as_u16(), ..problem };
    }
    let shown: String = String::from_utf8_lossy(text).chars().take(300).collect();
    let detail = format!("the daemon answered {status} {shown}");
    Problem { status: status.as_u16(), kind: "unknown".to_owned(), detail, errors: Vec::new(), request: None }
}

/// An answer that comes bit by bit.
#[derive(Debug)]
pub struct Stream {
    client: Client,
    body: Incoming,
    rest: Vec<u8>,
    /// So much of `rest` holds no line break.
    scanned: usize,
}

impl Stream {
    /// The next bytes; none at the end.
    pub async fn bytes(&mut self) -> Result<Option<Bytes>> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|error| self.client.lost(&error))?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// The next line without its break; none at the end. Cancelling the future loses nothing.
    pub async fn line(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some(at) = self.rest[self.scanned..].iter().position(|byte| *byte == b'\n') {
                let rest = self.rest.split_off(self.scanned + at + 1);
                let mut line = std::mem::replace(&mut self.rest, rest);
                line.pop();
                self.scanned = 0;
                return Ok(Some(line));
            }
            self.scanned = self.rest.len();
            if self.scanned > LONGEST_LINE {
                return Err(Failure::failed("the daemon sends a line without end"));
            }
            match self.bytes().await? {
                Some(bytes) => self.rest.extend_from_slice(&bytes),
                None if self.rest.is_empty() => return Ok(None),
                None => {
                    self.scanned = 0;
                    return Ok(Some(std::mem::take(&mut self.rest)));
                }
            }
        }
    }
}

/// Reads an answer.
pub fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|error| {
        Failure::failed(format!(
            "the daemon's answer is not understood: {error}; is agentctl ({}) of another version than the daemon?",
            env!("CARGO_PKG_VERSION")
        ))
    })
}
