//! A client of exec sessions that speaks the frames of an upgraded connection itself. It shares no code with the daemon or
//! `agentctl`, so that a mistake there is not made twice.
//!
//! A frame is 8 bytes of head (kind, three zero bytes, length as big-endian `u32`) and the payload; kinds are 0 standard
//! input, 1 standard output, 2 standard error, 3 control messages as JSON.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Client, Response, read_answer};

/// Longest silence of the daemon.
const PATIENCE: Duration = Duration::from_mins(1);

/// Largest piece of input in one frame.
const PIECE: usize = 64 << 10;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const CONTROL: u8 = 3;

/// What the daemon sends.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// Standard output, or what a terminal shows.
    Stdout(Vec<u8>),
    /// Standard error.
    Stderr(Vec<u8>),
    /// A control message.
    Told(Value),
}

/// An attached session.
#[derive(Debug)]
pub struct Exec {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    /// Id of the session.
    pub session: String,
    /// Bytes of input that its program had been given when this client attached.
    pub stdin: u64,
    /// Offset of the next byte of output.
    pub offset: u64,
}

/// How a session ended, and all that was read of it.
#[derive(Debug, Clone, Default)]
pub struct Ended {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Bytes of output that were told to be lost.
    pub gap: u64,
    /// The last message: `exit` or `detached`; null when the connection ended without one.
    pub last: Value,
}

impl Ended {
    /// The exit code; panics where there is none.
    #[track_caller]
    pub fn code(&self) -> i64 {
        self.last["exit"]["code"].as_i64().unwrap_or_else(|| panic!("no exit code: {}", self.last))
    }

    /// The signal that ended it; panics where there is none.
    #[track_caller]
    pub fn signal(&self) -> i64 {
        self.last["exit"]["signal"].as_i64().unwrap_or_else(|| panic!("no signal: {}", self.last))
    }

    /// The reason that was told; empty where there was none.
    pub fn message(&self) -> &str {
        self.last["message"].as_str().unwrap_or_default()
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// The request for a program without input.
pub fn program(words: &[&str]) -> Value {
    json!({"command": words})
}

/// The request for a line of shell, with input or without.
pub fn shell(line: &str, stdin: bool) -> Value {
    json!({"command": ["/bin/sh", "-c", line], "stdin": stdin})
}

/// Bytes of a frame of input.
pub fn input_frame(bytes: &[u8]) -> Vec<u8> {
    frame(STDIN, bytes)
}

/// Bytes of a frame with any kind.
pub fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Bytes of the request that begins a session and asks for the upgrade.
pub fn request(pod: &str, request: &Value, query: &str) -> Vec<u8> {
    let body = request.to_string();
    let path = format!("{}/exec{}{query}", Client::pod_path(pod), if query.is_empty() { "" } else { "?" });
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: agentd\r\nconnection: upgrade\r\nupgrade: agentd-exec\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

impl Exec {
    /// Begins a session and attaches to it. Panics when it is refused.
    #[track_caller]
    pub fn begin(socket: &Path, pod: &str, asked: &Value) -> Self {
        Self::try_begin(socket, pod, asked)
            .unwrap_or_else(|answer| panic!("exec in {pod} of {asked} was answered {}: {}", answer.status, answer.text))
    }

    /// The same; the answer when it is refused.
    #[track_caller]
    pub fn try_begin(socket: &Path, pod: &str, asked: &Value) -> Result<Self, Response> {
        Self::upgrade(socket, &request(pod, asked, "")).expect("the daemon answers a request for a session")
    }

    /// Attaches to a session that is there; `query` may be empty or e.g. `from=12&take-over=true`.
    #[track_caller]
    pub fn attach(socket: &Path, session: &str, query: &str) -> Self {
        Self::try_attach(socket, session, query)
            .expect("the daemon answers a request to attach")
            .unwrap_or_else(|answer| panic!("attach to {session} was answered {}: {}", answer.status, answer.text))
    }

    /// The same. The outer error is one of the connection, the inner one the answer of a refusal.
    pub fn try_attach(socket: &Path, session: &str, query: &str) -> io::Result<Result<Self, Response>> {
        let mark = if query.is_empty() { "" } else { "?" };
        let head = format!(
            "GET /v1/sessions/{session}/attach{mark}{query} HTTP/1.1\r\nhost: agentd\r\nconnection: upgrade\r\n\
             upgrade: agentd-exec\r\n\r\n"
        );
        Self::upgrade(socket, head.as_bytes())
    }

    fn upgrade(socket: &Path, bytes: &[u8]) -> io::Result<Result<Self, Response>> {
        let mut writer = UnixStream::connect(socket)?;
        writer.set_read_timeout(Some(PATIENCE))?;
        writer.set_write_timeout(Some(PATIENCE))?;
        writer.write_all(bytes)?;
        let mut reader = BufReader::with_capacity(256 << 10, writer.try_clone()?);
        let answer = read_answer(&mut reader)?;
        if answer.status != 101 {
            return Ok(Err(answer));
        }
        let mut exec = Self { reader, writer, session: String::new(), stdin: 0, offset: 0 };
        match exec.read()? {
            Some(Frame::Told(told)) if told["type"] == "attached" => {
                told["session"].as_str().unwrap_or_default().clone_into(&mut exec.session);
                exec.stdin = told["stdin"].as_u64().unwrap_or_default();
                exec.offset = told["output"].as_u64().unwrap_or_default();
                Ok(Ok(exec))
            }
            first => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the first frame was to be 'attached', found {first:?}"),
            )),
        }
    }

    /// The next frame; none at the end of the connection. An error is a broken connection, or a minute of silence.
    pub fn read(&mut self) -> io::Result<Option<Frame>> {
        let mut head = [0; 8];
        match self.reader.read(&mut head)? {
            0 => return Ok(None),
            count => self.reader.read_exact(&mut head[count..])?,
        }
        if head[1..4] != [0; 3] {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame begins with {head:02x?}")));
        }
        let mut payload = vec![0; u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize];
        self.reader.read_exact(&mut payload)?;
        let frame = match head[0] {
            STDOUT | STDERR => {
                self.offset += payload.len() as u64;
                if head[0] == STDOUT { Frame::Stdout(payload) } else { Frame::Stderr(payload) }
            }
            CONTROL => {
                let told: Value = serde_json::from_slice(&payload)?;
                if told["type"] == "gap" {
                    self.offset += told["bytes"].as_u64().unwrap_or_default();
                }
                Frame::Told(told)
            }
            kind => return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of the kind {kind}"))),
        };
        Ok(Some(frame))
    }

    /// Another handle for input, e.g. for a thread of its own.
    #[track_caller]
    pub fn input(&self) -> Input {
        Input { writer: self.writer.try_clone().expect("a socket can be shared") }
    }

    /// Gives input.
    #[track_caller]
    pub fn write(&mut self, bytes: &[u8]) {
        self.input().write(bytes).expect("input can be sent");
    }

    /// Closes the input of the program.
    #[track_caller]
    pub fn close_input(&mut self) {
        self.input().close().expect("the end of the input can be sent");
    }

    /// Sends a control message.
    #[track_caller]
    pub fn tell(&mut self, message: &Value) {
        self.writer.write_all(&frame(CONTROL, message.to_string().as_bytes())).expect("a message can be sent");
    }

    /// Reads until the output holds `text` (on either stream) and returns all that was read.
    #[track_caller]
    pub fn read_until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        let began = Instant::now();
        while !seen.contains(text) {
            assert!(
                began.elapsed() < PATIENCE,
                "{text:?} did not come within {PATIENCE:?}; there was {}",
                end_of(&seen)
            );
            match self.read().unwrap_or_else(|error| panic!("{text:?} did not come ({error}); there was {seen:?}")) {
                Some(Frame::Stdout(bytes) | Frame::Stderr(bytes)) => seen += &String::from_utf8_lossy(&bytes),
                Some(Frame::Told(told)) if told["type"] == "exit" => {
                    panic!("{text:?} did not come before the end, {told}; there was {seen:?}")
                }
                Some(Frame::Told(_)) => {}
                None => panic!("{text:?} did not come before the connection ended; there was {seen:?}"),
            }
        }
        seen
    }

    /// Reads until a message of this type comes, and returns it.
    #[track_caller]
    pub fn read_message(&mut self, kind: &str) -> Value {
        loop {
            match self.read().unwrap_or_else(|error| panic!("no message '{kind}' came: {error}")) {
                Some(Frame::Told(told)) if told["type"] == kind => return told,
                Some(_) => {}
                None => panic!("no message '{kind}' came before the connection ended"),
            }
        }
    }

    /// Reads everything to the end. A broken connection counts as one that ended without a last message.
    pub fn finish(&mut self) -> Ended {
        let mut ended = Ended::default();
        while let Ok(Some(frame)) = self.read() {
            match frame {
                Frame::Stdout(bytes) => ended.stdout.extend_from_slice(&bytes),
                Frame::Stderr(bytes) => ended.stderr.extend_from_slice(&bytes),
                Frame::Told(told) if told["type"] == "gap" => ended.gap += told["bytes"].as_u64().unwrap_or(0),
                Frame::Told(told) if told["type"] == "exit" || told["type"] == "detached" => ended.last = told,
                Frame::Told(_) => {}
            }
        }
        ended
    }

    /// Gives all of this input from a thread of its own, closes it, and reads everything to the end.
    pub fn converse(&mut self, input: &[u8]) -> Ended {
        let mut writer = self.input();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // a program may end before it has read everything
                let _ = writer.write(input).and_then(|()| writer.close());
            });
            self.finish()
        })
    }
}

/// The sending half of a session.
#[derive(Debug)]
pub struct Input {
    writer: UnixStream,
}

impl Input {
    /// Gives input, in frames of at most 64 KiB.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(PIECE) {
            self.writer.write_all(&input_frame(piece))?;
        }
        Ok(())
    }

    /// Closes the input of the program.
    pub fn close(&mut self) -> io::Result<()> {
        self.writer.write_all(&input_frame(b""))
    }

    /// Gives this input again and again until none was taken for so long. Returns the bytes that were taken.
    #[track_caller]
    pub fn write_until_full(&mut self, bytes: &[u8], quiet: Duration) -> usize {
        let frame = input_frame(bytes);
        self.writer.set_nonblocking(true).expect("a socket need not block");
        let (mut taken, mut since) = (0, Instant::now());
        while since.elapsed() < quiet {
            // a frame that was taken in part goes on where it stopped
            match self.writer.write(&frame[taken % frame.len()..]) {
                Ok(count) => {
                    taken += count;
                    since = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => panic!("input cannot be given: {error}"),
            }
        }
        self.writer.set_nonblocking(false).expect("a socket can block");
        taken
    }

    /// Sends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes)
    }
}

/// The last characters of a text, for a message.
fn end_of(text: &str) -> String {
    let skipped = text.chars().count().saturating_sub(500);
    format!("{:?}", text.chars().skip(skipped).collect::<String>())
}

/// Runs a program without input to its end.
#[track_caller]
pub fn run(socket: &Path, pod: &str, words: &[&str]) -> Ended {
    Exec::begin(socket, pod, &program(words)).finish()
}

/// Runs a line of shell without input to its end.
#[track_caller]
pub fn run_shell(socket: &Path, pod: &str, line: &str) -> Ended {
    Exec::begin(socket, pod, &shell(line, false)).finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_read_to_its_end() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        for bytes in [
            frame(STDOUT, b"one"),
            frame(STDERR, b"two"),
            frame(CONTROL, br#"{"type":"gap","bytes":5}"#),
            frame(CONTROL, br#"{"type":"exit","exit":{"code":3}}"#),
        ] {
            theirs.write_all(&bytes).unwrap();
        }
        drop(theirs);
        let reader = BufReader::new(ours.try_clone().unwrap());
        let mut exec = Exec { reader, writer: ours, session: String::new(), stdin: 0, offset: 10 };
        let ended = exec.finish();
        assert_eq!((ended.text().as_str(), ended.stderr.as_slice(), ended.gap), ("one", &b"two"[..], 5));
        assert_eq!((ended.code(), exec.offset), (3, 21));
    }
}
