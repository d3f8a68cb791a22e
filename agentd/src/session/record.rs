//! What is written of a session, before its program runs, for a daemon that comes back.

use agentd_api::session::SessionKind;
use serde::{Deserialize, Serialize};

/// Longest command that is kept word for word; a longer one is cut in status and record.
const LONGEST: usize = 16 << 10;

/// The facts of a session that do not change, and why it is being ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Its id.
    pub id: String,
    /// Kind.
    pub kind: SessionKind,
    /// Whether it has a root of its own (debug container).
    pub debug: bool,
    /// Pod.
    pub pod: String,
    /// Instance.
    pub instance: String,
    /// Container.
    pub container: String,
    /// The container's place in the pod.
    pub slot: u32,
    /// Number of the container's start.
    pub attempt: u32,
    /// Key of the process at pod-init, which also names its cgroup.
    pub key: u32,
    /// Program and arguments, cut where they are long.
    pub command: Vec<String>,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether it has a standard input.
    pub stdin: bool,
    /// Whether it goes on without a client.
    pub detach: bool,
    /// Ends it after so many seconds without input or output.
    pub idle_seconds: Option<u64>,
    /// Ends it after so many seconds.
    pub max_seconds: Option<u64>,
    /// Who began it.
    pub principal: String,
    /// Unix milliseconds of its start.
    pub started_ms: u64,
    /// Whether it is recorded.
    pub recorded: bool,
    /// Why it is being ended, where it does not end by itself.
    pub why: Option<String>,
}

impl Record {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        // text and numbers only, which serialise
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads it back.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| format!("a session's record: {error}"))
    }

    /// Name of its cgroup below the container's (`exec-` is put before it).
    pub fn cgroup(&self) -> String {
        cgroup_name(self.key)
    }
}

/// Name of the cgroup of the session with this key.
pub fn cgroup_name(key: u32) -> String {
    format!("s{key}")
}

/// A command as it is kept and shown.
pub fn cut(command: &[String]) -> Vec<String> {
    let mut left = LONGEST;
    let mut kept = Vec::new();
    for word in command {
        if word.len() > left {
            let mut end = left;
            while !word.is_char_boundary(end) {
                end -= 1;
            }
            kept.push(format!("{}…", &word[..end]));
            break;
        }
        left -= word.len();
        kept.push(word.clone());
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_command_is_cut_at_a_character() {
        let words = vec!["sh".to_owned(), "ü".repeat(LONGEST), "x".to_owned()];
        let kept = cut(&words);
        assert_eq!(kept.len(), 2);
        assert!(kept[1].len() < LONGEST + 8 && kept[1].ends_with('…'));
        assert_eq!(cut(&words[..1]), words[..1]);
    }
}
