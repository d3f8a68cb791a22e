//! The zygote process: started once, restarted when it dies, asked for pod-inits.
//!
//! Forking from the daemon costs milliseconds for each hundred megabytes it holds; the zygote holds none. Requests are
//! answered in order; a lock keeps one under way at a time.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use agentd_launcher::message::{Reply, Request};
use agentd_launcher::socket::{self, MAX_MESSAGE};
use tokio::sync::Mutex;

use super::seqpacket::Seqpacket;
use super::{LaunchError, binary};

/// A pod-init just forked.
#[derive(Debug)]
pub struct Forked {
    /// Its process id.
    pub pid: u32,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
}

struct Running {
    child: Child,
    socket: Seqpacket,
}

impl Drop for Running {
    fn drop(&mut self) {
        // its socket closes with us, upon which it ends by itself; waiting here reaps it
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Called with the pid of each new zygote, to put it into its cgroup.
type Placement = Box<dyn Fn(u32) -> Result<(), String> + Send + Sync>;

/// The zygote, whatever process it is at the moment.
pub struct Zygote {
    binary: OwnedFd,
    place: Placement,
    running: Mutex<Option<Running>>,
}

impl std::fmt::Debug for Zygote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Zygote").finish_non_exhaustive()
    }
}

impl Zygote {
    /// Prepares the binary; the process starts with the first fork. `place` puts a new zygote into its cgroup.
    pub fn new(place: impl Fn(u32) -> Result<(), String> + Send + Sync + 'static) -> Result<Self, LaunchError> {
        Ok(Self { binary: binary::sealed_copy()?, place: Box::new(place), running: Mutex::new(None) })
    }

    /// Forks a pod-init that listens on `listener`, writes exit statuses into `exits` and lives in `cgroup`.
    ///
    /// [`LaunchError::Gone`] says that the zygote died before it answered, so that a pod-init may be there or not; the next
    /// call starts another zygote.
    pub async fn fork(
        &self,
        listener: BorrowedFd<'_>,
        exits: BorrowedFd<'_>,
        cgroup: BorrowedFd<'_>,
        own_network: bool,
    ) -> Result<Forked, LaunchError> {
        let mut running = self.running.lock().await;
        let zygote = match running.take() {
            Some(zygote) => zygote,
            None => self.start()?,
        };
        let result = Self::ask(&zygote, &[listener, exits, cgroup], own_network).await;
        // after an answer that is not understood the next one could be taken for that of another request
        if !matches!(result, Err(LaunchError::Gone | LaunchError::Unexpected(_))) {
            *running = Some(zygote);
        }
        result
    }

    /// Ends the process; pod-inits live on.
    pub async fn close(&self) {
        *self.running.lock().await = None;
    }

    async fn ask(zygote: &Running, fds: &[BorrowedFd<'_>], own_network: bool) -> Result<Forked, LaunchError> {
        let request = Request::Fork { own_network }.encode(1);
        zygote.socket.send(&request, fds).await.map_err(|_| LaunchError::Gone)?;
        let mut buffer = vec![0; MAX_MESSAGE];
        let (length, fds) = zygote.socket.receive(&mut buffer).await.map_err(|_| LaunchError::Gone)?;
        if length == 0 {
            return Err(LaunchError::Gone);
        }
        let (_, reply) = Reply::decode(&buffer[..length]).map_err(|e| LaunchError::Unexpected(e.to_string()))?;
        match (reply, <[OwnedFd; 1]>::try_from(fds)) {
            (Reply::Process { pid }, Ok([pidfd])) => Ok(Forked { pid, pidfd }),
            (Reply::Failed { stage, errno }, _) => Err(LaunchError::from_reply(stage, errno)),
            (other, _) => Err(LaunchError::Unexpected(format!("{other:?}"))),
        }
    }

    fn start(&self) -> Result<Running, LaunchError> {
        let (ours, theirs) = socket::pair().map_err(LaunchError::system("socketpair for the zygote"))?;
        // std's spawn uses vfork semantics, so the daemon's size does not matter here; the child resolves the path during
        // exec, before close-on-exec takes effect
        let child = Command::new(format!("/proc/self/fd/{}", self.binary.as_raw_fd()))
            // pod-inits and spares are forks of it, and `ps` shows this name for all of them
            .arg0("agentd-pod-init")
            .arg("--zygote")
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(LaunchError::system("start the zygote"))?;
        let zygote =
            Running { socket: Seqpacket::new(ours).map_err(LaunchError::system("watch the zygote's socket"))?, child };
        (self.place)(zygote.child.id()).map_err(LaunchError::Refused)?;
        Ok(zygote)
    }
}
