//! This process's standard input, output and error, read and written with blocking calls in threads.
//!
//! The descriptors are shared with whoever started agentctl, a shell for one, so that they must not be made non-blocking.
//! [`Input`] is a thread that reads and hands over what it read. [`Output`] is a thread that writes buffers and hands
//! them back; it is started for the first output that might block. Both threads end with the process.

use std::io::IoSlice;
use std::sync::mpsc as sync;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat, major, minor};
use rustix::io::Errno;
use rustix::stdio::{stderr, stdin, stdout};
use tokio::sync::mpsc;

use super::frames::Span;

/// Bytes of one buffer of output.
pub const BUFFER: usize = 256 << 10;

/// Buffers of output: one is read into while the others are written.
const BUFFERS: usize = 3;

/// Bytes that are read of standard input at once.
const CHUNK: usize = 128 << 10;

/// A pipe that can be written to takes so many bytes at once.
const AT_ONCE: usize = 4096;

/// Standard input.
#[derive(Debug)]
pub struct Input {
    chunks: mpsc::Receiver<Read>,
    free: sync::Sender<Vec<u8>>,
}

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// Bytes.
    Bytes(Vec<u8>),
    /// The end of it, or why nothing more can be read.
    End(Option<Errno>),
}

impl Input {
    /// Begins to read.
    pub fn start() -> std::io::Result<Self> {
        let (give, chunks) = mpsc::channel(2);
        let (free, spare) = sync::channel();
        std::thread::Builder::new().name("stdin".into()).stack_size(64 << 10).spawn(move || read(&give, &spare))?;
        Ok(Self { chunks, free })
    }

    /// What comes next. May be dropped and called again without loss.
    pub async fn next(&mut self) -> Read {
        // the thread says when it ends
        self.chunks.recv().await.unwrap_or(Read::End(None))
    }

    /// Gives memory back that can be read into.
    pub fn give_back(&self, chunk: Vec<u8>) {
        if chunk.capacity() >= CHUNK {
            // without the thread nobody reads any more
            let _ = self.free.send(chunk);
        }
    }
}

fn read(give: &mpsc::Sender<Read>, spare: &sync::Receiver<Vec<u8>>) {
    let mut buffer = Vec::new();
    loop {
        if buffer.len() < CHUNK {
            buffer = spare.try_recv().unwrap_or_default();
            buffer.resize(CHUNK, 0);
        }
        let read = match rustix::io::read(stdin(), &mut buffer) {
            Err(Errno::INTR) => continue,
            // somebody else made it non-blocking
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::from_borrowed_fd(stdin(), PollFlags::IN)], None);
                continue;
            }
            Err(error) => Read::End(Some(error)),
            Ok(0) => Read::End(None),
            // little is copied, so that what is kept of it is as little
            Ok(count) if count < CHUNK / 8 => Read::Bytes(buffer[..count].to_vec()),
            Ok(count) => {
                let mut chunk = std::mem::take(&mut buffer);
                chunk.truncate(count);
                Read::Bytes(chunk)
            }
        };
        let end = matches!(read, Read::End(_));
        if give.blocking_send(read).is_err() || end {
            return;
        }
    }
}

/// Standard output and error.
#[derive(Debug)]
pub struct Output {
    /// Buffers that are free.
    free: Vec<Vec<u8>>,
    /// Buffers that the thread has.
    away: usize,
    /// Buffers that there are.
    made: usize,
    thread: Option<Thread>,
    /// Whether neither standard output nor error ever blocks; not known before the first output.
    prompt: Option<bool>,
    writer: Writer,
}

#[derive(Debug)]
struct Thread {
    jobs: sync::Sender<(Vec<u8>, Vec<Span>)>,
    back: mpsc::UnboundedReceiver<(Vec<u8>, Vec<Fault>)>,
}

/// Standard output or error cannot be written to any more. Told once for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Whether it is standard error.
    pub error: bool,
    /// Why.
    pub why: Errno,
}

impl Output {
    /// Nothing is written yet.
    pub fn new() -> Self {
        Self { free: Vec::new(), away: 0, made: 0, thread: None, prompt: None, writer: Writer::default() }
    }

    /// A buffer to read into. None while all are being written.
    pub fn buffer(&mut self) -> Option<Vec<u8>> {
        if self.free.is_empty() && self.made < BUFFERS {
            self.made += 1;
            self.free.push(vec![0; BUFFER]);
        }
        self.free.pop()
    }

    /// Gives a buffer back unwritten.
    pub fn give_back(&mut self, buffer: Vec<u8>) {
        self.free.push(buffer);
    }

    /// Whether everything was written.
    pub fn is_written(&self) -> bool {
        self.away == 0
    }

    /// Writes what lies in a buffer: at once where that cannot block, else in the thread.
    pub fn write(&mut self, buffer: Vec<u8>, spans: Vec<Span>) -> std::io::Result<Vec<Fault>> {
        if self.away == 0 && self.at_once(&spans) {
            let faults = self.writer.write(&buffer, &spans);
            self.free.push(buffer);
            return Ok(faults);
        }
        if self.thread.is_none() {
            self.thread = Some(Thread::start(self.writer)?);
        }
        if let Some(thread) = &self.thread {
            // the thread ends only with this
            let _ = thread.jobs.send((buffer, spans));
            self.away += 1;
        }
        Ok(Vec::new())
    }

    /// Waits until a buffer was written. May be dropped and called again without loss.
    pub async fn written(&mut self) -> Vec<Fault> {
        let back = match &mut self.thread {
            Some(thread) if self.away > 0 => thread.back.recv().await,
            _ => return std::future::pending().await,
        };
        self.away -= 1;
        let Some((buffer, faults)) = back else {
            self.away = 0;
            return Vec::new();
        };
        self.free.push(buffer);
        faults
    }

    /// Whether all of it can be written without waiting.
    fn at_once(&mut self, spans: &[Span]) -> bool {
        if self.thread.is_none() && *self.prompt.get_or_insert_with(|| is_prompt(stdout()) && is_prompt(stderr())) {
            return true;
        }
        let bytes =
            |error: bool| spans.iter().filter(|span| span.error == error).map(|span| span.at.len()).sum::<usize>();
        [(stdout(), bytes(false)), (stderr(), bytes(true))]
            .into_iter()
            .all(|(fd, count)| count == 0 || (count <= AT_ONCE && (is_prompt(fd) || (is_pipe(fd) && is_writable(fd)))))
    }
}

/// Whether writing there never waits for somebody: a regular file or `/dev/null`.
fn is_prompt(fd: rustix::fd::BorrowedFd<'_>) -> bool {
    fstat(fd).is_ok_and(|stat| match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => true,
        FileType::CharacterDevice => (major(stat.st_rdev), minor(stat.st_rdev)) == (1, 3),
        _ => false,
    })
}

fn is_pipe(fd: rustix::fd::BorrowedFd<'_>) -> bool {
    fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
}

fn is_writable(fd: rustix::fd::BorrowedFd<'_>) -> bool {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], Some(&at_once)).is_ok_and(|ready| ready > 0)
}

impl Thread {
    fn start(mut writer: Writer) -> std::io::Result<Self> {
        let (jobs, todo) = sync::channel::<(Vec<u8>, Vec<Span>)>();
        let (done, back) = mpsc::unbounded_channel();
        std::thread::Builder::new().name("stdout".into()).stack_size(64 << 10).spawn(move || {
            for (buffer, spans) in todo {
                let faults = writer.write(&buffer, &spans);
                if done.send((buffer, faults)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { jobs, back })
    }
}

/// Writes to both; what cannot be written to any more is left out.
#[derive(Debug, Clone, Copy, Default)]
struct Writer {
    broken: [bool; 2],
}

impl Writer {
    fn write(&mut self, buffer: &[u8], spans: &[Span]) -> Vec<Fault> {
        let mut faults = Vec::new();
        for run in spans.chunk_by(|one, next| one.error == next.error) {
            let error = run[0].error;
            if self.broken[usize::from(error)] {
                continue;
            }
            let mut slices: Vec<IoSlice<'_>> = run.iter().map(|span| IoSlice::new(&buffer[span.at.clone()])).collect();
            let fd = if error { stderr() } else { stdout() };
            if let Err(why) = write_all(fd, &mut slices) {
                self.broken[usize::from(error)] = true;
                faults.push(Fault { error, why });
            }
        }
        faults
    }
}

fn write_all(fd: rustix::fd::BorrowedFd<'_>, mut slices: &mut [IoSlice<'_>]) -> Result<(), Errno> {
    while !slices.is_empty() {
        // the kernel takes at most 1024 at once
        let most = slices.len().min(1024);
        match rustix::io::writev(fd, &slices[..most]) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => IoSlice::advance_slices(&mut slices, count),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], None);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
