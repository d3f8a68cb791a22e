//! The way to a daemon: a Unix socket, TLS over TCP, or plain TCP on loopback; and what is to be done where it is barred.

use std::error::Error as StdError;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{AlertDescription, CertificateError, ClientConfig, Error as TlsError, RootCertStore};

use super::contexts::endpoint::Endpoint;
use super::contexts::store::Context;
use super::contexts::validity;
use super::failure::{Failure, Result, UNREACHABLE};

/// Longest wait for a connection, and for the handshake on it.
const PATIENCE: Duration = Duration::from_secs(10);

/// A silent peer is asked whether it is there after this long, ...
const PROBE_AFTER: Duration = Duration::from_secs(15);
/// ... again after each of these, ...
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// ... and is gone after so many without an answer.
const PROBES: u32 = 3;

/// The way to a daemon.
#[derive(Debug)]
pub struct Transport {
    endpoint: Endpoint,
    /// Name of the context that it is from, and the context.
    context: Option<(String, Context)>,
    tls: Option<Tls>,
}

struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A connection.
pub enum Connection {
    /// Over a Unix socket.
    Unix(UnixStream),
    /// Over plain TCP.
    Plain(TcpStream),
    /// Over TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    /// To a socket on this host.
    pub fn socket(path: PathBuf) -> Self {
        Self { endpoint: Endpoint::Unix(path), context: None, tls: None }
    }

    /// To the daemon of a context. Its certificates are read now.
    pub fn context(name: &str, context: &Context) -> Result<Self> {
        let endpoint = context.check(name)?;
        let tls = match (&endpoint, &context.ca, &context.certificate, &context.key) {
            (Endpoint::Tls { host, .. }, Some(ca), Some(certificate), Some(key)) => {
                let config = configure(name, ca, certificate, key)?;
                let name = ServerName::try_from(host.clone()).map_err(|_| {
                    Failure::bad_input(format!("context {name}: endpoint: {host:?} is no host name and no address"))
                })?;
                Some(Tls { connector: TlsConnector::from(Arc::new(config)), name })
            }
            _ => None,
        };
        Ok(Self { endpoint, context: Some((name.to_owned(), context.clone())), tls })
    }

    /// Where it leads.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The context that it is from.
    pub fn credentials(&self) -> Option<&Context> {
        self.context.as_ref().map(|(_, context)| context)
    }

    /// Connects, and shakes hands where that is TLS.
    pub async fn connect(&self) -> Result<Connection> {
        match &self.endpoint {
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(|error| self.no_socket(&error))?;
                Ok(Connection::Unix(stream))
            }
            Endpoint::Plain { host, port, .. } => {
                let stream = self.tcp(host, *port).await?;
                if !stream.peer_addr().is_ok_and(|peer| peer.ip().is_loopback()) {
                    let what =
                        format!("{}: {host} does not lead to loopback, plain http:// goes no further", self.told());
                    return Err(Failure::bad_input(what));
                }
                Ok(Connection::Plain(stream))
            }
            Endpoint::Tls { host, port } => {
                let stream = self.tcp(host, *port).await?;
                let Some(tls) = &self.tls else {
                    return Err(Failure::failed(format!("{}: TLS is not set up", self.told())));
                };
                let shaken = tokio::time::timeout(PATIENCE, tls.connector.connect(tls.name.clone(), stream)).await;
                let shaken = shaken.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
                shaken.map(|stream| Connection::Tls(Box::new(stream))).map_err(|error| self.lost(&error))
            }
        }
    }

    async fn tcp(&self, host: &str, port: u16) -> Result<TcpStream> {
        let connected = tokio::time::timeout(PATIENCE, TcpStream::connect((host, port))).await;
        let stream = connected.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())).map_err(|error| {
            let cure = match error.kind() {
                ErrorKind::ConnectionRefused => {
                    "nobody listens there; is agentd running, and has its configuration a listener on this port?"
                }
                ErrorKind::TimedOut => "no answer; is the host up, and does a firewall let the port through?",
                ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "no way leads there; look at the network",
                _ => "look at the endpoint of the context: agentctl context show",
            };
            Failure::new(UNREACHABLE, format!("{}: the daemon cannot be reached ({error}): {cure}", self.told()))
        })?;
        // frames are small and wanted at once; without either option it works as well
        let _ = stream.set_nodelay(true);
        let _ = keep_alive(&stream);
        Ok(stream)
    }

    fn no_socket(&self, error: &io::Error) -> Failure {
        let cure = match error.kind() {
            ErrorKind::NotFound => {
                "no such socket; start the daemon (systemctl start agentd, or agentd run), or name its socket with --socket or AGENTD_SOCKET"
            }
            ErrorKind::ConnectionRefused => {
                "nobody listens there; start the daemon (systemctl start agentd, or agentd run)"
            }
            ErrorKind::PermissionDenied => {
                "permission denied; ask as root, or as a member of the group that the socket belongs to"
            }
            ErrorKind::InvalidInput => "the path is too long for a socket; name a shorter one with --socket",
            _ => "start the daemon (systemctl start agentd, or agentd run), or name its socket with --socket",
        };
        Failure::new(UNREACHABLE, format!("{}: the daemon cannot be reached ({error}): {cure}", self.told()))
    }

    /// A connection that came to its end too early, or a handshake that failed. The cause may lie deep in the error.
    pub fn lost(&self, error: &(dyn StdError + 'static)) -> Failure {
        let told = self.told();
        if let Some(cause) = cause(error) {
            let (what, cure) = tls_cure(cause);
            return Failure::new(UNREACHABLE, format!("{told}: {what}: {cure}"));
        }
        let cure = match self.endpoint {
            // a server that does not like a certificate may be gone before it is heard why
            Endpoint::Tls { .. } => "ask again; agentctl doctor looks at the certificates",
            _ => "ask again",
        };
        Failure::new(UNREACHABLE, format!("{told}: the connection to the daemon was lost: {error}; {cure}"))
    }

    /// Its name in messages.
    pub fn told(&self) -> String {
        match &self.context {
            Some((name, _)) => format!("{} (context {name})", self.endpoint),
            None => self.endpoint.to_string(),
        }
    }
}

fn keep_alive(stream: &TcpStream) -> rustix::io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_tcp_keepidle(stream, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, PROBE_EVERY)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    sockopt::set_socket_keepalive(stream, true)
}

/// The certificates of a file in PEM.
pub fn certificates(what: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let refuse = |found: String| {
        Failure::bad_input(format!(
            "{}: {found}; expected the {what} in PEM, as agentctl cert writes it",
            file.display()
        ))
    };
    let text = std::fs::read(file).map_err(|error| refuse(error.to_string()))?;
    let read: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let read = read.map_err(|error| refuse(error.to_string()))?;
    if read.is_empty() {
        return Err(refuse("found no certificate".to_owned()));
    }
    Ok(read)
}

fn configure(context: &str, ca: &Path, certificate: &Path, key: &Path) -> Result<ClientConfig> {
    let refuse =
        |file: &Path, what: String| Failure::bad_input(format!("context {context}: {}: {what}", file.display()));
    let mut roots = RootCertStore::empty();
    for authority in certificates("certificate of the authority (ca)", ca)? {
        roots.add(authority).map_err(|error| refuse(ca, format!("{error}; expected a certificate of an authority")))?;
    }
    let chain = certificates("client's certificate", certificate)?;
    if let Some(validity) = chain.first().and_then(|leaf| validity::of_der(leaf)) {
        let now = Timestamp::now();
        if now > validity.until {
            let what = format!("the certificate has expired on {}; {RENEW}", validity.until);
            return Err(refuse(certificate, what));
        }
        if now < validity.from {
            let what = format!("the certificate is valid from {} on; set this host's clock", validity.from);
            return Err(refuse(certificate, what));
        }
    }
    let secret = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| refuse(key, format!("{error}; expected the private key of the certificate in PEM")))?;
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&tokio_rustls::rustls::version::TLS13])
        .map_err(|error| Failure::failed(format!("TLS cannot be set up: {error}")))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, secret)
        .map_err(|error| {
            refuse(certificate, format!("{error}; expected a certificate and its own key ({})", key.display()))
        })
}

/// How to get a new certificate.
const RENEW: &str = "issue a new one with agentctl cert issue where the authority is, and copy it here";

/// The error of TLS inside another one.
fn cause<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a TlsError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<TlsError>() {
            return Some(found);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => error.source(),
        };
    }
    None
}

/// What an error of TLS means, and what to do about it.
fn tls_cure(error: &TlsError) -> (String, String) {
    use CertificateError as C;
    let (what, cure) = match error {
        TlsError::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => (
            "the daemon's certificate has expired",
            "issue a new one for it with agentctl cert issue; agentd reads it without a restart",
        ),
        TlsError::InvalidCertificate(C::NotValidYet | C::NotValidYetContext { .. }) => {
            ("the daemon's certificate is not valid yet", "compare the clocks of the two hosts")
        }
        TlsError::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => (
            "the daemon's certificate is from another authority than the context's ca",
            "copy ca.crt from the daemon's host and name it with agentctl context add --replace --ca; if it is the right one, somebody else answers there",
        ),
        TlsError::InvalidCertificate(C::NotValidForName) => (
            "the daemon's certificate is for another host name",
            "use the name that it was issued for, or issue one for this name",
        ),
        TlsError::InvalidCertificate(C::NotValidForNameContext { expected, presented }) => {
            let what = format!(
                "the daemon's certificate is not for {}, but for {}",
                expected.to_str(),
                if presented.is_empty() { "no host".to_owned() } else { presented.join(", ") }
            );
            return (what, "use one of its names in the endpoint, or issue a certificate for this one".to_owned());
        }
        TlsError::AlertReceived(AlertDescription::CertificateRequired) => (
            "the daemon wants a client's certificate",
            "name one in the context: agentctl context add --replace --certificate --key",
        ),
        TlsError::AlertReceived(AlertDescription::CertificateExpired) => {
            ("the daemon says that the client's certificate has expired", RENEW)
        }
        TlsError::AlertReceived(
            AlertDescription::UnknownCA | AlertDescription::BadCertificate | AlertDescription::DecryptError,
        ) => (
            "the daemon does not know the authority of the client's certificate",
            "use a certificate that the daemon's own authority has issued (agentctl cert issue)",
        ),
        TlsError::AlertReceived(
            AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::AccessDenied,
        ) => ("the daemon does not accept the client's certificate", RENEW),
        TlsError::InvalidMessage(_) => (
            "what answers does not speak TLS",
            "look at the port; a listener of plain HTTP needs an endpoint http:// on loopback",
        ),
        TlsError::AlertReceived(AlertDescription::ProtocolVersion) | TlsError::PeerIncompatible(_) => {
            ("the daemon does not speak TLS 1.3", "look at the port: agentd speaks TLS 1.3 only")
        }
        other => return (format!("TLS failed: {other}"), "agentctl doctor looks at the certificates".to_owned()),
    };
    (what.to_owned(), cure.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_found_and_has_its_cure() {
        let transport = Transport {
            endpoint: Endpoint::parse("https://far:1").unwrap(),
            context: Some(("far".to_owned(), Context::default())),
            tls: None,
        };
        let cases = [
            (TlsError::InvalidCertificate(CertificateError::Expired), "has expired"),
            (TlsError::InvalidCertificate(CertificateError::UnknownIssuer), "ca.crt"),
            (TlsError::InvalidCertificate(CertificateError::NotValidForName), "issue one for this name"),
            (TlsError::AlertReceived(AlertDescription::CertificateRequired), "wants a client's certificate"),
            (TlsError::AlertReceived(AlertDescription::CertificateExpired), "client's certificate has expired"),
            (TlsError::AlertReceived(AlertDescription::UnknownCA), "does not know the authority"),
        ];
        for (error, wanted) in cases {
            let nested = io::Error::other(io::Error::new(ErrorKind::InvalidData, error));
            let Failure::Told { code, message, .. } = transport.lost(&nested) else { panic!("it is told") };
            assert!(code == 5 && message.contains(wanted) && message.starts_with("https://far:1 (context far): "));
        }
        let Failure::Told { message, .. } = transport.lost(&io::Error::other("gone")) else { panic!("it is told") };
        assert!(message.contains("lost: gone; ask again"), "{message}");
    }
}
