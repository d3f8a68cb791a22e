//! Roots, sandboxes and volumes as detached mounts: what a container would see, and what it must not reach. Needs root.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentd_api::pod::PodSpec;
use agentd_isolators::disk::{Disk, DiskSettings, Enforcement};
use agentd_isolators::mounter::idmap::IdRange;
use agentd_isolators::mounter::overlay::Overlay;
use agentd_isolators::mounter::{Attributes, Mounter};
use agentd_isolators::rootfs::{Rootfs, RootfsSettings};
use agentd_isolators::volumes::{HostPaths, SecretVolume, Volumes};
use agentd_isolators::{ImageRoot, Isolator as _, Launch};
use agentd_launcher::plan::{MountStep, TargetKind};
use rustix::fs::{Mode, OFlags};

/// Whether this process may make mounts; says why the test is passed over when not.
fn privileged() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: mounts can only be made by root");
    }
    root
}

/// Lines of the host's mount table that belong to a test: other tests may mount at the same time.
fn mounts_below(folder: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.contains(folder.to_str().unwrap())).map(str::to_owned).collect()
}

struct Node {
    folder: tempfile::TempDir,
    mounter: Arc<Mounter>,
    disk: Arc<Disk>,
    ids: Option<Arc<IdRange>>,
}

impl Node {
    fn new() -> Self {
        let folder =
            tempfile::Builder::new().prefix(&format!("agentd-test-{}-", std::process::id())).tempdir().unwrap();
        let mounter = Arc::new(Mounter::start(2).unwrap());
        let settings =
            DiskSettings { enforcement: Enforcement::Meter, default_limit: None, folder: folder.path().join("disks") };
        let disk = Arc::new(Disk::new(Arc::clone(&mounter), settings).unwrap());
        let ids = Some(Arc::new(IdRange::new(1 << 20).unwrap()));
        fs::create_dir(folder.path().join("pod")).unwrap();
        Self { folder, mounter, disk, ids }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn rootfs(&self) -> Rootfs {
        let (mounter, disk) = (Arc::clone(&self.mounter), Arc::clone(&self.disk));
        Rootfs::new(mounter, disk, self.ids.clone(), RootfsSettings::default())
    }

    fn volumes(&self, paths: HostPaths) -> Volumes {
        Volumes::new(Arc::clone(&self.mounter), Arc::clone(&self.disk), self.ids.clone(), paths)
    }

    /// Writes a layer: names ending in `/` are folders, contents of `-` whiteouts.
    fn layer(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let layer = self.path(name);
        fs::create_dir_all(&layer).unwrap();
        for (file, content) in files {
            let path = layer.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match *content {
                "-" => rustix::fs::mknodat(
                    rustix::fs::CWD,
                    &path,
                    rustix::fs::FileType::CharacterDevice,
                    Mode::empty(),
                    rustix::fs::makedev(0, 0),
                )
                .unwrap(),
                content => fs::write(&path, content).unwrap(),
            }
        }
        layer
    }

    /// Does what pod-init does with a launch, in one of the mounter's threads, and lets `look` see the result.
    fn assembled<T: Send>(&self, launch: &Launch, look: impl FnOnce(&Path) -> T + Send) -> T {
        self.mounter
            .run(|thread| {
                let place = thread.attach(&launch.fds[launch.plan.root as usize]).unwrap();
                let root = place.path();
                for step in &launch.plan.mounts {
                    if let MountStep::Attach { fd, target, create } = step {
                        let target = root.join(std::str::from_utf8(target).unwrap().trim_start_matches('/'));
                        if !target.exists() {
                            if *create == TargetKind::Directory {
                                fs::create_dir_all(&target).unwrap();
                            } else {
                                fs::create_dir_all(target.parent().unwrap()).unwrap();
                                fs::write(&target, "").unwrap();
                            }
                        }
                        rustix::mount::move_mount(
                            &launch.fds[*fd as usize],
                            "",
                            rustix::fs::CWD,
                            &target,
                            rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
                        )
                        .unwrap();
                    }
                }
                Ok(look(&root))
            })
            .unwrap()
    }
}

fn read(root: &OwnedFd, path: &str) -> Option<String> {
    let file = rustix::fs::openat(root, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = String::new();
    fs::File::from(file).read_to_string(&mut text).unwrap();
    Some(text)
}

fn pod(value: serde_json::Value) -> PodSpec {
    serde_json::from_value(value).unwrap()
}

fn resources() -> serde_json::Value {
    serde_json::json!({"cpus": 0.1, "mem": 32.0, "disk": 0.0, "gpus": 0})
}

#[test]
fn layers_are_stacked_with_whiteouts_and_writes_go_to_the_upper_layer() {
    if !privileged() {
        return;
    }
    let node = Node::new();
    let bottom = node.layer("bottom", &[("etc/a", "bottom"), ("etc/b", "bottom"), ("gone", "x")]);
    let top = node.layer("top", &[("etc/a", "top"), ("gone", "-")]);
    for name in ["upper", "work"] {
        fs::create_dir_all(node.path("writes").join(name)).unwrap();
    }
    let lower = [top, bottom];
    let writes = node.path("writes");
    let root = node
        .mounter
        .run(|thread| {
            let folder = fs::File::open(&writes).unwrap();
            let overlay = Overlay { lower: &lower, writable: Some(folder.as_fd()), volatile: true, idmap: None };
            Ok(thread.overlay(&overlay, Attributes::default()).unwrap())
        })
        .unwrap();
    assert_eq!(read(&root, "etc/a").as_deref(), Some("top"));
    assert_eq!(read(&root, "etc/b").as_deref(), Some("bottom"));
    assert_eq!(read(&root, "gone"), None);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&root, "new", flags, Mode::RUSR).unwrap();
    fs::File::from(file).write_all(b"written").unwrap();
    assert_eq!(fs::read_to_string(node.path("writes/upper/new")).unwrap(), "written");
    assert_eq!(mounts_below(node.folder.path()), Vec::<String>::new());
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains("/proc/fs "), "the scratch folder is visible in the host's mount table");
}

#[test]
fn forty_layers_and_one_read_only_layer() {
    if !privileged() {
        return;
    }
    let node = Node::new();
    let long = "l".repeat(200);
    let layers: Vec<PathBuf> = (0..40)
        .map(|n| node.layer(&format!("{long}/layer-{n}"), &[("shared", &n.to_string()), (&format!("own-{n}"), "here")]))
        .collect();
    let (all, one) = node
        .mounter
        .run(|thread| {
            let all = thread.overlay_readonly(&layers, Attributes::default()).unwrap();
            Ok((all, thread.overlay_readonly(&layers[3..4], Attributes::default()).unwrap()))
        })
        .unwrap();
    assert_eq!(read(&all, "shared").as_deref(), Some("0"));
    assert_eq!(read(&all, "own-39").as_deref(), Some("here"));
    assert_eq!(read(&one, "shared").as_deref(), Some("3"));
    for root in [all, one] {
        let made = rustix::fs::mkdirat(&root, "x", Mode::RWXU);
        assert_eq!(made, Err(rustix::io::Errno::ROFS));
    }
}

#[test]
fn a_panicking_or_failing_closure_leaves_the_threads_usable() {
    if !privileged() {
        return;
    }
    let mounter = Mounter::start(1).unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = mounter.run::<(), _>(|_| panic!("expected by the test"));
    }));
    assert!(panicked.is_err());
    assert_eq!(mounter.run(|_| Ok(7)).unwrap(), 7);
}

#[test]
fn a_root_without_image_has_the_programs_and_no_secret() {
    if !privileged() {
        return;
    }
    let node = Node::new();
    fs::create_dir(node.path("pod/etc")).unwrap();
    fs::write(node.path("pod/etc/hosts"), "127.0.0.1 of-the-pod\n").unwrap();
    let spec = pod(serde_json::json!({"id": "/p", "containers": [
        {"name": "c", "exec": {"command": {"shell": "true"}}, "resources": resources()}]}));
    let mut launch = Launch::default();
    launch.plan.env = vec![b"A=b".to_vec()];
    node.rootfs().build(&spec, 0, 1, ("0123456789ab", &node.path("pod")), None, &mut launch).unwrap();
    assert_eq!(launch.plan.argv, [b"/bin/sh".to_vec(), b"-c".to_vec(), b"true".to_vec()]);
    assert_eq!(launch.plan.cwd, b"/mnt/mesos/sandbox");
    assert_eq!((launch.plan.uid, launch.plan.gid), (0, 0));
    assert!(launch.plan.env.contains(&b"A=b".to_vec()) && launch.plan.env.contains(&b"HOME=/root".to_vec()));
    assert!(launch.fds.len() < 200, "{} descriptors do not fit into one message", launch.fds.len());
    node.assembled(&launch, |root| {
        assert!(root.join("usr/bin/env").exists());
        assert!(root.join("etc/passwd").exists());
        assert_eq!(fs::read_to_string(root.join("etc/hosts")).unwrap(), "127.0.0.1 of-the-pod\n");
        for absent in
            ["etc/shadow", "etc/gshadow", "etc/ssh", "etc/ssl/private", "etc/sudoers", "var/lib", "boot", "work"]
        {
            assert!(!root.join(absent).exists(), "{absent} is visible");
        }
        for empty in ["run", "root", "home", "proc", "sys", "dev", "tmp", "var/tmp", "mnt/mesos/sandbox"] {
            assert_eq!(fs::read_dir(root.join(empty)).unwrap().count(), 0, "{empty} is not empty");
        }
        let written = fs::write(root.join("usr/agentd-test"), "x");
        assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::EROFS));
        let written = fs::write(root.join("etc/passwd"), "x");
        assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::EROFS));
        assert_eq!(fs::metadata(root.join("tmp")).unwrap().permissions().mode() & 0o7777, 0o1777);
        fs::write(root.join("tmp/t"), "x").unwrap();
        fs::write(root.join("mnt/mesos/sandbox/s"), "x").unwrap();
        fs::write(root.join("run/r"), "x").unwrap();
    });
    assert_eq!(fs::read_to_string(node.path("pod/sandbox/c/s")).unwrap(), "x");
    assert!(node.path("pod/upper/c0.1/tmp/t").exists());
    drop(launch);
    // the next attempt starts with an empty layer, the sandbox stays
    let mut launch = Launch::default();
    node.rootfs().build(&spec, 0, 2, ("0123456789ab", &node.path("pod")), None, &mut launch).unwrap();
    assert!(!node.path("pod/upper/c0.1").exists());
    assert!(node.path("pod/upper/c0.2/tmp").exists());
    assert!(node.path("pod/sandbox/c/s").exists());
    assert_eq!(mounts_below(node.folder.path()), Vec::<String>::new());
}

#[test]
fn an_image_gives_user_command_and_environment() {
    if !privileged() {
        return;
    }
    let node = Node::new();
    let bottom = node.layer(
        "bottom",
        &[("etc/passwd", "web:x:33:34::/srv:/bin/sh\n"), ("etc/group", "logs:x:40:web\n"), ("bin/sh", "")],
    );
    let top = node.layer("top", &[("etc/other", "x")]);
    fs::set_permissions(&top, fs::Permissions::from_mode(0o711)).unwrap();
    let image = ImageRoot {
        layers: vec![top, bottom],
        entrypoint: vec!["/entry".to_owned()],
        cmd: vec!["serve".to_owned()],
        env: vec!["PATH=/own".to_owned(), "A=image".to_owned()],
        user: "web".to_owned(),
        workdir: "/srv".to_owned(),
    };
    let mut spec = pod(serde_json::json!({"id": "/p", "containers": [{"name": "c", "resources": resources()}]}));
    let mut launch = Launch::default();
    launch.plan.env = vec![b"A=pod".to_vec()];
    let place = node.path("pod");
    node.rootfs().build(&spec, 0, 1, ("0123456789ab", &place), Some(&image), &mut launch).unwrap();
    assert_eq!(launch.plan.argv, [b"/entry".to_vec(), b"serve".to_vec()]);
    assert_eq!(launch.plan.env, [b"PATH=/own".to_vec(), b"A=pod".to_vec(), b"HOME=/srv".to_vec()]);
    assert_eq!((launch.plan.uid, launch.plan.gid, launch.plan.groups.clone()), (33, 34, vec![40]));
    let sandbox = fs::metadata(node.path("pod/sandbox/c")).unwrap();
    assert_eq!((sandbox.uid(), sandbox.gid()), (33, 34));
    let root = rustix::fs::fstat(&launch.fds[launch.plan.root as usize]).unwrap();
    assert_eq!(root.st_mode & 0o7777, 0o711, "the root's mode is the image's");
    spec.containers[0].user = Some("nobody-such".to_owned());
    let error = node.rootfs().build(&spec, 0, 2, ("0123456789ab", &place), Some(&image), &mut Launch::default());
    assert!(error.unwrap_err().to_string().contains("containers[0].user: user \"nobody-such\""));
}

#[test]
fn a_user_namespace_maps_layers_sandbox_and_volumes() {
    if !privileged() {
        return;
    }
    let node = Node::new();
    let layer = node.layer("layer", &[("etc/passwd", "web:x:33:34::/srv:/bin/sh\n")]);
    let second = node.layer("second", &[("bin/sh", "")]);
    let image = ImageRoot { layers: vec![layer, second], ..ImageRoot::default() };
    let spec = pod(serde_json::json!({"id": "/p", "agentd": {"userNamespace": true},
        "volumes": [{"name": "v"}],
        "containers": [{"name": "c", "user": "web", "exec": {"command": {"argv": ["/bin/x"]}}, "resources": resources(),
            "agentd": {"workdir": "work/dir"},
            "volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "v", "mountPath": "below/v"}]}]}));
    let place = node.path("pod");
    let mut launch = Launch::default();
    if let Err(error) = node.rootfs().build(&spec, 0, 1, ("0123456789ab", &place), Some(&image), &mut launch) {
        assert!(error.to_string().contains("cannot map ids"), "{error}");
        eprintln!("skipped: {error}");
        return;
    }
    let paths = HostPaths::all_but(Vec::new());
    node.volumes(paths).build(&spec, 0, "0123456789ab", &place, &mut launch).unwrap();
    let namespace = launch.plan.user_namespace.unwrap();
    assert!((namespace as usize) < launch.fds.len());
    // on disk the ids are the container's, through the mounts they are the range's
    assert_eq!(fs::metadata(node.path("pod/sandbox/c")).unwrap().uid(), 33);
    // pod-init, as the host's root, could not make these in an idmapped mount
    assert!(node.path("pod/sandbox/c/below/v").is_dir());
    assert_eq!(fs::metadata(node.path("pod/sandbox/c/work/dir")).unwrap().uid(), 33);
    let base = 1 << 20;
    node.assembled(&launch, |root| {
        assert_eq!(fs::metadata(root.join("mnt/mesos/sandbox")).unwrap().uid(), base + 33);
        assert_eq!(fs::metadata(root.join("etc/passwd")).unwrap().uid(), base);
        assert_eq!(fs::metadata(root.join("v")).unwrap().uid(), base);
    });
    let outside = pod(serde_json::json!({"id": "/p", "agentd": {"userNamespace": true}, "containers": [
        {"name": "c", "user": "70000", "exec": {"command": {"argv": ["/bin/x"]}}, "resources": resources()}]}));
    let error = node.rootfs().build(&outside, 0, 1, ("0123456789ab", &place), Some(&image), &mut Launch::default());
    assert!(error.unwrap_err().to_string().contains("outside the user namespace"));
}

#[test]
fn volumes_are_shared_and_sub_paths_do_not_escape() {
    if !privileged() {
        return;
    }
    let node = Node::new();
    let host = node.path("host");
    fs::create_dir_all(host.join("inner")).unwrap();
    let spec = |sub_path: &str, read_only: bool| {
        pod(serde_json::json!({"id": "/p",
        "volumes": [{"name": "data"}, {"name": "host", "host": host.to_str().unwrap()}],
        "containers": [{"name": "c", "exec": {"command": {"shell": "true"}}, "resources": resources(), "volumeMounts": [
            {"name": "data", "mountPath": "in/sandbox", "agentd": {"subPath": sub_path}},
            {"name": "data", "mountPath": "/data"},
            {"name": "host", "mountPath": "/host", "readOnly": read_only}]}]}))
    };
    let place = node.path("pod");
    let volumes = node.volumes(HostPaths::all_but(vec![node.path("disks")]));
    let build = |spec: &PodSpec| {
        let mut launch = Launch::default();
        node.rootfs().build(spec, 0, 1, ("0123456789ab", &place), None, &mut launch)?;
        volumes.build(spec, 0, "0123456789ab", &place, &mut launch).map(|()| launch)
    };
    let launch = build(&spec("sub/folder", true)).unwrap();
    node.assembled(&launch, |root| {
        fs::write(root.join("data/sub/folder/x"), "shared").unwrap();
        assert_eq!(fs::read_to_string(root.join("mnt/mesos/sandbox/in/sandbox/x")).unwrap(), "shared");
        assert_eq!(fs::write(root.join("host/x"), "").unwrap_err().raw_os_error(), Some(libc::EROFS));
    });
    assert_eq!(fs::read_to_string(node.path("pod/volumes/data/sub/folder/x")).unwrap(), "shared");
    symlink("/etc", node.path("pod/volumes/data/evil")).unwrap();
    symlink("../../../..", node.path("pod/volumes/data/up")).unwrap();
    for path in ["evil", "evil/ssl", "up", "../data"] {
        let error = build(&spec(path, false)).unwrap_err().to_string();
        assert!(error.contains("containers[0].volumeMounts[0].agentd.subPath"), "{path}: {error}");
    }
    let mut refused = spec("", false);
    refused.volumes[1].host = Some(node.path("disks").to_str().unwrap().to_owned());
    assert!(build(&refused).unwrap_err().to_string().contains("volumes[1].host"));
    let mut violations = Vec::new();
    volumes.check(&refused, &mut violations);
    assert_eq!(violations.iter().map(|v| v.path.as_str()).collect::<Vec<_>>(), ["volumes[1].host"]);
}

#[test]
fn memory_and_secret_volumes_are_held_mounts() {
    if !privileged() {
        return;
    }
    let node = Node::new();
    let spec = pod(serde_json::json!({"id": "/p",
        "volumes": [{"name": "m", "agentd": {"tmpfsMib": 1}}, {"name": "s", "agentd": {"secrets": {"key": "k"}}}, {"name": "e"}],
        "containers": [{"name": "c", "exec": {"command": {"shell": "true"}}, "resources": resources(), "volumeMounts": [
            {"name": "m", "mountPath": "/m"}, {"name": "s", "mountPath": "/s", "agentd": {"subPath": "key"}}]}]}));
    let volumes = node.volumes(HostPaths::all_but(Vec::new()));
    assert!(volumes.pod_mounts(&spec, &[]).unwrap_err().to_string().contains("volumes[1].agentd.secrets"));
    let secret =
        SecretVolume { name: "s".to_owned(), uid: 5, gid: 6, files: vec![("key".to_owned(), vec![b'k'; 9000])] };
    let mounts = volumes.pod_mounts(&spec, &[secret]).unwrap();
    assert_eq!(mounts.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["m", "s"]);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let big = rustix::fs::openat(&mounts[0].1, "big", flags, Mode::RUSR).unwrap();
    assert!(fs::File::from(big).write_all(&vec![0; 2 << 20]).is_err(), "the size limit does not hold");
    assert_eq!(read(&mounts[1].1, "key").unwrap().len(), 9000);
    let stat = rustix::fs::statat(&mounts[1].1, "key", rustix::fs::AtFlags::empty()).unwrap();
    assert_eq!((stat.st_mode & 0o7777, stat.st_uid, stat.st_gid), (0o400, 5, 6));
    assert_eq!(rustix::fs::mkdirat(&mounts[1].1, "x", Mode::RWXU), Err(rustix::io::Errno::ROFS));
    let mut launch = Launch::default();
    volumes.build(&spec, 0, "0123456789ab", &node.path("pod"), &mut launch).unwrap();
    let held = |name: &str, sub_path: &str, read_only| MountStep::Held {
        name: name.into(),
        sub_path: sub_path.into(),
        target: format!("/{name}").into_bytes(),
        read_only,
    };
    assert_eq!(launch.plan.mounts, [held("m", "", false), held("s", "key", true)]);
}
