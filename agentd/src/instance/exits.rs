//! Hands the ends of joined processes (commands in a container) to those who wait for them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use agentd_launcher::message::Ended;
use tokio::sync::mpsc;

/// Who waits for which process.
#[derive(Debug, Default)]
pub struct Exits(Mutex<HashMap<u32, mpsc::UnboundedSender<Ended>>>);

impl Exits {
    /// Registers before the process is started, so that no end is missed.
    pub fn wait_for(&self, key: u32) -> mpsc::UnboundedReceiver<Ended> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, sender);
        receiver
    }

    /// A process has ended.
    pub fn ended(&self, key: u32, ended: Ended) {
        if let Some(sender) = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key) {
            // the one who waited may have given up
            let _ = sender.send(ended);
        }
    }

    /// Nobody waits any more.
    pub fn drop_key(&self, key: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    /// The pod-init is gone: everybody who waits is told by a closed channel.
    pub fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
