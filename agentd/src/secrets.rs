//! Secrets of pods: files of the secrets folder, or systemd credentials.
//!
//! A pod names a secret by a plain name. It is looked for in the secrets folder (`paths.secrets`) and then among the
//! credentials that systemd gave the daemon (`LoadCredential=`, `$CREDENTIALS_DIRECTORY`). A file that others could read
//! or that is reached through a link is refused. Nothing is cached: a changed file counts from the next start of a container.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{Ordering, compiler_fence};

use rustix::fs::{FileType, Mode, OFlags, fstat, open, openat};
use rustix::io::Errno;

/// Largest secret, bytes.
const MAX_BYTES: usize = 1 << 20;

/// The content of a secret. Never printed, and overwritten when it goes.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// A secret of these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its bytes as the value of an environment variable: UTF-8 without NUL. They are given as they are, with a newline at
    /// the end if the file has one.
    pub fn env_value(&self) -> Result<&str, SecretError> {
        if self.0.contains(&0) {
            return Err(SecretError::Env("a NUL byte"));
        }
        std::str::from_utf8(&self.0).map_err(|_| SecretError::Env("bytes that are not UTF-8"))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        for byte in &mut self.0 {
            // SAFETY: the pointer comes from an exclusive reference to a byte of the vector. Volatile, because the compiler
            // would otherwise leave out writes to memory that is freed next.
            unsafe { std::ptr::write_volatile(byte, 0) };
        }
        compiler_fence(Ordering::SeqCst);
    }
}

/// Why a secret cannot be had. Never holds any of its content.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The name cannot be that of a secret.
    #[error("found '{0}'; expected a plain file name of at most 255 bytes, without '/'")]
    Name(String),
    /// There is none of that name.
    #[error("'{name}' is not in {}; put it there as a file of mode 0400 owned by root", searched.join(" or "))]
    NotFound {
        /// Its name.
        name: String,
        /// The folders that were looked in.
        searched: Vec<String>,
    },
    /// A file or folder is not safe to take a secret from.
    #[error("{} {found}; {cure}", path.display())]
    Unsafe {
        /// The file or folder.
        path: PathBuf,
        /// What was found.
        found: String,
        /// What to do.
        cure: String,
    },
    /// A system call failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// It cannot be an environment variable.
    #[error(
        "the secret holds {0}; expected UTF-8 text without NUL for an environment variable; mount it as a file instead"
    )]
    Env(&'static str),
}

/// Where secrets are looked for.
#[derive(Debug, Clone)]
pub struct Secrets {
    folders: Vec<PathBuf>,
}

impl Secrets {
    /// The secrets folder, and the folder of systemd credentials (`$CREDENTIALS_DIRECTORY`) if there is one.
    pub fn new(folder: impl Into<PathBuf>, credentials: Option<PathBuf>) -> Self {
        Self { folders: std::iter::once(folder.into()).chain(credentials).collect() }
    }

    /// The content of the secret that a pod names as its source. Blocking, but only for a small local file.
    pub fn resolve(&self, source: &str) -> Result<Secret, SecretError> {
        let named =
            (1..=255).contains(&source.len()) && !source.contains(['/', '\0']) && source != "." && source != "..";
        if !named {
            return Err(SecretError::Name(source.chars().take(80).flat_map(char::escape_debug).collect()));
        }
        for folder in &self.folders {
            let Some(opened) = open_folder(folder)? else {
                continue;
            };
            if let Some(secret) = read_file(&opened, folder, source)? {
                return Ok(secret);
            }
        }
        Err(SecretError::NotFound {
            name: source.escape_debug().to_string(),
            searched: self.folders.iter().map(|folder| folder.display().to_string()).collect(),
        })
    }
}

fn fault(path: &Path, found: impl Into<String>, cure: impl Into<String>) -> SecretError {
    SecretError::Unsafe { path: path.to_path_buf(), found: found.into(), cure: cure.into() }
}

/// Whether a file of this owner is under the daemon's control alone.
fn trusted(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

fn open_folder(folder: &Path) -> Result<Option<OwnedFd>, SecretError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = match open(folder, flags, Mode::empty()) {
        Ok(opened) => opened,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return Err(fault(folder, "is no folder, or a symbolic link", "set paths.secrets to the folder itself"));
        }
        Err(error) => {
            return Err(SecretError::Io { path: folder.to_path_buf(), source: error.into() });
        }
    };
    let stat = fstat(&opened).map_err(|error| SecretError::Io { path: folder.to_path_buf(), source: error.into() })?;
    if !trusted(stat.st_uid) {
        let found = format!("is owned by uid {}, expected root", stat.st_uid);
        return Err(fault(folder, found, format!("run: chown root {}", folder.display())));
    }
    if stat.st_mode & 0o022 != 0 {
        let found = format!("has mode {:04o}, others than its owner can put files there", stat.st_mode & 0o7777);
        return Err(fault(folder, found, format!("run: chmod 0700 {}", folder.display())));
    }
    Ok(Some(opened))
}

fn read_file(folder: &OwnedFd, path: &Path, name: &str) -> Result<Option<Secret>, SecretError> {
    let path = path.join(name);
    let failed = |error: io::Error| SecretError::Io { path: path.clone(), source: error };
    // Non-blocking, so that a named pipe does not hold up the start of a pod.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match openat(folder, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP) => {
            return Err(fault(&path, "is a symbolic link", "put the file itself there"));
        }
        Err(error) => return Err(failed(error.into())),
    };
    let stat = fstat(&file).map_err(|error| failed(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(fault(&path, "is not a regular file", "put a regular file there"));
    }
    if !trusted(stat.st_uid) {
        let found = format!("is owned by uid {}, expected root", stat.st_uid);
        return Err(fault(&path, found, format!("run: chown root {}", path.display())));
    }
    if stat.st_mode & 0o077 != 0 {
        let found = format!("has mode {:04o}, others than its owner can read it", stat.st_mode & 0o7777);
        return Err(fault(&path, found, format!("run: chmod 0400 {}", path.display())));
    }
    // The whole room from the start: a vector that grows leaves copies of the secret behind in freed memory.
    let room = usize::try_from(stat.st_size).unwrap_or(usize::MAX).min(MAX_BYTES) + 1;
    let mut secret = Secret(vec![0; room]);
    let mut file = File::from(file);
    let mut length = 0;
    while length < secret.0.len() {
        match file.read(&mut secret.0[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    if length == secret.0.len() {
        let found = if length > MAX_BYTES { "is larger than 1 MiB" } else { "changed while it was read" };
        return Err(fault(&path, found, "write secrets of at most 1 MiB, to another name first, and rename them"));
    }
    // Shortening keeps the memory where it is; what is cut off holds zeros.
    secret.0.truncate(length);
    Ok(Some(secret))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::Builder::new().prefix("agentd-test-secrets-").tempdir().unwrap()
    }

    fn put(folder: &tempfile::TempDir, name: &str, bytes: &[u8], mode: u32) -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn secrets_come_from_the_folder_and_then_from_credentials() {
        let (one, two) = (folder(), folder());
        put(&one, "a", b"alpha\n", 0o400);
        put(&two, "a", b"other", 0o400);
        put(&two, "b", b"\x00\xff", 0o600);
        put(&one, "empty", b"", 0o600);
        let secrets = Secrets::new(one.path(), Some(two.path().to_path_buf()));
        assert_eq!(secrets.resolve("a").unwrap().env_value().unwrap(), "alpha\n");
        let binary = secrets.resolve("b").unwrap();
        assert_eq!(binary.bytes(), b"\x00\xff");
        assert!(binary.env_value().unwrap_err().to_string().contains("NUL"));
        assert!(Secret::new(vec![0xff]).env_value().unwrap_err().to_string().contains("UTF-8"));
        assert_eq!(secrets.resolve("empty").unwrap().bytes(), b"");
        let missing = secrets.resolve("c").unwrap_err().to_string();
        assert!(missing.contains(&one.path().display().to_string()), "{missing}");
        assert!(missing.contains(&two.path().display().to_string()), "{missing}");
        let nowhere = Secrets::new("/nonexistent/agentd-test", None);
        assert!(matches!(nowhere.resolve("a"), Err(SecretError::NotFound { .. })));
    }

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        let one = folder();
        let secrets = Secrets::new(one.path(), None);
        for name in ["", ".", "..", "../a", "/etc/passwd", "a/b", "a\0b", &"x".repeat(256)] {
            assert!(matches!(secrets.resolve(name), Err(SecretError::Name(_))), "{name:?}");
        }
    }

    #[test]
    fn unsafe_files_are_refused_with_the_cure() {
        let one = folder();
        let path = put(&one, "open", b"x", 0o640);
        put(&one, "target", b"x", 0o400);
        symlink("target", one.path().join("link")).unwrap();
        fs::create_dir(one.path().join("dir")).unwrap();
        nix::unistd::mkfifo(&one.path().join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        put(&one, "large", &vec![b'x'; MAX_BYTES + 1], 0o400);
        put(&one, "largest", &vec![b'x'; MAX_BYTES], 0o400);
        let secrets = Secrets::new(one.path(), None);
        let error = |name: &str| secrets.resolve(name).unwrap_err().to_string();
        assert!(
            error("open")
                .contains(&format!("mode 0640, others than its owner can read it; run: chmod 0400 {}", path.display()))
        );
        assert!(error("link").contains("symbolic link"));
        assert!(error("dir").contains("not a regular file"));
        assert!(error("pipe").contains("not a regular file"));
        assert!(error("large").contains("larger than 1 MiB"));
        assert_eq!(secrets.resolve("largest").unwrap().bytes().len(), MAX_BYTES);
        if rustix::process::geteuid().is_root() {
            let path = put(&one, "foreign", b"x", 0o400);
            std::os::unix::fs::chown(&path, Some(1234), None).unwrap();
            assert!(error("foreign").contains("uid 1234"));
        }
    }

    #[test]
    fn unsafe_folders_are_refused() {
        let one = folder();
        put(&one, "a", b"x", 0o400);
        let inner = one.path().join("inner");
        fs::create_dir(&inner).unwrap();
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o777)).unwrap();
        symlink(one.path(), one.path().join("link")).unwrap();
        let error = |folder: PathBuf| Secrets::new(folder, None).resolve("a").unwrap_err().to_string();
        assert!(error(inner.clone()).contains("mode 0777"));
        assert!(error(one.path().join("link")).contains("symbolic link"));
        assert!(error(one.path().join("a")).contains("is no folder"));
    }

    #[test]
    fn secrets_are_not_printed() {
        let secret = Secret::new(b"hunter2".to_vec());
        let shown = format!("{secret:?} {:?}", Some(&secret));
        assert!(!shown.contains("hunter2") && !shown.contains("104"), "{shown}");
    }
}
