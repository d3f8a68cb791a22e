//! The daemon's side of the launcher protocol.
//!
//! - [`binary`]: the embedded `pod-init` as a sealed memfd.
//! - [`zygote`]: one task owns the zygote and restarts it when it dies; [`zygote::Zygote::fork`] makes a pod-init.
//! - [`pod_init`]: a connection to one pod-init; a reader task matches replies to requests and passes notifications on.
//! - [`seqpacket`]: a `SOCK_SEQPACKET` socket on tokio.

pub mod binary;
pub mod pod_init;
pub mod seqpacket;
pub mod zygote;

/// Why the launcher did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The step failed in the launcher.
    #[error("{stage}: {}", std::io::Error::from_raw_os_error(*errno))]
    Step {
        /// The step.
        stage: String,
        /// The system's error number.
        errno: i32,
    },
    /// The launcher refused.
    #[error("{0}")]
    Refused(String),
    /// The connection is gone: the launcher died.
    #[error("the pod's launcher is gone")]
    Gone,
    /// The launcher's answer makes no sense.
    #[error("the launcher answered what was not asked: {0}")]
    Unexpected(String),
    /// The operating system refused a call of the daemon.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl LaunchError {
    /// Wraps an error of the operating system.
    pub fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System { what, source }
    }

    fn from_reply(stage: String, errno: i32) -> Self {
        if errno == 0 { Self::Refused(stage) } else { Self::Step { stage, errno } }
    }
}
