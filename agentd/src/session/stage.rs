//! The ways of input to the program and of output from it.
//!
//! Both go through a second pipe, the *stage*, whose ends are parked in pod-init like all others. splice(2) moves bytes
//! between the program's pipe and the stage in one step, and the ring knows what was put into the stage and what was taken
//! from it; so a daemon that is killed anywhere in between leaves notes and stages that together tell exactly what the
//! program was given and what it has said. A terminal's input is written directly: it is what people type, and the moment
//! between a write and its count is all that is open there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use tokio::io::unix::AsyncFd;

use super::ring::Source;

/// Bytes of a pipe: fewer turns for a program that reads or writes much. An empty pipe of that size takes so much at once.
pub(super) const PIPE: usize = 256 << 10;

const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);

/// A pipe of the daemon's own.
#[derive(Debug)]
pub(super) struct Stage {
    pub read: OwnedFd,
    pub write: OwnedFd,
}

impl Stage {
    /// An empty one.
    pub fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        enlarge(&read);
        Ok(Self { read, write })
    }

    /// Bytes in it.
    pub fn left(&self) -> usize {
        rustix::io::ioctl_fionread(&self.read).unwrap_or(0) as usize
    }
}

/// Gives a pipe its size. A smaller one is slower, and no more than that.
pub(super) fn enlarge(pipe: &OwnedFd) {
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, PIPE);
}

/// Where input goes.
#[derive(Debug)]
pub(super) struct Way {
    /// Write end of the program's standard input, or its terminal's master; non-blocking.
    pub to: AsyncFd<OwnedFd>,
    /// None for a terminal.
    pub stage: Option<Stage>,
}

impl Way {
    /// Bytes in the stage.
    pub fn staged(&self) -> usize {
        self.stage.as_ref().map_or(0, Stage::left)
    }

    /// Moves on what is in the stage; says how much is left in it.
    pub fn hand_on(&self) -> io::Result<usize> {
        let Some(stage) = &self.stage else { return Ok(0) };
        loop {
            let left = stage.left();
            if left == 0 {
                return Ok(0);
            }
            match splice(&stage.read, None, self.to.get_ref().as_fd(), None, left, FLAGS) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(left),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Output of one stream through a stage.
#[derive(Debug)]
pub(super) struct Through<'a> {
    /// Read end of the program's pipe, or its terminal's master.
    pub from: BorrowedFd<'a>,
    pub stage: &'a Stage,
}

impl Source for Through<'_> {
    fn staged(&self) -> usize {
        self.stage.left()
    }

    fn load(&self, most: usize) -> io::Result<usize> {
        match splice(self.from, None, &self.stage.write, None, most, FLAGS) {
            Err(rustix::io::Errno::INVAL) => {
                // a kernel whose terminals cannot be spliced from
                let mut bytes = vec![0; most.min(4096)];
                let count = rustix::io::read(self.from, &mut bytes[..])?;
                Ok(rustix::io::write(&self.stage.write, &bytes[..count])?)
            }
            moved => Ok(moved?),
        }
    }

    fn take(&self, room: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.stage.read, room)?)
    }
}
