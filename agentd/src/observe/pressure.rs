//! Pressure thresholds: when a container loses much of its time to the want of CPU, memory or I/O, and when it no longer does.
//!
//! [`Meter`] is a state machine without clock or I/O: it is given the shares of the last ten seconds (`avg10` of the cgroup's
//! `*.pressure` files) and says which threshold was crossed. A threshold that was crossed upwards is crossed downwards at three
//! quarters of it, so that a share that wavers about it is told once.

use std::path::Path;

/// A resource that tasks wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Some task waits.
    Cpu,
    /// All tasks wait.
    Memory,
    /// All tasks wait.
    Io,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Cpu, Self::Memory, Self::Io];

    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Io => "io",
        }
    }

    /// Whose waiting counts: the line of the file.
    pub fn line(self) -> &'static str {
        match self {
            Self::Cpu => "some",
            Self::Memory | Self::Io => "full",
        }
    }
}

/// Thresholds in percent, by [`Resource::ALL`]; 0: none.
pub type Thresholds = [f64; 3];

/// A share that was crossed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Crossing {
    /// Of what.
    pub resource: Resource,
    /// Upwards.
    pub above: bool,
    /// The share of the last ten seconds, percent.
    pub share: f64,
    /// The threshold, percent.
    pub threshold: f64,
}

impl Crossing {
    /// One line for people.
    pub fn message(&self) -> String {
        let who = if self.resource.line() == "some" { "some task" } else { "every task" };
        let (word, share, threshold) = (self.resource.word(), self.share, self.threshold);
        if self.above {
            format!("{word} pressure: {who} waited for {share:.0} % of the last 10 s, more than {threshold:.0} %")
        } else {
            format!(
                "{word} pressure is over: {who} waited for {share:.0} % of the last 10 s (threshold {threshold:.0} %)"
            )
        }
    }
}

/// Part of a threshold at which it is crossed downwards.
const DOWN: f64 = 0.75;

/// The state of one container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Meter {
    above: [bool; 3],
}

impl Meter {
    /// Takes in the shares of the last ten seconds; none where the file is not there.
    pub fn step(&mut self, shares: [Option<f64>; 3], thresholds: Thresholds) -> Vec<Crossing> {
        let mut crossings = Vec::new();
        for (index, resource) in Resource::ALL.into_iter().enumerate() {
            let (Some(share), threshold) = (shares[index], thresholds[index]) else { continue };
            let above = match (threshold > 0.0, self.above[index]) {
                (false, _) => false,
                (true, false) => share >= threshold,
                (true, true) => share > threshold * DOWN,
            };
            if above != self.above[index] {
                self.above[index] = above;
                crossings.push(Crossing { resource, above, share, threshold });
            }
        }
        crossings
    }
}

/// The shares of a cgroup2 directory, percent. Blocking.
pub fn read(directory: &Path) -> [Option<f64>; 3] {
    Resource::ALL.map(|resource| {
        let text = std::fs::read_to_string(directory.join(format!("{}.pressure", resource.word()))).ok()?;
        share(&text, resource.line())
    })
}

/// `avg10` of a line of a pressure file.
fn share(text: &str, line: &str) -> Option<f64> {
    let line = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '))?;
    line.split_ascii_whitespace().find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const THRESHOLDS: Thresholds = [60.0, 10.0, 40.0];

    fn told(meter: &mut Meter, cpu: f64, memory: f64) -> Vec<(&'static str, bool)> {
        let crossings = meter.step([Some(cpu), Some(memory), None], THRESHOLDS);
        crossings.iter().map(|crossing| (crossing.resource.word(), crossing.above)).collect()
    }

    #[test]
    fn a_threshold_is_told_once_each_way() {
        let mut meter = Meter::default();
        assert_eq!(told(&mut meter, 59.9, 0.0), []);
        assert_eq!(told(&mut meter, 60.0, 0.0), [("cpu", true)]);
        // it wavers
        for share in [55.0, 61.0, 46.0, 99.0] {
            assert_eq!(told(&mut meter, share, 0.0), []);
        }
        assert_eq!(told(&mut meter, 45.0, 12.0), [("cpu", false), ("memory", true)]);
        assert_eq!(told(&mut meter, 0.0, 0.0), [("memory", false)]);
        assert_eq!(meter, Meter::default());
    }

    #[test]
    fn without_a_threshold_or_a_file_nothing_is_told() {
        let mut meter = Meter::default();
        assert_eq!(meter.step([Some(100.0); 3], [0.0; 3]), []);
        assert_eq!(meter.step([None; 3], THRESHOLDS), []);
        // one that goes away while it is above ends with it
        assert_eq!(meter.step([Some(100.0), None, None], THRESHOLDS).len(), 1);
        assert_eq!(meter.step([None; 3], THRESHOLDS), []);
        assert!(meter.step([Some(100.0), None, None], [0.0; 3]).iter().all(|crossing| !crossing.above));
    }

    #[test]
    fn the_line_that_counts_is_read() {
        let text = "some avg10=12.50 avg60=1.00 avg300=0.00 total=5\nfull avg10=3.25 avg60=0.00 avg300=0.00 total=1\n";
        assert_eq!(share(text, "some"), Some(12.5));
        assert_eq!(share(text, "full"), Some(3.25));
        for bad in ["", "some\n", "somewhat avg10=1\n", "some avg10=x\n", "full avg60=1\n"] {
            assert_eq!(share(bad, "some"), None, "{bad:?}");
        }
    }

    #[test]
    fn messages_say_what_and_how_much() {
        let mut meter = Meter::default();
        let up = meter.step([None, Some(31.4), None], THRESHOLDS)[0];
        assert_eq!(up.message(), "memory pressure: every task waited for 31 % of the last 10 s, more than 10 %");
        let down = meter.step([None, Some(1.0), None], THRESHOLDS)[0];
        assert_eq!(
            down.message(),
            "memory pressure is over: every task waited for 1 % of the last 10 s (threshold 10 %)"
        );
    }
}
