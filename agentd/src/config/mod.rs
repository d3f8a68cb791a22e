//! The daemon's configuration: `/etc/agentd/agentd.toml`, the environment and flags, in that order over the defaults.
//!
//! [`load`] reads all of them and answers either a valid [`Config`] with the source of each value, or every problem at
//! once with its place. It touches nothing but the file. The keys stand in one table (`keys.rs`); `docs/configuration.md`
//! describes them, and a test holds that it names each.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

mod assign;
mod cross;
mod flags;
mod keys;
mod node;
mod print;
mod problem;
#[cfg(test)]
mod tests;
mod types;

pub use flags::Flags;
pub use print::effective;
pub use problem::Problem;
pub use types::{
    Api, Artifacts, Config, DiskEnforcement, HostFiles, Images, LogFormat, Logs, Network, Paths, Pods, PortRange,
    Registry, Reserved, Resources,
};

use keys::{KEYS, Key};
use node::{Entry, Node, Tree};
use problem::{nearest, quoted};

/// Instance when none is named.
pub const DEFAULT_INSTANCE: &str = "agentd";

/// The file that is read when none is named.
pub const DEFAULT_FILE: &str = "/etc/agentd/agentd.toml";

/// A configuration file is a page or two; more than this is something else.
const MAX_FILE: u64 = 1 << 20;

/// A longest path that leaves room for what is made below it.
const MAX_PATH: usize = 2048;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// Follows from `--dev`.
    Dev,
    /// A line of the file.
    File {
        /// The file.
        file: PathBuf,
        /// Line from 1.
        line: usize,
        /// Column from 1.
        column: usize,
    },
    /// A variable.
    Environment(String),
    /// A flag, as it was given.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Dev => f.write_str("default below --dev"),
            Self::File { file, line, .. } => write!(f, "{}:{line}", file.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

impl Origin {
    fn problem(&self, field: &str, message: impl Into<String>) -> Problem {
        let (file, line, column) = match self {
            Self::Default => ("defaults".to_owned(), None, None),
            Self::Dev => ("flag --dev".to_owned(), None, None),
            Self::File { file, line, column } => (file.display().to_string(), Some(*line), Some(*column)),
            Self::Environment(name) => (format!("environment {name}"), None, None),
            Self::Flag(flag) => (format!("flag {flag}"), None, None),
        };
        Problem { file, line, column, field: field.to_owned(), message: message.into() }
    }
}

/// A configuration and where each of its values comes from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Field, e.g. `network.mtu` → source.
    pub sources: BTreeMap<String, Origin>,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
}

/// A value given for a key, not yet looked at.
struct Assignment {
    key: &'static Key,
    origin: Origin,
    value: Node,
}

impl Config {
    /// The same as [`load`].
    pub fn load(flags: &Flags, env: impl Iterator<Item = (String, String)>) -> Result<Loaded, Vec<Problem>> {
        load(flags, env)
    }
}

/// Reads the configuration: defaults, file, environment, flags; each overrides those before it. For `env` give
/// `std::env::vars_os()` without what is not UTF-8.
pub fn load(flags: &Flags, env: impl Iterator<Item = (String, String)>) -> Result<Loaded, Vec<Problem>> {
    let env: BTreeMap<String, String> = env.filter(|(name, _)| name.starts_with("AGENTD_")).collect();
    let mut problems = Vec::new();
    let mut assignments = Vec::new();

    let dev = dev_folder(flags, &env, &mut problems);
    let file = read_file(flags, &env, dev.as_deref(), &mut assignments, &mut problems);
    read_environment(&env, &mut assignments, &mut problems);
    read_flags(flags, &mut assignments, &mut problems);

    let instance = assignments
        .iter()
        .filter(|given| given.key.table.is_empty() && given.key.name == "instance")
        .filter_map(|given| match &given.value.tree {
            Tree::Text(text) if keys::is_instance(text) => Some(text.clone()),
            _ => None,
        })
        .next_back()
        .or_else(|| dev.as_deref().map(types::dev_instance))
        .unwrap_or_else(|| DEFAULT_INSTANCE.to_owned());
    let mut config = Config::defaults(&instance, dev.as_deref());
    let base = Config::defaults(DEFAULT_INSTANCE, None);

    let mut sources = BTreeMap::new();
    for key in KEYS {
        let same = print::value(key, &config) == print::value(key, &base);
        let origin = if dev.is_some() && !same { Origin::Dev } else { Origin::Default };
        sources.insert(key.field(), origin);
    }
    for given in &assignments {
        if assign::assign(given, &mut config, &mut problems) {
            sources.insert(given.key.field(), given.origin.clone());
        }
    }
    cross::check(&config, &sources, &mut problems);
    if problems.is_empty() {
        Ok(Loaded { config, sources, file })
    } else {
        problems.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        problems.dedup();
        Err(problems)
    }
}

fn dev_folder(flags: &Flags, env: &BTreeMap<String, String>, problems: &mut Vec<Problem>) -> Option<PathBuf> {
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

fn read_file(
    flags: &Flags,
    env: &BTreeMap<String, String>,
    dev: Option<&Path>,
    assignments: &mut Vec<Assignment>,
    problems: &mut Vec<Problem>,
) -> Option<PathBuf> {
    let named = flags
        .config
        .clone()
        .or_else(|| env.get("AGENTD_CONFIG").filter(|file| !file.is_empty()).map(PathBuf::from));
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
            let valid = error.utf8_error().valid_up_to();
            let line = error.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count() + 1;
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

fn take(
    file: &Path,
    table: &str,
    entry: Entry,
    assignments: &mut Vec<Assignment>,
    problems: &mut Vec<Problem>,
) {
    let origin = place(file, &entry);
    match find(table, &entry.name) {
        Some(key) => assignments.push(Assignment { key, origin, value: entry.value }),
        None => {
            let field = if table.is_empty() { entry.name.clone() } else { format!("{table}.{}", entry.name) };
            let table_value = matches!(entry.value.tree, Tree::Table(_));
            problems.push(origin.problem(&field, unknown(table, &entry.name, table_value)));
        }
    }
}

fn find(table: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.table == table && key.name == name)
}

fn is_table(name: &str) -> bool {
    !name.is_empty() && KEYS.iter().any(|key| key.table == name)
}

fn tables() -> Vec<&'static str> {
    let mut tables: Vec<&str> = KEYS.iter().map(|key| key.table).filter(|table| !table.is_empty()).collect();
    tables.dedup();
    tables
}

/// The message for a name that no table has: what was probably meant, else all there are.
fn unknown(table: &str, name: &str, is_table_value: bool) -> String {
    let here: Vec<&str> = if is_table_value && table.is_empty() {
        tables()
    } else {
        KEYS.iter().filter(|key| key.table == table).map(|key| key.name).collect()
    };
    let what = if is_table_value && table.is_empty() { "table" } else { "key" };
    if let Some(meant) = nearest(name, here.iter().copied()) {
        return format!("unknown {what} {}; did you mean '{meant}'?", quoted(name));
    }
    // The right key in the wrong table is the other common mistake.
    if let Some(key) = KEYS.iter().find(|key| key.name == name) {
        let home = if key.table.is_empty() { "above all tables".to_owned() } else { format!("in [{}]", key.table) };
        return format!("unknown {what} {} here; it belongs {home}", quoted(name));
    }
    format!("unknown {what} {}; expected one of {}", quoted(name), here.join(", "))
}

fn read_environment(
    env: &BTreeMap<String, String>,
    assignments: &mut Vec<Assignment>,
    problems: &mut Vec<Problem>,
) {
    for (name, text) in env {
        let origin = Origin::Environment(name.clone());
        if let Some(key) = KEYS.iter().find(|key| key.variable() == *name) {
            assignments.push(Assignment { key, origin, value: assign::from_text(key, text) });
            continue;
        }
        // Variables of other programs may begin with AGENTD_ too: only a name in one of our tables, or nearly that of
        // a key, is a mistake.
        let in_table = tables().iter().any(|table| name.starts_with(&format!("AGENTD_{}_", table.to_uppercase())));
        let variables: Vec<String> = KEYS.iter().map(Key::variable).collect();
        let meant = nearest(name, variables.iter().map(String::as_str));
        if in_table {
            let cure = meant.map_or("remove it".to_owned(), |meant| format!("did you mean {meant}?"));
            problems.push(origin.problem(name, format!("unknown variable; {cure}")));
        }
    }
}

fn read_flags(flags: &Flags, assignments: &mut Vec<Assignment>, problems: &mut Vec<Problem>) {
    let mut give = |table: &str, name: &str, flag: &str, text: &Option<String>| {
        if let (Some(text), Some(key)) = (text, find(table, name)) {
            let origin = Origin::Flag(flag.to_owned());
            assignments.push(Assignment { key, origin, value: assign::from_text(key, text) });
        }
    };
    give("logs", "level", "--log-level", &flags.log_level);
    give("", "instance", "--instance", &flags.instance);
    for set in &flags.set {
        let origin = Origin::Flag(format!("--set {}", set.split('=').next().unwrap_or_default()));
        let Some((field, text)) = set.split_once('=') else {
            problems.push(origin.problem(
                "--set",
                format!("found {}; expected SECTION.KEY=VALUE, e.g. --set network.mtu=9000", quoted(set)),
            ));
            continue;
        };
        let field = field.trim();
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
