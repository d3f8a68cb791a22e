//! The form of the audit log: one JSON object for each line, each bound to the one before it.
//!
//! A line has `seq` (one more than the line before), `time`, `prev` (SHA-256 of the whole line before), the entry, and last
//! `hash` (SHA-256 of the line without its `hash`). [`Verifier`] reads lines back and says what does not fit.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What stands for the line before the first.
pub const NO_LINE: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Between a record and its hash.
const HASH_FIELD: &str = ",\"hash\":\"";

/// Longest line, bytes. What goes into a record is cut long before.
pub const LONGEST_LINE: usize = 64 << 10;

/// What is told of one thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Entry {
    /// A call that changes something is about to be carried out.
    Attempt {
        /// Id of the request.
        request: String,
        /// Who calls.
        principal: String,
        /// From where.
        source: String,
        /// Method, or the name of the call where the path does not tell it.
        method: String,
        /// Path.
        path: String,
        /// The pod that it is about.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pod: Option<String>,
    },
    /// What came of it.
    Outcome {
        /// Id of the request.
        request: String,
        /// `seq` of the attempt.
        attempt: u64,
        /// Status of the answer.
        status: u16,
        /// What was wrong, one line.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        problem: Option<String>,
    },
    /// A call was refused because its caller may not do it.
    Denied {
        /// Id of the request.
        request: String,
        /// Who calls.
        principal: String,
        /// From where.
        source: String,
        /// Method.
        method: String,
        /// Path.
        path: String,
        /// Why, one line.
        problem: String,
    },
    /// Something happened to a session.
    Session {
        /// What: `begin`, `attach`, `detach`, `end`.
        action: String,
        /// Who did it; whoever began the session at its end.
        by: String,
        /// Id of the session.
        session: String,
        /// Its kind: `exec`, `debug`, `nested`.
        what: String,
        /// Pod.
        pod: String,
        /// Instance.
        instance: String,
        /// Container.
        container: String,
        /// Program and arguments, at the begin.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        command: Vec<String>,
        /// Whether it has a terminal.
        tty: bool,
        /// Whether it is recorded.
        recorded: bool,
        /// User that was asked for, at the begin.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        /// Capabilities that were asked for, at the begin.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        capabilities: Vec<String>,
        /// Image of a debug container, at the begin.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<String>,
        /// How its program ended, at the end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit: Option<agentd_api::status::ExitStatus>,
        /// Why it ended, where it did not by itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
        /// Bytes of input and of output so far.
        bytes: [u64; 2],
    },
    /// Something about the log itself.
    Note {
        /// One line.
        note: String,
    },
}

/// A line, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Number.
    pub seq: u64,
    /// RFC 3339.
    pub time: String,
    /// SHA-256 of the line before.
    pub prev: String,
    /// What happened.
    #[serde(flatten)]
    pub entry: Entry,
}

/// SHA-256 in lower-case hexadecimal digits.
pub fn digest(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
    text
}

/// The line of a record, without its end.
pub fn line(record: &Record) -> serde_json::Result<String> {
    let mut text = serde_json::to_string(record)?;
    let hash = digest(text.as_bytes());
    text.pop();
    text.push_str(HASH_FIELD);
    text.push_str(&hash);
    text.push_str("\"}");
    Ok(text)
}

/// Takes a line apart and holds it against its hash.
pub fn read(line: &str) -> Result<Record, Fault> {
    let end = line.len().saturating_sub(64 + 2);
    let (start, hash) = line
        .get(..end)
        .and_then(|text| text.strip_suffix(HASH_FIELD))
        .zip(line.get(end..end + 64))
        .filter(|_| line.ends_with("\"}"))
        .ok_or(Fault::NoRecord("it does not end with a hash".to_owned()))?;
    let found = digest(format!("{start}}}").as_bytes());
    if found != hash {
        return Err(Fault::Changed { hash: hash.to_owned(), found });
    }
    serde_json::from_str(&format!("{start}}}")).map_err(|error| Fault::NoRecord(error.to_string()))
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It is none of the log's.
    NoRecord(String),
    /// Its content is not what its hash was made of.
    Changed {
        /// The hash that it has.
        hash: String,
        /// The hash of its content.
        found: String,
    },
    /// Lines between this one and the one before it are missing.
    Missing {
        /// First number that is missing.
        first: u64,
        /// Last number that is missing.
        last: u64,
    },
    /// It stands behind one that was written later.
    Order {
        /// Its number.
        seq: u64,
        /// The number before it.
        after: u64,
    },
    /// The line before it is another one than when it was written, though each is whole by itself.
    OtherBefore {
        /// Hash that it has of the line before it.
        prev: String,
        /// Hash of the line before it.
        found: String,
    },
    /// The end of the log does not fit what was noted beside it.
    End(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRecord(why) => write!(f, "this is no record of the audit log: {why}"),
            Self::Changed { hash, found } => {
                write!(f, "the record was changed: its hash is {hash}, its content has {found}")
            }
            Self::Missing { first, last } if first == last => {
                write!(f, "the record {first} is missing before this one")
            }
            Self::Missing { first, last } => write!(f, "the records {first} to {last} are missing before this one"),
            Self::Order { seq, after } => write!(f, "the records are out of order: {seq} stands behind {after}"),
            Self::OtherBefore { prev, found } => write!(
                f,
                "the line before was replaced: this one was written after a line with the hash {prev}, found {found}"
            ),
            Self::End(what) => f.write_str(what),
        }
    }
}

/// Follows the chain from line to line.
#[derive(Debug, Default)]
pub struct Verifier {
    /// Number and hash of the last line; the hash is absent where that line is at fault itself.
    last: Option<(u64, Option<String>)>,
    /// Lines seen.
    pub lines: u64,
}

impl Verifier {
    /// Takes the next line. The first one may have any number: earlier files may have been removed.
    pub fn line(&mut self, line: &str) -> Result<Record, Fault> {
        self.lines += 1;
        let record = match read(line) {
            Ok(record) => record,
            Err(fault) => {
                // the chain is taken up again behind it
                self.last = self.last.take().map(|(seq, _)| (seq + 1, None));
                return Err(fault);
            }
        };
        let before = self.last.replace((record.seq, Some(digest(line.as_bytes()))));
        match before {
            None if record.seq == 1 && record.prev != NO_LINE => {
                Err(Fault::OtherBefore { prev: record.prev, found: NO_LINE.to_owned() })
            }
            Some((after, _)) if record.seq <= after => Err(Fault::Order { seq: record.seq, after }),
            Some((after, _)) if record.seq > after + 1 => {
                Err(Fault::Missing { first: after + 1, last: record.seq - 1 })
            }
            Some((_, Some(found))) if record.prev != found => Err(Fault::OtherBefore { prev: record.prev, found }),
            _ => Ok(record),
        }
    }

    /// Holds the end against the head: number and hash of the last line, as noted beside the log.
    pub fn end(&self, head: Option<(u64, String)>) -> Result<(), Fault> {
        let Some((noted, hash)) = head else { return Ok(()) };
        match &self.last {
            None => Err(Fault::End(format!("all records up to {noted} are missing"))),
            Some((seq, _)) if *seq < noted => {
                Err(Fault::End(format!("the records {} to {noted} at the end are missing", seq + 1)))
            }
            Some((seq, Some(found))) if *seq == noted && *found != hash => Err(Fault::End(format!(
                "the last record was replaced: its line has the hash {found}, noted was {hash}"
            ))),
            Some(_) => Ok(()),
        }
    }
}

/// What is noted beside the log: number and hash of the last line, always of one length.
pub fn head(seq: u64, hash: &str) -> String {
    format!("{seq:020} {hash}\n")
}

/// Reads [`head`] back.
pub fn read_head(text: &str) -> Option<(u64, String)> {
    let (seq, hash) = text.trim_end().split_once(' ')?;
    (hash.len() == 64).then_some((seq.parse().ok()?, hash.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(count: u64) -> Vec<String> {
        let mut prev = NO_LINE.to_owned();
        (1..=count)
            .map(|seq| {
                let entry = Entry::Note { note: format!("note \"{seq}\"") };
                let text =
                    line(&Record { seq, time: "2026-01-01T00:00:00Z".into(), prev: prev.clone(), entry }).unwrap();
                prev = digest(text.as_bytes());
                text
            })
            .collect()
    }

    fn faults(lines: &[String]) -> Vec<(usize, Fault)> {
        let mut verifier = Verifier::default();
        lines.iter().enumerate().filter_map(|(at, line)| verifier.line(line).err().map(|fault| (at, fault))).collect()
    }

    #[test]
    fn a_whole_log_verifies() {
        assert_eq!(faults(&lines(20)), []);
        assert_eq!(faults(&lines(20)[7..]), []);
    }

    #[test]
    fn a_changed_line_is_found_where_it_stands() {
        let mut all = lines(6);
        all[2] = all[2].replace("note \\\"3", "note \\\"4");
        let found = faults(&all);
        assert!(matches!(found.as_slice(), [(2, Fault::Changed { .. })]), "{found:?}");
        // with the hash made anew, the next line tells
        let mut all = lines(6);
        let mut record = read(&all[2]).unwrap();
        record.entry = Entry::Note { note: "another".into() };
        all[2] = line(&record).unwrap();
        let found = faults(&all);
        assert!(matches!(found.as_slice(), [(3, Fault::OtherBefore { .. })]), "{found:?}");
        // every single byte counts
        let all = lines(3);
        for at in 0..all[1].len() {
            let mut bytes = all[1].clone().into_bytes();
            bytes[at] ^= 1;
            let Ok(text) = String::from_utf8(bytes) else { continue };
            assert!(!faults(&[all[0].clone(), text, all[2].clone()]).is_empty(), "byte {at}");
        }
    }

    #[test]
    fn removed_and_reordered_lines_are_found() {
        let mut all = lines(6);
        all.remove(3);
        assert_eq!(faults(&all), [(3, Fault::Missing { first: 4, last: 4 })]);
        let mut all = lines(6);
        all.drain(1..4);
        assert_eq!(faults(&all), [(1, Fault::Missing { first: 2, last: 4 })]);
        let mut all = lines(6);
        all.swap(2, 3);
        let found = faults(&all);
        assert_eq!(found[0], (2, Fault::Missing { first: 3, last: 3 }));
        assert_eq!(found[1], (3, Fault::Order { seq: 3, after: 4 }));
        let mut all = lines(6);
        all.insert(2, all[1].clone());
        assert_eq!(faults(&all)[0], (2, Fault::Order { seq: 2, after: 2 }));
        assert!(matches!(faults(&["{}".to_owned()])[0].1, Fault::NoRecord(_)));
    }

    #[test]
    fn a_cut_end_is_found_by_the_head() {
        let all = lines(6);
        let head = read_head(&head(6, &digest(all[5].as_bytes())));
        let verified = |lines: &[String]| {
            let mut verifier = Verifier::default();
            for line in lines {
                verifier.line(line).unwrap();
            }
            verifier.end(head.clone())
        };
        assert_eq!(verified(&all), Ok(()));
        assert!(verified(&all[..4]).unwrap_err().to_string().contains("5 to 6 at the end are missing"));
        assert!(verified(&[]).is_err());
        assert_eq!(read_head("rubbish"), None);
    }
}
