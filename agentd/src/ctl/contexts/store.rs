//! The file of the contexts: read when one is needed, replaced as a whole when one changes.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::failure::{Failure, NOT_FOUND, Result};
use super::endpoint::Endpoint;

/// Largest file that is read.
const LARGEST: u64 = 1 << 20;

/// One daemon and what it takes to reach it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// `unix:///path`, `https://host:port`, or `http://127.0.0.1:port` with `insecure`.
    pub endpoint: String,
    /// File with the certificate of the authority that the daemon's certificate has to be from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// File with the certificate that is shown to the daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// File with its private key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Plain HTTP to this host's own loopback address.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
}

/// Everything in the file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    /// The one that is used where the command line and the environment name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// By name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub contexts: BTreeMap<String, Context>,
}

/// Where the file is: `$XDG_CONFIG_HOME/agentctl/config.toml`, else `$HOME/.config/agentctl/config.toml`.
pub fn path() -> Result<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
    folder.map(|folder| folder.join("agentctl").join("config.toml")).ok_or_else(|| {
        Failure::bad_input(
            "neither XDG_CONFIG_HOME nor HOME is an absolute path, so that there is no place for contexts",
        )
    })
}

impl Contexts {
    /// Reads the file; one that is not there holds nothing.
    pub fn load(file: &Path) -> Result<Self> {
        let refuse = |what: String| Failure::bad_input(format!("{}: {what}", file.display()));
        let text = match std::fs::metadata(file) {
            Ok(about) if about.len() > LARGEST => {
                return Err(refuse(format!("found {} bytes, expected at most {LARGEST}", about.len())));
            }
            Ok(_) => std::fs::read_to_string(file),
            Err(error) => Err(error),
        };
        let text = match text {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Self::default());
            }
            Err(error) => return Err(refuse(format!("{error}; expected the file with the contexts of agentctl"))),
        };
        toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let what = error.message().lines().next().unwrap_or_default();
            refuse(format!("line {line}: {what}; mend it, or make it anew with agentctl context add"))
        })
    }

    /// Replaces the file: what reads it meanwhile sees the old one or the new one.
    pub fn save(&self, file: &Path) -> Result<()> {
        let refuse = |what: String| Failure::failed(format!("{}: {what}", file.display()));
        let text = toml::to_string(self).map_err(|error| refuse(format!("cannot be written: {error}")))?;
        let folder = file.parent().ok_or_else(|| refuse("has no folder".to_owned()))?;
        let write = || {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            let new = folder.join(format!(".config.toml.{}", std::process::id()));
            // one that an earlier process with this id left
            let _ = std::fs::remove_file(&new);
            let written = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).and_then(
                |mut opened| {
                    opened.write_all(text.as_bytes())?;
                    opened.sync_all()?;
                    std::fs::rename(&new, file)
                },
            );
            written.inspect_err(|_| {
                // the first error is the one to tell
                let _ = std::fs::remove_file(&new);
            })
        };
        write().map_err(|error| refuse(format!("cannot be written: {error}")))
    }

    /// The context with a name; `file` is where it should be.
    pub fn get(&self, name: &str, file: &Path) -> Result<&Context> {
        self.contexts.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.contexts.keys().map(String::as_str).collect();
            let known =
                if known.is_empty() { "there is none".to_owned() } else { format!("there is {}", known.join(", ")) };
            let message =
                format!("there is no context {name:?} in {}: {known}; agentctl context add makes one", file.display());
            Failure::new(NOT_FOUND, message)
        })
    }
}

/// Whether a name can be that of a context.
pub fn check_name(name: &str) -> Result<()> {
    let sound = (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && !name.starts_with('-');
    if sound {
        return Ok(());
    }
    Err(Failure::bad_input(format!(
        "found the context name {name:?}, expected 1 to 64 letters, digits, `.`, `_` and `-`, no `-` first"
    )))
}

impl Context {
    /// Its endpoint, once it is sure that the rest fits to it. `name` is for the line that tells what does not.
    pub fn check(&self, name: &str) -> Result<Endpoint> {
        let refuse = |what: &str| Failure::bad_input(format!("context {name}: {what}"));
        let endpoint = Endpoint::parse(&self.endpoint).map_err(|what| refuse(&format!("endpoint: {what}")))?;
        let keys = [("ca", &self.ca), ("certificate", &self.certificate), ("key", &self.key)];
        match &endpoint {
            Endpoint::Tls { .. } => {
                if self.insecure {
                    return Err(refuse(
                        "insecure: is for http:// on loopback only, https:// always checks; take it away",
                    ));
                }
                if let Some((key, _)) = keys.iter().find(|(_, file)| file.is_none()) {
                    return Err(refuse(&format!(
                        "{key}: missing; https:// needs ca, certificate and key: agentctl cert makes them"
                    )));
                }
            }
            Endpoint::Plain { loopback, .. } => {
                if !self.insecure || !loopback {
                    return Err(refuse(
                        "endpoint: plain http:// is for loopback addresses (127.0.0.1, [::1], localhost), and with \
                         insecure only; use https://",
                    ));
                }
            }
            Endpoint::Unix(_) => {}
        }
        if !matches!(endpoint, Endpoint::Tls { .. })
            && let Some((key, _)) = keys.iter().find(|(_, file)| file.is_some())
        {
            return Err(refuse(&format!("{key}: is for https:// only; take it away")));
        }
        Ok(endpoint)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn context(endpoint: &str) -> Context {
        Context { endpoint: endpoint.to_owned(), ..Context::default() }
    }

    #[test]
    fn the_file_is_private_and_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new/agentctl/config.toml");
        assert_eq!(Contexts::load(&file).unwrap(), Contexts::default());
        let mut contexts = Contexts { current: Some("far".into()), ..Contexts::default() };
        let far = Context { ca: Some("/c/ca.crt".into()), ..context("https://far:1") };
        contexts.contexts.insert("far".into(), far);
        contexts.contexts.insert("near".into(), context("unix:///run/x.sock"));
        contexts.save(&file).unwrap();
        contexts.save(&file).unwrap();
        assert_eq!(Contexts::load(&file).unwrap(), contexts);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(file.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
        let missing = contexts.get("nope", &file).unwrap_err();
        assert_eq!(missing.code(), NOT_FOUND);
    }

    #[test]
    fn a_file_that_is_wrong_is_refused_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        for (text, wanted) in
            [("current = 1\n", "line 1"), ("current = \"a\"\nother = 2\n", "line 2"), ("\n[x\n", "line 2")]
        {
            std::fs::write(&file, text).unwrap();
            let Failure::Told { code, message, .. } = Contexts::load(&file).unwrap_err() else { panic!("it is told") };
            assert!(code == 2 && message.contains(wanted) && !message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn what_does_not_fit_together_is_refused_by_field() {
        let tls = Context {
            ca: Some("/ca".into()),
            certificate: Some("/crt".into()),
            key: Some("/key".into()),
            ..context("https://far:8443")
        };
        assert!(tls.check("x").is_ok());
        let cases = [
            (Context { key: None, ..tls.clone() }, "key: missing"),
            (Context { insecure: true, ..tls.clone() }, "insecure:"),
            (context("http://127.0.0.1:80"), "insecure only"),
            (Context { insecure: true, ..context("http://10.0.0.1:80") }, "loopback"),
            (Context { ca: Some("/ca".into()), ..context("unix:///x") }, "ca: is for"),
            (context("ftp://x"), "endpoint: found"),
        ];
        for (context, wanted) in cases {
            let Failure::Told { message, .. } = context.check("x").unwrap_err() else { panic!("it is told") };
            assert!(message.contains(wanted), "{message}");
        }
        assert!(Context { insecure: true, ..context("http://[::1]:80") }.check("x").is_ok());
        for name in ["", "-a", "a/b", "ü"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(check_name("prod-1.eu").is_ok());
    }
}
