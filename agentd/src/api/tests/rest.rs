//! Lists with filters, fields and pages; entity tags; idempotency keys; the table of operations against the calls.

use std::sync::Arc;
use std::time::Duration;

use agentd_api::status::InstancePhase;
use serde_json::{Value, json};

use super::{Reply, Server, eventually, pod, start};
use crate::api::Pods;
use crate::api::operations::{Form, OPERATIONS};
use crate::events::Subject;

const JSON: (&str, &str) = ("content-type", "application/json");

fn ids(reply: &Reply) -> Vec<String> {
    assert_eq!(reply.status, 200, "{}", reply.json());
    reply.json().as_array().unwrap().iter().map(|pod| pod["id"].as_str().unwrap().to_owned()).collect()
}

/// A pod with a label beside `fake`.
fn labelled(id: &str, key: &str, value: &str) -> String {
    let mut spec: Value = serde_json::from_str(&pod(id, "running")).unwrap();
    spec["labels"][key] = value.into();
    spec.to_string()
}

#[tokio::test]
async fn pods_are_filtered() {
    let server = start();
    server.run("/v1/pods", &labelled("/shop/web", "tier", "front")).await;
    server.run("/v1/pods", &labelled("/shop/db", "tier", "back")).await;
    server.run("/v1/pods", &pod("/other", "failed")).await;
    for (query, wanted) in [
        ("", vec!["/other", "/shop/db", "/shop/web"]),
        ("label=tier", vec!["/shop/db", "/shop/web"]),
        ("label=tier%3Dback", vec!["/shop/db"]),
        ("label=tier!=back", vec!["/other", "/shop/web"]),
        ("label=tier&label=tier!=back", vec!["/shop/web"]),
        ("phase=failed", vec!["/other"]),
        ("id=/shop", vec!["/shop/db", "/shop/web"]),
        ("id=shop/d", vec!["/shop/db"]),
        ("id=*b", vec!["/shop/db", "/shop/web"]),
        ("id=shop/%3F%3F", vec!["/shop/db"]),
        ("id=nothing", vec![]),
    ] {
        assert_eq!(ids(&server.get(&format!("/v1/pods?{query}")).await), wanted, "{query}");
    }
}

#[tokio::test]
async fn fields_are_chosen_by_their_names_in_the_document() {
    let server = start();
    server.run("/v1/pods", &pod("/app", "running")).await;
    let reply = server.get("/v1/pods?fields=id,instances.phase,instances.containers.name,spec.labels.fake").await;
    let containers = json!([{"name": "web"}, {"name": "log"}]);
    let wanted = json!([{"id": "/app", "instances": [{"phase": "running", "containers": containers}],
        "spec": {"labels": {"fake": "running"}}}]);
    assert_eq!(reply.json(), wanted);
    let one = server.get("/v1/pods/app?fields=id").await;
    assert_eq!((one.json(), one.header("etag").is_some()), (json!({"id": "/app"}), true));
    for (query, says) in
        [("id,nope", "id, instances, spec"), ("instances.nope", "phase"), ("id.x", "nothing"), ("", "no value")]
    {
        let reply = server.get(&format!("/v1/pods?fields={query}")).await;
        let error = &reply.json()["errors"][0];
        assert_eq!((reply.status, &error["path"]), (400, &"fields".into()), "{query}");
        assert!(error["message"].as_str().unwrap().contains(says), "{query}: {error}");
    }
}

/// Follows the links from page to page; gives what each page has.
async fn pages(server: &Server, first: &str) -> Vec<Vec<Value>> {
    let mut pages = Vec::new();
    let mut next = Some(first.to_owned());
    while let Some(path) = next {
        let reply = server.get(&path).await;
        pages.push(reply.json().as_array().unwrap().clone());
        next = reply.header("link").map(|link| {
            let path = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\"")).unwrap();
            path.to_owned()
        });
        assert!(pages.len() < 100);
    }
    pages
}

#[tokio::test]
async fn pages_follow_each_other_without_loss_or_repetition() {
    let server = start();
    for n in 0..7 {
        server.run("/v1/pods", &pod(&format!("/app{n}"), "running")).await;
    }
    let told = pages(&server, "/v1/pods?limit=3&fields=id&id=/app").await;
    assert_eq!(told.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 1]);
    let all: Vec<&str> = told.iter().flatten().map(|pod| pod["id"].as_str().unwrap()).collect();
    assert_eq!(all, ["/app0", "/app1", "/app2", "/app3", "/app4", "/app5", "/app6"]);
    // what comes and goes in between moves nothing
    server.call("DELETE", "/v1/pods/app2", &[], b"").await;
    server.run("/v1/pods", &pod("/app00", "running")).await;
    assert_eq!(ids(&server.get("/v1/pods?limit=2&after=/app2").await), ["/app3", "/app4"]);
    assert_eq!(server.get("/v1/pods?limit=7").await.header("link"), None);

    (1..=5).for_each(|_| server.fake.events().publish("pod-updated", Subject::default(), "x"));
    let told = pages(&server, "/v1/events?limit=2&kind=pod-updated&fields=id").await;
    assert_eq!(told.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
    let told = pages(&server, "/v1/images?limit=2").await;
    assert_eq!(told, [Vec::<Value>::new()]);
}

#[tokio::test]
async fn events_are_filtered_once_and_as_they_happen() {
    let server = start();
    let events = server.fake.events();
    let of = |pod, instance, container| Subject { pod, instance, container };
    events.publish("pod-accepted", of(Some("/a"), None, None), "1");
    events.publish("container-started", of(Some("/a"), Some("i"), Some("web")), "2");
    events.publish("container-started", of(Some("/b"), Some("j"), Some("web")), "3");
    events.publish("pod-removed", of(Some("/b"), None, None), "4");
    let told = |query: &'static str| {
        let server = &server;
        async move {
            let reply = server.get(&format!("/v1/events?{query}")).await;
            let ids: Vec<u64> = reply.json().as_array().unwrap().iter().map(|e| e["id"].as_u64().unwrap()).collect();
            ids
        }
    };
    assert_eq!(told("kind=container-started").await, [2, 3]);
    assert_eq!(told("kind=pod-accepted&kind=pod-removed").await, [1, 4]);
    assert_eq!(told("pod=a").await, [1, 2]);
    assert_eq!(told("pod=/b&container=web").await, [3]);
    assert_eq!(told("instance=i&after=1").await, [2]);
    let reply = server.get("/v1/events?kind=lost").await;
    assert_eq!((reply.status, &reply.json()["errors"][0]["path"]), (400, &"kind".into()));
    assert!(reply.json()["errors"][0]["message"].as_str().unwrap().contains("container-ended"));
    // an event that is no longer there is told of
    let reply = server.get("/v1/events?after=900").await;
    assert_eq!((reply.header("events-lost"), reply.json().as_array().unwrap().len()), (Some("0-0"), 4));

    let mut stream = server.connect().await;
    let request = "GET /v1/events?follow=true&pod=/b&fields=message HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
    let mut seen = String::new();
    let read = async {
        while !seen.contains("\"6\"") {
            if seen.contains("\"4\"") && server.fake.events().since(0).newest == 4 {
                events.publish("pod-accepted", of(Some("/a"), None, None), "5");
                events.publish("pod-accepted", of(Some("/b"), None, None), "6");
            }
            let mut buffer = [0; 4096];
            let count = tokio::io::AsyncReadExt::read(&mut stream, &mut buffer).await.unwrap();
            assert!(count > 0, "{seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    };
    tokio::time::timeout(Duration::from_secs(10), read).await.unwrap();
    let ids: Vec<&str> = seen.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
    assert_eq!(ids, ["3", "4", "6"], "{seen}");
    assert!(seen.contains("event: pod-removed\ndata: {\"message\":\"4\"}\n"), "{seen}");
}

#[tokio::test]
async fn a_change_depends_on_the_version_and_a_read_on_everything() {
    let server = start();
    let made = server.run("/v1/pods", &pod("/app", "starting")).await;
    let first = made.header("etag").unwrap().to_owned();
    let get = |tag: String| {
        let server = &server;
        async move { server.call("GET", "/v1/pods/app", &[("if-none-match", &tag)], b"").await }
    };
    let same = get(first.clone()).await;
    assert_eq!((same.status, same.body.len(), same.header("etag")), (304, 0, Some(first.as_str())));
    assert_eq!(get(format!("W/{first}, \"x\"")).await.status, 304);
    // an instance runs: there is something new to read, and nothing that an update would overwrite
    server.fake.set_phase("/app", InstancePhase::Running);
    let running = get(first.clone()).await;
    assert_eq!(running.status, 200);
    assert_ne!(running.header("etag"), Some(first.as_str()));
    let put = |tag: String| {
        let server = &server;
        let body = pod("/app", "running");
        async move { server.call("PUT", "/v1/pods/app", &[JSON, ("if-match", &tag)], body.as_bytes()).await }
    };
    let changed = put(first.clone()).await;
    assert_eq!(changed.status, 200, "{}", changed.json());
    let second = changed.header("etag").unwrap().to_owned();
    let stale = put(first.clone()).await;
    let problem = stale.json();
    assert_eq!((stale.status, &problem["type"]), (412, &"precondition-failed".into()));
    let version = |tag: &str| tag.trim_matches('"').split(';').next().unwrap().to_owned();
    let message = problem["errors"][0]["message"].as_str().unwrap();
    assert!(message.contains(&version(&first)) && message.contains(&version(&second)), "{problem}");
    assert_eq!(put(format!("{first}, {second}")).await.status, 200);
    assert_eq!(put("*".to_owned()).await.status, 200);
    let now = version(server.get("/v1/pods/app").await.header("etag").unwrap());
    assert_eq!(put("bare".to_owned()).await.status, 400);
    // a version alone does, as the specification has it
    let delete = |tag: String| {
        let server = &server;
        async move { server.call("DELETE", "/v1/pods/app", &[("if-match", &tag)], b"").await.status }
    };
    assert_eq!(delete(second).await, 412);
    assert_eq!(delete(format!("\"{now}\"")).await, 204);
    assert_eq!(delete("*".to_owned()).await, 404);
}

#[tokio::test]
async fn a_key_makes_a_pod_once() {
    let server = start();
    let body = pod("/app", "slow");
    let with = |key: &'static str, path: &'static str, body: String| {
        let server = &server;
        async move { server.call("POST", path, &[JSON, ("idempotency-key", key)], body.as_bytes()).await }
    };
    // at once: the second waits for the first
    let (one, other) = tokio::join!(with("k", "/v1/pods", body.clone()), with("k", "/v1/pods", body.clone()));
    assert_eq!((one.status, other.status), (201, 201), "{} {}", one.json(), other.json());
    assert_eq!(one.body, other.body);
    let replayed = [&one, &other].iter().filter(|reply| reply.header("idempotency-replayed") == Some("true")).count();
    assert_eq!(replayed, 1);
    for name in ["location", "etag", "content-type"] {
        assert!(one.header(name).is_some() && one.header(name) == other.header(name), "{name}");
    }
    let another = with("k", "/v1/pods", pod("/other", "running")).await;
    assert_eq!((another.status, another.json()["type"].as_str()), (422, Some("idempotency-key-reused")));
    assert!(!server.fake.knows("/other"));
    assert_eq!(with("k", "/v1/pods?wait=running", body.clone()).await.status, 422);
    // without the key, and with another, it is a new call
    assert_eq!(with("l", "/v1/pods", body.clone()).await.status, 409);
    assert_eq!(server.run("/v1/pods", &body).await.status, 409);
    // what was refused is not kept
    server.call("DELETE", "/v1/pods/app", &[], b"").await;
    assert_eq!(with("l", "/v1/pods", body.clone()).await.status, 201);
    let bad = with("m m", "/v1/pods", "{".to_owned()).await;
    assert_eq!((bad.status, bad.json()["type"].as_str()), (400, Some("invalid-pod")));
    let long = "x".repeat(256);
    let reply = server.call("POST", "/v1/pods", &[JSON, ("idempotency-key", &long)], body.as_bytes()).await;
    assert_eq!((reply.status, &reply.json()["errors"][0]["path"]), (400, &"idempotency-key".into()));
}

#[tokio::test]
async fn a_wait_that_ended_early_is_done_again_for_its_key() {
    let server = start();
    let call = || async {
        let headers = [JSON, ("idempotency-key", "w")];
        server.call("POST", "/v1/pods?wait=running&timeout=0.05", &headers, pod("/app", "starting").as_bytes()).await
    };
    assert_eq!(call().await.status, 408);
    assert_eq!(call().await.status, 408);
    server.fake.set_phase("/app", InstancePhase::Running);
    let done = call().await;
    assert_eq!((done.status, &done.json()["instances"][0]["phase"]), (201, &"running".into()));
    server.fake.set_phase("/app", InstancePhase::Degraded);
    assert_eq!(call().await.body, done.body);
}

#[tokio::test]
async fn a_key_outlives_its_client_and_its_daemon() {
    let server = start();
    let body = pod("/app", "slow");
    let mut stream = server.connect().await;
    let head = format!(
        "POST /v1/pods HTTP/1.1\r\nhost: x\r\nidempotency-key: k\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.unwrap();
    let keys = server.fake.layout().idempotency();
    eventually("the key is claimed", || std::fs::read_dir(&keys).is_ok_and(|files| files.count() == 1)).await;
    drop(stream);
    eventually("the pod is there", || server.fake.knows("/app")).await;
    let path = std::fs::read_dir(&keys).unwrap().next().unwrap().unwrap().path();
    let state = || serde_json::from_slice::<Value>(&std::fs::read(&path).unwrap()).unwrap()["state"].clone();
    eventually("the answer is kept", || state() == "done").await;
    // as a daemon leaves it that is killed right after the pod was made
    let mut record: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    record["state"] = "begun".into();
    record.as_object_mut().unwrap().remove("answer");
    std::fs::write(&path, record.to_string()).unwrap();
    let next = server.again();
    let call = || async { next.call("POST", "/v1/pods", &[("idempotency-key", "k")], body.as_bytes()).await };
    let reply = call().await;
    assert_eq!((reply.status, reply.json()["id"].as_str()), (201, Some("/app")), "{}", reply.json());
    assert_eq!(call().await.header("idempotency-replayed"), Some("true"));
    // and one that is killed right before: the pod is not there, so that it is made
    std::fs::write(&path, record.to_string()).unwrap();
    next.call("DELETE", "/v1/pods/app", &[], b"").await;
    assert_eq!(call().await.status, 201);
    assert!(next.fake.knows("/app"));
    // a pod of that name which another call has made meanwhile is not taken for it
    next.call("DELETE", "/v1/pods/app", &[], b"").await;
    std::fs::write(&path, record.to_string()).unwrap();
    next.run("/v1/pods", &labelled("/app", "of", "another")).await;
    assert_eq!(call().await.status, 409);
}

#[tokio::test]
async fn an_import_with_a_key_is_answered_with_its_last_line() {
    let server = start();
    let folder = server.fake.folder.path().join("empty");
    std::fs::create_dir(&folder).unwrap();
    let body = json!({"path": folder}).to_string();
    let call =
        || async { server.call("POST", "/v1/images/import", &[JSON, ("idempotency-key", "i")], body.as_bytes()).await };
    for _ in 0..2 {
        // it fails, so that nothing is kept and it is tried again
        let reply = call().await;
        assert_eq!((reply.status, reply.header("idempotency-replayed")), (200, None));
        assert!(String::from_utf8_lossy(&reply.body).contains("\"failed\""));
    }
    let other = server.call("POST", "/v1/images/import", &[JSON, ("idempotency-key", "")], body.as_bytes()).await;
    assert_eq!(other.status, 400);
}

#[tokio::test]
async fn a_problem_names_its_request() {
    let server = start();
    let reply = server.call("GET", "/v1/pods/none", &[("x-request-id", "mine-7")], b"").await;
    assert_eq!((reply.status, reply.json()["request"].as_str()), (404, Some("mine-7")));
    let reply = server.get("/v1/nowhere").await;
    assert_eq!(reply.json()["request"].as_str(), reply.header("x-request-id"));
}

#[tokio::test]
async fn the_document_is_served() {
    let server = start();
    let reply = server.get("/v1/openapi.json").await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    assert_eq!(reply.json()["openapi"], "3.1.0");
    assert!(reply.json()["paths"]["/v1/pods/{id}"]["put"]["parameters"].to_string().contains("If-Match"));
}

/// What the table of operations says of parameters is what the calls read.
#[tokio::test]
async fn every_parameter_is_read_as_it_is_described() {
    let server = start();
    for operation in OPERATIONS {
        let path = operation.path.replace("{id}", "app").replace("{session}", "none").replace("{reference}", "none");
        for parameter in operation.parameters {
            let (name, shown) = (parameter.name, format!("{} {} {}", operation.method, path, parameter.name));
            let told = |value: &'static str| {
                let (server, path) = (&server, format!("{path}?{name}={value}"));
                async move {
                    let reply = server.call(operation.method, &path, &[], b"").await;
                    assert_eq!(reply.status, 400, "{path}: {:?}", String::from_utf8_lossy(&reply.body));
                    let problem = reply.json();
                    let errors = problem["errors"].as_array().unwrap().clone();
                    let of = |error: &&Value| error["path"] == name;
                    errors.iter().find(of).map(|error| error["message"].as_str().unwrap().to_owned())
                }
            };
            assert!(told("").await.is_some(), "{shown} is not read");
            let wrong = match parameter.form {
                Form::Text => continue,
                Form::Words(words) => {
                    let message = told("no-such-word").await.unwrap_or_else(|| panic!("{shown}"));
                    assert!(message.ends_with(&format!("expected {}", words.join(" or "))), "{shown}: {message}");
                    continue;
                }
                Form::Flag | Form::Time => "perhaps",
                Form::Whole | Form::Seconds => "-1",
            };
            assert!(told(wrong).await.is_some(), "{shown} takes {wrong}");
        }
    }
    // nobody is left behind by the calls that wait
    assert!(Arc::strong_count(&server.fake) < 100);
}
