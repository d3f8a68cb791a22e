//! The daemon's configuration: `/etc/agentd/agentd.toml`, the environment and flags, in that order over the defaults.
//!
//! [`load`] reads all of them and answers either a valid [`Config`] with the source of each value, or every problem at
//! once with its place. It touches nothing but the file. The keys stand in one table (`keys.rs`); `docs/configuration.md`
//! describes them, and a test holds that it names each.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

mod api;
mod api_keys;
mod assign;
mod cross;
mod flags;
mod keys;
mod node;
mod observe;
mod observe_keys;
mod otlp;
mod otlp_keys;
mod print;
mod problem;
mod sources;
#[cfg(test)]
mod tests;
mod types;

pub use api::{Api, Record, Sessions};
pub use flags::Flags;
pub use observe::{Metrics, Observe};
pub use otlp::{Compression, Otlp};
pub use print::effective;
pub use problem::Problem;
pub use types::{
    Artifacts, Config, DiskEnforcement, HostFiles, Images, LogFormat, Logs, Network, Paths, Pods, PortRange, Registry,
    Reserved, Resources, Subnet6,
};

use keys::{Key, keys};
use node::{Node, Tree};
use problem::{nearest, quoted};

/// Instance when none is named.
pub const DEFAULT_INSTANCE: &str = "agentd";

/// The file that is read when none is named.
pub const DEFAULT_FILE: &str = "/etc/agentd/agentd.toml";

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

    let dev = sources::dev_folder(flags, &env, &mut problems);
    let file = sources::read_file(flags, &env, dev.as_deref(), &mut assignments, &mut problems);
    sources::read_environment(&env, &mut assignments, &mut problems);
    sources::read_flags(flags, &mut assignments, &mut problems);

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
    for key in keys() {
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

fn find(table: &str, name: &str) -> Option<&'static Key> {
    keys().find(|key| key.table == table && key.name == name)
}

fn is_table(name: &str) -> bool {
    !name.is_empty() && keys().any(|key| key.table == name)
}

fn tables() -> Vec<&'static str> {
    let mut tables: Vec<&str> = keys().map(|key| key.table).filter(|table| !table.is_empty()).collect();
    tables.dedup();
    tables
}

/// The message for a name that no table has: what was probably meant, else all there are.
fn unknown(table: &str, name: &str, is_table_value: bool) -> String {
    let here: Vec<&str> = if is_table_value && table.is_empty() {
        tables()
    } else {
        keys().filter(|key| key.table == table).map(|key| key.name).collect()
    };
    let what = if is_table_value && table.is_empty() { "table" } else { "key" };
    if let Some(meant) = nearest(name, here.iter().copied()) {
        return format!("unknown {what} {}; did you mean '{meant}'?", quoted(name));
    }
    // The right key in the wrong table is the other common mistake.
    if let Some(key) = keys().find(|key| key.name == name) {
        let home = if key.table.is_empty() { "above all tables".to_owned() } else { format!("in [{}]", key.table) };
        return format!("unknown {what} {} here; it belongs {home}", quoted(name));
    }
    format!("unknown {what} {}; expected one of {}", quoted(name), here.join(", "))
}
