//! The series budget of each pod: how many series it may have, however many peers, devices or containers it has.
//!
//! Where a pod has more, families without open labels are kept whole, in the catalogue's order, as far as they fit; those
//! that do not fit are left out. What is left of the budget is shared by the families with open labels
//! ([`Family::open`]): each keeps its largest points, and the others become one for each combination of the other labels, in
//! which the open ones are [`OTHER`]. Nothing of it is silent: how many series were folded or left out stands in
//! `agentd_self_series_folded` and `agentd_self_series_dropped` for each pod.
//!
//! A series that stood apart stays so until another is more than twice as large, so that graphs do not fall to pieces. What
//! `~other` counts never falls: it grows by what the folded series grow, and keeps what those counted that have gone since,
//! or stand apart now. For that the budget remembers the values of the folded series of pods above it, and of no other.
//!
//! A [`Budget`] has no task: whoever gathers holds it under a lock, and applies it to every whole batch, before a part of it
//! is chosen.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, SystemTime};

use crate::catalogue::{self, agent};
use crate::model::{Batch, Family, Histogram, Kind, Number, Point, Scope, ScopeId, Unit, Value};

/// What an open label says of the points that were folded into one.
pub const OTHER: &str = "~other";

/// Series of a pod where the configuration does not say otherwise.
pub const DEFAULT: usize = 2000;

/// How long a pod that is in no batch any more is remembered: it may be one that is between two of its instances.
const MEMORY: Duration = Duration::from_mins(15);

/// A family's name, the labels of a series of it and those of its scope, as one number.
type Series = u64;

/// Series budgets of all pods.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    pods: HashMap<String, Pod>,
}

/// What is remembered of a pod above its budget.
#[derive(Debug, Default)]
struct Pod {
    seen: Option<SystemTime>,
    /// Series of open families that stood apart last time.
    apart: HashSet<Series>,
    /// Those that were folded last time, with their values then.
    folded: HashMap<Series, Value>,
    /// What each `~other` of a counter or histogram came to.
    sums: HashMap<Series, Value>,
}

/// What was done to a pod's series.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cut {
    /// Series that became part of an `~other`.
    pub folded: usize,
    /// Series that were left out.
    pub dropped: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(DEFAULT)
    }
}

impl Budget {
    /// A budget of so many series for each pod.
    pub fn new(limit: usize) -> Self {
        Self { limit, pods: HashMap::new() }
    }

    /// Another limit, from the next batch on.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Cuts each pod of the batch down to its budget, and adds to the points of `agent` what was cut. Gives the same by pod,
    /// of those that are above, or were and are not well below yet.
    pub fn apply(&mut self, batch: &mut Batch, agent: ScopeId) -> BTreeMap<String, Cut> {
        let cuts = self.cut(batch);
        for (pod, cut) in &cuts {
            batch.add(&agent::SERIES_FOLDED, agent, &[pod], cut.folded as u64);
            batch.add(&agent::SERIES_DROPPED, agent, &[pod], cut.dropped as u64);
        }
        cuts
    }

    fn cut(&mut self, batch: &mut Batch) -> BTreeMap<String, Cut> {
        let time = batch.time;
        let (scopes, families) = batch.parts();
        let above = self.above(scopes, families);
        let mut cuts = BTreeMap::new();
        if !above.is_empty() {
            // The statics' order in the catalogue, once for all pods.
            let rank: HashMap<*const Family, usize> =
                catalogue::all().enumerate().map(|(at, family)| (std::ptr::from_ref(family), at)).collect();
            let mut order: Vec<usize> = (0..families.len()).collect();
            order.sort_by_key(|at| rank.get(&std::ptr::from_ref(families[*at].0)).copied().unwrap_or(usize::MAX));
            let mut ours: BTreeMap<&str, Vec<(usize, Point)>> = BTreeMap::new();
            for place in order {
                let points = &mut families[place].1;
                let is_ours = |point: &mut Point| pod_of(scopes, point).is_some_and(|pod| above.contains(pod));
                for point in points.extract_if(.., is_ours) {
                    if let Some(pod) = pod_of(scopes, &point) {
                        ours.entry(pod).or_default().push((place, point));
                    }
                }
            }
            for (name, points) in ours {
                let pod = self.pods.entry(name.to_owned()).or_default();
                pod.seen = Some(time);
                let (kept, cut) = pod.cut(self.limit, scopes, points, |place| families[place].0);
                for (place, point) in kept {
                    families[place].1.push(point);
                }
                cuts.insert(name.to_owned(), cut);
            }
        }
        let present: HashSet<&str> = scopes.iter().filter_map(|scope| scope.pod.as_deref()).collect();
        self.pods.retain(|name, pod| {
            if present.contains(name.as_str()) {
                return cuts.contains_key(name);
            }
            pod.seen.and_then(|seen| time.duration_since(seen).ok()).is_some_and(|since| since <= MEMORY)
        });
        cuts
    }

    /// Pods with more series than the budget.
    fn above<'a>(&self, scopes: &'a [Scope], families: &[(&'static Family, Vec<Point>)]) -> HashSet<&'a str> {
        // by scope first: hashing a pod's name for each point would be most of the work
        let mut by_scope = vec![0_usize; scopes.len()];
        for point in families.iter().flat_map(|(_, points)| points) {
            if let Some(count) = by_scope.get_mut(point.scope.index()) {
                *count += point.series();
            }
        }
        let mut by_pod: HashMap<&str, usize> = HashMap::new();
        for (scope, count) in scopes.iter().zip(by_scope) {
            if let Some(pod) = &scope.pod {
                *by_pod.entry(pod).or_default() += count;
            }
        }
        // A pod that is cut stays so until it is well below: at the edge it would be cut in every other batch.
        let limit = |pod| if self.pods.contains_key(pod) { self.limit - self.limit.div_ceil(10) } else { self.limit };
        by_pod.into_iter().filter(|(pod, count)| *count > limit(*pod)).map(|(pod, _)| pod).collect()
    }
}

fn pod_of<'a>(scopes: &'a [Scope], point: &Point) -> Option<&'a str> {
    scopes.get(point.scope.index())?.pod.as_deref()
}

/// Points of one family, by the place of the family in the batch.
struct Group {
    place: usize,
    family: &'static Family,
    points: Vec<Point>,
}

impl Group {
    fn series(&self) -> usize {
        self.points.iter().map(Point::series).sum()
    }
}

impl Pod {
    /// Chooses among the points, which come in the catalogue's order, each with the place of its family.
    fn cut(
        &mut self,
        limit: usize,
        scopes: &[Scope],
        points: Vec<(usize, Point)>,
        family: impl Fn(usize) -> &'static Family,
    ) -> (Vec<(usize, Point)>, Cut) {
        let mut groups: Vec<Group> = Vec::new();
        for (place, point) in points {
            match groups.last_mut() {
                Some(group) if group.place == place => group.points.push(point),
                _ => groups.push(Group { place, family: family(place), points: vec![point] }),
            }
        }
        let (mut left, mut cut, mut kept) = (limit, Cut::default(), Vec::new());
        let (open, closed): (Vec<Group>, Vec<Group>) =
            groups.into_iter().partition(|group| !group.family.open.is_empty());
        for group in closed {
            let series = group.series();
            if series <= left {
                left -= series;
                kept.extend(group.points.into_iter().map(|point| (group.place, point)));
            } else {
                cut.dropped += series;
            }
        }
        let shares = share(left, &open.iter().map(Group::series).collect::<Vec<_>>());
        let mut next = Self { seen: self.seen, ..Self::default() };
        for (group, share) in open.into_iter().zip(shares) {
            let place = group.place;
            kept.extend(self.fold(&mut next, scopes, group, share, &mut cut).into_iter().map(|point| (place, point)));
        }
        *self = next;
        (kept, cut)
    }

    /// The points of an open family that stand apart within `share` series, and what the others become.
    fn fold(&self, next: &mut Self, scopes: &[Scope], group: Group, share: usize, cut: &mut Cut) -> Vec<Point> {
        let family = group.family;
        let cost = group.points.iter().map(Point::series).max().unwrap_or(1);
        let mut points: Vec<(Series, Point)> =
            group.points.into_iter().map(|point| (series(family, scopes, point.scope, &point.labels), point)).collect();
        // What may be folded into, with what is in it from before.
        let mut others: BTreeMap<OtherKey, Option<Value>> = BTreeMap::new();
        for (_, point) in &points {
            others
                .entry(other_key(family, point))
                .or_insert_with_key(|(scope, labels)| self.sums.get(&series(family, scopes, *scope, labels)).cloned());
        }
        let running = others.values().flatten().count();
        // What the source itself gives as the others cannot stand beside ours.
        let is_other = |point: &Point| other_key(family, point).1 == point.labels;
        let nameable = points.iter().filter(|(_, point)| !is_other(point)).count();
        let apart = if running == 0 && points.len() * cost <= share {
            points.len()
        } else if (points.len() + running) * cost <= share {
            nameable
        } else {
            while others.len() * cost > share {
                others.pop_last();
            }
            nameable.min(share / cost - others.len())
        };
        // Larger ones first; those that stood apart count double. Equal ones in an order that is the same in every batch.
        points.sort_by_cached_key(|(series, point)| {
            let weight = weight(&point.value) * if self.apart.contains(series) { 2.0 } else { 1.0 };
            (is_other(point), Reverse(weight.to_bits()), *series)
        });
        let folded = points.split_off(apart);
        next.apart.extend(points.iter().map(|(series, _)| *series));
        for (name, point) in folded {
            let grown = match family.kind {
                // a sum of shares, ages or temperatures says nothing
                Kind::Gauge => adds_up(family.unit).then(|| point.value.clone()),
                // what it counted while it stood apart was told then
                _ if self.apart.contains(&name) && !is_other(&point) => Some(growth(&point.value, &point.value)),
                _ => Some(self.folded.get(&name).map_or_else(|| point.value.clone(), |was| growth(was, &point.value))),
            };
            let other = others.get_mut(&other_key(family, &point));
            let fits = other.zip(grown).is_some_and(|(other, grown)| join(other, grown));
            *(if fits { &mut cut.folded } else { &mut cut.dropped }) += point.series();
            if family.kind != Kind::Gauge {
                next.folded.insert(name, point.value);
            }
        }
        let mut kept: Vec<Point> = points.into_iter().map(|(_, point)| point).collect();
        for ((scope, labels), value) in others {
            let Some(value) = value else { continue };
            if family.kind != Kind::Gauge {
                next.sums.insert(series(family, scopes, scope, &labels), value.clone());
            }
            kept.push(Point { scope, labels, value });
        }
        kept
    }
}

/// A scope and labels of which the open ones are [`OTHER`].
type OtherKey = (ScopeId, Vec<Cow<'static, str>>);

fn other_key(family: &Family, point: &Point) -> OtherKey {
    let label = |(name, value): (&&str, &Cow<'static, str>)| {
        if family.open.contains(name) { Cow::Borrowed(OTHER) } else { value.clone() }
    };
    (point.scope, family.labels.iter().zip(&point.labels).map(label).collect())
}

/// Scopes have other numbers in each batch, so they are known by their labels.
fn series(family: &Family, scopes: &[Scope], scope: ScopeId, labels: &[Cow<'static, str>]) -> Series {
    // with fixed keys: the same in each batch
    let mut hasher = DefaultHasher::new();
    family.name.hash(&mut hasher);
    scopes.get(scope.index()).map(|scope| &scope.labels).hash(&mut hasher);
    labels.hash(&mut hasher);
    hasher.finish()
}

/// Divides what there is among these needs: nobody gets more than they need, and of those who get less all get the same.
fn share(room: usize, needs: &[usize]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..needs.len()).collect();
    order.sort_by_key(|at| needs[*at]);
    let (mut left, mut shares) = (room, vec![0; needs.len()]);
    for (done, at) in order.into_iter().enumerate() {
        shares[at] = needs[at].min(left / (needs.len() - done));
        left -= shares[at];
    }
    shares
}

/// How much a series would be missed: its value, or how much it has observed.
fn weight(value: &Value) -> f64 {
    let weight = match value {
        Value::Number(Number::Whole(value)) => *value as f64,
        Value::Number(Number::Real(value)) => value.abs(),
        Value::Histogram(histogram) => histogram.count() as f64,
    };
    if weight.is_nan() { 0.0 } else { weight }
}

/// Whether gauges of this unit can be added up.
fn adds_up(unit: Unit) -> bool {
    match unit {
        Unit::Bytes | Unit::Watts | Unit::Cores | Unit::Count(_) => true,
        Unit::Seconds | Unit::Ratio | Unit::Celsius => false,
    }
}

/// What was counted between two values; the whole of the second where the count began anew between them.
fn growth(was: &Value, now: &Value) -> Value {
    match (was, now) {
        (Value::Number(Number::Whole(was)), Value::Number(Number::Whole(now))) => {
            Value::Number(Number::Whole(now.checked_sub(*was).unwrap_or(*now)))
        }
        (Value::Number(was), Value::Number(now)) => {
            let (was, now) = (real(*was), real(*now));
            Value::Number(Number::Real(if now >= was { now - was } else { now }))
        }
        (Value::Histogram(was), Value::Histogram(now)) if was.bounds == now.bounds => {
            let counts: Option<Vec<u64>> =
                now.counts.iter().zip(&was.counts).map(|(now, was)| now.checked_sub(*was)).collect();
            let grown = counts.map_or_else(
                || now.as_ref().clone(),
                |counts| Histogram {
                    bounds: now.bounds.clone(),
                    counts,
                    sum: (now.sum - was.sum).max(0.0),
                    exemplars: now.exemplars.clone(),
                },
            );
            Value::Histogram(Box::new(grown))
        }
        (_, now) => now.clone(),
    }
}

/// Adds a value to what is there already; false where it cannot be added, and what is there stays as it is.
fn join(other: &mut Option<Value>, value: Value) -> bool {
    let sum = match other.as_ref() {
        None => Some(value),
        Some(before) => sum(before, &value),
    };
    let fits = sum.is_some();
    if fits {
        *other = sum;
    }
    fits
}

/// Two values together; none for histograms of different bounds.
fn sum(one: &Value, other: &Value) -> Option<Value> {
    match (one, other) {
        (Value::Number(Number::Whole(one)), Value::Number(Number::Whole(other))) => {
            Some(Value::Number(Number::Whole(one.saturating_add(*other))))
        }
        (Value::Number(one), Value::Number(other)) => Some(Value::Number(Number::Real(real(*one) + real(*other)))),
        (Value::Histogram(one), Value::Histogram(other)) if one.bounds == other.bounds => {
            let counts = one.counts.iter().zip(&other.counts).map(|(one, other)| one.saturating_add(*other)).collect();
            let mut exemplars = other.exemplars.clone();
            exemplars
                .extend(one.exemplars.iter().filter(|(at, _)| other.exemplars.iter().all(|(b, _)| b != at)).cloned());
            let bounds = one.bounds.clone();
            Some(Value::Histogram(Box::new(Histogram { bounds, counts, sum: one.sum + other.sum, exemplars })))
        }
        _ => None,
    }
}

fn real(number: Number) -> f64 {
    match number {
        Number::Whole(value) => value as f64,
        Number::Real(value) => value,
    }
}

#[cfg(test)]
mod tests;
