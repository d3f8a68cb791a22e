//! The calls of a copy: their bodies go both ways as streams, and the answer's head tells what is copied.

use agentd_api::problem::Problem;
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::super::client::{CallError, Client};
use super::super::failure::{Failure, Result};
use super::super::transport::Connection;

/// Largest refusal that is read.
const MOST: usize = 1 << 20;

/// Makes a call with a body that comes bit by bit, and gives the head of the answer. A refusal is an error.
pub async fn call<B>(
    client: &Client,
    method: Method,
    path: &str,
    body: B,
) -> std::result::Result<Response<Incoming>, CallError>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    let transport = client.transport()?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, transport.endpoint().authority())
        .header(CONTENT_TYPE, "application/x-tar")
        .body(body)
        .map_err(|error| Failure::bad_input(format!("the request cannot be made: {error}")))?;
    let result = match transport.connect().await? {
        Connection::Unix(stream) => exchange(stream, request).await,
        Connection::Plain(stream) => exchange(stream, request).await,
        Connection::Tls(stream) => exchange(*stream, request).await,
    };
    let response = result.map_err(|error| transport.lost(&error))?;
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status().as_u16();
    let text = collect(response).await?;
    let shown = || String::from_utf8_lossy(&text).chars().take(300).collect::<String>();
    let problem = serde_json::from_slice::<Problem>(&text)
        .map_err(|_| Failure::failed(format!("the daemon answered {status} {}", shown())))?;
    Err(CallError::Problem(Problem { status, ..problem }))
}

async fn exchange<S, B>(stream: S, request: Request<B>) -> hyper::Result<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        // what goes wrong shows in the answer
        let _ = connection.await;
    });
    sender.send_request(request).await
}

/// A small body as a whole.
pub async fn collect(response: Response<Incoming>) -> Result<Bytes> {
    let collected = Limited::new(response.into_body(), MOST).collect().await;
    let failed = |error| Failure::failed(format!("the daemon's answer could not be read: {error}"));
    collected.map(http_body_util::Collected::to_bytes).map_err(failed)
}
