//! GNU tar as an oracle: it makes the layers, and compares what the store unpacked with them.

mod common;

use std::path::Path;
use std::process::Command;

use agentd_images::{Store, quiet};
use common::{Packing, TestImage, is_root, noise, settings};

fn make_tree(tree: &Path) {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    let path = |name: &str| tree.join(name);
    std::fs::create_dir_all(path("etc/deep/er")).unwrap();
    std::fs::create_dir_all(path(&format!("{}/{}", "d".repeat(180), "e".repeat(180)))).unwrap();
    std::fs::write(path(&format!("{}/{}/{}", "d".repeat(180), "e".repeat(180), "f".repeat(180))), "long").unwrap();
    std::fs::write(path("etc/deep/er/file"), noise(300_000, 11)).unwrap();
    std::fs::hard_link(path("etc/deep/er/file"), path("zzz-hard")).unwrap();
    std::fs::write(path("empty"), "").unwrap();
    std::fs::write(path("ünïcode \n name"), "x").unwrap();
    symlink("/etc/deep", path("absolute")).unwrap();
    symlink("x".repeat(250), path("long-link")).unwrap();
    std::fs::write(path("setuid"), "x").unwrap();
    let sparse = std::fs::File::create(path("sparse")).unwrap();
    for piece in 0..30u64 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", piece * 1_000_000).unwrap();
    }
    sparse.set_len(50_000_000).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), rustix::fs::FileType::Fifo, 0o640.into(), 0).unwrap();
    if is_root() {
        chown(path("setuid"), Some(4_000_000), Some(3_000_000)).unwrap();
        std::os::unix::fs::lchown(path("absolute"), Some(12), Some(13)).unwrap();
    }
    for (name, mode) in [("setuid", 0o6711), ("etc", 0o1777), ("empty", 0o000)] {
        std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }
}

#[tokio::test]
async fn gnu_tar_finds_no_difference() {
    if Command::new("tar").arg("--version").output().map_or(true, |output| !output.stdout.starts_with(b"tar (GNU tar)"))
    {
        eprintln!("skipped because GNU tar is not installed");
        return;
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let tree = folder.path().join("tree");
    make_tree(&tree);
    for options in [
        &["--format=gnu"][..],
        &["--format=gnu", "--sparse"],
        &["--format=posix"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
    ] {
        let archive = folder.path().join("layer.tar");
        let made = Command::new("tar").args(options).arg("-cf").arg(&archive).arg("-C").arg(&tree).arg(".").output();
        let made = made.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let image = TestImage::new(&[(std::fs::read(&archive).unwrap(), Packing::Zstd)]);
        let saved = folder.path().join("saved.tar");
        std::fs::write(&saved, image.saved("app")).unwrap();
        let root = folder.path().join("store");
        let store = Store::open(&root, settings()).unwrap();
        let imported = store.import(&saved, None, quiet()).await.unwrap();
        let mut compare = Command::new("tar");
        compare.args(["--compare", "--numeric-owner", "-f"]).arg(&archive).arg("-C").arg(&imported.layers[0]);
        let compared = compare.output().unwrap();
        let text = String::from_utf8_lossy(&compared.stdout).into_owned() + &String::from_utf8_lossy(&compared.stderr);
        // Without root nobody can give files away.
        assert!(compared.status.success() || !is_root(), "{options:?}: {text}");
        if options.contains(&"--sparse") {
            use std::os::unix::fs::MetadataExt;
            let blocks = imported.layers[0].join("sparse").metadata().unwrap().blocks();
            assert!(blocks * 512 < 5_000_000, "{options:?}: the sparse file takes {blocks} blocks");
        }
        drop(store);
        std::fs::remove_dir_all(&root).unwrap();
    }
}
