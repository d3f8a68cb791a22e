//! A relay between a client and the daemon's socket that a test can cut, as a network does that fails.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the listener looks whether it is to end.
const TICK: Duration = Duration::from_millis(10);

type Pairs = Arc<Mutex<Vec<UnixStream>>>;

/// A listening relay. Dropping it cuts every connection and takes no more.
#[derive(Debug)]
pub struct Relay {
    path: PathBuf,
    open: Pairs,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Listens on `path` and passes everything on to the socket `to` and back.
    #[track_caller]
    pub fn start(path: &Path, to: &Path) -> Self {
        let listener = UnixListener::bind(path).expect("a relay can listen");
        listener.set_nonblocking(true).expect("a listener need not block");
        let (open, stop) = (Pairs::default(), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (open, stop, to) = (Arc::clone(&open), Arc::clone(&stop), to.to_path_buf());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((client, _)) => {
                            // a daemon that is away refuses the client, too
                            let _ = join(&client, &to, &open);
                        }
                        Err(_) => std::thread::sleep(TICK),
                    }
                }
            }
        });
        Self { path: path.to_path_buf(), open, stop, thread: Some(thread) }
    }

    /// Its socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Cuts every connection that is open now. New ones are taken.
    pub fn cut(&self) {
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // one that has ended already is as good as cut
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.path);
        self.cut();
    }
}

fn join(client: &UnixStream, to: &Path, open: &Pairs) -> io::Result<()> {
    client.set_nonblocking(false)?;
    let server = UnixStream::connect(to)?;
    let mut streams = open.lock().unwrap_or_else(PoisonError::into_inner);
    for (from, to) in [(client, &server), (&server, client)] {
        streams.push(from.try_clone()?);
        let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
        std::thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn bytes_pass_until_it_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let (inner, outer) = (dir.path().join("inner"), dir.path().join("outer"));
        let listener = UnixListener::bind(&inner).unwrap();
        let relay = Relay::start(&outer, &inner);
        let mut client = UnixStream::connect(relay.path()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"ask").unwrap();
        let mut buffer = [0; 3];
        server.read_exact(&mut buffer).unwrap();
        server.write_all(b"yes").unwrap();
        client.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"yes");
        relay.cut();
        assert_eq!(client.read(&mut buffer).unwrap(), 0);
        assert_eq!(server.read(&mut buffer).unwrap(), 0);
        drop(relay);
        assert!(UnixStream::connect(&outer).is_err());
    }
}
