//! Pulls from a registry made in the test, which can misbehave, and from Debian's docker-registry.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agentd_api::message::Progress;
use agentd_images::{ImageError, Settings, Store, quiet};
use common::registry::{Manners, Registry};
use common::{Packing, TestImage, architecture, counts, digest, noise, remember, settings, tar};

fn large() -> TestImage {
    TestImage::new(&[(tar(&[("data", &noise(3 << 20, 1))]), Packing::Gzip)])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_pulled_once_and_described() {
    let registry = Registry::start(Manners::default()).await;
    let image = TestImage::with(
        &[
            (tar(&[("base", b"1"), ("both", b"lower")]), Packing::Gzip),
            (tar(&[("both", b"upper")]), Packing::Zstd),
            (tar(&[("top", b"3")]), Packing::Plain),
        ],
        architecture(),
        false,
    );
    let reference = registry.publish("team/app", "v1", &image);
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path(), settings()).unwrap();
    let (sink, seen) = remember();
    let pulled = store.pull(&reference, false, sink).await.unwrap();
    assert_eq!(pulled.reference, reference);
    assert_eq!(pulled.digest, image.digest());
    assert_eq!(pulled.config.entrypoint, ["/bin/run"]);
    assert_eq!(pulled.config.cmd, ["a", "b"]);
    assert_eq!((pulled.config.user.as_str(), pulled.config.workdir.as_str()), ("7:8", "/w"));
    assert_eq!(pulled.config.exposed_ports, ["80/tcp"]);
    assert_eq!(pulled.config.stop_signal.as_deref(), Some("SIGINT"));
    let found: Vec<bool> = pulled.layers.iter().map(|layer| layer.join("top").exists()).collect();
    assert_eq!(found, [true, false, false], "the topmost layer comes first");
    assert_eq!(std::fs::read(pulled.layers[1].join("both")).unwrap(), b"upper");
    {
        let seen = seen.lock().unwrap();
        assert!(matches!(&seen[0], Progress::Resolved { layers: 3, .. }), "{seen:?}");
        assert_eq!(seen.iter().filter(|line| matches!(line, Progress::Unpacked { .. })).count(), 3);
        assert!(matches!(seen.last(), Some(Progress::Done { image }) if image.reference == reference));
    }
    assert_eq!(counts(root.path()), (1, 3, 0, 0), "nothing is left of blobs");
    // Again, without and with force: the second asks the registry, but fetches no layer.
    let asked = registry.manifest_requests.load(Ordering::Relaxed);
    assert_eq!(store.pull(&reference, false, quiet()).await.unwrap(), pulled);
    assert_eq!(registry.manifest_requests.load(Ordering::Relaxed), asked);
    store.pull(&reference, true, quiet()).await.unwrap();
    assert_eq!(registry.manifest_requests.load(Ordering::Relaxed), asked + 1);
    assert_eq!(registry.blob_requests(&digest(&image.layers[0].1)).len(), 1);
    // By digest, and after the store is opened again.
    let by_digest = format!("{}/team/app@{}", registry.host, image.digest());
    assert_eq!(store.pull(&by_digest, false, quiet()).await.unwrap().digest, image.digest());
    drop(store);
    let store = Store::open(root.path(), settings()).unwrap();
    assert_eq!(store.image(&reference).unwrap().layers, pulled.layers);
    assert_eq!(store.list().len(), 2);
}

#[tokio::test]
async fn docker_manifests_and_indexes_are_read() {
    let registry = Registry::start(Manners::default()).await;
    let image = TestImage::with(&[(tar(&[("a", b"a")]), Packing::Gzip)], architecture(), true);
    registry.publish("app", "one", &image);
    let index = serde_json::json!({"schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json",
        "manifests": [
            {"mediaType": common::DOCKER_MANIFEST, "digest": digest(b"other"), "size": 5,
             "platform": {"os": "linux", "architecture": "s390x"}},
            {"mediaType": common::DOCKER_MANIFEST, "digest": image.digest(), "size": image.manifest.len(),
             "platform": {"os": "linux", "architecture": architecture()}}]});
    registry.document("app", "multi", common::OCI_INDEX, serde_json::to_vec(&index).unwrap());
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path(), Settings { keep_blobs: true, ..settings() }).unwrap();
    let pulled = store.pull(&format!("{}/app:multi", registry.host), false, quiet()).await.unwrap();
    assert_eq!(pulled.digest, image.digest());
    assert_eq!(counts(root.path()), (1, 1, 3, 0), "manifest, configuration and layer are kept");
    store.remove(&pulled.reference).await.unwrap();
    assert_eq!(counts(root.path()), (0, 0, 0, 0));

    let foreign = TestImage::with(&[(tar(&[("a", b"a")]), Packing::Gzip)], "s390x", false);
    let reference = registry.publish("app", "foreign", &foreign);
    let error = store.pull(&reference, false, quiet()).await.unwrap_err().to_string();
    assert!(error.contains("linux/s390x") && error.contains(architecture()), "{error}");
}

#[tokio::test]
async fn a_token_is_got_with_credentials() {
    // user:secret
    let registry = Registry::start(Manners { login: Some("dXNlcjpzZWNyZXQ=".into()), ..Manners::default() }).await;
    let reference = registry.publish("app", "v1", &TestImage::small("x"));
    let folder = tempfile::tempdir().unwrap();
    let auth = folder.path().join("auth.json");
    let root = folder.path().join("store");
    let store = Store::open(&root, Settings { auth_files: vec![auth.clone()], ..settings() }).unwrap();
    let (sink, seen) = remember();
    let error = store.pull(&reference, false, sink).await.unwrap_err();
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&registry.host) && text.contains("auth.json") && !text.contains('\n'), "{text}");
    assert!(matches!(seen.lock().unwrap().last(), Some(Progress::Failed { .. })));
    let entry = serde_json::json!({"auths": {&registry.host: {"auth": "dXNlcjpzZWNyZXQ="}}});
    std::fs::write(&auth, entry.to_string()).unwrap();
    store.pull(&reference, false, quiet()).await.unwrap();
}

#[tokio::test]
async fn a_missing_image_is_told() {
    let registry = Registry::start(Manners::default()).await;
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path(), settings()).unwrap();
    let reference = format!("{}/nothing:here", registry.host);
    let error = store.pull(&reference, false, quiet()).await.unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
    let closed = store.pull("127.0.0.1:1/x", false, quiet()).await.unwrap_err();
    assert!(matches!(closed, ImageError::Registry { .. }), "{closed}");
    assert!(store.pull("/a/path", false, quiet()).await.is_err());
}

#[tokio::test]
async fn what_is_damaged_on_the_way_is_refused() {
    let registry = Registry::start(Manners { corrupt: true, ..Manners::default() }).await;
    let image = large();
    let reference = registry.publish("app", "v1", &image);
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path(), settings()).unwrap();
    let error = store.pull(&reference, false, quiet()).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ImageError::Digest { .. }), "{text}");
    assert!(text.contains(&digest(&image.layers[0].1)) && text.contains(&registry.host), "{text}");
    assert_eq!(counts(root.path()), (0, 0, 0, 0));
    assert!(store.image(&reference).is_none());
}

#[tokio::test]
async fn wrong_digests_of_documents_and_layers_are_refused() {
    let registry = Registry::start(Manners::default()).await;
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path(), settings()).unwrap();
    // A manifest that is not the one asked for by digest.
    let (image, other) = (TestImage::small("x"), TestImage::small("y"));
    registry.publish("app", "v1", &image);
    registry.document("app", &image.digest(), common::OCI_MANIFEST, other.manifest.clone());
    let reference = format!("{}/app@{}", registry.host, image.digest());
    let error = store.pull(&reference, false, quiet()).await.unwrap_err();
    assert!(matches!(&error, ImageError::Digest { what, .. } if what.contains("manifest")), "{error}");
    // A configuration of the right length and other content.
    let reference = registry.publish("config", "v1", &image);
    let mut forged = image.config.clone();
    forged[3] ^= 1;
    registry.forge(&digest(&image.config), forged);
    let error = store.pull(&reference, false, quiet()).await.unwrap_err();
    assert!(matches!(&error, ImageError::Digest { .. } | ImageError::Truncated { .. }), "{error}");
    // A layer that is whole, but not the one that the configuration promises.
    let mut lying = TestImage::small("z");
    let config = String::from_utf8(lying.config.clone()).unwrap();
    lying.config = config.replace(&digest(&lying.layers[0].0), &digest(b"else")).into_bytes();
    let manifest = String::from_utf8(lying.manifest.clone()).unwrap();
    lying.manifest = manifest.replace(&digest(config.as_bytes()), &digest(&lying.config)).into_bytes();
    let reference = registry.publish("lying", "v1", &lying);
    let error = store.pull(&reference, false, quiet()).await.unwrap_err();
    assert!(matches!(&error, ImageError::Digest { what, .. } if what.contains("uncompressed")), "{error}");
    assert_eq!(counts(root.path()), (0, 0, 0, 0));
}

#[tokio::test]
async fn a_blob_that_breaks_off_is_resumed() {
    let manners = Manners { cut_after: Some(1_200_000), cuts: AtomicUsize::new(2), ..Manners::default() };
    let registry = Registry::start(manners).await;
    let image = large();
    let reference = registry.publish("app", "v1", &image);
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path(), settings()).unwrap();
    store.pull(&reference, false, quiet()).await.unwrap();
    let asked = registry.blob_requests(&digest(&image.layers[0].1));
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(asked[1].as_deref().is_some_and(|range| range != "bytes=0-"), "{asked:?}");
}

#[tokio::test]
async fn a_pull_that_failed_is_resumed_by_the_next() {
    for (no_range, spoil) in [(false, false), (true, false), (false, true)] {
        let manners = Manners { cut_after: Some(1_200_000), cuts: AtomicUsize::new(1), no_range, ..Manners::default() };
        let registry = Registry::start(manners).await;
        let image = large();
        let reference = registry.publish("app", "v1", &image);
        let root = tempfile::tempdir().unwrap();
        let no_retries = || Settings { retries: 0, ..settings() };
        let store = Store::open(root.path(), no_retries()).unwrap();
        let error = store.pull(&reference, false, quiet()).await.unwrap_err();
        assert!(matches!(error, ImageError::Truncated { received: 1_000_000.., .. }), "{error}");
        assert_eq!(counts(root.path()), (0, 0, 0, 1), "the part stays");
        drop(store);
        let part = std::fs::read_dir(root.path().join("tmp")).unwrap().next().unwrap().unwrap().path();
        if spoil {
            let mut bytes = std::fs::read(&part).unwrap();
            bytes[1000] ^= 1;
            std::fs::write(&part, bytes).unwrap();
        }
        let store = Store::open(root.path(), no_retries()).unwrap();
        store.pull(&reference, false, quiet()).await.unwrap();
        assert_eq!(counts(root.path()), (1, 1, 0, 0));
        let asked = registry.blob_requests(&digest(&image.layers[0].1));
        assert_ne!(asked[1].as_deref(), Some("bytes=0-"), "{asked:?}");
        assert_eq!(asked.len(), if spoil { 3 } else { 2 }, "{asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_pulls_fetch_a_layer_once() {
    let slow = Some(Duration::from_millis(5));
    let registry = Registry::start(Manners { slow, ..Manners::default() }).await;
    let image = large();
    let shared = image.layers[0].0.clone();
    let other = TestImage::new(&[(shared, Packing::Gzip), (tar(&[("more", b"more")]), Packing::Gzip)]);
    let references = [registry.publish("app", "v1", &image), registry.publish("other", "v1", &other)];
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path(), settings()).unwrap();
    let mut pulls = Vec::new();
    for number in 0..6 {
        let (store, reference) = (store.clone(), references[number % 2].clone());
        let (sink, seen) = remember();
        pulls.push((tokio::spawn(async move { store.pull(&reference, false, sink).await }), seen));
    }
    for (pull, seen) in pulls {
        pull.await.unwrap().unwrap();
        let seen = seen.lock().unwrap();
        assert!(seen.iter().any(|line| matches!(line, Progress::Blob { .. })), "all see progress: {seen:?}");
    }
    assert_eq!(registry.blob_requests(&digest(&image.layers[0].1)).len(), 1);
    assert_eq!(counts(root.path()), (2, 2, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_pull_is_taken_over() {
    let slow = Some(Duration::from_millis(20));
    let registry = Registry::start(Manners { slow, ..Manners::default() }).await;
    let image = large();
    let reference = registry.publish("app", "v1", &image);
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path(), settings()).unwrap();
    let first = tokio::spawn({
        let (store, reference) = (store.clone(), reference.clone());
        async move { store.pull(&reference, false, quiet()).await }
    });
    // Until a part of the blob is on disk.
    while !std::fs::read_dir(root.path().join("tmp")).unwrap().any(|entry| entry.unwrap().metadata().unwrap().len() > 0)
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let second = tokio::spawn({
        let (store, reference) = (store.clone(), reference.clone());
        async move { store.pull(&reference, false, quiet()).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    first.abort();
    second.await.unwrap().unwrap();
    assert_eq!(counts(root.path()), (1, 1, 0, 0));
    let asked = registry.blob_requests(&digest(&image.layers[0].1));
    assert!(asked.len() == 2 && asked[1].as_deref() != Some("bytes=0-"), "{asked:?}");
}

#[tokio::test]
async fn mirrors_are_asked_first_and_may_fail() {
    let image = TestImage::small("x");
    let origin = Registry::start(Manners::default()).await;
    let reference = origin.publish("team/app", "v1", &image);
    let empty = Registry::start(Manners::default()).await;
    let broken = Registry::start(Manners { corrupt: true, ..Manners::default() }).await;
    broken.publish("team/app", "v1", &image);
    let root = tempfile::tempdir().unwrap();
    let mut with_mirrors = settings();
    with_mirrors.mirrors.insert(origin.host.clone(), vec![empty.host.clone(), format!("http://{}", broken.host)]);
    let store = Store::open(root.path(), with_mirrors).unwrap();
    let pulled = store.pull(&reference, false, quiet()).await.unwrap();
    assert_eq!(pulled.reference, reference, "the image keeps the name of its origin");
    assert_eq!(empty.manifest_requests.load(Ordering::Relaxed), 1);
    assert_eq!(broken.blob_requests(&digest(&image.layers[0].1)).len(), 1);
    assert_eq!(origin.blob_requests(&digest(&image.layers[0].1)).len(), 1);
}

#[tokio::test]
async fn a_tag_that_moves_keeps_what_is_held() {
    let registry = Registry::start(Manners::default()).await;
    let (old, new) = (TestImage::small("old"), TestImage::small("new"));
    let reference = registry.publish("app", "v1", &old);
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path(), settings()).unwrap();
    let wanted =
        agentd_api::pod::Image { kind: agentd_api::pod::ImageKind::Docker, id: reference.clone(), force_pull: true };
    let first = store.obtain(&wanted, "instance-a", quiet()).await.unwrap();
    registry.publish("app", "v1", &new);
    let second = store.obtain(&wanted, "instance-b", quiet()).await.unwrap();
    assert_ne!(first.digest, second.digest);
    assert!(first.layers[0].join("file").exists());
    // As after a restart: the holder finds its image by digest.
    drop(store);
    let store = Store::open(root.path(), settings()).unwrap();
    assert_eq!(store.hold(&first.digest, "instance-a").unwrap().layers, first.layers);
    store.gc(1.0).await.unwrap();
    assert!(first.layers[0].join("file").exists() && !second.layers[0].exists());
    store.release("instance-a");
    store.gc(1.0).await.unwrap();
    assert_eq!(counts(root.path()), (0, 0, 0, 0));
}

/// The real thing: skopeo pushes an OCI layout to Debian's docker-registry, and the store pulls it.
#[tokio::test]
async fn docker_registry_and_skopeo() {
    let installed = |tool: &str| {
        std::env::var_os("PATH")
            .is_some_and(|paths| std::env::split_paths(&paths).any(|folder| folder.join(tool).exists()))
    };
    if !installed("docker-registry") || !installed("skopeo") {
        eprintln!("skipped because docker-registry or skopeo is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = folder.path().join("config.yml");
    std::fs::write(
        &config,
        format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
            folder.path().join("registry").display()
        ),
    )
    .unwrap();
    let mut server = tokio::process::Command::new("docker-registry");
    server.arg("serve").arg(&config).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut server = server.kill_on_drop(true).spawn().unwrap();
    for _ in 0..200 {
        if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let image = TestImage::new(&[
        (tar(&[("base", &noise(1 << 20, 3))]), Packing::Gzip),
        (tar(&[("top", b"top")]), Packing::Gzip),
    ]);
    let layout = folder.path().join("layout");
    common::write_layout(&layout, &[(&image, common::tagged("v1"))]);
    let reference = format!("127.0.0.1:{port}/team/app:v1");
    let pushed = tokio::process::Command::new("skopeo")
        .args(["copy", "--insecure-policy", "--preserve-digests", "--dest-tls-verify=false"])
        .arg(format!("oci:{}:v1", layout.display()))
        .arg(format!("docker://{reference}"))
        .output()
        .await
        .unwrap();
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    let store = Store::open(&folder.path().join("store"), settings()).unwrap();
    let pulled = store.pull(&reference, false, quiet()).await.unwrap();
    assert_eq!(pulled.digest, image.digest());
    assert_eq!(std::fs::read(pulled.layers[0].join("top")).unwrap(), b"top");
    assert_eq!(std::fs::read(pulled.layers[1].join("base")).unwrap(), noise(1 << 20, 3));
    let missing = format!("127.0.0.1:{port}/team/app:v2");
    let error = store.pull(&missing, false, quiet()).await.unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
    // skopeo's own docker-archive, made of the same image, has the same layers.
    let archive = folder.path().join("saved.tar");
    let saved = tokio::process::Command::new("skopeo")
        .args(["copy", "--insecure-policy", "--src-tls-verify=false"])
        .arg(format!("docker://{reference}"))
        .arg(format!("docker-archive:{}:team/app:saved", archive.display()))
        .output()
        .await
        .unwrap();
    assert!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
    let imported = store.import(&archive, None, quiet()).await.unwrap();
    assert_eq!(imported.reference, "docker.io/team/app:saved");
    assert_eq!(imported.layers, pulled.layers);
    server.kill().await.unwrap();
}

/// A registry with a private authority: refused without it, pulled from with it.
#[tokio::test]
async fn a_private_authority_is_trusted_when_set() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let script = "set -e
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout leaf.key -out leaf.csr -subj /CN=leaf
        printf 'subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n' > ext
        openssl x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out leaf.pem";
    let made = std::process::Command::new("sh").args(["-c", script]).current_dir(folder.path()).output().unwrap();
    let has_registry = std::env::var_os("PATH")
        .is_some_and(|paths| std::env::split_paths(&paths).any(|folder| folder.join("docker-registry").exists()));
    if !made.status.success() || !has_registry {
        eprintln!("skipped because openssl or docker-registry is not installed");
        return;
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
         http: {{addr: '127.0.0.1:{port}', tls: {{certificate: {}, key: {}}}}}\n",
        path("registry").display(),
        path("leaf.pem").display(),
        path("leaf.key").display()
    );
    std::fs::write(path("config.yml"), config).unwrap();
    let mut server = tokio::process::Command::new("docker-registry");
    server.arg("serve").arg(path("config.yml")).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut server = server.kill_on_drop(true).spawn().unwrap();
    for _ in 0..200 {
        if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let host = format!("127.0.0.1:{port}");
    let mut trusting = settings();
    trusting.certificate_authorities.insert(host.clone(), path("ca.pem"));
    let store = Store::open(&path("trusting"), trusting).unwrap();
    // The registry is empty: that it says so, and nothing of certificates, shows that it is trusted.
    let error = store.pull(&format!("{host}/app"), false, quiet()).await.unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
    let mut other = settings();
    std::fs::copy(path("leaf.pem"), path("other.pem")).unwrap();
    other.certificate_authorities.insert(host.clone(), path("other.pem"));
    let store = Store::open(&path("distrusting"), other).unwrap();
    let error = store.pull(&format!("{host}/app"), false, quiet()).await.unwrap_err();
    assert!(matches!(&error, ImageError::Registry { message, .. } if message.contains("certificate")), "{error}");
    server.kill().await.unwrap();
}
