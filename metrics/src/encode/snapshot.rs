//! The flat list of `/metrics/snapshot`, as Mesos has it: one JSON object of names with slashes and numbers.
//!
//! A name is the metric's name by OpenTelemetry with a slash for each dot, then the values of the scope's and its own labels,
//! each after a slash: `system/cpu/time/0/user`. In values everything but letters, digits, `_`, `-`, `.`, `:` and `~` is
//! percent-encoded, so that a name is always the same series. Histograms are `…/count` and `…/sum`. Only what is about the
//! host and the agent is in it: what is about pods is unbounded and has better forms.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::model::{Batch, Family, Number, Point, Scope, Value};

/// The list of the batch's scopes that belong to no pod, and of `known`: figures that have such names already, as those of
/// Mesos's own agent, which stand for themselves where both have a name. Numbers that JSON cannot have are left out.
pub fn figures<'a>(batch: &Batch, known: impl IntoIterator<Item = (&'a str, f64)>) -> BTreeMap<String, f64> {
    let mut figures = BTreeMap::new();
    for (family, points) in batch.families() {
        let Some(otel) = family.otel else { continue };
        for point in points.iter().filter(|point| point.is_sound(family)) {
            let Some(scope) = batch.scopes().get(point.scope.index()).filter(|scope| scope.pod.is_none()) else {
                continue;
            };
            let name = name(otel, scope, family, point);
            match &point.value {
                Value::Number(Number::Whole(value)) => {
                    figures.insert(name, *value as f64);
                }
                Value::Number(Number::Real(value)) => {
                    figures.insert(name, *value);
                }
                Value::Histogram(histogram) => {
                    figures.insert(format!("{name}/count"), histogram.count() as f64);
                    figures.insert(format!("{name}/sum"), histogram.sum);
                }
            }
        }
    }
    figures.extend(known.into_iter().map(|(name, value)| (name.to_owned(), value)));
    figures.retain(|_, value| value.is_finite());
    figures
}

/// The same as the text of one JSON object.
pub fn write<'a>(batch: &Batch, known: impl IntoIterator<Item = (&'a str, f64)>) -> String {
    // Nothing here fails to serialise: keys are texts.
    serde_json::to_string(&figures(batch, known)).unwrap_or_default()
}

fn name(otel: &str, scope: &Scope, family: &Family, point: &Point) -> String {
    let mut name = otel.replace('.', "/");
    let scope = scope.labels.iter().map(|(_, value)| value.as_str());
    let own = family.labels.iter().zip(&point.labels).map(|(_, value)| value.as_ref());
    for value in scope.chain(own) {
        name.push('/');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"_-.:~".contains(&byte) {
                name.push(char::from(byte));
            } else {
                // Writing to a string does not fail.
                let _ = write!(name, "%{byte:02X}");
            }
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::model::{Histogram, Unit};

    static LOAD: Family = Family::gauge("system_load_ratio", "system.load", Unit::Ratio, "Load").with(&["device"]);
    static WAIT: Family = Family::distribution("agentd_wait_seconds", "agentd.wait", Unit::Seconds, "Wait");
    static COMMON: Family = Family::common("node_load1", crate::model::Kind::Gauge, Unit::Count("{thread}"), "Load");

    #[test]
    fn host_and_agent_are_flat_and_known_names_stay() {
        let mut batch = Batch::new(SystemTime::UNIX_EPOCH);
        let host = batch.scope(Scope::default());
        let agent = batch.scope(Scope { labels: vec![("part", "x y".into())], ..Scope::default() });
        let pod = batch.scope(Scope { pod: Some("/web".into()), ..Scope::default() });
        batch.add(&LOAD, host, &["/a%"], 0.5);
        batch.add(&LOAD, host, &["bad"], f64::NAN);
        batch.add(&LOAD, pod, &["mine"], 1.0);
        batch.put(&COMMON, host, &[], 2);
        let counts = vec![2, 1];
        let histogram = Histogram { bounds: vec![1.0].into(), counts, sum: 4.5, exemplars: Vec::new() };
        batch.histogram(&WAIT, agent, &[], histogram);
        let text = write(&batch, [("slave/cpus_total", 4.0), ("system/load/%2Fa%25", 7.0)]);
        assert_eq!(
            text,
            "{\"agentd/wait/x%20y/count\":3.0,\"agentd/wait/x%20y/sum\":4.5,\"slave/cpus_total\":4.0,\
             \"system/load/%2Fa%25\":7.0}"
        );
    }
}
