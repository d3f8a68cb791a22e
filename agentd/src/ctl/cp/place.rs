//! What the words of `agentctl cp` mean, and where a copy ends up: the rules are those of `docker cp`.

use std::path::{Path, PathBuf};

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A file or folder of this machine.
    Local(PathBuf),
    /// A tar stream on standard input or output.
    Stream,
    /// A file or folder of a container.
    Remote {
        /// Pod.
        pod: String,
        /// Absolute path.
        path: String,
    },
}

impl Place {
    /// Reads `POD:PATH`, a local path, or `-`. A local path with `:/` in it is written with `./` or `../` at its begin.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        if text.is_empty() {
            return Err("found no path".to_owned());
        }
        if [".", ".."].contains(&text) || text.starts_with("./") || text.starts_with("../") {
            return Ok(Self::Local(text.into()));
        }
        match text.split_once(":/") {
            Some((pod, path)) if !pod.trim_start_matches('/').is_empty() => {
                Ok(Self::Remote { pod: pod.to_owned(), path: format!("/{path}") })
            }
            _ => match text.split_once(':') {
                Some((pod, path)) if !text.starts_with('/') && !pod.is_empty() => Err(format!(
                    "found {text:?}, expected an absolute path in the container, e.g. {pod}:/{path}; a file of this machine \
                     is written ./{text}"
                )),
                _ => Ok(Self::Local(text.into())),
            },
        }
    }
}

/// What lies at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Nothing,
    /// A folder.
    Folder,
    /// Anything else.
    File,
}

/// Where a copy goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Goal {
    /// The folder to unpack in.
    pub folder: PathBuf,
    /// Name of the copy there; none for what lies in a folder without the folder itself.
    pub name: Option<Vec<u8>>,
    /// Whether the folder is made first.
    pub make: bool,
}

/// Last part of a path; none where only what lies there is meant (`/`, `x/.`).
pub fn base_name(path: &Path) -> Option<Vec<u8>> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = path.as_os_str().as_bytes();
    let end = bytes.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
    let name = bytes[..end].rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    if matches!(name, b"" | b"." | b"..") { None } else { Some(name.to_vec()) }
}

/// Where a copy of `source`, which is a folder or a file, goes when `target` is asked for, at which lies `there`.
pub fn goal(source: &Path, folder: bool, target: &Path, there: Kind) -> Result<Goal, String> {
    use std::os::unix::ffi::OsStrExt;
    let name = base_name(source);
    let slash = target.as_os_str().as_bytes().ends_with(b"/");
    let shown = target.display();
    match (there, folder) {
        (Kind::Folder, _) => Ok(Goal { folder: target.to_path_buf(), name, make: false }),
        (Kind::File, true) => Err(format!("{shown}: it is a file, and a folder cannot be copied over it")),
        (Kind::File, false) if slash => Err(format!("{shown}: it is a file, expected a folder")),
        (Kind::Nothing, false) if slash => Err(format!("{shown}: there is no such folder; make it first")),
        (Kind::Nothing, true) if name.is_none() => Ok(Goal { folder: target.to_path_buf(), name: None, make: true }),
        (Kind::File | Kind::Nothing, _) => {
            let Some(name) = base_name(target) else {
                return Err(format!("{shown}: there is no such folder; make it first"));
            };
            let bytes = target.as_os_str().as_bytes();
            let end = bytes.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
            let parent = &bytes[..end - name.len()];
            let parent = if parent.is_empty() { b"." } else { parent };
            Ok(Goal { folder: std::ffi::OsStr::from_bytes(parent).into(), name: Some(name), make: false })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(pod: &str, path: &str) -> Place {
        Place::Remote { pod: pod.into(), path: path.into() }
    }

    #[test]
    fn places_are_told_apart() {
        assert_eq!(Place::parse("/app/web:/etc/hosts"), Ok(remote("/app/web", "/etc/hosts")));
        assert_eq!(Place::parse("web:/"), Ok(remote("web", "/")));
        assert_eq!(Place::parse("web:/a:/b"), Ok(remote("web", "/a:/b")));
        assert_eq!(Place::parse("-"), Ok(Place::Stream));
        for local in ["/etc/hosts", "hosts", "./web:/x", "../web:/x", ".", "..", "/tmp/a:b", ":/x", "/:/x"] {
            assert_eq!(Place::parse(local), Ok(Place::Local(local.into())), "{local}");
        }
        assert!(Place::parse("web:etc/hosts").unwrap_err().contains("web:/etc/hosts"));
        assert!(Place::parse("").is_err());
    }

    fn to(source: &str, folder: bool, target: &str, there: Kind) -> Result<(String, Option<String>, bool), String> {
        let goal = goal(Path::new(source), folder, Path::new(target), there)?;
        let name = goal.name.map(|name| String::from_utf8(name).unwrap());
        Ok((goal.folder.display().to_string(), name, goal.make))
    }

    #[test]
    fn copies_go_where_docker_puts_them() {
        let ok = |folder: &str, name: &str| Ok((folder.to_owned(), Some(name.to_owned()), false));
        assert_eq!(to("/a/f", false, "/d", Kind::Folder), ok("/d", "f"));
        assert_eq!(to("/a/f", false, "/d/", Kind::Folder), ok("/d/", "f"));
        assert_eq!(to("/a/f", false, "/d/g", Kind::Nothing), ok("/d/", "g"));
        assert_eq!(to("/a/f", false, "g", Kind::File), ok(".", "g"));
        assert_eq!(to("/a", true, "/d", Kind::Folder), ok("/d", "a"));
        assert_eq!(to("/a/", true, "/d/e/", Kind::Nothing), ok("/d/", "e"));
        assert_eq!(to("/a/.", true, "/d", Kind::Folder), Ok(("/d".into(), None, false)));
        assert_eq!(to("/a/.", true, "/d/e", Kind::Nothing), Ok(("/d/e".into(), None, true)));
        assert_eq!(to("/", true, "/d", Kind::Folder), Ok(("/d".into(), None, false)));
        assert!(to("/a", true, "/d/f", Kind::File).is_err());
        assert!(to("/a", false, "/d/f/", Kind::Nothing).is_err());
        assert!(to("/a", false, "/d/f/", Kind::File).is_err());
        assert!(to("/a", false, "..", Kind::Nothing).is_err());
    }
}
