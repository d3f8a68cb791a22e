//! The daemon is ended and started again under open sessions: they go on, clients come back to where they were, and how a
//! program ended is not lost.

use std::time::Duration;

use agentd_api::session::SessionState;
use agentd_api::status::ExitStatus;
use agentd_tests::attached::{self, begin_detached, digest, noise, status, wait_exited};
use agentd_tests::exec::{Exec, Frame, shell};
use agentd_tests::{Daemon, eventually, privileged, until};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(30);

/// How the daemon is ended.
#[derive(Debug, Clone, Copy)]
enum Way {
    Sigterm,
    Sigkill,
}

impl Way {
    const ALL: [Self; 2] = [Self::Sigterm, Self::Sigkill];

    fn end(self, daemon: &mut Daemon) {
        match self {
            Self::Sigterm => assert!(daemon.terminate().success()),
            Self::Sigkill => daemon.kill9(),
        }
    }
}

/// Reads what an attached client still gets until its connection ends, and adds the output.
fn drain(session: &mut Exec, output: &mut Vec<u8>) {
    while let Ok(Some(frame)) = session.read() {
        match frame {
            Frame::Stdout(bytes) | Frame::Stderr(bytes) => output.extend(bytes),
            Frame::Told(told) => assert_ne!(told["type"], "gap", "{told}"),
        }
    }
}

#[test]
fn output_goes_on_without_loss_or_doubling() {
    privileged!();
    for way in Way::ALL {
        let mut daemon = Daemon::start();
        daemon.client().run_pod(&attached::pod("/s"));
        let socket = daemon.socket();
        // numbered lines, faster than one reads them, and slowly at the end so that some come while the daemon is down
        let line = "seq 1 300000; i=0; while [ $i -lt 60 ]; do echo slow $i; sleep 0.02; i=$((i+1)); done; exit 9";
        let mut session = Exec::begin(&socket, "/s", &shell(line, false));
        let id = session.session.clone();
        let mut output = Vec::new();
        for round in 0..3 {
            while output.len() < 200_000 * (round + 1) {
                match session.read().unwrap() {
                    Some(Frame::Stdout(bytes)) => output.extend(bytes),
                    other => panic!("{way:?}: {other:?}"),
                }
            }
            way.end(&mut daemon);
            drain(&mut session, &mut output);
            assert_eq!(session.offset as usize, output.len());
            daemon.restart();
            let offset = session.offset;
            session = Exec::attach(&socket, &id, &format!("from={offset}"));
            assert_eq!((session.offset, &session.session), (offset, &id), "{way:?}");
        }
        let ended = session.finish();
        output.extend(&ended.stdout);
        assert_eq!((ended.code(), ended.gap), (9, 0), "{way:?}");
        let mut expected = (1..=300_000).map(|n| format!("{n}\n")).collect::<Vec<_>>().concat();
        expected += &(0..60).map(|n| format!("slow {n}\n")).collect::<Vec<_>>().concat();
        assert_eq!((output.len(), digest(&output)), (expected.len(), digest(expected.as_bytes())), "{way:?}");
    }
}

#[test]
fn input_goes_on_where_it_stopped() {
    privileged!();
    for way in Way::ALL {
        let mut daemon = Daemon::start();
        daemon.client().run_pod(&attached::pod("/s"));
        let socket = daemon.socket();
        let data = noise(11, 8_000_000);
        let mut session = Exec::begin(&socket, "/s", &json!({"command": ["cat"], "stdin": true}));
        let id = session.session.clone();
        let mut output = Vec::new();
        let mut input = session.input();
        std::thread::scope(|scope| {
            // ends with the connection
            let writer = scope.spawn(|| input.write(&data));
            while output.len() < 3_000_000 {
                match session.read().unwrap() {
                    Some(Frame::Stdout(bytes)) => output.extend(bytes),
                    Some(Frame::Told(told)) => assert_eq!(told["type"], "ack", "{way:?}: {told}"),
                    other => panic!("{way:?}: {other:?}"),
                }
            }
            way.end(&mut daemon);
            drain(&mut session, &mut output);
            assert!(writer.join().unwrap().is_err(), "8 MB fitted into the connection");
        });
        daemon.restart();
        session = Exec::attach(&socket, &id, &format!("from={}", output.len()));
        let from = session.stdin as usize;
        assert!(from > 3_000_000 && from < data.len(), "{from}");
        let ended = session.converse(&data[from..]);
        output.extend(&ended.stdout);
        assert_eq!((ended.code(), ended.gap), (0, 0), "{way:?}");
        assert_eq!((output.len(), digest(&output)), (data.len(), digest(&data)), "{way:?}");
    }
}

/// Name of the program that is in front on the terminal of this process.
fn in_front(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let group = stat.rsplit_once(')')?.1.split_whitespace().nth(5)?.to_owned();
    Some(std::fs::read_to_string(format!("/proc/{group}/comm")).ok()?.trim_end().to_owned())
}

#[test]
fn a_terminal_goes_on() {
    privileged!();
    for way in Way::ALL {
        let mut daemon = Daemon::start();
        daemon.client().run_pod(&attached::pod("/s"));
        let socket = daemon.socket();
        let asked = json!({"command": ["sh", "-i"], "tty": true, "rows": 33, "columns": 99,
            "environment": {"PS1": "> ", "TERM": "xterm"}});
        let mut session = Exec::begin(&socket, "/s", &asked);
        session.read_until("> ");
        session.write(b"stty size; x=kept\n");
        session.read_until("33 99");
        let pid = status(&daemon.client(), &session.session).pid;
        way.end(&mut daemon);
        drain(&mut session, &mut Vec::new());
        daemon.restart();
        let mut again = Exec::attach(&socket, &session.session, &format!("from={}", session.offset));
        again.write(b"echo still $x; stty size\n");
        // both may come in one piece
        let seen = again.read_until("33 99");
        assert!(seen.contains("still kept"), "{way:?}: {seen:?}");
        again.tell(&json!({"type": "resize", "rows": 20, "columns": 60}));
        again.write(b"stty size\n");
        again.read_until("20 60");
        assert_eq!(status(&daemon.client(), &session.session).pid, pid, "{way:?}");
        // the interrupt character still reaches what is in front
        again.write(b"sleep 1000\n");
        until("it sleeps in front", PATIENCE, || (in_front(pid?)? == "sleep").then_some(()));
        again.write(b"\x03");
        until("the shell is in front", PATIENCE, || (in_front(pid?)? == "sh").then_some(()));
        again.write(b"echo code $?; exit 12\n");
        again.read_until("code 130");
        assert_eq!(again.finish().code(), 12, "{way:?}");
    }
}

#[test]
fn ends_while_the_daemon_is_down_are_not_lost() {
    privileged!();
    for way in Way::ALL {
        let mut daemon = Daemon::start();
        let client = daemon.client();
        client.run_pod(&attached::pod("/s"));
        let wait = "touch there; until test -e go; do sleep 0.02; done; ";
        let lines = ["echo last words; echo oops >&2; exit 9", "kill -TERM $$", "exit 0"];
        let begun: Vec<_> =
            lines.iter().map(|line| begin_detached(&client, "/s", &shell(&format!("{wait}{line}"), false))).collect();
        let pids: Vec<u32> = begun
            .iter()
            .map(|session| until("the program runs", PATIENCE, || status(&client, &session.id).pid))
            .collect();
        let container = client.container("/s", "main").pid.unwrap();
        let sandbox = std::fs::read_link(format!("/proc/{}/cwd", pids[0])).unwrap();
        let go = format!("/proc/{container}/root{}/go", sandbox.display());
        way.end(&mut daemon);
        std::fs::write(&go, "").unwrap_or_else(|error| panic!("{go}: {error}"));
        assert!(
            eventually(PATIENCE, || pids.iter().all(|pid| {
                // one that nobody has waited for yet has no arguments any more
                std::fs::read(format!("/proc/{pid}/cmdline")).map_or(true, |line| line.is_empty())
            })),
            "{way:?}"
        );
        daemon.restart();
        let expected = [ExitStatus::Code(9), ExitStatus::Signal(15), ExitStatus::Code(0)];
        for (session, expected) in begun.iter().zip(expected) {
            let told = wait_exited(&client, &session.id);
            assert_eq!(told.exit, Some(expected), "{way:?}: {told:?}");
        }
        let ended = Exec::attach(&daemon.socket(), &begun[0].id, "from=0").finish();
        assert_eq!((ended.text().as_str(), ended.stderr.as_slice()), ("last words\n", &b"oops\n"[..]), "{way:?}");
        // an end that no client has heard of yet is kept by the next daemon, too
        way.end(&mut daemon);
        daemon.restart();
        assert_eq!(status(&client, &begun[1].id).exit, Some(ExitStatus::Signal(15)), "{way:?}");
        assert_eq!(Exec::attach(&daemon.socket(), &begun[2].id, "from=0").finish().code(), 0, "{way:?}");
    }
}

#[test]
fn many_sessions_outlive_many_restarts() {
    privileged!();
    let mut daemon = Daemon::with().set("api.requests_per_second=0").start();
    let client = daemon.client();
    client.run_pod(&attached::pod("/s"));
    let sessions: Vec<_> = (0..20)
        .map(|number| {
            let line = format!("echo {number}; read word; echo $word {number}; exit {number}");
            let mut session = Exec::begin(&daemon.socket(), "/s", &shell(&line, true));
            session.read_until(&format!("{number}\n"));
            (session.session.clone(), session.offset)
        })
        .collect();
    for round in 0..6 {
        if round % 2 == 0 { Way::Sigkill } else { Way::Sigterm }.end(&mut daemon);
        daemon.restart();
        for (id, _) in &sessions {
            assert_eq!(status(&client, id).state, SessionState::Running, "round {round}");
        }
    }
    for (number, (id, offset)) in sessions.iter().enumerate() {
        let mut session = Exec::attach(&daemon.socket(), id, &format!("from={offset}"));
        session.write(b"word\n");
        let ended = session.finish();
        assert_eq!((ended.text(), ended.code()), (format!("word {number}\n"), number as i64));
    }
}

#[test]
fn a_session_without_its_client_ends_after_a_restart_as_before() {
    privileged!();
    let mut daemon = Daemon::with().set("sessions.reattach_seconds=2").start();
    let client = daemon.client();
    client.run_pod(&attached::pod("/s"));
    let lost = Exec::begin(&daemon.socket(), "/s", &shell("sleep 1000", false));
    let kept = begin_detached(&client, "/s", &shell("sleep 1000", false));
    daemon.kill9();
    daemon.restart();
    assert_eq!(status(&client, &lost.session).state, SessionState::Running);
    let told = wait_exited(&client, &lost.session);
    assert!(told.message.is_some_and(|message| !message.is_empty()));
    assert_eq!(status(&client, &kept.id).state, SessionState::Running);
}
