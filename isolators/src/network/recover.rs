//! After a restart: sweeping what belongs to nobody; and leaving the host as it was when no pod is left.

use std::collections::HashSet;

use super::{ISOLATOR, Network, lock, names, store, subnet};
use crate::IsolatorError;

/// What [`Network::recover`] found.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Instances that were attached but are not known any more, and were detached.
    pub detached: Vec<String>,
    /// Links that belonged to nobody and were deleted.
    pub links: Vec<String>,
    /// Instances that could not be detached, and why; they are tried again at the next start.
    pub failed: Vec<(String, IsolatorError)>,
}

impl Network {
    /// To be called once at start, before any other change: detaches every instance that is not among `known`, deletes
    /// links of this daemon that no pod has, and brings bridge and nft table to what the remaining pods need.
    pub fn recover(&self, known: &[&str]) -> Result<Recovered, IsolatorError> {
        let mut recovered = Recovered::default();
        let strangers: Vec<String> = {
            let ledger = lock(&self.ledger);
            let names = ledger.records().map(|record| record.sandbox.clone());
            names.filter(|sandbox| !known.contains(&sandbox.as_str())).collect()
        };
        for sandbox in strangers {
            match self.detach(&sandbox, None) {
                Ok(()) => recovered.detached.push(sandbox),
                Err(error) => recovered.failed.push((sandbox, error)),
            }
        }
        let remaining: Vec<_> = lock(&self.ledger).records().cloned().collect();
        for record in &remaining {
            self.hold_ports_again(record);
        }
        recovered.links = self.sweep_links(known)?;
        let bridged = lock(&self.ledger).records().any(|record| record.address.is_some());
        if bridged {
            self.refresh()?;
        } else {
            self.shutdown()?;
        }
        Ok(recovered)
    }

    /// Deletes the links of this daemon that belong to no pod.
    fn sweep_links(&self, known: &[&str]) -> Result<Vec<String>, IsolatorError> {
        let links = self.links()?;
        let failed = |what: &str, error| IsolatorError::io(ISOLATOR, format!("cannot {what} the host's links"), error);
        let all = links.all().map_err(|error| failed("list", error))?;
        let bridge = all.iter().find(|link| link.name == self.bridge).map(|link| link.index);
        let prefix = names::alias_prefix(&self.settings.instance);
        let mut wanted: HashSet<String> = HashSet::new();
        for sandbox in known
            .iter()
            .copied()
            .map(str::to_owned)
            .chain(lock(&self.ledger).records().map(|record| record.sandbox.clone()))
        {
            wanted.insert(names::veth(&self.settings.instance, &sandbox));
        }
        let mut deleted = Vec::new();
        for link in all {
            // The daemon may have died before the alias was set; then the bridge tells whose it is.
            let ours =
                link.alias.starts_with(&prefix) || (bridge == Some(link.controller) && link.name.starts_with("ag"));
            if link.veth && ours && !wanted.contains(&link.name) {
                links.delete(&link.name).map_err(|error| failed("delete one of", error))?;
                deleted.push(link.name);
            }
        }
        Ok(deleted)
    }

    /// Puts right bridge, forwarding and nft table, for instance after somebody flushed the rules. Does nothing when no
    /// pod is on the built-in network.
    pub fn refresh(&self) -> Result<(), IsolatorError> {
        if lock(&self.ledger).records().any(|record| record.address.is_some()) {
            self.forget_base();
            self.ensure_base()?;
        }
        Ok(())
    }

    /// Removes bridge and nft table. Returns false, and does nothing, as long as a pod is on the built-in network.
    /// Forwarding stays as it is.
    pub fn shutdown(&self) -> Result<bool, IsolatorError> {
        let mut base = lock(&self.base);
        if lock(&self.ledger).records().any(|record| record.address.is_some()) {
            return Ok(false);
        }
        let failed = |error| IsolatorError::io(ISOLATOR, format!("cannot delete the bridge {}", self.bridge), error);
        let links = self.links()?;
        let alias = names::bridge_alias(&self.settings.instance);
        let present = links.find(&self.bridge).map_err(failed)?.is_some_and(|link| link.alias == alias);
        // The subnets are written down before the table and the bridge are made: without them and without a bridge
        // (whose state folder may have been lost) there is nothing to remove, and nft need not be there.
        if present || subnet::load(&self.settings.state_dir).is_some() {
            links.delete(&self.bridge).map_err(failed)?;
            {
                let _nft = lock(&self.nft);
                self.firewall.remove()?;
            }
            store::remove(&self.settings.state_dir.join("subnets.json"))?;
        }
        *base = None;
        Ok(true)
    }
}
