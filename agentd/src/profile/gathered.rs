//! Stacks by name, and how often each was seen: what a minute of a container holds, and what an answer is made of. Bounded
//! in stacks and in frames; what is over goes into one stack that says so.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

/// Most different stacks.
pub const MOST_STACKS: usize = 4000;
/// Most different frames.
pub const MOST_FRAMES: usize = 8000;

/// What holds functions: a file that was mapped, the kernel, or neither.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct File {
    /// Path in the container, or a name in brackets.
    pub name: String,
    /// Its GNU build id in hexadecimal digits, where it has one.
    pub build_id: String,
    /// What it is.
    pub kind: Kind,
}

/// What a [`File`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A file that was mapped.
    Mapped,
    /// The kernel.
    Kernel,
    /// Code that no file holds: made at run time, or not known.
    Anonymous,
    /// No code: the name of a command, below which its stacks stand.
    Command,
}

/// A function on a stack.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frame {
    /// Its name, demangled, or in brackets what is known instead.
    pub name: Arc<str>,
    /// Where it begins in its file, as the file counts addresses; 0 where that is not known or not told.
    pub address: u64,
    /// What holds it.
    pub file: Arc<File>,
}

impl Frame {
    /// A name below which stacks stand.
    pub fn command(name: &str) -> Self {
        let file = File { name: String::new(), build_id: String::new(), kind: Kind::Command };
        Self { name: name.into(), address: 0, file: Arc::new(file) }
    }

    fn bytes(&self) -> usize {
        // names are shared with the symbols of their file while these are kept
        self.name.len() + 96
    }
}

/// How often, and for how long.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weight {
    /// Samples.
    pub samples: u64,
    /// Time on a CPU that they stand for, ns.
    pub nanos: u64,
}

impl Weight {
    /// So many samples at a rate.
    pub fn of(samples: u64, hz: u32) -> Self {
        Self { samples, nanos: samples.saturating_mul(1_000_000_000 / u64::from(hz.max(1))) }
    }

    fn add(&mut self, other: Self) {
        self.samples = self.samples.saturating_add(other.samples);
        self.nanos = self.nanos.saturating_add(other.nanos);
    }
}

/// Stacks with their weights.
#[derive(Debug, Clone, Default)]
pub struct Gathered {
    frames: Vec<Frame>,
    numbers: HashMap<Frame, u32>,
    stacks: HashMap<Box<[u32]>, Weight>,
    bytes: usize,
}

impl Gathered {
    /// Counts a stack, outermost frame first.
    pub fn add(&mut self, stack: &[Frame], weight: Weight) {
        let missing = stack.iter().filter(|frame| !self.numbers.contains_key(*frame)).count();
        let numbers: Option<Box<[u32]>> = (self.frames.len() + missing <= MOST_FRAMES)
            .then(|| stack.iter().map(|frame| self.number(frame)).collect());
        let known = numbers.as_ref().is_some_and(|numbers| self.stacks.contains_key(numbers));
        let numbers = match numbers {
            Some(numbers) if known || self.stacks.len() < MOST_STACKS => numbers,
            _ => [self.number(&Frame::command("[other stacks]"))].into(),
        };
        let length = numbers.len();
        if let Some(sum) = self.stacks.get_mut(&numbers) {
            sum.add(weight);
        } else {
            self.stacks.insert(numbers, weight);
            self.bytes += length * 4 + 64;
        }
    }

    fn number(&mut self, frame: &Frame) -> u32 {
        if let Some(number) = self.numbers.get(frame) {
            return *number;
        }
        let number = self.frames.len() as u32;
        self.bytes += frame.bytes();
        self.frames.push(frame.clone());
        self.numbers.insert(frame.clone(), number);
        number
    }

    /// Adds everything of another.
    pub fn merge(&mut self, other: &Self) {
        for (stack, weight) in other.iter() {
            let stack: Vec<Frame> = stack.cloned().collect();
            self.add(&stack, weight);
        }
    }

    /// Every stack, outermost frame first.
    pub fn iter(&self) -> impl Iterator<Item = (impl Iterator<Item = &Frame>, Weight)> {
        self.stacks
            .iter()
            .map(|(stack, weight)| (stack.iter().filter_map(|number| self.frames.get(*number as usize)), *weight))
    }

    /// All weights together.
    pub fn total(&self) -> Weight {
        self.stacks.values().fold(Weight::default(), |mut sum, weight| {
            sum.add(*weight);
            sum
        })
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.stacks.is_empty()
    }

    /// Memory that it takes, about, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// As folded text: a line for each stack, its names with semicolons between them, a space, and the samples. Functions
    /// of the kernel end in `_[k]`. Lines stand in order.
    pub fn folded(&self) -> String {
        let mut lines: HashMap<String, u64> = HashMap::with_capacity(self.stacks.len());
        for (stack, weight) in self.iter() {
            let names: Vec<String> = stack.map(plain).collect();
            *lines.entry(names.join(";")).or_default() += weight.samples;
        }
        let mut lines: Vec<(String, u64)> = lines.into_iter().collect();
        lines.sort_unstable();
        lines.into_iter().fold(String::new(), |mut text, (names, samples)| {
            // writing to a string cannot fail
            let _ = writeln!(text, "{names} {samples}");
            text
        })
    }
}

/// A frame's name as it may stand in folded text: on one line and without the separator.
fn plain(frame: &Frame) -> String {
    let end = if frame.file.kind == Kind::Kernel { "_[k]" } else { "" };
    let clean = |letter: char| match letter {
        ';' => ':',
        letter if letter.is_control() => ' ',
        letter => letter,
    };
    frame.name.chars().map(clean).chain(end.chars()).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A frame of a file.
    pub fn frame(file: &str, name: &str, address: u64) -> Frame {
        let kind = if file == "[kernel]" { Kind::Kernel } else { Kind::Mapped };
        let file = File { name: file.to_owned(), build_id: "abcd".to_owned(), kind };
        Frame { name: name.into(), address, file: Arc::new(file) }
    }

    /// Stacks of one command with known weights.
    pub fn sample() -> Gathered {
        let mut gathered = Gathered::default();
        let main = frame("/bin/app", "main", 0x1000);
        let hot = |name: &str, at| vec![Frame::command("app"), main.clone(), frame("/bin/app", name, at)];
        gathered.add(&hot("hot_a", 0x2000), Weight::of(70, 49));
        gathered.add(&hot("hot_a", 0x2000), Weight::of(5, 49));
        gathered.add(&hot("hot<b>;\n", 0x3000), Weight::of(20, 49));
        let mut kernel = hot("hot_a", 0x2000);
        kernel.push(frame("[kernel]", "vfs_read", 0));
        gathered.add(&kernel, Weight::of(5, 49));
        gathered
    }

    #[test]
    fn equal_stacks_are_one_line_of_folded_text() {
        let expected = "app;main;hot<b>:  20\napp;main;hot_a 75\napp;main;hot_a;vfs_read_[k] 5\n";
        assert_eq!(sample().folded(), expected);
        assert_eq!(sample().total(), Weight { samples: 100, nanos: 100 * (1_000_000_000 / 49) });
    }

    #[test]
    fn what_is_too_much_goes_into_one_stack() {
        let mut gathered = Gathered::default();
        for number in 0..10_000_u64 {
            gathered.add(&[frame("/bin/app", &format!("f{number}"), number)], Weight::of(1, 49));
        }
        assert_eq!(gathered.total().samples, 10_000);
        assert!(gathered.frames.len() <= MOST_FRAMES + 1 && gathered.stacks.len() <= MOST_STACKS + 1);
        assert!(gathered.folded().contains("[other stacks] 6000\n"));
        let mut twice = gathered.clone();
        twice.merge(&gathered);
        assert_eq!((twice.total().samples, twice.stacks.len()), (20_000, gathered.stacks.len()));
    }
}
