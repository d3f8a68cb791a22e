//! Downloads through the real child: what arrives, what is refused, what is left behind.

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use agentd_api::pod::Artifact;
use agentd_fetcher::{CacheSettings, FailureKind, Fetcher, Settings};
use support::{OWNER, Sandbox, Seen, Server, artifact, fetch, fetch_by, send, serve, settings};

#[tokio::test]
async fn a_file_arrives_owned_by_the_container() {
    let server = serve(b"hello".to_vec());
    let sandbox = Sandbox::new();
    fetch(settings(), &sandbox, artifact(&server.uri("/a/tool.txt?x=1"))).await.unwrap();
    assert_eq!(sandbox.read("tool.txt"), b"hello");
    let named =
        Artifact { executable: true, dest_path: Some("bin/sub/tool".to_owned()), ..artifact(&server.uri("/x")) };
    fetch(settings(), &sandbox, named).await.unwrap();
    assert_eq!(sandbox.names(), ["bin", "tool.txt"]);
    for (name, mode) in [("tool.txt", 0o644), ("bin/sub/tool", 0o755), ("bin/sub", 0o755), ("bin", 0o755)] {
        let data = std::fs::metadata(sandbox.path(name)).unwrap();
        assert_eq!(data.permissions().mode() & 0o7777, mode, "{name}");
        if rustix::process::geteuid().is_root() {
            assert_eq!((data.uid(), data.gid()), OWNER, "{name}");
        }
    }
    // by a name: the confined child can still resolve, and takes the address that is allowed
    let by_name = server.uri("/named").replace("127.0.0.1", "localhost");
    fetch(settings(), &sandbox, artifact(&by_name)).await.unwrap();
    assert_eq!(sandbox.read("named"), b"hello");
    // again: replaces
    let server = serve(b"newer".to_vec());
    fetch(settings(), &sandbox, artifact(&server.uri("/tool.txt"))).await.unwrap();
    assert_eq!(sandbox.read("tool.txt"), b"newer");
}

#[tokio::test]
async fn the_child_is_confined() {
    // the server holds the answer back until the child's state has been read
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let server = Server::new(move |_, stream| {
        let _ = wait.lock().unwrap().recv_timeout(Duration::from_secs(30));
        send(stream, "200 OK", "", b"x");
    });
    let sandbox = Sandbox::new();
    let uri = server.uri("/x");
    let marker = format!("{}", std::process::id());
    let look = async {
        while server.count() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut found = None;
        for item in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(status) = std::fs::read_to_string(item.path().join("status")) else { continue };
            if status.starts_with("Name:\tfetch-child\n") && status.contains(&format!("\nPPid:\t{marker}\n")) {
                found = Some(status);
            }
        }
        go.send(()).unwrap();
        found
    };
    let (result, found) = tokio::join!(fetch(settings(), &sandbox, artifact(&uri)), look);
    result.unwrap();
    let Some(status) = found else { panic!("no child seen") };
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} in {status}");
    }
    if rustix::process::geteuid().is_root() {
        for line in
            ["Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534", "CapEff:\t0000000000000000"]
        {
            assert!(status.contains(line), "{line} in {status}");
        }
    }
}

#[test]
fn the_confinement_holds() {
    let folder = Sandbox::new();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(folder.0.path(), Some(65534), Some(65534)).unwrap();
    }
    let output = std::process::Command::new(settings().program)
        .arg("confinement-report")
        .current_dir(folder.0.path())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    let possible = |what: &str| text.contains(&format!("{what}: possible"));
    for what in ["write below the staging folder", "read /etc/hosts", "start a thread"] {
        assert!(possible(what), "{what} in {text}");
    }
    for what in ["start a program", "accept connections", "become root"] {
        assert!(text.contains(what) && !possible(what), "{what} in {text}");
    }
    if text.contains("no Landlock") {
        eprintln!("the file system's part skipped because this kernel has no Landlock: {text}");
        return;
    }
    for what in ["read /etc/passwd", "write in /tmp"] {
        assert!(text.contains(what) && !possible(what), "{what} in {text}");
    }
}

#[tokio::test]
async fn own_addresses_are_refused_before_and_after_redirects() {
    let server = serve(b"secret".to_vec());
    let sandbox = Sandbox::new();
    let port = server.address.port();
    let strict = || Settings { allowed_addresses: Vec::new(), ..settings() };
    for host in ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"] {
        let uri = format!("http://{host}:{port}/x");
        let error = fetch(strict(), &sandbox, artifact(&uri)).await.unwrap_err();
        assert_eq!(error.kind, FailureKind::Refused, "{error}");
        assert_eq!(error.field, "containers[0].artifacts[1].uri");
        assert!(error.to_string().contains("use a server on another host"), "{error}");
    }
    assert_eq!(server.count(), 0);
    // a redirect to what is refused is not followed, here to another loopback address that really listens …
    let trap = Server::at("127.0.0.2:0", |_, stream| send(stream, "200 OK", "", b"secret"));
    let target = trap.uri("/");
    let moved = Server::new(move |_, stream| send(stream, "302 Found", &format!("Location: {target}\r\n"), b""));
    let error = fetch(settings(), &sandbox, artifact(&moved.uri("/x"))).await.unwrap_err();
    assert!(error.kind == FailureKind::Refused && error.reason.contains("127.0.0.2"), "{error}");
    assert_eq!(trap.count(), 0);
    // … and to a cloud's metadata service
    let moved = Server::new(|_, stream| {
        send(stream, "301 Moved", "Location: http://169.254.169.254/latest/meta-data\r\n", b"");
    });
    let before = Instant::now();
    let error = fetch(settings(), &sandbox, artifact(&moved.uri("/x"))).await.unwrap_err();
    assert!(error.kind == FailureKind::Refused && error.reason.contains("link-local"), "{error}");
    assert!(before.elapsed() < Duration::from_secs(10), "no attempt to connect");
    assert!(!error.may_pass());
    assert_eq!(sandbox.names(), [""; 0]);
}

#[tokio::test]
async fn redirects_are_followed_up_to_ten() {
    let hops = |last: usize| {
        Server::new(move |seen: &Seen, stream: &mut TcpStream| {
            let hop: usize = seen.target.trim_start_matches('/').parse().unwrap_or(0);
            if hop == last {
                return send(stream, "200 OK", "", b"there");
            }
            send(stream, "307 Temporary Redirect", &format!("Location: /{}\r\n", hop + 1), b"moved");
        })
    };
    let sandbox = Sandbox::new();
    fetch(settings(), &sandbox, artifact(&hops(10).uri("/0"))).await.unwrap();
    assert_eq!(sandbox.read("0"), b"there");
    let error = fetch(settings(), &sandbox, artifact(&hops(11).uri("/0"))).await.unwrap_err();
    assert!(error.kind == FailureKind::Refused && error.reason.contains("more than 10 redirects"), "{error}");
}

#[tokio::test]
async fn statuses_and_broken_servers_are_named() {
    let sandbox = Sandbox::new();
    let server = Server::new(|seen, stream| match seen.target.as_str() {
        "/404" => send(stream, "404 Not Found", "", b"no"),
        "/500" => send(stream, "500 Oops", "", b"no"),
        "/short" => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this");
        }
        "/lies" => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfour and more");
        }
        _ => {
            let _ = stream.write_all(b"SSH-2.0\r\n");
        }
    });
    let error = fetch(settings(), &sandbox, artifact(&server.uri("/404"))).await.unwrap_err();
    assert!(error.kind == FailureKind::Status(404) && error.to_string().contains("HTTP 404"), "{error}");
    assert!(!error.may_pass());
    let error = fetch(settings(), &sandbox, artifact(&server.uri("/500"))).await.unwrap_err();
    assert!(error.kind == FailureKind::Status(500) && error.may_pass(), "{error}");
    for path in ["/short", "/else"] {
        let error = fetch(settings(), &sandbox, artifact(&server.uri(path))).await.unwrap_err();
        assert!(error.kind == FailureKind::Unreachable && error.may_pass(), "{error}");
    }
    assert_eq!(sandbox.names(), [""; 0]);
    fetch(settings(), &sandbox, artifact(&server.uri("/lies"))).await.unwrap();
    assert_eq!(sandbox.read("lies"), b"four");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = fetch(settings(), &sandbox, artifact(&format!("http://{closed}/x"))).await.unwrap_err();
    assert!(error.kind == FailureKind::Unreachable && error.reason.contains("refused"), "{error}");
    let error = fetch(settings(), &sandbox, artifact("http://no-such-name.invalid/x")).await.unwrap_err();
    assert!(error.reason.contains("no-such-name.invalid"), "{error}");
}

#[tokio::test]
async fn size_is_limited_whatever_the_server_announces() {
    let sandbox = Sandbox::new();
    let server = Server::new(|seen, stream| {
        if seen.target == "/announced" {
            return send(stream, "200 OK", "", &[0; 2000]);
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        let chunk = [b"100\r\n".as_slice(), &[b'a'; 0x100], b"\r\n"].concat();
        while stream.write_all(&chunk).is_ok() {}
    });
    for path in ["/announced", "/endless"] {
        let limited = Settings { max_bytes: 1000, ..settings() };
        let error = fetch(limited, &sandbox, artifact(&server.uri(path))).await.unwrap_err();
        assert!(error.kind == FailureKind::TooLarge && error.reason.contains("1000 bytes"), "{error}");
    }
    assert_eq!(sandbox.names(), [""; 0]);
    fetch(Settings { max_bytes: 2000, ..settings() }, &sandbox, artifact(&server.uri("/announced"))).await.unwrap();
}

#[tokio::test]
async fn slow_servers_are_given_up_and_nothing_stays() {
    let server = Server::new(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
        while stream.write_all(b"a").is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let sandbox = Sandbox::new();
    let hurried = Settings { timeout: Duration::from_secs(1), ..settings() };
    let before = Instant::now();
    let error = fetch(hurried, &sandbox, artifact(&server.uri("/x"))).await.unwrap_err();
    assert!(error.kind == FailureKind::TimedOut && error.may_pass(), "{error}");
    assert!(before.elapsed() < Duration::from_secs(8));
    assert_eq!(sandbox.names(), [""; 0]);

    // cancelled: the child is killed and the staging folder goes
    let fetcher = Fetcher::new(settings());
    let uri = server.uri("/y");
    let cancelled =
        tokio::time::timeout(Duration::from_millis(700), fetch_by(&fetcher, &sandbox, artifact(&uri))).await;
    assert!(cancelled.is_err());
    let mut tries = 0;
    while !sandbox.names().is_empty() {
        tries += 1;
        assert!(tries < 100, "{:?}", sandbox.names());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_child_that_dies_leaves_an_error_and_no_rest() {
    let server = Server::new(|_, _| std::thread::sleep(Duration::from_secs(30)));
    let sandbox = Sandbox::new();
    let wrong = Settings { program: "/bin/false".into(), ..settings() };
    let error = fetch(wrong, &sandbox, artifact(&server.uri("/x"))).await.unwrap_err();
    assert!(error.kind == FailureKind::Local && error.reason.contains("exit status: 1"), "{error}");
    let missing = Settings { program: "/no/such/program".into(), ..settings() };
    let error = fetch(missing, &sandbox, artifact(&server.uri("/x"))).await.unwrap_err();
    assert!(error.reason.contains("/no/such/program"), "{error}");
    assert_eq!(sandbox.names(), [""; 0]);
    assert_eq!(server.count(), 0);
}

#[tokio::test]
async fn the_child_ends_when_agentd_does() {
    // the child's socket closes although nobody kills it
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut child = std::process::Command::new(settings().program)
        .stdin(std::process::Stdio::from(std::os::fd::OwnedFd::from(theirs)))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    drop(ours);
    let mut tries = 0;
    while child.try_wait().unwrap().is_none() {
        tries += 1;
        assert!(tries < 200);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test]
async fn users_and_passwords_go_to_the_named_server_only() {
    let other = Server::new(|seen, stream| {
        let told = seen.header("authorization").is_some();
        send(stream, "200 OK", "", if told { b"told" } else { b"not told" });
    });
    let target = other.uri("/final");
    let first = Server::new(move |seen, stream| {
        if seen.header("authorization") == Some("Basic dTpw") {
            send(stream, "302 Found", &format!("Location: {target}\r\n"), b"");
        } else {
            send(stream, "401 Unauthorized", "", b"");
        }
    });
    let sandbox = Sandbox::new();
    let uri = first.uri("/x").replace("http://", "http://u:p@");
    fetch(settings(), &sandbox, artifact(&uri)).await.unwrap();
    assert_eq!(sandbox.read("x"), b"not told");
    let error = fetch(settings(), &sandbox, artifact(&uri.replace("u:p", "u:wrong"))).await.unwrap_err();
    assert!(error.kind == FailureKind::Status(401) && !error.to_string().contains("wrong"), "{error}");
}

#[tokio::test]
async fn cached_copies_serve_only_after_304() {
    let version = std::sync::Arc::new(std::sync::Mutex::new("one"));
    let current = std::sync::Arc::clone(&version);
    let server = Server::new(move |seen, stream| {
        let version = *current.lock().unwrap();
        let tag = format!("\"{version}\"");
        if seen.header("if-none-match") == Some(&tag) {
            return send(stream, "304 Not Modified", "", b"");
        }
        send(stream, "200 OK", &format!("ETag: {tag}\r\n"), version.as_bytes());
    });
    let state = tempfile::tempdir().unwrap();
    let cache = CacheSettings { folder: state.path().join("artifact-cache"), max_bytes: 1 << 20 };
    let fetcher = Fetcher::new(Settings { cache: Some(cache.clone()), ..settings() });
    let cached = Artifact { cache: true, ..artifact(&server.uri("/x")) };
    for expected in ["one", "one", "two", "two"] {
        if expected == "two" {
            *version.lock().unwrap() = "two";
        }
        let sandbox = Sandbox::new();
        fetch_by(&fetcher, &sandbox, cached.clone()).await.unwrap();
        assert_eq!(sandbox.read("x"), expected.as_bytes());
        assert_eq!(sandbox.names(), ["x"]);
    }
    assert_eq!(server.count(), 4);
    // a container that changes its file does not change the copy; a new daemon finds it again
    let sandbox = Sandbox::new();
    fetch_by(&fetcher, &sandbox, cached.clone()).await.unwrap();
    std::fs::write(sandbox.path("x"), "changed").unwrap();
    let fetcher = Fetcher::new(Settings { cache: Some(cache.clone()), ..settings() });
    fetch_by(&fetcher, &sandbox, cached).await.unwrap();
    assert_eq!(sandbox.read("x"), b"two");
    assert_eq!(std::fs::metadata(&cache.folder).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn files_come_only_from_the_roots() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("data.bin"), "data").unwrap();
    // the child's user could not read it; the daemon opens it
    std::fs::set_permissions(root.path().join("data.bin"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::symlink("/etc/shadow", root.path().join("link")).unwrap();
    let sandbox = Sandbox::new();
    let with_root = || Settings { file_roots: vec![root.path().to_owned()], ..settings() };
    let uri = |name: &str| format!("file://{}/{name}", root.path().display());
    fetch(with_root(), &sandbox, artifact(&uri("data.bin"))).await.unwrap();
    assert_eq!(sandbox.read("data.bin"), b"data");
    for bad in
        [uri("link"), "file:///etc/passwd".to_owned(), uri("%2e%2e%2f%2e%2e%2fetc%2fpasswd"), uri("../../etc/passwd")]
    {
        let error = fetch(with_root(), &sandbox, artifact(&bad)).await.unwrap_err();
        assert!(matches!(error.kind, FailureKind::Refused | FailureKind::Invalid), "{error}");
    }
    let error = fetch(settings(), &sandbox, artifact(&uri("data.bin"))).await.unwrap_err();
    assert!(error.reason.contains("file_roots"), "{error}");
    let limited = Settings { max_bytes: 3, ..with_root() };
    let error = fetch(limited, &sandbox, artifact(&uri("data.bin"))).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::TooLarge);
    assert_eq!(sandbox.names(), ["data.bin"]);
}

#[tokio::test]
async fn links_that_a_container_left_are_not_followed() {
    let outside = tempfile::tempdir().unwrap();
    let server = serve(b"new".to_vec());
    let sandbox = Sandbox::new();
    std::fs::write(outside.path().join("victim"), "old").unwrap();
    std::os::unix::fs::symlink(outside.path(), sandbox.path("dir")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("victim"), sandbox.path("file")).unwrap();
    let into = |path: &str| Artifact { dest_path: Some(path.to_owned()), ..artifact(&server.uri("/x")) };
    let error = fetch(settings(), &sandbox, into("dir/victim")).await.unwrap_err();
    assert_eq!(error.field, "containers[0].artifacts[1].destPath", "{error}");
    // a link in the file's own place is replaced
    fetch(settings(), &sandbox, into("file")).await.unwrap();
    assert_eq!(sandbox.read("file"), b"new");
    assert_eq!(std::fs::read(outside.path().join("victim")).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
}
