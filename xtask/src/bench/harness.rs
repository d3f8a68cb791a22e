//! Contestants take turns, one run each, round after round, so that what else happens on the host falls on all alike.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Milliseconds of one run, by the name of what was measured.
pub type Sample = Vec<(&'static str, f64)>;

type Run<'a> = Box<dyn FnMut() -> Result<Sample, String> + 'a>;

/// One who takes part.
pub struct Contestant<'a> {
    pub name: String,
    run: Run<'a>,
}

impl<'a> Contestant<'a> {
    /// A contestant that measures itself.
    pub fn new(name: &str, run: impl FnMut() -> Result<Sample, String> + 'a) -> Self {
        Self { name: name.to_owned(), run: Box::new(run) }
    }

    /// A contestant whose whole run is measured.
    pub fn whole(name: &str, mut run: impl FnMut() -> Result<(), String> + 'a) -> Self {
        Self::new(name, move || {
            let start = Instant::now();
            run()?;
            Ok(vec![("", milliseconds(start))])
        })
    }
}

/// Milliseconds since an instant.
pub fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// All samples of one measurement.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples(pub Vec<f64>);

impl Samples {
    /// The value below which this part of the samples lies (nearest rank).
    pub fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (part * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
    }

    /// The median; of an even number of samples the mean of the middle two.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            count if count % 2 == 1 => sorted[count / 2],
            count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
        }
    }
}

/// What was measured, by name.
pub type Measured = BTreeMap<String, Samples>;

/// How turns are taken.
#[derive(Debug, Clone, Copy)]
pub struct Turns {
    /// Rounds that are not measured.
    pub warm_up: usize,
    /// Rounds that are.
    pub rounds: usize,
    /// Runs of a turn. More than one are back to back, after one that is not measured: it takes what the contestant
    /// before has left to do.
    pub block: usize,
    /// Pause before a turn.
    pub pause: Duration,
}

impl Default for Turns {
    fn default() -> Self {
        Self { warm_up: 0, rounds: 1, block: 1, pause: Duration::ZERO }
    }
}

/// Runs the contestants in turns. One that fails is named, with its reason, and takes no further part; one whose name
/// begins with `ours` must not fail.
pub fn take_turns(mut contestants: Vec<Contestant<'_>>, turns: &Turns, ours: &str) -> Result<Measured, String> {
    let mut measured = Measured::new();
    for round in 0..turns.warm_up + turns.rounds {
        let mut index = 0;
        while index < contestants.len() {
            std::thread::sleep(turns.pause);
            let contestant = &mut contestants[index];
            match turn(contestant, turns.block) {
                Ok(samples) => {
                    if round >= turns.warm_up {
                        for (part, value) in samples.into_iter().flatten() {
                            let name = format!("{} {part}", contestant.name);
                            measured.entry(name.trim_end().to_owned()).or_default().0.push(value);
                        }
                    }
                    index += 1;
                }
                Err(error) if contestant.name.starts_with(ours) => return Err(format!("{}: {error}", contestant.name)),
                Err(error) => {
                    println!("  {} takes no further part: {error}", contestant.name);
                    measured.retain(|name, _| !name.starts_with(&contestant.name));
                    contestants.remove(index);
                }
            }
        }
    }
    Ok(measured)
}

fn turn(contestant: &mut Contestant<'_>, block: usize) -> Result<Vec<Sample>, String> {
    if block > 1 {
        (contestant.run)()?;
    }
    (0..block).map(|_| (contestant.run)()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_samples() {
        let samples = Samples((1..=40).rev().map(f64::from).collect());
        assert_eq!((samples.median(), samples.quantile(0.95)), (20.5, 38.0));
        let one = Samples(vec![7.0]);
        assert_eq!((one.median(), one.quantile(0.95)), (7.0, 7.0));
        assert!(Samples::default().median().is_nan());
    }

    #[test]
    fn turns_are_interleaved_and_the_warm_up_is_not_counted() {
        let order = std::cell::RefCell::new(String::new());
        let contestants = ["a", "b"]
            .map(|name| {
                let order = &order;
                Contestant::new(name, move || {
                    order.borrow_mut().push_str(name);
                    Ok(vec![("", 1.0)])
                })
            })
            .into();
        let measured = take_turns(contestants, &Turns { warm_up: 1, rounds: 2, ..Turns::default() }, "a").unwrap();
        assert_eq!(*order.borrow(), "ababab");
        assert_eq!(measured["a"].0.len(), 2);
    }

    #[test]
    fn of_a_block_the_first_run_is_not_measured() {
        let mut count = 0.0;
        let contestant = Contestant::new("a", || {
            count += 1.0;
            Ok(vec![("", count)])
        });
        let measured = take_turns(vec![contestant], &Turns { rounds: 2, block: 2, ..Turns::default() }, "a").unwrap();
        assert_eq!(measured["a"].0, [2.0, 3.0, 5.0, 6.0]);
    }

    #[test]
    fn a_peer_that_fails_leaves_and_ours_may_not() {
        let contestants = || {
            vec![
                Contestant::new("ours", || Ok(vec![("start", 1.0), ("whole", 2.0)])),
                Contestant::new("peer", || Err("no".to_owned())),
            ]
        };
        let turns = Turns { rounds: 2, ..Turns::default() };
        let measured = take_turns(contestants(), &turns, "ours").unwrap();
        assert_eq!(measured.keys().collect::<Vec<_>>(), ["ours start", "ours whole"]);
        assert!(take_turns(contestants(), &turns, "peer").is_err());
    }
}
