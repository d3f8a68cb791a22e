//! Memory of idle pods: how far the host's available memory falls, and what each pod-init holds by itself.

use std::fs;
use std::time::Duration;

use super::harness::{Measured, Samples};
use super::ours::{self, Network};
use crate::daemon::Daemon;
use crate::http::Client;

/// Time for what was started or ended to settle: the pool is refilled, and the kernel frees behind.
const SETTLE: Duration = Duration::from_secs(3);
const WORKERS: usize = 4;

/// A value in KiB of a file such as /proc/meminfo.
pub fn kib(path: &str, name: &str) -> Result<f64, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.split_whitespace().next()?.parse().ok())
        .ok_or_else(|| format!("{path} has no {name}"))
}

/// Starts `count` pods of one container that waits, measures, and removes them.
pub fn measure(daemon: &Daemon, count: usize) -> Result<Measured, String> {
    let ids: Vec<String> = (0..count).map(|index| format!("/idle/{index}")).collect();
    std::thread::sleep(SETTLE);
    let before = kib("/proc/meminfo", "MemAvailable")?;
    let started = each(daemon, &ids, |client, id| {
        let body = ours::pod(id, Network::Isolated, 1, &["/bin/testbox", "hold"]).to_string();
        let status = client.expect("POST", "/v1/pods?wait=running", body.as_bytes(), &[201])?.json()?;
        status["instances"][0]["initPid"].as_u64().ok_or_else(|| format!("{id} has no pod-init: {status}"))
    });
    let measured = started.and_then(|inits| {
        std::thread::sleep(SETTLE);
        let after = kib("/proc/meminfo", "MemAvailable")?;
        let mut sizes = Vec::new();
        for pid in inits {
            sizes.push(kib(&format!("/proc/{pid}/smaps_rollup"), "Pss")?);
        }
        let own = kib(&format!("/proc/{}/smaps_rollup", daemon.pid()), "Pss")?;
        let mut measured = Measured::from([
            ("pod-init by itself (PSS)".to_owned(), Samples(sizes)),
            (format!("the daemon with {count} pods (PSS)"), Samples(vec![own])),
        ]);
        if after < before {
            let each = Samples(vec![(before - after) / count as f64]);
            measured.insert(format!("each of {count} pods, of the host's available memory"), each);
        } else {
            println!(
                "  available memory grew by {:.0} KiB meanwhile: others use this host, so it says nothing",
                after - before
            );
        }
        Ok(measured)
    });
    let removed = each(daemon, &ids, ours::remove);
    let measured = measured?;
    removed?;
    Ok(measured)
}

/// Starts `count` pods of one container that waits, does something, and removes them.
pub fn with_pods(daemon: &Daemon, count: usize, mut job: impl FnMut() -> Result<(), String>) -> Result<(), String> {
    let ids: Vec<String> = (0..count).map(|index| format!("/idle/{index}")).collect();
    let started = each(daemon, &ids, |client, id| {
        let body = ours::pod(id, Network::Isolated, 1, &["/bin/testbox", "hold"]).to_string();
        client.expect("POST", "/v1/pods?wait=running", body.as_bytes(), &[201]).map(|_| ())
    });
    let done = started.and_then(|_| {
        std::thread::sleep(SETTLE);
        job()
    });
    let removed = each(daemon, &ids, ours::remove);
    done?;
    removed.map(|_| ())
}

/// Does something for each pod, several at a time.
fn each<T: Send>(
    daemon: &Daemon,
    ids: &[String],
    job: impl Fn(&mut Client, &str) -> Result<T, String> + Sync,
) -> Result<Vec<T>, String> {
    let share = ids.len().div_ceil(WORKERS).max(1);
    let parts: Vec<Result<Vec<T>, String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = ids
            .chunks(share)
            .map(|part| {
                let job = &job;
                scope.spawn(move || {
                    let mut client = daemon.client();
                    // all are tried, so that one that fails does not leave the others behind
                    let results: Vec<_> = part.iter().map(|id| job(&mut client, id)).collect();
                    results.into_iter().collect()
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err("a worker panicked".to_owned())))
            .collect()
    });
    Ok(parts.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}
