//! Processes that carry a word of the test in their arguments, found through `/proc` and not through the daemon that is
//! being tested.

use std::fs;

/// Ids of the processes one of whose arguments is `marker`. Left out are those that have ended but are not reaped, and
/// those that one of them has just forked and that have not begun a program of their own.
pub fn processes(marker: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // a process that is reaped while it is looked at has no arguments
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.split(|byte| *byte == 0).any(|word| word == marker.as_bytes()) {
            found.push(pid);
        }
    }
    let all = found.clone();
    found.retain(|pid| parent(*pid).is_none_or(|parent| !all.contains(&parent)));
    found
}

/// When a process was started, in clock ticks since the boot; none once it has gone. With its id it tells a process from
/// all others.
pub fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit_once(')')?.1;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

/// Id of the parent of a process; none once it has gone.
pub fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_found_by_its_argument() {
        let marker = format!("marker-{}", std::process::id());
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        assert!(processes(&marker).is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read line", &marker])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        crate::until("the child is seen", std::time::Duration::from_secs(5), || {
            (processes(&marker) == [child.id()]).then_some(())
        });
        assert!(started(child.id()).is_some_and(|ticks| ticks > 0));
        assert_eq!(parent(child.id()), Some(std::process::id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(processes(&marker).is_empty());
    }
}
