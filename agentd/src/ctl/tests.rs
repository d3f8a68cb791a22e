//! Commands against a server in this process: what they print, and how they end.

mod follow;
mod forms;
mod tls;

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use agentd_api::status::InstancePhase;
use clap::Parser;

use super::arguments::Arguments;
use super::carry_out;
use super::failure::Failure;
use super::output::Output;
use crate::api::tests::{Server, pod, start};

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn arguments(socket: &Path, words: &[&str]) -> Arguments {
    let socket = ["agentctl", "--socket", socket.to_str().unwrap()];
    Arguments::try_parse_from(socket.iter().chain(words)).unwrap()
}

/// Carries a command out; gives its exit code, what it printed, and what it would say on standard error.
async fn agentctl(server: &Server, words: &[&str]) -> (u8, String, String) {
    let arguments = arguments(&server.socket, words);
    let memory = Memory::default();
    let mut output = Output::into(arguments.output, Box::new(memory.clone()));
    let result = carry_out(arguments, &mut output).await;
    let printed = String::from_utf8(memory.0.lock().unwrap().clone()).unwrap();
    match result {
        Ok(()) => (0, printed, String::new()),
        Err(Failure::Told { code, message, lines }) => {
            (code, printed, std::iter::once(message).chain(lines).collect::<Vec<_>>().join("\n"))
        }
        Err(Failure::Enough) => (0, printed, "enough".to_owned()),
        Err(Failure::Exit(code)) => (code, printed, String::new()),
    }
}

/// Writes a pod's file.
fn file(server: &Server, name: &str, text: &str) -> String {
    let path = server.fake.folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_pod_is_run_shown_and_removed() {
    let server = start();
    let path = file(&server, "pod.json", &pod("/app/web", "running"));
    let (code, printed, _) = agentctl(&server, &["pod", "run", &path]).await;
    assert_eq!(code, 0);
    let lines: Vec<Vec<&str>> = printed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0][..3], ["POD", "INSTANCE", "PHASE"]);
    assert_eq!(lines[1][..6], ["/app/web", "000000000000", "running", "web", "TASK_RUNNING", "4711"]);
    assert_eq!(lines.len(), 3);
    let (code, printed, _) = agentctl(&server, &["pod", "ls"]).await;
    assert!(code == 0 && printed.contains("/app/web  000000000000  running      2/2"), "{printed}");
    let (_, printed, _) = agentctl(&server, &["pod", "ls", "-o", "json"]).await;
    let body = server.get("/v1/pods").await.body;
    assert_eq!(printed.trim_end().as_bytes(), body, "JSON is the API's body");
    let (code, printed, _) = agentctl(&server, &["pod", "inspect", "app/web"]).await;
    assert!(code == 0 && printed.contains("1.0 MiB") && printed.contains("10.88.0.2"), "{printed}");
    assert_eq!(agentctl(&server, &["pod", "update", &path]).await.0, 0);
    let (code, _, told) = agentctl(&server, &["pod", "run", &path]).await;
    assert!(code == 4 && told.contains("exists already"), "{code} {told}");
    let (code, printed, _) = agentctl(&server, &["pod", "rm", "/nope", "/app/web"]).await;
    assert_eq!((code, printed.as_str()), (3, "/app/web removed\n"));
    let (code, _, told) = agentctl(&server, &["pod", "rm", "/app/web"]).await;
    assert!(code == 3 && told.contains("/app/web"), "{told}");
    assert_eq!(agentctl(&server, &["pod", "rm", "/app/web", "--ignore-missing"]).await.0, 0);
}

#[tokio::test]
async fn every_ending_has_its_exit_code() {
    let server = start();
    let path = file(&server, "bad.json", r#"{"id":"x","containers":[{"name":"a","resources":{"cpus":-1,"mem":32}}]}"#);
    for verb in ["run", "update"] {
        let (code, _, told) = agentctl(&server, &["pod", verb, &path]).await;
        assert_eq!(code, 2);
        let wanted = [format!("{path}: id: "), format!("{path}: containers[0].resources.cpus: ")];
        assert!(wanted.iter().all(|start| told.lines().any(|line| line.starts_with(start))), "{told}");
    }
    let fated = |fate: &str| file(&server, &format!("{fate}.json"), &pod(&format!("/{fate}"), fate));
    let (failed, finished) = (fated("failed"), fated("finished"));
    let (starting, big, panics) = (fated("starting"), fated("insufficient"), fated("panic"));
    let cases: [(&[&str], u8, &str); 14] = [
        (&["pod", "run", &failed, "--wait", "finished"], 10, "exit code 7"),
        (&["pod", "wait", "/failed", "--until", "finished"], 10, "has failed"),
        (&["pod", "run", &finished, "--wait", "finished"], 0, ""),
        (&["pod", "run", &starting, "--timeout", "0.05"], 6, "is starting"),
        (&["pod", "wait", "/starting", "--timeout", "0.05"], 6, "not running after 0.05 s"),
        (&["pod", "run", &big], 4, "cpus: 4 needed, 1.5 free"),
        (&["pod", "run", &panics], 1, "log"),
        (&["pod", "run", "/no/such/file"], 2, "/no/such/file"),
        (&["pod", "inspect", "/nope"], 3, "/nope"),
        (&["pod", "inspect", "/"], 2, "pod id"),
        (&["logs", "/failed", "nope"], 3, "it has web, log"),
        (&["image", "rm", "nope"], 3, "nope"),
        (&["image", "pull", "UPPER CASE"], 2, "reference"),
        (&["image", "import", "no-such-archive.tar"], 2, "no-such-archive.tar"),
    ];
    for (words, wanted, text) in cases {
        let (code, _, told) = agentctl(&server, words).await;
        assert!(code == wanted && told.contains(text), "{words:?}: {code}: {told}");
    }
    let folder = server.fake.folder.path().to_str().unwrap().to_owned();
    assert_eq!(agentctl(&server, &["image", "import", &folder]).await.0, 1);
}

#[tokio::test]
async fn an_unreachable_daemon_is_told_with_its_socket_and_the_cure() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = folder.path().join("nobody.sock");
    drop(std::os::unix::net::UnixListener::bind(&nobody).unwrap());
    let long = folder.path().join("x".repeat(200));
    for (socket, cure) in [(folder.path().join("none"), "--socket"), (nobody, "systemctl start"), (long, "too long")] {
        let arguments = arguments(&socket, &["node"]);
        let mut output = Output::into(arguments.output, Box::new(Memory::default()));
        let failure = carry_out(arguments, &mut output).await.unwrap_err();
        let Failure::Told { code, message, .. } = failure else { panic!("it is told") };
        assert!(code == 5 && message.contains(socket.to_str().unwrap()) && message.contains(cure), "{message}");
    }
}

#[tokio::test]
async fn answers_that_make_no_sense_are_failures() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("odd.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let cases: [(&[u8], &[&str], u8); 7] = [
        (b"", &["node"], 5),
        (b"SSH-2.0-x\r\n", &["node"], 5),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]", &["node"], 1),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n[]", &["pod", "ls"], 5),
        (b"HTTP/1.1 500 Oh\r\ncontent-length: 4\r\n\r\n<br>", &["pod", "ls"], 1),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", &["image", "pull", "nginx"], 1),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\ndata: [1]\n\n", &["events", "--follow"], 1),
    ];
    for (answer, words, wanted) in cases {
        let arguments = arguments(&socket, words);
        let mut output = Output::into(arguments.output, Box::new(Memory::default()));
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            stream.write_all(answer).await.unwrap();
        };
        let (result, ()) = tokio::join!(carry_out(arguments, &mut output), serve);
        let failure = result.unwrap_err();
        assert_eq!(failure.code(), wanted, "{:?}: {failure:?}", String::from_utf8_lossy(answer));
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_is_no_failure() {
    let server = start();
    let arguments = arguments(&server.socket, &["node"]);
    let mut output = Output::into(arguments.output, Box::new(Closed));
    assert!(matches!(carry_out(arguments, &mut output).await, Err(Failure::Enough)));
}

#[tokio::test]
async fn node_events_and_followed_logs_are_shown() {
    let server = start();
    server.run("/v1/pods", &pod("/app", "running")).await;
    let (code, printed, _) = agentctl(&server, &["node"]).await;
    assert!(code == 0 && printed.contains("cpus") && printed.contains("6.1"), "{printed}");
    let (code, printed, _) = agentctl(&server, &["events"]).await;
    assert!(code == 0 && printed.contains("pod-accepted"), "{printed}");
    let follow = agentctl(&server, &["logs", "/app", "web", "-f"]);
    let work = async {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let capture = crate::api::Pods::capture(&*server.fake);
        capture.add("000000000000", "web", 1, agentd_logging::Stream::Stdout, reader.into()).unwrap();
        writer.write_all(b"hello\n").unwrap();
        drop(writer);
        capture.finish("000000000000", "web").await.unwrap();
        server.fake.set_phase("/app", InstancePhase::Finished);
    };
    let ((code, printed, told), ()) = tokio::join!(follow, work);
    assert_eq!((code, printed.as_str(), told.as_str()), (0, "hello\n", ""));
    let follow = agentctl(&server, &["events", "--follow", "--reconnect", "0", "-o", "json"]);
    let stop = async {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        server.shutdown.cancel();
    };
    let ((code, printed, told), ()) = tokio::join!(follow, stop);
    assert!(code == 5 && printed.starts_with("{\"id\":1,") && told.contains("stopping"), "{code} {printed} {told}");
}

#[test]
fn the_command_line_is_sound() {
    use clap::CommandFactory;
    Arguments::command().debug_assert();
    for words in [&["pod", "rm"][..], &["pod", "wait", "/a", "--timeout", "-1"], &["image", "rm"], &["logs"], &["x"]] {
        let error = Arguments::try_parse_from(std::iter::once(&"agentctl").chain(words)).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{words:?}");
    }
}
