//! Sessions over plain child processes, without containers: [`over`] is what the API's tests use, too.

#![allow(clippy::similar_names, reason = "`lost` and `last` are read one line after they are made")]

use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentd_api::session::{SessionExit, SessionKind, SessionState};
use agentd_api::status::ExitStatus;
use agentd_launcher::message::Ended;
use futures_util::future::BoxFuture;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::mpsc;

use super::begin::{asynchronous, terminal_ends};
use super::program::Program;
use super::registry::assemble;
use super::ring::{Ring, Stream};
use super::stage::{Stage, Way};
use super::task::{self, Ends, Limits};
use super::{From, Output, Phase, Record, Session};

/// A child of the test instead of a program in a container.
#[derive(Debug)]
struct Own {
    pid: i32,
    /// The copy of the write end that pod-init would keep.
    parked: Mutex<Option<OwnedFd>>,
}

impl Program for Own {
    fn signal(&self, signal: i32) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            // SAFETY: plain integers; the child is reaped only by the thread that waits for it.
            unsafe { libc::kill(self.pid, signal) };
            Ok(())
        })
    }

    fn kill(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // the group, which the child leads
            // SAFETY: plain integers.
            unsafe { libc::kill(-self.pid, libc::SIGKILL) };
        })
    }

    fn close_stdin(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move { drop(self.parked.lock().unwrap().take()) })
    }

    fn clear(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    fn forget(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    fn why(&self) -> Option<String> {
        None
    }
}

/// Settings of a test's session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    pub tty: bool,
    pub stdin: bool,
    pub detach: bool,
    pub kind: SessionKind,
    pub idle: Option<Duration>,
    pub max: Option<Duration>,
    pub alone: Duration,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            tty: false,
            stdin: true,
            detach: false,
            kind: SessionKind::Exec,
            idle: None,
            max: None,
            alone: Duration::from_mins(1),
        }
    }
}

/// A session that runs a shell command as a child of this process.
pub(crate) fn over(shell: &str, setting: Setting) -> Session {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", shell]).process_group(0);
    let (mut input, mut terminal, mut output, mut parked) = (None, None, Vec::new(), None);
    if setting.tty {
        let pty = nix::pty::openpty(None, None).unwrap();
        rustix::io::ioctl_fionbio(&pty.master, true).unwrap();
        let slave = || Stdio::from(pty.slave.try_clone().unwrap());
        command.stdin(slave()).stdout(slave()).stderr(slave());
        let (a, b, c) = terminal_ends(pty.master).unwrap();
        (input, terminal) = (Some(Way { to: a, stage: None }), Some(c));
        output.push((Stream::Stdout, b));
    } else {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).unwrap();
        let ((out, out_write), (err, err_write)) = (pipe(), pipe());
        for fd in [&out, &err] {
            rustix::io::ioctl_fionbio(fd, true).unwrap();
        }
        command.stdout(out_write).stderr(err_write).stdin(Stdio::null());
        if setting.stdin {
            let (read, write) = pipe();
            rustix::io::ioctl_fionbio(&write, true).unwrap();
            command.stdin(read);
            parked = Some(write.try_clone().unwrap());
            input = Some(Way { to: asynchronous(write).unwrap(), stage: Some(Stage::new().unwrap()) });
        }
        output.push((Stream::Stdout, asynchronous(out).unwrap()));
        output.push((Stream::Stderr, asynchronous(err).unwrap()));
    }
    let child = command.spawn().unwrap();
    drop(command);
    let pid = child.id();
    let record = Record {
        id: format!("test{pid}"),
        kind: setting.kind,
        debug: false,
        pod: "/test".to_owned(),
        instance: "0123456789ab".to_owned(),
        container: "main".to_owned(),
        slot: 0,
        attempt: 1,
        key: 1 << 16,
        command: vec!["sh".to_owned(), "-c".to_owned(), shell.to_owned()],
        tty: setting.tty,
        stdin: setting.stdin,
        detach: setting.detach,
        idle_seconds: None,
        max_seconds: None,
        principal: "uid:0".to_owned(),
        started_ms: crate::instance::now_ms(),
        recorded: false,
        why: None,
    };
    let ring = Ring::new(128 << 10, &record.encode()).unwrap();
    let program = Box::new(Own { pid: pid as i32, parked: Mutex::new(parked) });
    let session = assemble(record, program, ring, input, terminal, Some(pid), Phase::Running);
    let limits = Limits { idle: setting.idle, max: setting.max, alone: setting.alone, keep: Duration::from_secs(30) };
    let ends = Ends { output, stage: Stage::new().unwrap(), ended: ended(child) };
    tokio::spawn(task::run(session.clone(), ends, limits, None, |_| ()));
    session
}

/// Tells how a child ended, as pod-init does.
fn ended(mut child: Child) -> mpsc::UnboundedReceiver<Ended> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let status = child.wait().unwrap();
        let ended = status.code().map_or_else(|| Ended::Signal(status.signal().unwrap_or(0)), Ended::Code);
        // the session may be over
        let _ = sender.send(ended);
    });
    receiver
}

/// Everything that a client is given until the exit.
pub(crate) async fn read_all(session: &Session, from: From) -> (Vec<u8>, Vec<u8>, u64, Output) {
    let mut client = session.attach(from);
    let (mut out, mut err, mut lost) = (Vec::new(), Vec::new(), 0);
    loop {
        match tokio::time::timeout(Duration::from_secs(30), client.next()).await.unwrap() {
            Output::Stdout(bytes) => out.extend_from_slice(&bytes),
            Output::Stderr(bytes) => err.extend_from_slice(&bytes),
            Output::Gap(count) => lost += count,
            last => return (out, err, lost, last),
        }
    }
}

fn exit(code: i32) -> Output {
    Output::Exit(SessionExit { exit: ExitStatus::Code(code), message: None })
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_stay_apart_and_the_exit_comes_last() {
    let session = over("echo out; echo err >&2; exit 7", Setting::default());
    let (out, err, lost, last) = read_all(&session, From::Kept).await;
    assert_eq!((out.as_slice(), err.as_slice(), lost, last), (&b"out\n"[..], &b"err\n"[..], 0, exit(7)));
    assert_eq!(session.status().state, SessionState::Exited);
    assert_eq!(session.wait().await.exit, ExitStatus::Code(7));
}

#[tokio::test(flavor = "multi_thread")]
async fn input_goes_in_and_its_end_is_seen() {
    let session = over("cat; echo done", Setting::default());
    let mut input = session.input(false).unwrap();
    assert!(session.input(false).is_err());
    let data = vec![b'x'; 1 << 20];
    let reader = tokio::spawn({
        let session = session.clone();
        async move { read_all(&session, From::Kept).await }
    });
    let mut at = 0;
    while at < data.len() {
        let count = input.write(&data[at..]).await;
        assert!(count > 0);
        at += count;
    }
    assert_eq!(input.written(), data.len() as u64);
    input.close().await;
    let (out, _, lost, last) = reader.await.unwrap();
    assert_eq!((out.len(), lost, last), (data.len() + 5, 0, exit(0)));
    assert_eq!(input.write(b"late").await, 0);
    drop(input);
    assert!(session.input(false).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_holds_the_program_back_and_nothing_is_lost() {
    let session = over("head -c 3000000 /dev/zero", Setting::default());
    let client = session.attach(From::Kept);
    let mut before = 0;
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let now = session.status().output_bytes;
        if now == before && now > 0 {
            break;
        }
        before = now;
    }
    assert!(before <= 128 << 10, "{before} bytes were taken for a client that reads nothing");
    assert_eq!(session.status().state, SessionState::Running);
    drop(client);
    let (out, _, lost, last) = read_all(&session, From::Kept).await;
    assert_eq!((out.len(), lost, last), (3_000_000, 0, exit(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_comes_back_goes_on_where_it_was() {
    let session = over("for n in 1 2 3; do echo $n; done; cat", Setting::default());
    let mut client = session.attach(From::Kept);
    let mut seen = Vec::new();
    while seen.len() < 6 {
        if let Output::Stdout(bytes) = client.next().await {
            seen.extend_from_slice(&bytes);
        }
    }
    assert_eq!(client.offset(), 6);
    drop(client);
    session.input(false).unwrap().close().await;
    let (out, _, lost, _) = read_all(&session, From::Offset(3)).await;
    assert_eq!((out.as_slice(), lost), (&b"\n3\n"[..], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_program_is_not_held_back_and_the_last_output_is_kept() {
    let session = over("head -c 2000000 /dev/zero; echo last", Setting { detach: true, ..Setting::default() });
    assert_eq!(session.wait().await.exit, ExitStatus::Code(0));
    let (out, _, lost, last) = read_all(&session, From::Offset(0)).await;
    assert!(out.ends_with(b"last\n") && out.len() > 30_000, "{}", out.len());
    assert_eq!((out.len() as u64 + lost, last), (2_000_005, exit(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_one_stream_and_has_a_size() {
    let session = over("read line; stty size; echo \"got $line\"", Setting { tty: true, ..Setting::default() });
    session.resize(11, 77).unwrap();
    let mut input = session.input(false).unwrap();
    assert_eq!(input.write(b"hi\n").await, 3);
    let (out, err, _, last) = read_all(&session, From::Kept).await;
    let out = String::from_utf8(out).unwrap();
    assert!(out.contains("11 77") && out.contains("got hi"), "{out:?}");
    assert!(err.is_empty());
    assert_eq!(last, exit(0));
    let plain = over("true", Setting::default());
    assert!(plain.resize(1, 1).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_end_it_with_a_reason() {
    let short = Some(Duration::from_millis(100));
    for (setting, word) in [
        (Setting { max: short, detach: true, ..Setting::default() }, "its longest"),
        (Setting { idle: short, detach: true, ..Setting::default() }, "no input and no output"),
        (Setting { alone: Duration::from_millis(100), ..Setting::default() }, "no client attached"),
    ] {
        let exit = over("sleep 60", setting).wait().await;
        assert_eq!(exit.exit, ExitStatus::Signal(libc::SIGKILL));
        assert!(exit.message.clone().unwrap_or_default().contains(word), "{exit:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nested_session_ends_with_its_client() {
    let session = over("sleep 60", Setting { kind: SessionKind::Nested, ..Setting::default() });
    drop(session.attach(From::Kept));
    assert_eq!(session.wait().await.message.as_deref(), Some("its client went away"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_its_program_leaves_behind_ends_with_it() {
    let session = over("sleep 600 & echo $!", Setting::default());
    let (out, _, _, last) = read_all(&session, From::Kept).await;
    assert_eq!(last, exit(0));
    let pid = String::from_utf8(out).unwrap().trim().to_owned();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    let gone = || std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "));
    while !gone() {
        assert!(std::time::Instant::now() < deadline, "process {pid} is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A program that leaves another with its output, which the kill of its group does not reach.
fn left_by(other: &str, folder: &std::path::Path) -> String {
    let mark = folder.join("left");
    let mark = mark.display();
    format!("setsid sh -c ': > {mark}; exec {other}' & until test -e {mark}; do :; done; echo word; exit 5")
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_another_process_holds_open_does_not_hold_the_exit_back() {
    let folder = tempfile::tempdir().unwrap();
    let session = over(&left_by("sleep 20", folder.path()), Setting::default());
    let (out, _, _, last) = read_all(&session, From::Kept).await;
    assert_eq!((out.as_slice(), last), (&b"word\n"[..], exit(5)));
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_another_process_goes_on_with_does_not_hold_the_exit_back() {
    let folder = tempfile::tempdir().unwrap();
    let session = over(&left_by("timeout 20 yes", folder.path()), Setting::default());
    let (out, _, _, last) = read_all(&session, From::Kept).await;
    assert!(out.len() > 1 << 20, "{}", out.len());
    assert_eq!(last, exit(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn input_can_be_taken_over() {
    let session = over("cat", Setting::default());
    let mut first = session.attach(From::Kept);
    let mut old = first.input(false).unwrap();
    let second = session.attach(From::Kept);
    let mut new = second.input(true).unwrap();
    assert!(matches!(first.next().await, Output::LetGo(_)));
    assert_eq!(old.write(b"x").await, 0);
    assert_eq!(new.write(b"y").await, 1);
    drop((old, first));
    // the one that lost it gives nothing back that is not its own
    assert!(session.input(false).is_err());
    let exit = tokio::spawn({
        let session = session.clone();
        async move { session.wait().await }
    });
    session.kill("enough").await;
    let exit: SessionExit = exit.await.unwrap();
    assert_eq!(exit.message.as_deref(), Some("enough"));
    drop(Arc::new(second));
}
