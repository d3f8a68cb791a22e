//! The capture of what containers print, as the daemon sees it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::{oneshot, watch};

use crate::follow::Follow;
use crate::read::{Entries, ReadOptions};
use crate::record::Stream;
use crate::worker::{Command, Worker};

/// Limits of the capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Bytes kept of each container's log.
    pub max_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { max_bytes: 20 << 20 }
    }
}

/// Why a log could not be captured, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A system call failed.
    #[error("log: {action}: {source}")]
    Io {
        /// What was being done, to what.
        action: String,
        /// The error.
        #[source]
        source: std::io::Error,
    },
    /// A name that cannot be that of a file.
    #[error("log: found the name '{0}'; expected 1 to 200 bytes without '/', not beginning with '.'")]
    Name(String),
    /// The capture's thread is gone.
    #[error("log: the capture has stopped; restart agentd, containers keep running meanwhile")]
    Stopped,
}

impl LogError {
    pub(crate) fn io(action: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::Io { action: action.into(), source: source.into() }
    }
}

/// Instance and container.
pub(crate) type Key = (String, String);

/// What followers are told of a log.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Progress {
    /// Grows with each write.
    pub writes: u64,
    /// Whether a pipe is being read.
    pub open: bool,
}

/// What the handle and the thread share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub dir: PathBuf,
    pub settings: Settings,
    /// Eventfd that wakes the thread.
    pub wake: OwnedFd,
    commands: Mutex<Vec<Command>>,
    channels: Mutex<HashMap<Key, watch::Sender<Progress>>>,
}

impl Shared {
    fn commands(&self) -> MutexGuard<'_, Vec<Command>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn channels(&self) -> MutexGuard<'_, HashMap<Key, watch::Sender<Progress>>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn take_commands(&self) -> Vec<Command> {
        std::mem::take(&mut *self.commands())
    }

    pub fn channel(&self, key: &Key) -> watch::Sender<Progress> {
        self.channels().entry(key.clone()).or_insert_with(|| watch::Sender::new(Progress::default())).clone()
    }

    /// Ends the followers of an instance.
    pub fn drop_channels(&self, instance: &str) {
        self.channels().retain(|key, _| key.0 != instance);
    }

    fn give(&self, command: Command) {
        self.commands().push(command);
        // The counter of an eventfd can only be full after 2⁶⁴ - 2 unread wakes.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// Stops the thread when the last handle goes.
#[derive(Debug)]
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.give(Command::Stop);
    }
}

/// The capture: one thread for the whole host that reads the pipes of all containers. Clones are handles to the same.
#[derive(Debug, Clone)]
pub struct Capture {
    handle: Arc<Handle>,
}

impl Capture {
    /// Starts the thread. Logs are kept below `dir`, which is made if need be.
    pub fn start(dir: impl Into<PathBuf>, settings: Settings) -> Result<Self, LogError> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir)
            .map_err(|error| LogError::io(format!("creating the folder {}", dir.display()), error))?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| LogError::io("creating an eventfd", error))?;
        let shared = Arc::new(Shared {
            dir,
            settings,
            wake,
            commands: Mutex::new(Vec::new()),
            channels: Mutex::new(HashMap::new()),
        });
        let worker = Worker::new(Arc::clone(&shared)).map_err(|error| LogError::io("creating an epoll", error))?;
        std::thread::Builder::new()
            .name("container-logs".to_owned())
            .stack_size(256 * 1024)
            .spawn(move || worker.run())
            .map_err(|error| LogError::io("starting the log thread", error))?;
        Ok(Self { handle: Arc::new(Handle(shared)) })
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.0
    }

    /// Where the logs are.
    pub fn dir(&self) -> &Path {
        &self.shared().dir
    }

    /// Reads a pipe from now on. `fd` is the read end; it is made non-blocking. A pipe of an earlier `attempt` at the same
    /// stream is emptied and closed first. Never waits.
    pub fn add(
        &self,
        instance: &str,
        container: &str,
        attempt: u32,
        stream: Stream,
        fd: OwnedFd,
    ) -> Result<(), LogError> {
        self.add_limited(instance, container, attempt, stream, fd, None)
    }

    /// As [`Capture::add`], with the number of bytes kept of this container's log, where it is not the host's. The limit
    /// of the first pipe of a log holds for all of it.
    pub fn add_limited(
        &self,
        instance: &str,
        container: &str,
        attempt: u32,
        stream: Stream,
        fd: OwnedFd,
        max_bytes: Option<u64>,
    ) -> Result<(), LogError> {
        let key = key(instance, container)?;
        let nonblocking = rustix::io::ioctl_fionbio(&fd, true);
        nonblocking.map_err(|error| LogError::io(format!("the pipe of {instance}/{container}"), error))?;
        // Told now, so that a follower that comes before the thread has got to it does not take the container for ended.
        self.shared().channel(&key).send_modify(|progress| progress.open = true);
        self.shared().give(Command::Add { key, attempt, stream, fd, max_bytes });
        Ok(())
    }

    /// After the container has ended: writes out what is still in its pipes and closes them. An unfinished last line is
    /// finished. When this returns, every line that the container printed can be read.
    pub async fn finish(&self, instance: &str, container: &str) -> Result<(), LogError> {
        let key = key(instance, container)?;
        let (reply, answer) = oneshot::channel();
        self.shared().give(Command::Finish { key, reply });
        answer.await.map_err(|_| LogError::Stopped)?
    }

    /// Closes the instance's pipes without reading them, ends its followers and deletes its logs. Nothing there is success.
    pub async fn remove(&self, instance: &str) -> Result<(), LogError> {
        check_name(instance)?;
        let (reply, answer) = oneshot::channel();
        self.shared().give(Command::Remove { instance: instance.to_owned(), reply });
        answer.await.map_err(|_| LogError::Stopped)?
    }

    /// The log as it is now; see [`crate::read`]. Blocking.
    pub fn read(&self, instance: &str, container: &str, options: &ReadOptions) -> Result<Entries, LogError> {
        crate::read::read(self.dir(), instance, container, options)
    }

    /// The log as it is now and as it grows, until the instance is removed.
    pub fn follow(&self, instance: &str, container: &str, options: &ReadOptions) -> Result<Follow, LogError> {
        let key = key(instance, container)?;
        let progress = self.shared().channel(&key).subscribe();
        Ok(Follow::new(self.dir(), &key, options.clone(), progress))
    }
}

pub(crate) fn key(instance: &str, container: &str) -> Result<Key, LogError> {
    check_name(instance)?;
    check_name(container)?;
    Ok((instance.to_owned(), container.to_owned()))
}

fn check_name(name: &str) -> Result<(), LogError> {
    let valid = (1..=200).contains(&name.len()) && !name.starts_with('.') && !name.contains(['/', '\0']);
    if valid { Ok(()) } else { Err(LogError::Name(name.escape_debug().to_string())) }
}
