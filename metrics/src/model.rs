//! What every source gives and every exporter takes: families, scopes and points.
//!
//! A *family* is a metric: a name, a unit, a kind, a line of help. All of them are statics in [`crate::catalogue`], so
//! that documentation, dashboards and alert rules can be held against what exists. A *scope* is what points are about: the
//! host, a pod, a container, the agent itself. Its labels are written once and shared by all of its points. A [`Batch`] is
//! what one scrape or one push gathers.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::SystemTime;

/// Kind of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while its scope lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by upper bound, with their sum.
    Histogram,
}

/// Unit of a family's values. Values are always in the base unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// A share, 0 to 1.
    Ratio,
    /// Degrees Celsius.
    Celsius,
    /// Watts.
    Watts,
    /// Cores of CPU.
    Cores,
    /// A count of things; the text is UCUM's annotation, such as `{packet}`, and stands in no Prometheus name.
    Count(&'static str),
}

impl Unit {
    /// Its code by UCUM, as OpenTelemetry writes units.
    pub const fn ucum(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::Bytes => "By",
            Self::Ratio => "1",
            Self::Celsius => "Cel",
            Self::Watts => "W",
            Self::Cores => "{cpu}",
            Self::Count(annotation) => annotation,
        }
    }

    /// Its word at the end of a Prometheus name; none where the unit stands in no name.
    pub const fn suffix(self) -> Option<&'static str> {
        match self {
            Self::Seconds => Some("seconds"),
            Self::Bytes => Some("bytes"),
            Self::Ratio => Some("ratio"),
            Self::Celsius => Some("celsius"),
            Self::Watts => Some("watts"),
            Self::Cores | Self::Count(_) => None,
        }
    }
}

/// A metric that exists. Only statics in [`crate::catalogue`] are made.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// Name in Prometheus's spelling, with the unit, without `_total`, which encoders add where the format wants it: for
    /// counters whose `total` is true.
    pub name: &'static str,
    /// Name by OpenTelemetry's conventions, or below `agentd.` where these have none. Families without are names that
    /// other agents made common (cAdvisor's, node_exporter's); they are served to Prometheus and not pushed.
    pub otel: Option<&'static str>,
    /// Kind.
    pub kind: Kind,
    /// Unit.
    pub unit: Unit,
    /// Whether a counter's Prometheus name ends in `_total`; false for the few old names without.
    pub total: bool,
    /// Labels of its points beside the scope's, by their OpenTelemetry names.
    pub labels: &'static [&'static str],
    /// Those of `labels` whose values are not known beforehand (peers, devices, interfaces): past its pod's budget of series
    /// the least of its points become one, in which these labels are [`crate::budget::OTHER`].
    pub open: &'static [&'static str],
    /// One line of help, without a full stop at its end.
    pub help: &'static str,
}

/// A number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// Exact.
    Whole(u64),
    /// Not exact.
    Real(f64),
}

impl From<u64> for Number {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

/// A trace that a value of a histogram came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Exemplar {
    /// The value, in the family's unit.
    pub value: f64,
    /// When it was observed.
    pub time: SystemTime,
    /// Trace.
    pub trace: [u8; 16],
    /// Span.
    pub span: [u8; 8],
}

/// A histogram's state.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// Upper bounds, growing, in the family's unit. The last bucket, without a bound, comes after them.
    pub bounds: Cow<'static, [f64]>,
    /// Observations in each bucket, not cumulated; one more than bounds.
    pub counts: Vec<u64>,
    /// Sum of all observations.
    pub sum: f64,
    /// At most one for each bucket: the bucket's index and the exemplar.
    pub exemplars: Vec<(usize, Exemplar)>,
}

impl Histogram {
    /// How many observations there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }
}

/// The value of a point.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Of a counter or a gauge.
    Number(Number),
    /// Of a histogram.
    Histogram(Box<Histogram>),
}

/// What points are about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Labels of each point in Prometheus's formats, in this order.
    pub labels: Vec<(&'static str, String)>,
    /// Attributes of the OpenTelemetry resource that points are about, beside those of the host.
    pub resource: Vec<(&'static str, String)>,
    /// Since when its counters count; none: since the host's start.
    pub start: Option<SystemTime>,
    /// The pod whose series budget its points count against.
    pub pod: Option<String>,
}

/// Number of a scope in its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScopeId(u32);

impl ScopeId {
    /// Position in [`Batch::scopes`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One value, of a family given by where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// What it is about.
    pub scope: ScopeId,
    /// Values of the family's own labels, in the order of [`Family::labels`].
    pub labels: Vec<Cow<'static, str>>,
    /// Value.
    pub value: Value,
}

impl Point {
    /// How many series it is to Prometheus: one for a number; one for each bucket, the sum and the count of a histogram.
    pub fn series(&self) -> usize {
        match &self.value {
            Value::Number(_) => 1,
            Value::Histogram(histogram) => histogram.counts.len() + 2,
        }
    }

    /// Whether it has the labels and the kind of value of its family, and is whole in itself.
    pub fn fits(&self, family: &Family) -> bool {
        let kind = match &self.value {
            Value::Number(_) => family.kind != Kind::Histogram,
            Value::Histogram(histogram) => {
                family.kind == Kind::Histogram && histogram.counts.len() == histogram.bounds.len() + 1
            }
        };
        kind && self.labels.len() == family.labels.len()
    }

    /// Whether a reader would take it, else exporters leave it out: it [fits](Point::fits), and what only grows, a counter
    /// or a histogram's sum, is a number from 0 up.
    pub fn is_sound(&self, family: &Family) -> bool {
        self.fits(family)
            && match &self.value {
                Value::Number(Number::Real(value)) => family.kind != Kind::Counter || *value >= 0.0,
                Value::Number(Number::Whole(_)) => true,
                Value::Histogram(histogram) => histogram.sum >= 0.0,
            }
    }
}

/// All points of one gathering.
#[derive(Debug)]
pub struct Batch {
    /// When it was gathered.
    pub time: SystemTime,
    scopes: Vec<Scope>,
    families: Vec<(&'static Family, Vec<Point>)>,
    /// Where each family stands in `families`, by its address: families are statics, each has its own.
    places: HashMap<usize, usize, BuildHasherDefault<AddressHasher>>,
}

impl Batch {
    /// An empty batch.
    pub fn new(time: SystemTime) -> Self {
        Self { time, scopes: Vec::new(), families: Vec::new(), places: HashMap::default() }
    }

    /// Adds a scope.
    pub fn scope(&mut self, scope: Scope) -> ScopeId {
        self.scopes.push(scope);
        ScopeId(self.scopes.len() as u32 - 1)
    }

    /// Adds a value. `labels` are those of [`Family::labels`], in their order.
    pub fn add(&mut self, family: &'static Family, scope: ScopeId, labels: &[&str], value: impl Into<Number>) {
        let labels = labels.iter().map(|label| Cow::Owned((*label).to_owned())).collect();
        self.push(family, Point { scope, labels, value: Value::Number(value.into()) });
    }

    /// The same where labels are statics: nothing is copied.
    pub fn put(&mut self, family: &'static Family, scope: ScopeId, labels: &[&'static str], value: impl Into<Number>) {
        let labels = labels.iter().map(|label| Cow::Borrowed(*label)).collect();
        self.push(family, Point { scope, labels, value: Value::Number(value.into()) });
    }

    /// Adds a histogram.
    pub fn histogram(&mut self, family: &'static Family, scope: ScopeId, labels: &[&str], histogram: Histogram) {
        let labels = labels.iter().map(|label| Cow::Owned((*label).to_owned())).collect();
        self.push(family, Point { scope, labels, value: Value::Histogram(Box::new(histogram)) });
    }

    /// Adds a point.
    ///
    /// # Panics
    /// In debug builds, if the labels are not as many as the family's, or the value is not of its kind: a fault of the
    /// source, never of what it read. In release builds exporters leave such a point out.
    pub fn push(&mut self, family: &'static Family, point: Point) {
        debug_assert_eq!(family.labels.len(), point.labels.len(), "{}", family.name);
        debug_assert!(point.fits(family), "{}: {:?}", family.name, point.value);
        let place = *self.places.entry(address(family)).or_insert_with(|| {
            self.families.push((family, Vec::new()));
            self.families.len() - 1
        });
        self.families[place].1.push(point);
    }

    /// The scopes, by [`ScopeId::index`].
    pub fn scopes(&self) -> &[Scope] {
        &self.scopes
    }

    /// The families that have points, with them, in the order in which they first came.
    pub fn families(&self) -> impl Iterator<Item = (&'static Family, &[Point])> {
        let all = self.families.iter().map(|(family, points)| (*family, points.as_slice()));
        all.filter(|(_, points)| !points.is_empty())
    }

    /// The points of a family.
    pub fn points(&self, family: &'static Family) -> &[Point] {
        self.places.get(&address(family)).map_or(&[], |place| self.families[*place].1.as_slice())
    }

    /// How many series there are: see [`Point::series`].
    pub fn series(&self) -> usize {
        self.families.iter().flat_map(|(_, points)| points).map(Point::series).sum()
    }

    /// Scopes, and families with their points to change; which families there are stays as it is.
    pub(crate) fn parts(&mut self) -> (&[Scope], &mut [(&'static Family, Vec<Point>)]) {
        (&self.scopes, &mut self.families)
    }

    /// What is wrong with it, for tests of sources: a line for each point that no exporter could write, for each two that
    /// would be the same series, and for each family that the catalogue does not list.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (family, points) in self.families() {
            let name = family.name;
            if !crate::catalogue::all().any(|listed| std::ptr::eq(listed, family)) {
                faults.push(format!("{name}: not listed in the catalogue, expected in the ALL of a module there"));
            }
            let mut seen = HashSet::new();
            for point in points {
                let Some(scope) = self.scopes.get(point.scope.index()) else {
                    faults.push(format!("{name}: a point of a scope of another batch"));
                    continue;
                };
                if !point.fits(family) {
                    faults.push(format!("{name}: {point:?} has not the family's labels or kind"));
                }
                if point.fits(family) && !point.is_sound(family) {
                    faults.push(format!("{name}: {:?}, expected 0 or more of what only grows", point.value));
                }
                let own = family.labels.iter().find(|own| scope.labels.iter().any(|(label, _)| label == *own));
                if let Some(label) = own {
                    faults.push(format!("{name}: label {label} is also one of the scope's"));
                }
                if !seen.insert((&scope.labels, &point.labels)) {
                    faults.push(format!("{name}: twice with {:?} and {:?}", scope.labels, point.labels));
                }
            }
        }
        faults
    }
}

fn address(family: &'static Family) -> usize {
    std::ptr::from_ref(family).addr()
}

/// Hashes one address: families come from our own catalogue, nobody can choose them to collide.
#[derive(Debug, Default, Clone, Copy)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_usize(usize::from(*byte));
        }
    }

    fn write_usize(&mut self, value: usize) {
        // Fibonacci hashing; the product's upper bits are its good ones, and the map takes some from each end.
        let mixed = (self.0 ^ value as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static A: Family = Family::counter("a_bytes", "a", Unit::Bytes, "A").with(&["l"]);
    static B: Family = Family::distribution("b_seconds", "b", Unit::Seconds, "B");

    #[test]
    fn points_stand_with_their_family_in_the_order_they_came() {
        fn sent<T: Send + Sync>(_: &T) {}
        let mut batch = Batch::new(SystemTime::UNIX_EPOCH);
        let scope = batch.scope(Scope::default());
        let histogram =
            Histogram { bounds: Cow::Borrowed(&[1.0, 2.0]), counts: vec![1, 0, 2], sum: 7.0, exemplars: Vec::new() };
        batch.put(&A, scope, &["x"], 1);
        batch.histogram(&B, scope, &[], histogram.clone());
        batch.add(&A, scope, &["y"], 2.5);
        let names: Vec<_> = batch.families().map(|(family, points)| (family.name, points.len())).collect();
        assert_eq!(names, [("a_bytes", 2), ("b_seconds", 1)]);
        assert_eq!(batch.points(&A)[1].value, Value::Number(Number::Real(2.5)));
        assert_eq!((batch.series(), histogram.count()), (7, 3));
        sent(&batch);
    }

    #[test]
    fn faults_of_sources_are_told() {
        let mut batch = Batch::new(SystemTime::UNIX_EPOCH);
        let scope = batch.scope(Scope { labels: vec![("l", "1".into())], ..Scope::default() });
        batch.put(&A, scope, &["x"], 1);
        batch.put(&A, scope, &["x"], -1.0);
        let faults = batch.faults().join("\n");
        for part in ["not listed", "label l is also", "Real(-1.0)), expected 0 or more", "twice with"] {
            assert!(faults.contains(part), "{part}: {faults}");
        }
        assert_eq!(Batch::new(SystemTime::UNIX_EPOCH).faults(), Vec::<String>::new());
    }
}
