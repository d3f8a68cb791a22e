//! Amounts of CPU, memory, disk and GPUs, and their algebra: what admission decides by.
//!
//! Amounts are whole numbers of small units (thousandths of a CPU or a GPU, KiB), so that adding and removing pods in any
//! order comes back to the same amounts. A need is rounded up to such a unit and a capacity down, so rounding never
//! admits what does not fit.

use std::fmt;

use crate::message::NodeResources;
use crate::pod::{Container, ExecutorResources, PodSpec};

/// Amounts of each resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub cpus_milli: u64,
    /// Memory, KiB.
    pub mem_kib: u64,
    /// Disk, KiB.
    pub disk_kib: u64,
    /// Thousandths of a GPU. Sums say nothing about which GPU has room for a share: that is the GPU isolator's to see.
    pub gpus_milli: u64,
}

impl Resources {
    /// Nothing of anything.
    pub const ZERO: Self = Self { cpus_milli: 0, mem_kib: 0, disk_kib: 0, gpus_milli: 0 };

    /// What one instance of a pod needs: its containers and its supervisor. A container whose disk is 0 has the node's
    /// default limit, and nothing is set aside for it.
    pub fn of_pod(pod: &PodSpec) -> Self {
        let supervisor = Self::of_executor(&pod.executor_resources);
        pod.containers.iter().map(Self::of_container).fold(supervisor, Self::saturating_add)
    }

    /// What a container needs.
    pub fn of_container(container: &Container) -> Self {
        let resources = &container.resources;
        let share = container.agentd.gpu.share.map_or(0, milli_up);
        Self {
            cpus_milli: milli_up(resources.cpus),
            mem_kib: kib_up(resources.mem),
            disk_kib: kib_up(resources.disk),
            gpus_milli: (u64::from(resources.gpus) * 1000).saturating_add(share),
        }
    }

    /// What the supervisor of an instance needs.
    pub fn of_executor(executor: &ExecutorResources) -> Self {
        Self {
            cpus_milli: milli_up(executor.cpus),
            mem_kib: kib_up(executor.mem),
            disk_kib: kib_up(executor.disk),
            gpus_milli: 0,
        }
    }

    /// What a node has: amounts rounded down. Negative amounts and those that are no number count as nothing.
    pub fn capacity(node: &NodeResources) -> Self {
        Self {
            cpus_milli: milli_down(node.cpus),
            mem_kib: kib_down(node.mem),
            disk_kib: kib_down(node.disk),
            gpus_milli: milli_down(node.gpus),
        }
    }

    /// The sum; `None` where an amount would overflow.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.zip(other, u64::checked_add)
    }

    /// The difference; `None` where an amount would become negative.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.zip(other, u64::checked_sub)
    }

    /// The amounts of this many instances; `None` where one would overflow.
    pub fn checked_mul(self, instances: u32) -> Option<Self> {
        self.zip(Self::ZERO, |amount, _| amount.checked_mul(u64::from(instances)))
    }

    /// The sum, each amount at most the largest there is.
    #[must_use]
    pub fn saturating_add(self, other: Self) -> Self {
        self.each(other, u64::saturating_add)
    }

    /// The difference, each amount at least 0.
    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        self.each(other, u64::saturating_sub)
    }

    /// Whether every amount is there in `free`.
    pub fn fits_in(self, free: Self) -> bool {
        free.checked_sub(self).is_some()
    }

    /// Whether every amount is 0.
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }

    fn amounts(self) -> [u64; 4] {
        [self.cpus_milli, self.mem_kib, self.disk_kib, self.gpus_milli]
    }

    fn from_amounts([cpus_milli, mem_kib, disk_kib, gpus_milli]: [u64; 4]) -> Self {
        Self { cpus_milli, mem_kib, disk_kib, gpus_milli }
    }

    fn each(self, other: Self, combine: impl Fn(u64, u64) -> u64) -> Self {
        let (one, two) = (self.amounts(), other.amounts());
        Self::from_amounts(std::array::from_fn(|index| combine(one[index], two[index])))
    }

    fn zip(self, other: Self, combine: impl Fn(u64, u64) -> Option<u64>) -> Option<Self> {
        let mut amounts = self.amounts();
        for (amount, other) in amounts.iter_mut().zip(other.amounts()) {
            *amount = combine(*amount, other)?;
        }
        Some(Self::from_amounts(amounts))
    }
}

impl From<Resources> for NodeResources {
    fn from(resources: Resources) -> Self {
        Self {
            cpus: resources.cpus_milli as f64 / 1000.0,
            mem: resources.mem_kib as f64 / 1024.0,
            disk: resources.disk_kib as f64 / 1024.0,
            gpus: resources.gpus_milli as f64 / 1000.0,
        }
    }
}

/// Thousandths of an amount. A thousandth has no exact binary fraction (1.1 CPUs come out as 1100.0000000000002), so
/// what is that near to a whole number is that number.
fn milli(amount: f64) -> f64 {
    let scaled = amount * 1000.0;
    let whole = scaled.round();
    let slip = (scaled.abs() * 4.0 * f64::EPSILON).max(1e-6);
    if (scaled - whole).abs() <= slip { whole } else { scaled }
}

// Conversions to integers saturate, and take what is not a number as 0.
fn milli_up(amount: f64) -> u64 {
    milli(amount).ceil() as u64
}

fn milli_down(amount: f64) -> u64 {
    milli(amount).floor() as u64
}

fn kib_up(mib: f64) -> u64 {
    (mib * 1024.0).ceil() as u64
}

fn kib_down(mib: f64) -> u64 {
    (mib * 1024.0).floor() as u64
}

/// A resource by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// CPUs.
    Cpus,
    /// Memory.
    Mem,
    /// Disk.
    Disk,
    /// GPUs.
    Gpus,
}

impl Resource {
    /// Every resource, in the order of the fields of [`Resources`].
    pub const ALL: [Self; 4] = [Self::Cpus, Self::Mem, Self::Disk, Self::Gpus];

    /// The name as pods and offers spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpus => "cpus",
            Self::Mem => "mem",
            Self::Disk => "disk",
            Self::Gpus => "gpus",
        }
    }

    /// The amount with its unit, for people.
    fn show(self, amount: u64) -> String {
        let (per, unit) = match self {
            Self::Cpus | Self::Gpus => (1000, ""),
            Self::Mem | Self::Disk => (1024, " MiB"),
        };
        let (whole, rest) = (amount / per, amount % per);
        // One KiB is 0.00098 MiB, so that three digits show any amount; the part never rounds up to a whole.
        let thousandths = (rest * 1000 + per / 2) / per;
        let digits = format!("{whole}.{thousandths:03}");
        format!("{}{unit}", digits.trim_end_matches('0').trim_end_matches('.'))
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A resource of which less is free than is needed. Amounts are in the units of [`Resources`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Short {
    /// The resource.
    pub resource: Resource,
    /// How much is needed.
    pub need: u64,
    /// How much is free, which is less.
    pub free: u64,
    /// How much of the need is `executorResources`, which a pod seldom writes down.
    pub executor: u64,
}

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |amount| self.resource.show(amount);
        let (need, free, short) = (show(self.need), show(self.free), show(self.need.saturating_sub(self.free)));
        write!(f, "{}: {need} needed", self.resource)?;
        if self.executor > 0 {
            write!(f, " ({} of it executorResources)", show(self.executor))?;
        }
        write!(f, ", {free} free, {short} short")
    }
}

/// Everything that is short; empty when the need fits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shortfall(pub Vec<Short>);

impl Shortfall {
    /// Whether nothing is short.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Notes how much of each need is `executorResources`.
    #[must_use]
    pub fn with_executor(mut self, executor: Resources) -> Self {
        for (resource, amount) in Resource::ALL.into_iter().zip(executor.amounts()) {
            for short in self.0.iter_mut().filter(|short| short.resource == resource) {
                short.executor = amount;
            }
        }
        self
    }

    /// All in one line, for an error message.
    pub fn one_line(&self) -> String {
        self.0.iter().map(Short::to_string).collect::<Vec<_>>().join("; ")
    }
}

/// A table with a head, one line for each resource that is short.
impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["resource", "needed", "free", "short"].map(str::to_owned);
        let rows = self.0.iter().map(|short| {
            let show = |amount| short.resource.show(amount);
            let missing = short.need.saturating_sub(short.free);
            [short.resource.to_string(), show(short.need), show(short.free), show(missing)]
        });
        let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
        let widths: [usize; 4] = std::array::from_fn(width);
        for (index, [name, need, free, short]) in rows.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            let [first, second, third, fourth] = widths;
            write!(f, "{name:<first$}  {need:>second$}  {free:>third$}  {short:>fourth$}")?;
        }
        Ok(())
    }
}

/// What of `need` is not there in `free`.
pub fn shortfall(need: Resources, free: Resources) -> Shortfall {
    let pairs = Resource::ALL.into_iter().zip(need.amounts().into_iter().zip(free.amounts()));
    let short = pairs.filter(|(_, (need, free))| need > free);
    Shortfall(short.map(|(resource, (need, free))| Short { resource, need, free, executor: 0 }).collect())
}
