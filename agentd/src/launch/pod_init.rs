//! A connection to one pod-init.
//!
//! Requests may overlap: each has a sequence number, and one reader task hands replies to those who wait and
//! notifications ([`Notice`]) to the channel given at connect. When the pod-init dies, the waiting requests fail with
//! [`LaunchError::Gone`] and the channel gets [`Notice::Gone`].

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agentd_launcher::message::{Ended, PROTOCOL_RUN, ProcessEntry, Reply, Request, SpareKind, Streams};
use agentd_launcher::socket::MAX_MESSAGE;
use tokio::sync::{mpsc, oneshot};

use super::seqpacket::Seqpacket;
use super::{LaunchError, binary};

/// How long a pod-init may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a pod-init tells without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// A process ended.
    Exited {
        /// Its key.
        key: u32,
        /// Number of its start.
        attempt: u32,
        /// How.
        ended: Ended,
    },
    /// The pod-init is gone.
    Gone,
}

type Answer = (Reply, Vec<OwnedFd>);

#[derive(Debug, Default)]
struct Waiting {
    next: u32,
    replies: HashMap<u32, oneshot::Sender<Answer>>,
    closed: bool,
}

#[derive(Debug)]
struct Shared {
    socket: Seqpacket,
    waiting: Mutex<Waiting>,
}

/// A connection to a pod-init. Dropping it closes the connection; the pod-init lives on.
#[derive(Debug)]
pub struct PodInit {
    shared: Arc<Shared>,
    /// Version of the protocol that it speaks; 0 before it was asked.
    protocol: AtomicU32,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for PodInit {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// The state of a pod-init.
#[derive(Debug, Clone)]
pub struct State {
    /// Its process id.
    pub pid: u32,
    /// Its processes.
    pub processes: Vec<ProcessEntry>,
}

impl PodInit {
    /// Connects to the pod-init that listens at `path`.
    pub fn connect(path: &Path, notices: mpsc::UnboundedSender<Notice>) -> Result<Self, LaunchError> {
        let socket = Seqpacket::connect(path).map_err(|error| match error.kind() {
            // nobody listens any more; every other error says nothing of the pod-init
            std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::NotFound => LaunchError::Gone,
            _ => LaunchError::System { what: "connect to a pod-init", source: error },
        })?;
        let shared = Arc::new(Shared { socket, waiting: Mutex::new(Waiting::default()) });
        let reader = tokio::spawn(read(Arc::clone(&shared), notices));
        Ok(Self { shared, protocol: AtomicU32::new(0), reader })
    }

    async fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Answer, LaunchError> {
        let (sender, receiver) = oneshot::channel();
        let sequence = {
            let mut waiting = self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.closed {
                return Err(LaunchError::Gone);
            }
            waiting.next = waiting.next.wrapping_add(1).max(1);
            let sequence = waiting.next;
            waiting.replies.insert(sequence, sender);
            sequence
        };
        self.shared.socket.send(&request.encode(sequence), fds).await.map_err(|_| LaunchError::Gone)?;
        // a start takes as long as its mounts do, a run as long as its program; everything else is a matter of microseconds
        let answer = if matches!(request, Request::Start { .. } | Request::Run { .. }) {
            Ok(receiver.await)
        } else {
            tokio::time::timeout(PATIENCE, receiver).await
        };
        let Ok(answer) = answer else {
            self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).replies.remove(&sequence);
            return Err(LaunchError::Refused(format!(
                "the pod's launcher did not answer within {} s",
                PATIENCE.as_secs()
            )));
        };
        match answer.map_err(|_| LaunchError::Gone)? {
            (Reply::Failed { stage, errno }, _) => Err(LaunchError::from_reply(stage, errno)),
            answer => Ok(answer),
        }
    }

    async fn done(&self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<Vec<OwnedFd>, LaunchError> {
        match self.ask(&request, fds).await? {
            (Reply::Done, fds) => Ok(fds),
            (other, _) => Err(LaunchError::Unexpected(format!("{other:?}"))),
        }
    }

    async fn process(&self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<(u32, Vec<OwnedFd>), LaunchError> {
        match self.ask(&request, fds).await? {
            (Reply::Process { pid }, fds) => Ok((pid, fds)),
            (other, _) => Err(LaunchError::Unexpected(format!("{other:?}"))),
        }
    }

    /// Its state.
    pub async fn state(&self) -> Result<State, LaunchError> {
        match self.ask(&Request::Hello, &[]).await? {
            (Reply::State { protocol, pid, processes }, _) => {
                self.protocol.store(protocol, Ordering::Relaxed);
                Ok(State { pid, processes })
            }
            (other, _) => Err(LaunchError::Unexpected(format!("{other:?}"))),
        }
    }

    /// Whether it knows [`PodInit::run`]; one that was started by an older daemon may not. Asks it at most once.
    pub async fn can_run(&self) -> Result<bool, LaunchError> {
        if self.protocol.load(Ordering::Relaxed) == 0 {
            self.state().await?;
        }
        Ok(self.protocol.load(Ordering::Relaxed) >= PROTOCOL_RUN)
    }

    /// Sets the pod's host name.
    pub async fn hostname(&self, name: &str) -> Result<(), LaunchError> {
        self.done(Request::Hostname { name: name.to_owned() }, &[]).await.map(drop)
    }

    /// Forks a spare into `cgroup`, which then joins v1 cgroups through their `tasks` files; returns its process id.
    pub async fn spare(
        &self,
        key: u32,
        kind: SpareKind,
        cgroup: BorrowedFd<'_>,
        tasks: &[OwnedFd],
    ) -> Result<u32, LaunchError> {
        let fds: Vec<BorrowedFd<'_>> = std::iter::once(cgroup).chain(tasks.iter().map(AsFd::as_fd)).collect();
        self.process(Request::Spare { key, kind }, &fds).await.map(|(pid, _)| pid)
    }

    /// Starts a container in a spare. Returns its process id and the read ends of its standard output and error.
    pub async fn start(
        &self,
        key: u32,
        attempt: u32,
        plan: &[u8],
        fds: &[OwnedFd],
    ) -> Result<(u32, [OwnedFd; 2]), LaunchError> {
        let memory = binary::memory_file("plan", plan)?;
        let all: Vec<BorrowedFd<'_>> = std::iter::once(&memory).chain(fds).map(AsFd::as_fd).collect();
        let (pid, pipes) = self.process(Request::Start { key, attempt, streams: Streams::Capture }, &all).await?;
        let pipes = pipes.try_into().map_err(|_| LaunchError::Unexpected("start without two pipes".to_owned()))?;
        Ok((pid, pipes))
    }

    /// Starts a joined process in a spare with standard streams of the caller's. `plan`: a memfd.
    pub async fn start_with(
        &self,
        key: u32,
        plan: BorrowedFd<'_>,
        streams: [BorrowedFd<'_>; 3],
    ) -> Result<u32, LaunchError> {
        let all: Vec<BorrowedFd<'_>> = std::iter::once(plan).chain(streams).collect();
        self.process(Request::Start { key, attempt: 1, streams: Streams::Given }, &all).await.map(|(pid, _)| pid)
    }

    /// Runs a program to its end in `cgroup` and in the namespaces of the process `target`; pod-init then forgets it by
    /// itself. `plan`: a memfd. It goes on when this future is dropped: whoever does not want that kills the cgroup. Only where
    /// [`PodInit::can_run`] says so.
    pub async fn run(
        &self,
        (key, target): (u32, u32),
        cgroup: BorrowedFd<'_>,
        tasks: &[OwnedFd],
        plan: BorrowedFd<'_>,
        streams: [BorrowedFd<'_>; 3],
    ) -> Result<Ended, LaunchError> {
        let given = std::iter::once(plan).chain(streams).chain(std::iter::once(cgroup));
        let fds: Vec<BorrowedFd<'_>> = given.chain(tasks.iter().map(AsFd::as_fd)).collect();
        match self.ask(&Request::Run { key, target }, &fds).await? {
            (Reply::Exited { ended, .. }, _) => Ok(ended),
            (other, _) => Err(LaunchError::Unexpected(format!("{other:?}"))),
        }
    }

    /// Starts a joined process whose agentd ends of the streams (`kept`; the first is the write end of standard input where
    /// there is one) are parked in pod-init.
    pub async fn start_parked(
        &self,
        key: u32,
        plan: &[u8],
        streams: [BorrowedFd<'_>; 3],
        kept: &[BorrowedFd<'_>],
        fds: &[OwnedFd],
    ) -> Result<u32, LaunchError> {
        let memory = binary::memory_file("plan", plan)?;
        let given = std::iter::once(memory.as_fd()).chain(streams);
        let all: Vec<BorrowedFd<'_>> = given.chain(kept.iter().copied()).chain(fds.iter().map(AsFd::as_fd)).collect();
        let streams = Streams::Parked { kept: kept.len() as u8 };
        self.process(Request::Start { key, attempt: 1, streams }, &all).await.map(|(pid, _)| pid)
    }

    /// Starts a joined process with a new terminal; `kept` is parked beside its master. Returns its process id and the
    /// master.
    pub async fn start_terminal(
        &self,
        key: u32,
        plan: &[u8],
        (rows, columns): (u16, u16),
        kept: &[BorrowedFd<'_>],
        fds: &[OwnedFd],
    ) -> Result<(u32, OwnedFd), LaunchError> {
        let memory = binary::memory_file("plan", plan)?;
        let streams = Streams::Terminal { kept: kept.len() as u8, rows, columns };
        let given = std::iter::once(memory.as_fd()).chain(kept.iter().copied());
        let all: Vec<BorrowedFd<'_>> = given.chain(fds.iter().map(AsFd::as_fd)).collect();
        let (pid, mut fds) = self.process(Request::Start { key, attempt: 1, streams }, &all).await?;
        let master = fds.pop().ok_or_else(|| LaunchError::Unexpected("start without a terminal".to_owned()))?;
        Ok((pid, master))
    }

    /// What is parked for a started process, in the order in which it was parked.
    pub async fn parked(&self, key: u32) -> Result<Vec<OwnedFd>, LaunchError> {
        self.done(Request::Pipes { key }, &[]).await
    }

    /// Has pod-init let go of the write end of a process's standard input.
    pub async fn unpark(&self, key: u32) -> Result<(), LaunchError> {
        self.done(Request::Unpark { key }, &[]).await.map(drop)
    }

    /// The memfd with the plan that a container was started with.
    pub async fn plan(&self, key: u32) -> Result<OwnedFd, LaunchError> {
        let fds = self.done(Request::Plan { key }, &[]).await?;
        let [plan] = <[OwnedFd; 1]>::try_from(fds)
            .map_err(|_| LaunchError::Unexpected("a plan without one descriptor".to_owned()))?;
        Ok(plan)
    }

    /// The read ends of a container's standard output and error.
    pub async fn pipes(&self, key: u32) -> Result<[OwnedFd; 2], LaunchError> {
        let fds = self.done(Request::Pipes { key }, &[]).await?;
        fds.try_into().map_err(|_| LaunchError::Unexpected("pipes without two descriptors".to_owned()))
    }

    /// Sends a signal; a process that has ended is fine.
    pub async fn signal(&self, key: u32, signal: i32) -> Result<(), LaunchError> {
        self.done(Request::Signal { key, signal }, &[]).await.map(drop)
    }

    /// Forgets an ended process or ends a spare.
    pub async fn forget(&self, key: u32) -> Result<(), LaunchError> {
        self.done(Request::Forget { key }, &[]).await.map(drop)
    }

    /// Attaches a detached mount as the pod's volume `name`.
    pub async fn hold(&self, name: &str, mount: BorrowedFd<'_>) -> Result<(), LaunchError> {
        self.done(Request::Hold { name: name.to_owned() }, &[mount]).await.map(drop)
    }

    /// Ends the pod-init.
    pub async fn shutdown(&self) -> Result<(), LaunchError> {
        self.done(Request::Shutdown, &[]).await.map(drop)
    }
}

async fn read(shared: Arc<Shared>, notices: mpsc::UnboundedSender<Notice>) {
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        let (length, fds) = match shared.socket.receive(&mut buffer).await {
            Ok((0, _)) | Err(_) => break,
            Ok(message) => message,
        };
        let Ok((sequence, reply)) = Reply::decode(&buffer[..length]) else { break };
        if let (0, Reply::Exited { key, attempt, ended }) = (sequence, &reply) {
            let (key, attempt, ended) = (*key, *attempt, *ended);
            // a closed channel means that nobody minds this pod any more
            let _ = notices.send(Notice::Exited { key, attempt, ended });
            continue;
        }
        let waiter = shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).replies.remove(&sequence);
        if let Some(waiter) = waiter {
            let _ = waiter.send((reply, fds));
        }
    }
    let mut waiting = shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
    waiting.closed = true;
    waiting.replies.clear();
    drop(waiting);
    let _ = notices.send(Notice::Gone);
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use agentd_launcher::socket;

    use super::super::seqpacket;
    use super::*;

    /// Serves one connection as a pod-init of this protocol would: each run is told after the end of another process, and the
    /// second one fails.
    fn serve(listener: &OwnedFd, protocol: u32) {
        rustix::io::ioctl_fionbio(listener, false).unwrap();
        let connection = rustix::net::accept(listener).unwrap();
        let mut buffer = vec![0; MAX_MESSAGE];
        let mut runs = 0;
        loop {
            let (length, fds) = socket::receive(connection.as_fd(), &mut buffer, true).unwrap();
            if length == 0 {
                return;
            }
            let (sequence, request) = Request::decode(&buffer[..length]).unwrap();
            let say = |sequence, reply: Reply| {
                socket::send(connection.as_fd(), &reply.encode(sequence), &[], true).unwrap();
            };
            match request {
                Request::Hello => say(sequence, Reply::State { protocol, pid: 1, processes: Vec::new() }),
                Request::Run { key, target: 3 } if protocol >= PROTOCOL_RUN && fds.len() == 6 => {
                    runs += 1;
                    say(0, Reply::Exited { key: 1, attempt: 2, ended: Ended::Signal(9) });
                    if runs == 2 {
                        say(sequence, Reply::Failed { stage: "exec /x".to_owned(), errno: libc::ENOENT });
                    } else {
                        say(sequence, Reply::Exited { key, attempt: 1, ended: Ended::Code(7) });
                    }
                }
                other => panic!("{other:?} with {} descriptors", fds.len()),
            }
        }
    }

    #[tokio::test]
    async fn a_run_is_answered_at_its_end_and_asked_only_of_who_knows_it() {
        for (protocol, knows) in [(PROTOCOL_RUN - 1, false), (PROTOCOL_RUN, true)] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("init.sock");
            let listener = seqpacket::listen(&path).unwrap();
            let server = std::thread::spawn(move || serve(&listener, protocol));
            let (sender, mut notices) = mpsc::unbounded_channel();
            let init = PodInit::connect(&path, sender).unwrap();
            assert_eq!(init.can_run().await.unwrap(), knows);
            assert_eq!(init.can_run().await.unwrap(), knows);
            if knows {
                let null = std::fs::File::open("/dev/null").unwrap();
                let (fd, tasks) = (null.as_fd(), [OwnedFd::from(null.try_clone().unwrap())]);
                let run = || init.run((70_000, 3), fd, &tasks, fd, [fd; 3]);
                assert_eq!(run().await.unwrap(), Ended::Code(7));
                // the end of another process is nobody's answer
                let other = Notice::Exited { key: 1, attempt: 2, ended: Ended::Signal(9) };
                assert_eq!(notices.recv().await, Some(other));
                assert_eq!(run().await.unwrap_err().to_string(), "exec /x: No such file or directory (os error 2)");
            }
            drop(init);
            // the reader, which holds the socket, ends when this thread lets it
            tokio::task::spawn_blocking(|| server.join().unwrap()).await.unwrap();
        }
    }
}
