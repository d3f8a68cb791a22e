//! Exec and attach over an upgraded connection, against real programs.

use std::time::Duration;

use agentd_api::session::{FrameKind, MAX_PAYLOAD, ServerMessage, SessionExit, frame_head};
use agentd_api::status::ExitStatus;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::eventually;
use super::exec_client::{Attached, Frame, frame, pattern, refused, request, server, shell};
use crate::api::Pods;

/// The exit frame of a program that ended by itself, as the last message.
#[expect(clippy::unnecessary_wraps, reason = "compared with the last message, which may be missing")]
fn exit(exit: ExitStatus) -> Option<ServerMessage> {
    Some(ServerMessage::Exit { exit: SessionExit { exit, message: None } })
}

#[tokio::test]
async fn a_program_is_run_to_its_exit() {
    let server = server().await;
    // input that comes with the request is not lost
    let ahead = frame(FrameKind::Stdin, b"hello, ");
    let body = shell("cat; echo oops >&2; exit 7", true);
    let mut client = Attached::exec_ahead(&server, &body, &ahead).await;
    let head = client.head.to_ascii_lowercase();
    assert!(head.contains("upgrade: agentd-exec\r\n") && head.contains("connection: upgrade\r\n"), "{head}");
    assert!(head.contains(&format!("location: /v1/sessions/{}\r\n", client.session)), "{head}");
    assert_eq!((client.stdin, client.output), (0, 0));
    client.send(FrameKind::Stdin, b"world").await;
    let mut acknowledged = 0;
    while acknowledged < 12 {
        match client.next().await {
            Some(Frame::Control(ServerMessage::Ack { stdin })) => acknowledged = stdin,
            Some(Frame::Out(..)) => {}
            other => panic!("{other:?}"),
        }
    }
    client.control(&json!({"type": "close-stdin"})).await;
    let (_, err, last) = client.rest().await;
    assert_eq!((String::from_utf8(err).unwrap(), last), ("oops\n".to_owned(), exit(ExitStatus::Code(7))));
}

#[tokio::test]
async fn an_exit_that_nobody_has_seen_is_kept() {
    let server = server().await;
    let client = Attached::exec(&server, &shell("cat; echo oops >&2; exit 7", true)).await;
    let session = server.fake.session(&client.session).unwrap();
    let Attached { mut stream, .. } = client;
    stream.write_all(&[frame(FrameKind::Stdin, b"hello"), frame(FrameKind::Stdin, b"")].concat()).await.unwrap();
    session.wait().await;
    // it goes away with the exit unread
    stream.readable().await.unwrap();
    drop(stream);
    eventually("it is gone", || session.status().clients == 0).await;
    let mut again = Attached::attach(&server, session.id(), "").await;
    assert_eq!((again.stdin, again.output), (5, 0));
    assert_eq!(again.rest().await, (b"hello".to_vec(), b"oops\n".to_vec(), exit(ExitStatus::Code(7))));
    drop(again);
    // what was seen is given back
    eventually("its output is forgotten", || session.attach(crate::session::From::Kept).offset() == 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn megabytes_come_back_byte_for_byte() {
    let server = server().await;
    let input = pattern(20_000_003);
    for size in [MAX_PAYLOAD, 64 << 10, 4093] {
        let client = Attached::exec(&server, &shell("cat", true)).await;
        let (out, err, last) = client.exchange(input.clone(), size).await;
        assert!(out == input, "frames of {size}: {} of {} bytes", out.len(), input.len());
        assert!(err.is_empty());
        assert_eq!(last, exit(ExitStatus::Code(0)));
    }
    // both streams, each whole and in order
    let client = Attached::exec(&server, &shell("tee /dev/stderr", true)).await;
    let (out, err, _) = client.exchange(input.clone(), 100_000).await;
    assert!(out == input && err == input, "{} and {} of {} bytes", out.len(), err.len(), input.len());
}

#[tokio::test]
async fn a_lost_client_comes_back_to_where_it_was() {
    let server = server().await;
    let mut client = Attached::exec(&server, &shell("while read line; do echo got $line; done", true)).await;
    client.send(FrameKind::Stdin, b"one\ntwo\n").await;
    let seen = client.until("got two\n").await.len();
    let session = client.session.clone();
    drop(client);
    eventually("the server notices", || server.fake.session(&session).unwrap().status().clients == 0).await;
    let mut again = Attached::attach(&server, &session, &format!("from={}", seen - 4)).await;
    assert_eq!((again.stdin, again.output), (8, seen as u64 - 4));
    assert_eq!(again.until("\n").await, "two\n");
    again.send(FrameKind::Stdin, b"three\n").await;
    assert_eq!(again.until("three\n").await, "got three\n");
    // without an offset all that is kept is told; with `now` nothing of it
    let mut watcher = Attached::attach(&server, &session, "input=false").await;
    assert_eq!(watcher.until("three\n").await, "got one\ngot two\ngot three\n");
    let mut now = Attached::attach(&server, &session, "from=now&input=false").await;
    assert_eq!(now.output, 26);
    again.send(FrameKind::Stdin, b"").await;
    for client in [&mut again, &mut watcher, &mut now] {
        assert_eq!(client.rest().await, (Vec::new(), Vec::new(), exit(ExitStatus::Code(0))));
    }
}

#[tokio::test]
async fn one_client_at_a_time_gives_input() {
    let server = server().await;
    let mut first = Attached::exec(&server, &shell("cat", true)).await;
    let path = format!("/v1/sessions/{}/attach", first.session);
    let (status, problem, _) = refused(&server, &request("GET", &path, "")).await;
    assert_eq!((status, &problem["type"]), (409, &"input-taken".into()));
    assert!(problem["detail"].as_str().unwrap().contains("take-over=true"), "{problem}");
    let mut second = Attached::attach(&server, &first.session, "take-over=true").await;
    let (_, _, last) = first.rest().await;
    assert!(matches!(&last, Some(ServerMessage::Detached { message }) if message.contains("took over")), "{last:?}");
    second.send(FrameKind::Stdin, b"mine").await;
    assert_eq!(second.until("mine").await, "mine");
    second.send(FrameKind::Stdin, b"").await;
    assert_eq!(second.rest().await.2, exit(ExitStatus::Code(0)));
}

#[tokio::test]
async fn who_detaches_is_told_and_the_session_goes_on() {
    let server = server().await;
    let mut client = Attached::exec(&server, &shell("cat; echo end", true)).await;
    client.send(FrameKind::Stdin, b"before").await;
    client.control(&json!({"type": "detach"})).await;
    let (_, _, last) = client.rest().await;
    assert!(matches!(last, Some(ServerMessage::Detached { .. })), "{last:?}");
    // all that was sent before has arrived
    let mut again = Attached::attach(&server, &client.session, "").await;
    assert_eq!((again.stdin, again.until("before").await.as_str()), (6, "before"));
    again.send(FrameKind::Stdin, b"").await;
    assert_eq!(again.until("end\n").await, "end\n");
    assert_eq!(again.rest().await.2, exit(ExitStatus::Code(0)));
}

#[tokio::test]
async fn what_cannot_be_obeyed_is_told_and_changes_nothing() {
    let server = server().await;
    let mut client = Attached::exec(&server, &shell("echo ready; cat", true)).await;
    client.until("ready\n").await;
    for (message, kind, word) in [
        (json!({"type": "signal", "signal": "SIGNOPE"}), "bad-request", "expected the name of a signal"),
        (json!({"type": "resize", "rows": 4, "columns": 5}), "conflict", "no terminal"),
        (json!({"type": "dance"}), "bad-request", "unknown variant"),
        (json!({"type": "resize", "rows": -1, "columns": 5}), "bad-request", "invalid value"),
        (json!("detach"), "bad-request", "control message"),
    ] {
        client.control(&message).await;
        let ServerMessage::Error { problem } = client.message().await else { panic!("{message}") };
        assert!(problem.kind == kind && problem.detail.contains(word), "{message}: {problem:?}");
    }
    let mut watcher = Attached::attach(&server, &client.session, "input=false").await;
    watcher.until("ready\n").await;
    for _ in 0..3 {
        // told once, however much is sent
        watcher.send(FrameKind::Stdin, b"let me in").await;
    }
    watcher.control(&json!({"type": "signal", "signal": "KILL"})).await;
    for _ in 0..2 {
        let ServerMessage::Error { problem } = watcher.message().await else { panic!("no error") };
        assert_eq!(problem.kind, "only-watching");
    }
    watcher.control(&json!({"type": "ping"})).await;
    assert_eq!(watcher.message().await, ServerMessage::Pong);
    client.send(FrameKind::Stdin, b"still here\n").await;
    assert_eq!(client.until("\n").await, "still here\n");
    client.control(&json!({"type": "signal", "signal": "term"})).await;
    assert_eq!(client.rest().await.2, exit(ExitStatus::Signal(15)));
    // no input was asked for
    let mut without = Attached::exec(&server, &shell("exec sleep 100", false)).await;
    without.send(FrameKind::Stdin, b"text").await;
    let ServerMessage::Error { problem } = without.message().await else { panic!("no error") };
    assert!(problem.kind == "no-stdin" && problem.detail.contains("\"stdin\": true"), "{problem:?}");
    without.control(&json!({"type": "signal", "signal": "9"})).await;
    assert_eq!(without.rest().await.2, exit(ExitStatus::Signal(9)));
}

#[tokio::test]
async fn what_is_no_frame_ends_the_connection_but_not_the_session() {
    let server = server().await;
    let mut client = Attached::exec(&server, &shell("cat", true)).await;
    let session = client.session.clone();
    client.send(FrameKind::Stdin, b"before").await;
    client.stream.write_all(&frame_head(FrameKind::Stdin, MAX_PAYLOAD + 1)).await.unwrap();
    let (out, _, last) = client.rest().await;
    let Some(ServerMessage::Error { problem }) = last else { panic!("{last:?}") };
    assert!(problem.kind == "bad-frame" && problem.detail.contains("1048577"), "{problem:?}");
    let mut again = Attached::attach(&server, &session, &format!("from={}", out.len())).await;
    again.send(FrameKind::Stdin, b"after").await;
    again.send(FrameKind::Stdin, b"").await;
    assert_eq!([out, again.rest().await.0].concat(), b"beforeafter");
}

#[tokio::test]
async fn a_client_that_never_reads_holds_its_session_back() {
    let server = server().await;
    let client = Attached::exec(&server, &shell("yes", false)).await;
    let session = server.fake.session(&client.session).unwrap();
    // the ring, the pipe and the socket fill up, and that is all
    let mut before = 0;
    let still = async {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = session.status().output_bytes;
            if now > 0 && now == before {
                return now;
            }
            before = now;
        }
    };
    let held = timeout(Duration::from_secs(20), still).await.expect("the program is held back");
    assert!(held < 4 << 20, "{held} bytes were read for a client that reads none");
    // its end is noticed all the same, and another client is served
    drop(client);
    eventually("the client is gone", || session.status().clients == 0).await;
    let mut other = Attached::attach(&server, session.id(), "").await;
    let mut got = 0;
    while got < 8 << 20 {
        match other.next().await {
            Some(Frame::Out(FrameKind::Stdout, bytes)) => got += bytes.len(),
            Some(Frame::Control(ServerMessage::Gap { .. })) => {}
            unexpected => panic!("{unexpected:?}"),
        }
    }
    session.kill("enough").await;
}

#[tokio::test]
async fn a_program_that_never_reads_holds_its_client_back_but_no_message() {
    let server = server().await;
    let mut client = Attached::exec(&server, &shell("echo ready; exec sleep 100", true)).await;
    client.until("ready\n").await;
    // as much as the documentation allows ahead of the acknowledgements, then a signal
    client.send(FrameKind::Stdin, &pattern(128 << 10)).await;
    client.control(&json!({"type": "ping"})).await;
    assert_eq!(client.message().await, ServerMessage::Pong);
    let sent = timeout(Duration::from_secs(2), async {
        let mut sent = 0_usize;
        while client.stream.write_all(&frame(FrameKind::Stdin, &[0; 16 << 10])).await.is_ok() {
            sent += 16 << 10;
            assert!(sent < 4 << 20, "{sent} bytes were taken for a program that reads none");
        }
    });
    assert!(sent.await.is_err(), "the connection ended");
    // a client that goes away is noticed although nothing can be read of it
    let session = server.fake.session(&client.session).unwrap();
    let mut other = Attached::attach(&server, &client.session, "take-over=true").await;
    other.control(&json!({"type": "signal", "signal": "HUP"})).await;
    assert_eq!(other.rest().await.2, exit(ExitStatus::Signal(1)));
    assert_eq!(session.status().stdin_bytes, other.stdin);
}

#[tokio::test]
async fn clients_are_let_go_when_the_daemon_stops() {
    let server = server().await;
    let mut idle = Attached::exec(&server, &shell("cat", true)).await;
    let mut busy = Attached::exec(&server, &shell("yes", false)).await;
    let sessions = server.fake.sessions();
    server.shutdown.cancel();
    timeout(Duration::from_secs(3), server.served).await.expect("the server ends soon").unwrap();
    assert_eq!(idle.rest().await, (Vec::new(), Vec::new(), None));
    let mut rest = Vec::new();
    timeout(Duration::from_secs(10), busy.stream.read_to_end(&mut rest)).await.expect("it is closed").unwrap();
    for session in sessions {
        assert_eq!(session.status().exit, None, "a session ended with the server");
        session.kill("enough").await;
    }
}

#[tokio::test]
async fn a_terminal_is_shown_and_sized() {
    let server = server().await;
    let body = json!({"command": ["stty size; read line; stty size; echo $line"], "tty": true});
    let mut client = Attached::exec(&server, &body).await;
    client.until("\r\n").await;
    client.control(&json!({"type": "resize", "rows": 33, "columns": 101})).await;
    client.control(&json!({"type": "ping"})).await;
    assert_eq!(client.message().await, ServerMessage::Pong);
    client.send(FrameKind::Stdin, "gr\u{fc}n\n".as_bytes()).await;
    let (out, err, last) = client.rest().await;
    let shown = String::from_utf8(out).unwrap();
    assert!(shown.contains("33 101\r\n") && shown.ends_with("gr\u{fc}n\r\n") && err.is_empty(), "{shown:?}");
    assert_eq!(last, exit(ExitStatus::Code(0)));
}

#[tokio::test]
async fn a_session_whose_client_goes_away_while_it_is_begun_is_ended() {
    let server = server().await;
    let begin = |body: &serde_json::Value| request("POST", "/v1/pods/app/exec", &body.to_string());
    let body = shell("# slow\nsleep 100", true);
    let detached = json!({"command": ["# slow\nsleep 100"], "detach": true});
    for body in [&body, &detached] {
        let mut stream = server.connect().await;
        stream.write_all(begin(body).as_bytes()).await.unwrap();
        // the server has the whole request before its client goes
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(stream);
    }
    eventually("both were begun", || server.fake.sessions().len() == 2).await;
    let [waited, detached] = server.fake.sessions().try_into().unwrap();
    eventually("it is ended", || waited.status().exit == Some(ExitStatus::Signal(9))).await;
    assert!(waited.status().message.is_some_and(|why| why.contains("client had gone")), "{:?}", waited.status());
    assert_eq!(detached.status().exit, None);
    detached.kill("enough").await;
}
