//! Pressure stall information: the files `cpu.pressure`, `memory.pressure` and `io.pressure` of a cgroup2 directory.

use super::files::{Buffer, Directory};

/// Time lost to the want of one resource since the cgroup was made, µs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stall {
    /// Some task waited.
    pub some: u64,
    /// All tasks that had work waited; none for CPU before Linux 5.13.
    pub full: Option<u64>,
}

/// Pressure on a container or a pod; none where the kernel was built or started without, or the cgroup has it turned off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    /// CPU.
    pub cpu: Option<Stall>,
    /// Memory.
    pub memory: Option<Stall>,
    /// Input and output.
    pub io: Option<Stall>,
}

impl Stall {
    /// Reads the text of a pressure file.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut stall: Option<Self> = None;
        for line in text.lines() {
            let Some(total) = line.rsplit_once("total=").and_then(|(_, total)| total.trim_ascii().parse().ok()) else {
                continue;
            };
            if line.starts_with("some ") {
                stall = Some(Self { some: total, full: None });
            } else if line.starts_with("full ") {
                stall.as_mut()?.full = Some(total);
            }
        }
        stall
    }
}

impl Pressure {
    /// Reads a cgroup2 directory.
    pub(super) fn read(buffer: &mut Buffer, directory: &Directory) -> Self {
        let mut read = |name| buffer.read(directory, name).and_then(Stall::parse);
        // One switch turns all of them off; what cannot be read for one resource cannot for the others.
        let Some(cpu) = read(c"cpu.pressure") else { return Self::default() };
        Self { cpu: Some(cpu), memory: read(c"memory.pressure"), io: read(c"io.pressure") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_understood() {
        let text = "some avg10=1.56 avg60=1.17 avg300=1.59 total=4995448436\n\
                    full avg10=0.00 avg60=0.00 avg300=0.00 total=12\n";
        assert_eq!(Stall::parse(text), Some(Stall { some: 4_995_448_436, full: Some(12) }));
        let old = "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        assert_eq!(Stall::parse(old), Some(Stall { some: 7, full: None }));
    }

    #[test]
    fn garbage_is_nothing() {
        for text in ["", "some\n", "some total=\n", "some avg10=0.00 total=-4", "full total=3\n", "total=3\n", "\0"] {
            assert_eq!(Stall::parse(text), None, "{text:?}");
        }
    }
}
