//! Values as they were written: a tree that remembers where each part stands, from a TOML file or from the text of a
//! variable or flag.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{position, quoted};

/// Where something is written: line and column, both from 1. None outside files.
pub(super) type Place = Option<(usize, usize)>;

/// A value and where it is written.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub place: Place,
    pub tree: Tree,
}

/// A value.
#[derive(Debug, Clone)]
pub(super) enum Tree {
    Text(String),
    Integer(i64),
    Number(f64),
    Bool(bool),
    List(Vec<Node>),
    Table(Vec<Entry>),
    /// A value that no key has: a date, or an integer that does not fit. Its words.
    Other(String),
}

/// A key and its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub name: String,
    pub place: Place,
    pub value: Node,
}

impl Node {
    /// A value that stands in no file.
    pub fn unplaced(tree: Tree) -> Self {
        Self { place: None, tree }
    }

    /// Words for the value, for the `found …` of an error.
    pub fn describe(&self) -> String {
        match &self.tree {
            Tree::Text(text) => quoted(text),
            Tree::Integer(value) => format!("the integer {value}"),
            Tree::Number(value) => format!("the number {value}"),
            Tree::Bool(value) => format!("the boolean {value}"),
            Tree::List(items) => format!("a list of {}", items.len()),
            Tree::Table(_) => "a table".to_owned(),
            Tree::Other(words) => words.clone(),
        }
    }

    fn from_toml(value: &Spanned<DeValue<'_>>, text: &str, placed: bool) -> Self {
        let place = placed.then(|| position(text, value.span().start));
        let tree = match value.get_ref() {
            DeValue::String(string) => Tree::Text(string.to_string()),
            DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix())
                .map_or_else(|_| Tree::Other(format!("the integer {integer}")), Tree::Integer),
            DeValue::Float(float) => {
                float.as_str().parse().map_or_else(|_| Tree::Other(format!("the number {float}")), Tree::Number)
            }
            DeValue::Boolean(value) => Tree::Bool(*value),
            DeValue::Datetime(value) => Tree::Other(format!("the date {value}")),
            DeValue::Array(items) => Tree::List(items.iter().map(|item| Self::from_toml(item, text, placed)).collect()),
            DeValue::Table(table) => Tree::Table(entries(table, text, placed)),
        };
        Self { place, tree }
    }

    /// Parses one TOML value that stands outside a file, as in `--set network.dns_servers=["192.0.2.1"]`.
    pub fn parse(text: &str) -> Option<Self> {
        let value = DeValue::parse(text).ok()?;
        Some(Self::from_toml(&value, text, false))
    }
}

fn entries(table: &DeTable<'_>, text: &str, placed: bool) -> Vec<Entry> {
    let mut entries: Vec<Entry> = table
        .iter()
        .map(|(key, value)| Entry {
            name: key.get_ref().to_string(),
            place: placed.then(|| position(text, key.span().start)),
            value: Node::from_toml(value, text, placed),
        })
        .collect();
    entries.sort_by_key(|entry| entry.place);
    entries
}

/// A syntax error of a file.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub place: Place,
    pub message: String,
}

/// Parses a file: what could be read of it, and every syntax error.
pub(super) fn parse_file(text: &str) -> (Vec<Entry>, Vec<SyntaxError>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let errors = errors
        .iter()
        .map(|error| SyntaxError {
            place: error.span().map(|span| position(text, span.start)),
            message: error.message().replace('\n', ", "),
        })
        .collect();
    (entries(table.get_ref(), text, true), errors)
}
