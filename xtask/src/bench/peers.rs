//! The other engines: where they are installed they run with roots, sockets and cgroups of their own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{oci, ours};
use crate::installed;
use crate::mounts::{hierarchies, remove_empty};

/// A private mount namespace for this process and its children, in which the cgroup2 tree of a hybrid host shows no
/// controllers: crun and containerd refuse such hosts otherwise. The host's own mounts are left as they are.
pub fn enter_namespace() -> Result<(), String> {
    let fail = |what: &str| format!("{what}: {}", io::Error::last_os_error());
    // SAFETY: the process has one thread, and the texts end with NUL.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNS) < 0 {
            return Err(fail("a mount namespace cannot be made"));
        }
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        if libc::mount(c"none".as_ptr(), c"/".as_ptr(), std::ptr::null(), flags, std::ptr::null()) < 0 {
            return Err(fail("mounts cannot be made private"));
        }
    }
    let found = hierarchies();
    let Some(unified) = found.unified.filter(|_| !found.v1.is_empty()) else {
        return Ok(());
    };
    let path = unified.join("cgroup.controllers");
    if fs::read_to_string(&path).is_ok_and(|text| !text.trim().is_empty()) {
        let status = Command::new("mount").args(["--bind", "/dev/null"]).arg(&path).status();
        if !status.is_ok_and(|status| status.success()) {
            return Err(format!("{} cannot be covered for crun", path.display()));
        }
    }
    Ok(())
}

/// Takes away what peers mounted below a folder, in this process's own mount namespace.
pub fn unmount_below(folder: &Path) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points: Vec<&str> = table.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    points.retain(|point| Path::new(point).starts_with(folder));
    for point in points.iter().rev() {
        if let Ok(point) = std::ffi::CString::new(*point) {
            // SAFETY: the text ends with NUL. What cannot be unmounted is named when its folder cannot be removed.
            unsafe { libc::umount2(point.as_ptr(), libc::MNT_DETACH) };
        }
    }
}

/// Runs a command to its end; its output is the error's text when it fails.
pub fn run(command: &mut Command) -> Result<String, String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{} cannot be started: {error}", command.get_program().to_string_lossy()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = said.lines().rev().take(2).collect();
    Err(format!("{}: {}", output.status, last.into_iter().rev().collect::<Vec<_>>().join("; ")))
}

/// Runs a command to its end without input and output: a pipe would be one thing more to wait for.
pub fn silent(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|error| format!("{name} cannot be started: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{name} ended with {status}")) }
}

/// The cgroup below which all peers' containers are.
pub fn cgroup_base() -> String {
    format!("/agentd-bench-{}", std::process::id())
}

/// crun or runc.
#[derive(Debug)]
pub struct Runtime {
    program: &'static str,
    state: PathBuf,
    bundle: PathBuf,
}

impl Runtime {
    pub fn new(program: &'static str, scratch: &Path, root: &Path, slot: usize) -> Result<Option<Self>, String> {
        Self::with(program, scratch, root, &slot.to_string(), &["/bin/testbox", "true"])
    }

    /// One whose container stays, for [`Runtime::start`].
    pub fn staying(program: &'static str, scratch: &Path, root: &Path) -> Result<Option<Self>, String> {
        Self::with(program, scratch, root, "held", &["/bin/testbox", "hold"])
    }

    fn with(
        program: &'static str,
        scratch: &Path,
        root: &Path,
        name: &str,
        words: &[&str],
    ) -> Result<Option<Self>, String> {
        if !installed(program) {
            return Ok(None);
        }
        let bundle = scratch.join(format!("{program}-bundle-{name}"));
        let cgroup = format!("{}/{program}-{name}", cgroup_base());
        oci::bundle(&bundle, root, &cgroup, words)?;
        Ok(Some(Self { program, state: scratch.join(format!("{program}-state-{name}")), bundle }))
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.program);
        command.arg("--root").arg(&self.state).args(words);
        command
    }

    /// Starts a container that stays.
    pub fn start(&self, id: &str) -> Result<(), String> {
        silent(self.command(&["run", "--detach", "--bundle"]).arg(&self.bundle).arg(id))
    }

    /// One program in a container that stays.
    pub fn exec(&self, id: &str) -> Result<(), String> {
        silent(&mut self.command(&["exec", id, "/bin/testbox", "true"]))
    }

    /// Ends a container that stays.
    pub fn delete(&self, id: &str) -> Result<(), String> {
        silent(&mut self.command(&["delete", "--force", id]))
    }

    /// One container to its end: output is not captured, as a pipe would be one thing more to wait for.
    pub fn run(&self, id: &str) -> Result<(), String> {
        let status = self
            .command(&["run", "--bundle"])
            .arg(&self.bundle)
            .arg(id)
            .stdin(Stdio::null())
            .status()
            .map_err(|error| format!("{} cannot be started: {error}", self.program))?;
        if status.success() { Ok(()) } else { Err(format!("{} run ended with {status}", self.program)) }
    }
}

/// A containerd of its own.
#[derive(Debug)]
pub struct Containerd {
    child: Child,
    socket: PathBuf,
    /// Whether the folder in which its shims and clients keep sockets, whatever its own roots, was there before it.
    shared: bool,
}

const SHARED: &str = "/run/containerd";

impl Containerd {
    pub fn start(scratch: &Path) -> Result<Option<Self>, String> {
        if !installed("containerd") || !installed("ctr") {
            return Ok(None);
        }
        let shared = Path::new(SHARED).exists();
        let home = scratch.join("containerd");
        fs::create_dir_all(&home).map_err(|error| format!("{}: {error}", home.display()))?;
        let socket = home.join("c.sock");
        let config = home.join("config.toml");
        let text = format!(
            "version = 2\noom_score = 0\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{1}\"\n[ttrpc]\naddress = \"{1}.ttrpc\"\n",
            home.display(),
            socket.display()
        );
        fs::write(&config, text).map_err(|error| format!("{}: {error}", config.display()))?;
        let log = fs::File::create(home.join("log")).map_err(|error| format!("{}: {error}", home.display()))?;
        let child = Command::new("containerd")
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| format!("containerd cannot be started: {error}"))?;
        let mut started = Self { child, socket, shared };
        let end = Instant::now() + Duration::from_secs(15);
        while let Err(error) = run(started.ctr().arg("version")) {
            if Instant::now() > end || !matches!(started.child.try_wait(), Ok(None)) {
                return Err(format!("containerd does not answer: {error}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Some(started))
    }

    fn ctr(&self) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&self.socket).args(["--namespace", "bench"]);
        command
    }

    /// Imports and unpacks an archive.
    pub fn import(&self, archive: &Path) -> Result<(), String> {
        run(self.ctr().args(["images", "import", "--base-name", "localhost/bench"]).arg(archive)).map(|_| ())
    }

    /// Removes an image and what was unpacked of it.
    pub fn remove_image(&self, reference: &str) -> Result<(), String> {
        run(self.ctr().args(["images", "rm", "--sync", reference])).map(|_| ())
    }

    /// One container to its end.
    pub fn run(&self, id: &str) -> Result<(), String> {
        let cgroup = format!("{}/ctr", cgroup_base());
        run(self.ctr().args(["run", "--rm", "--cgroup", &cgroup, ours::IMAGE, id, "/bin/testbox", "true"])).map(|_| ())
    }

    /// Starts a container that stays.
    pub fn start_staying(&self, id: &str) -> Result<(), String> {
        let cgroup = format!("{}/ctr-{id}", cgroup_base());
        let words = ["run", "--detach", "--cgroup", &cgroup, ours::IMAGE, id, "/bin/testbox", "hold"];
        silent(self.ctr().args(words))
    }

    /// One program in a container that stays; `exec` is its name there.
    pub fn exec(&self, id: &str, exec: &str) -> Result<(), String> {
        silent(self.ctr().args(["task", "exec", "--exec-id", exec, id, "/bin/testbox", "true"]))
    }

    /// Ends a container that stays.
    pub fn delete(&self, id: &str) -> Result<(), String> {
        run(self.ctr().args(["task", "rm", "--force", id]))?;
        run(self.ctr().args(["containers", "rm", id])).map(|_| ())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // SAFETY: the child has not been waited for, so the id is its own.
            unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
            let end = Instant::now() + Duration::from_secs(10);
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(20));
            }
            // nothing happens when it has ended
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if !self.shared {
            remove_empty(Path::new(SHARED));
        }
    }
}

/// podman with a storage of its own.
#[derive(Debug)]
pub struct Podman {
    home: PathBuf,
    config: PathBuf,
    /// Files and cgroups outside its storage that were not there before it.
    outside: Vec<PathBuf>,
}

impl Podman {
    pub fn new(scratch: &Path, archive: &Path) -> Result<Option<Self>, String> {
        if !installed("podman") || !installed("runc") {
            return Ok(None);
        }
        let home = scratch.join("podman");
        fs::create_dir_all(&home).map_err(|error| format!("{}: {error}", home.display()))?;
        let config = home.join("containers.conf");
        let text = "[containers]\ndefault_ulimits = [\"nofile=20000:20000\", \"nproc=30000:30000\"]\n\
                    [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n";
        fs::write(&config, text).map_err(|error| format!("{}: {error}", config.display()))?;
        let outside = std::iter::once(PathBuf::from("/dev/shm/libpod_lock"))
            .chain(hierarchies().all().map(|mount| mount.join("libpod_parent")))
            .filter(|path| !path.exists())
            .collect();
        let podman = Self { home, config, outside };
        run(podman.command(&["load", "--quiet", "--input"]).arg(archive))?;
        Ok(Some(podman))
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", &self.config);
        for (flag, folder) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(flag).arg(self.home.join(folder));
        }
        command.args(["--storage-driver", "overlay", "--runtime", "runc"]).args(words);
        command
    }

    /// One container to its end.
    pub fn run(&self) -> Result<(), String> {
        let words = ["run", "--rm", "--network", "none", ours::IMAGE, "/bin/testbox", "true"];
        run(&mut self.command(&words)).map(|_| ())
    }

    /// Starts a container that stays; all of them are removed in the end.
    pub fn start_staying(&self, name: &str) -> Result<(), String> {
        let words = ["run", "--detach", "--name", name, "--network", "none", ours::IMAGE, "/bin/testbox", "hold"];
        silent(&mut self.command(&words))
    }

    /// One program in a container that stays.
    pub fn exec(&self, name: &str) -> Result<(), String> {
        silent(&mut self.command(&["exec", name, "/bin/testbox", "true"]))
    }

    /// A pod of two containers: created, started, removed.
    pub fn pod(&self, name: &str) -> Result<(), String> {
        let result = (|| {
            run(&mut self.command(&["pod", "create", "--name", name, "--network", "none"]))?;
            for _ in 0..2 {
                run(&mut self.command(&["run", "--detach", "--pod", name, ours::IMAGE, "/bin/testbox", "hold"]))?;
            }
            Ok(())
        })();
        let removed = run(&mut self.command(&["pod", "rm", "--force", name])).map(|_| ());
        result.and(removed)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        for words in [["pod", "rm", "--force", "--all"], ["rm", "--force", "--all", "--volumes"]] {
            if let Err(error) = run(&mut self.command(&words)) {
                eprintln!("podman {}: {error}", words.join(" "));
            }
        }
        for path in &self.outside {
            if path.is_dir() {
                remove_empty(path);
            } else {
                // not made after all, then
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// Removes the cgroups of all peers.
pub fn remove_cgroups() {
    for mount in hierarchies().all() {
        remove_empty(&mount.join(cgroup_base().trim_start_matches('/')));
    }
}
