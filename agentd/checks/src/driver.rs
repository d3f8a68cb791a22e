//! The task that runs the health check of one container: one future, one timer, no threads between checks.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::checker::{Action, Checker, Timing};
use crate::probe::Probe;

/// What a health check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthEvent {
    /// The container passed and was not known as healthy.
    Healthy,
    /// A check failed and counts.
    Unhealthy {
        /// One line for people.
        message: String,
    },
    /// Too many checks failed in a row: the container is to be ended. The last event.
    Kill {
        /// One line for people.
        message: String,
    },
}

/// Runs the health check of a container that started `age` ago (zero for a fresh start; more when a restarted daemon
/// takes its containers back, so that the delay and the grace period do not begin anew).
///
/// Returns after [`HealthEvent::Kill`], when `cancel` fires (a running check is dropped), and when the receiver of the
/// events is gone.
pub async fn drive(
    timing: Timing,
    probe: Probe,
    age: Duration,
    cancel: CancellationToken,
    events: mpsc::Sender<HealthEvent>,
) {
    tokio::select! {
        () = cancel.cancelled() => {}
        () = check_until_killed(timing, &probe, age, &events) => {}
    }
}

async fn check_until_killed(timing: Timing, probe: &Probe, age: Duration, events: &mpsc::Sender<HealthEvent>) {
    let began = Instant::now();
    let now = || age.saturating_add(began.elapsed());
    let timeout = timing.timeout;
    let mut checker = Checker::new(timing);
    checker.started(Duration::ZERO);
    while let Some(due) = checker.next_tick() {
        let Some(due) = began.checked_add(due.saturating_sub(age)) else {
            return;
        };
        tokio::select! {
            () = sleep_until(due) => {}
            () = events.closed() => return,
        }
        let Some(Action::RunCheck { id }) = checker.tick(now()) else {
            continue;
        };
        let result = probe.run(timeout).await;
        let event = match checker.result(now(), id, result.as_ref().map(|&()| ()).map_err(String::as_str)) {
            Some(Action::Healthy) => HealthEvent::Healthy,
            Some(Action::Unhealthy { message }) => HealthEvent::Unhealthy { message },
            Some(Action::Kill { message }) => HealthEvent::Kill { message },
            Some(Action::RunCheck { .. }) | None => {
                if let Err(reason) = &result {
                    tracing::debug!(%reason, "health check failed within the grace period");
                }
                continue;
            }
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}
