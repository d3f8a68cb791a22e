//! Copies of downloads, by URI. A copy serves only after the server has said (304) that it is still current.
//!
//! `<hash of the URI>.json` names its data file, the validators, size and hash of the content. The data file is written
//! first and the JSON file renamed into place; a data file that none names is the rest of a crash and is removed at the
//! next store. What does not match size and hash (a crash of the host, a bad disk) is not used.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::protocol::Validators;

/// The cache folder of one agentd.
pub(crate) struct Cache {
    folder: PathBuf,
    max_bytes: u64,
    /// One store or eviction at a time.
    writing: Mutex<()>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    validators: Validators,
    data: String,
    size: u64,
    sha256: String,
}

impl Cache {
    pub fn new(folder: PathBuf, max_bytes: u64) -> Self {
        Self { folder, max_bytes, writing: Mutex::new(()) }
    }

    fn entry_path(&self, uri: &str) -> PathBuf {
        self.folder.join(format!("{}.json", hash(uri.as_bytes())))
    }

    /// The copy of `uri` and its state, marked as just used.
    pub fn get(&self, uri: &str) -> Option<(Validators, File)> {
        let path = self.entry_path(uri);
        let entry: Entry = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        if !plain(&entry.data) {
            return None;
        }
        let mut data = File::open(self.folder.join(&entry.data)).ok()?;
        if data.metadata().ok()?.len() != entry.size || hash_file(&mut data).ok()? != entry.sha256 {
            tracing::warn!(entry = %path.display(), "a cached artifact is damaged and not used");
            return None;
        }
        if let Ok(file) = File::open(&path) {
            // for the order of eviction only
            let _ = file.set_modified(SystemTime::now());
        }
        Some((entry.validators, data))
    }

    /// Keeps a copy of `file`.
    pub fn put(&self, uri: &str, validators: &Validators, file: &mut File) -> io::Result<()> {
        let size = file.metadata()?.len();
        if !validators.any() || size > self.max_bytes {
            return Ok(());
        }
        let _guard = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        self.evict(self.max_bytes - size)?;
        let key = hash(uri.as_bytes());
        let nonce = uuid::Uuid::new_v4().simple().to_string();
        let data = format!("{key}-{nonce}.data");
        let mut copy = File::create_new(self.folder.join(&data))?;
        file.rewind()?;
        let mut hasher = Sha256::new();
        let written = pump(file, |bytes| {
            hasher.update(bytes);
            copy.write_all(bytes)
        })?;
        let entry = Entry { validators: validators.clone(), data, size: written, sha256: hex(&hasher.finalize()) };
        let new = self.folder.join(format!("{key}-{nonce}.new"));
        fs::write(&new, serde_json::to_vec(&entry)?)?;
        fs::rename(new, self.entry_path(uri))
    }

    /// Removes the copies that were not used for longest until the rest has at most `most` bytes, and what crashes left.
    fn evict(&self, most: u64) -> io::Result<()> {
        let mut entries = Vec::new();
        let mut others = Vec::new();
        for item in fs::read_dir(&self.folder)? {
            let path = item?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                others.push(path);
                continue;
            }
            let entry = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Entry>(&text).ok());
            match (entry, fs::metadata(&path).and_then(|data| data.modified())) {
                (Some(entry), Ok(used)) => entries.push((used, path, entry)),
                _ => others.push(path),
            }
        }
        entries.sort_by_key(|(used, ..)| *used);
        let mut total: u64 = entries.iter().map(|(.., entry)| entry.size).sum();
        let mut kept: HashSet<OsString> = HashSet::new();
        for (_, path, entry) in entries {
            if total > most {
                total -= entry.size;
                remove_if_there(&path)?;
            } else {
                kept.insert(entry.data.into());
            }
        }
        for path in others {
            if path.file_name().is_none_or(|name| !kept.contains(name)) {
                remove_if_there(&path)?;
            }
        }
        Ok(())
    }
}

/// Whether a name is one of this folder, not a way out of it.
fn plain(name: &str) -> bool {
    !name.contains('/') && name != ".." && !name.is_empty()
}

fn remove_if_there(path: &std::path::Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn pump(from: &mut File, mut to: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<u64> {
    let mut buffer = vec![0; 128 * 1024];
    let mut total = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(count) => {
                total += count as u64;
                to(&buffer[..count])?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn hash(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hash_file(file: &mut File) -> io::Result<String> {
    let mut hasher = Sha256::new();
    pump(file, |bytes| {
        hasher.update(bytes);
        Ok(())
    })?;
    file.rewind()?;
    Ok(hex(&hasher.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        // writing to a string cannot fail
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(cache: &Cache, uri: &str, content: &[u8]) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        cache.put(uri, &Validators { etag: Some("\"1\"".to_owned()), last_modified: None }, &mut file).unwrap();
    }

    fn get(cache: &Cache, uri: &str) -> Option<Vec<u8>> {
        let (_, mut file) = cache.get(uri)?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        Some(content)
    }

    #[test]
    fn keeps_what_was_used_last_within_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().join("cache"), 100);
        put(&cache, "http://h/a", &[b'a'; 40]);
        std::thread::sleep(std::time::Duration::from_millis(20));
        put(&cache, "http://h/b", &[b'b'; 40]);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(get(&cache, "http://h/a").unwrap(), [b'a'; 40]);
        put(&cache, "http://h/c", &[b'c'; 50]);
        assert!(get(&cache, "http://h/b").is_none(), "least recently used");
        assert_eq!(get(&cache, "http://h/a").unwrap(), [b'a'; 40]);
        assert_eq!(get(&cache, "http://h/c").unwrap(), [b'c'; 50]);
        put(&cache, "http://h/big", &[b'x'; 101]);
        assert!(get(&cache, "http://h/big").is_none());
        // a new state of the same URI replaces the old one, whose data goes with the next store
        put(&cache, "http://h/c", b"new");
        assert_eq!(get(&cache, "http://h/c").unwrap(), b"new");
        fs::write(dir.path().join("cache/crashed.data"), "x").unwrap();
        put(&cache, "http://h/d", b"d");
        assert_eq!(fs::read_dir(dir.path().join("cache")).unwrap().count(), 6, "three entries of two files");
    }

    #[test]
    fn damaged_copies_are_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().to_owned(), 100);
        put(&cache, "http://h/a", b"content");
        for item in fs::read_dir(dir.path()).unwrap() {
            let path = item.unwrap().path();
            if path.extension().unwrap() == "data" {
                fs::write(path, b"CONTENT").unwrap();
            }
        }
        assert!(cache.get("http://h/a").is_none());
    }
}
