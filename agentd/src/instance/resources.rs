//! Changed resources of running containers.

use std::sync::Arc;

use agentd_api::pod::PodSpec;
use agentd_isolators::ContainerContext;

use super::actor::Actor;
use crate::failpoint;

impl Actor {
    pub(super) async fn update(&mut self, spec: PodSpec) -> Result<(), String> {
        if self.record.machine.over() {
            self.record.spec = spec.clone();
            self.spec = Arc::new(spec);
            self.persist();
            return Ok(());
        }
        let before = self.grant.amount();
        self.grant.resize(super::needs(&spec)).map_err(|short| short.one_line())?;
        let old = std::mem::replace(&mut self.record.spec, spec.clone());
        self.spec = Arc::new(spec);
        self.persist();
        failpoint::pass("update.spec-written");
        if let Err(error) = self.apply().await {
            // back to what was, as far as the kernel lets us
            self.record.spec = old.clone();
            self.spec = Arc::new(old);
            self.persist();
            let undone = self.apply().await;
            if self.grant.resize(before).is_err() || undone.is_err() {
                tracing::error!(instance = self.record.id, "an update failed and could not be undone wholly");
            }
            return Err(error);
        }
        failpoint::pass("update.applied");
        Ok(())
    }

    /// Writes the specification's resources into the cgroups of the running containers.
    pub(super) async fn apply(&self) -> Result<(), String> {
        for (&slot, live) in &self.live {
            let (host, spec, id) = (Arc::clone(&self.host), Arc::clone(&self.spec), self.record.id.clone());
            let (cgroup, cores) = (Arc::clone(&live.cgroup), self.record.cores[slot].clone());
            let attempt = self.record.machine.containers[slot].attempt;
            tokio::task::spawn_blocking(move || {
                let pod_dir = host.layout.sandbox(&id);
                let context = ContainerContext {
                    pod: &spec,
                    container: &spec.containers[slot],
                    instance: &id,
                    slot: slot as u32,
                    attempt,
                    cgroup: &cgroup,
                    pod_dir: &pod_dir,
                    image: None,
                    exclusive_cpus: &cores,
                };
                host.update(&context).map_err(|e| format!("containers[{slot}].resources: {e}"))
            })
            .await
            .map_err(|e| e.to_string())??;
        }
        Ok(())
    }
}
