//! Sound calls, and the table of malformed ones.

use serde::Deserialize;

use super::{eventually, parse, pod, read_all, start};
use tokio::io::AsyncWriteExt;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Malformed {
    name: String,
    method: String,
    path: String,
    headers: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    body: String,
    body_bytes: Option<usize>,
    status: u16,
    #[serde(rename = "type")]
    kind: String,
    field: Option<String>,
    allow: Option<String>,
}

#[tokio::test]
async fn malformed_calls_are_refused_by_name_and_change_nothing() {
    let table = include_str!("../../../../tests/data/malformed-calls.json");
    let table: Vec<Malformed> = serde_json::from_str(table).unwrap();
    assert!(table.len() >= 25);
    let server = start();
    for call in &table {
        let headers: Vec<_> = call.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let body = call.body_bytes.map_or_else(|| call.body.clone().into_bytes(), |count| vec![b' '; count]);
        let reply = server.call(&call.method, &call.path, &headers, &body).await;
        let problem = reply.json();
        let name = &call.name;
        assert_eq!((reply.status, &problem["type"]), (call.status, &call.kind.as_str().into()), "{name}: {problem}");
        assert_eq!(problem["status"], call.status, "{name}");
        assert!(reply.header("content-type").unwrap().starts_with("application/problem+json"), "{name}");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.len() > 10), "{name}: {problem}");
        assert_eq!(reply.header("allow"), call.allow.as_deref(), "{name}");
        let paths: Vec<_> =
            problem["errors"].as_array().into_iter().flatten().map(|e| e["path"].as_str().unwrap()).collect();
        match &call.field {
            Some(field) => assert!(paths.contains(&field.as_str()), "{name}: {problem}"),
            None => assert!(paths.is_empty(), "{name}: {problem}"),
        }
    }
    assert!(server.get("/v1/pods").await.json().as_array().unwrap().is_empty());
    assert_eq!(server.get("/healthz").await.body, b"ok\n");
}

#[tokio::test]
async fn a_pod_is_run_read_refused_twice_and_removed() {
    let server = start();
    let reply = server.run("/v1/pods?wait=running", &pod("/app/web", "running")).await;
    assert_eq!((reply.status, reply.header("location")), (201, Some("/v1/pods/app%2Fweb")));
    assert_eq!(reply.json()["instances"][0]["phase"], "running");
    assert!(reply.header("x-request-id").is_some_and(|id| id.len() > 9));
    let reply = server.call("GET", "/v1/pods/app%2Fweb", &[("x-request-id", "mine-1")], b"").await;
    assert_eq!((reply.status, reply.header("x-request-id")), (200, Some("mine-1")));
    assert_eq!(reply.json()["spec"]["labels"]["fake"], "running");
    let again = server.run("/v1/pods", &pod("/app/web", "running")).await;
    assert_eq!((again.status, again.json()["type"].as_str()), (409, Some("conflict")));
    let json = [("content-type", "application/json; charset=utf-8")];
    let update = server.call("PUT", "/v1/pods/app%2Fweb", &json, pod("/app/web", "running").as_bytes()).await;
    assert_eq!(update.status, 200);
    let removed = server.call("DELETE", "/v1/pods/app%2Fweb", &[], b"").await;
    assert_eq!((removed.status, removed.body.len()), (204, 0));
    assert_eq!(server.get("/v1/pods/app%2Fweb").await.status, 404);
    let ids = [server.get("/v1/version").await, server.get("/v1/node").await];
    assert_eq!(ids[0].json()["api"], "v1");
    assert_eq!(ids[1].json()["bootId"], "b");
    assert_ne!(ids[0].header("x-request-id"), ids[1].header("x-request-id"));
}

#[tokio::test]
async fn every_violation_is_told_at_once() {
    let server = start();
    let body = r#"{"id":"x","containers":[{"name":"A B","resources":{"cpus":-1,"mem":"1"}}],"nope":1}"#;
    let problem = server.run("/v1/pods", body).await.json();
    let paths: Vec<_> = problem["errors"].as_array().unwrap().iter().map(|e| e["path"].as_str().unwrap()).collect();
    for path in ["id", "containers[0].name", "containers[0].resources.cpus", "containers[0].resources.mem", "nope"] {
        assert!(paths.contains(&path), "{path} is not among {paths:?}");
    }
    let reply = server.get("/v1/pods/x/logs?tail=x&follow=y&nope=1&since=z").await;
    assert_eq!(reply.json()["errors"].as_array().unwrap().len(), 4, "{}", reply.json());
}

#[tokio::test]
async fn what_is_short_is_told_by_resource() {
    let server = start();
    let reply = server.run("/v1/pods", &pod("/big", "insufficient")).await;
    let problem = reply.json();
    assert_eq!((reply.status, &problem["type"]), (409, &"insufficient-resources".into()));
    assert_eq!(problem["errors"][0]["path"], "resources.cpus");
    assert_eq!(problem["errors"][0]["message"], "4 needed, 1.5 free, 2.5 short");
}

#[tokio::test]
async fn a_wait_ends_by_its_pod_or_by_its_time_out() {
    let server = start();
    let late = server.run("/v1/pods?wait=running&timeout=0.05", &pod("/a", "starting")).await;
    assert_eq!((late.status, late.json()["type"].as_str()), (408, Some("timed-out")));
    assert!(late.json()["detail"].as_str().unwrap().contains("is starting"), "{}", late.json());
    assert!(server.fake.knows("/a"), "the pod stays");
    let wait = server.get("/v1/pods/a/wait?until=finished&timeout=10");
    let finish = async {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        server.fake.set_phase("/a", agentd_api::status::InstancePhase::Finished);
    };
    let (reply, ()) = tokio::join!(wait, finish);
    assert_eq!((reply.status, &reply.json()["instances"][0]["phase"]), (200, &"finished".into()));
    assert_eq!(server.get("/v1/pods/a/wait?until=finished&timeout=0").await.status, 200);
}

#[tokio::test]
async fn work_goes_on_without_its_client_and_a_panic_is_an_answer() {
    let server = start();
    let body = pod("/slow", "slow");
    let mut stream = server.connect().await;
    let head = format!("POST /v1/pods HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert!(!server.fake.knows("/slow"));
    drop(stream);
    eventually("the pod is there", || server.fake.knows("/slow")).await;
    let reply = server.run("/v1/pods", &pod("/p", "panic")).await;
    assert_eq!((reply.status, reply.json()["type"].as_str()), (500, Some("failed")));
}

#[tokio::test]
async fn one_connection_carries_many_calls() {
    let server = start();
    let mut stream = server.connect().await;
    let one = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    let last = "GET /v1/version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(format!("{one}{one}{last}").as_bytes()).await.unwrap();
    let answers = String::from_utf8(read_all(&mut stream).await).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 3, "{answers}");
    assert!(
        parse(answers.rsplit_once("HTTP/1.1").map(|(_, last)| format!("HTTP/1.1{last}")).unwrap().as_bytes()).json()["api"]
            == "v1"
    );
}
