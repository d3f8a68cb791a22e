//! `file:` artifacts: only files below the folders that the agent's settings name.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Failure, FailureKind};

/// Opens `path`, which must be a regular file below one of `roots`, also after all symbolic links.
pub(crate) fn open(roots: &[PathBuf], path: &Path) -> Result<File, Failure> {
    let refused = |reason: String| Failure::uri(FailureKind::Refused, reason);
    if roots.is_empty() {
        return Err(refused("file: artifacts are off; set artifacts.file_roots in agentd's configuration".to_owned()));
    }
    // the longest root decides, so that a root below another root is one of its own
    let root = roots.iter().filter(|root| path.starts_with(root)).max_by_key(|root| root.components().count());
    let Some((root, relative)) = root.and_then(|root| Some((root, path.strip_prefix(root).ok()?))) else {
        let list: Vec<_> = roots.iter().map(|root| root.display().to_string()).collect();
        let list = list.join(", ");
        return Err(refused(format!(
            "not below a folder of file_roots ({list}); move the file there or add its folder"
        )));
    };
    let folder = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| Failure::local(&format!("opening the file_roots folder {}", root.display()), error))?;
    let found = rustix::fs::openat2(
        &folder,
        relative,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
    )
    .map_err(|errno| match errno {
        Errno::XDEV | Errno::LOOP => {
            refused(format!("a symbolic link leads out of {}; use the file itself", root.display()))
        }
        Errno::NOENT | Errno::NOTDIR => Failure::uri(FailureKind::Invalid, "no such file on this host".to_owned()),
        other => Failure::local("opening the file", other),
    })?;
    let stat = rustix::fs::fstat(&found).map_err(|error| Failure::local("opening the file", error))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(refused("not a regular file; only regular files can be fetched".to_owned()));
    }
    // only now opened for reading: opening a pipe or a device would already act on it
    File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))
        .map_err(|error| Failure::local("opening the file", error))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_regular_files_below_the_roots() {
        let outside = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "secret").unwrap();
        std::fs::create_dir(root.path().join("sub")).unwrap();
        std::fs::write(root.path().join("sub/good"), "good").unwrap();
        symlink("sub/good", root.path().join("inside")).unwrap();
        symlink(outside.path().join("secret"), root.path().join("absolute")).unwrap();
        symlink(format!("../{}/secret", outside.path().file_name().unwrap().display()), root.path().join("up"))
            .unwrap();
        symlink(outside.path(), root.path().join("folder")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, root.path().join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let roots = [root.path().to_owned()];
        for name in ["sub/good", "inside"] {
            let mut text = String::new();
            open(&roots, &root.path().join(name)).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "good");
        }
        for name in ["absolute", "up", "folder/secret", "sub", "pipe"] {
            let failure = open(&roots, &root.path().join(name)).unwrap_err();
            assert_eq!(failure.kind, FailureKind::Refused, "{name}: {failure:?}");
        }
        assert_eq!(open(&roots, &root.path().join("none")).unwrap_err().kind, FailureKind::Invalid);
        assert_eq!(open(&roots, &outside.path().join("secret")).unwrap_err().kind, FailureKind::Refused);
        assert_eq!(open(&[], &root.path().join("sub/good")).unwrap_err().kind, FailureKind::Refused);
    }
}
