//! The way of standard input to the program.
//!
//! Input for a pipe goes through a second pipe, the *stage*, whose ends are parked in pod-init like all others: what a client
//! sent is written into the empty stage, counted, and then moved on by splice(2). A daemon that is killed anywhere in
//! between leaves a count and a stage that together tell exactly what the program was given and will be given, so that a
//! client that sends on from the count loses and doubles nothing. A terminal is written to directly: its input is what
//! people type, and the moment between a write and its count is all that is open there.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{SpliceFlags, splice};
use tokio::io::unix::AsyncFd;

/// Where input goes.
#[derive(Debug)]
pub(super) struct Way {
    /// Write end of the program's standard input, or its terminal's master; non-blocking.
    pub to: AsyncFd<OwnedFd>,
    /// Read and write end of the stage; none for a terminal.
    pub stage: Option<(OwnedFd, OwnedFd)>,
}

impl Way {
    /// Bytes in the stage.
    pub fn staged(&self) -> usize {
        let Some((read, _)) = &self.stage else { return 0 };
        rustix::io::ioctl_fionread(read).unwrap_or(0) as usize
    }

    /// Moves on what is in the stage; says how much is left in it.
    pub fn hand_on(&self) -> io::Result<usize> {
        let Some((read, _)) = &self.stage else { return Ok(0) };
        loop {
            let left = self.staged();
            if left == 0 {
                return Ok(0);
            }
            let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
            match splice(read, None, self.to.get_ref().as_fd(), None, left, flags) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(left),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
