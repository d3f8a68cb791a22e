//! What the tests of sessions share: a pod to run them in, their status, and data that can be told from any other.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use agentd_api::session::{SessionState, SessionStatus};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::client::Client;
use crate::daemon::Daemon;
use crate::mutate::Rng;
use crate::pods;
use crate::poll::until;

/// A pod whose container `main` sleeps, with room for many sessions.
pub fn pod(id: &str) -> Value {
    pods::with_container(pods::sleeper(id), |container| {
        container["resources"] = json!({"cpus": 1, "mem": 512, "disk": 64});
    })
}

/// Status of a session.
#[track_caller]
pub fn status(client: &Client, session: &str) -> SessionStatus {
    client.get(&format!("/v1/sessions/{session}")).read()
}

/// Waits until a session's program has ended.
#[track_caller]
pub fn wait_exited(client: &Client, session: &str) -> SessionStatus {
    until("the session has ended", Duration::from_secs(30), || {
        Some(status(client, session)).filter(|status| status.state == SessionState::Exited)
    })
}

/// Begins a session without a client.
#[track_caller]
pub fn begin_detached(client: &Client, pod: &str, asked: &Value) -> SessionStatus {
    let mut asked = asked.clone();
    asked["detach"] = json!(true);
    client.post(&format!("{}/exec", Client::pod_path(pod)), &asked).read()
}

/// Bytes that look random; the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&rng.number().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// SHA-256 in hexadecimal digits.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        // writing to a string cannot fail
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Memory that a process has for itself, KiB: what it maps of files is not in it.
#[track_caller]
pub fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a process has memory");
    line.trim().trim_end_matches(" kB").parse().expect("memory is a number")
}

/// A field of `/proc/<pid>/status`.
pub fn field(status: &str, name: &str) -> String {
    let found = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    found.unwrap_or_default().trim().to_owned()
}

/// `agentctl` for this daemon.
pub fn agentctl(daemon: &Daemon) -> std::process::Command {
    agentctl_at(&daemon.socket())
}

/// `agentctl` for the daemon at this socket, without settings of the one who runs the tests.
pub fn agentctl_at(socket: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(crate::daemon::binary("agentctl"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AGENTD_")) {
        command.env_remove(name);
    }
    command.arg("--socket").arg(socket);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_the_same_for_the_same_seed() {
        assert_eq!(noise(1, 1000), noise(1, 1000));
        assert_ne!(noise(1, 1000), noise(2, 1000));
        assert_eq!(digest(b"abc").len(), 64);
        assert!(memory(std::process::id()) > 100);
    }
}
