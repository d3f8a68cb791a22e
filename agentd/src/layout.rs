//! Where everything lies. The whole tree:
//!
//! ```text
//! <run>/                            /run/agentd; tmpfs: survives the daemon, not the host. Mode 0711, what is below 0700
//!   lock                            flock: one daemon for each instance name
//!   agentd.sock                     local API (configurable)
//!   boot                            boot id of the host when the daemon last ran
//!   specs/<pod>.json                specification of each pod that is wanted (name percent-encoded)
//!   pods/<instance>/                one sandbox, from before its pod-init is forked until nothing is left of it
//!     init.sock                     pod-init listens here for ever
//!     exits/<key>.<attempt>         exit statuses, written by pod-init before it forgets them
//!     instance.json                 checkpoint of the instance; absent for a ready sandbox of the pool
//!   network/                        address leases, host ports, CNI results
//!   events/                         the last events, and so many before them: JSON lines
//!   idempotency/<hash>.json         calls with an idempotency key, and their answers
//! <state>/                          /var/lib/agentd; on disk. Mode 0700
//!   specs/<pod>.json                specifications of persistent pods, fsync'd
//!   events.json                     the id below which every event's id is
//!   sandboxes/<instance>/           what the pod writes, below its disk limit (loop file or quota)
//!     sandbox/<container>/          /mnt/mesos/sandbox
//!     volumes/<name>/               ephemeral volumes
//!     upper/c<slot>.<attempt>/      overlay upper and work
//!     etc/                          hosts, hostname, resolv.conf
//!   disks/                          loop files of pods with a disk limit
//!   images/                         the image store
//!   artifacts/                      cached artifacts
//!   logs/<instance>/<container>.log container logs
//!   recordings/<session>.cast       what sessions showed, where it is asked for
//!   audit/audit.log                 audit log (configurable), its earlier files, and its head
//! ```
//!
//! Files are written under a temporary name and renamed; those below `<state>` are fsync'd first, and their folder after.

use std::path::PathBuf;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::config::Config;

/// Characters of a pod id that stand for themselves in a file name.
const FILE_NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// Paths of one instance of the daemon.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Volatile state.
    pub run: PathBuf,
    /// Durable state.
    pub state: PathBuf,
}

impl Layout {
    /// The layout that a configuration asks for.
    pub fn of(config: &Config) -> Self {
        Self { run: config.paths.run.clone(), state: config.paths.state.clone() }
    }

    /// The lock of the instance name.
    pub fn lock(&self) -> PathBuf {
        self.run.join("lock")
    }
    /// The last events.
    pub fn events(&self) -> PathBuf {
        self.run.join("events")
    }
    /// High-water mark of the ids of events.
    pub fn event_mark(&self) -> PathBuf {
        self.state.join("events.json")
    }
    /// Calls with an idempotency key.
    pub fn idempotency(&self) -> PathBuf {
        self.run.join("idempotency")
    }
    /// Boot id when the daemon last ran.
    pub fn boot(&self) -> PathBuf {
        self.run.join("boot")
    }
    /// All sandboxes.
    pub fn pods(&self) -> PathBuf {
        self.run.join("pods")
    }
    /// One sandbox.
    pub fn pod(&self, instance: &str) -> PathBuf {
        self.pods().join(instance)
    }
    /// Where its pod-init listens.
    pub fn init_socket(&self, instance: &str) -> PathBuf {
        self.pod(instance).join("init.sock")
    }
    /// Its exit statuses.
    pub fn exits(&self, instance: &str) -> PathBuf {
        self.pod(instance).join("exits")
    }
    /// Its checkpoint.
    pub fn checkpoint(&self, instance: &str) -> PathBuf {
        self.pod(instance).join("instance.json")
    }
    /// Specifications on tmpfs.
    pub fn specs(&self) -> PathBuf {
        self.run.join("specs")
    }
    /// Specifications of persistent pods.
    pub fn persistent_specs(&self) -> PathBuf {
        self.state.join("specs")
    }
    /// File name of a pod's specification.
    pub fn spec_name(pod: &str) -> String {
        format!("{}.json", utf8_percent_encode(pod, FILE_NAME))
    }
    /// Leases, ports and CNI results.
    pub fn network(&self) -> PathBuf {
        self.run.join("network")
    }
    /// All pods' writable files.
    pub fn sandboxes(&self) -> PathBuf {
        self.state.join("sandboxes")
    }
    /// A pod's writable files.
    pub fn sandbox(&self, instance: &str) -> PathBuf {
        self.sandboxes().join(instance)
    }
    /// The image store.
    pub fn images(&self) -> PathBuf {
        self.state.join("images")
    }
    /// Cached artifacts.
    pub fn artifacts(&self) -> PathBuf {
        self.state.join("artifacts")
    }
    /// Container logs.
    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    /// The audit log where the configuration names no other.
    pub fn audit(&self) -> PathBuf {
        self.state.join("audit/audit.log")
    }

    /// Makes the folders that must exist before anything else, mode 0700. Others may pass through the run folder, to the
    /// API's socket, whose own mode says who may use it.
    pub fn create(&self) -> Result<(), String> {
        use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
        let folders = [
            self.run.clone(),
            self.pods(),
            self.specs(),
            self.network(),
            self.state.clone(),
            self.persistent_specs(),
            self.sandboxes(),
            self.images(),
            self.artifacts(),
            self.logs(),
        ];
        for folder in folders {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(|error| {
                format!(
                    "cannot make the folder {}: {error}; run agentd as root or choose other [paths]",
                    folder.display()
                )
            })?;
        }
        let opened = std::fs::metadata(&self.run).and_then(|run| {
            let mode = run.permissions().mode() | 0o011;
            std::fs::set_permissions(&self.run, std::fs::Permissions::from_mode(mode))
        });
        opened.map_err(|error| format!("cannot let others pass through {}: {error}", self.run.display()))
    }
}
