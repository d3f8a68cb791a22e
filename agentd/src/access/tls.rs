//! TLS of the TCP listeners: version 1.3 only, client certificates required. Certificate, key and CAs are read again when
//! their files change; files that are at fault leave the old ones in use.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto, version};
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use super::follow::Follow;
use crate::events::{Events, Subject};

/// Largest file of certificates, bytes.
const LARGEST: u64 = 1 << 20;

/// Where certificate, key and CAs are.
#[derive(Debug, Clone)]
pub struct Files {
    /// Certificate and those between it and its CA, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// CAs of clients, PEM.
    pub client_ca: PathBuf,
}

/// What was read of the files.
#[derive(Debug)]
pub struct Loaded {
    /// For handshakes.
    pub config: Arc<ServerConfig>,
    /// Names and addresses of the certificate, in small letters.
    pub names: Vec<String>,
    /// When the certificate ends, seconds since 1970.
    pub not_after: i64,
}

/// The TLS settings in use.
#[derive(Debug)]
pub struct Tls {
    files: Files,
    follow: Follow,
    loaded: RwLock<Arc<Loaded>>,
}

impl Tls {
    /// Reads the files.
    pub fn open(files: Files) -> Result<Self, String> {
        let follow = Follow::new(vec![files.certificate.clone(), files.key.clone(), files.client_ca.clone()]);
        let loaded = load(&files)?;
        Ok(Self { files, follow, loaded: RwLock::new(Arc::new(loaded)) })
    }

    /// What is in use now. Reads the files again if they have changed, and says so in an event.
    pub fn current(&self, events: &Events) -> Arc<Loaded> {
        if self.follow.changed() {
            match load(&self.files) {
                Ok(loaded) => {
                    let until = jiff::Timestamp::from_second(loaded.not_after).map(|at| at.to_string());
                    let until = until.unwrap_or_default();
                    *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
                    events.publish("tls-reloaded", Subject::default(), format!("new TLS files, valid until {until}"));
                }
                Err(error) => {
                    tracing::warn!("{error}; the TLS files read before stay in use");
                    let message = format!("{error}; the TLS files read before stay in use");
                    events.publish("tls-reload-failed", Subject::default(), message);
                }
            }
        }
        Arc::clone(&self.loaded.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets the next handshake look at the files.
    pub fn look_again(&self) {
        self.follow.look_again();
    }
}

fn read(field: &str, path: &Path, private: bool) -> Result<Vec<u8>, String> {
    let fail = |why: String| format!("{field}: {}: {why}", path.display());
    let found = std::fs::metadata(path).map_err(|error| {
        fail(format!("cannot be read: {error}; `agentctl cert init` and `agentctl cert issue` make such files"))
    })?;
    if !found.is_file() || found.len() > LARGEST {
        return Err(fail(format!("expected a file of at most {LARGEST} bytes")));
    }
    let mode = found.permissions().mode() & 0o777;
    if private && mode & 0o007 != 0 {
        return Err(fail(format!("has mode {mode:04o}, expected a key that others cannot read; chmod it to 0600")));
    }
    std::fs::read(path).map_err(|error| fail(format!("cannot be read: {error}")))
}

fn certificates(field: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read(field, path, false)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| format!("{field}: {}: {error}; expected PEM", path.display()))?;
    if found.is_empty() {
        return Err(format!("{field}: {}: found no certificate, expected some in PEM", path.display()));
    }
    Ok(found)
}

fn load(files: &Files) -> Result<Loaded, String> {
    let chain = certificates("api.tls_certificate", &files.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&read("api.tls_key", &files.key, true)?)
        .map_err(|error| format!("api.tls_key: {}: {error}; expected a key in PEM", files.key.display()))?;
    let shown = files.client_ca.display();
    let mut roots = RootCertStore::empty();
    for certificate in certificates("api.tls_client_ca", &files.client_ca)? {
        roots.add(certificate).map_err(|error| format!("api.tls_client_ca: {shown}: {error}"))?;
    }
    let provider = Arc::new(crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| format!("api.tls_client_ca: {shown}: {error}"))?;
    let shown = files.certificate.display();
    let (names, not_after) = chain.first().map_or_else(
        || Err("found no certificate".to_owned()),
        |certificate| server_names(certificate).map_err(|why| format!("api.tls_certificate: {shown}: {why}")),
    )?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|error| format!("TLS 1.3 cannot be set up: {error}"))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| format!("api.tls_certificate: {shown} does not go with api.tls_key: {error}"))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // a client that comes back shows its certificate again: it may have ended, or its CA been taken away
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Loaded { config: Arc::new(config), names, not_after })
}

fn server_names(certificate: &CertificateDer<'_>) -> Result<(Vec<String>, i64), String> {
    let (_, parsed) = parse_x509_certificate(certificate).map_err(|error| format!("is no certificate: {error}"))?;
    let mut names = Vec::new();
    if let Ok(Some(found)) = parsed.subject_alternative_name() {
        for name in &found.value.general_names {
            match name {
                GeneralName::DNSName(name) => names.push(name.to_ascii_lowercase()),
                GeneralName::IPAddress(bytes) => {
                    let four = <[u8; 4]>::try_from(*bytes).map(std::net::IpAddr::from);
                    let six = <[u8; 16]>::try_from(*bytes).map(std::net::IpAddr::from);
                    names.extend(four.or(six).map(|address| address.to_string()));
                }
                _ => {}
            }
        }
    }
    Ok((names, parsed.validity().not_after.timestamp()))
}

/// Names and end (seconds since 1970) of the certificate in a file, for `doctor`.
pub fn describe(path: &Path) -> Result<(Vec<String>, i64), String> {
    let chain = certificates("api.tls_certificate", path)?;
    chain.first().map_or_else(|| Err("found no certificate".to_owned()), server_names)
}

/// Who a client's certificate names, and when it ends (seconds since 1970). The certificate was verified before.
pub fn client(certificates: Option<&[CertificateDer<'_>]>) -> Result<(String, i64), String> {
    let certificate = certificates.and_then(<[_]>::first).ok_or("it has no certificate")?;
    let (_, parsed) = parse_x509_certificate(certificate).map_err(|error| format!("its certificate: {error}"))?;
    let mut names = parsed.subject().iter_common_name();
    let name = names.next().and_then(|name| name.as_str().ok()).ok_or("its certificate has no common name")?;
    if names.next().is_some() {
        return Err("its certificate has several common names, expected one".to_owned());
    }
    if !super::is_principal(name) {
        return Err(format!(
            "its certificate's common name {name:?} cannot be a principal; expected 1 to 64 letters, digits, spaces or ._@-/+="
        ));
    }
    Ok((name.to_owned(), parsed.validity().not_after.timestamp()))
}
