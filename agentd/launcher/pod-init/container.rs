//! What a spare does once it has its plan: become the container's first process.
//!
//! Order matters: namespaces, mounts, pivot, standard streams, limits, user namespace, capabilities, ids, working
//! directory, `no_new_privs`, seccomp, exec. Until exec the process is non-dumpable and every descriptor but its
//! standard three is close-on-exec. Each failure names its step and goes back over the socket.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use agentd_launcher::message::{Ended, Reply};
use agentd_launcher::plan::ContainerPlan;
use agentd_launcher::socket;

use crate::mounts;
use crate::sys::{self, Failure, Step, check, failed, refused};

/// Process 1 of a shared pid namespace: no descriptors, nothing to do but reap.
pub fn pause() -> ! {
    sys::close_all_but(0, &[]);
    // SAFETY: SIG_IGN on SIGCHLD makes the kernel reap; pause sleeps until a signal.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        loop {
            libc::pause();
        }
    }
}

/// The running container that a process joins.
#[derive(Clone, Copy)]
pub struct Joined<'a> {
    /// Its first process, whose namespaces are entered.
    pub target: BorrowedFd<'a>,
    /// pod-init, whose mounts a debug container starts from.
    pub launcher: BorrowedFd<'a>,
}

/// Waits for the plan, carries it out, and never returns.
pub fn wait_for_plan(socket: &OwnedFd) -> ! {
    let mut head = [0; HEAD];
    match socket::receive(socket.as_fd(), &mut head, true) {
        Ok((0, _)) => sys::exit(0),
        Ok((_, fds)) => carry_out(socket, None, head, fds),
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(0);
            give_up(socket, Failure { stage: "receive the plan".to_owned(), errno })
        }
    }
}

/// Carries a plan out, and never returns. `fds`: the plan's memfd, the standard streams that `head` tells of, and what the
/// plan names.
pub fn carry_out(socket: &OwnedFd, joined: Option<Joined<'_>>, head: [u8; HEAD], fds: Vec<OwnedFd>) -> ! {
    match become_container(socket, joined, streams_of(head), fds) {
        Ok(never) => match never {},
        Err(failure) => give_up(socket, failure),
    }
}

/// How a process ends that has told what failed. Its program may end so, too.
pub const GIVEN_UP: Ended = Ended::Code(127);

/// Tells pod-init what failed, and ends.
pub fn give_up(socket: &OwnedFd, Failure { stage, errno }: Failure) -> ! {
    let _ = socket::send(socket.as_fd(), &Reply::Failed { stage, errno }.encode(0), &[], true);
    sys::exit(127)
}

/// Length of what stands before the descriptors of a plan.
pub const HEAD: usize = 8;

/// The head for descriptors of the standard streams: two with `/dev/null` as input, or three.
pub fn given_head(all: bool) -> [u8; HEAD] {
    [u8::from(all), 0, 0, 0, 0, 0, 0, 0]
}

/// The head for a new terminal.
pub fn terminal_head(rows: u16, columns: u16) -> [u8; HEAD] {
    let ([a, b], [c, d]) = (rows.to_ne_bytes(), columns.to_ne_bytes());
    [2, a, b, c, d, 0, 0, 0]
}

/// What the head of the message with the plan says of the standard streams.
#[derive(Clone, Copy)]
enum Streams {
    /// Descriptors come with the plan, so many of them.
    Given(usize),
    /// A new terminal of this size.
    Terminal(libc::winsize),
}

fn streams_of(head: [u8; HEAD]) -> Streams {
    match head[0] {
        0 => Streams::Given(2),
        1 => Streams::Given(3),
        _ => Streams::Terminal(libc::winsize {
            ws_row: u16::from_ne_bytes([head[1], head[2]]),
            ws_col: u16::from_ne_bytes([head[3], head[4]]),
            ws_xpixel: 0,
            ws_ypixel: 0,
        }),
    }
}

fn become_container(
    socket: &OwnedFd,
    joined: Option<Joined<'_>>,
    streams: Streams,
    fds: Vec<OwnedFd>,
) -> Step<std::convert::Infallible> {
    let mut fds = fds.into_iter();
    let memory = fds.next().ok_or_else(|| refused("the plan is missing"))?;
    let given = if let Streams::Given(count) = streams { count } else { 0 };
    let ends: Vec<OwnedFd> = fds.by_ref().take(given).collect();
    if ends.len() != given {
        return Err(refused("standard streams are missing"));
    }
    let fds: Vec<OwnedFd> = fds.collect();
    let plan = ContainerPlan::decode(&read_all(&memory)?).map_err(|e| refused(e.to_string()))?;
    drop(memory);
    if let Some(joined) = joined {
        let tree = if plan.target.is_some() { Some(stand_beside(joined)?) } else { None };
        join(joined, &plan)?;
        if tree.is_some() {
            mounts::build(&plan, &fds, tree.as_ref())?;
        }
    } else {
        if let Some(index) = plan.network_namespace {
            sys::setns(descriptor(&fds, index)?, libc::CLONE_NEWNET, "enter the network namespace")?;
        }
        sys::unshare(libc::CLONE_NEWCGROUP, "unshare the cgroup namespace")?;
        mounts::build(&plan, &fds, None)?;
    }
    if given > 0 {
        standard_streams(ends)?;
    }
    // SAFETY: marks every descriptor from 3 on close-on-exec; CLOSE_RANGE_CLOEXEC is 4.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 4) }, "close_range")?;
    oom_score(plan.oom_score_adj)?;
    for limit in &plan.rlimits {
        let value = libc::rlimit64 { rlim_cur: limit.soft, rlim_max: limit.hard };
        // SAFETY: value is live.
        let r = unsafe { libc::prlimit64(0, limit.resource as _, &raw const value, std::ptr::null_mut()) };
        check(libc::c_long::from(r), &format!("set resource limit {}", limit.resource))?;
    }
    // SAFETY: plain calls without pointers.
    unsafe {
        libc::setsid();
        libc::umask(plan.umask);
    }
    reset_signals();
    if joined.is_none() || plan.target.is_some() {
        make_working_directory(&plan.cwd)?;
        if plan.root_readonly {
            let root = sys::open_in(sys_root()?.as_fd(), b"/", libc::O_PATH | libc::O_DIRECTORY)?;
            sys::set_attributes(root.as_fd(), sys::ATTR_RDONLY, false)?;
        }
        if let Some(index) = plan.user_namespace {
            sys::setns(descriptor(&fds, index)?, libc::CLONE_NEWUSER, "enter the user namespace")?;
        }
    }
    // a folder that only the container's root may enter is entered before its user is taken, as others do
    let entered = joined.is_some() && enter_working_directory(&plan.cwd).is_ok();
    drop_privileges(&plan)?;
    if let Streams::Terminal(size) = streams {
        terminal(socket, size)?;
    }
    if !entered {
        enter_working_directory(&plan.cwd)?;
    }
    exec(&plan)
}

fn sys_root() -> Step<OwnedFd> {
    // SAFETY: the path is NUL-terminated; the result is a new descriptor.
    let fd = unsafe { libc::open(c"/".as_ptr(), libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC) };
    check(libc::c_long::from(fd), "open /")?;
    // SAFETY: the kernel just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn descriptor(fds: &[OwnedFd], index: u32) -> Step<BorrowedFd<'_>> {
    fds.get(index as usize).map(AsFd::as_fd).ok_or_else(|| refused("the plan names a descriptor that was not sent"))
}

fn read_all(memory: &OwnedFd) -> Step<Vec<u8>> {
    // SAFETY: a zeroed stat is filled by fstat.
    let size = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        check(libc::c_long::from(libc::fstat(memory.as_raw_fd(), &raw mut stat)), "size of the plan")?;
        stat.st_size as usize
    };
    let mut bytes = vec![0; size];
    let mut at = 0;
    while at < size {
        let rest = &mut bytes[at..];
        // SAFETY: rest is a live slice.
        let n = unsafe { libc::pread(memory.as_raw_fd(), rest.as_mut_ptr().cast(), rest.len(), at as libc::off_t) };
        if n <= 0 {
            return Err(failed("read the plan"));
        }
        at += n as usize;
    }
    Ok(bytes)
}

/// Copies the mounts of a running container, and makes a mount namespace beside it, from pod-init's nearly empty one.
fn stand_beside(joined: Joined<'_>) -> Step<OwnedFd> {
    const TREE_CLONE: u32 = 1;
    let recursive = TREE_CLONE | libc::O_CLOEXEC as u32 | libc::AT_RECURSIVE as u32;
    sys::setns(joined.target, libc::CLONE_NEWNS, "look into the container's mounts")?;
    let tree = sys::open_tree(libc::AT_FDCWD, c"/", recursive)?;
    sys::setns(joined.launcher, libc::CLONE_NEWNS, "return to pod-init's mounts")?;
    sys::unshare(libc::CLONE_NEWNS, "unshare the mounts")?;
    sys::set_propagation(libc::MS_SLAVE, true)?;
    Ok(tree)
}

/// Enters the namespaces of a running container. The pid namespace is the container's from this process's birth on.
fn join(joined: Joined<'_>, plan: &ContainerPlan) -> Step<()> {
    let user = if plan.user_namespace.is_some() { libc::CLONE_NEWUSER } else { 0 };
    // a debug container has mounts of its own
    let mounts = if plan.target.is_none() { libc::CLONE_NEWNS } else { 0 };
    let flags = mounts | libc::CLONE_NEWCGROUP | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | user;
    sys::setns(joined.target, flags, "join the container's namespaces")
}

/// Makes a terminal in the container's own devpts, sends its master to pod-init and takes it as controlling terminal and
/// standard streams. Done as the container's user, who so owns it. Whatever the container has put at that path, what is
/// opened must be the multiplexer of a devpts, and the terminal is had from the master and not by a path.
fn terminal(socket: &OwnedFd, size: libc::winsize) -> Step<()> {
    const DEVPTS_MAGIC: libc::c_long = 0x1cd1;
    let root = sys_root()?;
    let master = sys::open_in(root.as_fd(), b"/dev/pts/ptmx", libc::O_RDWR | libc::O_NOCTTY)?;
    // SAFETY: zeroed structures are filled by the calls.
    let (magic, device) = unsafe {
        let mut system: libc::statfs = std::mem::zeroed();
        check(libc::c_long::from(libc::fstatfs(master.as_raw_fd(), &raw mut system)), "statfs of the terminal")?;
        let mut stat: libc::stat = std::mem::zeroed();
        check(libc::c_long::from(libc::fstat(master.as_raw_fd(), &raw mut stat)), "stat of the terminal")?;
        (system.f_type as libc::c_long, stat.st_rdev)
    };
    if magic != DEVPTS_MAGIC || device != libc::makedev(5, 2) {
        return Err(refused("/dev/pts/ptmx is not the multiplexer of a devpts"));
    }
    let unlock: libc::c_int = 0;
    // SAFETY: unlock and size are live for the calls; the result of TIOCGPTPEER is a new descriptor.
    let slave = unsafe {
        let fd = master.as_raw_fd();
        check(libc::c_long::from(libc::ioctl(fd, libc::TIOCSPTLCK, &raw const unlock)), "unlock the terminal")?;
        check(libc::c_long::from(libc::ioctl(fd, libc::TIOCSWINSZ, &raw const size)), "size of the terminal")?;
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        let slave = check(libc::c_long::from(libc::ioctl(fd, libc::TIOCGPTPEER, flags)), "open the terminal")?;
        OwnedFd::from_raw_fd(slave as RawFd)
    };
    // SAFETY: plain integers; this process leads a session of its own (setsid above).
    let taken = unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) };
    check(libc::c_long::from(taken), "take the terminal")?;
    // SAFETY: plain integers; only the master is made non-blocking.
    unsafe { libc::fcntl(master.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    socket::send(socket.as_fd(), &Reply::Done.encode(0), &[master.as_fd()], true).map_err(|error| Failure {
        stage: "hand over the terminal".to_owned(),
        errno: error.raw_os_error().unwrap_or(0),
    })?;
    for number in 0..3 {
        // SAFETY: plain integers; what was there is of no use any more.
        let r = unsafe { libc::dup2(slave.as_raw_fd(), number) };
        check(libc::c_long::from(r), "dup2 the terminal")?;
    }
    Ok(())
}

fn standard_streams(streams: Vec<OwnedFd>) -> Step<()> {
    let mut streams = streams;
    if streams.len() == 2 {
        let root = sys_root()?;
        let null = sys::open_in(root.as_fd(), b"/dev/null", libc::O_RDWR)?;
        // SAFETY: a zeroed stat is filled by fstat.
        let device = unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            check(libc::c_long::from(libc::fstat(null.as_raw_fd(), &raw mut stat)), "stat /dev/null")?;
            (stat.st_mode & libc::S_IFMT == libc::S_IFCHR).then_some(stat.st_rdev)
        };
        if device != Some(libc::makedev(1, 3)) {
            return Err(refused("/dev/null is not the null device"));
        }
        streams.insert(0, null);
    }
    // dup above the standard numbers first, so that no dup2 overwrites a source
    let mut high: Vec<OwnedFd> = Vec::with_capacity(3);
    for stream in streams {
        // SAFETY: plain integers; the result is a new descriptor.
        let fd = unsafe { libc::fcntl(stream.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 10) };
        check(libc::c_long::from(fd), "dup a standard stream")?;
        // SAFETY: the kernel just made this descriptor.
        high.push(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    for (number, stream) in high.iter().enumerate() {
        // SAFETY: plain integers; the zygote made sure that 0–2 hold nothing of use.
        let r = unsafe { libc::dup2(stream.as_raw_fd(), number as RawFd) };
        check(libc::c_long::from(r), "dup2 a standard stream")?;
    }
    Ok(())
}

/// Writes `/proc/self/oom_score_adj` through a handle that is checked to be procfs. Lowering it needs CAP_SYS_RESOURCE;
/// without, the value inherited from agentd stays.
fn oom_score(value: i32) -> Step<()> {
    const PROC_MAGIC: libc::c_long = 0x9fa0;
    // SAFETY: the path is NUL-terminated; the descriptor is owned right after.
    let file = unsafe {
        let fd = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC | libc::O_NOFOLLOW);
        check(libc::c_long::from(fd), "open /proc/self/oom_score_adj")?;
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: a zeroed statfs is filled by fstatfs.
    let magic = unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        check(libc::c_long::from(libc::fstatfs(file.as_raw_fd(), &raw mut stat)), "statfs /proc")?;
        stat.f_type as libc::c_long
    };
    if magic != PROC_MAGIC {
        return Err(refused("/proc is not procfs"));
    }
    match sys::write_all(file.as_fd(), value.to_string().as_bytes(), "write oom_score_adj") {
        Err(failure) if failure.errno == libc::EACCES || failure.errno == libc::EPERM => Ok(()),
        result => result,
    }
}

fn reset_signals() {
    // SAFETY: a zeroed sigset is an empty one; default handlers are restored for this process alone.
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Permitted and inheritable sets of this process.
pub fn capability_sets() -> Option<(u64, u64)> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [CapabilityData::default(); 2];
    // SAFETY: header and data are live and laid out as version 3 wants.
    let r = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    (r == 0).then(|| (join(data[0].permitted, data[1].permitted), join(data[0].inheritable, data[1].inheritable)))
}

/// Sets permitted and effective alike, and inheritable.
pub fn set_capabilities(permitted: u64, inheritable: u64) -> Step<()> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let part = |shift: u32| CapabilityData {
        effective: (permitted >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [part(0), part(32)];
    // SAFETY: header and data are live and laid out as version 3 wants.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) }, "capset").map(drop)
}

fn drop_privileges(plan: &ContainerPlan) -> Step<()> {
    for capability in 0..64u64 {
        if plan.capabilities.bounding & (1 << capability) == 0
            && sys::prctl(libc::PR_CAPBSET_DROP, capability, 0, "drop a capability").is_err()
        {
            // EINVAL: this kernel knows no capability from here on
            if io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) {
                break;
            }
            return Err(failed("drop a capability from the bounding set"));
        }
    }
    sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0, "clear ambient capabilities")?;
    // SAFETY: groups is a live slice; the others are plain integers.
    unsafe {
        check(libc::c_long::from(libc::setgroups(plan.groups.len(), plan.groups.as_ptr())), "setgroups")?;
        check(libc::c_long::from(libc::setresgid(plan.gid, plan.gid, plan.gid)), "setresgid")?;
        check(libc::c_long::from(libc::setresuid(plan.uid, plan.uid, plan.uid)), "setresuid")?;
    }
    if plan.uid == 0 {
        let (have, _) = capability_sets().ok_or_else(|| failed("capget"))?;
        set_capabilities(plan.capabilities.permitted & have, 0)?;
    }
    // changing ids made the process undumpable or not by turns; until exec it must stay so
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0, "become non-dumpable")
}

/// Creates the working directory below the new root, never through a link that leads out.
fn make_working_directory(path: &[u8]) -> Step<()> {
    let root = sys_root()?;
    if sys::open_in(root.as_fd(), path, libc::O_PATH | libc::O_DIRECTORY).is_ok() {
        return Ok(());
    }
    mounts::make_directories(root.as_fd(), path).map(drop)
}

fn enter_working_directory(path: &[u8]) -> Step<()> {
    let path_c = sys::c(path)?;
    // SAFETY: the path is NUL-terminated; getcwd fills at most the buffer.
    unsafe {
        if libc::chdir(path_c.as_ptr()) != 0 {
            return Err(failed(format!("enter the working directory {}", String::from_utf8_lossy(path))));
        }
        let mut buffer = [0 as libc::c_char; 4096];
        let r = libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len());
        // outside the root the kernel answers "(unreachable)…" (CVE-2024-21626)
        if r <= 0 || buffer[0] != b'/' as libc::c_char {
            return Err(refused("the working directory lies outside the container"));
        }
    }
    Ok(())
}

#[repr(C)]
struct FilterProgram {
    length: libc::c_ushort,
    filter: *const u8,
}

fn exec(plan: &ContainerPlan) -> Step<std::convert::Infallible> {
    let strings = |list: &[Vec<u8>]| list.iter().map(|s| sys::c(s)).collect::<Step<Vec<CString>>>();
    let argv = strings(&plan.argv)?;
    let env = strings(&plan.env)?;
    let pointers =
        |list: &[CString]| list.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect::<Vec<_>>();
    let (argv_pointers, env_pointers) = (pointers(&argv), pointers(&env));
    let candidates = candidates(plan)?;
    let stage = format!("exec {}", String::from_utf8_lossy(&plan.argv[0]));
    if plan.no_new_privs {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, "set no_new_privs")?;
    }
    for filter in &plan.seccomp {
        let program = FilterProgram { length: (filter.len() / 8) as libc::c_ushort, filter: filter.as_ptr() };
        // SAFETY: program points to a live array of `length` sock_filter; 1 is SECCOMP_SET_MODE_FILTER.
        check(unsafe { libc::syscall(libc::SYS_seccomp, 1, 0, &raw const program) }, "install the seccomp filter")?;
    }
    let mut errno = libc::ENOENT;
    for candidate in &candidates {
        // SAFETY: all pointers are to live NUL-terminated strings in null-terminated arrays.
        unsafe { libc::execve(candidate.as_ptr(), argv_pointers.as_ptr(), env_pointers.as_ptr()) };
        match io::Error::last_os_error().raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            Some(libc::EACCES) => errno = libc::EACCES,
            other => return Err(Failure { stage, errno: other.unwrap_or(0) }),
        }
    }
    Err(Failure { stage, errno })
}

/// The paths to try: the program itself, or each folder of `PATH` for a bare name.
fn candidates(plan: &ContainerPlan) -> Step<Vec<CString>> {
    let program = &plan.argv[0];
    if program.contains(&b'/') {
        return Ok(vec![sys::c(program)?]);
    }
    let path = plan.env.iter().find_map(|e| e.strip_prefix(b"PATH=")).unwrap_or(b"/usr/bin:/bin");
    path.split(|b| *b == b':')
        .map(|folder| sys::c(&[if folder.is_empty() { b"." } else { folder }, b"/", program].concat()))
        .collect()
}
