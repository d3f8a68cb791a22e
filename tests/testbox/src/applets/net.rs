//! Clients: TCP, Unix sockets, plain HTTP. Names are looked up in /etc/hosts only.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::{number, usage};
use crate::errno;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to a host and port, with a deadline.
pub fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::new(look_up(host)?, port), TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

fn look_up(host: &str) -> io::Result<IpAddr> {
    if let Ok(address) = host.trim_matches(['[', ']']).parse() {
        return Ok(address);
    }
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    hosts
        .lines()
        .find_map(|line| {
            let mut words = line.split('#').next()?.split_whitespace();
            let address = words.next()?.parse().ok()?;
            words.any(|name| name == host).then_some(address)
        })
        .ok_or_else(|| io::Error::other(format!("no address of {host} in /etc/hosts")))
}

pub fn connect(arguments: &[String]) -> u8 {
    match (arguments.first(), number(arguments, 1)) {
        (Some(host), Some(port)) => errno::report(dial(host, port)),
        _ => usage("connect HOST PORT"),
    }
}

pub fn connect_unix(arguments: &[String]) -> u8 {
    match arguments.first() {
        Some(path) => errno::report(UnixStream::connect(path)),
        None => usage("connect-unix PATH"),
    }
}

/// Takes connections and answers each with one line.
pub fn listen(arguments: &[String]) -> u8 {
    let Some(port) = number::<u16>(arguments, 0) else {
        return usage("listen PORT [TEXT]");
    };
    let text = arguments.get(1).map_or("hello", String::as_str);
    match TcpListener::bind(("0.0.0.0", port)) {
        Ok(listener) => {
            println!("listening on {port}");
            for mut stream in listener.incoming().flatten() {
                // a client that left before its answer is its own affair
                let _ = writeln!(stream, "{text}");
            }
            0
        }
        Err(error) => errno::report::<()>(Err(error)),
    }
}

/// Reads each connection to its end and sends back what it read.
pub fn repeat(arguments: &[String]) -> u8 {
    let Some(port) = number::<u16>(arguments, 0) else {
        return usage("repeat PORT");
    };
    match TcpListener::bind(("127.0.0.1", port)) {
        Ok(listener) => {
            println!("listening on {port}");
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut bytes = Vec::new();
                    // a client that left is its own affair
                    let _ = stream.read_to_end(&mut bytes).and_then(|_| stream.write_all(&bytes));
                });
            }
            0
        }
        Err(error) => errno::report::<()>(Err(error)),
    }
}

/// `get http://HOST[:PORT]/PATH`: prints the body; 0 when the status is 2xx.
pub fn get(arguments: &[String]) -> u8 {
    let Some((authority, path)) = arguments.first().and_then(|url| {
        let rest = url.strip_prefix("http://")?;
        Some(rest.find('/').map_or((rest, "/"), |at| rest.split_at(at)))
    }) else {
        return usage("get http://HOST[:PORT]/PATH");
    };
    let (host, port) = match authority.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
        Some((host, Ok(port))) => (host, port),
        _ => (authority, 80),
    };
    let answer = (|| -> io::Result<Vec<u8>> {
        let mut stream = dial(host, port)?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {authority}\r\nConnection: close\r\n\r\n")?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        Ok(bytes)
    })();
    match answer {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
            print!("{body}");
            u8::from(!head.split(' ').nth(1).is_some_and(|status| status.starts_with('2')))
        }
        Err(error) => errno::report::<()>(Err(error)),
    }
}
