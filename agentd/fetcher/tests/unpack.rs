//! Archives through the real child: honest ones, and those that try to get out or to fill the disk.

mod support;

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use agentd_api::pod::Artifact;
use agentd_fetcher::{FailureKind, FetchError, Settings};
use support::{OWNER, Sandbox, artifact, fetch, gzip, serve, settings, tar_end, tar_entry};
use tar::EntryType;
use zip::write::SimpleFileOptions;

/// Name, kind, link target, content.
type Entry = (&'static str, EntryType, &'static str, &'static [u8]);

async fn unpack(settings: Settings, sandbox: &Sandbox, archive: Vec<u8>) -> Result<(), FetchError> {
    let server = serve(archive);
    fetch(settings, sandbox, Artifact { extract: true, ..artifact(&server.uri("/archive")) }).await
}

fn honest_tar() -> Vec<u8> {
    let mut tar = Vec::new();
    tar_entry(&mut tar, "./", EntryType::Directory, "", 0o755, b"");
    tar_entry(&mut tar, "./app/", EntryType::Directory, "", 0o750, b"");
    tar_entry(&mut tar, "./app/run.sh", EntryType::Regular, "", 0o4777, b"#!/bin/sh\n");
    tar_entry(&mut tar, "deep/er/file", EntryType::Regular, "", 0o600, b"deep");
    tar_entry(&mut tar, "app/start", EntryType::Symlink, "run.sh", 0o777, b"");
    tar_entry(&mut tar, "app/up", EntryType::Symlink, "../deep/er/file", 0o777, b"");
    tar_entry(&mut tar, "app/copy", EntryType::Link, "deep/er/file", 0o644, b"");
    tar_end(tar)
}

#[tokio::test]
async fn honest_archives_of_each_kind() {
    let plain = honest_tar();
    for (kind, archive) in
        [("tar.gz", gzip(&plain)), ("tar.zst", zstd::encode_all(plain.as_slice(), 3).unwrap()), ("tar", plain)]
    {
        let sandbox = Sandbox::new();
        // what is there stays, and folders are joined
        std::fs::create_dir(sandbox.path("app")).unwrap();
        std::fs::write(sandbox.path("app/older"), "older").unwrap();
        unpack(settings(), &sandbox, archive).await.unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert_eq!(sandbox.names(), ["app", "deep"], "{kind}: the archive itself does not stay");
        assert_eq!(sandbox.read("app/older"), b"older");
        assert_eq!(sandbox.read("app/start"), b"#!/bin/sh\n");
        assert_eq!(sandbox.read("app/up"), b"deep");
        assert_eq!(sandbox.read("app/copy"), b"deep");
        let run = std::fs::metadata(sandbox.path("app/run.sh")).unwrap();
        assert_eq!(run.permissions().mode() & 0o7777, 0o755, "neither set-user-id nor writable by others");
        assert_eq!(run.mtime(), 1_000_000_000);
        assert_eq!(std::fs::metadata(sandbox.path("app/copy")).unwrap().nlink(), 1);
        if rustix::process::geteuid().is_root() {
            for name in ["app/run.sh", "app/start", "deep", "deep/er/file"] {
                let data = std::fs::symlink_metadata(sandbox.path(name)).unwrap();
                assert_eq!((data.uid(), data.gid()), OWNER, "{name}");
            }
        }
    }
}

#[tokio::test]
async fn a_named_archive_stays_beside_its_content() {
    let archive = gzip(&honest_tar());
    let server = serve(archive.clone());
    let sandbox = Sandbox::new();
    let named = Artifact { extract: true, dest_path: Some("in/a.tgz".to_owned()), ..artifact(&server.uri("/x")) };
    fetch(settings(), &sandbox, named).await.unwrap();
    assert_eq!(sandbox.names(), ["app", "deep", "in"]);
    assert_eq!(sandbox.read("in/a.tgz"), archive);
}

fn zip_of(entries: impl FnOnce(&mut zip::ZipWriter<std::io::Cursor<Vec<u8>>>)) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    entries(&mut writer);
    writer.finish().unwrap().into_inner()
}

#[tokio::test]
async fn zips() {
    let plain = SimpleFileOptions::default();
    let archive = zip_of(|zip| {
        zip.add_directory("bin/", plain).unwrap();
        zip.start_file("bin/tool", plain.unix_permissions(0o755)).unwrap();
        zip.write_all(&[b'x'; 10_000]).unwrap();
        zip.add_symlink("bin/alias", "tool", plain).unwrap();
    });
    let sandbox = Sandbox::new();
    unpack(settings(), &sandbox, archive).await.unwrap();
    assert_eq!(sandbox.read("bin/alias"), [b'x'; 10_000]);
    assert_eq!(std::fs::metadata(sandbox.path("bin/tool")).unwrap().permissions().mode() & 0o777, 0o755);

    let slip = zip_of(|zip| {
        zip.start_file("../slip", plain).unwrap();
        zip.write_all(b"x").unwrap();
    });
    let link = zip_of(|zip| zip.add_symlink("l", "../../etc", plain).unwrap());
    for archive in [slip, link] {
        let sandbox = Sandbox::new();
        let error = unpack(settings(), &sandbox, archive).await.unwrap_err();
        assert_eq!(error.kind, FailureKind::Refused, "{error}");
        assert_eq!(sandbox.names(), [""; 0]);
    }
    let bomb = zip_of(|zip| {
        zip.start_file("zeros", plain).unwrap();
        zip.write_all(&vec![0; 3 << 20]).unwrap();
    });
    assert!(bomb.len() < 100_000);
    let limited = Settings { max_extracted_bytes: 1 << 20, ..settings() };
    let error = unpack(limited, &Sandbox::new(), bomb.clone()).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::TooLarge, "{error}");
    let error = unpack(settings(), &Sandbox::new(), bomb[..bomb.len() - 30].to_vec()).await.unwrap_err();
    assert_eq!(error.kind, FailureKind::Archive, "{error}");
}

#[tokio::test]
async fn tars_that_try_to_get_out_are_refused() {
    let file = |name: &'static str| vec![(name, EntryType::Regular, "", b"evil".as_slice())];
    let link = |name: &'static str, target: &'static str| (name, EntryType::Symlink, target, b"".as_slice());
    let cases: Vec<(&str, Vec<Entry>)> = vec![
        ("parent", file("../evil")),
        ("parent deep", file("a/../../evil")),
        ("parent within", file("a/../evil")),
        ("absolute", file("/tmp/agentd-test-evil")),
        ("our own name", file(".agentd-fetch-x/evil")),
        ("link up", vec![link("l", "..")]),
        ("link absolute", vec![link("l", "/etc/passwd")]),
        ("link up from a folder", vec![link("a/l", "../../etc")]),
        ("link by a detour", vec![link("a/l", "b/../../../etc")]),
        ("through a link", vec![link("l", "a"), ("a/", EntryType::Directory, "", b""), file("l/evil")[0]]),
        ("over a link", vec![link("l", "a/b"), ("l/x/evil", EntryType::Regular, "", b"x")]),
        ("hard link out", vec![("h", EntryType::Link, "../../../etc/passwd", b"")]),
        ("hard link absolute", vec![("h", EntryType::Link, "/etc/passwd", b"")]),
        ("hard link to nothing", vec![("h", EntryType::Link, "none", b"")]),
        ("hard link to a link", vec![link("l", "x"), ("h", EntryType::Link, "l", b"")]),
        ("device", vec![("d", EntryType::Char, "", b"")]),
        ("block device", vec![("d", EntryType::Block, "", b"")]),
        ("pipe", vec![("p", EntryType::Fifo, "", b"")]),
        ("file over folder", vec![("a/b", EntryType::Regular, "", b"x"), ("a", EntryType::Regular, "", b"x")]),
        ("folder below file", vec![("a", EntryType::Regular, "", b"x"), ("a/b", EntryType::Regular, "", b"x")]),
    ];
    for (what, entries) in cases {
        let mut tar = Vec::new();
        tar_entry(&mut tar, "good", EntryType::Regular, "", 0o644, b"good");
        for (name, kind, target, content) in entries {
            tar_entry(&mut tar, name, kind, target, 0o644, content);
        }
        let sandbox = Sandbox::new();
        let error = unpack(settings(), &sandbox, tar_end(tar)).await.unwrap_err();
        assert_eq!(error.kind, FailureKind::Refused, "{what}: {error}");
        assert_eq!(error.field, "containers[0].artifacts[1].extract");
        assert_eq!(sandbox.names(), [""; 0], "{what}: not even the good part");
    }
    assert!(!std::path::Path::new("/tmp/agentd-test-evil").exists());
}

#[tokio::test]
async fn later_entries_replace_earlier_ones_and_not_what_links_point_to() {
    let mut tar = Vec::new();
    tar_entry(&mut tar, "target", EntryType::Regular, "", 0o644, b"first");
    tar_entry(&mut tar, "l", EntryType::Symlink, "target", 0o644, b"");
    tar_entry(&mut tar, "l", EntryType::Regular, "", 0o644, b"second");
    let sandbox = Sandbox::new();
    unpack(settings(), &sandbox, tar_end(tar)).await.unwrap();
    assert_eq!((sandbox.read("target"), sandbox.read("l")), (b"first".to_vec(), b"second".to_vec()));
}

#[tokio::test]
async fn bombs_are_stopped() {
    let mut tar = Vec::new();
    tar_entry(&mut tar, "zeros", EntryType::Regular, "", 0o644, &vec![0; 3 << 20]);
    let bomb = gzip(&tar_end(tar));
    assert!(bomb.len() < 100_000);
    let sandbox = Sandbox::new();
    let limited = || Settings { max_extracted_bytes: 1 << 20, max_entries: 100, ..settings() };
    let error = unpack(limited(), &sandbox, bomb.clone()).await.unwrap_err();
    assert!(error.kind == FailureKind::TooLarge && error.reason.contains("more than 1048576 bytes"), "{error}");

    let mut tar = Vec::new();
    for index in 0..101 {
        tar_entry(&mut tar, &format!("f{index}"), EntryType::Regular, "", 0o644, b"");
    }
    let error = unpack(limited(), &sandbox, gzip(&tar_end(tar))).await.unwrap_err();
    assert!(error.kind == FailureKind::TooLarge && error.reason.contains("more than 100 entries"), "{error}");

    // a long name that never ends is content too
    let mut tar = Vec::new();
    tar_entry(&mut tar, "././@LongLink", EntryType::GNULongName, "", 0o644, &vec![b'a'; 8 << 20]);
    tar_entry(&mut tar, "x", EntryType::Regular, "", 0o644, b"");
    let error = unpack(limited(), &sandbox, gzip(&tar_end(tar))).await.unwrap_err();
    assert!(matches!(error.kind, FailureKind::TooLarge | FailureKind::Refused), "{error}");

    let mut tar = Vec::new();
    let deep: String = "d/".repeat(45);
    tar_entry(&mut tar, &format!("{deep}x"), EntryType::Regular, "", 0o644, b"");
    unpack(limited(), &Sandbox::new(), tar_end(tar)).await.unwrap();
    assert_eq!(sandbox.names(), [""; 0]);
}

#[tokio::test]
async fn damaged_and_unknown_archives_are_named() {
    let whole = gzip(&honest_tar());
    let sandbox = Sandbox::new();
    for (what, archive) in [
        ("cut", whole[..whole.len() / 2].to_vec()),
        ("no tar inside", gzip(&[b'x'; 2000])),
        ("text", b"just text".to_vec()),
        ("empty", Vec::new()),
        ("rar", b"Rar!\x1a\x07\x01\x00 and more".to_vec()),
        ("cut tar", honest_tar()[..512 * 5 + 100].to_vec()),
        ("zstd", b"\x28\xb5\x2f\xfd garbage".to_vec()),
    ] {
        let error = unpack(settings(), &sandbox, archive).await.unwrap_err();
        assert_eq!(error.kind, FailureKind::Archive, "{what}: {error}");
        assert_eq!(error.field, "containers[0].artifacts[1].extract", "{what}");
        assert_eq!(sandbox.names(), [""; 0], "{what}");
    }
}

#[tokio::test]
async fn an_archive_that_does_not_fit_the_sandbox_says_where() {
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.path("deep"), "a file").unwrap();
    let error = unpack(settings(), &sandbox, honest_tar()).await.unwrap_err();
    assert!(error.reason.contains("\"deep\""), "{error}");
    assert_eq!(sandbox.read("deep"), b"a file");
    assert!(!sandbox.names().iter().any(|name| name.starts_with(".agentd")));
}
