//! OTLP: a batch as `ExportMetricsServiceRequest`s, in protobuf.
//!
//! Each scope is a resource: the host's attributes and its own. Counters are monotonic sums and histograms have explicit
//! bounds, both cumulative since the scope's start; gauges are gauges. Names, units and attributes are OpenTelemetry's;
//! families without such a name are not pushed. A batch becomes as many requests as its bounds demand, made one after the
//! other, so that never more than one of them is in memory.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1 as proto;
use opentelemetry_proto::tonic::metrics::v1::{metric, number_data_point};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;

use crate::model::{Batch, Exemplar, Family, Histogram, Kind, Number, Point, Scope, Value};

/// What all requests of a host have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Attributes of every resource: `host.id`, `host.name` and what the configuration adds.
    pub attributes: Vec<(String, String)>,
    /// Version of agentd, told as that of the instrumentation scope `agentd`.
    pub version: String,
    /// When the host started, which is since when counters of scopes without a start count.
    pub host_start: SystemTime,
}

/// Bounds of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most points in it. At least one goes into each.
    pub points: usize,
    /// Most bytes of it, uncompressed. A request has more only where a single point has.
    pub bytes: usize,
}

impl Default for Limits {
    /// 10,000 points and 2 MiB: collectors take 4 MiB to 20 MiB by default.
    fn default() -> Self {
        Self { points: 10_000, bytes: 2 << 20 }
    }
}

/// An attribute with a text.
pub fn attribute(name: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) };
    KeyValue { key: name.to_owned(), value: Some(value), ..KeyValue::default() }
}

/// Nanoseconds since 1970; 0, which means that it is not known, for times before.
pub fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// A request's bytes, for a body of type `application/x-protobuf`.
pub fn encode(request: &ExportMetricsServiceRequest) -> Vec<u8> {
    request.encode_to_vec()
}

/// The instrumentation scope of all that agentd tells.
pub fn instrumentation(origin: &Origin) -> InstrumentationScope {
    InstrumentationScope { name: "agentd".into(), version: origin.version.clone(), ..InstrumentationScope::default() }
}

/// The resource of a scope: the host's attributes and then its own, which win. Empty values are left out.
fn resource(origin: &Origin, own: &[(&'static str, String)]) -> Resource {
    let common = origin.attributes.iter().map(|(name, value)| (name.as_str(), value));
    let common = common.filter(|(name, _)| !own.iter().any(|(own, _)| own == name));
    let all = common.chain(own.iter().map(|(name, value)| (*name, value)));
    let attributes = all.filter(|(_, value)| !value.is_empty()).map(|(name, value)| attribute(name, value)).collect();
    Resource { attributes, ..Resource::default() }
}

/// The requests for the families of the batch that OpenTelemetry has a name for and that `keep` chooses, each within the
/// limits, those of one resource together.
pub fn requests<'a, F: Fn(&Family) -> bool>(
    batch: &'a Batch,
    origin: &'a Origin,
    limits: Limits,
    keep: F,
) -> impl Iterator<Item = ExportMetricsServiceRequest> + use<'a, F> {
    Requests { batch, origin, limits, points: by_resource(batch, keep), next: 0 }
}

/// A point and where it belongs.
#[derive(Clone, Copy)]
struct Placed<'a> {
    resource: usize,
    scope: &'a Scope,
    family: &'static Family,
    otel: &'static str,
    point: &'a Point,
}

/// All points to send: by resource, then by family in the batch's order. Scopes with equal attributes are one resource.
fn by_resource(batch: &Batch, keep: impl Fn(&Family) -> bool) -> Vec<Placed<'_>> {
    let mut known: HashMap<&[(&'static str, String)], usize> = HashMap::new();
    let resources: Vec<usize> = batch
        .scopes()
        .iter()
        .enumerate()
        .map(|(at, scope)| *known.entry(scope.resource.as_slice()).or_insert(at))
        .collect();
    let mut points = Vec::new();
    for (family, found) in batch.families().filter(|(family, _)| keep(family)) {
        let Some(otel) = family.otel else { continue };
        for point in found.iter().filter(|point| point.is_sound(family)) {
            let at = point.scope.index();
            let (Some(resource), Some(scope)) = (resources.get(at), batch.scopes().get(at)) else { continue };
            points.push(Placed { resource: *resource, scope, family, otel, point });
        }
    }
    // stable: families stay together and in order
    points.sort_by_key(|placed| placed.resource);
    points
}

struct Requests<'a> {
    batch: &'a Batch,
    origin: &'a Origin,
    limits: Limits,
    points: Vec<Placed<'a>>,
    next: usize,
}

/// More than the tags and lengths take that a message costs where it stands.
const FRAME: usize = 12;

impl Iterator for Requests<'_> {
    type Item = ExportMetricsServiceRequest;

    fn next(&mut self) -> Option<Self::Item> {
        let mut resources: Vec<proto::ResourceMetrics> = Vec::new();
        let (mut points, mut bytes) = (0, 0);
        // the resource and family of the last point
        let mut last: Option<(usize, &'static Family)> = None;
        while let Some(placed) = self.points.get(self.next).copied() {
            let new_resource = last.is_none_or(|(resource, _)| resource != placed.resource);
            let new_metric = new_resource || last.is_none_or(|(_, family)| !std::ptr::eq(family, placed.family));
            let data = self.data_point(&placed);
            let mut cost = data.encoded_len() + FRAME;
            let resource = new_resource.then(|| self.resource(&placed));
            cost += resource.as_ref().map_or(0, |resource| resource.encoded_len() + FRAME);
            let metric = new_metric.then(|| metric(&placed));
            cost += metric.as_ref().map_or(0, |metric| metric.encoded_len() + 2 * FRAME);
            if points > 0 && (points >= self.limits.points || bytes + cost > self.limits.bytes) {
                break;
            }
            resources.extend(resource);
            let Some(scope) = resources.last_mut().and_then(|resource| resource.scope_metrics.last_mut()) else {
                break;
            };
            scope.metrics.extend(metric);
            let Some(metric) = scope.metrics.last_mut() else { break };
            data.join(metric);
            last = Some((placed.resource, placed.family));
            self.next += 1;
            points += 1;
            bytes += cost;
        }
        (points > 0).then_some(ExportMetricsServiceRequest { resource_metrics: resources })
    }
}

impl Requests<'_> {
    fn resource(&self, placed: &Placed<'_>) -> proto::ResourceMetrics {
        proto::ResourceMetrics {
            resource: Some(resource(self.origin, &placed.scope.resource)),
            scope_metrics: vec![proto::ScopeMetrics {
                scope: Some(instrumentation(self.origin)),
                ..proto::ScopeMetrics::default()
            }],
            ..proto::ResourceMetrics::default()
        }
    }

    fn data_point(&self, placed: &Placed<'_>) -> Data {
        let labels = placed.family.labels.iter().zip(&placed.point.labels).filter(|(_, value)| !value.is_empty());
        let attributes = labels.map(|(name, value)| attribute(name, value)).collect();
        let time = nanoseconds(self.batch.time);
        // a clock that was set back since may not make an interval that ends before it begins
        let start = nanoseconds(placed.scope.start.unwrap_or(self.origin.host_start)).min(time);
        match &placed.point.value {
            Value::Number(number) => Data::Number(proto::NumberDataPoint {
                attributes,
                start_time_unix_nano: if placed.family.kind == Kind::Counter { start } else { 0 },
                time_unix_nano: time,
                value: Some(value(*number)),
                ..proto::NumberDataPoint::default()
            }),
            Value::Histogram(histogram) => Data::Histogram(histogram_point(histogram, attributes, start, time)),
        }
    }
}

fn histogram_point(
    histogram: &Histogram,
    attributes: Vec<KeyValue>,
    start: u64,
    time: u64,
) -> proto::HistogramDataPoint {
    proto::HistogramDataPoint {
        attributes,
        start_time_unix_nano: start,
        time_unix_nano: time,
        count: histogram.count(),
        sum: Some(histogram.sum),
        bucket_counts: histogram.counts.clone(),
        explicit_bounds: histogram.bounds.to_vec(),
        exemplars: histogram.exemplars.iter().map(|(_, found)| exemplar(found)).collect(),
        ..proto::HistogramDataPoint::default()
    }
}

fn exemplar(found: &Exemplar) -> proto::Exemplar {
    proto::Exemplar {
        time_unix_nano: nanoseconds(found.time),
        span_id: found.span.to_vec(),
        trace_id: found.trace.to_vec(),
        value: Some(proto::exemplar::Value::AsDouble(found.value)),
        ..proto::Exemplar::default()
    }
}

/// Whole numbers as such, as far as the format's go.
fn value(number: Number) -> number_data_point::Value {
    match number {
        Number::Whole(value) => i64::try_from(value)
            .map_or(number_data_point::Value::AsDouble(value as f64), number_data_point::Value::AsInt),
        Number::Real(value) => number_data_point::Value::AsDouble(value),
    }
}

/// A family's metric, without points.
fn metric(placed: &Placed<'_>) -> proto::Metric {
    let cumulative = proto::AggregationTemporality::Cumulative.into();
    let data = match placed.family.kind {
        Kind::Counter => metric::Data::Sum(proto::Sum {
            data_points: Vec::new(),
            aggregation_temporality: cumulative,
            is_monotonic: true,
        }),
        Kind::Gauge => metric::Data::Gauge(proto::Gauge::default()),
        Kind::Histogram => {
            metric::Data::Histogram(proto::Histogram { data_points: Vec::new(), aggregation_temporality: cumulative })
        }
    };
    proto::Metric {
        name: placed.otel.to_owned(),
        description: placed.family.help.to_owned(),
        unit: placed.family.unit.ucum().to_owned(),
        data: Some(data),
        ..proto::Metric::default()
    }
}

/// A point on its way into its metric.
enum Data {
    Number(proto::NumberDataPoint),
    Histogram(proto::HistogramDataPoint),
}

impl Data {
    fn encoded_len(&self) -> usize {
        match self {
            Self::Number(point) => point.encoded_len(),
            Self::Histogram(point) => point.encoded_len(),
        }
    }

    /// Appends the point to the metric, which is of its kind: [`Point::is_sound`] was asked before.
    fn join(self, metric: &mut proto::Metric) {
        match (self, &mut metric.data) {
            (Self::Number(point), Some(metric::Data::Sum(sum))) => sum.data_points.push(point),
            (Self::Number(point), Some(metric::Data::Gauge(gauge))) => gauge.data_points.push(point),
            (Self::Histogram(point), Some(metric::Data::Histogram(histogram))) => histogram.data_points.push(point),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::Unit;

    static TIME: Family = Family::counter("c_time_seconds", "c.time", Unit::Seconds, "Time").with(&["cpu.mode"]);
    static USAGE: Family = Family::gauge("c_usage_bytes", "c.usage", Unit::Bytes, "Usage");
    static WAIT: Family = Family::distribution("c_wait_seconds", "c.wait", Unit::Seconds, "Wait");
    static COMMON: Family = Family::common("c_common", Kind::Gauge, Unit::Cores, "Common");

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn origin() -> Origin {
        let attributes = [("host.id", "h1"), ("host.name", "node7")].map(|(name, value)| (name.into(), value.into()));
        Origin { attributes: attributes.into(), version: "1.2.3".into(), host_start: at(10) }
    }

    fn container(id: &str) -> Scope {
        let resource = vec![("container.id", id.to_owned()), ("container.image.name", String::new())];
        Scope { resource, start: Some(at(50)), ..Scope::default() }
    }

    fn text<'a>(attributes: &'a [KeyValue], name: &str) -> Option<&'a str> {
        match attributes.iter().find(|attribute| attribute.key == name)?.value.as_ref()?.value.as_ref()? {
            any_value::Value::StringValue(text) => Some(text),
            _ => None,
        }
    }

    #[test]
    fn a_batch_in_full() {
        let mut batch = Batch::new(at(100));
        let host = batch.scope(Scope::default());
        let one = batch.scope(container("1"));
        let agent = batch.scope(Scope { labels: vec![("part", "agent".into())], ..Scope::default() });
        batch.put(&TIME, one, &["user"], 1.5);
        batch.put(&TIME, host, &["idle"], u64::MAX);
        batch.put(&TIME, host, &[""], f64::NAN);
        batch.put(&USAGE, agent, &[], 7);
        batch.put(&COMMON, host, &[], 7);
        let exemplar = Exemplar { value: 0.25, time: at(60), trace: [0xAB; 16], span: [2; 8] };
        let counts = vec![1, 2, 3];
        let histogram = Histogram { bounds: vec![0.1, 0.5].into(), counts, sum: 9.0, exemplars: vec![(1, exemplar)] };
        batch.histogram(&WAIT, one, &[], histogram);
        let origin = origin();
        let all: Vec<_> = requests(&batch, &origin, Limits::default(), |_| true).collect();
        assert_eq!(all.len(), 1);
        // what goes over the wire
        let request = ExportMetricsServiceRequest::decode(encode(&all[0]).as_slice()).unwrap();
        let [host, container] = request.resource_metrics.as_slice() else { panic!("{request:?}") };
        let attributes = &host.resource.as_ref().unwrap().attributes;
        assert_eq!((attributes.len(), text(attributes, "host.name")), (2, Some("node7")));
        let [scope] = host.scope_metrics.as_slice() else { panic!("{host:?}") };
        let told = scope.scope.as_ref().unwrap();
        assert_eq!((told.name.as_str(), told.version.as_str()), ("agentd", "1.2.3"));
        let [time, usage] = scope.metrics.as_slice() else { panic!("{scope:?}") };
        assert_eq!((time.name.as_str(), time.unit.as_str(), time.description.as_str()), ("c.time", "s", "Time"));
        let Some(metric::Data::Sum(sum)) = &time.data else { panic!("{time:?}") };
        assert!(sum.is_monotonic && sum.aggregation_temporality() == proto::AggregationTemporality::Cumulative);
        let [idle] = sum.data_points.as_slice() else { panic!("{sum:?}") };
        assert_eq!((idle.start_time_unix_nano, idle.time_unix_nano), (10_000_000_000, 100_000_000_000));
        assert_eq!(idle.value, Some(number_data_point::Value::AsDouble(u64::MAX as f64)));
        assert_eq!(text(&idle.attributes, "cpu.mode"), Some("idle"));
        let Some(metric::Data::Gauge(gauge)) = &usage.data else { panic!("{usage:?}") };
        assert_eq!(gauge.data_points[0].value, Some(number_data_point::Value::AsInt(7)));
        assert_eq!(gauge.data_points[0].start_time_unix_nano, 0);

        let attributes = &container.resource.as_ref().unwrap().attributes;
        assert_eq!((attributes.len(), text(attributes, "container.id")), (3, Some("1")));
        let [_, wait] = container.scope_metrics[0].metrics.as_slice() else { panic!("{container:?}") };
        let Some(metric::Data::Histogram(histogram)) = &wait.data else { panic!("{wait:?}") };
        let point = &histogram.data_points[0];
        assert_eq!((point.count, point.sum, point.start_time_unix_nano), (6, Some(9.0), 50_000_000_000));
        assert_eq!(
            (point.bucket_counts.as_slice(), point.explicit_bounds.as_slice()),
            ([1, 2, 3].as_slice(), [0.1, 0.5].as_slice())
        );
        assert_eq!(
            (point.exemplars[0].trace_id.as_slice(), point.exemplars[0].span_id.as_slice()),
            ([0xAB; 16].as_slice(), [2; 8].as_slice())
        );
    }

    /// Every point once, in requests that stay within both bounds and are not smaller than they have to be.
    #[test]
    fn a_batch_is_split() {
        let mut batch = Batch::new(at(100));
        let scopes: Vec<_> = (0..20).map(|id| batch.scope(container(&id.to_string()))).collect();
        for (at, scope) in scopes.iter().enumerate() {
            for mode in 0..25 {
                batch.add(&TIME, *scope, &[&format!("{mode}")], (at * 100 + mode) as u64);
            }
            batch.put(&USAGE, *scope, &[], 1);
        }
        let origin = origin();
        for limits in [
            Limits { points: 64, bytes: usize::MAX },
            Limits { points: usize::MAX, bytes: 3000 },
            Limits { points: 1, bytes: 1 },
            Limits { points: 0, bytes: 0 },
        ] {
            let all: Vec<_> = requests(&batch, &origin, limits, |_| true).collect();
            let mut seen = Vec::new();
            for (index, request) in all.iter().enumerate() {
                let (mut points, bytes) = (0, encode(request).len());
                for resource in &request.resource_metrics {
                    let id = text(&resource.resource.as_ref().unwrap().attributes, "container.id").unwrap();
                    let metrics = &resource.scope_metrics[0].metrics;
                    let names: std::collections::BTreeSet<_> = metrics.iter().map(|metric| &metric.name).collect();
                    assert_eq!(names.len(), metrics.len(), "a metric is in two pieces");
                    for metric in metrics {
                        let Some(
                            metric::Data::Sum(proto::Sum { data_points, .. })
                            | metric::Data::Gauge(proto::Gauge { data_points }),
                        ) = &metric.data
                        else {
                            panic!("{metric:?}")
                        };
                        points += data_points.len();
                        seen.extend(data_points.iter().map(|point| {
                            (id.to_owned(), metric.name.clone(), text(&point.attributes, "cpu.mode").map(str::to_owned))
                        }));
                    }
                }
                assert!(
                    points == 1 || (points <= limits.points && bytes <= limits.bytes),
                    "{points} points, {bytes} bytes"
                );
                if index + 1 < all.len() && limits.points > 1 {
                    assert!(points == limits.points || bytes > limits.bytes / 2, "{points} points, {bytes} bytes");
                }
            }
            let count = seen.len();
            seen.sort();
            seen.dedup();
            assert_eq!((count, seen.len()), (520, 520), "{limits:?}");
        }
        assert_eq!(requests(&batch, &origin, Limits::default(), |family| family.name == "none").count(), 0);
    }

    #[test]
    fn odd_times_and_attributes() {
        assert_eq!(nanoseconds(UNIX_EPOCH - Duration::from_secs(1)), 0);
        let own = resource(&origin(), &[("host.name", "other".into()), ("container.id", String::new())]);
        assert_eq!(own.attributes, [attribute("host.id", "h1"), attribute("host.name", "other")]);
        let mut batch = Batch::new(at(40));
        // the clock went back since the container began
        let scope = batch.scope(container("1"));
        batch.put(&TIME, scope, &["user"], 1);
        let origin = origin();
        let request = requests(&batch, &origin, Limits::default(), |_| true).next().unwrap();
        let Some(metric::Data::Sum(sum)) = &request.resource_metrics[0].scope_metrics[0].metrics[0].data else {
            panic!()
        };
        let point = &sum.data_points[0];
        assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (40_000_000_000, 40_000_000_000));
    }
}
