//! Many pods: one after another, and four at a time. The measure is pods per second.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::floor::Floor;
use super::harness::{Contestant, Measured, take_turns};
use super::ours::{self, Network};
use super::peers::Runtime;
use crate::daemon::Daemon;

/// Runs `count` jobs by as many workers as given, and returns jobs per second. The first error ends all.
fn rate<W: Send>(
    count: usize,
    workers: Vec<W>,
    job: impl Fn(&mut W, usize) -> Result<(), String> + Sync,
) -> Result<f64, String> {
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    let results: Vec<Result<(), String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = workers
            .into_iter()
            .map(|mut worker| {
                let (next, job) = (&next, &job);
                scope.spawn(move || {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= count {
                            return Ok(());
                        }
                        if let Err(error) = job(&mut worker, index) {
                            next.store(count, Ordering::Relaxed);
                            return Err(error);
                        }
                    }
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err("a worker panicked".to_owned())))
            .collect()
    });
    results.into_iter().collect::<Result<(), _>>()?;
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

/// Measures agentd, the floor, crun and runc.
pub fn measure(daemon: &Daemon, scratch: &Path, lower: &Path, count: usize, rounds: usize) -> Result<Measured, String> {
    let pods = |workers: usize| {
        let clients = (0..workers).map(|_| daemon.client()).collect();
        rate(count, clients, |client, index| {
            ours::run_to_end(client, &format!("/storm/{index}"), Network::Isolated).map(|_| ())
        })
    };
    let mut contestants = vec![
        Contestant::new("agentd, one at a time", || Ok(vec![("", pods(1)?)])),
        Contestant::new("agentd, four at a time", || Ok(vec![("", pods(4)?)])),
        Contestant::new("floor, four at a time", || {
            let floors = (0..4)
                .map(|slot| Floor::new(lower, &scratch.join(format!("storm-{slot}")), &["/bin/testbox", "true"]))
                .collect::<Result<_, _>>()?;
            Ok(vec![("", rate(count, floors, |floor, _| floor.run())?)])
        }),
    ];
    for program in ["crun", "runc"] {
        if Runtime::new(program, scratch, lower, 0)?.is_none() {
            continue;
        }
        contestants.push(Contestant::new(&format!("{program}, four at a time"), move || {
            let runtimes: Vec<Runtime> = (1..=4)
                .filter_map(|slot| Runtime::new(program, scratch, lower, slot).transpose())
                .collect::<Result<_, _>>()?;
            Ok(vec![("", rate(count, runtimes, |runtime, index| runtime.run(&format!("storm-{index}")))?)])
        }));
    }
    take_turns(contestants, &super::harness::Turns { rounds, ..Default::default() }, "agentd")
}
