//! Serves one attached client; see the module above for its two tasks.
//!
//! How it ends:
//! - The program ends: all of its output, then the exit frame, then the connection is closed. What the client still sends
//!   is read and thrown away, or the kernel might throw away the exit frame instead. A client that ends the connection now
//!   has read everything; one that does not within a moment may never get to see the exit, which is then kept.
//! - The client detaches, or its connection ends: the program is given the input that was received, as long as it takes
//!   any. Who detached is told so once that is done.
//! - The client sends what is no frame: it is told so, and the connection is closed.
//! - The session lets the client go, or the daemon stops.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agentd_api::session::{FrameKind, ServerMessage};
use futures_util::future::BoxFuture;
use hyper::StatusCode;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::control::{self, Obeyed};
use super::stdin::{self, Intake};
use super::{Broken, Closing, FrameReader, FrameWriter, Received, Violation};
use crate::api::answer::Refusal;
use crate::session::{Attachment, Input, Output, Session};

/// Messages that may wait for a slow client.
const WAITING: usize = 16;

/// How long something may take that an ended connection waits for: a last frame, the client's own end, a program that
/// takes input that was received before.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often a client is told something at the least, so that one that has vanished is noticed, and no firewall between
/// takes the connection for dead.
const SIGN_OF_LIFE: Duration = Duration::from_secs(30);

/// A client, ready to be served.
#[derive(Debug)]
pub struct Client {
    /// Its session.
    pub session: Session,
    /// What it is told.
    pub attachment: Attachment,
    /// What it may give; none where it only watches or the session takes no input from it.
    pub input: Option<Input>,
    /// Whether it only watches: no input, no signal, no size.
    pub watches: bool,
}

/// Why a client's frames came to an end.
#[derive(Debug)]
enum Left {
    /// The client has ended the connection.
    Closed,
    /// The connection failed.
    Lost,
    Detach,
    Violation(Violation),
}

/// How the telling came to an end.
#[derive(Debug)]
enum Told {
    /// The exit was sent.
    Exit,
    /// The session has let the client go, who was told.
    LetGo,
    /// It was asked to stop between two frames.
    Stopped,
}

/// How a connection ends.
#[derive(Debug)]
enum End {
    /// Its last frame was sent, which was the exit.
    Exit,
    /// Its last frame was sent, and the session goes on.
    LetGo,
    /// It is to be told that it is detached.
    Detached,
    /// It is to be told what was no frame.
    Fault(Violation),
    /// It is gone, or takes nothing any more.
    Gone,
    /// It cannot be written to.
    Lost(io::Error),
    /// The daemon stops.
    Stopping,
}

impl From<Told> for End {
    fn from(told: Told) -> Self {
        match told {
            Told::Exit => Self::Exit,
            Told::LetGo => Self::LetGo,
            Told::Stopped => Self::Detached,
        }
    }
}

/// Serves a client until it or the session goes. `shutdown` is that of the daemon.
pub fn serve<R: FrameReader, W: FrameWriter + 'static>(
    reader: R,
    writer: W,
    client: Client,
    shutdown: CancellationToken,
) -> BoxFuture<'static, ()> {
    // boxed, because the compiler does not see for each transport that this can be sent between threads
    Box::pin(serve_client(reader, writer, client, shutdown))
}

async fn serve_client(reader: impl FrameReader, writer: impl FrameWriter, client: Client, shutdown: CancellationToken) {
    let Client { session, attachment, input, watches } = client;
    let id = session.id().to_owned();
    let stdin = input.as_ref().map_or_else(|| session.status().stdin_bytes, Input::written);
    let hello = ServerMessage::Attached { session: id.clone(), stdin, output: attachment.offset() };
    let (acks, acked) = watch::channel(stdin);
    let (messages, waiting) = mpsc::channel(WAITING);
    let gone = CancellationToken::new();
    let leave = CancellationToken::new();
    let desk = Desk { session, watches, takes: input.is_some(), messages };
    let mut intake = AbortOnDropHandle::new(tokio::spawn(take_in(reader, input, desk, acks, gone.clone())));
    let mut teller = Teller { writer, attachment, acked, told: stdin, waiting };
    let mut left_behind = None;
    let end = {
        let mut telling = pin!(teller.tell(&hello, &leave));
        tokio::select! {
            told = &mut telling => told.map_or_else(End::Lost, End::from),
            left = &mut intake => {
                leave.cancel();
                let left = left.map(|(left, reader)| {
                    left_behind = Some(reader);
                    left
                });
                match left {
                    // before the exit was sent; a task that panicked was logged
                    Err(_) | Ok(Left::Closed | Left::Lost) => End::Gone,
                    Ok(left) => match (timeout(PATIENCE, telling).await, left) {
                        (Err(_), _) => End::Gone,
                        (Ok(Err(error)), _) => End::Lost(error),
                        (Ok(Ok(Told::Stopped)), Left::Violation(violation)) => End::Fault(violation),
                        (Ok(Ok(told)), _) => End::from(told),
                    },
                }
            }
            () = shutdown.cancelled() => End::Stopping,
        }
    };
    let Teller { mut writer, attachment, .. } = teller;
    let (last, closing) = match &end {
        End::Exit | End::LetGo => (None, Closing::Done),
        End::Stopping => (None, Closing::Stopping),
        End::Detached => {
            let message = "detached; the session goes on".to_owned();
            (Some(ServerMessage::Detached { message }), Closing::Done)
        }
        End::Fault(Violation { problem, code }) => {
            (Some(ServerMessage::Error { problem: problem.clone() }), Closing::Fault(*code))
        }
        End::Gone => return attachment.not_delivered(),
        End::Lost(error) => {
            tracing::debug!(session = id, "a client of a session is gone: {error}");
            attachment.not_delivered();
            drop(attachment);
            gone.cancel();
            if left_behind.is_none() {
                // bounded: what was received is given to the program as long as it takes any
                let _ = (&mut intake).await;
            }
            return;
        }
    };
    // who is let go holds nothing back from here on; an exit waits until it is known to have arrived
    let attachment = Some(attachment).filter(|_| matches!(end, End::Exit));
    let finish = async {
        if let Some(last) = last {
            writer.control(&last).await?;
        }
        writer.close(closing).await
    };
    // a client that does not read, or that is gone, does not get to see how its connection ends
    let closed = timeout(PATIENCE, finish).await.is_ok() && closing != Closing::Stopping;
    let mut arrived = false;
    match left_behind {
        Some(reader) if closed => drop(timeout(PATIENCE, reader.discard()).await),
        None if closed => arrived = matches!(timeout(PATIENCE, &mut intake).await, Ok(Ok((Left::Closed, _)))),
        _ => {}
    }
    if let Some(attachment) = attachment.filter(|_| !arrived) {
        attachment.not_delivered();
    }
}

/// The half that writes.
struct Teller<W> {
    writer: W,
    attachment: Attachment,
    acked: watch::Receiver<u64>,
    /// What was acknowledged last.
    told: u64,
    waiting: mpsc::Receiver<ServerMessage>,
}

impl<W: FrameWriter> Teller<W> {
    /// Tells everything there is to tell, until the last frame or until it is to `leave`.
    async fn tell(&mut self, hello: &ServerMessage, leave: &CancellationToken) -> io::Result<Told> {
        self.writer.control(hello).await?;
        let mut life = interval_at(Instant::now() + SIGN_OF_LIFE, SIGN_OF_LIFE);
        life.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = leave.cancelled() => {
                    self.catch_up().await?;
                    return Ok(Told::Stopped);
                }
                Some(message) = self.waiting.recv() => self.writer.control(&message).await?,
                Ok(()) = self.acked.changed() => self.acknowledge().await?,
                _ = life.tick() => self.acknowledge().await?,
                output = self.attachment.next() => match output {
                    Output::Stdout(bytes) => self.writer.output(FrameKind::Stdout, bytes).await?,
                    Output::Stderr(bytes) => self.writer.output(FrameKind::Stderr, bytes).await?,
                    Output::Gap(bytes) => self.writer.control(&ServerMessage::Gap { bytes }).await?,
                    Output::Exit(exit) => {
                        self.catch_up().await?;
                        self.writer.control(&ServerMessage::Exit { exit }).await?;
                        return Ok(Told::Exit);
                    }
                    Output::LetGo(message) => {
                        self.catch_up().await?;
                        self.writer.control(&ServerMessage::Detached { message }).await?;
                        return Ok(Told::LetGo);
                    }
                },
            }
        }
    }

    /// Tells how much input the program was given.
    async fn acknowledge(&mut self) -> io::Result<()> {
        let stdin = *self.acked.borrow_and_update();
        self.told = stdin;
        self.writer.control(&ServerMessage::Ack { stdin }).await
    }

    /// Tells what waits, before a last frame.
    async fn catch_up(&mut self) -> io::Result<()> {
        while let Ok(message) = self.waiting.try_recv() {
            self.writer.control(&message).await?;
        }
        let news = *self.acked.borrow() != self.told;
        if news { self.acknowledge().await } else { Ok(()) }
    }
}

/// Takes what the client sends, and gives the program its input. Gives back what the client is read from.
async fn take_in<R: FrameReader>(
    mut reader: R,
    mut input: Option<Input>,
    desk: Desk,
    acks: watch::Sender<u64>,
    gone: CancellationToken,
) -> (Left, R) {
    let (intake, feeder, given) = stdin::channel(acks);
    let mut feeding = pin!(async {
        match input.as_mut() {
            Some(input) => feeder.run(input).await,
            None => drop(feeder),
        }
    });
    let mut fed = false;
    let mut late = false;
    let left = {
        let mut reading = pin!(desk.read(&mut reader, intake));
        loop {
            tokio::select! {
                left = &mut reading => break left,
                () = &mut feeding, if !fed => fed = true,
                () = gone.cancelled(), if !late => late = true,
                () = standstill(&given), if late => break Left::Lost,
            }
        }
    };
    if !fed {
        tokio::select! {
            () = feeding => {}
            () = standstill(&given) => {}
        }
    }
    (left, reader)
}

/// Waits until the program has taken no input for a while.
async fn standstill(given: &AtomicU64) {
    loop {
        let before = given.load(Ordering::Relaxed);
        sleep(PATIENCE).await;
        if given.load(Ordering::Relaxed) == before {
            return;
        }
    }
}

/// The half that reads.
struct Desk {
    session: Session,
    watches: bool,
    takes: bool,
    messages: mpsc::Sender<ServerMessage>,
}

impl Desk {
    /// Reads frames and obeys them until no more come.
    async fn read(self, reader: &mut impl FrameReader, intake: Intake) -> Left {
        let mut refused = false;
        loop {
            let obeyed = match reader.next().await {
                Ok(Some(Received::Stdin(bytes))) if self.takes => {
                    intake.push(bytes).await;
                    continue;
                }
                // one word is enough for a client that sends megabytes
                Ok(Some(Received::Stdin(_))) if refused => continue,
                Ok(Some(Received::Stdin(_))) => {
                    refused = true;
                    Obeyed::Say(control::refused(self.no_input()))
                }
                Ok(Some(Received::CloseStdin)) => Obeyed::CloseStdin,
                Ok(Some(Received::Control(text))) => control::obey(&self.session, self.watches, &text).await,
                Ok(None) => return Left::Closed,
                Err(Broken::Lost(error)) => {
                    tracing::debug!(session = self.session.id(), "a client of a session is gone: {error}");
                    return Left::Lost;
                }
                Err(Broken::Violation(violation)) => return Left::Violation(violation),
            };
            match obeyed {
                Obeyed::Done => {}
                Obeyed::CloseStdin => intake.close().await,
                Obeyed::Detach => return Left::Detach,
                // one who tells no more has sent the last frame
                Obeyed::Say(message) => drop(self.messages.send(message).await),
            }
        }
    }

    /// Why input is not taken.
    fn no_input(&self) -> Refusal {
        if self.watches {
            return control::only_watches();
        }
        let detail = "the session takes no standard input; begin one with \"stdin\": true";
        Refusal::new(StatusCode::CONFLICT, "no-stdin", detail)
    }
}
