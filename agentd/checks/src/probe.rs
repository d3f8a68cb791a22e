//! The checks themselves: HTTP, TCP and command. Each gives `Ok` or one line that says what was wrong.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use agentd_api::pod::{Command, HealthCheck};
use futures_util::future::BoxFuture;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::{http as request, socket, tls};

/// How a command of a health check ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandExit {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// It ran longer than the time-out and was killed.
    TimedOut,
}

/// Runs a command in the container's namespaces, cgroup and environment.
///
/// Kept apart from this crate because the container's own pod-init runs it.
pub trait CommandProbe: Send + Sync {
    /// Runs `argv` and waits for its end; after `timeout` kills it with all that it started and gives
    /// [`CommandExit::TimedOut`]. `Err` is one line that says why it could not run. If the future is dropped, the
    /// command is to be killed too.
    fn run(&self, argv: Vec<String>, timeout: Duration) -> BoxFuture<'static, Result<CommandExit, String>>;
}

/// Scheme of an HTTP check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpScheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS; the certificate is not verified.
    Https,
}

/// A check that is ready to run, any number of times.
#[derive(Clone)]
pub enum Probe {
    /// GET; 200–399 passes.
    Http {
        /// The pod's network namespace; `None` for the daemon's own.
        netns: Option<Arc<OwnedFd>>,
        /// Port.
        port: u16,
        /// Absolute path.
        path: String,
        /// Scheme.
        scheme: HttpScheme,
    },
    /// A connection that is accepted passes.
    Tcp {
        /// The pod's network namespace; `None` for the daemon's own.
        netns: Option<Arc<OwnedFd>>,
        /// Port.
        port: u16,
    },
    /// Exit code 0 passes.
    Command {
        /// Program and arguments.
        argv: Vec<String>,
        /// What runs it.
        runner: Arc<dyn CommandProbe>,
    },
}

/// What a probe needs beyond the pod's words. `port` gives the port on which an endpoint of this name listens inside
/// the pod's network namespace: `containerPort` in container mode, the allocated `hostPort` in host mode.
pub struct ProbeContext<'a> {
    /// The pod's network namespace; `None` for the daemon's own.
    pub netns: Option<Arc<OwnedFd>>,
    /// Port of an endpoint by name.
    pub port: &'a dyn Fn(&str) -> Option<u16>,
    /// What runs commands in this container.
    pub runner: Arc<dyn CommandProbe>,
}

impl Probe {
    /// The probe that a health check of a container asks for. `field` names the check in errors, as in
    /// `containers[0].healthCheck`.
    pub fn from_spec(check: &HealthCheck, context: ProbeContext<'_>, field: &str) -> Result<Self, String> {
        let port = |kind: &str, endpoint: &str| {
            (context.port)(endpoint).ok_or_else(|| {
                format!("{field}.{kind}.endpoint: no endpoint {endpoint:?} with a port; name one of this container's endpoints")
            })
        };
        if let Some(http) = &check.http {
            let scheme = match http.scheme.as_deref() {
                None | Some("HTTP" | "http") => HttpScheme::Http,
                Some("HTTPS" | "https") => HttpScheme::Https,
                Some(other) => return Err(format!("{field}.http.scheme: found {other:?}, expected HTTP or HTTPS")),
            };
            let path = match http.path.as_deref() {
                None | Some("") => "/".to_owned(),
                Some(path) if path.starts_with('/') => path.to_owned(),
                Some(path) => format!("/{path}"),
            };
            let port = port("http", &http.endpoint)?;
            return Ok(Self::Http { netns: context.netns, port, path, scheme });
        }
        if let Some(tcp) = &check.tcp {
            let port = port("tcp", &tcp.endpoint)?;
            return Ok(Self::Tcp { netns: context.netns, port });
        }
        if let Some(exec) = &check.exec {
            let argv = match &exec.command {
                Command::Shell(line) => vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()],
                Command::Argv(argv) => argv.clone(),
            };
            return Ok(Self::Command { argv, runner: context.runner });
        }
        Err(format!("{field}: found none of http, tcp and exec, expected exactly one"))
    }

    /// Runs the check once; it ends within `timeout` (a command: shortly after, when it could not be killed in time).
    pub async fn run(&self, timeout: Duration) -> Result<(), String> {
        match self {
            Self::Http { netns, port, path, scheme } => {
                http(netns.as_ref().map(|fd| fd.as_fd()), *port, path, *scheme, timeout).await
            }
            Self::Tcp { netns, port } => tcp(netns.as_ref().map(|fd| fd.as_fd()), *port, timeout).await,
            Self::Command { argv, runner } => command(runner.as_ref(), argv.clone(), timeout).await,
        }
    }
}

/// A GET of `path` on the loopback address inside `netns` (`None`: the daemon's own namespace); 200–399 passes.
pub async fn http(
    netns: Option<BorrowedFd<'_>>,
    port: u16,
    path: &str,
    scheme: HttpScheme,
    timeout: Duration,
) -> Result<(), String> {
    let check = async {
        let (stream, address) = socket::connect(netns, port).await?;
        let status = match scheme {
            HttpScheme::Http => request::get(stream, address, path).await?,
            HttpScheme::Https => {
                let stream = tls::connector()?
                    .connect(ServerName::from(address.ip()), stream)
                    .await
                    .map_err(|error| format!("TLS with {address}: {error}"))?;
                request::get(stream, address, path).await?
            }
        };
        if (200..400).contains(&status.as_u16()) {
            return Ok(());
        }
        Err(format!("GET {path} on port {port} answered {status}, expected 200 to 399"))
    };
    within(timeout, check, || format!("GET {path} on port {port}")).await
}

/// A TCP connection to the loopback address inside `netns` (`None`: the daemon's own namespace).
pub async fn tcp(netns: Option<BorrowedFd<'_>>, port: u16, timeout: Duration) -> Result<(), String> {
    let check = async { socket::connect(netns, port).await.map(|_| ()) };
    within(timeout, check, || format!("TCP connection to port {port}")).await
}

/// How much later than the time-out a command's runner may answer: it kills the command first.
const KILL_ALLOWANCE: Duration = Duration::from_secs(5);

async fn command(runner: &dyn CommandProbe, argv: Vec<String>, timeout: Duration) -> Result<(), String> {
    let program = argv.first().cloned().unwrap_or_default();
    let check = runner.run(argv, timeout);
    let Ok(exit) = tokio::time::timeout(timeout.saturating_add(KILL_ALLOWANCE), check).await else {
        return Err(format!("command {program:?} ran longer than {timeout:?} and could not be killed"));
    };
    match exit.map_err(|reason| format!("command {program:?} could not run: {reason}"))? {
        CommandExit::Code(0) => Ok(()),
        CommandExit::Code(code) => Err(format!("command {program:?} exited with {code}, expected 0")),
        CommandExit::Signal(signal) => Err(format!("command {program:?} was ended by signal {signal}")),
        CommandExit::TimedOut => Err(format!("command {program:?} ran longer than {timeout:?} and was killed")),
    }
}

async fn within(
    timeout: Duration,
    check: impl Future<Output = Result<(), String>>,
    what: impl FnOnce() -> String,
) -> Result<(), String> {
    match tokio::time::timeout(timeout, check).await {
        Ok(result) => result,
        Err(_) => Err(format!("{} took longer than {timeout:?}", what())),
    }
}
