//! Exec sessions: what is asked for, what is told of them, and the frames of an attached connection.
//!
//! An attached connection (HTTP/1.1 upgrade to [`PROTOCOL`], or WebSocket) carries frames both ways. Over the upgrade a
//! frame is 8 bytes of head (kind, three zero bytes, length as a big-endian `u32`) and the payload. Over WebSocket a
//! binary message is one byte of kind and the payload, and a text message is the JSON of a control frame.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::problem::{Problem, Violation};
use crate::status::ExitStatus;

/// Name of the framed protocol in the `Upgrade` header.
pub const PROTOCOL: &str = "agentd-exec";

/// Name of the WebSocket subprotocol (`Sec-WebSocket-Protocol`).
pub const WEBSOCKET_PROTOCOL: &str = "exec.agentd.v1";

/// Largest payload of a frame, bytes. A longer one ends the connection.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// Bytes of a frame's head.
pub const HEAD: usize = 8;

/// Most arguments of a command, and most bytes of all of them and of the environment together.
const MOST_ARGUMENTS: usize = 4096;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// Client to server: standard input; an empty payload closes it (without a terminal).
    Stdin = 0,
    /// Server to client: standard output, or what a terminal shows.
    Stdout = 1,
    /// Server to client: standard error; never with a terminal.
    Stderr = 2,
    /// A [`ClientMessage`] or a [`ServerMessage`] as JSON.
    Control = 3,
}

impl FrameKind {
    /// The kind with this number.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Stdin, Self::Stdout, Self::Stderr, Self::Control].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// The head of a frame with this kind and payload length.
pub fn frame_head(kind: FrameKind, length: usize) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[0] = kind as u8;
    head[4..].copy_from_slice(&(length as u32).to_be_bytes());
    head
}

/// Reads a frame's head: kind and payload length; a line for people where it is none.
pub fn read_head(head: [u8; HEAD]) -> Result<(FrameKind, usize), String> {
    let kind = FrameKind::from_byte(head[0]).filter(|_| head[1..4] == [0; 3]).ok_or_else(|| {
        format!("a frame begins with {:02x?}, expected a kind of 0 to 3 and three zero bytes", &head[..4])
    })?;
    let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
    if length > MAX_PAYLOAD {
        return Err(format!("a frame of {length} bytes, expected at most {MAX_PAYLOAD}"));
    }
    Ok((kind, length))
}

/// `POST /v1/pods/{id}/exec`: a program to run inside a running container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExecRequest {
    /// Name of the container; may be left out where the pod has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Id of the instance; may be left out where one runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Program and arguments; the program is looked for in the container's `PATH`.
    pub command: Vec<String>,
    /// Whether it gets a terminal.
    pub tty: bool,
    /// Rows of the terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<u16>,
    /// Columns of the terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<u16>,
    /// Whether it has a standard input; without, that is `/dev/null`. A terminal always has one.
    pub stdin: bool,
    /// Variables beside those of the container.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// `user` or `user:group`, by name or number, as in the pod; default the container's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Absolute working directory in the container; default the container's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Capabilities beside those of the container, e.g. `CAP_SYS_PTRACE` (the caller's ceiling must allow them).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// Whether the session goes on without a client: it does not wait for one, and old output gives way to new.
    pub detach: bool,
    /// Ends the session after so many seconds without input or output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u64>,
    /// Ends the session after so many seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_seconds: Option<u64>,
    /// Debug container: the root is this image, the container's own files are below `/target`, and the container's
    /// processes, network, IPC and limits are shared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<crate::pod::Image>,
}

impl ExecRequest {
    /// Reads a request; every fault at once, by field path.
    pub fn parse(text: &[u8]) -> Result<Self, Vec<Violation>> {
        crate::parse::exec(text)
    }

    /// What is wrong with it, by field path.
    pub fn faults(&self) -> Vec<Violation> {
        let mut faults = Vec::new();
        let mut fault = |path: String, message: String| faults.push(Violation::new(path, message));
        if self.command.is_empty() && self.image.is_none() {
            fault("command".into(), "missing; expected the program and its arguments, e.g. [\"sh\"]".into());
        } else if self.command.first().is_some_and(String::is_empty) {
            fault("command[0]".into(), "found no text, expected the program".into());
        }
        if self.command.len() > MOST_ARGUMENTS {
            fault("command".into(), format!("{} arguments, expected at most {MOST_ARGUMENTS}", self.command.len()));
        }
        for (n, _) in self.command.iter().enumerate().filter(|(_, word)| word.contains('\0')) {
            fault(format!("command[{n}]"), "found a NUL byte, expected text without one".into());
        }
        for (name, value) in &self.environment {
            let path = format!("environment.{}", name.chars().take(80).collect::<String>());
            if !is_variable(name) {
                fault(path, "not a variable name, expected letters, digits and _, not a digit first".into());
            } else if value.contains('\0') {
                fault(path, "found a NUL byte, expected text without one".into());
            }
        }
        if !self.tty && (self.rows.is_some() || self.columns.is_some()) {
            fault("rows".into(), "found without a terminal; add \"tty\": true, or leave rows and columns out".into());
        }
        if self.user.as_ref().is_some_and(|user| user.is_empty() || user.contains('\0')) {
            fault("user".into(), "found no user, expected user or user:group, by name or number".into());
        }
        if self.workdir.as_ref().is_some_and(|dir| !dir.starts_with('/') || dir.contains('\0')) {
            fault("workdir".into(), "expected an absolute path in the container".into());
        }
        for (path, seconds) in [("idleSeconds", self.idle_seconds), ("maxSeconds", self.max_seconds)] {
            if seconds == Some(0) {
                fault(path.into(), "found 0, expected at least 1; leave it out for no limit".into());
            }
        }
        faults
    }
}

/// Whether a name is `[a-zA-Z_][a-zA-Z0-9_]*`.
fn is_variable(name: &str) -> bool {
    !name.starts_with(|first: char| first.is_ascii_digit())
        && !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionState {
    /// Its program is being started.
    Starting,
    /// Its program runs.
    Running,
    /// Its program has ended; the exit status and the last output are kept for a while.
    Exited,
}

/// What kind of session it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionKind {
    /// A program in a container.
    Exec,
    /// A program from another image beside a container.
    Debug,
    /// A nested container of the Mesos agent API; ends when its client goes.
    Nested,
}

/// One session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionStatus {
    /// Its id.
    pub id: String,
    /// Kind.
    pub kind: SessionKind,
    /// Pod.
    pub pod: String,
    /// Instance.
    pub instance: String,
    /// Container.
    pub container: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Where it stands.
    pub state: SessionState,
    /// Process id on the host, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitStatus>,
    /// Why it ended, where it did not end by itself: one line for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Who began it.
    pub principal: String,
    /// RFC 3339.
    pub started_at: String,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// Clients that are attached.
    pub clients: u32,
    /// Whether it goes on without a client.
    pub detach: bool,
    /// Bytes of standard input that its program was given so far.
    pub stdin_bytes: u64,
    /// Bytes of output so far, standard output and error together.
    pub output_bytes: u64,
    /// Whether it is recorded.
    pub recorded: bool,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionExit {
    /// How its program ended.
    pub exit: ExitStatus,
    /// Why, where it did not end by itself: one line for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Control frames of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type", deny_unknown_fields)]
pub enum ClientMessage {
    /// The terminal has another size.
    Resize {
        /// Rows.
        rows: u16,
        /// Columns.
        columns: u16,
    },
    /// Send a signal to the program, e.g. `SIGINT` or `INT`.
    Signal {
        /// Its name.
        signal: String,
    },
    /// Close standard input, as an empty stdin frame does.
    CloseStdin,
    /// Leave; the session goes on.
    Detach,
    /// Asks for a [`ServerMessage::Pong`].
    Ping,
}

/// Control frames of the server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum ServerMessage {
    /// Always the first frame.
    Attached {
        /// Id of the session.
        session: String,
        /// Bytes of standard input that the program was given so far: what follows goes on from there.
        stdin: u64,
        /// Offset of the next byte of output. A client that was attached before asks for `from=<offset>`.
        output: u64,
    },
    /// So many bytes of standard input were given to the program since its start.
    Ack {
        /// Bytes.
        stdin: u64,
    },
    /// Output that this client did not get was thrown away.
    Gap {
        /// Bytes.
        bytes: u64,
    },
    /// The program has ended and all of its output was sent. The last frame.
    Exit {
        /// How.
        #[serde(flatten)]
        exit: SessionExit,
    },
    /// The client is let go, the session goes on. The last frame.
    Detached {
        /// Why, one line for people.
        message: String,
    },
    /// A frame could not be obeyed; the session goes on.
    Error {
        /// What is wrong.
        problem: Problem,
    },
    /// The answer to a ping.
    Pong,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_come_back_and_rubbish_is_refused() {
        assert_eq!(read_head(frame_head(FrameKind::Stderr, 70_000)), Ok((FrameKind::Stderr, 70_000)));
        assert!(read_head([4, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(read_head([0, 1, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(read_head(frame_head(FrameKind::Stdin, MAX_PAYLOAD + 1)).is_err());
    }

    #[test]
    fn a_request_names_every_fault() {
        let bad = br#"{"command":["", "a\u0000"],"workdir":"x","idleSeconds":0,"rows":4,"environment":{"1":""}}"#;
        let paths: Vec<String> = ExecRequest::parse(bad).unwrap_err().into_iter().map(|v| v.path).collect();
        assert_eq!(paths, ["command[1]", "command[0]", "environment.1", "rows", "workdir", "idleSeconds"]);
        for (bad, path) in [
            (r#"{"command":["sh"],"surprise":1}"#, "surprise"),
            (r#"{"command":["sh"],"command":["rm"]}"#, "command"),
            (r#"{"command":["sh", 7]}"#, "command[1]"),
            (r#"{"command":["sh"],"environment":{"A":1}}"#, "environment.A"),
            (r#"{"command":["sh"],"tty":true,"rows":70000}"#, "rows"),
            (r#"{"command":["sh"],"image":{"kind":"DOCKER"}}"#, "image.id"),
            (r#"{"command":["sh"]"#, ""),
            ("null", ""),
        ] {
            let paths: Vec<String> =
                ExecRequest::parse(bad.as_bytes()).unwrap_err().into_iter().map(|v| v.path).collect();
            assert_eq!(paths, [path], "{bad}");
        }
        let good = ExecRequest::parse(br#"{"command":["sh","-c","true"],"tty":true,"rows":3}"#).unwrap();
        assert_eq!((good.command.len(), good.tty, good.detach), (3, true, false));
    }

    #[test]
    fn messages_are_tagged() {
        let resize: ClientMessage = serde_json::from_str(r#"{"type":"resize","rows":1,"columns":2}"#).unwrap();
        assert_eq!(resize, ClientMessage::Resize { rows: 1, columns: 2 });
        let exit = SessionExit { exit: ExitStatus::Signal(9), message: None };
        let text = serde_json::to_string(&ServerMessage::Exit { exit }).unwrap();
        assert_eq!(text, r#"{"type":"exit","exit":{"signal":9}}"#);
    }
}
