//! Imports from OCI layouts and archives, and what the store does with images that are there.

mod common;

use std::path::{Path, PathBuf};

use agentd_api::message::Progress;
use agentd_images::{ImageError, Settings, Store, quiet};
use common::{Packing, TestImage, counts, gzip, hex, layout_files, remember, settings, tagged, tar, write_layout};

struct Place {
    folder: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store"), settings()).unwrap();
        Self { folder, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    fn counts(&self) -> (usize, usize, usize, usize) {
        counts(self.store.root())
    }
}

fn two_layers() -> TestImage {
    TestImage::new(&[
        (tar(&[("base", b"base")]), Packing::Gzip),
        (tar(&[("top", b"top"), ("base", b"changed")]), Packing::Plain),
    ])
}

fn packed(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
    tar(&files)
}

#[tokio::test]
async fn one_image_has_the_same_layers_from_every_source() {
    let place = Place::new();
    let image = two_layers();
    write_layout(&place.path("layout"), &[(&image, tagged("v1"))]);
    let archive = place.write("saved.tar", &image.saved("team/app:v1"));
    let compressed = place.write("saved.tar.gz", &gzip(&image.saved("team/app:v2")));
    let zstd = place.write("saved.tar.zst", &zstd::encode_all(&image.saved("team/app:v3")[..], 1).unwrap());
    let named = serde_json::json!({"annotations": {"io.containerd.image.name": "docker.io/team/app:v4"}});
    let oci = place.write("oci.tar", &packed(&layout_files(&[(&image, named)])));

    let (sink, seen) = remember();
    let from_layout = place.store.import(&place.path("layout"), Some("app"), sink).await.unwrap();
    assert_eq!(from_layout.reference, "docker.io/library/app:latest");
    assert_eq!(from_layout.digest, image.digest());
    assert!(
        seen.lock().unwrap().iter().any(|line| matches!(line, Progress::Blob { done, total, .. } if done == total))
    );
    for (path, reference) in [
        (&archive, "docker.io/team/app:v1"),
        (&compressed, "docker.io/team/app:v2"),
        (&zstd, "docker.io/team/app:v3"),
        (&oci, "docker.io/team/app:v4"),
    ] {
        let imported = place.store.import(path, None, quiet()).await.unwrap();
        assert_eq!(imported.reference, reference);
        assert_eq!(imported.layers, from_layout.layers);
    }
    assert_eq!(std::fs::read(from_layout.layers[0].join("base")).unwrap(), b"changed");
    assert_eq!(std::fs::read(from_layout.layers[1].join("base")).unwrap(), b"base");
    assert_eq!(place.counts(), (5, 2, 0, 0));
}

#[tokio::test]
async fn a_layout_is_named_by_its_path() {
    let place = Place::new();
    let (one, two) = (TestImage::small("one"), TestImage::small("two"));
    let layout = place.path("layout");
    write_layout(&layout, &[(&one, tagged("v1")), (&two, tagged("v2"))]);
    let id = format!("{}:v2", layout.display());
    let image = place.store.layout(&id, false, quiet()).await.unwrap();
    assert_eq!((image.reference.as_str(), image.digest), (id.as_str(), two.digest()));
    assert_eq!(place.store.image(&id).unwrap().layers, image.layers);
    // The layout changes: seen with force alone.
    write_layout(&layout, &[(&two, tagged("v1")), (&one, tagged("v2"))]);
    assert_eq!(place.store.layout(&id, false, quiet()).await.unwrap().digest, two.digest());
    assert_eq!(place.store.layout(&id, true, quiet()).await.unwrap().digest, one.digest());
    let error = place.store.layout(&format!("{}:v3", layout.display()), false, quiet()).await.unwrap_err().to_string();
    assert!(error.contains("v3") && error.contains("v1, v2"), "{error}");
    let error = place.store.layout(&layout.display().to_string(), false, quiet()).await.unwrap_err().to_string();
    assert!(error.contains("2 images"), "{error}");
    assert!(place.store.layout("relative", false, quiet()).await.is_err());
    assert!(place.store.layout("/does/not/exist", false, quiet()).await.is_err());
}

#[tokio::test]
async fn archives_of_docker_may_repeat_layers_by_links() {
    let place = Place::new();
    let layer = tar(&[("a", b"a")]);
    let image = TestImage::new(&[
        (layer.clone(), Packing::Plain),
        (tar(&[("b", b"b")]), Packing::Plain),
        (layer.clone(), Packing::Plain),
    ]);
    let list = serde_json::json!([{"Config": format!("{}.json", hex(&image.config)), "RepoTags": null,
        "Layers": ["one/layer.tar", "two/layer.tar", "three/layer.tar"]}]);
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |kind, name: &str, link: &str, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        if link.is_empty() {
            builder.append_data(&mut header, name, data).unwrap();
        } else {
            builder.append_link(&mut header, name, link).unwrap();
        }
    };
    add(tar::EntryType::Regular, &format!("{}.json", hex(&image.config)), "", &image.config);
    add(tar::EntryType::Regular, "one/layer.tar", "", &layer);
    add(tar::EntryType::Regular, "two/layer.tar", "", &image.layers[1].0);
    add(tar::EntryType::Symlink, "three/layer.tar", "../one/layer.tar", b"");
    add(tar::EntryType::Regular, "manifest.json", "", list.to_string().as_bytes());
    let archive = place.write("saved.tar", &builder.into_inner().unwrap());
    let error = place.store.import(&archive, None, quiet()).await.unwrap_err().to_string();
    assert!(error.contains("give a reference"), "{error}");
    let imported = place.store.import(&archive, Some("x"), quiet()).await.unwrap();
    assert_eq!(imported.layers.len(), 2, "the repeated layer counts once, at its upper place");
    assert!(imported.layers[0].join("a").exists() && imported.layers[1].join("b").exists());
}

#[tokio::test]
async fn sources_that_hold_no_image_are_told() {
    let place = Place::new();
    let image = two_layers();
    let saved = image.saved("app");
    let mut forged = image.saved("app");
    // One byte of the content of the upper layer.
    let at = forged.windows(7).position(|window| window == b"changed").unwrap();
    forged[at] ^= 1;
    for (name, bytes, expected) in [
        ("empty", Vec::new(), "neither manifest.json nor oci-layout"),
        ("text", vec![b'x'; 4096], "no readable tar"),
        ("cut", saved[..saved.len() / 2].to_vec(), ""),
        ("cut.gz", gzip(&saved)[..200].to_vec(), "damaged"),
        ("other", tar(&[("a", b"b")]), "neither manifest.json nor oci-layout"),
        ("list", tar(&[("manifest.json", b"{}")]), "manifest.json is malformed"),
        ("forged", forged, "should have digest"),
    ] {
        let path = place.write(name, &bytes);
        let error = place.store.import(&path, Some("app"), quiet()).await.unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{name}: {error}");
    }
    assert!(place.store.import(Path::new("/dev/null"), Some("x"), quiet()).await.is_err());
    assert!(place.store.import(&place.path("nowhere"), Some("x"), quiet()).await.is_err());
    // A layer that was good stays for the next try, until it is collected.
    assert_eq!(place.counts(), (0, 1, 0, 0));
    assert_eq!(place.store.gc(1.0).await.unwrap().layers, 1);
    assert_eq!(place.counts(), (0, 0, 0, 0));
}

#[tokio::test]
async fn damaged_layouts_are_refused() {
    let image = two_layers();
    for (part, bytes) in [
        ("manifest", &image.manifest),
        ("configuration", &image.config),
        ("layer", &image.layers[0].1),
        ("layer", &image.layers[1].1),
    ] {
        let place = Place::new();
        let blob = |bytes: &[u8]| place.path("layout").join("blobs/sha256").join(hex(bytes));
        write_layout(&place.path("layout"), &[(&image, tagged("v1"))]);
        let mut damaged = bytes.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        std::fs::write(blob(bytes), damaged).unwrap();
        let error = place.store.import(&place.path("layout"), Some("x"), quiet()).await.unwrap_err();
        assert!(matches!(&error, ImageError::Digest { what, .. } if what.contains(part)), "{error}");
        std::fs::remove_file(blob(bytes)).unwrap();
        let error = place.store.import(&place.path("layout"), Some("x"), quiet()).await.unwrap_err();
        assert!(matches!(&error, ImageError::Source { message, .. } if message.contains("lacks")), "{error}");
        assert_eq!(place.counts().0, 0);
    }
}

#[tokio::test]
async fn a_malicious_layer_leaves_nothing_behind() {
    let place = Place::new();
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..7].copy_from_slice(b"../evil");
    header.set_size(1);
    header.set_cksum();
    builder.append(&header, &b"x"[..]).unwrap();
    let image = TestImage::new(&[(builder.into_inner().unwrap(), Packing::Gzip)]);
    write_layout(&place.path("layout"), &[(&image, tagged("v1"))]);
    let error = place.store.import(&place.path("layout"), Some("evil"), quiet()).await.unwrap_err();
    assert!(matches!(error, ImageError::Layer { .. }), "{error}");
    assert!(error.to_string().contains("../evil"), "{error}");
    assert_eq!(place.counts(), (0, 0, 0, 0));
}

#[tokio::test]
async fn images_in_use_are_neither_removed_nor_collected() {
    let place = Place::new();
    let (one, two) = (TestImage::small("one"), TestImage::small("two"));
    for (image, name) in [(&one, "one"), (&two, "two")] {
        let archive = place.write(name, &image.saved(name));
        place.store.import(&archive, None, quiet()).await.unwrap();
    }
    let held = place.store.hold("one", "instance").unwrap();
    assert!(place.store.list().iter().any(|info| info.in_use && info.digest == held.digest));
    let error = place.store.remove("one").await.unwrap_err();
    assert!(matches!(&error, ImageError::InUse { holder, .. } if holder == "instance"), "{error}");
    assert_eq!(place.store.gc(0.5).await.unwrap().images.len(), 0, "below the watermark");
    let collected = place.store.gc(0.99).await.unwrap();
    assert_eq!((collected.images.as_slice(), collected.layers), (&["docker.io/library/two:latest".to_owned()][..], 1));
    assert!(held.layers[0].join("file").exists());
    assert!(matches!(place.store.hold("two", "x"), Err(ImageError::Unknown { .. })));
    place.store.release("instance");
    place.store.release("instance");
    place.store.remove("one").await.unwrap();
    assert!(matches!(place.store.remove("one").await, Err(ImageError::Unknown { .. })));
    assert_eq!(place.counts(), (0, 0, 0, 0));
}

#[tokio::test]
async fn the_least_recently_used_goes_first() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { high_watermark: 0.5, low_watermark: 0.5, ..settings() };
    let store = Store::open(&folder.path().join("store"), settings).unwrap();
    for name in ["a", "b", "c"] {
        let path = folder.path().join(name);
        std::fs::write(&path, TestImage::small(&name.repeat(10_000)).saved(name)).unwrap();
        store.import(&path, None, quiet()).await.unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    store.hold("a", "x").unwrap();
    store.release("x");
    // 15 000 bytes too many: two images have to go.
    let disk = rustix::fs::statvfs(folder.path()).unwrap();
    let total = ((disk.f_blocks - disk.f_bfree + disk.f_bavail) * disk.f_frsize) as f64;
    let collected = store.gc(0.5 + 15_000.0 / total).await.unwrap();
    assert_eq!(collected.images, ["docker.io/library/b:latest", "docker.io/library/c:latest"]);
    assert!(store.image("a").is_some());
    let used = store.disk_used().unwrap();
    assert!((0.0..=1.0).contains(&used), "{used}");
}

#[tokio::test]
async fn two_names_of_one_image_share_its_layers() {
    let place = Place::new();
    let image = TestImage::small("x");
    let archive = place.write("x", &image.saved("x:1"));
    place.store.import(&archive, None, quiet()).await.unwrap();
    let second = place.store.import(&archive, Some("x:2"), quiet()).await.unwrap();
    place.store.hold("x:1", "instance").unwrap();
    place.store.remove("x:1").await.unwrap();
    assert!(second.layers[0].join("file").exists());
    assert!(matches!(place.store.remove("x:2").await, Err(ImageError::InUse { .. })));
}
