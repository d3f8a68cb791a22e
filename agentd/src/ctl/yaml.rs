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
    use std::process::{Command, Stdio};

    use proptest::prelude::*;
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

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
        let long = "k".repeat(LONGEST_KEY + 1);
        let json = format!("{{\"{long}\":{{\"a\":1}}}}");
        assert_eq!(of_json(json.as_bytes()).unwrap(), format!("? {long}\n:\n  a: 1\n"));
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

    /// Any JSON, with strings that YAML has a meaning for.
    fn values() -> impl Strategy<Value = serde_json::Value> {
        use serde_json::Value;
        let odd = prop::sample::select(vec![
            "",
            " ",
            "~",
            "null",
            "Yes",
            "0x1f",
            "1_000",
            "12:30:45",
            "2026-11-20",
            "1e5",
            ".inf",
            "-",
            "- a",
            "? a",
            "a: b",
            "a:",
            "a #b",
            "#a",
            "&a",
            "*a",
            "!a",
            "|",
            ">",
            "%a",
            "@a",
            "`a",
            "'a",
            "\"a",
            "[a]",
            "{a}",
            "a,b",
            "=",
            "<<",
            "a\nb",
            "a ",
            "\ta",
            "\u{85}",
            "\u{feff}",
            "\u{1f600}",
            "/app/web",
            "TASK_RUNNING",
            "---",
            "...",
        ]);
        let text = || prop_oneof![odd.clone().prop_map(str::to_owned), ".{0,12}", "[ -~]{0,12}"];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            prop::num::f64::NORMAL.prop_map(Value::from),
            text().prop_map(Value::from),
        ];
        let map = text();
        leaf.prop_recursive(4, 24, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(map.clone(), inner, 0..4).prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    #[test]
    fn another_reader_of_yaml_reads_the_same() {
        // YAML 1.1, which takes more for something else than 1.2 does
        const READER: &str = "import json, sys, yaml\nfor line in sys.stdin:\n    \
            text, expected = json.loads(line)\n    \
            found = yaml.safe_load(text)\n    \
            assert json.dumps(found, sort_keys=True) == json.dumps(json.loads(expected), sort_keys=True), (text, expected, found)\n";
        let python = |program: &str| {
            let mut command = Command::new("python3");
            command.args(["-c", program]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()
        };
        let there =
            python("import yaml").is_ok_and(|child| child.wait_with_output().is_ok_and(|done| done.status.success()));
        if !there {
            eprintln!("skipped: there is no python3 with yaml");
            return;
        }
        let mut child = python(READER).unwrap();
        let mut input = child.stdin.take().unwrap();
        let mut runner = TestRunner::deterministic();
        for _ in 0..2000 {
            let json = values().new_tree(&mut runner).unwrap().current().to_string();
            let yaml = of_json(json.as_bytes()).unwrap();
            // a reader that has failed says why below
            if std::io::Write::write_all(&mut input, format!("{}\n", serde_json::json!([yaml, json])).as_bytes())
                .is_err()
            {
                break;
            }
        }
        drop(input);
        let done = child.wait_with_output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}
