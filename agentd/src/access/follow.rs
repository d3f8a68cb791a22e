//! Notices when files change, so that certificates and the access list are read again without a restart.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the files are looked at, at most.
const INTERVAL: Duration = Duration::from_secs(1);

/// What tells one state of a file from another: device, inode, size, and the times of the last change.
type Mark = Option<(u64, u64, u64, i64, i64, i64, i64)>;

/// Files and the state in which they were last seen.
#[derive(Debug)]
pub struct Follow {
    paths: Vec<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    marks: Vec<Mark>,
    next: Instant,
}

impl Follow {
    /// Takes the files as they are now. Read them afterwards: a change in between is then noticed later.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        let marks = paths.iter().map(mark).collect();
        Self { paths, state: Mutex::new(State { marks, next: Instant::now() + INTERVAL }) }
    }

    /// Whether a file has changed since this was last asked. Looks at most once a second.
    pub fn changed(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if now < state.next {
            return false;
        }
        state.next = now + INTERVAL;
        let marks: Vec<Mark> = self.paths.iter().map(mark).collect();
        let changed = marks != state.marks;
        state.marks = marks;
        changed
    }

    /// Lets the next question look at once.
    pub fn look_again(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).next = Instant::now();
    }
}

fn mark(path: &PathBuf) -> Mark {
    let found = std::fs::metadata(path).ok()?;
    let times = (found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec());
    Some((found.dev(), found.ino(), found.size(), times.0, times.1, times.2, times.3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_once() {
        let folder = tempfile::Builder::new().prefix("agentd-test-follow-").tempdir().unwrap();
        let path = folder.path().join("file");
        let follow = Follow::new(vec![path.clone()]);
        let look = || {
            follow.look_again();
            follow.changed()
        };
        assert!(!look());
        std::fs::write(&path, "a").unwrap();
        assert!(look() && !look());
        let new = folder.path().join("new");
        std::fs::write(&new, "b").unwrap();
        std::fs::rename(&new, &path).unwrap();
        assert!(!follow.changed(), "not within the second");
        assert!(look() && !look());
        std::fs::remove_file(&path).unwrap();
        assert!(look() && !look());
    }
}
