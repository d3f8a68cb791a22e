//! Processes, threads, descriptors: `cgroup.procs` of the directories below the container's cgroup2 directory, and `/proc`.

use std::fmt::Write;
use std::mem::MaybeUninit;

use rustix::fs::{AtFlags, FileType, RawDir};

use super::files::{Buffer, Directory};

/// How deep cgroups that a container made inside its own are looked into.
const DEEPEST: u32 = 8;

/// Bounds on what is looked at of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Most cgroups whose processes are listed.
    pub cgroups: usize,
    /// Most processes whose descriptors are counted.
    pub processes: usize,
    /// Most descriptors, of all processes of a container, that are looked at to tell which are sockets. A look costs 2 to 4
    /// µs, so by default there is none: the sockets of a pod are told by its network namespace.
    pub descriptors: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { cgroups: 256, processes: 32, descriptors: 0 }
    }
}

/// Processes of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tasks {
    /// Processes, those of sessions in the container included.
    pub processes: Option<u64>,
    /// Threads; none on a host without the `pids` controller.
    pub threads: Option<u64>,
    /// Open descriptors of the processes that were looked at.
    pub descriptors: Option<u64>,
    /// How many of them are sockets; none if there were more descriptors than [`Bounds`] lets look at.
    pub sockets: Option<u64>,
    /// Processes beyond [`Bounds`], whose descriptors are missing.
    pub unseen: u64,
}

/// What is used again for each container.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    proc: Option<Directory>,
    path: String,
    pids: Vec<u32>,
}

/// Processes found so far.
struct Found<'a> {
    bounds: Bounds,
    cgroups: usize,
    processes: u64,
    pids: &'a mut Vec<u32>,
}

impl Tasks {
    /// Reads the processes below a container's cgroup2 directory.
    pub(super) fn read(buffer: &mut Buffer, scratch: &mut Scratch, container: &Directory, bounds: Bounds) -> Self {
        scratch.pids.clear();
        let mut found = Found { bounds, cgroups: 0, processes: 0, pids: &mut scratch.pids };
        // Nearly always: one directory `init`, and none below it.
        let only = (container.children() == Some(1)).then(|| container.child(c"init")).flatten();
        found.visit(buffer, only.as_ref().unwrap_or(container), 0);
        let (processes, seen) = (found.processes, found.pids.len() as u64);
        let mut tasks = Self { processes: Some(processes), unseen: processes - seen, ..Self::default() };
        scratch.count(&mut tasks, bounds.descriptors);
        tasks
    }
}

impl Found<'_> {
    /// Lists the processes of a cgroup and of those below it.
    fn visit(&mut self, buffer: &mut Buffer, directory: &Directory, depth: u32) {
        if self.cgroups >= self.bounds.cgroups {
            return;
        }
        self.cgroups += 1;
        // A threaded cgroup has no list; its processes are in the list above it.
        if let Some(text) = buffer.read(directory, c"cgroup.procs") {
            self.take(text);
        }
        if depth < DEEPEST && directory.children() != Some(0) {
            for name in children(directory) {
                if let Some(child) = directory.child(&*name) {
                    self.visit(buffer, &child, depth + 1);
                }
            }
        }
    }

    fn take(&mut self, text: &str) {
        for pid in text.lines().filter_map(|line| line.parse::<u32>().ok()) {
            self.processes += 1;
            if self.pids.len() < self.bounds.processes {
                self.pids.push(pid);
            }
        }
    }
}

/// Names of the directories in a directory.
fn children(directory: &Directory) -> Vec<std::ffi::CString> {
    let mut names = Vec::new();
    let Some(own) = directory.child(c".") else { return names };
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(own, &mut buffer);
    while let Some(Ok(entry)) = entries.next() {
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    names
}

impl Scratch {
    /// Counts the descriptors of the listed processes; one that has ended meanwhile has none.
    fn count(&mut self, tasks: &mut Tasks, most: u64) {
        let Self { proc, path, pids } = self;
        if proc.is_none() {
            *proc = Directory::open("/proc".as_ref());
        }
        let Some(proc) = proc else { return };
        let mut descriptors = 0_u64;
        for pid in pids.iter() {
            let path = folder_of(path, *pid);
            // Since Linux 6.2 the size is the number of descriptors; before, it is 0.
            let size = rustix::fs::statat(&proc, path, AtFlags::empty()).map_or(0, |stat| stat.st_size);
            descriptors += match u64::try_from(size) {
                Ok(0) | Err(_) => proc.child(path).map_or(0, |folder| entries(&folder, |_| true)),
                Ok(size) => size,
            };
        }
        tasks.descriptors = Some(descriptors);
        if descriptors <= most && tasks.unseen == 0 {
            let sockets = |pid: &u32| {
                let Some(folder) = proc.child(folder_of(path, *pid)) else { return 0 };
                entries(&folder, |name| {
                    let mut target = [0_u8; 8];
                    let length = rustix::fs::readlinkat_raw(&folder, name, &mut target[..]).unwrap_or(0);
                    target[..length].starts_with(b"socket:")
                })
            };
            tasks.sockets = Some(pids.iter().map(sockets).sum());
        }
    }
}

/// The folder of a process's descriptors, below `/proc`.
fn folder_of(path: &mut String, pid: u32) -> &str {
    path.clear();
    // writing to a string cannot fail
    let _ = write!(path, "{pid}/fd");
    path
}

/// How many entries of a folder of descriptors are wanted.
fn entries(folder: &Directory, wanted: impl Fn(&std::ffi::CStr) -> bool) -> u64 {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(folder, &mut buffer);
    let mut count = 0;
    while let Some(Ok(entry)) = entries.next() {
        let name = entry.file_name();
        if name.to_bytes().first() != Some(&b'.') && wanted(name) {
            count += 1;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process with known descriptors: the three standard ones, and the pipe and sockets that it is given.
    struct Sleeper(Child);

    impl Sleeper {
        fn new() -> Self {
            let mut command = Command::new("sleep");
            command.arg("600").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            Self(command.spawn().unwrap())
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn with_pids(pids: Vec<u32>) -> Scratch {
        Scratch { pids, ..Scratch::default() }
    }

    #[test]
    fn lists_are_counted_beyond_the_bound() {
        let mut pids = Vec::new();
        let bounds = Bounds { processes: 2, ..Bounds::default() };
        let mut found = Found { bounds, cgroups: 0, processes: 0, pids: &mut pids };
        found.take("1\n22\nx\n-4\n333\n\n");
        found.take("0\n");
        assert_eq!((found.processes, pids), (4, vec![1, 22]));
    }

    #[test]
    fn descriptors_and_sockets_of_a_process_are_counted() {
        let own = std::process::id();
        let before = {
            let mut tasks = Tasks::default();
            with_pids(vec![own]).count(&mut tasks, u64::MAX);
            tasks
        };
        // Other tests of this process open and close files meanwhile, but none opens forty sockets.
        let listeners: Vec<_> = (0..40).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let mut tasks = Tasks::default();
        with_pids(vec![own]).count(&mut tasks, u64::MAX);
        let grown = tasks.sockets.unwrap() - before.sockets.unwrap();
        assert!((40..60).contains(&grown), "{before:?} {tasks:?}");
        assert!(tasks.descriptors.unwrap() >= tasks.sockets.unwrap() + 3);
        drop(listeners);

        let sleeper = Sleeper::new();
        let pid = sleeper.0.id();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        // until it has begun its program, it holds what this process holds
        while std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap() != "sleep\n" {
            assert!(std::time::Instant::now() < deadline, "process {pid} has not begun");
            std::thread::yield_now();
        }
        // the three standard ones, and what this process itself was left with
        let held = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64;
        assert!(held >= 3);
        for times in [1, 2] {
            let mut tasks = Tasks::default();
            with_pids(vec![pid; times]).count(&mut tasks, 2 * held);
            assert_eq!((tasks.descriptors, tasks.sockets), (Some(held * times as u64), Some(0)));
        }
        let mut tasks = Tasks::default();
        with_pids(vec![pid, u32::MAX]).count(&mut tasks, held - 1);
        assert_eq!((tasks.descriptors, tasks.sockets), (Some(held), None), "too many to look at; one that has ended");
        let mut tasks = Tasks { unseen: 1, ..Tasks::default() };
        with_pids(vec![pid]).count(&mut tasks, u64::MAX);
        assert_eq!(tasks.sockets, None, "a part would look like the whole");
    }

    #[test]
    fn cgroups_below_are_visited_to_a_depth() {
        let folder = tempfile::tempdir().unwrap();
        let mut path = folder.path().to_owned();
        for depth in 0..=12 {
            std::fs::write(path.join("cgroup.procs"), format!("{}\n", 4_000_000_000_u32 + depth)).unwrap();
            path.push("below");
            std::fs::create_dir(&path).unwrap();
        }
        let directory = Directory::open(folder.path()).unwrap();
        let (mut buffer, mut scratch) = (Buffer::default(), Scratch::default());
        let tasks = Tasks::read(&mut buffer, &mut scratch, &directory, Bounds::default());
        assert_eq!((tasks.processes, tasks.unseen), (Some(u64::from(DEEPEST) + 1), 0));
        assert_eq!((tasks.descriptors, tasks.sockets), (Some(0), Some(0)), "no such processes");
        let bounds = Bounds { cgroups: 3, processes: 1, ..Bounds::default() };
        let tasks = Tasks::read(&mut buffer, &mut scratch, &directory, bounds);
        assert_eq!((tasks.processes, tasks.unseen, tasks.sockets), (Some(3), 2, None));
    }
}
