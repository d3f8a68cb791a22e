//! How names of OpenTelemetry are spelt in Prometheus, and what series a family becomes there.
//!
//! The rules are those of OpenTelemetry's document on compatibility with Prometheus: each character that may not stand in a
//! name becomes `_`; the unit's word is put at the end unless it stands there; a gauge without a dimension (unit `1`) gets
//! `_ratio`; units that are annotations (`{packet}`) stand in no name; a counter gets `_total`.

use crate::model::{Family, Kind, Unit};

/// The Prometheus spelling of a metric of OpenTelemetry's, without a counter's `_total`: as [`Family::name`] must be.
pub fn prometheus_name(otel: &str, unit: Unit, kind: Kind) -> String {
    let mut name = label_name(otel);
    if kind == Kind::Counter && name.ends_with("_total") {
        name.truncate(name.len() - "_total".len());
    }
    let suffix = if unit == Unit::Ratio && kind != Kind::Gauge { None } else { unit.suffix() };
    if let Some(suffix) = suffix
        && !name.strip_suffix(suffix).is_some_and(|front| front.ends_with('_'))
    {
        name.push('_');
        name.push_str(suffix);
    }
    name
}

/// The Prometheus spelling of an attribute's name.
pub fn label_name(otel: &str) -> String {
    let mut name = String::with_capacity(otel.len());
    for (at, character) in otel.chars().enumerate() {
        match character {
            '0'..='9' if at == 0 => name.extend(['_', character]),
            'a'..='z' | 'A'..='Z' | '0'..='9' | '_' => name.push(character),
            _ => name.push('_'),
        }
    }
    name
}

impl Family {
    /// The names of its series in Prometheus, as queries have them: a counter's with `_total`, a histogram's three.
    pub fn series_names(&self) -> Vec<String> {
        match self.kind {
            Kind::Counter if self.total => vec![format!("{}_total", self.name)],
            Kind::Counter | Kind::Gauge => vec![self.name.to_owned()],
            Kind::Histogram => ["bucket", "sum", "count"].map(|part| format!("{}_{part}", self.name)).into(),
        }
    }

    /// The word of its unit for OpenMetrics, which wants it to be the end of the name; none where it is not.
    pub fn unit_in_name(&self) -> Option<&'static str> {
        let suffix = self.unit.suffix()?;
        self.name.strip_suffix(suffix).is_some_and(|front| front.ends_with('_')).then_some(suffix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_spelt_by_the_rules() {
        for (otel, unit, kind, expected) in [
            ("container.cpu.time", Unit::Seconds, Kind::Counter, "container_cpu_time_seconds"),
            ("container.memory.usage", Unit::Bytes, Kind::Gauge, "container_memory_usage_bytes"),
            ("system.cpu.utilization", Unit::Ratio, Kind::Gauge, "system_cpu_utilization_ratio"),
            ("a.hits", Unit::Ratio, Kind::Counter, "a_hits"),
            ("system.network.packets", Unit::Count("{packet}"), Kind::Counter, "system_network_packets"),
            ("hw.temperature", Unit::Celsius, Kind::Gauge, "hw_temperature_celsius"),
            ("hw.power", Unit::Watts, Kind::Gauge, "hw_power_watts"),
            ("container.cpu.usage", Unit::Cores, Kind::Gauge, "container_cpu_usage"),
            ("agentd.wait.seconds", Unit::Seconds, Kind::Histogram, "agentd_wait_seconds"),
            ("agentd.milliseconds", Unit::Seconds, Kind::Gauge, "agentd_milliseconds_seconds"),
            ("agentd.things.total", Unit::Count("{thing}"), Kind::Counter, "agentd_things"),
            ("9p.io-wait", Unit::Seconds, Kind::Gauge, "_9p_io_wait_seconds"),
        ] {
            assert_eq!(prometheus_name(otel, unit, kind), expected, "{otel}");
        }
    }

    #[test]
    fn series_are_named_as_queries_have_them() {
        static COUNTER: Family = Family::counter("a_seconds", "a", Unit::Seconds, "A");
        static OLD: Family = Family::common("old", Kind::Counter, Unit::Bytes, "Old").without_total();
        static TIMES: Family = Family::distribution("t_seconds", "t", Unit::Seconds, "T");
        assert_eq!(COUNTER.series_names(), ["a_seconds_total"]);
        assert_eq!(OLD.series_names(), ["old"]);
        assert_eq!(TIMES.series_names(), ["t_seconds_bucket", "t_seconds_sum", "t_seconds_count"]);
        assert_eq!((COUNTER.unit_in_name(), OLD.unit_in_name()), (Some("seconds"), None));
    }
}
