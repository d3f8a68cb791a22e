//! The sources of the configuration: the file, the environment and the flags, each turned into assignments to keys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::keys::{Key, keys};
use super::node::{self, Entry, Tree};
use super::problem::{nearest, quoted};
use super::{Assignment, DEFAULT_FILE, Flags, Origin, Problem, assign, find, is_table, tables, unknown};

/// A configuration file is a page or two; more than this is something else.
const MAX_FILE: u64 = 1 << 20;

pub(super) fn dev_folder(
    flags: &Flags,
    env: &BTreeMap<String, String>,
    problems: &mut Vec<Problem>,
) -> Option<PathBuf> {
    let (dev, origin) = match (&flags.dev, env.get("AGENTD_DEV")) {
        (Some(dev), _) => (dev.clone(), Origin::Flag("--dev".to_owned())),
        (None, Some(dev)) if !dev.is_empty() => (PathBuf::from(dev), Origin::Environment("AGENTD_DEV".to_owned())),
        _ => return None,
    };
    // A folder relative to where the command was started is handy, and must not move when the daemon does.
    let dev = std::path::absolute(&dev).unwrap_or(dev);
    let fault = assign::path_fault(&dev)
        .or_else(|| (dev == Path::new("/")).then(|| "found '/'; expected a folder of its own".to_owned()));
    if let Some(message) = fault {
        problems.push(origin.problem("dev", message));
        return None;
    }
    Some(dev)
}

pub(super) fn read_file(
    flags: &Flags,
    env: &BTreeMap<String, String>,
    dev: Option<&Path>,
    assignments: &mut Vec<Assignment>,
    problems: &mut Vec<Problem>,
) -> Option<PathBuf> {
    let named =
        flags.config.clone().or_else(|| env.get("AGENTD_CONFIG").filter(|file| !file.is_empty()).map(PathBuf::from));
    let required = named.is_some();
    let file = named.unwrap_or_else(|| dev.map_or_else(|| DEFAULT_FILE.into(), |dev| dev.join("agentd.toml")));
    let mut fail = |message: String| {
        problems.push(Problem {
            file: file.display().to_string(),
            line: None,
            column: None,
            field: String::new(),
            message,
        });
    };
    let text = match read_text(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => return None,
        Err(error) => {
            fail(format!("cannot be read: {error}: name a readable TOML file with --config"));
            return None;
        }
    };
    let text = match String::from_utf8(text) {
        Ok(text) => text,
        Err(error) => {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = valid.split(|byte| *byte == b'\n').count();
            fail(format!("line {line} is not UTF-8; save the file as UTF-8"));
            return None;
        }
    };
    let (entries, errors) = node::parse_file(&text);
    // What follows a syntax error may have been read wrongly, so only what stands before it is judged.
    let first_error = errors.iter().filter_map(|error| error.place).min();
    let before = problems.len();
    let assigned = assignments.len();
    walk(&file, entries, assignments, problems);
    if let Some((line, _)) = first_error {
        let mut kept = problems.split_off(before);
        kept.retain(|problem| problem.line.is_some_and(|at| at < line));
        problems.append(&mut kept);
        let mut kept = assignments.split_off(assigned);
        kept.retain(|given| matches!(given.origin, Origin::File { line: at, .. } if at < line));
        assignments.append(&mut kept);
    }
    for error in errors {
        problems.push(Problem {
            file: file.display().to_string(),
            line: error.place.map(|place| place.0),
            column: error.place.map(|place| place.1),
            field: String::new(),
            message: format!("{}; expected TOML, see docs/configuration.md", error.message),
        });
    }
    Some(file)
}

fn read_text(file: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    // Non-blocking, so that a pipe in place of the file is an error and not a wait.
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(file)?;
    if !opened.metadata()?.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    let mut text = Vec::new();
    opened.take(MAX_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(std::io::Error::other("more than 1 MiB"));
    }
    Ok(text)
}

/// Finds the key of each entry of a file.
fn walk(file: &Path, entries: Vec<Entry>, assignments: &mut Vec<Assignment>, problems: &mut Vec<Problem>) {
    for entry in entries {
        if is_table(&entry.name) {
            let origin = place(file, &entry);
            let Tree::Table(inner) = entry.value.tree else {
                problems.push(origin.problem(
                    &entry.name,
                    format!("found {}; expected the table [{}]", entry.value.describe(), entry.name),
                ));
                continue;
            };
            for item in inner {
                take(file, &entry.name, item, assignments, problems);
            }
        } else {
            take(file, "", entry, assignments, problems);
        }
    }
}

fn place(file: &Path, entry: &Entry) -> Origin {
    let (line, column) = entry.place.unwrap_or((1, 1));
    Origin::File { file: file.to_path_buf(), line, column }
}

fn take(file: &Path, table: &str, entry: Entry, assignments: &mut Vec<Assignment>, problems: &mut Vec<Problem>) {
    let origin = place(file, &entry);
    if let Some(key) = find(table, &entry.name) {
        assignments.push(Assignment { key, origin, value: entry.value });
        return;
    }
    let field = if table.is_empty() { entry.name.clone() } else { format!("{table}.{}", entry.name) };
    let table_value = matches!(entry.value.tree, Tree::Table(_));
    problems.push(origin.problem(&field, unknown(table, &entry.name, table_value)));
}

pub(super) fn read_environment(
    env: &BTreeMap<String, String>,
    assignments: &mut Vec<Assignment>,
    problems: &mut Vec<Problem>,
) {
    for (name, text) in env {
        let origin = Origin::Environment(name.clone());
        if let Some(key) = keys().find(|key| key.variable() == *name) {
            assignments.push(Assignment { key, origin, value: assign::from_text(key, text) });
            continue;
        }
        // Variables of other programs may begin with AGENTD_ too: only a name in one of our tables, or nearly that of
        // a key, is a mistake.
        let in_table = tables().iter().any(|table| name.starts_with(&format!("AGENTD_{}_", table.to_uppercase())));
        let variables: Vec<String> = keys().map(Key::variable).collect();
        let meant = nearest(name, variables.iter().map(String::as_str));
        if in_table {
            let cure = meant.map_or("remove it".to_owned(), |meant| format!("did you mean {meant}?"));
            problems.push(origin.problem(name, format!("unknown variable; {cure}")));
        }
    }
}

pub(super) fn read_flags(flags: &Flags, assignments: &mut Vec<Assignment>, problems: &mut Vec<Problem>) {
    let mut give = |table: &str, name: &str, flag: &str, text: &Option<String>| {
        if let (Some(text), Some(key)) = (text, find(table, name)) {
            let origin = Origin::Flag(flag.to_owned());
            assignments.push(Assignment { key, origin, value: assign::from_text(key, text) });
        }
    };
    give("logs", "level", "--log-level", &flags.log_level);
    give("", "instance", "--instance", &flags.instance);
    for set in &flags.set {
        let Some((field, text)) = set.split_once('=') else {
            problems.push(Origin::Flag("--set".to_owned()).problem(
                "--set",
                format!("found {}; expected SECTION.KEY=VALUE, e.g. --set network.mtu=9000", quoted(set)),
            ));
            continue;
        };
        let field = field.trim();
        let origin = Origin::Flag(format!("--set {field}"));
        let (table, name) = field.rsplit_once('.').unwrap_or(("", field));
        if let Some(key) = find(table, name) {
            assignments.push(Assignment { key, origin, value: assign::from_text(key, text) });
        } else if table.is_empty() || is_table(table) {
            problems.push(origin.problem(field, unknown(table, name, false)));
        } else {
            problems.push(origin.problem(field, unknown("", table, true)));
        }
    }
}
