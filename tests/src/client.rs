//! A small blocking client of the daemon's API: HTTP/1.1 over its Unix socket, one connection for each request. It shares
//! no code with the daemon or `agentctl`, so that a mistake there is not made twice.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentd_api::status::{ContainerStatus, InstanceStatus, PodStatus};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_mins(2);

/// What the daemon answered.
#[derive(Debug, Clone)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// The body as it came.
    pub text: String,
    /// The body as JSON; null where it is none.
    pub json: Value,
}

impl Response {
    /// Whether the status is 2xx.
    pub fn ok(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body as a type of the API; panics with the body where it is none or the status is no success.
    #[track_caller]
    pub fn read<T: DeserializeOwned>(&self) -> T {
        assert!(self.ok(), "the daemon answered {}: {}", self.status, self.text);
        serde_json::from_value(self.json.clone()).unwrap_or_else(|error| panic!("{error} in {}", self.text))
    }
}

/// A client of one daemon.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// For the daemon that listens on `socket`.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_path_buf() }
    }

    /// One request. An error is one of the connection: no daemon, or one that died before its answer was whole.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> io::Result<Response> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: agentd\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
        read_answer(&mut BufReader::new(stream))
    }

    #[track_caller]
    fn must(&self, method: &str, path: &str, body: Option<&Value>) -> Response {
        self.request(method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// `GET`.
    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.must("GET", path, None)
    }

    /// `POST`.
    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.must("POST", path, Some(body))
    }

    /// `PUT`.
    #[track_caller]
    pub fn put(&self, path: &str, body: &Value) -> Response {
        self.must("PUT", path, Some(body))
    }

    /// `DELETE`.
    #[track_caller]
    pub fn delete(&self, path: &str) -> Response {
        self.must("DELETE", path, None)
    }

    /// Path of a pod, e.g. `/v1/pods/a%2Fb` for `/a/b`.
    pub fn pod_path(id: &str) -> String {
        let mut path = "/v1/pods/".to_owned();
        for byte in id.trim_start_matches('/').bytes() {
            if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
                path.push(char::from(byte));
            } else {
                // writing to a string cannot fail
                let _ = write!(path, "%{byte:02X}");
            }
        }
        path
    }

    /// Runs a pod and waits until it runs (or has ended already).
    #[track_caller]
    pub fn run_pod(&self, pod: &Value) -> PodStatus {
        self.post("/v1/pods?wait=running&timeout=60", pod).read()
    }

    /// Status of a pod.
    #[track_caller]
    pub fn pod(&self, id: &str) -> PodStatus {
        self.get(&Self::pod_path(id)).read()
    }

    /// Status of the only instance of a pod.
    #[track_caller]
    pub fn instance(&self, id: &str) -> InstanceStatus {
        let mut pod = self.pod(id);
        assert_eq!(pod.instances.len(), 1, "{id} was to have one instance: {pod:?}");
        pod.instances.remove(0)
    }

    /// Status of a container of the only instance of a pod.
    #[track_caller]
    pub fn container(&self, id: &str, name: &str) -> ContainerStatus {
        let instance = self.instance(id);
        let found = instance.containers.iter().find(|container| container.name == name);
        found.unwrap_or_else(|| panic!("{id} has no container {name}: {instance:?}")).clone()
    }

    /// Waits until every container of a pod has ended for good (at most a minute).
    #[track_caller]
    pub fn wait_finished(&self, id: &str) -> PodStatus {
        self.get(&format!("{}/wait?until=finished&timeout=60", Self::pod_path(id))).read()
    }

    /// What a container has written so far, both streams as they came.
    #[track_caller]
    pub fn logs(&self, id: &str, container: &str) -> String {
        let response = self.get(&format!("{}/logs?container={container}", Self::pod_path(id)));
        assert!(response.ok(), "logs of {id}/{container}: {} {}", response.status, response.text);
        response.text
    }

    /// Ends a pod and removes everything of it.
    #[track_caller]
    pub fn rm(&self, id: &str) {
        let response = self.delete(&Self::pod_path(id));
        assert!(response.ok(), "removal of {id}: {} {}", response.status, response.text);
    }

    /// Runs a pod to its end, takes the log of its first container, and removes it.
    #[track_caller]
    pub fn run_to_end(&self, pod: &Value) -> (PodStatus, String) {
        let id = pod["id"].as_str().expect("a pod has an id").to_owned();
        let status = self.post("/v1/pods", pod);
        assert!(status.ok(), "{id} was refused: {} {}", status.status, status.text);
        let status = self.wait_finished(&id);
        let log = self.logs(&id, pod["containers"][0]["name"].as_str().expect("a container has a name"));
        self.rm(&id);
        (status, log)
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

pub(crate) fn read_answer(stream: &mut impl BufRead) -> io::Result<Response> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status: u16 = status.ok_or_else(|| {
        let kind = if line.is_empty() { io::ErrorKind::UnexpectedEof } else { io::ErrorKind::InvalidData };
        io::Error::new(kind, format!("expected a status line, found {line:?}"))
    })?;
    let mut length = None;
    let mut chunked = false;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        match line.split_once(':').map(|(name, value)| (name, value.trim())) {
            Some(("content-length", value)) => length = value.parse::<usize>().ok(),
            Some(("transfer-encoding", value)) => chunked = value == "chunked",
            _ => {}
        }
    }
    let mut body = Vec::new();
    if chunked {
        read_chunks(stream, &mut body)?;
    } else if status == 101 {
        // what follows is another protocol
    } else if let Some(length) = length {
        body.resize(length, 0);
        stream.read_exact(&mut body)?;
    } else {
        stream.read_to_end(&mut body)?;
    }
    let text = String::from_utf8_lossy(&body).into_owned();
    let json = serde_json::from_str(&text).unwrap_or(Value::Null);
    Ok(Response { status, text, json })
}

fn read_chunks(stream: &mut impl BufRead, body: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let size = line.trim_end().split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(size, 16).map_err(|_| broken("no size of a chunk"))?;
        let at = body.len();
        body.resize(at + size, 0);
        stream.read_exact(&mut body[at..])?;
        let mut end = [0; 2];
        stream.read_exact(&mut end)?;
        if end != *b"\r\n" {
            return Err(broken("a chunk does not end where it says"));
        }
        if size == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_in_each_of_their_forms() {
        let read = |text: &str| read_answer(&mut text.as_bytes());
        let plain = read("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{\"a\": 1}rest").unwrap();
        assert_eq!((plain.status, plain.json["a"].as_u64()), (200, Some(1)));
        let chunked =
            read("HTTP/1.1 409 X\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n").unwrap();
        assert_eq!((chunked.status, chunked.text.as_str(), chunked.ok()), (409, "abcde", false));
        assert_eq!(read("HTTP/1.1 204 No Content\r\n\r\n").unwrap().text, "");
        assert!(read("").is_err() && read("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort").is_err());
    }

    #[test]
    fn ids_are_one_segment() {
        assert_eq!(Client::pod_path("/a/b c"), "/v1/pods/a%2Fb%20c");
    }
}
