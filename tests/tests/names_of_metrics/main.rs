//! What operators load into Prometheus and Grafana (`packaging/`, `examples/`) against what agentd serves: every metric, every
//! label and every value of a label that a query names exists, and what a legend or an alert's text names is in the result.
//!
//! Where Prometheus's `promtool` is installed, it reads the same files, and runs the alerts' own tests.

mod dashboards;
mod known;
mod promql;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use agentd_tests::{binary, skip};
use serde_json::Value;

use dashboards::{array, dashboard, panels, queries, variables};
use known::{known, root, sources};
use promql::{Known, Labels, Read, read};
use rules::Rule;

const DASHBOARDS: [&str; 2] = ["agentd-node", "agentd-pod"];

fn prometheus() -> PathBuf {
    root().join("packaging/prometheus")
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What stands between `{{` and `}}` as a label: `{{pod}}`, or in alerts `{{ $labels.pod }}`.
fn placeholders(text: &str) -> Vec<&str> {
    let inner = text.split("{{").skip(1).filter_map(|part| Some(part.split_once("}}")?.0.trim()));
    inner.filter(|inner| !inner.starts_with("$value")).map(|inner| inner.trim_start_matches("$labels.")).collect()
}

/// What an expression gives, or a line for what is wrong with it.
fn checked(place: &str, expression: &str, known: &Known, problems: &mut Vec<String>) -> Option<Read> {
    let read = read(expression, known);
    if let Err(error) = &read {
        problems.push(format!("{place}: {error} in {expression}"));
    }
    read.ok()
}

/// Lines for placeholders that are no label of the result.
fn named(place: &str, text: &str, labels: &Labels, problems: &mut Vec<String>) {
    for label in placeholders(text).into_iter().filter(|label| !labels.contains(*label)) {
        problems.push(format!("{place}: {{{{{label}}}}} in '{text}', of series that have {labels:?}"));
    }
}

/// What is wrong with the rules of a file, and all that was read; adds what is recorded to what is known.
fn rules_problems(rules: &[Rule], known: &mut Known) -> (Vec<String>, Vec<(String, Read)>) {
    let (mut problems, mut reads) = (Vec::new(), Vec::new());
    for rule in rules {
        let Some(read) = checked(&rule.name, &rule.expression, known, &mut problems) else { continue };
        let labels = read.given.labels();
        if rule.records {
            known.insert(rule.name.clone(), labels);
        } else {
            for key in ["summary", "description"] {
                match rule.field(key) {
                    Some(text) => named(&rule.name, text, &labels, &mut problems),
                    None => problems.push(format!("{}: has no {key}", rule.name)),
                }
            }
            let told = format!("{} {}", rule.field("summary").unwrap_or(""), rule.field("description").unwrap_or(""));
            for label in ["pod", "container"].into_iter().filter(|label| labels.contains(*label)) {
                if !placeholders(&told).contains(&label) {
                    problems.push(format!("{}: its text does not say which {label}", rule.name));
                }
            }
            if !matches!(rule.field("severity"), Some("critical" | "warning" | "info")) || rule.field("for").is_none() {
                problems.push(format!("{}: expected `for`, and a severity critical, warning or info", rule.name));
            }
        }
        reads.push((rule.name.clone(), read));
    }
    (problems, reads)
}

fn dashboard_problems(name: &str, dashboard: &Value, known: &Known) -> (Vec<String>, Vec<(String, Read)>) {
    let (mut problems, mut reads) = (Vec::new(), Vec::new());
    let list = array(&dashboard["templating"]["list"]);
    let defined: Vec<&str> = list.iter().filter_map(|variable| variable["name"].as_str()).collect();
    for (place, expression, legend) in queries(name, dashboard) {
        let used = variables(&expression);
        if let Some(missing) = used.iter().find(|used| !defined.contains(*used)) {
            problems.push(format!("{place}: there is no variable {missing}"));
        }
        let Some(read) = checked(&place, &expression, known, &mut problems) else { continue };
        named(&place, legend.as_deref().unwrap_or(""), &read.given.labels(), &mut problems);
        reads.push((place, read));
    }
    (problems, reads)
}

fn all_rules() -> Vec<Rule> {
    rules::read(&text(&prometheus().join("agentd-alerts.yml")))
}

/// All that is wrong with what is packaged, and what it reads.
fn everything() -> (Vec<String>, Vec<(String, Read)>) {
    let mut known = known();
    let (mut problems, mut reads) = rules_problems(&all_rules(), &mut known);
    for name in DASHBOARDS {
        let (more, read) = dashboard_problems(name, &dashboard(name), &known);
        problems.extend(more);
        reads.extend(read);
    }
    (problems, reads)
}

#[test]
fn every_metric_and_label_of_rules_and_dashboards_exists() {
    let (problems, reads) = everything();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    let names: BTreeSet<&String> = reads.iter().flat_map(|(_, read)| &read.names).collect();
    assert!(reads.len() > 100 && names.len() > 80, "{} queries of {} metrics", reads.len(), names.len());
}

#[test]
fn every_value_that_a_label_is_compared_with_is_one_that_the_code_gives() {
    let sources = sources();
    let mut problems = Vec::new();
    for (place, read) in everything().1 {
        for (label, value) in read.values {
            let free = value.is_empty() || value.starts_with('$') || value.contains(['*', '+']) || label == "job";
            if !free && !sources.contains(&format!("\"{value}\"")) {
                problems.push(format!("{place}: nothing in the sources gives {label} the value '{value}'"));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn a_made_up_name_is_found() {
    let mut known = known();
    let rule = |expression: &str, summary: &str| {
        format!(
            "- alert: A\n  expr: {expression}\n  for: 1m\n  severity: info\n  summary: '{summary}'\n  description: 'd'\n"
        )
    };
    for (expression, summary, fault) in [
        ("rate(agentd_container_restarts[5m]) > 0", "", "there is no metric agentd_container_restarts"),
        ("agentd_container_gossip_total > 0", "", "there is no metric agentd_container_gossip_total"),
        ("agentd_container_tcp_rtt_seconds > 0", "", "there is no metric agentd_container_tcp_rtt_seconds"),
        ("agentd_host_load_1m{pod=\"/a\"} > 0", "", "agentd_host_load_1m has no label pod"),
        ("agentd_pod_uptime_seconds{container=\"a\"} > 0", "", "agentd_pod_uptime_seconds has no label container"),
        ("agentd_host_load_1m > 9", "{{ $labels.pod }}", "{{pod}} in"),
        ("agentd_container_processes > 9", "", "does not say which pod"),
    ] {
        let problems = rules_problems(&rules::read(&rule(expression, summary)), &mut known).0.join("\n");
        assert!(problems.contains(fault), "{expression}: {problems}");
    }
    let good = rule("agentd_container_processes > 9", "{{ $labels.pod }} {{ $labels.container }}: {{ $value }}");
    assert_eq!(rules_problems(&rules::read(&good), &mut known).0, Vec::<String>::new());

    let panel = |expression: &str| {
        serde_json::json!({"panels": [{"title": "t", "panels": [
            {"title": "u", "targets": [{"refId": "A", "expr": expression, "legendFormat": "{{pod}}"}]}
        ]}], "templating": {"list": [{"name": "node", "type": "query", "query": {"query": "label_values(agentd_pods, instance)"}}]}})
    };
    for (expression, fault) in [
        ("sum by (pod) (agentd_container_gossip{instance=~\"$node\"})", "there is no metric"),
        ("sum by (pod) (agentd_container_processes{instance=~\"$nod\"})", "no variable nod"),
        ("sum by (name) (agentd_container_processes{instance=~\"$node\"})", "{{pod}} in"),
    ] {
        let problems = dashboard_problems("d", &panel(expression), &known).0.join("\n");
        assert!(problems.contains(fault), "{expression}: {problems}");
    }
    let good = panel("sum by (pod) (agentd_container_processes{instance=~\"$node\"})");
    assert_eq!(dashboard_problems("d", &good, &known).0, Vec::<String>::new());
}

/// What Grafana needs to show each panel, and what a reader needs to understand it.
#[test]
fn dashboards_are_whole() {
    let mut problems = Vec::new();
    for name in DASHBOARDS {
        let dashboard = dashboard(name);
        assert_eq!(dashboard["uid"], *name);
        assert!(dashboard["id"].is_null() && dashboard["schemaVersion"].as_u64() >= Some(38), "{name}");
        let (mut ids, mut cells) = (BTreeSet::new(), BTreeMap::new());
        for panel in panels(&dashboard) {
            let title = panel["title"].as_str().unwrap_or_default();
            let mut problem = |what: &str| problems.push(format!("{name}: '{title}': {what}"));
            if !ids.insert(panel["id"].as_u64()) {
                problem("its id is also another panel's");
            }
            let place = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
            let [x, y, width, height] = place;
            if x + width > 24 {
                problem("it is wider than the page");
            }
            for cell in (y..y + height).flat_map(|y| (x..x + width).map(move |x| (x, y))) {
                if let Some(other) = cells.insert(cell, title) {
                    problem(&format!("it lies over '{other}'"));
                    break;
                }
            }
            if panel["type"] == "row" {
                continue;
            }
            if title.is_empty() || panel["description"].as_str().is_none_or(str::is_empty) {
                problem("it has no title or no description");
            }
            if panel["fieldConfig"]["defaults"]["unit"].as_str().is_none_or(str::is_empty) {
                problem("it has no unit");
            }
            let mut references = BTreeSet::new();
            for target in array(&panel["targets"]) {
                let source = &target["datasource"]["uid"];
                if *source != "${datasource}" || panel["datasource"]["uid"] != *source {
                    problem("its data source is not ${datasource}");
                }
                let is_table = target["format"] == "table";
                if !references.insert(target["refId"].as_str()) || (!is_table && target["legendFormat"].is_null()) {
                    problem("a query without a name of its own or a legend");
                }
            }
            if references.is_empty() {
                problem("it has no query");
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn every_alert_has_a_case_in_which_it_is_quiet_and_one_in_which_it_fires() {
    let cases = text(&prometheus().join("agentd-alerts-test.yml"));
    for alert in all_rules().iter().filter(|rule| !rule.records) {
        let of_it: Vec<&str> =
            cases.split("- eval_time:").filter(|case| case.contains(&format!("alertname: {}\n", alert.name))).collect();
        let quiet = of_it.iter().filter(|case| case.contains("exp_alerts: []")).count();
        assert!(quiet > 0 && of_it.len() > quiet, "{} needs both in agentd-alerts-test.yml", alert.name);
    }
}

#[test]
fn every_alert_is_documented() {
    let page = text(&root().join("docs/dashboards.md"));
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
    let alerts: Vec<Rule> = all_rules().into_iter().filter(|rule| !rule.records).collect();
    for alert in &alerts {
        let row = format!("| `{}` | {} | ", alert.name, alert.field("severity").unwrap());
        assert!(rows.iter().any(|line| line.starts_with(&row)), "docs/dashboards.md has no row that begins '{row}'");
    }
    assert_eq!(rows.len(), alerts.len(), "docs/dashboards.md has an alert that there is not");
}

/// The parts of agentd's own configuration that stand in a text as comments: a header and the keys below it.
fn configurations(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        let line = line.strip_prefix("#   ").unwrap_or("");
        if line.starts_with('[') {
            found.push(String::new());
            inside = true;
        }
        inside &= !line.is_empty();
        if inside && let Some(last) = found.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    found
}

#[test]
fn agentd_takes_the_configuration_that_the_examples_name() {
    for name in ["prometheus.yml", "otel-collector.yaml"] {
        let found = configurations(&text(&root().join("examples").join(name)));
        assert_eq!(found.len(), 2, "{name}: {found:?}");
        for configuration in found {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("agentd.toml");
            std::fs::write(&file, &configuration).unwrap();
            let output =
                Command::new(binary("agentd")).arg("check-config").arg("--config").arg(&file).output().unwrap();
            assert!(output.status.success(), "{name}: {configuration}{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

/// Runs promtool; none where it is not installed.
fn promtool(words: &[&str], file: &Path) -> Option<(bool, String)> {
    let output = Command::new("promtool").args(words).arg(file).current_dir(prometheus()).output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

macro_rules! promtool {
    ($words:expr, $file:expr) => {
        match promtool($words, $file) {
            Some(answer) => answer,
            None => skip!("promtool is not installed (package prometheus)"),
        }
    };
}

#[test]
fn promtool_reads_the_rules_and_the_examples() {
    for (words, file) in [
        (&["check", "rules"][..], prometheus().join("agentd-alerts.yml")),
        (&["check", "config", "--syntax-only"], root().join("examples/prometheus.yml")),
    ] {
        let (good, said) = promtool!(words, &file);
        assert!(good, "{}: {said}", file.display());
    }
}

#[test]
fn promtool_finds_each_alert_as_its_test_expects() {
    let (good, said) = promtool!(&["test", "rules"], Path::new("agentd-alerts-test.yml"));
    assert!(good, "{said}");
    // what it finds where an expectation is wrong
    let folder = tempfile::tempdir().unwrap();
    for file in ["agentd-alerts.yml", "agentd-alerts-test.yml"] {
        let changed =
            text(&prometheus().join(file)).replace("throttled:ratio_rate5m > 0.25", "throttled:ratio_rate5m > 0.7");
        std::fs::write(folder.path().join(file), changed).unwrap();
    }
    let (good, said) = promtool!(&["test", "rules"], &folder.path().join("agentd-alerts-test.yml"));
    assert!(!good && said.contains("ContainerThrottled"), "{said}");
}

/// The expressions of dashboards as rules, with values for Grafana's variables.
#[test]
fn promtool_reads_every_query_of_the_dashboards() {
    let mut rules = vec!["groups:".to_owned(), "  - name: queries".to_owned(), "    rules:".to_owned()];
    for name in DASHBOARDS {
        for (number, (_, expression, _)) in queries(name, &dashboard(name)).iter().enumerate() {
            let plain = expression.replace("$__rate_interval", "5m").replace("$__range", "1h");
            rules.push(format!("      - record: {}:{number}", name.replace('-', "_")));
            rules.push(format!("        expr: {}", serde_json::to_string(&plain).unwrap()));
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("queries.yml");
    std::fs::write(&file, rules.join("\n")).unwrap();
    let (good, said) = promtool!(&["check", "rules"], &file);
    assert!(good, "{said}");
}

#[test]
fn placeholders_and_variables_are_found() {
    assert_eq!(placeholders("{{pod}} of {{ $labels.name }}: {{ $value | humanize }} {{"), ["pod", "name"]);
    assert_eq!(variables("a{b=~\"$node\",c=\"${pod}\"}[$__range]"), ["node", "pod"]);
}
