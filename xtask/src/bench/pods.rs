//! `bench pods`: what starting, running, keeping and removing pods costs, beside other engines and beside the floor.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use agentd_testbox::layout::{self, Config};

use super::floor::Floor;
use super::harness::{Contestant, Turns, take_turns};
use super::ours::{self, Network};
use super::peers::{self, Containerd, Podman, Runtime};
use super::report::{Bound, Report};
use super::{Options, idle, oci, scratch_parent, storm, unpack};
use crate::daemon::{Daemon, Scratch};
use crate::installed;

/// Pods are admitted by what they ask for; here it is not to run out.
pub const PLENTY: &[&str] = &[
    "--set",
    "logs.level=warn",
    "--set",
    "resources.cpus=4096",
    "--set",
    "resources.memory_mib=4194304",
    "--set",
    "resources.disk_mib=104857600",
];

/// How much is measured.
struct Size {
    samples: usize,
    storm: usize,
    storms: usize,
    idle: usize,
    imports: usize,
}

const FULL: Size = Size { samples: 40, storm: 200, storms: 3, idle: 500, imports: 5 };
const QUICK: Size = Size { samples: 10, storm: 50, storms: 1, idle: 50, imports: 3 };
/// Runs back to back in one turn.
const BLOCK: usize = 5;

/// The engines beside agentd, as far as they are installed.
struct Peers {
    podman: Option<Podman>,
    containerd: Option<Containerd>,
    runc: Option<Runtime>,
    crun: Option<Runtime>,
    floor: Floor,
}

/// Runs the benchmark. The exit code is 1 when a target was missed.
pub fn run(root: &Path, options: &Options) -> Result<ExitCode, String> {
    let size = if options.quick { QUICK } else { FULL };
    let program = agentd_testbox::program::build(root)?;
    let scratch = Scratch::new(&scratch_parent(), "bench")?;
    let (home, lower) = (scratch.path().join("home"), scratch.path().join("lower"));
    std::fs::create_dir_all(&home).map_err(|error| format!("{}: {error}", home.display()))?;
    let archive = scratch.path().join("true.tar");
    layout::docker_archive(&archive, ours::IMAGE, &program, &Config::command(&["/bin/true"]))
        .map_err(|error| format!("{}: {error}", archive.display()))?;
    oci::root_file_system(&lower, &program)?;

    let daemon = Daemon::start(&options.agentd(root), &home, PLENTY)?;
    ours::import(&mut daemon.client(), &archive, ours::IMAGE)?;
    // the daemon is outside of this namespace: it sees the host as it is
    peers::enter_namespace()?;
    let mut report = Report::default();
    let result = prepare(scratch.path(), &lower, &archive, &mut report)
        .and_then(|mut peers| measure(&daemon, &mut peers, scratch.path(), &lower, &size, &mut report));
    peers::remove_cgroups();
    peers::unmount_below(scratch.path());
    let log = daemon.log_text();
    drop(daemon);
    // what was measured before a failure is worth reading, too
    let met = report.finish(root, "pods")?;
    result.map_err(|error| format!("{error}\nlog of agentd:\n{log}"))?;
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn prepare(scratch: &Path, lower: &Path, archive: &Path, report: &mut Report) -> Result<Peers, String> {
    let floor = Floor::new(lower, &scratch.join("floor"), &["/bin/testbox", "true"])?;
    let crun = Runtime::new("crun", scratch, lower, 0)?;
    let runc = Runtime::new("runc", scratch, lower, 0)?;
    let mut optional = |name: &str, problem: String| report.note(format!("{name} does not take part: {problem}"));
    let containerd = Containerd::start(scratch)
        .and_then(|started| started.map(|containerd| containerd.import(archive).map(|()| containerd)).transpose())
        .unwrap_or_else(|error| {
            optional("containerd", error);
            None
        });
    let podman = Podman::new(scratch, archive).unwrap_or_else(|error| {
        optional("podman", error);
        None
    });
    let missing: Vec<&str> =
        ["crun", "runc", "containerd", "ctr", "podman"].into_iter().filter(|name| !installed(name)).collect();
    if !missing.is_empty() {
        report.note(format!("not found: {} (apt-get install crun runc containerd podman)", missing.join(", ")));
    }
    Ok(Peers { podman, containerd, runc, crun, floor })
}

fn measure(
    daemon: &Daemon,
    peers: &mut Peers,
    scratch: &Path,
    lower: &Path,
    size: &Size,
    report: &mut Report,
) -> Result<(), String> {
    let rounds = size.samples / BLOCK;
    println!("\none container to its end, back to back");
    let turns = Turns { warm_up: 1, rounds, block: BLOCK, pause: Duration::from_millis(100) };
    report.add("back to back", "ms", &take_turns(single(daemon, peers, installed("nft")), &turns, "agentd")?);
    println!("one container to its end, with gaps of 0.5 s");
    let turns = Turns { warm_up: 1, rounds: size.samples, block: 1, pause: Duration::from_millis(500) };
    report.add("with gaps", "ms", &take_turns(single(daemon, peers, installed("nft")), &turns, "agentd")?);
    for series in ["back to back", "with gaps"] {
        let whole = format!("{series}: agentd whole");
        report.compare(&whole, &format!("{series}: floor"), Bound::AtMost(1.5));
        report.compare(&whole, &format!("{series}: crun"), Bound::AtMost(1.0));
        report.compare(&whole, &format!("{series}: ctr run"), Bound::Faster(8.0));
    }

    println!("a pod of two containers, started and removed");
    let mut client = daemon.client();
    let mut number = 0;
    let mut contestants = vec![Contestant::new("agentd", || {
        number += 1;
        ours::start_and_remove(&mut client, &format!("/two/{number}"))
    })];
    if let Some(podman) = &peers.podman {
        contestants.push(Contestant::whole("podman", || podman.pod("bench")));
    }
    let turns = Turns { warm_up: 1, rounds: size.samples, block: 1, pause: Duration::from_millis(100) };
    report.add("two containers", "ms", &take_turns(contestants, &turns, "agentd")?);
    report.compare("two containers: agentd whole", "two containers: podman", Bound::Faster(20.0));

    println!("{} pods", size.storm);
    report.add("storm", "pods/s", &storm::measure(daemon, scratch, lower, size.storm, size.storms)?);
    report.hold("storm: agentd, four at a time", 150.0, false);

    println!("{} idle pods", size.idle);
    let measured = idle::measure(daemon, size.idle)?;
    report.add("idle", "KiB", &measured);
    for (name, most) in [("each of", 2048.0), ("pod-init", 300.0)] {
        if let Some(name) = measured.keys().find(|key| key.starts_with(name)) {
            report.hold(&format!("idle: {name}"), most, true);
        }
    }

    println!("import of a large image");
    report.add("import", "ms", &unpack::measure(daemon, peers.containerd.as_ref(), scratch, size.imports)?);
    report.compare("import: agentd import", "import: ctr images import", Bound::AtMost(0.6));
    Ok(())
}

/// Everyone who can run one container.
fn single<'a>(daemon: &Daemon, peers: &'a Peers, bridge: bool) -> Vec<Contestant<'a>> {
    let mut contestants = Vec::new();
    for (name, network) in [("agentd", Network::Isolated), ("agentd, bridge", Network::Bridge)] {
        if network == Network::Bridge && !bridge {
            continue;
        }
        let mut client = daemon.client();
        let mut number = 0;
        let folder = if network == Network::Bridge { "bridge" } else { "one" };
        contestants.push(Contestant::new(name, move || {
            number += 1;
            ours::run_to_end(&mut client, &format!("/{folder}/{number}"), network)
        }));
    }
    contestants.push(Contestant::whole("floor", || peers.floor.run()));
    for (name, runtime) in [("crun", &peers.crun), ("runc", &peers.runc)] {
        if let Some(runtime) = runtime {
            contestants.push(Contestant::whole(name, || runtime.run("bench")));
        }
    }
    if let Some(containerd) = &peers.containerd {
        contestants.push(Contestant::whole("ctr run", || containerd.run("bench")));
    }
    if let Some(podman) = &peers.podman {
        contestants.push(Contestant::whole("podman run", || podman.run()));
    }
    contestants
}
