//! A web server with a function for its answers, archives as an attacker would make them, and a sandbox.

#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agentd_api::pod::Artifact;
use agentd_fetcher::{FetchError, FetchRequest, Fetcher, Settings};

/// A request as the server saw it.
pub struct Seen {
    pub target: String,
    headers: Vec<(String, String)>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

pub struct Server {
    pub address: SocketAddr,
    pub requests: Arc<AtomicUsize>,
}

impl Server {
    pub fn new(answer: impl Fn(&Seen, &mut TcpStream) + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1:0", answer)
    }

    pub fn at(address: &str, answer: impl Fn(&Seen, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let (count, answer) = (Arc::clone(&requests), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let (count, answer) = (Arc::clone(&count), Arc::clone(&answer));
                std::thread::spawn(move || {
                    let request = read_request(&stream);
                    count.fetch_add(1, Ordering::SeqCst);
                    answer(&request, &mut stream);
                });
            }
        });
        Self { address, requests }
    }

    pub fn uri(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn count(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn read_request(stream: &TcpStream) -> Seen {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    let headers = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())))
        .collect();
    Seen { target: first.split(' ').nth(1).unwrap_or_default().to_owned(), headers }
}

pub fn send(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) {
    let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(body);
}

/// A server that answers every request with this body.
pub fn serve(body: Vec<u8>) -> Server {
    Server::new(move |_, stream| send(stream, "200 OK", "", &body))
}

pub struct Sandbox(pub tempfile::TempDir);

impl Sandbox {
    pub fn new() -> Self {
        Self(tempfile::Builder::new().prefix(&format!("agentd-test-{}-", std::process::id())).tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn fd(&self) -> OwnedFd {
        OwnedFd::from(std::fs::File::open(self.0.path()).unwrap())
    }

    /// All names in it, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.0.path())
            .unwrap()
            .map(|item| item.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }
}

pub fn artifact(uri: &str) -> Artifact {
    Artifact { uri: uri.to_owned(), extract: false, executable: false, cache: false, dest_path: None }
}

pub fn settings() -> Settings {
    Settings {
        program: PathBuf::from(env!("CARGO_BIN_EXE_fetch-child")),
        allowed_addresses: vec!["127.0.0.1/32".parse().unwrap()],
        timeout: Duration::from_mins(1),
        ..Settings::default()
    }
}

pub const OWNER: (u32, u32) = (4321, 4322);

pub async fn fetch_by(fetcher: &Fetcher, sandbox: &Sandbox, artifact: Artifact) -> Result<(), FetchError> {
    let field = "containers[0].artifacts[1]".to_owned();
    fetcher.fetch(FetchRequest { field, artifact, sandbox: sandbox.fd(), owner: OWNER }).await
}

pub async fn fetch(settings: Settings, sandbox: &Sandbox, artifact: Artifact) -> Result<(), FetchError> {
    fetch_by(&Fetcher::new(settings), sandbox, artifact).await
}

/// One entry of a tar: the tar crate's builder would refuse these names.
pub fn tar_entry(out: &mut Vec<u8>, name: &str, kind: tar::EntryType, link: &str, mode: u32, content: &[u8]) {
    let mut header = tar::Header::new_ustar();
    let raw = header.as_mut_bytes();
    raw[..name.len()].copy_from_slice(name.as_bytes());
    raw[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_size(content.len() as u64);
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(512), 0);
}

pub fn tar_end(mut out: Vec<u8>) -> Vec<u8> {
    out.resize(out.len() + 1024, 0);
    out
}

pub fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}
