//! One start of a container: image, isolators, artifacts, hand-over to pod-init.
//!
//! Pulls and downloads may be given up at any time; the steps on the host and the hand-over are never interrupted, so
//! that nothing goes on after the answer and the machine always learns whether a program runs.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use agentd_api::message::Progress;
use agentd_api::pod::PodSpec;
use agentd_api::status::Reason;
use agentd_fetcher::FetchRequest;
use agentd_isolators::cgroup::ContainerCgroup;
use agentd_isolators::{ContainerContext, ImageRoot, Launch};
use agentd_launcher::message::SpareKind;
use agentd_launcher::plan::ContainerPlan;
use agentd_logging::Stream;
use rustix::fs::{Mode, OFlags};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{environment, setup};
use crate::events::Subject;
use crate::failpoint;
use crate::host::Host;
use crate::launch::LaunchError;
use crate::launch::pod_init::PodInit;
use crate::observe::Identity;
use crate::observe::latency::LATENCIES;
use crate::sandbox::Spare;
use crate::telemetry;
use crate::telemetry::spans::{self, Parent};

/// What one start is made of.
pub struct Job {
    pub host: Arc<Host>,
    pub spec: Arc<PodSpec>,
    pub instance: String,
    pub init: Arc<PodInit>,
    pub slot: usize,
    pub attempt: u32,
    pub cores: Vec<u32>,
    /// A spare that waits already.
    pub spare: Option<Spare>,
    pub cancel: CancellationToken,
    /// The start of the pod that this is part of.
    pub trace: Parent,
}

/// A program that runs.
pub struct Started {
    pub pid: u32,
    pub cgroup: Arc<ContainerCgroup>,
    /// The plan without its mounts, for programs that join the container.
    pub plan: Arc<ContainerPlan>,
    /// Count of memory kills before the start.
    pub oom_before: u64,
    /// The specification that it was started with.
    pub spec: Arc<PodSpec>,
}

/// Why there is none.
pub type Failure = (Reason, String);

struct Prepared {
    cgroup: Arc<ContainerCgroup>,
    launch: Launch,
    oom_before: u64,
}

/// Runs the job.
pub async fn run(job: Job) -> Result<Started, Failure> {
    let began = Instant::now();
    let name = &job.spec.containers[job.slot].name;
    let span = job.trace.adopt(spans::container_start(&job.spec.id, &job.instance, name, job.attempt));
    let started = async {
        let prepared = prepare(&job).await?;
        hand_over(&job, prepared).instrument(spans::step("launch.hand_over")).await
    };
    let result = started.instrument(span.clone()).await;
    match &result {
        Ok(_) => LATENCIES.container_start.observe_of(began.elapsed(), telemetry::trace_of(&span)),
        Err((_, message)) => spans::failed(&span, message),
    }
    result
}

/// A step that may be given up in its midst. Work on the host by blocking threads is none: it would go on after the
/// launch was answered, while the instance is being given back.
async fn unless_cancelled<T>(job: &Job, step: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::select! {
        biased;
        () = job.cancel.cancelled() => {
            Err((Reason::TaskKilledByRequest, "given up before it was started".to_owned()))
        }
        result = step => result,
    }
}

fn launch_failed(error: impl std::fmt::Display) -> Failure {
    (Reason::ContainerLaunchFailed, error.to_string())
}

/// The image of a container, pulled if need be and held for the instance.
pub async fn image(
    host: &Arc<Host>,
    spec: &PodSpec,
    instance: &str,
    slot: usize,
    again: bool,
) -> Result<Option<ImageRoot>, Failure> {
    let container = &spec.containers[slot];
    let Some(mut wanted) = container.image.clone() else { return Ok(None) };
    // a restart runs what the first start pulled
    wanted.force_pull &= !again;
    let (events, pod, id, name) = (Arc::clone(host), spec.id.clone(), instance.to_owned(), container.name.clone());
    let reference = wanted.id.clone();
    let pulled = Arc::new(AtomicBool::new(false));
    let pulling = Arc::clone(&pulled);
    let progress = Arc::new(move |progress: Progress| {
        if let Progress::Resolved { layers, bytes, .. } = progress {
            pulling.store(true, Ordering::Relaxed);
            let subject = Subject { pod: Some(&pod), instance: Some(&id), container: Some(&name) };
            events.events.publish("image-pulling", subject, format!("{reference}: {layers} layers, {bytes} bytes"));
        }
    });
    let (began, span) = (Instant::now(), spans::image_pull(&wanted.id));
    let image = host.images.obtain(&wanted, instance, progress).instrument(span.clone()).await;
    let image = image.map_err(|e| {
        spans::failed(&span, &e);
        (Reason::ImagePullFailed, format!("containers[{slot}].image: {e}"))
    })?;
    span.record("agentd.image.pulled", pulled.load(Ordering::Relaxed));
    if pulled.load(Ordering::Relaxed) {
        LATENCIES.image_pull.observe_of(began.elapsed(), telemetry::trace_of(&span));
        let subject = Subject { pod: Some(&spec.id), instance: Some(instance), container: Some(&container.name) };
        host.events.publish("image-pulled", subject, format!("{} is {}", image.reference, image.digest));
    }
    Ok(Some(ImageRoot {
        layers: image.layers,
        entrypoint: image.config.entrypoint,
        cmd: image.config.cmd,
        env: image.config.env,
        user: image.config.user,
        workdir: image.config.workdir,
    }))
}

/// The variables that agentd, the pod and the container give. Reads secrets, so never logged. Blocking.
pub fn variables(host: &Host, spec: &PodSpec, instance: &str, slot: usize) -> Result<Vec<Vec<u8>>, String> {
    let endpoints = host.network.pod_network(instance).map(|n| n.endpoints).unwrap_or_default();
    let facts = environment::Facts {
        pod: spec,
        container: &spec.containers[slot],
        instance,
        host: host.hostname(),
        endpoints: &endpoints,
    };
    environment::build(facts, &|name| host.secret(spec, name))
}

async fn prepare(job: &Job) -> Result<Prepared, Failure> {
    let wanted = image(&job.host, &job.spec, &job.instance, job.slot, job.attempt > 1);
    let image = unless_cancelled(job, wanted).await?;
    failpoint::pass("launch.image-ready");
    let Spare { cgroup, pid } = if let Some(spare) = &job.spare {
        spare.clone()
    } else {
        let kind = if job.spec.agentd.share_pid { SpareKind::SharedPid } else { SpareKind::Own };
        // what is left of an attempt that the daemon did not survive
        let spare = async {
            job.init.forget(job.slot as u32).await.map_err(launch_failed)?;
            fresh_cgroup(job).await?;
            job.host.sandboxes.spare(&job.instance, &job.init, job.slot as u32, kind).await.map_err(launch_failed)
        };
        spare.instrument(spans::step("launch.spare")).await?
    };
    let isolate = async { tokio::task::block_in_place(|| isolate(job, image.as_ref(), cgroup, pid)) };
    let prepared = isolate.instrument(spans::step("launch.isolate")).await?;
    failpoint::pass("launch.prepared");
    if !job.spec.containers[job.slot].artifacts.is_empty() {
        let fetched = fetch_artifacts(job, &prepared).instrument(spans::step("artifacts.fetch"));
        unless_cancelled(job, fetched).await?;
    }
    failpoint::pass("launch.artifacts-ready");
    Ok(prepared)
}

/// Removes the cgroups of the container's last attempt. They may have been killed, and what is cloned into a cgroup that
/// was once killed is killed at its birth by Linux from 6.14; also, the counters of the new attempt begin at 0.
async fn fresh_cgroup(job: &Job) -> Result<(), Failure> {
    let (host, instance, slot) = (Arc::clone(&job.host), job.instance.clone(), job.slot as u32);
    let remove = move || host.driver.remove_container(&instance, slot, Instant::now() + Duration::from_secs(5));
    tokio::task::spawn_blocking(remove).await.map_err(launch_failed)?.map_err(launch_failed)
}

/// Has every isolator do its part. Blocking.
fn isolate(job: &Job, image: Option<&ImageRoot>, cgroup: Arc<ContainerCgroup>, pid: u32) -> Result<Prepared, Failure> {
    let (host, spec, slot) = (&job.host, &job.spec, job.slot);
    // known before the program begins, so that nothing it does is nobody's
    if let Some(identity) = Identity::of(&host.driver, spec, &cgroup, job.attempt) {
        host.watcher.publish(identity);
    }
    let mut launch = Launch::default();
    launch.plan.umask = 0o022;
    launch.plan.env = variables(host, spec, &job.instance, slot).map_err(launch_failed)?;
    launch.plan.oom_score_adj = oom_score_adj(spec.containers[slot].resources.mem, host.memory_total());
    if setup::uses_host_network(spec) {
        let own = std::fs::File::open("/proc/self/ns/net")
            .map_err(|e| launch_failed(format!("the host's network namespace: {e}")))?;
        launch.plan.network_namespace = Some(launch.push_fd(own.into()));
    }
    let pod_dir = host.layout.sandbox(&job.instance);
    let context = ContainerContext {
        pod: spec,
        container: &spec.containers[slot],
        instance: &job.instance,
        slot: slot as u32,
        attempt: job.attempt,
        cgroup: &cgroup,
        pod_dir: &pod_dir,
        image,
        exclusive_cpus: &job.cores,
    };
    let oom_before = host.memory.oom_kills(&cgroup).unwrap_or(0);
    host.prepare(&context, &mut launch).map_err(launch_failed)?;
    host.driver.attach_on_demand(&cgroup, pid as i32).map_err(launch_failed)?;
    Ok(Prepared { cgroup, launch, oom_before })
}

async fn fetch_artifacts(job: &Job, prepared: &Prepared) -> Result<(), Failure> {
    let container = &job.spec.containers[job.slot];
    for (index, artifact) in container.artifacts.iter().enumerate() {
        let (host, instance, name) = (Arc::clone(&job.host), job.instance.clone(), container.name.clone());
        let sandbox = tokio::task::spawn_blocking(move || open_sandbox(&host, &instance, &name))
            .await
            .map_err(launch_failed)?
            .map_err(launch_failed)?;
        let request = FetchRequest {
            field: format!("containers[{}].artifacts[{index}]", job.slot),
            artifact: artifact.clone(),
            sandbox,
            owner: (prepared.launch.plan.uid, prepared.launch.plan.gid),
        };
        job.host.fetcher.fetch(request).await.map_err(|e| (Reason::ArtifactFetchFailed, e.to_string()))?;
    }
    Ok(())
}

fn open_sandbox(host: &Host, instance: &str, container: &str) -> Result<OwnedFd, String> {
    let data = host.disk.open_pod_dir(instance, &host.layout.sandbox(instance)).map_err(|e| e.to_string())?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let sandbox = rustix::fs::openat(&data, "sandbox", flags, Mode::empty());
    sandbox
        .and_then(|dir| rustix::fs::openat(dir.as_fd(), container, flags, Mode::empty()))
        .map_err(|e| format!("the sandbox of {container}: {e}"))
}

async fn hand_over(job: &Job, prepared: Prepared) -> Result<Started, Failure> {
    let Prepared { cgroup, launch, oom_before } = prepared;
    let Launch { mut plan, fds } = launch;
    let (pid, [out, err]) = job
        .init
        .start(job.slot as u32, job.attempt, &plan.encode(), &fds)
        .await
        .map_err(|e| launch_failed(not_started(job, &e)))?;
    failpoint::pass("launch.started");
    drop(fds);
    let container = &job.spec.containers[job.slot];
    let (name, kept) = (&container.name, container.agentd.log.max_bytes);
    for (stream, fd) in [(Stream::Stdout, out), (Stream::Stderr, err)] {
        if let Err(error) = job.host.capture.add_limited(&job.instance, name, job.attempt, stream, fd, kept) {
            tracing::error!(instance = job.instance, container = name, "{error}");
        }
    }
    failpoint::pass("launch.captured");
    plan.mounts.clear();
    Ok(Started { pid, cgroup, plan: Arc::new(plan), oom_before, spec: Arc::clone(&job.spec) })
}

/// Why a container's program does not run, in the pod's words where the program is at fault.
fn not_started(job: &Job, error: &LaunchError) -> String {
    let container = &job.spec.containers[job.slot];
    let at = format!("containers[{}]", job.slot);
    let program = match error {
        LaunchError::Step { stage, errno } => stage.strip_prefix("exec ").map(|program| (program, *errno)),
        _ => None,
    };
    let Some((program, errno)) = program else { return format!("{at}: {error}") };
    let field = if container.exec.is_some() { "exec.command" } else { "image" };
    let fault = match errno {
        libc::ENOENT | libc::ENOTDIR if container.image.is_some() => {
            "not found in the container; correct its path or the interpreter that it names, or use an image that has it"
        }
        libc::ENOENT | libc::ENOTDIR => {
            "not found in the container; correct its path or the interpreter that it names, install it on the host, or \
             name an image that has it"
        }
        libc::EACCES => {
            "may not be executed by the container's user; make it executable (chmod +x), or choose another user"
        }
        libc::ENOEXEC => {
            "no program that this host can execute; use one for its architecture, or begin a script with #! and its \
             interpreter"
        }
        _ => return format!("{at}.{field}: {error}"),
    };
    format!("{at}.{field}: {program}: {fault}")
}

/// kubelet's rule: the more of the host's memory a container may use, the later it is chosen when the host runs out.
fn oom_score_adj(mem_mib: f64, total_bytes: u64) -> i32 {
    let share = mem_mib * 1024.0 * 1024.0 / (total_bytes.max(1) as f64);
    ((1000.0 - 1000.0 * share) as i32).clamp(2, 999)
}
