//! `agentctl doctor`: whether the daemon can be reached and by what, and, where it is the one on this host, what the host
//! has and lacks ([`crate::doctor`]). Each check looks, and changes nothing.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use hyper::Method;
use jiff::{SignedDuration, Timestamp};
use rustix::fs::Mode;

use super::client::{Client, read};
use super::contexts::endpoint::Endpoint;
use super::contexts::store::Context;
use super::contexts::validity;
use super::failure::{FAILED, Failure, Result};
use super::output::Output;
use super::transport::{self, Connection, Transport};
use super::version::Version;
use crate::config::{self, Flags};
use crate::doctor::{self, Check, Status};

/// Its command line.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Look only at the way to the daemon.
    #[arg(long)]
    pub connection: bool,
    /// Configuration of the daemon on this host, as for `agentd doctor`.
    #[arg(long, value_name = "FILE", conflicts_with = "connection")]
    pub config: Option<PathBuf>,
    /// Folder of a daemon that is tried out, as for `agentd doctor`.
    #[arg(long, value_name = "DIR", conflicts_with = "connection")]
    pub dev: Option<PathBuf>,
}

/// A certificate that ends sooner than this is told.
const SOON: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Carries it out.
pub async fn run(client: &Client, output: &mut Output, arguments: Arguments) -> Result<()> {
    let mut checks = connection(client).await;
    if !arguments.connection {
        checks.extend(host(client, arguments).await?);
    }
    show(output, &checks)?;
    // what failed stands in the table
    if doctor::worst(&checks) == Status::Fail { Err(Failure::exit(FAILED)) } else { Ok(()) }
}

fn show(output: &mut Output, checks: &[Check]) -> Result<()> {
    if output.names() {
        return checks.iter().try_for_each(|check| output.name(&check.name));
    }
    if output.json() {
        return output.body(doctor::render_json(checks).as_bytes());
    }
    let text = doctor::render_table(checks, output.colours());
    output.raw(text.as_bytes())
}

fn check(name: &str, status: Status, found: impl Into<String>, disables: &str, cure: impl Into<String>) -> Check {
    Check { name: name.to_owned(), status, found: found.into(), disables: disables.to_owned(), cure: cure.into() }
}

fn ok(name: &str, found: impl Into<String>) -> Check {
    check(name, Status::Ok, found, "", "")
}

/// What all but the connection checks cannot do without.
const CALLS: &str = "every command that asks the daemon";

/// A failure as a check: what stands behind the first colon and space of its line is the cure.
fn failed(name: &str, failure: &Failure) -> Check {
    let message = failure.message();
    let (found, cure) = message.rsplit_once(": ").unwrap_or((&message, "the message says what to do"));
    check(name, Status::Fail, found, CALLS, cure)
}

/// Looks at the way to the daemon.
async fn connection(client: &Client) -> Vec<Check> {
    let transport = match client.transport() {
        Ok(transport) => transport,
        Err(failure) => return vec![failed("daemon/context", &failure)],
    };
    let mut checks = vec![ok("daemon/endpoint", transport.told())];
    match transport.endpoint() {
        Endpoint::Unix(path) => checks.push(socket(path)),
        Endpoint::Tls { .. } => {
            if let Some(context) = transport.credentials() {
                checks.extend(credentials(context));
            }
        }
        Endpoint::Plain { .. } => checks.push(check(
            "daemon/plain",
            Status::Warn,
            "plain HTTP on loopback: whoever is on this host may read along and call",
            "knowing who calls",
            "use the Unix socket, or TLS with certificates of agentctl cert",
        )),
    }
    if let Some(server) = server_certificate(transport).await {
        checks.push(server);
    }
    let began = std::time::Instant::now();
    match client.call(Method::GET, "/v1/version", None).await.map_err(Failure::from).and_then(|body| read(&body)) {
        Ok(version) => {
            checks
                .push(ok("daemon/connection", format!("answers in {:.1} ms", began.elapsed().as_secs_f64() * 1000.0)));
            checks.push(skew(&version));
        }
        Err(failure) => checks.push(failed("daemon/connection", &failure)),
    }
    checks
}

fn socket(path: &Path) -> Check {
    const NAME: &str = "daemon/socket";
    let about = match std::fs::metadata(path) {
        Ok(about) => about,
        Err(error) => {
            return check(
                NAME,
                Status::Fail,
                format!("{}: {error}", path.display()),
                CALLS,
                "start the daemon (systemctl start agentd), or name its socket with --socket or AGENTD_SOCKET",
            );
        }
    };
    let found =
        format!("{}: uid {}, gid {}, mode {:04o}", path.display(), about.uid(), about.gid(), about.mode() & 0o7777);
    if !about.file_type().is_socket() {
        let cure = "name the daemon's socket with --socket or AGENTD_SOCKET";
        return check(NAME, Status::Fail, format!("{} is no socket", path.display()), CALLS, cure);
    }
    if rustix::fs::access(path, rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK).is_err() {
        let cure = "ask as root, or as a member of the socket's group (api.socket_group)";
        return check(NAME, Status::Fail, format!("{found}; not for this user"), CALLS, cure);
    }
    if about.permissions().mode() & 0o002 != 0 {
        let cure = "set api.socket_mode to 0660";
        return check(NAME, Status::Warn, found, "keeping other users of this host out", cure);
    }
    ok(NAME, found)
}

/// Looks at the files of a context.
fn credentials(context: &Context) -> Vec<Check> {
    let mut checks = Vec::new();
    let files = [("daemon/ca", &context.ca), ("daemon/client_certificate", &context.certificate)];
    for (name, file) in files {
        let Some(file) = file else { continue };
        let dates =
            transport::certificates("certificate", file).ok().and_then(|chain| validity::of_der(chain.first()?));
        let cure = "issue a new one with agentctl cert";
        checks.push(match dates {
            Some(dates) => dated(name, &file.display().to_string(), dates.until, Timestamp::now(), cure),
            None => check(name, Status::Fail, format!("{}: no certificate", file.display()), CALLS, cure),
        });
    }
    if let Some(key) = &context.key {
        const NAME: &str = "daemon/key";
        match std::fs::metadata(key) {
            Ok(about) if Mode::from_raw_mode(about.mode()).intersection(Mode::RWXG | Mode::RWXO).is_empty() => {
                checks.push(ok(NAME, key.display().to_string()));
            }
            Ok(about) => checks.push(check(
                NAME,
                Status::Warn,
                format!("{}: mode {:04o}, others may read it", key.display(), about.mode() & 0o7777),
                "being the only one who may call under this name",
                format!("chmod 600 {}", key.display()),
            )),
            Err(error) => {
                let cure = "copy it here, or name another with agentctl context add --replace";
                checks.push(check(NAME, Status::Fail, format!("{}: {error}", key.display()), CALLS, cure));
            }
        }
    }
    checks
}

/// A check of the last day of a certificate.
fn dated(name: &str, what: &str, until: Timestamp, now: Timestamp, cure: &str) -> Check {
    let found = format!("{what}: valid until {until}");
    if now > until {
        return check(name, Status::Fail, format!("{what}: expired on {until}"), CALLS, cure);
    }
    let left = until.duration_since(now);
    if left < SOON {
        let found = format!("{found}, {} days", left.as_hours() / 24);
        return check(name, Status::Warn, found, "every command from then on", cure);
    }
    ok(name, found)
}

/// The certificate that the daemon shows. What bars the way is told by the connection check.
async fn server_certificate(transport: &Transport) -> Option<Check> {
    let Ok(Connection::Tls(stream)) = transport.connect().await else { return None };
    let leaf = stream.get_ref().1.peer_certificates()?.first()?;
    let dates = validity::of_der(leaf)?;
    let cure = "issue a new one for the daemon with agentctl cert; agentd reads it without a restart";
    Some(dated("daemon/certificate", &transport.told(), dates.until, Timestamp::now(), cure))
}

fn skew(server: &Version) -> Check {
    let own = env!("CARGO_PKG_VERSION");
    if server.version == own {
        return ok("daemon/version", format!("{own}, the same as agentctl"));
    }
    let found = format!("agentctl {own}, daemon {} (api {})", server.version, server.api);
    check(
        "daemon/version",
        Status::Warn,
        found,
        "what only one of the two knows",
        "install the same version on both sides",
    )
}

/// Looks at this host, where the daemon is on it.
async fn host(client: &Client, arguments: Arguments) -> Result<Vec<Check>> {
    let given = arguments.config.is_some() || arguments.dev.is_some();
    let here = client.transport().is_ok_and(|transport| matches!(transport.endpoint(), Endpoint::Unix(_)));
    if !here && !given {
        return Ok(vec![ok("host", "not looked at, the daemon is on another one: run agentd doctor there")]);
    }
    if !rustix::process::geteuid().is_root() && !given {
        let cure = "run agentctl doctor as root";
        return Ok(vec![check(
            "host",
            Status::Warn,
            "not looked at by other users than root",
            "knowing what it lacks",
            cure,
        )]);
    }
    let flags = Flags { config: arguments.config, dev: arguments.dev, ..Flags::default() };
    let variables =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let loaded = config::load(&flags, variables).map_err(|problems| {
        let lines = problems.iter().map(ToString::to_string).collect();
        Failure::Told { code: super::failure::BAD_INPUT, message: String::new(), lines }
    })?;
    tokio::task::spawn_blocking(move || doctor::run(&loaded.config))
        .await
        .map_err(|error| Failure::failed(format!("the checks of this host broke off: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_that_end_soon_are_told_before_they_do() {
        let now: Timestamp = "2026-11-20T00:00:00Z".parse().unwrap();
        let status = |until: &str| dated("x", "far", until.parse().unwrap(), now, "renew").status;
        assert_eq!(status("2026-11-19T23:59:59Z"), Status::Fail);
        assert_eq!(status("2026-11-21T00:00:00Z"), Status::Warn);
        assert_eq!(status("2027-11-21T00:00:00Z"), Status::Ok);
    }

    #[test]
    fn sockets_and_versions_are_judged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.sock");
        assert_eq!(socket(&path).status, Status::Fail);
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660)).unwrap();
        assert_eq!(socket(&path).status, Status::Ok);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(socket(&path).status, Status::Warn);
        drop(listener);
        assert_eq!(socket(folder.path()).status, Status::Fail);
        let version = |version: &str| Version { version: version.into(), api: "v1".into() };
        assert_eq!(skew(&version(env!("CARGO_PKG_VERSION"))).status, Status::Ok);
        assert_eq!(skew(&version("0.0.1")).status, Status::Warn);
    }
}
