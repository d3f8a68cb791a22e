//! HTTP/1.1 over a Unix socket, as much of it as the local API speaks: one connection, one request after another,
//! answers with a length or in chunks. The benchmarks' client, so it costs little, and needs no runtime.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

/// Longest body taken.
const BODY: usize = 64 << 20;

/// A client of one daemon. It connects anew after an error or when the daemon closed the connection.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
    connection: Option<BufReader<UnixStream>>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Result<Value, String> {
        serde_json::from_slice(&self.body).map_err(|error| format!("answer is no JSON ({error}): {}", self.text()))
    }

    /// The body as text, cut to a line's length.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).chars().take(500).collect()
    }
}

impl Client {
    /// A client of the daemon at a socket.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), timeout: Duration::from_mins(2), connection: None }
    }

    /// Sends a request and reads its answer.
    pub fn request(&mut self, method: &str, path: &str, body: &[u8]) -> Result<Answer, String> {
        let result = self.exchange(method, path, body);
        if result.is_err() {
            self.connection = None;
        }
        result.map_err(|error| format!("{method} {path} at {}: {error}", self.socket.display()))
    }

    /// A request whose answer has to be of this status.
    pub fn expect(&mut self, method: &str, path: &str, body: &[u8], statuses: &[u16]) -> Result<Answer, String> {
        let answer = self.request(method, path, body)?;
        if statuses.contains(&answer.status) {
            return Ok(answer);
        }
        Err(format!("{method} {path}: status {}, expected {statuses:?}: {}", answer.status, answer.text()))
    }

    fn exchange(&mut self, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
        let mut connection = if let Some(connection) = self.connection.take() {
            connection
        } else {
            let stream = UnixStream::connect(&self.socket)?;
            stream.set_read_timeout(Some(self.timeout))?;
            stream.set_write_timeout(Some(self.timeout))?;
            BufReader::new(stream)
        };
        // one write: the head and the body are one packet to the daemon
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nHost: agentd\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        connection.get_mut().write_all(&request)?;
        let (answer, keep) = read_answer(&mut connection)?;
        self.connection = keep.then_some(connection);
        Ok(answer)
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if reader.take(16 << 10).read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

/// Reads one answer; also returns whether the connection can be used again.
fn read_answer(reader: &mut impl BufRead) -> io::Result<(Answer, bool)> {
    let head = read_line(reader)?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse::<u16>().ok())
        .ok_or_else(|| broken(&format!("status line '{head}'")))?;
    let (mut length, mut chunked, mut keep) = (None, false, true);
    loop {
        let line = read_line(reader)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| broken(&format!("header '{line}'")))?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = Some(value.parse().map_err(|_| broken("content-length is no number"))?),
            "transfer-encoding" => chunked = value.eq_ignore_ascii_case("chunked"),
            "connection" => keep = !value.eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    let mut body = Vec::new();
    if chunked {
        loop {
            let size = read_line(reader)?;
            let size = size.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| broken(&format!("chunk size '{size}'")))?;
            if size > BODY - body.len() {
                return Err(broken("body is too long"));
            }
            let start = body.len();
            body.resize(start + size, 0);
            reader.read_exact(&mut body[start..])?;
            read_line(reader)?;
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = length {
        if length > BODY {
            return Err(broken("body is too long"));
        }
        body.resize(length, 0);
        reader.read_exact(&mut body)?;
    } else if status != 204 && status != 304 {
        reader.take(BODY as u64).read_to_end(&mut body)?;
        keep = false;
    }
    Ok((Answer { status, body }, keep))
}

/// A pod's id as one segment of a path: without its leading slash, every other slash written as `%2F`.
pub fn segment(pod: &str) -> String {
    pod.trim_start_matches('/').replace('%', "%25").replace('/', "%2F")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_with_a_length_leave_the_next_one_alone() {
        let bytes = b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 204 No Content\r\n\r\n";
        let mut reader = &bytes[..];
        let (first, keep) = read_answer(&mut reader).unwrap();
        assert_eq!((first.status, first.body.as_slice(), keep), (201, &b"ok"[..], true));
        let (second, keep) = read_answer(&mut reader).unwrap();
        assert_eq!((second.status, second.body.len(), keep), (204, 0, true));
    }

    #[test]
    fn chunks_are_joined() {
        let bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
        let (answer, keep) = read_answer(&mut &bytes[..]).unwrap();
        assert_eq!((answer.text().as_str(), keep), ("abcde", true));
    }

    #[test]
    fn a_pod_id_is_one_segment() {
        assert_eq!(segment("/bench/1"), "bench%2F1");
    }
}
