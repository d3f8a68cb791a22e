use std::io::{Cursor, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use tar::{Builder, EntryType, Header};

use super::*;

type Tar = Builder<Vec<u8>>;

fn header(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header
}

/// A header whose path is taken as it is, which the builder would refuse.
fn raw(tar: &mut Tar, mut header: Header, path: &[u8], data: &[u8]) {
    let gnu = header.as_gnu_mut().unwrap();
    gnu.name[..path.len()].copy_from_slice(path);
    header.set_cksum();
    tar.append(&header, data).unwrap();
}

fn file(tar: &mut Tar, path: &str, data: &[u8]) {
    tar.append_data(&mut header(EntryType::Regular, data.len() as u64), path, data).unwrap();
}

fn folder(tar: &mut Tar, path: &str) {
    tar.append_data(&mut header(EntryType::Directory, 0), path, &[][..]).unwrap();
}

fn symlink(tar: &mut Tar, path: &str, target: &str) {
    tar.append_link(&mut header(EntryType::Symlink, 0), path, target).unwrap();
}

fn hard_link(tar: &mut Tar, path: &str, target: &str) {
    tar.append_link(&mut header(EntryType::Link, 0), path, target).unwrap();
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn small_limits() -> Limits {
    Limits { layer_bytes: 1 << 20, entries: 1000, ..Limits::default() }
}

struct Layer(tempfile::TempDir);

impl Layer {
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join("fs").join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }
}

fn apply_bytes(bytes: Vec<u8>, limits: &Limits) -> Result<(Layer, Unpacked), Fault> {
    let place = tempfile::tempdir().unwrap();
    std::fs::create_dir(place.path().join("fs")).unwrap();
    std::fs::create_dir(place.path().join("outside")).unwrap();
    let into = std::fs::File::open(place.path().join("fs")).unwrap();
    let result = unpack(Box::new(Cursor::new(bytes)), into.into(), limits, &AtomicBool::new(false), &|_| {});
    let outside = std::fs::read_dir(place.path().join("outside")).unwrap().count();
    assert_eq!(outside, 0, "something was written outside of the layer");
    result.map(|unpacked| (Layer(place), unpacked))
}

fn apply(tar: Tar) -> Result<(Layer, Unpacked), Fault> {
    apply_bytes(tar.into_inner().unwrap(), &small_limits())
}

fn refusal(tar: Tar) -> String {
    match apply(tar) {
        Ok(_) => panic!("it was accepted"),
        Err(Fault::Refused { entry, reason }) => format!("{entry}: {reason}"),
        Err(Fault::Damaged(message)) => message,
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn files_come_out_as_they_went_in() {
    let mut tar = Tar::new(Vec::new());
    folder(&mut tar, "./");
    folder(&mut tar, "bin/");
    let mut suid = header(EntryType::Regular, 3);
    suid.set_mode(0o4755);
    if is_root() {
        suid.set_uid(1234);
        suid.set_gid(70_000);
    }
    tar.append_data(&mut suid, "bin/su", &b"abc"[..]).unwrap();
    symlink(&mut tar, "bin/link", "/etc/../x");
    hard_link(&mut tar, "bin/hard", "bin/su");
    file(&mut tar, "deep/er/still", b"x");
    raw(&mut tar, header(EntryType::Regular, 1), b"/absolute", b"y");
    let (layer, unpacked) = apply(tar).unwrap();
    let su = layer.path("bin/su").metadata().unwrap();
    assert_eq!(su.permissions().mode() & 0o7777, 0o4755);
    assert_eq!(su.mtime(), 1_000_000_000);
    assert_eq!(su.nlink(), 2);
    if is_root() {
        assert_eq!((su.uid(), su.gid()), (1234, 70_000));
    }
    assert_eq!(layer.path("bin").metadata().unwrap().mtime(), 1_000_000_000);
    assert_eq!(layer.path("").metadata().unwrap().mtime(), 1_000_000_000);
    assert_eq!(std::fs::read_link(layer.path("bin/link")).unwrap(), Path::new("/etc/../x"));
    assert_eq!(layer.path("bin/link").symlink_metadata().unwrap().mtime(), 1_000_000_000);
    assert_eq!(layer.path("deep").metadata().unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!((layer.read("deep/er/still"), layer.read("absolute")), ("x".into(), "y".into()));
    assert_eq!(unpacked.applied.entries, 7);
    assert_eq!(unpacked.blob, unpacked.diff_id);
}

#[test]
fn compression_is_told_by_the_first_bytes() {
    let mut tar = Tar::new(Vec::new());
    file(&mut tar, "a", &vec![7; 700_000]);
    let plain = tar.into_inner().unwrap();
    let (_, expected) = apply_bytes(plain.clone(), &small_limits()).unwrap();
    let (first, second) = plain.split_at(1000);
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let members = [gzip(first), gzip(second)].concat();
    for packed in [gzip(&plain), members, zstd::encode_all(&plain[..], 1).unwrap()] {
        let (layer, unpacked) = apply_bytes(packed.clone(), &small_limits()).unwrap();
        assert_eq!(unpacked.diff_id, expected.diff_id);
        assert_eq!(unpacked.blob, crate::digest::Digest::of(&packed).as_str());
        assert_eq!(layer.path("a").metadata().unwrap().len(), 700_000);
        for cut in [packed.len() / 2, packed.len() - 3] {
            let result = apply_bytes(packed[..cut].to_vec(), &small_limits());
            assert!(matches!(result, Err(Fault::Damaged(_))), "cut at {cut}");
        }
    }
}

#[test]
fn whiteouts_take_the_form_of_overlayfs() {
    if !is_root() {
        eprintln!("skipped because opaque folders need root");
        return;
    }
    let mut tar = Tar::new(Vec::new());
    file(&mut tar, "d/.wh.gone", b"");
    file(&mut tar, "own", b"own");
    file(&mut tar, ".wh.own", b"");
    file(&mut tar, "opaque/.wh..wh..opq", b"");
    file(&mut tar, "opaque/new", b"new");
    file(&mut tar, ".wh.replaced", b"");
    folder(&mut tar, "replaced");
    file(&mut tar, ".wh.implied", b"");
    file(&mut tar, "implied/file", b"");
    folder(&mut tar, "kept");
    file(&mut tar, ".wh.kept", b"");
    file(&mut tar, ".wh..wh.plnk/x", b"");
    file(&mut tar, ".wh..wh.aufs", b"");
    let (layer, _) = apply(tar).unwrap();
    let gone = layer.path("d/gone").symlink_metadata().unwrap();
    assert!(gone.file_type().is_char_device());
    assert_eq!(gone.rdev(), 0);
    assert_eq!(layer.read("own"), "own");
    assert_eq!(layer.read("opaque/new"), "new");
    for name in ["opaque", "replaced", "implied", "kept"] {
        let value = xattr::get(layer.path(name), "trusted.overlay.opaque").unwrap();
        assert_eq!(value.as_deref(), Some(&b"y"[..]), "{name}");
    }
    assert_eq!(xattr::get(layer.path("d"), "trusted.overlay.opaque").unwrap(), None);
    assert!(!layer.path(".wh..wh.aufs").exists());
}

#[test]
fn whiteouts_of_no_name_are_refused() {
    for name in [&b".wh."[..], b".wh..", b"a/.wh..."] {
        let mut tar = Tar::new(Vec::new());
        raw(&mut tar, header(EntryType::Regular, 0), name, b"");
        assert!(refusal(tar).contains("whiteout of no name"));
    }
}

#[test]
fn attributes_are_kept_left_out_or_refused() {
    if !is_root() {
        eprintln!("skipped because file capabilities need root");
        return;
    }
    // Permitted: DAC_OVERRIDE and FOWNER, whose byte is a newline.
    let capability = [1, 0, 0, 2, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut tar = Tar::new(Vec::new());
    tar.append_pax_extensions([
        ("SCHILY.xattr.user.note", &b"a\nb"[..]),
        ("SCHILY.xattr.security.capability", &capability),
        ("SCHILY.xattr.security.selinux", b"x"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
    ])
    .unwrap();
    file(&mut tar, "tool", b"x");
    tar.append_pax_extensions([("SCHILY.xattr.user.note", &b"folder"[..])]).unwrap();
    folder(&mut tar, "d");
    let (layer, unpacked) = apply(tar).unwrap();
    assert_eq!(xattr::get(layer.path("tool"), "security.capability").unwrap().unwrap(), capability);
    assert_eq!(unpacked.applied.xattrs, 2);
    // Not every disk takes attributes of users.
    if let Some(note) = xattr::get(layer.path("tool"), "user.note").unwrap() {
        assert_eq!(note, b"a\nb");
        assert_eq!(xattr::get(layer.path("d"), "user.note").unwrap().unwrap(), b"folder");
    }
    let mut tar = Tar::new(Vec::new());
    tar.append_pax_extensions([("SCHILY.xattr.trusted.overlay.redirect", &b"/etc"[..])]).unwrap();
    folder(&mut tar, "d");
    assert!(refusal(tar).contains("trusted.overlay.redirect"));
}

#[test]
fn nothing_leaves_the_layer() {
    for path in [&b"../outside/x"[..], b"a/../../outside/x", b"/../outside/x", b".."] {
        let mut tar = Tar::new(Vec::new());
        raw(&mut tar, header(EntryType::Regular, 1), path, b"x");
        assert!(refusal(tar).contains("`..`"));
    }
    // Through a link that leads out: refused where the target is not in the layer.
    for target in ["../outside", "/outside", "/etc", "../../../../../../etc"] {
        let mut tar = Tar::new(Vec::new());
        symlink(&mut tar, "out", target);
        file(&mut tar, "out/x", b"x");
        assert!(refusal(tar).contains("leads nowhere"), "{target}");
    }
    // Through a link to `..`, which in the layer's root is the root itself.
    let mut tar = Tar::new(Vec::new());
    symlink(&mut tar, "up", "..");
    file(&mut tar, "up/outside/x", b"x");
    let (layer, _) = apply(tar).unwrap();
    assert_eq!(layer.read("outside/x"), "x");
    // A hard link out of the layer, and through a link out of it.
    let mut tar = Tar::new(Vec::new());
    raw_link(&mut tar, b"passwd", b"../../../../etc/passwd");
    assert!(refusal(tar).contains("`..`"));
    let mut tar = Tar::new(Vec::new());
    hard_link(&mut tar, "passwd", "/etc/passwd");
    assert!(refusal(tar).contains("no file of this layer"));
    let mut tar = Tar::new(Vec::new());
    symlink(&mut tar, "etc", "/etc");
    hard_link(&mut tar, "passwd", "etc/passwd");
    assert!(matches!(apply(tar), Err(Fault::Refused { .. })));
    // A file in the place of a link that leads out replaces the link.
    let mut tar = Tar::new(Vec::new());
    symlink(&mut tar, "x", "../outside/x");
    file(&mut tar, "x", b"mine");
    let (layer, _) = apply(tar).unwrap();
    assert!(layer.path("x").symlink_metadata().unwrap().is_file());
}

fn raw_link(tar: &mut Tar, path: &[u8], target: &[u8]) {
    let mut entry = header(EntryType::Link, 0);
    entry.as_gnu_mut().unwrap().linkname[..target.len()].copy_from_slice(target);
    raw(tar, entry, path, b"");
}

#[test]
fn links_of_the_layer_are_followed_within_it() {
    let mut tar = Tar::new(Vec::new());
    folder(&mut tar, "usr/lib");
    symlink(&mut tar, "lib", "usr/lib");
    symlink(&mut tar, "abs", "/usr/lib");
    file(&mut tar, "lib/a", b"a");
    file(&mut tar, "abs/b", b"b");
    hard_link(&mut tar, "abs/c", "lib/a");
    let (layer, _) = apply(tar).unwrap();
    assert_eq!(layer.read("usr/lib/a") + &layer.read("usr/lib/b") + &layer.read("usr/lib/c"), "aba");
    assert!(layer.path("lib").symlink_metadata().unwrap().is_symlink());
}

#[test]
fn links_do_not_lead_deeper_than_paths_may() {
    let mut tar = Tar::new(Vec::new());
    let path = vec!["d"; 100].join("/");
    folder(&mut tar, &path);
    symlink(&mut tar, "far", &path);
    file(&mut tar, &format!("far/{path}/x"), b"x");
    assert!(refusal(tar).contains("folders deep"));
}

#[test]
fn later_entries_replace_earlier_ones() {
    let mut tar = Tar::new(Vec::new());
    file(&mut tar, "a", b"first");
    file(&mut tar, "a", b"second");
    folder(&mut tar, "b");
    file(&mut tar, "b/x", b"x");
    file(&mut tar, "b", b"file");
    file(&mut tar, "c", b"file");
    folder(&mut tar, "c");
    file(&mut tar, "c/x", b"x");
    symlink(&mut tar, "d", "c");
    folder(&mut tar, "d");
    file(&mut tar, "d/y", b"y");
    folder(&mut tar, "e");
    file(&mut tar, "e/x", b"x");
    symlink(&mut tar, "e", "c");
    file(&mut tar, "e/z", b"z");
    let (layer, _) = apply(tar).unwrap();
    assert_eq!(layer.read("a") + &layer.read("b") + &layer.read("c/x"), "secondfilex");
    assert!(layer.path("d").symlink_metadata().unwrap().is_dir());
    assert!(!layer.path("c/y").exists());
    assert_eq!(layer.read("c/z"), "z");
}

#[test]
fn a_file_cannot_hold_files() {
    let mut tar = Tar::new(Vec::new());
    file(&mut tar, "a", b"");
    file(&mut tar, "a/b/c", b"");
    assert!(refusal(tar).contains("parent folder is a file"));
}

#[test]
fn devices_are_left_out_and_pipes_kept() {
    let mut tar = Tar::new(Vec::new());
    for (kind, name) in [(EntryType::Char, "null"), (EntryType::Block, "disk"), (EntryType::Fifo, "pipe")] {
        let mut entry = header(kind, 0);
        entry.set_device_major(0).unwrap();
        entry.set_device_minor(0).unwrap();
        tar.append_data(&mut entry, name, &[][..]).unwrap();
    }
    let (layer, unpacked) = apply(tar).unwrap();
    assert_eq!(unpacked.applied.devices, 2);
    assert!(layer.path("pipe").metadata().unwrap().file_type().is_fifo());
    assert!(!layer.path("null").exists() && !layer.path("disk").exists());
}

#[test]
fn long_names_are_read_and_longer_ones_refused() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let mut tar = Tar::new(Vec::new());
    file(&mut tar, &long, b"gnu");
    tar.append_pax_extensions([("path", format!("p{long}").as_bytes()), ("mtime", b"5.5")]).unwrap();
    file(&mut tar, "short", b"pax");
    symlink(&mut tar, "link", &"t".repeat(300));
    let (layer, _) = apply(tar).unwrap();
    assert_eq!(layer.read(&long) + &layer.read(&format!("p{long}")), "gnupax");
    assert_eq!(layer.path(&format!("p{long}")).metadata().unwrap().mtime_nsec(), 500_000_000);
    assert_eq!(std::fs::read_link(layer.path("link")).unwrap().as_os_str().len(), 300);

    let mut tar = Tar::new(Vec::new());
    file(&mut tar, &vec!["x".repeat(200); 30].join("/"), b"");
    assert!(refusal(tar).contains("more than 4096"));
    let mut tar = Tar::new(Vec::new());
    file(&mut tar, &"x".repeat(256), b"");
    assert!(refusal(tar).contains("more than 255"));
    let mut tar = Tar::new(Vec::new());
    file(&mut tar, &vec!["x"; 200].join("/"), b"");
    assert!(refusal(tar).contains("folders deep"));
}

#[test]
fn claims_of_size_are_bounded() {
    // A long name that claims 8 GiB.
    let mut tar = Tar::new(Vec::new());
    raw(&mut tar, header(EntryType::GNULongName, 8 << 30), b"././@LongLink", b"x");
    assert!(refusal(tar).contains("extension headers of more than"));
    // A file that claims more than a layer may hold.
    let mut tar = Tar::new(Vec::new());
    raw(&mut tar, header(EntryType::Regular, 1 << 40), b"big", b"x");
    assert!(refusal(tar).contains("more than 1048576"));
    // A file that claims more than is there.
    let mut tar = Tar::new(Vec::new());
    raw(&mut tar, header(EntryType::Regular, 100_000), b"cut", b"x");
    assert!(refusal(tar).contains("cut off"));
    // Small compressed, large unpacked.
    let bomb = zstd::encode_all(std::io::Read::take(std::io::repeat(0), 64 << 20), 1).unwrap();
    let error = apply_bytes(bomb, &small_limits()).err().unwrap();
    assert!(matches!(&error, Fault::Damaged(message) if message.contains("unpacks to more")), "{error:?}");
    // Many entries.
    let mut tar = Tar::new(Vec::new());
    for number in 0..1001 {
        file(&mut tar, &format!("{number}"), b"");
    }
    assert!(refusal(tar).contains("more than 1000 entries"));
    // An owner that the kernel takes as "leave it".
    let mut tar = Tar::new(Vec::new());
    let mut entry = header(EntryType::Regular, 0);
    entry.set_uid(u64::from(u32::MAX));
    raw(&mut tar, entry, b"x", b"");
    assert!(refusal(tar).contains("is no id"));
}

#[test]
fn what_is_no_tar_is_told() {
    let result = apply_bytes(vec![b'x'; 2000], &small_limits());
    assert!(matches!(&result, Err(Fault::Damaged(message)) if message.contains("no tar archive")));
    let (_, empty) = apply_bytes(vec![0; 1024], &small_limits()).unwrap();
    assert_eq!(empty.applied.entries, 0);
}

#[test]
fn sparse_files_stay_sparse() {
    // Format 1.0: the map comes before the data.
    let mut data = b"1\n400000\n512\n".to_vec();
    data.resize(512, 0);
    data.extend([b'z'; 512]);
    let mut tar = Tar::new(Vec::new());
    tar.append_pax_extensions([
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"new"),
        ("GNU.sparse.realsize", b"500000"),
    ])
    .unwrap();
    file(&mut tar, "GNUSparseFile.0/new", &data);
    // Format 0.1: the map is a record.
    tar.append_pax_extensions([("GNU.sparse.size", &b"9000"[..]), ("GNU.sparse.map", b"0,512,8000,512")]).unwrap();
    file(&mut tar, "middle", &[b'm'; 1024]);
    // The old format: the map is in the header.
    let mut old = header(EntryType::GNUSparse, 512);
    let gnu = old.as_gnu_mut().unwrap();
    gnu.sparse[0].offset.copy_from_slice(b"00000010000\0");
    gnu.sparse[0].numbytes.copy_from_slice(b"00000001000\0");
    gnu.realsize.copy_from_slice(b"00000020000\0");
    raw(&mut tar, old, b"old", &[b'o'; 512]);
    file(&mut tar, "after", b"after");
    let (layer, _) = apply(tar).unwrap();
    let new = std::fs::read(layer.path("new")).unwrap();
    assert_eq!(new.len(), 500_000);
    assert_eq!((new[0], new[400_000], new[400_511], new[400_512]), (0, b'z', b'z', 0));
    assert!(layer.path("new").metadata().unwrap().blocks() < 200);
    let middle = std::fs::read(layer.path("middle")).unwrap();
    assert_eq!((middle.len(), middle[0], middle[512], middle[8000], middle[8999]), (9000, b'm', 0, b'm', 0));
    let old = std::fs::read(layer.path("old")).unwrap();
    assert_eq!((old.len(), old[0], old[4096], old[4608]), (8192, 0, b'o', 0));
    assert_eq!(layer.read("after"), "after");

    let mut tar = Tar::new(Vec::new());
    tar.append_pax_extensions([("GNU.sparse.size", &b"100"[..]), ("GNU.sparse.map", b"0,512")]).unwrap();
    file(&mut tar, "lies", &[b'm'; 512]);
    assert!(refusal(tar).contains("past its end"));
}

#[test]
fn a_raised_flag_ends_the_work() {
    let mut tar = Tar::new(Vec::new());
    file(&mut tar, "a", b"");
    let place = tempfile::tempdir().unwrap();
    let into = std::fs::File::open(place.path()).unwrap();
    let blob = Box::new(Cursor::new(tar.into_inner().unwrap()));
    let result = unpack(blob, into.into(), &small_limits(), &AtomicBool::new(true), &|_| {});
    assert!(result.is_err());
}
