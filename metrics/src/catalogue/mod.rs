//! Every metric that agentd has, by what it is about. Documentation, dashboards and alert rules are held against this.

/// Declares the families of a module as statics and lists all of them in its `ALL`, in the order of their importance:
/// where a pod has more series than its budget, [`crate::budget`] keeps those of the families that stand first.
///
/// ```ignore
/// use crate::model::{Family, Kind, Unit};
///
/// families! {
///     /// CPU time used.
///     CPU_TIME = Family::counter("container_cpu_time_seconds", "container.cpu.time", Unit::Seconds, "CPU time used")
///         .with(&["cpu.mode"]);
///     /// Bytes through an interface, whose name may be anything.
///     NETWORK_IO = Family::counter("container_network_io_bytes", "container.network.io", Unit::Bytes, "Bytes sent and received")
///         .with(&["network.interface.name", "network.io.direction"])
///         .open(&["network.interface.name"]);
/// }
/// ```
macro_rules! families {
    ($($(#[$attribute:meta])* $name:ident = $family:expr;)*) => {
        $($(#[$attribute])* pub static $name: $crate::model::Family = $family;)*

        /// Every family of this module, the most important first.
        pub static ALL: &[&$crate::model::Family] = &[$(&$name),*];
    };
}

pub mod agent;
pub mod compat;
pub mod container;
pub mod host;
pub mod naming;
pub mod node;
#[cfg(test)]
mod tests;

use crate::model::{Family, Kind, Unit};

impl Family {
    /// A counter with a name of OpenTelemetry's or below `agentd.`; `name` is its Prometheus spelling without `_total`.
    pub const fn counter(name: &'static str, otel: &'static str, unit: Unit, help: &'static str) -> Self {
        Self { name, otel: Some(otel), kind: Kind::Counter, unit, total: true, labels: &[], open: &[], help }
    }

    /// A gauge.
    pub const fn gauge(name: &'static str, otel: &'static str, unit: Unit, help: &'static str) -> Self {
        Self { name, otel: Some(otel), kind: Kind::Gauge, unit, total: false, labels: &[], open: &[], help }
    }

    /// A histogram.
    pub const fn distribution(name: &'static str, otel: &'static str, unit: Unit, help: &'static str) -> Self {
        Self { name, otel: Some(otel), kind: Kind::Histogram, unit, total: false, labels: &[], open: &[], help }
    }

    /// A name that other agents made common, served to Prometheus alone.
    pub const fn common(name: &'static str, kind: Kind, unit: Unit, help: &'static str) -> Self {
        Self { name, otel: None, kind, unit, total: matches!(kind, Kind::Counter), labels: &[], open: &[], help }
    }

    /// The same with labels, by their OpenTelemetry names; Prometheus sees `_` for each dot.
    #[must_use]
    pub const fn with(mut self, labels: &'static [&'static str]) -> Self {
        self.labels = labels;
        self
    }

    /// The same with those of its labels named whose values are an open set: see [`Family::open`].
    #[must_use]
    pub const fn open(mut self, labels: &'static [&'static str]) -> Self {
        self.open = labels;
        self
    }

    /// The same without `_total` at the end of a counter's name.
    #[must_use]
    pub const fn without_total(mut self) -> Self {
        self.total = false;
        self
    }
}

/// Every family, the most important first: those of OpenTelemetry and our own, then the names that other agents made
/// common.
pub fn all() -> impl Iterator<Item = &'static Family> {
    [host::ALL, container::ALL, agent::ALL, compat::ALL, node::ALL].into_iter().flatten().copied()
}
