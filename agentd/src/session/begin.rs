//! Making a session: its cgroup, its streams, its program in the container's namespaces.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use agentd_api::pod::PodSpec;
use agentd_api::problem::Violation;
use agentd_api::session::{ExecRequest, SessionKind};
use agentd_isolators::capabilities;
use agentd_isolators::cgroup::ContainerCgroup;
use agentd_isolators::rootfs::user;
use agentd_launcher::message::SpareKind;
use agentd_launcher::plan::ContainerPlan;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::unix::AsyncFd;

use super::program::{Joined, Program as _, is_over};
use super::record::{Record, cgroup_name, cut};
use super::ring::{Ring, Stream};
use super::stage::{Stage, Way, enlarge};
use super::{Begin, debug, registry, task};
use crate::failpoint;
use crate::files::container::process;
use crate::host::Host;
use crate::instance::exits::Exits;
use crate::instance::{command, now_ms};
use crate::launch::LaunchError;
use crate::launch::pod_init::PodInit;
use crate::node::NodeError;
use crate::target::Target;

/// Size of a terminal whose client names none.
const SIZE: (u16, u16) = (24, 80);

/// What a running container gives to a session.
#[derive(Debug, Clone)]
pub struct Joinable {
    /// Its pod-init.
    pub init: Arc<PodInit>,
    /// Ends of joined processes.
    pub exits: Arc<Exits>,
    /// Its cgroup.
    pub cgroup: Arc<ContainerCgroup>,
    /// The plan that it was started with, without its mounts.
    pub plan: Arc<ContainerPlan>,
    /// Number of its start.
    pub attempt: u32,
}

/// What was made for a session.
pub(super) struct Made {
    pub record: Record,
    pub program: Joined,
    pub ring: Ring,
    pub ends: task::Ends,
    pub input: Option<Way>,
    pub terminal: Option<AsyncFd<OwnedFd>>,
    pub pid: u32,
    pub size: Option<(u16, u16)>,
}

/// Makes a session and starts its program.
pub(super) async fn make(
    host: &Arc<Host>,
    spec: &PodSpec,
    target: &Target,
    joinable: Joinable,
    begin: Begin,
    id: String,
) -> Result<Made, NodeError> {
    let request = &begin.request;
    let key = command::next_key();
    let (plan, fds) = match &request.image {
        Some(image) => {
            let (plan, fds) = debug::prepare(host, spec, target, &joinable.plan, request, image, key).await?;
            (plan_of(host, spec, None, plan, request)?, fds)
        }
        None => (plan_of(host, spec, Some(target), (*joinable.plan).clone(), request)?, Vec::new()),
    };
    let record = Record {
        id,
        kind: if request.image.is_some() && begin.kind == SessionKind::Exec { SessionKind::Debug } else { begin.kind },
        debug: request.image.is_some(),
        pod: target.pod.clone(),
        instance: target.instance.clone(),
        container: target.container.clone(),
        slot: target.slot as u32,
        attempt: joinable.attempt,
        key,
        command: cut(&plan.argv.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect::<Vec<_>>()),
        tty: request.tty,
        stdin: request.stdin || request.tty,
        detach: request.detach,
        idle_seconds: request.idle_seconds,
        max_seconds: request.max_seconds,
        principal: begin.principal,
        started_ms: now_ms(),
        recorded: begin.record,
        why: None,
    };
    let ring = Ring::new(host.config.sessions.buffer_kib as usize * 1024, &record.encode())
        .map_err(|error| NodeError::Failed(format!("memory for the session's output: {error}")))?;
    let name = cgroup_name(key);
    let ended = joinable.exits.wait_for(key);
    let program = Joined {
        host: Arc::clone(host),
        oom_before: host.memory.oom_kills(&joinable.cgroup).unwrap_or(0),
        init: Mutex::new((Arc::clone(&joinable.init), Arc::clone(&joinable.exits))),
        cgroup: Arc::clone(&joinable.cgroup),
        key,
        name: name.clone(),
        debug: record.debug,
        container: target.pid,
    };
    let size = request.tty.then(|| (request.rows.unwrap_or(SIZE.0), request.columns.unwrap_or(SIZE.1)));
    let started = start(host, &joinable, target, &record, (&plan, &fds), &ring, size).await;
    drop(fds);
    match started {
        Ok(Started { pid, output, stage, input, terminal }) => {
            failpoint::pass("session.started");
            let ends = task::Ends { output, stage, ended };
            Ok(Made { record, program, ring, ends, input, terminal, pid, size })
        }
        Err(error) => {
            // whatever came of it goes; a spare that failed has ended
            program.clear().await;
            program.forget().await;
            if matches!(error, NodeError::Failed(_)) && is_over(target.pid) {
                return Err(NodeError::Conflict(format!("the container {} has just ended", target.container)));
            }
            Err(error)
        }
    }
}

struct Started {
    pid: u32,
    output: Vec<(Stream, AsyncFd<OwnedFd>)>,
    stage: Stage,
    input: Option<Way>,
    terminal: Option<AsyncFd<OwnedFd>>,
}

async fn start(
    host: &Arc<Host>,
    joinable: &Joinable,
    target: &Target,
    record: &Record,
    (plan, fds): (&ContainerPlan, &[OwnedFd]),
    ring: &Ring,
    size: Option<(u16, u16)>,
) -> Result<Started, NodeError> {
    let failed = |error: &dyn std::fmt::Display| NodeError::Failed(format!("the session cannot be begun: {error}"));
    let launcher = |error: LaunchError| not_started(record, &error);
    let directory =
        host.driver.create_exec(&joinable.cgroup, &cgroup_name(record.key)).map_err(|error| failed(&error))?;
    let tasks = host.driver.task_files(&joinable.cgroup).map_err(|error| failed(&error))?;
    failpoint::pass("session.cgroup-made");
    let kind = SpareKind::Join { key: target.slot as u32 };
    joinable.init.spare(record.key, kind, directory.as_fd(), &tasks).await.map_err(launcher)?;
    failpoint::pass("session.spare-forked");
    let plan = plan.encode();
    let stage = Stage::new().map_err(|error| failed(&error))?;
    if let Some(size) = size {
        let kept = [ring.as_fd(), stage.read.as_fd(), stage.write.as_fd()];
        let (pid, master) =
            joinable.init.start_terminal(record.key, &plan, size, &kept, fds).await.map_err(launcher)?;
        let (input, output, terminal) = terminal_ends(master).map_err(|error| failed(&error))?;
        let input = Some(Way { to: input, stage: None });
        return Ok(Started { pid, output: vec![(Stream::Stdout, output)], stage, input, terminal: Some(terminal) });
    }
    let (out, out_write) = output_pipe().map_err(|error| failed(&error))?;
    let (err, err_write) = output_pipe().map_err(|error| failed(&error))?;
    let (stdin, input) = if record.stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(&error))?;
        enlarge(&write);
        rustix::io::ioctl_fionbio(&write, true).map_err(|error| failed(&error))?;
        (read, Some((write, Stage::new().map_err(|error| failed(&error))?)))
    } else {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        (null.map_err(|error| failed(&error))?, None)
    };
    let mut kept: Vec<_> = input.iter().map(|(write, _)| write.as_fd()).collect();
    kept.extend([out.as_fd(), err.as_fd(), ring.as_fd(), stage.read.as_fd(), stage.write.as_fd()]);
    kept.extend(input.iter().flat_map(|(_, stage)| [stage.read.as_fd(), stage.write.as_fd()]));
    let streams = [stdin.as_fd(), out_write.as_fd(), err_write.as_fd()];
    let pid = joinable.init.start_parked(record.key, &plan, streams, &kept, fds).await.map_err(launcher)?;
    let asynchronous = |fd| asynchronous(fd).map_err(|error| failed(&error));
    let output = vec![(Stream::Stdout, asynchronous(out)?), (Stream::Stderr, asynchronous(err)?)];
    let input = match input {
        Some((write, stage)) => Some(Way { to: asynchronous(write)?, stage: Some(stage) }),
        None => None,
    };
    Ok(Started { pid, output, stage, input, terminal: None })
}

/// A pipe whose read end does not block.
fn output_pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    enlarge(&read);
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((read, write))
}

pub(super) fn asynchronous(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open file from its making to its drop, as `register` demands.
    unsafe { AsyncFd::register(fd) }.map_err(Into::into)
}

/// What is read from, written to and resized: three registrations of one terminal, which do not wait on each other.
pub(super) fn terminal_ends(
    master: OwnedFd,
) -> std::io::Result<(AsyncFd<OwnedFd>, AsyncFd<OwnedFd>, AsyncFd<OwnedFd>)> {
    let (output, terminal) = (master.try_clone()?, master.try_clone()?);
    Ok((asynchronous(master)?, asynchronous(output)?, asynchronous(terminal)?))
}

/// The plan of the container that is joined, or of a debug container, with what the request changes.
fn plan_of(
    host: &Host,
    spec: &PodSpec,
    joined: Option<&Target>,
    mut plan: ContainerPlan,
    request: &ExecRequest,
) -> Result<ContainerPlan, NodeError> {
    let mut faults = Vec::new();
    // an image's own entrypoint may stand in the plan of a debug container, whose user is resolved already
    if joined.is_some() {
        plan.mounts.clear();
        plan.argv = request.command.iter().map(|word| word.clone().into_bytes()).collect();
    }
    if let (Some(target), Some(wanted)) = (joined, &request.user) {
        match resolve_user(target, wanted) {
            Ok(user) => {
                (plan.uid, plan.gid, plan.groups) = (user.uid, user.gid, user.groups);
                if let Some(home) = user.home {
                    set_variable(&mut plan.env, "HOME", &home);
                }
            }
            Err(message) => faults.push(Violation::new("user", message)),
        }
    }
    if request.tty && !plan.env.iter().any(|entry| entry.starts_with(b"TERM=")) {
        set_variable(&mut plan.env, "TERM", "xterm");
    }
    for (name, value) in &request.environment {
        set_variable(&mut plan.env, name, value);
    }
    if let (Some(directory), true) = (&request.workdir, joined.is_some()) {
        plan.cwd = directory.clone().into_bytes();
    }
    let user_namespace = spec.agentd.user_namespace;
    for (n, name) in request.capabilities.iter().enumerate() {
        let known = capabilities::bit(name).filter(|bit| host.capabilities.known & bit != 0);
        match known {
            Some(bit) if user_namespace || host.capabilities.grantable & bit != 0 => {
                plan.capabilities.bounding |= bit;
                plan.capabilities.permitted |= bit;
            }
            Some(_) => faults.push(Violation::new(
                format!("capabilities[{n}]"),
                format!("{name}: agentd itself does not have it on this host, so that it cannot be given"),
            )),
            None => faults.push(Violation::new(
                format!("capabilities[{n}]"),
                format!("found {:?}, expected a capability of this kernel, e.g. CAP_SYS_PTRACE", cut_name(name)),
            )),
        }
    }
    if !request.capabilities.is_empty() && plan.uid != 0 && faults.is_empty() {
        let message = format!(
            "the session runs as user {}, and capabilities count for root alone; leave them out, or add \"user\": \"0\"",
            plan.uid
        );
        faults.push(Violation::new("capabilities", message));
    }
    if faults.is_empty() { Ok(plan) } else { Err(NodeError::BadRequest(faults)) }
}

fn cut_name(name: &str) -> String {
    name.chars().take(40).collect()
}

pub(super) fn set_variable(env: &mut Vec<Vec<u8>>, name: &str, value: &str) {
    let prefix = format!("{name}=");
    env.retain(|entry| !entry.starts_with(prefix.as_bytes()));
    env.push(format!("{prefix}{value}").into_bytes());
}

/// Looks a user up in the container's own files.
fn resolve_user(target: &Target, wanted: &str) -> Result<user::User, String> {
    let gone = |error: &dyn std::fmt::Display| format!("the container's files cannot be read: {error}");
    let process = process(target.pid, &target.instance, Some(target.slot)).map_err(|error| gone(&error))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(&process, "root", flags, Mode::empty()).map_err(|error| gone(&error))?;
    user::resolve(root, wanted)
}

/// Why a session's program does not run, in the words of the request where that is at fault.
fn not_started(record: &Record, error: &LaunchError) -> NodeError {
    let LaunchError::Step { stage, errno } = error else {
        return NodeError::Failed(format!("the session cannot be begun: {error}"));
    };
    let fault = |path: &str, message: String| NodeError::BadRequest(vec![Violation::new(path, message)]);
    if let Some(program) = stage.strip_prefix("exec ") {
        return match *errno {
            libc::ENOENT | libc::ENOTDIR => fault(
                "command[0]",
                format!("{program}: not found in the container {}; name one that it has", record.container),
            ),
            libc::EACCES => fault(
                "command[0]",
                format!("{program}: may not be executed by the session's user; choose another program or user"),
            ),
            libc::ENOEXEC => fault("command[0]", format!("{program}: no program that this host can execute")),
            _ => NodeError::Failed(format!("the session cannot be begun: {error}")),
        };
    }
    if let Some(directory) = stage.strip_prefix("enter the working directory ") {
        return fault("workdir", format!("{directory}: cannot be entered in the container: {error}"));
    }
    if stage == "the container does not run" {
        return NodeError::Conflict(format!("the container {} does not run any more", record.container));
    }
    NodeError::Failed(format!("the session cannot be begun: {error}"))
}

/// An id for a session that names none.
pub(super) fn new_id() -> String {
    let mut id = uuid::Uuid::new_v4().simple().to_string();
    id.truncate(registry::ID_LENGTH);
    id
}
