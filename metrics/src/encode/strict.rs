//! A reader of both text formats for tests, which takes nothing that the formats' descriptions do not allow.

use std::collections::{BTreeMap, BTreeSet};

/// Names and values.
type Labels = Vec<(String, String)>;

/// What was read of a family.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Read {
    pub name: String,
    pub kind: String,
    pub unit: Option<String>,
    pub help: String,
    pub samples: Vec<Sample>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sample {
    pub name: String,
    pub labels: Labels,
    pub value: f64,
    /// Labels, value and time.
    pub exemplar: Option<(Labels, f64, f64)>,
}

impl Sample {
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| label == name).map(|(_, value)| value.as_str())
    }
}

/// Reads a text, OpenMetrics or else 0.0.4; the first thing that is wrong is the error.
pub(super) fn read(text: &str, openmetrics: bool) -> Result<Vec<Read>, String> {
    let body = if openmetrics { text.strip_suffix("# EOF\n").ok_or("no # EOF at the end")? } else { text };
    if !body.is_empty() && !body.ends_with('\n') {
        return Err("the last line does not end".into());
    }
    let mut families: Vec<Read> = Vec::new();
    for line in body.split_terminator('\n') {
        let done = if let Some(meta) = line.strip_prefix("# ") {
            metadata(&mut families, meta, openmetrics)
        } else {
            sample(line, openmetrics).and_then(|sample| place(&mut families, sample, openmetrics))
        };
        done.map_err(|problem| format!("{problem}: {line}"))?;
    }
    let mut taken = BTreeSet::new();
    for family in &families {
        if family.kind.is_empty() {
            return Err(format!("{} has no TYPE", family.name));
        }
        for name in names(&family.name, &family.kind, openmetrics)
            .into_iter()
            .chain([family.name.clone()])
            .collect::<BTreeSet<_>>()
        {
            if !taken.insert(name.clone()) {
                return Err(format!("{name} is a name of two families"));
            }
        }
        series_are_apart(family)?;
        if family.kind == "histogram" {
            histogram(family)?;
        }
    }
    Ok(families)
}

fn metadata(families: &mut Vec<Read>, meta: &str, openmetrics: bool) -> Result<(), String> {
    let mut parts = meta.splitn(3, ' ');
    let (word, name, rest) = (parts.next().unwrap(), parts.next().ok_or("no name")?, parts.next().ok_or("no text")?);
    if !is_name(name, true) {
        return Err("not a name".into());
    }
    if families.last().is_none_or(|last| last.name != name) {
        if families.iter().any(|family| family.name == name) {
            return Err("the family is in two places".into());
        }
        families.push(Read { name: name.into(), ..Read::default() });
    }
    let family = families.last_mut().unwrap();
    if !family.samples.is_empty() {
        return Err("comes after samples".into());
    }
    match word {
        "HELP" if family.help.is_empty() => family.help = unescape(rest, openmetrics)?,
        "TYPE" if family.kind.is_empty() => {
            let known: &[&str] = if openmetrics {
                &["counter", "gauge", "histogram", "unknown"]
            } else {
                &["counter", "gauge", "histogram", "untyped"]
            };
            if !known.contains(&rest) {
                return Err("no such kind".into());
            }
            if openmetrics && rest == "counter" && name.ends_with("_total") {
                return Err("a counter's family has no _total".into());
            }
            family.kind = rest.into();
        }
        "UNIT" if openmetrics && family.unit.is_none() => {
            if !name.ends_with(&format!("_{rest}")) {
                return Err("the unit is not the name's end".into());
            }
            family.unit = Some(rest.into());
        }
        _ => return Err("not known, or twice".into()),
    }
    Ok(())
}

fn sample(line: &str, openmetrics: bool) -> Result<Sample, String> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, mut rest) = line.split_at(end);
    if !is_name(name, true) {
        return Err("not a name".into());
    }
    let mut labels = Vec::new();
    if rest.starts_with('{') {
        (labels, rest) = label_set(rest)?;
    }
    let rest = rest.strip_prefix(' ').ok_or("no space before the value")?;
    let (value, exemplar) = match rest.split_once(" # ") {
        Some(_) if !openmetrics => return Err("no exemplars here".into()),
        Some((value, exemplar)) => {
            let (labels, rest) = label_set(exemplar)?;
            if labels.iter().map(|(name, value)| name.chars().count() + value.chars().count()).sum::<usize>() > 128 {
                return Err("too long an exemplar".into());
            }
            let (of, time) = rest.strip_prefix(' ').and_then(|rest| rest.split_once(' ')).ok_or("no time")?;
            (value, Some((labels, number(of)?, number(time)?)))
        }
        None => (rest, None),
    };
    Ok(Sample { name: name.into(), labels, value: number(value)?, exemplar })
}

fn label_set(text: &str) -> Result<(Labels, &str), String> {
    let mut rest = text.strip_prefix('{').ok_or("no {")?;
    let mut labels = Labels::new();
    loop {
        let (name, after) = rest.split_once("=\"").ok_or("no label")?;
        if !is_name(name, false) || name.starts_with("__") {
            return Err(format!("'{name}' is not a label's name"));
        }
        let mut escaped = false;
        let end = after.bytes().position(|byte| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        });
        let (value, after) = after.split_at(end.ok_or("no end of a value")?);
        if labels.iter().any(|(known, _)| known == name) {
            return Err(format!("label {name} twice"));
        }
        labels.push((name.into(), unescape(value, true)?));
        let after = &after[1..];
        match after.strip_prefix(',') {
            Some(more) => rest = more,
            None => return Ok((labels, after.strip_prefix('}').ok_or("no }")?)),
        }
    }
}

/// The names of a family's samples.
fn names(family: &str, kind: &str, openmetrics: bool) -> Vec<String> {
    let suffixes: &[&str] = match (kind, openmetrics) {
        ("counter", true) => &["_total", "_created"],
        ("histogram", true) => &["_bucket", "_sum", "_count", "_created"],
        ("histogram", false) => &["_bucket", "_sum", "_count"],
        _ => &[""],
    };
    suffixes.iter().map(|suffix| format!("{family}{suffix}")).collect()
}

fn place(families: &mut [Read], sample: Sample, openmetrics: bool) -> Result<(), String> {
    let family = families.last_mut().ok_or("a sample before any family")?;
    if family.kind.is_empty() {
        return Err("a sample before TYPE".into());
    }
    if !names(&family.name, &family.kind, openmetrics).contains(&sample.name) {
        return Err(format!("not a sample of {} {}", family.kind, family.name));
    }
    let grows = !sample.name.ends_with("_created") && matches!(family.kind.as_str(), "counter" | "histogram");
    if grows && (sample.value < 0.0 || sample.value.is_nan()) {
        return Err("less than 0".into());
    }
    if sample.exemplar.is_some() && !sample.name.ends_with("_bucket") {
        return Err("an exemplar where none may be".into());
    }
    if sample.name.ends_with("_bucket") && family.kind == "histogram" && sample.label("le").is_none() {
        return Err("a bucket without a bound".into());
    }
    family.samples.push(sample);
    Ok(())
}

/// No series twice, and those of one metric (the same labels but `le`) in one place.
fn series_are_apart(family: &Read) -> Result<(), String> {
    let (mut series, mut metrics) = (BTreeSet::new(), Vec::new());
    for sample in &family.samples {
        let mut labels = sample.labels.clone();
        labels.sort();
        if !series.insert((sample.name.clone(), labels.clone())) {
            return Err(format!("{} twice with {labels:?}", sample.name));
        }
        labels.retain(|(name, _)| family.kind != "histogram" || name != "le");
        if metrics.last() != Some(&labels) {
            if metrics.contains(&labels) {
                return Err(format!("{} in two places with {labels:?}", family.name));
            }
            metrics.push(labels);
        }
    }
    Ok(())
}

/// Buckets grow in bound and count up to `+Inf`, which is the count.
fn histogram(family: &Read) -> Result<(), String> {
    let mut metrics: BTreeMap<Labels, Vec<&Sample>> = BTreeMap::new();
    for sample in &family.samples {
        let labels = sample.labels.iter().filter(|(name, _)| name != "le").cloned().collect();
        metrics.entry(labels).or_default().push(sample);
    }
    for samples in metrics.values() {
        let (mut bound, mut count) = (f64::NEG_INFINITY, 0.0);
        for bucket in samples.iter().filter(|sample| sample.name.ends_with("_bucket")) {
            let next = number(bucket.label("le").unwrap())?;
            if next <= bound || bucket.value < count {
                return Err(format!("{}: buckets do not grow", family.name));
            }
            (bound, count) = (next, bucket.value);
            if let Some((_, value, _)) = &bucket.exemplar
                && *value > bound
            {
                return Err(format!("{}: an exemplar in the wrong bucket", family.name));
            }
        }
        let of = |suffix: &str| samples.iter().filter(|sample| sample.name.ends_with(suffix)).count();
        let total = samples.iter().find(|sample| sample.name.ends_with("_count")).ok_or("no count")?.value;
        if bound != f64::INFINITY || (total - count).abs() > 0.0 || of("_sum") != 1 || of("_count") != 1 {
            return Err(format!("{}: not a whole histogram", family.name));
        }
    }
    Ok(())
}

fn is_name(text: &str, colons: bool) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || (colons && byte == b':');
    text.bytes().all(good) && text.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

fn unescape(text: &str, quotes: bool) -> Result<String, String> {
    let (mut out, mut characters) = (String::new(), text.chars());
    while let Some(character) = characters.next() {
        out.push(match character {
            '\\' => match characters.next() {
                Some('\\') => '\\',
                Some('n') => '\n',
                Some('"') if quotes => '"',
                other => return Err(format!("no such escape: {other:?}")),
            },
            '"' if quotes => return Err("a quote without escape".into()),
            other => other,
        });
    }
    Ok(out)
}

fn number(text: &str) -> Result<f64, String> {
    match text {
        "NaN" => return Ok(f64::NAN),
        "+Inf" => return Ok(f64::INFINITY),
        "-Inf" => return Ok(f64::NEG_INFINITY),
        _ => {}
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.e".contains(&byte)) {
        return Err(format!("'{text}' is not a number"));
    }
    text.parse().map_err(|_| format!("'{text}' is not a number"))
}
