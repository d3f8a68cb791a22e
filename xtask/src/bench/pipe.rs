//! How fast data passes through a program in a container, in and out again, beside a pipe of plain programs.

use std::path::Path;
use std::time::Instant;

use serde_json::json;

use super::harness::{Contestant, Measured, Turns, take_turns};
use super::ours;
use super::peers::silent;
use crate::daemon::Daemon;

/// Bytes of one run.
const BYTES: u64 = 2 << 30;

/// The pod without an image, so that the `cat` in it is that of the host.
const POD: &str = "/bench/pipe";

/// Gigabytes a second.
pub fn measure(daemon: &Daemon, agentctl: &Path, rounds: usize) -> Result<Measured, String> {
    let mut client = daemon.client();
    let pod = json!({
        "id": POD,
        "containers": [{
            "name": "main", "exec": {"command": {"shell": "exec sleep 1000000"}},
            "resources": {"cpus": 64, "mem": 1024}, "lifecycle": {"killGracePeriodSeconds": 0.1},
        }],
        "agentd": {"restart": "never", "isolatedNetwork": true},
    });
    client.expect("POST", "/v1/pods?wait=running", pod.to_string().as_bytes(), &[201])?;
    let exec = format!("'{}' --socket '{}' exec", agentctl.display(), daemon.socket.display());
    let contestants = [
        ("agentctl exec -i cat", format!("head -c {BYTES} /dev/zero | {exec} -i {POD} -- cat")),
        ("agentctl exec, output only", format!("{exec} {POD} -- head -c {BYTES} /dev/zero")),
        ("agentctl exec -i, input only", format!("head -c {BYTES} /dev/zero | {exec} -i {POD} -- wc -c")),
        ("five times cat", format!("head -c {BYTES} /dev/zero | cat | cat | cat | cat | cat")),
    ]
    .map(|(name, line)| {
        Contestant::new(name, move || {
            let start = Instant::now();
            silent(std::process::Command::new("sh").args(["-c", &format!("{line} > /dev/null")]))?;
            Ok(vec![("", BYTES as f64 / 1e9 / start.elapsed().as_secs_f64())])
        })
    });
    let turns = Turns { warm_up: 1, rounds, ..Turns::default() };
    let measured = take_turns(contestants.into(), &turns, "agentctl");
    // the daemon has closed a connection on which nothing was asked for so long
    let removed = ours::remove(&mut daemon.client(), POD);
    let measured = measured?;
    removed?;
    Ok(measured)
}
