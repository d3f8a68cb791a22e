//! The root of a container without an image: an empty tmpfs on which the host's programs and a few of its
//! configuration files are attached read-only, each for itself.
//!
//! Nothing below comes along with a clone but the folder itself (not recursive, private), so no socket, no state of
//! agentd and no other pod's file is reachable, and what the host mounts later stays out.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use agentd_launcher::plan::{MountStep, TargetKind};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, openat2};

use crate::mounter::{Attributes, MountThread, Tmpfs};
use crate::{IsolatorError, Launch};

use super::NAME;

/// Folders with programs; where the host has a symbolic link, so has the container.
const PROGRAMS: [&str; 8] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "libo32"];
/// Files and folders of `/etc` that programs need to run and that hold no secret.
pub const DEFAULT_ETC: &[&str] = &[
    "alternatives",
    "bash.bashrc",
    "ca-certificates.conf",
    "crypto-policies",
    "debian_version",
    "fonts",
    "gai.conf",
    "group",
    "host.conf",
    "inputrc",
    "java*",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "localtime",
    "magic",
    "magic.mime",
    "mime.types",
    "networks",
    "nsswitch.conf",
    "os-release",
    "passwd",
    "perl",
    "pki/ca-trust/extracted",
    "pki/tls/cert.pem",
    "pki/tls/certs",
    "pki/tls/openssl.cnf",
    "profile",
    "protocols",
    "python3*",
    "redhat-release",
    "rpc",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
];
/// Files of `/etc` that the pod's network writes; the host's serve where it wrote none.
pub(super) const NETWORK_FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];
/// Names that never are given to containers, wherever they stand in a path.
const FORBIDDEN: &[&str] = &[
    "shadow",
    "shadow-",
    "gshadow",
    "gshadow-",
    "sudoers",
    "sudoers.d",
    "ssh",
    "private",
    "agentd",
    "krb5.keytab",
    "security",
    "pam.d",
    "docker",
    "containerd",
    "kubernetes",
];
/// Folders of `/etc` that hold keys beside what is harmless.
const ONLY_PARTS: [&str; 3] = ["ssl", "pki", "pki/tls"];

/// Which files of the host's `/etc` containers without an image see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFiles(Vec<String>);

impl Default for HostFiles {
    fn default() -> Self {
        Self(DEFAULT_ETC.iter().map(|name| (*name).to_owned()).collect())
    }
}

impl HostFiles {
    /// A list of paths relative to `/etc`; a `*` may end the last component. Names that hold secrets are refused.
    pub fn new(names: Vec<String>) -> Result<Self, IsolatorError> {
        for name in &names {
            let fault = if name.is_empty() || name.starts_with('/') {
                "expected a path relative to /etc"
            } else if name.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
                "expected a path without empty parts, . and .."
            } else if name.strip_suffix('*').unwrap_or(name).contains('*') || name == "*" || name.ends_with("/*") {
                "a * may only end a name"
            } else if name.split('/').any(|part| FORBIDDEN.iter().any(|forbidden| matches(part, forbidden)))
                || ONLY_PARTS.iter().any(|folder| matches(name, folder))
            {
                "it holds secrets; name the harmless files below it instead"
            } else {
                continue;
            };
            return Err(IsolatorError::new(NAME, format!("host file {name:?} cannot be given to containers: {fault}")));
        }
        Ok(Self(names))
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    }
}

/// Makes the root, and adds what is attached to it to the launch. `owner` is the host's id of the container's root.
pub(super) fn root(
    thread: &MountThread,
    files: &HostFiles,
    size: u64,
    owner: u32,
    skip: &[&str],
    launch: &mut Launch,
) -> Result<OwnedFd, IsolatorError> {
    let failed = |e| IsolatorError::io(NAME, "cannot make the root of a container without an image", e);
    let tmpfs = Tmpfs { uid: owner, gid: owner, ..Tmpfs::new(size, 0o755) };
    let root =
        thread.tmpfs(&tmpfs, Attributes { nodev: true, nosuid: true, ..Attributes::default() }).map_err(failed)?;
    for (path, mode) in [
        ("dev", 0o755),
        ("etc", 0o755),
        ("home", 0o755),
        ("mnt", 0o755),
        ("mnt/mesos", 0o755),
        ("mnt/mesos/sandbox", 0o755),
        ("proc", 0o555),
        ("root", 0o700),
        ("run", 0o755),
        ("sys", 0o555),
        ("tmp", 0o1777),
        ("var", 0o755),
        ("var/tmp", 0o1777),
    ] {
        rustix::fs::mkdirat(&root, path, Mode::from_raw_mode(mode)).map_err(|e| failed(e.into()))?;
        own(&root, path, owner).map_err(failed)?;
    }
    for (path, to) in [("etc/mtab", "/proc/mounts"), ("var/run", "/run")] {
        rustix::fs::symlinkat(to, &root, path).map_err(|e| failed(e.into()))?;
        own(&root, path, owner).map_err(failed)?;
    }
    let read_only = Attributes { read_only: true, nosuid: true, nodev: true, ..Attributes::default() };
    for name in PROGRAMS {
        let path = Path::new("/").join(name);
        match std::fs::read_link(&path) {
            Ok(to) => {
                rustix::fs::symlinkat(&to, &root, name).map_err(|e| failed(e.into()))?;
                own(&root, name, owner).map_err(failed)?;
            }
            Err(_) => attach(thread, &path, read_only, &root, launch)?,
        }
    }
    let no_programs = Attributes { noexec: true, ..read_only };
    for name in NETWORK_FILES.iter().filter(|name| !skip.contains(name)) {
        attach(thread, &Path::new("/etc").join(name), no_programs, &root, launch)?;
    }
    for name in &files.0 {
        let Some(prefix) = name.strip_suffix('*') else {
            attach(thread, &Path::new("/etc").join(name), no_programs, &root, launch)?;
            continue;
        };
        let (folder, prefix) = prefix.rsplit_once('/').unwrap_or(("", prefix));
        let folder = Path::new("/etc").join(folder);
        let mut found: Vec<_> = std::fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name())
            .filter(|found| found.to_str().is_some_and(|found| found.starts_with(prefix)))
            .collect();
        found.sort();
        for found in found {
            attach(thread, &folder.join(found), no_programs, &root, launch)?;
        }
    }
    Ok(root)
}

fn own(root: &OwnedFd, path: &str, owner: u32) -> io::Result<()> {
    if owner == 0 {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
    Ok(rustix::fs::chownat(root, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Attaches the host's file or folder at the same path, if it is there. The mount point is made at once, as only
/// pod-init's caller knows its kind.
fn attach(
    thread: &MountThread,
    path: &Path,
    attributes: Attributes<'_>,
    root: impl AsFd,
    launch: &mut Launch,
) -> Result<(), IsolatorError> {
    let failed = |e| IsolatorError::io(NAME, format_args!("cannot clone the host's {}", path.display()), e);
    let Some((source, create)) = open_source(path).map_err(failed)? else { return Ok(()) };
    let target = path.to_string_lossy().into_owned();
    if create == TargetKind::Directory && path.parent() == Some(Path::new("/")) {
        rustix::fs::mkdirat(root, &target[1..], Mode::from_raw_mode(0o755)).map_err(|e| failed(e.into()))?;
    }
    let clone = thread.clone_tree(source, Path::new(""), false, attributes).map_err(failed)?;
    let fd = launch.push_fd(clone);
    launch.plan.mounts.push(MountStep::Attach { fd, target: target.into_bytes(), create });
    Ok(())
}

/// Opens a file or folder of the host as a handle, with its kind. Missing ones, and sockets and the like, are passed
/// over.
pub(super) fn open_source(path: &Path) -> io::Result<Option<(OwnedFd, TargetKind)>> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let source = match openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS) {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => return Ok(None),
        other => other?,
    };
    let kind = match FileType::from_raw_mode(rustix::fs::fstat(&source)?.st_mode) {
        FileType::Directory => TargetKind::Directory,
        FileType::RegularFile => TargetKind::File,
        _ => return Ok(None),
    };
    Ok(Some((source, kind)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_with_secrets_are_refused() {
        assert!(HostFiles::new(HostFiles::default().0).is_ok());
        for bad in [
            "shadow",
            "sha*",
            "s*",
            "ssl",
            "ssl/private",
            "ssl/p*",
            "pki/tls",
            "pki/tls/private",
            "ssh/sshd_config",
            "../root",
            "/etc/passwd",
            "",
            "*",
            "ssl/*",
            "a*b",
            "agentd/secrets",
            "ssl/./private",
        ] {
            assert!(HostFiles::new(vec![bad.to_owned()]).is_err(), "{bad:?} was accepted");
        }
    }
}
