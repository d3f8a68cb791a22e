//! `events --follow` over lost connections.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::*;

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";

fn event(id: u64) -> String {
    let data = format!(r#"{{"id":{id},"time":"t","kind":"pod-removed","message":"m"}}"#);
    format!("id: {id}\nevent: pod-removed\ndata: {data}\n\n")
}

async fn request(listener: &UnixListener) -> (UnixStream, String) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).await.unwrap(), 1);
        text.push(byte[0]);
    }
    (stream, String::from_utf8(text).unwrap())
}

async fn follow(socket: &Path, words: &[&str]) -> (u8, String) {
    let arguments = arguments(socket, &[&["events", "--follow", "-o", "name"], words].concat());
    let memory = Memory::default();
    let mut output = Output::into(arguments.output, Box::new(memory.clone()));
    let result = carry_out(arguments, &mut output).await;
    let printed = String::from_utf8(memory.0.lock().unwrap().clone()).unwrap();
    (result.err().map_or(0, |failure| failure.code()), printed)
}

#[tokio::test]
async fn a_lost_stream_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("x.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let serve = async {
        let (mut stream, asked) = request(&listener).await;
        assert!(asked.starts_with("GET /v1/events?after=3&kind=pod-removed&follow=true "), "{asked}");
        assert!(!asked.contains("last-event-id"), "{asked}");
        // the last event is cut off in the middle: it was not told
        let cut = event(6);
        let text = format!("{HEAD}{}{}{}", event(4), event(5), &cut[..cut.len() - 30]);
        stream.write_all(text.as_bytes()).await.unwrap();
        drop(stream);
        let (mut stream, asked) = request(&listener).await;
        assert!(asked.contains("last-event-id: 5\r\n"), "{asked}");
        // of events that nobody asked for only the id comes
        stream.write_all(format!("{HEAD}{}:\nid: 9\n\n", event(6)).as_bytes()).await.unwrap();
        drop(stream);
        let (mut stream, asked) = request(&listener).await;
        assert!(asked.contains("last-event-id: 9\r\n"), "{asked}");
        // a refusal is no lost connection
        stream.write_all(b"HTTP/1.1 400 Bad\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    };
    let words = ["--after", "3", "--kind", "pod-removed", "--reconnect", "60"];
    let ((code, printed), ()) = tokio::join!(follow(&socket, &words), serve);
    assert_eq!((code, printed.as_str()), (2, "4\n5\n6\n"));
}

#[tokio::test]
async fn a_daemon_that_stays_away_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("x.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let serve = async {
        let (mut stream, _) = request(&listener).await;
        stream.write_all(format!("{HEAD}{}", event(1)).as_bytes()).await.unwrap();
        drop(stream);
        drop(listener);
    };
    let began = std::time::Instant::now();
    let ((code, printed), ()) = tokio::join!(follow(&socket, &["--reconnect", "0.5"]), serve);
    assert_eq!((code, printed.as_str()), (5, "1\n"));
    assert!(began.elapsed() < std::time::Duration::from_secs(10));
    // one that was never there is not waited for
    assert_eq!(follow(&socket, &["--reconnect", "60"]).await.0, 5);
}
