//! The daemon's events: a bounded ring that keeps the last ones, and a channel for those who follow.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use agentd_api::message::Event;
use tokio::sync::broadcast;

/// Events kept for those who ask later.
const KEPT: usize = 4096;

#[derive(Debug, Default)]
struct Ring {
    next: u64,
    events: VecDeque<Event>,
}

/// The events of this run of the daemon.
#[derive(Debug)]
pub struct Events {
    ring: Mutex<Ring>,
    sender: broadcast::Sender<Event>,
}

impl Default for Events {
    fn default() -> Self {
        Self { ring: Mutex::new(Ring { next: 1, events: VecDeque::new() }), sender: broadcast::channel(1024).0 }
    }
}

/// Of what an event tells.
#[derive(Debug, Clone, Copy, Default)]
pub struct Subject<'a> {
    /// Pod.
    pub pod: Option<&'a str>,
    /// Instance.
    pub instance: Option<&'a str>,
    /// Container.
    pub container: Option<&'a str>,
}

impl Events {
    /// Publishes an event.
    pub fn publish(&self, kind: &str, subject: Subject<'_>, message: impl Into<String>) {
        let message = message.into();
        tracing::info!(
            kind,
            pod = subject.pod,
            instance = subject.instance,
            container = subject.container,
            "{message}"
        );
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let event = Event {
            id: ring.next,
            time: jiff::Timestamp::now().to_string(),
            kind: kind.to_owned(),
            pod: subject.pod.map(str::to_owned),
            instance: subject.instance.map(str::to_owned),
            container: subject.container.map(str::to_owned),
            message,
        };
        ring.next += 1;
        if ring.events.len() == KEPT {
            ring.events.pop_front();
        }
        ring.events.push_back(event.clone());
        // nobody following is fine; sent under the lock, so that ids arrive in order
        let _ = self.sender.send(event);
    }

    /// The kept events after `id`, and a receiver of what follows without gap.
    pub fn after(&self, id: u64) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = ring.events.iter().filter(|e| e.id > id).cloned().collect();
        (kept, self.sender.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_last_and_ids_go_up_by_one() {
        let events = Events::default();
        for n in 0..KEPT + 10 {
            events.publish("k", Subject::default(), n.to_string());
        }
        let (kept, mut receiver) = events.after(0);
        assert_eq!((kept.len(), kept[0].id), (KEPT, 11));
        assert!(kept.windows(2).all(|w| w[1].id == w[0].id + 1));
        assert_eq!(events.after(KEPT as u64 + 9).0.len(), 1);
        events.publish("k", Subject::default(), "last");
        assert_eq!(receiver.try_recv().unwrap().message, "last");
    }
}
