//! Answers that have no end yet: events, logs, progress.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use agentd_api::status::InstancePhase;
use agentd_logging::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::{Server, eventually, pod, start};
use crate::api::Pods;
use crate::events::Subject;

/// Asks for a stream and gives the connection.
async fn open(server: &Server, path: &str, headers: &str) -> UnixStream {
    let mut stream = server.connect().await;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Reads until a text has come; gives all that came.
async fn until(stream: &mut UnixStream, wanted: &str) -> String {
    let mut seen = Vec::new();
    let read = async {
        let mut buffer = [0; 4096];
        // only what has just come is searched, or megabytes would be searched a thousand times
        let mut searched = 0;
        while !String::from_utf8_lossy(&seen[searched..]).contains(wanted) {
            searched = seen.len().saturating_sub(wanted.len());
            let count = stream.read(&mut buffer).await.unwrap();
            assert!(count > 0, "the stream ended before {wanted:?}: {}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&buffer[..count]);
        }
    };
    tokio::time::timeout(Duration::from_secs(10), read).await.unwrap_or_else(|_| panic!("{wanted:?} did not come"));
    String::from_utf8_lossy(&seen).into_owned()
}

fn publish(server: &Server, message: &str) {
    server.fake.events().publish("test", Subject::default(), message);
}

#[tokio::test]
async fn events_are_told_once_followed_and_resumed() {
    let server = start();
    (1..=3).for_each(|n| publish(&server, &format!("event-{n}")));
    let events = server.get("/v1/events?after=1").await.json();
    assert_eq!((events.as_array().unwrap().len(), &events[0]["id"]), (2, &2.into()));
    assert!(server.get("/v1/events?after=3").await.json().as_array().unwrap().is_empty());
    // an id of an earlier run of the daemon
    assert_eq!(server.get("/v1/events?after=900").await.json().as_array().unwrap().len(), 3);

    let idle = Arc::strong_count(&server.fake);
    let mut follower = open(&server, "/v1/events?after=2&follow=true", "").await;
    let seen = until(&mut follower, "event-3").await;
    assert!(seen.contains("content-type: text/event-stream") && !seen.contains("event-2"), "{seen}");
    publish(&server, "event-4");
    let seen = until(&mut follower, "\n\n").await;
    assert!(seen.contains("id: 4\nevent: test\ndata: {\"id\":4,"), "{seen}");
    let mut resumed = open(&server, "/v1/events?after=1", "accept: text/event-stream\r\nlast-event-id: 3\r\n").await;
    let seen = until(&mut resumed, "event-4").await;
    assert!(!seen.contains("event-3"), "{seen}");
    let mut restarted = open(&server, "/v1/events?follow=true", "last-event-id: 900\r\n").await;
    until(&mut restarted, "event-1").await;
    publish(&server, "event-5");
    until(&mut restarted, "event-5").await;
    drop((follower, resumed, restarted));
    eventually("followers without clients end", || Arc::strong_count(&server.fake) <= idle).await;
}

#[tokio::test]
async fn a_slow_follower_is_told_what_it_lost() {
    let server = start();
    let mut follower = open(&server, "/v1/events?follow=true", "").await;
    publish(&server, "first");
    until(&mut follower, "first").await;
    let padding = "x".repeat(500);
    for n in 0..12_000 {
        publish(&server, &format!("{padding} {n}"));
    }
    let seen = until(&mut follower, " 11999\"").await;
    assert!(seen.contains("event: lost\ndata: {\"from\":"), "nothing was lost in {} bytes", seen.len());
}

/// Prints something in a container.
async fn print(server: &Server, container: &str, stream: Stream, text: &str) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    server.fake.capture().add("000000000000", container, 1, stream, reader.into()).unwrap();
    writer.write_all(text.as_bytes()).unwrap();
    drop(writer);
    server.fake.capture().finish("000000000000", container).await.unwrap();
}

#[tokio::test]
async fn logs_of_several_containers_are_merged_and_named() {
    let server = start();
    server.run("/v1/pods", &pod("/app", "running")).await;
    assert_eq!(server.get("/v1/pods/app/logs").await.body, b"");
    print(&server, "web", Stream::Stdout, "one\ntwo\n").await;
    print(&server, "log", Stream::Stderr, "three\n").await;
    let reply = server.get("/v1/pods/app/logs").await;
    assert_eq!(String::from_utf8_lossy(&reply.body), "web | one\nweb | two\nlog | three\n");
    assert_eq!(server.get("/v1/pods/app/logs?container=web&tail=1").await.body, b"two\n");
    assert_eq!(server.get("/v1/pods/app/logs?stream=stderr").await.body, b"log | three\n");
    assert_eq!(server.get("/v1/pods/app/logs?since=2999-01-01T00:00:00%2B01:00").await.body, b"");
    let json = server.get("/v1/pods/app/logs?format=json&container=log&instance=000000000000").await;
    assert_eq!(json.json()["line"], "three");
    for (query, field) in [("container=nope", "container"), ("instance=nope", "instance")] {
        let reply = server.get(&format!("/v1/pods/app/logs?{query}")).await;
        assert_eq!((reply.status, &reply.json()["errors"][0]["path"]), (404, &field.into()));
    }
}

#[tokio::test]
async fn a_long_log_arrives_whole() {
    let server = start();
    server.run("/v1/pods", &pod("/app", "running")).await;
    let text = (0..20_000).map(|n| format!("line {n} of a long log")).collect::<Vec<_>>().join("\n") + "\n";
    let (reader, mut writer) = std::io::pipe().unwrap();
    server.fake.capture().add("000000000000", "web", 1, Stream::Stdout, reader.into()).unwrap();
    let sent = text.clone();
    tokio::task::spawn_blocking(move || writer.write_all(sent.as_bytes()).unwrap()).await.unwrap();
    server.fake.capture().finish("000000000000", "web").await.unwrap();
    let reply = server.get("/v1/pods/app/logs?container=web").await;
    assert!(reply.body == text.as_bytes(), "{} of {} bytes", reply.body.len(), text.len());
}

#[tokio::test]
async fn a_followed_log_ends_with_its_pod() {
    let server = start();
    server.run("/v1/pods", &pod("/app", "running")).await;
    print(&server, "web", Stream::Stdout, "before\n").await;
    let mut follower = open(&server, "/v1/pods/app/logs?follow=true&container=web", "").await;
    until(&mut follower, "before\n").await;
    // between two attempts nothing ends
    let (reader, mut writer) = std::io::pipe().unwrap();
    server.fake.capture().add("000000000000", "web", 2, Stream::Stdout, reader.into()).unwrap();
    writer.write_all(b"during\n").unwrap();
    until(&mut follower, "during\n").await;
    writer.write_all(b"last words").unwrap();
    drop(writer);
    server.fake.capture().finish("000000000000", "web").await.unwrap();
    server.fake.set_phase("/app", InstancePhase::Finished);
    let rest = String::from_utf8(super::read_all(&mut follower).await).unwrap();
    assert!(rest.contains("last words\n") && rest.ends_with("0\r\n\r\n"), "{rest}");
}

#[tokio::test]
async fn followers_do_not_keep_the_daemon() {
    let server = start();
    server.run("/v1/pods", &pod("/app", "running")).await;
    print(&server, "web", Stream::Stdout, "line\n").await;
    publish(&server, "something");
    let mut events = open(&server, "/v1/events?follow=true", "").await;
    let mut logs = open(&server, "/v1/pods/app/logs?follow=true", "").await;
    let mut wait = open(&server, "/v1/pods/app/wait?until=finished", "").await;
    until(&mut events, "something").await;
    until(&mut logs, "line").await;
    server.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(3), server.served).await.expect("the server ends soon").unwrap();
    let told = String::from_utf8(super::read_all(&mut wait).await).unwrap();
    assert!(told.starts_with("HTTP/1.1 503") && told.contains("stopping"), "{told}");
    let rest = super::read_all(&mut logs).await;
    assert!(!rest.ends_with(b"0\r\n\r\n"), "a log that breaks off must not look whole");
}

#[tokio::test]
async fn an_import_that_fails_says_so_in_its_last_line() {
    let server = start();
    let folder = server.fake.folder.path().join("empty");
    std::fs::create_dir(&folder).unwrap();
    let request = serde_json::json!({"path": folder}).to_string();
    let headers = [("content-type", "application/json")];
    let reply = server.call("POST", "/v1/images/import", &headers, request.as_bytes()).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/x-ndjson")));
    let text = String::from_utf8(reply.body).unwrap();
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["type"], "failed", "{text}");
    assert!(last["message"].as_str().unwrap().contains("empty"), "{text}");
}
