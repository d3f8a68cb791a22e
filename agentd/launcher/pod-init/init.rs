//! A pod-init's event loop.
//!
//! One epoll over: the listening socket, the connection to agentd (the newest wins), and for each process its pidfd and,
//! until its program is exec'd, the socket to it. Everything that agentd must find again after its own death is here
//! or in the exit status files: descriptors of the pods' pipes, the pid of each process, how it ended.

mod joined;

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use agentd_launcher::message::{
    Ended, PROTOCOL, ProcessEntry, ProcessState, Reply, Request, SpareKind, Streams, exit_file,
};
use agentd_launcher::socket::{self, MAX_MESSAGE};

use self::joined::Promised;
use crate::container;
use crate::sys::{self, Cloned, Failure, Step, c, check, failed, refused};

const LISTENER: u64 = u64::MAX;
const CONNECTION: u64 = u64::MAX - 1;
/// Sequence number of a request whose asker has gone.
const NOBODY: u32 = 0;
/// Set in the token of a process's socket, clear in that of its pidfd.
const SOCKET_BIT: u64 = 1 << 32;

struct Process {
    key: u32,
    attempt: u32,
    pid: u32,
    pidfd: OwnedFd,
    kind: SpareKind,
    state: ProcessState,
    /// To the process, until it has exec'd.
    socket: Option<OwnedFd>,
    /// Sequence number of the start request that awaits an answer.
    waiting: Option<u32>,
    /// What agentd asks for again after its own death: read ends of pipes, its ends of a session's pipes, a terminal's
    /// master.
    parked: Vec<OwnedFd>,
    /// Write ends of captured output. They stay open here, so that a reader that comes back after a restart finds neither
    /// end-of-file nor a broken pipe.
    writers: Vec<OwnedFd>,
    /// Whether the start is answered with what is parked.
    hand_out: bool,
    /// Sequence number of the request that is answered when it has ended.
    asked: Option<u32>,
    /// The plan's memfd.
    plan: Option<OwnedFd>,
}

impl Process {
    /// A process just forked, which waits for its plan.
    fn new(key: u32, kind: SpareKind, pid: u32, pidfd: OwnedFd, socket: OwnedFd) -> Self {
        Self {
            key,
            attempt: 0,
            pid,
            pidfd,
            kind,
            state: ProcessState::Spare,
            socket: Some(socket),
            waiting: None,
            parked: Vec::new(),
            writers: Vec::new(),
            hand_out: false,
            asked: None,
            plan: None,
        }
    }

    /// It has its plan.
    fn begins(&mut self, sequence: u32, attempt: u32, streams: Streams, parked: Vec<OwnedFd>, writers: Vec<OwnedFd>) {
        self.attempt = attempt;
        self.parked = parked;
        self.writers = writers;
        self.hand_out = matches!(streams, Streams::Capture | Streams::Terminal { .. });
        self.state = ProcessState::Starting;
        self.waiting = Some(sequence);
    }
}

struct PodInit {
    epoll: OwnedFd,
    listener: OwnedFd,
    connection: Option<OwnedFd>,
    exits: OwnedFd,
    processes: Vec<Process>,
    /// Processes that are to join a container, and are forked when their plan comes.
    promised: Vec<Promised>,
    /// The pause process, process 1 of the shared pid namespace, once made.
    pause: Option<OwnedFd>,
    /// This process itself, whose pid namespace is come back to.
    own: Option<OwnedFd>,
    /// Whether the next child would be born in another pid namespace than this process's.
    astray: Cell<bool>,
    volumes: bool,
}

/// Runs until agentd says Shutdown. `own_network` makes a network namespace.
pub fn run(listener: OwnedFd, exits: OwnedFd, own_network: bool) -> ! {
    let code = match start(listener, exits, own_network) {
        Ok(mut pod) => pod.serve(),
        // the closed listener tells agentd; there is nobody else to tell
        Err(failure) => failure.errno.clamp(1, 125),
    };
    sys::exit(code)
}

fn start(listener: OwnedFd, exits: OwnedFd, own_network: bool) -> Step<PodInit> {
    // SAFETY: signal(2) back to the default, so that waitid works.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    let network = if own_network { libc::CLONE_NEWNET } else { 0 };
    sys::unshare(network | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS, "unshare the pod's namespaces")?;
    if own_network {
        loopback_up()?;
    }
    let shm = sys::new_mount(
        c"tmpfs",
        &[(c"size", c"67108864"), (c"mode", c"1777")],
        &[],
        (sys::ATTR_NOSUID | sys::ATTR_NODEV | sys::ATTR_NOEXEC) as u32,
    )?;
    sys::move_mount(shm.as_fd(), libc::AT_FDCWD, c"/shm", "attach /shm")?;
    let mqueue = sys::new_mount(c"mqueue", &[], &[], (sys::ATTR_NOSUID | sys::ATTR_NODEV | sys::ATTR_NOEXEC) as u32)?;
    sys::move_mount(mqueue.as_fd(), libc::AT_FDCWD, c"/mqueue", "attach /mqueue")?;
    // volumes that are held later appear in the spares that wait already; these hand nothing back
    sys::set_propagation(libc::MS_SHARED, false)?;
    drop_capabilities();
    // SAFETY: plain integer; the descriptor is new.
    let epoll = unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC)) };
    let pod = PodInit {
        epoll,
        listener,
        connection: None,
        exits,
        processes: Vec::new(),
        promised: Vec::new(),
        pause: None,
        own: None,
        astray: Cell::new(false),
        volumes: false,
    };
    pod.watch(pod.listener.as_raw_fd(), LISTENER)?;
    Ok(pod)
}

/// Brings up `lo` in the network namespace just made.
fn loopback_up() -> Step<()> {
    // SAFETY: a plain socket and an ioctl on a zeroed, then filled, ifreq that outlives it.
    unsafe {
        let fd = check(
            libc::c_long::from(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)),
            "socket for lo",
        )?;
        let fd = OwnedFd::from_raw_fd(fd as RawFd);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        check(libc::c_long::from(libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request)), "bring up lo")?;
    }
    Ok(())
}

/// Gives up what no container setup needs: modules, raw I/O, accounting, boot, time, BPF. The bounding set stays, since
/// a container's exec takes its capabilities from there.
fn drop_capabilities() {
    const UNUSED: [u64; 6] = [16, 17, 20, 22, 25, 39];
    let Some((permitted, inheritable)) = crate::container::capability_sets() else { return };
    let mask = !UNUSED.iter().fold(0u64, |mask, n| mask | 1 << n);
    // a failure leaves more than is needed, which the next line of defence (no way to reach this process) covers
    let _ = crate::container::set_capabilities(permitted & mask, inheritable);
}

impl PodInit {
    fn watch(&self, fd: RawFd, token: u64) -> Step<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        // SAFETY: event is live; the descriptors are open.
        let r = unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) };
        check(libc::c_long::from(r), "epoll_ctl").map(drop)
    }

    /// Takes a process's pidfd out of the epoll set. Closing would not: agentd holds a copy of the descriptor.
    fn unwatch(&self, at: usize) {
        let fd = self.processes[at].pidfd.as_raw_fd();
        // SAFETY: plain integers; DEL ignores the event.
        unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut()) };
    }

    /// Kills, reaps and forgets a process that has not exec'd.
    fn end_spare(&mut self, at: usize) {
        self.unwatch(at);
        self.processes.swap_remove(at).end();
    }

    fn serve(&mut self) -> i32 {
        let mut buffer = vec![0; MAX_MESSAGE];
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
        loop {
            // SAFETY: events has room for 16 entries.
            let n = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), 16, -1) };
            if n < 0 {
                if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return 1;
            }
            // sockets before pidfds: a program that ends at once is first reported started, then ended
            let ready = &mut events[..n as usize];
            ready.sort_unstable_by_key(|event| u8::from(event.u64 < SOCKET_BIT));
            for event in ready.iter().map(|event| event.u64).collect::<Vec<_>>() {
                match event {
                    LISTENER => self.accept(),
                    CONNECTION => {
                        if self.obey(&mut buffer) {
                            return 0;
                        }
                    }
                    token if token & SOCKET_BIT != 0 => self.heard(token as u32, &mut buffer),
                    token => self.reap(token as u32),
                }
            }
        }
    }

    fn accept(&mut self) {
        // SAFETY: accepts a connection; the peer's address is not wanted.
        let fd = unsafe {
            libc::accept4(
                self.listener.as_raw_fd(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            )
        };
        if fd < 0 {
            return;
        }
        // SAFETY: the kernel just made this descriptor.
        let connection = unsafe { OwnedFd::from_raw_fd(fd) };
        if peer_uid(connection.as_fd()) != Some(0) {
            return;
        }
        self.connection = None;
        // the new connection numbers its requests anew: what was asked on the old one answers none of them
        for process in &mut self.processes {
            process.waiting = process.waiting.map(|_| NOBODY);
            process.asked = process.asked.map(|_| NOBODY);
        }
        if self.watch(fd, CONNECTION).is_ok() {
            self.connection = Some(connection);
        }
    }

    /// Sends, never waits: a daemon that does not read loses the connection and asks for the state when it is back.
    fn say(&mut self, sequence: u32, reply: &Reply, fds: &[BorrowedFd<'_>]) {
        let Some(connection) = &self.connection else { return };
        if socket::send(connection.as_fd(), &reply.encode(sequence), fds, false).is_err() {
            self.connection = None;
        }
    }

    fn answer(&mut self, sequence: u32, result: Step<Reply>, fds: &[BorrowedFd<'_>]) {
        let reply = result.unwrap_or_else(|Failure { stage, errno }| Reply::Failed { stage, errno });
        self.say(sequence, &reply, fds);
    }

    /// One request. True when it was Shutdown.
    fn obey(&mut self, buffer: &mut [u8]) -> bool {
        let Some(connection) = &self.connection else { return false };
        let (length, fds) = match socket::receive(connection.as_fd(), buffer, false) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Ok((0, _)) | Err(_) => {
                self.connection = None;
                return false;
            }
            Ok(message) => message,
        };
        let Ok((sequence, request)) = Request::decode(&buffer[..length]) else {
            self.connection = None;
            return false;
        };
        match request {
            Request::Fork { .. } => self.answer(sequence, Err(refused("only the zygote forks pod-inits")), &[]),
            Request::Hello => {
                let known = self.processes.iter();
                let known = known.map(|p| ProcessEntry { key: p.key, attempt: p.attempt, pid: p.pid, state: p.state });
                let promised = self.promised.iter().map(|p| p.key);
                let state = ProcessState::Spare;
                let promised = promised.map(|key| ProcessEntry { key, attempt: 0, pid: 0, state });
                let processes = known.chain(promised).collect();
                let pid = std::process::id();
                self.say(sequence, &Reply::State { protocol: PROTOCOL, pid, processes }, &[]);
            }
            Request::Hostname { name } => {
                // SAFETY: the name is live for the call.
                let r = unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) };
                self.answer(sequence, check(libc::c_long::from(r), "sethostname").map(|_| Reply::Done), &[]);
            }
            Request::Spare { key, kind: SpareKind::Join { key: target } } => {
                let promised = self.promise(key, target, fds).map(|()| Reply::Process { pid: 0 });
                self.answer(sequence, promised, &[]);
            }
            Request::Spare { key, kind } => self.spare(sequence, key, kind, &fds),
            Request::Start { key, attempt, streams } => self.start(sequence, key, attempt, streams, fds),
            Request::Run { key, target } => self.run(sequence, key, target, fds),
            Request::Pipes { key } => match self.process(key) {
                Some(process) if !process.parked.is_empty() => {
                    let fds = copies(&process.parked);
                    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                    self.say(sequence, &Reply::Done, &fds);
                }
                _ => self.answer(sequence, Err(refused("nothing is parked for the process")), &[]),
            },
            Request::Unpark { key } => {
                if let Some(process) = self.processes.iter_mut().find(|p| p.key == key)
                    && process.parked.len() > 1
                {
                    process.parked.remove(0);
                }
                self.answer(sequence, Ok(Reply::Done), &[]);
            }
            Request::Plan { key } => {
                match self.process(key).and_then(|p| p.plan.as_ref()).and_then(|plan| plan.try_clone().ok()) {
                    Some(plan) => self.say(sequence, &Reply::Done, &[plan.as_fd()]),
                    None => self.answer(sequence, Err(refused("no plan of the process is kept")), &[]),
                }
            }
            Request::Signal { key, signal } => {
                let result = match self.process(key) {
                    Some(process) if matches!(process.state, ProcessState::Exited(_)) => Ok(Reply::Done),
                    Some(process) => signal_process(process.pidfd.as_fd(), signal).map(|()| Reply::Done),
                    None => Err(refused("no such process")),
                };
                self.answer(sequence, result, &[]);
            }
            Request::Forget { key } => {
                if let Some(at) = self.processes.iter().position(|p| p.key == key) {
                    let process = &mut self.processes[at];
                    if matches!(process.state, ProcessState::Exited(_)) {
                        self.processes.swap_remove(at);
                        self.answer(sequence, Ok(Reply::Done), &[]);
                    } else if process.state == ProcessState::Spare {
                        self.end_spare(at);
                        self.answer(sequence, Ok(Reply::Done), &[]);
                    } else {
                        self.answer(sequence, Err(refused("the process has not ended")), &[]);
                    }
                } else {
                    self.promised.retain(|promised| promised.key != key);
                    self.answer(sequence, Ok(Reply::Done), &[]);
                }
            }
            Request::Hold { name } => {
                let result = self.hold(&name, &fds).map(|()| Reply::Done);
                self.answer(sequence, result, &[]);
            }
            Request::Shutdown => {
                self.answer(sequence, Ok(Reply::Done), &[]);
                return true;
            }
        }
        false
    }

    fn process(&self, key: u32) -> Option<&Process> {
        self.processes.iter().find(|p| p.key == key)
    }

    fn is_known(&self, key: u32) -> bool {
        self.process(key).is_some() || self.promised.iter().any(|promised| promised.key == key)
    }

    fn hold(&mut self, name: &str, fds: &[OwnedFd]) -> Step<()> {
        let [mount] = fds else { return Err(refused("hold: expected one descriptor")) };
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(refused("hold: the name is not a file name"));
        }
        if !self.volumes {
            let volumes = sys::new_mount(
                c"tmpfs",
                &[(c"size", c"64k"), (c"mode", c"0700")],
                &[],
                (sys::ATTR_NOSUID | sys::ATTR_NODEV | sys::ATTR_NOEXEC) as u32,
            )?;
            sys::move_mount(volumes.as_fd(), libc::AT_FDCWD, c"/volumes", "attach /volumes")?;
            self.volumes = true;
        }
        let path = c(format!("/volumes/{name}").as_bytes())?;
        // SAFETY: path is NUL-terminated.
        if unsafe { libc::mkdir(path.as_ptr(), 0o700) } != 0 {
            if io::Error::last_os_error().kind() == io::ErrorKind::AlreadyExists {
                // held already: the request was repeated after a crash of agentd
                return Ok(());
            }
            return Err(failed("hold: mkdir"));
        }
        sys::move_mount(mount.as_fd(), libc::AT_FDCWD, &path, "hold: attach").inspect_err(|_| {
            // SAFETY: path is NUL-terminated; the directory was made above.
            unsafe { libc::rmdir(path.as_ptr()) };
        })
    }

    fn spare(&mut self, sequence: u32, key: u32, kind: SpareKind, fds: &[OwnedFd]) {
        match self.fork_spare(key, kind, fds) {
            Ok((pid, pidfd)) => self.say(sequence, &Reply::Process { pid }, &[pidfd.as_fd()]),
            Err(failure) => self.answer(sequence, Err(failure), &[]),
        }
    }

    /// Forks a process that is to be a container's first.
    fn fork_spare(&mut self, key: u32, kind: SpareKind, fds: &[OwnedFd]) -> Step<(u32, OwnedFd)> {
        let [cgroup, tasks @ ..] = fds else { return Err(refused("spare: expected a cgroup")) };
        if self.is_known(key) {
            return Err(refused("spare: the key is in use"));
        }
        let (ours, theirs) = socket::pair().map_err(|_| failed("socketpair"))?;
        let cloned = if kind == SpareKind::SharedPid {
            self.make_pause()?;
            let pause = self.pause.as_ref().ok_or_else(|| refused("no pause process"))?;
            self.fork_beside(pause.as_fd(), cgroup.as_fd(), libc::CLONE_NEWNS)?
        } else {
            self.return_home()?;
            let flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID;
            sys::clone3(flags, Some(cgroup.as_fd()), "clone3 of a spare into its cgroup")?
        };
        match cloned {
            Cloned::Child => {
                if sys::set_propagation(libc::MS_SLAVE, true).is_err() {
                    sys::exit(127);
                }
                join_cgroups(&theirs, tasks);
                sys::close_all_but(3, &[theirs.as_raw_fd()]);
                container::wait_for_plan(&theirs)
            }
            Cloned::Parent { pid, pidfd } => {
                drop(theirs);
                let process = Process::new(key, kind, pid, pidfd, ours);
                let copy = process.pidfd.try_clone().map_err(|_| failed("dup"));
                let copy = copy.inspect_err(|_| process.end())?;
                self.take_in(process)?;
                Ok((pid, copy))
            }
        }
    }

    /// A pidfd of this process itself, by which it comes back to its own pid namespace.
    fn own(&mut self) -> Step<()> {
        if self.own.is_none() {
            // SAFETY: plain integers; the result is a new descriptor.
            let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) }, "pidfd_open of itself")?;
            // SAFETY: the kernel just made this descriptor.
            self.own = Some(unsafe { OwnedFd::from_raw_fd(fd as RawFd) });
        }
        Ok(())
    }

    /// Makes the pod's shared pid namespace on first use, with a pause process as its 1. The pause process stays in
    /// pod-init's cgroup: no container's end takes it along.
    fn make_pause(&mut self) -> Step<()> {
        self.own()?;
        self.return_home()?;
        if self.pause.is_none() {
            match sys::clone3(libc::CLONE_NEWPID, None, "clone3 of the pause process")? {
                Cloned::Child => container::pause(),
                Cloned::Parent { pidfd, .. } => self.pause = Some(pidfd),
            }
        }
        Ok(())
    }

    fn start(&mut self, sequence: u32, key: u32, attempt: u32, streams: Streams, fds: Vec<OwnedFd>) {
        if let Err(failure) = self.hand_over(sequence, key, attempt, streams, fds) {
            if let Some(at) = self.processes.iter().position(|p| p.key == key && p.waiting.is_none())
                && self.processes[at].state == ProcessState::Spare
            {
                self.end_spare(at);
            }
            self.answer(sequence, Err(failure), &[]);
        }
    }

    fn hand_over(&mut self, sequence: u32, key: u32, attempt: u32, streams: Streams, fds: Vec<OwnedFd>) -> Step<()> {
        if let Some(at) = self.promised.iter().position(|promised| promised.key == key) {
            let promised = self.promised.swap_remove(at);
            let Handed { head, pass, parked, writers } = Handed::new(streams, fds)?;
            let mut process = self.fork_joined(&promised, head, pass)?;
            process.begins(sequence, attempt, streams, parked, writers);
            return self.take_in(process);
        }
        let at = self.processes.iter().position(|p| p.key == key && p.state == ProcessState::Spare);
        let process = &mut self.processes[at.ok_or_else(|| refused("start: no such spare"))?];
        let spare = process.socket.as_ref().ok_or_else(|| refused("start: the spare has no socket"))?;
        let Handed { head, pass, parked, writers } = Handed::new(streams, fds)?;
        let message: Vec<BorrowedFd<'_>> = pass.iter().map(AsFd::as_fd).collect();
        socket::send(spare.as_fd(), &head, &message, true).map_err(|error| Failure {
            stage: "hand the plan to the spare".to_owned(),
            errno: error.raw_os_error().unwrap_or(0),
        })?;
        process.plan = pass.into_iter().next();
        process.begins(sequence, attempt, streams, parked, writers);
        Ok(())
    }

    /// A process spoke (it failed, or has a terminal) or closed its socket (the program is exec'd).
    fn heard(&mut self, key: u32, buffer: &mut [u8]) {
        let Some(at) = self.processes.iter().position(|p| p.key == key) else { return };
        let Some(spare) = self.processes[at].socket.as_ref() else { return };
        match socket::receive(spare.as_fd(), buffer, false) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok((n, fds)) if n > 0 => {
                if let Ok((_, Reply::Done)) = Reply::decode(&buffer[..n]) {
                    // the master of its terminal
                    self.processes[at].parked.extend(fds);
                    return;
                }
                let reply = match Reply::decode(&buffer[..n]) {
                    Ok((_, reply @ Reply::Failed { .. })) => reply,
                    _ => Reply::Failed { stage: "the spare sent rubbish".to_owned(), errno: 0 },
                };
                let waiting = self.processes[at].waiting;
                self.end_spare(at);
                if let Some(sequence) = waiting {
                    self.say(sequence, &reply, &[]);
                }
            }
            Ok(_) | Err(_) => {
                let process = &mut self.processes[at];
                process.socket = None;
                if process.state != ProcessState::Starting {
                    return;
                }
                process.state = ProcessState::Running;
                let pid = process.pid;
                let Some(sequence) = process.waiting.take() else { return };
                let fds = if process.hand_out { copies(&process.parked) } else { Vec::new() };
                let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                self.say(sequence, &Reply::Process { pid }, &fds);
            }
        }
    }

    /// A process ended: its status goes to disk, then to agentd.
    fn reap(&mut self, key: u32) {
        let Some(at) = self.processes.iter().position(|p| p.key == key) else { return };
        if let Some(sequence) = self.processes[at].asked {
            return self.ran(at, sequence);
        }
        if self.processes[at].socket.is_some() && self.processes[at].state == ProcessState::Starting {
            // what the spare said last comes first
            let mut buffer = vec![0; MAX_MESSAGE];
            self.heard(key, &mut buffer);
            let Some(now) = self.processes.iter().position(|p| p.key == key) else { return };
            if now != at || self.processes[at].socket.is_some() {
                return;
            }
        }
        let process = &self.processes[at];
        if matches!(process.state, ProcessState::Exited(_)) {
            return;
        }
        let Some(ended) = wait(process.pidfd.as_fd(), true) else { return };
        if process.state == ProcessState::Spare {
            self.unwatch(at);
            self.processes.swap_remove(at);
            return;
        }
        let attempt = process.attempt;
        if !matches!(process.kind, SpareKind::Join { .. }) {
            self.write_exit(key, attempt, ended);
        }
        self.unwatch(at);
        self.processes[at].state = ProcessState::Exited(ended);
        self.say(0, &Reply::Exited { key, attempt, ended }, &[]);
    }

    /// Temporary file and rename on tmpfs: the name appears only with its whole content.
    fn write_exit(&self, key: u32, attempt: u32, ended: Ended) {
        let name = exit_file(key, attempt);
        let (Ok(name), Ok(temporary)) = (c(name.as_bytes()), c(format!(".{name}").as_bytes())) else { return };
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
        let Ok(file) = sys::open_below(self.exits.as_fd(), &temporary, flags, 0o600) else { return };
        if sys::write_all(file.as_fd(), ended.to_line().as_bytes(), "write the exit status").is_err() {
            return;
        }
        let dir = self.exits.as_raw_fd();
        // SAFETY: both names are NUL-terminated.
        unsafe { libc::renameat(dir, temporary.as_ptr(), dir, name.as_ptr()) };
    }
}

/// What comes with a plan: for the process that carries it out, and for pod-init to keep.
struct Handed {
    head: [u8; container::HEAD],
    /// The plan's memfd, the standard streams, and what the plan names.
    pass: Vec<OwnedFd>,
    parked: Vec<OwnedFd>,
    writers: Vec<OwnedFd>,
}

impl Handed {
    fn new(streams: Streams, mut fds: Vec<OwnedFd>) -> Step<Self> {
        if fds.is_empty() {
            return Err(refused("start: expected the plan's descriptor"));
        }
        let (mut parked, mut writers) = (Vec::new(), Vec::new());
        let head = match streams {
            Streams::Capture => {
                for at in 1..=2 {
                    let (read, write) = sys::pipe()?;
                    // SAFETY: plain integers; only our own end is made non-blocking.
                    unsafe { libc::fcntl(read.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
                    fds.insert(at, write.try_clone().map_err(|_| failed("dup"))?);
                    parked.push(read);
                    writers.push(write);
                }
                container::given_head(false)
            }
            Streams::Given => container::given_head(true),
            Streams::Parked { kept } => {
                let kept = usize::from(kept);
                if fds.len() < 4 + kept {
                    return Err(refused("start: descriptors of the streams are missing"));
                }
                parked.extend(fds.drain(4..4 + kept));
                container::given_head(true)
            }
            Streams::Terminal { kept, rows, columns } => {
                let kept = usize::from(kept);
                if fds.len() < 1 + kept {
                    return Err(refused("start: descriptors to be kept are missing"));
                }
                parked.extend(fds.drain(1..=kept));
                container::terminal_head(rows, columns)
            }
        };
        Ok(Self { head, pass: fds, parked, writers })
    }
}

/// A spare's first deed: it moves itself into its v1 cgroups. If it cannot, nothing else of it may run.
fn join_cgroups(socket: &OwnedFd, tasks: &[OwnedFd]) {
    for file in tasks {
        if let Err(failure) = sys::write_all(file.as_fd(), b"0", "join a v1 cgroup") {
            container::give_up(socket, failure);
        }
    }
}

/// Copies of descriptors, to be sent.
fn copies(fds: &[OwnedFd]) -> Vec<OwnedFd> {
    fds.iter().filter_map(|fd| fd.try_clone().ok()).collect()
}

fn peer_uid(socket: BorrowedFd<'_>) -> Option<u32> {
    let mut credentials = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: credentials and length are live and of matching size.
    let r = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    (r == 0).then_some(credentials.uid)
}

fn signal_process(pidfd: BorrowedFd<'_>, signal: i32) -> Step<()> {
    // SAFETY: plain integers and a null siginfo.
    let r = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    if r != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH) {
        return Ok(());
    }
    check(r, "pidfd_send_signal").map(drop)
}

/// Reaps a child; with `poll` only if it has ended.
fn wait(pidfd: BorrowedFd<'_>, poll: bool) -> Option<Ended> {
    let flags = libc::WEXITED | libc::__WALL | if poll { libc::WNOHANG } else { 0 };
    loop {
        // SAFETY: info is a live siginfo_t that waitid fills.
        let (r, code, status, pid) = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let r = libc::waitid(libc::P_PIDFD, pidfd.as_raw_fd() as libc::id_t, &raw mut info, flags);
            (r, info.si_code, info.si_status(), info.si_pid())
        };
        if r != 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
            continue;
        }
        if r != 0 || pid == 0 {
            return None;
        }
        return Some(if code == libc::CLD_EXITED { Ended::Code(status) } else { Ended::Signal(status) });
    }
}
