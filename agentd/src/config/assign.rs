//! Puts a value that was given into the configuration, or says what is wrong with it.

use std::path::{Component, Path, PathBuf};

use super::keys::{Key, Kind, REGISTRY_KEYS, is_authority};
use super::node::{Node, Tree};
use super::problem::{nearest, quoted};
use super::types::{Config, Registry};
use super::{Assignment, MAX_PATH, Origin, Problem};

/// Reads the text of a variable or of `--set` as the kind of value that the key takes. A text that is no such value
/// stays a text, and `assign` refuses it.
pub(super) fn from_text(key: &Key, text: &str) -> Node {
    let as_text = || Tree::Text(text.to_owned());
    let tree = match &key.kind {
        Kind::Integer { .. } | Kind::OptionalInteger { .. } => {
            text.trim().parse().map_or_else(|_| as_text(), Tree::Integer)
        }
        Kind::Number { .. } | Kind::OptionalNumber { .. } => {
            text.trim().parse().map_or_else(|_| as_text(), Tree::Number)
        }
        Kind::Bool(_) => text.trim().parse().map_or_else(|_| as_text(), Tree::Bool),
        Kind::Paths(_) | Kind::EtcNames(_) | Kind::List { .. } | Kind::Registries(_)
            if text.trim_start().starts_with(['[', '{']) =>
        {
            return Node::parse(text.trim()).unwrap_or_else(|| Node::unplaced(as_text()));
        }
        Kind::Paths(_) | Kind::EtcNames(_) | Kind::List { .. } => {
            Tree::List(parts(text).map(|part| Node::unplaced(Tree::Text(part.to_owned()))).collect())
        }
        Kind::Text { .. } | Kind::Path(_) | Kind::OptionalPath(_) | Kind::Registries(_) => as_text(),
    };
    Node::unplaced(tree)
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

/// Collects what is wrong with one given value.
struct Judge<'a> {
    origin: &'a Origin,
    field: String,
    problems: &'a mut Vec<Problem>,
}

impl Judge<'_> {
    fn at(&mut self, node: &Node, field: &str, message: impl Into<String>) {
        let origin = match (self.origin, node.place) {
            (Origin::File { file, .. }, Some((line, column))) => Origin::File { file: file.clone(), line, column },
            (origin, _) => origin.clone(),
        };
        self.problems.push(origin.problem(field, message));
    }

    fn found(&mut self, node: &Node, field: &str, expected: &str) {
        let message = format!("found {}; expected {expected}", node.describe());
        self.at(node, field, message);
    }

    fn text<'n>(&mut self, node: &'n Node, field: &str, expected: &str) -> Option<&'n str> {
        if let Tree::Text(text) = &node.tree {
            return Some(text);
        }
        self.found(node, field, &format!("a text: {expected}"));
        None
    }

    fn list<'n>(&mut self, node: &'n Node, expected: &str) -> Option<&'n [Node]> {
        if let Tree::List(items) = &node.tree {
            return Some(items);
        }
        let field = self.field.clone();
        self.found(node, &field, &format!("a list, each {expected}"));
        None
    }

    fn path(&mut self, node: &Node, field: &str) -> Option<PathBuf> {
        let path = PathBuf::from(self.text(node, field, "an absolute path")?);
        if let Some(message) = path_fault(&path) {
            self.at(node, field, message);
            return None;
        }
        Some(path)
    }

    fn integer(&mut self, node: &Node, min: u64, max: u64) -> Option<u64> {
        let value = match node.tree {
            Tree::Integer(value) => u64::try_from(value).ok().filter(|value| (min..=max).contains(value)),
            _ => None,
        };
        if value.is_none() {
            let field = self.field.clone();
            self.found(node, &field, &format!("a whole number from {min} to {max}"));
        }
        value
    }

    fn number(&mut self, node: &Node, min: f64, max: f64) -> Option<f64> {
        let value = match node.tree {
            Tree::Integer(value) => Some(value as f64),
            Tree::Number(value) => Some(value),
            _ => None,
        }
        .filter(|value| (min..=max).contains(value));
        if value.is_none() {
            let field = self.field.clone();
            self.found(node, &field, &format!("a number from {min} to {max}"));
        }
        value
    }

    fn boolean(&mut self, node: &Node, field: &str) -> Option<bool> {
        if let Tree::Bool(value) = node.tree {
            return Some(value);
        }
        self.found(node, field, "true or false, without quotes");
        None
    }
}

/// Puts a value in its place. On a fault it adds the problems and says false.
pub(super) fn assign(given: &Assignment, config: &mut Config, problems: &mut Vec<Problem>) -> bool {
    let before = problems.len();
    let field = given.key.field();
    let node = &given.value;
    let mut judge = Judge { origin: &given.origin, field: field.clone(), problems };
    match &given.key.kind {
        Kind::Text { expected, set, .. } => {
            // Some setters store before they judge, so they try on a copy.
            let mut trial = config.clone();
            if let Some(text) = judge.text(node, &field, expected) {
                if set(&mut trial, text) {
                    *config = trial;
                } else {
                    judge.found(node, &field, expected);
                }
            }
        }
        Kind::Path(place) => {
            if let Some(path) = judge.path(node, &field) {
                *place(config) = path;
            }
        }
        Kind::OptionalPath(place) => {
            if let Some(path) = judge.path(node, &field) {
                *place(config) = Some(path);
            }
        }
        Kind::Paths(place) => {
            if let Some(items) = judge.list(node, "an absolute path") {
                let paths = items
                    .iter()
                    .enumerate()
                    .filter_map(|(index, item)| judge.path(item, &format!("{field}[{index}]")))
                    .collect();
                *place(config) = paths;
            }
        }
        Kind::EtcNames(place) => {
            let mut names = Vec::new();
            let expected = "a path relative to /etc";
            for (index, item) in judge.list(node, expected).unwrap_or_default().iter().enumerate() {
                let name = format!("{field}[{index}]");
                let Some(text) = judge.text(item, &name, expected) else { continue };
                match agentd_isolators::rootfs::HostFiles::new(vec![text.to_owned()]) {
                    Ok(_) => names.push(PathBuf::from(text)),
                    Err(error) => judge.at(item, &name, error.message),
                }
            }
            *place(config) = names;
        }
        Kind::List { expected, check, field: place } => {
            let mut values = Vec::new();
            for (index, item) in judge.list(node, expected).unwrap_or_default().iter().enumerate() {
                let name = format!("{field}[{index}]");
                match judge.text(item, &name, expected) {
                    Some(text) if check(text) => values.push(text.to_owned()),
                    Some(_) => judge.found(item, &name, expected),
                    None => {}
                }
            }
            *place(config) = values;
        }
        Kind::Integer { min, max, field: place } => {
            if let Some(value) = judge.integer(node, *min, *max) {
                *place(config) = value;
            }
        }
        Kind::OptionalInteger { min, max, field: place } => {
            if let Some(value) = judge.integer(node, *min, *max) {
                *place(config) = Some(value);
            }
        }
        Kind::Number { min, max, field: place } => {
            if let Some(value) = judge.number(node, *min, *max) {
                *place(config) = value;
            }
        }
        Kind::OptionalNumber { min, max, field: place } => {
            if let Some(value) = judge.number(node, *min, *max) {
                *place(config) = Some(value);
            }
        }
        Kind::Bool(place) => {
            if let Some(value) = judge.boolean(node, &field) {
                *place(config) = value;
            }
        }
        Kind::Registries(place) => {
            *place(config) = registries(node, &field, &mut judge);
        }
    }
    problems.len() == before
}

const AUTHORITY: &str = "a host with its port where it is not 443, e.g. \"registry.example:5000\", without https://";

fn registries(node: &Node, field: &str, judge: &mut Judge<'_>) -> Vec<Registry> {
    let mut registries: Vec<Registry> = Vec::new();
    let Tree::List(items) = &node.tree else {
        judge.found(node, field, "tables [[images.registry]], in double brackets");
        return registries;
    };
    for (index, item) in items.iter().enumerate() {
        let name = format!("{field}[{index}]");
        let Tree::Table(entries) = &item.tree else {
            judge.found(item, &name, "a table with the keys host, mirrors, ca, insecure");
            continue;
        };
        let mut registry = Registry::default();
        for entry in entries {
            let inner = format!("{name}.{}", entry.name);
            let value = &entry.value;
            match entry.name.as_str() {
                "host" => match judge.text(value, &inner, AUTHORITY) {
                    Some(text) if is_authority(text) => text.clone_into(&mut registry.host),
                    Some(_) => judge.found(value, &inner, AUTHORITY),
                    None => {}
                },
                "mirrors" => {
                    let Tree::List(mirrors) = &value.tree else {
                        judge.found(value, &inner, "a list of hosts");
                        continue;
                    };
                    for (at, mirror) in mirrors.iter().enumerate() {
                        let inner = format!("{inner}[{at}]");
                        match judge.text(mirror, &inner, AUTHORITY) {
                            Some(text) if is_authority(text) => {
                                registry.mirrors.push(text.to_owned());
                            }
                            Some(_) => judge.found(mirror, &inner, AUTHORITY),
                            None => {}
                        }
                    }
                }
                "ca" => registry.ca = judge.path(value, &inner),
                "insecure" => registry.insecure = judge.boolean(value, &inner).unwrap_or_default(),
                other => {
                    let cure = nearest(other, REGISTRY_KEYS.iter().copied()).map_or_else(
                        || format!("expected one of {}", REGISTRY_KEYS.join(", ")),
                        |meant| format!("did you mean '{meant}'?"),
                    );
                    let named = Node { place: entry.place, tree: Tree::Bool(false) };
                    judge.at(&named, &inner, format!("unknown key {}; {cure}", quoted(other)));
                }
            }
        }
        if !entries.iter().any(|entry| entry.name == "host") {
            judge.at(item, &format!("{name}.host"), format!("is missing; expected {AUTHORITY}"));
        } else if registries.iter().any(|known| known.host == registry.host && !known.host.is_empty()) {
            let host = quoted(&registry.host);
            judge.at(
                item,
                &format!("{name}.host"),
                format!("found {host} a second time; keep one entry for each host"),
            );
        } else if registry.insecure && registry.ca.is_some() {
            judge.at(
                item,
                &format!("{name}.ca"),
                "has no use with insecure = true, which speaks plain HTTP; remove one",
            );
        }
        registries.push(registry);
    }
    registries
}

/// What is wrong with a path, if anything.
pub(super) fn path_fault(path: &Path) -> Option<String> {
    let shown = quoted(&path.to_string_lossy());
    let text = path.as_os_str().as_encoded_bytes();
    if !path.is_absolute() {
        return Some(format!("found {shown}; expected an absolute path, beginning with '/'"));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Some(format!("found {shown}; expected a path without '..'"));
    }
    if text.contains(&0) || text.contains(&b'\n') {
        return Some(format!("found {shown}; expected a path without NUL or newline"));
    }
    (text.len() > MAX_PATH)
        .then(|| format!("found a path of {} bytes; expected at most {MAX_PATH}; use a shorter one", text.len()))
}
