//! Reading the kernel's small files, and putting points into a batch.

use std::borrow::Cow;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::model::{Batch, Family, Number, Point, ScopeId, Value};

/// Most bytes taken of one file. `/proc/stat` of a host with thousands of interrupts has some 100 KiB.
const LONGEST: u64 = 8 << 20;

/// Why a source gives no points: one line.
pub(super) type Reason = String;

/// The whole of a file, whatever bytes it has.
pub(super) fn text(path: &Path) -> Result<String, Reason> {
    optional(path)?.ok_or_else(|| format!("{} does not exist on this host", path.display()))
}

/// The same; none where the file does not exist.
pub(super) fn optional(path: &Path) -> Result<Option<String>, Reason> {
    let mut file = match File::open(path) {
        Ok(file) => file.take(LONGEST),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(format!("{}: {e}", path.display())),
    };
    // files of the kernel have no size to be asked for; most fit in here, so that one read and one for the end are enough
    let mut bytes = Vec::with_capacity(16 << 10);
    file.read_to_end(&mut bytes).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(Some(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())))
}

/// The one line of a small file below /sys or /proc/sys; none where it does not exist or the driver has no answer.
pub(super) fn line(path: &Path) -> Option<String> {
    let mut bytes = [0; 512];
    let length = File::open(path).ok()?.read(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes[..length]);
    Some(text.trim().to_owned())
}

/// A folder below /sys of which several files are read: the way to it, over links, is gone once.
pub(super) struct Folder(OwnedFd);

impl Folder {
    /// Opens it; none where it does not exist.
    pub(super) fn open(path: &Path) -> Option<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).ok().map(Self)
    }

    /// The one line of a file in it, as [`line`] gives it.
    pub(super) fn line(&self, file: &str) -> Option<String> {
        let file = rustix::fs::openat(&self.0, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut bytes = [0; 512];
        let length = rustix::io::read(&file, &mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..length]).trim().to_owned())
    }
}

/// A number in a file of one line.
pub(super) fn number(path: &Path) -> Result<u64, Reason> {
    let text = text(path)?;
    let text = text.trim();
    text.parse().map_err(|_| format!("{}: found '{}', expected a number", path.display(), shortened(text)))
}

/// What is quoted of outside input.
pub(super) fn shortened(text: &str) -> &str {
    text.char_indices().nth(60).map_or(text, |(at, _)| &text[..at])
}

/// Value of a label.
pub(super) type Label = Cow<'static, str>;

/// Where the points of one gathering go.
pub(super) struct Points<'a> {
    pub(super) batch: &'a mut Batch,
    pub(super) scope: ScopeId,
}

impl Points<'_> {
    /// A point without labels.
    pub(super) fn set(&mut self, family: &'static Family, value: impl Into<Number>) {
        self.at(family, [], value);
    }

    /// A point with labels, in the order of the family's.
    pub(super) fn at<const N: usize>(&mut self, family: &'static Family, labels: [Label; N], value: impl Into<Number>) {
        let point = Point { scope: self.scope, labels: Vec::from(labels), value: Value::Number(value.into()) };
        self.batch.push(family, point);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::model::Scope;

    /// Files of a made-up host below `root`.
    pub(in crate::node) fn write(root: &Path, files: &[(&str, &str)]) {
        for (path, content) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
    }

    /// A batch that `source` has filled, and its answer.
    pub(in crate::node) fn filled<T>(source: impl FnOnce(&mut Points<'_>) -> T) -> (Batch, T) {
        let mut batch = Batch::new(SystemTime::UNIX_EPOCH);
        let scope = batch.scope(Scope::default());
        let answer = source(&mut Points { batch: &mut batch, scope });
        (batch, answer)
    }

    /// The value of the point with these labels.
    pub(in crate::node) fn value(batch: &Batch, family: &'static Family, labels: &[&str]) -> Option<f64> {
        let mut found = batch.points(family).iter().filter(|point| point.labels.iter().eq(labels));
        let first = found.next()?;
        assert!(found.next().is_none(), "{} {labels:?} stands twice", family.name);
        match first.value {
            Value::Number(Number::Whole(value)) => Some(value as f64),
            Value::Number(Number::Real(value)) => Some(value),
            Value::Histogram(_) => None,
        }
    }

    #[test]
    fn files_are_read_whatever_they_hold() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[("n", " 18446744073709551615\n"), ("much", "18446744073709551616"), ("no", "")]);
        std::fs::write(dir.path().join("raw"), b"a\xff\n").unwrap();
        assert_eq!(number(&dir.path().join("n")), Ok(u64::MAX));
        assert!(number(&dir.path().join("much")).unwrap_err().contains("expected a number"));
        assert!(number(&dir.path().join("no")).unwrap_err().contains("found ''"));
        assert!(number(&dir.path().join("none")).unwrap_err().contains("does not exist"));
        assert_eq!(text(&dir.path().join("raw")).unwrap(), "a\u{fffd}\n");
        assert_eq!(optional(&dir.path().join("n/below")), Ok(None));
        assert!(text(dir.path()).unwrap_err().contains("directory"));
        assert_eq!((line(&dir.path().join("raw")).unwrap().as_str(), line(dir.path())), ("a\u{fffd}", None));
        assert_eq!(shortened(&"é".repeat(100)).chars().count(), 60);
    }
}
