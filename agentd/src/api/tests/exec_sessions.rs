//! Sessions by plain calls, and what is refused.

use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use serde_json::json;

use super::eventually;
use super::exec_client::{Attached, refused, request, server, shell};
use crate::api::Pods;

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn a_session_without_a_client_is_begun_followed_and_ended() {
    let server = server().await;
    let mut body = shell("echo told; sleep 100", true);
    body["detach"] = true.into();
    let reply = server.call("POST", "/v1/pods/app/exec", &[JSON], body.to_string().as_bytes()).await;
    assert_eq!(reply.status, 201, "{}", reply.json());
    let path = reply.header("location").unwrap().to_owned();
    let id = reply.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(path, format!("/v1/sessions/{id}"));
    assert_eq!(server.get(&path).await.json()["state"], "running");
    let listed = |query: &str| {
        let (server, path) = (&server, format!("/v1/sessions?{query}"));
        async move { server.get(&path).await.json().as_array().unwrap().len() }
    };
    for (query, count) in [
        ("", 1),
        ("pod=/test", 1),
        ("pod=test", 1),
        ("pod=/other", 0),
        ("state=running&kind=exec&container=main", 1),
        ("state=exited", 0),
        ("kind=nested", 0),
        ("instance=0123456789ab", 1),
        ("container=side", 0),
    ] {
        assert_eq!(listed(query).await, count, "{query}");
    }
    let late = server.get(&format!("{path}/wait?timeout=0.05")).await;
    assert_eq!((late.status, &late.json()["type"]), (408, &"timed-out".into()));
    let mut client = Attached::attach(&server, &id, "input=false").await;
    client.until("told\n").await;
    let began = Instant::now();
    assert_eq!(server.call("DELETE", &path, &[], b"").await.status, 204);
    let ended = server.get(&format!("{path}/wait?timeout=10")).await.json();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!((&ended["exit"], &ended["state"]), (&json!({"signal": 9}), &"exited".into()));
    assert!(ended["message"].as_str().unwrap().starts_with("ended by uid:"), "{ended}");
    // who asks again is told the same
    assert_eq!(server.call("DELETE", &path, &[], b"").await.status, 204);
}

#[tokio::test]
async fn signals_and_sizes_are_sent_by_calls() {
    let server = server().await;
    let script = "trap 'echo usr1' USR1; echo ready; while :; do sleep 0.05; done";
    let mut client = Attached::exec(&server, &shell(script, false)).await;
    client.until("ready\n").await;
    let path = format!("/v1/sessions/{}", client.session);
    let post = |what: &str, body: &str| {
        let (server, path, body) = (&server, format!("{path}/{what}"), body.to_owned());
        async move { server.call("POST", &path, &[JSON], body.as_bytes()).await }
    };
    for signal in ["\"SIGUSR1\"", "\"usr1\"", "10"] {
        assert_eq!(post("signal", &format!("{{\"signal\":{signal}}}")).await.status, 204, "{signal}");
        client.until("usr1\n").await;
    }
    for (what, body, status, field) in [
        ("signal", "{}", 400, "signal"),
        ("signal", r#"{"signal":"NOPE"}"#, 400, "signal"),
        ("signal", r#"{"signal":1.5}"#, 400, "signal"),
        ("signal", r#"{"signal":-9}"#, 400, "signal"),
        ("signal", r#"{"signal":null}"#, 400, "signal"),
        ("signal", r#"{"signal":9,"force":true}"#, 400, "force"),
        ("signal", "[9]", 400, ""),
        ("resize", r#"{"rows":0,"columns":80}"#, 400, "rows"),
        ("resize", r#"{"rows":24,"columns":70000}"#, 400, "columns"),
        ("resize", r#"{"rows":24}"#, 400, "columns"),
    ] {
        let reply = post(what, body).await;
        assert_eq!((reply.status, &reply.json()["errors"][0]["path"]), (status, &field.into()), "{what} {body}");
    }
    let reply = post("resize", r#"{"rows":24,"columns":80}"#).await;
    assert_eq!((reply.status, &reply.json()["type"]), (409, &"conflict".into()));
    assert_eq!(post("signal", r#"{"signal":"KILL"}"#).await.status, 204);
    client.rest().await;
    let reply = server.call("POST", "/v1/sessions/none/signal", &[JSON], br#"{"signal":9}"#).await;
    assert!(reply.status == 404 && reply.json()["detail"].as_str().unwrap().contains("no session"), "{reply:?}");
}

#[tokio::test]
async fn attaching_is_refused_with_a_cure() {
    let server = server().await;
    let client = Attached::exec(&server, &shell("sleep 100", true)).await;
    let path = format!("/v1/sessions/{}/attach", client.session);
    let plain = server.get(&path).await;
    assert_eq!((plain.status, plain.header("upgrade")), (426, Some("agentd-exec, websocket")));
    assert!(plain.json()["detail"].as_str().unwrap().contains("`Upgrade: agentd-exec`"), "{}", plain.json());
    let old = format!("GET {path} HTTP/1.0\r\nconnection: upgrade\r\nupgrade: agentd-exec\r\n\r\n");
    assert_eq!(refused(&server, &old).await.0, 426);
    let other = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n");
    assert_eq!(refused(&server, &other).await.0, 426);
    // a field that the connection does not name is not meant for this server
    let unnamed = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nupgrade: agentd-exec\r\n\r\n");
    assert_eq!(refused(&server, &unnamed).await.0, 426);
    for (query, field) in [
        ("from=-1", "from"),
        ("from=99999999999999999999", "from"),
        ("from=later", "from"),
        ("input=maybe", "input"),
        ("input=false&take-over=true", "take-over"),
        ("surprise=1", "surprise"),
    ] {
        let (status, problem, _) = refused(&server, &request("GET", &format!("{path}?{query}"), "")).await;
        assert_eq!((status, &problem["errors"][0]["path"]), (400, &field.into()), "{query}");
    }
    assert_eq!(refused(&server, &request("GET", "/v1/sessions/none/attach", "")).await.0, 404);
    // nobody was let go by any of these
    let session = server.fake.session(&client.session).unwrap();
    assert_eq!(session.status().clients, 1);
    session.kill("enough").await;
}

#[tokio::test]
async fn exec_is_refused_before_anything_is_run() {
    let server = server().await;
    let body = |text: &str| request("POST", "/v1/pods/app/exec", text);
    for (text, status, field) in [
        ("{", 400, ""),
        ("{}", 400, "command"),
        (r#"{"command":["a"],"surprise":1}"#, 400, "surprise"),
        (r#"{"command":["a"],"rows":4}"#, 400, "rows"),
        (r#"{"command":["a"],"workdir":"b"}"#, 400, "workdir"),
    ] {
        let (found, problem, _) = refused(&server, &body(text)).await;
        assert_eq!((found, &problem["errors"][0]["path"]), (status, &field.into()), "{text}: {problem}");
    }
    let good = r#"{"command":["true"]}"#;
    assert_eq!(refused(&server, &request("POST", "/v1/pods/none/exec", good)).await.0, 404);
    let socket = format!(
        "POST /v1/pods/app/exec HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\ncontent-length: {}\r\n\
         \r\n{good}",
        good.len()
    );
    let (status, problem, _) = refused(&server, &socket).await;
    assert!(status == 400 && problem["detail"].as_str().unwrap().contains("/attach"), "{problem}");
    let keyed = body(good).replacen("host: x", "host: x\r\nidempotency-key: k", 1);
    assert_eq!(refused(&server, &keyed).await.1["errors"][0]["path"], "idempotency-key");
    assert!(server.fake.sessions().is_empty());
}

#[tokio::test]
async fn the_same_key_begins_one_session() {
    let server = server().await;
    let body = shell("sleep 100", false).to_string();
    let headers = [JSON, ("idempotency-key", "a-key")];
    let first = server.call("POST", "/v1/pods/app/exec", &headers, body.as_bytes()).await;
    let again = server.call("POST", "/v1/pods/app/exec", &headers, body.as_bytes()).await;
    assert_eq!((first.status, again.status), (201, 201));
    assert_eq!(
        (first.json()["id"].clone(), first.header("location")),
        (again.json()["id"].clone(), again.header("location"))
    );
    assert_eq!((first.header("idempotency-replayed"), again.header("idempotency-replayed")), (None, Some("true")));
    let other = shell("sleep 50", false).to_string();
    assert_eq!(server.call("POST", "/v1/pods/app/exec", &headers, other.as_bytes()).await.status, 422);
    let sessions = server.fake.sessions();
    assert_eq!(sessions.len(), 1);
    sessions[0].kill("enough").await;
    // what was refused may be tried again
    let headers = [JSON, ("idempotency-key", "b-key")];
    assert_eq!(server.call("POST", "/v1/pods/later/exec", &headers, body.as_bytes()).await.status, 404);
    assert_eq!(server.call("POST", "/v1/pods/later/exec", &headers, body.as_bytes()).await.status, 404);
}

#[tokio::test]
async fn recordings_are_read_and_nothing_else_is() {
    let server = server().await;
    let folder = server.fake.layout().state.join("recordings");
    std::fs::create_dir_all(&folder).unwrap();
    let text = "[0.1, \"o\", \"x\"]\n".repeat(20_000);
    std::fs::write(folder.join("abc-1.cast"), &text).unwrap();
    std::fs::write(server.fake.layout().state.join("secret.cast"), "secret").unwrap();
    symlink("../secret.cast", folder.join("link.cast")).unwrap();
    std::fs::create_dir(folder.join("folder.cast")).unwrap();
    let reply = server.get("/v1/sessions/abc-1/recording").await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/x-asciicast")));
    assert!(reply.body == text.as_bytes(), "{} of {} bytes", reply.body.len(), text.len());
    let long = "a".repeat(65);
    for id in ["none", "folder", "..%2Fsecret", "..", ".", "a.b", "%2E%2E%2Fsecret", &long] {
        let reply = server.get(&format!("/v1/sessions/{id}/recording")).await;
        assert_eq!(reply.status, 404, "{id}");
        assert!(reply.json()["detail"].as_str().unwrap().contains("has no recording"), "{id}: {}", reply.json());
    }
    let reply = server.get("/v1/sessions/link/recording").await;
    assert!(reply.status >= 400 && !reply.body.windows(6).any(|window| window == b"secret\n"), "{reply:?}");
}

#[tokio::test]
async fn connections_that_were_upgraded_still_count() {
    let limits = super::Limits { connections: 3, ..super::Limits::default() };
    let server = super::start_within(limits);
    assert_eq!(server.run("/v1/pods", &super::pod("/app", "running")).await.status, 201);
    let one = Attached::exec(&server, &shell("sleep 100", false)).await;
    let two = Attached::attach(&server, &one.session, "").await;
    let three = Attached::attach(&server, &one.session, "").await;
    let turned_away = super::parse(&server.raw(b"").await);
    assert_eq!((turned_away.status, &turned_away.json()["type"]), (503, &"busy".into()));
    let session = server.fake.session(&one.session).unwrap();
    drop((two, three));
    eventually("they are gone", || session.status().clients == 1).await;
    let mut reached = false;
    for _ in 0..200 {
        reached = super::parse(&server.raw(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await)
            .status
            == 200;
        if reached {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(reached, "their places are free again");
    session.kill("enough").await;
}
