//! Prometheus's text format and OpenMetrics as a scraper reads them. It shares no code with the daemon, so that a mistake
//! there is not made twice.

use std::collections::{BTreeMap, HashSet};

/// Labels of a series.
pub type Labels = BTreeMap<String, String>;

/// One value of one series.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Name of the series, e.g. `a_bucket` for a bucket of the histogram `a`.
    pub name: String,
    /// Its labels; which of them are what in the daemon's words is in docs/metrics.md.
    pub labels: Labels,
    /// Its value, which may be infinite or none.
    pub value: f64,
    /// Labels of its exemplar, if it has one (OpenMetrics alone).
    pub exemplar: Option<Labels>,
}

impl Sample {
    /// A label's value; empty where it has none, which is the same for Prometheus.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }

    fn fits(&self, labels: &[(&str, &str)]) -> bool {
        labels.iter().all(|(name, value)| self.label(name) == *value)
    }
}

/// What one scrape told.
#[derive(Debug, Clone, Default)]
pub struct Exposition {
    /// All samples in the order in which they came.
    pub samples: Vec<Sample>,
    /// Kind of each family by its name, as `# TYPE` says it.
    pub kinds: BTreeMap<String, String>,
}

impl Exposition {
    /// Reads either format. An error names the first line that is wrong, or that is there twice.
    pub fn read(text: &str) -> Result<Self, String> {
        let mut read = Self::default();
        let mut seen = HashSet::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(comment) = line.strip_prefix("# ") {
                let words: Vec<&str> = comment.split(' ').collect();
                if let ["TYPE", name, kind] = words[..]
                    && read.kinds.insert(name.to_owned(), kind.to_owned()).is_some()
                {
                    return Err(format!("a second TYPE of {name}"));
                }
                continue;
            }
            let sample = sample(line).ok_or_else(|| format!("no sample: {line}"))?;
            if !seen.insert((sample.name.clone(), sample.labels.clone())) {
                return Err(format!("a series stands twice: {line}"));
            }
            read.samples.push(sample);
        }
        Ok(read)
    }

    /// The samples of a name that have these labels.
    pub fn of<'a>(&'a self, name: &'a str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| sample.name == name && sample.fits(labels))
    }

    /// Their sum; 0 where there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.of(name, labels).map(|sample| sample.value).sum()
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (name, rest) = line.split_at(line.find(['{', ' '])?);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Labels::new(), rest),
    };
    let (value, exemplar) = match rest.split_once(" # {") {
        Some((value, exemplar)) => (value, Some(self::labels(exemplar)?.0)),
        None => (rest, None),
    };
    // what may come after the value is its time
    let value = value.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value, exemplar })
}

/// Labels up to the closing brace, and what comes after it.
fn labels(mut text: &str) -> Option<(Labels, &str)> {
    let mut labels = Labels::new();
    loop {
        text = text.strip_prefix(',').unwrap_or(text);
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, rest) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut letters = rest.char_indices();
        let end = loop {
            match letters.next()? {
                (at, '"') => break at,
                (_, '\\') => match letters.next()?.1 {
                    'n' => value.push('\n'),
                    letter => value.push(letter),
                },
                (_, letter) => value.push(letter),
            }
        };
        labels.insert(name.to_owned(), value);
        text = &rest[end + 1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_read() {
        let text = "# HELP a_seconds What it is\n# TYPE a_seconds histogram\n\
            a_seconds_bucket{pod=\"/x\",le=\"+Inf\"} 3 # {trace_id=\"12\"} 0.5 17.25\na_seconds_sum{pod=\"/x\"} 1.5\n\
            # TYPE b gauge\nb 4\nb{name=\"a \\\"b\\\" \\\\ {c},\\n\"} NaN 1700000000\n# EOF\n";
        let read = Exposition::read(text).unwrap();
        assert_eq!(read.kinds.len(), 2);
        let bucket = read.of("a_seconds_bucket", &[("pod", "/x")]).next().unwrap();
        assert_eq!((bucket.label("le"), bucket.value, bucket.label("none")), ("+Inf", 3.0, ""));
        assert_eq!(bucket.exemplar.as_ref().unwrap()["trace_id"], "12");
        assert_eq!((read.sum("a_seconds_sum", &[]), read.sum("a_seconds_sum", &[("pod", "/y")])), (1.5, 0.0));
        let last = read.samples.last().unwrap();
        assert_eq!(last.label("name"), "a \"b\" \\ {c},\n");
        assert!(last.value.is_nan());
    }

    #[test]
    fn what_is_wrong_is_told() {
        for text in
            ["a", "a b", "a{b} 1", "a{b=\"c} 1", "a 1\na 2", "a{b=\"c\"} 1\na{b=\"c\"} 1", "# TYPE a x\n# TYPE a y"]
        {
            assert!(Exposition::read(text).is_err(), "{text}");
        }
    }
}
