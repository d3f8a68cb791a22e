//! Processes that join a running container: programs of sessions and commands of health checks.
//!
//! One fork makes such a process: pod-init enters the container's pid namespace for its children, forks into the process's
//! cgroup, and returns to its own. The child is in the container's pid namespace from its birth and enters the others
//! itself. It is forked with its plan at hand, so that nothing of agentd's ever waits inside a container. What
//! [`Request::Spare`](agentd_launcher::message::Request::Spare) asks for is only noted until its start.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use agentd_launcher::message::{ProcessState, Reply, SpareKind};
use agentd_launcher::socket::{self, MAX_MESSAGE};

use super::{PodInit, Process, SOCKET_BIT, join_cgroups, wait};
use crate::container::{self, HEAD, Joined};
use crate::sys::{self, Cloned, Step, failed, refused};

/// A process that is to join a container, once its plan comes.
pub struct Promised {
    pub key: u32,
    /// Key of the container's process.
    pub target: u32,
    pub cgroup: OwnedFd,
    /// `tasks` files of the v1 cgroups.
    pub tasks: Vec<OwnedFd>,
}

impl PodInit {
    /// Notes a process that is to join a container.
    pub fn promise(&mut self, key: u32, target: u32, fds: Vec<OwnedFd>) -> Step<()> {
        let mut fds = fds.into_iter();
        let cgroup = fds.next().ok_or_else(|| refused("spare: expected a cgroup"))?;
        if self.is_known(key) {
            return Err(refused("spare: the key is in use"));
        }
        self.running(target)?;
        self.promised.push(Promised { key, target, cgroup, tasks: fds.collect() });
        Ok(())
    }

    /// The process whose namespaces are joined.
    fn running(&self, target: u32) -> Step<BorrowedFd<'_>> {
        let target = self.process(target).filter(|p| p.state == ProcessState::Running);
        target.map(|p| p.pidfd.as_fd()).ok_or_else(|| refused("the container does not run"))
    }

    /// Forks a promised process, which carries its plan out at once. `pass`: what [`container::carry_out`] takes.
    pub fn fork_joined(&mut self, promised: &Promised, head: [u8; HEAD], pass: Vec<OwnedFd>) -> Step<Process> {
        self.own()?;
        let Some(launcher) = &self.own else { return Err(refused("no pidfd of itself")) };
        let target = self.running(promised.target)?;
        let (ours, theirs) = socket::pair().map_err(|_| failed("socketpair"))?;
        match self.fork_beside(target, promised.cgroup.as_fd(), 0)? {
            Cloned::Child => {
                join_cgroups(&theirs, &promised.tasks);
                let mut keep: Vec<_> = pass.iter().map(AsRawFd::as_raw_fd).collect();
                keep.extend([theirs.as_raw_fd(), target.as_raw_fd(), launcher.as_raw_fd()]);
                keep.sort_unstable();
                sys::close_all_but(3, &keep);
                let joined = Joined { target, launcher: launcher.as_fd() };
                container::carry_out(&theirs, Some(joined), head, pass)
            }
            Cloned::Parent { pid, pidfd } => {
                let kind = SpareKind::Join { key: promised.target };
                Ok(Process::new(promised.key, kind, pid, pidfd, ours))
            }
        }
    }

    /// Forks a child, with new namespaces `flags`, that is born in the pid namespace of `member`. This process itself stays
    /// where it is: the namespace for children is set back before anything else is done.
    pub(super) fn fork_beside(&self, member: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, flags: i32) -> Step<Cloned> {
        self.return_home()?;
        self.astray.set(true);
        sys::setns(member, libc::CLONE_NEWPID, "enter the pid namespace").inspect_err(|_| self.astray.set(false))?;
        let cloned = sys::clone3(flags, Some(cgroup), "clone3 into the cgroup and the pid namespace");
        if !matches!(cloned, Ok(Cloned::Child)) {
            // a failure stays noted, and keeps the next fork from going astray
            let _ = self.return_home();
        }
        cloned
    }

    /// Has the next child born in pod-init's own pid namespace. To be called before each fork: it does something only where
    /// an earlier return failed (for want of memory), and then no process may be forked until it succeeds.
    pub(super) fn return_home(&self) -> Step<()> {
        if !self.astray.get() {
            return Ok(());
        }
        let own = self.own.as_ref().ok_or_else(|| refused("no pidfd of itself"))?;
        sys::setns(own.as_fd(), libc::CLONE_NEWPID, "return to the own pid namespace")?;
        self.astray.set(false);
        Ok(())
    }

    /// Runs a program to its end; the answer comes then. `fds`: as [`Request::Run`] says.
    ///
    /// [`Request::Run`]: agentd_launcher::message::Request::Run
    pub fn run(&mut self, sequence: u32, key: u32, target: u32, fds: Vec<OwnedFd>) {
        if let Err(failure) = self.begin_run(sequence, key, target, fds) {
            self.answer(sequence, Err(failure), &[]);
        }
    }

    fn begin_run(&mut self, sequence: u32, key: u32, target: u32, mut fds: Vec<OwnedFd>) -> Step<()> {
        const PASSED: usize = 4;
        if self.is_known(key) {
            return Err(refused("run: the key is in use"));
        }
        if fds.len() <= PASSED {
            return Err(refused("run: expected a plan, three streams and a cgroup"));
        }
        let tasks = fds.split_off(PASSED + 1);
        let Some(cgroup) = fds.pop() else { return Err(refused("run: expected a cgroup")) };
        let promised = Promised { key, target, cgroup, tasks };
        let mut process = self.fork_joined(&promised, container::given_head(true), fds)?;
        process.attempt = 1;
        process.state = ProcessState::Running;
        process.asked = Some(sequence);
        // its socket is read when it has ended, and only then says whether it came as far as its program
        self.watch(process.pidfd.as_raw_fd(), u64::from(key)).inspect_err(|_| process.end())?;
        self.processes.push(process);
        Ok(())
    }

    /// What [`PodInit::run`] started has ended: its asker is told, and it is forgotten.
    pub(super) fn ran(&mut self, at: usize, sequence: u32) {
        let process = &self.processes[at];
        let Some(ended) = wait(process.pidfd.as_fd(), true) else { return };
        self.unwatch(at);
        let process = self.processes.swap_remove(at);
        if sequence == super::NOBODY {
            return;
        }
        let failed = if ended == container::GIVEN_UP { process.last_words() } else { None };
        let reply = failed.unwrap_or(Reply::Exited { key: process.key, attempt: process.attempt, ended });
        self.say(sequence, &reply, &[]);
    }

    /// Makes a started process one of those that are watched.
    pub(super) fn take_in(&mut self, process: Process) -> Step<()> {
        let token = u64::from(process.key);
        let watched = self.watch(process.pidfd.as_raw_fd(), token).and_then(|()| match &process.socket {
            Some(socket) => self.watch(socket.as_raw_fd(), token | SOCKET_BIT),
            None => Ok(()),
        });
        if let Err(failure) = watched {
            process.end();
            return Err(failure);
        }
        self.processes.push(process);
        Ok(())
    }
}

impl Process {
    /// What failed before its program was exec'd, if anything did. For a process that has ended.
    fn last_words(&self) -> Option<Reply> {
        let socket = self.socket.as_ref()?;
        let mut buffer = vec![0; MAX_MESSAGE];
        let (length, _) = socket::receive(socket.as_fd(), &mut buffer, false).ok()?;
        match Reply::decode(&buffer[..length]) {
            Ok((_, failed @ Reply::Failed { .. })) => Some(failed),
            _ => None,
        }
    }

    /// Kills and reaps it.
    pub(super) fn end(&self) {
        let _ = super::signal_process(self.pidfd.as_fd(), libc::SIGKILL);
        let _ = wait(self.pidfd.as_fd(), false);
    }
}
