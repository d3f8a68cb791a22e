//! Scheduler and processes as the programs in the kernel count them, against work with a known answer, on every rung.

mod observed;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use agentd_ebpf::observe::layout::{EVENT_EXEC, EVENT_EXIT, Event, Log2, Processes};
use agentd_ebpf::observe::{Group, Observer, Rung, Settings, Signal};
use agentd_tests::{privileged, skip, until};
use observed::{Network, PATIENCE, Place, Work, say, settled, stands, wait, wanted};

/// Short-lived processes of one test.
const MANY: u64 = 10_000;
/// How long two loops fight for a CPU.
const FIGHT: Duration = Duration::from_millis(1500);
const SLEEPS: u64 = 100;
const NAP: Duration = Duration::from_millis(5);
const MOVES: u64 = 50;
/// Processes that end one after another.
const LEFT: u64 = 3000;
/// Processes with [`CROWD`] threads that all end at the same time.
const CROWDS: u64 = 300;
const CROWD: usize = 8;

/// Runs a line of shell in a cgroup. The shell itself is the process that began outside: it makes neither a fork nor an
/// exec inside.
fn shell(cgroup: &Path, line: &str) -> ExitStatus {
    let line = format!("echo 0 > '{}/cgroup.procs' && {line}", cgroup.display());
    Command::new("sh").args(["-c", &line]).status().expect("sh can be run")
}

fn count(histogram: &Log2) -> u64 {
    histogram.buckets.iter().sum()
}

/// The ladder from each rung down, with what an observer must leave out to stand there.
const RUNGS: [(Rung, &[Rung]); 3] =
    [(Rung::TpBtf, &[]), (Rung::RawTp, &[Rung::TpBtf]), (Rung::Tracepoint, &[Rung::TpBtf, Rung::RawTp])];

#[test]
fn ten_thousand_processes_of_a_moment_are_all_counted() {
    privileged!();
    let Some(place) = Place::new() else { skip!("this host has no cgroup2 tree") };
    let observer = place.observer(&[Group::Process], &[]);
    if let Err(why) = stands(&observer, Signal::Exec) {
        skip!("{why}");
    }
    let (cgroup, id) = place.container("p", "c0");
    observer.publish(id, false).expect("there is room");
    let begun = Instant::now();
    let status = shell(&cgroup, &format!("i=0; while [ $i -lt {MANY} ]; do /bin/true; i=$((i+1)); done"));
    let each = begun.elapsed() / MANY as u32;
    assert!(status.success());
    println!("{MANY} processes, {} µs each with their making", each.as_micros());
    let counted =
        settled(&observer, id, |figures| figures.processes.is_some_and(|processes| processes.exits_success > MANY));
    let processes = counted.processes.expect("the group is attached");
    assert_eq!((processes.execs, processes.forks), (MANY, MANY), "{processes:?}");
    // the shell's own end is one more
    assert_eq!(processes.exits_success, MANY + 1, "{processes:?}");
    assert_eq!((processes.exits_failure, processes.exits_signal, processes.exits_unknown), (0, 0, 0));
    // the ring takes what the rate lets through; the rest is counted, not lost
    assert_eq!(processes.events + processes.events_limited + processes.events_dropped, 2 * MANY + 1);
    assert!(processes.events_limited > 0, "{processes:?}");
}

#[test]
fn ends_are_told_by_how_they_came_on_every_rung() {
    privileged!();
    for (rung, without) in RUNGS {
        let Some(place) = Place::new() else { skip!("this host has no cgroup2 tree") };
        let observer = place.observer(&[Group::Process], without);
        match stands(&observer, Signal::Exit) {
            Ok(found) => assert_eq!(found, rung),
            Err(why) => {
                println!("skipped on {} because {why}", rung.name());
                continue;
            }
        }
        let (cgroup, id) = place.container("p", "c0");
        let (other, other_id) = place.container("p", "c1");
        observer.publish(id, false).expect("there is room");
        observer.publish(other_id, false).expect("there is room");
        assert!(shell(&cgroup, "/bin/true; /bin/true; /bin/false; sh -c 'kill -TERM $$'; exit 0").success());
        assert!(shell(&other, "/bin/false; exit 0").success());
        let all = |processes: &Processes| {
            processes.exits_success + processes.exits_failure + processes.exits_signal + processes.exits_unknown
        };
        let one = settled(&observer, id, |figures| figures.processes.as_ref().is_some_and(|one| all(one) == 5));
        let one = one.processes.expect("the group is attached");
        assert_eq!((one.execs, one.forks), (4, 4), "{}: {one:?}", rung.name());
        if rung == Rung::Tracepoint {
            assert_eq!(one.exits_unknown, 5, "{one:?}");
        } else {
            assert_eq!((one.exits_success, one.exits_failure, one.exits_signal), (3, 1, 1), "{one:?}");
        }
        let two = settled(&observer, other_id, |figures| figures.processes.as_ref().is_some_and(|one| all(one) == 2));
        let two = two.processes.expect("the group is attached");
        assert_eq!((two.execs, two.forks, all(&two)), (1, 1, 2), "{}: {two:?}", rung.name());
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

#[test]
fn events_name_the_program_the_end_and_who_sent_the_signal() {
    privileged!();
    let Some(place) = Place::new() else { skip!("this host has no cgroup2 tree") };
    let mut observer = place.observer(&[Group::Process], &[]);
    for signal in [Signal::Exec, Signal::Exit, Signal::Signals] {
        if let Err(why) = stands(&observer, signal) {
            skip!("{why}");
        }
    }
    let (cgroup, id) = place.container("p", "c0");
    observer.publish(id, false).expect("there is room");
    let line = format!("echo 0 > '{}/cgroup.procs' && exec sleep 1000 'ä b'", cgroup.display());
    let mut victim = Command::new("sh").args(["-c", &line]).stderr(std::process::Stdio::null()).spawn().unwrap();
    drop(victim.wait());
    // `sleep` refuses its second argument by itself; now one that a signal of ours ends
    let line = format!("echo 0 > '{}/cgroup.procs' && exec sleep 1000", cgroup.display());
    let mut victim = Command::new("sh").args(["-c", &line]).spawn().expect("sh can be run");
    until("sleep runs", PATIENCE, || {
        std::fs::read_to_string(format!("/proc/{}/comm", victim.id())).is_ok_and(|name| name == "sleep\n").then_some(())
    });
    victim.kill().expect("it lives");
    assert_eq!(victim.wait().expect("it ends").signal(), Some(libc::SIGKILL));
    let mut events: Vec<Event> = Vec::new();
    until("both ends are told", PATIENCE, || {
        observer.events(1000, &mut |event| events.push(*event));
        (events.iter().filter(|event| event.kind == EVENT_EXIT).count() == 2).then_some(())
    });
    assert!(events.iter().all(|event| event.container == id), "{events:?}");
    let execs: Vec<&Event> = events.iter().filter(|event| event.kind == EVENT_EXEC).collect();
    assert_eq!(execs.len(), 2, "{execs:?}");
    let arguments = &execs[0].arguments[..usize::from(execs[0].length)];
    assert_eq!(arguments, "sleep\u{0}1000\u{0}ä b\u{0}".as_bytes());
    assert!(text(&execs[0].path).ends_with("/sleep"), "{}", text(&execs[0].path));
    assert_eq!((text(&execs[0].command), execs[0].parent), ("sleep".to_owned(), std::process::id()));
    let exits: Vec<&Event> = events.iter().filter(|event| event.kind == EVENT_EXIT).collect();
    assert_eq!((exits[0].code >> 8 & 0xff, exits[0].code & 0x7f, exits[0].sender), (1, 0, 0));
    assert_eq!((exits[1].pid, exits[1].code), (victim.id(), libc::SIGKILL as u32));
    assert_eq!((exits[1].sender, exits[1].sender_container), (std::process::id(), 0));
    let name = std::fs::read_to_string("/proc/self/task/".to_owned() + &gettid().to_string() + "/comm").unwrap();
    assert_eq!(text(&exits[1].sender_command), name.trim_end());
}

fn gettid() -> i32 {
    // SAFETY: the call takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

#[test]
fn waits_for_a_cpu_are_those_of_two_loops_on_one() {
    privileged!();
    for (rung, without) in RUNGS {
        let Some(place) = Place::new() else { skip!("this host has no cgroup2 tree") };
        let observer = place.observer(&[Group::Sched], without);
        match stands(&observer, Signal::RunQueue) {
            Ok(found) => assert_eq!(found, rung),
            Err(why) => {
                println!("skipped on {} because {why}", rung.name());
                continue;
            }
        }
        let (cgroup, id) = place.container("p", "c0");
        observer.publish(id, false).expect("there is room");
        let mut work = Work::begin("fight", &cgroup, Network::Host);
        let before = observer.figures(id).sched.expect("the group is attached");
        let known: f64 = work.done().parse().expect("seconds");
        let after = settled(&observer, id, |_| true).sched.expect("the group is attached");
        work.end();
        let found = (after.queued.sum - before.queued.sum) as f64 / 1e9;
        println!("{}: the loops waited {known:.3} s, counted {found:.3} s", rung.name());
        // the main thread's own waits, a few, are in it; the tracepoints' rung misses each thread's first one
        assert!((found - known).abs() < 0.05 * known + 0.03, "{}: {found} counted, {known} waited", rung.name());
        let waits = count(&after.queued) - count(&before.queued);
        assert!(waits >= 2, "{waits}");
        assert!(after.involuntary - before.involuntary > 10, "{after:?}");
        assert_eq!(after.untracked, 0);
    }
}

#[test]
fn sleeps_are_time_off_the_cpu_and_moves_are_counted() {
    privileged!();
    let Some(place) = Place::new() else { skip!("this host has no cgroup2 tree") };
    let observer = place.observer(&[Group::Sched], &[]);
    if let Err(why) = stands(&observer, Signal::RunQueue) {
        skip!("{why}");
    }
    let (cgroup, id) = place.container("p", "c0");
    observer.publish(id, false).expect("there is room");
    let mut work = Work::begin("sleep", &cgroup, Network::Host);
    let before = observer.figures(id).sched.expect("the group is attached");
    let answer = work.done();
    let after = observer.figures(id).sched.expect("the group is attached");
    let mut words = answer.split(' ').map(|word| word.parse::<u64>().expect("a number"));
    let (voluntary, wall) = (words.next().unwrap(), words.next().unwrap());
    // sleeps of 5 ms and more: from 2^22 ns, 4.2 ms, on
    let long = |histogram: &Log2| histogram.buckets[22..].iter().sum::<u64>();
    let slept = long(&after.off_cpu) - long(&before.off_cpu);
    assert!((SLEEPS..SLEEPS + 10).contains(&slept), "{slept} of {SLEEPS}");
    let sum = after.off_cpu.sum - before.off_cpu.sum;
    assert!(u128::from(sum) >= u128::from(SLEEPS) * NAP.as_nanos(), "{sum}");
    // the main thread waits all the while for the other
    assert!(sum <= 2 * wall + 1_000_000_000, "{sum} in {wall}");
    let counted = after.voluntary - before.voluntary;
    assert!(counted.abs_diff(voluntary) <= 10, "{counted} counted, the kernel says {voluntary}");
    work.end();

    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        println!("moves skipped because this host has one CPU");
        return;
    }
    let mut work = Work::begin("move", &cgroup, Network::Host);
    let before = observer.figures(id).sched.expect("the group is attached");
    work.done();
    let moved = observer.figures(id).sched.expect("the group is attached").migrations - before.migrations;
    work.end();
    assert!((MOVES..MOVES + 15).contains(&moved), "{moved} of {MOVES}");
}

/// An observer that follows so few tasks that a number left behind by each of [`LEFT`] tasks fills its map.
fn narrow(place: &Place, without: &[Rung]) -> Observer {
    Observer::start(Settings {
        pods: place.pods(),
        level: 4,
        groups: [Group::Sched, Group::Process].into(),
        containers: 64,
        tasks: 2048,
        edges: 64,
        events_per_second: 100,
        events_burst: 100,
        charged_io: false,
        without: without.iter().copied().collect(),
        without_btf: false,
    })
}

#[test]
fn tasks_that_are_gone_or_were_renumbered_leave_nothing_behind() {
    privileged!();
    for (rung, without) in RUNGS {
        let Some(place) = Place::new() else { skip!("this host has no cgroup2 tree") };
        let observer = narrow(&place, without);
        match stands(&observer, Signal::RunQueue) {
            Ok(found) => assert_eq!(found, rung),
            Err(why) => {
                println!("skipped on {} because {why}", rung.name());
                continue;
            }
        }
        let (cgroup, id) = place.container("p", "c0");
        observer.publish(id, false).expect("there is room");
        let mut work = Work::begin("renumber", &cgroup, Network::Host);
        work.done();
        let counted = settled(&observer, id, |figures| {
            figures.processes.is_some_and(|one| one.exits_success + one.exits_unknown >= LEFT)
        });
        work.end();
        let (sched, processes) = (counted.sched.expect("attached"), counted.processes.expect("attached"));
        println!("{}: {} waits of {} ns in all, {processes:?}", rung.name(), count(&sched.queued), sched.queued.sum);
        assert_eq!(sched.untracked, 0, "{}", rung.name());
        // another task's times would give waits of centuries
        assert!(sched.queued.sum < 1 << 50, "{}: {} ns", rung.name(), sched.queued.sum);
        assert_eq!(sched.queued.buckets[34..], [0, 0], "{}", rung.name());
        if rung != Rung::Tracepoint {
            assert_eq!(processes.forks, LEFT);
        }
    }
}

#[test]
fn a_process_whose_threads_end_together_ends_once() {
    privileged!();
    for (rung, without) in &RUNGS[..2] {
        let Some(place) = Place::new() else { skip!("this host has no cgroup2 tree") };
        let observer = place.observer(&[Group::Process], without);
        match stands(&observer, Signal::Exit) {
            Ok(found) => assert_eq!(found, *rung),
            Err(why) => {
                println!("skipped on {} because {why}", rung.name());
                continue;
            }
        }
        let (cgroup, id) = place.container("p", "c0");
        observer.publish(id, false).expect("there is room");
        let mut work = Work::begin("crowd", &cgroup, Network::Host);
        let before = observer.figures(id).processes.expect("the group is attached");
        work.done();
        let counted =
            settled(&observer, id, |figures| figures.processes.is_some_and(|one| one.exits_failure >= CROWDS));
        let counted = counted.processes.expect("the group is attached");
        work.end();
        assert_eq!(counted.forks - before.forks, CROWDS);
        assert_eq!((counted.exits_success, counted.exits_failure), (before.exits_success, CROWDS), "{counted:?}");
    }
}

/// Work of the tests above; see [`observed`].
#[test]
#[ignore = "run by the tests above"]
fn work() {
    match wanted().as_deref() {
        Some("fight") => {
            say("ready");
            wait();
            let waited: f64 = (0..2)
                .map(|_| std::thread::spawn(spin))
                .collect::<Vec<_>>()
                .into_iter()
                .map(|loops| loops.join().expect("a loop ends"))
                .sum();
            say(&format!("done {waited}"));
            wait();
        }
        Some("sleep") => {
            say("ready");
            wait();
            let begun = Instant::now();
            let own = std::thread::spawn(|| {
                for _ in 0..SLEEPS {
                    std::thread::sleep(NAP);
                }
                switches()
            });
            let voluntary = own.join().expect("it ends");
            say(&format!("done {voluntary} {}", begun.elapsed().as_nanos()));
            wait();
        }
        Some("renumber") => {
            say("ready");
            wait();
            for _ in 0..LEFT {
                forked(|| {
                    // the thread takes the number of the process
                    let own = std::thread::spawn(|| {
                        // SAFETY: the words end with NUL, the list with a null.
                        unsafe {
                            libc::execl(c"/bin/true".as_ptr(), c"true".as_ptr(), std::ptr::null::<libc::c_char>())
                        }
                    });
                    let _ = own.join();
                    1
                });
            }
            say("done");
            wait();
        }
        Some("crowd") => {
            say("ready");
            wait();
            for _ in 0..CROWDS {
                forked(|| {
                    let begun = std::sync::Barrier::new(CROWD + 1);
                    std::thread::scope(|scope| {
                        for _ in 0..CROWD {
                            scope.spawn(|| {
                                begun.wait();
                                loop {
                                    std::hint::spin_loop();
                                }
                            });
                        }
                        begun.wait();
                        // SAFETY: ends the process, all its threads at once.
                        unsafe { libc::_exit(3) }
                    })
                });
            }
            say("done");
            wait();
        }
        Some("move") => {
            say("ready");
            wait();
            let own = std::thread::spawn(|| {
                for turn in 0..=MOVES {
                    pin((turn % 2) as usize);
                }
            });
            own.join().expect("it ends");
            say("done");
            wait();
        }
        _ => {}
    }
}

/// Runs something in a forked process, whose status it gives, and waits for its end.
fn forked(run: impl FnOnce() -> i32) {
    // SAFETY: the child uses only what a fork of a process of several threads leaves sound: it makes threads, which the C
    // library sees to, and ends or execs.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            libc::_exit(run());
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
    }
}

/// Runs on the first CPU for a while and gives how long it did not, in seconds.
fn spin() -> f64 {
    pin(0);
    let (begun, ran) = (Instant::now(), thread_time());
    while begun.elapsed() < FIGHT {
        std::hint::spin_loop();
    }
    begun.elapsed().as_secs_f64() - (thread_time() - ran)
}

fn pin(cpu: usize) {
    // SAFETY: the set is a plain structure; the calls write into it and read it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        assert_eq!(libc::sched_setaffinity(0, std::mem::size_of_val(&set), &raw const set), 0);
    }
}

fn thread_time() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is valid for writing until the call returns.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// How often this thread gave up its CPU by itself, by the kernel's own count.
fn switches() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").expect("it is there");
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).expect("a count");
    line.trim().parse().expect("a number")
}
