//! Programs of others that a test runs beside the daemon: each with a folder of its own for its files and its output, and
//! ended by its process id. And what speaks HTTP/1.0 with them over TCP.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether there is a program of this name in the path.
pub fn installed(name: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|dir| dir.join(name).is_file())
}

/// The folder into which `cargo xtask test --with-peers` puts packages of Python: a virtual environment.
pub fn python_environment() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in a workspace").join("target/peers-python")
}

/// A port of loopback on which nobody listens at the moment. Another process may take it before it is used.
#[track_caller]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
    listener.local_addr().expect("a listener has an address").port()
}

/// A program that runs. Dropping it kills it and, after a test that failed, shows what it said.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    log: PathBuf,
}

impl Peer {
    /// Starts a command with both of its streams into `log`, which is made.
    #[track_caller]
    pub fn start(mut command: Command, log: &Path) -> Self {
        let file = File::create(log).expect("a log can be made");
        let also = file.try_clone().expect("a log can be shared");
        command.stdin(Stdio::null()).stdout(file).stderr(also);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
        Self { child, log: log.to_path_buf() }
    }

    /// What it has said.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {} ---\n{}--- its end ---", self.log.display(), self.log());
        }
    }
}

/// What an HTTP server answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Header lines as they came.
    pub head: String,
    /// The body as it came, what is no UTF-8 replaced.
    pub body: String,
}

impl Answer {
    /// The value of a header; empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        header(&self.head, name)
    }

    /// The body as JSON; null where it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }
}

/// The value of a header among the lines of a head; empty where there is none.
pub fn header<'a>(head: &'a str, name: &str) -> &'a str {
    let mut pairs = head.lines().filter_map(|line| line.split_once(':'));
    pairs.find(|(known, _)| known.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value.trim())
}

/// Asks a server on loopback with these header lines, each without its end.
pub fn get(port: u16, path: &str, headers: &[&str]) -> io::Result<Answer> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let headers: String = headers.iter().flat_map(|line| [line, "\r\n"]).collect();
    // bodies of HTTP/1.0 come as they are and end with the connection
    write!(stream, "GET {path} HTTP/1.0\r\nhost: 127.0.0.1:{port}\r\n{headers}\r\n")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let broken = || io::Error::new(io::ErrorKind::InvalidData, format!("expected an HTTP answer, found {text:.100}"));
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(broken)?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or_else(broken)?;
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// A text as it may stand as a value in the query of an address.
pub fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            // writing to a string cannot fail
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_found_by_name() {
        let head = "HTTP/1.0 200 OK\r\nContent-Type: text/plain; a=b\r\nx:y";
        assert_eq!(
            (header(head, "content-type"), header(head, "X"), header(head, "none")),
            ("text/plain; a=b", "y", "")
        );
    }

    #[test]
    fn queries_are_escaped() {
        assert_eq!(escaped("up{a=\"b c\"}[1m]~"), "up%7Ba%3D%22b%20c%22%7D%5B1m%5D~");
    }

    #[test]
    fn a_peer_is_ended_with_its_test() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exec sleep 1000"]);
        let mut peer = Peer::start(command, &folder.path().join("log"));
        crate::until("it has spoken", PATIENCE, || (peer.log() == "out\nerr\n").then_some(()));
        assert!(peer.alive());
        let pid = peer.pid();
        drop(peer);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
