//! JSON of scopes, for `/v1/metrics`: a container, a pod with its containers, the host.
//!
//! ```json
//! {"time": "2026-11-20T13:00:00Z", "scopes": [{
//!     "labels": {"pod": "/web", "container": "nginx"},
//!     "resource": {"container.id": "…"},
//!     "start": "2026-11-20T12:00:00Z",
//!     "metrics": [
//!         {"name": "container.cpu.time", "prometheus": "container_cpu_time_seconds_total", "unit": "s", "kind": "counter",
//!          "help": "…", "points": [{"labels": {"cpu.mode": "user"}, "value": 1.5}]},
//!         {"name": "agentd.container.runqueue.latency", …, "kind": "histogram",
//!          "points": [{"count": 3, "sum": 0.5, "buckets": [{"le": 0.001, "count": 2}, {"le": null, "count": 1}]}]}
//!     ]
//! }]}
//! ```
//! Buckets are not cumulated; the last one, whose bound is `null`, has what is above all bounds. A number that JSON cannot
//! have (not a number, infinite) is `null`. Families that only repeat others under common names are left out.

use std::time::SystemTime;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::model::{Batch, Family, Histogram, Kind, Number, Point, Scope, Value};

/// The scopes that `keep` chooses, with all of their points, as one JSON object.
pub fn write(batch: &Batch, keep: impl Fn(&Scope) -> bool) -> String {
    let mut scopes: Vec<Option<ScopeObject<'_>>> =
        batch.scopes().iter().map(|scope| keep(scope).then(|| ScopeObject::new(scope))).collect();
    for (family, points) in batch.families() {
        let Some(name) = family.otel else { continue };
        for point in points.iter().filter(|point| point.is_sound(family)) {
            let Some(Some(scope)) = scopes.get_mut(point.scope.index()) else { continue };
            scope.add(name, family, point);
        }
    }
    let batch = BatchObject { time: timestamp(batch.time), scopes: scopes.into_iter().flatten().collect() };
    // Nothing here fails to serialise: keys are texts, and numbers that JSON has not become null.
    serde_json::to_string(&batch).unwrap_or_default()
}

fn timestamp(time: SystemTime) -> Option<jiff::Timestamp> {
    jiff::Timestamp::try_from(time).ok()
}

#[derive(Serialize)]
struct BatchObject<'a> {
    time: Option<jiff::Timestamp>,
    scopes: Vec<ScopeObject<'a>>,
}

#[derive(Serialize)]
struct ScopeObject<'a> {
    #[serde(serialize_with = "object")]
    labels: Vec<(&'a str, &'a str)>,
    #[serde(serialize_with = "object")]
    resource: Vec<(&'a str, &'a str)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<jiff::Timestamp>,
    metrics: Vec<MetricObject<'a>>,
}

impl<'a> ScopeObject<'a> {
    fn new(scope: &'a Scope) -> Self {
        let pairs =
            |pairs: &'a [(&'static str, String)]| pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Self {
            labels: pairs(&scope.labels),
            resource: pairs(&scope.resource),
            start: scope.start.and_then(timestamp),
            metrics: Vec::new(),
        }
    }

    /// Points come family by family, so the one before may be of the same.
    fn add(&mut self, name: &'static str, family: &'static Family, point: &'a Point) {
        if self.metrics.last().is_none_or(|last| !std::ptr::eq(last.family, family)) {
            let kind = match family.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            let prometheus = match family.kind {
                Kind::Counter if family.total => format!("{}_total", family.name),
                _ => family.name.to_owned(),
            };
            let (unit, help) = (family.unit.ucum(), family.help);
            self.metrics.push(MetricObject { family, name, prometheus, unit, kind, help, points: Vec::new() });
        }
        let labels = family.labels.iter().zip(&point.labels).map(|(name, value)| (*name, value.as_ref())).collect();
        if let Some(metric) = self.metrics.last_mut() {
            metric.points.push(PointObject { labels, value: ValueObject::new(&point.value) });
        }
    }
}

#[derive(Serialize)]
struct MetricObject<'a> {
    #[serde(skip)]
    family: &'static Family,
    name: &'static str,
    prometheus: String,
    unit: &'static str,
    kind: &'static str,
    help: &'static str,
    points: Vec<PointObject<'a>>,
}

#[derive(Serialize)]
struct PointObject<'a> {
    #[serde(serialize_with = "object", skip_serializing_if = "Vec::is_empty")]
    labels: Vec<(&'a str, &'a str)>,
    #[serde(flatten)]
    value: ValueObject,
}

#[derive(Serialize)]
#[serde(untagged)]
enum ValueObject {
    Whole { value: u64 },
    Real { value: f64 },
    Histogram { count: u64, sum: f64, buckets: Vec<Bucket> },
}

#[derive(Serialize)]
struct Bucket {
    le: Option<f64>,
    count: u64,
}

impl ValueObject {
    fn new(value: &Value) -> Self {
        match value {
            Value::Number(Number::Whole(value)) => Self::Whole { value: *value },
            Value::Number(Number::Real(value)) => Self::Real { value: *value },
            Value::Histogram(histogram) => {
                Self::Histogram { count: histogram.count(), sum: histogram.sum, buckets: buckets(histogram) }
            }
        }
    }
}

fn buckets(histogram: &Histogram) -> Vec<Bucket> {
    let bounds = histogram.bounds.iter().map(|bound| Some(*bound)).chain([None]);
    bounds.zip(&histogram.counts).map(|(le, count)| Bucket { le, count: *count }).collect()
}

/// Pairs as an object, in their order.
fn object<S: Serializer>(pairs: &[(&str, &str)], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(pairs.len()))?;
    for (name, value) in pairs {
        map.serialize_entry(name, value)?;
    }
    map.end()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::Unit;

    static TIME: Family = Family::counter("c_time_seconds", "c.time", Unit::Seconds, "Time").with(&["cpu.mode"]);
    static SHARE: Family = Family::gauge("c_share_ratio", "c.share", Unit::Ratio, "Share");
    static WAIT: Family = Family::distribution("c_wait_seconds", "c.wait", Unit::Seconds, "Wait");
    static COMMON: Family = Family::common("c_common", Kind::Gauge, Unit::Cores, "Common");

    #[test]
    fn the_chosen_scopes_in_full() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        let mut batch = Batch::new(start + Duration::from_millis(500));
        let labels = vec![("pod", "/w\"eb".to_owned()), ("container", "a".to_owned())];
        let scope = |labels| Scope { labels, start: Some(start), pod: Some("/web".into()), ..Scope::default() };
        let mine = batch.scope(scope(labels));
        let other = batch.scope(Scope { resource: vec![("container.id", "2".into())], ..Scope::default() });
        batch.put(&TIME, other, &["user"], 1);
        batch.put(&TIME, mine, &["user"], u64::MAX);
        batch.put(&TIME, mine, &["system"], 0.5);
        batch.put(&SHARE, mine, &[], f64::NAN);
        batch.put(&COMMON, mine, &[], 1);
        let histogram = Histogram { bounds: vec![0.5].into(), counts: vec![2, 1], sum: 4.0, exemplars: Vec::new() };
        batch.histogram(&WAIT, mine, &[], histogram);
        assert_eq!(
            write(&batch, |scope| scope.pod.as_deref() == Some("/web")),
            concat!(
                r#"{"time":"1970-01-01T00:00:01.5Z","scopes":[{"labels":{"pod":"/w\"eb","container":"a"},"resource":{},"#,
                r#""start":"1970-01-01T00:00:01Z","metrics":["#,
                r#"{"name":"c.time","prometheus":"c_time_seconds_total","unit":"s","kind":"counter","help":"Time","points":["#,
                r#"{"labels":{"cpu.mode":"user"},"value":18446744073709551615},{"labels":{"cpu.mode":"system"},"value":0.5}]},"#,
                r#"{"name":"c.share","prometheus":"c_share_ratio","unit":"1","kind":"gauge","help":"Share","#,
                r#""points":[{"value":null}]},"#,
                r#"{"name":"c.wait","prometheus":"c_wait_seconds","unit":"s","kind":"histogram","help":"Wait","points":["#,
                r#"{"count":3,"sum":4.0,"buckets":[{"le":0.5,"count":2},{"le":null,"count":1}]}]}]}]}"#,
            )
        );
        assert_eq!(write(&batch, |_| false), r#"{"time":"1970-01-01T00:00:01.5Z","scopes":[]}"#);
    }
}
