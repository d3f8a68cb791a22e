//! A daemon of this tree for a demo or a benchmark: started, waited for, and ended by its process id whatever happens.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::http::Client;
use crate::mounts;

const START: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(15);
const STEP: Duration = Duration::from_millis(10);

/// A running daemon. Dropped, it is ended with its pods.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
    /// Its socket.
    pub socket: PathBuf,
    /// Its instance name, from which everything that it makes on the host is named.
    pub instance: String,
}

impl Daemon {
    /// Starts `agentd run --dev DIR` with further arguments and waits until it answers.
    pub fn start(program: &Path, dir: &Path, arguments: &[&str]) -> Result<Self, String> {
        let log = dir.join("agentd.log");
        let output = File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        let errors = output.try_clone().map_err(|error| format!("{}: {error}", log.display()))?;
        let child = Command::new(program)
            .args(["run", "--dev"])
            .arg(dir)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(|error| format!("{} cannot be started: {error}", program.display()))?;
        let mut daemon = Self { child, log, socket: dir.join("agentd.sock"), instance: String::new() };
        let end = Instant::now() + START;
        loop {
            if let Ok(Some(status)) = daemon.child.try_wait() {
                return Err(format!("agentd ended while starting ({status}); its log:\n{}", daemon.log_text()));
            }
            if daemon.socket.exists()
                && let Ok(answer) = Client::new(&daemon.socket).expect("GET", "/v1/node", b"", &[200])
                && let Some(instance) = answer.json()?["instance"].as_str()
            {
                instance.clone_into(&mut daemon.instance);
                return Ok(daemon);
            }
            if Instant::now() > end {
                let seconds = START.as_secs();
                return Err(format!("agentd does not answer after {seconds} s; its log:\n{}", daemon.log_text()));
            }
            std::thread::sleep(STEP);
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged, the end of it.
    pub fn log_text(&self) -> String {
        let text = fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        Client::new(&self.socket)
    }

    /// Ends it with SIGTERM and waits.
    pub fn stop(&mut self) -> Result<ExitStatus, String> {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Ok(status);
        }
        signal(&self.child, libc::SIGTERM);
        let end = Instant::now() + STOP;
        while Instant::now() < end {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => std::thread::sleep(STEP),
                Err(error) => return Err(format!("agentd cannot be awaited: {error}")),
            }
        }
        Err(format!("agentd did not end within {} s of SIGTERM", STOP.as_secs()))
    }
}

fn signal(child: &Child, number: i32) {
    // SAFETY: the child has not been waited for yet (only `Daemon` does that, and forgets it then), so the id is its own.
    unsafe { libc::kill(child.id() as libc::pid_t, number) };
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.stop().is_err() {
            // Child::kill and wait do nothing when it has ended meanwhile
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if !self.instance.is_empty() {
            end_pods(&self.instance);
        }
    }
}

/// Ends what an ended daemon left running: pods outlive it by design.
fn end_pods(instance: &str) {
    let hierarchies = mounts::hierarchies();
    if let Some(unified) = &hierarchies.unified {
        let kill = unified.join(instance).join("cgroup.kill");
        match fs::write(&kill, "1") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => eprintln!("{}: {error}", kill.display()),
            _ => {}
        }
    }
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let left: Vec<PathBuf> =
            hierarchies.all().map(|mount| mount.join(instance)).filter(|path| path.exists()).collect();
        if left.is_empty() || Instant::now() > end {
            return;
        }
        for path in left {
            mounts::remove_empty(&path);
        }
        std::thread::sleep(STEP);
    }
}

/// A folder of its own for a run, removed when dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one below `parent`, with a short name: a socket's path has at most 107 bytes.
    pub fn new(parent: &Path, name: &str) -> Result<Self, String> {
        let path = parent.join(format!("agentd-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self(path))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} is left behind: {error}", self.0.display());
        }
    }
}
