//! Cgroups of a test's own that an observer watches, and work with a known answer in them.
//!
//! Work is a test function of the same binary, marked `#[ignore]`, which does nothing unless it is run by [`Place::begin`]:
//! in the cgroup of a container and a network namespace of its own. It says `ready` when what comes before is over, waits
//! for a line, does its work, says `done` with what it found, and waits for another line before it ends.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use agentd_ebpf::observe::{Figures, Group, Observer, Rung, Settings, Signal};
use agentd_tests::{eventually, host};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Names the work for the process that is to do it.
const WORK: &str = "AGENTD_TESTS_WORK";

/// Directories of a test's own: `agentd-<number>/pods/<pod>/<container>`.
#[derive(Debug)]
pub struct Place {
    root: PathBuf,
    /// One place at a time on the host: a program on a tracepoint of tracefs is left out while another such program, of
    /// another test, runs on its CPU.
    _turn: File,
}

impl Place {
    /// Makes them; none where there is no cgroup2 tree.
    pub fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let turn = File::create(std::env::temp_dir().join("agentd-tests-observed.lock")).ok()?;
        turn.lock().ok()?;
        let root = host::unified()?.join(format!("agentd-observed-{}-{number}", std::process::id()));
        fs::create_dir_all(root.join("pods")).ok()?;
        Some(Self { root, _turn: turn })
    }

    /// The directory of all pods.
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// Makes the directory of a container and gives it with its id.
    pub fn container(&self, pod: &str, name: &str) -> (PathBuf, u64) {
        let path = self.pods().join(pod).join(name);
        fs::create_dir_all(&path).expect("a cgroup can be made");
        let id = fs::metadata(&path).expect("it is there").ino();
        (path, id)
    }

    /// An observer of these groups.
    pub fn observer(&self, groups: &[Group], without: &[Rung]) -> Observer {
        Observer::start(Settings {
            pods: self.pods(),
            level: 4,
            groups: groups.iter().copied().collect::<BTreeSet<_>>(),
            containers: 64,
            tasks: 16_384,
            edges: 64,
            events_per_second: 100,
            events_burst: 100,
            charged_io: false,
            without: without.iter().copied().collect(),
            without_btf: false,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::write(self.root.join("cgroup.kill"), "1");
        let gone = eventually(PATIENCE, || {
            for cgroup in host::cgroups_below(&self.root) {
                let _ = fs::remove_dir(cgroup);
            }
            !self.root.exists()
        });
        if !gone {
            eprintln!("{} is left", self.root.display());
        }
    }
}

/// The rung that a signal stands on, if any program holds it.
pub fn stands(observer: &Observer, signal: Signal) -> Result<Rung, String> {
    let states = observer.signals();
    let state = states.iter().find(|state| state.signal == signal).expect("every signal has a state");
    match state.rung {
        Rung::Off | Rung::Files => Err(format!("{} is on no rung: {:?}", signal.name(), state.why)),
        rung => Ok(rung),
    }
}

/// Where work is done.
#[derive(Debug, Clone, Copy)]
pub enum Network<'a> {
    /// In a network namespace of its own, with loopback up and without IPv6.
    Own,
    /// In that of other work.
    Of(&'a Work),
    /// In the test's.
    Host,
}

/// Work that has been begun.
#[derive(Debug)]
pub struct Work {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Work {
    /// Begins the work `name` of the test function `work` and waits until it is ready.
    #[track_caller]
    pub fn begin(name: &str, cgroup: &Path, network: Network<'_>) -> Self {
        Self::begin_with(name, cgroup, &[], network, &[])
    }

    /// The same. `also`: v1 cgroups to go into; `words`: variables of its environment.
    #[track_caller]
    pub fn begin_with(
        name: &str,
        cgroup: &Path,
        also: &[&Path],
        network: Network<'_>,
        words: &[(&str, &OsStr)],
    ) -> Self {
        let own = std::env::current_exe().expect("the test has a file");
        let mut line = String::new();
        for directory in std::iter::once(&cgroup).chain(also) {
            let _ = write!(line, "echo 0 > '{}/cgroup.procs' && ", directory.display());
        }
        match network {
            Network::Own => line.push_str("exec unshare --net sh -c 'ip link set lo up && exec \"$@\"' sh \"$@\""),
            Network::Of(work) => {
                let _ = write!(line, "exec nsenter --net=/proc/{}/ns/net \"$@\"", work.child.id());
            }
            Network::Host => line.push_str("exec \"$@\""),
        }
        let mut child = Command::new("sh")
            .args(["-c", &line, "sh"])
            .arg(own)
            .args(["--exact", "work", "--ignored", "--nocapture", "--test-threads=1"])
            .env(WORK, name)
            .envs(words.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh can be run");
        let input = child.stdin.take().expect("it is a pipe");
        let output = BufReader::new(child.stdout.take().expect("it is a pipe"));
        let mut work = Self { child, input, output };
        work.hear("ready");
        work
    }

    /// Waits for a line that begins so and gives the rest of it.
    #[track_caller]
    pub fn hear(&mut self, word: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.output.read_line(&mut line).expect("a pipe can be read");
            assert!(read != 0, "the work ended before it said {word}");
            // libtest writes in front of the first line
            if let Some(at) = line.find(&format!("work: {word}")) {
                return line[at + 6 + word.len()..].trim().to_owned();
            }
        }
    }

    /// Lets it go on.
    pub fn go(&mut self) {
        self.input.write_all(b"go\n").expect("the work listens");
    }

    /// Lets it do its work and gives what it found.
    #[track_caller]
    pub fn done(&mut self) -> String {
        self.go();
        self.hear("done")
    }

    /// A command in its network namespace.
    #[track_caller]
    pub fn nsenter(&self, words: &[&str]) -> String {
        let output = Command::new("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", self.child.id()))
            .args(words)
            .output()
            .expect("nsenter can be run");
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A counter of `/proc/net/snmp` of its network namespace.
    #[track_caller]
    pub fn snmp(&self, protocol: &str, counter: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/net/snmp", self.child.id())).expect("it lives");
        let mut lines = text.lines().filter(|line| line.starts_with(&format!("{protocol}:")));
        let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
        let at = names.split(' ').position(|name| name == counter).expect("the counter exists");
        values.split(' ').nth(at).and_then(|value| value.parse().ok()).expect("a number")
    }

    /// Bytes and packets that its loopback has carried.
    #[track_caller]
    pub fn loopback(&self) -> (u64, u64) {
        let text = fs::read_to_string(format!("/proc/{}/net/dev", self.child.id())).expect("it lives");
        let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:")).expect("there is lo");
        let mut numbers = line.split_whitespace().map(|number| number.parse().expect("a number"));
        (numbers.next().expect("bytes"), numbers.next().expect("packets"))
    }

    /// Ends it.
    #[track_caller]
    pub fn end(mut self) {
        self.go();
        let status = self.child.wait().expect("it can be waited for");
        assert!(status.success(), "the work failed: {status}");
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In the process that is to do the work: its name.
pub fn wanted() -> Option<String> {
    std::env::var(WORK).ok()
}

/// Says a word to the test.
pub fn say(word: &str) {
    println!("work: {word}");
}

/// Waits for the test's word.
pub fn wait() {
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
}

/// Waits until the figures of a container are as wanted, and gives them as they are at last.
pub fn settled(observer: &Observer, container: u64, mut wanted: impl FnMut(&Figures) -> bool) -> Figures {
    eventually(Duration::from_secs(10), || wanted(&observer.figures(container)));
    observer.figures(container)
}
