//! Query parameters: each known by name, given once unless it may be repeated, and in its range. All faults are told at
//! once.

use std::time::Duration;

use agentd_api::problem::Violation;
use jiff::Timestamp;

use super::answer::Refusal;
use super::operations::Parameter;
use super::route::decode;

/// Most parameters that are looked at.
const MOST: usize = 32;

/// Longest wait that can be asked for, in seconds: a day.
const LONGEST_WAIT: f64 = 86_400.0;

/// The parameters of a request.
#[derive(Debug, Default)]
pub struct Query {
    values: Vec<(&'static str, String)>,
    faults: Vec<Violation>,
}

impl Query {
    /// Takes a query apart. `known` are the names that the call takes. A `+` means itself.
    pub fn parse(query: Option<&str>, known: &'static [Parameter]) -> Self {
        let mut parsed = Self::default();
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        for (number, pair) in pairs.enumerate() {
            if number == MOST {
                parsed.fault("query", format!("found more than {MOST} parameters"));
                break;
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = match decode(name) {
                Ok(name) => name,
                Err(fault) => {
                    parsed.fault("query", fault);
                    continue;
                }
            };
            let Some(parameter) = known.iter().find(|known| known.name == name) else {
                let shown: String = name.chars().take(80).collect();
                let cure = if known.is_empty() {
                    "this call takes none".to_owned()
                } else {
                    let names: Vec<&str> = known.iter().map(|known| known.name).collect();
                    format!("known here: {}", names.join(", "))
                };
                parsed.fault(&shown, format!("unknown query parameter; {cure}"));
                continue;
            };
            let name = parameter.name;
            if !parameter.repeated && parsed.values.iter().any(|(other, _)| *other == name) {
                parsed.fault(name, "given more than once; give it once");
                continue;
            }
            match decode(value) {
                Ok(value) => parsed.values.push((name, value)),
                Err(fault) => parsed.fault(name, fault),
            }
        }
        parsed
    }

    fn fault(&mut self, name: &str, message: impl Into<String>) {
        self.faults.push(Violation::new(name, message));
    }

    /// A value as it stands. An empty one is a fault.
    pub fn text(&mut self, name: &'static str) -> Option<String> {
        let at = self.values.iter().position(|(known, _)| *known == name)?;
        let (_, value) = self.values.swap_remove(at);
        if value.is_empty() {
            self.fault(name, "found no value; give one, or leave the parameter out");
            return None;
        }
        Some(value)
    }

    /// All values of a parameter that may be repeated, in their order.
    pub fn all(&mut self, name: &'static str) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(at) = self.values.iter().position(|(known, _)| *known == name) {
            let (_, value) = self.values.remove(at);
            if value.is_empty() {
                self.fault(name, "found no value; give one, or leave the parameter out");
            } else {
                all.push(value);
            }
        }
        all
    }

    fn read<T>(&mut self, name: &'static str, expected: &str, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let value = self.text(name)?;
        let result = read(&value);
        if result.is_none() {
            let shown: String = value.chars().take(80).collect();
            self.fault(name, format!("found {shown:?}, expected {expected}"));
        }
        result
    }

    /// `true` or `false`; false when absent.
    pub fn flag(&mut self, name: &'static str) -> Option<bool> {
        self.word(name, &[("true", true), ("false", false)])
    }

    /// One of some words.
    pub fn word<T: Copy>(&mut self, name: &'static str, words: &[(&str, T)]) -> Option<T> {
        let expected = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(" or ");
        self.read(name, &expected, |value| words.iter().find(|(word, _)| *word == value).map(|(_, meant)| *meant))
    }

    /// A whole number from 0 to `most`.
    pub fn number(&mut self, name: &'static str, most: u64) -> Option<u64> {
        let digits = |value: &str| value.bytes().all(|byte| byte.is_ascii_digit());
        self.read(name, &format!("a whole number from 0 to {most}"), |value| {
            value.parse().ok().filter(|number| digits(value) && *number <= most)
        })
    }

    /// Seconds, also with a fraction.
    pub fn seconds(&mut self, name: &'static str) -> Option<Duration> {
        self.read(name, &format!("seconds from 0 to {LONGEST_WAIT}"), |value| {
            let seconds: f64 = value.parse().ok()?;
            (0.0..=LONGEST_WAIT).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
        })
    }

    /// A point in time.
    pub fn time(&mut self, name: &'static str) -> Option<Timestamp> {
        self.read(name, "an RFC 3339 time such as 2026-01-31T12:00:00Z", |value| value.parse().ok())
    }

    /// Notes a fault that only the call can see.
    pub fn refuse(&mut self, name: &'static str, message: impl Into<String>) {
        self.fault(name, message);
    }

    /// Ends the reading: refuses the request if anything was at fault.
    pub fn finish(self) -> Result<(), Refusal> {
        if self.faults.is_empty() { Ok(()) } else { Err(Refusal::bad_request(self.faults)) }
    }
}
