//! The kernel's overlayfs over layers of the store: what it shows is what the image means.

mod common;

use std::path::Path;

use agentd_images::{Store, quiet};
use common::{Packing, TestImage, is_root, settings, tar};

/// Run as a child in a mount namespace of its own.
#[tokio::test]
async fn overlay_child() {
    use rustix::mount::{MountFlags, mount};
    let Ok(folder) = std::env::var("AGENTD_TEST_FOLDER") else { return };
    let folder = Path::new(&folder);
    let image = TestImage::new(&[
        (
            tar(&[
                ("gone", b"1"),
                ("folder/old", b"1"),
                ("merged/low", b"1"),
                ("was-file", b"1"),
                ("was-folder/x", b"1"),
                ("kept", b"low"),
            ]),
            Packing::Gzip,
        ),
        (
            tar(&[
                (".wh.gone", b""),
                ("folder/.wh..wh..opq", b""),
                ("folder/new", b"2"),
                ("merged/high", b"2"),
                ("was-file/x", b"2"),
                ("was-folder", b"2"),
                ("kept", b"high"),
            ]),
            Packing::Zstd,
        ),
    ]);
    let archive = folder.join("saved.tar");
    std::fs::write(&archive, image.saved("app")).unwrap();
    let store = Store::open(&folder.join("store"), settings()).unwrap();
    let imported = store.import(&archive, None, quiet()).await.unwrap();
    let lower: Vec<String> = imported.layers.iter().map(|layer| layer.display().to_string()).collect();
    let root = folder.join("root");
    std::fs::create_dir(&root).unwrap();
    let options = std::ffi::CString::new(format!("lowerdir={}", lower.join(":"))).unwrap();
    mount("overlay", &root, "overlay", MountFlags::RDONLY, Some(options.as_c_str())).unwrap();
    let names = |path: &str| {
        let mut names: Vec<String> = std::fs::read_dir(root.join(path))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(""), ["folder", "kept", "merged", "was-file", "was-folder"]);
    assert_eq!(names("folder"), ["new"]);
    assert_eq!(names("merged"), ["high", "low"]);
    assert_eq!(names("was-file"), ["x"]);
    assert_eq!(std::fs::read(root.join("was-folder")).unwrap(), b"2");
    assert_eq!(std::fs::read(root.join("kept")).unwrap(), b"high");
}

#[test]
fn overlayfs_shows_what_the_image_means() {
    if !is_root() {
        eprintln!("skipped because overlayfs needs root");
        return;
    }
    // A disk that can be a lower layer and takes trusted attributes: the build folder is on one.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let output = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "overlay_child", "--test-threads=1", "--nocapture"])
        .env("AGENTD_TEST_FOLDER", folder.path())
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
