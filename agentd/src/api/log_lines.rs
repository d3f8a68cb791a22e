//! Makes lines of log records: as they were printed, with time and source before them, or as JSON.

use agentd_logging::{Entry, Stream};
use jiff::Timestamp;
use serde::Serialize;

/// Longest line that is put together from its records, bytes; a longer one is told in several.
const LONGEST: usize = 1 << 20;

/// How lines are written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    /// One JSON object for each line.
    pub json: bool,
    /// The time before each line.
    pub timestamps: bool,
}

/// One container of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Instance.
    pub instance: String,
    /// Container.
    pub container: String,
    /// What is put before its lines, where lines of several are told.
    pub label: Option<String>,
}

/// A line whose end is not there yet.
#[derive(Debug)]
struct Begun {
    time: Timestamp,
    bytes: Vec<u8>,
}

/// Makes lines of one source's records.
#[derive(Debug)]
pub struct Lines {
    source: Source,
    style: Style,
    stdout: Option<Begun>,
    stderr: Option<Begun>,
}

#[derive(Serialize)]
struct JsonLine<'a> {
    time: String,
    instance: &'a str,
    container: &'a str,
    stream: &'static str,
    line: &'a str,
}

impl Lines {
    /// For a source.
    pub fn new(source: Source, style: Style) -> Self {
        Self { source, style, stdout: None, stderr: None }
    }

    /// Adds a record; writes the line that it ends.
    pub fn push(&mut self, entry: Entry, out: &mut Vec<u8>) {
        let begun = match entry.stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let mut line = begun.take().unwrap_or_else(|| Begun { time: entry.time, bytes: Vec::new() });
        if line.bytes.is_empty() {
            line.bytes = entry.line;
        } else {
            line.bytes.extend_from_slice(&entry.line);
        }
        if entry.partial && line.bytes.len() < LONGEST {
            *begun = Some(line);
        } else {
            self.write(entry.stream, &line, out);
        }
    }

    /// Writes what has no end.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        if let Some(line) = self.stdout.take() {
            self.write(Stream::Stdout, &line, out);
        }
        if let Some(line) = self.stderr.take() {
            self.write(Stream::Stderr, &line, out);
        }
    }

    fn write(&self, stream: Stream, line: &Begun, out: &mut Vec<u8>) {
        let Source { instance, container, label } = &self.source;
        if self.style.json {
            let text = String::from_utf8_lossy(&line.bytes);
            let time = format!("{:.9}", line.time);
            let line = JsonLine { time, instance, container, stream: stream.word(), line: &text };
            // text serialises
            out.extend_from_slice(&serde_json::to_vec(&line).unwrap_or_default());
        } else {
            if let Some(label) = label {
                out.extend_from_slice(label.as_bytes());
                out.extend_from_slice(b" | ");
            }
            if self.style.timestamps {
                out.extend_from_slice(format!("{:.9} ", line.time).as_bytes());
            }
            out.extend_from_slice(&line.bytes);
        }
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(stream: Stream, partial: bool, line: &[u8]) -> Entry {
        Entry { time: Timestamp::UNIX_EPOCH, stream, partial, line: line.to_vec() }
    }

    fn source(label: Option<&str>) -> Source {
        Source { instance: "0123456789ab".into(), container: "web".into(), label: label.map(str::to_owned) }
    }

    #[test]
    fn parts_of_a_line_come_together_even_when_the_streams_alternate() {
        let mut lines = Lines::new(source(Some("web")), Style::default());
        let mut out = Vec::new();
        lines.push(entry(Stream::Stdout, true, b"one "), &mut out);
        lines.push(entry(Stream::Stderr, false, b"between"), &mut out);
        lines.push(entry(Stream::Stdout, false, b"line \xff"), &mut out);
        lines.push(entry(Stream::Stdout, true, b"no end"), &mut out);
        lines.flush(&mut out);
        assert_eq!(out, b"web | between\nweb | one line \xff\nweb | no end\n");
    }

    #[test]
    fn json_and_times_are_as_the_page_says() {
        let mut out = Vec::new();
        let style = Style { json: true, timestamps: false };
        Lines::new(source(None), style).push(entry(Stream::Stderr, false, b"a\"\xff"), &mut out);
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!((&value["stream"], &value["line"]), (&"stderr".into(), &"a\"\u{fffd}".into()));
        assert_eq!(value["time"], "1970-01-01T00:00:00.000000000Z");
        let mut out = Vec::new();
        let style = Style { json: false, timestamps: true };
        Lines::new(source(None), style).push(entry(Stream::Stdout, false, b"x"), &mut out);
        assert_eq!(out, b"1970-01-01T00:00:00.000000000Z x\n");
    }

    #[test]
    fn a_line_without_end_is_told_in_pieces() {
        let mut lines = Lines::new(source(None), Style::default());
        let mut out = Vec::new();
        for _ in 0..3 * LONGEST / 16384 {
            lines.push(entry(Stream::Stdout, true, &[b'x'; 16384]), &mut out);
        }
        assert_eq!(out.split(|byte| *byte == b'\n').count(), 3 + 1);
    }
}
