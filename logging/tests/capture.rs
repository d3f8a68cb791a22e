//! The capture from real pipes to real files and back.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use agentd_logging::{Capture, Entry, LogError, ReadOptions, Settings, Stream};
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("agentd-test-logs-").tempdir().unwrap()
}

fn start(max_bytes: u64) -> (TempDir, Capture) {
    let folder = folder();
    let capture = Capture::start(folder.path(), Settings { max_bytes }).unwrap();
    (folder, capture)
}

/// A pipe whose write end stays open, as pod-init's does.
fn pipe() -> (OwnedFd, fs::File) {
    let (read, write) = std::io::pipe().unwrap();
    (read.into(), fs::File::from(OwnedFd::from(write)))
}

fn all(capture: &Capture, container: &str, options: &ReadOptions) -> Vec<Entry> {
    capture.read("pod", container, options).unwrap().map(Result::unwrap).collect()
}

fn texts(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(|entry| String::from_utf8_lossy(&entry.line).into_owned()).collect()
}

#[tokio::test]
async fn finish_drains_both_streams_and_ends_the_last_line() {
    let (_folder, capture) = start(1 << 20);
    let (out, mut out_writer) = pipe();
    let (err, mut err_writer) = pipe();
    capture.add("pod", "a", 1, Stream::Stdout, out).unwrap();
    capture.add("pod", "a", 1, Stream::Stderr, err).unwrap();
    out_writer.write_all(b"one\ntwo\nunfinished").unwrap();
    err_writer.write_all(b"\x00\xff\xfebinary\r\n").unwrap();
    capture.finish("pod", "a").await.unwrap();

    let stdout = ReadOptions { stderr: false, ..ReadOptions::default() };
    let entries = all(&capture, "a", &stdout);
    assert_eq!(texts(&entries), ["one", "two", "unfinished"]);
    assert!(entries.iter().all(|entry| !entry.partial && entry.stream == Stream::Stdout));
    let stderr = ReadOptions { stdout: false, ..ReadOptions::default() };
    assert_eq!(all(&capture, "a", &stderr)[0].line, b"\x00\xff\xfebinary\r");
    assert_eq!(texts(&all(&capture, "a", &ReadOptions { tail: Some(1), ..stdout.clone() })), ["unfinished"]);
    assert_eq!(all(&capture, "a", &ReadOptions { tail: Some(0), ..stdout }).len(), 0);
    let future = ReadOptions { since: Some("2200-01-01T00:00:00Z".parse().unwrap()), ..ReadOptions::default() };
    assert_eq!(all(&capture, "a", &future).len(), 0);
    assert_eq!(all(&capture, "never", &ReadOptions::default()).len(), 0);

    // The format is the one that other tools read.
    let text = fs::read(capture.dir().join("pod/a.log")).unwrap();
    let line = String::from_utf8_lossy(&text);
    let line = line.lines().find(|line| line.ends_with("one")).unwrap();
    let parts: Vec<&str> = line.split(' ').collect();
    assert_eq!(parts[0].len(), "2026-11-20T07:00:00.000000000Z".len(), "{line}");
    assert_eq!(&parts[1..], ["stdout", "F", "one"]);

    // A second finish, and one of a container that never was, is nothing.
    capture.finish("pod", "a").await.unwrap();
    capture.finish("pod", "never").await.unwrap();
}

#[tokio::test]
async fn rotation_keeps_the_newest_and_no_more_than_the_limit() {
    let limit = 64 * 1024;
    let (folder, capture) = start(limit);
    let (read, mut writer) = pipe();
    capture.add("pod", "a", 1, Stream::Stdout, read).unwrap();
    let count = 20_000;
    tokio::task::spawn_blocking(move || {
        for i in 0..count {
            writeln!(writer, "line {i:06}").unwrap();
        }
    })
    .await
    .unwrap();
    capture.finish("pod", "a").await.unwrap();
    let sizes: u64 =
        fs::read_dir(folder.path().join("pod")).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(sizes <= limit && sizes > limit / 3, "{sizes}");
    let lines = texts(&all(&capture, "a", &ReadOptions::default()));
    let first = count - lines.len();
    let expected: Vec<String> = (first..count).map(|i| format!("line {i:06}")).collect();
    assert_eq!(lines, expected, "no line is lost, split or mixed at a rotation");
    let tail = ReadOptions { tail: Some(900), ..ReadOptions::default() };
    assert_eq!(texts(&all(&capture, "a", &tail)), expected[expected.len() - 900..]);
}

#[tokio::test]
async fn followers_see_every_line_across_rotations() {
    let (_folder, capture) = start(2 << 20);
    let (read, mut writer) = pipe();
    capture.add("pod", "a", 1, Stream::Stdout, read).unwrap();
    writer.write_all(b"before\n").unwrap();
    let mut follow = capture.follow("pod", "a", &ReadOptions::default()).unwrap().until_finished();
    assert_eq!(follow.next().await.unwrap().unwrap().line, b"before");
    let count = 60_000u32;
    let printing = tokio::task::spawn_blocking(move || {
        for i in 0..count {
            writeln!(writer, "line {i}").unwrap();
            // Slower than a reader, faster than a rotation for each look of it.
            if i % 2000 == 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        writer
    });
    let ending = {
        let capture = capture.clone();
        tokio::spawn(async move {
            let writer = printing.await.unwrap();
            capture.finish("pod", "a").await.unwrap();
            drop(writer);
        })
    };
    let mut next = 0;
    while let Some(entry) = follow.next().await {
        assert_eq!(entry.unwrap().line, format!("line {next}").into_bytes());
        next += 1;
    }
    assert_eq!(next, count);
    ending.await.unwrap();
    assert!(capture.dir().join("pod/a.log.1").exists(), "the log was rotated meanwhile");
}

#[tokio::test]
async fn a_prompt_is_seen_before_its_line_ends_and_tail_comes_first() {
    let (_folder, capture) = start(1 << 20);
    let (read, mut writer) = pipe();
    capture.add("pod", "a", 1, Stream::Stdout, read).unwrap();
    writer.write_all(b"one\ntwo\nname: ").unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let tail = ReadOptions { tail: Some(1), ..ReadOptions::default() };
    let mut follow = capture.follow("pod", "a", &tail).unwrap();
    assert_eq!(follow.next().await.unwrap().unwrap().line, b"two");
    let prompt = tokio::time::timeout(Duration::from_secs(5), follow.next()).await.unwrap().unwrap().unwrap();
    assert!(prompt.partial && prompt.line == b"name: ");
    writer.write_all(b"joe\n").unwrap();
    let rest = follow.next().await.unwrap().unwrap();
    assert!(!rest.partial && rest.line == b"joe");
    // A cancelled wait loses nothing.
    assert!(tokio::time::timeout(Duration::from_millis(20), follow.next()).await.is_err());
    writer.write_all(b"more\n").unwrap();
    assert_eq!(follow.next().await.unwrap().unwrap().line, b"more");
    capture.remove("pod").await.unwrap();
    assert!(follow.next().await.is_none());
    assert!(!capture.dir().join("pod").exists());
    capture.remove("pod").await.unwrap();
}

#[tokio::test]
async fn a_restarted_daemon_goes_on_after_a_torn_record() {
    let folder = folder();
    let (read, mut writer) = pipe();
    let parked = read.try_clone().unwrap();
    let capture = Capture::start(folder.path(), Settings::default()).unwrap();
    capture.add("pod", "a", 1, Stream::Stdout, read).unwrap();
    writer.write_all(b"one\n").unwrap();
    capture.finish("pod", "a").await.unwrap();
    drop(capture);
    let file = folder.path().join("pod/a.log");
    let mut log = fs::OpenOptions::new().append(true).open(&file).unwrap();
    log.write_all(b"2026-11-20T07:00:00.0000").unwrap();
    // While nobody reads, the pipe keeps what is printed.
    writer.write_all(b"two\n").unwrap();

    let capture = Capture::start(folder.path(), Settings::default()).unwrap();
    assert_eq!(texts(&all(&capture, "a", &ReadOptions::default())), ["one"]);
    capture.add("pod", "a", 1, Stream::Stdout, parked).unwrap();
    capture.finish("pod", "a").await.unwrap();
    assert_eq!(texts(&all(&capture, "a", &ReadOptions::default())), ["one", "two"]);
}

#[tokio::test]
async fn a_new_attempt_replaces_the_pipe_of_the_old() {
    let (_folder, capture) = start(1 << 20);
    let (first, mut first_writer) = pipe();
    capture.add("pod", "a", 1, Stream::Stdout, first).unwrap();
    first_writer.write_all(b"first\nhalf").unwrap();
    let (second, mut second_writer) = pipe();
    second_writer.write_all(b"second\n").unwrap();
    capture.add("pod", "a", 2, Stream::Stdout, second).unwrap();
    capture.finish("pod", "a").await.unwrap();
    assert_eq!(texts(&all(&capture, "a", &ReadOptions::default())), ["first", "half", "second"]);
}

#[tokio::test]
async fn names_that_leave_the_folder_are_refused() {
    let (_folder, capture) = start(1 << 20);
    for name in ["", ".", "..", "../x", "a/b", ".hidden", "a\0b"] {
        let (read, _writer) = pipe();
        assert!(matches!(capture.add(name, "a", 1, Stream::Stdout, read), Err(LogError::Name(_))), "{name:?}");
        assert!(matches!(capture.remove(name).await, Err(LogError::Name(_))), "{name:?}");
        assert!(capture.read("pod", name, &ReadOptions::default()).is_err(), "{name:?}");
    }
}

#[tokio::test]
async fn a_log_that_cannot_be_written_holds_back_only_its_container() {
    let (_folder, capture) = start(1 << 20);
    // A folder in place of the file: writing fails until it is gone.
    let path = capture.dir().join("pod/a.log");
    fs::create_dir_all(&path).unwrap();
    let (read, mut writer) = pipe();
    let (other, mut other_writer) = pipe();
    capture.add("pod", "a", 1, Stream::Stdout, read).unwrap();
    capture.add("pod", "b", 1, Stream::Stdout, other).unwrap();
    writer.write_all(b"held\n").unwrap();
    other_writer.write_all(b"free\n").unwrap();
    capture.finish("pod", "b").await.unwrap();
    assert_eq!(texts(&all(&capture, "b", &ReadOptions::default())), ["free"]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    writer.write_all(b"later\n").unwrap();
    fs::remove_dir(&path).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while all(&capture, "a", &ReadOptions::default()).len() < 2 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(texts(&all(&capture, "a", &ReadOptions::default())), ["held", "later"]);
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn idle_pipes_cost_little() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let room = limit.current.unwrap_or(u64::MAX).min(2400) as usize;
    // Two ends of each pipe, and what the other tests hold.
    let count = (room.saturating_sub(400) / 2).min(1000);
    assert!(count >= 200, "too few descriptors for this test: raise `ulimit -n` to 1024 or more");
    let (_folder, capture) = start(1 << 20);
    let mut writers = Vec::new();
    let mut pipes = Vec::new();
    for _ in 0..count {
        let (read, writer) = pipe();
        pipes.push(read);
        writers.push(writer);
    }
    let before = resident_kib();
    for (i, read) in pipes.into_iter().enumerate() {
        capture.add("pod", &format!("c{i}"), 1, Stream::Stdout, read).unwrap();
    }
    for writer in &mut writers {
        writer.write_all(&[b'x'; 4000]).unwrap();
        writer.write_all(b"\n").unwrap();
    }
    capture.finish("pod", "none").await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let grown = resident_kib().saturating_sub(before);
    // Other tests of this program run at the same time, hence the margin; a buffer for each pipe would be 64 MiB.
    assert!(grown < 16 * 1024, "{count} pipes cost {grown} KiB");
    for i in 0..count {
        capture.finish("pod", &format!("c{i}")).await.unwrap();
    }
    assert_eq!(all(&capture, &format!("c{}", count - 1), &ReadOptions::default())[0].line.len(), 4000);
}

#[tokio::test]
async fn a_containers_own_limit_bounds_its_log() {
    let (folder, capture) = start(1 << 20);
    let (read, write) = std::io::pipe().unwrap();
    capture.add_limited("pod", "a", 1, Stream::Stdout, read.into(), Some(8192)).unwrap();
    let mut write = write;
    for n in 0..2000 {
        writeln!(write, "line {n} of a container that prints more than it may keep").unwrap();
    }
    drop(write);
    capture.finish("pod", "a").await.unwrap();
    let mut kept = 0;
    for entry in std::fs::read_dir(folder.path().join("pod")).unwrap() {
        kept += entry.unwrap().metadata().unwrap().len();
    }
    assert!(kept > 0 && kept <= 8192 + 4096, "kept {kept} bytes");
}
