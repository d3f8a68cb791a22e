//! The daemon's own log: lines or JSON objects on standard error, from where systemd takes them into the journal.

use std::borrow::Cow;
use std::io::{self, Write};

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

/// How the daemon logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object for each line.
    Json,
}

/// The daemon's log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The level is none.
    #[error("logs.level: found '{found}', which is no filter ({reason}); expected a level such as info, or directives")]
    Level {
        /// What was given.
        found: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The process already has one.
    #[error("the daemon's log is already set up in this process; call init once")]
    Twice,
}

/// Whether a text is a level or a list of filter directives, as `init` takes them.
pub fn valid_level(level: &str) -> bool {
    !level.trim().is_empty() && EnvFilter::try_new(level).is_ok() && plausible(level)
}

/// `EnvFilter` takes any word for the name of a module, so `inof` would silently switch everything off but a module of
/// that name. A directive without `=` must therefore be a level, or look like a path of modules.
fn plausible(level: &str) -> bool {
    level.split(',').all(|directive| {
        let directive = directive.trim();
        directive.contains(['=', '['])
            || directive.contains("::")
            || ["trace", "debug", "info", "warn", "error", "off"].contains(&directive.to_ascii_lowercase().as_str())
    })
}

/// Target of spans that traces are made of; the daemon's log is without them.
pub const TRACES: &str = "agentd_trace";

/// Directives that stand before those that are given, which override them.
const QUIETENED: &str = "netlink_packet_route=error,agentd_trace=off";

/// What makes traces of spans with the target [`TRACES`], with a filter of its own.
pub type TraceLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Sets up the daemon's log for the process, and traces where there is a layer for them. A log that cannot be written is not an
/// error: the daemon runs on.
pub fn init(level: &str, format: Format, traces: Option<TraceLayer>) -> Result<(), SetupError> {
    // of the attributes of newer kernels that it does not know, which nobody can do anything about
    let filter = EnvFilter::try_new(format!("{QUIETENED},{level}"))
        .map_err(|error| SetupError::Level { found: level.to_owned(), reason: error.to_string() })?;
    let lines = tracing_subscriber::fmt::layer().with_writer(|| Line(io::stderr())).log_internal_errors(false);
    let lines: Box<dyn Layer<_> + Send + Sync> = match format {
        // The journal stamps lines itself, and colours would be noise in it.
        Format::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).with_target(true).boxed(),
        Format::Json => lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
    };
    let result = match traces {
        // the filter of the log is then one for all, so that no span of a trace is ever looked at
        None => tracing_subscriber::registry().with(lines).with(filter).try_init(),
        Some(traces) => tracing_subscriber::registry().with(traces.and_then(lines.with_filter(filter))).try_init(),
    };
    result.map_err(|_| SetupError::Twice)
}

/// Writes each entry, which comes whole, as one line: what clients and containers name must not look like an entry of its own.
struct Line<W>(W);

impl<W: Write> Write for Line<W> {
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        self.0.write_all(&one_line(entry))?;
        Ok(entry.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// An entry without control characters but those at its end, and those of colours: what of an entry is not the
/// formatter's own has no escape character any more.
fn one_line(entry: &[u8]) -> Cow<'_, [u8]> {
    let text = entry.strip_suffix(b"\n").unwrap_or(entry);
    let kept = |byte: &u8| !byte.is_ascii_control() || matches!(byte, b'\t' | 0x1b);
    if text.iter().all(kept) {
        return Cow::Borrowed(entry);
    }
    let mut line = Vec::with_capacity(entry.len() + 16);
    for byte in text {
        if kept(byte) {
            line.push(*byte);
        } else {
            line.extend(std::ascii::escape_default(*byte));
        }
    }
    line.extend_from_slice(&entry[text.len()..]);
    Cow::Owned(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_one_line() {
        let mut line = Line(Vec::new());
        line.write_all(b"INFO session: sh -c a\nERROR forged\r\0 \x1b[0m\t\xc3\xa9\n").unwrap();
        line.write_all(b"INFO next\n").unwrap();
        let expected = b"INFO session: sh -c a\\nERROR forged\\r\\x00 \x1b[0m\t\xc3\xa9\nINFO next\n";
        assert_eq!(String::from_utf8_lossy(&line.0), String::from_utf8_lossy(expected));
    }

    #[test]
    fn spans_of_traces_are_no_part_of_the_log() {
        let text = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let written = std::sync::Arc::clone(&text);
        let lines =
            tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || Line(Shared(written.clone())));
        let filter = EnvFilter::try_new(format!("{QUIETENED},trace")).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines).with(filter), || {
            let span = tracing::info_span!(target: TRACES, "pod.start", secret = "yes");
            assert!(span.is_disabled());
            span.in_scope(|| tracing::trace!("an entry"));
        });
        let text = String::from_utf8(text.lock().unwrap().clone()).unwrap();
        assert!(text.contains("an entry") && !text.contains("pod.start") && !text.contains("secret"), "{text}");
    }

    /// Where a test's log goes.
    struct Shared(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
