//! Starts the fetching child, talks to it, and ends it when it takes too long.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::error::{Failure, FailureKind};
use crate::fetcher::Settings;
use crate::protocol::{self, MESSAGE_LIMIT, Reply, Request};

/// Most bytes of the child's standard error that go into an error.
const STDERR_LIMIT: u64 = 2048;

/// Runs one request in a child of its own. The child is dead and reaped when this returns.
pub(crate) async fn run(settings: &Settings, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Reply, Failure> {
    let failed = |error: std::io::Error| Failure::local("starting the fetching process", error);
    let (ours, theirs) = StdUnixStream::pair().map_err(failed)?;
    let body = serde_json::to_vec(request).map_err(|error| failed(error.into()))?;
    let length = u32::try_from(body.len()).ok().filter(|length| *length <= MESSAGE_LIMIT);
    let length = length.ok_or_else(|| failed(std::io::Error::other("the request is too long")))?;
    protocol::send_head(ours.as_fd(), length, fds).map_err(failed)?;
    let mut child = Command::new(&settings.program)
        .args(&settings.arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // when the fetch is cancelled
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| {
            failed(std::io::Error::new(error.kind(), format!("{}: {error}", settings.program.display())))
        })?;
    ours.set_nonblocking(true).map_err(failed)?;
    let socket = UnixStream::from_std(ours).map_err(failed)?;
    let talk = tokio::time::timeout(settings.timeout, talk(&mut child, socket, &body)).await;
    let Ok((answer, stderr, status)) = talk else {
        // already dead is fine too
        let _ = child.kill().await;
        return Err(timed_out(settings.timeout));
    };
    match serde_json::from_slice(&answer) {
        Ok(reply) => Ok(reply),
        Err(_) => Err(crashed(status.ok(), &stderr)),
    }
}

async fn talk(child: &mut Child, socket: UnixStream, body: &[u8]) -> (Vec<u8>, Vec<u8>, std::io::Result<ExitStatus>) {
    let errors = child.stderr.take();
    let (mut answer, mut stderr) = (Vec::new(), Vec::new());
    let exchange = async {
        let (reader, mut writer) = socket.into_split();
        // a child that has died shows by its missing answer; the write half stays open, as its end means agentd's death
        let _ = writer.write_all(body).await;
        let _ = reader.take(u64::from(MESSAGE_LIMIT)).read_to_end(&mut answer).await;
        writer
    };
    let complaints = async {
        if let Some(mut errors) = errors {
            let _ = (&mut errors).take(STDERR_LIMIT).read_to_end(&mut stderr).await;
            // the rest is read too, so that the child does not hang on a full pipe
            let _ = tokio::io::copy(&mut errors, &mut tokio::io::sink()).await;
        }
    };
    let (_writer, (), status) = tokio::join!(exchange, complaints, child.wait());
    (answer, stderr, status)
}

fn timed_out(after: Duration) -> Failure {
    Failure::uri(
        FailureKind::TimedOut,
        format!(
            "not fetched within {after:?}; use a nearer or smaller file, or raise artifacts.timeout_seconds in agentd's configuration"
        ),
    )
}

fn crashed(status: Option<ExitStatus>, stderr: &[u8]) -> Failure {
    let stderr = String::from_utf8_lossy(stderr);
    let words: Vec<&str> = stderr.split_whitespace().collect();
    let status = status.map_or_else(|| "in an unknown way".to_owned(), |status| format!("with {status}"));
    Failure::local("the fetching process ended", format!("{status} and no answer: {}", words.join(" ")))
}
