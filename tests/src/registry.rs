//! Debian's `docker-registry` on loopback, with its files in a folder of the test, where a test may damage them.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::poll::eventually;

/// Name and password of a registry with [`Registry::with_login`].
pub const LOGIN: (&str, &str) = ("user", "secret");

/// The same for `auth.json`.
pub const LOGIN_BASE64: &str = "dXNlcjpzZWNyZXQ=";

/// The same as the registry keeps it.
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// A registry. Dropping it ends it.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    folder: tempfile::TempDir,
    port: u16,
    login: bool,
}

impl Registry {
    /// Why there can be none, if there can be none.
    pub fn missing() -> Option<&'static str> {
        let found = |name: &str| {
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|dir| dir.join(name).is_file())
        };
        (!found("docker-registry") || !found("skopeo")).then_some("docker-registry and skopeo are not installed")
    }

    /// One that serves everybody.
    #[track_caller]
    pub fn start() -> Self {
        Self::with(false)
    }

    /// One that serves only [`LOGIN`].
    #[track_caller]
    pub fn with_login() -> Self {
        Self::with(true)
    }

    #[track_caller]
    fn with(login: bool) -> Self {
        let folder = tempfile::Builder::new().prefix("agentd-test-registry-").tempdir().expect("a folder can be made");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
        let port = listener.local_addr().expect("a listener has an address").port();
        drop(listener);
        let mut registry = Self { child: spawn(folder.path(), port, login), folder, port, login };
        let ended = |registry: &mut Self| !matches!(registry.child.try_wait(), Ok(None));
        let up = eventually(Duration::from_secs(20), || {
            ended(&mut registry) || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
        });
        if up && !ended(&mut registry) {
            return registry;
        }
        let log = registry.log();
        // another process may take the port between its choice and its use
        assert!(log.contains("address already in use"), "docker-registry does not start:\n{log}");
        Self::with(login)
    }

    /// Host and port, as a reference begins.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Requests so far that contain this text, as lines of its access log.
    pub fn requests(&self, text: &str) -> Vec<String> {
        self.log()
            .lines()
            .filter(|line| line.contains("HTTP/1.1\"") && line.contains(text))
            .map(str::to_owned)
            .collect()
    }

    /// Copies an image into the registry by skopeo. `source` is in its words, e.g. `oci:/folder:tag`. Returns the
    /// reference.
    #[track_caller]
    pub fn push(&self, source: &str, name: &str, options: &[&str]) -> String {
        let reference = format!("{}/{name}", self.host());
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]).args(options);
        if self.login {
            command.arg("--dest-creds").arg(format!("{}:{}", LOGIN.0, LOGIN.1));
        }
        let output = command.arg(source).arg(format!("docker://{reference}")).output().expect("skopeo can be started");
        assert!(output.status.success(), "skopeo: {}", String::from_utf8_lossy(&output.stderr));
        reference
    }

    /// The manifest of a tag, with its digest.
    #[track_caller]
    pub fn manifest(&self, repository: &str, tag: &str) -> (String, Value) {
        let link = format!("docker/registry/v2/repositories/{repository}/_manifests/tags/{tag}/current/link");
        let digest = fs::read_to_string(self.folder.path().join(link)).expect("the tag is there");
        let text = fs::read(self.blob(&digest)).expect("the manifest is there");
        (digest, serde_json::from_slice(&text).expect("a manifest is JSON"))
    }

    /// Digest of the largest layer of a tag.
    #[track_caller]
    pub fn largest_layer(&self, repository: &str, tag: &str) -> String {
        let (_, manifest) = self.manifest(repository, tag);
        let layers = manifest["layers"].as_array().expect("a manifest has layers").clone();
        let largest = layers.iter().max_by_key(|layer| layer["size"].as_u64()).expect("an image has a layer");
        largest["digest"].as_str().expect("a layer has a digest").to_owned()
    }

    /// The file that holds a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.folder.path().join(format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
    }

    /// Changes what the registry serves as a blob, runs `act`, and restores the blob.
    #[track_caller]
    pub fn with_blob<T>(&self, digest: &str, change: impl FnOnce(&mut Vec<u8>), act: impl FnOnce() -> T) -> T {
        let path = self.blob(digest);
        let whole = fs::read(&path).expect("the blob is there");
        let mut changed = whole.clone();
        change(&mut changed);
        fs::write(&path, changed).expect("the blob can be changed");
        let result = act();
        fs::write(&path, whole).expect("the blob can be restored");
        result
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(folder: &Path, port: u16, login: bool) -> Child {
    let shown = folder.display();
    let auth = if login {
        fs::write(folder.join("htpasswd"), HTPASSWD).expect("a password file can be written");
        format!("auth:\n  htpasswd:\n    realm: test\n    path: {shown}/htpasswd\n")
    } else {
        String::new()
    };
    let config = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {shown}\n  cache: {{}}\n\
         http:\n  addr: 127.0.0.1:{port}\n{auth}"
    );
    fs::write(folder.join("config.yml"), config).expect("a configuration can be written");
    let log = File::create(folder.join("log")).expect("a log can be made");
    let also = log.try_clone().expect("a log can be shared");
    Command::new("docker-registry")
        .arg("serve")
        .arg(folder.join("config.yml"))
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(also)
        .spawn()
        .unwrap_or_else(|error: io::Error| panic!("docker-registry cannot be started: {error}"))
}
