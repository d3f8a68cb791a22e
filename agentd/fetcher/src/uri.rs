//! The words of an artifact: where it comes from and where it goes.

use std::path::{Component, Path, PathBuf};

use agentd_api::pod::Artifact;
use url::Url;

use crate::error::{Failure, FailureKind, Part};
use crate::staging;

/// Longest path in a sandbox, bytes.
pub(crate) const PATH_LIMIT: usize = 4095;

/// Most folders above a file in a sandbox. Bounds the depth of every walk through a fetched tree.
pub(crate) const DEPTH_LIMIT: usize = 64;

/// Where an artifact comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// `http:` or `https:`.
    Web(Url),
    /// `file:`, the absolute path.
    File(PathBuf),
}

/// What is to be done with an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub origin: Origin,
    /// Where the file itself goes, relative to the sandbox; `None` when only its content is wanted.
    pub file: Option<PathBuf>,
    pub extract: bool,
    pub executable: bool,
}

/// The URI as it may be shown: without user, password, query and fragment.
pub(crate) fn shown(uri: &str) -> String {
    let Ok(mut url) = Url::parse(uri) else {
        return uri.chars().take(1024).filter(|c| !c.is_control()).collect();
    };
    // these fail for URIs that cannot have the part
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

/// Reads an artifact.
pub(crate) fn plan(artifact: &Artifact) -> Result<Plan, Failure> {
    let invalid = |reason: String| Failure::uri(FailureKind::Invalid, reason);
    let url = Url::parse(&artifact.uri)
        .map_err(|error| invalid(format!("not a URI ({error}); expected http:, https: or file:")))?;
    let origin = match url.scheme() {
        "http" | "https" => Origin::Web(url.clone()),
        "file" => Origin::File(file_path(&url)?),
        other => return Err(invalid(format!("scheme {other:?} cannot be fetched; expected http, https or file"))),
    };
    // Mesos's rule: an executable is never unpacked
    let extract = artifact.extract && !artifact.executable;
    let file = match &artifact.dest_path {
        Some(path) => Some(
            below_sandbox(Path::new(path))
                .map_err(|reason| Failure::new(FailureKind::Invalid, Part::DestPath, format!("{path:?} {reason}")))?,
        ),
        None if extract => None,
        None => Some(default_name(&url)?),
    };
    Ok(Plan { origin, file, extract, executable: artifact.executable })
}

fn file_path(url: &Url) -> Result<PathBuf, Failure> {
    let refused = |reason: &str| Err(Failure::uri(FailureKind::Invalid, reason));
    if url.host_str().is_some_and(|host| host != "localhost") {
        return refused("a file: URI of another host; expected file:///path");
    }
    let Ok(path) = url.to_file_path() else {
        return refused("not a file path; expected file:///path");
    };
    if path.components().any(|component| component == Component::ParentDir) {
        return refused("the path has a '..' (perhaps encoded); expected a plain absolute path");
    }
    Ok(path)
}

/// The last segment of the URI's path, as a file name.
fn default_name(url: &Url) -> Result<PathBuf, Failure> {
    let segment = url.path_segments().and_then(|mut all| all.next_back()).unwrap_or_default();
    let name: Vec<u8> = percent_encoding::percent_decode_str(segment).collect();
    let name = String::from_utf8_lossy(&name).into_owned();
    let path = below_sandbox(Path::new(&name)).ok().filter(|path| path.components().count() == 1);
    path.ok_or_else(|| {
        Failure::uri(FailureKind::Invalid, format!("its last segment {name:?} is no file name; set destPath"))
    })
}

/// A path as it is used below a sandbox: relative, of plain names only.
pub(crate) fn below_sandbox(path: &Path) -> Result<PathBuf, &'static str> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                return Err("leads out of the sandbox by '..'; expected a relative path without '..'");
            }
            Component::RootDir | Component::Prefix(_) => {
                return Err("is absolute; expected a path relative to the sandbox");
            }
        }
    }
    let bytes = clean.as_os_str().as_encoded_bytes();
    if bytes.is_empty() {
        return Err("names no file; expected a relative path");
    }
    if bytes.len() > PATH_LIMIT || bytes.contains(&0) {
        return Err("is longer than 4095 bytes or has a NUL; expected a plain relative path");
    }
    if clean.components().any(|component| component.as_os_str().len() > 255) {
        return Err("has a name longer than 255 bytes; expected shorter names");
    }
    if clean.components().count() > DEPTH_LIMIT {
        return Err("is more than 64 folders deep; expected a shorter path");
    }
    if clean.components().next().is_some_and(|first| staging::is_staging_name(first.as_os_str())) {
        return Err("begins with a name that agentd uses itself (.agentd-fetch-…); choose another");
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(uri: &str) -> Artifact {
        Artifact { uri: uri.to_owned(), extract: false, executable: false, cache: false, dest_path: None }
    }

    #[test]
    fn names_in_the_sandbox() {
        for (uri, dest, expected) in [
            ("http://h/a/b.txt?x=1#f", None, Some("b.txt")),
            ("https://h/a%20b", None, Some("a b")),
            ("http://h/", None, None),
            ("http://h/a/", None, None),
            ("http://h/%2e%2e%2fetc", None, None),
            ("http://h/a%2Fb", None, None),
            ("http://h/a", Some("bin/tool"), Some("bin/tool")),
            ("http://h/a", Some("./x/./y"), Some("x/y")),
            ("http://h/a", Some("/etc/passwd"), None),
            ("http://h/a", Some("../up"), None),
            ("http://h/a", Some("x/../../up"), None),
            ("http://h/a", Some(""), None),
            ("http://h/a", Some("."), None),
            ("http://h/a", Some(".agentd-fetch-1/x"), None),
            ("file:///srv/x.bin", None, Some("x.bin")),
        ] {
            let artifact = Artifact { dest_path: dest.map(str::to_owned), ..artifact(uri) };
            let found = plan(&artifact).map(|plan| plan.file.unwrap());
            assert_eq!(found.ok(), expected.map(PathBuf::from), "{uri} {dest:?}");
        }
    }

    #[test]
    fn odd_uris_are_refused() {
        for uri in ["ftp://h/x", "x", "file://other/x", "file:///a/%2e%2e%2fetc%2fpasswd", "gopher://h/x", "http://"] {
            let failure = plan(&artifact(uri)).unwrap_err();
            assert_eq!((failure.kind, failure.part), (FailureKind::Invalid, Part::Uri), "{uri}: {failure:?}");
        }
    }

    #[test]
    fn an_unpacked_archive_stays_only_when_it_is_named() {
        let mut packed = Artifact { extract: true, ..artifact("http://h/a.tgz") };
        assert_eq!(plan(&packed).unwrap().file, None);
        packed.dest_path = Some("a.tgz".to_owned());
        assert_eq!(plan(&packed).unwrap().file, Some(PathBuf::from("a.tgz")));
        packed.executable = true;
        assert!(!plan(&packed).unwrap().extract);
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(shown("http://u:secret@h/x?token=secret#secret"), "http://h/x");
    }
}
