//! The API byte by byte: requests that no client would send, and answers that are read as they come.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::client::Response;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends these bytes and reads the first answer: HTTP/1.1 with a body that is told by its length or by the end of the
/// connection.
pub fn exchange(socket: &Path, bytes: &[u8]) -> io::Result<Response> {
    send(socket, bytes, false)
}

/// The same with the sending side closed after the bytes, as by a client that died in the middle.
pub fn break_off(socket: &Path, bytes: &[u8]) -> io::Result<Response> {
    send(socket, bytes, true)
}

fn send(socket: &Path, bytes: &[u8], close: bool) -> io::Result<Response> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // a server may refuse a request before it has read the whole of it
    let sent = stream.write_all(bytes).and_then(|()| if close { stream.shutdown(Shutdown::Write) } else { Ok(()) });
    let mut reader = BufReader::new(stream);
    let (status, length) = match head(&mut reader) {
        Ok(head) => head,
        Err(error) => return Err(sent.err().unwrap_or(error)),
    };
    let mut body = Vec::new();
    reader.take(length.unwrap_or(u64::MAX)).read_to_end(&mut body)?;
    let text = String::from_utf8_lossy(&body).into_owned();
    let json = serde_json::from_str(&text).unwrap_or(Value::Null);
    Ok(Response { status, text, json })
}

/// A request with these header lines and this body, as bytes for [`exchange`].
pub fn request(method: &str, path: &str, headers: &[&str], body: &str) -> Vec<u8> {
    let headers: String = headers.iter().flat_map(|line| [line, "\r\n"]).collect();
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: agentd\r\nconnection: close\r\n{headers}");
    format!("{head}content-length: {length}\r\n\r\n{body}").into_bytes()
}

fn head(reader: &mut impl BufRead) -> io::Result<(u16, Option<u64>)> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("expected a status line, found {line:?}")))?;
    let mut length = None;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            return Ok((status, length));
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok();
        }
    }
}

/// An answer that goes on: logs that are followed, events, the progress of a pull. It is asked for by HTTP/1.0, whose
/// bodies are sent as they are.
#[derive(Debug)]
pub struct Stream {
    reader: BufReader<UnixStream>,
    line: Vec<u8>,
}

impl Stream {
    /// Asks for `path` and reads the head of the answer, which must be a success.
    #[track_caller]
    pub fn open(socket: &Path, method: &str, path: &str, headers: &[&str], body: &str) -> Self {
        let mut stream = UnixStream::connect(socket).expect("the daemon listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
        let bytes = request(method, path, headers, body);
        let text = String::from_utf8(bytes).expect("a request is text").replacen("HTTP/1.1", "HTTP/1.0", 1);
        stream.write_all(text.as_bytes()).expect("a request can be sent");
        let mut reader = BufReader::new(stream);
        let (status, _) = head(&mut reader).expect("the daemon answers");
        let mut stream = Self { reader, line: Vec::new() };
        if (200..300).contains(&status) {
            return stream;
        }
        panic!("{method} {path} was answered {status}: {}", stream.rest().join("\n"));
    }

    /// The next line; none when the answer has ended, or nothing comes within the limit.
    pub fn line(&mut self, limit: Duration) -> Option<String> {
        // 0 would mean no limit
        let _ = self.reader.get_ref().set_read_timeout(Some(limit.max(Duration::from_millis(1))));
        match self.reader.read_until(b'\n', &mut self.line) {
            Ok(0) if self.line.is_empty() => None,
            // what was read of a line before a time-out stays for the next call
            Err(_) => None,
            Ok(_) => {
                let line = std::mem::take(&mut self.line);
                Some(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned())
            }
        }
    }

    /// All lines until the answer ends.
    pub fn rest(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.line(PATIENCE)).collect()
    }
}
