//! Files of containers as tar streams.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use agentd_tests::arena::HostFolder;
use agentd_tests::{Client, Daemon, eventually, pods, privileged, skip};
use serde_json::{Value, json};
use tar::EntryType;

const PATIENCE: Duration = Duration::from_mins(1);

/// Where containers of these tests write.
const SANDBOX: &str = "/mnt/mesos/sandbox";

/// An answer, byte by byte.
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Whether the body came to its end.
    whole: bool,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    fn detail(&self) -> String {
        self.json()["detail"].as_str().unwrap_or_default().to_owned()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

fn connect(daemon: &Daemon) -> UnixStream {
    let stream = UnixStream::connect(daemon.socket()).expect("the daemon listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
    stream.set_write_timeout(Some(PATIENCE)).expect("a time-out can be set");
    stream
}

/// Reads a head: the status and the fields.
fn head(reader: &mut impl BufRead) -> (u16, Vec<(String, String)>) {
    let mut line = String::new();
    reader.read_line(&mut line).expect("the daemon answers");
    let status = line.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{line:?}"));
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("the head is whole");
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.to_owned())),
            None => return (status, headers),
        }
    }
}

fn answer(stream: UnixStream) -> Answer {
    let mut reader = BufReader::with_capacity(1 << 20, stream);
    let (status, headers) = head(&mut reader);
    let mut answer = Answer { status, headers, body: Vec::new(), whole: true };
    if answer.header("transfer-encoding") == Some("chunked") {
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                answer.whole = false;
                break;
            }
            let size = usize::from_str_radix(line.trim_end(), 16).unwrap_or_else(|_| panic!("{line:?}"));
            let at = answer.body.len();
            answer.body.resize(at + size + 2, 0);
            if reader.read_exact(&mut answer.body[at..]).is_err() {
                answer.whole = false;
                break;
            }
            answer.body.truncate(at + size);
            if size == 0 {
                break;
            }
        }
    } else {
        let length = answer.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        reader.take(length).read_to_end(&mut answer.body).expect("the body is whole");
    }
    answer
}

fn encoded(path: &str) -> String {
    path.bytes().fold(String::new(), |text, byte| text + &format!("%{byte:02X}"))
}

fn files(pod: &str, path: &str, more: &str) -> String {
    format!("{}/files?path={}{more}", Client::pod_path(pod), encoded(path))
}

fn get(daemon: &Daemon, pod: &str, path: &str, more: &str) -> Answer {
    let mut stream = connect(daemon);
    let head = format!("GET {} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", files(pod, path, more));
    stream.write_all(head.as_bytes()).expect("a request can be sent");
    answer(stream)
}

fn put_head(pod: &str, path: &str, length: usize) -> String {
    let path = files(pod, path, "");
    let fields = "connection: close\r\ncontent-type: application/x-tar";
    format!("PUT {path} HTTP/1.1\r\nhost: a\r\n{fields}\r\ncontent-length: {length}\r\n\r\n")
}

fn put(daemon: &Daemon, pod: &str, path: &str, body: &[u8]) -> Answer {
    let mut stream = connect(daemon);
    stream.write_all(put_head(pod, path, body.len()).as_bytes()).expect("a request can be sent");
    // a daemon that refuses need not read it all
    let _ = stream.write_all(body);
    answer(stream)
}

/// An archive of entries: name, type, content or target.
fn archive(entries: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
    owned(entries, 0, 0)
}

fn owned(entries: &[(&str, EntryType, &[u8])], uid: u64, gid: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, kind, text) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o4750);
        header.set_uid(uid);
        header.set_gid(gid);
        header.set_mtime(1_000_000_000);
        let mut content: &[u8] = b"";
        if matches!(kind, EntryType::Symlink | EntryType::Link) {
            header.set_link_name_literal(text).expect("a short link");
        } else {
            content = text;
        }
        header.set_size(content.len() as u64);
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// Names and contents of an archive; those of links are where they lead.
fn entries(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(bytes);
    let mut all = Vec::new();
    for entry in archive.entries().expect("an archive") {
        let mut entry = entry.expect("an entry");
        if entry.header().entry_type().is_pax_global_extensions() {
            continue;
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let mut content = entry.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default();
        entry.read_to_end(&mut content).expect("content");
        all.push((name, content));
    }
    all
}

/// A daemon with one pod, whose container runs a line of shell and may write 400 MiB.
fn with_pod(line: &str) -> (Daemon, PathBuf) {
    with_pod_of(&roomy(pods::shell("/box", line)))
}

fn roomy(pod: Value) -> Value {
    pods::with_container(pod, |container| container["resources"] = json!({"cpus": 0.5, "mem": 256, "disk": 400}))
}

fn with_pod_of(pod: &Value) -> (Daemon, PathBuf) {
    let daemon = Daemon::start();
    daemon.client().run_pod(pod);
    let sandbox = sandbox_of(&daemon);
    (daemon, sandbox)
}

/// The sandbox of the container `main`. With a disk limit it may lie on a filesystem that only the container has mounted.
fn sandbox_of(daemon: &Daemon) -> PathBuf {
    match daemon.client().container("/box", "main").pid {
        Some(pid) => PathBuf::from(format!("/proc/{pid}/root{SANDBOX}")),
        None => PathBuf::new(),
    }
}

/// Bytes that do not repeat soon.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| !matches!(name.as_str(), "stdout" | "stderr"))
        .collect();
    names.sort();
    names
}

#[test]
fn trees_and_large_files_are_copied_byte_for_byte_both_ways() {
    privileged!();
    let (daemon, sandbox) = with_pod("sleep 1000");
    let large = noise(100 << 20);
    let sent = archive(&[
        ("tree/", EntryType::Directory, b""),
        ("tree/large", EntryType::Regular, &large),
        ("tree/sub/", EntryType::Directory, b""),
        ("tree/sub/small", EntryType::Regular, b"small"),
        ("tree/sub/link", EntryType::Symlink, b"/etc/passwd"),
        ("tree/again", EntryType::Link, b"tree/sub/small"),
    ]);
    let answer = put(&daemon, "/box", SANDBOX, &sent);
    assert_eq!(answer.status, 200, "{}", answer.detail());
    assert_eq!(answer.json(), json!({"entries": 6, "bytes": large.len() + 5}));
    assert!(std::fs::read(sandbox.join("tree/large")).unwrap() == large, "what was written differs");
    let meta = sandbox.join("tree/large").metadata().unwrap();
    assert_eq!((meta.permissions().mode() & 0o7777, meta.mtime()), (0o750, 1_000_000_000));
    assert_eq!(sandbox.join("tree/again").metadata().unwrap().nlink(), 2);

    let back = get(&daemon, "/box", &format!("{SANDBOX}/tree"), "");
    assert!(back.status == 200 && back.whole, "{}", back.detail());
    assert_eq!(back.header("content-type"), Some("application/x-tar"));
    let stat: Value = serde_json::from_str(back.header("x-agentd-path-stat").unwrap()).unwrap();
    assert_eq!((&stat["name"], &stat["type"]), (&json!("tree"), &json!("directory")));
    let mut seen = entries(&back.body);
    seen.sort();
    let seen_names: Vec<&str> = seen.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(seen_names, ["tree/", "tree/again", "tree/large", "tree/sub/", "tree/sub/link", "tree/sub/small"]);
    assert!(seen[2].1 == large, "what was read differs");
    assert_eq!(seen[4].1, b"/etc/passwd");

    let stat = get(&daemon, "/box", &format!("{SANDBOX}/tree/large"), "&stat=true").json();
    assert_eq!((&stat["type"], &stat["size"]), (&json!("file"), &json!(large.len())));
    let stat = get(&daemon, "/box", &format!("{SANDBOX}/tree/sub/link"), "&stat=true").json();
    assert_eq!((&stat["type"], &stat["linkTarget"]), (&json!("symlink"), &json!("/etc/passwd")));
    assert_eq!(get(&daemon, "/box", &format!("{SANDBOX}/nothing"), "").status, 404);
}

#[test]
fn no_path_and_no_link_leads_out_of_the_container() {
    privileged!();
    let host = HostFolder::new();
    let secret = host.path("secret");
    std::fs::write(&secret, "SECRET OF THE HOST").unwrap();
    let before = names(secret.parent().unwrap());
    let (shown, folder) = (secret.display(), secret.parent().unwrap().display());
    // a process that swaps a directory for a link to the host's folder, all the time
    let line = format!(
        "cd {SANDBOX} && ln -s {shown} absolute && ln -s ../../../../../../..{shown} up && ln -s {folder} dir && \
         ln -s /proc/1/root{shown} magic && ln -s {folder} l && mkdir d && echo ready && \
         while :; do mv -T d x && mv -T l d && mv -T d l && mv -T x d; done"
    );
    let (daemon, sandbox) = with_pod(&line);
    assert!(eventually(PATIENCE, || daemon.client().logs("/box", "main").contains("ready")));
    let get_paths = [
        format!("{SANDBOX}/../../../../../../../../..{shown}"),
        format!("{SANDBOX}/absolute/."),
        format!("{SANDBOX}/up/."),
        format!("{SANDBOX}/dir/secret"),
        format!("{SANDBOX}/dir/."),
        format!("{SANDBOX}/magic/."),
        "/../../../../../../etc/shadow".to_owned(),
    ];
    for path in &get_paths {
        let answer = get(&daemon, "/box", path, "");
        assert!(matches!(answer.status, 403 | 404), "{path}: {} {}", answer.status, answer.detail());
    }
    for name in ["../above", "/tmp/above", "a/../../above", "dir/above", "absolute/above", ".."] {
        let answer = put(&daemon, "/box", SANDBOX, &archive(&[(name, EntryType::Regular, b"x")]));
        assert_eq!(answer.status, 403, "{name}: {}", answer.detail());
        assert!(answer.detail().starts_with(name), "{}", answer.detail());
    }
    // a hard link cannot be made to what lies outside either
    for target in ["../../etc/passwd", "/etc/passwd", "dir/secret", "absolute/x"] {
        let answer = put(&daemon, "/box", SANDBOX, &archive(&[("hard", EntryType::Link, target.as_bytes())]));
        assert_eq!(answer.status, 403, "{target}: {}", answer.detail());
    }
    let bytes = archive(&[("d/secret", EntryType::Regular, b"overwritten"), ("d/new/f", EntryType::Regular, b"x")]);
    let end = Instant::now() + Duration::from_secs(3);
    let (mut written, mut refused) = (0, 0);
    while Instant::now() < end {
        let answer = put(&daemon, "/box", SANDBOX, &bytes);
        match answer.status {
            200 => written += 1,
            403 => refused += 1,
            other => panic!("{other}: {}", answer.detail()),
        }
        let answer = get(&daemon, "/box", &format!("{SANDBOX}/d/."), "");
        assert!(!answer.body.windows(6).any(|window| window == b"SECRET"));
    }
    assert!(written + refused > 20, "{written} {refused}");
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "SECRET OF THE HOST");
    assert_eq!(names(secret.parent().unwrap()), before);
    assert!(!sandbox.parent().unwrap().join("above").exists() && !sandbox.join("../../../tmp/above").exists());
}

#[test]
fn what_is_no_file_is_neither_read_nor_made() {
    privileged!();
    let (daemon, _) =
        with_pod(&format!("cd {SANDBOX} && mkdir d && mkfifo d/fifo && echo x > d/file && echo ready; sleep 1000"));
    assert!(eventually(PATIENCE, || daemon.client().logs("/box", "main").contains("ready")));
    let fifo = format!("{SANDBOX}/d/fifo");
    for path in [fifo.as_str(), "/dev/null", "/dev/zero", "/proc/self/environ", "/proc/1/mem", "/proc", "/sys/kernel"] {
        let answer = get(&daemon, "/box", path, "");
        // some are not there in a container
        assert!(matches!(answer.status, 403 | 404), "{path}: {} {}", answer.status, answer.detail());
    }
    assert!(get(&daemon, "/box", &fifo, "").detail().contains("a FIFO"));
    let answer = get(&daemon, "/box", &format!("{SANDBOX}/d"), "");
    let seen: Vec<String> = entries(&answer.body).into_iter().map(|(name, _)| name).collect();
    assert_eq!(seen, ["d/", "d/file"]);
    assert!(String::from_utf8_lossy(&answer.body).contains("left out: d/fifo: a FIFO"));
    for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo] {
        let answer = put(&daemon, "/box", SANDBOX, &archive(&[("node", kind, b"")]));
        assert_eq!(answer.status, 403, "{}", answer.detail());
        assert!(answer.detail().starts_with("node: it is a "), "{}", answer.detail());
    }
    let answer = put(&daemon, "/box", "/proc/1", &archive(&[("f", EntryType::Regular, b"")]));
    assert_eq!(answer.status, 403, "{}", answer.detail());
}

#[test]
fn an_upload_that_fails_leaves_nothing_half_written() {
    privileged!();
    let (daemon, sandbox) = with_pod("sleep 1000");
    std::fs::write(sandbox.join("old"), "as it was").unwrap();
    let content = noise(3 << 20);
    let bytes = archive(&[("old", EntryType::Regular, &content)]);
    // the client dies in the middle
    let mut stream = connect(&daemon);
    stream.write_all(put_head("/box", SANDBOX, bytes.len()).as_bytes()).unwrap();
    stream.write_all(&bytes[..1 << 20]).unwrap();
    assert!(eventually(PATIENCE, || names(&sandbox).len() == 2), "{:?}", names(&sandbox));
    drop(stream);
    assert!(eventually(PATIENCE, || names(&sandbox) == ["old"]), "{:?}", names(&sandbox));
    // it ends too early, is compressed, is no archive, is empty
    for (body, word) in [
        (&bytes[..700_000], "in the middle"),
        (b"\x1f\x8b\x08\0\0", "gzip"),
        (&[b'x'; 600], "checksum"),
        (b"", "empty"),
    ] {
        let answer = put(&daemon, "/box", SANDBOX, body);
        assert_eq!(answer.status, 400, "{}", answer.detail());
        assert!(answer.detail().contains(word), "{}", answer.detail());
    }
    assert_eq!(names(&sandbox), ["old"]);
    assert_eq!(std::fs::read_to_string(sandbox.join("old")).unwrap(), "as it was");
    // where it may not be written, the entry is named
    let answer = put(&daemon, "/box", "/usr", &archive(&[("some/file", EntryType::Regular, b"x")]));
    assert_eq!(answer.status, 403, "{}", answer.detail());
    assert!(answer.detail().starts_with("some/file: ") && answer.detail().contains("EROFS"), "{}", answer.detail());
    let answer = put(&daemon, "/box", "/nowhere", &bytes);
    assert_eq!(answer.status, 404, "{}", answer.detail());
    let answer = put(&daemon, "/box", "relative", &bytes);
    assert_eq!(answer.status, 400, "{}", answer.detail());
    let threads = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
        tasks
            .flatten()
            .filter(|task| {
                std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("container-file"))
            })
            .count()
    };
    assert!(eventually(PATIENCE, || threads() == 0));
}

#[test]
fn the_disk_limit_holds_for_copies() {
    privileged!();
    let (daemon, sandbox) = with_pod_of(&pods::shell("/box", "sleep 1000"));
    let answer = put(
        &daemon,
        "/box",
        SANDBOX,
        &archive(&[("small", EntryType::Regular, b"x"), ("large", EntryType::Regular, &noise(60 << 20))]),
    );
    assert_eq!(answer.status, 507, "{}", answer.detail());
    assert!(answer.detail().starts_with("large: "), "{}", answer.detail());
    assert!(answer.detail().contains("1 entry before it was written"), "{}", answer.detail());
    assert_eq!(names(&sandbox), ["small"]);
}

#[test]
fn owners_are_counted_as_in_the_container() {
    privileged!();
    let mut pod = roomy(pods::shell(
        "/box",
        &format!("while ! [ -e {SANDBOX}/f ]; do sleep 0.05; done; stat -c 'it is %u:%g' {SANDBOX}/f; sleep 1000"),
    ));
    pod["agentd"]["userNamespace"] = json!(true);
    let (daemon, sandbox) = with_pod_of(&pod);
    let sent = owned(&[("f", EntryType::Regular, b"mine")], 1234, 5678);
    let answer = put(&daemon, "/box", SANDBOX, &sent);
    assert_eq!(answer.status, 200, "{}", answer.detail());
    assert!(
        eventually(PATIENCE, || daemon.client().logs("/box", "main").contains("it is 1234:5678")),
        "{}",
        daemon.client().logs("/box", "main")
    );
    let back = get(&daemon, "/box", &format!("{SANDBOX}/f"), "");
    assert_eq!(back.status, 200, "{}", back.detail());
    let mut archive = tar::Archive::new(back.body.as_slice());
    let entry = archive.entries().unwrap().next().unwrap().unwrap();
    assert_eq!((entry.header().uid().unwrap(), entry.header().gid().unwrap()), (1234, 5678));
    assert!(sandbox.join("f").exists());
}

#[test]
fn a_copy_may_do_what_the_container_may_and_no_more() {
    privileged!();
    let host = HostFolder::new();
    let secret = host.path("secret");
    std::fs::write(&secret, "of root").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::set_permissions(secret.parent().unwrap(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let pod = pods::with_container(roomy(pods::shell("/box", "sleep 1000")), |container| {
        container["user"] = json!("1000:1000");
    });
    let pod = agentd_tests::arena::with_host_volume(pod, "host", secret.parent().unwrap(), "/data", false);
    let (daemon, sandbox) = with_pod_of(&pod);
    let answer = get(&daemon, "/box", "/data/secret", "");
    assert_eq!(answer.status, 403, "{} {}", answer.status, answer.detail());
    let answer = put(&daemon, "/box", "/data", &archive(&[("new", EntryType::Regular, b"x")]));
    assert_eq!(answer.status, 403, "{} {}", answer.status, answer.detail());
    // in a folder, it is left out and told
    let answer = get(&daemon, "/box", "/data", "");
    let seen: Vec<String> = entries(&answer.body).into_iter().map(|(name, _)| name).collect();
    assert_eq!(seen, ["data/", "data/marker"]);
    assert!(String::from_utf8_lossy(&answer.body).contains("left out: data/secret: "));
    let answer = put(&daemon, "/box", SANDBOX, &archive(&[("own", EntryType::Regular, b"x")]));
    assert_eq!(answer.status, 200, "{}", answer.detail());
    assert_eq!(sandbox.join("own").metadata().unwrap().uid(), 1000);
    // the daemon's other threads keep their user
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    assert!(status.contains("Uid:\t0\t0\t0\t0"), "{status}");
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "of root");
}

#[test]
fn only_running_containers_are_copied_from() {
    privileged!();
    let (daemon, _) = with_pod("true");
    daemon.client().wait_finished("/box");
    assert_eq!(get(&daemon, "/box", "/etc", "").status, 409);
    assert_eq!(get(&daemon, "/none", "/etc", "").status, 404);
    assert_eq!(get(&daemon, "/box", "/etc", "&container=other").status, 404);
}

#[test]
fn a_client_that_goes_away_ends_the_copy() {
    privileged!();
    let (daemon, sandbox) = with_pod("sleep 1000");
    std::fs::write(sandbox.join("large"), noise(64 << 20)).unwrap();
    for _ in 0..40 {
        // more than may be under way at a time
        let mut stream = connect(&daemon);
        let head = format!("GET {} HTTP/1.1\r\nhost: a\r\n\r\n", files("/box", SANDBOX, ""));
        stream.write_all(head.as_bytes()).unwrap();
        let mut piece = [0; 1000];
        stream.read_exact(&mut piece[..12]).unwrap();
        assert!(matches!(&piece[9..12], b"200" | b"503"), "{:?}", &piece[..12]);
    }
    assert!(eventually(PATIENCE, || get(&daemon, "/box", &format!("{SANDBOX}/large"), "&stat=true").status == 200));
}

#[test]
fn a_pod_is_removed_while_copies_are_under_way() {
    privileged!();
    let daemon = Daemon::start();
    let before = daemon.snapshot();
    daemon.client().run_pod(&roomy(pods::shell("/box", "sleep 1000")));
    let sandbox = sandbox_of(&daemon);
    std::fs::write(sandbox.join("large"), noise(64 << 20)).unwrap();
    // one that nobody reads, and one that nobody goes on with
    let mut out = connect(&daemon);
    out.write_all(format!("GET {} HTTP/1.1\r\nhost: a\r\n\r\n", files("/box", SANDBOX, "")).as_bytes()).unwrap();
    let mut start = [0; 12];
    out.read_exact(&mut start).unwrap();
    assert_eq!(&start[9..12], b"200");
    let bytes = archive(&[("new", EntryType::Regular, &noise(1 << 20))]);
    let mut into = connect(&daemon);
    into.write_all(put_head("/box", SANDBOX, bytes.len()).as_bytes()).unwrap();
    into.write_all(&bytes[..100_000]).unwrap();
    assert!(eventually(PATIENCE, || names(&sandbox).len() == 2), "{:?}", names(&sandbox));
    let began = Instant::now();
    daemon.client().rm("/box");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    drop((out, into));
    before.assert_same();
}

#[test]
fn an_upload_that_stands_still_is_cut_off() {
    privileged!();
    let (daemon, sandbox) = with_pod("sleep 1000");
    let mut stream = connect(&daemon);
    let bytes = archive(&[("file", EntryType::Regular, &noise(1 << 20))]);
    stream.write_all(put_head("/box", SANDBOX, bytes.len()).as_bytes()).unwrap();
    stream.write_all(&bytes[..100_000]).unwrap();
    let began = Instant::now();
    let answer = answer(stream);
    assert_eq!(answer.status, 408, "{}", answer.detail());
    assert!((25..50).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(names(&sandbox), [""; 0]);
}

#[test]
fn other_clients_copy_with_the_documented_commands() {
    privileged!();
    for tool in ["curl", "tar"] {
        if Command::new(tool).arg("--version").output().is_err() {
            skip!("there is no {tool}");
        }
    }
    let (daemon, _) = with_pod("sleep 1000");
    let host = HostFolder::new();
    std::fs::create_dir_all(host.path("site/sub")).unwrap();
    std::fs::write(host.path("site/sub/page"), noise(3_000_000)).unwrap();
    std::fs::create_dir(host.path("back")).unwrap();
    let (folder, socket) = (host.path("").display().to_string(), daemon.socket().display().to_string());
    let base = "http://agentd/v1/pods/box/files?path=/mnt/mesos/sandbox";
    let line = format!(
        "set -e; cd {folder}; tar -cf - site | curl -sS --fail-with-body --unix-socket {socket} -T - \
         -H 'content-type: application/x-tar' '{base}'; \
         curl -sS --fail-with-body --unix-socket {socket} '{base}/site' | tar -C back -xf -; \
         tar -czf - site | curl -sS --unix-socket {socket} -T - '{base}'; \
         curl -sS --unix-socket {socket} -X PUT -H 'content-type: application/json' -d '{{}}' '{base}'"
    );
    let output = Command::new("sh").args(["-c", &line]).output().unwrap();
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text} {errors}");
    assert!(text.starts_with(r#"{"entries":3,"bytes":3000000}"#), "{text}");
    assert!(text.contains("compressed with gzip") && text.contains("415"), "{text}");
    assert!(std::fs::read(host.path("back/site/sub/page")).unwrap() == noise(3_000_000));
}
