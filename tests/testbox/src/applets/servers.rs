//! The demo's pod: a cache with a line protocol, and a web server that answers from it and from a shared folder.

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{inspect, net, option, usage};
use crate::signals;

/// Longest line taken from a client.
const LINE: u64 = 4096;
const TIMEOUT: Duration = Duration::from_secs(30);

/// File in the shared folder that the cache writes and the web server reads.
const GREETING: &str = "greeting";

type Entries = Arc<Mutex<HashMap<String, String>>>;

/// `cache --port PORT --dir DIR`: `get KEY`, `set KEY VALUE`, `incr KEY`, one line each.
pub fn cache(arguments: &[String]) -> u8 {
    let Some(port) = option(arguments, "--port").and_then(|port| port.parse::<u16>().ok()) else {
        return usage("cache --port PORT [--dir DIR]");
    };
    signals::end_well_on_term();
    let host = inspect::host_name();
    if let Some(dir) = option(arguments, "--dir") {
        let path = format!("{dir}/{GREETING}");
        if let Err(error) = fs::write(&path, format!("a greeting that {host} wrote\n")) {
            eprintln!("cache: {path}: {error}");
            return 1;
        }
    }
    let entries: Entries = Arc::default();
    lock(&entries).insert(GREETING.to_owned(), format!("hello from {host}"));
    serve("cache", port, move |stream| answer_cache(stream, &entries))
}

/// `web --port PORT --cache HOST:PORT --dir DIR`: `GET /` answers from both, `GET /health` says whether both are there.
pub fn web(arguments: &[String]) -> u8 {
    let port = option(arguments, "--port").and_then(|port| port.parse::<u16>().ok());
    let cache = option(arguments, "--cache").and_then(|at| {
        let (host, port) = at.rsplit_once(':')?;
        Some((host.to_owned(), port.parse::<u16>().ok()?))
    });
    let (Some(port), Some(cache), Some(dir)) = (port, cache, option(arguments, "--dir")) else {
        return usage("web --port PORT --cache HOST:PORT --dir DIR");
    };
    signals::end_well_on_term();
    let greeting = format!("{dir}/{GREETING}");
    serve("web", port, move |stream| answer_web(stream, &cache, &greeting))
}

fn serve(name: &str, port: u16, answer: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> u8 {
    let listener = match TcpListener::bind(("0.0.0.0", port)) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("{name}: port {port}: {error}");
            return 1;
        }
    };
    println!("{name} listens on port {port}");
    let answer = Arc::new(answer);
    for stream in listener.incoming() {
        let answer = Arc::clone(&answer);
        let name = name.to_owned();
        match stream.and_then(|stream| stream.set_read_timeout(Some(TIMEOUT)).map(|()| stream)) {
            Ok(stream) => {
                std::thread::spawn(move || {
                    if let Err(error) = answer(stream) {
                        eprintln!("{name}: a client: {error}");
                    }
                });
            }
            Err(error) => eprintln!("{name}: a connection failed: {error}"),
        }
    }
    0
}

fn lock(entries: &Entries) -> std::sync::MutexGuard<'_, HashMap<String, String>> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}

fn line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut text = String::new();
    let read = io::Read::take(&mut *reader, LINE).read_line(&mut text)?;
    Ok((read > 0).then(|| text.trim_end().to_owned()))
}

fn answer_cache(stream: TcpStream, entries: &Entries) -> io::Result<()> {
    let mut out = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = line(&mut reader)? {
        let mut words = request.splitn(3, ' ');
        let reply = match (words.next(), words.next(), words.next()) {
            (Some("get"), Some(key), None) => lock(entries).get(key).map_or("NOT_FOUND".to_owned(), Clone::clone),
            (Some("set"), Some(key), Some(value)) => {
                lock(entries).insert(key.to_owned(), value.to_owned());
                "STORED".to_owned()
            }
            (Some("incr"), Some(key), None) => {
                let mut entries = lock(entries);
                let count = entries.get(key).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) + 1;
                entries.insert(key.to_owned(), count.to_string());
                count.to_string()
            }
            _ => "ERROR expected: get KEY, set KEY VALUE or incr KEY".to_owned(),
        };
        writeln!(out, "{reply}")?;
    }
    Ok(())
}

fn ask(cache: &(String, u16), requests: &[&str]) -> io::Result<Vec<String>> {
    let mut stream = net::dial(&cache.0, cache.1)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut replies = Vec::new();
    for request in requests {
        writeln!(stream, "{request}")?;
        replies.push(line(&mut reader)?.ok_or(io::ErrorKind::UnexpectedEof)?);
    }
    Ok(replies)
}

fn page(path: &str, cache: &(String, u16), greeting: &str) -> io::Result<Option<String>> {
    match path {
        "/health" => {
            ask(cache, &["get greeting"])?;
            fs::metadata(greeting)?;
            Ok(Some("well\n".to_owned()))
        }
        "/" => {
            let replies = ask(cache, &["get greeting", "incr visits"])?;
            let shared = fs::read_to_string(greeting)?;
            Ok(Some(format!(
                "from the cache over localhost: {}\nfrom the shared volume: {}\nvisits counted by the cache: {}\n",
                replies[0],
                shared.trim_end(),
                replies[1]
            )))
        }
        _ => Ok(None),
    }
}

fn answer_web(mut stream: TcpStream, cache: &(String, u16), greeting: &str) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let Some(request) = line(&mut reader)? else {
        return Ok(());
    };
    while line(&mut reader)?.is_some_and(|header| !header.is_empty()) {}
    let mut words = request.split(' ');
    let (status, body) = match (words.next(), words.next()) {
        (Some("GET" | "HEAD"), Some(path)) => match page(path, cache, greeting) {
            Ok(Some(body)) => ("200 OK", body),
            Ok(None) => ("404 Not Found", format!("no page {path}; there are / and /health\n")),
            Err(error) => ("503 Service Unavailable", format!("the cache or the shared folder: {error}\n")),
        },
        _ => ("400 Bad Request", "expected GET\n".to_owned()),
    };
    println!("{request} {status}");
    let length = body.len();
    let body = if request.starts_with("HEAD") { "" } else { &body };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}
