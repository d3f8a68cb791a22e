//! Lists: which entries, which of their fields, and how many at a time.
//!
//! A list is an array in the stable order of its entries' keys (id, reference). With `limit` it is told in pages; a `Link`
//! header with `rel="next"` leads to the next one, which begins after the last key of this one, so that entries that come
//! and go meanwhile are neither told twice nor make others be left out. The names that `fields` may hold are those of the
//! entry's schema in the OpenAPI document.

use std::collections::BTreeMap;

use hyper::header::{HeaderValue, LINK};
use hyper::{StatusCode, Uri};
use serde::Serialize;
use serde_json::{Map, Value};

use super::answer::{self, Answer, Refusal};
use super::openapi;
use super::query::Query;
use super::route::encode;

/// Most entries in one page.
const MOST: u64 = 1000;

/// Most characters of `fields`, and most levels of one of them.
const LONGEST_FIELDS: usize = 4096;
const DEEPEST: usize = 16;

/// What a list call asks for besides its own filters.
#[derive(Debug)]
pub struct Page {
    fields: Option<Fields>,
    limit: Option<usize>,
    after: Option<String>,
}

impl Page {
    /// Reads `fields`, `limit` and `after`. `schema` is the schema of one entry.
    pub fn read(query: &mut Query, schema: &str) -> Self {
        let fields = Fields::read(query, schema);
        Self { fields, limit: limit(query), after: query.text("after") }
    }

    /// Answers with the entries asked for. Each comes with its key, which no other has.
    pub fn answer<T: Serialize>(self, uri: &Uri, mut entries: Vec<(String, T)>) -> Answer {
        entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        if let Some(after) = &self.after {
            entries.retain(|(key, _)| key > after);
        }
        let more = self.limit.is_some_and(|limit| entries.len() > limit);
        entries.truncate(self.limit.unwrap_or(usize::MAX));
        let next = entries.last().filter(|_| more).map(|(key, _)| next_page(uri, key));
        let values: Vec<T> = entries.into_iter().map(|(_, value)| value).collect();
        let mut response = match &self.fields {
            None => answer::json(StatusCode::OK, &values)?,
            Some(fields) => answer::json(StatusCode::OK, &fields.of_all(&values)?)?,
        };
        if let Some(next) = next.and_then(|next| HeaderValue::try_from(next).ok()) {
            response.headers_mut().insert(LINK, next);
        }
        Ok(response)
    }
}

/// Reads `limit`.
pub fn limit(query: &mut Query) -> Option<usize> {
    let limit = query.number("limit", MOST);
    if limit == Some(0) {
        query.refuse("limit", format!("found 0, expected a whole number from 1 to {MOST}"));
    }
    limit.map(|limit| limit as usize)
}

/// The `Link` to the page after the entry with this key: the same call with another `after`.
pub fn next_page(uri: &Uri, key: &str) -> String {
    let kept = uri.query().unwrap_or_default().split('&').filter(|pair| {
        let name = pair.split('=').next().unwrap_or_default();
        !pair.is_empty() && super::route::decode(name).as_deref() != Ok("after")
    });
    let after = format!("after={}", encode(key));
    let query: Vec<&str> = kept.chain([after.as_str()]).collect();
    format!("<{}?{}>; rel=\"next\"", uri.path(), query.join("&"))
}

/// The fields of a value that are asked for: nothing below a name means all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(BTreeMap<String, Fields>);

impl Fields {
    /// Reads `fields` for values of a schema. Names that the schema does not have are refused.
    pub fn read(query: &mut Query, schema: &str) -> Option<Self> {
        let text = query.text("fields")?;
        if text.len() > LONGEST_FIELDS {
            query.refuse("fields", format!("found more than {LONGEST_FIELDS} bytes; name fewer"));
            return None;
        }
        let mut fields = Self::default();
        for path in text.split(',') {
            match known(schema, path) {
                Ok(()) => fields.add(path.split('.')),
                Err(fault) => query.refuse("fields", fault),
            }
        }
        Some(fields)
    }

    fn add<'a>(&mut self, mut path: impl Iterator<Item = &'a str>) {
        let Some(name) = path.next() else {
            // all of it is wanted, whatever was named before
            self.0.clear();
            return;
        };
        match self.0.get_mut(name) {
            Some(all) if all.0.is_empty() => {}
            Some(some) => some.add(path),
            None => {
                let mut below = Self::default();
                below.add(path);
                self.0.insert(name.to_owned(), below);
            }
        }
    }

    /// These fields of some values.
    pub fn of_all<T: Serialize>(&self, values: &[T]) -> Result<Vec<Value>, Refusal> {
        values.iter().map(|value| self.of(value)).collect()
    }

    /// These fields of a value.
    pub fn of(&self, value: &impl Serialize) -> Result<Value, Refusal> {
        let value = serde_json::to_value(value);
        let value = value.map_err(|error| Refusal::failed(format!("the answer cannot be written: {error}")))?;
        Ok(self.take(value))
    }

    fn take(&self, value: Value) -> Value {
        if self.0.is_empty() {
            return value;
        }
        match value {
            Value::Array(items) => Value::Array(items.into_iter().map(|item| self.take(item)).collect()),
            Value::Object(mut object) => {
                let taken = self.0.iter().filter_map(|(name, below)| {
                    let value = object.remove(name)?;
                    Some((name.clone(), below.take(value)))
                });
                Value::Object(taken.collect::<Map<_, _>>())
            }
            plain => plain,
        }
    }
}

/// Whether values of a schema can have a field at this path; says what is known where they cannot.
fn known(schema: &str, path: &str) -> Result<(), String> {
    let shown: String = path.chars().take(80).collect();
    if path.split('.').count() > DEEPEST {
        return Err(format!("found {shown:?}, expected at most {DEEPEST} levels"));
    }
    let mut here = vec![openapi::schema(schema)];
    for name in path.split('.') {
        let below: Vec<&Value> = here.iter().flat_map(|schema| openapi::field(schema, name)).collect();
        if below.is_empty() {
            let names: Vec<&str> = here.iter().flat_map(|schema| openapi::fields(schema)).collect();
            let names = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
            return Err(format!("found {shown:?}, in which {name:?} is unknown; known there: {names}"));
        }
        here = below;
    }
    Ok(())
}

/// Longest pattern: as long as the longest name that it may be held against.
const LONGEST_PATTERN: usize = 1024;

/// What a name must be like: begin so, or match where it has a `*` (any text) or a `?` (any character).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<char>);

impl Pattern {
    /// Reads the pattern that a parameter gives.
    pub fn read(query: &mut Query, name: &'static str) -> Option<Self> {
        let text = query.text(name)?;
        if text.len() > LONGEST_PATTERN {
            query.refuse(name, format!("found more than {LONGEST_PATTERN} bytes, expected a name or a part of one"));
        }
        Some(Self::new(&text))
    }

    /// Reads a pattern.
    pub fn new(text: &str) -> Self {
        let mut pattern: Vec<char> = text.chars().collect();
        if !pattern.iter().any(|c| matches!(c, '*' | '?')) {
            pattern.push('*');
        }
        Self(pattern)
    }

    /// The same for ids of pods, whose first slash may be left out.
    #[must_use]
    pub fn of_pod(mut self) -> Self {
        if !matches!(self.0.first(), Some('/' | '*')) {
            self.0.insert(0, '/');
        }
        self
    }

    /// Whether a name is so. The time is bounded by the product of both lengths.
    pub fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        let (mut at, mut place) = (0, 0);
        // where to go on when what follows the last `*` does not fit here
        let mut retry: Option<(usize, usize)> = None;
        while at < name.len() {
            match self.0.get(place) {
                Some('*') => {
                    retry = Some((place + 1, at));
                    place += 1;
                }
                Some(&c) if c == '?' || c == name[at] => {
                    at += 1;
                    place += 1;
                }
                _ => match retry {
                    Some((after_star, from)) => {
                        retry = Some((after_star, from + 1));
                        (place, at) = (after_star, from + 1);
                    }
                    None => return false,
                },
            }
        }
        self.0[place.min(self.0.len())..].iter().all(|c| *c == '*')
    }
}

/// What a label must be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// It is there.
    Has(String),
    /// It has this value.
    Is(String, String),
    /// It has another value, or is not there.
    IsNot(String, String),
}

impl Selector {
    /// Reads `key`, `key=value` or `key!=value`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let selector = match text.split_once('=') {
            None => Self::Has(text.to_owned()),
            Some((key, value)) => match key.strip_suffix('!') {
                Some(key) => Self::IsNot(key.to_owned(), value.to_owned()),
                None => Self::Is(key.to_owned(), value.to_owned()),
            },
        };
        let (Self::Has(key) | Self::Is(key, _) | Self::IsNot(key, _)) = &selector;
        if key.is_empty() {
            let shown: String = text.chars().take(80).collect();
            return Err(format!("found {shown:?}, expected key, key=value or key!=value"));
        }
        Ok(selector)
    }

    /// Whether labels are so.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::Has(key) => labels.contains_key(key),
            Self::Is(key, value) => labels.get(key) == Some(value),
            Self::IsNot(key, value) => labels.get(key) != Some(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_begin_or_match() {
        for (pattern, name, matches) in [
            ("/app", "/app/web", true),
            ("/app", "/ap", false),
            ("*web", "/app/web", true),
            ("/a*/w?b", "/app/web", true),
            ("/a*/w?b", "/app/wb", false),
            ("*", "", true),
            ("?", "", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
        ] {
            assert_eq!(Pattern::new(pattern).matches(name), matches, "{pattern} {name}");
        }
        // what would take for ever by trying every way
        assert!(!Pattern::new(&("*a".repeat(200) + "b")).matches(&"a".repeat(5000)));
    }

    #[test]
    fn labels_are_selected() {
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "x=y".to_owned())]);
        for (text, matches) in
            [("a", true), ("c", false), ("a=1", true), ("a=2", false), ("a!=2", true), ("c!=1", true), ("b=x=y", true)]
        {
            assert_eq!(Selector::parse(text).unwrap().matches(&labels), matches, "{text}");
        }
        for bad in ["", "=", "!=x", "=x"] {
            assert!(Selector::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_next_page_is_the_same_call() {
        let uri: Uri = "/v1/pods?limit=2&after=%2Fa&label=a".parse().unwrap();
        assert_eq!(next_page(&uri, "/b c"), "</v1/pods?limit=2&label=a&after=%2Fb%20c>; rel=\"next\"");
    }

    #[test]
    fn fields_are_taken_out_of_lists_and_objects() {
        let mut fields = Fields::default();
        for path in ["id", "instances.phase", "instances.containers.name", "instances.containers"] {
            fields.add(path.split('.'));
        }
        let value = serde_json::json!({"id": "/a", "spec": 1, "instances": [{"phase": "running", "x": 1, "containers": [{"name": "a", "y": 1}]}]});
        let taken = fields.take(value);
        let wanted =
            serde_json::json!({"id": "/a", "instances": [{"phase": "running", "containers": [{"name": "a", "y": 1}]}]});
        assert_eq!(taken, wanted);
    }
}
