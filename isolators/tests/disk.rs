//! Disk limits: loop files that end in ENOSPC and leave nothing behind, and the meter. Loop files need root.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentd_api::pod::PodSpec;
use agentd_isolators::disk::{
    Disk, DiskKind, DiskSettings, Enforcement, loopback, measure_folders, quota, remove_tree, walk,
};
use agentd_isolators::mounter::Mounter;
use rustix::fs::{Mode, OFlags};

const INSTANCE: &str = "0123456789ab";

fn pod(disk_mib: u64) -> PodSpec {
    serde_json::from_value(serde_json::json!({"id": "/p", "containers": [
        {"name": "c", "exec": {"command": {"shell": "true"}},
         "resources": {"cpus": 0.1, "mem": 32.0, "disk": disk_mib, "gpus": 0}}]}))
    .unwrap()
}

struct Node {
    folder: tempfile::TempDir,
    pod: PathBuf,
}

impl Node {
    fn new() -> Self {
        let folder =
            tempfile::Builder::new().prefix(&format!("agentd-test-{}-", std::process::id())).tempdir().unwrap();
        let pod = folder.path().join("pod");
        fs::create_dir(&pod).unwrap();
        Self { folder, pod }
    }

    fn disk(&self, enforcement: Enforcement, default_limit: Option<u64>) -> Option<Disk> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounts can only be made by root");
            return None;
        }
        let mounter = Arc::new(Mounter::start(2).unwrap());
        let folder = self.folder.path().join("disks");
        Some(Disk::new(mounter, DiskSettings { enforcement, default_limit, folder }).unwrap())
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("disks").join(format!("{INSTANCE}.img"))
    }
}

fn loop_devices(image: &Path) -> usize {
    let name = image.to_str().unwrap();
    fs::read_dir("/sys/block")
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("loop/backing_file")).ok())
        .filter(|backing| backing.contains(name))
        .count()
}

/// Writes zeros until an error; how much fitted, and the error.
fn fill(data: &std::os::fd::OwnedFd, path: &str) -> (u64, Option<i32>) {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let mut file = fs::File::from(rustix::fs::openat(data, path, flags, Mode::RUSR).unwrap());
    let chunk = vec![1_u8; 64 << 10];
    let mut written = 0;
    while written < 1 << 30 {
        match file.write_all(&chunk) {
            Ok(()) => written += chunk.len() as u64,
            Err(error) => return (written, error.raw_os_error()),
        }
    }
    (written, None)
}

#[test]
fn a_loop_file_ends_in_enospc_and_leaves_nothing() {
    let node = Node::new();
    if let Some(missing) = loopback::missing() {
        eprintln!("skipped: {missing}");
        return;
    }
    let Some(disk) = node.disk(Enforcement::Loop, None) else { return };
    let on_loop_devices = || {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.lines().filter(|line| line.contains("/dev/loop")).count()
    };
    let before = on_loop_devices();
    // 22 MiB and the executor's 10
    let limit: u64 = 32 << 20;
    assert_eq!(disk.limit(&pod(22)).map(|limit| limit.bytes), Some(limit));
    assert_eq!(disk.prepare_pod(INSTANCE, &pod(22), &node.pod).unwrap(), DiskKind::Loop);
    assert_eq!(disk.prepare_pod(INSTANCE, &pod(22), &node.pod).unwrap(), DiskKind::Loop);
    let data = disk.open_pod_dir(INSTANCE, &node.pod).unwrap();
    let (written, error) = fill(&data, "sandbox/big");
    assert_eq!(error, Some(libc::ENOSPC), "after {written} bytes");
    assert!(written >= limit * 99 / 100 && written <= limit * 11 / 10, "{written} bytes fitted into {limit}");
    assert!(disk.measure(INSTANCE, &node.pod).unwrap().bytes >= written);
    assert_eq!(disk.over_limit(INSTANCE, &node.pod).unwrap(), None, "the kernel enforces this limit");
    assert!(!node.pod.join("sandbox").exists(), "the loop file is visible in the host's mount namespace");

    // a new agentd finds the same device while something of the old one lives
    let Some(again) = node.disk(Enforcement::Auto, None) else { return };
    let second = again.open_pod_dir(INSTANCE, &node.pod).unwrap();
    assert_eq!(loop_devices(&node.image()), 1);
    let stat = rustix::fs::statat(&second, "sandbox/big", rustix::fs::AtFlags::empty()).unwrap();
    assert!(stat.st_size as u64 >= written);
    drop((data, second));

    // nothing lives: the device goes by itself, and what was written comes back with the next one
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while loop_devices(&node.image()) > 0 && std::time::Instant::now() < end {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(loop_devices(&node.image()), 0);
    let data = again.open_pod_dir(INSTANCE, &node.pod).unwrap();
    assert!(rustix::fs::statat(&data, "sandbox/big", rustix::fs::AtFlags::empty()).unwrap().st_size as u64 >= written);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(node.folder.path().to_str().unwrap()), "{table}");
    assert!(on_loop_devices() <= before, "a loop device is in the host's mount table:\n{table}");
    drop(data);
    again.cleanup_pod(INSTANCE, &node.pod).unwrap();
    again.cleanup_pod(INSTANCE, &node.pod).unwrap();
    assert!(!node.image().exists());
    while loop_devices(&node.image()) > 0 && std::time::Instant::now() < end {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(loop_devices(&node.image()), 0);
}

#[test]
fn many_callers_at_once_share_one_device() {
    let node = Node::new();
    if let Some(missing) = loopback::missing() {
        eprintln!("skipped: {missing}");
        return;
    }
    let Some(disk) = node.disk(Enforcement::Loop, None) else { return };
    disk.prepare_pod(INSTANCE, &pod(8), &node.pod).unwrap();
    let held: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| disk.open_pod_dir(INSTANCE, &node.pod).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(loop_devices(&node.image()), 1);
    let devices: std::collections::HashSet<_> = held.iter().map(|fd| rustix::fs::fstat(fd).unwrap().st_dev).collect();
    assert_eq!(devices.len(), 1);
    drop(held);
    disk.cleanup_pod(INSTANCE, &node.pod).unwrap();
}

#[test]
fn the_meter_counts_blocks_once_and_follows_nothing() {
    let node = Node::new();
    let Some(disk) = node.disk(Enforcement::Meter, Some(1 << 20)) else { return };
    assert_eq!(disk.prepare_pod(INSTANCE, &pod(0), &node.pod).unwrap(), DiskKind::Meter);
    let empty = disk.measure(INSTANCE, &node.pod).unwrap();
    assert_eq!(empty.inodes, 0);
    assert_eq!(disk.over_limit(INSTANCE, &node.pod).unwrap(), None);
    let sandbox = node.pod.join("sandbox");
    fs::write(sandbox.join("a"), vec![1; 256 << 10]).unwrap();
    fs::hard_link(sandbox.join("a"), sandbox.join("b")).unwrap();
    fs::File::create(sandbox.join("sparse")).unwrap().set_len(1 << 40).unwrap();
    symlink("/", sandbox.join("link")).unwrap();
    fs::create_dir(node.pod.join("volumes/v")).unwrap();
    fs::write(node.pod.join("volumes/v/c"), vec![1; 128 << 10]).unwrap();
    fs::File::open(sandbox.join("a")).unwrap().sync_all().unwrap();
    fs::File::open(node.pod.join("volumes/v/c")).unwrap().sync_all().unwrap();
    let used = disk.measure(INSTANCE, &node.pod).unwrap();
    assert_eq!(used.inodes, 5, "a = b, sparse, link, v, c");
    assert!(used.bytes >= 384 << 10 && used.bytes < 512 << 10, "{used:?}");
    assert_eq!(disk.over_limit(INSTANCE, &node.pod).unwrap(), None);
    fs::write(sandbox.join("more"), vec![1; 1 << 20]).unwrap();
    fs::File::open(sandbox.join("more")).unwrap().sync_all().unwrap();
    let (used, limit) = disk.over_limit(INSTANCE, &node.pod).unwrap().unwrap();
    assert!(used.bytes > limit && limit == 1 << 20);
}

#[test]
fn folders_nested_beyond_any_path_are_counted_and_removed() {
    let node = Node::new();
    fs::create_dir(node.pod.join("sandbox")).unwrap();
    let mut at = rustix::fs::open(node.pod.join("sandbox"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    for _ in 0..1200 {
        rustix::fs::mkdirat(&at, "deeper", Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, "deeper", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    }
    let outside = node.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("keep"), "x").unwrap();
    rustix::fs::symlinkat(&outside, &at, "link").unwrap();
    assert_eq!(measure_folders(&node.pod, u64::MAX).unwrap().inodes, 1201);
    remove_tree(&node.pod).unwrap();
    remove_tree(&node.pod).unwrap();
    assert!(!node.pod.exists());
    assert!(outside.join("keep").exists());
}

#[test]
fn a_tree_that_changes_under_the_walk_is_survived() {
    let node = Node::new();
    let sandbox = node.pod.join("sandbox");
    for name in ["a/b/c/d", "e/f/g"] {
        fs::create_dir_all(sandbox.join(name)).unwrap();
    }
    let root = rustix::fs::open(&sandbox, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = fs::rename(sandbox.join("a/b/c"), sandbox.join("e/f/g/c"));
                let _ = fs::rename(sandbox.join("e/f/g/c"), sandbox.join("a/b/c"));
            }
        });
        for _ in 0..2000 {
            let used = walk::measure(&root, u64::MAX).unwrap();
            assert!((5..=9).contains(&used.inodes), "{used:?}");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn what_unknown_instances_left_is_swept() {
    let node = Node::new();
    let Some(disk) = node.disk(Enforcement::Auto, None) else { return };
    let folder = node.folder.path().join("disks");
    for name in ["aaaaaaaaaaaa.img", "bbbbbbbbbbbb.img.tmp", "cccccccccccc.project", "dddddddddddd.img", "note.txt"] {
        fs::write(folder.join(name), "16777300").unwrap();
    }
    disk.sweep(&["dddddddddddd"]).unwrap();
    let mut left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["dddddddddddd.img", "note.txt"]);
}

#[test]
fn a_wanted_quota_is_refused_where_there_is_none() {
    let node = Node::new();
    let Some(disk) = node.disk(Enforcement::Quota, None) else { return };
    let dir = rustix::fs::open(&node.pod, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    if quota::enforced(&dir) {
        let DiskKind::Quota(id) = disk.prepare_pod(INSTANCE, &pod(8), &node.pod).unwrap() else { panic!("no quota") };
        fs::write(node.pod.join("sandbox/x"), vec![1; 1 << 20]).unwrap();
        assert!(quota::usage(&dir, id).unwrap().0 >= 1 << 20);
        disk.cleanup_pod(INSTANCE, &node.pod).unwrap();
        return;
    }
    let error = disk.prepare_pod(INSTANCE, &pod(8), &node.pod).unwrap_err().to_string();
    assert!(error.contains("does not enforce project quotas") && error.contains("prjquota"), "{error}");
    assert_eq!(disk.prepare_pod(INSTANCE, &pod(0), &node.pod).unwrap(), DiskKind::Unlimited);
}
