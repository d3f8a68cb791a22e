//! The cursor that the readers are written with. A [`Place`] is one position of the document: its path and the value that
//! is there, if any. Asking it for a type either answers or notes a violation, so a reader is one expression for each
//! field. Below a value of the wrong type nothing more is reported.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::MAX_ELEMENTS;
use super::fields::{Fields, did_you_mean};
use super::format::{self, Format};
use super::report::{Report, join_index, join_key};

/// A position of the document.
pub(super) struct Place<'a> {
    path: String,
    value: Option<&'a Value>,
    report: &'a Report,
    /// Whether an object around this place is itself at fault, so that a missing field is no news.
    void: bool,
}

/// What kind of value this is, with the value where it is short.
fn found(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => format!("the boolean {value}"),
        Value::Number(value) => format!("the number {value}"),
        Value::String(value) => format!("the string {}", format::quoted(value)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

impl<'a> Place<'a> {
    /// The document as a whole.
    pub fn root(value: &'a Value, report: &'a Report) -> Self {
        let place = Self { path: String::new(), value: Some(value), report, void: false };
        // `null` means absent everywhere below, but a document has to be there.
        if value.is_null() {
            report.unreadable("", "found null, expected an object".to_owned());
            return Self { value: None, void: true, ..place };
        }
        place
    }

    fn child(&self, path: String, value: Option<&'a Value>) -> Self {
        // `null` means absent: clients send many explicit nulls.
        let value = value.filter(|value| !value.is_null());
        Self { path, value, report: self.report, void: self.void }
    }

    /// Notes a violation here.
    pub fn fault(&self, message: impl Into<String>) {
        self.report.fault(&self.path, message);
    }

    fn wrong_type(&self, value: &Value, expected: &str) {
        self.report.unreadable(&self.path, format!("found {}, expected {expected}", found(value)));
    }

    /// Notes a violation when nothing is here; `what` says what should be.
    pub fn required(self, what: &str) -> Self {
        if self.value.is_none() && !self.void {
            self.fault(format!("missing; expected {what}"));
        }
        self
    }

    /// The value read by `read`, or `None` when nothing is here.
    pub fn optional<T>(&self, read: impl FnOnce(&Self) -> T) -> Option<T> {
        self.value.map(|_| read(self))
    }

    /// A string of the given format.
    pub fn text(&self, format: Format) -> Option<String> {
        self.text_or_else(format, "a string")
    }

    /// Any string, where other types would do as well: `expected` says which.
    pub fn text_or(&self, expected: &str) -> Option<String> {
        self.text_or_else(format::any, expected)
    }

    fn text_or_else(&self, format: Format, expected_type: &str) -> Option<String> {
        match self.value? {
            Value::String(text) => {
                if text.contains('\0') {
                    self.fault(format!("found {} with a NUL byte, expected text without one", format::quoted(text)));
                } else if let Err(expected) = format(text) {
                    self.fault(format!("found {}, expected {expected}", format::quoted(text)));
                }
                Some(text.clone())
            }
            value => {
                self.wrong_type(value, expected_type);
                None
            }
        }
    }

    /// A string made into a value of another type; `read` answers what was expected instead where it cannot.
    pub fn text_as<T>(&self, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = self.text(format::any)?;
        read(&text)
            .map_err(|expected| {
                self.fault(format!("found {}, expected {expected}", format::quoted(&text)));
            })
            .ok()
    }

    /// One of the given words.
    pub fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        self.text_as(|text| {
            let known = words.iter().find(|(word, _)| *word == text);
            known.map(|(_, value)| *value).ok_or_else(|| {
                let names: Vec<_> = words.iter().map(|(word, _)| *word).collect();
                let hint = did_you_mean(text, &names).map(|name| format!("; did you mean `{name}`?"));
                format!("one of {}{}", names.join(", "), hint.unwrap_or_default())
            })
        })
    }

    /// `true` or `false`.
    pub fn flag(&self) -> Option<bool> {
        match self.value? {
            Value::Bool(value) => Some(*value),
            value => {
                self.wrong_type(value, "true or false");
                None
            }
        }
    }

    /// A number within the range.
    pub fn number(&self, range: RangeInclusive<f64>) -> Option<f64> {
        let number = self.value?.as_f64().filter(|number| number.is_finite());
        let Some(number) = number else {
            self.wrong_type(self.value?, "a number");
            return None;
        };
        self.within(number, range)
    }

    /// A whole number within the range; `3.0` counts as whole.
    pub fn whole(&self, range: RangeInclusive<i64>) -> Option<i64> {
        let value = self.value?;
        let number = match value {
            Value::Number(number) => number.as_i64().or_else(|| whole_float(number.as_f64()?)),
            _ => None,
        };
        match number {
            Some(number) => self.within(number, range),
            None if value.as_u64().is_some() => self.above(value, range.end()),
            None => {
                self.wrong_type(value, "a whole number");
                None
            }
        }
    }

    fn within<T: PartialOrd + Display>(&self, number: T, range: RangeInclusive<T>) -> Option<T> {
        if number < *range.start() {
            self.fault(format!("found {number}, expected {} or more", range.start()));
            None
        } else if number > *range.end() {
            self.above(number, range.end())
        } else {
            Some(number)
        }
    }

    fn above<T>(&self, number: impl Display, most: impl Display) -> Option<T> {
        self.fault(format!("found {number}, expected {most} or less"));
        None
    }

    /// A list, each element read by `read`; empty when nothing is here.
    pub fn list<T>(&self, read: impl Fn(&Self) -> T) -> Vec<T> {
        self.elements().iter().map(read).collect()
    }

    /// Like [`Self::list`], leaving out the elements that `read` refuses.
    pub fn list_of<T>(&self, read: impl FnMut(&Self) -> Option<T>) -> Vec<T> {
        self.elements().iter().filter_map(read).collect()
    }

    /// Like [`Self::list_of`], noting each element that was there before.
    pub fn set_of<T: Ord + Clone>(&self, read: impl Fn(&Self) -> Option<T>) -> Vec<T> {
        let mut seen = BTreeSet::new();
        self.list_of(|element| {
            let value = read(element)?;
            if !seen.insert(value.clone()) {
                element.fault("listed more than once; keep one of them");
            }
            Some(value)
        })
    }

    /// The elements of a list. A `null` among them is a fault: there is no telling what it stands for.
    pub fn elements(&self) -> Vec<Self> {
        match self.value {
            None => Vec::new(),
            Some(Value::Array(items)) if items.len() > MAX_ELEMENTS => {
                let found = items.len();
                self.report.unreadable(
                    &self.path,
                    format!("found {found} elements, expected {MAX_ELEMENTS} or less; shorten the list"),
                );
                Vec::new()
            }
            Some(Value::Array(items)) => items
                .iter()
                .enumerate()
                .map(|(index, item)| {
                    let place = self.child(join_index(&self.path, index), Some(item));
                    if item.is_null() {
                        self.report.unreadable(&place.path, "found null, expected a value; remove it".to_owned());
                    }
                    Self { void: place.void || item.is_null(), ..place }
                })
                .collect(),
            Some(value) => {
                self.wrong_type(value, "a list");
                Vec::new()
            }
        }
    }

    /// An object with free keys of the given format, each value read by `read`; entries of `null` are absent.
    pub fn map<T>(&self, key_format: Format, read: impl Fn(&Self) -> Option<T>) -> BTreeMap<String, T> {
        let mut map = BTreeMap::new();
        let object = match self.value {
            None => return map,
            Some(Value::Object(object)) => object,
            Some(value) => {
                self.wrong_type(value, "an object");
                return map;
            }
        };
        for (key, value) in object {
            let place = self.child(join_key(&self.path, key), Some(value));
            if key.contains('\0') {
                place.fault("found a name with a NUL byte, expected text without one");
            } else if let Err(expected) = key_format(key) {
                place.fault(format!("found the name {}, expected {expected}", format::quoted(key)));
            }
            if let Some(value) = read(&place) {
                map.insert(key.clone(), value);
            }
        }
        map
    }

    /// An object with the given fields; each other one is noted. When nothing is here it is an object without fields.
    pub fn object(&self, fields: &'static Fields) -> Object<'a> {
        let place = Self { path: self.path.clone(), ..*self };
        match self.value {
            None => Object { place, fields, values: None },
            Some(Value::Object(values)) => {
                for key in values.keys().filter(|key| !fields.names.contains(&key.as_str())) {
                    if self.report.is_full() {
                        self.fault("unknown field");
                        continue;
                    }
                    let cure = did_you_mean(key, fields.names).map_or_else(
                        || format!("known here: {}", fields.names.join(", ")),
                        |name| format!("did you mean `{name}`?"),
                    );
                    let path = join_key(&self.path, key);
                    self.report
                        .fault(&path, format!("unknown field {} of {}; {cure}", format::quoted(key), fields.object));
                }
                Object { place, fields, values: Some(values) }
            }
            Some(value) => {
                self.wrong_type(value, &format!("an object: {}", fields.object));
                Object { place: Self { void: true, ..place }, fields, values: None }
            }
        }
    }

    /// Whether anything is here.
    pub fn is_present(&self) -> bool {
        self.value.is_some()
    }

    /// Whether the value is a string.
    pub fn is_text(&self) -> bool {
        self.value.is_some_and(Value::is_string)
    }

    /// Whether the value is an object.
    pub fn is_object(&self) -> bool {
        self.value.is_some_and(Value::is_object)
    }

    /// Whether the value is a list.
    pub fn is_list(&self) -> bool {
        self.value.is_some_and(Value::is_array)
    }

    /// Whether the value is a list without elements.
    pub fn is_empty_list(&self) -> bool {
        self.value.and_then(Value::as_array).is_some_and(Vec::is_empty)
    }
}

/// The number without its fraction `.0`, where it has no other and is small enough to be exact.
fn whole_float(number: f64) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    (number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i64)
}

/// An object of the document whose fields are known by name.
pub(super) struct Object<'a> {
    place: Place<'a>,
    fields: &'static Fields,
    values: Option<&'a Map<String, Value>>,
}

impl<'a> Object<'a> {
    /// The place of a field.
    pub fn at(&self, name: &'static str) -> Place<'a> {
        debug_assert!(self.fields.names.contains(&name), "`{name}` is not in the table of {}", self.fields.object);
        self.place.child(join_key(&self.place.path, name), self.values.and_then(|values| values.get(name)))
    }

    /// Notes a violation of the object as a whole.
    pub fn fault(&self, message: impl Into<String>) {
        if !self.place.void {
            self.place.fault(message);
        }
    }
}
