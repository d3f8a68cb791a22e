//! Both text formats against the strict reader.

use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::Format;
use super::strict::{Read, Sample, read};
use crate::model::{Batch, Exemplar, Family, Histogram, Kind, Number, Scope, Unit};

static TIME: Family =
    Family::counter("c_time_seconds", "c.time", Unit::Seconds, "CPU \\ time\n\"used\"").with(&["cpu.mode"]);
static USAGE: Family = Family::gauge("c_usage_bytes", "c.usage", Unit::Bytes, "Memory");
static SHARE: Family = Family::gauge("c_share_ratio", "c.share", Unit::Ratio, "Share").with(&["a", "b.c"]);
static OLD: Family = Family::common("c_failcnt", Kind::Counter, Unit::Bytes, "Old").without_total();
static WAIT: Family = Family::distribution("c_wait_seconds", "c.wait", Unit::Seconds, "Wait").with(&["device"]);

fn at(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
}

fn scope(name: &str) -> Scope {
    let labels = vec![("id", "1".to_owned()), ("service.name", name.to_owned()), ("image", String::new())];
    Scope { labels, start: Some(at(1_700_000_000_125)), ..Scope::default() }
}

fn wait() -> Histogram {
    let exemplar = |value| Exemplar { value, time: at(1_700_000_001_000), trace: [0xAB; 16], span: [1; 8] };
    Histogram {
        bounds: vec![0.000_001, 0.5, 1.0].into(),
        counts: vec![1, 2, 0, 3],
        sum: 12.5,
        // the second is in no such bucket
        exemplars: vec![(1, exemplar(0.25)), (2, exemplar(7.0)), (3, exemplar(8.0))],
    }
}

#[test]
fn the_whole_of_both_formats() {
    let mut batch = Batch::new(at(0));
    let web = batch.scope(scope("we\"b"));
    let host = batch.scope(Scope::default());
    batch.put(&TIME, web, &["user"], 1.5);
    batch.put(&USAGE, web, &[], 4096);
    batch.put(&TIME, host, &[""], 3);
    batch.put(&OLD, host, &[], 7);
    batch.histogram(&WAIT, host, &["sda"], wait());
    assert_eq!(
        Format::OpenMetrics.write(&batch, |_| true),
        r#"# TYPE c_time_seconds counter
# UNIT c_time_seconds seconds
# HELP c_time_seconds CPU \\ time\n\"used\"
c_time_seconds_total{id="1",service_name="we\"b",cpu_mode="user"} 1.5
c_time_seconds_created{id="1",service_name="we\"b",cpu_mode="user"} 1700000000.125
c_time_seconds_total 3
# TYPE c_usage_bytes gauge
# UNIT c_usage_bytes bytes
# HELP c_usage_bytes Memory
c_usage_bytes{id="1",service_name="we\"b"} 4096
# TYPE c_failcnt unknown
# HELP c_failcnt Old
c_failcnt 7
# TYPE c_wait_seconds histogram
# UNIT c_wait_seconds seconds
# HELP c_wait_seconds Wait
c_wait_seconds_bucket{device="sda",le="1e-06"} 1
c_wait_seconds_bucket{device="sda",le="0.5"} 3 # {trace_id="abababababababababababababababab",span_id="0101010101010101"} 0.25 1700000001.000
c_wait_seconds_bucket{device="sda",le="1.0"} 3
c_wait_seconds_bucket{device="sda",le="+Inf"} 6 # {trace_id="abababababababababababababababab",span_id="0101010101010101"} 8.0 1700000001.000
c_wait_seconds_sum{device="sda"} 12.5
c_wait_seconds_count{device="sda"} 6
# EOF
"#
    );
    assert_eq!(
        Format::Prometheus.write(&batch, |family| family.name != "c_wait_seconds"),
        r#"# HELP c_time_seconds_total CPU \\ time\n"used"
# TYPE c_time_seconds_total counter
c_time_seconds_total{id="1",service_name="we\"b",cpu_mode="user"} 1.5
c_time_seconds_total 3
# HELP c_usage_bytes Memory
# TYPE c_usage_bytes gauge
c_usage_bytes{id="1",service_name="we\"b"} 4096
# HELP c_failcnt Old
# TYPE c_failcnt untyped
c_failcnt 7
"#
    );
    let without = super::openmetrics::write_without_created(&batch, |_| true);
    assert!(!without.contains("_created") && without.contains("c_time_seconds_total"));
}

#[test]
fn what_no_reader_takes_is_left_out() {
    let mut batch = Batch::new(at(0));
    let host = batch.scope(Scope::default());
    batch.put(&TIME, host, &["bad"], f64::NAN);
    batch.put(&TIME, host, &["worse"], -1.0);
    batch.put(&TIME, host, &["much"], f64::INFINITY);
    batch.put(&SHARE, host, &["x", "y"], f64::NEG_INFINITY);
    batch.histogram(&WAIT, host, &["sda"], Histogram { sum: f64::NAN, ..wait() });
    for format in [Format::Prometheus, Format::OpenMetrics] {
        let families = read(&format.write(&batch, |_| true), format == Format::OpenMetrics).unwrap();
        let values: Vec<f64> = families.iter().flat_map(|family| &family.samples).map(|sample| sample.value).collect();
        assert_eq!(values, [f64::INFINITY, f64::NEG_INFINITY], "{families:?}");
    }
}

/// The reader is only worth something if it refuses what is wrong.
#[test]
fn the_strict_reader_refuses() {
    for (text, part) in [
        ("a 1\n# EOF\n", "before any family"),
        ("# TYPE a gauge\na 1\n", "no # EOF"),
        ("# TYPE a counter\na 1\n# EOF\n", "not a sample of counter"),
        ("# TYPE a gauge\na_total 1\n# EOF\n", "not a sample of gauge"),
        ("# TYPE a_total counter\n# EOF\n", "no _total"),
        ("# TYPE a gauge\n# UNIT a bytes\n# EOF\n", "not the name's end"),
        ("# TYPE a gauge\na{b=\"\\t\"} 1\n# EOF\n", "no such escape"),
        ("# TYPE a gauge\na{b=\"1\",b=\"2\"} 1\n# EOF\n", "twice"),
        ("# TYPE a gauge\na{b.c=\"1\"} 1\n# EOF\n", "not a label's name"),
        ("# TYPE a gauge\na 1\na 2\n# EOF\n", "twice"),
        ("# TYPE a gauge\na inf\n# EOF\n", "not a number"),
        ("# TYPE a counter\na_total NaN\n# EOF\n", "less than 0"),
        ("# TYPE a counter\n# TYPE a_total gauge\n# EOF\n", "of two families"),
        ("# TYPE a gauge\na 1\n# TYPE b gauge\n# TYPE a gauge\n# EOF\n", "two places"),
        ("# TYPE a histogram\na_bucket{le=\"1.0\"} 1\na_count 1\na_sum 1\n# EOF\n", "not a whole"),
        (
            "# TYPE a histogram\na_bucket{le=\"1.0\"} 2\na_bucket{le=\"+Inf\"} 1\na_count 1\na_sum 1\n# EOF\n",
            "do not grow",
        ),
    ] {
        let problem = read(text, true).expect_err(text);
        assert!(problem.contains(part), "{text}: {problem}");
    }
}

fn number() -> impl Strategy<Value = Number> {
    prop_oneof![any::<u64>().prop_map(Number::Whole), any::<f64>().prop_map(Number::Real)]
}

fn values(families: &[Read], name: &str) -> Vec<Sample> {
    families.iter().flat_map(|family| &family.samples).filter(|sample| sample.name == name).cloned().collect()
}

proptest! {
    /// Whatever stands in a label, and whatever the value: it reads back as it was, beside points of other labels.
    #[test]
    fn labels_and_values_read_back(name in any::<String>(), a in any::<String>(), b in any::<String>(), value in number()) {
        let mut batch = Batch::new(at(0));
        let first = batch.scope(scope(&name));
        let second = batch.scope(Scope { labels: vec![("id", "2".into())], ..Scope::default() });
        batch.add(&SHARE, first, &[a.as_str(), b.as_str()], value);
        batch.add(&TIME, second, &[a.as_str()], 1);
        batch.histogram(&WAIT, first, &[b.as_str()], wait());
        for format in [Format::Prometheus, Format::OpenMetrics] {
            let text = format.write(&batch, |_| true);
            let families = read(&text, format == Format::OpenMetrics).map_err(TestCaseError::fail)?;
            let found = values(&families, "c_share_ratio").remove(0);
            let label = |name: &str| found.label(name).unwrap_or_default().to_owned();
            prop_assert_eq!([label("id"), label("service_name"), label("a"), label("b_c")], ["1".to_owned(), name.clone(), a.clone(), b.clone()]);
            let expected = match value { Number::Whole(value) => value as f64, Number::Real(value) => value };
            prop_assert!(found.value.to_bits() == expected.to_bits() || (found.value.is_nan() && expected.is_nan()));
            let count = values(&families, "c_wait_seconds_count").remove(0);
            prop_assert_eq!((count.label("device").unwrap_or_default(), count.value), (b.as_str(), 6.0));
            let time = values(&families, "c_time_seconds_total").remove(0);
            prop_assert_eq!(time.label("cpu_mode").unwrap_or_default(), &a);
        }
    }
}
