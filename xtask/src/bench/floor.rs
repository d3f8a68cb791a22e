//! The floor: the least that a host has to do for one isolated container, without an engine around it. What an engine
//! needs above this is its own.
//!
//! For each container, in this order:
//! - `mkdir` of a cgroup in the cgroup2 tree and in each of the v1 hierarchies cpu, cpuacct, cpuset, memory, devices,
//!   freezer, blkio and pids that are mounted (`cpuset.cpus` and `cpuset.mems` written, without which none can enter), and
//!   of the overlay's upper and work folders;
//! - `clone3` with new pid, mount, IPC, UTS, network and cgroup namespaces and `CLONE_INTO_CGROUP`;
//! - in the parent: its pid written to `cgroup.procs` of each v1 cgroup, one byte to let it go on;
//! - in the child: `mount` private; overlay; proc; a tmpfs at /dev with six device nodes and five links, devpts, a tmpfs at
//!   /dev/shm, mqueue; sysfs and the cgroup2 tree read-only; the usual masked paths (an empty read-only tmpfs over folders,
//!   /dev/null over files) and read-only paths of /proc; `pivot_root` and `umount2` of the old root; `sethostname`; `execve`;
//! - in the parent: `waitpid`, `rmdir` of the cgroups, removal of the overlay's folders.
//!
//! Left out on purpose, because an engine can prepare them once or they cost little: capabilities, seccomp, limits' values.
//! The network namespace has only its loopback.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::null;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::mounts::{Hierarchies, hierarchies};

/// Folders of /proc and /sys that are hidden, and files that are.
const HIDDEN_FOLDERS: &[&CStr] =
    &[c"proc/acpi", c"proc/asound", c"proc/scsi", c"sys/firmware", c"sys/devices/virtual/powercap"];
const HIDDEN_FILES: &[&CStr] =
    &[c"proc/kcore", c"proc/keys", c"proc/latency_stats", c"proc/timer_list", c"proc/timer_stats", c"proc/sched_debug"];
const READ_ONLY: &[&CStr] = &[c"proc/bus", c"proc/fs", c"proc/irq", c"proc/sys", c"proc/sysrq-trigger"];
const NODES: &[(&CStr, u32, u32)] = &[
    (c"dev/null", 1, 3),
    (c"dev/zero", 1, 5),
    (c"dev/full", 1, 7),
    (c"dev/random", 1, 8),
    (c"dev/urandom", 1, 9),
    (c"dev/tty", 5, 0),
];
const LINKS: &[(&CStr, &CStr)] = &[
    (c"/proc/self/fd", c"dev/fd"),
    (c"/proc/self/fd/0", c"dev/stdin"),
    (c"/proc/self/fd/1", c"dev/stdout"),
    (c"/proc/self/fd/2", c"dev/stderr"),
    (c"pts/ptmx", c"dev/ptmx"),
];

/// Containers so far, of all threads: each has a name of its own.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// What is the same for each container: prepared once.
#[derive(Debug)]
pub struct Floor {
    lower: PathBuf,
    work: PathBuf,
    program: Vec<CString>,
    hierarchies: Hierarchies,
    cpus: String,
    memory_nodes: String,
}

/// Wider than the `int` as which libc has it.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// struct `clone_args` of the kernel.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

fn text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::other("a path with a NUL byte"))
}

impl Floor {
    /// `lower` is an unpacked image that has the folders proc, sys and dev; `work` is a folder for what changes.
    pub fn new(lower: &Path, work: &Path, program: &[&str]) -> Result<Self, String> {
        let hierarchies = hierarchies();
        if hierarchies.unified.is_none() {
            return Err("no cgroup2 tree is mounted, which CLONE_INTO_CGROUP needs".to_owned());
        }
        let cpuset = hierarchies.v1.iter().find(|(name, _)| name == "cpuset").map(|(_, path)| path.clone());
        let read = |name: &str| {
            cpuset
                .as_ref()
                .and_then(|path| fs::read_to_string(path.join(name)).ok())
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        fs::create_dir_all(work.join("root")).map_err(|error| format!("{}: {error}", work.display()))?;
        let program = program.iter().map(|word| CString::new(*word)).collect::<Result<_, _>>();
        Ok(Self {
            lower: lower.to_owned(),
            work: work.to_owned(),
            program: program.map_err(|_| "a word of the program has a NUL byte".to_owned())?,
            cpus: read("cpuset.cpus"),
            memory_nodes: read("cpuset.mems"),
            hierarchies,
        })
    }

    /// Runs one container to its end.
    pub fn run(&self) -> Result<(), String> {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("agentd-floor-{}-{number}", std::process::id());
        let mut made = Vec::new();
        let result = self.contain(&name, &mut made).map_err(|error| format!("the floor program: {error}"));
        for cgroup in made {
            remove(&cgroup);
        }
        for folder in ["upper", "work"] {
            let path = self.work.join(format!("{name}-{folder}"));
            if let Err(error) = fs::remove_dir_all(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(format!("the floor program: {}: {error}", path.display()));
            }
        }
        result
    }

    fn contain(&self, name: &str, made: &mut Vec<PathBuf>) -> io::Result<()> {
        let unified = self.hierarchies.unified.as_deref().unwrap_or(Path::new("/")).join(name);
        fs::create_dir(&unified)?;
        made.push(unified.clone());
        let mut entrances = Vec::new();
        for (controller, mount) in &self.hierarchies.v1 {
            let path = mount.join(name);
            fs::create_dir(&path)?;
            made.push(path.clone());
            if controller == "cpuset" {
                fs::write(path.join("cpuset.cpus"), &self.cpus)?;
                fs::write(path.join("cpuset.mems"), &self.memory_nodes)?;
            }
            entrances.push(path.join("cgroup.procs"));
        }
        let (upper, work) = (self.work.join(format!("{name}-upper")), self.work.join(format!("{name}-work")));
        fs::create_dir(&upper)?;
        fs::create_dir(&work)?;
        let root = text(&self.work.join("root"))?;
        let options = CString::new(format!(
            "lowerdir={},upperdir={},workdir={}",
            self.lower.display(),
            upper.display(),
            work.display()
        ))
        .map_err(|_| io::Error::other("a path with a NUL byte"))?;
        let mut words: Vec<*const libc::c_char> = self.program.iter().map(|word| word.as_ptr()).collect();
        words.push(null());

        let (gate, mut open) = io::pipe()?;
        let (mut told, tell) = io::pipe()?;
        let cgroup = File::open(&unified)?;
        let arguments = CloneArguments {
            flags: (libc::CLONE_NEWPID
                | libc::CLONE_NEWNS
                | libc::CLONE_NEWIPC
                | libc::CLONE_NEWUTS
                | libc::CLONE_NEWNET
                | libc::CLONE_NEWCGROUP) as u64
                | CLONE_INTO_CGROUP,
            exit_signal: libc::SIGCHLD as u64,
            cgroup: cgroup.as_raw_fd() as u64,
            ..CloneArguments::default()
        };
        // SAFETY: the arguments are valid; the child has its own copy of this memory and only makes system calls.
        let child = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<CloneArguments>()) };
        if child < 0 {
            return Err(io::Error::last_os_error());
        }
        if child == 0 {
            become_container(gate.as_raw_fd(), tell.as_raw_fd(), &root, &options, &words);
        }
        drop(gate);
        drop(tell);
        let entered = entrances.iter().try_for_each(|path| fs::write(path, child.to_string()));
        // without its byte the child ends with an error, as it should when it could not be put where it belongs
        let released = entered.and_then(|()| open.write_all(b"x"));
        drop(open);
        let mut problem = [0; 8];
        let problem_bytes = told.read(&mut problem);
        let mut status = 0;
        // SAFETY: the child is this process's own and was not waited for.
        if unsafe { libc::waitpid(child as libc::pid_t, &raw mut status, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        released?;
        if problem_bytes? == problem.len() {
            let [step, code] =
                [0, 4].map(|at| i32::from_ne_bytes([problem[at], problem[at + 1], problem[at + 2], problem[at + 3]]));
            return Err(io::Error::other(format!("step {step}: {}", io::Error::from_raw_os_error(code))));
        }
        if status != 0 {
            return Err(io::Error::other(format!("the contained program ended with wait status {status}")));
        }
        Ok(())
    }
}

/// Removes a cgroup; its last process may still be on its way out.
fn remove(cgroup: &Path) {
    let end = Instant::now() + Duration::from_secs(1);
    while let Err(error) = fs::remove_dir(cgroup) {
        if error.kind() == io::ErrorKind::NotFound {
            return;
        }
        if Instant::now() > end {
            eprintln!("{} is left behind: {error}", cgroup.display());
            return;
        }
        std::thread::yield_now();
    }
}

/// A mount by its numbers and words.
fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: libc::c_ulong, data: Option<&CStr>) -> Result<(), i32> {
    let data = data.map_or(null(), |data| data.as_ptr().cast());
    // SAFETY: the texts end with NUL and outlive the call.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data) })
}

fn errno() -> i32 {
    // SAFETY: the location of errno is always valid.
    unsafe { *libc::__errno_location() }
}

fn check(result: i32) -> Result<(), i32> {
    if result < 0 { Err(errno()) } else { Ok(()) }
}

fn allow(result: Result<(), i32>, allowed: i32) -> Result<(), i32> {
    match result {
        Err(code) if code == allowed => Ok(()),
        other => other,
    }
}

/// The child: only system calls from here on, no allocation (another thread may have held the allocator's lock).
fn become_container(gate: RawFd, tell: RawFd, root: &CStr, options: &CStr, words: &[*const libc::c_char]) -> ! {
    let (step, code) = isolate(gate, root, options, words);
    let mut message = [0_u8; 8];
    message[..4].copy_from_slice(&step.to_ne_bytes());
    message[4..].copy_from_slice(&code.to_ne_bytes());
    // SAFETY: the message is valid for reading; _exit runs nothing else.
    unsafe {
        libc::write(tell, message.as_ptr().cast(), message.len());
        libc::_exit(1)
    }
}

/// Returns only on failure: the step's number and the error's.
fn isolate(gate: RawFd, root: &CStr, options: &CStr, words: &[*const libc::c_char]) -> (i32, i32) {
    let mut byte = 0_u8;
    // SAFETY: one byte may be written to `byte`.
    if unsafe { libc::read(gate, (&raw mut byte).cast(), 1) } != 1 {
        return (0, libc::EPIPE);
    }
    let mut step = 0;
    let result = (|| {
        let plain = libc::MS_NOSUID | libc::MS_NOEXEC | libc::MS_NODEV;
        step = 1;
        mount(c"none", c"/", c"", libc::MS_REC | libc::MS_PRIVATE, None)?;
        step = 2;
        mount(c"overlay", root, c"overlay", 0, Some(options))?;
        step = 3;
        // SAFETY: the text ends with NUL.
        check(unsafe { libc::chdir(root.as_ptr()) })?;
        mount(c"proc", c"proc", c"proc", plain, None)?;
        step = 4;
        mount(c"tmpfs", c"dev", c"tmpfs", libc::MS_NOSUID | libc::MS_STRICTATIME, Some(c"mode=755,size=64k"))?;
        for (path, major, minor) in NODES {
            // SAFETY: the text ends with NUL.
            check(unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(*major, *minor)) })?;
        }
        for (target, path) in LINKS {
            // SAFETY: both texts end with NUL.
            check(unsafe { libc::symlink(target.as_ptr(), path.as_ptr()) })?;
        }
        for folder in [c"dev/pts", c"dev/shm", c"dev/mqueue"] {
            // SAFETY: the text ends with NUL.
            check(unsafe { libc::mkdir(folder.as_ptr(), 0o755) })?;
        }
        step = 5;
        let noexec = libc::MS_NOSUID | libc::MS_NOEXEC;
        mount(c"devpts", c"dev/pts", c"devpts", noexec, Some(c"newinstance,ptmxmode=0666,mode=0620"))?;
        mount(c"shm", c"dev/shm", c"tmpfs", plain, Some(c"mode=1777,size=65536k"))?;
        mount(c"mqueue", c"dev/mqueue", c"mqueue", plain, None)?;
        step = 6;
        mount(c"sysfs", c"sys", c"sysfs", plain | libc::MS_RDONLY, None)?;
        mount(c"cgroup2", c"sys/fs/cgroup", c"cgroup2", plain | libc::MS_RDONLY, None)?;
        step = 7;
        for folder in HIDDEN_FOLDERS {
            allow(mount(c"tmpfs", folder, c"tmpfs", libc::MS_RDONLY, None), libc::ENOENT)?;
        }
        for file in HIDDEN_FILES {
            allow(mount(c"dev/null", file, c"", libc::MS_BIND, None), libc::ENOENT)?;
        }
        for path in READ_ONLY {
            allow(mount(path, path, c"", libc::MS_BIND | libc::MS_REC, None), libc::ENOENT)?;
            let flags = libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY | plain;
            allow(mount(path, path, c"", flags, None), libc::ENOENT)?;
        }
        step = 8;
        // SAFETY: the texts end with NUL, and the words' list ends with null.
        unsafe {
            check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) as i32)?;
            check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH))?;
            check(libc::chdir(c"/".as_ptr()))?;
            check(libc::sethostname(c"floor".as_ptr(), 5))?;
            step = 9;
            let environment = [c"PATH=/bin".as_ptr(), null()];
            check(libc::execve(words[0], words.as_ptr(), environment.as_ptr()))
        }
    })();
    (step, result.err().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_runs_contained_and_its_failure_is_told() {
        if !crate::elevate::is_root() {
            println!("skipped because namespaces and mounts need root");
            return;
        }
        if hierarchies().unified.is_none() {
            println!("skipped because no cgroup2 tree is mounted");
            return;
        }
        let parent = crate::bench::scratch_parent();
        let scratch = crate::daemon::Scratch::new(&parent, "floor-test").unwrap();
        let lower = scratch.path().join("lower");
        for folder in ["proc", "sys", "dev", "bin"] {
            fs::create_dir_all(lower.join(folder)).unwrap();
        }
        let program = agentd_testbox::program::build(&crate::workspace()).unwrap();
        fs::copy(program, lower.join("bin/testbox")).unwrap();
        let floor = Floor::new(&lower, &scratch.path().join("work"), &["/bin/testbox", "true"]).unwrap();
        floor.run().unwrap();
        let failing = Floor::new(&lower, &scratch.path().join("work2"), &["/bin/testbox", "false"]).unwrap();
        assert!(failing.run().unwrap_err().contains("wait status 256"));
        let missing = Floor::new(&lower, &scratch.path().join("work3"), &["/bin/none"]).unwrap();
        assert!(missing.run().unwrap_err().contains("step 9"));
        for mount in hierarchies().all() {
            let name = format!("agentd-floor-{}-0", std::process::id());
            assert!(!mount.join(name).exists());
        }
    }
}
