//! One daemon of a test: its own folder and instance name, started from the binary that was built beside the test.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::client::Client;
use crate::host;
use crate::poll::until;
use crate::snapshot::Snapshot;

/// How long a daemon may take to listen, and to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long nothing may change before a picture counts as that of a daemon at rest.
const QUIET: Duration = Duration::from_millis(100);

/// Start of the name of every test's folder; the process id of the test follows.
const PREFIX: &str = "agt-";

/// Free space without which `/dev/shm` is not used for tests' folders.
const ROOM: u64 = 4 << 30;

/// How a daemon is started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    sets: Vec<String>,
    environment: Vec<(String, String)>,
    config: Option<String>,
    arguments: Vec<String>,
    wrapper: Vec<String>,
}

impl Options {
    /// Adds `--set KEY=VALUE`.
    #[must_use]
    pub fn set(mut self, assignment: &str) -> Self {
        self.sets.push(assignment.to_owned());
        self
    }

    /// Adds a variable of the daemon's environment, e.g. `AGENTD_FAILPOINT`.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Writes this as the configuration file.
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        self.config = Some(toml.to_owned());
        self
    }

    /// Adds a flag as it is.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Starts the daemon by these words, to which its own are added. They must end in its place, keeping the process id,
    /// e.g. `unshare --mount sh -c '…; exec "$@"' sh`.
    #[must_use]
    pub fn wrapped(mut self, words: &[&str]) -> Self {
        self.wrapper = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Starts the daemon and waits until it listens.
    #[track_caller]
    pub fn start(self) -> Daemon {
        let mut daemon = self.spawn();
        daemon.wait_ready();
        daemon
    }

    /// Starts the daemon and returns at once: for one that is to die or be refused.
    #[track_caller]
    pub fn spawn(self) -> Daemon {
        sweep();
        let dir = folder();
        if let Some(config) = &self.config {
            fs::write(dir.join("agentd.toml"), config).expect("the configuration file can be written");
        }
        let instance = instance_of(&dir);
        let mut daemon = Daemon { dir, instance, options: self, child: None };
        daemon.launch();
        daemon
    }
}

/// A daemon. Dropping it kills it and removes everything of its instance from the host.
#[derive(Debug)]
pub struct Daemon {
    dir: PathBuf,
    instance: String,
    options: Options,
    child: Option<Child>,
}

impl Daemon {
    /// A daemon with the defaults. Waits until it listens.
    #[track_caller]
    pub fn start() -> Self {
        Options::default().start()
    }

    /// Something other than the defaults.
    pub fn with() -> Options {
        Options::default()
    }

    /// The folder of `--dev`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Volatile state.
    pub fn run(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// Durable state.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The API's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("agentd.sock")
    }

    /// The instance's name, which is also the name of its cgroup.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Its process id, while it is started.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon is started").id()
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        Client::new(&self.socket())
    }

    /// What it has on the host, once its pool is filled and nothing is under way any more. A daemon that has ended is
    /// taken as it left things.
    #[track_caller]
    pub fn snapshot(&self) -> Snapshot {
        if self.child.is_none() {
            return Snapshot::take(&self.instance, &self.dir);
        }
        let wanted = self.pool_size();
        let mut last = Snapshot::take(&self.instance, &self.dir);
        until("the pool is filled", PATIENCE, || {
            std::thread::sleep(QUIET);
            let now = Snapshot::take(&self.instance, &self.dir);
            let quiet = now == last && now.ready() >= wanted;
            last = now;
            quiet.then(|| last.clone())
        })
    }

    /// Sandboxes that the daemon keeps ready, as it is configured.
    fn pool_size(&self) -> usize {
        let mut command = Command::new(binary("agentd"));
        self.arguments("check-config", &mut command);
        let output = command.output().expect("agentd check-config can be run");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let value = text.lines().find_map(|line| line.strip_prefix("pool_size = "));
        let digits: String = value.unwrap_or_default().chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or_else(|_| panic!("no pool_size in the effective configuration:\n{text}"))
    }

    /// What it has logged, all runs together.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("daemon.log")).unwrap_or_default()
    }

    /// Number of descriptors that it has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    /// Whether the process is there.
    pub fn alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Sets or (with none) unsets a variable of the environment for the next start.
    pub fn set_env(&mut self, name: &str, value: Option<&str>) {
        self.options.environment.retain(|(known, _)| known != name);
        if let Some(value) = value {
            self.options.environment.push((name.to_owned(), value.to_owned()));
        }
    }

    /// Ends it by SIGKILL. Pods stay.
    #[track_caller]
    pub fn kill9(&mut self) {
        self.signal(Signal::KILL);
        self.wait_exit();
    }

    /// Ends it by SIGTERM and returns how it ended. Pods stay.
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_exit()
    }

    /// Sends it a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("a process id fits")).expect("a process id is not 0");
        kill_process(pid, signal).expect("the daemon can be signalled");
    }

    /// Waits until it has ended by itself (a fail point, a refused start).
    #[track_caller]
    pub fn wait_exit(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("the daemon is started");
        let status = until("the daemon ends", PATIENCE, || child.try_wait().expect("a child can be waited for"));
        self.child = None;
        status
    }

    /// Starts it again after it has ended, on the same folder, and waits until it listens.
    #[track_caller]
    pub fn restart(&mut self) {
        self.respawn();
        self.wait_ready();
    }

    /// Starts it again after it has ended, and returns at once.
    #[track_caller]
    pub fn respawn(&mut self) {
        assert!(!self.alive(), "the daemon runs; end it first");
        self.launch();
    }

    /// Waits until it listens.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        let socket = self.socket();
        until("the daemon listens", PATIENCE, || {
            if UnixStream::connect(&socket).is_ok() {
                return Some(());
            }
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = ended {
                panic!("the daemon ended ({}) before it listened; its log:\n{}", describe(status), self.log());
            }
            None
        });
    }

    #[track_caller]
    fn launch(&mut self) {
        // a program that the last daemon was just starting when it was killed may still hold its socket and take connections
        let _ = fs::remove_file(self.socket());
        let log =
            File::options().create(true).append(true).open(self.dir.join("daemon.log")).expect("a log can be made");
        let mut command = match self.options.wrapper.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(binary("agentd"));
                command
            }
            None => Command::new(binary("agentd")),
        };
        self.arguments("run", &mut command);
        command.current_dir("/").stdin(Stdio::null()).stderr(log.try_clone().expect("a log can be shared")).stdout(log);
        self.child = Some(command.spawn().expect("agentd can be started"));
    }
}

impl Daemon {
    fn arguments(&self, verb: &str, command: &mut Command) {
        command.arg(verb).arg("--dev").arg(&self.dir);
        for set in &self.options.sets {
            command.arg("--set").arg(set);
        }
        command.args(&self.options.arguments);
        // what configures another daemon is not meant for this one
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_agentd(name)) {
            command.env_remove(name);
        }
        command.envs(self.options.environment.iter().map(|(name, value)| (name, value)));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the daemon {} ---\n{}--- end of the log ---", self.instance, self.log());
        }
        host::purge(&self.instance, &self.dir);
    }
}

fn is_agentd(name: &OsString) -> bool {
    name.to_str().is_some_and(|name| name.starts_with("AGENTD_") && name != "AGENTD_BIN_DIR")
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, signal) => format!("signal {}", signal.unwrap_or(0)),
    }
}

/// A program that cargo built beside this test, or in `AGENTD_BIN_DIR`.
#[track_caller]
pub fn binary(name: &str) -> PathBuf {
    let folder = std::env::var_os("AGENTD_BIN_DIR").map_or_else(beside_tests, PathBuf::from);
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build --workspace --bins` first, or set AGENTD_BIN_DIR",
        path.display()
    );
    path
}

/// The folder of the programs that cargo built with this test, the tests' own among them: `target/<profile>`.
pub(crate) fn beside_tests() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    test.ancestors().nth(2).expect("a test lies in target/<profile>/deps").to_path_buf()
}

/// The name that `agentd --dev DIR` gives its instance, asked of the binary itself.
#[track_caller]
fn instance_of(dir: &Path) -> String {
    let output = Command::new(binary("agentd")).arg("check-config").arg("--dev").arg(dir).output();
    let output = output.expect("agentd check-config can be run");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("instance = \""));
    match line.and_then(|rest| rest.split('"').next()) {
        Some(name) => name.to_owned(),
        // a wrong configuration, which a test may be about, has no effective one to print
        None => instance_by_hash(dir),
    }
}

/// The documented rule: `dev-` and the first eight digits of the SHA-256 of the folder's path.
fn instance_by_hash(dir: &Path) -> String {
    let hashed = Command::new("sh")
        .args(["-c", "printf %s \"$1\" | sha256sum", "sh"])
        .arg(dir)
        .output()
        .expect("sha256sum can be run");
    format!("dev-{}", String::from_utf8_lossy(&hashed.stdout).chars().take(8).collect::<String>())
}

/// Where tests' folders are: in memory where there is room, since pods come and go by the hundred.
pub fn base() -> PathBuf {
    if let Some(base) = std::env::var_os("AGENTD_TESTS_DIR") {
        return PathBuf::from(base);
    }
    let room = rustix::fs::statvfs("/dev/shm").map_or(0, |fs| fs.f_bavail * fs.f_frsize);
    PathBuf::from(if room >= ROOM { "/dev/shm" } else { "/tmp" })
}

/// A new folder. Its path is short, as a Unix socket's must be.
fn folder() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = base().join(format!("{PREFIX}{}-{number}", std::process::id()));
    fs::create_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    dir
}

/// Removes what tests left that were killed, once for each process.
fn sweep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for entry in fs::read_dir(base()).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(pid) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()) else { continue };
            let dead = pid.parse::<u32>().is_ok_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
            if dead {
                let dir = entry.path();
                end_daemon_of(&dir);
                host::purge(&instance_of(&dir), &dir);
            }
        }
    });
}

/// Ends the daemon that runs on a test's folder, if one does: its command line names the folder.
fn end_daemon_of(dir: &Path) {
    let wanted = format!("--dev\0{}\0", dir.display());
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        if line.contains(&wanted)
            && let Some(pid) = Pid::from_raw(pid)
        {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}
