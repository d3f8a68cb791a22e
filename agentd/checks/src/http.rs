//! One GET request whose status decides. Redirects are not followed and the body is not read.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// Most bytes of a response's head; more is an error.
const HEAD_LIMIT: usize = 64 * 1024;

/// The status that a GET of `path` answers.
pub(crate) async fn get<S>(stream: S, address: SocketAddr, path: &str) -> Result<StatusCode, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = Request::get(path)
        .header("host", address.to_string())
        .header("user-agent", concat!("agentd-health-check/", env!("CARGO_PKG_VERSION")))
        .header("accept", "*/*")
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("healthCheck.http.path {path:?} cannot be requested: {error}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(HEAD_LIMIT)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| format!("HTTP with {address}: {error}"))?;
    let response = sender.send_request(request);
    tokio::pin!(connection, response);
    let mut open = true;
    loop {
        // the connection makes the request move; polled here, it needs no task of its own and ends with this one
        tokio::select! {
            answer = &mut response => {
                return answer.map(|answer| answer.status()).map_err(|error| format!("GET http://{address}{path}: {error}"));
            }
            ended = &mut connection, if open => {
                if let Err(error) = ended {
                    return Err(format!("GET {path} from {address}: {error}"));
                }
                open = false;
            }
        }
    }
}
