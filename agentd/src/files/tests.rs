//! Packing and unpacking in folders of the test, with somebody who gets in the way.

use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use agentd_api::files::{FileKind, FilesWritten};
use bytes::Bytes;
use rustix::fs::{CWD, FileType, Mode, RenameFlags};
use tar::EntryType;

use super::FilesError;
use super::container::ContainerTree;
use super::header::{Member, end, padding};
use super::pack::{Stopped, locate, pack};
use super::unpack::unpack;

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix(&format!("agentd-test-{}-", std::process::id())).tempdir().unwrap()
}

fn packed(root: &Path, path: &str) -> Result<Vec<u8>, FilesError> {
    let tree = ContainerTree::of_folder(root);
    let found = locate(&tree, path.as_bytes())?;
    let mut bytes = Vec::new();
    let take = &mut |piece: Bytes| {
        bytes.extend_from_slice(&piece);
        true
    };
    pack(&tree, found, take).unwrap();
    Ok(bytes)
}

fn unpacked(root: &Path, path: &str, bytes: &[u8]) -> Result<FilesWritten, FilesError> {
    unpack(&ContainerTree::of_folder(root), path.as_bytes(), bytes)
}

/// An archive of entries: name, type, content or target.
fn archive(entries: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut bytes = Vec::new();
    for (name, kind, text) in entries {
        let link: &[u8] = if matches!(kind, EntryType::Symlink | EntryType::Link) { text } else { b"" };
        let content: &[u8] = if *kind == EntryType::Regular { text } else { b"" };
        let size = content.len() as u64;
        let member = Member { name: name.as_bytes(), kind: *kind, mode: 0o4755, uid, gid, size, mtime: 1000, link };
        bytes.extend(member.blocks());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len() + padding(size), 0);
    }
    bytes.extend(end(""));
    bytes
}

/// Names, types, permissions, times, links and contents below a folder.
fn picture(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let text = if meta.is_symlink() {
                format!("{:?}", std::fs::read_link(&path).unwrap())
            } else if meta.is_dir() {
                folders.push(path.clone());
                String::new()
            } else if meta.is_file() {
                let content = std::fs::read(&path).unwrap();
                format!("{} {}", meta.nlink(), content.iter().map(|byte| u64::from(*byte)).sum::<u64>())
            } else {
                "special".to_owned()
            };
            let time = if meta.is_symlink() { 0 } else { meta.mtime() };
            let name = path.strip_prefix(root).unwrap();
            lines.push(format!("{name:?} {:o} {}:{} {time} {text}", meta.mode(), meta.uid(), meta.gid()));
        }
    }
    lines.sort();
    lines
}

fn sample(root: &Path) {
    let dir = root.join("tree/sub/empty");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(root.join("tree/small"), "small").unwrap();
    std::fs::write(root.join("tree/none"), "").unwrap();
    let large: Vec<u8> = (0..1_000_003_u32).map(|n| (n * 7 % 251) as u8).collect();
    std::fs::write(root.join("tree/sub/large"), large).unwrap();
    std::fs::write(root.join("tree/sub").join("l".repeat(200)), "long name").unwrap();
    std::fs::hard_link(root.join("tree/small"), root.join("tree/sub/again")).unwrap();
    symlink("../small", root.join("tree/sub/link")).unwrap();
    symlink("/nowhere/".repeat(20), root.join("tree/dangling")).unwrap();
    std::fs::set_permissions(root.join("tree/small"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o1711)).unwrap();
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let (from, to) = (folder(), folder());
    sample(from.path());
    let bytes = packed(from.path(), "/tree").unwrap();
    let done = unpacked(to.path(), "/", &bytes).unwrap();
    assert_eq!(picture(from.path()), picture(to.path()));
    assert_eq!(done.bytes, 5 + 1_000_003 + 9);
    // a second time over what is there
    unpacked(to.path(), "/", &bytes).unwrap();
    assert_eq!(picture(from.path()), picture(to.path()));
    // and the same by another reader
    let other = folder();
    tar::Archive::new(bytes.as_slice()).unpack(other.path()).unwrap();
    let content = |root: &Path| std::fs::read(root.join("tree/sub/large")).unwrap();
    assert_eq!(content(from.path()), content(other.path()));
}

#[test]
fn names_begin_with_the_last_part_of_the_path() {
    let root = folder();
    std::fs::create_dir_all(root.path().join("a/b")).unwrap();
    std::fs::write(root.path().join("a/b/c"), "").unwrap();
    symlink("a/b", root.path().join("l")).unwrap();
    let names = |path: &str| {
        let bytes = packed(root.path(), path).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let names = archive.entries().unwrap().map(|entry| String::from_utf8(entry.unwrap().path_bytes().to_vec()));
        names.collect::<Result<Vec<_>, _>>().unwrap()
    };
    assert_eq!(names("/a/b"), ["b/", "b/c"]);
    assert_eq!(names("/a/b/"), ["b/", "b/c"]);
    assert_eq!(names("/a/b/."), ["./", "./c"]);
    assert_eq!(names("/a/b/c"), ["c"]);
    assert_eq!(names("/l"), ["l"]);
    assert_eq!(names("/l/"), ["l/", "l/c"]);
    assert_eq!(names("/a/../../../a/b/c"), ["c"]);
    assert_eq!(&names("/")[..1], ["./"]);
    let tree = ContainerTree::of_folder(root.path());
    let stat = locate(&tree, b"/l").unwrap().stat(&tree);
    assert_eq!((stat.kind, stat.link_target.as_deref(), stat.name.as_str()), (FileKind::Symlink, Some("a/b"), "l"));
    assert!(matches!(locate(&tree, b"/a/missing"), Err(FilesError::NotFound)));
}

#[test]
fn links_stay_inside_the_tree() {
    let outer = folder();
    let root = outer.path().join("root");
    std::fs::create_dir_all(root.join("etc")).unwrap();
    std::fs::write(outer.path().join("secret"), "secret").unwrap();
    std::fs::write(root.join("etc/passwd"), "inner").unwrap();
    symlink(outer.path().join("secret"), root.join("absolute")).unwrap();
    symlink("../secret", root.join("up")).unwrap();
    symlink("/etc", root.join("dir")).unwrap();
    for path in ["/absolute/.", "/up/.", "/../secret", "/dir/../../secret"] {
        let error = packed(&root, path).unwrap_err();
        assert_eq!(error, FilesError::NotFound, "{path}");
    }
    // an absolute link leads where it leads inside
    let bytes = packed(&root, "/dir/passwd").unwrap();
    let mut archive = tar::Archive::new(bytes.as_slice());
    let mut content = String::new();
    archive.entries().unwrap().next().unwrap().unwrap().read_to_string(&mut content).unwrap();
    assert_eq!(content, "inner");
}

#[test]
fn nothing_is_unpacked_outside_of_the_directory() {
    let outer = folder();
    let root = outer.path().join("root");
    std::fs::create_dir_all(root.join("in")).unwrap();
    std::fs::create_dir(outer.path().join("victim")).unwrap();
    std::fs::write(outer.path().join("victim/f"), "untouched").unwrap();
    std::fs::write(root.join("above"), "untouched").unwrap();
    let victim = outer.path().join("victim");
    let out = victim.to_str().unwrap().as_bytes();
    let file = out.iter().chain(b"/f").copied().collect::<Vec<u8>>();
    let before = (picture(&victim), std::fs::read_to_string(root.join("above")).unwrap());
    let regular = EntryType::Regular;
    let attempts: Vec<Vec<(&str, EntryType, &[u8])>> = vec![
        vec![("../above", regular, b"x")],
        vec![("/above", regular, b"x")],
        vec![("a/../../above", regular, b"x")],
        vec![("..", EntryType::Directory, b"")],
        vec![("link", EntryType::Symlink, out), ("link/f", regular, b"x")],
        vec![("link", EntryType::Symlink, out), ("link/new/f", regular, b"x")],
        vec![("up", EntryType::Symlink, b".."), ("up/above", regular, b"x")],
        vec![("link", EntryType::Symlink, out), ("link", EntryType::Directory, b"")],
        vec![("hard", EntryType::Link, b"../above")],
        vec![("hard", EntryType::Link, b"/above")],
        vec![("link", EntryType::Symlink, out), ("hard", EntryType::Link, b"link/f")],
        vec![("node", EntryType::Char, b"")],
        vec![("node", EntryType::Fifo, b"")],
    ];
    for entries in attempts {
        let error = unpacked(&root, "/in", &archive(&entries)).unwrap_err();
        assert!(matches!(error, FilesError::Refused(_)), "{entries:?}: {error}");
        let name = entries.last().unwrap().0;
        assert!(error.to_string().starts_with(name), "{name}: {error}");
        assert_eq!((picture(&victim), std::fs::read_to_string(root.join("above")).unwrap()), before, "{entries:?}");
    }
    // in an entry's place, a link is replaced and not written through
    std::fs::remove_file(root.join("in/link")).unwrap();
    symlink(String::from_utf8(file).unwrap(), root.join("in/file")).unwrap();
    unpacked(&root, "/in", &archive(&[("file", regular, b"mine")])).unwrap();
    assert_eq!(std::fs::read_to_string(root.join("in/file")).unwrap(), "mine");
    assert_eq!(picture(&victim), before.0);
}

#[test]
fn a_directory_that_is_swapped_for_a_link_leads_nowhere() {
    let outer = folder();
    let root = outer.path().join("root");
    std::fs::create_dir_all(root.join("in/d/e")).unwrap();
    std::fs::create_dir_all(outer.path().join("victim/e")).unwrap();
    std::fs::write(outer.path().join("victim/secret"), "TOP SECRET").unwrap();
    std::fs::write(root.join("in/d/secret"), "known").unwrap();
    symlink(outer.path().join("victim"), root.join("in/other")).unwrap();
    let before = picture(&outer.path().join("victim"));
    let stop = AtomicBool::new(false);
    let (d, other) = (root.join("in/d"), root.join("in/other"));
    let bytes = archive(&[
        ("d/f", EntryType::Regular, b"content"),
        ("d/e/f", EntryType::Regular, b"content"),
        ("d/new/", EntryType::Directory, b""),
        ("d/new/s", EntryType::Symlink, b"x"),
        ("d/h", EntryType::Link, b"d/f"),
    ]);
    let (mut refused, mut written) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(CWD, &d, CWD, &other, RenameFlags::EXCHANGE).unwrap();
            }
        });
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        for _ in 0..400 {
            match unpacked(&root, "/in", &bytes) {
                Ok(_) => written += 1,
                Err(FilesError::Refused(_)) => refused += 1,
                Err(error) => panic!("{error}"),
            }
            for path in ["/in/d/secret", "/in/other/secret", "/in/d/.", "/in/."] {
                if let Ok(bytes) = packed(&root, path) {
                    assert!(!bytes.windows(10).any(|window| window == b"TOP SECRET"), "{path}");
                }
            }
            if std::time::Instant::now() > until {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(picture(&outer.path().join("victim")), before);
    assert!(refused > 0, "the swap never got in the way: {written} written");
}

#[test]
fn what_is_no_file_is_left_out_and_told() {
    let root = folder();
    std::fs::create_dir(root.path().join("d")).unwrap();
    std::fs::write(root.path().join("d/file"), "x").unwrap();
    rustix::fs::mknodat(CWD, root.path().join("d/fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.path().join("d/socket")).unwrap();
    let bytes = packed(root.path(), "/d").unwrap();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(text.contains("left out: d/fifo: a FIFO") && text.contains("left out: d/socket: a socket"));
    let mut archived = tar::Archive::new(bytes.as_slice());
    let names = archived
        .entries()
        .unwrap()
        .filter(|entry| entry.as_ref().is_ok_and(|entry| !entry.header().entry_type().is_pax_global_extensions()));
    assert_eq!(names.count(), 2);
    for path in ["/d/fifo", "/d/socket"] {
        assert!(matches!(packed(root.path(), path), Err(FilesError::Refused(_))), "{path}");
    }
    for path in ["/proc/self/environ", "/proc", "/sys/kernel", "/dev/null", "/proc/self/root/etc/passwd"] {
        assert!(matches!(packed(Path::new("/"), path), Err(FilesError::Refused(_))), "{path}");
    }
    let bytes = archive(&[("x", EntryType::Regular, b"1")]);
    assert!(matches!(unpacked(Path::new("/"), "/proc/self", &bytes), Err(FilesError::Refused(_))));
}

#[test]
fn a_broken_stream_leaves_nothing_half_written() {
    let root = folder();
    std::fs::write(root.path().join("old"), "as it was").unwrap();
    let whole = archive(&[("first", EntryType::Regular, b"1"), ("old", EntryType::Regular, &[7; 5000])]);
    // in every part of the second entry, its header included
    for cut in [1024 + 100, 1024 + 512, 1024 + 600, 1024 + 512 + 4999] {
        let error = unpacked(root.path(), "/", &whole[..cut]).unwrap_err();
        assert!(matches!(error, FilesError::Archive(_)), "{error}");
        assert!(error.to_string().contains("1 entry before it"), "{error}");
        assert_eq!(std::fs::read_to_string(root.path().join("old")).unwrap(), "as it was");
        let names = std::fs::read_dir(root.path()).unwrap().count();
        assert_eq!(names, 2, "{cut}");
    }
    unpacked(root.path(), "/", &whole).unwrap();
    assert_eq!(std::fs::read(root.path().join("old")).unwrap(), [7; 5000]);
}

#[test]
fn a_file_that_changes_its_length_does_not_break_the_stream() {
    for length in [10_u64, 3_000_000] {
        let root = folder();
        std::fs::create_dir(root.path().join("d")).unwrap();
        let path = root.path().join("d/file");
        std::fs::write(&path, vec![1; 1_000_000]).unwrap();
        let tree = ContainerTree::of_folder(root.path());
        let found = locate(&tree, b"/d").unwrap();
        let mut bytes = Vec::new();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        let take = &mut |piece: Bytes| {
            bytes.extend_from_slice(&piece);
            file.set_len(length).unwrap();
            true
        };
        pack(&tree, found, take).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut content = Vec::new();
        archive.entries().unwrap().nth(1).unwrap().unwrap().read_to_end(&mut content).unwrap();
        assert_eq!(content.len(), 1_000_000);
        let shorter = length < 1_000_000;
        assert_eq!(content.last(), Some(&u8::from(!shorter)));
        assert_eq!(String::from_utf8_lossy(&bytes).contains("became shorter"), shorter);
    }
}

#[test]
fn a_walk_ends_when_nobody_wants_it() {
    let root = folder();
    std::fs::write(root.path().join("large"), vec![1; 3_000_000]).unwrap();
    let tree = ContainerTree::of_folder(root.path());
    let found = locate(&tree, b"/").unwrap();
    let mut pieces = 0;
    let take = &mut |_: Bytes| {
        pieces += 1;
        pieces < 3
    };
    assert!(matches!(pack(&tree, found, take), Err(Stopped::Unwanted)));
    assert_eq!(pieces, 3);
}

#[test]
fn attributes_are_kept_but_for_special_bits_and_directories_that_are_there() {
    let root = folder();
    std::fs::create_dir(root.path().join("there")).unwrap();
    std::fs::set_permissions(root.path().join("there"), std::fs::Permissions::from_mode(0o700)).unwrap();
    let bytes = archive(&[
        ("./", EntryType::Directory, b""),
        ("there/", EntryType::Directory, b""),
        ("there/file", EntryType::Regular, b"x"),
        ("new/", EntryType::Directory, b""),
        ("new/file", EntryType::Regular, b"x"),
        ("made/for/it", EntryType::Regular, b"x"),
    ]);
    let done = unpacked(root.path(), "/", &bytes).unwrap();
    assert_eq!(done, FilesWritten { entries: 6, bytes: 3 });
    let meta = |path: &str| root.path().join(path).metadata().unwrap();
    assert_eq!(meta("there").mode() & 0o7777, 0o700);
    assert_eq!((meta("there/file").mode() & 0o7777, meta("there/file").mtime()), (0o755, 1000));
    assert_eq!((meta("new").mode() & 0o7777, meta("new").mtime()), (0o755, 1000));
    assert_eq!(meta("made/for").mode() & 0o7777, 0o755);
}

#[test]
fn a_deep_tree_is_cut_and_told() {
    let root = folder();
    let mut dir = std::fs::File::open(root.path()).map(std::os::fd::OwnedFd::from).unwrap();
    for _ in 0..400 {
        rustix::fs::mkdirat(&dir, "d", Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, "d", rustix::fs::OFlags::RDONLY, Mode::empty()).unwrap();
    }
    let bytes = packed(root.path(), "/d").unwrap();
    let mut archived = tar::Archive::new(bytes.as_slice());
    assert_eq!(archived.entries().unwrap().flatten().count(), 257 + 1);
    assert!(String::from_utf8_lossy(&bytes).contains("256 directories deep"));
    let name = format!("{}/f", ["d"; 300].join("/"));
    assert!(matches!(
        unpacked(root.path(), "/", &archive(&[(&name, EntryType::Regular, b"x")])),
        Err(FilesError::Refused(_))
    ));
}
