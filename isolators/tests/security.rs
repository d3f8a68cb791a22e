//! The seccomp filter and the device guard, tried against the running kernel.
//!
//! Each trial runs in a process of its own: the test binary starts itself again with the name of the trial in the
//! environment, so that a filter or a cgroup does not stay on the test runner.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use agentd_api::pod::SeccompChoice;
use agentd_ebpf::device::{self, Access, Program, Rule};
use agentd_isolators::capabilities::{self, HostCapabilities};
use agentd_isolators::devices::Devices;
use agentd_isolators::seccomp::Seccomp;
use agentd_launcher::plan::DeviceNode;

const TRIAL: &str = "AGENTD_SECURITY_TRIAL";
const ARGUMENT: &str = "AGENTD_SECURITY_ARGUMENT";

/// Runs a trial in a new process: its lines `name=value`, and how it ended.
fn in_new_process(trial: &str, argument: &Path) -> (BTreeMap<String, i64>, ExitStatus) {
    let output = Command::new(std::env::current_exe().expect("own path"))
        .args(["--exact", "trial", "--nocapture", "--test-threads=1"])
        .env(TRIAL, trial)
        .env(ARGUMENT, argument)
        .output()
        .expect("started");
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text
        .lines()
        .filter_map(|line| line.strip_prefix('@')?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.parse().expect("a number")))
        .collect();
    (lines, output.status)
}

/// Reports one result of a trial, by a bare write so that nothing but the call at hand is tried.
fn report(name: &str, value: i64) {
    let line = format!("\n@{name}={value}\n");
    // SAFETY: the text is borrowed and given with its length.
    unsafe { libc::write(1, line.as_ptr().cast(), line.len()) };
}

/// Makes a system call; 0 or above, or the negative error number.
fn call(number: libc::c_long, with: [u64; 6]) -> i64 {
    // SAFETY: the trials below pass numbers, null pointers and addresses of live local values only.
    let answer = unsafe { libc::syscall(number, with[0], with[1], with[2], with[3], with[4], with[5]) };
    if answer < 0 { -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { answer }
}

/// Ends the trial at once, passing by the test runner's own ending.
fn finish() -> ! {
    // SAFETY: ending the process is what is meant.
    unsafe { libc::_exit(0) }
}

/// Entry of the new processes; does nothing in an ordinary run of the tests.
#[test]
fn trial() {
    let Ok(trial) = std::env::var(TRIAL) else {
        return;
    };
    let argument = PathBuf::from(std::env::var_os(ARGUMENT).unwrap_or_default());
    match trial.as_str() {
        "seccomp-default" => seccomp_default(),
        "seccomp-i386" => seccomp_i386(),
        "seccomp-file" => seccomp_file(&argument),
        "guard-attach" => guard_attach(&argument),
        "guard-open" => guard_open(&argument),
        other => panic!("no trial {other}"),
    }
    finish();
}

fn host() -> HostCapabilities {
    HostCapabilities::read().expect("own capabilities")
}

/// Puts filters on this thread as the launcher does.
fn install(filters: &[Vec<u8>]) {
    // SAFETY: sets a flag of this thread.
    let answer = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(answer, 0, "no_new_privs");
    for filter in filters {
        let instructions: Vec<libc::sock_filter> = filter
            .chunks_exact(8)
            .map(|i| libc::sock_filter {
                code: u16::from_ne_bytes([i[0], i[1]]),
                jt: i[2],
                jf: i[3],
                k: u32::from_ne_bytes([i[4], i[5], i[6], i[7]]),
            })
            .collect();
        let mut instructions = instructions;
        let program = libc::sock_fprog { len: instructions.len() as u16, filter: instructions.as_mut_ptr() };
        let before = std::time::Instant::now();
        // SAFETY: the program points to instructions that live until after the call, with their number.
        let answer = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
        assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
        report("load_us", before.elapsed().as_micros() as i64);
        report("instructions", instructions.len() as i64);
    }
}

fn default_filters() -> Vec<Vec<u8>> {
    let seccomp = Seccomp::new("/nonexistent", host());
    seccomp.filters(&SeccompChoice::Default, capabilities::default_mask()).expect("filters").to_vec()
}

fn run_true() -> i64 {
    let path = CString::new("/bin/true").expect("no NUL");
    let arguments = [path.as_ptr(), std::ptr::null()];
    // SAFETY: the child does nothing but exec or exit, with values made before the fork.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: path and arguments are NUL-terminated and live; exec does not return on success.
        unsafe {
            libc::execv(path.as_ptr(), arguments.as_ptr());
            libc::_exit(77);
        }
    }
    let mut status = -1;
    // SAFETY: waits for the child just made, into a local variable.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    i64::from(status)
}

fn seccomp_default() {
    let filters = default_filters();
    install(&filters);
    let path = CString::new("/dev/null").expect("no NUL");
    let at = |name: &str, number: libc::c_long, arguments: [u64; 6]| report(name, call(number, arguments));
    at("openat", libc::SYS_openat, [libc::AT_FDCWD as u64, path.as_ptr() as u64, 0, 0, 0, 0]);
    let mut bytes = [0u8; 8];
    at("getrandom", libc::SYS_getrandom, [bytes.as_mut_ptr() as u64, 8, 0, 0, 0, 0]);
    at("getpid", libc::SYS_getpid, [0; 6]);
    report("mmap", i64::from(vec![1u8; 1 << 22].iter().all(|b| *b == 1)));
    report("thread", std::thread::spawn(|| 42).join().unwrap_or(-1));
    report("exec", run_true());
    at("mount", libc::SYS_mount, [0; 6]);
    at("umount2", libc::SYS_umount2, [path.as_ptr() as u64, 0, 0, 0, 0, 0]);
    at("unshare", libc::SYS_unshare, [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0]);
    at("setns", libc::SYS_setns, [u64::MAX, 0, 0, 0, 0, 0]);
    at("bpf", libc::SYS_bpf, [99, 0, 0, 0, 0, 0]);
    at("keyctl", libc::SYS_keyctl, [0; 6]);
    at("add_key", libc::SYS_add_key, [0; 6]);
    at("request_key", libc::SYS_request_key, [0; 6]);
    at("kexec_load", libc::SYS_kexec_load, [0; 6]);
    at("init_module", libc::SYS_init_module, [0; 6]);
    at("perf_event_open", libc::SYS_perf_event_open, [0; 6]);
    at("userfaultfd", libc::SYS_userfaultfd, [0; 6]);
    at("io_uring_setup", libc::SYS_io_uring_setup, [0; 6]);
    at("open_by_handle_at", libc::SYS_open_by_handle_at, [0; 6]);
    at("pivot_root", libc::SYS_pivot_root, [0; 6]);
    at("clone3", libc::SYS_clone3, [0; 6]);
    at("clone_newuser", libc::SYS_clone, [(libc::CLONE_NEWUSER | libc::SIGCHLD) as u64, 0, 0, 0, 0, 0]);
    at("ptrace", libc::SYS_ptrace, [u64::from(libc::PTRACE_PEEKDATA), 1 << 21, 0, 0, 0, 0]);
    at("socket_vsock", libc::SYS_socket, [40, 1, 0, 0, 0, 0]);
    at("socket_vsock_high", libc::SYS_socket, [0x1_0000_0028, 1, 0, 0, 0, 0]);
    at("socket_alg", libc::SYS_socket, [38, 5, 0, 0, 0, 0]);
    at("socket_unix", libc::SYS_socket, [1, 1, 0, 0, 0, 0]);
    at("personality_ask", libc::SYS_personality, [0xFFFF_FFFF, 0, 0, 0, 0, 0]);
    at("personality_norandom", libc::SYS_personality, [0x0004_0000, 0, 0, 0, 0, 0]);
    at("ioctl_tiocsti", libc::SYS_ioctl, [0, 0x5412, 0, 0, 0, 0]);
    at("ioctl_tiocgwinsz", libc::SYS_ioctl, [u64::MAX, 0x5413, 0, 0, 0, 0]);
    at("unknown", 1000, [0; 6]);
    if cfg!(target_arch = "x86_64") {
        at("x32_getpid", 0x4000_0000 | libc::SYS_getpid, [0; 6]);
    }
}

fn seccomp_i386() {
    install(&default_filters());
    report("before", 1);
    #[cfg(target_arch = "x86_64")]
    {
        let mut answer: i64 = 20; // getpid there, writev here
        // SAFETY: a 32-bit getpid takes no arguments and touches no memory; the registers that it may change are named.
        unsafe {
            std::arch::asm!("int 0x80", inlateout("rax") answer, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
        }
        report("int80", answer);
    }
}

fn seccomp_file(folder: &Path) {
    let seccomp = Seccomp::new(folder, host());
    let filters = seccomp.filters(&SeccompChoice::Profile("own".to_owned()), 0).expect("compiles");
    install(&filters);
    report("getpid", call(libc::SYS_getpid, [0; 6]));
    report("getppid", call(libc::SYS_getppid, [0; 6]));
    report("socket_unix", call(libc::SYS_socket, [1, 1, 0, 0, 0, 0]));
    report("socket_inet", call(libc::SYS_socket, [2, 1, 0, 0, 0, 0]));
}

#[test]
fn the_default_filter_lets_programs_run_and_keeps_them_in() {
    let (got, status) = in_new_process("seccomp-default", Path::new(""));
    assert!(status.success(), "{status} {got:?}");
    for name in ["openat", "getpid", "socket_unix", "personality_ask"] {
        assert!(got[name] >= 0, "{name}: {}", got[name]);
    }
    assert_eq!((got["getrandom"], got["mmap"], got["thread"], got["exec"]), (8, 1, 42, 0));
    for name in [
        "mount",
        "umount2",
        "unshare",
        "setns",
        "bpf",
        "keyctl",
        "add_key",
        "request_key",
        "kexec_load",
        "init_module",
        "perf_event_open",
        "userfaultfd",
        "io_uring_setup",
        "open_by_handle_at",
        "pivot_root",
        "clone_newuser",
        "socket_vsock",
        "socket_vsock_high",
        "socket_alg",
        "personality_norandom",
        "ioctl_tiocsti",
    ] {
        assert_eq!(got[name], -i64::from(libc::EPERM), "{name}");
    }
    assert_eq!(got["clone3"], -i64::from(libc::ENOSYS));
    assert_eq!(got["unknown"], -i64::from(libc::ENOSYS));
    assert_eq!(got["ptrace"], -i64::from(libc::ESRCH), "ptrace passes the filter; there is no such process");
    assert_eq!(got["ioctl_tiocgwinsz"], -i64::from(libc::EBADF), "other commands reach the kernel");
    if cfg!(target_arch = "x86_64") {
        assert_eq!(got["x32_getpid"], -i64::from(libc::EPERM));
    }
    println!("{} instructions, loaded in {} µs", got["instructions"], got["load_us"]);
}

#[test]
fn calls_of_the_32_bit_abi_end_the_process() {
    if !cfg!(target_arch = "x86_64") {
        println!("skipped because only x86_64 has a second ABI in one process");
        return;
    }
    let (got, status) = in_new_process("seccomp-i386", Path::new(""));
    assert_eq!(got.get("before"), Some(&1));
    assert_eq!(got.get("int80"), None);
    // a kernel without 32-bit support raises SIGSEGV by itself
    assert!(matches!(status.signal(), Some(libc::SIGSYS | libc::SIGSEGV)), "{status}");
}

#[test]
fn a_profile_from_a_file_decides_by_its_own_rules() {
    let folder = tempfile::tempdir().expect("folder");
    fs::write(
        folder.path().join("own.json"),
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97,
             "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_NE"}]}]}"#,
    )
    .expect("written");
    let (got, status) = in_new_process("seccomp-file", folder.path());
    assert!(status.success(), "{status} {got:?}");
    assert!(got["getpid"] > 0);
    assert_eq!(got["getppid"], -95);
    assert!(got["socket_unix"] >= 0);
    assert_eq!(got["socket_inet"], -97);
}

/// A cgroup2 directory of this test; removed at the end.
struct TestCgroup(PathBuf);

impl TestCgroup {
    /// None, with the reason printed, where this host does not let tests make one.
    fn new(name: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let root = mounts.lines().find_map(|line| {
            let mut words = line.split(' ');
            let (path, kind) = (words.nth(1)?, words.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(path))
        });
        let Some(root) = root else {
            println!("skipped because there is no cgroup2 tree");
            return None;
        };
        let path = root.join(format!("agentd-test-{}-{name}", std::process::id()));
        match fs::create_dir(&path) {
            Ok(()) => Some(Self(path)),
            Err(e) => {
                println!("skipped because no cgroup can be made below {}: {e}", root.display());
                None
            }
        }
    }

    fn open(&self) -> OwnedFd {
        fs::File::open(&self.0).expect("opened").into()
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

fn nodes(list: &[(&str, u32, u32)]) -> Vec<DeviceNode> {
    list.iter()
        .map(|(name, major, minor)| DeviceNode { name: (*name).to_owned(), major: *major, minor: *minor, mode: 0o666 })
        .collect()
}

fn guard_attach(cgroup: &Path) {
    let directory = OwnedFd::from(fs::File::open(cgroup).expect("opened"));
    let program = Program::load(&[Rule::character(1, Some(3), Access::ALL)]).expect("loaded");
    program.attach(directory.as_fd()).expect("attached");
    report("attached", 1);
}

/// Moves this process into the cgroup and tries devices.
fn guard_open(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), "0").expect("moved");
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("folder");
    let open = |path: &Path| match fs::File::open(path) {
        Ok(_) => 0,
        Err(e) => -i64::from(e.raw_os_error().unwrap_or(0)),
    };
    report("null", open(Path::new("/dev/null")));
    report("zero", open(Path::new("/dev/zero")));
    for (name, major, minor) in [("made_null", 1, 3), ("made_195", 195, 0), ("made_zero", 1, 5)] {
        let path = folder.path().join(name);
        let text = CString::new(path.to_str().expect("text")).expect("no NUL");
        // SAFETY: the path is NUL-terminated and lives until after the call.
        let answer = unsafe { libc::mknod(text.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(major, minor)) };
        let made = if answer < 0 { -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { 0 };
        report(name, made);
        if made == 0 {
            report(&format!("{name}_open"), open(&path));
        }
    }
    // an ordinary file and a FIFO are no devices
    let fifo = CString::new(folder.path().join("fifo").to_str().expect("text")).expect("no NUL");
    // SAFETY: the path is NUL-terminated and lives until after the call.
    report("fifo", i64::from(unsafe { libc::mknod(fifo.as_ptr(), libc::S_IFIFO | 0o666, 0) }));
    drop(folder);
}

fn usable(isolator: &Devices) -> bool {
    use agentd_isolators::Isolator;
    let mut found = Vec::new();
    let pod = serde_json::from_value(serde_json::json!({
        "id": "/test",
        "containers": [{"name": "one", "resources": {"cpus": 0.1, "mem": 32.0, "disk": 0.0, "gpus": 0}}],
    }))
    .expect("a pod");
    isolator.check(&pod, &mut found);
    if let Some(reason) = found.first() {
        println!("skipped because {reason}");
    }
    found.is_empty()
}

const EPERM: i64 = -(libc::EPERM as i64);
const ENXIO: i64 = -(libc::ENXIO as i64);

#[test]
fn the_device_guard_allows_its_nodes_and_no_others() {
    let Some(cgroup) = TestCgroup::new("guard") else {
        return;
    };
    let directory = cgroup.open();
    let isolator = Devices::new(directory.as_fd());
    if !usable(&isolator) {
        return;
    }
    let few = nodes(&[("null", 1, 3)]);
    let before = std::time::Instant::now();
    isolator.guard(directory.as_fd(), &few).expect("attached");
    println!("loaded and attached in {} µs", before.elapsed().as_micros());
    let (got, status) = in_new_process("guard-open", &cgroup.0);
    assert!(status.success(), "{status} {got:?}");
    assert_eq!((got["null"], got["made_null"], got["made_null_open"], got["fifo"]), (0, 0, 0, 0));
    assert_eq!((got["zero"], got["made_zero"], got["made_195"]), (EPERM, EPERM, EPERM));

    // the same again changes nothing, another set takes its place
    let first = device::query(directory.as_fd()).expect("listed");
    isolator.guard(directory.as_fd(), &few).expect("attached");
    assert_eq!(device::query(directory.as_fd()).expect("listed"), first);
    let more = nodes(&[("null", 1, 3), ("nvidia0", 195, 0)]);
    isolator.guard(directory.as_fd(), &more).expect("attached");
    let second = device::query(directory.as_fd()).expect("listed");
    assert_eq!(second.len(), 1);
    assert_ne!(second, first);
    let (got, _) = in_new_process("guard-open", &cgroup.0);
    assert_eq!((got["null"], got["zero"], got["made_195"]), (0, EPERM, 0));
    assert!(matches!(got["made_195_open"], 0 | ENXIO), "without a driver there is no device: {got:?}");

    // a daemon that was started anew knows its guard again
    let restarted = Devices::new(directory.as_fd());
    restarted.guard(directory.as_fd(), &more).expect("attached");
    assert_eq!(device::query(directory.as_fd()).expect("listed"), second);

    device::detach(directory.as_fd()).expect("detached");
    device::detach(directory.as_fd()).expect("nothing left to detach");
    assert_eq!(device::query(directory.as_fd()).expect("listed"), Vec::<u32>::new());
    let (got, _) = in_new_process("guard-open", &cgroup.0);
    assert_eq!(got["zero"], 0);
}

#[test]
fn the_device_guard_outlives_the_process_that_attached_it() {
    let Some(cgroup) = TestCgroup::new("outlives") else {
        return;
    };
    let directory = cgroup.open();
    if !usable(&Devices::new(directory.as_fd())) {
        return;
    }
    let (got, status) = in_new_process("guard-attach", &cgroup.0);
    assert!(status.success() && got.get("attached") == Some(&1), "{status} {got:?}");
    assert_eq!(device::query(directory.as_fd()).expect("listed").len(), 1);
    let (got, _) = in_new_process("guard-open", &cgroup.0);
    assert_eq!((got["null"], got["zero"]), (0, EPERM), "{got:?}");
}

#[test]
fn attaching_a_guard_is_cheap() {
    let Some(cgroup) = TestCgroup::new("cheap") else {
        return;
    };
    let isolator = Devices::new(cgroup.open().as_fd());
    if !usable(&isolator) {
        return;
    }
    let list = nodes(&[("null", 1, 3)]);
    isolator.guard(cgroup.open().as_fd(), &list).expect("attached");
    let mut times = Vec::new();
    for n in 0..20 {
        let path = cgroup.0.join(format!("c{n}"));
        fs::create_dir(&path).expect("made");
        let directory = OwnedFd::from(fs::File::open(&path).expect("opened"));
        let before = std::time::Instant::now();
        isolator.guard(directory.as_fd(), &list).expect("attached");
        times.push(before.elapsed());
        fs::remove_dir(&path).expect("removed");
    }
    times.sort_unstable();
    println!("attached in {} µs (median of {})", times[times.len() / 2].as_micros(), times.len());
    assert!(times[times.len() / 2].as_millis() < 20, "{times:?}");
}
