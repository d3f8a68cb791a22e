//! `agentctl audit`: reads the audit log's files on this host, and verifies their chain. Needs no daemon.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::client::Client;
use super::failure::{Failure, Result};
use super::output::Output;
use super::table::Columns;
use crate::access::audit::chain::{self, Entry, Fault, LONGEST_LINE, Record, Verifier};
use crate::access::audit::file;
use crate::config::{self, Flags};

/// Exit code of a log whose chain does not hold.
const BROKEN: u8 = 10;

/// Faults that are told; the rest is counted.
const MOST_TOLD: usize = 20;

/// Its command line.
#[derive(Debug, Args)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    verb: Verb,
}

/// What to do with the audit log.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Verify that no record was changed, removed, added or moved; ends with 10 where one was.
    Verify {
        /// The log; its earlier files beside it are verified, too [default: that of this host's configuration]
        file: Option<PathBuf>,
    },
    /// Show records.
    Show {
        /// The log [default: that of this host's configuration]
        file: Option<PathBuf>,
        /// Only from this time on (RFC 3339, e.g. 2026-01-31T12:00:00Z).
        #[arg(long, value_name = "TIME")]
        since: Option<jiff::Timestamp>,
        /// Only of this principal.
        #[arg(long, value_name = "NAME")]
        principal: Option<String>,
        /// Only about this pod.
        #[arg(long, value_name = "ID")]
        pod: Option<String>,
    },
}

/// Carries it out.
#[expect(clippy::unused_async, reason = "all verbs are awaited alike")]
pub async fn run(_client: &Client, output: &mut Output, arguments: Arguments) -> Result<()> {
    match arguments.verb {
        Verb::Verify { file } => verify(output, &log(file)?),
        Verb::Show { file, since, principal, pod } => {
            let wanted = Wanted { since, principal, pod };
            show(output, &log(file)?, &wanted)
        }
    }
}

/// The log that is meant.
fn log(file: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(file) = file {
        return Ok(file);
    }
    let variables =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let loaded = config::load(&Flags::default(), variables).map_err(|problems| {
        let first = problems.first().map(ToString::to_string).unwrap_or_default();
        Failure::bad_input(format!("the configuration does not tell where the audit log is: {first}; name its file"))
    })?;
    let layout = crate::layout::Layout::of(&loaded.config);
    Ok(loaded.config.api.audit.unwrap_or_else(|| layout.audit()))
}

/// Calls with each line of a log and where it stands, earlier files first.
fn each_line(path: &Path, mut take: impl FnMut(&Path, u64, &str) -> Result<()>) -> Result<()> {
    let fail = |file: &Path, error: std::io::Error| {
        let message = format!("{}: {error}", file.display());
        match error.kind() {
            std::io::ErrorKind::NotFound => Failure::new(super::failure::NOT_FOUND, message),
            _ => Failure::failed(message),
        }
    };
    let earlier = file::earlier(path).map_err(|error| fail(path, error))?;
    for file in earlier.iter().map(PathBuf::as_path).chain([path]) {
        let mut lines = BufReader::new(File::open(file).map_err(|error| fail(file, error))?);
        for number in 1.. {
            let mut bytes = Vec::new();
            let most = LONGEST_LINE as u64 + 1;
            if Read::by_ref(&mut lines).take(most).read_until(b'\n', &mut bytes).map_err(|error| fail(file, error))?
                == 0
            {
                break;
            }
            match bytes.last() {
                Some(b'\n') => drop(bytes.pop()),
                // cut off, or too long for a record, and shall not pass for one
                _ => bytes.push(b' '),
            }
            take(file, number, &String::from_utf8_lossy(&bytes))?;
        }
    }
    Ok(())
}

fn verify(output: &mut Output, path: &Path) -> Result<()> {
    let mut verifier = Verifier::default();
    let mut faults = Vec::new();
    let mut first = None;
    let mut count = 0_usize;
    let mut last_place = (path.to_owned(), 0);
    each_line(path, |file, number, line| {
        last_place = (file.to_owned(), number);
        match verifier.line(line) {
            Ok(record) => first = first.or(Some(record.seq)),
            Err(fault) => {
                count += 1;
                if faults.len() < MOST_TOLD {
                    faults.push(told(file, number, &fault));
                }
            }
        }
        Ok(())
    })?;
    let head = std::fs::read_to_string(file::head_path(path)).ok().and_then(|text| chain::read_head(&text));
    let noted = head.is_some();
    if let Err(fault) = verifier.end(head) {
        count += 1;
        faults.push(told(&last_place.0, last_place.1, &fault));
    }
    if count > 0 {
        let message =
            format!("the audit log {} does not verify: {count} faults in {} lines", path.display(), verifier.lines);
        if count > faults.len() {
            faults.push(format!("  … and {} more", count - faults.len()));
        }
        return Err(Failure::Told { code: BROKEN, message, lines: faults });
    }
    if verifier.lines == 0 {
        return Err(Failure::failed(format!("the audit log {} has no record", path.display())));
    }
    let start = match first {
        Some(seq) if seq > 1 => format!(", from record {seq} on: those before were removed with old files"),
        _ => String::new(),
    };
    let end = if noted { "" } else { "; there is no .head file, so that a cut end would not be noticed" };
    output.line(&format!("the audit log {} verifies: {} records{start}{end}", path.display(), verifier.lines))
}

fn told(file: &Path, number: u64, fault: &Fault) -> String {
    format!("  {}:{number}: {fault}", file.display())
}

struct Wanted {
    since: Option<jiff::Timestamp>,
    principal: Option<String>,
    pod: Option<String>,
}

impl Wanted {
    fn has(&self, record: &Record) -> bool {
        let (who, about) = match &record.entry {
            Entry::Attempt { principal, pod, .. } => (Some(principal), pod.as_ref()),
            Entry::Denied { principal, .. } => (Some(principal), None),
            Entry::Session { by, pod, .. } => (Some(by), Some(pod)),
            Entry::Outcome { .. } | Entry::Note { .. } => (None, None),
        };
        let slashed = |id: &str| if id.starts_with('/') { id.to_owned() } else { format!("/{id}") };
        self.since.is_none_or(|since| record.time.parse::<jiff::Timestamp>().is_ok_and(|time| time >= since))
            && self.principal.as_ref().is_none_or(|wanted| who == Some(wanted))
            && self.pod.as_ref().is_none_or(|wanted| about.is_some_and(|found| slashed(found) == slashed(wanted)))
    }
}

fn show(output: &mut Output, path: &Path, wanted: &Wanted) -> Result<()> {
    let heads = ["SEQ", "TIME", "WHO", "WHAT", "POD", "DETAIL"];
    let mut columns = Columns::new(&heads);
    columns.right(&[0]);
    let mut attempts = std::collections::HashSet::new();
    let (plain, names) = (!output.json() && !output.names(), output.names());
    each_line(path, |_, _, line| {
        let Ok(record) = chain::read(line) else { return Ok(()) };
        // an outcome goes with its attempt
        let shown = match &record.entry {
            Entry::Outcome { attempt, .. } => attempts.remove(attempt),
            _ => wanted.has(&record),
        };
        if !shown {
            return Ok(());
        }
        if matches!(record.entry, Entry::Attempt { .. }) {
            attempts.insert(record.seq);
        }
        if plain {
            columns.row(row(&record));
            Ok(())
        } else if names {
            output.name(&record.seq.to_string())
        } else {
            output.body(line.as_bytes())
        }
    })?;
    if plain { output.table(columns) } else { Ok(()) }
}

fn row(record: &Record) -> [String; 6] {
    let (who, what, pod, detail) = match &record.entry {
        Entry::Attempt { principal, source, method, path, pod, .. } => {
            (principal.clone(), format!("{method} {path}"), pod.clone().unwrap_or_default(), source.clone())
        }
        Entry::Outcome { attempt, status, problem, .. } => {
            let detail = problem.as_ref().map(|problem| format!(": {problem}")).unwrap_or_default();
            (String::new(), format!("answer to {attempt}"), String::new(), format!("{status}{detail}"))
        }
        Entry::Denied { principal, method, path, problem, .. } => {
            (principal.clone(), format!("denied {method} {path}"), String::new(), problem.clone())
        }
        Entry::Session { action, by, session, pod, container, command, exit, bytes, .. } => {
            let detail = match (command.is_empty(), exit) {
                (false, _) => format!("{container}: {}", command.join(" ")),
                (true, Some(exit)) => format!("{container}: {exit}, {} bytes in, {} out", bytes[0], bytes[1]),
                (true, None) => container.clone(),
            };
            (by.clone(), format!("{action} session {session}"), pod.clone(), detail)
        }
        Entry::Note { note } => (String::new(), "note".to_owned(), String::new(), note.clone()),
    };
    [record.seq.to_string(), record.time.clone(), who, what, pod, detail]
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::arguments::Form;
    use super::*;
    use crate::access::Caller;
    use crate::access::audit::{Attempt, Audit};

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn printed(work: impl FnOnce(&mut Output) -> Result<()>) -> (std::result::Result<(), Failure>, String) {
        let memory = Memory::default();
        let result = work(&mut Output::into(Form::Table, Box::new(memory.clone())));
        let text = String::from_utf8(memory.0.lock().unwrap().clone()).unwrap();
        (result, text)
    }

    #[test]
    fn a_log_is_shown_and_verified_and_a_change_is_named_by_its_line() {
        let folder = tempfile::Builder::new().prefix("agentd-test-audit-").tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let settings = file::Settings { max_bytes: 1500, files: 0, sync: false };
        let audit = Audit::open(&path, settings).unwrap();
        for n in 0..10 {
            let name = if n % 2 == 0 { "alice" } else { "bob" };
            let caller = Caller { principal: name.into(), ..Caller::unix(1, 1, None) };
            let (request, pod) = (format!("r{n}"), Some("/web"));
            let attempt = Attempt { request: &request, caller: &caller, method: "DELETE", path: "/v1/pods/web", pod };
            let number = audit.attempt(attempt).unwrap();
            audit.outcome(number, &request, 204, None);
        }
        let (result, text) = printed(|output| verify(output, &path));
        result.unwrap();
        assert!(text.contains("verifies: "), "{text}");
        let wanted = Wanted { since: None, principal: Some("alice".into()), pod: Some("web".into()) };
        let (result, text) = printed(|output| show(output, &path, &wanted));
        result.unwrap();
        assert_eq!(text.lines().count(), 11, "{text}");
        assert!(text.contains("DELETE /v1/pods/web") && !text.contains("bob"), "{text}");
        let later = Wanted { since: Some("2999-01-01T00:00:00Z".parse().unwrap()), principal: None, pod: None };
        assert_eq!(printed(|output| show(output, &path, &later)).1.lines().count(), 1);

        let file = &file::earlier(&path).unwrap()[1];
        let changed = std::fs::read_to_string(file).unwrap().replacen("\"bob\"", "\"eve\"", 1);
        std::fs::write(file, changed).unwrap();
        match printed(|output| verify(output, &path)).0 {
            Err(Failure::Told { code: BROKEN, lines, .. }) => {
                let name = file.file_name().unwrap().to_str().unwrap();
                assert!(lines.len() == 1 && lines[0].contains(name) && lines[0].contains("was changed"), "{lines:?}");
            }
            other => panic!("{other:?}"),
        }
        let missing = verify(&mut Output::into(Form::Table, Box::new(std::io::sink())), &folder.path().join("none"));
        assert_eq!(missing.unwrap_err().code(), super::super::failure::NOT_FOUND);
    }
}
