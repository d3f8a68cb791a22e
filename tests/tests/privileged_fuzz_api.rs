//! A hundred thousand random and changed requests to a real daemon: it answers each with a right status, does not panic, and
//! does not grow.
//!
//! `AGENTD_FUZZ_SEED` repeats a run, `AGENTD_FUZZ_REQUESTS` makes it longer.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use agentd_tests::attached::{self, memory};
use agentd_tests::mutate::{Mutator, Request};
use agentd_tests::{Client, Daemon, eventually, exec, privileged};
use serde_json::json;

/// Requests in all, half of them before the first measurement.
const REQUESTS: usize = 100_000;

/// Connections at a time.
const WORKERS: usize = 4;

/// Longest wait for the answer to a request that has to be answered at once.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long the answer to a request that may wait or stream is looked at.
const GLANCE: Duration = Duration::from_millis(30);

/// Growth of the daemon's own memory in the second half, KiB: the events that are kept fill up, and the allocator keeps a
/// few mebibytes more or less. A leak of 250 bytes for each request is more.
const MARGIN: u64 = 12 << 10;

/// The test's own number from the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// What became of the requests of one worker.
#[derive(Default)]
struct Tally {
    statuses: BTreeMap<u16, usize>,
    unanswered: usize,
    sessions: usize,
    wrong: Vec<String>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.unanswered += other.unanswered;
        self.sessions += other.sessions;
        self.wrong.extend(other.wrong);
    }

    /// Whether a status may be given to a request that a client made up.
    fn judge(&mut self, status: u16, sent: &[u8], text: &str) {
        *self.statuses.entry(status).or_default() += 1;
        // the daemon never fails for what it is sent; busy, stopping and not supported are said by these
        let right = (200..500).contains(&status) || matches!(status, 101 | 501 | 503);
        if !right && self.wrong.len() < 10 {
            self.wrong.push(format!("{status} {text}\nfor {:?}", String::from_utf8_lossy(sent)));
        }
    }
}

/// One answer, as far as it is told by a length: status, whether the connection goes on, the body.
struct Answer {
    status: u16,
    goes_on: bool,
    text: String,
}

fn read_answer(reader: &mut BufReader<UnixStream>) -> io::Result<Answer> {
    loop {
        let answer = read_one(reader)?;
        // what only says that the body may come
        if answer.status != 100 {
            return Ok(answer);
        }
    }
}

fn read_one(reader: &mut BufReader<UnixStream>) -> io::Result<Answer> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("no status line: {line:?}")))?;
    let (mut length, mut goes_on) = (None, true);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        match line.split_once(':').map(|(name, value)| (name, value.trim())) {
            Some(("content-length", value)) => length = value.parse::<u64>().ok(),
            Some(("connection", "close")) => goes_on = false,
            Some(("transfer-encoding", _)) => length = None,
            _ => {}
        }
    }
    let bodiless = matches!(status, 100 | 204 | 304);
    // one that streams is not read to its end
    goes_on &= (length.is_some() || bodiless) && status != 101;
    let mut body = Vec::new();
    reader.take(length.unwrap_or(0)).read_to_end(&mut body)?;
    Ok(Answer { status, goes_on, text: String::from_utf8_lossy(&body).chars().take(300).collect() })
}

/// Whether the answer may take its time or have no end.
fn may_wait(request: &Request) -> bool {
    let path = String::from_utf8_lossy(&request.path).to_ascii_lowercase();
    let words = ["wait", "logs", "events", "attach", "exec", "forward", "api/v1", "images", "slave"];
    request.method == "HEAD"
        || words.iter().any(|word| path.contains(word))
        // escaped letters and the like: the router decodes them, this does not
        || path.contains('%')
}

struct Worker<'a> {
    socket: &'a Path,
    mutator: Mutator,
    connection: Option<BufReader<UnixStream>>,
    tally: Tally,
}

impl Worker<'_> {
    fn connect(&self) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(self.socket)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// A changed request in sound framing on a connection that goes on: it has to be answered.
    fn framed(&mut self) -> io::Result<()> {
        let request = self.mutator.framed();
        let bytes = request.bytes();
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => BufReader::new(self.connect()?),
        };
        let waits = may_wait(&request);
        connection.get_ref().set_read_timeout(Some(if waits { GLANCE } else { PATIENCE }))?;
        // refused before it was read whole, perhaps
        let sent = connection.get_mut().write_all(&bytes);
        match read_answer(&mut connection) {
            Ok(answer) => {
                self.tally.judge(answer.status, &bytes, &answer.text);
                if answer.status == 101 {
                    // what follows the upgrade is as changed as the rest
                    self.tally.sessions += 1;
                    let _ = connection.get_mut().write_all(&self.mutator.frames());
                } else if answer.goes_on && sent.is_ok() {
                    self.connection = Some(connection);
                }
            }
            Err(error) if waits && is_timeout(&error) => self.tally.unanswered += 1,
            Err(error) => {
                self.tally.unanswered += 1;
                self.tally.wrong.push(format!("no answer ({error}) to {:?}", String::from_utf8_lossy(&bytes)));
            }
        }
        Ok(())
    }

    /// Bytes that were changed anywhere on a connection of their own, which is closed after them.
    fn wild(&mut self) -> io::Result<()> {
        let bytes = self.mutator.wild();
        let mut stream = self.connect()?;
        stream.set_read_timeout(Some(GLANCE))?;
        let _ = stream.write_all(&bytes).and_then(|()| stream.shutdown(Shutdown::Write));
        match read_answer(&mut BufReader::new(stream)) {
            Ok(answer) => self.tally.judge(answer.status, &bytes, &answer.text),
            // a client that is gone need not be answered
            Err(_) => self.tally.unanswered += 1,
        }
        Ok(())
    }

    /// A session whose client sends changed frames.
    fn session(&mut self) -> io::Result<()> {
        let asked = json!({"command": ["/usr/bin/true"], "stdin": true, "maxSeconds": 5});
        let mut stream = self.connect()?;
        stream.write_all(&exec::request("/fuzz", &asked, ""))?;
        let mut reader = BufReader::new(stream);
        let answer = read_answer(&mut reader)?;
        self.tally.judge(answer.status, b"exec", &answer.text);
        if answer.status == 101 {
            self.tally.sessions += 1;
            let frames = self.mutator.frames();
            let _ = reader.get_mut().write_all(&frames);
            let _ = reader.get_ref().shutdown(Shutdown::Write);
            // the daemon ends the connection: the program ends at once, or the frames are none
            reader.get_ref().set_read_timeout(Some(PATIENCE))?;
            if let Err(error) = reader.read_to_end(&mut Vec::new())
                && is_timeout(&error)
            {
                self.tally.wrong.push(format!("a session stays open after the frames {frames:02x?}"));
            }
        }
        Ok(())
    }

    fn run(mut self, requests: usize) -> Tally {
        for turn in 0..requests {
            let result = match turn % 10 {
                _ if turn % 200 == 0 => self.session(),
                0..=2 => self.wild(),
                _ => self.framed(),
            };
            if let Err(error) = result {
                self.connection = None;
                self.tally.wrong.push(format!("a connection cannot be had: {error}"));
            }
            if self.tally.wrong.len() >= 10 {
                break;
            }
        }
        self.tally
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Sends so many requests over all workers.
fn storm(socket: &Path, seed: u64, requests: usize) -> Tally {
    let total = Mutex::new(Tally::default());
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (total, mutator) = (&total, Mutator::new(seed.wrapping_add(worker as u64)));
            scope.spawn(move || {
                let worker = Worker { socket, mutator, connection: None, tally: Tally::default() };
                let tally = worker.run(requests / WORKERS);
                total.lock().expect("no worker panicked").add(tally);
            });
        }
    });
    total.into_inner().expect("no worker panicked")
}

/// Removes the pods that a changed request brought about, and makes the one that they are about where it was removed.
fn tidy(client: &Client) {
    let pods = client.get("/v1/pods").json.as_array().cloned().unwrap_or_default();
    for pod in &pods {
        let id = pod["id"].as_str().unwrap_or_default();
        if id != "/fuzz" {
            client.rm(id);
        }
    }
    if pods.iter().all(|pod| pod["id"] != "/fuzz") {
        client.run_pod(&attached::pod("/fuzz"));
    }
}

#[test]
fn a_hundred_thousand_changed_requests_do_no_harm() {
    privileged!();
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seed = number("AGENTD_FUZZ_SEED").unwrap_or(clock);
    let requests = number("AGENTD_FUZZ_REQUESTS").map_or(REQUESTS, |count| count as usize);
    println!("seed {seed} (AGENTD_FUZZ_SEED={seed} repeats it)");
    let mut daemon = Daemon::with()
        .set("logs.level=warn")
        .set("api.requests_per_second=0")
        .set("sessions.keep_exited_seconds=1")
        .set("sessions.reattach_seconds=1")
        .start();
    let client = daemon.client();
    client.run_pod(&attached::pod("/fuzz"));
    let socket = daemon.socket();
    // what is made once, is made by these
    storm(&socket, seed ^ 1, requests / 20);
    let at_rest = |daemon: &Daemon, most: usize| {
        eventually(Duration::from_secs(30), || {
            let sessions = client.get("/v1/sessions").json;
            sessions.as_array().is_some_and(Vec::is_empty) && daemon.descriptors() <= most
        })
    };
    tidy(&client);
    assert!(at_rest(&daemon, usize::MAX), "sessions are left");
    let descriptors = daemon.descriptors();

    let mut tally = Tally::default();
    let mut sizes = Vec::new();
    let began = Instant::now();
    for half in 0..2 {
        tally.add(storm(&socket, seed.wrapping_add(100 * half), requests / 2));
        assert!(daemon.alive(), "seed {seed}: the daemon ended; its log:\n{}", daemon.log());
        assert!(client.get("/healthz").ok());
        tidy(&client);
        assert!(
            at_rest(&daemon, descriptors + 4),
            "seed {seed}: {} descriptors, {descriptors} before; sessions: {}",
            daemon.descriptors(),
            client.get("/v1/sessions").text
        );
        sizes.push(memory(daemon.pid()));
    }
    println!(
        "{requests} requests in {:.1?}: {:?}, {} sessions, {} without an answer; {} and {} KiB",
        began.elapsed(),
        tally.statuses,
        tally.sessions,
        tally.unanswered,
        sizes[0],
        sizes[1]
    );
    let wrong = &tally.wrong;
    assert!(wrong.is_empty(), "seed {seed}: {} wrong:\n{}", wrong.len(), wrong.join("\n"));
    let refused: usize = tally.statuses.iter().filter(|(status, _)| (400..500).contains(*status)).map(|(_, n)| n).sum();
    assert!(refused > requests / 10 && tally.sessions > 0, "the requests were not such as to try anything");
    let log = daemon.log();
    let panicked: Vec<&str> = log.lines().filter(|line| line.contains("panicked")).take(5).collect();
    assert!(panicked.is_empty(), "seed {seed}: {panicked:?}");
    assert!(
        sizes[1] <= sizes[0] + MARGIN,
        "seed {seed}: {} KiB after the first half, {} after the second",
        sizes[0],
        sizes[1]
    );
    // and it still runs pods
    assert_eq!(client.run_to_end(&agentd_tests::pods::shell("/after", "echo fine")).1, "fine\n");
}
