//! An image registry on loopback that serves OCI layouts: just enough of the distribution protocol for a pull.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

type Repositories = Arc<Mutex<HashMap<String, PathBuf>>>;

/// A registry; it serves until the test ends.
#[derive(Debug)]
pub struct LayoutServer {
    host: String,
    repositories: Repositories,
}

impl LayoutServer {
    /// Listens on a free port of loopback.
    #[track_caller]
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of loopback is free");
        let host = listener.local_addr().expect("a listener has an address").to_string();
        let repositories = Repositories::default();
        let served = Arc::clone(&repositories);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = Arc::clone(&served);
                // a client that goes away is its own affair
                std::thread::spawn(move || drop(serve(&stream, &served)));
            }
        });
        Self { host, repositories }
    }

    /// Publishes an OCI layout folder as the repository `name`; returns the reference of its `tag`.
    pub fn publish(&self, name: &str, layout: &Path, tag: &str) -> String {
        let mut repositories = self.repositories.lock().unwrap_or_else(PoisonError::into_inner);
        repositories.insert(name.to_owned(), layout.to_path_buf());
        format!("{}/{name}:{tag}", self.host)
    }
}

fn serve(stream: &TcpStream, repositories: &Repositories) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut header = String::new();
        while reader.read_line(&mut header)? > 2 {
            header.clear();
        }
        let mut words = line.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let found = answer(path, repositories);
        let (status, kind, body) = match &found {
            Some((kind, body)) => ("200 OK", kind.as_str(), body.as_slice()),
            None => ("404 Not Found", "application/json", &b"{}"[..]),
        };
        write!(writer, "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n", body.len())?;
        if method != "HEAD" {
            writer.write_all(body)?;
        }
    }
}

fn answer(path: &str, repositories: &Repositories) -> Option<(String, Vec<u8>)> {
    let path = path.strip_prefix("/v2/")?;
    if path.is_empty() {
        return Some(("application/json".to_owned(), b"{}".to_vec()));
    }
    let (name, what) = path.split_once("/manifests/").or_else(|| path.split_once("/blobs/"))?;
    let layout = repositories.lock().unwrap_or_else(PoisonError::into_inner).get(name)?.clone();
    let digest = if what.starts_with("sha256:") { what.to_owned() } else { digest_of(&layout, what)? };
    let blob = fs::read(layout.join("blobs").join(digest.replacen(':', "/", 1))).ok()?;
    let kind = if path.contains("/manifests/") {
        serde_json::from_slice::<Value>(&blob).ok()?["mediaType"].as_str()?.to_owned()
    } else {
        "application/octet-stream".to_owned()
    };
    Some((kind, blob))
}

/// Digest of the manifest of a tag.
fn digest_of(layout: &Path, tag: &str) -> Option<String> {
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).ok()?).ok()?;
    let manifests = index["manifests"].as_array()?;
    let named = |manifest: &&Value| manifest["annotations"]["org.opencontainers.image.ref.name"] == tag;
    manifests.iter().find(named)?["digest"].as_str().map(str::to_owned)
}
