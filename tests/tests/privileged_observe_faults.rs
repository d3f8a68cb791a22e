//! What the programs in the kernel do when something is taken from them: each case degrades its own signal, says so, and
//! nothing stays behind.

mod observed;

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use agentd_ebpf::call;
use agentd_ebpf::observe::{Group, Observer, Rung, Settings, Signal};
use agentd_tests::{eventually, privileged, skip};
use observed::{Network, PATIENCE, Place, Work, say, settled, stands, wait, wanted};

const GROUPS: [Group; 5] = [Group::Sched, Group::Process, Group::Block, Group::Net, Group::Packets];

fn settings(place: &Place) -> Settings {
    Settings {
        pods: place.pods(),
        level: 4,
        groups: GROUPS.into_iter().collect(),
        containers: 64,
        tasks: 16_384,
        edges: 64,
        events_per_second: 100,
        events_burst: 100,
        charged_io: false,
        without: BTreeSet::new(),
        without_btf: false,
    }
}

fn shell(cgroup: &Path, line: &str) {
    let line = format!("echo 0 > '{}/cgroup.procs' && {line}", cgroup.display());
    assert!(Command::new("sh").args(["-c", &line]).status().expect("sh can be run").success());
}

/// Whether the kernel counts the execs of a container.
fn counts_execs(observer: &Observer, cgroup: &Path, id: u64) -> bool {
    let execs = |observer: &Observer| observer.figures(id).processes.map_or(0, |processes| processes.execs);
    let before = execs(observer);
    shell(cgroup, "/bin/true; /bin/true; exit 0");
    settled(observer, id, |figures| figures.processes.is_some_and(|processes| processes.execs == before + 2));
    execs(observer) == before + 2
}

#[test]
fn without_types_signals_stand_on_tracepoints_or_say_why_not() {
    privileged!();
    let Some(place) = Place::new() else { skip!("this host has no cgroup2 tree") };
    let whole = Observer::start(settings(&place));
    if let Err(why) = stands(&whole, Signal::Exec) {
        skip!("{why}");
    }
    drop(whole);
    let observer = Observer::start(Settings { without_btf: true, ..settings(&place) });
    for state in observer.signals() {
        match state.rung {
            Rung::TpBtf | Rung::RawTp => {
                // exec needs no field on a raw tracepoint
                assert!(state.signal == Signal::Exec && state.rung == Rung::RawTp, "{state:?}");
            }
            Rung::Cgroup => assert_eq!(state.signal, Signal::Packets, "{state:?}"),
            _ => {}
        }
        if state.rung != Rung::Cgroup {
            let why = state.why.clone().unwrap_or_default();
            assert!(why.contains("types are not to be had"), "{state:?}");
        }
    }
    let (cgroup, id) = place.container("p", "c0");
    observer.publish(id, false).expect("there is room");
    assert!(counts_execs(&observer, &cgroup, id));
}

#[test]
fn a_kernel_that_refuses_types_of_programs_costs_their_signals_alone() {
    privileged!();
    let Some(place) = Place::new() else { skip!("this host has no cgroup2 tree") };
    let (cgroup, id) = place.container("p", "c0");
    for without in [
        vec![Rung::TpBtf],
        vec![Rung::TpBtf, Rung::RawTp],
        vec![Rung::Cgroup],
        vec![Rung::Cgroup, Rung::TpBtf, Rung::RawTp],
        vec![Rung::Tracepoint, Rung::RawTp],
        vec![Rung::TpBtf, Rung::RawTp, Rung::Tracepoint, Rung::Cgroup],
    ] {
        let observer = Observer::start(Settings { without: without.iter().copied().collect(), ..settings(&place) });
        let states = observer.signals();
        for state in &states {
            assert!(!without.contains(&state.rung), "{without:?}: {state:?}");
            if matches!(state.rung, Rung::Files | Rung::Off) {
                assert!(state.why.as_ref().is_some_and(|why| why.contains("left out by configuration")), "{state:?}");
            }
        }
        observer.publish(id, false).expect("there is room");
        let exec = states.iter().find(|state| state.signal == Signal::Exec).expect("every signal has a state");
        let expected = !matches!(exec.rung, Rung::Files | Rung::Off);
        assert_eq!(counts_execs(&observer, &cgroup, id), expected, "{without:?}: {exec:?}");
        // what is off reads as missing, not as zero
        if !expected {
            assert_eq!(observer.figures(id).processes, None);
        }
    }
}

#[test]
fn a_full_map_of_containers_refuses_one_and_counts_it_as_unknown() {
    privileged!();
    let Some(place) = Place::new() else { skip!("this host has no cgroup2 tree") };
    let observer = Observer::start(Settings { containers: 3, ..settings(&place) });
    if let Err(why) = stands(&observer, Signal::Exec) {
        skip!("{why}");
    }
    let containers: Vec<_> = (0..4).map(|number| place.container("p", &format!("c{number}"))).collect();
    for (_, id) in &containers[..3] {
        observer.publish(*id, false).expect("there is room");
    }
    let refused = observer.publish(containers[3].1, false).expect_err("there is no room");
    assert!(refused.contains("hold 3 containers"), "{refused}");
    let unknown = |observer: &Observer| observer.snapshot().unknown.processes.map_or(0, |all| all.execs);
    let before = unknown(&observer);
    shell(&containers[3].0, "/bin/true; exit 0");
    assert!(eventually(PATIENCE, || unknown(&observer) == before + 1));
    assert!(counts_execs(&observer, &containers[0].0, containers[0].1));
    // a place that was given back is taken
    observer.forget(containers[1].1);
    observer.publish(containers[3].1, false).expect("there is room again");
    assert!(counts_execs(&observer, &containers[3].0, containers[3].1));
}

#[test]
fn a_full_map_of_tasks_is_counted_and_leaves_other_signals_alone() {
    privileged!();
    let Some(place) = Place::new() else { skip!("this host has no cgroup2 tree") };
    let observer = Observer::start(Settings { tasks: 8, ..settings(&place) });
    if let Err(why) = stands(&observer, Signal::RunQueue) {
        skip!("{why}");
    }
    let (cgroup, id) = place.container("p", "c0");
    observer.publish(id, false).expect("there is room");
    assert!(counts_execs(&observer, &cgroup, id));
    // the host has more than eight tasks that switch
    assert!(eventually(PATIENCE, || observer.snapshot().host.sched.is_some_and(|sched| sched.untracked > 0)));
}

#[test]
fn a_thousand_containers_at_once_are_all_taken() {
    privileged!();
    let Some(place) = Place::new() else { skip!("this host has no cgroup2 tree") };
    let observer = Observer::start(Settings { containers: 1000, ..settings(&place) });
    if let Err(why) = stands(&observer, Signal::Exec) {
        skip!("{why}");
    }
    // as a daemon that takes back its pods does; no directory need exist for an id
    let first = u64::MAX / 2;
    for id in first..first + 1000 {
        observer.publish(id, false).unwrap_or_else(|why| panic!("container {}: {why}", id - first));
    }
    assert_eq!(observer.snapshot().containers.len(), 1000);
    let full = observer.publish(first + 1000, false).expect_err("there is no room");
    assert!(full.contains("hold 1000 containers"), "{full}");
    for id in first..first + 1000 {
        observer.forget(id);
    }
    assert!(observer.snapshot().containers.is_empty());
}

#[test]
fn five_thousand_containers_come_and_go() {
    privileged!();
    let Some(place) = Place::new() else { skip!("this host has no cgroup2 tree") };
    let observer = Observer::start(settings(&place));
    if let Err(why) = stands(&observer, Signal::Exec) {
        skip!("{why}");
    }
    let mut seen = 0;
    for number in 0..5000_u32 {
        let (cgroup, id) = place.container("p", &format!("c{number}"));
        observer.publish(id, false).unwrap_or_else(|why| panic!("container {number}: {why}"));
        // something runs in each hundredth
        if number % 100 == 0 {
            shell(&cgroup, "/bin/true; exit 0");
            let wanted = |figures: &agentd_ebpf::observe::Figures| figures.processes.is_some_and(|all| all.execs == 1);
            seen += u32::from(wanted(&settled(&observer, id, wanted)));
        }
        observer.forget(id);
        assert!(eventually(PATIENCE, || std::fs::remove_dir(&cgroup).is_ok()));
    }
    assert_eq!(seen, 50);
    let snapshot = observer.snapshot();
    assert!(snapshot.containers.is_empty(), "{:?}", snapshot.containers.keys());
}

/// Numbers of the links of this process that hang on cgroups.
fn cgroup_links() -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fdinfo").expect("procfs").flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        if text.lines().any(|line| line.split_whitespace().eq(["link_type:", "cgroup"])) {
            let id = text.lines().find_map(|line| line.strip_prefix("link_id:"));
            found.extend(id.and_then(|id| id.trim().parse::<u32>().ok()));
        }
    }
    found
}

/// What `bpftool link detach` does.
fn detach(id: u32) {
    const LINK_GET_FD_BY_ID: i64 = 30;
    const LINK_DETACH: i64 = 34;
    let bpf = |command: i64, attributes: [u32; 3]| {
        // SAFETY: both commands take numbers alone, as many as are given.
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), std::mem::size_of_val(&attributes)) }
    };
    let fd = bpf(LINK_GET_FD_BY_ID, [id, 0, 0]);
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just returned this number as a new descriptor, owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    assert_eq!(bpf(LINK_DETACH, [fd.as_raw_fd() as u32, 0, 0]), 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn programs_that_somebody_detaches_are_hung_again() {
    privileged!();
    let Some(place) = Place::new() else { skip!("this host has no cgroup2 tree") };
    // links of other tests of this process would be found, too: in a process of its own
    let (cgroup, _) = place.container("p", "c0");
    let own =
        Work::begin_with("detach", &cgroup, &[], Network::Host, &[("AGENTD_TESTS_PODS", place.pods().as_os_str())]);
    let mut own = own;
    let answer = own.done();
    own.end();
    if let Some(why) = answer.strip_prefix("skip ") {
        skip!("{why}");
    }
    assert_eq!(answer, "received_cg rtt_cg sent_cg");
}

fn detached_and_mended(pods: &str) -> String {
    let pods = std::path::PathBuf::from(pods);
    let settings = Settings {
        pods: pods.clone(),
        level: 4,
        groups: [Group::Net, Group::Packets].into_iter().collect(),
        containers: 8,
        tasks: 64,
        edges: 64,
        events_per_second: 1,
        events_burst: 1,
        charged_io: false,
        without: BTreeSet::new(),
        without_btf: false,
    };
    let mut observer = Observer::start(settings);
    if let Err(why) = stands(&observer, Signal::Packets) {
        return format!("skip {why}");
    }
    assert!(observer.mend().is_empty());
    for link in cgroup_links() {
        detach(link);
    }
    let mut lost = observer.mend();
    lost.sort();
    assert!(observer.mend().is_empty(), "they hang again");
    assert!(stands(&observer, Signal::Packets).is_ok() && stands(&observer, Signal::Rtt).is_ok());
    let id = std::fs::metadata(pods.join("p/c0")).expect("it is there").ino();
    observer.publish(id, false).expect("there is room");
    // this process is in that container: a packet to itself
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("loopback");
    socket.send_to(b"x", socket.local_addr().expect("it is bound")).expect("loopback");
    let counted = settled(&observer, id, |figures| figures.net.is_some_and(|net| net.sent_packets > 0));
    assert_eq!(counted.net.map(|net| net.sent_packets), Some(1));
    lost.join(" ")
}

#[test]
fn nothing_stays_in_the_kernel_after_an_end_or_a_kill() {
    privileged!();
    let Some(place) = Place::new() else { skip!("this host has no cgroup2 tree") };
    let observer = Observer::start(settings(&place));
    if let Err(why) = stands(&observer, Signal::Exec) {
        skip!("{why}");
    }
    let ids: Vec<u32> = observer.costs().iter().map(|cost| cost.id).collect();
    assert!(ids.len() > 10 && ids.iter().all(|id| call::open_program(*id).is_ok()), "{ids:?}");
    drop(observer);
    assert!(eventually(PATIENCE, || ids.iter().all(|id| call::open_program(*id).is_err())));

    let (cgroup, _) = place.container("p", "c0");
    let own = std::env::current_exe().expect("the test has a file");
    let line = format!("echo 0 > '{}/cgroup.procs' && exec \"$@\"", cgroup.display());
    let mut child = Command::new("sh")
        .args(["-c", &line, "sh"])
        .arg(own)
        .args(["--exact", "work", "--ignored", "--nocapture", "--test-threads=1"])
        .env("AGENTD_TESTS_WORK", "hold")
        .env("AGENTD_TESTS_PODS", place.pods())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sh can be run");
    let mut output = std::io::BufReader::new(child.stdout.take().expect("it is a pipe"));
    let ids: Vec<u32> = loop {
        let mut line = String::new();
        assert!(std::io::BufRead::read_line(&mut output, &mut line).expect("a pipe") > 0, "it ended early");
        if let Some((_, ids)) = line.split_once("work: holds ") {
            break ids.split_whitespace().map(|id| id.parse().expect("a number")).collect();
        }
    };
    assert!(ids.len() > 10 && ids.iter().all(|id| call::open_program(*id).is_ok()), "{ids:?}");
    child.kill().expect("it lives");
    child.wait().expect("it ends");
    assert!(eventually(PATIENCE, || ids.iter().all(|id| call::open_program(*id).is_err())));
}

/// Work of the tests above; see [`observed`].
#[test]
#[ignore = "run by the tests above"]
fn work() {
    let pods = std::env::var("AGENTD_TESTS_PODS").unwrap_or_default();
    match wanted().as_deref() {
        Some("detach") => {
            say("ready");
            wait();
            say(&format!("done {}", detached_and_mended(&pods)));
            wait();
        }
        Some("hold") => {
            let settings = Settings {
                pods: pods.into(),
                level: 4,
                groups: GROUPS.into_iter().collect(),
                containers: 8,
                tasks: 64,
                edges: 64,
                events_per_second: 1,
                events_burst: 1,
                charged_io: false,
                without: BTreeSet::new(),
                without_btf: false,
            };
            let observer = Observer::start(settings);
            let ids: Vec<String> = observer.costs().iter().map(|cost| cost.id.to_string()).collect();
            say(&format!("holds {}", ids.join(" ")));
            wait();
        }
        _ => {}
    }
}
