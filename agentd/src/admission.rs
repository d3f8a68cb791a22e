//! What pods may use of this host, and what they hold.
//!
//! One ledger; a [`Grant`] holds an amount until it is dropped. A pod that does not fit is refused with the table of what
//! is short.

use std::sync::{Arc, Mutex, PoisonError};

use agentd_api::resources::{Resources, Shortfall, shortfall};

/// The ledger.
#[derive(Debug)]
pub struct Ledger {
    total: Resources,
    reserved: Resources,
    used: Mutex<Resources>,
}

/// An amount held by an instance; given back when dropped.
#[derive(Debug)]
pub struct Grant {
    ledger: Arc<Ledger>,
    amount: Resources,
}

impl Drop for Grant {
    fn drop(&mut self) {
        let mut used = self.ledger.used.lock().unwrap_or_else(PoisonError::into_inner);
        *used = used.saturating_sub(self.amount);
    }
}

impl Ledger {
    /// A ledger over what the host has, less what is kept for it.
    pub fn new(total: Resources, reserved: Resources) -> Arc<Self> {
        Arc::new(Self { total, reserved, used: Mutex::new(Resources::default()) })
    }

    /// What the host has.
    pub fn total(&self) -> Resources {
        self.total
    }

    /// What is kept for the host.
    pub fn reserved(&self) -> Resources {
        self.reserved
    }

    /// What pods hold.
    pub fn used(&self) -> Resources {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is left.
    pub fn free(&self) -> Resources {
        self.total.saturating_sub(self.reserved).saturating_sub(self.used())
    }

    /// Takes `amount`, or says what is short.
    pub fn take(self: &Arc<Self>, amount: Resources) -> Result<Grant, Shortfall> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.total.saturating_sub(self.reserved).saturating_sub(*used);
        let short = shortfall(amount, free);
        if !short.is_empty() {
            return Err(short);
        }
        *used = used.saturating_add(amount);
        Ok(Grant { ledger: Arc::clone(self), amount })
    }

    /// Takes `amount` whether it fits or not: for instances that already run when the daemon starts.
    pub fn adopt(self: &Arc<Self>, amount: Resources) -> Grant {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        *used = used.saturating_add(amount);
        Grant { ledger: Arc::clone(self), amount }
    }
}

impl Grant {
    /// Changes the amount held, or says what is short and leaves it.
    pub fn resize(&mut self, amount: Resources) -> Result<(), Shortfall> {
        let mut used = self.ledger.used.lock().unwrap_or_else(PoisonError::into_inner);
        let others = used.saturating_sub(self.amount);
        let free = self.ledger.total.saturating_sub(self.ledger.reserved).saturating_sub(others);
        let short = shortfall(amount, free);
        if !short.is_empty() {
            return Err(short);
        }
        *used = others.saturating_add(amount);
        self.amount = amount;
        Ok(())
    }

    /// The amount held.
    pub fn amount(&self) -> Resources {
        self.amount
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(milli: u64) -> Resources {
        Resources { cpus_milli: milli, ..Resources::default() }
    }

    #[test]
    fn grants_never_exceed_what_is_free_and_come_back() {
        let ledger = Ledger::new(cpus(2000), cpus(500));
        let mut first = ledger.take(cpus(1000)).unwrap();
        assert!(ledger.take(cpus(501)).unwrap_err().to_string().contains("cpus"));
        assert!(first.resize(cpus(1501)).is_err());
        first.resize(cpus(1500)).unwrap();
        assert_eq!(ledger.free(), cpus(0));
        drop(first);
        assert_eq!(ledger.free(), cpus(1500));
        let adopted = ledger.adopt(cpus(5000));
        assert_eq!(ledger.free(), cpus(0));
        drop(adopted);
        assert_eq!(ledger.used(), cpus(0));
    }
}
