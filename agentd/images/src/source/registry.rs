//! Registries: manifests by oci-client, blobs by its ranged streams into files that the next pull resumes.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use oci_client::client::{BlobResponse, Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};

use super::Blob;
use crate::digest::Digest;
use crate::error::{ImageError, Result};
use crate::flight::Meter;
use crate::manifest::{self, BlobRef};
use crate::settings::Settings;
use crate::{checkpoint, credentials, disk};

mod partial;

use partial::Partial;

/// A host that may serve an image: the registry of its reference, or a mirror of it.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    /// `host[:port]`.
    pub host: String,
    plain: bool,
    mirror: bool,
}

/// Mirrors first, then the registry itself.
pub(crate) fn endpoints(reference: &Reference, settings: &Settings) -> Vec<Endpoint> {
    let registry = reference.registry();
    let mut found = Vec::new();
    for mirror in settings.mirrors.get(registry).into_iter().flatten() {
        let (host, plain) = match (mirror.strip_prefix("http://"), mirror.strip_prefix("https://")) {
            (Some(host), _) => (host, true),
            (None, Some(host)) => (host, false),
            (None, None) => (mirror.as_str(), may_be_plain(mirror, settings)),
        };
        let host = host.trim_end_matches('/');
        // `http://` in the list of mirrors does not by itself open a host to plain text.
        let plain = plain && may_be_plain(host, settings);
        found.push(Endpoint { host: host.to_owned(), plain, mirror: true });
    }
    let host = reference.resolve_registry().to_owned();
    let plain = may_be_plain(&host, settings);
    found.push(Endpoint { host, plain, mirror: false });
    found
}

/// Whether a host may be spoken to without TLS: those listed, and loopback unless it has a certificate authority.
fn may_be_plain(host: &str, settings: &Settings) -> bool {
    if settings.insecure.iter().any(|listed| listed == host) {
        return true;
    }
    if settings.certificate_authorities.contains_key(host) {
        return false;
    }
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// One image at one endpoint.
pub(crate) struct Session {
    client: Client,
    auth: RegistryAuth,
    reference: Reference,
    /// The reference, written out, for errors.
    name: String,
    host: String,
    auth_files: String,
    retries: u32,
}

impl Session {
    /// Speaks to the endpoint and gets a token where it wants one.
    pub(crate) async fn open(reference: &Reference, endpoint: &Endpoint, settings: &Settings) -> Result<Self> {
        let mut at_endpoint = reference.clone();
        if endpoint.mirror {
            at_endpoint.set_mirror_registry(endpoint.host.clone());
        }
        let mut config = ClientConfig {
            protocol: if endpoint.plain { ClientProtocol::Http } else { ClientProtocol::Https },
            connect_timeout: Some(settings.connect_timeout),
            read_timeout: Some(settings.read_timeout),
            user_agent: concat!("agentd/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        if let Some(path) = settings.certificate_authorities.get(&endpoint.host) {
            let data = tokio::fs::read(path).await.map_err(|error| ImageError::Settings {
                registry: endpoint.host.clone(),
                path: path.clone(),
                message: format!("the certificate authority cannot be read: {error}"),
            })?;
            config.extra_root_certificates.push(Certificate { encoding: CertificateEncoding::Pem, data });
        }
        let files = settings.auth_files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
        let client = Client::try_from(config).map_err(|error| ImageError::Registry {
            registry: endpoint.host.clone(),
            reference: reference.whole(),
            message: format!("no client could be made for it: {}", one_line(&error)),
        })?;
        let auth = credentials::find(&settings.auth_files, &endpoint.host, reference.repository())?;
        let session = Self {
            client,
            auth,
            reference: at_endpoint,
            name: reference.whole(),
            host: endpoint.host.clone(),
            auth_files: if files.is_empty() { "an auth.json".into() } else { files.join(" or ") },
            retries: settings.retries,
        };
        let granted = session.client.auth(&session.reference, &session.auth, RegistryOperation::Pull).await;
        granted.map_err(|error| session.failed(&error, None))?;
        Ok(session)
    }

    /// Where it speaks to, for errors.
    pub(crate) fn origin(&self) -> String {
        format!("registry {}", self.host)
    }

    /// A manifest or an index, by the reference or by digest.
    pub(crate) async fn manifest(&self, digest: Option<&Digest>, most: u64) -> Result<(Vec<u8>, Digest)> {
        let reference = match digest {
            Some(digest) => self.reference.clone_with_digest(digest.as_str().to_owned()),
            None => self.reference.clone(),
        };
        let (bytes, _) = self
            .client
            .pull_manifest_raw(&reference, &self.auth, manifest::ACCEPTED)
            .await
            .map_err(|error| self.failed(&error, digest.or(self.promised().as_ref())))?;
        if bytes.len() as u64 > most {
            return Err(ImageError::Manifest {
                reference: self.name.clone(),
                message: format!("its manifest has {} bytes, more than {most}", bytes.len()),
            });
        }
        let found = Digest::of(&bytes);
        if let Some(expected) = reference.digest()
            && expected != found.as_str()
        {
            return Err(self.wrong_digest("the manifest", expected, found.as_str()));
        }
        Ok((bytes, found))
    }

    fn promised(&self) -> Option<Digest> {
        self.reference.digest().and_then(|digest| Digest::parse(digest).ok())
    }

    /// A small blob, into memory.
    pub(crate) async fn small(&self, blob: &BlobRef, what: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut failures = 0;
        while (bytes.len() as u64) < blob.size {
            bytes.clear();
            let result = self.client.pull_blob_stream(&self.reference, blob.digest.as_str()).await;
            let mut stream = result.map_err(|error| self.failed(&error, Some(&blob.digest)))?;
            let mut problem = String::from("the connection closed early");
            while let Some(piece) = stream.next().await {
                match piece {
                    Ok(piece) => bytes.extend_from_slice(&piece),
                    Err(error) => {
                        problem = one_line(&error);
                        break;
                    }
                }
                if bytes.len() as u64 > blob.size {
                    return Err(self.too_long(blob));
                }
            }
            if (bytes.len() as u64) < blob.size {
                failures += 1;
                if failures > self.retries {
                    return Err(self.broke_off(blob, bytes.len() as u64, problem));
                }
                pause(failures).await;
            }
        }
        let found = Digest::of(&bytes);
        if found == blob.digest {
            Ok(bytes)
        } else {
            Err(self.wrong_digest(what, blob.digest.as_str(), found.as_str()))
        }
    }

    /// A blob, into the file `whole` by way of the file `part`, which an earlier pull may have begun.
    pub(crate) async fn fetch(&self, blob: &BlobRef, part: PathBuf, whole: PathBuf, meter: &Meter) -> Result<Blob> {
        let mut partial = Partial::open(part, blob.size).await?;
        meter.set(partial.have);
        let mut resumed = partial.have > 0;
        let mut failures = 0;
        loop {
            while partial.have < blob.size {
                let before = partial.have;
                let problem = self.more(blob, &mut partial, meter).await?;
                checkpoint("pull.partial");
                if partial.have < blob.size {
                    resumed |= partial.have > 0;
                    // A connection that brings something each time is slow, not broken.
                    failures = if partial.have > before.saturating_add(1 << 20) { 1 } else { failures + 1 };
                    if failures > self.retries {
                        return Err(self.broke_off(blob, partial.have, problem));
                    }
                    tracing::warn!(registry = %self.host, blob = %blob.digest, problem, "blob broke off; resuming");
                    pause(failures).await;
                }
            }
            let found = partial.digest();
            if found == blob.digest {
                break;
            }
            partial.reset().await?;
            if !resumed {
                partial.remove();
                return Err(self.wrong_digest(&format!("blob {}", blob.digest), blob.digest.as_str(), found.as_str()));
            }
            // The part on disk may have been the damaged one: once more from the start.
            tracing::warn!(registry = %self.host, blob = %blob.digest, "resumed blob is damaged; starting over");
            resumed = false;
            meter.set(0);
        }
        let part = partial.close().await?;
        disk_rename(&part, &whole)?;
        checkpoint("pull.blob");
        Blob::whole(&whole)
    }

    /// One request for what is missing. Returns why it ended; errors are those that another try does not cure.
    async fn more(&self, blob: &BlobRef, partial: &mut Partial, meter: &Meter) -> Result<String> {
        let answer =
            self.client.pull_blob_stream_partial(&self.reference, blob.digest.as_str(), partial.have, None).await;
        let mut stream = match answer {
            Ok(BlobResponse::Full(stream)) => {
                partial.reset().await?;
                stream
            }
            Ok(BlobResponse::Partial(stream)) => stream,
            // The registry knows the blob by another length: start over, and let the digest judge.
            Err(OciDistributionError::ServerError { code: 416, .. }) if partial.have > 0 => {
                partial.reset().await?;
                return Ok("the registry cannot resume it".into());
            }
            Err(error) if passing(&error) => return Ok(one_line(&error)),
            Err(error) => return Err(self.failed(&error, Some(&blob.digest))),
        };
        let mut problem = String::from("the connection closed early");
        while let Some(piece) = stream.next().await {
            match piece {
                Ok(piece) => {
                    if partial.have + piece.len() as u64 > blob.size {
                        partial.reset().await?;
                        partial.remove();
                        return Err(self.too_long(blob));
                    }
                    partial.add(&piece).await?;
                    meter.set(partial.have);
                }
                Err(error) => {
                    problem = one_line(&error);
                    break;
                }
            }
        }
        partial.flush().await?;
        Ok(problem)
    }

    fn too_long(&self, blob: &BlobRef) -> ImageError {
        self.registry(format!("it sends more than the {} bytes of blob {}", blob.size, blob.digest))
    }

    fn registry(&self, message: String) -> ImageError {
        ImageError::Registry { registry: self.host.clone(), reference: self.name.clone(), message }
    }

    fn broke_off(&self, blob: &BlobRef, received: u64, message: String) -> ImageError {
        ImageError::Truncated {
            registry: self.host.clone(),
            reference: self.name.clone(),
            digest: blob.digest.to_string(),
            received,
            expected: blob.size,
            message,
        }
    }

    fn wrong_digest(&self, what: &str, expected: &str, found: &str) -> ImageError {
        ImageError::Digest {
            reference: self.name.clone(),
            origin: self.origin(),
            what: what.to_owned(),
            expected: expected.to_owned(),
            found: found.to_owned(),
        }
    }

    /// Says in our words what went wrong; `digest` is what was asked for.
    fn failed(&self, error: &OciDistributionError, digest: Option<&Digest>) -> ImageError {
        let refused = |message| ImageError::Unauthorized {
            registry: self.host.clone(),
            reference: self.name.clone(),
            message,
            auth_files: self.auth_files.clone(),
        };
        let missing = || match digest {
            Some(digest) if self.promised().as_ref() != Some(digest) => {
                self.registry(format!("it has no blob or manifest {digest}"))
            }
            _ => ImageError::NotFound { registry: self.host.clone(), reference: self.name.clone() },
        };
        match error {
            OciDistributionError::UnauthorizedError { .. } => refused("401 Unauthorized".into()),
            OciDistributionError::AuthenticationFailure(message) => {
                refused(format!("its token service gives no token ({})", squeeze(message)))
            }
            OciDistributionError::ServerError { code: code @ (401 | 403), .. } => refused(format!("status {code}")),
            OciDistributionError::ServerError { code: 404, .. }
            | OciDistributionError::ImageManifestNotFoundError(_) => missing(),
            OciDistributionError::RegistryError { envelope, .. } => {
                let code = envelope.errors.first().map(|error| &error.code);
                match code {
                    Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => refused(one_line(error)),
                    Some(
                        OciErrorCode::ManifestUnknown
                        | OciErrorCode::NameUnknown
                        | OciErrorCode::NotFound
                        | OciErrorCode::BlobUnknown
                        | OciErrorCode::ManifestBlobUnknown,
                    ) => missing(),
                    _ => self.registry(one_line(error)),
                }
            }
            OciDistributionError::DigestError(oci_client::errors::DigestError::VerificationError {
                expected,
                actual,
            }) => self.wrong_digest("the manifest", expected, actual),
            other => self.registry(one_line(other)),
        }
    }
}

fn disk_rename(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        disk::make_folder(parent)?;
    }
    std::fs::rename(from, to).map_err(|error| ImageError::io("rename into place", to, error))
}

/// Whether another try may succeed.
fn passing(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::RequestError(error) => {
            // `decode` is also an answer that broke off
            error.is_timeout() || error.is_connect() || error.is_request() || error.is_body() || error.is_decode()
        }
        OciDistributionError::ServerError { code, .. } => matches!(code, 408 | 429 | 500..=599),
        OciDistributionError::IoError(_) => true,
        _ => false,
    }
}

async fn pause(failures: u32) {
    tokio::time::sleep(Duration::from_millis(100) * 2u32.pow(failures.min(6))).await;
}

/// An error and its causes in one line.
fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    squeeze(&text)
}

fn squeeze(text: &str) -> String {
    let joined = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if joined.chars().count() > 400 { joined.chars().take(400).chain(['…']).collect() } else { joined }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_listed_hosts_are_plain() {
        let mut settings = Settings { insecure: vec!["lab:5000".into()], ..Settings::default() };
        settings.certificate_authorities.insert("127.0.0.1:5001".into(), "/ca.pem".into());
        for (host, plain) in [
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.0.0.1:5001", false),
            ("[::1]:5000", true),
            ("lab:5000", true),
            ("lab", false),
            ("127.0.0.1.example.org", false),
            ("quay.io", false),
        ] {
            assert_eq!(may_be_plain(host, &settings), plain, "{host}");
        }
    }

    #[test]
    fn mirrors_come_first_and_stay_encrypted() {
        let mut settings = Settings::default();
        settings.mirrors.insert("docker.io".into(), vec!["http://127.0.0.1:5/".into(), "http://far".into()]);
        let found = endpoints(&crate::reference::parse("nginx").unwrap(), &settings);
        let seen: Vec<_> = found.iter().map(|end| (end.host.as_str(), end.plain, end.mirror)).collect();
        assert_eq!(seen, [("127.0.0.1:5", true, true), ("far", false, true), ("index.docker.io", false, false)]);
    }
}
