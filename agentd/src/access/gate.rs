//! The gate that every request passes: the access list as it stands, limits of rate, names of the host, and the audit log.

use std::fmt;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::audit::Audit;
use super::follow::Follow;
use super::policy::{LARGEST, Policy};
use super::rate::Rates;
use super::{Caller, Source};
use crate::config;
use crate::events::{Events, Subject};

/// What decides about requests. Shared by all connections.
#[derive(Debug)]
pub struct Access {
    policy: RwLock<Arc<Policy>>,
    follow: Option<Follow>,
    /// The audit log.
    pub audit: Arc<Audit>,
    rates: Rates,
    /// Names that may stand in `Host` over TCP, beside those that follow from the listener.
    pub allowed_hosts: Vec<String>,
    /// Origins of web pages that may call.
    pub allowed_origins: Vec<String>,
    handshakes_failed: AtomicU64,
    told: Option<Told>,
}

/// Who is told of each access list.
struct Told(Box<dyn Fn(&Policy) + Send + Sync>);

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Told")
    }
}

impl Access {
    /// Reads the access list that a configuration names.
    pub fn open(config: &config::Api, audit: Arc<Audit>) -> Result<Self, String> {
        let follow = Follow::new(vec![config.acl.clone()]);
        let policy = read(&config.acl).map_err(|error| format!("api.acl: {error}"))?;
        Ok(Self {
            policy: RwLock::new(Arc::new(policy)),
            follow: Some(follow),
            audit,
            rates: Rates::new(config.requests_per_second, config.request_burst),
            allowed_hosts: config.allowed_hosts.iter().map(|name| name.to_ascii_lowercase()).collect(),
            allowed_origins: config.allowed_origins.clone(),
            handshakes_failed: AtomicU64::new(0),
            told: None,
        })
    }

    /// Tells somebody of the access list, now and each time that there is a new one.
    #[must_use]
    pub fn tell(mut self, told: impl Fn(&Policy) + Send + Sync + 'static) -> Self {
        told(&self.policy());
        self.told = Some(Told(Box::new(told)));
        self
    }

    /// A gate that lets the Unix socket do everything, without limits and without a log.
    pub fn unrestricted() -> Self {
        Self {
            policy: RwLock::new(Arc::new(Policy::without_file(Path::new("/etc/agentd/acl.toml")))),
            follow: None,
            audit: Arc::new(Audit::disabled()),
            rates: Rates::new(0, 1),
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            handshakes_failed: AtomicU64::new(0),
            told: None,
        }
    }

    /// The access list.
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the access list again if its file has changed; looks at most once a second. A list that is at fault leaves the
    /// one before in use.
    pub fn refresh(&self, events: &Events) {
        let Some(follow) = &self.follow else { return };
        if !follow.changed() {
            return;
        }
        let file = self.policy().file().to_owned();
        match read(&file) {
            Ok(policy) => {
                if let Some(Told(told)) = &self.told {
                    told(&policy);
                }
                *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
                let message = format!("the access list {} was read", file.display());
                events.publish("acl-reloaded", Subject::default(), message);
            }
            Err(error) => {
                tracing::warn!("{error}; the access list read before stays in use");
                let message = format!("{error}; the access list read before stays in use");
                events.publish("acl-reload-failed", Subject::default(), message);
            }
        }
    }

    /// Lets the next request look at the file.
    pub fn look_again(&self) {
        if let Some(follow) = &self.follow {
            follow.look_again();
        }
    }

    /// Counts a request of a caller; says how long to wait where there are too many. Root on the Unix socket is not counted.
    pub fn take(&self, caller: &Caller) -> Result<(), Duration> {
        match caller.source {
            Source::Unix { uid: 0, .. } => Ok(()),
            _ => self.rates.take(&caller.principal),
        }
    }

    /// Counts a TLS handshake that failed; gives how many there were.
    pub fn handshake_failed(&self) -> u64 {
        self.handshakes_failed.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// TLS handshakes that failed since the start.
    pub fn handshakes_failed(&self) -> u64 {
        self.handshakes_failed.load(Ordering::Relaxed)
    }
}

/// Reads an access list; one that is not there is the default.
pub fn read(path: &Path) -> Result<Policy, String> {
    let shown = path.display();
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Policy::without_file(path)),
        Err(error) => return Err(format!("{shown}: cannot be read: {error}")),
    };
    if !found.is_file() || found.len() > LARGEST {
        return Err(format!("{shown}: expected a file of at most {LARGEST} bytes"));
    }
    let mode = found.permissions().mode() & 0o777;
    let own = rustix::process::geteuid().as_raw();
    if mode & 0o022 != 0 || (found.uid() != 0 && found.uid() != own) {
        return Err(format!(
            "{shown}: has mode {mode:04o} and belongs to uid {}; expected a file of root that only root can write; chown \
             and chmod it to 0644",
            found.uid()
        ));
    }
    let text = std::fs::read_to_string(path).map_err(|error| format!("{shown}: cannot be read: {error}"))?;
    Policy::parse(path, &text).map_err(|faults| faults.join("; "))
}

#[cfg(test)]
mod tests {
    use super::super::policy::{Scope, Verb};
    use super::*;

    #[test]
    fn the_list_is_read_again_and_a_broken_one_changes_nothing() {
        let folder = tempfile::Builder::new().prefix("agentd-test-acl-").tempdir().unwrap();
        let acl = folder.path().join("acl.toml");
        let mut config = config::Config::defaults("agentd", None).api;
        config.acl.clone_from(&acl);
        let access = Access::open(&config, Arc::new(Audit::disabled())).unwrap();
        let alice = Caller { principal: "alice".into(), source: Source::Tls { address: ([127, 0, 0, 1], 1).into() } };
        let events = Events::default();
        let may = || {
            access.look_again();
            access.refresh(&events);
            access.policy().allows(&alice, Verb::View, Scope::Host)
        };
        assert!(!may());
        std::fs::write(&acl, "[[rule]]\nprincipals = [\"alice\"]\nverbs = [\"view\"]\n").unwrap();
        assert!(may());
        std::fs::write(&acl, "[[rule]]\nprincipals = [\"alice\"]\nverbs = [\"look\"]\n").unwrap();
        assert!(may(), "the last good one stays");
        std::fs::set_permissions(&acl, std::fs::Permissions::from_mode(0o666)).unwrap();
        std::fs::write(&acl, "").unwrap();
        assert!(may(), "a file that everybody can write is not read");
        std::fs::set_permissions(&acl, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(!may());
        let kinds: Vec<String> = events.since(0).events.into_iter().map(|event| event.kind).collect();
        assert_eq!(kinds, ["acl-reloaded", "acl-reload-failed", "acl-reload-failed", "acl-reloaded"]);
        std::fs::write(&acl, "x").unwrap();
        assert!(Access::open(&config, Arc::new(Audit::disabled())).unwrap_err().starts_with("api.acl: "));
    }
}
