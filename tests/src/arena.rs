//! A daemon with a harmless pod on it, beside which hostile ones are run: after each attack the neighbour must have gone on
//! and the daemon must still start pods.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use agentd_api::status::{PodStatus, TaskState};
use serde_json::{Value, json};

use crate::client::Client;
use crate::daemon::{Daemon, Options, beside_tests};
use crate::images::testbox;
use crate::pods;
use crate::poll::until;

const NEIGHBOUR: &str = "/neighbour";

/// The daemon and the neighbour.
#[derive(Debug)]
pub struct Arena {
    /// The daemon.
    pub daemon: Daemon,
    /// A client of it.
    pub client: Client,
    neighbour_pid: u32,
}

impl Arena {
    /// With a daemon of the defaults.
    #[track_caller]
    pub fn new() -> Self {
        Self::with(Daemon::with())
    }

    /// With a daemon started so.
    #[track_caller]
    pub fn with(options: Options) -> Self {
        let daemon = options.start();
        let client = daemon.client();
        client.run_pod(&tools(pods::argv(NEIGHBOUR, &["/opt/hostile", "beat"])));
        let pid = client.container(NEIGHBOUR, "main").pid;
        Self { daemon, client, neighbour_pid: pid.expect("the neighbour runs") }
    }

    /// Process id of the neighbour on the host.
    pub fn neighbour_pid(&self) -> u32 {
        self.neighbour_pid
    }

    /// Runs a line of shell in a container without an image to its end, with the programs `/opt/testbox` and
    /// `/opt/hostile`, and returns what it wrote. Sees to it that nobody was harmed.
    #[track_caller]
    pub fn attack(&self, line: &str) -> String {
        self.attack_with(tools(pods::shell("/hostile", line))).1
    }

    /// The same with a whole pod of one container.
    #[track_caller]
    #[allow(clippy::needless_pass_by_value, reason = "callers write the pod in place")]
    pub fn attack_with(&self, pod: Value) -> (PodStatus, String) {
        let ended = self.client.run_to_end(&pod);
        self.unharmed();
        ended
    }

    /// Asserts that the neighbour has gone on without a restart, and that the daemon starts and ends another pod.
    #[track_caller]
    pub fn unharmed(&self) {
        let beats = || self.client.logs(NEIGHBOUR, "main").lines().count();
        let before = beats();
        until("the neighbour beats on", Duration::from_secs(10), || (beats() > before).then_some(()));
        let neighbour = self.client.container(NEIGHBOUR, "main");
        assert_eq!(neighbour.state, TaskState::TaskRunning, "{neighbour:?}");
        assert_eq!((neighbour.pid, neighbour.attempt), (Some(self.neighbour_pid), 1), "the neighbour was restarted");
        let (status, log) = self.client.run_to_end(&pods::shell("/afterwards", "echo fine"));
        assert_eq!(log, "fine\n", "{status:?}");
    }
}

impl Default for Arena {
    fn default() -> Self {
        Self::new()
    }
}

/// Gives the first container of a pod without images the programs `/opt/testbox` and `/opt/hostile`.
#[must_use]
pub fn tools(mut pod: Value) -> Value {
    let hostile = beside_tests().join("hostile");
    for (name, path) in [("testbox", testbox()), ("hostile", hostile.as_path())] {
        pod = with_host_volume(pod, name, path, &format!("/opt/{name}"), true);
    }
    pod
}

/// Mounts a path of the host in the first container of a pod.
#[must_use]
pub fn with_host_volume(mut pod: Value, name: &str, host: &Path, mount_path: &str, read_only: bool) -> Value {
    push(&mut pod["volumes"], json!({"name": name, "host": host}));
    let mount = json!({"name": name, "mountPath": mount_path, "readOnly": read_only});
    push(&mut pod["containers"][0]["volumeMounts"], mount);
    pod
}

fn push(list: &mut Value, item: Value) {
    match list {
        Value::Array(items) => items.push(item),
        other => *other = json!([item]),
    }
}

/// The value of a line `Name: value` or `Name:\tvalue`.
#[track_caller]
pub fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).trim()
}

/// A folder on the host's disk, which pods may have as a volume (those of `/dev` they may not), with a file that tells the
/// host from the inside of a container.
#[derive(Debug)]
pub struct HostFolder(pub PathBuf);

impl HostFolder {
    /// Makes it.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/tmp/agentd-test-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a folder can be made");
        fs::write(path.join("marker"), "of the host").expect("a file can be written");
        Self(path)
    }

    /// The path of a name in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for HostFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Default for HostFolder {
    fn default() -> Self {
        Self::new()
    }
}
