//! Sessions in containers of a real daemon, by a client that speaks the frames itself: data in both directions, ends, input,
//! detaching, limits.

use std::io::Write;
use std::process::Stdio;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use agentd_api::session::{SessionState, SessionStatus};
use agentd_api::status::ExitStatus;
use agentd_tests::attached::{self, agentctl, begin_detached, digest, memory, noise, status, wait_exited};
use agentd_tests::exec::{self, Exec, Frame, shell};
use agentd_tests::{Client, Daemon, eventually, privileged, until};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(30);

/// How much the daemon's own memory may grow with what it holds of one session, KiB.
const GROWTH: u64 = 16 << 10;

/// Sessions at once.
const COUNT: usize = 200;

fn start(sets: &[&str]) -> (Daemon, Client) {
    let options = sets.iter().fold(Daemon::with().set("api.requests_per_second=0"), |options, set| options.set(set));
    let daemon = options.start();
    let client = daemon.client();
    client.run_pod(&attached::pod("/s"));
    (daemon, client)
}

#[test]
fn a_hundred_megabytes_go_through_cat_in_each_direction() {
    privileged!();
    let (daemon, _) = start(&[]);
    let data = noise(1, 100_000_000);
    let cat = json!({"command": ["cat"], "stdin": true});

    let ended = Exec::begin(&daemon.socket(), "/s", &cat).converse(&data);
    assert_eq!((ended.code(), ended.stdout.len(), ended.gap, ended.stderr.len()), (0, data.len(), 0, 0));
    assert_eq!(digest(&ended.stdout), digest(&data));

    // the same through the command line
    let (from, to) = (daemon.dir().join("from"), daemon.dir().join("to"));
    std::fs::write(&from, &data).unwrap();
    let mut command = agentctl(&daemon);
    command.args(["exec", "-i", "/s", "--", "cat"]);
    command.stdin(std::fs::File::open(&from).unwrap()).stdout(std::fs::File::create(&to).unwrap());
    let output = command.stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    assert_eq!(digest(&std::fs::read(&to).unwrap()), digest(&data));
}

#[test]
fn standard_output_and_error_are_separate_and_each_in_order() {
    privileged!();
    let (daemon, _) = start(&[]);
    let line = "i=0; while [ $i -lt 20000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done";
    let ended = exec::run_shell(&daemon.socket(), "/s", line);
    assert_eq!((ended.code(), ended.gap), (0, 0));
    let numbered = |word: &str| (0..20000).map(|n| format!("{word} {n}\n")).collect::<Vec<_>>().concat();
    assert_eq!(digest(&ended.stdout), digest(numbered("out").as_bytes()));
    assert_eq!(digest(&ended.stderr), digest(numbered("err").as_bytes()));

    let line = "head -c 50000000 /dev/zero | tr '\\0' a & head -c 50000000 /dev/zero | tr '\\0' b >&2; wait";
    let ended = exec::run_shell(&daemon.socket(), "/s", line);
    assert_eq!((ended.stdout.len(), ended.stderr.len(), ended.gap), (50_000_000, 50_000_000, 0));
    assert!(ended.stdout.iter().all(|byte| *byte == b'a') && ended.stderr.iter().all(|byte| *byte == b'b'));
}

#[test]
fn two_hundred_sessions_at_once_each_get_their_own_data_back() {
    privileged!();
    let (daemon, client) = start(&["sessions.per_container=256"]);
    let socket = daemon.socket();
    let together = Barrier::new(COUNT + 1);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..COUNT)
            .map(|number| {
                let (socket, together) = (&socket, &together);
                scope.spawn(move || {
                    let cat = json!({"command": ["cat"], "stdin": true, "environment": {"N": number.to_string()}});
                    let begun = std::panic::catch_unwind(|| Exec::begin(socket, "/s", &cat));
                    together.wait();
                    together.wait();
                    let data = noise(number as u64, 50_000 + number);
                    let ended = begun.expect("the session begins").converse(&data);
                    assert_eq!((ended.code(), ended.stdout == data), (0, true), "session {number}");
                })
            })
            .collect();
        together.wait();
        let all: Vec<SessionStatus> = client.get("/v1/sessions").read();
        let running = all.iter().filter(|session| session.state == SessionState::Running).count();
        together.wait();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(running, COUNT);
    });
}

#[test]
fn a_client_that_never_reads_holds_its_program_back_and_nobody_else() {
    privileged!();
    let (daemon, client) = start(&[]);
    exec::run(&daemon.socket(), "/s", &["true"]);
    let before = memory(daemon.pid());
    let stalled = Exec::begin(&daemon.socket(), "/s", &exec::program(&["yes"]));
    let mut last = 0;
    until("the program is held back", PATIENCE, || {
        std::thread::sleep(Duration::from_millis(200));
        let now = status(&client, &stalled.session).output_bytes;
        (now > 0 && std::mem::replace(&mut last, now) == now).then_some(())
    });
    assert!(memory(daemon.pid()) < before + GROWTH, "{} KiB, {before} KiB before", memory(daemon.pid()));
    // others go on, with much output, too
    let other = exec::run_shell(&daemon.socket(), "/s", "head -c 20000000 /dev/zero");
    assert_eq!((other.code(), other.stdout.len()), (0, 20_000_000));

    // one without a client goes on, and what is old gives way
    let lone = begin_detached(&client, "/s", &exec::program(&["yes"]));
    until("much was put out", PATIENCE, || (status(&client, &lone.id).output_bytes > 100_000_000).then_some(()));
    assert!(memory(daemon.pid()) < before + GROWTH, "{} KiB, {before} KiB before", memory(daemon.pid()));
    let mut late = Exec::attach(&daemon.socket(), &lone.id, "");
    assert!(matches!(late.read(), Ok(Some(Frame::Stdout(_)))) || late.offset > 0);
    drop(late);

    for session in [&stalled.session, &lone.id] {
        assert!(client.delete(&format!("/v1/sessions/{session}")).ok());
        assert!(matches!(wait_exited(&client, session).exit, Some(ExitStatus::Signal(_))));
    }
}

#[test]
fn a_program_that_never_reads_holds_its_client_back() {
    privileged!();
    let (daemon, client) = start(&[]);
    exec::run(&daemon.socket(), "/s", &["true"]);
    let before = memory(daemon.pid());
    let mut deaf = Exec::begin(&daemon.socket(), "/s", &json!({"command": ["sleep", "1000"], "stdin": true}));
    let sent = deaf.input().write_until_full(&noise(3, 64 << 10), Duration::from_millis(500));
    assert!((64 << 10..8 << 20).contains(&sent), "{sent} bytes were taken for a program that reads none");
    assert!(memory(daemon.pid()) < before + GROWTH);
    assert_eq!(exec::run_shell(&daemon.socket(), "/s", "echo fine").text(), "fine\n");
    // what is told to be given lies in the pipe, whose size the daemon chooses
    let told = status(&client, &deaf.session).stdin_bytes;
    assert!(told <= 1 << 20, "{told} bytes of input were told to be given");
    assert!(client.delete(&format!("/v1/sessions/{}", deaf.session)).ok());
    assert_eq!(deaf.finish().signal(), 9);
}

#[test]
fn ends_are_told_with_code_signal_and_reason() {
    privileged!();
    let (daemon, client) = start(&[]);
    let socket = daemon.socket();
    assert_eq!(exec::run_shell(&socket, "/s", "exit 7").code(), 7);
    assert_eq!(exec::run_shell(&socket, "/s", "kill -SEGV $$").signal(), 11);
    // through the command line: as a shell tells it
    for (line, code) in [("exit 7", 7), ("kill -TERM $$", 128 + 15)] {
        let status = agentctl(&daemon).args(["exec", "/s", "--", "sh", "-c", line]).status().unwrap();
        assert_eq!(status.code(), Some(code), "{line}");
    }

    // a signal by the connection, by its number and by its own call
    let trap = "trap 'echo usr; exit 5' USR1; echo ready; while :; do sleep 0.02; done";
    let mut session = Exec::begin(&socket, "/s", &shell(trap, false));
    session.read_until("ready");
    session.tell(&json!({"type": "signal", "signal": "SIGNONSENSE"}));
    let error = session.read_message("error");
    assert!(error["problem"]["detail"].as_str().is_some_and(|text| text.contains("SIGNONSENSE")), "{error}");
    session.tell(&json!({"type": "signal", "signal": "USR1"}));
    let ended = session.finish();
    assert_eq!((ended.text().as_str(), ended.code()), ("usr\n", 5));

    let mut session = Exec::begin(&socket, "/s", &shell(trap, false));
    session.read_until("ready");
    let path = format!("/v1/sessions/{}/signal", session.session);
    assert!(client.post(&path, &json!({"signal": "SIGKILL"})).ok());
    assert_eq!(session.finish().signal(), 9);
    assert_eq!(status(&client, &session.session).exit, Some(ExitStatus::Signal(9)));

    // what cannot be started is told by name
    let why = match Exec::try_begin(&socket, "/s", &exec::program(&["/no/such/program"])) {
        Ok(mut session) => {
            let ended = session.finish();
            assert_eq!(ended.code(), 127);
            format!("{} {}", ended.message(), String::from_utf8_lossy(&ended.stderr))
        }
        Err(answer) => {
            assert!((400..500).contains(&answer.status), "{} {}", answer.status, answer.text);
            answer.text
        }
    };
    assert!(why.contains("/no/such/program"), "{why}");
}

#[test]
fn input_is_half_closed_and_absent_where_none_is_asked_for() {
    privileged!();
    let (daemon, _) = start(&[]);
    let socket = daemon.socket();
    let line = "n=$(wc -c); echo $n bytes; sleep 0.2; echo after; exit 3";
    let mut session = Exec::begin(&socket, "/s", &shell(line, true));
    session.write(b"0123456789");
    session.close_input();
    let ended = session.finish();
    assert_eq!((ended.text().as_str(), ended.code()), ("10 bytes\nafter\n", 3));
    // by the message instead of an empty frame
    let mut session = Exec::begin(&socket, "/s", &shell("cat; echo end", true));
    session.write(b"x\n");
    session.tell(&json!({"type": "close-stdin"}));
    assert_eq!(session.finish().text(), "x\nend\n");
    // without input there is the end of it at once
    let ended = exec::run_shell(&socket, "/s", "cat; readlink /proc/self/fd/0");
    assert_eq!((ended.text().as_str(), ended.code()), ("/dev/null\n", 0));
    // a program that closes its input and goes on does not break the connection
    let mut session = Exec::begin(&socket, "/s", &shell("exec <&-; echo closed; sleep 0.3; exit 4", true));
    session.read_until("closed");
    session.write(&noise(1, 300_000));
    assert_eq!(session.finish().code(), 4);
    // what one leaves unread does not keep the end from being told
    let ended = Exec::begin(&socket, "/s", &shell("exit 6", true)).converse(&noise(1, 5_000_000));
    assert_eq!(ended.code(), 6);

    let mut command = agentctl(&daemon);
    command.args(["exec", "-i", "/s", "--", "wc", "-c"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"12345").unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"5\n");
}

#[test]
fn sessions_are_left_and_found_again_with_their_last_output() {
    privileged!();
    let (daemon, client) = start(&[]);
    let socket = daemon.socket();
    let echo = "echo first; while read line; do echo got $line; done; echo end; exit 8";

    // left by a message, and found again from where it was left
    let mut session = Exec::begin(&socket, "/s", &shell(echo, true));
    session.read_until("first\n");
    session.write(b"a\n");
    session.read_until("got a\n");
    session.tell(&json!({"type": "detach"}));
    assert_eq!(session.finish().last["type"], "detached");
    let (id, offset) = (session.session.clone(), session.offset);
    let mut again = Exec::attach(&socket, &id, &format!("from={offset}"));
    assert_eq!((again.offset, again.stdin), (offset, 2));
    again.write(b"b\n");
    assert_eq!(again.read_until("got b\n"), "got b\n");
    // a connection that breaks leaves it as well
    drop(again);
    until("the client has gone", PATIENCE, || (status(&client, &id).clients == 0).then_some(()));
    let mut whole = Exec::attach(&socket, &id, "from=0");
    whole.close_input();
    let ended = whole.finish();
    assert_eq!((ended.text().as_str(), ended.code()), ("first\ngot a\ngot b\nend\n", 8));
    // how it ended is told for a while; its output was delivered
    assert_eq!(Exec::attach(&socket, &id, "").finish().code(), 8);

    // one that begins without a client
    let begun = begin_detached(&client, "/s", &shell("echo alone; echo oops >&2; exit 3", false));
    assert!(begun.detach && !begun.tty && begun.pod == "/s" && begun.container == "main", "{begun:?}");
    let waited: SessionStatus = client.get(&format!("/v1/sessions/{}/wait?timeout=30", begun.id)).read();
    assert_eq!((waited.exit, waited.output_bytes), (Some(ExitStatus::Code(3)), 11));
    let ended = Exec::attach(&socket, &begun.id, "").finish();
    assert_eq!((ended.text().as_str(), ended.stderr.as_slice(), ended.code()), ("alone\n", &b"oops\n"[..], 3));

    // two follow one session, one of them gives the input
    let mut first = Exec::begin(&socket, "/s", &shell(echo, true));
    let mut second = Exec::attach(&socket, &first.session, "from=0&input=false");
    first.write(b"x\n");
    assert_eq!(first.read_until("got x\n"), second.read_until("got x\n"));
    let refused = Exec::try_attach(&socket, &first.session, "").unwrap();
    assert_eq!(refused.expect_err("the input is taken").status, 409);
    let mut third = Exec::attach(&socket, &first.session, "take-over=true&from=0");
    third.write(b"y\n");
    third.close_input();
    assert_eq!(third.finish().text(), "first\ngot x\ngot y\nend\n");
    assert_eq!(second.finish().code(), 8);
}

#[test]
fn there_are_no_more_sessions_than_allowed() {
    privileged!();
    let (daemon, client) = start(&["sessions.per_container=2", "sessions.total=3"]);
    client.run_pod(&agentd_tests::pods::sleeper("/t"));
    let socket = daemon.socket();
    let sleep = exec::program(&["sleep", "1000"]);
    let first = Exec::begin(&socket, "/s", &sleep);
    let _second = Exec::begin(&socket, "/s", &sleep);
    let refused = Exec::try_begin(&socket, "/s", &sleep).expect_err("a third in one container");
    assert!((400..500).contains(&refused.status) && refused.text.contains("sessions.per_container"), "{refused:?}");
    let _third = Exec::begin(&socket, "/t", &sleep);
    let refused = Exec::try_begin(&socket, "/t", &sleep).expect_err("a fourth in all");
    assert!((400..500).contains(&refused.status) && refused.text.contains("sessions.total"), "{refused:?}");
    // one that has ended makes room
    assert!(client.delete(&format!("/v1/sessions/{}", first.session)).ok());
    wait_exited(&client, &first.session);
    assert_eq!(exec::run_shell(&socket, "/t", "echo room").text(), "room\n");
}

#[test]
fn sessions_end_when_their_time_is_over() {
    privileged!();
    let (daemon, client) = start(&["sessions.reattach_seconds=1"]);
    let socket = daemon.socket();
    let asked = json!({"command": ["sleep", "1000"], "maxSeconds": 1});
    let began = Instant::now();
    let ended = Exec::begin(&socket, "/s", &asked).finish();
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(ended.signal(), 9);
    assert!(ended.message().contains("1 s"), "{:?}", ended.message());

    let line = "while read line; do echo $line; done";
    let asked = json!({"command": ["sh", "-c", line], "stdin": true, "idleSeconds": 1});
    let mut session = Exec::begin(&socket, "/s", &asked);
    let began = Instant::now();
    // input and output each keep it alive beyond its idle time
    while began.elapsed() < Duration::from_millis(1600) {
        session.write(b"tick\n");
        session.read_until("tick\n");
        std::thread::sleep(Duration::from_millis(100));
    }
    let ended = session.finish();
    assert!(ended.message().contains("no input and no output for 1 s"), "{:?}", ended.last);

    // a session whose client does not come back ends; one that is detached stays
    let lost = Exec::begin(&socket, "/s", &exec::program(&["sleep", "1000"]));
    let id = lost.session.clone();
    let kept = begin_detached(&client, "/s", &exec::program(&["sleep", "1000"]));
    drop(lost);
    let ended = wait_exited(&client, &id);
    assert!(ended.message.is_some_and(|message| !message.is_empty()));
    assert_eq!(status(&client, &kept.id).state, SessionState::Running);
}

#[test]
fn a_program_is_given_user_environment_folder_and_capabilities() {
    privileged!();
    let (daemon, _) = start(&[]);
    let socket = daemon.socket();
    let asked = json!({
        "command": ["sh", "-c", "id -u; id -g; pwd; echo $GREETING; grep CapEff /proc/self/status"],
        "user": "65534:12", "workdir": "/tmp", "environment": {"GREETING": "hello there"},
    });
    let ended = Exec::begin(&socket, "/s", &asked).finish();
    let expected = "65534\n12\n/tmp\nhello there\nCapEff:\t0000000000000000\n";
    assert_eq!((ended.text().as_str(), ended.code()), (expected, 0), "{ended:?}");

    let effective = |asked: &serde_json::Value| {
        let text = Exec::begin(&socket, "/s", asked).finish().text();
        u64::from_str_radix(attached::field(&text, "CapEff").trim(), 16).unwrap_or_else(|_| panic!("{text}"))
    };
    let mut asked = exec::program(&["cat", "/proc/self/status"]);
    let plain = effective(&asked);
    asked["capabilities"] = json!(["CAP_SYS_PTRACE"]);
    assert_eq!(effective(&asked), plain | 1 << 19, "CAP_SYS_PTRACE has the number 19");

    for (field, value, says) in [
        ("user", json!("nobody-of-that-name"), "nobody-of-that-name"),
        ("workdir", json!("/no/such/folder"), "/no/such/folder"),
        ("capabilities", json!(["CAP_NONSENSE"]), "CAP_NONSENSE"),
        ("container", json!("other"), "other"),
        ("instance", json!("000000000000"), "000000000000"),
    ] {
        let mut asked = exec::program(&["true"]);
        asked[field] = value;
        let why = match Exec::try_begin(&socket, "/s", &asked) {
            Err(answer) => answer.text,
            Ok(mut session) => {
                let ended = session.finish();
                assert_ne!(ended.last["exit"]["code"], 0, "{field}: {ended:?}");
                format!("{} {}", ended.message(), String::from_utf8_lossy(&ended.stderr))
            }
        };
        assert!(why.contains(says), "{field}: {why}");
    }
    assert!(eventually(PATIENCE, || daemon.client().get("/healthz").ok()));
}
