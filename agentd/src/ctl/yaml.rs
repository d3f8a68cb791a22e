//! The API's JSON as YAML, for `--output yaml`.
//!
//! Nothing is kept but the text: the JSON is read and the YAML is written in one pass, so that fields stay in the order
//! in which the API gives them. Only block style is written, and a string stands without quotes only where YAML 1.1 and
//! 1.2 both read it as that string.

use std::fmt::{self, Write};

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};

/// Longest key that may stand before its colon on one line.
const LONGEST_KEY: usize = 1000;

/// One JSON value as a YAML document, with a line break at its end.
pub fn of_json(json: &[u8]) -> serde_json::Result<String> {
    let mut out = String::new();
    let mut reader = serde_json::Deserializer::from_slice(json);
    Node { out: &mut out, indent: 0, after: After::Nothing }.deserialize(&mut reader)?;
    reader.end()?;
    Ok(out)
}

/// What stands before a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    Nothing,
    Key,
    Dash,
}

/// One value to write. `indent` is that of its own lines.
struct Node<'a> {
    out: &'a mut String,
    indent: usize,
    after: After,
}

impl Node<'_> {
    fn scalar(self, text: &str) {
        if self.after != After::Nothing {
            self.out.push(' ');
        }
        self.out.push_str(text);
        self.out.push('\n');
    }

    /// Begins an entry of a list or a map.
    fn entry(&mut self, first: bool) {
        match self.after {
            After::Dash if first => self.out.push(' '),
            After::Key if first => {
                self.out.push('\n');
                self.pad();
            }
            _ => self.pad(),
        }
    }

    fn pad(&mut self) {
        self.out.extend(std::iter::repeat_n(' ', self.indent));
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.scalar(if value { "true" } else { "false" });
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.scalar(&value.to_string());
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.scalar(&value.to_string());
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.scalar(&float(value));
        Ok(())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.scalar(&string(value));
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.scalar("null");
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        // a list below a key stands as deep as the key
        if self.after == After::Key {
            self.indent -= 2;
        }
        let mut first = true;
        loop {
            let before = self.out.len();
            self.entry(first);
            self.out.push('-');
            let item = Node { out: &mut *self.out, indent: self.indent + 2, after: After::Dash };
            if list.next_element_seed(item)?.is_none() {
                self.out.truncate(before);
                if first {
                    self.scalar("[]");
                }
                return Ok(());
            }
            first = false;
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let mut first = true;
        while let Some(key) = map.next_key::<String>()? {
            self.entry(first);
            first = false;
            let key = string(&key);
            if key.len() > LONGEST_KEY {
                self.out.push_str("? ");
                self.out.push_str(&key);
                self.out.push('\n');
                self.pad();
            } else {
                self.out.push_str(&key);
            }
            self.out.push(':');
            map.next_value_seed(Node { out: &mut *self.out, indent: self.indent + 2, after: After::Key })?;
        }
        if first {
            self.scalar("{}");
        }
        Ok(())
    }
}

/// A number with a point, which YAML 1.1 wants before an exponent.
fn float(value: f64) -> String {
    let text = format!("{value:?}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let point = if mantissa.contains('.') { "" } else { ".0" };
            let sign = if exponent.starts_with('-') { "" } else { "+" };
            format!("{mantissa}{point}e{sign}{exponent}")
        }
        None => text,
    }
}

/// A string, in quotes where it would be read as something else.
fn string(text: &str) -> String {
    if plain(text) {
        return text.to_owned();
    }
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') => {
                // a String takes all that is written to it
                let _ = write!(quoted, "\\u{:04x}", c as u32);
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Whether a string may stand without quotes.
fn plain(text: &str) -> bool {
    // what YAML 1.1 takes for a truth value or for nothing
    const WORDS: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let begins = text.chars().next().is_some_and(|c| c.is_alphabetic() || matches!(c, '/' | '_'));
    let printable = text.chars().all(|c| c.is_alphanumeric() || c.is_ascii_graphic() || c == ' ');
    begins
        && printable
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && !text.contains(" #")
        && !WORDS.iter().any(|word| word.eq_ignore_ascii_case(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stay_in_order_and_lists_are_in_block_style() {
        let json = br#"{"id":"/app","b":1,"a":[{"x":"y","n":null},{"e":[]},[1,[2]],{}],"f":1.5,"o":{"p":{"q":true}}}"#;
        let expected = "\
id: /app
b: 1
a:
- x: \"y\"
  \"n\": null
- e: []
- - 1
  - - 2
- {}
f: 1.5
o:
  p:
    q: true
";
        assert_eq!(of_json(json).unwrap(), expected);
        assert_eq!(of_json(b"[]").unwrap(), "[]\n");
        assert_eq!(of_json(b"[{\"a\":1}]").unwrap(), "- a: 1\n");
        assert!(of_json(b"[1] x").is_err() && of_json(b"").is_err());
    }

    #[test]
    fn strings_that_mean_something_else_are_quoted() {
        let quoted =
            ["", "123", "1e5", "10f52efa1716", "2026-11-20T08:09:07Z", "No", "a: b", "a #b", "- x", "*x", "a:"];
        for text in quoted {
            assert_eq!(string(text), format!("\"{text}\""), "{text}");
        }
        for text in
            ["/app/web", "sh", "TASK_RUNNING", "exit code 7", "docker.io/library/nginx:1.27", "a,b [c]", "übung"]
        {
            assert_eq!(string(text), text);
        }
        assert_eq!(string("a\"\\\n\x1b\u{85}\u{2028}"), r#""a\"\\\n\u001b\u0085\u2028""#);
        assert_eq!((float(1e30), float(1.5e-9), float(2.0)), ("1.0e+30".into(), "1.5e-9".into(), "2.0".into()));
    }
}
