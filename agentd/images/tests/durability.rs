//! Kills in the middle, a full disk, and a second owner. Children are this test binary, run again.

mod common;

use std::path::Path;
use std::process::Stdio;
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;

use agentd_images::{ImageError, Settings, Store, quiet};
use common::registry::{Manners, Registry};
use common::{Packing, TestImage, counts, is_root, noise, settings, tar};

static KILL_AT: OnceLock<String> = OnceLock::new();

fn hook(name: &'static str) {
    if KILL_AT.get().is_some_and(|at| at == name) {
        // Not an orderly end: no destructor runs, no buffer is flushed.
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
    }
}

/// Run as a child: pulls or removes an image, and is killed at a checkpoint.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(root) = std::env::var("AGENTD_TEST_ROOT") else { return };
    let reference = std::env::var("AGENTD_TEST_REFERENCE").unwrap();
    KILL_AT.set(std::env::var("AGENTD_TEST_KILL_AT").unwrap()).unwrap();
    let store = Store::open(Path::new(&root), settings()).unwrap();
    agentd_images::set_checkpoint_hook(hook);
    if std::env::var_os("AGENTD_TEST_REMOVE").is_some() {
        store.remove(&reference).await.unwrap();
    } else {
        store.pull(&reference, false, quiet()).await.unwrap();
    }
}

async fn killed(root: &Path, reference: &str, at: &str, remove: bool) {
    use std::os::unix::process::ExitStatusExt;
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--test-threads=1"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.env("AGENTD_TEST_ROOT", root).env("AGENTD_TEST_REFERENCE", reference).env("AGENTD_TEST_KILL_AT", at);
    if remove {
        command.env("AGENTD_TEST_REMOVE", "1");
    }
    let status = command.status().await.unwrap();
    assert_eq!(status.signal(), Some(9), "{at} was not reached: {status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_step_leaves_a_sound_store() {
    let image = TestImage::new(&[
        (tar(&[("large", &noise(3 << 20, 5))]), Packing::Gzip),
        (tar(&[("small", b"small")]), Packing::Gzip),
    ]);
    for at in [
        "pull.manifest",
        "pull.partial",
        "pull.blob",
        "pull.layer.unpacked",
        "pull.layer.renamed",
        "pull.synced",
        "pull.record",
    ] {
        let manners = Manners { cut_after: Some(1_500_000), cuts: AtomicUsize::new(1), ..Manners::default() };
        let registry = Registry::start(manners).await;
        let reference = registry.publish("app", "v1", &image);
        let root = tempfile::tempdir().unwrap();
        killed(root.path(), &reference, at, false).await;
        let store = Store::open(root.path(), settings()).unwrap();
        assert_eq!(store.image(&reference).is_some(), at == "pull.record", "{at}");
        let left = std::fs::read_dir(root.path().join("tmp")).unwrap().map(|entry| entry.unwrap().file_name());
        for name in left {
            assert!(name.to_string_lossy().starts_with("partial-"), "{at}: {name:?}");
        }
        let pulled = store.pull(&reference, false, quiet()).await.unwrap();
        assert_eq!(std::fs::read(pulled.layers[1].join("large")).unwrap(), noise(3 << 20, 5), "{at}");
        assert_eq!(counts(root.path()), (1, 2, 0, 0), "{at}");
        drop(store);

        if let "pull.manifest" | "pull.blob" | "pull.record" = at {
            let at = match at {
                "pull.manifest" => "remove.record",
                "pull.blob" => "gc.layer.renamed",
                _ => "gc.layer.removed",
            };
            killed(root.path(), &reference, at, true).await;
            let store = Store::open(root.path(), settings()).unwrap();
            assert!(store.image(&reference).is_none(), "{at}");
            store.gc(1.0).await.unwrap();
            assert_eq!(counts(root.path()), (0, 0, 0, 0), "{at}");
        }
    }
}

#[tokio::test]
async fn what_is_not_whole_is_swept() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    let archive = folder.path().join("saved.tar");
    std::fs::write(&archive, TestImage::small("x").saved("x")).unwrap();
    let store = Store::open(&root, settings()).unwrap();
    let image = store.import(&archive, None, quiet()).await.unwrap();
    assert!(matches!(Store::open(&root, settings()), Err(ImageError::Locked { .. })));
    drop(store);
    // Leftovers of every kind.
    std::fs::create_dir_all(root.join("tmp/layer-7/fs/deep")).unwrap();
    std::fs::write(root.join("tmp/record-3"), "{").unwrap();
    std::fs::write(root.join("tmp/partial-nothex"), "x").unwrap();
    std::fs::write(root.join("images/0123.json"), "{\"reference\":").unwrap();
    std::fs::create_dir_all(root.join("layers/feedfeedfeedfeed/fs")).unwrap();
    let store = Store::open(&root, settings()).unwrap();
    assert_eq!(counts(&root), (1, 1, 0, 0));
    assert_eq!(store.image("x").unwrap(), image);
    drop(store);
    // A record whose layer is gone is no image; a layer of another boot that no record names is not trusted.
    let record = std::fs::read_dir(root.join("images")).unwrap().next().unwrap().unwrap().path();
    let layer = image.layers[0].parent().unwrap().join("layer.json");
    let text = std::fs::read_to_string(&layer).unwrap();
    let mut other: serde_json::Value = serde_json::from_str(&text).unwrap();
    other["bootId"] = "another".into();
    std::fs::write(&layer, other.to_string()).unwrap();
    drop(Store::open(&root, settings()).unwrap());
    assert_eq!(counts(&root), (1, 1, 0, 0), "a record names the layer: it has reached the disk");
    std::fs::remove_file(&record).unwrap();
    drop(Store::open(&root, settings()).unwrap());
    assert_eq!(counts(&root), (0, 0, 0, 0));
    let store = Store::open(&root, settings()).unwrap();
    store.import(&archive, None, quiet()).await.unwrap();
    std::fs::remove_dir_all(image.layers[0].parent().unwrap()).unwrap();
    drop(store);
    let store = Store::open(&root, settings()).unwrap();
    assert!(store.image("x").is_none());
    assert_eq!(counts(&root), (0, 0, 0, 0));
}

/// Run as a child in a mount namespace of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_child() {
    use rustix::mount::{MountFlags, mount, mount_remount};
    let Ok(disk) = std::env::var("AGENTD_TEST_DISK") else { return };
    mount("none", &disk, "tmpfs", MountFlags::empty(), Some(c"size=2m")).unwrap();
    let root = Path::new(&disk).join("store");
    let image = TestImage::new(&[(tar(&[("large", &noise(3 << 20, 9))]), Packing::Gzip)]);
    let registry = Registry::start(Manners::default()).await;
    let reference = registry.publish("app", "v1", &image);
    let archive = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(archive.path(), image.saved("saved")).unwrap();
    let store = Store::open(&root, Settings { retries: 0, ..settings() }).unwrap();
    let error = store.import(archive.path(), None, quiet()).await.unwrap_err();
    assert!(matches!(error, ImageError::DiskFull { .. }), "{error}");
    assert!(error.to_string().contains("docker.io/library/saved"), "{error}");
    assert_eq!(counts(&root), (0, 0, 0, 0), "what did not fit is gone");
    let error = store.pull(&reference, false, quiet()).await.unwrap_err();
    assert!(matches!(error, ImageError::DiskFull { .. }), "{error}");
    assert_eq!(counts(&root), (0, 0, 0, 0), "neither is what was fetched in the way");
    mount_remount(&disk, MountFlags::empty(), c"size=64m").unwrap();
    store.pull(&reference, false, quiet()).await.unwrap();
    assert_eq!(counts(&root), (1, 1, 0, 0));
}

#[test]
fn a_full_disk_is_told_and_harms_nothing() {
    if !is_root() {
        eprintln!("skipped because mounting a small disk needs root");
        return;
    }
    let disk = tempfile::tempdir().unwrap();
    let output = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "full_disk_child", "--test-threads=1", "--nocapture"])
        .env("AGENTD_TEST_DISK", disk.path())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            eprintln!("skipped because unshare cannot be run: {error}");
            return;
        }
    };
    let text = String::from_utf8_lossy(&output.stderr);
    if text.contains("unshare failed") {
        eprintln!("skipped because mount namespaces are not permitted here");
        return;
    }
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stdout));
}
