//! Pods above their budget, over several gatherings.

use super::*;

static TIME: Family = Family::counter("b_time_seconds", "b.time", Unit::Seconds, "Time").with(&["cpu.mode"]);
static WAIT: Family = Family::distribution("b_wait_seconds", "b.wait", Unit::Seconds, "Wait");
static BYTES: Family =
    Family::counter("b_io_bytes", "b.io", Unit::Bytes, "Bytes").with(&["peer", "way"]).open(&["peer"]);
static OPEN: Family =
    Family::gauge("b_open", "b.open", Unit::Count("{connection}"), "Open").with(&["peer"]).open(&["peer"]);
static AGE: Family = Family::gauge("b_age_seconds", "b.age", Unit::Seconds, "Age").with(&["peer"]).open(&["peer"]);
static RTT: Family =
    Family::distribution("b_rtt_seconds", "b.rtt", Unit::Seconds, "RTT").with(&["peer"]).open(&["peer"]);

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
}

/// A batch with the agent's scope and that of a container of a pod.
fn batch(seconds: u64) -> (Batch, ScopeId, ScopeId) {
    let mut batch = Batch::new(at(seconds));
    let agent = batch.scope(Scope::default());
    let pod = Some("/web".to_owned());
    let container = batch.scope(Scope { labels: vec![("id", "1".into())], pod, ..Scope::default() });
    (batch, agent, container)
}

fn histogram(counts: [u64; 2]) -> Histogram {
    Histogram {
        bounds: Cow::Borrowed(&[1.0]),
        counts: counts.into(),
        sum: counts[1] as f64 * 2.0,
        exemplars: Vec::new(),
    }
}

/// Labels and values of a family's points, in order of labels.
fn told(batch: &Batch, family: &'static Family) -> Vec<(String, f64)> {
    let mut told: Vec<(String, f64)> =
        batch.points(family).iter().map(|point| (point.labels.join(" "), weight(&point.value))).collect();
    told.sort_by(|one, other| one.0.cmp(&other.0));
    told
}

fn pairs(told: &[(String, f64)]) -> Vec<(&str, f64)> {
    told.iter().map(|(labels, value)| (labels.as_str(), *value)).collect()
}

/// One gathering of peers with these bytes.
fn peers(budget: &mut Budget, seconds: u64, peers: &[(&str, u64)]) -> (Vec<(String, f64)>, Option<Cut>) {
    let (mut batch, agent, container) = batch(seconds);
    for (peer, bytes) in peers {
        batch.add(&BYTES, container, &[peer, "in"], *bytes);
    }
    let cut = budget.apply(&mut batch, agent).remove("/web");
    assert!(batch.series() <= budget.limit + 2, "{}", batch.series());
    (told(&batch, &BYTES), cut)
}

#[test]
fn within_the_budget_nothing_changes() {
    let mut budget = Budget::new(6);
    let (mut batch, agent, container) = batch(0);
    let host = batch.scope(Scope::default());
    batch.histogram(&WAIT, container, &[], histogram([1, 2]));
    for peer in ["a", "b"] {
        batch.add(&BYTES, container, &[peer, "in"], 1);
    }
    for core in 0..50 {
        batch.add(&TIME, host, &[&core.to_string()], 1);
    }
    assert_eq!((budget.apply(&mut batch, agent).len(), batch.series()), (0, 56));
    assert!(budget.pods.is_empty());
}

#[test]
fn whole_families_stay_as_far_as_they_fit() {
    let mut budget = Budget::new(7);
    let (mut batch, agent, container) = batch(0);
    // in the catalogue's order these unlisted ones stand in the order of the batch
    batch.add(&TIME, container, &["user"], 1);
    batch.histogram(&WAIT, container, &[], histogram([1, 2]));
    batch.add(&TIME, container, &["system"], 1);
    for peer in ["a", "b", "c", "d"] {
        batch.add(&BYTES, container, &[peer, "in"], 1);
    }
    let cuts = budget.apply(&mut batch, agent);
    assert_eq!(cuts["/web"], Cut { folded: 4, dropped: 0 });
    assert_eq!((batch.points(&TIME).len(), batch.points(&WAIT).len()), (2, 1));
    assert_eq!(pairs(&told(&batch, &BYTES)), [("~other in", 4.0)]);
    assert_eq!(pairs(&told(&batch, &agent::SERIES_FOLDED)), [("/web", 4.0)]);
    assert_eq!(pairs(&told(&batch, &agent::SERIES_DROPPED)), [("/web", 0.0)]);

    let mut budget = Budget::new(3);
    let (mut batch, agent, container) = self::batch(0);
    batch.histogram(&WAIT, container, &[], histogram([1, 2]));
    batch.add(&TIME, container, &["user"], 1);
    batch.add(&BYTES, container, &["a", "in"], 1);
    assert_eq!(budget.apply(&mut batch, agent)["/web"], Cut { folded: 0, dropped: 4 });
    assert_eq!((batch.points(&TIME).len(), batch.points(&WAIT).len(), batch.points(&BYTES).len()), (1, 0, 1));
    assert_eq!(batch.families().filter(|(family, _)| family.name == "b_wait_seconds").count(), 0);
}

#[test]
fn the_largest_stand_apart_and_stay() {
    let mut budget = Budget::new(3);
    let (first, cut) = peers(&mut budget, 0, &[("a", 10), ("b", 500), ("c", 400), ("d", 20)]);
    assert_eq!(pairs(&first), [("b in", 500.0), ("c in", 400.0), ("~other in", 30.0)]);
    assert_eq!(cut, Some(Cut { folded: 2, dropped: 0 }));
    // somewhat larger is not enough
    let (second, _) = peers(&mut budget, 15, &[("a", 700), ("b", 500), ("c", 400), ("d", 20)]);
    assert_eq!(pairs(&second), [("b in", 500.0), ("c in", 400.0), ("~other in", 720.0)]);
    // more than twice is: what was folded stays counted, and of the other only what comes from now on
    let (third, _) = peers(&mut budget, 30, &[("a", 900), ("b", 500), ("c", 410), ("d", 25)]);
    assert_eq!(pairs(&third), [("a in", 900.0), ("b in", 500.0), ("~other in", 725.0)]);
    let (fourth, _) = peers(&mut budget, 45, &[("a", 900), ("b", 500), ("c", 430), ("d", 25)]);
    assert_eq!(pairs(&fourth), [("a in", 900.0), ("b in", 500.0), ("~other in", 745.0)]);
}

#[test]
fn other_never_falls() {
    let mut budget = Budget::new(2);
    let all = |a, b, c, d| [("a", a), ("b", b), ("c", c), ("d", d)];
    let other = |told: &[(String, f64)]| told.iter().find(|(labels, _)| labels == "~other in").map(|(_, value)| *value);
    assert_eq!(other(&peers(&mut budget, 0, &all(100, 5, 5, 5)).0), Some(15.0));
    // one has gone, one began anew, one is new
    assert_eq!(other(&peers(&mut budget, 15, &[("a", 100), ("b", 7), ("c", 2), ("e", 3)]).0), Some(22.0));
    // none is too much any more, but the pod is not well below yet
    assert_eq!(other(&peers(&mut budget, 30, &[("a", 100), ("b", 8)]).0), Some(23.0));
    // well below: nothing is remembered
    assert_eq!(peers(&mut budget, 45, &[("a", 100)]), (vec![("a in".to_owned(), 100.0)], None));
    assert!(budget.pods.is_empty());
}

/// What the kernel could not tell apart comes with the same label, and is part of the sum.
#[test]
fn others_of_the_source_are_among_the_others() {
    let mut budget = Budget::new(3);
    let (told, cut) = peers(&mut budget, 0, &[("a", 10), ("~other", 900)]);
    assert_eq!((pairs(&told), cut), (vec![("a in", 10.0), ("~other in", 900.0)], None));
    let (told, cut) = peers(&mut budget, 15, &[("a", 10), ("b", 30), ("c", 20), ("~other", 905)]);
    assert_eq!(pairs(&told), [("b in", 30.0), ("c in", 20.0), ("~other in", 915.0)]);
    assert_eq!(cut, Some(Cut { folded: 2, dropped: 0 }));
    let (told, _) = peers(&mut budget, 30, &[("a", 11), ("b", 30), ("~other", 906)]);
    assert_eq!(pairs(&told), [("a in", 11.0), ("b in", 30.0), ("~other in", 916.0)]);
}

#[test]
fn the_same_whatever_the_order() {
    let points: Vec<(String, u64)> = (0..40).map(|at| (format!("peer{at}"), 7)).collect();
    let mut points: Vec<(&str, u64)> = points.iter().map(|(peer, bytes)| (peer.as_str(), *bytes)).collect();
    let (mut budget, mut other) = (Budget::new(10), Budget::new(10));
    let first = peers(&mut budget, 0, &points);
    points.reverse();
    assert_eq!(peers(&mut other, 0, &points), first);
    assert_eq!(first.0.len(), 10);
    for seconds in 1..5 {
        points.rotate_left(11);
        assert_eq!(peers(&mut budget, seconds, &points), first);
    }
}

#[test]
fn open_families_share_what_is_left_and_each_kind_is_folded_as_it_can_be() {
    let mut budget = Budget::new(16);
    let (mut batch, agent, container) = batch(0);
    for at in 0..6_u64 {
        let peer = at.to_string();
        batch.add(&BYTES, container, &[&peer, if at % 2 == 0 { "in" } else { "out" }], at + 1);
        batch.add(&OPEN, container, &[&peer], at + 1);
        batch.add(&AGE, container, &[&peer], (at + 1) as f64);
        batch.histogram(&RTT, container, &[&peer], histogram([at + 1, 0]));
    }
    let cut = budget.apply(&mut batch, agent)["/web"];
    // four series for each: two of each way apart or folded, three gauges and the rest, and one histogram of four series
    assert_eq!(pairs(&told(&batch, &BYTES)), [("4 in", 5.0), ("5 out", 6.0), ("~other in", 4.0), ("~other out", 6.0)]);
    assert_eq!(pairs(&told(&batch, &OPEN)), [("3", 4.0), ("4", 5.0), ("5", 6.0), ("~other", 6.0)]);
    // ages do not add up
    assert_eq!(pairs(&told(&batch, &AGE)), [("3", 4.0), ("4", 5.0), ("5", 6.0)]);
    assert_eq!(pairs(&told(&batch, &RTT)), [("~other", 21.0)]);
    assert_eq!(cut, Cut { folded: 4 + 3 + 24, dropped: 3 });
    let Value::Histogram(rtt) = &batch.points(&RTT)[0].value else { panic!() };
    assert_eq!(rtt.counts, [21, 0]);
}

#[test]
fn histograms_that_do_not_fit_together_are_left_out() {
    let mut budget = Budget::new(4);
    let (mut batch, agent, container) = batch(0);
    batch.histogram(&RTT, container, &["a"], histogram([9, 0]));
    batch.histogram(&RTT, container, &["b"], Histogram { bounds: Cow::Borrowed(&[2.0]), ..histogram([1, 0]) });
    assert_eq!(budget.apply(&mut batch, agent)["/web"], Cut { folded: 4, dropped: 4 });
    assert_eq!(pairs(&told(&batch, &RTT)), [("~other", 9.0)]);
}

#[test]
fn a_budget_too_small_for_anything_is_none() {
    let mut budget = Budget::new(0);
    let (told, cut) = peers(&mut budget, 0, &[("a", 1), ("b", 2)]);
    assert_eq!((told.len(), cut), (0, Some(Cut { folded: 0, dropped: 2 })));
}

#[test]
fn pods_that_are_gone_are_forgotten() {
    let mut budget = Budget::new(2);
    peers(&mut budget, 0, &[("a", 1), ("b", 2), ("c", 3)]);
    let mut later = |seconds| {
        let mut batch = Batch::new(at(seconds));
        let agent = batch.scope(Scope::default());
        budget.apply(&mut batch, agent);
        budget.pods.len()
    };
    assert_eq!((later(800), later(1000)), (1, 0));
}

#[test]
fn shares() {
    assert_eq!(share(12, &[6, 6, 6]), [4, 4, 4]);
    assert_eq!(share(12, &[2, 100, 6]), [2, 5, 5]);
    assert_eq!(share(100, &[1, 2, 3]), [1, 2, 3]);
    assert_eq!(share(0, &[1, 2]), [0, 0]);
    assert_eq!(share(5, &[]), Vec::<usize>::new());
}

proptest::proptest! {
    /// Whatever peers come, go, grow and begin anew: never more series than the budget, `~other` never falls while the pod is
    /// cut, and every series is told apart, folded or counted as left out.
    #[test]
    fn bounded_and_growing(
        limit in 1_usize..8,
        steps in proptest::collection::vec(proptest::collection::btree_map(0_u8..12, 0_u64..1000, 0..12), 1..12),
    ) {
        let mut budget = Budget::new(limit);
        let mut before: Option<f64> = None;
        for (seconds, step) in steps.iter().enumerate() {
            let (mut batch, agent, container) = batch(seconds as u64);
            for (peer, bytes) in step {
                batch.add(&BYTES, container, &[&peer.to_string(), "in"], *bytes);
            }
            let cut = budget.apply(&mut batch, agent).remove("/web");
            let told = told(&batch, &BYTES);
            proptest::prop_assert!(told.len() <= limit);
            let other = told.iter().find(|(labels, _)| labels == "~other in").map(|(_, value)| *value);
            let apart = told.len() - usize::from(other.is_some());
            let Cut { folded, dropped } = cut.unwrap_or_default();
            proptest::prop_assert_eq!(apart + folded + dropped, step.len());
            proptest::prop_assert!(cut.is_some() || step.len() <= limit);
            if cut.is_some() && let (Some(before), Some(other)) = (before, other) {
                proptest::prop_assert!(other >= before, "{} after {}", other, before);
            }
            before = other;
        }
    }
}
