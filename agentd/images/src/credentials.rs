//! Credentials in the form of docker and podman (`auth.json`). Credential helpers are not run: the daemon executes
//! nothing on behalf of a pull.

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_client::secrets::RegistryAuth;
use serde::Deserialize;

use crate::error::{ImageError, Result};

#[derive(Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

/// Credentials for a repository of a registry; anonymous if no file has any.
pub(crate) fn find(files: &[PathBuf], registry: &str, repository: &str) -> Result<RegistryAuth> {
    for path in files {
        let wrong = |message: String| ImageError::Settings { registry: registry.into(), path: path.clone(), message };
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(wrong(format!("cannot be read: {error}"))),
        };
        // The text itself must not reach a log.
        let file: AuthFile = serde_json::from_slice(&text).map_err(|error| {
            wrong(format!("line {} column {} is not what docker or podman write", error.line(), error.column()))
        })?;
        if let Some((key, entry)) = best(&file.auths, registry, repository) {
            return credentials(entry).ok_or_else(|| {
                wrong(format!("the entry {key} holds neither a base64 user:password nor username and password"))
            });
        }
    }
    Ok(RegistryAuth::Anonymous)
}

/// The entry of the longest matching path (podman's form), then of the host.
fn best<'a>(auths: &'a BTreeMap<String, Entry>, registry: &str, repository: &str) -> Option<(&'a str, &'a Entry)> {
    let is_hub = |host: &str| matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io");
    let whole = format!("{registry}/{repository}");
    auths
        .iter()
        .filter_map(|(key, entry)| {
            let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
            let bare = bare.trim_end_matches('/');
            // `https://index.docker.io/v1/` is how docker names the hub.
            let bare = bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/v2")).unwrap_or(bare);
            let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
            let host = if is_hub(host) && is_hub(registry) { registry } else { host };
            let prefix = if path.is_empty() { host.to_owned() } else { format!("{host}/{path}") };
            let rest = whole.strip_prefix(&prefix)?;
            (rest.is_empty() || rest.starts_with('/')).then_some((prefix.len(), key.as_str(), entry))
        })
        .max_by_key(|(length, ..)| *length)
        .map(|(_, key, entry)| (key, entry))
}

fn credentials(entry: &Entry) -> Option<RegistryAuth> {
    if let Some(encoded) = entry.auth.as_deref().filter(|encoded| !encoded.is_empty()) {
        let plain = String::from_utf8(base64(encoded)?).ok()?;
        let (user, password) = plain.split_once(':')?;
        return Some(RegistryAuth::Basic(user.to_owned(), password.trim_end_matches('\0').to_owned()));
    }
    Some(RegistryAuth::Basic(entry.username.clone()?, entry.password.clone()?))
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let mut bits = 0u32;
    let mut count = 0;
    for digit in text.trim_end().trim_end_matches('=').bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &str) -> (tempfile::TempDir, Vec<PathBuf>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("auth.json");
        std::fs::write(&path, content).unwrap();
        (folder, vec!["/does/not/exist".into(), path])
    }

    fn basic(user: &str, password: &str) -> RegistryAuth {
        RegistryAuth::Basic(user.into(), password.into())
    }

    #[test]
    fn the_longest_path_wins() {
        let (_folder, files) = file(
            r#"{"auths":{"https://index.docker.io/v1/":{"auth":"aHViOnB3"},"quay.io":{"auth":"YTpiOmM="},
            "quay.io/team":{"username":"t","password":"p"}},"credsStore":"desktop"}"#,
        );
        assert_eq!(find(&files, "index.docker.io", "library/x").unwrap(), basic("hub", "pw"));
        assert_eq!(find(&files, "quay.io", "other/x").unwrap(), basic("a", "b:c"));
        assert_eq!(find(&files, "quay.io", "team/x").unwrap(), basic("t", "p"));
        assert_eq!(find(&files, "quay.io", "teams/x").unwrap(), basic("a", "b:c"));
        assert_eq!(find(&files, "ghcr.io", "x").unwrap(), RegistryAuth::Anonymous);
    }

    #[test]
    fn a_broken_file_is_named_and_not_quoted() {
        let (_folder, files) = file(r#"{"auths":{"quay.io":{"auth":"secret"#);
        let error = find(&files, "quay.io", "x").unwrap_err().to_string();
        assert!(error.contains("auth.json") && !error.contains("secret"), "{error}");
        let (_folder, files) = file(r#"{"auths":{"quay.io":{"auth":"%%"}}}"#);
        assert!(find(&files, "quay.io", "x").unwrap_err().to_string().contains("entry quay.io"));
    }
}
