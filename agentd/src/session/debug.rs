//! Debug containers: a program from another image beside a container, which sees the container's processes, network and
//! IPC, and its files below [`TARGET`].

use std::os::fd::OwnedFd;
use std::sync::Arc;

use agentd_api::pod::{Command, Exec, Image, PodSpec};
use agentd_api::problem::Violation;
use agentd_api::session::ExecRequest;
use agentd_isolators::{ImageRoot, Launch};
use agentd_launcher::plan::ContainerPlan;

use super::begin::set_variable;
use crate::host::Host;
use crate::node::NodeError;
use crate::target::Target;

/// Where the container's own files are.
pub(super) const TARGET: &str = "/target";

/// Name of the folder of its writes, below the pod's disk limit.
pub(super) fn upper(key: u32) -> String {
    format!("d{key}")
}

/// Readies a debug container: pulls the image where it is not there, and makes its root.
pub(super) async fn prepare(
    host: &Arc<Host>,
    spec: &PodSpec,
    target: &Target,
    container: &ContainerPlan,
    request: &ExecRequest,
    image: &Image,
    key: u32,
) -> Result<(ContainerPlan, Vec<OwnedFd>), NodeError> {
    let refuse = |message: String| NodeError::BadRequest(vec![Violation::new("image", message)]);
    if !host.config.sessions.debug_images {
        return Err(refuse("debug containers are switched off on this host (sessions.debug_images)".to_owned()));
    }
    if spec.agentd.user_namespace {
        let cure = "begin a session without an image";
        return Err(refuse(format!(
            "a pod with a user namespace of its own cannot be joined from another image; {cure}"
        )));
    }
    let root = host
        .images
        .obtain(image, &target.instance, Arc::new(|_| ()))
        .await
        .map_err(|error| refuse(error.to_string()))?;
    let root = ImageRoot {
        layers: root.layers,
        entrypoint: root.config.entrypoint,
        cmd: root.config.cmd,
        env: root.config.env,
        user: root.config.user,
        workdir: root.config.workdir,
    };
    let pod = pod_of(spec, target, request);
    let mut launch = Launch::default();
    launch.plan.umask = 0o022;
    // the image's PATH counts, and everything else is the container's
    launch.plan.env = container.env.iter().filter(|entry| !entry.starts_with(b"PATH=")).cloned().collect();
    let (shared, slot, place) = (Arc::clone(host), target.slot as u32, host.layout.sandbox(&target.instance));
    let instance = target.instance.clone();
    let built = tokio::task::spawn_blocking(move || {
        shared.rootfs.build_debug(&pod, slot, &upper(key), (&instance, &place), &root, &mut launch).map(|()| launch)
    });
    let Launch { plan, fds } = built
        .await
        .map_err(|error| NodeError::Failed(error.to_string()))?
        .map_err(|error| refuse(error.to_string()))?;
    let mut plan = ContainerPlan {
        devices: container.devices.clone(),
        masked: container.masked.clone(),
        readonly: container.readonly.clone(),
        capabilities: container.capabilities,
        no_new_privs: container.no_new_privs,
        seccomp: container.seccomp.clone(),
        rlimits: container.rlimits.clone(),
        oom_score_adj: container.oom_score_adj,
        target: Some(TARGET.as_bytes().to_vec()),
        ..plan
    };
    set_variable(&mut plan.env, "AGENTD_TARGET", TARGET);
    Ok((plan, fds))
}

/// Removes what it wrote.
pub(super) async fn remove(host: &Arc<Host>, instance: &str, key: u32) {
    let (shared, instance) = (Arc::clone(host), instance.to_owned());
    let removed = tokio::task::spawn_blocking(move || {
        shared.rootfs.remove_debug(&upper(key), (&instance, &shared.layout.sandbox(&instance)))
    });
    if let Ok(Err(error)) = removed.await {
        tracing::warn!(key, "{error}; it goes with the pod");
    }
}

/// The pod as if the debug container were the one that is joined.
fn pod_of(spec: &PodSpec, target: &Target, request: &ExecRequest) -> PodSpec {
    let mut pod = spec.clone();
    pod.user = None;
    let container = &mut pod.containers[target.slot];
    container.user.clone_from(&request.user);
    container.agentd.workdir.clone_from(&request.workdir);
    container.agentd.read_only_root = false;
    container.exec = (!request.command.is_empty())
        .then(|| Exec { command: Command::Argv(request.command.clone()), override_entrypoint: None });
    pod
}
