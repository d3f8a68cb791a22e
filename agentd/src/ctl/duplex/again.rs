//! Attaches to a session anew after the connection broke: the daemon was restarted or killed, or the network failed. What
//! was typed meanwhile is kept, the terminal stays as it is, and the user can still leave.

use std::pin::pin;
use std::time::Duration;

use hyper::Method;
use hyper::upgrade::Upgraded;
use tokio::time::{Instant, sleep, timeout};

use super::ending::{self, NO_SESSION};
use super::frames::Decoder;
use super::link::Link;
use super::stdio::Read;
use super::{Duplex, End, next, terminal};
use crate::api::route::encode;
use crate::ctl::client::{CallError, Client};
use crate::ctl::failure::{Failure, UNREACHABLE, clean};

/// How long it is tried.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);

/// The pauses between attempts grow from the first to the longest.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(1);

/// So long a daemon that was just started may not know the session yet: it takes sessions back one by one.
const NOT_YET: Duration = Duration::from_secs(5);

/// So many Ctrl-C leave.
const ENOUGH: usize = 3;

/// What came of an attempt.
enum Attempt {
    Done(Upgraded),
    Again(String),
    /// The daemon does not know the session.
    Unknown(Failure),
    Never(Failure),
}

impl Duplex {
    /// Tries until it is attached again; says otherwise to which end it comes.
    pub(super) async fn attach_again(&mut self, why: &str) -> Result<(), End> {
        let Some(session) = self.session.clone() else {
            let message = format!("the connection was lost before the session began: {why}");
            return Err(End::Failed(Failure::new(NO_SESSION, message)));
        };
        // who was leaving has left
        if let Some((_, Some(end))) = self.leaving.take() {
            return Err(end);
        }
        let shown = clean(&session);
        if self.lost.is_none() {
            terminal::tell("agentctl: connection lost, re-attaching…");
        }
        let until = *self.lost.get_or_insert_with(Instant::now) + PATIENCE;
        let wanted = if self.settings.watch { "input=false" } else { "take-over=true" };
        let path = format!("/v1/sessions/{}/attach?from={}&{wanted}", encode(&session), self.offset);
        let client = self.client.clone();
        let mut pause = FIRST;
        let mut last = why.to_owned();
        let mut breaks = 0;
        let mut unknown_since = None;
        loop {
            if Instant::now() >= until {
                let message = format!(
                    "the connection was lost and could not be made again ({last}); if the session goes on: agentctl \
                     attach {shown}"
                );
                return Err(End::Failed(Failure::new(NO_SESSION, message)));
            }
            match self.while_attempting(attempt(&client, &path, pause), &mut breaks).await? {
                Attempt::Done(connection) => {
                    self.link = Link::new(connection);
                    self.decoder = Decoder::default();
                    self.ready = false;
                    return Ok(());
                }
                Attempt::Again(why) => last = why,
                Attempt::Unknown(_) if unknown_since.get_or_insert_with(Instant::now).elapsed() < NOT_YET => {}
                Attempt::Unknown(failure) | Attempt::Never(failure) => {
                    return Err(End::Failed(ending::with_code(failure, NO_SESSION)));
                }
            }
            pause = (pause * 2).min(LONGEST);
        }
    }

    /// Looks after the terminal and the signals until the attempt has come to something.
    async fn while_attempting(
        &mut self,
        attempt: impl Future<Output = Attempt>,
        breaks: &mut usize,
    ) -> Result<Attempt, End> {
        let mut attempt = pin!(attempt);
        loop {
            tokio::select! {
                attempt = &mut attempt => return Ok(attempt),
                signal = self.signals.next() => match signal {
                    libc::SIGWINCH => {}
                    libc::SIGCONT => {
                        if let Some(raw) = &self.raw {
                            // a terminal that cannot be switched any more is gone, which shows when it is read
                            let _ = raw.again();
                        }
                    }
                    signal => return Err(End::Signal(signal)),
                },
                read = next(&mut self.input), if self.window.has_room() => {
                    *breaks = count_breaks(&read, *breaks);
                    self.typed(read);
                    let left = self.leaving.take().and_then(|(_, end)| end);
                    if let Some(end) = left.or_else(|| (self.raw.is_some() && *breaks >= ENOUGH).then_some(End::Left)) {
                        return Err(end);
                    }
                }
            }
        }
    }
}

/// How many Ctrl-C were typed one after the other.
fn count_breaks(read: &Read, before: usize) -> usize {
    let Read::Bytes(bytes) = read else { return 0 };
    let last = bytes.iter().rev().take_while(|byte| **byte == 3).count();
    if last == bytes.len() { before + last } else { last }
}

async fn attempt(client: &Client, path: &str, pause: Duration) -> Attempt {
    sleep(pause).await;
    let upgrade = client.upgrade(Method::GET, path, agentd_api::session::PROTOCOL, None);
    match timeout(ATTEMPT, upgrade).await {
        Ok(Ok(connection)) => Attempt::Done(connection),
        // the daemon is starting, or has too much to do
        Ok(Err(CallError::Problem(problem))) if matches!(problem.status, 408 | 429 | 500..=599) => {
            Attempt::Again(problem.detail)
        }
        Ok(Err(CallError::Problem(problem))) if problem.status == 404 => Attempt::Unknown(Failure::of(&problem)),
        Ok(Err(CallError::Failure(Failure::Told { code: UNREACHABLE, message, .. }))) => Attempt::Again(message),
        Ok(Err(error)) => Attempt::Never(error.into()),
        Err(_) => Attempt::Again("no answer".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_breaks_in_a_row_are_counted_however_they_come() {
        let mut count = 0;
        for (bytes, expected) in
            [("\x03", 1), ("a\x03", 1), ("\x03", 2), ("\x03\x03", 4), ("x", 0), ("\x03\x03\x03", 3)]
        {
            count = count_breaks(&Read::Bytes(bytes.as_bytes().to_vec()), count);
            assert_eq!(count, expected, "{bytes:?}");
        }
        assert_eq!(count_breaks(&Read::End(None), 2), 0);
    }
}
