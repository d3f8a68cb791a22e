//! Reads the rules of `packaging/prometheus/agentd-alerts.yml`: as much of YAML as that file uses. Whether Prometheus reads it
//! alike is `promtool`'s to say, where there is one.

/// A rule.
#[derive(Debug, Default)]
pub struct Rule {
    /// Name of the alert or of the series recorded.
    pub name: String,
    /// Whether it records.
    pub records: bool,
    /// Expression.
    pub expression: String,
    /// Keys with values of one line, those of labels and annotations among them.
    pub fields: Vec<(String, String)>,
}

impl Rule {
    /// The value of a key.
    pub fn field(&self, key: &str) -> Option<&str> {
        self.fields.iter().find(|(one, _)| one == key).map(|(_, value)| value.as_str())
    }
}

/// The rules of a file, in its order.
pub fn read(text: &str) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let depth = line.len() - line.trim_start().len();
        let line = line.trim();
        if line.starts_with('#') {
            continue;
        }
        let Some((key, value)) = line.trim_start_matches("- ").split_once(':') else { continue };
        let mut value = value.trim().to_owned();
        if matches!(value.as_str(), "|" | ">" | ">-" | "|-") {
            value.clear();
            // a line of the block stands deeper than its key
            while let Some(more) =
                lines.next_if(|more| more.trim().is_empty() || more.len() - more.trim_start().len() > depth)
            {
                value.push_str(more.trim());
                value.push(' ');
            }
        }
        let value = value.trim().trim_matches(['\'', '"']).to_owned();
        if line.starts_with("- alert:") || line.starts_with("- record:") {
            rules.push(Rule { name: value, records: key == "record", ..Rule::default() });
        } else if let Some(rule) = rules.last_mut() {
            if key == "expr" {
                rule.expression = value;
            } else {
                rule.fields.push((key.to_owned(), value));
            }
        }
    }
    rules
}

#[test]
fn rules_are_read() {
    let text = "groups:\n  - name: g\n    rules:\n      # a: comment\n      - record: a:b\n        expr: sum(a)\n\n      - alert: A\n        \
        expr: |\n          a\n            > 1\n        for: 5m\n        labels:\n          severity: info\n        \
        annotations:\n          summary: 'x: {{ $labels.pod }}'\n";
    let rules = read(text);
    assert_eq!(rules.len(), 2);
    assert_eq!((rules[0].name.as_str(), rules[0].records, rules[0].expression.as_str()), ("a:b", true, "sum(a)"));
    assert_eq!((rules[1].name.as_str(), rules[1].expression.as_str()), ("A", "a > 1"));
    assert_eq!((rules[1].field("for"), rules[1].field("severity")), (Some("5m"), Some("info")));
    assert_eq!(rules[1].field("summary"), Some("x: {{ $labels.pod }}"));
}
