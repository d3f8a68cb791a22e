//! Reads Grafana's dashboards of `packaging/grafana`: their panels, queries and variables.

use serde_json::Value;

use super::known::root;
use super::text;

/// A dashboard of `packaging/grafana`.
pub fn dashboard(name: &str) -> Value {
    let path = root().join(format!("packaging/grafana/{name}.json"));
    serde_json::from_str(&text(&path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The elements of an array; none of anything else.
pub fn array(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// All panels, those of rows too.
pub fn panels(dashboard: &Value) -> Vec<&Value> {
    array(&dashboard["panels"])
        .iter()
        .flat_map(|panel| [&[panel][..], &array(&panel["panels"]).iter().collect::<Vec<_>>()].concat())
        .collect()
}

/// The queries of a dashboard with where each stands and its legend, those of its variables among them.
pub fn queries(name: &str, dashboard: &Value) -> Vec<(String, String, Option<String>)> {
    let mut queries = Vec::new();
    for panel in panels(dashboard) {
        for target in array(&panel["targets"]) {
            let place = format!("{name}: {} {}", panel["title"], target["refId"]);
            let legend = target["legendFormat"].as_str().map(str::to_owned);
            queries.push((place, target["expr"].as_str().unwrap().to_owned(), legend));
        }
    }
    for variable in array(&dashboard["templating"]["list"]).iter().filter(|variable| variable["type"] == "query") {
        let query = variable["query"]["query"].as_str().unwrap();
        let (selector, label) = query
            .strip_prefix("label_values(")
            .and_then(|rest| rest.strip_suffix(')')?.rsplit_once(','))
            .unwrap_or_else(|| panic!("{name}: {query}: expected label_values(metric, label)"));
        // as an aggregation, so that the label is looked for
        let expression = format!("group by ({}) ({selector})", label.trim());
        queries.push((format!("{name}: variable {}", variable["name"]), expression, None));
    }
    queries
}

/// Names of Grafana's variables in a text.
pub fn variables(text: &str) -> Vec<&str> {
    let names = text.split('$').skip(1).map(|rest| {
        let rest = rest.trim_start_matches('{');
        &rest[..rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len())]
    });
    names.filter(|name| !name.is_empty() && !name.starts_with("__")).collect()
}
