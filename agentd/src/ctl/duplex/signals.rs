//! The signals that agentctl gets while it is attached.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::super::failure::{Failure, Result};

/// Watches for signals. While it is there, they do not end the process.
#[derive(Debug)]
pub struct Signals {
    watched: Vec<(i32, Signal)>,
}

/// Signals for the end of a program.
const ENDING: [SignalKind; 4] =
    [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];

impl Signals {
    /// The signals that end, and those of a terminal or those that are a program's own. What whoever started agentctl
    /// has it ignore, as `nohup` does, stays ignored.
    pub fn watch(terminal: bool) -> Result<Self> {
        let others = if terminal {
            [SignalKind::window_change(), SignalKind::from_raw(libc::SIGCONT)]
        } else {
            [SignalKind::user_defined1(), SignalKind::user_defined2()]
        };
        let kinds = ENDING.into_iter().chain(others).filter(|kind| !is_ignored(kind.as_raw_value()));
        let watched = kinds.map(|kind| Ok((kind.as_raw_value(), signal(kind)?))).collect::<std::io::Result<_>>();
        let failed = |error| Failure::failed(format!("signals cannot be watched for: {error}"));
        Ok(Self { watched: watched.map_err(failed)? })
    }

    /// The next one.
    pub async fn next(&mut self) -> i32 {
        poll_fn(|context| {
            for (number, signal) in &mut self.watched {
                if signal.poll_recv(context).is_ready() {
                    return Poll::Ready(*number);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Whether a signal is ignored.
fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: nothing is changed, and the answer has room for what is asked for; all zeroes is a valid value of it.
    let action = unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}
