//! Bytes to a JSON value. Unlike `serde_json::from_slice` into a `Value`, which silently keeps the last of several equal
//! keys, this refuses them: the one who wrote the document and the one who reviewed it may have looked at different ones.
//! Nesting is bounded by serde_json itself (128 levels).

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::MAX_BYTES;
use super::report::{Report, join_index, join_key};

/// Reads the document; `None` when it is at fault, which is then in `report`.
pub(super) fn read(json: &[u8], report: &Report) -> Option<Value> {
    if json.len() > MAX_BYTES {
        let found = json.len();
        report
            .fault("", format!("the document has {found} bytes, more than the {MAX_BYTES} that are read; shorten it"));
        return None;
    }
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = Node { parent: None, report }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    match value {
        Err(error) => {
            // serde_json's text ends with the line and column.
            report.fault("", format!("not JSON: {error}; correct the syntax there"));
            None
        }
        Ok(value) => report.is_empty().then_some(value),
    }
}

/// Where a value stands: a list that runs from the value to the root through the stack frames of the reader, so that a
/// path is only written out where there is something to report.
struct Frame<'a> {
    parent: Option<&'a Frame<'a>>,
    step: Step<'a>,
}

enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

impl Frame<'_> {
    fn path(&self) -> String {
        let parent = self.parent.map(Frame::path).unwrap_or_default();
        match self.step {
            Step::Key(key) => join_key(&parent, key),
            Step::Index(index) => join_index(&parent, index),
        }
    }
}

/// Reads one value that stands at `parent`.
struct Node<'a> {
    parent: Option<&'a Frame<'a>>,
    report: &'a Report,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let frame = Frame { parent: self.parent, step: Step::Index(list.len()) };
            match items.next_element_seed(Node { parent: Some(&frame), report: self.report })? {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let frame = Frame { parent: self.parent, step: Step::Key(&key) };
            let value = entries.next_value_seed(Node { parent: Some(&frame), report: self.report })?;
            if map.contains_key(&key) {
                let path = if self.report.is_full() { String::new() } else { frame.path() };
                self.report.fault(&path, "the key is given more than once; keep one of them");
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
