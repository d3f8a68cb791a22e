//! Forms of the output, colours, versions, and what `top` and `doctor` show.

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

/// Answers one connection after the other, each with one of these bodies.
async fn answer(listener: &UnixListener, bodies: &[String]) {
    for body in bodies {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).await.unwrap() > 0);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    }
}

/// Carries a command out against these answers.
async fn against(bodies: &[String], words: &[&str]) -> (u8, String) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("x.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let arguments = arguments(&socket, words);
    let memory = Memory::default();
    let mut output = Output::into(arguments.output, Box::new(memory.clone()));
    let (result, ()) = tokio::join!(carry_out(arguments, &mut output), answer(&listener, bodies));
    let printed = String::from_utf8(memory.0.lock().unwrap().clone()).unwrap();
    (result.err().map_or(0, |failure| failure.code()), printed)
}

#[tokio::test]
async fn every_list_is_told_as_yaml_and_by_name() {
    let server = start();
    let path = file(&server, "pod.json", &pod("/app/web", "running"));
    assert_eq!(agentctl(&server, &["pod", "run", &path, "-o", "name"]).await.1, "/app/web\n");
    let cases: [(&[&str], &str, &str); 6] = [
        (&["pod", "ls"], "- id: /app/web\n  spec:\n    id: /app/web\n", "/app/web\n"),
        (&["pod", "inspect", "app/web"], "id: /app/web\nspec:\n", "/app/web\n"),
        (&["pod", "wait", "app/web"], "id: /app/web\nspec:\n", "/app/web\n"),
        (&["events", "--after", "0", "--kind", "pod-*"], "- id: 1\n  time: \"", "1\n"),
        (&["image", "ls"], "[]\n", ""),
        (&["node"], "instance: ", "\n"),
    ];
    for (words, yaml, names) in cases {
        let (code, printed, told) = agentctl(&server, &[words, &["-o", "yaml"]].concat()).await;
        assert!(code == 0 && printed.starts_with(yaml), "{words:?}: {printed} {told}");
        let (code, printed, told) = agentctl(&server, &[words, &["-o", "name"]].concat()).await;
        assert!(code == 0 && printed.ends_with(names) && printed.lines().count() < 2, "{words:?}: {printed} {told}");
    }
    assert_eq!(agentctl(&server, &["pod", "rm", "/app/web", "-o", "name"]).await.1, "/app/web\n");
}

#[tokio::test]
async fn pods_are_listed_by_id_label_and_phase() {
    let server = start();
    server.run("/v1/pods", &pod("/app/web", "running")).await;
    server.run("/v1/pods", &pod("/job", "finished")).await;
    let cases: [(&[&str], &str); 7] = [
        (&[], "/app/web\n/job\n"),
        (&["app"], "/app/web\n"),
        (&["*o*"], "/job\n"),
        (&["--phase", "finished"], "/job\n"),
        (&["--label", "fake=running"], "/app/web\n"),
        (&["-l", "fake!=running", "-l", "fake"], "/job\n"),
        (&["--phase", "backoff"], ""),
    ];
    for (words, expected) in cases {
        let (code, printed, told) = agentctl(&server, &[&["pod", "ls", "-o", "name"], words].concat()).await;
        assert_eq!((code, printed.as_str()), (0, expected), "{words:?}: {told}");
    }
    assert_eq!(agentctl(&server, &["pod", "ls", "--label", "=x"]).await.0, 2);
}

#[tokio::test]
async fn yaml_of_a_stream_is_one_document_for_each_line() {
    let image = r#"{"reference":"a:1","digest":"sha256:0","size":1,"layers":1,"createdAt":"x","inUse":false}"#;
    let body = format!("{{\"type\":\"unpacked\",\"digest\":\"sha256:1\"}}\n{{\"type\":\"done\",\"image\":{image}}}\n");
    let (code, printed) = against(std::slice::from_ref(&body), &["image", "pull", "a:1", "-o", "yaml"]).await;
    let expected = "type: unpacked\ndigest: sha256:1\n---\ntype: done\nimage:\n  reference: a:1\n";
    assert!(code == 0 && printed.starts_with(expected), "{printed}");
    assert_eq!(against(&[body], &["image", "pull", "a:1", "-o", "name"]).await.1, "a:1\n");
}

#[tokio::test]
async fn versions_of_both_sides_are_shown() {
    let own = env!("CARGO_PKG_VERSION");
    let server = start();
    let (code, printed, _) = agentctl(&server, &["version"]).await;
    assert_eq!((code, printed), (0, format!("agentctl  {own}\nagentd    {own} (api v1)\n")));
    let (_, printed, _) = agentctl(&server, &["version", "-o", "json"]).await;
    assert_eq!(printed, format!("{{\"client\":\"{own}\",\"server\":{{\"version\":\"{own}\",\"api\":\"v1\"}}}}\n"));
    let arguments = arguments(Path::new("/nobody.sock"), &["version"]);
    let memory = Memory::default();
    let mut output = Output::into(arguments.output, Box::new(memory.clone()));
    let failure = carry_out(arguments, &mut output).await.unwrap_err();
    assert_eq!(failure.code(), 5);
    assert_eq!(*memory.0.lock().unwrap(), format!("agentctl  {own}\n").as_bytes());
    let arguments = super::arguments(Path::new("/nobody.sock"), &["version", "--client"]);
    assert!(carry_out(arguments, &mut output).await.is_ok());
}

#[tokio::test]
async fn top_shows_one_table_where_there_is_no_terminal() {
    let usage = |second: u32, cpu: u64| {
        format!(
            r#"[{{"pod":"/app","instance":"000000000000","container":"web","attempt":1,"time":"2026-01-31T12:00:0{second}Z",
            "cpuNs":{cpu},"cpuLimitMilli":1000,"memoryBytes":1048576,"memoryLimitBytes":4194304,"pids":3,"ioReadBytes":{cpu}}}]"#
        )
    };
    let bodies = [usage(0, 0), usage(2, 1_000_000_000)];
    let (code, printed) = against(&bodies, &["top", "--once", "--interval", "0.2", "app"]).await;
    let rows: Vec<Vec<&str>> = printed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(code, 0);
    assert_eq!(rows[0][..5], ["POD", "INSTANCE", "CONTAINER", "CPU", "CPU%"]);
    let expected =
        ["/app", "000000000000", "web", "0.50", "50%", "1.0", "MiB", "4.0", "MiB", "25%", "3", "476.8", "MiB"];
    assert_eq!(rows[1][..13], expected);
    assert_eq!(rows[1][13..], ["-", "-", "-"]);
    assert_eq!(against(&bodies[..1], &["top", "-o", "name"]).await.1, "/app web\n");
    assert!(against(&bodies[..1], &["top", "-o", "yaml"]).await.1.starts_with("- pod: /app\n"));
    for bad in ["0", "1e9", "x", "NaN"] {
        assert!(Arguments::try_parse_from(["agentctl", "top", "--interval", bad]).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn doctor_says_whether_the_daemon_can_be_reached() {
    let server = start();
    let (code, printed, _) = agentctl(&server, &["doctor", "--connection", "-o", "json"]).await;
    let report: serde_json::Value = serde_json::from_str(&printed).unwrap();
    let names: Vec<&str> = report["checks"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["daemon/endpoint", "daemon/socket", "daemon/connection", "daemon/version"]);
    assert!(code == 0 && report["status"] != "fail", "{printed}");
    let arguments = arguments(Path::new("/nobody.sock"), &["doctor", "--connection"]);
    let memory = Memory::default();
    let mut output = Output::into(arguments.output, Box::new(memory.clone()));
    let failure = carry_out(arguments, &mut output).await.unwrap_err();
    assert!(matches!(failure, Failure::Exit(1)), "{failure:?}");
    let printed = String::from_utf8(memory.0.lock().unwrap().clone()).unwrap();
    assert!(
        printed.contains("daemon/connection") && printed.contains("cure: ") && printed.contains("2 fail"),
        "{printed}"
    );
}

#[test]
fn standard_output_that_is_no_terminal_has_colours_only_on_demand() {
    let colours = |words: &[&str]| {
        let words = ["agentctl", "node"].iter().chain(words);
        Output::standard(&Arguments::try_parse_from(words).unwrap()).colours()
    };
    assert!(colours(&["--color", "always"]) && !colours(&["--color", "never"]));
    assert!(!colours(&["--color", "always", "-o", "json"]), "programs get none");
}

#[test]
fn coloured_tables_are_the_plain_ones_in_colour() {
    let mut columns = crate::ctl::table::Columns::new(&["PHASE"]);
    columns.paint(0, crate::ctl::colour::of_state);
    columns.row(["failed"]);
    let memory = Memory::default();
    let mut output = Output::into(crate::ctl::arguments::Form::Table, Box::new(memory.clone()));
    output.table(columns).unwrap();
    assert_eq!(*memory.0.lock().unwrap(), b"PHASE\nfailed\n");
}
