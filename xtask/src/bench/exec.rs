//! `bench exec`: what a program in a running container costs, beside other engines and beside `nsenter`, which does without
//! an engine.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use agentd_testbox::layout::{self, Config};
use serde_json::json;

use super::harness::{Contestant, Turns, take_turns};
use super::ours::{self, Network};
use super::peers::{self, Containerd, Podman, Runtime, silent};
use super::report::{Bound, Report};
use super::{Options, checks, oci, pipe, pods, scratch_parent};
use crate::daemon::{Daemon, Scratch};
use crate::http::segment;
use crate::installed;

/// How much is measured.
struct Size {
    samples: usize,
    pipes: usize,
    windows: usize,
}

const FULL: Size = Size { samples: 40, pipes: 5, windows: 5 };
const QUICK: Size = Size { samples: 10, pipes: 2, windows: 2 };
/// What can be measured by itself: programs run in a container, health checks by command, throughput.
pub const SERIES: [&str; 3] = ["programs", "check", "pipe"];
/// Runs back to back in one turn.
const BLOCK: usize = 5;

/// The pod in which programs are run, and the name of the peers' containers.
const POD: &str = "/bench/exec";
const HELD: &str = "held";

/// The engines beside agentd, each with a container that stays.
struct Peers {
    crun: Option<Runtime>,
    runc: Option<Runtime>,
    containerd: Option<Containerd>,
    podman: Option<Podman>,
}

impl Drop for Peers {
    fn drop(&mut self) {
        for runtime in [&self.crun, &self.runc].into_iter().flatten() {
            if let Err(error) = runtime.delete(HELD) {
                eprintln!("the container of a runtime is left: {error}");
            }
        }
        if let Some(Err(error)) = self.containerd.as_ref().map(|containerd| containerd.delete(HELD)) {
            eprintln!("the container of containerd is left: {error}");
        }
    }
}

/// What is measured of agentd.
struct Ours<'a> {
    agentctl: PathBuf,
    daemon: &'a Daemon,
    /// Process of the container, for `nsenter`.
    pid: u64,
}

impl Ours<'_> {
    fn agentctl(&self) -> Result<(), String> {
        let mut command = Command::new(&self.agentctl);
        command.arg("--socket").arg(&self.daemon.socket).args(["exec", POD, "--", "/bin/testbox", "true"]);
        silent(&mut command)
    }

    /// The same by the API alone: one connection, from its opening to its end.
    fn call(&self) -> Result<(), String> {
        let body = json!({"command": ["/bin/testbox", "true"]}).to_string();
        let request = format!(
            "POST /v1/pods/{}/exec HTTP/1.1\r\nHost: agentd\r\nConnection: Upgrade\r\nUpgrade: agentd-exec\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            segment(POD),
            body.len()
        );
        let mut answer = Vec::new();
        let exchanged = UnixStream::connect(&self.daemon.socket).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            stream.write_all(request.as_bytes())?;
            stream.read_to_end(&mut answer)
        });
        exchanged.map_err(|error| format!("exec over the API: {error}"))?;
        let told = String::from_utf8_lossy(&answer);
        if told.starts_with("HTTP/1.1 101") && told.contains(r#""exit":{"code":0}"#) {
            Ok(())
        } else {
            Err(format!("exec over the API: {told:?}"))
        }
    }

    fn nsenter(&self) -> Result<(), String> {
        silent(Command::new("nsenter").args(["-t", &self.pid.to_string(), "-a", "/bin/testbox", "true"]))
    }
}

/// Runs the benchmark. The exit code is 1 when a target was missed.
pub fn run(root: &Path, options: &Options) -> Result<ExitCode, String> {
    let program = agentd_testbox::program::build(root)?;
    let scratch = Scratch::new(&scratch_parent(), "bench")?;
    let (home, lower) = (scratch.path().join("home"), scratch.path().join("lower"));
    std::fs::create_dir_all(&home).map_err(|error| format!("{}: {error}", home.display()))?;
    let archive = scratch.path().join("true.tar");
    layout::docker_archive(&archive, ours::IMAGE, &program, &Config::command(&["/bin/true"]))
        .map_err(|error| format!("{}: {error}", archive.display()))?;
    oci::root_file_system(&lower, &program)?;

    let plenty = [pods::PLENTY, &["--set", "api.requests_per_second=0"]].concat();
    let daemon = Daemon::start(&options.agentd(root), &home, &plenty)?;
    ours::import(&mut daemon.client(), &archive, ours::IMAGE)?;
    // the daemon is outside of this namespace: it sees the host as it is
    peers::enter_namespace()?;
    let mut report = Report::default();
    let result = measure(root, options, &daemon, scratch.path(), &lower, &archive, &mut report);
    peers::remove_cgroups();
    peers::unmount_below(scratch.path());
    let log = daemon.log_text();
    drop(daemon);
    // what was measured before a failure is worth reading, too
    let met = report.finish(root, "exec")?;
    result.map_err(|error| format!("{error}\nlog of agentd:\n{log}"))?;
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn prepare(scratch: &Path, lower: &Path, archive: &Path, report: &mut Report) -> Peers {
    let mut peers = Peers { crun: None, runc: None, containerd: None, podman: None };
    let mut optional = |name: &str, problem: &str| report.note(format!("{name} is skipped because {problem}"));
    for (name, place) in [("crun", &mut peers.crun), ("runc", &mut peers.runc)] {
        match Runtime::staying(name, scratch, lower) {
            Ok(Some(runtime)) => match runtime.start(HELD) {
                Ok(()) => *place = Some(runtime),
                Err(error) => optional(name, &error),
            },
            Ok(None) => optional(name, "it is not installed"),
            Err(error) => optional(name, &error),
        }
    }
    match Containerd::start(scratch) {
        Ok(Some(containerd)) => match containerd.import(archive).and_then(|()| containerd.start_staying(HELD)) {
            Ok(()) => peers.containerd = Some(containerd),
            Err(error) => optional("containerd", &error),
        },
        Ok(None) => optional("containerd", "it is not installed"),
        Err(error) => optional("containerd", &error),
    }
    match Podman::new(scratch, archive) {
        Ok(Some(podman)) => match podman.start_staying(HELD) {
            Ok(()) => peers.podman = Some(podman),
            Err(error) => optional("podman", &error),
        },
        Ok(None) => optional("podman", "it is not installed"),
        Err(error) => optional("podman", &error),
    }
    // docker has one daemon for the whole host, which is not started for a benchmark
    match peers::run(Command::new("docker").arg("info")) {
        Ok(_) => optional("docker", "its daemon is the host's own, and is left alone"),
        Err(_) if installed("docker") => optional("docker", "its daemon does not run"),
        Err(_) => optional("docker", "it is not installed"),
    }
    peers
}

fn measure(
    root: &Path,
    options: &Options,
    daemon: &Daemon,
    scratch: &Path,
    lower: &Path,
    archive: &Path,
    report: &mut Report,
) -> Result<(), String> {
    let size = if options.quick { QUICK } else { FULL };
    let agentctl = root.join("target/release/agentctl");
    if options.wants("programs") {
        programs(daemon, &agentctl, &size, |report| prepare(scratch, lower, archive, report), report)?;
    }
    if options.wants("check") {
        println!("health checks by command");
        report.add("check", "ms", &checks::measure(daemon, size.windows)?);
        report.hold("check: CPU of one", 2.0, true);
    }
    if options.wants("pipe") {
        println!("2 GiB through a program in a container");
        report.add("pipe", "GB/s", &pipe::measure(daemon, &agentctl, size.pipes)?);
        report.compare("pipe: agentctl exec -i cat", "pipe: five times cat", Bound::AtLeast(0.5));
    }
    Ok(())
}

fn programs(
    daemon: &Daemon,
    agentctl: &Path,
    size: &Size,
    prepare: impl FnOnce(&mut Report) -> Peers,
    report: &mut Report,
) -> Result<(), String> {
    let mut client = daemon.client();
    let pod = ours::pod(POD, Network::Isolated, 1, &["/bin/testbox", "hold"]).to_string();
    let status = client.expect("POST", "/v1/pods?wait=running", pod.as_bytes(), &[201])?.json()?;
    let pid = status["instances"][0]["containers"][0]["pid"].as_u64();
    let pid = pid.ok_or_else(|| format!("the pod does not run: {status}"))?;
    let ours = Ours { agentctl: agentctl.to_owned(), daemon, pid };

    let peers = prepare(report);
    println!("\na program in a running container, back to back");
    let rounds = size.samples / BLOCK;
    let turns = Turns { warm_up: 1, rounds, block: BLOCK, pause: Duration::from_millis(100) };
    report.add("back to back", "ms", &take_turns(everyone(&ours, &peers), &turns, "agentctl")?);
    println!("a program in a running container, with gaps of 0.5 s");
    let turns = Turns { warm_up: 1, rounds: size.samples, block: 1, pause: Duration::from_millis(500) };
    report.add("with gaps", "ms", &take_turns(everyone(&ours, &peers), &turns, "agentctl")?);
    report.compare("back to back: agentctl exec", "back to back: nsenter", Bound::AtMost(2.5));
    report.compare("back to back: agentctl exec", "back to back: ctr task exec", Bound::Faster(4.0));
    report.compare("with gaps: agentctl exec", "with gaps: crun exec", Bound::AtMost(1.5));
    drop(peers);
    ours::remove(&mut daemon.client(), POD)
}

/// Everyone who can run a program in a running container.
fn everyone<'a>(ours: &'a Ours<'_>, peers: &'a Peers) -> Vec<Contestant<'a>> {
    let mut contestants = vec![
        Contestant::whole("agentctl exec", || ours.agentctl()),
        Contestant::whole("exec by the API alone", || ours.call()),
        Contestant::whole("nsenter", || ours.nsenter()),
    ];
    for (name, runtime) in [("crun exec", &peers.crun), ("runc exec", &peers.runc)] {
        if let Some(runtime) = runtime {
            contestants.push(Contestant::whole(name, || runtime.exec(HELD)));
        }
    }
    if let Some(containerd) = &peers.containerd {
        let mut number = 0;
        contestants.push(Contestant::whole("ctr task exec", move || {
            number += 1;
            containerd.exec(HELD, &format!("e{number}"))
        }));
    }
    if let Some(podman) = &peers.podman {
        contestants.push(Contestant::whole("podman exec", || podman.exec(HELD)));
    }
    contestants
}
