//! What an instance needs once for each sandbox, and giving it back.

use std::os::fd::AsFd;
use std::sync::Arc;

use agentd_api::pod::{NetworkMode, PodSpec};
use agentd_isolators::network::AttachRequest;

use crate::failpoint;
use crate::host::Host;
use crate::sandbox::Sandbox;
use crate::telemetry::spans::step;

/// Whether the pod lives in the host's network namespace.
pub fn uses_host_network(pod: &PodSpec) -> bool {
    match pod.networks.first() {
        Some(network) => network.mode == NetworkMode::Host,
        None => !pod.agentd.isolated_network,
    }
}

/// Host name of a pod: its id's last segment and the instance, or the host's own in host mode.
pub fn hostname(host: &Host, pod: &PodSpec, instance: &str) -> String {
    if uses_host_network(pod) {
        return host.hostname().to_owned();
    }
    let last = pod.id.rsplit('/').next().unwrap_or("pod");
    let clean: String =
        last.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    let clean = clean.trim_matches('-');
    let short: String = clean.chars().take(48).collect();
    format!("{}-{instance}", if short.is_empty() { "pod" } else { &short })
}

/// Readies a sandbox for a pod: folder and disk limit, host name, networks, held volumes. May be repeated.
pub async fn run(host: &Arc<Host>, pod: &PodSpec, sandbox: &Sandbox) -> Result<(), String> {
    let name = hostname(host, pod, &sandbox.id);
    let id = sandbox.id.as_str();
    let namespace = sandbox.network_namespace().map_err(|e| format!("the pod's network namespace: {e}"))?;
    let readied = || {
        use std::os::unix::fs::DirBuilderExt;
        let dir = host.layout.sandbox(id);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&dir)
            .map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
        step("disk.prepare").in_scope(|| host.disk.prepare_pod(id, pod, &dir)).map_err(|e| e.to_string())?;
        failpoint::pass("setup.disk-ready");
        let request = AttachRequest {
            instance: id,
            pod,
            hostname: &name,
            netns: (!uses_host_network(pod)).then_some(namespace.as_fd()),
            pod_dir: &dir,
        };
        step("network.attach").in_scope(|| host.network.attach(&request)).map_err(|e| e.to_string())?;
        failpoint::pass("setup.network-attached");
        let _volumes = step("volumes.mount").entered();
        let secrets = host.secret_volumes(pod)?;
        host.volumes.pod_mounts(pod, &secrets).map_err(|e| e.to_string())
    };
    // the request is on its way while this thread works
    let (renamed, held) = tokio::join!(sandbox.init.hostname(&name), async { tokio::task::block_in_place(readied) });
    renamed.map_err(|e| e.to_string())?;
    for (name, mount) in held? {
        sandbox.init.hold(&name, mount.as_fd()).await.map_err(|e| format!("volume {name}: {e}"))?;
    }
    failpoint::pass("setup.done");
    Ok(())
}

/// Takes the pod from its networks.
pub async fn detach(host: &Arc<Host>, id: &str, sandbox: Option<&Sandbox>) -> Result<(), String> {
    let namespace = sandbox.and_then(|s| s.network_namespace().ok());
    let (shared, id) = (Arc::clone(host), id.to_owned());
    tokio::task::spawn_blocking(move || {
        shared.network.detach(&id, namespace.as_ref().map(AsFd::as_fd)).map_err(|e| e.to_string())
    })
    .await
    .map_err(|e| e.to_string())?
}

/// Gives back everything of an instance but its checkpoint and logs. May be repeated. Blocking.
pub fn release(host: &Arc<Host>, id: &str, sandbox: Option<Sandbox>) -> Result<(), String> {
    failpoint::pass("release.begun");
    let namespace = sandbox.as_ref().and_then(|s| s.network_namespace().ok());
    tokio::task::block_in_place(|| {
        host.network.detach(id, namespace.as_ref().map(AsFd::as_fd)).map_err(|e| e.to_string())?;
        drop((namespace, sandbox));
        failpoint::pass("release.network-detached");
        host.sandboxes.release(id)?;
        failpoint::pass("release.sandbox-destroyed");
        let dir = host.layout.sandbox(id);
        host.disk.cleanup_pod(id, &dir).map_err(|e| e.to_string())?;
        agentd_isolators::disk::remove_tree(&dir).map_err(|e| format!("cannot remove {}: {e}", dir.display()))
    })?;
    host.images.release(id);
    host.network_left.notify_one();
    failpoint::pass("release.done");
    Ok(())
}
