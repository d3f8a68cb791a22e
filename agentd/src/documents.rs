//! The documentation against the code: every call of the API, every kind of event and of problem, every word of agentctl.
//! The configuration's keys are held against their page by `config::tests`, the pod's fields by `agentd-api`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use regex::Regex;

use crate::api::operations::OPERATIONS;
use crate::ctl::arguments::Arguments;
use crate::events::KINDS;

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

fn is_page(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "md")
}

fn page(name: &str) -> String {
    std::fs::read_to_string(docs().join(name)).unwrap_or_else(|error| panic!("docs/{name}: {error}"))
}

/// The rows of the table below this heading row, each with the text of its cells.
fn table<'a>(page: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let mut lines = page.lines().skip_while(|line| *line != heading);
    assert!(lines.next().is_some(), "there is no table {heading}");
    lines
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The sources of the daemon without their tests, by path.
fn sources() -> BTreeMap<String, String> {
    fn read(folder: &Path, sources: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() && name != "tests" {
                read(&path, sources);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && name != "tests.rs"
                && name != "documents.rs"
            {
                let text = std::fs::read_to_string(&path).unwrap();
                let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned();
                sources.insert(path.display().to_string(), text);
            }
        }
    }
    let mut sources = BTreeMap::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut sources);
    assert!(sources.len() > 100);
    sources
}

#[test]
fn every_call_is_documented_with_its_parameters() {
    let page = page("api.md");
    let mut rows = BTreeMap::new();
    for row in table(&page, "| Call | Parameters | What it does | Answer |") {
        let call = row[0].trim_matches('`');
        assert!(rows.insert(call, row.clone()).is_none(), "docs/api.md has {call} twice");
    }
    for operation in OPERATIONS {
        let call = format!("{} {}", operation.method, operation.path);
        let row = rows.remove(call.as_str()).unwrap_or_else(|| panic!("docs/api.md does not describe {call}"));
        let taken: Vec<&str> = operation.parameters.iter().map(|parameter| parameter.name).collect();
        assert_eq!(quoted(row[1]), taken, "parameters of {call} in docs/api.md");
        for answer in operation.answers {
            assert!(row[3].contains(&answer.status.to_string()), "docs/api.md: {call} answers {}", answer.status);
        }
        for header in operation.headers {
            let documented =
                ["api.md", "exec.md", "files.md"].map(self::page).iter().any(|page| page.contains(header.name));
            assert!(documented, "nothing is said of the header {} of {call}", header.name);
        }
    }
    assert!(rows.is_empty(), "docs/api.md describes calls that there are not: {:?}", rows.keys());
}

#[test]
fn every_kind_of_event_is_documented() {
    let page = page("api.md");
    let documented: Vec<(&str, &str)> =
        table(&page, "| Kind | What has happened |").iter().map(|row| (row[0].trim_matches('`'), row[1])).collect();
    assert_eq!(documented, KINDS.to_vec());
    let known: BTreeSet<&str> = KINDS.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(known.len(), KINDS.len());
    let sources = sources();
    let published = Regex::new(r#"(?:publish|event)\(\s*(?:[A-Za-z]+(?:\([a-z]+\))?,\s*)?"([a-z-]+)""#).unwrap();
    let mut found = BTreeSet::new();
    for (path, text) in sources.iter().filter(|(path, _)| !path.ends_with("src/events.rs")) {
        for capture in published.captures_iter(text) {
            assert!(known.contains(&capture[1]), "{path} publishes {}, which events::KINDS has not", &capture[1]);
        }
        found.extend(known.iter().copied().filter(|kind| text.contains(&format!("\"{kind}\""))));
    }
    assert_eq!(found, known, "kinds that nobody publishes");
}

#[test]
fn every_kind_of_problem_is_documented() {
    let page = page("api.md");
    let section = page.split("\n## Errors").nth(1).unwrap().split("\n## ").next().unwrap();
    let documented: BTreeSet<&str> = quoted(section).into_iter().collect();
    let made = Regex::new(r#"(?:Refusal|Self)::new\(\s*StatusCode::[A-Z_]+,\s*"([a-z-]+)""#).unwrap();
    let mut kinds = BTreeSet::new();
    for text in sources().values() {
        kinds.extend(made.captures_iter(text).map(|capture| capture[1].to_owned()));
    }
    assert!(kinds.len() > 15, "{kinds:?}");
    for kind in &kinds {
        assert!(documented.contains(kind.as_str()), "docs/api.md does not have the problem {kind}");
    }
    for row in table(&page, "| Status | `type` | When |") {
        for kind in quoted(row[1]) {
            assert!(kinds.contains(kind), "docs/api.md has the problem {kind}, which nothing makes");
        }
    }
}

/// A part of a page from heading to heading.
struct Section {
    text: String,
    /// Whether it is of a page of agentctl's, where its commands stand without its name.
    own: bool,
}

impl Section {
    /// Whether it has these words as a command of agentctl.
    fn names(&self, words: &str) -> bool {
        self.text.match_indices(words).any(|(at, _)| {
            let (before, after) = (&self.text[..at], &self.text[at + words.len()..]);
            (before.ends_with("agentctl ") || (self.own && before.ends_with('`')))
                && !after.starts_with(|next: char| next.is_ascii_alphanumeric() || next == '-')
        })
    }

    /// Whether it has this flag.
    fn has(&self, flag: &str) -> bool {
        self.text.match_indices(flag).any(|(at, _)| {
            !self.text[at + flag.len()..].starts_with(|next: char| next.is_ascii_alphanumeric() || next == '-')
        })
    }
}

fn sections() -> Vec<Section> {
    let mut sections = Vec::new();
    for entry in std::fs::read_dir(docs()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if is_page(&name) {
            let own = name.starts_with("agentctl");
            sections.extend(page(&name).split("\n#").map(|text| Section { text: text.to_owned(), own }));
        }
    }
    sections
}

#[test]
fn every_metric_of_the_daemon_is_documented() {
    use agentd_metrics::model::Kind;
    let page = page("metrics.md");
    let documented = table(&page, "| Name | Kind | Labels | What it is |");
    let documented: Vec<_> = documented.iter().map(|row| (quoted(row[0])[0], row[1], quoted(row[2]), row[3])).collect();
    let mut known = Vec::new();
    for family in agentd_metrics::catalogue::agent::ALL {
        let total = if family.kind == Kind::Counter && family.total { "_total" } else { "" };
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let labels: Vec<String> = family.labels.iter().map(|label| label.replace('.', "_")).collect();
        known.push((format!("{}{total}", family.name), kind, labels, family.help));
    }
    let shown: Vec<_> = known
        .iter()
        .map(|(name, kind, labels, help)| {
            (name.as_str(), *kind, labels.iter().map(String::as_str).collect::<Vec<_>>(), *help)
        })
        .collect();
    for row in &shown {
        assert!(documented.contains(row), "docs/metrics.md does not have {row:?}");
    }
    assert_eq!(documented.len(), shown.len(), "docs/metrics.md has metrics that there are not");
}

#[test]
fn every_word_of_agentctl_is_documented() {
    fn check(command: &clap::Command, words: &str, sections: &[Section], missing: &mut Vec<String>) {
        let about: Vec<&Section> = sections
            .iter()
            .filter(|section| if words.is_empty() { section.own } else { section.names(words) })
            .collect();
        if about.is_empty() {
            missing.push(format!("`agentctl {words}`"));
        }
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            let Some(long) = argument.get_long().filter(|long| !matches!(*long, "help" | "version")) else { continue };
            let flag = format!("--{long}");
            if !about.iter().any(|section| section.has(&flag)) {
                missing.push(format!("`agentctl {words} {flag}`"));
            }
        }
        for below in command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help") {
            check(below, format!("{words} {}", below.get_name()).trim(), sections, missing);
        }
    }
    let mut missing = Vec::new();
    check(&Arguments::command(), "", &sections(), &mut missing);
    assert!(missing.is_empty(), "docs/agentctl*.md do not have: {}", missing.join(", "));
}

#[test]
fn every_page_is_in_the_list_of_pages_and_no_link_leads_nowhere() {
    let list = page("README.md");
    let link = Regex::new(r"\]\(([^)#:]+)(?:#[^)]*)?\)").unwrap();
    for entry in std::fs::read_dir(docs()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !is_page(&name) {
            continue;
        }
        assert!(name == "README.md" || list.contains(&format!("({name})")), "docs/README.md does not list {name}");
        for capture in link.captures_iter(&page(&name)) {
            assert!(docs().join(&capture[1]).exists(), "docs/{name} links to {}, which is not there", &capture[1]);
        }
    }
}
