//! `agentctl top` at a real terminal: what it shows, the keys, the size, a daemon that dies and comes back, and that the
//! terminal is what it was before, however it ends.

use std::process::Command;
use std::time::Duration;

use agentd_tests::terminal::Terminal;
use agentd_tests::{Daemon, binary, eventually, pods, privileged};
use rustix::process::Signal;

fn top(daemon: &Daemon, words: &[&str]) -> Terminal {
    let mut command = Command::new(binary("agentctl"));
    command
        .arg("top")
        .args(["--interval", "0.2"])
        .args(words)
        .env("AGENTD_SOCKET", daemon.socket())
        .env_remove("NO_COLOR");
    let terminal = Terminal::start(command, 24, 160);
    terminal.wait_until("the live view", |terminal| terminal.is_full_screen() && terminal.screen().contains("/busy"));
    terminal
}

fn busy(daemon: &Daemon) {
    let mut pod = pods::shell("/busy", "while :; do :; done");
    pod["containers"][0]["resources"]["cpus"] = 0.2.into();
    daemon.client().run_pod(&pod);
    daemon.client().run_pod(&pods::sleeper("/idle"));
}

/// The line of the screen on which a pod stands.
fn row(terminal: &Terminal, pod: &str) -> Option<usize> {
    terminal.screen().lines().position(|line| line.starts_with(pod))
}

#[track_caller]
fn gave_back(terminal: &mut Terminal, code: i32) {
    let ended = terminal.wait_exit();
    assert_eq!(ended.code(), Some(code), "{}", terminal.transcript());
    assert!(eventually(Duration::from_secs(5), || !terminal.is_full_screen()), "{}", terminal.screen());
    assert_eq!(terminal.attributes(), terminal.initial);
}

#[test]
fn what_containers_use_is_shown_and_sorted() {
    privileged!();
    let daemon = Daemon::start();
    busy(&daemon);
    let mut terminal = top(&daemon, &[]);
    assert!(terminal.attributes().is_raw());
    terminal.wait_until("the busy container above the idle one, with its rate", |terminal| {
        let line = row(terminal, "/busy").and_then(|at| terminal.screen().lines().nth(at).map(str::to_owned));
        let using = line.is_some_and(|line| line.contains(" 0.2") || line.contains(" 0.1"));
        using && row(terminal, "/busy") < row(terminal, "/idle")
    });
    terminal.wait_until("bars", |terminal| terminal.screen().contains('█') || terminal.screen().contains('▇'));
    terminal.keys("r");
    terminal.wait_until("the other order", |terminal| row(terminal, "/idle") < row(terminal, "/busy"));
    terminal.keys("a");
    terminal.wait_until("names in order", |terminal| {
        terminal.screen().contains("by name") && row(terminal, "/busy") < row(terminal, "/idle")
    });
    assert!(terminal.screen().contains("SENT/s"));
    terminal.resize(10, 60);
    terminal.wait_until("fewer columns", |terminal| {
        terminal.screen().contains("MEMORY") && !terminal.screen().contains("SENT/s")
    });
    terminal.keys("q");
    gave_back(&mut terminal, 0);

    let mut alone = top(&daemon, &["busy"]);
    assert!(row(&alone, "/idle").is_none(), "{}", alone.screen());
    alone.keys([3]);
    gave_back(&mut alone, 0);
}

#[test]
fn signals_and_a_stop_give_the_terminal_back() {
    privileged!();
    let daemon = Daemon::start();
    busy(&daemon);
    for (signal, code) in [(Signal::TERM, 143), (Signal::HUP, 129), (Signal::INT, 130), (Signal::QUIT, 131)] {
        let mut terminal = top(&daemon, &[]);
        terminal.signal(signal);
        gave_back(&mut terminal, code);
    }
    let mut terminal = top(&daemon, &[]);
    terminal.keys([0x1a]);
    let state = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", terminal.pid())).unwrap();
        stat.rsplit(") ").next().unwrap().chars().next().unwrap()
    };
    assert!(eventually(Duration::from_secs(10), || state() == 'T'), "it is stopped");
    terminal.wait_until("the first screen", |terminal| !terminal.is_full_screen());
    assert_eq!(terminal.attributes(), terminal.initial);
    terminal.signal(Signal::CONT);
    terminal.wait_until("the live view again", |terminal| {
        terminal.is_full_screen() && terminal.attributes().is_raw() && terminal.screen().contains("/busy")
    });
    terminal.keys("q");
    gave_back(&mut terminal, 0);
}

#[test]
fn a_daemon_that_dies_is_told_and_awaited() {
    privileged!();
    let mut daemon = Daemon::start();
    busy(&daemon);
    let mut terminal = top(&daemon, &[]);
    daemon.kill9();
    terminal.wait_until("what is wrong", |terminal| terminal.screen().contains("cannot be reached"));
    assert!(row(&terminal, "/busy").is_some(), "what was known last stays: {}", terminal.screen());
    daemon.respawn();
    daemon.wait_ready();
    terminal.wait_until("that it is back", |terminal| {
        !terminal.screen().contains("cannot be reached") && row(terminal, "/busy").is_some()
    });
    terminal.keys("q");
    gave_back(&mut terminal, 0);
}
